"""The gate of a tool node for middleware, which is handed one call at a time of a graph that is not gated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.tools import BaseTool

from langchain_runtime_authz.fork import forkable_lock
from langchain_runtime_authz.langgraph._private import ToolNode
from langchain_runtime_authz.langgraph.answering import answered, instead, told
from langchain_runtime_authz.langgraph.review import NotingReview, reviewed_tools
from langchain_runtime_authz.langgraph.tool_execution import Held, held_scope
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.langgraph.tool_pep import MessageCalls, Verdicts
from langchain_runtime_authz.langgraph.tool_profiles import Profiles
from langchain_runtime_authz.pep.engine import Run

__all__ = ["CallGate"]

MAX_TOOL_SETS = 64  # that one middleware keeps a node for


class CallGate:
    """Decides the call that a `ToolCallRequest` holds, with its message's others, and makes it."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._nodes: dict[tuple[int, ...], tuple[list[BaseTool], ToolNode]] = {}
        self._lock = forkable_lock()

    def call(self, run: Run, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Decide the call and make it."""
        message = self._message(request, handler)
        with Verdicts(run, message) as (held,):
            if (answer := answered(held, message.calls[0], message.config)) is not None:
                return answer
            with held_scope(held), NotingReview(held, message.config):
                return told(held, handler(_request(held, request)))

    async def acall(self, run: Run, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Decide the call and make it."""
        message = self._message(request, handler)
        async with Verdicts(run, message) as (held,):
            if (answer := answered(held, message.calls[0], message.config)) is not None:
                return answer
            with held_scope(held):
                async with NotingReview(held, message.config):
                    return told(held, await handler(_request(held, request)))

    def _message(self, request: Any, handler: object) -> MessageCalls:
        runtime, call = request.runtime, request.tool_call
        tools = [t for t in runtime.tools if isinstance(t, BaseTool)]
        if isinstance(request.tool, BaseTool):
            # By what would run: middleware in front may have put another tool in the named one's place.
            call = call if call["name"] == request.tool.name else {**call, "name": request.tool.name}
            if not any(t is request.tool for t in tools):
                tools = [*(t for t in tools if t.name != request.tool.name), request.tool]
        # Kept together with its tools, so that their identities stay theirs.
        key = tuple(id(t) for t in tools)
        with self._lock:  # the tasks of one message share one node, and so one batch
            if key not in self._nodes:
                if len(self._nodes) >= MAX_TOOL_SETS:
                    self._nodes.clear()
                self._nodes[key] = (tools, ToolNode([guard_tool(t, self._profiles) for t in tools]))
            node = self._nodes[key][1]
        given = {"__type": "tool_call_with_context", "tool_call": call, "state": request.state}
        reviewed = reviewed_tools(handler)
        return MessageCalls(node, self._profiles, given, runtime.config, runtime, reviewed=reviewed)


def _request(held: Held, request: Any) -> Any:
    """The request with the guarded tool, and with the call that a human put in its place."""
    tool = held.call.tool_ref if isinstance(held.call.tool_ref, BaseTool) else request.tool
    return request.override(tool=tool, tool_call=instead(held, request.tool_call))
