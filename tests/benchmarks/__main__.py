"""Write the benchmark page: this package against plain LangGraph, and against its peers.

`python -m tests.benchmarks [--rounds N] [--only GROUP]... [--calls N] [--threads N] [--write]`, with `LRA_POSTGRES_DSN` and
`LRA_OPA` of `.ci/services` for the rows that need them. Each group of rows has a process of its own, each peer too, and the
processes take turns, round by round. Within a process plain and protected take turns. Figures are medians of CPU time, unless
a row says otherwise. A missed target is printed as missed, and nothing is asserted.
"""

import argparse
import gc
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from tests import generated
from tests.benchmarks import peers, sizing
from tests.benchmarks.credential import credentials
from tests.benchmarks.ledgers import ledgers
from tests.benchmarks.per_call import (
    TREE,
    CallRow,
    FixedPDP,
    Pair,
    Round,
    TurnRow,
    agent_graph,
    answer,
    ask,
    between,
    book,
    loop_graph,
    machine,
    start,
)  # fmt: skip
from tests.gates.test_statements import seen_by_postgres, turn_and_invoke, writes

Sample = Callable[[int], Round]  # figures of so many rounds, by row


class Target(NamedTuple):
    """The most that a row may show: as a ratio to plain, as what is added, or of ours altogether."""

    most: float
    of: str = "added"


TARGETS = {
    "a turn, memory": Target(1.5, "ratio"), "a turn, SQLite": Target(1.8, "ratio"), "a turn, PostgreSQL": Target(2.2, "ratio"),
    **{f"an output of {size}, {kind}": Target(ms) for size, ms in (("100 kB", 5), ("10 MB", 20)) for kind in ("JSON", "prose")},
    **{f"a thread of {n} messages": Target(ms) for n, ms in ((12, 4), (400, 5), (1000, 6), (4000, 10))},
    "a second RuntimeAuthz()": Target(10), "protect of 500 tools, first": Target(250), "protect of 500 tools, again": Target(25),
    "import over LangGraph": Target(150), "runtime-authz --help": Target(500, "ours"),
    "statements, PostgreSQL": Target(12), "writing transactions, PostgreSQL": Target(3),
}  # fmt: skip


