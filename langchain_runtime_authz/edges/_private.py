"""Every private name of LangChain and LangGraph that this package leans on, and nothing else.

`tests/unit_tests/test_private_names.py` pins each one, and says what moved when an upgrade breaks it.
Private *methods* that are overridden (ToolNode's, BaseTool's) are listed in `OVERRIDDEN`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.tools.base import (
    _get_runnable_config_param,
    _is_injected_arg_type,
    get_all_basemodel_annotations,
)
from langchain_core.utils.pydantic import get_fields, is_basemodel_subclass
from langgraph._internal._config import ensure_config as ensure_graph_config
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_SEND,
    CONFIG_KEY_TASK_ID,
    RESUME,
)
from langgraph._internal._runnable import RunnableCallable, RunnableSeq
from langgraph.prebuilt.tool_node import ToolNode
from langgraph.pregel import Pregel
from langgraph.pregel._read import DEFAULT_BOUND, PregelNode
from langgraph.pregel._utils import get_function_nonlocals
from langgraph.types import _interrupt_id

__all__ = [
    "DEFAULT_BOUND",
    "OVERRIDDEN",
    "BaseTool",
    "Pregel",
    "PregelNode",
    "RunnableCallable",
    "RunnableSeq",
    "ToolNode",
    "answers_left",
    "can_ask",
    "closure_values",
    "counting_questions",
    "ensure_config",
    "ensure_graph_config",
    "injected_names",
    "interrupt_id",
    "is_task",
    "node_of_task",
    "reset_node",
    "skip_answers",
    "takes_no_arguments",
    "task_id",
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
    ),
    "langchain_core.tools.BaseTool": ("_run", "_arun", "_parse_input", "_injected_args_keys"),
}


def can_ask(config: Mapping[str, Any]) -> bool:
    """Whether an interrupt raised under `config` can be answered: there is a checkpointer."""
    return bool((config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINTER))


def task_id(config: Mapping[str, Any]) -> str:
    """The Pregel task a node runs as; the same on every replay of the task. Empty outside one."""
    return str((config.get("configurable") or {}).get(CONFIG_KEY_TASK_ID) or "")


def interrupt_id(config: Mapping[str, Any]) -> str:
    """The id that LangGraph will give the next interrupt raised by the task of `config`."""
    configurable = config.get("configurable") or {}
    ns = str(configurable.get(CONFIG_KEY_CHECKPOINT_NS) or "")
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    return _interrupt_id(ns, len(scratchpad.resume) if scratchpad is not None else 0)


def counting_questions(config: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """`config` for one tool, and the numbers of the `interrupt` calls that the tool makes under it."""
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(CONFIG_KEY_SCRATCHPAD)
    asked: list[int] = []
    if scratchpad is None:
        return config, asked

    def counted() -> int:
        number: int = scratchpad.interrupt_counter()
        asked.append(number)
        return number

    own = dataclasses.replace(scratchpad, interrupt_counter=counted)
    return {**config, "configurable": {**configurable, CONFIG_KEY_SCRATCHPAD: own}}, asked


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


def takes_no_arguments(tool: BaseTool) -> bool:
    """`BaseTool` calls such a tool with nothing, whatever it was sent, and parses nothing."""
    schema = tool.args_schema
    return isinstance(schema, type) and is_basemodel_subclass(schema) and not get_fields(schema)


def reset_node(node: PregelNode) -> None:
    """Forget what a node cached about its bound, after the bound was replaced."""
    node.__dict__.pop("node", None)


def closure_values(function: object) -> Iterator[Any]:
    """What a function's closure and globals mention: graphs hide there."""
    inner = getattr(function, "__wrapped__", function)
    if callable(inner) and hasattr(inner, "__code__"):
        for value in get_function_nonlocals(inner):
            yield getattr(value, "__self__", value)


def is_task(config: Mapping[str, Any]) -> bool:
    """Whether a caller's config is that of a running task: then a graph streams `values`."""
    return CONFIG_KEY_TASK_ID in (config.get("configurable") or {})


def node_of_task(config: Mapping[str, Any]) -> str:
    """The node whose task runs under `config`, as LangGraph itself wrote it; empty outside one."""
    ns = str((config.get("configurable") or {}).get(CONFIG_KEY_CHECKPOINT_NS) or "")
    return ns.rsplit("|", 1)[-1].split(":", 1)[0]
