"""The gate of a tool node: all calls of a message are decided before any runs.

`AuthzToolNode` is the drop-in face; `gate_tool_node` gives the same gate to a ToolNode that is
already inside a graph. Neither is the enforcement point by itself, since a graph may rebuild its own
ToolNode: the tools in it are guarded too.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from langchain_core.messages import ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.lease import Ticket
from langchain_runtime_authz.edges._private import ToolNode, skip_answers
from langchain_runtime_authz.edges.calls import describe, parse, unknown, without
from langchain_runtime_authz.edges.deciding import decide_one_of, decide_together, judge_message
from langchain_runtime_authz.edges.entry import Entrance
from langchain_runtime_authz.edges.handle import find_run, run_scope
from langchain_runtime_authz.edges.messages import (
    denial_message,
    edit_note,
    planned_message,
    replay_message,
    with_note,
)
from langchain_runtime_authz.edges.passage import Held, held_scope
from langchain_runtime_authz.edges.profiles import Profiles
from langchain_runtime_authz.edges.tool_guard import facts_of, guard_tool, is_guarded
from langchain_runtime_authz.enforce.call import Call, Denial, Judged, Replay, Verdict
from langchain_runtime_authz.enforce.claim import conclude
from langchain_runtime_authz.enforce.engine import Run, adrive, drive
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.fork import forkable_lock

__all__ = ["AuthzToolNode", "CallGate", "gate_tool_node", "is_gated_tool_node"]

MAX_TOOL_SETS = 64  # that one middleware keeps a gate for


@dataclass(slots=True)
class _Batch:
    """The decisions of one message whose calls are tasks of their own; made by the first task."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    alock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: list[Call] | None = None
    judged: list[Judged] | None = None


class _Turns:
    """The calls of one execution of the node, by identity, and their order.

    Tools run side by side until one asks a human by itself. LangGraph gives a task's answers out by
    number, so from then on they take turns, and of several that ask, the first in order is heard.
    """

    __slots__ = ("_adone", "_done", "_held", "_order", "config", "serial")

    def __init__(self, config: Any, calls: Sequence[Any], held: Sequence[Held]) -> None:
        self.config = config
        self._held: dict[int, Held] = {}
        self._order: dict[int, int] = {}
        for call, one in zip(calls, held, strict=True):  # a node may send one call twice: the first is it
            self._held.setdefault(id(call), one)
            self._order.setdefault(id(call), len(self._order))
        self.serial = any(h.paused or h.answers for h in held)
        self._done = [threading.Event() for _ in self._order] if self.serial else []
        self._adone = [asyncio.Event() for _ in self._order] if len(self._order) > 1 else []

    def of(self, call: Any) -> Held | None:
        return self._held.get(id(call))

    @contextmanager
    def turn(self, call: Any) -> Iterator[None]:
        place = self._order.get(id(call), 0)
        try:
            if self.serial:
                for before in self._done[:place]:
                    before.wait()
            yield
        finally:
            if self.serial:
                self._done[place].set()

    @asynccontextmanager
    async def aturn(self, call: Any) -> AsyncIterator[None]:
        place = self._order.get(id(call), 0)
        try:
            if self.serial:
                await self._before(place)
            yield
        except GraphInterrupt:
            await self._before(place)
            raise
        finally:
            if self._adone:
                self._adone[place].set()

    async def _before(self, place: int) -> None:
        for before in self._adone[:place]:
            await before.wait()


# The calls of the node execution around the current code.
_turns: ContextVar[_Turns | None] = ContextVar("langchain_runtime_authz.turns", default=None)


