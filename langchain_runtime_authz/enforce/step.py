"""The enforcement step: load → evaluate → commit → audit → ticket → tool → conclude.

One flow for every door. `judge_calls` decides all calls of one message in one batch; `claim`
commits one permitted call, records it and hands out its ticket; `conclude` closes it.
`decide_step` does the same for steps that are no tool calls.

Order is fixed. INVARIANT: the claim is committed, and then recorded, before the tool runs. The
commit is the point of no return: a correction that commits first wins, after it the call is under
way.

Not left to policy: see `_refusal` and the checks inside the ledger's changes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final, Literal

from langchain_runtime_authz.audit.record import completion_record, decision_record
from langchain_runtime_authz.authzen import (
    Action,
    AgentContext,
    ApprovalContext,
    CallContext,
    Context,
    Decision,
    EvaluationRequest,
    LeaseContext,
    Obligation,
    PlanContext,
    PromptContext,
    Resource,
    TaskContext,
    deny,
)
from langchain_runtime_authz.credential.lease import Ticket
from langchain_runtime_authz.digest import abbreviate
from langchain_runtime_authz.enforce.approval import edited_action
from langchain_runtime_authz.enforce.credentials import audiences_of, minter
from langchain_runtime_authz.enforce.engine import Commit, Evaluate, Flow, Load, Notify, Record, Run
from langchain_runtime_authz.enforce.obligations import Terms, demands
from langchain_runtime_authz.enforce.provenance import Said, arguments, effective_sink, intent, observing, sentences
from langchain_runtime_authz.errors import AuditError, Code, ledger_code
from langchain_runtime_authz.facts import delegation, history, plan
from langchain_runtime_authz.facts.provenance.harvest import Harvest
from langchain_runtime_authz.facts.provenance.trace import wanted
from langchain_runtime_authz.facts.source import (
    UNREAD,
    changed_since,
    content_version,
    read_mark,
    resource_of,
    sources,
)
from langchain_runtime_authz.facts.task import HumanText, Task
from langchain_runtime_authz.ledger.base import (
    AdvanceEpoch,
    Approval,
    CallRow,
    Change,
    ClaimCall,
    ConcludeCall,
    Conflict,
    Count,
    Mark,
    Query,
    RecordEdge,
    RecordValues,
    ReleaseCall,
    RenewLease,
    Revoke,
    Scope,
    Snapshot,
    SpendApproval,
    SpendBudget,
    TakePending,
)
from langchain_runtime_authz.pdp.base import serialise
from langchain_runtime_authz.profile import ToolProfile, argument
from langchain_runtime_authz.telemetry import record_decision

__all__ = ["Call", "Denial", "Judged", "Replay", "Verdict", "claim", "conclude", "decide_step", "judge_calls"]

_log = logging.getLogger(__name__)

MAX_LABEL: Final = 128
_CALL_OBLIGATIONS: Final = frozenset(
    ("redact", "require_approval", "rate_limit", "budget", "notify", "revoke", "rotate"),
)
_STEP_OBLIGATIONS: Final = {
    False: frozenset(("require_approval", "rate_limit", "budget", "notify", "revoke")),
    True: frozenset(("require_approval", "rate_limit", "budget", "notify", "revoke", "withhold_tools")),
}
_REFUSED: Final[Mapping[str, Code]] = {
    "rejected": Code.APPROVAL_REJECTED,
    "answered": Code.APPROVAL_ANSWERED,
    "malformed": Code.APPROVAL_MALFORMED,
}
_NO_TASK: Final = Task()
# Denials that say nothing of the agent: somebody else acted, or something else failed.
_CIRCUMSTANCES: Final = frozenset(
    {
        Code.DATA_CHANGED,
        Code.STALE_EPOCH,
        Code.STALE_PLAN,
        Code.KILLED,
        Code.LEDGER_UNAVAILABLE,
        Code.AUDIT_UNAVAILABLE,
    },
)
_TOOLS_CALL: Final = Action(name="tools/call")


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call as a gate saw it, before any decision.

    `args` is the JSON projection of the parsed arguments, without injected ones; `raw` what the
    model wrote; `parsed` the object that the tool will receive. `error` is set where there is
    nothing to decide because the call can not run at all. `plan_id` and `position` are `None` where
    the gate did not see the message; `place` then says which of several equal calls this is.
    `amend` gives the call that a human put in this one's place (tool, arguments), `amends` is the
    key of the approval that says so.
    """

    tool: str
    profile: ToolProfile
    profiled: bool
    call_id: str | None
    plan_id: str | None
    position: int | None
    raw: Mapping[str, Any] | str
    args: Mapping[str, Any]
    args_digest: str
    parsed: Any = None
    tool_ref: object = None
    metadata: Mapping[str, Any] | None = None
    error: Code | None = None
    place: str = ""
    amend: Callable[[str, dict[str, Any]], Call] | None = None
    amends: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A call and what was decided on it; nothing is claimed yet.

    `body` is the request's JSON, `started` when the batch was asked about (nanoseconds), `task` the
    task it was decided under, `evidence` what a human who is asked is shown of where arguments came from.
    """

    call: Call
    key: str
    decision: Decision
    request: EvaluationRequest | None
    body: bytes | None = None
    started: int = 0
    task: Task = _NO_TASK
    approval: Approval | None = None
    row: CallRow | None = None
    replay: bool = False
    evidence: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether a human's approval would lift the deny."""
        return self.decision.outcome == "approval_required"

    @property
    def terms(self) -> Terms:
        """On which terms a human is to be asked about it."""
        asked = [Terms.of(o.properties) for o in self.decision.obligations if o.type == "require_approval"]
        found = [terms for terms in asked if terms is not None]
        return reduce(Terms.strictest, found) if found else Terms()

    @property
    def expires_at(self) -> int:
        """Until when a question about it can be answered and the answer counts, in ledger time; 0 for ever."""
        return self.now + self.terms.expires_in if self.terms.expires_in else 0

    @property
    def now(self) -> int:
        """Ledger time at the decision."""
        return self.request.context.now if self.request is not None else 0


