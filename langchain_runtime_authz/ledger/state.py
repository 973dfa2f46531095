"""What a commit means: the one place where a thread's rows become other rows.

Pure: no store, no clock, no lock. A store brings the rows of a thread (all of them, or those that `needs`
names), calls `apply`, and keeps what changed; so that the rules are written once and every store has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.facts.history import (
    MAX_NAMES,
    RECENT,
    RESOURCES,
    TIMES,
    History,
    confine,
    handed_down,
    left,
)
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.provenance.harvest import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task, extend
from langchain_runtime_authz.ledger import base as b

__all__ = ["Needs", "Thread", "apply", "ledger_time", "needs", "needs_of", "snapshot", "status", "tokens"]

CLOCK_SLACK: Final = 5.0  # seconds that a clock may be set back and time only stands still
_NO_TASK: Final = Task()
_NO_HISTORY: Final = History()

EdgeKey = tuple[str, str, str]
PlanKey = tuple[b.AgentPath, str]
_Spent = defaultdict[tuple[str, ...], int]


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
            case b.Mark(name):
                n.marks.add(name)
            case b.Unmark(prefix):
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
        revoked=_is_revoked(t, query.agent),
        lease=t.leases.get(query.jti) if query.jti else None,
        plan=plan,
        calls={k: row for k in query.calls if (row := _row(t, k, now))},
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
    if lease.state == "revoked" or _is_revoked(t, lease.agent):
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


def apply(t: Thread, guard: b.Guard | None, changes: Sequence[b.Change], now: float) -> b.Conflict | None:
    """Apply all of `changes` to `t`, or none of them and say why.

    Raises:
        TypeError: a change is unknown; nothing was applied.
    """
    try:
        if guard is not None:
            _check(t, guard)
        # First every check, then every effect: a refused commit changes nothing.
        spent: _Spent = defaultdict(int)
        effects = [_effect(t, change, now, spent) for change in changes]
    except _Refused as refused:
        return refused.conflict
    for effect in effects:
        effect()
    t.exists = True
    return None


class _Refused(Exception):
    def __init__(self, code: Code, row: b.CallRow | None = None) -> None:
        self.conflict = b.Conflict(code, row)


def _is_revoked(t: Thread, agent: b.AgentPath) -> bool:
    return any(agent[: len(root)] == root for root in t.revoked)


def _check(t: Thread, guard: b.Guard) -> None:
    lease = t.leases.get(guard.jti)
    if lease is None:
        raise _Refused(Code.LEASE_ENDED)
    if lease.state == "revoked" or _is_revoked(t, lease.agent):
        raise _Refused(Code.REVOKED)
    # Before the lease's state: a correction kills the leases, and "the task changed" tells more.
    if t.epoch != guard.epoch or lease.epoch != guard.epoch:
        raise _Refused(Code.STALE_EPOCH)
    if lease.state != "live":
        raise _Refused(Code.LEASE_ENDED)


def _row(t: Thread, key: str, now: float) -> b.CallRow | None:
    """A call as it stands. Whoever let the lease lapse with a call claimed died: its outcome is unknown."""
    row = t.calls.get(key)
    if row is not None and row.state == "claimed":
        lease = t.leases.get(row.jti)
        if lease is not None and now >= lease.expires_at:
            return replace(row, state="unknown")
    return row


def _underway(lease: b.Lease, now: float) -> bool:
    """Whether a root entry's lease is live, or its process died not long ago."""
    return lease.parent is None and lease.state == "live" and now < lease.expires_at + b.LAPSED


def _end(t: Thread, doomed: Callable[[b.Lease], bool], state: b.LeaseState) -> None:
    for jti, lease in list(t.leases.items()):
        if lease.state == "live" and doomed(lease):
            t.leases[jti] = replace(lease, state=state)


