"""Revoke and reinstate threads, and declare changed data: the acts of an operator."""

from __future__ import annotations

from typing import Any

from langchain_runtime_authz.errors import Code, ConfigError, LedgerError
from langchain_runtime_authz.facts.resource_version import one_spelling
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.ledger.base import Committed, Conflict, Query, Scope
from langchain_runtime_authz.ledger.changes import Change, Reinstate, Revoke, SetMark
from langchain_runtime_authz.pep.calls_in_doubt import LOST_ENDS, record_ends
from langchain_runtime_authz.pep.data_versions import data_scope
from langchain_runtime_authz.pep.decision_log import commit_recorded, run_event
from langchain_runtime_authz.pep.run import Commit, Engine, Flow, Load, new_id


def _commit(scope: Scope, change: Change) -> Flow[float]:
    """Commit a change and return the ledger's time, or raise `LedgerError`."""
    done: Committed | Conflict = yield Commit(scope, None, [change])
    if isinstance(done, Conflict):
        raise LedgerError(done.code)
    return done.now


def data_changed(scope: Scope, resource: str, *, content: bool) -> Flow[None]:
    """Declare that a resource changed, so that earlier reads of it are stale."""
    now = yield from _commit(data_scope(scope), SetMark(one_spelling(resource), new_id()))
    detail = {"resource": resource if content else content_digest(resource)}
    yield run_event(scope, "data_changed", now, detail=detail)


def _checked(scope: Scope, agent: tuple[str, ...]) -> None:
    """Raise `ConfigError` for an agent path outside the graph, which names no agent."""
    if agent and agent[0] != scope.graph:
        raise ConfigError(f"an agent's path begins with the name of its graph: {scope.graph!r}, not {agent[0]!r}")


def revoke_agents(scope: Scope, agent: tuple[str, ...], by: str = "", reason: str = "") -> Flow[None]:
    """Revoke an agent and those below it until `reinstate_agents`; `()` revokes all."""
    _checked(scope, agent)
    now = yield from _commit(scope, Revoke(agent))
    yield run_event(scope, "revoked", now, detail={"author": by, "reason": reason}, agent=agent)


def reinstate_agents(
    engine: Engine, scope: Scope, agent: tuple[str, ...], by: str = "", reason: str = ""
) -> Flow[None]:
    """Record that revocations are lifted, then lift them.

    Raises `LedgerError`, also if the end of a call of this thread still waits: it may revoke the agent again.
    """
    _checked(scope, agent)
    yield from record_ends(engine, scope)  # so that a revocation that waits for the ledger is lifted too
    if any(run.scope == scope and run.engine.ledger is engine.ledger for run, *_ in [*LOST_ENDS.values()]):
        raise LedgerError(Code.LEDGER_UNAVAILABLE, "an end that may revoke the agent is not recorded yet: try again")
    now = (yield Load(scope, Query())).now

    def record(**detail: Any) -> Flow[None]:
        told = {"author": by, "reason": reason, **detail}
        yield run_event(scope, "reinstated", now, detail=told, agent=agent)

    done = yield from commit_recorded(scope, [Reinstate(agent)], record)
    if isinstance(done, Conflict):
        raise LedgerError(done.code)
