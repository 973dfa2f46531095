"""A payment of unknown outcome (OWASP ASI08): asked about whoever enters, in any order, and never made twice unasked.

The twins have no rule about doubts: the bank books twice.
"""

import itertools
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from weakref import ref

from langchain.agents import create_agent

from langchain_runtime_authz import AuthzMiddleware, _locks
from langchain_runtime_authz.errors import Code, LedgerError
from langchain_runtime_authz.ledger import base
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.changes import RecordStep, Revoke
from langchain_runtime_authz.pep import calls_in_doubt
from langchain_runtime_authz.pep.calls_in_doubt import UNRECORDED_ENDS
from langchain_runtime_authz.testing import FrozenClock
from tests.threads import until

from ._kit import *

PAY = {"recipient": "DE21", "amount": 45}
CRITICAL: Any = {"recipient": "principal", "amount": "amount"}
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical=CRITICAL, intent=("pay",)),
    "wire": ToolProfile(effect="pay", sink="external", critical={"iban": "principal", "sum": "amount"}),
    "settle": ToolProfile(effect="pay", sink="external"),
    "transfer": ToolProfile(effect="pay", sink="external", critical=CRITICAL, idempotent=True),
    "save": ToolProfile(effect="write", sink="internal"),
    "notify": ToolProfile(effect="send", sink="external", critical={"channel": "channel"}),
}
ORDER, AGAIN = "Pay 45 EUR to DE21", "Please again pay 45 EUR to DE21"
APPROVE = Command(resume={"decisions": [{"type": "approve"}]})
rule = params([True, False], ids=["asks", "twin"])


