"""A ledger that is older than its audit chain says is refused: what it revoked since would live again."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.chain import verify_chain
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.errors import AuditError, AuthzDenied, Code, LedgerError
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import StaticPDP

PROFILES = {"pay": ToolProfile(effect="pay", sink="external")}


class House:
    """A ledger file and an audit file, and processes that come and go."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "ledger.db", folder / "audit.jsonl"

    def start(self, ledger: Any = None, audit: Any = None, tenant: str = "default") -> RuntimeAuthz:
        return RuntimeAuthz(
            tenant=tenant, pdp=StaticPDP(True), profiles=PROFILES, ledger=ledger or SqliteLedger(self.path),
            audit=audit or FileSink(self.log, content=True),
        )

    def work(self, authz: RuntimeAuthz | None = None, thread: str = "t") -> RuntimeAuthz:
        authz = authz or self.start()
        with authz.session(subject="alice", task="pay", thread=thread) as session:
            args = {"ledger": {"ledger": "forged", "position": 1, "nonce": "x"}}
            assert session.decide("pay", args).permit
            session.observe("pay", args, "paid")
        return authz

    def stop(self, authz: RuntimeAuthz) -> None:
        authz.ledger.close()  # type: ignore[attr-defined]

    def refused(self, start: Callable[[], object] | None = None) -> None:
        with pytest.raises(LedgerError, match=Code.LEDGER_ROLLED_BACK):
            (start or self.start)()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_records_bear_the_newest_commit_that_was_seen(house: House) -> None:
    """Those that follow a commit, in growing order; and the chain verifies with them."""
    authz = house.work()
    positions = [r["ledger"]["position"] for line in house.log.read_text().splitlines() if "ledger" in (r := json.loads(line))]
    assert len(positions) >= 3 and positions == sorted(positions)
    assert verify_chain(house.log).ok
    anchor = authz.ledger.anchor("default")  # type: ignore[attr-defined]
    assert FileSink(house.log).anchor("default") == {"tenant": "default", **anchor._asdict()}


def test_the_same_ledger_starts_again(house: House) -> None:
    """Also beside another process, and after commits that no record tells of."""
    first = house.work()
    second = house.work(thread="u")
    first.correct("t", "stop", graph="session")
    for authz in (first, second):
        house.stop(authz)
    house.work(thread="v")


@pytest.mark.parametrize("killed", [True, False], ids=["last", "twin"])
def test_an_idle_process_that_writes_last_hides_no_rollback(house: House, killed: bool, tmp_path: Path) -> None:
    """It denies without a look at the ledger, and knows a commit of before. In the twin it writes nothing."""
    idle = RuntimeAuthz(
        pdp=StaticPDP(True), profiles=PROFILES, ledger=SqliteLedger(house.path), audit=FileSink(house.log, content=True),
        kill_switch=tmp_path / "kill",
    )
    house.work(idle)
    with closing(sqlite3.connect(house.path)) as here, closing(sqlite3.connect(house.path.with_suffix(".old"))) as old:
        here.backup(old)
    house.stop(house.work(thread="u"))
    if killed:
        (tmp_path / "kill").touch()
        with pytest.raises(AuthzDenied):
            idle.session(subject="alice", task="pay", thread="t")
        assert '"killed"' in house.log.read_text().splitlines()[-1]
    house.stop(idle)
    house.path.with_suffix(".old").replace(house.path)
    house.refused()
    assert verify_chain(house.log).ok


def test_a_backup_that_went_on_by_itself_is_refused(house: House) -> None:
    """It has commits of the same numbers and more, but not those that the chain tells of."""
    house.stop(house.work())
    shutil.copy(house.path, house.path.with_suffix(".old"))
    house.stop(house.work(thread="u"))
    house.path.with_suffix(".old").replace(house.path)
    other = house.start(audit=FileSink(house.log.with_suffix(".other")))
    for number in range(3):
        house.work(other, thread=f"w{number}")
    house.stop(other)
    house.refused()


def test_a_new_ledger_under_an_old_chain_is_refused(house: House) -> None:
    """A deleted file, and none at all: memory knows nothing of what the chain tells."""
    house.stop(house.work())
    house.refused(lambda: house.start(ledger=MemoryLedger()))
    for file in house.path.parent.glob("ledger.db*"):
        file.unlink()
    house.refused()


def test_a_chain_without_anchors_binds_nothing(house: House) -> None:
    """Memory makes none, and a request that holds such a member is not taken for one."""
    house.work(house.start(ledger=MemoryLedger()))
    assert '"ledger":{"ledger":"forged"' in house.log.read_text()
    assert FileSink(house.log).anchor("default") is None
    house.work(house.start(ledger=MemoryLedger()), thread="u")
    house.stop(house.work())


def test_the_anchor_is_found_before_what_came_without_one(house: House) -> None:
    """Records of a time when the ledger was down, longer than any block that is read at once."""
    house.stop(house.work())
    sink = FileSink(house.log)
    for number in range(50):
        sink.write({"kind": "filler", "number": number, "text": "x" * 10_000})
    house.refused(lambda: house.start(ledger=MemoryLedger()))
    house.stop(house.start())


def test_the_anchor_goes_along_with_a_file_that_was_moved_away(house: House) -> None:
    """Log rotation while a process writes: the new file's first record holds it."""
    authz = house.work()
    house.log.rename(house.log.with_suffix(".1"))
    sink = authz.audit
    sink.write({"kind": "filler"})
    kinds = [json.loads(line)["kind"] for line in house.log.read_text().splitlines()]
    assert kinds == ["continued", "ledger", "filler"] and verify_chain(house.log).ok
    house.stop(authz)
    house.refused(lambda: house.start(ledger=MemoryLedger()))


@pytest.mark.parametrize("anchor", [{}, {"ledger": "x"}, {"ledger": "x", "position": "many", "nonce": "n"}], ids=str)
def test_an_anchor_that_can_not_be_read_is_refused(house: House, anchor: dict[str, Any]) -> None:
    """Never taken for none."""
    FileSink(house.log).write({"kind": "filler", "ledger": {"tenant": "default", **anchor}})
    with pytest.raises(AuditError, match=Code.CHAIN_BROKEN):
        house.start()


def test_tenants_that_share_a_file_have_anchors_of_their_own(house: House) -> None:
    """Each is held against its own, also after the file was moved away."""
    mine, theirs = house.work(), house.work(house.start(tenant="other"), thread="u")
    assert mine.audit.anchor("default") != theirs.audit.anchor("other")  # type: ignore[attr-defined]
    for tenant in ("default", "other"):
        house.stop(house.start(tenant=tenant))
        house.refused(lambda tenant=tenant: house.start(ledger=MemoryLedger(), tenant=tenant))
    house.start(ledger=MemoryLedger(), tenant="third")
