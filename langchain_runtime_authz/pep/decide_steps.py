"""Decide every step that is not a tool call, like a start or a model call.

The order is load → evaluate → commit → audit. Tool calls are in `decide_calls` and `claim_calls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.ledger.base import Conflict, Query, Snapshot
from langchain_runtime_authz.ledger.changes import Change, RecordStep, Revoke
from langchain_runtime_authz.pep import decision_log
from langchain_runtime_authz.pep.calls_in_doubt import revoke_late
from langchain_runtime_authz.pep.lease import lease_refusal, renew_lease
from langchain_runtime_authz.pep.obligations import changes_owed, enforceable, is_keepable
from langchain_runtime_authz.pep.request_builder import request_json
from langchain_runtime_authz.pep.run import LEASE_TTL, MAX_LIFETIME, Commit, Evaluate, Flow, Load, Run, Status

MAX_KEPT: Final = 256  # number of permits cached per agent and root entry
JUST_NOW: Final = 1.0  # seconds after a node's entry in which its first model call needs no new check
ENTER: Final = "node/enter"
MODEL: Final = "model/call"


def decide_step(
    run: Run,
    action: str,
    resource: dict[str, Any],
    *,
    with_permit: Sequence[Change] = (),
    prompt: dict[str, Any] | None = None,
    refuse: Code | None = None,
    known: Snapshot | None = None,
    answered: tuple[int, bytes | None, Decision] | None = None,
    keep: Callable[[Decision], Decision] | None = None,
) -> Flow[Decision]:
    """Decide a step that is not a tool call. Never raises.

    `refuse` denies without the policy. `with_permit`: changes to commit with a permit. `keep` may cache the decision.
    `answered`: time (ns), request and answer, if the PDP was asked before. `known`: the snapshot, if it was loaded.
    """
    body, started = None, time.time_ns()
    now = started / 1e9
    try:
        snapshot: Snapshot = known or (yield (Load, run.scope, Query(jti=run.jti, agent=run.agent)))
        run.local.looked = time.monotonic(), snapshot
        now, lease = snapshot.now, snapshot.lease
        if lease is not None and lease.expires_at - now < LEASE_TTL / 2:
            yield from renew_lease(run, snapshot)
        dead = lease_refusal(run, snapshot) or refuse
        if dead is not None:
            decision = deny(dead)
        else:
            if answered is None:
                body = request_json(run, snapshot, {"name": action}, resource, prompt=prompt)
                decision = (yield (Evaluate, [body]))[0]
            else:
                started, body, decision = answered
            if decision.obligations:
                decision = enforceable(decision, action)
        permit = decision.outcome == "permit"
        changes = [*with_permit] if permit else []
        changes += _obliged(run, decision) if decision.obligations else []
        if not permit:
            counts = decision_log.counts_against_agent(decision)
            changes.append(RecordStep(denials=int(counts), recent=f"deny:{action}"))
        if changes:
            try:
                done = yield (Commit, run.scope, run.guard if permit else None, changes)
            except BaseException as exc:  # also if the caller is cancelled
                yield from revoke_late(run, decision, exc) if Revoke in map(type, changes) else ()
                raise
            if isinstance(done, Conflict):
                decision = deny(done.code)
    except Exception as exc:  # noqa: BLE001  (see `decide_calls`)
        decision = run.pep.deny_for_failure(exc, run)
    try:
        yield decision_log.step_record(run, decision, action, resource["id"], body, started, now)
        if decision.obligations:
            yield from decision_log.obliged_events(run, decision, now)
            yield from decision_log.send_notifications(run, decision, action, resource["id"], now)
    except AuditError as exc:
        failed = run.pep.deny_for_failure(exc, run)
        decision = failed if decision.outcome == "permit" else decision
    return decision if keep is None else keep(decision)


def _obliged(run: Run, decision: Decision) -> list[Change]:
    revokes = any(o.type == "revoke" for o in decision.obligations)
    owed = changes_owed(decision) if decision.outcome == "permit" else []
    return [*owed, Revoke(run.agent)] if revokes else owed


def kept_permit(run: Run, *step: Any, lasting: bool) -> tuple[Decision | None, Callable[[Decision], Decision]]:
    """Return a step's cached permit or None, and the function that caches a new one.

    A permit is cached for its epoch and policy revision, for the seconds in the policy's `ttl`. Without a `ttl`, only a
    `lasting` permit (of a model or tool node) is cached: it lasts as long as the run.
    """
    began, key = time.monotonic(), (*step, run.epoch, run.pep.evaluator.revision)
    permit, until = run.local.permits.get(key, (None, 0.0))
    return permit if began < until else None, partial(_keep, run, key, began, lasting)


def _keep(run: Run, key: tuple[Any, ...], began: float, lasting: bool, found: Decision) -> Decision:
    """Cache a permit for its `ttl` or for the run, unless the grant expires."""
    lasts = min(found.ttl, LEASE_TTL / 2) if found.ttl is not None else MAX_LIFETIME if lasting else 0
    if run.grant is not None and run.grant.expires_at is not None:
        lasts = 0
    if lasts and found.outcome == "permit" and is_keepable(found, key[-1]) and len(run.local.permits) < MAX_KEPT:
        run.local.permits[key] = found, began + lasts
    return found


def if_alive(run: Run, permit: Decision, step: Flow[Decision]) -> Flow[Decision]:
    """Return the cached `permit` if run and workload are live, else decide by `step`."""
    try:
        ends = run.pep.identity.expires_at
        stopped = run.closed or run.pep.killed or (ends is not None and time.time() >= ends)
        alive = not stopped and (yield (Status, run.scope.tenant, run.jti)) == "live"
    except Exception:  # noqa: BLE001
        alive = False
    return permit if alive else (yield from step)


def enter_node(run: Run, name: str, *, lasting: bool) -> Flow[Decision]:
    """Decide `node/enter`, or return the cached permit of a live run."""
    permit, keep = kept_permit(run, ENTER, name, lasting=lasting)
    step = decide_step(run, ENTER, {"type": "node", "id": name, "properties": {}}, keep=keep)
    return step if permit is None else if_alive(run, permit, step)


class ToolNodeEntry:
    """The decision on entering a tool node, made in one batch with the node's calls.

    `decide_calls` calls `requests` and `conclude`. `check` receives the decision, and raises if it is a deny.
    """

    def __init__(self, run: Run, name: str, check: Callable[[Decision], None]) -> None:
        self._run, self._name, self._check = run, name, check
        self._node: dict[str, Any] = {"type": "node", "id": name, "properties": {}}
        self._decision: Decision | None = None

    def requests(self, known: Snapshot) -> Sequence[bytes | None]:
        """Return the request for the node; () if the run's lease is refused."""
        began = time.time_ns()
        if lease_refusal(self._run, known) is not None:
            return ()
        body = request_json(self._run, known, {"name": ENTER}, self._node)
        self._request = began, body
        self._facts: Any = {"known": known, "keep": kept_permit(self._run, ENTER, self._name, lasting=True)[1]}
        return (body,)

    def conclude(self, answer: Decision) -> Flow[None]:
        """Decide the entry by the PDP's answer. Never raises."""
        answered = (*self._request, answer)
        self._decision = yield from decide_step(self._run, ENTER, self._node, answered=answered, **self._facts)

    def enter(self) -> Flow[None]:
        """Check the decision. Decide the entry first if `decide_calls` did not."""
        self._check(self._decision or (yield from enter_node(self._run, self._name, lasting=True)))


