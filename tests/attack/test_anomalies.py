"""Each anomaly rule of the shipped policy: a trace that trips it, and benign ones that trip none."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.authzen import Decision
from langchain_runtime_authz.enforce.session import Session
from langchain_runtime_authz.ledger.base import AdvanceEpoch, Query
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing.clock import FrozenClock

PROFILES = {
    "look": ToolProfile(effect="read", sink="none", data_class="public", trust="system"),
    "note": ToolProfile(effect="write", sink="internal"),
    "wipe": ToolProfile(effect="admin", sink="internal"),
}


class Desk:
    """A session on the shipped policy and a clock of its own."""

    def __init__(self, **anomaly: Any) -> None:
        self.clock = FrozenClock()
        data = {"policy_data": {"anomaly": anomaly}} if anomaly else {}
        self.authz = RuntimeAuthz(profiles=PROFILES, ledger=MemoryLedger(clock=self.clock), **data)
        self.session: Session = self.authz.session(subject="alice", task="Look at things", thread="t")
        self.number = 0

    def do(self, tool: str) -> Decision:
        """One call, run if it is permitted."""
        self.number += 1
        decision = self.session.decide(tool, {"n": self.number})
        if decision.permit:
            self.session.observe(tool, {"n": self.number}, "done")
        return decision

    @property
    def revoked(self) -> bool:
        return self.do("look").reason == "revoked"


def test_a_row_of_denials_revokes() -> None:
    """Ten in a row; a permit between starts the row anew."""
    desk = Desk()
    for _ in range(2):
        assert [desk.do("wipe").reason for _ in range(9)] == ["effect"] * 9
        assert desk.do("look").permit
    desk = Desk()
    assert [desk.do("wipe").reason for _ in range(10)] == ["effect"] * 10
    assert desk.do("look").reason == "denial_streak"
    assert desk.revoked


def test_denials_over_a_whole_thread_revoke() -> None:
    """Twenty-five, however many permits stand between."""
    desk = Desk()
    for _ in range(25):
        assert desk.do("wipe").reason == "effect"
        if desk.number < 49:
            assert desk.do("look").permit
    assert desk.do("look").reason == "denial_streak"
    assert desk.revoked


def test_a_burst_revokes() -> None:
    """A hundred calls in a minute; the same hundred in an hour are none."""
    desk = Desk()
    for _ in range(100):
        assert desk.do("look").permit
        desk.clock.tick(0.5)
    assert desk.do("look").reason == "burst"
    assert desk.revoked
    slow = Desk()
    for _ in range(100):
        slow.clock.tick(30)
        assert slow.do("look").permit
    assert slow.do("look").permit


def test_rotations_by_others_revoke() -> None:
    """Six changes of the task by somebody else and no side effect between; the subject may change it at will."""
    desk = Desk()
    scope = desk.session._run.scope

    def others(times: int) -> None:
        for _ in range(times):
            epoch = desk.authz.ledger.load(scope, Query()).epoch
            desk.authz.ledger.commit(scope, None, [AdvanceEpoch(epoch)])

    for i in range(20):
        desk.session.correct(f"Look at {i} too")
        assert desk.do("look").permit
    others(5)
    desk.session.correct("go on")
    assert desk.do("look").permit
    others(5)
    desk.session = desk.authz.session(subject="alice", thread="t")
    assert desk.do("note").permit
    others(6)
    desk.session = desk.authz.session(subject="alice", thread="t")
    assert desk.do("look").reason == "rotations"
    assert desk.revoked


def test_delegation_too_deep_is_denied() -> None:
    """The eighth agent below the root may do nothing; its parents go on."""
    desk = Desk()
    session = desk.session
    for level in range(7):
        session = session.delegate(f"agent-{level}")
    assert session.decide("look", {}).permit
    deeper = session.delegate("agent-7")
    assert deeper.decide("look", {}).reason == "too_deep"
    assert session.decide("look", {"again": 1}).permit


@pytest.mark.parametrize(("bound", "code"), [("max_steps", "step_budget"), ("max_seconds", "time_budget")])
def test_budgets_of_one_entry(bound: str, code: str) -> None:
    """What they deny is this entry; the next one begins anew."""
    desk = Desk(**{bound: 5})
    desk.session.close()
    desk.session = desk.authz.session(subject="alice", thread="t")
    reasons = []
    for _ in range(8):
        reasons.append(desk.do("look").reason)
        desk.clock.tick(1)
    assert reasons[0] == ""
    assert code in reasons
    assert "revoked" not in reasons
    desk.session.close()
    desk.session = desk.authz.session(subject="alice", thread="t")
    assert desk.do("look").permit


def test_outages_are_no_misbehaviour() -> None:
    """A PDP that is down for a hundred calls revokes nobody once it is back."""
    desk = Desk()
    pdp = desk.authz._engine.evaluator.pdp
    desk.authz._engine.evaluator.pdp = _Down()
    for _ in range(100):
        assert desk.do("look").reason == "pdp_error"
    desk.authz._engine.evaluator.pdp = pdp
    assert desk.do("look").permit


class _Down:
    name, revision = "down", "0"

    def evaluate(self, *_: Any) -> Any:
        raise ConnectionError

    aevaluate = evaluate


def test_benign_traces_trip_nothing() -> None:
    """A long, slow conversation: three hundred turns of reading and noting, with a denial now and then."""
    desk = Desk()
    for turn in range(300):
        desk.clock.tick(20)
        if turn % 10 == 0:
            desk.session.correct(f"And now {turn}")
        assert desk.do("look").permit
        assert desk.do("note").permit
        if turn % 15 == 0:
            assert desk.do("wipe").reason == "effect"
