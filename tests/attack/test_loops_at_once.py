"""Hand-written nodes that do several things at once: threads, tasks, blocks and parallel nodes."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware, wrap_tool_call
from langgraph.errors import GraphInterrupt, NodeCancelledError
from langgraph.func import entrypoint, task
from pydantic import ConfigDict

from langchain_runtime_authz import profile
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.ledger.base import Conflict
from langchain_runtime_authz.ledger.call_changes import ClaimCall

from ._kit import *
from .test_loops import APPROVAL, THREE, TWICE, Loop, answers, bill

MAIL = ToolProfile(effect="send", critical={"to": "principal"})


def to_ann(request: Any) -> bool:
    made = getattr(request.context, "call", None)
    return made is not None and made.args.get("recipient") == "ann"


class Acting(Loop):
    """A loop whose tool node is `act(tools, calls)`."""

    def __init__(self, *turns: Any, act: Any, **options: Any) -> None:
        super().__init__(*turns, **{**options, "protected": False})
        tools, node = self.tools, self.builder.nodes["tools"].runnable

        def step(state: MessagesState) -> Any:
            return act(tools, state["messages"][-1].tool_calls)

        async def astep(state: MessagesState) -> Any:
            return await act(tools, state["messages"][-1].tool_calls)

        node.func, node.afunc = step, astep
        self.graph = self.builder.compile(checkpointer=InMemorySaver(), name="loop")
        if options.get("protected", True):
            self.authz.protect(self.graph)


class Slow(StaticPDP):
    """An engine that lets others go on meanwhile."""

    async def aevaluate(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.01)
        return await super().aevaluate(*args, **kwargs)


@pytest.mark.parametrize("by", ["tool", "function"])
def test_a_question_in_a_task_group_cancels_no_other_call(by: str) -> None:
    """A task group cancels its other tasks once one raises. A payment under way would be in doubt, and asked about again."""
    paid: list[str] = []
    does = {"effect": "send", "critical": {"to": "principal"}}
    authz = RuntimeAuthz(pdp=asking("pay"))

    async def pay(to: str) -> str:
        """Pay."""
        await asyncio.sleep(0.02)
        paid.append(to)
        return "paid"

    a_tool, function = profile(**does)(tool(pay)), authz.effect("pay", profile=does)(pay)

    async def node(state: MessagesState) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            for to in ("ann", "bob", "eve"):
                group.create_task(a_tool.ainvoke({"to": to}) if by == "tool" else function(to=to))
        return {}

    graph = authz.protect(node_graph(node, checkpointer=InMemorySaver()))
    given: Any = human()
    for _ in range(4):
        state = run_as(authz, graph, given, THREAD, how="async")
        given = resume(APPROVE)
    assert "__interrupt__" not in state and sorted(paid) == ["ann", "bob", "eve"] and authz.unknown_calls() == []


def test_a_question_waits_for_no_tool_that_waits_for_its_node(monkeypatch: Any) -> None:
    """A tool that runs until the node's code ends it, which the question does."""
    monkeypatch.setattr("langchain_runtime_authz.langgraph.node_calls.PATIENCE", 0.05)
    authz, paid, over = RuntimeAuthz(pdp=asking("pay")), list[str](), asyncio.Event()
    pay = pay_tool(paid)

    @tool
    async def watch(of: str) -> str:
        """Watch."""
        await over.wait()
        return "seen"

    async def node(state: MessagesState) -> dict[str, Any]:
        watched = asyncio.create_task(watch.ainvoke({"of": "house"}))
        await asyncio.sleep(0.01)
        try:
            await pay.ainvoke({"to": "ann", "amount": 5})
        finally:
            over.set()
            await watched
        return {}

    graph = authz.protect(node_graph(node, checkpointer=InMemorySaver()))
    assert "__interrupt__" in run_as(authz, graph, human(), THREAD, how="async")
    assert "__interrupt__" not in run_as(authz, graph, resume(APPROVE), THREAD, how="async") and len(paid) == 1


