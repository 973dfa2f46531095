"""A node that pays and asks by itself runs again after each answer: each answer stays with its question (OWASP ASI09).

LangGraph matches answers to a task's questions by their order. In the twins nobody protects the graph.
"""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from langgraph.errors import GraphInterrupt, NodeCancelledError

from ._kit import *

YES: Any = {"decisions": [APPROVE]}
NO: Any = {"decisions": [REJECT]}
BOB = ("bob", 1.0, "USD")
protected = params([True, False], ids=["protected", "twin"])
how = params(["sync", "async"])


def asking_tool(ran: list[Any]) -> BaseTool:
    @tool
    def transfer(recipient: str, amount: float) -> str:
        """Pay from an account that a person names."""
        ran.append((recipient, interrupt("account")))
        return "paid"

    return transfer


def failing_tool(ran: list[Any]) -> BaseTool:
    @tool
    def unsure(recipient: str, amount: float) -> str:
        """Fail the first time."""
        ran.append(recipient)
        if len(ran) == 1:
            raise ConnectionError
        return "paid"

    return unsure


def pays(tools: Any, _: Any) -> None:
    tools["pay"].invoke({"to": "bob", "amount": 1})


class Node:
    """A graph whose node makes calls, perhaps those that a model planned, and then asks two questions of its own."""

    def __init__(self, act: Callable[..., Any], *, pdp: Any = None, planned: Any = (), protected: bool = True) -> None:
        self.ran: list[Any] = []
        self.heard: list[Any] = []
        ran, heard = self.ran, self.heard
        tools = {t.name: t for t in (pay_tool(ran), read_tool(ran), asking_tool(ran), failing_tool(ran))}

        def work(state: Any) -> Any:
            act(tools, state)
            heard.append((interrupt("first"), interrupt("second")))
            return {}

        nodes = {"model": lambda _: {"messages": [says(*planned)]}} if planned else {}
        profiles = {**PROFILES, "transfer": PROFILES["pay"], "unsure": PROFILES["pay"]}
        self.authz = authz_with(pdp or asking("pay", "read", "transfer", "unsure"), profiles=profiles)
        graph = chain({**nodes, "work": work}, name="root", checkpointer=InMemorySaver())
        self.graph = self.authz.protect(graph) if protected else graph

    def asked(self, *given: Any, how: str = "sync") -> list[Any]:
        """Return the question after the input, and after each answer: a text, or the call that it is about."""
        found = []
        for one in given:
            state = run_as(self.authz, self.graph, one if isinstance(one, dict) and "messages" in one else resumed(one), THREAD, how=how)
            found += [i.value if isinstance(i.value, str) else i.value["action_requests"][0]["name"] for i in state.get("__interrupt__", ())]
        return found


def resumed(value: Any) -> Any:
    return Command(resume=value) if value is not None else None


WORDS: Any = ("checking", "monday")


@pytest.mark.parametrize("answers", [WORDS, (True, False)], ids=["words", "plain"])
@pytest.mark.parametrize("permitted", [True, False])
def test_a_payment_is_made_once_and_each_question_gets_its_answer(how: str, answers: Any, permitted: bool) -> None:
    """An answer in words changes the task, and the node makes its call again under the new one."""
    node = Node(pays, pdp=StaticPDP(True) if permitted else None)
    given, asked = ((human(), *answers), []) if permitted else ((human(), YES, *answers), ["pay"])
    assert node.asked(*given, how=how) == [*asked, "first", "second"]
    assert (node.ran, node.heard) == ([BOB], [answers])


@pytest.mark.parametrize("kinds", ["yes yes", "no yes", "yes no"])
def test_so_it_is_with_calls_that_a_model_planned(how: str, kinds: str) -> None:
    plan = [call("pay", {"to": to, "amount": 1}, to) for to in ("ann", "bob")]

    def act(tools: Any, state: Any) -> None:
        for planned in state["messages"][-1].tool_calls:
            with contextlib.suppress(AuthzDenied):
                tools["pay"].invoke(planned)

    node = Node(act, planned=plan)
    said = [YES if kind == "yes" else NO for kind in kinds.split()]
    assert node.asked(human(), *said, *WORDS, how=how) == ["pay", "pay", "first", "second"]
    assert node.heard == [WORDS]
    assert [to for to, *_ in node.ran] == [to for to, one in zip(("ann", "bob"), said, strict=True) if one is YES]


