"""After an outage: what `reenter` says of a thread, and that it goes on where nothing new must be said."""

import asyncio
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_runtime_authz import AuthzHalt, ToolProfile
from langchain_runtime_authz._authz_threads import Reentry
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError, LedgerError
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

from ...attack._graphs import *

THREAD = {"configurable": {"thread_id": "t"}}


class Outage:
    """A graph that reads and pays. While `down` holds the name of an action, the engine fails on it."""

    def __init__(self, *turns: Any, **compiled: Any) -> None:
        self.down, self.asks, self.clock, self.ran = "", False, FrozenClock(), list[Any]()
        self.authz = authz_with(StaticPDP(self.answer), ledger=MemoryLedger(clock=self.clock))
        tools = [read_tool([]), pay_tool(self.ran)]
        graph = hand_written(replying(*(turns or ([READ], [PAY]))), tools, checkpointer=InMemorySaver(), **compiled)
        self.graph = self.authz.protect(graph)

    def answer(self, request: Any) -> object:
        if self.down and request.action.name.startswith(self.down):
            raise TimeoutError
        asked = self.asks and request.resource.id == "pay" and request.context.approval is None
        return ASK if asked else True

    def enter(self, given: Any) -> Any:
        return self.graph.invoke(given, THREAD)

    def denied(self, given: Any, down: str) -> AuthzDenied:
        self.down = down
        with pytest.raises(AuthzDenied) as denied:
            self.enter(given)
        self.down = ""
        return denied.value


class Supervisor(Outage):
    """A graph whose tool lets a worker read. The engine fails once the worker has begun, and denies the tool `barred`."""

    barred, fails = "", ""

    def __init__(self, effect: Any, ask: Any = lambda worker, given: worker.invoke(given)) -> None:
        super().__init__()
        self.authz = authz_with(
            StaticPDP(self.answer), ledger=MemoryLedger(clock=self.clock),
            profiles={**PROFILES, "ask_agent": ToolProfile(effect=effect, sink="internal")},
        )
        looks = lambda _: {"messages": [("ai", read_tool([]).invoke({"path": "a"}))]}
        ends = chain({"look": looks, "model": lambda s: {"messages": [replying().invoke(s["messages"])]}}, name="worker")

        @tool
        def ask_agent(task: str) -> str:
            """Ask the worker."""
            self.ran.append(task)
            self.down, self.fails = self.fails, ""
            return ask(ends, {"messages": [("human", task)]})["messages"][-1].content

        order = call("ask_agent", {"task": "look"}, "call-ask")
        self.graph = self.authz.protect(hand_written(replying([order]), [ask_agent], checkpointer=InMemorySaver()))

    def answer(self, request: Any) -> object:
        """Ask about the worker, deny what is barred."""
        if request.resource.id == self.barred:
            return False
        if self.asks and request.resource.id == "ask_agent" and request.context.approval is None:
            return ASK
        return super().answer(request)

    def denied(self, given: Any, down: str) -> AuthzDenied:
        """Let the engine fail inside the tool."""
        self.fails = down
        return super().denied(given, "")


@pytest.fixture(params=["sync", "async"])
def reenter(request: pytest.FixtureRequest) -> Any:
    def ask(world: Outage, **options: Any) -> Reentry:
        if request.param == "sync":
            return world.authz.reenter(world.graph, THREAD, **options)
        return asyncio.run(world.authz.areenter(world.graph, THREAD, **options))

    return ask


