"""A node that runs again hears the answers: its model, or a `task`, gives the same message anew."""

from itertools import count, product

from langgraph.func import entrypoint, task

from tests.tier import part

from ._kit import *
from .test_loops import answers, bill

SEND = {"args": lambda c: c["args"], "call": lambda c: c}
NO = {"type": "reject", "message": "It is too dear."}
BOTH = [("ann", 5.0, "USD"), ("bob", 5.0, "USD")]


def fresh(*names: str) -> ScriptedChatModel:
    """A model whose messages and calls have new ids each time, as a provider's have."""
    ids = count()

    def reply(messages: list[Any]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage):
            return AIMessage("done")
        return says(*[call("pay", {"to": n, "amount": "5"}, f"c{next(ids)}") for n in names])

    return ScriptedChatModel(script=[reply] * 20)


def one_node(model: Any, ran: list[Any], send: Any, look: Any = None) -> Any:
    """Model and tools in a loop of one node."""
    pay = bill(ran)

    def step(state: MessagesState) -> Any:
        messages = list(state["messages"])
        while (message := model.invoke(messages)).tool_calls:
            for c in message.tool_calls if look else ():
                look(c)
            outputs = [pay.invoke(send(c)) for c in message.tool_calls]
            messages += [message, *answers(message.tool_calls, outputs)["messages"]]
        return {"messages": [*messages[len(state["messages"]) :], message]}

    return node_graph(step, checkpointer=InMemorySaver())


def functional(model: Any, ran: list[Any], send: Any, look: Any = None, *, results: Any = None) -> Any:
    """Model and tools as tasks of an entrypoint. `results` makes a message's calls."""
    pay = bill(ran)

    @task
    def think(messages: list[Any]) -> Any:
        return model.invoke(messages)

    def act(c: Any) -> Any:
        return answers([c], [pay.invoke(send(c))])["messages"][0]

    made = results or (lambda act, calls: [task(act)(c).result() for c in calls])

    @entrypoint(checkpointer=InMemorySaver())
    def agent(state: Any) -> Any:
        messages = list(state["messages"])
        while (message := think(messages).result()).tool_calls:
            for c in message.tool_calls if look else ():
                look(c)
            messages += [message, *made(act, message.tool_calls)]
        return {"messages": [*messages, message]}

    return agent


def in_body(*given: Any) -> Any:
    """Only the model is a task."""
    return functional(*given, results=lambda act, calls: [act(c) for c in calls])


def together(*given: Any) -> Any:
    """A message's calls are made at once."""
    return functional(*given, results=lambda act, calls: [future.result() for future in [task(act)(c) for c in calls]])


def in_task(model: Any, ran: list[Any], send: Any, look: Any = None) -> Any:
    """Model and tools in a loop of one task."""
    inner = one_node(model, ran, send, look).nodes["step"].bound.func

    @task
    def work(state: Any) -> Any:
        return inner(state)

    return entrypoint(checkpointer=InMemorySaver())(lambda state: work(state).result())


def played(authz: Any, graph: Any, *given: Any) -> Any:
    """Enter a thread with each input in turn; every entry but the last must pause."""
    for at, value in enumerate((human(), *given)):
        state = told(authz, graph, value, THREAD)
        assert bool(graph.get_state(THREAD).interrupts) == (at < len(given)), at
    return state


shape, send = params([one_node, functional]), params(SEND)
SAID = {"type": "respond", "message": "I paid ann."}
EDIT = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "ann", "amount": "9"}}}


NAMES = ("ann", "bob", "cy"), ("ann", "ann", "ann")
DECIDED = [*product([APPROVE, NO, SAID], [APPROVE, NO, EDIT])]


