"""Define the ledger's protocol and the rows of a thread. Nothing is stored here.

The rows are outside the graph's state. The rules of a commit are in its changes (`ledger.changes`), so a store only
reads and writes rows. Every store passes one contract suite (`testing.ledger_suite.LedgerContract`).

Evolution rule (protocol version 1): change classes and fields may be added, but not renamed, removed or redefined. A
new field's default keeps the old meaning. A store must refuse a change class that it does not know.

INVARIANT: a thread's epoch never decreases. INVARIANT: a revocation holds until `Reinstate`.
INVARIANT: the first record of a plan stays. INVARIANT: an approval is used at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.grant import Grant

if TYPE_CHECKING:
    from langchain_runtime_authz.ledger.changes import Change

T = TypeVar("T")
LAPSED: Final = 3600  # seconds for which a lease that expired without being ended counts as under way
MAX_EDGES: Final = 256  # per thread; bounded because every request contains all edges
MAX_MARKS: Final = 10_000  # per thread
MAX_ASKED: Final = 1000  # questions that `asked` returns, or calls that `doubts` returns
OPEN: Final = ("claimed", "unknown", "void")  # a call in these states may make others with its `deed` ask an approver
LASTS: Final = 86_400  # seconds from its claim for which a call in doubt makes others with its `deed` ask

AgentPath = tuple[str, ...]
LeaseState = Literal["live", "suspended", "ended", "revoked"]
CallState = Literal["claimed", "suspended", "done", "failed", "unknown", "void"]
TokenStatus = Literal["live", "ended", "revoked", "stale", "unknown"]
ApprovalState = Literal["asked", "approved", "rejected", "answered", "malformed", "spent"]


class Scope(NamedTuple):
    """The identity of a thread. A store keys every row by these four fields."""

    tenant: str
    issuer: str
    graph: str
    thread: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one agent to act in one root entry. A row, not a token."""

    jti: str
    run_id: str
    agent: AgentPath  # path from the root agent
    epoch: int
    started_at: int  # ledger time in epoch seconds, like `expires_at`
    expires_at: int
    grant: Grant | None = None
    parent: str | None = None  # jti of the parent agent's lease, from which this lease was attenuated
    state: LeaseState = "live"


class CallRow(NamedTuple):
    """The state of a call, like `claimed` (has begun) or `void` (did not happen)."""

    key: str
    state: CallState
    jti: str
    result: str | None = None  # JSON text, for calls that must not run twice
    deed: str = ""  # `effect:digest of the target`, or `effect:several`; "" if the call has no side effect
    at: float = 0.0  # ledger time of the claim
    # More facts, deleted when the call ends, except `before`. `targets`: a deed for each target, if there are several.
    # `by`: the tool and the lease (for a payment: the agent). `again`: another call has begun the same deed. `failed`:
    # the call raised, or returned an error (then its deed, unless it pays, ends with `args_digest`). `repeats`: the call
    # was unknown and is claimed again. `before`: the call was void and is claimed again; its facts from before.
    about: Mapping[str, Any] | None = None

    @property
    def lost(self) -> bool:
        """Return True if the outcome is unknown and the call must not be repeated."""
        known = self.about or {}
        return self.state == "unknown" and not known.get("failed") and not known.get("idempotent")


