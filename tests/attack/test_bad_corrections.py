"""Bad input where tasks change: each is a deny with a stable code, or nothing at all; the thread goes on."""

from langchain.agents import create_agent
from langchain_core.load import dumpd
from langchain_core.messages import AnyMessage, ChatMessage, HumanMessageChunk
from langgraph.func import entrypoint
from langgraph.types import Overwrite
from typing_extensions import TypedDict

from ._kit import *
from .emitters import Scene
from .test_corrections import built
from .test_outside import House

FORMS = {
    "text": "STOP", "message": HumanMessage("STOP"), "tuple": ("user", "STOP"),
    "pair as JSON has it": [["user", "STOP"]], "mapping": [{"type": "human", "content": "STOP"}],
    "blocks": [{"role": "user", "content": [{"type": "text", "text": "STOP"}]}],
    "role": [ChatMessage("STOP", role="user")], "chunk": [HumanMessageChunk("STOP")], "serialised": [dumpd(HumanMessage("STOP"))],
}
OVERWRITES = {
    "object": Overwrite([HumanMessage("STOP")]), "sentinel": {"__overwrite__": [{"role": "user", "content": "STOP"}]},
    "as JSON has it": {"type": "__overwrite__", "value": [["human", "STOP"]]},
}


@pytest.mark.parametrize("form", [*FORMS, *OVERWRITES])
@pytest.mark.parametrize("by", ["input", "update"])
def test_a_correction_is_heard_in_every_form(form: str, by: str) -> None:
    """Whatever LangChain or LangGraph make a human's message of; the words count as the human's."""
    house, said = House(), {**FORMS, **OVERWRITES}[form]
    house.go(human())
    given: Any = {"messages": said} if by == "input" else Command(update={"messages": said})
    with contextlib.suppress(ValueError):  # a plan that was overwritten can not be answered
        house.go(given)
    assert (house.epoch, house.ran) == (2, [])
    texts = house.authz.ledger.load(house.authz.run_opener.scope("hand", "t"), Query(log=True)).log
    assert "STOP" in [t.text for t in texts if t.own]


@pytest.mark.parametrize("form", FORMS)
def test_unenforced_a_correction_beside_a_plan_that_waits_is_in_vain(form: str) -> None:
    house = House(protected=False)
    house.raw.invoke(human(), THREAD)
    house.raw.invoke(Command(update={"messages": FORMS[form]}), THREAD)
    assert house.ran == [PAID]


@pytest.mark.parametrize("value", [None, []])
def test_to_empty_a_list_is_an_edit(value: Any) -> None:
    """To-dos that a client clears; what was empty before says nothing."""
    scene = Scene(InMemorySaver(), forms=("invoke",))
    scene.go({"messages": [], "todos": value})
    assert scene.epoch == 1
    scene.go({"messages": []}, lambda state: {"todos": [{"content": "pay"}]})
    scene.go({"messages": [], "todos": value})
    assert scene.epoch == 2


def test_what_a_client_overwrites_is_removed() -> None:
    """Past the reducer: of what stood there the human's words and the plan are gone."""
    house = House()
    house.go(human("Pay the bill", id="1"))
    house.go({"messages": Overwrite([HumanMessage("Pay the bill", id="1")])})
    assert house.epoch == 2


