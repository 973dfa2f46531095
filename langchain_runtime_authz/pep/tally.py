"""What the gates of one `RuntimeAuthz` decided and let run: counters, compared with the static picture.

It decides nothing and nothing is decided by it: a lost count costs a line in a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from langchain_runtime_authz.fork import forkable_lock

if TYPE_CHECKING:
    from langchain_runtime_authz.pep.engine import Run

__all__ = ["Counted", "Gate", "Tally"]

MAX_KEYS: Final = 10_000  # tools may be made at run time, so their number has no bound of its own


class Gate(NamedTuple):
    """A gate in front of one thing: in a root graph, an agent of it, and the layer that stood there."""

    root: str
    agent: str
    kind: str
    name: str
    layer: str


class Counted(NamedTuple):
    """How often a gate decided, and how often what is behind it ran."""

    decided: int = 0
    ran: int = 0


class Tally:
    """Thread-safe and bounded. Names that a model made up are not to be counted under."""

    __slots__ = ("_counts", "_lock", "dropped")

    def __init__(self) -> None:
        self._counts: dict[Gate, list[int]] = {}
        self._lock = forkable_lock()
        self.dropped = 0

    def decided(self, run: Run, kind: str, name: str, layer: str) -> None:
        """A gate took a decision."""
        self._count(Gate(run.scope.graph, run.agent[-1], kind, name, layer), 0)

    def ran(self, run: Run, kind: str, name: str, layer: str) -> None:
        """What is behind a gate was let run."""
        self._count(Gate(run.scope.graph, run.agent[-1], kind, name, layer), 1)

    def _count(self, gate: Gate, which: int) -> None:
        with self._lock:
            counts = self._counts.get(gate)
            if counts is None:
                if len(self._counts) >= MAX_KEYS:
                    self.dropped += 1
                    return
                counts = self._counts[gate] = [0, 0]
            counts[which] += 1

    def of(self, root: str) -> Mapping[Gate, Counted]:
        """What was counted in runs of a root graph."""
        with self._lock:
            return {gate: Counted(*counts) for gate, counts in self._counts.items() if gate.root == root}
