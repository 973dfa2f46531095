"""Calls in doubt: asked about in every order, resolved by people or by the service, never repeated unasked."""

import asyncio
import datetime as dt
import secrets
from concurrent.futures import CancelledError
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile, _locks
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.ledger.base import LASTS, CallRow, InDoubtCall, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ReleaseCall
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.pep import calls_in_doubt
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

PAY = {"recipient": "DE21", "amount": 45}
PROFILES = {
    "send_money": ToolProfile(
        effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",)
    ),
    "batch": ToolProfile(effect="pay", sink="external", critical={"to": "principal"}),
    "settle": ToolProfile(effect="pay", sink="external", critical={"to": "principal", "invoice": "object"}),
    "put": ToolProfile(effect="write", sink="internal", idempotent=True, critical={"recipient": "principal"}),
}
TASK, AGAIN = "Pay 45 EUR to DE21", "Please again pay 45 EUR to DE21"
LAPSED = 61
SCOPE = Scope("default", "i", "g", "t")


class World:
    """A ledger that several workers share, and the death of one of them between a permit and its end."""

    def __init__(self, folder: Path, ledger: str) -> None:
        self.clock, self.folder, self.kind = FrozenClock(), folder, ledger
        self.memory = MemoryLedger(clock=self.clock)
        self.audit = MemorySink()

    def worker(self, **more: Any) -> RuntimeAuthz:
        ledger: Any = self.memory if self.kind == "memory" else SqliteLedger(self.folder / "l.db", clock=self.clock)
        return RuntimeAuthz(ledger=ledger, profiles=PROFILES, audit=self.audit, **more)

    def die(self, tool: str = "send_money", args: Any = PAY, pdp: Any = None) -> None:
        decision = self.worker(pdp=pdp).session(subject="alice", task=TASK, thread="t").decide(tool, args)
        assert decision.permit
        _locks.PROCESS[0] = secrets.token_hex(8)  # the next one is another


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


@pytest.mark.parametrize("lapsed", [0, LAPSED, 3600])
@pytest.mark.parametrize("thread", ["t", "another"])
@pytest.mark.parametrize("form", ["sync", "async"])
def test_the_same_deed_asks_and_says_why(world: World, lapsed: int, thread: str, form: str) -> None:
    """At once and after the lease lapsed, with new text, on another worker, on the same and on another thread."""
    world.die()
    at = f"{dt.datetime.fromtimestamp(world.clock.now, dt.UTC):%H:%M}"
    world.clock.tick(lapsed)

    async def enter(session: Any) -> Any:
        return await session.adecide("send_money", PAY)

    session = world.worker().session(subject="alice", task=AGAIN, thread=thread)
    decision = asyncio.run(enter(session)) if form == "async" else session.decide("send_money", PAY)
    assert decision.outcome == "approval_required" and decision.reason == Code.IN_DOUBT
    assert [o.properties["expires_in"] for o in decision.obligations] == [86400]  # the policy's terms
    (said,) = [line for line in session.evidence(decision) if "IN DOUBT" in line]
    assert f"the same payment of {at} UTC has {'an unknown outcome' if lapsed else 'no outcome yet'}" in said
    assert ("(thread t)" in said) == (thread != "t") and session.approve(decision).permit


@pytest.mark.parametrize(("subject", "tool", "args", "later"), [
    ("bob", "send_money", PAY, LAPSED), ("alice", "send_money", {**PAY, "recipient": "DE22"}, LAPSED),
    ("alice", "send_money", PAY, LASTS),
])
def test_another_deed_does_not_ask(world: World, subject: str, tool: str, args: Any, later: int) -> None:
    """Of another subject, on another target, or after a day."""
    world.die()
    world.clock.tick(later)
    task = f"Pay 45 EUR to {args['recipient']}"
    assert world.worker().session(subject=subject, task=task, thread="other").decide(tool, args).permit


def lost(kind: str) -> BaseException:
    """Return an error that hides that no answer came."""
    try:
        raise TimeoutError
    except TimeoutError as exc:
        if kind == "group":
            return ExceptionGroup("several", [ValueError(), exc])
        error = RuntimeError("the payment could not be confirmed")
        error.__cause__ = exc
        return error


@pytest.mark.parametrize(("error", "state"), [
    (lost("cause"), "unknown"), (lost("group"), "unknown"), (ConnectionResetError(), "unknown"),
    (CancelledError(), "unknown"), (BaseExceptionGroup("several", [KeyboardInterrupt()]), "unknown"), (KeyError("id"), "failed"),
])
def test_what_becomes_of_a_call_that_raised(error: BaseException, state: str) -> None:
    assert calls_in_doubt.state_of(error) == state


