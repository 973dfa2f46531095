"""Many instances and copies: whatever is shared, copied or forked, one decision per call and none lost."""

import copy
import os

from langgraph.errors import InvalidUpdateError

from langchain_runtime_authz._locks import cached_property
from langchain_runtime_authz.audit.chain import verify_chain
from langchain_runtime_authz.errors import AlreadyProtected
from langchain_runtime_authz.langgraph.protect import owner_of

from ._kit import *

FORMS = ("invoke", "ainvoke")


def child(ran: list[Any], **options: Any) -> Any:
    return hand_written(replying([PAY, READ]), [pay_tool(ran), read_tool(ran)], name="child", **options)


def decided_once(authz: RuntimeAuthz, pdp: StaticPDP, graph: Any, ran: list[Any], form: str) -> None:
    """One run of the graph: each of its two calls is decided once, the denied one does not run, the other does."""
    before, asked = len(ran), len(calls_of(pdp))
    with authz.run(subject="alice", task="Pay the bill"):
        (state,) = drive_form(form, graph, human())
    assert_went_on(state)
    assert ran[before:] == [("read", "a")]
    assert sorted(r.resource.id for r in calls_of(pdp)[asked:]) == ["pay", "read"]


@pytest.mark.parametrize("form", FORMS)
def test_shared_child_under_two_roots(form: str, ran: Any) -> None:
    """A child that two protected roots and nobody share is decided once a call, by whichever road it is entered."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    shared = child(ran)
    one = authz.protect(node_graph(shared, name="one"))
    two = authz.protect(node_graph(lambda state: shared.invoke(state), name="two"))
    for graph in (one, two, shared, one):
        decided_once(authz, pdp, graph, ran, form)
    roots = [r.context.agent.path for r in calls_of(pdp) if r.context.agent is not None]
    assert {tuple(p) for p in roots} == {("one", "child"), ("two", "child"), ("child",)}


def test_shared_child_of_two_instances_is_refused(ran: Any) -> None:
    """The second instance is refused for the whole graph, of which nothing is changed by it."""
    mine, other = authz_with(deny_only("pay")), authz_with(StaticPDP(True))
    shared = child(ran)
    mine.protect(node_graph(shared, name="one"))
    second = node_graph(shared, name="two")
    bounds = {name: node.bound for name, node in second.nodes.items()}
    with pytest.raises(AlreadyProtected):
        other.protect(second)
    assert owner_of(second) is None
    assert {name: node.bound for name, node in second.nodes.items()} == bounds
    with pytest.raises(AlreadyProtected, match="tool `pay`"):
        other.guard(list(shared.nodes["tools"].bound.tools_by_name.values()))


def test_a_run_of_another_instance_opens_no_graph(ran: Any) -> None:
    """The other's subject, grant and policy are not those of the graph's instance."""
    mine, other = authz_with(StaticPDP(True)), authz_with(StaticPDP(True))
    graph = mine.protect(child(ran))
    assert code_of(lambda: told(other, graph, human()), ConfigError) == "config" and ran == []


@pytest.mark.parametrize("protected", [True, False])
def test_a_tool_that_is_added_to_a_protected_node_is_decided(protected: bool, ran: Any) -> None:
    """The node's tools are a mapping that code may change at any time."""
    graph = hand_written(replying([PAY]), [read_tool(ran)])
    authz = authz_with(deny_only("pay"))
    if protected:
        authz.protect(graph)
    graph.nodes["tools"].bound.tools_by_name["pay"] = pay_tool(ran)
    told(authz, graph, human())
    assert ran == ([] if protected else [PAID])


COPIES = {
    "copy": lambda g: g.copy(), "copy of a copy": lambda g: g.copy().copy({"name": "other"}),
    "with_config": lambda g: g.with_config(tags=["x"]),
    "with_config twice": lambda g: g.with_config(tags=["x"]).with_config(run_name="y"), "bind": lambda g: g.bind(),
    "in a sequence": lambda g: (lambda x: x) | g, "with_retry": lambda g: g.with_retry(stop_after_attempt=2),
    "with_fallbacks": lambda g: g.with_fallbacks([g]),
}


def _first(graph: Any) -> Any:
    return graph


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", list(COPIES))
@pytest.mark.parametrize("nested", [False, True])
def test_copies_of_a_protected_graph(how: str, nested: bool, form: str, ran: Any) -> None:
    """A copy of a protected graph is protected, by the same gates and not by two of each."""
    from langchain_core.runnables import RunnableLambda

    pdp = deny_only("pay")
    authz, graph = protecting(node_graph(child(ran)) if nested else child(ran), pdp)
    copied = RunnableLambda(_first) | graph if how == "in a sequence" else COPIES[how](graph)
    decided_once(authz, pdp, copied, ran, form)
    decided_once(authz, pdp, graph, ran, form)
    if type(copied) is type(graph):
        authz.protect(copied)
        decided_once(authz, pdp, copied, ran, form)


