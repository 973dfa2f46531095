"""`runtime-authz calls` on a ledger in which a process died during a payment."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import MemorySink
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP
from tests.cli import WIDE, cli

PROFILES = {"pay": ToolProfile(effect="pay", sink="external")}


calls = partial(cli, "calls", env=WIDE)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = str(tmp_path / "ledger.db")
    authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=SqliteLedger(path), profiles=PROFILES)
    with authz.session(subject="alice", task="pay", thread="t\x1b[2J") as session:
        assert session.decide("pay", {"n": 1}).permit
    return path


def test_a_call_in_doubt_is_listed_shown_and_resolved(file: str, tmp_path: Path) -> None:
    """The audit file says who resolved it and why; nobody can twice."""
    (told,) = json.loads(calls("list", file, "--json").stdout)
    key, log = told["call"], tmp_path / "audit.jsonl"
    known = (told["tool"], told["subject"], told["state"], told["resolved"])
    assert known == ("pay", "user:alice", "unknown", None)
    text = calls("list", file).stdout
    assert key in text and "1 in doubt" in text and "\x1b" not in text
    assert "\x1b" not in calls("show", file, key).stdout
    args = ("resolve", file, key, "--did-not-happen", "--by", "user:carol", "--reason", "asked", "--audit", str(log))
    mistyped = calls(*args)
    assert (mistyped.exit_code, log.exists(), calls("list", file).stdout.count("1 in doubt")) == (2, False, 1)
    log.touch()
    assert calls(*args).exit_code == 0 and calls("list", file).stdout == "0 in doubt\n"
    shown = json.loads(calls("show", file, key, "--json").stdout)
    assert (shown["state"], shown["resolved"]["author"], shown["resolved"]["reason"]) == ("void", "user:carol", "asked")
    record = json.loads(log.read_text().splitlines()[-1])
    assert (record["event"], record["detail"]["author"], record["detail"]["happened"]) == ("resolved", "user:carol", False)
    again = calls(*args)
    assert again.exit_code == 2 and again.stderr.startswith("error: not_in_doubt:")


def test_a_downgrade_does_not_forget_a_call_in_doubt_unasked(file: str) -> None:
    """An earlier version has no place for it, and the payment would be made again."""
    down = ("ledger", "downgrade", file, "--to", "2", "--yes")
    refused = cli(*down)
    assert (refused.exit_code, "calls resolve" in refused.stderr) == (2, True)
    assert calls("list", file).stdout.endswith("1 in doubt\n")
    assert cli(*down, "--forget-doubts").exit_code == 0


def test_a_call_of_any_tenant_is_listed_and_resolved(tmp_path: Path) -> None:
    """Newest first. Without a log, a note says that nothing is recorded."""
    path = str(tmp_path / "ledger.db")
    for tenant, at in (("acme", 1_000_000_000), ("other", 1_000_000_100), ("acme", 1_000_000_200)):
        ledger = SqliteLedger(path, clock=lambda at=at: float(at))
        authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=ledger, profiles=PROFILES, tenant=tenant)
        assert authz.session(subject=f"user-{at}").decide("pay", {"n": at}).permit
    listed = json.loads(calls("list", path, "--json").stdout)
    assert [one["tenant"] for one in listed] == ["acme", "acme", "other"]
    assert listed[0]["permitted_at"] > listed[1]["permitted_at"]
    assert len(json.loads(calls("list", path, "--tenant", "other", "--json").stdout)) == 1
    key = listed[2]["call"]
    assert calls("show", path, key, "--tenant", "acme").exit_code == 2
    done = calls("resolve", path, key, "--happened", "--by", "user:carol", "--reason", "seen")
    assert (done.exit_code, "no audit log records this" in done.stderr) == (0, True)
    assert json.loads(calls("show", path, key, "--json").stdout)["state"] == "done"


def test_a_resolution_goes_into_the_log_of_its_tenant(tmp_path: Path) -> None:
    """Another tenant's log is refused, and nothing is resolved. A log that several tenants share is taken."""
    path, logs = str(tmp_path / "ledger.db"), {name: tmp_path / f"{name}.jsonl" for name in ("acme", "other")}
    for tenant, log in logs.items():
        authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=SqliteLedger(path), profiles=PROFILES, tenant=tenant, audit=log)
        with authz.session(subject="alice") as session:
            assert session.decide("pay", {"n": 1}).permit
    before = logs["acme"].read_bytes()
    (told,) = json.loads(calls("list", path, "--tenant", "other", "--json").stdout)
    said = ("--happened", "--by", "user:carol", "--reason", "seen", "--audit")
    wrong = calls("resolve", path, told["call"], *said, str(logs["acme"]))
    assert (wrong.exit_code, wrong.stderr) == (
        2, "error: config: acme.jsonl is the log of tenant 'acme'; name the one of tenant 'other'\n"
    )  # fmt: skip
    assert logs["acme"].read_bytes() == before
    assert calls("list", path, "--tenant", "other").stdout.endswith("1 in doubt\n")
    RuntimeAuthz(ledger=SqliteLedger(path), tenant="other", audit=logs["acme"]).revoke("t", graph="g")
    assert calls("resolve", path, told["call"], *said, str(logs["acme"])).exit_code == 0


def test_a_resolution_that_is_not_on_record_is_none(file: str) -> None:
    """The harm: the call could run again, and no record would say who let it."""

    class Sink:
        content = False

        def write(self, record: Any) -> None:
            raise AuditError(Code.AUDIT_UNAVAILABLE, "the disk is full")

    (told,) = json.loads(calls("list", file, "--json").stdout)
    with SqliteLedger(file) as ledger:
        with pytest.raises(AuditError):
            RuntimeAuthz(ledger=ledger, audit=Sink()).resolve_call(told["call"], happened=False, by="user:carol", reason="seen")
        assert [one.row.state for one in ledger.doubts("default")] == ["unknown"]
        kept = MemorySink()
        RuntimeAuthz(ledger=ledger, audit=kept).resolve_call(told["call"], happened=False, by="user:carol", reason="seen")
    assert [record["event"] for record in kept.records] == ["resolved"]


@pytest.mark.parametrize("args", [("show", "no"), ("resolve", "no", "--happened", "--by", "user:c", "--reason", "r")])
def test_a_mistyped_call_is_refused(file: str, args: tuple[str, ...]) -> None:
    """In one line, before anything is written."""
    done = calls(args[0], file, *args[1:])
    assert done.exit_code == 2
    assert done.stderr.startswith("error:") and done.stderr.count("\n") == 1
