"""Loops that a node's own code makes: planned calls are found by tool and arguments, denials and questions get out."""

import logging

from langchain_core.tools import InjectedToolArg
from langgraph.func import entrypoint, task

from ._approvals import edit
from ._kit import *

go = params(["sync", "async"])
APPROVAL = {"decisions": [APPROVE]}
Text = str


def bill(ran: list[Any], name: str = "pay", returns: Any = str) -> Any:
    """A payment whose schema coerces and fills in; declared to return `returns`."""

    def pay(recipient: str, amount: float, currency: str = "unset") -> Any:
        ran.append((recipient, amount, currency))
        return "paid" if returns is str else {"status": "paid"}

    async def apay(recipient: str, amount: float, currency: str = "unset") -> Any:
        await asyncio.sleep(0)
        return pay(recipient, amount, currency)

    pay.__annotations__["return"] = apay.__annotations__["return"] = returns
    return StructuredTool.from_function(pay, apay, name=name, description="Pay.", args_schema=PayArgs)


def answers(calls: Any, outputs: Any) -> Any:
    return {"messages": [ToolMessage(str(o), tool_call_id=c["id"]) for c, o in zip(calls, outputs, strict=True)]}


class Loop:
    """An agent whose node makes its calls with their arguments: one after another, or side by side.

    `send` changes the arguments on their way; `catch` swallows whatever a call raises; `again` makes each call twice.
    """

    def __init__(
        self, *turns: Any, tools: Any = None, pdp: Any = None, send: Any = None, catch: bool = False, gather: bool = False,
        protected: bool = True, hidden: bool = False, again: bool = False, **options: Any,
    ) -> None:
        self.ran: list[Any] = []
        self.pdp = pdp if pdp is not None else StaticPDP(True)
        self.authz = authz_with(self.pdp, **options)
        made = (tools or (lambda ran: [bill(ran), read_tool(ran)]))(self.ran)
        self.tools = {t.name: t for t in made}
        ran, by_name, self.model = self.ran, self.tools, replying(*turns)
        change = send or (lambda args: args)

        def tool_of(call: Any) -> Any:
            # One that is made in the node is not found when the graph is protected.
            return bill(ran, call["name"]) if hidden else by_name[call["name"]]

        def one(c: Any) -> Any:
            try:
                return tool_of(c).invoke(change(c["args"]))
            except Exception as exc:
                if not catch:
                    raise
                return f"Error: {exc}"

        async def aone(c: Any) -> Any:
            try:
                return await tool_of(c).ainvoke(change(c["args"]))
            except Exception as exc:
                if not catch:
                    raise
                return f"Error: {exc}"

        def act(state: MessagesState) -> Any:
            calls = state["messages"][-1].tool_calls
            return answers(calls, [(one(c), one(c))[0] if again else one(c) for c in calls])

        async def aact(state: MessagesState) -> Any:
            calls = state["messages"][-1].tool_calls
            if gather:
                return answers(calls, await asyncio.gather(*map(aone, calls)))
            return answers(calls, [await aone(c) for c in calls])

        agent = lambda s: {"messages": [self.model.invoke(s["messages"])]}
        self.graph = loop(agent, RunnableCallable(act, aact, name="tools"), checkpointer=InMemorySaver(), name="loop")
        self.builder = self.graph.builder
        if protected:
            self.authz.protect(self.graph)

    def go(self, given: Any, how: str = "sync") -> Any:
        return run_as(self.authz, self.graph, given, THREAD, how=how)


