"""Root entries, children and corrections: where runs begin, end and are told of a changed task.

Each root entry (invoke, stream, batch element, resume) takes its own lease, at the epoch of the
state it loads. A later correction kills that lease and the old run drains; only a new root entry
plans anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from langchain_runtime_authz.audit.record import run_record
from langchain_runtime_authz.authzen import Edge, Resource, Subject
from langchain_runtime_authz.enforce.approval import answers, corrections, edited_action
from langchain_runtime_authz.enforce.engine import Ask, Commit, Effect, Engine, Flow, Load, Record, Run, new_id
from langchain_runtime_authz.enforce.judge import data_scope
from langchain_runtime_authz.enforce.step import decide_step
from langchain_runtime_authz.errors import AuthzDenied, Code, ledger_code
from langchain_runtime_authz.facts.answer import free_text
from langchain_runtime_authz.facts.delegation import edge
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, carry, raw_digest
from langchain_runtime_authz.facts.provenance.words import own_words
from langchain_runtime_authz.facts.state import HEAD, MEMORY, UNKNOWN, Head, fork_key, memory_key, outside_key, standing
from langchain_runtime_authz.facts.task import ANSWER, HumanText, changed, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.base import (
    AdvanceEpoch,
    AnswerApproval,
    Approval,
    Change,
    Conflict,
    EndLease,
    Lease,
    Mark,
    OpenThread,
    Query,
    RecordEdge,
    RecordPlan,
    Redeliver,
    Reinstate,
    Revoke,
    Scope,
    Snapshot,
    TakeLease,
    TakePending,
)

__all__ = [
    "Entry",
    "Given",
    "altered",
    "answer",
    "close",
    "correct",
    "data_changed",
    "open_child",
    "open_entry",
    "reinstate",
    "reply",
    "revoke",
]

_log = logging.getLogger(__name__)

_NOT_THEIRS = (Code.APPROVAL_APPROVER, Code.APPROVAL_NOT_DISTINCT)


@dataclass(frozen=True, slots=True)
class Entry:
    """An opened root entry.

    `pending` are corrections that the graph's state may not hold yet; they are pending until a run
    ends that saw them. `asks` are the questions that a resume value may answer. `now` is ledger time.
    """

    run: Run
    pending: tuple[HumanText, ...]
    asks: tuple[Approval, ...]
    now: float = 0.0


class Given(NamedTuple):
    """What a root entry is given: a new input or a resume, and the state that it will load.

    `texts` are the human-origin texts of the input. `kept`: the graph keeps its state, so that
    another writer can erase them from it; `head` is what it kept of this thread, if anything.
    `moved` makes an effect of the checkpoint that a run left last: whether what somebody did since
    altered anything that a task or a plan is made of. `memory` is the digest of what the store
    remembers, where that counts as part of the task.
    """

    texts: Sequence[HumanText] = ()
    resume: bool = False
    kept: bool = False
    head: Head | None = None
    moved: Callable[[str], Effect] | None = None
    memory: str | None = None


def open_entry(
    engine: Engine,
    *,
    scope: Scope,
    subject: Subject,
    run_id: str,
    agent: str,
    task: HumanText | None,
    given: Given,
    grant: Grant | None,
) -> Flow[Entry]:
    """Open a root entry: pin the task, advance the epoch if a human changed it, take a lease.

    `task` is what `.run(task=)` said.

    Raises:
        AuthzDenied: the subject may not start here, or the ledger is gone.
    """
    if engine.killed:
        raise AuthzDenied(Code.KILLED, new_id())
    try:
        run, pending, asks, now = yield from _take_lease(engine, scope, subject, run_id, agent, task, given, grant)
    except AuthzDenied:
        raise
    except Exception as exc:  # a ledger that fails denies
        _log.error("ledger failed: %s: %s", type(exc).__name__, exc)
        raise AuthzDenied(ledger_code(exc), new_id()) from exc
    try:
        run.planned = yield from _planned(run)
    except Exception as exc:  # likewise
        _log.error("ledger failed: %s: %s", type(exc).__name__, exc)
        raise AuthzDenied(ledger_code(exc), new_id()) from exc
    action = "run/resume" if given.resume else "run/start"
    decision = yield from decide_step(run, action, Resource(type="run", id=agent, properties={"graph": scope.graph}))
    if not decision.permit:
        yield from close(run, "ended")
        raise AuthzDenied(decision.reason, decision.decision_id)
    return Entry(run, pending, asks, now)


def _planned(run: Run) -> Flow[frozenset[str] | None]:
    """What the planner holds the task to need: asked once per state of the task, kept in the ledger.

    It is asked before anything of this entry runs, and is shown the human's own words alone.
    """
    planner = run.engine.planner
    if planner is None:
        return None
    snapshot: Snapshot = yield Load(run.scope, Query(log=True))
    texts = [words for t in snapshot.log if t.own and (words := own_words(t.text).strip())]
    if not texts:
        return None
    key = f"planner:{snapshot.task.digest}"
    for attempt in range(2):
        kept: Snapshot = yield Load(run.scope, Query(plan=(run.agent, key)))
        if kept.plan is not None:
            return frozenset(c.tool for c in kept.plan.calls)
        if attempt == 0:
            tools: Sequence[str] = yield Ask(planner, texts)
            calls = tuple(PlannedCall(i, None, t, "") for i, t in enumerate(dict.fromkeys(tools)))
            yield Commit(run.scope, None, [RecordPlan(PlanRecord(key, run.agent, run.epoch, "model", calls))])
    return frozenset()


def _take_lease(
    engine: Engine,
    scope: Scope,
    subject: Subject,
    run_id: str,
    agent: str,
    task: HumanText | None,
    given: Given,
    grant: Grant | None,
) -> Flow[tuple[Run, tuple[HumanText, ...], tuple[Approval, ...], float]]:
    owner = f"{subject.type}:{subject.id}"
    jti = new_id()
    # Another entry may advance the epoch between our load and our commit: then look again.
    for _ in range(8):
        snapshot: Snapshot = yield Load(scope, Query(log=True, asks=True, agent=(agent,), marks=(HEAD, MEMORY)))
        said = tuple(replace(t, author=owner) for t in _fresh(snapshot.log, task, given.texts))
        done_outside = yield from _outside(snapshot, given, jti)
        fresh = (*done_outside, *said)
        first = not snapshot.log and not done_outside
        changes: list[OpenThread | AdvanceEpoch] = [OpenThread(owner)]
        if fresh:
            # Until a run that saw them ends, an older one may overwrite them in the graph's state.
            changes.append(AdvanceEpoch(snapshot.epoch, fresh, first=first, deliver=given.kept and not first))
        done = yield Commit(scope, None, changes)
        if isinstance(done, Conflict):
            if done.code == Code.STALE_EPOCH:
                continue
            raise AuthzDenied(done.code, new_id())
        now = int(done.now)
        run = Run(
            engine=engine,
            scope=scope,
            subject=subject,
            run_id=run_id,
            agent=(agent,),
            jti=jti,
            epoch=done.epoch,
            started_at=now,
            expires_at=now + engine.lease_ttl,
            grant=grant,
            pinned=len(snapshot.log) + len(fresh),
            kept_state=given.kept,
            steps_before=snapshot.history.steps,
        )
        taken = yield Commit(scope, None, [TakeLease(_lease(run))])
        if isinstance(taken, Conflict):
            if taken.code == Code.STALE_EPOCH:
                continue
            raise AuthzDenied(taken.code, new_id())
        if fresh and not first:
            yield _record(run, "corrected", done.now, texts=len(fresh))
        yield _record(run, "resumed" if given.resume else "started", done.now, subject=owner)
        asks = snapshot.asks if not fresh or first else ()
        return run, snapshot.pending, asks, done.now
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def _outside(snapshot: Snapshot, given: Given, jti: str) -> Flow[tuple[HumanText, ...]]:
    """What somebody did to the thread's state beside every entry, as something to pin; its words are nobody's."""
    if not snapshot.exists:
        return ()
    state = yield from _state_outside(snapshot, given, jti)
    left = snapshot.marks.get(MEMORY)
    # While a run is under way, or was cut, it may be its own doing.
    edited = given.memory is not None and left not in (None, UNKNOWN, given.memory) and not snapshot.underway
    if not edited or given.memory is None:
        return state
    return (*state, HumanText(given.memory, "", memory_key(given.memory), own=False))


def _state_outside(snapshot: Snapshot, given: Given, jti: str) -> Flow[tuple[HumanText, ...]]:
    head = given.head
    if head is None or given.moved is None:
        return ()
    how = standing(head, snapshot.marks, {t.key for t in snapshot.log}, underway=snapshot.underway)
    if how == "fork":
        return (HumanText(content_digest(head.id), "", fork_key(jti), own=False),)
    left = snapshot.marks.get(HEAD, UNKNOWN)
    if how == "outside" and (left == UNKNOWN or (yield given.moved(left))):
        return (HumanText(content_digest(head.id), "", outside_key(head.id), own=False),)
    return ()


def _fresh(pinned: Sequence[HumanText], task: HumanText | None, texts: Sequence[HumanText]) -> tuple[HumanText, ...]:
    """What the human says for the first time.

    `.run(task=)` with a pinned digest says nothing new, and the input that repeats the task says it
    once.
    """
    if task is None:
        return changed(pinned, texts)
    rest = changed([t for t in pinned if t.digest != task.digest], [t for t in texts if t.digest != task.digest])
    return rest if any(t.digest == task.digest for t in pinned) else (task, *rest)


def _lease(run: Run) -> Lease:
    return Lease(
        jti=run.jti,
        run_id=run.run_id,
        agent=run.agent,
        epoch=run.epoch,
        started_at=run.started_at,
        expires_at=run.expires_at,
        grant=run.grant,
        parent=run.parent.jti if run.parent is not None else None,
    )


def _record(run: Run, event: str, now: float, **detail: object) -> Record:
    return Record(
        run_record,
        now=now,
        event=event,
        run_id=run.run_id,
        jti=run.jti,
        epoch=run.epoch,
        scope=run.scope,
        agent=run.agent,
        detail=detail,
    )


def answer(run: Run, asks: Sequence[Approval], value: object) -> Flow[None]:
    """Put a resume value into the ledger, before any task starts: one atomic correction or answer.

    Plain answers leave the task alone. An edit, a response or a rejection with a reason changes it:
    then the same commit opens the next epoch, with a plan of the calls that are left. Rejected ones
    are in it no more, edited ones stand as edited, and the agents above that wait for them go on.

    Raises:
        AuthzDenied: the task was changed by somebody else meanwhile.
    """
    answered = answers(asks, value, run.subject)
    refused = {a.call_key for a in answered if a.state == "malformed"}
    if any(a.source == "hitl" and a.call_key in refused for a in asks):
        return  # LangChain's review refuses the whole value, and its question stays open
    said = corrections(asks, answered)
    if not said:
        done = yield Commit(run.scope, None, answered)
        if isinstance(done, Conflict) and done.code in _NOT_THEIRS:
            # Before any task takes the value: the question stays open for who may answer it.
            yield _record(run, "approval", 0.0, refused=str(done.code), approver=f"{run.subject.type}:{run.subject.id}")
            raise AuthzDenied(done.code, new_id())
        by_key = {a.call_key: a for a in answered}
        if any(a.needed - len(a.approvers) > 1 and by_key[a.call_key].state == "approved" for a in asks):
            raise AuthzDenied(Code.APPROVAL_WAITS, new_id())
        return
    plans = yield from _carried(run, asks, answered)
    human = run.subject.type in ("user", "anonymous")
    texts = tuple(replace(t, author=f"{run.subject.type}:{run.subject.id}") for t in said) if human else ()
    change = AdvanceEpoch(
        run.epoch,
        texts,
        keep=tuple(a.call_key for a in answered if a.state == "approved"),
    )
    yield from _rotate(run, [*answered, change, *(RecordPlan(p) for p in plans)], texts)


def reply(run: Run, questions: Mapping[str, object], given: Mapping[str, object]) -> Flow[bool]:
    """Answers to what tools and nodes ask by themselves: what is no plain answer corrects the task.

    `questions` are the values of open interrupts by id, `given` the answers. The next epoch is open
    before any task starts, with nothing carried over; the words are told with the answers to the
    calls that it makes stale. The same answer to the same question once more says nothing new.
    Returns whether the task changed.

    Raises:
        AuthzDenied: the task was changed by somebody else meanwhile.
    """
    said = {i: text for i, answer in given.items() if (text := free_text(answer, questions[i]))}
    if not said:
        return False
    human = run.subject.type in ("user", "anonymous")
    author = f"{run.subject.type}:{run.subject.id}"
    snapshot: Snapshot = yield Load(run.scope, Query(log=True))
    known = {(t.key, t.digest) for t in snapshot.log}
    texts = tuple(
        HumanText(content_digest(text), text if human else "", f"{ANSWER}{i}", own=human, author=author)
        for i, text in said.items()
        if (f"{ANSWER}{i}", content_digest(text)) not in known
    )
    if not texts:
        return False
    # Delivered by the answers below; should the process die before, by the next root entry.
    yield from _rotate(run, [AdvanceEpoch(run.epoch, texts, deliver=human)], texts)
    run.corrected = tuple(t.text for t in texts if t.text)
    return True


def _rotate(run: Run, changes: Sequence[Change], texts: Sequence[HumanText]) -> Flow[None]:
    """Commit a correction by the run's own entry, which goes on in the next epoch under a jti of its own."""
    done = yield Commit(run.scope, run.guard, changes)
    if isinstance(done, Conflict):
        raise AuthzDenied(done.code, new_id())
    run.epoch, run.jti, run.pinned = done.epoch, new_id(), run.pinned + len(texts)
    taken = yield Commit(run.scope, None, [TakeLease(_lease(run))])
    if isinstance(taken, Conflict):
        raise AuthzDenied(taken.code, new_id())
    yield _record(run, "corrected", done.now, texts=len(texts))


