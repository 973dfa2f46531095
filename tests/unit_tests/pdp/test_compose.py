"""PDPs made of PDPs: none of them permits what the real ones do not."""

import asyncio
import itertools
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pdp import compose
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.static_pdp import StaticPDP
from tests.threads import until
from tests.unit_tests.pdp.test_batch import decide

REQUEST = example_request()
RATE = {"id": "r", "type": "rate_limit", "properties": {"counter": "c", "window": 60, "max": 1}}
HIDE = {"id": "r", "type": "redact", "properties": {"fields": ["iban"]}}


def says(decision: bool, *obligations: dict[str, Any], code: str = "", name: str = "static", ttl: int | None = None) -> StaticPDP:
    context = {"obligations": list(obligations), "reasons": [{"code": code}] if code else [], "ttl": ttl}
    return StaticPDP(lambda _: {"decision": decision, "context": context}, name=name)


def fails(error: BaseException, name: str = "static") -> StaticPDP:
    def answer(_: Any) -> object:
        raise error

    return StaticPDP(answer, name=name)


ANSWERS: dict[str, Any] = {
    "permit": lambda: says(True),
    "approval_required": lambda: says(False, {"id": "a", "type": "require_approval"}, code="effect"),
    "deny": lambda: says(False, code="no"), "halt": lambda: says(False, {"id": "x", "type": "revoke"}, code="streak"),
    "malformed": lambda: StaticPDP(lambda _: {"decision": "true"}), "raises": lambda: fails(RuntimeError()),
    "late": lambda: fails(TimeoutError()),
}
GRAVITY = ["permit", "approval_required", "deny", "halt"]


@pytest.mark.parametrize("kinds", list(itertools.product(ANSWERS, repeat=2)), ids="-".join)
def test_the_gravest_outcome_stands(kinds: tuple[str, str]) -> None:
    """Every pair of answers, failures included: the outcome is the graver one's."""
    pdps = [ANSWERS[kind]() for kind in kinds]
    for pdp, name in zip(pdps, "ab", strict=True):
        pdp.name = name
    graver = max((GRAVITY.index(k) if k in GRAVITY else GRAVITY.index("deny")) for k in kinds)
    (decision,) = decide(DenyOverrides(*pdps))
    assert decision.outcome == GRAVITY[graver] and decision.permit == (kinds == ("permit", "permit"))
    assert decision.permit or decision.reasons


def test_reasons_and_obligations_are_of_those_that_decided() -> None:
    """Equal obligations are one, different ones keep apart, and a permit's are not a denial's."""
    (decision,) = decide(DenyOverrides(says(True, RATE, HIDE, name="a", ttl=9), says(True, HIDE, name="b", ttl=3)))
    assert [(o.id, o.type) for o in decision.obligations] == [("a:r", "rate_limit"), ("a:r", "redact")]
    assert decision.ttl == 3
    (decision,) = decide(DenyOverrides(says(True, RATE, name="a"), says(False, code="x", name="b")))
    assert (decision.reasons, decision.obligations) == (("x",), ())
    (decision,) = decide(DenyOverrides(says(False, code="y", name="a"), says(False, code="x", name="b")))
    assert decision.reasons == ("y", "x") and decision.policy_revision == "a=static,b=static"


@pytest.mark.parametrize(("ttls", "shortest"), [
    ((9, 3), 3), ((9, 0), 0), ((None, None), None), ((30, None), 0), ((None, 30), 0), ((None, 0), 0),
])
def test_no_pdps_permit_is_kept_longer_than_it_says(ttls: tuple[int | None, int | None], shortest: int | None) -> None:
    """Without a `ttl`, an engine lets no plain node's permit be kept: another engine's does not let it."""
    one, other = (says(True, name=name, ttl=ttl) for name, ttl in zip("ab", ttls, strict=True))
    assert decide(DenyOverrides(one, other))[0].ttl == shortest


def test_deny_overrides_is_one_batch_to_each() -> None:
    """Every PDP is asked about every request, and the answers stay apart."""
    answers = iter([True, False, True, False])
    pdp = DenyOverrides(StaticPDP(True, name="a"), StaticPDP(lambda _: next(answers), name="b"))
    assert [d.permit for d in Evaluator(pdp).evaluate([REQUEST.to_json()] * 4)] == [True, False, True, False]


def test_one_whose_turn_comes_too_late_is_not_asked() -> None:
    """The deadline is one for all."""

    def slow(_: Any) -> object:
        end = time.thread_time() + 0.05  # its work counts, not its waiting
        while time.thread_time() < end:
            pass
        return True

    second = StaticPDP(True, name="b")
    pdp = DenyOverrides(StaticPDP(slow, name="a"), second, deadline=0.02)
    (decision,) = Evaluator(pdp).evaluate([REQUEST.to_json()])
    assert (decision.outcome, decision.reason) == ("deny", Code.PDP_TIMEOUT) and second.requests == []


