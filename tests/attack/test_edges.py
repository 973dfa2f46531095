"""Every kind of delegation edge: decided and recorded before the child acts, under a grant that only shrinks.

A denied edge never starts the child. The token of one side is refused for a call of the other.
"""

from langchain_runtime_authz.credential.authorization_details import check_call
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.grant import Constraint
from langchain_runtime_authz.ledger.changes import Revoke

from ._kit import *
from .edges import KINDS, payer, subgraph

build, how = params(*KINDS, ids=[k.__name__ for k in KINDS]), params("sync", "async")
SERVICE = "https://bank.example"


def play(build: Any, pdp: Any = None, *, how: str = "sync", tools: Any = (), **options: Any) -> tuple[Any, Any, Any]:
    edged = build(*tools)
    authz, graph = protecting(edged.graph, pdp or StaticPDP(True), **options)
    with contextlib.suppress(AuthzHalt):
        run_as(authz, graph, {"messages": [("user", "pay bob")]}, THREAD, how=how)
    return authz, edged, authz.pdp


def test_the_edge_is_decided_and_recorded_before_the_childs_first_step(build, how):
    """`agent/invoke` comes before the child's first request; that request shows the edge, and its own lease."""
    authz, edged, pdp = play(build, how=how)
    assert edged.ran == [PAID]
    requests = pdp.requests
    child = next(i for i, r in enumerate(requests) if r.context.agent.path[-1] == "payer")
    invited = [r for r in requests[:child] if r.action.name == "agent/invoke" and r.resource.id == "payer"]
    kind, above = KINDS[build]
    assert {r.resource.properties["kind"] for r in invited} == {kind}
    assert (above, "payer", kind) in [(e.from_, e.to, e.kind) for e in requests[child].context.delegation.edges]
    assert requests[child].context.lease.jti not in {r.context.lease.jti for r in requests[:child]}
    opened = [r for r in authz.audit.records if r.get("event") == "delegated" and r["detail"]["to"] == "payer"]
    assert requests[child].context.lease.jti in [r["detail"].get("jti") for r in opened]


def test_a_denied_edge_never_starts_the_child(build, how):
    """The child's model is not asked and nothing is paid. A tool edge answers its model; any other halts. The twin pays."""
    twin, given = build(), {"messages": [("user", "pay bob")]}
    twin.graph.invoke(given, THREAD) if how == "sync" else asyncio.run(twin.graph.ainvoke(given, THREAD))
    assert twin.ran == [PAID]
    denies = StaticPDP(lambda r: not (r.action.name == "agent/invoke" and r.resource.id == "payer"))
    authz, edged, _ = play(build, denies, how=how)
    assert edged.ran == []
    assert edged.payer.prompts == [] if edged.payer is not edged.parent else True
    if build.__name__ in ("agent_as_tool", "task", "supervisor", "swarm"):
        told_back = edged.parent.prompts[-1][-1]
        assert isinstance(told_back, ToolMessage) and told_back.status == "error"


def test_a_childs_grant_is_its_own_under_its_parents(build, how):
    """An agent's profile limits it under an engine that permits all, and the parent's grant limits it too."""
    agents = {"payer": {"grant": {"tools": ["read"]}}}
    authz, edged, pdp = play(build, how=how, agents=agents)
    assert edged.ran == []
    shown = [r.context.lease.grant for r in pdp.requests if r.context.agent.path[-1] == "payer"]
    assert shown[0] == {"tools": ["read"]}

    edged = build()
    authz, graph = protecting(edged.graph, StaticPDP(True), agents={"payer": {"grant": {"tools": ["pay", "read"]}}})
    limited = Grant(args={"pay": {"amount": Constraint(le=1)}})
    run_as(authz, graph, {"messages": [("user", "pay bob")]}, THREAD, how=how, grant=limited)
    assert edged.ran == []


@pytest.mark.parametrize("default", [True, False], ids=["default role", "twin: none"])
def test_an_agent_that_no_role_names_gets_the_default_role(build, default):
    """`*` limits a child under a name that `agents` does not know. Without it, the child has its parent's grant."""
    agents = {"*": {"grant": {"tools": ["read"]}}} if default else {"renamed": {"grant": {"tools": ["read"]}}}
    agents |= {name: {} for name in ("supervisor", "front")}
    authz, edged, pdp = play(build, agents=agents)
    assert edged.ran == ([] if default else [PAID])
    shown = next(r.context.lease.grant for r in pdp.requests if r.context.agent.path[-1] == "payer")
    assert shown == ({"tools": ["read"]} if default else None)
    assert next(r.context.lease.grant for r in pdp.requests if len(r.context.agent.path) == 1) is None
    unknown = authz.coverage(edged.graph).unknown_agents
    assert ("*" in unknown, "renamed" in unknown) == (False, not default)


