"""Measure what protection adds to a call, in this tree and in another one.

`python -m tests.benchmarks.per_call [--against PATH] [--rounds N]`, where PATH is a checkout of another commit. Each tree
has a process of its own, and the processes take turns. Figures are CPU time of the whole process, because a ToolNode runs
its tools in threads. Each figure is compared with the plain ToolNode call of the same process and round. Prints medians
over the rounds, and asserts no time.

Only the public API is used, so that the same file measures both trees. A row of tool calls is the time inside the ToolNode
of a running graph. The other rows are differences of whole invokes: of nine turns and one, protected and plain.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

TREE = Path(__file__).resolve().parents[2]
ACCOUNT = "DE89370400440532013000"
TASK = f"Book 98.7 to {ACCOUNT}, as each note says"
# Covers what the script calls. A tree from before the mandate goes by the task.
MANDATE: dict[str, Any] = {
    "steps": [{"id": "book", "tool": "book", "args": {"account": ACCOUNT, "amount": 98.7, "note": {"kind": "free"}}, "times": 10_000}]
}
MORE = 8  # turns of the long invoke beyond those of the short one
SINGLE = "tool call, static"  # the permit that denials and messages of eight calls are held against
TARGETS = {SINGLE: 0.55, "tool call, shipped policy": 0.95}
numbers = itertools.count()
Round = dict[str, dict[str, float]]


@tool
def book(account: str, amount: float, note: str = "") -> str:
    """Book an amount on an account."""
    return "booked"


async def _abook(account: str, amount: float, note: str = "") -> str:
    return "booked"


abook = StructuredTool.from_function(coroutine=_abook, name="book", description="Book an amount on an account.")


class FixedPDP:
    """Answer every request alike, except that one kind of action may be denied."""

    name = revision = "static"
    in_process = True

    def __init__(self, denied: bytes = b"\0") -> None:
        self._denied = denied

    def evaluate(self, *asked: Any) -> object:
        """Answer: the request's JSON comes last in every tree."""
        return {"decision": self._denied not in asked[-1]}

    async def aevaluate(self, *asked: Any) -> object:
        """Answer."""
        return self.evaluate(*asked)


def shipped_pdp() -> Any:
    """Return the shipped policy without its limits on how fast, long and deep a run is: a benchmark is all of it."""
    from langchain_runtime_authz.pdp.wasm import WasmPDP

    data = json.loads((resources.files("langchain_runtime_authz") / "policies/data.json").read_text())
    anomaly = data["runtime_authz_data"]["anomaly"]
    return WasmPDP(data={"anomaly": {**anomaly, "max_per_minute": None, "max_steps": None, "max_depth": None}})


def message(calls: int) -> AIMessage:
    """Return a message of calls that differ from all others, and that the task asks for."""
    ids = [next(numbers) for _ in range(calls)]
    args = [{"account": ACCOUNT, "amount": 98.7, "note": f"December, part {i}"} for i in ids]
    calls_ = [{"name": "book", "args": a, "id": f"c{i}", "type": "tool_call"} for a, i in zip(args, ids, strict=True)]
    return AIMessage("", id=f"m{next(numbers)}", tool_calls=calls_)


class Script:
    """Count the turns that an invoke still has."""

    left = 0

    def turn(self, calls: int) -> AIMessage:
        """Return the next message of the agent."""
        self.left -= 1
        return message(calls) if self.left >= 0 else AIMessage("done", id=f"m{next(numbers)}")


class MeasuredNode(ToolNode):
    """Run each call of the node inside `measure`."""

    measure: Callable[[], AbstractContextManager[None]] = nullcontext

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        with self.measure():
            return super().invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        with self.measure():
            return await super().ainvoke(input, config, **kwargs)


