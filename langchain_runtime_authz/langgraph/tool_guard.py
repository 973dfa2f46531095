"""Guarded tools: the primary gate.

A guarded tool is a copy of the tool whose class is a dynamic subclass of the tool's own, so that it
is still what it was (`isinstance`, name, schema, attributes) and every route that uses the object
meets the guard: `invoke`, `ainvoke`, `batch`, `stream`, LCEL, ToolNode, raw threads, and `_run`,
`_arun`, `func` and `coroutine` called by hand.

What it does not meet: the function that the tool was made of, in the hands of code that kept it or
takes it from `guarded.func.__wrapped__`. There the process's own code goes round its own guard.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, Final, cast, get_type_hints

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from langchain_runtime_authz.errors import AlreadyProtected
from langchain_runtime_authz.langgraph._private import config_parameter
from langchain_runtime_authz.langgraph.arguments import Malformed
from langchain_runtime_authz.langgraph.arrival import arrival_by_hand
from langchain_runtime_authz.langgraph.guarded import Guard, facts_of, guard_of, is_guarded
from langchain_runtime_authz.langgraph.own_invoke import own_ways, within_own_invoke
from langchain_runtime_authz.langgraph.tool_execution import FUNCTION, Stage, current_passage
from langchain_runtime_authz.langgraph.tool_profiles import Profiles
from langchain_runtime_authz.langgraph.way_in import WayIn, arrived

__all__ = ["facts_of", "guard_tool", "is_guarded"]

_FUNCTIONS: Final = ("func", "coroutine")


def guard_tool(tool: BaseTool, profiles: Profiles) -> BaseTool:
    """A guarded copy of `tool`; a tool that is guarded already is returned as it is.

    Raises:
        AlreadyProtected: another `RuntimeAuthz` guards it.
    """
    if is_guarded(tool):
        if guard_of(tool).profiles is not profiles:
            raise AlreadyProtected(tool.name)
        return tool
    copy = tool.model_copy()
    guard = Guard(profiles, copy)
    guard.facts(copy)  # pins the digest to the tool as it is now
    private = dict(copy.__pydantic_private__ or {})
    object.__setattr__(copy, "__class__", _guarded_class(type(tool)))
    object.__setattr__(copy, "__pydantic_private__", {**private, "_authz_guard": guard})
    for name in _FUNCTIONS:
        if callable(raw := copy.__dict__.get(name)):
            copy.__dict__[name] = _decided_function(copy, guard, raw, name)
    return copy


_classes: weakref.WeakKeyDictionary[type[BaseTool], type[BaseTool]] = weakref.WeakKeyDictionary()


def _guarded_class(base: type[BaseTool]) -> type[BaseTool]:
    """The guarded subclass of a tool class, made once per class."""
    if base not in _classes:
        _classes[base] = _make_guarded_class(base)
    return _classes[base]


def _make_guarded_class(base: type[BaseTool]) -> type[BaseTool]:
    def run(
        self: Any,
        tool_input: Any,
        *args: Any,
        config: Any = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if within_own_invoke(self):
            return base.run(self, tool_input, *args, config=config, tool_call_id=tool_call_id, **kwargs)
        way = arrived(self, base, tool_input, config, tool_call_id)
        with way as passage:
            if passage is not None:
                passage.output = base.run(
                    self, tool_input, *args, config=passage.config, tool_call_id=tool_call_id, **passage.watched(kwargs)
                )
        return way.output

    async def arun(
        self: Any,
        tool_input: Any,
        *args: Any,
        config: Any = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if within_own_invoke(self):
            return await base.arun(self, tool_input, *args, config=config, tool_call_id=tool_call_id, **kwargs)
        way = arrived(self, base, tool_input, config, tool_call_id)
        async with way as passage:
            if passage is not None:
                passage.output = await base.arun(
                    self, tool_input, *args, config=passage.config, tool_call_id=tool_call_id, **passage.watched(kwargs)
                )
        return way.output

    def _parse_input(self: Any, tool_input: Any, tool_call_id: str | None) -> Any:
        passage = current_passage()
        if passage is None or passage.call.tool_ref is not self or passage.started:
            return base._parse_input(self, tool_input, tool_call_id)
        if isinstance(passage.parsed, Malformed):
            raise passage.parsed.error
        return passage.parsed

    @_wraps(base._run)
    def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _called(self, guard_of(self), "_run", functools.partial(base._run, self), args, kwargs)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name in _FUNCTIONS and callable(value):
            value = _decided_function(self, guard_of(self), value, name)
        base.__setattr__(self, name, value)

    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__annotations__": {"_authz_guard": Any},
        "__runtime_authz_guarded__": True,
        "_authz_guard": PrivateAttr(default=None),
        "run": run,
        "arun": arun,
        "_parse_input": _parse_input,
        "_run": _run,
        "__setattr__": set_attribute,
    }
    if base._arun is not BaseTool._arun:

        @_wraps(base._arun)
        async def _arun(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A tool without a coroutine of its own goes on to `_run`, which is asked for its passage.
            if getattr(self, "coroutine", True) is None:
                return await base._arun(self, *args, **kwargs)
            return await _acalled(self, guard_of(self), "_arun", functools.partial(base._arun, self), args, kwargs)

        namespace["_arun"] = _arun
    namespace |= own_ways(base)
    made: type[BaseTool] = type(base)(base.__name__, (base,), namespace)  # type: ignore[misc]  # its own metaclass
    return made


def _wraps(code: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """`functools.wraps`, with the annotations resolved.

    LangChain looks at the annotations of a tool's code on every call. Resolved, that costs less than
    the guard adds; unresolved, they are compiled each time.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        wrapped = functools.wraps(code)(function)
        try:
            hints = get_type_hints(code, include_extras=True)
        except Exception:  # noqa: BLE001  (LangChain goes without them too)
            return wrapped
        wrapped.__annotations__ = hints
        return wrapped

    return wrap