def _counted(h: History, change: b.Count, now: float) -> History:
    classes, confined = h.classes_read, h.confined
    if confined and change.effect not in (None, "read"):  # also an address that was fetched is seen
        confined = left(confined, change.agent)
    if (name := change.data_class) is not None:
        name = name if name in classes or len(classes) < MAX_NAMES else "*"
        confined = confine(confined, classes, name, change.agent)
        classes = classes if name in classes else tuple(sorted({*classes, name}))
    return History(
        steps=h.steps + 1,
        calls=_bumped(h.calls, change.call),
        effects=_bumped(h.effects, change.effect),
        denials=h.denials + change.denials,
        classes_read=classes,
        recent=h.recent if change.recent is None else (*h.recent, change.recent)[-RECENT:],
        streak=0 if change.call is not None else h.streak + change.denials,
        unplanned=h.unplanned + change.unplanned,
        tainted=h.tainted + change.tainted,
        rotations=0 if change.side_effect else h.rotations,
        times=h.times if change.call is None else (*h.times, int(now))[-TIMES:],
        changed=h.changed,
        resources=_read(h.resources, change.resource),
        confined=confined,
    )


def _read(known: Mapping[str, str], read: tuple[str, str, str] | None) -> Mapping[str, str]:
    if read is None:
        return known
    name, tool, version = read
    others = [(k, v) for k, v in known.items() if k != name]
    return dict([*others, (name, f"{version} {tool}")][-RESOURCES:])


def _bumped(counts: Mapping[str, int], name: str | None) -> Mapping[str, int]:
    if name is None:
        return counts
    if name not in counts and len(counts) >= MAX_NAMES:
        name = "*"
    return {**counts, name: counts.get(name, 0) + 1}


