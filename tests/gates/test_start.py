"""Count the work of a start: what is imported, and what is derived of the tools of a graph that is built anew."""

from __future__ import annotations

import gc
import subprocess
import sys
import tomllib
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.tools import BaseTool, base, structured, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from packaging.requirements import Requirement

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.langgraph import tool_facts
from langchain_runtime_authz.langgraph.tool_guard import guard_in_place
from langchain_runtime_authz.testing import StaticPDP
from tests.benchmarks.dependencies import WHY
from tests.benchmarks.per_call import TREE
from tests.gates.test_calls import Calls, counted

TOOLS = 60


def add(a: int, b: int = 0, note: str = "") -> int:
    """Add two numbers."""
    return a + b


def made(names: list[str]) -> list[BaseTool]:
    """Make tools of one function, each with a schema class of its own."""
    return [tool(name)(add) for name in names]


def graph(tools: list[BaseTool]) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "tools")
    builder.add_edge("tools", END)
    return builder.compile(checkpointer=True)


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the tools whose JSON schema was derived, which is the dearest part of a start."""
    seen: list[str] = []
    convert = tool_facts.convert_to_openai_tool
    monkeypatch.setattr(tool_facts, "convert_to_openai_tool", lambda t: seen.append(t.name) or convert(t))
    return seen


@pytest.mark.parametrize("fields", [{}, {"critical": {"a": "amount"}}], ids=["plain", "critical"])
def test_no_schema_is_derived_of_tools_that_look_alike(derived: list[str], fields: dict[str, Any]) -> None:
    """Neither at the first graph, nor for its tools again, nor for tools made anew of the same functions."""
    names = [f"add_{i}" for i in range(TOOLS)]
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles={n: ToolProfile(effect="read", **fields) for n in names})
    tools = made(names)
    for these in (tools, tools, made(names)):
        authz.protect(graph(these))
    assert derived == []
    assert all(authz.profiles.of(t).declared for t in made(names))


def built_anew() -> tuple[float, float]:
    """Return the Python and C calls for each tool of a graph that is protected once more with the same tools."""
    names, counts = [f"add_{i}" for i in range(TOOLS)], list[Calls]()
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles={n: ToolProfile(effect="read") for n in names})
    tools = made(names)
    for these in (graph(tools), graph(tools)):
        with counted(counts):
            authz.protect(these)
    return counts[1].python.total() / TOOLS, counts[1].c / TOOLS


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the budgets are counts of CPython 3.11")
def test_a_graph_that_is_built_anew_costs_little() -> None:
    """In a process of its own: each kind of model that another test has loaded is looked for too."""
    code = "from tests.gates.test_start import built_anew; print(*built_anew())"
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, stdout=subprocess.PIPE, text=True, check=True)
    python, c = map(float, done.stdout.split())
    assert (python <= 134, c <= 241) == (True, True), (python, c)


def _described(text: str) -> Callable[..., Any]:
    return lambda t: t.model_copy(update={"description": text})


def _schema(**changed: Any) -> Callable[..., Any]:
    """Return what gives a tool a copy of its schema class, changed."""

    def change(t: BaseTool) -> BaseTool:
        fields = {n: (f.annotation, f) for n, f in t.args_schema.model_fields.items()}
        from pydantic import create_model

        return t.model_copy(update={"args_schema": create_model(t.name, **{**fields, **changed})})

    return change


@pytest.mark.parametrize(("change", "same"), [
    (_schema(), True), (_described("Add."), False), (_schema(b=(int, 1)), False),
    (_schema(b=(int, False)), False),  # equal to 0, and shown as another value
    (_schema(b=(float, 0)), False), (_schema(b=(int, ...)), False), (_schema(more=(str, "")), False),
])
def test_a_tool_that_looks_otherwise_is_unprofiled(change: Callable[[BaseTool], BaseTool], same: bool) -> None:
    """Identity of the parts only spares the digest; it decides nothing else."""
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles={"add": ToolProfile(effect="read")})
    (first,) = made(["add"])
    assert authz.profiles.of(first).declared
    assert authz.profiles.of(change(first)).declared is same
    assert authz.profiles.of(first).declared


def test_nothing_keeps_the_schema_classes_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that makes tools anew for each request does not grow by them."""
    monkeypatch.setattr(structured, "create_schema_from_function", base.create_schema_from_function)  # not what tests keep
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True), profiles={"add": ToolProfile(effect="read")})
    authz.protect(graph(made(["add"])))
    gone = []
    for _ in range(3):
        (again,) = made(["add"])
        authz.protect(graph([again]))
        gone.append(weakref.ref(again.args_schema))
        del again
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


@pytest.mark.parametrize("guard", [RuntimeAuthz(pdp=StaticPDP(permit=True)).guard, guard_in_place])
def test_nothing_keeps_the_tool_classes_of_a_request(guard: Callable[[BaseTool], object]) -> None:
    """Also not the class that guards them."""

    class Add(BaseTool):
        name: str = "add"
        description: str = "Add."

        def _run(self, a: int) -> int:
            return a

    guard(Add())
    gone = weakref.ref(Add)
    del Add
    gc.collect()
    assert gone() is None


def loaded(code: str) -> set[str]:
    """Return the modules that a new process has loaded after `code`."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{code}\nimport sys; print(*sys.modules)"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    return set(run.stdout.split())


UNUSED = {"aiohttp", "httpx", "opa_client", "wasmtime", "typer", "yaml", "cryptography.x509", "langchain", "langchain_core.decisions",
          "langchain_runtime_authz.audit.explanation"}  # fmt: skip


def test_an_import_loads_nothing_that_only_some_use() -> None:
    """Beyond what LangGraph loads itself; and no model is built before it is needed."""
    host = loaded("import langgraph.graph, langgraph.prebuilt, langchain_core.tools, langgraph.checkpoint.memory")
    ours = loaded("from langchain_runtime_authz import RuntimeAuthz") - host
    assert not {name for name in ours if name in UNUSED or name.partition(".")[0] in UNUSED}
    built = loaded(
        "from langchain_runtime_authz import RuntimeAuthz, evaluation\n"
        "print(*(n for n, m in vars(evaluation).items() if getattr(m, '__pydantic_complete__', False)))"
    )
    assert {"Context", "EvaluationRequest", "CallContext"}.isdisjoint(built)


def test_help_loads_nothing_that_a_command_needs() -> None:
    """A command loads its own parts when it runs, so `--help` and each start are quick."""
    assert {"pydantic", "yaml", "langchain_core", "langgraph"}.isdisjoint(loaded("from langchain_runtime_authz.cli import app"))


def test_each_dependency_says_why() -> None:
    """Beyond LangGraph: it is in the table of dependencies with its reason, and so is each extra."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    named = {Requirement(text).name for text in project["dependencies"]} - {"langchain-core", "langgraph", "langgraph-prebuilt"}
    assert named | set(project["optional-dependencies"]) == set(WHY)
