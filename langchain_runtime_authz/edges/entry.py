"""Root entries: what opens a run, and how it is closed.

`RunHandle` is what `.run` yields. A root entry (one invoke, stream, batch element or resume) takes
its own lease under it; without one, it opens an implicit run for whoever `subject_from` finds, else
for `anonymous`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from langchain_core.messages import HumanMessage
from langgraph.types import Command

from langchain_runtime_authz.audit.record import run_record
from langchain_runtime_authz.authzen import Subject, deny
from langchain_runtime_authz.credential.lease import current_ticket
from langchain_runtime_authz.edges._private import is_resume_map
from langchain_runtime_authz.edges.halt import AuthzHalt
from langchain_runtime_authz.edges.handle import HANDLE_KEY, Handle, handle_in, running
from langchain_runtime_authz.edges.messages import human_texts, unanswered
from langchain_runtime_authz.edges.outside import (
    Moved,
    ReadHead,
    ReadMemory,
    ReadState,
    brought,
    held,
    others,
    saver_of,
    thread_config,
    watched,
)
from langchain_runtime_authz.edges.plans import foreign_plans
from langchain_runtime_authz.enforce.approval import is_ours, remaining
from langchain_runtime_authz.enforce.engine import Engine, Flow, Record, Run, adrive, drive, new_id
from langchain_runtime_authz.enforce.entry import Entry, Given, altered, answer, close, open_child, open_entry, reply
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.facts.delegation import kind_of_child
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.subjects import claimed_identities
from langchain_runtime_authz.ledger.base import Scope

__all__ = ["Entrance", "RunHandle", "SubjectLike", "opened"]

SubjectLike = Subject | str | dict[str, Any]
T = TypeVar("T")
_log = logging.getLogger(__name__)
_ANONYMOUS: Final = Subject(type="anonymous", id="anonymous")
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
MAX_CLAIMED: Final = 16  # names in one record
_BESIDE: Final = "guard"  # the agent's name where guarded tools are called beside every protected graph

# Set by `with authz.run(...)`, read only by root entries, at the call. Inside generators and across
# tasks pass `run.config()` instead.
_opened: ContextVar[RunHandle | None] = ContextVar("langchain_runtime_authz.opened", default=None)


class RunHandle:
    """A run: who asks, for what, with which grant. Yielded by `RuntimeAuthz.run`.

    Usable as a context manager, synchronous or asynchronous, or without: then call `close`.

    Attributes:
        run_id: names the run in records, spans and tokens (`txn`).
    """

    __slots__ = (
        "__weakref__", "_beside", "_closed", "_entries", "_owner", "_place", "_previous", "_stream",
        "engine", "grant", "run_id", "settled", "subject", "task",
    )  # fmt: skip

    def __init__(self, engine: Engine, subject: Subject, task: str | None, grant: Grant | None) -> None:
        self.engine = engine
        self._entries: list[Run] = []
        self._beside: Run | None = None
        self.settled: dict[str, int] = {}
        self._closed = False
        self._previous: RunHandle | None = None
        self._owner, self._stream, self._place = 0, False, (0, 0)
        self.subject = subject
        self.task = task
        self.grant = grant
        self.run_id = new_id()

    def __repr__(self) -> str:
        return f"RunHandle(run_id={self.run_id!r})"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("runtime-authz-run",)

    @property
    def jti(self) -> str | None:
        """Of the newest root entry's lease; `None` before the first."""
        return self._entries[-1].jti if self._entries else None

    @property
    def epoch(self) -> int | None:
        """The newest root entry's epoch; `None` before the first."""
        return self._entries[-1].epoch if self._entries else None

    @property
    def closed(self) -> bool:
        """Whether the run was closed."""
        return self._closed

    def config(self, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`config` with this run in it, for generators and other tasks. Dies with the run."""
        given = dict(config or {})
        given["configurable"] = {**(given.get("configurable") or {}), HANDLE_KEY: Handle(self)}
        return given

    def close(self) -> None:
        """End every lease of the run. Paused threads stay resumable. Closing twice is no error."""
        for run in self._take():
            drive(self.engine, close(run, "suspended" if run.paused else "ended"))

    async def aclose(self) -> None:
        """Like `close`, without blocking the event loop."""
        for run in self._take():
            await adrive(self.engine, close(run, "suspended" if run.paused else "ended"))

    def _take(self) -> list[Run]:
        self._closed = True
        return [run for run in self._entries if not run.closed]

    def beside(self) -> Flow[Run]:
        """The run of guarded tools called by code beside every protected graph; the first opens it."""
        if self._closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        if self._beside is None:
            engine = self.engine
            entry: Entry = yield from open_entry(
                engine,
                scope=Scope(engine.tenant, engine.issuer.issuer, _BESIDE, f"run:{self.run_id}"),
                subject=self.subject,
                run_id=self.run_id,
                agent=_BESIDE,
                task=self.pinned_task(),
                given=Given(),
                grant=self.grant,
            )
            self._enter(entry.run)
            if self._beside is None:
                self._beside = entry.run
            else:  # another thread was first
                yield from close(entry.run, "ended")
        return self._beside

    def pinned_task(self) -> HumanText | None:
        """What `.run(task=)` said. Agents, crons and webhooks are not humans, whatever they write."""
        if self.task is None or not self.human:
            return None
        return HumanText(content_digest(self.task), self.task)

    @property
    def human(self) -> bool:
        """Whether what this run's subject says is a human's word."""
        return self.subject.type in ("user", "anonymous")

    def _enter(self, run: Run) -> None:
        if self._closed:
            run.closed = True
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        self._entries.append(run)

    def _open(self, frame: FrameType) -> None:
        owner = _owner_of(frame)
        self._owner, self._stream = id(owner), bool(owner.f_code.co_flags & _GENERATORS)
        self._place = _place()
        self._previous = _opened.get()
        _opened.set(self)

    def __enter__(self) -> RunHandle:
        self._open(sys._getframe(1))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._leave()
        self.close()

    async def __aenter__(self) -> RunHandle:
        self._open(sys._getframe(1))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._leave()
        await self.aclose()

    def _leave(self) -> None:
        # Never by Token: a generator may be closed in another context, where nothing is to restore.
        if _opened.get() is self:
            _opened.set(self._previous)


def opened(config: Mapping[str, Any]) -> RunHandle | None:
    """The run that a call is in, by its config, else by the `with authz.run(...)` around it."""
    handle = handle_in(config)
    return (handle.opener if handle is not None else None) or _around()


def _around() -> RunHandle | None:
    """The run of the `with` around the current code.

    A generator that pauses inside its `with` leaves its run behind for whoever steps it, so a run
    that a generator opened counts only for code that the generator itself is running. In a thread
    or task of its own that can not be seen; there it counts if it is the only one.

    Raises:
        ConfigError: it can not be told which of several generators' runs the call is in.
    """
    elsewhere: list[RunHandle] = []
    handle = _opened.get()
    while handle is not None:
        if not handle.closed:
            if not handle._stream or _is_below(handle._owner):
                return handle
            if handle._place != _place():
                elsewhere.append(handle)
        handle = handle._previous
    if len(elsewhere) > 1:
        msg = "several generators have a run open here; pass `run.config()` to say which one the call is in"
        raise ConfigError(msg)
    return elsewhere[0] if elsewhere else None


def _place() -> tuple[int, int]:
    """The thread and the task that the current code runs in."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task)


def _owner_of(frame: FrameType) -> FrameType:
    """The frame with the `with` statement: context managers made by `contextlib` stand between."""
    above: FrameType | None = frame
    while above is not None:
        by = above.f_back
        if above.f_code.co_filename == contextlib.__file__ or (
            above.f_code.co_flags & _GENERATORS and by is not None and by.f_code.co_filename == contextlib.__file__
        ):
            above = by
        else:
            return above
    return frame


def _is_below(owner: int) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame) == owner:
            return True
        frame = frame.f_back
    return False


