"""Every door in both ways of calling, and every form at each kind of root (in the long tier, at each door): denied means not run, answered, and recorded as it would have run."""

from langgraph.runtime import Runtime

from tests.tier import chosen

from ._kit import *


class Door:
    """A graph behind one of the doors. `authz=None` builds the unenforced twin."""

    def __init__(self, authz: Any) -> None:
        self.authz = authz
        self.ran: list[Any] = []
        self.model = replying([PAY, READ])
        self.tools = [pay_tool(self.ran), read_tool(self.ran)]

    def protected(self, graph: Any) -> Any:
        return graph if self.authz is None else self.authz.protect(graph)

    def guarded(self) -> Any:
        return self.tools if self.authz is None else self.authz.guard(self.tools)

    def authz_node(self) -> Any:
        return ToolNode(self.tools) if self.authz is None else AuthzToolNode(self.tools, authz=self.authz)

    def hand(self, tools: Any, **options: Any) -> Any:
        return hand_written(self.model, tools, **options)

    def agent(self, **options: Any) -> Any:
        return agent_graph(self.model, self.tools, **options)

    def looped(self) -> Any:
        by_name = {t.name: t for t in self.guarded()}

        def act(state: MessagesState) -> dict[str, Any]:
            return {"messages": [by_name[c["name"]].invoke(c) for c in state["messages"][-1].tool_calls]}

        async def aact(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await by_name[c["name"]].ainvoke(c) for c in state["messages"][-1].tool_calls]}

        agent = lambda state: {"messages": [self.model.invoke(state["messages"])]}
        return loop(agent, RunnableCallable(act, aact, name="tools"))

    def agent_in_node(self) -> Any:
        """An agent invoked by a node function, reached through the function's closure."""
        return node_graph(calling(self.agent(name="inner")))

    def agent_as_tool(self) -> Any:
        """An agent inside a tool of another agent; the payment is the inner agent's."""
        inner = self.agent(name="inner")

        @tool
        def ask_agent(request: str) -> str:
            """Ask the other agent."""
            state = inner.invoke({"messages": [HumanMessage(request)]})
            self.inner_states.append(state)
            return str(state["messages"][-1].content)

        self.inner_states: list[Any] = []
        outer = replying([{"name": "ask_agent", "args": {"request": "pay"}, "id": "call-ask", "type": "tool_call"}])
        return agent_graph(outer, [ask_agent], name="outer")


BEHIND: dict[str, Callable[[Door], Any]] = {
    "toolnode": lambda d: d.protected(d.hand(d.authz_node())), "toolnode_alone": lambda d: d.hand(d.authz_node()),
    "guarded_in_toolnode": lambda d: d.protected(d.hand(ToolNode(d.guarded()))),
    "guarded_unprotected": lambda d: d.hand(ToolNode(d.guarded())),
    "guarded_in_node": lambda d: d.protected(d.looped()), "guarded_in_node_unprotected": lambda d: d.looped(),
    "create_agent": lambda d: d.protected(d.agent()), "hand_written": lambda d: d.protected(d.hand(d.tools)),
    "subgraph": lambda d: d.protected(node_graph(d.hand(d.tools, name="inner"))),
    "subgraph_agent": lambda d: d.protected(node_graph(d.agent(name="inner"))),
    "agent_in_node": lambda d: d.protected(d.agent_in_node()),
    "agent_as_tool": lambda d: d.protected(d.agent_as_tool()),
}
# A form matters at the root: protected, with an agent below it, or a stock one above a tool node of ours.
EACH_FORM = ("hand_written", "agent_as_tool", "toolnode_alone")
CASES = chosen([(door, form) for form in FORMS for door in BEHIND], lambda case: case[1] in ("stream", "astream") or case[0] in EACH_FORM)
# A batch of a graph without protection is one root entry, in which an exact repeat of a running call asks (`test_doubt`).
ENTERED = [(door, form) for door, form in CASES if not (door.endswith("_unprotected") and form.endswith("batch"))]
forms = pytest.mark.parametrize(("door", "form"), CASES)


