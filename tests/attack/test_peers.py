"""Failures of other packages, each by name: their design does the harm here, ours does not."""

from __future__ import annotations

import subprocess
from contextvars import ContextVar

import jwt
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, hook_config
from langgraph.errors import InvalidUpdateError
from langgraph.runtime import Runtime
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langchain_runtime_authz import profile, telemetry
from langchain_runtime_authz.authzen import Subject
from langchain_runtime_authz.credential.issuer import LocalIssuer, mint
from langchain_runtime_authz.credential.token import Task, TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier

from ._kit import *

pytestmark = pytest.mark.filterwarnings("ignore:.*without a profile:UserWarning")
DENIED = "denied by policy"
Ran = list[Any]


def denying(name: str) -> tuple[RuntimeAuthz, StaticPDP]:
    pdp = deny_only(name)
    return authz_with(pdp), pdp


def enforced(
    graph: Any, authz: RuntimeAuthz, given: Any = None, go: Callable[..., Any] = sync, config: Any = None
) -> Any:
    """The final state of one run under `authz`."""
    return told(authz, authz.protect(graph), human() if given is None else given, config, go=go, task="x")


def no_pay(request: Any, handler: Any) -> Any:
    """A peer's wrapper that denies one tool by a message."""
    name = request.tool_call["name"]
    if name == "pay":
        return ToolMessage(DENIED, name=name, tool_call_id=request.tool_call["id"], status="error")
    return handler(request)


# --- the decision ----------------------------------------------------------------------------------


def _opa_evaluator(document: Any) -> bool:
    result = document.get("result")
    return result if isinstance(result, bool) else result is not None


@pytest.mark.parametrize(
    "document",
    [{"allow": False}, {"allow": True}, {"result": {"allow": False}}, {"result": True}, {"decision": {"allow": False}}],
    ids=ascii,
)
def test_object_result_is_no_permit(document: dict[str, Any], go: Any, ran: Any) -> None:
    """Microsoft AGT 5.0.0, `OPAEvaluator`: a result that is an object, `{"allow": false}`, is read as allow."""
    assert _opa_evaluator({"result": document})
    authz = authz_with(StaticPDP(lambda r: document if r.action.name == "tools/call" else True))
    enforced(hand_written(replying([PAY]), [pay_tool(ran)]), authz, go=go)
    assert ran == []
    assert reasons(authz, "pay") == ["pdp_malformed"]


def test_pdp_outage_denies(go: Any, ran: Any) -> None:
    """Microsoft AGT 5.0.0: what its hook raises in an async run is logged, and the tool runs."""

    async def hooked(request: Any, handler: Any) -> Any:
        try:
            raise ConnectionError(request.tool_call["name"])
        except ConnectionError:
            return await handler(request)

    in_loop(hand_written(replying([PAY]), ToolNode([pay_tool(ran)], awrap_tool_call=hooked)), human())
    assert ran == [PAID]

    def broken(request: Any) -> bool:
        if request.action.name == "tools/call":
            raise ConnectionError
        return True

    authz = authz_with(StaticPDP(broken))
    state = enforced(hand_written(replying([PAY]), [pay_tool(ran)]), authz, go=go)
    assert ran == [PAID]
    assert reasons(authz, "pay") == ["pdp_error"]
    assert_went_on(state)


