"""`runtime-authz ledger`."""

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import langchain_runtime_authz.ledger
from langchain_runtime_authz.cli._ledger_options import LedgerOptions
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.ledger.base import Approval, Conflict, Lease, Query, Scope
from langchain_runtime_authz.ledger.call_changes import AnswerApproval, AskApproval, SpendApproval
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, OpenThread, RecordStep, TakeLease
from langchain_runtime_authz.ledger.schema import SCHEMA
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from tests.cli import WIDE, cli

SCOPE = Scope("acme", "issuer", "graph", "thread")


ledger = partial(cli, "ledger", env=WIDE)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.mark.parametrize("command", [("migrate",), ("downgrade", "--to", "1")])
@pytest.mark.parametrize(("deadlocks", "code"), [(3, 0), (4, 2)])
def test_a_migration_that_meets_a_deadlock_is_tried_again(
    file: str, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], deadlocks: int, code: int
) -> None:
    """PostgreSQL ends one of two transactions, mostly the longer one. The operator is asked once."""
    assert ledger("migrate", file).exit_code == 0
    opened, left = LedgerOptions.administered, iter(range(deadlocks))

    @contextmanager
    def administered(self: LedgerOptions, **options: Any) -> Iterator[Any]:
        with opened(self, **options) as admin:
            yield admin
            if next(left, None) is not None:
                raise LedgerError(Code.LEDGER_TIMEOUT, "deadlock detected")

    monkeypatch.setattr(LedgerOptions, "administered", administered)
    assert ledger(*command, file, input="y\n").exit_code == code


def test_a_ledger_is_made_looked_at_taken_back_and_made_again(file: str) -> None:
    """The road of an operator."""
    missing = ledger("status", file)
    assert (missing.exit_code, "make one with `runtime-authz ledger migrate`" in missing.stderr) == (2, True)
    made = ledger("migrate", file)
    assert (made.exit_code, made.stdout.split()[:2]) == (0, ["schema", str(SCHEMA)])
    assert "result   usable" in ledger("status", file).stdout
    assert ledger("downgrade", file, "--to", "1", "--yes").exit_code == 0
    old = ledger("status", file)
    assert (old.exit_code, "result   unusable: ledger_schema" in old.stdout) == (1, True)
    assert ledger("migrate", file).exit_code == 0 and ledger("status", file).exit_code == 0


@pytest.mark.parametrize("command", [("ledger", "status"), ("ledger", "clock", "--yes"), ("approvals", "list"), ("calls", "list")])
@pytest.mark.parametrize("table", ["meta", "migration", "lease", "call", "approval", "foreign", "both"])
def test_a_ledger_that_lacks_a_table_is_refused_in_one_sentence(file: str, command: tuple[str, ...], table: str) -> None:
    """Also a file of something else that has a table `migration` of its own, and perhaps `meta`."""
    if table not in ("foreign", "both"):
        ledger("migrate", file)
    with closing(sqlite3.connect(file)) as conn, conn:
        foreign = "CREATE TABLE migration AS SELECT 'first' AS version, 'x' AS min_reader"
        conn.execute(foreign if table in ("foreign", "both") else f"DROP TABLE {table}")
        if table == "both":
            conn.execute("CREATE TABLE meta (a)")
    refused = cli(*command[:2], file, *command[2:])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: ledger_schema: it ")


def test_a_downgrade_asks_first(file: str) -> None:
    ledger("migrate", file)
    refused = ledger("downgrade", file, "--to", "0", input="n\n")
    assert (refused.exit_code, "Drop what versions 1 to" in refused.output) == (1, True)
    assert ledger("status", file).exit_code == 0
    up = ledger("downgrade", file, "--to", str(SCHEMA + 1), "--yes")
    assert (up.exit_code, "goes up" in up.stderr) == (2, True)
    assert ledger("downgrade", file, "--to", "0", input="y\n").exit_code == 0
    assert "schema   none" in ledger("status", file).stdout


def test_histories_are_forgotten_by_age(file: str) -> None:
    """Old ones only, and it says how many."""
    with SqliteLedger(file, clock=lambda: 1_000_000_000.0) as old:
        old.commit(SCOPE, None, [OpenThread("user:alice"), AdvanceEpoch(1)])
    with SqliteLedger(file) as new:
        new.commit(SCOPE._replace(thread="new"), None, [RecordStep()])
    kept = ledger("prune", file, "--older-than", "999999d")
    assert kept.stdout.split() == ["threads", "0", "commits", "0", "in_doubt", "0"]
    gone = ledger("prune", file, "--older-than", "90d")
    assert gone.stdout.split() == ["threads", "1", "commits", "1", "in_doubt", "0"]
    with SqliteLedger(file) as after:
        assert not after.load(SCOPE, Query()).exists
        assert after.load(SCOPE._replace(thread="new"), Query()).exists


def test_a_clock_that_ran_ahead_is_set_right(file: str) -> None:
    """The ledger denies until then; no lease and no approval outlives what it was given by it."""
    ahead = time.time() + 365 * 86400
    with SqliteLedger(file, clock=lambda: ahead) as wrong:
        wrong.commit(SCOPE, None, [TakeLease(Lease("j", "run", ("root",), 1, int(ahead), int(ahead) + 60))])
        day = Approval("k", "digest", 1, id="question", expires_at=int(ahead) + 86400)
        wrong.commit(SCOPE, None, [AskApproval(day)])
        wrong.commit(SCOPE, None, [AnswerApproval("k", "approved", "user:bob", authenticated=True)])
    with SqliteLedger(file) as right:
        with pytest.raises(LedgerError, match=Code.LEDGER_CLOCK):
            right.load(SCOPE, Query())
        assert ledger("clock", file, input="n\n").exit_code == 1
        assert ledger("clock", file, input="y\n").stdout.endswith("leases   1 ended\n")
        assert right.status("acme", "j") == "ended"
        assert right.commit(SCOPE, None, [SpendApproval("k", "digest")]) == Conflict(Code.APPROVAL_VOID)
        assert right.load(SCOPE, Query()).now == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("age", ["", "90", "d", "-1d", "1.5d", "90 d", "1y"])
def test_an_age_has_a_unit(file: str, age: str) -> None:
    """Else nothing is forgotten."""
    ledger("migrate", file)
    wrong = ledger("prune", file, "--older-than", age)
    assert (wrong.exit_code, "must be like 36h" in wrong.stderr) == (2, True)


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    """In one line, with a code, and no traceback."""
    text, empty = tmp_path / "notes.txt", tmp_path / "empty.db"
    text.write_text("hello " * 100)
    empty.touch()
    for where, expected in (
        (text, "error: ledger_unavailable: notes.txt: "),
        (tmp_path / "none.db", f"error: config: there is no ledger at {tmp_path}/none.db; "),
        (empty, f"error: config: there is no ledger at {empty}; "),
    ):
        found = ledger("status", str(where))
        assert found.exit_code == 2 and found.stderr.startswith(expected)
        assert found.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.db", "notes.txt"]


def test_without_its_driver_postgresql_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "langchain_runtime_authz.ledger.postgres", raising=False)
    monkeypatch.delattr(langchain_runtime_authz.ledger, "postgres", raising=False)
    found = ledger("status", "postgresql://nobody@127.0.0.1:1/none")
    assert (found.exit_code, "langchain-runtime-authz[postgres]" in found.stderr) == (2, True)
