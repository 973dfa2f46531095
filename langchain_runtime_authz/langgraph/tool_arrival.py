"""Find the decision of a call that arrives at its tool, or decide the call here.

A call runs with the arguments that were decided. It is decided here if no earlier enforcement point decided it, as for
calls by a node's code. It is also decided here if its arguments or its tool changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.credential.ticket import Ticket, current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import call_messages, tool_execution
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.call_messages import answer_message, denial_of
from langchain_runtime_authz.langgraph.decide_and_ask import decide_together
from langchain_runtime_authz.langgraph.graph_input import drop_old_answer
from langchain_runtime_authz.langgraph.interrupts import Use, execution_of, keep_numbers
from langchain_runtime_authz.langgraph.node_calls import NodeCalls, Place
from langchain_runtime_authz.langgraph.run_context import RunHandle, current_node, find_run, run_handle, target_in
from langchain_runtime_authz.langgraph.tool_execution import ArrivedCall, PendingCall, ToolExecution
from langchain_runtime_authz.langgraph.tool_facts import Profiles, ToolFacts, facts_of, guard_of, is_guarded
from langchain_runtime_authz.pep.call import Call, Denial, Replay
from langchain_runtime_authz.pep.run import Flow, PepParts, Run

Parser = Callable[[Any, str | None], Any]


@dataclass(kw_only=True, eq=False, repr=False)
class UndecidedCall:
    """A call without a fitting decision. Outside every run it is denied."""

    call: Call  # the call as it would run
    config: Mapping[str, Any]  # the call's config or, if that names no run and graph task, the calling code's
    call_id: str | None  # None: no message can answer the call
    pep: PepParts | None  # None outside every run
    layer: str = "tool guard"
    by_hand: bool = False  # as in `ArrivedCall`
    sent: Mapping[str, Any] | None = None  # the call's config, if `config` is the calling code's

    def decide(self) -> Flow[ArrivedCall | Denial]:
        """Return the decided call, or a `Denial` if no run can decide it, as here."""
        yield from ()
        return Denial(self.call, deny(Code.NO_RUN))

    def start(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        """Decide the call, and run the tool's `code` if the call is permitted."""
        arrived = yield from self.decide()
        if isinstance(arrived, Denial):
            return answer_message(arrived, self.call_id), None
        return (yield from arrived.start(guard, code))

    def _decide_alone(self, run: Run, call: Call) -> Flow[PendingCall]:
        try:
            (one,) = yield from decide_together(run, [call], self.config)
        except GraphInterrupt as exc:  # code before the tool may swallow the question
            if type(pending := current_scope.get()) is PendingCall:
                pending.question = exc
            raise
        self.note(one)
        return one

    def note(self, one: PendingCall) -> None:
        """Count the decision. Pass the answers that a call used which does not run again."""
        one.run.pep.tally.count(one.run, "tool", self.call.tool, self.layer, decided=1)
        if not isinstance(one.verdict, Ticket):
            keep_numbers(self.config, one.answers, Use.GIVEN)


@dataclass(kw_only=True, eq=False, repr=False)
class ChangedCall(UndecidedCall):
    """A call in place of one that was decided: another one, or the same one again."""

    original: PendingCall  # the decided call
    took: bool  # the call took the permit of `original`

    def decide(self) -> Flow[ArrivedCall]:
        if self.took:  # release it before the claim, because the two calls may differ only by their tool
            yield from self.original.give_back()
        one = yield from self._decide_alone(self.original.run, self.call)
        return ArrivedCall(one, one.run.pep, self.config, self.call_id, one.call.input.parsed)