def test_engine_needs_no_binary(monkeypatch: pytest.MonkeyPatch, ran: Any) -> None:
    """Microsoft AGT 5.0.0 as installed from PyPI: it shells out to `opa`, which is not there, and denies all."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError):
        subprocess.run(["opa", "eval", "true"], check=False)
    authz = RuntimeAuthz(profiles={"write": ToolProfile(effect="write", sink="none")})
    enforced(hand_written(replying([write_call("a")]), [writing_tool(ran)]), authz)
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

    def graph(tools: Any) -> Any:
        return hand_written(replying(again[0], [call("drop", {}, "call-drop")], again[1]), tools)

    pep = _CachingPep(lambda: allowed[0])
    both = [pay_tool(ran), drop("dropped")]
    wrapped = ToolNode(both, wrap_tool_call=lambda r, h: h(r) if r.tool_call["name"] == "drop" else pep(r, h))
    graph(wrapped).invoke(human())
    assert ran == [PAID, PAID]

    ran.clear()
    allowed[0] = True
    pdp = StaticPDP(lambda r: r.resource.id != "pay" or allowed[0])
    state = enforced(graph(both), authz_with(pdp), go=go)
    assert ran == [PAID]
    assert answer_to(state["messages"], "call-again").status == "error"


# --- hooks that are not called ----------------------------------------------------------------------


def test_async_runs_are_gated_like_sync_ones(ran: Any) -> None:
    """Microsoft AGT 5.0.0, `LangGraphKernel.wrap_graph`: it patches `func` and not `afunc`, so `ainvoke` is ungated."""

    async def act(state: MessagesState) -> dict[str, Any]:
        ran.append("acted")
        return {}

    def wrap_graph(graph: Any) -> Any:
        for node in graph.nodes.values():
            if getattr(node.bound, "func", None) is not None:

                def hook(*args: Any, **kwargs: Any) -> Any:
                    raise PermissionError

                node.bound.func = hook
        return graph

    in_loop(wrap_graph(node_graph(act)), human())
    assert ran == ["acted"]
    authz = authz_with(StaticPDP(lambda r: r.action.name != "node/enter"))
    with pytest.raises(AuthzDenied):
        enforced(node_graph(act), authz, go=in_loop)
    assert ran == ["acted"]


def test_middleware_that_has_no_async_form(ran: Any) -> None:
    """Microsoft AGT 5.0.0, `GovernanceMiddleware`: `NotImplementedError` under `ainvoke`."""

    class Governance(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request)

    with pytest.raises(NotImplementedError):
        in_loop(agent_graph(replying([PAY]), [pay_tool(ran)], middleware=[Governance()]), human())
    assert ran == []
    assert_went_on(enforced(agent_graph(replying([PAY]), [pay_tool(ran)]), authz_with(StaticPDP(True)), go=in_loop))
    assert ran == [PAID]


def test_wrapper_that_is_only_async(ran: Any) -> None:
    """Auth0 1.0.1 guards async calls only; a ToolNode given only `awrap_tool_call` skips it in a sync run."""

    async def guard(request: Any, handler: Any) -> Any:
        return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")

    sync(hand_written(replying([PAY]), ToolNode([pay_tool(ran)], awrap_tool_call=guard)), human())
    assert ran == [PAID]
    for go in (sync, in_loop):
        authz, _ = denying("pay")
        node = AuthzToolNode([pay_tool(ran)], authz=authz)
        enforced(hand_written(replying([PAY]), node), authz, go=go)
    assert ran == [PAID]


def test_refusal_is_not_swallowed(go: Any, ran: Any) -> None:
    """IRIS, `IrisCallbackHandler`: it raises on a deny, LangChain swallows it (`raise_error=False`), the tool runs."""

    class Handler(BaseCallbackHandler):
        def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            raise PermissionError

    go(hand_written(replying([PAY]), [pay_tool(ran)]), human(), {"callbacks": [Handler()]})
    assert ran == [PAID]
    authz, _ = denying("pay")
    assert_went_on(enforced(hand_written(replying([PAY]), [pay_tool(ran)]), authz, go=go))
    assert ran == [PAID]


def test_arguments_with_names_of_the_guards_own(ran: Any, pdp: Any) -> None:
    """IRIS 0.2.1, `iris_tool_guard`: its own field comes twice into one call, a `TypeError` on every tool call."""

    def log(*, tool: str, user_consent_logged: bool) -> None: ...

    record = {"tool": "pay", "user_consent_logged": True}
    with pytest.raises(TypeError):
        log(user_consent_logged=True, **record)


    @tool
    def probe(tool: str, ticket: str, decision_id: str, passage: str, parsed: str, base: str, state: str) -> str:
        """Take arguments that are called as things are called inside the guard."""
        ran.append((tool, ticket, decision_id, passage, parsed, base, state))
        return "ok"

    args = dict.fromkeys(("tool", "ticket", "decision_id", "passage", "parsed", "base", "state"), "x")
    enforced(hand_written(replying([call("probe", args, "call-probe")]), [probe]), authz_with(pdp))
    assert ran == [("x",) * 7]
    assert calls_of(pdp)[0].context.call.args == args  # type: ignore[union-attr]


def test_what_a_tool_returns_is_looked_at(go: Any, ran: Any) -> None:
    """TealTiger: its output scanner is a method `after_tool`, which is no hook of LangChain and is never called."""

    class Scanner(AgentMiddleware):
        def after_tool(self, result: Any) -> Any:
            raise AssertionError

    def leaking(ran: Ran) -> BaseTool:
        @tool
        def read(path: str) -> dict[str, str]:
            """Read a record."""
            ran.append(path)
            return {"name": "bob", "iban": "DE21"}

        return read

    plan = [call("read", {"path": "a"}, "call-read")]
    state = sync(agent_graph(replying(plan), [leaking(ran)], middleware=[Scanner()]), human())
    assert "DE21" in answer_to(state["messages"], "call-read").content

    redact = {"id": "r", "type": "redact", "properties": {"fields": ["iban"]}}
    answer = {"decision": True, "context": {"obligations": [redact]}}
    authz = authz_with(StaticPDP(lambda r: answer if r.action.name == "tools/call" else True))
    state = enforced(agent_graph(replying(plan), [leaking(ran)]), authz, go=go)
    assert ran == ["a", "a"]
    assert "DE21" not in answer_to(state["messages"], "call-read").content
    assert "bob" in answer_to(state["messages"], "call-read").content


def test_denial_is_an_error(go: Any) -> None:
    """TealTiger: a denied call is answered with `status="success"`."""

    def wrapper(request: Any, handler: Any) -> Any:
        return ToolMessage(DENIED, name="pay", tool_call_id=request.tool_call["id"])

    state = sync(hand_written(replying([PAY]), ToolNode([pay_tool([])], wrap_tool_call=wrapper)), human())
    assert answer_to(state["messages"], "call-pay").status == "success"
    authz, _ = denying("pay")
    state = enforced(hand_written(replying([PAY]), [pay_tool([])]), authz, go=go)
    assert answer_to(state["messages"], "call-pay").status == "error"


def test_calls_are_read_where_langgraph_puts_them(go: Any, ran: Any) -> None:
    """langgraph-agentmesh: a node in front of the tools reads `state["tool_calls"]`, which nobody sets."""
    seen: list[Any] = []
    model = replying([PAY])

    def governance(state: MessagesState) -> dict[str, Any]:
        seen.extend(state.get("tool_calls", []))  # type: ignore[arg-type]
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
    builder.add_node("governance", governance)
    builder.add_node("tools", ToolNode([pay_tool(ran)]))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "governance")
    builder.add_edge("governance", "tools")
    builder.add_edge("tools", END)
    builder.compile().invoke(human())
    assert seen == []
    assert ran == [PAID]
    authz, pdp = denying("pay")
    enforced(hand_written(replying([PAY]), [pay_tool(ran)]), authz, go=go)
    assert [r.context.call.args["amount"] for r in calls_of(pdp)] == [5.0]  # type: ignore[union-attr]
    assert ran == [PAID]


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


class _RowLimit(AgentMiddleware):
    """Refuses more than ten."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        if float(request.tool_call["args"]["amount"]) > 10:
            return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        if float(request.tool_call["args"]["amount"]) > 10:
            return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")
        return await handler(request)


