"""A resume value answers exactly what was asked, or it is malformed; it never approves by accident."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import ValidationError

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.ledger.base import Approval
from langchain_runtime_authz.ledger.call_changes import AnswerApproval
from langchain_runtime_authz.pep.approval_answers import correcting_texts, edited_action, read_answers
from tests.ids import shown

ALICE = Subject(type="user", id="alice")
YES, NO = {"type": "approve"}, {"type": "reject"}


def ask(key: str, position: int = 0, interrupt: str = "i1") -> Approval:
    return Approval(key, "sha256:00", 1, position=position, interrupt_id=interrupt, plan_id="m", place=position, tool="pay")


ONE = [ask("a")]
EDIT = {"type": "edit", "edited_action": {"name": "wire", "args": {"amount": 1}}}
TWO = [ask("b", 1), ask("a", 0)]  # a store gives them in any order
BOTH = [ask("a", 0, "i1"), ask("c", 0, "i2"), ask("b", 1, "i1")]


def states(asks: list[Approval], value: object, subject: Subject = ALICE) -> dict[str, str]:
    changes = read_answers(asks, value, subject)
    assert all(isinstance(c, AnswerApproval) for c in changes)
    found = {c.call_key: c.state for c in changes if isinstance(c, AnswerApproval)}
    assert len(found) == len(changes)
    return found


@pytest.mark.parametrize("value", [
    {"decisions": [YES]}, {"decisions": (YES,)}, [YES], (YES,), YES, {"type": "approve", "extra": 1},
    MappingProxyType(YES), {"i1": {"decisions": [YES]}}, {"i1": [YES]}, {"i1": YES},
    {"i1": YES, "another interrupt": NO}, {"decisions": [YES], "type": "reject"},
])
def test_one_question_is_answered(value: object) -> None:
    """By a full answer, a list, or one decision; under its interrupt's id or without."""
    assert states(ONE, value) == {"a": "approved"}


def test_an_answer_names_who_gave_it() -> None:
    """The authenticated subject, and what it said; only a user's word is authenticated."""
    (change,) = read_answers(ONE, {"type": "reject", "message": "not now"}, ALICE)
    assert change == AnswerApproval("a", "rejected", "user:alice", authenticated=True, message="not now")
    for kind in ("service", "agent", "anonymous", "User"):
        (change,) = read_answers(ONE, YES, Subject(type=kind, id="x"))
        assert change == AnswerApproval("a", "approved", f"{kind}:x", authenticated=False)
    for message in (None, 7, ["x"], {"text": "x"}):  # what is no text is left out, and spoils nothing
        (change,) = read_answers(ONE, {"type": "reject", "message": message}, ALICE)
        assert change == AnswerApproval("a", "rejected", "user:alice", authenticated=True, message="")
    (change,) = read_answers(ONE, EDIT, ALICE)
    assert (change.state, edited_action(change.edited)) == ("approved", ("wire", {"amount": 1}))
    (change,) = read_answers(ONE, {"type": "respond", "message": "done"}, ALICE)
    assert (change.state, change.message, change.edited) == ("answered", "done", "")


MALFORMED: list[object] = [
    None, True, 1, "approve", "yes", b"approve", {}, [], [[]], [[YES]], [None], [True], ["approve"],
    {"type": "Approve"}, {"type": "approved"}, {"type": "approve "}, {"type": True}, {"type": None},
    {"type": ["approve"]}, {"type": {"type": "approve"}}, {"type": "edit"},
    {"type": "edit", "edited_action": {"name": "pay"}}, {"type": "edit", "edited_action": {"name": "", "args": {}}},
    {"type": "edit", "edited_action": {"name": 1, "args": {}}}, {"type": "edit", "edited_action": {"name": "pay", "args": []}},
    {"type": "edit", "edited_action": {"name": "pay", "args": {1: 2}}},
    {"type": "edit", "edited_action": {"name": "pay", "args": {"amount": float("nan")}}},
    {"type": "edit", "edited_action": {"name": "pay", "args": {"amount": object()}}}, {"type": "respond"},
    {"type": "respond", "message": 1}, {"type": "accept"}, {"approve": True}, {"decision": "approve"},
    {"action": "approve"}, {**YES, "edited_action": {"name": "pay", "args": {"amount": 4}}}, {"decisions": YES},
    {"decisions": None}, {"decisions": "approve"}, {"decisions": []}, {"decisions": [YES, YES]},
    {"decisions": {"0": YES}}, {"decisions": {"decisions": [YES]}}, {"decisions": [{"decisions": [YES]}]},
    {"another interrupt": YES}, {"another interrupt": {"decisions": [YES]}}, {"i1": None}, {"i1": "approve"},
    {"i1": {"decisions": [YES, YES]}}, {"i1": {"i1": YES}}, {"a": "approve"}, {YES["type"]: YES}, {1: YES}, iter([YES]),
    {"approve"}, object(), YES.items(),
]


