"""What a decision costs by engine, on the full request, interleaved in one process.

`python -m tests.benchmarks.engines [--decisions N]`. Needs an OPA binary (`LRA_OPA`, or `opa` on the
PATH) for the rows with a server. Prints medians with the machine they were measured on; asserts nothing
but that every engine permits.
"""

import argparse
import asyncio
import gc
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from langchain_runtime_authz.evaluation import EvaluationRequest
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import StaticPDP, example_request
from tests.benchmarks.per_call import machine
from tests.integration_tests.authzen_server import AuthzenServer
from tests.integration_tests.services import OpaServer

BATCH = 8


def full_request() -> EvaluationRequest:
    """The example with the history, the chain and the texts that a long run has."""
    return example_request(
        {
            "context.history.calls": {f"tool_{i}": i for i in range(64)},
            "context.history.recent": [f"tool_{i}" for i in range(32)],
            "context.history.classes_read": ["public", "internal", "confidential"],
            "context.delegation.edges": [{"from": f"a{i}", "to": f"a{i + 1}", "kind": "handoff"} for i in range(2)],
            "context.task.text": "Book the December bill, and nothing else. " * 10,
        },
    )


class Row:
    """One engine: its samples, interleaved with everybody else's."""

    def __init__(self, name: str, once: Callable[[], object], batch: Callable[[], object] | None = None) -> None:
        self.name, self.once, self.batch = name, once, batch
        self.wall: list[int] = []
        self.cpu: list[int] = []
        self.of_batch: list[int] = []
        self.singles: list[int] = []

    def sample(self, i: int) -> None:
        """One decision; now and then eight together and eight one by one."""
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        self.once()
        self.wall.append(time.perf_counter_ns() - wall)
        self.cpu.append(time.process_time_ns() - cpu)
        if self.batch is not None and i % 4 == 0:
            wall = time.perf_counter_ns()
            self.batch()
            self.of_batch.append(time.perf_counter_ns() - wall)
            wall = time.perf_counter_ns()
            for _ in range(BATCH):
                self.once()
            self.singles.append(time.perf_counter_ns() - wall)


def engine(name: str, pdp: Any, request: EvaluationRequest) -> Row:
    """A row of a PDP behind its evaluator, with the request serialised once, as the gates do."""
    evaluator, body = Evaluator(pdp, deadline=30), request.to_json()
    (decision,) = evaluator.evaluate([body])
    assert decision.permit, (name, decision.reasons)
    return Row(name, lambda: evaluator.evaluate([body]), lambda: evaluator.evaluate([body] * BATCH))


def raw(address: str, body: bytes, path: str = "/v1/data/runtime_authz/decision") -> Callable[[], object]:
    """One keep-alive exchange by the standard library, reading JSON, checking nothing."""
    connection = http.client.HTTPConnection(address)

    def once() -> object:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    return once


def asynchronous(pdp: Any, request: EvaluationRequest, loop: asyncio.AbstractEventLoop) -> Callable[[], object]:
    """A decision awaited on another loop than the client's."""
    evaluator, body = Evaluator(pdp, deadline=30), request.to_json()
    return lambda: loop.run_until_complete(evaluator.aevaluate([body]))


def us(values: list[int]) -> str:
    """Median of nanoseconds, in microseconds."""
    return f"{statistics.median(values) / 1000:.0f}" if values else ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=800)
    n = parser.parse_args().decisions
    request = full_request()
    body = request.to_json()
    loop = asyncio.new_event_loop()
    wasm, cedar = WasmPDP(), CedarPDP()
    with OpaServer() as server, AuthzenServer(lambda r: wasm.document(json.dumps(r).encode())) as conforming:  # type: ignore[arg-type,return-value]
        opa, authzen = OpaPDP(server.url, timeout=30), AuthzenPDP(conforming.url, timeout=30)
        rows = [
            engine("StaticPDP", StaticPDP(True), request), engine("WasmPDP (default)", wasm, request),
            engine("CedarPDP", cedar, request), Row("http.client to OPA, raw", raw(server.address, b'{"input":' + body + b"}")),
            engine("OpaPDP", opa, request), Row("OpaPDP, async", asynchronous(opa, request, loop)),
            Row("http.client to AuthZEN, raw", raw(conforming.url.removeprefix("http://"), body, "/access/v1/evaluation")),
            engine("AuthzenPDP (over WasmPDP)", authzen, request),
            engine("CircuitBreaker(WasmPDP)", CircuitBreaker(wasm), request),
            engine("DenyOverrides(WasmPDP, CedarPDP)", DenyOverrides(wasm, cedar), request),
        ]
        candidate = CandidatePDP(wasm, StaticPDP(True, name="candidate"))
        rows.append(engine("CandidatePDP(WasmPDP, StaticPDP)", candidate, request))
        gc.disable()
        for i in range(-50, n):
            for row in rows:
                row.sample(i)
            if i == -1:
                for row in rows:
                    row.wall.clear(), row.cpu.clear(), row.of_batch.clear(), row.singles.clear()
        candidate.close()
        for pdp in (opa, authzen):
            pdp.close()
    by_name = {row.name: row for row in rows}
    table = Table(
        title=f"one decision on a request of {len(body)} bytes, median µs of {n}",
        caption=f"{machine()}; CPU is this process's, all threads",
    )
    for column in ("engine", "wall", "CPU", f"batch of {BATCH}", f"{BATCH} singles", "singles / batch"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        ratio = f"{statistics.median(row.singles) / statistics.median(row.of_batch):.1f}" if row.of_batch else ""
        table.add_row(row.name, us(row.wall), us(row.cpu), us(row.of_batch), us(row.singles), ratio)
    Console(width=120).print(table)
    for name, base in (("OpaPDP", "http.client to OPA, raw"), ("AuthzenPDP (over WasmPDP)", "http.client to AuthZEN, raw")):
        ours, theirs = by_name[name], by_name[base]
        wall = (statistics.median(ours.wall) - statistics.median(theirs.wall)) / 1000
        cpu = (statistics.median(ours.cpu) - statistics.median(theirs.cpu)) / 1000
        print(f"{name} over a raw keep-alive exchange: +{wall:.0f} µs wall, +{cpu:.0f} µs CPU")
    spent = statistics.median(by_name["WasmPDP (default)"].cpu) / 1000
    print(f"default engine: {spent:.0f} µs CPU (budget ≤ 200)")
    loop.close()
    wasm.close()
    assert threading.active_count() < 20


if __name__ == "__main__":
    main()
