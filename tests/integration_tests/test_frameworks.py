"""Supervisor, swarm and deepagents: their tools are gated, their edges recorded, their hand-offs not asked."""

import warnings
from types import SimpleNamespace

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.cli.graph_target import tools_of
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.unit_tests.langgraph.test_void_calls import done_and_answered

ran: list[tuple[str, float]] = []


@pytest.fixture(autouse=True)
def _clean():
    ran.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@tool
def pay(to: str, amount: float) -> str:
    """Pay somebody."""
    ran.append((to, amount))
    return "paid"


def call(name, args, ident):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": ident, "type": "tool_call"}])


PAY = ("pay", {"to": "bob", "amount": "5"}, "p1")


def deepagents():
    from deepagents import create_deep_agent

    task = call("task", {"description": "pay bob", "subagent_type": "payer"}, "t1")
    model = ScriptedChatModel(script=[task, call(*PAY), AIMessage("child done"), AIMessage("done")])
    child = {"name": "payer", "description": "pays", "system_prompt": "x", "tools": [pay]}
    return create_deep_agent(model=model, tools=[pay], subagents=[child])


def supervisor():
    from langgraph.prebuilt import create_react_agent
    from langgraph_supervisor import create_supervisor

    child = create_react_agent(ScriptedChatModel(script=[call(*PAY), AIMessage("child done")]), [pay], name="payer")
    model = ScriptedChatModel(script=[call("transfer_to_payer", {}, "h1"), AIMessage("done")])
    return create_supervisor([child], model=model).compile()


def swarm():
    from langgraph.prebuilt import create_react_agent
    from langgraph_swarm import create_handoff_tool, create_swarm

    front = ScriptedChatModel(script=[call("transfer_to_payer", {}, "h1")])
    payer = ScriptedChatModel(script=[call(*PAY), AIMessage("done")])
    agents = [
        create_react_agent(front, [create_handoff_tool(agent_name="payer")], name="front"),
        create_react_agent(payer, [pay], name="payer"),
    ]
    return create_swarm(agents, default_active_agent="front").compile()


GRAPHS = [deepagents, supervisor, swarm]


async def play(graph, mode):
    given = {"messages": [("user", "Pay bob")]}
    return graph.invoke(given) if mode == "sync" else await graph.ainvoke(given)


@pytest.mark.parametrize("build", GRAPHS)
def test_hand_overs_are_not_asked_about_and_children_hold_their_own_lease(build):
    """Under the shipped policy a hand-over is permitted; root and child act under different jtis."""
    pdp = StaticPDP(permit=True)
    authz = RuntimeAuthz(pdp=pdp)
    graph = authz.protect(build())
    with authz.run(subject="alice", task="Pay bob"):
        graph.invoke({"messages": [("user", "Pay bob")]})
    first = next(r for r in pdp.requests if r.resource.id in ("task", "transfer_to_payer"))
    assert first.resource.properties["profiled"] is True and first.resource.properties["effect"] == "read"
    jtis = {tuple(r.context.agent.path): r.context.lease.jti for r in pdp.requests if r.action.name == "tools/call"}
    assert len(set(jtis.values())) == len(jtis) > 1
    assert {authz.ledger.status("default", j) for j in jtis.values()} == {"ended"}


@pytest.mark.parametrize("build", GRAPHS)
def test_coverage_reaches_every_agent(build):
    """Every tool that can run is guarded, in agents that only closures hold too."""
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
    report = authz.coverage(authz.protect(build()))
    report.raise_if_ungoverned()
    agents = {r.name for r in report.rows if r.kind in ("entry", "agent")}
    assert "payer" in agents
    assert all("tool guard" in r.layers for r in report.rows if r.kind == "tool")


