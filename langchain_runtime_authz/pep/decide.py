"""Deciding the calls of a message: load → evaluate. Nothing is claimed yet.

Not left to policy: see `_refusal` and `lease_refusal`, and the checks inside the ledger's changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from langchain_runtime_authz.authzen import (
    Decision,
    EvaluationRequest,
    deny,
)
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts import plan
from langchain_runtime_authz.facts.provenance.trace import effect_target, wanted
from langchain_runtime_authz.facts.source import (
    UNREAD,
    resource_of,
)
from langchain_runtime_authz.ledger.base import (
    Approval,
    CallRow,
    CallState,
    Query,
    RenewLease,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.pdp.base import serialise
from langchain_runtime_authz.pep.approvals import edited_action
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.engine import Commit, Evaluate, Flow, Load, Run
from langchain_runtime_authz.pep.obligations import understood
from langchain_runtime_authz.pep.provenance import TaskWords, sentences
from langchain_runtime_authz.pep.request import request_of

__all__ = ["data_scope", "decide_calls", "lease_refusal", "renewed", "repeats_counter", "review_key"]

_log = logging.getLogger(__name__)

_CALL_OBLIGATIONS: Final = frozenset(
    ("redact", "require_approval", "rate_limit", "budget", "notify", "revoke", "rotate"),
)
_BEGUN: Final[Mapping[CallState, Code]] = {
    "suspended": Code.STALE_EPOCH,
    "claimed": Code.CALL_IN_PROGRESS,
    "failed": Code.OUTCOME_UNKNOWN,
    "unknown": Code.OUTCOME_UNKNOWN,
}
_REFUSED: Final[Mapping[str, Code]] = {
    "rejected": Code.APPROVAL_REJECTED,
    "answered": Code.APPROVAL_ANSWERED,
    "malformed": Code.APPROVAL_MALFORMED,
}


def decide_calls(run: Run, calls: Sequence[Call]) -> Flow[list[DecidedCall]]:
    """Decide all calls of one message on one snapshot and in one batch. Never raises.

    A failing ledger denies every call. What is refused here without asking the PDP is a deny like
    any other: recorded by `claim` or `deny_call`.
    """
    if not calls:
        return []
    started = time.time_ns()
    if run.engine.killed:
        return [DecidedCall(c, "", deny(Code.KILLED), None) for c in calls]
    try:
        calls = yield from _located(run, calls)
    except Exception as exc:  # noqa: BLE001  (a ledger that fails denies; nothing else may decide)
        return [DecidedCall(c, "", run.engine.ledger_failed(exc), None) for c in calls]
    keys, origin = [_key(run, c, run.epoch) for c in calls], run.epoch
    said = run.engine.memory.said(run.scope)
    try:
        counters = [repeats_counter(said, c) for c in calls]
        snapshot: Snapshot = yield Load(run.scope, _query(run, calls, keys, origin, counters, log=said is None))
        if (carried := _origin(run, snapshot)) is not None:
            keys, origin = [_key(run, c, carried) for c in calls], carried
            snapshot = yield Load(run.scope, _query(run, calls, keys, origin, counters, log=said is None))
        if said is None or said.digest != snapshot.task.digest:
            if said is not None:  # the task changed since its words were read
                snapshot = yield Load(run.scope, _query(run, calls, keys, origin, counters, log=True))
            said = run.engine.memory.hear(run.scope, snapshot)
            told, counters = counters, [repeats_counter(said, c) for c in calls]
            if counters != told:
                snapshot = yield Load(run.scope, _query(run, calls, keys, origin, counters, log=False))
        snapshot = yield from renewed(run, snapshot)
        moved = yield from _moved(run, snapshot, calls, keys)
    except Exception as exc:  # noqa: BLE001  (likewise)
        return [DecidedCall(c, k, run.engine.ledger_failed(exc), None) for c, k in zip(calls, keys, strict=True)]

    matches = [_match(run, snapshot, c) for c in calls]
    approvals = [_approval(run, snapshot, c, k, origin) for c, k in zip(calls, keys, strict=True)]
    amended = [_amended(c, a) for c, a in zip(calls, approvals, strict=True)]
    if any(a is not c for a, c in zip(amended, calls, strict=True)):
        # A human put other calls in the place of these: those are decided, like any.
        return (yield from decide_calls(run, amended))
    rows = [snapshot.calls.get(k) for k in keys]
    refusals = [_refusal(run, snapshot, c, m, a, r) for c, m, a, r in zip(calls, matches, approvals, rows, strict=True)]
    # A side effect that happened is not decided again: its recorded result stands.
    replays = [r is not None and r.state == "done" and c.profile.side_effect for c, r in zip(calls, rows, strict=True)]
    # What is refused here is not asked, but its record still says what it was.
    repeats = _repeats(snapshot, counters, rows)
    requests = [
        None if c.error is not None else request_of(run, snapshot, said, c, m, r, a, moved, n)
        for c, m, r, a, n in zip(calls, matches, rows, approvals, repeats, strict=True)
    ]
    bodies = [serialise(r) if r is not None else None for r in requests]
    asked = [
        (r, b) for r, b, no, yes in zip(requests, bodies, refusals, replays, strict=True) if r and not no and not yes
    ]
    decided = iter((yield Evaluate([r for r, _ in asked], [b for _, b in asked])) if asked else [])
    judged = []
    for i, (call, key) in enumerate(zip(calls, keys, strict=True)):
        replay = replays[i] and refusals[i] is None
        decision = refusals[i] or (
            deny(Code.OUTCOME_UNKNOWN) if replay else understood(next(decided), _CALL_OBLIGATIONS)
        )
        judged.append(
            DecidedCall(
                call=call,
                key=key,
                decision=decision,
                request=requests[i],
                body=bodies[i],
                started=started,
                task=snapshot.task,
                approval=approvals[i],
                row=rows[i],
                same=counters[i],
                replay=replay,
                evidence=_evidence(run, call, requests[i]) if decision.outcome == "approval_required" else (),
            ),
        )
    return judged


def _evidence(run: Run, call: Call, request: EvaluationRequest | None) -> tuple[str, ...]:
    asked = request.context.call if request is not None else None
    told = sentences(run, call, asked.provenance if asked is not None else {})
    if asked is None or not asked.repeats:
        return told
    return (f"DONE BEFORE: the same was let run {asked.repeats} time(s) for this task", *told)


def repeats_counter(said: TaskWords | None, call: Call) -> str:
    """The name under which calls that do the same again are counted, or `""` where that can not be told.

    Not by the epoch: that moves where a human refuses a call with a reason, or a machine changes what the task is based
    on, and neither asks for anything to be done again.
    """
    if said is None or call.error is not None or not (call.profiled and call.profile.side_effect):
        return ""
    hit = effect_target(call.profile, call.args)
    return f"same:{said.turns}:{call.tool}:{hit}" if hit else ""


def _repeats(snapshot: Snapshot, counters: Sequence[str], rows: Sequence[CallRow | None]) -> list[int]:
    """How often each was done before: by other calls, and by those before it in this message."""
    found = []
    for i, (name, row) in enumerate(zip(counters, rows, strict=True)):
        counted = snapshot.counters.get(name, 0) if name else 0
        own = int(row is not None and counted > 0)
        ahead = sum(n == name and r is None for n, r in zip(counters[:i], rows[:i], strict=True)) if name else 0
        found.append(counted - own + ahead)
    return found


def _located(run: Run, calls: Sequence[Call]) -> Flow[Sequence[Call]]:
    """Where a gate did not see the message, the plan is found by the call's id."""
    only = calls[0]
    if len(calls) != 1 or only.plan_id is not None or only.call_id is None:
        return calls
    snapshot: Snapshot = yield Load(run.scope, Query(planned_call=(run.agent, only.call_id)))
    if snapshot.plan is None:
        return calls
    found = plan.locate(snapshot.plan, only.call_id, only.tool, only.raw)
    return [replace(only, plan_id=snapshot.plan.id, position=found.position)] if found is not None else calls