class InDoubtCall(NamedTuple):
    """A call in doubt: it began and has no known outcome.

    The call is `claimed` while its lease is live, `unknown` afterwards, and `void` if a resolution says that it did not
    happen. RULE: while a call is in doubt, other calls with its deed (effect and target) ask an approver (`must_ask`). This
    is checked when such a call is decided, and again when it is claimed. The doubt ends with a resolution, with an
    approval whose question named it, or after `LASTS` seconds.
    """

    scope: Scope
    subject: str
    row: CallRow

    @property
    def name(self) -> str:
        """Return the doubt's name. It changes if the call is claimed again or gets done."""
        return f"{self.row.key} {self.row.at}" + " done" * (self.row.state == "done")

    def hits(self, deeds: Collection[str]) -> bool:
        """Return True if `deeds` contains a deed of the call in doubt."""
        return not frozenset(deeds).isdisjoint((self.row.about or {}).get("targets") or (self.row.deed,))

    def listed(self, now: float) -> bool:
        """Return True if lists of calls in doubt show this one.

        They show a call that is `lost`, and for `LASTS` seconds an `unknown` call that pays or is not idempotent.
        """
        asks = self.row.deed.startswith("pay:") or not (self.row.about or {}).get("idempotent")
        return self.row.lost or (self.row.state == "unknown" and asks and now - self.row.at < LASTS)

    def must_ask(self, key: str, scope: Scope, about: Mapping[str, Any], now: float) -> bool:
        """Return True if the call `key` must ask an approver because of this doubt.

        `scope`, `about`: thread and facts of the call `key`. It has the subject and the deed of the call in doubt.
        """
        row, known = self.row, self.row.about or {}
        if row.key == key:  # the doubted call itself asks only if another call has begun its deed since
            return row.state != "claimed" and "again" in known
        if row.key == about.get("within") or now - row.at >= LASTS:  # the doubted call's own tool makes the call
            return False
        if row.state == "claimed":
            return self._must_ask_while_claimed(scope, about)
        return row.state == "unknown" and not ("failed" in known and self._same_message(scope, about))

    def _must_ask_while_claimed(self, scope: Scope, about: Mapping[str, Any]) -> bool:
        """Return True if the call with the facts `about` asks while this one may run."""
        known = self.row.about or {}
        equal = known.get("args_digest") == about["args_digest"]
        if known.get("entry") == about["entry"]:  # an agent that repeats a call in a later message may have given it up
            return equal and known.get("by") == about.get("by") and not self._same_message(scope, about)
        if self.scope == scope:  # a new root entry follows one that did not end
            return True
        # On another thread, the subject may act on the target in parallel, unless the doubted call's process may be dead.
        return known.get("process") != about["process"] and (equal or self.row.deed.startswith("pay:"))

    def _same_message(self, scope: Scope, about: Mapping[str, Any]) -> bool:
        known = self.row.about or {}
        message = known.get("entry") == about["entry"] and known.get("plan") == about.get("plan") is not None
        return message and self.scope == scope

    def unnoted(self, key: str) -> bool:
        """Return True if the claim of `key` needs a `RepeatCall` for this void call."""
        return self.row.state == "void" and self.row.key != key and "again" not in (self.row.about or {})


@dataclass(frozen=True, slots=True)
class Approval:
    """A question to an approver about one call with exact arguments, and its answer."""

    call_key: str
    args_digest: str
    epoch: int  # the task's epoch when the question was asked
    task_id: str = ""  # id of the LangGraph task
    round: int = 0  # index of the interrupt in the LangGraph task
    position: int = 0  # index of the question in the interrupt's list
    state: ApprovalState = "asked"
    source: Literal["interrupt", "hitl", "application"] = "interrupt"
    approver: str = ""  # who answered
    authenticated: bool = False  # the approver was authenticated
    message: str = ""  # the approver's text
    interrupt_id: str = ""
    agent: AgentPath = ()  # the agent that makes the call
    plan_id: str | None = None  # the model message that holds the call
    place: int | None = None  # index of the call in that message
    call_id: str | None = None
    tool: str = ""
    within: tuple[tuple[AgentPath, str], ...] = ()  # (agent path, call id) of each call of a parent agent that waits
    edited: str = ""  # JSON text (`{"name", "args"}`) of the action that the approver approves instead of the call
    expires_at: int = 0  # ledger time, 0 for never
    allowed: tuple[str, ...] = ()  # types of decision that the approver may choose from
    id: str = ""  # id of this question; a second question about the same call has another id
    subject: str = ""  # on whose behalf the call is made
    run_id: str = ""
    question: str = ""  # the question's text, escaped (`_display`)
    needed: int = 1  # number of approvers who must approve
    distinct: bool = False  # neither the subject, under any principal type, nor anybody in `behind` may approve
    eligible: tuple[str, ...] = ()  # who may answer, as `type:id` (empty: anybody)
    fallback: tuple[str, ...] = ()  # who may also answer after `fallback_at`
    fallback_at: int = 0
    approvers: tuple[str, ...] = ()  # who has approved so far
    behind: tuple[str, ...] = ()  # the subject's identifiers, and for whom the subject acts
    trace: str = ""  # W3C `traceparent` of the span that asked; used only to link spans
    doubts: tuple[str, ...] = ()  # the doubts (`InDoubtCall.name`) that the question names
    confirms: str = ""  # the mandate's counter of approvals (`Standing.confirms`), if the question shows the mandate

    def listed(self, id: str | None, now: float) -> bool:
        """Return True if this is the question `id`. Without `id`: if it has not expired."""
        return self.id == id if id is not None else self.id != "" and not 0 < self.expires_at <= now


