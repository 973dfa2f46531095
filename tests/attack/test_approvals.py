"""What a human answers is what happens: approved once, edited as edited, rejected never."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from langgraph.errors import GraphInterrupt
from langgraph.func import entrypoint, task

from langchain_runtime_authz import AuthzMiddleware

from ._approvals import ANN, BOB, BUILDERS, EVE, FIVE, FOUR, ONE_TASK, TWO, Scene, edit, payment, react_v1, react_v2
from ._kit import *

kind = params(list(BUILDERS))
go = params(["sync", "async"])


def scene(kind: str, **options: Any) -> Scene:
    saver = InMemorySaver()
    return Scene(kind, lambda: saver, **options)


def asked(go: str, kind: str, **options: Any) -> Scene:
    """Return a scene that has asked."""
    s = scene(kind, **options)
    s.both(go)(human())
    return s


@pytest.mark.parametrize("restart", [False, True])
def test_approved_edited_and_rejected_in_one_answer(kind: str, go: str, restart: bool) -> None:
    """Three asked payments of five calls: the approved runs once, the edited as edited, the rejected never. The twin pays all."""
    s = scene(kind)
    s.build().invoke(human(), {"configurable": {"thread_id": "twin"}})
    assert sorted(s.ran) == sorted([ANN, BOB, EVE, TWO, FOUR])
    s.ran.clear()
    (question,) = s.both(go)(human())["__interrupt__"]
    assert [(a["name"], a["args"]["recipient"]) for a in question.value["action_requests"]] == [("pay", "ann"), ("pay", "bob"), ("pay", "eve")]
    assert [a["tool_call_id"] for a in question.value["action_requests"]] == ["c1", "c3", "c5"]
    assert [c["allowed_decisions"] for c in question.value["review_configs"]] == [["approve", "edit", "reject", "respond"]] * 3
    assert s.ran == [] if kind in ONE_TASK else sorted(s.ran) == sorted([TWO, FOUR])
    if restart:
        s.start()
    state = s.both(go)(resume(APPROVE, edit("bob", "2"), REJECT))
    assert sorted(s.ran) == sorted([ANN, TWO, FOUR, ("bob", 2.0, "USD")])
    assert_went_on(state)
    edited = answer_to(state["messages"], "c3")
    assert edited.status == "success"
    assert "replaced" in edited.text
    assert '"amount": "2"' in edited.text
    assert answer_to(state["messages"], "c5").status == "error"
    assert reasons(s.authz, "pay")[-1] == "approval_rejected"
    # Spent: going on over the finished thread, or answering again, repeats nothing.
    ran = list(s.ran)
    for given in (None, resume(APPROVE, APPROVE, APPROVE)):
        s.both(go)(given)
        assert s.ran == ran


def test_an_edit_is_a_correction(kind: str, go: str) -> None:
    """It opens the next epoch, with a plan of what was approved or edited; the policy decides the edited arguments."""
    s = asked(go, kind)
    s.both(go)(resume(APPROVE, edit("bob", 2), REJECT))
    final = {r.context.call.id: r.context for r in calls_of(s.pdp, "pay") if r.context.approval is not None}
    assert {i: c.task.epoch for i, c in final.items()} == {"c1": 2, "c3": 2}
    assert {i: (c.plan.planned, c.plan.stale, c.plan.of) for i, c in final.items()} == dict.fromkeys(("c1", "c3"), (True, False, 4))
    assert final["c3"].call.args == {"recipient": "bob", "amount": 2.0, "currency": "USD"}
    assert (final["c1"].approval.edited_from, final["c3"].approval.edited_from) == (None, "pay")
    assert 'Instead of pay: {"name": "pay", "args": {"to": "bob", "amount": 2}}' in final["c3"].task.text
    assert s.ledger.status("default", final["c3"].lease.jti) == "ended"


def test_a_plain_answer_is_no_correction(kind: str, go: str) -> None:
    """Approving and rejecting without a word leave the epoch alone."""
    s = asked(go, kind)
    s.both(go)(resume(APPROVE, REJECT, APPROVE))
    assert {r.context.task.epoch for r in s.pdp.requests} == {1}
    assert sorted(s.ran) == sorted([ANN, EVE, TWO, FOUR])


def below(authz: RuntimeAuthz, ran: list[Any], place: str, build: Any = react_v2, *plan: Any) -> Any:
    """An unprotected graph, with a protected agent or with one enforcement point of ours."""
    model = replying(plan or [c for c in FIVE if c["name"] == "pay"])
    pay = pay_tool(ran)
    tools = [pay, a_tool("buy", lambda: pay.invoke(PAY["args"])), a_tool("ask", lambda: ran.append(interrupt("How much?")))]
    if place == "alone":
        return hand_written(model, AuthzToolNode(tools, authz=authz), checkpointer=InMemorySaver())
    if place == "middleware":
        return create_agent(model, tools, middleware=[AuthzMiddleware(authz)], checkpointer=InMemorySaver())
    with quiet():
        agent = authz.protect(build(model, tools))
    if place == "call anew":  # if the node runs again, it writes the message again
        agent = RunnableLambda(lambda _: human()) | agent
    return chain({"pay": agent if place == "node" else calling(agent)}, checkpointer=InMemorySaver())


@pytest.mark.parametrize("place", ["node", "call", "call anew", "alone", "middleware"])
def test_below_an_unprotected_graph_each_answer_is_recorded_before_a_task_runs(place: str, go: str, ran: list[Any]) -> None:
    """A list that answers only some of the questions leaves all of them open; the run that was refused is over."""
    authz = authz_with(asking("pay"))
    graph = below(authz, ran, place)
    say = lambda given: run_as(authz, graph, given, THREAD, how=go, task="x")
    (question,) = say(human())["__interrupt__"]
    with authz.run(subject="alice") as run:
        assert code_of(lambda: (sync if go == "sync" else in_loop)(graph, resume(APPROVE), THREAD)) == "approval_partial"
        assert authz.ledger.status("default", run.jti) == "ended"
    assert (len(authz.approvals()), ran) == (3, [])
    assert_went_on(say(Command(resume={question.id: {"decisions": [APPROVE, edit("bob", "2"), REJECT]}})))
    assert sorted(ran) == [ANN, ("bob", 2.0, "USD")]


@pytest.mark.parametrize("together", [True, False], ids=["together", "in turn"])
@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "plain"])
@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "twin"])
def test_one_answer_does_not_approve_what_two_tools_of_a_task_pay(
    together: bool, by_id: bool, enforced: bool, go: str, ran: list[Any]
) -> None:
    """One question is shown at a time, and no call runs before its own was. In the twin, nobody asks."""
    authz = authz_with(asking("pay"), profiles={**PROFILES, **dict.fromkeys("ab", ToolProfile(effect="write", sink="internal"))})
    pay, begun = pay_tool(ran), [threading.Event(), threading.Event()]

    def through(place: int, name: str) -> Any:
        begun[place].set()
        assert not together or begun[1 - place].wait(5)
        return pay.invoke({"to": name, "amount": 1})

    tools = [pay, a_tool("a", lambda: through(0, "a")), a_tool("b", lambda: through(1, "b"))]
    node = AuthzToolNode(tools, authz=authz) if enforced else ToolNode(tools)
    graph = hand_written(replying([call("a", {}, "c0"), call("b", {}, "c1")]), node, checkpointer=InMemorySaver())
    state, shown = run_as(authz, graph, human(), THREAD, how=go), set[str]()
    for _ in range(2 * enforced):
        assert {to for to, *_ in ran} <= shown
        (asked,) = state["__interrupt__"]
        shown.add(asked.value["action_requests"][0]["args"]["recipient"])
        given = Command(resume={asked.id: {"decisions": [APPROVE]}}) if by_id else resume(APPROVE)
        state = run_as(authz, graph, given, THREAD, how=go)
    assert len(ran) == 2 and not state.get("__interrupt__")


@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "plain"])
@pytest.mark.parametrize("calls", ["function", "tool"])
@pytest.mark.parametrize("where", ["node", "task", "protected node", "protected task"])
@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "twin"])
def test_of_calls_that_code_makes_at_once_none_runs_before_it_was_shown(
    enforced: bool, where: str, calls: str, by_id: bool, go: str, ran: list[Any]
) -> None:
    """Each of three calls runs once, after its own question. In the twin, nobody asks."""
    authz = authz_with(asking("pay") if enforced else StaticPDP(True))

    def pay(recipient: str, amount: int) -> None:
        ran.append(recipient)

    async def apay(recipient: str, amount: int) -> None:
        await asyncio.sleep(0)
        ran.append(recipient)

    if calls == "tool":
        guarded = authz.guard(StructuredTool.from_function(pay, apay, name="pay", description="Pay."))
        act, aact = (lambda who: guarded.invoke({"recipient": who, "amount": 1})), lambda who: guarded.ainvoke({"recipient": who, "amount": 1})
    else:
        function, afunction = authz.effect("pay")(pay), authz.effect("pay")(apay)
        act, aact = (lambda who: function(who, 1)), lambda who: afunction(who, 1)

    def work(_: Any) -> dict[str, Any]:
        with ThreadPoolExecutor() as pool:
            for future in [pool.submit(copy_context().run, act, who) for who in random.sample("abc", 3)]:
                future.result()
        return {}

    async def awork(_: Any) -> dict[str, Any]:
        await asyncio.gather(*map(aact, random.sample("abc", 3)))
        return {}

    step: Any = work if go == "sync" else awork
    if where.endswith("node"):
        graph = node_graph(step, checkpointer=InMemorySaver())
    else:
        one = task(step)

        async def aflow(state: Any) -> Any:
            return await one(state)

        graph = entrypoint(checkpointer=InMemorySaver())(aflow if go == "async" else lambda state: one(state).result())
    graph = authz.protect(graph) if where.startswith("protected") else graph

    async def play() -> None:
        given, shown = human(), set[str]()
        async with authz.run(subject="alice"):
            for _ in range(1 + 3 * enforced):
                state = await graph.ainvoke(given, THREAD) if go == "async" else graph.invoke(given, THREAD)
                assert set(ran) <= shown or not enforced
                for asked in state.get("__interrupt__", ()):
                    shown.update(payees := [one["args"]["recipient"] for one in asked.value["action_requests"]])
                    answer = {"decisions": [APPROVE] * len(payees)}
                    given = Command(resume={asked.id: answer} if by_id else answer)

    asyncio.run(play())
    assert sorted(ran) == ["a", "b", "c"]


@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "plain"])
@pytest.mark.parametrize("where", ["node", "task", "protected node", "protected task"])
def test_a_question_that_nobody_saw_takes_no_answer(where: str, by_id: bool, ran: list[Any]) -> None:
    """An error hides the question about `eve`. Then `ann` is asked about and approved, which pays nobody else."""
    authz, executions = authz_with(asking("pay")), itertools.count()
    pay = authz.effect("pay")(lambda recipient, amount: ran.append(recipient))

    def work(_: Any) -> dict[str, Any]:
        if next(executions) == 0:
            with contextlib.suppress(GraphInterrupt):
                pay("eve", 1)
            raise ConnectionError
        pay("ann", 1)
        pay("eve", 1)
        return {}

    one = task(work)
    graph: Any = node_graph(work, checkpointer=InMemorySaver())
    if where.endswith("task"):
        graph = entrypoint(checkpointer=InMemorySaver())(lambda state: one(state).result())
    graph = authz.protect(graph) if where.startswith("protected") else graph
    given, shown = None, list[str]()
    with authz.run(subject="alice"):
        with contextlib.suppress(ConnectionError):
            graph.invoke(human(), THREAD)
        while asked := graph.invoke(given, THREAD).get("__interrupt__"):
            assert ran == shown
            shown += [one["args"]["recipient"] for one in asked[0].value["action_requests"]]
            answer = {"decisions": [APPROVE]}
            given = Command(resume={asked[0].id: answer} if by_id else answer)
    assert ran == shown == ["ann", "eve"]


@pytest.mark.parametrize("by_id", [True, False], ids=["by id", "plain"])
@pytest.mark.parametrize("protected", [True, False])
def test_the_answer_to_an_own_question_of_the_code_approves_no_call(protected: bool, by_id: bool, ran: list[Any]) -> None:
    """The node asks itself while its call asks. Its answer reads like an approval, and the call's question comes too."""
    authz, shown = authz_with(asking("pay")), list[Any]()
    pay = authz.effect("pay")(lambda recipient, amount: ran.append(recipient))

    async def own() -> None:
        interrupt("Publish?")

    async def call_it() -> None:
        pay("eve", 1)

    async def step(_: Any) -> dict[str, Any]:
        for found in await asyncio.gather(own(), call_it(), return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
        return {}

    graph = node_graph(step, checkpointer=InMemorySaver())
    graph, given = authz.protect(graph) if protected else graph, human()

    async def play() -> None:
        nonlocal given
        async with authz.run(subject="alice"):
            while asked := (await graph.ainvoke(given, THREAD)).get("__interrupt__"):
                assert not ran or shown != ["Publish?"]
                shown.append(asked[0].value)
                answer = {"decisions": [APPROVE]}
                given = Command(resume={asked[0].id: answer} if by_id else answer)

    asyncio.run(play())
    assert ran == ["eve"] and len(shown) == 2 and "Publish?" in shown


@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "twin"])
@pytest.mark.parametrize("place", ["root", "node", "call", "alone"])
def test_the_answer_to_a_tools_own_question_pays_for_no_other_tool(place: str, enforced: bool, go: str, ran: list[Any]) -> None:
    """Both ask at once, and only the tool's question is shown. In the twin, nobody asks for the payment."""
    pdp = asking("pay") if enforced else StaticPDP(lambda _: True)
    authz = authz_with(pdp, profiles={**PROFILES, **dict.fromkeys(("ask", "buy"), ToolProfile(effect="write", sink="internal"))})
    pay, bought, heard = pay_tool(ran), threading.Event(), list[Any]()

    def ask() -> None:
        assert bought.wait(5)
        heard.append(interrupt("How?"))

    def buy() -> None:
        try:
            pay.invoke(PAY["args"])
        finally:
            bought.set()

    model, tools = replying([call("ask", {}, "a"), call("buy", {}, "b")]), [pay, a_tool("ask", ask), a_tool("buy", buy)]
    graph = one_task(authz, model, tools, place)
    state = run_as(authz, graph, human(), THREAD, how=go)
    for own in [True, False][: 1 + enforced]:
        (asked,) = state["__interrupt__"]
        assert ((asked.value == "How?"), len(ran)) == (own, not enforced)
        state = run_as(authz, graph, Command(resume={asked.id: {"decisions": [APPROVE]}}), THREAD, how=go)
    assert (ran, heard) == ([PAID], [{"decisions": [APPROVE]}])


