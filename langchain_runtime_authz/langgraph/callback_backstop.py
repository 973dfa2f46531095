"""The callback backstop: decide calls that no enforcement point has decided.

Inside a run, these are calls of unguarded tools, and model calls that our middleware has not decided. In `authz.run()`
without a protected graph, model outputs are only recorded, as plans for an `AuthzToolNode`.

The handler runs inline and sets `raise_error`, because LangChain swallows the exceptions of other handlers. It cannot
change the input or the output of a tool.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import chain
from typing import Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.tracers.context import register_configure_hook

from langchain_runtime_authz.credential.current_call import current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.object_graph import DECISIONS
from langchain_runtime_authz.langgraph.resume_values import resume_handler
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle, current_node, run_handle, running
from langchain_runtime_authz.langgraph.tool_arrival import Arrival, arrival_unguarded
from langchain_runtime_authz.langgraph.tool_call_parsing import unknown
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution, answer
from langchain_runtime_authz.langgraph.tool_lookup import Guard, is_guarded
from langchain_runtime_authz.pep.call import Denial, Replay
from langchain_runtime_authz.pep.conclude_calls import conclude
from langchain_runtime_authz.pep.decide_steps import ModelCall, decide_model, shown, withheld
from langchain_runtime_authz.pep.obligations import obliged_fields
from langchain_runtime_authz.pep.run import Engine, Flow, Run, adrive, drive

Due = tuple[Engine, Flow[None]] | None


class _Event:
    """A callback that runs a flow: awaitable if LangChain awaits it, else blocking."""

    def __init__(self, due: Callable[..., Due]) -> None:
        self.due = due
        self.__doc__ = due.__doc__

    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


class _ToolStart(_Event):
    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        one = current_scope.get()
        if type(one) is ToolExecution and not one.stages and type(one.guard) is Guard and one.guard.stock:
            return _ignore  # LangChain's `run` announces a guarded tool, which is decided already
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


class _ToolEnd(_Event):
    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        if type(getattr(current_scope.get(), "guard", None)) is not UUID:
            return _ignore  # the tool's guard concludes the call
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


_ignore: Final = "".format  # a no-op that is not a Python function


def _driven(due: Callable[..., Due], *args: Any, **kwargs: Any) -> None:
    if (found := due(*args, **kwargs)) is not None:
        drive(*found)


async def _awaited(due: Callable[..., Due], *args: Any, **kwargs: Any) -> None:
    if (found := due(*args, **kwargs)) is not None:
        await adrive(*found)


class _Models(BaseCallbackHandler):
    run_inline = True
    ignore_retriever = ignore_agent = ignore_retry = ignore_custom_event = True
    # LangChain announces a decision model as a chain. While no such model is defined, chains are ignored.
    ignore_chain: bool = True

    decides = False

    @_Event
    def on_chain_start(self, serialized: Any, _inputs: Any, **kwargs: Any) -> Due:
        if kwargs.get("run_type") != "llm" or (by := current_scope.get().run or _opened()) is None:
            return None
        call = call_as_sent(serialized, [], kwargs.get("metadata"), None)
        return (by.engine, decide_shown(by, call)) if self.decides and type(by) is Run else None

    @_Event
    def on_chat_model_start(self, serialized: Any, given: Any, **kwargs: Any) -> Due:
        if (by := current_scope.get().run or _opened()) is None:
            return None
        messages = given[0] if given and not isinstance(given[0], str) else ()  # a prompt has no system message
        call = call_as_sent(serialized, messages, kwargs.get("metadata"), kwargs.get("invocation_params"))
        with by.lock:
            by.asked_model[kwargs.get("run_id")] = (call.model, call.prompt)
            while len(by.asked_model) > _KEEP:
                by.asked_model.pop(next(iter(by.asked_model)))
        return (by.engine, decide_shown(by, call)) if self.decides and type(by) is Run else None

    on_llm_start = on_chat_model_start

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        if (by := current_scope.get().run or _opened()) is None:
            return
        asked = by.asked_model.pop(kwargs.get("run_id"), (None, None))
        for generation in chain.from_iterable(response.generations):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if not isinstance(message, AIMessage) or not message.tool_calls:
                continue
            with by.lock:
                by.seen_from_model[calls_digest(plan_calls(message.tool_calls))] = asked
                while len(by.seen_from_model) > _KEEP:
                    by.seen_from_model.pop(next(iter(by.seen_from_model)))
            if (node := current_node(by)) is not None:
                node.plans.announced.append((private.task_id(var_child_runnable_config.get() or {}), message))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        if (by := current_scope.get().run or _opened()) is not None:
            by.asked_model.pop(kwargs.get("run_id"), None)


class _Backstop(_Models):
    raise_error = True
    ignore_agent = False

    decides = True

    @_ToolStart
    def on_tool_start(self, serialized: dict[str, Any], _input: str, *, run_id: UUID, **_kwargs: Any) -> Due:
        started = private.starting_tool()
        if started is None:
            if (run := running()) is None:
                raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
            call = unknown(str((serialized or {}).get("name")), None, None, None, {})
            return run.engine, _open(Arrival(call, {}, run=run), None)
        tool, given, config, call_id = started
        one = current_scope.get()
        if is_guarded(tool) or (
            type(one) is ToolExecution and one.stages[-1:] == ["run"] and one.call.tool_ref is tool
        ):
            return None
        arrived = arrival_unguarded(tool, given, private.ensure_config(config), call_id)
        return (arrived.engine, _open(arrived, run_id)) if arrived.engine is not None else arrived.refuse()  # raises

    @_ToolEnd
    def on_tool_end(self, output: Any, *, run_id: UUID, **_kwargs: Any) -> Due:
        return _closing(run_id, None, output)

    @_ToolEnd
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_kwargs: Any) -> Due:
        return _closing(run_id, error, None)


def _opened() -> RunHandle | None:
    try:
        return run_handle(var_child_runnable_config.get() or {})
    except ConfigError:  # a generator opened the run, so it may belong to other code
        return None


def _open(arrived: Arrival, run_id: UUID | None) -> Flow[None]:
    verdict = yield from arrived.decide()
    run, call = arrived.run, arrived.call
    if isinstance(verdict, Replay):
        verdict = Denial(call, deny(Code.OUTCOME_UNKNOWN))
    if run is None or isinstance(verdict, Denial):
        answer(verdict, None)  # raises
        return
    if obliged_fields(verdict.obligations):
        yield from conclude(run, verdict, call, "released")
        raise AuthzDenied(Code.UNKNOWN_OBLIGATION, verdict.decision_id)
    verdict.mint = None
    if (execution := arrived.execution(run_id, verdict)) is not None:
        execution.begin()
        execution.admits("_run")


def _closing(run_id: UUID, error: BaseException | None, output: Any) -> Due:
    execution = current_scope.get()
    if type(execution) is not ToolExecution or execution.guard != run_id:
        return None
    execution.returned = output
    over = execution.end(error, output)
    return (execution.run.engine, over) if over is not None else None


_BACKSTOP: Final = _Backstop()
_LISTENER: Final = _Models()  # in `authz.run()` without a protected graph, for an `AuthzToolNode`


class _Hook:
    """Stands in for a ContextVar: LangChain adds the handler that `get` returns."""

    everywhere = listens = False

    def get(self) -> BaseCallbackHandler | None:
        base = getattr(sys.modules.get(DECISIONS), "BaseDecisionModel", None)
        if base is not None and base.__subclasses__():
            _Models.ignore_chain = False
        if current_scope.get().run is not None:
            return _BACKSTOP
        if (heard := resume_handler()) is not None:
            return heard
        if self.everywhere:
            return _BACKSTOP
        return _LISTENER if self.listens and _opened() is not None else None


_hook: Final = _Hook()


@cache
def _register() -> None:
    register_configure_hook(cast("ContextVar[Any]", _hook), inheritable=True)
    # LangChain logs a warning if a handler raises. Our denials and questions are not failures, so drop the warning.
    logging.getLogger(private.CALLBACK_LOGGER).addFilter(
        lambda record: not isinstance(record.args, tuple) or record.args[:1] != (_Backstop.__name__,)
    )


def install(*, everywhere: bool = False, listens: bool = False) -> None:
    """Register the hook with LangChain, once per process.

    LangChain cannot remove the hook, and an option that was once set stays on.

    `everywhere`: also deny unguarded tools outside runs. `listens`: in `authz.run()`, record unprotected model outputs.
    """
    _register()
    for name, value in {"everywhere": everywhere, "listens": listens}.items():
        if value:  # an option is never turned off
            setattr(_hook, name, value)


def hearing(config: dict[str, Any]) -> dict[str, Any]:
    """Return a root entry's config with the backstop among its callbacks."""
    # The backstop then also covers a thread to which a node hands its callbacks.
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        callbacks.add_handler(_BACKSTOP, inherit=True)  # does nothing if it is there already
    else:
        callbacks = [*(h for h in callbacks if h is not _BACKSTOP), _BACKSTOP] if callbacks else [_BACKSTOP]
    return {**config, "callbacks": callbacks}


