"""Change a thread's task: by an answer, an edit of the state, or a correction.

Each change of the task advances the epoch by compare-and-set, so earlier plans are stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from langchain_runtime_authz.errors import AuthzDenied, Code, LedgerError
from langchain_runtime_authz.facts.checkpoint_head import CHILDREN, UNKNOWN, UNRECORDED, outside_key
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, carry_plan, raw_digest
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest, new_texts
from langchain_runtime_authz.ledger.base import Approval, Committed, Conflict, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.call_changes import AnswerApproval
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, Change, RecordPlan, SetMark
from langchain_runtime_authz.pep import approval_answers
from langchain_runtime_authz.pep.decision_log import commit_recorded, run_event
from langchain_runtime_authz.pep.free_text import free_text
from langchain_runtime_authz.pep.lease import take_lease
from langchain_runtime_authz.pep.run import ATTEMPTS, Commit, Flow, Load, Run, new_id


def trace_change(of: Run | Scope, done: Committed, texts: Sequence[HumanText], source: str) -> tuple[Any, ...]:
    """Trace a committed task change. Return the `Write` effect that records it."""
    authors = [t.author for t in texts if t.author]
    detail = {"source": source, "author": (authors or [""])[0], "texts": len(texts), "from_epoch": done.epoch - 1}
    return run_event(of, "corrected", done.now, detail=detail, epoch=done.epoch)


def unrecorded_mark(epoch: int, pinned: int, texts: Sequence[HumanText], source: str) -> SetMark:
    """Return the mark of a task change not yet audited. `pinned`: texts before it."""
    return SetMark(UNRECORDED, f"{epoch} {source} {pinned} {pinned + len(texts)}")


def clear_mark(mark: str) -> SetMark:
    """Return the change that clears `mark`, unless a newer task change replaced it."""
    return SetMark(UNRECORDED, "", instead=mark)


def record_unrecorded(of: Run | Scope, before: Snapshot) -> Flow[str]:
    """Record the task change of the mark `UNRECORDED`, if set. Return the mark or ""."""
    if left := before.marks.get(UNRECORDED, ""):
        epoch, source, start, end = left.split()
        yield trace_change(of, Committed(before.now, int(epoch)), before.log[int(start) : int(end)], source)
    return left


def change_task(
    of: Run | Scope, source: str, change: Callable[[Snapshot], tuple[Sequence[Change], Sequence[HumanText]] | None]
) -> Flow[Committed | None]:
    """Commit and record the task change that `change` returns, if any.

    An earlier change that the audit log lacks is recorded first. Raises `AuthzDenied` (`stale_epoch`) if others change
    the task at each of `ATTEMPTS` tries.
    """
    scope = of.scope if isinstance(of, Run) else of
    for _ in range(ATTEMPTS):
        before: Snapshot = yield Load(scope, Query(log=True, marks=(UNRECORDED,)))
        if (made := change(before)) is None:
            return None
        yield from record_unrecorded(of, before)
        changes, texts = made
        mark = unrecorded_mark(before.epoch + 1, len(before.log), texts, source)
        done: Committed | Conflict = yield Commit(scope, None, [*changes, mark])
        if isinstance(done, Committed):
            yield from record_change(of, done, mark, texts, source)
            return done
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def record_change(
    of: Run | Scope, done: Committed, mark: SetMark, texts: Sequence[HumanText], source: str
) -> Flow[None]:
    """Record a committed task change in the audit log. Then clear its ledger mark."""
    yield trace_change(of, done, texts, source)
    with suppress(LedgerError):  # if the mark stays, the change is recorded twice
        yield Commit(of.scope if isinstance(of, Run) else of, None, [clear_mark(mark.value)])


_NOT_THEIRS = (Code.APPROVAL_APPROVER, Code.APPROVAL_NOT_DISTINCT)


def commit_answers(
    run: Run, questions: Sequence[Approval], given: Mapping[str, object], interrupts: Mapping[str, object]
) -> Flow[None]:
    """Record the answers in one commit, before any LangGraph task starts.

    `given`: interrupt id → answer. `interrupts`: interrupt id → the interrupt's value. An edit, a response or a
    rejection with a reason changes the task. The same commit then advances the epoch and carries the plans over,
    without rejected calls and with the approver's edits.

    Raises `AuthzDenied` if others changed the task or the subject may not answer, if the question was answered before
    (`approval_settled`), or if more must be answered: by this approver (`approval_partial`), by another (`approval_waits`).
    """
    open_ids = {a.id for a in questions}
    try:
        value = {i: approval_answers.remaining_decisions(said, interrupts[i], open_ids) for i, said in given.items()}
    except ValueError:
        raise AuthzDenied(Code.APPROVAL_SETTLED, new_id()) from None
    if not questions:
        return
    if approval_answers.answers_only_some(questions, value):
        raise AuthzDenied(Code.APPROVAL_PARTIAL, new_id())
    answered = approval_answers.read_answers(questions, value, run.subject)
    refused = {a.call_key for a in answered if a.state == "malformed"}
    if any(a.source == "hitl" and a.call_key in refused for a in questions):
        return  # LangChain's review refuses the whole value, and the review's question stays open
    said = approval_answers.correcting_texts(questions, answered)
    if not said and not (yield from _takes_back(run.scope, questions, answered)):
        record = partial(approval_answers.record_answers, run, questions, answered)
        done = yield from commit_recorded(run.scope, answered, record)
        if isinstance(done, Conflict) and done.code in _NOT_THEIRS:
            # Refuse before a task receives the value, so that the question stays open for its approvers.
            raise AuthzDenied(done.code, new_id())
        by_key = {a.call_key: a for a in answered}
        if any(a.needed - len(a.approvers) > 1 and by_key[a.call_key].state == "approved" for a in questions):
            raise AuthzDenied(Code.APPROVAL_WAITS, new_id())
        return
    plans = yield from carried_plans(run.scope, run.epoch, questions, answered)
    texts = tuple(replace(t, author=run.subject.principal) for t in said) if run.subject.human else ()
    change = AdvanceEpoch(run.epoch, texts, keep=tuple(a.call_key for a in answered if a.state == "approved"))
    yield from _rotate(run, [*answered, change, *(RecordPlan(p) for p in plans)], texts, questions, answered)


def _takes_back(scope: Scope, questions: Sequence[Approval], answered: Sequence[AnswerApproval]) -> Flow[bool]:
    """Return True if a review approves the model's own call, which had been edited."""
    for key, places in _as_announced(questions, answered).items():
        snapshot: Snapshot = yield Load(scope, Query(plan=key))
        if snapshot.plan is not None and any(c.was_args and c.position in places for c in snapshot.plan.calls):
            return True
    return False


