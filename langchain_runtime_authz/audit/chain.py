"""Chain audit lines by hashes: make a line, read a file, verify that it is whole.

A file is a sequence of lines, each ended by one newline. A line holds `seq`, its number from 0, and `prev`, the
SHA-256 (hex) of the bytes of the previous line, 64 zeros in the first. The hash of the last line is the *head*. Pin
the head (store it elsewhere): then every edit, deletion, insertion and move before that line is detected. Without a
pinned head, the end of the file can be cut or rewritten unnoticed.

A writer that dies leaves at most a fragment. Nothing is removed: the next writer ends the fragment with a newline
and appends a `torn` record. The `torn` record holds the hash of the last whole record, and the hashes of the fragments
after it. A line that is not a record is accepted only if a `torn` record names it.

A rotated log is a sequence of such files: `audit.jsonl.000001`, `.000002` and so on, and `audit.jsonl`, the current
one. The first record of a segment, `continued`, holds the head of the segment before it. Before an old segment is
removed, a record `dropped` notes its head, so that a missing or exchanged segment is detected.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import orjson

from langchain_runtime_authz.digest import json_encoder, parse_object
from langchain_runtime_authz.errors import AuditError, Code, ConfigError

GENESIS: Final = "0" * 64
TORN: Final = "torn"
CONTINUED: Final = "continued"
DROPPED: Final = "dropped"
NOT_HELD: Final = "no line is the pinned head: the end was cut, or a line before it was edited"
DIGITS: Final = 6  # of a closed segment's number
MAX_LINE: Final = 1 << 26  # bytes with the newline; no longer record is written
TOO_LONG: Final = f"a line has more than {MAX_LINE} bytes, so this is not an audit log"
PACK: Final = ".zip"  # suffix of an evidence pack; a file with any other name is a log

_encode: Final = json_encoder(ascii_only=True, ordered=False)
Opened = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ChainReport:
    """The result of a verification."""

    records: int  # lines that verified
    head: str  # hash of the last line that verified; pin it elsewhere
    ok: bool
    error_line: int | None = None  # from 1: the first line that failed, or the line that is missing at the end
    error: str | None = None  # what is wrong with that line
    file: str = ""  # name of the segment with that line, if the log has several segments
    later: int | None = field(default=None, compare=False)  # lines after the pinned head, if it was found
    code: Code = field(default=Code.CHAIN_BROKEN, compare=False)  # stable code of the failure
    moved: str | None = None  # head of the file that was moved away or replaced, if this log continues one

    @property
    def where(self) -> str:
        """Return the failed line's number, with its segment's name if there are several."""
        return f"{self.file} line {self.error_line}" if self.file else f"line {self.error_line}"


def make_line(record: Mapping[str, Any], seq: int, prev: str) -> bytes:
    """Return one line without its newline, in ASCII, so that no value can end a line."""
    return "".join(_encode({**record, "seq": seq, "prev": prev}, 0)).encode("ascii")


def read_lines(file: Any) -> Iterator[bytes]:
    """Yield a file's lines. Cut a line at `MAX_LINE` bytes, then raise `ConfigError`."""
    for line in iter(partial(file.readline, MAX_LINE + 1), b""):
        yield line
        if len(line) > MAX_LINE:
            raise ConfigError(f"{getattr(file, 'name', 'a log')}: {TOO_LONG}")


def line_hash(line: bytes) -> str:
    """Return a line's SHA-256 in hex."""
    return hashlib.sha256(line).hexdigest()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, read strictly; `None` if the line is not a record."""
    try:
        record = parse_object(line)
    except ValueError:
        return None
    if type(record.get("seq")) is not int or not isinstance(record.get("prev"), str):
        return None
    return record


def verify_chain(
    source: str | Path | IO[bytes], head: str | None = None, joints: list[dict[str, Any]] | None = None
) -> ChainReport:
    """Verify a chain from its first line to its last.

    Args:
        source: path of the file, or the open binary file.
        head: the pinned hash of a line that the chain must hold. Edits and cuts after that line are not detected.
        joints: given if the open file `source` is one segment of a log; `head` may then be in another segment. The
            segment's records `continued` and `dropped` are added to this list.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return verify_chain(file, head)
    prev = GENESIS  # of the previous line
    whole = GENESIS  # of the last record that is not a fragment
    fragments: list[str] = []
    count = 0
    pinned = None  # number of the line that is the head
    for line in read_lines(source):
        # A line without its newline is a fragment, even if it parses.
        text = line[:-1] if line.endswith(b"\n") else b"\0" + line
        own, record, wrong = line_hash(text), parse_line(text), None
        if len(line) > MAX_LINE:
            wrong = TOO_LONG
        elif record is None:
            fragments.append(own)
        elif record["seq"] != count:
            wrong = f"its `seq` is {record['seq']}, not {count}: a line was dropped, inserted or moved"
        elif record["prev"] != prev:
            wrong = "its `prev` is not the hash of the previous line: a line was edited"
        elif (record.get("kind") == TORN) != bool(fragments):
            wrong = "a fragment must be followed by its `torn` record, and only a fragment"
        elif fragments and (record.get("fragments") != fragments or record.get("after") != whole):
            wrong = "the `torn` record is of other fragments"
        else:
            fragments, whole = [], own
        if wrong is not None:
            return ChainReport(count, prev, False, count + 1, wrong)
        if joints is not None and record is not None and record.get("kind") in (CONTINUED, DROPPED):
            joints.append(record)
        prev = own
        count += 1
        if own == head:
            pinned = count
    if fragments:
        intact = count - len(fragments)
        return ChainReport(intact, whole, False, intact + 1, "it is not a record, and no `torn` record follows")
    if head == prev:  # the last line, or an empty chain
        pinned = count
    later = count - pinned if pinned is not None else None
    if head is not None and later is None and joints is None:
        return ChainReport(count, prev, False, count + 1, NOT_HELD)
    return ChainReport(count, prev, True, later=later)


