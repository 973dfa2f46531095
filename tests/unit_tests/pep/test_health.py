"""Health names what is down, in time, and takes no part along; alarms name metrics that exist."""

import asyncio
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from langchain_core.tools import StructuredTool

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.errors import AuditError, AuthzDenied, Code, CredentialError, LedgerError
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.pap.bundle import pack
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.pep import health, on_ask, run
from langchain_runtime_authz.pep.on_ask import _failed
from langchain_runtime_authz.telemetry import metrics, semconv
from langchain_runtime_authz.telemetry.logs import lines_left_out
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import call, hand_written, human, replying
from tests.bundles import files
from tests.cli import cli

UP = {"ledger": "", "engine": "", "audit": "", "credentials": "", "kill_switch": ""}
ROOT = Path(__file__).parents[3]


class Broken(MemoryLedger):
    """Fails, or hangs."""

    error: Exception | None = LedgerError(Code.LEDGER_ROLLED_BACK)
    free = threading.Event()

    def load(self, *args: Any) -> Any:
        if self.error is None:
            self.free.wait()
        else:
            raise self.error
        return super().load(*args)


class Full(FileSink):
    """Its disk is full."""

    def check(self) -> None:
        raise AuditError(Code.AUDIT_UNAVAILABLE, "the disk is full")


def get(authz: RuntimeAuthz, path: str) -> tuple[int, Any]:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=authz.health_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path)

    answer = asyncio.run(ask())
    return answer.status_code, answer.json()


def test_a_whole_instance_is_ready(tmp_path: Path) -> None:
    """Under the shipped policy, and without a record of the look."""
    authz = RuntimeAuthz(audit=tmp_path / "audit.jsonl")
    found = authz.health()
    assert (found.parts, found.ready) == (UP, True) and found.revision.startswith("sha256:")
    assert (tmp_path / "audit.jsonl").read_text() == ""
    assert get(authz, "/health/ready") == (200, {"ready": True, "down": {}, "parts": UP, "revision": found.revision, "age": None})
    assert get(authz, "/health/live") == (200, {"live": True})


def test_a_server_may_start_the_app_by_itself() -> None:
    """It opens with the protocol's own message, of which the app knows nothing."""
    asyncio.run(RuntimeAuthz().health_app()({"type": "lifespan"}, None, None))  # type: ignore[arg-type]


def test_the_age_of_a_policy_that_is_followed(tmp_path: Path) -> None:
    """It says when its source was last found in order."""
    (tmp_path / "policy.tar.gz").write_bytes(pack(files(1)))
    pdp = ReloadingPDP(tmp_path / "policy.tar.gz")
    age = RuntimeAuthz(pdp=pdp).health().age
    pdp.close()
    assert age is not None and age >= 0


@pytest.mark.parametrize(("part", "code", "options"), [
    ("ledger", Code.LEDGER_ROLLED_BACK, {"ledger": Broken()}), ("ledger", Code.LEDGER_UNAVAILABLE, {"ledger": type("", (Broken,), {"error": OSError("gone")})()}),
    ("engine", Code.PDP_ERROR, {"pdp": StaticPDP(lambda request: 1 / 0)}), ("audit", Code.AUDIT_UNAVAILABLE, {"audit": Full}),
    ("kill_switch", Code.KILLED, {"kill_switch": "engaged"}),
])
def test_what_is_down_is_named(tmp_path: Path, part: str, code: Code, options: dict[str, Any]) -> None:
    """By its own code, and nothing else with it. The process lives."""
    options = dict(options)
    if "audit" in options:
        options["audit"] = Full(tmp_path / "audit.jsonl")
    if "kill_switch" in options:
        options["kill_switch"] = tmp_path / "kill"
        options["kill_switch"].touch()
    authz = RuntimeAuthz(**options)
    assert {name: value for name, value in authz.health().parts.items() if value} == {part: code}
    status, body = get(authz, "/ready")
    assert (status, body["down"]) == (503, {part: code}) and get(authz, "/live")[0] == 200


def test_a_part_that_hangs_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once: later looks do not pile up."""
    monkeypatch.setattr(health, "DEADLINE", 0.1)
    monkeypatch.setattr(health, "FRESH", 0.0)
    ledger = Broken()
    authz = RuntimeAuthz(ledger=ledger, pdp=StaticPDP(True))
    ledger.error, ledger.free = None, threading.Event()
    before, begun = threading.active_count(), time.monotonic()
    assert [authz.health().parts["ledger"] for _ in range(5)] == [Code.LEDGER_TIMEOUT] * 5
    assert time.monotonic() - begun < 30 and threading.active_count() <= before + 1
    ledger.free.set()
    monkeypatch.setattr(health, "DEADLINE", 10)
    authz.health()
    assert authz.health().ready


def test_a_full_disk_is_seen_before_a_record_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the space that is left."""
    sink = FileSink(tmp_path / "audit.jsonl")
    sink.check()
    monkeypatch.setattr("os.statvfs", lambda path: type("Full", (), {"f_bavail": 0})())
    with pytest.raises(AuditError, match="the disk is full"):
        sink.check()