def test_threads_of_a_node_may_each_have_a_loop() -> None:
    """`asyncio.run` in each thread of a pool: none waits for a loop that is gone."""

    def act(tools: Any, calls: Any) -> Any:
        one = lambda c: asyncio.run(asyncio.wait_for(tools[c["name"]].ainvoke(c["args"]), 20))
        with ThreadPoolExecutor(len(calls)) as pool:
            made = [pool.submit(copy_context().run, one, c) for c in calls]
        return answers(calls, [m.result() for m in made])

    loop = Acting(THREE, act=act, pdp=Slow(True))
    assert_went_on(loop.go(human()))
    assert sorted(loop.ran) == [(n, 5.0, "USD") for n in ("ann", "bob", "eve")]


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_denial_says_of_the_calls_beside_it_is_true(protected: bool, begun: bool) -> None:
    """A task outlives its node. If the model was told to plan its call again, it does not run; else it was told of it.

    Unenforced the denial is an error of the app's own: the call runs, and nobody answers.
    """
    left: list[Any] = []
    late = asyncio.Event()

    async def act(tools: Any, calls: Any) -> Any:
        async def other(c: Any) -> Any:
            if not begun:
                await late.wait()
            return await tools["pay"].ainvoke(c["args"])

        left.append(asyncio.create_task(other(calls[1])))
        if not protected:
            return answers(calls[:1], ["failed"])
        return await tools["pay"].ainvoke(calls[0]["args"])

    loop = Acting(THREE[:2], act=act, pdp=Slow(lambda r: not to_ann(r)), tools=lambda ran: [bill(ran, returns=dict)], protected=False)

    async def agent(state: MessagesState) -> Any:
        if left:
            late.set()
            await asyncio.gather(*left, return_exceptions=True)
        return {"messages": [await loop.model.ainvoke(state["messages"])]}

    loop.builder.nodes["agent"].runnable.afunc = agent
    loop.graph = loop.builder.compile(checkpointer=InMemorySaver(), name="loop")
    if protected:
        loop.authz.protect(loop.graph)
    state = loop.go(human(), "async")
    if not protected:
        assert loop.ran == [PAID]
    else:
        assert loop.ran == ([PAID] if begun else [])
        assert ("paid" in answer_to(state["messages"], "bob").text) is begun


def test_an_error_of_the_app_waits_for_nobody(protected: bool) -> None:
    """As unenforced: what still runs beside it does not delay it."""

    def tools(ran: list[Any]) -> Any:
        @tool
        async def pay(to: str, amount: float) -> str:
            """Pay."""
            begun.set()
            await never.wait()
            return "paid"

        return [pay]

    async def act(tools: Any, calls: Any) -> Any:
        async def fails() -> None:
            await begun.wait()
            raise ValueError("the app's own")

        await asyncio.gather(tools["pay"].ainvoke(calls[0]["args"]), fails())

    begun, never = asyncio.Event(), asyncio.Event()
    loop = Acting([PAY], act=act, tools=tools, profiles={}, protected=protected)

    async def once() -> None:
        async with loop.authz.run(subject="alice"):
            await asyncio.wait_for(loop.graph.ainvoke(human(), THREAD), 20)

    with pytest.raises(ValueError, match="the app's own"):
        asyncio.run(once())


def test_a_swallowed_question_of_a_block_is_asked(how: str, protected: bool, ran: Any) -> None:
    """A declared effect in a `try` that catches everything; unenforced it acts at once."""
    authz = RuntimeAuthz()
    opened = lambda: authz.effect("send_mail", profile=MAIL, to="eve@x.example") if protected else nullcontext()
    def step(state: MessagesState) -> Any:
        with contextlib.suppress(Exception), opened():
            ran.append("eve")
        return {}

    async def astep(state: MessagesState) -> Any:
        with contextlib.suppress(Exception):
            async with opened():
                ran.append("eve")
        return {}

    graph = authz.protect(node_graph(step if how == "sync" else astep, checkpointer=InMemorySaver()))
    state = run_as(authz, graph, human("Look around"), THREAD, how=how)
    assert bool(state.get("__interrupt__")) is protected
    assert ran == ([] if protected else ["eve"])
    if protected:
        assert "__interrupt__" not in run_as(authz, graph, Command(resume=APPROVAL), THREAD, how=how)
        assert ran == ["eve"]


