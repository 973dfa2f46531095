"""Failures of other packages, each by name: their design does the harm here, ours does not."""

from __future__ import annotations

from ._kit import *

pytestmark = pytest.mark.filterwarnings("ignore:.*without a profile:UserWarning")
DENIED = "denied by policy"
Ran = list[Any]


def denying(name: str) -> tuple[RuntimeAuthz, StaticPDP]:
    pdp = deny_only(name)
    return authz_with(pdp), pdp


def enforced(graph: Any, authz: RuntimeAuthz, given: Any = None, go: Callable[..., Any] = sync, config: Any = None) -> Any:
    """The final state of one run under `authz`."""
    return told(authz, authz.protect(graph), human() if given is None else given, config, go=go, task="x")


def no_pay(request: Any, handler: Any) -> Any:
    """A peer's wrapper that denies one tool by a message."""
    name = request.tool_call["name"]
    if name == "pay":
        return ToolMessage(DENIED, name=name, tool_call_id=request.tool_call["id"], status="error")
    return handler(request)


# --- the decision ----------------------------------------------------------------------------------


def test_engine_needs_no_binary(monkeypatch: pytest.MonkeyPatch, ran: Any) -> None:
    """Microsoft AGT 5.0.0 as installed from PyPI: it shells out to `opa`, which is not there, and denies all."""
    monkeypatch.setenv("PATH", "")
    authz = RuntimeAuthz(profiles={"write": ToolProfile(effect="write", sink="none")})
    graph = authz.protect(hand_written(replying([write_call("a")]), [writing_tool(ran)]))
    told(authz, graph, human(), mandate={"steps": [{"id": "write", "tool": "write", "args": {"text": "a"}}]})
    assert ran == [("write", "a")]


class _CachingPep:
    """Keeps allows by subject, tool and arguments; a new policy revision does not empty it."""

    def __init__(self, decide: Callable[[], bool]) -> None:
        self.decide, self.kept = decide, set[str]()

    def __call__(self, request: Any, handler: Any) -> Any:
        key = f"{request.tool_call['name']} {request.tool_call['args']}"
        if key in self.kept or self.decide():
            self.kept.add(key)
            return handler(request)
        return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")


def test_changed_policy_counts_at_once(go: Any, ran: Any) -> None:
    """Apparitor's decision cache: an allow outlives the policy that gave it."""
    again = [PAY], [{**PAY, "id": "call-again"}]
    allowed = [True]

    def drop(text: str) -> BaseTool:
        @tool("drop")
        def drop_() -> str:
            """Change the policy."""
            allowed[0] = False
            return text

        return drop_
    graph = lambda tools: hand_written(replying(again[0], [call("drop", {}, "call-drop")], again[1]), tools)
    pep = _CachingPep(lambda: allowed[0])
    both = [pay_tool(ran), drop("dropped")]
    wrapped = ToolNode(both, wrap_tool_call=lambda r, h: h(r) if r.tool_call["name"] == "drop" else pep(r, h))
    graph(wrapped).invoke(human())
    assert ran == [PAID, PAID]

    ran.clear()
    allowed[0] = True
    state = enforced(graph(both), authz_with(StaticPDP(lambda r: r.resource.id != "pay" or allowed[0])), go=go)
    assert ran == [PAID] and answer_to(state["messages"], "call-again").status == "error"


# --- hooks that are not called ----------------------------------------------------------------------


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


# --- where the gate stands --------------------------------------------------------------------------


def test_rebuilt_tool_node(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3, `TenuoToolNode`, in langgraph-supervisor 0.0.31, which rebuilds a stock ToolNode of its tools."""
    wrapped = ToolNode([pay_tool(ran)], wrap_tool_call=no_pay)
    sync(hand_written(replying([PAY]), ToolNode(list(wrapped.tools_by_name.values()))), human())
    assert ran == [PAID]
    authz, _ = denying("pay")
    ours = AuthzToolNode([pay_tool(ran)], authz=authz)
    rebuilt = ToolNode(list(ours.tools_by_name.values()))
    told(authz, hand_written(replying([PAY]), rebuilt), human(), go=go, task="x")
    assert ran == [PAID]


def test_calls_of_one_message_run_side_by_side() -> None:
    """The gateways of agentlock and intentplane hold one lock around every decision and its execution."""
    lock = threading.Lock()

    def meeting(guard: Any, seconds: float) -> Any:
        together = threading.Barrier(2)
        write = a_tool("write", lambda text: [together.wait(timeout=seconds), "met"][1], text=str)
        return guard(write)

    def submit(request: Any, handler: Any) -> Any:
        with lock:
            return handler(request)

    plan = [write_call("a"), write_call("b")]
    with pytest.raises(threading.BrokenBarrierError):
        sync(hand_written(replying(plan), ToolNode([meeting(lambda t: t, 1)], wrap_tool_call=submit)), human())
    state = enforced(hand_written(replying(plan), [meeting(lambda t: t, 60)]), authz_with(StaticPDP(True)))
    assert [answer_to(state["messages"], c["id"]).content for c in plan] == ["met", "met"]


# --- credentials ------------------------------------------------------------------------------------


class _WarrantState(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    warrant: Any


def _warrant_graph(ran: Ran, checkpointer: Any) -> Any:
    def wrapper(request: Any, handler: Any) -> Any:
        if "pay" in (request.state.get("warrant") or ""):
            return handler(request)
        return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")

    model = replying([PAY])
    return chain({"agent": lambda s: {"messages": [model.invoke(s["messages"])]}, "tools": ToolNode([pay_tool(ran)], wrap_tool_call=wrapper)}, _WarrantState, checkpointer=checkpointer)


def test_authority_of_one_turn_is_not_that_of_the_next(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3: the warrant is checkpointed with the state and authorises the next turn, for another task."""
    graph = _warrant_graph(ran, InMemorySaver())
    graph.invoke({**human("Pay bob"), "warrant": "may: pay"}, THREAD)
    graph.invoke(human("Only tell me my balance"), THREAD)
    assert ran == [PAID, PAID]

    ran.clear()
    granted = StaticPDP(lambda r: r.action.name != "tools/call" or "pay" in ((r.context.lease.grant or {}).get("tools") or ()))
    authz, graph = protecting(hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()), granted)
    told(authz, graph, human("Pay bob"), THREAD, go=go, grant=Grant(tools=("pay",)))
    assert ran == [PAID]
    told(authz, graph, human("Only tell me my balance"), THREAD, go=go)
    assert code_of(lambda: go(graph, human("Only tell me my balance"), THREAD)) == "subject_mismatch"
    assert ran == [PAID]


def test_nothing_of_ours_is_checkpointed(ran: Any) -> None:
    """Tenuo 0.3.3: a `Warrant` object in checkpointed state is a `TypeError`, it cannot be serialised."""
    saver = InMemorySaver()
    enforced(hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=saver), authz_with(StaticPDP(True)), config=THREAD)
    assert ran == [PAID]
    for kept in saver.list(THREAD):
        assert "authz" not in f"{kept.checkpoint['channel_values']}{kept.metadata}{kept.config}".lower()
