"""A hand-written graph: the grant stops a payment that the bill asked for. Runs offline."""

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from langchain_runtime_authz import Constraint, Grant, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.testing import ScriptedChatModel


@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    return f"Sent {amount:.2f} to {recipient}."


pay = {"name": "send_money", "args": {"recipient": "ATTACKER", "amount": 95.0}, "id": "1"}
model = ScriptedChatModel(script=[AIMessage("", tool_calls=[pay]), AIMessage("I could not pay.")])

builder = StateGraph(MessagesState)
builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
builder.add_node("tools", ToolNode([send_money]))
builder.add_edge(START, "model")
builder.add_conditional_edges("model", tools_condition)
builder.add_edge("tools", "model")

authz = RuntimeAuthz(profiles={"send_money": ToolProfile(effect="pay", critical={"recipient": "principal"})})
graph = authz.protect(builder.compile())
grant = Grant(args={"send_money": {"recipient": Constraint(one_of=("DE21",))}})
with authz.run(subject="alice", task="Pay the December bill", grant=grant):
    result = graph.invoke({"messages": [("user", "Pay the December bill")]})

told = next(m.text for m in result["messages"] if isinstance(m, ToolMessage))
denied = next(r for r in authz.audit.records if r.get("outcome") == "deny")
print("the model is told:   ", told)
print("the operator is told:", denied["decision_id"], denied["resource"], denied["reasons"])