def _effect(t: Thread, change: b.Change, now: float, spent: _Spent) -> Callable[[], None]:
    """Check one change against the thread and return what applies it.

    `spent` is what earlier changes of the same commit use up: nothing is used twice in one commit.
    """
    match change:  # it tries its cases in order, so the changes that every call makes stand first
        case b.Count():
            return lambda: setattr(t, "history", _counted(t.history, change, now))

        case b.ClaimCall(key, jti, repeatable, _):
            row = _row(t, key, now)
            if spent["call", key] and not repeatable:
                raise _Refused(Code.CALL_IN_PROGRESS)
            if row is not None and row.state != "suspended" and not repeatable:
                code = Code.CALL_IN_PROGRESS if row.state == "claimed" else Code.OUTCOME_UNKNOWN
                raise _Refused(code, row if row.state == "done" else None)
            spent["call", key] += 1
            return lambda: t.calls.__setitem__(key, b.CallRow(key, "claimed", jti))

        case b.ConcludeCall(key, None):
            return lambda: _drop(t.calls, key)

        case b.ConcludeCall(key, state, result):
            row = t.calls.get(key)
            concluded = b.CallRow(key, state or "unknown", row.jti if row else "", result)
            return lambda: t.calls.__setitem__(key, concluded)

        case b.RecordValues(values):
            return lambda: _record_values(t, values)

        case b.OpenThread(subject):
            if t.subject and t.subject != subject:
                raise _Refused(Code.SUBJECT_MISMATCH)
            return lambda: setattr(t, "subject", subject)

        case b.AdvanceEpoch(expected, texts, first, deliver, keep):
            if t.epoch != expected or (first and t.task.digest) or spent["epoch",]:
                raise _Refused(Code.STALE_EPOCH)

            spent["epoch",] += 1

            def advance() -> None:
                t.log.extend(texts)
                t.task = extend(t.task, texts, correction=not first)
                if deliver:
                    t.pending.extend(texts)
                if not first:
                    t.epoch += 1
                    # The subject may change the task as often as they like; what others do to it is counted.
                    own = any(x.own for x in texts)
                    rotations = 0 if own else t.history.rotations + 1
                    t.history = replace(t.history, rotations=rotations, changed={})
                    _end(t, lambda _: True, "ended")
                    # A question about the old task must not be answered for the new one.
                    for key, held in list(t.approvals.items()):
                        if held.state == "approved" and key in keep:
                            t.approvals[key] = replace(held, epoch=t.epoch)
                        elif held.state in ("asked", "approved"):
                            del t.approvals[key]

            return advance

        case b.TakePending():
            return t.pending.clear

        case b.Redeliver(texts):
            return lambda: t.pending.extend([x for x in texts if x not in t.pending])

        case b.Mark(name, value, source):

            def mark() -> None:
                if source and t.marks.get(name, value) != value:
                    changed = {**t.history.changed, source: t.history.steps}
                    t.history = replace(t.history, changed=dict(list(changed.items())[-RESOURCES:]))
                t.marks.pop(name, None)  # the newest comes last
                t.marks[name] = value

            return mark

        case b.Unmark(prefix):
            return lambda: _drop(t.marks, *[name for name in t.marks if name.startswith(prefix)])

        case b.TakeLease(lease):
            if _is_revoked(t, lease.agent):
                raise _Refused(Code.REVOKED)
            if lease.epoch != t.epoch:
                raise _Refused(Code.STALE_EPOCH)
            parent = t.leases.get(lease.parent) if lease.parent else None
            if lease.parent and (parent is None or parent.state != "live"):
                raise _Refused(Code.LEASE_ENDED)

            def take() -> None:
                t.leases[lease.jti] = lease
                if t.history.confined:
                    t.history = replace(t.history, confined=handed_down(t.history.confined, lease.agent[:-1]))

            return take

        case b.RenewLease(jti, expires_at):
            held = t.leases.get(jti)
            if held is None or held.state != "live":
                raise _Refused(Code.LEASE_ENDED)
            renewed = replace(held, expires_at=max(held.expires_at, expires_at))
            return lambda: t.leases.__setitem__(jti, renewed)

        case b.EndLease(jti, over):
            doomed = {jti}
            grew = True
            while grew:  # rows come in no order
                below = {le.jti for le in t.leases.values() if le.parent in doomed}
                grew = not below <= doomed
                doomed |= below

            def end() -> None:
                _end(t, lambda le: le.jti in doomed, over)
                # Nobody will conclude these any more: whether they took effect is not known.
                for key, row in list(t.calls.items()):
                    if row.state == "claimed" and row.jti in doomed:
                        t.calls[key] = replace(row, state="unknown")

            return end

        case b.Revoke(agent):

            def revoke() -> None:
                t.revoked.add(agent)
                _end(t, lambda le: le.agent[: len(agent)] == agent, "revoked")

            return revoke

        case b.Reinstate(agent):
            return lambda: t.revoked.difference_update([p for p in t.revoked if p[: len(agent)] == agent])

        case b.RecordPlan(plan):
            return lambda: _record_plan(t, plan)

        case b.RecordEdge(edge):
            known = t.edges.get((edge.from_, edge.to, edge.kind), edge)
            return lambda: t.edges.__setitem__((edge.from_, edge.to, edge.kind), known)

        case b.ReleaseCall(key, refund, approval_key):
            # Only what is held can be given back: not twice, and not by a call that ran.
            if (row := t.calls.get(key)) is None or row.state not in ("claimed", "unknown"):
                return lambda: None

            def release() -> None:
                t.calls.pop(key, None)
                lifted = approval_key or key
                if (used := t.approvals.get(lifted)) is not None and used.state == "spent":
                    t.approvals[lifted] = replace(used, state="approved")
                for counter in refund:
                    t.budgets[counter] = max(t.budgets.get(counter, 0) - 1, 0)

            return release

        case b.AskApproval(approval):
            asked = t.approvals.get(approval.call_key)
            if asked is not None and asked.args_digest == approval.args_digest and asked.state == "asked":
                return lambda: None
            return lambda: t.approvals.__setitem__(approval.call_key, approval)

        case b.AnswerApproval(key):
            asked = t.approvals.get(key)
            if asked is None or asked.state != "asked" or change.id not in ("", asked.id):
                raise _Refused(Code.APPROVAL_VOID)
            answered = _answered(asked, change, now)
            return lambda: t.approvals.__setitem__(key, answered)

        case b.SpendApproval(key, args_digest):
            held_approval = t.approvals.get(key)
            if (
                held_approval is None
                or held_approval.state != "approved"
                or held_approval.args_digest != args_digest
                or held_approval.epoch != t.epoch
                or 0 < held_approval.expires_at <= now
                or spent["approval", key]
            ):
                raise _Refused(Code.APPROVAL_VOID)
            spent["approval", key] += 1
            used = replace(held_approval, state="spent")
            return lambda: t.approvals.__setitem__(key, used)

        case b.SpendBudget(counter, maximum):
            if t.budgets.get(counter, 0) + spent["budget", counter] >= maximum:
                raise _Refused(Code.BUDGET_EXHAUSTED)
            spent["budget", counter] += 1
            # Every one by its own name: a budget that shares a counter is not kept.
            return lambda: t.budgets.__setitem__(counter, t.budgets.get(counter, 0) + 1)

        case b.SpendRate(counter, window, maximum):
            # By window too: the shorter of two must not forget what the longer one counts.
            def counted() -> tuple[float, ...]:
                return tuple(at for at in t.rates.get((counter, window), ()) if at > now - window)

            if len(counted()) + spent["rate", counter, str(window)] >= maximum:
                raise _Refused(Code.RATE_EXCEEDED)
            spent["rate", counter, str(window)] += 1
            return lambda: t.rates.__setitem__((counter, window), (*counted(), now))

    msg = f"unknown change {type(change).__name__}"
    raise TypeError(msg)


