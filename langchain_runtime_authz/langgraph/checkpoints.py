"""Read checkpoints, and detect edits of the state that a protected run left.

The ledger records the last checkpoint of a protected run. The next root entry compares it with the checkpoint that it
loads. The task changed if a watched channel differs, or if a LangGraph task that waited to run is gone. Watched
channels are messages, to-do lists, files and the declared task channels. The comparison ignores message ids, key order,
and fields that only some message classes have.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, Final

import ormsgpack
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.constants import START
from langgraph.store.base import BaseStore, SearchItem
from langgraph.types import Command, StateSnapshot

from langchain_runtime_authz.digest import as_json, digest, fingerprint
from langchain_runtime_authz.errors import ConfigError, MappingError
from langchain_runtime_authz.facts.checkpoint_head import CheckpointHead, ChildMark, ChildStates, outside_key
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.messages import human_texts
from langchain_runtime_authz.ledger.base import Query, Snapshot
from langchain_runtime_authz.ledger.changes import Change, DeleteMarks, SetMark
from langchain_runtime_authz.pep.approval_questions import approval_ids
from langchain_runtime_authz.pep.run import Flow, Load, Perform, Run
from langchain_runtime_authz.pep.run_lifecycle import record_child_edit

WATCHED: Final = ("messages", "todos", "files")
MAX_ITEMS: Final = 1000  # items of a store's namespace that are compared
MAX_LISTED: Final = 16  # checkpoints of a thread that are listed without a filter


def read_state(graph: Any, config: Mapping[str, Any] | None, *, subgraphs: bool = False) -> tuple[Any, ...]:
    """Return the effect (`_flow`) that reads a graph's state, and its `subgraphs`'."""
    return Perform(graph.get_state, graph.aget_state, config, subgraphs=subgraphs)


def _get(saver: Any, place: Any) -> tuple[Any, ...]:
    return Perform(saver.get_tuple, saver.aget_tuple, place)


def _frames(saver: Any) -> Any:
    """Return a copy that decodes only plain values; another library's saver as it is."""
    real = saver.serde
    if type(real) is not JsonPlusSerializer or not type(saver).__module__.startswith("langgraph.checkpoint."):
        return saver

    def loads_typed(data: tuple[str, bytes]) -> Any:
        if data[0] != "msgpack":
            return real.loads_typed(data)
        return ormsgpack.unpackb(data[1], ext_hook=lambda *_: None, option=ormsgpack.OPT_NON_STR_KEYS)

    frames = copy.copy(saver)
    frames.serde = SimpleNamespace(loads_typed=loads_typed)
    return frames


def saver_of(graph: Any) -> BaseCheckpointSaver[Any] | None:
    """Return a graph's own checkpointer; None if it has none."""
    saver = getattr(graph, "checkpointer", None)
    return saver if isinstance(saver, BaseCheckpointSaver) else None


def thread_config(config: Mapping[str, Any], checkpoint: str | None = None) -> dict[str, Any] | None:
    """Return a config that names only thread and checkpoint; None without a thread."""
    configurable = config.get("configurable") or {}
    if configurable.get("thread_id") is None:
        return None
    place = {n: configurable.get(n, "") for n in ("thread_id", "checkpoint_ns")} | private.lent_checkpointer(config)
    return {"configurable": place if checkpoint is None else {**place, "checkpoint_id": checkpoint}}


