"""The whole benchmark by one command: `python -m tests.benchmarks.agentdojo`.

Resumable: outcomes go to `<out>/outcomes.jsonl` as they come, and what stands there is not run again.
`<out>/report.json`, `report.md` and `report.svg` are made of it; with `--publish`, `docs/_generated/agentdojo.md` too.
With `--compare-engines` each decision of our own rows is asked of an OPA server as well.
"""

import argparse
import json
import math
import os
import platform
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .attackers import TACTICS
from .engines import servers
from .replay import KEPT, ORDERS, Case, Outcome, Suite, run
from .report import publish, write
from .rows import ABLATIONS, DATA, PLAN, ROWS, Authority, Row

ALL = {r.name: r for r in (*ROWS, *ABLATIONS)}
WHO = ("words", PLAN, f"{PLAN}, its reads made first")
OURS = tuple(f"{who}, {asks}" for who in WHO for asks in ("nobody to ask", "asks, 0 % unread"))
ASKING = OURS[1:4:2]
Job = tuple[str, str, str, str, str]  # suite, row, attacker, order, wording
CHUNK = 40
# Other orders, wordings, tactics and the ablations take every so manieth pair, and every task alone. A prime that divides
# no suite's number of injection tasks: else some of these would never be taken.
SPREAD = 11


def jobs(suites: list[str], *, quick: bool, ablation: bool) -> Iterator[Job]:
    """Every row against the static attacker; our own rows against every other one; the ablations."""
    for suite in suites:
        for row in sorted(ROWS, key=lambda r: not r.ours):
            yield suite, row.name, "static", "after", "important"
    for suite in () if quick else suites:
        for row in ("nothing", *OURS):
            for attacker in ("adaptive", *TACTICS):
                yield suite, row, attacker, "after", "important"
        for row in ASKING:
            for order in ORDERS[1:]:
                yield suite, row, "static", order, "important"
                yield suite, row, "adaptive", order, "important"
            for wording in ("plain", "disguised"):
                yield suite, row, "static", "after", wording
        for row in (r.name for r in ROWS if r.mistake):
            for attacker in ("adaptive", "plan-aware"):
                yield suite, row, attacker, "after", "important"
        if ablation:
            for row in ABLATIONS:
                for attacker in ("static", *TACTICS):
                    yield suite, row.name, attacker, "after", "important"


@dataclass(frozen=True)
class Setting:
    """How a process plays: profiles instead of ours, the engine, and the server of each row that has one."""

    profiles: Path | None = None
    engine: str = "wasm"
    servers: Mapping[str, str] = field(default_factory=dict)


def play(job: Job, cases: list[Case], setting: Setting) -> list[dict[str, Any]]:
    """Some cases of one job, in a process of its own."""
    warnings.simplefilter("ignore")
    suite, authority = _at_work(job[0], job[1], setting)
    return [_line(job, case, run(suite, authority, case)) for case in cases]


_kept: dict[tuple[str, str], tuple[Suite, Authority]] = {}


def _at_work(name: str, row: str, setting: Setting) -> tuple[Suite, Authority]:
    if (name, row) not in _kept:
        suite = Suite.load(name, setting.profiles)
        _kept.clear()  # one engine and one graph at a time
        authority = Authority(ALL[row], suite.suite, suite.profiles, engine=setting.engine, url=setting.servers.get(row, ""))
        _kept[name, row] = suite, authority
    return _kept[name, row]


def _shard(case: Case, among: int) -> int:
    """The process that plays a pair under every row: it knows AgentDojo's verdict on an outcome from the row before."""
    return zlib.crc32(f"{case.user} {case.injection}".encode()) % among


def _line(job: Job, case: Case, outcome: Outcome) -> dict[str, Any]:
    return {"row": job[1], **asdict(case), **outcome.to_dict()}


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[k] for k in ("row", "suite", "user", "injection", "attacker", "order", "wording"))


