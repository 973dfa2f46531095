"""Decide a hand-written node's calls one by one, at their places in its plan.

Each call is matched to the node's plan: by its id or, without an id, by tool and arguments, with equal calls in order.
While a question is open, the node's other calls are held. If the node's code swallows the question, the node's
enforcement point raises it when the node ends. The node then runs again with the answer, and the ledger returns the
results of the calls that ran before.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, Protocol, cast

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, plan_calls, raw_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_call_parsing as parsing
from langchain_runtime_authz.langgraph import tool_execution
from langchain_runtime_authz.langgraph.answer_numbers import counting_questions, take_answers
from langchain_runtime_authz.langgraph.interrupts import decide_together
from langchain_runtime_authz.langgraph.messages import denial_message, record_plans, replay_message
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_execution import Pending
from langchain_runtime_authz.langgraph.tool_lookup import ToolFacts
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run

PATIENCE: Final = 30.0  # seconds that a question waits for other calls of its node
Place = tuple[str, int]  # a message's id, a call's position in it
_KEPT: Final = 2048  # messages of one task; the calls of older ones would be new calls when the task runs again
_SOUGHT: Final = 64  # plans of earlier executions in which a call is looked for


class ArrivingCall(Protocol):
    """The part of `tool_arrival.Arrival` that a node needs."""

    call: Call
    config: Mapping[str, Any]
    facts: ToolFacts | None
    describe: parsing.Describe | None
    given: Any

    def counted(self, call: Call) -> Call: ...


class NodeCalls:
    """The tool calls in one execution of a hand-written node, decided one by one."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given = given
        self.config, self._numbers = counting_questions(dict(config))  # the node runs with it
        self.locks, self._asking = (threading.Lock(), threading.Lock()), threading.Lock()
        self._closed = False
        self.question: GraphInterrupt | None = None  # the first one raised inside
        self.announced: list[tuple[str, AIMessage]] = []  # LangGraph task and message of each model inside
        self.inside: list[AIMessage] = []  # these messages, with the ids of their recorded plans
        self._kept: dict[str, str] | None = None  # task, calls and number of a message → id of its plan
        self._before: Sequence[str] = ()  # ids of the plans of the task's earlier executions
        self._places: dict[str, list[Any]] = {}  # id of a kept plan → LangGraph task and planned call of each call made
        self._equal: dict[str, int] = {}
        self._remembered = False
        self._held: list[Call] = []
        self._taken: set[Place] = set()
        # Call id → output, denial or replay; for calls without a message: tool → denial.
        self._came: dict[str | None, Any] = {}
        self._begun: set[str | None] = set()
        self.running = 0  # guarded tools that are being decided or run
        self.leaving = 0  # those of them that wait in `leave`

    @cached_property
    def _done(self) -> Collection[str]:
        return parsing.answered_calls(self._given)

    def _find(self, run: Run, one: ArrivingCall) -> Flow[tuple[Call, Place | None]]:
        call = one.call
        yield from self._heard(run) if self.announced else ()
        inside = [m for m in reversed(self.inside) if any(parsing.may_be(call, c) for c in m.tool_calls)][:1]
        messages = inside or [message for _, message in parsing.newest_messages(self._given)]
        plans: list[Any] = [(Query(plan=(run.agent, m.id or "")), dict(enumerate(m.tool_calls))) for m in messages]
        plans = plans or [(Query(planned_call=(run.agent, c["id"])), {-1: c}) for c in parsing.sent_calls(self._given)]
        plans.append((None, {}))  # the plans of earlier executions, which are loaded last
        raw, me = raw_digest(call.raw), private.task_id(one.config)
        for query, calls in plans:
            if query is None:
                yield from self._heard(run)
                made = [
                    (plan, PlannedCall(*row)) for plan, of in self._places.items() for task, *row in of if task == me
                ]
                plans += [(Query(plan=(run.agent, i)), {}) for i in self._before]
            else:
                plan: PlanRecord | None = (yield Load(run.scope, query)).plan
                made = [(plan.id, planned) for planned in self._planned(plan, calls, me)] if plan is not None else []
            for ident, planned in made:
                written = calls.get(planned.position) or calls.get(-1)
                if not calls and planned.args_digest == raw:
                    written = {"id": planned.call_id, "args": call.raw}
                if written is None:
                    continue
                if calls and not inside and (written["id"] != planned.call_id or planned.call_id in self._done):
                    continue  # of a message that the node was given
                if (found := self._at(one, ident, planned, written)) is not None:
                    if ident in (self._kept or {}).values() and [me, *planned] not in self._places.get(ident, ()):
                        self._places.setdefault(ident, []).append([me, *planned])
                        yield from self.remember(run) if self._remembered else ()  # the node did not wait for this task
                    return found, (ident, planned.position)
        return call, None

    def _planned(self, plan: PlanRecord, calls: Mapping[int, Any], me: str) -> list[PlannedCall]:
        """Return the calls that task `me` may make of a plan, those that it made first."""
        several = [*plan.calls]
        if plan.origin and -1 not in calls:  # the user's answer took calls out of the plan
            several += [p for p in plan_calls([*calls.values()]) if all(p[0] != q[0] for q in plan.calls)]
        if len(several) > 1:  # a `Send` may pass one of the calls, together with the whole message
            sent = {c["id"] for c in parsing.sent_calls(self._given)}
            several.sort(key=lambda p: p.call_id not in sent)
        made = {row[0]: (task, PlannedCall(*row)) for task, *row in self._places.get(plan.id, ())}
        own = [planned for task, planned in made.values() if task == me]
        return own + [p for p in several if p.position not in made]

    def _at(self, one: ArrivingCall, plan: str, planned: PlannedCall, written: Mapping[str, Any]) -> Call | None:
        """Return the call at its place in a plan, or `None` if it is another call."""
        call, place = one.call, (plan, planned.position)
        facts, describe = cast("ToolFacts", one.facts), cast("parsing.Describe", one.describe)
        if place in self._taken or planned.tool != call.tool or call.call_id not in (None, written["id"]):
            return None
        found = parsing.as_planned(call, planned, written["args"], facts, one.given, describe)
        if not found:
            return None
        self._taken.add(place)
        return replace(found, plan_id=plan, position=planned.position)

    def _heard(self, run: Run) -> Flow[None]:
        """Record the plans of models inside. A repeated message keeps its plan."""
        if self._kept is None:
            self._mark = f"{OF_TASK}plans:{private.task_id(self.config)}"
            mark = (yield Load(run.scope, Query(marks=(self._mark,)))).marks.get(self._mark, "[{}, {}]")
            self._kept, self._places = json.loads(mark)
            self._before = [*self._kept.values()][: -_SOUGHT - 1 : -1]
        while self.announced:
            task, message = self.announced.pop(0)
            name = raw_digest([task, [[c["name"], raw_digest(c["args"])] for c in message.tool_calls]])
            self._equal[name] = number = self._equal.get(name, 0) + 1
            ident = self._kept.pop(name := f"{name} {number}", "")
            plan = (yield Load(run.scope, Query(plan=(run.agent, ident)))).plan if ident else None
            if plan is None or (plan.epoch != run.epoch and not self._places.get(ident)):
                yield from record_plans(run, self._given, message)
                ident = message.id or ""
            self._kept[name] = ident
            self.inside.append(message.model_copy(update={"id": ident}))

    def remember(self, run: Run) -> Flow[None]:
        """Keep plans and places: in its next execution, the task gets equal messages."""
        self._remembered, written = True, ""
        if (self.announced or self._kept) and private.task_id(self.config):
            yield from self._heard(run)
            while written != (now := self._written()):  # other tasks may add places meanwhile
                written = now
                yield Commit(run.scope, None, [SetMark(self._mark, now)])

    def _written(self) -> str:
        kept = dict([*(self._kept or {}).items()][-_KEPT:])
        plans = {*kept.values()}
        return json.dumps([kept, {plan: rows for plan, rows in [*self._places.items()] if plan in plans}])

    def decide(self, run: Run, one: ArrivingCall) -> Flow[tuple[Pending, Place | None]]:
        """Decide a call. Return it with its verdict, and its place in a message, if any."""
        call, place = yield from self._find(run, one)
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
        """Return True if a `task` of the functional API makes the call."""
        return private.task_id(config) not in ("", private.task_id(self.config))  # it asks and runs again by itself

    def decide_all(self, run: Run, calls: list[Call], config: Mapping[str, Any]) -> Flow[list[Pending]]:
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
            # Coroutines and worker threads may be decided at once, and cannot wait for each other.
            if self._asking.acquire(blocking=False):
                mine.append(True)
            return bool(mine) and self.question is None

        try:
            return (yield from decide_together(run, calls, self.config, had=lambda: len(self._numbers), turn=turn))
        except GraphInterrupt as exc:
            if exc.args and exc.args[0]:
                self.question = exc
            else:  # its question would take the answer to another question
                self._held = [*self._held, *calls]
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
            self._taken.discard(place)

    async def finish(self, patience: float = math.inf) -> None:
        """Wait for running tools, so that their outcomes are recorded."""
        until = time.monotonic() + patience
        while self.running > self.leaving and time.monotonic() < until:  # noqa: ASYNC110  (threads end calls too)
            await asyncio.sleep(tool_execution.PAUSE)

    def leave(self) -> Flow[None]:
        """Wait for running tools before a question leaves a call.

        A task group would cancel them. Not for ever, because a tool may wait for what its node does after the question.
        """
        self.leaving += 1
        try:
            yield (tool_execution.Finish, self, PATIENCE)
        finally:
            self.leaving -= 1

    @property
    def asks(self) -> bool:
        return self.question is not None or bool(self._held)

    def over(self, run: Run, exc: BaseException | None) -> Flow[None]:
        if not self.asks or isinstance(exc, AuthzHalt) or (exc is not None and not isinstance(exc, Exception)):
            return
        run.pause()
        if self.question is None:
            take_answers(self.config, range(len(private.scratchpad_of(self.config).resume)))
            for one in (yield from self._decided(run, self._held)):  # raises, unless it was answered elsewhere
                yield from one.give_back()
        # INVARIANT: the node's output is not written while a question is open.
        raise self.question or GraphInterrupt(())

    def answered(self, denied: AuthzDenied, channels: Collection[str]) -> dict[str, Any] | None:
        """Return a state update that answers the message's open calls, or `None`."""
        held = [(name, m.tool_calls) for name, m in parsing.newest_messages(self._given)]
        if not held and len(channels) == 1:
            held = [(*channels, list(parsing.sent_calls(self._given)))]  # type: ignore[list-item]  # there is one
        for name, calls in held:
            if name in channels and (left := [c for c in calls if c["id"] not in self._done]):
                self._closed = True
                return {name: [self._answer(c, denied) for c in left]}
        return None

    def _answer(self, call: Mapping[str, Any], denied: AuthzDenied) -> ToolMessage:
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
        return denial_message(Denial(own, replace(deny(code), decision_id=denied.decision_id)), ident)