class _Gate(ToolNode):
    """ToolNode's own hooks, overridden. Used as the first base of a dynamic subclass."""

    __runtime_authz_gated__ = True
    _authz_profiles: Profiles

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        return self._gated(input, config, runtime)

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        return await self._agated(input, config, runtime)

    def _gated(self, input: Any, config: RunnableConfig, runtime: Any, *, alone: bool = False) -> Any:
        run = find_run(config)
        if run is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        message = _Message(self, input, config, runtime, alone=alone)
        held = drive(run.engine, message.decide(run)) if message.together else self._share(run, message)
        _count(run, held)
        try:
            with _turns_scope(message, held):
                return super()._func(input, config, runtime)
        finally:
            for one in _unused(held):
                drive(run.engine, conclude(run, cast("Ticket", one.verdict), one.call, "released"))

    async def _agated(self, input: Any, config: RunnableConfig, runtime: Any, *, alone: bool = False) -> Any:
        run = find_run(config)
        if run is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        message = _Message(self, input, config, runtime, alone=alone)
        held = await adrive(run.engine, message.decide(run)) if message.together else await self._ashare(run, message)
        _count(run, held)
        try:
            with _turns_scope(message, held):
                return await super()._afunc(input, config, runtime)
        finally:
            for one in _unused(held):
                await adrive(run.engine, conclude(run, cast("Ticket", one.verdict), one.call, "released"))

    def _share(self, run: Run, message: _Message) -> list[Held]:
        """One task per call: the first to arrive decides the message, under a lock."""
        batch = _batch(run, message)
        with batch.lock:
            if batch.judged is None:
                batch.calls = message.describe()
                batch.judged = drive(run.engine, judge_message(run, batch.calls, message.config))
        return drive(run.engine, message.take(run, batch))

    async def _ashare(self, run: Run, message: _Message) -> list[Held]:
        batch = _batch(run, message)
        async with batch.alock:
            if batch.judged is None:
                batch.calls = message.describe()
                batch.judged = await adrive(run.engine, judge_message(run, batch.calls, message.config))
        return await adrive(run.engine, message.take(run, batch))

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        turns = _turns.get()
        if turns is None:
            return _undecided(call)
        with turns.turn(call):
            held = turns.of(call)
            if (answer := _answer(held, call, turns.config)) is not None:
                return answer
            with held_scope(held):
                return _told(held, super()._run_one(_instead(held, call), input_type, tool_runtime))

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        turns = _turns.get()
        if turns is None:
            return _undecided(call)
        async with turns.aturn(call):
            held = turns.of(call)
            if (answer := _answer(held, call, turns.config)) is not None:
                return answer
            with held_scope(held):
                return _told(held, await super()._arun_one(_instead(held, call), input_type, tool_runtime))

    def _execute_tool_sync(self, request: Any, input_type: Any, config: Any) -> Any:
        return super()._execute_tool_sync(self._guarded(request), input_type, config)

    async def _execute_tool_async(self, request: Any, input_type: Any, config: Any) -> Any:
        return await super()._execute_tool_async(self._guarded(request), input_type, config)

    def _guarded(self, request: Any) -> Any:
        """A tool that middleware brought along is guarded before it can run."""
        tool = request.tool
        if isinstance(tool, BaseTool) and not is_guarded(tool):
            return request.override(tool=guard_tool(tool, self._authz_profiles))
        return request


