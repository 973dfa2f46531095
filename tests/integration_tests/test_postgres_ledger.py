"""The ledger contract on PostgreSQL, and what is that store's own: roles, tenants, its clock, its failures."""

import asyncio
import itertools
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import sql_ledger as statements
from langchain_runtime_authz.ledger.admin import accept_clock, accept_restore, migrate, prune
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Lease, Ledger, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    OpenThread,
    RecordEdge,
    RecordPlan,
    RecordStep,
    Revoke,
    TakeLease,
)
from langchain_runtime_authz.ledger.postgres import ROLE, PostgresLedger, administer
from langchain_runtime_authz.ledger.schema import HISTORY, STATE
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.testing.ledger_suite import DurableLedgerContract
from tests.cli import cli
from tests.contract.ledger_rules import LedgerRules
from tests.gates.test_statements import POSTGRES, seen_by_postgres, turn_and_invoke, writes
from tests.integration_tests.services import ledger_schema


@pytest.fixture(scope="session")
def dsn() -> str:
    """Of the private cluster that `.ci/services` starts."""
    return os.environ["LRA_POSTGRES_DSN"]


@pytest.fixture(scope="session")
def schema(dsn: str) -> Iterator[str]:
    """A schema for this process alone."""
    with ledger_schema() as (_, name):
        yield name


