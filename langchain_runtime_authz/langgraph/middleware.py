"""`AuthzMiddleware`: the gates of `create_agent`'s own two calls, the model's and the tool's.

In a protected graph the run is there and a gate in front has decided the tool calls; what is left
for the middleware is to take tools out of the model's request. In a graph that is not protected it
opens the run itself and decides a message's calls in one batch, with the same gate as a tool node.

Innermost is best. Middleware listed after it may change a call that it has decided; then the guard
around the tool decides again, on what really runs.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Protocol, cast

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.authzen import Decision, deny
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.langgraph import callback_backstop as ambient
from langchain_runtime_authz.langgraph._private import agent_ns, is_innermost, task_id
from langchain_runtime_authz.langgraph.messages import record_plans
from langchain_runtime_authz.langgraph.model_calls import call_of_request, decided_scope, tool_names
from langchain_runtime_authz.langgraph.root_entry import Entering, RootEntry
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, find_run, gated_task, run_scope
from langchain_runtime_authz.langgraph.standalone import answered, hear, plan_later
from langchain_runtime_authz.langgraph.tool_execution import waiting
from langchain_runtime_authz.langgraph.tool_pep import ToolCallPEP
from langchain_runtime_authz.langgraph.tool_profiles import Profiles
from langchain_runtime_authz.pep.engine import Flow, Run, adrive, drive
from langchain_runtime_authz.pep.model import ModelCall, decide_model, withheld

__all__ = ["AuthzMiddleware"]

_MISPLACED: Final = (
    "AuthzMiddleware is not the innermost middleware: what is listed after it may change a call that it has decided, "
    "and is then decided again as it really runs. List it last"
)


class _Authz(Protocol):
    """What of a `RuntimeAuthz` the middleware needs."""

    @property
    def profiles(self) -> Profiles: ...

    @property
    def root_entry(self) -> RootEntry: ...


class _Entries:
    """The runs that one invocation of an unprotected graph opened, by the agent's namespace in it."""

    __slots__ = ("alock", "lock", "open")

    def __init__(self) -> None:
        self.open: dict[str, Entering[Any]] = {}
        self.lock = threading.Lock()
        self.alock = asyncio.Lock()


