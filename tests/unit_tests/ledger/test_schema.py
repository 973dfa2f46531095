"""The SQLite ledger's schema: migrations, two package versions on one ledger, and retention."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import admin as admin_module
from langchain_runtime_authz.ledger.admin import prune
from langchain_runtime_authz.ledger.base import Anchor, Committed, Query
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ResolveCall
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
from langchain_runtime_authz.ledger.sqlite import SqliteLedger, administer
from langchain_runtime_authz.testing import FrozenClock
from tests.cli import cli
from tests.unit_tests.ledger.versions import SCOPE, Store, Versions, lease

DAY = 86400


class SqliteStore(Store):
    def __init__(self, path: Path) -> None:
        self.path = path

    def admin(self) -> Any:
        return administer(self.path, create=True)

    def ledger(self) -> SqliteLedger:
        return SqliteLedger(self.path)

    def owner(self, *statements: str) -> list[Any]:
        with sqlite3.connect(self.path) as conn:
            rows = [conn.execute(one).fetchall() for one in statements][-1]
        conn.close()
        return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a ledger that does not exist yet."""
    return tmp_path / "ledger.db"


class TestSqliteVersions(Versions):
    @pytest.fixture
    def store(self, path: Path) -> SqliteStore:
        return SqliteStore(path)


def aged(path: Path, clock: FrozenClock) -> SqliteLedger:
    """A ledger in a file, by a clock of the test."""
    return SqliteLedger(path, clock=clock)


def pruned(path: Path, clock: FrozenClock, days: int) -> tuple[int, int]:
    """What retention takes, by the test's clock."""
    with administer(path) as admin:
        admin.now = clock  # type: ignore[method-assign]
        return tuple(prune(admin, days * DAY))[:2]


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
        assert pruned(path, clock, 200)[0] == 0 and pruned(path, clock, 90)[0] == 2
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
        assert isinstance(again, Committed) and again.epoch == 2
        assert ledger.load(scopes["ended"], Query(log=True)).log == (said,)


def test_much_is_forgotten_in_several_transactions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command goes on until nothing is left."""
    monkeypatch.setattr(admin_module, "BATCH", 2)
    with SqliteLedger(path, clock=lambda: 1_000_000_000.0) as ledger:
        for number in range(5):
            ledger.commit(SCOPE._replace(thread=str(number)), None, [OpenThread("user:alice")])
    found = cli("ledger", "prune", str(path), "--older-than", "90d")
    assert found.stdout.split() == ["threads", "5", "commits", "4", "in_doubt", "0"]


def test_a_call_in_doubt_keeps_its_thread(path: Path) -> None:
    """Nobody knows what became of it, however old it is. A read and an idempotent call may be repeated."""
    with SqliteLedger(path, clock=lambda: 1_000_000_000.0) as ledger:
        for thread, key, deed in (("kept", "k", "pay:x"), ("idempotent", "i", "pay:y"), ("read", "r", "")):
            ledger.commit(SCOPE._replace(thread=thread), None, [OpenThread("user:alice"), TakeLease(lease("j", 1_000_000_060))])
            about = {"args_digest": "d", "idempotent": thread == "idempotent"}
            claim = ClaimCall(key, "j", repeatable=False, subject="user:alice", deed=deed, about=about)
            ledger.commit(SCOPE._replace(thread=thread), None, [claim])
    prune = ["ledger", "prune", str(path), "--older-than", "90d"]
    assert cli(*prune).stdout.split() == ["threads", "2", "commits", "5", "in_doubt", "1"]
    with SqliteLedger(path) as ledger:
        (doubt,) = ledger.doubts("acme")
        ledger.commit(doubt.scope, None, [ResolveCall("k", happened=True, author="user:carol", reason="paid")])
    with administer(path) as admin:
        assert admin.run("SELECT count(*) FROM call") == [(1,)]


def test_a_silent_run_that_lapsed_counts_as_ended(path: Path) -> None:
    """Its process died, and nobody will end its lease."""
    clock = FrozenClock()
    with aged(path, clock) as ledger:
        ledger.commit(SCOPE, None, [OpenThread("user:alice"), TakeLease(lease("j", clock.now + 60))])
        clock.tick(100 * DAY)
        assert pruned(path, clock, 90)[0] == 1 and not ledger.load(SCOPE, Query()).exists


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
        assert pruned(path, clock, 90) == (2, 1) and ledger.holds("acme", anchors[0])
        assert ledger.holds("acme", anchors[1]) and ledger.holds("other", anchors[2])
        assert not ledger.holds("acme", anchors[1]._replace(nonce="another"))
        assert not ledger.holds("acme", anchors[2]._replace(position=anchors[2].position + 1))
        ledger.commit(SCOPE, None, [RecordStep()])