def _carried(run: Run, asks: Sequence[Approval], answered: Sequence[AnswerApproval]) -> Flow[list[PlanRecord]]:
    by_key = {a.call_key: a for a in answered}
    edits: dict[tuple[tuple[str, ...], str], dict[int, PlannedCall | None]] = {}
    above: dict[tuple[tuple[str, ...], str], None] = {}
    for ask in asks:
        above.update(dict.fromkeys(ask.within))
        if ask.plan_id is None or ask.place is None:
            continue
        instead = edits.setdefault((ask.agent, ask.plan_id), {})
        reply = by_key[ask.call_key]
        if reply.edited:
            name, args = edited_action(reply.edited)
            instead[ask.place] = PlannedCall(ask.place, ask.call_id, name, raw_digest(args))
        elif reply.state != "approved":
            instead[ask.place] = None
    plans: dict[tuple[tuple[str, ...], str], PlanRecord] = {}
    for key, instead in edits.items():
        snapshot: Snapshot = yield Load(run.scope, Query(plan=key))
        if snapshot.plan is not None and snapshot.plan.epoch == run.epoch:
            plans[key] = carry(snapshot.plan, run.epoch + 1, instead)
    for call in above:
        snapshot = yield Load(run.scope, Query(planned_call=call))
        if snapshot.plan is not None and snapshot.plan.epoch == run.epoch:
            key = (snapshot.plan.agent, snapshot.plan.id)
            plans.setdefault(key, carry(snapshot.plan, run.epoch + 1, {}))
    return list(plans.values())


