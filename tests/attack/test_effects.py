"""Effects without a tool: declared by `authz.effect`, they are decided as tool calls are. Each attack has its twin."""

import traceback
from functools import partial

from langgraph.func import task
from langgraph.runtime import Runtime

from langchain_runtime_authz.pdp.cedar import CedarPDP

from ._kit import *

MAIL = {"effect": "send", "critical": {"to": "principal"}, "text": ["body"], "intent": ["mail"], "data_class": "public"}
BARE = {k: v for k, v in MAIL.items() if k != "text"}
RUN = {"effect": "admin", "critical": {"code": "value"}}
STRANGER = "eve@x.example"
declared = params(True, False)
engine = params(WasmPDP, CedarPDP)


def seen(authz: Any, name: str) -> list[tuple[str, Any]]:
    """Each decision on an effect: outcome and plan."""
    found = [r for r in authz.audit.records if r["kind"] == "decision" and r["resource"] == name]
    return [(r["outcome"], r["request"]["context"]["plan"]) for r in found]


def mailer(authz: Any, sent: list[Any], declared: bool, how: str = "sync") -> Any:
    """A node that mails what its model wrote, by a plain function: no tool, no call."""

    def send(to: str, body: str = "hello") -> dict[str, str]:
        sent.append((to, body))
        return {"sent": to}

    async def asend(to: str, body: str = "hello") -> dict[str, str]:
        return send(to, body)

    act: Any = send if how == "sync" else asend
    act = authz.effect("send_mail", profile=MAIL)(act) if declared else act

    def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(json.dumps(act(model.invoke(state["messages"]).text)))]}

    async def astep(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(json.dumps(await act((await model.ainvoke(state["messages"])).text)))]}

    model = ScriptedChatModel(script=[AIMessage(STRANGER)] * 20)
    return node_graph(step if how == "sync" else astep, checkpointer=InMemorySaver())


def test_a_plain_function_mails_a_stranger(declared: bool, how: str, ran: Any, engine: Any) -> None:
    """A recipient that a model wrote is asked about, and nothing is sent before the answer."""
    authz = RuntimeAuthz(pdp=engine())
    graph = authz.protect(mailer(authz, ran, declared, how))
    state = run_as(authz, graph, human("Read the inbox"), THREAD, how=how)
    if not declared:
        assert ran == [(STRANGER, "hello")]
        return
    (asked,) = state["__interrupt__"]
    assert asked.value["action_requests"][0]["args"] == {"to": STRANGER, "body": "hello"} and ran == []
    with pytest.raises(AuthzDenied):
        run_as(authz, graph, resume(REJECT), THREAD, how=how)
    assert ran == []
    ((outcome, plan), *_) = seen(authz, "send_mail")
    assert outcome == "approval_required"
    assert (plan["source"], plan["planned"], plan["id"]) == ("code", True, None)


def test_what_the_user_ordered_is_not_asked(how: str, ran: Any, engine: Any) -> None:
    """The mandate covers it: the same function, the same engine, no question."""
    authz = RuntimeAuthz(pdp=engine())
    graph = authz.protect(mailer(authz, ran, True, how))
    run_as(authz, graph, human(f"Mail {STRANGER}"), THREAD, how=how)
    assert ran == [(STRANGER, "hello")]


@pytest.mark.parametrize("words", [f"Mail {STRANGER}", "Read the inbox"], ids=["ordered", "not_ordered"])
def test_a_declared_tool_is_called_by_code(declared: bool, how: str, words: str, ran: Any, engine: Any) -> None:
    """A declared tool asks unless it is ordered, and runs once. An undeclared one is denied as `unplanned`."""

    @tool
    def send_mail(to: str, body: str = "hello") -> dict[str, str]:
        """Mail."""
        ran.append((to, body))
        return {"sent": to}

    authz = RuntimeAuthz(pdp=engine(), profiles={"send_mail": MAIL})
    act = authz.effect("send_mail")(send_mail) if declared else send_mail

    def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(json.dumps(act.invoke({"to": STRANGER})))]}

    async def astep(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(json.dumps(await act.ainvoke({"to": STRANGER})))]}

    graph = authz.protect(node_graph(step if how == "sync" else astep, checkpointer=InMemorySaver()))
    if not declared:
        assert code_of(lambda: run_as(authz, graph, human(words), THREAD, how=how)) == "unplanned" and ran == []
        return
    state = run_as(authz, graph, human(words), THREAD, how=how)
    if words == "Read the inbox":
        assert state["__interrupt__"] and ran == []
        state = run_as(authz, graph, resume(APPROVE), THREAD, how=how)
    assert ran == [(STRANGER, "hello")] and json.loads(state["messages"][-1].text) == {"sent": STRANGER}
    assert seen(authz, "send_mail")[0][1]["source"] == "code"