@dataclass(frozen=True, slots=True)
class Denial:
    """The call does not run. `message` is a human's own word on a rejection."""

    call: Call
    decision: Decision
    message: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """The call ran before: its recorded result (JSON text) stands, it does not run again."""

    call: Call
    result: str | None


Verdict = Ticket | Denial | Replay


def judge_calls(run: Run, calls: Sequence[Call]) -> Flow[list[Judged]]:
    """Decide all calls of one message on one snapshot and in one batch. Never raises.

    A failing ledger denies every call. What is refused here without asking the PDP is a deny like
    any other: recorded by `claim` or `deny_call`.
    """
    if not calls:
        return []
    started = time.time_ns()
    if run.engine.killed:
        return [Judged(c, "", deny(Code.KILLED), None) for c in calls]
    try:
        calls = yield from _located(run, calls)
    except Exception as exc:  # noqa: BLE001  (a ledger that fails denies; nothing else may decide)
        return [Judged(c, "", _ledger_failed(exc), None) for c in calls]
    keys, origin = [_key(run, c, run.epoch) for c in calls], run.epoch
    said = run.engine.recall.said(run.scope)
    try:
        snapshot: Snapshot = yield Load(run.scope, _query(run, calls, keys, origin, log=said is None))
        if (carried := _origin(run, snapshot)) is not None:
            keys, origin = [_key(run, c, carried) for c in calls], carried
            snapshot = yield Load(run.scope, _query(run, calls, keys, origin, log=said is None))
        if said is None or said.digest != snapshot.task.digest:
            if said is not None:  # the task changed since its words were read
                snapshot = yield Load(run.scope, _query(run, calls, keys, origin, log=True))
            said = run.engine.recall.hear(run.scope, snapshot)
        snapshot = yield from _renewed(run, snapshot)
        moved = yield from _moved(run, snapshot, calls, keys)
    except Exception as exc:  # noqa: BLE001  (likewise)
        return [Judged(c, k, _ledger_failed(exc), None) for c, k in zip(calls, keys, strict=True)]

    matches = [_match(run, snapshot, c) for c in calls]
    approvals = [_approval(run, snapshot, c, k, origin) for c, k in zip(calls, keys, strict=True)]
    amended = [_amended(c, a) for c, a in zip(calls, approvals, strict=True)]
    if any(a is not c for a, c in zip(amended, calls, strict=True)):
        # A human put other calls in the place of these: those are decided, like any.
        return (yield from judge_calls(run, amended))
    refusals = [_refusal(run, snapshot, c, m, a) for c, m, a in zip(calls, matches, approvals, strict=True)]
    # A side effect that happened is not decided again: its recorded result stands.
    rows = [snapshot.calls.get(k) for k in keys]
    replays = [r is not None and r.state == "done" and c.profile.side_effect for c, r in zip(calls, rows, strict=True)]
    # What is refused here is not asked, but its record still says what it was.
    requests = [
        None if c.error is not None else _request(run, snapshot, said, c, m, r, a, moved)
        for c, m, r, a in zip(calls, matches, rows, approvals, strict=True)
    ]
    bodies = [serialise(r) if r is not None else None for r in requests]
    asked = [
        (r, b) for r, b, no, yes in zip(requests, bodies, refusals, replays, strict=True) if r and not no and not yes
    ]
    decided = iter((yield Evaluate([r for r, _ in asked], [b for _, b in asked])) if asked else [])
    judged = []
    for i, (call, key) in enumerate(zip(calls, keys, strict=True)):
        replay = replays[i] and refusals[i] is None
        decision = refusals[i] or (
            deny(Code.OUTCOME_UNKNOWN) if replay else _understood(next(decided), _CALL_OBLIGATIONS)
        )
        judged.append(
            Judged(
                call=call,
                key=key,
                decision=decision,
                request=requests[i],
                body=bodies[i],
                started=started,
                task=snapshot.task,
                approval=approvals[i],
                row=rows[i],
                replay=replay,
                evidence=_evidence(run, call, requests[i]) if decision.outcome == "approval_required" else (),
            ),
        )
    return judged


