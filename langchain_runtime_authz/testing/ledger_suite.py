"""The contract that every ledger keeps, as a test class to inherit from.

```python
class TestMyLedger(LedgerContract):
    def make_ledger(self, clock):
        return MyLedger(dsn, clock=clock)
```

Each `Change` checks its own rules, so the contract only tests that a store reads and writes data. Random scripts of
commits run on the store and on `MemoryLedger`, and each answer is compared. Other tests race commits and kill
processes. Every test uses its own threads and jtis, so the store may hold other threads.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, cast

from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.ledger import base
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Lease, Ledger, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.call_changes import ClaimCall, SpendApproval, SpendBudget, SpendRate
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    Change,
    OpenThread,
    RecordStep,
    RecordValues,
    Reinstate,
    Revoke,
)
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.thread_state import Thread
from langchain_runtime_authz.testing.ledger_scripts import (
    DIGEST,
    TTL,
    LedgerHarness,
    Script,
    ScriptStep,
    answers_of,
    comparable_state,
    unique_name,
)

THREADS: Final = 8


class UnknownChange(Change):
    """A change of a later version of the protocol."""


def _user_text(text: str, key: str | None = None) -> HumanText:
    return HumanText(content_digest(text), text, key)


def _claim(key: str, lease: Lease, **more: Any) -> ClaimCall:
    return ClaimCall(key, lease.jti, repeatable=False, **more)


def _guard(lease: Lease) -> Guard:
    return Guard(lease.jti, lease.epoch)


class LedgerContract(LedgerHarness):
    """Inherit from this class, name the subclass `Test…`, and override `make_ledger`."""

    SCRIPTS = 12
    STEPS = 60

    def play(self, seed: int, ledgers: Callable[[], Sequence[tuple[Ledger, str]]]) -> tuple[Ledger, list[ScriptStep]]:
        """Compare `ledgers()` by a script with a `MemoryLedger`. Return (this one, steps)."""
        known, script, done = MemoryLedger(clock=self.clock), Script(seed, self.scope, self.clock), []
        for number in range(self.STEPS):
            step = script.step(lambda scope: known.load(scope, Query()).epoch)
            self.clock.tick(step.seconds)
            done.append(step)
            expected = list(answers_of(known, step))
            for ledger, form in ledgers():
                for (name, wanted), (_, found) in zip(expected, answers_of(ledger, step, form), strict=True):
                    assert found == wanted, (
                        f"script {seed}, step {number}: {name} is {found}, not {wanted}, after {step}"
                    )
        return known, done

    def restart(self) -> None:
        """Close and open the store, if it outlives its process."""

    def test_it_answers_as_the_reference_does(self) -> None:
        """Compare each answer with `MemoryLedger`'s. Check that a snapshot never changes."""
        for seed in range(self.SCRIPTS):
            self.scope = self.scope._replace(tenant=unique_name("tenant"), thread=unique_name("thread"))
            seen: list[tuple[Snapshot, str]] = []

            def under_test(seed: int = seed, seen: list[tuple[Snapshot, str]] = seen) -> Sequence[tuple[Ledger, str]]:
                if len(seen) == self.STEPS // 2:
                    self.restart()
                now = self.ledger.load(self.scope, Query(calls=("k",), log=True))
                seen.append((now, repr(comparable_state(now))))
                return [(self.ledger, "a" if (len(seen) + seed) % 8 == 0 else "")]

            known, steps = self.play(seed, under_test)
            assert [again for now, again in seen if repr(comparable_state(now)) != again] == []
            for step in steps:
                assert self.ledger.status(step.scope.tenant, step.jti) == known.status(step.scope.tenant, step.jti)

    def test_parts_of_a_scope_are_not_joined(self) -> None:
        """Check that scopes are distinct whose parts are empty or hold separators."""
        thread = unique_name("thread")
        for mark in ("/", ":", "|", ",", " ", "\x1f", "\n", "%", "_", "'", '"', "\\"):
            twins = (
                Scope("t", "i", f"g{mark}x", thread),
                Scope("t", "i", "g", f"x{mark}{thread}"),
                Scope("t", f"i{mark}g", "x", thread),
                Scope(f"t{mark}i", "g", "x", thread),
            )
            for number, scope in enumerate(twins):
                self.scope = scope
                self.do(OpenThread(f"user:{mark}{number}"))
        for scope in (Scope("t", "", "g", thread), Scope("t", "g", "", thread), Scope("", "t", "g", thread)):
            self.scope = scope
            assert not self.load().exists
            self.do(OpenThread("user:x"))

    def test_an_unknown_change_is_refused(self) -> None:
        """Check that an unknown change raises, and that nothing of its commit is applied."""
        self.do(OpenThread("user:alice"))
        for changes in ((UnknownChange(), RecordStep(call="x")), (RecordStep(call="x"), UnknownChange()), (Change(),)):
            try:
                self.commit(*changes)
            except Exception:  # noqa: BLE001, S110  (which one is the store's business)
                pass
            else:
                raise AssertionError(changes)
        assert self.load().history == History()

    def test_much_is_kept(self) -> None:
        """Check that ten thousand sightings and every counter are kept."""
        for start in range(0, 10_000, 2000):
            keys = [f"k{i}" for i in range(start, start + 2000)]
            self.do(RecordValues(tuple(SeenValue(key, "system", True, False, "lookup/id") for key in keys)))
        assert len(self.load(values=("k0", "k5000", "k9999", "never")).values) == 3
        names = [f"c{i}" for i in range(200)]
        self.do(*(SpendBudget(name, 1) for name in names))
        for name in names:
            self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget(name, 1))
        for spent in (2**15, 2**31, 2**53):  # limits of small number types
            self.do(SpendBudget("much", spent, spent - 1), SpendBudget("much", spent))
            self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("much", spent))
            self.do(SpendBudget("much", 0, -spent))

    def test_one_of_many_threads_wins(self) -> None:
        """Race threads for a claim, approval, budget, rate and correction: one wins each."""
        leases = [self.lease(("root", str(i))) for i in range(THREADS)]
        for attempt in range(5):
            key = f"race-{attempt}"
            self.approved(key)
            claims = [((_claim(key, x),), _guard(x)) for x in leases]
            assert _wins(self.race(claims), Code.CALL_IN_PROGRESS) == 1
            spends: tuple[tuple[Code, Change], ...] = (
                (Code.APPROVAL_VOID, SpendApproval(key, DIGEST)),
                (Code.BUDGET_EXHAUSTED, SpendBudget(key, 1)),
                (Code.RATE_EXCEEDED, SpendRate(key, 60, 1)),
            )
            for code, change in spends:
                done = self.race([((RecordStep(call=key), change), _guard(x)) for x in leases])
                assert _wins(done, code) == 1
            assert self.load().history.calls[key] == 3
        done = self.race([((AdvanceEpoch(1, (_user_text(str(i)),)),), None) for i in range(THREADS)])
        assert _wins(done, Code.STALE_EPOCH) == 1
        seen = self.load(log=True)
        assert (seen.epoch, len(seen.log), seen.task.corrections) == (2, 1, 1)

    def test_a_correction_or_a_claim_comes_first(self) -> None:
        """Race claims with a correction, after which every claim is refused."""
        for epoch in range(1, 6):
            leases = [self.lease(("root", str(i))) for i in range(THREADS - 1)]
            jobs: list[tuple[Sequence[Change], Guard | None]] = [
                ((_claim(f"{epoch}-{i}", x),), _guard(x)) for i, x in enumerate(leases)
            ]
            jobs.insert(epoch, ((AdvanceEpoch(epoch),), None))
            done = self.race(jobs)
            corrected = done.pop(epoch)
            assert isinstance(corrected, Committed)
            for i, claimed in enumerate(done):
                held = self.row(f"{epoch}-{i}") is not None
                assert held is isinstance(claimed, Committed)
                assert isinstance(claimed, Committed) or claimed.code == Code.STALE_EPOCH
                assert self.status(leases[i].jti) == "stale"

    def test_nothing_is_lost_among_threads(self) -> None:
        """Check that every commit of eight threads is counted."""
        for _ in range(5):
            self.race([((RecordStep(call="x", denials=1), SpendBudget("x", 1000)), None)] * THREADS)
        seen = self.load().history
        assert (seen.steps, seen.calls, seen.denials) == (40, {"x": 40}, 40)
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("x", 40))

    def test_one_of_many_processes_that_decided_at_once_does_it(self) -> None:
        """Claim a subject's deed on six threads at once: one claim is committed."""
        self.load()
        for _ in range(5):
            deed, start = f"pay:{unique_name()}", threading.Barrier(6)

            def one(place: int, deed: str = deed, start: threading.Barrier = start) -> Code | None:
                start.wait(30)
                return self.claimed(unique_name(), deed=deed, process=f"p{place}")

            with ThreadPoolExecutor(6) as pool:
                assert sorted(pool.map(one, range(6)), key=str) == [None, *[Code.IN_DOUBT] * 5]

    def test_a_claim_sees_one_that_runs_despite_doubts(self) -> None:
        """Claim a call despite doubts: the claim is committed, and later claims see it."""
        looked = threading.Event()

        class Slow(ClaimCall):
            def apply(self, t: Thread, now: float) -> None:
                looked.set()
                threading.Event().wait(0.5)  # a store with serial commits blocks other commits meanwhile
                super().apply(t, now)

        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(self.claimed, "slow", kind=Slow)
            assert looked.wait(30)
            assert self.claimed("approved", "p2", despite=None) is None
            overtaken = not slow.done()
            assert slow.result(30) == (Code.IN_DOUBT if overtaken else None)
        assert self.claimed("late", "p3") == Code.IN_DOUBT

    def test_one_of_many_tasks_wins(self) -> None:
        """Race eight tasks of one event loop for one claim."""
        leases = [self.lease(("root", str(i))) for i in range(THREADS)]

        async def race() -> list[Committed | Conflict]:
            return await asyncio.gather(*(self.ledger.acommit(self.scope, _guard(x), [_claim("k", x)]) for x in leases))

        assert _wins(asyncio.run(race()), Code.CALL_IN_PROGRESS) == 1


