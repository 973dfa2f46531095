"""`--json`: what a command says, for programs; the exit code stays the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.cli import app
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP

GRAPH = """
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

@tool
def look(place: str) -> str:
    "Look."
    return place

graph = StateGraph(MessagesState).add_node("tools", ToolNode([look])).add_edge(START, "tools").compile()
"""
MANDATE = {"steps": [{"id": "a", "tool": "look", "args": {"place": "here"}}]}

@pytest.fixture(autouse=True)
def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_graph.py").write_text(GRAPH)
    Path("mandate.json").write_text(json.dumps(MANDATE))
    Path("profiles.yaml").write_text("tools:\n  look: reads\n")
    authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=SqliteLedger("ledger.db"), audit=FileSink("audit.jsonl", content=True))
    with authz.session(subject="alice", thread="t") as session:
        session.decide("look", {"place": "here"})
    authz.ledger.close()  # type: ignore[attr-defined]
    for name, outcome in (("project", "deny"), ("mended", "permit")):
        Path(name).mkdir()
        Path(name, "policy.yaml").write_text("revision: 1\n")
        Path(name, "cases.yaml").write_text(f"cases:\n  - name: books\n    expect: {outcome}\n")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("ledger prune ledger.db --older-than 90d", 0, {"threads": 0, "commits": 0}),
        ("mandate check mandate.json --profiles profiles.yaml", 0, {"steps": 1, "findings": []}),
        ("mandate check mandate.json --profiles langchain", 1, {"steps": 1}),
        ("learn audit.jsonl --profiles new.yaml", 0, {"called": {"look": {"permit": 1, "outside": 0}}, "drafts": ["look"]}),
        ("audit pack --log audit.jsonl -o pack.zip", 0, {"records": 4, "other": ["static"], "wrote": "pack.zip"}),
        ("profile suggest a_graph.py:graph", 0, {"drafts": ["look"]}),
        ("policy check project", 0, {"findings": []}),
        ("policy test project", 1, {"failed": 1, "opa": None}),
        ("policy build project -o policy.tar.gz", 1, {"wrote": None}),
        ("policy build mended -o policy.tar.gz", 0, {"wrote": "policy.tar.gz", "signed": "no; give --key"}),
        ("policy try request.json", 0, {"outcome": "permit", "resource": "book_invoice", "reasons": []}),
    ],
)
def test_a_command_prints_one_document(command: str, code: int, said: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--json"])
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    assert {name: document[name] for name in said} == said
    plain = CliRunner().invoke(app, [word.replace("pack.zip", "again.zip") for word in command.split()])
    assert plain.exit_code == code
    assert not plain.stdout.startswith("{")
