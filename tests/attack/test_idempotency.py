"""One intent, one key: what a tool is offered is the same wherever the same call runs again."""

from langchain_core.tools import ToolException

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.pep.claim_calls import claim_call
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.run import drive
from langchain_runtime_authz.testing import FrozenClock

from ._kit import *

BANK = "https://bank.example"
PROFILES = {
    "book": ToolProfile(effect="write", sink="internal", idempotent=True),
    "pay": ToolProfile(effect="pay", sink="external", audience=(BANK,)),
}


class Bank:
    """Keeps one booking for a key, as a real one does."""

    def __init__(self) -> None:
        self.booked: dict[str, tuple[str, float]] = {}
        self.asked: list[str] = []
        self.down = 0

    def take(self, key: str, to: str, amount: float) -> str:
        self.asked.append(key)
        self.booked.setdefault(key, (to, amount))
        if self.down:
            self.down -= 1
            raise ConnectionError("the answer was lost")
        return "booked"


class House:
    """A graph that books at a bank, or pays, on threads of one saver."""

    def __init__(self, name: str = "book", *, protected: bool = True, again: int = 1) -> None:
        self.bank = bank = Bank()

        @tool
        def book(to: str, amount: float) -> str:
            """Book."""
            return bank.take(current_call().idempotency_key if protected else f"none-{len(bank.asked)}", to, amount)

        @tool
        def pay(to: str, amount: float) -> str:
            """Pay."""
            key = current_call().idempotency_key
            assert key == current_call().credential(BANK).idempotency_key
            return bank.take(key, to, amount)

        def respond(messages: list[Any]) -> AIMessage:
            rounds = sum(isinstance(m, ToolMessage) for m in messages)
            return says(call(name, {"to": "bob", "amount": 5.0}, f"c{rounds}")) if rounds < again else says(text="done")

        model = ScriptedChatModel(script=[respond] * 20)
        self.graph = loop(lambda state: {"messages": [model.invoke(state["messages"])]}, ToolNode([book, pay], handle_tool_errors=False), checkpointer=InMemorySaver(), name="house")
        self.authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES)
        if protected:
            self.authz.protect(self.graph)

    def go(self, given: Any, thread: str = "t", subject: str = "alice", **place: Any) -> Any:
        with self.authz.run(subject=subject):
            return self.graph.invoke(given, {"configurable": {"thread_id": thread, **place}})

    def copy(self, source: str, target: str) -> None:
        """A thread's messages up to its first calls, put into another thread as a copy of it."""
        history = list(self.graph.get_state_history({"configurable": {"thread_id": source}}))
        planned = next(s for s in history if s.next == ("tools",))
        config = {"configurable": {"thread_id": target}}
        self.graph.update_state(config, {"messages": planned.values["messages"]}, as_node="agent")


@pytest.mark.parametrize(("failures", "protected"), [(1, True), (2, True), (1, False)])
def test_a_retry_has_the_key_of_the_first_try(failures: int, protected: bool) -> None:
    """The answer was lost, the booking was not: the bank books once, and the graph ends. Without a key it books twice."""
    house = House(protected=protected)
    house.bank.down = failures
    for given in [human(), *[None] * (failures - 1)]:
        with pytest.raises(ConnectionError):
            house.go(given)
    assert house.go(None)["messages"][-1].content == "done" and len(house.bank.asked) == failures + 1
    assert len(house.bank.booked) == (1 if protected else 2)


def test_a_payment_whose_answer_was_lost_is_not_repeated() -> None:
    """`pay` is not idempotent: the retry is told that the outcome is unknown."""
    house = House("pay")
    house.bank.down = 1
    with pytest.raises(ConnectionError):
        house.go(human())
    out = house.go(None)
    assert len(house.bank.asked) == 1
    assert next(m for m in out["messages"] if isinstance(m, ToolMessage)).status == "error"


@pytest.mark.parametrize(("protected", "subject", "booked"), [(True, "alice", 1), (True, "bob", 2), (False, "alice", 2)])
def test_a_copy_of_the_thread_has_the_same_key(protected: bool, subject: str, booked: int) -> None:
    """Another thread, another epoch, the same message: the same intent. Somebody else's is another. Without a key it books twice."""
    house = House(protected=protected)
    house.go(human())
    house.copy("t", "copy")
    house.go(None, "copy", subject=subject)
    assert (len(house.bank.asked), len(house.bank.booked)) == (2, booked)