def test_nodes_that_are_sent_equal_calls_make_each() -> None:
    """Each is sent the messages and one call: two planned payments are two, as unenforced."""
    ran: list[Any] = []
    pay, model = bill(ran), replying(TWICE)

    def route(state: MessagesState) -> Any:
        calls = state["messages"][-1].tool_calls
        return [Send("tools", {**state, "call": c}) for c in calls] or END
    act = lambda state: answers([state["call"]], [pay.invoke(state["call"]["args"])])
    agent = lambda s: {"messages": [model.invoke(s["messages"])]}
    authz, graph = protecting(loop(agent, act, route, checkpointer=InMemorySaver(), name="sent"), rules_that_permit())
    assert_went_on(told(authz, graph, human(), THREAD))
    assert ran == [PAID, PAID]


class Owned(BaseModel):
    """The owner has two names; the alias wins."""

    model_config = ConfigDict(populate_by_name=True)
    owner: str = Field(alias="ownerId")
    amount: float


def test_a_model_does_not_overrule_what_code_adds_undecided(protected: bool) -> None:
    """It writes the injected argument under its alias: that is the model's value, and the policy sees it."""

    def tools(ran: list[Any]) -> Any:
        def pay(owner: str, amount: float) -> str:
            ran.append(owner)
            return "paid"

        return [StructuredTool.from_function(pay, description="Pay.", args_schema=Owned)]

    profile = ToolProfile(effect="pay", critical={"amount": "amount"}, injected=("owner",))
    ours = StaticPDP(lambda r: getattr(r.context, "call", None) is None or "owner" not in r.context.call.args)
    for written, ran in (({"amount": 5}, ["alice"]), ({"amount": 5, "ownerId": "eve"}, [] if protected else ["eve"])):
        loop = Loop(
            [call("pay", written, "c")], tools=tools, profiles={"pay": profile}, pdp=ours, protected=protected,
            send=lambda args: {**args, "owner": "alice"},
        )  # fmt: skip
        loop.go(human())
        assert loop.ran == ran


def test_an_answer_is_for_the_calls_that_were_shown() -> None:
    """A node that was stopped as it asked, and asks about another call when it runs again: each question has its answer."""
    stopped: list[Any] = []

    async def act(tools: Any, calls: Any) -> Any:
        if not stopped:
            stopped.append(None)
            with contextlib.suppress(GraphInterrupt):
                await tools["pay"].ainvoke(calls[0]["args"])
            raise asyncio.CancelledError
        return answers(calls, [await tools["pay"].ainvoke(c["args"]) for c in reversed(calls)][::-1])

    loop = Acting(THREE[:2], act=act, pdp=WasmPDP(), profiles={})

    async def enter(given: Any) -> Any:
        async with loop.authz.run(subject="alice"):
            return await loop.graph.ainvoke(given, THREAD)

    with pytest.raises(NodeCancelledError):
        asyncio.run(enter(human()))
    state, shown = asyncio.run(enter(None)), []
    while asked := state.get("__interrupt__"):
        shown += [call["args"]["recipient"] for call in asked[0].value["action_requests"]]
        state = asyncio.run(enter(resume(APPROVE)))
    assert shown == ["bob", "ann"]
    assert_went_on(state)


