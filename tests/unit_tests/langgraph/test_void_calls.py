"""A thread that leaves a question: providers accept the history that the model reads, whatever the way on."""

from typing import Any

import pytest
from langchain.agents.middleware import AgentState, HumanInTheLoopMiddleware
from langgraph.channels import DeltaChannel
from langgraph.graph.message import _messages_delta_reducer

from ...attack._kit import *

WAYS: dict[str, Any] = {}


def way(function: Any) -> Any:
    WAYS[function.__name__] = function
    return function


def asking(request: Any) -> object:
    return ASK if request.resource.id == "pay" and request.context.approval is None else True


def delta_graph(model: Any, tools: Sequence[Any], **kwargs: Any) -> Any:
    """`create_agent` whose messages are stored as deepagents' are."""
    class State(AgentState[Any]):
        messages: Annotated[list[Any], DeltaChannel(_messages_delta_reducer)]  # type: ignore[misc]

    return agent_graph(model, tools, state_schema=State, **kwargs)


def refuse_open_calls(messages: Sequence[Any]) -> None:
    """Fail as OpenAI and Anthropic do: tool messages follow their calls directly."""
    for place, message in enumerate(messages):
        if isinstance(message, AIMessage) and message.tool_calls:
            rest = [getattr(m, "tool_call_id", None) for m in messages[place + 1 :]]
            answered = rest[: rest.index(None)] if None in rest else rest
            assert sorted(answered) == sorted(c["id"] for c in message.tool_calls)
    assert len(unanswered(messages)) == 0


def strict(*turns: Any) -> Any:
    """A model that plays its turns, whatever it reads, and refuses what a provider refuses."""
    def turn(calls: Any) -> Any:
        return lambda messages: [refuse_open_calls(messages), says(*calls) if calls else says(text="done")][1]

    return ScriptedChatModel(script=[turn(calls) for calls in (*turns, *[()] * 9)])


def paused(make: Any, how: str, *turns: Any, tools: Any = None) -> tuple[Any, Any, list[Any]]:
    """A protected thread that waits for an approver."""
    ran: list[Any] = []
    model = strict(*(turns or ([PAY],)))
    graph = make(model, [pay_tool(ran), read_tool(ran), *(tools or ())], checkpointer=InMemorySaver())
    authz = authz_with(StaticPDP(asking))
    authz.protect(graph)
    assert run_as(authz, graph, human("Handle it"), THREAD, how=how)["__interrupt__"]
    return authz, graph, ran


@way
def new_message(authz: Any, graph: Any, how: str) -> Any:
    return run_as(authz, graph, human("Leave it"), THREAD, how=how)


@way
def correction(authz: Any, graph: Any, how: str) -> Any:
    authz.correct("t", "Leave it", graph=graph)
    return run_as(authz, graph, {"messages": []}, THREAD, how=how)


@way
def state_update(authz: Any, graph: Any, how: str) -> Any:
    with authz.run(subject="alice"):
        graph.update_state(THREAD, human("Leave it"), as_node="__start__")
    return run_as(authz, graph, None, THREAD, how=how)


@way
def update_then_message(authz: Any, graph: Any, how: str) -> Any:
    """The history is broken already, and the answers must go between."""
    with authz.run(subject="alice"):
        graph.update_state(THREAD, human("Wait"), as_node="__start__")
    return run_as(authz, graph, human("Leave it"), THREAD, how=how)


@way
def update_then_correction(authz: Any, graph: Any, how: str) -> Any:
    with authz.run(subject="alice"):
        graph.update_state(THREAD, human("Wait"), as_node="__start__")
    authz.correct("t", "Leave it", graph=graph)
    return run_as(authz, graph, None, THREAD, how=how)


@way
def reinstated(authz: Any, graph: Any, how: str) -> Any:
    authz.revoke("t", graph=graph)
    authz.reinstate("t", graph=graph)
    return run_as(authz, graph, human("Leave it"), THREAD, how=how)


@way
def history_again(authz: Any, graph: Any, how: str) -> Any:
    """A client sends the whole history with the new message."""
    before = graph.get_state(THREAD).values["messages"]
    return run_as(authz, graph, {"messages": [*before, HumanMessage("Leave it")]}, THREAD, how=how)


makers = params(hand_written, agent_graph, delta_graph, ids=["hand_written", "create_agent", "DeltaChannel"])
ways = params(list(WAYS.values()), ids=list(WAYS))
hows = params("sync", "async")