def one_task(authz: RuntimeAuthz, model: Any, tools: Any, place: str) -> Any:
    """A graph that runs the calls of a message in one task: protected there or above, or with our tool node."""
    if place == "alone":
        return hand_written(model, AuthzToolNode(tools, authz=authz), checkpointer=InMemorySaver())
    if place == "root":
        return authz.protect(hand_written(model, tools, checkpointer=InMemorySaver()))
    with quiet():
        agent = authz.protect(hand_written(model, tools))
    return chain({"pay": agent if place == "node" else calling(agent)}, checkpointer=InMemorySaver())


@pytest.mark.parametrize("place", ["root", "node", "call", "alone"])
def test_a_tool_that_runs_while_another_asks_is_not_cut_off(place: str, ran: list[Any]) -> None:
    """It asks later, and each answer counts."""
    authz = authz_with(asking("pay"), profiles={**PROFILES, **dict.fromkeys("ab", ToolProfile(effect="write", sink="internal"))})
    pay = pay_tool(ran)

    def paying(name: str) -> BaseTool:
        async def act() -> str:
            await asyncio.sleep(0.2 * (name == "b"))
            with contextlib.suppress(AuthzDenied):
                await pay.ainvoke({"to": name, "amount": 1})
            return "done"

        return StructuredTool.from_function(coroutine=act, name=name, description=name)

    model, tools = replying([call("a", {}, "c0"), call("b", {}, "c1")]), [pay, paying("a"), paying("b")]
    graph = one_task(authz, model, tools, place)
    state = run_as(authz, graph, human(), THREAD, how="async")
    while asked := state.get("__interrupt__"):
        state = run_as(authz, graph, Command(resume={asked[0].id: {"decisions": [APPROVE]}}), THREAD, how="async")
    assert_went_on(state)
    assert sorted(to for to, *_ in ran) == ["a", "b"]


