"""An auditor's commands, on the log that the documented `audit="audit.jsonl"` writes: without contents."""

import json
import stat
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.errors import sentence
from tests.cli import WIDE, cli

from ..audit.test_story import played


@pytest.fixture(scope="module")
def log(tmp_path_factory: Any) -> Path:
    """A run with three questions, a correction and a revocation; and another thread."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    s = played(audit=str(path))
    s.authz.session(subject="bob", task="x", thread="other", agent="clerk").decide("look", {})
    return path


wide = partial(cli, env=WIDE)


def listed(*args: object) -> list[dict[str, Any]]:
    done = wide(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["steps"]


def test_the_four_questions_of_an_auditor(log: Path) -> None:
    """Who approved it, under which policy, what was tried before, and why was that denied: by commands alone."""
    (approved,) = [a for a in listed("audit", "who-approved", "--audit", log, "--tool", "pay") if a["what"].startswith("approve")]
    assert "by user:alice" in approved["what"] and approved["end"] == "ran"
    why = wide("audit", "explain", approved["decision_id"], "--audit", log)
    assert why.exit_code == 0 and "effect" in why.stdout
    assert "approve pay" in why.stdout
    tried = listed("audit", "show", "--audit", log, "--thread", "t", "--outcome", "deny")
    assert [t["reasons"][0] for t in tried] == ["approval_rejected"] * 2
    assert sentence("approval_rejected").split(";")[0] in wide("audit", "explain", tried[0]["decision_id"][:12], "--audit", log).stdout


FILTERS = {
    "thread": (("--thread", "other"), {"other"}, {"user:bob"}), "subject": (("--subject", "alice"), {"t"}, {"user:alice"}),
    "agent": (("--agent", "clerk"), {"other"}, {"user:bob"}), "tool": (("--tool", "look"), {"other"}, {"user:bob"}),
    "until": (("--until", "2020-01-01"), set(), set()),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(log: Path, name: str) -> None:
    given, threads, subjects = FILTERS[name]
    steps = listed("audit", "show", "--audit", log, *given)
    assert {s["thread"] for s in steps} == threads
    assert {s["subject"] for s in steps} - {""} == subjects
    assert len(listed("audit", "show", "--audit", log, *given, "--limit", 1)) == min(1, len(steps))
    assert len(listed("audit", "show", "--audit", log, *given, "--all")) >= len(steps)


def test_a_report_and_a_story_of_one_thread(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    assert wide("report", "t", "--audit", log, "-o", page).exit_code == 0 and "clerk" not in page.read_text()
    assert "clerk" in wide("report", log, "-o", page).output + page.read_text()
    text = wide("audit", "story", "t", "--audit", log).stdout
    assert "revoked by user:carol: incident 42" in text and "chain     whole" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_report_never_replaces_its_log(log: Path, tmp_path: Path) -> None:
    """Neither the file nor a closed segment of it."""
    segment = tmp_path / "audit.jsonl.000001"
    segment.write_bytes(log.read_bytes())
    log = tmp_path / "audit.jsonl"
    log.write_bytes(segment.read_bytes())
    for file in (log, segment):
        before = file.read_bytes()
        refused = wide("report", log, "-o", file)
        assert refused.exit_code == 2 and "is the log; name another file" in refused.stderr
        assert file.read_bytes() == before


WRONG = {
    "no such log": (("report", "nofile.jsonl"), "nofile.jsonl: there is no such file or folder; correct the path"),
    "thread": (("audit", "story", "nobody"), "has no record of the thread `nobody`; it has 2 threads: t, other"),
    "report": (("report", "nobody"), "has no record of the thread"),
    "decision": (("audit", "explain", "zz"), "no decision begins with `zz`"),
    "empty": (("audit", "explain", ""), "no decision begins"),
    "outcome": (("audit", "show", "--outcome", "maybe"), "--outcome must be one of permit, deny"),
    "time": (("audit", "show", "--since", "yesterday"), "`yesterday` is not a time"),
    "file": (("audit", "who-approved", "--audit", "/none.jsonl"), "/none.jsonl"),
    "policy": (("audit", "pack", "--policy", "/none"), "`none` cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_one_sentence(log: Path, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNTIME_AUTHZ_AUDIT", str(log))
    args, says = WRONG[name]
    done = cli(*args)
    assert done.exit_code == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


CUTS = {
    "end": lambda lines: [*lines[:-1], lines[-1][:40]],
    "middle": lambda lines: [*lines[:3], lines[3][:40] + b"\n", *lines[4:]],
    "binary": lambda lines: [*lines, b"\x00\xff" * 100 + b"\n"],
    "edited": lambda lines: [line.replace(b'"bob"', b'"eve"') for line in lines],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_log_still_opens_and_says_so(log: Path, cut: str, tmp_path: Path) -> None:
    path, page = tmp_path / "audit.jsonl", tmp_path / "run.html"
    path.write_bytes(b"".join(CUTS[cut](log.read_bytes().splitlines(keepends=True))))
    assert wide("report", path, "-o", page).exit_code == 0 and "BROKEN at line" in page.read_text()
    assert wide("audit", "show", "--audit", path).exit_code == 0
    assert wide("audit", "pack", "--audit", path, "-o", tmp_path / "evidence.zip").exit_code == 2


def test_a_large_log_says_how_much_of_it_is_shown(tmp_path: Path) -> None:
    """20,000 records, on one thread."""
    path, page = tmp_path / "audit.jsonl", tmp_path / "run.html"
    line = '{"kind":"run","event":"started","ts":%d,"scope":{"thread":"t"},"agent":["a"],"seq":%d,"prev":""}\n'
    path.write_text("".join(line % (i, i) for i in range(20_000)))
    done = wide("report", path, "-o", page)
    assert "2000 of 20000 steps" in done.stdout and "20000, the newest 2000 are shown" in page.read_text()
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "empty.jsonl has no record of any thread\n" in wide("report", empty, "-o", page).stderr


def packed(log: Path, path: Path) -> Path:
    done = wide("audit", "pack", "--audit", log, "-o", path)
    assert done.exit_code == 0, done.output
    return path


def test_an_evidence_pack_verifies_elsewhere(log: Path, tmp_path: Path) -> None:
    """With the same head and manifest as when it was made, and with what decided in it."""
    path = tmp_path / "evidence.zip"
    made = wide("audit", "pack", "--audit", log, "-o", path).stdout
    verified = wide("audit", "verify", path)
    assert verified.exit_code == 0
    facts = dict(line.split(None, 1) for line in made.splitlines())
    for fact in ("head", "manifest", "records"):
        assert facts[fact] in verified.stdout
    assert wide("audit", "verify", path, "--head", facts["head"]).exit_code == 0
    assert wide("audit", "verify", path, "--head", "0" * 64).exit_code == 1
    with zipfile.ZipFile(path) as archive:
        assert archive.read("audit.jsonl") == log.read_bytes()
        manifest = json.loads(archive.read("manifest.json"))
        assert set(manifest["files"]) >= {"policy/runtime_authz.rego", "policy/shipped_data.json", "controls.json"}
        assert json.loads(archive.read("controls.json"))["frameworks"]


def test_what_a_log_says_is_as_private_as_the_log(log: Path, tmp_path: Path) -> None:
    """A new page or pack may be read by its owner alone, as the log; one that exists keeps its mode."""
    pack, page = packed(log, tmp_path / "evidence.zip"), tmp_path / "run.html"
    for mode in (0o600, 0o644):
        assert wide("report", log, "-o", page).exit_code == 0
        assert [stat.S_IMODE(file.stat().st_mode) for file in (log, pack, page)] == [0o600, 0o600, mode]
        page.chmod(0o644)


def rewritten(path: Path, change: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


FORGED = {
    "log": lambda f: f.update({"audit.jsonl": f["audit.jsonl"].replace(b"user:carol", b"user:mallory")}),
    "policy": lambda f: f.update({"policy/runtime_authz.rego": b"package x"}),
    "added": lambda f: f.update({"more.txt": b"x"}),
    "removed": lambda f: f.pop("controls.json"),
    "manifest": lambda f: f.update({"manifest.json": b"[]"}),
    "no manifest": lambda f: f.pop("manifest.json"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_changed_pack_is_found(log: Path, tmp_path: Path, name: str) -> None:
    path = packed(log, tmp_path / "evidence.zip")
    rewritten(path, FORGED[name])
    done = wide("audit", "verify", path)
    assert done.exit_code == 2 and "chain_broken: evidence.zip" in done.stderr


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_pack_is_one_sentence(log: Path, tmp_path: Path, method: int) -> None:
    """At each of 40 places, whether its digest or its compression shows it, and however it was packed again."""
    path = packed(log, tmp_path / "evidence.zip")
    with zipfile.ZipFile(path) as pack:
        files = {name: pack.read(name) for name in pack.namelist()}
    with zipfile.ZipFile(path, "w", method) as again:
        for name, content in files.items():
            again.writestr(name, content)
    whole = path.read_bytes()
    for at in range(100, 1100, 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        done = wide("audit", "verify", path)
        assert done.exit_code == 2 and done.stderr.startswith("error: chain_broken: evidence.zip")


def test_a_pack_behind_a_rewritten_log_is_not_read(log: Path, tmp_path: Path) -> None:
    """The file's name decides for all commands, so `verify` and `show` never see two different logs in one file."""
    pack, both = packed(log, tmp_path / "evidence.zip"), tmp_path / "audit.jsonl"
    both.write_bytes(log.read_bytes().replace(b"user:carol", b"user:mallory") + pack.read_bytes())
    assert zipfile.is_zipfile(both)
    done = wide("audit", "verify", both)
    assert (done.exit_code, "BROKEN" in done.stdout) == (1, True)
    both = both.replace(tmp_path / "both.zip")
    assert wide("audit", "verify", both).exit_code == 0
    for command in (("show", "--audit", both), ("pack", "--audit", both, "-o", pack)):
        assert "both.zip is an evidence pack" in wide("audit", *command).stderr
    assert wide("audit", "pack", "--audit", log, "-o", tmp_path / "evidence").exit_code == 2
