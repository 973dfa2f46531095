"""Define `authz.run(...)`, and find the current run in configs and contexts.

The root entry puts a `ConfigHandle` with the run into `configurable["__authz"]`; any other value there is ignored.
State, checkpoints, tracers and remote configs never contain the run: a serialised handle has no content.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from itertools import filterfalse
from operator import attrgetter
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from langchain_runtime_authz._flow import drive_apart, methods
from langchain_runtime_authz.audit.sinks import records_of
from langchain_runtime_authz.credential.ticket import CodeScope, current_scope, set_refusals_finder
from langchain_runtime_authz.credential.token import MAX_DELEGATORS, Credential, Sealed
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError, CredentialError
from langchain_runtime_authz.evaluation import Subject, deny
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.call_mandate import ApplicationMandate
from langchain_runtime_authz.pep.mint_tokens import RefusedMints
from langchain_runtime_authz.pep.run import Flow, ModelCalls, PepParts, Run, drive, new_id
from langchain_runtime_authz.pep.run_lifecycle import close_run, open_entry
from langchain_runtime_authz.telemetry.spans import OpenSpan

if TYPE_CHECKING:
    from langchain_runtime_authz.audit.explanation import Explanation

HANDLE_KEY: Final = "__authz"
SubjectLike = Subject | str | dict[str, Any]
Caller = SubjectLike | Credential
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_OUTSIDE: Final = "guard"  # the agent's name for calls of guarded tools outside every protected graph


class AuthzHalt(AuthzDenied, GraphBubbleUp):
    """Stop the graph and leave the thread resumable.

    It is a `GraphBubbleUp`. So `RetryPolicy` does not retry it, `handle_tool_errors` and error-handling middleware do
    not swallow it, and LangGraph writes no error to the checkpoint.
    """


class ConfigHandle(Sealed):
    """Holds a run in a config. A pickled handle is read back as a plain string."""

    __slots__ = ("__weakref__", "target")
    _pickled = "runtime-authz-run"

    def __init__(self, target: Run | RunHandle) -> None:
        self.target = target

    def __repr__(self) -> str:
        return ""


# The run of the surrounding `with authz.run(...)`.
_opened: ContextVar[RunHandle | None] = ContextVar("langchain_runtime_authz.opened", default=None)


class run_scope(CodeScope):
    """Makes `run` current in a `with` block, and hides an outer agent's ticket."""

    __slots__ = ("_previous", "_span", "node")

    def __init__(self, run: Run, task: str | None = None, node: Any = None, span: OpenSpan | None = None) -> None:
        self.ticket, self.refusals, self.run, self.counts = None, RefusedMints((run, None, None)), run, {}
        self.task = current_scope.get().task if task is None else task
        self.node, self._span, self.entered = node, span, time.monotonic()

    def __enter__(self) -> None:
        self._previous = current_scope.get()
        current_scope.set(self)
        if self._span is not None:
            self._span.enter()

    def __exit__(self, *exc: object) -> None:
        if self._span is not None:
            self._span.leave()
        # Without a `Token`: a generator may be closed in another context, which keeps its own value.
        if current_scope.get() is self:
            current_scope.set(self._previous)


def as_caller(given: Caller) -> Subject | Credential:
    """Return a credential unchanged, and anything else as a `Subject`."""
    return given if isinstance(given, Credential) else Subject.of(given)


def with_run(config: Mapping[str, Any], run: Run | RunHandle) -> dict[str, Any]:
    """Return `config` with a handle of the run."""
    return {**config, "configurable": {**(config.get("configurable") or {}), HANDLE_KEY: ConfigHandle(run)}}


def target_in(config: Mapping[str, Any] | None) -> Run | RunHandle | None:
    """Return the `Run` or `RunHandle` that a config holds, or `None`."""
    handle = ((config or {}).get("configurable") or {}).get(HANDLE_KEY)
    return handle.target if type(handle) is ConfigHandle else None


