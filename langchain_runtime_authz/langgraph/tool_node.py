"""A ToolNode with an enforcement point in it.

`AuthzToolNode` is the drop-in face; `gate_tool_node` gives the same enforcement point to a ToolNode that is inside a
graph already. Neither suffices by itself, since a graph may rebuild its own ToolNode: the tools are guarded too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph import tool_pep
from langchain_runtime_authz.langgraph._private import ToolNode
from langchain_runtime_authz.langgraph.callback_backstop import install
from langchain_runtime_authz.langgraph.interrupts import reviewed_tools
from langchain_runtime_authz.langgraph.kept import lookalike
from langchain_runtime_authz.langgraph.messages import ai_messages, record_plans
from langchain_runtime_authz.langgraph.root_entry import RootEntry
from langchain_runtime_authz.langgraph.run_context import RunHandle, find_run, run_scope
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.langgraph.tool_profiles import GUARDED, Profiles, is_guarded
from langchain_runtime_authz.pep.engine import Flow, Run, adrive, drive

_turns: ContextVar[tool_pep.Turns | None] = ContextVar("langchain_runtime_authz.turns", default=None)


class _Gate(ToolNode):
    """ToolNode's own hooks, overridden. Used as the first base of a dynamic subclass."""

    __runtime_authz_gated__ = True
    _authz_profiles: Profiles

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        return self._gated(input, config, runtime)

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        return await self._agated(input, config, runtime)

    def _gated(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        waiting, before = drive(run.engine, message.decide(run)), _turns.get()
        try:
            for one in waiting:
                if one.call.tool_ref is not None and not one.left:  # without a tool the name is the model's own
                    run.engine.tally.decided(run, "tool", one.call.tool, "tool node gate")
            _turns.set(tool_pep.Turns(config, message.calls, waiting))
            return super()._func(input, config, runtime)
        finally:
            _turns.set(before)
            if tool_pep.open_tickets(waiting):
                drive(run.engine, tool_pep.give_back(waiting))

    async def _agated(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        waiting, before = await adrive(run.engine, message.decide(run)), _turns.get()
        try:
            for one in waiting:
                if one.call.tool_ref is not None and not one.left:  # without a tool the name is the model's own
                    run.engine.tally.decided(run, "tool", one.call.tool, "tool node gate")
            _turns.set(tool_pep.Turns(config, message.calls, waiting))
            return await super()._afunc(input, config, runtime)
        finally:
            _turns.set(before)
            if tool_pep.open_tickets(waiting):
                await adrive(run.engine, tool_pep.give_back(waiting))

    def _message(
        self, input: Any, config: RunnableConfig, runtime: Any, standalone: bool
    ) -> tuple[Run, tool_pep.MessageCalls]:
        run = find_run(config)
        if run is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        wrappers = (self._wrap_tool_call, self._awrap_tool_call)
        reviewed = reviewed_tools(*wrappers) if any(wrappers) else frozenset()
        return run, tool_pep.MessageCalls(
            self, self._authz_profiles, input, config, runtime, reviewed=reviewed, standalone=standalone
        )

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        if (turns := _turns.get()) is None:
            return tool_pep.undecided(call)
        with tool_pep.Turn(turns, call) as one:
            if one is not None and type(one.verdict) is Ticket and not one.call.amends:
                return super()._run_one(call, input_type, tool_runtime)
            if (answer := tool_pep.answer_of(one, call, turns.config)) is not None:
                return answer
            return tool_pep.noted(one, super()._run_one(tool_pep.instead_of(one, call), input_type, tool_runtime))

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        if (turns := _turns.get()) is None:
            return tool_pep.undecided(call)
        async with tool_pep.Turn(turns, call) as one:
            if one is not None and type(one.verdict) is Ticket and not one.call.amends:
                return await super()._arun_one(call, input_type, tool_runtime)
            if (answer := tool_pep.answer_of(one, call, turns.config)) is not None:
                return answer
            return tool_pep.noted(
                one, await super()._arun_one(tool_pep.instead_of(one, call), input_type, tool_runtime)
            )

    def _execute_tool_sync(self, request: Any, input_type: Any, config: Any) -> Any:
        if getattr(type(request.tool), GUARDED, None) is None:
            request = self._guarded(request)
        return super()._execute_tool_sync(request, input_type, config)

    async def _execute_tool_async(self, request: Any, input_type: Any, config: Any) -> Any:
        if getattr(type(request.tool), GUARDED, None) is None:
            request = self._guarded(request)
        return await super()._execute_tool_async(request, input_type, config)

    def _guarded(self, request: Any) -> Any:
        """Guard a tool that middleware brought along before it can run."""
        tool = request.tool
        if isinstance(tool, BaseTool) and not is_guarded(tool):
            return request.override(tool=guard_tool(tool, self._authz_profiles))
        return request


def gate_tool_node(node: ToolNode, profiles: Profiles) -> ToolNode:
    """Return a gated copy of `node`, of a subclass of its own class, with its tools guarded in place."""
    gated = copy.copy(node)
    gated.__class__ = lookalike(type(node), {}, _Gate)
    return _equip(cast("_Gate", gated), profiles)


def guard_held(node: ToolNode, profiles: Profiles) -> None:
    """Guard the tools of a tool node that is a part of a node, in place: its own dictionary has them."""
    for name, tool in list(node._tools_by_name.items()):
        if not is_guarded(tool):
            node._tools_by_name[name] = guard_tool(tool, profiles)


def _equip(node: _Gate, profiles: Profiles) -> ToolNode:
    node._authz_profiles = profiles
    for name, tool in list(node._tools_by_name.items()):
        # In place: closures (a supervisor's) hold this very dictionary.
        node._tools_by_name[name] = guard_tool(tool, profiles)
    # A RunnableCallable holds its functions as they were bound when it was made.
    node.func, node.afunc = node._func, node._afunc
    return node


class AuthzParts(Protocol):
    """The parts of a `RuntimeAuthz` that nodes, middleware and handlers need."""

    @property
    def profiles(self) -> Profiles: ...

    @property
    def root_entry(self) -> RootEntry: ...


class AuthzToolNode(_Gate):
    """Drop-in for `langgraph.prebuilt.ToolNode`.

    Takes what ToolNode takes, and the `RuntimeAuthz` that decides. Inside a protected graph it is one of its enforcement
    points. Alone it is a root entry: inside `authz.run()` it accepts the plan of a message that a model was seen to
    return in that run, unless a correction came in between; outside it opens an implicit run.

    Args:
        tools: as for ToolNode; kept as guarded copies.
        authz: the `RuntimeAuthz`.
        **kwargs: as for ToolNode.
    """

    def __init__(self, tools: Sequence[Any], *, authz: AuthzParts, **kwargs: Any) -> None:
        super().__init__(tools, **kwargs)
        self._authz = authz
        install(listens=True)
        _equip(self, authz.profiles)

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        if find_run(config) is not None:
            return super()._func(input, config, runtime)
        entrance = self._authz.root_entry
        at_call = entrance.at_call(config)
        with entrance.enter(self.get_name(), input, config, at_call) as (given, entered):
            run = cast("Run", find_run(entered))
            drive(run.engine, _record_seen(run, at_call.opener, input, given))
            with run_scope(run):
                return self._gated(given, entered, runtime, standalone=True)

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        if find_run(config) is not None:
            return await super()._afunc(input, config, runtime)
        entrance = self._authz.root_entry
        at_call = entrance.at_call(config)
        async with entrance.enter(self.get_name(), input, config, at_call) as (given, entered):
            run = cast("Run", find_run(entered))
            await adrive(run.engine, _record_seen(run, at_call.opener, input, given))
            with run_scope(run):
                return await self._agated(given, entered, runtime, standalone=True)


def _record_seen(run: Run, opener: RunHandle | None, input: Any, given: Any) -> Flow[None]:
    """Record the plan of the newest message, if a model was seen to return it in the application's run.

    A correction that was told by this entry (`given` is another than `input`) came after the message: not planned.
    """
    if opener is not None and given is input:
        run.seen_from_model.update(opener.seen_from_model)
        yield from record_plans(run, given, list(ai_messages(given))[-1:])
