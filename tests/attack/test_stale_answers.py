"""An answer is for the question that was shown, never for a later one of its task (OWASP ASI09).

LangGraph keeps a plain answer with the thread, and gives a task's next question an answer to its first. In the twins
the tool asks by itself, and nobody protects the graph.
"""

from itertools import product
from unittest.mock import patch

from langgraph.errors import UnknownInterruptError
from langgraph.types import Send

from tests.tier import part

from ._approvals import react_v2
from ._kit import *

YES: Any = {"decisions": [APPROVE]}
ANN, BOB, EVE = (("ann", 1.0, "USD"), ("bob", 1.0, "USD"), ("eve", 1.0, "USD"))
protected = params([True, False], ids=["protected", "twin"])
PLACES = ["root", "node", "call", "below node", "below call"]


class Bank:
    """A graph whose tasks each pay some people, and ask about each payment."""

    def __init__(self, protected: bool, tasks: Sequence[Sequence[str]], *, place: str = "root", how: str = "sync") -> None:
        self.ran: list[Any] = []
        self.protected, self.how, self.fails, self.instead = protected, how, False, ""
        pay = pay_tool(self.ran)

        def work(state: Any) -> Any:
            if self.fails:
                raise ConnectionError
            for name in [self.instead] if self.instead else state["names"]:
                if name == "own" or not protected:
                    interrupt({"action_requests": [{"args": {"recipient": name}}]})
                if name != "own":
                    pay.invoke({"to": name, "amount": 1})
            return {}

        def graph(node: Any, to: Any, **options: Any) -> Any:
            builder = StateGraph(MessagesState)
            builder.add_node("work", node)
            builder.add_conditional_edges(START, to, ["work"])
            builder.add_edge("work", END)
            return builder.compile(**options)

        self.authz = authz_with(asking("pay"))
        protect = self.authz.protect if protected else lambda graph: graph
        built = graph(work, lambda _: [Send("work", {"names": names}) for names in tasks], **self._kept(place == "root"))
        below = place.startswith("below")  # an unprotected graph
        inner = protect(built) if below else built
        if place.endswith("node"):
            built = graph(inner, lambda _: "work", **self._kept(True))
        elif place.endswith("call"):
            built = graph(lambda s, config: inner.invoke(s, config), lambda _: "work", **self._kept(True))
        self.graph = built if below else protect(built)

    @staticmethod
    def _kept(outermost: bool) -> dict[str, Any]:
        return {"name": "bank", "checkpointer": InMemorySaver()} if outermost else {"name": "inner"}

    def enter(self, given: Any = None, config: Any = THREAD) -> dict[str, Any]:
        """Return the questions that are open, by the payee."""
        state = run_as(self.authz, self.graph, given, config, how=self.how)
        return {i.value["action_requests"][0]["args"]["recipient"]: i for i in state.get("__interrupt__", ())}

    def approve(self, asked: Any) -> None:
        """Approve outside the graph."""
        if self.protected:
            self.authz.approve(asked.value["action_requests"][0]["approval_id"], by="carol")


# In CI the first question is a tool's or the node's own, in turn.
@pytest.mark.parametrize(("first", "place", "by"), part([*product(["ann", "own"], PLACES, ["nothing", "the old id", "the old id, settled"])], 2))
@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_answer_is_not_taken_for_the_next_question(protected: bool, place: str, how: str, by: str, first: str) -> None:
    """Neither by an entry that answers nothing, nor by one that answers the first once more."""
    bank = Bank(protected, [[first, "bob"]], place=place, how=how)
    (asked,) = bank.enter(human()).values()
    if by == "the old id, settled" and first == "ann":
        bank.approve(asked)
    stale = Command(resume={asked.id: YES})
    assert [*bank.enter(Command(resume=YES) if by == "nothing" else stale)] == ["bob"]
    left = bank.enter(None if by == "nothing" else stale)
    assert [*left] == (["bob"] if protected else [])
    assert (BOB in bank.ran) != protected
    if protected:  # an answer to the question that is shown counts
        assert not bank.enter(Command(resume={left["bob"].id: YES}))
        assert bank.ran == [ANN, BOB][first == "own" :]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("sent", [["own"], ["bob"]])
