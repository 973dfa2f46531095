"""Where records go. A sink that fails raises `AuditError`, and the step that was to be recorded is denied."""

from __future__ import annotations

import mmap
import os
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, runtime_checkable

from langchain_runtime_authz.audit.chain import GENESIS, TORN, line_hash, make_line, parse_line
from langchain_runtime_authz.errors import AuditError, Code

try:
    import fcntl
except ImportError:  # Windows: one process per file
    fcntl = None  # type: ignore[assignment]

__all__ = ["AuditSink", "FileSink", "MemorySink"]

LOCK_TIMEOUT: Final = 2.0  # seconds
MAX_FRAGMENTS: Final = 8
BLOCK: Final = 8192
ANCHOR: Final = "ledger"  # the member of a record that holds the ledger's anchor


@runtime_checkable
class AuditSink(Protocol):
    """Keeps records (`audit.record`)."""

    @property
    def content(self) -> bool:
        """Whether it wants arguments, targets and task texts."""
        ...

    def write(self, record: dict[str, Any]) -> None:
        """Keep one record; it is not changed. Returns when it is kept.

        Raises:
            AuditError: `audit_unavailable`; the caller denies.
        """
        ...


class MemorySink:
    """Keeps the last records in this process. Not tamper-evident.

    Args:
        maxlen: how many.
        content: whether arguments, targets and task texts are kept.
    """

    durable: Final = False

    def __init__(self, maxlen: int = 10_000, *, content: bool = False) -> None:
        self.content = content
        self._records: deque[dict[str, Any] | Callable[[], dict[str, Any]]] = deque(maxlen=maxlen)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records, oldest first."""
        return [r() if callable(r) else r for r in list(self._records)]

    def write(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        self._records.append(record)

    def defer(self, build: Callable[[], dict[str, Any]]) -> None:
        """Keep one record that is built when somebody reads it, from values that do not change."""
        self._records.append(build)


class FileSink:
    """Appends records to a hash chain in a file (`audit.chain`).

    Threads and processes may write one file, each through a sink of its own or one inherited by fork:
    every write holds an exclusive lock and begins where the file ends. Where the operating system has
    no `fcntl`, one process only.

    What a writer that died left behind stays in the file and is named by a `torn` record. A file that
    was moved away (log rotation) is followed by a new one, whose first record, `continued`, holds the
    head of the old one; records of the newest anchor of each tenant's ledger follow. A file that became
    shorter is refused: `chain_broken`.

    Args:
        path: of the file; made with mode 0600 where there is none.
        durable: whether each record is on the disk (`fsync`) before `write` returns.
        content: whether arguments, targets and task texts are kept.

    Raises:
        AuditError: the file can not be opened, or is not a chain.
    """

    def __init__(self, path: str | Path, *, durable: bool = False, content: bool = False) -> None:
        self.path = Path(path)
        self.durable = durable
        self.content = content
        self._lock = threading.Lock()
        self._fd = -1
        self._file: tuple[int, int] | None = None  # device and inode of the file written so far
        # Size of the file after our last look, number of its next line, hash of its last. One value,
        # so that an interrupt finds either the old or the new.
        self._at = (0, 0, GENESIS)
        self._left: str | None = None  # head of the file that was moved away
        self._anchors: dict[str, object] = {}  # by tenant, of the ledger, as their last records bore them
        _after_fork(self)
        with self._lock:
            self._locked_do(None)

    @property
    def head(self) -> str:
        """Hash of the last line seen by this sink; pin it elsewhere."""
        return self._at[2]

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            AuditError: `audit_unavailable` or `chain_broken`: do not take it for written.
        """
        with self._lock:
            self._locked_do(record)

    def anchor(self, tenant: str) -> dict[str, Any] | None:
        """The newest anchor of a tenant's ledger in the file, as its record bears it.

        Raises:
            AuditError: `audit_unavailable`.
        """
        try:
            with self.path.open("rb") as file:
                return _newest_anchor(file, tenant)
        except OSError as exc:
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: {exc.strerror}") from None

    def close(self) -> None:
        """Close the file. A later `write` opens it again."""
        with self._lock:
            self._close()

    def _locked_do(self, record: Mapping[str, Any] | None) -> None:
        try:
            self._open()
            _acquire(self._fd)
            try:
                self._catch_up()
                self._continue()
                if record is not None:
                    self._append(record)
            finally:
                _release(self._fd)
        except (OSError, ValueError, TypeError, RecursionError) as exc:
            # The type, or the system's words: an encoder's text may quote the record.
            why = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name}: {why}") from None

    def _open(self) -> None:
        """Open the file that the path names now."""
        if self._fd >= 0:
            if _named(self.path) == self._file:
                return
            self._close()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(self.path, flags, 0o600)
        opened = os.fstat(self._fd)
        if not stat.S_ISREG(opened.st_mode):
            self._close()
            raise AuditError(Code.AUDIT_UNAVAILABLE, f"{self.path.name} is not a regular file")
        file = _identity(opened)
        if self._file is not None and file != self._file:
            self._left, self._at = self.head, (0, 0, GENESIS)
        self._file = file

    def _catch_up(self) -> None:
        """Learn what others wrote since our last look, and end what they left unfinished."""
        size = os.fstat(self._fd).st_size
        if size == self._at[0]:
            return
        if size < self._at[0]:
            raise AuditError(Code.CHAIN_BROKEN, f"{self.path.name} became shorter")
        lines = _last_lines(self._fd, size)
        open_end = lines[-1] != b""
        if not open_end:
            lines.pop()
        fragments: list[str] = []
        record = None
        while lines and (record := parse_line(lines[-1])) is None:
            fragments.insert(0, line_hash(lines.pop()))
        if len(fragments) > MAX_FRAGMENTS or (record is None and len(fragments) > 1):
            raise AuditError(Code.CHAIN_BROKEN, f"{self.path.name} is not an audit chain")
        if open_end:
            # One byte can not be torn. Where only the newline was missing, the record is whole.
            self._put(b"\n")
        after = GENESIS if record is None else line_hash(lines[-1])
        seq = (0 if record is None else record["seq"] + 1) + len(fragments)
        self._at = (os.fstat(self._fd).st_size, seq, fragments[-1] if fragments else after)
        if fragments:
            self._append({"v": 1, "kind": TORN, "ts": time.time(), "fragments": fragments, "after": after})

    def _continue(self) -> None:
        """Begin a new file with the head of the one that was moved away."""
        if self._left is not None and self._at[0] == 0:
            self._append({"v": 1, "kind": "continued", "ts": time.time(), "after": self._left})
            for anchor in list(self._anchors.values()):
                self._append({"v": 1, "kind": ANCHOR, "ts": time.time(), ANCHOR: anchor})
        self._left = None

    def _append(self, record: Mapping[str, Any]) -> None:
        size, seq, head = self._at
        line = make_line(dict(record), seq, head)
        self._put(line + b"\n")
        self._at = (size + len(line) + 1, seq + 1, line_hash(line))
        if (tenant := _tenant_of(record)) is not None:
            self._anchors[tenant] = record[ANCHOR]

    def _put(self, data: bytes) -> None:
        # What a short write leaves is a fragment; the next write will name it.
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
        # The inherited descriptor shares its lock with the parent: a file lock between the two needs
        # one of our own. The parent's lock stays as it is when the child closes its copy.
        self._lock = threading.Lock()
        self._close()
        self._at = (0, 0, GENESIS)

    def __repr__(self) -> str:
        return f"<FileSink {self.path.name} durable={self.durable}>"


