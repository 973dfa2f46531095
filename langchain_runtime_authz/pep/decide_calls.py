"""Decide calls: load the facts, then ask the policy. Calls are claimed elsewhere.

Refusals that do not depend on the policy are in `_refusal`, `lease_refusal`, and `check` of the ledger's changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter, is_not, ne
from types import MappingProxyType
from typing import Any, Final

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.facts import plan
from langchain_runtime_authz.ledger.base import Approval, CallRow, CallState, Query, Snapshot
from langchain_runtime_authz.mandate.call_matching import Deviation, MandateMatch
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep import calls_in_doubt
from langchain_runtime_authz.pep.approval_answers import edited_action
from langchain_runtime_authz.pep.approval_questions import own_key, question_lines
from langchain_runtime_authz.pep.call import NO_STANDING, Call, DecidedCall
from langchain_runtime_authz.pep.call_mandate import Ahead, counting_scope, find_match, mandate_event, standing_of
from langchain_runtime_authz.pep.decide_steps import Entry
from langchain_runtime_authz.pep.lease import lease_refusal, renew_lease
from langchain_runtime_authz.pep.obligations import enforceable
from langchain_runtime_authz.pep.outdated_reads import outdated_tools
from langchain_runtime_authz.pep.request_builder import call_request, wants_more
from langchain_runtime_authz.pep.run import LEASE_TTL, Block, Evaluate, Flow, Load, Run
from langchain_runtime_authz.pep.thread_memory import TaskWords

_BEGUN: Final[Mapping[CallState, Code]] = {
    "suspended": Code.STALE_EPOCH,
    "claimed": Code.CALL_IN_PROGRESS,
    "failed": Code.OUTCOME_UNKNOWN,
    "unknown": Code.OUTCOME_UNKNOWN,
    "void": Code.STALE_EPOCH,
}
_PLACE: Final = attrgetter("plan_id", "position")
_RESOURCE: Final = attrgetter("profile.resource")
_UNDECIDED: Final = deny(Code.PDP_ERROR)  # stands in until there is a decision
_NONE_STOPPED: Final[Mapping[str, bool]] = MappingProxyType({})
_REFUSED: Final[Mapping[str, Code]] = {
    "rejected": Code.APPROVAL_REJECTED,
    "answered": Code.APPROVAL_ANSWERED,
    "malformed": Code.APPROVAL_MALFORMED,
}


def decide_calls(
    run: Run, calls: Sequence[Call], entry: Entry = None, stopped: Mapping[str, bool] = _NONE_STOPPED
) -> Flow[list[DecidedCall]]:
    """Decide all calls of one message in one batch, with the `entry` of their node.

    Never raises: a failure denies the calls, and may leave the entry undecided.

    A step of the mandate may wait for another step. First, a call that waits for another call of the message is decided
    as if the other call runs. If the policy does not permit the other call, all are decided again. `stopped` then has
    its key (True: denied), so that the waiting call deviates, and a denied call leaves its step to later calls.
    """
    if not calls:
        return []
    started, engine = time.time_ns(), run.engine
    if engine.kill_switch is not None and engine.killed:
        return [DecidedCall(c, "", deny(Code.KILLED)) for c in calls]
    try:
        yield from calls_in_doubt.record_ends(engine, run.scope, others=True) if calls_in_doubt.UNRECORDED_ENDS else ()
        calls, keys, comparisons, origin, words, snapshot, moved = yield from _load_facts(run, calls)
        look_up = engine.on_unknown is not None or snapshot.approvals
        snapshot = (yield from calls_in_doubt.look_up_doubts(run, snapshot)) if look_up else snapshot
    except Exception as exc:  # noqa: BLE001  (a ledger that fails denies; nothing else may decide)
        return [DecidedCall(c, "", engine.deny_for_failure(exc, run)) for c in calls]
    approvals: Sequence[Approval | None] = [None] * len(calls)
    if snapshot.approvals:
        approvals = list(map(partial(_approval, run, snapshot, origin), calls, keys))
        if any(map(is_not, amended := list(map(_amended, calls, approvals)), calls)):
            return (yield from decide_calls(run, amended, entry))
    decided: list[DecidedCall] = []
    asked: list[DecidedCall] = []
    bodies: list[bytes | None] = []
    ahead: Ahead = {}, {}
    changed = False
    for call, key, compared, approval in zip(calls, keys, comparisons, approvals, strict=True):
        one = _with_facts(run, snapshot, words, call, key, compared, approval, moved, ahead, stopped)
        one.started = started
        changed = changed or (one.match is not None and one.match.changed)
        decided.append(one)
        if one.decision is _UNDECIDED:
            asked.append(one)
            bodies.append(one.body)
    if changed and (again := (yield from _moved_calls(run, snapshot.plan, calls))) is not None:
        return (yield from decide_calls(run, again, entry))
    bodies = bodies if entry is None else [*entry.requests(snapshot), *bodies]
    answers: list[Decision] = (yield (Evaluate, bodies)) if bodies else []
    if entry is not None and len(answers) > len(asked):
        yield from entry.conclude(answers.pop(0))
    for one, decision in zip(asked, answers, strict=True):
        one.decision = enforceable(decision, "tools/call") if decision.obligations else decision
        one.decision = calls_in_doubt.ask_despite(one) if one.doubts else one.decision
        if one.decision.outcome == "approval_required":
            one.evidence = question_lines(run, one)
    stopped = _stopped(asked, comparisons) if calls[1:] and not stopped else {}
    return (yield from decide_calls(run, calls, None, stopped)) if stopped else decided


def _stopped(asked: Sequence[DecidedCall], comparisons: Sequence[_Compared]) -> dict[str, bool]:
    """Return the argument `stopped` for a second `decide_calls`; {} if none is needed."""
    awaited = {counter for *_, matched in comparisons if matched is not None for counter in matched.awaited}
    found = ((one, one.decision.outcome != "approval_required") for one in asked if not one.decision.permit)
    return {
        one.key: denied for one, denied in found if one.standing.awaited in awaited or (denied and one.standing.spends)
    }


def _load_facts(run: Run, calls: Sequence[Call]) -> Flow[tuple[Any, ...]]:
    """Return the calls with all facts for their decision, from ledger and memory."""
    if len(calls) == 1 and calls[0].plan_id is None and calls[0].call_id is not None:
        calls = yield from _located(run, calls[0])
    memory, opened, origin = run.engine.memory, run.entry.first_snapshot, run.epoch
    words = memory.words.get(run.scope)
    if anew := words is None or (opened is not None and words.digest != opened.task.digest):
        words = memory.read_words(run.scope, opened or (yield Load(run.scope, Query(log=True))))
    run.entry.first_snapshot = None
    keys = [*map(partial(_key, run, epoch=origin), calls)]
    compared = _compared(run, words, calls)
    snapshot: Snapshot = yield (Load, run.scope, _query(run, calls, keys, origin, compared))
    recorded = snapshot.plan
    if recorded is not None and (
        (planned := recorded.origin or recorded.epoch) != run.epoch or (snapshot.approvals and _moved(recorded, calls))
    ):
        # The calls were planned at another epoch, or code moved them in the message. Keys contain the plan's epoch and
        # position, so compute the keys anew to find earlier runs and approvals of the calls.
        calls = in_plan(recorded, calls)
        keys, origin = [_key(run, c, planned) for c in calls], planned
        snapshot = yield (Load, run.scope, _query(run, calls, keys, origin, compared))
    if anew:
        memory.outputs(run.scope).missed(snapshot.history)
    if words.digest != snapshot.task.digest:  # the task has changed, and these facts depend on its words
        words = memory.read_words(run.scope, (yield Load(run.scope, Query(log=True))))
        compared = _compared(run, words, calls)
        snapshot = yield (Load, run.scope, _query(run, calls, keys, origin, compared))
    if (unread := memory.unread) and run.scope in unread and wants_more(words, calls):
        yield Block(memory.read_rest, run.scope)
    if words.compiled and not words.recorded:
        words.recorded = True
        yield mandate_event(run, words.compiled)
    lease = snapshot.lease
    if lease is not None and lease.expires_at - snapshot.now < LEASE_TTL / 2:
        yield from renew_lease(run, snapshot)
    for _, _, mandate, _ in compared:  # all ordered calls have the same mandate
        if mandate is not None and (scope := counting_scope(run, mandate)) is not None:
            elsewhere: Snapshot = yield Load(scope, Query(counters=_counters(compared)))
            snapshot.counters = {**snapshot.counters, **elsewhere.counters}
            break
    moved: frozenset[str] = frozenset()
    if snapshot.history.resources or {*map(_RESOURCE, calls)} != {None}:
        moved, dropped = yield from outdated_tools(run, snapshot, calls, keys)
        # The outputs with which the calls were compared may be outdated.
        compared = _compared(run, words, calls) if moved or dropped else compared
    return calls, keys, compared, origin, words, snapshot, moved


# Of one call: counter and deeds (`effect_names`), the mandate, and the comparison with it.
_Compared = tuple[str, tuple[str, ...], Mandate | None, MandateMatch | None]


def _compared(run: Run, words: TaskWords, calls: Sequence[Call]) -> list[_Compared]:
    compared: list[_Compared] = []
    for call in calls:
        counter, deeds = calls_in_doubt.effect_names(words, call)
        compared.append((counter, deeds, *find_match(run, words, call, counter)))
    return compared


def _with_facts(
    run: Run,
    snapshot: Snapshot,
    words: TaskWords,
    call: Call,
    key: str,
    compared: _Compared,
    approval: Approval | None,
    moved: frozenset[str],
    ahead: Ahead,
    stopped: Mapping[str, bool],
) -> DecidedCall:
    """Return the call with all facts for its decision. Add its counts to `ahead`."""
    counter, deeds, mandate, matched = compared
    row = snapshot.calls.get(key)
    intended = call.position, call.call_id, call.tool, call.raw
    own = call.by_application and (call.call_id is None or snapshot.plan is None)  # no model message contains the call
    match = plan.PLANNED_BY_CODE if own else plan.match_plan(snapshot.plan, run.epoch, *intended)
    if match.stale and _continues(run, snapshot, key):
        match = match._replace(stale=False)
    decision = _refusal(run, snapshot, call, match, approval, row) or _UNDECIDED
    # A side effect that was done is not decided again: its recorded result is used.
    replay = decision is _UNDECIDED and row is not None and row.state == "done" and call.profile.side_effect
    prior = 0
    if counter:
        spent, before = snapshot.counters.get(counter, 0), ahead[0].get(counter, 0)
        prior = spent - int(row is not None and spent > 0) + before
        ahead[0][counter] = before + int(row is None)
    standing = NO_STANDING
    if matched is not None:
        denied, counted = decision is not _UNDECIDED, row is not None and approval is None
        held, denied = denied or key in stopped, denied or (key in stopped and stopped[key])
        standing = standing_of(matched, snapshot.counters, ahead, counted=counted, stopped=held, denied=denied)
    may_ask = snapshot.doubts and not replay
    doubts, repeated = calls_in_doubt.doubts_of(run, snapshot, call, key, deeds, approval) if may_ask else ((), ())
    if doubts and standing.standing == "covered":  # the call in doubt may have used up the step that orders this one
        standing = standing._replace(standing="deviates", deviations=(Deviation("", "spent", ""),))
    decided = DecidedCall(
        call=call,
        key=key,
        decision=deny(Code.OUTCOME_UNKNOWN) if replay else decision,
        prior_calls=prior,
        mandate=mandate,
        standing=standing,
        counter=counter,
        task=snapshot.task,
        approval=approval,
        row=row,
        replay=replay,
        deeds=deeds,
        doubts=doubts,
        repeated=repeated,
    )
    if call.error is None:  # even for a refusal, whose record contains the request
        decided.now, decided.match = int(snapshot.now), match
        decided.body, decided.provenance = call_request(run, snapshot, words, decided, match, moved)
    return decided


def _counters(compared: Sequence[_Compared]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for counter, _, _, matched in compared:
        if counter:
            names[counter] = None
        if matched is not None:
            names.update(dict.fromkeys(matched.counters))
    return tuple(names)


def _located(run: Run, only: Call) -> Flow[Sequence[Call]]:
    """Return the call with its plan and position, found by its id, if it has a plan."""
    snapshot: Snapshot = yield (Load, run.scope, Query(planned_call=(run.agent, only.call_id or "")))
    if snapshot.plan is None:
        return [only]
    found = plan.planned_call(snapshot.plan, only.call_id, only.tool, only.raw)
    return [replace(only, plan_id=snapshot.plan.id, position=found.position) if found is not None else only]


def rewritten_plan(run: Run, call: Call) -> Flow[plan.PlanRecord | None]:
    """Return the plan of a later message with the id of the call's message, or None."""
    found = (yield Load(run.scope, Query(planned_call=(run.agent, call.call_id or "")))).plan
    return found if found is not None and found.id.startswith(f"{call.plan_id} ") else None


