"""A PDP that misbehaves in every way: no tool runs, every denial is in time and says which, nothing leaks."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing.example_request import example_request
from tests.integration_tests.fault_server import FAULTS, FaultServer, whole
from tests.integration_tests.faulted_graph import run_graph
from tests.integration_tests.services import Authority, free_port, our_threads

CLIENTS = {"opa": OpaPDP, "authzen": AuthzenPDP}
TIMEOUT = 0.4  # for servers that are late; one that answers at once has its own fault's code however busy the machine
PATIENT = 10.0
LATE = 5.0  # what a busy machine adds; without a deadline the late servers would keep a call for longer


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_tool_runs_and_the_denial_says_why(server: FaultServer, fault: str, client: str, asynchronous: bool) -> None:
    """For one call (one decision) and for two (a batch), in time, with the fault's own code."""
    before = our_threads()
    _, code, other = FAULTS[fault]
    expected = other if client == "authzen" and other else code
    followed = server.asked["/permits"]
    timeout = TIMEOUT if expected == "pdp_timeout" else PATIENT
    for calls in (1, 2):
        pdp = CLIENTS[client](f"{server.url}/{fault}", timeout=timeout)
        codes, ran, answers, seconds = run_graph(pdp, calls, asynchronous=asynchronous)
        pdp.close()
        assert codes == [expected] * calls and ran == []
        assert answers == ["error"] * calls and seconds < timeout + LATE
    assert server.asked["/permits"] == followed  # no redirect was followed
    assert server.closed() and our_threads() <= before


@pytest.mark.parametrize("client", CLIENTS)
def test_the_same_server_in_good_health_permits(server: FaultServer, client: str) -> None:
    """The twin: without a fault the tools run."""
    pdp = CLIENTS[client](f"{server.url}/healthy", timeout=5)
    for asynchronous in (False, True):
        codes, ran, statuses, _ = run_graph(pdp, 2, asynchronous=asynchronous)
        assert (codes, sorted(ran), statuses) == ([], [0, 1], ["success"] * 2)  # a pool's threads start in any order
    pdp.close()
    assert server.closed()


@pytest.mark.parametrize("client", CLIENTS)
def test_closing_under_a_question_denies_it(server: FaultServer, client: str) -> None:
    """Nobody cancelled those who ask: they get a deny and no `CancelledError`."""
    for asynchronous in (False, True):
        pdp = CLIENTS[client](f"{server.url}/hangs", timeout=30)
        evaluator, before = Evaluator(pdp, deadline=30), sum(server.asked.values())
        with ThreadPoolExecutor(1) as threads:
            asked = [example_request().to_json()]
            job = threads.submit(lambda: asyncio.run(evaluator.aevaluate(asked)) if asynchronous else evaluator.evaluate(asked))
            while sum(server.asked.values()) == before:
                time.sleep(0.01)
            pdp.close()
            assert [d.reason for d in job.result(60)] == ["pdp_error"]
    assert server.closed()


def codes_of(pdp: Any) -> set[str]:
    """The reasons of a decision, asked both ways."""
    evaluator = Evaluator(pdp, deadline=PATIENT)
    decisions = [*evaluator.evaluate([example_request().to_json()]), *asyncio.run(evaluator.aevaluate([example_request().to_json()]))]
    assert not any(d.permit for d in decisions)
    return {d.reason for d in decisions}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_down(client: str) -> None:
    """Refused at once; a host that swallows packets is left at the deadline."""
    pdp = CLIENTS[client](f"http://127.0.0.1:{free_port()}", timeout=PATIENT)
    assert codes_of(pdp) == {"pdp_unreachable"}
    pdp.close()
    with socket.socket() as full:  # listens and never accepts
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        pdp = CLIENTS[client](f"http://127.0.0.1:{full.getsockname()[1]}", timeout=TIMEOUT)
        started = time.monotonic()
        assert codes_of(pdp) == {"pdp_timeout"} and time.monotonic() - started < TIMEOUT + 2 * LATE
        pdp.close()
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_tls_is_verified(client: str, tmp_path: Path) -> None:
    """Another name, an unknown authority, and no TLS at all, each denies as `pdp_tls`."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    right, wrong = ours.issue("127.0.0.1"), ours.issue("pdp.example.com")
    for certificate, ca_file, expected in (
        (right, ours.file, None), (wrong, ours.file, "pdp_tls"), (right, other.file, "pdp_tls"), (right, None, "pdp_tls"),
    ):
        with FaultServer(certificate) as secure:
            pdp = CLIENTS[client](f"{secure.url}/healthy", ca_file=ca_file, timeout=5)
            if expected is None:
                assert Evaluator(pdp, deadline=PATIENT).evaluate([example_request().to_json()])[0].permit
            else:
                assert codes_of(pdp) == {expected}
                assert not secure.asked  # nothing was told to it
            pdp.close()
            assert secure.closed()
    with FaultServer() as plain:
        pdp = CLIENTS[client](plain.url.replace("http:", "https:"), ca_file=ours.file, timeout=PATIENT)
        assert codes_of(pdp) <= {"pdp_tls", "pdp_unreachable"}
        pdp.close()


class Surplus(FaultServer):
    """Denies, and sends a permit nobody asked for along with it, or a moment later."""

    delay = 0.0

    def answer(self, connection: socket.socket, path: str, body: bytes) -> None:
        no, yes = b'{"decision": false}', b'{"decision": true}'
        if "/v1/data/" in path:
            no, yes = b'{"result": ' + no + b"}", b'{"result": ' + yes + b"}"
        connection.sendall(whole(no) + (whole(yes) if not self.delay else b""))
        if self.delay:
            time.sleep(self.delay)
            connection.sendall(whole(yes))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_an_answer_nobody_asked_for_answers_nothing(client: str, delay: float) -> None:
    """A connection on which more came than was asked for is not used again."""
    with Surplus() as server:
        server.delay = delay
        pdp = CLIENTS[client](server.url, timeout=5)
        for _ in range(5):
            (decision,) = Evaluator(pdp, deadline=PATIENT).evaluate([example_request().to_json()])
            assert (decision.outcome, decision.failure) == ("deny", None)
            time.sleep(3 * delay)
        pdp.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_thousand_faults_leak_nothing(server: FaultServer, client: str) -> None:
    """Hanging and broken exchanges one after another, some cancelled by the caller: no socket, task or thread stays."""
    before = our_threads()
    pdp = CLIENTS[client](f"{server.url}/hangs", timeout=0.05)
    evaluator = Evaluator(pdp, deadline=0.03)

    async def many() -> None:
        for _ in range(20):
            decisions = await asyncio.gather(*(evaluator.aevaluate([example_request().to_json()]) for _ in range(25)))
            assert {d.reason for [d] in decisions} == {"pdp_timeout"}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(many())
    broken = CLIENTS[client](f"{server.url}/half-a-body", timeout=PATIENT)
    patient = Evaluator(broken, deadline=PATIENT)
    assert {patient.evaluate([example_request().to_json()])[0].reason for _ in range(500)} == {"pdp_protocol"}
    assert server.closed()  # before either is closed
    broken.close()
    pdp.close()
    assert our_threads() <= before
