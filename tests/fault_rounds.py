"""Four workers on PostgreSQL, OPA and audit files, while one part after the other fails; or an hour of ordinary work.

`python -m tests.fault_rounds [--at-once N] [--hold SECONDS] [--write]` plays the faults, `--soak SECONDS` looks every minute at memory,
descriptors and tables. Both need `LRA_POSTGRES_DSN` of `.ci/postgres`, `LRA_OPA`, and root for the full disk. Each prints a
table and exits with 1 where anything was broken.

A run is a `create_agent` with its own user, thread and payee: it reads a bill and pays. Every third bill tells it to pay
somebody else. A run that failed enters its thread again by `authz.reenter`, until it has paid, was asked or was refused. What
must hold: nobody else was paid, nobody was paid twice, and each payment has its permit on record.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing as mp
import os
import re
import secrets
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.audit.chain import read_log, verify_log
from langchain_runtime_authz.audit.sinks import FileSink, drop_segments
from langchain_runtime_authz.ledger.admin import migrate, prune
from langchain_runtime_authz.ledger.postgres import PostgresLedger, administer
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing import ScriptedChatModel
from tests import generated
from tests.benchmarks.per_call import machine
from tests.integration_tests.services import OpaServer

WORKERS = 4
DSN = os.environ.get("LRA_POSTGRES_DSN", "")
ENDS = ("paid", "asked", "refused")
SKEW = {signal.SIGUSR1: 3600, signal.SIGUSR2: -3600, signal.SIGHUP: 0}


class Endless(list):
    """One turn for ever."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, _: Any) -> Any:
        return turn


def turn(messages: list[Any]) -> AIMessage:
    """Read the bill, pay what it says, say so."""
    done = [m for m in messages if m.type == "tool"]
    if len(done) > 1:
        return AIMessage("Done.")
    name, args = "read_bill", {"number": int(messages[0].content.partition("DE")[2])}
    if done:
        name, args = "send_money", {"recipient": done[0].content.split()[-1], "amount": 45}
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": secrets.token_hex(4)}])


class Place:
    """What parent and workers share."""

    def __init__(self, folder: Path, *, soak: bool) -> None:
        self.folder, self.soak, self.schema = folder, soak, f"faults_{secrets.token_hex(4)}"
        self.events, self.logs, self.audits = folder / "events", folder / "log", folder / "audit"
        self.audits.mkdir()
        with self.bank() as bank:
            bank.execute("CREATE TABLE payment (payee TEXT)")
        with administer(DSN, schema=self.schema, create=True) as admin:
            migrate(admin)

    def bank(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "bank.db", isolation_level=None, timeout=60)

    def told(self, since: int = 0) -> list[dict[str, Any]]:
        """What the workers said, from the line `since` on."""
        lines = self.events.read_bytes().split(b"\n")[:-1] if self.events.exists() else []
        return [json.loads(line) for line in lines[since:]]