def test_denied_on_the_way_it_continues(reenter: Any) -> None:
    """With `None`, and by itself if it is told to; the payment is made once."""
    world = Outage()
    assert world.denied(human(), "model").code == Code.PDP_TIMEOUT
    found = reenter(world, input=human())
    assert (found.how, found.output) == ("continue", None)
    assert "`None`" in str(found)
    assert world.ran == []
    found = reenter(world, go_on=True)
    assert found.output["messages"][-1].content == "done"
    assert world.ran == [PAID]
    assert reenter(world, go_on=True) == Reentry("done")
    assert world.ran == [PAID]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_denied_at_the_root_it_is_sent_again(reenter: Any, before: bool, knows: bool) -> None:
    """On a thread that is empty or has ended. LangGraph refuses `None` on the first."""
    world = Outage([])
    if before:
        world.enter(human("Hello"))
    world.denied(human(), "run/")
    found = reenter(world, input=human() if knows else None, go_on=True)
    assert (found.how, found.output) == ("send again", None)
    assert [m.content for m in world.enter(human())["messages"] if m.type == "human"] == ["Hello", "Pay the bill"][not before :]
    assert reenter(world).how == "done"


def test_an_input_that_a_stopped_thread_never_got_is_sent_again(reenter: Any) -> None:
    """The thread stopped on the way, and the next words were denied at the root: `None` would lose them."""
    world = Outage()
    world.denied(human(), "model")
    world.denied(human("Pay now"), "run/")
    assert reenter(world).how == "send again"


def test_the_ledger_itself_was_down(reenter: Any) -> None:
    """It knows nothing of the denial, so the input tells."""
    world = Outage([])
    with ledger_down(), pytest.raises(AuthzDenied):
        world.enter(human())
    assert reenter(world).how == "send again"
    world.enter(human("Hello"))
    with ledger_down(), pytest.raises(AuthzDenied):
        world.enter(human())
    assert reenter(world, input=human()).how == "send again"
    assert reenter(world).how == "done"
    assert "denied since, send" in str(reenter(world))


def test_a_question_waits_for_its_answer(reenter: Any) -> None:
    """Until it is answered, here or elsewhere."""
    world = Outage()
    world.asks = True
    world.enter(human())
    found = reenter(world, go_on=True)
    assert (found.how, found.output) == ("answer", None)
    ((question,), (approval,)) = found.questions, world.authz.approvals()
    assert question.id == approval.interrupt_id
    world.denied(Command(resume={"decisions": [{"type": "approve"}]}), "run/")
    world.authz.approve(approval.id, by={"type": "user", "id": "carol"})
    assert reenter(world, go_on=True).output["messages"][-1].content == "done"
    assert world.ran == [PAID]


def test_nobody_passes_a_breakpoint_unseen(reenter: Any) -> None:
    """LangGraph pauses there for a person to look."""
    world = Outage(interrupt_before=["tools"])
    world.enter(human())
    assert reenter(world, go_on=True) == Reentry("answer")


def test_a_call_in_doubt_comes_first(reenter: Any) -> None:
    """The process died inside the payment: wait for its lease, resolve it, then go on. It is not made again."""
    world = Outage([PAY])

    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        world.ran.append(PAID)
        world.authz.ledger.commit = world.authz.ledger.acommit = fails
        raise Died

    def fails(*_: Any) -> None:
        raise OSError

    world.graph.nodes["tools"].bound.tools_by_name["pay"].func = die
    with pytest.raises(Died):
        world.enter(human())
    del world.authz.ledger.commit, world.authz.ledger.acommit
    assert reenter(world, go_on=True).how == "wait"
    world.clock.tick(61)
    found = reenter(world, go_on=True)
    assert (found.how, [*found.doubts]) == ("resolve", world.authz.unknown_calls())
    world.authz.resolve_call(found.doubts[0].row.key, happened=True, by="user:carol", reason="asked")
    assert reenter(world, go_on=True).output["messages"][-1].content == "done"
    assert world.ran == [PAID]