class World:
    """A bank without idempotency, and processes that share a ledger; `dies` is what ends the tool, before it pays or after."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.ledger, self.saver = MemoryLedger(clock=self.clock), InMemorySaver()
        self.booked, self.dies, self.pays, self.question, self.message = 0, None, True, "", None
        self.meanwhile: Any = None
        self.kind, self.saves, self.saved = "hand", False, 0

    def worker(self, **options: Any) -> RuntimeAuthz:
        """Return an instance in a process of its own."""
        _locks.PROCESS[0] = secrets.token_hex(8)
        return RuntimeAuthz(ledger=self.ledger, profiles=PROFILES, **options)

    def graph(self, authz: RuntimeAuthz) -> Any:
        @tool
        def pay(recipient: str, amount: float) -> str:
            """Pay."""
            if self.question:
                interrupt(self.question)
            if self.meanwhile is not None:
                beside = threading.Thread(target=self.meanwhile)
                beside.start()
                beside.join()
            self.booked += self.pays
            if self.dies is not None:
                raise self.dies
            return "paid"

        @tool
        def save(path: str) -> str:
            """Save."""
            self.saved += 1
            return "saved"

        def agent(state: MessagesState) -> Any:
            if isinstance(state["messages"][-1], ToolMessage):
                return {"messages": [AIMessage("done")]}
            call = {"name": "pay", "args": PAY, "id": f"c{len(state['messages'])}", "type": "tool_call"}
            first = [{"name": "save", "args": {"path": "a"}, "id": "s", "type": "tool_call"}] if self.saves else []
            return {"messages": [AIMessage("", id=self.message, tool_calls=[*first, call])]}

        if self.kind != "hand":
            model = ScriptedChatModel(script=[lambda messages: agent({"messages": messages})["messages"][0]] * 9)
            ours = [AuthzMiddleware(authz)] if self.kind == "middleware" else []
            made = create_agent(model, [pay, save], middleware=ours, checkpointer=self.saver, name="bank")
            return made if ours else authz.protect(made)
        return authz.protect(loop(agent, ToolNode([pay, save]), checkpointer=self.saver, name="bank"))

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
def world(rule: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if not rule:
        monkeypatch.setattr(base.InDoubtCall, "must_ask", lambda *_: False)
    own = _locks.PROCESS[0]
    yield World()
    _locks.PROCESS[0] = own
    UNRECORDED_ENDS.clear()


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


@pytest.mark.parametrize(
    ("first", "by", "wait"),
    [*itertools.product(("resolved", "paid"), ("people", "service"), (61,)), ("resolved", "people", 3 * base.LASTS)],
)
def test_what_was_ordered_again_meanwhile_asks(world: World, rule: bool, first: str, by: str, wait: float) -> None:
    """A payment that did not happen was made on another thread, before that was known or after."""
    world.cut("t", paid=False)
    world.clock.tick(wait)
    service: Any = {"on_unknown": lambda _: False} if by == "service" else {}
    if first == "resolved":
        if not service:
            world.resolve()
        assert not world.order("other", AGAIN, **service)
    else:
        if world.order("other", AGAIN):
            world.order("other", APPROVE)
        if not service:
            world.resolve()
    assert world.booked == 1
    asked = world.order("t", **service)
    assert ("begun again by another call" in asked) == rule
    assert world.booked == (1 if rule else 2)
    assert not rule or not world.order("t", APPROVE)  # the approver knows, and wants it twice
    assert world.booked == 2


def test_the_question_of_an_unknown_call_says_that_it_was_begun_again(world: World, rule: bool) -> None:
    world.cut("t", paid=False)
    world.clock.tick(61)
    if world.order("other", AGAIN):
        world.order("other", APPROVE)
    asked = world.order("t")
    assert ("has an unknown outcome, and was begun again by another call" in asked) == rule
    assert world.booked == 1


@pytest.mark.parametrize("lapse", [0, 61])
@pytest.mark.parametrize(
    ("beside", "given", "kind"),
    [(True, None, "hand"), (True, APPROVE, "hand"), (True, APPROVE, "middleware"), (False, APPROVE, "hand")],
)
def test_an_approval_counts_for_the_doubts_that_its_question_names(
    world: World, rule: bool, lapse: int, beside: bool, given: Any, kind: str
):
    """A doubt that arises between question and approval was not approved, and is asked about."""
    world.kind = kind
    asked = world.order("t", "Hello")
    assert asked and "IN DOUBT" not in asked
    world.cut("other", pdp=StaticPDP(permit=True))
    world.clock.tick(lapse)
    if beside:
        authz = world.worker()
        (question,) = authz.approvals()
        authz.approve(question.id, by="carol")
    asked = world.order("t", given)
    assert ("IN DOUBT" in asked) == rule and "CHANGED" not in asked
    assert bool(world.order("t")) == rule  # an entry that answers nothing
    assert world.booked == (1 if rule else 2)
    assert not rule or not world.order("t", APPROVE)
    assert world.booked == 2


@pytest.mark.parametrize("kind", ["hand", "agent", "middleware"])
def test_of_two_that_decide_at_once_one_asks(world: World, rule: bool, kind: str) -> None:
    """The other process begins the payment between the decision and the claim."""
    permits, commit, own = StaticPDP(permit=True), world.ledger.commit, list[str]()
    world.kind, world.saves = kind, True  # the call before it is made once

    def racing(scope: Any, guard: Any, changes: Any) -> Any:
        if not own and any(isinstance(c, ClaimCall) and c.deed.startswith("pay:") for c in changes):
            own.append(_locks.PROCESS[0])
            other = world.worker(pdp=permits).session(subject="alice", task=ORDER, thread="other")
            assert other.decide("pay", PAY).permit
            _locks.PROCESS[0] = own[0]
        return commit(scope, guard, changes)

    world.ledger.commit = racing
    assert ("IN DOUBT" in world.order("t", ORDER, pdp=permits)) == rule and world.booked == (not rule)
    assert not rule or not world.order("t", APPROVE, pdp=permits)
    assert world.booked == world.saved == 1


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("pay", {**PAY, "amount": 45.5}),
        ("pay", {**PAY, "recipient": "DE\u200b21"}),
        ("pay", {**PAY, "recipient": "ＤＥ21"}),
        ("pay", {**PAY, "recipient": "de 21"}),
        ("wire", {"iban": "DE21", "sum": 45}),
        ("settle", {"x": 46}),
    ],
)
def test_the_same_deed_is_its_effect_and_target(world: World, rule: bool, tool: str, args: Any) -> None:
    """However the payee is written, whatever the argument is called, whatever the sum. Without a target it is the tool."""
    permits = StaticPDP(permit=True)
    world.cut("t", pdp=permits)
    if tool == "settle":
        assert world.worker(pdp=permits).session(subject="alice", task=ORDER, thread="t").decide(tool, {"x": 45}).permit
    world.clock.tick(61)
    session = world.worker(pdp=permits).session(subject="alice", task=AGAIN, thread="other")
    assert session.decide(tool, args).permit != rule
    assert session.decide(tool, {**args, "recipient": "DE22", "iban": "DE22"}).permit or tool == "settle"


@pytest.mark.parametrize(("first", "second"), [("pay", "transfer"), ("transfer", "pay"), ("transfer", "transfer")])
def test_an_idempotency_key_guards_its_own_payment_only(world: World, rule: bool, first: str, second: str) -> None:
    """Another order has another key. People can resolve it, but no operator must."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    one = authz.session(subject="alice", task=ORDER, thread="t")
    assert one.decide(first, PAY).permit
    one.observe(first, PAY, None, error=TimeoutError())
    assert authz.session(subject="alice", task=AGAIN, thread="other").decide(second, PAY).permit != rule
    assert len(authz.ledger.doubts("default")) == 1 and len(authz.unknown_calls()) == (first == "pay")


@pytest.mark.parametrize("answered", ["before", "after", "resume"])
@pytest.mark.parametrize("found", ["happened", "late", "not"])
def test_an_approval_does_not_outlive_what_was_found_out(world: World, rule: bool, answered: str, found: str) -> None:
    """The doubt of an open question turns out to have happened: the approver is asked once more, and told."""
    slow = world.worker(pdp=StaticPDP(permit=True)).session(subject="alice", task=ORDER, thread="t")
    assert slow.decide("pay", PAY).permit
    world.clock.tick(61)
    asked = world.order("other", "Hello")
    assert ("IN DOUBT" in asked) == rule

    def approve() -> None:
        authz = world.worker()
        (question,) = authz.approvals()
        authz.approve(question.id, by="carol")

    if answered == "before":
        approve()
    if found == "late":
        slow.observe("pay", PAY, "paid")
    else:
        world.resolve(found == "happened")
    if answered == "after":
        approve()
    asked = world.order("other", APPROVE if answered == "resume" else None)
    again = rule and found != "not"
    assert ("did happen" in asked) == again
    assert ("says user:carol" in asked) == (again and found == "happened")
    assert world.booked == (0 if again else 1)
    assert not again or not world.order("other", APPROVE)
    assert world.booked == 1


