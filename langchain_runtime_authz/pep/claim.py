"""Claim and conclude decided calls: commit → audit → ticket → tool → conclude.

INVARIANT: the claim is committed, and then recorded, before the tool runs. The commit is the point of no return. A
correction that commits before it stops the call, a later one does not.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal
from weakref import ref

from langchain_runtime_authz._flow import Flow
from langchain_runtime_authz.audit.record import completion_record
from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.facts import plan
from langchain_runtime_authz.facts.delegation import handoff_edge
from langchain_runtime_authz.facts.provenance.observe import Observation
from langchain_runtime_authz.facts.source import content_version, read_mark, resource_of
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.fork import PROCESS
from langchain_runtime_authz.ledger import changes as ledger
from langchain_runtime_authz.ledger.base import Committed, Conflict, Scope
from langchain_runtime_authz.ledger.calls import (
    ClaimCall,
    ConcludeCall,
    ReleaseCall,
    RepeatCall,
    SpendApproval,
    SpendBudget,
)
from langchain_runtime_authz.mandate.binding import MANDATE
from langchain_runtime_authz.pep import doubt, recording
from langchain_runtime_authz.pep.approvals import own_question
from langchain_runtime_authz.pep.call import Call, DecidedCall, Denial, Replay, Verdict
from langchain_runtime_authz.pep.credentials import RefusedMints, audiences_of, minter
from langchain_runtime_authz.pep.decide import decide_calls
from langchain_runtime_authz.pep.delegate import hand_off
from langchain_runtime_authz.pep.engine import Block, Commit, Run, Write
from langchain_runtime_authz.pep.mandates import occasion, task_name
from langchain_runtime_authz.pep.obligations import owed
from langchain_runtime_authz.pep.provenance import SMALL, observe
from langchain_runtime_authz.telemetry.logs import logger

_log = logger(__name__)

Spent = tuple[tuple[str, int], ...]
_UNBOUNDED: Final = 2**53
RACES: Final = 16  # retries if other agents make the same call at once


def claim_call(run: Run, decided: DecidedCall) -> Flow[tuple[DecidedCall, Verdict]]:
    """Commit and record a decided call and issue its ticket. After a race, decide it again. Never raises."""
    verdict = yield from claim_once(run, decided)
    if isinstance(verdict, Conflict):
        return (yield from claim_again(run, decided, verdict))
    return decided, verdict


def claim_again(run: Run, decided: DecidedCall, conflict: Conflict) -> Flow[tuple[DecidedCall, Verdict]]:
    """Decide and claim a call again after others spent its budget or began the same call."""
    verdict: Verdict | Conflict = conflict
    tries = RACES
    while isinstance(verdict, Conflict):
        anew = (yield from decide_calls(run, [decided.call]))[0] if tries else decided
        same = anew.prior_calls <= decided.prior_calls and anew.standing == decided.standing
        if same and (not tries or verdict.code != Code.IN_DOUBT):
            return decided, (yield from deny_call(run, decided.under(deny(verdict.code))))
        decided, tries = anew, tries - 1
        verdict = yield from claim_once(run, decided)
    return decided, verdict


def claim_once(run: Run, decided: DecidedCall) -> Flow[Verdict | Conflict]:
    """Claim a call once. A conflict means that others spent its budget or began the same call."""
    call, decision, engine = decided.call, decided.decision, run.engine
    killed = engine.kill_switch is not None and engine.killed  # engaged since the decision
    if decided.replay or decision.outcome != "permit" or killed:
        return (yield from _unclaimed(run, decided))
    edge = handoff_edge(run.agent, call.metadata) if call.metadata else None
    if edge is not None and not (delegated := (yield from hand_off(run, edge))).permit:
        return (yield from deny_call(run, decided.under(deny(delegated.reason))))
    tokens: dict[str, str] = {}
    if call.profile.audience:
        # One jti per call, lease and audience: a replay under a new lease gets another.
        named = {a: f"{run.jti}:{decided.key}:{a}" for a in audiences_of(run, call.profile.audience)}
        tokens = {a: hashlib.sha256(name.encode()).hexdigest()[:32] for a, name in named.items()}
    intent = _intent(run, decided)
    changes, spent = _changes(run, decided, tuple(tokens.values()) if tokens else (), intent)
    if edge is not None:
        changes.append(ledger.RecordEdge(edge))
    shared = occasion(run, decided.mandate)
    try:
        if (shared is not None or decided.repeats) and (over := (yield from _told_first(decided, shared))) is not None:
            return (yield from _conflicting(run, decided, over))
        done = yield (Commit, run.scope, run.guard, changes)
    except Exception as exc:  # noqa: BLE001  (see `decide_calls`)
        return (yield from deny_call(run, decided.under(engine.ledger_failed(exc, run))))
    if type(done) is Conflict:
        yield from _refund(run, shared, spent)
        return (yield from _conflicting(run, decided, done))
    recorded = False
    try:
        about = (decided.body, decided.started or None, done.now, decided.approval)
        deeds = list(decided.deeds)
        claim = {"call_key": decided.key, "deeds": deeds, "idempotency_key": intent} if deeds else None
        yield recording.step_record(run, decision, "tools/call", call.tool, *about, claim=claim)
        recorded = True
        if edge is not None:
            detail = {"to": edge.to, "kind": edge.kind, "decision_id": decision.decision_id}
            yield recording.run_event(run, "delegated", done.now, detail=detail)
        if decision.obligations:
            yield from recording.tell(run, decision, "tools/call", call.tool, done.now)
    except AuditError as exc:
        return (yield from _given_back(run, decided, spent, exc, recorded))
    approval = decided.approval
    ticket = Ticket(
        tool=call.tool,
        call_id=call.call_id,
        call_key=decided.key,
        agent=run.agent,
        epoch=run.epoch,
        raw=call.raw,
        decision_id=decision.decision_id,
        jti=run.jti,
        approval_key=approval.call_key if approval is not None else "",
        idempotency_key=intent,
        audiences=tuple(tokens) if tokens else (),
        reaches=audiences_of(run, call.profile.behind) if tokens else (),
        obligations=decision.obligations,
        spent=spent,
        mint=minter(run, decided, tokens, done.now) if tokens else None,
        refusals=RefusedMints((run, decided, done.now - time.monotonic())),
    )
    if decided.deeds:
        doubt.HELD[decided.key] = ref(ticket, partial(doubt.HELD.pop, decided.key))
    return ticket


def _told_first(decided: DecidedCall, shared: Scope | None) -> Flow[Conflict | None]:
    """Commit the changes of other threads before the claim. If the process dies in between, an approver is asked."""
    commits: list[tuple[Scope, list[ledger.Change]]] = []
    for scope, _, row in decided.repeats:
        commits.append((scope, [RepeatCall(row.key, row.at)]))
    if shared is not None and decided.standing.spends and decided.row is None:
        commits.append((shared, [SpendBudget(*spend) for spend in decided.standing.spends]))
    for scope, changes in commits:
        done = yield Commit(scope, None, changes)
        if type(done) is Conflict:
            return done
    return None


def _changes(run: Run, decided: DecidedCall, tokens: tuple[str, ...], intent: str) -> tuple[list[ledger.Change], Spent]:
    """Return the changes of a permitted call's claim, and the counters of its budgets."""
    call, approval, row, name = decided.call, decided.approval, decided.row, recording.label(decided.call.tool)
    profile, approved = call.profile, approval is not None and approval.state == "approved"
    # An approval after a failure permits running it again.
    again = approved and row is not None and row.state in ("failed", "unknown")
    repeatable = not profile.side_effect or profile.idempotent or again
    about: dict[str, Any] | None = None
    deed, *also = decided.deeds or ("",)
    if deed:
        about = {
            "tool": name,
            "args_digest": call.args_digest,
            "call_id": call.call_id,
            "decision_id": decided.decision.decision_id,
            "run_id": run.run_id,
            "entry": run.entry,
            "plan": call.plan_id,
            "process": PROCESS[0],
            "idempotency_key": intent,
        }
        if len(also) > 1:
            about["targets"] = also
    # INVARIANT: no new doubt about the deed since the decision, except those that its approver was told of.
    subject = run.subject.principal if deed else ""
    despite = None if profile.idempotent else approval.doubts if approved and approval is not None else ()
    changes: list[ledger.Change] = [
        ClaimCall(decided.key, run.jti, repeatable, tokens, deed, about, subject, despite, tuple(also))
    ]
    if decided.decision.obligations:
        changes += owed(decided.decision)
    budgets = run.grant.budgets if run.grant is not None else {}
    if budgets:
        changes += [SpendBudget(c, budgets[c]) for c in (call.tool, f"effect:{profile.effect}") if c in budgets]
    if decided.counter and row is None:
        # INVARIANT: no equal call was made since the decision. A call that was claimed before is counted already.
        changes.append(SpendBudget(decided.counter, decided.prior_calls + 1))
    if row is None:
        # INVARIANT: the commit that claims the call spends its step.
        for spend in decided.standing.spends:
            changes.append(SpendBudget(*spend))
    spent: Spent = ()
    for change in changes:
        if type(change) is SpendBudget:
            spent = (*spent, (change.counter, change.by))
    changes.append(
        ledger.RecordStep(
            call=name, effect=profile.effect, recent=name, side_effect=profile.side_effect, agent=run.agent
        )
    )
    if approval is not None and approved:
        changes.append(SpendApproval(approval.call_key, approval.args_digest))
    return changes, spent