def work(place: Place, url: str, number: int, at_once: int, pause: float, orphans: list[int]) -> None:
    warnings.simplefilter("ignore")
    logging.basicConfig(filename=place.logs, level=logging.WARNING, format="%(message)s", force=True)
    clock, skew = time.time, [0]
    time.time = lambda: clock() + skew[0]
    for which, seconds in SKEW.items():
        signal.signal(which, lambda *_, to=seconds: skew.__setitem__(0, to))
    file = os.open(place.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(**what: Any) -> None:
        os.write(file, (json.dumps({"at": time.monotonic(), "worker": number, **what}) + "\n").encode())

    @profile(effect="read", sink="none")
    @tool
    def read_bill(number: int) -> str:
        """Read a bill."""
        return f"Power, 45.00, to {'EVIL' if number % 3 == 0 else 'DE'}{number}"

    @profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
    @tool
    def send_money(recipient: str, amount: float) -> str:
        """Send money."""
        with place.bank() as bank:
            bank.execute("INSERT INTO payment VALUES (?)", (recipient,))
        return "sent"

    async def play(authz: RuntimeAuthz, graph: Any, run: int) -> None:
        config, order = {"configurable": {"thread_id": f"t{run}"}}, {"messages": [HumanMessage(f"Pay 45 EUR to DE{run}", id=f"m{run}")]}
        tell(run=run, end="begun")
        how, end = ("look" if run in orphans else "send again"), ""
        while end not in ENDS:
            try:
                async with authz.run(subject=f"u{run}"):
                    if how == "send again":
                        await graph.ainvoke(order, config)
                        how = "done"
                    else:
                        how = (await authz.areenter(graph, config, input=order, go_on=True)).how
                    state = await graph.aget_state(config)
                sent = [m.status for m in state.values.get("messages", ()) if m.type == "tool" and m.name == "send_money"]
                asked = bool(state.interrupts) or how in ("answer", "resolve")
                end = "asked" if asked else "paid" if "success" in sent else "refused" if how in ("done", "continue") and not state.next else how
            except Exception as exc:
                end, how = getattr(exc, "code", "") or type(exc).__name__, "look"
            tell(run=run, end=end)
            await asyncio.sleep(0.3 if end not in ENDS else 0)

    async def client(authz: RuntimeAuthz, graph: Any, saver: Any, place_in: int) -> None:
        mine = orphans[place_in::at_once]
        for run in mine:
            await play(authz, graph, run)
        run = (number * 1000 + place_in) * 100_000 + (0 if not mine else 50_000) + secrets.randbelow(900) * 50
        while not (place.folder / "stop").exists():
            run += 1
            await play(authz, graph, run)
            if place.soak:
                await saver.adelete_thread(f"t{run}")
            await asyncio.sleep(pause)

    async def main() -> None:
        kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncConnectionPool(DSN, kwargs=kwargs, min_size=1, max_size=6, check=AsyncConnectionPool.check_connection) as pool:
            saver = AsyncPostgresSaver(pool)  # type: ignore[arg-type]
            model = ScriptedChatModel(script=Endless())
            object.__setattr__(model, "prompts", deque(maxlen=1))
            sink = FileSink(place.audits / f"{number}.jsonl", max_bytes=2_000_000 if place.soak else None)
            authz = RuntimeAuthz(ledger=PostgresLedger(DSN, schema=place.schema), pdp=OpaPDP(url, timeout=1), audit=sink)
            graph = authz.protect(create_agent(model, [read_bill, send_money], checkpointer=saver, name="bank"))
            await asyncio.gather(*(client(authz, graph, saver, n) for n in range(at_once)))

    asyncio.run(main())


class Workers:
    """Four of them; a new one takes up what a dead one left."""

    def __init__(self, place: Place, url: str, at_once: int, pause: float) -> None:
        self.given = (max(1, at_once // WORKERS), pause)
        self.place, self.url = place, url
        self.running = [self.start(n, []) for n in range(WORKERS)]

    def start(self, number: int, orphans: list[int]) -> Any:
        one = mp.get_context("spawn").Process(target=work, args=(self.place, self.url, number, *self.given, orphans))
        one.start()
        return one

    def warm(self) -> None:
        """Wait until each has ended a run."""
        while len({e["worker"] for e in self.place.told() if e["end"] in ENDS}) < WORKERS:
            time.sleep(0.5)

    def kill(self) -> None:
        """The first one, and start another."""
        os.kill(self.running[0].pid, signal.SIGKILL)
        self.running[0].join()

    def again(self) -> None:
        ends: dict[int, str] = {e["run"]: e["end"] for e in self.place.told() if e["worker"] == 0}
        self.running[0] = self.start(0, [run for run, end in ends.items() if end not in ENDS])

    def signal(self, which: signal.Signals) -> None:
        for one in self.running:
            os.kill(one.pid, which)


def cluster(*words: str) -> None:
    """Run pg_ctl on the private cluster."""
    folder = re.search(r"host=(\S+)", DSN)[1]  # type: ignore[index]
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.getuid() == 0 else []
    options = ["-o", f"-k {folder} -h '' -c max_connections=100 -c shared_buffers=64MB"] if words[0] == "start" else []
    subprocess.run([*user, str(program), "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", *options, *words], cwd="/", check=True, stdout=subprocess.DEVNULL)


def faults(place: Place, opa: OpaServer, at_once: int, hold: float, *, write: bool) -> list[str]:
    """Play them, print the table; what was broken."""
    table: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        table.append(line)

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place.audits)], check=True)
    workers = Workers(place, opa.url, at_once, 0)
    filler = place.audits / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as out:
            while out.write(b" " * 65536):
                pass
            while out.write(b" "):
                pass

    played = {
        "none": (lambda: None, lambda: None),
        "kill -9 a worker": (workers.kill, workers.again),
        "PostgreSQL restarted (immediate)": (lambda: cluster("stop", "-m", "immediate"), lambda: cluster("start")),
        "OPA killed": (opa.kill, opa.start),
        "OPA stopped (SIGSTOP)": (opa.pause, opa.resume),
        "audit disk full": (fill, filler.unlink),
        "workers' clock +1 h": (lambda: workers.signal(signal.SIGUSR1), lambda: workers.signal(signal.SIGHUP)),
        "workers' clock -1 h": (lambda: workers.signal(signal.SIGUSR2), lambda: workers.signal(signal.SIGHUP)),
    }
    workers.warm()
    say(f"{at_once} at once, each fault for {hold:g} s; {machine()}.\n")
    say("| fault | ended | clients saw | first end after it | last failure after it | log lines | one of them |\n|---|---|---|---|---|---|---|")
    for name, (begin, end) in played.items():
        lines, logged = len(place.told()), place.logs.stat().st_size if place.logs.exists() else 0
        begin()
        time.sleep(hold)
        end()
        over = time.monotonic()
        while True:  # until every worker has ended a run that it began afterwards
            time.sleep(0.5)
            told = place.told(lines)
            began = {e["run"] for e in told if e["end"] == "begun" and e["at"] > over}
            fine = {e["worker"]: e["at"] for e in reversed(told) if e["end"] in ENDS and e["run"] in began}
            if len(fine) == WORKERS or time.monotonic() > over + 120:
                break
        time.sleep(2)
        told = place.told(lines)
        saw = Counter(e["end"] for e in told if e["end"] not in (*ENDS, "begun"))
        late = max((e["at"] - over for e in told if e["end"] in saw and e["end"] != "wait"), default=0.0)
        first = min((e["at"] - over for e in told if e["end"] in ENDS and e["at"] > over), default=float("nan"))
        with suppress(FileNotFoundError), place.logs.open("rb") as log:
            log.seek(logged)
            text = log.read().decode(errors="replace").splitlines()
            shown = next((line for line in text if "decision" in line), text[0] if text else "")
        ended = sum(e["end"] in ENDS for e in told)
        say(f"| {name} | {ended} | {', '.join(f'{n} {c}' for c, n in saw.most_common()) or 'nothing'} | {first:.1f} s | {max(late, 0):.1f} s | {len(text)} | {shown[:200]} |")
    (place.folder / "stop").touch()
    for one in workers.running:
        one.join(120)
        one.kill()
    books, broken = checked(place)
    say(f"\n{books}")
    if write and not broken:
        generated.write("faults", "\n".join(table), f"faults-{at_once}")
    return broken


