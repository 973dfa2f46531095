"""Coverage finds exactly what was planted into generated graphs: no miss, no false alarm."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import CachePolicy
from pydantic import SecretStr

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import chain

PLANTS = ("tool", "function", "provider tool", "remote graph", "secret", "agent", "builder", "cached node", "node")
FORMS = ("hand-written", "create_agent")
ROADS = ("node", "closure", "tool", "sequence", "method")  # by which a child is held


@dataclass(frozen=True)
class Spec:
    """A graph to be made: its form, what is planted into it, and its children by road."""

    form: str
    plants: tuple[str, ...]
    children: tuple[tuple[str, Spec], ...] = ()


@st.composite
def specs(draw: st.DrawFn, depth: int = 2) -> Spec:
    form = draw(st.sampled_from(FORMS))
    plants = tuple(draw(st.lists(st.sampled_from(PLANTS), max_size=2, unique=True)))
    children = []
    if depth:
        for _ in range(draw(st.integers(0, 2))):
            roads = ROADS if form == "hand-written" else ("tool",)
            children.append((draw(st.sampled_from(roads)), draw(specs(depth=depth - 1))))
    return Spec(form, plants, tuple(children))


def plain_tool(name: str, held: Any = ()) -> StructuredTool:
    act = lambda x: str(held)
    return StructuredTool.from_function(act, name=name, description="x")


class Caller:
    """An object whose method calls an agent."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def step(self, state: MessagesState) -> dict[str, Any]:
        return self.agent.invoke(state)


@dataclass
class Planted:
    """Makes graphs from specs, and remembers what coverage has to say: `(kind, agent, name)`."""

    expected: set[tuple[str, str, str]] = field(default_factory=set)
    count: int = 0
    graphs: list[tuple[str, Any, tuple[str, ...]]] = field(default_factory=list)
    beyond_reach: set[str] = field(default_factory=set)

    def graph(self, spec: Spec) -> Any:
        self.count += 1
        label = f"agent_{self.count}"
        tools = [plain_tool(f"tool_{label}"), plain_tool(f"other_{label}")]
        held: list[Any] = [1, "text", {"type": "text", "text": "x"}, [{"type": "text"}]]
        bound: list[Any] = list(tools)
        for plant in spec.plants:
            self._plant(plant, label, tools, held, bound)
        made = self._hand_written if spec.form == "hand-written" else self._agent
        graph = made(label, spec, tools, held, bound)
        self.graphs.append((label, graph, spec.plants))
        return graph

    def _plant(self, plant: str, label: str, tools: list[Any], held: list[Any], bound: list[Any]) -> None:
        name = f"{plant}_{label}".replace(" ", "_")
        if plant == "tool":
            held.append(plain_tool(name))
        elif plant == "function":
            held.append({"call": tools[0].func})
            name = tools[0].name
        elif plant == "provider tool":
            bound.append({"type": name})
        elif plant == "remote graph":
            held.append(RemoteGraph(name, url="http://127.0.0.1:9"))
        elif plant == "secret":
            tools.append(plain_tool(name, SecretStr("correct-horse-battery")))
            bound.append(tools[-1])
        elif plant == "agent":
            held.append(SimpleNamespace(deep=SimpleNamespace(one=self._hidden(name))))
            self.expected |= {("agent", name, name), ("node", name, "step")}
            return
        elif plant == "builder":
            held.append(StateGraph(MessagesState))
            plant, name = "agent", "StateGraph"
        else:
            return  # of the finished graph
        self.expected.add((plant, label, name))

    @staticmethod
    def _hidden(name: str) -> Any:
        return chain({"step": lambda state: {}}, name=name)

    def _children(self, spec: Spec) -> list[tuple[str, Any]]:
        return [(road, self.graph(child)) for road, child in spec.children]

    def _hand_written(self, label: str, spec: Spec, tools: list[Any], held: list[Any], bound: list[Any]) -> Any:
        model = ScriptedChatModel(script=[])

        def agent(state: MessagesState) -> dict[str, Any]:
            return {"messages": [model.bind_tools(bound).invoke(state["messages"])]}

        def work(state: MessagesState) -> dict[str, Any]:
            return {"messages": str(held)}

        builder = StateGraph(MessagesState)
        builder.add_node("agent", agent)
        builder.add_node("work", work)
        builder.add_edge(START, "agent")
        builder.add_edge("agent", "work")
        builder.add_conditional_edges("agent", tools_condition)
        for i, (road, child) in enumerate(self._children(spec)):
            if road == "node":
                builder.add_node(f"child_{i}", child)
            elif road == "closure":
                builder.add_node(f"child_{i}", lambda state, c=child: c.invoke(state))
            elif road == "sequence":
                builder.add_node(f"child_{i}", RunnableLambda(lambda s: s) | child)
            elif road == "method":
                builder.add_node(f"child_{i}", Caller(child).step)
            else:
                tools.append(plain_tool(f"ask_{label}_{i}", child))
                continue
            builder.add_edge("work", f"child_{i}")
        builder.add_node("tools", ToolNode(tools))
        builder.add_edge("tools", "agent")
        return builder.compile(name=label)

    def _agent(self, label: str, spec: Spec, tools: list[Any], held: list[Any], bound: list[Any]) -> Any:
        tools.append(plain_tool(f"work_{label}", held))
        tools += [plain_tool(f"ask_{label}_{i}", child) for i, (_, child) in enumerate(self._children(spec))]
        provided = [b for b in bound if isinstance(b, dict)]
        return create_agent(ScriptedChatModel(script=[]), [*tools, *provided], name=label)

    def finish(self, root: Any) -> None:
        """What is planted into a graph that is compiled and protected."""
        for label, graph, plants in self.graphs:
            model = "agent" if "agent" in graph.nodes else "model"
            if "cached node" in plants:
                graph.nodes["tools"].cache_policy = CachePolicy()
                self.expected.add(("cached node", label, "tools"))
            if "node" in plants:
                graph.nodes[model].bound = RunnableLambda(lambda state: {})
                self.expected.add(("node", label, model))
                # What its function held is not in the graph any more; what its edges hold is.
                self.expected.discard(("provider tool", label, f"provider_tool_{label}"))


