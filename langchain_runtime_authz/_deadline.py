"""Run another's code in a thread of its own, so that waiting for it can have an end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def begun(function: Callable[[], T], name: str) -> Future[T]:
    """Start `function` in an empty context and return its future. A hanging one does not keep the process alive."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that nobody can cancel it

    def run() -> None:
        try:
            future.set_result(Context().run(function))
        except BaseException as exc:  # noqa: BLE001  (raised where the future is read)
            future.set_exception(exc)

    Thread(target=run, name=name, daemon=True).start()
    return future