def place_of(state: StateSnapshot, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config that names the checkpoint of a state of the config's thread."""
    return thread_config(config, _checkpoint(state.config) or None)


def read_head(saver: BaseCheckpointSaver[Any], config: Mapping[str, Any]) -> Flow[CheckpointHead | None]:
    """Read the checkpoint that `config` loads; None if the thread has none."""
    frames, newest = _frames(saver), thread_config(config)
    named = (config.get("configurable") or {}).get("checkpoint_id")
    found: CheckpointTuple | None = yield _get(frames, thread_config(config, named) if named else newest)
    if found is None:
        return None
    last: CheckpointTuple | None = (yield _get(frames, newest)) if named else found
    ident = found.checkpoint["id"]
    ahead = last.checkpoint["id"] if last is not None else ident
    waits = private.has_waiting_nodes(found.checkpoint["channel_values"])
    return CheckpointHead(ident, str(found.metadata.get("source", "")), ahead if ahead != ident else "", waits)


def at_replay(graph: Any, config: Mapping[str, Any], given: object) -> Flow[Mapping[str, Any]]:
    """Return the config with which to resume the graph by the input `given`.

    A config may name a checkpoint to replay. If that replay now waits for this answer, drop the checkpoint's id, or
    LangGraph would replay and ask again.
    """
    named, place = (config.get("configurable") or {}).get("checkpoint_id"), thread_config(config)
    if not named or place is None or place["configurable"]["checkpoint_ns"] or not isinstance(given, Command):
        return config
    now: StateSnapshot = yield read_state(graph, place)
    forked = (now.metadata or {}).get("source") == "fork" and _checkpoint(now.parent_config) == named
    if not forked or not now.interrupts or given != Command(resume=given.resume):
        return config
    # An answer without ids is for the named checkpoint's question, so the replay must ask the same question.
    if not private.is_resume_map(given.resume) and _open_questions(now) != _open_questions(
        (yield read_state(graph, config))
    ):
        return config
    return {**config, "configurable": {k: v for k, v in config["configurable"].items() if k != "checkpoint_id"}}


def _open_questions(state: StateSnapshot) -> list[object]:
    values = [i.value for i in state.interrupts]
    return [[(a.get("name"), a.get("args")) for a in v["action_requests"]] if approval_ids(v) else v for v in values]


def read_memory(store: BaseStore | None, namespaces: Sequence[tuple[str, ...]]) -> Flow[str | None]:
    """Return the digest of a store's items in `namespaces`; None without any to read."""
    if store is None or not namespaces:
        return None
    held: list[Any] = []
    for name in namespaces:
        items: list[SearchItem] = yield Perform(store.search, store.asearch, name, limit=MAX_ITEMS + 1)
        if len(items) > MAX_ITEMS:
            raise ConfigError(f"`TaskSources.memory` has more than {MAX_ITEMS} items; name a narrower namespace")
        held += [[*item.namespace, item.key, content_of(item.value)] for item in items]
    return raw_digest(sorted(held))


def task_changed_between(
    graph: Any, config: Mapping[str, Any], channels: Sequence[str], head: str, left: str
) -> Flow[bool]:
    """Return True if the task changed from the checkpoint `left` to the newer `head`."""
    before: StateSnapshot = yield read_state(graph, thread_config(config, left))
    now: StateSnapshot = yield read_state(graph, thread_config(config, head))
    return states_differ(before, now, channels)


def update_changed(graph: Any, before: StateSnapshot, place: Any, channels: Sequence[str]) -> Flow[bool]:
    """Return True if the `update_state` that wrote `place` changed a watched channel."""
    # Writes of a run that continued meanwhile do not count.
    after: StateSnapshot = yield read_state(graph, place)
    if not states_differ(before, after, channels):
        return False
    base, read = after, _checkpoint(before.config)
    while base is after or (base.metadata or {}).get("source") == "update":
        if _checkpoint(base.parent_config) <= read:
            # Read the stored state: later writes of the checkpoint's tasks were not in the update's state.
            base = (yield read_state(graph, before.config)) if read else before
            return START not in base.next or states_differ(base, after, channels)
        base = yield read_state(graph, base.parent_config)
    return states_differ(base, after, channels)


def _checkpoint(config: Mapping[str, Any] | None, name: str = "checkpoint_id") -> str:
    return ((config or {}).get("configurable") or {}).get(name) or ""


def read_waiting(
    graph: Any, config: Mapping[str, Any], channels: Sequence[str], *, nodes_only: bool = False
) -> Flow[ChildStates | None]:
    """Read the state of a root graph's waiting child graphs; None if none waits.

    Graphs that a task's code calls are found by namespace, one level deep. `nodes_only`: if no node is a graph, return
    None without reading.
    """
    if nodes_only and not any(True for _ in graph.get_subgraphs()):
        return None
    thread = {"thread_id": (config.get("configurable") or {}).get("thread_id")}
    state: StateSnapshot = yield read_state(graph, {"configurable": thread}, subgraphs=True)
    kept: list[tuple[Any, Any]] = []
    found = _waiting(state, kept, channels)
    saver = saver_of(graph)
    for name, first in _called(graph, state).items() if saver is not None else ():
        for number in count(first):  # numbered namespaces, up to the first without a checkpoint
            place = {"configurable": {**thread, "checkpoint_ns": private.namespace_of_graph(name, number)}}
            one: CheckpointTuple | None = yield _get(saver, place)
            if one is None:
                break
            found.append(watched_digests(one.checkpoint["channel_values"], channels))
            kept.append((one.config, one.metadata))
    if not found:
        return None
    updates = [_checkpoint(config) for config, metadata in kept if (metadata or {}).get("source") == "update"]
    namespaces = dict.fromkeys(_checkpoint(config, "checkpoint_ns") for config, _ in kept)
    return ChildStates(raw_digest(found), tuple(filter(None, updates)), tuple(filter(None, namespaces)))


def _called(graph: Any, state: StateSnapshot) -> dict[str, int]:
    """Return checkpoint namespace → index of the first graph that a task calls in it."""
    named: dict[str, int] = {}
    for task in state.tasks:
        node = graph.nodes.get(task.name)
        if node is None or not isinstance(node.bound, private.Pregel):  # a node that is a graph calls no other
            first = 1 if isinstance(task.state, StateSnapshot) else 0  # the state holds a function's first graph
            named |= {f"{task.name}{private.keys.NS_END}{task.id}": first, task.name: first}
    return named


def _waiting(state: StateSnapshot, kept: list[tuple[Any, Any]], channels: Sequence[str]) -> list[Any]:
    found: list[Any] = []
    for task in state.tasks:
        if isinstance(child := task.state, StateSnapshot):
            kept.append((child.config, child.metadata))
            says = watched_digests(child.values, channels)
            found.append([task.name, says, sorted(child.next), _waiting(child, kept, channels)])
    return found


def mark_of(place: Mapping[str, Any], graph: str) -> ChildMark:
    """Return the ledger mark of a graph whose state the config `place` names."""
    configurable = place["configurable"]
    namespace = configurable.get("checkpoint_ns", "")
    where = raw_digest([graph if not namespace else "", str(configurable["thread_id"]), namespace])
    return ChildMark(where, lasting=private.keys.NS_END not in namespace)


def check_child(run: Run, graph: Any, place: private.StatePlace, channels: Sequence[str]) -> Flow[bool]:
    """Return True if a child ran before. Raises `AuthzDenied` if it was edited."""
    mark, read = mark_of(place.config, graph.get_name()), partial(read_head, place.saver, place.config)
    return record_child_edit(run, mark, read, partial(task_changed_between, graph, place.config, channels))


def mark_child(graph: Any, place: private.StatePlace, *, known: bool, again: bool) -> Flow[list[Change]]:
    """Return the changes that record a child's checkpoint when its run ends.

    `known`: the ledger has a mark of the child. `again`: the child will continue from this checkpoint.
    """
    mark = mark_of(place.config, graph.get_name())
    if place.lasting or again:
        head = yield from read_head(place.saver, place.config)
        return [SetMark(mark.name, mark.value(head.id if head is not None else None))]
    return [DeleteMarks(mark.name)] if known else []


def updates_during(
    run: Run, graph: Any, place: Mapping[str, Any], namespaces: Sequence[str], watch: Callable[[Any], Sequence[str]]
) -> Flow[list[HumanText]]:
    """Return texts that record each `update_state` by others during a root entry.

    The run continues from the state that it loaded, so LangGraph loses such an update. `namespaces`: those of the child
    graphs. `watch` returns a graph's watched channels.
    """
    edits = yield from _update_at(run, graph, place, watch(graph))
    for namespace in namespaces:
        there = {"configurable": {**place["configurable"], "checkpoint_ns": namespace}}
        edits += yield from _update_at(run, graph, there, watch(private.graph_at(graph, there)))
    return edits


def _update_at(run: Run, graph: Any, place: Mapping[str, Any], channels: Sequence[str]) -> Flow[list[HumanText]]:
    frames, first = _frames(saver_of(graph)), run.entry.first_checkpoint
    found: CheckpointTuple | None = None
    if first and any(c.__module__.startswith("langgraph.checkpoint.sqlite") for c in type(frames).__mro__):
        # To filter the checkpoints of a thread, SQLite would read all of them in full.
        later = lambda one: one.checkpoint["id"] <= first or one.metadata.get("source") == "update"  # noqa: E731
        found = yield find_checkpoint(frames, place, later, limit=MAX_LISTED)
    if found is None:
        found = yield find_checkpoint(frames, place, filter={"source": "update"}, limit=1)
    if found is None or found.checkpoint["id"] <= first:
        return []
    mark = mark_of(place, graph.get_name())
    snapshot: Snapshot = yield Load(run.scope, Query(log=True, marks=(mark.name,)))
    known = {t.key for t in snapshot.log} | {outside_key(mark.left(snapshot.marks) or "")}
    if not _is_news(found, known):
        return []
    ident = found.checkpoint["id"]
    # If the newest checkpoint descends from the update, a child has loaded and checked the update.
    line: CheckpointTuple | None = yield _get(frames, place)
    newest = line is not None and line.checkpoint["id"] == ident
    while line is not None and line.checkpoint["id"] > ident:
        line = (yield _get(frames, line.parent_config)) if line.parent_config else None
    if line is not None and line.checkpoint["id"] == ident and not newest:
        return []
    base: CheckpointTuple | None = found
    while base is not None and _is_news(base, known):
        base = (yield _get(frames, base.parent_config)) if base.parent_config else None
    now: StateSnapshot = yield read_state(graph, found.config)
    before: StateSnapshot | None = (yield read_state(graph, base.config)) if base is not None else None
    if not (states_differ(before, now, channels) if before is not None else watched_digests(now.values, channels)):
        return []
    heard = {t.digest for t in human_texts(before.values)} if before is not None else set()
    texts = [HumanText(t.digest, t.text, t.key, own=False) for t in human_texts(now.values) if t.digest not in heard]
    return [*texts, HumanText(content_digest(ident), "", outside_key(ident), own=False)]


def find_checkpoint(
    saver: Any, place: Any, wanted: Callable[[CheckpointTuple], bool] = bool, **options: Any
) -> tuple[Any, ...]:
    """Return the effect (`_flow`) that finds the newest checkpoint that is `wanted`."""
    if type(saver).list is InMemorySaver.list:  # its `list` fails if another thread writes meanwhile
        thread, saver = place["configurable"]["thread_id"], copy.copy(saver)
        saver.storage = {thread: dict(saver.storage[thread])}

    # Read the list to its end, because a saver may hold a lock until then.
    def newest(listed: Sequence[CheckpointTuple]) -> CheckpointTuple | None:
        return max(filter(wanted, listed), key=lambda found: found.checkpoint["id"], default=None)

    async def search() -> CheckpointTuple | None:
        return newest([found async for found in saver.alist(place, **options)])

    return Perform(lambda: newest([*saver.list(place, **options)]), search)


def _is_news(found: CheckpointTuple, known: Collection[str | None]) -> bool:
    return found.metadata.get("source") == "update" and outside_key(found.checkpoint["id"]) not in known


def states_differ(before: StateSnapshot, now: StateSnapshot, channels: Sequence[str]) -> bool:
    """Return True if a watched channel changed, or a waiting task is gone."""
    dropped = Counter(before.next) - Counter(now.next)
    if now.next:  # the input task ended, and started the tasks that wait now
        dropped.pop(START, None)
    return bool(dropped) or watched_digests(before.values, channels) != watched_digests(now.values, channels)


def watched_digests(values: object, channels: Sequence[str] = ()) -> dict[str, str]:
    """Return channel → digest of its value, for the watched channels of a state."""
    if not isinstance(values, Mapping):
        return {"": content_of(values)}
    return {name: content_of(values[name]) for name in (*WATCHED, *channels) if values.get(name)}


def content_of(value: object) -> str:
    """Return the digest of what a model or code reads in a channel's value."""
    if isinstance(value, list | tuple):
        return raw_digest([content_of(v) for v in value])
    if isinstance(value, BaseMessage):
        parts: list[Any] = [value.type.removesuffix("MessageChunk").lower(), content_digest(value.content)]
        if isinstance(value, AIMessage):
            parts += [[call["name"], raw_digest(call["args"])] for call in value.tool_calls]
        if isinstance(value, ToolMessage):
            parts.append(value.tool_call_id)
            # A model reads the tool's status, and code reads the artifact.
            parts += [value.status] if value.status != "success" else []
            parts += [fingerprint(value.artifact)] if value.artifact is not None else []
        if isinstance(value, ChatMessage):
            parts.append(value.role)
        return raw_digest(parts)
    try:
        return digest(as_json(value))
    except MappingError:
        return content_digest(value)