class CallGate:
    """The same gate for middleware, which is handed one call at a time, of a graph that is not gated."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._nodes: dict[tuple[int, ...], tuple[list[BaseTool], _Gate]] = {}
        self._lock = forkable_lock()

    def call(self, run: Run, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Decide the call that `request` holds, with its message's others, and make it."""
        message = self._message(request)
        gate = message.node
        (held,) = drive(run.engine, message.decide(run)) if message.together else gate._share(run, message)
        try:
            if (answer := _answer(held, message.calls[0], message.config)) is not None:
                return answer
            with held_scope(held):
                return _told(held, handler(_request(held, request)))
        finally:
            for one in _unused([held]):
                drive(run.engine, conclude(run, cast("Ticket", one.verdict), one.call, "released"))

    async def acall(self, run: Run, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Like `call`."""
        message = self._message(request)
        gate = message.node
        if message.together:
            (held,) = await adrive(run.engine, message.decide(run))
        else:
            (held,) = await gate._ashare(run, message)
        try:
            if (answer := _answer(held, message.calls[0], message.config)) is not None:
                return answer
            with held_scope(held):
                return _told(held, await handler(_request(held, request)))
        finally:
            for one in _unused([held]):
                await adrive(run.engine, conclude(run, cast("Ticket", one.verdict), one.call, "released"))

    def _message(self, request: Any) -> _Message:
        runtime, call = request.runtime, request.tool_call
        tools = [t for t in runtime.tools if isinstance(t, BaseTool)]
        if isinstance(request.tool, BaseTool):
            # By what would run: middleware in front may have put another tool in the named one's place.
            call = call if call["name"] == request.tool.name else {**call, "name": request.tool.name}
            if not any(t is request.tool for t in tools):
                tools = [*(t for t in tools if t.name != request.tool.name), request.tool]
        # Kept together with its tools, so that their identities stay theirs.
        key = tuple(id(t) for t in tools)
        with self._lock:  # the tasks of one message share one gate, and so one batch
            if key not in self._nodes:
                if len(self._nodes) >= MAX_TOOL_SETS:
                    self._nodes.clear()
                self._nodes[key] = (tools, cast("_Gate", _equip(_Gate(tools), self._profiles)))
            node = self._nodes[key][1]
        given = {"__type": "tool_call_with_context", "tool_call": call, "state": request.state}
        return _Message(node, given, runtime.config, runtime, alone=False)


def _request(held: Held, request: Any) -> Any:
    """The request with the guarded tool, and with the call that a human put in its place."""
    tool = held.call.tool_ref if isinstance(held.call.tool_ref, BaseTool) else request.tool
    return request.override(tool=tool, tool_call=_instead(held, request.tool_call))


class _Message:
    """The calls that one execution of a tool node was given, and the message that planned them."""

    def __init__(self, node: _Gate, input: Any, config: Any, runtime: Any, *, alone: bool) -> None:
        self.node, self.config, self.runtime = node, config, runtime
        self.calls, input_type = node._parse_input(input)
        state = node._extract_state(input, config)
        self.state = state
        key = node._messages_key
        found = planned_message(state, key, self.calls[0]) if self.calls else None
        self.plan_id = found.id if found is not None else None
        self.planned: Sequence[Any] = found.calls if found is not None else ()
        self.siblings: Sequence[Any] = self.calls
        self.position = 0
        # Calls sent one by one, of a message that holds more of them. A node that is its own root
        # entry shares no run with the tasks of the others, so it decides what it was given.
        self.together = alone or input_type != "tool_calls" or found is None or len(self.calls) != 1
        if not self.together and found is not None:
            self.position = found.position
            answered = _answered(state, key)
            self.siblings = [
                self.calls[0] if i == found.position else c
                for i, c in enumerate(found.calls)
                if i == found.position or c.get("id") not in answered
            ]
            self.together = len(self.siblings) == 1
        self.positions = self._positions(self.planned)

    def _positions(self, planned: Sequence[Any]) -> list[int | None]:
        """Each call's place in the message, by identity first: two calls may look alike.

        A call that is sent once more than it was planned is the one in its place again.
        """
        places: list[int | None] = []
        free = dict(enumerate(planned))
        for call in self.siblings:
            place = _place_of(call, free)
            if place is None:
                place = _place_of(call, dict(enumerate(planned)))
            free.pop(place, None)  # type: ignore[arg-type]  # `None` is in none
            places.append(place)
        return places

    def describe(self) -> list[Call]:
        """The calls as they will run: arguments injected and parsed by each tool's own schema."""
        return [self._describe(c, p) for c, p in zip(self.siblings, self.positions, strict=True)]

    def _describe(self, call: Any, position: int | None) -> Call:
        node, call_id = self.node, call.get("id")
        plan_id = self.plan_id if position is not None else None
        tool = node.tools_by_name.get(call["name"])
        if tool is None:
            return unknown(call["name"], call_id, plan_id, position, call["args"])
        if not is_guarded(tool):  # `tools_by_name` is live: somebody put a tool into it
            tool = node._tools_by_name[call["name"]] = guard_tool(tool, node._authz_profiles)
        sent, facts = call["args"], facts_of(tool)

        def amend(name: str, args: dict[str, Any]) -> Call:
            return self._describe({**call, "name": name, "args": args}, position)

        try:
            injected = node._inject_tool_args(cast("ToolCall", dict(call)), self._runtime(call), tool)["args"]
        except Exception:  # noqa: BLE001  (the stock road raises the same error before the tool runs)
            injected = sent
        return describe(
            tool,
            facts,
            # Outside a passage a guarded tool parses like the tool that it was.
            functools.partial(parse, tool, injected, call_id, tool._parse_input),
            call_id=call_id,
            plan_id=plan_id,
            position=position,
            written=sent,
            sent=without(injected, facts.injected),
            amend=amend,
        )

    def _runtime(self, call: Any) -> Any:
        runtime = self.runtime
        return ToolRuntime(
            state=self.state,
            tool_call_id=call.get("id"),
            config=self.config,
            context=runtime.context,
            store=runtime.store,
            stream_writer=runtime.stream_writer,
            tools=list(self.node.tools_by_name.values()),
            execution_info=runtime.execution_info,
            server_info=runtime.server_info,
        )

    def decide(self, run: Run) -> Any:
        """All calls run in this task: one batch, questions first, then tickets."""
        calls = self.describe()
        settled = yield from decide_together(run, calls, self.config)
        return [Held(run, s, place) for place, s in enumerate(settled)]

    def take(self, run: Run, batch: _Batch) -> Any:
        """This task's own call out of the message's decisions."""
        calls, judged = batch.calls or [], batch.judged or []
        mine = next(i for i, c in enumerate(calls) if c.position == self.position)
        settled = yield from decide_one_of(run, judged, mine, self.config)
        return [Held(run, settled)]


def _place_of(call: Any, planned: Mapping[int, Any]) -> int | None:
    for same in (lambda c: c is call, lambda c: c == call, lambda c: c.get("id") == call.get("id")):
        for place, one in planned.items():
            if same(one):
                return place
    return None


def _batch(run: Run, message: _Message) -> _Batch:
    """The batch of a message, by its very calls, or where they are a copy, by what they say.

    By their content alone it would be lost when a tool writes into its arguments, which may be the
    message's own; by the message's id alone a provider that uses an id again would get old decisions.
    """
    tools = id(message.node._tools_by_name)  # a node decides with its own, even if another has tools of the same names
    with run.lock:
        planned, batch = run.batches.get(same := (tools, id(message.planned)), (None, None))
        if planned is not message.planned:
            alike = (tools, f"{message.plan_id} {calls_digest(plan_calls(message.planned))}")
            batch = run.batches.setdefault(alike, _Batch())
            run.batches[same] = (message.planned, batch)  # held, so that its identity stays its own
        return cast("_Batch", batch)


def _answered(state: Any, key: str) -> set[str]:
    messages = state.get(key, []) if isinstance(state, Mapping) else getattr(state, key, state)
    return {m.tool_call_id for m in messages if isinstance(m, ToolMessage)} if isinstance(messages, list) else set()


@contextmanager
def _turns_scope(message: _Message, held: Sequence[Held]) -> Iterator[None]:
    previous = _turns.get()
    _turns.set(_Turns(message.config, message.calls if message.together else [message.calls[0]], held))
    try:
        yield
    finally:
        _turns.set(previous)


def _count(run: Run, held: Sequence[Held]) -> None:
    for one in held:
        if one.call.tool_ref is not None:  # else the name is the model's own
            run.engine.tally.decided(run, "tool", one.call.tool, "tool node gate")


def _unused(held: Sequence[Held]) -> list[Held]:
    """Tickets that nobody redeemed: an interceptor answered, or what ran was decided anew."""
    return [h for h in held if isinstance(h.verdict, Ticket) and not h.verdict.redeemed and not h.verdict.concluded]


def _undecided(call: Any) -> ToolMessage:
    """The answer to a call that reached the node on a road past its gate."""
    return denial_message(Denial(unknown(call["name"], None, None, None, {}), deny(Code.NO_RUN)), call.get("id"))


def _answer(held: Held | None, call: Any, config: Any) -> ToolMessage | None:
    """The message that stands in place of the tool's, or `None` where the stock road goes on."""
    if held is None:
        return _undecided(call)
    verdict: Verdict = held.verdict
    if not isinstance(verdict, Ticket):
        skip_answers(config, held.answers)
    if isinstance(verdict, Replay):
        return cast("ToolMessage", _told(held, replay_message(verdict, call.get("id"))))
    if isinstance(verdict, Denial):
        # Malformed arguments and unknown names have stock answers that help the model; the tool
        # does not run on that road either: there is no ticket.
        if held.call.error in (Code.INVALID_ARGUMENTS, Code.UNKNOWN_TOOL):
            return None
        return denial_message(verdict, call.get("id"))
    return None


def _instead(held: Held | None, call: Any) -> Any:
    """What runs: the call, or the one that a human put in its place."""
    if held is None or not held.call.amends:
        return call
    return {**call, "name": held.call.tool, "args": held.call.raw}


def _told(held: Held | None, output: Any) -> Any:
    """The output; where a human put another call in the place of the model's, the model reads so."""
    if held is None or not held.replaced:
        return output
    return with_note(output, edit_note(held.call))


def is_gated_tool_node(node: object) -> bool:
    """Whether the node is a tool node with our gate."""
    return getattr(type(node), "__runtime_authz_gated__", False) is True


def gate_tool_node(node: ToolNode, profiles: Profiles) -> ToolNode:
    """A gated copy of `node`, of a subclass of its own class, with its tools guarded in place."""
    base = type(node)
    gated = copy.copy(node)
    gated.__class__ = type(base.__name__, (_Gate, base), {"__module__": base.__module__, "__doc__": base.__doc__})
    return _equip(cast("_Gate", gated), profiles)


def _equip(node: _Gate, profiles: Profiles) -> ToolNode:
    node._authz_profiles = profiles
    for name, tool in list(node._tools_by_name.items()):
        # In place: closures (a supervisor's) hold this very dictionary.
        node._tools_by_name[name] = guard_tool(tool, profiles)
    # A RunnableCallable holds its functions as they were bound when it was made.
    node.func, node.afunc = node._func, node._afunc
    return node


class _Authz(Protocol):
    """What of a `RuntimeAuthz` the node needs."""

    @property
    def profiles(self) -> Profiles: ...

    @property
    def entrance(self) -> Entrance: ...


class AuthzToolNode(_Gate):
    """Drop-in for `langgraph.prebuilt.ToolNode`.

    Takes what ToolNode takes, and the `RuntimeAuthz` that decides. Inside a protected graph it is
    one of its gates; called by itself it is a root entry and opens an implicit run.

    Args:
        tools: as for ToolNode; kept as guarded copies.
        authz: the `RuntimeAuthz`.
        **kwargs: as for ToolNode.
    """

    def __init__(self, tools: Sequence[Any], *, authz: _Authz, **kwargs: Any) -> None:
        super().__init__(tools, **kwargs)
        self._authz = authz
        _equip(self, authz.profiles)

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        if find_run(config) is not None:
            return super()._func(input, config, runtime)
        entrance = self._authz.entrance
        with (
            entrance.enter(self.get_name(), input, config, entrance.at_call(config)) as (given, entered),
            run_scope(cast("Run", find_run(entered))),
        ):
            return self._gated(given, entered, runtime, alone=True)

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        if find_run(config) is not None:
            return await super()._afunc(input, config, runtime)
        entrance = self._authz.entrance
        async with entrance.enter(self.get_name(), input, config, entrance.at_call(config)) as (given, entered):
            with run_scope(cast("Run", find_run(entered))):
                return await self._agated(given, entered, runtime, alone=True)
