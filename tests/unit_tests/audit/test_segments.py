"""A log that rotates: its segments are one chain, and one that is missing, swapped or cut shows."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.audit import chain
from langchain_runtime_authz.audit.chain import log_files, read_log, verify_chain, verify_log
from langchain_runtime_authz.audit.evidence_pack import verify_pack
from langchain_runtime_authz.audit.sinks import FileSink, drop_segments
from langchain_runtime_authz.errors import AuditError, Code, ConfigError
from tests.cli import cli


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Closed segments and a file, 50 records."""
    write(tmp_path / "audit.jsonl", 50)
    names = [f.name for f in log_files(tmp_path / "audit.jsonl")]
    assert len(names) > 4
    assert names == [*(f"audit.jsonl.00000{n}" for n in range(1, len(names))), "audit.jsonl"]
    return tmp_path / "audit.jsonl"


def write(path: Path, count: int, who: int = 0, **settings: Any) -> FileSink:
    sink = FileSink(path, **{"max_bytes": 1500, **settings})
    for n in range(count):
        sink.write({"v": 1, "kind": "completion", "ts": 1000.0 * n, "who": who, "n": n, "pad": "x" * 20})
    return sink


def records(path: Path) -> list[dict[str, Any]]:
    return [r for r in read_log(path) if r is not None and r["kind"] == "completion"]


def test_all_records_are_in_the_segments_in_order(log: Path) -> None:
    """Each file verifies alone, the log as a whole, and readers see one log."""
    assert [r["n"] for r in records(log)] == list(range(50))
    assert all(verify_chain(f).ok for f in log_files(log))
    report = verify_log(log, verify_chain(log).head)
    assert (report.ok, report.records) == (True, 49 + len(log_files(log)))
    assert {f.stat().st_mode & 0o777 for f in log_files(log)} == {0o600}
    assert not log.with_name("audit.jsonl.new").exists()


def swap(log: Path, a: int, b: int) -> None:
    one, two = log_files(log)[a], log_files(log)[b]
    one.rename(log.with_name("held"))
    two.rename(one)
    log.with_name("held").rename(two)


def edit(log: Path, at: int) -> None:
    part = log_files(log)[at]
    part.write_bytes(part.read_bytes().replace(b'"n":', b'"m":', 1))


def cut(log: Path, at: int) -> None:
    part = log_files(log)[at]
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-1]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the first is missing": lambda log: log_files(log)[0].unlink(),
    "one is missing": lambda log: log_files(log)[2].unlink(),
    "the last closed one is missing": lambda log: log_files(log)[-2].unlink(),
    "all closed ones are missing": lambda log: [f.unlink() for f in log_files(log)[:-1]],
    "two are swapped": lambda log: swap(log, 1, 2),
    "the first two are swapped": lambda log: swap(log, 0, 1),
    "a copy": lambda log: shutil.copy(log_files(log)[0], log.with_name("audit.jsonl.000099")),
    "an edit": lambda log: edit(log, 1),
    "an edit at a closed end": lambda log: cut(log, 2),
    "an emptied one": lambda log: log_files(log)[1].write_bytes(b""),
    "another log's": lambda log: log_files(write(log.with_name("b.jsonl"), 20).path)[0].replace(log_files(log)[1]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_shows(log: Path, name: str) -> None:
    """Without a pinned head too, the command names the place and exits with 1."""
    DAMAGE[name](log)
    assert not verify_log(log).ok
    told = cli("audit", "verify", str(log))
    assert told.exit_code == 1 and "audit.jsonl" in told.stderr
    with pytest.raises(AuditError, match="chain_broken"):
        drop_segments(log, 1e12)


def test_a_rotation_during_a_verification_is_no_damage(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files were listed before a writer closed one, so they are listed again."""
    seen = [[f for f in log_files(log) if f != log_files(log)[-2]]]
    monkeypatch.setattr(chain, "log_files", lambda path: seen.pop() if seen else log_files(path))
    assert verify_log(log).ok and seen == []


def test_a_file_is_closed_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from its first record, also by a writer that comes later; an idle file is not closed again."""
    path = tmp_path / "a.jsonl"
    FileSink(path).write({"kind": "x", "ts": time.time()})
    FileSink(path).write({"kind": "x", "ts": time.time()})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    sink = FileSink(path, max_age=60)
    sink.write({"kind": "x", "ts": now + 61})
    assert len(log_files(path)) == 2
    sink.write({"kind": "x", "ts": now + 61})
    assert len(log_files(path)) == 2


def test_old_segments_go_on_record(log: Path, tmp_path: Path) -> None:
    """What is removed leaves its head in the log; numbers go on; a head nobody recorded is a gap."""
    before, ends = verify_log(log).records, [json.loads(f.read_bytes().splitlines()[-1])["ts"] for f in log_files(log)]
    assert drop_segments(log, ends[0]) == []
    assert drop_segments(log, ends[1] + 1) == ["audit.jsonl.000001", "audit.jsonl.000002"]
    report = verify_log(log)
    assert report.ok and report.records < before
    last = log_files(log)[-2].name
    assert drop_segments(log, 1e12)[-1] == last and (len(log_files(log)), verify_log(log).ok) == (1, True)
    write(log, 20)
    assert log_files(log)[0].name == f"audit.jsonl.{int(last[-6:]) + 1:06d}" and verify_log(log).ok
    assert "removed" in cli("audit", "prune", "--audit", str(log), "--older-than", "0").stdout
    assert verify_log(log).ok
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0])  # without the records of what was dropped
    assert not verify_log(log).ok


