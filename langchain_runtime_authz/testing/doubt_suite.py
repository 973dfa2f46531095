"""Hold a ledger under test with a thread of its own, and its contract about calls in doubt; `ledger_suite` has both."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, cast

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import (
    LASTS,
    CallRow,
    Committed,
    Conflict,
    Doubt,
    Doubted,
    Guard,
    Lease,
    Ledger,
    Query,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.ledger.calls import ClaimCall, ConcludeCall, ReleaseCall, ResolveCall
from langchain_runtime_authz.ledger.changes import Change, OpenThread, TakeLease
from langchain_runtime_authz.ledger.state import Thread
from langchain_runtime_authz.testing.clock import FrozenClock

ROOT: Final = ("root",)
TTL: Final = 60


def unique(kind: str = "jti") -> str:
    """Return a name that no other test has."""
    return f"{kind}-{secrets.token_hex(8)}"


class LedgerHarness:
    """Make the ledger once for each test, and close it."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """Return a ledger whose time is `clock` (epoch seconds). Its `close()`, if any, is called."""
        raise NotImplementedError

    @cached_property
    def clock(self) -> FrozenClock:
        return FrozenClock()

    @cached_property
    def ledger(self) -> Ledger:
        return self.make_ledger(self.clock)

    @cached_property
    def scope(self) -> Scope:
        """Return the test's own thread."""
        return Scope(unique("tenant"), "https://issuer.example", "graph", unique("thread"))

    def teardown_method(self) -> None:
        getattr(self.__dict__.get("ledger"), "close", int)()

    def commit(self, *changes: Change, guard: Guard | None = None) -> Committed | Conflict:
        """Commit to the test's thread."""
        return self.ledger.commit(self.scope, guard, changes)

    def do(self, *changes: Change, guard: Guard | None = None) -> Committed:
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Committed), done
        return done

    def refuse(self, code: Code, *changes: Change, guard: Guard | None = None) -> Conflict:
        """Commit, and fail unless it is refused with `code`."""
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Conflict), done
        assert done.code == code
        return done

    def load(self, **query: Any) -> Snapshot:
        return self.ledger.load(self.scope, Query(**query))

    def row(self, key: str) -> CallRow | None:
        return self.load(calls=(key,)).calls.get(key)


