"""The contract that every ledger keeps, as a test class to inherit from.

```python
class TestMyLedger(LedgerContract):
    def make_ledger(self, clock):
        return MyLedger(dsn, clock=clock)
```

The store may hold other threads already: every test works on threads and jtis of its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.history import MAX_NAMES, RECENT, TIMES, History
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.provenance.observe import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task, content_digest, extend
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.ledger.base import (
    LAPSED,
    Anchored,
    Approval,
    Asked,
    CallRow,
    Committed,
    Conflict,
    Guard,
    Lease,
    Ledger,
    Query,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.ledger.calls import (
    AnswerApproval,
    AskApproval,
    ClaimCall,
    ConcludeCall,
    ReleaseCall,
    SpendApproval,
    SpendBudget,
    SpendRate,
)
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    Change,
    DeleteMarks,
    EndLease,
    OpenThread,
    RecordEdge,
    RecordPlan,
    RecordStep,
    RecordValues,
    Redeliver,
    Reinstate,
    RenewLease,
    Revoke,
    SetMark,
    TakeLease,
    TakePending,
)
from langchain_runtime_authz.testing.clock import FrozenClock

__all__ = ["DurableLedgerContract", "LedgerContract"]

ROOT: Final = ("root",)
TTL: Final = 60
THREADS: Final = 8
DIGEST: Final = "sha256:" + "0" * 64
OTHER_DIGEST: Final = "sha256:" + "1" * 64
GRANT: Final = Grant(
    tools=("pay", "read"),
    args={"pay": {"amount": Constraint(ge=0, le=10.5), "to": Constraint(one_of=("UK12", 3, True))}},
    data_classes=("internal",),
    sinks=(),
    max_depth=2,
    budgets={"pay": 1, "effect:pay": 2},
    expires_at=1_764_003_600,
)


@dataclass(frozen=True, slots=True)
class _Unknown(Change):
    """A change of a later version of the protocol."""


def _said(text: str, key: str | None = None) -> HumanText:
    return HumanText(content_digest(text), text, key)


def _new(kind: str = "jti") -> str:
    return f"{kind}-{secrets.token_hex(8)}"


def _plan(
    name: str,
    epoch: int = 1,
    agent: tuple[str, ...] = ROOT,
    tool: str = "pay",
    call: str = "call_1",
) -> PlanRecord:
    calls = (PlannedCall(0, call, tool, DIGEST), PlannedCall(1, None, "read", OTHER_DIGEST, tool, DIGEST))
    return PlanRecord(name, agent, epoch, "model", calls)


def _edge(parent: str, child: str) -> Edge:
    return Edge.model_validate({"from": parent, "to": child, "kind": "handoff"})


class _Bench:
    """One ledger, its clock, and one thread of it."""

    def __init__(self, ledger: Ledger, clock: FrozenClock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.scope = Scope(_new("tenant"), "https://issuer.example", "graph", _new("thread"))

    def commit(self, *changes: Change, guard: Guard | None = None) -> Committed | Conflict:
        return self.ledger.commit(self.scope, guard, changes)

    def do(self, *changes: Change, guard: Guard | None = None) -> Committed:
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Committed), done
        return done

    def refuse(self, code: Code, *changes: Change, guard: Guard | None = None) -> Conflict:
        done = self.commit(*changes, guard=guard)
        assert isinstance(done, Conflict), done
        assert done.code == code
        return done

    def load(self, **query: Any) -> Snapshot:
        return self.ledger.load(self.scope, Query(**query))

    def everything(self, lease: Lease, *calls: str) -> Snapshot:
        return self.load(jti=lease.jti, plan=(ROOT, "m1"), calls=calls, agent=lease.agent, log=True, asks=True)

    def lease(self, agent: tuple[str, ...] = ROOT, *, parent: Lease | None = None, grant: Grant | None = None) -> Lease:
        """A lease that was taken just now."""
        now = int(self.clock())
        lease = Lease(
            jti=_new(),
            run_id="run-1",
            agent=agent,
            epoch=self.load().epoch,
            started_at=now,
            expires_at=now + TTL,
            grant=grant,
            parent=parent.jti if parent is not None else None,
        )
        self.do(TakeLease(lease))
        return lease

    def state(self, lease: Lease) -> str:
        found = self.load(jti=lease.jti).lease
        return found.state if found is not None else "gone"

    def status(self, jti: str) -> str:
        return self.ledger.status(self.scope.tenant, jti)

    def row(self, key: str) -> CallRow | None:
        return self.load(calls=(key,)).calls.get(key)

    def approval(self, key: str) -> Approval | None:
        return self.load(calls=(key,)).approvals.get(key)

    def approved(self, key: str, digest: str = DIGEST) -> None:
        """Make an approval of the call that is ready to be spent."""
        self.do(AskApproval(Approval(key, digest, self.load().epoch)))
        self.do(AnswerApproval(key, "approved", "user:alice", authenticated=True))


def _guard(lease: Lease) -> Guard:
    return Guard(lease.jti, lease.epoch)


def _sighting(key: str, source: str = "lookup/id", *, asserted: bool = True) -> Sighting:
    return Sighting(key, "system", asserted, False, True, False, source)


class LedgerContract:
    """Inherit, name the class `Test…`, and say how to make the ledger."""

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """A ledger whose time is `clock` (epoch seconds). Its `close()`, if any, is called."""
        raise NotImplementedError

    @contextmanager
    def _bench(self) -> Iterator[_Bench]:
        clock = FrozenClock()
        ledger = self.make_ledger(clock)
        try:
            yield _Bench(ledger, clock)
        finally:
            close = getattr(ledger, "close", None)
            if close is not None:
                close()

    # --- threads ----------------------------------------------------------------------------------

    def test_a_thread_never_written_to_does_not_exist(self) -> None:
        """Its epoch is 1, it holds nothing, and reading it does not create it."""
        with self._bench() as b:
            for _ in range(2):
                empty = b.load(jti="x", plan=(ROOT, "m1"), calls=("k",), agent=ROOT, log=True, asks=True)
                assert (empty.exists, empty.epoch, empty.subject, empty.task) == (False, 1, "", Task())
                assert (empty.lease, empty.plan, empty.revoked, empty.history) == (None, None, False, History())
                assert (empty.calls, empty.approvals, empty.edges) == ({}, {}, ())
                assert (empty.log, empty.pending, empty.asks) == ((), (), ())

    def test_a_refused_commit_creates_no_thread(self) -> None:
        """What was refused leaves nothing behind."""
        with self._bench() as b:
            b.refuse(Code.APPROVAL_VOID, OpenThread("user:alice"), SpendApproval("k", DIGEST))
            assert not b.load().exists

    def test_a_thread_keeps_its_first_subject(self) -> None:
        """Another subject is refused; the same one may open it again."""
        with self._bench() as b:
            b.do(OpenThread("user:alice"))
            b.do(OpenThread("user:alice"))
            b.refuse(Code.SUBJECT_MISMATCH, OpenThread("user:mallory"))
            b.refuse(Code.SUBJECT_MISMATCH, OpenThread("service:alice"))
            assert (b.load().exists, b.load().subject) == (True, "user:alice")

    def test_two_scopes_that_differ_in_one_part_never_meet(self) -> None:
        """Tenant, issuer, graph or thread: nothing of one is seen in the other."""
        with self._bench() as b:
            lease = b.lease()
            b.do(OpenThread("user:alice"), AdvanceEpoch(1, (_said("task"),), first=True, deliver=True))
            b.do(RecordPlan(_plan("m1")), ClaimCall("k", lease.jti, repeatable=False), RecordEdge(_edge("a", "b")))
            b.do(
                AskApproval(Approval("k", DIGEST, 1)),
                RecordStep(call="pay"),
                SpendBudget("pay", 1),
                SpendRate("pay", 60, 1),
            )
            b.do(Revoke(ROOT))
            mine = b.scope
            for part in Scope._fields:
                b.scope = mine._replace(**{part: _new(part)})
                seen = b.load(
                    jti=lease.jti,
                    plan=(ROOT, "m1"),
                    planned_call=(ROOT, "call_1"),
                    calls=("k",),
                    agent=ROOT,
                    log=True,
                    asks=True,
                )
                assert replace(seen, now=0) == replace(
                    Snapshot(0, False, "", 1, Task(), False, None, None, {}, {}, History(), ()),
                    now=0,
                )
                b.refuse(Code.LEASE_ENDED, RecordStep(call="pay"), guard=_guard(lease))
                b.do(OpenThread("user:bob"), ClaimCall("k", lease.jti, repeatable=False))
                b.do(SpendBudget("pay", 1), SpendRate("pay", 60, 1))
                b.lease()
            assert b.ledger.status("another-tenant", lease.jti) == "unknown"

    def test_parts_of_a_scope_are_not_joined(self) -> None:
        """Separators inside the parts, and empty parts, never make one scope of two."""
        with self._bench() as b:
            thread = _new("thread")
            for mark in ("/", ":", "|", ",", " ", "\x1f", "\n", "%", "_", "'", '"', "\\"):
                twins = (
                    Scope("t", "i", f"g{mark}x", thread),
                    Scope("t", "i", "g", f"x{mark}{thread}"),
                    Scope("t", f"i{mark}g", "x", thread),
                    Scope(f"t{mark}i", "g", "x", thread),
                )
                for number, scope in enumerate(twins):
                    b.scope = scope
                    b.do(OpenThread(f"user:{mark}{number}"))
            for scope in (Scope("t", "", "g", thread), Scope("t", "g", "", thread), Scope("", "t", "g", thread)):
                b.scope = scope
                assert not b.load().exists
                b.do(OpenThread("user:x"))

    def test_text_comes_back_as_it_went_in(self) -> None:
        """Any Unicode, quotes, newlines and long texts."""
        with self._bench() as b:
            texts = tuple(
                _said(t, k) for t, k in (("päy 'it' \"now\"\n\x1f😀\u2028", "k'1"), ("x" * 100_000, None), ("", ""))
            )
            b.do(AdvanceEpoch(1, texts, first=True))
            assert b.load(log=True).log == texts

    # --- task and epoch -----------------------------------------------------------------------------

    def test_the_opening_texts_are_no_correction(self) -> None:
        """`first` pins them at the epoch that is; it is refused where texts are pinned."""
        with self._bench() as b:
            lease = b.lease()
            texts = (_said("pay", "h1"), _said("the bill"))
            assert b.do(AdvanceEpoch(1, texts, first=True)).epoch == 1
            seen = b.load(log=True)
            assert (seen.epoch, seen.log, seen.pending) == (1, texts, ())
            assert seen.task == extend(Task(), texts, correction=False)
            assert b.state(lease) == "live"
            b.refuse(Code.STALE_EPOCH, AdvanceEpoch(1, (_said("again"),), first=True))
            assert b.load(log=True).log == texts

    def test_a_correction_advances_the_epoch_by_one(self) -> None:
        """It is pinned after what was pinned before, and counted."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1, (_said("pay"),), first=True))
            assert b.do(AdvanceEpoch(1, (_said("never above 10"),))).epoch == 2
            assert b.do(AdvanceEpoch(2)).epoch == 3
            seen = b.load(log=True)
            assert (seen.epoch, [t.text for t in seen.log]) == (3, ["pay", "never above 10"])
            task = extend(Task(), (_said("pay"),), correction=False)
            assert seen.task == extend(task, (_said("never above 10"),), correction=True)
            assert b.load().log == ()

    def test_an_epoch_is_advanced_from_the_one_expected(self) -> None:
        """Neither from an older one nor from one to come, and once a commit: it never decreases."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1))
            for expected in (-1, 0, 1, 3):
                b.refuse(Code.STALE_EPOCH, AdvanceEpoch(expected))
            b.refuse(Code.STALE_EPOCH, AdvanceEpoch(2), AdvanceEpoch(2))
            assert b.load().epoch == 2

    def test_no_change_lowers_the_epoch(self) -> None:
        """Whatever is committed after a correction."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1, (_said("x"),)))
            lease = b.lease()
            for change in (
                OpenThread("user:alice"),
                RecordPlan(_plan("m1", epoch=1)),
                EndLease(lease.jti, "ended"),
                Revoke(()),
                Reinstate(()),
                TakePending(),
                ReleaseCall("k"),
                ConcludeCall("k", None),
            ):
                assert b.do(change).epoch == 2
            assert b.load().epoch == 2

    def test_a_correction_kills_every_live_lease(self) -> None:
        """Of every agent; and what a human was asked, or had approved, about the old task is void."""
        with self._bench() as b:
            root = b.lease()
            child = b.lease(("root", "child"), parent=root)
            for key in ("asked", "approved", "rejected", "spent"):
                b.do(AskApproval(Approval(key, DIGEST, 1)))
            b.do(AnswerApproval("approved", "approved", "user:alice", authenticated=True))
            b.do(AnswerApproval("rejected", "rejected", "user:alice", authenticated=True))
            b.do(AnswerApproval("spent", "approved", "user:alice", authenticated=True))
            b.do(SpendApproval("spent", DIGEST))
            b.do(AdvanceEpoch(1, (_said("no"),)))
            assert (b.state(root), b.state(child)) == ("ended", "ended")
            assert b.load(asks=True).asks == ()
            for key in ("asked", "approved", "rejected", "spent"):
                b.refuse(Code.APPROVAL_VOID, SpendApproval(key, DIGEST))
                b.refuse(Code.APPROVAL_VOID, AnswerApproval(key, "approved", "user:alice", authenticated=True))

    def test_what_happened_survives_a_correction(self) -> None:
        """Calls, plans, budgets, edges, revocations and the history stay."""
        with self._bench() as b:
            lease = b.lease()
            b.do(OpenThread("user:alice"), RecordPlan(_plan("m1")), RecordEdge(_edge("a", "b")), SpendBudget("pay", 1))
            b.do(ClaimCall("k", lease.jti, repeatable=False), RecordStep(call="pay"), Revoke(("root", "bad")))
            b.do(AdvanceEpoch(1, (_said("no"),)))
            seen = b.load(plan=(ROOT, "m1"), calls=("k",), agent=("root", "bad"))
            assert (seen.plan, seen.calls["k"].state, seen.edges) == (_plan("m1"), "claimed", (_edge("a", "b"),))
            assert (seen.history.calls, seen.revoked, seen.subject) == ({"pay": 1}, True, "user:alice")
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1))

    def test_corrections_wait_until_they_are_delivered(self) -> None:
        """`deliver` keeps a text for the next root entry; `TakePending` forgets all of them."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1, (_said("one"),)))
            b.do(AdvanceEpoch(2, (_said("two", "c2"),), deliver=True))
            b.do(AdvanceEpoch(3, (_said("three"),), deliver=True))
            assert b.load(log=True).pending == (_said("two", "c2"), _said("three"))
            b.do(TakePending())
            b.do(TakePending())
            seen = b.load(log=True)
            assert (seen.pending, len(seen.log), seen.epoch) == ((), 3, 4)

    def test_erased_corrections_wait_again(self) -> None:
        """`Redeliver` makes texts pending again, each once, in order."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1, (_said("one"), _said("two", "c2")), deliver=True))
            b.do(TakePending())
            b.do(Redeliver((_said("one"),)))
            b.do(Redeliver((_said("one"), _said("two", "c2"))))
            seen = b.load(log=True)
            assert seen.pending == (_said("one"), _said("two", "c2"))
            assert (len(seen.log), seen.epoch) == (2, 2)

    def test_a_text_keeps_who_said_it(self) -> None:
        """Its author, its key, and whether it is the subject's own: only own words are the task's."""
        with self._bench() as b:
            own = replace(_said("pay"), author="user:alice")
            other = replace(_said("pay carol", "k"), own=False, author="user:bob")
            b.do(OpenThread("user:alice"), AdvanceEpoch(1, (own,), first=True))
            b.do(AdvanceEpoch(1, (other,), deliver=True))
            seen = b.load(log=True)
            assert seen.log == (own, other)
            assert seen.pending == (other,)
            assert (seen.task.text, seen.task.corrections) == ("pay", 1)

    def test_counters_are_told_by_name(self) -> None:
        """What was spent of a budget; only of those that are asked for, and of another thread its own."""
        with self._bench() as b:
            b.do(SpendBudget("same", 9), SpendBudget("other", 9))
            b.do(SpendBudget("same", 9))
            assert b.load(counters=("same", "missing")).counters == {"same": 2}
            assert b.load().counters == {}
            b.do(ReleaseCall("never", ("same",)))
            assert b.load(counters=("same",)).counters == {"same": 2}
            with self._bench() as other:
                assert other.load(counters=("same",)).counters == {}

    def test_marks_are_replaced_and_found_by_name(self) -> None:
        """Only those that are asked for come back; another thread has its own."""
        with self._bench() as b:
            assert b.load(marks=("head",)).marks == {}
            b.do(SetMark("head", "1"), SetMark("other", "x"))
            b.do(SetMark("head", "2"))
            assert b.load(marks=("head", "missing")).marks == {"head": "2"}
            assert b.load().marks == {}
            with self._bench() as other:
                assert other.load(marks=("head",)).marks == {}

    def test_marks_are_forgotten_by_how_their_names_begin(self) -> None:
        """Theirs alone: letters count, nothing in a name is special, and what is set after it stays."""
        with self._bench() as b:
            b.do(*(SetMark(name, "x") for name in ("task:1", "task:2", "tas", "Task:1", "head", 'a"%_', "a'%_", "aXX")))
            b.do(DeleteMarks("task:"), DeleteMarks('a"%_'), SetMark("task:3", "y"), DeleteMarks("missing"))
            names = ("task:1", "task:2", "task:3", "tas", "Task:1", "head", 'a"%_', "a'%_", "aXX")
            assert set(b.load(marks=names).marks) == {"tas", "Task:1", "head", "task:3", "a'%_", "aXX"}
            b.do(DeleteMarks(""))
            assert b.load(marks=names).marks == {}

    def test_a_root_entry_is_under_way_until_it_ends(self) -> None:
        """Or until its lease lapsed long ago; children's leases don't count, nor what a correction ended."""
        with self._bench() as b:
            assert b.load(log=True).underway is False
            root = b.lease()
            b.lease(("root", "child"), parent=root)
            assert b.load(log=True).underway is True
            b.do(EndLease(root.jti, "suspended"))
            assert b.load(log=True).underway is False
            b.lease()
            b.clock.tick(TTL + 1)
            assert b.load(log=True).underway is True
            b.clock.tick(LAPSED)
            assert b.load(log=True).underway is False

    # --- leases -------------------------------------------------------------------------------------

    def test_a_lease_comes_back_as_it_was_taken(self) -> None:
        """With its grant and its parent; another jti is not it."""
        with self._bench() as b:
            root = b.lease(grant=GRANT)
            child = b.lease(("root", "child"), parent=root)
            assert b.load(jti=root.jti).lease == root
            assert b.load(jti=child.jti).lease == child
            assert b.load(jti="another").lease is None
            assert b.load().lease is None

    def test_a_lease_is_taken_at_the_epoch_that_is(self) -> None:
        """Neither an older one nor one to come."""
        with self._bench() as b:
            b.do(AdvanceEpoch(1))
            lease = b.lease()
            for epoch in (1, 3):
                b.refuse(Code.STALE_EPOCH, TakeLease(replace(lease, jti=_new(), epoch=epoch)))

    def test_a_child_needs_a_living_parent(self) -> None:
        """A parent that ended, or never was, gives no lease."""
        with self._bench() as b:
            root = b.lease()
            child = replace(root, jti=_new(), agent=("root", "child"), parent=root.jti)
            b.refuse(Code.LEASE_ENDED, TakeLease(replace(child, parent="nobody")))
            b.do(EndLease(root.jti, "suspended"))
            b.refuse(Code.LEASE_ENDED, TakeLease(child))
            assert b.state(child) == "gone"

    def test_a_renewal_moves_forward_only(self) -> None:
        """Also of a lease that was silent beyond its expiry; a dead or unknown one stays as it is."""
        with self._bench() as b:
            lease = b.lease()
            b.clock.tick(2 * TTL)
            b.do(RenewLease(lease.jti, lease.expires_at + 100), guard=_guard(lease))
            b.do(RenewLease(lease.jti, lease.expires_at + 50))
            found = b.load(jti=lease.jti).lease
            assert found == replace(lease, expires_at=lease.expires_at + 100)
            b.do(EndLease(lease.jti, "ended"))
            b.refuse(Code.LEASE_ENDED, RenewLease(lease.jti, lease.expires_at + 200))
            b.refuse(Code.LEASE_ENDED, RenewLease("nobody", lease.expires_at))

    def test_the_end_of_a_lease_ends_those_below(self) -> None:
        """To any depth, and no other; ending twice, or what never was, is no error."""
        with self._bench() as b:
            root, other = b.lease(), b.lease()
            child = b.lease(("root", "child"), parent=root)
            grandchild = b.lease(("root", "child", "grandchild"), parent=child)
            sibling = b.lease(("root", "sibling"), parent=root)
            b.do(EndLease(child.jti, "suspended"))
            assert [b.state(x) for x in (root, child, grandchild, sibling)] == [
                "live",
                "suspended",
                "suspended",
                "live",
            ]
            b.do(EndLease(root.jti, "ended"))
            b.do(EndLease(root.jti, "revoked"))
            b.do(EndLease("nobody", "ended"))
            assert [b.state(x) for x in (root, child, grandchild, sibling)] == [
                "ended",
                "suspended",
                "suspended",
                "ended",
            ]
            assert b.state(other) == "live"

    def test_calls_of_an_ended_lease_are_unknown(self) -> None:
        """Nobody will conclude them: they are not claimed any more, and never run again unasked."""
        with self._bench() as b:
            root, other = b.lease(), b.lease()
            child = b.lease(("root", "child"), parent=root)
            for key, lease in (("mine", root), ("child", child), ("done", root), ("theirs", other)):
                b.do(ClaimCall(key, lease.jti, repeatable=False))
            b.do(ConcludeCall("done", "done", '"paid"'))
            b.do(EndLease(root.jti, "ended"))
            states = {k: r.state for k, r in b.load(calls=("mine", "child", "done", "theirs")).calls.items()}
            assert states == {"mine": "unknown", "child": "unknown", "done": "done", "theirs": "claimed"}
            b.refuse(Code.OUTCOME_UNKNOWN, ClaimCall("mine", other.jti, repeatable=False))

    # --- revocation -------------------------------------------------------------------------------

    def test_revoked_holds_until_reinstated(self) -> None:
        """For the agent and all below it, over new leases, ends and corrections; for nobody else."""
        with self._bench() as b:
            root = b.lease()
            bad: tuple[str, ...] = ("root", "bad")
            below = (*bad, "below")
            leases = [b.lease(bad, parent=root), b.lease(below, parent=root)]
            twin = b.lease(("root", "badly"), parent=root)
            b.do(Revoke(bad))
            assert [b.state(x) for x in (*leases, twin, root)] == ["revoked", "revoked", "live", "live"]
            for agent in (bad, below):
                b.refuse(Code.REVOKED, TakeLease(replace(root, jti=_new(), agent=agent)))
            b.do(EndLease(root.jti, "ended"), AdvanceEpoch(1), OpenThread("user:alice"))
            for agent in (bad, below):
                assert b.load(agent=agent).revoked
            for agent in (ROOT, twin.agent, ()):
                assert not b.load(agent=agent).revoked
            b.refuse(Code.REVOKED, TakeLease(replace(root, jti=_new(), agent=below, epoch=2)))
            b.do(Reinstate(bad))
            assert not b.load(agent=below).revoked
            b.lease(below)
            assert b.state(leases[0]) == "revoked"

    def test_a_whole_thread_is_revoked_before_it_exists(self) -> None:
        """`()` is every agent, on a thread that nobody wrote to yet as well."""
        with self._bench() as b:
            b.do(Revoke(()))
            assert b.load(agent=ROOT).revoked
            b.refuse(Code.REVOKED, TakeLease(Lease(_new(), "run", ROOT, 1, 0, 60)))
            b.do(Reinstate(()))
            b.lease()

    def test_reinstating_lifts_what_is_at_or_below(self) -> None:
        """Not what was revoked above."""
        with self._bench() as b:
            b.do(Revoke(("root", "a")), Revoke(("root", "a", "b")), Revoke(("root", "c")))
            b.do(Reinstate(("root", "a", "b")))
            assert b.load(agent=("root", "a", "b")).revoked
            b.do(Reinstate(("root", "a")))
            assert not b.load(agent=("root", "a", "b")).revoked
            assert b.load(agent=("root", "c")).revoked
            b.do(Reinstate(()))
            assert not b.load(agent=("root", "c")).revoked

    # --- guards -----------------------------------------------------------------------------------

    def test_a_guard_passes_while_the_lease_lives(self) -> None:
        """And its changes are applied."""
        with self._bench() as b:
            lease = b.lease()
            done = b.do(RecordStep(call="pay"), guard=_guard(lease))
            assert (done.now, done.epoch) == (b.clock(), 1)
            assert b.load().history.calls == {"pay": 1}

    def test_a_guard_says_why_it_refuses(self) -> None:
        """`lease_ended`, `revoked` or `stale_epoch`, and nothing is applied."""
        with self._bench() as b:
            b.refuse(Code.LEASE_ENDED, RecordStep(), guard=Guard("nobody", 1))
            root = b.lease()
            ended, suspended = b.lease(("root", "a")), b.lease(("root", "b"))
            revoked, below = b.lease(("root", "c")), b.lease(("root", "d", "e"))
            b.do(EndLease(ended.jti, "ended"), EndLease(suspended.jti, "suspended"), EndLease(revoked.jti, "revoked"))
            b.do(Revoke(("root", "d")))
            b.refuse(Code.LEASE_ENDED, RecordStep(), guard=Guard("nobody", 1))
            b.refuse(Code.LEASE_ENDED, RecordStep(), guard=_guard(ended))
            b.refuse(Code.LEASE_ENDED, RecordStep(), guard=_guard(suspended))
            b.refuse(Code.REVOKED, RecordStep(), guard=_guard(revoked))
            b.refuse(Code.REVOKED, RecordStep(), guard=_guard(below))
            b.refuse(Code.STALE_EPOCH, RecordStep(), guard=Guard(root.jti, 2))
            b.refuse(Code.STALE_EPOCH, RecordStep(), guard=Guard(root.jti, 0))
            # The correction ended the lease too; that the task changed tells more.
            b.do(AdvanceEpoch(1))
            b.refuse(Code.STALE_EPOCH, RecordStep(), guard=_guard(root))
            b.refuse(Code.STALE_EPOCH, RecordStep(), guard=Guard(root.jti, 2))
            assert b.load().history == History(rotations=1)

    def test_a_commit_is_all_or_nothing(self) -> None:
        """Whichever change is refused, and wherever it stands, none of the others is applied."""
        with self._bench() as b:
            b.do(OpenThread("user:alice"))
            lease = b.lease()
            ended = b.lease()
            b.do(EndLease(ended.jti, "ended"), ClaimCall("taken", lease.jti, repeatable=False), SpendBudget("full", 1))
            b.do(SpendRate("full", 60, 1), Revoke(("root", "bad")))
            others: tuple[Change, ...] = (
                AdvanceEpoch(1, (_said("new"),), deliver=True),
                RecordPlan(_plan("m1")),
                RecordEdge(_edge("a", "b")),
                ClaimCall("k", lease.jti, repeatable=False, tokens=(_new(),)),
                AskApproval(Approval("q", DIGEST, 1)),
                SpendBudget("pay", 1),
                SpendRate("pay", 60, 1),
                RecordStep(call="pay", effect="pay", denials=1, data_class="secret", recent="pay"),
                ConcludeCall("c", "done", "1"),
                EndLease(lease.jti, "ended"),
                Revoke(ROOT),
            )
            refused: tuple[tuple[Code, Change], ...] = (
                (Code.SUBJECT_MISMATCH, OpenThread("user:mallory")),
                (Code.STALE_EPOCH, AdvanceEpoch(7)),
                (Code.REVOKED, TakeLease(replace(lease, jti=_new(), agent=("root", "bad")))),
                (Code.LEASE_ENDED, RenewLease(ended.jti, 0)),
                (Code.CALL_IN_PROGRESS, ClaimCall("taken", lease.jti, repeatable=False)),
                (Code.APPROVAL_VOID, SpendApproval("nothing", DIGEST)),
                (Code.APPROVAL_VOID, AnswerApproval("nothing", "approved", "user:alice", authenticated=True)),
                (Code.BUDGET_EXHAUSTED, SpendBudget("full", 1)),
                (Code.RATE_EXCEEDED, SpendRate("full", 60, 1)),
            )
            before = b.everything(lease, "k", "q", "c", "taken")
            for code, change in refused:
                b.refuse(code, change, *others)
                b.refuse(code, *others[1:5], change, *others[5:9])
                b.refuse(code, *others[1:9], change)
                assert b.everything(lease, "k", "q", "c", "taken") == before
            b.do(*others[1:9])  # nor was anything spent

    def test_an_unknown_change_is_refused(self) -> None:
        """By an exception, and nothing beside it is applied."""
        with self._bench() as b:
            b.do(OpenThread("user:alice"))
            for changes in ((_Unknown(), RecordStep(call="x")), (RecordStep(call="x"), _Unknown()), (Change(),)):
                try:
                    b.commit(*changes)
                except Exception:  # noqa: BLE001, S110  (which one is the store's business)
                    pass
                else:
                    raise AssertionError(changes)
            assert b.load().history == History()

    # --- plans and edges ----------------------------------------------------------------------------

    def test_the_first_record_of_a_plan_stands(self) -> None:
        """A second one for the same agent, message and epoch changes nothing."""
        with self._bench() as b:
            b.do(RecordPlan(_plan("m1")))
            b.do(RecordPlan(_plan("m1", tool="wire", call="call_9")))
            assert b.load(plan=(ROOT, "m1")).plan == _plan("m1")
            assert b.load(planned_call=(ROOT, "call_9")).plan is None
            other = ("root", "child")
            b.do(RecordPlan(_plan("m1", agent=other, tool="wire")))
            assert b.load(plan=(ROOT, "m1")).plan == _plan("m1")
            assert b.load(plan=(other, "m1")).plan == _plan("m1", agent=other, tool="wire")
            assert b.load(plan=(ROOT, "m2")).plan is None

    def test_the_newest_record_is_found(self) -> None:
        """By message: that of the latest epoch. By call: the one recorded last. Of this agent only."""
        with self._bench() as b:
            b.do(RecordPlan(_plan("m1")), AdvanceEpoch(1))
            b.do(RecordPlan(_plan("m1", epoch=2, tool="wire")))
            assert b.load(plan=(ROOT, "m1")).plan == _plan("m1", epoch=2, tool="wire")
            assert b.load(planned_call=(ROOT, "call_1")).plan == _plan("m1", epoch=2, tool="wire")
            b.do(RecordPlan(_plan("m2", epoch=2, tool="send")))
            assert b.load(planned_call=(ROOT, "call_1")).plan == _plan("m2", epoch=2, tool="send")
            assert b.load(plan=(ROOT, "m1")).plan == _plan("m1", epoch=2, tool="wire")
            assert b.load(planned_call=(("root", "child"), "call_1")).plan is None
            assert b.load().plan is None

    def test_an_edge_is_recorded_once(self) -> None:
        """In the order in which they came; another kind is another edge."""
        with self._bench() as b:
            task = Edge.model_validate({"from": "a", "to": "b", "kind": "task"})
            b.do(RecordEdge(_edge("a", "b")), RecordEdge(_edge("b", "c")))
            b.do(RecordEdge(_edge("a", "b")), RecordEdge(task))
            assert b.load().edges == (_edge("a", "b"), _edge("b", "c"), task)

    # --- calls --------------------------------------------------------------------------------------

    def test_a_claim_holds_the_call(self) -> None:
        """It is recorded under the lease that took it."""
        with self._bench() as b:
            lease = b.lease()
            assert b.row("k") is None
            b.do(ClaimCall("k", lease.jti, repeatable=False), guard=_guard(lease))
            assert b.row("k") == CallRow("k", "claimed", lease.jti)

    def test_a_side_effect_is_claimed_once(self) -> None:
        """While claimed: in progress; done: its row; failed, unknown: outcome unknown; suspended: again."""
        with self._bench() as b:
            lease, other = b.lease(), b.lease()
            claim = ClaimCall("k", other.jti, repeatable=False)
            b.do(ClaimCall("k", lease.jti, repeatable=False))
            assert b.refuse(Code.CALL_IN_PROGRESS, claim).row is None
            for state in ("failed", "unknown"):
                b.do(ConcludeCall("k", state))
                assert b.refuse(Code.OUTCOME_UNKNOWN, claim).row is None
            b.do(ConcludeCall("k", "done", '{"paid": 10}'))
            refused = b.commit(claim)
            assert isinstance(refused, Conflict)
            assert refused.row == CallRow("k", "done", lease.jti, '{"paid": 10}')
            b.do(ConcludeCall("k", "suspended"))
            b.do(claim)
            assert b.row("k") == CallRow("k", "claimed", other.jti)
            b.refuse(Code.CALL_IN_PROGRESS, claim)

    def test_a_repeatable_call_may_always_be_claimed(self) -> None:
        """Whatever became of it before."""
        with self._bench() as b:
            lease, other = b.lease(), b.lease()
            b.do(ClaimCall("k", lease.jti, repeatable=True))
            b.do(ClaimCall("k", other.jti, repeatable=True))
            for state in ("done", "failed", "unknown", "suspended"):
                b.do(ConcludeCall("k", state))
                b.do(ClaimCall("k", other.jti, repeatable=True))
            assert b.row("k") == CallRow("k", "claimed", other.jti)

    def test_a_call_is_concluded_with_its_result(self) -> None:
        """`None` keeps nothing of it; what happened is recorded without a claim too."""
        with self._bench() as b:
            lease = b.lease()
            b.do(ClaimCall("k", lease.jti, repeatable=False), ClaimCall("read", lease.jti, repeatable=True))
            b.do(ConcludeCall("k", "done", '"ok"'), ConcludeCall("read", None), ConcludeCall("never", "failed"))
            b.do(ConcludeCall("nothing", None))
            assert b.row("k") == CallRow("k", "done", lease.jti, '"ok"')
            assert (b.row("read"), b.row("nothing")) == (None, None)
            found = b.row("never")
            assert found is not None
            assert found.state == "failed"

    def test_a_release_gives_everything_back(self) -> None:
        """The claim, the approval and the budgets, as if it had never been."""
        with self._bench() as b:
            lease = b.lease()
            b.approved("k")
            take: tuple[Change, ...] = (
                ClaimCall("k", lease.jti, repeatable=False),
                SpendApproval("k", DIGEST),
                SpendBudget("pay", 1),
                SpendBudget("effect:pay", 1),
            )
            b.do(*take)
            b.do(ReleaseCall("k", ("pay", "effect:pay")))
            found = b.approval("k")
            assert found is not None
            assert (b.row("k"), found.state) == (None, "approved")
            b.do(*take)
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1))
            b.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))

    def test_only_what_is_held_is_released(self) -> None:
        """Not twice, and never a call that ran: its claim, approval and budget stay spent."""
        with self._bench() as b:
            lease = b.lease()
            b.do(SpendBudget("pay", 3), SpendBudget("pay", 3))
            for key in ("released", "done"):
                b.approved(key)
            b.do(ClaimCall("released", lease.jti, repeatable=False), SpendBudget("pay", 3))
            for _ in range(3):
                b.do(ReleaseCall("released", ("pay",)))
            b.do(ClaimCall("done", lease.jti, repeatable=False), SpendApproval("done", DIGEST), SpendBudget("pay", 3))
            b.do(ConcludeCall("done", "done", "1"))
            b.do(ReleaseCall("done", ("pay",)))
            assert b.row("done") == CallRow("done", "done", lease.jti, "1")
            b.refuse(Code.APPROVAL_VOID, SpendApproval("done", DIGEST))
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 3))

    def test_nothing_is_used_twice_in_one_commit(self) -> None:
        """Two of the same in one list are two uses."""
        with self._bench() as b:
            lease = b.lease()
            b.approved("k")
            once: tuple[tuple[Code, Change], ...] = (
                (Code.CALL_IN_PROGRESS, ClaimCall("k", lease.jti, repeatable=False)),
                (Code.APPROVAL_VOID, SpendApproval("k", DIGEST)),
                (Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1)),
                (Code.RATE_EXCEEDED, SpendRate("pay", 60, 1)),
            )
            for code, change in once:
                b.refuse(code, change, change)
                b.do(change)
            b.do(SpendBudget("two", 2), SpendBudget("two", 2))
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("two", 2))

    # --- approvals ----------------------------------------------------------------------------------

    def test_a_question_is_open_until_answered(self) -> None:
        """It comes back as it was asked, with its answer added."""
        with self._bench() as b:
            asked = Approval(
                "k",
                DIGEST,
                1,
                "task-1",
                2,
                3,
                interrupt_id="i-1",
                agent=("root", "a"),
                plan_id="m1",
                place=1,
                call_id="c",
                tool="pay",
                within=((ROOT, "c0"), (("root", "a"), "c1")),
                expires_at=int(b.clock()) + TTL,
                allowed=("approve", "reject"),
            )
            b.do(AskApproval(asked), AskApproval(Approval("other", DIGEST, 1, position=1)))
            assert b.approval("k") == asked
            assert {a.call_key for a in b.load(asks=True).asks} == {"k", "other"}
            assert b.load().asks == ()
            b.do(AnswerApproval("k", "rejected", "user:alice", authenticated=True, message="not now"))
            assert b.approval("k") == replace(
                asked,
                state="rejected",
                approver="user:alice",
                authenticated=True,
                message="not now",
            )
            assert [a.call_key for a in b.load(asks=True).asks] == ["other"]

    def test_asking_again_changes_nothing(self) -> None:
        """For the same arguments; for others it is another question."""
        with self._bench() as b:
            asked = Approval("k", DIGEST, 1, "task-1", 1, 0, interrupt_id="i-1")
            b.do(AskApproval(asked))
            b.do(AskApproval(replace(asked, round=9, position=9)))
            assert b.approval("k") == asked
            b.do(AskApproval(replace(asked, args_digest=OTHER_DIGEST)))
            assert b.approval("k") == replace(asked, args_digest=OTHER_DIGEST)

    def test_the_first_answer_stands(self) -> None:
        """A second one, and one to a question that was not asked, is refused."""
        with self._bench() as b:
            b.refuse(Code.APPROVAL_VOID, AnswerApproval("k", "approved", "user:alice", authenticated=True))
            for first in ("approved", "rejected", "malformed"):
                b.do(AskApproval(Approval(first, DIGEST, 1)))
                b.do(AnswerApproval(first, first, "user:alice", authenticated=True))
                stands = b.approval(first)
                b.refuse(Code.APPROVAL_VOID, AnswerApproval(first, "approved", "user:bob", authenticated=False))
                assert b.approval(first) == stands

    def test_several_people_approve_one_after_the_other(self) -> None:
        """The question stays open until enough have; the subject does not count, nobody twice, one no is enough."""
        with self._bench() as b:
            asked = Approval("k", DIGEST, 1, id="q-1", subject="user:alice", needed=2, distinct=True)
            b.do(AskApproval(asked), AskApproval(replace(asked, call_key="no")))
            yes = AnswerApproval("k", "approved", "user:bob", authenticated=True, id="q-1")
            b.refuse(Code.APPROVAL_NOT_DISTINCT, replace(yes, approver="user:alice"))
            b.refuse(Code.APPROVAL_VOID, replace(yes, id="q-2"))
            b.do(yes)
            once = b.approval("k")
            assert once is not None
            assert (once.state, once.approvers) == ("asked", ("user:bob",))
            b.refuse(Code.APPROVAL_NOT_DISTINCT, yes)
            b.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))
            b.do(replace(yes, approver="user:carol", authenticated=False))
            both = b.approval("k")
            assert both is not None
            assert (both.state, both.approvers) == ("approved", ("user:bob", "user:carol"))
            assert (both.approver, both.authenticated) == ("user:bob user:carol", False)
            b.do(SpendApproval("k", DIGEST))
            b.do(AnswerApproval("no", "approved", "user:bob", authenticated=True))
            b.do(AnswerApproval("no", "rejected", "user:alice", authenticated=True))
            refused = b.approval("no")
            assert refused is not None
            assert refused.state == "rejected"

    def test_who_may_answer(self) -> None:
        """Who is named, at once; the fallback from its time on; the subject may always take it back."""
        with self._bench() as b:
            asked = Approval(
                "k",
                DIGEST,
                1,
                subject="user:alice",
                eligible=("user:bob",),
                fallback=("user:carol",),
                fallback_at=int(b.clock()) + TTL,
            )
            b.do(AskApproval(asked), AskApproval(replace(asked, call_key="back")))
            yes = AnswerApproval("k", "approved", "user:carol", authenticated=True)
            for other in ("user:alice", "user:carol", "user:dave", ""):
                b.refuse(Code.APPROVAL_APPROVER, replace(yes, approver=other))
            b.refuse(Code.APPROVAL_APPROVER, AnswerApproval("k", "rejected", "user:dave", authenticated=True))
            b.do(AnswerApproval("back", "rejected", "user:alice", authenticated=True))
            b.clock.tick(TTL)
            b.refuse(Code.APPROVAL_APPROVER, replace(yes, approver="user:dave"))
            b.do(yes)

    def test_what_is_asked_on_every_thread(self) -> None:
        """With its thread, of one tenant, until it is answered or void."""
        with self._bench() as b:
            assert isinstance(b.ledger, Asked)
            tenant = b.scope.tenant
            b.do(AskApproval(Approval("k", DIGEST, 1, id="q-1")), AskApproval(Approval("l", DIGEST, 1, id="q-2")))
            b.do(AskApproval(Approval("old", DIGEST, 1)))  # by a version that named no question
            assert sorted((s, a.id) for s, a in b.ledger.asked(tenant)) == [(b.scope, "q-1"), (b.scope, "q-2")]
            assert [a.call_key for _, a in b.ledger.asked(tenant, "q-2")] == ["l"]
            assert list(b.ledger.asked(tenant, "q-3")) == []
            assert list(b.ledger.asked("somebody else")) == []
            assert [a.id for _, a in asyncio.run(b.ledger.aasked(tenant, "q-1"))] == ["q-1"]
            b.do(AnswerApproval("k", "approved", "user:bob", authenticated=True))
            assert [a.id for _, a in b.ledger.asked(tenant)] == ["q-2"]
            b.do(AdvanceEpoch(1, ()))
            assert list(b.ledger.asked(tenant)) == []

    def test_an_answer_may_be_another_action(self) -> None:
        """What a human put in a call's place, or said in the tool's, comes back as it was given."""
        with self._bench() as b:
            asked = Approval(
                "k",
                DIGEST,
                1,
                "task-1",
                agent=("root", "child"),
                plan_id="m1",
                place=2,
                call_id="c1",
                tool="pay",
                within=((("root",), "c0"),),
                expires_at=int(b.clock()) + 60,
                allowed=("approve", "edit"),
            )
            b.do(AskApproval(asked), AskApproval(Approval("other", DIGEST, 1)))
            assert b.approval("k") == asked
            edited = '{"name": "pay", "args": {"amount": 1}}'
            b.do(AnswerApproval("k", "approved", "user:alice", authenticated=True, edited=edited))
            b.do(AnswerApproval("other", "answered", "user:alice", authenticated=True, message="I did it"))
            assert b.approval("k") == replace(
                asked,
                state="approved",
                approver="user:alice",
                authenticated=True,
                edited=edited,
                approvers=("user:alice",),
            )
            found = b.approval("other")
            assert found is not None
            assert (found.state, found.message) == ("answered", "I did it")
            b.refuse(Code.APPROVAL_VOID, SpendApproval("other", DIGEST))

    def test_an_approval_expires(self) -> None:
        """By ledger time, at the second that it says; one that says none does not."""
        with self._bench() as b:
            until = int(b.clock()) + 60
            for key, expires_at in (("early", until), ("late", until), ("ever", 0)):
                b.do(AskApproval(Approval(key, DIGEST, 1, expires_at=expires_at)))
                b.do(AnswerApproval(key, "approved", "user:alice", authenticated=True))
            b.clock.tick(59)
            b.do(SpendApproval("early", DIGEST))
            b.clock.tick(1)
            b.refuse(Code.APPROVAL_VOID, SpendApproval("late", DIGEST))
            b.do(SpendApproval("ever", DIGEST))

    def test_a_correction_keeps_what_it_approves(self) -> None:
        """One commit answers, opens the next epoch and records its plan; every other approval is void."""
        with self._bench() as b:
            b.approved("before")
            for key in ("yes", "no", "open", "unnamed"):
                b.do(AskApproval(Approval(key, DIGEST, 1)))
            carried = replace(_plan("m1", epoch=2), origin=1)
            b.do(
                AnswerApproval("yes", "approved", "user:alice", authenticated=True),
                AnswerApproval("no", "rejected", "user:alice", authenticated=True),
                AnswerApproval("unnamed", "approved", "user:alice", authenticated=True),
                AdvanceEpoch(1, keep=("yes", "no", "open")),
                RecordPlan(carried),
            )
            assert b.load(plan=(carried.agent, "m1")).plan == carried
            assert {
                k: (a.state, a.epoch) for k in ("before", "yes", "no", "open", "unnamed") if (a := b.approval(k))
            } == {
                "yes": ("approved", 2),
                "no": ("rejected", 1),
            }
            b.do(SpendApproval("yes", DIGEST))
            b.refuse(Code.APPROVAL_VOID, SpendApproval("yes", DIGEST))

    def test_a_release_gives_back_the_approval_that_was_spent(self) -> None:
        """Also where it is another's than the call's own."""
        with self._bench() as b:
            lease = b.lease()
            b.approved("asked")
            b.do(ClaimCall("edited", lease.jti, repeatable=False), SpendApproval("asked", DIGEST))
            b.do(ReleaseCall("edited", approval="asked"))
            b.do(SpendApproval("asked", DIGEST))

    def test_an_approval_is_spent_once(self) -> None:
        """Afterwards it is void, and stays on record."""
        with self._bench() as b:
            b.approved("k")
            b.do(SpendApproval("k", DIGEST))
            b.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))
            b.refuse(Code.APPROVAL_VOID, AnswerApproval("k", "approved", "user:alice", authenticated=True))
            found = b.approval("k")
            assert found is not None
            assert (found.state, found.approver) == ("spent", "user:alice")

    def test_an_approval_is_for_exactly_one_call(self) -> None:
        """Not for other arguments, another call, another epoch, and not before or without a yes."""
        with self._bench() as b:
            b.approved("k")
            b.refuse(Code.APPROVAL_VOID, SpendApproval("k", OTHER_DIGEST))
            b.refuse(Code.APPROVAL_VOID, SpendApproval("other", DIGEST))
            for epoch in (0, 2):
                b.do(AskApproval(Approval(f"e{epoch}", DIGEST, epoch)))
                b.do(AnswerApproval(f"e{epoch}", "approved", "user:alice", authenticated=True))
                b.refuse(Code.APPROVAL_VOID, SpendApproval(f"e{epoch}", DIGEST))
            b.do(AskApproval(Approval("asked", DIGEST, 1)))
            b.refuse(Code.APPROVAL_VOID, SpendApproval("asked", DIGEST))
            for state in ("rejected", "malformed"):
                b.do(AskApproval(Approval(state, DIGEST, 1)))
                b.do(AnswerApproval(state, state, "user:alice", authenticated=True))
                b.refuse(Code.APPROVAL_VOID, SpendApproval(state, DIGEST))
            b.do(SpendApproval("k", DIGEST))

    # --- budgets, rates, history ----------------------------------------------------------------------

    def test_a_budget_is_spent(self) -> None:
        """Each counter by itself, up to the maximum that is given, however many counters there are."""
        with self._bench() as b:
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("none", 0))
            for _ in range(2):
                b.do(SpendBudget("pay", 2), SpendBudget("effect:pay", 9))
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 2))
            b.do(SpendBudget("pay", 3))
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1))
            names = [f"c{i}" for i in range(MAX_NAMES + 10)]
            b.do(*(SpendBudget(name, 1) for name in names))
            for name in names:
                b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget(name, 1))

    def test_a_rate_is_counted_in_a_sliding_window(self) -> None:
        """What is `window` seconds old does not count, and neither does what was refused."""
        with self._bench() as b:
            b.refuse(Code.RATE_EXCEEDED, SpendRate("none", 60, 0))
            b.do(SpendRate("pay", 10, 2))
            b.clock.tick(6)
            b.do(SpendRate("pay", 10, 2))
            b.do(SpendRate("other", 10, 1))
            for _ in range(3):
                b.refuse(Code.RATE_EXCEEDED, SpendRate("pay", 10, 2))
            b.clock.tick(4)
            b.do(SpendRate("pay", 10, 2))
            b.refuse(Code.RATE_EXCEEDED, SpendRate("pay", 10, 2))

    def test_two_windows_of_one_counter_both_hold(self) -> None:
        """At most 1 in 10 s and 2 in 100 s: the shorter window does not forget what the longer one counts."""
        with self._bench() as b:
            both = (SpendRate("pay", 10, 1), SpendRate("pay", 100, 2))
            b.do(*both)
            b.refuse(Code.RATE_EXCEEDED, *both)
            b.clock.tick(11)
            b.do(*both)
            b.clock.tick(11)
            b.refuse(Code.RATE_EXCEEDED, *both)
            b.refuse(Code.RATE_EXCEEDED, *reversed(both))

    def test_the_history_counts(self) -> None:
        """Steps, calls, effects, denials, data classes in order, and the last steps by name."""
        with self._bench() as b:
            b.do(RecordStep(call="read_file", effect="read", data_class="secret", recent="read_file"))
            b.do(RecordStep(call="read_file", effect="read", data_class="internal", recent="read_file"))
            b.do(RecordStep(denials=2, recent="deny:pay"), RecordStep())
            assert b.load().history == History(
                steps=4,
                calls={"read_file": 2},
                effects={"read": 2},
                denials=2,
                classes_read=("internal", "secret"),
                recent=("read_file", "read_file", "deny:pay"),
                streak=2,
                times=(int(b.clock()), int(b.clock())),
            )

    def test_the_history_tells_whose_reads_they_are(self) -> None:
        """A child's class is its own until it acts or work is handed on; then, or where nobody is named, everybody's."""
        one, other = ("main", "one"), ("main", "other")
        with self._bench() as b:
            b.do(RecordStep(data_class="secret", agent=one))
            assert b.load().history.confined == (("secret", one),)
            b.do(RecordStep(data_class="secret", agent=other), RecordStep(call="look", effect="read", agent=one))
            assert b.load().history.confined == (("secret", one), ("secret", other))
            b.do(RecordStep(call="note", effect="write", side_effect=True, agent=other))
            assert b.load().history.confined == ()
            b.do(
                RecordStep(data_class="internal", agent=one),
                RecordStep(data_class="secret", agent=one),
                RecordStep(data_class="public"),
            )
            assert b.load().history.confined == (("internal", one),)
            now = int(b.clock())
            b.do(TakeLease(Lease("j", "r", ("main",), 1, now, now + 60)))
            assert b.load().history.confined == ()
            assert b.load().history.classes_read == ("internal", "public", "secret")

    def test_the_history_tells_anomalies(self) -> None:
        """A permit ends a streak of denials; a side effect, or the subject's own word, ends a row of rotations."""
        with self._bench() as b:
            b.do(RecordStep(denials=1, unplanned=1), RecordStep(denials=1, tainted=1))
            b.do(AdvanceEpoch(1))
            b.do(AdvanceEpoch(2, (replace(_said("x"), own=False),)))
            seen = b.load().history
            assert (seen.streak, seen.unplanned, seen.tainted, seen.rotations) == (2, 1, 1, 2)
            b.do(RecordStep(call="read"))
            seen = b.load().history
            assert (seen.streak, seen.denials, seen.rotations) == (0, 2, 2)
            b.do(RecordStep(call="pay", side_effect=True))
            assert b.load().history.rotations == 0
            b.do(AdvanceEpoch(3))
            b.do(AdvanceEpoch(4, (_said("y"),)))
            assert b.load().history.rotations == 0
            for _ in range(TIMES + 3):
                b.do(RecordStep(call="read"))
            assert len(b.load().history.times) == TIMES

    def test_the_history_is_bounded(self) -> None:
        """The last steps and so many names; what comes beyond is counted as `*`, never forgotten."""
        with self._bench() as b:
            names = [f"t{i:04}" for i in range(MAX_NAMES + 5)]
            for name in names:
                b.do(RecordStep(call=name, effect=name, data_class=name, recent=name))
            seen = b.load().history
            assert seen.recent == tuple(names[-RECENT:])
            kept = names[:MAX_NAMES]
            assert seen.calls == seen.effects == {**dict.fromkeys(kept, 1), "*": 5}
            assert seen.classes_read == ("*", *kept)
            b.do(RecordStep(call=names[0], data_class=names[0]))
            assert b.load().history.calls[names[0]] == 2

    def test_values_are_found_by_key(self) -> None:
        """Only those that are asked for; one sighting per meaning, its first source stays; no scope sees another's."""
        with self._bench() as b:
            first, again = _sighting("a", source="mail/sender"), _sighting("a", source="mail/cc")
            mention = _sighting("a", asserted=False)
            assert b.load(values=("a",)).values == {}
            b.do(RecordValues((first, _sighting("b"))), RecordValues((mention,)))
            b.do(RecordValues((again, first)), RecordValues(()))
            found = b.load(values=("a", "never")).values
            assert {k: set(v) for k, v in found.items()} == {"a": {first, mention}}
            assert b.load().values == {}
            b.scope = b.scope._replace(thread="another")
            assert b.load(values=("a",)).values == {}

    def test_many_values_are_kept(self) -> None:
        """At least ten thousand keys of a thread."""
        with self._bench() as b:
            for start in range(0, 10_000, 2000):
                b.do(RecordValues(tuple(_sighting(f"k{i}") for i in range(start, start + 2000))))
            wanted = ("k0", "k5000", "k9999")
            assert b.load(values=wanted).values.keys() == set(wanted)

    def test_a_snapshot_does_not_change(self) -> None:
        """What was read stays what it was, whatever is committed afterwards."""
        with self._bench() as b:
            lease = b.lease()
            b.do(
                ClaimCall("k", lease.jti, repeatable=False),
                RecordStep(call="pay"),
                AskApproval(Approval("k", DIGEST, 1)),
            )
            seen, again = b.everything(lease, "k"), b.everything(lease, "k")
            b.do(ConcludeCall("k", "done", "1"), RecordStep(call="pay", recent="pay"), RecordEdge(_edge("a", "b")))
            b.do(AdvanceEpoch(1, (_said("x"),), deliver=True), Revoke(()))
            assert seen == again != b.everything(lease, "k")

    def test_time_is_the_ledgers(self) -> None:
        """Snapshots and commits bear the time of its clock."""
        with self._bench() as b:
            for seconds in (0.0, 1.5, 3600.0):
                b.clock.tick(seconds)
                assert b.load().now == b.do(RecordStep()).now == b.clock()

    # --- the status of a jti --------------------------------------------------------------------------

    def test_the_status_of_a_lease_through_its_life(self) -> None:
        """unknown, live, ended as its time runs out, live when renewed, and ended, revoked or stale."""
        with self._bench() as b:
            assert b.status("nobody") == b.status("") == "unknown"
            lease, other, third = b.lease(), b.lease(("root", "a")), b.lease(("root", "b"))
            assert b.status(lease.jti) == "live"
            b.clock.tick(TTL - 1)
            assert b.status(lease.jti) == "live"
            b.clock.tick(1)
            assert b.status(lease.jti) == "ended"
            b.do(RenewLease(lease.jti, lease.expires_at + TTL), RenewLease(third.jti, lease.expires_at + TTL))
            assert b.status(lease.jti) == "live"
            b.do(EndLease(lease.jti, "suspended"))
            assert b.status(lease.jti) == "ended"
            b.do(Revoke(("root", "a")))
            assert b.status(other.jti) == "revoked"
            assert b.status(third.jti) == "live"
            b.do(AdvanceEpoch(1))
            assert b.status(third.jti) == "stale"
            b.do(Reinstate(()))
            assert (b.status(other.jti), b.status(third.jti)) == ("revoked", "stale")

    def test_the_status_of_a_token_through_its_life(self) -> None:
        """It lives while its call is claimed, its lease is live and the task unchanged."""
        with self._bench() as b:
            lease = b.lease()
            tokens = {state: _new("token") for state in ("done", "failed", "suspended", "unknown", "released", "read")}
            for key, token in tokens.items():
                assert b.status(token) == "unknown"
                b.do(ClaimCall(key, lease.jti, repeatable=False, tokens=(token,)))
                assert b.status(token) == "live"
            assert b.ledger.status("another-tenant", tokens["done"]) == "unknown"
            for key in ("done", "failed", "suspended", "unknown"):
                b.do(ConcludeCall(key, key))  # type: ignore[arg-type]
            b.do(ReleaseCall("released"), ConcludeCall("read", None))
            assert {b.status(token) for token in tokens.values()} == {"ended"}

    def test_a_token_dies_with_its_lease(self) -> None:
        """As its time runs out, as it ends, as its agent is revoked and as the task changes."""
        with self._bench() as b:
            leases = [b.lease(("root", name)) for name in "abcd"]
            tokens = [_new("token") for _ in leases]
            for lease, token in zip(leases, tokens, strict=True):
                b.do(ClaimCall(token, lease.jti, repeatable=False, tokens=(token,)))
            b.clock.tick(TTL)
            assert {b.status(t) for t in tokens} == {"ended"}
            b.do(*(RenewLease(lease.jti, lease.expires_at + TTL) for lease in leases))
            assert {b.status(t) for t in tokens} == {"live"}
            b.do(EndLease(leases[0].jti, "ended"), Revoke(("root", "b")))
            assert [b.status(t) for t in tokens] == ["ended", "revoked", "live", "live"]
            b.do(AdvanceEpoch(1))
            assert [b.status(t) for t in tokens[2:]] == ["stale", "stale"]

    def test_a_call_claimed_again_has_another_token(self) -> None:
        """The first one stays dead, and a refused claim's never lived."""
        with self._bench() as b:
            first, second = b.lease(), b.lease()
            old, new, never = _new("token"), _new("token"), _new("token")
            b.do(ClaimCall("k", first.jti, repeatable=False, tokens=(old,)))
            b.refuse(Code.CALL_IN_PROGRESS, ClaimCall("k", second.jti, repeatable=False, tokens=(never,)))
            b.do(ConcludeCall("k", "suspended"), EndLease(first.jti, "suspended"))
            b.do(ClaimCall("k", second.jti, repeatable=False, tokens=(new,)))
            assert (b.status(old), b.status(new), b.status(never)) == ("ended", "live", "unknown")

    # --- many at once ---------------------------------------------------------------------------------

    def test_one_of_many_threads_wins(self) -> None:
        """A claim, an approval, a budget, a rate and a correction: exactly one of eight gets it."""
        with self._bench() as b:
            leases = [b.lease(("root", str(i))) for i in range(THREADS)]
            for attempt in range(5):
                key = f"race-{attempt}"
                b.approved(key)
                claims = [((ClaimCall(key, x.jti, repeatable=False),), _guard(x)) for x in leases]
                assert _wins(_race(b, claims), Code.CALL_IN_PROGRESS) == 1
                spends: tuple[tuple[Code, Change], ...] = (
                    (Code.APPROVAL_VOID, SpendApproval(key, DIGEST)),
                    (Code.BUDGET_EXHAUSTED, SpendBudget(key, 1)),
                    (Code.RATE_EXCEEDED, SpendRate(key, 60, 1)),
                )
                for code, change in spends:
                    done = _race(b, [((RecordStep(call=key), change), _guard(x)) for x in leases])
                    assert _wins(done, code) == 1
                assert b.load().history.calls[key] == 3
            done = _race(b, [((AdvanceEpoch(1, (_said(str(i)),)),), None) for i in range(THREADS)])
            assert _wins(done, Code.STALE_EPOCH) == 1
            seen = b.load(log=True)
            assert (seen.epoch, len(seen.log), seen.task.corrections) == (2, 1, 1)

    def test_a_correction_or_a_claim_comes_first(self) -> None:
        """Never both as if the other had not been: a claim that follows a correction is refused."""
        with self._bench() as b:
            for epoch in range(1, 6):
                leases = [b.lease(("root", str(i))) for i in range(THREADS - 1)]
                jobs: list[tuple[Sequence[Change], Guard | None]] = [
                    ((ClaimCall(f"{epoch}-{i}", x.jti, repeatable=False),), _guard(x)) for i, x in enumerate(leases)
                ]
                jobs.insert(epoch, ((AdvanceEpoch(epoch),), None))
                done = _race(b, jobs)
                corrected = done.pop(epoch)
                assert isinstance(corrected, Committed)
                for i, claimed in enumerate(done):
                    held = b.row(f"{epoch}-{i}") is not None
                    assert held is isinstance(claimed, Committed)
                    assert isinstance(claimed, Committed) or claimed.code == Code.STALE_EPOCH
                    assert b.status(leases[i].jti) == "stale"

    def test_nothing_is_lost_among_threads(self) -> None:
        """Each of eight threads' commits is counted."""
        with self._bench() as b:
            for _ in range(5):
                _race(b, [((RecordStep(call="x", denials=1), SpendBudget("x", 1000)), None)] * THREADS)
            seen = b.load().history
            assert (seen.steps, seen.calls, seen.denials) == (40, {"x": 40}, 40)
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("x", 40))

    # --- the two forms --------------------------------------------------------------------------------

    def test_sync_and_async_agree(self) -> None:
        """The same commits, loads and statuses, the same answers, whichever form was used."""
        with self._bench() as b:
            lease = Lease(_new(), "run", ROOT, 1, int(b.clock()), int(b.clock()) + TTL, GRANT)
            token = _new("token")
            script: tuple[tuple[Guard | None, tuple[Change, ...]], ...] = (
                (None, (OpenThread("user:alice"), AdvanceEpoch(1, (_said("pay"),), first=True))),
                (None, (TakeLease(lease),)),
                (
                    _guard(lease),
                    (RecordPlan(_plan("m1")), RecordEdge(_edge("a", "b")), RecordStep(call="pay", recent="pay")),
                ),
                (_guard(lease), (ClaimCall("k", lease.jti, repeatable=False, tokens=(token,)), SpendBudget("pay", 1))),
                (_guard(lease), (ClaimCall("k", lease.jti, repeatable=False),)),
                (_guard(lease), (AskApproval(Approval("k", DIGEST, 1)), SpendRate("pay", 60, 1))),
                (Guard(lease.jti, 2), (RecordStep(),)),
                (None, (ConcludeCall("k", "done", "1"), AdvanceEpoch(1, (_said("no"),), deliver=True))),
                (_guard(lease), (RecordStep(),)),
                (None, (Revoke(ROOT),)),
            )
            query = Query(jti=lease.jti, plan=(ROOT, "m1"), calls=("k",), agent=ROOT, log=True, asks=True)

            def blocking() -> list[object]:
                seen: list[object] = []
                for guard, changes in script:
                    seen += [b.ledger.commit(b.scope, guard, changes), b.ledger.load(b.scope, query)]
                    seen += [b.ledger.status(b.scope.tenant, jti) for jti in (lease.jti, token)]
                return seen

            async def waiting() -> list[object]:
                seen: list[object] = []
                for guard, changes in script:
                    seen += [await b.ledger.acommit(b.scope, guard, changes), await b.ledger.aload(b.scope, query)]
                    seen += [await b.ledger.astatus(b.scope.tenant, jti) for jti in (lease.jti, token)]
                return seen

            expected = blocking()
            b.scope = b.scope._replace(tenant="other", thread=_new("thread"))
            assert asyncio.run(waiting()) == expected

    def test_one_form_sees_what_the_other_wrote(self) -> None:
        """Both work on one store."""
        with self._bench() as b:
            lease = b.lease()

            async def claim() -> Committed | Conflict:
                return await b.ledger.acommit(b.scope, _guard(lease), [ClaimCall("k", lease.jti, repeatable=False)])

            assert isinstance(asyncio.run(claim()), Committed)
            assert b.row("k") == CallRow("k", "claimed", lease.jti)

    def test_one_of_many_tasks_wins(self) -> None:
        """Eight tasks of one event loop race for one claim."""
        with self._bench() as b:
            leases = [b.lease(("root", str(i))) for i in range(THREADS)]

            async def race() -> list[Committed | Conflict]:
                return await asyncio.gather(
                    *(b.ledger.acommit(b.scope, _guard(x), [ClaimCall("k", x.jti, repeatable=False)]) for x in leases),
                )

            assert _wins(asyncio.run(race()), Code.CALL_IN_PROGRESS) == 1


