"""`--json`: what a command says, for programs; the exit code stays the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli import app
from langchain_runtime_authz.credential import keyring
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.ledger.schema import SCHEMA
from langchain_runtime_authz.testing import StaticPDP
from tests.cli import cli
from tests.unit_tests.cli.test_approvals import Desk
from tests.unit_tests.cli.test_cli import commands

GRAPH = """
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

@tool
def look(place: str) -> str:
    "Look."
    return place

print("a module may print")
graph = StateGraph(MessagesState).add_node("tools", ToolNode([look])).add_edge(START, "tools").compile()
"""
MANDATE = {"steps": [{"id": "a", "tool": "look", "args": {"place": "here"}}]}
WITHOUT = {
    "demo": "a show", "mandate schema": "the schema is JSON",
    "policy schema": "the schema is JSON",
}


def test_each_command_has_the_option() -> None:
    """One flag, or a reason in `WITHOUT`."""
    without = [name for name, command in commands(get_command(app)) if not any("--json" in p.opts and p.is_flag for p in command.params)]
    assert sorted(without) == sorted(WITHOUT)


def _made(path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fill a new directory with what commands work on, go there, and return the command's words."""
    path.mkdir()
    monkeypatch.chdir(path)
    Path("a_graph.py").write_text(GRAPH)
    Path("mandate.json").write_text(json.dumps(MANDATE))
    Path("profiles.yaml").write_text("tools:\n  look: reads\n")
    Path("engaged").touch()
    Path("desk").mkdir()
    authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=SqliteLedger("ledger.db"), audit=FileSink("audit.jsonl", content=True))
    with authz.session(subject="alice", thread="t") as session:
        session.decide("look", {"place": "here"})
    authz.ledger.close()  # type: ignore[attr-defined]
    for name, outcome in (("project", "deny"), ("mended", "permit")):
        Path(name).mkdir()
        Path(name, "policy.yaml").write_text("revision: 1\n")
        Path(name, "cases.yaml").write_text(f"cases:\n  - name: books\n    expect: {outcome}\n")
    if "ASK" in command:
        command = command.replace("ASK", Desk(path / "desk").ask_id)
    if "DOUBT" in command:
        profiles = {"pay": ToolProfile(effect="pay", sink="external")}
        with SqliteLedger("doubt.db") as ledger:
            with RuntimeAuthz(pdp=StaticPDP(True), ledger=ledger, profiles=profiles).session(subject="alice") as session:
                session.decide("pay", {})
            (one,) = ledger.doubts("default")
        command = command.replace("DOUBT", one.row.key)
    if " keys" in command:
        ring = keyring.KeyDirectory.create("keys")
        command = command.replace("KID", next(k.kid for k in ring.all_keys() if k.state == "active"))
        document = json.loads(Path("keys", "ring.json").read_text())
        for key in document["keys"]:
            key["since"] -= 2 * keyring.CACHE_AGE
        Path("keys", "ring.json").write_text(json.dumps(document))
    return command.split()


ANSWER = "desk/ledger.db ASK --as bob --key desk/bob.pem --approvers desk/approvers.json"


@pytest.mark.parametrize(("command", "code", "said"), [
    (f"approvals approve {ANSWER}", 0, {"verdict": "approve", "approver": "user:bob", "missing": 0}),
    (f"approvals deny {ANSWER}", 0, {"verdict": "deny", "approver": "user:bob"}),
    ("audit pack --audit audit.jsonl -o pack.zip", 0, {"records": 4, "other": ["static"], "wrote": "pack.zip"}),
    ("audit prune --audit audit.jsonl --older-than 1", 0, {"removed": []}),
    ("audit verify audit.jsonl", 0, {"ok": True, "records": 4}),
    ("calls resolve doubt.db DOUBT --happened --by user:carol --reason seen", 0, {"tool": "pay", "state": "done"}),
    ("init a_graph.py:graph --yes", 0, {"wrote": "authz.yaml", "added": [{"tool": "look", "effect": "write", "expect": "ask"}], "kept": []}),
    ("keys generate new", 0, {"wrote": "new"}),
    ("keys list keys", 0, {}),
    ("keys rotate keys", 0, {}),
    ("keys compromise keys KID", 0, {"withdrawn": "KID"}),
    ("kill engage --file kill", 0, {"engaged": True}),
    ("kill release --file engaged", 0, {"released": True}),
    ("kill release --file kill", 0, {"released": False}),
    ("kill status --file engaged", 1, {"engaged": True, "reason": ""}),
    ("learn audit.jsonl --profiles new.yaml", 0, {"called": {"look": {"permit": 1, "outside": 0}}, "drafts": ["look"]}),
    ("ledger clock ledger.db --yes", 0, {"leases": 0}),
    ("ledger downgrade ledger.db --to 1 --yes --forget-doubts", 0, {"schema": 1}),
    ("ledger migrate new.db", 0, {"schema": SCHEMA}),
    ("ledger status ledger.db", 0, {"result": "usable"}),
    ("ledger prune ledger.db --older-than 90d", 0, {"threads": 0, "commits": 0, "in_doubt": 0}),
    ("mandate check mandate.json --profiles profiles.yaml", 0, {"steps": 1, "findings": []}),
    ("mandate check mandate.json --profiles langchain", 1, {"steps": 1}),
    ("policy build mended -o policy.tar.gz", 0, {"wrote": "policy.tar.gz", "signed": "no; give --key"}),
    ("policy build project -o policy.tar.gz", 1, {"wrote": None}),
    ("policy check project", 0, {"findings": []}),
    ("policy init started", 0, {"wrote": "started"}),
    ("policy test project", 1, {"failed": 1, "opa": None}),
    ("policy try request.json", 0, {"outcome": "permit", "resource": "book_invoice", "reasons": []}),
    ("profile check profiles.yaml", 0, {}),
    ("profile suggest a_graph.py:graph", 0, {"drafts": ["look"]}),
    ("reinstate ledger.db t --graph session --agent session/b", 0, {"event": "reinstated", "thread": "t", "agent": ["session", "b"]}),
    ("report t -o run.html", 0, {"wrote": "run.html", "steps": 3}),
    ("revoke ledger.db t --graph session", 0, {"event": "revoked", "graph": "session", "thread": "t", "agent": []}),
])
def test_a_command_prints_one_document(
    command: str, code: int, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For programs, and another text for people. No private key is in it."""
    words = _made(tmp_path / "json", command, monkeypatch)
    result = cli(*words, "--json")
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    assert {name: document[name] for name in said} == {name: words[-1] if value == "KID" else value for name, value in said.items()}
    assert "PRIVATE" not in result.output
    plain = cli(*_made(tmp_path / "plain", command, monkeypatch))
    assert plain.exit_code == code, plain.output
    assert not plain.stdout.startswith("{")


@pytest.mark.parametrize("command", ["init a_graph.py:graph", "ledger clock ledger.db", "ledger downgrade ledger.db --to 1 --forget-doubts"])
def test_nobody_is_asked(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that would ask names the option that answers."""
    monkeypatch.setattr("langchain_runtime_authz.cli.init._interactive", lambda: True)
    refused = cli(*_made(tmp_path / "json", command, monkeypatch), "--json", input="y\n")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "`--json` asks nothing; give `--yes`" in refused.stderr
