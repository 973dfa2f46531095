"""A user answers a tool's or node's own question with words: that call goes on, and what was planned beside it does not."""

from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.pep.free_text import free_text

from ._kit import *

STOP = "STOP. Do not pay anyone."
KNOWN = {
    **PROFILES, "ask_human": ToolProfile(effect="read", sink="none", data_class="public"),
    "confirmed_pay": ToolProfile(effect="pay", sink="external"),
}
how = params(["sync", "async"])


@tool
def ask_human(question: str) -> str:
    """Ask the user."""
    return str(interrupt({"question": question, "options": ["go on", {"value": "later", "label": "Not now"}]}))


def heeding(request: Any) -> bool:
    """A policy that hears the words: after STOP nothing is paid."""
    return request.action.name != "tools/call" or STOP not in request.context.task.text or "pay" not in request.resource.id


class Desk:
    """An agent that plans a payment and a question together, or a payment that asks by itself."""

    def __init__(self, kind: str, *plan: dict[str, Any], protected: bool = True, policy: Any = heeding) -> None:
        self.ran: list[Any] = []
        self.pdp = StaticPDP(policy)
        self.authz: RuntimeAuthz = authz_with(self.pdp, profiles=KNOWN)
        ran = self.ran

        @tool
        def confirmed_pay(to: str) -> str:
            """Ask, then pay."""
            if interrupt(f"Pay {to}?") != "no":
                ran.append(to)
            return "paid"

        def respond(messages: list[Any]) -> AIMessage:
            done = any(isinstance(m, ToolMessage) for m in messages)
            return says(text="done") if done else says(*plan)

        self.model = ScriptedChatModel(script=[respond] * 20)
        self.graph = BUILDERS[kind](self.model, [pay_tool(ran), ask_human, confirmed_pay], checkpointer=InMemorySaver())
        if protected:
            self.authz.protect(self.graph)

    def go(self, given: Any, how: str = "sync", subject: Any = "alice") -> Any:
        return run_as(self.authz, self.graph, given, THREAD, how=how, subject=subject)

    def seen(self) -> Any:
        name = self.graph.get_name()
        return self.authz.ledger.load(self.authz.run_opener.scope(name, "t"), Query(log=True))


ASK = call("ask_human", {"question": "Which bill?"}, "c-ask")
PAY = call("pay", {"to": "bob", "amount": 5}, "c-pay")
CONFIRM = call("confirmed_pay", {"to": "bob"}, "c-confirm")


@pytest.mark.parametrize("policy", [heeding, True])
def test_the_call_of_a_tool_that_asked_is_decided_under_the_words(kind: str, how: str, policy: Any) -> None:
    """Its answer reaches it and its call goes on, if the policy permits that under the new task."""
    desk = Desk(kind, CONFIRM, policy=policy)
    assert desk.go(human(), how)["__interrupt__"]
    old = desk.pdp.requests[-1].context.lease.jti
    state = desk.go(Command(resume=STOP), how)
    assert desk.ran == ([] if policy is heeding else ["bob"])
    told = answer_to(state["messages"], "c-confirm")
    assert told.text.startswith("This action is not permitted" if policy is heeding else "paid")
    assert_went_on(state)
    assert desk.seen().epoch == 2
    assert [(t.text, t.own, t.author) for t in desk.seen().log][-1] == (STOP, True, "user:alice")
    assert desk.pdp.requests[-1].context.lease.jti != old
    assert desk.authz.ledger.status("default", old) in ("stale", "ended")


def _reviewed(desk: Desk) -> Any:
    """A node of its own asks between the plan and the tools, and does nothing with the answer."""
    nodes = {
        "agent": lambda state: {"messages": [desk.model.invoke(state["messages"])]},
        "review": lambda _: interrupt({"question": "Anything to add?"}) and None, "tools": ToolNode([pay_tool(desk.ran)]),
        "end": lambda state: {"messages": [desk.model.invoke(state["messages"])]},
    }  # fmt: skip
    return chain(nodes, checkpointer=InMemorySaver(), name="reviewed")