@pytest.mark.parametrize("place", ["alone", "middleware"])
def test_a_tool_of_one_enforcement_point_may_pay_twice(place: str, go: str, ran: list[Any]) -> None:
    """The tool runs again with each answer, and the ledger gives it the result of what it has paid."""
    authz = authz_with(asking("pay"), profiles={**PROFILES, "both": ToolProfile(effect="write", sink="internal")})
    pay = pay_tool(ran)
    model, both = replying([call("both", {}, "b")]), a_tool("both", lambda: [pay.invoke({"to": to, "amount": 1}) for to in "ab"])
    if place == "alone":
        graph = hand_written(model, AuthzToolNode([both], authz=authz), checkpointer=InMemorySaver())
    else:
        graph = create_agent(model, [both], middleware=[AuthzMiddleware(authz)], checkpointer=InMemorySaver())
    state = run_as(authz, graph, human(), THREAD, how=go)
    for _ in range(2):
        state = run_as(authz, graph, resume(APPROVE), THREAD, how=go)
    assert [to for to, *_ in ran] == ["a", "b"]
    assert answer_to(state["messages"], "b").status == "success"


@pytest.mark.parametrize(("place", "by_id"), [("node", True), ("node", False), ("call", True), ("call", False), ("alone", True), ("alone", False)])
def test_below_an_unprotected_graph_an_approval_answers_no_question_of_a_tool(place: str, by_id: bool, go: str, ran: list[Any]) -> None:
    """Both calls of the message run in one task. The first pays in its code."""
    authz = authz_with(asking("pay"), profiles={**PROFILES, **dict.fromkeys(("ask", "buy"), ToolProfile(effect="write", sink="internal"))})
    graph = below(authz, ran, place, react_v1, call("buy", {}, "b"), call("ask", {}, "a"))
    say = lambda given: run_as(authz, graph, given, THREAD, how=go, task="x")
    state = say(human())
    for _ in range(2):  # either may ask first
        (asked,) = state["__interrupt__"]
        answer = 7 if asked.value == "How much?" else {"decisions": [APPROVE]}
        state = say(Command(resume={asked.id: answer} if by_id else answer))
    assert_went_on(state)
    assert sorted(ran, key=str) == [PAID, 7]


