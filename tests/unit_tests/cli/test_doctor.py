"""`runtime-authz doctor`: each line is true, a failing line says what to do, and nothing is changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.cli import doctor as command
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.ledger import SqliteLedger
from tests.cli import cli

GRAPH = """
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
builder = StateGraph(MessagesState)
builder.add_node("model", lambda state: {})
builder.add_edge(START, "model")
graph, kept = builder.compile(), builder.compile(checkpointer=InMemorySaver())
"""


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RUNTIME_AUTHZ_KILL_SWITCH", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def lines(*args: str) -> tuple[int, dict[str, Any]]:
    result = cli("doctor", *args, "--json")
    document = json.loads(result.stdout)
    assert document["ok"] is (result.exit_code == 0)
    assert all(line["do"] for line in document["lines"] if line["state"] != "ok")
    return result.exit_code, {line["what"]: line for line in document["lines"]}


def test_a_bare_environment_is_usable() -> None:
    code, seen = lines()
    assert code == 0 and seen["engine"]["state"] == "ok"
    assert seen["dependencies"]["found"].startswith("langchain-core ")
    assert [what for what, line in seen.items() if line["state"] == "note"] == ["ledger", "audit log", "keys", "kill switch", "tracing"]
    assert list(Path().iterdir()) == []


def test_what_is_named_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteLedger("ledger.db").close()
    KeyDirectory.create("keys")
    Path("agent.py").write_text(GRAPH)
    monkeypatch.setenv("RUNTIME_AUTHZ_KILL_SWITCH", str(tmp_path / "kill"))
    code, seen = lines("agent.py:kept", "--ledger", "ledger.db", "--audit", "audit.jsonl", "--keys", "keys")
    assert code == 0
    assert {line["state"] for what, line in seen.items() if what != "tracing"} == {"ok"}
    assert not Path("audit.jsonl").exists()


def test_the_log_is_opened_and_held_against_the_ledger() -> None:
    """A log that goes on is usable; one of something else and a ledger that is older than its log are not."""
    authz = RuntimeAuthz(ledger=SqliteLedger("ledger.db"), audit="audit.jsonl")
    authz.session(subject="alice", thread="t").close()
    authz.ledger.close()  # type: ignore[attr-defined]
    assert lines("--ledger", "ledger.db", "--audit", "audit.jsonl")[1]["audit log"]["found"] == "audit.jsonl can be continued"
    before = Path("audit.jsonl").read_bytes()
    SqliteLedger("new.db").close()
    code, seen = lines("--ledger", "new.db", "--audit", "audit.jsonl")
    assert (code, seen["audit log"]["found"][:18]) == (1, "ledger_rolled_back")
    assert Path("audit.jsonl").read_bytes() == before
    Path("notes.txt").write_text("bread\nmilk\n")
    assert lines("--audit", "notes.txt")[1]["audit log"]["found"] == "notes.txt is not a decision log"


@pytest.mark.parametrize(("args", "what", "do"), [
    (("--ledger", "none.db"), "ledger", "runtime-authz ledger migrate none.db"),
    (("--ledger", "junk.db"), "ledger", "runtime-authz codes ledger_unavailable"),
    (("--audit", "none/audit.jsonl"), "audit log", "folder"),
    (("--audit", "."), "audit log", "folder"),
    (("--keys", "none"), "keys", "runtime-authz keys generate none"),
    (("none.py:graph",), "graph", "module:graph"),
])
def test_a_failing_line_says_what_to_do(args: tuple[str, ...], what: str, do: str) -> None:
    Path("junk.db").write_text("this is not a database, whatever its name says" * 40)
    code, seen = lines(*args)
    assert code == 1 and seen[what]["state"] == "fail"
    assert do in seen[what]["do"]


def test_a_graph_without_a_checkpointer_gets_a_hint() -> None:
    Path("agent.py").write_text(GRAPH)
    code, seen = lines("agent.py:graph")
    assert (code, seen["graph"]["state"]) == (0, "note") and "checkpointer" in seen["graph"]["do"]


def test_an_engaged_kill_switch_and_a_missing_exporter_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kill").touch()
    monkeypatch.setenv("RUNTIME_AUTHZ_KILL_SWITCH", str(tmp_path / "kill"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setattr(command, "EXPORTER", "opentelemetry.no_such")
    code, seen = lines()
    assert (code, seen["kill switch"]["state"], seen["tracing"]["state"]) == (1, "fail", "fail")


def test_a_dependency_outside_its_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command._version
    monkeypatch.setattr(command, "_version", lambda name: "0.1" if name == "langgraph" else found(name))
    code, seen = lines()
    assert code == 1 and "langgraph 0.1, wanted" in seen["dependencies"]["found"]
