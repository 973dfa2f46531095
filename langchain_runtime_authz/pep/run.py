"""Define a run's state (`Run`), the parts of a PEP (`PepParts`), and effects."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from os import urandom
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from langchain_runtime_authz._display import printable
from langchain_runtime_authz._flow import Effect, Flow, Perform, adrive, drive  # noqa: F401  (handed on)
from langchain_runtime_authz.agent_profile import ANY, AgentProfile
from langchain_runtime_authz.audit.sinks import AuditSink, MemorySink
from langchain_runtime_authz.errors import AuditError, AuthzError, Code, CredentialError, failure_code
from langchain_runtime_authz.evaluation import Decision, Edge, Subject, deny
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.workload import Identity
from langchain_runtime_authz.ledger.base import BlockingLedger, Guard, Ledger, ListsInDoubtCalls, Scope, Snapshot
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pep.decision_counts import DecisionCounts
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.recent_decisions import RecentDecisions
from langchain_runtime_authz.pep.thread_memory import ThreadMemory
from langchain_runtime_authz.telemetry.metrics import count_metric, observe_ledger
from langchain_runtime_authz.telemetry.semconv import COMPONENT, ERROR_TYPE
from langchain_runtime_authz.telemetry.spans import OpenSpan
from langchain_runtime_authz.tool_profile import ToolProfile

if TYPE_CHECKING:  # these modules load the signing library, which importing this package should not
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)
_notifications = logging.getLogger("langchain_runtime_authz.notify")

LEASE_TTL: Final = 60  # seconds after which a run that does not renew its lease counts as dead
MAX_LIFETIME: Final = 3600  # seconds after which a run's steps are denied
ATTEMPTS: Final = 8  # tries of a commit while others advance the epoch

NO_GUARD: Final = Guard("", 0)


def new_id() -> str:
    """Return 128 random bits in hex, for run ids and jtis."""
    return urandom(16).hex()


@runtime_checkable
class Notifier(Protocol):
    """Sends notifications that a policy demands. See `docs/recipes/webhook.md`.

    A notification holds codes, ids, names, and the policy's `topic` and `body`. It never holds arguments, texts or
    tokens.
    """

    def send(self, notification: Mapping[str, Any]) -> None:
        """Accept a notification without blocking. If this raises, the step is denied."""
        ...


class LogNotifier:
    """Writes notifications as JSON to the logger `langchain_runtime_authz.notify`."""

    def send(self, notification: Mapping[str, Any]) -> None:
        _notifications.warning("%s", json.dumps(notification, sort_keys=True))


class Tools(Protocol):
    """The profiles and argument schemas of an instance's tools."""

    @property
    def declared(self) -> Mapping[str, ToolProfile]:
        """Reviewed profiles by tool name; the same object until a profile changes."""
        ...

    @property
    def released(self) -> Callable[[], Mapping[str, ToolProfile]] | None:
        """Returns the profiles in the policy's present revision; None if it brings none."""
        ...

    @property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """JSON schemas of the arguments of profiled tools seen so far, by tool name."""
        ...


@dataclass(frozen=True, slots=True)
class KnownTools:
    """Profiles and argument schemas that do not change."""

    declared: Mapping[str, ToolProfile] = field(default_factory=dict)
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    released: None = None


