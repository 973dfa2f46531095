"""Count the functions that protection adds: the same number on every machine, busy or idle.

`python -m tests.gates.test_calls` prints, of one tool call, how often each function is called beyond the plain call.
"""

from __future__ import annotations

import gc
import json
import subprocess
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

ROOT = Path(__file__).parents[2]
PACKAGE = str(Path(langchain_runtime_authz.__file__).parent)
BUDGETS = {"tool call": 125, "node": 58, "create_agent turn": 326, "root entry": 287}  # Python functions
LIMITS = {**BUDGETS, "tool call, C": 228}
WAITING = {function.__code__ for function in vars(threading.Condition).values() if isinstance(function, FunctionType)}

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
    """Count every call of this thread, and of those that it starts, until the block ends.

    How often a thread waits for another depends on what else the machine does, so that is left out.
    """
    python, c = Counter[CodeType](), 0

    def watch(frame: Any, event: str, _argument: Any) -> None:
        nonlocal c
        if frame.f_code in WAITING:
            return
        if event == "call":
            python[frame.f_code] += 1
        elif event == "c_call":
            c += 1

    gc.disable()  # a collection calls what waits for the end of an object
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        gc.enable()
        sys.setprofile(None)
        threading.setprofile(None)
        into.append(Calls(python, c))


def added(sides: dict[str, list[Calls]]) -> tuple[int, int]:
    """Return the counts of Python and of C that protection adds."""
    plain, protected = sides["plain"][-1], sides["protected"][-1]
    return protected.python.total() - plain.python.total(), protected.c - plain.c


def tool_call(a_tool: BaseTool = book) -> dict[str, list[Calls]]:
    """Count what one permitted call calls in its ToolNode, plain and protected."""
    seen: list[Calls] = []
    pair = Pair(lambda script: loop_graph(script, 1, a_tool, lambda: counted(seen)), StaticPDP(permit=True))
    sides: dict[str, list[Calls]] = {}
    for side in ("plain", "protected") * 2:  # the first round fills the caches
        seen.clear()
        out = pair.invoke(side, MORE + 1)
        assert out["messages"][-2].status == "success"
        sides[side] = list(seen)
    return sides


def typed(account, amount, note=""):
    return "booked"


typed.__annotations__ = {"account": str, "amount": float, "note": str, "return": str}


def turn(build: Callable[..., Any]) -> tuple[float, float]:
    """Count the functions of Python that one turn adds, and that an invoke adds apart from its turn."""
    pair = Pair(build, StaticPDP(permit=True))
    more = {}
    for turns in (1, MORE + 1):
        sides = dict[str, list[Calls]](plain=[], protected=[])
        for side in ("plain", "protected") * 2:  # the first round fills the caches
            with counted(sides[side]):
                pair.invoke(side, turns)
        more[turns] = added(sides)[0]
    one = (more[MORE + 1] - more[1]) / MORE
    return one, more[1] - one


def steps() -> dict[str, float]:
    """Return the functions that each step adds."""
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider), "an SDK is set up: spans would be counted"
    call = tool_call()
    python, c = added(call)
    node, entry = turn(node_graph)
    agent, _ = turn(agent_graph)
    # LangChain reads the annotations of a plain tool in each call; that costs more if they are texts, as here.
    types = StructuredTool.from_function(typed, name="book", description=book.description)
    other, other_c = added(tool_call(types))
    ours = {code for code in call["protected"][-1].python if code.co_filename.startswith(PACKAGE)}
    print(f"tool call, annotations that are types: {other:.0f} Python functions, {other_c:.0f} C functions added")
    print(f"tool call: enters {len(ours)} functions in {len({code.co_filename for code in ours})} files of the package")
    return {"tool call": python, "tool call, C": c, "node": node, "create_agent turn": agent, "root entry": entry}


def nothing() -> None:
    """Do what waste does."""


def fresh() -> BaseTool:
    """Return a tool like `book`, of a function that nothing has looked at."""
    func = FunctionType(book.func.__code__, book.func.__globals__, "book", book.func.__defaults__)
    func.__annotations__ = dict(book.func.__annotations__)
    return StructuredTool.from_function(func, name="book", description=book.description)


def wasted(c: bool) -> float:
    """Return the count of a tool call with a tenth more on its road, of Python or of C."""
    more = round(added(tool_call(fresh()))[c] / 10)
    entered = ToolExecution.begin

    def waste(self: ToolExecution, *args: Any) -> Any:
        for _ in range(more):
            len("") if c else nothing()
        return entered(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToolExecution, "begin", waste)
        return added(tool_call(fresh()))[c]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return the counts of a process of their own: caches and patches that other tests leave would change them."""
    command = [sys.executable, "-m", "tests.gates.test_calls", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_calls(found: dict[str, Any]) -> None:
    """Each step keeps to its budget."""
    for name, limit in LIMITS.items():
        print(f"{name}: {found[name]:.0f} functions added, budget {limit}")
    assert {name: found[name] for name, limit in LIMITS.items() if found[name] > limit} == {}


def test_an_invoke_leaves_no_cycles() -> None:
    """Memory is freed at once: the garbage collector finds nothing."""
    pair = Pair(agent_graph, StaticPDP(permit=True))
    pair.invoke("protected", 2)
    gc.collect()
    with counted([]):  # no collection runs meanwhile
        pair.invoke("protected", 2)
        assert gc.collect() == 0


@pytest.mark.parametrize("name", ["tool call", "tool call, C"])
def test_the_gate_catches_a_tenth_more(found: dict[str, Any], name: str) -> None:
    """Planted on the road of each call: the budgets leave less room than that."""
    assert found["wasted"][name] > LIMITS[name]


def main(as_json: bool = False) -> None:
    """Print the functions of one tool call, or the counts that the tests hold against their budgets."""
    if as_json:
        print(json.dumps(steps() | {"wasted": {"tool call": wasted(False), "tool call, C": wasted(True)}}))
        return
    call, more = tool_call(), Counter[CodeType]()
    for sample in call["protected"]:
        more.update(sample.python)
    for sample in call["plain"]:
        more.subtract(sample.python)
    for code, count in sorted(more.items(), key=lambda e: (e[0].co_filename, e[0].co_firstlineno)):
        if round(count / MORE, 1):
            name = code.co_filename.removeprefix(PACKAGE).rpartition("site-packages/")[2]
            print(f"{count / MORE:6.1f} {name}:{code.co_firstlineno} {code.co_qualname}")
    print(*(f"{name}: {count:.0f}" for name, count in steps().items()), sep="\n")


if __name__ == "__main__":
    main("--json" in sys.argv)
