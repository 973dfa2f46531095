"""`AuthzMiddleware` alone, `protect` alone, both together: each call is decided once, and by what really runs."""

import gc
from weakref import ref

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz import AuthzMiddleware
from langchain_runtime_authz.evaluation import parse_request
from langchain_runtime_authz.facts.task import content_digest
from tests.threads import until

from ._approvals import ANN, FIVE, FOUR, TWO, edit
from ._kit import *

STACKS = ("middleware", "protect", "both")
stack = params(STACKS)
go = params(["sync", "async"])


def built(
    stack: str, authz: RuntimeAuthz, model: Any, tools: Any, *,
    before: Any = (), after: Any = (), named: str = "agent", **options: Any,
) -> Any:  # fmt: skip
    ours = [AuthzMiddleware(authz)] if stack != "protect" else []
    graph = create_agent(model, list(tools), middleware=[*before, *ours, *after], name=named, **options)
    with quiet():
        return authz.protect(graph) if stack != "middleware" else graph


def said(go: str, authz: RuntimeAuthz, graph: Any, given: Any, config: Any = None, **run: Any) -> Any:
    return run_as(authz, graph, given, config, how=go, **{"task": "x", **run})


def test_a_message_is_decided_in_one_batch(stack: str, go: str, pdp: Any, authz: Any, ran: Any) -> None:
    """One question to the engine per message, each call in it once, each model call's permit kept."""
    batches: list[list[str]] = []

    evaluator = authz._pep.evaluator
    evaluate = evaluator.evaluate

    def counted(bodies: Any) -> Any:
        batches.append([f"{r.action.name} {r.resource.id}" for r in map(parse_request, bodies)])
        return evaluate(bodies)

    object.__setattr__(evaluator, "evaluate", counted)  # of a PDP in this process `aevaluate` is the same
    tools = [pay_tool(ran), read_tool(ran), writing_tool(ran)]
    graph = built(stack, authz, replying([PAY, READ], [call("write", {"text": "x"}, "w")]), tools)
    assert_went_on(said(go, authz, graph, human()))
    assert sorted(map(str, ran)) == sorted(map(str, [PAID, ("read", "a"), ("write", "x")]))
    calls = [found for b in batches if (found := [r for r in b if r.startswith("tools/call")])]
    assert calls == [["tools/call pay", "tools/call read"], ["tools/call write"]]
    assert len([b for b in batches if b[0].startswith("model/call")]) == 1
    plans = [r.context.plan for r in calls_of(pdp)]
    assert {(p.planned, p.source, p.stale) for p in plans if p is not None} == {(True, "model", False)}
    starts = [r for r in pdp.requests if r.action.name == "run/start"]
    assert len(starts) == 1 and authz.ledger.status("default", starts[0].context.lease.jti) == "ended"


def test_asked_calls_are_one_question(stack: str, go: str, ran: Any) -> None:
    """Approved, edited and rejected in one answer, over a plain resume; nobody is asked twice."""
    authz = authz_with(asking("pay"))
    graph = built(stack, authz, replying(FIVE), [pay_tool(ran), writing_tool(ran)], checkpointer=InMemorySaver())
    (asked,) = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    assert [a["args"]["recipient"] for a in asked.value["action_requests"]] == ["ann", "bob", "eve"]
    assert sorted(ran) == sorted([TWO, FOUR])
    state = said(go, authz, graph, resume(APPROVE, edit("bob", "2"), REJECT), THREAD)
    assert "__interrupt__" not in state and sorted(ran) == sorted([ANN, ("bob", 2.0, "USD"), TWO, FOUR])
    assert_went_on(state)
    said(go, authz, graph, resume(APPROVE, APPROVE, APPROVE), THREAD)
    assert len(ran) == 4


def test_two_turns_of_a_conversation(stack: str, go: str, ran: Any, pdp: Any, authz: Any) -> None:
    """Each new human text opens the next epoch; an answer of the old one is not run."""
    graph = built(stack, authz, replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver())
    for text in ("Pay", "Pay again"):
        assert_went_on(said(go, authz, graph, human(text), THREAD, task=None))
    assert ran == [PAID, PAID]
    assert [r.context.task.epoch for r in calls_of(pdp)] == [1, 2]


def test_without_a_run_nobody_asks(stack: str, go: str, ran: Any) -> None:
    """An implicit run for the anonymous, whom the policy need not let do anything."""
    authz = authz_with(StaticPDP(lambda r: r.subject.type != "anonymous" or r.action.name != "tools/call"))
    graph = built(stack, authz, replying([PAY]), [pay_tool(ran)])
    state = graph.invoke(human()) if go == "sync" else asyncio.run(graph.ainvoke(human()))
    assert ran == []
    assert_went_on(state)


def test_a_run_that_may_not_start(stack: str, go: str, ran: Any) -> None:
    """`AuthzDenied` reaches the caller before the model is asked."""
    authz = authz_with(StaticPDP(lambda r: r.action.name != "run/start"))
    model = replying([PAY])
    graph = built(stack, authz, model, [pay_tool(ran)])
    with pytest.raises(AuthzDenied):
        said(go, authz, graph, human())
    assert model.prompts == []


# --- the order of the stack ---------------------------------------------------------------------------


EVE_9 = {"to": "eve", "amount": 9}


def rewrites() -> Any:
    """Pay somebody else than was announced."""
    return wrapping(lambda r: r.override(tool_call={**r.tool_call, "args": EVE_9}))


@pytest.mark.parametrize("stack", ["middleware", "both"])
@pytest.mark.parametrize("shipped", [True, False])
def test_what_comes_after_ours_and_changes_the_call(stack: str, go: str, shipped: bool, ran: Any) -> None:
    """The guard decides again on what really runs.

    The shipped rules ask about what was not planned, here nobody; another policy may find nothing wrong with it.
    """
    pdp: Any = rules_that_permit() if shipped else StaticPDP(True)
    authz = authz_with(pdp)
    graph = built(stack, authz, replying([PAY], [{**PAY, "id": "again"}]), [pay_tool(ran)], after=[rewrites()])
    assert_went_on(said(go, authz, graph, human()))
    if shipped:
        assert ran == [] and set(reasons(authz, "pay", -1)) == {"plan_changed"}
        return
    assert ran == [("eve", 9.0, "USD")] * 2
    final = [r.context for r in calls_of(pdp) if r.context.plan.changed]
    assert [(c.plan.planned, c.call.args["recipient"], c.call.args["amount"]) for c in final] == [(False, "eve", 9.0)] * 2


