"""The steps so far, in bounded space, and the delegation edges between agents."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_runtime_authz.evaluation import Edge, EdgeKind

RECENT: Final = 10  # number of newest steps whose names are stored
MAX_NAMES: Final = 256  # counted names; all further ones, which a hostile model may invent, count as `*`
RESOURCES: Final = 1024  # number of newest resources whose versions are stored
TIMES: Final = 128  # number of newest permitted calls whose times are stored
MINUTE: Final = 60  # seconds

Path = tuple[str, ...]
Confined = tuple[tuple[str, Path], ...]


@dataclass(slots=True)
class CountedStep:
    """One step to count. A negative number takes back an earlier count.

    `call`: the name of the called tool. `resource`: name, tool and version of a resource that was read. `recent`: the
    name that the member `recent` of the request shows.
    """

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

    `streak`: denials since the last permitted call. `times`: ledger times (seconds) of the newest permitted calls.
    `changed`: tool → the value of `steps` when a repeated read returned other content. `resources`: resource → its
    version and the tool. `confined`: (data class, agent path) of data that only this agent, its parents and its
    children can know.
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


# Data that an agent reads can reach its parents at any time, and each child to which it gives work afterwards. By a
# side effect or a fetch, the data can reach all agents. So `confined` lists data of agents that work in parallel, until
# one of these happens. A data class that `confined` does not list counts as known to all agents.


def classes_known(history: History, agent: Path) -> list[str]:
    """Return the data classes that the agent can know."""
    elsewhere = {name for name, _ in history.confined} - set(_known(history.confined, agent))
    return [name for name in history.classes_read if name not in elsewhere]


def confine_to_agent(confined: Confined, read: Sequence[str], name: str, agent: Path) -> Confined:
    """Return `confined` after `agent` read data class `name`. `read`: earlier classes."""
    if name in read and all(n != name for n, _ in confined):
        return confined  # all agents count as knowing this class
    if len(agent) <= 1 or len(confined) >= MAX_NAMES:
        return _without(confined, {name})
    return tuple(dict.fromkeys((*confined, (name, agent))))


def reveal_known(confined: Confined, agent: Path) -> Confined:
    """Return `confined` after `agent` may have told all other agents what it knows."""
    return _without(confined, set(_known(confined, agent)))


def handed_down(confined: Confined, parent: Path) -> Confined:
    """Return `confined` after the agent `parent` (() for a root entry) called a child."""
    if len(parent) <= 1:  # all agents are below the root agent
        return ()
    return tuple(dict.fromkeys((n, parent if a[: len(parent)] == parent else a) for n, a in confined))


def _known(confined: Confined, agent: Path) -> Iterator[str]:
    for name, reader in confined:
        shorter = min(len(reader), len(agent))
        if reader[:shorter] == agent[:shorter]:
            yield name


def _without(confined: Confined, names: set[str]) -> Confined:
    return tuple(c for c in confined if c[0] not in names)


def count_step(h: History, step: CountedStep, now: float) -> History:
    """Return the history with one step added, at the ledger time `now`."""
    calls, effects, classes, confined = h.calls, h.effects, h.classes_read, h.confined
    if (call := step.call) is not None:
        call = call if call in calls or len(calls) < MAX_NAMES else "*"
        calls = {**calls, call: calls.get(call, 0) + 1}
    if (effect := step.effect) is not None:
        effect = effect if effect in effects or len(effects) < MAX_NAMES else "*"
        effects = {**effects, effect: effects.get(effect, 0) + 1}
    if confined and step.effect not in (None, "compute", "read"):  # others can see the effect
        confined = reveal_known(confined, step.agent)
    if (name := step.data_class) is not None and (confined or name not in classes):
        name = name if name in classes or len(classes) < MAX_NAMES else "*"
        confined = confine_to_agent(confined, classes, name, step.agent)
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
        h.resources if step.resource is None else _with_version(h.resources, *step.resource),
        confined,
    )


def _with_version(known: Mapping[str, str], name: str, tool: str, version: str) -> Mapping[str, str]:
    others = [(k, v) for k, v in known.items() if k != name]
    return dict([*others, (name, f"{version} {tool}")][-RESOURCES:])


def history_context(history: History, now: float, agent: Sequence[str]) -> dict[str, Any]:
    """Return the member `history` of a request's context, as `agent` may know it."""
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
        "last_minute": len(history.times) - bisect_right(history.times, now - MINUTE),
    }


HANDOFF_KEY = "__handoff_destination"  # set by langgraph-supervisor and langgraph-swarm on handoff tools


def make_edge(parent: Sequence[str], child: str, kind: EdgeKind) -> Edge:
    """Return the edge from the last agent of a path to `child`."""
    return Edge.model_validate({"from": parent[-1] if parent else "", "to": child, "kind": kind})


def handoff_edge(agent: Sequence[str], metadata: Mapping[str, Any] | None) -> Edge | None:
    """Return the edge that a handoff tool's metadata names; `None` for other tools."""
    destination = (metadata or {}).get(HANDOFF_KEY)
    return make_edge(agent, destination, "handoff") if isinstance(destination, str) else None


def kind_of_child(tool: str | None, args: Mapping[str, Any] | None, *, sent: bool = False) -> EdgeKind:
    """Return the kind of the edge to a child graph.

    `tool`, `args`: the tool call that starts the child, if any. `sent`: LangGraph's `Send` started the child's node.
    """
    if tool is None:
        return "send" if sent else "subgraph"
    return "task" if tool == "task" and "subagent_type" in (args or {}) else "agent_as_tool"


def edge_context(depth: int, edges: Sequence[Edge]) -> dict[str, Any]:
    """Return the member `delegation` of a request's context."""
    told = [{"from": e.from_, "to": e.to, "kind": e.kind} for e in edges]
    return {"depth": depth, "edges": told}
