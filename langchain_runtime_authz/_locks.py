"""Locks that survive a fork.

Servers fork workers after they have loaded an application. If another thread holds a lock at the fork, nothing in the
child releases it, and the data that it guards may be half written. So the forking thread first acquires all locks, and
both processes release them.
"""

from __future__ import annotations

import fcntl
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS = [os.urandom(8).hex()]
"""A list with the random name of this process; each fork has another name."""

_registry = threading.Lock()
_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_taken: list[threading.Lock] = []


def forkable_lock() -> threading.Lock:
    """Return a lock that is free in a forked child.

    A fork waits for all of these locks, so a thread that holds one must not wait for another of them.
    """
    lock = threading.Lock()
    with _registry:
        _locks.add(lock)
    return lock


def cached_property(method: Callable[[Any], T]) -> functools.cached_property[T]:
    """Return a cached property without a lock that a fork may leave held."""
    found = functools.cached_property(method)
    found.lock = nullcontext()  # type: ignore[attr-defined]
    return found


def in_child(method: Callable[[], object]) -> None:
    """Call a bound method in each forked child while the method's object exists."""
    held = weakref.WeakMethod(method)
    os.register_at_fork(after_in_child=lambda: (found := held()) is not None and found())


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which is created if missing. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing is not enough: a child that was forked meanwhile has the locked file open too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _before() -> None:
    _registry.acquire()
    for lock in list(_locks):
        lock.acquire()
        _taken.append(lock)


def _after() -> None:
    while _taken:
        _taken.pop().release()
    _registry.release()


def _child() -> None:
    PROCESS[0] = os.urandom(8).hex()
    _after()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_child)