class _Rewriting(AgentMiddleware):
    """Another middleware, listed after it."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool_call={**request.tool_call, "args": {"to": "bob", "amount": 99999}}))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(tool_call={**request.tool_call, "args": {"to": "bob", "amount": 99999}}))


def test_arguments_rewritten_after_the_decision(go: Any, ran: Any) -> None:
    """attenu-guard 0.21.0, `RowLimit(10)`: a middleware listed after it rewrites 5 to 99999, and it runs."""
    go(agent_graph(replying([PAY]), [pay_tool(ran)], middleware=[_RowLimit(), _Rewriting()]), human())
    assert ran == [("bob", 99999.0, "USD")]
    ran.clear()

    def limit(request: Any) -> bool:
        return request.action.name != "tools/call" or request.context.call.args["amount"] <= 10

    authz = authz_with(StaticPDP(limit))
    graph = agent_graph(replying([PAY]), [pay_tool(ran)], middleware=[_Rewriting()])
    assert_went_on(enforced(graph, authz, go=go))
    assert ran == []


def test_async_nodes() -> None:
    """Tenuo 0.3.3 and attenu-guard 0.21.0, `guard_node`: an async node comes back as a coroutine nobody awaits."""

    def guard_node(node: Any) -> Any:
        def guarded(state: MessagesState) -> Any:
            return node(state)

        return guarded

    async def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("stepped")]}

    made: list[Any] = []
    with pytest.raises(InvalidUpdateError):
        in_loop(node_graph(lambda s: made.append(guard_node(step)(s)) or made[-1]), human())
    made[0].close()
    state = enforced(node_graph(step), authz_with(StaticPDP(True)), go=in_loop)
    assert state["messages"][-1].content == "stepped"


def test_nodes_keep_their_own_parameters(go: Any) -> None:
    """langgraph-secure-agents 0.8.0, `protect_node`: it hands a runtime to each node, also to those that take none."""

    def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("stepped")]}

    def protect_node(node: Any) -> Any:
        return lambda state, runtime: node(state, runtime=runtime)

    with pytest.raises(TypeError):
        protect_node(step)({"messages": []}, Runtime())
    state = enforced(node_graph(step), authz_with(StaticPDP(True)), go=go)
    assert state["messages"][-1].content == "stepped"


def test_sub_agent_is_gated_too(go: Any, ran: Any) -> None:
    """Tenuo, attenu-guard and every middleware PEP in deepagents 0.7.32: a sub-agent does not inherit it."""

    class Pep(AgentMiddleware):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            self.seen.append(request.tool_call["name"])
            return no_pay(request, handler)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            self.seen.append(request.tool_call["name"])
            answer = no_pay(request, lambda r: None)
            return answer if answer is not None else await handler(request)

    def built(ran: Ran, middleware: Any = ()) -> Any:
        child = agent_graph(replying([PAY]), [pay_tool(ran)], name="child")

        @tool("task")
        def task(description: str) -> str:
            """Hand work to a sub-agent."""
            return child.invoke({"messages": [HumanMessage(description)]})["messages"][-1].text

        plan = [call("task", {"description": "pay bob"}, "call-task")]
        return agent_graph(replying(plan), [task], middleware=middleware)

    pep = Pep()
    go(built(ran, [pep]), human())
    assert pep.seen == ["task"]
    assert ran == [PAID]
    authz, pdp = denying("pay")
    enforced(built(ran), authz, go=go)
    assert ran == [PAID]
    assert [r.context.agent.path for r in calls_of(pdp, "pay")] == [["agent", "child"]]


def _raising(request: Any, handler: Any) -> Any:
    if request.tool_call["name"] == "pay":
        time.sleep(0.05)  # the sibling is through by then
        raise PermissionError(DENIED)
    return handler(request)


def test_sibling_of_a_denied_call_runs_once(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3 denies by raising: the sibling's answer is lost, and its side effect is repeated on resume."""
    plan = [write_call("a"), PAY]
    saver = InMemorySaver()
    node = ToolNode([pay_tool(ran), writing_tool(ran)], wrap_tool_call=_raising)
    graph = hand_written(replying(plan), node, checkpointer=saver)
    for given in (human(), None):
        with pytest.raises(PermissionError):
            sync(graph, given, THREAD)
    assert ran == [("write", "a")] * 2

    ran.clear()
    authz, _ = denying("pay")
    graph = hand_written(replying(plan), [pay_tool(ran), writing_tool(ran)], checkpointer=InMemorySaver())
    assert_went_on(enforced(graph, authz, go=go, config=THREAD))
    assert_went_on(enforced(graph, authz, None, go=go, config=THREAD))
    assert ran == [("write", "a")] * 2  # one for each human message