class Failing(MemoryLedger):
    """Fails at each commit, by turns as the ledger and as the audit log would."""

    def commit(self, *args: Any) -> Any:
        raise LedgerError(Code.LEDGER_TIMEOUT, "locked")


@pytest.mark.parametrize(("fails", "what"), [("decide", "ledger failed"), ("observe", "the end of a call was not recorded")])
def test_failures_are_few_lines_with_ids(
    fails: str, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is counted. Thread, run, decision and code are in a line; the sixth of a minute is left out."""
    counted: list[str] = []
    monkeypatch.setattr(run, "count_metric", lambda what, about=None, by=1: counted.append(what))
    ledger = MemoryLedger()
    authz = RuntimeAuthz(ledger=ledger, pdp=StaticPDP(True), profiles={"look": ToolProfile(effect="read", sink="none")})
    session = authz.session(subject="alice", task="Look", thread="t1")
    with caplog.at_level(logging.ERROR):
        if fails == "decide":
            ledger.__class__ = Failing
        decisions = [session.decide("look", {"n": n}) for n in range(9)]
        ledger.__class__ = Failing
        for n in range(9) if fails == "observe" else ():
            session.observe("look", {"n": n}, "seen")
    lines = [r for r in caplog.records if f"{what}: ledger_timeout" in r.getMessage()]
    assert len(lines) == 5 and counted.count("errors") == 9
    for record, decision in zip(lines, decisions, strict=False):
        assert decision.decision_id in record.getMessage() and "thread 't1'" in record.getMessage()
        assert (record.thread_id, record.decision_id) == ("t1", decision.decision_id)  # type: ignore[attr-defined]
        assert record.run_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("why", ["locked", "full"])
def test_a_ledger_that_can_only_be_read_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Each step would be denied, as none can be committed."""
    monkeypatch.setitem(SqliteLedger.__init__.__kwdefaults__, "timeout", 0.05)  # type: ignore[arg-type]
    ledger = SqliteLedger(tmp_path / "l.db")
    authz = RuntimeAuthz(pdp=StaticPDP(True), ledger=ledger)
    other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
    if why == "locked":
        other.execute("BEGIN IMMEDIATE")
    else:
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0))
    code = Code.LEDGER_TIMEOUT if why == "locked" else Code.LEDGER_UNAVAILABLE
    assert authz.health().parts == {**UP, "ledger": code}
    told = cli("ledger", "status", str(tmp_path / "l.db"))
    assert (told.exit_code, f"unusable: {code}" in told.stdout) == (1, True)
    other.close()


def test_credentials_are_their_own_part(tmp_path: Path) -> None:
    """A failing identity and lost keys are neither the ledger's fault nor the engine's."""

    class Own:
        attested, up = False, True

        @property
        def expires_at(self) -> float | None:
            if not self.up:
                raise CredentialError(Code.WORKLOAD_UNPROVEN)
            return None

        def agent_id(self, path: tuple[str, ...]) -> str:
            if not self.up:
                raise CredentialError(Code.WORKLOAD_UNPROVEN)
            return "/".join(path)

    authz = RuntimeAuthz(pdp=StaticPDP(True), identity=Own())
    session = authz.session(subject="alice")
    assert session.decide("look", {}).permit
    Own.up = False
    assert session.decide("look", {}).reason == Code.WORKLOAD_UNPROVEN
    assert authz.health().parts == {**UP, "credentials": Code.WORKLOAD_UNPROVEN}
    with pytest.raises(AuthzDenied) as denied:
        authz.session(subject="alice")
    assert denied.value.code == Code.WORKLOAD_UNPROVEN
    issuer = LocalIssuer(KeyDirectory.create(tmp_path / "keys"))
    shutil.rmtree(tmp_path / "keys")
    assert RuntimeAuthz(pdp=StaticPDP(True), issuer=issuer).health().parts == {**UP, "credentials": Code.KEYS_UNAVAILABLE}


@pytest.mark.parametrize("hangs", ["agent_id", "expires_at"])
def test_an_identity_that_hangs_is_not_proven(monkeypatch: pytest.MonkeyPatch, hangs: str) -> None:
    """Neither engine nor keys are down. It is asked once."""
    monkeypatch.setattr(health, "DEADLINE", 0.25)
    monkeypatch.setattr(health, "FRESH", 0.0)
    asked, free, up = [], threading.Event(), [True]

    class Own:
        attested, expires_at, agent_id = False, None, "/".join

        def __getattribute__(self, name: str) -> Any:
            if name == hangs and not up:
                asked.append(name)
                free.wait()
            return super().__getattribute__(name)

    authz = RuntimeAuthz(pdp=StaticPDP(True), identity=Own())
    up.clear()
    assert [authz.health().parts for _ in range(3)] == [{**UP, "credentials": Code.WORKLOAD_UNPROVEN}] * 3
    assert len(asked) == 1
    free.set()


