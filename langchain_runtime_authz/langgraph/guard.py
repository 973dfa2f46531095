"""The state of a guarded tool. `tool_guard` makes guarded tools."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from langchain_core.tools import BaseTool

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph._private import injected_names
from langchain_runtime_authz.langgraph.tool_profiles import Profiles, ToolFacts

__all__ = ["FUNCTIONS", "GUARDED", "Guard", "facts_of", "guard_of", "is_guarded"]

FUNCTIONS: Final = ("func", "coroutine")
GUARDED: Final = "__runtime_authz_guarded__"  # of a guarded class: the class that it was made of
Wrap = Callable[[BaseTool, "Guard", Callable[..., Any], str], Callable[..., Any]]


class Guard:
    """The source of a guarded tool's profile, and the wrapper of its functions (`wrap`). Copies share it."""

    __slots__ = ("functions", "profiles", "seen", "stock", "wrap")

    def __init__(self, profiles: Profiles, tool: BaseTool, wrap: Wrap) -> None:
        self.profiles, self.wrap = profiles, wrap
        self.functions = _functions(tool)
        self.stock = (
            type(tool).run is BaseTool.run and type(tool).arun is BaseTool.arun
        )  # nothing runs before its start
        self.seen: tuple[tuple[object, ...], ToolFacts] | None = None

    def facts(self, tool: BaseTool) -> ToolFacts:
        """Return the tool's profile and injected arguments, as it is now."""
        # Identity of what a digest is made of: a tool that is changed at run time is looked at anew.
        held, declared = tool.__dict__, self.profiles.declared
        own = (tool.name, tool.description, tool.args_schema, tool.metadata)
        key = (*own, declared, held.get("func"), held.get("coroutine"))
        if self.seen is not None and all(map(operator.is_, self.seen[0], key)):
            return self.seen[1]
        profiled = self.profiles.of(tool)
        if profiled.declared and _functions(tool) != self.functions:
            profiled = self.profiles.unprofiled(tool, "its function was replaced")
        for function in FUNCTIONS:
            raw = held.get(function)
            if callable(raw) and not hasattr(raw, "__runtime_authz_of__"):
                held[function] = self.wrap(tool, self, raw, function)
        key = (*key[:-2], held.get("func"), held.get("coroutine"))
        found = ToolFacts(profiled, injected_names(tool))
        self.seen = (key, found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return self


def is_guarded(tool: object) -> bool:
    """Return True for a guarded tool."""
    return getattr(type(tool), GUARDED, None) is not None


def facts_of(tool: BaseTool) -> ToolFacts:
    """Return what is known of a guarded tool as it is now."""
    return guard_of(tool).facts(tool)


def guard_of(tool: BaseTool) -> Guard:
    """Return the guard of a guarded tool.

    A tool that the class of a guarded tool made anew, of its fields (LangChain's `configurable_fields` does that), has
    the guard of its functions: they are decided ones still.

    Raises:
        ConfigError: it was made of something else.
    """
    guard: Guard | None = (tool.__pydantic_private__ or {}).get("_authz_guard")
    if guard is None:
        held = (getattr(tool.__dict__.get(name), "__runtime_authz_guard__", None) for name in FUNCTIONS)
        guard = next((g for g in held if g is not None), None)
    if guard is None:
        msg = f"tool `{tool.name}` was made by the class of a guarded tool; `authz.guard` it"
        raise ConfigError(msg)
    return guard


def _functions(tool: BaseTool) -> tuple[object, object]:
    """Return the functions that a tool was made of, without ours around them."""
    held = tool.__dict__
    func, coroutine = held.get("func"), held.get("coroutine")
    return getattr(func, "__runtime_authz_of__", func), getattr(coroutine, "__runtime_authz_of__", coroutine)
