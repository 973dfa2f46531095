"""A node of a protected graph, called by itself: decided in the open run, refused outside one."""

from langgraph.runtime import Runtime

from ._kit import *

GIVEN = {"messages": [says(PAY)]}
RUNTIME = {"configurable": {"__pregel_runtime": Runtime()}}


def _graph(kind: str, ran: list[Any]) -> Any:
    return BUILDERS[kind](ScriptedChatModel(script=[]), [pay_tool(ran)])


def test_outside_a_run(kind: str, go: Any, ran: Any) -> None:
    """Nothing runs: `no_run`. Unprotected, it pays."""
    graph = _graph(kind, ran)
    twin = _graph(kind, ran)
    authz_with(StaticPDP(True)).protect(graph)
    assert code_of(lambda: go(graph.nodes["tools"], GIVEN), AuthzHalt) == "no_run"
    assert code_of(lambda: graph.nodes["tools"].bound._func(GIVEN, RUNTIME, Runtime())) == "no_run"
    assert ran == []
    go(twin.nodes["tools"], GIVEN, RUNTIME)
    assert ran == [PAID]


def test_inside_a_run(kind: str, go: Any, ran: Any) -> None:
    """The node and the call are decided, as in the graph."""
    pdp = StaticPDP(True)
    authz, graph = protecting(_graph(kind, ran), pdp)
    with authz.run(subject="alice", task="x"):
        state = go(graph.nodes["tools"], GIVEN, RUNTIME)
    assert ran == [PAID] and answer_to(state["messages"], "call-pay").content == "paid"
    assert [r.resource.id for r in pdp.requests if r.action.name == "node/enter"] == ["tools"]
    assert len(calls_of(pdp, "pay")) == 1


def test_inside_a_run_denied(kind: str, go: Any, ran: Any) -> None:
    """The call does not run; a denied start of the run, or a denied node, halts."""
    authz, graph = protecting(_graph(kind, ran), deny_only("pay"))
    with authz.run(subject="alice", task="x"):
        assert answer_to(go(graph.nodes["tools"], GIVEN, RUNTIME)["messages"], "call-pay").status == "error"
    for action in ("run/start", "node/enter"):
        authz, graph = protecting(_graph(kind, ran), StaticPDP(lambda r, action=action: r.action.name != action))
        with authz.run(subject="alice", task="x"), pytest.raises(AuthzDenied):
            go(graph.nodes["tools"], GIVEN, RUNTIME)
    assert ran == []