def loop_graph(script: Script, calls: int, a_tool: BaseTool, measure: Callable[[], AbstractContextManager[None]]) -> Any:
    """Build a graph of a node that plays the script, and a ToolNode."""
    tools = MeasuredNode([a_tool])
    tools.measure = measure
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda _: {"messages": [script.turn(calls)]})
    builder.add_node("tools", tools)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])
    builder.add_edge("tools", "agent")
    return builder.compile()


def node_graph(script: Script) -> Any:
    """Build a graph of one node that runs for each turn."""

    def step(_: Any) -> dict[str, Any]:
        script.left -= 1
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda _: "step" if script.left > 0 else END, ["step", END])
    return builder.compile()


def nested_graph(depth: int) -> Any:
    """Build an agent that hands over to an agent below it, and so on."""
    graph: Any = lambda _: {}
    for i in range(depth, -1, -1):
        builder = StateGraph(MessagesState).add_node("child", graph)
        graph = builder.add_edge(START, "child").compile(name=f"agent{i}")
    return graph


def agent_graph(script: Script, checkpointer: Any = None) -> Any:
    """Build LangChain's agent, with a model that plays the script."""
    from langchain.agents import create_agent

    class Model(BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "script"

        def bind_tools(self, tools: Any, **kwargs: Any) -> Model:
            return self

        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=script.turn(1))])

    return create_agent(Model(), [book], checkpointer=checkpointer)


class Pair:
    """A graph and its protected twin, in one run.

    With `loop`, both are awaited there. `fields` are further ones of the tool's profile.
    """

    def __init__(self, build: Callable[[Script], Any], pdp: Any, *, loop: Any = None, ledger: Any = None, **fields: Any) -> None:
        from langchain_runtime_authz import RuntimeAuthz, ToolProfile

        critical = {"account": "principal", "amount": "amount"}
        profiles = {"book": ToolProfile(effect="write", sink="internal", critical=critical, **fields)}
        authz = RuntimeAuthz(pdp=pdp, profiles=profiles, ledger=ledger)
        self.script, self.loop = Script(), loop
        ordered = {"mandate": MANDATE} if "mandate" in inspect.signature(authz.run).parameters else {}
        # A run for each invoke: one over several threads would spend its mandate at the first of them.
        self.sides = {
            "plain": (build(self.script), lambda config: config),
            "protected": (authz.protect(build(self.script)), lambda config: authz.run(subject="alice", task=TASK, **ordered).config(config)),
        }

    def invoke(self, side: str, turns: int, thread: str = "") -> Any:
        """Run so many turns."""
        graph, opened = self.sides[side]
        config = opened({"recursion_limit": 1000, **({"configurable": {"thread_id": thread}} if thread else {})})
        self.script.left = turns
        given = {"messages": [("user", TASK)]}
        if self.loop is None:
            return graph.invoke(given, config)
        return self.loop.run_until_complete(graph.ainvoke(given, config))


