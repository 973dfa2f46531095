"""Every private name of LangChain and LangGraph that this package leans on, and nothing else.

`tests/unit_tests/langgraph/test_private.py` pins each one, and says what moved when an upgrade breaks it.
Private *members* that the edges override or read (ToolNode's, BaseTool's) are listed in `OVERRIDDEN`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, Final, NamedTuple, TypeGuard

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks import manager as callback_manager
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.tools.base import (
    _get_runnable_config_param,
    _is_injected_arg_type,
    get_all_basemodel_annotations,
)
from langchain_core.utils.pydantic import get_fields, is_basemodel_subclass
from langgraph._internal._config import ensure_config as ensure_graph_config
from langgraph._internal._config import recast_checkpoint_ns
from langgraph._internal._constants import (
    CONFIG_KEY_CALL,
    CONFIG_KEY_CHECKPOINT_ID,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_RESUME_MAP,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_SEND,
    CONFIG_KEY_TASK_ID,
    INTERRUPT,
    NS_END,
    NS_SEP,
    RESUME,
)
from langgraph._internal._runnable import RunnableCallable, RunnableSeq, is_async_callable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.func import _TaskFunction
from langgraph.prebuilt.tool_node import ToolNode
from langgraph.pregel import Pregel, main
from langgraph.pregel._messages import StreamMessagesHandler
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._utils import is_xxh3_128_hexdigest
from langgraph.runtime import Runtime
from langgraph.types import Command, _interrupt_id

try:
    from langchain_core.decisions import BaseDecisionModel
except ImportError:  # before langchain-core 1.8 there are none
    MODELS: tuple[type, ...] = (BaseLanguageModel,)
else:
    MODELS = (BaseLanguageModel, BaseDecisionModel)

__all__ = [
    "DEFAULT_BOUND",
    "INTERRUPTS",
    "MODELS",
    "OVERRIDDEN",
    "BaseTool",
    "Place",
    "Pregel",
    "PregelNode",
    "RunnableCallable",
    "RunnableSeq",
    "StartingTool",
    "ToolNode",
    "agent_ns",
    "answer_given",
    "answers_left",
    "can_ask",
    "checkpointer_of",
    "config_parameter",
    "counted_graph",
    "counting_questions",
    "ensure_config",
    "ensure_graph_config",
    "graph_at",
    "imports_anything",
    "injected_names",
    "interrupt_id",
    "is_async_callable",
    "is_handed_down",
    "is_innermost",
    "is_of_task",
    "is_resume_map",
    "is_task",
    "is_task_function",
    "lent",
    "model_params",
    "namespace_of_graph",
    "namespaces_of_task",
    "node_of_task",
    "place_below",
    "reset_node",
    "skip_answers",
    "started_graph",
    "starting_graph",
    "starting_tool",
    "takes_no_arguments",
    "task_id",
    "with_outlets",
    "with_streams",
]

OVERRIDDEN: Final[Mapping[str, tuple[str, ...]]] = {
    "langgraph.prebuilt.ToolNode": (
        "_func",
        "_afunc",
        "_run_one",
        "_arun_one",
        "_execute_tool_sync",
        "_execute_tool_async",
        "_parse_input",
        "_extract_state",
        "_inject_tool_args",
        "_validate_tool_call",
        "_tools_by_name",
        "_injected_args",
        "_messages_key",
        "_wrap_tool_call",
        "_awrap_tool_call",
    ),
    "langchain_core.language_models.BaseChatModel": ("_get_ls_params",),
    "langchain_core.tools.BaseTool": ("_run", "_arun", "_parse_input", "_injected_args_keys"),
}


_INNERMOST: Final = (
    "ToolNode._run_one.<locals>.execute",
    "ToolNode._arun_one.<locals>.execute",
)
_GRAPHS_PER_TOOL: Final = 10_000
INTERRUPTS: Final = INTERRUPT  # the channel of a checkpoint's pending writes that holds questions


def can_ask(config: Mapping[str, Any]) -> bool:
    """Whether an interrupt raised under `config` can be answered: there is a checkpointer."""
    return bool((config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINTER))


def task_id(config: Mapping[str, Any]) -> str:
    """The Pregel task a node runs as; the same on every replay of the task. Empty outside one."""
    return str((config.get("configurable") or {}).get(CONFIG_KEY_TASK_ID) or "")


def is_handed_down(config: Mapping[str, Any]) -> bool:
    """Whether a graph is asked about its state by the graph above it, which lends it its checkpointer."""
    return CONFIG_KEY_CHECKPOINTER in (config.get("configurable") or {})


def lent(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpointer that the graph above lends, as it stands in a config."""
    configurable = config.get("configurable") or {}
    return {k: configurable[k] for k in (CONFIG_KEY_CHECKPOINTER,) if configurable.get(k)}


