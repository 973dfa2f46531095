"""Wrap the private names of LangChain and LangGraph that the package uses.

`tests/unit_tests/langgraph/test_private_api.py` pins each name, and the private *members* that the package overrides or
reads. So the test fails if an upgrade changes one of them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import operator
import secrets
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, FunctionType
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks import manager as callback_manager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import CONFIG_KEYS, ensure_config, var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.tools.base import _get_runnable_config_param as config_parameter
from langchain_core.tools.base import _is_injected_arg_type, get_all_basemodel_annotations
from langchain_core.utils.pydantic import get_fields, is_basemodel_subclass
from langgraph._internal import _constants as keys
from langgraph._internal._config import ensure_config as ensure_graph_config
from langgraph._internal._config import recast_checkpoint_ns
from langgraph._internal._fields import get_update_as_tuples
from langgraph._internal._runnable import RunnableCallable, RunnableSeq, is_async_callable
from langgraph._internal._scratchpad import PregelScratchpad
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.constants import START
from langgraph.func import _TaskFunction as TaskFunction
from langgraph.graph.message import add_messages
from langgraph.graph.state import _CHANNEL_BRANCH_TO
from langgraph.prebuilt.tool_node import ToolNode
from langgraph.pregel import Pregel, _loop
from langgraph.pregel._messages import StreamMessagesHandler
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._tools import StreamToolCallHandler
from langgraph.pregel._utils import is_xxh3_128_hexdigest
from langgraph.types import Command, _interrupt_id

T = TypeVar("T")


def weakly_cached(look: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache `look`'s result for each class or function, as long as that exists.

    A result that is a class is cached only while it is in use. A subclass would keep its base class alive.
    """
    found: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(look)
    def remembered(thing: Any) -> T:
        if not isinstance(thing, (type, FunctionType)):
            return look(thing)
        try:
            known = found[thing]
            known = known() if known.__class__ is weakref.ref else known
        except KeyError:
            known = None
        if known is None:
            known = look(thing)
            found[thing] = weakref.ref(known) if isinstance(known, type) else known
        return known  # type: ignore[no-any-return]

    return remembered


def subclass_like(base: Any, members: Mapping[str, Any], *before: type) -> Any:
    """Derive a class from `before` and `base`, with the name and docs of `base`."""
    shown = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(base)
    return metaclass(base.__name__, (*before, base), {**shown, **members})


def appending_reducer(channel: object) -> Callable[[Any, Any], Any] | None:
    """Return the reducer of a channel that appends messages to its list, or None."""
    reducer = getattr(channel, "operator", None)
    if getattr(reducer, "func", reducer) in (add_messages, operator.add):
        return reducer
    batched: Any = getattr(channel, "reducer", None)  # a `DeltaChannel` reduces several writes at once
    if getattr(batched, "__name__", "") == "_messages_delta_reducer":  # LangGraph's, and deepagents' own
        return lambda before, new: batched(before, [new])
    return None


def has_waiting_nodes(values: Mapping[str, Any]) -> bool:
    """Return True if a checkpoint's channel values trigger a node or hold a `Send`."""
    return bool(values.get(keys.TASKS)) or any(name.startswith(_CHANNEL_BRANCH_TO.format("")) for name in values)


def state_update(graph: Any, given: Any) -> Any:
    """Return the update that a root input means, if it is a state object."""
    builder = getattr(graph, "builder", None)
    if builder is None or isinstance(given, dict) or type(given) not in builder.schemas:
        return given
    return dict(get_update_as_tuples(given, [*builder.schemas[builder.input_schema]]))


def hides_messages(graph: Any) -> bool:
    """Return True if a graph's state has `messages`, and its input schema lacks them."""
    builder = getattr(graph, "builder", None)
    return builder is not None and "messages" in graph.channels.keys() - builder.schemas[builder.input_schema].keys()


def with_hidden_messages(graph: Any, given: Any, messages: Any) -> tuple[Any, Any]:
    """Return graph and input that also write `messages` to the state."""
    graph = copy.copy(graph)
    graph.input_channels = [START, "messages"]
    return graph, {START: given, "messages": messages}


__all__ = ["DEFAULT_BOUND", "BaseTool", "Pregel", "PregelNode", "PregelScratchpad", "RunnableCallable", "RunnableSeq", "TaskFunction",
           "ToolNode", "config_parameter", "ensure_config", "ensure_graph_config", "is_async_callable", "keys"]  # fmt: skip


class _Stored:
    """A finished future, for `durability="sync"` in graphs that store no checkpoint."""

    def result(self) -> None:
        return None

    def __await__(self) -> Iterator[None]:
        return iter(())


