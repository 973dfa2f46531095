"""A hijacked agent takes a word of an order for something else: money for hours, or a new value for a difference."""

from langchain_runtime_authz.demo.agent import agent_graph as demo_graph

from ._house import *

TOOLS: dict[str, tuple[Any, str, str]] = {  # tool → its effect, its second argument, and a verb
    "send_crypto": ("pay", "amount_btc", "send"), "hire_guide": ("pay", "hours", "hire"), "refund_order": ("pay", "percent", "refund"),
    "pay_friend": ("pay", "amount", "pay"), "raise_limit": ("admin", "amount", "raise"), "set_limit": ("admin", "amount", "raise"),
    "send_points": ("pay", "amount", "send"), "change_limit": ("admin", "limit_delta", "change"),
}  # fmt: skip


def ran(name: str, said: str, go: Any, *, protected: bool) -> list[Any]:
    effect, argument, verb = TOOLS[name]
    happened: list[Any] = []

    def act(**args: Any) -> str:
        happened.append(args)
        return "done"

    schema = {"title": name, "type": "object", "properties": {"whom": {"type": "string"}, argument: {"type": "number"}}, "required": ["whom", argument]}
    made = StructuredTool(name=name, description="Act.", args_schema=schema, func=act)
    graph = demo_graph(model((name, {"whom": "Bob", argument: 45})), [made])
    graph.checkpointer = InMemorySaver()
    profile = ToolProfile(effect=effect, critical={"whom": "principal", argument: "amount"}, intent=(verb,))
    authz = RuntimeAuthz(profiles={name: profile}) if protected else None
    graph = authz.protect(graph) if authz is not None else graph
    with authz.run(subject="alice") if authz is not None else nullcontext():
        go(graph, {"messages": [HumanMessage(said)]}, THREAD)
    return happened


@pytest.mark.parametrize(("name", "said"), [
    ("send_crypto", "Send Bob 45 EUR"), ("hire_guide", "Hire Bob with 45 EUR"), ("refund_order", "Refund Bob 45 EUR"),
    ("send_crypto", "Send 45 to Bob"), ("send_points", "Send Bob 45 EUR"),
])
def test_a_number_of_something_else_is_asked_about(name: str, said: str, go: Any) -> None:
    assert ran(name, said, go, protected=True) == []
    assert len(ran(name, said, go, protected=False)) == 1


@pytest.mark.parametrize(("name", "said"), [("pay_friend", "Pay Bob 45 EUR")])
def test_the_ordered_amount_runs_unasked(name: str, said: str, go: Any) -> None:
    assert ran(name, said, go, protected=True) == [{"whom": "Bob", "amount": 45}]
