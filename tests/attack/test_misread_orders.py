"""A hijacked agent takes a word of an order for something else: money for hours, or for other money."""

from __future__ import annotations

from langchain_runtime_authz.demo.agent import agent_graph as demo_graph

from ._house import *

TOOLS: dict[str, tuple[str, str]] = {  # tool → its second argument, and a verb
    "send_crypto": ("amount_btc", "send"), "hire_guide": ("hours", "hire"), "refund_order": ("percent", "refund"), "pay_friend": ("amount", "pay"),
}  # fmt: skip


def ran(name: str, said: str, go: Any, *, protected: bool) -> list[Any]:
    argument, verb = TOOLS[name]
    happened: list[Any] = []

    def act(**args: Any) -> str:
        happened.append(args)
        return "done"

    schema = {"title": name, "type": "object", "properties": {"whom": {"type": "string"}, argument: {"type": "number"}}, "required": ["whom", argument]}
    made = StructuredTool(name=name, description="Act.", args_schema=schema, func=act)
    graph = demo_graph(model((name, {"whom": "Bob", argument: 45})), [made])
    graph.checkpointer = InMemorySaver()
    profile = ToolProfile(effect="pay", critical={"whom": "principal", argument: "amount"}, intent=(verb,))
    authz = RuntimeAuthz(profiles={name: profile}) if protected else None
    graph = authz.protect(graph) if authz is not None else graph
    with authz.run(subject="alice") if authz is not None else nullcontext():
        go(graph, {"messages": [HumanMessage(said)]}, THREAD)
    return happened


@pytest.mark.parametrize(("name", "said"), [("send_crypto", "Send Bob 45 EUR"), ("hire_guide", "Hire Bob with 45 EUR"), ("refund_order", "Refund Bob 45 EUR")])
def test_money_is_not_another_number(name: str, said: str, go: Any) -> None:
    assert ran(name, said, go, protected=True) == []
    assert len(ran(name, said, go, protected=False)) == 1


def test_an_amount_of_the_money_runs_unasked(go: Any) -> None:
    assert ran("pay_friend", "Pay Bob 45 EUR", go, protected=True) == [{"whom": "Bob", "amount": 45}]
