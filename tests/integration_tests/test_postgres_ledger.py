"""The ledger contract on PostgreSQL, and what is that store's own: roles, tenants, its clock, its failures."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest

from langchain_runtime_authz.ledger.admin import migrate
from langchain_runtime_authz.ledger.base import Ledger
from langchain_runtime_authz.ledger.postgres import PostgresLedger, administer
from langchain_runtime_authz.testing.ledger_suite import DurableLedgerContract


@pytest.fixture(scope="session")
def dsn() -> str:
    """Of the private cluster that `.ci/services` starts."""
    return os.environ["LRA_POSTGRES_DSN"]


@pytest.fixture(scope="session")
def schema(dsn: str) -> Iterator[str]:
    """A schema for this process alone."""
    name = f"t_{secrets.token_hex(4)}"
    with administer(dsn, schema=name, create=True) as admin:
        migrate(admin)
    yield name
    with psycopg.connect(dsn) as conn:
        conn.execute(f"DROP SCHEMA {name} CASCADE")


class TestPostgresLedger(DurableLedgerContract):
    """One database, which all of these tests share."""

    @pytest.fixture(autouse=True)
    def _database(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """On the schema that is."""
        return PostgresLedger(self.dsn, schema=self.schema, clock=clock)
