"""What a protected tool call costs beside a plain one: CPU, interleaved call by call in one process.

`python -m tests.benchmarks.per_call [--calls N]`. Prints medians and ratios with the machine they were
measured on; asserts no figure, but that what is timed as a permit is one. Figures are CPU time of the whole
process (`process_time`), because a ToolNode runs its tools in a thread pool; and how many functions are
called, which is the same on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.runtime import Runtime
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.langgraph.messages import record_plans
from langchain_runtime_authz.langgraph.node_pep import gate_bound
from langchain_runtime_authz.langgraph.run_context import find_run
from langchain_runtime_authz.langgraph.tool_node import gate_tool_node
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.pep.engine import drive
from langchain_runtime_authz.testing import StaticPDP

ACCOUNT = "DE89370400440532013000"
TASK = f"Book 98.7 to {ACCOUNT}, as each note says"
PROFILES = {
    "book": ToolProfile(effect="write", sink="internal", critical={"account": "principal", "amount": "amount"}),
}


@tool
def book(account: str, amount: float, note: str = "") -> str:
    """Book an amount on an account."""
    return "booked"


async def _abook(account: str, amount: float, note: str = "") -> str:
    return "booked"


abook = StructuredTool.from_function(coroutine=_abook, name="book", description="Book an amount on an account.")


class Timed:
    """A PDP that adds up its own CPU time."""

    def __init__(self, real: Any) -> None:
        self.real, self.name, self.revision, self.spent = real, real.name, real.revision, 0

    def evaluate(self, body: bytes) -> object:
        """Answer, and count."""
        start = time.process_time_ns()
        try:
            return self.real.evaluate(body)
        finally:
            self.spent += time.process_time_ns() - start

    async def aevaluate(self, body: bytes) -> object:
        """Answer, and count."""
        return self.evaluate(body)


def shipped() -> WasmPDP:
    """The shipped policy, but that no run is too fast or too long for it: a benchmark is both."""
    data = json.loads((resources.files("langchain_runtime_authz") / "policies/data.json").read_text())
    anomaly = data["runtime_authz_data"]["anomaly"]
    return WasmPDP(data={"anomaly": {**anomaly, "max_per_minute": None, "max_steps": None}})


def message(i: int) -> AIMessage:
    """A planned call that differs from every other, and that the task asks for."""
    args = {"account": ACCOUNT, "amount": 98.7, "note": f"December, part {i}"}
    return AIMessage("", id=f"m{i}", tool_calls=[{"name": "book", "args": args, "id": f"c{i}", "type": "tool_call"}])


class Bench:
    """One protected node in one open run, beside a plain node.

    With `loop`, the tool is a coroutine and the nodes are awaited there: all of it in one thread.
    """

    def __init__(self, pdp: Any, *, loop: asyncio.AbstractEventLoop | None = None, **options: Any) -> None:
        self.pdp, self.loop = Timed(pdp), loop
        tools = [book if loop is None else abook]
        self.authz = RuntimeAuthz(pdp=self.pdp, profiles=PROFILES, **options)
        self.node = gate_tool_node(ToolNode(tools), self.authz.profiles)
        self.handle = self.authz.run(subject="alice", task=TASK)
        entrance = self.authz.root_entry
        config = self.handle.config({"configurable": {"thread_id": "bench"}})
        self._scope = entrance.enter("bench", {"messages": []}, config, entrance.at_call(config))
        _, self.config = self._scope.__enter__()
        runtime = Runtime(context=None, store=None, stream_writer=lambda _: None)
        self.config["configurable"]["__pregel_runtime"] = runtime
        self.plain = ToolNode(tools)
        self.plain_config = {"configurable": {"__pregel_runtime": runtime}}
        self.state = [HumanMessage(TASK)]

    def close(self) -> None:
        """End the run."""
        self._scope.__exit__(None, None, None)

    def plan(self, i: int) -> AIMessage:
        """Record the plan of call `i`, outside what is timed."""
        if isinstance(self.pdp.real, StaticPDP):
            self.pdp.real.bodies.clear()  # what a test wants to look at
        planned = message(i)
        run = find_run(self.config)
        assert run is not None
        drive(run.engine, record_plans(run, [], {"messages": [planned]}))
        return planned

    def invoke(self, node: Any, state: Any, config: Any) -> Any:
        """What a graph would do."""
        if self.loop is None:
            return node.invoke(state, config)
        return self.loop.run_until_complete(node.ainvoke(state, config))

    def once(self, i: int, status: str = "success") -> tuple[int, int, int]:
        """CPU of one plain call, one protected call, and the engine's part of the latter (ns)."""
        planned = self.plan(i)
        state = {"messages": [*self.state, planned]}
        start = time.process_time_ns()
        self.invoke(self.plain, state, self.plain_config)
        plain = time.process_time_ns() - start
        before = self.pdp.spent
        start = time.process_time_ns()
        out = self.invoke(self.node, state, self.config)
        ours = time.process_time_ns() - start
        answer = out["messages"][0]
        assert (answer.tool_call_id, answer.status) == (f"c{i}", status), answer.content
        return plain, ours, self.pdp.spent - before


