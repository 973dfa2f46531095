"""Read a model call: its model, tools and system messages. Decide each call once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.pep.decide_steps import ModelCall, decide_model
from langchain_runtime_authz.pep.obligations import withheld_tools
from langchain_runtime_authz.pep.run import Flow, Run

# Parameters that let a provider act by itself: MCP servers, web search.
_ACTS: Final = ("mcp_servers", "web_search_options", "search_parameters", "plugins")
# Parameters that contain other parameters, which LangChain sends unchanged.
_NESTED: Final = ("model_kwargs", "extra_body", "additional_model_request_fields")
_PARAMETERS: Final = ("parameters", "input_schema", "inputSchema", "args_schema")
_DECLARED: Final = ("function_declarations", "functionDeclarations")
_NO_INSTRUCTIONS: Final = frozenset((HumanMessage, AIMessage, ToolMessage))
# The running model call that the middleware has decided: run, model, permitted provider tools.
_decided_model_call: ContextVar[tuple[Run, str, frozenset[str]] | None] = ContextVar(
    "langchain_runtime_authz.model_decided", default=None
)


def tool_names(tool: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names in one entry of a model's tool list: (agent's, provider's).

    A provider tool does not declare parameters: `{"google_search": {}}`, `{"type": "web_search"}`. An entry that is
    neither a tool, nor callable, nor a mapping counts as a provider tool.
    """
    if type(tool) is not dict and not isinstance(tool, Mapping):
        if isinstance(tool, BaseTool):
            return (tool.name,), ()
        if callable(tool):
            return (str(getattr(tool, "__name__", type(tool).__name__)),), ()
        return (), (type(tool).__name__,)
    inner = tool.get("function") or tool.get("toolSpec")
    if inner is not None and isinstance(inner, (dict, Mapping)) and isinstance(inner.get("name"), str):
        return (inner["name"],), ()
    declared = tool.get("function_declarations") or tool.get("functionDeclarations")
    others = tuple(str(k) for k in tool if k not in _DECLARED and k != "name")
    if isinstance(declared, list):
        return tuple(str(d.get("name")) for d in declared if isinstance(d, Mapping)), others
    name, kind = tool.get("name"), tool.get("type")
    if isinstance(name, str) and any(k in tool for k in _PARAMETERS):
        return (name,), ()
    if isinstance(title := tool.get("title"), str) and "properties" in tool:  # a JSON schema
        return (title,), ()
    if isinstance(kind, str):
        return (), (kind,)
    return (), others or (str(name),)


def tools_in(params: Mapping[str, Any], depth: int = 3) -> list[Any]:
    """Return the tools in a model call's parameters, including the provider's tools."""
    found: list[Any] = []
    config = params.get("toolConfig")
    for listed in (params.get("tools"), params.get("functions"), config.get("tools") if type(config) is dict else None):
        if isinstance(listed, (list, tuple)):
            found.extend(listed)
    for name in _ACTS:
        if params.get(name) not in (None, False, [], ()):  # an empty mapping means "with the defaults"
            found.append({"type": name})
    for name in _NESTED if depth else ():
        if (inner := params.get(name)) is not None and isinstance(inner, (dict, Mapping)):
            found += tools_in(inner, depth - 1)
    return found


def held_by_model(model: Any) -> list[Any]:
    """Return the tools in a model's own parameters, which no request can remove."""
    if isinstance(model, RunnableBinding):
        return [*tools_in(model.kwargs), *held_by_model(model.bound)]
    return tools_in({name: getattr(model, name, None) for name in (*_ACTS, *_NESTED)})


def _call(model: str, provider: str | None, tools: Sequence[Any], messages: Sequence[Any]) -> ModelCall:
    own: dict[str, None] = {}
    others: dict[str, None] = {}
    for tool in tools:
        for found, names in zip((own, others), tool_names(tool), strict=True):
            found.update(dict.fromkeys(names))
    return ModelCall(model, provider, tuple(own), tuple(others), instructions_digest(messages))


def instructions_digest(messages: Sequence[Any]) -> str | None:
    """Return the digest of all system messages; None if there are none."""
    said = []
    for m in messages:
        if type(m) not in _NO_INSTRUCTIONS and isinstance(m, SystemMessage):
            said.append(m)
    if not said:
        return None
    return content_digest(said[0].content if len(said) == 1 else "\n\n".join(m.text for m in said))


def call_of_request(request: Any) -> ModelCall:
    """Return the model call that a middleware's request describes."""
    model, provider = private.model_params(request.model)
    said = [request.system_message] if request.system_message is not None else []
    sent = [*request.tools, *tools_in(request.model_settings or {}), *held_by_model(request.model)]
    return _call(model, provider, sent, [*said, *request.messages])


def call_as_sent(serialized: Any, messages: Sequence[BaseMessage], metadata: Any, params: Any) -> ModelCall:
    """Return the model call that a callback reports."""
    metadata, params, serialized = metadata or {}, params or {}, serialized or {}
    named = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
    kind = serialized.get("id") or [serialized.get("name") or ""]
    tools = tools_in(params)
    if made_with := serialized.get("kwargs"):
        tools += tools_in({k: v for k, v in made_with.items() if k in _ACTS or k in _NESTED})
    return _call(str(named or kind[-1]), metadata.get("ls_provider"), tools, messages)


@contextmanager
def decided_scope(run: Run, call: ModelCall, decision: Decision) -> Iterator[None]:
    """Mark a model call as decided inside the block. Raises `AuthzHalt` if denied."""
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)
    previous = _decided_model_call.get()
    _decided_model_call.set((run, call.model, frozenset(call.provider_tools) - withheld_tools(decision)[1]))
    try:
        yield
    finally:
        _decided_model_call.set(previous)


def decide_shown(by: Run, call: ModelCall) -> Flow[None]:
    """Decide a model call unless our middleware did. Raises `AuthzHalt` if denied."""
    ready = _decided_model_call.get()
    if ready is not None and ready[:2] == (by, call.model) and ready[2].issuperset(call.provider_tools):
        return
    decision = yield from decide_model(by, call)
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)
    if call.provider_tools and withheld_tools(decision)[1].intersection(call.provider_tools):
        raise AuthzHalt(Code.PROVIDER_TOOL, decision.decision_id)
