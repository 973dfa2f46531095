"""An argument called `runtime` without a type: ToolNode supplies it, and it is nobody's choice there."""

from ._kit import *

PROFILES = {"probe": ToolProfile(effect="write", sink="internal")}


def _probe(ran: list[Any]) -> Any:
    @tool
    def probe(x: int, runtime: Any) -> str:
        """Act with whatever stands under the name."""
        ran.append((x, runtime))
        return "ok"

    return probe


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("form", ["invoke", "ainvoke"])
@pytest.mark.parametrize("forged", [{}, {"runtime": {"state": "forged"}}], ids=["plain", "forged"])
def test_supplied_runtime_is_no_argument(kind: str, form: str, forged: dict[str, Any], ran: Any, pdp: Any) -> None:
    """The tool runs with this call's own runtime; it is decided once, on what the model chose."""
    authz = authz_with(pdp, profiles=PROFILES)
    model = replying([call("probe", {"x": "1", **forged}, "call-1"), call("probe", {"x": "2", **forged}, "call-2")])
    graph = authz.protect(BUILDERS[kind](model, [_probe(ran)]))
    with authz.run(subject="alice", task="x"):
        (state,) = drive_form(form, graph, human())
    assert sorted((x, type(r), r.tool_call_id) for x, r in ran) == [(1, ToolRuntime, "call-1"), (2, ToolRuntime, "call-2")]
    decided = [r.context.call.args for r in calls_of(pdp)]  # type: ignore[union-attr]
    assert sorted(decided, key=str) == [{"x": 1}, {"x": 2}]
    assert_went_on(state)


@pytest.mark.parametrize("form", ["invoke", "ainvoke"])
def test_chosen_runtime_is_an_argument(form: str, ran: Any) -> None:
    """Where no ToolNode supplies it, what the model wrote under the name is decided like any argument."""
    pdp = StaticPDP(lambda r: r.action.name != "tools/call" or "runtime" not in r.context.call.args)  # type: ignore[union-attr]
    authz = authz_with(pdp, profiles=PROFILES)
    probe = authz.guard(_probe(ran))
    calls = [call("probe", {"x": 1, "runtime": "mine"}, "call-1")]
    graph = authz.protect(node_graph(lambda s: {"messages": [probe.invoke(c) for c in calls]}))
    with authz.run(subject="alice", task="x"):
        (state,) = drive_form(form, graph, human())
    assert ran == []
    assert calls_of(pdp)[0].context.call.args == {"x": 1, "runtime": "mine"}  # type: ignore[union-attr]
    assert answer_to(state["messages"], "call-1").status == "error"
    twin = _probe(ran)
    drive_form(form, node_graph(lambda s: {"messages": [twin.invoke(c) for c in calls]}), human())
    assert ran == [(1, "mine")]
