"""The steps taken so far, in bounded space: counters, data classes, recent steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

RECENT: Final = 10  # steps kept by name
MAX_NAMES: Final = 256  # distinct counters; further names, which a hostile model may invent, are counted as `*`
RESOURCES: Final = 1024  # number of resources, the newest, whose version is kept
TIMES: Final = 128  # number of permitted calls, the newest, whose time is kept
MINUTE: Final = 60  # seconds

Path = tuple[str, ...]
Confined = tuple[tuple[str, Path], ...]


@dataclass(slots=True)
class Step:
    """One step to count. A negative count undoes an earlier count."""

    call: str | None = None
    effect: str | None = None
    denials: int = 0
    data_class: str | None = None
    recent: str | None = None
    side_effect: bool = False
    unplanned: int = 0
    tainted: int = 0
    resource: tuple[str, str, str] | None = None
    agent: Path = ()  # if empty, all agents count as knowing the data


@dataclass(slots=True)
class History:
    """The steps of a thread. Snapshots share the object, so never change it in place.

    `times`: ledger times (seconds) of the newest permitted calls. `changed`: tool → number of steps when a repeated
    read returned other content. `resources`: resource → its version and the tool. `confined`: (data class, agent path)
    of data that only this agent, its parents and its children can know.
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


# An agent may tell its parents at any time what it read. A parent may tell all that it knows to each agent that gets
# work from it afterwards. All agents may see the effects of an agent's side effects and fetches. So only agents that
# work in parallel, and have had no such effect yet, do not know what the other agent read. If `confined` is lost, all
# agents count as knowing everything.


def classes_known(history: History, agent: Path) -> list[str]:
    elsewhere = {name for name, _ in history.confined} - set(_known(history.confined, agent))
    return [name for name in history.classes_read if name not in elsewhere]


def confine(confined: Confined, read: Sequence[str], name: str, agent: Path) -> Confined:
    """Return `confined` after `agent` read data of the class `name`."""
    # `read`: the classes read before.
    if name in read and all(n != name for n, _ in confined):
        return confined  # all agents count as knowing this class already
    if len(agent) <= 1 or len(confined) >= MAX_NAMES:
        return _without(confined, {name})
    return tuple(dict.fromkeys((*confined, (name, agent))))


def reveal(confined: Confined, agent: Path) -> Confined:
    """Drop what `agent` knows: it did something that all agents can see."""
    return _without(confined, set(_known(confined, agent)))


def handed_down(confined: Confined, parent: Path) -> Confined:
    """Return `confined` after `parent` gave work to a child."""
    # If `parent` is empty, a root entry began.
    if len(parent) <= 1:  # the root agent is related to all agents
        return ()
    return tuple(dict.fromkeys((n, parent if a[: len(parent)] == parent else a) for n, a in confined))


def _known(confined: Confined, agent: Path) -> Iterator[str]:
    for name, reader in confined:
        shorter = min(len(reader), len(agent))
        if reader[:shorter] == agent[:shorter]:
            yield name


def _without(confined: Confined, names: set[str]) -> Confined:
    return tuple(c for c in confined if c[0] not in names)


def count(h: History, step: Step, now: float) -> History:
    calls, effects, classes, confined = h.calls, h.effects, h.classes_read, h.confined
    if (call := step.call) is not None:
        call = call if call in calls or len(calls) < MAX_NAMES else "*"
        calls = {**calls, call: calls.get(call, 0) + 1}
    if (effect := step.effect) is not None:
        effect = effect if effect in effects or len(effects) < MAX_NAMES else "*"
        effects = {**effects, effect: effects.get(effect, 0) + 1}
    if confined and step.effect not in (None, "compute", "read"):  # other agents may see a fetched address too
        confined = reveal(confined, step.agent)
    if (name := step.data_class) is not None and (confined or name not in classes):
        name = name if name in classes or len(classes) < MAX_NAMES else "*"
        confined = confine(confined, classes, name, step.agent)
        classes = classes if name in classes else tuple(sorted({*classes, name}))
    return History(
        h.steps + 1,
        calls,
        effects,
        h.denials + step.denials,
        classes,
        h.recent if step.recent is None else (*h.recent, step.recent)[-RECENT:],
        0 if step.call is not None else max(h.streak + step.denials, 0),
        h.unplanned + step.unplanned,
        h.tainted + step.tainted,
        0 if step.side_effect else h.rotations,
        h.times if step.call is None else (*h.times, int(now))[-TIMES:],
        h.changed,
        h.resources if step.resource is None else _read(h.resources, *step.resource),
        confined,
    )


def _read(known: Mapping[str, str], name: str, tool: str, version: str) -> Mapping[str, str]:
    others = [(k, v) for k, v in known.items() if k != name]
    return dict([*others, (name, f"{version} {tool}")][-RESOURCES:])


def to_context(history: History, now: float, agent: Sequence[str]) -> dict[str, Any]:
    return {
        "steps": history.steps,
        "calls": dict(history.calls),
        "effects": dict(history.effects),
        "denials": history.denials,
        "classes_read": list(history.classes_read),
        "classes_held": classes_known(history, tuple(agent)) if history.confined else list(history.classes_read),
        "recent": list(history.recent),
        "streak": history.streak,
        "unplanned": history.unplanned,
        "tainted": history.tainted,
        "rotations": history.rotations,
        # Ledger time never goes back, so the times are in order.
        "last_minute": len(history.times) - bisect_right(history.times, now - MINUTE),
    }
