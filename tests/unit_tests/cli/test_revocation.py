"""`runtime-authz revoke | reinstate` on a ledger that other processes use."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import AuthzDenied
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import PAID, PAY, authz_with, hand_written, human, pay_tool, replying
from tests.cli import WIDE, cli

THREAD = {"configurable": {"thread_id": "t"}}


wide = partial(cli, env=WIDE)


class House:
    """An application whose agent is about to pay, over a ledger in a file."""

    def __init__(self, file: str, name: str = "hand") -> None:
        self.ran: list[Any] = []
        self.authz = authz_with(StaticPDP(True), ledger=SqliteLedger(file))
        graph = hand_written(replying([PAY]), [pay_tool(self.ran)], checkpointer=InMemorySaver(), name=name)
        self.graph = self.authz.protect(graph)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.mark.parametrize("agent", [(), ("--agent", "hand")], ids=["thread", "agent"])
def test_a_run_in_flight_is_stopped_until_it_is_reinstated(file: str, agent: tuple[str, ...]) -> None:
    """From beside the process: its next step does not happen, and nothing is let in."""
    house = House(file)
    run = house.authz.run(subject="alice")
    stream = house.graph.stream(human(), run.config(THREAD))
    next(stream)
    assert wide("revoke", file, "t", "--graph", "hand", *agent).exit_code == 0
    with pytest.raises(AuthzHalt):
        list(stream)
    run.close()
    with house.authz.run(subject="alice"), pytest.raises(AuthzDenied) as denied:
        house.graph.invoke({"messages": [HumanMessage("again")]}, THREAD)
    assert denied.value.code == "revoked" and house.ran == []
    assert wide("reinstate", file, "t", "--graph", "hand", *agent).exit_code == 0
    with house.authz.run(subject="alice"):
        house.graph.invoke({"messages": [HumanMessage("once more")]}, THREAD)
    assert house.ran == [PAID]


@pytest.mark.parametrize(("agent", "path"), [("", []), ("a/b", ["a/b"]), ("a/b/payer", ["a/b", "payer"])])
def test_a_graph_may_have_a_slash_in_its_name(file: str, agent: str, path: list[str]) -> None:
    house = House(file, "a/b")
    with house.authz.run(subject="alice"):
        house.graph.invoke(human(), THREAD)
    told = wide("revoke", file, "t", "--graph", "a/b", "--agent", agent, "--json")
    assert (told.exit_code, json.loads(told.stdout)["agent"]) == (0, path)


def test_unenforced_the_run_in_flight_pays(file: str) -> None:
    """Without the command the next step is the payment."""
    house = House(file)
    run = house.authz.run(subject="alice")
    list(house.graph.stream(human(), run.config(THREAD)))
    run.close()
    assert house.ran == [PAID]


def test_what_an_operator_did_is_on_record(file: str, tmp_path: Path) -> None:
    """In the application's own chain, with where the ledger stood; where it can not be written, nothing is done."""
    house, log = House(file), tmp_path / "audit.jsonl"
    log.touch()
    with house.authz.run(subject="alice"):
        house.graph.invoke(human(), THREAD)
    where, said = (file, "t", "--graph", "hand"), ("--by", "user:carol", "--reason", "incident 42")
    assert wide("revoke", *where, "--audit", str(tmp_path)).exit_code == 2
    assert wide("revoke", *where, "--agent", "hand/payer", "--audit", str(log), *said).exit_code == 0
    assert wide("reinstate", *where, "--audit", str(log)).exit_code == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["event"], r["agent"]) for r in records] == [("revoked", ["hand", "payer"]), ("reinstated", [])]
    assert records[0]["detail"] == {"author": "user:carol", "reason": "incident 42"}
    assert 0 < records[0]["ledger"]["position"] <= records[1]["ledger"]["position"]  # a reinstatement is recorded first
    assert wide("audit", "verify", str(log)).exit_code == 0
    with house.authz.run(subject="alice"):  # neither is it revoked by the command that could not record it
        house.graph.invoke({"messages": [HumanMessage("again")]}, THREAD)


@pytest.mark.parametrize("command", ["revoke", "reinstate"])
def test_a_mistyped_name_is_no_success(file: str, command: str, tmp_path: Path) -> None:
    """A thread, graph, tenant, root agent or file that is not there: exit code 2, and no file is made. Another agent may come."""
    house = House(file)
    with house.authz.run(subject="alice"):
        house.graph.invoke(human(), THREAD)
    for wrong in (("other", "--graph", "hand"), ("t", "--graph", "hnad"), ("t", "--graph", "hand", "--tenant", "acme")):
        done = wide(command, file, *wrong)
        assert (done.exit_code, "knows no thread" in done.stderr) == (2, True)
    for path, code, said in (("payer", 2, "begins with the name of its graph: 'hand'"), ("hand/payr", 0, "note: this thread has had no agent 'payr'")):
        done = wide(command, file, "t", "--graph", "hand", "--agent", path)
        assert (done.exit_code, said in done.stderr) == (code, True)
    with pytest.raises(ConfigError):
        getattr(house.authz, command)("t", agent="hand")  # no sequence of names
    missing = tmp_path / "none.db"
    assert wide(command, str(missing), "t", "--graph", "hand").exit_code == 2 and not missing.exists()