class AtCall(NamedTuple):
    """What a graph's entry found at its call: a parent (it is a child), or who opened the run."""

    parent: Run | None
    opener: RunHandle | None


class Entrance:
    """Opens root entries and children for one `RuntimeAuthz`."""

    def __init__(
        self,
        engine: Engine,
        *,
        subject_from: Callable[[Mapping[str, Any]], SubjectLike | None] | None,
        task_channels: tuple[str, ...] = ("messages",),
        task_memory: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        self.engine = engine
        self._memory = task_memory
        self._subject_from = subject_from
        self._channels = task_channels
        self.outlives = hasattr(engine.ledger, "anchor")  # the ledger, this process

    def scope(self, graph: str, thread: str) -> Scope:
        """The ledger key of a graph's thread."""
        return Scope(self.engine.tenant, self.engine.issuer.issuer, graph, thread)

    def at_call(self, config: Mapping[str, Any]) -> AtCall:
        """Whose entry a call is, by its config, else by the `with authz.run(...)` around it."""
        handle = handle_in(config)
        # A graph that code in a node or tool calls with a config of its own is a child all the same:
        # what that code hands on is no human's word.
        parent = handle.run if handle is not None else running()
        opener = opened(config) if parent is None else None
        engine = parent.engine if parent is not None else opener.engine if opener is not None else self.engine
        if engine is not self.engine:
            msg = "the run was opened by another RuntimeAuthz than the one that protects the graph"
            raise ConfigError(msg)
        return AtCall(parent, opener)

    def _implicit(self, config: Mapping[str, Any]) -> RunHandle:
        found = self._subject_from(config) if self._subject_from is not None else None
        return RunHandle(self.engine, _ANONYMOUS if found is None else Subject.of(found), None, None)

    def _open(
        self,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any,
    ) -> Flow[tuple[Run, Entry]]:
        handle = at_call.opener or self._implicit(config)
        thread = (config.get("configurable") or {}).get("thread_id")
        scope = self.scope(name, f"run:{new_id()}" if thread is None else str(thread))
        if handle.closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        resume = input is None or isinstance(input, Command)
        update = input.update if isinstance(input, Command) else input
        saver = saver_of(graph)
        head = (yield ReadHead(saver, config)) if saver is not None and thread is not None else None
        place, channels = dict(config), self._channels
        texts = human_texts(update) if handle.human else []
        edited = handle.human and any(held(update, name) is not None for name in others(channels))
        if edited or (head is not None and any(t.key is not None for t in texts)):
            state = (yield ReadState(graph, config)).values if head is not None else {}
            texts = _unheard(texts, state)
            edits = brought(update, state, channels) if edited else []
            # On a new thread only what the human declared says something.
            texts += edits if head is not None else [e for e in edits if e.text]
        entry: Entry = yield from open_entry(
            self.engine,
            scope=scope,
            subject=handle.subject,
            run_id=handle.run_id,
            agent=name,
            task=handle.pinned_task(),
            given=Given(
                texts=texts,
                resume=resume,
                kept=saver is not None and thread is not None,
                head=head,
                memory=(yield self.memory(graph, handle.subject)) if saver is not None else None,
                moved=lambda left: Moved(graph, place, head.id if head is not None else "", left, channels),
            ),
            grant=handle.grant,
        )
        if claimed := claimed_identities(config, handle.subject):
            # Ignored, and on record: only names, for the values are whatever a client wrote.
            yield Record(
                run_record,
                now=entry.now,
                event="identity_ignored",
                run_id=handle.run_id,
                jti=entry.run.jti,
                epoch=entry.run.epoch,
                scope=scope,
                agent=entry.run.agent,
                detail={"claimed": claimed[:MAX_CLAIMED]},
            )
        foreign_plans(entry.run, update)
        handle._enter(entry.run)
        self.engine.tally.decided(entry.run, "entry", name, "root entry")
        self.engine.tally.ran(entry.run, "entry", name, "root entry")
        return entry.run, entry

    def memory(self, graph: Any, subject: Subject) -> ReadMemory:
        """An effect: digest of what the store remembers for a subject, as far as it counts as the task."""
        own = [tuple(part.replace("{subject}", subject.id) for part in name) for name in self._memory]
        return ReadMemory(getattr(graph, "store", None), own)

    def enter(
        self,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any = None,
    ) -> Entering[tuple[Any, Any]]:
        """A root entry, to be opened by `with` or `async with`; gives the input and config for the graph.

        `graph` is asked for its state where a correction waits that the input can not carry.

        Raises:
            AuthzDenied: on the way in: the subject may not start or resume here.
        """
        return _Root(self, name, input, config, at_call, graph)

    def enter_child(self, parent: Run, name: str, config: Mapping[str, Any]) -> Entering[Any]:
        """A child agent below `parent`, likewise; gives the config for the child's graph."""
        return _Child(self, parent, name, config)

    def update(self, graph: Any, config: Any, supersteps: Any, update: Callable[[], Any]) -> Any:
        """`update_state` from outside every run: a correction where it alters what a task is made of."""
        before = watched(graph.get_state(config).values, self._channels)
        place = update()
        if watched(graph.get_state(place).values, self._channels) != before:
            drive(self.engine, self._altered(graph, place, config, supersteps))
        return place

    async def aupdate(self, graph: Any, config: Any, supersteps: Any, update: Callable[[], Awaitable[Any]]) -> Any:
        """Like `update`."""
        before = watched((await graph.aget_state(config)).values, self._channels)
        place = await update()
        if watched((await graph.aget_state(place)).values, self._channels) != before:
            await adrive(self.engine, self._altered(graph, place, config, supersteps))
        return place

    def _altered(self, graph: Any, place: Any, config: Any, supersteps: Any) -> Flow[None]:
        handle = opened(config)
        texts: list[HumanText] = []
        if handle is not None and handle.human and not handle.closed:
            updates = [u[0] for step in supersteps for u in step]
            texts = [t for u in updates for t in human_texts(u)]
        by = f"{handle.subject.type}:{handle.subject.id}" if handle is not None else ""
        found = place["configurable"]
        yield from altered(self.scope(graph.get_name(), str(found["thread_id"])), texts, by, found["checkpoint_id"])


class Entering(Generic[T]):
    """Opens a run on the way in and closes it on the way out, without blocking where it is `async with`.

    A class and no generator: an event loop that ends closes generators in any order, an inner one
    before the stream that it serves.
    """

    def __init__(self, entrance: Entrance) -> None:
        self.entrance = entrance
        self.engine = entrance.engine
        self.run: Run | None = None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.run is not None:
            drive(self.engine, self._over(self.run, cut=False))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.run is not None:
            await adrive(self.engine, self._over(self.run, cut=kind is GeneratorExit))

    def _over(self, run: Run, *, cut: bool) -> Flow[None]:
        """`cut`: a stream that was closed before its end may still be writing."""
        return close(run, _ending(run))

    def __enter__(self) -> T:
        raise NotImplementedError

    async def __aenter__(self) -> T:
        raise NotImplementedError


class _Root(Entering[tuple[Any, Any]]):
    def __init__(
        self,
        entrance: Entrance,
        name: str,
        input: Any,
        config: Mapping[str, Any],
        at_call: AtCall,
        graph: Any,
    ) -> None:
        super().__init__(entrance)
        self.name, self.input, self.config, self.at_call, self.graph = name, input, config, at_call, graph

    def __enter__(self) -> tuple[Any, Any]:
        self.run, entry = drive(self.engine, self._open())
        try:
            self.input = drive(self.engine, self._told(entry))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self.input, with_run(self.config, entry.run)

    async def __aenter__(self) -> tuple[Any, Any]:
        self.run, entry = await adrive(self.engine, self._open())
        try:
            self.input = await adrive(self.engine, self._told(entry))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self.input, with_run(self.config, entry.run)

    def _open(self) -> Flow[tuple[Run, Entry]]:
        return self.entrance._open(self.name, self.input, self.config, self.at_call, self.graph)

    def _told(self, entry: Entry) -> Flow[Any]:
        """The input, with the answers in it put into the ledger and the pending corrections put into it."""
        given = self.input
        known = saver_of(self.graph) is not None and thread_config(self.config) is not None
        if known and isinstance(given, Command) and given.resume is not None:
            given = yield from _resume(entry, given, (yield ReadState(self.graph, self.config)))
        elif self.graph is not None and given is None and saver_of(self.graph) is not None:
            given = _settled(entry, (yield ReadState(self.graph, self.config)))
        if entry.pending:
            state = (yield ReadState(self.graph, self.config)).values if known else None
            given = _deliver(entry, given, state)
        return given

    def _over(self, run: Run, *, cut: bool) -> Flow[None]:
        head, memory, saver = None, None, saver_of(self.graph)
        if not cut and saver is not None and (place := thread_config(self.config)) is not None:
            try:
                head = yield ReadHead(saver, place)
                memory = yield self.entrance.memory(self.graph, run.subject)
            except Exception as exc:  # noqa: BLE001  (as of a run that was cut)
                _log.warning("the state that run %s left was not read: %s", run.run_id, type(exc).__name__)
        yield from close(run, _ending(run), head.id if head is not None else None, memory)


class _Child(Entering[Any]):
    def __init__(self, entrance: Entrance, parent: Run, name: str, config: Mapping[str, Any]) -> None:
        super().__init__(entrance)
        self.parent, self.name, self.config = parent, name, config

    def __enter__(self) -> Any:
        self.run = drive(self.engine, _child(self.parent, self.name))
        return with_run(self.config, self.run)

    async def __aenter__(self) -> Any:
        self.run = await adrive(self.engine, _child(self.parent, self.name))
        return with_run(self.config, self.run)


def _child(parent: Run, name: str) -> Flow[Run]:
    ticket = current_ticket()
    args = ticket.raw if ticket is not None and isinstance(ticket.raw, Mapping) else None
    parent.engine.tally.decided(parent, "agent", name, "child entry")
    try:
        kind = kind_of_child(ticket.tool if ticket is not None else None, args)
        mine = ticket is not None and ticket.agent == parent.agent  # else it is an outer agent's
        run = yield from open_child(parent, name, kind, call_id=ticket.call_id if ticket and mine else None)
        parent.engine.tally.ran(parent, "agent", name, "child entry")
        return run
    except AuthzDenied as denied:
        if ticket is not None:  # a tool edge: the tool's answer carries the denial
            raise
        raise AuthzHalt(denied.code, denied.decision_id) from None


def _ending(run: Run) -> Literal["suspended", "ended"]:
    return "suspended" if run.paused else "ended"


def with_run(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """`config` with the run's handle in it."""
    return {**config, "configurable": {**(config.get("configurable") or {}), HANDLE_KEY: Handle(run)}}


def _resume(entry: Entry, given: Command[Any], state: Any) -> Flow[Command[Any]]:
    """Put the answers of a resume value into the ledger, before any task starts.

    Only those to questions that are open in the graph. A plain value is given its question's id:
    LangGraph would hand it to whichever task asks first.
    """
    value = given.resume
    questions = {i.id: i.value for i in state.interrupts}
    if is_resume_map(value):
        answered = {i: v for i, v in value.items() if i in questions}
    elif len(questions) == 1:
        answered = dict.fromkeys(questions, value)
    else:
        return given  # which LangGraph refuses, or which resumes nothing
    asks = [a for a in entry.asks if a.interrupt_id in answered]
    open_ids = {a.id for a in asks}
    try:
        left = {i: remaining(v, questions[i], open_ids) for i, v in answered.items()}
    except ValueError:
        raise AuthzDenied(Code.APPROVAL_VOID, new_id()) from None
    if asks:
        yield from answer(entry.run, asks, left)
    reviewed = {a.interrupt_id for a in asks}
    own = {i: v for i, v in answered.items() if i not in reviewed}
    corrected = yield from reply(entry.run, questions, own)
    return replace(given, resume=answered) if asks or corrected else given


def _settled(entry: Entry, state: Any) -> Any:
    """The input of a re-invocation that goes on where every question of ours was answered beside the graph.

    LangGraph would raise the same interrupts again; what is answered, void or too late is not asked
    again. The value says nothing: the gate reads the ledger.
    """
    waiting = {a.interrupt_id for a in entry.asks if not 0 < a.expires_at <= entry.now}
    ours = [i.id for i in state.interrupts if is_ours(i.value) and i.id not in waiting]
    return Command(resume={i: {"decisions": []} for i in ours}) if ours else None


def _deliver(entry: Entry, input: Any, state: Any) -> Any:
    """The input with the corrections that the graph has not seen yet.

    Before what a new input says itself; as an update of a resumed state. Where calls of that state
    are still unanswered a human message may not come between: then the answers to those calls,
    which the correction made stale, carry the text.
    """
    before = _messages(state)
    heard = {t.digest for t in human_texts([*before, *_messages(input)])}
    texts = [t for t in entry.pending if t.text and t.digest not in heard]
    if not texts:
        return input
    messages = [HumanMessage(content=t.text, id=t.key) for t in texts]
    if isinstance(input, dict):
        return {**input, "messages": [*messages, *_messages(input)]}
    update = input.update if isinstance(input, Command) else None
    if not before or unanswered(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = {**(update or {}), "messages": [*messages, *_messages(update)]}
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def _unheard(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Without what a client sends back as it stands in the state: a machine may have written it there."""
    standing = {(t.key, t.digest) for t in human_texts(_messages(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def _messages(value: Any) -> list[Any]:
    """The messages of a state or an input, as a list."""
    found = held(value.update if isinstance(value, Command) else value, "messages")
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