def test_each_deep_agent_has_a_task_tool_of_its_own():
    """Each describes the agents that it knows, and the profile of the ready set is for all of them."""
    from deepagents import create_deep_agent

    inner = {"name": "inner", "description": "runs deeper", "runnable": deepagents()}
    graph = create_deep_agent(model=ScriptedChatModel(script=[]), tools=[], subagents=[inner])
    authz = RuntimeAuthz(profiles="deepagents", pdp=StaticPDP(permit=True))
    tasks = [each for each in tools_of(authz.protect(graph)) if each.name == "task"]
    assert len({each.description for each in tasks}) == 2
    assert all(authz.profiles.of(each).declared for each in tasks)


class FakeServer:
    """What the LangGraph SDK's client would send to a server of agents."""

    def __init__(self, monkeypatch):
        self.sent = []
        module = "deepagents.middleware.async_subagents"
        monkeypatch.setattr(f"{module}.get_sync_client", lambda **_: self._client(self._create))
        monkeypatch.setattr(f"{module}.get_client", lambda **_: self._client(self._acreate))

    @staticmethod
    def _client(create):
        part = SimpleNamespace(create=create)
        return SimpleNamespace(threads=part, runs=part)

    def _create(self, **said):
        self.sent += [said["input"]] if "input" in said else []
        return {"thread_id": "far-1", "run_id": "r1"}

    async def _acreate(self, **said):
        return self._create(**said)


def delegating():
    from deepagents import create_deep_agent

    start = call("start_async_task", {"description": "pay eve", "subagent_type": "far"}, "a1")
    far = {"name": "far", "description": "pays", "graph_id": "payer", "url": "https://far.example"}
    return create_deep_agent(model=ScriptedChatModel(script=[start, AIMessage("done")]), tools=[], subagents=[far])


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_the_unenforced_twin_starts_an_agent_elsewhere(mode, monkeypatch):
    """Without protection the work goes out to the server."""
    server = FakeServer(monkeypatch)
    await play(delegating(), mode)
    assert server.sent == [{"messages": [{"role": "user", "content": "pay eve"}]}]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_an_async_sub_agent_is_started_by_a_decided_call(mode, monkeypatch):
    """No hand-over within the process: an unprofiled tool, which the shipped policy asks about. Denied, nothing goes out."""
    server = FakeServer(monkeypatch)
    pdp = StaticPDP(lambda r: r.resource.id != "start_async_task")
    authz = RuntimeAuthz(pdp=pdp)
    graph = authz.protect(delegating())
    with authz.run(subject="alice", task="Pay bob"):
        out = await play(graph, mode)
    assert server.sent == [] and out["messages"][-1].content == "done"
    (asked,) = [r for r in pdp.requests if r.resource.id == "start_async_task"]
    assert asked.resource.properties["profiled"] is False
    assert asked.context.call.args == {"description": "pay eve", "subagent_type": "far"}


def test_coverage_names_an_agent_elsewhere():
    """Beside each tool that reaches it: what it does there is not seen."""
    authz = RuntimeAuthz(pdp=StaticPDP(permit=True))
    rows = [r for r in authz.coverage(authz.protect(delegating())).rows if r.kind == "remote graph"]
    assert {(r.name, r.governed) for r in rows} == {("far", False)}
    assert "tools/start_async_task" in {r.route for r in rows}


def test_deepagents_marks_its_notices_as_we_know_them():
    """`langgraph/messages.py` goes by the mark: they stand in the user's role and no human wrote them."""
    from deepagents.middleware.async_subagents import _notification_message
    from langchain_core.messages import HumanMessage, convert_to_messages

    from langchain_runtime_authz.langgraph.messages import is_human

    update = {"task_id": "t", "agent_name": "far", "status": "success", "result": [{"type": "text", "text": "x"}]}
    (notice,) = convert_to_messages([_notification_message(update)])
    assert isinstance(notice, HumanMessage) and not is_human(notice)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_call_of_a_deep_agent_that_was_done_is_answered_with_its_result(how):
    """Its own patch of open calls would tell the model that the payment did not complete."""
    from deepagents import create_deep_agent

    done_and_answered(lambda model, tools, **kwargs: create_deep_agent(model=model, tools=tools, **kwargs), how)
