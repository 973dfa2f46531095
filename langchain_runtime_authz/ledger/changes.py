"""Apply a commit. Define the changes of epochs, marks, leases, plans and edges.

Each change declares the rows it needs, its conditions and its effect. This module is pure, like `ledger.thread_state`.
All changes of a commit are checked before the first is applied. So `check` sees the thread as it was before the commit;
`used` holds what earlier changes of the same commit use up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.history import RESOURCES, CountedStep, count_step, handed_down
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.task import HumanText, extend_task
from langchain_runtime_authz.ledger.base import MAX_EDGES, AgentPath, Conflict, Guard, Lease, LeaseState
from langchain_runtime_authz.ledger.thread_state import Needs, Thread

Used = dict[tuple[str, ...], int]


def rows_needed(guard: Guard | None, changes: Sequence[Change]) -> Needs:
    """Return the rows that a commit must read."""
    n = Needs(leases={guard.jti} if guard is not None else set())
    for change in changes:
        change.needs(n)
    return n


def apply_changes(t: Thread, guard: Guard | None, changes: Sequence[Change], now: float) -> Conflict | None:
    """Apply all of `changes`, or none. Return the conflict if one is refused.

    Raises `TypeError` for an unknown change class, before anything is applied.
    """
    if guard is not None and (conflict := _broken(t, guard)) is not None:
        return conflict
    used: Used = {}
    for change in changes:
        if change.refusable and (conflict := change.check(t, now, used)) is not None:
            return conflict
    for change in changes:
        change.apply(t, now)
    t.exists = True
    return None


def _broken(t: Thread, guard: Guard) -> Conflict | None:
    lease = t.leases.get(guard.jti)
    if lease is None:
        return Conflict(Code.LEASE_ENDED)
    if lease.state == "revoked" or (t.revoked and t.is_revoked(lease.agent)):
        return Conflict(Code.REVOKED)
    # The epoch is checked before the lease's state: a correction ends leases, and `stale_epoch` is the better reason.
    if t.epoch != guard.epoch or lease.epoch != guard.epoch:
        return Conflict(Code.STALE_EPOCH)
    return Conflict(Code.LEASE_ENDED) if lease.state != "live" else None


class Change:
    """Base of all changes of a thread."""

    __slots__ = ()
    refusable: ClassVar[bool] = True

    def needs(self, n: Needs) -> None:
        """Add to `n` the rows that the change reads."""

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        """Return the conflict, or None after adding what the change uses up to `used`."""
        raise TypeError(f"unknown change {type(self).__name__}")

    def apply(self, t: Thread, now: float) -> None:
        raise NotImplementedError


class Unrefusable(Change):
    """A change that is never refused."""

    __slots__ = ()
    refusable = False


# Thread, task and history.


@dataclass(slots=True)
class OpenThread(Change):
    """Create the thread. If another subject has it: conflict `subject_mismatch`."""

    subject: str

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        return Conflict(Code.SUBJECT_MISMATCH) if t.subject and t.subject != self.subject else None

    def apply(self, t: Thread, now: float) -> None:
        t.subject = self.subject


@dataclass(slots=True)
class AdvanceEpoch(Change):
    """Change the task: record `texts` and raise the epoch by 1.

    Except with `first`, this ends every live lease of the thread and deletes open and approved questions. If the epoch
    is not `expected`, the conflict is `stale_epoch`.
    """

    expected: int
    texts: tuple[HumanText, ...] = ()
    first: bool = False  # record the first texts of a thread without a task, and keep the epoch
    deliver: bool = False  # keep the texts for the next root entry, because the graph's input does not contain them
    # Keys of questions that earlier changes of this commit approved. Such an approval moves to the new epoch.
    keep: tuple[str, ...] = ()

    def needs(self, n: Needs) -> None:
        n.living = n.open = True
        n.pending |= self.deliver

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        if t.epoch != self.expected or (self.first and t.task.digest) or ("epoch",) in used:
            return Conflict(Code.STALE_EPOCH)
        used["epoch",] = 1
        return None

    def apply(self, t: Thread, now: float) -> None:
        t.epoch += not self.first
        texts = [replace(text, epoch=t.epoch, at=now) for text in self.texts]
        t.log.extend(texts)
        t.task = extend_task(t.task, texts, correction=not self.first)
        if self.deliver:
            t.pending.extend(texts)
        if self.first:
            return
        # Count successive task changes by others. A change by the subject resets the count.
        own = any(text.own for text in self.texts)
        t.history = replace(t.history, rotations=0 if own else t.history.rotations + 1, changed={})
        _end(t, "ended", lambda _: True)
        for key, held in list(t.approvals.items()):
            if held.state == "approved" and key in self.keep:
                t.approvals[key] = replace(held, epoch=t.epoch)
            elif held.state in ("asked", "approved"):
                del t.approvals[key]


@dataclass(slots=True)
class TakePending(Unrefusable):
    """Delete the pending texts, after the graph or the model has received them."""

    def needs(self, n: Needs) -> None:
        n.pending = True

    def apply(self, t: Thread, now: float) -> None:
        t.pending.clear()


@dataclass(slots=True)
class Redeliver(Unrefusable):
    """Make texts pending again, because the graph's state may have lost them."""

    texts: tuple[HumanText, ...]

    def needs(self, n: Needs) -> None:
        n.pending = True

    def apply(self, t: Thread, now: float) -> None:
        t.pending.extend([text for text in self.texts if text not in t.pending])