class TestPostgresLedger(LedgerRules, DurableLedgerContract):
    """One database, which all of these tests share."""

    @pytest.fixture(autouse=True)
    def _database(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema

    def make_ledger(self, clock: Callable[[], float]) -> Ledger:
        """On the schema that is."""
        return PostgresLedger(self.dsn, schema=self.schema, clock=clock)


# --- what is PostgreSQL's own ---


def scope(thread: str = "thread", tenant: str | None = None) -> Scope:
    return Scope(tenant or f"tenant-{secrets.token_hex(4)}", "issuer", "graph", thread)


@pytest.fixture
def ledger(dsn: str, schema: str) -> Iterator[PostgresLedger]:
    """With the database's clock."""
    with PostgresLedger(f"{dsn} application_name={schema}", schema=schema, timeout=2) as made:
        yield made


def test_ledger_time_that_was_not_read_is_checked(ledger: PostgresLedger) -> None:
    """A commit that reads nothing goes by how far the database's clock was ahead before."""
    at = scope()
    ledger.commit(at, None, [OpenThread("user:alice")])
    for wrong in (3600, -3600):
        ledger._ahead += wrong
        done = ledger.commit(at, None, [RecordStep()])
        assert isinstance(done, Committed) and abs(done.now - time.time()) < 60


def test_one_of_many_pays_while_time_stands_still(dsn: str, schema: str) -> None:
    """A clock that was set back by a moment stands still until it has caught up."""
    begin, tenant = threading.Barrier(3), secrets.token_hex(4)

    def pay(who: str) -> list[bool]:
        won: list[bool] = []
        with PostgresLedger(dsn, schema=schema, max_size=1, clock=lambda: 1_900_000_000.0) as ledger:
            where = scope(who, tenant)
            lease = Lease(who, "run", ("root",), 1, 1_900_000_000, 1_900_009_000)
            ledger.commit(where, None, [OpenThread("user:alice"), TakeLease(lease)])
            about = dict.fromkeys(("tool", "args_digest", "call_id", "decision_id", "run_id", "entry", "process", "idempotency_key"), who)
            for number in range(15):
                begin.wait(30)
                claim = ClaimCall(f"{who}{number}", who, False, (), "pay:bob", about, "user:alice", ())  # type: ignore[arg-type]
                won.append(isinstance(ledger.commit(where, Guard(who, 1), [claim]), Committed))
                begin.wait(30)
                if won[-1]:
                    ledger.commit(where, None, [ConcludeCall(f"{who}{number}", "done", '"paid"')])
        return won

    with ThreadPoolExecutor(3) as pool:
        assert [sum(each) for each in zip(*pool.map(pay, "abc"), strict=True)] == [1] * 15


def test_a_commit_that_loses_on_a_new_connection_is_tried_again(ledger: PostgresLedger, dsn: str, schema: str) -> None:
    """Whether it failed in the database or before: nothing that was set for the connection is taken for granted."""
    at = scope()
    ledger.commit(at, None, [OpenThread("user:alice")])
    for change in (RecordStep(), OpenThread("user:bob")):
        with PostgresLedger(dsn, schema=schema) as other:
            other.commit(at, None, [RecordStep()])
        with psycopg.connect(dsn, autocommit=True) as conn:
            hang_up(conn, connections(conn, schema))
        done = ledger.commit(at, None, [change])
        assert isinstance(done, Committed) == isinstance(change, RecordStep)
    assert ledger.load(at, Query()).history.steps == 3


def connections(conn: psycopg.Connection[Any], schema: str, *, waiting: bool = False) -> list[int]:
    """The ledger's own (those that wait for a lock)."""
    which = "application_name = %s" + (" AND wait_event_type = 'Lock'" if waiting else "")
    return [pid for (pid,) in conn.execute(f"SELECT pid FROM pg_stat_activity WHERE {which}", (schema,))]


def hang_up(conn: psycopg.Connection[Any], found: list[int]) -> None:
    """The server cuts these connections, and they are gone."""
    assert found
    for pid in found:
        conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
    while conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", (found,)).fetchone():
        time.sleep(0.02)


@contextmanager
def as_application(dsn: str, schema: str, tenant: str | None) -> Iterator[psycopg.Connection[Any]]:
    """What somebody can do who has the application's role, and nothing else."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SELECT set_config('role', %s, false), set_config('search_path', %s, false)", (ROLE, schema))
        if tenant is not None:
            conn.execute("SELECT set_config('runtime_authz.tenant', %s, false)", (f"={tenant}",))
        yield conn


def filled(ledger: PostgresLedger) -> Scope:
    """A thread with a row in nearly every table."""
    where = scope()
    plan = PlanRecord("m1", ("root",), 1, "model", (PlannedCall(0, "c", "pay", "d"),))
    edge = Edge.model_validate({"from": "a", "to": "b", "kind": "handoff"})
    changes = [OpenThread("user:alice"), AdvanceEpoch(1, (HumanText("d", "pay"),)), RecordPlan(plan), RecordEdge(edge)]
    assert isinstance(ledger.commit(where, None, [*changes, Revoke(("root", "bad"))]), Committed)
    return where


def code(ask: Callable[[], object]) -> str:
    with pytest.raises(LedgerError) as caught:
        ask()
    return caught.value.code


def test_history_can_only_be_added_to(dsn: str, schema: str, ledger: PostgresLedger) -> None:
    """Epochs, texts, revocations, edges, plans and the journal: no role of the application's changes them."""
    where = filled(ledger)
    for table in HISTORY:
        for statement in ("UPDATE {} SET tenant = tenant", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"):
            with as_application(dsn, schema, where.tenant) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(sql.SQL(statement).format(sql.Identifier(table)))
        with as_application(dsn, schema, where.tenant) as conn:
            assert conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone() != (0,)
    for table in ("meta", "migration"):
        with as_application(dsn, schema, where.tenant) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


def test_an_epoch_can_not_be_put_back_by_adding_rows(dsn: str, schema: str, ledger: PostgresLedger) -> None:
    """The greatest one counts: whoever has the application's role can only raise it."""
    where = filled(ledger)
    with as_application(dsn, schema, where.tenant) as conn:
        row = "INSERT INTO epoch SELECT tenant, thread, 1, 'sha256:z', '{}', at FROM epoch WHERE tenant = %s"
        conn.execute(row, (where.tenant,))
    assert ledger.load(where, Query()).epoch == 2


@pytest.mark.parametrize("tenant", [None, "", "another"], ids=["none", "empty", "another"])
def test_a_tenant_sees_and_writes_its_own_rows_only(dsn: str, schema: str, ledger: PostgresLedger, tenant: str | None) -> None:
    """Whatever the statement says; and without a tenant there is nothing at all."""
    where = filled(ledger)
    for table in (*STATE, *HISTORY):
        name = sql.Identifier(table)
        with as_application(dsn, schema, tenant) as conn:
            try:
                seen = conn.execute(sql.SQL("SELECT count(*) FROM {} WHERE tenant = %s").format(name), (where.tenant,))
                assert seen.fetchone() == (0,)
            except psycopg.errors.UndefinedObject:  # no tenant was ever set on this connection
                assert tenant is None
                continue
    with as_application(dsn, schema, tenant) as conn, pytest.raises(psycopg.Error):
        conn.execute("INSERT INTO edge (tenant, thread, parent, child, kind) VALUES (%s, '', '', '', '')", (where.tenant,))
    with psycopg.connect(dsn) as owner:  # the twin: without the role there is something to see
        found = owner.execute(sql.SQL("SELECT count(*) FROM {}.thread WHERE tenant = %s").format(sql.Identifier(schema)), (where.tenant,))
        assert found.fetchone() == (1,)


def test_a_commit_reads_one_row_of_its_tenants_journal(dsn: str, own: str) -> None:
    """Also in plans that were made while the tables were empty, and after a migration of a schema with an older policy."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT set_config('search_path', %s, false)", (own,))
        conn.execute("ALTER POLICY tenant ON journal USING ('=' || tenant = current_setting('runtime_authz.tenant'))")
    with administer(dsn, schema=own) as admin:
        migrate(admin)
    with PostgresLedger(dsn, schema=own) as ledger:
        for number in range(300):
            ledger.commit(Scope("acme", "issuer", "graph", f"{number}"), None, [OpenThread("user:alice")])
    read = "SELECT sum(idx_scan), sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = %s AND relname = 'journal'"
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(100):
            scans, rows = conn.execute(read, (own,)).fetchone() or (0, 0)
            if scans and scans > 300:
                break
            time.sleep(0.1)
    assert scans > 300 and rows <= 2 * scans, (scans, rows)


def test_time_is_the_databases(ledger: PostgresLedger, dsn: str) -> None:
    """Whatever the process believes."""
    where = scope()
    with psycopg.connect(dsn) as conn:
        ((before,),) = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
        now = ledger.load(where, Query()).now
        done = ledger.commit(where, None, [RecordStep()])
        ((after,),) = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
    assert isinstance(done, Committed)
    assert before <= now <= done.now <= after


def test_threads_do_not_wait_for_each_other(ledger: PostgresLedger, dsn: str, schema: str) -> None:
    """A held thread denies in time, with its code; another goes on; and the first, when it is free."""
    held, free = filled(ledger), filled(ledger)
    with psycopg.connect(dsn) as conn:
        table = sql.SQL("SELECT 1 FROM {}.thread WHERE tenant = %s FOR UPDATE").format(sql.Identifier(schema))
        conn.execute(table, (held.tenant,))
        assert isinstance(ledger.commit(free, None, [RecordStep()]), Committed)
        begun = time.monotonic()
        assert code(lambda: ledger.commit(held, None, [RecordStep()])) == Code.LEDGER_TIMEOUT
        assert time.monotonic() - begun < 30 and ledger.load(held, Query()).exists
    assert isinstance(ledger.commit(held, None, [RecordStep()]), Committed)
    assert ledger.load(held, Query()).history.steps == 1


def test_a_server_that_hangs_denies(dsn: str, schema: str) -> None:
    """Its backend is stopped, and the kernel still takes what is sent to it: no step waits for ever."""
    own = secrets.token_hex(4)
    with PostgresLedger(f"{dsn} application_name={own}", schema=schema, timeout=0.5, max_size=1) as ledger:
        where = filled(ledger)
        with psycopg.connect(dsn) as conn:
            (pid,) = connections(conn, own)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert code(lambda: ledger.load(where, Query())) == Code.LEDGER_TIMEOUT
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ledger.load(where, Query()).exists


def test_a_commit_that_was_cut_off_denies(ledger: PostgresLedger, dsn: str, schema: str) -> None:
    """The server dies while a commit waits for a lock: it was not applied, and the next one is."""
    where = filled(ledger)
    with psycopg.connect(dsn) as conn:
        conn.execute(sql.SQL("SELECT 1 FROM {}.thread WHERE tenant = %s FOR UPDATE").format(sql.Identifier(schema)), (where.tenant,))

        async def cut() -> str:
            waiting = asyncio.ensure_future(ledger.acommit(where, None, [RecordStep()]))
            with psycopg.connect(dsn, autocommit=True) as other:
                while not (found := connections(other, schema, waiting=True)) and not waiting.done():
                    await asyncio.sleep(0.02)
                hang_up(other, found)
            try:
                await waiting
            except LedgerError as exc:
                return exc.code
            return ""

        assert asyncio.run(cut()) == Code.LEDGER_UNAVAILABLE
    assert ledger.load(where, Query()).history.steps == 0
    assert isinstance(ledger.commit(where, None, [RecordStep()]), Committed)


def test_a_database_that_can_not_be_written_denies(dsn: str, own: str) -> None:
    """A standby, say: loads go on, commits are denied, and nothing is lost."""
    with login(dsn) as name, PostgresLedger(f"{dsn} user={name} application_name={own}", schema=own) as made:
        where = filled(made)
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(sql.Identifier(name)))
            hang_up(owner, connections(owner, own))
            assert made.load(where, Query()).exists
            assert code(lambda: made.commit(where, None, [RecordStep()])) == Code.LEDGER_UNAVAILABLE
            assert code(lambda: made.check(where.tenant)) == Code.LEDGER_UNAVAILABLE
            assert made.load(where, Query()).exists
            owner.execute(sql.SQL("ALTER ROLE {} RESET default_transaction_read_only").format(sql.Identifier(name)))
            hang_up(owner, connections(owner, own))
        assert isinstance(made.commit(where, None, [RecordStep()]), Committed)


@contextmanager
def login(dsn: str) -> Iterator[str]:
    """A role that may log in, and is a member of the application's role: nothing more."""
    name = f"login_{secrets.token_hex(4)}"
    with psycopg.connect(dsn) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        owner.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(ROLE), sql.Identifier(name)))
    yield name
    with psycopg.connect(dsn) as owner:
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def own(dsn: str) -> Iterator[str]:
    with ledger_schema() as (_, name):
        yield name