class DoubtContract(LedgerHarness):
    """Calls with a permit and no completion."""

    def deed(self, thread: Scope, key: str, subject: str = "user:alice", deed: str = "pay:x") -> Lease:
        """Claim a call of a thread and leave it at that, as a process does that is killed."""
        now = int(self.clock())
        lease = Lease(unique(), "run-1", ROOT, 1, now, now + TTL)
        claim = ClaimCall(key, lease.jti, repeatable=False, deed=deed, about={"tool": "pay", "run": "run-1"})
        done = self.ledger.commit(thread, None, [OpenThread(subject), TakeLease(lease), claim])
        assert isinstance(done, Committed), done
        return lease

    def doubted(self, **query: Any) -> list[tuple[str, str]]:
        """Return the open calls of a deed that a load of the test's thread finds."""
        return sorted((one.row.key, one.row.state) for one in self.load(**query).doubts)

    def test_a_deed_without_an_outcome_is_found_by_the_same_subject(self) -> None:
        """On every thread of the subject and tenant, claimed while the lease lives, unknown from then on."""
        t, key = self.scope, unique()
        self.deed(t, key)
        self.deed(t._replace(thread=unique()), f"{key}-elsewhere")
        self.deed(t._replace(thread=unique()), f"{key}-bobs", "user:bob")
        self.deed(t._replace(tenant=unique()), f"{key}-foreign")
        self.deed(t, f"{key}-other", deed="pay:y")
        for state in ("claimed", "unknown"):
            assert self.doubted(deeds=("pay:x",)) == [(key, state), (f"{key}-elsewhere", state)]
            self.clock.tick(TTL)
        both = [(key, "unknown"), (f"{key}-elsewhere", "unknown"), (f"{key}-other", "unknown")]
        assert self.doubted(deeds=("pay:x", "pay:y")) == both
        assert not self.doubted() + self.doubted(deeds=("send:x",))
        self.do(ConcludeCall(key, "done"), ReleaseCall(f"{key}-other"))
        assert self.doubted(deeds=("pay:x", "pay:y")) == [(f"{key}-elsewhere", "unknown")]
        self.do(ConcludeCall(key, "unknown"))
        assert (key, "unknown") in self.doubted(deeds=("pay:x",))

    def claimed(
        self, thread: str, process: str = "p1", args: str = "d", kind: Any = ClaimCall, **more: Any
    ) -> Code | None:
        """Claim a call whose decision knew of no doubt, in a run of its own; return why it was refused."""
        about = {"args_digest": args, "process": process, "run_id": unique()}
        scope, now = self.scope._replace(thread=thread), int(self.clock())
        lease = Lease(unique(), about["run_id"], ROOT, 1, now, now + TTL)
        self.ledger.commit(scope, None, [OpenThread("user:alice"), TakeLease(lease)])
        claim = kind(unique(), lease.jti, False, about=about, **{"deed": "pay:x", "subject": "user:alice", **more})
        done = self.ledger.commit(scope, Guard(lease.jti, 1), [claim])
        return done.code if isinstance(done, Conflict) else None

    def test_a_claim_looks_for_doubts_that_came_since_the_decision(self) -> None:
        """The twin: what may be done side by side is not refused."""
        assert [self.claimed("t"), self.claimed("t")] == [None, Code.IN_DOUBT]
        assert self.claimed("other", process="p2", args="e") == Code.IN_DOUBT
        assert [self.claimed("other"), self.claimed("t", deed="send:x")] == [None, None]
        assert self.claimed("other", deed="send:x", process="p2", args="e") is None
        assert self.claimed("third", deed="send:x", process="p2") == Code.IN_DOUBT
        self.clock.tick(TTL)
        assert self.claimed("new") == Code.IN_DOUBT
        self.clock.tick(LASTS)
        assert self.claimed("new") is None

    def test_one_of_many_processes_that_decided_at_once_does_it(self) -> None:
        """On a thread each, of one subject: neither sees the other before its commit."""
        for _ in range(5):
            deed, start = f"pay:{unique()}", threading.Barrier(6)

            def one(place: int, deed: str = deed, start: threading.Barrier = start) -> Code | None:
                start.wait(30)
                return self.claimed(unique(), deed=deed, process=f"p{place}")

            with ThreadPoolExecutor(6) as pool:
                assert sorted(pool.map(one, range(6)), key=str) == [None, *[Code.IN_DOUBT] * 5]

    def test_a_claim_sees_one_that_runs_despite_doubts(self) -> None:
        """An approved one is not refused. Another that looked before it and commits after it is."""
        looked = threading.Event()

        class Slow(ClaimCall):
            def apply(self, t: Thread, now: float) -> None:
                looked.set()
                threading.Event().wait(0.5)  # a store whose commits are serial lets nobody in meanwhile
                super().apply(t, now)

        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(self.claimed, "slow", kind=Slow)
            assert looked.wait(30)
            assert self.claimed("approved", "p2", despite=True) is None
            overtaken = not slow.done()
            assert slow.result(30) == (Code.IN_DOUBT if overtaken else None)
        assert self.claimed("late", "p3") == Code.IN_DOUBT

    def test_calls_in_doubt_are_listed(self) -> None:
        """Oldest first, with what is known of them; by key in any state. A read, which may run again, never is."""
        tenant, key = self.scope.tenant, unique()
        store = cast("Doubted", self.ledger)
        lease = self.deed(self.scope, key)
        self.do(ClaimCall("read", lease.jti, repeatable=True))
        assert list(store.doubts(tenant)) == []
        assert [one.row.state for one in store.doubts(tenant, key)] == ["claimed"]
        at = self.clock()
        self.clock.tick(TTL)
        self.deed(self.scope._replace(thread=unique()), f"{key}-later")
        assert asyncio.run(store.adoubts(tenant)) == [
            Doubt(self.scope, "user:alice", CallRow(
                key, "unknown", lease.jti, deed="pay:x", at=at, about={"tool": "pay", "run": "run-1"}
            ))
        ]  # fmt: skip
        self.clock.tick(TTL)
        assert [one.row.key for one in store.doubts(tenant)] == [key, f"{key}-later"]
        assert not [*store.doubts(unique()), *store.doubts(tenant, unique())]

    def test_a_call_in_doubt_is_resolved_once(self) -> None:
        """It happened: then it is done. It did not: then it may run. Never while it is under way, or after its end."""
        store = cast("Doubted", self.ledger)
        lease = self.deed(self.scope, "did")
        self.deed(self.scope, "did-not")
        for key in ("did", "did-not", "never"):
            self.refuse(Code.NOT_IN_DOUBT, ResolveCall(key, happened=True, author="user:carol"))
        self.clock.tick(TTL)
        self.do(ResolveCall("did", happened=True, author="user:carol", reason="it is on the statement"))
        self.do(ResolveCall("did-not", happened=False, author="user:carol"))
        for key in ("did", "did-not"):
            self.refuse(Code.NOT_IN_DOUBT, ResolveCall(key, happened=True, author="user:mallory"))
        assert not self.doubted(deeds=("pay:x",))
        assert not store.doubts(self.scope.tenant)
        refused = self.refuse(Code.OUTCOME_UNKNOWN, ClaimCall("did", lease.jti, repeatable=False)).row
        assert refused is not None
        assert refused.state == "done"
        self.do(ClaimCall("did-not", lease.jti, repeatable=False))
        ((_, _, row),) = store.doubts(self.scope.tenant, "did")
        said = {"happened": True, "author": "user:carol", "reason": "it is on the statement", "at": self.clock()}
        assert (row.about or {})["resolved"] == said
