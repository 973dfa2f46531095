"""Failures of other packages, each by name: their design does the harm here, ours does not."""

from ._kit import *

pytestmark = pytest.mark.filterwarnings("ignore:.*without a profile:UserWarning")


def enforced(graph: Any, authz: RuntimeAuthz, go: Callable[..., Any] = sync) -> Any:
    return told(authz, authz.protect(graph), human(), go=go, task="x")


def test_changed_policy_counts_at_once(go: Any, ran: Any) -> None:
    """Apparitor's decision cache: an allow outlives the policy that gave it, as it does without any."""
    allowed = [True]
    turns = [PAY], [call("drop", {}, "call-drop")], [{**PAY, "id": "call-again"}]
    graph = lambda: hand_written(replying(*turns), [pay_tool(ran), a_tool("drop", allowed.clear)])
    sync(graph(), human())
    assert ran == [PAID, PAID]
    ran.clear()
    allowed[:] = [True]
    state = enforced(graph(), authz_with(StaticPDP(lambda r: r.resource.id != "pay" or bool(allowed))), go=go)
    assert ran == [PAID] and answer_to(state["messages"], "call-again").status == "error"


def test_arguments_with_names_of_the_guards_own(ran: Any, pdp: Any) -> None:
    """IRIS 0.2.1, `iris_tool_guard`: its own field comes twice into one call, a `TypeError` on every tool call."""

    @tool
    def probe(tool: str, ticket: str, decision_id: str, passage: str, parsed: str, base: str, state: str) -> str:
        """Take arguments that are called as things are called inside the guard."""
        ran.append((tool, ticket, decision_id, passage, parsed, base, state))
        return "ok"

    args = dict.fromkeys(("tool", "ticket", "decision_id", "passage", "parsed", "base", "state"), "x")
    enforced(hand_written(replying([call("probe", args, "call-probe")]), [probe]), authz_with(pdp))
    assert ran == [("x",) * 7]
    assert calls_of(pdp)[0].context.call.args == args  # type: ignore[union-attr]


def test_rebuilt_tool_node(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3, `TenuoToolNode`, in langgraph-supervisor 0.0.31, which rebuilds a stock ToolNode of its tools."""
    wrapped = ToolNode([pay_tool(ran)], wrap_tool_call=lambda request, handler: ToolMessage("denied", tool_call_id="call-pay"))
    sync(hand_written(replying([PAY]), ToolNode(list(wrapped.tools_by_name.values()))), human())
    assert ran == [PAID]
    authz = authz_with(deny_only("pay"))
    ours = AuthzToolNode([pay_tool(ran)], authz=authz)
    rebuilt = ToolNode(list(ours.tools_by_name.values()))
    told(authz, hand_written(replying([PAY]), rebuilt), human(), go=go, task="x")
    assert ran == [PAID]


def test_authority_of_one_turn_is_not_that_of_the_next(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3: the warrant is checkpointed with the state and authorises the next turn, for another task."""
    plain = hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver())
    for text in ("Pay bob", "Only tell me my balance"):
        plain.invoke(human(text), THREAD)
    assert ran == [PAID, PAID]
    ran.clear()
    granted = StaticPDP(lambda r: r.action.name != "tools/call" or "pay" in ((r.context.lease.grant or {}).get("tools") or ()))
    authz, graph = protecting(hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()), granted)
    told(authz, graph, human("Pay bob"), THREAD, go=go, grant=Grant(tools=("pay",)))
    assert ran == [PAID]
    told(authz, graph, human("Only tell me my balance"), THREAD, go=go)
    assert code_of(lambda: go(graph, human("Only tell me my balance"), THREAD)) == "subject_mismatch"
    assert ran == [PAID]
