"""Migrate, prune and repair a SQL ledger.

`sqlite.administer(path)` and `postgres.administer(dsn)` open a ledger for these operations, in one transaction. Each
operation raises `ledger_schema` if this package does not know the ledger's tables.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.ledger.base import LASTS
from langchain_runtime_authz.ledger.schema import (
    HISTORY,
    MIGRATIONS,
    SCHEMA,
    STATE,
    Dialect,
    Migration,
    Version,
    check_schema,
)
from langchain_runtime_authz.ledger.sql_rows import Row

DOUBTS: Final = 3  # the first version that records calls in doubt
BATCH: Final = 500  # maximum number of threads that one transaction deletes
_OF: Final = "tenant = ? AND thread = ?"
_SAME: Final = "{0}.tenant = t.tenant AND {0}.thread = t.thread"
_OPEN: Final = (  # an old call is not in doubt if `about` says that it failed, or that it is idempotent
    "c.state IN ('claimed', 'unknown') AND c.deed <> '' AND (c.at > ? OR c.about IS NULL OR"
    """ replace(replace(c.about, '"failed":true', ''), '"idempotent":true', '') = c.about)"""
)
_DOUBT: Final = f"EXISTS (SELECT 1 FROM call c WHERE {_SAME.format('c')} AND {_OPEN})"
_ENDED: Final = (
    f"SELECT tenant, thread FROM thread t WHERE at < ? AND NOT {_DOUBT} AND NOT EXISTS"
    f" (SELECT 1 FROM lease l WHERE {_SAME.format('l')} AND l.state = 'live' AND l.expires > ?) AND NOT EXISTS"
    f" (SELECT 1 FROM revocation r WHERE {_SAME.format('r')} AND r.lifted = 0 AND NOT EXISTS"
    f" (SELECT 1 FROM revocation s WHERE {_SAME.format('s')} AND s.agent = r.agent AND s.lifted = 1 AND s.seq > r.seq))"
    " ORDER BY at LIMIT ?"
)


class Admin(Protocol):
    """A ledger opened by its owner, inside one transaction."""

    dialect: Dialect

    def run(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        """Run a statement and return its rows."""

    def tables(self) -> set[str]:
        """Return the names of the ledger's tables."""

    def alone(self) -> None:
        """Keep other transactions out until the end of this one."""

    def secured(self) -> None:
        """Give the application's role its rights on new and changed tables."""

    def now(self) -> float: ...


class Pruned(NamedTuple):
    """Numbers: deleted threads, deleted commits, old threads kept for a call in doubt."""

    threads: int
    commits: int
    in_doubt: int


def version(admin: Admin) -> Version:
    """Return the ledger's schema version."""
    tables = admin.tables()
    if not {"meta", "migration"} <= tables:
        if tables:
            raise LedgerError(Code.LEDGER_SCHEMA, "it holds the tables of something else")
        return Version(0, 0)
    ((found, reader),) = admin.run("SELECT max(version), max(min_reader) FROM migration")
    if not isinstance(found or 0, int) or not isinstance(reader or 0, int):
        raise LedgerError(Code.LEDGER_SCHEMA, "it holds a table `migration` of something else")
    made = re.findall(r"CREATE TABLE (\w+)", str(MIGRATIONS[: found or 0]))
    if missing := sorted({*made} - tables):
        raise LedgerError(Code.LEDGER_SCHEMA, f"it lacks the table {missing[0]}; restore it from a backup")
    return Version(found or 0, reader or 0)