# --- a tool's own code, called by `run` or by hand ------------------------------------------------


def _decided_function(tool: BaseTool, guard: Guard, raw: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A tool's `func` or `coroutine`: under the passage that `run` opened, or decided where it is called by hand."""
    raw = getattr(raw, "__runtime_authz_of__", raw)
    wrapped: Any
    if name == "coroutine":

        @_wraps(raw)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return await _acalled(tool, guard, FUNCTION, raw, args, kwargs)

    else:

        @_wraps(raw)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return _called(tool, guard, FUNCTION, raw, args, kwargs)

    wrapped.__runtime_authz_of__, wrapped.__runtime_authz_guard__ = raw, guard
    return cast("Callable[..., Any]", wrapped)


def _called(tool: BaseTool, guard: Guard, stage: Stage, code: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    passage = current_passage()
    if passage is None or passage.of is not guard or not passage.admits(stage):
        way = _by_hand(tool, guard, stage, code, args, kwargs)
        with way as opened:
            if opened is not None:
                opened.output = _called(tool, guard, stage, code, args, kwargs)
        return way.output
    if not passage.outermost:
        return code(*args, **kwargs)
    try:
        return passage.clean(code(*args, **kwargs))
    except BaseException as exc:  # noqa: BLE001
        failed = passage.clean_error(exc)
    try:
        raise failed  # here, where what was cleaned does not become its context
    finally:
        del failed  # its traceback holds this frame


async def _acalled(tool: BaseTool, guard: Guard, stage: Stage, code: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    passage = current_passage()
    if passage is None or passage.of is not guard or not passage.admits(stage):
        way = _by_hand(tool, guard, stage, code, args, kwargs)
        async with way as opened:
            if opened is not None:
                opened.output = await _acalled(tool, guard, stage, code, args, kwargs)
        return way.output
    if not passage.outermost:
        return await code(*args, **kwargs)
    try:
        return passage.clean(await code(*args, **kwargs))
    except BaseException as exc:  # noqa: BLE001
        failed = passage.clean_error(exc)
    try:
        raise failed
    finally:
        del failed


def _by_hand(
    tool: BaseTool,
    guard: Guard,
    stage: Stage,
    code: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> WayIn:
    """The call as its code receives it: every argument by its name, but what the framework supplies."""
    given = {k: v for k, v in kwargs.items() if not isinstance(v, BaseCallbackManager | BaseRunManager)}
    config = ensure_config(given.pop(config_parameter(code) or "", None))
    function = next((f for f in guard.functions if f is not None), None)
    # `_run(*args, **kwargs)` of a tool that was made of a function: the names are the function's.
    signature = inspect.signature(code if stage == FUNCTION or not callable(function) else function)
    for name, value in signature.bind_partial(*args, **given).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        else:
            given[name] = value
    facts = guard.facts(tool)
    return WayIn(guard, facts, arrival_by_hand(tool, facts, given, config), config)
