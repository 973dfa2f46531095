"""Bad input where tasks change: each is a deny with a stable code, or nothing at all; the thread goes on."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from typing_extensions import TypedDict

from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing import StaticPDP

from ._graphs import PAID, asking, authz_with, calls_of, human, pay_tool, reasons
from .test_corrections import THREAD, builders, built, obedient, ways


def epoch(authz: Any, name: str) -> int:
    return int(authz.ledger.load(authz.entrance.scope(name, "t"), Query()).epoch)


# --- message ids ---------------------------------------------------------------------------------------


@builders
@ways
def test_a_reused_id_with_other_words_is_a_correction(kind: str, go: Any) -> None:
    """A client that gives each of its messages one id: new words are new words."""
    ran: list[Any] = []
    authz, _, graph = built(kind, ran, interrupt_before=["tools"])
    with authz.run(subject="alice"):
        go(graph, human("Pay the bill", id="same"), THREAD)
    with authz.run(subject="alice"):
        go(graph, human("STOP, pay nobody", id="same"), THREAD)
        go(graph, None, THREAD)
    assert ran == []
    assert epoch(authz, graph.get_name()) == 2


@builders
def test_regenerated_ids_of_a_history_are_no_correction(kind: str) -> None:
    """A stateless client that makes new ids each time, with content as strings, then as blocks."""
    ran: list[Any] = []
    authz, _, graph = built(kind, ran, checkpointer=None)
    texts = ["Pay the bill", "And look", "Go on"]
    for n, form in enumerate((str, lambda t: [{"type": "text", "text": t}])):
        said = [HumanMessage(form(t), id=f"{n}-{i}") for i, t in enumerate(texts)]
        with authz.run(subject="alice"):
            graph.invoke({"messages": said}, THREAD)
    assert epoch(authz, graph.get_name()) == 1


# --- reducers ------------------------------------------------------------------------------------------


def newest_two(old: list[AnyMessage], new: Any) -> list[AnyMessage]:
    """Drops all but the newest."""
    return add_messages(old or [], new)[-2:]  # type: ignore[arg-type,return-value,index]


def backwards(old: list[AnyMessage], new: Any) -> list[AnyMessage]:
    """Keeps humans' messages in front, newest first."""
    merged: Any = add_messages(old or [], new)
    humans = [m for m in merged if isinstance(m, HumanMessage)]
    return [*reversed(humans), *(m for m in merged if not isinstance(m, HumanMessage))]


@pytest.mark.parametrize("reducer", [newest_two, backwards], ids=lambda r: r.__name__)
@pytest.mark.parametrize("protected", [True, False], ids=["protected", "twin"])
def test_reducers_that_drop_or_reorder(reducer: Any, protected: bool) -> None:
    """The task is pinned beside the state: it loses nothing, a correction voids what waits, and nothing else does."""
    ran: list[Any] = []
    authz = authz_with(StaticPDP(True))
    model = obedient()

    odd: Any = TypedDict("odd", {"messages": Annotated[list[AnyMessage], reducer]})
    builder = StateGraph(odd)
    builder.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
    builder.add_node("tools", ToolNode([pay_tool(ran)]))
    builder.add_edge(START, "agent")

    def route(state: Any) -> str:
        plan = next((m for m in reversed(state["messages"]) if isinstance(m, AIMessage)), None)
        answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
        return "tools" if plan is not None and any(c["id"] not in answered for c in plan.tool_calls) else END

    builder.add_conditional_edges("agent", route, ["tools", END])
    builder.add_edge("tools", "agent")
    graph = builder.compile(checkpointer=InMemorySaver(), name="odd", interrupt_before=["tools"])
    if protected:
        authz.protect(graph)
    with authz.run(subject="alice"):
        graph.invoke(human("Pay the bill, never above 10"), THREAD)
        graph.update_state(THREAD, {"messages": [HumanMessage("STOP, pay nobody")]}, as_node="agent")
        graph.invoke(None, THREAD)
    if not protected:
        assert ran == [PAID]
        return
    assert ran == []
    task = authz.ledger.load(authz.entrance.scope("odd", "t"), Query(log=True)).task
    assert task.text == "Pay the bill, never above 10\nSTOP, pay nobody"
    assert epoch(authz, "odd") == 2