def _refund(run: Run, shared: Scope | None, spent: Spent) -> Flow[None]:
    """Give back the budget of a mandate for all threads of the subject, for a call that did not run."""
    back = [SpendBudget(counter, _UNBOUNDED, -by) for counter, by in spent if counter.startswith(MANDATE)]
    if shared is None or not back:
        return
    try:
        yield Commit(shared, None, back)
    except Exception as exc:  # noqa: BLE001  (then the step stays spent, and a person is asked)
        _log.error("a step of run %s was not given back: %s", run.run_id, type(exc).__name__)


def _unclaimed(run: Run, decided: DecidedCall) -> Flow[Verdict]:
    """Return the verdict without a claim: a replay, a deny, or a deny by the kill switch."""
    if not decided.replay:
        killed = decided.decision.outcome == "permit"
        return (yield from deny_call(run, decided.under(deny(Code.KILLED)) if killed else decided))
    message = "\n".join((*run.undelivered, *run.corrected)) if decided.stale else ""
    if message:  # user's words that the graph has not seen
        try:
            yield Commit(run.scope, None, [ledger.TakePending()])
        except Exception as exc:  # noqa: BLE001  (then it is told once more)
            _log.error("what was told with %s stays pending: %s", decided.decision.decision_id, type(exc).__name__)
    return Replay(decided.call, decided.row.result if decided.row is not None else None, message)