# In CI, the calls differ or are alike, and a tool gets its arguments or the call, in turn: any answers in any graph.
@pytest.mark.parametrize(("graph_of", "names", "send", "decided"), part([*product([one_node, functional, together, in_body], NAMES, SEND, DECIDED)], 4))
def test_each_call_of_a_message_hears_its_own_answer(graph_of: Any, names: Any, send: str, decided: Any) -> None:
    """A task that runs again finds its call, though an answer in words took it out of the plan and an equal call ran."""
    ran: list[Any] = []
    authz, graph = protecting(graph_of(fresh(*names), ran, SEND[send]), asking("pay"))
    state, answers_left = told(authz, graph, human(), THREAD), [decided[0], *decided]
    while asked := graph.get_state(THREAD).interrupts:
        state = told(authz, graph, Command(resume={i.id: {"decisions": [answers_left.pop(0)]} for i in asked}), THREAD)
    outcome = {"approve": lambda n: (n, 5.0, "USD"), "edit": lambda n: ("ann", 9.0, "USD")}
    paid = [outcome[d["type"]](n) for d, n in zip([decided[0], *decided], names, strict=True) if d["type"] in outcome]
    assert sorted(ran) == sorted(paid) and not answers_left and state["messages"][-1].text == "done"


def test_a_message_repeated_after_an_answer_in_words_is_a_new_plan(send: str) -> None:
    """The node's own question changes the task before any call of the message was made."""
    ran: list[Any] = []
    model, pay = fresh("ann"), bill(ran)

    def step(state: MessagesState) -> Any:
        message = model.invoke(state["messages"])
        interrupt("Which?")
        outputs = [pay.invoke(SEND[send](c)) for c in message.tool_calls]
        return {"messages": [message, *answers(message.tool_calls, outputs)["messages"]]}

    authz, graph = protecting(node_graph(step, checkpointer=InMemorySaver()), rules_that_permit())
    played(authz, graph, Command(resume="Only ann."))
    assert ran == BOTH[:1]


def test_an_approval_is_not_for_what_the_model_says_instead() -> None:
    """The node's model changes its mind after the question."""
    ran: list[Any] = []
    other = ScriptedChatModel(script=[fresh("ann").script[0], fresh("eve").script[0]])
    authz, graph = protecting(one_node(other, ran, SEND["call"]), asking("pay"))
    told(authz, graph, human(), THREAD)
    told(authz, graph, resume(APPROVE), THREAD)
    assert ran == [] and len(graph.get_state(THREAD).interrupts) == 1


def test_a_node_that_fails_late_does_not_pay_again() -> None:
    """LangGraph's retry asks the node's model again."""
    ran: list[Any] = []
    failing = iter([ConnectionError("late")])

    def end(messages: list[Any]) -> AIMessage:
        raise next(failing)

    model = fresh("ann")
    model.script = [*model.script[:1], end, *model.script[2:]]
    retry = RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=ConnectionError)
    builder = one_node(model, ran, SEND["call"]).builder
    for protected in (False, True):
        ran.clear()
        model._next, failing = count(), iter([ConnectionError("late")])
        step = builder.nodes["step"].runnable
        graph = node_graph(step, checkpointer=InMemorySaver(), retry_policy=retry)
        if protected:
            authz, graph = protecting(graph, rules_that_permit())
            told(authz, graph, human(), THREAD)
        else:
            graph.invoke(human(), THREAD)
        assert len(ran) == 2 - protected


@pytest.mark.parametrize("review", [True, False])
def test_a_plan_outlasts_a_question_of_the_loop_itself(shape: Any, send: str, review: bool) -> None:
    """The loop asks before its calls, and is resumed before any is decided. A review that shows the call with its id approves it."""
    ran: list[Any] = []
    graph = shape(fresh("ann", "bob"), ran, SEND[send], lambda c: interrupt({"question": "Pay?", "tool_call": c} if review else "Go on?"))
    authz, graph = protecting(graph, asking("pay") if review else rules_that_permit())
    played(authz, graph, Command(resume="approve"), Command(resume={"action": "continue"} if review else "yes"))
    assert ran == BOTH


