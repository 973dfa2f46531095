"""Decide a hand-written node's calls one by one, each at its position in a plan.

While a question is open, the node's other calls wait. If the node's code swallows the question, the node's enforcement
point raises it when the node ends. The node then runs again with the answer, and the ledger returns the results of the
calls that ran before.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from langchain_core.messages import ToolMessage
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_call_parsing as parsing
from langchain_runtime_authz.langgraph import tool_execution
from langchain_runtime_authz.langgraph.answer_numbers import counting_questions, keep_numbers
from langchain_runtime_authz.langgraph.decide_and_ask import decide_together
from langchain_runtime_authz.langgraph.messages import denial_message, denied, replay_message
from langchain_runtime_authz.langgraph.node_plans import ArrivingCall, NodePlans, Place
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_execution import Pending
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.run import Flow, Run

PATIENCE: Final = 30.0  # seconds that a question waits for other calls of its node


class NodeCalls:
    """The tool calls in one execution of a hand-written node, decided one by one."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given = given
        self.config, _ = counting_questions(dict(config))  # the config with which the node runs
        self.locks, self._asking = (threading.Lock(), threading.Lock()), threading.Lock()
        self.plans = NodePlans(given, self.config)
        self._closed = False
        self.question: GraphInterrupt | None = None  # the first one raised inside
        self.held: list[Call] = []  # calls that wait for the answer to another question
        # Call id → output, denial or replay; for calls without a message: tool → denial.
        self._came: dict[str | None, Any] = {}
        self._begun: set[str | None] = set()
        self.running = 0  # guarded tools that are being decided or run
        self.leaving = 0  # how many of `running` wait in `leave`

    def decide(self, run: Run, one: ArrivingCall) -> Flow[tuple[Pending, Place | None]]:
        """Decide a call. Return it with its verdict, and its place in a plan or None."""
        own = one.call.by_code and one.call.call_id is None  # no message contains it
        call, place = (one.call, None) if own else (yield from self.plans.find(run, one))
        call = call if place is not None else one.counted(call)
        (done,) = yield from self.decide_all(run, [call], one.config)
        if isinstance(done.verdict, Ticket):
            self._begun.add(done.call.call_id)
        elif place is not None:
            self._came[done.call.call_id] = done.verdict
        elif isinstance(done.verdict, Denial):
            self._came[done.call.tool] = done.verdict
        return done, place

    def _by_task(self, config: Mapping[str, Any]) -> bool:
        """Return True if a `task` of the functional API makes the call and asks itself."""
        return private.task_id(config) not in ("", private.task_id(self.config))

    def decide_all(self, run: Run, calls: list[Call], config: Mapping[str, Any]) -> Flow[list[Pending]]:
        """Decide calls together. Raises the node's question while one is open."""
        if self._closed:  # the model was told that open calls were not carried out
            raise AuthzDenied(Code.NOT_REACHED, deny(Code.NOT_REACHED).decision_id)
        if self._by_task(config):
            return (yield from decide_together(run, calls, config))
        if self.question is not None:
            raise self.question
        return (yield from self._decided(run, calls))

    def _decided(self, run: Run, calls: list[Call]) -> Flow[list[Pending]]:
        mine: list[bool] = []

        def turn() -> bool:
            # Calls in coroutines and threads are decided at the same time, and cannot wait for each other.
            if self._asking.acquire(blocking=False):
                mine.append(True)
            return bool(mine) and self.question is None

        try:
            return (yield from decide_together(run, calls, self.config, turn=turn))
        except GraphInterrupt as exc:
            if exc.args and exc.args[0]:
                self.question = exc
            else:  # its question would get the answer to another question
                self.held = [*self.held, *calls]
            raise
        finally:
            if mine:
                self._asking.release()

    def ended(
        self, call: Call, place: Place | None, output: Any, exc: BaseException | None, config: Mapping[str, Any]
    ) -> None:
        """Record a permitted call's outcome. A failed call frees its place in the plan."""
        if isinstance(exc, GraphInterrupt) and not self._by_task(config):
            self.question = self.question or exc  # asked by the tool
        if place is not None and exc is None:
            self._came[call.call_id] = output
        elif place is not None:
            self.plans.free(place)

    async def finish(self, patience: float = math.inf) -> None:
        """Wait at most `patience` seconds for running tools, so that they are recorded."""
        until = time.monotonic() + patience
        while self.running > self.leaving and time.monotonic() < until:  # noqa: ASYNC110  (threads end calls too)
            await asyncio.sleep(tool_execution.PAUSE)

    def leave(self) -> Flow[None]:
        """Wait for running tools before a question leaves a call.

        A task group would cancel them. Wait only `PATIENCE` seconds, because a tool may wait for what its node does
        after the question.
        """
        self.leaving += 1
        try:
            yield (tool_execution.Finish, self, PATIENCE)
        finally:
            self.leaving -= 1

    def over(self, run: Run, exc: BaseException | None) -> Flow[None]:
        """End the node: raise its open question, or ask about the waiting calls."""
        asks = self.question or self.held
        if not asks or isinstance(exc, AuthzHalt) or (exc is not None and not isinstance(exc, Exception)):
            return
        run.pause()
        if self.question is None:
            keep_numbers(self.config, range(len(private.scratchpad_of(self.config).resume)))
            for one in (yield from self._decided(run, self.held)):  # raises, unless it was answered elsewhere
                yield from one.give_back()
        # INVARIANT: the node's output is not written while a question is open.
        raise self.question or GraphInterrupt(())

    def answered(self, denied: AuthzDenied, channels: Collection[str]) -> dict[str, Any] | None:
        """Return a state update that answers the message's open calls; None without any."""
        held = [(name, m.tool_calls) for name, m in parsing.newest_messages(self._given)]
        if not held and len(channels) == 1:
            held = [(*channels, list(parsing.sent_calls(self._given)))]  # type: ignore[list-item]  # there is one
        done = parsing.answered_calls(self._given)
        for name, calls in held:
            if name in channels and (left := [c for c in calls if c["id"] not in done]):
                self._closed = True
                return {name: [self._answer(c, denied) for c in left]}
        return None

    def _answer(self, call: Mapping[str, Any], exc: AuthzDenied) -> ToolMessage:
        ident, name = call["id"], call["name"]
        came = self._came.get(ident, self._came.get(name))
        if isinstance(came, Denial):
            return denial_message(came, ident)
        if isinstance(came, Replay):
            return replay_message(came, ident)
        if isinstance(came, ToolMessage):
            return came.model_copy(update={"tool_call_id": ident})
        if ident in self._came:
            return ToolMessage(came if isinstance(came, str) else str(came), name=name, tool_call_id=ident)
        code = Code.CALL_IN_PROGRESS if ident in self._begun else Code.NOT_REACHED
        own = parsing.unknown(name, ident, None, None, {})
        return denial_message(denied(own, AuthzDenied(code, exc.decision_id)), ident)
