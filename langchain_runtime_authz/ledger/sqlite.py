"""Keep the ledger in an SQLite file, for the threads and processes of one machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from orjson import dumps

from langchain_runtime_authz.errors import Code, ConfigError, LedgerError
from langchain_runtime_authz.ledger.admin import Admin, migrate, version
from langchain_runtime_authz.ledger.schema import Dialect
from langchain_runtime_authz.ledger.sql_ledger import SqlLedger, Tx
from langchain_runtime_authz.ledger.sql_rows import DROPS, PUTS, THREAD, Fetch, Row, Statement, WrittenRows

TIMEOUT: Final = 5.0  # seconds to wait for the lock of the file
_PAUSE: Final = 0.01  # seconds between two tries to switch a new file to write-ahead mode
OLDEST: Final = (3, 35, 0)  # the first version with RETURNING
SEEN: Final = "seen"  # `Fetch.seen` of any thread that exists: the journal tells if a thread changed


class SqliteLedger(SqlLedger):
    """Keeps threads in one file, in write-ahead mode.

    A load is one statement. A commit reads with one statement and writes with another, which does nothing if another
    process committed meanwhile. Then the commit is repeated under the file's lock. A commit is on the disk when it
    returns (`synchronous=FULL`). Threads, processes and forks may share the file. The file must be on a local disk,
    because write-ahead mode does not work on network file systems. An instance refuses a file that was removed,
    replaced, or set back to before a commit that the instance has seen (`ledger_rolled_back`).

    Args:
        path: path of the file. If the file is missing, it is created with mode 0600 and its tables.
        timeout: seconds to wait for a lock before `ledger_timeout`.
        clock: returns ledger time in epoch seconds.

    Raises `LedgerError` if the file cannot be used.
    """

    _dialect = ("json_array", "0.0", f"'{SEEN}'", " INDEXED BY call_open")

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; {'.'.join(map(str, OLDEST))} is needed")
        self.path = Path(path).absolute()
        self._timeout = timeout
        self._idle: list[sqlite3.Connection] = []
        self._left: list[sqlite3.Connection] = []  # connections of the parent process: never used, never closed
        self._closed = False
        self._guard, self._writer = threading.Lock(), threading.Lock()  # for `_idle` and `_closed`; for commits
        self._failures = _Failures(self.path)
        with self._failures:
            _make(self.path)
            self._file = _identity(self.path)
            with self._reading("") as tx:
                # The process that created the file may have died before it created the tables.
                (found,) = tx.batch([("SELECT 1 FROM sqlite_schema LIMIT 1", ())])
            if not found:
                with administer(self.path) as admin:
                    if version(admin).version == 0:  # check again, now under the lock
                        migrate(admin)
            self._check_schema()

    def close(self) -> None:
        """Close every connection."""
        super().close()
        self._here()
        with self._guard:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    def check(self, tenant: str) -> None:
        """See `SqlLedger.check`. Also refuse a full disk."""
        super().check(tenant)
        if not os.statvfs(self.path).f_bavail:
            raise LedgerError(Code.LEDGER_UNAVAILABLE, f"{self.path.name}: the disk is full")

    def _writing(self, tenant: str, key: bytes, locks: Collection[str], locked: bool) -> AbstractContextManager[Tx]:
        return self._reading(tenant, writes=True, locked=locked)

    @contextmanager
    def _reading(self, tenant: str, *, writes: bool = False, locked: bool = False) -> Iterator[_SqliteTx]:
        self._here()
        writer = self._writer  # writers of this process queue here, because SQLite's own waiting may starve some
        if writes and not writer.acquire(timeout=self._timeout):
            raise LedgerError(Code.LEDGER_TIMEOUT, f"{self.path.name} was held by other threads for {self._timeout} s")
        try:
            with self._failures:
                conn = self._connection()
                try:
                    if locked:
                        conn.execute("BEGIN IMMEDIATE")
                    yield _SqliteTx(conn)
                except sqlite3.Error:
                    _undo(conn)
                    conn.close()  # the next caller opens another connection
                    raise
                except BaseException:
                    self._give_back(conn)
                    raise
                self._give_back(conn)
        finally:
            if writes:
                writer.release()

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise LedgerError(Code.LEDGER_UNAVAILABLE, f"{self.path.name} was closed")
        if _identity(self.path) != self._file:  # an open connection would silently go on writing to a removed file
            raise LedgerError(Code.LEDGER_UNAVAILABLE, f"{self.path.name} was removed or replaced")
        with self._guard:
            if self._idle:
                return self._idle.pop()
        conn = _connect(self.path, self._timeout)
        for made in (_VIEW, *_triggers()):
            conn.execute(made)
        return conn

    def _give_back(self, conn: sqlite3.Connection) -> None:
        _undo(conn)
        with self._guard:
            if self._closed:
                conn.close()
            else:
                self._idle.append(conn)

    def _forked(self) -> None:
        self._guard, self._writer = threading.Lock(), threading.Lock()
        # Not used: https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_
        self._left, self._idle = [*self._left, *self._idle], []

    def __repr__(self) -> str:
        return f"<SqliteLedger {self.path.name}>"


class _SqliteTx:
    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn

    def batch(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        return [self.conn.execute(sql, values).fetchall() for sql, values in statements]

    def keep(self, found: Fetch, kept: WrittenRows, nonce: str, now: float) -> tuple[int, str] | None:
        """See `Tx.keep`. One statement writes all rows, by triggers of the view `_VIEW`."""
        several = [*map(kept.puts.get, PUTS), *map(kept.drops.get, DROPS)]
        given = [found.tenant, found.key, *kept.thread, nonce]
        # 0 stands for no rows, because Python would look for an adapter for each `None`.
        given += [dumps(some).decode() if some else 0 for some in several]
        given += (found.version.version, found.nonce, int(bool(found.seen)))
        ((position,),) = self.conn.execute(_KEEP, given).fetchall()
        if self.conn.in_transaction:
            self.conn.execute("COMMIT")
        return (position, SEEN) if position is not None else None


# Only triggers let one statement write to several tables. The triggers are temporary, so no other program fires them.
# The view has a column for each table's rows to write, and one for its keys to delete, as JSON.
_GIVEN: Final = (
    *("tenant", "thread", *THREAD.columns, "nonce"),
    *(f"put_{name}" for name in PUTS),
    *(f"drop_{name}" for name in DROPS),
)
_VIEW: Final = f"CREATE TEMP VIEW kept AS SELECT {', '.join(f'NULL AS {name}' for name in (*_GIVEN, 'fresh'))}"
# The tables that most commits write share a trigger, because each trigger costs time.
_OFTEN: Final = ("plan", "by_call", "calls", "budgets", "values")


def _triggers() -> Iterator[str]:
    """Yield the SQL of the triggers, which may fire in any order."""
    of, same = "NEW.tenant, NEW.thread", "tenant = NEW.tenant AND thread = NEW.thread"
    row = THREAD.sql(f"VALUES ({of}, {', '.join(f'NEW.{name}' for name in THREAD.columns)})")
    entry = f"INSERT INTO journal (tenant, thread, nonce, at) VALUES ({of}, NEW.nonce, NEW.at)"
    seldom = [name for name in PUTS if name not in _OFTEN]
    some = " OR ".join(f"NEW.{name} <> 0" for name in _GIVEN if name.partition("_")[2] in seldom)
    for names, when, sql in ((_OFTEN, "true", [row, entry]), (seldom, some, [])):
        for name in names:
            if name in DROPS:
                table, column = DROPS[name]
                keys = f"NEW.drop_{name} <> 0 AND {column} IN (SELECT value FROM json_each(NEW.drop_{name}))"
                sql.append(f"DELETE FROM {table} WHERE {same} AND {keys}")
            columns = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(PUTS[name].columns)))
            sql.append(
                PUTS[name].sql(f"SELECT {of}, {columns} FROM json_each(NEW.put_{name}) WHERE NEW.put_{name} <> 0")
            )
        on = f"INSTEAD OF INSERT ON kept WHEN NEW.fresh AND ({when})"
        yield f"CREATE TEMP TRIGGER keep_{names[0]} {on} BEGIN {'; '.join(sql)}; END"


_NEWEST: Final = "FROM journal WHERE tenant = ?1 ORDER BY position DESC LIMIT 1"
# Write only if since the read nobody has committed for the tenant, removed the thread or changed the schema.
_KEEP: Final = (
    f"INSERT INTO kept VALUES ({', '.join(f'?{number + 1}' for number in range(len(_GIVEN)))},"
    f" ((SELECT max(version) FROM migration), coalesce((SELECT nonce {_NEWEST}), ''),"
    " (SELECT count(*) FROM thread WHERE tenant = ?1 AND thread = ?2)) ="
    f" (?{len(_GIVEN) + 1}, ?{len(_GIVEN) + 2}, ?{len(_GIVEN) + 3}))"
    f" RETURNING CASE WHEN fresh THEN (SELECT position {_NEWEST}) END"
)


@contextmanager
def administer(path: str | Path, *, create: bool = False, look: bool = False) -> Iterator[Admin]:
    """Open the file for its operator (`ledger.admin`), and commit at the end.

    Other writers wait. With `look`, only read, and block nobody. Raises `LedgerError` if the file cannot be used.
    """
    path = Path(path)
    with _Failures(path):
        if create:
            _make(path)
        conn = _connect(path, TIMEOUT)
        try:
            conn.execute("BEGIN" if look else "BEGIN IMMEDIATE")
            yield _Admin(conn)
            conn.execute("COMMIT")
        finally:
            _undo(conn)
            conn.close()


class _Admin:
    dialect = Dialect("INTEGER PRIMARY KEY AUTOINCREMENT", "BLOB", "REAL", "WITHOUT ROWID", "")

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    def run(self, sql: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        return self._conn.execute(sql, values).fetchall()

    def tables(self) -> set[str]:
        return {name for (name,) in self.run("SELECT name FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'")}

    def alone(self) -> None:
        """Do nothing: the transaction holds the file's lock."""

    def secured(self) -> None:
        """Do nothing: the file has no finer rights."""

    def now(self) -> float:
        return time.time()


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    conn = sqlite3.connect(
        uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        _write_ahead(conn, timeout)
        conn.execute("PRAGMA synchronous = FULL")
    except BaseException:
        conn.close()
        raise
    return conn


def _write_ahead(conn: sqlite3.Connection, timeout: float) -> None:
    """Switch the file to write-ahead mode. Wait if another process does the same."""
    until = time.monotonic() + timeout
    while conn.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE)


