"""Find the facts of a tool: its profile, digest, functions and guard.

A profile counts only if it is declared and pinned to the tool's digest. Without such a profile, the tool is
unprofiled. A guard keeps the facts until the tool changes.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic_core import PydanticUndefined

from langchain_runtime_authz import tool_profile
from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz._profile_schema import check_arguments
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.digest import as_json
from langchain_runtime_authz.errors import ConfigError, MappingError
from langchain_runtime_authz.langgraph.private_api import injected_names
from langchain_runtime_authz.tool_profile import UNPROFILED, ToolProfile, as_unprofiled, raise_by_hints

# Tools of LangGraph's libraries that delegate to an agent. They are recognised by their function, because remote data
# can imitate a name. The agent's steps are decided separately.
_COORDINATION: Final = ToolProfile(effect="read", sink="none", data_class="public", trust="internal")
_FRAMEWORK: Final[Mapping[str, ToolProfile]] = {
    "langgraph_supervisor.handoff:create_handoff_tool.<locals>.handoff_to_agent": _COORDINATION,
    "langgraph_swarm.handoff:create_handoff_tool.<locals>.handoff_to_agent": _COORDINATION,
    "deepagents.middleware.subagents:_build_task_tool.<locals>.task": _COORDINATION,
}


def _origin(tool: BaseTool) -> str:
    function = getattr(tool, "func", None)
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"


def made_by_langgraph(tool: BaseTool) -> bool:
    """Return True if a LangGraph library made the tool."""
    # Such a tool's description may vary: that of `task` lists agents.
    return _origin(tool) in _FRAMEWORK


class ProfiledTool(NamedTuple):
    """A tool's profile. `why`: if it is not the declared profile, the reason."""

    profile: ToolProfile
    declared: bool
    why: str = ""


class Profiles:
    """The profiles of one `RuntimeAuthz` by tool name.

    `declared` is a mapping, or None if the profiles of the policy's present revision count. `released` returns these, if
    the policy brings profiles. A profile without a digest is pinned to the first tool of its name. A second tool of this
    name with another description or schema is unprofiled. So is a tool whose profile is a draft. An effect that the
    application declares under the name is not compared.
    """

    def __init__(
        self,
        declared: Mapping[str, ToolProfile] | None,
        released: Callable[[], Mapping[str, ToolProfile]] | None = None,
    ) -> None:
        self._declared, self.released = None if declared is None else dict(declared), released
        self._reviewed: tuple[Mapping[str, ToolProfile], ...] = (_NONE, _NONE, _NONE)  # its two sources, and `declared`
        self._pins: dict[str, tuple[_Looks, BaseTool]] = {}
        self._tools: dict[str, BaseTool] = {}  # the profiled tools
        self._brought: dict[str, ToolProfile] = {}  # those in the tools' own metadata: a release withdraws only its own
        self._checked: dict[str, ToolProfile] = {}  # tool, or effect and its arguments → the profile that fits it
        self._lock = forkable_lock()
        self.writes: dict[str, BaseTool] = {}  # effect name → the tool that represents a write to a graph's store

    def __deepcopy__(self, memo: dict[int, Any]) -> Profiles:
        return self  # copies of a tool or tool node share it

    @property
    def declared(self) -> Mapping[str, ToolProfile]:
        """Tool name → reviewed profile, declared or brought by a tool. No drafts."""
        # Return the same object while nothing changes, because callers compare it by identity.
        now, brought = self._declared if self._declared is not None else self._all(), self._brought
        *sources, reviewed = self._reviewed
        if sources[0] is not now or sources[1] is not brought:
            reviewed = {name: p for name, p in {**brought, **now}.items() if not p.draft}
            self._reviewed = (now, brought, reviewed)
        return reviewed

    @property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """Tool name → JSON schema of its arguments, for profiled tools seen so far."""
        return {name: schema_of(tool) for name, tool in list(self._tools.items())}

    def _all(self) -> Mapping[str, ToolProfile]:
        if self._declared is None and self.released is not None:
            return self.released()
        return self._declared or _NONE

    def facts(self, tool: BaseTool) -> ToolFacts:
        """Return a tool's present profile and injected arguments."""
        declared = self.declared.get(tool.name)  # read first, so that a release which comes meanwhile is noticed
        return ToolFacts(self.of(tool), injected_names(tool), declared)

    def of(self, tool: BaseTool) -> ProfiledTool:
        """Return a tool's profile. Raises `ConfigError` if it names arguments not there."""
        declared = self.declared.get(tool.name)
        held: Any = (tool.metadata or {}).get(tool_profile.METADATA_KEY)
        if declared is None:
            # Only a `ToolProfile` instance counts, because plain metadata may come from a server.
            declared = held if isinstance(held, ToolProfile) else self._all().get(tool.name)
        if declared is None or declared.draft:
            base = as_unprofiled(declared) if declared is not None else UNPROFILED
            why = "its profile is a draft" if declared is not None else NO_PROFILE
            own = _FRAMEWORK.get(_origin(tool))
            return ProfiledTool(own, True) if own and not base.verdict else self.unprofiled(tool, why, base)
        if why := why_foreign(tool, declared) or self._unlike(tool, declared):
            return self.unprofiled(tool, why, as_unprofiled(declared))
        if len(self._tools) < MAX_TOOLS:
            self._tools.setdefault(tool.name, tool)
        if declared is held and tool.name not in self._brought and len(self._brought) < MAX_TOOLS:
            self._brought = {**self._brought, tool.name: declared}
        return ProfiledTool(declared, True)

    def _unlike(self, tool: BaseTool, declared: ToolProfile) -> str:
        """Return the reason if a tool differs from the pinned one, else ""."""
        looks = _looks(tool)
        if looks is None:
            return "its name, description and schema have no digest"
        schema, name = tool.args_schema, tool.name
        if own := getattr(tool, "by_application", False) and isinstance(schema, dict):
            name = " ".join((name, *schema["properties"]))  # several functions may have one effect
        if (checked := self._checked.get(name)) is not declared:
            try:
                check_arguments(tool.name, declared, _top_arguments(tool, declared) or arguments_of(tool))
            except ConfigError as exc:
                if checked is None:
                    raise
                return str(exc)  # a new policy revision brought it, while the tool is in use
            if len(self._checked) < MAX_TOOLS:  # further ones are checked at each use
                self._checked[name] = declared
        with self._lock:
            first, sample = self._pins.get(tool.name, (looks, tool))
            if first is looks and len(self._pins) < MAX_TOOLS:
                self._pins[tool.name] = looks, tool.model_copy()
            elif first is looks and declared.digest is None:
                return f"more than {MAX_TOOLS} tools were seen"
        if own:
            return ""
        if declared.digest is None:
            like = _alike(first, looks) or made_by_langgraph(tool)
            # Tools without a digest never count as equal.
            like = like or ((digest := digest_of(tool)) is not None and digest == digest_of(sample))
        else:
            like = digest_of(tool) == declared.digest
        return "" if like else "changed since its profile was pinned"

    @staticmethod
    def unprofiled(tool: BaseTool, why: str, base: ToolProfile = UNPROFILED) -> ProfiledTool:
        """Return an unprofiled tool's profile. Its metadata and name may raise its effect."""
        return ProfiledTool(base if base.verdict else raise_by_hints(base, tool.metadata, tool.name), False, why)