def told(report: Any) -> set[tuple[str, str, str]]:
    """What the report says is open: not governed, or behind the backstop alone."""
    passes = "outside runs pass; `authz.guard` it"  # a tool that is guarded in place, where plain code holds it
    return {
        (r.kind, r.graph, r.name) for r in report.rows
        if not r.governed or r.layers == ("callback backstop",) or (r.kind == "tool" and passes in r.note)
    }


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_coverage_finds_exactly_what_was_planted(spec: Spec) -> None:
    """Hand-written graphs, agents and nestings of them, by every road: the planted gaps and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planted = Planted()
        root = planted.graph(spec)
        authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
        authz.protect(root)
        planted.finish(root)
        report = authz.coverage(root)
    assert told(report) == planted.expected
    # Everything that was made is in the picture, by its own name.
    labels = {r.name for r in report.rows if r.kind in ("entry", "agent")}
    assert {label for label, _, _ in planted.graphs} <= labels
    ids = [r.id for r in report.rows]
    assert len(set(ids)) == len(ids)
    report.raise_if_ungoverned(report.baseline())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs(), st.booleans())
def test_ids_do_not_depend_on_the_process(spec: Spec, unpickles: bool) -> None:
    """Two graphs made alike have the same rows, checkpointer included, so that a baseline fits both."""
    reports = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planted = Planted()
            root = planted.graph(spec)
            root.checkpointer = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=unpickles))
            authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
            authz.protect(root)
            planted.finish(root)
            reports.append(authz.coverage(root))
    assert [r.id for r in reports[0].rows] == [r.id for r in reports[1].rows]
    assert any(r.kind == "checkpointer" for r in reports[0].rows) is unpickles
    reports[1].raise_if_ungoverned(reports[0].baseline())