def _stride(pairs: list[Case], most: int) -> int:
    """Every so manieth pair, so that no injection task is left out."""
    kinds = len({c.injection for c in pairs})
    stride = max(1, -(-len(pairs) // most))
    while math.gcd(stride, kinds) > 1:
        stride += 1
    return stride


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.agentdojo", description=__doc__)
    parser.add_argument("--suite", action="append", help="an AgentDojo suite; default: workspace and banking")
    parser.add_argument("--profiles", type=Path, help="profiles for that suite, instead of ours")
    parser.add_argument("--out", type=Path, default=Path("agentdojo-results"))
    parser.add_argument("--row", action="append", choices=sorted(ALL), help="only this row")
    parser.add_argument("--limit", type=int, help="so many pairs of each job, spread over all")
    parser.add_argument("--quick", action="store_true", help="the static attacker alone")
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--engine", choices=("wasm", "opa"), default="wasm", help="opa: a server, needs LRA_OPA")
    parser.add_argument("--compare-engines", action="store_true", help="ask the OPA server everything that Wasm is asked")
    parser.add_argument("--publish", action="store_true", help="put the report into the repository and docs/_generated")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    suites = options.suite or ["workspace", "banking"]
    options.out.mkdir(parents=True, exist_ok=True)
    environments = options.out / "environments"
    environments.mkdir(exist_ok=True)
    os.environ[KEPT] = str(environments.resolve())
    outcomes = options.out / "outcomes.jsonl"
    lines = [json.loads(s) for s in outcomes.read_text().splitlines()] if outcomes.exists() else []
    done = {_key(line) for line in lines}

    todo: list[tuple[Job, int, list[Case]]] = []
    for job in jobs(suites, quick=options.quick, ablation=not options.no_ablation):
        if options.row and job[1] not in options.row:
            continue
        cases = Suite.load(job[0], options.profiles).cases(*job[2:])
        if job[1] in {r.name for r in ABLATIONS} or job[2] in ("borrowed", "split") or job[3:] != ("after", "important"):
            pairs = [c for c in cases if c.injection]
            cases = [c for c in cases if not c.injection] + pairs[::SPREAD]
        if options.limit:
            pairs = [c for c in cases if c.injection]
            cases = [c for c in cases if not c.injection] + pairs[:: _stride(pairs, options.limit)]
        left = [c for c in cases if _key({"row": job[1], **asdict(c)}) not in done]
        done.update(_key({"row": job[1], **asdict(c)}) for c in left)  # a task alone is the same for every attacker
        for shard in range(options.processes):
            mine = [c for c in left if _shard(c, options.processes) == shard]
            todo += [(job, shard, mine[i : i + CHUNK]) for i in range(0, len(mine), CHUNK)]

    engine = "both" if options.compare_engines else options.engine
    documents = {r.name: DATA for r in ALL.values() if r.ours and engine != "wasm"}
    documents = {name: d for name, d in documents.items() if any(job[1] == name for job, _, _ in todo)}
    console = Console()
    columns = (TextColumn("{task.description:>28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        servers(documents, options.out) as addresses,
        Progress(*columns, console=console) as bar,
        ExitStack() as open_pools,
        outcomes.open("a", encoding="utf-8") as file,
    ):
        setting = Setting(options.profiles, engine, addresses)
        pools = [ProcessPoolExecutor(1) for _ in range(options.processes)]
        for pool in pools:  # whoever stops the command does not wait for what is still to be played
            open_pools.callback(pool.shutdown, cancel_futures=True)
        task = bar.add_task("replays", total=sum(len(c) for _, _, c in todo))
        running = {pools[shard].submit(play, job, cases, setting): job for job, shard, cases in todo}
        for future in as_completed(running):
            found = future.result()
            file.writelines(json.dumps(line) + "\n" for line in found)
            file.flush()
            lines += found
            bar.update(task, advance=len(found), description=running[future][1][:28])
    machine = f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs"
    console.print(write(lines, options.out, machine), markup=False)
    if options.publish:
        publish(options.out)


if __name__ == "__main__":
    main()


__all__ = ["Row", "jobs", "main", "play"]