def turns(stack: ExitStack, _: Any) -> Sample:
    """Sample a turn of `create_agent` by ledger, with a checkpointer of the same kind: a model call and a tool call."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    def postgres() -> Any:
        from langgraph.checkpoint.postgres import PostgresSaver

        made = stack.enter_context(PostgresSaver.from_conn_string(os.environ["LRA_POSTGRES_DSN"]))
        made.setup()
        return made

    folder, names = stack.enter_context(tempfile.TemporaryDirectory()), itertools.count()
    savers: dict[str, Callable[[], Any]] = {
        "memory": InMemorySaver,
        "SQLite": lambda: stack.enter_context(SqliteSaver.from_conn_string(f"{folder}/{next(names)}.db")), "PostgreSQL": postgres,
    }
    rows = {}
    for long, ledger in stack.enter_context(ledgers()).items():
        name = long.partition(" (")[0]
        build = lambda script, saver=savers[name]: agent_graph(script, saver())
        rows[f"a turn, {name}"] = TurnRow(build, FixedPDP(), ledger, threads=True)
    return lambda rounds: {name: row.sample(rounds) for name, row in rows.items()}


def mails(size: int, number: int) -> str:
    """Return JSON of about so many characters, which no other number has."""
    body = "Please note the invoice of 12.50 due on May 26th, account GB29 NWBK 6016 1331 9268 19. " * 10
    return json.dumps([{"id": f"m{i}", "sender": f"user{i}@example.org", "body": f"{body} {number}"} for i in range(size // 950)])


def prose(size: int, number: int) -> str:
    """Return text of about so many characters, likewise."""
    words = "The committee met in May and agreed on 12.50 for the 3rd quarter; write to user{0}@example.org, or see note {0}-{1}. "
    return "".join(words.format(i, number) for i in range(size // len(words)))


def outputs(_: ExitStack, __: Any) -> Sample:
    """Sample a call whose tool gives much that comes from outside."""
    fields = {"trust": {"": "external", "id": "system"}, "prose": ("body",), "counterparty": ("sender",)}
    rows = {}
    for (size, label), make in itertools.product({100_000: "100 kB", 10_000_000: "10 MB"}.items(), (mails, prose)):
        texts = itertools.cycle([make(size, number) for number in range(4)])
        a_tool = StructuredTool(name="book", description="Book.", args_schema=book.args_schema, func=lambda texts=texts, **_: next(texts))
        rows[f"an output of {label}, {'JSON' if make is mails else 'prose'}"] = CallRow(1, FixedPDP(), a_tool=a_tool, **fields)
    return lambda rounds: {name: row.sample(max(rounds // 2, 1)) for name, row in rows.items()}


def threads(_: ExitStack, __: Any) -> Sample:
    """Sample one invoke of a graph of one node, on a thread of so many messages with a checkpointer."""
    from langchain_runtime_authz import RuntimeAuthz

    place: Any = {"configurable": {"thread_id": "t"}}

    def graph(messages: int) -> Any:
        built = StateGraph(MessagesState).add_node("step", lambda _: {}).add_edge(START, "step").compile(checkpointer=InMemorySaver())
        words = [AIMessage(f"{i}: " + "word " * 40, id=str(i)) for i in range(messages)]
        built.update_state(place, {"messages": words}, as_node="step")
        return built

    authz = RuntimeAuthz(pdp=FixedPDP())
    rows = {n: (graph(n), authz.protect(graph(n))) for n in (12, 400, 1000, 4000)}

    def sample(rounds: int) -> Round:
        with authz.run(subject="alice"):
            go = {n: [lambda g=g: g.invoke({"messages": [HumanMessage("Go on")]}, place) for g in graphs] for n, graphs in rows.items()}
            return {f"a thread of {n} messages": between(sides, rounds) for n, sides in go.items()}

    return sample


def made(names: list[str]) -> list[BaseTool]:
    """Make a tool of each name, each of a function of its own."""
    spaces: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, space in spaces.items():
        exec(f"def {name}(account: str, amount: float, note: str = ''):\n  'Call {name}.'", space)
    return [tool(space[name]) for name, space in spaces.items()]


def starts(_: ExitStack, __: Any) -> Sample:
    """Sample what is done once; where graphs are built for each request, once a request. Plain is the build of the graph."""
    from langchain_runtime_authz import RuntimeAuthz, ToolProfile

    profiles = {f"tool_{i}": ToolProfile(effect="read") for i in range(500)}
    known, authz, built = made(list(profiles)), RuntimeAuthz(pdp=FixedPDP(), profiles=profiles), list[Any]()

    def build(tools: list[BaseTool]) -> None:
        builder = StateGraph(MessagesState).add_node("tools", ToolNode(tools)).add_edge(START, "tools")
        built.append(builder.compile(checkpointer=InMemorySaver()))

    def protect(by: RuntimeAuthz, tools: list[BaseTool]) -> dict[str, float]:
        row = between([lambda: build(tools), lambda: by.protect(built.pop())], 1)
        gc.collect()
        return {"plain": row["plain"], "added": row["plain"] + row["added"]}

    protect(authz, known)

    def sample(rounds: int) -> Round:
        found: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
        for _ in range(rounds):
            found["first"].append(protect(RuntimeAuthz(pdp=FixedPDP(), profiles=profiles), made(list(profiles))))
            found["again"].append(protect(authz, known))
        rows = {f"protect of 500 tools, {name}": {k: statistics.median(r[k] for r in rows) for k in rows[0]} for name, rows in found.items()}
        return {"a second RuntimeAuthz()": between([lambda: None, RuntimeAuthz], rounds), **rows}

    return sample


def outside(_: ExitStack, __: Any) -> Sample:
    """Sample a tool outside every run, in a process with a hundred instances."""
    from langchain_core.tracers import context

    from langchain_runtime_authz import RuntimeAuthz

    stock = list(context._configure_hooks)
    instances = [RuntimeAuthz(pdp=FixedPDP()) for _ in range(100)]
    for authz in instances:
        authz.guard(book)
    hooks = (stock, list(context._configure_hooks))

    def call(these: list[Any]) -> None:
        context._configure_hooks[:] = these
        for _ in range(50):
            book.invoke({"account": "DE1", "amount": 98.7})

    return lambda rounds: {"50 calls outside every run": between([lambda these=these: call(these) for these in hooks], rounds * 4)}


def processes(stack: ExitStack, _: Any) -> Sample:
    """Sample processes: user and system time, with compiled files as an installed package has them."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = stack.enter_context(tempfile.TemporaryDirectory())
    host = "import os, langgraph.graph, langgraph.prebuilt, langchain_core.tools, langgraph.checkpoint.memory"
    leave = "os._exit(0)"  # the last collection takes a third of the time, and varies more than what is measured
    help_ = "from langchain_runtime_authz.cli import app; app(['--help'], prog_name='runtime-authz')"
    sides = {
        "import over LangGraph": (f"{host}; {leave}", f"{host}; from langchain_runtime_authz import RuntimeAuthz; {leave}"),
        "runtime-authz --help": ("", help_),
    }

    def clock() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (used.ru_utime + used.ru_stime) * 1e9

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.DEVNULL)

    return lambda n: {name: between([lambda code=code: run(code) for code in codes], n, clock) for name, codes in sides.items()}


