"""At a tool: find the call's decision, or decide the call if node code made it.

The call passes with the arguments that were decided. If no earlier enforcement point decided the call, or if its
arguments or its tool changed since, it is decided here.

A hand-written node calls tools in its own code. Each call is matched to the node's plan: by its id or, without an id,
by tool and arguments, with equal calls in order. While a question is open, the node's other calls are held. If the
node's code swallows the question, the node's enforcement point raises it when the node ends. The node then runs again
with the answer, and the ledger returns the results of the calls that ran before.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import ensure_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.credential.current_call import current_scope
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.plan import PlanRecord, plan_calls, raw_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_call_parsing as parsing
from langchain_runtime_authz.langgraph import tool_execution
from langchain_runtime_authz.langgraph.answer_numbers import counting_questions, take_answers
from langchain_runtime_authz.langgraph.interrupts import decide_together
from langchain_runtime_authz.langgraph.messages import denial_message, record_plans, replay_message
from langchain_runtime_authz.langgraph.resume_values import drop_old_answer
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle, current_node, find_run, opened
from langchain_runtime_authz.langgraph.tool_execution import Pending, ToolExecution, answer
from langchain_runtime_authz.langgraph.tool_lookup import Profiles, ToolFacts, facts_of
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep.call import Call, Denial, Replay, Verdict
from langchain_runtime_authz.pep.run import Commit, Engine, Flow, Load, Run

Parser = Callable[[Any, str | None], Any]


@dataclass(slots=True, eq=False, repr=False)
class Arrival:
    """A call that reached its tool, and all that is needed to decide and run it."""

    call: Call  # as it would run
    config: Mapping[str, Any]  # of the call
    run: Run | None = None
    opener: RunHandle | None = None  # instead of a run, if code outside every protected graph makes the call
    verdict: Verdict | None = None  # of an earlier enforcement point
    counts: dict[str, int] | None = None  # equal call → how often it ended, for calls without a message
    front: Pending | None = None  # the pending call from which this one was made
    call_id: str | None = None  # of the tool call, if a message can answer it
    parser: Parser | None = None  # parses the given input into the tool's arguments
    given: Any = None  # the input
    exact: bool = False  # the framework supplied none of the arguments
    layer: str = "tool guard"
    equal: str = ""  # key of equal calls
    engine: Engine | None = None  # `None` outside every run
    facts: ToolFacts | None = None
    describe: parsing.Describe | None = None  # returns the call with other arguments
    node: NodeCalls | None = None  # of the hand-written node that makes the call
    place: Place | None = None  # in the message, for a call of the node
    answers: Sequence[int] | None = None  # numbers of the answers that are kept for the tool
    text: Callable[[], bool] = bool  # True if the calling code expects a text

    def decide(self) -> Flow[Verdict]:
        if self.verdict is not None:
            return self.verdict
        if self.run is None and self.opener is not None:
            drop_old_answer(self.config)
            try:
                self.run = yield from self.opener.outside_run()
            except AuthzDenied as exc:  # no run may be opened here
                return tool_execution.denied(self.call, exc)
        run, call = self.run, self.call
        if run is None:
            return Denial(call, deny(Code.NO_RUN))
        if self.front is not None:
            # Give the earlier permit back before this call is claimed. The two calls may differ only by their tool.
            yield from self.front.give_back()
        if self.node is None or self.describe is None or self.facts is None:
            try:
                (resolved,) = yield from decide_together(run, [self._counted(call)], self.config)
            except GraphInterrupt as exc:  # code before the tool may swallow it
                if type(one := current_scope.get()) is Pending:
                    one.question = exc
                raise
        else:
            resolved, self.place = yield (tool_execution.OneByOne, self.node.locks, self.node.decide(run, self))
        run.engine.tally.count(run, "tool", call.tool, self.layer, decided=1)
        verdict = cast("Verdict", resolved.verdict)  # no review comes after the guard
        if isinstance(verdict, Replay):
            self.settle()
        if not isinstance(verdict, Ticket):
            take_answers(self.config, resolved.answers)
        elif self.node is not None and resolved.call.profile.side_effect:
            self.answers = resolved.answers
        self.call, self.verdict = resolved.call, verdict
        return verdict

    def _counted(self, call: Call) -> Call:
        """Return the call with its number among equal calls, if no message planned it."""
        if self.counts is None:
            return call
        return replace(call, place=f"{private.task_id(self.config)}:{self.counts.get(self.equal, 0)}")

    def settle(self, output: Any = None, exc: BaseException | None = None) -> bool:
        """Record how the call ended. Return True if its node shows the question in `exc`."""
        # Unless the call failed, the next equal call is a new call.
        failed = exc is not None or (isinstance(output, ToolMessage) and output.status == "error")
        if self.counts is not None and self.place is None and not failed:
            self.counts[self.equal] = self.counts.get(self.equal, 0) + 1
        if self.node is not None and isinstance(self.verdict, Ticket):
            self.node.ended(self.call, self.place, output, exc, self.config)
        return self.node is not None and exc is not None and self.node.question is exc

    def execution(self, guard: object, verdict: Verdict) -> ToolExecution | None:
        """Return the execution, or `None` if the tool must not run."""
        # If the arguments are malformed, the execution has no ticket.
        run, call, ticket = self.run, self.call, verdict if isinstance(verdict, Ticket) else None
        if run is None or (ticket is None and call.error is not Code.INVALID_ARGUMENTS):
            return None
        parsed = call.parsed
        if ticket is not None and not self.exact:
            parsed = self._own(parsed)
        front = self.front if self.front is not None else current_scope.get()
        settle = self.settle if self.counts is not None or self.node is not None else None
        place = front.place if type(front) is Pending else None
        return ToolExecution(guard, run, call, ticket, parsed, self.config, self.call_id, settle, place, self.answers)

    def start(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        if isinstance(self.verdict, Ticket) and (execution := self.execution(guard, self.verdict)) is not None:
            return execution.flow(code)
        return self._flow(guard, code)

    def _flow(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        if self.node is not None:
            self.node.running += 1
        try:
            verdict = yield from self.decide()
            if (execution := self.execution(guard, verdict)) is not None:
                return (yield from execution.flow(code))
            text = self.call_id is None and self.place is not None and self.text()
            return answer(verdict, self.call_id, text=text), None
        finally:
            if self.node is not None:
                self.node.running -= 1

    def refuse(self) -> Any:
        return answer(Denial(self.call, deny(Code.NO_RUN)), self.call_id)

    def _own(self, parsed: Any) -> Any:
        injected, given = self.call.injected, self.given
        if self.parser is None or not isinstance(parsed, dict):
            return parsed
        sent = given if isinstance(given, dict) else {}
        if not self.call.supplied and not any(parsing.supplied(k, v, injected) for k, v in sent.items()):
            return parsed
        now = self.parser(dict(sent), self.call_id)
        own = now if isinstance(now, dict) else {}
        return parsing.without(parsed, injected) | {k: v for k, v in own.items() if parsing.supplied(k, v, injected)}


def arrival(tool: BaseTool, tool_input: Any, config: Any, call_id: str | None, parser: Parser) -> Arrival:
    """Return the `Arrival` of a call of `tool.run`. `parser` is the tool's own."""
    if not config or "recursion_limit" not in config or "configurable" not in config:
        config = ensure_config(config)  # after LangChain's `invoke`, the config is complete
    scope = current_scope.get()
    one = scope if type(scope) is Pending else None
    if one is not None and one.call.call_id != call_id:
        one = None  # a wrapper's own call: the verdict waits for the call that was decided
    mine = one if one is not None and not one.used and one.take() else None
    if mine is not None:
        call = mine.call
        if call.tool_ref is tool and call.tool == tool.name:
            exact = call.injected.isdisjoint(tool_input) and tool_input == call.sent
            sent = tool_input if exact or isinstance(tool_input, str) else parsing.without(tool_input, call.injected)
            if (exact or call.sent == sent) and parsing.unchanged(call):
                return Arrival(
                    call, config, run=mine.run, verdict=mine.verdict, front=mine, call_id=call_id, parser=parser,
                    given=tool_input, exact=exact and not call.supplied, engine=mine.run.engine,
                )  # fmt: skip
    facts = facts_of(tool)
    # If an earlier enforcement point decided another form of the call, this form is compared with the same plan.
    # Without an earlier decision no message is known, and the plan is found by the call's id.
    plan_id, position = (one.call.plan_id, one.call.position) if one is not None else (None, None)

    def amend(name: str, args: dict[str, Any]) -> Call:
        if name != tool.name:  # only this tool is known here
            return parsing.unknown(name, call_id, plan_id, position, args)
        sent_too = tool_input if isinstance(tool_input, Mapping) else {}
        own = {k: v for k, v in sent_too.items() if parsing.supplied(k, v, facts.injected)}
        return described(facts, {**parsing.without(args, facts.injected), **own})

    described = _described(tool, call_id, parser, plan_id=plan_id, position=position, amend=amend)
    if one is None:
        found = _arrival(tool, config, call_id, facts, described, tool_input)
    else:
        call, run = described(facts, tool_input), one.run
        found = Arrival(call, config, run=run, call_id=call_id, engine=run.engine, given=tool_input)
    found.front, found.parser = mine, parser
    found.text = partial(tool_execution.returns_text, tool)
    return found