@dataclass(frozen=True, slots=True)
class PepParts:
    """The enforcement point's parts, used by every step. `RuntimeAuthz` builds it."""

    ledger: Ledger
    evaluator: Evaluator
    issuer: Issuer
    identity: Identity
    audit: AuditSink
    tenant: str
    verifier: Verifier  # checks what an issuer outside this process has minted
    notifiers: Mapping[str, Notifier]
    tools: Tools
    agents: Mapping[str, AgentProfile]
    kill_switch: KillSwitch | None = None
    memory: ThreadMemory = field(default_factory=ThreadMemory)
    tally: DecisionCounts = field(default_factory=DecisionCounts)
    recent: RecentDecisions = field(init=False)
    planner: Any = None
    """Its `plan` and `aplan` take a `TurnInContext`, return a mandate or None, and never raise."""
    zone: ZoneInfo | None = None
    on_ask: Callable[[dict[str, Any]], Any] | None = None
    on_unknown: Callable[[Any], Any] | None = None
    observer: Any = None
    """Notes what the process does, if `observe_process` was called."""
    write: Callable[[Callable[[], dict[str, Any]]], None] = field(init=False)
    """Writes the audit record that the given function builds."""
    non_blocking: frozenset[Effect] = field(init=False)
    """Effects that never block with these parts, so an async flow performs them on the event loop."""
    blocking: frozenset[Effect] = field(init=False)
    """Effects that block on a ledger or a disk. An async flow moves to a thread before it performs one."""
    threaded: frozenset[Effect] = field(init=False)
    """Effects that a flow in that thread performs there. It leaves the thread for all others, like application code."""

    def __post_init__(self) -> None:
        observe_ledger(self.ledger, self.tenant)
        audit, ledger = self.audit, self.ledger
        object.__setattr__(self, "recent", RecentDecisions(audit))
        object.__setattr__(self, "write", audit.defer if isinstance(audit, MemorySink) else partial(_write, self))
        writes, waits = getattr(audit, "waits", False), getattr(ledger, "waits", False)
        memory, quick, kept = type(ledger) is MemoryLedger, self.evaluator.in_process, isinstance(audit, MemorySink)
        own = _those({Load: memory, Commit: memory, Evaluate: quick, Write: kept})
        # Only the async methods of `BlockingLedger` just call the blocking ones. Any other async method is awaited.
        forms = {Load: "aload", Commit: "acommit", Status: "astatus"} if waits else {}
        own_form = {e: getattr(getattr(ledger, name), "__func__", None) for e, name in forms.items()}
        plain = {e: own_form[e] is getattr(BlockingLedger, name) for e, name in forms.items()}
        blocking = _those({**plain, Write: writes, Block: True})
        object.__setattr__(self, "non_blocking", own if writes else own | {Write})
        object.__setattr__(self, "blocking", blocking)
        object.__setattr__(self, "threaded", blocking | own)

    @property
    def killed(self) -> bool:
        """True if the kill switch is engaged."""
        return self.kill_switch is not None and self.kill_switch.engaged

    def refuse_if_stopped(self, now: float) -> None:
        """Raise `CredentialError` if the kill switch is engaged or the identity expired."""
        if self.killed:
            raise CredentialError(Code.KILLED)
        if (ends := self.identity.expires_at) is not None and now >= int(ends):
            raise CredentialError(Code.WORKLOAD_UNPROVEN)

    def child_profile(self, agent: str) -> AgentProfile | None:
        """Return the profile of a child agent, by its name or by `*`; None if neither."""
        return self.agents.get(agent) or self.agents.get(ANY)

    @staticmethod
    def granted(profile: AgentProfile | None, *grants: Grant | None) -> Grant | None:
        """Return what the profile's grant and all `grants` allow (None: no limit)."""
        found = profile.grant if profile is not None else None
        for grant in grants:
            found = grant if found is None else found.attenuate(grant)
        return found

    def lease_end(self, now: float, started_at: int) -> int:
        """Return when a lease expires: never later than the workload's identity."""
        until, ends = min(int(now) + LEASE_TTL, started_at + MAX_LIFETIME), self.identity.expires_at
        return until if ends is None else min(until, int(ends))

    def deny_for_failure(self, exc: Exception, run: Run | None = None) -> Decision:
        """Log the failure of a part (ledger, audit log, identity), and return a deny."""
        decision = deny(Code.KILLED if self.killed else failure_code(exc))
        self._log_failure(exc, run, decision.decision_id, f"{_part(exc)} failed")
        return decision

    def log_unrecorded(self, what: str, exc: Exception, run: Run, decision_id: str = "") -> None:
        """Log that `what` happened but was not recorded."""
        self._log_failure(exc, run, decision_id, f"{what} was not recorded")

    def _log_failure(self, exc: Exception, run: Run | None, decision_id: str, what: str) -> None:
        code = failure_code(exc)
        count_metric("errors", {COMPONENT: _part(exc), ERROR_TYPE: str(code)})
        if (left_out := self.recent.failures_left_out(f"{what} {code}")) is not None:
            thread, run_id = (run.scope.thread, run.run_id) if run is not None else ("", "")
            about = {"decision_id": decision_id, **({"run_id": run_id, "thread_id": thread} if run else {})}
            ids = f"decision {decision_id}, " * bool(decision_id) + f"run {run_id}, thread {thread!a}"
            more = f"; {left_out} more were not logged" if left_out else ""
            text = str(exc) if isinstance(exc, AuthzError) else f"{code}: {type(exc).__name__}: {exc}"
            _log.error("%s: %s (%s)%s", what, printable(text), ids, more, extra=about)


