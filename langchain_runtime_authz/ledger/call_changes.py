"""Define changes of calls, and of approvals, budgets and rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_runtime_authz._display import is_invisible
from langchain_runtime_authz._text import normalize
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import OPEN, Approval, CallRow, Conflict
from langchain_runtime_authz.ledger.changes import Change, Unrefusable, Used
from langchain_runtime_authz.ledger.thread_state import Needs, Thread, calls_in_doubt


@dataclass(slots=True)
class _OfCall(Change):
    key: str

    def needs(self, n: Needs) -> None:
        n.calls.add(self.key)


@dataclass(slots=True)
class ClaimCall(Change):
    """Claim the call: record that it has begun, before the tool runs.

    A new, suspended, void or repeatable call becomes `claimed`. Any other is refused: a claimed call with the conflict
    `call_in_progress`, all others with `outcome_unknown`. If the call is done, the conflict has its row. A claim whose
    lease lapsed counts as unknown, because its process died.
    """

    key: str
    jti: str
    repeatable: bool  # the call is a read, or declared idempotent, or an approver permitted repeating it
    tokens: tuple[str, ...] = ()  # jtis of the tokens to mint for this call; they live as long as the claim
    deed: str = ""  # `deed` and `about` go into the new `CallRow`
    about: Mapping[str, Any] | None = None
    subject: str = ""  # the thread's subject; if given, a call that must ask about a doubt is refused: `in_doubt`
    despite: tuple[str, ...] | None = ()  # names of the doubts that the approver was shown; `None` ignores all doubts
    also: tuple[str, ...] = ()  # deeds under which other calls with a target of this call may be recorded

    def needs(self, n: Needs) -> None:
        n.calls.add(self.key)
        if self.subject and self.about is not None:  # even if all doubts are ignored: other calls must see this claim
            n.deeds.update(() if self.despite is None else (self.deed, *self.also))
            same = "" if self.deed.startswith("pay:") else self.about["args_digest"]
            for deed in self.about.get("targets") or (self.deed,):
                n.locks.add((self.subject, deed, same))

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        if self.subject and self.despite is not None and t.open and self._doubted(t, now):
            return Conflict(Code.IN_DOUBT)
        if not self.repeatable:
            if ("call", self.key) in used:
                return Conflict(Code.CALL_IN_PROGRESS)
            row = t.call(self.key, now) if self.key in t.calls else None
            if row is None and t.forgotten is not None and self.key in t.forgotten:
                return Conflict(Code.OUTCOME_UNKNOWN)
            if row is not None and row.state not in ("suspended", "void"):
                code = Code.CALL_IN_PROGRESS if row.state == "claimed" else Code.OUTCOME_UNKNOWN
                return Conflict(code, row if row.state == "done" else None)
        used["call", self.key] = 1
        return None

    def apply(self, t: Thread, now: float) -> None:
        about = self.about
        if self.key in t.calls:
            before = t.calls[self.key]
            if before.deed != self.deed:
                t.drop(self.key)
            if about is not None and before.state not in ("suspended", "void"):
                about = {**about, "repeats": True}
            known = {**(before.about or {})}
            earlier = known.pop("before", None)
            if before.state == "void":
                earlier = {"jti": before.jti, "at": before.at, "about": known}
            if about is not None and earlier is not None:
                about = {**about, "before": earlier}
        t.calls[self.key] = CallRow(self.key, "claimed", self.jti, None, self.deed, now, about)
        if self.deed:  # the same as `Thread.put`, inlined for speed
            if self.deed not in t.open:
                t.open[self.deed] = {}
            t.open[self.deed][self.key] = t
        for token in self.tokens:
            t.issued.append((token, self.key, self.jti))

    def _doubted(self, t: Thread, now: float) -> bool:
        scope, about, told = t.scope, self.about or {}, self.despite or ()
        deeds = (self.deed, *self.also)
        return scope is not None and any(
            one.hits(deeds)
            and (one.unnoted(self.key) or (one.must_ask(self.key, scope, about, now) and one.name not in told))
            for deed in deeds
            if deed in t.open
            for one in calls_in_doubt(t.open, scope.tenant, deed, now, self.subject)
        )


@dataclass(slots=True)
class RepeatCall(_OfCall):
    """Note on a call in doubt (`key`) that another call now begins the same deed.

    From then on, a new try of the noted call asks an approver, even if the call is `void` (did not happen). If the noted
    call was claimed again or has ended since the doubt was read, the conflict is `in_doubt`.
    """

    at: float  # when the call in doubt was claimed

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        row = t.calls.get(self.key)
        return None if row is not None and row.at == self.at and row.state in OPEN else Conflict(Code.IN_DOUBT)

    def apply(self, t: Thread, now: float) -> None:
        if (row := t.calls.get(self.key)) is not None:
            t.put(self.key, row._replace(about={**(row.about or {}), "again": True}))


@dataclass(slots=True)
class ReleaseCall(Unrefusable):
    """Undo the claim of a call that never ran, with its approval, budgets and rates."""

    key: str
    refund: tuple[tuple[str, int], ...] = ()  # counters, with what the claim added to them
    approval: str = ""  # key of the approval that the claim used, if any
    rates: tuple[tuple[str, int], ...] = ()  # counters and windows in which the claim was counted
    paused: CallRow | None = None  # the call's row before the claim, if the tool had paused to wait for an answer

    def needs(self, n: Needs) -> None:
        n.calls.add(self.key)
        n.approvals.update([self.approval] if self.approval else ())
        n.budgets.update([counter for counter, _ in self.refund])
        n.rates.update(self.rates)

    def apply(self, t: Thread, now: float) -> None:
        # A claim is undone only once, and never after the call has ended.
        if (row := t.calls.get(self.key)) is None or row.state not in ("claimed", "unknown"):
            return
        about = row.about or {}
        if "repeats" in about:
            t.put(self.key, row._replace(state="unknown"))
        elif "before" in about:  # restore the void state, and keep what was noted since
            void = {**about["before"], "about": {**about, **about["before"]["about"]}}
            t.put(self.key, row._replace(state="void", **void))
        else:
            t.drop(self.key)
            if self.paused is not None:
                t.put(self.key, self.paused)
        if (used := t.approvals.get(self.approval)) is not None and used.state == "spent":
            t.approvals[self.approval] = replace(used, state="approved")
        for counter, by in self.refund:
            _spend(t, counter, -by)
        for rate in self.rates:
            times = [*t.rates.get(rate, ())]
            if row.at in times:  # claim and count are of one commit, so their times are equal
                times.remove(row.at)
                t.rates[rate] = tuple(times)


@dataclass(slots=True)
class ConcludeCall(_OfCall):
    """Record how the call ended or paused. If `state` is None, delete its row.

    A side effect that failed may have happened all the same. So its state becomes `unknown`, with `failed` in `about`.
    If a `ResolveCall` came before, the conflict is `ended_late`, unless `about` has this end.
    """

    state: Literal["done", "failed", "suspended", "unknown"] | None
    result: str | None = None
    late: bool = False  # commit despite `ended_late`; then only `done` changes a resolved state
    jti: str = ""  # if given, a call that another lease holds is not changed
    denied: bool = False  # the call failed because a step inside the tool was denied; that step has its own record

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        row = t.calls[self.key] if self.key in t.calls and not self.late else None
        if row is not None and row.about is not None and "before" in row.about and self.jti not in ("", row.jti):
            row = row._replace(about=row.about["before"]["about"])  # the call was claimed anew after its resolution
        late = row is not None and row.about is not None and "resolved" in row.about and self.state not in row.about
        return Conflict(Code.ENDED_LATE, row) if late else None

    def apply(self, t: Thread, now: float) -> None:
        row = t.calls[self.key] if self.key in t.calls else None  # noqa: SIM401  (without a call)
        if row is not None and self.jti not in ("", row.jti):
            return
        late = self.late or (row is not None and row.about is not None and "resolved" in row.about)
        if self.state is None:
            if row is not None:
                t.drop(self.key)
        elif row is None:
            t.calls[self.key] = CallRow(self.key, self.state, "", self.result)
        elif not late or self.state == "done":
            about = row.about
            if self.state == "unknown":
                about = about and {**about, "unknown": True}
            elif about is not None and not late:
                about = {"before": about["before"]} if "before" in about else None
            ended = CallRow(self.key, self.state, row.jti, self.result, row.deed, row.at, about)
            if self.state == "failed" and row.deed and not self.denied:  # the effect may have come before the failure
                t.drop(self.key)
                about = {**(row.about or {}), "failed": True}
                suffix = "" if row.deed.startswith("pay:") else f" {about.get('args_digest')}"
                ended = ended._replace(state="unknown", deed=row.deed.removesuffix(suffix) + suffix, about=about)
            t.calls[self.key] = ended
            if ended.deed:  # calls without a side effect are not indexed
                t.put(self.key, ended)


@dataclass(slots=True)
class ResolveCall(_OfCall):
    """Record whether an unknown call happened.

    If it happened, its state becomes `done`, and a model that repeats the call is told so. Otherwise the state becomes
    `void`, and the call may run. If the call is not unknown, the conflict is `not_in_doubt`.
    """

    happened: bool
    author: str
    reason: str = ""

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        if self.key not in t.calls or t.call(self.key, now).state != "unknown" or ("resolved", self.key) in used:
            return Conflict(Code.NOT_IN_DOUBT)
        used["resolved", self.key] = 1
        return None

    def apply(self, t: Thread, now: float) -> None:
        if (row := t.calls.get(self.key)) is not None:  # an earlier change of the commit may have released the call
            t.put(self.key, self.resolved(row, now))

    def resolved(self, row: CallRow, now: float) -> CallRow:
        """Return the call's row after the resolution."""
        told = {"content": "This action was carried out, as was found out afterwards.", "status": "success"}
        said = {"happened": self.happened, "author": self.author, "reason": self.reason, "at": now}
        return row._replace(
            state="done" if self.happened else "void",
            result=json.dumps(told) if self.happened else None,
            about={**(row.about or {}), "resolved": said},
        )


