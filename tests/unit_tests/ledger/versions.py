"""Migrations and two package versions on one ledger: the tests that each SQL store passes."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger.admin import migrate, version
from langchain_runtime_authz.ledger.base import Committed, Conflict, Lease, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, OpenThread, RecordStep, Revoke, TakeLease
from langchain_runtime_authz.ledger.schema import HISTORY, MIGRATIONS, SCHEMA, STATE, Migration, Version

SCOPE = Scope("acme", "issuer", "graph", "thread")
# A version to come, which this package's code knows nothing of: new columns and a new table.
NEXT = Migration(
    SCHEMA + 1, 1,
    (
        "ALTER TABLE lease ADD COLUMN attested INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE call ADD COLUMN worth {d.real}",
        "CREATE TABLE grievance (tenant TEXT NOT NULL, thread {d.bytes} NOT NULL, body TEXT NOT NULL)",
    ),
    ("DROP TABLE grievance", "ALTER TABLE call DROP COLUMN worth", "ALTER TABLE lease DROP COLUMN attested"),
)
BEYOND = NEXT._replace(version=SCHEMA + 2, min_reader=SCHEMA + 2, up=(), down=())
FUTURE = (*MIGRATIONS, NEXT, BEYOND)


def lease(jti: str, until: float = 2_000_000_000) -> Lease:
    return Lease(jti, "run", ("root",), 1, 0, int(until))


def use(ledger: Any, key: str) -> None:
    """Claim and conclude one call."""
    assert isinstance(ledger.commit(SCOPE, None, [ClaimCall(key, "j", repeatable=False), RecordStep(call="pay")]), Committed)
    ledger.commit(SCOPE, None, [ConcludeCall(key, "done", "1")])


class Store:
    """A store that its owner migrates: `admin` and `ledger` open it, `owner` runs SQL on it."""

    def admin(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def ledger(self) -> Any:
        raise NotImplementedError

    def owner(self, *statements: str) -> list[Any]:
        """Run statements in one transaction and return the rows of the last one."""
        raise NotImplementedError

    def bring(self, target: int, migrations: tuple[Migration, ...] = FUTURE) -> Version:
        with self.admin() as admin:
            return migrate(admin, target, migrations)


def refused(ask: Any) -> None:
    with pytest.raises(LedgerError, match=Code.LEDGER_SCHEMA):
        ask()


class Versions:
    """Inherit it, with a fixture `store`."""

    def test_a_ledger_goes_up_and_down_and_keeps_what_both_versions_know(self, store: Store) -> None:
        """A step up and down adds and removes its own parts and nothing else."""
        for target in (*range(1, len(FUTURE) + 1), *range(len(FUTURE) - 1, SCHEMA - 1, -1)):
            assert store.bring(target).version == target
        query = Query(jti="j", calls=("k",), agent=("root", "bad"))
        with store.ledger() as ledger:
            ledger.commit(SCOPE, None, [OpenThread("user:alice"), Revoke(("root", "bad")), TakeLease(lease("j"))])
            use(ledger, "k")
            before = ledger.load(SCOPE, query)
            before.calls = {key: row._replace(at=0.0) for key, row in before.calls.items()}  # unknown to version 1
        for target in (1, SCHEMA, SCHEMA + 1, SCHEMA):
            store.bring(target)
        with store.ledger() as ledger:
            after = ledger.load(SCOPE, query)
        assert replace(after, now=before.now) == before and before.revoked
        store.bring(0)
        with store.admin() as admin:
            assert admin.tables().isdisjoint({*STATE, *HISTORY})

    def test_a_migration_is_done_or_not_at_all(self, store: Store) -> None:
        """A migration that fails half-way leaves the version before it."""
        store.bring(SCHEMA)
        bad = NEXT._replace(up=(*NEXT.up, "CREATE TABLE lease (twice INTEGER)"))
        with pytest.raises(LedgerError):
            store.bring(SCHEMA + 1, (*MIGRATIONS, bad))
        with store.admin() as admin:
            assert version(admin) == Version(SCHEMA, MIGRATIONS[-1].min_reader)
            assert "grievance" not in admin.tables()

    def test_a_newer_package_asks_for_a_migration(self, store: Store) -> None:
        """An older ledger is not changed unasked, and an unknown version is neither reached nor left."""
        store.bring(1)
        refused(store.ledger)
        store.bring(SCHEMA + 1)
        for target in (SCHEMA + 5, SCHEMA):
            refused(lambda target=target: store.bring(target, MIGRATIONS))
        store.bring(SCHEMA)
        store.ledger().close()

    def test_an_older_package_works_beside_a_newer_one(self, store: Store) -> None:
        """While the ledger is migrated under it, with what it had open, and when it is started anew."""
        store.bring(SCHEMA)
        with store.ledger() as running:
            use(running, "before")
            store.bring(SCHEMA + 1)
            # Only the newer version writes these.
            store.owner("UPDATE call SET worth = 5", "INSERT INTO grievance SELECT tenant, thread, 'x' FROM thread")
            use(running, "after")
            with store.ledger() as started:
                repeated = started.commit(SCOPE, None, [ClaimCall("before", "j", repeatable=False)])
                assert isinstance(repeated, Conflict) and repeated.row is not None
                assert started.load(SCOPE, Query()).history.calls == {"pay": 2}
        assert store.owner("SELECT worth FROM call WHERE worth IS NOT NULL") == [(5.0,)]

    def test_an_older_package_is_refused_where_it_would_do_harm(self, store: Store) -> None:
        """By the schema's `min_reader`: at once, also if it runs already; a downgrade lets it go on."""
        store.bring(SCHEMA)
        with store.ledger() as running:
            use(running, "before")
            store.bring(SCHEMA + 2)
            refused(store.ledger)
            refused(lambda: running.load(SCOPE, Query()))
            refused(lambda: running.commit(SCOPE, None, [RecordStep()]))
            store.bring(SCHEMA + 1)
            use(running, "after")

    def test_fields_of_a_newer_version_are_read_past(self, store: Store) -> None:
        """A row's body may hold more than this version knows."""
        store.bring(SCHEMA)
        with store.ledger() as ledger:
            ledger.commit(SCOPE, None, [TakeLease(lease("j")), AdvanceEpoch(1, (HumanText("d", "pay"),), first=True)])
        for table in ("lease", "said"):
            store.owner(f"UPDATE {table} SET body = '{{\"yet_unknown\": [1],' || substr(body, 2)")
        with store.ledger() as ledger:
            seen = ledger.load(SCOPE, Query(jti="j", log=True))
            assert seen.lease == lease("j")
            assert [t.text for t in seen.log] == ["pay"]