# --- resume values -------------------------------------------------------------------------------------

WRONG: dict[str, Any] = {
    "word": "maybe",
    "number": 7,
    "null": {"decisions": None},
    "too-few": {"decisions": []},
    "too-many": {"decisions": [{"type": "approve"}] * 3},
    "unknown": {"decisions": [{"type": "permit"}]},
    "nested": {"decisions": [[{"type": "approve"}]]},
    "odd-edit": {"decisions": [{"type": "edit", "edited_action": {"name": 3, "args": []}}]},
    "bytes": b"approve",
}


@builders
@ways
@pytest.mark.parametrize("shape", WRONG)
def test_a_resume_value_of_the_wrong_shape(kind: str, go: Any, shape: str) -> None:
    """It approves nothing: the call is denied `approval_malformed`, and the run comes to its end."""
    ran: list[Any] = []
    authz, pdp, graph = built(kind, ran, asking("pay"))
    with authz.run(subject="alice"):
        go(graph, human(), THREAD)
    with authz.run(subject="alice"):
        go(graph, Command(resume=WRONG[shape]), THREAD)
    assert ran == []
    assert "approval_malformed" in reasons(authz, "pay")
    assert all(c.context.approval is None for c in calls_of(pdp, "pay"))


@builders
def test_an_empty_map_answers_nothing(kind: str) -> None:
    """To LangGraph it is a map of answers by id: the question stays open, and is approved later, once."""
    ran: list[Any] = []
    authz, _, graph = built(kind, ran, asking("pay"))
    with authz.run(subject="alice"):
        graph.invoke(human(), THREAD)
        graph.invoke(Command(resume={}), THREAD)
    assert ran == []
    with authz.run(subject="alice"):
        graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert ran == [PAID]


# --- whose thread --------------------------------------------------------------------------------------


@builders
@ways
@pytest.mark.parametrize("given", [human("Mine"), None, Command(resume="yes")], ids=["input", "go-on", "resume"])
def test_another_subject_on_the_thread(kind: str, go: Any, given: Any) -> None:
    """`subject_mismatch`, before any node runs; the owner goes on as before."""
    ran: list[Any] = []
    authz, _, graph = built(kind, ran, interrupt_before=["tools"])
    with authz.run(subject="alice"):
        go(graph, human(), THREAD)
    with authz.run(subject="mallory"), pytest.raises(AuthzDenied) as denied:
        go(graph, given, THREAD)
    assert denied.value.code == "subject_mismatch"
    assert ran == []
    with authz.run(subject="alice"):
        go(graph, None, THREAD)
    assert ran == [PAID]


def test_another_tenant_on_the_thread() -> None:
    """Another tenant's thread of the same name is another thread: what waits in the state is no plan of its own."""
    ran: list[Any] = []
    ledger, saver = MemoryLedger(), InMemorySaver()
    ours = authz_with(StaticPDP(True), ledger=ledger)
    policy = StaticPDP(lambda r: r.context.plan is None or r.context.plan.planned)
    theirs = authz_with(policy, ledger=ledger, tenant="other")
    graphs = []
    for authz in (ours, theirs):
        builder = StateGraph(_State)
        model = obedient()
        builder.add_node("agent", lambda s, model=model: {"messages": [model.invoke(s["messages"])]})
        builder.add_node("tools", ToolNode([pay_tool(ran)]))
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END)
        builder.add_edge("tools", END)
        graphs.append(authz.protect(builder.compile(checkpointer=saver, name="g", interrupt_before=["tools"])))
    with ours.run(subject="alice"):
        graphs[0].invoke(human(), THREAD)
    with theirs.run(subject="alice"):
        asyncio.run(graphs[1].ainvoke(None, THREAD))
    assert ran == []
    assert reasons(theirs, "pay")


class _State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
