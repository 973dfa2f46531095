"""LangGraph's own Agent Server, in memory and on loopback: what its double texting does to a run in flight.

The server is the real one (`langgraph-api` with `langgraph-runtime-inmem`), with its own queue, threads and
checkpointer. A second request comes while the model of the first one thinks, in each of the server's four
strategies (`multitask_strategy`), and a run is cancelled and rolled back. The subject is whom the server's own
authentication found.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.errors import ConflictError

from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.ledger.base import Query, Scope
from langchain_runtime_authz.ledger.sqlite import SqliteLedger

from ..threads import until
from .services import answers, free_port

ROOT = Path(__file__).parents[2]
PAY = {"messages": [{"role": "user", "content": "Pay the bill"}]}
STOP = {"messages": [{"role": "user", "content": "STOP, pay nobody"}]}


class Server:
    """The server, and what its graphs wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        env = {
            **os.environ, "LRA_FOLDER": str(folder), "PYTHONPATH": str(ROOT), "LANGSMITH_TRACING": "false",
            "LANGGRAPH_NO_VERSION_CHECK": "true",
        }
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration_tests.agent_server", str(self.port)],
            cwd=folder, env=env, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.client = get_sync_client(url=f"http://127.0.0.1:{self.port}", headers={"authorization": "Bearer alice"})
        self.wait(self._up)

    def _up(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return answers(f"http://127.0.0.1:{self.port}/ok")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def wait(self, what: Callable[[], Any], seconds: float = 90) -> Any:
        return until(what, seconds, lambda: (self.folder / "log").read_text()[-4000:])

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What the graphs wrote down under a name."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Scene:
    """One thread of one graph, whose model thinks until it is let go."""

    def __init__(self, server: Server, graph: str) -> None:
        self.server, self.graph, self.runs = server, graph, server.client.runs
        for name in ("thinking", "go", "bank", "decisions"):
            (server.folder / name).unlink(missing_ok=True)
        self.thread = server.client.threads.create()["thread_id"]

    def ask(self, given: Any, **options: Any) -> str:
        """A run in the background; its id."""
        return str(self.runs.create(self.thread, self.graph, input=given, **options)["run_id"])

    def thinks(self) -> None:
        self.server.wait((self.server.folder / "thinking").exists)

    def go(self) -> None:
        """The model answers."""
        (self.server.folder / "go").touch()

    def over(self) -> None:
        """Every run of the thread has ended, and so has the thread in which the first one worked."""
        busy = ("pending", "running")
        self.server.wait(lambda: not [r for r in self.runs.list(self.thread) if r["status"] in busy])
        self.server.wait(lambda: not (self.server.folder / "thinking").exists())
        time.sleep(0.3)  # the work of a cancelled run goes on in its thread

    @property
    def paid(self) -> list[dict[str, Any]]:
        return self.server.lines("bank")

    @property
    def said(self) -> list[str]:
        state = self.server.client.threads.get_state(self.thread)
        values: Any = state["values"] or {"messages": []}
        return [m["content"] for m in values["messages"]]

    def leases(self, epoch: int) -> set[str]:
        return {d["jti"] for d in self.server.lines("decisions") if d["epoch"] == epoch}

    def status(self, jti: str) -> str:
        with SqliteLedger(self.server.folder / "ledger.sqlite") as ledger:
            return str(ledger.status("default", jti))

    @property
    def epoch(self) -> int:
        with SqliteLedger(self.server.folder / "ledger.sqlite") as ledger:
            return int(ledger.load(Scope("default", LocalIssuer().issuer, self.graph, self.thread), Query()).epoch)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


def texted(server: Server, graph: str, strategy: str, **options: Any) -> Scene:
    """`STOP` comes while the model thinks of the payment."""
    scene = Scene(server, graph)
    scene.ask(PAY)
    scene.thinks()
    scene.ask(STOP, multitask_strategy=strategy, **options)
    if strategy in ("interrupt", "rollback"):  # the second run takes the first one's place
        server.wait(lambda: scene.said[-1:] == ["done"])
    scene.go()
    scene.over()
    return scene


@pytest.mark.parametrize("graph", ["loop", "desk"])
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_a_run_that_gave_way_pays_nothing(server: Server, strategy: str, graph: str) -> None:
    """Its model answers after the second run's correction is committed: the plan is void, the agent is done."""
    scene = texted(server, graph, strategy)
    assert scene.paid == [] and scene.epoch == 2
    assert {scene.status(jti) for jti in scene.leases(1)} <= {"stale", "ended"}
    assert scene.leases(2)
    assert not scene.leases(1) & scene.leases(2)
    assert scene.said[-2:] == ["STOP, pay nobody", "done"]
    assert ("Pay the bill" in scene.said) == (strategy == "interrupt")
    assert {d["subject"] for d in server.lines("decisions")} == {"user:alice"}


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
def test_unenforced_a_run_that_gave_way_pays(server: Server, strategy: str) -> None:
    """A server cancels the run, but no thread: its node carries out what was thought of before."""
    scene = texted(server, "raw_loop", strategy)
    assert [p["to"] for p in scene.paid] == ["bob"]


@pytest.mark.parametrize("graph", ["loop", "desk"])
def test_a_run_in_the_queue_counts_when_the_application_tells(server: Server, graph: str) -> None:
    """`enqueue` keeps a correction back until the run in flight is over; told at the request, it counts at once."""
    scene = texted(server, graph, "enqueue", metadata={"tell": graph})
    assert scene.paid == []
    assert scene.epoch == 3  # told, and said
    assert {scene.status(jti) for jti in scene.leases(1)} <= {"stale", "ended"}
    assert scene.said[-1] == "done" and scene.said.count("STOP, pay nobody") == 1


@pytest.mark.parametrize("graph", ["loop", "desk", "raw_loop", "raw_desk"])
def test_a_run_in_the_queue_is_no_correction_yet(server: Server, graph: str) -> None:
    """What the server keeps in its queue nobody has heard: the payment comes first, and only then the correction."""
    scene = texted(server, graph, "enqueue")
    assert [p["to"] for p in scene.paid] == ["bob"]
    assert scene.said[-1] == "done"
    if not graph.startswith("raw"):
        assert scene.paid[0]["epoch"] == 1 and scene.epoch == 2


def test_a_rejected_run_changes_nothing(server: Server) -> None:
    """The server answers 409; nothing is pinned, and the run in flight goes on."""
    scene = Scene(server, "desk")
    scene.ask(PAY)
    scene.thinks()
    with pytest.raises(ConflictError) as refused:
        scene.ask(STOP, multitask_strategy="reject")
    assert refused.value.status_code == 409
    scene.go()
    scene.over()
    assert [(p["to"], p["epoch"]) for p in scene.paid] == [("bob", 1)]
    assert scene.epoch == 1


@pytest.mark.parametrize("graph", ["loop", "desk"])
@pytest.mark.parametrize("action", ["interrupt", "rollback"])
def test_a_cancelled_run_pays_nothing(server: Server, action: str, graph: str) -> None:
    """By the time the cancellation is through, the lease is over, and the thread goes on by a new request only."""
    scene = Scene(server, graph)
    run = scene.ask(PAY)
    scene.thinks()
    server.client.runs.cancel(scene.thread, run, action=action, wait=True)
    assert {scene.status(jti) for jti in scene.leases(1)} == {"ended"}
    scene.go()
    scene.over()
    assert scene.paid == []
    scene.ask(STOP)
    scene.over()
    assert scene.paid == [] and scene.epoch == 2
    assert scene.said[-1] == "done" and ("Pay the bill" in scene.said) == (action == "interrupt")


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
def test_unenforced_a_cancelled_run_pays(server: Server, action: str) -> None:
    """The payment is made after the server said that the run is cancelled."""
    scene = Scene(server, "raw_loop")
    run = scene.ask(PAY)
    scene.thinks()
    server.client.runs.cancel(scene.thread, run, action=action, wait=True)
    assert scene.paid == []
    scene.go()
    server.wait(lambda: scene.paid)
    assert [p["to"] for p in scene.paid] == ["bob"]


def _edited(server: Server, graph: str) -> Scene:
    """A plan that waits, edited through the server, which then goes on."""
    scene = Scene(server, graph)
    scene.go()
    scene.ask(PAY, interrupt_before=["tools"])
    scene.over()
    assert scene.paid == []
    state: Any = server.client.threads.get_state(scene.thread)
    plan = state["values"]["messages"][-1]
    edited = {**plan, "tool_calls": [{**plan["tool_calls"][0], "args": {"to": "eve", "amount": 95}}]}
    server.client.threads.update_state(scene.thread, {"messages": [edited]}, as_node="agent")
    scene.ask(None)
    scene.over()
    return scene


def test_a_plan_edited_through_the_server_is_void(server: Server) -> None:
    """The server's `update_state` is nobody's plan: it opens the next epoch, and what is in it is not paid."""
    scene = _edited(server, "desk")
    assert "eve" not in str(scene.paid)
    assert [p for p in scene.paid if p["epoch"] == 1] == []
    assert scene.epoch == 2


def test_unenforced_an_edited_plan_is_paid(server: Server) -> None:
    assert [p["to"] for p in _edited(server, "raw_desk").paid] == ["eve"]
