"""The decision log: what a record holds, and that a chain shows every change."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.audit import chain, sinks
from langchain_runtime_authz.audit.chain import (
    GENESIS,
    ChainReport,
    line_hash,
    log_files,
    make_line,
    read_lines,
    verify_chain,
    verify_log,
)
from langchain_runtime_authz.audit.record import completion_record, decision_record, mint_record, run_record
from langchain_runtime_authz.audit.sinks import AuditSink, FileSink, MemorySink
from langchain_runtime_authz.errors import AuditError, ConfigError
from langchain_runtime_authz.evaluation import Decision, EvaluationRequest, Obligation, deny
from langchain_runtime_authz.identity.workload import Identity, StaticIdentity
from langchain_runtime_authz.testing.example_request import example_request
from tests.cli import cli

NASTY = 'x"\n\r\u2028\u0085\x00\ud800\\","prev":"0"}\n{"seq":0}'


def a_request(**overrides: object) -> EvaluationRequest:
    secrets = {"context.task.text": "TASK-SECRET", "context.call.args": {"to": "ARGS-SECRET"}}
    return example_request({**secrets, "resource.properties": {"effect": "pay", "target": {"to": "TARGET-SECRET"}}, **overrides})


PERMIT = Decision(
    outcome="permit", decision_id="d-1",
    obligations=(Obligation(id="o", type="redact", properties={"fields": ["iban"]}),), policy_revision="r1",
)


def a_record(request: EvaluationRequest | None, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"now": 5.0, "decision": PERMIT, "pdp": "wasm", "action": "tools/call", "resource": "pay"}
    return decision_record(body=request.to_json() if request else None, **{**fields, **changes})


def test_a_decision_record_says_what_was_decided_and_by_whom() -> None:
    """Everything an operator asks first, without contents."""
    request = a_request()
    record = a_record(request, run_id="r", jti="j", scope=("acme", "iss", "g", "th"), agent=("root", "payer"))
    asked = record.pop("request")
    expected = {
        "v": 1, "kind": "decision", "ts": 5.0, "decision_id": "d-1", "outcome": "permit", "reasons": [],
        "failure": None, "obligations": ["redact"], "policy_revision": "r1", "pdp_decision_id": "", "pdp": "wasm",
        "action": "tools/call", "resource": "pay", "run_id": "r", "jti": "j",
        "scope": {"tenant": "acme", "issuer": "iss", "graph": "g", "thread": "th"}, "agent": ["root", "payer"],
        "request_digest": "sha256:" + hashlib.sha256(request.to_json()).hexdigest(),
        "erased": [f"/{p}" for p in ("context/call/args", "context/task/text", "context/lease/grant/args", "resource/properties/target")],
    }
    assert expected == record and "SECRET" not in json.dumps(asked)
    assert asked["context"]["call"]["args_digest"].startswith("sha256:")
    assert asked["resource"]["properties"] == {"effect": "pay"}


def test_contents_are_kept_on_demand() -> None:
    """A sink that wants contents gets them all, and nothing is named as erased."""
    record = a_record(a_request(), content=True)
    assert record["request"] == json.loads(a_request().to_json()) and record["erased"] == []


def test_a_refusal_without_a_request_is_a_record_too() -> None:
    """What could not be put into words is recorded by action and resource."""
    record = a_record(None, decision=deny("uncanonical_argument", "mapping"))
    assert (record["request"], record["request_digest"], record["erased"]) == (None, None, [])
    assert (record["failure"], record["reasons"]) == ("mapping", ["uncanonical_argument"])
    assert (record["action"], record["resource"]) == ("tools/call", "pay")


def test_only_what_was_there_is_named_as_erased() -> None:
    """A request without a call loses its task text only."""
    bare = a_request(resource={"type": "run", "id": "r"}, **{"context.call": None, "context.lease.grant": None})
    assert a_record(bare)["erased"] == ["/context/task/text"]


def test_all_records_share_a_head() -> None:
    """Version, kind and time stand in every record."""
    records = [
        a_record(a_request()),
        completion_record(now=5.0, decision_id="d", call_key="k", state="done"),
        mint_record(now=5.0, decision_id="d", jti="j", audience="a", expires_at=65, epoch=1),
        run_record(now=5.0, event="started", run_id="r", epoch=1, detail={"code": "x"}),
    ]
    assert [r["kind"] for r in records] == ["decision", "completion", "mint", "run"]
    assert {(r["v"], r["ts"]) for r in records} == {(1, 5.0)}
    assert all("token" not in key for r in records for key in r)


def test_memory_keeps_the_last() -> None:
    sink = MemorySink(maxlen=2)
    assert isinstance(sink, AuditSink)
    for n in range(3):
        sink.write({"n": n})
    assert sink.records == [{"n": 1}, {"n": 2}] and (sink.content, sink.waits) == (False, False)


def test_memory_builds_a_record_when_it_is_read() -> None:
    """It holds what it would have held at once."""
    sink, ended = MemorySink(), {"now": 6.0, "decision_id": "d-1", "call_key": "k", "state": "done"}
    sink.defer(partial(completion_record, **ended))
    sink.write({"n": 1})
    assert sink.records == [completion_record(**ended), {"n": 1}]  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def filled(path: Path, count: int = 5, **setup: Any) -> FileSink:
    sink = FileSink(path, **setup)
    for n in range(count):
        sink.write({"kind": "x", "n": n, "text": NASTY})
    return sink


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("durable", [False, True])
def test_a_chain_verifies(path: Path, durable: bool) -> None:
    """What was written verifies up to the writer's own head; hostile strings stay inside their line."""
    sink = filled(path, durable=durable)
    assert isinstance(sink, AuditSink)
    report = verify_chain(path, sink.head)
    assert report == ChainReport(records=5, head=sink.head, ok=True)
    records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [r["seq"] for r in records] == [0, 1, 2, 3, 4]
    assert records[0]["prev"] == GENESIS
    assert {r["text"] for r in records} == {NASTY}
    assert verify_chain(str(path), sink.head) == report