def test_a_rejection_stands_while_the_task_goes_on(how: str) -> None:
    """A node may ask what to do instead: the answer is no reason to ask about the payment again."""

    def act(tools: Any, _: Any) -> None:
        with contextlib.suppress(AuthzDenied):
            pays(tools, _)

    node = Node(act)
    assert node.asked(human(), NO, *WORDS, how=how) == ["pay", "first", "second"]
    assert (node.ran, node.heard) == ([], [WORDS])


def test_a_read_is_approved_once_for_its_task(how: str) -> None:
    node = Node(lambda tools, _: tools["read"].invoke({"path": "a"}))
    assert node.asked(human(), YES, *WORDS, how=how) == ["read", "first", "second"]
    assert node.heard == [WORDS]


def test_a_read_that_asks_twice_hears_each_answer(how: str, protected: bool) -> None:
    """Each question is asked once, although the tool runs again from its beginning."""
    ran: list[Any] = []
    which = a_tool("which", lambda text: ran.append((interrupt("first"), interrupt("second"))), text=str)
    graph = node_graph(lambda _: {"messages": [AIMessage(str(which.invoke({"text": "x"})))]}, checkpointer=InMemorySaver())
    authz = authz_with(StaticPDP(True), profiles={"which": ToolProfile(effect="read", sink="none")})
    graph = authz.protect(graph) if protected else graph
    asked = [run_as(authz, graph, given, THREAD, how=how).get("__interrupt__", ()) for given in (human(), resumed("a"), resumed("b"))]
    assert [[i.value for i in each] for each in asked] == [["first"], ["second"], []] and ran == [("a", "b")]


def test_a_tool_that_asks_goes_on_with_its_answer(how: str) -> None:
    node = Node(lambda tools, _: tools["transfer"].invoke({"recipient": "bob", "amount": 1}))
    assert node.asked(human(), YES, "checking", *WORDS, how=how) == ["transfer", "account", "first", "second"]
    assert (node.ran, node.heard) == ([("bob", "checking")], [WORDS])


def test_an_approval_inside_a_tool_is_no_answer_to_the_tools_question(how: str, protected: bool) -> None:
    """The tool asks, makes a call that is asked about, and asks again."""
    ran: list[Any] = []
    pay = pay_tool(ran)

    @tool
    def transfer(recipient: str, amount: float) -> str:
        """Pay from an account that a person names, on a day that a person names."""
        account = interrupt("account")
        pay.invoke({"to": "fees", "amount": 1})
        ran.append((account, interrupt("day")))
        return "paid"

    graph: Any = node_graph(lambda _: transfer.invoke({"recipient": "bob", "amount": 1}) and None, checkpointer=InMemorySaver())
    authz = authz_with(asking("pay"), profiles={**PROFILES, "transfer": PROFILES["pay"]})
    graph = authz.protect(graph) if protected else graph
    answers = (True, *([YES] if protected else []), False)
    asked = [run_as(authz, graph, given, THREAD, how=how).get("__interrupt__", ()) for given in (human(), *map(resumed, answers))]
    assert [isinstance(i.value, str) for each in asked for i in each] == ([True, False, True] if protected else [True, True])
    assert ran == [("fees", 1.0, "USD")] * (1 if protected else 2) + [(True, False)]


@pytest.mark.parametrize("answers", [WORDS, (True, False)], ids=["words", "plain"])
def test_an_approval_of_a_second_try_is_no_answer_to_the_nodes_question(how: str, answers: Any) -> None:
    """It is asked after the node's first question, and taken before it."""

    def act(tools: Any, _: Any) -> None:
        with contextlib.suppress(ConnectionError):
            tools["unsure"].invoke({"recipient": "bob", "amount": 1})

    node = Node(act)
    first, second = answers
    assert node.asked(human(), YES, first, YES, second, how=how) == ["unsure", "first", "unsure", "second"]
    assert (node.ran, node.heard) == (["bob", "bob"], [answers])


def test_a_correction_from_outside_does_not_pay_again(how: str, protected: bool) -> None:
    node = Node(pays, pdp=StaticPDP(True), protected=protected)
    assert node.asked(human(), how=how) == ["first"]
    if protected:
        node.authz.correct("t", "Pay the other bill", graph=node.graph)
    assert node.asked(True, False, how=how) == ["second"]
    assert node.ran == ([BOB] if protected else [BOB] * 3)


@pytest.mark.parametrize("answer", ["checking", True])
def test_a_tool_that_paused_before_a_correction_asks_again(how: str, answer: Any, protected: bool) -> None:
    """The approval was for the task before it."""
    node = Node(lambda tools, _: tools["transfer"].invoke({"recipient": "bob", "amount": 1}), protected=protected)
    assert node.asked(*((human(), YES) if protected else (human(),)), how=how)[-1] == "account"
    if protected:
        node.authz.correct("t", "Pay nobody", graph=node.graph)
    assert node.asked(answer, how=how) == (["transfer"] if protected else ["first"])
    assert node.ran == ([] if protected else [("bob", answer)])


