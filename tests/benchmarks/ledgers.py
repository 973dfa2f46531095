"""What one permitted call costs in each ledger: its load, its claim and its end, and whether that stays flat.

`python -m tests.benchmarks.ledgers [--steps N] [--repeats N]`, with `LRA_POSTGRES_DSN` for PostgreSQL. Prints medians and ratios with
the machine they were measured on; asserts nothing. Flat: the last hundred steps of a long thread over the first hundred of
a new one, step by step in turns, so that whatever else the machine does meets both alike. Figures are wall time, because what counts is the wait for the disk.
"""

import argparse
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.ledger.base import Guard, Lease, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import OpenThread, RecordPlan, RecordStep, TakeLease
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from tests.benchmarks.per_call import machine

PARTS = ("plan", "load", "claim", "end")
WINDOW = 100  # steps


class Bench:
    """One thread of one ledger."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger
        self.scope = Scope("acme", "issuer", "graph", secrets.token_hex(8))
        now = int(time.time())
        self.lease = Lease(secrets.token_hex(16), "run", ("root",), 1, now, now + 3600)
        ledger.commit(self.scope, None, [OpenThread("user:alice"), TakeLease(self.lease)])

    def step(self, i: int) -> list[float]:
        """Seconds of each of `PARTS`."""
        key, agent, guard = f"{i:064x}", ("root",), Guard(self.lease.jti, 1)
        plan = PlanRecord(f"m{i}", agent, 1, "model", (PlannedCall(0, f"c{i}", "pay", key),))
        query = Query(jti=self.lease.jti, plan=(agent, f"m{i}"), calls=(key,), agent=agent)
        claim = ClaimCall(key, self.lease.jti, repeatable=False, tokens=(f"{self.lease.jti}{i}",))
        count = RecordStep(call="pay", effect="pay", recent="pay")
        parts: list[Callable[[], Any]] = [
            lambda: self.ledger.commit(self.scope, None, [RecordPlan(plan)]),
            lambda: self.ledger.load(self.scope, query),
            lambda: self.ledger.commit(self.scope, guard, [claim, count]),
            lambda: self.ledger.commit(self.scope, None, [ConcludeCall(key, "done", '"paid"'), RecordStep(data_class="a")]),
        ]
        spent = []
        for part in parts:
            begun = time.perf_counter()
            part()
            spent.append(time.perf_counter() - begun)
        return spent


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


def median_us(rows: list[list[float]], part: int | None = None) -> float:
    """Of one part, or of all together."""
    return statistics.median(sum(r) if part is None else r[part] for r in rows) * 1e6


def flatness(ledger: Any, n: int) -> float:
    """Median step at the end of a thread of `n`, over the median at the start of another."""
    old, new = Bench(ledger), Bench(ledger)
    for i in range(n - WINDOW):
        old.step(i)
    pairs = []
    for i in range(WINDOW):
        turns = [(new, i), (old, n - WINDOW + i)]
        spent = {id(b): b.step(at) for b, at in (turns if i % 2 else reversed(turns))}
        pairs.append((spent[id(new)], spent[id(old)]))
    return median_us([late for _, late in pairs]) / median_us([early for early, _ in pairs])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    n = given.steps
    table = Table(title="One permitted call in the ledger, median µs of wall time", caption=f"{machine()}, fsync {fsync_us():.0f} µs")
    columns = ("ledger", *PARTS, "all", "× memory", f"last ÷ first {WINDOW} of {n} (range)", "calls/s, 8 threads")
    for column in columns:
        table.add_column(column, justify="left" if column == "ledger" else "right")
    with ledgers() as found:
        memory = 0.0
        for name, ledger in found.items():
            bench = Bench(ledger)
            rows = [bench.step(i) for i in range(n)]
            window = max(n // 10, 10)
            whole = median_us(rows[window:])
            memory = memory or whole
            flat = [flatness(ledger, n) for _ in range(given.repeats)]
            middle = f"{statistics.median(flat):.2f} ({min(flat):.2f} to {max(flat):.2f})"
            cells = [f"{median_us(rows[window:], part):.0f}" for part in range(len(PARTS))]
            table.add_row(name, *cells, f"{whole:.0f}", f"{whole / memory:.0f}", middle, f"{rate(ledger, n // 8):.0f}")
        Console(width=150).print(table)
        print("wanted: flat, last ÷ first hundred of 1,000 ≤ 1.25")


def rate(ledger: Any, n: int) -> float:
    """Calls a second of eight threads, each on a thread of the ledger's own."""
    benches = [Bench(ledger) for _ in range(8)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda bench: [bench.step(i) for i in range(n)], benches))
    return 8 * n / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
