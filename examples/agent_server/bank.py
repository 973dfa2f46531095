"""A bank's agent for LangGraph's Agent Server: `langgraph dev` in this folder."""

import os
import re
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz, profile
from langchain_runtime_authz.identity.subjects import platform_user
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.testing import ScriptedChatModel

try:
    from langchain.agents import create_agent
except ModuleNotFoundError:
    raise ImportError("This example needs the extra `langchain`: in the clone, run `pip install '.[langchain]'`.") from None

DATA = Path(os.environ.get("BANK_DATA", "."))


@profile(effect="read", sink="none")
@tool
def read_bill() -> str:
    """Read the newest bill."""
    return "Bill of the power company: pay 98.70 to DE99"


@profile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",))
@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money."""
    with (DATA / "paid.txt").open("a", encoding="utf-8") as book:
        book.write(f"{amount:.2f} {recipient}\n")
    return f"Sent {amount:.2f} to {recipient}"


def answer(messages: list) -> AIMessage:
    """Stand in for your model: pay what is said, or what the bill says."""
    last = messages[-1]
    pays = re.search(r"pay (\d+(?:\.\d+)?) to (\w+)", last.text, re.IGNORECASE)
    if pays and isinstance(last, HumanMessage):
        return _call("send_money", recipient=pays[2], amount=float(pays[1]))
    if pays and last.name == "read_bill":
        return _call("send_money", recipient=pays[2], amount=float(pays[1]))
    if "bill" in last.text.lower() and isinstance(last, HumanMessage):
        return _call("read_bill")
    return AIMessage("Done.")


def _call(name: str, **args: object) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": os.urandom(8).hex()}])


authz = RuntimeAuthz(
    subject_from=platform_user,  # the user whom auth.py authenticated
    ledger=SqliteLedger(DATA / "ledger.db"),
    audit=DATA / "audit.jsonl",
)
# No checkpointer: the server brings its own.
graph = authz.protect(create_agent(ScriptedChatModel(script=[answer] * 10_000), [read_bill, send_money], name="bank"))