def test_a_review_that_shows_another_call_approves_nothing() -> None:
    ran: list[Any] = []
    changed = lambda c: {**c, "args": {"to": "eve", "amount": "5"}}
    graph = functional(fresh("ann"), ran, SEND["call"], lambda c: interrupt({"question": "Pay?", "tool_call": changed(c)}))
    authz, graph = protecting(graph, asking("pay"))
    played(authz, graph, Command(resume="approve"), resume(REJECT))
    assert ran == []


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("answer", "heard"), [(NO, "too dear"), (SAID, "I paid ann.")])
def test_the_model_hears_an_answer_in_words(answer: Any, heard: str, inside: bool, send: str) -> None:
    """The answer takes the call out of the plan; the message's other call goes on."""
    ran: list[Any] = []
    model, pay = fresh("ann", "bob"), bill(ran)
    act = lambda s: answers(s["messages"][-1].tool_calls, [pay.invoke(SEND[send](c)) for c in s["messages"][-1].tool_calls])
    graph = one_node(model, ran, SEND[send])
    if not inside:
        graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, act, checkpointer=InMemorySaver())
    authz, graph = protecting(graph, asking("pay"))
    state = played(authz, graph, resume(answer), resume(APPROVE))
    first = next(m for m in state["messages"] if isinstance(m, ToolMessage))
    assert heard in first.text and ran == BOTH[1:]


@pytest.mark.parametrize(("first", "paid"), [(APPROVE, BOTH[0]), (EDIT, ("ann", 9.0, "USD"))])
def test_an_earlier_message_of_the_loop_outlasts_an_answer_in_words(first: Any, paid: Any) -> None:
    """The answer about the second message changes the task, and what the first one ordered has run.

    So has what the user put in its place. A model that read that it did not run would plan it again.
    """
    ran: list[Any] = []
    ids, names = count(), ["ann", "bob"]

    def reply(messages: list[Any]) -> AIMessage:
        made = sum(isinstance(m, ToolMessage) for m in messages)
        return says(call("pay", {"to": names[made], "amount": "5"}, f"c{next(ids)}")) if made < len(names) else AIMessage("done")

    authz, graph = protecting(one_node(ScriptedChatModel(script=[reply] * 20), ran, SEND["args"]), asking("pay"))
    state = played(authz, graph, resume(first), resume(NO))
    told_first = next(m.text for m in state["messages"] if isinstance(m, ToolMessage))
    assert ran == [paid] and told_first == "paid" and "too dear" in answer_to(state["messages"], state["messages"][-2].tool_call_id).text


def test_a_wrapper_that_calls_the_tool_of_its_own_name_is_asked_once() -> None:
    """The tool's own call is under way, which is no reason to ask about the call inside for ever."""
    ran: list[Any] = []
    write = writing_tool(ran)

    @tool(write.name, args_schema=write.args_schema)
    def reviewed(config: RunnableConfig, **given: Any) -> Any:
        """Write something that was reviewed."""
        return write.invoke(given, config) if interrupt("Write?") else "not written"

    model = replying([call("write", {"text": "a"}, "c1")])
    graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([reviewed]), checkpointer=InMemorySaver())
    authz, graph = protecting(graph, asking("write"))
    played(authz, graph, resume(APPROVE), Command(resume=True), resume(APPROVE))
    assert len(ran) == 1


@pytest.mark.parametrize("by", ["model", "code"])
def test_a_model_may_rewrite_its_message_and_code_asks(by: str) -> None:
    """A second model checks the call, and its message takes the first one's id and place."""
    ran: list[Any] = []
    model = fresh("eve")

    def check(state: MessagesState) -> Any:
        planned = state["messages"][-1]
        message = fresh("ann").invoke(state["messages"][:1])
        if by == "code":
            message = says(call("pay", {"to": "ann", "amount": "5"}, "made"))
        message.id = planned.id
        return {"messages": [message]}

    nodes = {"agent": lambda s: {"messages": [model.invoke(s["messages"])]}, "check": check, "tools": ToolNode([bill(ran)])}
    for protected in (False, True):
        ran.clear()
        graph = chain(nodes, checkpointer=InMemorySaver())
        if protected:
            authz, graph = protecting(graph, rules_that_permit())
            played(authz, graph, *[resume(REJECT)] * (by == "code"))
        else:
            graph.invoke(human(), THREAD)
        assert ran == (BOTH[:1] if by == "model" or not protected else [])


