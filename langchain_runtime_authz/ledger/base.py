"""The ledger's protocol, and the rows that it keeps of a thread outside the graph's state.

Changes (`ledger.changes`) contain their rules, so a store only reads and writes rows. Every store passes one contract
suite (`testing.ledger_suite.LedgerContract`).

Evolution rule (protocol version 1, `PROTOCOL_VERSION`): a change class or field may be added, with a default that keeps
the old meaning. None is renamed, removed or redefined. A store must refuse a change that it does not know.

INVARIANT: a thread's epoch never decreases. INVARIANT: `revoked` holds until `Reinstate`.
INVARIANT: plan records are first write wins. INVARIANT: an approval is spent at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.output_reading import Sighting
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.grant import Grant

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.changes import Change

T = TypeVar("T")
PROTOCOL_VERSION: Final = 1
LAPSED: Final = 3600  # seconds after expiry during which a lease that was not ended counts as under way
MAX_EDGES: Final = 256  # per thread; every request contains them
MAX_MARKS: Final = 10_000  # per thread
MAX_ASKED: Final = 1000  # questions in one answer of `Asked`, calls in one of `Doubted`
OPEN: Final = ("claimed", "unknown", "void")  # states of a call that may make a call of the same deed ask
LASTS: Final = 86_400  # seconds after its claim during which a call in doubt makes the same deed ask

AgentPath = tuple[str, ...]
LeaseState = Literal["live", "suspended", "ended", "revoked"]
CallState = Literal["claimed", "suspended", "done", "failed", "unknown", "void"]
TokenStatus = Literal["live", "ended", "revoked", "stale", "unknown"]
ApprovalState = Literal["asked", "approved", "rejected", "answered", "malformed", "spent"]


class Scope(NamedTuple):
    """The owner of a thread. Every key in a store begins with these four fields."""

    tenant: str
    issuer: str
    graph: str
    thread: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one agent to act in one root entry. Unlike a token, it has no signature or secret."""

    jti: str
    run_id: str
    agent: AgentPath  # from the root agent
    epoch: int
    started_at: int  # ledger time in epoch seconds, like `expires_at`
    expires_at: int
    grant: Grant | None = None
    parent: str | None = None  # jti of the lease from which it was attenuated
    state: LeaseState = "live"


class CallRow(NamedTuple):
    """The recorded state of a call. `void`: an operator found that it did not happen (`ResolveCall`)."""

    key: str
    state: CallState
    jti: str
    result: str | None = None  # JSON text, for calls that must not run twice
    deed: str = ""  # names all calls with one effect on one target, or on several; "" if it has no side effect
    at: float = 0.0  # ledger time of its claim
    # Other facts, until the call ends: tool, decision, idempotency key, who resolved it; its several `targets`, as deeds;
    # `by`, its tool and its lease, or for a payment its agent; `again` if another call has begun the same deed; `failed`
    # if the call raised, or returned an error (then `args_digest` follows its deed, unless it pays); `repeats` if it
    # was claimed anew while it was unknown; `before`, what it held if it was void (this stays); `idempotent` as profiled.
    about: Mapping[str, Any] | None = None

    @property
    def lost(self) -> bool:
        """Return True if nobody was told how the call ended, and it must not be repeated. After a failure somebody was."""
        known = self.about or {}
        return self.state == "unknown" and not known.get("failed") and not known.get("idempotent")