def test_calls_of_one_message_run_side_by_side() -> None:
    """The gateways of agentlock and intentplane hold one lock around every decision and its execution."""
    lock = threading.Lock()

    def meeting(guard: Any, seconds: float) -> Any:
        together = threading.Barrier(2)

        @tool
        def write(text: str) -> str:
            """Wait for the other call."""
            together.wait(timeout=seconds)
            return "met"

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
    builder = StateGraph(_WarrantState)
    builder.add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
    builder.add_node("tools", ToolNode([pay_tool(ran)], wrap_tool_call=wrapper))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    builder.add_edge("tools", END)
    return builder.compile(checkpointer=checkpointer)


def test_authority_of_one_turn_is_not_that_of_the_next(go: Any, ran: Any) -> None:
    """Tenuo 0.3.3: the warrant is checkpointed with the state and authorises the next turn, for another task."""
    graph = _warrant_graph(ran, InMemorySaver())
    graph.invoke({**human("Pay bob"), "warrant": "may: pay"}, THREAD)
    graph.invoke(human("Only tell me my balance"), THREAD)
    assert ran == [PAID, PAID]

    ran.clear()
    granted = StaticPDP(
        lambda r: r.action.name != "tools/call" or "pay" in ((r.context.lease.grant or {}).get("tools") or ())
    )
    authz = authz_with(granted)
    graph = authz.protect(hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=InMemorySaver()))
    told(authz, graph, human("Pay bob"), THREAD, go=go, grant=Grant(tools=("pay",)))
    assert ran == [PAID]
    told(authz, graph, human("Only tell me my balance"), THREAD, go=go)
    with pytest.raises(AuthzDenied) as denied:  # nobody's run, on alice's thread
        go(graph, human("Only tell me my balance"), THREAD)
    assert denied.value.code == "subject_mismatch"
    assert ran == [PAID]


