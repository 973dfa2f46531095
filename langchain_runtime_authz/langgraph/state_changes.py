"""What was done to a thread's state beside its entries, read from the checkpointer.

Only what a task or a plan is made of counts: messages, to-do lists, files, the declared task
channels, and that what waits to run still does. Ids, key order and message classes' own fields are a serialiser's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.constants import START
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.store.base import BaseStore, SearchItem
from langgraph.types import StateSnapshot

from langchain_runtime_authz.digest import digest, fingerprint, project
from langchain_runtime_authz.errors import MappingError
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.state import Head
from langchain_runtime_authz.facts.task import HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph._private import lent
from langchain_runtime_authz.langgraph.messages import (
    as_message,
    human_texts,
    is_human,
    messages_in,
    overwritten,
    removed_by,
)
from langchain_runtime_authz.pep.engine import Engine, Flow

__all__ = [
    "WATCHED",
    "Moved",
    "ReadHead",
    "ReadMemory",
    "ReadState",
    "brought",
    "differ",
    "held",
    "is_below",
    "others",
    "removals",
    "said_by",
    "said_more",
    "saver_of",
    "taken_out",
    "thread_config",
    "watched",
    "writes",
]

WATCHED: Final = ("messages", "todos", "files")
MAX_ITEMS: Final = 1000  # of a namespace; what is remembered beyond them is not looked at


def saver_of(graph: Any) -> BaseCheckpointSaver[Any] | None:
    """The checkpointer that keeps a root graph's state."""
    saver = getattr(graph, "checkpointer", None)
    return saver if isinstance(saver, BaseCheckpointSaver) else None


def is_below(config: Mapping[str, Any]) -> bool:
    """Whether a root config is of a child's checkpoint, as `get_state(subgraphs=True)` gives it."""
    return bool((config.get("configurable") or {}).get("checkpoint_ns"))


def thread_config(config: Mapping[str, Any], checkpoint: str | None = None) -> dict[str, Any] | None:
    """Where a thread's checkpoints are; `None` for a call without a thread."""
    configurable = config.get("configurable") or {}
    if configurable.get("thread_id") is None:
        return None
    place = {
        "thread_id": configurable["thread_id"],
        "checkpoint_ns": configurable.get("checkpoint_ns", ""),
        **lent(config),
    }
    return {"configurable": place if checkpoint is None else {**place, "checkpoint_id": checkpoint}}


@dataclass(frozen=True, slots=True)
class ReadHead:
    """An effect: the checkpoint that an entry with this config loads; `None` for a thread without one."""

    saver: BaseCheckpointSaver[Any]
    config: Mapping[str, Any]

    def run(self, engine: Engine) -> Head | None:
        """Read it, blocking."""
        newest, named = self._places()
        found = self.saver.get_tuple(named or newest)
        return _head(found, self.saver.get_tuple(newest) if named and found else found)

    async def arun(self, engine: Engine) -> Head | None:
        """Read it."""
        newest, named = self._places()
        found = await self.saver.aget_tuple(named or newest)
        return _head(found, await self.saver.aget_tuple(newest) if named and found else found)

    def _places(self) -> tuple[Any, Any]:
        named = (self.config.get("configurable") or {}).get("checkpoint_id")
        return thread_config(self.config), thread_config(self.config, named) if named else None


def _head(found: CheckpointTuple | None, newest: CheckpointTuple | None) -> Head | None:
    if found is None:
        return None
    ident = found.checkpoint["id"]
    last = newest.checkpoint["id"] if newest is not None else ident
    return Head(ident, str(found.metadata.get("source", "")), last if last != ident else "")


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """An effect: digest of what a store holds under the namespaces; `None` without a store."""

    store: BaseStore | None
    namespaces: Sequence[tuple[str, ...]]

    def run(self, engine: Engine) -> str | None:
        """Read it, blocking."""
        if self.store is None or not self.namespaces:
            return None
        store = self.store
        return _remembered([store.search(name, limit=MAX_ITEMS) for name in self.namespaces])

    async def arun(self, engine: Engine) -> str | None:
        """Read it."""
        if self.store is None or not self.namespaces:
            return None
        return _remembered([await self.store.asearch(name, limit=MAX_ITEMS) for name in self.namespaces])


def _remembered(found: list[list[SearchItem]]) -> str:
    return raw_digest(sorted([[*item.namespace, item.key, _digest(item.value)] for items in found for item in items]))


@dataclass(frozen=True, slots=True)
class ReadState:
    """An effect: a graph's state (`StateSnapshot`)."""

    graph: Any
    config: Mapping[str, Any] | None

    def run(self, engine: Engine) -> Any:
        """Read it, blocking."""
        return self.graph.get_state(self.config)

    async def arun(self, engine: Engine) -> Any:
        """Read it."""
        return await self.graph.aget_state(self.config)


@dataclass(frozen=True, slots=True)
class Moved:
    """An effect: whether the state at `head` says something else than the one that a run left at `left`."""

    graph: Any
    config: Mapping[str, Any]
    head: str
    left: str
    channels: Sequence[str] = ()

    def run(self, engine: Engine) -> bool:
        """Compare, blocking."""
        return self._differ(*(self.graph.get_state(place) for place in self._places()))

    async def arun(self, engine: Engine) -> bool:
        """Compare."""
        return self._differ(*[await self.graph.aget_state(place) for place in self._places()])

    def _places(self) -> list[Any]:
        return [thread_config(self.config, ident) for ident in (self.left, self.head)]

    def _differ(self, before: StateSnapshot, now: StateSnapshot) -> bool:
        return differ(before, now, self.channels)


