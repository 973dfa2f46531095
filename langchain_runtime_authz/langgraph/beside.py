"""What somebody wrote into a thread's state while a run of ours was in flight.

The run goes on from what it loaded, and its next checkpoint leaves the other one behind: in LangGraph the edit is
lost, whoever made it. Where the run pauses before it writes one, the edit is what the next entry loads. From our own
process the ledger hears of it at once; of another process's this is the road.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from langchain_runtime_authz.facts.state import outside_key
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.langgraph._private import graph_at
from langchain_runtime_authz.langgraph.below import mark_of
from langchain_runtime_authz.langgraph.messages import human_texts
from langchain_runtime_authz.langgraph.state_changes import ReadState, differ, saver_of, watched
from langchain_runtime_authz.ledger.base import Query, Snapshot
from langchain_runtime_authz.pep.engine import Engine, Flow, Load, Run

__all__ = ["written_beside"]

_UPDATES = {"source": "update"}


@dataclass(frozen=True, slots=True)
class _NewestUpdate:
    """An effect: the newest checkpoint at a place that `update_state` made, if any."""

    saver: BaseCheckpointSaver[Any]
    place: Any

    def run(self, engine: Engine) -> CheckpointTuple | None:
        return next(iter([*self.saver.list(self.place, filter=_UPDATES, limit=1)]), None)

    async def arun(self, engine: Engine) -> CheckpointTuple | None:
        return next(iter([found async for found in self.saver.alist(self.place, filter=_UPDATES, limit=1)]), None)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """An effect: one checkpoint, if it is there."""

    saver: BaseCheckpointSaver[Any]
    place: Any

    def run(self, engine: Engine) -> CheckpointTuple | None:
        return self.saver.get_tuple(self.place)

    async def arun(self, engine: Engine) -> CheckpointTuple | None:
        return await self.saver.aget_tuple(self.place)


def written_beside(
    run: Run,
    graph: Any,
    place: Mapping[str, Any],
    namespaces: Sequence[str],
    watch: Callable[[Any], Sequence[str]],
) -> Flow[list[HumanText]]:
    """What was written beside a root entry that now ends, as something to pin.

    In the root's state and in that of the graphs that wait below, which have these `namespaces`. `watch` says which
    channels of a graph count. The words are nobody's. Empty where nothing was written, where it says nothing else,
    and where the ledger knows it.
    """
    edits = yield from _at(run, graph, place, watch(graph))
    for namespace in namespaces:
        there = {"configurable": {**place["configurable"], "checkpoint_ns": namespace}}
        edits += yield from _at(run, graph, there, watch(graph_at(graph, there)))
    return edits


def _at(run: Run, graph: Any, place: Mapping[str, Any], channels: Sequence[str]) -> Flow[list[HumanText]]:
    saver = saver_of(graph)
    found: CheckpointTuple | None = (yield _NewestUpdate(saver, place)) if saver is not None else None
    if saver is None or found is None or found.checkpoint["id"] <= run.loaded:
        return []
    mark = mark_of(place, graph.get_name())
    snapshot: Snapshot = yield Load(run.scope, Query(log=True, marks=(mark.name,)))
    known = {t.key for t in snapshot.log} | {outside_key(mark.left(snapshot.marks) or "")}
    if not _is_news(found, known):
        return []
    ident = found.checkpoint["id"]
    # What a run of a child loaded was judged then; what still is the newest was loaded by nobody.
    line: CheckpointTuple | None = yield _Checkpoint(saver, place)
    newest = line is not None and line.checkpoint["id"] == ident
    while line is not None and line.checkpoint["id"] > ident:
        line = (yield _Checkpoint(saver, line.parent_config)) if line.parent_config else None
    if line is not None and line.checkpoint["id"] == ident and not newest:
        return []
    base: CheckpointTuple | None = found
    while base is not None and _is_news(base, known):
        base = (yield _Checkpoint(saver, base.parent_config)) if base.parent_config else None
    now = yield ReadState(graph, found.config)
    before = (yield ReadState(graph, base.config)) if base is not None else None
    if not (differ(before, now, channels) if before is not None else watched(now.values, channels)):
        return []
    heard = {t.digest for t in human_texts(before.values)} if before is not None else set()
    said = [HumanText(t.digest, t.text, t.key, own=False) for t in human_texts(now.values) if t.digest not in heard]
    return [*said, HumanText(content_digest(ident), "", outside_key(ident), own=False)]


def _is_news(found: CheckpointTuple, known: Collection[str | None]) -> bool:
    return found.metadata.get("source") == "update" and outside_key(found.checkpoint["id"]) not in known