def test_an_answer_goes_with_the_tasks_that_replace_the_one_that_asked(protected: bool, how: str, sent: list[str]) -> None:
    """As in LangGraph, but it approves no call of ours."""
    bank = Bank(protected, [["own"]], how=how)
    bank.enter(human())
    left = bank.enter(Command(resume=YES, goto=[Send("work", {"names": sent})]))
    assert [*left] == (["bob"] if protected and sent == ["bob"] else [])
    assert bank.ran == ([BOB] if sent == ["bob"] and not protected else [])


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("also", ["ann", ""])
def test_a_strict_resume_is_refused_as_a_whole(protected: bool, how: str, also: str) -> None:
    """LangGraph names the question that does not wait, and the other answers are not recorded."""
    bank = Bank(protected, [["ann"], ["bob"]], how=how)
    asked, unknown = bank.enter(human()), "0" * 32
    strict = {"configurable": {**THREAD["configurable"], "__pregel_strict_resume": True}}
    with pytest.raises(UnknownInterruptError) as refused:
        bank.enter(Command(resume={unknown: YES, **({asked[also].id: YES} if also else {})}), strict)
    assert (refused.value.reason, refused.value.interrupt_ids) == ("not_pending", (unknown,))
    assert bank.enter().keys() == {"ann", "bob"} and not bank.ran
    assert not bank.enter(Command(resume={i.id: YES for i in asked.values()}), strict)
    assert sorted(bank.ran) == [ANN, BOB]


@pytest.mark.parametrize("place", ["root", "node", "call"])
def test_an_answer_to_nothing_is_kept_for_nothing(protected: bool, place: str) -> None:
    """A second click comes when the question is gone, and before the task asks anew."""
    bank = Bank(protected, [["bob"]], place=place)
    bank.fails = True
    with contextlib.suppress(ConnectionError):
        bank.enter(human())
    bank.fails = False
    assert [*bank.enter(Command(resume=YES))] == (["bob"] if protected else [])
    assert [*bank.enter()] == (["bob"] if protected else [])
    assert bank.ran == ([] if protected else [BOB])


@pytest.mark.parametrize("place", ["root", "node", "call"])
@pytest.mark.parametrize("plain", [True, False])
def test_an_answer_from_before_a_correction_is_kept_for_nothing(protected: bool, place: str, plain: bool) -> None:
    """The task asks anew under the correction."""
    bank = Bank(protected, [["ann"]], place=place)
    (asked,) = bank.enter(human()).values()
    if protected:
        bank.authz.correct("t", "Pay the other bill", graph=bank.graph)
    bank.enter(Command(resume=YES if plain else {asked.id: YES}))
    left = bank.enter()
    assert bank.ran == ([] if protected else [ANN])
    if protected:
        assert not bank.enter(Command(resume={left["ann"].id: YES}))
        assert bank.ran == [ANN]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(("first", "by"), [("ann", "another payee"), ("ann", "a correction"), ("own", "another payee")])