def differ(before: StateSnapshot, now: StateSnapshot, channels: Sequence[str]) -> bool:
    """Whether a state says something else than it did, or something that waited to run does so no more.

    `update_state(as_node=...)` takes a plan away without a word: by ending the run, or in the name of the
    node that should have carried it out.
    """
    dropped = Counter(before.next) - Counter(now.next)
    if now.next:  # the input was being read, and led to that
        dropped.pop(START, None)
    return bool(dropped) or watched(before.values, channels) != watched(now.values, channels)


def said_more(graph: Any, before: StateSnapshot, place: Any, channels: Sequence[str]) -> Flow[bool]:
    """Whether an update that left `place` says something else than the state `before` it.

    A run in flight may have written more after that was read, or be about to take its input: its own words are no edit.
    """
    after: StateSnapshot = yield ReadState(graph, place)
    if not differ(before, after, channels):
        return False
    base, read = after, _checkpoint(before.config)
    while base is after or (base.metadata or {}).get("source") == "update":
        if _checkpoint(base.parent_config) <= read:
            # As it was kept: the update was not made on what its tasks have written since.
            base = (yield ReadState(graph, before.config)) if read else before
            return START not in base.next or differ(base, after, channels)
        base = yield ReadState(graph, base.parent_config)
    return differ(base, after, channels)


def _checkpoint(config: Mapping[str, Any] | None) -> str:
    return ((config or {}).get("configurable") or {}).get("checkpoint_id") or ""


def brought(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """What an input puts into other channels than the messages; sending back what stands there is nothing.

    The words of the declared channels are the human's; to-do lists and files are an agent's too, so
    that only their being edited says something.
    """
    edits: list[HumanText] = []
    for name in others(channels):
        if not writes(given, name):
            continue
        (replaces, new), old = overwritten(held(given, name)), held(values, name)
        if isinstance(new, Mapping) and isinstance(old, Mapping) and not replaces:  # an entry that is left out stays
            old = {key: old.get(key) for key in new}
        if (new or old) and _digest(new) != _digest(old):
            words = _words(new, old) if name in channels and new is not None else ""
            edits.append(HumanText(_digest(new), words, f"channel:{name}"))
    return edits


def _words(new: object, old: object) -> str:
    """What a human says by what he puts into a declared channel; of messages his own, and not those that stood there."""
    if not isinstance(new, list) or not any(not isinstance(m, str) and as_message(m) for m in new):
        return content_text(new)
    before = {(t.key, t.digest) for t in human_texts(old)} if isinstance(old, list) else set()
    return "\n".join(t.text for t in human_texts(new) if (t.key, t.digest) not in before)


def said_by(given: object) -> object:
    """An input as something that equals what says the same."""
    return {str(k): _digest(v) for k, v in given.items()} if isinstance(given, Mapping) else _digest(given)


def writes(given: object, name: str) -> bool:
    """Whether an input says something of a channel. In a mapping `None` does: what stood there goes."""
    return name in given if isinstance(given, Mapping) else getattr(given, name, None) is not None


def taken_out(given: object, values: object) -> list[HumanText]:
    """What an input removes from the messages, of what a human said or a model planned.

    What is sent along again under other ids is not taken out: clients send a whole history anew.
    """
    gone, sent = removals(given), [as_message(m) for m in messages_in(given)]
    before = [m for m in messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {_digest(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in human_texts(given)}
    lost = [
        _digest(m)
        for m in before
        if (is_human(m) and content_digest(m.content) not in back)
        or (isinstance(m, AIMessage) and m.tool_calls and _digest(m) not in back)
    ]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removals(given: object) -> set[str]:
    """Ids of the messages that an input removes."""
    replaces, _ = overwritten(held(given, "messages"))
    gone = {i for m in messages_in(given) if (i := removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def others(channels: Sequence[str]) -> list[str]:
    """The watched channels beside the messages."""
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def held(value: object, name: str) -> Any:
    """What a mapping or a state object holds under a channel's name."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def watched(values: object, channels: Sequence[str] = ()) -> dict[str, str]:
    """Digest per watched channel of a state. Equal digests say the same."""
    if not isinstance(values, Mapping):
        return {"": _digest(values)}
    return {name: _digest(values[name]) for name in (*WATCHED, *channels) if values.get(name)}


def _digest(value: object) -> str:
    if isinstance(value, list | tuple):
        return raw_digest([_digest(v) for v in value])
    if isinstance(value, BaseMessage):
        said: list[Any] = [value.type.removesuffix("MessageChunk").lower(), content_digest(value.content)]
        if isinstance(value, AIMessage):
            said += [[call["name"], raw_digest(call["args"])] for call in value.tool_calls]
        if isinstance(value, ToolMessage):
            said.append(value.tool_call_id)
            # A model reads whether it failed, and code what it brought beside the text.
            said += [value.status] if value.status != "success" else []
            said += [fingerprint(value.artifact)] if value.artifact is not None else []
        if isinstance(value, ChatMessage):
            said.append(value.role)
        return raw_digest(said)
    try:
        return digest(project(value))
    except MappingError:
        return content_digest(value)