def test_nothing_of_ours_is_checkpointed(ran: Any) -> None:
    """Tenuo 0.3.3: a `Warrant` object in checkpointed state is a `TypeError`, it can not be serialised."""

    class Warrant:
        """Holds a key."""

        def __init__(self) -> None:
            self.key = threading.Lock()

        def __contains__(self, name: str) -> bool:
            return True

    with pytest.raises(TypeError):
        _warrant_graph([], InMemorySaver()).invoke({**human(), "warrant": Warrant()}, THREAD)

    saver = InMemorySaver()
    enforced(
        hand_written(replying([PAY]), [pay_tool(ran)], checkpointer=saver), authz_with(StaticPDP(True)), config=THREAD
    )
    assert ran == [PAID]
    for kept in saver.list(THREAD):
        assert "authz" not in f"{kept.checkpoint['channel_values']}{kept.metadata}{kept.config}".lower()


_KEYS: dict[str, str] = {"reader": "key of reader", "payer": "key of payer"}


def _banking(used: list[Any]) -> BaseTool:
    @profile(effect="pay", sink="external", audience=("https://bank.example",))
    @tool
    def transfer(amount: int) -> str:
        """Transfer money."""
        claims = current_call().credential().claims
        used.append((claims["sub"], claims["act"]["sub"]))
        return "ok"

    return transfer


