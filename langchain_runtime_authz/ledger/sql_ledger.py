"""Load and commit in any SQL store: retries, threads, cache. Subclasses connect.

A subclass runs statements (`_reading`, `_writing`) and turns its driver's failures into `LedgerError`. The async
methods run the same code in the ledger's threads, so that no lock or disk blocks an event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, Protocol, Self

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger import sql_rows as rows
from langchain_runtime_authz.ledger.changes import Change, Revoke, apply_changes, rows_needed
from langchain_runtime_authz.ledger.schema import DOUBTS, OPEN, Version, check_schema
from langchain_runtime_authz.ledger.sql_rows import Fetch, Row, Statement, WrittenRows
from langchain_runtime_authz.ledger.thread_cache import MAX_CACHED, CachedThread, cacheable_rows
from langchain_runtime_authz.ledger.thread_state import Needs, Thread, lease_status, ledger_time, take_snapshot

WORKERS: Final = 8  # threads for the async methods
URGENT: Final = 6  # attempts to commit a revocation, each as long as the store's timeout
MAX_PLACES: Final = 10_000  # jtis of this process whose thread is known without a query
LOCKS: Final = 1024  # locks per tenant; commits whose deeds share a lock wait for each other
DRIFT: Final = 1.0  # seconds by which a commit's time may differ from the store's clock if the commit did not read it
_ASKED: Final = (  # most recently used thread first
    "SELECT t.scope, a.body FROM approval a JOIN thread t ON t.tenant = a.tenant AND t.thread = a.thread"
    " WHERE a.tenant = ? AND a.state = 'asked' ORDER BY t.at DESC, a.thread, a.key"
)
_CALLS: Final = "SELECT thread, key, lease FROM token WHERE tenant = ? AND jti = ?"
_LEASES: Final = "SELECT thread FROM lease WHERE tenant = ? AND jti = ? ORDER BY thread LIMIT 1"
NONE: Final = b.Anchor("", 0, "")  # stands for the time before the first commit
_beginning: Final = forkable_lock()  # only one thread of a forked child resets the ledger


class Tx(Protocol):
    """A connection in use. Each statement is a transaction, except under a lock."""

    def batch(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        """Run statements in order and return their rows."""

    def keep(self, found: Fetch, kept: WrittenRows, nonce: str, now: float) -> tuple[int, str] | None:
        """Write a commit's rows. Return its journal position and the new `Fetch.seen`.

        If the thread or a lock row changed since it was read, or `now` is too far off, write nothing and return None.
        """


class SqlLedger(b.BlockingLedger):
    """A ledger in the tables of a SQL store."""

    waits: Final = True  # for a disk, network or lock
    _dialect: ClassVar[tuple[str, str, str, str]]  # see `Fetch.statement`
    # True if a commit excludes only other commits of its thread. A commit must then also take `Needs.locks`.
    _by_thread = False

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock  # replaces the store's clock
        self._lock = threading.Lock()
        self._latest = 0.0
        self._seen: dict[str, b.Anchor] = {}  # newest commit that this instance has seen, by tenant
        self._since: dict[str, int] = {}  # by tenant: position after which only this instance committed
        self._cached: OrderedDict[tuple[str, bytes], CachedThread] = OrderedDict()  # least recently used first
        self._ahead = 0.0  # the store's clock minus this process's
        # (tenant, jti of this process) → what `_located` returns for it.
        self._places: dict[tuple[str, str], tuple[bytes, str | None, str]] = {}
        self._identity = ""
        self._pid = os.getpid()
        self._workers: ThreadPoolExecutor | None = None

    def load(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        key = rows.thread_key(scope)
        with self._reading(scope.tenant) as tx:
            held, seen = self._cached_thread(scope.tenant, key)
            found, now = self._read(tx, Fetch(scope.tenant, key, Needs.of(query), held, self._latest - b.LASTS), seen)
        if not found.seen and found.cached is None:  # cache a new thread, so that its first commit needs no read
            with self._lock:
                self._set_cached(found, cacheable_rows(found.thread.copied(), None, "", found.position, found.version))
        if query.deeds and found.cached is not None and not self._by_thread:
            found.cached.doubts[:] = [(found.nonce, found.needs.deeds, found.doubts)]
        snap = take_snapshot(found.thread, query, now)
        snap.doubts = tuple(_doubt(row, now) for row in found.doubts)
        return snap

    def commit(self, scope: b.Scope, guard: b.Guard | None, changes: Sequence[Change]) -> b.Committed | b.Conflict:
        """See `Ledger.commit`. A revocation is retried after a timeout (`URGENT`)."""
        if Revoke in map(type, changes):
            return retry_timeouts(URGENT, lambda: self._commit(scope, guard, changes))
        return self._commit(scope, guard, changes)

    def _commit(self, scope: b.Scope, guard: b.Guard | None, changes: Sequence[Change]) -> b.Committed | b.Conflict:
        key, nonce = rows.thread_key(scope), os.urandom(16).hex()
        wanted = rows_needed(guard, changes)
        digests = map(rows.thread_key, wanted.locks) if self._by_thread else ()
        locks = sorted({f"turn:{int.from_bytes(digest) % LOCKS}" for digest in digests})
        locked, trust = False, True
        while True:
            with self._writing(scope.tenant, key, locks, locked) as tx:
                cached, seen = self._cached_thread(scope.tenant, key)
                found = Fetch(scope.tenant, key, wanted, None if locked else cached, self._latest - b.LASTS)
                found.locks = dict.fromkeys(locks, "")
                from_cache = self._from_cache(found, seen) if trust else None
                found, now = from_cache or self._read(tx, found, seen)
                found.before, found.thread = found.thread, found.thread.copied()
                found.thread.scope, found.thread.open = scope, _opened(found.doubts, now)
                refused = apply_changes(found.thread, guard, changes, now)
                if (
                    refused is None
                    and (done := tx.keep(found, rows.changed_rows(found, scope, now), nonce, now)) is not None
                ):
                    position, found.seen = done
                    self._latest = max(now, self._latest)
                    for jti, call, lease in found.thread.issued:
                        self._places[scope.tenant, jti] = key, call, lease
                    if len(self._places) > MAX_PLACES:
                        self._places.clear()
                    epoch = found.thread.epoch
                    self._cache_commit(found, b.Anchor(self._identity, position, nonce))
                    return b.Committed(now, epoch)
            if refused is not None and not from_cache:  # a refusal is final, unless it is based on cached rows only
                return refused
            if locked:
                raise LedgerError(Code.LEDGER_UNAVAILABLE, "the thread changed under its lock")
            locked, trust = not from_cache, False

    def status(self, tenant: str, jti: str) -> b.TokenStatus:
        seen, here = self._seen.get(tenant, NONE), self._places.pop((tenant, jti), None)
        with self._reading(tenant) as tx:
            place = here or _located(tx, tenant, jti)
            if place is None:
                return "unknown"
            thread, key, lease_jti = place
            wanted = Needs(leases={lease_jti}, calls={key} if key is not None else set())
            cached, _ = self._cached_thread(tenant, thread)
            found, now = self._read(tx, Fetch(tenant, thread, wanted, cached), seen)
        if here is not None:
            if lease_jti not in found.thread.leases:  # `prune` removed the lease
                return self.status(tenant, jti)
            self._places[tenant, jti] = here
        return lease_status(found.thread, lease_jti, key, now)

    def anchor(self, tenant: str) -> b.Anchor | None:
        return self._seen.get(tenant)

    def holds(self, tenant: str, anchor: b.Anchor) -> bool:
        """See `Anchored.holds`. A commit that `prune` removed counts as held."""
        if anchor.ledger != self._identity:
            return False
        with self._reading(tenant) as tx:
            entry = ("SELECT nonce FROM journal WHERE tenant = ? AND position = ?", (tenant, anchor.position))
            pruned = ("SELECT value FROM meta WHERE name = ?", ("pruned",))
            held, through = tx.batch([entry, pruned])
        return held[0][0] == anchor.nonce if held else any(anchor.position <= int(p) for (p,) in through)

    def asked(self, tenant: str, id: str | None = None) -> list[tuple[b.Scope, b.Approval]]:
        now, found = self._listed(tenant, (_ASKED, (tenant,)))
        asked = [(b.Scope(*json.loads(scope)), rows.parse_row(b.Approval, body)) for scope, body in found]
        return [one for one in asked if one[1].listed(id, now)][: b.MAX_ASKED]

    def doubts(self, tenant: str, key: str | None = None, scope: b.Scope | None = None) -> list[b.InDoubtCall]:
        where, by = (OPEN, ()) if key is None else ("c.key = ?", (rows.to_json(key),))
        if scope is not None:
            where, by = f"{where} AND c.thread = ?", (*by, rows.thread_key(scope))
        now, found = self._listed(tenant, (f"SELECT {DOUBTS}{where} ORDER BY c.at DESC", (tenant, *by)))
        doubts = [_doubt(row, now) for row in found]
        if key is None:
            doubts = sorted([one for one in doubts if one.listed(now)], key=lambda one: not one.row.lost)
        return doubts[: b.MAX_ASKED]

    def check(self, tenant: str) -> None:
        """Check that the ledger can commit, or raise `LedgerError`. Commits nothing."""
        with self._writing(tenant, b"check", (), locked=True) as tx:
            tx.batch([("SELECT 1", ())])

    def _listed(self, tenant: str, statement: Statement) -> tuple[float, Sequence[Row]]:
        seen = self._seen.get(tenant, NONE)
        with self._reading(tenant) as tx:
            return self._read_rows(tx, Fetch(tenant, b"", Needs()), seen), tx.batch([statement])[0]

    def close(self) -> None:
        """Close every connection. A closed ledger denies."""
        if self._workers is not None:
            self._workers.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self, tx: Tx, found: Fetch, seen: b.Anchor) -> tuple[Fetch, float]:
        """Return rows and ledger time. If others have committed, do not use the cache."""
        now = self._read_rows(tx, found, seen)
        if (cached := found.cached) is not None:
            others = not self._by_thread and seen[1:] != (found.position, found.nonce)
            if found.seen != cached.seen or others:
                found = Fetch(found.tenant, found.key, found.needs, since=found.since, locks=found.locks)
                now = self._read_rows(tx, found, seen)
        return found, now

    def _from_cache(self, found: Fetch, seen: b.Anchor) -> tuple[Fetch, float] | None:
        """Return cached rows and an estimated time, which `Tx.keep` checks; else None."""
        cached = found.cached
        if cached is None or found.locks or (doubts := cached.doubts_of(found.needs, seen.nonce)) is None:
            return None
        found.seen, found.version, found.doubts = cached.seen, cached.version, doubts
        found.position, found.nonce = seen.position, seen.nonce
        if self._clock is not None:
            return found, ledger_time(self._clock(), self._latest)
        found.drift = DRIFT
        return found, max(time.monotonic() + self._ahead, self._latest)

    def _read_rows(self, tx: Tx, found: Fetch, seen: b.Anchor) -> float:
        """Read the rows and return ledger time.

        Raises `LedgerError`: `ledger_rolled_back` if the ledger lacks `seen`, the newest commit that this instance saw;
        `ledger_schema` if this package cannot use the tables; `ledger_clock` if the clock was set back.
        """
        found.read(tx.batch([found.statement(*self._dialect)])[0])
        self._ahead = found.clock - time.monotonic()
        check_schema(found.version)
        if found.position < seen.position:
            raise LedgerError(
                Code.LEDGER_ROLLED_BACK, f"its newest commit is {found.position}, {seen.position} was confirmed"
            )
        with self._lock:
            if found.position > self._seen.get(found.tenant, NONE).position:  # another instance's commit
                self._since[found.tenant] = found.position
                self._seen[found.tenant] = b.Anchor(self._identity, found.position, found.nonce)
        clock = found.clock if self._clock is None else self._clock()
        now = ledger_time(clock, max(found.latest, self._latest))
        self._latest = max(now, self._latest)
        return now

    def _cached_thread(self, tenant: str, key: bytes) -> tuple[CachedThread | None, b.Anchor]:
        """Return a thread's cached rows (None if outdated), and the newest commit seen."""
        with self._lock:
            cached = self._cached.get((tenant, key))
            if cached is not None and not self._by_thread and cached.position < self._since.get(tenant, 0):
                cached = None
            return cached, self._seen.get(tenant, NONE)

    def _cache_commit(self, found: Fetch, done: b.Anchor) -> None:
        """Cache the thread after the commit `done`, if it was cached before or is new."""
        tenant, made = found.tenant, None
        if found.cached is not None or not found.before.exists:
            made = cacheable_rows(found.thread, found.cached, found.seen, done.position, found.version)
        with self._lock:
            head = self._seen.get(tenant, NONE)
            if head[1:] != (found.position, found.nonce):  # other commits came between, or this one was seen already
                self._since[tenant] = max(done.position, self._since.get(tenant, 0))
            if done.position > head.position:
                self._seen[tenant] = done
            self._set_cached(found, made)

    def _set_cached(self, found: Fetch, made: CachedThread | None) -> None:
        self._cached.pop((found.tenant, found.key), None)
        if made is not None:
            self._cached[found.tenant, found.key] = made
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)

    def _check_schema(self) -> None:
        """Read the ledger's identity and check that this version can work on it."""
        schema = "SELECT coalesce(max(version), 0), coalesce(max(min_reader), 0) FROM migration"
        with self._reading("") as tx:
            identity = ("SELECT value FROM meta WHERE name = 'ledger'", ())
            (found,), ((self._identity,),) = tx.batch([(schema, ()), identity])
        check_schema(Version(*found))

    def _here(self) -> None:
        if os.getpid() == self._pid:
            return
        with _beginning:
            if os.getpid() != self._pid:
                self._workers = None
                self._lock = threading.Lock()
                self._cached = OrderedDict()  # another thread may have been changing it
                self._forked()
                self._pid = os.getpid()

    async def _in_thread(self, verb: Callable[..., b.T], *args: Any) -> b.T:
        self._here()
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="ledger")
        try:
            job = self._workers.submit(verb, *args)
        except RuntimeError:  # it is shut down
            raise LedgerError(Code.LEDGER_UNAVAILABLE, "it was closed") from None
        return await asyncio.wrap_future(job)

    # To be implemented by a store:

    def _reading(self, tenant: str) -> AbstractContextManager[Tx]:
        raise NotImplementedError

    def _writing(self, tenant: str, key: bytes, locks: Collection[str], locked: bool) -> AbstractContextManager[Tx]:
        raise NotImplementedError

    def _forked(self) -> None:
        raise NotImplementedError