def test_a_rewriter_in_front(stack: str, go: str, ran: Any) -> None:
    """The same where ours is the innermost: one decision, on what would really run."""
    authz = authz_with(rules_that_permit())
    assert_went_on(said(go, authz, built(stack, authz, replying([PAY]), [pay_tool(ran)], before=[rewrites()]), human()))
    assert ran == [] and reasons(authz, "pay", -1) == ["plan_changed"]


TENANT = {"tenant": "t-1"}
EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # the profile, what a wrapper makes of the call, questions
    "an argument that the profile lists": ({"injected": ["tenant"]}, TENANT, 0), "another argument": ({}, TENANT, 1),
    "an argument that the model writes": ({"injected": ["tenant"]}, {"to": "eve"}, 1),
    "a text": ({"text": ["text"]}, {"text": "hi"}, 0), "a destination": ({"text": ["text"]}, {"to": "eve"}, 1),
}


@pytest.mark.parametrize("edited", EDITS)
def test_a_wrapper_edits_an_ordered_call(edited: str, stack: str, go: str) -> None:
    """It runs unasked if it is still what the user ordered. Otherwise the user sees what would run, once."""
    profile, given, questions = EDITS[edited]
    sent: list[Any] = []

    def mail(to: str, text: str, tenant: str = "") -> str:
        """Send a mail."""
        sent.append((to, text, tenant))
        return "sent"

    about = {"effect": "send", "critical": {"to": "principal"}, "free": ["text"] * ("text" not in profile), "intent": ["mail {to}"]}
    authz = RuntimeAuthz(profiles={"mail": {**about, **profile}})
    edits = wrapping(lambda r: r.override(tool_call={**r.tool_call, "args": {**r.tool_call["args"], **given}}))
    written = {"to": "bob@x.org", "text": "hi "}
    model = replying([call("mail", written, "c1")])
    graph = built(stack, authz, model, [StructuredTool.from_function(mail)], before=[edits], checkpointer=InMemorySaver())
    state = said(go, authz, graph, human("Mail bob@x.org"), THREAD, task=None)
    ran = (*{**written, "tenant": "", **given}.values(),)
    assert sent == [ran] * (not questions)
    if questions:
        assert given.items() <= state["__interrupt__"][0].value["action_requests"][0]["args"].items()
        said(go, authz, graph, resume(APPROVE), THREAD, task=None)
    assert sent == [ran]


@pytest.mark.parametrize(("given", "questions"), [(TENANT, (1, 1)), ({"text": "hi"}, (1, 2))], ids=["injected", "text"])
def test_an_edited_call_that_was_not_ordered_runs_as_it_was_shown(given: Any, questions: Any, stack: str, go: str) -> None:
    """Of two equal calls one was ordered. An injected argument costs no question of its own."""
    sent: list[Any] = []

    def mail(to: str, text: str, tenant: str = "") -> str:
        """Send a mail."""
        sent.append((text, tenant))
        return "sent"

    about = {"effect": "send", "critical": {"to": "principal"}, "text": ["text"], "injected": ["tenant"], "intent": ["mail {to}"]}
    authz = RuntimeAuthz(profiles={"mail": about})
    edits = wrapping(lambda r: r.override(tool_call={**r.tool_call, "args": {**r.tool_call["args"], **given}}))
    model = replying([call("mail", {"to": "bob@x.org", "text": "hi "}, f"c{n}") for n in (1, 2)])
    graph = built(stack, authz, model, [StructuredTool.from_function(mail)], before=[edits], checkpointer=InMemorySaver())
    state, asked = said(go, authz, graph, human("Mail bob@x.org"), THREAD, task=None), 0
    while "__interrupt__" in state:
        asked += 1
        assert len(sent) == 1
        (shown,) = state["__interrupt__"][0].value["action_requests"]
        state = said(go, authz, graph, resume(APPROVE), THREAD, task=None)
    ran = (given.get("text", "hi "), given.get("tenant", ""))
    assert sent == [ran, ran] and shown["args"]["text"] == ran[0] and asked == questions[stack != "middleware"]


def test_a_swapped_tool_is_decided_as_what_it_is(stack: str, go: str, ran: Any) -> None:
    """Swapped in front of ours, another tool runs under no other tool's permit."""
    evil = noting(ran, "evil", to=str, amount=float)
    authz = authz_with(deny_only("evil"))
    graph = built(stack, authz, replying([PAY]), [pay_tool(ran)], before=[wrapping(lambda r: r.override(tool=evil))])
    assert_went_on(said(go, authz, graph, human()))
    assert ran == []


def test_a_tool_that_a_wrapper_brings_is_no_denial(stack: str, go: str, ran: Any) -> None:
    """Such a call is decided once, so many of them revoke nothing. A name that no tool has is still denied, on record."""
    brought = read_tool(ran)
    brings = wrapping(lambda r: r.override(tool=brought) if r.tool_call["name"] == "read" else r)
    authz = authz_with(rules_that_permit())
    plan = [*({**READ, "id": f"read-{n}"} for n in (1, 2)), call("nothing", {}, "call-x")]
    graph = built(stack, authz, replying(plan), [pay_tool(ran)], before=[brings])
    state = said(go, authz, graph, human())
    assert_went_on(state)
    assert ran == [("read", "a")] * 2 and reasons(authz, "read") == []
    denied = [r["reasons"] for r in authz.audit.records if r.get("outcome") == "deny"]  # type: ignore[attr-defined]
    assert denied == [["unknown_tool"]] and answer_to(state["messages"], "call-x").status == "error"


def test_brought_tools_of_one_node_ask_one_after_the_other(go: str, ran: Any) -> None:
    """Two calls of one task ask: the answer to the first question is for its call alone."""
    brought = pay_tool(ran)
    node = ToolNode([read_tool(ran)], wrap_tool_call=lambda r, handler: handler(r if r.tool else r.override(tool=brought)))
    two = [call("pay", {"to": to, "amount": 5}, f"call-{to}") for to in ("bob", "eve")]
    authz, graph = protecting(hand_written(replying(two), node, checkpointer=InMemorySaver()), asking("pay"))
    state = said(go, authz, graph, human(), THREAD)
    for number, to in enumerate(("bob", "eve")):
        assert len(ran) == number
        (asked,) = state["__interrupt__"]
        assert [r["args"]["recipient"] for r in asked.value["action_requests"]] == [to]
        state = said(go, authz, graph, Command(resume={"decisions": [APPROVE]}), THREAD)
    assert [to for to, *_ in ran] == ["bob", "eve"]
    assert_went_on(state)


