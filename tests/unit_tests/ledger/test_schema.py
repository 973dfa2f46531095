"""The SQL ledgers' schema: up and down, two package versions on one ledger, and retention."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from langchain_runtime_authz.cli import app
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import admin as admin_module
from langchain_runtime_authz.ledger.admin import migrate, prune, version
from langchain_runtime_authz.ledger.base import Anchor, Committed, Conflict, Lease, Query, Scope
from langchain_runtime_authz.ledger.calls import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    EndLease,
    OpenThread,
    RecordPlan,
    RecordStep,
    Reinstate,
    Revoke,
    TakeLease,
)
from langchain_runtime_authz.ledger.schema import HISTORY, MIGRATIONS, SCHEMA, STATE, Migration, Version
from langchain_runtime_authz.ledger.sqlite import SqliteLedger, administer
from langchain_runtime_authz.testing import FrozenClock

DAY = 86400
SCOPE = Scope("acme", "issuer", "graph", "thread")
# A version to come, which this package's code knows nothing of: new columns and a new table.
NEXT = Migration(
    SCHEMA + 1,
    1,
    "what comes next",
    (
        "ALTER TABLE lease ADD COLUMN attested INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE call ADD COLUMN worth {d.real}",
        "CREATE TABLE grievance (tenant TEXT NOT NULL, thread {d.bytes} NOT NULL, body TEXT NOT NULL)",
    ),
    (
        "DROP TABLE grievance",
        "ALTER TABLE call DROP COLUMN worth",
        "ALTER TABLE lease DROP COLUMN attested",
    ),
)
BEYOND = dataclasses.replace(NEXT, version=SCHEMA + 2, min_reader=SCHEMA + 2, up=(), down=())
FUTURE = (*MIGRATIONS, NEXT, BEYOND)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a ledger that is not there yet."""
    return tmp_path / "ledger.db"


def bring(path: Path, target: int) -> Version:
    """Up or down to a version."""
    with administer(path, create=True) as admin:
        return migrate(admin, target, FUTURE)


def lease(jti: str, until: float = 2_000_000_000) -> Lease:
    return Lease(jti, "run", ("root",), 1, 0, int(until))


def use(ledger: SqliteLedger, key: str) -> None:
    """One call from its claim to its end."""
    assert isinstance(ledger.commit(SCOPE, None, [ClaimCall(key, "j", repeatable=False), RecordStep(call="pay")]), Committed)
    ledger.commit(SCOPE, None, [ConcludeCall(key, "done", "1")])


def code(path: Path) -> str:
    with pytest.raises(LedgerError) as caught:
        SqliteLedger(path)
    return caught.value.code


# --- migrations ---


