"""The schema on PostgreSQL: up and down, two package versions on one database, and a database put back in time."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from langchain_runtime_authz.ledger.postgres import PostgresLedger, administer
from langchain_runtime_authz.ledger.schema import SCHEMA
from tests.unit_tests.ledger.restoring import Place, Restoring
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


class DatabasePlace(Place):
    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder, self.where = database, folder, database.dsn
        self.named = ("--schema", database.schema)
        self.env = {**os.environ, "AUTHZ_SCHEMA": database.schema}

    def ledger(self) -> PostgresLedger:
        return self.database.ledger()


@pytest.fixture
def place(store: Database, tmp_path: Path) -> Place:
    store.bring(SCHEMA)
    return DatabasePlace(store, tmp_path)


class TestPostgresRestoring(Restoring):
    """By `pg_dump` and `pg_restore`."""