_KEEP: Final = 256  # model outputs kept per root entry

# Parameters that let a provider act by itself: MCP servers, web search.
_ACTS: Final = ("mcp_servers", "web_search_options", "search_parameters", "plugins")
# Parameters that contain other parameters, which LangChain sends unchanged.
_NESTED: Final = ("model_kwargs", "extra_body", "additional_model_request_fields")
_PARAMETERS: Final = ("parameters", "input_schema", "inputSchema", "args_schema")
_DECLARED: Final = ("function_declarations", "functionDeclarations")
_NO_INSTRUCTIONS: Final = frozenset((HumanMessage, AIMessage, ToolMessage))


# (run, model, permitted provider tools) of the model call that the middleware has decided, while the call lasts.
_decided: ContextVar[tuple[Run, str, frozenset[str]] | None] = ContextVar(
    "langchain_runtime_authz.model_decided", default=None
)


@contextmanager
def decided_scope(run: Run, call: ModelCall, decision: Decision) -> Iterator[None]:
    """Mark a model call as decided inside the block. Raises `AuthzHalt` if denied."""
    if not decision.permit:
        raise AuthzHalt(decision.reason, decision.decision_id)
    previous = _decided.get()
    _decided.set((run, call.model, frozenset(call.provider_tools) - withheld(decision)[1]))
    try:
        yield
    finally:
        _decided.set(previous)