@pytest.mark.parametrize("node", [True, False], ids=["ToolNode", "hand-written"])
def test_an_agent_that_was_left_behind_keeps_its_calls(node: bool) -> None:
    """Its call comes after the other's question ended the run: nothing is told to its model, and it is asked about later."""
    ran: list[str] = []
    later = asyncio.Event()

    @tool
    async def look(what: str) -> str:
        """Look."""
        ran.append(what)
        return what

    async def plan(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        if isinstance(last, ToolMessage):
            return {"messages": [AIMessage(last.text)]}
        return {"messages": [says(call("look", {"what": last.text}, last.text))]}

    async def wait(state: MessagesState) -> Any:
        if state["messages"][0].text == "b":
            await later.wait()
        (planned,) = state["messages"][-1].tool_calls
        if node:
            return await tools.ainvoke(state)
        return {"messages": [ToolMessage(await look.ainvoke(planned["args"]), tool_call_id=planned["id"])]}

    tools = ToolNode([look])
    child = loop(plan, wait)

    async def supervise(_: MessagesState) -> dict[str, Any]:
        return {"messages": [one["messages"][-1] for one in await asyncio.gather(*(child.ainvoke(human(t)) for t in "ab"))]}

    authz, graph = protecting(chain({"supervise": supervise}, checkpointer=InMemorySaver()), WasmPDP(), profiles={})

    async def go() -> Any:
        given: Any = human("go")
        for _ in range(3):
            async with authz.run(subject="alice"):
                state = await graph.ainvoke(given, THREAD)
            given = resume(APPROVE)
            later.set()
            await asyncio.sleep(0.1)  # what was left behind calls its tool
        return state

    assert [m.text for m in asyncio.run(go())["messages"]] == ["go", "a", "b"]
    assert sorted(ran) == ["a", "b"]


def approved(authz: Any, graph: Any, given: Any, rounds: int) -> Any:
    """Enter a thread until nothing is asked; approve each question. There are as many as `rounds`."""
    for left in range(rounds, -1, -1):
        with authz.run(subject="alice"):
            state = graph.invoke(given, THREAD)
        asked = graph.get_state(THREAD).interrupts
        assert len(asked) == bool(left) and all(one.value["action_requests"] for one in asked)
        given = resume(APPROVE)
    return state


def flaky(tried: list[str]) -> Any:
    """A tool whose connection fails twice, after its effect."""

    @tool
    def save(path: str) -> str:
        """Save."""
        tried.append(path)
        if len(tried) < 3:
            raise ConnectionError
        return "saved"

    return save


def trying(save: Any) -> Any:
    """A node that calls the tool again, even if it raises."""

    def tools(state: MessagesState) -> Any:
        (planned,) = state["messages"][-1].tool_calls
        for _ in range(4):
            with contextlib.suppress(Exception):
                return {"messages": [ToolMessage(save.invoke(planned["args"]), tool_call_id=planned["id"])]}
        raise AssertionError

    return tools


@wrap_tool_call
def catching(request: Any, handler: Any) -> Any:
    """Try again, whatever is raised."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return handler(request)
    raise AssertionError


@pytest.mark.parametrize("retry", [None, ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False), catching],
                         ids=["its own loop", "ToolRetryMiddleware", "a wrapper that catches all"])  # fmt: skip
def test_a_call_that_failed_is_tried_again_after_an_answer(retry: Any) -> None:
    """Code that catches what a tool raises, and calls it again: it is asked anew, and the answer is for that."""
    tried: list[str] = []
    save = flaky(tried)
    authz, model = authz_with(WasmPDP(), profiles={}), replying([call("save", {"path": "n.txt"}, "c1")])
    if retry is None:
        graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, trying(save), checkpointer=InMemorySaver())
    else:
        graph = create_agent(model, [save], middleware=[retry], checkpointer=InMemorySaver())
    state = approved(authz, authz.protect(graph), human(), 3)
    assert answer_to(state["messages"], "c1").text == "saved" and tried == ["n.txt"] * 3


def test_a_call_that_failed_is_still_planned_when_it_is_tried_again() -> None:
    """In one execution of its node. Else the policy sees a call that no message contains."""
    tried: list[str] = []
    save, pdp = flaky(tried), StaticPDP(True)
    authz = authz_with(pdp, profiles={"save": ToolProfile(effect="read", sink="none")})
    model = replying([call("save", {"path": "n.txt"}, "c1")])
    graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, trying(save), checkpointer=InMemorySaver())
    told(authz, authz.protect(graph), human(), THREAD, task="x")
    assert [request.context.plan.planned for request in calls_of(pdp, "save")] == [True] * 3


def test_each_task_of_the_functional_api_asks_by_itself() -> None:
    """In either order: the answer to the one is not taken for the other's."""
    ran: list[str] = []
    first = threading.Event()
    look = a_tool("look", lambda what: [ran.append(what), what][1], what=str)

    @task
    def act(planned: Any) -> Any:
        if planned["args"]["what"] == "a" and not first.is_set():
            first.wait(0.2)  # the first time the other asks before
            first.set()
        return look.invoke(planned)

    @entrypoint(checkpointer=InMemorySaver())
    def agent(_: Any) -> Any:
        begun = [act({**call("look", {"what": what}, what), "type": "tool_call"}) for what in "ab"]
        return [one.result().text for one in begun]

    authz = authz_with(WasmPDP(), profiles={})
    assert approved(authz, authz.protect(agent), "go", 2) == ["a", "b"] and sorted(ran) == ["a", "b"]


def test_each_attempt_of_langgraphs_retry_has_its_own_answer(how: str) -> None:
    """The tool pays, then its connection fails. Without protection it pays three times unasked."""
    paid: list[str] = []

    pay = flaky(paid)

    def build() -> Any:
        again = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ConnectionError)
        turns = replying([call("save", {"path": "eve"}, "c1")])
        return hand_written(turns, [pay], checkpointer=InMemorySaver(), handle_tool_errors=False, retry_policy=again)

    build().invoke(human(), THREAD)
    assert len(paid) == 3
    paid.clear()
    authz, graph, given = authz_with(WasmPDP(), profiles={}), build(), human()
    authz.protect(graph)
    for answered in range(4):
        state = run_as(authz, graph, given, THREAD, how=how)
        assert len(paid) == answered
        given = resume(APPROVE)
    assert "__interrupt__" not in state


