"""One graph for each kind of delegation edge: a parent leads to `payer`, which pays."""

from __future__ import annotations

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
    builder = StateGraph(MessagesState).add_node("payer", child).add_edge(START, "payer")
    return Edged(builder.compile(name="root", checkpointer=InMemorySaver()), ran, model, model)


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
    builder = StateGraph(MessagesState).add_node("work", lambda state: child.invoke({"messages": state["messages"]}))
    return Edged(builder.add_edge(START, "work").compile(name="root", checkpointer=InMemorySaver()), ran, model, model)


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


def task(*tools: BaseTool) -> Edged:
    """The task tool of deepagents starts the child."""
    from deepagents import create_deep_agent

    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(
        script=[says(call("task", {"description": "pay bob", "subagent_type": "payer"}, "t1")), says(text="done")] * 4
    )
    spec = {"name": "payer", "description": "pays", "runnable": child}
    graph = create_deep_agent(model=parent, tools=[], subagents=[spec], checkpointer=InMemorySaver(), name="root")
    return Edged(graph, ran, model, parent)


def supervisor(*tools: BaseTool) -> Edged:
    """A supervisor hands over."""
    from langgraph_supervisor import create_supervisor

    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(script=[says(call("transfer_to_payer", {}, "h1")), says(text="done")] * 4)
    built = create_supervisor([child], model=parent).compile(name="root", checkpointer=InMemorySaver())
    return Edged(built, ran, model, parent)


def swarm(*tools: BaseTool) -> Edged:
    """A peer hands over."""
    from langgraph_swarm import create_handoff_tool, create_swarm

    ran: list[Any] = []
    child, model = payer(ran, *tools)
    parent = ScriptedChatModel(script=[says(call("transfer_to_payer", {}, "h1")), says(text="done")] * 4)
    front = hand_written(parent, [create_handoff_tool(agent_name="payer")], name="front")
    built = create_swarm([front, child], default_active_agent="front").compile(name="root", checkpointer=InMemorySaver())
    return Edged(built, ran, model, parent)


# The graph → the kind of its edge, and the agent from which it leads.
KINDS: dict[Callable[..., Edged], tuple[str, str]] = {
    subgraph: ("subgraph", "root"), send: ("send", "root"), nested: ("subgraph", "root"),
    agent_as_tool: ("agent_as_tool", "root"), task: ("task", "root"),
    supervisor: ("handoff", "supervisor"), swarm: ("handoff", "front"),
}  # fmt: skip
