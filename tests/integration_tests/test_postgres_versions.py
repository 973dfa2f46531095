"""The schema on PostgreSQL: up and down, two package versions on one database, and a database put back in time."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.errors import AuthzDenied, Code, LedgerError
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger.admin import migrate, version
from langchain_runtime_authz.ledger.base import Committed, Conflict, Lease, Query, Scope
from langchain_runtime_authz.ledger.calls import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, OpenThread, RecordStep, Revoke, TakeLease
from langchain_runtime_authz.ledger.postgres import PostgresLedger, administer
from langchain_runtime_authz.ledger.schema import HISTORY, MIGRATIONS, SCHEMA, STATE, Migration, Version
from langchain_runtime_authz.testing import StaticPDP

SCOPE = Scope("acme", "issuer", "graph", "thread")
# A version to come, which this package's code knows nothing of, and one that must not be read by it.
NEXT = Migration(
    SCHEMA + 1,
    1,
    "what comes next",
    ("ALTER TABLE call ADD COLUMN worth {d.real}", "CREATE TABLE grievance (tenant TEXT NOT NULL, body TEXT NOT NULL)"),
    ("DROP TABLE grievance", "ALTER TABLE call DROP COLUMN worth"),
)
BEYOND = dataclasses.replace(NEXT, version=SCHEMA + 2, min_reader=SCHEMA + 2, up=(), down=())
FUTURE = (*MIGRATIONS, NEXT, BEYOND)


class Database:
    """A schema of its own, which its owner brings up and down."""

    def __init__(self) -> None:
        self.dsn, self.schema = os.environ["LRA_POSTGRES_DSN"], f"t_{secrets.token_hex(4)}"

    def bring(self, target: int, migrations: tuple[Migration, ...] = FUTURE) -> Version:
        with administer(self.dsn, schema=self.schema, create=True) as admin:
            return migrate(admin, target, migrations)

    def ledger(self) -> PostgresLedger:
        return PostgresLedger(self.dsn, schema=self.schema, max_size=4)

    def owner(self) -> psycopg.Connection[Any]:
        conn = psycopg.connect(self.dsn)
        conn.execute("SELECT set_config('search_path', %s, false)", (self.schema,))
        return conn

    def code(self) -> str:
        with pytest.raises(LedgerError) as caught:
            self.ledger()
        return caught.value.code


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database()
    yield made
    with psycopg.connect(made.dsn) as conn:
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(made.schema)))


def use(ledger: PostgresLedger, key: str) -> None:
    """One call from its claim to its end."""
    assert isinstance(ledger.commit(SCOPE, None, [ClaimCall(key, "j", repeatable=False), RecordStep(call="pay")]), Committed)
    ledger.commit(SCOPE, None, [ConcludeCall(key, "done", "1")])


def test_a_ledger_goes_up_and_down_and_keeps_what_both_versions_know(database: Database) -> None:
    """Every step both ways; what a version had added goes with it, and nothing else."""
    for target in (*range(1, len(FUTURE) + 1), *range(len(FUTURE) - 1, SCHEMA - 1, -1)):
        assert database.bring(target).version == target
    query = Query(jti="j", calls=("k",), agent=("root", "bad"))
    with database.ledger() as ledger:
        lease = Lease("j", "run", ("root",), 1, 0, 2_000_000_000)
        ledger.commit(SCOPE, None, [OpenThread("user:alice"), Revoke(("root", "bad")), TakeLease(lease)])
        use(ledger, "k")
        before = ledger.load(SCOPE, query)
    for target in (1, SCHEMA, SCHEMA + 1, SCHEMA):
        database.bring(target)
    with database.ledger() as ledger:
        after = ledger.load(SCOPE, query)
    assert dataclasses.replace(after, now=before.now) == before
    assert before.revoked
    database.bring(0)
    with administer(database.dsn, schema=database.schema) as admin:
        assert admin.tables().isdisjoint({*STATE, *HISTORY})


def test_a_migration_is_done_or_not_at_all(database: Database) -> None:
    """One that fails half-way leaves the version that was."""
    database.bring(SCHEMA)
    bad = dataclasses.replace(NEXT, up=(*NEXT.up, "CREATE TABLE lease (twice INTEGER)"))
    with pytest.raises(LedgerError):
        database.bring(SCHEMA + 1, (*MIGRATIONS, bad))
    with administer(database.dsn, schema=database.schema) as admin:
        assert version(admin) == Version(SCHEMA, 1)
        assert "grievance" not in admin.tables()


def test_an_older_package_works_beside_a_newer_one(database: Database) -> None:
    """While the ledger goes up under it, on what it had open, and when it is started anew."""
    database.bring(SCHEMA)
    with database.ledger() as running:
        use(running, "before")
        database.bring(SCHEMA + 1)
        with database.owner() as newer:  # what only the newer one writes
            newer.execute("UPDATE call SET worth = 5")
            newer.execute("INSERT INTO grievance SELECT tenant, 'x' FROM thread")
        use(running, "after")
        with database.ledger() as started:
            refused = started.commit(SCOPE, None, [ClaimCall("before", "j", repeatable=False)])
            assert isinstance(refused, Conflict)
            assert refused.row is not None
            assert started.load(SCOPE, Query()).history.calls == {"pay": 2}
    with database.owner() as newer:
        assert newer.execute("SELECT worth FROM call WHERE worth IS NOT NULL").fetchall() == [(5.0,)]


def test_an_older_package_is_refused_where_it_would_do_harm(database: Database) -> None:
    """By the schema's `min_reader`: at once, also one that runs already; and it goes on after a downgrade."""
    database.bring(SCHEMA)
    with database.ledger() as running:
        use(running, "before")
        database.bring(SCHEMA + 2)
        assert database.code() == Code.LEDGER_SCHEMA
        for ask in (lambda: running.load(SCOPE, Query()), lambda: running.commit(SCOPE, None, [RecordStep()])):
            with pytest.raises(LedgerError) as caught:
                ask()
            assert caught.value.code == Code.LEDGER_SCHEMA
        database.bring(SCHEMA + 1)
        use(running, "after")


