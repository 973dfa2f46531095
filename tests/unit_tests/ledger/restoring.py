"""The drill: a ledger is backed up in use, lost, and put back. The tests that each SQL store passes."""

import json
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.chain import verify_chain
from langchain_runtime_authz.audit.record import decision_record
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.errors import AuthzDenied, AuthzError, Code, LedgerError
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.ledger.base import Approval, Scope
from langchain_runtime_authz.ledger.call_changes import AskApproval
from langchain_runtime_authz.pep import thread_acts
from langchain_runtime_authz.pep.decision_log import run_event
from langchain_runtime_authz.testing import StaticPDP
from tests.cli import cli

APP = Path(__file__).parents[3] / "deploy" / "app"
PROFILES = {"pay": ToolProfile(effect="pay", sink="external")}


class Place:
    """A ledger and the application's log."""

    folder: Path
    where: str
    named: tuple[str, ...] = ()  # the CLI's options for it
    env: dict[str, str] | None = None

    def ledger(self) -> Any:
        raise NotImplementedError

    def start(self, log: str = "audit.jsonl") -> RuntimeAuthz:
        ledger = self.ledger()
        try:
            return RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES, ledger=ledger, audit=FileSink(self.folder / log))
        except AuthzError:
            ledger.close()
            raise

    def cli(self, *args: str) -> Any:
        return cli("ledger", *args, env={"COLUMNS": "120"})

    def accept(self, *logs: str) -> Any:
        options = [f for log in logs or ("audit.jsonl",) for f in ("--audit", str(self.folder / log))]
        return self.cli("restored", self.where, *options, *self.named, "--by", "user:carol", "--reason", "disk failed", "--yes", "--json")

    def backup(self) -> str:
        return self._run("backup", self.where, str(self.folder))

    def restore(self, copy: str) -> None:
        self._run("restore", copy, self.where)

    def _run(self, script: str, *args: str) -> str:
        done = subprocess.run([APP / script, *args], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def stop(authz: RuntimeAuthz) -> None:
    authz.ledger.close()  # type: ignore[attr-defined]


def paid(authz: RuntimeAuthz, thread: str, **more: Any) -> str:
    """What comes of one payment."""
    try:
        with authz.session(subject="alice", thread=thread, **more) as session:
            decision = session.decide("pay", {"to": thread})
            if decision.permit:
                session.observe("pay", {"to": thread}, "paid")
            return "permit" if decision.permit else str(decision.reason)
    except AuthzDenied as denied:
        return str(denied.code)


class Restoring:
    """Inherit it, with a fixture `place`."""

    def test_a_ledger_of_yesterday_is_refused_until_a_person_accepts_it(self, place: Place) -> None:
        """Then what was revoked since is revoked again, by the log, and the log tells who accepted it."""
        authz = place.start()
        assert [paid(authz, thread) for thread in ("a", "b", "c")] == ["permit"] * 3
        authz.revoke("c", graph="session")
        yesterday = place.backup()
        authz.revoke("a", graph="session")
        authz.reinstate("c", graph="session")
        assert [paid(authz, thread) for thread in ("a", "b", "c", "d")] == ["revoked", "permit", "permit", "permit"]
        authz.revoke("d", graph="session")  # a thread that the backup does not know
        stop(authz)

        place.restore(yesterday)
        with pytest.raises(LedgerError, match=Code.LEDGER_ROLLED_BACK):
            place.start()
        accepted = place.accept()
        assert (accepted.exit_code, accepted.stderr) == (0, "")
        assert json.loads(accepted.stdout) == {"threads": 3, "revoked": 2, "unfinished": []}

        again = place.start()
        assert [paid(again, thread) for thread in "abcd"] == ["revoked", "permit", "revoked", "revoked"]
        again.reinstate("c", graph="session")
        assert paid(again, "c") == "permit"
        stop(again)
        stop(place.start())
        last = [json.loads(line) for line in (place.folder / "audit.jsonl").read_text().splitlines() if '"restored"' in line]
        assert [record["detail"]["author"] for record in last] == ["user:carol"]
        assert verify_chain(place.folder / "audit.jsonl").ok

    @pytest.mark.parametrize(("twin", "older"), [(False, False), (False, True), (True, False)])
    def test_a_reinstatement_that_the_ledger_did_not_take_lifts_nothing(self, place: Place, twin: bool, older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The log has it twice, the second time with the ledger's error. The twin's ledger takes it, for the agent below too.

        `older`: a log of an earlier version, which gave each record its own time.
        """
        authz = place.start()
        assert paid(authz, "a") == "permit"
        yesterday = place.backup()
        for agent in ((), ("session",)):
            authz.revoke("a", graph="session", agent=agent)
        if older:
            monkeypatch.setattr(thread_acts, "run_event", lambda of, name, now, **told: run_event(of, name, time.time(), **told))
        if not twin:
            late = LedgerError(Code.LEDGER_TIMEOUT)
            monkeypatch.setattr(authz.ledger, "commit", lambda *_: (_ for _ in ()).throw(late))
        with nullcontext() if twin else pytest.raises(LedgerError):
            authz.reinstate("a", graph="session")
        stop(authz)
        place.restore(yesterday)
        assert json.loads(place.accept().stdout)["revoked"] == (0 if twin else 2)
        again = place.start()
        assert paid(again, "a") == ("permit" if twin else "revoked")
        stop(again)

    def test_what_was_open_at_the_backup_is_void(self, place: Place) -> None:
        """The harm without the command: an order of before is carried out, though nobody knows whether it was since."""
        authz = place.start()
        session = authz.session(subject="alice", thread="t", task="pay")
        asked = session.epoch
        assert session.decide("pay", {"to": "t"}).permit
        question = Approval("key", "digest", asked, id="question", needed=2)
        authz.ledger.commit(Scope("default", authz.issuer.issuer, "session", "t"), None, [AskApproval(question)])
        yesterday = place.backup()
        session.observe("pay", {"to": "t"}, "paid")
        stop(authz)

        place.restore(yesterday)
        without = place.start("new.jsonl")  # a new log hides that the ledger is old
        with without.session(subject="alice", thread="t") as unwarned:
            assert unwarned.epoch == asked
            assert without.approve("question", by="bob") == 1
        stop(without)
        assert place.accept().exit_code == 0
        again = place.start()
        with again.session(subject="alice", thread="t") as after:
            assert after.epoch == asked + 1
            with pytest.raises(AuthzError, match=Code.APPROVAL_VOID):  # nobody is told that an answer counts
                again.approve("question", by="carol")
        stop(again)

    def test_a_running_process_does_not_follow_a_ledger_that_was_put_back(self, place: Place) -> None:
        """It has seen commits that are gone."""
        authz = place.start()
        assert paid(authz, "a") == "permit"
        yesterday = place.backup()
        assert paid(authz, "b") == "permit"
        place.restore(yesterday)
        assert paid(authz, "c") in (Code.LEDGER_ROLLED_BACK, Code.LEDGER_UNAVAILABLE)
        stop(authz)

    def test_calls_that_the_log_shows_without_an_outcome_are_in_doubt(self, place: Place) -> None:
        """The backup does not know them. The same deed asks, as if the ledger had never been lost."""
        authz = place.start()
        assert paid(authz, "before") == "permit"
        yesterday = place.backup()
        assert paid(authz, "after") == "permit"
        lost = authz.session(subject="alice", thread="lost").decide("pay", {"to": "lost"})
        stop(authz)
        place.restore(yesterday)
        bare = {"decision": Decision("permit", decision_id="bare"), "pdp": "", "action": "tools/call", "resource": "pay"}
        FileSink(place.folder / "audit.jsonl").write(decision_record(now=1.0, scope=Scope("t", "i", "g", "t"), **bare))
        found, unread = json.loads(place.accept().stdout)["unfinished"]
        assert unread["decision_id"] == "bare"  # nothing says that it is harmless
        assert (found["decision_id"], found["tool"], found["thread"]) == (lost.decision_id, "pay", "lost")
        assert unread["call"] is None
        again = place.start()
        (doubt,) = again.unknown_calls()
        assert (doubt.row.key, doubt.scope.thread, doubt.subject) == (found["call"], "lost", "user:alice")
        assert paid(again, "elsewhere") == "in_doubt"
        again.resolve_call(found["call"], happened=False, by="user:carol", reason="not on the statement")
        assert paid(again, "elsewhere") == "permit"
        stop(again)

    def test_a_broken_log_accepts_nothing(self, place: Place) -> None:
        """What it says is revoked could be missing."""
        authz = place.start()
        paid(authz, "a")
        stop(authz)
        log = place.folder / "audit.jsonl"
        log.write_text(log.read_text().replace('"event":"started"', '"event":"ended"', 1))
        refused = place.accept()
        assert (refused.exit_code, "chain_broken" in refused.stderr) == (2, True)
        assert place.accept("none.jsonl").exit_code == 2 and not (place.folder / "none.jsonl").exists()

    def test_each_log_of_several_processes_is_named(self, place: Place) -> None:
        """A log that was left out keeps refusing the ledger."""
        for log in ("one.jsonl", "two.jsonl"):
            authz = place.start(log)
            paid(authz, log)
            stop(authz)
        yesterday = place.backup()
        for log in ("one.jsonl", "two.jsonl"):
            authz = place.start(log)
            paid(authz, log)
            stop(authz)
        place.restore(yesterday)
        assert place.accept("one.jsonl").exit_code == 0
        stop(place.start("one.jsonl"))
        with pytest.raises(AuthzError):
            place.start("two.jsonl")