def test_a_failure_leaves_the_calls_of_its_message_alone() -> None:
    """They were planned together with it. A cached message of another entry only looks like the same one."""
    row = CallRow("k", "unknown", "j", None, "pay:x", 5.0, {"failed": True, "plan": "m1", "entry": "e"})
    found, about = InDoubtCall(SCOPE, "user:alice", row), {"args_digest": "d", "process": "p", "entry": "e"}
    assert [found.must_ask("other", SCOPE, {**about, "plan": plan}, 6.0) for plan in ("m1", "m2", None)] == [False, True, True]
    assert found.must_ask("other", SCOPE._replace(thread="t2"), {**about, "plan": "m1"}, 6.0)
    assert found.must_ask("other", SCOPE, {**about, "plan": "m1", "entry": "e2"}, 6.0)


@pytest.mark.parametrize(("first", "then", "asks"), [
    (("batch", {"to": ["DE21", "DE22"]}), ("send_money", PAY), True),
    (("batch", {"to": ["DE22", "DE23"]}), ("send_money", PAY), False),
    (("batch", {"to": ["DE21", "DE22"]}), ("batch", {"to": ["DE22", "DE23"]}), True),
    (("batch", {"to": ["DE21", "DE22"]}), ("batch", {"to": ["DE23", "DE24"]}), False),
    (("send_money", PAY), ("batch", {"to": ["DE21", "DE22"]}), True),
    (("settle", {"to": "DE21", "invoice": "INV7"}), ("send_money", PAY), True),
    (("settle", {"to": {"iban": "DE21", "name": "Bob"}}), ("send_money", PAY), True),
])
def test_one_target_in_common_is_the_same_deed(world: World, first: Any, then: Any, asks: bool) -> None:
    permits = StaticPDP(permit=True)
    world.die(*first, pdp=permits)
    world.clock.tick(LAPSED)
    decision = world.worker(pdp=permits).session(subject="alice", task=AGAIN, thread="other").decide(*then)
    assert decision.permit != asks


def test_an_idempotent_call_may_be_repeated(world: World) -> None:
    """Its tool says that twice is once, so nobody needs to resolve it."""
    permits = StaticPDP(permit=True)
    world.die("put", {"recipient": "x"}, permits)
    world.clock.tick(LAPSED)
    authz = world.worker(pdp=permits)
    session = authz.session(subject="alice", task=TASK, thread="other")
    assert session.decide("put", {"recipient": "x"}).permit and not authz.unknown_calls()
    assert not authz.ledger.doubts("default")  # as the metric counts


@pytest.mark.parametrize("happened", [True, False])
def test_people_resolve_it(world: World, happened: bool) -> None:
    """With author and reason, in ledger and audit; then the deed is free. Only once, and not while it may be under way."""
    world.die()
    authz = world.worker()
    with pytest.raises(LedgerError, match=Code.NOT_IN_DOUBT):
        authz.resolve_call("sha256:none", happened=True, by="user:carol", reason="none")
    world.clock.tick(LAPSED)
    (found,) = authz.unknown_calls()
    authz.resolve_call(found.row.key, happened=happened, by="user:carol", reason="asked the bank")
    assert authz.unknown_calls() == []
    (record,) = [r for r in world.audit.records if r.get("event") == "resolved"]
    known = {k: record["detail"][k] for k in ("author", "reason", "happened", "tool")}
    assert known == {"author": "user:carol", "reason": "asked the bank", "happened": happened, "tool": "send_money"}
    with pytest.raises(LedgerError, match=Code.NOT_IN_DOUBT):
        authz.resolve_call(found.row.key, happened=happened, by="user:mallory", reason="none")
    assert world.worker().session(subject="alice", task=AGAIN, thread="t").decide("send_money", PAY).permit