def test_a_node_that_asks_before_the_tools(how: str, protected: bool) -> None:
    """What the node does with the answer is no matter: the plan before it is void, and the model hears why. The twin pays."""
    desk = Desk("hand", PAY)
    desk.graph = desk.authz.protect(_reviewed(desk)) if protected else _reviewed(desk)
    desk.go(human(), how)
    state = desk.go(Command(resume=STOP), how)
    assert desk.ran == ([] if protected else [PAID])
    assert (STOP in answer_to(state["messages"], "c-pay").text) == protected
    assert_went_on(state)


def test_who_only_asks_gets_the_answer_and_the_model_hears_it_once(kind: str, how: str) -> None:
    """A tool without side effects goes on with the words; they come in its answer and nowhere else."""
    desk = Desk(kind, ASK)
    desk.go(human(), how)
    state = desk.go(Command(resume="The December bill"), how)
    assert answer_to(state["messages"], "c-ask").text == "The December bill"
    assert str(state["messages"]).count("The December bill") == 1
    assert desk.seen().epoch == 2
    assert not desk.seen().pending
    again = desk.go(human("Go on"), how)
    assert not [m for m in again["messages"] if isinstance(m, HumanMessage) and "December" in m.text]
    assert unanswered(again["messages"]) == []


@pytest.mark.parametrize("answer", ["go on", "Later", "not now", "YES", "no", True, 3, {"ok": "yes"}], ids=str)
def test_a_plain_answer_leaves_the_task_alone(kind: str, answer: Any) -> None:
    """One of the options, by value or label, and the closed words: the plan goes on."""
    desk = Desk(kind, ASK)
    desk.go(human())
    desk.go(Command(resume=answer))
    assert desk.seen().epoch == 1


def test_answers_by_interrupt_id(how: str, protected: bool) -> None:
    """Two payments ask at once; one answer is plain, the other is not: the policy heeds the words for both. The twin pays both."""
    desk = Desk("agent", CONFIRM, call("confirmed_pay", {"to": "eve"}, "c-eve"), protected=protected)
    first = desk.go(human(), how)["__interrupt__"]
    assert len(first) == 2
    state = desk.go(Command(resume={first[0].id: "yes", first[1].id: STOP}), how)
    assert sorted(desk.ran) == ([] if protected else ["bob", "eve"])
    assert_went_on(state)
    assert not protected or desk.seen().epoch == 2


def test_words_to_one_of_two_leave_the_other_its_question(how: str) -> None:
    """The first is answered in words that stop nothing, the second later: both go on, once each."""
    desk = Desk("agent", CONFIRM, call("confirmed_pay", {"to": "eve"}, "c-eve"))
    first = desk.go(human(), how)["__interrupt__"]
    (left,) = desk.go(Command(resume={first[0].id: "from the joint account"}), how)["__interrupt__"]
    assert left.id == first[1].id
    assert_went_on(desk.go(Command(resume={left.id: "yes"}), how))
    assert sorted(desk.ran) == ["bob", "eve"]


def test_words_approve_nothing(how: str) -> None:
    """Where the shipped policy would ask about the call under the new task, it is denied, as careless as the tool may be."""
    desk = Desk("hand", call("confirmed_pay", {"to": "Bob"}, "c"), protected=False)
    pay = ToolProfile(effect="pay", sink="external", critical={"to": "principal"}, intent=("pay",))
    desk.authz = authz_with(WasmPDP(pool_size=1), profiles={"confirmed_pay": pay})
    desk.graph = desk.authz.protect(desk.graph)
    desk.go(human("Pay Bob"), how)
    assert_went_on(desk.go(Command(resume=STOP), how))
    assert desk.ran == []