def transfers(tools: Any, _: Any) -> None:
    with contextlib.suppress(AuthzDenied):
        tools["transfer"].invoke({"recipient": "bob", "amount": 1})


@pytest.mark.parametrize("answer", ["checking", True])
def test_an_answer_to_a_tool_that_is_rejected_afterwards_reaches_nobody_else(how: str, answer: Any, protected: bool) -> None:
    node = Node(transfers, protected=protected)
    if not protected:
        assert node.asked(human(), answer, *WORDS, how=how) == ["account", "first", "second"]
        assert node.ran == [("bob", answer)] * 3
        return
    assert node.asked(human(), YES, how=how) == ["transfer", "account"]
    node.authz.correct("t", "Pay nobody", graph=node.graph)
    assert node.asked(answer, NO, *WORDS, how=how) == ["transfer", "first", "second"]
    assert (node.ran, node.heard) == ([], [WORDS])


def test_two_tools_that_ask_at_once_get_an_answer_each() -> None:
    """The node shows the first question only. Its answer is none to the other tool, whose question is shown next."""
    ran: list[Any] = []
    entered: list[None] = []
    begun, asked = threading.Event(), threading.Event()

    @tool
    def write(text: str) -> str:
        """Write what a person says."""
        if len(entered) == 1 and text == "first":
            begun.wait(5)
        elif len(entered) == 1:
            begun.set()
            asked.wait(5)
            time.sleep(0.05)
        try:
            ran.append((text, interrupt(text)))
        finally:
            asked.set()
        return "written"

    def work(state: Any) -> Any:
        entered.append(None)
        acts = [partial(copy_context().run, write.invoke, {"text": text}) for text in ("first", "second")]
        if len(entered) > 1:
            return [act() for act in acts] and {}
        with ThreadPoolExecutor() as pool:
            return [each.exception() for each in [pool.submit(act) for act in acts]] and {}

    graph, found = authz_with(StaticPDP(True)).protect(chain({"work": work}, name="root", checkpointer=InMemorySaver())), []
    for given in (human(), resumed("one"), resumed("two")):
        found += [i.value for i in graph.invoke(given, THREAD).get("__interrupt__", ())]
    assert (found, ran) == (["first", "second"], [("first", "one"), ("second", "two")])


def test_an_answer_to_the_nodes_question_names_no_account(how: str, protected: bool) -> None:
    """The node has asked already when its tool is approved, which asks before that."""
    node = Node(transfers, protected=protected)
    if not protected:
        assert node.asked(human(), *WORDS, how=how) == ["account", "first", "second"]
        assert node.ran == [("bob", WORDS[0])] * 2
        return
    assert node.asked(human(), {"decisions": [{"type": "respond", "message": "Not now"}]}, how=how) == ["transfer", "first"]
    node.authz.correct("t", "Pay bob", graph=node.graph)
    assert node.asked("checking", YES, "savings", "monday", how=how) == ["transfer", "account", "second"]
    assert (node.ran, node.heard) == ([("bob", "savings")], [("checking", "monday")])


def test_an_approval_of_a_second_try_is_none_of_the_next_call(how: str, protected: bool) -> None:
    """The node was entered again while its next call was asked about, and asks about the second try instead."""

    def act(tools: Any, _: Any) -> None:
        with contextlib.suppress(ConnectionError):
            tools["unsure"].invoke({"recipient": "ann", "amount": 1})
        with contextlib.suppress(AuthzDenied):
            pays(tools, _)

    node = Node(act, protected=protected)
    if not protected:
        assert node.asked(human(), how=how) == ["first"]
        assert node.ran == ["ann", BOB]
        return
    assert node.asked(human(), YES, None, YES, how=how) == ["unsure", "pay", "unsure", "pay"]
    assert node.ran == ["ann", "ann"]
    assert node.asked(NO, *WORDS, how=how) == ["first", "second"]
    assert (node.ran, node.heard) == (["ann", "ann"], [WORDS])