def pay_call(number: int) -> Any:
    return {"name": "pay", "args": PAY, "id": f"c{number}", "type": "tool_call"}


@pytest.mark.parametrize("by", ["code", "model"])
def test_a_call_that_its_caller_gave_up_is_in_doubt_while_it_runs(world: World, rule: bool, by: str) -> None:
    """A timeout does not end the tool's thread. Code or a model that tries again is asked, in the same entry too."""
    over, began = threading.Event(), 0

    @tool
    def pay(recipient: str, amount: float) -> str:
        """Pay."""
        nonlocal began
        began += 1
        over.wait(5)
        world.booked += 1
        return "paid"

    async def tries(state: MessagesState) -> Any:
        planned = state["messages"][-1].tool_calls if by == "model" else None
        given = planned[0] if planned else PAY
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pay.ainvoke(given), 0.2)
        return {"messages": [ToolMessage("no answer", tool_call_id=given["id"])] if planned else []}

    def agent(state: MessagesState) -> Any:
        number = len(state["messages"])
        return {"messages": [AIMessage("", tool_calls=[pay_call(number)])] if by == "model" and number < 4 else []}

    authz = world.worker(pdp=StaticPDP(permit=True))
    nodes = {"first": agent, "once": tries, "second": agent, "twice": tries}
    graph = authz.protect(chain(nodes, checkpointer=world.saver, name="bank"))

    async def enter() -> Any:
        try:
            with authz.run(subject="alice"):
                return await graph.ainvoke({"messages": [HumanMessage(ORDER)]}, THREAD)
        finally:
            over.set()

    asked = str(asyncio.run(enter()).get("__interrupt__"))  # it waits for the threads
    assert ("has no outcome yet" in asked) == rule
    assert began == world.booked == (1 if rule else 2)


@pytest.mark.parametrize("alone", [False, True])
def test_two_calls_of_one_message_run_side_by_side(world: World, alone: bool) -> None:
    """The twin: the user's two equal payments are not a repetition."""
    both = threading.Barrier(2)

    @tool
    def pay(recipient: str, amount: float) -> str:
        """Pay."""
        both.wait(10)
        world.booked += 1
        return "paid"

    authz = world.worker(pdp=StaticPDP(permit=True))
    planned = AIMessage("", tool_calls=[pay_call(0), pay_call(1)])
    if alone:  # `create_agent` makes a task of each call
        model = ScriptedChatModel(script=[planned, AIMessage("done")])
        node = AuthzToolNode([pay], authz=authz)
        builder = StateGraph(MessagesState).add_node("agent", lambda s: {"messages": [model.invoke(s["messages"])]})
        builder.add_node("tools", node).add_edge(START, "agent")
        each = lambda s: [Send("tools", [call]) for call in s["messages"][-1].tool_calls] or END
        graph = (
            builder.add_conditional_edges("agent", each, ["tools", END])
            .add_edge("tools", "agent")
            .compile(checkpointer=world.saver)
        )
    else:
        plan = lambda _: {"messages": [planned]}
        graph = authz.protect(chain({"agent": plan, "tools": ToolNode([pay])}, checkpointer=world.saver, name="bank"))
    with authz.run(subject="alice"):
        assert not world.enter(graph, "t", ORDER)
    assert world.booked == 2


@pytest.mark.parametrize("opened", [True, False], ids=["in one run", "by itself"])
def test_a_superstep_that_is_entered_again_asks(world: World, rule: bool, opened: bool) -> None:
    """The bank is slow, and the user enters again. The model plans anew at the same checkpoint, with another amount."""
    begun, over, amounts = threading.Event(), threading.Event(), iter((45, 45.5))

    @tool
    def pay(recipient: str, amount: float) -> str:
        """Pay."""
        world.booked += 1
        if amount == 45:
            begun.set()
            over.wait(10)
        return "paid"

    authz = world.worker(pdp=StaticPDP(permit=True))
    node = AuthzToolNode([pay], authz=authz)

    def work(state: MessagesState, config: RunnableConfig) -> Any:
        planned = AIMessage("", tool_calls=[{**pay_call(0), "args": {**PAY, "amount": next(amounts)}}])
        return node.invoke({"messages": [*state["messages"], planned]}, config)

    graph = chain({"work": work}, checkpointer=world.saver)
    with authz.run(subject="alice") if opened else nullcontext(), ThreadPoolExecutor() as pool:
        first = pool.submit(copy_context().run, world.enter, graph, "t", ORDER)
        assert begun.wait(10)
        asked = world.enter(graph, "t")
        over.set()
        assert not first.result()
    assert ("IN DOUBT" in asked) == rule
    assert world.booked == (1 if rule else 2)


def test_equal_calls_of_workers_run_side_by_side(world: World) -> None:
    """Each task of a fan-out invokes the same worker."""
    all_three = threading.Barrier(3)
    save = a_tool("save", lambda path: [all_three.wait(10), "saved"][1], path=str)
    plan = {"name": "save", "args": {"path": "log"}, "id": "c1", "type": "tool_call"}
    agent = lambda _: {"messages": [AIMessage("", tool_calls=[plan])]}
    boss = StateGraph(MessagesState).add_node(
        "worker", chain({"agent": agent, "tools": ToolNode([save])}, name="worker")
    )
    boss.add_conditional_edges(START, lambda state: [Send("worker", state)] * 3, ["worker"])
    authz = world.worker(pdp=StaticPDP(permit=True))
    graph = authz.protect(boss.compile(checkpointer=world.saver, name="boss"))
    with authz.run(subject="alice"):
        assert not world.enter(graph, "t", ORDER)
    assert not all_three.broken
    assert [r["outcome"] for r in authz.audit.records if r.get("action") == "tools/call"] == ["permit"] * 3


