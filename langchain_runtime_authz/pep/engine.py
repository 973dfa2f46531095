"""The parts wired together, a run's place among them, and how one flow serves sync and async.

A flow is a generator that yields *effects* and receives their results; it does no I/O of its own.
`drive` and `adrive` are the only two interpreters. So the synchronous and the asynchronous edge can
not come apart: there is one flow.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from langchain_runtime_authz.audit.sinks import AuditSink, MemorySink
from langchain_runtime_authz.authzen import Decision, EvaluationRequest, Subject, deny
from langchain_runtime_authz.errors import AuditError, Code, ledger_code
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.base import Identity
from langchain_runtime_authz.ledger.base import (
    Anchored,
    Change,
    Committed,
    Conflict,
    Guard,
    Ledger,
    Query,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.notify import LogNotifier, Notifier
from langchain_runtime_authz.pep.provenance import ThreadMemory
from langchain_runtime_authz.pep.tally import Tally

if TYPE_CHECKING:  # its module loads the signing library, which an import of ours should not
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.verifier import Verifier

__all__ = [
    "ATTEMPTS",
    "Ask",
    "Commit",
    "Effect",
    "Engine",
    "Evaluate",
    "Flow",
    "Load",
    "Notify",
    "Planner",
    "Record",
    "Run",
    "adrive",
    "anchored",
    "drive",
    "new_id",
]

_log = logging.getLogger(__name__)

LEASE_TTL: Final = 60  # seconds for which another process believes a silent run alive
MAX_LIFETIME: Final = 3600  # seconds after which a run must be started anew
ATTEMPTS: Final = 8  # at an epoch, where others advance it between our look and our commit

T = TypeVar("T")


def new_id() -> str:
    """128 random bits: run ids and jtis."""
    return secrets.token_hex(16)


class Planner(Protocol):
    """Says which tools a task needs, from the human's own words and nothing else."""

    def plan(self, texts: Sequence[str]) -> Sequence[str]:
        """Names of tools. Raising grants none."""
        ...

    async def aplan(self, texts: Sequence[str]) -> Sequence[str]:
        """`plan` without blocking the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What every step needs; built once by `RuntimeAuthz`."""

    ledger: Ledger
    evaluator: Evaluator
    issuer: Issuer
    identity: Identity
    audit: AuditSink
    tenant: str
    verifier: Verifier | None = None  # believes the tokens of an issuer outside this process
    lease_ttl: int = LEASE_TTL
    max_lifetime: int = MAX_LIFETIME
    kill_switch: KillSwitch | None = None
    memory: ThreadMemory = field(default_factory=ThreadMemory)
    notifiers: Mapping[str, Notifier] = field(default_factory=lambda: {"log": LogNotifier()})
    # The edges' own: where a gate meets a tool that nobody guarded, it looks its profile up here.
    profiles: object = None
    tally: Tally = field(default_factory=Tally)
    planner: Planner | None = None

    @property
    def killed(self) -> bool:
        """Whether the kill switch is engaged: then nothing is permitted, whoever is asked."""
        return self.kill_switch is not None and self.kill_switch.engaged

    def failed(self, exc: BaseException) -> Code:
        """The code of a deny because the ledger failed with `exc`: the kill switch's where that is engaged as well."""
        return Code.KILLED if self.killed else ledger_code(exc)

    def ledger_failed(self, exc: Exception) -> Decision:
        """That deny. The operator's log names the failure."""
        _log.error("ledger failed: %s: %s", type(exc).__name__, exc)
        return deny(self.failed(exc))