def arrival_by_hand(tool: BaseTool, facts: ToolFacts, args: Mapping[str, Any], config: Mapping[str, Any]) -> Arrival:
    """Return the `Arrival` of a direct call of a tool's code, with unparsed `args`."""
    return _arrival(tool, config, None, facts, _described(tool, None, None), args)


def arrival_unguarded(tool: BaseTool, tool_input: Any, config: Mapping[str, Any], call_id: str | None) -> Arrival:
    # Refuse input that the tool would parse differently when it parses the input again.
    owner = find_run(config) or opened(config)
    if owner is None:
        return Arrival(parsing.unknown(tool.name, None, None, None, {}), config)
    facts = ToolFacts(cast("Profiles", owner.engine.tools).of(tool), private.injected_names(tool))
    found = _arrival(tool, config, None, facts, _described(tool, call_id, tool._parse_input), tool_input)
    found.layer = "ambient hook"
    if found.call.error is None and not parsing.parses_alike(found.call):
        found.call = replace(found.call, error=Code.UNREPEATABLE_ARGUMENTS)
    return found


def _described(tool: BaseTool, call_id: str | None, parser: Parser | None, **planned: Any) -> parsing.Describe:
    about = {"call_id": call_id, "plan_id": None, "position": None, **planned}

    def described(facts: ToolFacts, given: Any) -> Call:
        own = given if isinstance(given, str) else parsing.without(given, facts.injected)
        read = partial(parsing.parse, tool, given, call_id, parser) if parser is not None else lambda: given
        return parsing.describe(tool, facts, read, written=own, **about)

    return described