def open_child(
    parent: Run,
    name: str,
    kind: str,
    request: Grant | None = None,
    *,
    call_id: str | None = None,
) -> Flow[Run]:
    """Delegate to a child agent: decide `agent/invoke`, record the edge, take the child's own lease.

    The child's grant is `parent ⊓ request`; its jti is its own. `call_id` is the parent's call in
    which the child runs, if it does in one.

    Raises:
        AuthzDenied: the delegation is denied.
    """
    engine = parent.engine
    grant = request if parent.grant is None else parent.grant.attenuate(request)
    opened: Edge = edge(parent.agent, name, kind)  # type: ignore[arg-type]
    child = Run(
        engine=engine,
        scope=parent.scope,
        subject=parent.subject,
        run_id=parent.run_id,
        agent=(*parent.agent, name),
        jti=new_id(),
        epoch=parent.epoch,
        started_at=parent.started_at,
        expires_at=parent.expires_at,
        steps_before=parent.steps_before,
        grant=grant,
        planned=parent.planned,
        parent=parent,
        waiting=parent.waiting if call_id is None else (*parent.waiting, (parent.agent, call_id)),
        foreign=parent.foreign,
        corrected=parent.corrected,
        seen_from_model=parent.seen_from_model,
    )
    decision = yield from decide_step(
        parent,
        "agent/invoke",
        Resource(type="agent", id=name, properties={"kind": kind, "depth": len(parent.agent)}),
        extra=lambda _: [RecordEdge(opened), TakeLease(_lease(child))],
    )
    if not decision.permit:
        raise AuthzDenied(decision.reason, decision.decision_id)
    return child


