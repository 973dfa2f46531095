"""The SQLite ledger when its file is gone, held, full, older, or something else: a deny with a code, and nothing lost."""

import asyncio
import inspect
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import AuthzDenied, Code, LedgerError
from langchain_runtime_authz.ledger import sql_rows, sqlite
from langchain_runtime_authz.ledger.admin import Admin, accept_clock, accept_restore, prune
from langchain_runtime_authz.ledger.base import Committed, Guard, Lease, Query, Scope
from langchain_runtime_authz.ledger.changes import OpenThread, RecordStep, Revoke, TakeLease
from langchain_runtime_authz.ledger.sql_ledger import URGENT
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import FrozenClock, StaticPDP
from tests.threads import together

SCOPE = Scope("default", "issuer", "graph", "thread")
PROFILES = {"pay": ToolProfile(effect="pay", sink="external")}


class House:
    """A ledger in a file, a session that uses it, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FrozenClock()
        self.ledger = SqliteLedger(path, clock=self.clock, timeout=0.2)
        self.authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES, ledger=self.ledger)
        self.session = self.authz.session(subject="alice", task="pay", thread="t")
        self.number = 0

    def pay(self) -> str | None:
        """Decide one payment; the reason of a deny."""
        self.number += 1
        decision = self.session.decide("pay", {"n": self.number})
        if decision.permit:
            self.session.observe("pay", {"n": self.number}, "paid")
        return None if decision.permit else decision.reason

    def steps(self) -> int:
        """Permitted payments, as another instance finds them."""
        with SqliteLedger(self.path, clock=self.clock) as other:
            scope = Scope("default", self.authz.issuer.issuer, "session", "t")
            return other.load(scope, Query()).history.calls.get("pay", 0)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "ledger.db")
    yield made
    made.ledger.close()


def code(ask: Callable[[], object]) -> str:
    """The code with which something is refused."""
    with pytest.raises(LedgerError) as caught:
        ask()
    return caught.value.code


def test_a_ledger_that_is_gone_denies_until_it_is_back(house: House) -> None:
    """A deleted file would be written to unseen, through the open descriptor: all of that would be lost."""
    assert house.pay() is None
    away = house.path.with_suffix(".away")
    house.path.rename(away)
    assert [house.pay(), house.pay()] == [Code.LEDGER_UNAVAILABLE] * 2
    with pytest.raises(AuthzDenied) as caught:
        house.authz.session(subject="alice", thread="another")
    assert caught.value.code == Code.LEDGER_UNAVAILABLE
    away.rename(house.path)
    assert house.pay() is None and house.steps() == 2


def test_a_ledger_that_somebody_holds_denies_in_time(house: House) -> None:
    """It waits as long as it was told to, says so, and goes on when the file is free."""
    assert house.pay() is None
    other = sqlite3.connect(house.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    assert house.pay() == Code.LEDGER_TIMEOUT and time.monotonic() - begun < 30
    other.execute("ROLLBACK")
    other.close()
    assert house.pay() is None and house.steps() == 2


def opened_with(monkeypatch: pytest.MonkeyPatch, house: House, prepare: Callable[[sqlite3.Connection], object]) -> None:
    """Connections that are opened from now on are prepared so."""
    connect = sqlite._connect

    def prepared(*args: Any) -> sqlite3.Connection:
        conn = connect(*args)
        prepare(conn)
        return conn

    monkeypatch.setattr(sqlite, "_connect", prepared)
    while house.ledger._idle:
        house.ledger._idle.pop().close()


@pytest.mark.parametrize("prepare", [
    lambda conn: conn.execute("PRAGMA query_only = ON"),
    lambda conn: conn.execute(f"PRAGMA max_page_count = {conn.execute('PRAGMA page_count').fetchone()[0]}"),
], ids=["read-only", "full"])
def test_a_ledger_that_can_not_be_written_denies(
    house: House, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[sqlite3.Connection], object]
) -> None:
    """A read-only file; a full disk, after what was left of the last page. Nothing is half written."""
    assert house.pay() is None
    with monkeypatch.context() as patch:
        opened_with(patch, house, prepare)
        refused = next(reason for _ in range(500) if (reason := house.pay()))
        assert refused == Code.LEDGER_UNAVAILABLE
        permitted = house.number - 1
    while house.ledger._idle:
        house.ledger._idle.pop().close()
    assert house.steps() == permitted and house.pay() is None
    assert house.steps() == permitted + 1


def test_a_full_disk_does_not_stop_a_claimed_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran; its end is recorded once there is room, at the latest when the run ends."""
    decision = house.session.decide("pay", {"n": 0})
    assert decision.permit
    with monkeypatch.context() as patch:
        opened_with(patch, house, lambda conn: conn.execute("PRAGMA query_only = ON"))
        house.session.observe("pay", {"n": 0}, "paid")
    while house.ledger._idle:
        house.ledger._idle.pop().close()
    house.session.close()
    states = sqlite3.connect(house.path).execute("SELECT state FROM call").fetchall()
    assert states == [("done",)]


