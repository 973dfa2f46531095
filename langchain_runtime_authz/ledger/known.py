"""Threads that a SQL ledger has begun, all of whose rows it remembers while nobody else commits there.

Pure. Nothing here is believed on its own: a load looks whether the thread is still as it was in the statement that brings
the rest, and a commit does so in the statement that writes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from langchain_runtime_authz.ledger.schema import Version
from langchain_runtime_authz.ledger.state import Needs, Thread

MAX_KNOWN: Final = 256  # threads
MAX_ROWS: Final = 1024  # of one


class Known(NamedTuple):
    """All rows of a thread as one commit left them. They are shared, so nobody changes them.

    Attributes:
        thread: the rows, but texts, and calls `without` which.
        seen, version: of `Fetch`.
        position: of a commit after which nobody else had changed the thread yet.
    """

    thread: Thread
    without: frozenset[str]
    seen: str
    position: int
    version: Version

    def covers(self, n: Needs) -> bool:
        return not (n.deeds or n.turns or n.log or n.pending) and self.without.isdisjoint(n.calls)


def copied(t: Thread) -> Thread:
    """Return a thread whose rows can change while those of `t` stay."""
    return Thread(
        t.exists,
        t.subject,
        t.epoch,
        t.task,
        t.history,
        t.log.copy(),
        t.pending.copy(),
        t.marks.copy(),
        t.revoked.copy(),
        t.leases.copy(),
        t.plans.copy(),
        t.by_call.copy(),
        t.calls.copy(),
        t.approvals.copy(),
        t.edges.copy(),
        t.budgets.copy(),
        t.rates.copy(),
        t.values.copy(),
    )


def known(t: Thread, before: Known | None, seen: str, position: int, version: Version) -> Known | None:
    """Return what is known of a thread after a commit, or None if it is too much. Nobody else uses `t` any further."""
    without = before.without if before is not None else frozenset()
    # What a call returned may be long, and is asked for only if the call is entered again.
    if over := [key for key, row in t.calls.items() if row.result is not None]:
        without = without.union(over)
        for key in over:
            del t.calls[key]
    rows = (t.marks, t.leases, t.plans, t.by_call, t.calls, t.approvals, t.edges, t.budgets, t.rates, t.values, without)
    if sum([len(some) for some in rows]) > MAX_ROWS:
        return None
    t.log, t.pending, t.issued, t.open = [], [], [], {}
    return Known(t, without, seen, position, version)