@pytest.mark.parametrize("answer", ["respond", "reject"])
def test_an_answer_in_words_is_a_correction(kind: str, go: str, answer: str) -> None:
    """In the tool's place or as a reason, the words belong to the task and reach the model; what was approved beside it runs."""
    s = asked(go, kind)
    state = s.both(go)(resume({"type": answer, "message": "never pay ann"}, REJECT, APPROVE))
    assert sorted(s.ran) == sorted([EVE, TWO, FOUR])
    said = answer_to(state["messages"], "c1")
    assert said.text == "never pay ann" if answer == "respond" else "never pay ann" in said.text
    assert said.status == ("success" if answer == "respond" else "error")
    assert_went_on(state)
    last = s.pdp.requests[-1].context.task
    assert (last.epoch, last.text.splitlines()[-1]) == (2, "never pay ann")


def test_an_edited_call_goes_through_the_schema_and_the_policy(kind: str, go: str) -> None:
    """A human's arguments are parsed and decided like a model's: what the schema or policy refuses does not run."""

    def decide(request: Any) -> object:
        if request.action.name != "tools/call" or request.resource.id != "pay":
            return True
        if request.context.call.args["amount"] > 100:
            return False
        return True if request.context.approval is not None else ASK

    s = asked(go, kind, pdp=StaticPDP(decide))
    state = s.both(go)(resume(edit("ann", "much"), edit("bob", 1000), APPROVE))
    assert sorted(s.ran) == sorted([EVE, TWO, FOUR])
    assert answer_to(state["messages"], "c1").status == "error"
    assert answer_to(state["messages"], "c3").status == "error"
    assert_went_on(state)


