"""Hold a thread's rows in memory for a load or commit, and take snapshots of them.

This module is pure: no store, no clock, no lock. A store reads all rows of a thread, or those in `Needs`. Then it calls
`take_snapshot` or `changes.apply_changes`, and writes the changed rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nlargest
from operator import attrgetter
from struct import unpack
from typing import Final, TypeVar

from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.history import History
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.schema import NEWEST, SEVERAL

CLOCK_SLACK: Final = 5.0  # seconds by which a clock may be set back; ledger time then stands still
_NO_TASK: Final = Task()
ROWS: Final = attrgetter(  # the collections of rows, in the order of `Thread`
    *("log", "pending", "marks", "revoked", "leases", "plans", "by_call", "calls", "approvals", "edges"),
    *("budgets", "rates", "values"),
)

EdgeKey = tuple[str, str, str]
PlanKey = tuple[b.AgentPath, str]
V = TypeVar("V")

UNKNOWN_COUNT: Final = 1_000_000  # reported for a dropped counter


class Forgotten:
    """A Bloom filter of the names of dropped calls, counters and reads.

    The outcome of a dropped call counts as unknown, a dropped counter as used up, and a dropped read as changed.
    """

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = bytearray(1 << 18)

    def add(self, name: str) -> None:
        for at in self._places(name):
            self._bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, name: str) -> bool:
        return all(self._bits[at >> 3] & 1 << (at & 7) for at in self._places(name))

    @staticmethod
    def _places(name: str) -> tuple[int, ...]:
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=28).digest()
        return tuple(place & 0x1FFFFF for place in unpack("<7I", digest))


@dataclass(slots=True)
class Thread:
    """One thread's rows. A store may load only the rows in `Needs`."""

    exists: bool = False
    subject: str = ""
    epoch: int = 1
    task: Task = _NO_TASK
    history: History = field(default_factory=History)
    log: list[HumanText] = field(default_factory=list)
    pending: list[HumanText] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    revoked: set[b.AgentPath] = field(default_factory=set)
    leases: dict[str, b.Lease] = field(default_factory=dict)
    plans: dict[PlanKey, dict[int, PlanRecord]] = field(default_factory=dict)  # by epoch
    by_call: dict[PlanKey, PlanRecord] = field(default_factory=dict)  # the newest, by agent and call id
    calls: dict[str, b.CallRow] = field(default_factory=dict)
    approvals: dict[str, b.Approval] = field(default_factory=dict)
    edges: dict[EdgeKey, Edge] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    rates: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    values: dict[str, tuple[SeenValue, ...]] = field(default_factory=dict)
    # For each jti that this commit issues: the jti, the key of the token's call (`None` for a lease), the lease's jti.
    issued: list[tuple[str, str | None, str]] = field(default_factory=list)
    scope: b.Scope | None = None
    # Deed → call key → thread: all `OPEN` calls of the store, or those in `Needs`.
    open: dict[str, dict[str, Thread]] = field(default_factory=dict)
    forgotten: Forgotten | None = None
    at: float = 0.0  # ledger time of the last commit, in a store in memory

    def copied(self) -> Thread:
        """Return a copy whose rows can be changed independently."""
        return Thread(self.exists, self.subject, self.epoch, self.task, self.history, *[r.copy() for r in ROWS(self)])

    def is_revoked(self, agent: b.AgentPath) -> bool:
        """Return True if `agent`, or an agent above it, is revoked."""
        return any(agent[: len(root)] == root for root in self.revoked)

    def call(self, key: str, now: float) -> b.CallRow:
        """Return a call's row, as `unknown` if its claim's lease has expired or is gone."""
        row = self.calls[key]
        if row.state == "claimed":
            lease = self.leases.get(row.jti)
            if lease is None or now >= lease.expires_at:
                return row._replace(state="unknown")
        return row

    def put(self, key: str, row: b.CallRow) -> None:
        """Set a call's row, and keep `open` up to date."""
        self.calls[key] = row
        deed, opened = row.deed, self.open
        if row.state in b.OPEN and deed:
            if deed not in opened:
                opened[deed] = {}
            opened[deed][key] = self
        elif deed in opened and key in opened[deed]:
            del opened[deed][key]
            if not opened[deed]:
                del opened[deed]

    def drop(self, key: str) -> None:
        """Delete a call's row, and keep `open` up to date."""
        self.put(key, self.calls[key]._replace(state="failed"))
        del self.calls[key]

    def forget(self, name: str) -> None:
        """Remember only that `name` was dropped (`Forgotten`)."""
        self.forgotten = self.forgotten or Forgotten()
        self.forgotten.add(name)


