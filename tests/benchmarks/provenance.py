"""What provenance costs with 10 kB, 1 MB and 10 MB of tool output behind a call.

Run from the repository's root: `python -m tests.benchmarks.provenance`. CPU time of this process, so that
a busy machine tells the same; printed, never judged.
"""

import argparse
import json
import os
import platform
import time
from statistics import median
from typing import Any

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.testing import StaticPDP

PROFILES: dict[str, Any] = {
    "inbox": ToolProfile(
        effect="read", sink="none", trust={"": "external", "id": "system"}, prose=("body",), counterparty=("sender",),
    ),
    "pay": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}, intent=("pay",)),
    "plain": ToolProfile(effect="pay"),
}
SIZES = (10_000, 1_000_000, 10_000_000)


def mails(characters: int, start: int) -> list[dict[str, Any]]:
    """So many characters of mail, each of about 1000."""
    body = "Please note the invoice of 12.50 due on May 26th, account GB29 NWBK 6016 1331 9268 19. " * 10
    return [
        {"id": f"m-{i}", "sender": f"user{i}@example.org", "body": f"{body} {i}"}
        for i in range(start, start + max(1, characters // 1000))
    ]


def measure(size: int, calls: int) -> dict[str, float]:
    """Read `size` characters in outputs of at most 100 kB, then decide `calls` payments of each kind."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=StaticPDP(True))
    session = authz.session(subject="alice", task="Pay 12.50 to bob@example.org")
    read = 0
    started = time.process_time()
    while read < size:
        part = min(100_000, size - read)
        session.decide("inbox", {})
        session.observe("inbox", {}, mails(part, read // 1000))
        read += part
    reading = time.process_time() - started
    times: dict[str, list[float]] = {"plain": [], "told": [], "asserted": [], "unknown": []}
    for i in range(calls):
        for kind, to in (("plain", None), ("told", "bob@example.org"), ("asserted", "user3@example.org"), ("unknown", f"x{i}@y.org")):
            tool, args = ("plain", {"n": i}) if to is None else ("pay", {"to": to, "amount": i + 0.25})
            started = time.process_time_ns()
            session.decide(tool, args)
            times[kind].append((time.process_time_ns() - started) / 1000)
    session.close()
    return {"reading_ms_per_100kB": reading * 1000 / max(size / 100_000, 1), **{k: median(v) for k, v in times.items()}}


def main(argv: list[str] | None = None) -> None:
    """Print one line a size, with ratios to the smallest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    measure(10_000, 20)  # imports and caches
    rows = {size: measure(size, options.calls) for size in SIZES}
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs; µs of CPU a decision, median")
    print(f"{'output read':>12} {'no critical':>12} {'user said':>12} {'field says':>12} {'unknown':>12} {'reading 100 kB':>16}")
    first = rows[SIZES[0]]
    for size, row in rows.items():
        cells = [f"{row[k]:7.0f} ({row[k] / first[k]:.2f})" for k in ("plain", "told", "asserted", "unknown")]
        print(f"{size / 1e6:9.2f} MB {cells[0]:>12} {cells[1]:>12} {cells[2]:>12} {cells[3]:>12} {row['reading_ms_per_100kB']:>13.1f} ms")


if __name__ == "__main__":
    main()