def close(
    run: Run,
    state: Literal["suspended", "ended", "revoked"],
    head: str | None = None,
    memory: str | None = None,
) -> Flow[None]:
    """End a run's lease and every lease below it. The jtis are dead when this returns.

    `head` is the checkpoint that a root entry leaves and `memory` the digest of what the store then
    remembers, `None` where that is not known.
    """
    if run.closed and head is None:
        return
    run.closed = True
    marks = [Mark(HEAD, head or UNKNOWN), Mark(MEMORY, memory or UNKNOWN)] if run.kept_state else []
    try:
        done = yield from _end(run, state, marks)
        if run.parent is None:
            yield _record(run, state, getattr(done, "now", 0.0))
    except Exception as exc:  # noqa: BLE001  (what the run returned must not be lost; the lease lapses)
        _log.error("the end of run %s was not recorded: %s", run.run_id, type(exc).__name__)


def _end(run: Run, state: Literal["suspended", "ended", "revoked"], marks: Sequence[Change]) -> Flow[object]:
    over: list[Change] = [EndLease(run.jti, state), *marks]
    if run.parent is None and not run.undelivered:
        done = yield Commit(run.scope, run.guard, [TakePending(), *over])
        if not isinstance(done, Conflict):
            return done
        if run.kept_state:
            # The task changed meanwhile. What this run wrote last may have erased the newer texts.
            snapshot: Snapshot = yield Load(run.scope, Query(log=True))
            over.append(Redeliver(tuple(t for t in snapshot.log[run.pinned :] if t.text)))
    return (yield Commit(run.scope, None, over))


