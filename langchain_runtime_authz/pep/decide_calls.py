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
from langchain_runtime_authz.tool_profile import ToolProfile

_BEGUN: Final[Mapping[CallState, Code]] = {
    "suspended": Code.STALE_EPOCH,
    "claimed": Code.CALL_IN_PROGRESS,
    "failed": Code.OUTCOME_UNKNOWN,
    "unknown": Code.OUTCOME_UNKNOWN,
    "void": Code.STALE_EPOCH,
}
_BODY: Final = attrgetter("body")
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
    started, pep = time.time_ns(), run.pep
    if pep.kill_switch is not None and pep.killed:
        return [DecidedCall(c, "", deny(Code.KILLED)) for c in calls]
    try:
        yield from calls_in_doubt.record_ends(pep, run.scope, others=True) if calls_in_doubt.UNRECORDED_ENDS else ()
        facts = yield from _load_facts(run, calls, stopped)
        calls, snapshot = facts.calls, facts.snapshot
        look_up = pep.on_unknown is not None or snapshot.approvals
        snapshot = facts.snapshot = (yield from calls_in_doubt.look_up_doubts(run, snapshot)) if look_up else snapshot
    except Exception as exc:  # noqa: BLE001  (a ledger that fails denies; nothing else may decide)
        return [DecidedCall(c, "", pep.deny_for_failure(exc, run)) for c in calls]
    if snapshot.approvals:
        facts.approvals = list(map(facts.approval_of, calls, facts.keys))
        if any(map(is_not, amended := list(map(_amended, calls, facts.approvals)), calls)):
            return (yield from decide_calls(run, amended, entry))
    decided: list[DecidedCall] = []
    asked: list[DecidedCall] = []
    for at in range(len(calls)):
        decided.append(one := facts.for_call(at))
        one.started = started
        if one.decision is _UNDECIDED:
            asked.append(one)
    if facts.changed and (again := (yield from _moved_calls(run, snapshot.plan, calls))) is not None:
        return (yield from decide_calls(run, again, entry))
    bodies: list[bytes | None] = [*(entry.requests(snapshot) if entry is not None else ()), *map(_BODY, asked)]
    answers: list[Decision] = (yield (Evaluate, bodies)) if bodies else []
    if entry is not None and len(answers) > len(asked):
        yield from entry.conclude(answers.pop(0))
    answers = answers if pep.tools.released is None else _of_revision(run, asked, answers, pep.tools.released())
    for one, decision in zip(asked, answers, strict=True):
        one.decision = enforceable(decision, "tools/call") if decision.obligations else decision
        one.decision = calls_in_doubt.ask_despite(one) if one.doubts else one.decision
        if one.decision.outcome == "approval_required":
            one.evidence = question_lines(run, one)
    stopped = _stopped(asked, facts.compared) if calls[1:] and not stopped else {}
    return (yield from decide_calls(run, calls, None, stopped)) if stopped else decided


def _of_revision(
    run: Run, asked: Sequence[DecidedCall], answers: Sequence[Decision], released: Mapping[str, ToolProfile]
) -> list[Decision]:
    """Return the answers. Deny calls whose profile is of another policy revision."""
    declared, found = run.pep.tools.declared, list[Decision]()
    for call, answer in zip((one.call for one in asked), answers, strict=True):
        was, now = call.declared, declared.get(call.tool)
        if was is None:
            outdated = now is not None and not call.profiled
        else:
            outdated = was != now or released.get(call.tool, was).unlike(was)
        found.append(deny(Code.POLICY_CHANGED, "pdp", answer.policy_revision) if outdated else answer)
    return found


def _stopped(asked: Sequence[DecidedCall], compared: Sequence[_Compared]) -> dict[str, bool]:
    """Return the argument `stopped` for a second `decide_calls`; {} if none is needed."""
    awaited = {counter for *_, matched in compared if matched is not None for counter in matched.awaited}
    found = ((one, one.decision.outcome != "approval_required") for one in asked if not one.decision.permit)
    return {
        one.key: denied for one, denied in found if one.standing.awaited in awaited or (denied and one.standing.spends)
    }


# Of one call: counter and deeds (`effect_names`), the mandate, and the comparison with it.
_Compared = tuple[str, tuple[str, ...], Mandate | None, MandateMatch | None]


