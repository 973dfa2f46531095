"""A plan waits for the next commit of its thread. Until then, its own process sees it as if it were recorded."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from langchain_runtime_authz import AuthzHalt, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.ledger.base import Committed, Conflict, Guard, Query, Scope
from langchain_runtime_authz.ledger.changes import AdvanceEpoch, OpenThread, RecordPlan, RecordStep
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.pep.held_plans import HeldPlans
from langchain_runtime_authz.testing import StaticPDP

SCOPE, ROOT = Scope("acme", "issuer", "graph", "thread"), ("root",)
PAY = {"name": "pay", "args": {"to": "bob"}, "id": "call-1", "type": "tool_call"}


def plan(name: str = "m1", epoch: int = 1, call: str = "call-1") -> PlanRecord:
    return PlanRecord(name, ROOT, epoch, "model", (PlannedCall(0, call, "pay", "digest"),))


class Two:
    """A process that holds plans, and what another process finds."""

    def __init__(self, path: Path, stack: ExitStack, form: str) -> None:
        self.ledger, self.other = (stack.enter_context(SqliteLedger(path)) for _ in range(2))
        self.held, self._form = HeldPlans(self.ledger), form

    def load(self, **query: Any) -> Any:
        wanted = Query(**query)
        return asyncio.run(self.held.aload(SCOPE, wanted)) if self._form == "async" else self.held.load(SCOPE, wanted)

    def commit(self, *changes: Any, guard: Guard | None = None) -> Any:
        act = self.held.acommit if self._form == "async" else self.held.commit
        done: Any = act(SCOPE, guard, changes)
        return asyncio.run(done) if self._form == "async" else done

    def elsewhere(self, name: str = "m1") -> PlanRecord | None:
        return self.other.load(SCOPE, Query(plan=(ROOT, name))).plan


@pytest.fixture(params=["sync", "async"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    with ExitStack() as stack:
        found = Two(tmp_path / "ledger.db", stack, request.param)
        found.commit(OpenThread("user:alice"), RecordStep(), RecordStep())
        assert found.held.hold(SCOPE, [RecordPlan(plan())])
        yield found


def test_the_next_commit_records_it(two: Two) -> None:
    before = [two.load(plan=(ROOT, "m1")).plan, two.load(planned_call=(ROOT, "call-1")).plan]
    assert before[0] == before[1] and (before[0].id, before[0].at, two.elsewhere()) == ("m1", 2, None)
    assert isinstance(two.commit(RecordStep()), Committed)
    assert two.elsewhere() == two.load(plan=(ROOT, "m1")).plan == before[0]


def test_it_answers_no_other_question(two: Two) -> None:
    for query in ({}, {"plan": (ROOT, "m2")}, {"plan": (("child",), "m1")}, {"planned_call": (ROOT, "call-2")}):
        assert two.load(**query).plan is None
    assert two.held.load(SCOPE._replace(thread="other"), Query(plan=(ROOT, "m1"))).plan is None


def test_a_refused_commit_keeps_it(two: Two) -> None:
    assert isinstance(two.commit(RecordStep(), guard=Guard("nobody", 1)), Conflict)
    assert two.elsewhere() is None and two.load(plan=(ROOT, "m1")).plan is not None
    two.commit(RecordStep())
    assert two.elsewhere() is not None


def test_one_at_a_time_is_held(two: Two) -> None:
    """A second one is committed, and the first one with it."""
    assert not two.held.hold(SCOPE, [RecordPlan(plan("m2"))])
    two.commit(RecordPlan(plan("m2", call="call-2")))
    assert two.elsewhere() is not None and two.elsewhere("m2") is not None
    assert two.held.hold(SCOPE, [RecordPlan(plan("m3"))])


def test_the_newer_epoch_counts_and_the_first_record_of_it(two: Two) -> None:
    two.commit(AdvanceEpoch(1))
    assert two.held.hold(SCOPE, [RecordPlan(plan(epoch=2))])
    assert two.load(plan=(ROOT, "m1")).plan.epoch == 2 and getattr(two.elsewhere(), "epoch", 0) == 1
    two.commit()
    first = two.elsewhere()
    assert two.held.hold(SCOPE, [RecordPlan(PlanRecord("m1", ROOT, 2, "code", ()))])
    assert two.load(plan=(ROOT, "m1")).plan == first


# --- in a graph


class Saver(InMemorySaver):
    """Does something once, when the model's message has been stored."""

    def __init__(self, then: Any = None) -> None:
        super().__init__()
        self._then = then

    def put(self, *given: Any) -> Any:
        done = super().put(*given)
        if self._then is not None and isinstance(given[1]["channel_values"].get("messages", [None])[-1], AIMessage):
            then, self._then = self._then, None
            then()
        return done


