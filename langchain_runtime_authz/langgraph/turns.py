"""The calls of one execution of a tool node, and when each has its turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.langgraph.tool_execution import Held

__all__ = ["Turns", "current_turns", "turns_scope"]


class Turns:
    """The calls of one execution of the node, by identity, and their order.

    Tools run side by side until one asks a human by itself. LangGraph gives a task's answers out by
    number, so from then on they take turns, and of several that ask, the first in order is heard.

    Attributes:
        asked: one of them has asked.
    """

    __slots__ = ("_adone", "_done", "_held", "_order", "asked", "config", "serial")

    def __init__(self, config: Any, calls: Sequence[Any], held: Sequence[Held]) -> None:
        self.config = config
        self._held: dict[int, Held] = {}
        self._order: dict[int, int] = {}
        for call, one in zip(calls, held, strict=True):  # a node may send one call twice: the first is it
            self._held.setdefault(id(call), one)
            self._order.setdefault(id(call), len(self._order))
        self.asked = False
        self.serial = any(h.paused or h.answers or h.left for h in held)
        self._done = [threading.Event() for _ in self._order] if self.serial else []
        self._adone = [asyncio.Event() for _ in self._order] if len(self._order) > 1 else []

    def of(self, call: Any) -> Held | None:
        """What a gate in front decided on the call."""
        return self._held.get(id(call))

    @contextmanager
    def turn(self, call: Any) -> Iterator[None]:
        """The time in which the call may run."""
        place = self._order.get(id(call), 0)
        try:
            if self.serial:
                for before in self._done[:place]:
                    before.wait()
            yield
        except GraphInterrupt:
            self.asked = True
            raise
        finally:
            if self.serial:
                self._done[place].set()

    @asynccontextmanager
    async def aturn(self, call: Any) -> AsyncIterator[None]:
        """The time in which the call may run."""
        place = self._order.get(id(call), 0)
        try:
            if self.serial:
                await self._before(place)
            yield
        except GraphInterrupt:
            self.asked = True
            await self._before(place)
            raise
        finally:
            if self._adone:
                self._adone[place].set()

    async def _before(self, place: int) -> None:
        for before in self._adone[:place]:
            await before.wait()


_turns: ContextVar[Turns | None] = ContextVar("langchain_runtime_authz.turns", default=None)


def current_turns() -> Turns | None:
    """The calls of the node execution around the current code."""
    return _turns.get()


@contextmanager
def turns_scope(turns: Turns) -> Iterator[None]:
    """One execution of a node, with its calls decided."""
    previous = _turns.get()
    _turns.set(turns)
    try:
        yield
    finally:
        _turns.set(previous)
