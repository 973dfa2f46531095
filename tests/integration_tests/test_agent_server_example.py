"""`examples/agent_server` on `langgraph dev`, started as its README says: with its blocking-call detector, SQLite and audit."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client

from ..threads import until
from .services import answers, free_port

ROOT = Path(__file__).parents[2]
# The model thinks while the test holds it. Everything else is the example as it stands.
HOLDS = """
class Held(ScriptedChatModel):
    async def _agenerate(self, messages, *args, **kwargs):
        import asyncio
        while (DATA / "hold").exists():
            (DATA / "thinking").touch()
            await asyncio.sleep(0.02)
        return self._generate(messages)


authz ="""
APPROVE = {"type": "approve"}
EDIT = {"type": "edit", "edited_action": {"name": "send_money", "args": {"recipient": "DE99", "amount": 50.0}}}
REJECT = {"type": "reject"}


README = (ROOT / "examples/agent_server/README.md").read_text()


def say(words: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}]}


class Bank:
    """The server, and what was paid."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        shutil.copytree(ROOT / "examples/agent_server", folder / "app")
        code = folder / "app/bank.py"
        text = code.read_text()
        assert (text.count("\nauthz ="), text.count("(ScriptedChatModel(")) == (1, 1)
        code.write_text(text.replace("\nauthz =", HOLDS).replace("(ScriptedChatModel(", "(Held("))
        env = {**os.environ, "BANK_DATA": str(folder), "PYTHONPATH": str(ROOT), "LANGSMITH_TRACING": "false", "LANGGRAPH_NO_VERSION_CHECK": "true"}
        env["CRON_SCHEDULER_SLEEP_TIME"] = "1"
        self.log = folder / "log"
        (documented,) = re.findall(r"^langgraph dev.*", README, re.MULTILINE)
        command = [str(Path(sys.executable).parent / shlex.split(documented)[0]), *shlex.split(documented)[1:], "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, "--n-jobs-per-worker", "4"], cwd=folder / "app", env=env, stdout=log, stderr=log)
        self.wait(self._up)

    def _up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return answers(f"http://127.0.0.1:{self.port}/ok")

    def client(self, name: str = "alice") -> Any:
        return get_sync_client(url=f"http://127.0.0.1:{self.port}", headers={"authorization": f"Bearer {name}"})

    def wait(self, what: Callable[[], Any], seconds: float = 120) -> Any:
        return until(what, seconds, lambda: self.log.read_text()[-4000:])

    @property
    def paid(self) -> list[str]:
        book = self.folder / "paid.txt"
        return book.read_text().splitlines() if book.exists() else []

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def subjects(self, thread: str) -> set[str]:
        found = (r["request"]["subject"] for r in self.records if r.get("request") and r["scope"]["thread"] == thread)
        return {f"{s['type']}:{s['id']}" for s in found}


class Thread:
    """One thread, and what was paid since it began."""

    def __init__(self, bank: Bank, name: str = "alice") -> None:
        self.bank, self.client, self.before = bank, bank.client(name), len(bank.paid)
        self.id: str = self.client.threads.create()["thread_id"]

    def told(self, words: str, **options: Any) -> Any:
        return self.client.runs.wait(self.id, "bank", input=say(words), **options)

    def answered(self, decision: dict[str, Any]) -> Any:
        return self.client.runs.wait(self.id, "bank", command={"resume": {"decisions": [decision]}})

    def begin(self, words: str, **options: Any) -> str:
        return str(self.client.runs.create(self.id, "bank", input=say(words), **options)["run_id"])

    def over(self) -> list[str]:
        """Wait for every run; what was paid."""
        self.bank.wait(lambda: not [r for r in self.client.runs.list(self.id) if r["status"] in ("pending", "running")])
        time.sleep(0.3)  # a cancelled run's thread goes on for a moment
        return self.paid

    @property
    def paid(self) -> list[str]:
        return self.bank.paid[self.before :]

    @property
    def hold(self) -> Path:
        return self.bank.folder / "hold"

    def thinking(self, words: str) -> str:
        """A run whose model thinks until `hold` is removed."""
        (self.bank.folder / "thinking").unlink(missing_ok=True)
        self.hold.touch()
        run = self.begin(words)
        self.bank.wait((self.bank.folder / "thinking").exists)
        return run


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    running = Bank(tmp_path_factory.mktemp("bank"))
    yield running
    running.process.terminate()
    running.process.wait(20)


@pytest.fixture
def thread(bank: Bank) -> Thread:
    (bank.folder / "hold").unlink(missing_ok=True)
    return Thread(bank)


def test_the_documented_client_pays_what_it_approves(thread: Thread, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert code.count("http://127.0.0.1:2024") == 1
    exec(code.replace("2024", str(thread.bank.port)), {})
    assert "send_money" in capsys.readouterr().out and thread.paid == ["98.70 DE99"]


def test_told_is_paid_once(thread: Thread) -> None:
    assert thread.told("Pay 45 to DE21")["messages"][-1]["content"] == "Done." and thread.paid == ["45.00 DE21"]


@pytest.mark.parametrize(
    ("decision", "paid"), [(APPROVE, ["98.70 DE99"]), (EDIT, ["50.00 DE99"]), (REJECT, [])], ids=["resume", "edit", "reject"]
)
def test_a_bill_asks_and_the_answer_counts(thread: Thread, decision: dict[str, Any], paid: list[str]) -> None:
    asked = thread.told("See to the bill")
    assert asked["__interrupt__"][0]["value"]["action_requests"][0]["name"] == "send_money"
    assert thread.client.threads.get(thread.id)["status"] == "interrupted" and thread.paid == []
    thread.answered(decision)
    assert thread.paid == paid


@pytest.mark.parametrize("mode", ["values", "messages-tuple"])
def test_streams_are_whole(thread: Thread, mode: Any) -> None:
    events = [e.event for e in thread.client.runs.stream(thread.id, "bank", input=say("Pay 7 to DE21"), stream_mode=mode)]
    assert "error" not in events and thread.paid == ["7.00 DE21"]


@pytest.mark.parametrize("strategy", ["interrupt", "rollback", "enqueue"])
def test_a_second_text_stops_what_was_planned(thread: Thread, strategy: Any) -> None:
    """`enqueue` by the example's `create_run` handler, though the text waits in the queue."""
    thread.thinking("Pay 45 to DE21")
    thread.begin("Stop, pay nothing", multitask_strategy=strategy)
    thread.hold.unlink()
    assert thread.over() == []


def test_a_cancelled_run_pays_nothing_and_the_thread_goes_on(thread: Thread) -> None:
    run = thread.thinking("Pay 45 to DE21")
    thread.client.runs.cancel(thread.id, run)
    thread.hold.unlink()
    assert thread.over() == []
    thread.told("Pay 8 to DE21")
    assert thread.paid == ["8.00 DE21"]


def test_a_background_run_asks(thread: Thread) -> None:
    thread.begin("See to the bill")
    thread.over()
    assert thread.client.threads.get(thread.id)["interrupts"]
    thread.answered(APPROVE)
    assert thread.paid == ["98.70 DE99"]


def test_nobody_answers_for_another(bank: Bank, thread: Thread) -> None:
    """Bob does not find alice's thread, and pays on his own."""
    thread.told("See to the bill")
    bob = Thread(bank, "bob")
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        bob.client.runs.wait(thread.id, "bank", command={"resume": {"decisions": [APPROVE]}})
    bob.told("Pay 9 to DE21")
    assert bob.paid == ["9.00 DE21"]
    assert (bank.subjects(thread.id), bank.subjects(bob.id)) == ({"user:alice"}, {"user:bob"})


def test_a_spoofed_user_is_ignored_and_on_record(bank: Bank) -> None:
    bob = Thread(bank, "bob")
    bob.told("Pay 6 to DE21", config={"configurable": {"langgraph_auth_user": {"identity": "alice"}, "user_id": "alice"}})
    assert bank.subjects(bob.id) == {"user:bob"}
    assert [r for r in bank.records if r.get("event") == "identity_ignored" and r["scope"]["thread"] == bob.id]


def test_a_cron_acts_as_a_service_and_its_denial_is_in_the_log(bank: Bank) -> None:
    """Nobody typed its text, so it orders nothing; the log says so where an operator looks."""
    before = len(bank.paid)
    cron = bank.client().crons.create("bank", schedule="* * * * * */2", input=say("Pay 45 to DE21"))
    services = lambda: [r for r in bank.records if r.get("request") and r["request"]["subject"]["type"] == "service"]
    bank.wait(lambda: [r for r in services() if r.get("action") == "tools/call"])
    bank.client().crons.delete(cron["cron_id"])
    assert {r["request"]["subject"]["id"] for r in services()} == {"alice"}
    assert bank.paid[before:] == []
    assert bank.wait(lambda: "send_money" in bank.log.read_text())


def test_nothing_blocked_the_loop(bank: Bank) -> None:
    """The detector of `langgraph dev` raised nothing in all these scenes."""
    assert "Blocking call" not in bank.log.read_text()
