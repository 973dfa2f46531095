"""A thread's rows: which of them a query or a commit looks at, and what they answer.

Pure: no store, no clock, no lock. A store brings the rows of a thread (all of them, or those that `needs`
names), calls `snapshot` or `effects.apply`, and keeps what changed; so that the rules are written once and
every store has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.provenance.observe import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.ledger import base as b

__all__ = ["Needs", "Thread", "ledger_time", "needs", "needs_of", "snapshot", "status", "tokens"]

CLOCK_SLACK: Final = 5.0  # seconds that a clock may be set back and time only stands still
_NO_TASK: Final = Task()
_NO_HISTORY: Final = History()

EdgeKey = tuple[str, str, str]
PlanKey = tuple[b.AgentPath, str]


@dataclass(slots=True)
class Thread:
    """One thread's rows. In a store that loads by need, only what `needs` named is here."""

    exists: bool = False
    subject: str = ""
    epoch: int = 1
    task: Task = _NO_TASK
    history: History = _NO_HISTORY
    log: list[HumanText] = field(default_factory=list)
    pending: list[HumanText] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    revoked: set[b.AgentPath] = field(default_factory=set)
    leases: dict[str, b.Lease] = field(default_factory=dict)
    plans: dict[PlanKey, dict[int, PlanRecord]] = field(default_factory=dict)  # by epoch
    by_call: dict[PlanKey, PlanRecord] = field(default_factory=dict)  # (agent, call id) → newest record
    calls: dict[str, b.CallRow] = field(default_factory=dict)
    approvals: dict[str, b.Approval] = field(default_factory=dict)
    edges: dict[EdgeKey, Edge] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    rates: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    values: dict[str, tuple[Sighting, ...]] = field(default_factory=dict)

    def is_revoked(self, agent: b.AgentPath) -> bool:
        """Whether `agent`, or an agent above it, is revoked."""
        return any(agent[: len(root)] == root for root in self.revoked)

    def call(self, key: str, now: float) -> b.CallRow | None:
        """A call as it stands. Whoever let the lease lapse with a call claimed died: its outcome is unknown."""
        row = self.calls.get(key)
        if row is not None and row.state == "claimed":
            lease = self.leases.get(row.jti)
            if lease is not None and now >= lease.expires_at:
                return replace(row, state="unknown")
        return row


@dataclass(slots=True)
class Needs:
    """The rows that a query or a commit looks at.

    Beside those that every one does: subject, epoch, task, history, revocations.

    `leases` and `calls` by jti and key, with the lease that holds each call; `below` adds the leases below
    these, and the calls that they hold; `living` all live leases; `open` all questions that are open or answered yes.
    """

    leases: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    living: bool = False
    plans: set[PlanKey] = field(default_factory=set)
    by_call: set[PlanKey] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    approvals: set[str] = field(default_factory=set)
    open: bool = False
    edges: bool = False
    budgets: set[str] = field(default_factory=set)
    rates: set[tuple[str, int]] = field(default_factory=set)
    log: bool = False
    pending: bool = False
    marks: set[str] = field(default_factory=set)
    unmarked: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)


def needs_of(query: b.Query) -> Needs:
    """What `snapshot` looks at."""
    return Needs(
        leases={query.jti} if query.jti else set(),
        plans={query.plan} if query.plan is not None else set(),
        by_call={query.planned_call} if query.planned_call is not None else set(),
        calls=set(query.calls),
        approvals=set(query.calls),
        living=query.log,
        open=query.asks,
        edges=True,
        log=query.log,
        pending=query.log,
        budgets=set(query.counters),
        marks=set(query.marks),
        values=set(query.values),
    )