@pytest.mark.parametrize("form", FORMS)
def test_copy_made_before_protect(form: str, ran: Any) -> None:
    """A copy shares its nodes' runnables only: each of the two is protected when it is, and not before."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    graph = child(ran)
    copied = graph.copy()
    authz.protect(graph)
    decided_once(authz, pdp, graph, ran, form)
    authz.protect(copied)
    decided_once(authz, pdp, copied, ran, form)
    decided_once(authz, pdp, graph, ran, form)


def test_a_deep_copy_of_a_protected_graph_is_refused(ran: Any) -> None:
    """LangGraph's own do not run. The error names what stays protected, also where somebody else's object is copied."""
    authz = authz_with(deny_only("pay"))
    with pytest.raises(InvalidUpdateError):
        copy.deepcopy(child(ran)).invoke(human())
    graph = authz.protect(node_graph(child(ran), name="bank"))
    for held in (graph, [graph], graph.with_config(tags=["x"]), node_graph(graph)):
        with pytest.raises(ConfigError, match=r"`bank`.*graph\.copy\(\)") as refused:
            copy.deepcopy(held)
        assert refused.value.code == "deep_copy"
    assert ran == []


@pytest.mark.parametrize("form", FORMS)
def test_a_deep_copy_of_a_part_is_governed(form: str, ran: Any) -> None:
    """A builder, a tool node, a guarded tool: the copy is of the same instance and decides like what it was copied from."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    tools = [pay_tool(ran), read_tool(ran)]
    builder = authz.protect(hand_written(replying([PAY, READ]), tools).builder)
    node = AuthzToolNode(tools, authz=authz)
    gated = authz.protect(hand_written(replying([PAY, READ]), tools))
    gated.nodes["tools"].bound = copy.deepcopy(gated.nodes["tools"].bound)
    for graph in (
        copy.deepcopy(builder).compile(), authz.protect(hand_written(replying([PAY, READ]), copy.deepcopy(node))),
        authz.protect(hand_written(replying([PAY, READ]), copy.deepcopy(authz.guard(tools)))), gated,
    ):
        decided_once(authz, pdp, graph, ran, form)


@pytest.mark.parametrize("form", FORMS)
def test_protecting_again_changes_nothing(form: str, ran: Any) -> None:
    """Root, child and builder protected over and over, in any order: the same objects, one decision a call."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    inner = child(ran)
    outer = node_graph(inner)
    for graph in (inner, outer, inner, outer.copy(), outer):
        authz.protect(graph)
    before = [(id(n.bound), type(n.bound)) for g in (inner, outer) for n in g.nodes.values()], type(inner), type(outer)
    assert authz.protect(outer) is outer
    after = [(id(n.bound), type(n.bound)) for g in (inner, outer) for n in g.nodes.values()], type(inner), type(outer)
    assert before == after
    decided_once(authz, pdp, outer, ran, form)
    decided_once(authz, pdp, inner, ran, form)


def test_builder_protected_twice_and_compiled_twice(ran: Any) -> None:
    """Every graph of a protected builder is protected; protecting the builder or its graphs again adds nothing."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    inner = child(ran)
    builder = node_graph(inner).builder
    assert authz.protect(authz.protect(builder)) is builder
    with pytest.raises(AlreadyProtected):
        authz_with(pdp).protect(builder)
    for graph in (builder.compile(), authz.protect(builder.compile())):
        decided_once(authz, pdp, graph, ran, "invoke")