def _another_amount(messages: Any) -> None:
    for said in messages:
        said.tool_calls = [{**c, "args": {**c["args"], "amount": "7"}} for c in said.tool_calls]


def rewrites_the_answer() -> Any:
    """Put another amount into what the model calls, as it comes from the model."""
    return around_models("RewritesTheAnswer", then=lambda response: _another_amount(response.result))


class RewritesTheState(AgentMiddleware[Any, Any, Any]):
    """Does so when the model's step is over."""

    def after_model(self, state: Any, runtime: Any) -> Any:
        message = state["messages"][-1].model_copy(deep=True)
        _another_amount([message])
        return {"messages": [message]}


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_plan_that_is_rewritten_on_its_way_from_the_model(stack: str, place: str, go: str) -> None:
    """What is planned is what the model's step returns, in whichever place of the list it was rewritten."""
    ran: list[Any] = []
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    order: Any = {place: [rewrites_the_answer()]}
    said(go, authz, built(stack, authz, replying([PAY]), [pay_tool(ran)], **order), human())
    assert ran == [("bob", 7.0, "USD")]
    (request,) = calls_of(pdp, "pay")
    assert (request.context.plan.planned, request.context.plan.changed) == (True, False)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("review", [True, False])
def test_a_plan_that_is_rewritten_after_the_models_step_is_another(stack: str, place: str, review: bool, go: str) -> None:
    """Code that rewrites what was planned changes the plan. It runs if the user saw it as it is: in an own review, or ours."""
    ran: list[Any] = []
    authz = authz_with(rules_that_permit())
    hitl = [HumanInTheLoopMiddleware({"pay": {"allowed_decisions": ["approve"]}})] if review else []
    # After the model's step the last in the list comes first: the review shows what the rewriter made of the call.
    order: Any = {place: [*hitl, RewritesTheState()]}
    graph = built(stack, authz, replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver(), **order)
    state = said(go, authz, graph, human(), THREAD)
    (asked,) = state["__interrupt__"]
    assert ran == [] and [float(a["args"]["amount"]) for a in asked.value["action_requests"]] == [7]
    state = said(go, authz, graph, resume(APPROVE), THREAD)
    assert ran == [("bob", 7.0, "USD")]
    assert_went_on(state)


class TakesOut(AgentMiddleware[Any, Any, Any]):
    """Takes the first call out of the model's message, as CopilotKit does with a call for the browser."""

    def after_model(self, state: Any, runtime: Any) -> Any:
        message = state["messages"][-1].model_copy(deep=True)
        message.tool_calls = message.tool_calls[1:]
        return {"messages": [message]}


@pytest.mark.parametrize("then", [None, HumanInTheLoopMiddleware({"pay": True}), RewritesTheState()], ids=["", "review", "rewriter"])
def test_calls_whose_neighbour_was_taken_out_are_the_planned_ones(stack: str, then: Any, go: str, ran: Any) -> None:
    """They moved up in the message, and nobody is asked twice about them. With other arguments they are others."""
    review, rewriter = isinstance(then, HumanInTheLoopMiddleware), isinstance(then, RewritesTheState)
    authz = authz_with(asking("pay") if review else rules_that_permit())
    graph = built(
        stack, authz, replying([READ, PAY, call("write", {"text": "x"}, "call-write")]),
        [pay_tool(ran), read_tool(ran), writing_tool(ran)],
        checkpointer=InMemorySaver(), before=[*filter(None, [then]), TakesOut()],
    )  # fmt: skip
    state = said(go, authz, graph, human(), THREAD)
    if then is not None:
        (asked,) = state["__interrupt__"]
        assert [a["name"] for a in asked.value["action_requests"]] == (["pay"] if review else ["pay", "write"])
        state = said(go, authz, graph, resume(*[APPROVE] * (1 + rewriter)), THREAD)
    assert sorted(ran, key=str) == [("bob", 7.0, "USD") if rewriter else PAID, ("write", "x")]
    assert_went_on(state)


@pytest.mark.parametrize(("answers", "paid"), [
    ((edit("ann", "1"), edit("eve", "2")), [("ann", 1.0, "USD"), ("eve", 2.0, "USD")]), ((APPROVE, APPROVE), [PAID, PAID]),
], ids=["edit", "approve"])
def test_each_of_two_equal_calls_that_moved_up_has_its_own_answer(stack: str, answers: Any, paid: Any, go: str, ran: Any) -> None:
    """In the message, the second stands where the plan has the first."""
    authz = authz_with(asking("pay"))
    tools, script = [pay_tool(ran), read_tool(ran)], replying([READ, PAY, {**PAY, "id": "again"}])
    graph = built(stack, authz, script, tools, checkpointer=InMemorySaver(), before=[TakesOut()])
    said(go, authz, graph, human(), THREAD)
    state = said(go, authz, graph, resume(*answers), THREAD)
    assert sorted(ran) == paid
    assert_went_on(state)


@pytest.mark.parametrize("rewriter", [rewrites_the_answer, RewritesTheState])
def test_the_unenforced_twin_pays_what_nobody_planned(rewriter: Any, ran: Any) -> None:
    """The same agent without us."""
    create_agent(replying([PAY]), [pay_tool(ran)], middleware=[rewriter()]).invoke(human())
    assert ran == [("bob", 7.0, "USD")]


def test_a_rewritten_plan_that_a_human_reviews_and_edits(go: str, ran: Any) -> None:
    """Under the middleware alone: the rewriter's call is the plan that the human sees, and his edit is a human's."""
    pdp = asking("pay")
    authz = authz_with(pdp)
    graph = built(
        "middleware", authz, replying([plain(PAY)]), [paying_tool(ran)], checkpointer=InMemorySaver(),
        before=[rewrites_the_answer()], after=[HumanInTheLoopMiddleware({"pay": True})],
    )  # fmt: skip
    (asked,) = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    assert asked.value["action_requests"][0]["args"]["amount"] == "7"
    state = said(go, authz, graph, resume(plain(edit("bob", "2"))), THREAD)
    assert ran == [("bob", 2.0, "USD")]
    (final,) = [r.context for r in calls_of(pdp, "pay")]
    assert (final.approval.source, final.plan.planned, final.task.epoch) == ("hitl", True, 2)
    assert_went_on(state)