@pytest.mark.parametrize("value", MALFORMED, ids=shown)
def test_whatever_else_is_malformed(value: object) -> None:
    """Which denies: it is neither taken for a yes nor left open."""
    assert states(ONE, value) == {"a": "malformed"}


A, R, M = "approved", "rejected", "malformed"


@pytest.mark.parametrize(("asks", "value", "expected"), [
    (TWO, [YES, NO], {"a": A, "b": R}), (TWO, {"decisions": [NO, YES]}, {"a": R, "b": A}), (TWO, {"i1": [YES, YES]}, {"a": A, "b": A}),
    # A bad decision spoils only its own.
    (TWO, [YES, {"type": "edit"}], {"a": A, "b": M}), (TWO, [None, NO], {"a": M, "b": R}),
    # Several interrupts are answered by their ids. One that is not named stays open.
    (BOTH, {"i1": [YES, NO], "i2": YES}, {"a": A, "b": R, "c": A}), (BOTH, {"i2": NO}, {"c": R}),
    (BOTH, {"i1": YES, "i2": YES}, {"a": M, "b": M, "c": A}), (BOTH, {"i1": None, "unknown": YES}, {"a": M, "b": M}),
    # Without questions a resume value is the graph's own business.
    *(([], value, {}) for value in (YES, [YES], {"i1": YES}, None, {})),
], ids=str)
def test_questions_are_answered_by_their_place(asks: list[Approval], value: object, expected: dict[str, str]) -> None:
    """In the order in which they were asked, not in which a store gives them."""
    assert states(asks, value) == expected


@pytest.mark.parametrize("value", [YES, [YES], {"decisions": [YES]}, [YES] * 3, {"decisions": []}, [], None, {"i1": [YES]}])
def test_a_wrong_number_of_decisions_answers_none(value: object) -> None:
    """It can not be said which one was meant."""
    assert states(TWO, value) == {"a": "malformed", "b": "malformed"}


@pytest.mark.parametrize("value", [*MALFORMED[:40], YES, [YES] * 3, {"decisions": [YES] * 3}], ids=shown)
def test_a_plain_value_answers_none_of_several_interrupts(value: object) -> None:
    """It does not say which; they stay open."""
    if not (isinstance(value, dict) and "i1" in value):
        assert states(BOTH, value) == {}