@dataclass(slots=True, eq=False)
class Run:
    """One agent's place in one root entry: its lease, and what was kept in this process.

    `jti` is unique per agent path: no two agents share one. What is here can be lost with the
    process without loss of safety; what must not be lost is in the ledger.
    """

    engine: Engine
    scope: Scope
    subject: Subject
    run_id: str
    agent: tuple[str, ...]
    jti: str
    epoch: int
    started_at: int
    expires_at: int
    grant: Grant | None = None
    # Tools that a planner, which saw only the human's words, holds needful; `None` without a planner.
    planned: frozenset[str] | None = None
    parent: Run | None = None
    # The calls of the agents above, (agent path, call id), that wait for what this one does.
    waiting: tuple[tuple[tuple[str, ...], str], ...] = ()
    closed: bool = False
    paused: bool = False
    # Corrections that the input could not carry: told with the answers to the calls they made stale.
    undelivered: tuple[str, ...] = ()
    # Likewise what the human answered to a question of a tool's or node's own: its asker has it already.
    corrected: tuple[str, ...] = ()
    # How many texts the ledger held when a root entry began: what comes after is news to it.
    pinned: int = 0
    # Whether a checkpointer keeps the graph's state: a root entry's end is then marked.
    kept_state: bool = False
    # The newest checkpoint of the thread when a root entry began.
    loaded: str = ""
    # The thread's steps when the root entry began.
    steps_before: int = 0
    # Digests of calls that a model was seen to return in this entry (`plan.source`), with the model's
    # name and the digest of its instructions; and those of model calls that have not returned yet.
    seen_from_model: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    asked_model: dict[object, tuple[str, str | None]] = field(default_factory=dict)
    # Digests of calls that the client itself sent: never a plan.
    foreign: set[str] = field(default_factory=set)
    # Kept permits of nodes, and decisions of a message taken by the first of its tasks.
    kept: dict[tuple[str, str], str] = field(default_factory=dict)
    # Versions of the resources that calls under way read, by call key, as they were before the read.
    versions: dict[str, str] = field(default_factory=dict)
    models: dict[tuple[Any, ...], Decision] = field(default_factory=dict)
    batches: dict[Any, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pause(self) -> None:
        """A human is asked: the run, and those above it, end as suspended."""
        run: Run | None = self
        while run is not None:
            run.paused = True
            run = run.parent

    @property
    def over(self) -> bool:
        """Whether it, or a run above it, was closed in this process."""
        return self.closed or (self.parent is not None and self.parent.over)

    @property
    def guard(self) -> Guard:
        """What a commit of this run demands of the ledger."""
        return Guard(self.jti, self.epoch)


@dataclass(frozen=True, slots=True)
class Load:
    """Read one snapshot."""

    scope: Scope
    query: Query

    def run(self, engine: Engine) -> Snapshot:
        """Perform it, blocking."""
        return engine.ledger.load(self.scope, self.query)

    async def arun(self, engine: Engine) -> Snapshot:
        """Perform it."""
        return await engine.ledger.aload(self.scope, self.query)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Ask the PDP: one batch."""

    requests: Sequence[EvaluationRequest]
    bodies: Sequence[bytes | None]

    def run(self, engine: Engine) -> list[Decision]:
        """Perform it, blocking."""
        return engine.evaluator.evaluate(self.bodies)

    async def arun(self, engine: Engine) -> list[Decision]:
        """Perform it."""
        return await engine.evaluator.aevaluate(self.bodies)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the planner. A planner that fails grants nothing."""

    planner: Planner
    texts: Sequence[str]

    def run(self, engine: Engine) -> Sequence[str]:
        """Perform it, blocking."""
        try:
            return self.planner.plan(self.texts)
        except Exception as exc:  # noqa: BLE001  (a foreign model: whatever it raises, nothing is granted)
            _log.warning("the planner failed, so the task grants no tool: %s", type(exc).__name__)
            return ()

    async def arun(self, engine: Engine) -> Sequence[str]:
        """Perform it."""
        try:
            return await self.planner.aplan(self.texts)
        except Exception as exc:  # noqa: BLE001  (likewise)
            _log.warning("the planner failed, so the task grants no tool: %s", type(exc).__name__)
            return ()


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction."""

    scope: Scope
    guard: Guard | None
    changes: Sequence[Change]

    def run(self, engine: Engine) -> Committed | Conflict:
        """Perform it, blocking."""
        return engine.ledger.commit(self.scope, self.guard, self.changes)

    async def arun(self, engine: Engine) -> Committed | Conflict:
        """Perform it."""
        return await engine.ledger.acommit(self.scope, self.guard, self.changes)


def anchored(record: dict[str, Any], ledger: Ledger, tenant: str) -> dict[str, Any]:
    """`record` with where its ledger stands: its reader can tell an older copy of the ledger from this one."""
    if hasattr(ledger, "anchor"):  # `Anchored`, by a look that costs nothing
        anchor = cast("Anchored", ledger).anchor(tenant)
        if anchor is not None:
            record["ledger"] = {"tenant": tenant, **anchor._asdict()}
    return record


class Record:
    """Write one audit record, built from values that do not change."""

    __slots__ = ("build",)

    def __init__(self, builder: Callable[..., dict[str, Any]], **values: Any) -> None:
        self.build = partial(builder, **values)

    def run(self, engine: Engine) -> None:
        """Perform it, blocking."""
        if isinstance(engine.audit, MemorySink):
            engine.audit.defer(self.build)
            return
        try:
            engine.audit.write(anchored(self.build(), engine.ledger, engine.tenant))
        except AuditError:
            raise
        except Exception as exc:  # a foreign sink's own failure is a failed record like any other
            raise AuditError(Code.AUDIT_UNAVAILABLE, type(exc).__name__) from exc

    async def arun(self, engine: Engine) -> None:
        """Perform it; a sink that waits for a disk waits in a thread."""
        if getattr(engine.audit, "durable", False):
            await asyncio.to_thread(self.run, engine)
        else:
            self.run(engine)


@dataclass(frozen=True, slots=True)
class Notify:
    """Hand one notification to a channel; a notifier accepts or refuses at once, so both ways are one."""

    channel: str
    notification: Mapping[str, Any]

    def run(self, engine: Engine) -> None:
        """Perform it."""
        notifier = engine.notifiers.get(self.channel)
        if notifier is None:
            raise AuditError(Code.NOTIFY_UNAVAILABLE, f"there is no channel `{self.channel}`")
        try:
            notifier.send(self.notification)
        except AuditError:
            raise
        except Exception as exc:  # a foreign notifier's own failure is a failed notification
            raise AuditError(Code.NOTIFY_UNAVAILABLE, type(exc).__name__) from exc

    async def arun(self, engine: Engine) -> None:
        """Perform it."""
        self.run(engine)


class Effect(Protocol):
    """What a flow yields. Edges may bring effects of their own (an interrupt)."""

    def run(self, engine: Engine) -> Any:
        """Perform it, blocking."""
        ...

    async def arun(self, engine: Engine) -> Any:
        """Perform it without blocking the event loop."""
        ...


Flow = Generator[Effect, Any, T]


def drive(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow to its end, blocking. An effect's exception is raised inside the flow."""
    try:
        effect = next(flow)
        while True:
            try:
                value = effect.run(engine)
            except Exception as exc:  # noqa: BLE001  (handed to the flow, which decides)
                effect = flow.throw(exc)
            else:
                effect = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def adrive(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow to its end. An effect's exception is raised inside the flow."""
    try:
        effect = next(flow)
        while True:
            try:
                value = await effect.arun(engine)
            except Exception as exc:  # noqa: BLE001  (handed to the flow, which decides)
                effect = flow.throw(exc)
            else:
                effect = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