def test_the_status_is_shown_to_the_applications_role(dsn: str, own: str) -> None:
    """An operator has that role on hand; a migration still needs the owner's."""
    with login(dsn) as name:
        mine = dsn.replace("user=postgres", f"user={name}")
        shown = cli("ledger", "status", mine, "--schema", own)
        assert (shown.exit_code, "usable" in shown.stdout) == (0, True), shown.output
        assert cli("ledger", "migrate", mine, "--schema", own).exit_code == 2
        for command in (("prune", mine, "--older-than", "90d"), ("clock", mine, "--yes")):
            refused = cli("ledger", *command, "--schema", own)
            assert refused.stderr.startswith("error: ledger_role: postgres owns schema"), refused.output
        listed = cli("calls", "list", mine, "--schema", own)
        assert (listed.exit_code, "name others by --tenant" in listed.stderr) == (0, True), listed.output
        with psycopg.connect(dsn) as owner:
            owner.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(ROLE), sql.Identifier(name)))
        stranger = cli("ledger", "status", mine, "--schema", own)
        assert (stranger.exit_code, "ledger_unavailable: this role may not" in stranger.stderr) == (2, True)


@pytest.mark.parametrize("known", [True, False], ids=["a known thread", "a new thread"])
def test_a_transaction_waits_for_a_migration_before_it_locks_anything(dsn: str, own: str, known: bool) -> None:
    """Else both would wait for each other, and PostgreSQL would end one of them. Also with prepared statements."""
    held = "SELECT relation::regclass::text FROM pg_locks WHERE granted AND relation IS NOT NULL AND pid = ANY(%s)"
    with PostgresLedger(f"{dsn} application_name={own}", schema=own) as made, psycopg.connect(dsn) as owner:
        owner.execute("SELECT set_config('search_path', %s, false)", (own,))
        owner.commit()
        threads = [scope(tenant="acme")] * 16 if known else [scope(str(n), "acme") for n in range(16)]
        for prepared, at in enumerate(threads):
            verbs = [lambda at=at: made.load(at, Query(log=True)), lambda at=at: made.commit(at, None, [RecordStep()])]
            for verb in verbs[not known :]:
                owner.execute("LOCK TABLE thread IN ACCESS EXCLUSIVE MODE")
                with ThreadPoolExecutor(1) as worker:
                    done = worker.submit(verb)
                    while not (waiting := connections(owner, own, waiting=True)):
                        time.sleep(0.01)
                    found = {table for (table,) in owner.execute(held, (waiting,))}
                    owner.commit()
                    done.result()
                assert found <= {"migration", "migration_pkey"}, (prepared, found)


