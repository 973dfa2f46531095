"""The ledger contract, kept by the ledgers that need no service."""

from collections.abc import Callable
from pathlib import Path

import pytest

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger.base import LASTS, Lease, Ledger, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall, ResolveCall
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    EndLease,
    OpenThread,
    Reinstate,
    Revoke,
    TakeLease,
)
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.ledger_suite import DurableLedgerContract, LedgerContract
from tests.contract.ledger_rules import LedgerRules


class TestMemoryLedger(LedgerRules, LedgerContract):
    """The default, and the reference for every other store."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        return MemoryLedger(clock=clock)


class TestSqliteLedger(LedgerRules, DurableLedgerContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "ledger.db"

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """A new file, or the one that is."""
        return SqliteLedger(self.path, clock=clock)


def scope(name: str) -> Scope:
    return Scope("acme", "issuer", "graph", name)


def living(ledger: MemoryLedger, name: str) -> Lease:
    lease = Lease(f"jti-{name}", "run", ("root",), 1, 0, 2_000_000_000)
    ledger.commit(scope(name), None, [OpenThread("user:alice")])
    ledger.commit(scope(name), None, [TakeLease(lease)])
    return lease


def exists(ledger: MemoryLedger, name: str) -> bool:
    return ledger.load(scope(name), Query()).exists


def test_an_old_thread_without_a_live_lease_is_forgotten_first() -> None:
    """It then counts as never seen, and its jtis are dead."""
    ledger = MemoryLedger(max_threads=2)
    ended, live = living(ledger, "ended"), living(ledger, "live")
    ledger.commit(scope("ended"), None, [EndLease(ended.jti, "ended")])
    living(ledger, "new")
    assert [exists(ledger, n) for n in ("ended", "live", "new")] == [False, True, True]
    assert (ledger.status("acme", ended.jti), ledger.status("acme", live.jti)) == ("ended", "live")


def test_a_revoked_thread_and_one_in_doubt_are_never_forgotten() -> None:
    """Otherwise many new threads would reinstate it, or permit the same deed again. Once it has an outcome, they are."""
    ledger = MemoryLedger(max_threads=1)
    ledger.commit(scope("revoked"), None, [Revoke(())])
    ledger.commit(scope("doubt"), None, [OpenThread("user:alice"), ClaimCall("k", "jti", repeatable=False, deed="pay:x")])
    ledger.commit(scope("doubt"), None, [ConcludeCall("k", "unknown")])
    for number in range(5):
        living(ledger, str(number))
    assert ledger.load(scope("revoked"), Query(agent=("root",))).revoked
    assert [one.row.key for one in ledger.doubts("acme")] == ["k"]
    ledger.commit(scope("doubt"), None, [ResolveCall("k", happened=True, author="user:carol")])
    living(ledger, "more")
    assert not exists(ledger, "doubt")


def test_a_thread_is_kept_for_as_long_as_its_doubt_counts() -> None:
    """Then it is forgotten as others are, though nobody commits to it, and its doubt is not listed."""
    clock = FrozenClock()
    ledger = MemoryLedger(clock=clock, max_threads=10)
    claim = ClaimCall("k", "jti", repeatable=False, deed="pay:x")
    for number in range(200):
        ledger.commit(scope(str(number)), None, [OpenThread("user:alice"), claim, ConcludeCall("k", "unknown")])
    assert len(ledger.doubts("acme", "k")) == 200
    clock.tick(LASTS)
    for number in range(30):
        ledger.commit(scope(f"new {number}"), None, [OpenThread("user:alice")])
    assert ledger.doubts("acme") == []
    assert [exists(ledger, n) for n in ("0", "199", "new 19", "new 20", "new 29")] == [False, False, False, True, True]


def test_a_reinstated_thread_may_be_forgotten() -> None:
    """A revoked thread that was passed over while others were forgotten has its turn again."""
    ledger = MemoryLedger(max_threads=1)
    ledger.commit(scope("revoked"), None, [OpenThread("user:alice"), Revoke(())])
    for number in range(3):
        ledger.commit(scope(str(number)), None, [OpenThread("user:alice")])
    ledger.commit(scope("revoked"), None, [Reinstate(())])
    assert [exists(ledger, n) for n in ("2", "revoked")] == [False, True]
    ledger.commit(scope("new"), None, [OpenThread("user:alice")])
    assert [exists(ledger, n) for n in ("revoked", "new")] == [False, True]


def test_a_thread_is_not_forgotten_by_its_own_commit() -> None:
    """Where all others live, what a root entry has just pinned is still there for its lease."""
    ledger = MemoryLedger(max_threads=1)
    living(ledger, "live")
    ledger.commit(scope("new"), None, [OpenThread("user:bob"), AdvanceEpoch(1, (HumanText("d", "task"),), first=True)])
    seen = ledger.load(scope("new"), Query())
    assert (seen.exists, seen.subject, seen.task.text) == (True, "user:bob", "task")


@pytest.mark.parametrize("number", [0, -1])
def test_a_ledger_keeps_at_least_one_thread(number: int) -> None:
    """Else it would keep nothing at all."""
    with pytest.raises(ConfigError):
        MemoryLedger(max_threads=number)