def test_what_was_planned_beside_is_stale(how: str) -> None:
    """A payment that has not run when the words come does not run; the one that asked does."""
    desk = Desk("hand", CONFIRM, PAY, policy=True)
    desk.go(human(), how)
    desk.ran.clear()
    state = desk.go(Command(resume="from the joint account"), how)
    assert desk.ran == ["bob"]
    assert_went_on(state)


CONSENT = ["Yes, please go ahead", "Sure, thanks!", "go on", {"note": "OK, thank you very much"}]
NO_CONSENT = [
    "Yes, but do not pay", "Thanks, no", "Sure. Halt", "OK?", "ok...", "first show me the bill", "Danke, nein", "today please",
    "yes, pay eve", "Archibald", "bob", "then", "That's all, thanks. Have a good day!", "continue?", "2. please", "2) yes", "second please", "hello", {"note": "thanks, later"},
]  # fmt: skip


@pytest.mark.parametrize("answer", CONSENT, ids=str)
def test_what_was_planned_beside_goes_on_after_consent(kind: str, how: str, answer: Any) -> None:
    """Words that can only mean yes reach the tool that asked, and change the task for nobody."""
    desk = Desk(kind, CONFIRM, PAY, policy=True)
    desk.go(human(), how)
    state = desk.go(Command(resume=answer), how)
    assert sorted(map(str, desk.ran)) == sorted(map(str, ["bob", PAID]))
    assert desk.seen().epoch == 1
    assert_went_on(state)


@pytest.mark.parametrize("answer", NO_CONSENT, ids=str)
def test_one_word_that_is_not_known_as_consent_makes_it_stale(how: str, answer: Any, protected: bool) -> None:
    """A choice, a time, a name, a question, a restriction, another language: the payment next to it runs in the twin alone."""
    desk = Desk("hand", call("confirmed_pay", {"to": "bob, now or then"}, "c-confirm"), PAY, protected=protected, policy=True)
    desk.go(human(), how)
    desk.ran.clear()
    desk.go(Command(resume=answer), how)
    assert "bob, now or then" in desk.ran and (PAID in desk.ran) != protected
    assert not protected or desk.seen().epoch == 2


@pytest.mark.parametrize(("answer", "epoch"), [({"account": "joint"}, 1), ({"account": "eve's"}, 2)], ids=str)
def test_the_schema_of_an_answer_offers_its_values(how: str, answer: Any, epoch: int) -> None:
    """The values that LangGraph's `response_schema` lists are plain, and nothing else of that field."""
    desk = Desk("hand", call("choose", {}, "c"), protected=False)

    @tool
    def choose() -> str:
        """Ask which account."""
        schema = {"type": "object", "properties": {"account": {"enum": ["joint", "own"]}}}
        return str(interrupt("Which account?", response_schema=schema))

    desk.graph = desk.authz.protect(BUILDERS["hand"](desk.model, [choose], checkpointer=InMemorySaver()))
    desk.go(human(), how)
    assert_went_on(desk.go(Command(resume=answer), how))
    assert desk.seen().epoch == epoch


def test_an_agents_answer_is_nobodys_word() -> None:
    """A service that resumes with words voids what was planned beside; it says nothing for the user."""
    desk = Desk("hand", CONFIRM)
    service = {"type": "service", "id": "cron"}
    desk.go(human(), subject=service)
    desk.go(Command(resume="pay eve instead"), subject=service)
    assert desk.ran == ["bob"]
    assert desk.seen().epoch == 2
    assert "eve" not in desk.seen().task.text


def test_what_a_form_sends_back_is_no_humans_word() -> None:
    """A machine's draft that comes back with the answer is not pinned as what the human said."""
    question = {"draft": "Pay DE21500105179625862911", "options": ["send"]}
    assert free_text({"draft": question["draft"], "action": "send"}, question) == ""
    said = free_text({"draft": question["draft"], "note": "not before Monday"}, question)
    assert said == '{"note":"not before Monday"}'


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["yes", " NO ", "Cancel", "decline", "later", "Not Now"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner),
    max_leaves=8,
)
QUESTION = {"question": "?", "choices": [{"id": "later", "label": "not now"}, 7]}


