"""A session: decide, run the tool, observe; without LangGraph, under the same rules."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from langchain_runtime_authz import Mandate, RuntimeAuthz
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import AuditError, AuthzDenied, AuthzError, Code, ConfigError, LedgerError
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Query, Scope, Snapshot
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ReleaseCall, SpendRate
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, Change
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pep.run import LEASE_TTL, MAX_LIFETIME
from langchain_runtime_authz.pep.session import Session
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.static_pdp import StaticPDP
from langchain_runtime_authz.tool_profile import ToolProfile

PROFILES = {
    "lookup": ToolProfile(effect="read", sink="none", trust="system"),
    "pay": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}, trust="system"),
    "note": ToolProfile(effect="write", sink="internal", trust="system"),
    "note_again": ToolProfile(effect="write", sink="internal", idempotent=True, trust="system"),
}
PAY = {"to": "UK12", "amount": 98.7}
BOTH = pytest.mark.parametrize("form", ["sync", "async"])


class Forms:
    """A session, or what opens one, driven through its sync or its async methods."""

    def __init__(self, session: Any, form: str) -> None:
        self.session = session
        self.waits = form == "async"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self.waits:
            return lambda *args, **kwargs: asyncio.run(getattr(self.session, f"a{name}")(*args, **kwargs))
        return getattr(self.session, name)  # type: ignore[no-any-return]


class BrokenLedger(MemoryLedger):
    """A ledger that fails where it is told to."""

    def __init__(self, broken: Callable[[str, Sequence[Change]], bool] = lambda _verb, _changes: False) -> None:
        super().__init__()
        self.broken = broken

    def _check(self, verb: str, changes: Sequence[Change] = ()) -> None:
        if self.broken(verb, changes):
            raise ConnectionError("db.internal: password=hunter2")

    def load(self, scope: Scope, query: Query) -> Snapshot:
        self._check("load")
        return super().load(scope, query)

    def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
        self._check("commit", changes)
        return super().commit(scope, guard, changes)


class BrokenSink:
    """An audit sink that fails where it is told to."""

    content = True

    def __init__(self, broken: Callable[[dict[str, Any]], bool]) -> None:
        self.records: list[dict[str, Any]] = []
        self.broken = broken

    def write(self, record: dict[str, Any]) -> None:
        if self.broken(record):
            raise AuditError(Code.AUDIT_UNAVAILABLE, "disk full")
        self.records.append(record)


class BrokenIdentity:
    """An identity that fails when it is asked."""

    attested, expires_at = True, None

    def agent_id(self, path: tuple[str, ...]) -> str:
        raise ConnectionError(path)


def authz_with(pdp: StaticPDP | None = None, **parts: Any) -> RuntimeAuthz:
    return RuntimeAuthz(pdp=pdp or StaticPDP(True), profiles=PROFILES, **parts)


OPENED = {"subject": "alice", "task": "Pay the December bill"}


def opened(authz: RuntimeAuthz, **settings: Any) -> Session:
    return authz.session(**{**OPENED, **settings})


def status(authz: RuntimeAuthz, session: Session | str) -> str:
    return authz.ledger.status(authz.tenant, session if isinstance(session, str) else session.jti)


def calls(pdp: StaticPDP) -> list[EvaluationRequest]:
    return [r for r in pdp.requests if r.action.name == "tools/call"]


def records(authz: RuntimeAuthz) -> list[dict[str, Any]]:
    assert isinstance(authz.audit, MemorySink)
    return authz.audit.records


# --- decide and observe -----------------------------------------------------------------------------


@BOTH
def test_a_permitted_call_runs_and_is_observed(form: str) -> None:
    """Everything is decided on what the human asked, the profile and the projected arguments."""
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    session = Forms(opened(authz) if form == "sync" else asyncio.run(authz.asession(**OPENED)), form)
    decision = session.decide("pay", PAY)
    assert (decision.outcome, decision.permit, decision.reasons) == ("permit", True, ())
    session.observe("pay", PAY, "paid")
    (request,) = calls(pdp)
    assert (request.subject.type, request.subject.id) == ("user", "alice")
    assert (request.resource.type, request.resource.id) == ("tool", "pay")
    assert request.resource.properties["effect"] == "pay" and request.resource.properties["profiled"] is True
    assert request.resource.properties["target"] == PAY
    context = request.context
    assert context.plan is not None and (context.call.args, context.call.state) == (PAY, "new")
    assert (context.plan.planned, context.plan.source, context.plan.of) == (True, "code", 1)
    assert (context.task.text, context.task.epoch, context.task.corrections) == ("Pay the December bill", 1, 0)
    assert (context.agent.path, context.lease.jti) == (["session"], session.session.jti)


def test_a_denied_call_is_not_claimed() -> None:
    """It can not be observed, and the next request counts it."""
    pdp = StaticPDP(lambda r: r.resource.id != "pay")
    session = opened(authz_with(pdp))
    decision = session.decide("pay", PAY)
    assert (decision.outcome, decision.reasons) == ("deny", ("no_permit",))
    with pytest.raises(AuthzError, match="no_call: `pay`: no permitted call") as caught:
        session.observe("pay", PAY, "paid")
    assert caught.value.code == Code.NO_CALL and session.decide("lookup", {"key": "x"}).permit
    assert calls(pdp)[-1].context.history.denials == 1 and calls(pdp)[-1].context.history.recent == ["deny:pay"]


def test_a_call_is_observed_once() -> None:
    """And only as it was permitted: of the tool, with the arguments."""
    session = opened(authz_with())
    assert session.decide("pay", PAY).permit
    for tool, args in (("note", PAY), ("pay", {**PAY, "amount": 99}), ("pay", {})):
        with pytest.raises(AuthzError):
            session.observe(tool, args, "x")
    session.observe("pay", {"amount": 98.7, "to": "UK12"}, "paid")
    with pytest.raises(AuthzError):
        session.observe("pay", PAY, "paid")


def test_a_failed_call_is_recorded_as_failed() -> None:
    """With what happened, never with the exception's text."""
    authz = authz_with()
    session = opened(authz)
    session.decide("pay", PAY)
    session.observe("pay", PAY, None, error=RuntimeError("SECRET"))
    session.decide("note", {})
    session.observe("note", {}, "ok")
    completions = [r for r in records(authz) if r["kind"] == "completion"]
    assert [r["state"] for r in completions] == ["failed", "done"]
    assert "SECRET" not in str(completions)


