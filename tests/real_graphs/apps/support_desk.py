"""A support desk after LangGraph's first tutorial: a node that is a class instance invokes the tools by their arguments."""

import json
from typing import Annotated

import httpx
from langchain_core.messages import SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

SHOP = "https://shop.example/api"


@tool
def get_order(order_id: str) -> dict:
    """Look up an order with its status, its total and the customer's note."""
    return httpx.get(f"{SHOP}/orders/{order_id}").json()


@tool
def refund_order(order_id: str, amount: float) -> dict:
    """Refund an amount in EUR on an order."""
    return httpx.post(f"{SHOP}/orders/{order_id}/refunds", json={"amount": amount}).json()


@tool
def message_customer(email: str, text: str) -> dict:
    """Write to a customer."""
    return httpx.post(f"{SHOP}/messages", json={"email": email, "text": text}).json()


class State(TypedDict):
    messages: Annotated[list, add_messages]


class BasicToolNode:
    """A node that runs the tools requested in the last AIMessage."""

    def __init__(self, tools: list) -> None:
        self.tools_by_name = {tool.name: tool for tool in tools}

    def __call__(self, inputs: dict):
        if messages := inputs.get("messages", []):
            message = messages[-1]
        else:
            raise ValueError("No message found in input")
        outputs = []
        for tool_call in message.tool_calls:
            tool_result = self.tools_by_name[tool_call["name"]].invoke(tool_call["args"])
            outputs.append(ToolMessage(content=json.dumps(tool_result), name=tool_call["name"], tool_call_id=tool_call["id"]))
        return {"messages": outputs}


def route_tools(state: State):
    ai_message = state["messages"][-1]
    if hasattr(ai_message, "tool_calls") and len(ai_message.tool_calls) > 0:
        return "tools"
    return END


def build(model, folder, checkpointer=None, store=None):
    tools = [get_order, refund_order, message_customer]
    llm_with_tools = model.bind_tools(tools)

    def chatbot(state: State):
        system = SystemMessage("You work at the support desk of a shop.")
        return {"messages": [llm_with_tools.invoke([system, *state["messages"]])]}

    graph_builder = StateGraph(State)
    graph_builder.add_node("chatbot", chatbot)
    graph_builder.add_node("tools", BasicToolNode(tools=tools))
    graph_builder.add_conditional_edges("chatbot", route_tools, {"tools": "tools", END: END})
    graph_builder.add_edge("tools", "chatbot")
    graph_builder.add_edge(START, "chatbot")
    return graph_builder.compile(checkpointer=checkpointer)