def test_a_head_in_a_removed_segment_cannot_be_checked(log: Path, tmp_path: Path) -> None:
    """The log is neither whole nor broken, also in a pack. An edit of what remains is found first."""
    head = verify_chain(log_files(log)[0]).head
    drop_segments(log, json.loads(log_files(log)[1].read_bytes().splitlines()[-1])["ts"] + 1)
    report = verify_log(log, head)
    assert (report.ok, report.code, verify_log(log, verify_chain(log).head).ok) == (False, Code.CHAIN_PRUNED, True)
    pack = str(tmp_path / "evidence.zip")
    assert cli("audit", "pack", "--audit", str(log), "-o", pack).exit_code == 0
    for file in (str(log), pack):
        done = cli("audit", "verify", file, "--head", head)
        assert (done.exit_code, "BROKEN" in done.stdout, "up to the pinned head cannot be checked" in done.stdout) == (1, False, True)
        assert "chain_pruned" in done.stderr and "segments before audit.jsonl.000003 were removed" in done.stderr
        assert json.loads(cli("audit", "verify", file, "--head", head, "--json").stdout)["ok"] is None
    log.write_bytes(log.read_bytes().replace(b'"who":0', b'"who":7', 1))
    assert verify_log(log, head).code == Code.CHAIN_BROKEN


def test_a_removal_after_the_pinned_head_is_found(log: Path) -> None:
    """A person who removes a segment can append a record of it too. Without the pinned head, it is as good as the honest one."""
    first, second = log_files(log)[:2]
    pinned, removed = verify_chain(log).head, verify_chain(first)
    first.unlink()
    assert verify_log(log, pinned).code == Code.CHAIN_BROKEN
    FileSink(log).write({"kind": "dropped", "segment": first.name, "records": removed.records, "head": removed.head})
    assert verify_log(log).ok
    found = verify_log(log, pinned)
    assert (found.ok, found.code) == (False, Code.CHAIN_PRUNED)
    assert f"segments before {second.name} were removed after the pinned head" in str(found.error)
    pinned = verify_chain(log).head  # by an operator who knows of the removal
    FileSink(log).write({"kind": "dropped", "segment": first.name, "records": removed.records, "head": removed.head})
    write(log, 20)
    assert verify_log(log, pinned).ok