# --- the life of a session ----------------------------------------------------------------------------


@BOTH
def test_a_closed_session_is_over(form: str) -> None:
    """Its jti is dead when `close` returns; closing twice is no error; nothing is decided any more."""
    authz = authz_with()
    session = Forms(opened(authz), form)
    assert status(authz, session.session) == "live"
    session.close()
    session.close()
    assert status(authz, session.session) == "ended" and session.decide("lookup", {}).reason == "lease_ended"
    with pytest.raises(AuthzDenied):
        session.delegate("child")


def test_the_context_manager_closes() -> None:
    """In both forms, and when the body raises."""
    authz = authz_with()
    with opened(authz) as session:
        assert session.decide("lookup", {}).permit
    assert status(authz, session) == "ended"

    async def body() -> Session:
        async with opened(authz) as inner:
            raise LookupError(inner)

    with pytest.raises(LookupError) as caught:
        asyncio.run(body())
    assert status(authz, caught.value.args[0]) == "ended"


def test_a_session_that_may_not_start_is_refused() -> None:
    """By the policy, or because the thread is somebody else's; no lease is left behind."""
    authz = authz_with(StaticPDP(lambda r: r.action.name != "run/start"))
    with pytest.raises(AuthzDenied) as caught:
        opened(authz)
    assert (caught.value.code, "no_permit" in str(caught.value)) == ("no_permit", False)
    (started,) = [r for r in records(authz) if r["kind"] == "decision"]
    assert started["decision_id"] == caught.value.decision_id and status(authz, started["jti"]) == "ended"
    authz = authz_with()
    opened(authz, thread="t1")
    opened(authz, thread="t1")
    with pytest.raises(AuthzDenied) as caught:
        opened(authz, thread="t1", subject="mallory")
    assert caught.value.code == Code.SUBJECT_MISMATCH


