"""What a commit means: the one place where a thread's rows become other rows.

Pure, as `ledger.state`. Each change has one function, which checks it against the thread and returns what
applies it; so that a commit is checked whole before any of it takes effect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

from langchain_runtime_authz.errors import Code
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
from langchain_runtime_authz.facts.task import extend
from langchain_runtime_authz.ledger import base as b
from langchain_runtime_authz.ledger.state import Thread

__all__ = ["apply"]

_Spent = defaultdict[tuple[str, ...], int]  # what earlier changes of the same commit use up
_Effect = Callable[[], object]


class _Refused(Exception):
    def __init__(self, code: Code, row: b.CallRow | None = None) -> None:
        self.conflict = b.Conflict(code, row)


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
        effects = [_effect(change, t, now, spent) for change in changes]
    except _Refused as refused:
        return refused.conflict
    for effect in effects:
        effect()
    t.exists = True
    return None


def _check(t: Thread, guard: b.Guard) -> None:
    lease = t.leases.get(guard.jti)
    if lease is None:
        raise _Refused(Code.LEASE_ENDED)
    if lease.state == "revoked" or t.is_revoked(lease.agent):
        raise _Refused(Code.REVOKED)
    # Before the lease's state: a correction kills the leases, and "the task changed" tells more.
    if t.epoch != guard.epoch or lease.epoch != guard.epoch:
        raise _Refused(Code.STALE_EPOCH)
    if lease.state != "live":
        raise _Refused(Code.LEASE_ENDED)


@singledispatch
def _effect(change: b.Change, t: Thread, now: float, spent: _Spent) -> _Effect:
    """Check one change against the thread and return what applies it."""
    msg = f"unknown change {type(change).__name__}"
    raise TypeError(msg)


def _nothing() -> None:
    """What a change does that finds its work done."""


# The thread, its task and its history.


@_effect.register
def _(change: b.OpenThread, t: Thread, now: float, spent: _Spent) -> _Effect:
    if t.subject and t.subject != change.subject:
        raise _Refused(Code.SUBJECT_MISMATCH)
    return lambda: setattr(t, "subject", change.subject)


@_effect.register
def _(change: b.AdvanceEpoch, t: Thread, now: float, spent: _Spent) -> _Effect:
    if t.epoch != change.expected or (change.first and t.task.digest) or spent["epoch",]:
        raise _Refused(Code.STALE_EPOCH)
    spent["epoch",] += 1

    def advance() -> None:
        t.log.extend(change.texts)
        t.task = extend(t.task, change.texts, correction=not change.first)
        if change.deliver:
            t.pending.extend(change.texts)
        if not change.first:
            _rotate(t, change)

    return advance


def _rotate(t: Thread, change: b.AdvanceEpoch) -> None:
    """Let nothing of the old task live on: no lease, and no question but those that the correction itself answers."""
    t.epoch += 1
    # The subject may change the task as often as they like; what others do to it is counted.
    own = any(x.own for x in change.texts)
    rotations = 0 if own else t.history.rotations + 1
    t.history = replace(t.history, rotations=rotations, changed={})
    _end(t, lambda _: True, "ended")
    for key, held in list(t.approvals.items()):
        if held.state == "approved" and key in change.keep:
            t.approvals[key] = replace(held, epoch=t.epoch)
        elif held.state in ("asked", "approved"):
            del t.approvals[key]


@_effect.register
def _(change: b.TakePending, t: Thread, now: float, spent: _Spent) -> _Effect:
    return t.pending.clear


@_effect.register
def _(change: b.Redeliver, t: Thread, now: float, spent: _Spent) -> _Effect:
    return lambda: t.pending.extend([x for x in change.texts if x not in t.pending])


@_effect.register
def _(change: b.SetMark, t: Thread, now: float, spent: _Spent) -> _Effect:
    def mark() -> None:
        if change.source and t.marks.get(change.name, change.value) != change.value:
            changed = {**t.history.changed, change.source: t.history.steps}
            t.history = replace(t.history, changed=dict(list(changed.items())[-RESOURCES:]))
        t.marks.pop(change.name, None)  # the newest comes last
        t.marks[change.name] = change.value

    return mark


@_effect.register
def _(change: b.DeleteMarks, t: Thread, now: float, spent: _Spent) -> _Effect:
    return lambda: _drop(t.marks, *[name for name in t.marks if name.startswith(change.prefix)])


@_effect.register
def _(change: b.RecordStep, t: Thread, now: float, spent: _Spent) -> _Effect:
    return lambda: setattr(t, "history", _counted(t.history, change, now))


def _counted(h: History, change: b.RecordStep, now: float) -> History:
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


# Leases and revocations.


def _end(t: Thread, doomed: Callable[[b.Lease], bool], state: b.LeaseState) -> None:
    for jti, lease in list(t.leases.items()):
        if lease.state == "live" and doomed(lease):
            t.leases[jti] = replace(lease, state=state)


@_effect.register
def _(change: b.TakeLease, t: Thread, now: float, spent: _Spent) -> _Effect:
    lease = change.lease
    if t.is_revoked(lease.agent):
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


@_effect.register
def _(change: b.RenewLease, t: Thread, now: float, spent: _Spent) -> _Effect:
    held = t.leases.get(change.jti)
    if held is None or held.state != "live":
        raise _Refused(Code.LEASE_ENDED)
    renewed = replace(held, expires_at=max(held.expires_at, change.expires_at))
    return lambda: t.leases.__setitem__(change.jti, renewed)


@_effect.register
def _(change: b.EndLease, t: Thread, now: float, spent: _Spent) -> _Effect:
    doomed = {change.jti}
    grew = True
    while grew:  # rows come in no order
        below = {le.jti for le in t.leases.values() if le.parent in doomed}
        grew = not below <= doomed
        doomed |= below

    def end() -> None:
        _end(t, lambda le: le.jti in doomed, change.state)
        # Nobody will conclude these any more: whether they took effect is not known.
        for key, row in list(t.calls.items()):
            if row.state == "claimed" and row.jti in doomed:
                t.calls[key] = replace(row, state="unknown")

    return end


@_effect.register
def _(change: b.Revoke, t: Thread, now: float, spent: _Spent) -> _Effect:
    def revoke() -> None:
        t.revoked.add(change.agent)
        _end(t, lambda le: le.agent[: len(change.agent)] == change.agent, "revoked")

    return revoke


@_effect.register
def _(change: b.Reinstate, t: Thread, now: float, spent: _Spent) -> _Effect:
    agent = change.agent
    return lambda: t.revoked.difference_update([p for p in t.revoked if p[: len(agent)] == agent])


# Plans, edges and what tools returned.


@_effect.register
def _(change: b.RecordPlan, t: Thread, now: float, spent: _Spent) -> _Effect:
    def record() -> None:
        plan = change.plan
        records = t.plans.get((plan.agent, plan.id), {})
        if plan.epoch in records:  # INVARIANT: first write wins
            return
        if not plan.origin:  # a carried plan was made where it was made
            plan = replace(plan, at=t.history.steps)
        t.plans[plan.agent, plan.id] = {**records, plan.epoch: plan}
        for call in plan.calls:
            if call.call_id is not None:
                t.by_call[plan.agent, call.call_id] = plan

    return record


@_effect.register
def _(change: b.RecordEdge, t: Thread, now: float, spent: _Spent) -> _Effect:
    key = (change.edge.from_, change.edge.to, change.edge.kind)
    known = t.edges.get(key, change.edge)
    return lambda: t.edges.__setitem__(key, known)


@_effect.register
def _(change: b.RecordValues, t: Thread, now: float, spent: _Spent) -> _Effect:
    def record() -> None:
        for seen in change.values:
            known = t.values.get(seen.key, ())
            if all(s[:-1] != seen[:-1] for s in known):
                t.values[seen.key] = (*known, seen)

    return record


# Calls, and what they use up.


@_effect.register
def _(change: b.ClaimCall, t: Thread, now: float, spent: _Spent) -> _Effect:
    key = change.key
    row = t.call(key, now)
    if spent["call", key] and not change.repeatable:
        raise _Refused(Code.CALL_IN_PROGRESS)
    if row is not None and row.state != "suspended" and not change.repeatable:
        code = Code.CALL_IN_PROGRESS if row.state == "claimed" else Code.OUTCOME_UNKNOWN
        raise _Refused(code, row if row.state == "done" else None)
    spent["call", key] += 1
    return lambda: t.calls.__setitem__(key, b.CallRow(key, "claimed", change.jti))


@_effect.register
def _(change: b.ConcludeCall, t: Thread, now: float, spent: _Spent) -> _Effect:
    key, state = change.key, change.state
    if state is None:
        return lambda: _drop(t.calls, key)
    row = t.calls.get(key)
    concluded = b.CallRow(key, state, row.jti if row else "", change.result)
    return lambda: t.calls.__setitem__(key, concluded)


@_effect.register
def _(change: b.ReleaseCall, t: Thread, now: float, spent: _Spent) -> _Effect:
    # Only what is held can be given back: not twice, and not by a call that ran.
    if (row := t.calls.get(change.key)) is None or row.state not in ("claimed", "unknown"):
        return _nothing

    def release() -> None:
        _drop(t.calls, change.key)
        lifted = change.approval or change.key
        if (used := t.approvals.get(lifted)) is not None and used.state == "spent":
            t.approvals[lifted] = replace(used, state="approved")
        for counter in change.refund:
            t.budgets[counter] = max(t.budgets.get(counter, 0) - 1, 0)

    return release


@_effect.register
def _(change: b.SpendBudget, t: Thread, now: float, spent: _Spent) -> _Effect:
    counter = change.counter
    if t.budgets.get(counter, 0) + spent["budget", counter] >= change.maximum:
        raise _Refused(Code.BUDGET_EXHAUSTED)
    spent["budget", counter] += 1
    # Every one by its own name: a budget that shares a counter is not kept.
    return lambda: t.budgets.__setitem__(counter, t.budgets.get(counter, 0) + 1)


@_effect.register
def _(change: b.SpendRate, t: Thread, now: float, spent: _Spent) -> _Effect:
    # By window too: the shorter of two must not forget what the longer one counts.
    counter, window = change.counter, change.window

    def counted() -> tuple[float, ...]:
        return tuple(at for at in t.rates.get((counter, window), ()) if at > now - window)

    if len(counted()) + spent["rate", counter, str(window)] >= change.maximum:
        raise _Refused(Code.RATE_EXCEEDED)
    spent["rate", counter, str(window)] += 1
    return lambda: t.rates.__setitem__((counter, window), (*counted(), now))


# Questions and their answers.


@_effect.register
def _(change: b.AskApproval, t: Thread, now: float, spent: _Spent) -> _Effect:
    approval = change.approval
    asked = t.approvals.get(approval.call_key)
    if asked is not None and asked.args_digest == approval.args_digest and asked.state == "asked":
        return _nothing
    return lambda: t.approvals.__setitem__(approval.call_key, approval)


@_effect.register
def _(change: b.AnswerApproval, t: Thread, now: float, spent: _Spent) -> _Effect:
    asked = t.approvals.get(change.call_key)
    if asked is None or asked.state != "asked" or change.id not in ("", asked.id):
        raise _Refused(Code.APPROVAL_VOID)
    answered = _answered(asked, change, now)
    return lambda: t.approvals.__setitem__(change.call_key, answered)


@_effect.register
def _(change: b.SpendApproval, t: Thread, now: float, spent: _Spent) -> _Effect:
    key = change.call_key
    held = t.approvals.get(key)
    if (
        held is None
        or held.state != "approved"
        or held.args_digest != change.args_digest
        or held.epoch != t.epoch
        or 0 < held.expires_at <= now
        or spent["approval", key]
    ):
        raise _Refused(Code.APPROVAL_VOID)
    spent["approval", key] += 1
    used = replace(held, state="spent")
    return lambda: t.approvals.__setitem__(key, used)


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