def test_a_migration_gives_way_to_a_commit(dsn: str, own: str) -> None:
    """A transaction that has begun ends first, whatever tables it still needs, and then the migration goes on."""
    login = f"{dsn} options=-csearch_path={own}"
    waiting = "SELECT 1 FROM pg_locks WHERE relation IN ('thread'::regclass, 'budget'::regclass) AND NOT granted"
    with (
        psycopg.connect(login, autocommit=True) as owner, psycopg.connect(login) as commit,
        psycopg.connect(login) as other, ThreadPoolExecutor(2) as workers,
    ):  # fmt: skip
        for table in STATE:  # as an older package left them
            owner.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        commit.execute("SELECT 1 FROM thread")
        other.execute("SELECT 1 FROM budget")
        migrated = workers.submit(cli, "ledger", "migrate", dsn, "--schema", own)
        while not owner.execute(waiting).fetchone():
            time.sleep(0.01)
        committed = workers.submit(commit.execute, "SELECT 1 FROM approval")
        time.sleep(0.1)
        other.commit()
        committed.result()
        time.sleep(0.7)
        commit.commit()
        assert migrated.result().exit_code == 0, migrated.result().output


def test_a_run_survives_what_befalls_its_ledger(dsn: str, own: str) -> None:
    """Put back to an older backup, of another schema, gone: each a deny with its code; the run ends in peace."""
    with PostgresLedger(dsn, schema=own, timeout=2) as made:
        authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"pay": ToolProfile(effect="pay", sink="external")}, ledger=made)
        with authz.session(subject="alice", task="pay") as session:
            assert session.decide("pay", {"n": 0}).permit
            with psycopg.connect(dsn) as owner:
                owner.execute("SELECT set_config('search_path', %s, false)", (own,))
                owner.execute("CREATE TABLE kept AS SELECT * FROM journal")
                owner.execute("DELETE FROM journal WHERE position > 1")
            assert session.decide("pay", {"n": 1}).reason == Code.LEDGER_ROLLED_BACK
            with psycopg.connect(dsn) as owner:
                owner.execute("SELECT set_config('search_path', %s, false)", (own,))
                owner.execute("DELETE FROM journal")
                owner.execute("INSERT INTO journal OVERRIDING SYSTEM VALUE SELECT * FROM kept")
            assert session.decide("pay", {"n": 2}).permit
            with administer(dsn, schema=own) as admin:
                migrate(admin, 1)
            assert session.decide("pay", {"n": 3}).reason == Code.LEDGER_SCHEMA
            with psycopg.connect(dsn) as owner:
                owner.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(own)))
            assert session.decide("pay", {"n": 4}).reason == Code.LEDGER_SCHEMA
        assert code(lambda: PostgresLedger(dsn, schema=own)) == Code.LEDGER_SCHEMA


