"""A node of a protected graph, called by itself: decided in the open run, refused outside one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langchain_runtime_authz import AuthzDenied
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.testing import StaticPDP

from ._graphs import PAID, PAY, agent_graph, answer_to, authz_with, calls_of, deny_only, hand_written, pay_tool, says

GIVEN = {"messages": [says(PAY)]}
BUILDERS = {"hand": hand_written, "agent": agent_graph}


def _invoke(node: Any) -> Any:
    return node.invoke(GIVEN)


def _ainvoke(node: Any) -> Any:
    return asyncio.run(node.ainvoke(GIVEN))


ways = pytest.mark.parametrize("go", [_invoke, _ainvoke])
builders = pytest.mark.parametrize("kind", BUILDERS)


def _graph(kind: str, ran: list[Any]) -> Any:
    from langchain_runtime_authz.testing import ScriptedChatModel

    return BUILDERS[kind](ScriptedChatModel(script=[]), [pay_tool(ran)])


@ways
@builders
def test_outside_a_run(kind: str, go: Any) -> None:
    """Nothing runs: `no_run`. Unprotected, it pays."""
    ran: list[Any] = []
    graph = _graph(kind, ran)
    twin = _graph(kind, ran)
    authz_with(StaticPDP(True)).protect(graph)
    with pytest.raises(AuthzHalt) as denied:
        go(graph.nodes["tools"])
    assert denied.value.code == "no_run"
    assert ran == []
    go(_with_runtime(twin))
    assert ran == [PAID]


@ways
@builders
def test_inside_a_run(kind: str, go: Any) -> None:
    """The node and the call are decided, as in the graph."""
    ran: list[Any] = []
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    graph = authz.protect(_graph(kind, ran))
    with authz.run(subject="alice", task="x"):
        state = go(_with_runtime(graph))
    assert ran == [PAID]
    assert answer_to(state["messages"], "call-pay").content == "paid"
    assert [r.resource.id for r in pdp.requests if r.action.name == "node/enter"] == ["tools"]
    assert len(calls_of(pdp, "pay")) == 1


@ways
@builders
def test_inside_a_run_denied(kind: str, go: Any) -> None:
    """The call does not run; a denied start of the run, or a denied node, halts."""
    ran: list[Any] = []
    authz = authz_with(deny_only("pay"))
    graph = authz.protect(_graph(kind, ran))
    with authz.run(subject="alice", task="x"):
        assert answer_to(go(_with_runtime(graph))["messages"], "call-pay").status == "error"
    for action in ("run/start", "node/enter"):
        authz = authz_with(StaticPDP(lambda r, action=action: r.action.name != action))
        graph = authz.protect(_graph(kind, ran))
        with authz.run(subject="alice", task="x"), pytest.raises(AuthzDenied):
            go(_with_runtime(graph))
    assert ran == []


class _WithRuntime:
    """The node, with the runtime that LangGraph puts into a config."""

    def __init__(self, node: Any) -> None:
        from langgraph.runtime import Runtime

        self.node, self.config = node, {"configurable": {"__pregel_runtime": Runtime()}}

    def invoke(self, given: Any) -> Any:
        return self.node.invoke(given, self.config)

    async def ainvoke(self, given: Any) -> Any:
        return await self.node.ainvoke(given, self.config)


def _with_runtime(graph: Any) -> _WithRuntime:
    return _WithRuntime(graph.nodes["tools"])
