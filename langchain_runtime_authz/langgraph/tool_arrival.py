"""Find the decision of a call that arrives at its tool, or decide the call here.

A call runs with the arguments that were decided. It is decided here if no earlier enforcement point decided it, as for
calls by a node's code. It is also decided here if its arguments or its tool changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.runnables import ensure_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.credential.ticket import Ticket, current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_call_parsing as parsing
from langchain_runtime_authz.langgraph import tool_execution
from langchain_runtime_authz.langgraph.answer_numbers import keep_numbers
from langchain_runtime_authz.langgraph.decide_and_ask import decide_together
from langchain_runtime_authz.langgraph.graph_input import drop_old_answer
from langchain_runtime_authz.langgraph.messages import answer_message, denial_of
from langchain_runtime_authz.langgraph.node_calls import NodeCalls, Place
from langchain_runtime_authz.langgraph.run_context import RunHandle, current_node, find_run, run_handle
from langchain_runtime_authz.langgraph.tool_execution import PendingCall, ToolExecution
from langchain_runtime_authz.langgraph.tool_lookup import Profiles, ToolFacts, facts_of, guard_of, is_guarded
from langchain_runtime_authz.pep.call import Call, Denial, Replay, Verdict
from langchain_runtime_authz.pep.run import Engine, Flow, Run

Parser = Callable[[Any, str | None], Any]


@dataclass(slots=True, eq=False, repr=False)
class CallArrival:
    """A call that reached its tool, and all that is needed to decide and run it."""

    call: Call  # the call as it would run
    config: Mapping[str, Any]  # the call's config
    run: Run | None = None
    handle: RunHandle | None = None  # in place of a run, for a call outside every protected graph
    verdict: Verdict | None = None  # the verdict of an earlier enforcement point
    counts: dict[str, int] | None = None  # `equal` → how often such a call ended, for calls without a message
    front: PendingCall | None = None  # the decided call that became this one
    call_id: str | None = None  # None: no message can answer the call
    parser: Parser | None = None  # parses the given input into the tool's arguments
    given: Any = None  # the tool's input
    exact: bool = False  # the framework supplied none of the arguments
    layer: str = "tool guard"
    equal: str = ""  # key of equal calls
    engine: Engine | None = None  # None outside every run
    facts: ToolFacts | None = None
    describe: parsing.Describe | None = None  # returns the call with other arguments
    node: NodeCalls | None = None  # the hand-written node that makes the call
    place: Place | None = None  # the call's place in the node's plans
    answers: Sequence[int] | None = None  # numbers of the answers that belong to the tool
    text: Callable[[], bool] = bool  # returns True if the calling code expects a text

    def decide(self) -> Flow[Verdict]:
        """Return the earlier verdict, or decide the call."""
        if self.verdict is not None:
            return self.verdict
        if self.run is None and self.handle is not None:
            drop_old_answer(self.config)
            try:
                self.run = yield from self.handle.outside_run()
            except AuthzDenied as exc:  # no run may be opened here
                return denial_of(self.call, exc)
        run, call = self.run, self.call
        if run is None:
            return Denial(call, deny(Code.NO_RUN))
        if self.front is not None:
            # Give the earlier permit back before this call is claimed. The two calls may differ only by their tool.
            yield from self.front.give_back()
        if self.node is None:
            try:
                (resolved,) = yield from decide_together(run, [self.counted(call)], self.config)
            except GraphInterrupt as exc:  # code before the tool may swallow the question
                if type(one := current_scope.get()) is PendingCall:
                    one.question = exc
                raise
        else:
            resolved, self.place = yield from tool_execution.under_lock(self.node.locks, self.node.decide(run, self))
        run.engine.tally.count(run, "tool", call.tool, self.layer, decided=1)
        verdict = cast("Verdict", resolved.verdict)  # never None, because no review follows
        if isinstance(verdict, Replay):
            self.settle()
        if not isinstance(verdict, Ticket):
            keep_numbers(self.config, resolved.answers)
        elif self.node is not None and resolved.call.profile.side_effect:
            self.answers = resolved.answers
        self.call, self.verdict = resolved.call, verdict
        return verdict

    def counted(self, call: Call) -> Call:
        """Return the call with its number among equal calls, if no message planned it."""
        if self.counts is None:
            return call
        return replace(call, place=f"{private.task_id(self.config)}:{self.counts.get(self.equal, 0)}")

    def settle(self, output: Any = None, exc: BaseException | None = None) -> bool:
        """Record how the call ended. Return True if its node asks the question in `exc`."""
        # The next equal call is a new call, unless this one failed.
        failed = exc is not None or (isinstance(output, ToolMessage) and output.status == "error")
        if self.counts is not None and self.place is None and not failed:
            self.counts[self.equal] = self.counts.get(self.equal, 0) + 1
        if self.node is not None and isinstance(self.verdict, Ticket):
            self.node.ended(self.call, self.place, output, exc, self.config)
        return self.node is not None and exc is not None and self.node.question is exc

    def execution(self, guard: object, verdict: Verdict) -> ToolExecution | None:
        """Return the execution; None if the tool must not run.

        With malformed arguments, the execution has no ticket, and the tool reports the error.
        """
        run, call, ticket = self.run, self.call, verdict if isinstance(verdict, Ticket) else None
        if run is None or (ticket is None and call.error is not Code.INVALID_ARGUMENTS):
            return None
        parsed = call.input.parsed
        if ticket is not None and not self.exact:
            parsed = self._own(parsed)
        front = self.front if self.front is not None else current_scope.get()
        settle = self.settle if self.counts is not None or self.node is not None else None
        place = front.place if type(front) is PendingCall else None
        return ToolExecution(guard, run, call, ticket, parsed, self.config, self.call_id, settle, place, self.answers)

    def start(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        """Return the flow that decides the call if needed, and runs the tool's `code`."""
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
            return answer_message(verdict, self.call_id, text=text), None
        except GraphInterrupt:
            if self.node is not None:
                yield from self.node.leave()
            raise
        finally:
            if self.node is not None:
                self.node.running -= 1

    def refuse(self) -> Any:
        """Answer the call with a denial: it is outside every run."""
        return answer_message(Denial(self.call, deny(Code.NO_RUN)), self.call_id)

    def _own(self, parsed: Any) -> Any:
        injected, given = self.call.input.injected, self.given
        if self.parser is None or not isinstance(parsed, dict):
            return parsed
        sent = given if isinstance(given, dict) else {}
        if not self.call.input.supplied and not any(parsing.is_injected(k, v, injected) for k, v in sent.items()):
            return parsed
        now = self.parser(dict(sent), self.call_id)
        own = now if isinstance(now, dict) else {}
        return parsing.not_injected(parsed, injected) | {
            k: v for k, v in own.items() if parsing.is_injected(k, v, injected)
        }