@dataclass(kw_only=True, eq=False, repr=False)
class CodeCall(UndecidedCall):
    """A call by code in a run, without an earlier decision."""

    run: Run
    counts: dict[Any, int] | None  # key → how many equal calls ended; None in a context without the run

    @property
    def key(self) -> tuple[object, ...]:
        """The key of equal calls. An execution of a graph task counts its own."""
        return execution_of(self.config), self.call.call_id, self.call.tool, self.call.args_digest

    def place(self, ahead: int = 0) -> str:
        """Return the call's number among equal calls, of which `ahead` began with it."""
        number, by = (self.counts or {}).get(self.key, 0) + ahead, current_scope.get().ticket  # `by`: a tool calls it
        return f"{private.task_id(self.config)}:{by.call_key if by is not None else ''}:{number}"

    def counted(self) -> Call:
        """Return the call with its number among equal calls, for a call without a plan."""
        return self.call if self.counts is None else replace(self.call, place=self.place())

    def decide(self) -> Flow[ArrivedCall | Denial]:
        return self.decided((yield from self._decide_alone(self.run, self.counted())))

    def decided(self, one: PendingCall, place: Place | None = None, **more: Any) -> ArrivedCall:
        """Return the call with its decision. `place`: its place in a plan, if it has one."""
        ended = partial(self.ended, one, place)
        if isinstance(one.verdict, Replay):
            ended(None, None)
        more |= {"ended": ended, "by_hand": self.by_hand}
        return ArrivedCall(one, one.run.pep, self.sent or self.config, self.call_id, one.call.input.parsed, **more)

    def ended(self, _one: PendingCall, place: Place | None, output: Any, exc: BaseException | None) -> bool:
        """Record how the call ended. Return True if its node asks the question in `exc`."""
        # The next equal call is a new call, unless this one failed.
        failed = exc is not None or (isinstance(output, ToolMessage) and output.status == "error")
        if self.counts is not None and place is None and not failed:
            self.counts[self.key] = self.counts.get(self.key, 0) + 1
        return False