@pytest.mark.parametrize("permitted", [True, False])
def test_an_edit_to_another_tool_is_decided_as_that_tool(kind: str, go: str, permitted: bool) -> None:
    """Never under the policy of the one that was asked about."""

    def decide(request: Any) -> object:
        if request.action.name != "tools/call":
            return True
        if request.resource.id == "write":
            return permitted
        return True if request.context.approval is not None else ASK

    s = asked(go, kind, pdp=StaticPDP(decide), plan=[payment("ann", 10, "c1"), payment("bob", 20, "c2")])
    other = {"type": "edit", "edited_action": {"name": "write", "args": {"text": "a note"}}}
    state = s.both(go)(resume(other, APPROVE))
    assert sorted(s.ran) == sorted([BOB, ("write", "a note")] if permitted else [BOB])
    request = calls_of(s.pdp, "write")[-1]
    assert request.resource.properties["effect"] == "write"
    assert request.context.approval is not None
    assert request.context.approval.edited_from == "pay"
    assert answer_to(state["messages"], "c1").status == ("success" if permitted else "error")
    assert_went_on(state)


def test_an_edit_to_a_tool_that_is_not_there(kind: str, go: str) -> None:
    """It runs nothing; the model is told, and the others go on."""
    s = asked(go, kind)
    state = s.both(go)(resume(edit("ann", 1, name="wire"), APPROVE, REJECT))
    assert sorted(s.ran) == sorted([BOB, TWO, FOUR])
    assert answer_to(state["messages"], "c1").status == "error"
    assert_went_on(state)