@dataclass(slots=True, eq=False)
class EntryState:
    """The state of one root entry, shared by the runs of its agents."""

    name: str  # the first jti, or the superstep of an unprotected graph
    upstream: tuple[str, ...] = ()  # agents of other servers that delegated to the root, nearest first
    has_checkpointer: bool = False  # so the ledger records the root run's last checkpoint
    first_checkpoint: str = ""  # the thread's newest checkpoint when the entry began
    first_snapshot: Snapshot | None = None  # after the first commit, with all texts; until calls are decided
    state_error: Exception | None = None  # of the checkpointer, while the entry was opened
    started_at: int = 0
    steps_before: int = 0  # number of the thread's steps when the entry began
    text_count: int = 0  # number of texts in the ledger when the entry began
    mandate: Mandate | None = None  # the application's mandate
    planned: Mandate | None = None  # the planner's mandate, from the user's words only
    spent_at: Scope | None = None  # the thread that first used `mandate` and counts its steps, if not this one
    undelivered: tuple[str, ...] = ()  # corrections that the input of the root graph lacks
    replies: tuple[str, ...] = ()  # answers to tools' or nodes' own questions
    handoffs: dict[str, Edge] = field(default_factory=dict)  # receiving agent → its permitted hand-off
    children: set[str] = field(default_factory=set)  # jtis of child agents that have not ended
    asked_anew: set[str] = field(default_factory=set)  # interrupt ids of questions of child graphs without checkpoints


@dataclass(slots=True, eq=False)
class ModelCalls:
    """Calls of models, as LangChain announces them. Each run has its own `running`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: dict[object, tuple[str, str | None]] = field(default_factory=dict)  # callback id → model, prompt digest
    # Digest of calls that a model returned → model, prompt digest.
    returned: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)  # digests of calls that the client sent, never planned


@dataclass(slots=True, eq=False)
class LocalState:
    """The state of one run in this process. The ledger holds all that must survive."""

    plans: dict[str, object] = field(default_factory=dict)  # ids of recorded plans → their calls
    batches: dict[Any, Any] = field(default_factory=dict)  # decisions that the tasks of one message share: `tool_batch`
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `batches`
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)  # call key → resource, version before the read
    executions: dict[object, Any] = field(default_factory=dict)  # of graph tasks → what their calls share
    spans: dict[str, Any] = field(default_factory=dict)  # decision id → its span, to which later spans link
    permits: dict[tuple[Any, ...], tuple[Decision, float]] = field(default_factory=dict)  # step → permit, expiry
    looked: tuple[float, Any] = (0.0, None)  # when (monotonic seconds) a step loaded its snapshot, and the snapshot
    key_prefix: str = ""  # beginning of the ledger keys of the run's calls
    idempotency_prefix: str = ""  # beginning of the idempotency keys of the run's calls
    run_json: tuple[Any, ...] = ()  # JSON of subject, agent and grant
    task_json: tuple[Any, ...] = ()  # the task, its epoch, and JSON of both
    schemas_read: bool = False  # the tools' schemas were built, for mandates
    exchanged: tuple[Any, dict[Any, Any]] | None = None  # a lease, and the tokens that a provider issued for it


@dataclass(slots=True, eq=False)
class Run:
    """One agent's run in one root entry. Two agent paths never share a `jti`."""

    pep: PepParts
    scope: Scope
    subject: Subject
    run_id: str
    entry: EntryState
    agent: tuple[str, ...]
    jti: str
    grant: Grant | None = None
    _: KW_ONLY
    depth: int = 0  # number of delegations from the first agent to this one
    parent: Run | None = None
    waiting: tuple[tuple[tuple[str, ...], str], ...] = ()  # waiting calls of parents: agent path, call id
    delegation: str = ""  # id of the decision that delegated to this run
    epoch: int = 0  # like `guard` and `expires_at`, set when the run takes its lease
    guard: Guard = NO_GUARD  # the conditions of this run's commits
    expires_at: int = 0
    keyed_thread: Any = None  # the thread to which this root entry gives answers by interrupt id
    closed: bool = False
    paused: bool = False
    span: OpenSpan | None = None
    models: ModelCalls = field(default_factory=ModelCalls)
    local: LocalState = field(default_factory=LocalState)

    def move_to(self, epoch: int, jti: str) -> None:
        """Continue in another epoch and under another lease."""
        self.epoch, self.jti, self.guard = epoch, jti, Guard(jti, epoch)

    def untold(self) -> str:
        """Return the corrections that the agent's graph lacks, for results of stale calls."""
        entry = self.entry
        return "\n".join((*(entry.undelivered if self.parent is None else ()), *entry.replies))

    def pause(self) -> None:
        """Mark the run and its parents as paused, so that their leases are `suspended`."""
        run: Run | None = self
        while run is not None:
            run.paused = True
            run = run.parent

    @property
    def over(self) -> bool:
        """True if the run or one of its parents was closed in this process."""
        return self.closed or (self.parent is not None and self.parent.over)