def test_the_model_reads_an_answer_to_each_call(makers: Any, ways: Any, hows: str) -> None:
    authz, graph, ran = paused(makers, hows)
    messages = ways(authz, graph, hows)["messages"]
    assert [m.type for m in messages if m.text != "Wait"] == ["human", "ai", "tool", "human", "ai"]
    answer = answer_to(messages, "call-pay")
    assert answer.status == "error" and "Plan again" in answer.content and "(decision " in answer.content
    assert messages[-2].content == "Leave it" and ran == []
    run_as(authz, graph, human("Thanks"), THREAD, how=hows)  # the state is whole: a later run reads the same
    refuse_open_calls(graph.get_state(THREAD).values["messages"])


def test_each_call_of_a_message_is_answered(makers: Any, ways: Any, hows: str) -> None:
    """`create_agent` runs each call as a task of its own, and the read's has ended."""
    authz, graph, ran = paused(makers, hows, [READ, PAY])
    messages = [m for m in ways(authz, graph, hows)["messages"] if m.text != "Wait"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "tool", "human", "ai"] and PAID not in ran


def test_a_client_may_edit_the_call(makers: Any) -> None:
    authz, graph, ran = paused(makers, "sync")
    less = {"tool_calls": [call("pay", {"to": "bob", "amount": "1"}, "call-pay")]}
    edited = graph.get_state(THREAD).values["messages"][-1].model_copy(update=less)
    messages = run_as(authz, graph, {"messages": [edited, HumanMessage("Less")]}, THREAD)["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "human", "ai"] and ran == []


def test_an_answer_is_not_given_and_the_call_run_too(hows: str) -> None:
    """Another task's message stands behind the failed call, but only until the step ends."""
    done: list[str] = []

    @tool
    def fetch(path: str) -> str:
        """Fail at first."""
        done.append(path)
        if done == [path]:
            raise ConnectionError("down")
        return "text"

    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]

    model = ScriptedChatModel(script=[says(call("fetch", {"path": "a"}, "call-fetch")), says(text="done")])
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([fetch], handle_tool_errors=False))
    builder.add_node("side", lambda state: {"messages": [HumanMessage("A note", name="side")]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: ["tools", "side"] if s["messages"][-1].tool_calls else [END])
    builder.add_edge("tools", "agent")
    authz, graph = protecting(builder.compile(checkpointer=InMemorySaver(), name="hand"), StaticPDP(True))
    with pytest.raises(ConnectionError):
        run_as(authz, graph, human("Handle it"), THREAD, how=hows)
    authz.correct("t", "Hurry", graph=graph)
    messages = run_as(authz, graph, None, THREAD, how=hows)["messages"]
    assert [m.type for m in messages].count("tool") == 1


def test_a_call_behind_a_breakpoint_is_answered(makers: Any, hows: str) -> None:
    ran: list[Any] = []
    graph = makers(strict([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver(), interrupt_before=["tools"])
    authz, graph = protecting(graph, StaticPDP(True))
    run_as(authz, graph, human("Handle it"), THREAD, how=hows)
    assert graph.get_state(THREAD).next == ("tools",)
    messages = run_as(authz, graph, human("Leave it"), THREAD, how=hows)["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "human", "ai"] and ran == []


def test_a_fork_at_an_open_call_answers_with_its_result(makers: Any, hows: str) -> None:
    ran: list[Any] = []
    authz, graph = protecting(makers(strict([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()), StaticPDP(True))
    run_as(authz, graph, human("Handle it"), THREAD, how=hows)
    (place,) = [state.config for state in graph.get_state_history(THREAD) if "tools" in state.next]
    messages = run_as(authz, graph, human("Thanks"), place, how=hows)["messages"]
    assert answer_to(messages, "call-pay").content == "paid" and ran == [PAID]
    assert [m.type for m in messages] == ["human", "ai", "tool", "human", "ai"]


def test_the_calls_of_a_run_that_never_ended_are_answered(makers: Any) -> None:
    """The process died, so the run left no mark."""
    saver, ledger, ran = InMemorySaver(), MemoryLedger(), list[Any]()
    authz, graph = protecting(
        makers(strict([PAY]), [pay_tool(ran)], checkpointer=saver), StaticPDP(True), ledger=ledger
    )
    with authz.run(subject="alice"):
        alive = graph.stream(human("Handle it"), THREAD, stream_mode="updates")
        next(alive)
    authz, graph = protecting(makers(strict(), [pay_tool(ran)], checkpointer=saver), StaticPDP(True), ledger=ledger)
    messages = run_as(authz, graph, human("Leave it"), THREAD)["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "human", "ai"] and ran == []
    alive.close()


def test_a_state_object_is_answered_as_a_dict_is(hows: str) -> None:
    class State(BaseModel):
        messages: Annotated[list[Any], add_messages] = []

    ran: list[Any] = []
    model = strict([PAY])
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state.messages)]})
    builder.add_node("tools", ToolNode([pay_tool(ran)]))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: "tools" if s.messages[-1].tool_calls else END, ["tools", END])
    builder.add_edge("tools", "agent")
    authz, graph = protecting(builder.compile(checkpointer=InMemorySaver(), name="hand"), StaticPDP(asking))
    assert run_as(authz, graph, State(messages=[HumanMessage("Handle it")]), THREAD, how=hows)["__interrupt__"]
    authz.correct("t", "Wait", graph=graph)
    messages = run_as(authz, graph, State(messages=[HumanMessage("Leave it")]), THREAD, how=hows)["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "human", "human", "ai"] and ran == []


@pytest.mark.parametrize("makers", [agent_graph, delta_graph])
def test_a_waiting_tool_node_answers_after_an_update_for_the_model(makers: Any) -> None:
    authz, graph, ran = paused(makers, "sync")
    with authz.run(subject="alice"):
        graph.update_state(THREAD, human("Leave it"), as_node="model")
    assert graph.get_state(THREAD).next == ("tools",)
    with pytest.raises(AssertionError):  # the user's message stands before the answer, as LangGraph leaves it
        run_as(authz, graph, None, THREAD)
    messages = graph.get_state(THREAD).values["messages"]
    assert [m.type for m in messages] == ["human", "ai", "human", "tool"] and ran == []


def test_a_waiting_node_answers_by_itself(makers: Any, hows: str) -> None:
    authz, graph, ran = paused(makers, hows)
    authz.correct("t", "Leave it", graph=graph)
    messages = run_as(authz, graph, None, THREAD, how=hows)["messages"]
    assert "Leave it" in answer_to(messages, "call-pay").content and ran == []


def test_an_approved_call_stays_open(makers: Any, hows: str) -> None:
    authz, graph, ran = paused(makers, hows)
    (asked,) = authz.approvals()
    authz.approve(asked.id, by={"type": "user", "id": "bob"})
    run_as(authz, graph, None, THREAD, how=hows)
    assert ran == [PAID]


@pytest.mark.parametrize("own", [
    [ToolMessage("I cancelled it.", tool_call_id="call-pay")],
    [RemoveMessage(REMOVE_ALL_MESSAGES)],
], ids=["answers", "clears"])
def test_a_client_that_answers_or_clears_is_not_answered_for(own: list[Any], makers: Any) -> None:
    authz, graph, _ = paused(makers, "sync")
    messages = run_as(authz, graph, {"messages": [*own, HumanMessage("Leave it")]}, THREAD)["messages"]
    assert [m.content for m in messages if m.type == "tool"] == [m.content for m in own if m.type == "tool"]


def test_a_client_may_remove_the_call(makers: Any) -> None:
    authz, graph, _ = paused(makers, "sync")
    gone = RemoveMessage(graph.get_state(THREAD).values["messages"][-1].id)
    messages = run_as(authz, graph, {"messages": [gone, HumanMessage("Leave it")]}, THREAD)["messages"]
    assert [m.type for m in messages] == ["human", "human", "ai"]


@pytest.mark.parametrize("makers", [hand_written, agent_graph, delta_graph])
def test_a_call_that_was_done_is_answered_with_its_result(makers: Any, hows: str) -> None:
    """The step never ended, so LangGraph drops the first result, which the ledger has."""
    done_and_answered(makers, hows)


def done_and_answered(makers: Any, hows: str) -> None:
    @tool
    def write(text: str) -> str:
        """Write, after a question of the tool's own."""
        return interrupt("Which file?")

    again = call("pay", {"to": "carol", "amount": "1"}, "call-again")
    ran: list[Any] = []
    model = strict([PAY, call("write", {"text": "x"}, "call-write")], [again])
    authz, graph = protecting(makers(model, [pay_tool(ran), write], checkpointer=InMemorySaver()), StaticPDP(True))
    assert run_as(authz, graph, human("Pay and write"), THREAD, how=hows)["__interrupt__"]
    messages = new_message(authz, graph, hows)["messages"]
    assert answer_to(messages, "call-pay").content == "paid"
    assert answer_to(messages, "call-write").status == "error"
    assert ran == [PAID, ("carol", 1.0, "USD")]


def test_langchains_review_leaves_calls_open_without_us(hows: str) -> None:
    def reviewed() -> Any:
        review = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
        return agent_graph(strict([PAY]), [pay_tool([])], middleware=[review], checkpointer=InMemorySaver())

    authz, graph = protecting(reviewed(), StaticPDP(True))
    assert run_as(authz, graph, human("Handle it"), THREAD, how=hows)["__interrupt__"]
    assert_went_on(new_message(authz, graph, hows))
    plain, go = reviewed(), {"sync": sync, "async": in_loop}[hows]
    go(plain, human("Handle it"), THREAD)
    with pytest.raises(AssertionError):
        go(plain, human("Leave it"), THREAD)
