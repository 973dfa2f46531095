"""The drill on an SQLite file."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from tests.unit_tests.ledger.restoring import Place, Restoring


class FilePlace(Place):
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder / "ledger.db")

    def ledger(self) -> SqliteLedger:
        return SqliteLedger(self.where)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return FilePlace(tmp_path)


class TestRestoring(Restoring):
    """On a file."""