def test_a_plan_that_can_not_be_recorded_is_not_carried_out(go: str, ran: Any, authz: Any) -> None:
    """Under the middleware alone: the ledger fails as the model's step ends, and nothing of it takes effect."""
    graph = built("middleware", authz, replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver())
    commit = authz.ledger.commit

    def failing(scope: Any, guard: Any, changes: Any) -> Any:
        if any(type(c).__name__ == "RecordPlan" for c in changes):
            raise OSError("disk")
        return commit(scope, guard, changes)

    authz.ledger.commit = failing  # type: ignore[method-assign]
    assert code_of(lambda: said(go, authz, graph, human(), THREAD), AuthzHalt) == "ledger_unavailable"
    assert ran == [] and graph.get_state(THREAD).next == ("model",)


MODES = ("batched", "per_call")


def paying_tool(ran: list[Any]) -> Any:
    """A tool that pays; without aliases, which the schema of LangChain's question per call has by another name."""

    @tool
    def pay(recipient: str, amount: float, currency: str = "USD") -> str:
        """Pay somebody."""
        ran.append((recipient, amount, currency))
        return "paid"

    return pay


def plain(action: dict[str, Any]) -> dict[str, Any]:
    """A call, or a human's edit, with the payee by the name that the schema has."""
    inner = action.get("edited_action", action)
    args = {"recipient" if k == "to" else k: v for k, v in inner["args"].items()}
    return {**action, "edited_action": {**inner, "args": args}} if inner is not action else {**action, "args": args}


def reviewing(stack: str, mode: Any, first: str, authz: RuntimeAuthz, model: Any, ran: list[Any], review: Any = None) -> Any:
    """An agent with LangChain's review of payments, before ours in the list or after it."""
    reviews = [HumanInTheLoopMiddleware(review or {"pay": True}, interrupt_mode=mode)]
    order = {"before": reviews} if first == "review" else {"after": reviews}
    return built(stack, authz, model, [paying_tool(ran), writing_tool(ran)], checkpointer=InMemorySaver(), **order)


def answering(asked: Any, decisions: dict[str, Any]) -> Any:
    """One resume value for all that was asked: by id where each call was asked about by itself."""
    if "action_requests" in asked[0].value:
        return resume(*decisions.values())
    return Command(resume={i.id: decisions[i.value["tool_call_id"]] for i in asked})


first = params(["review", "ours"])
mode = params(MODES)


def test_langchains_review_and_ours_ask_once(stack: str, first: str, mode: str, go: str, ran: Any) -> None:
    """In each order and mode one answer does: approved runs, edited runs as edited, rejected and answered never.

    What is edited is decided as what it became, under the plan that the human made of it.
    """
    pdp = asking("pay")
    authz = authz_with(pdp)
    plan = [*map(plain, FIVE), plain(call("pay", {"to": "zoe", "amount": "50"}, "c6"))]
    graph = reviewing(stack, mode, first, authz, replying(plan), ran)
    asked = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    assert len(asked) == (1 if mode == "batched" else 4)
    assert [r for r in ran if r[0] != "write"] == []
    decisions = {"c1": APPROVE, "c3": plain(edit("bob", "2")), "c5": REJECT, "c6": {"type": "respond", "message": "zoe was paid"}}
    state = said(go, authz, graph, answering(asked, decisions), THREAD)
    assert "__interrupt__" not in state and sorted(ran) == sorted([ANN, ("bob", 2.0, "USD"), TWO, FOUR])
    final = {r.context.call.id: r.context for r in calls_of(pdp, "pay") if r.context.approval is not None}
    assert {i: (c.call.args["recipient"], c.approval.source, c.plan.planned) for i, c in final.items()} == {
        "c1": ("ann", "hitl", True), "c3": ("bob", "hitl", True),
    }
    assert final["c3"].approval.edited_from == "pay"
    assert {c.task.epoch for c in final.values()} == {2}
    assert answer_to(state["messages"], "c3").text.count("human reviewer replaced") == 1
    assert "the user replaced" not in answer_to(state["messages"], "c3").text
    assert answer_to(state["messages"], "c5").status == "error"
    assert answer_to(state["messages"], "c6").text == "zoe was paid"
    assert_went_on(state)


def test_after_an_answer_to_the_application_an_agent_below_asks(go: str, ran: Any) -> None:
    """The node that calls the agent has used the answer to its own question."""
    authz = authz_with(asking("pay"))
    agent = built("middleware", authz, replying([PAY]), [pay_tool(ran)])

    def ask() -> None:
        assert interrupt("Which account?") == "checking"

    graph = chain({"ask": calling(agent, first=ask)}, name="outer", checkpointer=InMemorySaver())
    assert said(go, authz, graph, human(), THREAD)["__interrupt__"][0].value == "Which account?"
    state = said(go, authz, graph, Command(resume="checking"), THREAD)
    assert state["__interrupt__"][0].value["action_requests"][0]["name"] == "pay" and ran == []
    assert_went_on(said(go, authz, graph, resume(APPROVE), THREAD))
    assert ran == [PAID]


@pytest.mark.parametrize("asks", [True, False])
def test_an_answer_from_an_earlier_entry_approves_nothing(stack: str, go: str, ran: Any, asks: bool) -> None:
    """LangGraph stores the unprotected caller's plain answer, and offers it again when that is entered once more."""
    authz = authz_with(asking("pay"))
    turns = [PAY], [call("pay", {"to": "eve", "amount": "1"}, "c-eve")]
    agent = built(stack, authz, replying(*turns), [pay_tool(ran)])

    def ask() -> None:
        interrupt({"action_requests": [{"name": "own", "args": {}}]}) if asks else None

    graph = chain({"ask": calling(agent, first=ask)}, name="outer", checkpointer=InMemorySaver())
    for given in (human(), resume(APPROVE), None, None):
        said(go, authz, graph, given, THREAD)
    assert ran == ([] if asks else [PAID])


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_below_an_unprotected_graph_each_question_takes_a_plain_answer(stack: str, go: str, ran: Any, again: bool, fresh: bool) -> None:
    """An answer that LangGraph stored is neither taken for the next question, nor does it keep that from being asked."""
    authz = authz_with(asking("pay"))
    turns = [PAY], [call("pay", {"to": "eve", "amount": "1"}, "c-eve")]
    agent = built(stack, authz, replying(*turns), [pay_tool(ran)])
    own = {"callbacks": []} if fresh else None  # the caller's handlers are not in this config
    graph = chain({"ask": calling(agent, own)}, name="outer", checkpointer=InMemorySaver())
    asked = [
        [a["args"]["recipient"] for i in said(go, authz, graph, given, THREAD).get("__interrupt__", ()) for a in i.value["action_requests"]]
        for given in (human(), resume(APPROVE), *([None] * again), resume(APPROVE))
    ]
    assert asked == [["bob"], ["eve"], *([["eve"]] * again), []] and ran == [PAID, ("eve", 1.0, "USD")]