def test_caller_chooses_no_key(go: Any, pdp: Any) -> None:
    """Tenuo 0.3.3, `KeyRegistry`: one registry a process, and `configurable["tenuo_key_id"]` says whose key signs."""
    used: list[Any] = []
    forged = {
        "configurable": {
            "thread_id": "t", "tenuo_key_id": "payer", "subject": "bob", "user_id": "bob", "__authz": "payer",
            "langgraph_auth_user": {"identity": "bob"},
        },
        "metadata": {"lc_agent_name": "payer"},
    }  # fmt: skip

    def sign(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        used.append(_KEYS[config["configurable"]["tenuo_key_id"]])
        return {}

    sync(node_graph(sign, name="reader"), human(), forged)
    assert used == ["key of payer"]

    used.clear()
    authz = authz_with(pdp, profiles={})
    plan = [call("transfer", {"amount": 1}, "call-1")]
    enforced(hand_written(replying(plan), [_banking(used)], name="reader"), authz, go=go, config=forged)
    assert {(r.subject.id, tuple(r.context.agent.path)) for r in pdp.requests} == {("alice", ("reader",))}
    assert len(used) == 1
    assert used[0][0] == "alice"
    assert used[0][1].endswith("reader")


def test_second_user_of_a_thread_gets_nobody_elses_credential(go: Any) -> None:
    """Auth0 1.0.1: a token is kept by thread or agent, so the next user of the thread acts with the first one's."""
    kept: dict[str, str] = {}
    used: list[Any] = []

    def act(user: str) -> None:
        used.append(kept.setdefault("thread t", user))

    act("alice")
    act("bob")
    assert used == ["alice", "alice"]

    used.clear()
    authz = authz_with(StaticPDP(True), profiles={})
    plan = [call("transfer", {"amount": 1}, "call-1")]
    graph = authz.protect(hand_written(replying(plan), [_banking(used)], checkpointer=InMemorySaver()))
    for user, thread in (("alice", "t"), ("bob", "u")):
        told(authz, graph, human(), {"configurable": {"thread_id": thread}}, go=go, subject=user, task="x")
    with authz.run(subject="bob", task="x"), pytest.raises(AuthzDenied):
        go(graph, human(), THREAD)
    assert [sub for sub, _ in used] == ["alice", "bob"]


def test_actor_claim_is_verified() -> None:
    """Parapet 0.17.0, `token_identity`: it reads `act` out of a token whose signature nobody checked."""
    real, forger = LocalIssuer(), LocalIssuer()
    audience = "https://bank.example"
    now = int(time.time())
    request = TokenRequest(
        subject=Subject(type="user", id="alice"), tenant="acme", agent="urn:admin", delegators=(), audience=audience,
        txn="run", task=Task(id="t", epoch=1, digest="sha256:00"), tool="pay", grant=None, jti="j",
        issued_at=now, expires_at=now + 60,
    )  # fmt: skip
    token = mint(forger, request).token
    assert jwt.decode(token, options={"verify_signature": False})["act"]["sub"] == "urn:admin"
    with pytest.raises(CredentialError):
        Verifier(issuer=real.issuer, jwks=real.jwks).verify(token, audience=audience)


_user: ContextVar[str] = ContextVar("user", default="nobody")


def test_user_of_an_interleaved_stream(pdp: Any, authz: Any) -> None:
    """Parapet 0.17.0 keeps the user in a ContextVar: of two streams read in turn, one acts as the other's user."""

    def stepping(seen: list[Any], who: Callable[[], Any]) -> Any:
        builder = StateGraph(MessagesState)
        for name in ("one", "two"):
            builder.add_node(name, lambda s: seen.append(who()) or {"messages": [AIMessage(s["messages"][0].text)]})
        builder.add_edge(START, "one")
        builder.add_edge("one", "two")
        return builder.compile(name="stepping")

    def streaming(graph: Any, user: str) -> Any:
        _user.set(user)
        yield from graph.stream(human(user))

    seen: list[Any] = []
    graph = stepping(seen, _user.get)
    for _ in zip(streaming(graph, "alice"), streaming(graph, "bob"), strict=True):
        pass
    assert seen != ["alice", "bob", "alice", "bob"]

    graph = authz.protect(stepping(seen, lambda: None))

    def running(user: str) -> Any:
        with authz.run(subject=user, task="x"):
            yield from graph.stream(human(user))

    for _ in zip(running("alice"), running("bob"), strict=True):
        pass
    entered = [(r.subject.id, r.resource.id) for r in pdp.requests if r.action.name == "node/enter"]
    assert sorted(entered) == [("alice", "one"), ("alice", "two"), ("bob", "one"), ("bob", "two")]


# --- approvals --------------------------------------------------------------------------------------


class _JumpBack(AgentMiddleware):
    """Sends the run to the tools whenever calls are left."""

    @hook_config(can_jump_to=["tools"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return {"jump_to": "tools"} if last.tool_calls else None


def test_rejected_call_does_not_run_by_a_jump(go: Any, ran: Any) -> None:
    """LangChain 1.5.2, `HumanInTheLoopMiddleware`: reject and a `jump_to="tools"` execute the call (langchain#40491)."""
    hitl = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    graph = agent_graph(
        replying([PAY]), [pay_tool(ran)], middleware=[_JumpBack(), hitl], checkpointer=InMemorySaver()
    )
    graph.invoke(human(), THREAD)
    graph.invoke(Command(resume={"decisions": [{"type": "reject", "message": "no"}]}), THREAD)
    assert ran == [PAID]

    ran.clear()
    authz = authz_with(asking("pay"))
    graph = authz.protect(
        agent_graph(replying([PAY]), [pay_tool(ran)], middleware=[_JumpBack()], checkpointer=InMemorySaver())
    )
    with authz.run(subject="alice", task="x"):
        assert go(graph, human(), THREAD)["__interrupt__"]
        go(graph, Command(resume={"decisions": [{"type": "reject", "message": "no"}]}), THREAD)
    assert ran == []
    assert reasons(authz, "pay")[-1] == "approval_rejected"


def test_approval_is_for_the_arguments_that_were_shown(go: Any, ran: Any) -> None:
    """LangGraph 1.2.24: an interrupt's id ignores its payload, so the answer to 5 is taken for 82000 (langgraph#8026)."""

    def asked(ran: Ran) -> BaseTool:
        @tool
        def pay(amount: int) -> str:
            """Pay when a human says so."""
            if interrupt({"amount": amount}) == "yes":
                ran.append(amount)
            return "done"

        return pay

    def rewrite(graph: Any, message: Any) -> None:
        larger = call("pay", {"amount": 82000}, "call-1")
        graph.update_state(THREAD, {"messages": [AIMessage("", id=message.id, tool_calls=[larger])]}, as_node="agent")

    plan = [call("pay", {"amount": 5}, "call-1")]
    graph = hand_written(replying(plan), [asked(ran)], checkpointer=InMemorySaver())
    state = sync(graph, human(), THREAD)
    rewrite(graph, state["messages"][-1])
    sync(graph, Command(resume="yes"), THREAD)
    assert ran == [82000]

    ran.clear()

    @tool
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "done"

    authz = authz_with(asking("pay"), profiles={"pay": ToolProfile(effect="pay", sink="external")})
    graph = authz.protect(hand_written(replying(plan), [pay], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        state = go(graph, human(), THREAD)
        rewrite(graph, state["messages"][-1])
        go(graph, Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert ran == []


def test_approval_is_spent_once(go: Any, ran: Any) -> None:
    """LangGraph 1.2.24: a consumed answer is replayed when the run goes on from the old checkpoint (langgraph#8837)."""

    def asked(ran: Ran) -> BaseTool:
        @tool("pay")
        def pay() -> str:
            """Pay when a human says so."""
            if interrupt("pay?") == "yes":
                ran.append("paid")
            return "done"

        return pay

    def again(graph: Any, answer: Any, go: Any) -> None:
        go(graph, human(), THREAD)
        before = graph.get_state(THREAD).config
        go(graph, Command(resume=answer), THREAD)
        for given in (None, Command(resume=answer)):
            go(graph, given, before)

    plan = [call("pay", {}, "call-1")]
    again(hand_written(replying(plan), [asked(ran)], checkpointer=InMemorySaver()), "yes", sync)
    assert len(ran) > 1

    ran.clear()

    @tool("pay")
    def pay() -> str:
        """Pay."""
        ran.append("paid")
        return "done"

    authz = authz_with(asking("pay"), profiles={"pay": ToolProfile(effect="pay", sink="external")})
    graph = authz.protect(hand_written(replying(plan), [pay], checkpointer=InMemorySaver()))
    with authz.run(subject="alice", task="x"):
        again(graph, {"decisions": [{"type": "approve"}]}, go)
    assert ran == ["paid"]


def test_edit_to_another_tool_is_decided_as_that_tool(go: Any, ran: Any) -> None:
    """LangChain 1.5.2: a reviewer's edit to another tool passes a PEP listed before HITL (langchain#40166)."""
    edited = {"type": "edit", "edited_action": {"name": "write", "args": {"text": "edited"}}}

    class Pep(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["name"] == "write":
                return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")
            return handler(request)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["name"] == "write":
                return ToolMessage(DENIED, tool_call_id=request.tool_call["id"], status="error")
            return await handler(request)

    def built(*before: AgentMiddleware) -> Any:
        hitl = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
        tools = [pay_tool(ran), writing_tool(ran)]
        return agent_graph(replying([PAY]), tools, middleware=[*before, hitl], checkpointer=InMemorySaver())

    graph = built(Pep())
    go(graph, human(), THREAD)
    go(graph, Command(resume={"decisions": [edited]}), THREAD)
    assert ran == [("write", "edited")]

    ran.clear()
    authz, _ = denying("write")
    graph = authz.protect(built())
    with authz.run(subject="alice", task="x"):
        go(graph, human(), THREAD)
        go(graph, Command(resume={"decisions": [edited]}), THREAD)
    assert ran == []


# --- what an operator sees --------------------------------------------------------------------------


def test_spans_of_tools_are_in_the_trace_of_their_run(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parapet 0.17.0: a span opened in one node is not current in the next, so its tool spans are roots."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("peer")

    def open_span(state: MessagesState) -> dict[str, Any]:
        otel_context.attach(trace.set_span_in_context(tracer.start_span("run")))
        return {}

    def use_tool(state: MessagesState) -> dict[str, Any]:
        tracer.start_span("execute_tool").end()
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("open", open_span)
    builder.add_node("tools", use_tool)
    builder.add_edge(START, "open")
    builder.add_edge("open", "tools")
    builder.compile().invoke(human())
    (lost,) = exporter.get_finished_spans()
    assert lost.parent is None

    exporter.clear()
    monkeypatch.setattr(telemetry, "_tracer", tracer)
    with tracer.start_as_current_span("request") as request:
        enforced(hand_written(replying([PAY]), [pay_tool([])]), authz_with(StaticPDP(True)), go=go)
    spans = [s for s in exporter.get_finished_spans() if s.name.startswith(("execute_tool", "authorize"))]
    assert {s.name.split()[0] for s in spans} == {"execute_tool", "authorize"}
    assert {s.context.trace_id for s in spans} == {request.get_span_context().trace_id}