def test_an_answer_by_id_is_for_the_question_that_had_this_id_first(protected: bool, how: str, first: str, by: str) -> None:
    """The node was entered again meanwhile, and LangGraph numbers its new question as the old one."""
    bank = Bank(protected, [[first]], how=how)
    (asked,) = bank.enter(human()).values()
    if by == "another payee":
        bank.instead = "bob"
    elif protected:
        bank.authz.correct("t", "Pay the other bill", graph=bank.graph)
    (payee,) = bank.enter()
    left = bank.enter(Command(resume={asked.id: YES}))
    assert [*left] == ([payee] if protected else [])
    assert (bank.ran == []) is protected
    if protected:
        assert not bank.enter(Command(resume={left[payee].id: YES}))
        assert bank.ran == [BOB if payee == "bob" else ANN]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_so_it_is_if_an_older_question_is_shown_again(protected: bool, how: str) -> None:
    bank = Bank(protected, [["ann"]], how=how)
    bank.enter(human())
    bank.instead = "bob"
    (other,) = bank.enter().values()
    bank.instead = ""
    assert [*bank.enter()] == ["ann"]
    left = bank.enter(Command(resume={other.id: YES}))
    assert bank.ran == ([] if protected else [ANN])
    if protected:
        assert [i.id for i in bank.enter().values()] == [left["ann"].id]
        assert not bank.enter(Command(resume={left["ann"].id: YES}))
        assert bank.ran == [ANN]


@pytest.mark.parametrize("then", ["eve", "outside", "plain", "by id"])
def test_so_it_is_if_the_process_dies_with_the_second_question(protected: bool, then: str) -> None:
    """LangGraph then numbers a third one as the first. The second, shown again, needs one answer."""
    bank = Bank(protected, [["ann"]])
    (first,) = bank.enter(human()).values()
    bank.instead = "bob"
    with pytest.raises(OSError), patch.object(InMemorySaver, "put_writes", side_effect=OSError):
        bank.enter()
    bank.instead = "eve" if then == "eve" else "bob"
    (asked,) = bank.enter().values()
    if then == "outside":
        bank.approve(asked)
    answer = {first.id if then == "eve" else asked.id: YES}
    left = bank.enter(None if then == "outside" else Command(resume=YES if then == "plain" else answer))
    if then == "eve":
        assert bank.ran == ([] if protected else [EVE])
    elif protected:
        assert (bank.ran, left) == ([BOB], {})


def test_of_two_tasks_one_is_settled_outside(protected: bool) -> None:
    """Each entry runs both tasks again; each answer stays with its question."""
    bank = Bank(protected, [["ann", "eve"], ["bob"]])
    asked = bank.enter(human())
    bank.approve(asked["ann"])
    stale = Command(resume={asked["ann"].id: YES})
    for given in (stale, stale, None):
        left = bank.enter(given)
    assert {*left} == ({"eve", "bob"} if protected else {"bob"})
    assert (EVE in bank.ran) != protected
    assert not bank.enter(Command(resume={i.id: YES for i in left.values()}))
    assert {*bank.ran} == {ANN, BOB, EVE}
    assert len(bank.ran) == 3 or not protected


def test_at_a_named_checkpoint_an_answer_is_for_the_question_that_waits(protected: bool) -> None:
    """Its state shows the answered question of another task too."""
    bank = Bank(protected, [["own"], ["ann", "bob"]])
    asked = bank.enter(human())
    named = bank.graph.get_state(THREAD).config
    bank.enter(Command(resume={asked["own"].id: YES}), named)
    assert [*bank.enter(Command(resume=YES), named)] == ["bob"]
    assert [*bank.enter()] == (["bob"] if protected else [])
    assert (BOB in bank.ran) != protected


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("place", ["node", "call", "node below"])
@pytest.mark.parametrize("by", ["node", "tool"])
def test_a_graph_without_checkpoints_asks_its_own_question_once(protected: bool, how: str, place: str, by: str) -> None:
    """It begins anew with the answer. Its question then has another interrupt id, so an answer by id never fits."""
    heard: list[str] = []

    @tool
    def ask(question: str) -> str:
        """Ask."""
        heard.append(interrupt(question))
        return heard[-1]

    if by == "node":
        child: Any = chain({"ask": lambda state: heard.append(interrupt("Who?"))}, name="child", checkpointer=False)
    else:
        child = agent_graph(replying([call("ask", {"question": "Who?"}, "c")]), [ask], name="child", checkpointer=False)
    node = calling(child) if place == "call" else child
    node = chain({"step": node}, name="middle") if place == "node below" else node
    authz = authz_with(StaticPDP(True))
    graph = chain({"step": node}, name="root", checkpointer=InMemorySaver())
    graph = authz.protect(graph) if protected else graph
    for given, left in ((human(), ["Who?"]), (Command(resume="bob"), [])):
        state = run_as(authz, graph, given, THREAD, how=how)
        assert [i.value for i in state.get("__interrupt__", ())] == left
    assert heard == ["bob"]