def migrate(admin: Admin, target: int = SCHEMA, migrations: tuple[Migration, ...] = MIGRATIONS) -> Version:
    """Migrate to version `target`. A downgrade drops newer tables and columns."""
    found = version(admin)
    if not admin.tables():
        admin.run("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        columns = f"version INTEGER PRIMARY KEY, min_reader INTEGER NOT NULL, at {admin.dialect.real} NOT NULL"
        admin.run(f"CREATE TABLE migration ({columns})")
        admin.run("INSERT INTO meta (name, value) VALUES ('ledger', ?)", (secrets.token_hex(16),))
    up = target >= found.version
    way = range(found.version + 1, target + 1) if up else range(found.version, target, -1)
    known = {m.version: m for m in migrations}
    if missing := [v for v in way if v not in known]:
        raise LedgerError(Code.LEDGER_SCHEMA, f"this package does not know version {missing[0]}")
    if way:
        admin.alone()
    for step in (known[v] for v in way):
        for sql in step.up if up else step.down:
            admin.run(sql.format(d=admin.dialect))
        if up:
            entry = (step.version, step.min_reader, admin.now())
            admin.run("INSERT INTO migration (version, min_reader, at) VALUES (?, ?, ?)", entry)
        else:
            admin.run("DELETE FROM migration WHERE version = ?", (step.version,))
    admin.secured()
    return version(admin)


def prune(admin: Admin, older_than: float) -> Pruned:
    """Forget threads and journal entries older than `older_than` seconds.

    The age of a thread counts from its last commit. At most `BATCH` threads are forgotten, to keep the transaction
    short. Threads with a live lease, a revocation or a call in doubt are kept. A forgotten thread counts as new, except
    that its epoch stays, because an epoch never decreases. Its old calls count as unplanned, so they are denied. Each
    tenant's newest commit stays in the journal.
    """
    check_schema(version(admin))
    now = admin.now()
    until = now - older_than
    forgotten = 0
    young = now - LASTS  # a call that failed before this time makes no other call ask any more
    for of in admin.run(_ENDED, (until, young, now, BATCH)):
        # Skip a thread whose `at` a commit has renewed since the selection.
        if not admin.run(f"SELECT 1 FROM thread WHERE {_OF} AND at < ?{admin.dialect.lock}", (*of, until)):
            continue
        ((epoch,),) = admin.run(f"SELECT coalesce(max(epoch), 1) FROM epoch WHERE {_OF}", of)
        for table in (*STATE, *HISTORY):
            if table not in ("revocation", "journal"):
                admin.run(f"DELETE FROM {table} WHERE {_OF}", of)
        if epoch > 1:
            entry = (*of, epoch, "", json.dumps({}), now)
            admin.run("INSERT INTO epoch (tenant, thread, epoch, digest, body, at) VALUES (?, ?, ?, ?, ?, ?)", entry)
        forgotten += 1
    newest = "SELECT max(position) FROM journal GROUP BY tenant"
    gone = admin.run(f"DELETE FROM journal WHERE at < ? AND position NOT IN ({newest}) RETURNING position", (until,))
    if gone:
        through = str(max(position for (position,) in gone))
        sql = "INSERT INTO meta (name, value) VALUES ('pruned', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        admin.run(sql, (through,))
    ((in_doubt,),) = admin.run(f"SELECT count(*) FROM thread t WHERE at < ? AND {_DOUBT}", (until, young))
    return Pruned(forgotten, len(gone), in_doubt)


def in_doubt(admin: Admin) -> int:
    """Return the number of calls that began and have no known outcome."""
    sql, young = f"SELECT count(*) FROM call c WHERE {_OPEN}", admin.now() - LASTS
    return int(admin.run(sql, (young,))[0][0]) if version(admin).version >= DOUBTS else 0


def tenants(admin: Admin) -> list[str]:
    """Return tenants with side effects, as far as the database role may see them."""
    check_schema(version(admin))
    return [tenant for (tenant,) in admin.run("SELECT DISTINCT tenant FROM call WHERE deed <> '' ORDER BY tenant")]


def accept_clock(admin: Admin) -> int:
    """Accept a clock behind the last commit. Return the number of ended leases.

    A ledger denies while its clock is behind its last commit, like after the correction of a fast clock. This lifts
    that. All live leases, questions and approvals end, so that none lives longer than its term.
    """
    return _renewed(admin)[0]


def accept_restore(admin: Admin) -> tuple[int, list[str]]:
    """Accept a restored backup. Return the number of threads, and their tenants.

    Claims, used orders and approvers' answers since the backup are lost. So each thread moves to a new epoch without
    orders, plans or approvals, and all live leases end.
    """
    tenants, now = _renewed(admin)[1], admin.now()
    latest = f"SELECT max(epoch) FROM epoch e WHERE {_SAME.format('e')}"
    sql = (
        "INSERT INTO epoch (tenant, thread, epoch, digest, body, at)"
        f" SELECT t.tenant, t.thread, coalesce(({latest}), 1) + 1, '', ?, ? FROM thread t RETURNING epoch"
    )
    threads = admin.run(sql, (json.dumps({}), now))
    return len(threads), tenants


def _renewed(admin: Admin) -> tuple[int, list[str]]:
    """End live leases, questions and approvals. Return lease count and tenants."""
    check_schema(version(admin))
    # A commit that has read but not yet written then starts again (`Tx.keep`), even if a transaction number is reused.
    admin.run("UPDATE thread SET at = at + ?", ((1 + secrets.randbelow(10**6)) / 1e6,))
    admin.run("DELETE FROM approval WHERE state IN ('asked', 'approved')")
    ended = admin.run("UPDATE lease SET state = 'ended' WHERE state = 'live' RETURNING jti")
    tenants = [tenant for (tenant,) in admin.run("SELECT DISTINCT tenant FROM journal ORDER BY tenant")]
    for tenant in tenants:
        entry = (tenant, b"", secrets.token_hex(16), admin.now())
        admin.run("INSERT INTO journal (tenant, thread, nonce, at) VALUES (?, ?, ?, ?)", entry)
    return len(ended), tenants
