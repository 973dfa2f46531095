"""Count the decisions of one instance by their targets, for coverage reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from langchain_runtime_authz._locks import forkable_lock

MAX_KEYS: Final = 10_000  # counted targets; code may create tools without end

Target = tuple[str, str, str]  # agent, kind, name


class PointCounts(NamedTuple):
    """Counts of a target: decisions, and runs."""

    decided: int = 0
    ran: int = 0


class DecisionCounts:
    """Counts decisions and runs of their targets. An agent is a target of its own."""

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        # (root graph, target) → decisions, runs, names of enforcement points
        self._counts: dict[tuple[str, Target], list[Any]] = {}
        self._lock = forkable_lock()

    def count(self, run: Any, kind: str, name: str, layer: str, *, decided: int = 0, ran: int = 0) -> None:
        """Add to the counts of a target of `run` at the enforcement point `layer`."""
        key = run.scope.graph, (name if kind == "agent" else run.agent[-1], kind, name)
        with self._lock:
            if key in self._counts or len(self._counts) < MAX_KEYS:
                counts = self._counts.setdefault(key, [0, 0, ()])
                counts[0] += decided
                counts[1] += ran
                if layer not in counts[2]:
                    counts[2] += (layer,)

    def of(self, root: str) -> Mapping[Target, tuple[tuple[str, ...], PointCounts]]:
        """Return target → its enforcement points and counts, in runs of a root graph."""
        with self._lock:
            return {
                target: (tuple(sorted(layers)), PointCounts(decided, ran))
                for (graph, target), (decided, ran, layers) in self._counts.items()
                if graph == root
            }