def why_foreign(tool: BaseTool, declared: ToolProfile) -> str:
    """Return the reason if the profile is for another tool of this name, else ""."""
    if declared.origin is not None and declared.origin != (own := package_of(tool)):
        return f"its profile is for the tool of `{declared.origin}`, and this one is from `{own}`"
    if declared.arguments is not None and (
        other := ({*arguments_of(tool)} ^ {*declared.arguments}) - injected_names(tool)
    ):
        return f"its profile is for other arguments ({', '.join(sorted(other))})"
    return ""


def package_of(tool: BaseTool) -> str:
    """Return the top-level package of a tool's function, or else of its class."""
    function = next((f for f in functions_held(tool) if f is not None), None)
    made = getattr(type(tool), GUARDED, type(tool)) if function is None else function
    return str(getattr(made, "__module__", "")).partition(".")[0]


def arguments_of(tool: BaseTool) -> Mapping[str, Any]:
    """Return name → JSON schema, for the arguments that a model gives to a tool."""
    found: Mapping[str, Any] = parameters_of(tool).get("properties", {})
    return found


def _top_arguments(tool: BaseTool, declared: ToolProfile) -> Mapping[str, Any] | None:
    """Return a tool's argument names as keys; None if there are aliases or paths."""
    fields = getattr(tool.args_schema, "model_fields", None)
    if not isinstance(fields, dict) or any(f.alias or f.validation_alias for f in fields.values()):
        return None
    if any("." in path for paths in declared.named().values() for path in paths):
        return None
    return dict.fromkeys(fields.keys() - injected_names(tool))


def schema_of(tool: BaseTool) -> Mapping[str, Any]:
    """Return the JSON schema of a tool's arguments, with the tool's description."""
    return {**parameters_of(tool), "description": tool.description}


_Looks = tuple[Any, ...]
_NONE: Final[Mapping[str, ToolProfile]] = MappingProxyType({})
_SCALARS: Final = (str, int, float, bool, type(None), type(PydanticUndefined))
MAX_KEPT: Final = 64
MAX_TOOLS: Final = 4096  # number of tools that one instance remembers
_schemas: weakref.WeakKeyDictionary[type, dict[_Looks, Mapping[str, Any]]] = weakref.WeakKeyDictionary()