def test_a_chain_goes_on(path: Path) -> None:
    """A sink that wrote nothing leaves a chain of nothing. A second start continues where the first ended."""
    sink = FileSink(path)
    assert verify_chain(path, sink.head) == ChainReport(0, GENESIS, True)
    filled(path).close()
    sink = filled(path)
    assert verify_chain(path, sink.head).records == 10


def edit(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"kind":"x"', b'"kind":"y"'), *lines[at + 1 :]]


TAMPER: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edit": lambda ls: edit(ls, 2), "edit first": lambda ls: edit(ls, 0), "edit last": lambda ls: edit(ls, 4),
    "whitespace": lambda ls: [ls[0], ls[1].replace(b":", b": "), *ls[2:]], "delete": lambda ls: [*ls[:2], *ls[3:]],
    "delete first": lambda ls: ls[1:], "truncate": lambda ls: ls[:4], "empty": lambda ls: [],
    "cut a line": lambda ls: [*ls[:4], ls[4][:-20]], "cut the newline": lambda ls: [*ls[:4], ls[4][:-1]],
    "swap": lambda ls: [ls[0], ls[2], ls[1], *ls[3:]], "repeat": lambda ls: [*ls[:3], ls[2], *ls[3:]],
    "repeat last": lambda ls: [*ls, ls[-1]],
    "insert": lambda ls: [*ls[:2], make_line({"kind": "x"}, 2, line_hash(ls[1][:-1])) + b"\n", *ls[2:]],
    "append": lambda ls: [*ls, make_line({"kind": "x"}, 5, line_hash(ls[4][:-1])) + b"\n"],
    "garbage": lambda ls: [*ls, b"garbage\n"], "garbage without newline": lambda ls: [*ls, b"garbage"],
    "blank line": lambda ls: [*ls, b"\n"], "garbage between": lambda ls: [*ls[:2], b"garbage\n", *ls[2:]],
    "not an object": lambda ls: [*ls, b"[]\n"],
    "duplicate member": lambda ls: [*ls[:4], ls[4].replace(b'{"kind":"x"', b'{"kind":"y","kind":"x"')],
    "no newline between": lambda ls: [ls[0], ls[1][:-1], *ls[2:]],
    "not a number": lambda ls: [*ls[:4], ls[4].replace(b'"n":4', b'"n":NaN')],
    "boolean seq": lambda ls: [ls[0].replace(b'"seq":0', b'"seq":false'), *ls[1:]],
    "forged torn": lambda ls: [
        *ls[:4], b"gone\n",
        make_line({"kind": "torn", "fragments": [line_hash(b"gone")], "after": line_hash(ls[3][:-1])}, 5, line_hash(b"gone"))
        + b"\n",
    ],
}