def test_of_two_graphs_without_checkpoints_neither_gets_the_others_answer() -> None:
    """LangGraph refuses a plain answer to two questions."""
    heard: list[str] = []
    child = chain({"ask": lambda state: heard.append(interrupt("Who?"))}, name="child", checkpointer=False)
    builder = StateGraph(MessagesState).add_node("a", child).add_node("b", child)
    builder.add_edge(START, "a").add_edge(START, "b")
    authz, graph = protecting(builder.compile(name="root", checkpointer=InMemorySaver()), StaticPDP(True))
    assert len(told(authz, graph, human(), THREAD)["__interrupt__"]) == 2
    with pytest.raises(RuntimeError, match="multiple pending interrupts"):
        told(authz, graph, Command(resume="bob"), THREAD)
    assert heard == []


@pytest.mark.parametrize("how", ["sync", "async"])
def test_beside_a_graph_without_checkpoints_an_old_answer_is_for_no_later_question(how: str) -> None:
    """LangGraph gives a task's next question an answer with the id of its first one."""
    ran: list[Any] = []
    pay = pay_tool(ran)
    child = chain({"ask": lambda _: interrupt("Who?") and None}, name="child", checkpointer=False)
    builder = StateGraph(MessagesState).add_node("ask", child).add_edge(START, "ask").add_edge(START, "pay")
    builder.add_node("pay", lambda _: [pay.invoke({"to": to, "amount": 1}) for to in ("ann", "bob")] and None)
    authz, graph = protecting(builder.compile(name="root", checkpointer=InMemorySaver()), asking("pay"))
    asked = run_as(authz, graph, human(), THREAD, how=how)["__interrupt__"]
    stale = Command(resume={i.id: YES for i in asked if i.value != "Who?"})
    for _ in range(3):
        assert len(run_as(authz, graph, stale, THREAD, how=how)["__interrupt__"]) == 2
    assert ran == [ANN]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_approval_is_no_answer_to_a_question_of_a_graph_without_checkpoints(how: str) -> None:
    """The graph begins anew, so its own question comes first. It has had an answer."""
    heard: list[Any] = []
    pay = pay_tool(heard)

    def work(state: Any) -> None:
        heard.append(interrupt("Who?"))
        pay.invoke({"to": "bob", "amount": 1})

    child = chain({"work": work}, name="child", checkpointer=False)
    authz, graph = protecting(chain({"step": child}, name="root", checkpointer=InMemorySaver()), asking("pay"))
    for given in (human(), Command(resume="bob"), Command(resume=YES)):
        run_as(authz, graph, given, THREAD, how=how)
    assert heard == ["bob", "bob"]


def test_at_a_named_checkpoint_a_task_that_returned_nothing_has_ended() -> None:
    """In a graph whose state is one value, such a task shows no result."""
    ran: list[Any] = []
    pay = pay_tool(ran)
    builder = StateGraph(list)
    builder.add_node("own", lambda _: interrupt("Which account?") and None).add_edge(START, "own")
    builder.add_node("pay", lambda _: pay.invoke({"to": "bob", "amount": 1}) and None).add_edge(START, "pay")
    authz, graph = protecting(builder.compile(checkpointer=InMemorySaver()), asking("pay"))
    told(authz, graph, ["hi"], THREAD)
    named, (own,) = graph.get_state(THREAD).config, [i for i in graph.get_state(THREAD).interrupts if isinstance(i.value, str)]
    told(authz, graph, Command(resume={own.id: "checking"}), named)
    told(authz, graph, Command(resume=YES), named)
    assert ran == [BOB]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("superseded", ["by its end", "by an input"])