def median_us(values: list[int]) -> float:
    """Median of nanoseconds, in microseconds."""
    return statistics.median(values) / 1000


def calls(bench: Bench, n: int, first: int = 0, status: str = "success") -> tuple[float, float, float]:
    """Medians (µs) of plain, added without the engine, engine."""
    rows = [bench.once(first + i, status) for i in range(n)]
    added = [ours - plain - engine for plain, ours, engine in rows]
    return median_us([r[0] for r in rows]), median_us(added), median_us([r[2] for r in rows])


def functions(bench: Bench, n: int = 50) -> tuple[float, float]:
    """How many functions of Python and of C a protected call calls that a plain one does not."""

    def count(node: Any, config: Any, first: int) -> tuple[float, float]:
        seen = {"call": 0, "c_call": 0}

        def watch(_frame: Any, event: str, _argument: Any) -> None:
            if event in seen:
                seen[event] += 1

        for i in range(first, first + n):
            state = {"messages": [*bench.state, bench.plan(i)]}
            threading.setprofile(watch)  # a ToolNode's threads
            sys.setprofile(watch)
            node.invoke(state, config)
            sys.setprofile(None)
            threading.setprofile(None)
        return seen["call"] / n, seen["c_call"] / n

    plain = count(bench.plain, bench.plain_config, 10**7)
    ours = count(bench.node, bench.config, 2 * 10**7)
    return ours[0] - plain[0], ours[1] - plain[1]


def whole_graph(pdp: Any, n: int) -> tuple[float, float]:
    """Medians (µs) of one `invoke` of a two-node graph, plain and protected (root entry included)."""

    def build() -> Any:
        builder = StateGraph(MessagesState)
        counter = iter(range(10**9))
        builder.add_node("agent", lambda _: {"messages": [message(next(counter))]})
        builder.add_node("tools", ToolNode([book]))
        builder.add_edge(START, "agent")
        builder.add_edge("agent", "tools")
        builder.add_edge("tools", END)
        return builder.compile()

    authz = RuntimeAuthz(pdp=pdp, profiles=PROFILES)
    plain, ours = build(), authz.protect(build())
    spent: dict[str, list[int]] = {"plain": [], "ours": []}
    with authz.run(subject="alice", task=TASK):
        for i in range(n + 20):
            for name, graph in (("plain", plain), ("ours", ours)):
                start = time.process_time_ns()
                out = graph.invoke({"messages": [("user", TASK)]})
                if i >= 20:
                    spent[name].append(time.process_time_ns() - start)
                assert out["messages"][-1].status == "success", out["messages"][-1].content
    return median_us(spent["plain"]), median_us(spent["ours"])


class Idle(ToolNode):
    """A gated node in which nothing happens: what is timed is the gate in front of it."""

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        """Nothing."""


