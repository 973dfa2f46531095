"""The embedded engine across processes, and replaced while it is asked."""

import json
import multiprocessing
import os
import time

import pytest

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import example_request
from tests.unit_tests.pdp.test_wasm import opa_module

REQUEST = example_request()
DENIED = example_request({"context.lease.exp": 1})


def ask(pdp: WasmPDP, request=REQUEST) -> Decision:
    (decision,) = Evaluator(pdp, deadline=20).evaluate([request.to_json()])
    return decision


def in_child(work, *arguments: object, method: str = "fork") -> object:
    """What `work` gives in another process, within twenty seconds."""
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=work, args=(queue, *arguments))
    child.start()
    try:
        return queue.get(timeout=60)
    finally:
        child.join(20)
        if child.exitcode is None:
            child.kill()


def stops(queue, pdp: WasmPDP) -> None:
    """How long a runaway policy runs."""
    started = time.monotonic()
    decision = ask(pdp)
    queue.put((decision.reason, time.monotonic() - started < 20))


def compiles(queue, *_: object) -> None:
    """Two policies of its own."""
    made = WasmPDP(), WasmPDP(data={"effects": {"write": "deny"}})
    queue.put(tuple(ask(pdp).outcome for pdp in made))
    for pdp in made:
        pdp.close()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
def test_the_limit_holds_in_a_fork() -> None:
    """A runaway policy is stopped in the child too."""
    pdp = WasmPDP(wasm=opa_module(loop=True), entrypoint="a/b", timeout=1.0)
    assert in_child(stops, pdp) == (Code.PDP_TIMEOUT, True)
    pdp.close()


@needs_fork
def test_a_fork_can_compile() -> None:
    """Also where the parent compiled before."""
    pdp = WasmPDP()
    assert in_child(compiles) == ("permit", "deny")
    pdp.close()


def test_the_calls_of_a_message_are_one_evaluation() -> None:
    """In order, each its own; too much at once, or a policy without the entrypoint, goes one by one."""
    pdp = WasmPDP(pool_size=1)
    mixed = [r.to_json() for r in (REQUEST, DENIED, REQUEST)]
    expected = ["permit", "lease_invalid", "permit"]
    assert [d.reason or d.outcome for d in Evaluator(pdp).evaluate(mixed)] == expected
    large = example_request({"context.task.text": "x" * 250_000})
    assert [d.outcome for d in Evaluator(pdp, deadline=20).evaluate([large.to_json()] * 6)] == ["permit"] * 6
    bodies = [json.dumps({"not": "a request"}).encode(), REQUEST.to_json()]
    assert [d.permit for d in pdp.evaluate_batch(bodies)] == [False, True]  # type: ignore[attr-defined]
    pdp.close()
    foreign = WasmPDP(wasm=opa_module(), entrypoint="a/b", pool_size=1)
    assert [d.permit for d in Evaluator(foreign).evaluate([REQUEST.to_json()] * 3)] == [True] * 3
    foreign.close()
    looping = WasmPDP(wasm=opa_module(loop=True), entrypoint="a/b", pool_size=1, timeout=0.5)
    assert {d.reason for d in Evaluator(looping).evaluate([REQUEST.to_json()] * 3)} == {Code.PDP_TIMEOUT}
    looping.close()
