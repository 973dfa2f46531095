"""The steps taken so far, in bounded space: counters, data classes, the last few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from langchain_runtime_authz.authzen import HistoryContext

__all__ = ["MAX_NAMES", "RECENT", "History", "to_context"]

RECENT: Final = 10  # steps kept by name
MAX_NAMES: Final = 256  # distinct counters; what a hostile model invents beyond is counted as `*`


@dataclass(frozen=True, slots=True)
class History:
    """Immutable view. `calls` counts permitted calls by tool, `effects` by effect."""

    steps: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)
    effects: Mapping[str, int] = field(default_factory=dict)
    denials: int = 0
    classes_read: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()


def to_context(history: History) -> HistoryContext:
    """The part of the request that a policy reads."""
    return HistoryContext(
        steps=history.steps,
        calls=dict(history.calls),
        effects=dict(history.effects),
        denials=history.denials,
        classes_read=list(history.classes_read),
        recent=list(history.recent),
    )
