"""`runtime-authz revoke | reinstate`: stop a thread, or an agent's subtree on it, from beside every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_runtime_authz.cli._errors import reporting
from langchain_runtime_authz.cli.ledger import Role, Schema, Where, opened
from langchain_runtime_authz.errors import ConfigError

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.base import Ledger, Scope

__all__ = ["reinstate", "revoke"]

Thread = Annotated[str, typer.Argument(help="LangGraph's thread_id.")]
Graph = Annotated[str, typer.Option("--graph", help="The graph's name, as audit records show it.")]
Agent = Annotated[str, typer.Option("--agent", help="Only this agent and those below it: a path, like root/payer.")]
Tenant = Annotated[str, typer.Option("--tenant", help="As in RuntimeAuthz(tenant=...).")]
Issuer = Annotated[str, typer.Option("--issuer", help="Of the application's tokens.")]
_LOCAL = "urn:langchain-runtime-authz:local"


def revoke(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
) -> None:
    """Stop a thread, or an agent's subtree on it, until it is reinstated.

    Live leases die with the commit: runs in flight stop before their next step, and no entry opens.

    \b
    Examples:
      runtime-authz revoke ledger.db thread-1 --graph payments
      runtime-authz revoke postgresql://app@db/authz thread-1 --graph payments --agent payments/payer
    """  # noqa: D301  (`\b` is what keeps the lines apart)
    from langchain_runtime_authz.ledger.base import Revoke

    with reporting(), _known(where, schema, role, thread, graph, tenant, issuer) as (ledger, scope):
        ledger.commit(scope, None, [Revoke(_path(agent))])
    typer.echo(f"revoked     {thread} {agent}".rstrip())


def reinstate(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
) -> None:
    """Lift every revocation of a thread, or of an agent's subtree on it.

    Leases that the revocation ended stay dead: enter the thread anew.

    \b
    Examples:
      runtime-authz reinstate ledger.db thread-1 --graph payments
    """  # noqa: D301
    from langchain_runtime_authz.ledger.base import Reinstate

    with reporting(), _known(where, schema, role, thread, graph, tenant, issuer) as (ledger, scope):
        ledger.commit(scope, None, [Reinstate(_path(agent))])
    typer.echo(f"reinstated  {thread} {agent}".rstrip())


def _path(agent: str) -> tuple[str, ...]:
    return tuple(agent.split("/")) if agent else ()


@contextmanager
def _known(
    where: str, schema: str, role: str, thread: str, graph: str, tenant: str, issuer: str
) -> Iterator[tuple[Ledger, Scope]]:
    """The ledger and a thread that it knows: a mistyped name must not look like a stop."""
    from langchain_runtime_authz.ledger.base import Query, Scope

    with opened(where, schema, role) as ledger:
        scope = Scope(tenant, issuer, graph, thread)
        if not ledger.load(scope, Query()).exists:
            msg = f"the ledger knows no thread {thread!r} of graph {graph!r} (tenant {tenant!r}, issuer {issuer!r})"
            raise ConfigError(msg)
        yield ledger, scope
