"""What a model is shown, read from what LangChain is about to send: names of tools, of instructions a digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool

from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.langgraph._private import model_params
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.pep.engine import Run, drive
from langchain_runtime_authz.pep.model import ModelCall, decide_model, shown

__all__ = [
    "call_of_request",
    "decide_shown",
    "decided_scope",
    "held_by_model",
    "is_provider_tool",
    "shown_by",
    "tool_names",
]

# Parameters by which a provider is told to act by itself, beside its list of tools: servers that it calls, its own search.
_ACTS: Final = ("mcp_servers", "web_search_options", "search_parameters", "plugins")
# Parameters that hold others, which are sent as they are.
_NESTED: Final = ("model_kwargs", "extra_body", "additional_model_request_fields")


class _Decided(NamedTuple):
    run: Run
    model: str
    provider_tools: frozenset[str]


# Set by the middleware around the call of a model that it decided.
_decided: ContextVar[_Decided | None] = ContextVar("langchain_runtime_authz.model_decided", default=None)


@contextmanager
def decided_scope(run: Run, call: ModelCall, provider_tools: frozenset[str]) -> Iterator[None]:
    """The model call inside is decided: with these of the provider's tools, and no others."""
    previous = _decided.get()
    _decided.set(_Decided(run, call.model, provider_tools))
    try:
        yield
    finally:
        _decided.set(previous)


def tool_names(tool: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of (the agent's own, the provider's) tools in one entry of a model's tool list.

    A provider's own tool has no parameters that an agent fills in: `{"type": "web_search"}`,
    `{"type": "web_search_20250305", "name": "web_search"}`, `{"google_search": {}}`. What is
    neither a tool nor a mapping counts as the provider's: nothing of ours runs it.
    """
    if isinstance(tool, BaseTool):
        return (tool.name,), ()
    if not isinstance(tool, Mapping):
        if callable(tool):
            return (str(getattr(tool, "__name__", type(tool).__name__)),), ()
        return (), (type(tool).__name__,)
    inner = tool.get("function") or tool.get("toolSpec")
    if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
        return (inner["name"],), ()
    declared = tool.get("function_declarations") or tool.get("functionDeclarations")
    if isinstance(declared, list):
        return tuple(str(d.get("name")) for d in declared if isinstance(d, Mapping)), _others(tool)
    name, kind = tool.get("name"), tool.get("type")
    if isinstance(name, str) and any(k in tool for k in ("parameters", "input_schema", "inputSchema", "args_schema")):
        return (name,), ()
    if isinstance(title := tool.get("title"), str) and "properties" in tool:  # a JSON schema
        return (title,), ()
    if isinstance(kind, str):
        return (), (kind,)
    return (), _others(tool) or (str(name),)


def _others(tool: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(k) for k in tool if k not in ("function_declarations", "functionDeclarations", "name"))


def is_provider_tool(tool: Any) -> bool:
    """Whether an entry of a model's tool list is run by the provider, at least in part."""
    return bool(tool_names(tool)[1])


def shown_by(params: Mapping[str, Any], depth: int = 3) -> list[Any]:
    """The tools that a call's parameters show a model, with one entry for whatever else lets its provider act."""
    config = params.get("toolConfig")
    lists = (params.get("tools"), params.get("functions"), config.get("tools") if isinstance(config, Mapping) else None)
    found = [tool for listed in lists if isinstance(listed, list | tuple) for tool in listed]
    # An empty mapping says "with the defaults".
    found += [{"type": name} for name in _ACTS if params.get(name) not in (None, False, [], ())]
    nested = (params.get(name) for name in _NESTED) if depth else ()
    return found + [tool for inner in nested if isinstance(inner, Mapping) for tool in shown_by(inner, depth - 1)]


def held_by_model(model: Any) -> list[Any]:
    """The same of what a model was made with, which no request says and nothing can take out of one."""
    if isinstance(model, RunnableBinding):
        return [*shown_by(model.kwargs), *held_by_model(model.bound)]
    return shown_by({name: getattr(model, name, None) for name in (*_ACTS, *_NESTED)})


def _call(model: str, provider: str | None, tools: Sequence[Any], messages: Sequence[Any]) -> ModelCall:
    named = [tool_names(t) for t in tools]
    return ModelCall(
        model=model,
        provider=provider,
        tools=tuple(dict.fromkeys(n for own, _ in named for n in own)),
        provider_tools=tuple(dict.fromkeys(n for _, others in named for n in others)),
        prompt=instructions_digest(messages),
    )


def instructions_digest(messages: Sequence[Any]) -> str | None:
    """Digest of the system messages; `None` without any. Does not grow with the conversation."""
    said = [m for m in messages if isinstance(m, SystemMessage)]
    if not said:
        return None
    return content_digest(said[0].content if len(said) == 1 else "\n\n".join(m.text for m in said))


def call_of_request(request: Any) -> ModelCall:
    """The model call that a `ModelRequest` of `create_agent` is."""
    model, provider = model_params(request.model)
    said = [request.system_message] if request.system_message is not None else []
    sent = [*request.tools, *shown_by(request.model_settings or {}), *held_by_model(request.model)]
    return _call(model, provider, sent, [*said, *request.messages])


def decide_shown(run: Run, serialized: Any, messages: Sequence[BaseMessage], metadata: Any, params: Any) -> ModelCall:
    """Decide a model call as it is about to be made, from inside a callback. Returns what it is.

    Raises:
        AuthzHalt: it does not happen.
    """
    metadata, params = metadata or {}, params or {}
    named = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
    kind = (serialized or {}).get("id") or [(serialized or {}).get("name") or ""]
    made_with = (serialized or {}).get("kwargs") or {}
    tools = [*shown_by(params), *shown_by({k: v for k, v in made_with.items() if k in (*_ACTS, *_NESTED)})]
    call = _call(str(named or kind[-1]), metadata.get("ls_provider"), tools, messages)
    ready = _decided.get()
    ours = ready is not None and ready.run is run and ready.model == call.model
    if ours and ready is not None and ready.provider_tools.issuperset(call.provider_tools):
        return call
    decision = shown(drive(run.engine, decide_model(run, call)), call)
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)
    return call