def test_a_ledger_goes_up_and_down_and_keeps_what_both_versions_know(path: Path) -> None:
    """Every step both ways; what a version had added goes with it, and nothing else."""
    for target in range(1, len(FUTURE) + 1):
        assert bring(path, target).version == target
    for target in range(len(FUTURE) - 1, SCHEMA - 1, -1):
        assert bring(path, target).version == target
    with SqliteLedger(path) as ledger:
        ledger.commit(SCOPE, None, [OpenThread("user:alice"), Revoke(("root", "bad")), TakeLease(lease("j"))])
        use(ledger, "k")
        before = ledger.load(SCOPE, Query(jti="j", calls=("k",), agent=("root", "bad")))
    for target in (1, SCHEMA, SCHEMA + 1, SCHEMA):
        bring(path, target)
    with SqliteLedger(path) as ledger:
        after = ledger.load(SCOPE, Query(jti="j", calls=("k",), agent=("root", "bad")))
    assert dataclasses.replace(after, now=before.now) == before
    assert before.revoked
    bring(path, 0)
    tables = {name for (name,) in sqlite3.connect(path).execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables.isdisjoint({*STATE, *HISTORY})


def test_a_migration_is_done_or_not_at_all(path: Path) -> None:
    """One that fails half-way leaves the version that was."""
    bring(path, SCHEMA)
    bad = dataclasses.replace(NEXT, up=(*NEXT.up, "CREATE TABLE lease (twice INTEGER)"))
    with pytest.raises(LedgerError), administer(path) as admin:
        migrate(admin, SCHEMA + 1, (*MIGRATIONS, bad))
    with administer(path) as admin:
        assert version(admin) == Version(SCHEMA, 1)
        assert "grievance" not in admin.tables()


def test_no_way_is_guessed(path: Path) -> None:
    """A version that this package does not know is neither reached nor left."""
    bring(path, SCHEMA + 1)
    for target in (SCHEMA + 5, SCHEMA):
        with pytest.raises(LedgerError) as caught, administer(path) as admin:
            migrate(admin, target)
        assert caught.value.code == Code.LEDGER_SCHEMA


# --- two package versions on one ledger ---


def test_an_older_package_works_beside_a_newer_one(path: Path) -> None:
    """While the ledger goes up under it, on what it had open, and when it is started anew."""
    with SqliteLedger(path) as running:
        use(running, "before")
        bring(path, SCHEMA + 1)
        newer = sqlite3.connect(path)
        with newer:  # what only the newer one writes
            newer.execute("UPDATE call SET worth = 5")
            newer.execute("INSERT INTO grievance SELECT tenant, thread, 'x' FROM thread")
        newer.close()
        use(running, "after")
        with SqliteLedger(path) as started:
            refused = started.commit(SCOPE, None, [ClaimCall("before", "j", repeatable=False)])
            assert isinstance(refused, Conflict)
            assert refused.row is not None
            assert started.load(SCOPE, Query()).history.calls == {"pay": 2}
    assert sqlite3.connect(path).execute("SELECT worth FROM call WHERE key = '\"before\"'").fetchall() == [(5.0,)]


def test_an_older_package_is_refused_where_it_would_do_harm(path: Path) -> None:
    """By the schema's `min_reader`: at once, also one that runs already; and it goes on after a downgrade."""
    with SqliteLedger(path) as running:
        use(running, "before")
        bring(path, SCHEMA + 2)
        assert code(path) == Code.LEDGER_SCHEMA
        for ask in (lambda: running.load(SCOPE, Query()), lambda: running.commit(SCOPE, None, [RecordStep()])):
            with pytest.raises(LedgerError) as caught:
                ask()
            assert caught.value.code == Code.LEDGER_SCHEMA
        bring(path, SCHEMA + 1)
        use(running, "after")


def test_a_newer_package_asks_for_a_migration(path: Path) -> None:
    """An older ledger is not changed unasked: others may be at work on it."""
    bring(path, 1)
    assert code(path) == Code.LEDGER_SCHEMA
    bring(path, SCHEMA)
    SqliteLedger(path).close()


def test_fields_of_a_newer_version_are_read_past(path: Path) -> None:
    """A row's body may hold more than this version knows."""
    with SqliteLedger(path) as ledger:
        ledger.commit(SCOPE, None, [TakeLease(lease("j")), AdvanceEpoch(1, (HumanText("d", "pay"),), first=True)])
    with sqlite3.connect(path) as conn:
        for table in ("lease", "said"):
            conn.execute(f"UPDATE {table} SET body = '{{\"yet_unknown\": [1],' || substr(body, 2)")
    with SqliteLedger(path) as ledger:
        seen = ledger.load(SCOPE, Query(jti="j", log=True))
        assert seen.lease == lease("j")
        assert [t.text for t in seen.log] == ["pay"]


# --- retention ---


def aged(path: Path, clock: FrozenClock) -> SqliteLedger:
    """A ledger in a file, by a clock of the test."""
    return SqliteLedger(path, clock=clock)


def pruned(path: Path, clock: FrozenClock, days: int) -> tuple[int, int]:
    """What retention takes, by the test's clock."""
    with administer(path) as admin:
        admin.now = clock  # type: ignore[method-assign]
        return tuple(prune(admin, days * DAY))


def test_only_what_ended_long_ago_is_forgotten(path: Path) -> None:
    """Not a thread that lives, one that is revoked, or one that was used since; and no revocation at all."""
    clock = FrozenClock()
    scopes = {name: SCOPE._replace(thread=name) for name in ("ended", "live", "revoked", "reinstated", "fresh")}
    plan = PlanRecord("m1", ("root",), 2, "model", (PlannedCall(0, "c", "pay", "d"),))
    with aged(path, clock) as ledger:
        for name, scope in scopes.items():
            ledger.commit(scope, None, [OpenThread("user:alice"), TakeLease(lease(name, clock.now + 365 * DAY))])
            ledger.commit(scope, None, [ClaimCall("k", name, repeatable=False, tokens=(f"token-{name}",))])
            if name != "live":
                ledger.commit(scope, None, [EndLease(name, "ended"), RecordPlan(plan), RecordStep(call="pay")])
        for name in ("revoked", "reinstated"):
            ledger.commit(scopes[name], None, [Revoke(("root", "bad"))])
        ledger.commit(scopes["reinstated"], None, [Reinstate(())])
        ledger.commit(scopes["ended"], None, [AdvanceEpoch(1, (HumanText("d", "a secret"),))])
        clock.tick(100 * DAY)
        ledger.commit(scopes["fresh"], None, [RecordStep()])
        assert pruned(path, clock, 200)[0] == 0
        assert pruned(path, clock, 90)[0] == 2
        seen = {n: ledger.load(s, Query(calls=("k",), plan=(("root",), "m1"), agent=("root", "bad"))) for n, s in scopes.items()}
        assert {n for n, s in seen.items() if s.exists} == {"live", "revoked", "fresh"}
        assert [n for n, s in seen.items() if s.revoked] == ["revoked"]
        for name in ("ended", "reinstated"):
            assert (seen[name].calls, seen[name].plan, seen[name].history.steps) == ({}, None, 0)
            assert ledger.status("acme", f"token-{name}") == ledger.status("acme", name) == "unknown"
        assert ledger.status("acme", "live") == "live"
        # INVARIANT: an epoch never decreases, and a forgotten thread may be opened like a new one.
        assert (seen["ended"].epoch, seen["ended"].task.text) == (2, "")
        said = HumanText("e", "again")
        again = ledger.commit(scopes["ended"], None, [OpenThread("user:bob"), AdvanceEpoch(2, (said,), first=True)])
        assert isinstance(again, Committed)
        assert again.epoch == 2
        assert ledger.load(scopes["ended"], Query(log=True)).log == (said,)


def test_much_is_forgotten_in_several_transactions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command goes on until nothing is left."""
    monkeypatch.setattr(admin_module, "BATCH", 2)
    monkeypatch.setattr(admin_module.prune, "__defaults__", (2,))
    with SqliteLedger(path, clock=lambda: 1_000_000_000.0) as ledger:
        for number in range(5):
            ledger.commit(SCOPE._replace(thread=str(number)), None, [OpenThread("user:alice")])
    found = CliRunner().invoke(app, ["ledger", "prune", str(path), "--older-than", "90d"])
    assert found.stdout.split() == ["threads", "5", "commits", "4"]


def test_a_silent_run_that_lapsed_counts_as_ended(path: Path) -> None:
    """Its process died, and nobody will end its lease."""
    clock = FrozenClock()
    with aged(path, clock) as ledger:
        ledger.commit(SCOPE, None, [OpenThread("user:alice"), TakeLease(lease("j", clock.now + 60))])
        clock.tick(100 * DAY)
        assert pruned(path, clock, 90)[0] == 1
        assert not ledger.load(SCOPE, Query()).exists


def test_the_journal_keeps_what_tells_an_older_copy(path: Path) -> None:
    """Anchors that retention took count as held; those it never had do not, and each tenant's newest stays."""
    clock = FrozenClock()
    with aged(path, clock) as ledger:
        anchors: list[Anchor] = []
        for tenant in ("acme", "acme", "other"):
            ledger.commit(SCOPE._replace(tenant=tenant), None, [RecordStep()])
            found = ledger.anchor(tenant)
            assert found is not None
            anchors.append(found)
        clock.tick(100 * DAY)
        assert pruned(path, clock, 90) == (2, 1)
        assert ledger.holds("acme", anchors[0])
        assert ledger.holds("acme", anchors[1])
        assert ledger.holds("other", anchors[2])
        assert not ledger.holds("acme", anchors[1]._replace(nonce="another"))
        assert not ledger.holds("acme", anchors[2]._replace(position=anchors[2].position + 1))
        ledger.commit(SCOPE, None, [RecordStep()])
