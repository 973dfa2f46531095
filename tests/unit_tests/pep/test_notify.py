"""Obligations are a must: nobody is told, nothing runs; and a denial's obligations are carried out too."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.pep.run import LogNotifier, Notifier
from langchain_runtime_authz.pep.session import Session

PROFILES = {"pay": ToolProfile(effect="pay", sink="external")}
NOTIFY = {"id": "n", "type": "notify", "properties": {"channel": "desk"}}
SECRET = "DE89-SECRET"


class Answers:
    """A PDP that permits every step, and answers calls as it is told."""

    name, revision = "told", "7"

    def __init__(self, permits: bool, *obligations: Mapping[str, Any]) -> None:
        reasons = [] if permits else [{"code": "not_today"}]
        self.answer = {"decision": permits, "context": {"reasons": reasons, "obligations": list(obligations)}}

    def evaluate(self, body: bytes) -> object:
        return self.answer if json.loads(body)["action"]["name"] == "tools/call" else {"decision": True}

    async def aevaluate(self, body: bytes) -> object:
        return self.evaluate(body)


class Desk:
    def __init__(self, fails: Exception | None = None) -> None:
        self.heard: list[dict[str, Any]] = []
        self.fails = fails

    def send(self, notification: Mapping[str, Any]) -> None:
        if self.fails is not None:
            raise self.fails
        self.heard.append(dict(notification))


def opened(pdp: Answers, notifier: Notifier | None = None) -> tuple[Session, MemorySink]:
    audit = MemorySink()
    authz = RuntimeAuthz(pdp=pdp, profiles=PROFILES, audit=audit, notify={"desk": notifier} if notifier else None)
    return authz.session(subject="alice", task="Pay"), audit


@pytest.mark.parametrize("permits", [True, False])
def test_who_must_be_told_is_told(permits: bool) -> None:
    """Of a permit and of a deny; with ids, codes and names, and without arguments."""
    desk = Desk()
    session, _ = opened(Answers(permits, NOTIFY), desk)
    decision = session.decide("pay", {"iban": SECRET})
    assert decision.permit is permits
    (told,) = desk.heard
    assert told["decision_id"] == decision.decision_id
    assert (told["resource"], told["subject"], told["outcome"]) == ("pay", "user:alice", decision.outcome)
    assert SECRET not in repr(told)


@pytest.mark.parametrize("fails", [AuditError(Code.NOTIFY_UNAVAILABLE), RuntimeError(SECRET), None], ids=type)
def test_a_permit_that_can_not_be_told_is_a_deny(fails: Exception | None) -> None:
    """Full, broken or not configured: the call does not run, its denial is recorded, its budget given back."""
    budget = {"id": "b", "type": "budget", "properties": {"counter": "c", "max": 1}}
    desk = Desk(fails)
    session, audit = opened(Answers(True, NOTIFY, budget), desk if fails is not None else None)
    for _ in range(2):
        decision = session.decide("pay", {"amount": 1})
        assert (decision.outcome, decision.reasons) == ("deny", (Code.NOTIFY_UNAVAILABLE,))
    recorded = [r["reasons"] for r in audit.records if r.get("action") == "tools/call"]
    assert recorded[-1] == [Code.NOTIFY_UNAVAILABLE]
    desk.fails = None
    if fails is not None:
        assert session.decide("pay", {"amount": 1}).permit


def test_a_deny_stays_one_where_nobody_can_be_told() -> None:
    session, _ = opened(Answers(False, NOTIFY), Desk(OSError()))
    assert session.decide("pay", {}).reasons == ("not_today",)


def test_a_notifier_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Its failure may quote what a stranger wrote. The twin: the text itself has two lines."""
    failed = AuditError(Code.NOTIFY_UNAVAILABLE, "desk\nINFO permitted pay\x1b[2K")
    assert len(str(failed).splitlines()) == 2
    session, _ = opened(Answers(False, NOTIFY), Desk(failed))
    session.decide("pay", {})
    (line,) = [r.getMessage() for r in caplog.records if "nobody was told" in r.getMessage()]
    assert line.isprintable()


def test_the_log_is_always_a_channel(caplog: pytest.LogCaptureFixture) -> None:
    session, _ = opened(Answers(True, {**NOTIFY, "properties": {"channel": "log"}}))
    with caplog.at_level(logging.WARNING, "langchain_runtime_authz.notify"):
        decision = session.decide("pay", {})
    assert decision.permit and decision.decision_id in caplog.text
    assert isinstance(LogNotifier(), Notifier)


def test_a_budget_is_counted_by_the_ledger() -> None:
    """As many permits as the policy says, then none."""
    session, _ = opened(Answers(True, {"id": "b", "type": "budget", "properties": {"counter": "c", "max": 2}}))
    assert [session.decide("pay", {"n": n}).reason for n in range(3)] == ["", "", Code.BUDGET_EXHAUSTED]


def test_the_shipped_policy_tells() -> None:
    """By rows of its data, no Rego written: whom a permit and a deny tell, and how often a task may."""
    desk = Desk()
    data = {
        "effects": {"write": "permit", "admin": "deny"},
        "notify": {"effects": {"write": {"permit": "desk"}}, "tools": {"drop": {"deny": "desk"}}},
        "budget": {"effects": {"write": {"max": 2}}},
    }
    profiles = {"book": ToolProfile(effect="write", sink="internal"), "drop": ToolProfile(effect="admin", sink="internal")}
    authz = RuntimeAuthz(pdp=WasmPDP(data=data, pool_size=1), profiles=profiles, notify={"desk": desk})
    session = authz.session(subject="alice", task="Book it")
    assert [session.decide("book", {"n": n}).reason for n in range(3)] == ["", "", Code.BUDGET_EXHAUSTED]
    assert session.decide("drop", {}).reason == Code.EFFECT
    assert [(t["resource"], t["outcome"]) for t in desk.heard] == [("book", "permit"), ("book", "permit"), ("drop", "deny")]


def test_a_denied_attempt_counts_where_it_is_obliged_to() -> None:
    """A rate limit on a deny is carried out too: the next permit finds no room."""
    rate = {"id": "r", "type": "rate_limit", "properties": {"counter": "c", "window": 60, "max": 2}}
    pdp = Answers(False, rate)
    session, _ = opened(pdp)
    assert [session.decide("pay", {"n": n}).reason for n in range(3)] == ["not_today"] * 3
    pdp.answer = Answers(True, rate).answer
    assert session.decide("pay", {"n": 4}).reason == Code.RATE_EXCEEDED


def test_unknown_beside_known_denies_and_still_tells() -> None:
    desk = Desk()
    session, _ = opened(Answers(True, NOTIFY, {"id": "x", "type": "encrypt", "properties": {}}), desk)
    assert session.decide("pay", {}).reason == Code.UNKNOWN_OBLIGATION
    assert [n["outcome"] for n in desk.heard] == ["deny"]
