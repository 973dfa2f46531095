"""What the graphs below a root keep: their checkpoints are their own, and the root's say nothing of them.

Those that wait are read from the root, before anything runs (`ReadBelow`). Those that keep a state of their
own, beside the root's thread or beyond a run, are held against what their last run left when they are
called again (`held_against`, `left_at`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.types import StateSnapshot

from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.state import Below, ChildMark, Head
from langchain_runtime_authz.langgraph._private import Place, Pregel, is_of_task, namespace_of_graph, namespaces_of_task
from langchain_runtime_authz.langgraph.state_changes import Moved, ReadHead, saver_of, watched
from langchain_runtime_authz.ledger.changes import Change, DeleteMarks, SetMark
from langchain_runtime_authz.pep.engine import Engine, Flow, Run
from langchain_runtime_authz.pep.entry import edited

__all__ = ["ReadBelow", "held_against", "left_at", "mark_of"]


@dataclass(frozen=True, slots=True)
class ReadBelow:
    """An effect: what the graphs hold that wait below a thread's root; `None` where none does.

    LangGraph knows those that are nodes. Those that a tool or a node's code called are found by their namespace,
    one level deep. `nodes_only` looks for the first kind alone: where nothing waits there is none of the second.
    """

    graph: Any
    config: Mapping[str, Any]
    channels: Sequence[str] = ()
    nodes_only: bool = False

    def run(self, engine: Engine) -> Below | None:
        """Read it, blocking."""
        if self._needless():
            return None
        state = self.graph.get_state(self._place(), subgraphs=True)
        called: list[CheckpointTuple] = []
        if (saver := saver_of(self.graph)) is not None:
            for places in self._called(state):
                for place in places:
                    if (kept := saver.get_tuple(place)) is None:
                        break
                    called.append(kept)
        return self._said(state, called)

    async def arun(self, engine: Engine) -> Below | None:
        """Read it."""
        if self._needless():
            return None
        state = await self.graph.aget_state(self._place(), subgraphs=True)
        called: list[CheckpointTuple] = []
        if (saver := saver_of(self.graph)) is not None:
            for places in self._called(state):
                for place in places:
                    if (kept := await saver.aget_tuple(place)) is None:
                        break
                    called.append(kept)
        return self._said(state, called)

    def _needless(self) -> bool:
        return self.nodes_only and not any(True for _ in self.graph.get_subgraphs())

    def _place(self) -> Any:
        return {"configurable": {"thread_id": (self.config.get("configurable") or {}).get("thread_id")}}

    def _called(self, state: StateSnapshot) -> Iterator[Iterator[Any]]:
        """Where each task's graphs keep their state, one place after the other: it ends where nothing stands."""
        thread = self._place()["configurable"]
        named: dict[str, int] = {}
        for task in state.tasks:
            node = self.graph.nodes.get(task.name)
            if node is None or not isinstance(node.bound, Pregel):  # which is the only one of its task
                found = 1 if isinstance(task.state, StateSnapshot) else 0  # of a function LangGraph knows the first one
                named |= dict.fromkeys(namespaces_of_task(task.name, task.id), found)
        for name, first in named.items():
            numbered = (namespace_of_graph(name, number) for number in count(first))
            yield ({"configurable": {**thread, "checkpoint_ns": namespace}} for namespace in numbered)

    def _said(self, state: StateSnapshot, called: Sequence[CheckpointTuple]) -> Below | None:
        kept: list[tuple[Any, Any]] = []
        found = self._waiting(state, kept)
        for one in called:
            found.append(watched(one.checkpoint["channel_values"], self.channels))
            kept.append((one.config, one.metadata))
        updates = [
            _of(config, "checkpoint_id") for config, metadata in kept if (metadata or {}).get("source") == "update"
        ]
        namespaces = dict.fromkeys(_of(config, "checkpoint_ns") for config, _ in kept)
        return (
            Below(raw_digest(found), tuple(filter(None, updates)), tuple(filter(None, namespaces))) if found else None
        )

    def _waiting(self, state: StateSnapshot, kept: list[tuple[Any, Any]]) -> list[Any]:
        found: list[Any] = []
        for task in state.tasks:
            if isinstance(below := task.state, StateSnapshot):
                kept.append((below.config, below.metadata))
                says = watched(below.values, self.channels)
                found.append([task.name, says, sorted(below.next), self._waiting(below, kept)])
        return found


def _of(config: Mapping[str, Any], name: str) -> str:
    return (config.get("configurable") or {}).get(name) or ""


def mark_of(place: Mapping[str, Any], graph: str) -> ChildMark:
    """The mark that holds the checkpoint which a child's run left at a place.

    A child on a thread of its own may have a checkpointer of its own: there its name tells it apart.
    """
    configurable = place["configurable"]
    namespace = configurable.get("checkpoint_ns", "")
    where = raw_digest([graph if not namespace else "", str(configurable["thread_id"]), namespace])
    return ChildMark(where, lasting=not is_of_task(namespace))


def held_against(run: Run, graph: Any, place: Place, channels: Sequence[str]) -> Flow[bool]:
    """What a child is about to load against what its last run in the thread of `run` left there, if it is known.

    Raises:
        AuthzDenied: `stale_epoch`: somebody edited it meanwhile. The next epoch is open.
    """

    def moved(head: str, left: str) -> Moved:
        return Moved(graph, place.config, head, left, channels)

    mark = mark_of(place.config, graph.get_name())
    return (yield from edited(run, mark, ReadHead(place.saver, place.config), moved))


def left_at(graph: Any, place: Place, *, known: bool, again: bool) -> Flow[list[Change]]:
    """How the mark changes of what a child's run leaves: `known`, there is one; `again`, its task has not ended."""
    mark = mark_of(place.config, graph.get_name())
    if place.lasting or again:
        head: Head | None = yield ReadHead(place.saver, place.config)
        return [SetMark(mark.name, mark.value(head.id if head is not None else None))]
    return [DeleteMarks(mark.name)] if known else []