def _key(run: Run, call: Call, epoch: int) -> str:
    source = f"plan:{call.plan_id}" if call.plan_id is not None else f"call:{call.place}:{call.call_id}"
    return plan.call_key(run.scope, run.agent, epoch, source, call.position or 0, call.tool, call.args_digest)


def review_key(run: Run, call: Call, epoch: int) -> str:
    """The key of what a review beside our own gates said about a call, which it knows by its place alone."""
    return f"review:{epoch}:{call.position}:{run.agent!r}:{call.plan_id}"


def _query(
    run: Run, calls: Sequence[Call], keys: Sequence[str], origin: int, counters: Sequence[str], *, log: bool
) -> Query:
    plan_id = calls[0].plan_id
    planned = plan_id is not None
    reviews = tuple(review_key(run, c, origin) for c in calls) if planned else ()
    return Query(
        jti=run.jti,
        plan=(run.agent, plan_id) if plan_id is not None else None,
        calls=(*keys, *reviews, *(c.amends for c in calls if c.amends)),
        agent=run.agent,
        log=log,
        values=tuple(dict.fromkeys(k for c in calls if c.error is None for k in wanted(c.profile, c.args))),
        counters=tuple(dict.fromkeys(filter(None, counters))),
    )


def _origin(run: Run, snapshot: Snapshot) -> int | None:
    """The epoch that planned the calls, where it is another one: what has run under it has run."""
    record = snapshot.plan
    planned = record.origin or record.epoch if record is not None else run.epoch
    return planned if planned != run.epoch else None