@dataclass(kw_only=True, eq=False, repr=False)
class NodeCall(CodeCall):
    """A call by the code of a hand-written node, which may be in a plan."""

    node: NodeCalls
    facts: ToolFacts
    describe: call_messages.Describe  # returns the call with other arguments
    given: Any  # the tool's input
    returns_text: Callable[[], bool]  # returns True if the calling code expects a text

    def decide(self) -> Flow[ArrivedCall | Denial]:
        one, place = yield from self.node.decide(self.run, self)
        self.note(one)
        text = isinstance(one.verdict, Denial) and place is not None and self.returns_text()
        return self.decided(one, place, text=text)

    def decided(self, one: PendingCall, place: Place | None = None, **more: Any) -> ArrivedCall:
        answers = one.answers if isinstance(one.verdict, Ticket) and one.call.profile.side_effect else None
        return super().decided(one, place, answers=answers, **more)

    def start(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[tool_execution.Outcome]:
        self.node.running += 1
        try:
            return (yield from super().start(guard, code))
        except GraphInterrupt:
            yield from self.node.leave()
            raise
        finally:
            self.node.running -= 1

    def ended(self, one: PendingCall, place: Place | None, output: Any, exc: BaseException | None) -> bool:
        super().ended(one, place, output, exc)
        if isinstance(one.verdict, Ticket):
            self.node.ended(one.call, place, output, exc, self.config)
        return exc is not None and self.node.question is exc


@dataclass(kw_only=True, eq=False, repr=False)
class OutsideCall(UndecidedCall):
    """A call by code in the application's run, outside every protected graph."""

    handle: RunHandle

    def in_run(self) -> Flow[CodeCall]:
        """Return the call, with the run that decides it. Raises `AuthzDenied`."""
        drop_old_answer(self.config)
        run = yield from self.handle.outside_run()
        about: Any = {each.name: getattr(self, each.name) for each in fields(UndecidedCall)}
        return CodeCall(run=run, counts=self.handle.counts, **about)

    def decide(self) -> Flow[ArrivedCall | Denial]:
        try:
            found = yield from self.in_run()
        except AuthzDenied as exc:  # no run may be opened here
            return denial_of(self.call, exc)
        return (yield from found.decide())


def tool_arrival(
    tool: BaseTool, tool_input: Any, config: Any, call_id: str | None, parser: Parser
) -> ArrivedCall | UndecidedCall:
    """Find the decision of a call of `tool.run`. `parser` is the tool's own."""
    if not config or "recursion_limit" not in config or "configurable" not in config:
        config = ensure_config(config)  # only LangChain's `invoke` completes the config
    scope = current_scope.get()
    # A wrapper may make another call first: the verdict is for the call that was decided.
    one = scope if type(scope) is PendingCall and scope.call.call_id == call_id else None
    took = one is not None and one.take()
    if one is not None and took and one.call.input.tool is tool and one.call.tool == tool.name:
        own = one.call.input
        exact = tool_input == own.sent
        sent = (
            tool_input if exact or isinstance(tool_input, str) else call_messages.not_injected(tool_input, own.injected)
        )
        if (exact or own.sent == sent) and call_messages.arguments_unchanged(one.call):
            parsed = own.parsed if exact and not own.supplied else _supplied_now(one, tool_input, parser)
            return ArrivedCall(one, one.run.pep, config, call_id, parsed)
    facts = facts_of(tool)
    # A changed call is compared with the plan of the call that was decided. Without an earlier decision, the plan is
    # found by the call's id.
    plan_id, position = (one.call.plan_id, one.call.position) if one is not None else (None, None)

    def amend(name: str, args: dict[str, Any]) -> Call:
        if name != tool.name:  # only this tool is known here
            return call_messages.unknown_call(name, call_id, plan_id, position, args)
        own = call_messages.injected_in(tool_input if isinstance(tool_input, Mapping) else {}, facts.injected)
        return describe(facts, {**call_messages.not_injected(args, facts.injected), **own})

    describe = _describing(tool, call_id, parser, plan_id=plan_id, position=position, amend=amend)
    if one is None:
        text = partial(tool_execution.returns_text, tool)
        return _by_code(tool, config, call_id, facts, describe, tool_input, text=text)
    call, pep = describe(facts, tool_input), one.run.pep
    if one.call.tool == tool.name:
        call = call_messages.as_planned(call, tool_input, one.call.raw, facts, describe) or call
    return ChangedCall(call=call, config=config, call_id=call_id, pep=pep, original=one, took=took)


def _supplied_now(one: PendingCall, tool_input: Any, parser: Parser) -> Any:
    """Return the decided arguments, with those that the framework supplies now."""
    parsed, injected = one.call.input.parsed, one.call.input.injected
    sent = tool_input if isinstance(tool_input, dict) else {}
    supplied = one.call.input.supplied or call_messages.injected_in(sent, injected)
    if not isinstance(one.verdict, Ticket) or not isinstance(parsed, dict) or not supplied:
        return parsed
    now = parser(dict(sent), one.call.call_id)
    return call_messages.not_injected(parsed, injected) | call_messages.injected_in(
        now if isinstance(now, dict) else {}, injected
    )


def arrival_by_hand(
    tool: BaseTool, facts: ToolFacts, args: Mapping[str, Any], config: Mapping[str, Any]
) -> UndecidedCall:
    """Return the call of a tool's function, past `run`, with unparsed `args`."""
    found = _by_code(tool, config, None, facts, _describing(tool, None, None), args)
    return replace(found, by_hand=private.scratchpad_of(config) is not None)


def arrival_unguarded(
    owner: Run | RunHandle, tool: BaseTool, tool_input: Any, config: Mapping[str, Any], call_id: str | None
) -> UndecidedCall:
    """Return the call of an unguarded tool."""
    facts = cast("Profiles", owner.pep.tools).facts(tool)
    describe = _describing(tool, call_id, tool._parse_input)
    found = _by_code(tool, config, None, facts, describe, tool_input, layer="callback backstop")
    # Refuse input that the tool would parse differently the second time.
    if found.call.error is None and not call_messages.parses_alike(found.call):
        return replace(found, call=replace(found.call, error=Code.UNREPEATABLE_ARGUMENTS))
    return found


def _describing(tool: BaseTool, call_id: str | None, parser: Parser | None, **planned: Any) -> call_messages.Describe:
    about = {"call_id": call_id, "plan_id": None, "position": None, **planned}

    def describe(facts: ToolFacts, given: Any) -> Call:
        own = given if isinstance(given, str) else call_messages.not_injected(given, facts.injected)
        read = partial(call_messages.parse_call, tool, given, call_id, parser) if parser is not None else lambda: given
        return call_messages.describe_call(tool, facts, read, raw=own, sent=own, **about)

    return describe


def _by_code(
    tool: BaseTool, config: Mapping[str, Any], call_id: str | None, facts: ToolFacts, describe: call_messages.Describe,
    given: Any, *, layer: str = "tool guard", text: Callable[[], bool] = bool,
) -> UndecidedCall:  # fmt: skip
    if (owner := find_run(config) or run_handle(config)) is None:
        call = call_messages.unknown_call(tool.name, call_id, None, None, {})
        return UndecidedCall(call=call, config=config, call_id=call_id, pep=None)
    call = describe(facts, given)
    if is_guarded(tool) and guard_of(tool).by_application:
        call = replace(call, by_application=True)
    about: Any = {"call": call, "config": config, "call_id": call_id, "pep": owner.pep, "layer": layer}
    if not private.task_id(config) and target_in(config) is None:  # it belongs to the calling code's graph task
        about |= {"config": var_child_runnable_config.get() or config, "sent": config}
    if isinstance(owner, RunHandle):
        return OutsideCall(handle=owner, **about)
    about |= {"run": owner, "counts": current_scope.get().counts}
    if (node := current_node(owner)) is None:
        return CodeCall(**about)
    return NodeCall(node=node, facts=facts, describe=describe, given=given, returns_text=text, **about)