def _make(path: Path) -> None:
    """Create the file if it is missing, and never open an existing one.

    If this function opened and closed the file, this process would lose all its locks on the file, SQLite's among them.
    Another process could then remove the write-ahead log with its commits
    (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  (faster than `Path.stat`; each load and commit runs this)
    except FileNotFoundError:
        raise LedgerError(Code.LEDGER_UNAVAILABLE, f"{path.name} is gone") from None
    return found.st_dev, found.st_ino


def _undo(conn: sqlite3.Connection) -> None:
    if conn.in_transaction:
        with suppress(sqlite3.Error):  # the first failure is the one to report
            conn.execute("ROLLBACK")


class _Failures:
    """Turn exceptions of SQLite and the disk into a `LedgerError` with a code."""

    def __init__(self, path: Path) -> None:
        self._name = path.name

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if isinstance(exc, sqlite3.Error):
            name = getattr(exc, "sqlite_errorname", "") or ""
            code = Code.LEDGER_UNAVAILABLE
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                code = Code.LEDGER_TIMEOUT
            elif name == "SQLITE_ERROR" and "no such" in str(exc):  # a table or a column
                code = Code.LEDGER_SCHEMA
            raise LedgerError(code, f"{self._name}: {name or type(exc).__name__}: {exc}") from exc
        if isinstance(exc, OSError):
            why = exc.strerror or type(exc).__name__
            raise LedgerError(Code.LEDGER_UNAVAILABLE, f"{self._name}: {why}") from exc