@pytest.mark.parametrize("pdps", [[], [StaticPDP(True)], [StaticPDP(True), StaticPDP(True)]], ids=len)
def test_deny_overrides_needs_several_names(pdps: list[StaticPDP]) -> None:
    """Fewer than two, or two of one name, are refused."""
    with pytest.raises(ConfigError):
        DenyOverrides(*pdps)


@pytest.fixture(autouse=True)
def _ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "IDLE", 0.01)


def drained(pdp: CandidatePDP) -> None:
    """Let the comparing thread end after what waits."""
    until(lambda: not pdp._comparing)


@pytest.mark.parametrize("candidate", ANSWERS)
@pytest.mark.parametrize("real", ANSWERS)
def test_a_candidate_changes_nothing(real: str, candidate: str) -> None:
    """Whatever it says or does, the real PDP's decision stands."""
    alone = decide(ANSWERS[real]())
    beside = CandidatePDP(ANSWERS[real](), ANSWERS[candidate]())
    with_it = decide(beside)
    drained(beside)
    beside.close()
    assert [replace(d, decision_id="") for d in alone] == [replace(d, decision_id="") for d in with_it]


def test_a_difference_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """To the log as `would flip`, to the callback with both decisions, and in the counts."""
    told: list[tuple[str, str, str]] = []
    answers = iter([True, False, True])
    pdp = CandidatePDP(
        StaticPDP(True), StaticPDP(lambda _: next(answers), name="next"),
        on_difference=lambda request, ours, theirs: told.append((request.resource.id, ours.outcome, theirs.outcome)),
    )
    with caplog.at_level(logging.WARNING):
        decided = Evaluator(pdp).evaluate([REQUEST.to_json()] * 3)
        drained(pdp)
    assert f"would flip: decision {decided[1].decision_id}: " in caplog.text
    assert told == [("book_invoice", "permit", "deny")]
    assert pdp.counts == {"same": 2, "permit>deny": 1} and caplog.text.count("would flip") == 1
    assert "UK12" not in caplog.text  # no content
    pdp.close()
    pdp.close()


