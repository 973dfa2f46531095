"""Record decisions and events in audit log and trace, and send notifications."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from langchain_runtime_authz.audit.record import Event, decision_record, run_record
from langchain_runtime_authz.errors import Code, failure_code
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.ledger.base import Approval, Committed, Conflict, Guard, Scope
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.pep.call import DecidedCall
from langchain_runtime_authz.pep.run import Commit, Flow, Notify, Run, Write
from langchain_runtime_authz.telemetry.spans import record_decision, record_event

MAX_LABEL: Final = 128
# Denials with these codes do not count against the agent, because others acted or a part failed.
_CIRCUMSTANCES: Final = frozenset(
    {Code.DATA_CHANGED, Code.STALE_EPOCH, Code.STALE_PLAN, Code.KILLED, Code.LEDGER_UNAVAILABLE, Code.AUDIT_UNAVAILABLE}
)


def counts_against_agent(decision: Decision) -> bool:
    """Return True if the agent, not a circumstance, caused the denial."""
    return decision.failure in (None, "mapping") and decision.reason not in _CIRCUMSTANCES


def tool_label(tool: str) -> str:
    """Return the tool's name for records; `*` if it is long or unprintable."""
    return tool if len(tool) <= MAX_LABEL and tool.isprintable() else "*"


def record_asking_calls(run: Run, asked: Sequence[DecidedCall]) -> Flow[None]:
    """Record the decisions that ask an approver, and send their notifications."""
    for decided in asked:
        yield call_record(run, decided, time.time())
        yield from send_notifications(run, decided.decision, "tools/call", decided.call.tool, time.time())


def call_record(run: Run, decided: DecidedCall, now: float) -> tuple[Any, ...]:
    """Return the `Write` effect that records a call's decision in the audit log."""
    decision, unknown = decided.decision, str(Code.UNKNOWN_TOOL)
    if decided.call.error == unknown and unknown not in decision.reasons:  # then the name counts as content
        decision = replace(decision, reasons=(*decision.reasons, unknown))
    expected = {d.argument: d.expected for d in decided.standing.deviations if d.expected}
    about = (decided.body, decided.started or None, now, decided.approval, expected)
    return step_record(run, decision, "tools/call", decided.call.tool, *about)


def step_record(
    run: Run,
    decision: Decision,
    action: str,
    resource: str,
    body: bytes | None,
    started: int | None,
    now: float,
    asked: Approval | None = None,
    expected: Mapping[str, str] | None = None,
    claim: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Trace a decision. Return the `Write` effect that records it in the audit log."""
    pdp, question = run.pep.evaluator.pdp.name, asked.trace if asked is not None else ""
    record_decision(run, decision, body, action, resource, started, pdp=pdp, question=question)
    of_run: dict[str, Any] = {"run_id": run.run_id, "jti": run.jti, "scope": run.scope, "agent": run.agent}
    step: dict[str, Any] = {"action": action, "resource": resource, "body": body, "expected": expected, "claim": claim}
    content = run.pep.audit.content
    written = partial(decision_record, now=now, decision=decision, pdp=pdp, content=content, **step, **of_run)
    if decision.outcome != "permit":
        run.pep.recent.stopped(decision, action, resource, run.scope.thread, run.run_id)
    return (Write, written)


def run_event(
    of: Run | Scope, event: Event, now: float, *, detail: Mapping[str, Any], question: str = "", **about: Any
) -> tuple[Any, ...]:
    """Trace an event. Return the `Write` effect that records it in the audit log.

    `about`: fields of the record, instead of the run's own. `question`: `Approval.trace` of the answered question.
    """
    if isinstance(of, Run):
        of_run = {"run_id": of.run_id, "jti": of.jti, "epoch": of.epoch, "scope": of.scope, "agent": of.agent}
        record_event(event, of.scope, detail, about, run=of, question=question)
        about = {**of_run, **about}
    else:
        record_event(event, of, detail, about, question=question)
        about["scope"] = of
    return (Write, partial(run_record, now=now, event=event, detail=detail, **about))


def commit_recorded(
    scope: Scope, changes: Sequence[Change], record: Callable[..., Flow[None]], guard: Guard | None = None
) -> Flow[Committed | Conflict]:
    """Record changes by `record()`, and only then commit them.

    If the commit conflicts, also call `record(refused=code)`; if the ledger fails, `record(unknown=code)`.
    """
    yield from record()
    try:
        done: Committed | Conflict = yield Commit(scope, guard, changes)
    except Exception as exc:
        yield from record(unknown=str(failure_code(exc)))
        raise
    if isinstance(done, Conflict):
        yield from record(refused=str(done.code))
    return done


def record_anomaly(run: Run, reason: str, decision_id: str, now: float) -> tuple[Any, ...]:
    """Trace an automatic revocation. Return the `Write` effect that records it."""
    record_event("anomaly", run.scope, {"decision_id": decision_id}, {"reason": reason}, run=run)
    return run_event(run, "revoked", now, detail={"author": "", "reason": reason, "decision_id": decision_id})


def obliged_events(run: Run, decision: Decision, now: float, *, rotated: int | None = None) -> Flow[None]:
    """Record that a decision revoked the agent, or raised the epoch to `rotated`."""
    if any(o.type == "revoke" for o in decision.obligations):
        yield record_anomaly(run, decision.reason, decision.decision_id, now)
    if rotated is not None:
        detail = {"from_epoch": run.epoch, "from_jti": run.jti, "decision_id": decision.decision_id}
        yield run_event(run, "rotated", now, detail=detail, epoch=rotated)


def send_notifications(run: Run, decision: Decision, action: str, resource: str, now: float) -> Flow[None]:
    """Send the notifications that a decision demands, or raise `AuditError`."""
    for obligation in decision.obligations:
        if obligation.type == "notify":
            decided = {"decision_id": decision.decision_id, "outcome": decision.outcome, "reasons": [*decision.reasons]}
            step = {"action": action, "resource": resource, "subject": run.subject.principal, "agent": [*run.agent]}
            place = {"run_id": run.run_id, "thread": run.scope.thread, "policy_revision": decision.policy_revision}
            own = {k: v for k, v in obligation.properties.items() if k in ("topic", "body")}  # the policy's texts
            told = {"ts": now, **decided, **step, **place, "obligation": obligation.id, **own}
            yield Notify(str(obligation.properties["channel"]), told)