@pytest.mark.parametrize("part", [None, ["rent"], []], ids=["twin: no part", "its part", "another's part"])
def test_a_child_spends_its_part_of_the_mandate_unasked(part):
    """What the task orders of another agent asks. Approved, it has spent the step all the same: nobody pays once more."""
    edged = subgraph()
    authz, graph = protecting(edged.graph, WasmPDP(), agents={"payer": {"grant": {"steps": part}}})
    mandate = {"steps": [{"id": "rent", "tool": "pay", "args": {"recipient": "bob", "amount": 5}}], "key": "December"}
    out = told(authz, graph, {"messages": [("user", "pay bob")]}, THREAD, mandate=mandate)
    assert ("__interrupt__" in out) == (part == [])
    if part == []:
        assert edged.ran == []
        told(authz, graph, resume(APPROVE), THREAD, mandate=mandate)
    assert edged.ran == [PAID]
    other = {"configurable": {"thread_id": "t2"}}
    assert "__interrupt__" in told(authz, graph, {"messages": [("user", "pay bob")]}, other, mandate=mandate)
    assert edged.ran == [PAID]


def test_a_revoked_agent_is_not_invoked_again(build):
    """`revoke` of the agent on the thread ends its subtree; the edge to it is refused until it is reinstated."""
    authz, edged, pdp = play(build)
    path = next(r.context.agent.path for r in pdp.requests if r.context.agent.path[-1] == "payer")
    authz.revoke("t", graph="root", agent=path)
    for _ in range(2):
        edged.ran.clear()
        with contextlib.suppress(AuthzHalt, AuthzDenied):
            told(authz, edged.graph, {"messages": [("user", "pay bob again")]}, THREAD)
        assert edged.ran == []


def test_a_token_names_the_child_and_is_good_for_its_call_only(build):
    """`sub` is the user, `act` the child and the agents above it. It is refused for a call of the parent."""
    held: list[Credential] = []

    @tool
    def pay(to: str, amount: float) -> str:
        """Pay somebody."""
        verified = authz.verifier.verify(current_call().credential().token, audience=SERVICE)
        held.append(verified)
        check_call(verified, tool="pay", args={"to": "bob", "amount": 5.0}, accept=None)
        assert code_of(lambda: check_call(verified, tool="ask_agent", args={}, accept=None), CredentialError) == "credential_tool"
        return "paid"

    edged = build(pay)
    profiles = {"pay": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}, audience=(SERVICE,))}
    authz, graph = protecting(edged.graph, StaticPDP(True), profiles=profiles)
    told(authz, graph, {"messages": [("user", "pay bob")]}, THREAD)
    (token,) = held
    assert token.subject == "alice"
    path = [agent.rpartition(":")[2].split("/") for agent in token.actors]
    assert path[0][-1] == "payer" and path[-1] == ["root"]
    assert [len(p) for p in path] == list(range(len(path), 0, -1))
    assert code_of(lambda: authz.verifier.verify(token.token, audience=SERVICE), CredentialError) == "credential_revoked"


def test_the_parents_token_is_refused_in_the_child():
    """A tool that starts an agent has a token of its own. It is not the child's, and is not good for its call."""
    held: list[str] = []

    @tool
    def pay(to: str, amount: float) -> str:
        """Pay somebody with the token of the agent above."""
        verified = authz.verifier.verify(held[0], audience=SERVICE)
        with pytest.raises(CredentialError) as refused:
            check_call(verified, tool="pay", args={"to": to, "amount": amount}, accept=None)
        held.append(refused.value.code)
        held.append(verified.actor)
        return "refused"

    child = hand_written(replying([PAYER_PAY]), [pay], name="payer")

    @tool
    def ask_agent(request: str) -> str:
        """Ask the payer."""
        held.append(current_call().credential().token)
        return str(child.invoke({"messages": [("user", request)]})["messages"][-1].content)

    parent = hand_written(replying([call("ask_agent", {"request": "x"}, "a1")]), [ask_agent], name="root")
    profiles = {"ask_agent": ToolProfile(audience=(SERVICE,)), "pay": ToolProfile(audience=(SERVICE,))}
    authz, graph = protecting(parent, StaticPDP(True), profiles=profiles)
    told(authz, graph, {"messages": [("user", "pay bob")]})
    assert held[1] == "credential_tool" and held[2].endswith(":root")


