"""Cache threads that this process began, while nobody else commits to them.

This module is pure. Each load, and each writing statement of a commit, checks that the thread is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.ledger.schema import Version
from langchain_runtime_authz.ledger.thread_state import ROWS, Needs, Thread

MAX_CACHED: Final = 256  # threads
MAX_ROWS: Final = 1024  # of one thread


class CachedThread(NamedTuple):
    """All rows of a thread after one commit. Shared, so they must not be changed."""

    thread: Thread  # the rows, except the task's texts and the calls in `without`
    without: frozenset[str]  # keys of calls with a result
    seen: str  # changes with each commit of the thread
    position: int  # the commit's position; up to there, only this instance changed the thread
    version: Version
    # Calls in doubt that the last load read: (nonce of the tenant's newest commit, deeds, rows of calls with a deed).
    doubts: list[tuple[str, set[str], list[Sequence[Any]]]]

    def doubts_of(self, n: Needs, newest: str) -> list[Sequence[Any]] | None:
        """Return calls in doubt, cached at commit `newest`; None if `n` must be read."""
        if n.log or not self.without.isdisjoint(n.calls):
            return None
        looked = ((newest, set[str](), list[Any]()), *self.doubts)
        return next((rows for nonce, deeds, rows in looked if nonce == newest and n.deeds <= deeds), None)


def cacheable_rows(
    t: Thread, before: CachedThread | None, seen: str, position: int, version: Version
) -> CachedThread | None:
    """Turn `t` into rows to cache after a commit. Return None if there are too many."""
    without = before.without if before is not None else frozenset()
    # Results may be long, and are needed only if a call is entered again.
    if over := [key for key, row in t.calls.items() if row.result is not None]:
        without = without.union(over)
        for key in over:
            del t.calls[key]
    if sum(map(len, (*ROWS(t), without))) > MAX_ROWS:
        return None
    t.log, t.issued, t.open = [], [], {}
    return CachedThread(t, without, seen, position, version, [])