@pytest.mark.parametrize("answer", [YES, "words"], ids=["approval", "words"])
def test_an_answer_to_the_nodes_question_is_none_to_ours(how: str, answer: Any, protected: bool) -> None:
    """The node was entered again while its call was asked about, and asks a question of its own instead."""
    entered: list[Any] = []
    said: list[Any] = []

    def act(tools: Any, _: Any) -> None:
        entered.append(None)
        if len(entered) > 1:
            said.append(interrupt("go on?"))
        with contextlib.suppress(AuthzDenied):
            pays(tools, _)

    node = Node(act, protected=protected)
    if not protected:
        assert node.asked(human(), how=how) == ["first"]
        assert node.ran == [BOB]
        return
    assert node.asked(human(), None, answer, NO, *WORDS, how=how) == ["pay", "go on?", "pay", "first", "second"]
    assert (node.ran, node.heard) == ([], [WORDS])
    assert said == [answer] * 4


@pytest.mark.parametrize("corrected", [1, 2, 3])
def test_an_approval_for_an_older_answer_numbers_no_question_of_the_node(how: str, corrected: int, protected: bool) -> None:
    """Each correction voids the approval that is pending, and its answer stays among the task's answers."""
    node = Node(pays, protected=protected)
    if not protected:
        assert node.asked(human(), how=how) == ["first"]
        assert node.ran == [BOB]
        return
    assert node.asked(human(), how=how) == ["pay"]
    for number in range(corrected):
        node.authz.correct("t", f"Pay with care {number}", graph=node.graph)
        assert node.asked(YES, how=how) == ["pay"]
    assert node.asked(YES, how=how) == ["first"]
    assert (node.ran, node.heard) == ([BOB], [])
    assert node.asked(*WORDS, how=how) == ["second"]
    assert (node.ran, node.heard) == ([BOB], [WORDS])


@pytest.mark.parametrize("outside", [True, False])
def test_a_question_that_is_shown_again_waits_for_its_answer(how: str, outside: bool) -> None:
    """The node was entered again while one call was asked about, and asks about the other first."""
    payees = ["ann"]

    def act(tools: Any, _: Any) -> None:
        for to in payees:
            tools["pay"].invoke({"to": to, "amount": 1})

    node = Node(act)
    assert node.asked(human(), how=how) == ["pay"]
    payees.insert(0, "bob")
    assert node.asked(None, YES, None, None, how=how) == ["pay"] * 4
    assert node.ran == [BOB]
    if outside:
        node.authz.approve(node.authz.approvals()[0].id, by="carol")
    assert node.asked(None if outside else YES, *WORDS, how=how) == ["first", "second"]
    assert (node.ran, node.heard) == ([BOB, ("ann", 1.0, "USD")], [WORDS])


def test_an_answer_that_a_node_passes_on_is_its_own(how: str) -> None:
    """A node may show the question of another graph as its own, which no approval of its task answers."""
    shown = {"action_requests": [{"name": "pay", "args": {}, "approval_id": "a", "description": ""}], "interrupt_id": "b"}
    node = Node(lambda *_: node.heard.append(interrupt(shown)))
    assert node.asked(human(), YES, *WORDS, how=how) == ["pay", "first", "second"]
    assert node.heard == [YES, YES, YES, WORDS]


def test_another_turn_pays_again(how: str) -> None:
    node = Node(pays, pdp=StaticPDP(True))
    for _ in range(2):
        assert node.asked(human(), *WORDS, how=how) == ["first", "second"]
    assert node.ran == [BOB, BOB]


def test_a_rejected_payment_is_not_made_by_an_answer_to_another(protected: bool) -> None:
    """A node that was stopped as it asked about it asks about another one first when it runs again."""
    ran: list[Any] = []
    stopped: list[Any] = []
    pay = pay_tool(ran)

    async def work(state: Any) -> None:
        if not stopped:
            stopped.append(None)
            with contextlib.suppress(GraphInterrupt):
                await pay.ainvoke({"to": "ann", "amount": 1})
            raise asyncio.CancelledError
        await pay.ainvoke({"to": "bob", "amount": 1})
        interrupt("go on?")
        with contextlib.suppress(AuthzDenied):
            await pay.ainvoke({"to": "ann", "amount": 1})

    authz = authz_with(asking("pay"))
    graph = chain({"work": work}, name="root", checkpointer=InMemorySaver())
    graph = authz.protect(graph) if protected else graph
    with pytest.raises(NodeCancelledError):
        run_as(authz, graph, human(), THREAD, how="async")
    ran.clear()
    for given in (None, *([Command(resume=YES)] if protected else []), Command(resume=True), *([Command(resume=NO)] if protected else [])):
        run_as(authz, graph, given, THREAD, how="async")
    assert [to for to, *_ in ran if to == "ann"] == ([] if protected else ["ann"])


