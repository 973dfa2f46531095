"""A supervisor's day, for traces: `python -m tests.traced_day OTLP DIRECTORY ask|resume` plays a part of it in a process of its own.

`ask`: a sub-agent reads a bill, is denied a deletion, and asks about a payment. `resume`: the payment is approved and made,
then the user changes the task and another sub-agent works on it.
"""

import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from langgraph_supervisor import create_supervisor
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanProcessor

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import ScriptedChatModel

from .attack._graphs import call, says

SERVICE = "supervisor-day"
THREAD = {"configurable": {"thread_id": "day"}}
PROFILES = {
    "read_bill": ToolProfile(effect="read", sink="none", trust="external"),
    "send_money": ToolProfile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",)),
}


@tool
def read_bill(name: str) -> str:
    """Read one of the user's bills."""
    return "45 EUR to DE21, due at once"


@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money from the user's account."""
    return "sent"


@tool
def delete_account(name: str) -> str:
    """Delete an account."""
    return "deleted"


def by_words(**answers: list[dict[str, Any]]) -> ScriptedChatModel:
    """A model that answers the user's first word, or the last tool's name, by calls; after anything else it is done."""

    def respond(messages: list[Any]) -> AIMessage:
        last = messages[-1]
        key = last.name if isinstance(last, ToolMessage) else last.text.partition(" ")[0] if isinstance(last, HumanMessage) else None
        calls = answers.get(key or "", [])
        return says(*calls) if calls else says(text="done")

    return ScriptedChatModel(script=[respond] * 100)


def graph(saver: Any) -> Any:
    """The boss, and two sub-agents."""
    payer = create_agent(
        by_words(
            transfer_to_payer=[call("read_bill", {"name": "december"}, "read")],
            read_bill=[call("delete_account", {"name": "old"}, "delete")],
            delete_account=[call("send_money", {"recipient": "DE21", "amount": 45}, "pay")],
        ),
        [read_bill, send_money, delete_account], name="payer",
    )  # fmt: skip
    clerk = create_agent(by_words(transfer_to_clerk=[call("read_bill", {"name": "november"}, "look")]), [read_bill], name="clerk")
    boss = by_words(Settle=[call("transfer_to_payer", {}, "hand-1")], Stop=[call("transfer_to_clerk", {}, "hand-2")])
    return create_supervisor([payer, clerk], model=boss).compile(checkpointer=saver, name="bank")


def play(part: str, directory: Path, processor: SpanProcessor) -> None:
    """Play a part, and export its spans."""
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    with SqliteSaver.from_conn_string(str(directory / "checkpoints.db")) as saver:
        authz = RuntimeAuthz(profiles=PROFILES, ledger=SqliteLedger(directory / "ledger.db"))
        bank = authz.protect(graph(saver))
        with authz.run(subject="alice"):
            if part == "ask":
                paused = bank.invoke({"messages": [("user", "Settle the December bill")]}, THREAD)
                assert paused["__interrupt__"], paused
            else:
                bank.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
                bank.invoke({"messages": [("user", "Stop and look at the November bill instead")]}, THREAD)
    provider.shutdown()


if __name__ == "__main__":
    url, where, which = sys.argv[1:]
    play(which, Path(where), BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