@forms
def test_denied_tool_never_runs(door: str, form: str) -> None:
    """Denied alone, the tool does not run, its sibling does, and the run goes on to its end."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    behind = Door(authz)
    graph = BEHIND[door](behind)
    with authz.run(subject="alice", task="Pay the bill"):
        states = drive_form(form, graph, human())
    assert [r for r in behind.ran if r[0] != "read"] == []
    assert behind.ran == [("read", "a")] * len(states)
    for state in states:
        assert_went_on(state)
    for state in getattr(behind, "inner_states", states):
        assert_went_on(state)
        denial = answer_to(state["messages"], "call-pay")
        assert denial.status == "error" and denial.name == "pay"
        assert answer_to(state["messages"], "call-read").status == "success"
    asked = calls_of(pdp, "pay")
    assert len(asked) == len(states)
    for request in asked:
        assert request.subject.id == "alice"
        assert request.context.call.args == {"recipient": "bob", "amount": 5.0, "currency": "USD"}
        assert type(request.context.call.args["amount"]) is float
        assert request.resource.properties["target"] == {"recipient": "bob", "amount": 5.0}


@pytest.mark.parametrize(("door", "form"), ENTERED)
def test_permitted_tool_runs_as_decided(door: str, form: str, pdp: Any, authz: Any) -> None:
    """Permitted, the tool runs once a run, with the arguments in the recorded request."""
    behind = Door(authz)
    graph = BEHIND[door](behind)
    with authz.run(subject="alice", task="Pay the bill"):
        states = drive_form(form, graph, human())
    assert sorted(behind.ran) == sorted([PAID, ("read", "a")] * len(states))
    for state in states:
        assert_went_on(state)
    decided = [r.context.call.args for r in calls_of(pdp, "pay") if r.context.call is not None]
    # Of two that do the same at once, the later is decided again, with the earlier in its request.
    assert len(states) <= len(decided) < 2 * len(states)
    assert all(args == {"recipient": "bob", "amount": 5.0, "currency": "USD"} for args in decided)


@forms
def test_unenforced_twin_runs(door: str, form: str) -> None:
    behind = Door(None)
    states = drive_form(form, BEHIND[door](behind), human())
    assert behind.ran.count(PAID) == len(states)
    for state in states:
        assert_went_on(state)


@pytest.mark.parametrize("form", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("within", [True, False])
def test_tool_node_outside_a_graph_is_a_root_entry(form: str, within: bool, ran: Any) -> None:
    """Called bare, `AuthzToolNode` decides under the open run, or under an implicit one for nobody."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    node = AuthzToolNode([pay_tool(ran), read_tool(ran)], authz=authz)
    plan = {"messages": [AIMessage("", tool_calls=[PAY, READ], id="m")]}
    with authz.run(subject="alice") if within else nullcontext():
        states = drive_form(form, node, plan, {"configurable": {"__pregel_runtime": Runtime()}})
    assert ran == [("read", "a")] * len(states)
    for state in states:
        assert [(m.tool_call_id, m.status) for m in state["messages"]] == [("call-pay", "error"), ("call-read", "success")]
    assert {r.subject.id for r in calls_of(pdp)} == {"alice" if within else "anonymous"}
    # The client's own AI message announces nothing.
    assert {r.context.plan.planned for r in calls_of(pdp) if r.context.plan is not None} == {False}


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch", "abatch", "run", "arun", "stream"])
@pytest.mark.parametrize("as_call", [True, False])
def test_guarded_tool_called_directly(how: str, as_call: bool, ran: Any) -> None:
    """A guarded tool called by plain code in a run is decided: a message or `AuthzDenied`, no effect."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    pay = authz.guard(pay_tool(ran))
    given: Any = PAY if as_call else PAY["args"]
    own = {"tool_call_id": "call-pay" if as_call else None}
    go: Any = {
        "invoke": lambda: pay.invoke(given), "ainvoke": lambda: asyncio.run(pay.ainvoke(given)),
        "batch": lambda: pay.batch([given])[0], "abatch": lambda: asyncio.run(pay.abatch([given]))[0],
        "run": lambda: pay.run(PAY["args"], **own), "arun": lambda: asyncio.run(pay.arun(PAY["args"], **own)),
        "stream": lambda: next(iter(pay.stream(given))),
    }[how]
    with authz.run(subject="alice", task="Pay"):
        if as_call:
            answer = go()
            assert isinstance(answer, ToolMessage)
            assert (answer.status, answer.tool_call_id) == ("error", "call-pay")
        else:
            with pytest.raises(AuthzDenied):
                go()
    assert ran == []
    (request,) = calls_of(pdp, "pay")
    assert request.subject.id == "alice"
    assert request.context.call.args == {"recipient": "bob", "amount": 5.0, "currency": "USD"}
