"""Which call is which: equal ids, equal messages, other orders, equal names. What runs was permitted, as often as planned."""

import asyncio
import threading
from collections import Counter
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import loop

FEW = settings(deadline=None, max_examples=25, phases=[Phase.explicit, Phase.generate])
THREAD = {"configurable": {"thread_id": "t"}}
PROFILES = {
    "write": ToolProfile(effect="write", sink="internal"), "pay": ToolProfile(effect="pay", sink="external"),
    "read": ToolProfile(effect="read", sink="none"),
}
# Few of everything, so that calls are often alike in all but one.
calls = st.builds(
    lambda name, text, ident: {"name": name, "args": {"text": text}, "id": ident, "type": "tool_call"},
    st.sampled_from(["write", "pay", "read"]), st.sampled_from(["x", "y", "denied"]), st.sampled_from(["1", "2"]),
)
plans = st.lists(calls, min_size=1, max_size=5)
Ran = list[tuple[str, str]]


def _tools(ran: Ran) -> list[BaseTool]:
    def named(name: str) -> BaseTool:
        @tool(name)
        def act(text: str) -> str:
            """Act."""
            ran.append((name, text))
            return f"{name} {text}"

        return act

    return [named(n) for n in PROFILES]


def _authz() -> tuple[RuntimeAuthz, StaticPDP]:
    permits = lambda r: r.action.name != "tools/call" or r.context.call.args != {"text": "denied"}
    pdp = StaticPDP(permits, deadline=60)
    return RuntimeAuthz(pdp=pdp, profiles=PROFILES), pdp


def _permitted(*planned: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    all_calls = [c for plan in planned for c in plan]
    return Counter((c["name"], c["args"]["text"]) for c in all_calls if c["args"]["text"] != "denied")


def _go(way: str, graph: Any, value: Any, config: Any = None) -> Any:
    return graph.invoke(value, config) if way == "sync" else asyncio.run(graph.ainvoke(value, config))


def _graph(kind: str, model: ScriptedChatModel, tools: list[BaseTool], **options: Any) -> Any:
    if kind == "agent":
        return create_agent(model, tools, **options)
    return loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode(tools), **options)


def _sending(said: AIMessage, route: Any, **nodes: Any) -> Any:
    """Return a graph that sends calls of one message to these nodes, as `route` says."""
    builder = StateGraph(MessagesState).add_node("agent", lambda _: {"messages": [said]}).add_edge(START, "agent")
    for name, node in nodes.items():
        builder.add_node(name, node).add_edge(name, END)
    return builder.add_conditional_edges("agent", route, [*nodes]).compile()


kinds = pytest.mark.parametrize("kind", ["hand", "agent"])
ways = pytest.mark.parametrize("way", ["sync", "async"])


@ways
@kinds
@FEW
@given(plan=plans)
def test_calls_of_one_message(kind: str, way: str, plan: list[dict[str, Any]]) -> None:
    """Each permitted call runs once, whatever its id; each call has an answer, a denied one an error."""
    ran: Ran = []
    authz, _ = _authz()
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=plan), AIMessage("done")])
    graph = authz.protect(_graph(kind, model, _tools(ran)))
    with authz.run(subject="alice", task="x"):
        state = _go(way, graph, {"messages": [HumanMessage("go")]})
    assert Counter(ran) == _permitted(plan)
    answers = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert sorted(m.tool_call_id for m in answers) == sorted(c["id"] for c in plan)
    assert sum(m.status == "error" for m in answers) == len(plan) - len(ran)


@ways
@FEW
@given(data=st.data(), plan=plans)
def test_calls_sent_in_another_order_and_again(way: str, data: st.DataObject, plan: list[dict[str, Any]]) -> None:
    """A node may send calls of a message in any order and twice: no call runs twice, none that was not planned."""
    order = data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=1, max_size=7))
    together = data.draw(st.booleans())
    ran: Ran = []
    authz, _ = _authz()

    def route(state: MessagesState) -> Any:
        made = state["messages"][-1].tool_calls  # type: ignore[union-attr]
        sent = [made[i] for i in order]
        return [Send("tools", sent)] if together else [Send("tools", [c]) for c in sent]

    graph = authz.protect(_sending(AIMessage("", tool_calls=plan), route, tools=ToolNode(_tools(ran))))
    with authz.run(subject="alice", task="x"):
        _go(way, graph, {"messages": [HumanMessage("go")]})
    side_effects = Counter(r for r in ran if r[0] != "read")  # a read may be repeated
    assert side_effects <= _permitted(plan)
    assert set(ran) <= set(_permitted([plan[i] for i in order]))