@pytest.mark.parametrize("name", TAMPER)
def test_a_chain_shows_every_change(path: Path, name: str) -> None:
    """Against a pinned head each does not verify, but a log that grew does. Without one the end can be rewritten."""
    sink = filled(path)
    path.write_bytes(b"".join(TAMPER[name](lines_of(path))))
    report = verify_chain(path, sink.head)
    if name == "append":
        assert (report.ok, report.later) == (True, 1)
        return
    assert not report.ok and report.error
    assert report.error_line is not None
    assert verify_chain(path).ok is (name in ("edit last", "truncate", "empty", "append", "forged torn"))


def test_a_pinned_head_is_found_in_a_log_that_grew(path: Path) -> None:
    """In any of its segments. Whoever edits a line before it cannot keep it."""
    sink = FileSink(path, max_bytes=600)
    heads = []
    for number in range(20):
        sink.write({"v": 1, "kind": "decision", "ts": 1.0, "n": number})
        heads.append(sink.head)
    later = [verify_log(path, head).later for head in heads]
    assert later[-1] == 0 and later == sorted(map(int, later), reverse=True)
    assert len(log_files(path)) > 2 and not verify_log(path, "a" * 64).ok
    assert not verify_log(path, GENESIS).ok


def test_any_flipped_byte_shows(path: Path) -> None:
    """There is no byte of the file that can be changed unseen."""
    sink = filled(path, 3)
    whole, chance = path.read_bytes(), random.Random(7)
    for at in chance.sample(range(len(whole)), 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ chance.randrange(1, 256)]) + whole[at + 1 :])
        assert not verify_chain(path, sink.head).ok


