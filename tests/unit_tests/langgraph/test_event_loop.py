"""An asynchronous run leaves the event loop free: models, unguarded tools, ledgers in files and audit files."""

from __future__ import annotations

import asyncio
import threading
import time
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

SLOW = 0.3  # seconds of the engine


class SlowEngine:
    """Decides by the shipped policy after a while; blocking where it is asked so."""

    name, revision, deadline = "slow", "", 5.0

    def __init__(self) -> None:
        self.inner, self.asked, self.waits = WasmPDP(), 0, 0.0

    def evaluate(self, body: bytes) -> object:
        time.sleep(self.waits)
        return self.inner.evaluate(body)

    async def aevaluate(self, body: bytes) -> object:
        self.asked += 1
        await asyncio.sleep(self.waits)
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


async def _played(authz: RuntimeAuthz, graph: Any, thread: str) -> tuple[Any, Any, float]:
    """The state, the run and the longest pause of the loop."""
    pauses: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last - 0.001)
            last = now

    ticking = asyncio.create_task(tick())
    async with authz.run(subject="alice") as run:
        out = await graph.ainvoke({"messages": [("user", "Look")]}, {"configurable": {"thread_id": thread}})
    ticking.cancel()
    return out, run, max(pauses)


@pytest.mark.parametrize("build", [agent, by_hand])
def test_nothing_waits_on_the_loop(build: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With an engine, a ledger and an audit file that wait. The longest pause of the loop is printed."""
    engine = SlowEngine()
    profiles = {"look": {"effect": "read", "sink": "none"}}
    with SqliteLedger(tmp_path / "ledger.db") as ledger:
        authz = RuntimeAuthz(pdp=engine, ledger=ledger, audit=tmp_path / "audit.jsonl", profiles=profiles)
        graph = authz.protect(build())
        request.getfixturevalue("_detector")
        asyncio.run(_played(authz, authz.protect(build()), "first"))  # loads what is loaded once
        engine.waits = SLOW
        out, run, pause = asyncio.run(_played(authz, graph, "second"))
        print(f"{build.__name__}: {engine.asked} questions, longest pause of the loop {pause * 1000:.1f} ms")
        assert out["messages"][-1].text == "done"
        assert any("seen a" in m.text for m in out["messages"])
        assert {d.outcome for d in run.decisions} == {"permit"}
    assert engine.asked >= 6
    assert pause < SLOW, "the loop stood still for as long as the engine took"


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