def test_a_review_without_an_id_is_about_the_newest_of_equal_calls() -> None:
    """Two messages of a loop in one node make the same call. Each is asked about once, by the loop's review."""
    ran: list[Any] = []
    ids = count()

    def reply(messages: list[Any]) -> AIMessage:
        paid = sum(isinstance(m, ToolMessage) for m in messages)
        return says(call("pay", {"to": "ann", "amount": "5"}, f"c{next(ids)}")) if paid < 2 else AIMessage("done")

    look = lambda c: interrupt({"tool": c["name"], "args": c["args"]})
    authz, graph = protecting(one_node(ScriptedChatModel(script=[reply] * 9), ran, SEND["call"], look), asking("pay"))
    played(authz, graph, Command(resume="approve"), Command(resume="approve"))
    assert ran == BOTH[:1] * 2


def test_a_node_that_fails_without_the_ledger_raises_its_own_error() -> None:
    def step(state: MessagesState) -> Any:
        fresh("ann").invoke(state["messages"])
        down.enter_context(ledger_down())
        raise ValueError("mine")

    authz, graph = protecting(node_graph(step), rules_that_permit())
    with contextlib.ExitStack() as down, pytest.raises(ValueError, match="mine"):
        told(authz, graph, human())


def test_a_tool_name_that_is_not_unicode_ends_no_loop() -> None:
    """The node's code ignores the invented tool."""
    ran: list[Any] = []
    model = ScriptedChatModel(script=[says(call("pay", {"to": "ann", "amount": "5"}, "c1"), call("\ud800", {}, "c2"))])

    def step(state: MessagesState) -> Any:
        first, _ = model.invoke(state["messages"]).tool_calls
        pay.invoke(first)

    pay = bill(ran)
    authz, graph = protecting(node_graph(step), rules_that_permit())
    told(authz, graph, human())
    assert ran == BOTH[:1]