def test_an_edit_that_policy_asks_about_again(kind: str, go: str) -> None:
    """Where an edit's approval does not suffice, the edited arguments are asked about, once."""

    def decide(request: Any) -> object:
        if request.action.name != "tools/call" or request.resource.id != "pay":
            return True
        approval = request.context.approval
        return True if approval is not None and approval.edited_from is None else ASK

    s = asked(go, kind, pdp=StaticPDP(decide), plan=[payment("ann", 10, "c1")])
    (again,) = s.both(go)(resume(edit("ann", 1)))["__interrupt__"]
    assert s.ran == []
    assert again.value["action_requests"][0]["args"] == {"recipient": "ann", "amount": 1.0, "currency": "USD"}
    assert_went_on(s.both(go)(resume(APPROVE)))
    assert s.ran == [("ann", 1.0, "USD")]


def test_an_approval_after_a_correction_is_void(kind: str, go: str) -> None:
    """`.correct()` between question and answer: nothing of the old message is paid."""
    s = asked(go, kind)
    s.authz.correct("t", "STOP", graph=s.graph)
    ran = list(s.ran)
    s.both(go)(resume(APPROVE, edit("bob", 2), APPROVE))
    assert s.ran == ran


@pytest.mark.parametrize("late", [False, True])
def test_an_approval_expires(kind: str, go: str, late: bool) -> None:
    """By the ledger's clock, from the question on, as long as the policy says."""
    from langchain_runtime_authz.testing import FrozenClock

    clock = FrozenClock(1_764_000_000)
    ask = {**ASK, "context": {**ASK["context"], "obligations": [_asks_for(600)]}}  # type: ignore[dict-item]
    pdp = StaticPDP(lambda r: ask if r.action.name == "tools/call" and r.resource.id == "pay" and not r.context.approval else True)
    s = asked(go, kind, pdp=pdp, ledger=MemoryLedger(clock=clock))
    clock.tick(600 if late else 599)
    state = s.both(go)(resume(APPROVE, edit("bob", 2), REJECT))
    assert sorted(s.ran) == sorted([TWO, FOUR] if late else [ANN, ("bob", 2.0, "USD"), TWO, FOUR])
    if late:
        assert reasons(s.authz, "pay")[-3:].count("approval_expired") == 2
        assert "too late" in answer_to(state["messages"], "c1").text
    assert_went_on(state)


