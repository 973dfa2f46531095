"""The contract of every PDP, as a test class to inherit from.

```python
class TestMyPDP(PDPContract):
    def make_pdp(self, permit):
        return MyPDP(policy=PERMIT_ALL if permit else DENY_ALL)
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import MAX_REQUEST_BYTES, Decision, EvaluationRequest
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.testing.example_request import example_request


class PDPContract:
    """Inherit from this class, name the subclass `Test…`, and override `make_pdp`."""

    def make_pdp(self, permit: bool) -> PDP:
        """Return a PDP that permits or denies `make_request()`. `close()` is optional."""
        raise NotImplementedError

    def make_request(self) -> EvaluationRequest:
        """Return the request to decide."""
        return example_request()

    @contextmanager
    def _evaluator(self, permit: bool) -> Iterator[Evaluator]:
        pdp = self.make_pdp(permit)
        try:
            yield Evaluator(pdp, deadline=10)
        finally:
            getattr(pdp, "close", int)()

    def test_it_is_a_pdp(self) -> None:
        """Check that the PDP has the protocol's members, a name, and a revision (a text)."""
        with self._evaluator(True) as evaluator:
            assert isinstance(evaluator.pdp, PDP)
            assert isinstance(evaluator.pdp.name, str)
            assert evaluator.pdp.name
            assert isinstance(evaluator.pdp.revision, str)

    def test_it_permits(self) -> None:
        """Check that the PDP's permit becomes a permit without a `failure`."""
        with self._evaluator(True) as evaluator:
            (decision,) = evaluator.evaluate([self.make_request().to_json()])
            assert (decision.outcome, decision.failure) == ("permit", None)

    def test_it_denies(self) -> None:
        """Check that the PDP's deny becomes a deny with a reason and without a `failure`."""
        with self._evaluator(False) as evaluator:
            (decision,) = evaluator.evaluate([self.make_request().to_json()])
            assert (decision.permit, decision.failure) == (False, None)
            assert decision.reason

    def test_sync_and_async_agree(self) -> None:
        """Check that `evaluate` and `aevaluate` agree, also in a second event loop."""
        for permit in (True, False):
            with self._evaluator(permit) as evaluator:
                expected = _comparable(evaluator.evaluate([self.make_request().to_json()]))
                for _ in range(2):
                    assert expected == _comparable(asyncio.run(evaluator.aevaluate([self.make_request().to_json()])))

    def test_it_answers_many_at_once(self) -> None:
        """Check that eight threads, and eight tasks, get the right decisions at once."""
        for permit in (True, False):
            with self._evaluator(permit) as evaluator:
                expected = _comparable(evaluator.evaluate([self.make_request().to_json()]))
                batch = [self.make_request().to_json()] * 8
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(evaluator.evaluate, [batch] * 8))
                assert expected * 64 == [d for decisions in answers for d in _comparable(decisions)]
                assert expected * 64 == _comparable(asyncio.run(_gather(evaluator, batch)))

    def test_the_evaluator_around_it_is_total(self) -> None:
        """Check that a too large request, or a closed PDP, raises no error."""
        with self._evaluator(True) as evaluator:
            request = self.make_request()
            context = request.context.model_copy(
                update={"task": request.context.task.model_copy(update={"text": "x" * MAX_REQUEST_BYTES})}
            )
            (large,) = evaluator.evaluate([request.model_copy(update={"context": context}).to_json()])
            assert (large.reason, large.failure) == (Code.REQUEST_TOO_LARGE, "mapping")
        (late,) = evaluator.evaluate([request.to_json()])
        assert isinstance(late, Decision)
        assert late.permit or late.reason


async def _gather(evaluator: Evaluator, batch: list[bytes]) -> list[Decision]:
    answers = await asyncio.gather(*(evaluator.aevaluate(batch) for _ in range(8)))
    return [decision for decisions in answers for decision in decisions]


def _comparable(decisions: list[Decision]) -> list[Decision]:
    return [replace(d, decision_id="", pdp_decision_id="") for d in decisions]
