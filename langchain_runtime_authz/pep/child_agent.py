"""Delegate to a child agent: decide, record the delegation, take a lease for it.

A child's grant is what its parent's grant, its profile's grant (`agent_profile`) and the requested grant all allow.
Budgets are counted per thread, so all agents of the thread share them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final, cast

from langchain_runtime_authz.credential.token import MAX_DELEGATORS, Credential
from langchain_runtime_authz.errors import AuditError, AuthzDenied, Code
from langchain_runtime_authz.evaluation import Decision, Edge, EdgeKind
from langchain_runtime_authz.facts.history import make_edge
from langchain_runtime_authz.facts.task import Task
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.call_changes import SpendBudget
from langchain_runtime_authz.ledger.changes import Change, RecordEdge
from langchain_runtime_authz.pep.decide_steps import decide_step
from langchain_runtime_authz.pep.decision_log import run_event
from langchain_runtime_authz.pep.lease import take_lease
from langchain_runtime_authz.pep.mint_tokens import audiences_of, mint_for_agent
from langchain_runtime_authz.pep.run import Flow, Run, new_id
from langchain_runtime_authz.telemetry.metrics import count_metric
from langchain_runtime_authz.telemetry.spans import run_span

INVOKE: Final = "agent/invoke"


def open_child(
    parent: Run,
    name: str,
    kind: EdgeKind,
    request: Grant | None = None,
    *,
    call_id: str | None = None,
    refuse: Code | None = None,
) -> Flow[Run]:
    """Open a run of the child agent `name`, or raise `AuthzDenied`.

    `call_id`: the parent's call that waits for the child. `refuse`: a code with which to deny without the policy.
    """
    opened = make_edge(parent.agent, name, kind)
    profile = parent.pep.child_profile(name)
    if kind == "subgraph":
        opened = parent.entry.handoffs.get(name, opened)
    child = Run(
        *(parent.pep, parent.scope, parent.subject, parent.run_id, parent.entry, (*parent.agent, name), new_id()),
        parent.pep.granted(profile, parent.grant, request),
        parent=parent,
        depth=parent.depth + 1,
        expires_at=parent.expires_at,
        keyed_thread=parent.keyed_thread,
        models=replace(parent.models, running={}),
        waiting=parent.waiting if call_id is None else (*parent.waiting, (parent.agent, call_id)),
    )
    child.move_to(parent.epoch, child.jti)
    changes: list[Change] = [RecordEdge(opened), take_lease(child)]
    if child.grant is not None and INVOKE in child.grant.budgets:
        changes.append(SpendBudget(INVOKE, child.grant.budgets[INVOKE]))
    if kind == "remote" and profile is not None and profile.named and not audiences_of(child, (profile.named,)):
        refuse = refuse or Code.AUDIENCE
    decision = yield from _invited(parent, opened, changes, refuse)
    if not decision.permit:
        raise AuthzDenied(decision.reason, decision.decision_id)
    child.delegation = decision.decision_id
    detail = {"to": name, "kind": opened.kind, "decision_id": decision.decision_id, "jti": child.jti}
    try:
        yield run_event(parent, "delegated", time.time(), detail=detail)
    except AuditError as exc:
        raise AuthzDenied(exc.code, decision.decision_id) from exc
    child.entry.children.add(child.jti)
    child.span = run_span(child, decision=decision.decision_id)
    count_metric("leases")
    return child


def child_credential(child: Run, audience: str) -> Flow[Credential]:
    """Mint the credential of the child's lease, for the server that runs the child."""
    parent = cast("Run", child.parent)
    task: Task = parent.local.task_json[0]  # the task when the delegation was decided
    asked = {"audience": audience, "tool": child.agent[-1], "action": INVOKE, "grant": child.grant, "jti": child.jti}
    return (yield from mint_for_agent(parent, time.time(), task, child.entry.mandate, child.delegation, **asked))


def hand_off(run: Run, opened: Edge) -> Flow[Decision]:
    """Decide a hand-off when its tool is called. The child's start is decided later."""
    decision = yield from _invited(run, opened, [], None)
    if decision.permit:
        run.entry.handoffs[opened.to] = opened
    return decision


def _invited(run: Run, opened: Edge, changes: list[Change], refuse: Code | None) -> Flow[Decision]:
    depth = run.depth + 1
    resource = {"type": "agent", "id": opened.to, "properties": {"kind": opened.kind, "depth": depth}}
    # INVARIANT: a token can hold the whole chain of delegations, so services see all of it.
    refuse = Code.TOO_DEEP if depth > MAX_DELEGATORS else refuse
    return (yield from decide_step(run, INVOKE, resource, with_permit=changes, refuse=refuse))
