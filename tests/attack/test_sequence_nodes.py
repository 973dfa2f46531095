"""Nodes that are LCEL sequences, tools or plain functions: the gate is met, once, whatever LangGraph makes of them."""

import operator
from itertools import product

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.channels import EphemeralValue, LastValue
from langgraph.pregel import NodeBuilder, Pregel

from langchain_runtime_authz import AuthzMiddleware
from tests.tier import chosen

from ._kit import *


class State(TypedDict):
    steps: Annotated[list[str], operator.add]


def _sequence(ran: list[str]) -> Any:
    first = RunnableLambda(lambda state: ran.append("first") or state)
    return first | RunnableLambda(lambda state: ran.append("second") or {"steps": ["done"]})


def _lcel(ran: list[str]) -> Any:
    return chain({"act": _sequence(ran)}, State, name="lcel")


def _pregel(ran: list[str]) -> Any:
    node = NodeBuilder().subscribe_only("steps").do(_sequence(ran)).do(lambda out: out["steps"]).write_to("out")
    return Pregel(
        nodes={"act": node}, channels={"steps": EphemeralValue(list), "out": LastValue(list)}, input_channels="steps",
        output_channels="out",
    )


def _tool(ran: list[str]) -> Any:
    act = a_tool("act", lambda steps: [ran.extend(["first", "second"]), {"steps": ["done"]}][1], steps=list[str])
    return chain({"act": act}, State, name="tool")


def _function(ran: list[str]) -> Any:
    """A function that is only synchronous: its `ainvoke` goes on to its `invoke`."""

    def act(state: State, *, config: RunnableConfig) -> dict[str, list[str]]:
        ran.extend(["first", "second"])
        return {"steps": ["done"]}

    return chain({"act": RunnableCallable(act, name="act")}, State, name="function")


GRAPHS = {"lcel": _lcel, "pregel": _pregel, "tool": _tool, "function": _function}
COPIES = {
    "itself": lambda g: g, "copy": lambda g: g.copy(), "with_config": lambda g: g.with_config({"tags": ["x"]}),
    "validated": lambda g: g.validate(),
}
WAYS = {
    "invoke": lambda g, v: g.invoke(v), "ainvoke": lambda g, v: asyncio.run(g.ainvoke(v)),
    "stream": lambda g, v: list(g.stream(v)), "astream": lambda g, v: asyncio.run(_last(g, v)),
    "astream_events": lambda g, v: asyncio.run(_events(g, v)),
}


async def _last(graph: Any, given: Any) -> Any:
    return [chunk async for chunk in graph.astream(given)]


async def _events(graph: Any, given: Any) -> Any:
    return [event async for event in graph.astream_events(given, version="v2")]


def _given(kind: str) -> Any:
    return ["x"] if kind == "pregel" else {"steps": ["x"]}


@pytest.mark.parametrize(("copied", "way"), chosen([*product(COPIES, WAYS)], lambda case: case[0] == "itself" or case[1] in ("invoke", "ainvoke")))
@pytest.mark.parametrize("kind", GRAPHS)
def test_gate_of_a_sequence(kind: str, copied: str, way: str, ran: Any) -> None:
    """Entered by one decision; denied, no step of it runs. Without a gate it runs."""
    for permit in (True, False):
        pdp = StaticPDP(lambda r, permit=permit: permit or r.action.name != "node/enter")
        authz = authz_with(pdp)
        graph = COPIES[copied](authz.protect(GRAPHS[kind](ran)))
        with authz.run(subject="alice", task="x"):
            if permit:
                WAYS[way](graph, _given(kind))
            else:
                with pytest.raises(AuthzDenied):
                    WAYS[way](graph, _given(kind))
        assert [r.resource.id for r in pdp.requests if r.action.name == "node/enter"] == ["act"]
        assert ran == ["first", "second"]
    WAYS[way](GRAPHS[kind](ran), _given(kind))
    assert ran == ["first", "second"] * 2


def test_events_of_a_node_with_fallbacks() -> None:
    """A tool below it has the parents and tags that it has in the plain graph, which our middleware elsewhere leaves alone."""
    AuthzMiddleware(RuntimeAuthz())

    def play(authz: Any) -> list[Any]:
        look = StructuredTool.from_function(lambda x: x, name="look", description="Look.")
        tools = ToolNode([look]).with_fallbacks([RunnableLambda(lambda state: state)], exception_key="error")
        call = AIMessage("", id="a", tool_calls=[{"name": "look", "args": {"x": "1"}, "id": "c"}])
        graph: Any = chain({"model": lambda state: {"messages": [call]}, "tools": tools}, MessagesState, name="fallbacks")
        with authz.run(subject="alice", task="x") if authz else nullcontext():
            events = WAYS["astream_events"](authz.protect(graph) if authz else graph, human())
        return [(e["event"], e["name"], len(e["parent_ids"]), e["tags"]) for e in events]

    assert (plain := play(None)) == play(authz_with(StaticPDP(True)))
    assert ("on_tool_start", "look", 3, []) in plain


@pytest.mark.parametrize("kind", ["parallel", "fallbacks", "parsed"])
def test_a_node_streams_its_parts_and_its_whole_output(kind: str) -> None:
    """Under `astream_events`: with the chunks of the plain graph, and the same state at the end."""
    both = RunnableParallel(steps=lambda state: ["done"], text=lambda state: "x")
    nodes = {
        "parallel": both,
        "fallbacks": both.with_fallbacks([RunnableLambda(lambda state: {"text": "lost"})]),
        "parsed": RunnableLambda(lambda state: "what?") | replying() | StrOutputParser() | (lambda said: {"text": said}),
    }

    class Written(State):
        text: str

    def play(authz: Any) -> list[Any]:
        graph: Any = chain({"act": nodes[kind]}, Written, name="streams")
        with authz.run(subject="alice", task="x") if authz else nullcontext():
            events = WAYS["astream_events"](authz.protect(graph) if authz else graph, {"steps": [], "text": ""})
        parts = [(e["name"], sorted(repr(e["data"]["chunk"]))) for e in events if e["event"] in ("on_chain_stream", "on_parser_stream")]
        return [*sorted(part for part in parts if part[0] != "RunnableSequence"), events[-1]["data"]["output"]]

    assert (plain := play(None)) == play(authz_with(StaticPDP(True)))
    assert plain[-1]["text"] != "lost" and len(plain) > 3


def test_protecting_a_sequence_twice(pdp: Any, authz: Any) -> None:
    """Changes nothing: one gate."""
    told(authz, authz.protect(authz.protect(_lcel([])).copy()), {"steps": []}, task="x")
    assert len([r for r in pdp.requests if r.action.name == "node/enter"]) == 1
