"""The steps taken so far, in bounded space: counters, data classes, the last few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from langchain_runtime_authz.authzen import HistoryContext

__all__ = ["MAX_NAMES", "MINUTE", "RECENT", "RESOURCES", "TIMES", "History", "to_context"]

RECENT: Final = 10  # steps kept by name
MAX_NAMES: Final = 256  # distinct counters; what a hostile model invents beyond is counted as `*`
RESOURCES: Final = 64  # of what was read, the newest
TIMES: Final = 128  # permitted calls whose time is kept
MINUTE: Final = 60  # seconds


@dataclass(frozen=True, slots=True)
class History:
    """Immutable view. `calls` counts permitted calls by tool, `effects` by effect.

    `times` are ledger seconds of the newest permitted calls; the other counters are told at
    `authzen.HistoryContext`. `changed`: tool → the step at which a read of it gave another content
    than before, since the task last changed. `resources`: what was read → its version then, a space,
    and the tool that read it.
    """

    steps: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)
    effects: Mapping[str, int] = field(default_factory=dict)
    denials: int = 0
    classes_read: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()
    streak: int = 0
    unplanned: int = 0
    tainted: int = 0
    rotations: int = 0
    times: tuple[int, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)


def to_context(history: History, now: float) -> HistoryContext:
    """The part of the request that a policy reads."""
    return HistoryContext(
        steps=history.steps,
        calls=dict(history.calls),
        effects=dict(history.effects),
        denials=history.denials,
        classes_read=list(history.classes_read),
        recent=list(history.recent),
        streak=history.streak,
        unplanned=history.unplanned,
        tainted=history.tainted,
        rotations=history.rotations,
        last_minute=sum(t > now - MINUTE for t in history.times),
    )
