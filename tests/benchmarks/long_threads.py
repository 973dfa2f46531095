"""Measure what a long thread with a checkpointer adds to one invoke.

`python -m tests.benchmarks.long_threads [--rounds N]`. One `invoke` of a graph of one node on a thread of so many
messages, plain and protected, interleaved in one process. Prints medians (CPU time); asserts nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.per_call import machine

THREAD: Any = {"configurable": {"thread_id": "t"}}


def graph(messages: int, steps: int) -> Any:
    """A graph with a thread of so many messages, written in so many updates."""
    builder = StateGraph(MessagesState)
    builder.add_node("step", lambda state: {})
    builder.add_edge(START, "step")
    built = builder.compile(checkpointer=InMemorySaver())
    words = [AIMessage(f"{i}: " + "word " * 40, id=str(i)) for i in range(messages)]
    size = max(len(words) // steps, 1)
    for first in range(0, len(words), size):
        built.update_state(THREAD, {"messages": words[first : first + size]}, as_node="step")
    return built


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    table = Table(title="one invoke of a thread with a checkpointer, median CPU ms", caption=machine())
    for column in ("messages", "updates", "plain", "protected", "added"):
        table.add_column(column, justify="right")
    gc.disable()
    for messages, steps in ((12, 1), (100, 1), (400, 1), (1000, 1), (1000, 250)):
        authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
        graphs = {"plain": graph(messages, steps), "protected": authz.protect(graph(messages, steps))}
        spent: dict[str, list[int]] = {name: [] for name in graphs}
        with authz.run(subject="alice"):
            for i in range(rounds + 3):
                for name, one in graphs.items():
                    start = time.process_time_ns()
                    one.invoke({"messages": [HumanMessage("Go on")]}, THREAD)
                    if i >= 3:
                        spent[name].append(time.process_time_ns() - start)
        plain, ours = (statistics.median(taken) / 1e6 for taken in spent.values())
        table.add_row(str(messages), str(steps), *(f"{ms:.1f}" for ms in (plain, ours, ours - plain)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
