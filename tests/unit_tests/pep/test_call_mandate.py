"""What the enforcement point tells the mandate of calls and their outputs."""

from typing import Any

import pytest
from langchain_core.tools import StructuredTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_runtime_authz import Mandate, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.mandate.call_matching import CallFacts, match_call
from langchain_runtime_authz.mandate.model import Field, Step, Text
from langchain_runtime_authz.mandate.read_outputs import Outputs
from tests.attack._graphs import call, hand_written, human, replying

PROFILES = {
    "create_event": ToolProfile(effect="write", sink="internal", critical={"title": "name"}, trust="system"),
    "invite": ToolProfile(effect="send", sink="internal", critical={"event": "object", "who": "principal"}),
}
ORDER = Mandate(
    steps=(
        Step("made", "create_event", {"title": "Lunch"}),
        Step("asked", "invite", {"event": Field("made", "id"), "who": "bob@x.org"}, after="made"),
    )
)


def test_a_step_takes_a_value_from_what_a_side_effect_returned() -> None:
    """A system's own id of what the task created is good for the next step; what the model wrote is not."""
    for returned, outcome in (({"id": "e-7"}, "permit"), ({"id": "Lunch"}, "approval_required")):
        session = RuntimeAuthz(profiles=PROFILES).session(subject="alice", mandate=ORDER)
        assert session.decide("invite", {"event": returned["id"], "who": "bob@x.org"}).outcome == "approval_required"
        assert session.decide("create_event", {"title": "Lunch"}).permit
        session.observe("create_event", {"title": "Lunch"}, returned)
        assert session.decide("invite", {"event": returned["id"], "who": "bob@x.org"}).outcome == outcome


@pytest.mark.parametrize("changed", [False, True])
def test_a_fetch_opens_no_link_that_was_read_before_it_changed(changed: bool) -> None:
    read = ToolProfile(effect="read", sink="none", critical={"month": "value"}, trust="system", resource="bill:{month}")
    profiles = {"bill": read, "open": ToolProfile(effect="fetch", critical={"url": "url"})}
    steps = Step("bill", "bill", {"month": "May"}), Step("open", "open", {"url": Field("bill", "url")})
    authz = RuntimeAuthz(profiles=profiles)
    session = authz.session(subject="alice", mandate=Mandate(steps))
    assert session.decide("bill", {"month": "May"}).permit
    session.observe("bill", {"month": "May"}, {"url": "https://a.org/1"})
    if changed:
        authz.data_changed("bill:May")
    assert session.decide("open", {"url": "https://a.org/1"}).permit is not changed


PASSAGE = "the whole office will move to the harbour in spring"
NOTED = {
    "look_up": ToolProfile(effect="read", sink="none", critical={"name": "name"}),
    "note": ToolProfile(effect="send", sink="internal", critical={"to": "principal"}),
}
NOTE = Mandate(steps=(Step("seen", "look_up", {"name": "Bob"}), Step("noted", "note", {"to": "bob@x.org", "body": Text()})))


@pytest.mark.parametrize("error", [ValueError(PASSAGE), ValueError(f"timed out: {PASSAGE}"), PASSAGE, None], ids=repr)
def test_what_an_error_says_is_not_the_models_own_text(error: Any) -> None:
    """A server chooses its errors as it does its outputs; a text that copies neither is sent unasked."""
    session = RuntimeAuthz(profiles=NOTED).session(subject="alice", mandate=NOTE)
    assert session.decide("look_up", {"name": "Bob"}).permit
    failed = error if isinstance(error, Exception) else None
    session.observe("look_up", {"name": "Bob"}, error if failed is None else None, failed)
    outcome = session.decide("note", {"to": "bob@x.org", "body": f"Hello, {PASSAGE}"}).outcome
    assert outcome == ("permit" if error is None else "approval_required")
    evidence = session.evidence(session.decide("note", {"to": "harbour", "body": ""}))
    assert ("untrusted text from look_up" in str(evidence)) is (error is not None)


def test_what_a_tool_without_a_profile_says_is_not_the_models_own_text() -> None:
    """A person approved its call, and not that its words are sent on."""
    for said, outcome in ((PASSAGE, "approval_required"), ("nothing", "permit")):
        session = RuntimeAuthz(profiles=NOTED).session(subject="alice", mandate=NOTE)
        assert session.approve(session.decide("fetch", {"q": "x"})).permit
        session.observe("fetch", {"q": "x"}, said)
        assert session.decide("note", {"to": "bob@x.org", "body": f"Hello, {PASSAGE}"}).outcome == outcome


@pytest.mark.parametrize("protected", [True, False])
@pytest.mark.parametrize("handled", [True, False], ids=["by the tool", "by its node"])
def test_what_a_failed_tool_says_is_not_the_models_own_text(handled: bool, protected: bool) -> None:
    """Whoever turns its exception into a message for the model."""
    sent = []

    def look_up(name: str) -> str:
        """Look somebody up."""
        raise ToolException(PASSAGE)

    @tool
    def note(to: str, body: str) -> str:
        """Send a note."""
        sent.append(body)
        return "sent"

    failing = StructuredTool.from_function(look_up, handle_tool_error=handled)
    read, write = call("look_up", {"name": "Bob"}, "c1"), call("note", {"to": "bob@x.org", "body": PASSAGE}, "c2")
    graph = hand_written(replying([read], [write]), [failing, note], checkpointer=InMemorySaver(), handle_tool_errors=not handled)
    config: Any = {"configurable": {"thread_id": "t"}}
    authz = RuntimeAuthz(profiles=NOTED)
    with authz.run(subject="alice", task="Write to Bob", mandate=NOTE):
        (authz.protect(graph) if protected else graph).invoke(human("Write to Bob"), config)
    assert sent == ([] if protected else [PASSAGE])


@pytest.mark.parametrize(("source", "made", "standing"), [("planner", 1, "deviates"), ("planner", 2, "covered"), ("application", 0, "deviates"), ("application", 1, "covered")])
def test_a_step_waits_for_all_calls_that_a_user_ordered_before_it(source: Any, made: int, standing: str) -> None:
    """A user orders a number of calls. An application allows at most that many."""
    order = Mandate.model_validate({"steps": [
        {"id": "copies", "tool": "create_event", "args": {"title": "Lunch"}, "times": 2},
        {"id": "told", "tool": "invite", "args": {"event": "e-7", "who": "bob@x.org"}, "after": "copies"},
    ]})  # fmt: skip
    asked = CallFacts("invite", PROFILES["invite"], {"event": "e-7", "who": "bob@x.org"}, frozenset({"event", "who"}), (), "")
    matched = match_call(order.of(source, "m"), asked, PROFILES, Outputs())
    (copies,) = (counter for counter in matched.counters if counter.endswith("step:copies"))
    assert matched.standing({copies: made}).standing == standing


def test_an_approver_reads_what_comes_first() -> None:
    """Nobody but the order's writer knows the ids of its steps."""
    asked = CallFacts("invite", PROFILES["invite"], {"event": "e-7", "who": "bob@x.org"}, frozenset({"event", "who"}), (), "")
    expected = [d.expected for d in match_call(ORDER, asked, PROFILES, Outputs()).standing({}).deviations if d.code == "after"]
    assert expected == ["step `made` to succeed first: create_event, title = Lunch"]
