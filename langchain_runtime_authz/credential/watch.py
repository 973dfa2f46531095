"""Watches what a tool prints and logs while it holds a token.

A careless tool prints its token, or logs the headers that it sent. So as long as a minted token lives in
this process, `sys.stdout`, `sys.stderr` and the log records that are made are searched for it; when the
last one is dead everything is as it was. This is the one thing here that is the process's and not an
object's, because its streams and loggers are.

What writes elsewhere (a file descriptor, a file of its own) is not seen, nor an object in an `extra` field of a record.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from langchain_runtime_authz.credential.leak import scrub

__all__ = ["Holder", "unwatch", "watch"]


class Holder(Protocol):
    """What holds tokens: a `Ticket`."""

    def minted_tokens(self) -> tuple[str, ...]:
        """Those to search for."""
        ...

    def accuse(self) -> None:
        """One of them was seen."""
        ...


_STREAMS: Final = ("stdout", "stderr")
_lock: Final = threading.RLock()
# Weak: a call that is never concluded is forgotten with its ticket.
_alive: Final[weakref.WeakValueDictionary[int, Holder]] = weakref.WeakValueDictionary()
_factory: Callable[..., logging.LogRecord] | None = None


def watch(holder: Holder) -> None:
    """Search for the tokens of `holder` until `unwatch`."""
    global _factory  # noqa: PLW0603  (the process has one)
    with _lock:
        _alive[id(holder)] = holder
        for name in _STREAMS:
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Stream):
                setattr(sys, name, _Stream(stream))
        current = logging.getLogRecordFactory()
        if current is not _record:
            _factory = current
            logging.setLogRecordFactory(_record)


def unwatch(holder: Holder) -> None:
    """The call of `holder` is over. Twice is no error."""
    with _lock:
        _alive.pop(id(holder), None)
        if _alive:
            return
        for name in _STREAMS:
            stream = getattr(sys, name)
            if isinstance(stream, _Stream):
                setattr(sys, name, stream.__wrapped__)
        # Where another factory was put over ours, it may call ours, which then only passes on.
        if logging.getLogRecordFactory() is _record and _factory is not None:
            logging.setLogRecordFactory(_factory)


def cleaned(value: Any) -> Any:
    """`value` without a living token; who holds it is accused."""
    with _lock:
        holders = tuple(_alive.values())
    for holder in holders:
        value, found = scrub(value, holder.minted_tokens())
        if found:
            holder.accuse()
    return value


class _Stream:
    """A text stream that is searched before it is written."""

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped

    def write(self, text: str) -> Any:
        return self.__wrapped__.write(cleaned(text))

    def writelines(self, lines: Iterable[str]) -> None:
        # As one text: a token may be broken over lines.
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __iter__(self) -> Any:
        return iter(self.__wrapped__)

    def __enter__(self) -> Any:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *exc: object) -> Any:
        return self.__wrapped__.__exit__(*exc)


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = (_factory or logging.LogRecord)(*args, **kwargs)
    if not _alive:
        return record
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001  (a wrong format is the logger's to complain about)
        text = ""
    clean = cleaned(text)
    if clean is not text:
        record.msg, record.args = clean, ()
    if record.exc_info and isinstance(record.exc_info[1], BaseException):
        exc = cleaned(record.exc_info[1])
        record.exc_info = (type(exc), exc, record.exc_info[2])
    if record.stack_info:
        record.stack_info = cleaned(record.stack_info)
    record.__dict__ = _Fields(record.__dict__)
    return record


class _Fields(dict[str, Any]):
    """The attributes of a record. `Logger.makeRecord` puts a caller's `extra` here once the record is made."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, cleaned(value) if isinstance(value, _WRITTEN) else value)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # for whoever receives the record in another process


_WRITTEN: Final = (str, bytes, Mapping, list, tuple, set, frozenset)
