"""`runtime-authz calls` on a ledger in which a process died during a payment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.cli import app
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP


def cli(*args: str) -> Any:
    return CliRunner().invoke(app, ["calls", *args], env={"COLUMNS": "120"})


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = str(tmp_path / "ledger.db")
    profiles = {"pay": ToolProfile(effect="pay", sink="external")}
    authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=SqliteLedger(path), profiles=profiles)
    with authz.session(subject="alice", task="pay", thread="t\x1b[2J") as session:
        assert session.decide("pay", {"n": 1}).permit
    return path


def test_a_call_in_doubt_is_listed_shown_and_resolved(file: str, tmp_path: Path) -> None:
    """The audit file says who resolved it and why; nobody can twice."""
    (told,) = json.loads(cli("list", file, "--json").stdout)
    key, log = told["call"], tmp_path / "audit.jsonl"
    known = (told["tool"], told["subject"], told["state"], told["resolved"])
    assert known == ("pay", "user:alice", "unknown", None)
    text = cli("list", file).stdout
    assert key in text and "1 in doubt" in text and "\x1b" not in text
    assert "\x1b" not in cli("show", file, key).stdout
    args = ("resolve", file, key, "--did-not-happen", "--by", "user:carol", "--reason", "asked", "--audit", str(log))
    assert cli(*args).exit_code == 0
    assert cli("list", file).stdout == "0 in doubt\n"
    shown = json.loads(cli("show", file, key, "--json").stdout)
    assert (shown["state"], shown["resolved"]["author"], shown["resolved"]["reason"]) == ("void", "user:carol", "asked")
    record = json.loads(log.read_text().splitlines()[-1])
    assert (record["event"], record["detail"]["author"], record["detail"]["happened"]) == ("resolved", "user:carol", False)
    again = cli(*args)
    assert again.exit_code == 2
    assert again.stderr.startswith("error: not_in_doubt:")


@pytest.mark.parametrize("args", [("show", "no"), ("resolve", "no", "--happened", "--by", "user:c", "--reason", "r")])
def test_a_mistyped_call_is_refused(file: str, args: tuple[str, ...]) -> None:
    """In one line, before anything is written."""
    done = cli(args[0], file, *args[1:])
    assert done.exit_code == 2
    assert done.stderr.startswith("error:") and done.stderr.count("\n") == 1