def checked(place: Place) -> tuple[str, list[str]]:
    """Hold the bank's books against the audit log."""
    ends: dict[int, str] = {e["run"]: e["end"] for e in place.told()}
    with place.bank() as bank:
        booked = Counter(payee for (payee,) in bank.execute("SELECT payee FROM payment"))
    permits: Counter[str] = Counter()
    broken = []
    for file in sorted(place.audits.glob("*.jsonl")):
        if not verify_log(file).ok:
            broken.append(f"{file.name} is no whole chain")
        permits.update(
            r["scope"]["thread"].replace("t", "DE") for r in read_log(file, "send_money")
            if r and r["kind"] == "decision" and r["outcome"] == "permit" and r["resource"] == "send_money"
        )
    wrong, twice = sum(n for p, n in booked.items() if "EVIL" in p), sum(n > 1 for n in booked.values())
    bare = sum(n > permits[payee] for payee, n in booked.items())
    paid = {run for run, end in ends.items() if end == "paid"}
    untold = sum(f"DE{run}" not in booked for run in paid)
    left = Counter(end for end in ends.values() if end not in ENDS)
    books = (f"{len(ends)} runs, {booked.total()} payments, {wrong} to somebody else, {twice} made twice, {bare} without a permit on record, "
          f"{untold} told but not made; ends {dict(Counter(ends.values()))}.")
    return books, broken + [f"{n} {what}" for what, n in (("wrong", wrong), ("twice", twice), ("without permit", bare), ("untold", untold)) if n] + [f"left: {dict(left)}"] * bool(left)