@given(PLAIN)
def test_plain_answers_say_nothing(answer: Any) -> None:
    """Whatever their shape."""
    assert free_text(answer, QUESTION) == ""


@given(st.text(), PLAIN)
def test_words_are_found_wherever_they_stand(word: str, plain: Any) -> None:
    """In any place of an answer: nothing that is said gets lost, and nothing raises."""
    text = f"say so {word}"
    for answer in (text, [plain, text], {"a": {"b": text}, "c": plain}, {text: plain}, [[[text.encode()]]]):
        assert free_text(answer, QUESTION)


@pytest.mark.parametrize("question", [None, "Pay?", 3, ["a"], {"options": "yes"}, {"options": [None, {}, ["x"]]}], ids=str)
def test_questions_of_any_shape(question: Any) -> None:
    """A question that offers nothing takes the closed words."""
    assert free_text("yes", question) == ""
    assert free_text("x y", question) == "x y"


def test_what_the_message_has_done_before_the_words_stands(how: str, protected: bool) -> None:
    """One call of the message had paid when another asked: the model is told so, and not to plan it again. The twin pays again."""
    desk = Desk("hand", PAY, CONFIRM, protected=protected)
    desk.go(human(), how)
    assert desk.ran == [PAID]
    state = desk.go(Command(resume=STOP), how)
    assert sorted(desk.ran, key=str) == ([PAID] if protected else [PAID, PAID, "bob"])
    if not protected:
        return
    told = answer_to(state["messages"], "c-pay")
    assert told.status == "success"
    assert told.text.startswith("Note: the task changed after this action was carried out.")
    assert STOP in told.text
    assert told.text.endswith("paid")
    assert answer_to(state["messages"], "c-confirm").status == "error"
    assert_went_on(state)


def _dies_once(ran: list[Any]) -> Any:
    """A payment whose process dies once it is made."""

    @tool(args_schema=PayArgs)
    def pay(recipient: str, amount: float, currency: str) -> str:
        """Pay."""
        ran.append(recipient)
        if len(ran) == 1:
            raise KeyboardInterrupt
        return "paid"

    return pay


def test_what_a_death_left_open_is_not_called_undone_by_a_correction(protected: bool) -> None:
    """Paid, died, corrected: the model is told of it, that the outcome is unknown, and not to plan it anew. The twin pays again."""
    desk = Desk("hand", PAY, protected=False)
    desk.graph = hand_written(desk.model, [_dies_once(desk.ran)], checkpointer=InMemorySaver())
    if protected:
        desk.authz.protect(desk.graph)
    with pytest.raises(KeyboardInterrupt):
        desk.go(human())
    if protected:
        desk.authz.correct("t", STOP)
    told = answer_to(desk.go(None)["messages"], "c-pay").text
    assert desk.ran == (["bob"] if protected else ["bob", "bob"])
    assert ("outcome is unknown" in told) == (STOP in told) == protected


def test_words_reach_a_question_that_is_answered_at_a_childs_checkpoint(how: str, authz: Any) -> None:
    """The child goes on from a copy in which the question has another id: the words reach it, and count as a correction."""
    said: list[str] = []
    asking = lambda _: said.append(interrupt("Which bill?"))
    graph = authz.protect(chain({"child": chain({"ask": asking}, checkpointer=True)}, checkpointer=InMemorySaver()))

    go = lambda given, config: run_as(authz, graph, given, config, how=how)
    go(human(), THREAD)
    (task,) = graph.get_state(THREAD, subgraphs=True).tasks
    scope = authz.run_opener.scope(graph.get_name(), "t")
    before = authz.ledger.load(scope, Query()).epoch
    go(None, task.state.config)
    go(Command(resume="the one of December"), task.state.config)
    assert said == ["the one of December"]
    assert authz.ledger.load(scope, Query()).epoch > before
