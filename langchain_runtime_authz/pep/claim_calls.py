"""Claim decided calls and issue their tickets: commit → audit → ticket.

INVARIANT: before the tool runs, the claim is committed and then recorded. The commit is the point of no return. A
correction that is committed before the claim stops the call; a later one does not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final
from weakref import ref

from langchain_runtime_authz._flow import Flow
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts import plan
from langchain_runtime_authz.facts.history import handoff_edge
from langchain_runtime_authz.ledger import changes as ledger
from langchain_runtime_authz.ledger.base import Conflict, Scope
from langchain_runtime_authz.ledger.call_changes import (
    ClaimCall,
    ReleaseCall,
    RepeatCall,
    SpendApproval,
    SpendBudget,
    SpendRate,
)
from langchain_runtime_authz.ledger.schema import SEVERAL
from langchain_runtime_authz.mandate.call_matching import UNBOUNDED, Spend
from langchain_runtime_authz.pep import calls_in_doubt, decision_log
from langchain_runtime_authz.pep.call import DecidedCall, Denial, Replay, Verdict
from langchain_runtime_authz.pep.call_mandate import counting_scope
from langchain_runtime_authz.pep.child_agent import hand_off
from langchain_runtime_authz.pep.conclude_calls import deny_call, refund_mandate
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.mint_tokens import RefusedMints, audiences_of, minter_for_call, status_check
from langchain_runtime_authz.pep.obligations import changes_owed
from langchain_runtime_authz.pep.run import Commit, Run
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)

RACES: Final = 16  # number of retries while other agents claim equal calls


def claim_call(run: Run, decided: DecidedCall) -> Flow[tuple[DecidedCall, Verdict]]:
    """Claim or deny a call. Return the call as last decided, and its verdict."""
    verdict = yield from try_claim(run, decided)
    if isinstance(verdict, Conflict):
        decided, again = yield from claim_again(run, decided, verdict)
        verdict = again if again is not None else (yield from deny_call(run, decided))
    return decided, verdict


def claim_again(run: Run, decided: DecidedCall, conflict: Conflict) -> Flow[tuple[DecidedCall, Verdict | None]]:
    """Decide and claim a call again after a conflict with other calls.

    Return the call as decided last, and its verdict. The verdict is None if the new decision asks an approver.
    """
    verdict: Verdict | Conflict = conflict
    tries = RACES
    while isinstance(verdict, Conflict):
        anew = (yield from decide_calls(run, [decided.call]))[0] if tries else decided
        if anew.needs_approval:
            return anew, None
        same = anew.prior_calls <= decided.prior_calls and anew.standing == decided.standing
        if same and (not tries or verdict.code != Code.IN_DOUBT):
            return decided, (yield from deny_call(run, decided.with_decision(deny(verdict.code))))
        decided, tries = anew, tries - 1
        verdict = yield from try_claim(run, decided)
    return decided, verdict


def try_claim(run: Run, decided: DecidedCall) -> Flow[Verdict | Conflict]:
    """Claim or deny a call. Return a `Conflict` if it must be decided again."""
    call, decision, pep = decided.call, decided.decision, run.pep
    killed = pep.kill_switch is not None and pep.killed  # it may have been engaged since the decision
    if decided.replay or decision.outcome != "permit" or killed:
        return (yield from _unclaimed(run, decided))
    # The denial of an earlier call of the message may have demanded a revocation that the ledger has not taken yet.
    yield from calls_in_doubt.record_ends(pep, run.scope) if calls_in_doubt.UNRECORDED_ENDS else ()
    edge = handoff_edge(run.agent, call.metadata) if call.metadata else None
    if edge is not None and not (delegated := (yield from hand_off(run, edge))).permit:
        return (yield from deny_call(run, decided.with_decision(deny(delegated.reason))))
    tokens: dict[str, str] = {}
    if call.profile.audience:
        # A jti is derived from lease, call and audience, so a replay under a new lease gets another one.
        named = {a: f"{run.jti}:{decided.key}:{a}" for a in audiences_of(run, call.profile.audience)}
        tokens = {a: hashlib.sha256(name.encode()).hexdigest()[:32] for a, name in named.items()}
    intent = _idempotency_key(run, decided)
    changes = _changes(run, decided, tuple(tokens.values()) if tokens else (), intent)
    if edge is not None:
        changes.append(ledger.RecordEdge(edge))
    shared = counting_scope(run, decided.mandate)
    try:
        if (shared is not None or decided.repeated) and (over := (yield from _elsewhere(decided, shared))) is not None:
            return (yield from _conflicting(run, decided, over))
        done = yield (Commit, run.scope, run.guard, changes)
    except Exception as exc:  # noqa: BLE001  (see `decide_calls`)
        return (yield from deny_call(run, decided.with_decision(pep.deny_for_failure(exc, run))))
    if type(done) is Conflict:
        yield from refund_mandate(run, shared, _released(decided, changes).refund)
        return (yield from _conflicting(run, decided, done))
    # Note the side effect before the tool runs, so that a concurrent read counts as later.
    pep.memory.outputs(run.scope).claimed(call.args if call.profile.side_effect else None)
    recorded = False
    try:
        about = (decided.body, decided.started or None, done.now, decided.approval)
        deeds = list(decided.deeds)
        claim = {"call_key": decided.key, "deeds": deeds, "idempotency_key": intent} if deeds else None
        yield decision_log.step_record(run, decision, "tools/call", call.tool, *about, claim=claim)
        recorded = True
        if edge is not None:
            detail = {"to": edge.to, "kind": edge.kind, "decision_id": decision.decision_id}
            yield decision_log.run_event(run, "delegated", done.now, detail=detail)
        if decision.obligations:
            yield from decision_log.send_notifications(run, decision, "tools/call", call.tool, done.now)
    except AuditError as exc:
        return (yield from _release(run, decided, _released(decided, changes), exc, recorded))
    ordered = decided.standing.standing == "covered"
    ticket = Ticket(
        tool=call.tool,
        call_id=call.call_id,
        call_key=decided.key,
        agent=run.agent,
        epoch=run.epoch,
        raw=call.raw,
        decision_id=decision.decision_id,
        jti=run.jti,
        idempotency_key=intent,
        audiences=tuple(tokens) if tokens else (),
        reaches=audiences_of(run, call.profile.exchange_audiences) if tokens else (),
        obligations=decision.obligations,
        undo=lambda: _released(decided, changes),
        awaited=decided.standing.awaited if ordered or decided.approval is not None else "",
        mint=minter_for_call(run, decided, tokens, done.now) if tokens else None,
        status_check=status_check(run, tokens, done.now) if tokens else None,
        refusals=RefusedMints((run, decided, done.now - time.monotonic())),
    )
    if decided.deeds:
        calls_in_doubt.UNRECORDED_ENDS.pop(decided.key, None)  # the new claim replaces an end that was not recorded
        calls_in_doubt.RUNNING[decided.key] = ref(ticket, partial(calls_in_doubt.RUNNING.pop, decided.key))
    return ticket


def _elsewhere(decided: DecidedCall, shared: Scope | None) -> Flow[Conflict | None]:
    """Commit a claim's changes to other threads. Return the first conflict or None."""
    commits: list[Any] = [(scope, [RepeatCall(row.key, row.at)]) for scope, _, row in decided.repeated]
    if shared is not None and (spends := _spends(decided)) and decided.row is None:
        commits.append((shared, [SpendBudget(*spend) for spend in spends]))
    for scope, changes in commits:
        if type(done := (yield Commit(scope, None, changes))) is Conflict:
            return done
    return None