def tool_names(tool: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names in one entry of a model's tool list, as a pair.

    The first names are of the agent's tools, the second of provider tools. A provider tool declares no parameters for
    an agent: `{"google_search": {}}`, `{"type": "web_search"}`. An entry that is neither a tool, nor callable, nor a
    mapping counts as a provider tool.
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
            found += shown_by(inner, depth - 1)
    return found


def held_by_model(model: Any) -> list[Any]:
    """Return the tools in a model's own parameters, which no request can remove."""
    if isinstance(model, RunnableBinding):
        return [*shown_by(model.kwargs), *held_by_model(model.bound)]
    return shown_by({name: getattr(model, name, None) for name in (*_ACTS, *_NESTED)})


def _call(model: str, provider: str | None, tools: Sequence[Any], messages: Sequence[Any]) -> ModelCall:
    own: dict[str, None] = {}
    others: dict[str, None] = {}
    for tool in tools:
        for found, names in zip((own, others), tool_names(tool), strict=True):
            found.update(dict.fromkeys(names))
    return ModelCall(model, provider, tuple(own), tuple(others), instructions_digest(messages))


def instructions_digest(messages: Sequence[Any]) -> str | None:
    """Return the digest of all system messages, or `None` if there are none."""
    said = []
    for m in messages:
        if type(m) not in _NO_INSTRUCTIONS and isinstance(m, SystemMessage):
            said.append(m)
    if not said:
        return None
    return content_digest(said[0].content if len(said) == 1 else "\n\n".join(m.text for m in said))


def call_of_request(request: Any) -> ModelCall:
    model, provider = private.model_params(request.model)
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
    """Decide a model call that our middleware did not. Raises `AuthzHalt` if denied."""
    ready = _decided.get()
    if ready is not None and ready[:2] == (by, call.model) and ready[2].issuperset(call.provider_tools):
        return
    decision = yield from decide_model(by, call)
    if call.provider_tools:
        decision = shown(decision, call)
    if decision.outcome != "permit":
        raise AuthzHalt(decision.reason, decision.decision_id)