def _answered(asked: b.Approval, given: b.AnswerApproval, now: float) -> b.Approval:
    """The question with one more answer: of who may give one, and of a new person each time."""
    by = given.approver
    may = not asked.eligible or by in asked.eligible or (by in asked.fallback and now >= asked.fallback_at)
    if given.state in ("approved", "answered"):
        if not may:
            raise _Refused(Code.APPROVAL_APPROVER)
        # By name, whatever acts under it: a person's cron job or agent is no second person.
        behind = {_name(asked.subject), *asked.behind} if asked.distinct else set()
        if _name(by) in behind or _name(by) in map(_name, asked.approvers):
            raise _Refused(Code.APPROVAL_NOT_DISTINCT)
    elif not may and by != asked.subject:  # whose call it is may always take it back
        raise _Refused(Code.APPROVAL_APPROVER)
    approvers = (*asked.approvers, by) if given.state == "approved" else asked.approvers
    waits = given.state == "approved" and len(approvers) < asked.needed
    return replace(
        asked,
        state="asked" if waits else given.state,
        approver=" ".join(approvers) if given.state == "approved" else by,
        # One that is not would be the weakest of them.
        authenticated=given.authenticated and (asked.authenticated or not asked.approvers),
        message=given.message,
        edited=given.edited,
        approvers=approvers,
    )


def _name(principal: str) -> str:
    return principal.partition(":")[2] or principal


def _drop(rows: dict[str, Any], *keys: str) -> None:
    for key in keys:
        rows.pop(key, None)


def _record_plan(t: Thread, plan: PlanRecord) -> None:
    records = t.plans.get((plan.agent, plan.id), {})
    if plan.epoch in records:  # INVARIANT: first write wins
        return
    if not plan.origin:  # a carried plan was made where it was made
        plan = replace(plan, at=t.history.steps)
    t.plans[plan.agent, plan.id] = {**records, plan.epoch: plan}
    for call in plan.calls:
        if call.call_id is not None:
            t.by_call[plan.agent, call.call_id] = plan


def _record_values(t: Thread, values: Sequence[Sighting]) -> None:
    for seen in values:
        known = t.values.get(seen.key, ())
        if all(s[:-1] != seen[:-1] for s in known):
            t.values[seen.key] = (*known, seen)
