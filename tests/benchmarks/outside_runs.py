"""What a hundred instances in a process cost a tool that runs outside every protected run.

`python -m tests.benchmarks.outside_runs [--calls N]`. One `tool.invoke` with the ambient hook in
LangChain's list and one without, interleaved call by call in one process; and, beside them, what a
hook that always answers with a handler would cost. Prints medians (CPU time) with the machine they
were measured on; asserts nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import tool
from langchain_core.tracers import context
from rich.console import Console
from rich.table import Table

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.per_call import machine


@tool
def book(account: str, amount: float) -> str:
    """Book an amount on an account."""
    return "booked"


class _Always:
    """A hook that adds a handler to everything in the process."""

    def __init__(self) -> None:
        self.handler = BaseCallbackHandler()

    def get(self) -> BaseCallbackHandler:
        """The handler."""
        return self.handler


def spent(hooks: list[Any]) -> int:
    """CPU nanoseconds of one call with these hooks."""
    context._configure_hooks[:] = hooks
    start = time.process_time_ns()
    book.invoke({"account": "DE1", "amount": 98.7})
    return time.process_time_ns() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    n = parser.parse_args().calls
    stock = list(context._configure_hooks)
    instances = [RuntimeAuthz(pdp=StaticPDP(permit=True)) for _ in range(100)]
    for authz in instances:
        authz.guard(book)
    ours = list(context._configure_hooks)
    rows = {
        "without this package": stock,
        f"{len(instances)} instances ({len(ours) - len(stock)} hook)": ours,
        "1 hook that always answers": [*stock, (_Always(), True, None, None)],
        "100 hooks that always answer": [*stock, *((_Always(), True, None, None) for _ in range(100))],
    }
    gc.disable()
    figures: dict[str, list[int]] = {name: [] for name in rows}
    for i in range(n + 100):
        for name, hooks in rows.items():
            taken = spent(hooks)
            if i >= 100:
                figures[name].append(taken)
    context._configure_hooks[:] = ours
    table = Table(title="tool.invoke outside every run, median CPU µs", caption=machine())
    for column in ("row", "per call", "ratio"):
        table.add_column(column, justify="left" if column == "row" else "right")
    medians = {name: statistics.median(taken) / 1000 for name, taken in figures.items()}
    base = medians["without this package"]
    for name, figure in medians.items():
        table.add_row(name, f"{figure:.1f}", f"{figure / base:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
