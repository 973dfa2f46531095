"""`runtime-authz ledger`: make, look at, tidy and restore a ledger."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Option

from langchain_runtime_authz._display import one_line
from langchain_runtime_authz.cli._app import App, Printout, lines
from langchain_runtime_authz.cli._ledger_logs import read_logs
from langchain_runtime_authz.cli._ledger_options import By, LedgerOptions, Reason
from langchain_runtime_authz.errors import ConfigError, LedgerError
from langchain_runtime_authz.ledger.schema import SCHEMA

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.admin import Admin
    from langchain_runtime_authz.ledger.schema import Version

TRIES: Final = 4  # of a migration or downgrade, which is cancelled if it blocks commits
_UNITS: Final = {"h": 3600, "d": 86400, "w": 7 * 86400}

app = App(
    help="""Make, look at and tidy a ledger.

    LEDGER is the path of an SQLite file, or a connection string of PostgreSQL (a URL, or `host=… dbname=…`) for the
    role that owns the schema. The application needs a role that is only a member of --role.""",
)

Yes = Annotated[bool, Option("--yes", help="Do not ask.")]


@app.command("status")
def status(store: LedgerOptions) -> Printout:
    """Show the version of a ledger's schema, and whether this package can work on it.

    Packages for schema versions below `oldest` cannot use this ledger. Exit code 1 if this package cannot use it, or if
    commits fail. Then migrate the ledger, install the package that it needs, or mend the disk or the access rights.

    runtime-authz ledger status ledger.db
    """
    from langchain_runtime_authz.ledger.admin import version

    with store.administered(look=True) as admin:
        found = version(admin)
    result = "usable"
    try:
        with store.opened() as ledger:
            ledger.check("default")
    except LedgerError as exc:
        result = f"unusable: {exc}"
    return Printout({**_versions(found), "package": SCHEMA, "result": result}, finding=result != "usable")


@app.command("migrate")
def migrate(store: LedgerOptions) -> Printout:
    """Migrate a ledger's schema to this package, or create it.

    The migration is one transaction. New versions only add to the schema, so processes of an older package continue
    to work, unless their version is below `oldest`. With PostgreSQL this also creates the schema and the role. The
    role may add to the history, but not change or delete it.

    runtime-authz ledger migrate ledger.db
    runtime-authz ledger migrate "postgresql://owner@db/authz" --role payments_agent
    """
    from langchain_runtime_authz.ledger import admin as do

    return _changed(store, do.migrate, create=True)


@app.command("downgrade")
def downgrade(
    store: LedgerOptions,
    to: Annotated[int, Option(min=0, metavar="VERSION", help="The version to go back to; 0 removes all.")],
    forget: Annotated[bool, Option("--forget-doubts", help="Also forget calls in doubt: they may run again.")] = False,
    yes: Yes = False,
    as_json: bool = False,
) -> Printout:
    """Go back to an earlier schema version. Tables and rows of later ones are dropped.

    First stop the processes of packages that need those versions: the ledger refuses them afterwards. While calls are
    in doubt, the command needs `--forget-doubts`, because an earlier version forgets such calls.

    runtime-authz ledger downgrade ledger.db --to 1
    """
    from langchain_runtime_authz.ledger import admin as do

    def down(admin: Admin) -> Version:
        nonlocal yes
        found = do.version(admin)
        if to > found.version:
            raise ConfigError(f"the ledger has version {found.version}; `migrate` goes up")
        if to < found.version:
            if (doubts := do.in_doubt(admin)) and not forget:
                why = f"{doubts} calls in doubt would be forgotten, and made again unasked"
                raise ConfigError(f"{why}; first resolve them with `runtime-authz calls resolve`")
            _confirm(f"Drop what versions {to + 1} to {found.version} hold?", yes, as_json)
            yes = True
        return do.migrate(admin, to)

    return _changed(store, down)


@app.command("prune")
def prune(
    store: LedgerOptions,
    older_than: Annotated[str, Option("--older-than", metavar="AGE", help="Like 36h, 90d or 12w.")],
) -> Printout:
    """Forget the histories of threads that ended, and nothing else.

    A thread is not forgotten if it has a live lease or a call in doubt, is revoked, or was used within AGE. `in_doubt`
    counts old threads that stay only for a call in doubt: resolve the call (`runtime-authz calls`). A forgotten thread
    counts as new, and its old calls as unplanned. So do not forget threads that the checkpointer still holds.

    runtime-authz ledger prune ledger.db --older-than 90d
    """
    from langchain_runtime_authz.ledger import admin as do

    age = re.fullmatch(r"(\d{1,6})([hdw])", older_than)
    if age is None:
        raise typer.BadParameter("must be like 36h, 90d or 12w", param_hint="--older-than")
    threads, commits, more = 0, 0, True
    while more:  # in several short transactions
        with store.administered() as admin:
            gone = do.prune(admin, int(age[1]) * _UNITS[age[2]])
        threads, commits, more = threads + gone.threads, commits + gone.commits, gone.threads == do.BATCH
    return Printout({"threads": threads, "commits": commits, "in_doubt": gone.in_doubt})


@app.command("clock")
def clock(store: LedgerOptions, yes: Yes = False, as_json: bool = False) -> Printout:
    """Continue with a ledger whose clock ran ahead and was corrected.

    A ledger's time never goes back. The ledger denies (`ledger_clock`) until the clock reaches the latest time in it.
    This command accepts the clock as it is. It ends every live lease, and voids questions and approvals, because their
    expiry was set by the wrong clock. Afterwards restart the ledger's processes.

    runtime-authz ledger clock ledger.db
    """
    from langchain_runtime_authz.ledger import admin as do

    with store.administered() as admin:
        _confirm("Is the clock correct, and may every run end?", yes, as_json)
        ended = do.accept_clock(admin)
    return Printout({"leases": ended}, f"leases   {ended} ended")


@app.command("restored")
def restored(
    store: LedgerOptions,
    audit: Annotated[list[Path], Option("--audit", metavar="FILE", help="A log of the application; name each one.")],
    by: By,
    reason: Reason,
    yes: Yes = False,
    as_json: bool = False,
) -> Printout:
    """Continue with a ledger from a backup. Stop the application first.

    A restored ledger is refused (`ledger_rolled_back`), since it has lost what happened after the backup. This command
    ends every lease and moves each thread to its next epoch, so that earlier orders, plans and approvals are void. It
    revokes again what the logs say is revoked, and records the restore in the logs. It lists the calls that the logs
    show without an outcome, and puts them into the ledger as calls in doubt: the same effect on the same target asks an
    approver, until `runtime-authz calls resolve` records what became of the call. The record of an `unrecorded` call
    lacks effect and target, so nothing asks: find out whether the call happened before anybody orders it again.

    runtime-authz ledger restored ledger.db --audit audit.jsonl --by user:carol --reason "disk failed"
    """
    from langchain_runtime_authz.audit.record import run_record
    from langchain_runtime_authz.audit.sinks import FileSink
    from langchain_runtime_authz.ledger import admin as do
    from langchain_runtime_authz.ledger.base import Committed, Query, Scope
    from langchain_runtime_authz.ledger.call_changes import DoubtCall
    from langchain_runtime_authz.ledger.changes import OpenThread, Revoke
    from langchain_runtime_authz.pep.calls_in_doubt import author_and_reason
    from langchain_runtime_authz.pep.run import anchor_record

    said = author_and_reason(by, reason)
    with ExitStack() as stack:
        _confirm("Is the application stopped, and is there no newer copy of the ledger?", yes, as_json)
        revoked, unfinished = read_logs(audit)
        sinks = [stack.enter_context(closing(FileSink(file))) for file in audit]  # before anything changes
        with store.administered() as admin:
            threads, tenants = do.accept_restore(admin)
        ledger = stack.enter_context(store.opened())
        for scope, agent in revoked:
            ledger.commit(scope, None, [Revoke(agent)])
        for call, doubt in unfinished:
            changes = [OpenThread(doubt.subject), DoubtCall(doubt.row)] if doubt is not None else []
            if doubt is not None and isinstance(ledger.commit(doubt.scope, None, changes), Committed):
                call["call"] = doubt.row.key
        detail = {**said, "threads": threads, "revoked": len(revoked)}
        lost = [doubt.scope.tenant for _, doubt in unfinished if doubt is not None]
        for tenant in sorted({*tenants, *lost, *(scope.tenant for scope, _ in revoked)}):
            now = ledger.load(Scope(tenant, "", "", ""), Query()).now
            for sink in sinks:
                sink.write(anchor_record(run_record(now=now, event="restored", detail=detail), ledger, tenant))
    place = "{tool} at {permitted_at}, {tenant}: {graph}/{thread}, decision {decision_id}"
    calls = [one for one, _ in unfinished]
    named = [f"{'in doubt' if one['call'] else 'unrecorded'}: {one_line(place.format(**one))}" for one in calls]
    found = {"threads": threads, "revoked": len(revoked)}
    return Printout({**found, "unfinished": calls}, [*lines(found), *named])


def _confirm(question: str, yes: bool, as_json: bool) -> None:
    if as_json and not yes:
        raise ConfigError("`--json` asks nothing; give `--yes`")
    if not yes:
        typer.confirm(question, abort=True)


def _changed(store: LedgerOptions, change: Callable[[Admin], Version], *, create: bool = False) -> Printout:
    """Change the schema. Retry if the change was cancelled in favour of a commit."""
    from langchain_runtime_authz.ledger.sql_ledger import retry_timeouts

    def once() -> Version:
        with store.administered(create=create) as admin:
            return change(admin)

    return Printout(_versions(retry_timeouts(TRIES, once)))


def _versions(found: Version) -> dict[str, Any]:
    return {"schema": found.version or "none", "oldest": found.min_reader}