class _Facts:
    """All facts by which the calls of one message are decided."""

    snapshot: Snapshot
    keys: list[str]

    def __init__(self, run: Run, calls: Sequence[Call], words: TaskWords, stopped: Mapping[str, bool]) -> None:
        self.run, self.calls, self.words, self.stopped = run, calls, words, stopped
        self.epoch = run.epoch  # of the plan
        self.approvals: Sequence[Approval | None] = [None] * len(calls)
        self.moved: frozenset[str] = frozenset()  # `outdated_tools`
        self.ahead: Ahead = {}, {}
        self.changed = False  # a call differs from the plan

    def compare(self) -> None:
        """Compare the calls with the mandate. Collect their counters and deeds."""
        self.compared: list[_Compared] = []
        self.mandate: Mandate | None = None
        self.deeds: tuple[str, ...] = ()
        self.counters: dict[str, None] = {}
        for call in self.calls:
            counter, deeds = calls_in_doubt.effect_names(self.words, call)
            mandate, matched = find_match(self.run, self.words, call, counter)
            self.compared.append((counter, deeds, mandate, matched))
            self.deeds += deeds
            if counter:
                self.counters[counter] = None
            if matched is not None:
                self.mandate = mandate  # all ordered calls have the same
                self.counters.update(dict.fromkeys(matched.counters))

    def load(self) -> tuple[Any, ...]:
        """Set the keys. Return the effect that loads the calls' rows and counters."""
        run, plan_id = self.run, self.calls[0].plan_id
        self.keys = [*map(partial(_call_key, run, epoch=self.epoch), self.calls)]
        wanted_rows, values = list(self.keys), list[str]()
        if self.epoch != run.epoch or self.calls[0].place:
            wanted_rows += map(own_key, self.keys)
        for call in self.calls:
            if plan_id is not None:
                wanted_rows.append(f"review:{self.epoch}:{call.position}:{run.agent!r}:{plan_id}")  # `review_key`
            if call.edited_by:
                wanted_rows.append(call.edited_by)
            if call.error is None:
                values += call.traced.keys
        query = Query(
            jti=run.jti,
            plan=(run.agent, plan_id) if plan_id is not None else None,
            calls=tuple(wanted_rows),
            agent=run.agent,
            values=tuple(dict.fromkeys(values)),
            counters=tuple(self.counters),
            deeds=self.deeds,
        )
        return (Load, run.scope, query)

    def approval_of(self, call: Call, key: str) -> Approval | None:
        """Return the approval that counts for the call: ours or another review's."""
        run, approvals = self.run, self.snapshot.approvals
        own = approvals.get(key)
        if own is None and self._continues(key) and not (asked := approvals[own_key(key)]).message:
            return asked
        if own is None and call.edited_by:
            own = approvals.get(call.edited_by)
        if own is None and call.plan_id is not None:
            review = approvals.get(review_key(run, call, self.epoch))
            if review is not None and _reviewed(review, call):
                own = review
        if own is None or own.epoch == run.epoch:
            return own
        # The answer is of an older epoch. It still counts if it refused the call, or if the call is done or continues.
        # It also counts for code that repeats a read in the same LangGraph task.
        row, spent = self.snapshot.calls.get(key), own.state == "spent"
        if spent and _amended(call, own) is not call:
            return own  # the replacement may be done, and is looked up next
        continues = (row is not None and row.state == "done") or self._continues(key)
        stands = not spent or continues if call.profile.side_effect else call.plan_id is None
        return replace(own, epoch=run.epoch) if stands and (spent or own.state in ("rejected", "answered")) else None

    def _continues(self, key: str) -> bool:
        """Return True if the tool's own question was answered in this epoch."""
        own = self.snapshot.approvals.get(own_key(key))
        return own is not None and own.state == "approved" and own.epoch == self.run.epoch

    def for_call(self, at: int) -> DecidedCall:
        """Return one call with all facts for its decision. Add its counts to `ahead`."""
        run, snapshot, stopped = self.run, self.snapshot, self.stopped
        call, key, approval = self.calls[at], self.keys[at], self.approvals[at]
        counter, deeds, mandate, matched = self.compared[at]
        row = snapshot.calls.get(key)
        intended = call.position, call.call_id, call.tool, call.raw
        own = call.by_application and (call.call_id is None or snapshot.plan is None)  # in no model message
        match = plan.PLANNED_BY_CODE if own else plan.match_plan(snapshot.plan, run.epoch, *intended)
        if match.stale and self._continues(key):
            match = match._replace(stale=False)
        decision = self._refusal(call, match, approval, row) or _UNDECIDED
        # A side effect that was done is not decided again: its recorded result is used.
        replay = decision is _UNDECIDED and row is not None and row.state == "done" and call.profile.side_effect
        prior = 0
        if counter:
            spent, before = snapshot.counters.get(counter, 0), self.ahead[0].get(counter, 0)
            prior = spent - int(row is not None and spent > 0) + before
            self.ahead[0][counter] = before + int(row is None)
        standing = NO_STANDING
        if matched is not None:
            denied, counted = decision is not _UNDECIDED, row is not None and approval is None
            held, denied = denied or key in stopped, denied or (key in stopped and stopped[key])
            standing = standing_of(matched, snapshot.counters, self.ahead, counted=counted, stopped=held, denied=denied)
        may_ask = snapshot.doubts and not replay
        doubts, repeated = calls_in_doubt.doubts_of(run, snapshot, call, key, deeds, approval) if may_ask else ((), ())
        if doubts and standing.standing == "covered":  # the call in doubt may have used up the step of this one
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
            decided.now, decided.match, self.changed = int(snapshot.now), match, self.changed or match.changed
            decided.body, decided.provenance = call_request(run, snapshot, self.words, decided, match, self.moved)
        return decided

    def _refusal(
        self, call: Call, match: plan.PlanMatch, approval: Approval | None, row: CallRow | None
    ) -> Decision | None:
        """Return the enforcement point's refusal, which no policy can lift, or `None`."""
        run, now = self.run, self.snapshot.now
        if call.error is not None:
            return deny(call.error, "mapping")
        if (dead := lease_refusal(run, self.snapshot)) is not None:
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
            if approval.state in ("asked", "approved") and 0 < approval.expires_at <= now:
                return deny(Code.APPROVAL_EXPIRED)
        if run.parent is not None and run.grant is not None:
            # INVARIANT: a child takes only steps that its parent granted.
            facts: dict[str, Any] = {"data_class": call.profile.data_class, "sink": call.profile.sink}
            outside = run.grant.refuses(tool=call.tool, args=call.args, now=now, depth=run.depth, **facts)
            if outside is not None:
                return replace(deny(Code.GRANT_EXCEEDED), reasons=(str(Code.GRANT_EXCEEDED), str(outside)))
        return None


