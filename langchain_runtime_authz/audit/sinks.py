"""Write, rotate and look up audit records. If a sink fails, the step is denied."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, runtime_checkable

from langchain_runtime_authz._locks import in_child
from langchain_runtime_authz._validate import checked_count, checked_seconds
from langchain_runtime_authz.audit import chain
from langchain_runtime_authz.audit.encryption import sealer
from langchain_runtime_authz.errors import AuditError, Code, ConfigError
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)

LOCK_TIMEOUT: Final = 2.0  # seconds
MAX_TORN_LINES: Final = 8  # unfinished lines at a file's end that are named in a record; more mean another file
RETRY: Final = 60.0  # seconds until a rotation that failed is tried again
BLOCK: Final = 8192
_EMPTY: Final = (0, 0, chain.GENESIS, 0)
ANCHOR: Final = "ledger"  # member of a record: the ledger's newest commit (`ledger.base.Anchor`)


@runtime_checkable
class AuditSink(Protocol):
    """Keeps records (`audit.record`).

    If `write` waits for a disk or network, set the optional attribute `waits`. Event loops then call it in a thread.
    """

    @property
    def content(self) -> bool:
        """True if records hold arguments, targets and task texts."""
        ...

    def write(self, record: dict[str, Any]) -> None:
        """Store one record, unchanged, before returning. An `AuditError` denies the step."""
        ...


class _Shown:
    def _repr_html_(self: AuditSink) -> str:
        from langchain_runtime_authz.audit.story_html import newest_steps

        return newest_steps(records_of(self))


class MemorySink(_Shown):
    """Keeps the last records in this process. Not tamper-evident.

    Args:
        maxlen: number of records; the oldest is dropped first.
        content: whether records hold arguments, targets and task texts.
    """

    waits: Final = False

    def __init__(self, maxlen: int = 10_000, *, content: bool = False) -> None:
        self.content = content
        self.kept: deque[dict[str, Any] | Callable[[], dict[str, Any]]] = deque(maxlen=maxlen)
        self.defer: Callable[[Callable[[], dict[str, Any]]], None] = self.kept.append
        """Store a function that builds a record when it is read, from immutable values."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records, oldest first."""
        return [r() if callable(r) else r for r in list(self.kept)]

    def write(self, record: dict[str, Any]) -> None:
        self.kept.append(record)