@dataclass(slots=True)
class SetMark(Unrefusable):
    """Set a mark: a text that the ledger stores by name for the thread.

    A store may drop the mark of a read. Then the next read of the same data counts as changed.
    """

    name: str
    value: str
    source: str = ""  # if given, a new value of an existing mark is noted in `History.changed` under this name
    once: bool = False  # do not replace an existing mark
    instead: str | None = None  # if given, set the mark only if its present value is this one

    def needs(self, n: Needs) -> None:
        n.marks.add(self.name)

    def apply(self, t: Thread, now: float) -> None:
        if (self.once and self.name in t.marks) or self.instead not in (None, t.marks.get(self.name)):
            return
        lost = t.forgotten is not None and self.name in t.forgotten
        before = t.marks.pop(self.name, "" if lost else self.value)  # removed first, so that the newest mark is last
        t.marks[self.name] = self.value
        if self.source and before != self.value:
            changed = {**t.history.changed, self.source: t.history.steps}
            t.history = replace(t.history, changed=dict(list(changed.items())[-RESOURCES:]))


@dataclass(slots=True)
class DeleteMarks(Unrefusable):
    """Delete the marks whose names begin with `prefix`."""

    prefix: str

    def needs(self, n: Needs) -> None:
        n.unmarked.add(self.prefix)

    def apply(self, t: Thread, now: float) -> None:
        for name in [name for name in t.marks if name.startswith(self.prefix)]:
            t.marks.pop(name)


class RecordStep(CountedStep, Unrefusable):
    """Add a step to the history's counters."""

    __slots__ = ()

    def apply(self, t: Thread, now: float) -> None:
        t.history = count_step(t.history, self, now)


# Leases and revocations.


def _end(t: Thread, state: LeaseState, doomed: Callable[[Lease], bool]) -> None:
    for jti, lease in list(t.leases.items()):
        if lease.state == "live" and doomed(lease):
            t.leases[jti] = replace(lease, state=state)


@dataclass(slots=True)
class TakeLease(Change):
    """Add a lease. Conflicts: `revoked`, `stale_epoch`, `lease_ended` (of the parent)."""

    lease: Lease

    def needs(self, n: Needs) -> None:
        n.leases |= {jti for jti in (self.lease.jti, self.lease.parent) if jti}

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        lease = self.lease
        if t.is_revoked(lease.agent):
            return Conflict(Code.REVOKED)
        if lease.epoch != t.epoch:
            return Conflict(Code.STALE_EPOCH)
        parent = t.leases.get(lease.parent) if lease.parent else None
        orphaned = lease.parent and (parent is None or parent.state != "live")
        return Conflict(Code.LEASE_ENDED) if orphaned else None

    def apply(self, t: Thread, now: float) -> None:
        lease = self.lease
        t.leases[lease.jti] = lease
        t.issued.append((lease.jti, None, lease.jti))
        if t.history.confined:
            t.history = replace(t.history, confined=handed_down(t.history.confined, lease.agent[:-1]))