def test_a_newer_package_asks_for_a_migration(database: Database) -> None:
    """An older ledger is not changed unasked, and no way is guessed."""
    database.bring(1)
    assert database.code() == Code.LEDGER_SCHEMA
    database.bring(SCHEMA + 1)
    for target in (SCHEMA + 5, SCHEMA):
        with pytest.raises(LedgerError) as caught:
            database.bring(target, MIGRATIONS)
        assert caught.value.code == Code.LEDGER_SCHEMA
    database.bring(SCHEMA)
    database.ledger().close()


def test_fields_of_a_newer_version_are_read_past(database: Database) -> None:
    """A row's body may hold more than this version knows."""
    database.bring(SCHEMA)
    lease = Lease("j", "run", ("root",), 1, 0, 2_000_000_000)
    with database.ledger() as ledger:
        ledger.commit(SCOPE, None, [TakeLease(lease), AdvanceEpoch(1, (HumanText("d", "pay"),), first=True)])
        with database.owner() as newer:
            for table in ("lease", "said"):
                newer.execute(f"UPDATE {table} SET body = '{{\"yet_unknown\": [1],' || substr(body, 2)")
        seen = ledger.load(SCOPE, Query(jti="j", log=True))
        assert seen.lease == lease
        assert [t.text for t in seen.log] == ["pay"]


# --- a database that was put back in time ---


def restored(database: Database, copy: str) -> None:
    """What a restore does: every row as it was."""
    with database.owner() as conn:
        for table in (*STATE, *HISTORY):
            conn.execute(f"TRUNCATE {table}")
            conn.execute(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {copy}.{table}")
        conn.execute(f"DROP SCHEMA {copy} CASCADE")


def backup(database: Database) -> str:
    copy = f"{database.schema}_copy"
    with database.owner() as conn:
        conn.execute(f"CREATE SCHEMA {copy}")
        for table in (*STATE, *HISTORY):
            conn.execute(f"CREATE TABLE {copy}.{table} AS SELECT * FROM {table}")
    return copy


def test_a_restored_database_is_refused_and_lets_a_revoked_agent_in_without_the_chain(
    database: Database, tmp_path: Path
) -> None:
    """The harm: with a new audit file nothing tells that the revocation is gone."""
    database.bring(SCHEMA)

    def start(log: str) -> RuntimeAuthz:
        profiles = {"pay": ToolProfile(effect="pay", sink="external")}
        return RuntimeAuthz(
            pdp=StaticPDP(True), profiles=profiles, ledger=database.ledger(), audit=FileSink(tmp_path / log, content=True)
        )

    first = start("audit")
    with first.session(subject="alice", task="pay", thread="t") as session:
        assert session.decide("pay", {}).permit
    first.ledger.close()  # type: ignore[attr-defined]
    copy = backup(database)
    second = start("audit")
    second.revoke("t", graph="session")
    with pytest.raises(AuthzDenied):
        second.session(subject="alice", thread="t")
    second.ledger.close()  # type: ignore[attr-defined]
    restored(database, copy)
    with pytest.raises(LedgerError) as caught:
        start("audit")
    assert caught.value.code == Code.LEDGER_ROLLED_BACK
    unwarned = start("new")
    unwarned.session(subject="alice", thread="t").close()
    unwarned.ledger.close()  # type: ignore[attr-defined]
