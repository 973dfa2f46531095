"""An asynchronous run leaves the event loop free: models, unguarded tools, ledgers in files and audit files."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.langgraph import tool_facts
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import node_graph
from tests.threads import nothing_blocks


class WaitingEngine:
    """Decides by the shipped policy, on the event loop after others had their turn. Notes which threads it would have blocked."""

    name, revision, deadline = "waiting", "", 5.0

    def __init__(self) -> None:
        self.inner, self.asked, self.blocked = WasmPDP(), 0, list[int]()

    def evaluate(self, body: bytes) -> object:
        self.blocked.append(threading.get_ident())
        return self.inner.evaluate(body)

    async def aevaluate(self, body: bytes) -> object:
        self.asked += 1
        await asyncio.sleep(0)
        return self.inner.evaluate(body)


_detector = pytest.fixture(nothing_blocks)


def look(name: str) -> str:
    """Look."""
    return f"seen {name}"


GUARDED = profile(effect="read", sink="none")(tool(look))


def agent() -> Any:
    call = {"name": "look", "args": {"name": "a"}, "id": "c1"}
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    return create_agent(model, [GUARDED], checkpointer=InMemorySaver())


def by_hand() -> Any:
    """Its node makes a tool that nobody guarded, and calls it."""
    model = ScriptedChatModel(script=[AIMessage("done")])

    async def node(state: MessagesState) -> dict[str, Any]:
        seen = await tool(look).ainvoke({"name": "a"})
        return {"messages": [AIMessage(seen), await model.ainvoke(state["messages"])]}

    return node_graph(node, checkpointer=InMemorySaver())


async def _played(authz: RuntimeAuthz, graph: Any, thread: str) -> tuple[Any, Any]:
    """Return the state and the run."""
    async with authz.run(subject="alice") as run:
        out = await graph.ainvoke({"messages": [("user", "Look")]}, {"configurable": {"thread_id": thread}})
    return out, run


@pytest.mark.parametrize("build", [agent, by_hand])
def test_nothing_waits_on_the_loop(build: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With an engine, a ledger and an audit file that wait."""
    engine = WaitingEngine()
    profiles = {"look": {"effect": "read", "sink": "none"}}
    with SqliteLedger(tmp_path / "ledger.db") as ledger:
        authz = RuntimeAuthz(pdp=engine, ledger=ledger, audit=tmp_path / "audit.jsonl", profiles=profiles)
        graph = authz.protect(build())
        request.getfixturevalue("_detector")
        asyncio.run(_played(authz, authz.protect(build()), "first"))  # loads what is loaded once
        out, run = asyncio.run(_played(authz, graph, "second"))
        assert out["messages"][-1].text == "done"
        assert any("seen a" in m.text for m in out["messages"])
        assert {d.outcome for d in run.decisions} == {"permit"}
    assert engine.asked >= 6
    assert threading.get_ident() not in engine.blocked


def test_schemas_are_derived_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mandate is compiled by the schemas of all tools, which take milliseconds each: no such work is a step of the loop."""
    threads: list[int] = []
    derive = tool_facts.convert_to_openai_tool
    monkeypatch.setattr(tool_facts, "convert_to_openai_tool", lambda t: (threads.append(threading.get_ident()), derive(t))[1])

    def write(name: str) -> str:
        """Write."""
        return f"seen {name}"

    call = {"name": "write", "args": {"name": "a"}, "id": "c1"}
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call]), AIMessage("done")])
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={n: {"effect": "write", "critical": {"name": "object"}} for n in ("write", "look")})
    graph = authz.protect(create_agent(model, [tool(write), tool(look)], checkpointer=InMemorySaver()))
    threads.clear()
    asyncio.run(_played(authz, graph, "first"))
    assert len(threads) == 2 and threading.get_ident() not in threads
