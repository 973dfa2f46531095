"""ASI09 Human-Agent Trust Exploitation: the human who approves is shown one thing and signs another, or is worn down.

`test_approval_abuse` has every rendering, statement and term; here is one of each.
"""

from ._approvals import Scene, payment
from ._kit import *

HOSTILE = "ann\x1b[2K\x1b[1A \u202eknab\u202c <b>approved by bob</b> **trust me**"
go = params(["sync", "async"])


def scene(plan: Any, kind: str = "agent", **terms: Any) -> Scene:
    """Payments are asked about on these terms."""
    obligation = {"id": "approval", "type": "require_approval", "properties": terms}
    ask: Any = {**ASK, "context": {**ASK["context"], "obligations": [obligation]}}  # type: ignore[dict-item]
    saver = InMemorySaver()
    pays = lambda r: r.action.name == "tools/call" and r.resource.id == "pay"
    return Scene(kind, lambda: saver, plan=plan, pdp=StaticPDP(lambda r: ask if pays(r) and not r.context.approval else True))


def asked(state: Any) -> list[dict[str, Any]]:
    return state["__interrupt__"][0].value["action_requests"]  # type: ignore[no-any-return]


def naive(ran: list[Any]) -> Any:
    """The twin: a node that shows the model's words, and pays what the state holds when somebody says yes."""

    def step(state: Any) -> dict[str, Any]:
        answer = interrupt(f"Approve {state['messages'][-1].content}?")
        if answer == "yes":
            ran.append(state["messages"][-1].content)
        return {"messages": []}

    return node_graph(step, checkpointer=InMemorySaver())


def test_what_is_shown_is_inert_and_is_what_runs(go: str) -> None:
    """No escape, no direction mark, no markup; the arguments that were shown are the ones that are paid."""
    s = scene([payment(HOSTILE, 10, "c1")])
    (request,) = asked(s.both(go)(human()))
    assert not set("\x1b\u202e\u202c<>*") & set(request["description"].replace("\\", "").partition("\n")[0])
    assert "\x1b" not in request["description"] and "\u202e" not in request["description"]
    assert request["args"]["recipient"] == HOSTILE
    assert_went_on(s.both(go)(resume(APPROVE)))
    assert [r[0] for r in s.ran] == [HOSTILE]


def test_a_yes_is_for_the_arguments_that_were_shown(go: str) -> None:
    """The state is edited between the question and the yes: what was approved is not what stands there, and is not paid."""
    s = scene([payment("ann", 10, "c1")])
    s.both(go)(human())
    newest = s.graph.get_state(THREAD).values["messages"][-1]
    newest.tool_calls[0]["args"]["to"] = "mallory"
    s.graph.update_state(THREAD, {"messages": [newest]})
    s.both(go)(resume(APPROVE))
    assert s.ran == []


def test_unenforced_what_is_shown_is_what_the_model_says(ran: Any) -> None:
    """The twin shows the raw text, and pays what is there when somebody says yes."""
    graph = naive(ran)
    state = graph.invoke(human(f"pay {HOSTILE}"), THREAD)
    assert "\x1b" in state["__interrupt__"][0].value
    graph.update_state(THREAD, {"messages": human("pay mallory")["messages"]}, as_node="__start__")
    graph.invoke(None, THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    assert ran == ["pay mallory"]


def test_four_eyes_are_not_one_pair(go: str) -> None:
    """The subject does not approve their own payment, nor does one other person count twice."""
    s = scene([payment("ann", 10, "c1")], approvers={"min": 2, "distinct_from_subject": True})
    (request,) = asked(s.both(go)(human()))
    for by, code in (("alice", "approval_not_distinct"), ("bob", None), ("bob", "approval_not_distinct")):
        if code is None:
            s.authz.approve(request["approval_id"], by=by)
            continue
        assert code_of(lambda: s.authz.approve(request["approval_id"], by=by), AuthzError) == code
    assert code_of(lambda: s.both(go)(resume(APPROVE))) == "approval_not_distinct"  # alice at the graph
    assert s.ran == []
    s.authz.approve(request["approval_id"], by="carol")
    assert_went_on(s.both(go)(None))
    assert len(s.ran) == 1


@pytest.mark.parametrize("kind", ["hand", "agent"])
def test_who_floods_a_human_is_not_asked_about(kind: str, go: str) -> None:
    """Twenty questions in one message where ten are borne: nobody is asked, nothing is paid."""
    s = scene([payment("ann", n, f"c{n}") for n in range(1, 21)], kind, asks={"run": 10})
    state = s.both(go)(human())
    assert "__interrupt__" not in state and s.ran == []
    assert {answer_to(state["messages"], f"c{n}").status for n in range(1, 21)} == {"error"}
    assert set(reasons(s.authz, "pay")) >= {"approval_capped"}


def test_unenforced_a_tired_human_says_yes_to_the_last(ran: Any) -> None:
    """The twin asks as often as it likes, and the subject's own yes is enough."""
    graph = naive(ran)
    for n in range(20):
        config = {"configurable": {"thread_id": str(n)}}
        graph.invoke(human(f"pay ann {n}"), config)
        graph.invoke(Command(resume="yes"), config)
    assert len(ran) == 20
