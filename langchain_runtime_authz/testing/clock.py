"""A clock that only moves when told to."""

from __future__ import annotations

__all__ = ["FrozenClock"]


class FrozenClock:
    """Callable, epoch seconds: `MemoryLedger(clock=FrozenClock())`."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def tick(self, seconds: float) -> float:
        """Move on by `seconds` (negative: step back) and return the new time."""
        self.now += seconds
        return self.now