def test_sessions_do_not_meet() -> None:
    """Each has a thread of its own, unless it is given one; the same task again changes nothing."""
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    first, second = opened(authz), opened(authz)
    assert first.jti != second.jti
    first.decide("pay", PAY)
    second.decide("lookup", {})
    assert calls(pdp)[-1].context.history.calls == {}
    third, fourth = opened(authz, thread="t"), opened(authz, thread="t")
    third.decide("pay", PAY)
    fourth.decide("lookup", {})
    assert calls(pdp)[-1].context.history.calls == {"pay": 1} and (third.epoch, fourth.epoch) == (1, 1)


@BOTH
@pytest.mark.parametrize("act", ["revoke", "reinstate", "data_changed", "correct"])
def test_what_a_ledger_did_not_keep_is_no_success(form: str, act: str) -> None:
    """A foreign ledger that refuses a revocation: the operator hears of it, and the log does not say that it happened."""
    ledger = BrokenLedger()
    ledger.commit = lambda *_: Conflict(Code.LEASE_ENDED)  # type: ignore[method-assign]
    authz = authz_with(ledger=ledger)
    where = {} if act == "data_changed" else {"graph": "session"} | ({"text": "Stop"} if act == "correct" else {})
    with pytest.raises((LedgerError, AuthzDenied)):
        getattr(Forms(authz, form), act)("t", **where)
    assert [r["detail"].get("refused") for r in records(authz)] == ([None, "lease_ended"] if act == "reinstate" else [])


def test_a_sink_that_is_empty_is_still_the_one_that_was_given() -> None:
    """One that counts what it holds is false at first; its records must not go elsewhere."""

    class Counting(BrokenSink):
        def __len__(self) -> int:
            return len(self.records)

    sink = Counting(lambda _: False)
    opened(authz_with(audit=sink)).decide("lookup", {})
    assert {r["kind"] for r in sink.records} == {"run", "decision"}


def test_a_question_names_who_says_a_value() -> None:
    session = opened(authz_with(StaticPDP(ask_for_pay)))
    session.decide("lookup", {})
    session.observe("lookup", {}, {"iban": "UK12"})
    (to, _) = session.evidence(asked := session.decide("pay", PAY))
    assert to.endswith(": a system says it (lookup/iban)"), to
    session.decide("lookup", PAY)
    assert session.evidence(asked) == ()


def test_a_confirmation_shows_what_is_ordered() -> None:
    """The names of the confirmed steps tell an approver nothing."""
    order = Mandate.model_validate({"steps": [{"id": "p", "tool": "pay", "args": {"to": "Bob"}}], "confirm": ["p"]})
    with RuntimeAuthz(profiles=PROFILES).session(subject="alice", task="Do it", mandate=order) as session:
        asked = session.decide("pay", {"to": "Bob"})
        lines = session.evidence(asked)
    assert (asked.outcome, len(lines)) == ("approval_required", 3)
    assert lines[:2] == ("AN APPROVAL CONFIRMS THE WHOLE ORDER, by the application:", "pay, to = Bob")


@pytest.mark.parametrize(("identifiers", "standing"), [(["uk12"], "told"), (["UK13"], "outside"), ("UK12", "outside")], ids=str)
def test_what_is_the_subjects_own_needs_no_words(identifiers: object, standing: str) -> None:
    """An account that the application states of its user, in any spelling; a text in the place of the list states nothing."""
    pdp = StaticPDP(True)
    alice = {"type": "user", "id": "alice", "properties": {"identifiers": identifiers}}
    authz_with(pdp).session(**{**OPENED, "subject": alice}).decide("pay", PAY)
    assert calls(pdp)[-1].context.call.provenance["to"].standing == standing