class FileSink(_Shown):
    """Appends records to a hash chain in a file (`audit.chain`).

    Several threads and processes may write one file, each through its own sink or one inherited by fork. Every
    write holds an exclusive lock and begins at the file's end.

    If another program moves the file away, the sink begins a new file. The first record, `continued`, holds the head of
    the moved file. The next records name the newest commit of each tenant's ledger. If another file has taken its place,
    these records are added there. A file that became shorter or was rewritten is refused (`chain_broken`). Only
    `drop_segments` removes segments.

    Args:
        path: path of the file, which is created with mode 0600 if it does not exist.
        durable: whether each record is on the disk (`fsync`) before `write` returns.
        content: whether records hold arguments, targets and task texts.
        max_bytes: the size at which the file is closed as a segment.
        max_age: seconds after its first record at which the file is closed as a segment.
        seal_to: the public key (PEM, or its path) to which contents are sealed. Only the owner of the private key can
            read them. Needs the extra `seal`.

    Raises `AuditError` if the file cannot be opened, or is not a chain.
    """

    waits: Final = True

    def __init__(
        self,
        path: str | Path,
        *,
        durable: bool = False,
        content: bool = False,
        max_bytes: int | None = None,
        max_age: float | None = None,
        seal_to: str | bytes | Path | None = None,
    ) -> None:
        self._given = self.path = Path(path).absolute()  # later, `path` is the file to which a symbolic link leads
        self.durable = durable
        if content and seal_to is not None:
            raise ConfigError("contents are kept in clear (`content`) or sealed (`seal_to`); give one of them")
        # Records are built with contents, and sealed before they are written.
        self.content = content or seal_to is not None
        self._seal = None if seal_to is None else sealer(seal_to)
        self._max_bytes = None if max_bytes is None else checked_count("max_bytes", max_bytes)
        self._max_age = None if max_age is None else checked_seconds("max_age", max_age)
        self._born = 0.0  # when the file began, if `max_age` is set
        self._closes_again = 0.0  # when a rotation that failed is tried again (monotonic)
        self._lock = threading.Lock()
        self._fd = -1
        self._file: os.stat_result | None = None  # `stat` of the file written so far
        # Size of the file at our last read, number of its next line, hash and length of its last line. One tuple, so that
        # an interrupt leaves either all old values or all new ones.
        self._at = _EMPTY
        self._left: str | None = None  # head of the file that was moved away, until the new file holds all of `_owed`
        self._owed: list[dict[str, Any]] = []
        self._anchors: dict[str, Any] = {}  # newest commit of each tenant's ledger
        in_child(self._forked)
        self._write(None)

    @property
    def head(self) -> str:
        """Hash of the last line that this sink saw. Keep it elsewhere, for `verify_log`."""
        return self._at[2]

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. Raises `AuditError`: `audit_unavailable` or `chain_broken`."""
        self._write(record if self._seal is None else self._seal(record))

    def anchor(self, tenant: str) -> dict[str, Any] | None:
        """Return the newest commit of a tenant's ledger that the log names, or `None`."""
        mark = f'"{ANCHOR}":{{'.encode()
        try:
            for part in reversed(chain.log_files(self.path)):
                with part.open("rb") as file:
                    # Read backwards as far as needed, because any old record may name the tenant's newest commit.
                    for line in _backward(file, self.path.name):
                        # `mark` may also stand inside a request. Only the record's own member names a commit.
                        record = chain.parse_line(line) or {} if mark in line else {}
                        if tenant_of(record) == tenant:
                            return dict(record[ANCHOR])
            return None
        except OSError as exc:
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: {exc.strerror}") from None

    def check(self) -> None:
        """Check that a record could be written, without writing one. Raises `AuditError`."""
        self._write(None)
        if not os.statvfs(self.path).f_bavail:
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: the disk is full")

    def close(self) -> None:
        """Close the file. A later `write` opens it again."""
        with self._lock:
            self._close()

    def _write(self, record: Mapping[str, Any] | None) -> None:
        try:
            with self._lock:
                while True:
                    self._open()
                    _flock(self._fd)
                    try:
                        if self._is_at_path():  # else another writer closed the file, or it was moved away
                            self._catch_up()
                            self._continue()
                            if record is None:
                                return
                            if not self._rotate():
                                self._append(record)
                                return
                    finally:
                        fcntl.flock(self._fd, fcntl.LOCK_UN)
                    self._close()
        except PermissionError:
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: {_owned(self.path)}") from None
        except (OSError, ValueError, TypeError, RecursionError) as exc:
            # The message of an encoder's exception may quote the record, so give only the exception's type.
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: {why}") from None

    def _open(self) -> None:
        if self._fd >= 0:
            return
        self.path = Path(os.path.realpath(self._given))
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        opened = os.fstat(self._fd)
        if not stat.S_ISREG(opened.st_mode):
            self._close()
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name} is not a regular file")
        if self._file is not None and not os.path.samestat(opened, self._file):
            self._left = self.head if self._at[1] else self._left
            self._at, self._owed = _EMPTY, []
        self._file = opened
        if self.durable and opened.st_size == 0:
            _sync(self.path.parent)
        self._born = float(chain.first_record(self.path).get("ts") or time.time()) if self._max_age is not None else 0.0

    def _is_at_path(self) -> bool:
        try:
            found = os.stat(self._given)  # noqa: PTH116  (each record asks)
            return self._file is not None and os.path.samestat(found, self._file)
        except FileNotFoundError:
            return False

    def _rotate(self) -> bool:
        """Keep a full file as a segment, and begin a new one. Return True if it did so."""
        size, seq, *_ = self._at
        large = self._max_bytes is not None and size >= self._max_bytes
        old = self._max_age is not None and time.time() - self._born >= self._max_age
        # Do not close a file that holds only the record `continued`.
        if seq <= 1 or not (large or old) or time.monotonic() < self._closes_again:
            return False
        try:
            closed = [int(part.suffix[1:]) for part in chain.log_files(self.path)[:-1]]
            number = 1 + max(closed, default=int(chain.first_record(self.path).get("segment", 0)))
            new = self.path.with_name(f"{self.path.name}.new")
            segment = self.path.with_name(f"{self.path.name}.{number:0{chain.DIGITS}}")
            first = _mark(chain.CONTINUED, after=self.head, segment=number)
            with new.open("wb", buffering=0) as file:
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._fd).st_mode))
                file.write(chain.make_line(first, 0, chain.GENESIS) + b"\n")
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # a writer that died during a rotation may have made this link
                os.link(self.path, segment)
            if not segment.samefile(self.path):
                raise FileExistsError(errno.EEXIST, "another file has its segment's name")
            new.replace(self.path)
            if self.durable:
                _sync(self.path.parent)
        except FileNotFoundError:  # `drop_segments` removed a segment meanwhile; the next record tries again
            return False
        except (OSError, AttributeError) as exc:  # no record is lost, so nothing is denied
            _log.error("%s cannot be closed as a segment and grows on: %s", self.path.name, exc)
            self._closes_again = time.monotonic() + RETRY
            return False
        return True

    def _catch_up(self) -> None:
        """Read the file's end if other writers appended, and end their unfinished line."""
        size = os.fstat(self._fd).st_size
        if size == self._at[0]:
            return
        known, seq, head, length = self._at
        if size < known or (seq and chain.line_hash(os.pread(self._fd, length, known - length - 1)) != head):
            raise AuditError(Code.CHAIN_BROKEN, f"{self.path.name} became shorter or was rewritten")
        fragments: list[str] = []
        record, after, length, open_end = None, chain.GENESIS, 0, False
        with os.fdopen(self._fd, "rb", closefd=False) as file:  # moves the position; with O_APPEND, writes ignore it
            for number, line in enumerate(_backward(file, self.path.name)):
                if number == 0 and not (open_end := line != b""):
                    continue
                if (record := chain.parse_line(line)) is not None:
                    after, length = chain.line_hash(line), len(line)
                if record is not None or len(fragments) > MAX_TORN_LINES:
                    break
                fragments.insert(0, chain.line_hash(line))
        if len(fragments) > MAX_TORN_LINES or (record is None and len(fragments) > 1):
            raise AuditError(Code.CHAIN_BROKEN, f"{self.path.name} is not an audit chain")
        if open_end:
            # A line without its newline may be a whole record, of which only the newline was not written.
            self._put(b"\n")
        if record is not None and (tenant := tenant_of(record)) is not None:
            self._anchors[tenant] = record[ANCHOR]
        seq = (0 if record is None else record["seq"] + 1) + len(fragments)
        size = os.fstat(self._fd).st_size
        if fragments:  # `_at` is not set yet: if the `torn` record cannot be written, the next write looks again
            self._append(_mark(chain.TORN, fragments=fragments, after=after), (size, seq, fragments[-1], 0))
        else:
            self._at = (size, seq, after, length)

    def _continue(self) -> None:
        """Name the old file in a new one, if it was moved away and no other writer did."""
        if self._left is not None and not self._owed and chain.first_record(self.path).get("kind") != chain.CONTINUED:
            anchors = [_mark(ANCHOR, ledger=anchor) for anchor in self._anchors.values()]
            self._owed = [_mark(chain.CONTINUED, after=self._left), *anchors]
        while self._owed:
            self._append(self._owed[0])
            del self._owed[0]
        self._left = None

    def _append(self, record: Mapping[str, Any], at: tuple[int, int, str, int] | None = None) -> None:
        size, seq, head, _ = at or self._at
        tenant = tenant_of(record)
        if tenant in self._anchors and _older(record, self._anchors[tenant]):  # than a commit in the log
            record = {**record, ANCHOR: self._anchors[tenant]}
        line = chain.make_line(record, seq, head)
        if len(line) >= chain.MAX_LINE:
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: the record is too long")
        self._put(line + b"\n")
        self._at = (size + len(line) + 1, seq + 1, chain.line_hash(line), len(line))
        if tenant is not None:
            self._anchors[tenant] = record[ANCHOR]

    def _put(self, data: bytes) -> None:
        # A short write leaves a fragment, which the next write names in a `torn` record.
        if os.write(self._fd, data) != len(data):
            msg = "the disk took only a part of the record"
            raise OSError(0, msg)
        if self.durable:
            os.fsync(self._fd)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _forked(self) -> None:
        # The inherited descriptor shares the parent's lock, so close the child's copy. The parent keeps its lock.
        self._lock = threading.Lock()
        self._close()
        self._at = _EMPTY