def _evidence(run: Run, call: Call, request: EvaluationRequest | None) -> tuple[str, ...]:
    asked = request.context.call if request is not None else None
    return sentences(run, call, asked.provenance if asked is not None else {})


def _located(run: Run, calls: Sequence[Call]) -> Flow[Sequence[Call]]:
    """Where a gate did not see the message, the plan is found by the call's id."""
    only = calls[0]
    if len(calls) != 1 or only.plan_id is not None or only.call_id is None:
        return calls
    snapshot: Snapshot = yield Load(run.scope, Query(planned_call=(run.agent, only.call_id)))
    if snapshot.plan is None:
        return calls
    found = next(c for c in snapshot.plan.calls if c.call_id == only.call_id)
    return [replace(only, plan_id=snapshot.plan.id, position=found.position)]


def _key(run: Run, call: Call, epoch: int) -> str:
    source = f"plan:{call.plan_id}" if call.plan_id is not None else f"call:{call.place}:{call.call_id}"
    return plan.call_key(run.scope, run.agent, epoch, source, call.position or 0, call.tool, call.args_digest)


def review_key(run: Run, call: Call, epoch: int) -> str:
    """The key of what a review beside our own gates said about a call, which it knows by its place alone."""
    return f"review:{epoch}:{call.position}:{run.agent!r}:{call.plan_id}"


def _query(run: Run, calls: Sequence[Call], keys: Sequence[str], origin: int, *, log: bool) -> Query:
    plan_id = calls[0].plan_id
    planned = plan_id is not None
    reviews = tuple(review_key(run, c, origin) for c in calls) if planned else ()
    return Query(
        jti=run.jti,
        plan=(run.agent, plan_id) if plan_id is not None else None,
        calls=(*keys, *reviews, *(c.amends for c in calls if c.amends)),
        agent=run.agent,
        log=log,
        values=tuple(dict.fromkeys(k for c in calls if c.error is None for k in wanted(c.profile, c.args))),
    )


def _origin(run: Run, snapshot: Snapshot) -> int | None:
    """The epoch that planned the calls, where a human's answer carried them from another one."""
    record = snapshot.plan
    if record is None or record.epoch != run.epoch or record.origin in (0, run.epoch):
        return None
    return record.origin


def _approval(run: Run, snapshot: Snapshot, call: Call, key: str, origin: int) -> Approval | None:
    """What was asked and answered about the call: at our own gate, or by a review before it."""
    own = snapshot.approvals.get(key)
    if own is None and call.amends:
        own = snapshot.approvals.get(call.amends)
    if own is None and call.plan_id is not None:
        review = snapshot.approvals.get(review_key(run, call, origin))
        # By the arguments as written: whatever they parse to, they are what the human saw.
        if review is not None and review.tool == call.tool and review.args_digest == plan.raw_digest(call.raw):
            own = review
    return own


def _amended(call: Call, approval: Approval | None) -> Call:
    if approval is None or not approval.edited or approval.call_key == call.amends or call.amend is None:
        return call
    if approval.state not in ("approved", "spent"):
        return call
    instead = call.amend(*edited_action(approval.edited))
    return replace(
        instead,
        plan_id=call.plan_id,
        position=call.position,
        place=call.place,
        amends=approval.call_key,
    )


def _intent(run: Run, judged: Judged) -> str:
    """The key that the tool is offered. Where the message is not known, no copy of the call can be."""
    call = judged.call
    if call.plan_id is None:
        return judged.key
    who = f"{run.subject.type}:{run.subject.id}"
    place = (call.plan_id, call.position or 0, call.tool, call.args_digest)
    return plan.idempotency_key(run.scope[:3], who, run.agent, *place)


def _renewed(run: Run, snapshot: Snapshot) -> Flow[Snapshot]:
    """Keep a living run's lease ahead of ledger time, up to its maximum lifetime."""
    lease, engine = snapshot.lease, run.engine
    if lease is not None and lease.state == "live" and lease.epoch == snapshot.epoch:
        until = min(int(snapshot.now) + engine.lease_ttl, lease.started_at + engine.max_lifetime)
        if lease.expires_at - snapshot.now < engine.lease_ttl / 2 and until > lease.expires_at:
            yield Commit(run.scope, run.guard, [RenewLease(run.jti, until)])
            run.expires_at = until
    return snapshot