def needs(guard: b.Guard | None, changes: Sequence[b.Change]) -> Needs:
    """What `apply` looks at."""
    n = Needs(leases={guard.jti} if guard is not None else set())
    for change in changes:
        match change:
            case b.AdvanceEpoch(deliver=deliver):
                n.living = n.open = True
                n.pending |= deliver
            case b.TakePending() | b.Redeliver():
                n.pending = True
            case b.SetMark(name):
                n.marks.add(name)
            case b.DeleteMarks(prefix):
                n.unmarked.add(prefix)
            case b.RecordValues(values):
                n.values |= {seen.key for seen in values}
            case b.TakeLease(lease):
                n.leases |= {jti for jti in (lease.jti, lease.parent) if jti}
            case b.RenewLease(jti):
                n.leases.add(jti)
            case b.EndLease(jti):
                n.below.add(jti)
            case b.Revoke():
                n.living = True
            case b.RecordPlan(plan):
                n.plans.add((plan.agent, plan.id))
            case b.RecordEdge():
                n.edges = True
            case b.ClaimCall(key) | b.ConcludeCall(key):
                n.calls.add(key)
            case b.ReleaseCall(key, refund, approval):
                n.calls.add(key)
                n.approvals.add(approval or key)
                n.budgets |= set(refund)
            case b.AskApproval(approval):
                n.approvals.add(approval.call_key)
            case b.AnswerApproval(key) | b.SpendApproval(key):
                n.approvals.add(key)
            case b.SpendBudget(counter):
                n.budgets.add(counter)
            case b.SpendRate(counter, window):
                n.rates.add((counter, window))
    return n


def ledger_time(clock: float, latest: float) -> float:
    """Ledger time, given what the clock says and the latest time that the ledger has seen.

    Time never goes back: what has expired stays expired. A clock set back a little is waited for.

    Raises:
        LedgerError: `ledger_clock`: it was set back by more than `CLOCK_SLACK`.
    """
    if clock < latest - CLOCK_SLACK:
        raise LedgerError(Code.LEDGER_CLOCK, f"{latest - clock:.0f} s behind the last commit")
    return max(clock, latest)


def snapshot(t: Thread, query: b.Query, now: float) -> b.Snapshot:
    """What `Ledger.load` answers."""
    plan = None
    if query.plan is not None and (records := t.plans.get(query.plan)):
        plan = records[max(records)]
    elif query.planned_call is not None:
        plan = t.by_call.get(query.planned_call)
    return b.Snapshot(
        now=now,
        exists=t.exists,
        subject=t.subject,
        epoch=t.epoch,
        task=t.task,
        revoked=t.is_revoked(query.agent),
        lease=t.leases.get(query.jti) if query.jti else None,
        plan=plan,
        calls={k: row for k in query.calls if (row := t.call(k, now))},
        approvals={k: asked for k in query.calls if (asked := t.approvals.get(k))},
        history=t.history,
        edges=tuple(t.edges.values()),
        log=tuple(t.log) if query.log else (),
        pending=tuple(t.pending) if query.log else (),
        asks=tuple(a for a in t.approvals.values() if a.state == "asked") if query.asks else (),
        marks={name: t.marks[name] for name in query.marks if name in t.marks},
        values={k: seen for k in query.values if (seen := t.values.get(k))},
        counters={name: spent for name in query.counters if (spent := t.budgets.get(name))},
        underway=query.log and any(_underway(le, now) for le in t.leases.values()),
    )


def status(t: Thread, lease_jti: str, call_key: str | None, now: float) -> b.TokenStatus:
    """What `Ledger.status` answers of a lease, or of a token that lives by it and by the call `call_key`."""
    if call_key is not None:
        row = t.calls.get(call_key)
        if row is None or row.state != "claimed" or row.jti != lease_jti:
            return "ended"
    lease = t.leases.get(lease_jti)
    if lease is None:
        return "ended"
    if lease.state == "revoked" or t.is_revoked(lease.agent):
        return "revoked"
    if lease.epoch != t.epoch:
        return "stale"
    return "live" if lease.state == "live" and now < lease.expires_at else "ended"


def tokens(changes: Sequence[b.Change]) -> Iterator[tuple[str, str, str]]:
    """The tokens that come to life with a commit: jti, key of the call, jti of the lease."""
    for change in changes:
        if isinstance(change, b.ClaimCall):
            for jti in change.tokens:
                yield jti, change.key, change.jti


def _underway(lease: b.Lease, now: float) -> bool:
    """Whether a root entry's lease is live, or its process died not long ago."""
    return lease.parent is None and lease.state == "live" and now < lease.expires_at + b.LAPSED