def test_an_idempotent_payment_of_a_fan_out_is_tried_again(world: World) -> None:
    """Its siblings pay the same payee meanwhile, and its own key guards the repeat."""
    paid: list[float] = []

    @tool
    def transfer(recipient: str, amount: float) -> str:
        """Pay."""
        paid.append(amount)
        time.sleep(0.1 * amount)  # the one that fails ends first
        if amount == paid.count(1) == 1:
            raise ServiceError
        return "paid"

    def work(amount: int) -> Any:
        transfer.invoke({"recipient": "DE21", "amount": amount})

    builder = StateGraph(MessagesState)
    builder.add_node("work", work, retry_policy=RetryPolicy(initial_interval=0.01, retry_on=ServiceError))
    builder.add_conditional_edges(START, lambda _: [Send("work", amount) for amount in (1, 2, 3)], ["work"])
    authz = world.worker(pdp=StaticPDP(permit=True))
    graph = authz.protect(builder.compile(checkpointer=world.saver, name="bank"))
    with authz.run(subject="alice"):
        assert not world.enter(graph, "t", ORDER)
    assert sorted(paid) == [1, 1, 2, 3]


class ServiceError(Exception):
    """As a client raises for 503."""


class ReadTimeout(Exception):
    """As HTTP clients name theirs: not a `TimeoutError`."""


@pytest.mark.parametrize("raised", [TimeoutError("no answer"), ReadTimeout("no answer")])
def test_a_tool_without_an_answer_is_in_doubt(world: World, rule: bool, raised: Exception) -> None:
    """The bank has booked, and its answer is lost."""
    world.dies = raised
    with contextlib.suppress(type(raised)):
        world.order("t", ORDER)
    world.dies = None
    asked = world.order("other", AGAIN)
    assert ("has an unknown outcome" in asked) == rule
    assert world.booked == (1 if rule else 2)


def test_a_cached_message_is_another_one(world: World, rule: bool) -> None:
    """A webhook repeats its input, and a cache repeats the model's message with its id. The bank had booked, and failed."""
    world.saver, world.message, world.dies = None, "m1", RuntimeError("500")
    with contextlib.suppress(RuntimeError):
        world.order("t", AGAIN)
    world.dies = None
    world.order("t", AGAIN)
    assert world.booked == (1 if rule else 2)


