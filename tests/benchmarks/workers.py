"""Compare protected and plain runs of four worker processes, which share PostgreSQL and OPA and write an audit file each.

`python -m tests.benchmarks.workers [--workers N] [--at-once N] [--runs N] [--rounds N]`, with `LRA_POSTGRES_DSN` and `LRA_OPA` of
`.ci/services`. A run is that of `sizing`, in LangGraph's own PostgreSQL checkpointer. Plain and protected workers take turns. The
client runs on the same machine. Asserts that each run pays and how often it asks OPA, and no time.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI
from langchain.agents import create_agent
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.ledger.postgres import PostgresLedger
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing import ScriptedChatModel
from tests.benchmarks.ledgers import ledgers
from tests.benchmarks.per_call import TREE, machine
from tests.benchmarks.sizing import read_bill, send_money, turn
from tests.integration_tests.services import SHIPPED, OpaServer, free_port

DECISIONS = 5  # of a run: its start, the model node, the model, the tool node with a call, and a call


@asynccontextmanager
async def agent(app: FastAPI) -> AsyncIterator[None]:
    """Build a worker's graph, protected if an OPA is named."""
    dsn, schema, folder = (os.environ[name] for name in ("LRA_POSTGRES_DSN", "BENCH_SCHEMA", "BENCH_FOLDER"))
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(f"{dsn} options=-csearch_path={schema}", kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        graph = create_agent(ScriptedChatModel(script=[turn] * 1_000_000), [read_bill, send_money], checkpointer=saver)
        authz = None
        if url := os.environ.get("BENCH_OPA"):
            ledger, pdp = PostgresLedger(dsn, schema=schema, timeout=60), OpaPDP(url, deadline=30, timeout=30)
            authz = RuntimeAuthz(ledger=ledger, pdp=pdp, audit=f"{folder}/{os.getpid()}.jsonl")
            authz.protect(graph)

        @app.post("/")
        async def pay() -> list[str]:
            name = os.urandom(8).hex()  # of the thread and its user: users do not wait for each other
            config = {"configurable": {"thread_id": name}}
            given = authz.run(subject=name).config(config) if authz else config
            state = await graph.ainvoke({"messages": [("user", "Pay 45 EUR to DE21")]}, given)
            return [m.status for m in state["messages"] if m.type == "tool"]

        yield


def served() -> FastAPI:
    """Return the application of one worker."""
    return FastAPI(lifespan=agent)


def started(stack: ExitStack, workers: int, **env: str) -> str:
    """Start workers at one address."""
    port = str(free_port())
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.benchmarks.workers:served", "--port", port, "--workers", str(workers)]
    process = subprocess.Popen([*command, "--log-level", "error"], cwd=TREE, env={**os.environ, **env})
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return f"http://127.0.0.1:{port}/"


async def rate(url: str, runs: int, at_once: int) -> float:
    """Make runs, and return how many were done each second."""
    todo = iter(range(runs))
    transport = httpx.AsyncHTTPTransport(retries=10, limits=httpx.Limits(max_connections=at_once))
    async with httpx.AsyncClient(transport=transport, timeout=120) as client:

        async def play() -> None:
            for _ in todo:
                answer = await client.post(url)
                assert answer.json() == ["success"] * 2, answer.text

        began = time.perf_counter()
        await asyncio.gather(*(play() for _ in range(at_once)))
        return runs / (time.perf_counter() - began)


def bundle(folder: Path) -> Path:
    """Return the shipped policy as a bundle whose permits for nodes may be used again: it has a revision and a `ttl`."""
    made = folder / "bundle"
    made.mkdir()
    (made / ".manifest").write_text('{"revision": "1", "roots": ["runtime_authz", "runtime_authz_data"]}')
    for file in SHIPPED:
        shutil.copy(file, made)
    data = json.loads((made / "data.json").read_text())
    data["runtime_authz_data"]["ttl"] = {"node/enter": 30}
    (made / "data.json").write_text(json.dumps(data))
    return made


def decisions(opa: OpaServer) -> int:
    """Return how many questions OPA has answered."""
    found = re.findall(rb'http_request_duration_seconds_count\{[^}]*method="post"[^}]*\} (\d+)', opa.get("/metrics")[1])
    return sum(map(int, found))


async def prepare(dsn: str) -> None:
    """Make the checkpointer's tables."""
    async with AsyncPostgresSaver.from_conn_string(dsn) as saver:
        await saver.setup()


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("workers", 4), ("at-once", 32), ("runs", 200), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with ExitStack() as stack:
        shared = next(ledger for ledger in stack.enter_context(ledgers()).values() if isinstance(ledger, PostgresLedger))
        env = {"BENCH_SCHEMA": shared._schema, "BENCH_FOLDER": stack.enter_context(tempfile.TemporaryDirectory())}
        os.environ.setdefault("GOGC", "400")  # of OPA, as `deploy/` sets it
        opa = stack.enter_context(OpaServer("--bundle", bundle(Path(env["BENCH_FOLDER"]))))
        asyncio.run(prepare(f"{os.environ['LRA_POSTGRES_DSN']} options=-csearch_path={shared._schema}"))
        urls = [started(stack, options.workers, **env), started(stack, options.workers, **env, BENCH_OPA=opa.url)]
        found: list[list[float]] = [[asyncio.run(rate(url, options.runs, options.at_once))] for url in urls]
        before = decisions(opa)
        for _ in range(options.rounds):
            for url, rates in zip(urls, found, strict=True):
                rates.append(asyncio.run(rate(url, options.runs, options.at_once)))
        asked = (decisions(opa) - before) / (options.runs * options.rounds)
        assert asked < DECISIONS + 0.5, asked  # a worker that the first round left out asks more
        plain, ours = (statistics.median(rates[1:]) for rates in found)
    print(f"{options.workers} workers, {options.at_once} runs at once, medians of {options.rounds} rounds; {machine()}.\n")
    print("| plain, runs/s | protected, runs/s | of plain | OPA decisions a run |\n|---|---|---|---|")
    print(f"| {plain:.1f} | {ours:.1f} | {ours / plain:.0%} | {asked:.1f} |")


if __name__ == "__main__":
    main()