def test_a_full_disk_denies(dsn: str, own: str) -> None:
    """As the server says it (53100); nothing is half written, and with room again the run goes on."""
    full = "BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END"
    with PostgresLedger(dsn, schema=own) as made:
        authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"pay": ToolProfile(effect="pay", sink="external")}, ledger=made)
        session, numbers = authz.session(subject="alice", task="pay"), itertools.count()
        pay = lambda: session.decide("pay", {"n": next(numbers)}).reason
        assert pay() == ""
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute("SELECT set_config('search_path', %s, false)", (own,))
            owner.execute(f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $${full}$$")
            owner.execute("CREATE TRIGGER full_disk BEFORE INSERT ON call FOR EACH ROW EXECUTE FUNCTION full_disk()")
            assert [pay(), pay()] == [Code.LEDGER_UNAVAILABLE] * 2
            assert owner.execute("SELECT count(*) FROM call").fetchone() == (1,)
            owner.execute("DROP TRIGGER full_disk ON call")
        assert pay() == ""


def test_a_database_that_is_not_there_is_refused_in_time() -> None:
    """Without its connection string: it may hold a password."""
    begun = time.monotonic()
    with pytest.raises(LedgerError) as caught:
        PostgresLedger("host=127.0.0.1 port=1 user=me password=secret-word dbname=none", timeout=1)
    assert caught.value.code == Code.LEDGER_UNAVAILABLE
    assert "Connection refused" in str(caught.value) and time.monotonic() - begun < 30
    assert "secret-word" not in str(caught.value)


def test_a_pool_of_the_callers_stays_the_callers(dsn: str, schema: str) -> None:
    """Its settings come back as they were, and closing the ledger leaves it open."""
    with ConnectionPool(dsn, min_size=1, max_size=2, kwargs={"autocommit": False}) as pool:
        where = scope()
        with PostgresLedger(pool, schema=schema) as made:
            made.commit(where, None, [OpenThread("user:alice")])
            assert made.load(where, Query()).subject == "user:alice"
            made._pid = -1  # as in a process that was forked: its connections are its parent's
            for _ in range(2):
                assert code(lambda: made.load(where, Query())) == Code.LEDGER_UNAVAILABLE
        with pool.connection() as conn:
            assert not conn.autocommit
            assert conn.execute("SELECT current_user, current_setting('search_path')").fetchone() == (
                "postgres", '"$user", public',
            )


@pytest.mark.parametrize(("before", "after"), [("off", "on"), ("local", "local")])
def test_a_commit_is_on_the_disk_when_it_returns(dsn: str, own: str, before: str, after: str) -> None:
    """Also where the server's own setting would not wait for it; what waits for more stays."""
    with login(dsn) as name:
        with psycopg.connect(dsn) as owner:
            change = sql.SQL("ALTER ROLE {} SET synchronous_commit = {}")
            owner.execute(change.format(sql.Identifier(name), sql.Literal(before)))
        with PostgresLedger(f"{dsn} user={name}", schema=own) as made, made._writing("acme", b"", (), True) as tx:
            assert tx.batch([("SELECT current_setting('synchronous_commit')", ())]) == [[(after,)]]


def test_an_operator_makes_shows_prunes_and_takes_back(dsn: str) -> None:
    """The command line on PostgreSQL."""
    name = f"t_{secrets.token_hex(4)}"

    def run(command: str, *args: str) -> tuple[int, str]:
        found = cli("ledger", command, dsn, "--schema", name, *args)
        return found.exit_code, found.output

    assert run("status")[0] == 1
    assert run("migrate")[0] == run("migrate")[0] == 0
    assert run("status")[0] == 0
    with PostgresLedger(dsn, schema=name, clock=lambda: 1_000_000_000.0) as made:
        made.commit(scope(), None, [OpenThread("user:alice"), AdvanceEpoch(1)])
        made.commit(scope(), None, [Revoke(())])
    assert run("prune", "--older-than", "90d")[1].split() == ["threads", "1", "commits", "0", "in_doubt", "0"]
    assert run("downgrade", "--to", "0", "--yes", "--forget-doubts")[0] == 0 and run("status")[0] == 1
    with psycopg.connect(dsn) as owner:
        owner.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
    missing = cli("ledger", "status", "postgresql://nobody@127.0.0.1:1/none")
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)