def _approval(run: Run, snapshot: Snapshot, call: Call, key: str, origin: int) -> Approval | None:
    """What was asked and answered about the call: at our own gate, or by a review before it."""
    own = snapshot.approvals.get(key)
    if own is None and call.amends:
        own = snapshot.approvals.get(call.amends)
    if own is None and call.plan_id is not None:
        review = snapshot.approvals.get(review_key(run, call, origin))
        if review is not None and _reviewed(review, call):
            own = review
    if own is not None and own.epoch != run.epoch and snapshot.plan is not None and snapshot.plan.epoch != run.epoch:
        return None  # said under the old task, of a plan that nobody carried into this one
    return own


def _reviewed(review: Approval, call: Call) -> bool:
    """Whether a review's answer is about this call, as the human saw it or, where it was changed since, as the human wrote it.

    By the arguments as written: whatever they parse to, they are what the human saw.
    """
    digest = plan.raw_digest(call.raw)
    if review.edited:
        name, args = edited_action(review.edited)
        if call.tool == name and digest == plan.raw_digest(args):
            return True
    return review.tool == call.tool and review.args_digest == digest


def _amended(call: Call, approval: Approval | None) -> Call:
    if approval is None or not approval.edited or approval.call_key == call.amends or call.amend is None:
        return call
    if approval.state not in ("approved", "spent"):
        return call
    instead = call.amend(*edited_action(approval.edited))
    return replace(
        instead,
        plan_id=call.plan_id,
        position=call.position,
        place=call.place,
        amends=approval.call_key,
    )


def renewed(run: Run, snapshot: Snapshot) -> Flow[Snapshot]:
    """Keep a living run's lease ahead of ledger time, up to its maximum lifetime."""
    lease, engine = snapshot.lease, run.engine
    if lease is not None and lease.state == "live" and lease.epoch == snapshot.epoch:
        until = min(int(snapshot.now) + engine.lease_ttl, lease.started_at + engine.max_lifetime)
        if lease.expires_at - snapshot.now < engine.lease_ttl / 2 and until > lease.expires_at:
            yield Commit(run.scope, run.guard, [RenewLease(run.jti, until)])
            run.expires_at = until
    return snapshot