class AuthzMiddleware(AgentMiddleware[Any, Any, Any]):
    """Decides the model and tool calls of an agent made with `create_agent`. List it last.

    Tools outside the grant, and tools run by the provider that the policy does not allow, are taken
    out of the model's request; nothing else of it is touched.

    Args:
        authz: the `RuntimeAuthz`.
        agent: the agent's name in records and keys, where the graph is not protected.
    """

    __runtime_authz_middleware__ = True  # what `coverage` knows it by, without importing langchain

    def __init__(self, authz: _Authz, *, agent: str = "agent") -> None:
        super().__init__()
        self.tools = []
        self._entrance = authz.root_entry
        self._agent = agent
        self._gate = ToolCallPEP(authz.profiles)
        # By what all nodes of one invocation share, and no two invocations.
        self._invocations: weakref.WeakKeyDictionary[Any, _Entries] = weakref.WeakKeyDictionary()
        self._warned = False
        ambient.install(hear=hear)

    # --- the run, where the graph is not protected ---

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Open the run of an unprotected graph."""
        config = get_config()
        if _gated_run(config) is not None:
            return None
        entries = self._entries(runtime)
        given = {"messages": list(state["messages"])}
        with entries.lock:
            entering = self._entering(config, given)
            entered = entering.__enter__()
            entries.open[agent_ns(config)] = entering
        return _news(entered, given)

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Open the run of an unprotected graph."""
        config = get_config()
        if _gated_run(config) is not None:
            return None
        entries = self._entries(runtime)
        given = {"messages": list(state["messages"])}
        async with entries.alock:
            entering = self._entering(config, given)
            entered = await entering.__aenter__()
            entries.open[agent_ns(config)] = entering
        return _news(entered, given)

    def after_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Close it. One that pauses before this is closed with the `with authz.run(...)` around it."""
        entering = self._entries(runtime).open.pop(agent_ns(get_config()), None)
        if entering is not None:
            entering.__exit__(None, None, None)
        return None

    async def aafter_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Close it."""
        entering = self._entries(runtime).open.pop(agent_ns(get_config()), None)
        if entering is not None:
            await entering.__aexit__(None, None, None)
        return None

    def _entries(self, runtime: Any) -> _Entries:
        writer = runtime.stream_writer
        found = self._invocations.get(writer)
        if found is None:
            found = self._invocations.setdefault(writer, _Entries())
        return found

    def _entering(self, config: Mapping[str, Any], given: Any) -> Entering[Any]:
        at_call = self._entrance.at_call(config)
        if at_call.parent is not None:
            return self._entrance.enter_child(at_call.parent, self._agent, config)
        return self._entrance.enter(self._agent, given, config, at_call)

    def _run(self, config: Mapping[str, Any], runtime: Any) -> Run:
        """The run of this agent; a resumed one is opened by the first gate that it meets."""
        entries, ns = self._entries(runtime), agent_ns(config)
        with entries.lock:
            if (entering := entries.open.get(ns)) is None:
                entering = self._entering(config, None)
                entering.__enter__()
                entries.open[ns] = entering
                drive(entering.engine, answered(_opened(entering), config))
        return _opened(entering)

    async def _arun(self, config: Mapping[str, Any], runtime: Any) -> Run:
        entries, ns = self._entries(runtime), agent_ns(config)
        async with entries.alock:
            if (entering := entries.open.get(ns)) is None:
                entering = self._entering(config, None)
                await entering.__aenter__()
                entries.open[ns] = entering
                await adrive(entering.engine, answered(_opened(entering), config))
        return _opened(entering)

    # --- the model's call ---

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Decide `model/call`, and take out of the request what the model is not to be shown."""
        config = get_config()
        outer = _gated_run(config)
        run = outer if outer is not None else self._run(config, request.runtime)
        call = call_of_request(request)
        decision = drive(run.engine, decide_model(run, call))
        with _shown(run, call, decision), nullcontext() if outer is not None else run_scope(run):
            response = handler(_without(request, decision))
        if outer is None and not plan_later(run, config, request.state, _messages(response)):
            drive(run.engine, _planned(run, _messages(response)))
        return response

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Decide `model/call`, and take out of the request what the model is not to be shown."""
        config = get_config()
        outer = _gated_run(config)
        run = outer if outer is not None else await self._arun(config, request.runtime)
        call = call_of_request(request)
        decision = await adrive(run.engine, decide_model(run, call))
        with _shown(run, call, decision), nullcontext() if outer is not None else run_scope(run):
            response = await handler(_without(request, decision))
        if outer is None and not plan_later(run, config, request.state, _messages(response)):
            await adrive(run.engine, _planned(run, _messages(response)))
        return response

    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Record what stands as a plan and no model was seen to announce; a protected graph's own gate has."""
        config = get_config()
        if _gated_run(config) is None:
            run = self._run(config, runtime)
            drive(run.engine, _planned(run, state["messages"]))
        return None

    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Record what stands as a plan and no model was seen to announce; a protected graph's own gate has."""
        config = get_config()
        if _gated_run(config) is None:
            run = await self._arun(config, runtime)
            await adrive(run.engine, _planned(run, state["messages"]))
        return None

    # --- the tool's call ---

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Decide the call, unless a gate in front has; then it only passes."""
        self._warn(handler)
        if waiting():
            return handler(request)
        config = request.runtime.config
        outer = _gated_run(config)
        run = outer if outer is not None else self._run(config, request.runtime)
        try:
            with run_scope(run):
                return self._gate.call(run, request, handler)
        except GraphInterrupt:
            run.pause()
            raise

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Decide the call, unless a gate in front has; then it only passes."""
        self._warn(handler)
        if waiting():
            return await handler(request)
        config = request.runtime.config
        outer = _gated_run(config)
        run = outer if outer is not None else await self._arun(config, request.runtime)
        try:
            with run_scope(run):
                return await self._gate.acall(run, request, handler)
        except GraphInterrupt:
            run.pause()
            raise

    def _warn(self, handler: object) -> None:
        if not self._warned and not is_innermost(handler):
            self._warned = True
            warnings.warn(_MISPLACED, stacklevel=3)


def _gated_run(config: Mapping[str, Any]) -> Run | None:
    """The run of a protected graph, where one of its own gates is around this node."""
    return find_run(config) if task_id(config) == gated_task() else None


def _opened(entering: Entering[Any]) -> Run:
    if entering.run is None:
        raise AuthzHalt(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    return entering.run


def _news(entered: Any, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Corrections that the graph has not seen: a root entry's input has them beside the given messages."""
    if not isinstance(entered, tuple):
        return None
    own = {id(m) for m in given["messages"]}
    told = [m for m in entered[0]["messages"] if id(m) not in own]
    return {"messages": told} if told else None


def _messages(response: Any) -> Sequence[Any]:
    """The messages of what a model's handler returns, in either form."""
    return cast("Sequence[Any]", getattr(response, "model_response", response).result)


def _planned(run: Run, messages: Sequence[Any]) -> Flow[None]:
    """Record the plan in the newest of the messages, before a review can ask about it. The first record stands."""
    newest = next((m for m in reversed(messages) if isinstance(m, AIMessage)), None)
    yield from record_plans(run, {}, newest)


@contextmanager
def _shown(run: Run, call: ModelCall, decision: Decision) -> Iterator[None]:
    """The scope of a permitted model call.

    Raises:
        AuthzHalt: it is not.
    """
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)
    with decided_scope(run, call, frozenset(call.provider_tools) - withheld(decision)[1]):
        yield


def _without(request: Any, decision: Decision) -> Any:
    own, provider = withheld(decision)
    if not own and not provider:
        return request

    def kept(tool: BaseTool | dict[str, Any]) -> bool:
        mine, others = tool_names(tool)
        return own.isdisjoint(mine) and provider.isdisjoint(others)

    return cast("Any", request).override(tools=[t for t in request.tools if kept(t)])