def test_a_declared_copy_leaves_the_tool_as_it_was(ran: Any) -> None:
    """Code that calls the tool itself, and a model that calls the copy, need a plan as before."""

    @tool
    def send_mail(to: str) -> str:
        """Mail."""
        ran.append(to)
        return "sent"

    authz = RuntimeAuthz(profiles={"send_mail": BARE})
    copy = authz.effect("send_mail")(send_mail)
    assert code_of(lambda: told(authz, authz.protect(node_graph(in_run(lambda: send_mail.invoke({"to": STRANGER})))), human(f"Mail {STRANGER}"))) == "unplanned"
    state = {"messages": [HumanMessage(f"Mail {STRANGER}"), AIMessage("", tool_calls=[{"name": "send_mail", "args": {"to": "eve@y.example"}, "id": "1", "type": "tool_call"}])]}
    graph = authz.protect(node_graph(ToolNode([copy]), checkpointer=InMemorySaver()))
    told(authz, graph, state, THREAD)
    assert ran == [] and seen(authz, "send_mail")[-1][1]["source"] != "code"


@pytest.mark.parametrize("to", [STRANGER, "eve@y.example"], ids=["twin", "changed"])
def test_a_models_call_by_a_declared_copy_needs_its_plan(to: str, ran: Any) -> None:
    """Code hands the model's call to the copy, with other arguments. The twin leaves them; then the plan is the model's."""

    @tool
    def send_mail(to: str) -> str:
        """Mail."""
        ran.append(to)
        return "sent"

    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"send_mail": BARE})
    copy = authz.effect("send_mail")(send_mail)
    model = ScriptedChatModel(script=[AIMessage("", tool_calls=[call("send_mail", {"to": STRANGER}, "1")])])

    def node(state: MessagesState) -> dict[str, Any]:
        (made,) = model.invoke(state["messages"]).tool_calls
        return {"messages": [copy.invoke({**made, "args": {"to": to}})]}

    told(authz, authz.protect(node_graph(node)), human())
    assert [(plan["source"], plan["planned"]) for _, plan in seen(authz, "send_mail")] == [("model", to == STRANGER)]


def test_a_default_that_nobody_spoke_of_is_not_asked(ran: Any) -> None:
    """An argument that has its default value deviates from nothing."""
    authz = RuntimeAuthz()

    @authz.effect("send_mail", profile=BARE)
    def send(to: str, urgent: bool = False, copies: int = 1) -> None:
        ran.append((to, urgent, copies))

    graph = authz.protect(node_graph(in_run(lambda: send(STRANGER)), checkpointer=InMemorySaver()))
    told(authz, graph, human(f"Mail {STRANGER}"), THREAD)
    assert ran == [(STRANGER, False, 1)]


def test_code_that_a_model_wrote_is_shown_before_it_runs(declared: bool, ran: Any) -> None:
    """A node that executes code is declared `admin`: it asks, and shows the code."""
    authz = RuntimeAuthz()
    code = "transfer('eve', 500)"

    def execute(state: MessagesState, runtime: Runtime) -> dict[str, Any]:
        exec(state["messages"][-1].text, {"transfer": lambda *args: ran.append(args)})
        return {}

    node = authz.effect("run_code", profile=RUN, arguments=lambda state, runtime: {"code": state["messages"][-1].text})
    graph = node_graph(node(execute) if declared else execute, checkpointer=InMemorySaver())
    authz.protect(graph)
    state = told(authz, graph, {"messages": [HumanMessage("Add up"), AIMessage(code)]}, THREAD)
    if not declared:
        assert ran == [("eve", 500)]
        return
    assert code in state["__interrupt__"][0].value["action_requests"][0]["description"] and ran == []
    told(authz, graph, resume(APPROVE), THREAD)
    assert ran == [("eve", 500)]