def tool_arrival(tool: BaseTool, tool_input: Any, config: Any, call_id: str | None, parser: Parser) -> CallArrival:
    """Return the `CallArrival` of a call of `tool.run`. `parser` is the tool's own."""
    if not config or "recursion_limit" not in config or "configurable" not in config:
        config = ensure_config(config)  # only LangChain's `invoke` completes the config
    scope = current_scope.get()
    one = scope if type(scope) is PendingCall else None
    if one is not None and one.call.call_id != call_id:
        one = None  # a wrapper makes another call first: the verdict is for the call that was decided
    mine = one if one is not None and not one.used and one.take() else None
    if mine is not None:
        call, own = mine.call, mine.call.input
        if own.tool is tool and call.tool == tool.name:
            exact = own.injected.isdisjoint(tool_input) and tool_input == own.sent
            sent = (
                tool_input if exact or isinstance(tool_input, str) else parsing.not_injected(tool_input, own.injected)
            )
            if (exact or own.sent == sent) and parsing.arguments_unchanged(call):
                return CallArrival(
                    call, config, run=mine.run, verdict=mine.verdict, front=mine, call_id=call_id, parser=parser,
                    given=tool_input, exact=exact and not own.supplied, engine=mine.run.engine,
                )  # fmt: skip
    facts = facts_of(tool)
    # A changed call is compared with the plan of the call that was decided. Without an earlier decision, the plan is
    # found by the call's id.
    plan_id, position = (one.call.plan_id, one.call.position) if one is not None else (None, None)

    def amend(name: str, args: dict[str, Any]) -> Call:
        if name != tool.name:  # only this tool is known here
            return parsing.unknown_call(name, call_id, plan_id, position, args)
        sent_too = tool_input if isinstance(tool_input, Mapping) else {}
        own = {k: v for k, v in sent_too.items() if parsing.is_injected(k, v, facts.injected)}
        return described(facts, {**parsing.not_injected(args, facts.injected), **own})

    described = _described(tool, call_id, parser, plan_id=plan_id, position=position, amend=amend)
    if one is None:
        found = _arrival(tool, config, call_id, facts, described, tool_input)
    else:
        call, run = described(facts, tool_input), one.run
        found = CallArrival(call, config, run=run, call_id=call_id, engine=run.engine, given=tool_input)
    found.front, found.parser = mine, parser
    found.text = partial(tool_execution.returns_text, tool)
    return found