@pytest.mark.parametrize("raised", [ValueError("no such account"), TimeoutError("no answer")])
def test_a_failure_that_the_model_was_told_is_not_in_doubt(reenter: Any, raised: Exception) -> None:
    """The thread has ended well. If the error hides a timeout, the call is in doubt."""
    world = Outage([PAY])
    world.graph.nodes["tools"].bound._handle_tool_errors = True

    def fails(*_: Any, **__: Any) -> None:
        raise raised

    world.graph.nodes["tools"].bound.tools_by_name["pay"].func = fails
    world.enter(human())
    lost = isinstance(raised, TimeoutError)
    assert len(world.authz.ledger.doubts("default")) == 1
    assert len(world.authz.unknown_calls()) == lost
    assert reenter(world).how == ("resolve" if lost else "done")


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("effect", ["write", "pay"])
def test_an_outage_inside_a_tool_is_resumed(reenter: Any, effect: str, asked: bool) -> None:
    """The worker of a supervisor was stopped, and paid nothing. A payment that stopped on the way stays in doubt."""
    world, order = Supervisor(effect), human("Pay the bill")
    world.asks = asked
    if asked:
        world.enter(order)
        order = Command(resume={"decisions": [{"type": "approve"}]})
    assert world.denied(order, "model").code == Code.PDP_TIMEOUT
    assert reenter(world).how == "continue"
    told = reenter(world, go_on=True).output["messages"][-2].content
    assert (told == "done") == (effect == "write")
    assert len(world.ran) == (2 if effect == "write" else 1)
    assert len(world.authz.ledger.doubts("default")) == (effect == "pay")


@pytest.mark.parametrize("ask", [
    lambda worker, given: worker.invoke(given),
    lambda worker, given: asyncio.run(worker.ainvoke(given)),
    lambda worker, given: [*worker.stream(given, stream_mode="values")][-1],
], ids=["invoke", "ainvoke", "stream"])
def test_a_child_that_a_ledger_halts_is_resumed(reenter: Any, ask: Any) -> None:
    """The ledger fails before the tool's agent has begun: the tool begins again, and leaves no doubt."""

    def fails(worker: Any, given: Any) -> Any:
        with patch.object(MemoryLedger, "load", side_effect=LedgerError(Code.LEDGER_TIMEOUT)) if down else nullcontext():
            down.clear()
            return ask(worker, given)

    world, down = Supervisor("write", fails), [True]
    assert isinstance(denied := world.denied(human(), ""), AuthzHalt)
    assert denied.code == Code.LEDGER_TIMEOUT
    assert not world.authz.ledger.doubts("default")
    assert reenter(world, go_on=True).output["messages"][-2].content == "done"
    assert len(world.ran) == 2


@pytest.mark.parametrize("effect", ["write", "pay"])
def test_a_denial_inside_a_tool_leaves_no_doubt(effect: str) -> None:
    """The step inside has its own record. A payment that was stopped on the way stays in doubt."""
    world = Supervisor(effect)
    world.barred = "read"
    assert "not permitted" in world.enter(human())["messages"][-2].content
    assert len(world.authz.ledger.doubts("default")) == (effect == "pay")


def test_a_revoked_thread_waits_for_whoever_revoked_it(reenter: Any) -> None:
    """Nobody is asked to answer its question: the answer would be denied."""
    world = Outage()
    world.enter(human())
    world.authz.revoke("t")
    assert reenter(world, go_on=True).how == "reinstate"
    world.authz.reinstate("t")
    assert reenter(world).how == "done"


def test_only_a_thread_is_entered_again() -> None:
    """Without a checkpointer or a thread there is none."""
    world = Outage()
    with pytest.raises(ConfigError, match="thread_id"):
        world.authz.reenter(world.graph, {})
    world.graph.checkpointer = None
    with pytest.raises(ConfigError, match="checkpointer"):
        world.authz.reenter(world.graph, THREAD)


@pytest.mark.parametrize(("down", "denies", "told"), [("tools/call", "", "It may be possible later."), ("", "read", "Do not repeat it.")])
def test_the_model_is_not_told_to_give_up_what_an_outage_denied(down: str, denies: str, told: str) -> None:
    outage = Outage()
    outage.authz = authz_with(StaticPDP(lambda request: request.resource.id != denies and outage.answer(request)))
    outage.graph = outage.authz.protect(hand_written(replying([READ]), [read_tool([])], checkpointer=InMemorySaver()))
    outage.down = down
    with outage.authz.run(subject="alice"):
        answers = [m for m in outage.enter(human())["messages"] if m.type == "tool"]
    assert [told in m.text for m in answers] == [True]