def _as_announced(
    questions: Sequence[Approval], answered: Sequence[AnswerApproval]
) -> dict[tuple[tuple[str, ...], str], set[int]]:
    """Return (agent, plan id) → positions of calls that a review approved as they are."""
    plain = {a.call_key for a in answered if a.state == "approved" and not a.edited}
    found: dict[tuple[tuple[str, ...], str], set[int]] = {}
    for one in questions:
        if one.source == "hitl" and one.call_key in plain and one.plan_id is not None and one.place is not None:
            found.setdefault((one.agent, one.plan_id), set()).add(one.place)
    return found


def record_replies(
    run: Run, given: Mapping[str, object], interrupts: Mapping[str, Any], own: Sequence[Approval]
) -> Flow[None]:
    """Record answers to tools' and nodes' interrupts, which may change the task.

    `given`: interrupt id → answer. `interrupts`: interrupt id → LangGraph's interrupt. `own`: the questions that tools
    asked. If the task changed, their calls continue, and the rest of the plan is stale. Raises `AuthzDenied` if others
    changed the task.
    """
    said: dict[str, str] = {}
    for ident, answer in given.items():
        asked = interrupts[ident]
        if text := free_text(answer, asked.value, getattr(asked, "response_schema", None)):
            said[ident] = text
    human, author = run.subject.human, run.subject.principal
    log = (yield Load(run.scope, Query(log=True))).log if said else ()
    known = {(t.key, t.digest) for t in log}
    texts = tuple(
        HumanText(content_digest(text), text if human else "", f"{ANSWER}{i}", own=human, author=author)
        for i, text in said.items()
        if (f"{ANSWER}{i}", content_digest(text)) not in known
    )
    heard = own if texts else [a for a in own if a.interrupt_id in given]
    # After an answer in words, the policy decides the call under the new task. Only a plain answer approves the call.
    kind = "words" if texts else ""
    going = [AnswerApproval(a.call_key, "approved", author, authenticated=False, message=kind) for a in heard]
    if not texts:
        if going:
            yield Commit(run.scope, None, going)
        return
    # This run delivers the texts (`EntryState.replies`). If the process dies before, the next root entry does.
    keep = tuple(a.call_key for a in own)
    yield from _rotate(run, [*going, AdvanceEpoch(run.epoch, texts, deliver=human, keep=keep)], texts)
    run.entry.replies = tuple(t.text for t in texts if t.text)