def test_a_thread_that_others_began_is_read(dsn: str, own: str) -> None:
    """A load found none. The commit after it goes by what became of it since."""
    at = scope()
    with PostgresLedger(dsn, schema=own) as ours, PostgresLedger(dsn, schema=own) as theirs, administer(dsn, schema=own) as admin:
        assert not ours.load(at, Query()).exists
        theirs.commit(at, None, [OpenThread("user:bob"), AdvanceEpoch(1)])
        assert ours.commit(at, None, [OpenThread("user:alice")]) == Conflict(Code.SUBJECT_MISMATCH)
        assert prune(admin, -1e9).threads == 1
        admin._conn.commit()
        assert ours.commit(at, None, [OpenThread("user:alice")]).epoch == 2


def test_a_thread_that_is_taken_up_while_others_are_forgotten_stays(dsn: str, own: str) -> None:
    """Retention has chosen it when a new entry commits: it looks again, behind the same lock."""
    old = scope()
    with PostgresLedger(dsn, schema=own, clock=lambda: 1_000_000_000.0) as made:
        made.commit(old, None, [OpenThread("user:alice"), AdvanceEpoch(1)])
    with PostgresLedger(dsn, schema=own) as made, administer(dsn, schema=own) as admin:
        run, chosen = admin.run, []

        def between(text: str, values: Any = ()) -> Any:
            found = run(text, values)
            if text.startswith("SELECT tenant, thread"):
                chosen.extend(found)
                made.commit(old, None, [TakeLease(Lease("j", "run", ("root",), 2, 0, 5_000_000_000))])
            return found

        admin.run = between  # type: ignore[method-assign]
        assert prune(admin, 86400).threads == 0 and len(chosen) == 1
    with PostgresLedger(dsn, schema=own) as made:
        assert made.status(old.tenant, "j") == "live"


