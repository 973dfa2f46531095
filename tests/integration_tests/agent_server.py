"""The graphs that LangGraph's own Agent Server serves to `test_agent_server.py`, and how it is started.

`python -m tests.integration_tests.agent_server PORT` serves them on loopback. `LRA_FOLDER` is the folder that
the test watches: `thinking` and `go` let a model's answer wait, `bank` has what was paid.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph_sdk import Auth

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.ticket import current_ticket
from langchain_runtime_authz.identity.subjects import platform_user
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP

STOP = "STOP, pay nobody"
FOLDER = Path(os.environ.get("LRA_FOLDER", "."))


def _note(name: str, line: dict[str, Any]) -> None:
    with (FOLDER / name).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _permit(request: Any) -> bool:
    lease = request.context.lease
    _note(
        "decisions",
        {
            "action": request.action.name, "subject": f"{request.subject.type}:{request.subject.id}",
            "jti": lease.jti if lease is not None else None, "epoch": request.context.task.epoch,
        },
    )
    return True


def _pay(to: str, amount: int) -> str:
    """Pay somebody."""
    ticket = current_ticket()
    _note("bank", {"to": to, "amount": amount, "epoch": ticket.epoch if ticket is not None else None})
    return "paid"


def _stopped(messages: list[Any]) -> bool:
    return any(STOP in m.text for m in messages if isinstance(m, HumanMessage | ToolMessage))


def _answer(messages: list[Any]) -> AIMessage:
    """The model's: it thinks until the test lets it, and pays unless it was told not to or has."""
    if _stopped(messages) or "pay" not in messages[-1].text.lower():
        return AIMessage("done")
    (FOLDER / "thinking").touch()
    until = time.monotonic() + 60
    while not (FOLDER / "go").exists() and time.monotonic() < until:
        time.sleep(0.02)
    (FOLDER / "thinking").unlink(missing_ok=True)
    return AIMessage("", tool_calls=[{"name": "pay", "args": {"to": "bob", "amount": 5}, "id": f"call-{len(messages)}"}])


def _loop(name: str) -> Any:
    """Plans and carries out in one node, synchronous: a thread that no server can cancel."""
    model, bank = ScriptedChatModel(script=[_answer] * 100), tool("pay")(_pay)

    def work(state: MessagesState) -> dict[str, Any]:
        plan = model.invoke(state["messages"])
        answers = [bank.invoke({**c, "type": "tool_call"}) for c in plan.tool_calls]
        return {"messages": [plan, *answers]}

    builder = StateGraph(MessagesState)
    builder.add_node("work", work)
    builder.add_edge(START, "work")
    builder.add_edge("work", END)
    return builder.compile(name=name)


def _desk(name: str) -> Any:
    """A model's node and a tools' node."""
    model = ScriptedChatModel(script=[_answer] * 100)
    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([tool("pay")(_pay)]))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return builder.compile(name=name)


authz = RuntimeAuthz(
    pdp=StaticPDP(_permit), ledger=SqliteLedger(FOLDER / "ledger.sqlite"),
    profiles={"pay": ToolProfile(effect="pay", sink="external", critical={"to": "principal", "amount": "amount"})},
    subject_from=platform_user,
)
loop, desk = authz.protect(_loop("loop")), authz.protect(_desk("desk"))
raw_loop, raw_desk = _loop("raw_loop"), _desk("raw_desk")
auth = Auth()


@auth.authenticate
async def _caller(authorization: str | None) -> Auth.types.MinimalUserDict:
    """Bearer NAME is NAME."""
    name = (authorization or "").removeprefix("Bearer ")
    if not name:
        raise Auth.exceptions.HTTPException(status_code=401, detail="who is it?")
    return {"identity": name, "is_authenticated": True}


@auth.on.threads.create_run
async def _requested(ctx: Auth.types.AuthContext, value: Auth.types.on.threads.create_run.value) -> None:
    """Tells of what a human says while it still waits in the server's queue, where the client asks for that."""
    if name := (value.get("metadata") or {}).get("tell"):
        texts = [m["content"] for m in value["kwargs"]["input"]["messages"]]
        await authz.acorrect(str(value["thread_id"]), texts[-1], graph={"loop": loop, "desk": desk}[name], by=ctx.user.identity)


def serve(port: int) -> None:
    """The server, in this process."""
    from langgraph_api.cli import run_server

    names = ("loop", "desk", "raw_loop", "raw_desk")
    run_server(
        port=port, graphs={name: f"{__spec__.name}:{name}" for name in names}, auth={"path": f"{__spec__.name}:auth"},
        n_jobs_per_worker=8, disable_persistence=True,
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
