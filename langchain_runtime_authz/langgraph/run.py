"""The run that an application opens: what `RuntimeAuthz.run` yields, and how a call finds the one it is in."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, cast

from langchain_core.runnables import RunnableConfig

from langchain_runtime_authz.authzen import Subject, deny
from langchain_runtime_authz.credential.ticket import tell_by
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.langgraph.run_context import HANDLE_KEY, Handle, handle_in
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.pep.credentials import RefusedMints
from langchain_runtime_authz.pep.engine import Engine, Flow, Run, adrive, drive, new_id
from langchain_runtime_authz.pep.entry import Entry, Given, close, open_entry

__all__ = ["RunHandle", "SubjectLike", "opened"]

SubjectLike = Subject | str | dict[str, Any]
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
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

    def config(self, config: Mapping[str, Any] | None = None) -> RunnableConfig:
        """`config` with this run in it, for generators and other tasks. Dies with the run."""
        given = dict(config or {})
        given["configurable"] = {**(given.get("configurable") or {}), HANDLE_KEY: Handle(self)}
        return cast("RunnableConfig", given)

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
        return self.subject.human

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
        tell_by(_refusals)

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


class _Beside(NamedTuple):
    """A run, for what its code asks for beside every agent; the epoch is 0 before its first root entry."""

    engine: Engine
    run_id: str
    epoch: int
    agent: tuple[str, ...] = ()


def _refusals() -> RefusedMints | None:
    """Where it goes on record that code beside every agent asked for a credential."""
    try:
        handle = _around()
    except ConfigError:  # one of several; the record of another would be wrong
        return None
    if handle is None:
        return None
    return RefusedMints((_Beside(handle.engine, handle.run_id, handle.epoch or 0), None, None))


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