def _conflicting(run: Run, decided: DecidedCall, conflict: Conflict) -> Flow[Verdict | Conflict]:
    if conflict.row is not None:
        return Replay(decided.call, conflict.row.result)
    if conflict.code in (Code.BUDGET_EXHAUSTED, Code.IN_DOUBT):
        return conflict
    return (yield from deny_call(run, decided.under(deny(conflict.code))))


def _given_back(run: Run, decided: DecidedCall, spent: Spent, failure: AuditError, recorded: bool) -> Flow[Denial]:
    """Release a claim if it was not `recorded`, or if a required notification failed."""
    if recorded:
        denial = yield from deny_call(run, decided.under(deny(failure.code)))
    else:
        denial = Denial(decided.call, run.engine.ledger_failed(failure, run))
    approval = decided.approval
    try:
        back = ReleaseCall(decided.key, spent, approval.call_key if approval is not None else "")
        yield (Commit, run.scope, None, [back])
        yield from _refund(run, occasion(run, decided.mandate), spent)
    except Exception as exc:  # noqa: BLE001  (denied all the same; the claim ends with the run)
        run.engine.lost("the release of a claim", exc, run, decided.decision.decision_id)
    return denial


def _intent(run: Run, decided: DecidedCall) -> str:
    """Return the tool's idempotency key. Without a known message it is the ledger's key."""
    call = decided.call
    if call.plan_id is None:
        return decided.key
    intent = run.parts.get("intent")
    if intent is None:
        intent = run.parts["intent"] = json.dumps(["intent", run.scope[:3], run.subject.principal, run.agent])[:-1]
    return plan.call_key(intent, call.plan_id, call.position or 0, call.tool, call.args_digest)


