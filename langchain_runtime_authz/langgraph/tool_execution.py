"""Run a tool's code: redeem the ticket, filter the output, conclude the call.

A `PendingCall` carries its verdict to the tool's guard. The guard's `ToolExecution` lasts while the tool's code runs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_type_hints
from uuid import UUID

from langchain_core.messages import ToolMessage
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt, is_invalid_resume

from langchain_runtime_authz._flow import drive_apart
from langchain_runtime_authz.credential.ticket import CodeScope, Ticket, current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.langgraph import call_messages, output_filter
from langchain_runtime_authz.langgraph.interrupts import counting_questions, numbers_of
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.pep.call import Call, Verdict
from langchain_runtime_authz.pep.calls_in_doubt import state_of
from langchain_runtime_authz.pep.conclude_calls import conclude_call
from langchain_runtime_authz.pep.mint_tokens import RefusedMints
from langchain_runtime_authz.pep.obligations import obliged_fields
from langchain_runtime_authz.pep.run import Commit, Effect, Flow, PepParts, Run, adrive, drive
from langchain_runtime_authz.telemetry.spans import execute_tool_span

State = Literal["done", "failed", "denied", "suspended", "halted", "unknown", "released"]
Stage = Literal["invoke", "run", "_run", "_arun", "function"]
Outcome = tuple[Any, BaseException | None]  # output or exception of a tool: a flow cannot raise `StopIteration`
FUNCTION: Final[Stage] = "function"
PAUSE: Final = 0.005  # seconds between two looks of a waiting coroutine or thread
Ended = Callable[[Any, BaseException | None], bool]  # returns True if a node asks the exception's question
Locks = tuple[threading.Lock, threading.Lock]
T = TypeVar("T")


class PendingCall(CodeScope):
    """A call on its way to the tool's guard, with its verdict and its run."""

    __slots__ = ("_lock", "answers", "call", "for_review", "paused", "place", "question", "replaced", "used", "verdict")

    def __init__(
        self,
        run: Run,
        call: Call,
        verdict: Verdict | None,  # None: a review asks first, and the guard decides after it
        place: int | None = None,  # the call's index in its task: numbers graphs that its tool calls
        *,
        answers: Sequence[int] = (),  # numbers of answers that an earlier execution and a review used
        paused: bool = False,  # the tool asked a question of its own, and has not finished
        replaced: bool = False,  # an approver replaced the model's call
    ) -> None:
        self.run, self.call, self.verdict, self.place = run, call, verdict, place
        self.answers, self.paused, self.replaced = answers, paused, replaced
        self.for_review = self.used = verdict is None
        self.question: GraphInterrupt | None = None  # raised by a call of code before the tool
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return True to the first caller only, so that the permit is used once."""
        with self._lock:
            first, self.used = not self.used, True
        return first

    def give_back(self) -> Flow[None]:
        """Release the call if its tool did not begin."""
        ticket = self.verdict
        if isinstance(ticket, Ticket) and ticket.withdraw():
            yield from conclude_call(self.run, ticket, self.call, "released")


@dataclass(slots=True, eq=False, repr=False)
class ArrivedCall:
    """A decided call at its tool, with all that its execution needs."""

    one: PendingCall
    pep: PepParts
    config: Mapping[str, Any]  # the call's config
    call_id: str | None  # None: no message can answer the call
    parsed: Any  # the tool's arguments
    ended: Ended = lambda *_: False
    answers: Sequence[int] | None = None  # numbers of the answers that belong to the tool; None: the next ones
    text: bool = False  # a denial is answered by a text
    by_hand: bool = False  # the code finds its config, which counts its questions, in the context

    def start(self, guard: object, code: Callable[[ToolExecution], Any]) -> Flow[Outcome]:
        """Return the flow that runs the tool's `code`, or that answers the call."""
        one = self.one
        # With malformed arguments, the execution has no ticket, and the tool reports the error.
        if isinstance(one.verdict, Ticket) or one.call.error is Code.INVALID_ARGUMENTS:
            return ToolExecution(guard, self).flow(code)
        return self._answer()

    def _answer(self) -> Flow[Outcome]:
        yield from ()
        return call_messages.answer_message(self.one.verdict, self.call_id, text=self.text), None


def decided_already() -> bool:
    """Return True if an earlier enforcement point has decided the current call."""
    one = current_scope.get()
    return type(one) is PendingCall and (one.for_review or not one.used)


