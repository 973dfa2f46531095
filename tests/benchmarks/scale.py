"""Say what breaks first with a thousand workers: costs measured here, and a simulation of the database.

`python -m tests.benchmarks.scale [--runs N] [--busy SHARE] [--database-cores N] [--connections N] [--opa-cores N] [--write]`, with
`LRA_POSTGRES_DSN` and `LRA_OPA` of `.ci/services`, on a machine where nothing else uses PostgreSQL or OPA. A run is that of
`sizing`. The options are the assumptions; all else is measured. Asserts nothing.
"""

import argparse
import heapq
import os
import random
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests import generated
from tests.benchmarks import sizing
from tests.benchmarks.ledgers import fsync_us
from tests.benchmarks.per_call import machine

POOL = 8  # connections of a worker (`max_size`)
ROW = "PostgreSQL, OPA"


class Costs(NamedTuple):
    """Of one run."""

    worker: float  # seconds of CPU
    database: float
    opa: float
    commits: float
    log: float  # bytes
    fsync: float  # seconds


def cpu_of(name: str) -> float:
    """Return the seconds of CPU that all processes of this name have used, their dead children included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, comm, rest = stat.read_text().replace(")", "(").split("(", 2)
        except (OSError, ValueError):  # it ended meanwhile
            continue
        ticks += sum(map(int, rest.split()[11:15])) if comm == name else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def commits() -> int:
    """Return the transactions that changed something."""
    with psycopg.connect(os.environ["LRA_POSTGRES_DSN"], autocommit=True) as conn:
        row = conn.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()  # one itself
    return int(row[0])


def measured(runs: int) -> Costs:
    """Play runs of one worker, and return what each cost, by process."""
    with sizing.rows() as rows:
        row = next(row for row in rows if row.name == ROW)
        assert row.log is not None
        for _ in range(3):
            row.play()
        row.cpu.clear()
        before = cpu_of("postgres"), cpu_of("opa"), commits(), row.log.stat().st_size
        for _ in range(runs):
            row.play()
        after = cpu_of("postgres"), cpu_of("opa"), commits() - 1, row.log.stat().st_size
        database, opa, written, log = ((b - a) / runs for a, b in zip(before, after, strict=True))
    return Costs(statistics.median(row.cpu), database, opa, written, log, fsync_us() / 1e6)


def waits(rate: float, cores: int, work: float, fsync: float) -> list[float]:
    """Simulate commits that arrive at random, and return how long each takes: its work on a core, then a shared flush."""
    chance, now, done = random.Random(1), 0.0, list[tuple[float, float]]()
    free = [0.0] * cores
    for _ in range(20_000):
        now += chance.expovariate(rate)
        ready = max(now, heapq.heappop(free)) + chance.expovariate(1 / work)
        heapq.heappush(free, ready)
        done.append((ready, now))
    done.sort()
    took, disk, at = [], 0.0, 0
    while at < len(done):
        begins = max(disk, done[at][0])
        disk = begins + fsync
        while at < len(done) and done[at][0] <= begins:  # all that wait are flushed together
            took.append(disk - done[at][1])
            at += 1
    return took


def table(costs: Costs, options: Any) -> list[str]:
    """Return the page's tables."""
    lines = [f"Measured on {machine()}:", "", "| of one run | |", "|---|---|"]
    names = ("worker, CPU ms", "PostgreSQL, CPU ms", "OPA, CPU ms", "commits", "audit log, kB", "one fsync, ms")
    factors = (1e3, 1e3, 1e3, 1, 1e-3, 1e3)
    lines += [f"| {name} | {value * factor:.1f} |" for name, value, factor in zip(names, costs, factors, strict=True)]
    limits = {"database cores": options.database_cores, "connections": options.connections, "OPA cores": options.opa_cores}
    lines += ["", f"Assumed: a worker is {options.busy:.0%} busy; " + ", ".join(f"{most} {name}" for name, most in limits.items()) + ".", ""]
    lines += ["| workers | runs/s | commits/s | database cores | connections | OPA cores | log, GB a day | revocation, p50 and p99 ms | over the limit |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for workers in (1, 4, 16, 64, 250, 1000):
        runs = workers * options.busy / costs.worker
        used = (runs * costs.database, float(workers * POOL), runs * costs.opa)
        over = [name for use, (name, most) in zip(used, limits.items(), strict=True) if use > most]
        said = "without end"
        if used[0] < options.database_cores:
            took = sorted(waits(runs * costs.commits, options.database_cores, costs.database / costs.commits, costs.fsync))
            said = f"{statistics.median(took) * 1e3:.1f}, {took[len(took) * 99 // 100] * 1e3:.1f}"
        cores, connections, opa = used
        figures = (f"{workers:,}", f"{runs:,.0f}", f"{runs * costs.commits:,.0f}", f"{cores:,.1f}", f"{connections:,.0f}", f"{opa:,.1f}")
        lines.append(f"| {' | '.join(figures)} | {runs * costs.log * 86_400 / 1e9:,.0f} | {said} | {', '.join(over) or 'nothing'} |")
    each = {
        "database cores": options.database_cores / (costs.database / costs.worker * options.busy), "connections": options.connections / POOL,
        "OPA cores": options.opa_cores / (costs.opa / costs.worker * options.busy),
    }  # fmt: skip
    order = sorted(each.items(), key=lambda entry: entry[1])
    return [*lines, "", "In this order: " + ", ".join(f"{name} at {workers:,.0f} workers" for name, workers in order) + "."]


def main() -> None:
    """Measure and simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--busy", type=float, default=0.5)
    parser.add_argument("--database-cores", type=int, default=16)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--opa-cores", type=int, default=16)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/_generated")
    options = parser.parse_args()
    text = "\n".join(table(measured(options.runs), options))
    print(text)
    if options.write:
        generated.write("scale", text)


if __name__ == "__main__":
    main()