@pytest.mark.parametrize("replays", [True, False])
def test_an_older_checkpoint_asks_once_for_its_fork(how: str, superseded: str, replays: bool) -> None:
    """A replay, and an answer to the old question, are a fork: it is asked anew, and one approval of that counts."""
    bank = Bank(True, [["ann"]], how=how)
    bank.enter(human())
    old, ended = bank.graph.get_state(THREAD).config, superseded == "by its end"
    bank.enter(Command(resume=YES) if ended else human("Pay again"))
    assert [*bank.enter(None if replays else Command(resume=YES), old)] == ["ann"]
    assert bank.ran == [ANN] * ended
    assert not bank.enter(Command(resume=YES), THREAD if replays or ended else old)
    assert bank.ran == [ANN] * (ended + 1)
    assert not bank.graph.get_state(THREAD).next


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize(("kind", "ended"), [("node", True), ("node", False), ("agent", False)])
def test_a_replay_takes_the_answer_with_the_checkpoint_that_was_replayed(how: str, ended: bool, by_id: bool, kind: str) -> None:
    """An application keeps the config with which it replayed: the thread waits at the fork of that checkpoint."""
    bank = Bank(True, [["ann"]], how=how)
    if kind == "agent":
        model = replying([call("pay", {"to": "ann", "amount": 1}, "c")])
        bank.graph = bank.authz.protect(agent_graph(model, [pay_tool(bank.ran)], checkpointer=InMemorySaver()))
    bank.enter(human())
    named = bank.graph.get_state(THREAD).config
    if ended:
        bank.enter(Command(resume=YES))
    (asked,) = bank.enter(None, named).values()
    assert not bank.enter(Command(resume={asked.id: YES} if by_id else YES), named)
    assert bank.ran == [ANN] * (1 + ended)
    assert not bank.graph.get_state(THREAD).next


@pytest.mark.parametrize("how", ["sync", "async"])
def test_at_the_newest_checkpoint_an_approval_outside_the_graph_counts(how: str) -> None:
    bank = Bank(True, [["ann"], ["bob"]], how=how)
    asked = bank.enter(human())
    named = bank.graph.get_state(THREAD).config
    bank.approve(asked["ann"])
    assert [*bank.enter(None, named)] == ["bob"]
    bank.approve(asked["bob"])
    assert not bank.enter(None, named)
    assert sorted(bank.ran) == [ANN, BOB]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_answer_with_a_checkpoint_is_for_what_that_asked(protected: bool, how: str) -> None:
    """The replay asks about another payment, which the one who answers has not seen."""
    ran: list[Any] = []
    payees, pay = iter(["bob", "eve", "eve", "eve"]), pay_tool(ran)

    def work(state: Any) -> None:
        to = next(payees)
        None if protected else interrupt(to)
        pay.invoke({"to": to, "amount": 1})

    authz = authz_with(asking("pay"))
    graph = chain({"work": work}, name="root", checkpointer=InMemorySaver())
    graph = authz.protect(graph) if protected else graph
    run_as(authz, graph, human(), THREAD, how=how)
    named = graph.get_state(THREAD).config
    run_as(authz, graph, None, named, how=how)
    state = run_as(authz, graph, Command(resume=YES), named, how=how)
    assert ran == ([] if protected else [EVE])
    if protected:  # it is shown, and may be approved then
        (asked,) = state["__interrupt__"]
        assert asked.value["action_requests"][0]["args"]["recipient"] == "eve"


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_replay_of_the_newest_checkpoint_asks_about_all_calls_of_a_message(how: str, answers: bool) -> None:
    """It is a fork, in which each call has another task: none may wait for the one that asked."""
    ran: list[Any] = []
    model = replying([call("pay", {"to": to, "amount": 1}, to) for to in ("ann", "bob")])
    authz, graph = protecting(agent_graph(model, [pay_tool(ran)], checkpointer=InMemorySaver()), asking("pay"))
    run_as(authz, graph, human(), THREAD, how=how)
    named = graph.get_state(THREAD).config
    for config in (named, THREAD):
        (asked,) = run_as(authz, graph, None, config, how=how)["__interrupt__"]
    given = {"decisions": [APPROVE if answers else {"type": "reject"}] * 2}
    assert "__interrupt__" not in run_as(authz, graph, Command(resume={asked.id: given}), THREAD, how=how)
    assert sorted(ran) == ([ANN, BOB] if answers else [])