def test_a_node_whose_calls_stand_in_its_input_loads_no_earlier_plans() -> None:
    ran: list[Any] = []
    pay, model = bill(ran), fresh("ann")
    loaded: list[Any] = []
    act = lambda s: answers(s["messages"][-1].tool_calls, [pay.invoke(c) for c in s["messages"][-1].tool_calls])
    authz, graph = protecting(loop(lambda s: {"messages": [model.invoke(s["messages"])]}, act), rules_that_permit())
    load = authz.ledger.load
    authz.ledger.load = lambda scope, query: [loaded.append(query.marks), load(scope, query)][1]  # type: ignore[method-assign]
    told(authz, graph, human())
    assert ran == BOTH[:1] and not [m for marks in loaded for m in marks if "plans:" in m]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_ran_before_a_question_keeps_its_update_and_artifact(how: str) -> None:
    """Another call of the message asks, so the node runs again. Unprotected, the effects happen twice."""

    class State(MessagesState):
        picked: list[str]

    ran: list[Any] = []

    @tool
    def pick(x: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Write a choice."""
        ran.append(x)
        return Command(update={"picked": [x], "messages": [ToolMessage(f"picked {x}", tool_call_id=tool_call_id)]})

    @tool(response_format="content_and_artifact")
    def draw(x: str) -> tuple[str, Any]:
        """Write a picture."""
        ran.append(x)
        return "drawn", {"x": x} if x == "b" else {x}

    @tool
    def ask(x: str) -> str:
        """Ask."""
        return f"said {interrupt(x)}"

    turn = [call(t.name, {"x": x}, x) for t, x in ((pick, "a"), (draw, "b"), (draw, "c"), (ask, "d"))]
    model = replying(turn)
    for protected in (False, True):
        ran.clear()
        graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([pick, draw, ask]), state=State, checkpointer=InMemorySaver())
        profiles = {"pick": {"effect": "write"}, "draw": {"effect": "write"}, "ask": "computes"}
        authz = authz_with(StaticPDP(True), profiles=profiles)
        if protected:
            authz.protect(graph)
        for given in (human(), Command(resume=True)):
            state = run_as(authz, graph, given, THREAD, how=how)
        assert sorted(ran) == sorted("abc" * (2 - protected)) and state["picked"] == ["a"]
        assert [answer_to(state["messages"], i).text for i in "abcd"] == ["picked a", "drawn", "drawn", "said True"]
        assert answer_to(state["messages"], "b").artifact == {"x": "b"}
        assert answer_to(state["messages"], "c").artifact == (None if protected else {"c"})  # a set is not JSON


def test_models_side_by_side_in_one_node_each_have_their_plan() -> None:
    """A call with an id is of the message that has the id, even if another model has answered since."""
    ran: list[Any] = []
    ids, pay = count(), bill(ran)
    reply = lambda messages: says(call("pay", {"to": messages[-1].content, "amount": "5"}, f"c{next(ids)}"))
    model = ScriptedChatModel(script=[reply] * 20)

    async def one(name: str) -> Any:
        message = await model.ainvoke([HumanMessage(name)])
        await asyncio.sleep(0.01)
        return answers(message.tool_calls, [await pay.ainvoke(message.tool_calls[0])])["messages"][0]

    async def step(state: MessagesState) -> Any:
        return {"messages": await asyncio.gather(one("ann"), one("bob"))}

    authz, graph = protecting(node_graph(step, checkpointer=InMemorySaver()), asking("pay"))
    for given in (human(), resume(APPROVE), resume(APPROVE)):
        told(authz, graph, given, THREAD, go=in_loop)
    assert sorted(ran) == BOTH and not graph.get_state(THREAD).interrupts


@pytest.mark.parametrize("decision", [APPROVE, NO], ids=["approve", "reject"])
def test_a_review_of_a_rewritten_message_is_about_its_new_calls(decision: Any) -> None:
    """LangChain's review comes after the second model. Nobody is asked twice, and the other call goes on."""
    from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware

    class Check(AgentMiddleware):
        def after_model(self, state: Any, runtime: Any) -> Any:
            if not state["messages"][-1].tool_calls:
                return None
            message = fresh("ann", "bob").invoke(state["messages"][:1])
            message.id = state["messages"][-1].id
            return {"messages": [message]}

    ran: list[Any] = []
    review = [HumanInTheLoopMiddleware(interrupt_on={"pay": True}), Check()]  # the last one's `after_model` runs first
    graph = agent_graph(fresh("eve", "eve"), [bill(ran)], middleware=review, checkpointer=InMemorySaver())
    authz, graph = protecting(graph, asking("pay"))
    played(authz, graph, resume(decision, APPROVE))
    assert sorted(ran) == (BOTH if decision is APPROVE else BOTH[1:])


@pytest.mark.parametrize("picked", ["a", {"__tool_message__": {}}], ids=["json", "twin: not kept"])
def test_a_kept_update_answers_the_id_of_the_call_that_repeats(picked: Any) -> None:
    """The node's model is asked again, and its calls have new ids. LangGraph refuses an answer to another id."""

    class State(MessagesState):
        picked: Any

    ran: list[Any] = []

    @tool
    def pick(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Write a choice."""
        ran.append(picked)
        return Command(update={"picked": picked, "messages": [ToolMessage("picked", tool_call_id=tool_call_id)]})

    @tool
    def ask() -> str:
        """Ask."""
        return f"said {interrupt('?')}"

    ids = count()
    model = ScriptedChatModel(script=[lambda _: says(*[call(name, {}, f"c{next(ids)}") for name in ("pick", "ask")])] * 4)
    tools = ToolNode([pick, ask])

    def step(state: State) -> Any:
        message = model.invoke(state["messages"])
        outputs = tools.invoke({"messages": [*state["messages"], message]})
        return [Command(update={"messages": [message]}), *(outputs if isinstance(outputs, list) else [outputs])]

    for protected in (False, True):
        ran.clear()
        graph = chain({"step": step}, state=State, checkpointer=InMemorySaver())
        authz = authz_with(StaticPDP(True), profiles={"pick": {"effect": "write"}, "ask": "computes"})
        if protected:
            authz.protect(graph)
        told(authz, graph, human(), THREAD)
        state = told(authz, graph, Command(resume=True), THREAD)
        kept = not protected or isinstance(picked, str)
        assert ran == [picked] * (2 - protected) and state.get("picked") == (picked if kept else None)
        assert [m.tool_call_id for m in state["messages"][2:]] == [c["id"] for c in state["messages"][1].tool_calls]
        assert (state["messages"][2].text == "picked") == kept


def test_a_call_that_was_made_is_no_new_call_of_a_later_message(send: str) -> None:
    """Both messages pay bob. When the body runs again, its first payment is still that of the first message."""
    ran: list[Any] = []
    messages = [says(*[call("pay", {"to": n, "amount": "5"}, n + m) for n in names]) for m, names in {"1": ["bob"], "2": ["ann", "bob"]}.items()]
    model = ScriptedChatModel(script=[*messages, AIMessage("done")])
    authz, graph = protecting(in_body(model, ran, SEND[send]), asking("pay"))
    played(authz, graph, resume(REJECT), resume(APPROVE), resume(APPROVE))
    assert ran == [("ann", 5.0, "USD"), ("bob", 5.0, "USD")]


def test_the_calls_of_a_long_loop_are_made_once() -> None:
    """The last of 70 messages asks. When the node runs again, the calls of all the others were made. Unprotected, they run again."""
    for protected in (True, False):
        ran: list[Any] = []

        def reply(messages: list[Any]) -> AIMessage:
            n = len(messages) // 2
            return says(call("pay", {"to": f"p{n}", "amount": "5"}, f"c{n}")) if n < 70 else AIMessage("done")

        look = lambda c: interrupt("Go on?") if c["id"] == "c69" else None
        graph = one_node(ScriptedChatModel(script=[reply] * 150), ran, SEND["args"], look)
        authz = authz_with(StaticPDP(True))
        graph = authz.protect(graph) if protected else graph
        for given in (human(), Command(resume=True)):
            told(authz, graph, given, THREAD)
        assert len(ran) == (70 if protected else 139)


@pytest.mark.parametrize("inside", [True, False])
def test_an_id_that_an_earlier_message_used_is_a_new_call(inside: bool, send: str) -> None:
    """Some models number the calls of each message anew. The second task's rejection reaches the model too."""
    ran: list[Any] = []

    def reply(messages: list[Any]) -> AIMessage:
        return AIMessage("done") if isinstance(messages[-1], ToolMessage) else says(call("pay", {"to": "ann", "amount": "5"}, "call_0"))

    model, pay = ScriptedChatModel(script=[reply] * 20), bill(ran)
    act = lambda s: answers(s["messages"][-1].tool_calls, [pay.invoke(SEND[send](c)) for c in s["messages"][-1].tool_calls])
    graph = one_node(model, ran, SEND[send]) if inside else loop(lambda s: {"messages": [model.invoke(s["messages"])]}, act, checkpointer=InMemorySaver())
    authz, graph = protecting(graph, asking("pay"))
    for decided in (APPROVE, NO):
        told(authz, graph, human(), THREAD)
        state = told(authz, graph, resume(decided), THREAD)
        assert state["messages"][-1].text == "done" and not graph.get_state(THREAD).interrupts
    assert len(ran) == 1 and NO["message"] in state["messages"][-2].text


def by_ids(graph: Any, answer: Any) -> Any:
    """Answer every open question by its interrupt id."""
    return Command(resume={i.id: answer for i in graph.get_state(THREAD).interrupts})


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("inner", [one_node, in_task])
def test_code_that_asks_several_times_hears_each_answer(inner: Any, own: bool, by_id: bool, send: str) -> None:
    """A task of the functional API asks again and again, as a node does. `own`: with questions of its own in between."""
    ran: list[Any] = []

    def reply(messages: list[Any]) -> AIMessage:
        done = sum(isinstance(m, ToolMessage) for m in messages)
        return says(call("pay", {"to": f"p{done}", "amount": "5"}, f"c{done}")) if done < 3 else AIMessage("done")

    look = lambda c: interrupt("Go on?") if own else None
    graph = inner(ScriptedChatModel(script=[reply] * 90), ran, SEND[send], look)
    authz, graph = protecting(graph, asking("pay"))
    told(authz, graph, human(), THREAD)
    for decided in (APPROVE, {"type": "reject"}, APPROVE):
        for answer in (*([True] if own else []), {"decisions": [decided]}):
            assert graph.get_state(THREAD).interrupts
            state = told(authz, graph, by_ids(graph, answer) if by_id else Command(resume=answer), THREAD)
    assert state["messages"][-1].text == "done" and [to for to, *_ in ran] == ["p0", "p2"]


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("asks", ["question", "own"])
@pytest.mark.parametrize("inner", [one_node, in_task])
def test_an_answer_is_not_for_the_call_that_a_model_makes_instead(inner: Any, asks: str, by_id: bool, send: str) -> None:
    """The model names another payee when its node or task runs again. `own`: the code's question was answered."""
    ran: list[Any] = []
    names = ["ann"] + ["eve"] * 9

    def reply(messages: list[Any]) -> AIMessage:
        return AIMessage("done") if isinstance(messages[-1], ToolMessage) else says(call("pay", {"to": names.pop(0), "amount": "5"}, "c1"))

    look = lambda c: interrupt("Go on?") if asks == "own" and c["args"]["to"] == "ann" else None
    graph = inner(ScriptedChatModel(script=[reply] * 20), ran, SEND[send], look)
    authz, graph = protecting(graph, asking("pay"))
    told(authz, graph, human(), THREAD)
    answer = {"decisions": [APPROVE]}
    told(authz, graph, by_ids(graph, answer) if by_id else Command(resume=answer), THREAD)
    assert ran == []


def test_a_function_of_a_task_that_is_tried_again_leaves_other_answers_alone() -> None:
    """Its own question, asked after an approved call, hears its own answer, not the approval."""
    sent, heard, fails = list[str](), list[Any](), [ConnectionError("late")]
    authz = authz_with(asking("send_mail"))

    @authz.effect("send_mail", profile=ToolProfile(effect="send", sink="external", critical={"to": "principal"}))
    def mail(to: str) -> str:
        sent.append(to)
        return to

    @task(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=ConnectionError))
    def work() -> str:
        mail("eve@x.example")
        heard.append(interrupt("Delete the inbox?"))
        if fails:
            raise fails.pop()
        return "done"

    graph = authz.protect(entrypoint(checkpointer=InMemorySaver())(lambda state: work().result()))
    told(authz, graph, human(), THREAD)
    for _ in range(4):
        if asked := graph.get_state(THREAD).interrupts:
            told(authz, graph, Command(resume={"decisions": [APPROVE]} if "action_requests" in asked[0].value else "no"), THREAD)
    assert sent == ["eve@x.example"] and set(heard) == {"no"} and not graph.get_state(THREAD).interrupts
