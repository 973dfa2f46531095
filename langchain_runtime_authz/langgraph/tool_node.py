"""Decide the calls of tool nodes: of a protected graph, or `AuthzToolNode`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

from langchain_runtime_authz._flow import run_within
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_batch
from langchain_runtime_authz.langgraph.callback_backstop import install_hook
from langchain_runtime_authz.langgraph.graph_entry import AuthzParts
from langchain_runtime_authz.langgraph.interrupts import reviewed_tools
from langchain_runtime_authz.langgraph.messages import ai_messages, record_plans
from langchain_runtime_authz.langgraph.private_api import subclass_like
from langchain_runtime_authz.langgraph.run_context import RunHandle, find_run, run_scope
from langchain_runtime_authz.langgraph.tool_execution import Finish, RunCode
from langchain_runtime_authz.langgraph.tool_guard import guard_held_by, guard_tool
from langchain_runtime_authz.langgraph.tool_lookup import GUARDED, Profiles, is_guarded
from langchain_runtime_authz.pep.decide_steps import Entry
from langchain_runtime_authz.pep.run import Engine, Flow, Run, adrive, drive

entering: ContextVar[Entry] = ContextVar("langchain_runtime_authz.entry", default=None)
_NO_QUEUE: Final = tool_batch.CallQueue(None, (), ())
_queue = ContextVar("langchain_runtime_authz.queue", default=_NO_QUEUE)


class _Gate(private.ToolNode):
    """Decides a ToolNode's calls. It is the first base of a protected node's class."""

    __runtime_authz_gated__ = True
    _authz_profiles: Profiles

    def _func(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        waiting, before = drive(run.engine, message.decide(run)), _queue.get()
        try:
            _queue.set(tool_batch.CallQueue(message.config, message.calls, waiting, "tool node gate"))
            return super()._func(input, config, runtime)
        finally:
            _queue.set(before)
            if tool_batch.open_tickets(waiting):
                drive(run.engine, tool_batch.give_back(waiting))

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        code = partial(super()._afunc, input, config, runtime)

        def flow() -> Flow[Any]:  # one flow, because cancelling would lose the value of a separate one: the tickets
            waiting, before = (yield from message.decide(run)), _queue.get()
            try:
                _queue.set(queue := tool_batch.CallQueue(message.config, message.calls, waiting, "tool node gate"))
                try:
                    return (yield (RunCode, code))
                except Exception:
                    yield (Finish, queue)
                    raise
            finally:
                _queue.set(before)
                if tool_batch.open_tickets(waiting):
                    yield from tool_batch.give_back(waiting)

        return await adrive(run.engine, flow())

    def _message(
        self, input: Any, config: RunnableConfig, runtime: Any, standalone: bool
    ) -> tuple[Run, tool_batch.MessageCalls]:
        run = find_run(config)
        if run is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        entry = entering.get()
        entering.set(None)  # tools may run further tool nodes
        wrappers = (self._wrap_tool_call, self._awrap_tool_call)
        reviewed = reviewed_tools(*wrappers) if any(wrappers) else frozenset()
        return run, tool_batch.MessageCalls(
            self, self._authz_profiles, input, config, runtime, entry=entry, reviewed=reviewed, standalone=standalone
        )

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        queue = _queue.get()
        if (found := queue.waiting.get(id(call)) or queue.copied(call)) is None:
            return tool_batch.undecided_denial(call)
        with tool_batch.QueuedCall(queue, *found) as one:
            if type(one.verdict) is Ticket and not one.call.edited_by:
                return super()._run_one(call, input_type, tool_runtime)
            if (answer := tool_batch.answer_of(one, call, queue.config)) is not None:
                return answer
            output = super()._run_one(tool_batch.instead_of(one, call), input_type, tool_runtime)
            return tool_batch.note_edit(one, output)

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        queue = _queue.get()
        if (found := queue.waiting.get(id(call)) or queue.copied(call)) is None:
            return tool_batch.undecided_denial(call)
        async with tool_batch.QueuedCall(queue, *found) as one:
            if type(one.verdict) is Ticket and not one.call.edited_by:
                return await super()._arun_one(call, input_type, tool_runtime)
            if (answer := tool_batch.answer_of(one, call, queue.config)) is not None:
                return answer
            output = await super()._arun_one(tool_batch.instead_of(one, call), input_type, tool_runtime)
            return tool_batch.note_edit(one, output)

    def _execute_tool_sync(self, request: Any, input_type: Any, config: Any) -> Any:
        request = request if hasattr(type(request.tool), GUARDED) else self._guarded(request)
        return super()._execute_tool_sync(request, input_type, config)

    async def _execute_tool_async(self, request: Any, input_type: Any, config: Any) -> Any:
        request = request if hasattr(type(request.tool), GUARDED) else self._guarded(request)
        return await super()._execute_tool_async(request, input_type, config)

    def _guarded(self, request: Any) -> Any:
        known = isinstance(request.tool, BaseTool)
        return request.override(tool=guard_tool(request.tool, self._authz_profiles)) if known else request


def decides_entry(kind: type[Any]) -> bool:
    """Return True if `_Gate` decides before code of the node class `kind` can run."""
    return all(
        getattr(kind, name, None) in (getattr(base, name, None) for base in (private.ToolNode, _Gate, AuthzToolNode))
        for name in ("invoke", "ainvoke", "_func", "_afunc", "_parse_input", "_extract_state", "_inject_tool_args")
    ) and issubclass(kind, _Gate)


def gate_tool_node(node: private.ToolNode, profiles: Profiles) -> private.ToolNode:
    """Return a guarded copy of `node`. The tools of both become guarded copies."""
    gated = copy.copy(node)
    gated.__class__ = subclass_like(type(node), {}, _Gate)
    return _equip(cast("_Gate", gated), profiles)


def guard_held(node: private.ToolNode, profiles: Profiles) -> None:
    """Replace each tool of `node`, which the code of a node holds, by a guarded copy."""
    for name, tool in list(node._tools_by_name.items()):
        if not is_guarded(tool):
            node._tools_by_name[name] = guard_tool(tool, profiles)


def _equip(node: _Gate, profiles: Profiles) -> private.ToolNode:
    node._authz_profiles = profiles
    for name, tool in list(node._tools_by_name.items()):
        # Change this dictionary, because closures, like a supervisor's, refer to it.
        node._tools_by_name[name] = guard_tool(tool, profiles)
    # A RunnableCallable calls the methods in `func` and `afunc`, which are still those of the original.
    node.func, node.afunc = node._func, node._afunc
    return node


class AuthzToolNode(_Gate):
    """Drop-in for `langgraph.prebuilt.ToolNode` that decides its tools' calls.

    In a protected graph, it is one of the graph's enforcement points. In an unprotected graph, each execution is a root
    entry. Inside `authz.run()`, a message then counts as the plan of its calls if a model returned it in that run and
    no correction came in between. Outside `authz.run()`, the root entry opens an implicit run.

    Args:
        tools: as for ToolNode; the node uses guarded copies.
        authz: the `RuntimeAuthz` that decides.
        **kwargs: as for ToolNode.
    """

    def __init__(self, tools: Sequence[Any], *, authz: AuthzParts, **kwargs: Any) -> None:
        super().__init__(tools, **kwargs)
        self._authz = authz
        install_hook(listens=True)
        _equip(self, authz.profiles)
        guard_held_by(self)

    def _func(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = True) -> Any:
        if find_run(config) is not None:
            return super()._func(input, config, runtime)
        return drive(*self._entered(partial(super()._func, standalone=True), input, config, runtime))

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = True) -> Any:
        if find_run(config) is not None:
            return await super()._afunc(input, config, runtime)
        return await adrive(*self._entered(partial(super()._afunc, standalone=True), input, config, runtime))

    def _entered(self, code: Any, input: Any, config: RunnableConfig, runtime: Any) -> tuple[Engine, Flow[Any]]:
        run_opener = self._authz.run_opener
        owner = run_opener.owner(config)

        def inside(entered: tuple[Any, Any]) -> Flow[Any]:
            run = cast("Run", find_run(entered[1]))
            if isinstance(owner, RunHandle) and entered[0] is input:
                run.models.returned.update(owner.models.returned)
                yield from record_plans(run, input, ai_messages(input)[-1:])
            with run_scope(run):
                return (yield (RunCode, code, *entered, runtime))

        return run_opener.engine, run_within(run_opener.enter(self.get_name(), input, config, owner), inside)