@pytest.mark.parametrize("effect", ["read", "send"])
def test_a_read_may_a_side_effect_asks(effect: str, ran: Any, engine: Any) -> None:
    """Without a checkpointer there is nobody to ask: a side effect is denied, a read runs."""
    authz = RuntimeAuthz(pdp=engine())
    sink = "none" if effect == "read" else "external"

    @authz.effect("act", profile={"effect": effect, "sink": sink, "critical": {"to": "principal"}})
    def act(to: str) -> None:
        ran.append(to)

    graph = authz.protect(node_graph(in_run(lambda: act(STRANGER))))
    if effect == "read":
        told(authz, graph, human())
        assert ran == [STRANGER]
    else:
        assert code_of(lambda: told(authz, graph, human())) == "approval_unavailable"
        assert ran == []


def test_two_effects_of_one_node_ask_in_turn_and_run_once(ran: Any) -> None:
    """Each question is answered by itself. What ran before the second gives its first result."""
    authz = RuntimeAuthz()
    results: list[Any] = []

    @authz.effect("send_mail", profile=BARE)
    def send(to: str) -> list[str]:
        ran.append(to)
        return [to]

    graph = authz.protect(node_graph(in_run(lambda: results.extend(send("a@x.example") + send("b@x.example"))), checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    assert "CHANGED" not in str(told(authz, graph, resume(APPROVE), THREAD)["__interrupt__"])
    state = told(authz, graph, resume(APPROVE), THREAD)
    assert "__interrupt__" not in state
    assert ran == results == ["a@x.example", "b@x.example"]


@pytest.mark.parametrize("catch", [False, True])
def test_effects_at_once_ask_one_after_the_other(catch: bool, ran: Any) -> None:
    """Each has its own question and its own answer, also where the code swallows what the call raises."""
    authz = RuntimeAuthz()

    @authz.effect("send_mail", profile=BARE)
    async def send(to: str) -> None:
        ran.append(to)

    async def step() -> None:
        await asyncio.gather(send("a@x.example"), send("b@x.example"), return_exceptions=catch)

    graph = authz.protect(node_graph(in_run(lambda: None, step), checkpointer=InMemorySaver()))
    for given in (human(), resume(APPROVE), resume(APPROVE)):
        state = run_as(authz, graph, given, THREAD, how="async")
    assert "__interrupt__" not in state and sorted(ran) == ["a@x.example", "b@x.example"]


def test_a_question_of_the_nodes_own_does_not_answer_ours(ran: Any) -> None:
    """The node asks first, then acts: the answer to its question approves nothing."""
    authz = RuntimeAuthz()
    send = authz.effect("send_mail", profile=BARE)(lambda to: ran.append(to))
    graph = authz.protect(node_graph(in_run(lambda: (interrupt("sure?"), send(STRANGER))), checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    state = told(authz, graph, resume(APPROVE), THREAD)
    assert state["__interrupt__"][0].value["action_requests"][0]["name"] == "send_mail" and ran == []
    told(authz, graph, resume(APPROVE), THREAD)
    assert ran == [STRANGER]


@pytest.mark.parametrize("kind", ["function", "tool"])
@pytest.mark.parametrize("then", ["asks", "fails", "is tried again"])
def test_in_a_graph_that_nobody_protects_a_node_that_runs_again_acts_once(
    kind: str, then: str, protected: bool, how: str, ran: Any
) -> None:
    """In one run: it acts twice in each execution, and nothing happens again. The twin acts at each execution."""
    authz, tries = RuntimeAuthz(pdp=StaticPDP(True), profiles={"pay": {"effect": "pay"}}), list[int]()
    act: Any = lambda: ran.append(STRANGER)
    if protected and kind == "function":
        act = authz.effect("pay")(act)
    elif protected:
        act = partial(authz.guard(a_tool("pay", act)).invoke, {})

    def step(state: MessagesState) -> dict[str, Any]:
        act(), act()
        tries.append(1)
        if then == "asks":
            interrupt("go on?")
        elif len(tries) == 1:
            raise ConnectionError
        return {}

    policy = RetryPolicy(initial_interval=0.001, jitter=False) if then == "is tried again" else None
    graph = chain({"step": step}, checkpointer=InMemorySaver(), retry_policy=policy)
    go = sync if how == "sync" else in_loop
    with authz.run(subject="alice"):
        with pytest.raises(ConnectionError) if then == "fails" else nullcontext():
            go(graph, human(), THREAD)
        if then != "is tried again":
            go(graph, None if then == "fails" else Command(resume="yes"), THREAD)
    assert len(tries) == 2 and ran == [STRANGER] * (2 if protected else 4)


@pytest.mark.parametrize("kind", ["function", "tool"])
@pytest.mark.parametrize("place", ["protected", "nobody protects it", "unprotected"])
def test_an_equal_effect_after_a_question_is_another_one(kind: str, place: str, how: str, ran: Any) -> None:
    """The node runs again with the answer: its first effect is not repeated, and is not taken for the second. Unprotected, it is repeated."""
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"act": {"effect": "write"}})
    act: Any = lambda: ran.append(STRANGER)
    if place != "unprotected":
        act = authz.effect("act")(act) if kind == "function" else partial(authz.guard(a_tool("act", act)).invoke, {})
    graph = node_graph(lambda _: (act(), interrupt("go on?"), act()) and {}, checkpointer=InMemorySaver())
    graph = authz.protect(graph) if place == "protected" else graph
    with authz.run(subject="alice"):
        for given in (human(), Command(resume="yes")):
            (sync if how == "sync" else in_loop)(graph, given, THREAD)
    assert ran == [STRANGER] * (3 if place == "unprotected" else 2)


@pytest.mark.parametrize("permit", [True, False])
def test_a_block_is_entered_only_on_a_permit(how: str, permit: bool, ran: Any) -> None:
    """Its call has a decision, a key, a credential and an end on record; a denied block does not run."""
    pdp = StaticPDP(True) if permit else deny_only("send_mail")
    authz = RuntimeAuthz(pdp=pdp, profiles={"send_mail": {**MAIL, "audience": ["https://mail.example"]}})

    def block() -> None:
        with authz.effect("send_mail", to=STRANGER, body="x") as call:
            ran.append(call.idempotency_key)
            authz.verifier.verify(call.credential().token, audience="https://mail.example")
            assert current_call().decision_id == call.decision_id

    async def ablock() -> None:
        async with authz.effect("send_mail", to=STRANGER, body="x") as call:
            ran.append(call.idempotency_key)
            await call.acredential()

    graph = authz.protect(node_graph(in_run(block, ablock)))
    if not permit:
        assert code_of(lambda: run_as(authz, graph, human(), how=how)) == "no_permit"
        assert ran == []
        return
    run_as(authz, graph, human(), how=how)
    assert len(ran) == 1
    (request,) = calls_of(pdp, "send_mail")
    assert request.context.call.args == {"to": STRANGER, "body": "x"} and completions(authz) == ["done"]


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("effect", ["write", "read"])
def test_a_block_is_entered_once_at_a_time(effect: str, again: bool, how: str, ran: Any) -> None:
    """Entered within itself, it would lose the end of the first call, and that call's credential would stay. The twin ends one, then the other."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    block = authz.effect("act", profile={"effect": effect, "idempotent": True})

    async def enter() -> Any:
        if how == "sync":
            with block as call:
                return await act(call)
        async with block as call:
            return await act(call)

    async def act(call: Any) -> Any:
        ran.append(call)
        if again and len(ran) == 1:
            await enter()

    async def both() -> None:
        for _ in range(2):
            await enter()

    with authz.run(subject="alice"):
        if again:
            assert code_of(lambda: asyncio.run(both()), ConfigError) == "config" and completions(authz) == ["failed"]
        asyncio.run(both())
    assert completions(authz)[-2:] == ["done"] * 2 and len(ran) == 2 + again
    assert said_by(lambda: ran[0].idempotency_key) is not None and current_call()._ticket is None


def test_a_block_that_ran_is_not_entered_again(ran: Any) -> None:
    """It cannot be skipped, so the node that runs again is denied rather than the effect repeated."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))

    def step() -> None:
        try:
            with authz.effect("send_mail", profile=MAIL, to=STRANGER):
                ran.append(STRANGER)
        except AuthzDenied as denied:  # a node may catch it and ask why
            assert "the call ran before" in str(authz.explain(denied.decision_id))
            raise
        interrupt("go on?")

    graph = authz.protect(node_graph(in_run(step), checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    assert code_of(lambda: told(authz, graph, Command(resume="yes"), THREAD)) == "outcome_unknown"
    assert ran == [STRANGER]


def test_a_result_that_was_not_kept_is_not_made_up(ran: Any) -> None:
    """What is not JSON cannot be given again: the node that runs again is denied."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    send = authz.effect("send_mail", profile=BARE)(lambda to: ran.append(to) or object())
    graph = authz.protect(node_graph(in_run(lambda: (send(STRANGER), interrupt("?"))), checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    assert code_of(lambda: told(authz, graph, Command(resume=1), THREAD)) == "outcome_unknown"
    assert ran == [STRANGER]


def test_a_failure_is_on_record_and_passes(ran: Any) -> None:
    """An exception of the function or of the block is the caller's, and the call has failed."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))

    @authz.effect("send_mail", profile=BARE)
    def send(to: str) -> None:
        raise ValueError(to)

    def block() -> None:
        with authz.effect("mail_block", profile=MAIL, to="b@x.org"):
            raise ValueError(STRANGER)

    with authz.run(subject="alice"):
        for act in (lambda: send(STRANGER), block):
            with pytest.raises(ValueError, match=STRANGER):
                act()
    assert completions(authz) == ["failed"] * 2


def test_a_blocks_error_does_not_hold_its_token() -> None:
    """The token is over when the caller reads the error, and is not in it."""
    authz = RuntimeAuthz(pdp=StaticPDP(True))
    bank = {**BARE, "audience": ["https://bank.example"]}
    with authz.run(subject="alice"), pytest.raises(RuntimeError, match="redacted") as failed, authz.effect("mail", profile=bank, to="b@x.org") as call:
        raise OSError(2, "no such key", token := call.credential().token)
    assert token not in "".join(traceback.format_exception(failed.value))


class Mailer:
    """An object with methods and a call of its own."""

    def send(self, to: str, *more: str, config: RunnableConfig | None = None, **headers: Any) -> None:
        """Send it."""

    async def __call__(self, to: str) -> str:
        return to


def test_arguments_are_those_that_the_function_receives() -> None:
    """By name, defaults included; without the object, the config and what the framework supplies."""
    pdp = StaticPDP(True)
    authz = RuntimeAuthz(pdp=pdp)

    def node(to: str, runtime: Runtime, body: str = "hello", flag: bool = False) -> None:
        """Send."""

    with authz.run(subject="alice"):
        authz.effect("node", profile=MAIL)(node)("a", Runtime(), flag=True)
        authz.effect("method", profile={"effect": "read"})(Mailer.send)(Mailer(), "a", "b", config={}, subject="s")
        assert asyncio.run(authz.effect("object", profile={"effect": "read"})(Mailer())("a")) == "a"  # type: ignore[arg-type]
    assert [r.context.call.args for r in calls_of(pdp) if r.context.call] == [
        {"to": "a", "body": "hello", "flag": True}, {"to": "a", "more": ["b"], "subject": "s"}, {"to": "a"},
    ]
    with authz.run(subject="alice"):  # a model's `to` among the headers does not hide the one that counts
        authz.effect("posted", profile={"effect": "read"})(lambda to, /, **more: None)("eve", to="a")
    assert calls_of(pdp)[-1].context.call.args == {"to": "eve", "more": {"to": "a"}}
    with pytest.raises(ConfigError, match="`critical` names `recipient`"):
        authz.effect("wrong", profile={"effect": "pay", "critical": {"recipient": "principal"}})(node)


@pytest.mark.parametrize("given", [5, int, (i for i in ())], ids=["number", "class", "generator"])
def test_what_cannot_be_declared_is_refused(given: Any, ran: Any) -> None:
    """One sentence says what to do."""

    def generator() -> Iterator[int]:
        """Count."""
        yield 1

    authz = RuntimeAuthz()
    with pytest.raises(ConfigError, match="effect `x`"):
        authz.effect("x")(given if not hasattr(given, "send") else generator)
    with pytest.raises(ConfigError, match="leave"):
        authz.effect("x", to="a")(ran.append)
    with pytest.raises(ConfigError, match="nobody guards"):
        authz.effect("x")(authz.guard(StructuredTool.from_function(generator)))
    with pytest.raises(ConfigError, match="leave.*arguments"):
        authz.effect("x", arguments=dict)(StructuredTool.from_function(generator))


def test_without_a_profile_or_a_run(ran: Any) -> None:
    """An undeclared effect asks as an unprofiled tool does; outside every run it is denied."""
    authz = RuntimeAuthz()
    send = authz.effect("send_mail")(ran.append)
    assert code_of(lambda: send(STRANGER)) == "no_run"
    graph = authz.protect(node_graph(in_run(lambda: send(STRANGER)), checkpointer=InMemorySaver()))
    assert told(authz, graph, human(), THREAD)["__interrupt__"] and ran == []


MAILS = {"send_mail": {"effect": "send", "critical": {"to": "principal"}}}


def test_an_effect_may_have_the_name_of_a_tool(ran: Any) -> None:
    """The application's code says which profile holds for it. Its arguments must be those of the profile."""
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=MAILS)
    guarded = authz.guard(a_tool("send_mail", lambda to, text: ran.append(to), to=str, text=str))
    send = authz.effect("send_mail")(lambda to: ran.append(to))
    with authz.run(subject="alice"):
        guarded.invoke({"to": "a", "text": "x"})
        send("b")
        with authz.effect("send_mail", to="c"):
            ran.append("c")
    assert ran == ["a", "b", "c"]
    assert [r.resource.properties["profiled"] for r in authz.pdp.requests if r.resource.id == "send_mail"] == [True] * 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="`to`"):
        authz.effect("send_mail")(lambda recipient: None)


@pytest.mark.parametrize("claimed", [True, False], ids=["claimed", "twin"])
def test_a_later_tool_does_not_get_the_profile_of_a_declared_effect(claimed: bool) -> None:
    """Another server's tool of this name. The twin declares no effect, and its first tool of the name is meant."""
    authz = RuntimeAuthz(profiles=MAILS)
    if claimed:
        authz.effect("send_mail")(lambda to: None)
    other = a_tool("send_mail", lambda to: None, to=str)
    assert authz.profiles.of(other).declared is not claimed


@pytest.mark.parametrize("kind", ["function", "tool", "a tool's function"])
@pytest.mark.parametrize("inside", ["node", "task", "tool", "nobody protects it"])
@pytest.mark.parametrize("asks", [True, False, None], ids=["asks", "permitted", "twin: nobody decides"])
def test_a_question_inside_an_effect_leaves_its_callers_answer_alone(kind: str, inside: str, asks: bool | None, how: str, ran: Any) -> None:
    """The effect asks two questions, then its caller asks one. All run again at each answer, and each hears its own. Unenforced, the effect repeats."""
    profiles = {name: {"effect": "write"} for name in ("send_mail", "work")}
    authz, heard = authz_with(asking("send_mail") if asks else StaticPDP(True), profiles=profiles), list[Any]()

    def send() -> str:
        ran.append((interrupt("to?"), interrupt("when?")))
        return "sent"

    async def asend() -> str:
        return send()

    async def act() -> str:
        said = mail()
        heard.append((said if how == "sync" else await said, interrupt("sure?")))
        return "done"

    def acting(name: str, body: Any, abody: Any) -> StructuredTool:
        return StructuredTool.from_function(body if how == "sync" else None, abody if how == "async" else None, name=name, description=".")

    called = lambda tool: partial(tool.invoke if how == "sync" else tool.ainvoke, {})
    declares = authz.effect("send_mail") if asks is not None else lambda function: function
    made = declares(acting("send_mail", send, asend))
    mail: Any = {"function": declares(send if how == "sync" else asend), "tool": called(made), "a tool's function": made.func or made.coroutine}[kind]
    step: Any = (lambda: asyncio.run(act())) if how == "sync" else act
    if inside == "tool":
        step = called(acting("work", step, step))
    elif inside == "task":
        work = task(lambda: asyncio.run(act()), name="work") if how == "sync" else task(act)
        step = (lambda: work().result()) if how == "sync" else work
    graph = node_graph(in_run(step, step), checkpointer=InMemorySaver())
    graph = graph if asks is None or inside == "nobody protects it" else authz.protect(graph)
    run, given = authz.run(subject="alice"), human()
    for answer in ([resume(APPROVE)] if asks else []) + [Command(resume=said) for said in ("ann", "now", "yes")]:
        (sync if how == "sync" else in_loop)(graph, given, run.config(THREAD))
        given = answer
    assert "__interrupt__" not in (sync if how == "sync" else in_loop)(graph, given, run.config(THREAD))
    assert ran == [("ann", "now")] * (1 if asks is not None else 2) and heard == [("sent", "yes")]