def _moved(run: Run, snapshot: Snapshot, calls: Sequence[Call], keys: Sequence[str]) -> Flow[frozenset[str]]:
    """The tools whose resources somebody said changed since they were read; and what reads will read, now."""
    read = snapshot.history.resources if any(c.profile.side_effect for c in calls) else {}
    reading = {k: name for c, k in zip(calls, keys, strict=True) if (name := resource_of(c.profile, c.args))}
    names = (*read, *reading.values())
    if not names:
        return frozenset()
    data: Snapshot = yield Load(data_scope(run.scope), Query(marks=tuple(dict.fromkeys(names))))
    for key, name in reading.items():
        run.versions[key] = data.marks.get(name, UNREAD)
    versions = {name: seen.split(" ", 1) for name, seen in read.items()}
    return frozenset(tool for name, (version, tool) in versions.items() if data.marks.get(name, UNREAD) != version)


def data_scope(scope: Scope) -> Scope:
    """Where the versions of a tenant's resources stand, for every thread."""
    return Scope(scope.tenant, scope.issuer, "data:", "resources")


def _match(run: Run, snapshot: Snapshot, call: Call) -> plan.Match:
    return plan.match(
        snapshot.plan,
        epoch=run.epoch,
        position=call.position,
        call_id=call.call_id,
        tool=call.tool,
        args=call.raw,
    )


def _refusal(
    run: Run,
    snapshot: Snapshot,
    call: Call,
    match: plan.Match,
    approval: Approval | None,
) -> Decision | None:
    """What the PEP refuses whatever the PDP would say."""
    if call.error is not None:
        return deny(call.error, "mapping")
    if (dead := lease_refusal(run, snapshot)) is not None:
        return deny(dead)
    if approval is not None:
        if approval.state in _REFUSED:
            return deny(_REFUSED[approval.state])
        if approval.edited and approval.call_key != call.amends:  # the human put another call in its place
            return deny(Code.APPROVAL_VOID)
        # Also what nobody answered: a question has its time, and the run goes on without an answer.
        if approval.state in ("asked", "approved") and 0 < approval.expires_at <= snapshot.now:
            return deny(Code.APPROVAL_EXPIRED)
    if match.changed:
        return deny(Code.PLAN_CHANGED)
    if match.planned and match.stale and call.profile.side_effect:
        return deny(Code.STALE_EPOCH)
    if run.parent is not None and run.grant is not None:
        # INVARIANT: no step of a child outside what its parent gave it.
        outside = run.grant.refuses(
            tool=call.tool,
            args=call.args,
            data_class=call.profile.data_class,
            sink=call.profile.sink,
            depth=len(run.agent) - 1,
            now=snapshot.now,
        )
        if outside is not None:
            return deny(Code.GRANT_EXCEEDED).model_copy(update={"reasons": (str(Code.GRANT_EXCEEDED), str(outside))})
    return None


def lease_refusal(run: Run, snapshot: Snapshot) -> Code | None:
    """Why the run may not go on at all, or `None`."""
    lease = snapshot.lease
    if snapshot.revoked or (lease is not None and lease.state == "revoked"):
        return Code.REVOKED
    if run.closed or lease is None:
        return Code.LEASE_ENDED
    # Before the lease's state: a correction kills the leases, and "the task changed" tells more.
    if snapshot.epoch != run.epoch:
        return Code.STALE_EPOCH
    if lease.state != "live":
        return Code.LEASE_ENDED
    if snapshot.now >= lease.started_at + run.engine.max_lifetime:
        return Code.LEASE_EXPIRED
    return None