def _moved_calls(run: Run, found: plan.PlanRecord | None, calls: Sequence[Call]) -> Flow[list[Call] | None]:
    """Return the calls with their positions in the plan; None if nothing moved."""
    found = (yield from rewritten_plan(run, calls[0])) or found
    return in_plan(found, calls) if found is not None and _moved(found, calls) else None


def _moved(found: plan.PlanRecord, calls: Sequence[Call]) -> bool:
    return any(map(ne, map(_PLACE, in_plan(found, calls)), map(_PLACE, calls)))


def in_plan(found: plan.PlanRecord, calls: Sequence[Call]) -> list[Call]:
    """Return the calls with the positions that they have in the recorded plan."""
    places = {c.call_id: c.position for c in found.calls}
    if len(places) < len(found.calls) or len({c.call_id for c in calls}) < len(calls):
        places = {}  # calls share an id, so only their positions distinguish them
    return [replace(c, plan_id=found.id, position=places.get(c.call_id, c.position)) for c in calls]


def _key(run: Run, call: Call, epoch: int) -> str:
    source = f"plan:{call.plan_id}" if call.plan_id is not None else f"call:{call.place}:{call.call_id}"
    if call.plan_id is None and call.place.partition(":")[0]:
        epoch = 0  # so that a LangGraph task that starts again repeats the same call
    prefix = run.local.key_prefix = run.local.key_prefix or json.dumps([run.scope, run.agent])[:-1]
    return plan.call_key(f"{prefix}, {epoch}", source, call.position or 0, call.tool, call.args_digest)