@pytest.mark.parametrize("back", [True, False], ids=["tried again", "lost"])
@pytest.mark.parametrize("thread", ["t", "other"])
def test_a_lost_end_is_in_doubt_while_its_run_lives(
    world: World, rule: bool, monkeypatch: Any, thread: str, back: bool
) -> None:
    """The bank's answer and the ledger fail together. For the ledger, the call is still under way."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    run = authz.session(subject="alice", task=ORDER, thread="t")
    assert run.decide("pay", PAY).permit
    commit, refused = world.ledger.commit, 0

    def failing(scope: Any, guard: Any, changes: Any) -> Any:
        nonlocal refused
        if any(isinstance(c, ConcludeCall) for c in changes) and not (back and refused):
            refused += 1
            raise LedgerError(Code.LEDGER_UNAVAILABLE)
        return commit(scope, guard, changes)

    monkeypatch.setattr(world.ledger, "commit", failing)
    run.observe("pay", PAY, None, error=TimeoutError())
    session = run if thread == "t" else authz.session(subject="alice", task=AGAIN, thread=thread)
    assert session.decide("pay", {**PAY, "amount": 46}).permit != rule and len(authz.unknown_calls()) == back


@pytest.mark.parametrize("error", [None, TimeoutError()], ids=["paid", "lost"])
def test_a_lost_end_is_recorded_when_its_run_ends(world: World, rule: bool, monkeypatch: Any, error: Any) -> None:
    """Then other processes know it too. A payment that was made is no doubt."""
    permits = StaticPDP(permit=True)
    with world.worker(pdp=permits).session(subject="alice", task=ORDER, thread="t") as run:
        assert run.decide("pay", PAY).permit
        with monkeypatch.context() as down:
            down.setattr(world.ledger, "commit", lambda *_: 1 / 0)
            run.observe("pay", PAY, "paid" if error is None else None, error=error)
    authz = world.worker(pdp=permits)
    assert len(authz.unknown_calls()) == (error is not None)
    session = authz.session(subject="alice", task=AGAIN, thread="other")
    assert session.decide("pay", PAY).permit == (error is None or not rule)


@pytest.mark.parametrize("most", [2, 3], ids=["dropped", "twin"])
def test_lost_ends_are_bounded(world: World, monkeypatch: Any, caplog: Any, most: int) -> None:
    """The oldest end of a ledger is dropped, with a line of the log, and its call is in doubt. The twin has room."""
    monkeypatch.setattr(calls_in_doubt, "MAX_LOST", most)
    authz, others = (
        world.worker(pdp=StaticPDP(permit=True)),
        RuntimeAuthz(profiles=PROFILES, pdp=StaticPDP(permit=True)),
    )
    runs = [one.session(subject="alice", task=ORDER, thread="t") for one in (others, authz)]
    calls = [
        (run, {**PAY, "recipient": f"DE{n}"}) for run, count in zip(runs, (1, 3), strict=True) for n in range(count)
    ]
    for run, args in calls:
        assert run.decide("pay", args).permit
    with monkeypatch.context() as down:
        down.setattr(MemoryLedger, "commit", lambda *_: 1 / 0)
        for run, args in calls:
            run.observe("pay", args, "paid")
    assert len(UNRECORDED_ENDS) == 1 + most
    world.clock.tick(61)
    assert [one.row.key for one in authz.unknown_calls()] == [
        line.args[1] for line in caplog.records if line.args and line.args[0] == Code.IN_DOUBT
    ]
    assert len(authz.unknown_calls()) == 3 - most


def lose(world: World, monkeypatch: Any, session: Any, tool: str = "pay", args: Any = PAY) -> None:
    """Carry a call out while the ledger does not answer."""
    assert session.decide(tool, args).permit
    with monkeypatch.context() as down:
        down.setattr(world.ledger, "commit", lambda *_: 1 / 0)
        session.observe(tool, args, "done")


def test_an_end_that_fails_again_delays_its_own_thread(world: World, monkeypatch: Any) -> None:
    """The others try it once a second, and their own ends first. It is recorded as soon as its thread can be."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    alice, bob = (authz.session(subject=name, task=ORDER, thread=name) for name in ("alice", "bob"))
    lose(world, monkeypatch, alice)
    commit, stuck = world.ledger.commit, list[Any]()

    def failing(scope: Any, guard: Any, changes: Any) -> Any:
        if scope.thread == "alice":
            stuck.append(changes)
            raise LedgerError(Code.LEDGER_TIMEOUT)
        return commit(scope, guard, changes)

    with monkeypatch.context() as down:
        down.setattr(world.ledger, "commit", failing)
        lose(world, monkeypatch, bob)
        assert bob.decide("save", {"path": "a"}).permit
        assert [end[0].scope.thread for end in UNRECORDED_ENDS.values()] == ["alice"]
        assert bob.decide("save", {"path": "b"}).permit and len(stuck) == 1
        monkeypatch.setattr(calls_in_doubt, "REST", 0)
        assert bob.decide("save", {"path": "c"}).permit and len(stuck) == 2
    monkeypatch.setattr(calls_in_doubt, "REST", 60)
    assert alice.decide("save", {"path": "a"}).permit and UNRECORDED_ENDS == {}


def test_a_lost_end_is_recorded_once(world: World, monkeypatch: Any) -> None:
    """Whatever number of threads decide at the same time."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    lose(world, monkeypatch, authz.session(subject="alice", task=ORDER, thread="t"))
    commit, all_began = world.ledger.commit, threading.Event()

    def slow(scope: Any, *given: Any) -> Any:
        assert scope.thread != "t" or all_began.wait(10)
        return commit(scope, *given)

    others = [authz.session(subject="bob", task="Save", thread=str(n)) for n in range(4)]
    monkeypatch.setattr(world.ledger, "commit", slow)
    with ThreadPoolExecutor() as pool:
        begun = [pool.submit(other.decide, "save", {"path": "a"}) for other in others]
        until(lambda: sum(one.done() for one in begun) == 3)
        all_began.set()
        assert all(one.result().permit for one in begun)
    assert completions(authz) == ["done"]


@pytest.mark.parametrize("again", [True, False], ids=["claimed again", "twin"])
def test_a_lost_end_of_an_earlier_claim_is_forgotten(world: World, monkeypatch: Any, again: bool) -> None:
    """The call is claimed again while its end is being recorded, which then fails. The twin is not claimed again."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    lose(world, monkeypatch, authz.session(subject="alice", task=ORDER, thread="t"))
    (key,) = UNRECORDED_ENDS

    def failing(*_: Any) -> Any:
        if again:
            del UNRECORDED_ENDS[key]
            calls_in_doubt.RUNNING[key] = ref(world)
        raise LedgerError(Code.LEDGER_TIMEOUT)

    monkeypatch.setattr(world.ledger, "commit", failing)
    authz.unknown_calls()
    assert [*UNRECORDED_ENDS] == ([] if again else [key])
    calls_in_doubt.RUNNING.pop(key, None)


@pytest.mark.parametrize("demands", ["revoke", "notify"], ids=["revokes", "twin"])
@pytest.mark.parametrize("step", ["tools/call", "agent/invoke"])
def test_a_demanded_revocation_outlives_a_failure_of_the_ledger(monkeypatch: Any, step: str, demands: str) -> None:
    """The ledger does not answer at the denial. The next step is refused, or the next run. The twin demands none."""
    wanted = {"id": "x", "type": demands, "properties": {"channel": "log"} if demands == "notify" else {}}
    no = {"decision": False, "context": {"obligations": [wanted]}}
    hit = lambda request: request.action.name == step and request.resource.id in ("pay", "child")
    authz = RuntimeAuthz(profiles=PROFILES, pdp=StaticPDP(lambda request: no if hit(request) else True))
    session = authz.session(subject="alice", task=ORDER, thread="t")
    with monkeypatch.context() as down:
        commit = authz.ledger.commit
        down.setattr(authz.ledger, "commit", lambda s, g, c: 1 / 0 if Revoke in map(type, c) else commit(s, g, c))
        if step == "tools/call":
            session.decide("pay", PAY)
        else:
            with pytest.raises(AuthzDenied):
                session.delegate("child")
    revokes = demands == "revoke"
    assert len(UNRECORDED_ENDS) == revokes
    with pytest.raises(AuthzDenied, match="revoked") if revokes else contextlib.nullcontext():
        authz.session(subject="alice", task=ORDER, thread="t")
    assert session.decide("save", {"path": "a"}).permit != revokes
    assert UNRECORDED_ENDS == {} and [r.get("event") for r in authz.audit.records].count("revoked") == revokes


