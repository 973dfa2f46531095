"""`runtime-authz calls`: the calls in doubt of a ledger, and what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, echo

from langchain_runtime_authz._display import one_line
from langchain_runtime_authz.cli._app import App, Printout, iso_time, lines
from langchain_runtime_authz.cli._ledger_options import Audit, By, LedgerOptions, Reason, checked_log, note_full
from langchain_runtime_authz.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.base import InDoubtCall
    from langchain_runtime_authz.ledger.sql_ledger import SqlLedger

app = App(
    help="""List the calls whose outcome nobody knows, and say what became of them.

    A process died during such a call, or its end was not recorded. While it is in doubt, the same deed asks for 24 hours.
    LEDGER is the path of an SQLite file, or a connection string of PostgreSQL.""",
)

Key = Annotated[str, Argument(metavar="CALL", help="The call, as `calls list` names it.")]
Of = Annotated[str | None, Option("--tenant", help="Only this one's, as in RuntimeAuthz(tenant=...).")]


@app.command("list")
def list_(store: LedgerOptions, tenant: Of = None) -> Printout:
    """List calls in doubt, newest first, then failed ones: at most 1,000 of a tenant.

    A failed call may have had its effect. So for 24 hours, another call of that effect on that target asks an approver.

    runtime-authz calls list ledger.db --tenant acme
    """
    with store.opened() as ledger:
        several = [ledger.doubts(each) for each in _tenants(store, tenant)]
    found = [_shown(one) for doubts in several for one in doubts]
    note_full(several)
    text = []
    for call in found:
        text.append(call["call"])
        text.append(f"  {one_line(str(call['tool']))} at {call['permitted_at']}, for {one_line(call['subject'])}")
        place = f"{one_line(call['tenant'])}: {one_line(call['graph'])}/{one_line(call['thread'])}"
        failed = ", failed" if call["failed"] else ""
        text.append(f"  {place}, idempotency key {call['idempotency_key']}{failed}")
    return Printout(found, [*text, f"{len(found)} in doubt"])


@app.command("show")
def show_(store: LedgerOptions, key: Key, tenant: Of = None) -> Printout:
    """Show a call's record in the ledger, and who resolved it.

    runtime-authz calls show ledger.db 4f6c…
    """
    with store.opened() as ledger:
        call = _shown(_found(store, ledger, tenant, key))
    said = call["resolved"]
    text = {**call, "resolved": said and f"by {said['author']}, {said['reason']}"}
    return Printout(call, lines({name: one_line(v) if isinstance(v, str) else v for name, v in text.items()}))


@app.command("resolve")
def resolve(
    store: LedgerOptions,
    key: Key,
    happened: Annotated[bool, Option("--happened/--did-not-happen", help="What became of it.")],
    by: By,
    reason: Reason,
    tenant: Of = None,
    audit: Audit = None,
) -> Printout:
    """Record whether a call in doubt happened.

    A call that happened never runs again. A call that did not happen may: enter its thread again, or order it anew.

    runtime-authz calls resolve ledger.db 4f6c… --did-not-happen --by user:carol --reason "not on the statement"
    """
    from langchain_runtime_authz.authz import RuntimeAuthz

    with store.opened() as ledger:
        tenant = _found(store, ledger, tenant, key).scope.tenant
        authz = RuntimeAuthz(ledger=ledger, tenant=tenant, audit=checked_log(audit, tenant))
        authz.resolve_call(key, happened=happened, by=by, reason=reason)
        call = _shown(ledger.doubts(tenant, key)[0])
    return Printout(call, f"{'happened' if happened else 'did not happen'}, says {by}")


def _tenants(store: LedgerOptions, tenant: str | None) -> list[str]:
    from langchain_runtime_authz.ledger.admin import tenants

    if tenant is not None:
        return [tenant]
    try:
        with store.administered(look=True) as admin:
            return tenants(admin)
    except LedgerError:
        echo("note: the application's role sees one tenant; name others by --tenant", err=True)
        return ["default"]


def _found(store: LedgerOptions, ledger: SqlLedger, tenant: str | None, key: str) -> InDoubtCall:
    for each in _tenants(store, tenant):
        for one in ledger.doubts(each, key):
            return one
    raise ConfigError(f"the ledger holds no call {key!r}" + (f" of tenant {tenant!r}" if tenant else ""))


def _shown(one: InDoubtCall) -> dict[str, Any]:
    about, row, scope = one.row.about or {}, one.row, one.scope
    names = ("args_digest", "decision_id", "run_id", "call_id", "idempotency_key", "resolved")
    call: dict[str, Any] = {"call": row.key, "state": row.state, "failed": "failed" in about}
    call |= {"tool": about.get("tool"), "permitted_at": iso_time(row.at)}
    place = {"tenant": scope.tenant, "subject": one.subject, "graph": scope.graph, "thread": scope.thread}
    return {**call, **place, **{name: about.get(name) for name in names}}