def review_key(run: Run, call: Call, epoch: int) -> str:
    """Return the ledger key of another review's answer about the call."""
    return f"review:{epoch}:{call.position}:{run.agent!r}:{call.plan_id}"


def _query(run: Run, calls: Sequence[Call], keys: Sequence[str], origin: int, compared: Sequence[_Compared]) -> Query:
    plan_id = calls[0].plan_id
    values: list[str] = []
    deeds: tuple[str, ...] = ()
    for _, named, _, _ in compared:
        deeds += named
    wanted_rows = list(keys)
    if origin != run.epoch or calls[0].place:
        wanted_rows += map(own_key, keys)
    for call in calls:
        if plan_id is not None:
            wanted_rows.append(f"review:{origin}:{call.position}:{run.agent!r}:{plan_id}")  # `review_key`
        if call.edited_by:
            wanted_rows.append(call.edited_by)
        if call.error is None:
            values += call.traced.keys
    return Query(
        jti=run.jti,
        plan=(run.agent, plan_id) if plan_id is not None else None,
        calls=tuple(wanted_rows),
        agent=run.agent,
        values=tuple(dict.fromkeys(values)),
        counters=_counters(compared),
        deeds=deeds,
    )


def _approval(run: Run, snapshot: Snapshot, origin: int, call: Call, key: str) -> Approval | None:
    """Return the approval that counts for the call: ours or another review's."""
    own = snapshot.approvals.get(key)
    if own is None and _continues(run, snapshot, key) and not (asked := snapshot.approvals[own_key(key)]).message:
        return asked
    if own is None and call.edited_by:
        own = snapshot.approvals.get(call.edited_by)
    if own is None and call.plan_id is not None:
        review = snapshot.approvals.get(review_key(run, call, origin))
        if review is not None and _reviewed(review, call):
            own = review
    if own is not None and own.epoch != run.epoch:
        # The answer is of an older epoch. It still counts if it refused the call, or if the call is done or continues.
        # It also counts for code that repeats a read in the same LangGraph task.
        done, spent = (row := snapshot.calls.get(key)) is not None and row.state == "done", own.state == "spent"
        if spent and _amended(call, own) is not call:
            return own  # the replacement may be done, and is looked up next
        continues = done or _continues(run, snapshot, key)
        stands = not spent or continues if call.profile.side_effect else call.plan_id is None
        return replace(own, epoch=run.epoch) if stands and (spent or own.state in ("rejected", "answered")) else None
    return own


