"""A clock that moves only by `tick`."""

from __future__ import annotations


class FrozenClock:
    """Epoch seconds that stand still: `MemoryLedger(clock=FrozenClock())`."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def tick(self, seconds: float) -> float:
        """Move the clock by `seconds`, which may be negative, and return the new time."""
        self.now += seconds
        return self.now
