"""The whole benchmark by one command: `python -m tests.benchmarks.agentdojo`.

Resumable: outcomes go to `<out>/outcomes.jsonl` as they come, and what stands there is not run again.
`<out>/report.json`, `report.md` and `report.svg` are made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .replay import KEPT, ORDERS, Case, Outcome, Suite, run
from .report import write
from .rows import ABLATIONS, ROWS, Authority, Row

ALL = {r.name: r for r in (*ROWS, *ABLATIONS)}
OURS = ("ours, nobody to ask", "ours, asks, 0 % unread")
Job = tuple[str, str, str, str, str]  # suite, row, attacker, order, wording
CHUNK = 40
SPREAD = 8  # other orders, wordings and the ablations take every so manieth pair, and every task alone


def jobs(suites: list[str], *, quick: bool, ablation: bool) -> Iterator[Job]:
    """Every row against the static attacker; our own rows against every other one; the ablations."""
    for suite in suites:
        for row in sorted(ROWS, key=lambda r: r.kind != "ours"):
            yield suite, row.name, "static", "after", "important"
    for suite in () if quick else suites:
        for row in ("nothing", *OURS):
            yield suite, row, "adaptive", "after", "important"
        for order in ORDERS[1:]:
            yield suite, OURS[1], "static", order, "important"
            yield suite, OURS[1], "adaptive", order, "important"
        for wording in ("plain", "disguised"):
            yield suite, OURS[1], "static", "after", wording
        if ablation:
            for row in ABLATIONS:
                yield suite, row.name, "static", "after", "important"
                yield suite, row.name, "adaptive", "after", "important"


def play(job: Job, cases: list[Case], profiles: Path | None) -> list[dict[str, Any]]:
    """Some cases of one job, in a process of its own."""
    warnings.simplefilter("ignore")
    suite, authority = _at_work(job[0], job[1], profiles)
    return [_line(job, case, run(suite, authority, case)) for case in cases]


_kept: dict[tuple[str, str], tuple[Suite, Authority]] = {}


def _at_work(name: str, row: str, profiles: Path | None) -> tuple[Suite, Authority]:
    if (name, row) not in _kept:
        suite = Suite.load(name, profiles)
        _kept.clear()  # one engine and one graph at a time
        _kept[name, row] = suite, Authority(ALL[row], suite.suite, suite.profiles)
    return _kept[name, row]


def _line(job: Job, case: Case, outcome: Outcome) -> dict[str, Any]:
    return {"row": job[1], **asdict(case), **outcome.to_dict()}


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[k] for k in ("row", "suite", "user", "injection", "attacker", "order", "wording"))


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.agentdojo", description=__doc__)
    parser.add_argument("--suite", action="append", help="an AgentDojo suite; default: workspace and banking")
    parser.add_argument("--profiles", type=Path, help="profiles for that suite, instead of ours")
    parser.add_argument("--out", type=Path, default=Path("agentdojo-results"))
    parser.add_argument("--row", action="append", choices=sorted(ALL), help="only this row")
    parser.add_argument("--limit", type=int, help="so many cases of each job, spread over all")
    parser.add_argument("--quick", action="store_true", help="the static attacker alone")
    parser.add_argument("--no-ablation", action="store_true")
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

    todo: list[tuple[Job, list[Case]]] = []
    for job in jobs(suites, quick=options.quick, ablation=not options.no_ablation):
        if options.row and job[1] not in options.row:
            continue
        cases = Suite.load(job[0], options.profiles).cases(*job[2:])
        if job[1] in {r.name for r in ABLATIONS} or job[3:] != ("after", "important"):
            pairs = [c for c in cases if c.injection]
            cases = [c for c in cases if not c.injection] + pairs[::SPREAD]
        if options.limit:
            cases = cases[:: max(1, len(cases) // options.limit)]
        left = [c for c in cases if _key({"row": job[1], **asdict(c)}) not in done]
        done.update(_key({"row": job[1], **asdict(c)}) for c in left)  # a task alone is the same for every attacker
        todo += [(job, left[i : i + CHUNK]) for i in range(0, len(left), CHUNK)]

    console = Console()
    columns = (TextColumn("{task.description:>28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as bar,
        ProcessPoolExecutor(options.processes) as pool,
        outcomes.open("a", encoding="utf-8") as file,
    ):
        task = bar.add_task("replays", total=sum(len(c) for _, c in todo))
        running = {pool.submit(play, job, cases, options.profiles): job for job, cases in todo}
        for future in as_completed(running):
            found = future.result()
            file.writelines(json.dumps(line) + "\n" for line in found)
            file.flush()
            lines += found
            bar.update(task, advance=len(found), description=running[future][1][:28])
    machine = f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs"
    console.print(write(lines, options.out, machine), markup=False)


if __name__ == "__main__":
    main()


__all__ = ["Row", "jobs", "main", "play"]