def _request(
    run: Run,
    snapshot: Snapshot,
    said: Said,
    call: Call,
    match: plan.Match,
    row: CallRow | None,
    approval: Approval | None,
    moved: frozenset[str],
) -> EvaluationRequest:
    prof = call.profile
    traced = arguments(run, snapshot, said, call)
    at = snapshot.plan.at if snapshot.plan is not None else 0
    stale = moved | set(changed_since(snapshot.history.changed, at))
    critical = {name.split(".")[0] for name in prof.critical}
    target = {name: argument(call.args, name) for name in prof.critical if name.split(".")[0] in call.args}
    args = {k: v if k in critical else abbreviate(v) for k, v in call.args.items()}
    granted = None
    # A call that paused by itself re-enters under the approval it has spent already, and so does a
    # read whose task is entered again: the same call, by its key.
    again = (row is not None and row.state == "suspended") or not prof.side_effect
    usable = ("approved", "spent") if again else ("approved",)
    # What a review saw, and what a human wrote, is held against the arguments as written.
    exact = approval is not None and (approval.args_digest == call.args_digest or approval.source == "hitl")
    if approval is not None and approval.state in usable and (exact or call.amends == approval.call_key):
        granted = ApprovalContext(
            source=approval.source,
            approver=approval.approver,
            authenticated=approval.authenticated,
            args_digest=call.args_digest,
            edited_from=approval.tool if call.amends == approval.call_key else None,
            approvers=list(approval.approvers) or [approval.approver],
        )
    return EvaluationRequest(
        subject=run.subject,
        action=_TOOLS_CALL,
        resource=Resource(
            type="tool",
            id=call.tool,
            properties={
                "effect": prof.effect,
                "sink": prof.sink,
                "data_class": prof.data_class,
                "profiled": call.profiled,
                "target": target,
                **({"reaches": prof.chain()} if prof.reaches else {}),
            },
        ),
        context=_context(
            run,
            snapshot,
            plan=PlanContext(
                id=call.plan_id,
                source=match.source,
                planned=match.planned,
                stale=match.stale,
                position=match.position,
                of=match.of,
            ),
            call=CallContext(
                id=call.call_id,
                state=row.state if row is not None else "new",
                args=args,
                args_digest=call.args_digest,
                provenance=traced,
                changed=sorted(stale & sources(traced)) if stale else [],
                intent=intent(run, said, call),
                sink=effective_sink(prof, call.args),  # type: ignore[arg-type]
            ),
            approval=granted,
            prompt=PromptContext(model=match.model, digest=match.prompt) if match.source == "model" else None,
        ),
    )


def _context(
    run: Run,
    snapshot: Snapshot,
    *,
    plan: PlanContext | None = None,
    call: CallContext | None = None,
    approval: ApprovalContext | None = None,
    prompt: PromptContext | None = None,
) -> Context:
    task = snapshot.task
    return Context(
        now=int(snapshot.now),
        task=TaskContext(
            id=task.id,
            epoch=snapshot.epoch,
            digest=task.digest,
            text=task.text,
            corrections=task.corrections,
        ),
        agent=AgentContext(
            path=list(run.agent),
            id=run.engine.identity.agent_id(run.agent),
            attested=run.engine.identity.attested,
        ),
        delegation=delegation.to_context(run.agent, snapshot.edges),
        history=history.to_context(snapshot.history, snapshot.now),
        lease=LeaseContext(
            jti=run.jti,
            epoch=run.epoch,
            exp=run.expires_at,
            grant=run.grant.to_json() if run.grant is not None else None,
            seconds=max(int(snapshot.now) - run.started_at, 0),
            steps=max(snapshot.history.steps - run.steps_before, 0),
        ),
        plan=plan,
        call=call,
        approval=approval,
        prompt=prompt,
    )


def _understood(decision: Decision, able: Collection[str]) -> Decision:
    """A decision whose obligations are carried out here; otherwise a deny that still carries the rest."""
    known = [o for o in decision.obligations if o.type in able and demands(o) is not None]
    if len(known) == len(decision.obligations):
        return decision
    return decision.model_copy(
        update={
            "outcome": "halt" if any(o.type == "revoke" for o in known) else "deny",
            "reasons": (str(Code.UNKNOWN_OBLIGATION), *decision.reasons),
            "obligations": tuple(known),
            "failure": "enforcement",
        },
    )


