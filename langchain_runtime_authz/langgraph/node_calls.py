"""Decide a hand-written node's calls one by one, each at its position in a plan.

While a question is open, the node's other calls wait. If the node's code swallows the question, the node's enforcement
point raises it when the node ends. The node then runs again with the answer, and the ledger returns the results of the
calls that ran before.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz._locks import cached_property
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, plan_calls, raw_digest
from langchain_runtime_authz.langgraph import call_messages, tool_execution
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.decide_and_ask import decide_together
from langchain_runtime_authz.langgraph.interrupts import counting_questions, execution_of, keep_numbers
from langchain_runtime_authz.langgraph.messages import answered_calls, newest_messages, record_plans, sent_calls
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_execution import PendingCall
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run

if TYPE_CHECKING:
    from langchain_runtime_authz.langgraph.tool_arrival import NodeCall

Place = tuple[str, int]  # a plan's id, a call's position in it
_KEPT: Final = 2048  # messages per task; calls of older ones count as new when the task runs again
_SOUGHT: Final = 64  # number of earlier executions' plans in which a call is searched


class NodePlans:
    """The plans from which one execution of a node makes its calls."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given, self._config = given, config
        self.announced: list[tuple[Any, AIMessage]] = []  # config of code that called a model, and the model's message
        self.inside: list[AIMessage] = []  # the messages in `announced`, with the ids of their recorded plans
        self._kept: dict[str, str] | None = None  # digest of task and calls, number → id of the message's plan
        self._made: dict[str, list[Any]] = {}  # plan id → LangGraph task and planned call of each call made
        self._before: Sequence[str] = ()  # ids of the plans of the task's earlier executions
        self._equal: dict[Any, int] = {}  # a task's execution, digest of task and calls → number of equal messages
        self.taken: dict[Place, tuple[str, object]] = {}  # place → task and its execution that made the call
        self._is_kept = False

    @cached_property
    def _answered(self) -> Collection[str]:
        return answered_calls(self._given)

    def find(self, run: Run, one: NodeCall) -> Flow[tuple[Call, Place | None]]:
        """Return the planned call and its place; if no plan has the call, itself and None."""
        call, task = one.call, private.task_id(one.config)
        yield from self._record(run) if self.announced else ()
        named = [(m, c) for m in reversed(self.inside) for c in m.tool_calls if c["name"] == call.tool]
        inside = [m for m, c in named if call.call_id in (None, c["id"])][:1]
        messages = inside or [message for _, message in newest_messages(self._given)]
        plans: list[Any] = [(Query(plan=(run.agent, m.id or "")), dict(enumerate(m.tool_calls))) for m in messages]
        plans = plans or [(Query(planned_call=(run.agent, c["id"])), {-1: c}) for c in sent_calls(self._given)]
        for query, calls in plans:
            plan: PlanRecord | None = (yield Load(run.scope, query)).plan
            for planned in self._open_calls(plan, calls, task) if plan is not None else ():
                written = calls.get(planned.position) or calls.get(-1)
                if written is None:
                    continue
                if not inside and (written["id"] != planned.call_id or planned.call_id in self._answered):
                    continue  # another call than `planned`, or answered already
                if plan is not None and (found := (yield from self._take(run, one, plan.id, planned, written))):
                    return found
        yield from self._record(run)
        raw = raw_digest(call.raw)
        earlier = [(plan, PlannedCall(*row)) for plan, rows in self._made.items() for of, *row in rows if of == task]
        for ident in ("", *self._before):  # "": first the calls that this task made, then its earlier plans
            if ident:
                plan = (yield Load(run.scope, Query(plan=(run.agent, ident)))).plan
                earlier = [(ident, c) for c in self._open_calls(plan, {}, task)] if plan is not None else []
            for plan_id, planned in earlier:
                written = {"id": planned.call_id, "args": call.raw}
                if planned.args_digest == raw and (
                    found := (yield from self._take(run, one, plan_id, planned, written))
                ):
                    return found
        return call, None

    def _open_calls(self, plan: PlanRecord, calls: Mapping[int, Any], task: str) -> list[PlannedCall]:
        """Return a plan's calls that a task may make: first those that it made before."""
        several = [*plan.calls]
        if plan.origin and -1 not in calls:  # the carried plan lacks calls that the user rejected
            several += [p for p in plan_calls([*calls.values()]) if all(p[0] != q[0] for q in plan.calls)]
        if len(several) > 1:  # a `Send` may pass one of the calls, together with the whole message
            sent = {c["id"] for c in sent_calls(self._given)}
            several.sort(key=lambda p: p.call_id not in sent)
        made = {row[0]: (of, PlannedCall(*row)) for of, *row in self._made.get(plan.id, ())}
        own = [planned for of, planned in made.values() if of == task]
        return own + [p for p in several if p.position not in made]

    def _take(
        self, run: Run, one: NodeCall, plan_id: str, planned: PlannedCall, written: Mapping[str, Any]
    ) -> Flow[tuple[Call, Place] | None]:
        """Return the call and its place if it is `planned`, and occupy the place."""
        call, place = one.call, (plan_id, planned.position)
        task, execution = private.task_id(one.config), execution_of(one.config)
        if planned.tool != call.tool or call.call_id not in (None, written["id"]):
            return None
        if place in self.taken and (self.taken[place][0] != task or self.taken[place][1] is execution):
            return None  # not made by an earlier try of the same task
        if raw_digest(call.raw) != planned.args_digest:
            added = call_messages.as_planned(call, one.given, written["args"], one.facts, one.describe)
            if added is None:
                return None
            call = added
        self.taken[place] = task, execution
        made = [task, *planned]
        if plan_id in (self._kept or {}).values() and made not in self._made.get(plan_id, ()):
            self._made.setdefault(plan_id, []).append(made)
            yield from self.keep(run) if self._is_kept else ()  # the node ended before this task
        return replace(call, call_id=planned.call_id, plan_id=plan_id, position=planned.position), place

    def _record(self, run: Run) -> Flow[None]:
        """Record the plans of the announced messages. A repeated message keeps its plan."""
        if self._kept is None:
            self._mark = f"{OF_TASK}plans:{private.task_id(self._config)}"
            mark = (yield Load(run.scope, Query(marks=(self._mark,)))).marks.get(self._mark, "[{}, {}]")
            self._kept, self._made = json.loads(mark)
            self._before = [*self._kept.values()][: -_SOUGHT - 1 : -1]
        while self.announced:
            config, message = self.announced.pop(0)
            calls = [[c["name"], raw_digest(c["args"])] for c in message.tool_calls]
            equal = execution_of(config), (name := raw_digest([private.task_id(config), calls]))
            self._equal[equal] = number = self._equal.get(equal, 0) + 1
            ident = self._kept.pop(name := f"{name} {number}", "")
            plan = (yield Load(run.scope, Query(plan=(run.agent, ident)))).plan if ident else None
            if plan is None or (plan.epoch != run.epoch and not self._made.get(ident)):
                yield from record_plans(run, self._given, message)
                ident = message.id or ""
            self._kept[name] = ident
            self.inside.append(message.model_copy(update={"id": ident}))

    def keep(self, run: Run) -> Flow[None]:
        """Store plans and made calls in the ledger, for the task's next execution."""
        self._is_kept, written = True, ""
        if (self.announced or self._kept) and private.task_id(self._config):
            yield from self._record(run)
            while written != (now := self._written()):  # other tasks may make calls meanwhile
                written = now
                yield Commit(run.scope, None, [SetMark(self._mark, now)])

    def _written(self) -> str:
        kept = dict([*(self._kept or {}).items()][-_KEPT:])
        plans = {*kept.values()}
        return json.dumps([kept, {plan: rows for plan, rows in [*self._made.items()] if plan in plans}])