def arrival_by_hand(
    tool: BaseTool, facts: ToolFacts, args: Mapping[str, Any], config: Mapping[str, Any]
) -> CallArrival:
    """Return the `CallArrival` of a direct call of a tool, with unparsed `args`."""
    return _arrival(tool, config, None, facts, _described(tool, None, None), args)


def arrival_unguarded(tool: BaseTool, tool_input: Any, config: Mapping[str, Any], call_id: str | None) -> CallArrival:
    """Return the `CallArrival` of an unguarded tool's call."""
    # Refuse input that the tool would parse differently the second time.
    owner = find_run(config) or run_handle(config)
    if owner is None:
        return CallArrival(parsing.unknown_call(tool.name, None, None, None, {}), config)
    facts = ToolFacts(cast("Profiles", owner.engine.tools).of(tool), private.injected_names(tool))
    found = _arrival(tool, config, None, facts, _described(tool, call_id, tool._parse_input), tool_input)
    found.layer = "ambient hook"
    if found.call.error is None and not parsing.parses_alike(found.call):
        found.call = replace(found.call, error=Code.UNREPEATABLE_ARGUMENTS)
    return found


def _described(tool: BaseTool, call_id: str | None, parser: Parser | None, **planned: Any) -> parsing.Describe:
    about = {"call_id": call_id, "plan_id": None, "position": None, **planned}

    def described(facts: ToolFacts, given: Any) -> Call:
        own = given if isinstance(given, str) else parsing.not_injected(given, facts.injected)
        read = partial(parsing.parse_call, tool, given, call_id, parser) if parser is not None else lambda: given
        return parsing.describe_call(tool, facts, read, raw=own, sent=own, **about)

    return described


def _arrival(
    tool: BaseTool, config: Mapping[str, Any], call_id: str | None, facts: ToolFacts, described: Any, given: Any
) -> CallArrival:
    """Return the `CallArrival` of a call without a message, whose plan is found later."""
    owner = find_run(config) or run_handle(config)
    if owner is None:
        return CallArrival(parsing.unknown_call(tool.name, call_id, None, None, {}), config, call_id=call_id)
    run, handle = (owner, None) if isinstance(owner, Run) else (None, owner)
    # Counts of equal calls in the current node or tool execution.
    counts = current_scope.get().counts if handle is None else handle.settled
    call = described(facts, given)
    if is_guarded(tool) and guard_of(tool).by_application:
        call = replace(call, by_application=True)
    equal = f"{call.call_id} {call.tool} {call.args_digest}" if counts is not None else ""
    return CallArrival(
        call, config, run=run, handle=handle, counts=counts, call_id=call_id, equal=equal, engine=owner.engine, given=given,
        facts=facts, describe=described, node=current_node(run),
    )  # fmt: skip