@dataclass(slots=True)
class Query:
    """The parts of a thread to load for one decision. Each part is bounded in size."""

    jti: str | None = None  # jti of the lease to load
    plan: tuple[AgentPath, str] | None = None  # (agent path, message id); loads the record of the newest epoch
    planned_call: tuple[AgentPath, str] | None = None  # (agent path, call id), if the message id is not known
    calls: tuple[str, ...] = ()  # call keys; loads the calls' rows and approvals
    agent: AgentPath = ()  # the agent whose revocation to look up
    log: bool = False  # load the task's texts, pending texts, `underway` and `live`
    questions: bool = False  # load open questions
    marks: tuple[str, ...] = ()  # names of the marks to load
    values: tuple[str, ...] = ()  # keys (`facts.normal_forms.key`) whose sightings to load
    counters: tuple[str, ...] = ()  # budgets whose counts to load
    deeds: tuple[str, ...] = ()  # deeds whose `OPEN` calls to load, from all threads of the thread's subject


@dataclass(slots=True)
class Snapshot:
    """One consistent view of a thread."""

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
    pending: tuple[HumanText, ...] = ()  # pending texts: they changed the task, but the graph's state lacks them
    questions: tuple[Approval, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    underway: bool = False  # the lease of a root entry was not ended, and is live or expired less than `LAPSED` ago
    live: bool = False  # the lease of a root entry is live
    values: Mapping[str, tuple[SeenValue, ...]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[InDoubtCall, ...] = ()


class Guard(NamedTuple):
    """Conditions of a commit: a live lease `jti`, and the `epoch` of lease and task."""

    jti: str
    epoch: int


class Committed(NamedTuple):
    """The result of a commit that applied all of its changes."""

    now: float
    epoch: int


class Conflict(NamedTuple):
    """The reason why a commit was refused. `row`: the ended call in its way, if any."""

    code: Code
    row: CallRow | None = None


class Anchor(NamedTuple):
    """A reference to one commit, by which a restored older copy of a store is noticed.

    `ledger` identifies the store, `position` grows with every commit, and `nonce` is random. Each audit record holds
    the newest anchor that its process has seen.
    """

    ledger: str
    position: int
    nonce: str


@runtime_checkable
class Ledger(Protocol):
    """A store of threads. If a method raises, the step is denied.

    The deny has the code of the `LedgerError`, or else `ledger_unavailable`. Asynchronous forms do not block the loop.
    """

    def load(self, scope: Scope, query: Query) -> Snapshot:
        """Return one consistent snapshot. A missing thread has `exists=False` and epoch 1."""

    def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        """Apply all of `changes`, or none, after checking `guard`.

        Each change is checked against the thread as it was before the commit. Two changes cannot use the same approval.
        """

    def status(self, tenant: str, jti: str) -> TokenStatus:
        """Return the status of the lease or token with this jti, for introspection.

        A token is live while its call is under way, its lease is live, and the task is unchanged.
        """

    async def astatus(self, tenant: str, jti: str) -> TokenStatus: ...

    async def aload(self, scope: Scope, query: Query) -> Snapshot: ...

    async def acommit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict: ...


@runtime_checkable
class ListsQuestions(Protocol):
    """A store that lists the open questions of all threads of a tenant."""

    def asked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]:
        """Return open questions (at most `MAX_ASKED`), newest thread first, or only `id`."""

    async def aasked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]: ...


@runtime_checkable
class ListsInDoubtCalls(Protocol):
    """A store that lists the calls in doubt of all threads of a tenant."""

    def doubts(self, tenant: str, key: str | None = None, scope: Scope | None = None) -> Sequence[InDoubtCall]:
        """Return at most `MAX_ASKED` calls in doubt that are `listed`, or only call `key`.

        If `scope` is given, only this thread is searched. Calls that are `lost` come first, then newer before older.
        """

    async def adoubts(
        self, tenant: str, key: str | None = None, scope: Scope | None = None
    ) -> Sequence[InDoubtCall]: ...


class BlockingLedger(Ledger, ListsQuestions, ListsInDoubtCalls):
    """Base of stores: async methods. A commit may take effect after its cancellation."""

    async def _in_thread(self, verb: Callable[..., T], *args: Any) -> T:
        """Run `verb` here. A store that may block overrides this, to run it in a thread."""
        return verb(*args)

    async def adoubts(self, tenant: str, key: str | None = None, scope: Scope | None = None) -> Sequence[InDoubtCall]:
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
    """A durable store that names its commits, so that a restored backup is noticed."""

    def anchor(self, tenant: str) -> Anchor | None:
        """Return the tenant's newest commit that this instance has seen."""

    def holds(self, tenant: str, anchor: Anchor) -> bool:
        """Return True if the commit that `anchor` names is in this ledger."""