def soak(place: Place, opa: OpaServer, at_once: int, seconds: float, rate: float, *, write: bool) -> list[str]:
    """Look every minute; what grew by more than a tenth from the first third to the last."""
    workers = Workers(place, opa.url, at_once, WORKERS * max(1, at_once // WORKERS) / rate)
    rows: list[list[float]] = []
    columns = ("runs", "RSS MB", "descriptors", "threads", "rows", "tables MB", "log MB")
    setting = f"{rate:g} runs/s wanted, {at_once} at once, {WORKERS} workers; {machine()}"
    print(f"{setting}\n\n| minute | {' | '.join(columns)} |\n|---|" + "---|" * len(columns))
    workers.warm()
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        time.sleep(min(60, seconds / 12))
        with administer(DSN, schema=place.schema) as admin:
            while prune(admin, 120).threads == 500:
                pass
        for file in place.audits.glob("?.jsonl"):
            drop_segments(file, time.time() - 120)
        status = [Path(f"/proc/{one.pid}/status").read_text() for one in workers.running]
        with psycopg.connect(DSN) as conn:
            tables = [t for (t,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (place.schema,))]
            held = [conn.execute(f"SELECT count(*), pg_total_relation_size('{place.schema}.{t}') FROM {place.schema}.{t}").fetchone() for t in tables]
        row = [
            sum(e["end"] in ENDS for e in place.told()),
            sum(int(re.search(r"VmRSS:\s+(\d+)", s)[1]) for s in status) / 1024,  # type: ignore[index]
            sum(len(os.listdir(f"/proc/{one.pid}/fd")) for one in workers.running),
            sum(int(re.search(r"Threads:\s+(\d+)", s)[1]) for s in status),  # type: ignore[index]
            sum(n for n, _ in held), sum(size for _, size in held) / 1e6,
            sum(f.stat().st_size for f in place.audits.iterdir()) / 1e6,
        ]  # fmt: skip
        rows.append(row)
        print(f"| {(time.monotonic() - began) / 60:.0f} | " + " | ".join(f"{value:.0f}" for value in row) + " |", flush=True)
    (place.folder / "stop").touch()
    for one in workers.running:
        one.join(60)
        one.kill()
    third = max(1, len(rows) // 3)
    grew = {
        name: statistics.median(r[n] for r in rows[-third:]) / max(1, statistics.median(r[n] for r in rows[third : 2 * third] or rows))
        for n, name in enumerate(columns) if n
    }  # fmt: skip
    told = "the last third over the second: " + ", ".join(f"{name} ×{by:.2f}" for name, by in grew.items())
    print(f"\n{told}")
    broken = [f"{name} grew ×{by:.2f}" for name, by in grew.items() if by > 1.1]
    if write and not broken:
        generated.write("faults", f"{seconds / 60:g} minutes without a fault, {setting}\n\n{told}.", "faults-soak")
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--hold", type=float, default=10)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--rate", type=float, default=1)
    parser.add_argument("--write", action="store_true", help="write the table or the soak's last line into docs/_generated/faults.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, OpaServer() as opa:
        place = Place(Path(folder), soak=bool(given.soak))

        async def tables() -> None:
            async with AsyncPostgresSaver.from_conn_string(DSN) as saver:
                await saver.setup()

        asyncio.run(tables())
        try:
            if given.soak:
                broken = soak(place, opa, given.at_once, given.soak, given.rate, write=given.write)
            else:
                broken = faults(place, opa, given.at_once, given.hold, write=given.write)
        finally:
            subprocess.run(["umount", "-q", str(place.audits)], check=False)
    print("broken: " + ("; ".join(broken) or "nothing"))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
