"""Pins the private names of LangChain and LangGraph that the edges lean on; each message says what moved."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from langchain_runtime_authz.langgraph import private_api as private

# The methods of a tool node that the package overrides, and the members that it only reads.
PARAMETERS = {
    "_func": ["input", "config", "runtime"], "_afunc": ["input", "config", "runtime"],
    "_run_one": ["call", "input_type", "tool_runtime"], "_arun_one": ["call", "input_type", "tool_runtime"],
    "_execute_tool_sync": ["request", "input_type", "config"],
    "_execute_tool_async": ["request", "input_type", "config"], "_extract_state": ["input", "config"],
    "_inject_tool_args": ["tool_call", "tool_runtime", "tool"], "_validate_tool_call": ["call"],
}
READ = ("_parse_input", "_tools_by_name", "_injected_args", "_messages_key", "_wrap_tool_call", "_awrap_tool_call")
TOOL = ("_run", "_arun", "_parse_input", "_injected_args_keys")
A_TOOL = StructuredTool.from_function(lambda x: x, name="x", description="x")


def sources() -> Iterator[tuple[Path, ast.AST]]:
    """Yield each node of the package's code but `private_api.py`'s."""
    for path in Path(private.__file__).parents[1].rglob("*.py"):
        if path.name != "private_api.py":
            yield from ((path, node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_nothing_private_is_used_elsewhere() -> None:
    """Only `private_api.py` imports private names of LangChain and LangGraph; each member that is used is listed here."""
    theirs = {name for held in (ToolNode([]), A_TOOL, StateGraph(dict)) for name in (*dir(held), *vars(held))}
    theirs -= {*PARAMETERS, *READ, *TOOL, "_asdict", "_replace", "_get_ls_params"}
    found = []
    for path, node in sources():
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("langgraph", "langchain_core", "langchain"):
            parts = [*(node.module or "").split("."), *(a.name for a in node.names)]
            found += [f"{path}: {'.'.join(parts)}"] if any(p.startswith("_") for p in parts) else []
        elif isinstance(node, ast.Attribute) and path.parent.name == "langgraph" and node.attr in theirs:
            private_ = node.attr.startswith("_") and not node.attr.startswith("__")
            found += [f"{path}:{node.lineno}: {node.attr}"] if private_ else []
    assert found == [], "private names belong into langgraph/private_api.py, where an upgrade that moves them is noticed"


def test_overridden_names_exist() -> None:
    """On the class, or on its instances."""
    gone = [name for held, names in ((ToolNode([]), READ), (A_TOOL, TOOL)) for name in names if not hasattr(held, name)]
    assert [*gone, *({"_get_ls_params"} - {*dir(BaseChatModel)})] == []


@pytest.mark.parametrize("method", PARAMETERS)
def test_parameters_of_tool_node_methods(method: str) -> None:
    """ToolNode calls its own hooks with the parameters that our overrides take."""
    got = list(inspect.signature(getattr(ToolNode, method)).parameters)[1:]
    assert got == PARAMETERS[method], f"ToolNode.{method} takes {got} now: repair langgraph/node_gate.py"


@pytest.mark.parametrize(("method", "inner"), [
    ("_func", "_run_one"), ("_afunc", "_arun_one"), ("_run_one", "_execute_tool_sync"), ("_arun_one", "_execute_tool_async"),
])
def test_tool_node_executes_through_its_hooks(method: str, inner: str) -> None:
    """Else calls, or tools that middleware brings along, would run undecided."""
    assert f"self.{inner}" in inspect.getsource(getattr(ToolNode, method)), f"{method} no longer calls {inner}"


def test_tool_node_parses_its_input_into_calls_and_kind() -> None:
    """`_parse_input` gives the calls of the last AI message by identity, and the input's kind."""
    node = ToolNode([])
    calls = [{"name": "x", "args": {}, "id": "1", "type": "tool_call"}]
    message = AIMessage("", tool_calls=calls)
    for given, kind in (({"messages": [message]}, "dict"), ([message], "list"), (calls, "tool_calls")):
        parsed, got = node._parse_input(given)
        assert got == kind, f"ToolNode._parse_input says {got!r} for a {kind!r} input"
        assert len(parsed) == 1
        source = message.tool_calls if kind != "tool_calls" else calls
        assert parsed[0] is source[0], "ToolNode copies its calls now: verdicts are kept by identity"


def test_tool_node_binds_its_functions_when_it_is_made() -> None:
    """`func` and `afunc` of a RunnableCallable are what runs: the gate binds them anew."""
    node = ToolNode([])
    assert node.func == node._func, "ToolNode.func is no longer _func: repair langgraph/node_gate._equip"
    assert node.afunc == node._afunc, "ToolNode.afunc is no longer _afunc: repair langgraph/node_gate._equip"
    assert node._tools_by_name is node.tools_by_name, "tools_by_name is a copy now: swapping guarded tools in has no effect"


def test_sequences_are_taken_apart_by_their_steps() -> None:
    """LangGraph joins a node's bound with its writers, and asks a sequence for `steps` where it does."""

    class Whole(RunnableSequence):
        steps = property(lambda self: ["whole"])  # type: ignore[assignment]

    one = RunnableLambda(lambda x: x)
    sequence = one | one
    object.__setattr__(sequence, "__class__", Whole)
    assert private.RunnableSeq(sequence, one).steps[0] == "whole", "repair langgraph/node_gate._gated_class"


@pytest.mark.parametrize("method", ["run", "arun"])
def test_parameters_of_tools(method: str) -> None:
    """`BaseTool.run` takes `config` and `tool_call_id` by name, and goes through `_parse_input` and `_run`."""
    parameters = inspect.signature(getattr(BaseTool, method)).parameters
    for name in ("config", "tool_call_id"):
        assert name in parameters, f"BaseTool.{method} no longer takes {name}"
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, f"{name} of BaseTool.{method} may be positional now"
    assert next(iter(list(parameters)[1:])) == "tool_input"


@pytest.mark.parametrize("own_arun", [False, True])
def test_overwritten_names(own_arun: bool) -> None:
    """Only where neither form of a tool can see what the model wrote under the name."""

    class Plain(BaseTool):
        name: str = "plain"
        description: str = "Plain."
        args_schema: Any = {"title": "plain", "description": "Plain.", "type": "object", "properties": {}}

        def _run(self, config: RunnableConfig, **kwargs: Any) -> Any:
            return config

    class WithArun(Plain):
        async def _arun(self, **kwargs: Any) -> Any:
            return kwargs

    tool_ = WithArun() if own_arun else Plain()
    assert private.injected_names(tool_) == (set() if own_arun else {"config"})
    assert tool_.run({"config": "the model's"}) is None


def test_tools_without_arguments() -> None:
    """A tool with an empty schema receives nothing, whatever it is sent."""
    got: list[Any] = []

    @tool
    def bare() -> str:
        """Bare."""
        got.append(1)
        return "x"

    assert private.takes_no_arguments(bare.args_schema)
    bare.invoke({"evil": 1})
    assert got == [1]


def test_the_next_number_is_read_without_counting_up() -> None:
    """LangGraph's counter can only be called. If its inside moves, no second question of a `task` is asked."""
    seen = []

    def node(_: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        counter = private.scratchpad_of(config).interrupt_counter
        for _each in range(3):
            seen.append((private.next_number(config), private.next_number(config), counter()))
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.compile().invoke({"messages": []})
    assert seen == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