@pytest.mark.parametrize("error", [LedgerError(Code.LEDGER_TIMEOUT), RuntimeError()], ids=["hangs", "twin: fails at once"])
def test_a_reinstated_agent_is_not_revoked_again(monkeypatch: Any, error: Exception) -> None:
    """A revocation that waits for the ledger is committed before the operator lifts it.

    The denial waits once for a ledger that hangs. If the ledger fails at once, the denial tries the revocation again.
    """
    no = {"decision": False, "context": {"obligations": [{"id": "x", "type": "revoke", "properties": {}}]}}
    pdp = StaticPDP(lambda request: no if request.resource.id == "pay" else True)
    authz = RuntimeAuthz(profiles=PROFILES, pdp=pdp)
    session = authz.session(subject="alice", task=ORDER, thread="t")
    commit, tried = authz.ledger.commit, list[Any]()

    def failing(scope: Any, guard: Any, changes: Any) -> Any:
        if Revoke not in map(type, changes):
            return commit(scope, guard, changes)
        tried.append(changes)
        raise error

    with monkeypatch.context() as down:
        down.setattr(authz.ledger, "commit", failing)
        session.decide("pay", PAY)
    assert len(tried) == (1 if isinstance(error, LedgerError) else 2) and len(UNRECORDED_ENDS) == 1
    authz.reinstate("t", graph="session", by="user:carol", reason="looked at it")
    events = [r.get("event") for r in authz.audit.records]
    assert UNRECORDED_ENDS == {} and events.index("revoked") < events.index("reinstated")
    assert authz.session(subject="alice", task=ORDER, thread="t").decide("save", {"path": "a"}).permit


@pytest.mark.parametrize("demands", [True, False], ids=["revokes", "twin"])
@pytest.mark.parametrize("step", ["tools/call", "agent/invoke"])
def test_a_demanded_revocation_outlives_a_cancelled_denial(step: str, demands: bool) -> None:
    """The caller gives up while the ledger commits the denial. The twin demands no revocation."""
    wanted = [{"id": "x", "type": "revoke", "properties": {}}] if demands else []
    no = {"decision": False, "context": {"obligations": wanted}}
    hit = lambda request: request.action.name == step and request.resource.id in ("pay", "child")

    class Slow(MemoryLedger):
        slow = False

        async def acommit(self, scope: Any, guard: Any, changes: Any) -> Any:
            await asyncio.sleep(60 if self.slow and RecordStep in map(type, changes) else 0)
            return self.commit(scope, guard, changes)

    ledger = Slow()
    authz = RuntimeAuthz(ledger=ledger, profiles=PROFILES, pdp=StaticPDP(lambda r: no if hit(r) else True))
    session = authz.session(subject="alice", task=ORDER, thread="t")

    async def give_up() -> bool:
        ledger.slow = True
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.adecide("pay", PAY) if step == "tools/call" else session.adelegate("child"), 0.2)
        ledger.slow = False
        return (await session.adecide("save", {"path": "a"})).permit

    assert asyncio.run(give_up()) != demands and UNRECORDED_ENDS == {}


@pytest.mark.parametrize("demands", [True, False], ids=["revokes", "twin"])
def test_a_revocation_that_waits_stops_the_next_call_of_the_message(monkeypatch: Any, demands: bool) -> None:
    """Both calls are decided together. The ledger takes no revocation in time at the first one's denial."""
    wanted = [{"id": "x", "type": "revoke", "properties": {}}] if demands else []
    no, ran = {"decision": False, "context": {"obligations": wanted}}, list[Any]()
    authz = RuntimeAuthz(profiles=PROFILES, pdp=StaticPDP(lambda r: no if r.resource.id == "pay" else True))
    tools = [noting(ran, name, recipient=str, amount=int) for name in ("pay", "save")]
    graph = authz.protect(hand_written(replying([call("pay", PAY, "a"), call("save", PAY, "b")]), tools))
    commit, down = authz.ledger.commit, [True]

    def slow(scope: Any, guard: Any, changes: Any) -> Any:
        if Revoke in map(type, changes) and down and down.pop():
            raise LedgerError(Code.LEDGER_TIMEOUT)
        return commit(scope, guard, changes)

    monkeypatch.setattr(authz.ledger, "commit", slow)
    with contextlib.suppress(AuthzHalt):
        told(authz, graph, human(), {**THREAD, "max_concurrency": 1})
    assert len(ran) == (not demands) and UNRECORDED_ENDS == {}
    assert [r.get("event") for r in authz.audit.records].count("revoked") == demands