def _after_fork(sink: FileSink) -> None:
    if not hasattr(os, "register_at_fork"):
        return
    weak = weakref.ref(sink)

    def forked() -> None:
        if (alive := weak()) is not None:
            alive._forked()  # noqa: SLF001  (its own module)

    os.register_at_fork(after_in_child=forked)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _named(path: Path) -> tuple[int, int] | None:
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return None


def _acquire(fd: int) -> None:
    if fcntl is None:
        return
    until = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.0005)
        else:
            return


def _release(fd: int) -> None:
    if fcntl is not None and fd >= 0:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _last_lines(fd: int, size: int) -> list[bytes]:
    """The end of the file, split at newlines: at least the last whole record, if there is one."""
    length = BLOCK
    while True:
        start = max(0, size - length)
        lines = _read(fd, start, size).split(b"\n")
        if start == 0:
            return lines
        lines = lines[1:]  # the first may have begun before
        if len(lines) > MAX_FRAGMENTS + 2 or any(parse_line(line) for line in reversed(lines[:-1])):
            return lines
        length *= 4


def _tenant_of(record: Mapping[str, Any]) -> str | None:
    """Whose ledger's anchor a record bears, if any."""
    anchor = record.get(ANCHOR)
    return str(anchor.get("tenant")) if isinstance(anchor, dict) else None


def _newest_anchor(file: BinaryIO, tenant: str) -> dict[str, Any] | None:
    if os.fstat(file.fileno()).st_size == 0:
        return None
    mark = f'"{ANCHOR}":{{'.encode()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = len(text)
        while (at := text.rfind(mark, 0, at)) >= 0:
            start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
            # A request may hold such a member too: only the record's own counts.
            record = parse_line(text[start : end if end >= 0 else len(text)]) or {}
            if _tenant_of(record) == tenant:
                return dict(record[ANCHOR])
            at = start
    return None


def _read(fd: int, start: int, end: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)  # writes go to the end whatever the position (O_APPEND)
    parts = []
    while start < end:
        part = os.read(fd, end - start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)