def retry_timeouts(tries: int, run: Callable[[], b.T]) -> b.T:
    """Call `run` again after a timeout (`ledger_timeout`), up to `tries` times in all."""
    while True:
        tries -= 1
        try:
            return run()
        except LedgerError as exc:
            if not tries or exc.code != Code.LEDGER_TIMEOUT:
                raise


def _located(tx: Tx, tenant: str, jti: str) -> tuple[bytes, str | None, str] | None:
    """Return a jti's thread key, call key (None for a lease) and lease jti, or None."""
    of = (tenant, rows.to_json(jti))
    tokens, leases = tx.batch([(_CALLS, of), (_LEASES, of)])
    for thread, key, lease in tokens:
        return bytes(thread), json.loads(key), json.loads(lease)
    return (bytes(leases[0][0]), None, jti) if leases else None


def _doubt(row: Row, now: float) -> b.InDoubtCall:
    scope, subject, expires, *call = row
    found = rows.call_row(*call)
    if found.state == "claimed" and (expires is None or now >= expires):
        found = found._replace(state="unknown")
    return b.InDoubtCall(b.Scope(*json.loads(scope)), json.loads(subject), found)


def _opened(doubts: Sequence[Row], now: float) -> dict[str, dict[str, Thread]]:
    """Return `Thread.open`: deed → call key → a thread that has only this call."""
    found: dict[str, dict[str, Thread]] = {}
    for scope, subject, call in (_doubt(row, now) for row in doubts):
        held = {call.jti: b.Lease(call.jti, "", (), 0, 0, int(now) + 1)}  # `_doubt` has checked that the lease is live
        thread = Thread(scope=scope, subject=subject, calls={call.key: call}, leases=held)
        found.setdefault(call.deed, {})[call.key] = thread
    return found
