"""`runtime-authz revoke | reinstate | kill`: stop a thread, an agent's subtree on it, or everything."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from langchain_runtime_authz.cli._errors import FINDING, Json, reporting, show
from langchain_runtime_authz.cli.ledger import Role, Schema, Where, opened
from langchain_runtime_authz.errors import ConfigError, LedgerError
from langchain_runtime_authz.pep.kill_switch import KILL_SWITCH, KillSwitch

kill = typer.Typer(
    help="""Stop everything at once, by a file that every process watches.

    Give the file to the application as `RuntimeAuthz(kill_switch=FILE)` or in the environment variable
    RUNTIME_AUTHZ_KILL_SWITCH. While it exists every step is denied (`killed`), even if PDP and ledger are down.
    `touch FILE` does the same.""",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Thread = Annotated[str, typer.Argument(help="LangGraph's thread_id.")]
Graph = Annotated[str, typer.Option("--graph", help="The graph's name, as audit records show it.")]
Agent = Annotated[str, typer.Option("--agent", help="Only this agent and those below it: a path, like root/payer.")]
Tenant = Annotated[str, typer.Option("--tenant", help="As in RuntimeAuthz(tenant=...).")]
Issuer = Annotated[str, typer.Option("--issuer", help="The issuer of the application's tokens.")]
Audit = Annotated[
    Path | None, typer.Option("--audit", metavar="FILE", help="The application's hash-chained file, to record it in.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
By = Annotated[str, typer.Option("--by", help="Who does it, for the record: type:id, like user:carol.")]
Watched = Annotated[
    Path, typer.Option("--file", envvar=KILL_SWITCH, metavar="FILE", help="The file that the application watches.")
]
_LOCAL = "urn:langchain-runtime-authz:local"


def revoke(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    reason: Reason = "",
    by: By = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    audit: Audit = None,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
    as_json: Json = False,
) -> None:
    """Stop a thread, or an agent's subtree on it, until it is reinstated.

    Live leases end with the commit: runs in flight stop before their next step, and no entry opens.

    \b
    Examples:
      runtime-authz revoke ledger.db thread-1 --graph payments
      runtime-authz revoke postgresql://app@db/authz thread-1 --graph payments --agent payments/payer
    """  # noqa: D301  (`\b` keeps the lines apart)
    _commit("revoked", (where, schema, role), (tenant, issuer, graph, thread), agent, (by, reason), audit, as_json)


def reinstate(
    where: Where,
    thread: Thread,
    graph: Graph,
    agent: Agent = "",
    reason: Reason = "",
    by: By = "",
    tenant: Tenant = "default",
    issuer: Issuer = _LOCAL,
    audit: Audit = None,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
    as_json: Json = False,
) -> None:
    """Lift every revocation of a thread, or of an agent's subtree on it.

    Leases that the revocation ended stay ended: enter the thread again.

    \b
    Examples:
      runtime-authz reinstate ledger.db thread-1 --graph payments
    """  # noqa: D301
    _commit("reinstated", (where, schema, role), (tenant, issuer, graph, thread), agent, (by, reason), audit, as_json)


def _commit(
    event: Literal["revoked", "reinstated"],
    ledger_at: tuple[str, str, str],
    key: tuple[str, str, str, str],
    agent: str,
    said: tuple[str, str],
    audit: Path | None,
    as_json: bool,
) -> None:
    """Commit the change to a thread that the ledger knows: a mistyped name must not look like a stop."""
    from langchain_runtime_authz.audit.record import run_record
    from langchain_runtime_authz.audit.sinks import FileSink
    from langchain_runtime_authz.ledger.base import Conflict, Query, Scope
    from langchain_runtime_authz.ledger.changes import Reinstate, Revoke
    from langchain_runtime_authz.pep.engine import anchored

    scope = Scope(*key)
    path = tuple(agent.split("/")) if agent else ()
    change = Revoke(path) if event == "revoked" else Reinstate(path)
    with reporting(), opened(*ledger_at) as ledger:
        if not ledger.load(scope, Query()).exists:
            known = (
                f"thread {scope.thread!r} of graph {scope.graph!r} (tenant {scope.tenant!r}, issuer {scope.issuer!r})"
            )
            raise ConfigError(f"the ledger knows no {known}")
        # Open the file first: if it cannot be written, nothing is done.
        with closing(FileSink(audit)) if audit is not None else nullcontext() as sink:
            done = ledger.commit(scope, None, [change])
            if isinstance(done, Conflict):
                raise LedgerError(done.code)
            if sink is not None:
                detail = dict(zip(("author", "reason"), said, strict=True))
                record = run_record(now=done.now, event=event, scope=scope, agent=path, detail=detail)
                sink.write(anchored(record, ledger, scope.tenant))
    told = {"event": event, "graph": scope.graph, "thread": scope.thread, "agent": path}
    show(told, as_json, f"{event:<11} {scope.thread} {agent}".rstrip())


@kill.command("engage")
def engage(
    file: Watched,
    reason: Annotated[str, typer.Option(help="Shown to a person who finds it engaged.")] = "",
    as_json: Json = False,
) -> None:
    """Deny every step from here on.

    \b
    Example:
      runtime-authz kill engage --file /run/agents/kill --reason "incident 42"
    """  # noqa: D301
    with reporting():
        switch = KillSwitch(file)
        switch.engage(reason)
    show({"engaged": True, "reason": switch.reason()}, as_json, f"engaged: {switch.reason()}")


@kill.command("release")
def release(file: Watched, as_json: Json = False) -> None:
    """Let steps be decided again."""
    with reporting():
        released = KillSwitch(file).release()
    show({"released": released}, as_json, "released" if released else "was not engaged")


@kill.command("status")
def status(file: Watched, as_json: Json = False) -> None:
    """Say whether it is engaged; exit code 1 if it is."""
    with reporting():
        switch = KillSwitch(file)
        engaged = switch.engaged
        reason = switch.reason() if engaged else ""
    show({"engaged": engaged, "reason": reason}, as_json, f"engaged: {reason}" if engaged else "not engaged")
    if engaged:
        raise typer.Exit(FINDING)