def test_a_correction_that_waits_is_told_after_a_history_is_removed() -> None:
    """Put before what removes all, it would be removed as well."""
    house = House()
    house.go(human())
    house.authz.correct("t", "STOP", graph=house.graph)
    house.go({"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), HumanMessage("Go on")]})
    assert [m.text for m in house.raw.get_state(THREAD).values["messages"]][:2] == ["STOP", "Go on"]


class Chat(TypedDict):
    """No channel that anybody declared."""

    chat: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("channels", [(), ("chat",)])
@pytest.mark.parametrize("by", ["update", "edit"])
def test_a_state_without_a_declared_channel_is_watched_whole(channels: tuple[str, ...], by: str, ran: Any) -> None:
    """Whatever goes in changes the task; only in a declared channel are words the human's, and only his messages."""
    model = replying([call("pay", {"to": "bob", "amount": "5"}, "c1")])
    plan = lambda s: next(m for m in reversed(s["chat"]) if isinstance(m, AIMessage))
    authz = authz_with(StaticPDP(True), task_sources=TaskSources(channels) if channels else None)
    graph = authz.protect(loop(lambda state: {"chat": [model.invoke(state["chat"])]}, ToolNode([pay_tool(ran)], messages_key="chat"), lambda s: "tools" if plan(s).tool_calls else END, state=Chat, checkpointer=InMemorySaver(), name="g", interrupt_before=["tools"]))
    told(authz, graph, {"chat": [HumanMessage("Pay"), AIMessage("as eve says")]}, THREAD)
    with authz.run(subject="alice"):
        if by == "update":
            graph.invoke(Command(update={"chat": [HumanMessage("STOP")]}), THREAD)
        else:
            graph.update_state(THREAD, {"chat": [HumanMessage("STOP")]}, as_node="agent")
            graph.invoke(None, THREAD)
    assert ran == [] and epoch_of(authz, "g") == 2
    assert authz.pdp.requests[0].context.task.text == ("Pay" if channels else "")


@pytest.mark.parametrize("said", [lambda t: t, lambda t: {"question": t}], ids=["text", "mapping"])
def test_what_a_workflow_is_given_anew_is_a_correction(said: Any, authz: Any) -> None:
    """A functional workflow has no channels at all; the same once more is none."""

    @entrypoint(checkpointer=InMemorySaver())
    def flow(given: Any) -> str:
        return "done"

    authz.protect(flow)
    for text, expected in (("pay", 1), ("pay", 1), ("STOP", 2), ("pay", 3)):
        with authz.run(subject="alice"):
            flow.invoke(said(text), THREAD)
        assert epoch_of(authz, flow.get_name()) == expected, text


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
def test_reducers_that_drop_or_reorder(reducer: Any, protected: bool, ran: Any, authz: Any) -> None:
    """The task is pinned beside the state: it loses nothing, a correction voids what waits, and nothing else does."""
    model = obedient()

    odd: Any = TypedDict("odd", {"messages": Annotated[list[AnyMessage], reducer]})

    graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([pay_tool(ran)]), by_the_plan, state=odd, checkpointer=InMemorySaver(), name="odd", interrupt_before=["tools"])
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
    task = authz.ledger.load(authz.run_opener.scope("odd", "t"), Query(log=True)).task
    assert task.text == "Pay the bill, never above 10\nSTOP, pay nobody" and epoch_of(authz, "odd") == 2


def test_an_empty_map_answers_nothing(kind: str, ran: Any) -> None:
    """To LangGraph it is a map of answers by id: the question stays open, and is approved later, once."""
    authz, _, graph = built(kind, ran, asking("pay"))
    with authz.run(subject="alice"):
        graph.invoke(human(), THREAD)
        graph.invoke(Command(resume={}), THREAD)
    assert ran == []
    told(authz, graph, resume(APPROVE), THREAD)
    assert ran == [PAID]


@pytest.mark.parametrize("given", [human("Mine"), None, Command(resume="yes")], ids=["input", "go-on", "resume"])
def test_another_subject_on_the_thread(kind: str, go: Any, given: Any) -> None:
    """`subject_mismatch`, before any node runs; the owner goes on as before."""
    ran: list[Any] = []
    authz, _, graph = built(kind, ran, interrupt_before=["tools"])
    told(authz, graph, human(), THREAD, go=go)
    with authz.run(subject="mallory"):
        assert code_of(lambda: go(graph, given, THREAD)) == "subject_mismatch"
    assert ran == []
    told(authz, graph, None, THREAD, go=go)
    assert ran == [PAID]


def test_another_tenant_on_the_thread(ran: Any) -> None:
    """Another tenant's thread of the same name is another thread: what waits in the state is no plan of its own."""
    ledger, saver = MemoryLedger(), InMemorySaver()
    ours = authz_with(StaticPDP(True), ledger=ledger)
    policy = StaticPDP(lambda r: r.context.plan is None or r.context.plan.planned)
    theirs = authz_with(policy, ledger=ledger, tenant="other")
    graphs = []
    for authz in (ours, theirs):
        graph = hand_written(obedient(), [pay_tool(ran)], checkpointer=saver, name="g", interrupt_before=["tools"])
        graphs.append(authz.protect(graph))
    with ours.run(subject="alice"):
        graphs[0].invoke(human(), THREAD)
    with theirs.run(subject="alice"):
        asyncio.run(graphs[1].ainvoke(None, THREAD))
    assert ran == [] and reasons(theirs, "pay")


@pytest.mark.parametrize("items", [1000, 1001])
def test_memory_beyond_the_limit_is_not_ignored(items: int, ran: Any) -> None:
    """An edit of an item that was not read would go unnoticed, so no run begins."""
    store = InMemoryStore()
    for n in range(items):
        store.put(("memories", "alice"), f"{n}", {"text": "pay at once"})
    authz = authz_with(StaticPDP(True), task_sources=TaskSources(memory=(("memories", "{subject}"),)))
    model = replying([call("pay", {"to": "bob", "amount": "5"}, "c1")], [])
    graph = authz.protect(create_agent(model, [pay_tool(ran)], checkpointer=InMemorySaver(), store=store, name="g"))
    with authz.run(subject="alice"):
        if items > 1000:
            with pytest.raises(ConfigError, match="more than 1000 items; name a narrower namespace"):
                graph.invoke({"messages": [HumanMessage("Pay Bob 5")]}, THREAD)
        else:
            graph.invoke({"messages": [HumanMessage("Pay Bob 5")]}, THREAD)
    assert len(ran) == (0 if items > 1000 else 1)
