"""Locks that a process may be forked under: servers fork workers after they have loaded an application.

A lock of threads that another thread holds at the fork is never released in the child, and what it guards may be
half written. So the forking thread takes all of them first, and both processes give them back.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks there: one process only
    fcntl = None  # type: ignore[assignment]

__all__ = ["file_lock", "forkable_lock"]

_registry = threading.Lock()
_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_taken: list[threading.Lock] = []


def forkable_lock() -> threading.Lock:
    """A lock that is free in a forked child. No thread may hold one while it waits for another."""
    lock = threading.Lock()
    with _registry:
        _locks.add(lock)
    return lock


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the file is made where there is none.

    Raises:
        OSError: it can not be opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl is not None:
            # Not by closing alone: a child that was forked meanwhile holds the same lock open.
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
