"""Guard a tool's class, so that each call of the tool goes through `tool_arrival`.

A guarded tool is a copy whose class is a dynamic subclass of the tool's class. All uses of the object pass the guard:
`invoke`, `batch`, `stream`, LCEL, ToolNode, raw threads, and direct calls of `_run`, `_arun`, `func` and `coroutine`.
Calls of the tool's original function, by code that has a reference to it, are not guarded.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, get_type_hints

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import AlreadyProtected
from langchain_runtime_authz.langgraph.object_graph import walk_objects
from langchain_runtime_authz.langgraph.output_filter import afilter_call, filter_call, return_or_raise
from langchain_runtime_authz.langgraph.private_api import ToolNode, config_parameter, subclass_like, weakly_cached
from langchain_runtime_authz.langgraph.run_context import current_run
from langchain_runtime_authz.langgraph.tool_arrival import UndecidedCall, arrival_by_hand, tool_arrival
from langchain_runtime_authz.langgraph.tool_execution import FUNCTION, ArrivedCall, Stage, ToolExecution
from langchain_runtime_authz.langgraph.tool_facts import (
    FUNCTIONS,
    GUARDED,
    IN_PLACE,
    GuardsInPlace,
    Profiles,
    ToolGuard,
    functions_held,
    guard_of,
    is_guarded,
)
from langchain_runtime_authz.pep.run import adrive, drive

# Other methods that call a tool. LangChain's versions of them use `invoke` or `run`.
_BATCHED: Final = ("batch", "batch_as_completed", "stream", "transform")
_FORMS: Final = ("__call__", *_BATCHED, *(f"a{form}" for form in _BATCHED))


def guard_tool(tool: BaseTool, profiles: Profiles) -> BaseTool:
    """Return a guarded copy of `tool`; `tool` itself if it is guarded.

    Raises `AlreadyProtected` if another `RuntimeAuthz` guards it.
    """
    if is_guarded(tool):
        if guard_of(tool).profiles is not profiles:
            raise AlreadyProtected(tool.name, "tool")
        return tool
    tool._injected_args_keys  # noqa: B018  (LangChain caches the value in the tool, and so in copies)
    copy = tool.model_copy()
    guard = ToolGuard(profiles, copy)
    for name in FUNCTIONS:
        function = copy.__dict__.get(name)
        if callable(function) and not hasattr(function, "__runtime_authz_of__"):
            copy.__dict__[name] = _decided_function(copy, guard, function, name)
    private = dict(copy.__pydantic_private__ or {})
    object.__setattr__(copy, "__class__", _guarded_class(getattr(type(tool), IN_PLACE, type(tool))))
    object.__setattr__(copy, "__pydantic_private__", {**private, "_authz_guard": guard})
    guard.facts(copy)  # pins the tool's digest
    return copy


def guard_in_place(tool: BaseTool) -> None:
    """Guard a tool object itself, not a copy, for its calls inside runs."""
    if is_guarded(tool) or hasattr(type(tool), IN_PLACE) or acts_by_itself(tool):
        return
    private = dict(tool.__pydantic_private__ or {})
    object.__setattr__(tool, "__class__", _in_place_class(type(tool)))
    object.__setattr__(tool, "__pydantic_private__", {**private, "_authz_guard": GuardsInPlace()})


def guard_held_by(node: ToolNode) -> None:
    """Guard tools that the code of a node's tools refers to, for calls inside runs."""
    for held in walk_objects([node]):
        if isinstance(held, BaseTool):
            guard_in_place(held)


@weakly_cached
def _in_place_class(base: type[BaseTool]) -> Any:
    """Return the cached subclass of a tool class that is guarded inside runs only."""
    guarded = _guarded_class(base)
    forms = ("run", "arun", "_run", "_arun", "_parse_input")
    own: dict[str, Any] = {name: _inside(base, guarded, name) for name in forms if name in vars(guarded)}
    return subclass_like(base, {**_guard_field(), **own, IN_PLACE: base})


def _guard_field() -> dict[str, Any]:
    return {"__annotations__": {"_authz_guard": Any}, "_authz_guard": PrivateAttr(default=None)}


