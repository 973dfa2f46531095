"""The ledger in one process's memory: the default, and the reference for every other store."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from langchain_runtime_authz.authzen import Edge
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.facts.history import MAX_NAMES, RECENT, History
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.provenance.harvest import Sighting
from langchain_runtime_authz.facts.task import HumanText, Task, extend
from langchain_runtime_authz.ledger import base as b

__all__ = ["MemoryLedger"]

MAX_THREADS: Final = 10_000
MAX_JTIS: Final = 100_000
MAX_PLANS: Final = 4096  # messages with calls, per thread
MAX_VALUES: Final = 50_000  # keys of values seen, per thread; the oldest is forgotten first
_NO_TASK: Final = Task()
_NO_HISTORY: Final = History()


class _Refused(Exception):
    def __init__(self, code: Code, row: b.CallRow | None = None) -> None:
        self.conflict = b.Conflict(code, row)


@dataclass(slots=True)
class _Thread:
    subject: str = ""
    epoch: int = 1
    task: Task = _NO_TASK
    log: list[HumanText] = field(default_factory=list)
    pending: list[HumanText] = field(default_factory=list)
    revoked: set[b.AgentPath] = field(default_factory=set)
    leases: dict[str, b.Lease] = field(default_factory=dict)
    plans: dict[tuple[b.AgentPath, str], dict[int, PlanRecord]] = field(default_factory=dict)
    by_call: dict[tuple[b.AgentPath, str], PlanRecord] = field(default_factory=dict)
    calls: dict[str, b.CallRow] = field(default_factory=dict)
    approvals: dict[str, b.Approval] = field(default_factory=dict)
    edges: dict[tuple[str, str, str], Edge] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=lambda: {"call": {}, "effect": {}})
    budgets: dict[str, int] = field(default_factory=dict)
    rates: dict[tuple[str, int], deque[float]] = field(default_factory=dict)
    steps: int = 0
    denials: int = 0
    classes: dict[str, None] = field(default_factory=dict)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))
    history: History = _NO_HISTORY
    values: dict[str, tuple[Sighting, ...]] = field(default_factory=dict)


class MemoryLedger:
    """Keeps threads in a dictionary behind one lock.

    Args:
        clock: ledger time, epoch seconds.
        max_threads: threads kept. The least recently used thread without a live lease goes first;
            it then counts as never seen: its old plans are unplanned, so forgetting denies.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, max_threads: int = MAX_THREADS) -> None:
        if max_threads < 1:
            msg = f"`max_threads` must be at least 1, not {max_threads}"
            raise ConfigError(msg)
        self._clock = clock
        self._max = max_threads
        self._threads: OrderedDict[b.Scope, _Thread] = OrderedDict()
        # Where a jti is: leases that were taken, tokens of claimed calls.
        self._leases: dict[tuple[str, str], b.Scope] = {}
        self._tokens: dict[tuple[str, str], tuple[b.Scope, str, str]] = {}
        self._lock = threading.Lock()

    def load(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        """See `Ledger.load`."""
        with self._lock:
            thread = self._threads.get(scope)
            now = self._clock()
            if thread is None:
                return b.Snapshot(now, False, "", 1, _NO_TASK, False, None, None, {}, {}, _NO_HISTORY, ())
            plan = None
            if query.plan is not None and (records := thread.plans.get(query.plan)):
                plan = records[max(records)]
            elif query.planned_call is not None:
                plan = thread.by_call.get(query.planned_call)
            calls = {k: row for k in query.calls if (row := thread.calls.get(k))}
            approvals = {k: asked for k in query.calls if (asked := thread.approvals.get(k))}
            return b.Snapshot(
                now=now,
                exists=True,
                subject=thread.subject,
                epoch=thread.epoch,
                task=thread.task,
                revoked=bool(thread.revoked) and _is_revoked(thread, query.agent),
                lease=thread.leases.get(query.jti) if query.jti else None,
                plan=plan,
                calls=calls,
                approvals=approvals,
                history=thread.history,
                edges=tuple(thread.edges.values()),
                log=tuple(thread.log) if query.log else (),
                pending=tuple(thread.pending) if query.log else (),
                asks=tuple(a for a in thread.approvals.values() if a.state == "asked") if query.asks else (),
                values={k: seen for k in query.values if (seen := thread.values.get(k))},
            )

    def commit(self, scope: b.Scope, guard: b.Guard | None, changes: Sequence[b.Change]) -> b.Committed | b.Conflict:
        """See `Ledger.commit`."""
        with self._lock:
            now = self._clock()
            thread = self._threads.get(scope)
            try:
                if guard is not None:
                    _check(thread, guard)
                if thread is None:
                    thread = _Thread()
                # First every check, then every effect: a refused commit changes nothing.
                spent: Counter[tuple[str, ...]] = Counter()
                effects = [_plan_effect(thread, change, now, spent) for change in changes]
            except _Refused as refused:
                return refused.conflict
            for effect in effects:
                effect()
            for change in changes:
                self._index(scope, change)
            if any(isinstance(c, b.Count) for c in changes):
                thread.history = _history(thread)
            self._threads[scope] = thread
            self._threads.move_to_end(scope)
            self._evict(scope)
            return b.Committed(now, thread.epoch)

    def status(self, tenant: str, jti: str) -> b.TokenStatus:
        """See `Ledger.status`."""
        with self._lock:
            if (found := self._tokens.get((tenant, jti))) is not None:
                scope, key, lease_jti = found
                thread = self._threads.get(scope)
                row = thread.calls.get(key) if thread is not None else None
                if row is None or row.state != "claimed" or row.jti != lease_jti:
                    return "ended"
            else:
                lease_jti = jti
                if (held := self._leases.get((tenant, jti))) is None:
                    return "unknown"
                thread = self._threads.get(held)
            lease = thread.leases.get(lease_jti) if thread is not None else None
            if thread is None or lease is None:
                return "ended"
            if lease.state == "revoked" or _is_revoked(thread, lease.agent):
                return "revoked"
            if lease.epoch != thread.epoch:
                return "stale"
            return "live" if lease.state == "live" and self._clock() < lease.expires_at else "ended"

    async def astatus(self, tenant: str, jti: str) -> b.TokenStatus:
        """Memory does not block: the same as `status`."""
        return self.status(tenant, jti)

    async def aload(self, scope: b.Scope, query: b.Query) -> b.Snapshot:
        """Memory does not block: the same as `load`."""
        return self.load(scope, query)

    async def acommit(
        self,
        scope: b.Scope,
        guard: b.Guard | None,
        changes: Sequence[b.Change],
    ) -> b.Committed | b.Conflict:
        """Memory does not block: the same as `commit`."""
        return self.commit(scope, guard, changes)

    def _index(self, scope: b.Scope, change: b.Change) -> None:
        if isinstance(change, b.TakeLease):
            self._leases[scope.tenant, change.lease.jti] = scope
            if len(self._leases) > MAX_JTIS:
                self._leases.pop(next(iter(self._leases)))
        elif isinstance(change, b.ClaimCall) and change.tokens:
            for jti in change.tokens:
                self._tokens[scope.tenant, jti] = (scope, change.key, change.jti)
            while len(self._tokens) > MAX_JTIS:  # what is forgotten is dead
                self._tokens.pop(next(iter(self._tokens)))

    def _evict(self, committed: b.Scope) -> None:
        if len(self._threads) <= self._max:
            return
        for scope, thread in self._threads.items():
            if (
                scope != committed
                and not thread.revoked
                and not any(le.state == "live" for le in thread.leases.values())
            ):
                del self._threads[scope]
                return


def _is_revoked(thread: _Thread, agent: b.AgentPath) -> bool:
    return any(agent[: len(root)] == root for root in thread.revoked)


def _check(thread: _Thread | None, guard: b.Guard) -> None:
    lease = thread.leases.get(guard.jti) if thread is not None else None
    if thread is None or lease is None:
        raise _Refused(Code.LEASE_ENDED)
    if lease.state == "revoked" or _is_revoked(thread, lease.agent):
        raise _Refused(Code.REVOKED)
    # Before the lease's state: a correction kills the leases, and "the task changed" tells more.
    if thread.epoch != guard.epoch or lease.epoch != guard.epoch:
        raise _Refused(Code.STALE_EPOCH)
    if lease.state != "live":
        raise _Refused(Code.LEASE_ENDED)


def _history(t: _Thread) -> History:
    return History(
        steps=t.steps,
        calls=dict(t.counters["call"]),
        effects=dict(t.counters["effect"]),
        denials=t.denials,
        classes_read=tuple(sorted(t.classes)),
        recent=tuple(t.recent),
    )


def _bump(counts: dict[str, int], name: str) -> None:
    if name not in counts and len(counts) >= MAX_NAMES:
        name = "*"
    counts[name] = counts.get(name, 0) + 1


def _drop(rows: dict[str, b.CallRow], key: str) -> None:
    rows.pop(key, None)


def _end(t: _Thread, doomed: Callable[[b.Lease], bool], state: b.LeaseState) -> None:
    for jti, lease in t.leases.items():
        if lease.state == "live" and doomed(lease):
            t.leases[jti] = replace(lease, state=state)


def _plan_effect(t: _Thread, change: b.Change, now: float, spent: Counter[tuple[str, ...]]) -> Callable[[], None]:
    """Check one change against the thread and return what applies it.

    `spent` is what earlier changes of the same commit use up: nothing is used twice in one commit.
    """
    match change:
        case b.OpenThread(subject):
            if t.subject and t.subject != subject:
                raise _Refused(Code.SUBJECT_MISMATCH)
            return lambda: setattr(t, "subject", subject)

        case b.AdvanceEpoch(expected, texts, first, deliver):
            if t.epoch != expected or (first and t.log) or spent["epoch",]:
                raise _Refused(Code.STALE_EPOCH)

            spent["epoch",] += 1

            def advance() -> None:
                t.log.extend(texts)
                t.task = extend(t.task, texts, correction=not first)
                if deliver:
                    t.pending.extend(texts)
                if not first:
                    t.epoch += 1
                    _end(t, lambda _: True, "ended")
                    # A question about the old task must not be answered for the new one.
                    for key in [k for k, a in t.approvals.items() if a.state in ("asked", "approved")]:
                        del t.approvals[key]

            return advance

        case b.TakePending():
            return t.pending.clear

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
                _forget_dead_leases(t)

            return take

        case b.RenewLease(jti, expires_at):
            held = t.leases.get(jti)
            if held is None or held.state != "live":
                raise _Refused(Code.LEASE_ENDED)
            renewed = replace(held, expires_at=max(held.expires_at, expires_at))
            return lambda: t.leases.__setitem__(jti, renewed)

        case b.EndLease(jti, over):
            doomed = {jti}
            for lease in t.leases.values():  # insertion order: parents come before their children
                if lease.parent in doomed:
                    doomed.add(lease.jti)

            def end() -> None:
                _end(t, lambda le: le.jti in doomed, over)
                # Nobody will conclude these any more: whether they took effect is not known.
                for key, row in t.calls.items():
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

        case b.ClaimCall(key, jti, repeatable, _):
            row = t.calls.get(key)
            if spent["call", key] and not repeatable:
                raise _Refused(Code.CALL_IN_PROGRESS)
            if row is not None and row.state != "suspended" and not repeatable:
                code = Code.CALL_IN_PROGRESS if row.state == "claimed" else Code.OUTCOME_UNKNOWN
                raise _Refused(code, row if row.state == "done" else None)
            spent["call", key] += 1
            return lambda: t.calls.__setitem__(key, b.CallRow(key, "claimed", jti))

        case b.ReleaseCall(key, refund):
            # Only what is held can be given back: not twice, and not by a call that ran.
            if (row := t.calls.get(key)) is None or row.state not in ("claimed", "unknown"):
                return lambda: None

            def release() -> None:
                t.calls.pop(key, None)
                if (used := t.approvals.get(key)) is not None and used.state == "spent":
                    t.approvals[key] = replace(used, state="approved")
                for counter in refund:
                    t.budgets[counter] = max(t.budgets.get(counter, 0) - 1, 0)

            return release

        case b.ConcludeCall(key, None):
            return lambda: _drop(t.calls, key)

        case b.ConcludeCall(key, state, result):
            row = t.calls.get(key)
            concluded = b.CallRow(key, state or "unknown", row.jti if row else "", result)
            return lambda: t.calls.__setitem__(key, concluded)

        case b.AskApproval(approval):
            asked = t.approvals.get(approval.call_key)
            if asked is not None and asked.args_digest == approval.args_digest and asked.state == "asked":
                return lambda: None
            return lambda: t.approvals.__setitem__(approval.call_key, approval)

        case b.AnswerApproval(key, answer, approver, authenticated, message):
            asked = t.approvals.get(key)
            if asked is None or asked.state != "asked":
                raise _Refused(Code.APPROVAL_VOID)
            answered = replace(asked, state=answer, approver=approver, authenticated=authenticated, message=message)
            return lambda: t.approvals.__setitem__(key, answered)

        case b.SpendApproval(key, args_digest):
            held_approval = t.approvals.get(key)
            if (
                held_approval is None
                or held_approval.state != "approved"
                or held_approval.args_digest != args_digest
                or held_approval.epoch != t.epoch
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
            times = t.rates.setdefault((counter, window), deque())
            while times and times[0] <= now - window:
                times.popleft()
            if len(times) + spent["rate", counter, str(window)] >= maximum:
                raise _Refused(Code.RATE_EXCEEDED)
            spent["rate", counter, str(window)] += 1
            return lambda: times.append(now)

        case b.Count(call, effect, denials, data_class, recent):

            def count() -> None:
                t.steps += 1
                t.denials += denials
                if call is not None:
                    _bump(t.counters["call"], call)
                if effect is not None:
                    _bump(t.counters["effect"], effect)
                if data_class is not None:
                    known = data_class in t.classes or len(t.classes) < MAX_NAMES
                    t.classes[data_class if known else "*"] = None
                if recent is not None:
                    t.recent.append(recent)

            return count

        case b.RecordValues(values):
            return lambda: _record_values(t, values)

    msg = f"unknown change {type(change).__name__}"
    raise TypeError(msg)


def _record_plan(t: _Thread, plan: PlanRecord) -> None:
    records = t.plans.setdefault((plan.agent, plan.id), {})
    if plan.epoch in records:  # INVARIANT: first write wins
        return
    records[plan.epoch] = plan
    for call in plan.calls:
        if call.call_id is not None:
            t.by_call[plan.agent, call.call_id] = plan
    if len(t.plans) > MAX_PLANS:  # an evicted plan's calls count as unplanned: forgetting denies
        oldest = next(iter(t.plans))
        t.plans.pop(oldest)
        t.by_call = {k: p for k, p in t.by_call.items() if (p.agent, p.id) != oldest}


def _record_values(t: _Thread, values: Sequence[Sighting]) -> None:
    for seen in values:
        known = t.values.get(seen.key, ())
        if all(s[:-1] != seen[:-1] for s in known):
            t.values[seen.key] = (*known, seen)
    while len(t.values) > MAX_VALUES:
        t.values.pop(next(iter(t.values)))


def _forget_dead_leases(t: _Thread, keep: int = 256) -> None:
    """A long thread has many runs; a jti that is forgotten is as dead as one that ended."""
    if len(t.leases) > keep:
        for jti in [j for j, le in t.leases.items() if le.state != "live"][: len(t.leases) - keep]:
            del t.leases[jti]