def between(sides: list[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time_ns) -> dict[str, float]:
    """Call two things in turns, and return the median of the first, and what the second adds."""
    spent: list[list[float]] = [[], []]
    for _ in range(rounds):
        for call, taken in zip(sides, spent, strict=True):
            begun = clock()
            call()
            taken.append(clock() - begun)
    plain, ours = map(statistics.median, spent)
    return {"plain": plain, "added": ours - plain}


class CallRow:
    """Time a ToolNode inside a running graph."""

    def __init__(self, calls: int, pdp: Any, status: str = "success", *, loop: Any = None, a_tool: Any = None, **fields: Any) -> None:
        self.calls, self.status, self.spent = calls, status, list[int]()
        a_tool = a_tool or (book if loop is None else abook)
        self.pair = Pair(lambda script: loop_graph(script, calls, a_tool, self.timed), pdp, loop=loop, **fields)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note the CPU time of the block."""
        start = time.process_time_ns()
        yield
        self.spent.append(time.process_time_ns() - start)

    def sample(self, rounds: int) -> dict[str, float]:
        """Return nanoseconds per call, plain and added."""
        taken: dict[str, list[int]] = {"plain": [], "protected": []}
        for _ in range(rounds):
            for side, times in taken.items():
                out = self.pair.invoke(side, MORE + 1)
                assert side == "plain" or out["messages"][-2].status == self.status, out["messages"][-2].content
                times += self.spent[1:]
                self.spent.clear()
        plain, protected = (statistics.median(times) / self.calls for times in taken.values())
        return {"plain": plain, "added": protected - plain}


class TurnRow:
    """Time whole invokes, and take the difference for one turn and for the entry. With `threads`, each has one of its own."""

    def __init__(self, build: Callable[[Script], Any], pdp: Any, ledger: Any = None, *, threads: bool = False) -> None:
        self.pair, self.threads = Pair(build, pdp, ledger=ledger), threads

    def sample(self, rounds: int) -> dict[str, float]:
        """Return nanoseconds per turn, plain and added, and what an invoke adds apart from its turn."""
        taken: dict[tuple[str, int], list[int]] = {(side, n): [] for n in (1, MORE + 1) for side in self.pair.sides}
        for _ in range(rounds):
            for (side, turns), times in taken.items():
                thread = f"thread {next(numbers)}" if self.threads else ""
                start = time.process_time_ns()
                self.pair.invoke(side, turns, thread)
                times.append(time.process_time_ns() - start)
        medians = {key: statistics.median(times) for key, times in taken.items()}
        plain, ours = ((medians[side, MORE + 1] - medians[side, 1]) / MORE for side in self.pair.sides)
        entry = medians["protected", 1] - medians["plain", 1] - (ours - plain)
        return {"plain": plain, "added": ours - plain, "entry": entry}


class EdgeRow:
    """Time invokes of a chain of agents, and take the difference to one agent alone."""

    def __init__(self, depth: int, pdp: Any) -> None:
        self.pairs = [Pair(lambda _, depth=d: nested_graph(depth), pdp) for d in (0, depth)]

    def sample(self, rounds: int) -> dict[str, float]:
        """Return nanoseconds of all hand-offs of an invoke, plain and added."""
        taken: dict[tuple[str, int], list[int]] = {(side, i): [] for side in self.pairs[0].sides for i in (0, 1)}
        for _ in range(rounds * 3):
            for (side, i), times in taken.items():
                start = time.process_time_ns()
                self.pairs[i].invoke(side, 1)
                times.append(time.process_time_ns() - start)
        medians = {key: statistics.median(times) for key, times in taken.items()}
        plain, ours = (medians[side, 1] - medians[side, 0] for side in self.pairs[0].sides)
        return {"plain": plain, "added": ours - plain}


def child(invokes: int) -> None:
    """Answer each line of the standard input with the figures of one round."""
    import langchain_runtime_authz

    home = Path(langchain_runtime_authz.__file__).resolve().parents[1]
    assert home == Path.cwd().resolve(), f"the package of {home} was imported"
    loop, shipped = asyncio.new_event_loop(), shipped_pdp()
    rows: dict[str, CallRow | TurnRow] = {}
    for name, pdp in (("static", FixedPDP()), ("shipped policy", shipped)):
        for mode, where in (("", None), (", async", loop)):
            rows[f"tool call, {name}{mode}"] = CallRow(1, pdp, loop=where)
            rows[f"8 calls in a message, {name}{mode}"] = CallRow(8, pdp, loop=where)
        rows[f"create_agent turn, {name}"] = TurnRow(agent_graph, pdp)
        rows[f"node, {name}"] = TurnRow(node_graph, pdp)
        for depth in (1, 10):
            rows[f"{depth} hand-off{'s' * (depth > 1)}, {name}"] = EdgeRow(depth, pdp)
    rows["denied tool call, static"] = CallRow(1, FixedPDP(b'"tools/call"'), "error")

    def figures(rounds: int) -> Round:
        found = {name: row.sample(rounds) for name, row in rows.items()}
        for name in ("static", "shipped policy"):
            found[f"root entry, {name}"] = {"plain": 0.0, "added": found[f"node, {name}"]["entry"]}
        return found

    answer(figures, invokes)


def answer(figures: Callable[[int], Round], rounds: int, *, warm: bool = True) -> None:
    """Answer each line of the standard input with the figures of one round."""
    logging.disable(logging.WARNING)  # of the calls that are to be denied
    if warm:
        figures(2)  # fills the caches
    gc.disable()
    answers = sys.stdout
    sys.stdout = sys.stderr
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        gc.collect()
        print(json.dumps(figures(rounds)), file=answers, flush=True)


def start(tree: Path, *command: str, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a process that answers with figures."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([python, *command], cwd=tree, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], line: str = "") -> str:
    """Send a line, if there is one, and return the answer."""
    assert process.stdin is not None and process.stdout is not None
    if line:
        print(line, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        msg = f"the process that measures a tree ended with {process.wait()}"
        raise SystemExit(msg)
    return answer


def table_rows(here: list[Round], there: list[Round]) -> list[list[str]]:
    """Return the cells of each row: medians over the rounds."""

    def over(rounds: list[Round], figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(each) for each in rounds)

    def target(name: str) -> str:
        single = name.replace("8 calls in a message", "tool call")
        if single != name:
            return f"{over(here, lambda r: r[name]['added'] / r[single]['added']):.2f} of a single, ≤ 0.60"
        if "hand-off" in name:
            times = over(here, lambda r: sum(r[name].values()) / r[name]["plain"])
            one = over(here, lambda r: sum(r[name].values()) / sum(r[f"1 hand-off, {name.partition(', ')[2]}"].values()))
            return f"{times:.1f} × plain ones, {one:.1f} × one"
        if name.startswith("denied"):
            share = over(here, lambda r: sum(r[name].values()) / sum(r[SINGLE].values()))
            return f"{share:.2f} of a permit, ≤ 1"
        return f"≤ {TARGETS[name.removesuffix(', async')]:.2f}" if name.removesuffix(", async") in TARGETS else ""

    out = []
    for name in here[0]:
        unit = SINGLE + ", async" * name.endswith(", async")
        cells = [name]
        for rounds in (here, there) if there else (here,):
            added = over(rounds, lambda r: r[name]["added"])
            share = over(rounds, lambda r: r[name]["added"] / r[unit]["plain"])
            cells += [f"{over(rounds, lambda r: r[unit]['plain']) / 1000:.0f}", f"{added / 1000:.0f}", f"{share:.2f}"]
        if there:
            pairs = zip(here, there, strict=True)
            cells.append(f"{statistics.median(a[name]['added'] / b[name]['added'] for a, b in pairs):.2f}")
        out.append([*cells, target(name)])
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--invokes", type=int, default=5, help="of each graph in a round")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.invokes)
        return
    from rich.console import Console
    from rich.table import Table

    trees = [TREE] if options.against is None else [TREE, options.against.resolve()]
    processes = [start(tree, __file__, "--child", "--invokes", str(options.invokes)) for tree in trees]
    try:
        for process in processes:
            ask(process)
        figures: list[list[Round]] = [[] for _ in trees]
        for i in range(options.rounds):
            order = range(len(trees)) if i % 2 == 0 else reversed(range(len(trees)))
            for index in order:
                figures[index].append(json.loads(ask(processes[index], "round")))
    finally:
        for process in processes:
            process.kill()
    table = Table(title=f"CPU added per call, median µs of {options.rounds} rounds", caption=machine())
    there = ["old plain", "old added", "old ratio", "new/old"] if options.against else []
    for column in ("row", "plain ToolNode call", "added", "ratio", *there, "target"):
        table.add_column(column, justify="left" if column in ("row", "target") else "right")
    for cells in table_rows(figures[0], figures[1] if options.against else []):
        table.add_row(*cells)
    Console(width=140).print(table)


def machine() -> str:
    """Return what this was measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()}, {os.cpu_count()} × {cpu}, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
