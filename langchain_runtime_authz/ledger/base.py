"""The ledger: what is known of a thread, outside the graph's own state.

Three verbs. `load` reads one consistent snapshot of one thread; `commit` applies a list of changes
in one transaction, or none of them; `status` tells whether a jti lives. A store that outlives its process
is `Anchored` too. What changes mean is written once (`ledger.effects`); a store only brings and keeps
rows, and passes one contract suite (`testing.ledger_suite.LedgerContract`).

Evolution rule (protocol version 1, `PROTOCOL_VERSION`): a change class or a field may be added,
with a default that means what its absence meant; none is renamed, removed or given another meaning.
A store must refuse a change that it does not know.

INVARIANT: a thread's epoch never decreases. INVARIANT: `revoked` holds until `Reinstate`.
INVARIANT: plan records are first write wins. INVARIANT: an approval is spent at most once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.provenance.observe import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.grant import Grant

__all__ = [
    "LAPSED",
    "MAX_ASKED",
    "MAX_MARKS",
    "PROTOCOL_VERSION",
    "AdvanceEpoch",
    "Anchor",
    "Anchored",
    "AnswerApproval",
    "Approval",
    "AskApproval",
    "Asked",
    "CallRow",
    "Change",
    "ClaimCall",
    "Committed",
    "ConcludeCall",
    "Conflict",
    "DeleteMarks",
    "EndLease",
    "Guard",
    "Lease",
    "Ledger",
    "OpenThread",
    "Query",
    "RecordEdge",
    "RecordPlan",
    "RecordStep",
    "RecordValues",
    "Redeliver",
    "Reinstate",
    "ReleaseCall",
    "RenewLease",
    "Revoke",
    "Scope",
    "SetMark",
    "Snapshot",
    "SpendApproval",
    "SpendBudget",
    "SpendRate",
    "TakeLease",
    "TakePending",
    "TokenStatus",
]

PROTOCOL_VERSION: Final = 1
LAPSED: Final = 3600  # seconds past its expiry for which a lease that nobody ended counts as under way
MAX_MARKS: Final = 10_000  # per thread
MAX_ASKED: Final = 1000  # questions in one answer of `Asked`

AgentPath = tuple[str, ...]
LeaseState = Literal["live", "suspended", "ended", "revoked"]
CallState = Literal["claimed", "suspended", "done", "failed", "unknown"]
TokenStatus = Literal["live", "ended", "revoked", "stale", "unknown"]
ApprovalState = Literal["asked", "approved", "rejected", "answered", "malformed", "spent"]


class Scope(NamedTuple):
    """Whose thread. Every key of every store starts with these four."""

    tenant: str
    issuer: str
    graph: str
    thread: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one agent in one root entry to go on. Not a token: no signature, no secret.

    `expires_at` and `started_at` are ledger time in epoch seconds. `parent` is the jti of the lease
    it was attenuated from. `agent` is the path from the root agent.
    """

    jti: str
    run_id: str
    agent: AgentPath
    epoch: int
    started_at: int
    expires_at: int
    grant: Grant | None = None
    parent: str | None = None
    state: LeaseState = "live"


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call's life. `result` is JSON text, for calls that must not run twice."""

    key: str
    state: CallState
    jti: str
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """One question to a human and its answer, for one call key and its exact arguments.

    `task_id`, `round` and `position` say which task asked it, in its how-manieth interrupt, and at
    which place of the list. `agent`, `plan_id`, `place`, `call_id` and `tool` say what was asked
    about: the call at `place` of that agent's message; `within` the calls (agent path, call id) of
    the agents above it that wait for its outcome. `edited` is JSON text of the action
    (`{"name", "args"}`) that the human put in the call's place: the approval is for that one and no
    longer for the call. `expires_at` is ledger time, 0 for never. `allowed` are the decisions that the
    question takes.

    `id` names this one question, also where the same call is asked about anew. `subject` and `run_id` say
    on whose behalf it is asked, in which run; `question` is its text, inert (`facts.inert`). `needed`
    approvers must say yes, and `approvers` have; with `distinct` none of them may be the subject, under
    whatever type, or one whom `behind` names: for whom the subject acts.
    `eligible` are those who may answer (nobody named: any), `fallback` those who may too from
    `fallback_at` (ledger time) on; all are `type:id`.
    """

    call_key: str
    args_digest: str
    epoch: int
    task_id: str = ""
    round: int = 0
    position: int = 0
    state: ApprovalState = "asked"
    source: Literal["interrupt", "hitl", "application"] = "interrupt"
    approver: str = ""
    authenticated: bool = False
    message: str = ""
    interrupt_id: str = ""
    agent: AgentPath = ()
    plan_id: str | None = None
    place: int | None = None
    call_id: str | None = None
    tool: str = ""
    within: tuple[tuple[AgentPath, str], ...] = ()
    edited: str = ""
    expires_at: int = 0
    allowed: tuple[str, ...] = ()
    id: str = ""
    subject: str = ""
    run_id: str = ""
    question: str = ""
    needed: int = 1
    distinct: bool = False
    eligible: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    fallback_at: int = 0
    approvers: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """What of a thread a step needs; everything asked for is bounded.

    `plan` is the (agent path, message id) whose newest record is wanted; where the message is not
    known, `planned_call` is the (agent path, call id) whose newest record is wanted. `log` adds the
    pinned texts and whether a root entry is under way, `asks` the open questions; only root entries
    need them. `marks` are names of marks, `values` the keys (`facts.provenance.forms.key`) whose
    sightings are wanted, `counters` those of budgets that are to be told.
    """

    jti: str | None = None
    plan: tuple[AgentPath, str] | None = None
    planned_call: tuple[AgentPath, str] | None = None
    calls: tuple[str, ...] = ()
    agent: AgentPath = ()
    log: bool = False
    asks: bool = False
    marks: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent view. `now` is ledger time, which is authoritative (epoch seconds).

    `underway`: a root entry has taken a lease and not ended it, or its process died not long ago.
    """

    now: float
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
    underway: bool = False
    values: Mapping[str, tuple[Sighting, ...]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Guard:
    """What must still hold for a commit: the lease is live and the task unchanged."""

    jti: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Change:
    """Base of what a commit may hold."""


@dataclass(frozen=True, slots=True)
class OpenThread(Change):
    """Create the thread for `subject`, or check that it is theirs (`subject_mismatch`)."""

    subject: str


@dataclass(frozen=True, slots=True)
class AdvanceEpoch(Change):
    """Pin `texts` and set the epoch from `expected` to `expected + 1`; else `stale_epoch`.

    Kills every live lease of the thread and voids open approvals. `first` pins the opening texts of
    a thread without a step of the epoch. `deliver` keeps the texts for the next root entry, for
    corrections that came beside the graph's own input. `keep` are the keys of approvals that the
    correction itself gives (a human who edits one call approves others with the same answer): as
    answered by earlier changes of the same commit, they move to the new epoch.
    """

    expected: int
    texts: tuple[HumanText, ...] = ()
    first: bool = False
    deliver: bool = False
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakePending(Change):
    """The pending corrections were delivered to a root entry: forget them."""


@dataclass(frozen=True, slots=True)
class Redeliver(Change):
    """Texts that an older run may have overwritten in the graph's state: pending again, each once."""

    texts: tuple[HumanText, ...]


