"""A SQL ledger remembers the threads that it began. What it remembers holds only while the file says that nobody else was there."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger import thread_cache
from langchain_runtime_authz.ledger.admin import accept_clock, prune
from langchain_runtime_authz.ledger.base import Anchor, Committed, Conflict, Guard, Lease, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall, SpendBudget
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, OpenThread, RecordStep, Revoke, TakeLease
from langchain_runtime_authz.ledger.sql_rows import Fetch
from langchain_runtime_authz.ledger.sqlite import SqliteLedger, administer
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

SCOPE = Scope("acme", "issuer", "graph", "thread")


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: FrozenClock) -> Iterator[SqliteLedger]:
    """It knows a thread with a live lease and a counter."""
    with SqliteLedger(tmp_path / "ledger.db", clock=clock) as made:
        now = int(clock())
        lease = Lease("jti", "run", ("root",), 1, now, now + 60)
        made.commit(SCOPE, None, [OpenThread("user:alice"), TakeLease(lease), SpendBudget("counter", 5)])
        yield made


def test_doubts_are_read_again_only_if_somebody_committed(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim takes those that its load read, unless another commit of the tenant may have added one."""
    about = {"args_digest": "d", "process": "p1", "entry": "e1"}

    def claim(key: str, **more: Any) -> ClaimCall:
        return ClaimCall(key, "jti", False, deed="pay:x", about={**about, **more}, subject="user:alice")

    wanted = Query(jti="jti", calls=("k",), deeds=("pay:x",))
    assert ledger.load(SCOPE, wanted).doubts == ()
    with SqliteLedger(ledger.path, clock=ledger._clock or FrozenClock()) as theirs:
        assert isinstance(theirs.commit(SCOPE, Guard("jti", 1), [claim("other", process="p2", entry="e2")]), Committed)
    assert ledger.commit(SCOPE, Guard("jti", 1), [claim("k")]) == Conflict(Code.IN_DOUBT)
    ledger.commit(SCOPE, None, [ConcludeCall("other", "done", '"paid"')])
    new, now = Scope("acme", "issuer", "graph", "new"), int(time.time())
    ledger.commit(new, None, [OpenThread("user:alice"), TakeLease(Lease("jti", "run", ("root",), 1, now, now + 60))])
    assert ledger.load(new, wanted).doubts == ()
    monkeypatch.setattr(ledger, "_read_rows", None)
    assert isinstance(ledger.commit(new, Guard("jti", 1), [claim("k")]), Committed)


def test_a_commit_of_another_history_at_the_same_place_is_noticed(ledger: SqliteLedger) -> None:
    """A restored file may have as many commits as the one that was lost."""
    with sqlite3.connect(ledger.path) as conn:
        conn.execute("UPDATE journal SET nonce = 'other'")
        conn.execute("UPDATE budget SET spent = 1000")
    assert ledger.load(SCOPE, Query(counters=("counter",))).counters == {"counter": 1000}
    refused = ledger.commit(SCOPE, Guard("jti", 1), [SpendBudget("counter", 5)])
    assert refused == Conflict(Code.BUDGET_EXHAUSTED)
    ledger.commit(Scope("acme", "issuer", "graph", "another"), None, [OpenThread("user:bob")])
    assert ledger.commit(SCOPE, Guard("jti", 1), [SpendBudget("counter", 5)]) == refused


def test_a_forgotten_thread_is_not_remembered(ledger: SqliteLedger, clock: FrozenClock) -> None:
    """Retention leaves the newest entry of the journal as it is."""
    ledger.commit(SCOPE, None, [AdvanceEpoch(1)])
    clock.tick(10_000)
    with administer(ledger.path) as admin:
        assert prune(admin, -1e9).threads == 1
    assert ledger.commit(SCOPE, Guard("jti", 2), [RecordStep()]) == Conflict(Code.LEASE_ENDED)
    seen = ledger.load(SCOPE, Query(jti="jti"))
    assert (seen.exists, seen.lease, seen.epoch) == (False, None, 2)
    with SqliteLedger(ledger.path, clock=clock) as theirs:
        theirs.commit(SCOPE, None, [OpenThread("user:bob")])
    assert ledger.commit(SCOPE, None, [OpenThread("user:alice")]) == Conflict(Code.SUBJECT_MISMATCH)


def test_an_operator_ends_leases(ledger: SqliteLedger, clock: FrozenClock) -> None:
    clock.tick(time.time() - clock() + 1)
    with administer(ledger.path) as admin:
        assert accept_clock(admin) == 1
    assert ledger.commit(SCOPE, Guard("jti", 1), [RecordStep()]) == Conflict(Code.LEASE_ENDED)


def test_results_are_not_remembered_and_are_read_again(ledger: SqliteLedger) -> None:
    """They may be long. The call does not run twice."""
    ledger.commit(SCOPE, Guard("jti", 1), [ClaimCall("k", "jti", repeatable=False)])
    ledger.commit(SCOPE, None, [ConcludeCall("k", "done", '"paid"')])
    (held,) = ledger._cached.values()
    assert (held.thread.calls, held.without) == ({}, {"k"})
    assert ledger.load(SCOPE, Query(calls=("k",))).calls["k"].result == '"paid"'
    refused = ledger.commit(SCOPE, Guard("jti", 1), [ClaimCall("k", "jti", repeatable=False)])
    assert isinstance(refused, Conflict) and refused.row.result == '"paid"'


def test_a_long_thread_is_read_as_before(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_cache, "MAX_ROWS", 3)
    for number in range(4):
        assert isinstance(ledger.commit(SCOPE, Guard("jti", 1), [SpendBudget(f"c{number}", 1)]), Committed)
    assert not ledger._cached
    assert ledger.commit(SCOPE, Guard("jti", 1), [SpendBudget("c0", 1)]) == Conflict(Code.BUDGET_EXHAUSTED)
    assert ledger.load(SCOPE, Query(counters=("c1",))).counters == {"c1": 1}


def test_a_fork_while_another_thread_looks_something_up_goes_on(ledger: SqliteLedger) -> None:
    """The lock that it held is held for ever in the child."""
    with ledger._lock:
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            os._exit(0 if ledger.load(SCOPE, Query()).exists else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_commit_that_others_follow_before_it_is_noted(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread of this process has seen theirs by then, so that nothing looks new any more."""
    noted = ledger._cache_commit

    def late(found: Fetch, done: Anchor) -> None:
        monkeypatch.undo()
        with SqliteLedger(ledger.path, clock=ledger._clock or FrozenClock()) as theirs:
            theirs.commit(SCOPE, None, [Revoke(("root",))])
        ledger.load(Scope("acme", "issuer", "graph", "another"), Query())
        noted(found, done)

    monkeypatch.setattr(ledger, "_cache_commit", late)
    ledger.commit(SCOPE, Guard("jti", 1), [RecordStep()])
    assert ledger.load(SCOPE, Query(agent=("root",))).revoked
    assert ledger.commit(SCOPE, Guard("jti", 1), [RecordStep()]) == Conflict(Code.REVOKED)