def log_files(path: str | Path) -> list[Path]:
    """Return the files of a log: closed segments, oldest first, and the current one."""
    path, real = Path(path), Path(os.path.realpath(path))
    closed = sorted(real.parent.glob(glob.escape(real.name) + "." + "[0-9]" * DIGITS))
    # A writer that dies during a rotation leaves a segment that is the current file under a second name.
    return [*(f for f in closed if not (path.exists() and f.samefile(path))), path]


def first_record(path: Path) -> dict[str, Any]:
    """Return a file's first record, or `{}`."""
    with path.open("rb") as file:
        return parse_line(file.readline(MAX_LINE).rstrip(b"\n")) or {}


def verify_log(path: str | Path, head: str | None = None) -> ChainReport:
    """Verify a log with all its segments, as `verify_chain` does one file."""
    while True:
        files = log_files(path)
        report = verify_files([(f.name, partial(f.open, "rb")) for f in files], head)
        if report.ok or files == log_files(path):  # otherwise a segment was closed meanwhile
            return report


def verify_or_raise(path: str | Path) -> ChainReport:
    """Verify a log with all its segments, or raise `AuditError` (`chain_broken`)."""
    report = verify_log(path)
    if not report.ok:
        raise AuditError(Code.CHAIN_BROKEN, f"{Path(path).name}, {report.where}: {report.error}")
    return report


def verify_files(files: Sequence[tuple[str, Callable[[], Any]]], head: str | None = None) -> ChainReport:
    """Verify a log's segments: names and functions that open them, oldest first.

    `head`: the pinned hash of a line that the log must hold.
    """
    count, before, dropped, starts, moved, later = 0, GENESIS, dict[str, int](), "", None, None
    for name, opened in files:
        shown = name if len(files) > 1 else ""
        own: list[dict[str, Any]] = []
        with opened() as file:
            report = verify_chain(file, head, own)
        first = own[0] if own and own[0]["seq"] == 0 else {}
        after = str(first.get("after")) if first.get("kind") == CONTINUED else GENESIS
        if not report.ok:
            return replace(report, records=count + report.records, file=shown)
        if not count and "segment" in first:
            starts = after  # earlier segments were removed, which a later record must state
        elif not count and after != GENESIS:
            moved = after
        elif count and after != before:
            wrong = "it does not continue the segment before it: a segment is missing, or in another's place"
            return ChainReport(count, before, False, 1, wrong, shown)
        moved = moved or next((str(r.get("after")) for r in own if r["seq"] and r.get("kind") == CONTINUED), None)
        dropped = {str(r.get("head")): count + r["seq"] for r in own[::-1] if r.get("kind") == DROPPED} | dropped
        count, before = count + report.records, report.head
        later = report.later if later is None or report.later is not None else later + report.records
    if starts and starts not in dropped:
        wrong = "the segments before it are missing, and no record says that they were dropped"
        return ChainReport(0, GENESIS, False, 1, wrong, files[0][0])
    # A record `dropped` after the pinned head proves nothing, because anybody who can append to the file can add it.
    if head is not None and (later is None or (starts and dropped[starts] >= count - later)):
        when = ", and no line from there on is the pinned head" if later is None else " after the pinned head"
        gone = f"segments before {files[0][0]} were removed{when}"
        error, code = (gone, Code.CHAIN_PRUNED) if starts else (NOT_HELD, Code.CHAIN_BROKEN)
        return ChainReport(count, before, False, report.records + 1, error, shown, code=code, moved=moved)
    return ChainReport(count, before, True, later=later, moved=moved)


def read_log(path: str | Path, mark: str = "", opened: Opened | None = None) -> Iterator[dict[str, Any] | None]:
    """Yield a log's records that contain `mark`, and all `completion`s and `mint`s.

    `mark` is an id, or "" for all records. A line that is not a record gives `None`. The log is not verified.
    `opened` restores sealed contents (`audit.encryption`). Raises `ConfigError` if the file is an evidence pack.
    """
    if Path(path).suffix == PACK:
        raise ConfigError(f"{Path(path).name} is an evidence pack; unpack it, and give the log in it")
    marks = (json.dumps(mark)[1:-1].encode(), b'"kind":"completion"', b'"kind":"mint')
    for part in log_files(path):
        with part.open("rb") as file:
            for line in read_lines(file):
                if any(m in line for m in marks):
                    record = _parsed_record(line)
                    yield opened(record) if opened is not None and record is not None else record


def _parsed_record(line: bytes) -> dict[str, Any] | None:
    record: Any = None
    for loads in (orjson.loads, json.loads):  # the second reads lone surrogates too
        with suppress(ValueError, RecursionError):
            record = loads(line)
            break
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None