# A call that ran is recorded even if its caller is cancelled.
async def _aconclude(pep: PepParts, flow: Flow[None]) -> None:
    ending = adrive(pep, flow)
    await (ending if Commit in pep.non_blocking else asyncio.shield(ending))


# Calls foreign code with arguments: blocking code in `drive`, async code in `adrive`.
RunCode: Final = Effect(lambda _, code, *given: code(*given), lambda _, code, *given: code(*given))
Conclude: Final = Effect(drive, _aconclude)
ConcludeApart: Final = Effect(drive_apart, _aconclude)
# Waits for running tools. Synchronous code waits for its threads itself.
Finish: Final = Effect(lambda *_: None, lambda _, node, *patience: node.finish(*patience))


async def _taken(lock: threading.Lock) -> None:
    # An asyncio lock would not do, because threads may have event loops of their own.
    while not lock.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(PAUSE)


_Take: Final = Effect(lambda _, locks: locks[0].acquire(), lambda _, locks: _taken(locks[1]))


def under_lock(locks: Locks, flow: Flow[T]) -> Flow[T]:
    """Run a flow under a lock. Threads and coroutines have separate locks."""
    lock = locks[0] if (yield (_Take, locks)) else locks[1]
    try:
        return (yield from flow)
    finally:
        lock.release()


