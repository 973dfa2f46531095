"""The drill on an SQLite file."""

import subprocess
from pathlib import Path

import pytest

from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from tests.unit_tests.ledger.restoring import APP, Place, Restoring, paid, stop


class FilePlace(Place):
    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder / "ledger.db")

    def ledger(self) -> SqliteLedger:
        return SqliteLedger(self.where)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return FilePlace(tmp_path)


class TestRestoring(Restoring):
    """On a file."""


def test_a_copy_that_is_not_a_ledger_replaces_none(place: Place) -> None:
    """Not even the write-ahead log of the ledger goes: it holds commits."""
    authz = place.start()
    assert paid(authz, "a") == "permit"
    held = {path: path.read_bytes() for path in place.folder.glob("ledger.db*")}
    for name, content in (("empty", b""), ("garbage", b"x" * 4096)):
        (place.folder / name).write_bytes(content)
    for copy in ("missing", "empty", "garbage"):
        done = subprocess.run([APP / "restore", place.folder / copy, place.where], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert {path: path.read_bytes() for path in place.folder.glob("ledger.db*")} == held
    assert paid(authz, "b") == "permit"
    stop(authz)


def test_a_backup_is_a_ledger_or_leaves_no_file(place: Place) -> None:
    """Whatever the path's letters are."""
    place.where = str(place.folder / "a#b?c%20.db")
    authz = place.start()
    assert paid(authz, "a") == "permit"
    place.where = place.backup()
    again = place.start()
    assert paid(again, "b") == "permit"
    stop(authz)
    stop(again)
    before = sorted(place.folder.iterdir())
    done = subprocess.run([APP / "backup", place.folder / "none.db", place.folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), sorted(place.folder.iterdir())) == (1, 1, before)