@pytest.mark.parametrize("fails", [True, False], ids=["fails again", "twin"])
def test_no_reinstatement_overtakes_a_revocation(monkeypatch: Any, fails: bool) -> None:
    """The end of a call waits before the revocation, and fails once more. In the twin, the ledger takes both."""
    no = {"decision": False, "context": {"obligations": [{"id": "x", "type": "revoke", "properties": {}}]}}
    authz = RuntimeAuthz(profiles=PROFILES, pdp=StaticPDP(lambda r: no if r.resource.id == "pay" else True))
    session, commit = authz.session(subject="alice", task=ORDER, thread="t"), authz.ledger.commit
    down = lambda s, g, c: 1 / 0 if {Revoke, ConcludeCall} & {*map(type, c)} else commit(s, g, c)
    session.decide("save", {"path": "a"})
    with monkeypatch.context() as ledger:
        ledger.setattr(authz.ledger, "commit", down)
        session.observe("save", {"path": "a"}, "ok")
        session.decide("pay", PAY)
    with monkeypatch.context() as ledger:
        ledger.setattr(authz.ledger, "commit", lambda s, g, c: (ledger.undo(), 1 / 0) if fails else commit(s, g, c))
        with pytest.raises(LedgerError, match="try again") if fails else contextlib.nullcontext():
            authz.reinstate("t", graph="session", by="user:carol", reason="looked at it")
    authz.reinstate("t", graph="session", by="user:carol", reason="looked at it")
    events = [r.get("event") for r in authz.audit.records]
    assert UNRECORDED_ENDS == {} and events.index("revoked") < events.index("reinstated")
    assert authz.session(subject="alice", task=ORDER, thread="t").decide("save", {"path": "b"}).permit


@pytest.mark.parametrize("error", [RuntimeError("429"), TimeoutError()], ids=["failed", "lost"])
@pytest.mark.parametrize(
    ("name", "args", "other"),
    [
        ("save", {"path": "a.txt"}, {"path": "b.txt"}),
        ("notify", {"channel": "#ops", "text": "1"}, {"channel": "#ops", "text": "2"}),
    ],
)
@pytest.mark.parametrize("down", [True, False])
def test_a_failed_call_counts_for_equal_ones(
    world: World, rule: bool, monkeypatch: Any, name: str, args: Any, other: Any, error: Any, down: bool
):
    """A corrected write goes on. A lost call counts for its target, and without one for its tool.

    If the ledger was down at the call's end, the process records the end as soon as it answers.
    """
    authz = world.worker(pdp=StaticPDP(permit=True))
    first = authz.session(subject="alice", task=ORDER, thread="t")
    assert first.decide(name, args).permit
    with monkeypatch.context() as fails:
        if down:
            fails.setattr(world.ledger, "commit", lambda *_: 1 / 0)
        first.observe(name, args, None, error=error)
    third = authz.session(subject="alice", task=AGAIN, thread="third")
    lost = isinstance(error, TimeoutError)
    assert third.decide(name, other).permit != (rule and lost)
    assert first.decide(name, other).permit != (rule and lost)
    second = authz.session(subject="alice", task=AGAIN, thread="other")
    assert second.decide(name, args).permit != rule


def test_a_worker_that_failed_stops_no_other(world: World, rule: bool) -> None:
    """A channel refuses most of its workers. These, and none of the others, ask before they say the same again."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    for number in range(36):
        args = {"channel": "#ops", "text": str(number)}
        worker = authz.session(subject="alice", task=ORDER, thread=str(number))
        assert worker.decide("notify", args).permit
        worker.observe("notify", args, "sent", error=RuntimeError("429") if number < 30 else None)
    again = authz.session(subject="alice", task=AGAIN, thread="again")
    asked = [n for n in range(36) if not again.decide("notify", {"channel": "#ops", "text": str(n)}).permit]
    assert asked == [*range(30 if rule else 0)]


@pytest.mark.parametrize("alive", [True, False], ids=["slow", "died"])
def test_the_service_is_not_asked_about_a_call_that_still_runs(world: World, alive: bool) -> None:
    """A slow call is not booked yet. The twin died: what the service says of it holds."""
    permits, asked = StaticPDP(permit=True), list[Any]()
    slow = world.worker(pdp=permits).session(subject="alice", task=ORDER, thread="t")
    assert slow.decide("pay", PAY).permit
    world.clock.tick(61)
    if not alive:
        world.worker()
    here = RuntimeAuthz(ledger=world.ledger, profiles=PROFILES, pdp=permits, on_unknown=lambda c: bool(asked.append(c)))
    here.session(subject="alice", task=AGAIN, thread="other").decide("pay", PAY)
    assert len(asked) == (not alive)


@pytest.mark.parametrize("error", [None, RuntimeError("refused")])
@pytest.mark.parametrize("happened", [True, False, None], ids=["happened", "void", "twin"])
def test_a_late_end_is_on_record(world: World, happened: bool | None, error: Any) -> None:
    """A slow call ends after people said what became of it: their word stays. The twin was not resolved."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    slow = authz.session(subject="alice", task=ORDER, thread="t")
    slow.decide("pay", PAY)
    world.clock.tick(61)
    (found,) = authz.unknown_calls()
    if happened is not None:
        authz.resolve_call(found.row.key, happened=happened, by="user:carol", reason="asked the bank")
    slow.observe("pay", PAY, None if error else "paid", error=error)
    late = [r["detail"] for r in authz.audit.records if r.get("event") == "ended_late"]
    ((_, _, row),) = authz.ledger.doubts("default", found.row.key)
    state = "failed" if error else "done"
    if happened is None:
        assert (late, row.state, "failed" in (row.about or {})) == ([], "unknown" if error else "done", bool(error))
        return
    assert [(d["author"], d["happened"], d["state"]) for d in late] == [("user:carol", happened, state)]
    assert row.state == ("done" if happened or not error else "void")
    assert row.about["resolved"]["reason"] == "asked the bank"