def altered(scope: Scope, texts: Sequence[HumanText], by: str, checkpoint: str) -> Flow[None]:
    """`update_state` altered a thread that the ledger knows and left `checkpoint`: a correction.

    `texts` are what a human said by it, `by` (`type:id`) is who; the act itself has nobody's words.
    """
    act = HumanText(content_digest(checkpoint), "", outside_key(checkpoint), own=False, author=by)
    for _ in range(8):
        snapshot: Snapshot = yield Load(scope, Query(log=True))
        if not snapshot.exists:
            return
        said = [replace(t, author=by, own=by == snapshot.subject) for t in changed(snapshot.log, texts)]
        done = yield Commit(scope, None, [AdvanceEpoch(snapshot.epoch, (*said, act))])
        if not isinstance(done, Conflict):
            yield Record(run_record, now=done.now, event="corrected", run_id="", epoch=done.epoch, scope=scope)
            return
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def correct(scope: Scope, text: HumanText, by: str | None = None) -> Flow[int]:
    """A correction from beside the graph: pin it, epoch + 1, deliver it at the next root entry.

    `by` (`type:id`) is who said it; `None`: the thread's own subject. Returns the new epoch.
    """
    for _ in range(8):
        snapshot: Snapshot = yield Load(scope, Query())
        author = by if by is not None else snapshot.subject
        said = replace(text, author=author, own=author == snapshot.subject)
        done = yield Commit(scope, None, [AdvanceEpoch(snapshot.epoch, (said,), deliver=True)])
        if not isinstance(done, Conflict):
            yield Record(run_record, now=done.now, event="corrected", run_id="", epoch=done.epoch, scope=scope)
            return int(done.epoch)
    raise AuthzDenied(Code.STALE_EPOCH, new_id())


def data_changed(scope: Scope, resource: str) -> Flow[None]:
    """Somebody says that a resource changed: what was read of it before is old, on every thread."""
    done = yield Commit(data_scope(scope), None, [Mark(resource, new_id())])
    yield Record(run_record, now=done.now, event="data_changed", run_id="", scope=scope, detail={"resource": resource})


def revoke(scope: Scope, agent: tuple[str, ...]) -> Flow[None]:
    """Revoke an agent's subtree on a thread (`()` for all of it) until `reinstate`."""
    done = yield Commit(scope, None, [Revoke(agent)])
    now = getattr(done, "now", 0.0)
    yield Record(run_record, now=now, event="revoked", run_id="", scope=scope, agent=agent)


def reinstate(scope: Scope, agent: tuple[str, ...]) -> Flow[None]:
    """Lift a revocation."""
    done = yield Commit(scope, None, [Reinstate(agent)])
    now = getattr(done, "now", 0.0)
    yield Record(run_record, now=now, event="reinstated", run_id="", scope=scope, agent=agent)