def without_handle(chunk: Any, depth: int = 7) -> Any:
    """Remove run handles from a stream chunk, whose events may contain configs."""
    if depth and type(chunk) is dict:
        return {k: without_handle(v, depth - 1) for k, v in chunk.items() if k != HANDLE_KEY}
    if depth and type(chunk) in (tuple, list):
        return type(chunk)(without_handle(v, depth - 1) for v in chunk)
    return chunk


def find_run(config: Mapping[str, Any] | None) -> Run | None:
    """Return the `Run` that a config holds, else the run around the current code."""
    handle = ((config or {}).get("configurable") or {}).get(HANDLE_KEY)
    if type(handle) is ConfigHandle and type(run := handle.target) is Run:
        return run
    return current_scope.get().run  # type: ignore[no-any-return]


def current_run() -> Run | None:
    """Return the run around the current code, or None."""
    return current_scope.get().run  # type: ignore[no-any-return]


def current_node(run: object) -> Any:
    """Return the `NodeCalls` of the hand-written node that is running, or None."""
    scope = current_scope.get()
    return scope.node if type(scope) is run_scope and scope.run is run else None


def pass_question_up(run: Run | None, exc: object) -> None:
    """Tell a hand-written node that a child agent that it called asks a question."""
    above = run.parent if run is not None and isinstance(exc, GraphInterrupt) else None
    if above is not None and (node := current_node(above)) is not None:
        node.question = node.question or exc


class RunHandle(Sealed):
    """One run of the application, `with authz.run(...)`: subject, task and grant.

    Use it as a context manager, synchronous or asynchronous, or call `close`. Inside a generator, pass `run.config()`
    to each call of a graph, because a `with` in a generator could apply to its consumer's calls.

    Attributes:
        run_id: the run's id in records, spans and tokens (`txn`).
        closed: true after `close`.
    """

    _pickled = ConfigHandle._pickled
    agent: tuple[str, ...] = ()  # no agent's path

    def __init__(
        self,
        pep: PepParts,
        subject: Subject | Credential,
        task: str | None,
        grant: Grant | None = None,
        mandate: Mandate | None = None,
    ) -> None:
        self.pep = pep
        self.upstream: tuple[str, ...] = ()
        if not isinstance(subject, Subject):
            subject, self.upstream, grant = _delegated(pep, subject, grant)
        self._entries: list[Run] = []
        self._outside: Run | None = None
        self.counts: dict[Any, int] = {}  # as in `CodeScope`
        self.models = ModelCalls()  # of unprotected graphs, for `AuthzToolNode`
        self._lock = threading.Lock()
        self.closed = self._in_generator = False
        self._previous: RunHandle | None = None
        self.subject = subject
        # Only a user's input states a task, not that of an agent, a cron job or a webhook.
        self.human = subject.human and not self.upstream
        self.task = task
        self.grant = grant
        self.application = ApplicationMandate.by(mandate)
        self.run_id = new_id()

    def __repr__(self) -> str:
        return f"RunHandle(run_id={self.run_id!r})"

    def _repr_html_(self) -> str:
        from langchain_runtime_authz.audit.story_html import newest_steps

        return newest_steps(records_of(self.pep.audit, self.run_id), self.run_id)

    @property
    def jti(self) -> str | None:
        """The jti of the newest root entry's lease; `None` before the first root entry."""
        return self._entries[-1].jti if self._entries else None

    @property
    def epoch(self) -> int | None:
        """The newest root entry's epoch; `None` before the first root entry."""
        return self._entries[-1].epoch if self._entries else None

    @property
    def decisions(self) -> list[Explanation]:
        """Explanations of the run's latest decisions, newest last."""
        from langchain_runtime_authz.audit.explanation import explain

        return [explain(record) for record in self.pep.recent.of_run(self.run_id)]

    def config(self, config: Mapping[str, Any] | None = None) -> RunnableConfig:
        """Return `config` with this run. The config is valid until the run is closed."""
        return with_run(config or {}, self)  # type: ignore[return-value]

    def _close(self) -> Flow[None]:
        """End the run's leases. Paused threads stay resumable. A second call does nothing."""
        self.closed = True
        for run in [run for run in self._entries if not run.closed]:
            yield from close_run(run)

    _pep = property(attrgetter("pep"))
    close, aclose = methods(_close)

    def outside_run(self) -> Flow[Run]:
        """Return the run for guarded tools outside protected graphs, opened at first use."""
        if self.closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        if self._outside is None:
            pep = self.pep
            scope = Scope(pep.tenant, pep.issuer.issuer, _OUTSIDE, f"run:{self.run_id}")
            entry = yield from open_entry(pep, scope, self.subject, self.run_id, _OUTSIDE, **self.brings())
            self.enter(entry.run)
            if self._outside is None:
                self._outside = entry.run
            else:  # another thread was first
                yield from close_run(entry.run)
        return self._outside

    def brings(self) -> dict[str, Any]:
        """Return this run's arguments for `open_entry`, with a task if a user gave one."""
        stated = self.task is not None and self.human
        task = HumanText(content_digest(self.task), str(self.task)) if stated else None
        return {"task": task, "grant": self.grant, "upstream": self.upstream, "application": self.application}

    def enter(self, run: Run) -> None:
        """Add a root entry's run, for `close` to end. Raises `AuthzDenied` if closed."""
        if self.closed:
            raise AuthzDenied(Code.LEASE_ENDED, deny(Code.LEASE_ENDED).decision_id)
        with self._lock:  # forget closed entries, because a run may last as long as its process
            self._entries = [*filterfalse(attrgetter("closed"), self._entries), run]

    def _open(self, frame: FrameType) -> RunHandle:
        if frame.f_code.co_filename == contextlib.__file__ and frame.f_back is not None:  # `ExitStack`
            frame = frame.f_back
        self._in_generator = bool(frame.f_code.co_flags & _GENERATORS)
        self._previous = _opened.get()
        _opened.set(self)
        set_refusals_finder(_refusals)
        return self

    def __enter__(self) -> RunHandle:
        return self._open(sys._getframe(1))

    def __exit__(self, kind: object, *exc: object) -> None:
        self._leave()
        (drive_apart if kind is GeneratorExit else drive)(self.pep, self._close())

    async def __aenter__(self) -> RunHandle:
        return self._open(sys._getframe(1))

    async def __aexit__(self, *exc: object) -> None:
        self._leave()
        await self.aclose()

    def _leave(self) -> None:
        # Without a `Token`: a generator may be closed in another context, where nothing is to restore.
        if _opened.get() is self:
            _opened.set(self._previous)