def test_a_replay_gets_the_recorded_result() -> None:
    """From the checkpoint before the tools: the bank is not even asked."""
    house = House()
    house.go(human())
    history = list(house.graph.get_state_history(THREAD))
    place = next(s for s in history if s.next == ("tools",)).config["configurable"]
    house.go(None, checkpoint_id=place["checkpoint_id"])
    assert len(house.bank.asked) == len(house.bank.booked) == 1


def test_a_call_whose_process_died_is_unknown_once_its_lease_has_lapsed() -> None:
    """Until then it is under way. A call that is idempotent runs again, one that is not does not."""
    clock = FrozenClock()
    for name, decided in (("pay", Code.OUTCOME_UNKNOWN), ("book", None)):
        ledger = MemoryLedger(clock=clock)
        authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES, ledger=ledger)
        dead = authz.session(subject="alice", thread="t")
        first = dead._call(name, {"to": "bob"}, "plan")

        def decide(session: Any, one: Any = first) -> Any:
            run = session._run

            def flow() -> Any:
                judged = yield from decide_calls(run, [one])
                return (yield from claim_call(run, judged[0]))[1]

            return drive(run.pep, flow())

        key = decide(dead).idempotency_key
        if name == "pay":
            waiting = authz.session(subject="alice", thread="t")
            assert decide(waiting).decision.reason == Code.CALL_IN_PROGRESS
        clock.tick(61)
        verdict = decide(authz.session(subject="alice", thread="t"))
        if decided is None:
            assert verdict.idempotency_key == key
        else:
            assert verdict.decision.reason == decided


def test_outside_a_tool_there_is_no_call() -> None:
    """None of its facts is there."""
    for fact in ("tool", "call_id", "agent", "idempotency_key", "decision_id"):
        assert code_of(lambda: getattr(current_call(), fact), AuthzError) == Code.NO_RUN


LIMITS = {"grant": [], "rate": [("rate_limit", {"window": 60})], "budget": [("budget", {})], "none": []}


def limited(limit: str, graph: Any) -> tuple[Any, Any]:
    """Return a function that enters a graph in which one payment is permitted, and the graph."""
    obligations = [{"id": "limit", "type": t, "properties": {"counter": "pay", "max": 1, **p}} for t, p in LIMITS[limit]]
    permit = {"decision": True, "context": {"obligations": obligations}}
    pdp = StaticPDP(lambda r: permit if r.action.name == "tools/call" and r.resource.id == "pay" else True)
    authz, graph = protecting(graph, pdp, profiles={"pay": {"effect": "pay", "critical": {"to": "principal"}}, "settle": {"effect": "write"}})
    own = {"grant": Grant(tools=("pay", "settle"), budgets={"pay": 1})} if limit == "grant" else {}
    return lambda given: told(authz, graph, given, THREAD, **own), graph


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("wrap", [None, lambda request, execute: execute(request.override(tool=request.tool.model_copy()))], ids=["plain", "wrapped"])
def test_a_call_whose_tool_asks_counts_once(limit: str, calls: int, wrap: Any) -> None:
    """The tool's own question pauses the call, which goes on after the answer. One payment is permitted, a second is not.

    A wrapper that gives the tool node a copy of the tool makes it decide the call again.
    """
    ran: list[Any] = []

    @tool
    def pay(to: str) -> str:
        """Pay."""
        assert interrupt("Sure?") is True
        ran.append(to)
        return "paid"

    model = replying(*[[call("pay", {"to": f"p{n}"}, f"c{n}")] for n in range(calls)])
    graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([pay], wrap_tool_call=wrap), checkpointer=InMemorySaver())
    enter, graph = limited(limit, graph)
    enter(human())
    while graph.get_state(THREAD).interrupts:
        enter(Command(resume=True))
    assert ran == (["p0"] if limit != "none" else [f"p{n}" for n in range(calls)])


@pytest.mark.parametrize(("first", "then"), [(None, 0), (5, 0), (5, 1), (None, 1), (None, None)])
@pytest.mark.parametrize("by", ["grant", "policy"])
def test_a_paused_call_goes_on_within_the_limits_of_its_entry(by: str, first: int | None, then: int | None) -> None:
    """The entry with the answer may have a narrower grant, or a stricter policy. Without a limit, the call goes on."""
    ran: list[Any] = []

    @tool
    def pay(to: str) -> str:
        """Pay."""
        ran.append(interrupt("Sure?"))
        return "paid"

    model = replying([call("pay", {"to": "ann"}, "c")])
    graph = loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([pay]), checkpointer=InMemorySaver())
    limit: dict[str, Any] = {}
    pdp = StaticPDP(lambda r: {"decision": True, "context": limit} if by == "policy" and r.action.name == "tools/call" else True)
    authz, graph = protecting(graph, pdp, profiles={"pay": {"effect": "pay"}})
    for given, most in ((human(), first), (Command(resume=True), then)):
        budget = {"id": "b", "type": "budget", "properties": {"counter": "pay", "max": most}}
        limit["obligations"] = [] if most is None else [budget]
        own = {"grant": Grant(tools=("pay",), budgets={} if most is None else {"pay": most})} if by == "grant" else {}
        told(authz, graph, given, THREAD, **own)
    assert ran == [True] * (then != 0)


