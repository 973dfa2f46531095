"""A plan is kept by the checkpointer before it is carried out.

Else a process that dies in between has paid by a plan that is lost, and the next one plans and pays anew.
"""

from ._kit import *

CONFIG = THREAD


class SlowSaver(InMemorySaver):
    """Takes its time, as a database does; where nobody should wait for it, until the tool ran."""

    def __init__(self, longest: float) -> None:
        super().__init__()
        self.ran, self.longest = threading.Event(), longest

    def put(self, *args: Any) -> Any:
        self.ran.wait(self.longest)
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.put, *args)


def kept_when_it_ran(form: str, *, longest: float = 0.1, **options: Any) -> list[bool]:
    """Whether the announced call was in the checkpoint as its tool ran, if a checkpoint takes `longest` s at most."""
    saver, kept = SlowSaver(longest), []

    @tool
    def write(text: str) -> str:
        """Write."""
        found = saver.get_tuple(CONFIG)
        messages = found.checkpoint["channel_values"].get("messages", []) if found else []
        kept.append(any(isinstance(m, AIMessage) and m.tool_calls for m in messages))
        saver.ran.set()
        return "written"

    graph = hand_written(replying([call("write", {"text": "x"}, "c")]), [write], checkpointer=saver)
    authz = authz_with(StaticPDP(True))
    authz.protect(graph)
    with authz.run(subject="alice"):
        if form == "invoke":
            graph.invoke(human(), CONFIG, **options)
        elif form == "stream":
            list(graph.stream(human(), CONFIG, **options))
        else:
            asyncio.run(graph.ainvoke(human(), CONFIG, **options))
    return kept


@pytest.mark.parametrize("form", ["invoke", "stream", "ainvoke"])
def test_a_plan_is_kept_before_its_tool_runs(form: str) -> None:
    """By LangGraph's own default it is not."""
    assert kept_when_it_ran(form) == [True]


def test_who_asks_for_another_durability_gets_it() -> None:
    """The choice is the caller's, and so is LangGraph's default."""
    assert kept_when_it_ran("invoke", longest=60, durability="async") == [False]


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "twin"])
def test_a_graph_that_keeps_nothing_runs_in_one_that_does(how: str, protected: bool) -> None:
    """Also if it is made in a node. LangGraph gives it the durability of its caller, and waits for its checkpoints."""
    child = hand_written(replying(), [], checkpointer=False)
    made = lambda state: hand_written(replying(), [], checkpointer=False).invoke(state)
    parent = chain({"child": child, "made": made}, checkpointer=InMemorySaver())
    if protected:
        authz_with(StaticPDP(True), subject_from=lambda config: "alice").protect(parent)
    state = parent.invoke(human(), CONFIG) if how == "sync" else asyncio.run(parent.ainvoke(human(), CONFIG))
    assert [m.type for m in state["messages"]] == ["human", "ai", "ai"]


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "twin"])
def test_a_parent_decides_for_a_graph_in_its_node(how: str, protected: bool) -> None:
    """A parent without a checkpointer lends none, whatever the graph below has; its own caller's choice holds there too."""

    def checkpoints(lends: bool, **options: Any) -> int:
        child = hand_written(replying(), [], checkpointer=InMemorySaver())
        if protected:
            authz_with(StaticPDP(True), subject_from=lambda config: "alice").protect(child)
        saver = InMemorySaver()
        parent = chain({"child": child}, checkpointer=saver if lends else None)
        run = parent.invoke if how == "sync" else lambda *a, **k: asyncio.run(parent.ainvoke(*a, **k))
        assert run(human(), CONFIG, **options)["messages"][-1].type == "ai"
        return len([*saver.list(CONFIG)])

    assert checkpoints(lends=False) == 0
    assert checkpoints(lends=True, durability="exit") < checkpoints(lends=True, durability="sync")


class BusySaver(InMemorySaver):
    """Has another thread write a child's checkpoint whenever a checkpoint is decoded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.busy, self.shared = False, self.storage

    def _load_blobs(self, thread_id: str, *args: Any) -> dict[str, Any]:
        if self.busy:
            there = self.shared[thread_id]
            side_by_side(lambda: there[f"child:{len(there)}"])
        return super()._load_blobs(thread_id, *args)


def test_a_thread_may_be_written_while_its_checkpoints_are_listed(how: str, caplog: Any) -> None:
    """LangGraph's saver in memory fails then, and an `update_state` during the run would not be noticed."""
    saver = BusySaver()
    graph = hand_written(replying(), [], checkpointer=saver)
    run_as(authz := authz_with(StaticPDP(True)), authz.protect(graph), human(), THREAD, how=how)
    graph.update_state(THREAD, human("edited"))
    saver.busy = True
    with pytest.raises(RuntimeError, match="changed size"):
        list(saver.list(THREAD))
    run_as(authz, graph, human(), THREAD, how=how)
    assert "was not read" not in caplog.text