def claim(run: Run, judged: Judged) -> Flow[Verdict]:
    """Commit, record and ticket one judged call. Never raises; a call that asks is a denial here."""
    call, decision, approval = judged.call, judged.decision, judged.approval
    if judged.replay:
        return Replay(call, judged.row.result if judged.row is not None else None)
    if not decision.permit:
        return (yield from deny_call(run, judged))
    if run.engine.killed:  # since it was judged
        return (yield from deny_call(run, _replaced(judged, deny(Code.KILLED))))
    approved = approval is not None and approval.state == "approved"
    # A human who approves a call after a failure approves running it again.
    again = approved and judged.row is not None and judged.row.state in ("failed", "unknown")
    prof = call.profile
    audiences = audiences_of(run, prof.audience)
    tokens = {audience: _token_jti(run, judged, audience) for audience in audiences}
    changes: list[Change] = [
        ClaimCall(
            judged.key,
            run.jti,
            repeatable=not prof.side_effect or prof.idempotent or again,
            tokens=tuple(tokens.values()),
        ),
        *(change for o in decision.obligations if (change := demands(o)) and change is not True),
        *_budgets(run, call),
        Count(call=_label(call.tool), effect=prof.effect, recent=_label(call.tool), side_effect=prof.side_effect),
    ]
    if approval is not None and approved:
        changes.append(SpendApproval(approval.call_key, approval.args_digest))
    if (edge := delegation.handoff_edge(run.agent, call.metadata)) is not None:
        changes.append(RecordEdge(edge))
    try:
        done = yield Commit(run.scope, run.guard, changes)
    except Exception as exc:  # noqa: BLE001  (see `judge_calls`)
        return (yield from deny_call(run, _replaced(judged, _ledger_failed(exc))))
    if isinstance(done, Conflict):
        if done.row is not None:
            return Replay(call, done.row.result)
        return (yield from deny_call(run, _replaced(judged, deny(done.code))))
    failed: Denial | None = None
    try:
        yield from _recorded(run, judged, done.now)
    except AuditError:
        failed = Denial(call, deny(Code.AUDIT_UNAVAILABLE))
    else:
        try:
            yield from _notified(run, decision, "tools/call", call.tool, done.now)
        except AuditError as exc:  # who must be told can not be: recorded as the denial that it is
            failed = yield from deny_call(run, _replaced(judged, deny(exc.code)))
    if failed is not None:
        try:
            spent = _counters(run, call, decision.obligations)
            back = ReleaseCall(judged.key, spent, approval.call_key if approval is not None else "")
            yield Commit(run.scope, None, [back])
        except Exception as exc:  # noqa: BLE001  (denied all the same; the claim ends with the run)
            _log.error("claim %s was not released: %s", decision.decision_id, type(exc).__name__)
        return failed
    made = minter(run, judged, tokens, done.now) if audiences else None
    return Ticket(
        tool=call.tool,
        tool_ref=call.tool_ref,
        call_id=call.call_id,
        call_key=judged.key,
        agent=run.agent,
        epoch=run.epoch,
        args_digest=call.args_digest,
        parsed=call.parsed,
        raw=call.raw,
        decision_id=decision.decision_id,
        jti=run.jti,
        approval_key=approval.call_key if approval is not None else "",
        idempotency_key=_intent(run, judged),
        audiences=audiences,
        obligations=decision.obligations,
        mint=made.mint if made is not None else None,
        amint=made.amint if made is not None else None,
    )


def _token_jti(run: Run, judged: Judged, audience: str) -> str:
    # Of this call in this lease for this audience: a replay under a new lease gets another jti.
    return hashlib.sha256(f"{run.jti}:{judged.key}:{audience}".encode()).hexdigest()[:32]


def _counters(run: Run, call: Call, obligations: Sequence[Obligation] = ()) -> tuple[str, ...]:
    """The budgets that a call counts against: the grant's, and those that it was obliged to."""
    obliged = tuple(b.counter for o in obligations if isinstance(b := demands(o), SpendBudget))
    if run.grant is None:
        return obliged
    return (*(c for c in (call.tool, f"effect:{call.profile.effect}") if c in run.grant.budgets), *obliged)


def _budgets(run: Run, call: Call) -> list[Change]:
    return [SpendBudget(c, run.grant.budgets[c]) for c in _counters(run, call) if run.grant is not None]


def _notified(run: Run, decision: Decision, action: str, resource: str, now: float) -> Flow[None]:
    """Tell whom a decision obliges to tell. Raises `AuditError` where that can not be done."""
    for obligation in decision.obligations:
        if obligation.type == "notify":
            notification = {
                "ts": now,
                "decision_id": decision.decision_id,
                "outcome": decision.outcome,
                "reasons": list(decision.reasons),
                "action": action,
                "resource": resource,
                "subject": f"{run.subject.type}:{run.subject.id}",
                "agent": list(run.agent),
                "run_id": run.run_id,
                "thread": run.scope[3],
                "policy_revision": decision.policy_revision,
                "obligation": obligation.id,
            }
            yield Notify(str(obligation.properties["channel"]), notification)


def record_asks(run: Run, asked: Sequence[Judged]) -> Flow[None]:
    """Record the decisions that a human is about to be asked about. Raises `AuditError`."""
    for judged in asked:
        yield from _recorded(run, judged, time.time())
        yield from _notified(run, judged.decision, "tools/call", judged.call.tool, time.time())


