"""The steps taken so far, in bounded space: counters, data classes, the last few steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from langchain_runtime_authz.authzen import HistoryContext

__all__ = [
    "MAX_NAMES",
    "MINUTE",
    "RECENT",
    "RESOURCES",
    "TIMES",
    "Confined",
    "History",
    "confine",
    "handed_down",
    "held",
    "left",
    "to_context",
]

RECENT: Final = 10  # steps kept by name
MAX_NAMES: Final = 256  # distinct counters; what a hostile model invents beyond is counted as `*`
RESOURCES: Final = 64  # of what was read, the newest
TIMES: Final = 128  # permitted calls whose time is kept
MINUTE: Final = 60  # seconds

Path = tuple[str, ...]
Confined = tuple[tuple[str, Path], ...]


@dataclass(frozen=True, slots=True)
class History:
    """Immutable view. `calls` counts permitted calls by tool, `effects` by effect.

    `times` are ledger seconds of the newest permitted calls; the other counters are told at
    `authzen.HistoryContext`. `changed`: tool → the step at which a read of it gave another content
    than before, since the task last changed. `resources`: what was read → its version then, a space,
    and the tool that read it. `confined`: (data class, agent path), for the classes that only these
    agents and their relatives can know; a class that was read and is not here may be known to all.
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
    confined: Confined = ()


# --- which agent can know data of which class -------------------------------------------------------
#
# What an agent read, its parents are judged by from then on (it answers them when it likes), and so is
# whoever they hand work to afterwards: a parent's words may carry anything that it knows. What an
# agent does to the world (a file, a row, a message, an address it fetched) others may read. Only
# agents at work side by side, of which none has done anything yet, do not know what the other read.
# A ledger that forgets `confined`, or an older package that drops it, makes everybody know everything.


def held(history: History, agent: Path) -> list[str]:
    """The data classes that `agent` can know something of."""
    if not history.confined:
        return list(history.classes_read)
    elsewhere = {name for name, _ in history.confined} - set(_known(history.confined, agent))
    return [name for name in history.classes_read if name not in elsewhere]


def confine(confined: Confined, read: Sequence[str], name: str, agent: Path) -> Confined:
    """`confined` after `agent` read data of class `name`; `read` are the classes that were read before."""
    if name in read and all(n != name for n, _ in confined):
        return confined  # everybody knows it, or it is not recorded who does
    if len(agent) <= 1 or len(confined) >= MAX_NAMES:
        return _without(confined, {name})
    return tuple(dict.fromkeys((*confined, (name, agent))))


def left(confined: Confined, agent: Path) -> Confined:
    """`confined` after `agent` did something that others can see."""
    return _without(confined, set(_known(confined, agent)))


def handed_down(confined: Confined, parent: Path) -> Confined:
    """`confined` after `parent` gave work to a child; without a parent a root entry began, on all that there is."""
    if len(parent) <= 1:  # the root agent is everybody's relative, and so is an entry without one
        return ()
    return tuple(dict.fromkeys((n, parent if a[: len(parent)] == parent else a) for n, a in confined))


def _known(confined: Confined, agent: Path) -> Iterator[str]:
    """What was read by `agent`, by one above it, or by one below it."""
    for name, reader in confined:
        shorter = min(len(reader), len(agent))
        if reader[:shorter] == agent[:shorter]:
            yield name


def _without(confined: Confined, names: set[str]) -> Confined:
    return tuple(c for c in confined if c[0] not in names)


# --- what is told ------------------------------------------------------------------------------------


def to_context(history: History, now: float, agent: Sequence[str]) -> HistoryContext:
    """The part of the request of `agent` that a policy reads."""
    return HistoryContext(
        steps=history.steps,
        calls=dict(history.calls),
        effects=dict(history.effects),
        denials=history.denials,
        classes_read=list(history.classes_read),
        classes_held=held(history, tuple(agent)),
        recent=list(history.recent),
        streak=history.streak,
        unplanned=history.unplanned,
        tainted=history.tainted,
        rotations=history.rotations,
        # Ledger time never goes back, so the times stand in their order.
        last_minute=len(history.times) - bisect_right(history.times, now - MINUTE),
    )
