"""A denial is an answer, not an accident: nothing retries, swallows, repeats or skips around it."""

from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware

from ._kit import *


class Halting:
    """Denies `node/enter` of one node at its n-th time, until told otherwise."""

    def __init__(self, node: str, times: tuple[int, ...] = (1,)) -> None:
        self.seen = 0
        self.open = False
        self.node, self.times = node, times

    def __call__(self, request: Any) -> bool:
        if request.action.name != "node/enter" or request.resource.id != self.node:
            return True
        self.seen += 1
        return self.open or self.seen not in self.times


def test_halted_run_resumes(kind: str, go: Any, ran: Any) -> None:
    """`node/enter` denied halts before the tool node; permitted later, the same plan goes on and runs once."""
    halting = Halting("tools")
    authz = authz_with(StaticPDP(halting))
    graph = authz.protect(BUILDERS[kind](replying([PAY]), [pay_tool(ran), read_tool(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        with pytest.raises(AuthzHalt):
            go(graph, human(), THREAD)
        assert ran == [] and graph.get_state(THREAD).next == ("tools",)
        halting.open = True
        state = go(graph, None, THREAD)
    assert ran == [PAID]
    assert_went_on(state)


def test_sibling_task_of_a_halted_one_is_not_repeated(go: Any, ran: Any) -> None:
    """One of two tool tasks halts while the other pays: after the resume the payment was made once."""
    halting = Halting("tools", times=(2,))
    # A revision that changes keeps no permit, so that each task is asked about.
    revisions = iter(range(1000))
    authz = authz_with(type("Changing", (StaticPDP,), {"revision": property(lambda _: str(next(revisions)))})(halting))
    slow = a_tool("write", lambda text: [ran.append(text), time.sleep(0.1), "ok"][2], text=str)
    graph = authz.protect(agent_graph(replying([write_call("1"), write_call("2")]), [slow], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        with pytest.raises(AuthzHalt):
            go(graph, human(), THREAD)
        halting.open = True
        state = go(graph, None, THREAD)
    assert sorted(ran) == ["1", "2"]
    assert_went_on(state)


def test_halt_is_neither_retried_nor_handled(go: Any, ran: Any) -> None:
    """RetryPolicy and an error handler do not see a halt; the PDP is asked once."""
    halting = Halting("tools", times=tuple(range(100)))
    authz = authz_with(StaticPDP(halting))
    graph = authz.protect(
        hand_written(
            replying([PAY]), ToolNode([pay_tool(ran)], handle_tool_errors=True),
            retry_policy=RetryPolicy(max_attempts=4, initial_interval=0.001, jitter=False, retry_on=lambda _: True),
            checkpointer=InMemorySaver(),
        )
    )
    with authz.run(subject="alice", task="x"), pytest.raises(AuthzHalt):
        go(graph, human(), THREAD)
    assert halting.seen == 1 and ran == []


def _handler(error: Exception) -> str:
    return f"handled {type(error).__name__}"


@pytest.mark.parametrize("handled", [True, False, "text", _handler, ValueError, (ValueError, Exception)])
@pytest.mark.parametrize("retried", [True, False])
def test_handle_tool_errors_and_retry_policy_change_nothing(handled: Any, retried: bool, go: Any, ran: Any) -> None:
    """Whatever a ToolNode does with errors and a node with failures, a denied call is denied once."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    policy = RetryPolicy(max_attempts=4, initial_interval=0.001, jitter=False, retry_on=lambda _: True) if retried else None
    node = ToolNode([pay_tool(ran), writing_tool(ran)], handle_tool_errors=handled)
    graph = authz.protect(hand_written(replying([PAY, write_call("1")]), node, retry_policy=policy))
    state = told(authz, graph, human(), go=go, task="x")
    assert ran == [("write", "1")] and answer_to(state["messages"], "call-pay").status == "error"
    assert "not permitted" in answer_to(state["messages"], "call-pay").content
    assert len(calls_of(pdp, "pay")) == 1
    assert_went_on(state)


def _retrying() -> AgentMiddleware:
    return ToolRetryMiddleware(max_retries=3, initial_delay=0.0, jitter=False, retry_on=lambda _: True)


def _failing(ran: list[Any]) -> Any:
    @tool("write")
    def write(text: str) -> str:
        """Fail after the effect."""
        ran.append(text)
        raise ConnectionError(text)

    return write


@pytest.mark.parametrize("idempotent", [False, True])
def test_failed_side_effect_is_repeated_only_where_the_profile_says_so(idempotent: bool, go: Any, pdp: Any, ran: Any):
    """ToolRetryMiddleware repeats a failed idempotent call; any other fails once, outcome unknown."""
    profiles = {"write": ToolProfile(effect="write", sink="internal", idempotent=idempotent)}
    authz, graph = protecting(agent_graph(replying([write_call("1")]), [_failing(ran)], middleware=[_retrying()]), pdp, profiles=profiles)
    state = told(authz, graph, human(), go=go, task="x")
    assert len(ran) == (4 if idempotent else 1)
    assert answer_to(state["messages"], "call-1").status == "error"
    assert_went_on(state)


def test_failed_side_effect_under_retry_policy_is_not_repeated(go: Any, ran: Any) -> None:
    """A node that is retried after a tool's failure does not run the side effects again, none of them."""
    authz = authz_with(StaticPDP(True), profiles={**PROFILES, "pay": ToolProfile(effect="pay")})

    @tool
    def pay(to: str) -> str:
        """Fail after the effect."""
        ran.append(to)
        raise ConnectionError(to)

    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=lambda _: True)
    node = ToolNode([pay, writing_tool(ran)], handle_tool_errors=False)
    plan = [write_call("1"), call("pay", {"to": "bob"}, "call-pay")]
    graph = authz.protect(hand_written(replying(plan), node, retry_policy=policy))
    state = told(authz, graph, human(), go=go, task="x")
    assert sorted(ran, key=str) == [("write", "1"), "bob"]
    assert answer_to(state["messages"], "call-1").content == "wrote 1"
    assert "outcome is unknown" in answer_to(state["messages"], "call-pay").content
    assert_went_on(state)


def test_unenforced_retry_policy_repeats_the_sibling(go: Any, ran: Any) -> None:
    """Without us the sibling of a failing call runs again with every retry of the node."""
    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=lambda _: True)
    node = ToolNode([_failing(ran), pay_tool(ran)], handle_tool_errors=False)
    with pytest.raises(ConnectionError):
        go(hand_written(replying([PAY, write_call("1")]), node, retry_policy=policy), human())
    assert ran.count(PAID) == 3


# `unit_tests/pep/test_approval_answers.py` has every malformed answer; here one of each kind reaches a graph.
MALFORMED = [
    b"approve", "yes", True, [], {"decisions": []}, {"decisions": [{"type": "approve"}] * 3}, {"approve": True},
    {"decisions": [{"type": "edit", "edited_action": {"name": "write", "args": "9"}}] * 2},
]


@pytest.mark.parametrize("value", MALFORMED, ids=shown)
def test_malformed_resume_denies(kind: str, value: Any, ran: Any) -> None:
    """Any resume value that is no list of decisions for the questions denies all of them; the run goes on."""
    authz = authz_with(asking("write"))
    plan = [write_call("1"), write_call("2")]
    graph = authz.protect(BUILDERS[kind](replying(plan), [writing_tool(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        graph.invoke(human(), THREAD)
        state = graph.invoke(Command(resume=value), THREAD)
    assert ran == [] and reasons(authz, "write")[-2:] == ["approval_malformed"] * 2
    assert_went_on(state)


def test_without_checkpointer_asking_is_a_denial(kind: str, go: Any, ran: Any) -> None:
    """Nobody can be asked without a checkpointer: `approval_unavailable`, and the run goes on."""
    authz, graph = protecting(BUILDERS[kind](replying([PAY, READ]), [pay_tool(ran), read_tool(ran)]), asking("pay"))
    state = told(authz, graph, human(), go=go, task="x")
    assert ran == [("read", "a")] and reasons(authz, "pay")[-1] == "approval_unavailable"
    assert_went_on(state)


COLOURS = ["blue", "red"]


def _choosing(ran: list[Any]) -> Any:
    @tool("write")
    def write(text: str) -> str:
        """Ask for a colour, then write."""
        # With options: an answer in other words would change the task, and the write be planned anew.
        colour = interrupt({"which colour": text, "options": [*COLOURS, f"colour of {text}"]})
        ran.append((text, colour))
        return f"wrote {text} in {colour}"

    return write


@pytest.mark.parametrize("stops", [True, False], ids=["policy stops asking", "policy asks"])
@pytest.mark.parametrize("runs", [1, 3])
def test_tool_that_asks_itself_gets_its_own_answer(kind: str, go: Any, stops: bool, runs: int, ran: Any) -> None:
    """After the gate's question the tool's own `interrupt()` receives its answer, not the gate's, in one run or in three.

    The gate repeats the question that it asked first, also if the policy asks no more.
    """
    asks = [True]
    pdp = StaticPDP(lambda r: ASK if r.action.name == "tools/call" and asks[0] and r.context.approval is None else True)
    authz, graph = protecting(BUILDERS[kind](replying([write_call("1")]), [_choosing(ran)], checkpointer=InMemorySaver()), pdp)
    with authz.run(subject="alice", task="x") if runs == 1 else nullcontext():
        enter = go if runs == 1 else lambda *given: told(authz, *given, go=go)
        (gate,) = enter(graph, human(), THREAD)["__interrupt__"]
        assert "action_requests" in gate.value
        asks[0] = not stops
        (own,) = enter(graph, resume(APPROVE), THREAD)["__interrupt__"]
        assert own.value["which colour"] == "1" and ran == []
        state = enter(graph, Command(resume="blue"), THREAD)
    assert ran == [("1", "blue")]
    assert_went_on(state)


def test_policy_that_asks_about_another_call_on_re_entry(go: Any, ran: Any) -> None:
    """The task that asked repeats its question although by now another call of the message is asked about."""
    asked_about = ["1"]
    authz = authz_with(asking_about(asked_about))
    graph = authz.protect(agent_graph(replying([write_call("1"), write_call("2")]), [_choosing(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        paused = go(graph, human(), THREAD)
        gate = next(i for i in paused["__interrupt__"] if "action_requests" in i.value)
        asked_about[:] = ["2"]
        go(graph, Command(resume={gate.id: {"decisions": [APPROVE]}}), THREAD)
    assert not any(isinstance(colour, dict) for _, colour in ran), ran
    assert ran == []


def _answered_in_turn(graph: Any, go: Any, state: Any, *, by_id: bool) -> tuple[Any, list[list[str]]]:
    """Answer the tools' own questions, each with its colour, as they surface."""
    surfaced: list[list[str]] = []
    while open_ := state.get("__interrupt__"):
        surfaced.append([i.value["which colour"] for i in open_])
        assert len(surfaced) < 12, surfaced
        colours = {i.id: f"colour of {i.value['which colour']}" for i in open_}
        assert by_id or len(colours) == 1
        state = go(graph, Command(resume=colours if by_id else next(iter(colours.values()))), THREAD)
    return state, surfaced


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("effect", ["write", "read"])
def test_answers_to_tools_of_one_task_reach_the_right_tool(go: Any, by_id: bool, asked: bool, effect: Any, ran: Any):
    """Tools of one message in one task, with none, one and two questions: no answer goes to another tool.

    LangGraph numbers a task's answers; a call that is not repeated takes its own along all the same.
    """

    @tool("write")
    def write(text: str) -> str:
        """Ask as often as the text is long, the first the longest to get there."""
        if text == "aa":
            time.sleep(0.05)
        asks = [f"{text}{i}" for i in range(len(text) if text != "none" else 0)]
        colours = [interrupt({"which colour": ask, "options": [f"colour of {ask}"]}) for ask in asks]
        if text == "f":
            ran.append((text, colours))
            raise ValueError(text)
        ran.append((text, colours))
        return f"wrote {text}"

    texts = ["aa", "none", "b", "f", "cc"]
    profiles = {"write": ToolProfile(effect=effect, sink="internal")}
    authz = authz_with(asking("write") if asked else StaticPDP(True), profiles=profiles)
    node = ToolNode([write], handle_tool_errors=True)
    graph = authz.protect(hand_written(replying([write_call(t) for t in texts]), node, checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        state = go(graph, human(), THREAD)
        if asked:
            value: Any = {"decisions": [{"type": "approve"}] * 5}
            (gate,) = state["__interrupt__"]
            state = go(graph, Command(resume={gate.id: value} if by_id else value), THREAD)
        state, surfaced = _answered_in_turn(graph, go, state, by_id=by_id)
    expected = {t: [f"colour of {t}{i}" for i in range(len(t) if t != "none" else 0)] for t in texts}
    assert all(colours == expected[text] for text, colours in ran), ran
    if effect == "write":
        assert sorted(text for text, _ in ran) == sorted(texts)
    assert [name for (name,) in surfaced] == ["aa0", "aa1", "b0", "f0", "cc0", "cc1"]
    assert_went_on(state)


def test_approval_that_does_not_suffice_is_not_asked_for_ever(kind: str, ran: Any) -> None:
    """Where policy still asks after the approval, the call is denied `approval_void`, not asked in circles."""
    authz = authz_with(StaticPDP(lambda r: ASK if r.action.name == "tools/call" else True))
    graph = authz.protect(BUILDERS[kind](replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        graph.invoke(human(), THREAD)
        state = graph.invoke(resume(APPROVE), THREAD)
    assert ran == [] and reasons(authz, "pay")[-1] == "approval_void"
    assert_went_on(state)


def _calling_node(pay: Any, times: int, loops: int) -> Any:
    """A node that pays by plain code, `times` an execution, executed `loops` times."""

    def step(state: MessagesState) -> dict[str, Any]:
        texts = [pay.invoke({"to": "bob", "amount": 5}) for _ in range(times)]
        return {"messages": [AIMessage(" ".join(texts))]}

    builder = StateGraph(MessagesState)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda s: "step" if len(s["messages"]) <= loops else END, ["step", END])
    return builder.compile()


@pytest.mark.parametrize(("times", "loops"), [(1, 3), (3, 1), (2, 2)])
def test_equal_calls_of_code_are_different_calls(times: int, loops: int, ran: Any, authz: Any) -> None:
    """A node function that pays the same sum again means it: no call is taken for a replay of another."""
    told(authz, authz.protect(_calling_node(authz.guard(pay_tool(ran)), times, loops)), human(), task="x")
    assert len(ran) == times * loops


def test_node_that_is_retried_does_not_repeat_the_calls_of_its_code(go: Any, ran: Any, authz: Any) -> None:
    """RetryPolicy executes a node function again: what it had done comes back as recorded."""
    pay = authz.guard(pay_tool(ran))
    attempts: list[int] = []

    def step(state: MessagesState) -> dict[str, Any]:
        attempts.append(1)
        texts = [pay.invoke({"to": "bob", "amount": 5}) for _ in range(2)]
        if len(attempts) < 3:
            raise ConnectionError
        return {"messages": [AIMessage(" ".join(texts))]}

    policy = RetryPolicy(max_attempts=4, initial_interval=0.001, jitter=False, retry_on=lambda _: True)
    state = told(authz, authz.protect(node_graph(step, retry_policy=policy)), human(), go=go, task="x")
    assert len(attempts) == 3 and len(ran) == 2
    assert state["messages"][-1].content == "paid paid"


@pytest.mark.parametrize("by_id", [True, False])
def test_second_question_of_a_task(kind: str, go: Any, by_id: bool, ran: Any) -> None:
    """Policy asks about one call, later about another too: each question is answered, plainly or by its id."""
    asked_about = ["1"]
    authz = authz_with(asking_about(asked_about))
    plan = [write_call("1"), write_call("2")]
    graph = authz.protect(BUILDERS[kind](replying(plan), [writing_tool(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        state = go(graph, human(), THREAD)
        asked_about.append("2")
        rounds = 0
        while open_ := state.get("__interrupt__"):
            rounds += 1
            assert rounds < 4
            (one,) = open_
            value = {"decisions": [{"type": "approve"}] * len(one.value["action_requests"])}
            state = go(graph, Command(resume={one.id: value} if by_id else value), THREAD)
    assert sorted(ran) == [("write", "1"), ("write", "2")]
    assert "approval_malformed" not in reasons(authz, "write")
    assert_went_on(state)


@pytest.mark.parametrize("by_id", [True, False])
def test_answer_to_one_task_is_no_answer_to_its_sibling(go: Any, by_id: bool, ran: Any) -> None:
    """One task per call: the task that is newly asked about does not take the answer meant for its sibling."""
    asked_about = ["2"]
    pdp = asking_about(asked_about)
    authz = authz_with(pdp)
    graph = authz.protect(agent_graph(replying([write_call("1"), write_call("2")]), [_choosing(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        # Call 1 pauses with a question of its own tool, call 2 with the gate's.
        paused = go(graph, human(), THREAD)["__interrupt__"]
        gate = next(i for i in paused if "action_requests" in i.value)
        asked_about[:] = ["1", "2"]
        value: Any = {"decisions": [APPROVE]}
        if by_id:
            go(graph, Command(resume={gate.id: value}), THREAD)
        else:
            # Two questions are open: LangGraph refuses a plain answer, and nothing is approved by it.
            with pytest.raises(RuntimeError):
                go(graph, Command(resume=value), THREAD)
    assert ran == []
    approvals = [r for r in calls_of(pdp) if r.context.approval is not None]
    assert {r.context.call.args["text"] for r in approvals if r.context.call} <= ({"2"} if by_id else set())


def test_question_does_not_take_a_tools_answer(go: Any, ran: Any) -> None:
    """An answer by id to a tool's own question leaves the gate's other question open, and is not its denial."""
    authz = authz_with(asking_about(["2"]))
    graph = authz.protect(agent_graph(replying([write_call("1"), write_call("2")]), [_choosing(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        paused = go(graph, human(), THREAD)["__interrupt__"]
        own = next(i for i in paused if "which colour" in i.value)
        gate = next(i for i in paused if "action_requests" in i.value)
        go(graph, Command(resume={own.id: "blue"}), THREAD)
        assert ran == [("1", "blue")]
        state = go(graph, Command(resume={gate.id: {"decisions": [APPROVE]}}), THREAD)
        (own,) = state["__interrupt__"]
        state = go(graph, Command(resume={own.id: "red"}), THREAD)
    assert ran == [("1", "blue"), ("2", "red")] and "approval_malformed" not in reasons(authz, "write")
    assert_went_on(state)


@pytest.mark.parametrize("by_id", [True, False])
def test_gate_does_not_take_the_answer_to_a_tool(go: Any, by_id: bool, ran: Any) -> None:
    """A call that policy asks about only after a sibling tool has asked for itself is denied, in the same task.

    LangGraph numbers a task's questions: a new one of the gate would come before the tool's, and take its answer.
    """
    asked_about: list[str] = []
    authz = authz_with(asking_about(asked_about))
    plan = [write_call("1"), write_call("2")]
    graph = authz.protect(hand_written(replying(plan), [_choosing(ran)], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        (own,) = go(graph, human(), THREAD)["__interrupt__"]
        assert own.value["which colour"] == "1"
        asked_about.append("2")
        # An answer that would read as an approval.
        value: Any = {"decisions": [APPROVE]}
        state = go(graph, Command(resume={own.id: value} if by_id else value), THREAD)
    assert ran == [("1", value)] and answer_to(state["messages"], "call-2").status == "error"
    assert reasons(authz, "write")[-1] == "approval_void"
    assert_went_on(state)


@pytest.mark.parametrize(("effect", "end"), [("pay", "failed"), ("write", "denied")])
def test_a_payment_in_which_a_step_was_denied_has_failed(effect: Any, end: str, go: Any) -> None:
    """It may have paid before that, so it is in doubt. Another effect counts as denied."""
    inner = a_tool("read", lambda path: path, path=str)
    outer = a_tool("outer", lambda: inner.invoke({"path": "a"}))
    profiles = {"read": ToolProfile(effect="read"), "outer": ToolProfile(effect=effect)}
    graph = hand_written(replying([call("outer", {}, "c")]), [outer], checkpointer=InMemorySaver())
    authz, graph = protecting(graph, deny_only("read"), profiles=profiles)
    told(authz, graph, human(), THREAD, go=go)
    assert completions(authz) == [end]