# RULE: a graph with `checkpointer=False` inherits the durability of a protected graph, and must still work.
for _class in (_loop.SyncPregelLoop, _loop.AsyncPregelLoop):
    _class._put_checkpoint_fut = _Stored()  # type: ignore[assignment]


def merged_config(bound: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Merge configs as LangGraph does. If nothing must be merged, return `config`."""
    if not bound and not var_child_runnable_config.get() and (config or {}).keys() <= _CONFIG_KEYS:
        return config or {}
    return ensure_graph_config(bound, config)  # type: ignore[arg-type]


_CONFIG_KEYS: Final = frozenset(CONFIG_KEYS)


def _given(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("configurable") or {}


def _ns(config: Mapping[str, Any]) -> str:
    return str(_given(config).get(keys.CONFIG_KEY_CHECKPOINT_NS) or "")


def task_id(config: Mapping[str, Any]) -> str:
    """Return the task's id, which a replay keeps; "" outside tasks."""
    return str((config.get("configurable") or {}).get(keys.CONFIG_KEY_TASK_ID) or "")


def superstep_id(config: Mapping[str, Any]) -> str | None:
    """Return an id that the tasks of one superstep share, and a retry does not."""
    futures: Any = getattr(_given(config).get(keys.CONFIG_KEY_CALL), "keywords", {}).get("futures")
    together = futures() if futures is not None else None
    return vars(together).setdefault("runtime_authz", secrets.token_hex(16)) if together is not None else None


def resumes_strictly(config: Mapping[str, Any]) -> bool:
    """Return True if LangGraph refuses answers to questions that are not open."""
    return bool(_given(config).get(keys.CONFIG_KEY_STRICT_RESUME))


def lent_checkpointer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of `configurable` that passes a task's checkpointer to graphs."""
    return {keys.CONFIG_KEY_CHECKPOINTER: saver} if (saver := checkpointer_of(config)) else {}


def with_sync_durability(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the durability `sync`, unless the caller chose another one.

    LangGraph then stores each checkpoint before the next step. Otherwise, a graph that continues after a crash could
    plan and pay again, or miss an edit by `update_state`.
    """
    return {**config, "configurable": {keys.CONFIG_KEY_DURABILITY: "sync", **_given(config)}}


class StatePlace(NamedTuple):
    """The location of a graph's state: the saver, and the config to read it with."""

    saver: BaseCheckpointSaver[Any]
    config: dict[str, Any]
    lasting: bool  # a graph in a later task loads this state too


def counted_graph(config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a config for one subgraph call, and the call's index in its task."""
    configurable = _given(config)
    scratchpad = configurable.get(keys.CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return dict(config), 0
    number = scratchpad.subgraph_counter()
    own = dataclasses.replace(scratchpad, subgraph_counter=lambda: number)
    return {**config, "configurable": {**configurable, keys.CONFIG_KEY_SCRATCHPAD: own}}, number


def place_below(graph: Any, config: Mapping[str, Any], number: int = 0) -> StatePlace | None:
    """Return where a called graph's state is stored; None if it is not."""
    configurable = _given(config)
    borrowed = lent_checkpointer(config)
    saver = None if graph.checkpointer is False else borrowed.get(keys.CONFIG_KEY_CHECKPOINTER, graph.checkpointer)
    if not isinstance(saver, BaseCheckpointSaver) or configurable.get("thread_id") is None:
        return None
    namespace = _ns(config) if task_id(config) else ""
    if graph.checkpointer is True:
        namespace = keys.NS_SEP.join(part.split(keys.NS_END)[0] for part in namespace.split(keys.NS_SEP))
    namespace = namespace_of_graph(namespace, number) if task_id(config) else namespace
    place = {"thread_id": configurable["thread_id"], keys.CONFIG_KEY_CHECKPOINT_NS: namespace, **borrowed}
    return StatePlace(saver, {"configurable": place}, graph.checkpointer is True or not borrowed)


def graph_at(graph: Any, config: Any) -> Any:
    """Return the graph whose state a config names: the root or a subgraph node."""
    namespace = recast_checkpoint_ns(_ns(config or {}))
    found = graph.get_subgraphs(namespace=namespace, recurse=True) if namespace else ()
    return next((child for name, child in found if name == namespace), graph)


def namespace_of_graph(namespace: str, number: int) -> str:
    """Return the namespace of a task's subgraph call with this zero-based index."""
    return f"{namespace}{keys.NS_SEP}{number}" if number else namespace


def is_resume_map(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return True if LangGraph treats a resume value as answers by interrupt id."""
    return isinstance(value, Mapping) and all(isinstance(k, str) and is_xxh3_128_hexdigest(k) for k in value)


def interrupt_id(config: Mapping[str, Any], number: int | None = None) -> str:
    """Return the id of the task's interrupt with this index, by default the next."""
    if number is None:
        number = len(scratchpad.resume) if (scratchpad := scratchpad_of(config)) is not None else 0
    return _interrupt_id(_ns(config), number)


def number_of(config: Mapping[str, Any], interrupt: str) -> int | None:
    """Return the index of the task's answer to the interrupt with this id, or None."""
    answers = scratchpad.resume if (scratchpad := scratchpad_of(config)) is not None else ()
    return next((n for n in range(len(answers)) if interrupt_id(config, n) == interrupt), None)


def next_number(config: Mapping[str, Any]) -> int:
    """Return the index of the task's next interrupt by LangGraph's own counter."""
    count = getattr(getattr(scratchpad_of(config), "interrupt_counter", None), "_counter", None)
    return int(repr(count.__self__)[len("count(") : -1]) if count is not None else 0  # calling it would count up


PAD: Final = tuple(f.name for f in dataclasses.fields(PregelScratchpad))
of_pad: Final = operator.attrgetter(*PAD)


def answer_given(config: Mapping[str, Any]) -> object:
    """Return the invocation's resume value, or None. It may be a map by interrupt id."""
    return _given(config).get(keys.CONFIG_KEY_RESUME_MAP) or unused_answer(config)


def with_answers(config: Mapping[str, Any], answers: Mapping[str, object]) -> dict[str, Any]:
    """Return a config that resumes with only these answers (by interrupt id)."""
    return {**config, "configurable": {**_given(config), keys.CONFIG_KEY_RESUME_MAP: answers}}


def answered_by_first_id(config: Mapping[str, Any]) -> bool:
    """Return True if a task's newest answer came under the id of its first question."""
    named, last = _given(config).get(keys.CONFIG_KEY_RESUME_MAP) or {}, len(scratchpad_of(config).resume) - 1
    return last > 0 and interrupt_id(config, 0) in named and interrupt_id(config, last) not in named


def unused_answer(config: Mapping[str, Any]) -> object:
    """Return the resume value without ids, if no question has used it, or None."""
    # LangGraph's `get_null_resume(False)` also returns a used value.
    pad, value = scratchpad_of(config), None
    while pad is not None and (value := pad.get_null_resume(False)) is not None:
        held = inspect.getclosurevars(pad.get_null_resume).nonlocals
        if (write := held["null_resume_write"]) is not None:
            return value if any(w is write for w in held["pending_writes"]) else None
        pad = held["parent_scratchpad"]
    return value


def agent_ns(config: Mapping[str, Any]) -> str:
    """Return the checkpoint namespace of the graph around a task."""
    return _ns(config).rpartition("|")[0]


def checkpointer_of(config: Mapping[str, Any]) -> Any:
    """Return a task's checkpointer. Without one, a question cannot be asked."""
    return _given(config).get(keys.CONFIG_KEY_CHECKPOINTER)


def with_streams(callbacks: Any, clean: Callable[[Any], Any]) -> Any:
    """Return callbacks for one tool, whose streamed chunks `clean` filters."""
    if isinstance(callbacks, list):
        return [with_streams(handler, clean) for handler in callbacks]
    if isinstance(callbacks, BaseCallbackManager) and any(isinstance(h, _STREAMING) for h in callbacks.handlers):
        callbacks = callbacks.copy()
        for name in ("handlers", "inheritable_handlers"):
            setattr(callbacks, name, with_streams(getattr(callbacks, name), clean))
    elif isinstance(callbacks, _STREAMING):
        stream, callbacks = callbacks.stream, copy.copy(callbacks)
        callbacks.stream = lambda chunk: stream(clean(chunk))
    return callbacks


_STREAMING: Final = (StreamMessagesHandler, StreamToolCallHandler)  # a tool's `emit_output_delta` writes to the second


def scratchpad_of(config: Mapping[str, Any]) -> Any:
    """Return a task's scratchpad, which counts its questions; None outside tasks."""
    return _given(config).get(keys.CONFIG_KEY_SCRATCHPAD)


def thread_of(config: Mapping[str, Any]) -> Any:
    """Return the thread id in a config, or None."""
    return _given(config).get("thread_id")


def take_plain_answer(config: Mapping[str, Any]) -> object:
    """Return a resume value without ids, which LangGraph would give to any question."""
    return pad.get_null_resume(True) if (pad := scratchpad_of(config)) is not None else None


def keep_answers(config: Mapping[str, Any], *, passed: bool) -> None:
    """Store a task's answers. `passed`: the next interrupt gets none of them."""
    pad = scratchpad_of(config)
    while passed and next_number(config) < len(pad.resume):
        pad.interrupt_counter()
    if pad.resume:
        store_answers(config, [*pad.resume])


def store_answers(config: Mapping[str, Any], answers: list[Any]) -> None:
    """Store a task's answers in its checkpoint, in the order of their numbers."""
    _given(config)[keys.CONFIG_KEY_SEND]([(keys.RESUME, answers)])


def injected_names(tool: BaseTool) -> frozenset[str]:
    """Return the arguments that the framework supplies, which a decision ignores."""
    schema = tool.args_schema
    injected = _injected_by_types(schema) if isinstance(schema, type) else frozenset()
    return tool._injected_args_keys | injected | _overwritten(type(tool))


@weakly_cached
def _injected_by_types(schema: type) -> frozenset[str]:
    kinds = get_all_basemodel_annotations(schema)
    return frozenset(name for name, kind in kinds.items() if _is_injected_arg_type(kind))


@weakly_cached
def _overwritten(kind: type[BaseTool]) -> frozenset[str]:
    """Return the arguments that `BaseTool` always replaces."""
    bodies = [kind._run] if kind._arun is BaseTool._arun else [kind._run, kind._arun]
    replaced = [{"run_manager", config_parameter(b)} & inspect.signature(b).parameters.keys() for b in bodies]
    return frozenset[str]().union(set.intersection(*replaced))  # type: ignore[arg-type]


def starting_tool() -> tuple[BaseTool, Any, Any, str | None] | None:
    """Return the starting tool, its input, config and call id; None if unknown."""
    frame = _announcing()
    if frame is None or frame.f_code not in _RUNS:
        return None
    local = frame.f_locals
    return local["self"], local["tool_input"], local["config"], local["tool_call_id"]


def starting_graph() -> Pregel[Any, Any, Any, Any] | None:
    """Return the graph whose start a callback reports now, or None."""
    frame = _announcing()
    return frame.f_locals["self"] if frame is not None and frame.f_code in _STREAMS else None


def started_graph() -> tuple[Pregel[Any, Any, Any, Any], Any, str | None, str | None] | None:
    """Return the starting graph, its resume value, thread id and checkpoint id."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is not None and frame.f_code not in _STREAMS:
            frame = frame.f_back
    if frame is None or frame.f_code not in _STREAMS:
        return None
    given, config = frame.f_locals.get("input"), frame.f_locals.get("config") or {}
    value = given.resume if isinstance(given, Command) else None
    configurable = _given(config)
    return frame.f_locals["self"], value, configurable.get("thread_id"), configurable.get(keys.CONFIG_KEY_CHECKPOINT_ID)


def _announcing() -> FrameType | None:
    """Return the frame that called the callback manager."""
    frame: FrameType | None = sys._getframe(3)
    for inside in (False, True):
        while frame is not None and (frame.f_code.co_filename == _MANAGER) is inside:
            frame = frame.f_back
    return frame


_FRAMES: Final = 6  # number of frames between a graph's start and the read of the hooks
_STREAMS: Final = (Pregel.stream.__code__, Pregel.astream.__code__)
_MANAGER: Final = callback_manager.__file__
CALLBACK_LOGGER: Final = callback_manager.__name__
AWAITS_HANDLER: Final = callback_manager._ahandle_event_for_handler.__code__  # receives a handler's method
_RUNS: Final = (BaseTool.run.__code__, BaseTool.arun.__code__)


def takes_no_arguments(schema: type) -> bool:
    """Return True if `BaseTool` drops all arguments for a tool of this schema."""
    return is_basemodel_subclass(schema) and not get_fields(schema)


def model_params(model: Any) -> tuple[str, str | None]:
    """Return the name of a model, and of its provider or None."""
    bound = model.bound if isinstance(model, RunnableBinding) else model
    named = bound._get_ls_params() if isinstance(bound, BaseChatModel) else {}
    provider = named.get("ls_provider")
    return str(named.get("ls_model_name") or type(bound).__name__), provider if isinstance(provider, str) else None


def reset_node(node: PregelNode) -> None:
    """Clear a node's cache after its bound runnable was replaced."""
    node.__dict__.pop("node", None)


def imports_anything(serde: object) -> bool:
    """Return True if a serializer may import and call any name, as LangGraph's may."""
    return isinstance(serde, JsonPlusSerializer) and serde._allowed_msgpack_modules is True


def is_sent(config: Mapping[str, Any]) -> bool:
    """Return True if a `Send` started the task. Callers cannot forge this."""
    path = (config.get("metadata") or {}).get("langgraph_path")
    return bool(task_id(config)) and isinstance(path, tuple) and path[:1] == (keys.PUSH,)


def node_of_task(config: Mapping[str, Any]) -> str:
    """Return the name of a task's node."""
    return _ns(config).rsplit("|", 1)[-1].split(":", 1)[0]