TWICE = [call("pay", {"to": "bob", "amount": "5"}, "c1"), call("pay", {"to": "bob", "amount": "5"}, "c2")]
THREE = [call("pay", {"to": n, "amount": "5"}, n) for n in ("ann", "bob", "eve")]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("send", [
    lambda args: args, lambda args: dict(args), lambda args: {"to": args["to"], "amount": 5, "currency": "USD"},
], ids=["written", "copied", "parsed"])  # fmt: skip
def test_a_call_by_its_arguments_is_the_planned_one(go: str, hidden: bool, send: Any) -> None:
    """Found by the tool and the arguments as its schema reads them; the same key as with the call's id."""
    made = Loop([PAY], send=send, hidden=hidden)
    assert_went_on(made.go(human(), go))
    assert made.ran == [PAID]
    (request,) = calls_of(made.pdp)
    plan, made = request.context.plan, request.context.call
    assert (plan.planned, plan.changed, plan.source, plan.position, plan.of) == (True, False, "model", 0, 1)
    assert (made.id, made.args) == ("call-pay", {"recipient": "bob", "amount": 5.0, "currency": "USD"})


def test_an_equal_call_is_the_next_one_of_the_message(go: str) -> None:
    """Two planned ones are two; both of the message, none more than once."""
    made = Loop(TWICE)
    assert_went_on(made.go(human(), go))
    assert [r.context.call.id for r in calls_of(made.pdp)] == ["c1", "c2"]
    assert made.ran == [PAID, PAID]


def test_a_call_that_is_made_twice_is_planned_once(protected: bool) -> None:
    """The second is unplanned; unenforced it pays twice."""
    made = Loop([PAY], again=True, pdp=rules_that_permit(), protected=protected)
    state = made.go(human())
    assert made.ran == ([PAID] if protected else [PAID, PAID])
    if protected:
        assert reasons(made.authz, "pay")[-1] == "unplanned"
        assert answer_to(state["messages"], "call-pay").text == "paid"