@dataclass(slots=True)
class RenewLease(Change):
    """Move a live lease's expiry forward, never back."""

    jti: str
    expires_at: int

    def needs(self, n: Needs) -> None:
        n.leases.add(self.jti)

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        held = t.leases.get(self.jti)
        return Conflict(Code.LEASE_ENDED) if held is None or held.state != "live" else None

    def apply(self, t: Thread, now: float) -> None:
        held = t.leases[self.jti]
        t.leases[self.jti] = replace(held, expires_at=max(held.expires_at, self.expires_at))


@dataclass(slots=True)
class EndLease(Unrefusable):
    """End a lease and all leases below it. Calls claimed under them become `unknown`."""

    jti: str
    state: Literal["suspended", "ended", "revoked"]

    def needs(self, n: Needs) -> None:
        n.below.add(self.jti)

    def apply(self, t: Thread, now: float) -> None:
        doomed, below = set[str](), {self.jti}
        while below:  # a lease may come before its parent's
            doomed |= below
            below = {lease.jti for lease in t.leases.values() if lease.parent in below} - doomed
        _end(t, self.state, lambda lease: lease.jti in doomed)
        # Nobody is expected to record the outcome of these calls any more.
        for key, row in list(t.calls.items()):
            if row.state == "claimed" and row.jti in doomed:
                t.calls[key] = row._replace(state="unknown")


@dataclass(slots=True)
class Revoke(Unrefusable):
    """End the leases of an agent and of agents below it, and refuse new ones."""

    agent: AgentPath

    def needs(self, n: Needs) -> None:
        n.living = True

    def apply(self, t: Thread, now: float) -> None:
        t.revoked.add(self.agent)
        _end(t, "revoked", lambda lease: lease.agent[: len(self.agent)] == self.agent)


@dataclass(slots=True)
class Reinstate(Unrefusable):
    """Lift the revocations of an agent and of all agents below it."""

    agent: AgentPath

    def apply(self, t: Thread, now: float) -> None:
        t.revoked.difference_update([path for path in t.revoked if path[: len(self.agent)] == self.agent])


# Plans, edges and returned values.


@dataclass(slots=True)
class RecordPlan(Unrefusable):
    """Record a plan, unless this message of the agent has one in this epoch."""

    plan: PlanRecord

    def needs(self, n: Needs) -> None:
        n.plans.add((self.plan.agent, self.plan.id))

    def apply(self, t: Thread, now: float) -> None:
        plan = self.plan
        records = t.plans.get((plan.agent, plan.id), {})
        if plan.epoch in records:  # INVARIANT: first write wins
            return
        if not plan.origin:  # a plan that was carried into this epoch keeps its `at`
            plan = replace(plan, at=t.history.steps)
        t.plans[plan.agent, plan.id] = {**records, plan.epoch: plan}
        for call in plan.calls:
            if call.call_id is not None:
                t.by_call[plan.agent, call.call_id] = plan


@dataclass(slots=True)
class RecordEdge(Change):
    """Record a delegation edge. Above `MAX_EDGES`, the conflict is `too_wide`."""

    edge: Edge

    def needs(self, n: Needs) -> None:
        n.edges = True

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        full = len(t.edges) >= MAX_EDGES and self._key not in t.edges
        return Conflict(Code.TOO_WIDE) if full else None

    def apply(self, t: Thread, now: float) -> None:
        t.edges.setdefault(self._key, self.edge)

    @property
    def _key(self) -> tuple[str, str, str]:
        return self.edge.from_, self.edge.to, self.edge.kind


@dataclass(slots=True)
class RecordValues(Unrefusable):
    """Record digests of the values that a tool returned, for `facts.provenance`.

    Of records that differ only in the source, the first is kept. A store keeps at least 10,000 keys of a thread. It may
    drop others, because a value without a record is only trusted less.
    """

    values: tuple[SeenValue, ...]

    def needs(self, n: Needs) -> None:
        n.values.update([seen.key for seen in self.values])

    def apply(self, t: Thread, now: float) -> None:
        for seen in self.values:
            if seen.key not in t.values:
                t.values[seen.key] = (seen,)
                continue
            for known in t.values[seen.key]:
                if known[:-1] == seen[:-1]:
                    break
            else:
                t.values[seen.key] = (*t.values[seen.key], seen)
