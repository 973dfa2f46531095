"""The agent of the demonstrations: hand-written, and unaware of authorization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command

from langchain_runtime_authz.errors import AuthzDenied

Graph = CompiledStateGraph[Any, Any, Any, Any]
_NOTHING: Final = object()  # not `None`, which as input tells a graph to continue
Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Answers one action request of an interrupt with a decision."""


def agent_graph(model: BaseChatModel, tools: Sequence[BaseTool]) -> Graph:
    """Build a model node and a tool node in a loop, with an in-memory checkpointer."""
    bound = model.bind_tools(tools)

    def plan(state: MessagesState) -> dict[str, list[AIMessage]]:
        return {"messages": [bound.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", plan)
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile(checkpointer=InMemorySaver())


def converse(graph: Graph, said: Any, config: RunnableConfig, answer: Answer) -> Iterator[AnyMessage]:
    """Run the graph, yield each message that a node writes, and answer interrupts."""
    with suppress(AuthzDenied):
        while said is not _NOTHING:
            value, said = said, _NOTHING
            for update in graph.stream(value, config, stream_mode="updates"):
                for node, written in update.items():
                    if node != "__interrupt__":
                        yield from (written or {}).get("messages", ())
                    elif requests := [r for i in written for r in i.value["action_requests"]]:
                        said = Command(resume={"decisions": [answer(r) for r in requests]})