def _moved(run: Run, snapshot: Snapshot, calls: Sequence[Call], keys: Sequence[str]) -> Flow[frozenset[str]]:
    """The tools whose resources somebody said changed since they were read; and what reads will read, now."""
    read = snapshot.history.resources if any(c.profile.side_effect for c in calls) else {}
    reading = {k: name for c, k in zip(calls, keys, strict=True) if (name := resource_of(c.profile, c.args))}
    names = (*read, *reading.values())
    if not names:
        return frozenset()
    data: Snapshot = yield Load(data_scope(run.scope), Query(marks=tuple(dict.fromkeys(names))))
    for key, name in reading.items():
        run.versions[key] = data.marks.get(name, UNREAD)
    versions = {name: seen.split(" ", 1) for name, seen in read.items()}
    return frozenset(tool for name, (version, tool) in versions.items() if data.marks.get(name, UNREAD) != version)


def data_scope(scope: Scope) -> Scope:
    """Where the versions of a tenant's resources stand, for every thread."""
    return Scope(scope.tenant, scope.issuer, "data:", "resources")


def _match(run: Run, snapshot: Snapshot, call: Call) -> plan.Match:
    return plan.match(
        snapshot.plan,
        epoch=run.epoch,
        position=call.position,
        call_id=call.call_id,
        tool=call.tool,
        args=call.raw,
    )


def _refusal(
    run: Run,
    snapshot: Snapshot,
    call: Call,
    match: plan.Match,
    approval: Approval | None,
    row: CallRow | None,
) -> Decision | None:
    """What the PEP refuses whatever the PDP would say."""
    if call.error is not None:
        return deny(call.error, "mapping")
    if (dead := lease_refusal(run, snapshot)) is not None:
        return deny(dead)
    if approval is not None:
        if approval.state in _REFUSED:
            return deny(_REFUSED[approval.state])
        if approval.edited and approval.call_key != call.amends:  # the human put another call in its place
            return deny(Code.APPROVAL_VOID)
        # Also what nobody answered: a question has its time, and the run goes on without an answer.
        if approval.state in ("asked", "approved") and 0 < approval.expires_at <= snapshot.now:
            return deny(Code.APPROVAL_EXPIRED)
    # That a call differs from its plan is a fact that the policy reads; that the task changed since is none.
    if (match.planned or match.changed) and match.stale and call.profile.side_effect:
        # Whoever is told that it was not carried out plans it again: not where it was, or may have been.
        begun = row.state if row is not None else "suspended"
        return deny(_BEGUN[begun]) if begun != "done" else None
    if run.parent is not None and run.grant is not None:
        # INVARIANT: no step of a child outside what its parent gave it.
        outside = run.grant.refuses(
            tool=call.tool,
            args=call.args,
            data_class=call.profile.data_class,
            sink=call.profile.sink,
            depth=len(run.agent) - 1,
            now=snapshot.now,
        )
        if outside is not None:
            return replace(deny(Code.GRANT_EXCEEDED), reasons=(str(Code.GRANT_EXCEEDED), str(outside)))
    return None


def lease_refusal(run: Run, snapshot: Snapshot) -> Code | None:
    """Why the run may not go on at all, or `None`."""
    lease = snapshot.lease
    if snapshot.revoked or (lease is not None and lease.state == "revoked"):
        return Code.REVOKED
    if run.closed or lease is None:
        return Code.LEASE_ENDED
    # Before the lease's state: a correction kills the leases, and "the task changed" tells more.
    if snapshot.epoch != run.epoch:
        return Code.STALE_EPOCH
    if lease.state != "live":
        return Code.LEASE_ENDED
    if snapshot.now >= lease.started_at + run.engine.max_lifetime:
        return Code.LEASE_EXPIRED
    return None