def test_a_file_that_was_replaced_is_refused(house: House) -> None:
    """By the instance that knew the other one, whatever the new one holds."""
    old = house.path.with_suffix(".old")
    shutil.copy(house.path, old)
    assert house.pay() is None
    old.replace(house.path)
    assert house.pay() == Code.LEDGER_UNAVAILABLE


def backup(path: Path, target: Path) -> None:
    """A whole copy, as SQLite's own backup makes it."""
    source, copy = sqlite3.connect(path), sqlite3.connect(target)
    source.backup(copy)
    copy.close()
    source.close()


def test_a_ledger_put_back_in_place_is_refused(house: House, tmp_path: Path) -> None:
    """The same file with an older content: a revocation that this instance has seen would be gone."""
    backup(house.path, tmp_path / "old.db")
    assert house.pay() is None
    backup(tmp_path / "old.db", house.path)
    assert house.pay() == Code.LEDGER_ROLLED_BACK
    assert code(lambda: house.ledger.status("default", house.session.jti)) == Code.LEDGER_ROLLED_BACK


def test_a_clock_that_was_set_back_denies_until_it_is_right(house: House) -> None:
    """The run goes on then."""
    assert house.pay() is None
    house.clock.tick(-3600)
    assert house.pay() == Code.LEDGER_CLOCK
    house.clock.tick(3601)
    house.session = house.authz.session(subject="alice", thread="t")
    assert house.pay() is None