def graph(authz: RuntimeAuthz, ran: list[str], saver: Any, between: Any = None, **options: Any) -> Any:
    """A model's message, maybe a node of the developer, and the tool."""

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return "paid"

    builder = StateGraph(MessagesState).add_node("agent", lambda _: {"messages": [AIMessage("", tool_calls=[PAY], id="m1")]})
    builder.add_node("tools", ToolNode([pay])).add_edge(START, "agent")
    if between is not None:
        builder.add_node("between", lambda _: between()).add_edge("agent", "between")
    builder.add_edge("between" if between else "agent", "tools")
    return authz.protect(builder.compile(checkpointer=saver, **options))


def world(path: Path, **more: Any) -> tuple[RuntimeAuthz, StaticPDP]:
    pdp = StaticPDP(permit=True)
    return RuntimeAuthz(pdp=pdp, ledger=SqliteLedger(path), profiles={"pay": ToolProfile(effect="pay")}, **more), pdp


def go(authz: RuntimeAuthz, protected: Any, said: Any = None) -> Any:
    with authz.run(subject="alice", task="Pay bob"):
        return protected.invoke(said, {"configurable": {"thread_id": "t"}})


ASKED = {"messages": [HumanMessage("Pay bob")]}


@pytest.mark.parametrize("node", [False, True])
@pytest.mark.parametrize("crash", [True, False])
def test_a_crash_loses_it_only_right_before_the_tool_node(tmp_path: Path, *, crash: bool, node: bool) -> None:
    """The call is then unplanned. The twin does not crash. A node in between commits the plan before it runs."""
    authz, pdp = world(tmp_path / "ledger.db")
    ran: list[str] = []
    lose = lambda: authz._engine.store.held.clear() if crash else None
    protected = graph(authz, ran, Saver(None if node else lose), lose if node else None)
    go(authz, protected, ASKED)
    (call,) = [r.context.plan for r in pdp.requests if r.action.name == "tools/call"]
    assert (call.planned, ran) == (node or not crash, ["bob"])


def test_a_run_that_stops_before_the_tool_has_recorded_it(tmp_path: Path) -> None:
    """Another process goes on."""
    authz, _ = world(tmp_path / "ledger.db")
    ran: list[str] = []
    saver = Saver()
    go(authz, graph(authz, ran, saver, interrupt_before=["tools"]), ASKED)
    assert ran == [] and not authz._engine.store.held
    later, pdp = world(tmp_path / "ledger.db", issuer=authz.issuer)
    go(later, graph(later, ran, saver))
    (call,) = [r.context.plan for r in pdp.requests if r.action.name == "tools/call"]
    assert (call.planned, call.stale, ran) == (True, False, ["bob"])


def test_a_correction_in_between_makes_it_stale(tmp_path: Path) -> None:
    authz, _ = world(tmp_path / "ledger.db")
    ran: list[str] = []
    out = go(authz, graph(authz, ran, Saver(lambda: authz.correct("t", "Pay nobody", graph="LangGraph"))), ASKED)
    assert ran == [] and out["messages"][-1].status == "error"


def test_a_ledger_that_fails_denies_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authz, _ = world(tmp_path / "ledger.db")
    ran: list[str] = []

    def fail(*_: Any) -> Any:
        raise OSError("disk")

    out = go(authz, graph(authz, ran, Saver(lambda: monkeypatch.setattr(authz.ledger, "commit", fail))), ASKED)
    assert ran == [] and out["messages"][-1].status == "error"


def test_a_ledger_that_fails_stops_the_next_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authz, _ = world(tmp_path / "ledger.db")
    ran: list[str] = []

    def fail(*_: Any) -> Any:
        raise OSError("disk")

    saver = Saver(lambda: monkeypatch.setattr(authz.ledger, "commit", fail))
    with pytest.raises(AuthzHalt) as halted:
        go(authz, graph(authz, ran, saver, lambda: ran.append("between")), ASKED)
    assert (halted.value.code, ran) == (Code.LEDGER_UNAVAILABLE, [])
