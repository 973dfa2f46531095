"""ASI08 Cascading Failures: one agent's fault that runs on: without end, ever deeper, over a control that is down.

On the shipped policy, with small budgets where the shipped ones would take long.
"""

from ._kit import *
from ._scenario import first_reasons, play

PROFILES = {
    "poll": ToolProfile(effect="read", sink="none", data_class="public", trust="system"),
    "ask": ToolProfile(effect="read", sink="none", data_class="public", trust="system"),
}
LOOP = [[call("poll", {"n": n}, f"c{n}")] for n in range(9)]


def poll_tool(ran: list[Any]) -> BaseTool:
    return a_tool("poll", lambda n: [ran.append(n), "not yet"][1], n=int)


def test_a_loop_ends_with_its_budget(form: str, ran: Any) -> None:
    """Steps of one entry are counted: `step_budget`."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data={"anomaly": {"max_steps": 4}}))
    play(form, [poll_tool(ran)], *LOOP, authz=authz, text="Poll")
    assert 0 < len(ran) < len(LOOP)
    assert "step_budget" in first_reasons(authz, "poll")[0]


def test_a_burst_revokes_the_thread(form: str, ran: Any) -> None:
    """More calls in a minute than a minute bears: `burst`, and from then on nothing at all."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data={"anomaly": {"max_per_minute": 4}}))
    with pytest.raises(Exception, match="not permitted"):
        play(form, [poll_tool(ran)], *LOOP, authz=authz, text="Poll")
    assert ran == [0, 1, 2, 3] and first_reasons(authz, "poll")[0][0] == "burst"


def test_unenforced_a_loop_goes_on(form: str, ran: Any) -> None:
    play(form, [poll_tool(ran)], *LOOP)
    assert ran == list(range(9))


def nested(levels: int, ran: list[Any]) -> Any:
    """An agent that asks an agent that asks an agent, and the last one polls."""
    graph = agent_graph(replying([call("poll", {"n": levels}, "c1")]), [poll_tool(ran)], name=f"agent-{levels}")
    for level in reversed(range(levels)):

        def ask(inner: Any = graph) -> str:
            inner.invoke(human("Poll"))
            return "asked"

        async def aask(inner: Any = graph) -> str:
            await inner.ainvoke(human("Poll"))
            return "asked"

        asking = _tool(ask, aask)
        graph = agent_graph(replying([call("ask", {}, "c1")]), [asking], name=f"agent-{level}")
    return graph


def _tool(ask: Any, aask: Any) -> BaseTool:
    from langchain_core.tools import StructuredTool
    from pydantic import BaseModel

    return StructuredTool.from_function(lambda: ask(), coroutine=lambda: aask(), name="ask", description="Ask.", args_schema=type("No", (BaseModel,), {}))


@pytest.mark.parametrize("levels", [2, 3])
def test_delegation_has_an_end(form: str, levels: int, ran: Any) -> None:
    """Two below the root may work, the third may not: `too_deep`."""
    authz = RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data={"anomaly": {"max_depth": 3}}))
    graph = authz.protect(nested(levels, ran))
    with authz.run(subject="alice", task="Poll"):
        drive_form(form, graph, human("Poll"))
    assert ran == ([levels] if levels == 2 else [])
    found = [r["reasons"] for r in authz.audit.records if r["kind"] == "decision" and r["outcome"] != "permit"]  # type: ignore[attr-defined]
    assert any("too_deep" in r for r in found) is (levels == 3)


def test_unenforced_delegation_has_no_end(form: str, ran: Any) -> None:
    drive_form(form, nested(3, ran), human("Poll"))
    assert ran == [3]


def test_a_control_that_fails_permits_nothing(form: str, ran: Any) -> None:
    """An engine that breaks in the middle of a run denies from there on; the run itself ends in order."""

    def answer(request: Any) -> bool:
        if request.action.name == "tools/call" and request.context.call.args["n"] > 1:
            raise ConnectionError
        return True

    authz = RuntimeAuthz(pdp=StaticPDP(answer), profiles=PROFILES)
    state = play(form, [poll_tool(ran)], *LOOP[:4], authz=authz, text="Poll")
    assert ran == [0, 1] and first_reasons(authz, "poll") == [["pdp_error"]] * 2
    assert state["messages"][-1].content == "done"