def test_a_slow_ledger_does_not_hold_the_event_loop(house: House) -> None:
    """While one commit waits for a lock, the loop goes on ticking, and so do loads."""
    other = sqlite3.connect(house.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def main(patient: SqliteLedger) -> object:
        commit = asyncio.ensure_future(patient.acommit(SCOPE, None, [RecordStep()]))
        for _ in range(3):
            await asyncio.sleep(0.005)
            await patient.aload(SCOPE, Query())
        assert not commit.done()
        other.execute("ROLLBACK")
        return await commit

    with SqliteLedger(house.path, clock=house.clock, timeout=60) as patient:
        assert isinstance(asyncio.run(main(patient)), Committed)
    other.close()


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write-ahead, and synchronised at every commit, on each connection; the other tests do not wait for the disk."""
    monkeypatch.setattr(sqlite, "_connect", inspect.unwrap(sqlite._connect))
    with SqliteLedger(tmp_path / "ledger.db") as ledger, ledger._reading("") as one, ledger._reading("") as two:
        for tx in (one, two):
            assert tx.batch([("PRAGMA synchronous", ()), ("PRAGMA journal_mode", ())]) == [[(2,)], [("wal",)]]


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """And opened again with all that it holds."""
    path = tmp_path / "ledger.db"
    with SqliteLedger(path) as first:
        assert path.stat().st_mode & 0o777 == 0o600
        first.commit(SCOPE, None, [OpenThread("user:alice"), Revoke(())])
    with SqliteLedger(str(path)) as again:
        seen = again.load(SCOPE, Query())
        assert (seen.subject, seen.revoked) == ("user:alice", True)


@pytest.mark.parametrize("left", [b"", "header"], ids=["empty", "no-tables"])
def test_a_file_whose_maker_died_is_made_whole(tmp_path: Path, left: bytes | str) -> None:
    """Killed after the file was made, and after it was put into write-ahead mode."""
    path = tmp_path / "ledger.db"
    path.touch()
    if left == "header":
        conn = sqlite3.connect(path)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.close()
        assert path.stat().st_size > 0
    with SqliteLedger(path) as ledger:
        ledger.commit(SCOPE, None, [RecordStep()])


def test_a_second_ledger_in_one_process_takes_no_lock_from_the_first(tmp_path: Path) -> None:
    """Else a third, in another process, removes the write-ahead log as it closes, and what is in it is lost."""
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path) as first:
        first.commit(SCOPE, None, [OpenThread("user:alice")])
        with SqliteLedger(path), sqlite.administer(path, create=True):
            pass
        another = "import sys; from langchain_runtime_authz.ledger.sqlite import SqliteLedger as L; L(sys.argv[1]).close()"
        subprocess.run([sys.executable, "-c", another, str(path)], check=True, timeout=60)
        first.commit(SCOPE, None, [Revoke(("agent",))])
        assert path.with_name(f"{path.name}-wal").exists()
        with SqliteLedger(path) as later:
            assert later.load(SCOPE, Query(agent=("agent",))).revoked


def test_two_that_make_it_at_once_make_one(tmp_path: Path) -> None:
    """Eight threads, one ledger."""
    path, found, gate = tmp_path / "ledger.db", set[str](), threading.Barrier(8)

    def make() -> None:
        gate.wait()
        with SqliteLedger(path) as ledger:
            ledger.commit(SCOPE, None, [RecordStep()])
            found.add(ledger._identity)

    together(make)
    assert len(found) == 1
    with SqliteLedger(path) as ledger:
        assert ledger.load(SCOPE, Query()).history.steps == 8


def test_a_new_file_that_another_process_prepares_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself refuses the switch to write-ahead mode at once."""
    path = tmp_path / "ledger.db"
    path.touch()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert code(lambda: SqliteLedger(path, timeout=0.1)) == Code.LEDGER_TIMEOUT
        later = threading.Timer(0.2, other.execute, ["COMMIT"])
        later.start()
        SqliteLedger(path).close()
        later.join()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """A text, another program's database, a folder, a folder that is not."""
    (tmp_path / "text").write_bytes(b"hello, this is no database at all" * 100)
    assert code(lambda: SqliteLedger(tmp_path / "text")) == Code.LEDGER_UNAVAILABLE
    conn = sqlite3.connect(tmp_path / "other.db")
    conn.execute("CREATE TABLE notes (text TEXT)")
    conn.close()
    assert code(lambda: SqliteLedger(tmp_path / "other.db")) == Code.LEDGER_SCHEMA
    assert code(lambda: SqliteLedger(tmp_path)) == Code.LEDGER_UNAVAILABLE
    assert code(lambda: SqliteLedger(tmp_path / "none" / "ledger.db")) == Code.LEDGER_UNAVAILABLE


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Pages overwritten with noise: an error, never an empty answer."""
    path = tmp_path / "ledger.db"
    with SqliteLedger(path) as ledger:
        for number in range(50):
            ledger.commit(SCOPE._replace(thread=str(number)), None, [OpenThread("user:alice"), RecordStep(call="x" * 100)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)

    def use() -> None:
        with SqliteLedger(path) as ledger:
            ledger.load(SCOPE._replace(thread="1"), Query())

    assert code(use) == Code.LEDGER_UNAVAILABLE


@pytest.mark.parametrize("given_up", [3, 100])
def test_a_revocation_does_not_lose_to_other_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: int) -> None:
    """It is tried again while another process holds the file, and not for ever. Any other commit gives up at once."""
    tries: list[int] = []
    with SqliteLedger(tmp_path / "l.db", timeout=0.01) as ledger, closing(sqlite3.connect(tmp_path / "l.db")) as other:
        once = ledger._commit

        def counted(*args: Any) -> Any:
            tries.append(1)
            if len(tries) == given_up:
                other.rollback()
            return once(*args)

        monkeypatch.setattr(ledger, "_commit", counted)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="ledger_timeout"):
            ledger.commit(SCOPE, None, [OpenThread("user:alice")])
        assert len(tries) == 1
        if given_up > URGENT:
            with pytest.raises(LedgerError, match="ledger_timeout"):
                ledger.commit(SCOPE, None, [Revoke(())])
            assert len(tries) == 1 + URGENT
        else:
            ledger.commit(SCOPE, None, [OpenThread("user:alice"), Revoke(())])
            assert ledger.load(SCOPE, Query()).revoked


@pytest.mark.parametrize(("meanwhile", "code"), [
    (accept_restore, Code.STALE_EPOCH), (accept_clock, Code.LEASE_ENDED), (lambda admin: prune(admin, -3600), Code.LEASE_ENDED),
    (lambda admin: admin.run("INSERT INTO migration VALUES (99, 99, 0)"), Code.LEDGER_SCHEMA), (None, Code.REVOKED),
])
def test_a_commit_does_not_outrun_what_another_process_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Admin], object] | None, code: Code
) -> None:
    """What ends between the read and the write of a commit stays ended: the commit begins anew."""
    path, keep, calls, clock = tmp_path / "ledger.db", sql_rows.changed_rows, [], time.time
    lease = Lease("jti", "run", ("root",), 1, 0, int(clock()) + (60 if meanwhile is None else -1))

    def late(*args: Any) -> Any:
        if not calls:
            calls.append(1)
            if meanwhile is None:
                with SqliteLedger(path) as other:
                    other.commit(SCOPE, None, [Revoke(())])
            else:
                with sqlite.administer(path) as admin:
                    meanwhile(admin)
        return keep(*args)

    with SqliteLedger(path) as ledger:
        ledger.commit(SCOPE, None, [OpenThread("user:alice"), TakeLease(lease)])
        monkeypatch.setattr(sql_rows, "changed_rows", late)
        try:
            done: Any = ledger.commit(SCOPE, Guard("jti", 1), [RecordStep(call="pay")])
        except LedgerError as exc:
            done = exc
    assert (getattr(done, "code", None), calls) == (code, [1])


def test_a_call_is_compared_with_the_open_calls_of_its_deeds_only(tmp_path: Path) -> None:
    """SQLite does not search all calls that the tenant ever made."""
    with SqliteLedger(tmp_path / "l.db") as ledger, ledger._reading("t") as tx:
        sql, values = sql_rows.Fetch("t", b"k", sql_rows.Needs(deeds={"pay:a", "pay:b", "pay:several"})).statement(*ledger._dialect)
        plan = [row[3] for row in tx.batch([(f"EXPLAIN QUERY PLAN {sql}", values)])[0]]
    assert "SEARCH c USING INDEX call_open (tenant=? AND deed=?)" in plan