@pytest.mark.parametrize("inside", ["node", "tool"])
def test_in_a_graph_that_nobody_protects_each_question_gets_its_answer(inside: str, how: str, protected: bool) -> None:
    """A tool asks, then its caller. When both run again, the tool gives its first result, and the caller hears its own answer."""
    authz, got = authz_with(StaticPDP(True), profiles={name: ToolProfile(effect="write") for name in ("paint", "order")}), list[Any]()
    guarded = authz.guard if protected else lambda tool: tool
    paint = guarded(a_tool("paint", lambda: f"in {interrupt('color?')}"))

    def act() -> str:
        got.append((paint.invoke({}), interrupt("size?")))
        return "done"

    order = guarded(a_tool("order", act))
    graph = chain({"step": lambda _: (order.invoke({}) if inside == "tool" else act()) and {}}, checkpointer=InMemorySaver())
    go = sync if how == "sync" else in_loop
    with authz.run(subject="alice"):
        for given in (human(), Command(resume="red"), Command(resume="XL")):
            state = go(graph, given, THREAD)
    assert "__interrupt__" not in state and got == [("in red", "XL")]


@pytest.mark.parametrize("kind", ["agent", "hand", "node"])
def test_an_error_of_langgraph_is_not_one_of_the_ledger(monkeypatch: Any, kind: str) -> None:
    """`interrupt()` may fail: its error keeps its type, and nothing runs."""
    ran: list[Any] = []
    pay, model = pay_tool(ran), replying([call("pay", {"to": "bob", "amount": 1}, "c")])
    if kind == "node":
        node = Node(pays)
        start, ran = partial(node.asked, human()), node.ran
    else:
        authz, graph = protecting((agent_graph if kind == "agent" else hand_written)(model, [pay], checkpointer=InMemorySaver()), asking("pay"))
        start = partial(told, authz, graph, human(), THREAD)

    def fails(_: Any) -> Any:
        raise AssertionError("of the host")

    monkeypatch.setattr("langchain_runtime_authz.langgraph.interrupts.interrupt", fails)
    with pytest.raises(AssertionError, match="of the host"):
        start()
    assert ran == []


class Saver(InMemorySaver):
    """Fails at its read with the number `at`."""

    at = 0

    def get_tuple(self, config: Any) -> Any:
        self.at -= 1
        if not self.at:
            raise AssertionError("of the host")
        return super().get_tuple(config)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_of_the_checkpointer_is_not_one_of_the_ledger(at: int) -> None:
    """Also while an entry looks for edits of the state, after the ledger was read."""
    ran, saver = list[Any](), Saver()
    pay, model = pay_tool(ran), replying([call("pay", {"to": "bob", "amount": 1}, "c")])
    made, unprotected = (agent_graph(model, [pay], checkpointer=saver) for _ in range(2))
    authz, graph = protecting(made, asking("pay"))
    told(authz, graph, human(), THREAD)
    unprotected.update_state(THREAD, human("Another task"))
    saver.at = at
    with pytest.raises(AssertionError, match="of the host"):
        told(authz, graph, human(), THREAD)
    assert ran == []


@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "plain"])
@pytest.mark.parametrize("first", ["choose", "pay"])
def test_tools_of_one_message_ask_one_after_the_other(first: str, by_id: bool, how: str, protected: bool) -> None:
    """The third tool's payment asks while the second tool's own question is open. Nobody is asked twice."""
    authz, found, ran = authz_with(asking("pay")), list[Any](), list[Any]()
    pay = authz.guard(pay_tool(ran))
    choose = a_tool("choose", lambda of: str(interrupt({"of": of})), of=str)
    both = a_tool("both", lambda of: [pay.invoke({"to": of, "amount": 1}), str(interrupt({"of": of}))][1], of=str)
    made = [PAY if first == "pay" else call("choose", {"of": "a"}, "call-1"), call("choose", {"of": "b"}, "call-2"), call("both", {"of": "c"}, "call-3")]
    graph = hand_written(replying(made), AuthzToolNode([pay_tool(ran), choose, both], authz=authz), checkpointer=InMemorySaver())
    graph, given = authz.protect(graph) if protected else graph, human()
    with authz.run(subject="alice"):
        while paused := (sync if how == "sync" else in_loop)(graph, given, THREAD).get("__interrupt__"):
            asked = paused[0].value
            found.append(asked.get("of") or asked["action_requests"][0]["args"]["recipient"])
            assert len(found) < 6, found
            answer = True if "of" in asked else YES
            given = Command(resume={paused[0].id: answer} if by_id else answer)
    assert found == ["bob" if first == "pay" else "a", "b", "c", "c"] and [to for to, *_ in ran] == ["bob", "c"][first != "pay" :]
