"""`runtime-authz revoke`, `reinstate` and `kill`: stop a thread, an agent, or all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from typer import Argument, Option

from langchain_runtime_authz.cli._app import App, Printout, echo
from langchain_runtime_authz.cli._ledger_options import Audit, By, LedgerOptions, Reason, Tenant, checked_log
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.pep.kill_switch import KILL_SWITCH, KillSwitch

kill = App(
    help="""Stop everything at once, by a file that every process watches.

    Give the file to the application as `RuntimeAuthz(kill_switch=FILE)` or in the environment variable
    RUNTIME_AUTHZ_KILL_SWITCH. While it exists every step is denied (`killed`), even if PDP and ledger are down.
    `touch FILE` does the same.""",
)
Watched = Annotated[Path, Option("--file", envvar=KILL_SWITCH, metavar="FILE", help="The file that is watched.")]


class StopTarget(NamedTuple):
    """The options that name a thread or agent, and who stops it and why."""

    thread: Annotated[str, Argument(help="LangGraph's thread_id.")]
    graph: Annotated[str, Option(help="The graph's name, as audit records show it.")]
    agent: Annotated[str, Option(help="Only this agent and those below it: a path, like root/payer.")] = ""
    reason: Reason = ""
    by: By = ""
    tenant: Tenant = "default"
    issuer: Annotated[str, Option(help="The issuer of the application's tokens.")] = "urn:langchain-runtime-authz:local"
    audit: Audit = None


def revoke(store: LedgerOptions, target: StopTarget) -> Printout:
    """Stop a thread, or an agent's subtree on it, until it is reinstated.

    Live leases end at once: runs in flight stop before their next step, and no new run of the thread can begin.

    runtime-authz revoke ledger.db thread-1 --graph payments
    runtime-authz revoke postgresql://app@db/authz thread-1 --graph payments --agent payments/payer
    """
    return _changed("revoked", store, target)


def reinstate(store: LedgerOptions, target: StopTarget) -> Printout:
    """Lift every revocation of a thread, or of an agent's subtree on it.

    Leases that the revocation ended stay ended: enter the thread again.

    runtime-authz reinstate ledger.db thread-1 --graph payments
    """
    return _changed("reinstated", store, target)


def _changed(event: Literal["revoked", "reinstated"], store: LedgerOptions, target: StopTarget) -> Printout:
    """Revoke or reinstate. Refuse a thread or agent that the ledger does not know."""
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.issuer import LocalIssuer
    from langchain_runtime_authz.ledger.base import Query, Scope

    scope = Scope(target.tenant, target.issuer, target.graph, target.thread)
    path = tuple(target.agent.split("/")) if target.agent else ()
    if f"{target.agent}/".startswith(f"{target.graph}/"):  # the graph's name may hold slashes too
        path = (target.graph, *target.agent[len(target.graph) :].split("/")[1:])
    with store.opened() as ledger:
        if not (known := ledger.load(scope, Query())).exists:
            of = f"{scope.thread!r} of graph {scope.graph!r} (tenant {scope.tenant!r}, issuer {scope.issuer!r})"
            raise ConfigError(f"the ledger knows no thread {of}")
        if path[1:] and path[-1] not in {edge.to for edge in known.edges}:
            echo(f"note: this thread has had no agent {path[-1]!r} so far", err=True)
        issuer, log = LocalIssuer(issuer=target.issuer), checked_log(target.audit, target.tenant)
        authz = RuntimeAuthz(ledger=ledger, tenant=target.tenant, issuer=issuer, audit=log)
        change = authz.revoke if event == "revoked" else authz.reinstate
        change(target.thread, graph=target.graph, agent=path, by=target.by, reason=target.reason)
    told = {"event": event, "graph": scope.graph, "thread": scope.thread, "agent": path}
    return Printout(told, f"{event:<11} {scope.thread} {target.agent}".rstrip())


@kill.command("engage")
def engage(file: Watched, reason: Annotated[str, Option(help="Shown while it is engaged.")] = "") -> Printout:
    """Deny every step from now on.

    runtime-authz kill engage --file /run/agents/kill --reason "incident 42"
    """
    switch = KillSwitch(file)
    switch.engage(reason)
    return Printout({"engaged": True, "reason": switch.reason()}, f"engaged: {switch.reason()}")


@kill.command("release")
def release(file: Watched) -> Printout:
    """Release the kill switch."""
    released = KillSwitch(file).release()
    return Printout({"released": released}, "released" if released else "was not engaged")


@kill.command("status")
def status(file: Watched) -> Printout:
    """Show if the kill switch is engaged; exit code 1 if it is."""
    switch = KillSwitch(file)
    engaged = switch.engaged
    reason = switch.reason() if engaged else ""
    text = f"engaged: {reason}" if engaged else "not engaged"
    return Printout({"engaged": engaged, "reason": reason}, text, engaged)
