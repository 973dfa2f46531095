"""One graph with one message of calls, whose tool calls a PDP under test decides."""

import asyncio
import json
import time
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from langchain_runtime_authz import RuntimeAuthz, ToolProfile


def _calls(body: bytes) -> bool:
    return bool(json.loads(body)["action"]["name"] == "tools/call")


class OnToolCalls:
    """The PDP for tool calls; everything before them is permitted, so that there is a call to deny."""

    deadline = 60

    def __init__(self, real: Any) -> None:
        self.real, self.name, self.revision = real, real.name, ""

    def evaluate(self, body: bytes) -> object:
        """Ask it about a call."""
        return self.real.evaluate(body) if _calls(body) else {"decision": True}

    async def aevaluate(self, body: bytes) -> object:
        """Ask it about a call."""
        if _calls(body):
            return await self.real.aevaluate(body)
        return {"decision": True}

    def evaluate_batch(self, bodies) -> Any:
        """Ask it about the calls of a message. A failure is one of each call, not of the node that is entered with them."""
        calls = [body for body in bodies if _calls(body)]
        try:
            answers = self.real.evaluate_batch(calls) if len(calls) > 1 else [self.real.evaluate(calls[0])]
        except Exception as exc:
            answers = [exc] * len(calls)
        return [{"decision": True}] * (len(bodies) - len(calls)) + list(answers)

    async def aevaluate_batch(self, bodies) -> Any:
        """Ask it about the calls of a message."""
        calls = [body for body in bodies if _calls(body)]
        try:
            answers = await self.real.aevaluate_batch(calls) if len(calls) > 1 else [await self.real.aevaluate(calls[0])]
        except Exception as exc:
            answers = [exc] * len(calls)
        return [{"decision": True}] * (len(bodies) - len(calls)) + list(answers)


def run_graph(pdp: Any, calls: int, *, asynchronous: bool) -> tuple[list[str], list[Any], list[str], float]:
    """Codes of the denials on record, what ran, statuses of the answers, seconds."""
    ran: list[Any] = []

    @tool
    def act(n: int) -> str:
        """Do it."""
        ran.append(n)
        return "done"

    message = AIMessage(
        "", tool_calls=[{"name": "act", "args": {"n": n}, "id": f"c{n}", "type": "tool_call"} for n in range(calls)],
    )
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda _: {"messages": [message]})
    builder.add_node("tools", ToolNode([act]))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    builder.add_edge("tools", END)
    authz = RuntimeAuthz(pdp=OnToolCalls(pdp), profiles={"act": ToolProfile(effect="read")})
    graph = authz.protect(builder.compile())
    started = time.monotonic()
    if asynchronous:

        async def once() -> Any:
            async with authz.run(subject="alice", task="Do it"):
                state = await graph.ainvoke({"messages": [("user", "Do it")]})
            assert asyncio.all_tasks() == {asyncio.current_task()}  # nothing goes on behind our back
            return state

        state = asyncio.run(once())
    else:
        with authz.run(subject="alice", task="Do it"):
            state = graph.invoke({"messages": [("user", "Do it")]})
    seconds = time.monotonic() - started
    denied = [r for r in authz.audit.records if r["kind"] == "decision" and r["outcome"] == "deny"]
    assert all(r["failure"] == "pdp" for r in denied)
    answers = [m.status for m in state["messages"] if m.type == "tool"]
    return [r["reasons"][0] for r in denied], ran, answers, seconds
