"""Pins the private names of LangChain and LangGraph that the edges lean on; each message says what moved."""

import ast
import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableSequence
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphInterrupt
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

from langchain_runtime_authz.langgraph import private_api as private
from tests.attack._graphs import chain

THREAD = {"configurable": {"thread_id": "t"}}

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


def _graph(node: Any) -> Any:
    return chain({"node": node}, checkpointer=InMemorySaver())


def test_interrupt_id_is_the_one_that_langgraph_gives() -> None:
    """`interrupt_id` foretells the id of each of a task's interrupts, the first and the later ones."""
    foretold: list[str] = []

    def node(state: Any, config: RunnableConfig) -> Any:
        foretold.append(private.interrupt_id(config))
        interrupt("first")
        foretold.append(private.interrupt_id(config))
        interrupt("second")
        return {}

    graph = _graph(node)
    (first,) = graph.invoke({"messages": []}, THREAD)["__interrupt__"]
    assert foretold[-1] == first.id, "LangGraph gives a task's first interrupt another id than foretold"
    (second,) = graph.invoke(Command(resume="a"), THREAD)["__interrupt__"]
    assert foretold[-1] == second.id, "LangGraph gives a task's second interrupt another id than foretold"


def test_a_plain_answer_is_known_until_a_question_takes_it() -> None:
    """LangGraph goes on returning it, in the task and in the graphs that the task calls."""
    seen: list[object] = []

    def look(state: Any, config: RunnableConfig) -> None:
        seen.append((private.unused_answer(config), private.scratchpad_of(config).get_null_resume(False)))

    below = chain({"look": look}, checkpointer=False)

    def ask(state: Any, config: RunnableConfig) -> None:
        for _ in range(2):
            look(state, config)
            below.invoke(state)
            interrupt("Who?") if len(seen) in (2, 4) else None

    graph = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=InMemorySaver())
    graph.invoke({"messages": []}, THREAD)
    graph.invoke(Command(resume="bob"), THREAD)
    assert seen == [(None, None)] * 2 + [("bob", "bob")] * 2 + [(None, "bob")] * 2


def test_a_graph_is_known_as_its_callbacks_are_set_up() -> None:
    """It, what it is resumed with and the checkpoint that was named stand in the frame of `stream` and `astream` alone."""
    from langchain_core.tracers import context

    seen: list[object] = []

    class Hook:
        def get(self) -> None:
            self._look()

        def _look(self) -> None:
            seen.append(private.started_graph())

    hook: Any = Hook()
    context.register_configure_hook(hook, inheritable=False)

    def node(state: Any) -> Any:
        interrupt("question")
        return {}

    graph = _graph(node)
    for go in (graph.invoke, lambda *args: asyncio.run(graph.ainvoke(*args))):
        seen.clear()
        config = {"configurable": {"thread_id": str(go)}}
        go({"messages": []}, config)
        assert [s for s in seen if s is not None] == [(graph, None, str(go), None)], "repair langgraph/middleware.py"
        place = graph.get_state(config).config
        seen.clear()
        go(Command(resume="plain"), config)
        go(Command(resume="plain"), place)
        found = [s for s in seen if s is not None]
        ident = place["configurable"]["checkpoint_id"]
        assert found == [(graph, "plain", str(go), None), (graph, "plain", str(go), ident)], "repair langgraph/middleware.py"
    context._configure_hooks.pop()


def test_a_model_says_its_name_and_provider() -> None:
    """What LangChain puts into a call's metadata, asked before the call."""
    from langchain_core.language_models import FakeListChatModel

    class Named(FakeListChatModel):
        model: str = "m-1"

    model = Named(responses=["x"])
    seen: list[Any] = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            seen.append(kwargs["metadata"])

    model.invoke("x", {"callbacks": [Watch()]})
    assert private.model_params(model) == (seen[0]["ls_model_name"], seen[0]["ls_provider"]) == ("m-1", "named")
    assert private.model_params(model.bind(stop=["x"])) == ("m-1", "named")
    assert private.model_params(object()) == ("object", None)


def test_where_a_child_keeps_its_state() -> None:
    """By the task that calls it; with a memory of its own, by the node alone."""
    lender = InMemorySaver()
    lent = {"thread_id": "t", "checkpoint_ns": "tools:1|pay:2", "__pregel_checkpointer": lender, "__pregel_task_id": "2"}
    builder = StateGraph(MessagesState).add_node("a", lambda state: {}).add_edge(START, "a")
    for own, namespace, lasting in ((None, "tools:1|pay:2", False), (True, "tools|pay", True)):
        child, kept = builder.compile(checkpointer=own), {n: lent[n] for n in ("thread_id", "__pregel_checkpointer")}
        for number, there in enumerate((namespace, f"{namespace}|1")):
            place = private.place_below(child, {"configurable": lent}, number)
            assert place == (lender, {"configurable": {**kept, "checkpoint_ns": there}}, lasting)
    assert private.place_below(builder.compile(checkpointer=False), {"configurable": lent}) is None


def test_interrupt_without_a_question_pauses_its_task() -> None:
    """`GraphInterrupt(())` pauses a task without asking: the others' one question is answered by a plain resume."""
    entered: list[str] = []

    def asking(state: Any) -> Any:
        entered.append(interrupt("x"))
        return {}

    answered: list[bool] = []

    def waiting(state: Any) -> Any:
        if not answered:
            raise GraphInterrupt(())
        entered.append("waited")
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("asking", asking)
    builder.add_node("waiting", waiting)
    builder.add_edge(START, "asking")
    builder.add_edge(START, "waiting")
    graph = builder.compile(checkpointer=InMemorySaver())
    assert len(graph.invoke({"messages": []}, THREAD)["__interrupt__"]) == 1
    answered.append(True)
    graph.invoke(Command(resume="a"), THREAD)
    assert sorted(entered) == ["a", "waited"], "a task paused by GraphInterrupt(()) is not entered again on a plain resume"


def test_graph_runs_what_its_nodes_are_bound_to() -> None:
    """A node's `bound`, exchanged in place on a compiled graph, is what runs; its cache can be reset."""
    graph = _graph(lambda _: {"messages": [AIMessage("old")]})
    node = graph.nodes["node"]
    assert isinstance(graph, Pregel) and isinstance(node, private.PregelNode)
    assert node.bound is not private.DEFAULT_BOUND
    assert graph.nodes["__start__"].bound is private.DEFAULT_BOUND or graph.nodes["__start__"].bound is not None
    assert node.node is not None
    node.bound = private.RunnableCallable(lambda _: {"messages": [AIMessage("new")]}, name="node")
    private.reset_node(node)
    state = graph.invoke({"messages": []}, THREAD)
    assert state["messages"][-1].content == "new", "a compiled graph no longer runs PregelNode.bound: nodes are not gated"


def test_the_config_parameter_of_a_tools_code() -> None:
    """Found by its annotation, under any name."""

    def function(text: str, how: RunnableConfig) -> str:
        return text

    assert private.config_parameter(function) == "how"
    assert private.config_parameter(lambda text: text) is None
