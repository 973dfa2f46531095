"""Read what LangChain is about to send a model: the names of its tools, and a digest of its instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool

from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.langgraph._private import model_params
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle
from langchain_runtime_authz.pep.engine import Flow, Run
from langchain_runtime_authz.pep.steps import ModelCall, decide_model, shown

_KEEP: Final = 256  # model outputs remembered per root entry

# Parameters that let a provider act by itself: servers that it calls, its own search.
_ACTS: Final = ("mcp_servers", "web_search_options", "search_parameters", "plugins")
# Parameters that hold others, which are sent as they are.
_NESTED: Final = ("model_kwargs", "extra_body", "additional_model_request_fields")
_PARAMETERS: Final = ("parameters", "input_schema", "inputSchema", "args_schema")
_DECLARED: Final = ("function_declarations", "functionDeclarations")
_NO_INSTRUCTIONS: Final = frozenset((HumanMessage, AIMessage, ToolMessage))


class _Decided(NamedTuple):
    run: Run
    model: str
    provider_tools: frozenset[str]


# Set by the middleware around the call of a model that it decided.
_decided: ContextVar[_Decided | None] = ContextVar("langchain_runtime_authz.model_decided", default=None)


@contextmanager
def decided_scope(run: Run, call: ModelCall, provider_tools: frozenset[str]) -> Iterator[None]:
    """Mark the model call inside as decided, with these of the provider's tools and no others."""
    previous = _decided.get()
    _decided.set(_Decided(run, call.model, provider_tools))
    try:
        yield
    finally:
        _decided.set(previous)


def tool_names(tool: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of (the agent's own, the provider's) tools in one entry of a model's tool list.

    A provider's own tool has no parameters that an agent fills in: `{"type": "web_search"}`,
    `{"type": "web_search_20250305", "name": "web_search"}`, `{"google_search": {}}`. Any entry that is neither a
    tool nor a mapping counts as the provider's: nothing of ours runs it.
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


def shown_by(params: Mapping[str, Any], depth: int = 3) -> list[Any]:
    """Return the tools that a call's parameters show a model, with an entry for each way its provider may act."""
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
            found += shown_by(inner, depth - 1)
    return found


def held_by_model(model: Any) -> list[Any]:
    """Return the same for the parameters that a model was made with: they cannot be taken out of a request."""
    if isinstance(model, RunnableBinding):
        return [*shown_by(model.kwargs), *held_by_model(model.bound)]
    return shown_by({name: getattr(model, name, None) for name in (*_ACTS, *_NESTED)})


def _call(model: str, provider: str | None, tools: Sequence[Any], messages: Sequence[Any]) -> ModelCall:
    own: list[str] = []
    others: list[str] = []
    for tool in tools:
        names, provided = tool_names(tool)
        own += names
        others += provided
    prompt = instructions_digest(messages)
    return ModelCall(model, provider, tuple(dict.fromkeys(own)), tuple(dict.fromkeys(others)), prompt)


def instructions_digest(messages: Sequence[Any]) -> str | None:
    """Return the digest of the system messages, or `None` without any. It does not grow with the conversation."""
    said = []
    for m in messages:
        if type(m) not in _NO_INSTRUCTIONS and isinstance(m, SystemMessage):
            said.append(m)
    if not said:
        return None
    return content_digest(said[0].content if len(said) == 1 else "\n\n".join(m.text for m in said))


def call_of_request(request: Any) -> ModelCall:
    model, provider = model_params(request.model)
    said = [request.system_message] if request.system_message is not None else []
    sent = [*request.tools, *shown_by(request.model_settings or {}), *held_by_model(request.model)]
    return _call(model, provider, sent, [*said, *request.messages])


def call_as_sent(serialized: Any, messages: Sequence[BaseMessage], metadata: Any, params: Any) -> ModelCall:
    metadata, params, serialized = metadata or {}, params or {}, serialized or {}
    named = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
    kind = serialized.get("id") or [serialized.get("name") or ""]
    tools = shown_by(params)
    if made_with := serialized.get("kwargs"):
        tools += shown_by({k: v for k, v in made_with.items() if k in _ACTS or k in _NESTED})
    return _call(str(named or kind[-1]), metadata.get("ls_provider"), tools, messages)


def decide_shown(by: Run, call: ModelCall) -> Flow[None]:
    """Decide a model call of a run from inside a callback, unless our middleware has.

    Raises:
        AuthzHalt: it does not happen.
    """
    ready = _decided.get()
    ours = ready is not None and ready.run is by and ready.model == call.model
    if ours and ready is not None and ready.provider_tools.issuperset(call.provider_tools):
        return
    decision = yield from decide_model(by, call)
    if call.provider_tools:
        decision = shown(decision, call)
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)


def note_model_call(run: Run | RunHandle, ident: object, model: str, prompt: str | None) -> None:
    """Remember which model was asked, and under which instructions, until it answers."""
    with run.lock:
        run.asked_model[ident] = (model, prompt)
        while len(run.asked_model) > _KEEP:
            run.asked_model.pop(next(iter(run.asked_model)))


def note_model_output(run: Run | RunHandle, message: AIMessage, ident: object) -> None:
    """Remember that a model returned these calls, so that their plan's source is `model`."""
    with run.lock:
        asked = run.asked_model.get(ident, (None, None))
        if message.tool_calls:
            run.seen_from_model[calls_digest(plan_calls(message.tool_calls))] = asked
        while len(run.seen_from_model) > _KEEP:
            run.seen_from_model.pop(next(iter(run.seen_from_model)))
