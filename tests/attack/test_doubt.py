"""A payment of unknown outcome (OWASP ASI08): asked about whoever enters, in any order, and never made twice unasked.

The twins have no rule about doubts: the bank books twice.
"""

from __future__ import annotations

import secrets

from langchain_runtime_authz import fork
from langchain_runtime_authz.ledger import base
from langchain_runtime_authz.testing import FrozenClock

from ._kit import *

PAY = {"recipient": "DE21", "amount": 45}
CRITICAL: Any = {"recipient": "principal", "amount": "amount"}
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical=CRITICAL, intent=("pay",)),
    "wire": ToolProfile(effect="pay", sink="external", critical={"iban": "principal", "sum": "amount"}),
    "settle": ToolProfile(effect="pay", sink="external"),
}
ORDER, AGAIN = "Pay 45 EUR to DE21", "Now pay 45 EUR to DE21"
APPROVE = Command(resume={"decisions": [{"type": "approve"}]})
rule = params([True, False], ids=["asks", "twin"])


class World:
    """A bank without idempotency, and processes that share a ledger; `dies` is what ends the tool, before it pays or after."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.ledger, self.saver = MemoryLedger(clock=self.clock), InMemorySaver()
        self.booked, self.dies, self.pays, self.question = 0, None, True, ""

    def worker(self, **options: Any) -> RuntimeAuthz:
        """Return an instance in a process of its own."""
        fork.PROCESS[0] = secrets.token_hex(8)
        return RuntimeAuthz(ledger=self.ledger, profiles=PROFILES, **options)

    def graph(self, authz: RuntimeAuthz) -> Any:
        @tool
        def pay(recipient: str, amount: float) -> str:
            """Pay."""
            if self.question:
                interrupt(self.question)
            self.booked += self.pays
            if self.dies is not None:
                raise self.dies
            return "paid"

        def agent(state: MessagesState) -> Any:
            if isinstance(state["messages"][-1], ToolMessage):
                return {"messages": [AIMessage("done")]}
            call = {"name": "pay", "args": PAY, "id": f"c{len(state['messages'])}", "type": "tool_call"}
            return {"messages": [AIMessage("", tool_calls=[call])]}

        builder = StateGraph(MessagesState)
        builder.add_node("agent", agent)
        builder.add_node("tools", ToolNode([pay]))
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END})
        builder.add_edge("tools", "agent")
        return authz.protect(builder.compile(checkpointer=self.saver, name="bank"))

    def enter(self, graph: Any, thread: str, given: Any = None) -> str:
        """Enter in the run at hand; return what is asked."""
        said = {"messages": [HumanMessage(given)]} if isinstance(given, str) else given
        state = graph.invoke(said, {"configurable": {"thread_id": thread}})
        return "\n".join(str(i.value) for i in state.get("__interrupt__", ()))

    def order(self, thread: str, given: Any = None, **options: Any) -> str:
        """Enter in a run and a process of its own."""
        authz = self.worker(**options)
        with authz.run(subject="alice"):
            return self.enter(self.graph(authz), thread, given)

    def cut(self, thread: str, text: str = ORDER, *, paid: bool = True, **options: Any) -> None:
        """Order a payment that is cut off, before the bank has booked it or after."""
        self.dies, self.pays = KeyboardInterrupt(), paid
        with contextlib.suppress(KeyboardInterrupt):
            self.order(thread, text, **options)
        self.dies, self.pays = None, True

    def resolve(self, happened: bool = False) -> None:
        authz = self.worker()
        for one in authz.unknown_calls():
            authz.resolve_call(one.row.key, happened=happened, by="user:carol", reason="asked the bank")


@pytest.fixture
def world(rule: bool, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(fork, "PROCESS", [*fork.PROCESS])
    if not rule:
        monkeypatch.setattr(base.Doubt, "asks", lambda *_: False)
    return World()


@pytest.mark.parametrize("thread", ["t", "other"])
def test_each_entry_of_one_run_asks(world: World, rule: bool, thread: str) -> None:
    """The calls of one entry belong together; an application may make many entries in one run."""
    authz = world.worker()
    graph = world.graph(authz)
    with authz.run(subject="alice"):
        world.dies = KeyboardInterrupt()
        with contextlib.suppress(KeyboardInterrupt):
            world.enter(graph, "t", ORDER)
        world.dies = None
        asked = world.enter(graph, thread, AGAIN)
    assert ("IN DOUBT" in asked) == rule
    assert world.booked == (1 if rule else 2)


@pytest.mark.parametrize("known", ["void", "suspended"])
def test_a_known_call_asks_too(world: World, rule: bool, known: str) -> None:
    """One that did not happen, or that waits for an answer, goes on while another of its kind is in doubt."""
    permits = StaticPDP(permit=True)
    if known == "void":
        world.cut("t", paid=False)
        world.clock.tick(61)
        world.resolve()
    else:
        world.question = "From which account?"
        assert world.question in world.order("t", ORDER, pdp=permits)
    question, world.question = world.question, ""
    world.cut("other", AGAIN, pdp=permits)
    world.clock.tick(61)
    world.question = question
    world.order("t", Command(resume="main") if question else None, pdp=permits)
    assert world.booked == (1 if rule else 2)


@pytest.mark.parametrize("first", ["resolved", "paid"])
@pytest.mark.parametrize("by", ["people", "service"])
def test_what_was_ordered_again_meanwhile_asks(world: World, rule: bool, first: str, by: str) -> None:
    """A payment that did not happen was made on another thread, before that was known or after."""
    world.cut("t", paid=False)
    world.clock.tick(61)
    service: Any = {"on_unknown": lambda _: False} if by == "service" else {}
    if first == "resolved":
        if not service:
            world.resolve()
        assert not world.order("other", AGAIN, **service)
    else:
        if world.order("other", AGAIN):
            world.order("other", APPROVE)
        world.resolve()
    assert world.booked == 1
    asked = world.order("t")
    assert ("begun again by another call" in asked) == rule
    assert world.booked == (1 if rule else 2)
    assert not rule or not world.order("t", APPROVE)  # the approver knows, and wants it twice
    assert world.booked == 2


@pytest.mark.parametrize("lapse", [0, 61])
@pytest.mark.parametrize("beside", [True, False])
def test_an_approval_counts_for_the_doubts_that_its_question_names(
    world: World, rule: bool, lapse: int, beside: bool
) -> None:
    """A doubt that arises between question and approval was not approved, and is asked about."""
    asked = world.order("t", "Hello")
    assert asked
    assert "IN DOUBT" not in asked
    world.cut("other", pdp=StaticPDP(permit=True))
    world.clock.tick(lapse)
    if beside:
        authz = world.worker()
        (question,) = authz.approvals()
        authz.approve(question.id, by="carol")
    asked = world.order("t", None if beside else APPROVE)
    assert ("IN DOUBT" in asked) == rule
    assert "CHANGED" not in asked
    assert world.booked == (1 if rule else 2)
    assert not rule or not world.order("t", APPROVE)
    assert world.booked == 2


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("pay", {**PAY, "amount": 45.5}),
        ("pay", {**PAY, "recipient": "DE\u200b21"}),
        ("pay", {**PAY, "recipient": "ＤＥ21"}),
        ("pay", {**PAY, "recipient": "de 21"}),
        ("wire", {"iban": "DE21", "sum": 45}),
    ],
)
def test_the_same_deed_is_its_effect_and_target(world: World, rule: bool, tool: str, args: Any) -> None:
    """However the payee is written, whatever the argument is called, whatever the sum."""
    permits = StaticPDP(permit=True)
    world.cut("t", pdp=permits)
    world.clock.tick(61)
    session = world.worker(pdp=permits).session(subject="alice", task=AGAIN, thread="other")
    assert session.decide(tool, args).permit != rule
    assert session.decide(tool, {**args, "recipient": "DE22", "iban": "DE22"}).permit


def test_without_a_target_all_calls_of_a_tool_are_one_deed(world: World, rule: bool) -> None:
    permits = StaticPDP(permit=True)
    assert world.worker(pdp=permits).session(subject="alice", task=ORDER, thread="t").decide("settle", {"x": 45}).permit
    world.clock.tick(61)
    session = world.worker(pdp=permits).session(subject="alice", task=AGAIN, thread="other")
    assert session.decide("settle", {"x": 46}).permit != rule
