"""Count what one instance's enforcement points decided and let run, to compare it with the static picture.

Nothing is decided by it: a lost count costs a line in a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from langchain_runtime_authz.fork import forkable_lock

if TYPE_CHECKING:
    from langchain_runtime_authz.pep.engine import Run

Key = tuple[str, str, str, str, str]  # as `Gate`
MAX_KEYS: Final = 10_000  # tools may be made at run time, so their number has no bound of its own


class Gate(NamedTuple):
    """An enforcement point in front of one thing: in a root graph, an agent of it, and the layer that decided."""

    root: str
    agent: str
    kind: str
    name: str
    layer: str


class Counted(NamedTuple):
    """Two counts: an enforcement point's decisions, and the runs of what is behind it."""

    decided: int = 0
    ran: int = 0


class Tally:
    """Counters, thread-safe and bounded. Do not count under names that a model made up."""

    __slots__ = ("_counts", "_lock", "dropped")

    def __init__(self) -> None:
        self._counts: dict[Key, list[int]] = {}
        self._lock = forkable_lock()
        self.dropped = 0

    def decided(self, run: Run, kind: str, name: str, layer: str) -> None:
        with self._lock:
            counts = self._counts.get(key := (run.scope.graph, run.agent[-1], kind, name, layer))
            if counts is None:
                counts = self._new(key)
            counts[0] += 1

    def ran(self, run: Run, kind: str, name: str, layer: str) -> None:
        with self._lock:
            counts = self._counts.get(key := (run.scope.graph, run.agent[-1], kind, name, layer))
            if counts is None:
                counts = self._new(key)
            counts[1] += 1

    def _new(self, key: Key) -> list[int]:
        if len(self._counts) >= MAX_KEYS:
            self.dropped += 1
            return [0, 0]
        return self._counts.setdefault(key, [0, 0])

    def of(self, root: str) -> Mapping[Gate, Counted]:
        with self._lock:
            return {Gate(*key): Counted(*counts) for key, counts in self._counts.items() if key[0] == root}