def deny_call(run: Run, judged: Judged) -> Flow[Denial]:
    """Record a call that does not run, carry out what its decision obliges, count it."""
    call, decision = judged.call, judged.decision
    changes: list[Change] = [_counted(judged)]
    rotation = [_rotation(run, judged)] if any(o.type == "rotate" for o in decision.obligations) else []
    if any(o.type == "revoke" for o in decision.obligations):
        changes.append(Revoke(run.agent))
    message = ""
    if judged.approval is not None and judged.approval.state in ("rejected", "answered"):
        message = judged.approval.message
    elif decision.reason == Code.STALE_EPOCH and (run.undelivered or run.corrected):
        message = "\n".join((*run.undelivered, *run.corrected))
        changes.append(TakePending())
    try:
        done = yield Commit(run.scope, None, [*changes, *rotation])
        if rotation and isinstance(done, Conflict):  # the task has changed already
            done = yield Commit(run.scope, None, changes)
        yield from _recorded(run, judged, getattr(done, "now", 0.0))
    except Exception as exc:  # noqa: BLE001  (the call is denied already; what failed is its record)
        _log.error("denial %s of %s was not recorded: %s", decision.decision_id, call.tool, type(exc).__name__)
    for change in [c for o in decision.obligations if (c := demands(o)) and c is not True]:
        try:
            yield Commit(run.scope, None, [change])  # where it has no room, the attempt is refused already
        except Exception as exc:  # noqa: BLE001  (likewise)
            _log.error("an obligation of denial %s was not carried out: %s", decision.decision_id, type(exc).__name__)
    if decision.outcome != "approval_required":  # of a question it was told when it was asked
        try:
            yield from _notified(run, decision, "tools/call", call.tool, time.time())
        except AuditError as exc:
            _log.error("of denial %s nobody was told: %s", decision.decision_id, exc)
    return Denial(call, decision, message)


def _rotation(run: Run, judged: Judged) -> AdvanceEpoch:
    text = HumanText(judged.call.args_digest, "", f"data:{judged.decision.decision_id}", own=False)
    return AdvanceEpoch(run.epoch, (text,))


def _counted(judged: Judged) -> Count:
    """What a denial adds to the history. An outage, a correction or a kill switch is no misbehaviour."""
    call, request = judged.call, judged.request
    unplanned = (
        call.profile.side_effect
        and request is not None
        and request.context.plan is not None
        and not request.context.plan.planned
    )
    tainted = (
        call.profile.side_effect
        and request is not None
        and request.context.call is not None
        and any(p.standing == "outside" and p.kind != "when" for p in request.context.call.provenance.values())
    )
    counts = _is_judgement(judged.decision)
    return Count(
        denials=int(counts),
        recent=f"deny:{_label(call.tool)}",
        unplanned=int(counts and unplanned),
        tainted=int(counts and tainted),
    )


def _is_judgement(decision: Decision) -> bool:
    return decision.failure in (None, "mapping") and decision.reason not in _CIRCUMSTANCES


def _recorded(run: Run, judged: Judged, now: float) -> Flow[None]:
    decision = judged.decision
    request = judged.request if judged.body is not None else None  # what has no JSON form was not asked
    pdp = run.engine.evaluator.pdp.name
    record_decision(decision, request, pdp=pdp, tool=judged.call.tool, body=judged.body, started=judged.started or None)
    yield Record(
        decision_record,
        now=now,
        decision=decision,
        pdp=pdp,
        action="tools/call",
        resource=judged.call.tool,
        request=request,
        body=judged.body,
        run_id=run.run_id,
        jti=run.jti,
        scope=run.scope,
        agent=run.agent,
        content=run.engine.audit.content,
    )


def conclude(
    run: Run,
    ticket: Ticket,
    call: Call,
    state: Literal["done", "failed", "suspended", "unknown", "released"],
    result: str | None = None,
    *,
    leaked: bool = False,
    output: object = None,
) -> Flow[None]:
    """Close a call. Never refused, since it happened.

    `released` is a ticket that was never redeemed. `output` is what the tool returned, for provenance;
    `leaked` says that a live token was found in
    what the tool gave back: the agent is revoked.
    """
    ticket.conclude()
    leaked = leaked or ticket.leaked
    side_effect = call.profile.side_effect
    changes: list[Change] = []
    if state == "released":
        changes.append(ReleaseCall(ticket.call_key, _counters(run, call, ticket.obligations), ticket.approval_key))
    else:
        # A read may always run again, so nothing of it is kept but its data class.
        kept = state if side_effect or state == "suspended" else None
        changes.append(ConcludeCall(ticket.call_key, kept, result if side_effect else None))
        changes.append(_read(run, ticket, call, state))
    if output is not None and state in ("done", "failed"):
        found: Harvest = yield observing(run, call, output, failed=state == "failed")
        run.engine.recall.keep(run.scope, found)
        if state == "done":
            run.engine.recall.reached(run.scope, call.profile, call.args)
        if found.sightings:
            changes.append(RecordValues(found.sightings))
        if not side_effect and state == "done":
            version = content_version(call.profile, output)
            changes.append(Mark(read_mark(call.tool, call.args_digest), version, call.tool))
    if leaked:
        changes.append(Revoke(run.agent))
        _log.error("a credential was found in the output of %s; agent %s is revoked", call.tool, run.agent)
    try:
        done = yield Commit(run.scope, None, changes)
        yield Record(
            completion_record,
            now=getattr(done, "now", 0.0),
            decision_id=ticket.decision_id,
            call_key=ticket.call_key,
            state=state,
            run_id=run.run_id,
            leaked=leaked,
        )
    except Exception as exc:  # noqa: BLE001  (it happened: its result must not be lost to a failing record)
        _log.error("the end of call %s was not recorded: %s", ticket.decision_id, type(exc).__name__)


