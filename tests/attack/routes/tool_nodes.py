"""Calls that a model plans and a tool node runs."""

from __future__ import annotations

from .._graphs import agent_graph, hand_written, replying
from . import Bank, Kit, Play, Route, graph_play
from .parts import PAY


def _hand_written(kit: Kit, bank: Bank) -> Play:
    return graph_play(kit.graph(hand_written(replying([PAY]), kit.tool_node(kit.tools(bank.tool())))))


def _create_agent(kit: Kit, bank: Bank) -> Play:
    graph = agent_graph(replying([PAY]), kit.tools(bank.tool()), middleware=kit.middleware())
    return graph_play(kit.graph(graph))


ROUTES = [
    Route(
        "hand_written",
        "a model node and a ToolNode in a graph of one's own",
        _hand_written,
        closed_by=("entry", "guard", "tool_node"),
    ),
    Route("create_agent", "LangChain's create_agent", _create_agent, closed_by=("entry", "guard", "middleware")),
]