class Place(NamedTuple):
    """Where a graph keeps the state of a call: thread, namespace, and the checkpointer that is lent to it.

    `lasting`: it is found there again by the next call, not only by the same task's.
    """

    saver: BaseCheckpointSaver[Any]
    config: dict[str, Any]
    lasting: bool


def counted_graph(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """`config` for one graph, and the how manieth it is that its task calls, from 0.

    LangGraph counts when a graph starts, and each finds its checkpoints under its number.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return dict(config), 0
    number = scratchpad.subgraph_counter()
    own = dataclasses.replace(scratchpad, subgraph_counter=lambda: number)
    return {**config, "configurable": {**configurable, CONFIG_KEY_SCRATCHPAD: own}}, number


def place_below(graph: Any, config: Mapping[str, Any], number: int = 0) -> Place | None:
    """The place of a graph that is called by another one, as LangGraph chooses it; `None` where it keeps nothing.

    `number`: the how manieth graph of its task it is.
    """
    configurable = config.get("configurable") or {}
    borrowed = lent(config)
    saver = None if graph.checkpointer is False else borrowed.get(CONFIG_KEY_CHECKPOINTER, graph.checkpointer)
    if not isinstance(saver, BaseCheckpointSaver) or configurable.get("thread_id") is None:
        return None
    namespace = configurable.get(CONFIG_KEY_CHECKPOINT_NS, "") if is_task(config) else ""
    if graph.checkpointer is True:
        namespace = NS_SEP.join(part.split(NS_END)[0] for part in namespace.split(NS_SEP))
    namespace = namespace_of_graph(namespace, number) if is_task(config) else namespace
    place = {"thread_id": configurable["thread_id"], CONFIG_KEY_CHECKPOINT_NS: namespace, **borrowed}
    return Place(saver, {"configurable": place}, graph.checkpointer is True or not borrowed)


def graph_at(graph: Any, config: Any) -> Any:
    """Whose state a place of a root's thread holds: the root's, or that of a graph that is one of its nodes."""
    namespace = recast_checkpoint_ns(((config or {}).get("configurable") or {}).get(CONFIG_KEY_CHECKPOINT_NS) or "")
    found = graph.get_subgraphs(namespace=namespace, recurse=True) if namespace else ()
    return next((child for name, child in found if name == namespace), graph)


def namespaces_of_task(name: str, ident: str) -> tuple[str, str]:
    """Where the graphs that a root's task calls keep their state: for this task, and over all tasks of the node."""
    return f"{name}{NS_END}{ident}", name


def is_of_task(namespace: str) -> bool:
    """Whether a namespace is one task's."""
    return NS_END in namespace


def namespace_of_graph(namespace: str, number: int) -> str:
    """Where the graph keeps its state that is the `number`th, from 0, of those that one task calls."""
    return f"{namespace}{NS_SEP}{number}" if number else namespace


def is_resume_map(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether LangGraph takes a resume value as answers by interrupt id."""
    return isinstance(value, Mapping) and all(isinstance(k, str) and is_xxh3_128_hexdigest(k) for k in value)


def interrupt_id(config: Mapping[str, Any]) -> str:
    """The id that LangGraph will give the next interrupt raised by the task of `config`."""
    configurable = config.get("configurable") or {}
    ns = str(configurable.get(CONFIG_KEY_CHECKPOINT_NS) or "")
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    return _interrupt_id(ns, len(scratchpad.resume) if scratchpad is not None else 0)


def counting_questions(config: dict[str, Any], place: int | None = None) -> tuple[dict[str, Any], list[int]]:
    """`config` for one tool, and the numbers of the `interrupt` calls that the tool makes under it.

    `place` is the tool's among several of one task. LangGraph numbers the graphs that are called in a
    task as they come, and each finds its checkpoints under its number: so every tool counts its own,
    or the graph of one would go on with the state of another, whose tool ran before and does not now.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    asked: list[int] = []
    if scratchpad is None:
        return config, asked

    def counted() -> int:
        number: int = scratchpad.interrupt_counter()
        asked.append(number)
        return number

    graphs = scratchpad.subgraph_counter
    if place is not None:
        graphs = itertools.count(place * _GRAPHS_PER_TOOL).__next__
    own = dataclasses.replace(scratchpad, interrupt_counter=counted, subgraph_counter=graphs)
    return {**config, "configurable": {**configurable, CONFIG_KEY_SCRATCHPAD: own}}, asked


def answer_given(config: Mapping[str, Any]) -> object:
    """What the invocation around a task was resumed with, as any of its tasks sees it; `None` if with nothing.

    The plain value, or the map from interrupt ids.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return None
    return configurable.get(CONFIG_KEY_RESUME_MAP) or scratchpad.get_null_resume(False)


def agent_ns(config: Mapping[str, Any]) -> str:
    """The namespace of the graph whose task runs under `config`; empty for a root graph."""
    ns = str((config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINT_NS) or "")
    return ns.rpartition("|")[0]


def checkpointer_of(config: Mapping[str, Any]) -> Any:
    """Where the graph whose task runs under `config` keeps its checkpoints, if it does."""
    return (config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINTER)


def is_innermost(handler: object) -> bool:
    """Whether the handler that a `wrap_tool_call` was given is the tool node's own: no other wrapper comes after it."""
    return getattr(handler, "__qualname__", "") in _INNERMOST


def with_outlets(
    config: dict[str, Any],
    store: Callable[[Any], Any],
    writer: Callable[[Any], Any],
    writes: Callable[[Any], Any],
    task: Callable[[Any], Any],
) -> dict[str, Any]:
    """`config` for one tool, with another store and stream writer, and its state writes and functions of tasks changed."""
    own = dict(config.get("configurable") or {})
    if isinstance(runtime := own.get(CONFIG_KEY_RUNTIME), Runtime):
        own[CONFIG_KEY_RUNTIME] = runtime.override(
            store=store(runtime.store), stream_writer=writer(runtime.stream_writer)
        )
    if callable(send := own.get(CONFIG_KEY_SEND)):  # `push_message` and `push_ui_message` write to the state by it
        own[CONFIG_KEY_SEND] = lambda given: send(writes(given))
    if callable(call := own.get(CONFIG_KEY_CALL)):
        own[CONFIG_KEY_CALL] = lambda function, *args, **options: call(task(function), *args, **options)
    return {**config, "configurable": own}


def with_streams(callbacks: Any, clean: Callable[[Any], Any]) -> Any:
    """`callbacks` for one tool, whose parts for LangGraph's stream modes `messages` and `tools` stream what is `clean`.

    Copies: they share what they know of runs with those that they stand for.
    """
    if isinstance(callbacks, list):
        return [_with_stream(handler, clean) for handler in callbacks]
    if not isinstance(callbacks, BaseCallbackManager) or not any(isinstance(h, _STREAMING) for h in callbacks.handlers):
        return callbacks
    own = callbacks.copy()
    own.handlers = with_streams(own.handlers, clean)
    own.inheritable_handlers = with_streams(own.inheritable_handlers, clean)
    return own


def _with_stream(handler: Any, clean: Callable[[Any], Any]) -> Any:
    if not isinstance(handler, _STREAMING):
        return handler
    own, stream = copy.copy(handler), handler.stream
    own.stream = lambda chunk: stream(clean(chunk))
    return own


# The second is where a running tool's `emit_output_delta` writes; older versions have none.
_STREAMING: Final = (StreamMessagesHandler, *filter(None, (getattr(main, "StreamToolCallHandler", None),)))


def answers_left(config: Mapping[str, Any], taken: int) -> bool:
    """Whether the task of `config` has answers beyond the first `taken`: they are for its later questions."""
    scratchpad = (config.get("configurable") or {}).get(CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return False
    return len(scratchpad.resume) > taken or scratchpad.get_null_resume(False) is not None


def skip_answers(config: Mapping[str, Any], count: int) -> None:
    """Take the answers that a tool had which does not run again.

    LangGraph gives a task's answers out by number: else the next tool that asks would receive them.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None or not scratchpad.resume:
        return
    for _ in range(count):
        number = scratchpad.interrupt_counter()
        if number < len(scratchpad.resume):
            configurable[CONFIG_KEY_SEND]([(RESUME, scratchpad.resume[: number + 1])])


def injected_names(tool: BaseTool) -> frozenset[str]:
    """Arguments that the framework supplies and the model does not: left out of a decision."""
    names = set(tool._injected_args_keys)
    schema = tool.args_schema
    if schema is not None and not isinstance(schema, dict):
        annotations = get_all_basemodel_annotations(schema)
        names.update(n for n, kind in annotations.items() if _is_injected_arg_type(kind))
    return frozenset(names) | _overwritten(tool)


def _overwritten(tool: BaseTool) -> frozenset[str]:
    """Arguments in whose place `BaseTool` always puts its own: the tool's code never sees the model's."""
    bodies = [tool._run] if type(tool)._arun is BaseTool._arun else [tool._run, tool._arun]
    return frozenset.intersection(*(_own_parameters(b) for b in bodies))


def _own_parameters(body: Callable[..., Any]) -> frozenset[str]:
    own = ("run_manager", _get_runnable_config_param(body))
    return frozenset(name for name in own if name is not None and name in inspect.signature(body).parameters)


class StartingTool(NamedTuple):
    """A tool whose start is being announced to callbacks, and what it was sent."""

    tool: BaseTool
    tool_input: Any
    config: Any
    call_id: str | None


def starting_tool() -> StartingTool | None:
    """The tool that announces its start to the `on_tool_start` from which this is called.

    LangChain tells a callback a tool's name and no more. The tool stands in the frame that called the
    callback manager: `BaseTool.run` or `arun`. `None` where it was announced by other code.
    """
    frame = _announcing()
    if frame is None or frame.f_code not in _RUNS:
        return None
    local = frame.f_locals
    return StartingTool(local["self"], local["tool_input"], local["config"], local["tool_call_id"])


def starting_graph() -> Pregel[Any, Any, Any, Any] | None:
    """The graph that announces its start to the `on_chain_start` from which this is called, likewise."""
    frame = _announcing()
    return frame.f_locals["self"] if frame is not None and frame.f_code in _STREAMS else None


def started_graph() -> tuple[Pregel[Any, Any, Any, Any], Any, str | None, str | None] | None:
    """The graph for which callbacks are set up by the code that called our caller, and what it is resumed with, if it is.

    With the thread and the id of the checkpoint that the call names, if any. `None` for what is no graph.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None or frame.f_code in _STREAMS:
            break
        frame = frame.f_back
    if frame is None or frame.f_code not in _STREAMS:
        return None
    given, config = frame.f_locals.get("input"), frame.f_locals.get("config") or {}
    value = given.resume if isinstance(given, Command) else None
    configurable = config.get("configurable") or {}
    return frame.f_locals["self"], value, configurable.get("thread_id"), configurable.get(CONFIG_KEY_CHECKPOINT_ID)


def _announcing() -> FrameType | None:
    """The frame that called the callback manager which called the handler that called our caller."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_code.co_filename == _MANAGER:
        frame = frame.f_back
    return frame


_FRAMES: Final = 6  # between a graph's start and the look at the hooks
_STREAMS: Final = (Pregel.stream.__code__, Pregel.astream.__code__)
_MANAGER: Final = callback_manager.__file__
_RUNS: Final = (BaseTool.run.__code__, BaseTool.arun.__code__)


def config_parameter(function: Callable[..., Any]) -> str | None:
    """The name of the parameter that a tool's code is given its config under."""
    return _get_runnable_config_param(function)


def takes_no_arguments(tool: BaseTool) -> bool:
    """`BaseTool` calls such a tool with nothing, whatever it was sent, and parses nothing."""
    return isinstance(tool.args_schema, type) and _is_empty_type(tool.args_schema)


@lru_cache(maxsize=4096)
def _is_empty_type(schema: type) -> bool:
    return is_basemodel_subclass(schema) and not get_fields(schema)


def model_params(model: Any) -> tuple[str, str | None]:
    """Name and provider of a chat model, as LangChain itself gives them to a call's metadata."""
    bound = model.bound if isinstance(model, RunnableBinding) else model
    named = bound._get_ls_params() if isinstance(bound, BaseChatModel) else {}
    provider = named.get("ls_provider")
    return str(named.get("ls_model_name") or type(bound).__name__), provider if isinstance(provider, str) else None


def reset_node(node: PregelNode) -> None:
    """Forget what a node cached about its bound, after the bound was replaced."""
    node.__dict__.pop("node", None)


def is_task_function(value: object) -> bool:
    """Whether it is a `@task` of the functional API; its function is `func`."""
    return isinstance(value, _TaskFunction)


def imports_anything(serde: object) -> bool:
    """Whether a serializer of LangGraph imports and calls whatever its data names (its permissive default)."""
    return isinstance(serde, JsonPlusSerializer) and serde._allowed_msgpack_modules is True


def is_task(config: Mapping[str, Any]) -> bool:
    """Whether a caller's config is that of a running task: then a graph streams `values`."""
    return CONFIG_KEY_TASK_ID in (config.get("configurable") or {})


def node_of_task(config: Mapping[str, Any]) -> str:
    """The node whose task runs under `config`, as LangGraph itself wrote it; empty outside one."""
    ns = str((config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINT_NS) or "")
    return ns.rsplit("|", 1)[-1].split(":", 1)[0]
