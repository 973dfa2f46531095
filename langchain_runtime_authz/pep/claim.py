"""From a judgement to a ticket, and from a ticket to its end: commit → audit → ticket → tool → conclude.

INVARIANT: the claim is committed, and then recorded, before the tool runs. The commit is the point
of no return: a correction that commits first wins, after it the call is under way.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from typing import Final, Literal

from langchain_runtime_authz.audit.record import completion_record
from langchain_runtime_authz.authzen import (
    Decision,
    deny,
)
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.facts import delegation, plan
from langchain_runtime_authz.facts.provenance.observe import Harvest
from langchain_runtime_authz.facts.source import (
    content_version,
    read_mark,
    resource_of,
)
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger.base import (
    AdvanceEpoch,
    Change,
    ClaimCall,
    ConcludeCall,
    Conflict,
    RecordEdge,
    RecordStep,
    RecordValues,
    ReleaseCall,
    Revoke,
    SetMark,
    SpendApproval,
    SpendBudget,
    TakePending,
)
from langchain_runtime_authz.pep.call import Call, DecidedCall, Denial, Replay, Verdict
from langchain_runtime_authz.pep.credentials import RefusedMints, audiences_of, minter
from langchain_runtime_authz.pep.decide import decide_calls
from langchain_runtime_authz.pep.engine import Commit, Flow, Record, Run
from langchain_runtime_authz.pep.obligations import owed
from langchain_runtime_authz.pep.provenance import observing
from langchain_runtime_authz.pep.recording import is_judgement, label, record_call, tell

__all__ = ["claim", "conclude", "deny_call"]

_log = logging.getLogger(__name__)

RACES: Final = 16  # agents that do the same at once before one of them is refused for it


def claim(run: Run, judged: DecidedCall) -> Flow[tuple[DecidedCall, Verdict]]:
    """Commit, record and ticket one judged call. Never raises; a call that asks is a denial here.

    Where somebody did the same since it was judged, it is judged anew: what it was judged at last comes with the verdict.
    """
    tries = RACES
    while isinstance(verdict := (yield from _claim(run, judged)), Conflict):
        anew = (yield from decide_calls(run, [judged.call]))[0] if tries else judged
        if _repeats(anew) <= _repeats(judged):
            return judged, (yield from deny_call(run, _replaced(judged, deny(verdict.code))))
        judged, tries = anew, tries - 1
    return judged, verdict


def _claim(run: Run, judged: DecidedCall) -> Flow[Verdict | Conflict]:
    """Once. A conflict is about what others have used up meanwhile."""
    call, decision, approval = judged.call, judged.decision, judged.approval
    if judged.replay:
        message = (yield from _news(run, judged)) if _stale(judged) else ""
        return Replay(call, judged.row.result if judged.row is not None else None, message)
    if not decision.permit:
        return (yield from deny_call(run, judged))
    if run.engine.killed:  # since it was judged
        return (yield from deny_call(run, _replaced(judged, deny(Code.KILLED))))
    approved = approval is not None and approval.state == "approved"
    # A human who approves a call after a failure approves running it again.
    again = approved and judged.row is not None and judged.row.state in ("failed", "unknown")
    prof = call.profile
    audiences = audiences_of(run, prof.audience)
    tokens = {audience: _token_jti(run, judged, audience) for audience in audiences}
    changes: list[Change] = [
        ClaimCall(
            judged.key,
            run.jti,
            repeatable=not prof.side_effect or prof.idempotent or again,
            tokens=tuple(tokens.values()),
        ),
        *owed(decision),
        *_budgets(run, call),
        *_counted_once(judged),
        RecordStep(
            call=label(call.tool),
            effect=prof.effect,
            recent=label(call.tool),
            side_effect=prof.side_effect,
            agent=run.agent,
        ),
    ]
    spent = tuple(c.counter for c in changes if isinstance(c, SpendBudget))
    if approval is not None and approved:
        changes.append(SpendApproval(approval.call_key, approval.args_digest))
    if (edge := delegation.handoff_edge(run.agent, call.metadata)) is not None:
        changes.append(RecordEdge(edge))
    try:
        done = yield Commit(run.scope, run.guard, changes)
    except Exception as exc:  # noqa: BLE001  (see `decide_calls`)
        return (yield from deny_call(run, _replaced(judged, run.engine.ledger_failed(exc))))
    if isinstance(done, Conflict):
        if done.row is not None:
            return Replay(call, done.row.result)
        if done.code == Code.BUDGET_EXHAUSTED:
            return done
        return (yield from deny_call(run, _replaced(judged, deny(done.code))))
    failed: Denial | None = None
    try:
        yield from record_call(run, judged, done.now)
    except AuditError:
        failed = Denial(call, deny(Code.AUDIT_UNAVAILABLE))
    else:
        try:
            yield from tell(run, decision, "tools/call", call.tool, done.now)
        except AuditError as exc:  # who must be told can not be: recorded as the denial that it is
            failed = yield from deny_call(run, _replaced(judged, deny(exc.code)))
    if failed is not None:
        try:
            back = ReleaseCall(judged.key, spent, approval.call_key if approval is not None else "")
            yield Commit(run.scope, None, [back])
        except Exception as exc:  # noqa: BLE001  (denied all the same; the claim ends with the run)
            _log.error("claim %s was not released: %s", decision.decision_id, type(exc).__name__)
        return failed
    made = minter(run, judged, tokens, done.now) if audiences else None
    return Ticket(
        tool=call.tool,
        tool_ref=call.tool_ref,
        call_id=call.call_id,
        call_key=judged.key,
        agent=run.agent,
        epoch=run.epoch,
        args_digest=call.args_digest,
        parsed=call.parsed,
        raw=call.raw,
        decision_id=decision.decision_id,
        jti=run.jti,
        approval_key=approval.call_key if approval is not None else "",
        idempotency_key=_intent(run, judged),
        audiences=audiences,
        obligations=decision.obligations,
        spent=spent,
        mint=made.mint if made is not None else None,
        amint=made.amint if made is not None else None,
        refusals=RefusedMints(run, judged, done.now),
    )


def _token_jti(run: Run, judged: DecidedCall, audience: str) -> str:
    # Of this call in this lease for this audience: a replay under a new lease gets another jti.
    return hashlib.sha256(f"{run.jti}:{judged.key}:{audience}".encode()).hexdigest()[:32]


def _intent(run: Run, judged: DecidedCall) -> str:
    """The key that the tool is offered. Where the message is not known, no copy of the call can be."""
    call = judged.call
    if call.plan_id is None:
        return judged.key
    place = (call.plan_id, call.position or 0, call.tool, call.args_digest)
    return plan.idempotency_key(run.scope[:3], run.subject.principal, run.agent, *place)


def _counted_once(judged: DecidedCall) -> list[Change]:
    """One more of the same (`context.call.repeats`). INVARIANT: nobody has done it since it was judged.

    A call that was claimed before, and goes on or is tried again, is counted.
    """
    return [SpendBudget(judged.same, _repeats(judged) + 1)] if judged.same and judged.row is None else []


def _repeats(judged: DecidedCall) -> int:
    asked = judged.request.context.call if judged.request is not None else None
    return asked.repeats if asked is not None else 0


def _budgets(run: Run, call: Call) -> list[SpendBudget]:
    granted = run.grant.budgets if run.grant is not None else {}
    return [SpendBudget(c, granted[c]) for c in (call.tool, f"effect:{call.profile.effect}") if c in granted]


def deny_call(run: Run, judged: DecidedCall) -> Flow[Denial]:
    """Record a call that does not run, carry out what its decision obliges, count it."""
    call, decision = judged.call, judged.decision
    changes: list[Change] = [_counted(judged)]
    rotation = [_rotation(run, judged)] if any(o.type == "rotate" for o in decision.obligations) else []
    if any(o.type == "revoke" for o in decision.obligations):
        changes.append(Revoke(run.agent))
    message = ""
    if judged.approval is not None and judged.approval.state in ("rejected", "answered"):
        message = judged.approval.message
    elif decision.reason == Code.STALE_EPOCH or _stale(judged):
        message = "\n".join((*run.undelivered, *run.corrected))
        changes += [TakePending()] if message else []
    try:
        done = yield Commit(run.scope, None, [*changes, *rotation])
        if rotation and isinstance(done, Conflict):  # the task has changed already
            done = yield Commit(run.scope, None, changes)
        yield from record_call(run, judged, getattr(done, "now", 0.0))
    except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its record)
        _log.error("denial %s of %s was not recorded: %s", decision.decision_id, call.tool, type(exc).__name__)
    for change in owed(decision):
        try:
            yield Commit(run.scope, None, [change])  # where it has no room, the attempt is refused already
        except Exception as exc:  # noqa: BLE001  (likewise)
            _log.error("an obligation of denial %s was not carried out: %s", decision.decision_id, type(exc).__name__)
    if decision.outcome != "approval_required":  # of a question it was told when it was asked
        try:
            yield from tell(run, decision, "tools/call", call.tool, time.time())
        except AuditError as exc:
            _log.error("of denial %s nobody was told: %s", decision.decision_id, exc)
    return Denial(call, decision, message)


def _stale(judged: DecidedCall) -> bool:
    plan_shown = judged.request.context.plan if judged.request is not None else None
    return plan_shown is not None and plan_shown.stale


def _news(run: Run, judged: DecidedCall) -> Flow[str]:
    """What the human said that the graph has not seen, for the answer to a call that ran before."""
    message = "\n".join((*run.undelivered, *run.corrected))
    if message:
        try:
            yield Commit(run.scope, None, [TakePending()])
        except Exception as exc:  # noqa: BLE001  (then it is told once more)
            _log.error("what was told with %s stays pending: %s", judged.decision.decision_id, type(exc).__name__)
    return message


def _rotation(run: Run, judged: DecidedCall) -> AdvanceEpoch:
    text = HumanText(judged.call.args_digest, "", f"data:{judged.decision.decision_id}", own=False)
    return AdvanceEpoch(run.epoch, (text,))


def _counted(judged: DecidedCall) -> RecordStep:
    """What a denial adds to the history. An outage, a correction or a kill switch is no misbehaviour."""
    call, request = judged.call, judged.request
    unplanned = (
        call.profile.side_effect
        and request is not None
        and request.context.plan is not None
        and not request.context.plan.planned
    )
    tainted = (
        call.profile.side_effect
        and request is not None
        and request.context.call is not None
        and any(p.standing == "outside" and p.kind != "when" for p in request.context.call.provenance.values())
    )
    counts = is_judgement(judged.decision)
    return RecordStep(
        denials=int(counts),
        recent=f"deny:{label(call.tool)}",
        unplanned=int(counts and unplanned),
        tainted=int(counts and tainted),
    )


def conclude(
    run: Run,
    ticket: Ticket,
    call: Call,
    state: Literal["done", "failed", "suspended", "unknown", "released"],
    result: str | None = None,
    *,
    output: object = None,
) -> Flow[None]:
    """Close a call. Never refused, since it happened.

    `released` is a ticket that was never redeemed. `output` is what the tool returned, for provenance.
    Where a live token was found in what the tool gave out, the agent is revoked.
    """
    ticket.conclude()
    leaked = ticket.leaked
    side_effect = call.profile.side_effect
    changes: list[Change] = []
    if state == "released":
        changes.append(ReleaseCall(ticket.call_key, ticket.spent, ticket.approval_key))
    else:
        # A read may always run again, so nothing of it is kept but its data class.
        kept = state if side_effect or state == "suspended" else None
        changes.append(ConcludeCall(ticket.call_key, kept, result if side_effect else None))
        changes.append(_read(run, ticket, call, state))
    if output is not None and state in ("done", "failed"):
        found: Harvest = yield observing(run, call, output, failed=state == "failed")
        run.engine.memory.keep(run.scope, found)
        if state == "done":
            run.engine.memory.reached(run.scope, call.profile, call.args)
        if found.sightings:
            changes.append(RecordValues(found.sightings))
        if not side_effect and state == "done":
            version = content_version(call.profile, output)
            changes.append(SetMark(read_mark(call.tool, call.args_digest), version, call.tool))
    if leaked:
        changes.append(Revoke(run.agent))
        _log.error("a credential was found in the output of %s; agent %s is revoked", call.tool, run.agent)
    if ticket.withheld:
        _log.error("output of %s could not be searched for its credential, and is withheld", call.tool)
    try:
        done = yield Commit(run.scope, None, changes)
        yield Record(
            completion_record,
            now=getattr(done, "now", 0.0),
            decision_id=ticket.decision_id,
            call_key=ticket.call_key,
            state=state,
            run_id=run.run_id,
            leaked=leaked,
            withheld=ticket.withheld,
        )
    except Exception as exc:  # noqa: BLE001  (it happened: its result must not be lost to a failing record)
        _log.error("the end of call %s was not recorded: %s", ticket.decision_id, type(exc).__name__)


def _read(run: Run, ticket: Ticket, call: Call, state: str) -> RecordStep:
    version = run.versions.pop(ticket.call_key, None)
    name = resource_of(call.profile, call.args)
    read = name is not None and version is not None and state == "done"
    resource = (name, call.tool, version) if read else None
    return RecordStep(data_class=call.profile.data_class, resource=resource, agent=run.agent)  # type: ignore[arg-type]


def _replaced(judged: DecidedCall, decision: Decision) -> DecidedCall:
    """The same call under another decision, which keeps the first one's id in the audit trail."""
    decision = replace(decision, decision_id=judged.decision.decision_id)
    return replace(judged, decision=decision)