@ways
@kinds
@FEW
@given(first=plans, second=plans, within=st.booleans())
def test_reused_message_id(kind: str, way: str, first: list[Any], second: list[Any], within: bool) -> None:
    """A provider that reuses the id of a message: in a later turn its calls are new ones; within one, never more."""
    said = [AIMessage("", id="same", tool_calls=plan) for plan in (first, second)]
    done = AIMessage("done")
    script = [said[0], said[1], done] if within else [said[0], done, said[1], done]

    def built(ran: Ran) -> Any:
        return _graph(kind, ScriptedChatModel(script=script), _tools(ran), checkpointer=InMemorySaver())

    def played(graph: Any) -> None:
        # A message that takes the place of an older one leaves `create_agent` without a next node.
        with suppress(KeyError) if within and kind == "agent" else nullcontext():
            for text in ["go"] if within else ["go", "go on"]:
                _go(way, graph, {"messages": [HumanMessage(text)]}, THREAD)

    ran: Ran = []
    stock: Ran = []
    authz, _ = _authz()
    with authz.run(subject="alice"):
        played(authz.protect(built(ran)))
    played(built(stock))
    permitted = Counter(r for r in stock if r[1] != "denied")
    assert Counter(ran) <= permitted
    assert within or Counter(ran) == permitted


@ways
@FEW
@given(plan=plans, routes=st.lists(st.sampled_from(["one", "two"]), min_size=5, max_size=5), alike=st.booleans())
def test_equal_names_in_two_nodes(way: str, plan: list[dict[str, Any]], routes: list[str], alike: bool) -> None:
    """Each node runs its own tool, decided as that; a second tool of a name with another schema has no profile."""
    ran: list[tuple[str, str, str]] = []

    def tools(node: str) -> list[BaseTool]:
        def named(name: str) -> BaseTool:
            if alike or node == "one":

                @tool(name)
                def act(text: str) -> str:
                    """Act."""
                    ran.append((node, name, text))
                    return node

                return act

            @tool(name)
            def other(text: str, amount: int = 99) -> str:
                """Act otherwise."""
                ran.append((node, name, text))
                return node

            return other

        return [named(n) for n in PROFILES]
    profiled = lambda request: request.action.name != "tools/call" or request.resource.properties["profiled"]
    pdp = StaticPDP(profiled, deadline=60)
    authz = RuntimeAuthz(pdp=pdp, profiles=PROFILES)
    sent = lambda s: [Send(r, [c]) for r, c in zip(routes, s["messages"][-1].tool_calls, strict=False)]
    graph = _sending(AIMessage("", tool_calls=plan), sent, **{node: ToolNode(tools(node)) for node in ("one", "two")})
    with nullcontext() if alike else pytest.warns(UserWarning, match="without a profile"):
        authz.protect(graph)
    with authz.run(subject="alice", task="x"):
        _go(way, graph, {"messages": [HumanMessage("go")]})
    wanted = Counter((r, c["name"], c["args"]["text"]) for r, c in zip(routes, plan, strict=False) if alike or r == "one")
    assert Counter(ran) == wanted


@pytest.mark.parametrize("order", [[0, 1, 0, 1], [1, 1], [1, 0, 0, 1, 1]])
@ways
def test_a_call_sent_twice_runs_once_even_if_its_id_is_shared(way: str, order: list[int]) -> None:
    """A denied call and a permitted one of one id, each sent more than once, in one list."""
    plan = [{"name": "write", "args": {"text": text}, "id": "2", "type": "tool_call"} for text in ("denied", "x")]
    ran: Ran = []
    authz, _ = _authz()
    sent = lambda s: [Send("tools", [s["messages"][-1].tool_calls[i] for i in order])]
    graph = _sending(AIMessage("", tool_calls=plan), sent, tools=ToolNode(_tools(ran)))  # type: ignore[arg-type]
    with authz.run(subject="alice", task="x"):
        _go(way, authz.protect(graph), {"messages": [HumanMessage("go")]})
    assert ran == [("write", "x")]


class _SecondComes(BaseCallbackHandler):
    """Holds the tool that starts first, decided and not begun, until the second has been decided too."""

    run_inline = True

    def __init__(self) -> None:
        self.started: list[str] = []
        self.second = threading.Event()

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        self.started.append(str(kwargs["run_id"]))
        if len(self.started) > 1:
            self.second.set()
        else:
            self.second.wait(20)


@ways
@pytest.mark.parametrize("name", ["read", "write"])
def test_one_call_sent_twice_at_once(way: str, name: str) -> None:
    """Neither execution loses what was decided on it to the other: a read runs twice, a side effect once."""
    ran: Ran = []
    authz, _ = _authz()
    handler = _SecondComes()
    made = {"name": name, "args": {"text": "x"}, "id": "1", "type": "tool_call"}
    twice = lambda s: [Send("tools", [s["messages"][-1].tool_calls[0]] * 2)]
    graph = authz.protect(_sending(AIMessage("", tool_calls=[made]), twice, tools=ToolNode(_tools(ran))))  # type: ignore[list-item]
    if name == "write":
        handler.second.set()  # the second does not start: it waits for nobody
    with authz.run(subject="alice", task="x"):
        state = _go(way, graph, {"messages": [HumanMessage("go")]}, {"callbacks": [handler]})
    assert ran == [(name, "x")] * (2 if name == "read" else 1)
    # A side effect's other answer is its result, or that it is under way.
    statuses = [m.status for m in state["messages"][2:]]
    assert statuses.count("success") >= len(ran)