Entry = ToolNodeEntry | None  # None: no tool node is entered, or its permit is cached


# `AuthzMiddleware` removes withheld tools from the request to the model. Without the middleware, the model sees all
# tools of the agent, and their calls are decided. The provider would run its own tools at once. So a model call that
# offers a withheld one is denied.


class ModelCall(NamedTuple):
    """A call of a model with its tools. `prompt`: digest of the system messages."""

    model: str
    provider: str | None
    tools: tuple[str, ...]
    provider_tools: tuple[str, ...]
    prompt: str | None


def decide_model(run: Run, call: ModelCall) -> Flow[Decision]:
    """Decide `model/call`, or return the cached permit of a live run."""
    permit, keep = kept_permit(run, MODEL, *call, lasting=True)
    scope = current_scope.get()
    counts, fresh = scope.counts, time.monotonic() - scope.entered < JUST_NOW
    first = counts is not None and not counts.get(MODEL) and fresh  # the node's entry has just been checked
    if counts is not None:
        counts[MODEL] = 1
    stopped = run.closed or (run.pep.kill_switch is not None and run.pep.killed)
    if permit is not None and first and not stopped:
        return permit
    properties = {
        "provider": call.provider,
        "tools": list(call.tools),
        "provider_tools": list(call.provider_tools),
        "tools_digest": digest({"tools": sorted(call.tools), "provider_tools": sorted(call.provider_tools)}),
    }
    resource = {"type": "model", "id": call.model, "properties": properties}
    when, snapshot = run.local.looked
    known = snapshot if first and time.monotonic() - when < JUST_NOW else None
    prompt = {"model": call.model, "digest": call.prompt}
    step = decide_step(run, MODEL, resource, prompt=prompt, keep=keep, known=known)
    return (yield from (step if permit is None else if_alive(run, permit, step)))