def _spends(decided: DecidedCall) -> tuple[Spend, ...]:
    """Return the mandate's counters to add to. An approval also adds to `confirms`."""
    standing, approval = decided.standing, decided.approval
    if standing.standing == "covered" or (approval is not None and approval.state == "approved"):
        # A question that showed only the call, like another review's, does not confirm the mandate.
        seen = standing.confirms and approval is not None and approval.confirms == standing.confirms
        return (*standing.spends, *([Spend(standing.confirms, UNBOUNDED)] if seen else ()))
    # A call that deviates and runs without an approval adds to the mandate's limits, but uses up no step.
    return tuple(spend for spend in standing.spends if ":limit:" in spend.counter)


def _changes(run: Run, decided: DecidedCall, tokens: tuple[str, ...], intent: str) -> list[ledger.Change]:
    """Return the changes that claim a call. `_released` undoes them."""
    call, approval, row, name = decided.call, decided.approval, decided.row, decision_log.tool_label(decided.call.tool)
    profile, approved = call.profile, approval is not None and approval.state == "approved"
    # An approval after a failure permits running the call again.
    again = approved and row is not None and row.state in ("failed", "unknown")
    repeatable = not profile.side_effect or profile.idempotent or again
    about: dict[str, Any] | None = None
    deed, *also = decided.deeds or ("",)
    if deed:
        about = calls_in_doubt.facts_of_doubt(run, call) | {"tool": name, "call_id": call.call_id, "run_id": run.run_id}
        about |= {"decision_id": decided.decision.decision_id, "idempotency_key": intent}
        if deed.endswith(f":{SEVERAL}"):
            about["targets"] = also
    # INVARIANT: a doubt that arose after the decision stops the claim, unless the approver's question named it.
    subject = run.subject.principal if deed else ""
    known = approval.doubts if approved and approval is not None else ()
    despite = None if profile.idempotent and profile.effect != "pay" else known
    changes: list[ledger.Change] = [
        ClaimCall(decided.key, run.jti, repeatable, tokens, deed, about, subject, despite, tuple(also))
    ]
    changes += changes_owed(decided.decision) if decided.decision.obligations else ()
    budgets = run.grant.budgets if run.grant is not None else {}
    if budgets:  # for a paused call too: this entry's grant may be narrower than the earlier one
        changes += [SpendBudget(c, budgets[c]) for c in (call.tool, f"effect:{profile.effect}") if c in budgets]
    if row is not None and row.state == "suspended" and row.jti != run.jti:
        # An earlier entry counted the paused call, so spend 0. A budget of 0 refuses the call: spend 1.
        limits = [c for c in changes[1:] if type(c) is SpendBudget]
        changes[1:] = [replace(c, by=0 if c.maximum else 1) for c in limits]
    if decided.counter and row is None:
        # INVARIANT: an equal call that was made after the decision stops the claim. A reclaimed call counts once.
        changes.append(SpendBudget(decided.counter, decided.prior_calls + 1))
    if row is None:
        # INVARIANT: the commit that claims the call also uses up the mandate's step.
        for spend in decided.standing.spends if decided.standing.standing == "covered" else _spends(decided):
            changes.append(SpendBudget(*spend))
    changes.append(
        ledger.RecordStep(
            call=name, effect=profile.effect, recent=name, side_effect=profile.side_effect, agent=run.agent
        )
    )
    if approval is not None and approved:
        changes.append(SpendApproval(approval.call_key, approval.args_digest))
    return changes