values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([YES, NO, "approve", True, None, 1]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["decisions", "type", "i1", "i2", "message", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    asks=st.lists(
        st.builds(ask, st.sampled_from("abcd"), st.integers(0, 3), st.sampled_from(["i1", "i2"])), unique_by=lambda a: a.call_key
    ),
    value=values,
)
def test_no_value_approves_what_was_not_asked(asks: list[Approval], value: Any) -> None:
    """Nothing raises; answers are for open questions, at most one each; a yes is spelt out somewhere."""
    found = states(asks, value)
    assert found.keys() <= {a.call_key for a in asks}
    assert "approved" not in found.values() or "'approve'" in repr(value)


@pytest.mark.parametrize("decision", [YES, NO, EDIT, {"type": "respond", "message": "x"}])
def test_a_question_takes_the_decisions_that_it_says(decision: dict[str, Any]) -> None:
    """Whatever else is malformed; a call that no message planned has no place for another one."""
    for kind in ("approve", "edit", "reject", "respond"):
        found = states([replace(ask("a"), allowed=(kind,))], decision)["a"]
        assert (found == "malformed") is (decision["type"] != kind)
    unplanned = states([replace(ask("a"), plan_id=None)], decision)["a"]
    assert (unplanned == "malformed") is (decision["type"] in ("edit", "respond"))


def test_what_an_answer_says_about_the_task() -> None:
    """An edit, a response and a reason; an approval and a bare rejection say nothing, whatever stands beside them."""
    for decision, text in (
        (YES, None), (NO, None), ({"type": "approve", "message": "fine"}, None),
        ({"type": "reject", "message": "never"}, "never"), ({"type": "respond", "message": "done"}, "done"),
        (EDIT, 'Instead of pay: {"name": "wire", "args": {"amount": 1}}'), ({"type": "edit", "message": "x"}, None),
    ):
        said = correcting_texts(ONE, read_answers(ONE, decision, ALICE))
        assert [t.text for t in said] == ([] if text is None else [text])
    unplanned = [replace(ask("a"), plan_id=None)]
    assert correcting_texts(unplanned, read_answers(unplanned, {"type": "reject", "message": "no"}, ALICE)) == []
    # Said by key, so that the same answer is the same text.
    (text_,) = correcting_texts(ONE, read_answers(ONE, EDIT, ALICE))
    assert text_.key == "answer:i1:0"


def test_a_word_of_langchains_review_is_not_authenticated() -> None:
    """It is taken as it comes."""
    asks = [replace(ask("a"), source="hitl", allowed=("approve",))]
    (change,) = read_answers(asks, YES, ALICE)
    assert (change.state, change.authenticated) == ("approved", False)


def asking(recipient: str = "DE21\u202e", **fields: Any) -> Any:
    """A graph whose one call asks, and its question."""

    @tool
    def pay(recipient: str, amount: float) -> str:
        """Pay."""
        return "paid"

    call = {"name": "pay", "args": {"recipient": recipient, "amount": 45.0}, "id": "c"}
    builder = StateGraph(MessagesState).add_node("model", lambda _: {"messages": [AIMessage("", tool_calls=[call])]})
    builder.add_node("tools", ToolNode([pay])).add_edge(START, "model").add_edge("model", "tools")
    authz = RuntimeAuthz(profiles={"pay": {"effect": "pay", "critical": {"recipient": "principal", "amount": "amount"}, **fields}})
    graph, config = authz.protect(builder.compile(checkpointer=InMemorySaver())), {"configurable": {"thread_id": "t"}}

    def go(value: Any) -> Any:
        with authz.run(subject="alice"):
            return graph.invoke(value, config)

    return go, go({"messages": [("user", "Pay the bill")]})["__interrupt__"][0].value


def test_a_profile_words_the_question_and_says_what_may_be_answered() -> None:
    """The exact arguments stand below it, and a decision that it leaves out does not count."""
    go, question = asking(question="Pay {amount} to {recipient}?", decisions=["approve", "reject"])
    assert question["action_requests"][0]["description"].startswith('Pay "45.0" to "DE21\\u202e"? (')
    assert question["review_configs"] == [{"action_name": "pay", "allowed_decisions": ["approve", "reject"]}]
    edited = {"type": "edit", "edited_action": {"name": "pay", "args": {"recipient": "DE99", "amount": 1.0}}}
    after = go(Command(resume={"decisions": [edited]}))
    assert "paid" not in [m.content for m in after["messages"]]


def test_a_value_cannot_read_as_the_words_of_the_question() -> None:
    """It stands in quotation marks, which no value can end. The twin is the template filled with the bare value."""
    template, value = "Pay {recipient}?", 'bob"? (the user ordered it)'
    _, question = asking(value, question=template)
    words = question["action_requests"][0]["description"]
    assert words.startswith('Pay "bob\\u0022? (the user ordered it)"? (effect')
    assert template.format(recipient=value) == 'Pay bob"? (the user ordered it)?'


@pytest.mark.parametrize(("fields", "begins"), [({}, "Approve pay? ("), ({"question": "Sure?"}, "Sure? (")])
def test_a_question_names_no_argument_of_itself(fields: dict[str, Any], begins: str) -> None:
    _, question = asking(**fields)
    assert question["action_requests"][0]["description"].startswith(begins)
    assert question["review_configs"][0]["allowed_decisions"] == ["approve", "edit", "reject", "respond"]


@pytest.mark.parametrize("fields", [{"question": "Pay {a.b}?"}, {"question": "Pay {"}, {"decisions": ["approve"]}, {"decisions": ["approve", "reject", "shrug"]}], ids=str)
def test_words_that_cannot_be_asked_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ToolProfile(**fields)
