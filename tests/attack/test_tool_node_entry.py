"""A tool node's entry, which is decided in one batch with the node's calls."""

from unittest.mock import patch

from ._kit import *


class Batches(StaticPDP):
    """A PDP with batches. It notes which resources each of its answers was about."""

    def __init__(self, permit: Any = True) -> None:
        super().__init__(permit)
        self.asked: list[list[str]] = []

    def _about(self, bodies: Sequence[bytes]) -> None:
        self.asked.append([f"{r['action']['name']} {r['resource']['id']}" for r in map(json.loads, bodies)])

    def evaluate(self, body: bytes) -> object:
        self._about([body])
        return super().evaluate(body)

    def evaluate_batch(self, bodies: Sequence[bytes]) -> list[object]:
        self._about(bodies)
        return [super(Batches, self).evaluate(body) for body in bodies]

    async def aevaluate_batch(self, bodies: Sequence[bytes]) -> list[object]:
        return self.evaluate_batch(bodies)


ENTER = "node/enter tools"
TWO = [{**PAY, "id": "c1"}, READ]


def test_one_question_for_the_node_and_its_calls(kind: str, go: Any, ran: Any) -> None:
    """The first message of a run brings both; from then on, the node's permit is cached."""
    pdp = Batches()
    _, graph = protecting(BUILDERS[kind](replying(TWO, [{**READ, "id": "c2"}]), [pay_tool(ran), read_tool(ran)]), pdp)
    go(graph, human())
    assert [asked for asked in pdp.asked if "tools" in str(asked)] == [[ENTER, "tools/call pay", "tools/call read"], ["tools/call read"]]
    assert len(ran) == 3


def test_a_denied_node_runs_no_permitted_call(kind: str, go: Any, ran: Any, protected: bool) -> None:
    """Each call is permitted, and claimed by nobody: when the node may be entered, each runs once."""
    closed = ["tools"]
    pdp = Batches(lambda r: r.resource.id not in closed)
    graph = BUILDERS[kind](replying(TWO), [pay_tool(ran), read_tool(ran)], checkpointer=InMemorySaver())
    authz = authz_with(pdp)
    if not protected:
        go(graph, human(), THREAD)
        assert len(ran) == 2
        return
    graph = authz.protect(graph)
    with authz.run(subject="alice", task="x"):
        assert code_of(lambda: go(graph, human(), THREAD), AuthzHalt) == "no_permit"
        assert ran == []
        closed.clear()
        go(graph, None, THREAD)
    assert len(ran) == 2


def test_a_stop_at_a_cached_permit_is_no_answer_to_the_calls(tmp_path: Path, kind: str, go: Any, ran: Any, protected: bool) -> None:
    """The caller learns that the run was stopped, and the call is made when the thread goes on. Nobody stops the twin."""
    switch = tmp_path / "kill"

    def stopping(_: Any) -> AIMessage:
        switch.touch()
        return says({**PAY, "id": "c2"})

    model = ScriptedChatModel(script=[says(READ), stopping, says(text="done")])
    graph = BUILDERS[kind](model, [pay_tool(ran), read_tool([])], checkpointer=InMemorySaver())
    authz = authz_with(StaticPDP(permit=True), kill_switch=switch)
    if not protected:
        go(graph, human(), THREAD)
        assert ran == [PAID]
        return
    graph = authz.protect(graph)
    with authz.run(subject="alice", task="x"):
        assert code_of(lambda: go(graph, human(), THREAD), AuthzHalt) == "killed"
    assert ran == []
    switch.unlink()
    told(authz, graph, None, THREAD, go=go, task="x")
    assert ran == [PAID]


def test_a_ledger_that_fails_before_the_tools(kind: str, go: Any, ran: Any) -> None:
    """The node is not entered."""
    broken = contextlib.ExitStack()

    def breaking(_: Any) -> AIMessage:
        broken.enter_context(patch.object(MemoryLedger, "load", side_effect=OSError))
        return says(PAY)

    authz, graph = protecting(BUILDERS[kind](ScriptedChatModel(script=[breaking]), [pay_tool(ran)]), StaticPDP(permit=True))
    with broken, contextlib.suppress(AuthzDenied), authz.run(subject="alice", task="x"):
        assert code_of(lambda: go(graph, human()), AuthzHalt) == "ledger_unavailable"
    assert ran == []


def own_way(name: str) -> type[ToolNode]:
    """Return a class that does something before its calls, in this method."""

    def method(self: Any, input: Any, config: Any = None, *given: Any) -> Any:
        entered.append(name)
        return getattr(super(kind, self), name)(input, *[config, *given][: len(given) + (config is not None)])

    kind = type("OwnWay", (ToolNode,), {name: method})
    return kind


entered: list[str] = []


@pytest.mark.parametrize("name", ["invoke", "_parse_input", "_extract_state", "_inject_tool_args"])
def test_a_node_with_code_of_its_own(name: str, ran: Any, protected: bool) -> None:
    """It is decided before that code runs."""

    @tool
    def stored(runtime: ToolRuntime) -> str:
        """Read the runtime."""
        return "read"

    def each(state: Any) -> list[Send]:
        return [Send("tools", {"__type": "tool_call_with_context", "tool_call": c, "state": state}) for c in state["messages"][-1].tool_calls]

    model = replying([PAY, call("stored", {}, "c2")])
    builder = StateGraph(MessagesState).add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
    builder.add_node("tools", own_way(name)([pay_tool(ran), stored])).add_edge(START, "agent")
    graph = builder.add_conditional_edges("agent", each, ["tools"]).compile(name="hand")
    pdp = Batches(lambda r: r.resource.id != "tools")
    authz = authz_with(pdp)
    entered.clear()
    if not protected:
        graph.invoke(human())
        assert name in entered and len(ran) == 1
        return
    graph = authz.protect(graph)
    assert code_of(lambda: told(authz, graph, human(), task="x"), AuthzHalt) == "no_permit"
    assert entered == ran == []
    assert [ENTER] in pdp.asked