class DurableLedgerContract(LedgerContract):
    """Test a durable store: every `make_ledger` opens the same one. Needs `os.fork`."""

    def restart(self) -> None:
        self.ledger.close()  # type: ignore[attr-defined]
        self.ledger = self.make_ledger(self.clock)

    @contextmanager
    def again(self) -> Iterator[Ledger]:
        ledger = self.make_ledger(self.clock)
        try:
            yield ledger
        finally:
            ledger.close()  # type: ignore[attr-defined]

    def test_what_was_committed_outlives_its_process(self) -> None:
        """Kill a process after its last commit: other ledgers hold all that it committed."""
        assert not self.load().exists

        def die(_: int, tell: Callable[[str], None]) -> None:
            with self.again() as mine:
                self.play(0, lambda: [(mine, "")])
                tell("")
                os.kill(os.getpid(), signal.SIGKILL)

        _in_processes(1, die)
        known, steps = self.play(0, list)
        with self.again() as again:
            for step in steps:
                wanted = comparable_state(known.load(step.scope, step.query))
                assert [comparable_state(x.load(step.scope, step.query)) for x in (self.ledger, again)] == [
                    wanted,
                    wanted,
                ]
                assert again.status(step.scope.tenant, step.jti) == known.status(step.scope.tenant, step.jti)

    def test_one_of_many_processes_wins(self) -> None:
        """Race four processes: one correction and at most one claim win; no count is lost."""
        leases = [self.lease(("root", str(i))) for i in range(4)]

        def race(number: int, tell: Callable[[str], None]) -> None:
            with self.again() as ledger:
                lease = leases[number]
                won = []
                for attempt in range(5):
                    claim = _claim(f"race-{attempt}", lease)
                    done = ledger.commit(self.scope, _guard(lease), [claim, RecordStep(call="won")])
                    won.append("1" if isinstance(done, Committed) else "0")
                    ledger.commit(self.scope, None, [RecordStep(call="all")])
                ledger.commit(self.scope, None, [AdvanceEpoch(1, (_user_text(str(number)),))])
            tell("".join(won))

        won = _in_processes(4, race)
        counted = self.load(log=True)
        assert counted.history.calls["all"] == 20
        assert counted.history.calls["won"] == sum(w.count("1") for w in won)
        assert (counted.epoch, len(counted.log)) == (2, 1)
        for attempt in range(5):
            assert sum(w[attempt] == "1" for w in won) <= 1

    def test_a_forked_process_goes_on_with_the_ledger_it_was_given(self) -> None:
        """Check that a forked process and its parent can both use the ledger."""
        lease = self.lease()
        asyncio.run(self.ledger.aload(self.scope, Query()))

        def child(number: int, tell: Callable[[str], None]) -> None:
            self.do(RecordStep(call="child"), guard=_guard(lease))
            asyncio.run(self.ledger.acommit(self.scope, None, [RecordStep(call="child")]))
            tell(str(number))

        assert _in_processes(2, child) == ["0", "1"]
        self.do(RecordStep(call="parent"))
        assert self.load().history.calls == {"child": 4, "parent": 1}

    def test_a_commit_is_held_by_its_anchor(self) -> None:
        """Check that every instance finds a commit by its anchor, for its tenant only."""
        with self.again() as again:
            ours, theirs = cast("base.Anchored", self.ledger), cast("base.Anchored", again)
            tenant = self.scope.tenant
            assert ours.anchor(tenant) is None
            self.do(RecordStep())
            first = ours.anchor(tenant)
            assert first is not None
            self.do(RecordStep())
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
            again.load(self.scope, Query())
            assert theirs.anchor(tenant) == second

    def test_another_instance_commits_unseen(self) -> None:
        """Check that an instance sees what another instance committed."""
        lease = self.lease()
        with self.again() as other:

            def theirs(*made: Change) -> None:
                assert isinstance(other.commit(self.scope, None, made), Committed)

            self.do(SpendBudget("counter", 1), guard=_guard(lease))
            theirs(SpendBudget("counter", 1, -1))
            self.do(SpendBudget("counter", 1), guard=_guard(lease))
            theirs(SpendBudget("counter", 2))
            self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("counter", 2))
            theirs(Revoke(("root",)))
            self.refuse(Code.REVOKED, RecordStep(), guard=_guard(lease))
            theirs(Reinstate(()))
            anew = self.lease()
            self.do(RecordStep(), guard=_guard(anew))
            theirs(Revoke(("root",)))
            assert self.load(agent=("root",)).revoked
            theirs(AdvanceEpoch(1, (_user_text("other"),)), Reinstate(()))
            assert self.lease().epoch == 2

    def test_time_never_goes_back(self) -> None:
        """A clock set back by 2 s stops the time; by 600 s, it raises `ledger_clock`."""
        lease = self.lease()
        then = self.do(RecordStep()).now
        self.clock.tick(-2)
        assert (self.load().now, self.do(RecordStep()).now) == (then, then)
        self.clock.tick(-600)
        with self.again() as again:
            for ledger in (self.ledger, again):
                for ask in (
                    lambda x: x.load(self.scope, Query()),
                    lambda x: x.commit(self.scope, None, [RecordStep()]),
                    lambda x: x.status(self.scope.tenant, lease.jti),
                ):
                    assert _refused(ask, ledger) == Code.LEDGER_CLOCK
        self.clock.tick(602 + TTL)
        assert self.status(lease.jti) == "ended"
        assert self.load().history.steps == 2

    def test_a_closed_ledger_denies(self) -> None:
        """Check that a closed ledger raises, and that the next instance holds its data."""
        with self.again() as again:
            again.commit(self.scope, None, [RecordStep()])
        assert _refused(lambda x: x.load(self.scope, Query()), again) == Code.LEDGER_UNAVAILABLE
        assert self.load().history.steps == 1


def _in_processes(count: int, work: Callable[[int, Callable[[str], None]], None]) -> list[str]:
    """Run `work` in numbered processes at once, and return the texts that they send."""
    fork, running = multiprocessing.get_context("fork"), []
    for number in range(count):
        answer, end = fork.Pipe(duplex=False)
        process = fork.Process(target=work, args=(number, end.send))
        process.start()
        end.close()  # if a process dies without an answer, `recv` raises instead of waiting
        running.append((process, answer))
    told = [answer.recv() for _, answer in running]
    for process, _ in running:
        process.join()
    return told


def _refused(ask: Callable[[Ledger], object], ledger: Ledger) -> str:
    try:
        ask(ledger)
    except LedgerError as exc:
        return exc.code
    raise AssertionError("it did not fail")


def _wins(done: Sequence[Committed | Conflict], code: Code) -> int:
    """Return the number of committed jobs. Check that `code` refused all others."""
    lost = [d for d in done if isinstance(d, Conflict)]
    assert all(d.code == code for d in lost), lost
    return len(done) - len(lost)