@pytest.mark.parametrize("by", ["guard", "agent", "nobody"])
def test_an_answer_to_another_task_is_not_kept_for_a_payment(go: str, ran: Any, by: str) -> None:
    """Of two tasks of an unprotected graph one has the answer, and the other asks: the next entry answers nothing."""
    authz = authz_with(asking("pay"))
    agent = built("protect" if by == "agent" else "middleware", authz, replying([PAY]), [pay_tool(ran)])
    (guarded,) = authz.guard([pay_tool(ran)]) if by == "guard" else [pay_tool(ran)]
    answered = threading.Event()

    def own(_: Any) -> None:
        interrupt("own?")
        answered.set()

    def pay(state: Any) -> Any:
        if not answered.wait(0.1):
            raise GraphInterrupt(())  # it asks nothing yet
        if by == "agent":
            return agent.invoke({"messages": state["messages"]})
        if by == "nobody":
            interrupt("pay?")
        guarded.invoke(PAY["args"])
        return {}

    builder = StateGraph(MessagesState).add_node("own", own).add_node("pay", pay)
    graph = builder.add_edge(START, "own").add_edge(START, "pay").compile(checkpointer=InMemorySaver())
    for given in (human(), resume(APPROVE), None, None):
        state = said(go, authz, graph, given, THREAD)
    assert len(state.get("__interrupt__", ())) == (by != "nobody")
    assert ran == ([PAID] if by == "nobody" else [])


class Wrapped(AgentMiddleware[Any, Any, Any]):
    """Waits before a call, or loses the first question: the process dies before anybody is shown it."""

    def __init__(self, loses: int = 0, waits: str = "") -> None:
        super().__init__()
        self.left, self.waits = loses, waits

    def _ended(self, asked: Exception) -> Exception:
        self.left -= 1
        return asked if self.left < 0 else ConnectionError()

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        time.sleep(0.1 if request.tool_call["id"] == self.waits else 0)
        try:
            return handler(request)
        except GraphInterrupt as asked:
            raise self._ended(asked) from None

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        await asyncio.sleep(0.1 if request.tool_call["id"] == self.waits else 0)
        try:
            return await handler(request)
        except GraphInterrupt as asked:
            raise self._ended(asked) from None


@pytest.mark.parametrize("protected", [True, False])
def test_an_answer_to_nothing_approves_no_question_that_nobody_saw(go: str, ran: Any, protected: bool) -> None:
    """In the twin the tool asks by itself."""
    authz = authz_with(asking("pay"))

    @tool("pay")
    def asks(to: str, amount: float) -> str:
        """Ask, and pay."""
        interrupt("Pay?")
        return str(pay_tool(ran).invoke({"to": to, "amount": amount}))

    options: Any = {"checkpointer": InMemorySaver()}
    if protected:
        graph = built("middleware", authz, replying([PAY]), [pay_tool(ran)], before=[Wrapped(loses=1)], **options)
    else:
        graph = create_agent(replying([PAY]), [asks], middleware=[Wrapped(loses=1)], **options)
    with pytest.raises(ConnectionError):
        said(go, authz, graph, human(), THREAD)
    assert graph.get_state(THREAD).interrupts == ()
    state = said(go, authz, graph, resume(APPROVE), THREAD)
    assert ran == ([] if protected else [PAID])
    if protected:
        assert len(state["__interrupt__"]) == 1
        assert_went_on(said(go, authz, graph, resume(APPROVE), THREAD))
        assert ran == [PAID]


@pytest.mark.parametrize("waits", ["c1", "c3"])
def test_a_partial_answer_leaves_the_question_open_whichever_task_is_first(go: str, ran: Any, waits: str) -> None:
    authz = authz_with(asking("pay"))
    plan = [c for c in FIVE if c["name"] == "pay"]
    graph = built("middleware", authz, replying(plan), [pay_tool(ran)], checkpointer=InMemorySaver(), before=[Wrapped(waits=waits)])
    said(go, authz, graph, human(), THREAD)
    assert code_of(lambda: said(go, authz, graph, resume(APPROVE), THREAD)) == "approval_partial"
    assert (len(authz.approvals()), ran) == (3, [])
    assert_went_on(said(go, authz, graph, resume(*[APPROVE] * 3), THREAD))
    assert len(ran) == 3


def test_a_pause_keeps_nothing_of_its_invocation(go: str, ran: Any) -> None:
    """A server with one agent for all threads does not grow by questions that nobody answers."""
    gone: list[Any] = []

    class Notes(AgentMiddleware):  # type: ignore[type-arg]
        def after_model(self, state: Any, runtime: Any) -> None:
            gone.append(ref(runtime.stream_writer))

    authz = authz_with(asking("pay"))
    graph = built("middleware", authz, replying(FIVE), [pay_tool(ran), writing_tool(ran)], before=[Notes()], checkpointer=InMemorySaver())
    assert "__interrupt__" in said(go, authz, graph, human(), THREAD)
    until(lambda: gc.collect() is not None and [one() for one in gone] == [None], 5)  # a task may end after the graph


def test_an_answer_of_one_of_two_approvers_is_recorded_once(go: str, ran: Any) -> None:
    """Each call of the message has a task of its own."""
    two = {"id": "approval", "type": "require_approval", "properties": {"approvers": {"min": 2, "distinct_from_subject": False}}}
    ask: Any = {"decision": False, "context": {"reasons": [{"code": "effect"}], "obligations": [two]}}
    pdp = StaticPDP(lambda r: ask if r.action.name == "tools/call" and r.context.approval is None else True)
    authz = authz_with(pdp)
    graph = built("middleware", authz, replying([c for c in FIVE if c["name"] == "pay"]), [pay_tool(ran)], checkpointer=InMemorySaver())
    said(go, authz, graph, human(), THREAD)
    assert code_of(lambda: said(go, authz, graph, resume(*[APPROVE] * 3), THREAD)) == "approval_waits"
    assert [r["event"] for r in authz.audit.records if r["kind"] == "run"].count("approval") == 3  # type: ignore[attr-defined]
    assert ran == []
    other = {"configurable": {"thread_id": "other"}}  # here somebody else answers first, and then the subject
    said(go, authz, graph, human(), other)
    for question in authz.approvals():
        authz.approve(question.id, by="bob")
    said(go, authz, graph, resume(*[APPROVE] * 3), other)
    assert len(ran) == 3