@dataclass(frozen=True, slots=True)
class SetMark(Change):
    """Remember `value` under `name`, in place of what stood there. A store may forget the oldest of `MAX_MARKS`.

    Where another value stood there, the history says that `source` changed, if one is given.
    """

    name: str
    value: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class DeleteMarks(Change):
    """Forget the marks whose names begin with `prefix`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class TakeLease(Change):
    """A new lease. Refused (`revoked`) while the agent's subtree is revoked."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class RenewLease(Change):
    """Move a live lease's expiry forward, never back."""

    jti: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class EndLease(Change):
    """A live lease, and every live lease below it, is over. Ending twice is no error.

    Calls of these leases that are still claimed become `unknown`.
    """

    jti: str
    state: Literal["suspended", "ended", "revoked"]


@dataclass(frozen=True, slots=True)
class Revoke(Change):
    """No lease for the agent's subtree until `Reinstate`; live ones die."""

    agent: AgentPath


@dataclass(frozen=True, slots=True)
class Reinstate(Change):
    """Lift every revocation at or below the agent's subtree."""

    agent: AgentPath


@dataclass(frozen=True, slots=True)
class RecordPlan(Change):
    """First write wins; a second record for the same key changes nothing. The store sets `at`."""

    plan: PlanRecord


@dataclass(frozen=True, slots=True)
class RecordEdge(Change):
    """One delegation edge; the same edge twice is one edge."""

    edge: Edge


@dataclass(frozen=True, slots=True)
class ClaimCall(Change):
    """Take the call. `repeatable`: a read, or a profile that says idempotent, or an approval.

    none → claimed; suspended → claimed; otherwise, if not repeatable: claimed →
    `call_in_progress`, done → `Conflict` with the recorded row, failed and unknown →
    `outcome_unknown`. A claim whose lease has lapsed counts as unknown: its process died. `tokens` are the jtis that tokens minted for this call will bear; they live
    as long as the claim.
    """

    key: str
    jti: str
    repeatable: bool
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseCall(Change):
    """A claimed call never ran: its claim, its approval and its budgets are given back.

    `approval` is the approval's key where it is not the call's own.
    """

    key: str
    refund: tuple[str, ...] = ()
    approval: str = ""


