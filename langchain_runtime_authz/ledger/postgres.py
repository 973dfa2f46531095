"""Keep the ledger in PostgreSQL, for any number of machines.

Needs the extra `postgres`. The tables are in a schema of their own. Each transaction switches to the application's
role. This role may add rows, and may change and delete rows of state tables, but not of history tables. It sees only
the tenant's rows.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, LiteralString, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.errors import Code, ConfigError, LedgerError
from langchain_runtime_authz.ledger.admin import Admin
from langchain_runtime_authz.ledger.schema import STATE, Dialect
from langchain_runtime_authz.ledger.sql_ledger import DRIFT, WORKERS, SqlLedger, Tx
from langchain_runtime_authz.ledger.sql_rows import (
    DROPS,
    PUTS,
    Fetch,
    Row,
    Statement,
    WrittenRows,
    in_chunks,
    placeholders,
)

TIMEOUT: Final = 5.0  # seconds; the default for `PostgresLedger(timeout=...)`
# After 1 s, PostgreSQL looks for a deadlock, and may end it by failing a commit. A migration gives up before.
YIELD: Final = "500ms"
SCHEMA_NAME: Final = "runtime_authz"
ROLE: Final = "runtime_authz_app"
_LATE: Final = 1.0  # seconds after the timeout in which the server may still report it
_SLOW: Final = (errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected, PoolTimeout)
_OTHER: Final = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedObject, errors.InvalidSchemaName)
_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
_SETTINGS: Final = (
    "SELECT set_config('role', ?, {local}), set_config('search_path', ?, {local}),"
    " set_config('runtime_authz.tenant', ?, {local}), set_config('statement_timeout', ?, {local}),"
    " set_config('lock_timeout', ?, {local}), set_config('plan_cache_mode', 'force_generic_plan', {local}),"
    # A commit must be on the disk when it returns, whatever the server's default, because the call runs next.
    " set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), {local})"
)
# If the thread has no row, add one that can be locked. A refused commit rolls the new row back.
_ROW: Final = (
    "INSERT INTO thread (tenant, thread, scope, subject, history, at) VALUES (?, ?, '', '\"\"', '{}', 0)"
    " ON CONFLICT DO NOTHING"
)
_LOCK: Final = "SELECT 1 FROM thread WHERE tenant = ? AND thread = ? FOR UPDATE"
# Identifies the state of a thread's row, even if the server's clock was set back.
_STATE: Final = "CAST(xmin AS TEXT) || ' ' || CAST(at AS TEXT)"
# Write the thread's row only if row and schema are as they were read, no commit was lost, and the time is right.
_CHECKED: Final = (
    " AND (SELECT max(version) FROM migration) = ?"
    " AND coalesce((SELECT max(position) FROM journal WHERE tenant = ?), 0) >= ?"
    # The newest commit must not have a later time, so that a clock that was ahead is reported.
    " AND coalesce((SELECT j.at FROM journal j WHERE j.tenant = ? ORDER BY position DESC LIMIT 1), 0) <= ?"
    f" AND abs({_NOW} - CAST(? AS DOUBLE PRECISION)) < CAST(? AS DOUBLE PRECISION)"
)
_HELD: Final = (
    "UPDATE thread SET scope = ?, subject = ?, history = ?, at = ?"
    f" WHERE tenant = ? AND thread = ? AND {_STATE} = ?{_CHECKED} RETURNING {_STATE} AS state"
)
# A thread that was begun and pruned since the read has another epoch, or no row at all.
_BEGUN: Final = (
    "INSERT INTO thread (scope, subject, history, at, tenant, thread) SELECT ?, ?, ?, ?, ?, ?"
    " WHERE (SELECT coalesce(max(epoch), 1) FROM epoch WHERE tenant = ? AND thread = ?) = ?"
    f"{_CHECKED} ON CONFLICT DO NOTHING RETURNING {_STATE} AS state"
)
# If the thread's row was not updated, `nonce` is NULL. The column forbids NULL, so the whole statement fails.
_ENTRY: Final = (
    "entry AS (INSERT INTO journal (tenant, thread, nonce, at)"
    " VALUES (?, ?, (SELECT CAST(? AS TEXT) FROM {}), ?) RETURNING position) SELECT position, state FROM entry, held"
)
# A row used as a lock: a commit fails if another commit changed the row meanwhile. Lock the thread's row first.
_LOCK_ROW: Final = (
    "INSERT INTO mark (tenant, thread, name, value) {} ON CONFLICT (tenant, thread, name) DO UPDATE SET value ="
)
_TAKEN: Final = _LOCK_ROW.format("SELECT ?, ?, ?, ? FROM held") + " excluded.value WHERE mark.value = ? RETURNING 1"
_WAIT: Final = _LOCK_ROW.format("VALUES (?, ?, ?, '')") + " mark.value"

# Return the role's rights on a table, whether PUBLIC has rights, and whether row-level security isolates tenants.
_SECURED: Final = (
    "SELECT has_table_privilege(?, c.oid, 'SELECT'), has_table_privilege(?, c.oid, 'INSERT'),"
    " has_table_privilege(?, c.oid, 'UPDATE'), has_table_privilege(?, c.oid, 'DELETE'),"
    " has_table_privilege(?, c.oid, 'TRUNCATE, REFERENCES, TRIGGER'),"
    " EXISTS (SELECT 1 FROM aclexplode(c.relacl) a WHERE a.grantee = 0),"
    " c.relrowsecurity AND EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant'"
    " AND position('substr' IN pg_get_expr(p.polqual, p.polrelid)) > 0)"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relname = ?"
)
_BEGIN: Final[Statement] = ("BEGIN", ())
Connection = psycopg.Connection[Any]
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # a command reports pool failures in one line


class _Connection(psycopg.Connection[Any]):
    """A connection that waits at most `patience` seconds for a server that hangs."""

    patience = TIMEOUT

    def wait(self, gen: Any, *given: Any, **more: Any) -> Any:
        try:
            return super().wait(_within(gen, time.monotonic() + self.patience), *given, **more)
        except TimeoutError as exc:
            self.close()  # otherwise psycopg would wait for the answer again
            raise errors.QueryCanceled("the server does not answer") from exc


def _within(gen: Any, until: float) -> Any:
    """Run a psycopg generator. Raises `TimeoutError` after `until` (monotonic time)."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > until:
                raise TimeoutError
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value


