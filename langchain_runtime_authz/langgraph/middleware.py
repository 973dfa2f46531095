"""`AuthzMiddleware`: decide calls and record plans of a `create_agent` agent.

In a protected graph, a run is open, and an earlier enforcement point has decided the tool calls. In an unprotected
graph, the middleware opens a run and decides a message's calls in one batch, as a protected tool node does.

A handler among the graph's callbacks (`ResumeHandler`) observes the end of the model's node, whose output is the plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz._flow import methods
from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_batch
from langchain_runtime_authz.langgraph.graph_entry import AuthzParts, RunEntry
from langchain_runtime_authz.langgraph.graph_input import resume_handlers
from langchain_runtime_authz.langgraph.messages import ai_messages, record_plans
from langchain_runtime_authz.langgraph.model_call import call_of_request, decided_scope, tool_names
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, find_run, run_scope
from langchain_runtime_authz.langgraph.tool_execution import Locks, RunCode, decided_already, under_lock
from langchain_runtime_authz.langgraph.tool_guard import guard_held_by, guard_tool
from langchain_runtime_authz.pep.decide_steps import decide_model
from langchain_runtime_authz.pep.obligations import withheld_tools
from langchain_runtime_authz.pep.run import Flow, Perform, Run, adrive, drive

MAX_TOOL_SETS: Final = 64  # number of tool sets with a cached node, per middleware


class AuthzMiddleware(AgentMiddleware[Any, Any, Any]):
    """Decides the model and tool calls of a `create_agent` agent. List it last.

    From a model's request, it removes only tools outside the grant and provider tools that the policy does not allow.

    Args:
        authz: the `RuntimeAuthz` that decides.
        agent: the agent's name in records and keys, if the graph is not protected.
    """

    __runtime_authz_middleware__ = True  # `coverage` recognises it by this, without importing langchain

    def __init__(self, authz: AuthzParts, *, agent: str = "agent") -> None:
        super().__init__()
        self.tools = []
        self._run_opener = authz.run_opener
        self._pep = authz.run_opener.pep
        self._agent = agent
        self._profiles = authz.profiles
        # Ids of tools → the tools, and a node that holds them.
        self._nodes: dict[tuple[int, ...], tuple[list[BaseTool], private.ToolNode]] = {}
        self._nodes_lock = forkable_lock()

    def _before_agent(self, state: Any, runtime: Any) -> Flow[dict[str, Any] | None]:
        config = get_config()
        if _gated_run(config) is not None:
            return None
        given = {"messages": list(state["messages"])}
        entered = yield from self._opening(config, runtime, given)
        if not isinstance(entered, tuple):
            return None
        # Add corrections that the graph has not seen. In a protected graph, the root entry adds them to the input.
        own = {id(m) for m in given["messages"]}
        told = [m for m in entered[0]["messages"] if id(m) not in own]
        return {"messages": told} if told else None

    before_agent, abefore_agent = methods(_before_agent)

    def _after_agent(self, state: Any, runtime: Any) -> Flow[None]:
        """Close the run that a hook opened."""
        # If the graph pauses before this hook, the surrounding `with authz.run(...)` closes the run.
        entering = self._entries(runtime)[1].pop(private.agent_ns(get_config()), None)
        if entering is not None:
            yield Perform(entering.__exit__, entering.__aexit__, None, None, None)

    after_agent, aafter_agent = methods(_after_agent)

    def _run(self, config: Mapping[str, Any], runtime: Any) -> Flow[tuple[Run, bool]]:
        """Return this agent's run, and True if one of these hooks opened it."""
        if (run := _gated_run(config)) is not None:
            return run, False
        yield from self._opening(config, runtime, None)
        return _opened(self._entries(runtime)[1][private.agent_ns(config)]), True

    def _opening(self, config: Mapping[str, Any], runtime: Any, given: Any) -> Flow[Any]:
        (locks, entries), ns = self._entries(runtime), private.agent_ns(config)

        def opening() -> Flow[Any]:
            """Open a run, and return the input to use. If a run is open, return None."""
            if ns in entries and given is None:
                return None
            entering = self._run_opener.enter(self._agent, given, config, self._run_opener.owner(config))
            try:
                entered = yield Perform(entering.__enter__, entering.__aenter__)
            except AuthzDenied as refused:
                if entering.run is not None:  # an answer was refused, so no task of the message may continue
                    entries[ns] = refused
                raise
            entries[ns] = entering
            return entered

        return (yield from under_lock(locks, opening()))

    def _entries(self, runtime: Any) -> tuple[Locks, dict[str, Any]]:
        # Each invocation has a stream writer, which its nodes share. So the entries are stored there.
        found: Any = vars(runtime.stream_writer).setdefault(self, ((threading.Lock(), threading.Lock()), {}))
        return found  # type: ignore[no-any-return]

    def _wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Flow[Any]:
        """Decide `model/call`, and remove withheld tools from the request."""
        run, ours = yield from self._run(get_config(), request.runtime)
        # If another `RuntimeAuthz` opened the run, that one's engine decides.
        decision = yield Perform(drive, adrive, run.pep, decide_model(run, call := call_of_request(request)))
        with decided_scope(run, call, decision), run_scope(run) if ours else nullcontext():
            response = yield (RunCode, handler, _without(request, decision))
        if ours:
            yield from _record_plan_at_end(run, request, response)
        return response

    wrap_model_call, awrap_model_call = methods(_wrap_model_call)

    def _after_model(self, state: Any, runtime: Any) -> Flow[None]:
        """Record the newest message's plan, unless a protected node records it."""
        run, ours = yield from self._run(get_config(), runtime)
        if ours:
            yield from _record_plan(run, state["messages"])

    after_model, aafter_model = methods(_after_model)

    def _wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Flow[Any]:
        """Decide the call, unless an earlier enforcement point has decided it."""
        if decided_already():
            return (yield (RunCode, handler, request))
        run, _ = yield from self._run(request.runtime.config, request.runtime)
        try:
            with run_scope(run):
                return (yield Perform(drive, adrive, run.pep, self._decide_and_run(run, request, handler)))
        except GraphInterrupt:
            run.pause()
            raise

    wrap_tool_call, awrap_tool_call = methods(_wrap_tool_call)

    def _decide_and_run(self, run: Run, request: Any, handler: Callable[[Any], Any]) -> Flow[Any]:
        """Decide a call, and run `handler` if it is permitted."""
        message = self._message(request, handler)
        (call, *_), waiting = message.calls, (yield from message.decide(run))

        def code(own: Any) -> Any:
            decided = waiting[0].call.input.tool
            tool = decided if isinstance(decided, BaseTool) else request.tool
            return handler(request.override(tool=tool, tool_call=request.tool_call if own is call else own))

        try:
            queue = tool_batch.CallQueue(message.config, message.calls, waiting)
            return (yield from queue.run(call, code))
        finally:
            yield from tool_batch.give_back(waiting)

    def _message(self, request: Any, handler: object) -> tool_batch.MessageCalls:
        runtime, call = request.runtime, request.tool_call
        tools = [t for t in runtime.tools if isinstance(t, BaseTool)]
        if isinstance(request.tool, BaseTool):
            # Decide on the tool that would run: earlier middleware may have replaced it.
            call = call if call["name"] == request.tool.name else {**call, "name": request.tool.name}
            if not any(t is request.tool for t in tools):
                tools = [*(t for t in tools if t.name != request.tool.name), request.tool]
        # The cache holds the tools too, so that the ids in the key are not reused.
        key = tuple(id(t) for t in tools)
        with self._nodes_lock:  # tasks of one message share a node, and so their batch of decisions
            if key not in self._nodes:
                if len(self._nodes) >= MAX_TOOL_SETS:
                    self._nodes.clear()
                self._nodes[key] = (tools, private.ToolNode([guard_tool(t, self._profiles) for t in tools]))
                guard_held_by(self._nodes[key][1])
            node = self._nodes[key][1]
        given = {"__type": "tool_call_with_context", "tool_call": call, "state": request.state}
        return tool_batch.MessageCalls(node, self._profiles, given, runtime.config, runtime, wrappers=[handler])


