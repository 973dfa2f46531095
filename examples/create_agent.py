"""A `create_agent` agent: a read is permitted, a payment asks, a resume approves it. Runs offline."""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.testing import ScriptedChatModel


@profile(effect="read", sink="none", critical={"path": "object"})
@tool
def read_file(path: str) -> str:
    """Read a file."""
    return f"{path}: December, 98.70 to DE21."


@profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"})
@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    return f"Sent {amount:.2f} to {recipient}."


read = {"name": "read_file", "args": {"path": "bill.txt"}, "id": "1"}
pay = {"name": "send_money", "args": {"recipient": "DE21", "amount": 98.7}, "id": "2"}
model = ScriptedChatModel(script=[AIMessage("", tool_calls=[c]) for c in (read, pay)] + [AIMessage("Paid.")])

authz = RuntimeAuthz()
agent = authz.protect(create_agent(model, [read_file, send_money], checkpointer=InMemorySaver()))
config = {"configurable": {"thread_id": "1"}}
with authz.run(subject="alice", task="Pay the December bill"):
    paused = agent.invoke({"messages": [("user", "Pay the December bill")]}, config)
    print("asked:", [(r["name"], r["args"]) for r in paused["__interrupt__"][0].value["action_requests"]])
    done = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
print(*(f"{m.type:<7}{m.text}" for m in done["messages"] if m.text), sep="\n")