def _inside(base: Any, guarded: Any, name: str) -> Callable[..., Any]:
    plain, decided = _method(base, name), getattr(guarded, name)

    @functools.wraps(decided)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (plain if current_run() is None else decided)(self, *args, **kwargs)

    return method


def _method(base: type[BaseTool], name: str) -> Callable[..., Any]:
    """Return a class's method as a function of the tool, even if it is static."""
    code: Any = getattr(base, name)
    if not isinstance(inspect.getattr_static(base, name), staticmethod | classmethod):
        return code  # type: ignore[no-any-return]

    @functools.wraps(code)
    def method(_: Any, *args: Any, **kwargs: Any) -> Any:
        return code(*args, **kwargs)

    own, tool = inspect.signature(code), inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = own.replace(parameters=[tool, *own.parameters.values()])  # type: ignore[attr-defined]
    return method


@weakly_cached
def _guarded_class(base: type[BaseTool]) -> Any:
    def _parse_input(self: Any, tool_input: Any, tool_call_id: str | None) -> Any:
        execution = current_scope.get()
        if type(execution) is not ToolExecution or execution.call.input.tool is not self or execution.stages:
            return base._parse_input(self, tool_input, tool_call_id)
        if isinstance(execution.parsed, Exception):  # the tool's schema refused the arguments
            raise execution.parsed
        return execution.parsed

    own: dict[str, Any] = {**_guard_field(), GUARDED: base, "_parse_input": _parse_input}
    own |= {"run": _decided_run(base, _call), "arun": _decided_run(base, _acall)}

    blocks, awaits = _method(base, "_run"), _method(base, "_arun")

    @_wraps(blocks)
    def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _called(_BLOCKS, self, guard_of(self), "_run", functools.partial(blocks, self), args, kwargs)

    own["_run"] = _run
    if base._arun is not BaseTool._arun:

        @_wraps(awaits)
        async def _arun(self: Any, *args: Any, **kwargs: Any) -> Any:
            code = functools.partial(awaits, self)
            return await _called(_AWAITS, self, guard_of(self), "_arun", code, args, kwargs)

        own["_arun"] = _arun
    return subclass_like(base, {**own, **_own_forms(base)})


def _call(tool: BaseTool, arrived: ArrivedCall | UndecidedCall, code: Callable[[ToolExecution], Any]) -> Any:
    return return_or_raise(*drive(arrived.pep, arrived.start(guard_of(tool), code)))


async def _acall(tool: BaseTool, arrived: ArrivedCall | UndecidedCall, code: Callable[[ToolExecution], Any]) -> Any:
    return return_or_raise(*await adrive(arrived.pep, arrived.start(guard_of(tool), code)))


_BLOCKS: Final = (_call, filter_call)
_AWAITS: Final = (_acall, afilter_call)


