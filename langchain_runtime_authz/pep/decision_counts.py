"""Count the decisions of one instance by enforcement point, for coverage reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from langchain_runtime_authz._locks import forkable_lock

MAX_KEYS: Final = 10_000  # counted enforcement points; code may create tools without end


class EnforcementPoint(NamedTuple):
    """One enforcement point: its root graph, agent, target and layer."""

    root: str
    agent: str
    kind: str
    name: str
    layer: str


class PointCounts(NamedTuple):
    """Counts at an enforcement point: decisions, and runs of its target."""

    decided: int = 0
    ran: int = 0


class DecisionCounts:
    """Counts decisions and runs of their targets by enforcement point."""

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str, str, str], list[int]] = {}  # the fields of an `EnforcementPoint`
        self._lock = forkable_lock()

    def count(self, run: Any, kind: str, name: str, layer: str, *, decided: int = 0, ran: int = 0) -> None:
        """Add to the counts of the enforcement point at which `run` is."""
        key = run.scope.graph, run.agent[-1], kind, name, layer
        with self._lock:
            if key in self._counts or len(self._counts) < MAX_KEYS:
                counts = self._counts.setdefault(key, [0, 0])
                counts[0] += decided
                counts[1] += ran

    def of(self, root: str) -> Mapping[EnforcementPoint, PointCounts]:
        """Return the counts of a root graph's enforcement points."""
        with self._lock:
            return {EnforcementPoint(*k): PointCounts(*n) for k, n in self._counts.items() if k[0] == root}
