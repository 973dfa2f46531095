"""The hash chain: what a line is, and whether a file of them is whole.

A file is a sequence of lines, each ended by one newline. A line holds `seq`, its number from 0, and
`prev`, the SHA-256 (hex) of the bytes of the line before it, 64 zeros in the first. Its own hash is the
*head*. Whoever keeps a head elsewhere can tell that nothing up to it was edited, dropped, inserted or
moved; without one, the end of the file can be cut off or rewritten unnoticed.

A writer that dies leaves at most a fragment behind. Nothing is taken away: the next writer ends the
fragment with a newline and appends a `torn` record that holds the hashes of the fragments since the last
whole record, and the hash of that record. A line that is no record is accepted only so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from langchain_runtime_authz.authzen import strict_json

__all__ = ["GENESIS", "TORN", "ChainReport", "line_hash", "make_line", "parse_line", "verify_chain"]

GENESIS: Final = "0" * 64
TORN: Final = "torn"


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What was found of a chain.

    Attributes:
        records: lines that verified.
        head: hash of the last of them; pin it elsewhere.
        ok: whether everything verified.
        error_line: number (from 1) of the first line that did not, or of the line missing at the end.
        error: what was wrong with it.
    """

    records: int
    head: str
    ok: bool
    error_line: int | None = None
    error: str | None = None


def make_line(record: dict[str, Any], seq: int, prev: str) -> bytes:
    """One line without its newline.

    ASCII: newlines, separators and lone surrogates in a value are escaped and can not end a line.

    Raises:
        ValueError: the record holds NaN, an infinity or a cycle.
        TypeError: the record holds something that is not JSON.
    """
    line = {**record, "seq": seq, "prev": prev}
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode("ascii")


def line_hash(line: bytes) -> str:
    """SHA-256 (hex) of a line without its newline."""
    return hashlib.sha256(line).hexdigest()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or `None` where it holds none. Strict: no duplicate members, no NaN."""
    try:
        record = strict_json(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("seq")) is not int or not isinstance(record.get("prev"), str):
        return None
    return record


def verify_chain(source: str | Path | Iterable[bytes], head: str | None = None) -> ChainReport:
    """Verify a chain from its first line to its last.

    Args:
        source: path of the file, or its lines (bytes, with or without newline).
        head: the hash that the last line must have. Give one from elsewhere: only then is an edit of
            the last line, or a cut at the end, found.

    Raises:
        OSError: the file can not be read.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return _verify(_whole(file), head)
    return _verify(source, head)


def _verify(lines: Iterable[bytes], head: str | None) -> ChainReport:
    prev = GENESIS  # of the line before
    whole = GENESIS  # of the last record, fragments apart
    fragments: list[str] = []
    count = 0
    for line in lines:
        text = line.removesuffix(b"\n")
        record = parse_line(text)
        wrong = None
        if record is None:
            fragments.append(line_hash(text))
        elif record["seq"] != count:
            wrong = f"its `seq` is {record['seq']}, not {count}: a line was dropped, inserted or moved"
        elif record["prev"] != prev:
            wrong = "its `prev` is not the hash of the line before: a line was edited"
        elif (record.get("kind") == TORN) != bool(fragments):
            wrong = "a fragment must be followed by the `torn` record of it, and only a fragment"
        elif fragments and (record.get("fragments") != fragments or record.get("after") != whole):
            wrong = "the `torn` record is of other fragments"
        else:
            fragments = []
            whole = line_hash(text)
        if wrong is not None:
            return ChainReport(count, prev, False, count + 1, wrong)
        prev = line_hash(text)
        count += 1
    if fragments:
        intact = count - len(fragments)
        return ChainReport(intact, whole, False, intact + 1, "it is not a record, and no `torn` record follows")
    if head is not None and head != prev:
        return ChainReport(
            count,
            prev,
            False,
            count + 1,
            "the last line is not the pinned head: the end was cut or edited",
        )
    return ChainReport(count, prev, True)


def _whole(file: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file; one without its newline is a fragment, even where it parses."""
    for line in file:
        yield line if line.endswith(b"\n") else b"\0" + line
