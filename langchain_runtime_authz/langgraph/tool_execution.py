"""One permitted run of a tool: what surrounds its code, and how the call is closed.

`Passage` is used by `with` and by `async with` alike, so that the two roads differ in one `await`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Literal
from uuid import UUID

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt, is_invalid_resume

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import Ticket, ticket_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph._private import counting_questions
from langchain_runtime_authz.langgraph.interrupts import Resolved
from langchain_runtime_authz.langgraph.messages import denial_message, only_asked, recorded, replay_message, said
from langchain_runtime_authz.langgraph.outlets import watched_args, watched_callbacks, watched_config
from langchain_runtime_authz.langgraph.output_filter import Cleaner
from langchain_runtime_authz.langgraph.run_context import run_scope
from langchain_runtime_authz.pep.call import Call, Denial, Replay, Verdict
from langchain_runtime_authz.pep.claim import conclude
from langchain_runtime_authz.pep.engine import Flow, Run, adrive, drive
from langchain_runtime_authz.pep.obligations import obliged_fields
from langchain_runtime_authz.telemetry import execute_tool_span

__all__ = ["FUNCTION", "Held", "Passage", "Stage", "answer", "current_passage", "denied", "held", "held_scope", "holds"]

State = Literal["done", "failed", "suspended", "unknown", "released"]
Stage = Literal["invoke", "run", "_run", "_arun", "function"]
FUNCTION: Final[Stage] = "function"


class Held:
    """What a gate in front hands to the guard: the verdict, the call and the run it belongs to.

    Attributes:
        left: there is no verdict: a review on the way asks a human first, and the guard decides what comes of it.
        used: the guard has met it.
    """

    __slots__ = ("_lock", "answers", "call", "left", "paused", "place", "replaced", "run", "used", "verdict")

    def __init__(self, run: Run, settled: Resolved, place: int | None = None) -> None:
        self.run, self.place = run, place
        self.call, self.verdict, self.answers, self.paused, self.replaced = settled
        self.left = self.verdict is None
        self.used = self.left
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether the verdict is the caller's: a node that sends one call twice may run both at once."""
        with self._lock:
            first, self.used = not self.used, True
        return first

    def give_back(self) -> Flow[None]:
        """Give a ticket back that nobody redeemed."""
        ticket = self.verdict
        if isinstance(ticket, Ticket) and not ticket.redeemed and not ticket.concluded:
            yield from conclude(self.run, ticket, self.call, "released")


_held: ContextVar[Held | None] = ContextVar("langchain_runtime_authz.held", default=None)
_passage: ContextVar[Passage | None] = ContextVar("langchain_runtime_authz.passage", default=None)


def held() -> Held | None:
    """What a gate in front handed on to the tool that is about to run, if one did."""
    return _held.get()


def holds() -> bool:
    """Whether a gate in front has seen to the call that is being made."""
    one = _held.get()
    return one is not None and (one.left or not one.used)


def current_passage() -> Passage | None:
    """The passage of the guarded tool around the current code, if any."""
    return _passage.get()


class held_scope:
    """Hand `one` to the guard of the one call made inside."""

    __slots__ = ("_one", "_previous")

    def __init__(self, one: Held | None) -> None:
        self._one = one

    def __enter__(self) -> None:
        self._previous = _held.get()
        _held.set(self._one)

    def __exit__(self, *exc: object) -> None:
        _held.set(self._previous)


