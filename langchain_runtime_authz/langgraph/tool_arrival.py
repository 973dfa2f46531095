"""A call that arrives at a tool: exactly the call that an enforcement point in front decided passes, with its arguments.

If none did, or if the arguments or the tool were changed on the way, what would really run is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.runnables import ensure_config
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.current_call import current_scope
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph import tool_execution
from langchain_runtime_authz.langgraph._private import injected_names, task_id
from langchain_runtime_authz.langgraph.inputs import (
    describe,
    parse,
    parses_alike,
    supplied,
    unchanged,
    unknown,
    without,
)
from langchain_runtime_authz.langgraph.interrupts import decide_together, skip_answers
from langchain_runtime_authz.langgraph.node_calls import Describe, NodeCalls, Place
from langchain_runtime_authz.langgraph.run_context import RunHandle, current_node, find_run, opened, settled
from langchain_runtime_authz.langgraph.tool_profiles import Profiles, ToolFacts, facts_of
from langchain_runtime_authz.pep.call import Call, Denial, Replay, Verdict
from langchain_runtime_authz.pep.engine import Engine, Flow, Run

Parser = Callable[[Any, str | None], Any]


@dataclass(slots=True, eq=False, repr=False)
class Arrival:
    call: Call  # as it would run
    config: Mapping[str, Any]  # that it runs with
    run: Run | None = None
    opener: RunHandle | None = None  # instead of a run, if code outside every protected graph makes the call
    verdict: Verdict | None = None  # of an enforcement point in front
    counts: dict[str, int] | None = None  # of equal calls, if no enforcement point and no message tells them apart
    front: tool_execution.Pending | None = None  # what was handed on for the call that became this one
    call_id: str | None = None  # the tool call's, if a message can answer it
    parser: Parser | None = None  # makes the tool's arguments of what it was sent
    given: Any = None  # what it was sent
    exact: bool = False  # nothing of the arguments is the framework's
    layer: str = "tool guard"
    equal: str = ""  # what equal calls have in common
    engine: Engine | None = None  # `None` outside every run
    facts: ToolFacts | None = None
    describe: Describe | None = None  # gives the call of other arguments
    node: NodeCalls | None = None  # of the hand-written node that makes the call
    place: Place | None = None  # in the message, if it is the node's
    text: Callable[[], bool] = bool  # whether code that makes the call expects a text

    def decide(self) -> Flow[Verdict]:
        if self.verdict is not None:
            return self.verdict
        if self.run is None and self.opener is not None:
            try:
                self.run = yield from self.opener.outside_run()
            except AuthzDenied as exc:  # nothing may start here
                return tool_execution.denied(self.call, exc)
        run, call = self.run, self.call
        if run is None:
            return Denial(call, deny(Code.NO_RUN))
        if self.front is not None:
            # Before this one is claimed, which may say the same and only be another tool's.
            yield from self.front.give_back()
        node, describe = self.node, self.describe
        if node is None or describe is None or self.facts is None:
            (resolved,) = yield from decide_together(run, [self._counted(call)], self.config)
        else:
            flow = node.decide(run, call, self.facts, self.given, describe, self._counted)
            resolved, self.place = yield (tool_execution.OneByOne, node.locks, flow)
        run.engine.tally.decided(run, "tool", call.tool, self.layer)
        verdict = resolved.verdict
        if verdict is None:
            raise TypeError("nothing comes after the guard that a call could be left to")
        if isinstance(verdict, Replay):
            self.settle()
        if not isinstance(verdict, Ticket):
            skip_answers(self.config, resolved.answers)
        self.call, self.verdict = resolved.call, verdict
        return verdict

    def _counted(self, call: Call) -> Call:
        """Return a call that no message holds as one of several equal ones."""
        if self.counts is None:
            return call
        return replace(call, place=f"{task_id(self.config)}:{self.counts.get(self.equal, 0)}")

    def settle(self, output: Any = None, exc: BaseException | None = None) -> None:
        """Note what the call came to. If it has its answer, an equal one of the same code is another call."""
        failed = exc is not None or (isinstance(output, ToolMessage) and output.status == "error")
        if self.counts is not None and self.place is None and not failed:
            self.counts[self.equal] = self.counts.get(self.equal, 0) + 1
        if self.node is not None and isinstance(self.verdict, Ticket):
            self.node.ended(self.call, self.place, output, exc)

    def execution(self, guard: object, verdict: Verdict) -> tool_execution.ToolExecution | None:
        """Return the execution of the call, or `None` if only an answer is left. Malformed arguments have no ticket."""
        run, call, ticket = self.run, self.call, verdict if isinstance(verdict, Ticket) else None
        if run is None or (ticket is None and call.error is not Code.INVALID_ARGUMENTS):
            return None
        parsed = call.parsed
        if ticket is not None and not self.exact:
            parsed = self._own(parsed)
        front = self.front if self.front is not None else tool_execution.pending()
        return tool_execution.ToolExecution(
            guard,
            run,
            call,
            ticket,
            parsed=parsed,
            config=self.config,
            call_id=self.call_id,
            settle=self.settle if self.counts is not None or self.node is not None else None,
            place=front.place if front is not None else None,
        )

    def start(self, guard: object, code: Callable[[tool_execution.ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        if isinstance(self.verdict, Ticket) and (execution := self.execution(guard, self.verdict)) is not None:
            return execution.flow(code)
        return self._flow(guard, code)

    def _flow(self, guard: object, code: Callable[[tool_execution.ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        if self.node is not None:
            self.node.running += 1
        try:
            verdict = yield from self.decide()
            if (execution := self.execution(guard, verdict)) is not None:
                return (yield from execution.flow(code))
            text = self.call_id is None and self.place is not None and self.text()
            return tool_execution.answer(verdict, self.call_id, text=text), None
        finally:
            if self.node is not None:
                self.node.running -= 1

    def refuse(self) -> Any:
        return tool_execution.answer(Denial(self.call, deny(Code.NO_RUN)), self.call_id)

    def _own(self, parsed: Any) -> Any:
        injected, given = self.call.injected, self.given
        if self.parser is None or not isinstance(parsed, dict):
            return parsed
        sent = given if isinstance(given, dict) else {}
        if not self.call.supplied and not _any_supplied(sent, injected):
            return parsed
        now = self.parser(dict(sent), self.call_id)
        own = now if isinstance(now, dict) else {}
        return without(parsed, injected) | {k: v for k, v in own.items() if supplied(k, v, injected)}


def _any_supplied(args: Mapping[str, Any], injected: frozenset[str]) -> bool:
    for name, value in args.items():
        if name in injected or type(value) is ToolRuntime:
            return True
    return False


def arrival(tool: BaseTool, tool_input: Any, config: Any, call_id: str | None, parser: Parser) -> Arrival:
    """Return the arrival of a call of `tool.run`, whose input `parser` (the tool's own) makes its arguments of."""
    if not config or "recursion_limit" not in config or "configurable" not in config:
        config = ensure_config(config)  # LangChain's `invoke` has done it already
    scope = current_scope.get()
    one = scope if type(scope) is tool_execution.Pending else None
    if one is not None and one.call.call_id != call_id:
        one = None  # a call that a wrapper makes on its own; the verdict waits for the call that it is on
    mine = one if one is not None and not one.used and one.take() else None
    if mine is not None:
        call = mine.call
        if call.tool_ref is tool and call.tool == tool.name:
            exact = call.injected.isdisjoint(tool_input) and tool_input == call.sent
            sent = tool_input if exact or isinstance(tool_input, str) else without(tool_input, call.injected)
            if (exact or call.sent == sent) and unchanged(call):
                return Arrival(
                    call, config, run=mine.run, verdict=mine.verdict, front=mine, call_id=call_id, parser=parser,
                    given=tool_input, exact=exact and not call.supplied, engine=mine.run.engine,
                )  # fmt: skip
    return _anew(tool, facts_of(tool), tool_input, config, call_id, parser, one, mine)


def _anew(
    tool: BaseTool,
    facts: ToolFacts,
    tool_input: Any,
    config: Mapping[str, Any],
    call_id: str | None,
    parser: Parser,
    one: tool_execution.Pending | None,
    mine: tool_execution.Pending | None,
) -> Arrival:
    # After an enforcement point, what differs from its call differs from the plan. Without one no message is at hand,
    # and the plan is looked up by the call's id.
    plan_id, position = (one.call.plan_id, one.call.position) if one is not None else (None, None)

    def described(facts: ToolFacts, given: Any) -> Call:
        own = given if isinstance(given, str) else without(given, facts.injected)
        read = partial(parse, tool, given, call_id, parser)
        return describe(
            tool, facts, read, call_id=call_id, written=own, plan_id=plan_id, position=position, amend=amend
        )

    def amend(name: str, args: dict[str, Any]) -> Call:
        if name != tool.name:  # here is only this one
            return unknown(name, call_id, plan_id, position, args)
        sent_too = tool_input if isinstance(tool_input, Mapping) else {}
        own = {k: v for k, v in sent_too.items() if supplied(k, v, facts.injected)}
        return described(facts, {**without(args, facts.injected), **own})

    found = _arrival(tool, config, call_id, facts, described, tool_input, one)
    found.front, found.parser = mine, parser
    found.text = partial(tool_execution.returns_text, tool)
    return found


def arrival_by_hand(tool: BaseTool, facts: ToolFacts, args: Mapping[str, Any], config: Mapping[str, Any]) -> Arrival:
    """Return the arrival of a call of a tool's own code, past `run`: it receives `args` as they are."""

    def described(facts: ToolFacts, args: Any) -> Call:
        return describe(tool, facts, lambda: args, call_id=None, written=without(args, facts.injected))

    return _arrival(tool, config, None, facts, described, args)


def arrival_unguarded(tool: BaseTool, tool_input: Any, config: Mapping[str, Any], call_id: str | None) -> Arrival:
    """Return the arrival of a call of a tool without a guard, which parses its input once more. A denial is raised."""
    owner = find_run(config) or opened(config)
    if owner is None:
        return _nowhere(tool, config, None)
    facts = ToolFacts(cast("Profiles", owner.engine.tools).of(tool), injected_names(tool))

    def described(facts: ToolFacts, given: Any) -> Call:
        own = given if isinstance(given, str) else without(given, facts.injected)
        return describe(
            tool, facts, partial(parse, tool, given, call_id, tool._parse_input), call_id=call_id, written=own
        )

    found = _arrival(tool, config, None, facts, described, tool_input)
    found.layer = "ambient hook"
    if found.call.error is None and not parses_alike(found.call):
        found.call = replace(found.call, error=Code.UNREPEATABLE_ARGUMENTS)
    return found


def _arrival(
    tool: BaseTool,
    config: Mapping[str, Any],
    call_id: str | None,
    facts: ToolFacts,
    described: Describe,
    given: Any,
    one: tool_execution.Pending | None = None,
) -> Arrival:
    if one is not None:
        call = described(facts, given)
        return Arrival(call, config, run=one.run, call_id=call_id, engine=one.run.engine, given=given)
    # No message is at hand: the plan is looked up in the node's own, or by the call's id.
    run = find_run(config)
    opener = opened(config) if run is None else None
    if run is None and opener is None:
        return _nowhere(tool, config, call_id)
    counts, call = settled() if opener is None else opener.settled, described(facts, given)
    equal = f"{call.call_id} {call.tool} {call.args_digest}" if counts is not None else ""
    engine = run.engine if run is not None else opener.engine if opener is not None else None
    return Arrival(
        call, config, run=run, opener=opener, counts=counts, call_id=call_id, equal=equal, engine=engine, given=given,
        facts=facts, describe=described, node=current_node(run),
    )  # fmt: skip


def _nowhere(tool: BaseTool, config: Mapping[str, Any], call_id: str | None) -> Arrival:
    return Arrival(unknown(tool.name, call_id, None, None, {}), config, call_id=call_id)