def _released(decided: DecidedCall, changes: Sequence[ledger.Change]) -> ReleaseCall:
    """Return the change that undoes a claim made by `changes`."""
    spent = tuple([(c.counter, c.by) for c in changes if isinstance(c, SpendBudget)])
    used = next((c.call_key for c in changes if isinstance(c, SpendApproval)), "")
    rates = tuple([(c.counter, c.window) for c in changes if isinstance(c, SpendRate)])
    paused = decided.row if decided.row is not None and decided.row.state == "suspended" else None
    return ReleaseCall(decided.key, spent, used, rates, paused)


def _unclaimed(run: Run, decided: DecidedCall) -> Flow[Verdict]:
    """Return the verdict on a call that is not claimed: a replay or a denial."""
    if not decided.replay:
        killed = decided.decision.outcome == "permit"
        return (yield from deny_call(run, decided.with_decision(deny(Code.KILLED)) if killed else decided))
    message = run.untold() if decided.stale else ""
    if message:  # the user's texts that the graph has not received
        try:
            yield Commit(run.scope, None, [ledger.TakePending()])
        except Exception as exc:  # noqa: BLE001  (then the graph gets the texts once more)
            _log.error("what was told with %s stays pending: %s", decided.decision.decision_id, type(exc).__name__)
    return Replay(decided.call, decided.row.result if decided.row is not None else None, message)


def _conflicting(run: Run, decided: DecidedCall, conflict: Conflict) -> Flow[Verdict | Conflict]:
    if conflict.row is not None:
        return Replay(decided.call, conflict.row.result)
    if conflict.code in (Code.BUDGET_EXHAUSTED, Code.IN_DOUBT):
        return conflict
    return (yield from deny_call(run, decided.with_decision(deny(conflict.code))))


def _release(run: Run, decided: DecidedCall, undo: ReleaseCall, failure: AuditError, recorded: bool) -> Flow[Denial]:
    """Deny and release a claimed call, because its record or notification failed."""
    if recorded:
        denial = yield from deny_call(run, decided.with_decision(deny(failure.code)))
    else:
        denial = Denial(decided.call, run.pep.deny_for_failure(failure, run))
    try:
        yield (Commit, run.scope, None, [undo])
        yield from refund_mandate(run, counting_scope(run, decided.mandate), undo.refund)
    except Exception as exc:  # noqa: BLE001  (denied all the same; the claim ends with the run)
        run.pep.log_unrecorded("the release of a claim", exc, run, decided.decision.decision_id)
    return denial


def _idempotency_key(run: Run, decided: DecidedCall) -> str:
    """Return the idempotency key for the tool; without a plan, the call's ledger key."""
    call = decided.call
    if call.plan_id is None:
        return decided.key
    if not run.local.idempotency_prefix:
        run.local.idempotency_prefix = json.dumps(["intent", run.scope[:3], run.subject.principal, run.agent])[:-1]
    return plan.call_key(run.local.idempotency_prefix, call.plan_id, call.position or 0, call.tool, call.args_digest)