def _gated_run(config: Mapping[str, Any]) -> Run | None:
    return find_run(config) if private.task_id(config) == current_scope.get().task else None


def _opened(entering: RunEntry[Any] | AuthzDenied) -> Run:
    if isinstance(entering, AuthzDenied):
        raise entering
    if entering.run is None:
        raise AuthzHalt(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    return entering.run


def _without(request: Any, decision: Decision) -> Any:
    own, provider = withheld_tools(decision)
    if not own and not provider:
        return request
    named = [(tool, *tool_names(tool)) for tool in request.tools]
    kept = [tool for tool, mine, others in named if own.isdisjoint(mine) and provider.isdisjoint(others)]
    return request.override(tools=kept)


def _record_plan(run: Run, messages: Sequence[Any]) -> Flow[None]:
    """Record the newest message's plan, before a review can ask about its calls."""
    newest = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    yield from record_plans(run, {}, newest)


def _record_plan_at_end(run: Run, request: Any, response: Any) -> Flow[None]:
    """Record the plan when the model's node ends. Without a handler, record it now."""
    messages: Sequence[Any] = getattr(response, "model_response", response).result  # of an `ExtendedModelResponse` too
    handler = next(resume_handlers(get_config()), None)
    node = getattr(get_config().get("callbacks"), "parent_run_id", None)
    if handler is None or node is None:
        yield from _record_plan(run, messages)
        return

    def record(returned: object) -> None:
        drive(run.pep, record_plans(run, request.state, returned if ai_messages(returned) else messages))

    handler.waits[node] = record