@pytest.mark.parametrize("limit", LIMITS)
def test_code_that_tries_a_paused_call_again_makes_calls_that_count(limit: str) -> None:
    """A tool pays before it asks, and its caller takes the question for an error and tries again. Without a limit, it pays thrice."""
    ran: list[Any] = []

    @tool
    def pay(to: str) -> str:
        """Pay."""
        ran.append(to)
        return str(interrupt("Is the receipt right?"))

    @tool
    def settle(to: str) -> str:
        """Pay, with three tries."""
        for _ in range(3):
            with contextlib.suppress(Exception):
                return str(pay.invoke({"to": to}))
        return "failed"

    model = replying([call("settle", {"to": "ann"}, "c")])
    enter, _ = limited(limit, loop(lambda s: {"messages": [model.invoke(s["messages"])]}, ToolNode([settle]), checkpointer=InMemorySaver()))
    enter(human())
    assert ran == ["ann"] * (3 if limit == "none" else 1)


@pytest.mark.parametrize("by", ["tool node", "agent", "node", "a loop in a node", "outside"])
def test_tools_that_each_make_an_equal_call_make_as_many(by: str, go: Any, protected: bool, ran: list[Any]) -> None:
    """None gets the result of another tool's call. A question makes the tools run again: only unprotected are the calls repeated."""
    asked: list[str] = []

    @tool
    def note(text: str) -> str:
        """Note."""
        ran.append(text)
        return f"{text} {len(ran)}"

    @tool
    def outer(number: int) -> str:
        """Take a note."""
        noted: str = note.invoke({"text": "same"})
        if number == 2:
            asked.append(interrupt("go on?"))
        return noted

    def step(state: Any) -> Any:
        numbers = [c["args"]["number"] for c in model.invoke(state["messages"]).tool_calls] if by.startswith("a loop") else (1, 2)
        return {"messages": [AIMessage(" ".join(outer.invoke({"number": number}) for number in numbers))]}

    authz = authz_with(StaticPDP(True), profiles={name: ToolProfile(effect="write", sink="internal") for name in ("note", "outer")})
    plans = [[call("outer", {"number": 1}, "1")], [call("outer", {"number": 2}, "2")]]
    model = replying(*([[*plans[0], *plans[1]]] if by.startswith("a loop") else plans))
    if by == "outside" and protected:
        note, outer = authz.guard(note), authz.guard(outer)
    build = {"tool node": hand_written, "agent": agent_graph}.get(by)
    graph = build(model, [outer], checkpointer=InMemorySaver()) if build else node_graph(step, checkpointer=InMemorySaver())
    graph = authz.protect(graph) if protected and by != "outside" else graph
    with authz.run(subject="alice") as run:
        assert go(graph, human(), run.config(THREAD))["__interrupt__"]
        assert ran == ["same"] * 2
        if by == "outside":  # where a node that runs again makes new calls
            return
        state = go(graph, Command(resume="yes"), run.config(THREAD))
    assert asked == ["yes"] and ran == ["same"] * (2 if protected else 4 if build is None else 3)
    if protected:
        told_model = " ".join(m.text for m in state["messages"])
        assert "same 1" in told_model and "same 2" in told_model


@pytest.mark.parametrize("handled", [True, False])
def test_code_that_tries_a_failed_call_again_keeps_its_key(handled: bool, go: Any) -> None:
    """Whether the tool raises its error or answers with it. An equal call after a success is another one, with another key."""
    keys: list[str] = []

    def act() -> str:
        keys.append(current_call().idempotency_key)
        if len(keys) == 1:
            raise ToolException("no answer")
        return "booked"

    book = a_tool("book", act)
    book.handle_tool_error = handled

    def step(state: MessagesState) -> dict[str, Any]:
        for _ in range(3):
            with contextlib.suppress(ToolException):
                book.invoke(call("book", {}, "own"))
        return {}

    authz, graph = protecting(node_graph(step, checkpointer=InMemorySaver()), StaticPDP(True), profiles={"book": ToolProfile(effect="write", idempotent=True)})
    told(authz, graph, human(), THREAD, go=go)
    assert len(keys) == 3 and keys[0] == keys[1] != keys[2]