@pytest.mark.parametrize("record", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_what_can_not_be_written_is_an_error(path: Path, record: dict[str, Any]) -> None:
    """A record that is not JSON is refused, quotes nothing, and the chain goes on."""
    sink = filled(path, 1)
    with pytest.raises(AuditError, match="audit_unavailable: "):
        sink.write(record)
    sink.write({"kind": "x"})
    assert verify_chain(path, sink.head).records == 2


def test_a_record_can_not_forge_its_place(path: Path) -> None:
    """`seq` and `prev` are the chain's, and the caller's record is not changed."""
    sink = FileSink(path)
    record = {"seq": 99, "prev": "f" * 64}
    sink.write(record)
    assert record == {"seq": 99, "prev": "f" * 64} and verify_chain(path, sink.head).ok


def test_a_sink_that_can_not_write_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a failing sync is `audit_unavailable`; nothing is lost and the chain goes on."""
    sink = filled(path, 1, durable=True)
    real = os.write
    for fail in ("raise", "short", "sync"):
        with monkeypatch.context() as patch:
            if fail == "sync":
                patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "I/O error")))
            elif fail == "short":
                patch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
            else:
                patch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(AuditError) as caught:
                sink.write({"kind": "x", "fail": fail})
        assert caught.value.code == "audit_unavailable"
        sink.write({"kind": "x"})
    assert verify_chain(path, sink.head).ok


@pytest.mark.parametrize("make", ["missing/audit.jsonl", ".", "fifo"])
def test_a_place_that_is_no_file_is_refused(tmp_path: Path, make: str) -> None:
    """A missing folder, a folder and a pipe fail when the sink is built, not at the first record."""
    if make == "fifo":
        os.mkfifo(tmp_path / "fifo")
    with pytest.raises(AuditError):
        FileSink(tmp_path / make)


@pytest.mark.parametrize("cut", [1, 2, 30, 150])
def test_a_torn_end_stays_and_is_named(path: Path, cut: int) -> None:
    """What a crash left is never taken away: it is followed by a record of it, and the chain verifies."""
    filled(path, 3).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert not verify_chain(path).ok
    sink = filled(path, 2)
    after = path.read_bytes()
    assert after.startswith(whole[:-cut]) and verify_chain(path, sink.head).ok
    kinds = [json.loads(line).get("kind") for line in after.splitlines() if line.endswith(b"}")]
    # Only the newline was missing: the record is whole, there is nothing to tell.
    assert kinds.count("torn") == (0 if cut == 1 else 1)


def test_a_crash_in_the_repair_is_repaired(path: Path) -> None:
    """Every cut of a repaired file is repaired in its turn, again and again."""
    filled(path, 2).close()
    path.write_bytes(path.read_bytes()[:-20])
    FileSink(path).close()
    repaired = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(repaired[:-cut])
        for _ in range(3):
            FileSink(path).close()
            assert verify_chain(path).ok
            path.write_bytes(path.read_bytes()[:-15])
        sink = filled(path, 1)
        assert verify_chain(path, sink.head).ok


def test_a_repair_that_finds_no_room_is_made_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fragment is ended, and its `torn` record does not fit: the next record still follows that record."""
    sink, real = filled(path, 2), os.write
    with path.open("ab") as file:
        file.write(b'{"kind":"x"')

    def write(fd: int, data: bytes) -> int:
        if len(data) > 1:
            raise OSError(28, "No space left")
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(AuditError):
            sink.write({"kind": "x"})
    sink.write({"kind": "x"})
    assert verify_chain(path, sink.head).ok


def test_zeros_after_a_power_loss_are_a_fragment(path: Path) -> None:
    """Blocks that a file system filled with zeros are kept and named, larger than a read or not."""
    for size in (10, 50_000):
        filled(path, 2).close()
        with path.open("ab") as file:
            file.write(b"\0" * size)
        sink = filled(path, 1)
        assert verify_chain(path, sink.head).ok


def test_a_fragment_can_not_be_edited(path: Path) -> None:
    """The torn record binds the bytes that it names."""
    filled(path, 2).close()
    path.write_bytes(path.read_bytes()[:-20])
    sink = filled(path, 1)
    lines = lines_of(path)
    path.write_bytes(b"".join([lines[0], lines[1][:-10] + b"\n", *lines[2:]]))
    assert not verify_chain(path, sink.head).ok


def test_another_file_is_not_adopted(path: Path) -> None:
    """A text file that is no chain is refused and left as it was."""
    path.write_text("one\ntwo\nthree")
    with pytest.raises(AuditError, match="chain_broken: "):
        FileSink(path)
    assert path.read_text() == "one\ntwo\nthree"


def test_a_file_that_shrank_is_refused(path: Path) -> None:
    """A writer does not go on after its own records were cut away."""
    sink = filled(path)
    path.write_bytes(b"".join(lines_of(path)[:2]))
    with pytest.raises(AuditError, match="chain_broken: "):
        sink.write({"kind": "x"})


@pytest.mark.parametrize("kept", [0, 1])
def test_a_file_that_was_rewritten_longer_is_refused(path: Path, kept: int) -> None:
    """The chain in it is whole, but the last line that this writer saw is not where it was."""
    sink = filled(path)
    ours = lines_of(path)
    more = chain.make_line({"kind": "x", "pad": "x" * 4096}, kept, chain.line_hash(ours[0][:-1]) if kept else chain.GENESIS)
    path.write_bytes(b"".join(ours[:kept]) + more + b"\n")
    assert verify_chain(path).ok
    for _ in range(2):
        with pytest.raises(AuditError, match="chain_broken: "):
            sink.write({"kind": "x"})
    path.write_bytes(b"".join(ours))
    FileSink(path).write({"kind": "y"})  # another writer's line is read, as before
    sink.write({"kind": "x"})
    assert verify_chain(path, sink.head).ok


@pytest.mark.parametrize("names", [False, True])
def test_another_chain_in_its_place_is_named(path: Path, tmp_path: Path, names: bool) -> None:
    """The file was replaced, or moved away and begun anew by a process that did not know it."""
    sink = filled(path)
    old, other = sink.head, tmp_path / "other"
    if names:  # by another writer that knew it
        path.rename(path.with_suffix(".1"))
        path.write_bytes(chain.make_line({"kind": "continued", "after": old}, 0, chain.GENESIS) + b"\n")
    else:
        filled(other)
        other.replace(path)
        assert verify_log(path).moved is None
    before = len(lines_of(path))
    sink.write({"kind": "x"})
    sink.write({"kind": "x"})
    assert [json.loads(line)["kind"] for line in lines_of(path)[before:]] == [*["continued"] * (not names), "x", "x"]
    assert (verify_log(path).ok, verify_log(path).moved) == (True, old)


def test_a_rotated_file_is_continued(path: Path) -> None:
    """A file that was moved away is followed by one that begins with its head."""
    sink = filled(path, 2)
    old = sink.head
    path.rename(path.with_suffix(".1"))
    sink.write({"kind": "x"})
    first = json.loads(lines_of(path)[0])
    assert (first["kind"], first["after"], first["seq"]) == ("continued", old, 0)
    assert verify_chain(path, sink.head).records == 2 and verify_chain(path.with_suffix(".1"), old).ok


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("fit", range(3))
def test_a_moved_log_is_continued_once_there_is_room(
    path: Path, fit: int, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after some of the records that name the moved file and the ledgers' commits."""
    sink, real, room = FileSink(path), os.write, [fit]
    for tenant in "ab":
        sink.write({"kind": "ledger", "ledger": {"tenant": tenant}})
    old = sink.head
    path.rename(path.with_suffix(".1"))

    def write(fd: int, data: bytes) -> int:
        room[0] -= 1
        if room[0] < 0 and not torn:
            raise OSError(28, "No space left")
        return real(fd, data if room[0] >= 0 else data[:9])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(AuditError):
            sink.write({"kind": "x"})
    if not fit and not torn:
        path.rename(path.with_suffix(".2"))  # the operator makes room
    sink.write({"kind": "x"})
    kept = [r for r in map(chain.parse_line, lines_of(path)) if r and r["kind"] != "torn"]
    assert [r["kind"] for r in kept] == ["continued", "ledger", "ledger", "x"] and kept[0]["after"] == old
    assert verify_chain(path, sink.head).ok and [sink.anchor(t) for t in "abc"] == [{"tenant": "a"}, {"tenant": "b"}, None]


def test_a_sink_goes_on_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the working directory changed."""
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = filled(Path("audit.jsonl"), 1)
    monkeypatch.chdir("else")
    sink.write({"kind": "x"})
    assert list(Path().iterdir()) == [] and verify_chain(tmp_path / "audit.jsonl", sink.head).records == 2


def test_threads_share_a_sink(path: Path) -> None:
    sink = FileSink(path)

    def work(name: int) -> None:
        for n in range(50):
            sink.write({"who": name, "n": n})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify_chain(path, sink.head).records == 400
    seen = {(r["who"], r["n"]) for r in map(json.loads, lines_of(path))}
    assert len(seen) == 400


def _write_many(path: Path, who: int, count: int) -> None:
    sink = FileSink(path)
    for n in range(count):
        sink.write({"kind": "x", "who": who, "n": n})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_inherits_a_working_sink(path: Path) -> None:
    """Parent and child go on writing through the same object, even when a thread held its lock."""
    sink = filled(path, 1)
    sink._lock.acquire()  # as another thread would, at the moment of the fork
    children = []
    for who in range(2):
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            code = 1
            try:
                for n in range(100):
                    sink.write({"kind": "x", "who": who, "n": n})
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    sink._lock.release()
    for n in range(100):
        sink.write({"kind": "x", "who": "parent", "n": n})
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert verify_chain(path).records == 301


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_writer_leaves_a_chain(path: Path) -> None:
    """After a kill at any moment the next writer goes on and everything verifies."""
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_write_many, args=(path, 0, 1_000_000))
    worker.start()
    until = time.monotonic() + 120
    while time.monotonic() < until and (not path.exists() or path.stat().st_size < 20_000):
        time.sleep(0.005)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(30)
    sink = filled(path, 1)
    report = verify_chain(path, sink.head)
    assert report.ok and report.records > 20


def test_a_lock_is_not_waited_for_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that hangs makes the others fail closed, not hang."""
    import fcntl

    sink = filled(path, 1)
    monkeypatch.setattr(sinks, "LOCK_TIMEOUT", 0.05)
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(AuditError) as caught:
            sink.write({"kind": "x"})
    assert caught.value.code == "audit_unavailable"
    sink.write({"kind": "x"})
    assert verify_chain(path, sink.head).records == 2


def test_paths_of_agents_never_share_an_id() -> None:
    """Separators inside names are escaped, and nobody vouches for a static id."""
    identity = StaticIdentity()
    assert isinstance(identity, Identity)
    paths = [(), ("",), ("", ""), ("a",), ("a", "b"), ("a/b",), ("a%2Fb",), ("é",), ("\ud800",), ("\\ud800",), ("a", "")]
    assert len({identity.agent_id(p) for p in paths}) == len(paths)
    assert identity.agent_id(("supervisor", "payer")) == "urn:langchain-runtime-authz:agent:supervisor/payer"
    assert all(identity.agent_id(p).isascii() for p in paths)
    assert identity.attested is False
    for base in ("", "spiffe://example.org/agent", "SPIFFE://x"):
        with pytest.raises(ConfigError):
            StaticIdentity(base)


@pytest.mark.parametrize("begun", [False, True], ids=["from the beginning", "after a record"])
def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    """Every reader of a log stops at the limit, with a code, and no record is written that is as long."""
    monkeypatch.setattr(chain, "MAX_LINE", 4096)
    path, read = tmp_path / "audit.jsonl", []
    sink = FileSink(path)
    for _ in range(begun):
        with pytest.raises(AuditError, match="the record is too long"):
            sink.write({"kind": "run", "x": "y" * 4096})
        sink.write({"kind": "run"})
    os.truncate(path, path.stat().st_size + (1 << 20))
    report = verify_chain(path)
    assert (report.ok, report.records, "a line has more than" in (report.error or "")) == (False, int(begun), True)
    with pytest.raises(AuditError, match=r"chain_broken: .*: a line has more than"):
        FileSink(path)
    with path.open("rb") as file, pytest.raises(ConfigError, match="a line has more than"):
        read += read_lines(file)
    assert len(read) == 1 + begun
    done = cli("audit", "verify", str(path))
    assert (done.exit_code, "a line has more than" in done.stderr, done.stderr.count("\n")) == (2 - begun, True, 1)
    for command in (["learn", str(path)], ["replay-trace", str(path), "--profiles", "langchain"]):
        assert cli(*command).exit_code == 2