class Passage:
    """One permitted run of a tool.

    Attributes:
        of: whose it is: tools that are copies of each other share it.
        parsed: the arguments that the tool receives, whatever it was sent.
        config: the config that the tool runs with.
        output: what `run` gives back, or the answer in its place; set inside the `with`.
        returned: what the tool's own code returned, cleaned.
    """

    __slots__ = ("_asked", "_before", "_scopes", "_settled", "_span", "_stages",
                 "call", "call_id", "config", "of", "output", "parsed", "returned", "run", "ticket")  # fmt: skip

    def __init__(
        self,
        of: object,
        run: Run,
        call: Call,
        ticket: Ticket | None,
        *,
        parsed: Any,
        config: Mapping[str, Any],
        call_id: str | None,
        settled: Callable[[], None] | None,
    ) -> None:
        self.of, self.run, self.call, self.ticket, self.parsed, self.call_id = of, run, call, ticket, parsed, call_id
        self.config: Any
        gate = _held.get()
        config = dict(config)
        if ticket is not None and ticket.mint is not None:  # else there is no token to write anywhere
            config = watched_config(config, self._outlet)
            self.parsed = watched_args(parsed, self._outlet) if isinstance(parsed, dict) else parsed
        self.config, self._asked = counting_questions(config, gate.place if gate is not None else None)
        self._settled = settled
        self._stages: list[Stage] = []
        self.output: Any = None
        self.returned: Any = None

    # --- the tool's own code ---

    def admits(self, stage: Stage) -> bool:
        """Whether `stage` of the tool's code may start under this passage; the first redeems the ticket.

        Each runs once, and the function that the tool was made of is the last: an `_arun` that calls
        its own `_run` is one passage, and what the function calls is another.
        """
        if stage in self._stages or FUNCTION in self._stages:
            return False
        if self.ticket is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        if not self._stages:
            self.ticket.redeem()
            self.run.engine.tally.ran(self.run, "tool", self.call.tool, self.layer)
        self._stages.append(stage)
        return True

    @property
    def layer(self) -> str:
        """Who lets the call run: the tool's guard, or the ambient hook, whose passage is of one run of a tool."""
        return "ambient hook" if isinstance(self.of, UUID) else "tool guard"

    @property
    def started(self) -> bool:
        """Whether any of the tool's own code has run: it has parsed its arguments by then."""
        return bool(self._stages)

    @property
    def invoked(self) -> bool:
        """Whether the tool's own `invoke` is all of its code that has started."""
        return self._stages == ["invoke"]

    @property
    def outermost(self) -> bool:
        """Whether the stage that was admitted last is the first of the passage: what it gives is given out."""
        return len(self._stages) == 1

    def watched(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of `run`, in which the config's callbacks stand once more."""
        if self.ticket is None or self.ticket.mint is None or not options.get("callbacks"):
            return options
        return {**options, "callbacks": watched_callbacks(options["callbacks"], self._outlet)}

    def clean(self, value: Any) -> Any:
        """What the tool returned, fit to be given out."""
        cleaner = self._cleaner()
        self.returned = value if cleaner is None else cleaner.output(value)
        self._tell(cleaner)
        return self.returned

    def clean_error(self, exc: BaseException) -> BaseException:
        """What the tool raised, likewise. A `GraphBubbleUp` is cleaned in place."""
        cleaner = self._cleaner()
        if cleaner is None:
            return exc
        if isinstance(exc, GraphBubbleUp):
            cleaner.bubble(exc)
        else:
            exc = cleaner.error(exc)
        self._tell(cleaner)
        return exc

    def _outlet(self, value: Any) -> Any:
        """What the tool writes beside its result, without a live token."""
        tokens = self.ticket.minted_tokens() if self.ticket is not None else ()
        if self.ticket is None or not tokens:
            return value
        if isinstance(value, BaseException):
            return self.clean_error(value)
        cleaner = Cleaner(frozenset(), tokens)
        clean = cleaner.output(value)
        self._tell(cleaner)
        return clean

    def _cleaner(self) -> Cleaner | None:
        if self.ticket is None:
            return None
        fields, tokens = obliged_fields(self.ticket.obligations), self.ticket.minted_tokens()
        return Cleaner(fields, tokens) if fields or tokens else None

    def _tell(self, cleaner: Cleaner | None) -> None:
        """What was found, for the end of the call."""
        if self.ticket is not None and cleaner is not None:
            if cleaner.found:
                self.ticket.accuse()
            if cleaner.withheld:
                self.ticket.withhold()

    # --- around it ---

    def __enter__(self) -> Passage:
        run, call = self.run, self.call
        self._before = _passage.get()
        _passage.set(self)
        # No gate's verdict passes on to calls that the tool makes.
        self._scopes: list[AbstractContextManager[object]] = [held_scope(None), run_scope(run)]
        if self.ticket is not None:
            self._scopes.append(ticket_scope(self.ticket))
        for scope in self._scopes:
            scope.__enter__()
        agent_id = run.engine.identity.agent_id(run.agent)
        self._span = execute_tool_span(call.tool, self.call_id, run.agent[-1], run.scope.thread, agent_id=agent_id)
        self._span.__enter__()
        return self

    async def __aenter__(self) -> Passage:
        return self.__enter__()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool:
        state = self._leave(kind, exc, tb)
        if self.ticket is not None:
            drive(self.run.engine, self._conclude(state))
        return self._answered(exc)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        state = self._leave(kind, exc, tb)
        if self.ticket is not None:
            # A call that ran is recorded, whoever stops waiting for it.
            await asyncio.shield(adrive(self.run.engine, self._conclude(state)))
        return self._answered(exc)

    def _leave(self, kind: Any, exc: BaseException | None, tb: Any) -> State:
        self._span.__exit__(kind, exc, tb)
        for scope in reversed(self._scopes):
            scope.__exit__(None, None, None)
        if _passage.get() is self:  # else this is closed in another context, which keeps its own
            _passage.set(self._before)
        if exc is not None:
            return self._failed(exc)
        state: State = "failed" if isinstance(self.output, ToolMessage) and self.output.status == "error" else "done"
        if state == "done" and self._settled is not None:
            self._settled()
        return state

    def _failed(self, exc: BaseException) -> State:
        # An invalid answer to the tool's own question leaves the question open.
        if isinstance(exc, GraphInterrupt) or (isinstance(exc, Exception) and is_invalid_resume(exc)):
            return "suspended"
        if isinstance(exc, asyncio.CancelledError | KeyboardInterrupt | SystemExit | GeneratorExit):
            return "unknown"
        return "failed"

    def _conclude(self, state: State) -> Flow[None]:
        if self.ticket is None:
            msg = "a passage without a ticket has nothing to conclude"
            raise TypeError(msg)
        if state in ("done", "failed") and not self._stages:
            state = "released"  # the tool's own parsing or callbacks stopped it before it ran
        asked = len(self._asked) - (1 if state == "suspended" else 0)  # the last one has no answer yet
        result = recorded(self.output, asked) if state == "done" else only_asked(asked)
        tool = self.call.tool_ref
        returned = said(tool, self.returned) if state == "done" and isinstance(tool, BaseTool) else None
        return conclude(self.run, self.ticket, self.call, state, result, output=returned)

    def _answered(self, exc: BaseException | None) -> bool:
        """Whether a message stands in place of a step *inside* the tool (a child agent, another tool) that was denied."""
        if self.call_id is None or not isinstance(exc, AuthzDenied) or isinstance(exc, GraphBubbleUp):
            return False
        self.output = denial_message(denied(self.call, exc), self.call_id)
        return True


def answer(verdict: Verdict, call_id: str | None) -> Any:
    """A soft deny where a message can carry it, else `AuthzDenied`."""
    if isinstance(verdict, Denial):
        if call_id is None:
            raise AuthzDenied(verdict.decision.reason, verdict.decision.decision_id)
        return denial_message(verdict, call_id)
    if isinstance(verdict, Replay):
        message = replay_message(verdict, call_id)
        return message if call_id is not None else message.content
    msg = "a ticket is no answer"
    raise TypeError(msg)


def denied(call: Call, exc: AuthzDenied) -> Denial:
    """The denial of a call for the reason that `exc` gives."""
    return Denial(call, replace(deny(exc.code), decision_id=exc.decision_id))
