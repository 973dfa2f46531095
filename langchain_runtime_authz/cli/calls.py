"""`runtime-authz calls`: the calls in a ledger whose outcome nobody knows, and what became of them."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_runtime_authz.cli._errors import Json, reporting, show
from langchain_runtime_authz.cli.ledger import Role, Schema, Where, opened
from langchain_runtime_authz.cli.revocation import Audit, By, Reason, Tenant
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.inert import inert

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.base import Doubt

__all__ = ["app"]

app = typer.Typer(
    help="""List the calls whose outcome nobody knows, and say what became of them.

    A process died during such a call, or its end was not recorded. While it is in doubt, the same deed asks for 24 hours.
    LEDGER is the path of an SQLite file, or a connection string of PostgreSQL.

    \b
      runtime-authz calls list    ledger.db
      runtime-authz calls show    ledger.db sha256:4f6c…
      runtime-authz calls resolve ledger.db sha256:4f6c… --happened --by user:carol --reason "on the statement" """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Key = Annotated[str, typer.Argument(metavar="CALL", help="The call, as `calls list` names it.")]


@app.command("list")
def list_(
    where: Where,
    tenant: Tenant = "default",
    as_json: Json = False,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
) -> None:
    """List the calls in doubt, oldest first.

    \b
    Examples:
      runtime-authz calls list ledger.db --tenant acme
    """  # noqa: D301  (`\b` keeps the lines apart)
    with reporting(), opened(where, schema, role) as ledger:
        found = [_told(one) for one in ledger.doubts(tenant)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for told in found:
        typer.echo(told["call"])
        typer.echo(f"  {inert(str(told['tool']))} at {told['permitted_at']}, for {inert(told['subject'])}")
        typer.echo(f"  {inert(told['graph'])}/{inert(told['thread'])}, idempotency key {told['idempotency_key']}")
    typer.echo(f"{len(found)} in doubt")


@app.command("show")
def show_(
    where: Where,
    key: Key,
    tenant: Tenant = "default",
    as_json: Json = False,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
) -> None:
    """Show what the ledger knows of a call, and who resolved it.

    \b
    Examples:
      runtime-authz calls show ledger.db sha256:4f6c…
    """  # noqa: D301
    with reporting(), opened(where, schema, role) as ledger:
        found = ledger.doubts(tenant, key)
        if not found:
            raise ConfigError(f"the ledger holds no call {key!r} of tenant {tenant!r}")
    told = _told(found[0])
    show(
        told if as_json else {name: inert(value) if isinstance(value, str) else value for name, value in told.items()},
        as_json,
    )


@app.command("resolve")
def resolve(
    where: Where,
    key: Key,
    happened: Annotated[bool, typer.Option("--happened/--did-not-happen", help="What became of it.")],
    by: By,
    reason: Reason,
    tenant: Tenant = "default",
    audit: Audit = None,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
    as_json: Json = False,
) -> None:
    """Say of a call in doubt whether it happened.

    One that happened never runs again. One that did not happen may: enter its thread again, or order it anew.

    \b
    Examples:
      runtime-authz calls resolve ledger.db sha256:4f6c… --did-not-happen --by user:carol --reason "not on the statement"
    """  # noqa: D301
    from langchain_runtime_authz.authz import RuntimeAuthz

    with reporting(), opened(where, schema, role) as ledger:
        authz = RuntimeAuthz(ledger=ledger, tenant=tenant, audit=audit)
        authz.resolve_call(key, happened=happened, by=by, reason=reason)
        told = _told(ledger.doubts(tenant, key)[0])
    show(told, as_json, f"{'happened' if happened else 'did not happen'}, says {by}")


def _told(one: Doubt) -> dict[str, Any]:
    about = one.row.about or {}
    at = dt.datetime.fromtimestamp(one.row.at, dt.UTC).isoformat(timespec="seconds")
    names = ("args_digest", "decision_id", "run_id", "call_id", "idempotency_key", "resolved")
    return {
        "call": one.row.key,
        "state": one.row.state,
        "tool": about.get("tool"),
        "permitted_at": at,
        "subject": one.subject,
        "graph": one.scope.graph,
        "thread": one.scope.thread,
        **{name: about.get(name) for name in names},
    }