PATIENCE: Final = 30.0  # seconds that a question waits for other calls of its node


class NodeCalls:
    """The tool calls in one execution of a hand-written node, decided one by one."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given = given
        self.config, _ = counting_questions(dict(config))  # the config with which the node runs
        self._locks, self._asking = (threading.Lock(), threading.Lock()), threading.Lock()
        self.plans = NodePlans(given, self.config)
        self._closed = False
        self.question: GraphInterrupt | None = None  # the first one raised inside
        self.held: list[Call] = []  # calls that wait for the answer to another question
        # Call id → output, denial or replay; for calls without a message: tool → denial.
        self._came: dict[str | None, Any] = {}
        self._begun: set[str | None] = set()
        self.running = 0  # guarded tools that are being decided or run
        self.leaving = 0  # how many of `running` wait in `leave`

    def decide(self, run: Run, one: NodeCall) -> Flow[tuple[PendingCall, Place | None]]:
        """Decide a call. Return it with its verdict, and its place in a plan or None."""
        own = one.call.by_application and one.call.call_id is None  # no message contains it
        finding = tool_execution.under_lock(self._locks, self.plans.find(run, one))
        call, place = (one.call, None) if own else (yield from finding)
        call = call if place is not None else one.counted()
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

    def decide_all(self, run: Run, calls: list[Call], config: Mapping[str, Any]) -> Flow[list[PendingCall]]:
        """Decide calls together. Raises the node's question while one is open."""
        if self._closed:  # the model was told that open calls were not carried out
            raise AuthzDenied(Code.NOT_REACHED, deny(Code.NOT_REACHED).decision_id)
        if self._by_task(config):
            return (yield from decide_together(run, calls, config))
        return (yield from tool_execution.under_lock(self._locks, self._decide(run, calls)))

    def _decide(self, run: Run, calls: list[Call]) -> Flow[list[PendingCall]]:
        if self.question is not None:
            raise self.question
        mine: list[bool] = []

        def may_ask() -> bool:
            # Calls in coroutines and threads are decided at the same time, and cannot wait for each other.
            if self._asking.acquire(blocking=False):
                mine.append(True)
            return bool(mine) and self.question is None

        try:
            return (yield from decide_together(run, calls, self.config, may_ask=may_ask))
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
            self.plans.taken.pop(place, None)

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
        paused = self.question or self.held
        if not paused or isinstance(exc, AuthzHalt) or (exc is not None and not isinstance(exc, Exception)):
            return
        run.pause()
        if self.question is None:
            keep_numbers(self.config, range(len(private.scratchpad_of(self.config).resume)))
            for one in (yield from self._decide(run, self.held)):  # raises, unless it was answered elsewhere
                yield from one.give_back()
        # INVARIANT: the node's output is not written while a question is open.
        raise self.question or GraphInterrupt(())

    def answered(self, denied: AuthzDenied, channels: Collection[str]) -> dict[str, Any] | None:
        """Return a state update that answers the message's open calls; None without any."""
        held = [(name, m.tool_calls) for name, m in newest_messages(self._given)]
        if not held and len(channels) == 1:
            held = [(*channels, list(sent_calls(self._given)))]  # type: ignore[list-item]  # there is one
        done = answered_calls(self._given)
        for name, calls in held:
            if name in channels and (left := [c for c in calls if c["id"] not in done]):
                self._closed = True
                return {name: [self._answer(c, denied) for c in left]}
        return None

    def _answer(self, call: Mapping[str, Any], exc: AuthzDenied) -> ToolMessage:
        ident, name = call["id"], call["name"]
        came = self._came.get(ident, self._came.get(name))
        if isinstance(came, Denial):
            return call_messages.denial_message(came, ident)
        if isinstance(came, Replay):
            return call_messages.replay_message(came, ident)
        if isinstance(came, ToolMessage):
            return came.model_copy(update={"tool_call_id": ident})
        if ident in self._came:
            return ToolMessage(came if isinstance(came, str) else str(came), name=name, tool_call_id=ident)
        code = Code.CALL_IN_PROGRESS if ident in self._begun else Code.NOT_REACHED
        own = call_messages.unknown_call(name, ident, None, None, {})
        return call_messages.denial_message(call_messages.denial_of(own, AuthzDenied(code, exc.decision_id)), ident)
