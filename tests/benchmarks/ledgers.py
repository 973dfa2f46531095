"""The ledgers that the benchmarks compare, and what a disk takes."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger


@contextmanager
def ledgers() -> Iterator[dict[str, Any]]:
    """Those that can be had here."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"memory": MemoryLedger(), "SQLite (file, fsync)": SqliteLedger(Path(folder) / "ledger.db")}
        if os.environ.get("LRA_POSTGRES_DSN") is None:
            yield found
            return
        from langchain_runtime_authz.ledger.postgres import PostgresLedger
        from tests.integration_tests.services import ledger_schema

        with ledger_schema() as (dsn, schema), PostgresLedger(dsn, schema=schema, timeout=60) as made:
            found["PostgreSQL (socket, fsync)"] = made
            yield found


def fsync_us(n: int = 50) -> float:
    """Median of appending a block to a file and having it on the disk."""
    with tempfile.TemporaryFile() as file:
        spent = []
        for _ in range(n):
            begun = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            spent.append(time.perf_counter() - begun)
    return statistics.median(spent) * 1e6