# --- corrections --------------------------------------------------------------------------------------


def test_a_correction_opens_a_new_epoch() -> None:
    """Epoch + 1, the old jti is dead, and the session goes on under a new one."""
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    session = opened(authz)
    old = session.jti
    assert session.correct("Never above 10") == session.epoch == 2
    assert (status(authz, old), status(authz, session)) == ("stale", "live")
    assert session.decide("pay", PAY).permit
    task = calls(pdp)[-1].context.task
    assert (task.epoch, task.corrections, task.text) == (2, 1, "Pay the December bill\nNever above 10")
    assert session.correct("Never above 10") == 3
    session.close()
    assert status(authz, session) == "ended"


@BOTH
def test_a_call_under_way_is_observed_after_a_correction(form: str) -> None:
    """The commit was the point of no return: what happened is recorded."""
    authz = authz_with()
    session = Forms(opened(authz), form)
    session.decide("pay", PAY)
    session.correct("Stop")
    session.observe("pay", PAY, "paid")
    assert [r["state"] for r in records(authz) if r["kind"] == "completion"] == ["done"]


# --- approvals ------------------------------------------------------------------------------------------


def ask_for_pay(request: EvaluationRequest) -> object:
    """Permits everything but `pay`, which needs an approval for exactly these arguments."""
    if request.resource.id != "pay":
        return True
    call, approval = request.context.call, request.context.approval
    if approval is not None and call is not None and approval.args_digest == call.args_digest:
        return True
    return {"decision": False, "context": {"obligations": [{"id": "a", "type": "require_approval"}]}}


@BOTH
def test_an_approval_lifts_the_question(form: str) -> None:
    """The call is decided again with the approval in the request, and runs once."""
    pdp = StaticPDP(ask_for_pay)
    session = Forms(opened(authz_with(pdp)), form)
    asked = session.decide("pay", PAY)
    assert (asked.outcome, asked.permit) == ("approval_required", False)
    with pytest.raises(AuthzError):
        session.observe("pay", PAY, "paid")
    decision = session.approve(asked)
    assert decision.permit
    approval = calls(pdp)[-1].context.approval
    assert (approval.source, approval.approver, approval.authenticated) == ("application", "user:alice", True)
    session.observe("pay", PAY, "paid")
    assert session.approve(asked).reason == "approval_void"
    assert session.decide("pay", PAY).outcome == "approval_required"


@pytest.mark.parametrize("approved", [True, False])
def test_a_question_counts_as_a_denial_until_it_is_approved(approved: bool) -> None:
    """A person who approves each payment does not have the run revoked for it."""
    pdp = StaticPDP(ask_for_pay)
    session = opened(authz_with(pdp))
    for n in range(3):
        asked = session.decide("pay", {**PAY, "amount": n})
        session.decide("lookup", {"key": "x"})
        if approved:
            session.approve(asked)
    session.decide("lookup", {"key": "x"})
    history = calls(pdp)[-1].context.history
    assert (history.denials, history.streak, history.tainted) == ((0, 0, 0) if approved else (3, 0, 3))


def test_only_a_question_can_be_approved() -> None:
    """Neither a denial, nor a permit, nor another session's question."""
    authz = authz_with(StaticPDP(lambda r: False if r.resource.id == "note" else ask_for_pay(r)))
    session, other = opened(authz), opened(authz)
    for decision in (session.decide("note", {}), session.decide("lookup", {}), other.decide("pay", PAY)):
        assert session.approve(decision).reason == "approval_void"
    forged = Decision(outcome="approval_required", decision_id="x")
    assert session.approve(forged).reason == "approval_void"


def test_an_approval_does_not_survive_the_session() -> None:
    """Once it is over, nothing of it can be approved."""
    session = opened(authz_with(StaticPDP(ask_for_pay)))
    asked = session.decide("pay", PAY)
    session.close()
    assert session.approve(asked).reason == "lease_ended"


# --- grants, delegation, budgets --------------------------------------------------------------------------

