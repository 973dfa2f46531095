"""A correction's text reaches the model whatever the graph's input, or the log says that it cannot."""

from typing import Any

import pytest
from langgraph.func import entrypoint

from ...attack._kit import *

hows = params("sync", "async")


class Topic(TypedDict):
    topic: str


class Research(Topic):
    messages: Annotated[list[Any], add_messages]


def asking(request: Any) -> object:
    return ASK if request.resource.id == "pay" and request.context.approval is None else True


def research(*turns: Any, ran: Any = None) -> Any:
    """A graph that takes a topic, and keeps messages for itself."""
    model = ScriptedChatModel(script=[says(*calls) if calls else says(text="done") for calls in (*turns, *[()] * 9)])
    builder = StateGraph(Research, input_schema=Topic)
    builder.add_node("agent", lambda s: {"messages": [model.invoke([("user", s["topic"]), *s["messages"]])]})
    builder.add_node("tools", ToolNode([pay_tool([] if ran is None else ran)]))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])
    builder.add_edge("tools", "agent")
    return builder.compile(checkpointer=InMemorySaver(), name="hand"), model


def test_a_state_that_its_input_hides_gets_the_text_once(hows: str) -> None:
    graph, model = research()
    authz, graph = protecting(graph, StaticPDP(True))
    run_as(authz, graph, {"topic": "Acme"}, THREAD, how=hows, task="Acme")
    authz.correct("t", "Stop: Beta instead", graph=graph)
    own = {"topic": "Acme", "messages": [HumanMessage("ignored, as without us")]}
    for _ in range(2):
        run_as(authz, graph, own, THREAD, how=hows)
    assert [m.text for m in model.prompts[1]] == ["Acme", "done", "Stop: Beta instead"]
    assert [m.text for m in model.prompts[2]] == ["Acme", "done", "Stop: Beta instead", "done"]


def test_its_open_call_is_answered_before_the_text(hows: str) -> None:
    ran: list[Any] = []
    graph, model = research([PAY], ran=ran)
    authz, graph = protecting(graph, StaticPDP(asking))
    assert run_as(authz, graph, {"topic": "Acme"}, THREAD, how=hows, task="Acme")["__interrupt__"]
    authz.correct("t", "Stop: Beta instead", graph=graph)
    run_as(authz, graph, {"topic": "Acme"}, THREAD, how=hows)
    assert [m.type for m in model.prompts[1]] == ["human", "ai", "tool", "human"] and ran == []


def flow(given: Any) -> Any:
    @entrypoint(checkpointer=InMemorySaver())
    def hand(value: Any) -> Any:
        return value

    return hand, given


class Plain(TypedDict):
    topic: str


@pytest.mark.parametrize("made", [
    lambda: flow("Acme"), lambda: flow([HumanMessage("Acme")]),
    lambda: (chain({"n": lambda s: {"topic": "x"}}, Plain, checkpointer=InMemorySaver(), name="hand"), {"topic": "Acme"}),
], ids=["text", "list", "no messages"])
def test_the_log_says_that_a_text_has_no_place(made: Any, hows: str, caplog: pytest.LogCaptureFixture) -> None:
    graph, given = made()
    authz, graph = protecting(graph, StaticPDP(True))
    run_as(authz, graph, given, THREAD, how=hows)
    assert "correction_undelivered" not in caplog.text
    authz.correct("t", "Stop", graph=graph)
    run_as(authz, graph, given, THREAD, how=hows)
    assert caplog.text.count("correction_undelivered: the graph's input has no place") == 1


def test_an_entrypoint_with_messages_gets_the_text(caplog: pytest.LogCaptureFixture) -> None:
    graph, given = flow({"messages": [HumanMessage("Acme")]})
    authz, graph = protecting(graph, StaticPDP(True))
    run_as(authz, graph, given, THREAD)
    authz.correct("t", "Stop", graph=graph)
    assert [m.text for m in run_as(authz, graph, {"messages": []}, THREAD)["messages"]] == ["Stop"]
    assert "correction_undelivered" not in caplog.text