CHANGES = {
    "amount": lambda args: {**args, "amount": 500}, "recipient": lambda args: {**args, "to": "mallory"},
    "left out": lambda args: {"to": args["to"], "amount": 0},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_arguments_that_code_changes_are_not_the_planned_ones(go: str, change: str, protected: bool) -> None:
    """Unplanned under the shipped rules; unenforced they run."""
    made = Loop([PAY], send=CHANGES[change], pdp=rules_that_permit(), protected=protected)
    state = made.go(human(), go)
    assert len(made.ran) == (0 if protected else 1)
    if protected:
        assert reasons(made.authz, "pay") == ["unplanned"]
        assert "not permitted" in answer_to(state["messages"], "call-pay").text
        assert_went_on(state)


TOLD = {"pay": PROFILES["pay"].model_copy(update={"intent": ("pay",)})}


@pytest.mark.parametrize("added", [True, False])
def test_an_argument_that_code_adds_is_critical(go: str, added: bool) -> None:
    """The model's own part stays planned; what the code adds is nobody's word, and asks."""
    made = Loop(
        [call("pay", {"to": "Bob", "amount": 5}, "c")], pdp=WasmPDP(pool_size=1), profiles=TOLD,
        send=(lambda args: {**args, "currency": "XAU"}) if added else None,
    )  # fmt: skip
    asked = made.go(human("Pay 5 to Bob"), go).get("__interrupt__", ())
    assert len(asked) == added
    assert made.ran == ([] if added else [("Bob", 5.0, "USD")])
    if added:
        assert "XAU" in asked[0].value["action_requests"][0]["description"]
        made.go(Command(resume=APPROVAL), go)
        assert made.ran == [("Bob", 5.0, "XAU")]


def test_an_argument_that_the_profile_lets_code_add(go: str) -> None:
    """Not decided where the code adds it, whatever it is; decided where the model writes it."""
    profiles = {"pay": TOLD["pay"].model_copy(update={"injected": ("currency",)})}
    made = Loop([PAY], profiles=profiles, send=lambda args: {**args, "currency": "XAU"})
    made.go(human(), go)
    assert made.ran == [("bob", 5.0, "XAU")]
    assert [r.context.call.args for r in calls_of(made.pdp)] == [{"recipient": "bob", "amount": 5.0}]
    written = Loop([call("pay", {"to": "bob", "amount": 5, "currency": "XAU"}, "c")], profiles=profiles)
    written.go(human(), go)
    assert [r.context.call.args["currency"] for r in calls_of(written.pdp)] == ["XAU"]


def test_a_message_that_the_client_sent_plans_nothing(go: str) -> None:
    """It stands in the node's input as the model's would, and no record holds it."""
    made = Loop([], pdp=rules_that_permit())
    alone = chain({"tools": made.builder.nodes["tools"].runnable}, checkpointer=InMemorySaver(), name="loop")
    made.graph = made.authz.protect(alone)
    made.go({"messages": [HumanMessage("hello"), says(PAY)]}, go)
    assert made.ran == [] and reasons(made.authz, "pay") == ["unplanned"]


def test_another_agents_message_plans_nothing(go: str) -> None:
    """A child that is handed its parent's messages makes the parent's call: it is not the child's plan."""
    made = Loop([PAY], pdp=rules_that_permit())
    agent, tools = (made.builder.nodes[name].runnable for name in ("agent", "tools"))
    both = chain({"agent": agent, "child": chain({"tools": tools}, name="child")}, checkpointer=InMemorySaver(), name="loop")
    made.graph = made.authz.protect(both)
    made.go(human(), go)
    assert made.ran == [] and reasons(made.authz, "pay") == ["unplanned"]


def test_a_plan_of_before_the_correction_is_stale(go: str) -> None:
    """The message still stands in the node's input."""
    made = Loop([PAY])
    made.graph = made.authz.protect(made.builder.compile(checkpointer=InMemorySaver(), name="loop", interrupt_before=["tools"]))
    made.go(human(), go)
    made.authz.correct("t", "Do not pay.")
    made.go(None, go)
    assert made.ran == [] and reasons(made.authz, "pay") == ["stale_epoch"]


@pytest.mark.parametrize("how", ["args", "call"])
def test_a_loop_inside_one_node(how: str) -> None:
    """The model is called in the node too; its message is the plan before the node returns."""
    ran: list[Any] = []
    pay, model = bill(ran), replying([PAY])

    def step(state: MessagesState) -> Any:
        message = model.invoke(state["messages"])
        outputs = [pay.invoke(c["args"] if how == "args" else c) for c in message.tool_calls]
        return {"messages": [message, *(ToolMessage(str(o), tool_call_id="call-pay") for o in outputs)]}

    authz, graph = protecting(node_graph(step), rules_that_permit())
    told(authz, graph, human())
    assert ran == [PAID]


def test_a_loop_of_the_functional_api() -> None:
    """Model and tools are tasks of one entrypoint."""
    ran: list[Any] = []
    pay, model = bill(ran), replying([PAY])

    @task
    def think(messages: list[Any]) -> Any:
        return model.invoke(messages)

    @task
    def act(c: Any) -> Any:
        return pay.invoke(c["args"])

    @entrypoint(checkpointer=InMemorySaver())
    def agent(messages: list[Any]) -> Any:
        return [act(c).result() for c in think(messages).result().tool_calls]

    authz = authz_with(rules_that_permit())
    assert told(authz, authz.protect(agent), human()["messages"], THREAD) == ["paid"] and ran == [PAID]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("returns", [str, Annotated[str, "a receipt"], "Text", dict])
def test_a_denial_reaches_the_model(go: str, returns: Any, hidden: bool, caplog: Any) -> None:
    """As a text where the tool returns one; else the node's enforcement point answers the message. No log of an error."""
    tools = lambda ran: [bill(ran, returns=returns), read_tool(ran)]
    made = Loop([READ, PAY, call("read", {"path": "b"}, "c3")], tools=tools, pdp=deny_only("pay"), hidden=False)
    if hidden:
        made = Loop([PAY], tools=tools, pdp=deny_only("pay"), hidden=True)
    with caplog.at_level(logging.WARNING):
        state = made.go(human(), go)
    assert_went_on(state)
    denied = answer_to(state["messages"], "call-pay")
    assert "not permitted" in denied.text and "decision" in denied.text
    assert ("read", "a") in made.ran or hidden
    assert PAID not in made.ran
    if not hidden:
        assert answer_to(state["messages"], "call-read").text == "text of a"
        assert (answer_to(state["messages"], "c3").text == "text of b") is (returns is not dict)
    assert "Error in" not in caplog.text


def test_a_denial_without_a_message_to_answer_is_raised(go: str) -> None:
    """As before: the node's input holds no open call."""
    ran: list[Any] = []
    pay = bill(ran)
    graph = node_graph(in_run(lambda: pay.invoke({"to": "bob", "amount": 5})))
    authz, graph = protecting(graph, deny_only("pay"))
    assert code_of(lambda: run_as(authz, graph, human(), how=go)) == "no_permit"
    assert ran == []


def test_a_coroutine_and_a_thread_of_a_loop_do_not_ask_at_once() -> None:
    """A tool without a coroutine runs in a worker thread: the second question comes after the answer to the first."""

    def plain(ran: list[Any]) -> list[BaseTool]:
        return [bill(ran), StructuredTool.from_function(bill(ran).func, name="wire", description="Pay.", args_schema=PayArgs)]

    pdp = asking("pay", "wire")
    real = pdp.aevaluate

    async def late(body: bytes) -> object:
        await asyncio.sleep(0.05)
        return await real(body)

    pdp.aevaluate = late
    made = Loop([call("pay", {"to": "ann", "amount": "5"}, "ann"), call("wire", {"to": "bob", "amount": "5"}, "bob")],
                tools=plain, pdp=pdp, catch=True, gather=True)
    state, asked = made.go(human(), "async"), []
    while state.get("__interrupt__"):
        (question,) = state["__interrupt__"]
        asked += [one["args"]["recipient"] for one in question.value["action_requests"]]
        state = made.go(Command(resume=APPROVAL), "async")
    assert sorted(asked) == sorted(name for name, *_ in made.ran) == ["ann", "bob"]


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("catch", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_no_question_of_a_loop_is_lost(go: str, catch: bool, gather: bool, hidden: bool) -> None:
    """Three payments ask one after another; each is made once, and nothing of a held round is written."""
    made = Loop(THREE, pdp=asking("pay"), catch=catch, gather=gather, hidden=hidden)
    state, asked = made.go(human(), go), []
    while state.get("__interrupt__"):
        assert not [m for m in made.graph.get_state(THREAD).values["messages"] if isinstance(m, ToolMessage)]
        (question,) = state["__interrupt__"]
        asked.append(question.value["action_requests"][0]["args"]["recipient"])
        state = made.go(Command(resume=APPROVAL), go)
    assert_went_on(state)
    if hidden:  # a tool that nobody could guard cannot answer a call that ran: the rest is planned again
        assert len(made.ran) == len(set(made.ran)) >= 1
        assert answer_to(state["messages"], asked[0]).text == "paid" or catch
    else:
        assert sorted(asked) == ["ann", "bob", "eve"]
        assert sorted(made.ran) == [(n, 5.0, "USD") for n in ("ann", "bob", "eve")]
        assert {answer_to(state["messages"], n).text for n in ("ann", "bob", "eve")} == {"paid"}


def test_unenforced_a_swallowed_question_is_lost() -> None:
    """A tool that asks by itself in a `try`: nobody is asked."""
    def tools(ran: list[Any]) -> Any:
        pay = a_tool("pay", lambda to, amount: [interrupt("Pay?"), ran.append(to), "paid"][2], to=str, amount=str)
        return [pay]

    made = Loop([PAY], tools=tools, catch=True, protected=False, profiles={})
    assert "__interrupt__" not in made.go(human())
    held = Loop([PAY], tools=tools, catch=True, profiles={})
    assert held.go(human())["__interrupt__"]
    held.go(Command(resume="yes"))
    assert held.ran == ["bob"]


def test_a_rejection_in_a_loop_is_heard(go: str) -> None:
    """One of two is rejected, the other runs, once each."""
    made = Loop(THREE[:2], pdp=asking("pay"), catch=True)
    made.go(human(), go)
    made.go(resume(REJECT), go)
    state = made.go(Command(resume=APPROVAL), go)
    assert made.ran == [("bob", 5.0, "USD")] and "rejected" in answer_to(state["messages"], "ann").text
    assert_went_on(state)


@pytest.mark.parametrize("whole", [True, False], ids=["call", "arguments"])
@pytest.mark.parametrize("name", ["pay", "wire"])
def test_an_edit_in_a_loop(go: str, name: str, whole: bool) -> None:
    """The edited call runs, however the node makes it. Of another tool nothing is known there, so nothing runs."""
    made = Loop([PAY], pdp=asking("pay"), send=lambda args: {**PAY, "type": "tool_call"} if whole else args)
    made.go(human(), go)
    state = made.go(resume(edit("ann", 1, name=name)), go)
    assert made.ran == ([("ann", 1.0, "USD")] if name == "pay" else [])
    if name == "pay":
        assert_went_on(state)
        assert completions(made.authz) == ["done"]


def test_a_question_below_is_not_swallowed_above(go: str) -> None:
    """A node calls an agent in a `try` that catches everything."""
    inner = Loop([PAY], pdp=asking("pay"), catch=True)
    child = inner.builder.compile(name="child")

    def step(state: Any, config: RunnableConfig) -> Any:
        try:
            out = child.invoke({"messages": state["messages"]}, config)
        except Exception:
            return {"messages": [AIMessage("failed")]}
        return {"messages": [out["messages"][-1]]}

    inner.graph = inner.authz.protect(node_graph(step, checkpointer=InMemorySaver()))
    assert inner.go(human())["__interrupt__"]
    state = inner.go(Command(resume=APPROVAL))
    assert state["messages"][-1].text == "done" and inner.ran == [PAID]


def test_a_tool_outside_every_run_is_as_it_was(go: str, ran: Any) -> None:
    """What a protected graph's node holds is guarded inside runs only: other code calls it as before."""
    pay = bill(ran)
    authz, graph = protecting(node_graph(in_run(lambda: pay.invoke({"to": "bob", "amount": 5}))), deny_only("pay"))
    assert type(pay).__name__ == "StructuredTool" and isinstance(pay, StructuredTool)
    given = {"to": "bob", "amount": 5}
    assert (pay.invoke(given) if go == "sync" else asyncio.run(pay.ainvoke(given))) == "paid"
    assert pay.func(recipient="ann", amount=1.0) == "paid"
    other, second = protecting(node_graph(in_run(lambda: pay.invoke(given))), StaticPDP(True))
    told(other, second, human())
    assert ran == [PAID, ("ann", 1.0, "unset"), PAID]
    assert code_of(lambda: told(authz, graph, human())) == "no_permit"


@pytest.mark.parametrize("answer", [APPROVE, {"type": "edit", "edited_action": {"name": "pay", "args": {"recipient": "ann"}}}])
def test_an_answer_leaves_what_code_injects(answer: Any, how: str, ran: list[Any]) -> None:
    """The approver does not see the account, and cannot change it. The tool gets that of the code."""

    @tool
    def pay(recipient: str, account: Annotated[str, InjectedToolArg]) -> str:
        """Pay."""
        ran.append((recipient, account))
        return "paid"

    def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(pay.invoke({"recipient": "bob", "account": "savings"}))]}

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke("x")]}

    model = ScriptedChatModel(script=[says(call("pay", {"recipient": "bob"}, "c"))])
    profiles = {"pay": ToolProfile(effect="pay", critical={"recipient": "principal"})}
    authz, graph = protecting(chain({"agent": agent, "step": step}, checkpointer=InMemorySaver()), asking("pay"), profiles=profiles)
    (asked,) = run_as(authz, graph, human(), THREAD, how=how)["__interrupt__"]
    assert asked.value["action_requests"][0]["args"] == {"recipient": "bob"} and ran == []
    run_as(authz, graph, resume(answer), THREAD, how=how)
    assert ran == [("bob" if answer is APPROVE else "ann", "savings")]