def _mark(kind: str, **about: Any) -> dict[str, Any]:
    return {"v": 1, "kind": kind, "ts": time.time(), **about}


def drop_segments(log: str | Path, before: float) -> list[str]:
    """Remove segments that end before `before` (epoch seconds). Return their names.

    First, the log records each segment's head, so that the log still verifies. It also repeats the newest commit of
    each tenant's ledger that these segments name.
    """
    chain.verify_or_raise(log)
    sink, dropped = FileSink(log, durable=True), []
    for part in chain.log_files(log)[:-1]:
        with part.open("rb") as file:
            lines = (line.rstrip(b"\n") for line in chain.read_lines(file))
            whole = [record for line in lines if (record := chain.parse_line(line)) is not None]
        if not isinstance(at := whole[-1].get("ts") if whole else None, int | float):
            raise ConfigError(f"{part.name}: its last record has no time (`ts`)")
        if at >= before:
            break
        report = chain.verify_chain(part)
        sink.write(_mark(chain.DROPPED, segment=part.name, records=report.records, head=report.head))
        held = {str(a.get("tenant")): a for r in whole if isinstance(a := r.get(ANCHOR), dict)}
        for anchor in [a for tenant, a in held.items() if sink.anchor(tenant) == a]:
            sink.write(_mark(ANCHOR, ledger=anchor))
        part.unlink(missing_ok=True)
        dropped.append(part.name)
    sink.close()
    return dropped


