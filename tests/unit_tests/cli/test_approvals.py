"""`runtime-authz approvals`: what waits, and a person's signed answer, over a ledger that processes share."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz._display import one_line
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.ledger import base
from langchain_runtime_authz.ledger.call_changes import AskApproval
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from tests.attack._approvals import ANN, Scene, human, payment
from tests.attack.test_approval_abuse import FOUR_EYES, policy
from tests.cli import WIDE, cli

approvals = partial(cli, "approvals", env=WIDE)


class Desk:
    """A paused payment on a ledger file, and two people with keys."""

    def __init__(self, path: Path, **terms: Any) -> None:
        self.path, self.file = path, path / "ledger.db"
        people = {}
        for name in ("bob", "carol"):
            key = SigningKey.generate()
            (path / f"{name}.pem").write_bytes(key.to_pem())
            people[f"user:{name}"] = key.jwks()
        (path / "approvers.json").write_text(json.dumps(people))
        saver = InMemorySaver()
        self.scene = Scene(
            "agent", lambda: saver, plan=[payment("ann\x1b[31m", 10, "c1")], pdp=policy(**terms), ledger=SqliteLedger(self.file),
        )  # fmt: skip
        (asked,) = self.scene.say(human())["__interrupt__"]
        self.ask_id = asked.value["action_requests"][0]["approval_id"]

    def answer(self, verb: str, name: str, *more: Any, key: str = "") -> Any:
        return approvals(
            verb, self.file, self.ask_id, "--as", name, "--key", self.path / f"{key or name}.pem",
            "--approvers", self.path / "approvers.json", *more,
        )  # fmt: skip


def test_what_waits_is_listed_inert(tmp_path: Path) -> None:
    """For people and for programs; another tenant's is not."""
    desk = Desk(tmp_path)
    shown = approvals("list", desk.file)
    assert shown.exit_code == 0
    assert desk.ask_id in shown.stdout
    assert "for user:alice" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "1 open" in shown.stdout
    (row,) = json.loads(approvals("list", desk.file, "--json").stdout)
    assert (row["id"], row["tool"], row["needed"], row["thread"]) == (desk.ask_id, "pay", 1, "t")
    assert approvals("list", desk.file, "--tenant", "other").stdout.strip() == "0 open"


@pytest.mark.parametrize("filler", [" ", "-"], ids=["blanks", "dashes"])
def test_no_text_begins_a_line_of_the_list(tmp_path: Path, filler: str) -> None:
    """Neither a value nor a thread's name. The twin is the terminal's own wrapping after 80 columns."""
    forged = "  - recipient 'bob': the user said it"
    value = f'"eve{filler * (80 - len("""  - recipient "eve"""))}{forged}'
    assert f"  - recipient {value}"[80:] == forged
    ledger = SqliteLedger(file := tmp_path / "ledger.db")
    asked = base.Approval("k", "digest", 1, id="q" * 32, question=f'Pay?\n- recipient "{one_line(value[1:])}"')
    ledger.commit(base.Scope("default", "issuer", "agent", value), None, [AskApproval(asked)])
    shown = approvals("list", file).stdout.splitlines()
    assert max(map(len, shown)) <= 80
    assert [line.strip()[:8] for line in shown if line[:5].strip()] == ["q" * 8, "0 of 1 a", "Pay?", "- recipi", "1 open"]


def test_a_full_list_holds_the_newest_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones are left out, never the newest."""
    ledger = SqliteLedger(file := tmp_path / "ledger.db")
    for thread in ("old", "new"):
        asked = base.Approval("k", "digest", 1, id=f"{thread}-question", question="Pay?")
        ledger.commit(base.Scope("default", "issuer", "agent", thread), None, [AskApproval(asked)])
    whole = approvals("list", file)
    assert whole.stdout.index("agent/new") < whole.stdout.index("agent/old")
    assert "note" not in whole.stderr
    monkeypatch.setattr(base, "MAX_ASKED", 1)
    cut = approvals("list", file)
    assert "agent/new" in cut.stdout and "agent/old" not in cut.stdout
    assert "only the newest 1 are listed" in cut.stderr


def test_a_person_approves_and_the_graph_goes_on(tmp_path: Path) -> None:
    """With their own key; the answer is in the audit file, and a second one is refused."""
    desk = Desk(tmp_path)
    (tmp_path / "audit.jsonl").touch()
    done = desk.answer("approve", "bob", "--audit", tmp_path / "audit.jsonl")
    assert done.exit_code == 0, done.output
    assert "resume the graph" in done.stdout
    assert desk.answer("approve", "bob").exit_code == 2
    desk.scene.say(None)
    assert [r[0] for r in desk.scene.ran] == ["ann\x1b[31m"]
    assert ANN not in desk.scene.ran
    (record,) = [r for line in (tmp_path / "audit.jsonl").read_text().splitlines() if (r := json.loads(line)).get("event") == "approval"]
    assert record["detail"]["approver"] == "user:bob"


def test_a_person_denies(tmp_path: Path) -> None:
    """And the call does not run; a reason changes the task."""
    for reason, epoch in (((), 1), (("--message", "no"), 2)):
        (tmp_path / str(epoch)).mkdir()
        desk = Desk(tmp_path / str(epoch))
        assert desk.answer("deny", "bob", *reason).exit_code == 0
        desk.scene.say(None)
        assert desk.scene.ran == []
        assert desk.scene.pdp.requests[-1].context.task.epoch == epoch


def test_four_eyes_at_the_desk(tmp_path: Path) -> None:
    """Two people, each once."""
    desk = Desk(tmp_path, **FOUR_EYES)
    assert "1 more" in desk.answer("approve", "bob").stdout
    again = desk.answer("approve", "bob")
    assert (again.exit_code, "approval_not_distinct" in again.output) == (2, True)
    assert "resume the graph" in desk.answer("approve", "carol").stdout


def test_what_is_refused_at_the_desk(tmp_path: Path) -> None:
    """Another's key, an unknown person, an unknown question, a missing ledger: one line with a code."""
    desk = Desk(tmp_path)
    for result, code in (
        (desk.answer("approve", "bob", key="carol"), "approval_statement"),
        (desk.answer("approve", "eve", key="bob"), "approval_statement"),
        (desk.answer("approve", "bob", "--tenant", "other"), "approval_void"),
        (approvals("list", tmp_path / "none.db"), "config"),
    ):
        assert result.exit_code == 2
        assert code in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "none.db").exists()
