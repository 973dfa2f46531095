"""`AuthzCallbackHandler` writes down what runs outside the gates, and stops nothing."""

import asyncio
import json
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from langchain_runtime_authz import AuthzCallbackHandler, RuntimeAuthz
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.errors import AuditError
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import node_graph

modes = pytest.mark.parametrize("mode", ["sync", "async"])


@tool
def look(path: str) -> str:
    """Look at something."""
    return f"secret text of {path}"


def graph_of(name: str, act: Any) -> Any:
    return node_graph(lambda _: [act(), {"messages": [AIMessage("done")]}][1], name=name)


def observed(authz: Any) -> list[tuple[str, str]]:
    """What was recorded."""
    return [(r["what"], r["name"]) for r in authz.audit.records if r["kind"] == "observation"]


def go(mode: str, runnable: Any, given: Any, handler: Any) -> Any:
    """Run it with the handler."""
    config = {"callbacks": [handler]}
    return runnable.invoke(given, config) if mode == "sync" else asyncio.run(runnable.ainvoke(given, config))


@modes
def test_what_runs_outside_the_gates_is_recorded(mode: str) -> None:
    """A graph that nobody protected, its model and its tool; a chain, a model and a tool beside any graph."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    handler = AuthzCallbackHandler(authz)
    model = ScriptedChatModel(script=[AIMessage("x")] * 4)
    graph = graph_of("free", lambda: [model.invoke("x"), look.invoke({"path": "a"})])
    go(mode, graph, {"messages": []}, handler)
    assert observed(authz) == [("graph", "free"), ("model", "ScriptedChatModel"), ("tool", "look")]
    go(mode, RunnableLambda(lambda _: "x", name="chain") | FakeListLLM(responses=["y"]), "x", handler)
    go(mode, look, {"path": "a"}, handler)
    assert observed(authz)[3:] == [("chain", "RunnableSequence"), ("chain", "chain"), ("model", "FakeListLLM"), ("tool", "look")]


@modes
def test_what_a_gate_decides_is_not(mode: str) -> None:
    """Of a protected graph nothing is recorded: guarded tools, unguarded ones, models in its nodes."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    handler = AuthzCallbackHandler(authz)
    model = ScriptedChatModel(script=[AIMessage("x")] * 4)
    guarded = authz.guard(look)
    graph = authz.protect(
        graph_of("ours", lambda: [model.invoke("x"), look.invoke({"path": "a"}), guarded.invoke({"path": "b"})])
    )
    with authz.run(subject="alice"):
        go(mode, graph, {"messages": []}, handler)
        go(mode, guarded, {"path": "c"}, handler)
    assert observed(authz) == []


def test_an_unprotected_graph_beside_a_protected_one() -> None:
    """Each graph is told by itself, in one process and one run."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    handler = AuthzCallbackHandler(authz)
    free, ours = graph_of("free", lambda: None), authz.protect(graph_of("ours", lambda: None))
    with authz.run(subject="alice"):
        for graph in (free, ours):
            go("sync", graph, {"messages": []}, handler)
    assert observed(authz) == [("graph", "free")]


@modes
def test_no_contents_are_recorded(mode: str, tmp_path: Any) -> None:
    """Names only."""
    authz = RuntimeAuthz(pdp=StaticPDP(True), audit=FileSink(tmp_path / "audit.jsonl", content=True))
    go(mode, look, {"path": "my-private-path"}, AuthzCallbackHandler(authz))
    text = (tmp_path / "audit.jsonl").read_text()
    assert json.loads(text)["name"] == "look" and "private" not in text
    assert "secret" not in text


class Broken:
    """A sink that keeps nothing."""

    content = False

    def write(self, record: dict[str, Any]) -> None:
        raise AuditError("audit_unavailable")


@modes
def test_it_gates_nothing(mode: str) -> None:
    """A PDP that denies everything and a sink that fails do not stop what is outside the gates."""
    authz = RuntimeAuthz(pdp=StaticPDP(False), audit=Broken())
    assert go(mode, look, {"path": "a"}, AuthzCallbackHandler(authz)) == "secret text of a"


def test_an_event_stands_on_the_current_span() -> None:
    """Where the application traces, it sees what was not decided."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    with provider.get_tracer("app").start_as_current_span("work"):
        look.invoke({"path": "a"}, {"callbacks": [AuthzCallbackHandler(authz)]})
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "runtime_authz.ungated"
    assert event.attributes == {"runtime_authz.resource": "look", "runtime_authz.resource.type": "tool"}


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "root"])
def test_a_bound_config_counts_once(nested: bool) -> None:
    """The tags and handlers of `graph.with_config` are those of the graph as it is without protection."""

    class Heard(BaseCallbackHandler):
        def __init__(self) -> None:
            self.starts: list[Any] = []

        def on_chain_start(self, *_: Any, tags: Any = None, name: str = "", **kwargs: Any) -> None:
            self.starts.append((name, tags))

    def play(authz: RuntimeAuthz | None) -> list[Any]:
        heard = Heard()
        graph = StateGraph(MessagesState).add_node("a", lambda _: {"messages": []}).add_edge(START, "a").compile()
        graph = graph.with_config(tags=["x"], callbacks=[heard])
        if nested:
            graph = StateGraph(MessagesState).add_node("inner", graph).add_edge(START, "inner").compile()
        if authz is None:
            graph.invoke({"messages": []})
        else:
            with authz.run(subject="alice"):
                authz.protect(graph).invoke({"messages": []})
        return heard.starts

    assert play(RuntimeAuthz()) == play(None)