def _continues(run: Run, snapshot: Snapshot, key: str) -> bool:
    """Return True if the tool's own question was answered in this epoch."""
    own = snapshot.approvals.get(own_key(key))
    return own is not None and own.state == "approved" and own.epoch == run.epoch


def _reviewed(review: Approval, call: Call) -> bool:
    """Return True if the review showed exactly this call, or its edit made this call."""
    digest = plan.raw_digest(call.raw)
    if review.edited:
        name, args = edited_action(review.edited)
        if call.tool == name and digest == plan.raw_digest(args):
            return True
    return review.tool == call.tool and review.args_digest == digest


def _amended(call: Call, approval: Approval | None) -> Call:
    if approval is None or not approval.edited or approval.call_key == call.edited_by or call.amend is None:
        return call
    here: dict[str, Any] = {name: getattr(call, name) for name in ("call_id", "plan_id", "position", "place")}
    return replace(call.amend(*edited_action(approval.edited)), **here, edited_by=approval.call_key)


def _refusal(
    run: Run, snapshot: Snapshot, call: Call, match: plan.PlanMatch, approval: Approval | None, row: CallRow | None
) -> Decision | None:
    """Return the enforcement point's refusal, which no policy can lift, or `None`."""
    if call.error is not None:
        return deny(call.error, "mapping")
    if (dead := lease_refusal(run, snapshot)) is not None:
        return deny(dead)
    # The policy decides about calls that differ from their plan, but not about plans of an older task.
    if (match.planned or match.changed) and match.stale and call.profile.side_effect:
        # If a message says that a call did not run, the model plans it again. So say this only if it is certain.
        begun = row.state if row is not None else "suspended"
        return deny(_BEGUN[begun]) if begun != "done" else None
    if approval is not None:
        if approval.state in _REFUSED:
            return deny(_REFUSED[approval.state])
        if approval.edited and approval.call_key != call.edited_by:  # the approver replaced the call
            return deny(Code.APPROVAL_VOID)
        # A question that expired without an answer denies too.
        if approval.state in ("asked", "approved") and 0 < approval.expires_at <= snapshot.now:
            return deny(Code.APPROVAL_EXPIRED)
    if run.parent is not None and run.grant is not None:
        # INVARIANT: a child takes only steps that its parent granted.
        facts: dict[str, Any] = {"data_class": call.profile.data_class, "sink": call.profile.sink, "depth": run.depth}
        outside = run.grant.refuses(tool=call.tool, args=call.args, now=snapshot.now, **facts)
        if outside is not None:
            return replace(deny(Code.GRANT_EXCEEDED), reasons=(str(Code.GRANT_EXCEEDED), str(outside)))
    return None