@pytest.mark.parametrize("who", ["own", "bob"])
def test_an_answer_after_an_edit_is_for_the_applications_question_alone(protected: bool, who: str) -> None:
    """An edit of the state hides the question. LangGraph then keeps the answer for the next one."""
    bank = Bank(protected, [[who]])
    bank.enter(human())
    with bank.authz.run(subject="alice"):
        bank.graph.update_state(THREAD, {"messages": []}, as_node=START)
    left = bank.enter(Command(resume=YES))
    assert [*left] == (["bob"] if protected and who == "bob" else [])
    if left:  # an answer to the question that is shown again counts
        assert not bank.enter(Command(resume={left["bob"].id: YES}))
    assert bank.ran == [BOB] * (who == "bob")


def test_an_answer_that_an_application_passes_on_is_for_the_graph_below(protected: bool) -> None:
    """That graph has a checkpointer of its own, under the thread's name. No root entry gave the answer an id."""
    bank = Bank(protected, [["ann"]])

    def ask(state: Any) -> Any:
        below = bank.graph.invoke(human(), THREAD)
        for asked in below.get("__interrupt__", ()):
            bank.graph.invoke(Command(resume=interrupt(asked.value)), THREAD)
        return {}

    outer = chain({"ask": ask}, checkpointer=InMemorySaver(), name="outer")
    outer = bank.authz.protect(outer) if protected else outer
    assert run_as(bank.authz, outer, human(), THREAD)["__interrupt__"]
    assert not run_as(bank.authz, outer, Command(resume=YES), THREAD).get("__interrupt__")
    assert bank.ran == [ANN]


@pytest.mark.parametrize("by_id", [True, False])
def test_a_question_that_was_shown_again_after_an_edit_can_be_approved(by_id: bool) -> None:
    """The edit gives the task another id, and with it the question."""
    ran: list[Any] = []
    authz = authz_with(asking("pay"))
    graph = authz.protect(agent_graph(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()))
    told(authz, graph, human(), THREAD)
    with authz.run(subject="alice"):
        graph.update_state(THREAD, {"messages": []})
    (asked,) = told(authz, graph, None, THREAD)["__interrupt__"]
    assert "__interrupt__" not in told(authz, graph, Command(resume={asked.id: YES} if by_id else YES), THREAD)
    assert len(ran) == 1


REVIEW = {"action_requests": [{"name": "other", "args": {}}], "review_configs": [{"action_name": "other", "allowed_decisions": ["approve"]}]}


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(("build", "inside"), [(hand_written, True), (hand_written, False), (react_v2, True)])
def test_an_answer_to_a_tools_own_question_approves_no_later_one_of_its_task(
    protected: bool, how: str, build: Any, inside: bool, ran: list[Any]
) -> None:
    """The tool asks only at its first run. At its second, the tool pays, or the policy asks about another call of its message."""
    pay, again = pay_tool(ran), []

    def act() -> str:
        if not again:
            interrupt(REVIEW)
        if inside and not protected:
            interrupt("pay?")
        return pay.invoke({"to": "bob", "amount": 1}) if inside else "done"

    def decide(request: Any) -> object:
        asks = again and request.action.name == "tools/call" and request.resource.id in ("pay", "read")
        return ASK if asks and request.context.approval is None else True

    plan = [call("act", {}, "a"), *([] if inside else [{**READ, "id": "r"}])]
    graph = build(replying(plan), [a_tool("act", act), read_tool(ran)], checkpointer=InMemorySaver())
    authz = authz_with(StaticPDP(decide), profiles={**PROFILES, "act": ToolProfile(effect="write", sink="internal")})
    graph = authz.protect(graph) if protected else graph
    (own,) = run_as(authz, graph, human(), THREAD, how=how)["__interrupt__"]
    ran.clear()
    again.append(True)
    asked = run_as(authz, graph, None, THREAD, how=how).get("__interrupt__", ())
    left = run_as(authz, graph, Command(resume={own.id: YES}), THREAD, how=how).get("__interrupt__", ())
    assert (ran == [], [i.id for i in left]) == ((True, [i.id for i in asked]) if protected else (False, []))
    if protected:
        assert_went_on(run_as(authz, graph, Command(resume={left[0].id: YES}), THREAD, how=how))
        assert ran == [BOB if inside else ("read", "a")]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", ["tool", "block"])
