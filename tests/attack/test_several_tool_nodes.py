"""One message, several tool nodes: each decides with its own tools, and each permitted call runs."""

from __future__ import annotations

from ._kit import *

PLAN = [write_call("a"), write_call("b"), write_call("c")]
ROUTES = ["one", "two", "one"]


def _graph(ran: list[Any]) -> Any:
    model = replying(PLAN)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
    for node in ("one", "two"):
        noted: Any = _Noting(ran, node)
        builder.add_node(node, ToolNode([writing_tool(noted)]))
        builder.add_edge(node, END)
    builder.add_edge(START, "agent")
    sends = lambda s: [Send(r, [c]) for r, c in zip(ROUTES, s["messages"][-1].tool_calls, strict=True)]
    builder.add_conditional_edges("agent", sends, ["one", "two"])
    return builder.compile(name="several")


class _Noting:
    """A list for a tool that notes whose tool it is."""

    def __init__(self, ran: list[Any], node: str) -> None:
        self.ran, self.node = ran, node

    def append(self, item: Any) -> None:
        self.ran.append((self.node, item[1]))


@pytest.mark.parametrize("form", ["invoke", "ainvoke"])
def test_each_node_runs_its_own_calls(form: str, ran: Any) -> None:
    """Permitted ones once, in the node they were sent to; the denied one in none. Without us it runs too."""
    pdp = StaticPDP(lambda r: r.action.name != "tools/call" or r.context.call.args != {"text": "b"})  # type: ignore[union-attr]
    authz, graph = protecting(_graph(ran), pdp)
    with authz.run(subject="alice", task="x"):
        (state,) = drive_form(form, graph, human())
    assert sorted(ran) == [("one", "a"), ("one", "c")]
    assert [answer_to(state["messages"], c["id"]).status for c in PLAN] == ["success", "error", "success"]
    authz, graph = protecting(_graph(ran), StaticPDP(True))
    ran.clear()
    with authz.run(subject="alice", task="x"):
        drive_form(form, graph, human())
    permitted = sorted(ran)
    ran.clear()
    drive_form(form, _graph(ran), human())
    assert permitted == sorted(ran) == [("one", "a"), ("one", "c"), ("two", "b")]