def _those(effects: Mapping[Effect, bool]) -> frozenset[Effect]:
    return frozenset(effect for effect, chosen in effects.items() if chosen)


def agent_id(identity: Identity, path: tuple[str, ...]) -> str:
    """Return the agent's id. Raises `CredentialError` if the identity fails."""
    try:
        return identity.agent_id(path)
    except Exception as exc:
        raise CredentialError(Code.WORKLOAD_UNPROVEN, type(exc).__name__) from exc


def _part(exc: BaseException) -> str:
    return "audit" if isinstance(exc, AuditError) else "identity" if isinstance(exc, CredentialError) else "ledger"


def _write(pep: PepParts, build: Callable[[], dict[str, Any]]) -> None:
    pep.recent.add(build)
    try:
        pep.audit.write(anchor_record(build(), pep.ledger, pep.tenant))
    except AuditError:
        raise
    except Exception as exc:  # any failure of a foreign sink is a failed record
        raise AuditError(Code.AUDIT_UNAVAILABLE, type(exc).__name__) from exc


def _notify(pep: PepParts, channel: str, notification: Mapping[str, Any]) -> None:
    notifier = pep.notifiers.get(channel)
    if notifier is None:
        raise AuditError(Code.NOTIFY_UNAVAILABLE, f"there is no channel `{channel}`")
    try:
        notifier.send(notification)
    except AuditError:
        raise
    except Exception as exc:  # any failure of a foreign notifier is a failed notification
        raise AuditError(Code.NOTIFY_UNAVAILABLE, type(exc).__name__) from exc


# Calls a blocking function with arguments. An async flow calls it in a thread.
Block: Final = Effect(lambda _, do, *given: do(*given), lambda _, do, *given: asyncio.to_thread(do, *given))
Load: Final = Effect(part="ledger", method=Ledger.load)  # takes scope and query; returns a `Snapshot`
# Takes scope, guard and changes; returns `Committed` or `Conflict`.
Commit: Final = Effect(part="ledger", method=Ledger.commit)
Status: Final = Effect(part="ledger", method=Ledger.status)  # takes tenant and jti; returns the `TokenStatus`
ListDoubts: Final = Effect(part="ledger", method=ListsInDoubtCalls.doubts)  # takes tenant; optional: call key, thread
Evaluate: Final = Effect(part="evaluator", method=Evaluator.evaluate)  # takes requests as JSON; returns their decisions
Notify: Final = Effect(_notify)  # takes channel and notification; never blocks
# Writes the audit record that a function builds. It may be called later, so its values must not change.
Write: Final = Effect(ado=lambda pep, build: asyncio.to_thread(pep.write, build), part="write")


def anchor_record(record: dict[str, Any], ledger: Ledger, tenant: str) -> dict[str, Any]:
    """Add the ledger's newest commit (`Anchor`) to an audit record."""
    read: Any = getattr(ledger, "anchor", None)  # an `Anchored` ledger has this method
    if read is not None and (anchor := read(tenant)) is not None:
        record["ledger"] = {"tenant": tenant, **anchor._asdict()}
    return record
