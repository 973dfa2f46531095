"""Remove hidden fields from a tool's output, and live tokens from all its writes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore, Op
from langgraph.types import Command, Send
from pydantic import BaseModel

from langchain_runtime_authz.credential.token_leak import TokenSearch
from langchain_runtime_authz.langgraph import private_api as private

Clean = Callable[[Any], Any]
REDACTED: Final = "[redacted]"
_NONE: frozenset[str] = frozenset()
_SHOWN: Final = ("content", "artifact")  # the parts of a message that obligations filter
_PLACES: Final = ("__dict__", "__pydantic_extra__", "__pydantic_private__")  # where objects hold their attributes


class OutputFilter:
    """Filters messages and commands part by part, for hidden fields and tokens."""

    def __init__(self, fields: frozenset[str], tokens: tuple[str, ...]) -> None:
        self._fields, self._searches = fields, bool(tokens)
        self.search = TokenSearch(tokens)

    def output(self, value: Any) -> Any:
        """Return a tool's output, filtered."""
        return self._value(value, self._fields)

    def _value(self, value: Any, fields: frozenset[str]) -> Any:
        if isinstance(value, BaseMessage):
            return self._rebuilt(value, lambda name, held: self._value(held, fields if name in _SHOWN else _NONE))
        if isinstance(value, Command):
            update, goto = self._update(value.update, fields), self._channel(value.goto, _NONE)
            return dataclasses.replace(value, update=update, resume=self._scrubbed(value.resume), goto=goto)
        if isinstance(value, list) and any(isinstance(v, BaseMessage | Command) for v in value):
            return [self._value(v, fields) for v in value]
        return redact_fields(self._scrubbed(value), fields)

    def _update(self, update: Any, fields: frozenset[str]) -> Any:
        """Filter a state update: messages for hidden fields, all values for tokens."""
        if isinstance(update, dict):
            return {self._scrubbed(k): self._channel(v, fields) for k, v in update.items()}
        if isinstance(update, BaseModel) or dataclasses.is_dataclass(update):
            return self._rebuilt(update, lambda _, held: self._channel(held, fields))
        return self._channel(update, fields)

    def _channel(self, value: Any, fields: frozenset[str]) -> Any:
        if type(value) in (list, tuple):
            return type(value)(self._channel(v, fields) for v in value)
        if isinstance(value, Send):
            sent = copy.copy(value)
            sent.node, sent.arg = self._scrubbed(value.node), self._update(value.arg, fields)
            return sent
        return self._value(value, fields if isinstance(value, BaseMessage) else _NONE)

    def _rebuilt(self, value: Any, clean: Callable[[str, Any], Any]) -> Any:
        """Copy a message or state object, with each attribute filtered by `clean`."""
        other = copy.copy(value)
        for place in _PLACES:
            if held := getattr(value, place, None):
                object.__setattr__(other, place, {self._scrubbed(k): clean(k, v) for k, v in held.items()})
        return self._scrubbed(other)

    def _scrubbed(self, value: Any) -> Any:
        if not self._searches:
            return value
        clean = self.search.clean(value)
        if clean is not None and not isinstance(clean, str | bytes | int | float):
            # A message shows an object by its text, which may contain a token.
            with suppress(Exception):  # if a foreign `__str__` fails, no text is shown
                shown = str(clean)
                if (text := self.search.clean(shown)) is not shown:
                    return text
        return clean

    def error(self, exc: BaseException) -> Any:
        """Return `exc` without tokens. A `GraphInterrupt` or command is changed in place."""
        if not isinstance(exc, GraphBubbleUp):
            return self.search.clean(exc)
        if self._searches and isinstance(exc, ParentCommand):
            exc.args = (self._value(exc.args[0], _NONE), *exc.args[1:])
        elif self._searches and isinstance(exc, GraphInterrupt) and exc.args:
            for asked in exc.args[0]:
                asked.value = self._scrubbed(asked.value)
        return exc


def redact_fields(value: Any, fields: Collection[str]) -> Any:
    """Return `value` with the content of each named field replaced, at any depth.

    Text that is JSON is parsed, also in content blocks. Other text is replaced as a whole.
    """
    if not fields:
        return value
    if isinstance(value, str):
        parsed = _structure(value)
        return json.dumps(_inside(parsed, fields), ensure_ascii=False) if isinstance(parsed, dict | list) else REDACTED
    return _inside(value, fields) if isinstance(value, dict | list | tuple) else None if value is None else REDACTED