@dataclass(slots=True)
class DoubtCall(Unrefusable):
    """Restore the lost row of a call in doubt, unless the call is done."""

    row: CallRow

    def needs(self, n: Needs) -> None:
        n.calls.add(self.row.key)

    def apply(self, t: Thread, now: float) -> None:
        if t.subject and (self.row.key not in t.calls or t.calls[self.row.key].state != "done"):
            t.put(self.row.key, self.row)


def _lost(t: Thread, counter: str) -> bool:
    """Return True if the store dropped the counter, so that its count is unknown."""
    return t.forgotten is not None and counter not in t.budgets and counter in t.forgotten


def _spend(t: Thread, counter: str, by: int) -> None:
    if by > 0 or not _lost(t, counter):  # move the counter to the end, because the first ones are dropped first
        t.budgets[counter] = max(t.budgets.pop(counter, 0) + by, 0)


@dataclass(slots=True)
class SpendBudget(Change):
    """Add `by` to a counter. Above `maximum`, the conflict is `budget_exhausted`."""

    counter: str
    maximum: int
    by: int = 1  # a negative number gives back, and is never refused

    def needs(self, n: Needs) -> None:
        n.budgets.add(self.counter)

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        held = t.budgets.get(self.counter, 0)
        if self.by > 0 and _lost(t, self.counter):
            return Conflict(Code.BUDGET_EXHAUSTED)
        spent = max(held + used.get(("budget", self.counter), 0) + self.by, 0)
        if self.by >= 0 and spent > self.maximum:
            return Conflict(Code.BUDGET_EXHAUSTED)
        used["budget", self.counter] = spent - held
        return None

    def apply(self, t: Thread, now: float) -> None:
        _spend(t, self.counter, self.by)


