"""Keep a guarded tool's profile, and look it up again if the tool changes."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from langchain_core.tools import BaseTool

from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph import tool_lookup
from langchain_runtime_authz.langgraph.private_api import injected_names
from langchain_runtime_authz.langgraph.tool_lookup import FUNCTIONS, Profiles, functions_held
from langchain_runtime_authz.tool_profile import as_unprofiled


def is_guarded(tool: object) -> bool:
    """Return True if a tool is guarded in every call, not only inside runs."""
    return getattr(type(tool), tool_lookup.GUARDED, None) is not None


class ToolFacts(NamedTuple):
    """A tool's profile and its injected arguments. Valid until the tool changes."""

    profiled: tool_lookup.ProfiledTool
    injected: frozenset[str]


class ToolGuard:
    """A guarded tool's profile and wrapped functions, shared by the tool's copies."""

    __slots__ = ("by_application", "functions", "profiles", "seen", "stock", "wrap")

    def __init__(self, profiles: Profiles, tool: BaseTool, wrap: Callable[..., Any] | None) -> None:
        self.by_application = False  # the application's code calls the tool: `RuntimeAuthz.effect`
        self.profiles, self.wrap = profiles, wrap
        self.functions = functions_held(tool)
        kind = getattr(type(tool), tool_lookup.IN_PLACE, type(tool))
        self.stock = kind.run is BaseTool.run and kind.arun is BaseTool.arun  # `run` is LangChain's own
        self.seen: tuple[tuple[object, ...], ToolFacts] | None = None

    def facts(self, tool: BaseTool) -> ToolFacts:
        """Return the tool's present profile and injected arguments."""
        # Compare the parts of the digest by identity, to notice a tool that changes at run time.
        held, declared = tool.__dict__, self.profiles.declared
        own = (tool.name, tool.description, tool.args_schema, tool.metadata)
        key = (*own, declared, held.get("func"), held.get("coroutine"))
        if self.seen is not None and all(map(operator.is_, self.seen[0], key)):
            return self.seen[1]
        profiled = self.profiles.of(tool)
        if profiled.declared and functions_held(tool) != self.functions:
            profiled = self.profiles.unprofiled(tool, "its function was replaced", as_unprofiled(profiled.profile))
        for function in FUNCTIONS:
            raw = held.get(function)
            if self.wrap is not None and callable(raw) and not hasattr(raw, "__runtime_authz_of__"):
                held[function] = self.wrap(tool, self, raw, function)
        key = (*key[:-2], held.get("func"), held.get("coroutine"))
        found = ToolFacts(profiled, injected_names(tool))
        self.seen = (key, found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> ToolGuard:
        return self


class GuardsInPlace(weakref.WeakKeyDictionary[Profiles, ToolGuard]):
    """The guards of a tool that `guard_in_place` changed, one per `RuntimeAuthz`."""


def facts_of(tool: BaseTool) -> ToolFacts:
    """Return a guarded tool's present profile and injected arguments."""
    return guard_of(tool).facts(tool)


def guard_of(tool: BaseTool) -> ToolGuard:
    """Return the guard of a guarded tool.

    A tool that LangChain rebuilt from its fields (`configurable_fields`) uses the guard of its functions.
    """
    guard: Any = (tool.__pydantic_private__ or {}).get("_authz_guard")
    if type(guard) is GuardsInPlace:
        profiles: Profiles = current_scope.get().run.engine.tools
        return guard.get(profiles) or guard.setdefault(profiles, ToolGuard(profiles, tool, None))
    if guard is None:
        held = (getattr(tool.__dict__.get(name), "__runtime_authz_guard__", None) for name in FUNCTIONS)
        guard = next((g for g in held if g is not None), None)
    if guard is None:
        raise ConfigError(f"tool `{tool.name}` was made by the class of a guarded tool; `authz.guard` it")
    return guard  # type: ignore[no-any-return]