def _inside(value: Any, fields: Collection[str]) -> Any:
    """Redact fields in a structure, also in JSON text. Replace objects of other types."""
    if isinstance(value, dict):
        if value.get("type") == "text" and isinstance(value.get("text"), str):
            value = {**value, "text": redact_fields(value["text"], fields)}
        return {k: REDACTED if k in fields else _inside(v, fields) for k, v in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return (list if isinstance(value, list) else tuple)(_inside(v, fields) for v in value)
    if isinstance(value, str) and _structure(value) is not None:
        return redact_fields(value, fields)
    return value if value is None or isinstance(value, str | int | float) else REDACTED


def _structure(text: str) -> dict[str, Any] | list[Any] | str | None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as exc:  # other parsers may accept JSON that is too long or too deep for ours
        return None if isinstance(exc, json.JSONDecodeError) else REDACTED
    return parsed if isinstance(parsed, dict | list) else None


def filter_call(code: Callable[[], Any], clean: Clean, clean_error: Clean) -> Any:
    """Call `code`, and filter its output or exception."""
    try:
        return clean(code())
    except BaseException as exc:  # noqa: BLE001
        failed = clean_error(exc)
    return return_or_raise(None, failed)  # outside the handler, or the original would become its context


def return_or_raise(output: Any, failed: BaseException | None) -> Any:
    """Return `output`, or raise `failed` without a reference to it in this frame."""
    try:
        if failed is not None:
            raise failed
    finally:
        del failed
    return output


async def afilter_call(code: Callable[[], Awaitable[Any]], clean: Clean, clean_error: Clean) -> Any:
    """Await `code`, and filter its output or exception."""
    try:
        return clean(await code())
    except BaseException as exc:  # noqa: BLE001
        failed = clean_error(exc)
    return return_or_raise(None, failed)


class _Store(BaseStore):
    """A store wrapper that removes tokens from writes."""

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


def _task(function: Callable[..., Any], clean: Clean) -> Callable[..., Any]:
    awaits = private.is_async_callable(function)
    filtered = afilter_call if awaits else filter_call

    def called(*args: Any, **kwargs: Any) -> Any:
        if (config := var_child_runnable_config.get()) is not None:
            var_child_runnable_config.set(watched_config(dict(config), clean))  # type: ignore[arg-type]
        return filtered(functools.partial(function, *args, **watched_args(kwargs, clean)), clean, clean)

    async def acalled(*args: Any, **kwargs: Any) -> Any:
        return await called(*args, **kwargs)

    return functools.wraps(function)(acalled if awaits else called)


def watched_config(config: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """Return `config` with filters on its store, streams, tasks and callbacks."""
    own, keys = dict(config.get("configurable") or {}), private.keys
    if isinstance(runtime := own.get(keys.CONFIG_KEY_RUNTIME), Runtime):
        own[keys.CONFIG_KEY_RUNTIME] = _watched(runtime, clean)
    if callable(send := own.get(keys.CONFIG_KEY_SEND)):  # `push_message` writes to the state by it
        own[keys.CONFIG_KEY_SEND] = lambda writes: send(_apart(writes, clean))
    if callable(call := own.get(keys.CONFIG_KEY_CALL)):
        own[keys.CONFIG_KEY_CALL] = lambda task, *args, **options: call(_task(task, clean), *args, **options)
    heard = {"callbacks": watched_callbacks(config["callbacks"], clean)} if config.get("callbacks") else {}
    return {**config, "configurable": own, **heard}


def watched_callbacks(callbacks: Any, clean: Clean) -> Any:
    """Return callbacks whose streamed chunks are filtered."""
    return private.with_streams(callbacks, lambda chunk: _apart(chunk, clean))


def _apart(written: Any, clean: Clean) -> Any:
    return clean(Command(update=written)).update  # it may hold messages and pairs, like a command's update


def watched_args(args: dict[str, Any], clean: Clean) -> dict[str, Any]:
    """Return the arguments with filters on the writes of injected stores and runtimes."""
    watched = {name: _watched(value, clean) for name, value in args.items()}
    return args if all(watched[name] is value for name, value in args.items()) else watched


def _watched(value: Any, clean: Clean) -> Any:
    if isinstance(value, ToolRuntime | Runtime):  # a tool's, or a task's
        own: dict[str, Any] = {"store": _watched(value.store, clean)}
        if callable(writer := value.stream_writer):
            own["stream_writer"] = lambda chunk: writer(clean(chunk))
        if isinstance(value, ToolRuntime):
            own["config"] = watched_config(dict(value.config), clean)
        return dataclasses.replace(value, **own)
    return _Store(value, clean) if isinstance(value, BaseStore) and not isinstance(value, _Store) else value