@pytest.mark.parametrize("first", [0, 1])
def test_an_answer_by_id_leaves_the_question_of_an_agent_beside_open(go: str, ran: Any, first: int) -> None:
    authz, builder = authz_with(asking("pay")), StateGraph(MessagesState)
    for to in ("ann", "bob"):
        agent = built("middleware", authz, replying([call("pay", {"to": to, "amount": 1}, to)]), [pay_tool(ran)], named=to)
        builder.add_node(to, agent).add_edge(START, to)
    graph = builder.compile(checkpointer=InMemorySaver())
    asked = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    for left in (asked[1 - first :][:1], []):
        given = {i.id: {"decisions": [APPROVE]} for i in asked if i not in left}
        state = said(go, authz, graph, Command(resume=given), THREAD)
        assert [i.id for i in state.get("__interrupt__", ())] == [i.id for i in left]
        asked = left
    assert sorted(to for to, *_ in ran) == ["ann", "bob"]


def test_an_outer_answer_is_none_to_a_question_of_an_agent_below(go: str, ran: Any) -> None:
    """Both under the middleware alone: what resumed the outer agent approves nothing in a thread of the inner one's."""
    pdp = asking("pay", "ask_agent")
    authz = authz_with(pdp)

    def agent(name: str, first: Any, tools: Any) -> Any:
        return built("middleware", authz, replying([first]), tools, checkpointer=InMemorySaver(), named=name)

    inner = agent("inner", PAY, [pay_tool(ran)])
    own = {"configurable": {"thread_id": "own"}}

    @tool
    def ask_agent(request: str) -> str:
        """Hand work to another agent."""
        assert "__interrupt__" in inner.invoke(human(), own)
        return str(inner.invoke(resume(REJECT), own)["messages"][-1].text)

    outer = agent("outer", call("ask_agent", {"request": "pay"}, "c1"), [ask_agent])
    assert "__interrupt__" in said(go, authz, outer, human(), THREAD)
    assert_went_on(said(go, authz, outer, resume(APPROVE), THREAD))
    assert ran == []
    assert {r.context.approval for r in calls_of(pdp, "pay")} == {None}


def test_the_unenforced_twin_of_a_review_asks_and_pays(first: str, mode: Any, go: str, ran: Any) -> None:
    """LangChain's review alone: what the human edits runs under nobody's policy."""
    graph = create_agent(
        replying([plain(c) for c in FIVE]), [paying_tool(ran), writing_tool(ran)], checkpointer=InMemorySaver(),
        middleware=[HumanInTheLoopMiddleware({"pay": True}, interrupt_mode=mode)],
    )  # fmt: skip
    asked = graph.invoke(human(), THREAD)["__interrupt__"]
    graph.invoke(answering(asked, {"c1": APPROVE, "c3": plain(edit("mallory", "9999")), "c5": REJECT}), THREAD)
    assert ("mallory", 9999.0, "USD") in ran


def test_an_edit_in_a_review_meets_the_policy(stack: str, first: str, mode: str, go: str, ran: Any) -> None:
    """A human may put another payment in the call's place; whether it runs is the policy's."""
    authz = authz_with(StaticPDP(lambda r: r.action.name != "tools/call" or r.context.call.args.get("recipient") != "eve"))
    graph = reviewing(stack, mode, first, authz, replying([plain(PAY)]), ran)
    asked = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    state = said(go, authz, graph, answering(asked, {PAY["id"]: plain(edit("eve", 9))}), THREAD)
    assert ran == []
    assert_went_on(state)


def test_each_call_of_a_review_may_be_answered_by_itself(stack: str, first: str, go: str, ran: Any) -> None:
    """What is not answered stays open, and is answered later; an edit in between changes the task and voids no question."""
    authz = authz_with(asking("pay"))
    graph = reviewing(stack, "per_call", first, authz, replying([plain(c) for c in FIVE]), ran)
    asked = {i.value["tool_call_id"]: i.id for i in said(go, authz, graph, human(), THREAD)["__interrupt__"]}
    for ident, decision, left in (("c3", plain(edit("bob", 2)), 2), ("c1", APPROVE, 1), ("c5", REJECT, 0)):
        state = said(go, authz, graph, Command(resume={asked[ident]: decision}), THREAD)
        assert len(state.get("__interrupt__", ())) == left
    assert sorted(ran) == sorted([ANN, ("bob", 2.0, "USD"), TWO, FOUR])
    assert_went_on(state)


def test_a_review_that_does_not_suffice(stack: str, first: str, mode: str, go: str, ran: Any) -> None:
    """A policy that takes no approval of that source asks by itself, once, after it."""

    def decide(request: Any) -> object:
        if request.action.name != "tools/call" or request.resource.id != "pay":
            return True
        approval = request.context.approval
        return True if approval is not None and approval.source == "interrupt" else ASK

    authz = authz_with(StaticPDP(decide))
    graph = reviewing(stack, mode, first, authz, replying([plain(PAY)]), ran)
    first_asked = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    second = said(go, authz, graph, answering(first_asked, {PAY["id"]: APPROVE}), THREAD)["__interrupt__"]
    assert [a["approval_id"] != "" for i in second for a in i.value["action_requests"]] == [True]
    assert ran == []
    assert_went_on(said(go, authz, graph, resume(APPROVE), THREAD))
    assert ran == [PAID]


def test_a_call_that_a_review_lets_pass_is_ours_to_ask_about(stack: str, first: str, go: str, ran: Any) -> None:
    """The review's own `when` says that it need not be asked about: the policy says otherwise."""
    authz = authz_with(asking("pay"))
    review = {"pay": {"allowed_decisions": ["approve"], "when": lambda request: False}}
    graph = reviewing(stack, "per_call", first, authz, replying([plain(PAY)]), ran, review)
    (asked,) = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    assert asked.value["action_requests"][0]["type"] == "tool_approval" and ran == []
    assert_went_on(said(go, authz, graph, resume(APPROVE), THREAD))
    assert ran == [PAID]


