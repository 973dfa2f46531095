"""The run handle: how a gate finds its run.

A run is an object, not ambient state. The wrapped root entry puts a `Handle` into
`configurable["__authz"]`, and gates read it there. It is absent from state, checkpoints, tracers
and remote configs; in the stream modes `debug` and `checkpoints` the wrapped stream takes it out.
Whoever gets hold of one all the same can print, copy, pickle or serialise it and learns nothing.

Evolution rule: the key `__authz` and the type check stay. A forged string, dict or foreign object
under the key counts as no handle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz.credential.ticket import ticket_scope
from langchain_runtime_authz.pep.credentials import RefusedMints
from langchain_runtime_authz.pep.engine import Run

if TYPE_CHECKING:
    from langchain_runtime_authz.langgraph.run import RunHandle

__all__ = [
    "HANDLE_KEY",
    "Handle",
    "beside",
    "beside_scope",
    "find_run",
    "gated_task",
    "handle_in",
    "run_scope",
    "running",
    "settled",
]

HANDLE_KEY: Final = "__authz"
_PLACEHOLDER: Final = "runtime-authz-run"


class Handle:
    """Opaque. Holds a run of one root entry or agent, or what `.run` opened."""

    __slots__ = ("__target", "__weakref__")

    def __init__(self, target: Run | RunHandle) -> None:
        self.__target = target

    @property
    def run(self) -> Run | None:
        """The run, where this is the handle of a root entry or of an agent below one."""
        return self.__target if isinstance(self.__target, Run) else None

    @property
    def opener(self) -> RunHandle | None:
        """What `.run` opened, where this is `run.config()`'s handle."""
        return None if isinstance(self.__target, Run) else self.__target

    def __repr__(self) -> str:
        return ""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # Unpickles as a constant string, which no gate accepts.
        return str, (_PLACEHOLDER,)

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return self


# Set around one node or one tool by our own gates; never the source of truth where a config is at
# hand. Restored by setting the previous value, never by Token: a generator may be closed elsewhere.
_running: ContextVar[Run | None] = ContextVar("langchain_runtime_authz.running", default=None)

# How often the code of one node (or tool) execution has had an answer to a call, for calls that no
# message planned: the n-th of equal calls is the same call when the node is executed again.
_settled: ContextVar[dict[str, int] | None] = ContextVar("langchain_runtime_authz.settled", default=None)


def handle_in(config: Mapping[str, Any] | None) -> Handle | None:
    """The handle in a config, type-checked."""
    handle = ((config or {}).get("configurable") or {}).get(HANDLE_KEY)
    return handle if type(handle) is Handle else None


def find_run(config: Mapping[str, Any] | None) -> Run | None:
    """The run that a step belongs to: from its config, else from the gate around it."""
    handle = handle_in(config)
    if handle is not None and handle.run is not None:
        return handle.run
    return _running.get()


def running() -> Run | None:
    """The run of the gate around the current code, if any."""
    return _running.get()


# Set where code of a protected graph runs and no run is open: what it starts is not permitted by nobody.
_beside: ContextVar[bool] = ContextVar("langchain_runtime_authz.beside", default=False)

# The Pregel task that a node gate stands around: a graph that is called inside it is not gated by that.
_gated: ContextVar[str] = ContextVar("langchain_runtime_authz.gated", default="")


class run_scope:
    """Make `run` the current one for the code inside; `task` is the one that a node gate is around.

    `counts` of equal calls go on from an earlier scope. A tool that is running outside keeps its credential to itself:
    what is inside may be another agent.
    """

    __slots__ = ("_counted", "_counts", "_gated", "_previous", "_run", "_task", "_ticket")

    def __init__(self, run: Run, task: str | None = None, counts: dict[str, int] | None = None) -> None:
        self._run, self._task = run, task
        self._counts = {} if counts is None else counts
        self._ticket = ticket_scope(None, RefusedMints((run, None, None)))

    def __enter__(self) -> None:
        self._previous, self._counted, self._gated = _running.get(), _settled.get(), _gated.get()
        _running.set(self._run)
        _settled.set(self._counts)
        if self._task is not None:
            _gated.set(self._task)
        self._ticket.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._ticket.__exit__()
        _running.set(self._previous)
        _settled.set(self._counted)
        _gated.set(self._gated)


@contextmanager
def beside_scope() -> Iterator[None]:
    """Around what of a protected graph runs beside every entry: reducers and edges, as its state is read or edited."""
    previous = _beside.get()
    _beside.set(True)
    try:
        yield
    finally:
        _beside.set(previous)


def beside() -> bool:
    """Whether the current code belongs to a protected graph."""
    return _beside.get()


def gated_task() -> str:
    """The task of the innermost node gate around the current code."""
    return _gated.get()


def settled() -> dict[str, int] | None:
    """The counts of equal calls in the node or tool execution around the current code."""
    return _settled.get()