@pytest.mark.parametrize("error", [RuntimeError("500"), TimeoutError()], ids=["failed", "lost"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "twin"])
def test_an_end_that_the_ledger_took_is_not_late(world: World, monkeypatch: Any, error: Any, kept: bool) -> None:
    """Its answer was lost, another process resolved the call, and the end is recorded again. The twin's end is late."""
    authz = world.worker(pdp=StaticPDP(permit=True))
    run = authz.session(subject="alice", task=ORDER, thread="t")
    run.decide("pay", PAY)
    commit = world.ledger.commit

    def failing(*given: Any) -> Any:
        if kept:
            commit(*given)
        raise LedgerError(Code.LEDGER_UNAVAILABLE)

    with monkeypatch.context() as down:
        down.setattr(world.ledger, "commit", failing)
        run.observe("pay", PAY, None, error=error)
    world.clock.tick(61)
    ((_, _, row),) = world.ledger.doubts("default")
    world.worker().resolve_call(row.key, happened=False, by="user:carol", reason="asked the bank")
    assert not authz.unknown_calls()  # records the end again
    assert UNRECORDED_ENDS == {}
    assert [r.get("event") for r in authz.audit.records].count("ended_late") == (not kept)
    ((_, _, row),) = world.ledger.doubts("default", row.key)
    assert (row.state, row.about["resolved"]["happened"]) == ("void", False)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_call_that_was_made_twice_is_on_record(world: World, goes_on: bool) -> None:
    """A slow call did not happen, as people said. Its thread goes on elsewhere, and then the slow one pays too."""

    def meanwhile() -> None:
        world.meanwhile = None
        world.clock.tick(61)
        world.resolve()
        if goes_on:
            world.order("t", pdp=StaticPDP(permit=True))

    authz, world.meanwhile = world.worker(pdp=StaticPDP(permit=True)), meanwhile
    with contextlib.suppress(Exception), authz.run(subject="alice"):
        world.enter(world.graph(authz), "t", ORDER)
    assert world.booked == 1 + goes_on
    assert [r["detail"]["author"] for r in authz.audit.records if r.get("event") == "ended_late"] == ["user:carol"]


@pytest.mark.parametrize(
    ("happened", "by", "reason"),
    [
        ("no", "user:carol", "asked"),
        (0, "user:carol", "asked"),
        (True, "", "asked"),
        (True, "carol", "asked"),
        (True, None, "asked"),
        (True, "user:x\n\x1b[2J", "asked"),
        (True, "user:carol", " "),
        (True, "user:carol", "line\nline"),
        (True, "user:carol", "asked"),  # the twin
    ],
)
def test_a_resolution_says_who_and_why(world: World, happened: Any, by: Any, reason: str) -> None:
    world.cut("t", paid=False, pdp=StaticPDP(permit=True))
    authz = world.worker()
    good = (happened, by, reason) == (True, "user:carol", "asked")
    with nullcontext() if good else pytest.raises(ConfigError):
        authz.resolve_call(authz.unknown_calls()[0].row.key, happened=happened, by=by, reason=reason)
    assert len(authz.unknown_calls()) == (not good)


@pytest.mark.parametrize("form", ["sync", "async"])
@pytest.mark.parametrize("answer", ["hangs", "hangs on", "exits", "exits later", "is cancelled"])
def test_a_service_that_fails_costs_one_deadline(
    world: World, monkeypatch: Any, rule: bool, answer: str, form: str
) -> None:
    """However many calls are in doubt; what ends its thread does not end ours."""
    monkeypatch.setattr("langchain_runtime_authz.pep.calls_in_doubt.DEADLINE", 0.4)
    permits, over = StaticPDP(permit=True), threading.Event()
    for thread in "abcd":
        session = world.worker(pdp=permits).session(subject="alice", task=ORDER, thread=thread)
        decision = session.decide("pay", PAY)
        if decision.outcome == "approval_required":
            assert session.approve(decision).permit
    world.clock.tick(61)

    async def later(_: Any) -> Any:
        if answer == "exits later":
            raise SystemExit
        if answer == "is cancelled":
            raise asyncio.CancelledError
        until = time.monotonic() + 2
        while time.monotonic() < until:  # as a client that tries again whatever happens
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)

    def service(_: Any) -> Any:
        if answer == "exits":
            raise SystemExit
        return over.wait(5)

    asked = service if answer in ("hangs", "exits") else later
    session = world.worker(pdp=permits, on_unknown=asked).session(subject="alice", task=AGAIN, thread="other")
    since = time.monotonic()

    async def decide() -> tuple[Any, float]:
        decision = await session.adecide("pay", PAY)
        return decision, time.monotonic()

    decision, at = (session.decide("pay", PAY), time.monotonic()) if form == "sync" else asyncio.run(decide())
    assert decision.permit != rule and at - since < 4 * 0.4
    over.set()
