"""`runtime-authz approvals`: list the questions in a ledger, and answer them."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_runtime_authz.cli._errors import Json, reporting, show
from langchain_runtime_authz.cli.keys import Password
from langchain_runtime_authz.cli.ledger import Role, Schema, Where, opened
from langchain_runtime_authz.cli.revocation import Audit, Tenant
from langchain_runtime_authz.errors import ConfigError, unreadable

if TYPE_CHECKING:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.approval_statement import Verdict

app = typer.Typer(
    help="""List the questions of agents, and answer them by signed statements.

    LEDGER is the path of an SQLite file, or a connection string of PostgreSQL.

    \b
      runtime-authz approvals list    ledger.db
      runtime-authz approvals approve ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json
      runtime-authz approvals deny    ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json""",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The question, as `approvals list` names it.")]
Person = Annotated[str, typer.Option("--as", help="The approver: the name of a user.")]
Key = Annotated[Path, typer.Option("--key", help="The approver's private key: PEM.")]
Known = Annotated[
    Path, typer.Option("--approvers", help="The approvers' public keys: JSON, `user:<name>` to JWK set (RFC 7517).")
]


@app.command("list")
def list_(
    where: Where,
    tenant: Tenant = "default",
    as_json: Json = False,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
) -> None:
    """List the open questions. Their arguments are shown as inert text.

    \b
    Examples:
      runtime-authz approvals list ledger.db --tenant acme
    """  # noqa: D301  (`\b` keeps the lines apart)
    with reporting(), opened(where, schema, role) as ledger:
        found = list(ledger.asked(tenant))
    if as_json:
        rows = [
            {
                "id": asked.id,
                "graph": scope.graph,
                "thread": scope.thread,
                "subject": asked.subject,
                "tool": asked.tool,
                "args_digest": asked.args_digest,
                "expires_at": asked.expires_at or None,
                "approvers": list(asked.approvers),
                "needed": asked.needed,
                "question": asked.question,
            }
            for scope, asked in found
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    from langchain_runtime_authz.facts.inert import inert

    for scope, asked in found:
        until = dt.datetime.fromtimestamp(asked.expires_at, dt.UTC).isoformat() if asked.expires_at else "for ever"
        typer.echo(f"{asked.id}  {inert(scope.graph)}/{inert(scope.thread)}  for {inert(asked.subject)}")
        typer.echo(f"  {len(asked.approvers)} of {asked.needed} approved, until {until}")
        typer.echo("".join(f"  {line}\n" for line in asked.question.splitlines()))
    typer.echo(f"{len(found)} open")


@app.command("approve")
def approve(
    where: Where,
    id: Id,
    person: Person,
    key: Key,
    approvers: Known,
    tenant: Tenant = "default",
    password: Password = None,
    audit: Audit = None,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
    as_json: Json = False,
) -> None:
    """Approve one call: exactly its tool and arguments, on its thread, for the task as it is now.

    \b
    Examples:
      runtime-authz approvals approve ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json
    """  # noqa: D301
    with reporting(), _authz(where, tenant, approvers, audit, schema, role) as authz:
        waits = authz.approve(id, statement=_signed(authz, id, person, key, password, "approve"))
    rest = f"waits for  {waits} more" if waits else "complete   resume the graph"
    done = {"id": id, "verdict": "approve", "approver": f"user:{person}", "missing": waits}
    show(done, as_json, f"approved   by user:{person}\n{rest}")


@app.command("deny")
def deny(
    where: Where,
    id: Id,
    person: Person,
    key: Key,
    approvers: Known,
    message: Annotated[
        str, typer.Option("--message", help="The reason. The model reads it, and it changes the task.")
    ] = "",
    tenant: Tenant = "default",
    password: Password = None,
    audit: Audit = None,
    schema: Schema = "runtime_authz",
    role: Role = "runtime_authz_app",
    as_json: Json = False,
) -> None:
    """Reject one call. One approver is enough.

    A reason is a correction: other questions of the thread are void and asked again.

    \b
    Examples:
      runtime-authz approvals deny ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json
    """  # noqa: D301
    with reporting(), _authz(where, tenant, approvers, audit, schema, role) as authz:
        authz.deny_approval(id, statement=_signed(authz, id, person, key, password, "deny"), message=message)
    done = {"id": id, "verdict": "deny", "approver": f"user:{person}"}
    show(done, as_json, f"rejected   by user:{person}")


def _signed(authz: RuntimeAuthz, id: str, person: str, key: Path, password: str | None, verdict: Verdict) -> str:
    from langchain_runtime_authz.credential.approval_statement import sign_statement
    from langchain_runtime_authz.credential.keys import SigningKey

    signer = SigningKey.from_pem(key.read_bytes(), password.encode() if password else None)
    about = authz.question(id)
    return sign_statement(signer, approver=f"user:{person}", verdict=verdict, question=about, jti=secrets.token_hex(16))


@contextmanager
def _authz(
    where: str, tenant: str, approvers: Path, audit: Path | None, schema: str, role: str
) -> Iterator[RuntimeAuthz]:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.approval_statement import Approvers
    from langchain_runtime_authz.digest import parse_object

    try:
        people: dict[str, Any] = parse_object(approvers.read_bytes())
    except ValueError as exc:
        raise ConfigError(f"{approvers} must hold a JSON object, `user:<name>` to JWK set: {unreadable(exc)}") from exc
    with opened(where, schema, role) as ledger:
        yield RuntimeAuthz(ledger=ledger, tenant=tenant, approvers=Approvers(people), audit=audit)