def runs(stack: ExitStack, _: Any) -> Sample:
    """Sample a run by deployment: an entry, three model calls and two tool calls."""
    rows = stack.enter_context(sizing.rows())

    def sample(rounds: int) -> Round:
        for row in rows:
            row.cpu.clear()
        for row in rows * rounds:
            row.play()
        plain, *others = (statistics.median(row.cpu) * 1e9 for row in rows)
        return {f"a run, {row.name}": {"plain": plain, "added": ours - plain} for row, ours in zip(rows[1:], others, strict=True)}

    return sample


def statements(stack: ExitStack, _: Any) -> Sample:
    """Count what PostgreSQL sees of one more turn of an agent."""
    shared = [ledger for name, ledger in stack.enter_context(ledgers()).items() if name.startswith("PostgreSQL")]

    def sample(_: int) -> Round:
        found: Round = {}
        for ledger in shared:
            with seen_by_postgres() as seen:
                turn, _invoke = turn_and_invoke(ledger, seen)
            found["statements, PostgreSQL"] = {"plain": 0, "added": len(turn)}
            found["writing transactions, PostgreSQL"] = {"plain": 0, "added": writes(turn)}
        return found

    return sample


def memory(_: ExitStack, options: Any) -> Sample:
    """Sample the bytes that a call of the later half leaves behind: in one thread, and in a thread of its own."""

    def grown(side: str, calls: int, turns: int) -> float:
        command = [sys.executable, "-m", "tests.benchmarks", "--child", "grow", "--side", side, "--calls", str(calls), "--turns", str(turns)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    def sample(_: int) -> Round:
        found = {}
        for name, calls, turns in ((f"{options.calls} calls in one thread", options.calls, 8), (f"{options.threads} threads of a call", options.threads, 1)):
            plain, ours = (grown(side, calls, turns) for side in ("plain", "protected"))
            found[name] = {"plain": plain, "added": ours - plain}
        return found

    return sample


def grow(side: str, calls: int, turns: int) -> None:
    """Make calls, each in its own thread if an invoke has one turn, and print the bytes that each of the later half left."""
    pair = Pair(lambda script: loop_graph(script, 1, book, nullcontext), FixedPDP())

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    middle = 0
    for done in range(0, calls, turns):
        middle = middle or (resident() if done >= calls // 2 else 0)
        pair.invoke(side, turns, f"t{done if turns == 1 else 0}")
    print((resident() - middle) / (calls / 2))


class Group(NamedTuple):
    """What a table says above its rows, their unit, what makes them, and whether one round is enough."""

    says: str
    unit: str
    make: Callable[[ExitStack, Any], Sample] | None = None
    once: bool = False


GROUPS = {
    "calls": Group("What protection adds to steps of a graph (`per_call`); plain is the same step", "µs"),
    "turns": Group("A turn of `create_agent`, by ledger, with a checkpointer in the same database: one model call and one tool call", "ms", turns),
    "outputs": Group("A tool call, by its output", "ms", outputs),
    "threads": Group("An invocation of a graph of one node on a thread with a checkpointer", "ms", threads),
    "runs": Group("A run of `sizing`, by ledger and engine; plain is the same run without protection", "ms", runs),
    "starts": Group("What is done once, or where graphs are built anew; plain is the build of the graph", "ms", starts),
    "processes": Group("Whole processes; plain is LangGraph alone, or Python alone", "ms", processes),
    "outside": Group("A tool that runs outside every run, in a process with a hundred instances", "ms", outside),
    "credentials": Group("Tokens and proofs, where plain is PyJWT's call of the same cryptography", "µs", credentials),
    "statements": Group("Statements of a turn of `create_agent` (counts)", "", statements, once=True),
    "memory": Group("Memory that stays after a call, over the later half of the calls (resident set)", "B", memory, once=True),
    "peers": Group("An invocation with one permitted call: START → agent → tools → END, whose agent is a function", "µs"),
}
UNITS = {"µs": 1e3, "ms": 1e6, "B": 1.0, "": 1.0}


def commands(group: str, options: Any) -> list[tuple[str, list[str]]]:
    """Return the Python and the command of each process of a group."""
    if group == "peers":
        made = subprocess.run([TREE / ".ci" / "peers"], check=True, stdout=subprocess.PIPE, text=True).stdout
        pythons = [("ours", sys.executable), ("ours-shipped", sys.executable), *(line.split() for line in made.splitlines())]
        return [(python, ["tests.benchmarks.peers", name]) for name, python in pythons]
    if group == "calls":
        return [(sys.executable, ["tests.benchmarks.per_call", "--child", "--invokes", str(options.invokes)])]
    sizes = ["--invokes", str(options.invokes), "--calls", str(options.calls), "--threads", str(options.threads)]
    return [(sys.executable, ["tests.benchmarks", "--child", group, *sizes])]


def measured(groups: list[str], options: Any) -> dict[str, list[Round]]:
    """Let the processes of all groups take turns, and return each group's rounds."""
    found: dict[str, list[Round]] = {group: [{} for _ in range(options.rounds)] for group in groups}
    with ExitStack() as stack:
        started = []
        for group in groups:
            for python, command in commands(group, options):
                if python == "-":
                    found[group][0][command[-1]] = {}
                    continue
                process = start(TREE, "-m", *command, python=python)
                stack.callback(process.kill)
                ask(process)
                started.append((group, process))
        for number in range(options.rounds):
            for group, process in started if number % 2 == 0 else reversed(started):
                if number == 0 or not GROUPS[group].once:
                    found[group][number] |= json.loads(ask(process, "round"))
    return found


def cells(name: str, unit: str, rounds: list[dict[str, float]]) -> str:
    """Return a row of the table: medians over the rounds, and whether the target was met."""
    if not rounds[0]:
        return f"| {name} | cannot be installed | | | | |"
    plain, added = (statistics.median(r[part] for r in rounds) / UNITS[unit] for part in ("plain", "added"))
    ratio = statistics.median((r["plain"] + r["added"]) / r["plain"] for r in rounds) if plain >= 0.1 else 0
    target = TARGETS.get(name)
    said = ""
    if target is not None:
        is_now, what = {"ratio": (ratio, "× plain"), "added": (added, f"{unit} added"), "ours": (plain + added, f"{unit} in all")}[target.of]
        said = f"≤ {target.most:g} {what.strip()}: {'met' if is_now <= target.most else 'missed'}"
    digits = 1 if unit == "ms" else 0
    figures = (f"{figure:,.{digits}f}" for figure in (plain, plain + added, added))
    return f"| {name} | {' | '.join(figures)} | {f'{ratio:.2f}' if ratio else ''} | {said} |"


def page(found: dict[str, list[Round]], options: Any) -> str:
    """Return all tables as Markdown."""
    lines = [f"Medians of {options.rounds} rounds; {machine()}."]
    for group, rounds in found.items():
        says, unit = GROUPS[group].says, GROUPS[group].unit
        lines += ["", f"{says}{f', {unit}' if unit else ''}:", "", "| row | plain | ours | added | ratio | target |", "|---|---|---|---|---|---|"]
        lines += [cells(name, unit, [r[name] for r in rounds if name in r]) for name in rounds[0]]
    if "peers" in found:
        lines += ["", "| peer | does, in that call |", "|---|---|", *(f"| {name} | {does} |" for name, does in peers.DOES.items())]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--invokes", type=int, default=5, help="of each graph in a round")
    parser.add_argument("--calls", type=int, default=2000, help="in one thread, for the memory that stays (page: 20000)")
    parser.add_argument("--threads", type=int, default=1000, help="of one call (page: 10000)")
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group; can be repeated")
    parser.add_argument("--write", action="store_true", help="write the page into docs/_generated")
    for hidden in ("--child", "--side", "--turns"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "grow":
        grow(options.side, options.calls, int(options.turns))
    elif options.child:
        with ExitStack() as stack:
            make = GROUPS[options.child].make
            assert make is not None
            answer(make(stack, options), options.invokes, warm=not GROUPS[options.child].once)
    else:
        text = page(measured(options.only or list(GROUPS), options), options)
        print(text)
        if options.write:
            generated.write("benchmarks", text)


if __name__ == "__main__":
    main()