def _asks_for(seconds: int) -> dict[str, Any]:
    return {"id": "approval", "type": "require_approval", "properties": {"expires_in": seconds}}


def test_an_approval_is_not_for_other_arguments(kind: str, go: str) -> None:
    """The message is rewritten in the checkpoint between question and answer: what then stands there does not run."""
    s = asked(go, kind, plan=[payment("ann", 10, "c1")])
    message = s.graph.get_state(THREAD).values["messages"][-1]
    forged = message.model_copy(update={"tool_calls": [payment("eve", 9999, "c1")]})
    node = "agent" if kind != "agent" else "model"
    s.graph.update_state(THREAD, {"messages": [forged]}, as_node=node)
    for _ in range(2):
        state = s.both(go)(resume(APPROVE))
        if not s.graph.get_state(THREAD).next:
            break
    assert EVE not in s.ran
    assert not [r for r in s.ran if r[0] == "eve"]
    assert isinstance(state, dict)


def test_an_edit_is_spent_once_and_replayed_as_recorded(kind: str, go: str) -> None:
    """A checkpoint from before the answer is gone back to: nothing is paid a second time."""
    s = asked(go, kind, plan=[payment("ann", 10, "c1")])
    before = s.graph.get_state(THREAD).config
    s.both(go)(resume(edit("ann", 1)))
    assert s.ran == [("ann", 1.0, "USD")]
    for given in (None, resume(edit("ann", 1)), resume(APPROVE), resume(edit("eve", 9))):
        s.both(go)(given, before)
    assert s.ran == [("ann", 1.0, "USD")]


def test_a_machines_answer_is_no_humans_word() -> None:
    """A service may edit what it is asked; its words are not pinned as the human's task."""
    s = scene("agent", plan=[payment("ann", 10, "c1")])
    with s.authz.run(subject={"type": "service", "id": "cron"}):
        s.graph.invoke(human(), THREAD)
        s.graph.invoke(resume(edit("ann", 1)), THREAD)
    assert s.ran == [("ann", 1.0, "USD")]
    last = [r for r in calls_of(s.pdp, "pay") if r.context.approval is not None][-1]
    assert (last.context.task.epoch, last.context.task.text) == (2, "")
    assert last.context.approval is not None
    assert last.context.approval.authenticated is False


def test_a_call_that_no_message_planned_takes_approve_and_reject() -> None:
    """There is no place in a plan for another one: an edit denies, and a reason opens no epoch."""
    for answer, ran_once in ((APPROVE, True), (edit("eve", 1), False), ({"type": "reject", "message": "no"}, False)):
        ran: list[Any] = []
        authz = authz_with(asking("pay"))
        pay = authz.guard(pay_tool(ran))

        def step(state: Any, pay: Any = pay) -> dict[str, Any]:
            answered: ToolMessage = pay.invoke(payment("ann", 10, "x"))
            return {"messages": [("ai", answered.text)]}

        graph = authz.protect(node_graph(step, checkpointer=InMemorySaver()))
        with authz.run(subject="alice"):
            (asked,) = graph.invoke(human(), THREAD)["__interrupt__"]
            assert asked.value["review_configs"][0]["allowed_decisions"] == ["approve", "reject"]
            state = graph.invoke(resume(answer), THREAD)
        assert ran == ([ANN] if ran_once else [])
        assert "__interrupt__" not in state