class Doubt(NamedTuple):
    """A permitted call that has not completed: `claimed` while its lease is live, `unknown` afterwards.

    It is `void` once an operator found that it did not happen. RULE: a deed in doubt asks (`asks`): when the call is
    decided, and again when its claim is committed. Only a resolution, or an approval that named it, lifts a doubt.
    """

    scope: Scope
    subject: str
    row: CallRow

    @property
    def name(self) -> str:
        """Return the doubt's name for questions. A call that is claimed again, or found done, is a new doubt."""
        return f"{self.row.key} {self.row.at}" + " done" * (self.row.state == "done")

    def hits(self, deeds: Collection[str]) -> bool:
        """Return True if the call has a target in common with a call of these deeds."""
        return not frozenset(deeds).isdisjoint((self.row.about or {}).get("targets") or (self.row.deed,))

    def listed(self, now: float) -> bool:
        """Return True if it is lost, or else unknown and still makes its deed ask. Of idempotent calls, payments do."""
        asks = self.row.deed.startswith("pay:") or not (self.row.about or {}).get("idempotent")
        return self.row.lost or (self.row.state == "unknown" and asks and now - self.row.at < LASTS)

    def asks(self, key: str, scope: Scope | None, about: Mapping[str, Any], now: float) -> bool:
        """Return True if the call `key`, of the same deed and subject, must ask because of this doubt.

        An `unknown` call counts. If it failed, it does not count for calls of the same message in the same root entry.
        A claimed call counts on its own thread. On another thread it counts only if another process runs it, and it is a
        payment or has the same arguments: a subject may act twice on one target in parallel. In its own root entry it
        counts if the same agent, in code or another message, repeats it exactly: its caller may have given it up.
        A call whose deed was begun again meanwhile counts for itself.
        """
        row, known = self.row, self.row.about or {}
        if row.key == key:
            return row.state != "claimed" and "again" in known
        beside = self.beside(scope, about)
        if row.state != "claimed" or now - row.at >= LASTS:
            return row.state == "unknown" and now - row.at < LASTS and not ("failed" in known and beside)
        equal = known.get("args_digest") == about["args_digest"]
        if known.get("entry") == about["entry"]:
            return equal and known.get("by") == about.get("by") and not beside
        same = equal or row.deed.startswith("pay:")
        return self.scope == scope or (same and known.get("process") != about["process"])

    def beside(self, scope: Scope | None, about: Mapping[str, Any]) -> bool:
        """Return True for a call of the same message in the same root entry."""
        known = self.row.about or {}
        message = known.get("entry") == about["entry"] and known.get("plan") == about.get("plan") is not None
        return message and self.scope == scope

    def unnoted(self, key: str) -> bool:
        """Return True if the call `key` must first note (`RepeatCall`) that it begins this void call's deed too.

        If the void call is entered again, it then asks.
        """
        return self.row.state == "void" and self.row.key != key and "again" not in (self.row.about or {})


@dataclass(frozen=True, slots=True)
class Approval:
    """One question to an approver and its answer, for one call key and its exact arguments."""

    call_key: str
    args_digest: str
    epoch: int  # of the task that asked
    task_id: str = ""  # of the graph task
    round: int = 0  # index of its interrupt
    position: int = 0  # index in that interrupt's list
    state: ApprovalState = "asked"
    source: Literal["interrupt", "hitl", "application"] = "interrupt"
    approver: str = ""  # of the answer, like the next two
    authenticated: bool = False
    message: str = ""
    interrupt_id: str = ""
    agent: AgentPath = ()  # of the call in question
    plan_id: str | None = None  # of that agent's message
    place: int | None = None  # of the call in that message
    call_id: str | None = None
    tool: str = ""
    within: tuple[tuple[AgentPath, str], ...] = ()  # calls (agent path, call id) of parent agents that wait
    edited: str = ""  # JSON text (`{"name", "args"}`) of the action that replaces the call, and is approved
    expires_at: int = 0  # ledger time, 0 for never
    allowed: tuple[str, ...] = ()  # decisions that the approver may take
    id: str = ""  # of this question; a second question about the same call has another
    subject: str = ""  # on whose behalf it is asked
    run_id: str = ""
    question: str = ""  # its text, inert (`_display`)
    needed: int = 1  # how many must approve
    distinct: bool = False  # neither the subject, under any type, nor anybody in `behind` may approve
    eligible: tuple[str, ...] = ()  # who may answer, as `type:id` (empty: anybody)
    fallback: tuple[str, ...] = ()  # who may also answer after `fallback_at`
    fallback_at: int = 0
    approvers: tuple[str, ...] = ()  # who has approved
    behind: tuple[str, ...] = ()  # those for whom the subject acts
    trace: str = ""  # W3C `traceparent` of the span that asked, for links of spans; nothing else trusts it
    doubts: tuple[str, ...] = ()  # the doubts (`Doubt.name`) that the question names

    def listed(self, id: str | None, now: float) -> bool:
        """Return True for the question `id`; without one, for each question that can still be answered."""
        return self.id == id if id is not None else self.id != "" and not 0 < self.expires_at <= now


@dataclass(slots=True)
class Query:
    """The parts of a thread that a step needs. Each part is bounded."""

    jti: str | None = None
    plan: tuple[AgentPath, str] | None = None  # (agent path, message id), in its newest record
    planned_call: tuple[AgentPath, str] | None = None  # (agent path, call id), if the message is not known
    calls: tuple[str, ...] = ()  # keys of calls: loads their rows and approvals
    agent: AgentPath = ()  # whose revocation is looked up
    log: bool = False  # pinned texts, and whether a root entry is under way or live; only for root entries
    asks: bool = False  # open questions; likewise
    marks: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # keys (`facts.normal_forms.key`) whose sightings to load
    counters: tuple[str, ...] = ()  # budgets whose counts to load
    deeds: tuple[str, ...] = ()  # (`CallRow.deed`) whose `OPEN` calls to load, from all threads of the subject