@dataclass(frozen=True, slots=True)
class ConcludeCall(Change):
    """The call returned, failed or paused; `state=None` keeps nothing of it (a read)."""

    key: str
    state: Literal["done", "failed", "suspended", "unknown"] | None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class AskApproval(Change):
    """Open a question; an open one for the same call and arguments stays, an answered one is asked anew."""

    approval: Approval


@dataclass(frozen=True, slots=True)
class AnswerApproval(Change):
    """Answer an open question; an answered one keeps its first answer.

    Refused: `approval_approver`, where the approver is not one who may answer; `approval_not_distinct`,
    where the subject approves what another must, or somebody approves twice. A question that needs
    several approvers stays open until the last one. `id`, if given, must be the question's.
    Anybody's `rejected` is one too many. `answered`: the human answers in the tool's place, by `message`; the call does not run.
    """

    call_key: str
    state: Literal["approved", "rejected", "answered", "malformed"]
    approver: str
    authenticated: bool
    message: str = ""
    edited: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class SpendApproval(Change):
    """Use an approval, once, before it expires, for exactly these arguments; else `approval_void`."""

    call_key: str
    args_digest: str


@dataclass(frozen=True, slots=True)
class SpendBudget(Change):
    """One more permitted call of the counter, of at most `maximum`; else `budget_exhausted`."""

    counter: str
    maximum: int


@dataclass(frozen=True, slots=True)
class SpendRate(Change):
    """One more in the sliding window of `window` seconds, of at most `maximum`; else `rate_exceeded`."""

    counter: str
    window: int
    maximum: int


@dataclass(frozen=True, slots=True)
class RecordStep(Change):
    """Add to the history's counters. `call` names a permitted call, `side_effect` says that it is one.

    `unplanned` and `tainted` say more of a denial, `resource` (name, tool, version) of a read. `agent` is
    whose step it is; without one, everybody counts as knowing what was read.
    """

    call: str | None = None
    effect: str | None = None
    denials: int = 0
    data_class: str | None = None
    recent: str | None = None
    side_effect: bool = False
    unplanned: int = 0
    tainted: int = 0
    resource: tuple[str, str, str] | None = None
    agent: AgentPath = ()


class Anchor(NamedTuple):
    """A commit of a store that outlives its process: what tells a ledger from an older copy of itself.

    `ledger` names the store, `position` grows with every commit, `nonce` is random and known to that
    commit only. Audit records bear the newest anchor that their process has seen.
    """

    ledger: str
    position: int
    nonce: str


@dataclass(frozen=True, slots=True)
class RecordValues(Change):
    """Values that a tool returned, by digest (`facts.provenance`): never the values themselves.

    Of one key at most one sighting is kept for each combination of what it says besides its source;
    the first source stays. A store keeps at least 10,000 keys of a thread and may forget others: a
    sighting only ever adds trust.
    """

    values: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """All changes were applied."""

    now: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """None of the changes was applied, and why. `row` where a finished call is in the way."""

    code: Code
    row: CallRow | None = field(default=None)


@runtime_checkable
class Ledger(Protocol):
    """A store. Raising is a deny for whoever asked: `LedgerError` with its code, all else `ledger_unavailable`."""

    def load(self, scope: Scope, query: Query) -> Snapshot:
        """One consistent snapshot; a thread that does not exist has `exists=False` and epoch 1."""
        ...

    def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        """Apply all of `changes`, or none, after checking `guard`.

        Every change is checked against the thread as it was before the commit, and two changes of one
        commit may not use the same thing twice.
        """
        ...

    def status(self, tenant: str, jti: str) -> TokenStatus:
        """Whether a lease's or a token's jti lives: what a resource server asks (RFC 7662).

        A token lives while its call is claimed, its lease is live and the task is unchanged.
        """
        ...

    async def astatus(self, tenant: str, jti: str) -> TokenStatus:
        """`status` without blocking the event loop."""
        ...

    async def aload(self, scope: Scope, query: Query) -> Snapshot:
        """`load` without blocking the event loop."""
        ...

    async def acommit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        """`commit` without blocking the event loop."""
        ...


@runtime_checkable
class Asked(Protocol):
    """What a store can say of the questions that wait for an answer, on every thread of a tenant."""

    def asked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]:
        """Open questions, oldest thread first, at most `MAX_ASKED`; or the one of that `id`."""
        ...

    async def aasked(self, tenant: str, id: str | None = None) -> Sequence[tuple[Scope, Approval]]:
        """`asked` without blocking the event loop."""
        ...


@runtime_checkable
class Anchored(Protocol):
    """What a store that outlives its process can say of its commits, so that an older copy of it is told apart."""

    def anchor(self, tenant: str) -> Anchor | None:
        """The tenant's newest commit that this instance has seen."""
        ...

    def holds(self, tenant: str, anchor: Anchor) -> bool:
        """Whether the commit that `anchor` names is in this ledger."""
        ...