PAYER_PAY = call("pay", {"to": "bob", "amount": "5"}, "p1")


def test_a_question_of_an_agent_on_its_own_thread_is_told_of(caplog):
    """A tool runs its agent on another thread, so the question cannot come back: coverage and the log say so."""
    ran: list[Any] = []
    child, _ = payer(ran, checkpointer=InMemorySaver())

    @tool
    def ask_agent(request: str) -> str:
        """Ask the payer."""
        return str(child.invoke({"messages": [("user", request)]}, {"configurable": {"thread_id": "own"}}))

    parent = hand_written(replying([call("ask_agent", {"request": "x"}, "a1")]), [ask_agent], checkpointer=InMemorySaver())
    profiles = {"ask_agent": ToolProfile(effect="read", sink="none")}
    authz, graph = protecting(parent, WasmPDP(), profiles=profiles)
    (row,) = [r for r in authz.coverage(graph).rows if r.kind == "tool" and r.name == "ask_agent"]
    assert "`payer` has a checkpointer" in row.note
    out = told(authz, graph, {"messages": [("user", "hello")]}, THREAD)
    assert "__interrupt__" not in out and ran == []
    assert "so its caller gets no answer" in caplog.text


def test_ten_thousand_children_end_at_the_budget():
    """A budget of `agent/invoke` bounds the tree, and every delegation below it spends the same one."""
    authz = authz_with(StaticPDP(True))
    with authz.session(subject="alice", grant=Grant(budgets={"agent/invoke": 50})) as root:
        opened = [root]
        codes = set()
        for i in range(10_000):
            try:
                opened.append(opened[i % min(len(opened), 8)].delegate("worker"))
            except AuthzDenied as denied:
                codes.add(denied.code)
                if i > 200:
                    break
        assert len(opened) == 51 and codes == {"budget_exhausted"}


def test_edges_to_ever_new_names_are_bounded():
    """Without a budget, a thread keeps so many edges and no more."""
    authz = authz_with(StaticPDP(True))
    with authz.session(subject="alice") as root:
        with pytest.raises(AuthzDenied) as denied:
            for i in range(10_000):
                root.delegate(f"worker {i}")
        assert denied.value.code == "too_wide"
        root.delegate("worker 1")  # a known edge is not a new one


def test_a_circle_of_agents_ends():
    """Agents that invoke each other for ever: under any engine the chain ends before no token can hold it."""
    authz = authz_with(StaticPDP(True))
    with authz.session(subject="alice", agent="a") as agent, pytest.raises(AuthzDenied) as denied:
        for i in range(10_000):
            agent = agent.delegate("ab"[i % 2])
    assert denied.value.code == "too_deep" and i == 32


@pytest.mark.parametrize("name", ["root", "root/root", "root%2Froot", "a", ""])
def test_a_child_named_like_its_parent_is_another_agent(name):
    """Another id, another lease; the parent outlives its revocation."""
    authz = authz_with(StaticPDP(True))
    root = authz.session(subject="alice", agent="root", thread="t")
    child, other = root.delegate(name), root.delegate("b")
    inner = child.delegate(name)
    runs = [s._run for s in (root, child, inner, other)]
    assert len({authz.identity.agent_id(r.agent) for r in runs}) == 4
    assert len({r.jti for r in runs}) == 4
    authz.ledger.commit(root._run.scope, None, [Revoke(child._run.agent)])
    verdicts = [s.decide("read", {"path": "x"}).reason for s in (root, child, inner, other)]
    assert verdicts == ["", "revoked", "revoked", ""]


def test_a_misspelt_field_of_an_agent_is_an_error():
    """No agent is left without its limit because a word is wrong."""
    for wrong in ({"payer": {"grants": {}}}, {"payer": {"grant": {"tool": []}}}, {"payer": None}, ["payer"]):
        assert code_of(lambda: RuntimeAuthz(agents=wrong), ConfigError) == "profile_invalid"