def _read(run: Run, ticket: Ticket, call: Call, state: str) -> Count:
    version = run.versions.pop(ticket.call_key, None)
    name = resource_of(call.profile, call.args)
    read = name is not None and version is not None and state == "done"
    resource = (name, call.tool, version) if read else None
    return Count(data_class=call.profile.data_class, resource=resource)  # type: ignore[arg-type]


def decide_step(
    run: Run,
    action: str,
    resource: Resource,
    *,
    extra: Callable[[Decision], Sequence[Change]] | None = None,
    prompt: PromptContext | None = None,
) -> Flow[Decision]:
    """Decide a step that is no tool call: `run/*`, `agent/invoke`, `model/call`, `node/enter`. Never raises.

    `extra` gives changes to commit with a permit.
    """
    request, body = None, None
    started = time.time_ns()
    now = started / 1e9
    try:
        snapshot: Snapshot = yield Load(run.scope, Query(jti=run.jti, agent=run.agent))
        snapshot = yield from _renewed(run, snapshot)
        now = snapshot.now
        dead = Code.KILLED if run.engine.killed else lease_refusal(run, snapshot)
        if dead is not None:
            decision = deny(dead)
        else:
            request = EvaluationRequest(
                subject=run.subject,
                action=Action(name=action),  # type: ignore[arg-type]
                resource=resource,
                context=_context(run, snapshot, prompt=prompt),
            )
            body = serialise(request)
            decision = _understood((yield Evaluate([request], [body]))[0], _STEP_OBLIGATIONS[action == "model/call"])
        changes = list(extra(decision)) if extra is not None and decision.permit else []
        if decision.permit:
            changes += [change for o in decision.obligations if (change := demands(o)) and change is not True]
        if any(o.type == "revoke" for o in decision.obligations):
            changes.append(Revoke(run.agent))
        if not decision.permit:
            changes.append(Count(denials=int(_is_judgement(decision)), recent=f"deny:{action}"))
        if changes:
            done = yield Commit(run.scope, run.guard if decision.permit else None, changes)
            if isinstance(done, Conflict):
                decision = deny(done.code)
    except AuditError:
        decision = deny(Code.AUDIT_UNAVAILABLE)
    except Exception as exc:  # noqa: BLE001  (see `judge_calls`)
        decision = _ledger_failed(exc)
    request = request if body is not None else None
    pdp = run.engine.evaluator.pdp.name
    record_decision(
        decision,
        request,
        pdp=pdp,
        tool=None,
        action=action,
        resource=resource.id,
        body=body,
        started=started,
    )
    try:
        yield Record(
            decision_record,
            now=now,
            decision=decision,
            pdp=pdp,
            action=action,
            resource=resource.id,
            request=request,
            body=body,
            run_id=run.run_id,
            jti=run.jti,
            scope=run.scope,
            agent=run.agent,
            content=run.engine.audit.content,
        )
        yield from _notified(run, decision, action, resource.id, now)
    except AuditError as exc:
        if not decision.permit:
            return decision
        return deny(Code.NOTIFY_UNAVAILABLE if exc.code == Code.NOTIFY_UNAVAILABLE else Code.AUDIT_UNAVAILABLE)
    return decision


def still_live(run: Run) -> Flow[Code | None]:
    """Whether the run may go on, without asking the PDP: for steps whose permit was kept."""
    if run.engine.killed:
        return Code.KILLED
    try:
        snapshot: Snapshot = yield Load(run.scope, Query(jti=run.jti, agent=run.agent))
    except Exception as exc:  # noqa: BLE001  (see `judge_calls`)
        _log.error("ledger failed: %s", type(exc).__name__)
        return ledger_code(exc)
    return lease_refusal(run, snapshot)


def _label(tool: str) -> str:
    """A tool's name as a counter: a model writes names, and the history travels in every request."""
    return tool if len(tool) <= MAX_LABEL and tool.isprintable() else "*"


def _ledger_failed(exc: Exception) -> Decision:
    _log.error("ledger failed: %s: %s", type(exc).__name__, exc)
    return deny(ledger_code(exc))


def _replaced(judged: Judged, decision: Decision) -> Judged:
    """The same call under another decision, which keeps the first one's id in the audit trail."""
    decision = decision.model_copy(update={"decision_id": judged.decision.decision_id})
    return replace(judged, decision=decision)


def obliged_fields(obligations: Sequence[Obligation]) -> frozenset[str]:
    """Fields that `redact` obligations name."""
    names = [o.properties.get("fields") for o in obligations if o.type == "redact"]
    return frozenset(f for fields in names if isinstance(fields, list) for f in fields if isinstance(f, str))