GRANT = Grant(tools=("lookup", "pay"), args={"pay": {"amount": Constraint(le=100)}}, max_depth=2, budgets={"pay": 2})


def test_a_child_gets_the_parents_grant_narrowed() -> None:
    """It has a path and a jti of its own, and asking for more gives no more."""
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    parent = opened(authz, grant=GRANT)
    child = parent.delegate("payer", Grant(tools=("pay", "note", "delete_all"), args={"pay": {"amount": Constraint(le=1000)}}))
    assert child.jti != parent.jti and child.decide("pay", PAY).permit
    request = calls(pdp)[-1]
    assert request.context.agent.path == ["session", "payer"] and request.context.delegation.depth == 1
    assert [(e.from_, e.to) for e in request.context.delegation.edges] == [("session", "payer")]
    assert request.context.lease.grant is not None
    granted = Grant.model_validate(request.context.lease.grant)
    assert granted.tools == ("pay",) and GRANT.covers(granted)
    invoked = next(r for r in pdp.requests if r.action.name == "agent/invoke")
    assert (invoked.resource.type, invoked.resource.id) == ("agent", "payer")


def test_a_grant_ends_at_its_depth_and_time() -> None:
    """Below the depth, and from the moment on which it expires."""
    clock = FrozenClock()
    authz = authz_with(ledger=MemoryLedger(clock=clock))
    parent = opened(authz, grant=Grant(max_depth=1, expires_at=int(clock.now) + 10))
    child = parent.delegate("a")
    assert child.decide("lookup", {}).permit
    assert child.delegate("b").decide("lookup", {}).reasons == ("grant_exceeded", "grant_depth")
    clock.tick(10)
    assert child.decide("lookup", {"x": 1}).reasons == ("grant_exceeded", "grant_expired")


def test_children_end_with_their_parent() -> None:
    """And not the other way round."""
    authz = authz_with()
    parent = opened(authz)
    first, second = parent.delegate("a"), parent.delegate("b")
    below = first.delegate("c")
    first.close()
    assert [status(authz, s) for s in (parent, first, below, second)] == ["live", "ended", "ended", "live"]
    assert below.decide("lookup", {}).reason == "lease_ended"
    parent.close()
    assert status(authz, second) == "ended"