def _rotate(
    run: Run,
    changes: Sequence[Change],
    texts: Sequence[HumanText],
    questions: Sequence[Approval] = (),
    answered: Sequence[AnswerApproval] = (),
) -> Flow[None]:
    """Commit a change of the task by this run, and move the run to the new epoch."""
    before = {"from_epoch": run.epoch, "from_jti": run.jti}
    mark = unrecorded_mark(run.epoch + 1, run.entry.text_count, texts, "answer")
    record = partial(approval_answers.record_answers, run, questions, answered)
    done: Committed | Conflict = yield from commit_recorded(run.scope, [*changes, mark], record, run.guard)
    if isinstance(done, Conflict):
        raise AuthzDenied(done.code, new_id())
    run.move_to(done.epoch, new_id())
    run.entry.text_count += len(texts)
    yield trace_change(run, done, texts, "answer")
    taken = yield Commit(run.scope, None, [take_lease(run), clear_mark(mark.value)])
    if isinstance(taken, Conflict):
        raise AuthzDenied(taken.code, new_id())
    yield run_event(run, "rotated", done.now, detail=before)


def carried_plans(
    scope: Scope, epoch: int, questions: Sequence[Approval], answered: Sequence[AnswerApproval]
) -> Flow[list[PlanRecord]]:
    """Return the plans of `epoch`, changed by the answers, as plans of the next epoch."""
    by_key, announced = {a.call_key: a for a in answered}, _as_announced(questions, answered)
    edits: dict[tuple[tuple[str, ...], str], dict[int, PlannedCall | None]] = {}
    above: dict[tuple[tuple[str, ...], str], None] = {}
    for one in questions:
        above.update(dict.fromkeys(one.within))
        if one.plan_id is None or one.place is None:
            continue
        instead = edits.setdefault((one.agent, one.plan_id), {})
        reply = by_key[one.call_key]
        if reply.edited:
            name, args = approval_answers.edited_action(reply.edited)
            instead[one.place] = PlannedCall(one.place, one.call_id, name, raw_digest(args))
        elif reply.state != "approved":
            instead[one.place] = None
    plans: dict[tuple[tuple[str, ...], str], PlanRecord] = {}
    for key, instead in edits.items():
        snapshot: Snapshot = yield Load(scope, Query(plan=key))
        if snapshot.plan is not None and snapshot.plan.epoch == epoch:
            plans[key] = carry_plan(snapshot.plan, epoch + 1, instead, announced.get(key, ()))
    for call in above:
        snapshot = yield Load(scope, Query(planned_call=call))
        if snapshot.plan is not None and snapshot.plan.epoch == epoch:
            key = (snapshot.plan.agent, snapshot.plan.id)
            plans.setdefault(key, carry_plan(snapshot.plan, epoch + 1, {}))
    return list(plans.values())


def record_state_edit(
    scope: Scope, texts: Sequence[HumanText], by: str, checkpoint: str, children: str | None
) -> Flow[None]:
    """Record that `by` edited a thread's state, which made the new `checkpoint`.

    `children`: digest of the waiting child graphs. If the next root entry finds another digest, somebody else edited them.
    """
    act = HumanText(content_digest(checkpoint), "", outside_key(checkpoint), own=False, author=by)

    def edit(snapshot: Snapshot) -> tuple[list[Change], tuple[HumanText, ...]] | None:
        if not snapshot.exists:
            return None
        said = [replace(t, author=by, own=by == snapshot.subject) for t in new_texts(snapshot.log, texts)]
        return [AdvanceEpoch(snapshot.epoch, (*said, act)), SetMark(CHILDREN, children or UNKNOWN)], (*said, act)

    yield from change_task(scope, "update_state", edit)


def record_correction(scope: Scope, text: HumanText, by: str | None = None) -> Flow[int]:
    """Record a correction by `by` (None: the subject). Return the new epoch."""

    def change(snapshot: Snapshot) -> tuple[list[Change], tuple[HumanText, ...]]:
        author = by if by is not None else snapshot.subject
        said = replace(text, author=author, own=author == snapshot.subject)
        return [AdvanceEpoch(snapshot.epoch, (said,), deliver=True)], (said,)

    return cast("Committed", (yield from change_task(scope, "correct", change))).epoch