@pytest.mark.parametrize("form", FORMS)
def test_guarding_again_changes_nothing(form: str, ran: Any) -> None:
    """Guarded tools guarded again, copied, and put into protected graphs: one guard, one decision."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    tools = authz.guard(authz.guard([pay_tool(ran), read_tool(ran)]))
    assert authz.guard(tools[0]) is tools[0]
    graph = authz.protect(agent_graph(replying([PAY, READ]), [t.model_copy() for t in tools]))
    decided_once(authz, pdp, graph, ran, form)
    with pytest.raises(AlreadyProtected):
        authz_with(pdp).guard(tools)


@pytest.mark.parametrize("form", FORMS)
def test_two_instances_side_by_side(form: str, ran: Any) -> None:
    """Two instances with graphs of their own decide their own calls, also when one's run calls the other's graph."""
    pdps = [deny_only("pay"), deny_only("read")]
    first, second = (authz_with(pdp) for pdp in pdps)
    one, two = first.protect(child(ran)), second.protect(child(ran))
    with first.run(subject="alice"):
        drive_form(form, one, human())
    with second.run(subject="bob"):
        drive_form(form, two, human())
    assert ran == [("read", "a"), PAID]
    assert [{r.subject.id for r in calls_of(pdp)} for pdp in pdps] == [{"alice"}, {"bob"}]
    assert [len(calls_of(pdp)) for pdp in pdps] == [2, 2]


def default_graph(ran: list[Any], audit: Any = None) -> tuple[RuntimeAuthz, Any]:
    """With the shipped policy in its engine, which permits the read and denies the payment (nobody can be asked)."""
    authz = RuntimeAuthz(profiles=PROFILES, audit=audit)
    return authz, authz.protect(child(ran))


def run_default(authz: RuntimeAuthz, graph: Any, ran: list[Any]) -> dict[str, Any]:
    before = len(ran)
    state = told(authz, graph, human(), task="Pay the bill")
    report = authz.coverage(graph)
    return {
        "ran": [r[0] for r in ran[before:]], "done": isinstance(state["messages"][-1], AIMessage),
        "statuses": [m.status for m in state["messages"] if m.type == "tool"],
        "seen": {r.name: list(r.seen) for r in report.rows if r.kind == "tool"},
    }


EXPECTED = {"ran": ["read"], "done": True, "statuses": ["error", "success"]}


def forked(work: Any) -> Any:
    """The JSON of what a forked child computes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    timer = threading.Timer(60, os.kill, (pid, 9))
    timer.start()
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    assert status == 0, "the child hung or failed"
    return json.loads(text)


needs_fork = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


@needs_fork
def test_fork_after_load(tmp_path: Path, ran: Any) -> None:
    """Parent and forked children decide with the engine, keys and ledger loaded before; one audit chain holds all."""
    authz, graph = default_graph(ran, tmp_path / "audit.jsonl")
    first = run_default(authz, graph, ran)
    assert first == {**EXPECTED, "seen": {"pay": [1, 0], "read": [1, 1]}}
    for _ in range(2):
        inherited = forked(lambda: run_default(authz, graph, ran))
        assert inherited == {**EXPECTED, "seen": {"pay": [2, 0], "read": [2, 2]}}
    second = run_default(authz, graph, ran)
    assert second == {**EXPECTED, "seen": {"pay": [2, 0], "read": [2, 2]}}
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    decisions = [r for r in map(json.loads, lines) if r["kind"] == "decision" and r["resource"] in ("pay", "read")]
    assert len(decisions) == 8
    verify_chain(tmp_path / "audit.jsonl")


@needs_fork
def test_fork_within_a_run(ran: Any) -> None:
    """A child that is forked inside a run decides its calls under that run's subject."""
    pdp = deny_only("pay")
    authz, graph = protecting(child(ran), pdp)

    def work() -> Any:
        graph.invoke(human())
        return [[r[0] for r in ran], sorted({r.subject.id for r in calls_of(pdp)}), len(calls_of(pdp))]

    with authz.run(subject="alice"):
        assert forked(work) == [["read"], ["alice"], 2] and work() == [["read"], ["alice"], 2]


def test_no_object_waits_for_what_another_computes() -> None:
    """A thread that computes something at the fork is gone in the child, and what it held is held for ever."""
    begun, goes_on = threading.Event(), threading.Event()

    class Slow:
        @cached_property
        def value(self) -> int:
            begun.set()
            assert goes_on.wait(60)
            return 1

    one, other = Slow(), Slow()
    thread = threading.Thread(target=lambda: one.value)
    thread.start()
    begun.wait(60)
    also = threading.Thread(target=lambda: other.value)
    begun.clear()
    also.start()
    assert begun.wait(60)  # though the first one still computes
    goes_on.set()
    thread.join()
    also.join()


@needs_fork
def test_fork_while_other_threads_decide(ran: Any) -> None:
    """A fork in the midst of other threads' decisions inherits no lock that nobody releases."""
    authz, graph = default_graph(ran)
    stop = threading.Event()

    def decide() -> None:
        own = authz.protect(child([]))
        for _ in range(10):
            with authz.run(subject="bob"):
                own.invoke(human())

    def busy() -> None:
        while not stop.is_set():
            decide()

    for first in (decide, lambda: run_default(authz, graph, ran)):
        first()  # LangChain imports and computes at its first call, and a child would wait for Python's locks of that
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            outcome = forked(lambda: run_default(authz, graph, ran))
            assert {k: outcome[k] for k in EXPECTED} == EXPECTED
    finally:
        stop.set()
        for thread in threads:
            thread.join()