@pytest.mark.parametrize("edits", [True, False])
def test_after_an_edit_that_the_tools_schema_refuses(stack: str, first: str, go: str, edits: bool, ran: Any) -> None:
    """The question stays open, and the edit stands in no plan any more: the next answer is the one that counts, once."""
    pdp = asking("pay")
    authz = authz_with(pdp)
    graph = reviewing(stack, "per_call", first, authz, replying([plain(PAY)]), ran)
    (asked,) = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    with pytest.raises(ValueError, match="amount"):
        said(go, authz, graph, Command(resume={asked.id: plain(edit("eve", "many"))}), THREAD)
    assert ran == []
    state = said(go, authz, graph, Command(resume={asked.id: plain(edit("bob", 2)) if edits else APPROVE}), THREAD)
    final = calls_of(pdp, "pay")[-1].context
    assert (final.approval.source, final.approval.edited_from, final.plan.planned) == ("hitl", "pay" if edits else None, True)
    assert_went_on(state)
    said(go, authz, graph, Command(resume={asked.id: APPROVE}), THREAD)
    assert ran == [("bob", 2.0, "USD") if edits else PAID]


def test_an_answer_that_a_review_does_not_take(stack: str, first: str, mode: str, go: str, ran: Any) -> None:
    """LangChain refuses it and the question stays open; we take nothing of it either."""
    pdp = asking("pay")
    authz = authz_with(pdp)
    review = {"pay": {"allowed_decisions": ["approve", "reject"]}}
    graph = reviewing(stack, mode, first, authz, replying([plain(PAY)]), ran, review)
    asked = said(go, authz, graph, human(), THREAD)["__interrupt__"]
    for bad in ({"type": "respond", "message": "x"}, plain(edit("eve", 9))):
        with pytest.raises(ValueError, match="expected tags|not allowed"):
            said(go, authz, graph, answering(asked, {PAY["id"]: bad}), THREAD)
    assert ran == []
    if mode == "per_call":  # of a batched review, LangGraph keeps the answer that was refused
        assert_went_on(said(go, authz, graph, answering(asked, {PAY["id"]: APPROVE}), THREAD))
        assert ran == [PAID]
    assert {r.context.task.epoch for r in pdp.requests} == {1}


# --- the model's request ------------------------------------------------------------------------------


class Seeing(ScriptedChatModel):
    """Keeps what it was bound to and called with."""

    model_name: str = "seeing-1"
    bound: list[Any] = []

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        self.bound.append(list(tools))
        return self.bind(tools=[_as_sent(t) for t in tools], **kwargs)

    def _get_ls_params(self, **kwargs: Any) -> Any:
        return {"ls_provider": "acme", "ls_model_name": self.model_name, "ls_model_type": "chat"}


def _as_sent(entry: Any) -> Any:
    return entry if isinstance(entry, dict) else {"type": "function", "function": {"name": entry.name, "parameters": {}}}


def seeing(*turns: Any) -> Seeing:
    return Seeing(script=replying(*turns).script, bound=[])


def watching(seen: list[Any]) -> dict[str, Any]:
    """Return middleware before ours and after it that keeps the model's requests that pass."""
    look = lambda request: [seen.append(request), request][1]
    return {"before": [around_models("Outside", look)], "after": [around_models("Inside", look)]}


SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize("stack", ["middleware", "both"])
def test_tools_are_taken_out_of_the_models_request(stack: str, go: str, ran: Any) -> None:
    """Outside the grant, and the provider's own; the rest of the request is the same object's."""
    seen: list[Any] = []

    model = seeing([READ])
    authz = RuntimeAuthz(profiles=PROFILES)
    graph = built(stack, authz, model, [pay_tool(ran), read_tool(ran), SEARCH], **watching(seen), system_prompt="Be good")
    with quiet():
        state = said(go, authz, graph, human(), grant=Grant(tools=("read",)))
    assert_went_on(state)
    assert [[getattr(t, "name", t) for t in b] for b in model.bound] == [["read"], ["read"]]
    outer, inner = seen[0], seen[1]
    for name in ("model", "messages", "system_message", "tool_choice", "response_format", "state", "runtime", "model_settings"):
        assert getattr(outer, name) is getattr(inner, name), name
    assert ran == [("read", "a")]


def test_nothing_to_take_out_leaves_the_request_alone(go: str, ran: Any) -> None:
    """The very object goes on."""
    seen: list[Any] = []

    authz = RuntimeAuthz(profiles=PROFILES)
    graph = built("both", authz, seeing([READ]), [read_tool(ran)], **watching(seen))
    with quiet():
        said(go, authz, graph, human())
    assert seen[0] is seen[1]


def test_a_provider_tool_without_middleware_halts(go: str, ran: Any) -> None:
    """Nothing can take it out any more, and nobody could stop it later; allowed in the data it goes."""
    authz = RuntimeAuthz(profiles=PROFILES)
    model = seeing([READ])
    graph = built("protect", authz, model, [read_tool(ran), SEARCH], checkpointer=InMemorySaver())
    assert code_of(lambda: said(go, authz, graph, human(), THREAD), AuthzHalt) == "provider_tool"
    assert model.prompts == [] and graph.get_state(THREAD).next == ("model",)
    models = {"providers": None, "names": None, "provider_tools": ["web_search_20250305"]}
    allowed = RuntimeAuthz(pdp=WasmPDP(data={"models": models}), profiles=PROFILES)
    graph = built("protect", allowed, seeing([READ]), [read_tool(ran), SEARCH])
    assert_went_on(said(go, allowed, graph, human()))


SERVERS = [{"type": "url", "url": "https://mcp.example", "name": "far"}]
ASKED_BESIDE = {
    "model_kwargs": ({"model_kwargs": {"tools": [SEARCH]}}, "web_search_20250305"),
    "mcp_servers": ({"mcp_servers": SERVERS}, "mcp_servers"),
    "mcp_servers in model_kwargs": ({"model_kwargs": {"mcp_servers": SERVERS}}, "mcp_servers"),
    "web_search_options": ({"model_kwargs": {"web_search_options": {}}}, "web_search_options"),
    "extra_body": ({"model_kwargs": {"extra_body": {"plugins": [{"id": "web"}]}}}, "plugins"),
}


class Asking(Seeing):
    """A model with parameters of its provider's, which LangChain's models have as fields."""

    model_kwargs: dict[str, Any] = {}
    mcp_servers: Any = None

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_kwargs": self.model_kwargs}


