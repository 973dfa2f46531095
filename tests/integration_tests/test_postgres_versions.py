"""The schema on PostgreSQL: up and down, two package versions on one database, and a database put back in time."""

from __future__ import annotations

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
from langchain_runtime_authz.ledger.postgres import PostgresLedger, administer
from langchain_runtime_authz.ledger.schema import HISTORY, SCHEMA, STATE
from langchain_runtime_authz.testing import StaticPDP
from tests.unit_tests.ledger.versions import Store, Versions


class Database(Store):
    """A schema of its own, which its owner brings up and down."""

    def __init__(self) -> None:
        self.dsn, self.schema = os.environ["LRA_POSTGRES_DSN"], f"t_{secrets.token_hex(4)}"

    def admin(self) -> Any:
        return administer(self.dsn, schema=self.schema, create=True)

    def ledger(self) -> PostgresLedger:
        return PostgresLedger(self.dsn, schema=self.schema, max_size=4)

    def owner(self, *statements: str) -> list[Any]:
        with psycopg.connect(self.dsn) as conn:
            conn.execute("SELECT set_config('search_path', %s, false)", (self.schema,))
            cursors = [conn.execute(one) for one in statements]
            return cursors[-1].fetchall() if cursors[-1].description else []


@pytest.fixture
def store() -> Iterator[Database]:
    made = Database()
    yield made
    with psycopg.connect(made.dsn) as conn:
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(made.schema)))


class TestPostgresVersions(Versions):
    """On a schema of a database."""


# --- a database that was put back in time ---


def restored(database: Database, copy: str) -> None:
    """Put every row back as it was."""
    for table in (*STATE, *HISTORY):
        database.owner(f"TRUNCATE {table}", f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {copy}.{table}")
    database.owner(f"DROP SCHEMA {copy} CASCADE")


def backup(database: Database) -> str:
    copy = f"{database.schema}_copy"
    tables = [f"CREATE TABLE {copy}.{table} AS SELECT * FROM {table}" for table in (*STATE, *HISTORY)]
    database.owner(f"CREATE SCHEMA {copy}", *tables)
    return copy


def test_a_restored_database_is_refused_and_lets_a_revoked_agent_in_without_the_chain(
    store: Database, tmp_path: Path
) -> None:
    """The harm: with a new audit file nothing tells that the revocation is gone."""
    store.bring(SCHEMA)

    def start(log: str) -> RuntimeAuthz:
        profiles = {"pay": ToolProfile(effect="pay", sink="external")}
        return RuntimeAuthz(
            pdp=StaticPDP(True), profiles=profiles, ledger=store.ledger(), audit=FileSink(tmp_path / log, content=True)
        )

    first = start("audit")
    with first.session(subject="alice", task="pay", thread="t") as session:
        assert session.decide("pay", {}).permit
    first.ledger.close()  # type: ignore[attr-defined]
    copy = backup(store)
    second = start("audit")
    second.revoke("t", graph="session")
    with pytest.raises(AuthzDenied):
        second.session(subject="alice", thread="t")
    second.ledger.close()  # type: ignore[attr-defined]
    restored(store, copy)
    with pytest.raises(LedgerError) as caught:
        start("audit")
    assert caught.value.code == Code.LEDGER_ROLLED_BACK
    unwarned = start("new")
    unwarned.session(subject="alice", thread="t").close()
    unwarned.ledger.close()  # type: ignore[attr-defined]