def test_a_resolution_that_came_second_is_taken_back_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were asked for; the log tells which one counts."""
    world.die()
    world.clock.tick(LAPSED)
    carol, dave = world.worker(), world.worker()
    (found,) = carol.unknown_calls()
    commit = dave.ledger.commit

    def late(*given: Any) -> Any:
        monkeypatch.undo()
        carol.resolve_call(found.row.key, happened=True, by="user:carol", reason="on the statement")
        return commit(*given)

    monkeypatch.setattr(dave.ledger, "commit", late)
    with pytest.raises(LedgerError, match=Code.NOT_IN_DOUBT):
        dave.resolve_call(found.row.key, happened=False, by="user:dave", reason="none")
    told = [r["detail"] for r in world.audit.records if r.get("event") == "resolved"]
    assert [(d["author"], d.get("refused")) for d in told] == [
        ("user:dave", None), ("user:carol", None), ("user:dave", "not_in_doubt"),
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_a_resolution_without_an_answer_is_not_called_refused(world: World, monkeypatch: Any, kept: bool) -> None:
    """The commit may have taken effect before the connection broke. The log says so, and the ledger's next read decides."""
    world.die()
    world.clock.tick(LAPSED)
    authz = world.worker()
    (found,) = authz.unknown_calls()
    commit = authz.ledger.commit

    def broken(*given: Any) -> Any:
        if kept:
            commit(*given)
        raise LedgerError(Code.LEDGER_UNAVAILABLE, "the connection broke")

    said = {"happened": True, "by": "user:carol", "reason": "on the statement"}
    with monkeypatch.context() as patched:
        patched.setattr(authz.ledger, "commit", broken)
        with pytest.raises(LedgerError, match=Code.LEDGER_UNAVAILABLE):
            authz.resolve_call(found.row.key, **said)
    told = [r["detail"] for r in world.audit.records if r.get("event") == "resolved"]
    assert [(d.get("refused"), d.get("unknown")) for d in told] == [(None, None), (None, "ledger_unavailable")]
    assert len(authz.unknown_calls()) == (not kept)
    with pytest.raises(LedgerError, match=Code.NOT_IN_DOUBT) if kept else nullcontext():
        authz.resolve_call(found.row.key, **said)


class Bank:
    """Knows what it has booked, by idempotency key."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, list[Any]()

    def __call__(self, call: calls_in_doubt.UnknownCall) -> Any:
        self.asked.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def later(self, call: calls_in_doubt.UnknownCall) -> Any:
        return self(call)

    def promised(self, call: calls_in_doubt.UnknownCall) -> Any:
        """Return an awaitable that is not a coroutine."""

        class Promise:
            def __await__(_) -> Any:
                return self.later(call).__await__()

        return Promise()


@pytest.mark.parametrize("form", ["sync", "async"])
@pytest.mark.parametrize("method", ["__call__", "later", "promised"])
@pytest.mark.parametrize("answer", [True, False, None, "yes", 1, RuntimeError("down")])
def test_the_service_is_asked(world: World, answer: Any, method: str, form: str) -> None:
    """By the key that the tool had. Only False settles it for another thread: what happened is not done again unasked."""
    world.die()
    world.clock.tick(LAPSED)
    bank = Bank(answer)
    authz = world.worker(on_unknown=getattr(bank, method))
    session = authz.session(subject="alice", task=AGAIN, thread="other")
    decision = asyncio.run(session.adecide("send_money", PAY)) if form == "async" else session.decide("send_money", PAY)
    assert bank.asked[0][:1] + bank.asked[0][3:5] == ("send_money", "user:alice", "t")
    assert bank.asked[0].idempotency_key
    settled = answer is False
    assert decision.outcome == ("permit" if settled else "approval_required")
    assert len(authz.unknown_calls()) == (0 if settled else 1)


def test_a_released_repetition_leaves_the_first_doubt(world: World) -> None:
    """The audit log was full when an approved repetition was claimed: what was begun before may still have happened."""
    world.die(pdp=StaticPDP(permit=True))
    world.clock.tick(LAPSED)
    authz = world.worker()
    (found,) = authz.unknown_calls()
    row, ledger = found.row, authz.ledger
    again = ClaimCall(row.key, "j2", True, (), row.deed, row.about, "user:alice", None)
    ledger.commit(found.scope, None, [again])
    ledger.commit(found.scope, None, [ReleaseCall(row.key)])
    assert [one.row.key for one in authz.unknown_calls()] == [row.key]


def test_a_question_names_the_doubt_about_its_own_call(world: World) -> None:
    """The process died in an approved payment; whoever approves it again is told."""
    session = world.worker().session(subject="alice", task="Go on", thread="t")  # which orders nothing
    assert session.approve(session.decide("send_money", PAY)).permit
    world.clock.tick(LAPSED)
    decision = session.decide("send_money", PAY)
    assert decision.outcome == "approval_required" and "IN DOUBT" in "\n".join(session.evidence(decision))