class ToolExecution(CodeScope):
    """One execution of a tool. `guard`: a `ToolGuard`, or the callback's run id."""

    __slots__ = ("_ambient", "_answer_numbers", "_before", "_span", "arrived", "call", "config", "guard", "mints", "parsed",
                 "returned", "stages")  # fmt: skip

    def __init__(self, guard: object, arrived: ArrivedCall) -> None:
        one, config, parsed = arrived.one, dict(arrived.config), arrived.parsed
        self.guard, self.arrived, self.run, self.call = guard, arrived, one.run, one.call
        self.ticket = ticket = one.verdict if isinstance(one.verdict, Ticket) else None
        self.mints = ticket is not None and ticket.mint is not None
        if self.mints:  # otherwise nothing can leak
            config = output_filter.watched_config(config, self._outlet)
            parsed = output_filter.watched_args(parsed, self._outlet) if isinstance(parsed, dict) else parsed
        self.parsed, pending = parsed, current_scope.get()
        place = pending.place if type(pending) is PendingCall else None
        self.config: Any
        self.config, self._answer_numbers = counting_questions(config, place, arrived.answers)
        self.stages: list[Stage] = []
        self.returned: Any = None

    def admits(self, stage: Stage) -> bool:
        """Return True once for each stage of the tool. The first redeems the ticket.

        A stage is one of the tool's methods, like `run`, or its function.
        """
        stages = self.stages
        if stage in stages or FUNCTION in stages:
            return False
        if self.ticket is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        if not stages:
            self.ticket.redeem()
            layer = "callback backstop" if type(self.guard) is UUID else "tool guard"
            self.run.pep.tally.count(self.run, "tool", self.call.tool, layer, ran=1)
        stages.append(stage)
        return True

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for the tool's `run`, whose callbacks see no credential."""
        if not given.get("callbacks"):
            return given
        return {**given, "callbacks": output_filter.watched_callbacks(given["callbacks"], self._outlet)}

    def clean(self, value: Any) -> Any:
        """Return the tool's output, filtered, and store it for the record."""
        ticket = self.ticket
        if ticket is not None and (ticket.obligations or ticket.mint is not None):
            value = self._filtered(value, obliged_fields(ticket.obligations))
        self.returned = value
        return value

    def clean_error(self, exc: BaseException) -> Any:
        """Return the tool's exception, filtered; a `GraphBubbleUp` is changed in place."""
        return self._filtered(exc, obliged_fields(self.ticket.obligations) if self.ticket is not None else frozenset())

    def _outlet(self, value: Any) -> Any:
        """Remove live tokens from what the tool writes by config, callbacks or arguments."""
        return self._filtered(value, frozenset())

    def _filtered(self, value: Any, fields: frozenset[str]) -> Any:
        tokens = self.ticket.minted_tokens() if self.ticket is not None else ()
        if self.ticket is None or not (fields or tokens):
            return value
        cleaner = output_filter.OutputFilter(fields, tokens)
        value = cleaner.error(value) if isinstance(value, BaseException) else cleaner.output(value)
        self.ticket.leaked |= cleaner.search.found
        self.ticket.withheld |= cleaner.search.withheld
        return value

    def begin(self) -> None:
        """Make the call current, and start its span."""
        self._before = before = current_scope.get()
        if self.arrived.by_hand:
            self._ambient = var_child_runnable_config.get()
            var_child_runnable_config.set(self.config)
        self.refusals, self.counts = RefusedMints((self.run, None, None)), {}
        self.task, self.entered = before.task, before.entered
        current_scope.set(self)
        decision = self.ticket.decision_id if self.ticket is not None else ""
        self._span = execute_tool_span(self.run, self.call.tool, self.arrived.call_id, decision, self.call.args)
        if self._span is not None:
            self._span.enter()

    def end(self, exc: BaseException | None, output: Any) -> Flow[None] | None:
        """End the call's span and scope. Return the flow that records its end, or None."""
        if self._span is not None:
            self._span.leave()
            if exc is not None:
                self._span.fail(type(exc))
            self._span.end()
        if current_scope.get() is self:  # if the call ends in another context, that keeps its own scope
            current_scope.set(self._before)
            if self.arrived.by_hand:
                var_child_runnable_config.set(self._ambient)
        failed = isinstance(output, ToolMessage) and output.status == "error"
        state: State = _state_of(exc, self.call.profile.effect) if exc is not None else "failed" if failed else "done"
        shown = self.arrived.ended(output, exc)
        asked: Any = exc.args[:1] if isinstance(exc, GraphInterrupt) else ()
        question = str(asked[0][0].id) if asked and len(asked[0]) == 1 else ""
        if question and (numbers := numbers_of(self.config)) is not None:
            numbers.asks = True
        if self.ticket is None:
            return None
        if state != "suspended" and not self.stages and self.ticket.withdraw():
            state = "released"  # parsing, callbacks or a cancellation stopped the tool before it ran
        # The last question has no answer yet. If the node asks it, the answer will have the question's number.
        answered = [*self._answer_numbers][: -1 if isinstance(exc, GraphInterrupt) and not shown else None]
        result, returned = call_messages.only_asked(answered) if answered else None, None
        if state in ("failed", "unknown"):
            returned = output.content if failed else exc
        if state == "done":
            if self.call.profile.side_effect:
                result = call_messages.result_for_replay(output, answered, self.arrived.call_id)
            returned, tool = self.returned, self.call.input.tool
            if type(returned) is not str:
                returned = call_messages.read_by_model(tool, returned) if isinstance(tool, BaseTool) else None
        ended = "suspended" if state == "halted" else state
        return conclude_call(self.run, self.ticket, self.call, ended, result, output=returned, question=question)

    def flow(self, code: Callable[[ToolExecution], Any]) -> Flow[Outcome]:
        """Run the tool's code, and record the call's end."""
        self.begin()
        output, failed = None, None
        try:
            output = yield (RunCode, code, self)
        except BaseException as exc:  # noqa: BLE001  (the caller raises it, once the call is closed)
            failed = exc
        if (over := self.end(failed, output)) is not None:
            yield (Conclude, over)
        call_id = self.arrived.call_id
        if call_id is not None and isinstance(failed, AuthzDenied) and not isinstance(failed, GraphBubbleUp):
            # A step *inside* the tool (a child agent, another tool) was denied.
            return call_messages.denial_message(call_messages.denial_of(self.call, failed), call_id), None
        return output, failed


def _state_of(exc: BaseException, effect: str) -> State:
    # After an invalid answer, the tool's own question stays open.
    if isinstance(exc, GraphInterrupt) or (isinstance(exc, Exception) and is_invalid_resume(exc)):
        return "suspended"
    # A step inside the tool was denied, which has its own record. After a halt, the tool runs again on resume.
    if isinstance(exc, AuthzDenied) and effect != "pay":
        return "halted" if isinstance(exc, AuthzHalt) else "denied"
    return state_of(exc)


def returns_text(tool: BaseTool) -> bool:
    """Return True if a tool's function is declared to return a text."""
    code: Any = getattr(tool, "func", None) or getattr(tool, "coroutine", None) or tool._run
    try:
        return tool.response_format == "content" and get_type_hints(code).get("return") is str
    except Exception:  # noqa: BLE001  (annotations that cannot be resolved declare nothing)
        return False