@pytest.mark.parametrize("where", ASKED_BESIDE)
def test_what_a_model_asks_of_its_provider_beside_its_tools_is_decided(stack: str, go: str, where: str) -> None:
    """Servers that the provider calls, its own search: a provider's tool like any, of which nothing can be taken out."""
    params, name = ASKED_BESIDE[where]
    withheld = {"id": "w", "type": "withhold_tools", "properties": {"tools": [], "provider_tools": [name]}}
    without = {"decision": True, "context": {"reasons": [], "obligations": [withheld]}}

    for allowed in (False, True):
        pdp = StaticPDP(lambda r, allowed=allowed: True if allowed or r.action.name != "model/call" else without)
        authz = authz_with(pdp)
        model = Asking(script=replying([READ]).script, bound=[], **params)
        graph = built(stack, authz, model, [read_tool([])])
        assert name in [r.name for r in authz.coverage(graph).rows if r.kind == "provider tool"]
        if allowed:
            assert_went_on(said(go, authz, graph, human()))
        else:
            assert code_of(lambda: said(go, authz, graph, human()), AuthzHalt) == "provider_tool"
        assert bool(model.prompts) is allowed
        assert {name} == {n for r in pdp.requests if r.action.name == "model/call" for n in r.resource.properties["provider_tools"]}


def test_a_model_that_is_bound_to_a_provider_tool_is_decided_once(stack: str, go: str) -> None:
    pdp = StaticPDP(True)
    authz = authz_with(pdp)
    model = Asking(script=[says(text="done")], bound=[]).bind(mcp_servers=SERVERS)
    said(go, authz, built(stack, authz, model, []), human())
    assert [r.resource.properties["provider_tools"] for r in pdp.requests if r.action.name == "model/call"] == [["mcp_servers"]]


def test_a_provider_tool_that_comes_in_after_ours_halts(go: str) -> None:
    """Added by a middleware that stands after ours, it is met at the model."""
    adds = around_models("Adds", lambda request: request.override(tools=[*request.tools, SEARCH]))
    authz = RuntimeAuthz(profiles=PROFILES)
    model = seeing([READ])
    graph = built("both", authz, model, [read_tool([])], after=[adds])
    with pytest.raises(AuthzHalt) as halted, quiet():
        said(go, authz, graph, human())
    assert halted.value.code == "provider_tool" and model.prompts == []


@pytest.mark.parametrize("listed", [{"names": ["seeing-1"]}, {"names": ["other"]}, {"providers": ["acme"]}, {"providers": []}])
def test_models_by_list(stack: str, go: str, listed: dict[str, Any]) -> None:
    """A model or provider outside the data's list is not called: the run halts, and can be resumed."""
    good = listed in ({"names": ["seeing-1"]}, {"providers": ["acme"]})
    models = {"providers": None, "names": None, "provider_tools": [], **listed}
    authz = RuntimeAuthz(pdp=WasmPDP(data={"models": models}), profiles=PROFILES)
    model = seeing([READ])
    graph = built(stack, authz, model, [read_tool([])])
    if good:
        assert_went_on(said(go, authz, graph, human()))
        return
    assert code_of(lambda: said(go, authz, graph, human()), AuthzHalt) == "model"
    assert model.prompts == []


def test_what_the_engine_is_told_of_a_model_call(stack: str, go: str, pdp: Any, authz: Any) -> None:
    """Model, provider, the tool set with its digest, and the digest of the instructions, which its calls show too."""
    said(go, authz, built(stack, authz, seeing([READ]), [read_tool([]), SEARCH], system_prompt="Be good"), human())
    (request,) = [r for r in pdp.requests if r.action.name == "model/call"]
    assert (request.resource.type, request.resource.id) == ("model", "seeing-1")
    props = request.resource.properties
    assert (props["provider"], props["tools"], props["provider_tools"]) == ("acme", ["read"], ["web_search_20250305"])
    assert str(props["tools_digest"]).startswith("sha256:")
    (planned,) = calls_of(pdp)
    for prompt in (request.context.prompt, planned.context.prompt):
        assert (prompt.model, prompt.digest) == ("seeing-1", content_digest("Be good"))


def test_a_model_in_a_hand_written_node_is_decided(go: str) -> None:
    """Without middleware, in any node of a protected graph; outside every graph nothing of ours looks."""
    authz = authz_with(StaticPDP(lambda r: r.action.name != "model/call"))
    model = replying([PAY])
    graph = authz.protect(hand_written(model, [pay_tool([])]))
    with pytest.raises(AuthzHalt):
        said(go, authz, graph, human())
    assert model.prompts == [] and model.invoke([HumanMessage("hello")]).tool_calls


def test_another_model_in_the_same_node_is_another_call(go: str) -> None:
    """A fallback or a classifier that another middleware calls is decided for itself."""
    other = seeing()
    other.model_name = "other-2"

    class Asks(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
            other.invoke([SystemMessage("classify"), HumanMessage("x")])
            return handler(request)

        async def awrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
            await other.ainvoke([SystemMessage("classify"), HumanMessage("x")])
            return await handler(request)

    authz = authz_with(StaticPDP(lambda r: r.resource.id != "other-2"))
    graph = built("both", authz, seeing([READ]), [read_tool([])], after=[Asks()])
    with pytest.raises(AuthzHalt), quiet():
        said(go, authz, graph, human())
    assert other.prompts == []


@pytest.mark.parametrize("stack", ["middleware", "both"])
def test_an_agent_behind_a_tool_holds_its_own_middleware(stack: str, ran: Any, pdp: Any, authz: Any) -> None:
    """Not protected itself, it opens a child run: its calls are decided under its own path, its plan is its own."""

    def inner() -> Any:  # made as it runs, so that `protect` can not reach it
        return create_agent(replying([PAY]), [pay_tool(ran)], middleware=[AuthzMiddleware(authz, agent="inner")])

    @tool
    def ask_agent(request: str) -> str:
        """Ask the other agent."""
        return str(inner().invoke({"messages": [HumanMessage(request)]})["messages"][-1].content)

    graph = built(stack, authz, replying([call("ask_agent", {"request": "pay"}, "call-ask")]), [ask_agent])
    assert_went_on(said("sync", authz, graph, human()))
    assert ran == [PAID]
    (request,) = calls_of(pdp, "pay")
    assert request.context.agent.path == ["agent", "inner"] and request.context.plan.planned
