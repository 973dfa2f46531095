"""The way of one call into a guarded tool: decided, it is a passage or an answer, for sync and async callers alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool

from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.langgraph.arguments import supplied, without
from langchain_runtime_authz.langgraph.arrival import Arrival, Decided, arrival
from langchain_runtime_authz.langgraph.guarded import facts_of, guard_of
from langchain_runtime_authz.langgraph.tool_execution import Passage, answer
from langchain_runtime_authz.langgraph.tool_profiles import ToolFacts
from langchain_runtime_authz.pep.engine import adrive, drive

__all__ = ["WayIn", "arrived"]


class WayIn:
    """A call on its way into a guarded tool, by `with` or `async with`: a passage, or `None` and only an answer.

    `of` is whose passage it will be: copies of one tool share it. `parser` makes arguments of what `run` was `given`: injected arguments are this very call's, what was decided stays
    what was decided. Malformed arguments go the stock road: the tool's own parsing raises the stored
    error before the tool runs, and there is no ticket.
    """

    __slots__ = ("_arrived", "_call_id", "_config", "_decided", "_facts", "_given", "_of", "_parser", "_passage")

    def __init__(
        self,
        of: object,
        facts: ToolFacts,
        arrived: Arrival | Decided,
        config: Mapping[str, Any],
        call_id: str | None = None,
        parser: Callable[..., Any] | None = None,
        given: Any = None,
    ) -> None:
        self._of, self._facts, self._arrived, self._config = of, facts, arrived, config
        self._call_id, self._parser, self._given = call_id, parser, given
        self._passage: Passage | None = None

    def __enter__(self) -> Passage | None:
        arrived = self._arrived
        self._decided = arrived if isinstance(arrived, Decided) else drive(arrived.engine, arrived.decide())
        return self._open()

    async def __aenter__(self) -> Passage | None:
        arrived = self._arrived
        self._decided = arrived if isinstance(arrived, Decided) else await adrive(arrived.engine, arrived.decide())
        return self._open()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool:
        return self._passage.__exit__(kind, exc, tb) if self._passage is not None else False

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        return await self._passage.__aexit__(kind, exc, tb) if self._passage is not None else False

    @property
    def output(self) -> Any:
        """What came of it, after the `with`."""
        return self._passage.output if self._passage is not None else answer(self._decided.verdict, self._call_id)

    def _open(self) -> Passage | None:
        run, call, verdict, settled = self._decided
        ticket = verdict if isinstance(verdict, Ticket) else None
        if run is None or (ticket is None and call.error is not Code.INVALID_ARGUMENTS):
            return None
        parsed = call.parsed if ticket is None else self._own(call.parsed)
        config, call_id = self._config, self._call_id
        self._passage = Passage(
            self._of, run, call, ticket, parsed=parsed, config=config, call_id=call_id, settled=settled
        )
        return self._passage.__enter__()

    def _own(self, parsed: Any) -> Any:
        """The arguments that were decided, with what the framework supplies for this call."""
        injected = self._facts.injected
        if self._parser is None or not isinstance(parsed, dict):
            return parsed
        sent = self._given if isinstance(self._given, dict) else {}
        if not any(supplied(k, v, injected) for k, v in (*sent.items(), *parsed.items())):
            return parsed
        now = self._parser(dict(sent), self._call_id)
        own = now if isinstance(now, dict) else {}
        return without(parsed, injected) | {k: v for k, v in own.items() if supplied(k, v, injected)}


def arrived(tool: BaseTool, base: type[BaseTool], tool_input: Any, config: Any, call_id: str | None) -> WayIn:
    """A call of `run` or `arun`."""
    config, facts, parser = ensure_config(config), facts_of(tool), functools.partial(base._parse_input, tool)
    found = arrival(tool, facts, tool_input, config, call_id, parser)
    return WayIn(guard_of(tool), facts, found, config, call_id, parser, tool_input)
