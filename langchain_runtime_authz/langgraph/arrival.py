"""A call that arrived at a tool: the verdict of a gate in front of it, or a decision here.

Where a gate in front decided, exactly that call passes, with the very arguments that were decided.
Where none did, or where the arguments or the tool were changed on the way, what would really run is
decided.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from langchain_core.tools import BaseTool

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph._private import injected_names, skip_answers, task_id
from langchain_runtime_authz.langgraph.arguments import (
    describe,
    parse,
    parses_alike,
    supplied,
    unchanged,
    unknown,
    without,
)
from langchain_runtime_authz.langgraph.interrupts import decide_together
from langchain_runtime_authz.langgraph.run_context import RunHandle, find_run, opened, settled
from langchain_runtime_authz.langgraph.tool_execution import Held, denied, held
from langchain_runtime_authz.langgraph.tool_profiles import Profiles, ToolFacts
from langchain_runtime_authz.pep.call import Call, Denial, Replay, Verdict
from langchain_runtime_authz.pep.engine import Engine, Flow, Run

__all__ = ["Arrival", "Decided", "arrival", "arrival_by_hand", "arrival_unguarded"]


class Decided(NamedTuple):
    """A verdict on a call. `settled` is to be called when a permitted call has its result."""

    run: Run | None
    call: Call
    verdict: Verdict
    settled: Callable[[], None] | None = None


class Arrival:
    """A call that no gate in front has decided.

    `opener` instead of `run` where code beside every protected graph makes the call. `counts` of
    equal calls, where no gate and no message tells them apart. `gate` is what a gate in front handed
    on for the call that became this one.
    """

    __slots__ = ("call", "config", "counts", "gate", "layer", "opener", "run")

    def __init__(
        self,
        run: Run | None,
        opener: RunHandle | None,
        call: Call,
        config: Mapping[str, Any],
        counts: dict[str, int] | None,
        gate: Held | None = None,
    ) -> None:
        self.run, self.opener, self.call, self.config, self.counts = run, opener, call, config, counts
        self.gate = gate
        self.layer = "tool guard"

    @property
    def engine(self) -> Engine:
        owner = self.run or self.opener
        if owner is None:
            msg = "a call is decided in a run"
            raise TypeError(msg)
        return owner.engine

    def decide(self) -> Flow[Decided]:
        run = self.run
        if run is None and self.opener is not None:
            try:
                run = yield from self.opener.outside_run()
            except AuthzDenied as exc:  # nothing may start here
                return Decided(None, self.call, denied(self.call, exc))
        if run is None:
            return Decided(None, self.call, Denial(self.call, deny(Code.NO_RUN)))
        call = self.call
        if self.counts is not None:
            call = replace(call, place=f"{task_id(self.config)}:{self.counts.get(_equal(call), 0)}")
        if self.gate is not None:
            # Before this one is claimed, which may say the same and only be another tool's.
            yield from self.gate.give_back()
        (decided,) = yield from decide_together(run, [call], self.config)
        run.engine.tally.decided(run, "tool", call.tool, self.layer)
        verdict = cast("Verdict", decided.verdict)  # nothing comes after the guard that it could leave a call to
        if isinstance(verdict, Replay):
            self.settled()
        if not isinstance(verdict, Ticket):
            skip_answers(self.config, decided.answers)
        return Decided(run, decided.call, verdict, self.settled)

    def settled(self) -> None:
        """The call has its answer: an equal one of the same code is another call."""
        if self.counts is not None:
            self.counts[_equal(self.call)] = self.counts.get(_equal(self.call), 0) + 1


def _equal(call: Call) -> str:
    return f"{call.call_id} {call.tool} {call.args_digest}"


def arrival(
    tool: BaseTool,
    facts: ToolFacts,
    tool_input: Any,
    config: Mapping[str, Any],
    call_id: str | None,
    parser: Callable[..., Any],
) -> Arrival | Decided:
    """A call of `tool.run` with what it was sent, which `parser` (the tool's own) makes its arguments of."""
    sent = tool_input if isinstance(tool_input, str) else without(tool_input, facts.injected)
    one = held()
    if one is not None and one.call.call_id != call_id:
        one = None  # a call that a wrapper makes on its own; the gate's verdict waits for the gate's call
    mine = one if one is not None and one.take() else None
    if mine is not None:
        call = mine.call
        if (
            mine.verdict is not None
            and call.tool_ref is tool
            and call.tool == tool.name
            and call.parsed[1] == sent
            and unchanged(call, facts.injected)
        ):
            return Decided(mine.run, call, mine.verdict)
    # After a gate, what differs from its call differs from the plan; without one, no message is at hand,
    # and the plan is looked up by the call's id.
    plan_id, position = (one.call.plan_id, one.call.position) if one is not None else (None, None)

    def described(given: Any) -> Call:
        written = given if isinstance(given, str) else without(given, facts.injected)
        return describe(
            tool,
            facts,
            functools.partial(parse, tool, given, call_id, parser),
            call_id=call_id,
            plan_id=plan_id,
            position=position,
            written=written,
            sent=written,
            amend=amend,
        )

    def amend(name: str, args: dict[str, Any]) -> Call:
        if name != tool.name:  # here is only this one
            return unknown(name, call_id, plan_id, position, args)
        sent_too = tool_input if isinstance(tool_input, Mapping) else {}
        own = {k: v for k, v in sent_too.items() if supplied(k, v, facts.injected)}
        return described({**without(args, facts.injected), **own})

    if one is None:
        return _arrival(tool, config, call_id, lambda: described(tool_input))
    return Arrival(one.run, None, described(tool_input), config, None, mine)


def arrival_by_hand(
    tool: BaseTool,
    facts: ToolFacts,
    args: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Arrival | Decided:
    """A call of a tool's own code, past `run`: it receives `args` as they are, parsed by nobody."""
    own = without(args, facts.injected)
    return _arrival(tool, config, None, lambda: _described(tool, facts, lambda: args, None, own))


def arrival_unguarded(
    tool: BaseTool, tool_input: Any, config: Mapping[str, Any], call_id: str | None
) -> Arrival | Decided:
    """A call of a tool that nobody guarded: it will parse what it was sent once more, so that must come out alike."""
    owner = find_run(config) or opened(config)
    if owner is None:
        return _nowhere(tool, call_id)
    facts = ToolFacts(cast("Profiles", owner.engine.profiles).of(tool), injected_names(tool))
    read = functools.partial(parse, tool, tool_input, call_id, tool._parse_input)
    sent = tool_input if isinstance(tool_input, str) else without(tool_input, facts.injected)
    arrived = _arrival(tool, config, call_id, lambda: _described(tool, facts, read, call_id, sent))
    if isinstance(arrived, Arrival):
        arrived.layer = "ambient hook"
    if isinstance(arrived, Arrival) and arrived.call.error is None and not parses_alike(arrived.call):
        arrived.call = replace(arrived.call, error=Code.UNREPEATABLE_ARGUMENTS)
    return arrived


def _arrival(
    tool: BaseTool,
    config: Mapping[str, Any],
    call_id: str | None,
    described: Callable[[], Call],
) -> Arrival | Decided:
    """No message is at hand: the plan is looked up by the call's id."""
    run = find_run(config)
    opener = opened(config) if run is None else None
    if run is None and opener is None:
        return _nowhere(tool, call_id)
    return Arrival(run, opener, described(), config, settled() if opener is None else opener.settled)


def _described(tool: BaseTool, facts: ToolFacts, read: Callable[[], Any], call_id: str | None, sent: Any) -> Call:
    return describe(tool, facts, read, call_id=call_id, plan_id=None, position=None, written=sent, sent=sent)


def _nowhere(tool: BaseTool, call_id: str | None) -> Decided:
    nowhere = unknown(tool.name, call_id, None, None, {})
    return Decided(None, nowhere, Denial(nowhere, deny(Code.NO_RUN)))
