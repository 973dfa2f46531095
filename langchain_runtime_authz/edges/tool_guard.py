"""Guarded tools: the primary gate.

A guarded tool is a copy of the tool whose class is a dynamic subclass of the tool's own, so that it
is still what it was (`isinstance`, name, schema, attributes) and every route that uses the object
meets the guard: `invoke`, `ainvoke`, `batch`, `stream`, LCEL, ToolNode, raw threads.

Where a gate in front decided, the guard finds its ticket and lets exactly that call pass, with the
very arguments that were decided. Where none did, or where the arguments or the tool were changed on
the way, it decides on what would really run.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand, is_invalid_resume
from langgraph.types import Command
from pydantic import PrivateAttr

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.leak import scrub
from langchain_runtime_authz.credential.lease import Ticket, ticket_scope
from langchain_runtime_authz.edges._private import counting_questions, injected_names, skip_answers, task_id
from langchain_runtime_authz.edges.calls import Malformed, describe, supplied, unchanged, unknown, without
from langchain_runtime_authz.edges.deciding import decide_together
from langchain_runtime_authz.edges.entry import RunHandle, opened
from langchain_runtime_authz.edges.handle import find_run, run_scope, settled
from langchain_runtime_authz.edges.messages import denial_message, only_asked, recorded, replay_message, said
from langchain_runtime_authz.edges.profiles import Profiles, ToolFacts
from langchain_runtime_authz.enforce.engine import Flow, Run, adrive, drive
from langchain_runtime_authz.enforce.obligations import redact
from langchain_runtime_authz.enforce.step import Call, Denial, Replay, Verdict, conclude, obliged_fields
from langchain_runtime_authz.errors import AlreadyProtected, AuthzDenied, Code
from langchain_runtime_authz.telemetry import execute_tool_span

__all__ = ["Held", "facts_of", "guard_tool", "held_scope", "is_guarded"]

T = TypeVar("T")


class Held:
    """What a gate in front hands to the guard: the verdict, the call and the run it belongs to."""

    __slots__ = ("answers", "call", "paused", "run", "used", "verdict")

    def __init__(self, run: Run, call: Call, verdict: Verdict, answers: int = 0, *, paused: bool = False) -> None:
        self.run, self.call, self.verdict, self.answers, self.paused = run, call, verdict, answers, paused
        self.used = False


_held: ContextVar[Held | None] = ContextVar("langchain_runtime_authz.held", default=None)


@contextmanager
def held_scope(held: Held | None) -> Iterator[None]:
    """Hand `held` to the guard of the one call made inside."""
    previous = _held.get()
    _held.set(held)
    try:
        yield
    finally:
        _held.set(previous)


class _Guard:
    """What a guarded tool knows: where its profile comes from. Shared by its copies."""

    __slots__ = ("profiles", "seen")

    def __init__(self, profiles: Profiles) -> None:
        self.profiles = profiles
        self.seen: tuple[tuple[object, ...], ToolFacts] | None = None

    def facts(self, tool: BaseTool) -> ToolFacts:
        # Identity of what a digest is made of: a tool that is changed at run time is looked at anew.
        key = (tool.name, tool.description, tool.args_schema, tool.metadata)
        if self.seen is not None and all(a is b for a, b in zip(self.seen[0], key, strict=True)):
            return self.seen[1]
        found = ToolFacts(self.profiles.of(tool), injected_names(tool))
        self.seen = (key, found)
        return found


class _Passage:
    """One permitted run of a tool: opened by `run`/`arun`, used once by `_run`/`_arun`."""

    __slots__ = ("asked", "entered", "leaked", "nested", "parsed", "returned", "run", "ticket", "tool")

    def __init__(self, tool: BaseTool, run: Run, ticket: Ticket | None, parsed: Any) -> None:
        self.tool, self.run, self.ticket, self.parsed = tool, run, ticket, parsed
        self.asked: list[int] = []
        self.entered = False
        self.nested = False
        self.leaked = False
        self.returned: Any = None

    def enter(self) -> None:
        """Redeem the ticket. A tool's `_arun` that calls its own `_run` is still one passage."""
        if self.ticket is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        if self.entered:
            if self.nested:
                raise AuthzDenied(Code.CALL_IN_PROGRESS, self.ticket.decision_id)
            self.nested = True
            return
        self.ticket.redeem()
        self.entered = True

    def clean(self, value: Any) -> Any:
        """Output without what the decision obliges to hide, and without a live token."""
        self.returned = self._cleaned(value)
        return self.returned

    def _cleaned(self, value: Any) -> Any:
        if self.ticket is None:
            return value
        fields = obliged_fields(self.ticket.obligations)
        tokens = self.ticket.minted_tokens()
        if not fields and not tokens:
            return value
        return self._clean(value, fields, tokens)

    def _clean(self, value: Any, fields: frozenset[str], tokens: tuple[str, ...]) -> Any:
        if isinstance(value, BaseMessage):
            changes: dict[str, Any] = {"content": self._clean(value.content, fields, tokens)}
            for name in ("additional_kwargs", "response_metadata"):
                changes[name] = self._clean(getattr(value, name), frozenset(), tokens)
            if isinstance(value, ToolMessage) and value.artifact is not None:
                changes["artifact"] = self._clean(value.artifact, fields, tokens)
            return value.model_copy(update=changes)
        if isinstance(value, Command):
            return Command(
                graph=value.graph,
                update=self._clean_update(value.update, fields, tokens),
                resume=value.resume,
                goto=value.goto,
            )
        if isinstance(value, list) and any(isinstance(v, BaseMessage | Command) for v in value):
            return [self._clean(v, fields, tokens) for v in value]
        return redact(self._scrubbed(value, tokens), fields)

    def _scrubbed(self, value: Any, tokens: tuple[str, ...]) -> Any:
        if not tokens:
            return value
        clean, found = scrub(value, tokens)
        if clean is not None and not isinstance(clean, str | bytes | int | float):
            # An object shows what it holds by its text, and text is what a message is made of.
            text, shows = scrub(_text_of(clean), tokens)
            clean, found = (text, True) if shows else (clean, found)
        self.leaked = self.leaked or found
        return clean

    def clean_bubble(self, exc: GraphBubbleUp) -> None:
        """A question or a command that leaves the tool by exception, without a live token, in place."""
        tokens = self.ticket.minted_tokens() if self.ticket is not None else ()
        if not tokens:
            return
        if isinstance(exc, ParentCommand):
            exc.args = (self._clean(exc.args[0], frozenset(), tokens), *exc.args[1:])
        elif isinstance(exc, GraphInterrupt) and exc.args:
            for asked in exc.args[0]:
                asked.value = self._scrubbed(asked.value, tokens)

    def _clean_update(self, update: Any, fields: frozenset[str], tokens: tuple[str, ...]) -> Any:
        """A state update: its messages like messages, the rest searched for tokens."""
        if isinstance(update, dict):
            return {k: self._clean_channel(v, fields, tokens) for k, v in update.items()}
        return self._clean_channel(update, fields, tokens)

    def _clean_channel(self, value: Any, fields: frozenset[str], tokens: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [self._clean_channel(v, fields, tokens) for v in value]
        return self._clean(value, fields if isinstance(value, BaseMessage) else frozenset(), tokens)

    def clean_error(self, exc: BaseException) -> BaseException:
        """The exception without a live token, in text, notes, attributes, cause or context."""
        tokens = self.ticket.minted_tokens() if self.ticket is not None else ()
        if not tokens:
            return exc
        clean, found = scrub(exc, tokens)
        self.leaked = self.leaked or found
        return clean


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  (a foreign `__str__`; what can not be shown shows no token)
        return ""


_passage: ContextVar[_Passage | None] = ContextVar("langchain_runtime_authz.passage", default=None)


@contextmanager
def _passage_scope(passage: _Passage) -> Iterator[None]:
    previous = _passage.get()
    _passage.set(passage)
    try:
        yield
    finally:
        if _passage.get() is passage:  # else this is closed in another context, which keeps its own
            _passage.set(previous)


def is_guarded(tool: object) -> bool:
    """Whether the tool is a guarded one."""
    return getattr(type(tool), "__runtime_authz_guarded__", False) is True


def facts_of(tool: BaseTool) -> ToolFacts:
    """What is known of a guarded tool as it is now."""
    guard: _Guard = tool._authz_guard  # type: ignore[attr-defined]
    return guard.facts(tool)


def guard_tool(tool: BaseTool, profiles: Profiles) -> BaseTool:
    """A guarded copy of `tool`; a tool that is guarded already is returned as it is.

    Raises:
        AlreadyProtected: another `RuntimeAuthz` guards it.
    """
    if is_guarded(tool):
        if tool._authz_guard.profiles is not profiles:  # type: ignore[attr-defined]
            raise AlreadyProtected(tool.name)
        return tool
    copy = tool.model_copy()
    guard = _Guard(profiles)
    guard.facts(copy)  # pins the digest to the tool as it is now
    private = dict(copy.__pydantic_private__ or {})
    object.__setattr__(copy, "__class__", _guarded_class(type(tool)))
    object.__setattr__(copy, "__pydantic_private__", {**private, "_authz_guard": guard})
    return copy


_classes: weakref.WeakKeyDictionary[type[BaseTool], type[BaseTool]] = weakref.WeakKeyDictionary()


def _guarded_class(base: type[BaseTool]) -> type[BaseTool]:
    """The guarded subclass of a tool class, made once per class."""
    if base not in _classes:
        _classes[base] = _make_guarded_class(base)
    return _classes[base]


def _make_guarded_class(base: type[BaseTool]) -> type[BaseTool]:
    def run(
        self: Any,
        tool_input: Any,
        *args: Any,
        config: Any = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        config = ensure_config(config)
        entered = _enter(self, tool_input, config, tool_call_id, base)
        run_, call, verdict = entered if isinstance(entered, tuple) else drive(entered.engine, entered.flow())
        if run_ is None or (not isinstance(verdict, Ticket) and not _is_malformed(call)):
            return _answer(verdict, tool_call_id)
        passage = _passage_of(self, run_, call, verdict, tool_input, tool_call_id, base)
        state, output = "unknown", None
        try:
            config, passage.asked = counting_questions(config)
            with _around(passage, call, tool_call_id):
                output = base.run(self, tool_input, *args, config=config, tool_call_id=tool_call_id, **kwargs)
            state = _state(output)
            if state == "done" and isinstance(entered, _Undecided):
                entered.settled()
            return output
        except BaseException as exc:
            state = _failed(passage, exc)
            if (soft := _denied_inside(exc, call, tool_call_id)) is None:
                raise
            return soft
        finally:
            if passage.ticket is not None:
                drive(run_.engine, _conclude(passage, call, state, output))

    async def arun(
        self: Any,
        tool_input: Any,
        *args: Any,
        config: Any = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        config = ensure_config(config)
        entered = _enter(self, tool_input, config, tool_call_id, base)
        run_, call, verdict = entered if isinstance(entered, tuple) else await adrive(entered.engine, entered.flow())
        if run_ is None or (not isinstance(verdict, Ticket) and not _is_malformed(call)):
            return _answer(verdict, tool_call_id)
        passage = _passage_of(self, run_, call, verdict, tool_input, tool_call_id, base)
        state, output = "unknown", None
        try:
            config, passage.asked = counting_questions(config)
            with _around(passage, call, tool_call_id):
                output = await base.arun(self, tool_input, *args, config=config, tool_call_id=tool_call_id, **kwargs)
            state = _state(output)
            if state == "done" and isinstance(entered, _Undecided):
                entered.settled()
            return output
        except BaseException as exc:
            state = _failed(passage, exc)
            if (soft := _denied_inside(exc, call, tool_call_id)) is None:
                raise
            return soft
        finally:
            if passage.ticket is not None:
                await asyncio.shield(adrive(run_.engine, _conclude(passage, call, state, output)))

    def _parse_input(self: Any, tool_input: Any, tool_call_id: str | None) -> Any:
        passage = _passage.get()
        if passage is None or passage.tool is not self:
            return base._parse_input(self, tool_input, tool_call_id)
        if isinstance(passage.parsed, Malformed):
            raise passage.parsed.error
        return passage.parsed

    @functools.wraps(base._run)
    def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
        passage = _entered(self)
        try:
            return passage.clean(base._run(self, *args, **kwargs))
        except GraphBubbleUp as exc:
            passage.clean_bubble(exc)
            raise
        except BaseException as exc:  # noqa: BLE001
            raise passage.clean_error(exc)  # noqa: B904  (its own context is what must not leak)

    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__annotations__": {"_authz_guard": Any},
        "__runtime_authz_guarded__": True,
        "_authz_guard": PrivateAttr(default=None),
        "run": run,
        "arun": arun,
        "_parse_input": _parse_input,
        "_run": _run,
    }
    if base._arun is not BaseTool._arun:

        @functools.wraps(base._arun)
        async def _arun(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A tool without a coroutine of its own goes on to `_run`, which enters.
            if getattr(self, "coroutine", True) is None:
                return await base._arun(self, *args, **kwargs)
            passage = _entered(self)
            try:
                return passage.clean(await base._arun(self, *args, **kwargs))
            except GraphBubbleUp as exc:
                passage.clean_bubble(exc)
                raise
            except BaseException as exc:  # noqa: BLE001
                raise passage.clean_error(exc)  # noqa: B904

        namespace["_arun"] = _arun
    made: type[BaseTool] = type(base)(base.__name__, (base,), namespace)  # type: ignore[misc]  # its own metaclass
    return made


def _entered(tool: BaseTool) -> _Passage:
    passage = _passage.get()
    if passage is None or passage.tool is not tool:
        raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    passage.enter()
    return passage


class _Undecided:
    """No gate in front decided what would run: decide here.

    `opener` instead of `run` where code beside every protected graph makes the call. `counts` of
    equal calls, where no gate and no message tells them apart.
    """

    __slots__ = ("call", "config", "counts", "engine", "opener", "run")

    def __init__(
        self,
        run: Run | None,
        opener: RunHandle | None,
        call: Call,
        config: Mapping[str, Any],
        counts: dict[str, int] | None,
    ) -> None:
        self.run, self.opener, self.call, self.config, self.counts = run, opener, call, config, counts
        owner = run or opener
        if owner is None:
            msg = "a call is decided in a run"
            raise TypeError(msg)
        self.engine = owner.engine

    def flow(self) -> Flow[tuple[Run | None, Call, Verdict]]:
        run = self.run
        if run is None and self.opener is not None:
            try:
                run = yield from self.opener.beside()
            except AuthzDenied as denied:  # nothing may start here
                return None, self.call, _denied(self.call, denied)
        if run is None:
            return None, self.call, Denial(self.call, deny(Code.NO_RUN))
        call = self.call
        if self.counts is not None:
            call = replace(call, place=f"{task_id(self.config)}:{self.counts.get(_equal(call), 0)}")
        (decided,) = yield from decide_together(run, [call], self.config)
        if isinstance(decided.verdict, Replay):
            self.settled()
        if not isinstance(decided.verdict, Ticket):
            skip_answers(self.config, decided.answers)
        return run, call, decided.verdict

    def settled(self) -> None:
        """The call has its answer: an equal one of the same code is another call."""
        if self.counts is not None:
            self.counts[_equal(self.call)] = self.counts.get(_equal(self.call), 0) + 1


def _equal(call: Call) -> str:
    return f"{call.call_id} {call.tool} {call.args_digest}"


def _enter(
    tool: BaseTool,
    tool_input: Any,
    config: Mapping[str, Any],
    call_id: str | None,
    base: type[BaseTool],
) -> tuple[Run | None, Call, Verdict] | _Undecided:
    """The verdict of the gate in front, if it is on exactly this call; else a call to decide."""
    held = _held.get()
    sent = _sent(tool, tool_input)
    if held is not None and not held.used:
        held.used = True
        if (
            held.call.tool_ref is tool
            and held.call.call_id == call_id
            and held.call.parsed[1] == sent
            and unchanged(held.call, facts_of(tool).injected)
        ):
            return held.run, held.call, held.verdict
    run = held.run if held is not None else find_run(config)
    opener = opened(config) if run is None else None
    if run is None and opener is None:
        nowhere = unknown(tool.name, call_id, None, None, {})
        return None, nowhere, Denial(nowhere, deny(Code.NO_RUN))
    # After a gate, what differs from its call differs from the plan; without one, the plan is
    # looked up by the call's id.
    plan_id = held.call.plan_id if held is not None else None
    position = held.call.position if held is not None else None
    call = describe(
        tool,
        facts_of(tool),
        tool_input,
        parser=functools.partial(base._parse_input, tool),
        call_id=call_id,
        plan_id=plan_id,
        position=position,
        written=sent,
        sent=sent,
    )
    counts = None if held is not None else settled() if opener is None else opener.settled
    return _Undecided(run, opener, call, config, counts)


def _sent(tool: BaseTool, tool_input: Any) -> Any:
    if isinstance(tool_input, str):
        return tool_input
    return without(tool_input, facts_of(tool).injected)


def _passage_of(
    tool: BaseTool,
    run: Run,
    call: Call,
    verdict: Verdict,
    tool_input: Any,
    call_id: str | None,
    base: type[BaseTool],
) -> _Passage:
    parsed = call.parsed[0]
    ticket = verdict if isinstance(verdict, Ticket) else None
    injected = facts_of(tool).injected
    given = tool_input if isinstance(tool_input, dict) else {}
    if ticket is not None and isinstance(parsed, dict) and _any_supplied({**given, **parsed}, injected):
        # Injected arguments are this very call's; what was decided stays what was decided.
        now = base._parse_input(tool, dict(tool_input), call_id)
        own = now if isinstance(now, dict) else {}
        parsed = without(parsed, injected) | {k: v for k, v in own.items() if supplied(k, v, injected)}
    return _Passage(tool, run, ticket, parsed)


def _any_supplied(args: Mapping[str, Any], injected: frozenset[str]) -> bool:
    return any(supplied(k, v, injected) for k, v in args.items())


def _is_malformed(call: Call) -> bool:
    # Goes the stock road: the tool's own parsing raises the stored error before the tool runs.
    return call.error is Code.INVALID_ARGUMENTS


@contextmanager
def _around(passage: _Passage, call: Call, call_id: str | None) -> Iterator[None]:
    """What surrounds the tool's own run: no gate's verdict passes on to calls that it makes."""
    run = passage.run
    with (
        held_scope(None),
        run_scope(run),
        _passage_scope(passage),
        ticket_scope(passage.ticket) if passage.ticket is not None else nullcontext(),
        execute_tool_span(
            call.tool,
            call_id,
            run.agent[-1],
            run.scope.thread,
            agent_id=run.engine.identity.agent_id(run.agent),
        ),
    ):
        yield


def _answer(verdict: Verdict, call_id: str | None) -> Any:
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


def _denied_inside(exc: BaseException, call: Call, call_id: str | None) -> ToolMessage | None:
    """The answer where a step *inside* the tool (a child agent, another tool) was denied."""
    if call_id is None or not isinstance(exc, AuthzDenied) or isinstance(exc, GraphBubbleUp):
        return None
    return denial_message(_denied(call, exc), call_id)


def _denied(call: Call, exc: AuthzDenied) -> Denial:
    return Denial(call, deny(exc.code).model_copy(update={"decision_id": exc.decision_id}))


def _state(output: Any) -> str:
    return "failed" if isinstance(output, ToolMessage) and output.status == "error" else "done"


def _failed(passage: _Passage, exc: BaseException) -> str:
    # An invalid answer to the tool's own question leaves the question open.
    if isinstance(exc, GraphInterrupt) or (isinstance(exc, Exception) and is_invalid_resume(exc)):
        return "suspended"
    if isinstance(exc, asyncio.CancelledError | KeyboardInterrupt | SystemExit | GeneratorExit):
        return "unknown"
    return "failed" if passage.entered else "released"


def _conclude(passage: _Passage, call: Call, state: Any, output: Any) -> Any:
    if passage.ticket is None:
        msg = "a passage without a ticket has nothing to conclude"
        raise TypeError(msg)
    if state in ("done", "failed") and not passage.entered:
        state = "released"  # the tool's own parsing or callbacks stopped it before it ran
    asked = len(passage.asked) - (1 if state == "suspended" else 0)  # the last one has no answer yet
    result = recorded(output, asked) if state == "done" else only_asked(asked)
    returned = said(passage.tool, passage.returned) if state == "done" else None
    return conclude(passage.run, passage.ticket, call, state, result, leaked=passage.leaked, output=returned)