def deny_call(run: Run, decided: DecidedCall) -> Flow[Denial]:
    """Record and count a denied call, and carry out its obligations."""
    call, decision = decided.call, decided.decision
    changes: list[ledger.Change] = [counted(decided)]
    obliged = {o.type for o in decision.obligations}
    text = HumanText(call.args_digest, "", f"data:{decision.decision_id}", own=False)
    rotation = [ledger.AdvanceEpoch(run.epoch, (text,))] if "rotate" in obliged else []
    if "revoke" in obliged:
        changes.append(ledger.Revoke(run.agent))
    message = ""
    if decided.approval is not None and decided.approval.state in ("rejected", "answered"):
        message = decided.approval.message
    elif decision.reason == Code.STALE_EPOCH or decided.stale:
        message = "\n".join((*run.undelivered, *run.corrected))
        changes += [ledger.TakePending()] if message else []
    done: Committed | Conflict | None = None
    rotated = None
    try:
        done = yield Commit(run.scope, None, [*changes, *rotation])
        rotated = done.epoch if rotation and isinstance(done, Committed) else None
        if rotation and isinstance(done, Conflict):  # the task has changed already
            done = yield Commit(run.scope, None, changes)
    except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its count)
        run.engine.lost("the count of a denial", exc, run, decision.decision_id)
    now = getattr(done, "now", 0.0) or time.time()
    try:
        yield recording.call_record(run, decided, now)
        if done is not None:
            yield from recording.obliged_events(run, decision, now, rotated=rotated)
    except Exception as exc:  # noqa: BLE001  (likewise of its record)
        run.engine.lost("a denial", exc, run, decision.decision_id)
    for change in owed(decision):
        try:
            yield Commit(run.scope, None, [change])  # if the counter is full, the attempt is refused already
        except Exception as exc:  # noqa: BLE001  (likewise)
            run.engine.lost("an obligation of a denial", exc, run, decision.decision_id)
    if decision.outcome != "approval_required":  # for a question, this was sent when it was asked
        try:
            yield from recording.tell(run, decision, "tools/call", call.tool, time.time())
        except AuditError as exc:
            _log.error("of denial %s nobody was told: %s", decision.decision_id, exc)
    return Denial(call, decision, message)


def counted(decided: DecidedCall, by: int = 1) -> ledger.RecordStep:
    """Return what a denial adds to the history, or removes (`by=-1`). Outages are not counted."""
    call, counts = decided.call, recording.is_judgement(decided.decision)
    acts = counts and call.profile.side_effect and decided.match is not None
    tainted = acts and any(p.standing == "outside" and p.kind != "when" for p in decided.provenance.values())
    return ledger.RecordStep(
        denials=by * counts,
        recent=f"deny:{recording.label(call.tool)}" if by > 0 else None,
        unplanned=by * (acts and decided.match is not None and not decided.match.planned),
        tainted=by * tainted,
    )