@pytest.mark.parametrize("n", [1, 3], ids=["each alone", "of one message"])
def test_a_callback_that_fails_harms_nothing(n: int) -> None:
    """The next difference is told all the same, and closing ends the thread."""
    told: list[int] = []

    def tell(*_: Any) -> None:
        told.append(1)
        raise RuntimeError

    pdp = CandidatePDP(StaticPDP(True), StaticPDP(False, name="next"), on_difference=tell)
    for _ in range(3 // n):
        assert all(d.permit for d in Evaluator(pdp).evaluate([REQUEST.to_json()] * n))
    drained(pdp)
    assert len(told) == 3
    pdp.close()


def test_a_slow_candidate_sees_a_sample() -> None:
    """Traffic never waits for it: what it can not take is counted as skipped."""
    hold = threading.Event()
    pdp = CandidatePDP(StaticPDP(True), StaticPDP(lambda _: hold.wait(60), name="slow"), deadline=60)
    for _ in range(400):
        assert Evaluator(pdp).evaluate([REQUEST.to_json()])[0].permit
    assert pdp.counts["skipped"] >= 400 - 256 - 2
    hold.set()
    pdp.close()


def test_close_drops_what_waits() -> None:
    """It waits for no candidate, may be called from the callback, and no difference is told or counted afterwards."""
    hold, asked, told = threading.Event(), threading.Event(), []

    def slow(_: object) -> bool:
        asked.set()
        return hold.wait(30) and False

    def tell(*_: object) -> None:
        told.append(1)
        pdp.close()

    pdp = CandidatePDP(StaticPDP(True), StaticPDP(slow, name="slow"), on_difference=tell, deadline=60)
    Evaluator(pdp).evaluate([REQUEST.to_json()])
    assert asked.wait(60)
    Evaluator(pdp).evaluate([REQUEST.to_json()] * 3)
    hold.set()
    drained(pdp)
    assert (pdp.counts, told) == ({"permit>deny": 1}, [1])
    assert Evaluator(pdp).evaluate([REQUEST.to_json()])[0].permit and not pdp._comparing


def test_one_that_is_forgotten_ends_its_thread() -> None:
    before = threading.active_count()
    pdp = CandidatePDP(StaticPDP(True), StaticPDP(False, name="next"))
    Evaluator(pdp).evaluate([REQUEST.to_json()])
    del pdp
    until(lambda: threading.active_count() <= before)


class Switch:
    """A PDP that a test breaks and mends."""

    name, revision = "switch", "r"

    def __init__(self) -> None:
        self.answer: object = {"decision": True}
        self.asked = 0

    def evaluate(self, body: bytes) -> object:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def aevaluate(self, body: bytes) -> object:
        return self.evaluate(body)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fault", [RuntimeError(), TimeoutError(), {"decision": "true"}, None], ids=repr)
def test_the_breaker_opens_denies_and_recovers(fault: object, asynchronous: bool) -> None:
    """After three failures in a row nothing is asked; one probe after the pause decides what follows."""
    clock, real = FrozenClock(), Switch()
    breaker = CircuitBreaker(real, failures=3, reset_after=5, clock=clock)
    evaluator = Evaluator(breaker)

    def once() -> Decision:
        if asynchronous:
            return asyncio.run(evaluator.aevaluate([REQUEST.to_json()]))[0]
        return evaluator.evaluate([REQUEST.to_json()])[0]

    assert once().permit
    real.answer = fault
    for _ in range(3):
        assert breaker.state == "closed" and once().failure == "pdp"
    assert breaker.state == "open"
    asked = real.asked
    real.answer = {"decision": True}  # even now that it would permit
    for _ in range(10):
        decision = once()
        assert (decision.outcome, decision.reason, decision.failure) == ("deny", Code.PDP_CIRCUIT_OPEN, "pdp")
    assert real.asked == asked
    clock.tick(5)
    assert breaker.state == "half-open"
    real.answer = fault
    assert once().reason != Code.PDP_CIRCUIT_OPEN  # the probe
    assert breaker.state == "open" and once().reason == Code.PDP_CIRCUIT_OPEN
    clock.tick(5)
    real.answer = {"decision": True}
    assert once().permit and breaker.state == "closed"


@pytest.mark.parametrize("answers", [({"decision": False},), (RuntimeError(), {"decision": True})], ids=["denials", "not in a row"])
def test_a_breaker_stays_closed(answers: tuple[object, ...]) -> None:
    """A policy that says no is in good health, and a success in between starts the count anew."""
    real = Switch()
    breaker = CircuitBreaker(real, failures=2)
    for real.answer in answers * 5:
        (decision,) = Evaluator(breaker).evaluate([REQUEST.to_json()])
        assert (decision.failure is None) is isinstance(real.answer, dict)
    assert breaker.state == "closed"


def test_only_one_probe_at_a_time() -> None:
    """While the probe is under way the others are denied."""
    clock, hold, entered = FrozenClock(), threading.Event(), threading.Event()
    real = Switch()
    real.answer = RuntimeError()
    breaker = CircuitBreaker(real, failures=1, reset_after=1, clock=clock)
    Evaluator(breaker).evaluate([REQUEST.to_json()])
    clock.tick(1)

    def probe(body: bytes) -> object:
        entered.set()
        hold.wait(60)
        return {"decision": True}

    real.evaluate = probe  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: Evaluator(breaker, deadline=60).evaluate([REQUEST.to_json()]))
    thread.start()
    assert entered.wait(60)
    assert Evaluator(breaker).evaluate([REQUEST.to_json()])[0].reason == Code.PDP_CIRCUIT_OPEN
    hold.set()
    thread.join(60)
    assert breaker.state == "closed"


def test_a_probe_that_is_cancelled_leaves_the_way_free() -> None:
    """The caller went: that says nothing about the PDP, and the next one may try."""
    clock, real = FrozenClock(), Switch()
    real.answer = RuntimeError()
    breaker = CircuitBreaker(real, failures=1, reset_after=1, clock=clock)
    Evaluator(breaker).evaluate([REQUEST.to_json()])
    clock.tick(1)

    async def cancelled() -> None:
        async def hang(body: bytes) -> object:
            await asyncio.Event().wait()
            return None

        real.aevaluate = hang  # type: ignore[method-assign]
        task = asyncio.ensure_future(breaker.aevaluate(REQUEST.to_json()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    real.answer = {"decision": True}
    assert Evaluator(breaker).evaluate([REQUEST.to_json()])[0].permit


@pytest.mark.parametrize("arguments", [{"failures": 0}, {"reset_after": 0}, {"reset_after": float("nan")}])
def test_a_breaker_has_limits(arguments: dict[str, float]) -> None:
    """One that never opens, or never waits, can not be made."""
    with pytest.raises(ConfigError):
        CircuitBreaker(StaticPDP(True), **arguments)  # type: ignore[arg-type]