def _arrival(
    tool: BaseTool, config: Mapping[str, Any], call_id: str | None, facts: ToolFacts, described: Any, given: Any
) -> Arrival:
    """Return the `Arrival` of a call without a message, whose plan is found later."""
    owner = find_run(config) or opened(config)
    if owner is None:
        return Arrival(parsing.unknown(tool.name, call_id, None, None, {}), config, call_id=call_id)
    run, opener = (owner, None) if isinstance(owner, Run) else (None, owner)
    # Counts of equal calls in the current node or tool execution.
    counts = current_scope.get().counts if opener is None else opener.settled
    call = described(facts, given)
    equal = f"{call.call_id} {call.tool} {call.args_digest}" if counts is not None else ""
    return Arrival(
        call, config, run=run, opener=opener, counts=counts, call_id=call_id, equal=equal, engine=owner.engine, given=given,
        facts=facts, describe=described, node=current_node(run),
    )  # fmt: skip


Place = tuple[str, int]  # a message's id, a call's position in it


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
        self._equal: dict[str, int] = {}
        self._held: list[Call] = []
        self._taken: set[Place] = set()
        # Call id → output, denial or replay; for calls without a message: tool → denial.
        self._came: dict[str | None, Any] = {}
        self._begun: set[str | None] = set()
        self.running = 0  # guarded tools that are being decided or run

    def _find(self, run: Run, one: Arrival) -> Flow[tuple[Call, Place | None]]:
        call, facts, describe = one.call, cast("ToolFacts", one.facts), cast("parsing.Describe", one.describe)
        yield from self._heard(run) if self.announced else ()
        inside = [m for m in reversed(self.inside) if any(parsing.may_be(call, c) for c in m.tool_calls)][:1]
        messages = inside or [message for _, message in parsing.newest_messages(self._given)]
        plans: list[Any] = [(Query(plan=(run.agent, m.id or "")), dict(enumerate(m.tool_calls))) for m in messages]
        plans = plans or [(Query(planned_call=(run.agent, c["id"])), {-1: c}) for c in parsing.sent_calls(self._given)]
        plans.append((None, {}))  # the plans of earlier executions, which are loaded last
        done, raw = parsing.answered_calls(self._given), raw_digest(call.raw)
        for query, calls in plans:
            if query is None:
                yield from self._heard(run)
                plans += [(Query(plan=(run.agent, i)), {}) for i in self._before]
                continue
            plan: PlanRecord | None = (yield Load(run.scope, query)).plan
            several = plan.calls if plan is not None else ()
            if plan is not None and plan.origin and -1 not in calls:  # the user's answer took calls out of the plan
                several += tuple(p for p in plan_calls([*calls.values()]) if all(p[0] != q[0] for q in plan.calls))
            if len(several) > 1:  # a `Send` may pass one of the calls, together with the whole message
                mine = {c["id"] for c in parsing.sent_calls(self._given)}
                several = tuple(sorted(several, key=lambda p: p.call_id not in mine))
            for planned in several:
                written = calls.get(planned.position) or calls.get(-1)
                if not calls and planned.args_digest == raw and sum(p[2:4] == planned[2:4] for p in several) == 1:
                    written = {"id": planned.call_id, "args": call.raw}  # of equal calls some may have run
                place = (plan.id if plan is not None else "", planned.position)
                if place in self._taken or planned.call_id in done or planned.tool != call.tool or written is None:
                    continue
                if call.call_id not in (None, written["id"]) or not (inside or written["id"] == planned.call_id):
                    continue
                if found := parsing.as_planned(call, planned, written["args"], facts, one.given, describe):
                    self._taken.add(place)
                    return replace(found, plan_id=place[0], position=place[1]), place
        return call, None

    def _heard(self, run: Run) -> Flow[None]:
        """Record the plans of models inside. A repeated message keeps its plan."""
        if self._kept is None:
            self._mark = f"{OF_TASK}plans:{private.task_id(self.config)}"
            self._kept = json.loads((yield Load(run.scope, Query(marks=(self._mark,)))).marks.get(self._mark, "{}"))
            self._before = [*self._kept.values()][::-1]
        while self.announced:
            task, message = self.announced.pop(0)
            name = raw_digest([task, [[c["name"], raw_digest(c["args"])] for c in message.tool_calls]])
            self._equal[name] = number = self._equal.get(name, 0) + 1
            ident = self._kept.pop(name := f"{name} {number}", "")
            plan = (yield Load(run.scope, Query(plan=(run.agent, ident)))).plan if ident else None
            if plan is None:
                yield from record_plans(run, self._given, message)
                ident = message.id or ""
            self._kept[name] = ident
            self.inside.append(message.model_copy(update={"id": ident}))

    def remember(self, run: Run) -> Flow[None]:
        """Keep the plans: in its next execution, the task gets equal messages again."""
        if (self.announced or self.inside) and private.task_id(self.config):
            yield from self._heard(run)
            kept = dict([*(self._kept or {}).items()][-64:])
            yield Commit(run.scope, None, [SetMark(self._mark, json.dumps(kept))])

    def decide(self, run: Run, one: Arrival) -> Flow[tuple[Pending, Place | None]]:
        """Decide a call. Return it with its verdict, and its place in a message, if any."""
        call, place = yield from self._find(run, one)
        call = call if place is not None else one._counted(call)
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

    async def finish(self) -> None:
        """Wait for running tools, so that their outcomes are recorded."""
        while self.running > 0:  # noqa: ASYNC110  (threads end calls too)
            await asyncio.sleep(tool_execution.PAUSE)

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
        done = parsing.answered_calls(self._given)
        held = [(name, m.tool_calls) for name, m in parsing.newest_messages(self._given)]
        if not held and len(channels) == 1:
            held = [(*channels, list(parsing.sent_calls(self._given)))]  # type: ignore[list-item]  # there is one
        for name, calls in held:
            if name in channels and (left := [c for c in calls if c["id"] not in done]):
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