@dataclass(slots=True)
class SpendRate(Change):
    """Count a call in a sliding window (s). Above `maximum`: conflict `rate_exceeded`."""

    counter: str
    window: int
    maximum: int

    def needs(self, n: Needs) -> None:
        n.rates.add((self.counter, self.window))

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        mine = ("rate", self.counter, str(self.window))
        if len(self._recent(t, now)) + used.get(mine, 0) >= self.maximum:
            return Conflict(Code.RATE_EXCEEDED)
        used[mine] = used.get(mine, 0) + 1
        return None

    def apply(self, t: Thread, now: float) -> None:
        # The window is in the key, because a short window would drop times that a longer window still counts.
        t.rates[self.counter, self.window] = (*self._recent(t, now), now)

    def _recent(self, t: Thread, now: float) -> list[float]:
        return [at for at in t.rates.get((self.counter, self.window), ()) if at > now - self.window]


@dataclass(slots=True)
class AskApproval(Unrefusable):
    """Open a question, unless the same LangGraph task already asks about this call.

    A question that is open and has the same id gets the interrupt id of `approval`.
    """

    approval: Approval

    def needs(self, n: Needs) -> None:
        n.approvals.add(self.approval.call_key)

    def apply(self, t: Thread, now: float) -> None:
        asked = t.approvals.get(self.approval.call_key)
        one = self.approval
        same = ("asked", one.args_digest, one.task_id)
        if asked is not None and one.id and asked.id == one.id:
            if asked.state == "asked":
                t.approvals[one.call_key] = replace(asked, interrupt_id=one.interrupt_id)
        elif asked is None or (asked.state, asked.args_digest, asked.task_id) != same:
            t.approvals[one.call_key] = one


