"""The calls that one execution of a tool node was given, and the verdicts on them.

A node may run all calls of a message in one task, or each as a task of its own. Either way the
message is decided once, in one batch, before any of its calls runs.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import ToolCall, ToolMessage
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.langgraph.arguments import describe, parse, unknown, without
from langchain_runtime_authz.langgraph.interrupts import decide_message, decide_one_of, decide_together
from langchain_runtime_authz.langgraph.messages import planned_message
from langchain_runtime_authz.langgraph.tool_execution import Held
from langchain_runtime_authz.langgraph.tool_guard import facts_of, guard_tool, is_guarded
from langchain_runtime_authz.langgraph.tool_profiles import Profiles
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.engine import Flow, Run, adrive, drive

if TYPE_CHECKING:
    from langchain_runtime_authz.langgraph._private import ToolNode
    from langchain_runtime_authz.pep.engine import Engine

__all__ = ["MessageCalls", "Verdicts"]


@dataclass(slots=True)
class _Batch:
    """The decisions of one message whose calls are tasks of their own; made by the first task."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    alock: asyncio.Lock = field(default_factory=asyncio.Lock)
    judged: list[DecidedCall] | None = None


@dataclass(frozen=True, slots=True)
class _JudgeOnce:
    """An effect: judge a message, unless another of its tasks has."""

    run_: Run
    batch: _Batch
    message: MessageCalls

    def run(self, engine: Engine) -> list[DecidedCall]:
        """Judge it, blocking; the message's other tasks wait."""
        with self.batch.lock:
            if self.batch.judged is None:
                self.batch.judged = drive(engine, self._judge())
            return self.batch.judged

    async def arun(self, engine: Engine) -> list[DecidedCall]:
        """Judge it; the message's other tasks wait."""
        async with self.batch.alock:
            if self.batch.judged is None:
                self.batch.judged = await adrive(engine, self._judge())
            return self.batch.judged

    def _judge(self) -> Flow[list[DecidedCall]]:
        return decide_message(self.run_, self.message.describe(), self.message.config)


class MessageCalls:
    """The calls that one execution of a tool node was given, and the message that planned them.

    Args:
        node: the tool node; its tools are guarded as they are met.
        profiles: of whoever guards them.
        input: the node's input, in any of the forms that ToolNode takes.
        config: of the task.
        runtime: of the task.
        reviewed: tools about whose calls a review between here and the tool asks a human.
        alone: the node is its own root entry and shares no run with other tasks.
    """

    def __init__(
        self,
        node: ToolNode,
        profiles: Profiles,
        input: Any,
        config: Any,
        runtime: Any,
        *,
        reviewed: frozenset[str] = frozenset(),
        alone: bool = False,
    ) -> None:
        self.node, self.profiles, self.config, self.runtime, self.reviewed = node, profiles, config, runtime, reviewed
        calls, input_type = node._parse_input(input)
        state = node._extract_state(input, config)
        self.state = state
        key = node._messages_key
        found = planned_message(state, key, calls[0]) if calls else None
        self.plan_id = found.id if found is not None else None
        self.planned: Sequence[Any] = found.calls if found is not None else ()
        self.siblings: Sequence[Any] = calls
        self.position = 0
        # Calls sent one by one, of a message that holds more of them. A node that is its own root
        # entry shares no run with the tasks of the others, so it decides what it was given.
        self.together = alone or input_type != "tool_calls" or found is None or len(calls) != 1
        if not self.together and found is not None:
            self.position = found.position
            answered = _answered(state, key)
            self.siblings = [
                calls[0] if i == found.position else c
                for i, c in enumerate(found.calls)
                if i == found.position or c.get("id") not in answered
            ]
            self.together = len(self.siblings) == 1
        self.calls: Sequence[Any] = calls if self.together else [calls[0]]
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

    def decide(self, run: Run) -> Flow[list[Held]]:
        """The verdicts on the calls of this task, in order: questions first, then tickets."""
        if self.together:
            settled = yield from decide_together(run, self.describe(), self.config)
            return [Held(run, s, place) for place, s in enumerate(settled)]
        judged: list[DecidedCall] = yield _JudgeOnce(run, self._batch(run), self)
        mine = next(i for i, j in enumerate(judged) if j.call.position == self.position)
        return [Held(run, (yield from decide_one_of(run, judged, mine, self.config)))]

    def _batch(self, run: Run) -> _Batch:
        """The batch of the message, by its very calls, or where they are a copy, by what they say.

        By their content alone it would be lost when a tool writes into its arguments, which may be the
        message's own; by the message's id alone a provider that uses an id again would get old decisions.
        """
        tools = id(self.node._tools_by_name)  # a node decides with its own, even if another has tools of the same names
        with run.lock:
            planned, batch = run.batches.get(same := (tools, id(self.planned)), (None, None))
            if planned is not self.planned:
                alike = (tools, f"{self.plan_id} {calls_digest(plan_calls(self.planned))}")
                batch = run.batches.setdefault(alike, _Batch())
                run.batches[same] = (self.planned, batch)  # held, so that its identity stays its own
            return cast("_Batch", batch)

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
            tool = node._tools_by_name[call["name"]] = guard_tool(tool, self.profiles)
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
            reviewed=call["name"] in self.reviewed,
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


class Verdicts:
    """The verdicts on a task's calls while it makes them, by `with` or `async with`.

    On the way out the tickets that nobody redeemed are given back: an interceptor answered, or what
    ran was decided anew.
    """

    __slots__ = ("_held", "_message", "_run")

    def __init__(self, run: Run, message: MessageCalls) -> None:
        self._run, self._message = run, message
        self._held: list[Held] = []

    def __enter__(self) -> list[Held]:
        self._held = drive(self._run.engine, self._message.decide(self._run))
        return self._held

    async def __aenter__(self) -> list[Held]:
        self._held = await adrive(self._run.engine, self._message.decide(self._run))
        return self._held

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        drive(self._run.engine, self._released())

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await adrive(self._run.engine, self._released())

    def _released(self) -> Flow[None]:
        for one in self._held:
            yield from one.give_back()


def _place_of(call: Any, planned: Mapping[int, Any]) -> int | None:
    for same in (lambda c: c is call, lambda c: c == call, lambda c: c.get("id") == call.get("id")):
        for place, one in planned.items():
            if same(one):
                return place
    return None


def _answered(state: Any, key: str) -> set[str]:
    messages = state.get(key, []) if isinstance(state, Mapping) else getattr(state, key, state)
    return {m.tool_call_id for m in messages if isinstance(m, ToolMessage)} if isinstance(messages, list) else set()