class DurableLedgerContract(LedgerContract):
    """For stores that outlive their process: `make_ledger` opens the same store each time.

    Needs `os.fork`.
    """

    @contextmanager
    def _again(self, b: _Bench) -> Iterator[Ledger]:
        """The store, opened once more beside the first."""
        ledger = self.make_ledger(b.clock)
        try:
            yield ledger
        finally:
            ledger.close()  # type: ignore[attr-defined]

    def test_what_was_committed_outlives_its_process(self) -> None:
        """One that is killed as its commit returns; nobody closed anything."""
        with self._bench() as b:
            (jti,) = _in_processes(1, lambda _: self._leave_everything(b))
            lease = b.load(jti=jti).lease
            assert lease is not None
            seen = b.everything(lease, "k", "q")
            assert (seen.exists, seen.subject, seen.epoch, seen.revoked) == (True, "user:alice", 2, False)
            assert (lease.state, lease.grant, lease.agent) == ("live", GRANT, ROOT)
            assert (seen.plan, seen.calls["k"]) == (_plan("m1", epoch=2), CallRow("k", "claimed", jti))
            assert seen.approvals["q"] == Approval("q", DIGEST, 2)
            assert [t.text for t in seen.log] == ["pay", "never above 10"]
            assert [t.text for t in seen.pending] == ["never above 10"]
            assert (seen.history.calls, seen.edges) == ({"pay": 1}, (_edge("a", "b"),))
            assert b.load(agent=("root", "bad")).revoked
            assert b.status(f"token-{jti}") == "live"
            b.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1))
            b.refuse(Code.RATE_EXCEEDED, SpendRate("pay", 60, 1))
            b.refuse(Code.CALL_IN_PROGRESS, ClaimCall("k", jti, repeatable=False))

    def _leave_everything(self, b: _Bench) -> str:
        with self._again(b) as b.ledger:
            b.do(OpenThread("user:alice"), AdvanceEpoch(1, (_said("pay"),), first=True))
            b.do(AdvanceEpoch(1, (_said("never above 10"),), deliver=True))
            lease = b.lease(grant=GRANT)
            b.do(
                RecordPlan(_plan("m1", epoch=2)),
                RecordEdge(_edge("a", "b")),
                RecordStep(call="pay"),
                Revoke(("root", "bad")),
            )
            b.do(ClaimCall("k", lease.jti, repeatable=False, tokens=(f"token-{lease.jti}",)))
            b.do(AskApproval(Approval("q", DIGEST, 2)), SpendBudget("pay", 1), SpendRate("pay", 60, 1))
            os.write(_OUT, lease.jti.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def test_one_of_many_processes_wins(self) -> None:
        """A claim and a correction: exactly one of four gets it, and every count is kept."""
        with self._bench() as b:
            leases = [b.lease(("root", str(i))) for i in range(4)]

            def race(number: int) -> str:
                with self._again(b) as ledger:
                    lease = leases[number]
                    won = []
                    for attempt in range(5):
                        claim = ClaimCall(f"race-{attempt}", lease.jti, repeatable=False)
                        done = ledger.commit(b.scope, _guard(lease), [claim, RecordStep(call="won")])
                        won.append("1" if isinstance(done, Committed) else "0")
                        ledger.commit(b.scope, None, [RecordStep(call="all")])
                    ledger.commit(b.scope, None, [AdvanceEpoch(1, (_said(str(number)),))])
                return "".join(won)

            won = _in_processes(4, race)
            counted = b.load(log=True)
            assert counted.history.calls["all"] == 20
            assert counted.history.calls["won"] == sum(w.count("1") for w in won)
            assert (counted.epoch, len(counted.log)) == (2, 1)
            for attempt in range(5):
                assert sum(w[attempt] == "1" for w in won) <= 1

    def test_a_forked_process_goes_on_with_the_ledger_it_was_given(self) -> None:
        """And so does its parent, and neither closes the other's connections."""
        with self._bench() as b:
            lease = b.lease()
            asyncio.run(b.ledger.aload(b.scope, Query()))

            def child(number: int) -> str:
                b.do(RecordStep(call="child"), guard=_guard(lease))
                asyncio.run(b.ledger.acommit(b.scope, None, [RecordStep(call="child")]))
                return str(number)

            assert _in_processes(2, child) == ["0", "1"]
            b.do(RecordStep(call="parent"))
            assert b.load().history.calls == {"child": 4, "parent": 1}

    def test_a_commit_is_held_by_its_anchor(self) -> None:
        """By this tenant's ledger and no other, and by every instance of it."""
        with self._bench() as b, self._again(b) as again:
            ours, theirs = cast("Anchored", b.ledger), cast("Anchored", again)
            tenant = b.scope.tenant
            assert ours.anchor(tenant) is None
            b.do(RecordStep())
            first = ours.anchor(tenant)
            assert first is not None
            b.do(RecordStep())
            second = ours.anchor(tenant)
            assert second is not None
            assert second.position > first.position
            assert second.nonce != first.nonce
            for anchor in (first, second):
                assert ours.holds(tenant, anchor)
                assert theirs.holds(tenant, anchor)
                assert not ours.holds("another-tenant", anchor)
                assert not ours.holds(tenant, anchor._replace(nonce=first.nonce[::-1]))
                assert not ours.holds(tenant, anchor._replace(ledger="another"))
            assert not ours.holds(tenant, second._replace(position=second.position + 1000))
            again.load(b.scope, Query())
            assert theirs.anchor(tenant) == second

    def test_time_never_goes_back(self) -> None:
        """A little is waited for; more is a deny with its code, until the clock is right again."""
        with self._bench() as b:
            lease = b.lease()
            then = b.do(RecordStep()).now
            b.clock.tick(-2)
            assert (b.load().now, b.do(RecordStep()).now) == (then, then)
            b.clock.tick(-600)
            with self._again(b) as again:
                for ledger in (b.ledger, again):
                    for ask in (
                        lambda x: x.load(b.scope, Query()),
                        lambda x: x.commit(b.scope, None, [RecordStep()]),
                        lambda x: x.status(b.scope.tenant, lease.jti),
                    ):
                        assert _refused(ask, ledger) == Code.LEDGER_CLOCK
            b.clock.tick(602 + TTL)
            assert b.status(lease.jti) == "ended"
            assert b.load().history.steps == 2

    def test_a_closed_ledger_denies(self) -> None:
        """With a code; what it held is there for the next."""
        with self._bench() as b:
            with self._again(b) as again:
                again.commit(b.scope, None, [RecordStep()])
            assert _refused(lambda x: x.load(b.scope, Query()), again) == Code.LEDGER_UNAVAILABLE
            assert b.load().history.steps == 1


_OUT: int = -1  # in a process of `_in_processes`: where it tells its answer


def _in_processes(count: int, work: Callable[[int], str]) -> list[str]:
    """What `work` answers in so many processes at once."""
    global _OUT  # noqa: PLW0603  (of a process that ends with this function)
    pipes, pids = [os.pipe() for _ in range(count)], []
    for number, (_, out) in enumerate(pipes):
        pid = os.fork()
        if pid == 0:
            _OUT = out
            try:
                os.write(out, work(number).encode())
            except BaseException:  # noqa: BLE001  (nothing of a child may go on as the parent)
                os.write(out, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.close(out)
        pids.append(pid)
    answers = []
    for (source, _), pid in zip(pipes, pids, strict=True):
        with os.fdopen(source, "rb") as file:
            answers.append(file.read().decode())
        os.waitpid(pid, 0)
    return answers


def _refused(ask: Callable[[Ledger], object], ledger: Ledger) -> str:
    """The code with which a ledger fails."""
    try:
        ask(ledger)
    except LedgerError as exc:
        return exc.code
    msg = "it did not fail"
    raise AssertionError(msg)


def _race(b: _Bench, jobs: Sequence[tuple[Sequence[Change], Guard | None]]) -> list[Committed | Conflict]:
    """Each job in a thread of its own, all at once."""
    gate = threading.Barrier(len(jobs))

    def run(job: tuple[Sequence[Change], Guard | None]) -> Committed | Conflict:
        changes, guard = job
        gate.wait()
        return b.ledger.commit(b.scope, guard, changes)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def _wins(done: Sequence[Committed | Conflict], code: Code) -> int:
    """How many won; all others were refused with `code`."""
    lost = [d for d in done if isinstance(d, Conflict)]
    assert all(d.code == code for d in lost), lost
    return len(done) - len(lost)