@dataclass(slots=True)
class Snapshot:
    """One consistent view."""

    now: float  # ledger time, which is authoritative (epoch seconds)
    exists: bool
    subject: str
    epoch: int
    task: Task
    revoked: bool
    lease: Lease | None
    plan: PlanRecord | None
    calls: Mapping[str, CallRow]
    approvals: Mapping[str, Approval]
    history: History
    edges: tuple[Edge, ...]
    log: tuple[HumanText, ...] = ()
    pending: tuple[HumanText, ...] = ()
    asks: tuple[Approval, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    underway: bool = False  # a root entry holds a lease that it has not ended, also if its process died within `LAPSED`
    live: bool = False  # that lease has not expired
    values: Mapping[str, tuple[Sighting, ...]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()


class Guard(NamedTuple):
    """Conditions of a commit: this lease is live and the task has this epoch."""

    jti: str
    epoch: int


class Committed(NamedTuple):
    """The result of a commit that applied all of its changes."""

    now: float
    epoch: int


class Conflict(NamedTuple):
    """The reason why a commit was refused. `row` is the finished call that it conflicts with, if any."""

    code: Code
    row: CallRow | None = None


class Anchor(NamedTuple):
    """A commit of a store that outlives its process. It distinguishes a ledger from an older copy.

    `ledger` names the store, `position` grows with every commit, `nonce` is random and known to that commit only. Audit
    records hold the newest anchor that their process has seen.
    """

    ledger: str
    position: int
    nonce: str


@runtime_checkable
class Ledger(Protocol):
    """A store. An exception denies: `LedgerError` with its code, any other as `ledger_unavailable`.

    The asynchronous forms, here and below, do not block the event loop.
    """

    def load(self, scope: Scope, query: Query) -> Snapshot:
        """Return one consistent snapshot. A missing thread has `exists=False` and epoch 1."""

    def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        """Apply all of `changes`, or none, after checking `guard`.

        Each change is checked against the thread before the commit. Two changes may not use up the same row.
        """

    def status(self, tenant: str, jti: str) -> TokenStatus:
        """Return the status of a lease's or a token's jti, for resource servers (RFC 7662).

        A token is live while its call is claimed, its lease is live and the task is unchanged.
        """

    async def astatus(self, tenant: str, jti: str) -> TokenStatus: ...

    async def aload(self, scope: Scope, query: Query) -> Snapshot: ...

    async def acommit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict: ...


@runtime_checkable
class Asked(Protocol):
    """A store that lists the open questions of all threads of a tenant."""

    def asked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]:
        """Return at most `MAX_ASKED` open questions, newest thread first, or only the question `id`."""

    async def aasked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]: ...


@runtime_checkable
class Doubted(Protocol):
    """A store that lists the calls of all threads of a tenant whose outcome is unknown."""

    def doubts(self, tenant: str, key: str | None = None, scope: Scope | None = None) -> Sequence[Doubt]:
        """Return at most `MAX_ASKED` calls that are `listed` (of `scope`), or the call `key` in any state.

        Those that are `lost` come first, newest first.
        """

    async def adoubts(self, tenant: str, key: str | None = None, scope: Scope | None = None) -> Sequence[Doubt]: ...


class Awaited(Ledger, Asked, Doubted):
    """A store with asynchronous forms of its methods. What a cancelled caller asked for may still happen."""

    async def _in_thread(self, verb: Callable[..., T], *args: Any) -> T:
        """Run a method. A store that waits for a disk or a lock does so in a thread."""
        return verb(*args)

    async def adoubts(self, tenant: str, key: str | None = None, scope: Scope | None = None) -> Sequence[Doubt]:
        return await self._in_thread(self.doubts, tenant, key, scope)

    async def aasked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]:
        return await self._in_thread(self.asked, tenant, id)

    async def astatus(self, tenant: str, jti: str) -> TokenStatus:
        return await self._in_thread(self.status, tenant, jti)

    async def aload(self, scope: Scope, query: Query) -> Snapshot:
        return await self._in_thread(self.load, scope, query)

    async def acommit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        return await self._in_thread(self.commit, scope, guard, changes)


@runtime_checkable
class Anchored(Protocol):
    """A store that outlives its process and names its commits, so that an older copy is recognised."""

    def anchor(self, tenant: str) -> Anchor | None:
        """Return the tenant's newest commit that this instance has seen."""

    def holds(self, tenant: str, anchor: Anchor) -> bool:
        """Return True if the commit that `anchor` names is in this ledger."""
