"""`runtime-authz approvals`: list the questions in a ledger, and answer them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Argument, Option

from langchain_runtime_authz._display import labelled, one_line
from langchain_runtime_authz.cli._app import App, Printout, iso_time
from langchain_runtime_authz.cli._ledger_options import Audit, LedgerOptions, Tenant, checked_log, note_full
from langchain_runtime_authz.cli.keys import Password, as_bytes
from langchain_runtime_authz.errors import ConfigError, unreadable

if TYPE_CHECKING:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.approval_statement import Verdict

app = App(
    help="""List the questions of agents, and answer them by signed statements.

    LEDGER is the path of an SQLite file, or a connection string of PostgreSQL.""",
)

Id = Annotated[str, Argument(metavar="ID", help="The question, as `approvals list` names it.")]


class Approver(NamedTuple):
    """The options that name and authenticate an approver."""

    person: Annotated[str, Option("--as", help="The approver: the name of a user.")]
    key: Annotated[Path, Option(help="The approver's private key: PEM.")]
    approvers: Annotated[Path, Option(help="The approvers' public keys: JSON, `user:<name>` to JWK set (RFC 7517).")]
    password: Password = None


@app.command("list")
def list_(store: LedgerOptions, tenant: Tenant = "default") -> Printout:
    """List at most 1,000 open questions, those of the newest threads first.

    runtime-authz approvals list ledger.db --tenant acme
    """
    rows, lines = [], []
    with store.opened() as ledger:
        found = ledger.asked(tenant)
    note_full([found])
    for scope, asked in found:
        names = ("id", "subject", "tool", "args_digest", "needed", "question")
        own = {"expires_at": asked.expires_at or None, "approvers": list(asked.approvers)}
        place = {"graph": scope.graph, "thread": scope.thread}
        rows.append({**{name: getattr(asked, name) for name in names}, **place, **own})
        until = iso_time(asked.expires_at) if asked.expires_at else "it is answered"
        thread = f"{one_line(scope.graph)}/{one_line(scope.thread)}  for {one_line(asked.subject)}"
        lines.append(labelled(f"{asked.id}  ", thread))
        lines.append(f"  {len(asked.approvers)} of {asked.needed} approved, until {until}")
        lines += [*(labelled("  ", line, 6) for line in asked.question.splitlines()), ""]
    return Printout(rows, [*lines, f"{len(found)} open"])


@app.command("approve")
def approve(store: LedgerOptions, id: Id, who: Approver, tenant: Tenant = "default", audit: Audit = None) -> Printout:
    """Approve one call: exactly its tool and arguments, for its thread's present task.

    runtime-authz approvals approve ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json
    """
    with _signed(store, id, who, "approve", tenant, audit) as (authz, statement):
        waits = authz.approve(id, statement=statement)
    rest = f"waits for  {waits} more" if waits else "complete   resume the graph"
    done = {"id": id, "verdict": "approve", "approver": f"user:{who.person}", "missing": waits}
    return Printout(done, f"approved   by user:{who.person}\n{rest}")


@app.command("deny")
def deny(
    store: LedgerOptions,
    id: Id,
    who: Approver,
    message: Annotated[str, Option(help="The reason. The model reads it, and it changes the task.")] = "",
    tenant: Tenant = "default",
    audit: Audit = None,
) -> Printout:
    """Reject one call. One approver is enough.

    A reason is a correction of the task: the thread's other questions become void and are asked again.

    runtime-authz approvals deny ledger.db 4f6c… --as bob --key bob.pem --approvers approvers.json
    """
    with _signed(store, id, who, "deny", tenant, audit, message) as (authz, statement):
        authz.deny_approval(id, statement=statement, message=message)
    done = {"id": id, "verdict": "deny", "approver": f"user:{who.person}"}
    return Printout(done, f"rejected   by user:{who.person}")


@contextmanager
def _signed(
    store: LedgerOptions, id: str, who: Approver, verdict: Verdict, tenant: str, audit: Path | None, message: str = ""
) -> Iterator[tuple[RuntimeAuthz, str]]:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.credential.approval_statement import Approvers, sign_statement
    from langchain_runtime_authz.credential.signer import SigningKey
    from langchain_runtime_authz.digest import parse_object

    try:
        people: dict[str, Any] = parse_object(who.approvers.read_bytes())
    except ValueError as exc:
        wanted = f"{who.approvers} must hold a JSON object, `user:<name>` to JWK set"
        raise ConfigError(f"{wanted}: {unreadable(exc)}") from exc
    with store.opened() as ledger:
        log = checked_log(audit, tenant)
        authz = RuntimeAuthz(ledger=ledger, tenant=tenant, approvers=Approvers(people), audit=log)
        signer = SigningKey.from_pem(who.key.read_bytes(), as_bytes(who.password))
        about: dict[str, Any] = {"verdict": verdict, "question": authz.question(id), "message": message}
        yield authz, sign_statement(signer, approver=f"user:{who.person}", jti=secrets.token_hex(16), **about)
