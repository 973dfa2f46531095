"""What a run costs with each ledger and engine, to size a deployment by.

`python -m tests.benchmarks.sizing [--runs N] [--rate RUNS_PER_SECOND] [--write]`, with `LRA_POSTGRES_DSN` and `LRA_OPA` for the rows that
need them. A run is an entry, three model calls and two tool calls of an agent, one of which pays what the user ordered. The rows
take turns, run by run, so that whatever else the machine does meets all alike. Asserts nothing.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.testing import ScriptedChatModel
from tests import generated
from tests.benchmarks.ledgers import ledgers
from tests.benchmarks.per_call import machine
from tests.integration_tests.services import OpaServer


@profile(effect="read", sink="none")
@tool
def read_bill() -> str:
    """Read the newest bill."""
    return "Bill of the power company: 45.00, to DE21"


@profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    return f"Sent {amount:.2f} to {recipient}"


def turn(messages: list[Any]) -> AIMessage:
    """Read the bill, pay what was ordered, say so."""
    done = [m.name for m in messages if m.type == "tool"]
    if done == []:
        return AIMessage("", tool_calls=[{"name": "read_bill", "args": {}, "id": os.urandom(4).hex()}])
    if done == ["read_bill"]:
        return AIMessage("", tool_calls=[{"name": "send_money", "args": {"recipient": "DE21", "amount": 45.0}, "id": os.urandom(4).hex()}])
    return AIMessage("Paid.")


class Row:
    """One deployment."""

    def __init__(self, name: str, authz: RuntimeAuthz | None, log: Path | None = None) -> None:
        self.name, self.authz, self.log = name, authz, log
        agent = create_agent(ScriptedChatModel(script=[turn] * 100_000), [read_bill, send_money], checkpointer=InMemorySaver())
        self.graph = authz.protect(agent) if authz is not None else agent
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def play(self) -> None:
        """One run on a thread of its own."""
        config = {"configurable": {"thread_id": os.urandom(8).hex()}}
        began, spent = time.perf_counter(), time.process_time()
        if self.authz is None:
            state = self.graph.invoke({"messages": [("user", "Pay 45 EUR to DE21")]}, config)
        else:
            with self.authz.run(subject="alice"):
                state = self.graph.invoke({"messages": [("user", "Pay 45 EUR to DE21")]}, config)
        self.cpu.append(time.process_time() - spent)
        self.wall.append(time.perf_counter() - began)
        assert [m.status for m in state["messages"] if m.type == "tool"] == ["success"] * 2, state

    def cells(self, rate: float) -> list[str]:
        """Milliseconds of CPU and wall, KB of log, cores for `rate`, GB of log a day."""
        cpu, wall = statistics.median(self.cpu), statistics.median(self.wall)
        logged = self.log.stat().st_size / (len(self.cpu) + 1) if self.log else 0
        return [self.name, f"{cpu * 1e3:.1f}", f"{wall * 1e3:.1f}", f"{logged / 1e3:.0f}", f"{cpu * rate:.2f}", f"{logged * rate * 86400 / 1e9:.1f}"]


@contextmanager
def rows() -> Iterator[list[Row]]:
    """Those that can be had here."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def row(name: str, ledger: Any, pdp: Any = None, *, audit: bool = True) -> Row:
            log = folder / f"{name}.jsonl" if audit else None
            sink = FileSink(log) if log else None
            return Row(name, RuntimeAuthz(ledger=ledger, pdp=pdp, audit=sink), log)

        found = [Row("unprotected", None), row("memory, Wasm, no log", MemoryLedger(), audit=False)]
        found += [row("memory, Wasm", MemoryLedger()), row("SQLite, Wasm", SqliteLedger(folder / "ledger.db"))]
        shared = next((ledger for name, ledger in stack.enter_context(ledgers()).items() if name.startswith("PostgreSQL")), None)
        if shared is not None:
            found.append(row("PostgreSQL, Wasm", shared))
        if os.environ.get("LRA_OPA"):
            pdp = OpaPDP(stack.enter_context(OpaServer()).url, deadline=30, timeout=30)
            stack.callback(pdp.close)
            found.append(row("PostgreSQL, OPA" if shared is not None else "SQLite, OPA", shared or SqliteLedger(folder / "second.db"), pdp))
        yield found


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--write", action="store_true", help="write the table into docs/_generated")
    args = parser.parse_args()
    with rows() as found:
        for row in found:
            row.play()
            row.cpu.clear(), row.wall.clear()
        gc.collect()
        for _ in range(args.runs):
            for row in found:
                row.play()
        table = [f"Medians of {args.runs} runs; {machine()}.\n"]
        table.append(f"| ledger, engine | CPU ms a run | wall ms | log KB | cores at {args.rate:g} runs/s | log GB a day |\n|---|---|---|---|---|---|")
        table += ["| " + " | ".join(row.cells(args.rate)) + " |" for row in found]
    print("\n".join(table))
    if args.write:
        generated.write("sizing", "\n".join(table))


if __name__ == "__main__":
    main()