def test_a_log_behind_a_link_rotates_where_it_is(tmp_path: Path) -> None:
    """A second writer names the file itself. All readers find its segments from either name."""
    (tmp_path / "disk").mkdir()
    log, link = tmp_path / "disk" / "audit.jsonl", tmp_path / "link"
    link.symlink_to(log)
    sinks = [FileSink(path, max_bytes=500) for path in (link, log)]
    for n in range(10):
        for sink in sinks:
            sink.write({"v": 1, "kind": "completion", "ts": 1.0, "n": n, "pad": "x" * 20})
    assert link.is_symlink() and set(tmp_path.iterdir()) == {link, log.parent}
    assert len(log_files(link)) == len(log_files(log)) > 2
    assert [[r["n"] for r in records(path)] for path in (link, log)] == [[n // 2 for n in range(20)]] * 2
    assert cli("audit", "pack", "--audit", str(link), "-o", str(tmp_path / "e.zip")).exit_code == 0
    assert verify_pack(tmp_path / "e.zip")[0] == verify_log(log) == verify_log(link)
    link.unlink()
    link.symlink_to(tmp_path / "other")
    seen = sinks[0].head
    sinks[0].write({"v": 1, "kind": "x", "ts": 1.0})
    assert verify_log(link).moved == seen and verify_log(log).ok


@pytest.mark.parametrize("rotated", [False, True])
def test_a_moved_log_is_named(tmp_path: Path, rotated: bool) -> None:
    """The new file is whole, but not the whole log. A file that begins a log has no such note."""
    log, moved = tmp_path / "audit.jsonl", tmp_path / "moved.jsonl"
    sink = write(log, 5, max_bytes=None)
    old = sink.head
    assert "moved" not in cli("audit", "verify", str(log), "--head", old).stdout
    log.rename(moved)
    sink.write({"kind": "x", "ts": 1.0})
    if rotated:
        write(log, 20)
    for head in ([], ["--head", verify_chain(log).head]):
        told = cli("audit", "verify", str(log), *head)
        assert (told.exit_code, f"verify that file with --head {old}" in told.stdout) == (0, True)
    assert verify_log(log, old).code == Code.CHAIN_BROKEN
    assert cli("audit", "verify", str(moved), "--head", old).exit_code == 0


def test_a_pack_holds_all_segments(log: Path, tmp_path: Path) -> None:
    assert cli("audit", "pack", "--audit", str(log), "-o", str(tmp_path / "e.zip")).exit_code == 0
    whole = verify_log(log)
    assert whole.records == 49 + len(log_files(log)) and verify_pack(tmp_path / "e.zip", whole.head)[0] == whole


def test_another_policy_in_a_pack_changes_its_manifest(log: Path, tmp_path: Path) -> None:
    """An exchanged policy with a rewritten manifest keeps the log's head, but not the manifest's digest."""
    pack, head = tmp_path / "e.zip", verify_log(log).head
    assert cli("audit", "pack", "--audit", str(log), "-o", str(pack)).exit_code == 0
    _, kept = verify_pack(pack, head)
    with zipfile.ZipFile(pack) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    items["policy/data.json"] = b"{}"
    manifest = json.loads(items.pop("manifest.json"))
    manifest["files"]["policy/data.json"] = hashlib.sha256(b"{}").hexdigest()
    with zipfile.ZipFile(pack, "w") as archive:
        for name, content in {**items, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, content)
    told = cli("audit", "verify", str(pack), "--head", head)
    assert told.exit_code == 0 and verify_pack(pack, head)[1] != kept
    assert "compare the manifest with the digest that you kept" in told.stdout and kept not in told.stdout


def test_a_file_that_could_not_be_closed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or an obstacle passes. Nothing is lost meanwhile, and the log is not filled with complaints."""
    path = tmp_path / "a.jsonl"
    sink = FileSink(path, max_bytes=500)
    (tmp_path / "a.jsonl.new").mkdir()
    for n in range(20):
        sink.write({"v": 1, "kind": "x", "n": n})
    (tmp_path / "a.jsonl.new").rmdir()
    sink.write({"v": 1, "kind": "x", "n": 20})
    assert len(log_files(path)) == 1
    monkeypatch.setattr(sink, "_closes_again", 0.0)  # a minute has passed
    for n in range(20):
        sink.write({"v": 1, "kind": "x", "n": n})
    assert len(log_files(path)) > 1 and verify_log(path).ok


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_share_and_rotate_one_log(tmp_path: Path) -> None:
    """Each record is there once and in its writer's order, whichever process closed the file."""
    path, context = tmp_path / "a.jsonl", multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(path, 150, who), kwargs={"max_bytes": 4000}) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert verify_log(path).ok and len(log_files(path)) > 5
    for who in range(3):
        assert [r["n"] for r in records(path) if r["who"] == who] == list(range(150))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", ["open", "link", "replace"])
def test_a_writer_that_dies_in_a_rotation_leaves_a_whole_log(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each of its steps; the next writer ends it."""
    path = tmp_path / "a.jsonl"
    write(path, 3, max_bytes=10**6)
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(os if step == "link" else Path, step, die)
        write(path, 1, max_bytes=10)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert verify_log(path).ok and len(records(path)) == 3
    write(path, 2, max_bytes=10)
    assert verify_log(path).ok
    assert [r["n"] for r in records(path)] == [0, 1, 2, 0, 1]


def test_a_log_that_cannot_rotate_is_written_on(log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A file system without links costs the rotation, and no record and no decision."""
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    write(log, 30)
    assert verify_log(log).ok and len(records(log)) == 80
    assert "grows on" in caplog.text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root may change owners")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_of_another_owner_is_one_sentence_and_a_code(tmp_path: Path) -> None:
    """It says whose file it is, and what to do."""
    path = tmp_path / "a.jsonl"
    write(path, 1)
    tmp_path.chmod(0o755)
    read, out = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        for parent in (p for p in path.parents if not p.stat().st_mode & 0o077):
            parent.chmod(0o755)
        os.setuid(65534)
        try:
            FileSink(path)
        except AuditError as exc:
            os.write(out, str(exc).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(out)
    told = os.read(read, 500).decode()
    assert told.startswith("audit_unavailable: ") and "it belongs to user 0 and cannot be written" in told


@pytest.mark.parametrize("settings", [{"max_bytes": 0}, {"max_bytes": "1"}, {"max_age": 0}, {"max_age": float("nan")}], ids=str)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FileSink(tmp_path / "a", **settings)


def test_a_removed_segment_leaves_the_newest_anchors(tmp_path: Path) -> None:
    """Otherwise an older copy of the ledger would be accepted. One that a later segment holds is not repeated."""
    log = tmp_path / "audit.jsonl"
    sink = FileSink(log, max_bytes=1500)
    anchors = [{"tenant": t, "ledger": "l", "position": n, "nonce": "n"} for t, n in (("a", 1), ("b", 1), ("a", 2))]
    for n, anchor in enumerate(anchors):
        sink.write({"v": 1, "kind": "ledger", "ts": 1.0 + n, "ledger": anchor})
        write(log, 15)
    assert len(drop_segments(log, 1e9)) > 3 and verify_log(log).ok
    assert [FileSink(log).anchor(tenant) for tenant in ("a", "b", "c")] == [anchors[2], anchors[1], None]
    assert [r["ledger"]["position"] for r in read_log(log, "ledger") if r and r["kind"] == "ledger"].count(2) == 1


def test_a_segment_that_is_removed_meanwhile_does_not_end_rotation(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention may remove one while a writer looks for its segments."""
    sink, seen = FileSink(log, max_bytes=1500), Path.samefile
    first = log_files(log)[0]

    def removed(one: Path, other: Path) -> bool:
        if one == first:  # it is among those that were found just now
            one.unlink()
        return seen(one, other)

    before = len(log_files(log))
    monkeypatch.setattr(Path, "samefile", removed)
    for n in range(50):
        sink.write({"v": 1, "kind": "completion", "ts": 1.0, "n": n, "pad": "x" * 20})
    assert not first.exists() and len(log_files(log)) > before + 3


SCOPE = {"tenant": "t", "issuer": "i", "graph": "g", "thread": "t"}
REVOKED = {"kind": "run", "ts": 1.0, "event": "revoked", "scope": SCOPE, "agent": ["a"], "detail": {}}
PERMIT = {
    "kind": "decision", "ts": 1.0, "action": "tools/call", "outcome": "permit", "decision_id": "d", "resource": "pay",
    "scope": SCOPE, "request": {}, "reasons": [], "erased": ["/context/call/args"],
}  # fmt: skip
RESTORED = "ledger restored ledger.db --audit audit.jsonl --by user:carol --reason x --yes"
OTHER_TYPES = [
    (RESTORED, {**REVOKED, "ts": "x"}),
    (RESTORED, {**REVOKED, "ts": 1e308}),
    (RESTORED, {**REVOKED, "agent": [1]}),
    (RESTORED, {**REVOKED, "scope": {**SCOPE, "thread": 7}}),
    (RESTORED, {**REVOKED, "scope": {"tenant": "t"}}),
    (RESTORED, {**PERMIT, "decision_id": {}}),
    (RESTORED, {**PERMIT, "scope": []}),
    (RESTORED, {**PERMIT, "claim": {"deeds": [1]}, "request": {"context": 1}}),
    (RESTORED, {"kind": "completion", "state": "failed", "decision_id": []}),
    ("learn audit.jsonl", {**PERMIT, "resource": 7}),
    ("learn audit.jsonl", {"kind": "x", "type": "tool_call", "tool": None, "args": {}}),
    ("audit prune --older-than 0 --audit audit.jsonl", {**REVOKED, "ts": "x"}),
    ("audit prune --older-than 0 --audit audit.jsonl", {"kind": "x"}),
]


@pytest.mark.parametrize(("command", "record"), OTHER_TYPES)
def test_a_record_whose_members_have_other_types_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, record: dict[str, Any]
) -> None:
    """The chain is whole. Nothing is changed or removed."""
    monkeypatch.chdir(tmp_path)
    assert cli("ledger", "migrate", "ledger.db").exit_code == 0
    sink = FileSink("audit.jsonl", max_bytes=10)
    for one in (REVOKED, record):
        sink.write(one)
    if "prune" in command:
        sink.write(REVOKED)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    told = cli(*command.split())
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1) and told.stderr.startswith("error: config: audit.jsonl")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_more_steps_than_can_be_kept_are_refused(log: Path) -> None:
    told = cli("audit", "show", "--audit", log, "--limit", 10**20)
    assert (told.exit_code, "error: config: Invalid value for '--limit'" in told.stderr) == (2, True)
