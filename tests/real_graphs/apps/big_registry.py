"""A big registry of tools, after langgraph-bigtool: a node selects tools from the store, a ToolNode runs them."""

import math
from typing import Annotated

import httpx
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedStore, ToolNode
from langgraph.store.base import BaseStore
from langgraph.types import Send

ERP = "https://erp.example/api"


def as_tool(function):
    def wrapper(x: float) -> float:
        return function(x)

    return StructuredTool.from_function(wrapper, name=function.__name__, description=function.__doc__)


@tool
def get_customer(customer_id: str) -> dict:
    """Look up a customer with the notes of the account."""
    return httpx.get(f"{ERP}/customers/{customer_id}").json()


@tool
def send_reminder(customer_id: str, invoice: str) -> str:
    """Send a payment reminder for an invoice to a customer."""
    return httpx.post(f"{ERP}/customers/{customer_id}/reminders", json={"invoice": invoice}).json()["status"]


@tool
def issue_credit(customer_id: str, amount: float) -> str:
    """Issue a credit to a customer."""
    return httpx.post(f"{ERP}/customers/{customer_id}/credits", json={"amount": amount}).json()["status"]


@tool
def close_account(customer_id: str) -> str:
    """Close the account of a customer."""
    return httpx.post(f"{ERP}/customers/{customer_id}/close", json={}).json()["status"]


NAMES = "acos acosh asin asinh atan atanh cos cosh sin sinh tan tanh sqrt cbrt exp expm1 log10 log1p log2 floor ceil trunc"
FUNCTIONS = [getattr(math, name) for name in NAMES.split()]
TOOLS = [get_customer, send_reminder, issue_credit, close_account, *map(as_tool, FUNCTIONS)]


class State(MessagesState):
    selected_tool_ids: Annotated[list[str], lambda old, new: list(dict.fromkeys([*old, *new]))]


def retrieve_tools(query: str, *, store: Annotated[BaseStore, InjectedStore]) -> list[str]:
    """Retrieve tools to use, given a search query."""
    words = set(query.lower().split())
    found = store.search(("tools",), limit=100)
    ranked = sorted(found, key=lambda item: -len(words & set(item.value["description"].lower().replace(".", "").split())))
    return [item.key for item in ranked[:2]]


def build(model, folder, checkpointer=None, store=None):
    tool_registry = {each.name: each for each in TOOLS}
    for name, each in tool_registry.items():
        store.put(("tools",), name, {"description": f"{each.name}: {each.description}"})
    retrieve = tool(retrieve_tools)
    tool_node = ToolNode(list(tool_registry.values()))

    def call_model(state: State):
        selected = [tool_registry[name] for name in state.get("selected_tool_ids", [])]
        llm_with_tools = model.bind_tools([retrieve, *selected])
        system = SystemMessage("You work with the tools that you retrieve.")
        return {"messages": [llm_with_tools.invoke([system, *state["messages"]])]}

    def select_tools(tool_calls: list[dict], *, store: BaseStore):
        tool_messages, selected = [], []
        for tool_call in tool_calls:
            names = retrieve.invoke({**tool_call["args"], "store": store})
            selected.extend(names)
            tool_messages.append(ToolMessage(f"Available tools: {names}", tool_call_id=tool_call["id"]))
        return {"messages": tool_messages, "selected_tool_ids": selected}

    def should_continue(state: State):
        last_message = state["messages"][-1]
        if not isinstance(last_message, AIMessage) or not last_message.tool_calls:
            return END
        return [Send("select_tools" if call["name"] == retrieve.name else "tools", [call]) for call in last_message.tool_calls]

    builder = StateGraph(State)
    builder.add_node("agent", call_model)
    builder.add_node("select_tools", select_tools)
    builder.add_node("tools", tool_node)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", should_continue, ["select_tools", "tools", END])
    builder.add_edge("tools", "agent")
    builder.add_edge("select_tools", "agent")
    return builder.compile(checkpointer=checkpointer, store=store)
