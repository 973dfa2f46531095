"""What a caller sees of a graph: tokens, events, state, history and checkpoints, without ids and times."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from langchain_runtime_authz import RuntimeAuthz

from .model import Model
from .shape import Shape, Task, World

CONFIG = {"configurable": {"thread_id": "t"}, "recursion_limit": 60}
CHANGING = re.compile(
    r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}"  # UUIDs: messages, runs, checkpoints, namespaces
    r"|call_[0-9a-f]{12}|\b[0-9a-f]{32}\b"  # tool calls, interrupts
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00|0x[0-9a-f]+|/\S*/tmp\w{8}"
)


def seen(shape: Shape, task: Task, authz: Callable[[], RuntimeAuthz] | None) -> dict[str, Any]:
    """Run the task twice, for tokens and for events, and return what its caller sees.

    The scheduler chooses the order of events, checkpoints, effects and tokens of nodes that run at once, so they are
    sorted. The tokens of each node keep their order.
    """
    with shape.world(task) as world:
        graph, given = _Caller(shape, task, world, authz), {}
        given["tokens"] = asyncio.run(graph.tokens()) if shape.asynchronous else graph.sync_tokens()
        history = list(graph.graph.get_state_history(CONFIG))
        given["effects"], given["state"] = list(world.effects), graph.graph.get_state(CONFIG).values
        given["history"] = [
            (each.values, each.next, each.metadata, [(of.name, of.error, of.interrupts) for of in each.tasks]) for each in history
        ]
        given["checkpoints"] = [
            (each.metadata, each.checkpoint["channel_values"], _sorted(each.pending_writes))
            for each in graph.graph.checkpointer.list(None)
        ]
    with shape.world(task) as world:
        given["events"] = asyncio.run(_Caller(shape, task, world, authz).events())
    given = plain(given)
    for unordered in ("events", "checkpoints", "effects"):
        given[unordered].sort(key=repr)
    given["tokens"].sort(key=lambda token: (int(token[1]["langgraph_step"]), token[1]["langgraph_checkpoint_ns"]))
    return given


class _Caller:
    """One caller of one graph, who answers what the app asks."""

    def __init__(self, shape: Shape, task: Task, world: World, authz: Callable[[], RuntimeAuthz] | None) -> None:
        model = Model(script=task.script)
        self.graph = shape.build(model, world.folder, checkpointer=InMemorySaver(), store=world.store)
        self.task, self.authz = task, authz and authz()
        if self.authz is not None:
            self.graph = self.authz.protect(self.graph)

    def inputs(self) -> Iterator[Any]:
        """Yield the task's input, then the answer to each question."""
        yield self.task.given
        while asked := self.graph.get_state(CONFIG).interrupts:
            yield Command(resume={each.id: self.task.answer(each.value) for each in asked})

    def sync_tokens(self) -> list[Any]:
        """Return the tokens and their metadata."""
        found: list[Any] = []
        for given in self.inputs():
            with self.authz.run(subject="alice") if self.authz else nullcontext():
                found += self.graph.stream(given, CONFIG, stream_mode="messages")
        return found

    async def tokens(self) -> list[Any]:
        """Return the tokens and their metadata."""
        return await self._collect(lambda given: self.graph.astream(given, CONFIG, stream_mode="messages"))

    async def events(self) -> list[Any]:
        """Return the events of `astream_events`."""
        return await self._collect(lambda given: self.graph.astream_events(given, CONFIG, version="v2"))

    async def _collect(self, stream: Callable[[Any], AsyncIterator[Any]]) -> list[Any]:
        found: list[Any] = []
        for given in self.inputs():
            async with self.authz.run(subject="alice") if self.authz else nullcontext():
                found += [each async for each in stream(given)]
        return found


def plain(value: Any) -> Any:
    """Return the value as plain data, without what changes from run to run."""
    if isinstance(value, BaseModel):
        fields = {**value.__dict__, "id": "#"}  # LangGraph gives a message its id while a checkpointer may read it
        return plain({"type": type(value).__name__, **fields})
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return CHANGING.sub("#", value if isinstance(value, str) else repr(value))


def _sorted(writes: Any) -> list[Any]:
    return sorted(((channel, value) for _, channel, value in writes or ()), key=repr)
