"""`runtime-authz revoke | reinstate`: stop a thread, or an agent's subtree on it, from beside every process."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_runtime_authz.cli._errors import reporting
from langchain_runtime_authz.cli.ledger import Role, Schema, Where, opened
from langchain_runtime_authz.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.base import Reinstate, Revoke

__all__ = ["reinstate", "revoke"]

Thread = Annotated[str, typer.Argument(help="LangGraph's thread_id.")]
Graph = Annotated[str, typer.Option("--graph", help="The graph's name, as audit records show it.")]
Agent = Annotated[str, typer.Option("--agent", help="Only this agent and those below it: a path, like root/payer.")]
Tenant = Annotated[str, typer.Option("--tenant", help="As in RuntimeAuthz(tenant=...).")]
Issuer = Annotated[str, typer.Option("--issuer", help="Of the application's tokens.")]
Audit = Annotated[
    Path | None, typer.Option("--audit", metavar="FILE", help="A hash-chained file to record it in: the application's.")
]
_LOCAL = "urn:langchain-runtime-authz:local"


def revoke(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    audit: Audit = None,
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

    with reporting():
        _commit(Revoke(_path(agent)), "revoked", where, schema, role, thread, graph, tenant, issuer, audit)
    typer.echo(f"revoked     {thread} {agent}".rstrip())


def reinstate(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    audit: Audit = None,
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

    with reporting():
        _commit(Reinstate(_path(agent)), "reinstated", where, schema, role, thread, graph, tenant, issuer, audit)
    typer.echo(f"reinstated  {thread} {agent}".rstrip())


def _path(agent: str) -> tuple[str, ...]:
    return tuple(agent.split("/")) if agent else ()


def _commit(
    change: Revoke | Reinstate,
    event: str,
    where: str,
    schema: str,
    role: str,
    thread: str,
    graph: str,
    tenant: str,
    issuer: str,
    audit: Path | None,
) -> None:
    """Commit it to a thread that the ledger knows: a mistyped name must not look like a stop."""
    from langchain_runtime_authz.audit.record import run_record
    from langchain_runtime_authz.audit.sinks import FileSink
    from langchain_runtime_authz.ledger.base import Conflict, Query, Scope
    from langchain_runtime_authz.pep.engine import anchored

    scope = Scope(tenant, issuer, graph, thread)
    with opened(where, schema, role) as ledger:
        if not ledger.load(scope, Query()).exists:
            raise ConfigError(
                f"the ledger knows no thread {thread!r} of graph {graph!r} (tenant {tenant!r}, issuer {issuer!r})"
            )
        # The file is opened first: where it can not be written, nothing is done.
        with closing(FileSink(audit)) if audit is not None else nullcontext() as sink:
            done = ledger.commit(scope, None, [change])
            if isinstance(done, Conflict):
                raise LedgerError(done.code)
            if sink is not None:
                record = run_record(now=done.now, event=event, run_id="", scope=scope, agent=change.agent)
                sink.write(anchored(record, ledger, tenant))