def _decided_run(base: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    calls_itself = any(_is_own(base, name) for name in ("invoke", "ainvoke", "_arun"))
    blocks = call is _call

    def run(self: Any, tool_input: Any, *args: Any, config: Any = None, tool_call_id: Any = None, **kwargs: Any) -> Any:
        own = base.run if blocks else base.arun
        if calls_itself and _within_own_code(self):
            return own(self, tool_input, *args, config=config, tool_call_id=tool_call_id, **kwargs)
        arrived = tool_arrival(self, tool_input, config, tool_call_id, functools.partial(base._parse_input, self))
        options = {"tool_call_id": tool_call_id, **kwargs}

        def code(execution: ToolExecution) -> Any:
            more = execution.options(options) if execution.mints else options
            return own(self, tool_input, *args, config=execution.config, **more)

        return call(self, arrived, code)

    return run


def _wraps(code: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Wrap as `functools.wraps` does, with signature and annotations resolved once."""

    def wrap(function: Callable[..., Any]) -> Any:
        wrapped: Any = functools.wraps(code)(function)
        if (found := _resolved(code)) is not None:
            wrapped.__signature__, wrapped.__annotations__ = found[0], dict(found[1])
        return wrapped

    return wrap


@weakly_cached
def _resolved(code: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]] | None:
    try:
        typed = code.func if isinstance(code, functools.partial) else code
        return inspect.signature(code), get_type_hints(typed, include_extras=True)
    except Exception:  # noqa: BLE001  (LangChain does without annotations too)
        return None


def _decided_function(tool: BaseTool, guard: ToolGuard, raw: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap a tool's `func` or `coroutine`, so that a direct call is decided first."""

    async def awaits(*args: Any, **kwargs: Any) -> Any:
        return await _called(_AWAITS, tool, guard, FUNCTION, raw, args, kwargs)

    def blocks(*args: Any, **kwargs: Any) -> Any:
        return _called(_BLOCKS, tool, guard, FUNCTION, raw, args, kwargs)

    wrapped = _wraps(raw)(awaits if name == "coroutine" else blocks)
    wrapped.__runtime_authz_of__, wrapped.__runtime_authz_guard__ = raw, guard
    return wrapped  # type: ignore[no-any-return]


def _called(
    forms: Any, tool: BaseTool, guard: ToolGuard, stage: Stage, code: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """Return what a tool's method returns. Decide a direct call first."""
    execution, (call, filtered) = current_scope.get(), forms
    if type(execution) is not ToolExecution or execution.guard is not guard or not execution.admits(stage):
        arrived = _by_hand(tool, guard, stage, code, args, kwargs)
        return call(tool, arrived, lambda _: _called(forms, tool, guard, stage, code, args, kwargs))
    if len(execution.stages) > 1:  # the outermost stage filters the output
        return code(*args, **kwargs)
    return filtered(functools.partial(code, *args, **kwargs), execution.clean, execution.clean_error)


def _by_hand(
    tool: BaseTool, guard: ToolGuard, stage: Stage, code: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> UndecidedCall:
    """Return a direct call, with its arguments by name."""
    named = {k: v for k, v in kwargs.items() if not isinstance(v, BaseCallbackManager | BaseRunManager)}
    config = ensure_config(named.pop(config_parameter(code) or "", None))
    signature = inspect.signature(code)
    if stage != FUNCTION and any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values()):
        # `_run(*args, **kwargs)` of a tool made from a function: the names are the function's.
        held = functions_held(tool)[:: -1 if stage == "_arun" else 1]  # `func` and `coroutine` may differ
        signature = next((inspect.signature(f) for f in held if callable(f)), signature)
    for name, value in signature.bind_partial(*args, **named).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return arrival_by_hand(tool, guard.facts(tool), named, config)


def _own_forms(base: type[BaseTool]) -> dict[str, Any]:
    """Guard a class's `invoke`, and give it LangChain's batch and stream methods."""

    def decided(name: str, call: Callable[..., Any], filtered: Callable[..., Any]) -> Callable[..., Any]:
        def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
            def code(execution: ToolExecution) -> Any:
                execution.admits("invoke")
                own = functools.partial(getattr(base, name), self, input, execution.config, **kwargs)
                return filtered(own, execution.clean, execution.clean_error)

            arrived = tool_arrival(self, *_sent(input, config), functools.partial(base._parse_input, self))
            return call(self, arrived, code)

        return invoke

    forms = {"invoke": _BLOCKS, "ainvoke": _AWAITS}
    own: dict[str, Any] = {name: getattr(BaseTool, name) for name in _FORMS if _is_own(base, name)}
    return own | {name: decided(name, *each) for name, each in forms.items() if _is_own(base, name)}


def acts_by_itself(tool: BaseTool) -> bool:
    """Return True if the tool overrides an entry point, and so may skip callbacks."""
    kind = getattr(type(tool), IN_PLACE, type(tool))
    return any(_is_own(kind, name) for name in ("run", "arun", "invoke", "ainvoke", *_FORMS))


def _is_own(base: type[BaseTool], name: str) -> bool:
    owner = next((c for c in base.__mro__ if name in vars(c)), BaseTool)
    return owner.__module__.partition(".")[0] != "langchain_core"


def _sent(given: Any, config: Any) -> tuple[Any, Any, str | None]:
    if isinstance(given, dict) and given.get("type") == "tool_call":
        return dict(given["args"]), ensure_config(config), given["id"]
    return given, ensure_config(config), None


def _within_own_code(tool: BaseTool) -> bool:
    """Return True, once, if the class's own `invoke` or `_arun` now calls `run`."""
    execution = current_scope.get()
    if type(execution) is not ToolExecution or execution.guard is not guard_of(tool):
        return False
    return execution.stages in (["invoke"], ["_arun"]) and execution.admits("run")
