"""The review of LangGraph's how-to "review tool calls": its answers count as the reviewer's."""

from typing import Any

from ...attack._kit import *

hows = params("sync", "async")
EDITED = {"to": "bob", "amount": "7"}


def asking(request: Any) -> object:
    return ASK if request.resource.id == "pay" and request.context.approval is None else True


class Desk:
    """A graph whose own node shows each call, and does as the reviewer says."""

    def __init__(self, how: str, node: str = "tools", *, runs: Any = None, pdp: Any = None) -> None:
        self.ran, self.how, self.runs = list[Any](), how, runs
        pay = pay_tool(self.ran)

        def review(state: MessagesState) -> Command[Any]:
            (shown,) = state["messages"][-1].tool_calls
            said = interrupt({"question": "Is this correct?", "tool_call": shown})
            if said["action"] != "update":
                return Command(goto="tools")
            changed = AIMessage("", id=state["messages"][-1].id, tool_calls=[{**shown, "args": self.runs or said["data"]}])
            return Command(goto="tools", update={"messages": [changed]})

        def by_hand(state: MessagesState) -> dict[str, Any]:
            return {"messages": [ToolMessage(pay.invoke(c["args"]), tool_call_id=c["id"]) for c in state["messages"][-1].tool_calls]}

        model = replying([PAY])
        builder = StateGraph(MessagesState)
        builder.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
        builder.add_node("review", review, destinations=("tools",))
        builder.add_node("tools", ToolNode([pay]) if node == "tools" else by_hand)
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", lambda s: "review" if s["messages"][-1].tool_calls else END, ["review", END])
        builder.add_edge("tools", "agent")
        self.authz, self.graph = protecting(builder.compile(checkpointer=InMemorySaver(), name="hand"), pdp or StaticPDP(asking))

    def answer(self, said: Any) -> Any:
        assert run_as(self.authz, self.graph, human("Handle it"), THREAD, how=self.how)["__interrupt__"]
        return run_as(self.authz, self.graph, Command(resume=said), THREAD, how=self.how)


nodes = params("tools", "by hand")


def test_an_update_is_the_reviewers_edit(nodes: str, hows: str) -> None:
    desk = Desk(hows, nodes)
    assert_went_on(desk.answer({"action": "update", "data": EDITED}))
    assert desk.ran == [("bob", 7.0, "USD")] and epoch_of(desk.authz) == 2
    (answer,) = [r for r in desk.authz.audit.records if r.get("event") == "approval"]  # type: ignore[attr-defined]
    assert answer["detail"]["verdict"] == "edit" and answer["detail"]["source"] == "hitl"


def test_a_field_without_a_value_says_nothing(nodes: str, hows: str) -> None:
    desk = Desk(hows, nodes)
    assert_went_on(desk.answer({"action": "continue", "data": None}))
    assert desk.ran == [PAID] and epoch_of(desk.authz) == 1


def test_only_what_the_reviewer_wrote_is_approved(hows: str) -> None:
    """The node runs something else than the reviewer's arguments."""
    desk = Desk(hows, runs={"to": "eve", "amount": "9"})
    desk.answer({"action": "update", "data": EDITED})
    assert desk.ran == []


def test_other_forms_of_an_update_approve_nothing(hows: str) -> None:
    for said in ({"action": "update", "data": "7"}, {"action": "update", "data": EDITED, "more": 1}, {"action": "send", "data": EDITED}):
        desk = Desk(hows, runs=EDITED)
        desk.answer(said)
        assert desk.ran == []