@dataclass(slots=True)
class Needs:
    """The rows to read, in addition to subject, epoch, task, history and revocations."""

    leases: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)  # jtis of leases whose child leases are read, with their calls
    living: bool = False  # all live leases
    plans: set[PlanKey] = field(default_factory=set)
    by_call: set[PlanKey] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)  # keys; the leases that hold these calls are read too
    approvals: set[str] = field(default_factory=set)
    open: bool = False  # all open or approved questions
    edges: bool = False
    budgets: set[str] = field(default_factory=set)
    rates: set[tuple[str, int]] = field(default_factory=set)
    log: bool = False
    pending: bool = False
    marks: set[str] = field(default_factory=set)
    unmarked: set[str] = field(default_factory=set)  # prefixes of marks that the commit deletes
    values: set[str] = field(default_factory=set)
    deeds: set[str] = field(default_factory=set)
    locks: set[tuple[str, ...]] = field(default_factory=set)  # two commits that share a lock exclude each other

    @classmethod
    def of(cls, query: b.Query) -> Needs:
        """Return the rows that `query` asks for."""
        return cls(
            leases={query.jti} if query.jti else set(),
            plans={query.plan} if query.plan is not None else set(),
            by_call={query.planned_call} if query.planned_call is not None else set(),
            calls=set(query.calls),
            approvals=set(query.calls),
            living=query.log,
            open=query.questions,
            edges=True,
            log=query.log,
            pending=query.log,
            budgets=set(query.counters),
            marks=set(query.marks),
            values=set(query.values),
            deeds=set(query.deeds),
        )


def calls_in_doubt(
    found: Mapping[str, Mapping[str, Thread]], tenant: str, deed: str, now: float, subject: str | None = None
) -> tuple[b.InDoubtCall, ...]:
    """Return a deed's calls in doubt, from `found` (`Thread.open`).

    With `subject`, return only those because of which another call of this subject may have to ask an approver.
    """
    kinds: dict[str, list[b.InDoubtCall]] = {"claimed": [], "unknown": [], "void": []}
    for key, t in found[deed].items():
        if t.scope is None or t.scope.tenant != tenant or subject not in (None, t.subject):
            continue
        one, state = b.InDoubtCall(t.scope, t.subject, t.call(key, now)), t.calls[key].state
        if subject is None or state != "unknown" or now - one.row.at < b.LASTS:
            kinds[state].append(one)
    if subject is not None and not deed.endswith(f":{SEVERAL}"):
        for state in ("unknown", "void"):
            kinds[state] = nlargest(NEWEST, kinds[state], key=lambda one: (one.row.at, one.row.key))
        if len(unknown := kinds["unknown"]) == NEWEST:
            unknown[-1] = unknown[-1]._replace(row=unknown[-1].row._replace(about=None))
    return (*kinds["claimed"], *kinds["unknown"], *kinds["void"])


def ledger_time(clock: float, latest: float) -> float:
    """Return ledger time for the clock's time and the latest time seen.

    Ledger time never goes back, so that an expiry is final. If the clock was set back by at most `CLOCK_SLACK`, ledger
    time stands still. If it was set back further, this raises `ledger_clock`.
    """
    if clock >= latest:
        return clock
    if clock < latest - CLOCK_SLACK:
        raise LedgerError(Code.LEDGER_CLOCK, f"{latest - clock:.0f} s behind the last commit")
    return latest


def take_snapshot(t: Thread, query: b.Query, now: float) -> b.Snapshot:
    """Return a copy of what `query` asks for, as of ledger time `now`."""
    plan = None
    if query.plan is not None and query.plan in t.plans:
        records = t.plans[query.plan]
        plan = records[max(records)]
    elif query.planned_call is not None:
        plan = t.by_call.get(query.planned_call)
    calls = {}
    for key in query.calls:
        if key in t.calls:
            calls[key] = t.call(key, now)
    found = b.Snapshot(
        now,
        t.exists,
        t.subject,
        t.epoch,
        t.task,
        bool(t.revoked) and t.is_revoked(query.agent),
        t.leases.get(query.jti) if query.jti else None,
        plan,
        calls,
        _found(t.approvals, query.calls) if t.approvals else {},
        t.history,
        tuple(t.edges.values()) if t.edges else (),
        marks=_found(t.marks, query.marks) if t.marks else {},
        values=_found(t.values, query.values) if t.values else {},
        counters=_found(t.budgets, query.counters) if t.budgets else {},
    )
    if t.forgotten is not None:
        lost = {name: UNKNOWN_COUNT for name in query.counters if name not in t.budgets and name in t.forgotten}
        found.counters = {**found.counters, **lost}
    if query.questions:
        found.questions = tuple(a for a in t.approvals.values() if a.state == "asked")
    if query.log:
        found.log, found.pending = tuple(t.log), tuple(t.pending)
        found.live = any(_underway(lease, now) and now < lease.expires_at for lease in t.leases.values())
        found.underway = found.live or any(_underway(lease, now) for lease in t.leases.values())
    return found


def _found(rows: Mapping[str, V], names: Sequence[str]) -> dict[str, V]:
    found = {}
    for name in names:
        if name in rows:
            found[name] = rows[name]
    return found


def lease_status(t: Thread, lease_jti: str, call_key: str | None, now: float) -> b.TokenStatus:
    """Return the status of a lease, or of a token for the call `call_key`."""
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


def _underway(lease: b.Lease, now: float) -> bool:
    return lease.parent is None and lease.state == "live" and now < lease.expires_at + b.LAPSED