def test_schemas_that_share_a_new_role_are_made_at_once(dsn: str) -> None:
    """Two applications of one cluster migrate at the same time."""
    tag = secrets.token_hex(4)
    names = [f"t_{tag}_{n}" for n in range(6)]

    def make(name: str) -> int:
        with administer(dsn, schema=name, role=f"r_{tag}", create=True) as admin:
            return migrate(admin).version

    with ThreadPoolExecutor(len(names)) as pool:
        assert len(set(pool.map(make, names))) == 1
    with psycopg.connect(dsn) as conn:
        conn.execute(f"DROP SCHEMA {', '.join(names)} CASCADE")  # type: ignore[arg-type]
        conn.execute(f"DROP OWNED BY r_{tag}")  # type: ignore[arg-type]
        conn.execute(f"DROP ROLE r_{tag}")  # type: ignore[arg-type]


def test_a_turn_takes_few_statements(dsn: str, schema: str) -> None:
    """A load is one statement, and so is a commit of a thread that this process began."""
    with PostgresLedger(dsn, schema=schema) as ledger, seen_by_postgres() as seen:
        turn, invoke = turn_and_invoke(ledger, seen)
    assert (len(turn) <= POSTGRES, writes(turn)) == (True, 3), turn
    assert (len(invoke) <= 11, writes(invoke)) == (True, 5), invoke


@pytest.mark.parametrize(("accept", "code"), [(accept_restore, Code.STALE_EPOCH), (accept_clock, Code.LEASE_ENDED)])
def test_a_commit_does_not_outrun_its_operator(
    dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch, accept: Callable[[Any], object], code: Code
) -> None:
    """What the operator ends between the read and the write of a commit stays ended."""
    place, keep, calls = scope(), statements.rows.changed_rows, []

    def meanwhile(*args: Any) -> Any:
        if not calls:
            calls.append(1)
            with administer(dsn, schema=schema) as admin:
                accept(admin)
        return keep(*args)

    with PostgresLedger(dsn, schema=schema) as ledger:
        now = int(time.time())
        lease = Lease("jti", "run", ("root",), 1, now, now + 60)
        ledger.commit(place, None, [OpenThread("user:alice"), TakeLease(lease)])
        monkeypatch.setattr(statements.rows, "changed_rows", meanwhile)
        done = ledger.commit(place, Guard("jti", 1), [RecordStep(call="pay")])
        assert getattr(done, "code", None) == code
    assert calls


def test_a_malformed_connection_string_is_not_an_outage() -> None:
    """And its password is not shown."""
    found = cli("ledger", "status", "postgresql://carol:secret@[bad")
    assert (found.exit_code, found.stderr) == (2, "error: config: the connection string of PostgreSQL is malformed\n")
