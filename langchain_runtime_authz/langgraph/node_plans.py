"""Find a hand-written node's calls in plans, also when the node runs again.

A call is matched to a plan by its id or, without an id, by tool and arguments. Equal calls are matched in order. A node
that paused runs again from its start, and its models may write equal messages again. So the ledger stores the plans of
such messages, and which of their calls were made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, Protocol, cast

from langchain_core.messages import AIMessage

from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord, plan_calls, raw_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_call_parsing as parsing
from langchain_runtime_authz.langgraph.messages import record_plans
from langchain_runtime_authz.langgraph.tool_facts import ToolFacts
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run

Place = tuple[str, int]  # a plan's id, a call's position in it
_KEPT: Final = 2048  # messages per task; calls of older ones count as new when the task runs again
_SOUGHT: Final = 64  # number of earlier executions' plans in which a call is searched


class ArrivingCall(Protocol):
    """The part of `tool_arrival.Arrival` that a node needs."""

    call: Call
    config: Mapping[str, Any]
    facts: ToolFacts | None
    describe: parsing.Describe | None
    given: Any

    def counted(self, call: Call) -> Call: ...


class NodePlans:
    """The plans from which one execution of a node makes its calls."""

    def __init__(self, given: Any, config: Mapping[str, Any]) -> None:
        self._given, self._config = given, config
        self.announced: list[tuple[str, AIMessage]] = []  # LangGraph task, and message of a model that the node called
        self.inside: list[AIMessage] = []  # the messages in `announced`, with the ids of their recorded plans
        self._kept: dict[str, str] | None = None  # digest of task and calls, number → id of the message's plan
        self._made: dict[str, list[Any]] = {}  # plan id → LangGraph task and planned call of each call made
        self._before: Sequence[str] = ()  # ids of the plans of the task's earlier executions
        self._equal: dict[str, int] = {}  # digest of task and calls → number of equal messages
        self._taken: set[Place] = set()
        self._is_kept = False

    @cached_property
    def _answered(self) -> Collection[str]:
        return parsing.answered_calls(self._given)

    def find(self, run: Run, one: ArrivingCall) -> Flow[tuple[Call, Place | None]]:
        """Find a call in the plans. Return it as planned with its place, or with None."""
        call, task = one.call, private.task_id(one.config)
        yield from self._record(run) if self.announced else ()
        inside = [m for m in reversed(self.inside) if any(parsing.may_be(call, c) for c in m.tool_calls)][:1]
        messages = inside or [message for _, message in parsing.newest_messages(self._given)]
        plans: list[Any] = [(Query(plan=(run.agent, m.id or "")), dict(enumerate(m.tool_calls))) for m in messages]
        plans = plans or [(Query(planned_call=(run.agent, c["id"])), {-1: c}) for c in parsing.sent_calls(self._given)]
        for query, calls in plans:
            plan: PlanRecord | None = (yield Load(run.scope, query)).plan
            for planned in self._open_calls(plan, calls, task) if plan is not None else ():
                written = calls.get(planned.position) or calls.get(-1)
                if written is None or (not inside and self._passed_on(planned, written)):
                    continue
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

    def _passed_on(self, planned: PlannedCall, written: Mapping[str, Any]) -> bool:
        """Return True if `written` is another call than `planned`, or is answered already."""
        return written["id"] != planned.call_id or planned.call_id in self._answered

    def _open_calls(self, plan: PlanRecord, calls: Mapping[int, Any], task: str) -> list[PlannedCall]:
        """Return a plan's calls that a task may make: first those that it made before."""
        several = [*plan.calls]
        if plan.origin and -1 not in calls:  # the carried plan lacks calls that the user rejected
            several += [p for p in plan_calls([*calls.values()]) if all(p[0] != q[0] for q in plan.calls)]
        if len(several) > 1:  # a `Send` may pass one of the calls, together with the whole message
            sent = {c["id"] for c in parsing.sent_calls(self._given)}
            several.sort(key=lambda p: p.call_id not in sent)
        made = {row[0]: (of, PlannedCall(*row)) for of, *row in self._made.get(plan.id, ())}
        own = [planned for of, planned in made.values() if of == task]
        return own + [p for p in several if p.position not in made]

    def _take(
        self, run: Run, one: ArrivingCall, plan_id: str, planned: PlannedCall, written: Mapping[str, Any]
    ) -> Flow[tuple[Call, Place] | None]:
        """Return the call and its place if it is `planned`, and occupy the place."""
        call, place = one.call, (plan_id, planned.position)
        if place in self._taken or planned.tool != call.tool or call.call_id not in (None, written["id"]):
            return None
        facts, describe = cast("ToolFacts", one.facts), cast("parsing.Describe", one.describe)
        found = parsing.as_planned(call, planned, written["args"], facts, one.given, describe)
        if not found:
            return None
        self._taken.add(place)
        made = [private.task_id(one.config), *planned]
        if plan_id in (self._kept or {}).values() and made not in self._made.get(plan_id, ()):
            self._made.setdefault(plan_id, []).append(made)
            yield from self.keep(run) if self._is_kept else ()  # the node ended before this task
        return replace(found, plan_id=plan_id, position=planned.position), place

    def free(self, place: Place) -> None:
        """Let another call have the place of a call that failed."""
        self._taken.discard(place)

    def _record(self, run: Run) -> Flow[None]:
        """Record the plans of the messages in `announced`. A repeated one keeps its plan."""
        if self._kept is None:
            self._mark = f"{OF_TASK}plans:{private.task_id(self._config)}"
            mark = (yield Load(run.scope, Query(marks=(self._mark,)))).marks.get(self._mark, "[{}, {}]")
            self._kept, self._made = json.loads(mark)
            self._before = [*self._kept.values()][: -_SOUGHT - 1 : -1]
        while self.announced:
            task, message = self.announced.pop(0)
            name = raw_digest([task, [[c["name"], raw_digest(c["args"])] for c in message.tool_calls]])
            self._equal[name] = number = self._equal.get(name, 0) + 1
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
