"""One graph for each kind of delegation edge: a parent leads to `payer`, which pays."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ._kit import *

PAYER_PAYS = call("pay", {"to": "bob", "amount": "5"}, "p1")


class Edged(NamedTuple):
    """A graph, what its payer did, and the models: of the payer, and of the parent if it has one."""

    graph: Any
    ran: list[Any]
    payer: ScriptedChatModel
    parent: ScriptedChatModel


def payer(ran: list[Any], *tools: BaseTool, **compiled: Any) -> tuple[Any, ScriptedChatModel]:
    """Return the child agent, which pays, and its model."""
    model = ScriptedChatModel(script=[says(PAYER_PAYS), says(text="child done")] * 4)
    return hand_written(model, [*(tools or (pay_tool(ran),))], name="payer", **compiled), model


def subgraph(*tools: BaseTool) -> Edged:
    """The child is a node."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    return Edged(chain({"payer": child}, name="root", checkpointer=InMemorySaver()), ran, model, model)


def send(*tools: BaseTool) -> Edged:
    """A `Send` starts the child."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    builder = StateGraph(MessagesState).add_node("payer", child)
    builder.add_conditional_edges(START, lambda state: [Send("payer", state)], ["payer"])
    return Edged(builder.compile(name="root", checkpointer=InMemorySaver()), ran, model, model)


def nested(*tools: BaseTool) -> Edged:
    """A node's function calls the child."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)
    return Edged(node_graph(calling(child), name="root", checkpointer=InMemorySaver()), ran, model, model)


def agent_as_tool(*tools: BaseTool) -> Edged:
    """A tool calls the child."""
    ran: list[Any] = []
    child, model = payer(ran, *tools)

    @tool
    def ask_agent(request: str) -> str:
        """Ask the payer."""
        return str(child.invoke({"messages": [("user", request)]})["messages"][-1].content)

    parent = replying([call("ask_agent", {"request": "pay bob"}, "a1")])
    return Edged(hand_written(parent, [ask_agent], name="root", checkpointer=InMemorySaver()), ran, model, parent)


# The graph → the kind of its edge, and the agent from which it leads.
KINDS: dict[Callable[..., Edged], tuple[str, str]] = {
    subgraph: ("subgraph", "root"), send: ("send", "root"), nested: ("subgraph", "root"),
    agent_as_tool: ("agent_as_tool", "root"),
}  # fmt: skip