def conclude(
    run: Run,
    ticket: Ticket,
    call: Call,
    state: Literal["done", "failed", "suspended", "unknown", "released"],
    result: str | None = None,
    *,
    output: object = None,
    question: str = "",
) -> Flow[None]:
    """Close a call, which is never refused. If a live token was found in its output, revoke the agent.

    `question` is the id of the tool's own question. `released`: the ticket was never redeemed.
    """
    ticket.conclude()
    leaked, profile = ticket.leaked, call.profile
    side_effect = profile.side_effect
    changes: list[ledger.Change] = []
    if state == "released":
        changes.append(ReleaseCall(ticket.call_key, ticket.spent, ticket.approval_key))
        yield from _refund(run, occasion(run, run.mandate), ticket.spent)
    else:
        # A read may always run again, so only its data class is kept.
        kept = state if side_effect or state == "suspended" else None
        changes.append(ConcludeCall(ticket.call_key, kept, result if side_effect else None))
        if question and side_effect and call.plan_id is not None:
            changes.append(own_question(run, ticket.call_key, call, question))
        resource = _read(run, ticket, call, state) if profile.resource is not None else None
        changes.append(ledger.RecordStep(data_class=profile.data_class, resource=resource, agent=run.agent))
    if output is not None and state in ("done", "failed"):
        failed = state == "failed"
        if type(output) is str and len(output) < SMALL:
            found = observe(call, output, failed)
        else:
            found = yield Block(observe, call, output, failed)
        _remember(run, call, found, output, done=state == "done")
        if found.sightings:
            changes.append(ledger.RecordValues(found.sightings))
        if not side_effect and state == "done":
            version = content_version(profile, output)
            changes.append(ledger.SetMark(read_mark(call.tool, call.args_digest), version, call.tool))
    if leaked:
        changes.append(ledger.Revoke(run.agent))
        _log.error("a credential was found in the output of %s; agent %s is revoked", call.tool, run.agent)
    if ticket.withheld:
        _log.error("output of %s could not be searched for its credential, and is withheld", call.tool)
    try:
        done = yield (Commit, run.scope, None, changes)
        if type(done) is Conflict and done.row is not None:
            yield from doubt.ended_late(run, done.row, state)
            late = [replace(one, late=True) if type(one) is ConcludeCall else one for one in changes]
            done = yield (Commit, run.scope, None, late)
        written = partial(
            completion_record,
            now=getattr(done, "now", 0.0),
            decision_id=ticket.decision_id,
            call_key=ticket.call_key,
            state=state,
            run_id=run.run_id,
            leaked=leaked,
            withheld=ticket.withheld,
        )
        yield (Write, written)
        if leaked:
            yield recording.anomaly(run, "credential_leaked", ticket.decision_id, getattr(done, "now", 0.0))
    except Exception as exc:  # noqa: BLE001  (it happened: its result must not be lost to a failing record)
        run.engine.lost("the end of a call", exc, run, ticket.decision_id)


def _remember(run: Run, call: Call, found: Observation, output: object, *, done: bool) -> None:
    """Keep the call's output or arguments, for questions and mandates."""
    memory, scope = run.engine.memory, run.scope
    outputs = memory.outputs(scope)
    if found.prose or found.rest is not None:
        memory.keep(scope, found)
    if call.profile.side_effect:
        outputs.wrote(call.args)
    memory.reached(scope, call.atoms.destinations() if done and call.profile.side_effect else ())
    if done and call.profiled:
        kept = output if found.held is None else found.held
        outputs.record(call.tool, call.profile, call.args, kept, given=call.given, task=task_name(run))


def _read(run: Run, ticket: Ticket, call: Call, state: str) -> tuple[str, str, str] | None:
    version = run.versions.pop(ticket.call_key, None)
    name = resource_of(call.profile, call.args)
    return (name, call.tool, version) if name is not None and version is not None and state == "done" else None
