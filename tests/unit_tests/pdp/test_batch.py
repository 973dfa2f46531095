"""The calls of a message in one question: each keeps its own answer, and nothing else permits."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from langchain_runtime_authz.errors import Code, PDPError
from langchain_runtime_authz.evaluation import MAX_REQUEST_BYTES, Decision
from langchain_runtime_authz.pdp.base import BatchPDP, Evaluator, ObserveOnly
from langchain_runtime_authz.pdp.response import parse_answer
from langchain_runtime_authz.testing.example_request import example_request

REQUEST = example_request()
LARGE = example_request({"context.task.text": "x" * MAX_REQUEST_BYTES})
PERMIT = {"decision": True}


class Batch:
    """Answers a batch as a test says; keeps what it was asked."""

    name, revision = "batch", "r1"

    def __init__(self, answers: object) -> None:
        self.answers = answers
        self.asked: list[int] = []

    def evaluate(self, body: bytes) -> object:
        self.asked.append(1)
        return PERMIT

    async def aevaluate(self, body: bytes) -> object:
        return self.evaluate(body)

    def evaluate_batch(self, bodies: Sequence[bytes]) -> Any:
        self.asked.append(len(bodies))
        if isinstance(self.answers, BaseException):
            raise self.answers
        return self.answers

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> Any:
        return self.evaluate_batch(bodies)


def decide(pdp: Any, requests: Sequence[Any] = (REQUEST,), **options: Any) -> list[Decision]:
    """Decisions, the same by both entry points."""
    evaluator = Evaluator(pdp, **options)
    given = evaluator.evaluate([r.to_json() for r in requests])
    other = asyncio.run(evaluator.aevaluate([r.to_json() for r in requests]))
    assert [replace(d, decision_id="") for d in given] == [replace(d, decision_id="") for d in other]
    assert len({d.decision_id for d in given}) == len(requests)
    return given


def test_one_question_and_each_its_answer() -> None:
    """Documents, texts, decisions and exceptions, in order; a failure denies its own request alone."""
    decision = parse_answer(PERMIT, "r9")
    answers = [PERMIT, b'{"decision": false}', decision, PDPError(Code.PDP_STATUS), TimeoutError(), OSError(), {"decision": 1}]
    pdp = Batch(answers)
    assert isinstance(pdp, BatchPDP)
    given = decide(pdp, [REQUEST] * 7)
    assert [d.reason or d.outcome for d in given] == [
        "permit", "no_permit", "permit", Code.PDP_STATUS, Code.PDP_TIMEOUT, Code.PDP_ERROR, Code.PDP_MALFORMED,
    ]  # fmt: skip
    assert given[2].policy_revision == "r9" and pdp.asked == [7, 7]


@pytest.mark.parametrize("answers", [[], [PERMIT], [PERMIT] * 3, None, True, "permit", PERMIT, {0: PERMIT, 1: PERMIT}], ids=repr)
def test_another_number_of_answers_denies_all(answers: object) -> None:
    """Which answer belongs to which request can not be guessed."""
    assert [d.reasons for d in decide(Batch(answers), [REQUEST] * 2)] == [(Code.PDP_MALFORMED,)] * 2


@pytest.mark.parametrize(("error", "code"), [
    (PDPError(Code.PDP_CIRCUIT_OPEN), Code.PDP_CIRCUIT_OPEN), (TimeoutError(), Code.PDP_TIMEOUT),
    (RuntimeError("secret"), Code.PDP_ERROR), (MemoryError(), Code.PDP_ERROR),
], ids=repr)
def test_what_is_raised_denies_all(error: BaseException, code: Code, caplog: pytest.LogCaptureFixture) -> None:
    """With the code of it, and without its text."""
    given = decide(Batch(error), [REQUEST] * 2)
    assert [(d.reasons, d.failure) for d in given] == [((code,), "pdp")] * 2
    assert "secret" not in caplog.text


def test_what_can_not_be_asked_is_left_out() -> None:
    """It is denied in its place, and the others keep theirs."""
    pdp = Batch([PERMIT, {"decision": False}])
    given = decide(pdp, [LARGE, REQUEST, LARGE, REQUEST])
    assert [d.reason or d.outcome for d in given] == [Code.REQUEST_TOO_LARGE, "permit", Code.REQUEST_TOO_LARGE, "no_permit"]
    assert pdp.asked == [2, 2]
    nobody = Batch([])
    for requests in ([LARGE], [LARGE, LARGE]):
        assert {(d.outcome, d.failure) for d in decide(nobody, requests)} == {("deny", "mapping")}
    assert nobody.asked == []


def test_a_single_request_is_asked_alone() -> None:
    pdp = Batch(RuntimeError())
    assert decide(pdp, [REQUEST])[0].permit and decide(pdp, []) == []


def test_a_late_batch_is_thrown_away() -> None:
    """All of it, whether it blocks or hangs."""

    class Late(Batch):
        def evaluate_batch(self, bodies: Any) -> Any:
            time.sleep(0.05)
            return [PERMIT] * len(bodies)

        async def aevaluate_batch(self, bodies: Any) -> Any:
            await asyncio.Event().wait()

    given = decide(Late([]), [REQUEST] * 2, deadline=0.02)
    assert [d.reasons for d in given] == [(Code.PDP_TIMEOUT,)] * 2


def test_observe_only_hands_batches_on() -> None:
    """One question to the real PDP; every outcome observed, none enforced."""
    real = Batch([PERMIT, {"decision": False}, PDPError(Code.PDP_STATUS)])
    given = decide(ObserveOnly(real), [REQUEST] * 3)
    assert [(d.outcome, d.reasons) for d in given] == [
        ("permit", ()), ("permit", ("observed:deny", "no_permit")), ("permit", ("observed:deny", "pdp_status")),
    ]
    assert real.asked == [3, 3]
