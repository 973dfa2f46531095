"""The ledger in one process's memory: the default."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.fork import forkable_lock
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.effects import apply
from langchain_runtime_authz.ledger.state import Thread, ledger_time, snapshot, status, tokens

__all__ = ["MemoryLedger"]

MAX_THREADS: Final = 10_000
MAX_JTIS: Final = 100_000
MAX_PLANS: Final = 4096  # messages with calls, per thread
MAX_DEAD: Final = 256  # leases, per thread
MAX_VALUES: Final = 50_000  # keys of values seen, per thread; the oldest is forgotten first


class MemoryLedger:
    """Keeps threads in a dictionary behind one lock.

    Args:
        clock: ledger time, epoch seconds.
        max_threads: threads kept. The least recently used thread without a live lease goes first;
            it then counts as never seen: its old plans are unplanned, so forgetting denies.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, max_threads: int = MAX_THREADS) -> None:
        if max_threads < 1:
            msg = f"`max_threads` must be at least 1, not {max_threads}"
            raise ConfigError(msg)
        self._clock = clock
        self._latest = 0.0
        self._max = max_threads
        self._threads: dict[b.Scope, Thread] = {}
        # What may be forgotten, least recently used first. A thread that may not leaves it when it is looked at and
        # comes back with its next commit: with many revoked threads each commit would look at all of them.
        self._order: OrderedDict[b.Scope, None] = OrderedDict()
        # Where a jti is: leases that were taken, tokens of claimed calls. (A plain dict finds its oldest key slowly.)
        self._leases: OrderedDict[tuple[str, str], b.Scope] = OrderedDict()
        self._tokens: OrderedDict[tuple[str, str], tuple[b.Scope, str, str]] = OrderedDict()
        self._lock = forkable_lock()

    def load(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        """See `Ledger.load`."""
        with self._lock:
            return snapshot(self._threads.get(scope) or Thread(), query, self._now())

    def commit(self, scope: b.Scope, guard: b.Guard | None, changes: Sequence[b.Change]) -> b.Committed | b.Conflict:
        """See `Ledger.commit`."""
        with self._lock:
            now = self._now()
            thread = self._threads.get(scope) or Thread()
            if (refused := apply(thread, guard, changes, now)) is not None:
                return refused
            _forget(thread)
            self._index(scope, changes)
            self._threads[scope] = thread
            self._order[scope] = None
            self._order.move_to_end(scope)
            self._evict(scope)
            return b.Committed(now, thread.epoch)

    def status(self, tenant: str, jti: str) -> b.TokenStatus:
        """See `Ledger.status`."""
        with self._lock:
            scope = self._leases.get((tenant, jti))
            key, lease_jti = None, jti
            if (token := self._tokens.get((tenant, jti))) is not None:
                scope, key, lease_jti = token
            if scope is None:
                return "unknown"
            return status(self._threads.get(scope) or Thread(), lease_jti, key, self._now())

    def asked(self, tenant: str, id: str | None = None) -> list[tuple[b.Scope, b.Approval]]:
        """See `Asked.asked`."""
        with self._lock:
            found = (
                (scope, a)
                for scope, thread in self._threads.items()
                if scope.tenant == tenant
                for a in thread.approvals.values()
                if a.state == "asked" and a.id and id in (None, a.id)
            )
            return list(islice(found, b.MAX_ASKED))

    async def aasked(self, tenant: str, id: str | None = None) -> list[tuple[b.Scope, b.Approval]]:
        """Memory does not block: the same as `asked`."""
        return self.asked(tenant, id)

    async def astatus(self, tenant: str, jti: str) -> b.TokenStatus:
        """Memory does not block: the same as `status`."""
        return self.status(tenant, jti)

    async def aload(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        """Memory does not block: the same as `load`."""
        return self.load(scope, query)

    async def acommit(
        self,
        scope: b.Scope,
        guard: b.Guard | None,
        changes: Sequence[b.Change],
    ) -> b.Committed | b.Conflict:
        """Memory does not block: the same as `commit`."""
        return self.commit(scope, guard, changes)

    def _now(self) -> float:
        self._latest = ledger_time(self._clock(), self._latest)
        return self._latest

    def _index(self, scope: b.Scope, changes: Sequence[b.Change]) -> None:
        for change in changes:
            if isinstance(change, b.TakeLease):
                self._leases[scope.tenant, change.lease.jti] = scope
        for jti, key, lease_jti in tokens(changes):
            self._tokens[scope.tenant, jti] = (scope, key, lease_jti)
        for jtis in (self._leases, self._tokens):
            while len(jtis) > MAX_JTIS:  # what is forgotten is dead
                jtis.popitem(last=False)

    def _evict(self, committed: b.Scope) -> None:
        if len(self._threads) <= self._max:
            return
        while (scope := next(iter(self._order))) != committed:
            del self._order[scope]
            thread = self._threads[scope]
            if not thread.revoked and not any(le.state == "live" for le in thread.leases.values()):
                del self._threads[scope]
                return


def _forget(t: Thread) -> None:
    """Bound a long thread: an evicted plan's calls count as unplanned, a forgotten jti is as dead as one that ended."""
    while len(t.marks) > b.MAX_MARKS:
        t.marks.pop(next(iter(t.marks)))
    while len(t.values) > MAX_VALUES:
        t.values.pop(next(iter(t.values)))
    if len(t.plans) > MAX_PLANS:
        oldest = next(iter(t.plans))
        t.plans.pop(oldest)
        t.by_call = {k: p for k, p in t.by_call.items() if (p.agent, p.id) != oldest}
    if len(t.leases) > MAX_DEAD:
        for jti in [j for j, le in t.leases.items() if le.state != "live"][: len(t.leases) - MAX_DEAD]:
            del t.leases[jti]
