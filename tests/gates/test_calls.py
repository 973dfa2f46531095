"""Count the functions that protection adds: the same number on every machine, busy or idle.

`python -m tests.gates.test_calls` prints, of one tool call, how often each function is called beyond the plain call.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
from langchain_core.tools import BaseTool, StructuredTool
from opentelemetry import trace

import langchain_runtime_authz
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.per_call import MORE, Pair, agent_graph, book, loop_graph, node_graph

PACKAGE = str(Path(langchain_runtime_authz.__file__).parent)
BUDGETS = {"tool call": 214, "node": 71, "create_agent turn": 456, "root entry": 435}  # Python functions
TOOL_CALL_C = 350

# Comprehensions are functions of their own until 3.12, and other interpreters call other functions.
pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython", reason="the budgets are counts of CPython 3.11"
)


class Calls(NamedTuple):
    """The functions called, of Python by code object."""

    python: Counter[CodeType]
    c: int


@contextmanager
def counted(into: list[Calls]) -> Iterator[None]:
    """Count every call of this thread, and of those that it starts, until the block ends."""
    python, c = Counter[CodeType](), 0

    def watch(frame: Any, event: str, _argument: Any) -> None:
        nonlocal c
        if event == "call":
            python[frame.f_code] += 1
        elif event == "c_call":
            c += 1

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        into.append(Calls(python, c))


def added(sides: dict[str, list[Calls]]) -> tuple[float, float]:
    """Return the counts of Python and of C that protection adds."""
    (plain, plain_c), (python, c) = least(sides["plain"]), least(sides["protected"])
    return python - plain, c - plain_c


def least(samples: list[Calls]) -> tuple[float, float]:
    """Return the least counts, of Python and of C: on a busy machine a thread waits for another by some more calls."""
    return min(s.python.total() for s in samples), min(s.c for s in samples)


def tool_call(a_tool: BaseTool = book) -> dict[str, list[Calls]]:
    """Count what one permitted call calls in its ToolNode, plain and protected."""
    seen: list[Calls] = []
    pair = Pair(lambda script: loop_graph(script, 1, a_tool, lambda: counted(seen)), StaticPDP(permit=True))
    sides: dict[str, list[Calls]] = {}
    for side in ("plain", "protected") * 2:  # the first round fills the caches
        seen.clear()
        out = pair.invoke(side, MORE + 1)
        assert out["messages"][-2].status == "success"
        sides[side] = seen[1:]
    return sides


def typed(account, amount, note=""):
    return "booked"


typed.__annotations__ = {"account": str, "amount": float, "note": str, "return": str}


def turn(build: Callable[..., Any]) -> tuple[float, float]:
    """Count the functions of Python that one turn adds, and that an invoke adds apart from its turn."""
    pair = Pair(build, StaticPDP(permit=True))
    more = {}
    for turns in (1, MORE + 1) * 2:
        counts = {}
        for side in ("plain", "protected"):
            seen: list[Calls] = []
            with counted(seen):
                pair.invoke(side, turns)
            counts[side] = seen[0].python.total()
        more[turns] = counts["protected"] - counts["plain"]
    one = (more[MORE + 1] - more[1]) / MORE
    return one, more[1] - one


def test_calls() -> None:
    """Each step keeps to its budget."""
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider), "an SDK is set up: spans would be counted"
    call = tool_call()
    python, c = added(call)
    node, entry = turn(node_graph)
    agent, _ = turn(agent_graph)
    found = {"tool call": python, "node": node, "create_agent turn": agent, "root entry": entry}
    # LangChain reads the annotations of a plain tool in each call; that costs more if they are texts, as here.
    types = StructuredTool.from_function(typed, name="book", description=book.description)
    other, other_c = added(tool_call(types))
    print(f"tool call, annotations that are types: {other:.0f} Python functions, {other_c:.0f} C functions added")
    ours = {code for code in call["protected"][-1].python if code.co_filename.startswith(PACKAGE)}
    for name, count in found.items():
        print(f"{name}: {count:.0f} Python functions added, budget {BUDGETS[name]}")
    print(f"tool call: {c:.0f} C functions added, budget {TOOL_CALL_C}")
    print(f"tool call: enters {len(ours)} functions in {len({code.co_filename for code in ours})} files of the package")
    assert {name: count for name, count in found.items() if count > BUDGETS[name]} == {}
    assert c <= TOOL_CALL_C


def nothing() -> None:
    """Do what waste does."""


def fresh() -> BaseTool:
    """Return a tool like `book`, of a function that nothing has looked at."""
    func = FunctionType(book.func.__code__, book.func.__globals__, "book", book.func.__defaults__)
    func.__annotations__ = dict(book.func.__annotations__)
    return StructuredTool.from_function(func, name="book", description=book.description)


@pytest.mark.parametrize("c", [False, True], ids=["python", "c"])
def test_the_gate_catches_a_tenth_more(c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted on the road of each call: the budgets leave less room than that."""
    before = added(tool_call(fresh()))
    more = round(before[c] / 10)
    entered = ToolExecution.begin

    def waste(self: ToolExecution, *args: Any) -> Any:
        for _ in range(more):
            len("") if c else nothing()
        return entered(self, *args)

    monkeypatch.setattr(ToolExecution, "begin", waste)
    assert added(tool_call(fresh()))[c] > (TOOL_CALL_C if c else BUDGETS["tool call"])


def main() -> None:
    """Print the functions of one tool call."""
    call, more = tool_call(), Counter[CodeType]()
    for sample in call["protected"]:
        more.update(sample.python)
    for sample in call["plain"]:
        more.subtract(sample.python)
    for code, count in sorted(more.items(), key=lambda e: (e[0].co_filename, e[0].co_firstlineno)):
        if round(count / MORE, 1):
            name = code.co_filename.removeprefix(PACKAGE).rpartition("site-packages/")[2]
            print(f"{count / MORE:6.1f} {name}:{code.co_firstlineno} {code.co_qualname}")
    test_calls()


if __name__ == "__main__":
    main()