def newest_record(sink: AuditSink, decision_id: str) -> dict[str, Any] | None:
    """Return the newest record of a decision, from a sink or its file."""
    known = (r for r in records_of(sink, decision_id) if r and r.get("kind") == "decision")
    found = deque((r for r in known if r.get("decision_id") == decision_id), maxlen=1)
    return found[0] if found else None


def records_of(sink: AuditSink, mark: str = "") -> Iterable[dict[str, Any] | None]:
    """Return a sink's records, oldest first; of a file, those that `read_log` yields."""
    if isinstance(sink, MemorySink):
        return sink.records
    return chain.read_log(sink.path, mark) if isinstance(sink, FileSink) else ()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _owned(path: Path) -> str:
    try:
        owner = path.stat().st_uid
    except OSError:
        return "its directory cannot be written; change its permissions, or name another path"
    return f"it belongs to user {owner} and cannot be written; give it to this process's user, or name another path"


def _flock(fd: int) -> None:
    until = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.0005)


def _backward(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield a file's lines, last first. If it ends with a newline, the first is empty."""
    end, rest, length = file.seek(0, os.SEEK_END), b"", BLOCK
    while end > 0:
        start = file.seek(max(0, end - length))
        rest, *lines = (file.read(end - start) + rest).split(b"\n")
        yield from reversed(lines)
        if len(rest) > chain.MAX_LINE:
            raise AuditError(Code.CHAIN_BROKEN, f"{name}: {chain.TOO_LONG}")
        end, length = start, length if lines else 2 * length  # a line may be longer than a block
    yield rest


def _older(record: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Return True if a record's commit is older than `seen`, unless it is a restore."""
    same = record[ANCHOR].get("ledger") == seen.get("ledger") and record.get("event") != "restored"
    return same and int(record[ANCHOR].get("position", 0)) < int(seen.get("position", 0))


def tenant_of(record: Mapping[str, Any]) -> str | None:
    """Return the tenant of the ledger commit that a record names, or `None`."""
    anchor = record.get(ANCHOR)
    return str(anchor.get("tenant")) if isinstance(anchor, dict) else None