def test_a_withdrawn_approval_stays_withdrawn_when_code_tries_again() -> None:
    """Approved from outside, then rejected in the graph: no attempt of the node runs."""
    ran: list[str] = []
    save = a_tool("save", lambda path: [ran.append(path), "saved"][1], path=str)

    def tools(state: MessagesState) -> Any:
        (planned,) = state["messages"][-1].tool_calls
        came = [save.invoke({**planned, "type": "tool_call"}) for _ in range(3)]
        return {"messages": came[-1:]}

    authz, model = authz_with(WasmPDP(), profiles={}), replying([call("save", {"path": "n.txt"}, "c1")])
    graph = authz.protect(loop(lambda s: {"messages": [model.invoke(s["messages"])]}, tools, checkpointer=InMemorySaver()))
    asked = run_as(authz, graph, human(), THREAD)["__interrupt__"][0]
    authz.approve(asked.value["action_requests"][0]["approval_id"], by="alice")
    run_as(authz, graph, Command(resume={"decisions": [{"type": "reject"}]}), THREAD)
    assert ran == []


def test_a_call_that_equals_a_planned_one_stays_another_one(protected: bool) -> None:
    """Both run at the same time; when the node runs again, the planned one has ended before the other is made. Unprotected, both run again."""
    ran, asked = list[str](), list[Any]()
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"note": {"effect": "write", "idempotent": True}})
    model = ScriptedChatModel(script=[says(call("note", {"text": "a"}, "c1"))] * 2)

    @tool
    async def note(text: str) -> str:
        """Note."""
        await asyncio.sleep(0.01)
        ran.append(text)
        return text

    async def node(state: MessagesState) -> dict[str, Any]:
        (planned,) = (await model.ainvoke(state["messages"])).tool_calls
        await asyncio.gather(note.ainvoke(planned["args"]), note.ainvoke(planned["args"]))
        asked.append(interrupt("go on?"))
        return {}

    graph = node_graph(node, checkpointer=InMemorySaver())
    graph = authz.protect(graph) if protected else graph
    for given in (human(), Command(resume="yes")):
        run_as(authz, graph, given, THREAD, how="async")
    assert asked == ["yes"] and ran == ["a"] * (2 if protected else 4)


def test_an_engine_that_changes_its_mind_at_each_look_ends_in_a_denial(ran: list[Any]) -> None:
    """A call's claim fails again and again, then the engine asks; asked about the whole message, it permits. Nothing runs without a claim."""
    answers = iter([True, True, ASK] * 40)
    pdp = StaticPDP(lambda r: next(answers) if r.action.name == "tools/call" else True)
    authz, graph = protecting(hand_written(replying([{**PAY, "id": "1"}, {**PAY, "id": "2"}]), [pay_tool(ran)], checkpointer=InMemorySaver()), pdp)
    commit, claimed = authz.ledger.commit, list[str]()

    def refusing(scope: Any, guard: Any, changes: Any) -> Any:
        keys = [c.key for c in changes if isinstance(c, ClaimCall)]
        claimed.extend(k for k in keys if k not in claimed)
        return Conflict(Code.BUDGET_EXHAUSTED) if keys and keys[0] != claimed[0] else commit(scope, guard, changes)

    authz.ledger.commit = refusing  # type: ignore[method-assign]
    state = told(authz, graph, human(), THREAD)
    assert ran == [PAID] and completions(authz) == ["released", "done"]
    assert_went_on(state)
    assert "not permitted" in answer_to(state["messages"], "2").text
