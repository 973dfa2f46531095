"""Record a decision, notify those it names, and say what of it counts against an agent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from langchain_runtime_authz.audit.record import decision_record
from langchain_runtime_authz.authzen import Decision
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.pep.call import DecidedCall
from langchain_runtime_authz.pep.engine import Flow, Notify, Run, Write
from langchain_runtime_authz.telemetry import record_decision

__all__ = ["call_record", "is_judgement", "label", "record_asks", "step_record", "tell"]

MAX_LABEL: Final = 128
# Denials that say nothing of the agent: somebody else acted, or something else failed.
_CIRCUMSTANCES: Final = frozenset(
    {
        Code.DATA_CHANGED,
        Code.STALE_EPOCH,
        Code.STALE_PLAN,
        Code.KILLED,
        Code.LEDGER_UNAVAILABLE,
        Code.AUDIT_UNAVAILABLE,
    },
)


def is_judgement(decision: Decision) -> bool:
    """Return True if a deny says something about the agent."""
    return decision.failure in (None, "mapping") and decision.reason not in _CIRCUMSTANCES


def label(tool: str) -> str:
    """Return a tool's name as a counter, shortened: a model writes names, and every request holds the history."""
    return tool if len(tool) <= MAX_LABEL and tool.isprintable() else "*"


def record_asks(run: Run, asked: Sequence[DecidedCall]) -> Flow[None]:
    """Record the decisions that an approver is about to be asked about. Raises `AuditError`."""
    for decided in asked:
        yield call_record(run, decided, time.time())
        yield from tell(run, decided.decision, "tools/call", decided.call.tool, time.time())


def call_record(run: Run, decided: DecidedCall, now: float) -> tuple[Any, ...]:
    """Return the effect that records what was decided on a call, at ledger time `now`. It raises `AuditError`."""
    return step_record(
        run, decided.decision, "tools/call", decided.call.tool, decided.body, decided.started or None, now
    )


def step_record(
    run: Run, decision: Decision, action: str, resource: str, body: bytes | None, started: int | None, now: float
) -> tuple[Any, ...]:
    """Show a decision in the trace, and return the effect that records it. The effect raises `AuditError`.

    `body` is what the PDP was asked; `started` when, in nanoseconds; `now` is ledger time.
    """
    pdp = run.engine.evaluator.pdp.name
    record_decision(decision, body, pdp=pdp, action=action, resource=resource, started=started)
    written = partial(
        decision_record,
        now=now,
        decision=decision,
        pdp=pdp,
        action=action,
        resource=resource,
        body=body,
        run_id=run.run_id,
        jti=run.jti,
        scope=run.scope,
        agent=run.agent,
        content=run.engine.audit.content,
    )
    return (Write, written)


def tell(run: Run, decision: Decision, action: str, resource: str, now: float) -> Flow[None]:
    """Tell whom a decision obliges to tell. Raises `AuditError` if that fails."""
    for obligation in decision.obligations:
        if obligation.type == "notify":
            notification = {
                "ts": now,
                "decision_id": decision.decision_id,
                "outcome": decision.outcome,
                "reasons": list(decision.reasons),
                "action": action,
                "resource": resource,
                "subject": run.subject.principal,
                "agent": list(run.agent),
                "run_id": run.run_id,
                "thread": run.scope[3],
                "policy_revision": decision.policy_revision,
                "obligation": obligation.id,
                # The policy's own words, where it gave any.
                **{k: v for k, v in obligation.properties.items() if k in ("topic", "body")},
            }
            yield Notify(str(obligation.properties["channel"]), notification)