def _looks(tool: BaseTool) -> _Looks | None:
    """Return the parts that identify a tool; None if they are not exact JSON."""
    schema = tool.args_schema
    if not isinstance(schema, type):  # a mapping is mutable
        return None if (own := digest_of(tool)) is None else (own,)
    try:
        as_json({"name": tool.name, "description": tool.description})
    except MappingError:
        return None
    kind = getattr(type(tool), GUARDED, None) or getattr(type(tool), IN_PLACE, type(tool))
    return kind, tool.name, tool.description, schema, injected_names(tool)


def _alike(a: _Looks, b: _Looks) -> bool:
    """Return True if two tools are surely equal, even with other schema classes."""
    if a == b or a[:3] != b[:3] or a[4] != b[4]:
        return a == b
    ours, theirs = (_fields(schema) for schema in (a[3], b[3]))
    return ours is not None and ours == theirs


def _fields(schema: Any) -> list[tuple[object, ...]] | None:
    """Return a schema class's fields; None if a default is not a scalar."""
    found: list[tuple[object, ...]] = []
    for name, field in getattr(schema, "model_fields", {"": None}).items():
        default = getattr(field, "default", field)
        if type(default) not in _SCALARS:
            return None
        found.append(
            (name, field.annotation, field.description, type(default), default, field.default_factory, field.metadata)
        )
    return found


def parameters_of(tool: BaseTool) -> Mapping[str, Any]:
    """Return the JSON schema of a tool's arguments, cached by schema class."""
    schema, looks = tool.args_schema, None
    if isinstance(schema, type) and (looks := _looks(tool)) is not None:
        kept = _schemas.setdefault(schema, {})
        if (known := kept.get(looks[:3] + looks[4:])) is not None:
            return known
    found: Mapping[str, Any] = convert_to_openai_tool(tool)["function"].get("parameters", {})
    if looks is not None:
        if len(kept) >= MAX_KEPT:  # the tool's description changes each time
            kept.clear()
        kept[looks[:3] + looks[4:]] = found  # without the schema class, which the key would keep alive
    return found


def digest_of(tool: BaseTool) -> str | None:
    """Return a tool's digest; None if its parts cannot be written as JSON."""
    try:
        return tool_profile.tool_digest(tool.name, tool.description, parameters_of(tool))
    except (MappingError, ValueError, TypeError, KeyError):
        return None


NO_PROFILE: Final = "no profile"
FUNCTIONS: Final = ("func", "coroutine")
GUARDED: Final = "__runtime_authz_guarded__"  # attribute of a guarded class: its original class
IN_PLACE: Final = "__runtime_authz_in_place__"  # the same, of a class guarded only inside runs


def functions_held(tool: BaseTool) -> tuple[object, object]:
    """Return a tool's original functions, without our wrappers."""
    held = tool.__dict__
    func, coroutine = held.get("func"), held.get("coroutine")
    return getattr(func, "__runtime_authz_of__", func), getattr(coroutine, "__runtime_authz_of__", coroutine)


def is_guarded(tool: object) -> bool:
    """Return True if a tool is guarded in every call, not only inside runs."""
    return getattr(type(tool), GUARDED, None) is not None


class ToolFacts(NamedTuple):
    """A tool's profile and its injected arguments. Valid until the tool changes.

    `declared`: the profile that was declared under the tool's name.
    """

    profiled: ProfiledTool
    injected: frozenset[str]
    declared: ToolProfile | None


class ToolGuard:
    """A guarded tool's profile, shared by the tool's copies."""

    __slots__ = ("by_application", "profiles", "seen", "stock")

    def __init__(self, profiles: Profiles, tool: BaseTool) -> None:
        self.by_application = False  # the application's code calls the tool: `RuntimeAuthz.effect`
        self.profiles = profiles
        kind = getattr(type(tool), IN_PLACE, type(tool))
        self.stock = kind.run is BaseTool.run and kind.arun is BaseTool.arun  # `run` is LangChain's own
        self.seen: tuple[tuple[object, ...], ToolFacts] | None = None

    def facts(self, tool: BaseTool) -> ToolFacts:
        """Return the tool's present profile and injected arguments."""
        # Compare the parts of the digest by identity, to notice a tool that changes at run time.
        key = (tool.name, tool.description, tool.args_schema, tool.metadata, self.profiles.declared)
        if self.seen is not None and all(map(operator.is_, self.seen[0], key)):
            return self.seen[1]
        found = self.profiles.facts(tool)
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

    A tool that LangChain rebuilt from its fields (`configurable_fields`) keeps the functions, and so their guard.
    """
    guard: Any = (tool.__pydantic_private__ or {}).get("_authz_guard")
    if type(guard) is GuardsInPlace:
        profiles: Profiles = current_scope.get().run.pep.tools
        return guard.get(profiles) or guard.setdefault(profiles, ToolGuard(profiles, tool))
    if guard is None:
        held = (getattr(tool.__dict__.get(name), "__runtime_authz_guard__", None) for name in FUNCTIONS)
        guard = next((g for g in held if g is not None), None)
    if guard is None:
        raise ConfigError(f"tool `{tool.name}` was made by the class of a guarded tool; `authz.guard` it")
    return guard  # type: ignore[no-any-return]