def _load_facts(run: Run, calls: Sequence[Call], stopped: Mapping[str, bool]) -> Flow[_Facts]:
    """Return the facts for the decision of the calls, which may get a position."""
    if len(calls) == 1 and calls[0].plan_id is None and calls[0].call_id is not None:
        calls = yield from _located(run, calls[0])
    memory, opened = run.pep.memory, run.entry.first_snapshot
    words = memory.words.get(run.scope)
    if anew := words is None or (opened is not None and words.digest != opened.task.digest):
        words = memory.read_words(run.scope, opened or (yield Load(run.scope, Query(log=True))))
    run.entry.first_snapshot = None
    facts = _Facts(run, calls, words, stopped)
    facts.compare()
    facts.snapshot = snapshot = yield facts.load()
    recorded = snapshot.plan
    if recorded is not None and (
        (planned := recorded.origin or recorded.epoch) != run.epoch or (snapshot.approvals and _moved(recorded, calls))
    ):
        # The calls were planned at another epoch, or code moved them in the message. Keys contain the plan's epoch and
        # position, so compute the keys anew to find earlier runs and approvals of the calls.
        facts.calls, facts.epoch = in_plan(recorded, calls), planned
        facts.snapshot = snapshot = yield facts.load()
    if anew:
        memory.outputs(run.scope).missed(snapshot.history)
    if words.digest != snapshot.task.digest:  # the task has changed, and these facts depend on its words
        facts.words = words = memory.read_words(run.scope, (yield Load(run.scope, Query(log=True))))
        facts.compare()
        facts.snapshot = snapshot = yield facts.load()
    if (unread := memory.unread) and run.scope in unread and wants_more(words, facts.calls):
        yield Block(memory.read_rest, run.scope)
    if words.compiled and not words.recorded:
        words.recorded = True
        yield mandate_event(run, words.compiled)
    lease = snapshot.lease
    if lease is not None and lease.expires_at - snapshot.now < LEASE_TTL / 2:
        yield from renew_lease(run, snapshot)
    if facts.mandate is not None and (scope := counting_scope(run, facts.mandate)) is not None:
        elsewhere: Snapshot = yield Load(scope, Query(counters=tuple(facts.counters)))
        snapshot.counters = {**snapshot.counters, **elsewhere.counters}
    if snapshot.history.resources or {*map(_RESOURCE, calls)} != {None}:
        facts.moved, dropped = yield from outdated_tools(run, snapshot, facts.calls, facts.keys)
        if facts.moved or dropped:  # the outputs with which the calls were compared may be outdated
            facts.compare()
    return facts


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


def _call_key(run: Run, call: Call, epoch: int) -> str:
    source = f"plan:{call.plan_id}" if call.plan_id is not None else f"call:{call.place}:{call.call_id}"
    if call.plan_id is None and call.place.partition(":")[0]:
        epoch = 0  # so that a LangGraph task that starts again repeats the same call
    prefix = run.local.key_prefix = run.local.key_prefix or json.dumps([run.scope, run.agent])[:-1]
    return plan.call_key(f"{prefix}, {epoch}", source, call.position or 0, call.tool, call.args_digest)


def review_key(run: Run, call: Call, epoch: int) -> str:
    """Return the ledger key of another review's answer about the call."""
    return f"review:{epoch}:{call.position}:{run.agent!r}:{call.plan_id}"


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
