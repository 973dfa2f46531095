"""Store threads in this process: `MemoryLedger`, the default."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.resource import READ
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.changes import Change, apply_changes
from langchain_runtime_authz.ledger.thread_state import Thread, calls_in_doubt, lease_status, ledger_time, take_snapshot

MAX_THREADS: Final = 10_000
MAX_JTIS: Final = 100_000
MAX_PLANS: Final = 4096  # messages with calls, per thread
MAX_DEAD: Final = 256  # leases per thread; only leases that are not live are dropped
MAX_VALUES: Final = 50_000  # keys of returned values, per thread; the oldest is dropped first
MAX_ROWS: Final = 4096  # finished calls, and counters, per thread
_AT_ONCE: Final = MAX_ROWS // 8

Jtis = OrderedDict[tuple[str, str], tuple[b.Scope, str | None, str]]


class MemoryLedger(b.BlockingLedger):
    """Keeps threads in a dictionary behind one lock.

    Args:
        clock: returns ledger time in epoch seconds.
        max_threads: number of threads above which the least recently used is forgotten. It then counts as new. Its old
            calls count as unplanned, so they are denied. Threads with a live lease, a revocation or a recent doubt
            (`LASTS`) stay, and so do rows that threads share (`mandate:`).
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, max_threads: int = MAX_THREADS) -> None:
        if max_threads < 1:
            raise ConfigError(f"`max_threads` must be at least 1, not {max_threads}")
        self._clock = clock
        self._latest = 0.0
        self._max = max_threads
        self._threads: dict[b.Scope, Thread] = {}
        # Threads that may be forgotten, least recently used first. If an examined thread must be kept, it leaves this
        # order until its next commit. A thread with a doubt moves to the end instead, because the doubt will lapse.
        self._order: OrderedDict[b.Scope, None] = OrderedDict()
        # By jti: scope, key of the token's call (`None`: a lease), lease. (A plain dict finds its oldest key slowly.)
        self._leases: Jtis = OrderedDict()
        self._tokens: Jtis = OrderedDict()
        self._open: dict[str, dict[str, Thread]] = {}  # see `Thread.open`
        self._lock = forkable_lock()

    def load(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        with self._lock:
            clock = self._clock()
            now = self._latest = clock if clock >= self._latest else ledger_time(clock, self._latest)
            thread = self._threads.get(scope) or Thread()
            found = take_snapshot(thread, query, now)
            for deed in query.deeds:
                if deed in self._open:
                    found.doubts += calls_in_doubt(self._open, scope.tenant, deed, now, thread.subject)
            return found

    def commit(self, scope: b.Scope, guard: b.Guard | None, changes: Sequence[Change]) -> b.Committed | b.Conflict:
        with self._lock:
            clock = self._clock()
            now = self._latest = clock if clock >= self._latest else ledger_time(clock, self._latest)
            thread = self._threads.get(scope) or Thread(scope=scope, open=self._open)
            if (refused := apply_changes(thread, guard, changes, now)) is not None:
                return refused
            if thread.issued:
                self._index(scope, thread)
            if (
                len(thread.marks) > b.MAX_MARKS
                or len(thread.values) > MAX_VALUES
                or len(thread.plans) > MAX_PLANS
                or len(thread.leases) > MAX_DEAD
                or len(thread.calls) > MAX_ROWS
                or len(thread.budgets) > MAX_ROWS
            ):
                _forget(thread, now)
            self._threads[scope] = thread
            thread.at = now
            self._order[scope] = None
            self._order.move_to_end(scope)
            if len(self._threads) > self._max:
                self._evict(scope, now)
            return b.Committed(now, thread.epoch)

    def status(self, tenant: str, jti: str) -> b.TokenStatus:
        with self._lock:
            found = self._tokens.get((tenant, jti)) or self._leases.get((tenant, jti))
            if found is None:
                return "unknown"
            scope, key, lease_jti = found
            now = self._latest = ledger_time(self._clock(), self._latest)
            return lease_status(self._threads.get(scope) or Thread(), lease_jti, key, now)

    def asked(self, tenant: str, id: str | None = None) -> list[tuple[b.Scope, b.Approval]]:
        with self._lock:
            now = self._latest = ledger_time(self._clock(), self._latest)
            own = [(scope, thread) for scope, thread in self._threads.items() if scope.tenant == tenant]
            found = [(s, a) for s, t in own for a in t.approvals.values() if a.state == "asked" and a.listed(id, now)]
            found.sort(key=lambda one: (-self._threads[one[0]].at, one[0], one[1].call_key))
            return found[: b.MAX_ASKED]

    def doubts(self, tenant: str, key: str | None = None, scope: b.Scope | None = None) -> list[b.InDoubtCall]:
        with self._lock:
            now = self._latest = ledger_time(self._clock(), self._latest)
            if key is not None:
                held = [(s, t) for s, t in self._threads.items() if s.tenant == tenant and key in t.calls]
                return [b.InDoubtCall(s, t.subject, t.call(key, now)) for s, t in held if scope in (None, s)]
            found = [one for deed in [*self._open] for one in calls_in_doubt(self._open, tenant, deed, now)]
            listed = [one for one in found if one.listed(now) and scope in (None, one.scope)]
            return sorted(listed, key=lambda one: (not one.row.lost, -one.row.at))[: b.MAX_ASKED]

    def _index(self, scope: b.Scope, thread: Thread) -> None:
        for jti, key, lease_jti in thread.issued:
            jtis = self._leases if key is None else self._tokens
            jtis[scope.tenant, jti] = (scope, key, lease_jti)
            if len(jtis) > MAX_JTIS:  # the status of a forgotten jti is `unknown`, which is not live
                jtis.popitem(last=False)
        thread.issued.clear()

    def _evict(self, committed: b.Scope, now: float) -> None:
        for _ in range(16):  # bounded, so that a commit stays short
            if len(self._threads) <= self._max or (scope := next(iter(self._order))) == committed:
                return
            thread = self._threads[scope]
            held = [(key, row) for key, row in thread.calls.items() if row.deed and row.state in b.OPEN]
            if thread.revoked or scope.graph[-1:] == ":" or any(x.state == "live" for x in thread.leases.values()):
                del self._order[scope]
            elif any(now - row.at < b.LASTS for _, row in held):
                self._order.move_to_end(scope)
            else:
                for key, _ in held:
                    thread.drop(key)
                del self._order[scope], self._threads[scope]


def _forget(t: Thread, now: float) -> None:
    """Drop the oldest rows of a long thread, to bound its size.

    Calls of a dropped plan then count as unplanned, a dropped lease as ended, and a dropped counter as used up. A
    dropped call does not run again (`Forgotten`).
    """
    # Drop rows in batches: after each removal, a dictionary is slow at finding its oldest key.
    if len(t.calls) > MAX_ROWS:
        told = [
            key for key, row in t.calls.items() if row.state == "unknown" and not row.lost and now - row.at >= b.LASTS
        ]
        over = (key for key, row in t.calls.items() if row.state in ("done", "failed", "void") or key in told)
        for key in list(islice(over, _AT_ONCE)):
            t.drop(key)
            t.forget(key)
    if len(t.budgets) > MAX_ROWS:
        for counter in list(islice(t.budgets, _AT_ONCE)):
            del t.budgets[counter]
            t.forget(counter)
    if len(t.marks) > b.MAX_MARKS:
        for name in list(islice((name for name in t.marks if name.startswith(READ)), _AT_ONCE)):
            del t.marks[name]
            t.forget(name)
    while len(t.values) > MAX_VALUES:
        t.values.pop(next(iter(t.values)))
    if len(t.plans) > MAX_PLANS:
        oldest = next(iter(t.plans))
        t.plans.pop(oldest)
        t.by_call = {k: p for k, p in t.by_call.items() if (p.agent, p.id) != oldest}
    if len(t.leases) > MAX_DEAD:
        for jti in [j for j, lease in t.leases.items() if lease.state != "live"][: len(t.leases) - MAX_DEAD]:
            del t.leases[jti]