@dataclass(slots=True)
class AnswerApproval(Change):
    """Answer an open question.

    A question that needs several approvers stays open until all have approved; a single rejection closes it. With
    `answered`, the call does not run, and the approver's `message` is the call's result. If `id` is given, the question
    must have this id. Conflicts: `approval_void` (the question is not open), `approval_approver` (the approver may not
    answer), `approval_not_distinct` (a person approves twice, or the subject approves although somebody else must).
    """

    call_key: str
    state: Literal["approved", "rejected", "answered", "malformed"]
    approver: str
    authenticated: bool
    message: str = ""
    edited: str = ""
    id: str = ""

    def needs(self, n: Needs) -> None:
        n.approvals.add(self.call_key)

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        asked = t.approvals.get(self.call_key)
        once = ("answer", self.call_key)
        if asked is None or asked.state != "asked" or self.id not in ("", asked.id) or once in used:
            return Conflict(Code.APPROVAL_VOID)
        used[once] = 1
        code = self._barred(asked, now)
        return Conflict(code) if code is not None else None

    def _barred(self, asked: Approval, now: float) -> Code | None:
        by = self.approver
        may = not asked.eligible or by in asked.eligible or (by in asked.fallback and now >= asked.fallback_at)
        if self.state not in ("approved", "answered"):
            may = may or by == asked.subject  # the subject may always reject the call
            return None if may else Code.APPROVAL_APPROVER
        if not may:
            return Code.APPROVAL_APPROVER
        # Compare names without principal types: a person's cron job or agent is not a second person.
        others = (name for one in asked.behind for name in (one, f":{one}"))  # each may have a type, or be a bare name
        behind = {*map(_name, (asked.subject, *others))} if asked.distinct else set()
        again = _name(by) in behind or _name(by) in map(_name, asked.approvers)
        return Code.APPROVAL_NOT_DISTINCT if again else None

    def apply(self, t: Thread, now: float) -> None:
        if (asked := t.approvals.get(self.call_key)) is None:  # an earlier change of the commit deleted the question
            return
        approves = self.state == "approved"
        approvers = (*asked.approvers, self.approver) if approves else asked.approvers
        t.approvals[self.call_key] = replace(
            asked,
            state="asked" if approves and len(approvers) < asked.needed else self.state,
            approver=" ".join(approvers) if approves else self.approver,
            # One approver who is not authenticated makes the whole approval unauthenticated.
            authenticated=self.authenticated and (asked.authenticated or not asked.approvers),
            message=self.message,
            edited=self.edited,
            approvers=approvers,
        )


@dataclass(slots=True)
class SpendApproval(Change):
    """Use up the approval of exactly these arguments. Without one: `approval_void`."""

    call_key: str
    args_digest: str

    def needs(self, n: Needs) -> None:
        n.approvals.add(self.call_key)

    def check(self, t: Thread, now: float, used: Used) -> Conflict | None:
        held = t.approvals.get(self.call_key)
        once = ("approval", self.call_key)
        if held is None or 0 < held.expires_at <= now or once in used:
            return Conflict(Code.APPROVAL_VOID)
        if (held.state, held.args_digest, held.epoch) != ("approved", self.args_digest, t.epoch):
            return Conflict(Code.APPROVAL_VOID)
        used[once] = 1
        return None

    def apply(self, t: Thread, now: float) -> None:
        if (held := t.approvals.get(self.call_key)) is not None:
            t.approvals[self.call_key] = replace(held, state="spent")


def _name(principal: str) -> str:
    name = normalize("NFKC", principal.partition(":")[2] or principal).casefold()
    return normalize("NFKC", "".join(c for c in name if not is_invisible(c))).removeprefix("user:")