# --- what can fail --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("verb", ["load", "commit", "claim"])
def test_a_ledger_that_fails_denies(form: str, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """By a value, also after the PDP permitted; and when it is repaired the session goes on."""
    ledger, pdp = BrokenLedger(), StaticPDP(True)
    session = Forms(opened(authz_with(pdp, ledger=ledger)), form)
    claims = verb == "claim"
    ledger.broken = lambda used, changes: any(isinstance(c, ClaimCall) for c in changes) if claims else used == verb
    with caplog.at_level(logging.ERROR):
        decision = session.decide("pay", PAY)
    assert (decision.outcome, decision.reason) == ("deny", "ledger_unavailable") and len(calls(pdp)) == claims
    with pytest.raises(AuthzError):
        session.observe("pay", PAY, "paid")
    ledger.broken = lambda _, __: False
    assert session.decide("pay", PAY).permit


def is_permit(record: dict[str, Any]) -> bool:
    return record["kind"] == "decision" and record["action"] == "tools/call" and record["outcome"] == "permit"


def test_a_permit_that_can_not_be_recorded_is_none() -> None:
    """The call is denied and released: nothing is claimed, and its budget is given back."""
    sink = BrokenSink(is_permit)
    pdp = StaticPDP(True)
    session = opened(authz_with(pdp, audit=sink), grant=Grant(budgets={"pay": 1}))
    for _ in range(3):
        decision = session.decide("pay", PAY)
        assert (decision.outcome, decision.reason) == ("deny", "audit_unavailable")
        with pytest.raises(AuthzError):
            session.observe("pay", PAY, "paid")
    sink.broken = lambda _: False
    assert session.decide("pay", PAY).permit
    assert session.decide("pay", {**PAY, "n": 1}).reason == "budget_exhausted"


@pytest.mark.parametrize("fails", ["record", "claim"])
def test_a_call_that_did_not_run_gives_its_step_back(fails: str) -> None:
    """Also one that threads share."""
    sink, ledger = BrokenSink(lambda r: fails == "record" and is_permit(r)), MemoryLedger()
    commit = ledger.commit
    if fails == "claim":
        stale, claims = Conflict(Code.STALE_EPOCH), lambda changes: any(isinstance(c, ClaimCall) for c in changes)
        ledger.commit = lambda *given: stale if claims(given[2]) else commit(*given)  # type: ignore[method-assign]
    covered = StaticPDP(lambda r: r.context.call is None or r.context.call.mandate.standing == "covered")
    ordered = {"key": "rent", "steps": [{"id": "rent", "tool": "pay", "args": PAY}]}
    session = opened(authz_with(covered, audit=sink, ledger=ledger), mandate=ordered)
    assert not session.decide("pay", PAY).permit
    sink.broken, ledger.commit = lambda _: False, commit  # type: ignore[method-assign]
    assert session.decide("pay", PAY).permit


def test_an_approval_that_is_not_kept_is_none() -> None:
    ledger = BrokenLedger()
    session = opened(authz_with(StaticPDP(ask_for_pay), ledger=ledger))
    asked = session.decide("pay", PAY)
    ledger.broken = lambda verb, _: verb == "commit"
    assert session.approve(asked).reason == "ledger_unavailable"


@pytest.mark.parametrize("given", [{"task": "\ud800"}, {"subject": {"type": "user", "id": "a", "properties": {"x": "\ud800"}}}], ids=len)
def test_what_cannot_be_written_to_the_policy_is_denied(given: dict[str, Any]) -> None:
    with pytest.raises(AuthzDenied, check=lambda e: e.code == Code.UNCANONICAL_ARGUMENT):
        opened(authz_with(), **given)


def test_a_denial_that_can_not_be_recorded_is_still_a_denial() -> None:
    """A failing sink never turns it into something else."""
    sink = BrokenSink(lambda r: r["kind"] == "decision" and r["outcome"] == "deny")
    session = opened(authz_with(StaticPDP(lambda r: r.resource.id != "pay"), audit=sink))
    assert session.decide("pay", PAY).reason == "no_permit" and session.decide("lookup", {}).permit


def test_a_denial_whose_obligation_fails_is_still_a_denial() -> None:
    limit = {"id": "r", "type": "rate_limit", "properties": {"counter": "pay", "window": 60, "max": 5}}
    ledger = BrokenLedger(lambda _, changes: any(isinstance(c, SpendRate) for c in changes))
    denies = StaticPDP(lambda r: r.resource.id != "pay" or {"decision": False, "context": {"obligations": [limit]}})
    assert opened(authz_with(denies, ledger=ledger)).decide("pay", PAY).reason == "no_permit"


def test_a_delegation_that_can_not_be_recorded_is_none() -> None:
    with pytest.raises(AuthzDenied) as caught:
        opened(authz_with(audit=BrokenSink(lambda r: r.get("event") == "delegated"))).delegate("payer")
    assert caught.value.code == Code.AUDIT_UNAVAILABLE


@pytest.mark.parametrize(("part", "code"), [
    ({"pdp": StaticPDP(lambda _: 1 / 0)}, Code.PDP_ERROR),
    ({"ledger": BrokenLedger(lambda verb, _: verb == "load")}, Code.LEDGER_UNAVAILABLE),
    ({"ledger": BrokenLedger(lambda verb, _: verb == "commit")}, Code.LEDGER_UNAVAILABLE),
    ({"audit": BrokenSink(lambda r: r["kind"] == "decision")}, Code.AUDIT_UNAVAILABLE),
    ({"identity": BrokenIdentity()}, Code.WORKLOAD_UNPROVEN),
], ids=["pdp", "load", "commit", "audit", "identity"])
def test_a_part_that_fails_lets_no_session_start(part: dict[str, Any], code: Code) -> None:
    """`AuthzDenied` with its code, whose text says nothing of the store."""
    with pytest.raises(AuthzDenied) as caught:
        opened(authz_with(**part))
    assert caught.value.code == code and "hunter2" not in str(caught.value)


# --- time -----------------------------------------------------------------------------------------------


def test_a_living_session_outlives_its_lease_time() -> None:
    """Each step keeps the lease ahead of the ledger's clock; a silent one looks dead to others meanwhile."""
    clock = FrozenClock(1_000_000.7)
    pdp = StaticPDP(True)
    authz = authz_with(pdp, ledger=MemoryLedger(clock=clock))
    session = opened(authz)
    for _ in range(20):
        clock.tick(LEASE_TTL * 0.75)
        assert session.decide("lookup", {}).permit
        lease = calls(pdp)[-1].context.lease
        assert clock.now < lease.exp <= clock.now + LEASE_TTL
        assert calls(pdp)[-1].context.now == int(clock.now)  # a policy reads the ledger's time
        assert status(authz, session) == "live"
    clock.tick(LEASE_TTL)
    assert status(authz, session) == "ended" and session.decide("lookup", {}).permit
    assert status(authz, session) == "live"


def test_no_session_outlives_its_maximum() -> None:
    """However lively: from the maximum on it is `lease_expired`, for children too, and the PDP is not asked."""
    clock = FrozenClock()
    pdp = StaticPDP(True)
    authz = authz_with(pdp, ledger=MemoryLedger(clock=clock))
    session = opened(authz)
    clock.tick(MAX_LIFETIME - 1)
    child = session.delegate("late")
    assert session.decide("pay", PAY).permit and child.decide("lookup", {}).permit
    assert calls(pdp)[-1].context.lease.exp <= clock.now + 1
    clock.tick(1)
    asked = len(pdp.requests)
    assert session.decide("lookup", {}).reason == "lease_expired"
    assert child.decide("lookup", {}).reason == "lease_expired" and len(pdp.requests) == asked
    assert status(authz, session) == "ended"
    session.observe("pay", PAY, "paid")
    assert opened(authz).decide("lookup", {}).permit


# --- children and records -----------------------------------------------------------------------------------


def test_two_equal_calls_may_be_open_at_once() -> None:
    """The second asks, as the first may have been given up. Both are claimed, so both are observed."""
    session = opened(authz_with())
    assert session.decide("pay", PAY).permit and session.approve(session.decide("pay", PAY)).permit
    for _ in range(2):
        session.observe("pay", PAY, "paid")


def test_a_corrected_child_is_still_a_child() -> None:
    """A correction narrows: it gives a delegated session neither the root's path nor freedom from its grant."""
    pdp = StaticPDP(True)
    parent = opened(authz_with(pdp))
    child = parent.delegate("reader", Grant(tools=("lookup",)))
    assert child.correct("Go on") == child.epoch == parent.epoch == 2
    assert child.decide("pay", PAY).reason == "grant_exceeded"
    assert child.decide("lookup", {}).permit and parent.decide("pay", PAY).permit
    assert [c.context.agent.path for c in calls(pdp)[-2:]] == [["session", "reader"], ["session"]]


def test_an_audit_sink_and_a_ledger_that_both_fail_deny() -> None:
    """By a value: `claim` never raises."""
    ledger, sink = BrokenLedger(), BrokenSink(is_permit)
    session = opened(authz_with(ledger=ledger, audit=sink))
    ledger.broken = lambda _, changes: any(isinstance(c, ReleaseCall) for c in changes)
    assert session.decide("pay", PAY).reason == "audit_unavailable"


def test_a_permit_that_obliges_to_revoke_does_not_pass_unheeded() -> None:
    """An obligation is carried out, or the answer is none."""
    both = {"decision": True, "context": {"obligations": [{"id": "x", "type": "revoke"}]}}
    authz = authz_with(StaticPDP(lambda r: both if r.resource.id == "pay" else True))
    session = opened(authz)
    decision = session.decide("pay", PAY)
    assert not decision.permit or status(authz, session) == "revoked"


def test_a_denial_is_counted_if_the_task_changes_meanwhile() -> None:
    """The denial obliges to rotate; somebody else did so just before."""

    class Overtaken(MemoryLedger):
        def commit(self, scope: Scope, guard: Guard | None, changes: Sequence[Change]) -> Committed | Conflict:
            if any(isinstance(change, AdvanceEpoch) and not change.first for change in changes) and not others:
                others.append(super().commit(scope, None, [AdvanceEpoch(1)]))
            return super().commit(scope, guard, changes)

    others: list[object] = []
    rotates = {"decision": False, "context": {"obligations": [{"id": "x", "type": "rotate"}]}}
    authz = authz_with(StaticPDP(lambda r: rotates if r.resource.id == "pay" else True), ledger=Overtaken())
    session = opened(authz)
    assert session.decide("pay", PAY).reason == "no_permit" and others
    after = authz.ledger.load(session._run.scope, Query())
    assert (after.epoch, after.history.denials) == (2, 1)
    assert not [r for r in records(authz) if r.get("event") == "rotated"]


# --- what is refused where it is given ----------------------------------------------------------------------


@pytest.mark.parametrize("part", [
    {"ledger": "ledger.db"}, {"issuer": "https://issuer.example"}, {"identity": "agent"}, {"audit": []},
    {"approvers": {}}, {"planner": "gpt"}, {"on_unknown": "bank"}, {"notify": {"desk": print}}, {"notify": "log"}, {"subject_from": "alice"},
    {"tenant": 5}, {"tenant": ""}, {"kill_switch": 5}, {"pdp": "opa"}, {"task_sources": ("messages",)},
], ids=str)
def test_a_part_of_another_kind_is_refused_where_it_is_given(part: dict[str, Any]) -> None:
    """Not at the first decision, which it would deny: a path where a ledger belongs, a function where a notifier does."""
    with pytest.raises(ConfigError, match=r"config: (`.* must|the kill switch)"):
        RuntimeAuthz(**{"pdp": StaticPDP(True), **part})


@pytest.mark.parametrize("subject", [None, "", 5, [], {}, {"type": "user"}, {"type": "user", "id": "SECRET", "x": 1}], ids=str)
def test_a_subject_that_is_none_is_refused(subject: Any) -> None:
    """With what is wrong, and without what was given: it may be somebody's name."""
    authz = authz_with()
    for opens in (authz.run, authz.session):
        with pytest.raises(ConfigError, match="a subject is a user's name or") as caught:
            opens(subject=subject)
        assert "SECRET" not in str(caught.value)
    for wrong in ({"task": 5}, {"grant": 5}):
        with pytest.raises(ConfigError, match="must be"):
            authz.run(subject="alice", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [True, False], ids=["text", "object"])
def test_the_end_of_a_large_output_counts_when_it_is_needed(text: bool) -> None:
    """It is read on for a value that the user did not say, also if the tool's owner changed it since."""
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    session = opened(authz, task="Pay UK99 98.7")
    rows = [{"id": f"row-{i}", "to": f"UK{i:010}", "note": "x" * 60} for i in range(1000)]
    session.decide("lookup", {"key": "x"})
    session.observe("lookup", {"key": "x"}, json.dumps(rows) if text else rows)
    rows[-1]["to"] = rows[0]["to"] = "DE66"
    scope = next(iter(authz._pep.memory.unread))
    session.decide("pay", {"to": "UK99", "amount": 98.7})
    assert scope in authz._pep.memory.unread
    for to in ("UK0000000999", "DE66"):
        session.decide("pay", {"to": to, "amount": 98.7})
    assert not authz._pep.memory.unread
    found = [r.context.call.provenance["to"] for r in calls(pdp)[1:]]
    assert [(p.class_, p.standing) for p in found] == [("human", "told"), ("system", "known"), ("unknown", "outside")]
