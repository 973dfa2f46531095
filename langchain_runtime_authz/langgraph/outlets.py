"""Where a tool may write besides its result: the graph's store, its streams, and the state itself.

All are searched for the call's tokens on the way, like the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, Op
from langgraph.types import Command

from langchain_runtime_authz.langgraph._private import is_async_callable, with_outlets, with_streams

__all__ = ["watched_args", "watched_callbacks", "watched_config"]

Clean = Callable[[Any], Any]


class _Store(BaseStore):
    """A store that keeps no token. Everything else is the wrapped store's."""

    def __init__(self, wrapped: BaseStore, clean: Clean) -> None:
        self.__wrapped__ = wrapped
        self._clean = clean
        self.supports_ttl = wrapped.supports_ttl
        self.ttl_config = wrapped.ttl_config

    def batch(self, ops: Iterable[Op]) -> Any:
        return self.__wrapped__.batch([self._op(op) for op in ops])

    async def abatch(self, ops: Iterable[Op]) -> Any:
        return await self.__wrapped__.abatch([self._op(op) for op in ops])

    def _op(self, op: Any) -> Any:
        return op._make(self._clean(value) for value in op)  # operations are named tuples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def _store(store: Any, clean: Clean) -> Any:
    return _Store(store, clean) if isinstance(store, BaseStore) and not isinstance(store, _Store) else store


def _writer(writer: Any, clean: Clean) -> Any:
    return (lambda chunk: writer(clean(chunk))) if callable(writer) else writer


def _task(function: Callable[..., Any], clean: Clean) -> Callable[..., Any]:
    """The function of a `@task` that the tool calls: its result, and what it raises, are written to the checkpoint."""
    if is_async_callable(function):

        @functools.wraps(function)
        async def acalled(*args: Any, **kwargs: Any) -> Any:
            _enter(clean)
            try:
                return clean(await function(*args, **watched_args(kwargs, clean)))
            except BaseException as exc:  # noqa: BLE001
                failed = clean(exc)
            try:
                raise failed
            finally:
                del failed

        return acalled

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        _enter(clean)
        try:
            return clean(function(*args, **watched_args(kwargs, clean)))
        except BaseException as exc:  # noqa: BLE001
            failed = clean(exc)
        try:
            raise failed  # as a tool's own: what was cleaned does not become its context
        finally:
            del failed

    return called


def _enter(clean: Clean) -> None:
    """A task has a config of its own, in a context of its own, which ends with it."""
    if (config := var_child_runnable_config.get()) is not None:
        var_child_runnable_config.set(watched_config(dict(config), clean))  # type: ignore[arg-type]


def watched_config(config: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """`config` for one tool: what `get_store`, `get_stream_writer` and `push_message` find there is searched by `clean`."""
    own = with_outlets(
        config,
        lambda store: _store(store, clean),
        lambda writer: _writer(writer, clean),
        lambda writes: _apart(writes, clean),
        lambda task: _task(task, clean),
    )
    return {**own, "callbacks": watched_callbacks(own["callbacks"], clean)} if own.get("callbacks") else own


def watched_callbacks(callbacks: Any, clean: Clean) -> Any:
    """`callbacks` for one tool: what it streams by LangGraph's own handlers is searched by `clean`."""
    return with_streams(callbacks, lambda chunk: _apart(chunk, clean))


def _apart(written: Any, clean: Clean) -> Any:
    return clean(Command(update=written)).update  # messages and pairs, as in a command


def watched_args(args: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """The arguments of one tool, with stores and runtimes that were injected likewise; the same where there are none."""
    watched = {name: _watched(value, clean) for name, value in args.items()}
    return args if all(watched[name] is value for name, value in args.items()) else watched


def _watched(value: Any, clean: Clean) -> Any:
    if isinstance(value, ToolRuntime):
        return dataclasses.replace(
            value,
            store=_store(value.store, clean),
            stream_writer=_writer(value.stream_writer, clean),
            config=watched_config(dict(value.config), clean),  # type: ignore[arg-type]
        )
    if isinstance(value, Runtime):  # a task's
        return value.override(store=_store(value.store, clean), stream_writer=_writer(value.stream_writer, clean))
    return _store(value, clean)
