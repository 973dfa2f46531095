"""Decide every step that is not a tool call: `run/*`, `agent/invoke`, `model/call`, `node/enter`.

Load → evaluate → commit → audit, in that order; a tool call's own is in `decide` and `claim`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.authzen import Decision, deny
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.ledger.base import Conflict, Query, Snapshot
from langchain_runtime_authz.ledger.changes import Change, RecordStep, Revoke
from langchain_runtime_authz.pep.decide import lease_refusal, renewed
from langchain_runtime_authz.pep.engine import Commit, Evaluate, Flow, Load, Run
from langchain_runtime_authz.pep.obligations import keepable, owed, understood
from langchain_runtime_authz.pep.recording import is_judgement, obliged_events, step_record, tell
from langchain_runtime_authz.pep.request import request_json

MAX_KEPT: Final = 256  # tool sets whose permits are kept per agent and entry

_STEP_OBLIGATIONS: Final = {
    False: frozenset(("require_approval", "rate_limit", "budget", "notify", "revoke")),
    True: frozenset(("require_approval", "rate_limit", "budget", "notify", "revoke", "withhold_tools")),
}


def decide_step(
    run: Run,
    action: str,
    resource: dict[str, Any],
    *,
    extra: Callable[[Decision], Sequence[Change]] | None = None,
    prompt: dict[str, Any] | None = None,
    refuse: Code | None = None,
    known: Snapshot | None = None,
) -> Flow[Decision]:
    """Decide such a step. Never raises. `refuse` is the enforcement point's own reason, `extra` goes with a permit."""
    body = None
    started = time.time_ns()
    now = started / 1e9
    try:
        snapshot = known if known is not None else (yield from _loaded(run))
        now = snapshot.now
        dead = lease_refusal(run, snapshot) or refuse
        if dead is not None:
            decision = deny(dead)
        else:
            body = request_json(run, snapshot, {"name": action}, resource, prompt=prompt)
            decision = (yield (Evaluate, [body]))[0]
            if decision.obligations:
                decision = understood(decision, _STEP_OBLIGATIONS[action == "model/call"])
        permit = decision.outcome == "permit"
        changes = list(extra(decision)) if extra is not None and permit else []
        if decision.obligations:
            changes += owed(decision) if permit else []
            changes += [Revoke(run.agent)] if any(o.type == "revoke" for o in decision.obligations) else []
        if not permit:
            changes.append(RecordStep(denials=int(is_judgement(decision)), recent=f"deny:{action}"))
        if changes:
            done = yield (Commit, run.scope, run.guard if permit else None, changes)
            if isinstance(done, Conflict):
                decision = deny(done.code)
    except AuditError:
        decision = deny(Code.AUDIT_UNAVAILABLE)
    except Exception as exc:  # noqa: BLE001  (see `decide_calls`)
        decision = run.engine.ledger_failed(exc, run)
    try:
        yield step_record(run, decision, action, resource["id"], body, started, now)
        if decision.obligations:
            yield from obliged_events(run, decision, now)
            yield from tell(run, decision, action, resource["id"], now)
    except AuditError as exc:
        if decision.outcome == "permit":
            return deny(Code.NOTIFY_UNAVAILABLE if exc.code == Code.NOTIFY_UNAVAILABLE else Code.AUDIT_UNAVAILABLE)
    return decision


def _loaded(run: Run) -> Flow[Snapshot]:
    snapshot: Snapshot = yield (Load, run.scope, Query(jti=run.jti, agent=run.agent))
    lease = snapshot.lease
    if lease is not None and lease.expires_at - snapshot.now < run.engine.lease_ttl / 2:
        yield from renewed(run, snapshot)
    return snapshot


# Our middleware takes withheld tools (`withhold_tools`) out of the request. Without it the agent's own tools stay, since
# their calls are decided anyway. A tool that the provider runs cannot be stopped later, so a call that shows it is denied.


class ModelCall(NamedTuple):
    """A model and what it is shown. `prompt` is the digest of its instructions (system messages)."""

    model: str
    provider: str | None
    tools: tuple[str, ...]
    provider_tools: tuple[str, ...]
    prompt: str | None


def decide_model(run: Run, call: ModelCall) -> Flow[Decision]:
    revision = run.engine.evaluator.revision
    key = (run.epoch, revision, call.model, call.provider, call.tools, call.provider_tools)
    if revision and (kept := run.models.get(key)) is not None:
        return kept
    names = sorted(call.tools)
    properties = {
        "provider": call.provider,
        "tools": list(call.tools),
        "provider_tools": list(call.provider_tools),
        "tools_digest": digest({"tools": names, "provider_tools": sorted(call.provider_tools)}),
    }
    resource = {"type": "model", "id": call.model, "properties": properties}
    prompt = {"model": call.model, "digest": call.prompt}
    decision = yield from decide_step(run, "model/call", resource, prompt=prompt)
    if decision.permit and keepable(decision, revision) and len(run.models) < MAX_KEPT:
        run.models[key] = decision
    return decision


def withheld(decision: Decision) -> tuple[frozenset[str], frozenset[str]]:
    """Return the agent's own tools and the provider's that a permit withholds."""
    own: set[str] = set()
    provider: set[str] = set()
    for obligation in decision.obligations:
        if obligation.type == "withhold_tools":
            own.update(obligation.properties["tools"])
            provider.update(obligation.properties["provider_tools"])
    return frozenset(own), frozenset(provider)


def shown(decision: Decision, call: ModelCall) -> Decision:
    """Return the decision if nothing can be taken out of the request any more."""
    if decision.permit and withheld(decision)[1].intersection(call.provider_tools):
        return replace(deny(Code.PROVIDER_TOOL), decision_id=decision.decision_id)
    return decision