def _delegated(pep: PepParts, credential: Credential, grant: Grant | None) -> tuple[Subject, tuple[str, ...], Grant]:
    if not credential.agents:
        raise CredentialError(Code.CREDENTIAL_TOOL, "it is for a tool's call, not for an agent")
    if credential.tenant != pep.tenant:
        raise CredentialError(Code.CREDENTIAL_TENANT)
    if len(credential.actors) > MAX_DELEGATORS:
        raise CredentialError(Code.TOO_DEEP)
    subject = Subject.of({"type": credential.subject_type, "id": credential.subject})
    return subject, credential.actors, credential.grant.attenuate(grant)


def run_handle(config: Mapping[str, Any]) -> RunHandle | None:
    """Return the application's run: the one in the config, else the surrounding one."""
    return target if isinstance(target := target_in(config), RunHandle) else surrounding_run()


def surrounding_run() -> RunHandle | None:
    """Return the surrounding run. Raises `ConfigError` if a generator opened it."""
    handle = _opened.get()
    while handle is not None and handle.closed:
        handle = handle._previous
    if handle is not None and handle._in_generator:
        msg = "a generator opened the current run, so this call may not belong to it; pass `run.config()` to the call"
        raise ConfigError(msg)
    return handle


def _refusals() -> RefusedMints | None:
    try:
        handle = surrounding_run()
    except ConfigError:  # the record could name a wrong run
        return None
    return RefusedMints((handle, None, None)) if handle is not None else None