class PostgresLedger(SqlLedger):
    """Keeps threads in PostgreSQL (14 or newer).

    A load is one statement. A commit reads with one statement and writes with another, which does nothing if the
    thread's row changed meanwhile. Then the commit starts again, at last with the row locked. Commits of
    different threads wait for each other only if they claim calls with one deed. Ledger time is the database's clock.
    Create the schema with `runtime-authz ledger migrate DSN`, under a role that may create it.

    Args:
        dsn: a libpq connection string or URL of a login role that is a member of `role`, or the caller's own pool.
        schema: name of the schema that holds the tables.
        role: name of the application's role.
        timeout: seconds to wait for a connection, a lock or a result before `ledger_timeout`. Connections of the
            caller's own pool wait for a hanging server without limit.
        max_size: maximum number of connections in the ledger's own pool.
        clock: returns ledger time in tests, instead of the database's clock.

    Raises `LedgerError` if the database cannot be reached or used.
    """

    _dialect = ("json_build_array", _NOW, _STATE, "")
    _by_thread = True

    def __init__(
        self,
        dsn: str | ConnectionPool[Connection],
        *,
        schema: str = SCHEMA_NAME,
        role: str = ROLE,
        timeout: float = TIMEOUT,
        max_size: int = WORKERS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(clock)
        self._dsn = dsn if isinstance(dsn, str) else None
        self._schema, self._role, self._timeout, self._max_size = schema, role, timeout, max_size
        self._as: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()  # the tenant of each connection
        self._left: list[object] = []  # pools of the parent process: never used, never closed
        self._failures = _Failures(self._dsn)
        self._pool = self._open() if isinstance(dsn, str) else dsn
        try:
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the ledger's own pool."""
        super().close()
        if self._dsn is not None:
            self._pool.close()

    def _open(self) -> ConnectionPool[Connection]:
        given = {
            "autocommit": True,
            "connect_timeout": max(2, int(self._timeout)),
            "tcp_user_timeout": int(self._timeout * 1000),
            "fallback_application_name": "runtime-authz",
            "prepare_threshold": 0,  # the ledger repeats few statements, which take longer to plan than to run
        }
        dsn, wait, size = cast("str", self._dsn), self._timeout, self._max_size
        made: Any = {"connection_class": _Connection, "configure": self._bound, "check": _alive, "timeout": wait}
        return ConnectionPool(dsn, kwargs=given, min_size=1, max_size=size, reconnect_timeout=wait, open=True, **made)

    def _bound(self, conn: _Connection) -> None:
        conn.patience = self._timeout + _LATE

    def _reading(self, tenant: str) -> AbstractContextManager[Tx]:
        return self._session(tenant, [])

    def _writing(self, tenant: str, key: bytes, locks: Collection[str], locked: bool) -> AbstractContextManager[Tx]:
        waits: list[Statement] = [(_WAIT, (tenant, b"", name)) for name in locks]
        lock = [_BEGIN, (_ROW, (tenant, key)), (_LOCK, (tenant, key)), *waits] if locked else []
        return self._session(tenant, lock)

    @contextmanager
    def _session(self, tenant: str, prelude: list[Statement]) -> Iterator[_PostgresTx]:
        self._here()
        with self._failures:
            conn = self._pool.getconn(self._timeout)
            own, autocommit, done = self._dsn is not None, conn.autocommit, False
            try:
                if not own:  # settings in the caller's pool end with the transaction
                    prelude = [_BEGIN, self._settings(tenant, local=True), *prelude[1:]]
                elif self._as.pop(conn, None) != tenant:
                    prelude = [self._settings(tenant, local=False), *prelude]
                if not autocommit:
                    conn.set_autocommit(True)
                yield (tx := _PostgresTx(conn, prelude, commits=_BEGIN in prelude))
                done = not tx.prelude
            except psycopg.Error:
                conn.close()  # after a failed pipeline, the driver expects prepared statements that do not exist
                raise
            finally:
                if conn.pgconn.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
                    with suppress(psycopg.Error):  # the first failure is the one to report
                        conn.execute("ROLLBACK")
                elif own and done:  # the settings stay; a rollback would have undone them
                    self._as[conn] = tenant
                try:
                    if not autocommit and not conn.closed:
                        conn.set_autocommit(False)
                finally:
                    self._pool.putconn(conn)

    def _settings(self, tenant: str, *, local: bool) -> Statement:
        limit = f"{int(self._timeout * 1000)}ms"
        return _SETTINGS.format(local=str(local).lower()), (self._role, self._schema, f"={tenant}", limit, limit)

    def _forked(self) -> None:
        if self._dsn is None:
            raise LedgerError(Code.LEDGER_UNAVAILABLE, "the caller's pool does not outlive a fork")
        self._left.append(self._pool)
        self._pool = self._open()

    def __repr__(self) -> str:
        return f"<PostgresLedger schema={self._schema}>"


class _PostgresTx:
    def __init__(self, conn: Connection, prelude: Sequence[Statement], *, commits: bool) -> None:
        self._conn, self._commits = conn, commits
        self.prelude = prelude  # statements to run before the next batch; empty once they have run

    def batch(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        prelude, self.prelude = self.prelude, ()
        several = [*prelude, *statements]
        if len(several) == 1:
            cursors = [self._execute(*several[0])]
        else:
            with self._conn.pipeline():  # one round trip
                cursors = [self._execute(*statement) for statement in several]
        return [c.fetchall() if c.pgresult and c.pgresult.nfields else [] for c in cursors[len(prelude) :]]

    def keep(self, found: Fetch, kept: WrittenRows, nonce: str, now: float) -> tuple[int, str] | None:
        """See `Tx.keep`. One statement writes all rows."""
        of = (found.tenant, found.key)
        puts = [(name, some) for name, rows in kept.puts.items() for some in in_chunks(rows)]
        drops = [(name, some) for name, keys in kept.drops.items() for some in in_chunks(keys)]
        as_read = [found.seen] if found.seen else [*of, found.before.epoch]
        values = [*kept.thread, *of, *as_read, found.version.version, found.tenant, found.position]
        values += [found.tenant, now + DRIFT, now, found.drift]
        for name, value in found.locks.items():
            values += [found.tenant, b"", name, nonce, value]  # the nonce is unique, but ledger time may stand still
        for _, some in puts:
            values += [column for row in some for column in (*of, *row)]
        for _, some in drops:
            values += [*of, *some]
        shape = [tuple([(name, len(some)) for name, some in chunked]) for chunked in (puts, drops)]
        written = (_statement(_HELD if found.seen else _BEGUN, len(found.locks), *shape), [*values, *of, nonce, now])
        prelude = self.prelude
        try:
            ((position, state),) = self.batch([written, *([("COMMIT", ())] if self._commits else [])])[0]
        except errors.NotNullViolation:
            self.prelude = prelude  # the failed statement rolled the prelude back, so run it again
            return None
        return int(position), state

    def _execute(self, text: str, values: Sequence[Any]) -> psycopg.Cursor[Row]:
        return self._conn.cursor(row_factory=tuple_row).execute(_query(text), values)


@lru_cache(maxsize=1024)
def _statement(held: str, locks: int, puts: Sequence[tuple[str, int]], drops: Sequence[tuple[str, int]]) -> str:
    """Return a commit's SQL. `puts`, `drops`: numbers of rows to write and to delete."""
    parts = [f"held AS ({held})", *(f"t{number} AS ({_TAKEN})" for number in range(locks))]
    for name, count in puts:
        write = PUTS[name]
        rows = ", ".join([placeholders(2 + len(write.columns))] * count)
        parts.append(f"w{len(parts)} AS ({write.sql(f'VALUES {rows}')})")
    for name, count in drops:
        table, column = DROPS[name]
        where = f"tenant = ? AND thread = ? AND {column} IN {placeholders(count)}"
        parts.append(f"w{len(parts)} AS (DELETE FROM {table} WHERE {where})")
    won = ", ".join(["held", *(f"t{number}" for number in range(locks))])
    return f"WITH {', '.join([*parts, _ENTRY.format(won)])}"


@contextmanager
def administer(
    dsn: str, *, schema: str = SCHEMA_NAME, role: str = ROLE, create: bool = False, look: bool = False
) -> Iterator[Admin]:
    """Open the schema for its owner (`ledger.admin`). Commit at the end, or roll back.

    Args:
        dsn: login of the role that owns the schema, or of one that may create the schema and the application's role.
        schema: name of the schema that holds the tables.
        role: name of the application's role.
        create: create the schema and the role if they are missing, and make the owner a member of the role.
        look: only read. Then a member of the application's role may log in too.

    Raises `LedgerError` if the database cannot be reached or used.
    """
    with _Failures(), psycopg.connect(dsn, connect_timeout=max(2, int(TIMEOUT))) as conn:
        admin = _Admin(conn, schema, role)
        if create:
            admin.make()
        admin.run("SELECT set_config('search_path', ?, true)", (schema,))
        tables = admin.tables()
        if tables and not admin.run("SELECT 1 WHERE has_schema_privilege(?, 'USAGE')", (schema,)):
            raise LedgerError(Code.LEDGER_UNAVAILABLE, f"this role may not use the schema; make it a member of {role}")
        if "migration" in tables and not look:  # one operator at a time
            sql = "SELECT tableowner FROM pg_tables WHERE schemaname = ? AND tablename = 'migration'"
            for (owner,) in admin.run(f"{sql} AND NOT pg_has_role(tableowner, 'USAGE')", (schema,)):
                raise LedgerError(Code.LEDGER_ROLE, f"{owner} owns schema {schema}")
            admin.run("LOCK TABLE migration IN SHARE ROW EXCLUSIVE MODE")
        yield admin


class _Admin:
    dialect = Dialect("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "BYTEA", "DOUBLE PRECISION", "", " FOR UPDATE")

    def __init__(self, conn: Connection, schema: str, role: str) -> None:
        self._conn, self._schema, self._role = conn, schema, role

    def run(self, text: str, values: Sequence[Any] = ()) -> Sequence[Row]:
        cursor = self._conn.cursor(row_factory=tuple_row).execute(_query(text), values)
        return cursor.fetchall() if cursor.description else []

    def tables(self) -> set[str]:
        return {name for (name,) in self.run("SELECT tablename FROM pg_tables WHERE schemaname = ?", (self._schema,))}

    def make(self) -> None:
        # Without locks, two concurrent commands would both try to create. Several schemas may share the role.
        for name in (f"runtime-authz {self._schema}", f"runtime-authz role {self._role}"):
            self.run("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", (name,))
        if not self.run("SELECT 1 FROM pg_namespace WHERE nspname = ?", (self._schema,)):
            self._run("CREATE SCHEMA {schema}")
        if not self.run("SELECT 1 FROM pg_roles WHERE rolname = ?", (self._role,)):
            self._run("CREATE ROLE {role} NOLOGIN")
        if not self.run("SELECT 1 WHERE pg_has_role(current_user, ?, 'MEMBER')", (self._role,)):
            self._run("GRANT {role} TO CURRENT_USER")

    def alone(self) -> None:
        self.run("SELECT set_config('lock_timeout', ?, true)", (YIELD,))
        if "thread" in self.tables():  # each transaction of a ledger locks this table before any that may change
            self.run("LOCK TABLE thread IN ACCESS EXCLUSIVE MODE")

    def secured(self) -> None:
        self._run("GRANT USAGE ON SCHEMA {schema} TO {role}")
        for table in sorted(self.tables()):
            plain, state = table in ("meta", "migration"), table in STATE
            if self.run(_SECURED, (*[self._role] * 5, self._schema, table)) == [
                (True, not plain, state, state, False, False, not plain)
            ]:
                continue
            self.alone()
            self._run("REVOKE ALL ON {table} FROM PUBLIC, {role}", table)
            if plain:
                self._run("GRANT SELECT ON {table} TO {role}", table)
                continue
            more = ", UPDATE, DELETE" if state else ""  # a table that this version does not know counts as history
            self._run(f"GRANT SELECT, INSERT{more} ON {{table}} TO {{role}}", table)
            self._run("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", table)
            self._run("DROP POLICY IF EXISTS tenant ON {table}", table)
            # The setting has a prefix, because it is empty outside our transactions and a tenant may be "". The column
            # stands alone: otherwise the planner expects a tenant to have few rows, and reads all of its journal.
            whose = "tenant = substr(nullif(current_setting('runtime_authz.tenant'), ''), 2)"
            self._run(f"CREATE POLICY tenant ON {{table}} TO {{role}} USING ({whose}) WITH CHECK ({whose})", table)

    def now(self) -> float:
        ((seconds,),) = self.run(f"SELECT {_NOW}")
        return float(seconds)

    def _run(self, text: LiteralString, table: str = "") -> None:
        names = {"schema": sql.Identifier(self._schema), "role": sql.Identifier(self._role)}
        names["table"] = sql.Identifier(self._schema, table)
        self._conn.execute(sql.SQL(text).format(**names))


@lru_cache(maxsize=1024)
def _query(text: str) -> LiteralString:
    return text.replace("?", "%s")


def _alive(conn: Connection) -> None:
    """Check a connection whose socket is readable: the server may have closed it."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    if poll.poll(0):
        ConnectionPool.check_connection(conn)


class _Failures:
    """Turn exceptions of PostgreSQL, its driver and its pool into `LedgerError`s."""

    def __init__(self, dsn: str | None = None) -> None:
        self._dsn, self._asking = dsn, forkable_lock()

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        if not isinstance(failure, (psycopg.Error, PoolTimeout, OSError)):
            return
        exc, code = failure, Code.LEDGER_UNAVAILABLE
        # The pool does not tell why it has no connection, so try one. Only one thread does, to spare a busy server.
        if isinstance(exc, PoolTimeout) and self._dsn is not None and self._asking.acquire(blocking=False):
            try:
                psycopg.connect(self._dsn, connect_timeout=2).close()
            except psycopg.Error as refused:
                exc = refused
            finally:
                self._asking.release()
        if isinstance(exc, psycopg.ProgrammingError) and exc.sqlstate is None:  # it may quote a password
            raise ConfigError("the connection string of PostgreSQL is malformed") from None
        if isinstance(exc, _SLOW):
            code = Code.LEDGER_TIMEOUT
        elif isinstance(exc, _OTHER):
            code = Code.LEDGER_SCHEMA
        # Report one line without the connection string, which may hold a password.
        why = getattr(getattr(exc, "diag", None), "message_primary", None)
        if why is None and isinstance(exc, psycopg.OperationalError) and " failed: " in str(exc):
            why = str(exc).rpartition(" failed: ")[2].split("\n")[0]
        raise LedgerError(code, why or type(exc).__name__) from failure
