"""A cache of threads that this process began, valid while nobody else commits to them.

Pure. The cache is never trusted unchecked: each load, and each commit as it writes, checks that the thread is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.ledger.schema import Version
from langchain_runtime_authz.ledger.thread_state import Needs, Thread

MAX_KNOWN: Final = 256  # threads
MAX_ROWS: Final = 1024  # of one thread
_ROWS: Final = attrgetter(  # in the order of `Thread`
    *("log", "pending", "marks", "revoked", "leases", "plans", "by_call", "calls", "approvals", "edges"),
    *("budgets", "rates", "values"),
)


class Known(NamedTuple):
    """All rows of a thread after one commit. They are shared and must not be changed.

    Attributes:
        thread: the rows, except texts and the calls in `without`.
        seen, version: of `Fetch`.
        position: a commit up to which nobody else had changed the thread.
        doubts: the last doubts that a load read: the nonce of the tenant's newest commit then, their deeds and rows.
    """

    thread: Thread
    without: frozenset[str]
    seen: str
    position: int
    version: Version
    doubts: list[tuple[str, set[str], list[Sequence[Any]]]]

    def recalled(self, n: Needs, newest: str) -> list[Sequence[Any]] | None:
        """Return the doubts in `n` while `newest` is the tenant's newest commit; None if a row in `n` is not known."""
        if n.log or n.pending or not self.without.isdisjoint(n.calls):
            return None
        looked = ((newest, set[str](), list[Any]()), *self.doubts)
        return next((rows for nonce, deeds, rows in looked if nonce == newest and n.deeds <= deeds), None)


def copied(t: Thread) -> Thread:
    """Return a copy of `t` whose rows can be changed independently."""
    return Thread(t.exists, t.subject, t.epoch, t.task, t.history, *[rows.copy() for rows in _ROWS(t)])


def known(t: Thread, before: Known | None, seen: str, position: int, version: Version) -> Known | None:
    """Return the rows to cache after a commit, or None if there are too many. This consumes `t`."""
    without = before.without if before is not None else frozenset()
    # Results may be long, and are needed only if a call is entered again.
    if over := [key for key, row in t.calls.items() if row.result is not None]:
        without = without.union(over)
        for key in over:
            del t.calls[key]
    if sum(map(len, (*_ROWS(t), without))) > MAX_ROWS:
        return None
    t.log, t.pending, t.issued, t.open = [], [], [], {}
    return Known(t, without, seen, position, version, [])