@pytest.mark.parametrize("escaped", [True, False])
def test_a_failure_s_text_forges_no_line(
    escaped: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception may quote a thread's id, or a question's text. Unescaped, it adds a line to the log."""
    if not escaped:
        for module in (run, on_ask):
            monkeypatch.setattr(module, "printable", lambda text: text)
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    with caplog.at_level(logging.ERROR):
        authz._pep.deny_for_failure(RuntimeError("(thread)=(t\nINFO permitted pay\x1b[2K)"))
        _failed(RuntimeError("t\nINFO permitted pay\x1b[2K"))
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert all(("\n" not in line and "\x1b" not in line) is escaped for line in lines)


@pytest.mark.parametrize("code", [Code.AUDIT_UNAVAILABLE, Code.CHAIN_BROKEN])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_record_that_fails_is_one_line_with_the_denial_s_id(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: Code, at: int
) -> None:
    """Whichever record of a run it is: of its start, a node, the plan, the call or its model."""
    counted: list[str] = []
    monkeypatch.setattr(run, "count_metric", lambda what, about=None, by=1: counted.append(what))
    writes = iter(range(1, 99))

    class Fails(FileSink):
        def write(self, record: Any) -> None:
            if next(writes) == at:
                raise AuditError(code)
            super().write(record)

    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"look": ToolProfile(effect="read", sink="none")}, audit=Fails(tmp_path / "a"))
    graph = authz.protect(hand_written(replying([call("look", {}, "c")]), [StructuredTool.from_function(lambda: "seen", name="look", description="Look.")]))
    with caplog.at_level(logging.ERROR), authz.run(subject="alice"), pytest.raises(AuthzDenied) as denied:
        graph.invoke(human())
    assert denied.value.code == code and counted == ["errors"]
    (line,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert code in line.getMessage() and line.decision_id == denied.value.decision_id  # type: ignore[attr-defined]


def test_every_tenant_of_every_ledger_is_counted() -> None:
    """Two ledgers of one tenant have one figure, their sum; a tenant of which one gives none has none."""

    class Holds(MemoryLedger):
        def doubts(self, tenant: str, *_: Any) -> Any:
            if tenant == "broken":
                raise LedgerError(Code.LEDGER_UNAVAILABLE)
            return [tenant] * 2

    several = [Holds(), Holds()]
    for ledger, tenant in ((0, "m-a"), (0, "m-b"), (1, "m-b"), (0, "broken")):
        metrics.observe_ledger(several[ledger], tenant)
    figures = {o.attributes[semconv.TENANT]: o.value for o in metrics._counted("doubts") if o.attributes}
    assert {tenant: figures.get(tenant) for tenant in ("m-a", "m-b", "broken")} == {"m-a": 2, "m-b": 4, "broken": None}


def test_made_up_codes_do_not_silence_the_package_s_own() -> None:
    """A policy may return any number of codes."""
    left_out = lines_left_out()
    assert sum(left_out(f"made_up_{n}") is not None for n in range(600)) < 300
    assert left_out(str(Code.LEDGER_UNAVAILABLE)) == 0


def test_a_collection_does_not_wait_for_a_ledger_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs costs one wait, then it is left alone for a while."""
    monkeypatch.setattr(metrics, "WAIT", 0.05)
    asked, free = [], threading.Event()

    class Hangs(MemoryLedger):
        def doubts(self, *args: Any) -> Any:
            asked.append(1)
            free.wait()

    ledger = Hangs()
    metrics.observe_ledger(ledger, "hangs")
    for _ in range(5):
        figures = [o for o in metrics._counted("doubts") if o.attributes == {semconv.TENANT: "hangs"}]
        assert figures == []
    assert len(asked) == 1
    free.set()


def test_alarms_name_metrics_that_exist() -> None:
    """As the Prometheus exporter writes the instruments' names."""
    exported = {
        *(f"{name}_total" for name in (semconv.DECISIONS, semconv.EVENTS, semconv.ERRORS)),
        *(f"{name}_seconds_bucket" for name in (semconv.DECISION_DURATION, semconv.ENGINE_DURATION)),
        *(semconv.LEASES, semconv.QUESTIONS, semconv.DOUBTS),
    }
    labels = {semconv.COMPONENT, semconv.REASON, semconv.DECISION, semconv.EVENT, semconv.TENANT, semconv.SUBJECT_TYPE}
    known = {name.replace(".", "_") for name in exported | labels}
    (group,) = yaml.safe_load((ROOT / "deploy/alerts/runtime-authz.yml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 5
    for rule in group["rules"]:
        used = set(re.findall(r"runtime_authz_\w+", rule["expr"]))
        assert used and used <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"]