@pytest.mark.parametrize("other", ["at the answer", "after it"])
def test_in_a_graph_that_nobody_protects_an_answer_is_for_the_call_that_was_shown(
    protected: bool, kind: str, how: str, other: str, ran: list[Any]
) -> None:
    """The node pays somebody else when it runs again. The twin asks by itself, and one answer pays both."""
    authz, payees, failing = authz_with(asking("pay")), ["ann"], [True]
    pay: Any = authz.guard(pay_tool(ran))

    def step(state: Any) -> Any:
        (to,) = payees
        if not protected:
            interrupt(to)
            ran.append(to)
        elif kind == "tool":
            pay.invoke({"to": to, "amount": 1})
        else:
            with authz.effect("pay", recipient=to, amount=1):
                ran.append(to)
        if failing:
            raise ConnectionError
        return {}

    graph, run = chain({"step": step}, checkpointer=InMemorySaver()), authz.run(subject="alice")
    go = sync if how == "sync" else in_loop
    assert go(graph, human(), run.config(THREAD))["__interrupt__"]
    payees[:] = ["bob"] if other == "at the answer" else payees
    with contextlib.suppress(ConnectionError):
        go(graph, Command(resume=YES), run.config(THREAD))
    payees[:] = ["bob"]
    failing.clear()
    with contextlib.suppress(AuthzDenied):
        go(graph, None, run.config(THREAD))
    paid = [to if isinstance(to, str) else to[0] for to in ran]
    once = ["ann"] if other == "after it" else []
    assert paid == (once if protected else [*(once or ["bob"]), "bob"])


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", ["tool", "block"])
def test_in_a_graph_that_nobody_protects_an_old_answer_hinders_no_question(kind: str, how: str, ran: list[Any]) -> None:
    """It was for another node, which has ended. The one that failed asks when it runs again, and pays once approved."""
    authz, failing = authz_with(asking("pay")), [True]
    pay: Any = authz.guard(payer(ran))

    def step(state: Any) -> Any:
        if failing:
            raise ConnectionError
        if kind == "tool":
            pay.invoke({"to": "bob", "amount": 5})
        else:
            with authz.effect("pay", recipient="bob", amount=5.0):
                ran.append(PAID)
        return {}

    builder = StateGraph(MessagesState)
    for name, node in {"asks": lambda _: [interrupt("go on?"), {}][1], "step": step}.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    graph, run = builder.compile(checkpointer=InMemorySaver()), authz.run(subject="alice")
    go = sync if how == "sync" else in_loop
    for given in (human(), Command(resume="yes")):
        with pytest.raises(ConnectionError):
            go(graph, given, run.config(THREAD))
    failing.clear()
    (asked,) = go(graph, None, run.config(THREAD))["__interrupt__"]
    assert asked.value["action_requests"][0]["args"]["recipient"] == "bob" and ran == []
    go(graph, Command(resume=YES), run.config(THREAD))
    assert ran == [PAID]
