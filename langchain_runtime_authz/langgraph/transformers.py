"""Stream transformers: code of the user's that runs in the hands of whoever reads a graph's events.

`stream_events(version="v3")` gives a stream that pulls the graph's own and hands each event to the transformers that
the graph was compiled with, or that came with the call. They run outside the graph's loop, so the run is not around
them: as for what runs while a state is read or edited, a tool that one of them starts is decided beside every entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

from langchain_runtime_authz.langgraph.run_context import beside_scope

__all__ = ["beside", "made_by"]

_HOOKS: Final = ("init", "process", "finalize", "fail")
_ASYNC_HOOKS: Final = ("aprocess", "afinalize", "afail")


class _Beside:
    """The factory of a transformer, each of whose hooks runs beside the graph.

    Equal to the factory that it stands for: who looks for that among a graph's transformers finds it.
    """

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[tuple[str, ...]], Any]) -> None:
        self.factory = factory

    def __eq__(self, other: object) -> bool:
        return bool(self.factory == (other.factory if isinstance(other, _Beside) else other))

    def __hash__(self) -> int:
        return hash(self.factory)

    def __call__(self, scope: tuple[str, ...]) -> Any:
        with beside_scope():
            made = self.factory(scope)
        for names, scope_of in ((_HOOKS, _scoped), (_ASYNC_HOOKS, _ascoped)):
            for name in names:
                hook = getattr(made, name)
                if getattr(hook, "__code__", None) not in _OURS:  # of a factory that gives the same one each time
                    setattr(made, name, scope_of(hook))
        return made


def beside(factories: Any) -> Any:
    """The factories, each wrapped once; what is none is left to LangGraph to refuse.

    LangGraph takes them from whatever can be iterated over.
    """
    if not isinstance(factories, Iterable):
        return factories
    return tuple(_Beside(f) if callable(f) and not isinstance(f, _Beside) else f for f in factories)


def made_by(factory: object) -> list[object]:
    """What the user's code of a factory is: a function, or the hooks of a class."""
    inner = factory.factory if isinstance(factory, _Beside) else factory
    hooks = (getattr(inner, name, None) for name in (*_HOOKS, *_ASYNC_HOOKS)) if isinstance(inner, type) else (inner,)
    return [hook for hook in hooks if hook is not None]


def _scoped(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def scoped(*args: Any) -> Any:
        with beside_scope():
            return hook(*args)

    return scoped


def _ascoped(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    async def scoped(*args: Any) -> Any:
        with beside_scope():
            return await hook(*args)

    return scoped


_OURS: Final = (_scoped(print).__code__, _ascoped(print).__code__)