def node_gate(n: int) -> float:
    """Median (µs) that a kept permit adds to a node whose inside is gated; of 100 passages at a time."""
    bench = Bench(StaticPDP(permit=True))
    idle = gate_tool_node(Idle([book]), bench.authz.profiles)
    gated = gate_bound(idle, "tools")
    gated.invoke({}, bench.config)  # decides, and the permit is kept
    rows = []
    for _ in range(n):
        spent = []
        for node in (idle, gated):
            start = time.process_time_ns()
            for _ in range(100):
                node.invoke({}, bench.config)
            spent.append(time.process_time_ns() - start)
        rows.append((spent[1] - spent[0]) // 100)
    bench.close()
    return median_us(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1500)
    n = parser.parse_args().calls
    gc.disable()
    table = Table(title="CPU per call, median µs", caption=machine())
    for column in ("row", "plain ToolNode", "protected", "engine's part", "we add", "ratio", "budget"):
        table.add_column(column, justify="left" if column == "row" else "right")

    def row(name: str, figures: tuple[float, float, float], budget: str) -> None:
        plain, added, engine = figures
        ours = plain + added + engine
        cells = (plain, ours, engine, added)
        table.add_row(name, *(f"{cell:.0f}" for cell in cells), f"{ours / plain:.2f}", budget)

    static = Bench(StaticPDP(permit=True))
    calls(static, 200)
    early = calls(static, n, 10_000)
    row("StaticPDP, permit", early, "we add ≤ 100")
    wasm = Bench(shipped())
    calls(wasm, 200)
    permit = calls(wasm, n, 10_000)
    row("WasmPDP (shipped policy), permit", permit, "we + engine ≤ 400")
    loop = asyncio.new_event_loop()
    for name, pdp in (("StaticPDP", StaticPDP(permit=True)), ("WasmPDP", shipped())):
        single = Bench(pdp, loop=loop)
        calls(single, 200)
        row(f"{name}, permit, in one thread (async)", calls(single, n, 10_000), "")
        single.close()
    loop.close()
    denying = Bench(StaticPDP(permit=lambda r: r.action.name != "tools/call"))
    calls(denying, 200, status="error")
    refused = calls(denying, n, 10_000, status="error")
    # The plain node runs the tool and the denied one does not: here only `protected` says something.
    row("StaticPDP, deny (the tool does not run)", refused, "protected ≤ 1.1 × permit")
    late = calls(static, n, 20_000)
    row(f"StaticPDP, after {2 * n + 200} calls on the thread", late, "≤ 1.25 × early")
    with tempfile.TemporaryDirectory() as folder:
        for durable, name in ((False, "audit file"), (True, "audit file, fsync")):
            filed = Bench(StaticPDP(permit=True), audit=FileSink(Path(folder) / f"{durable}.jsonl", durable=durable))
            calls(filed, 100)
            row(f"StaticPDP, {name}", calls(filed, max(n // 4, 100), 10_000), "")
            filed.close()
    added = {name: functions(bench) for name, bench in (("StaticPDP", static), ("WasmPDP", wasm))}
    for bench in (static, wasm, denying):
        bench.close()
    Console(width=120).print(table)
    print(f"node gate on a kept permit: +{node_gate(n):.0f} µs (budget ≤ 15)")
    print(f"late / early: {late[1] / early[1]:.2f} (budget ≤ 1.25); deny / permit, protected: {sum(refused) / sum(early):.2f}")
    for name, (python, c) in added.items():
        print(f"functions that a permitted call calls beside the plain one, {name}: {python:.0f} of Python, {c:.0f} of C")
    for name, pdp in (("StaticPDP", StaticPDP(permit=True)), ("WasmPDP", shipped())):
        plain, ours = whole_graph(pdp, max(n // 3, 100))
        print(f"whole invoke of a two-node graph, {name}: plain {plain:.0f} µs, protected {ours:.0f} µs, ratio {ours / plain:.2f}")


def machine() -> str:
    """What this was measured on."""
    info = SimpleNamespace(python=platform.python_version(), system=platform.system(), cpus=os.cpu_count())
    return f"Python {info.python}, {info.system} {platform.machine()}, {info.cpus} CPUs, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
