"""A deed that was ordered once is done once: by retries, copies, forks, children, other processes and other tools together."""

from __future__ import annotations

import sqlite3

from langchain_runtime_authz.evaluation import parse_request

from ._house import *

PAID = ("pay", BOB, 45.0)
TASK = f"Pay 45 EUR to {BOB}"
MANDATE: dict[str, Any] = {"steps": [{"id": "rent", "tool": "pay", "args": {"to": BOB, "amount": 45}}]}
SAID = {"messages": [HumanMessage("Go", id="1")]}

AGAIN: dict[str, Call] = {
    "the same": pay(), "a longer number": pay(amount=45.00), "with blanks": pay(f" {BOB} "),
    "in groups": pay("GB33 BUKB 2020 1555 5555 55"), "in small letters": pay(BOB.lower()), "with a subject": pay(subject="rent"),
    "later": ("schedule", {"to": BOB, "amount": 45, "date": "2026-12-24"}), "in parts": pay(amount=22.5),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_another_spelling_or_tool_is_the_same_deed(again: Call, go: Any) -> None:
    """A hijacked model that repeats the user's own payment is asked about. Unenforced it pays twice."""
    house = House()
    state = converse(house, [TASK], pay(), again, go=go, authz=ours())
    assert house.ran == [PAID] and len(asked(state)) == 1
    assert len(done(TASK, pay(), again, go=go, protected=False)) == 2


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("said", [
    f"Yes, {TASK}", TASK, f"Again: {TASK}", f"{TASK} Thanks again!", f"{TASK} Danke nochmals!", f"{TASK} Gracias de nuevo.", f"{TASK} Merci à nouveau.", f"Hi again, {TASK}", f'{TASK} Tell Ann "see you again".',
])
def test_an_order_that_is_said_again_may_only_confirm_the_first(said: str, again: Call, go: Any) -> None:
    """The agent asks "Shall I?" after it has paid. The user's confirmation orders no second payment."""
    house, steps = House(), (pay(), AIMessage("Shall I pay?"), again)
    state = converse(house, [TASK, said], *steps, go=go, authz=ours())
    assert house.ran == [PAID] and len(asked(state)) == 1
    assert len(done([TASK, said], *steps, go=go, protected=False)) == 2


@pytest.mark.parametrize(("said", "second"), [
    (f"Again, please pay 45 EUR to {BOB}", False), (f"Please again pay 45 EUR to {BOB}", True), (f"Once more p{TASK[1:]}", True), (f"Pay 50 EUR to {BOB}", True),
])
def test_an_order_anew_runs_again(said: str, second: bool, go: Any) -> None:
    """So does an order with another value."""
    call = pay(amount=50) if "50" in said else pay()
    assert len(done([TASK, "Thanks!", said], pay(), AIMessage("Paid."), AIMessage("Bye."), call, go=go)) == 1 + second


def test_one_message_with_the_same_call_twice_pays_once(go: Any, kind: str) -> None:
    """In a tool node that runs all calls of a message, and in an agent that runs each alone."""
    for authz, paid in ((ours(), 1), (None, 2)):
        house = House()
        graph = BUILDERS[kind](model(at_once(pay(), pay())), house.tools(), checkpointer=InMemorySaver())
        graph = authz.protect(graph) if authz is not None else graph
        with authz.run(subject="alice") if authz is not None else nullcontext():
            state = go(graph, {"messages": [HumanMessage(TASK)]}, THREAD)
        assert len(house.ran) <= paid
        if authz is not None:
            assert len(asked(state)) == 1
            with authz.run(subject="alice"):
                go(graph, resume(REJECT), THREAD)
        assert len(house.ran) == paid


def test_a_step_that_may_be_taken_twice_is_taken_twice_in_one_message(go: Any) -> None:
    """The calls of a message are counted together: neither the second of two asks, nor is a third let through."""
    twice = {"steps": [{**MANDATE["steps"][0], "times": 2}]}
    for wanted, outcome in ((2, (2, 0)), (3, (0, 1))):
        house = House()
        authz = ours()
        graph = authz.protect(hand_written(model(at_once(*[pay()] * wanted)), house.tools(), checkpointer=InMemorySaver()))
        with authz.run(subject="alice", mandate=twice):
            state = go(graph, SAID, THREAD)
        assert (len(house.ran), len(asked(state))) == outcome


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_retry_spends_nothing_and_gains_nothing(idempotent: bool, go: Any) -> None:
    """LangGraph retries a call that timed out: an idempotent tool runs again within its limit, another does not."""
    profiles = {**PROFILES, "pay": PROFILES["pay"].model_copy(update={"idempotent": idempotent})}
    mandate = {**MANDATE, "limits": [{"effect": "pay", "total": 45}]}
    for authz, ran in ((RuntimeAuthz(profiles=profiles), 2 if idempotent else 1), (None, 3)):
        house = House()
        house.failing = 1
        policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=TimeoutError)
        node = ToolNode(house.tools(), handle_tool_errors=False)
        graph = hand_written(model(pay(), pay()), node, checkpointer=InMemorySaver(), retry_policy=policy)
        graph = authz.protect(graph) if authz is not None else graph
        with authz.run(subject="alice", mandate=mandate) if authz is not None else nullcontext():
            go(graph, SAID, THREAD)
        assert len(house.ran) == ran


def test_two_processes_with_one_ledger_pay_once(tmp_path: Path, go: Any) -> None:
    """The order is given once, in words. Each process plans the payment."""
    saver, issuer = InMemorySaver(), RuntimeAuthz().issuer
    house = House()
    for _ in range(2):
        with contextlib.closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
            authz = ours(ledger=ledger, issuer=issuer)
            graph = authz.protect(graph_of(house, pay(), saver=saver))
            state = told(authz, graph, {"messages": [HumanMessage(TASK, id="1")]}, THREAD, go=go)
    assert house.ran == [PAID] and asked(state)


def test_processes_that_claim_at_once_pay_once(tmp_path: Path) -> None:
    """Four of them hold a permit for the same step. One claim is committed, and the others are judged anew."""
    issuer, barrier, outcomes = RuntimeAuthz().issuer, threading.Barrier(4), list[str]()

    def judge(request: Any) -> object:
        call = request.context.call
        if call is None:
            return True
        if call.mandate.standing == "covered":
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(60)
            return True
        return ASK

    ledgers = [SqliteLedger(tmp_path / "ledger.db") for _ in range(4)]
    points = [ours(ledger=ledger, issuer=issuer, pdp=StaticPDP(judge)) for ledger in ledgers]

    def decide(authz: RuntimeAuthz, thread: str) -> None:
        with authz.session(subject="alice", mandate={**MANDATE, "key": "2026-12"}, thread=thread) as session:
            outcomes.append(session.decide(*pay()).outcome)

    side_by_side(*(lambda z=z, i=i: decide(z, f"thread-{i}") for i, z in enumerate(points)))
    for ledger in ledgers:
        ledger.close()
    assert sorted(outcomes) == ["approval_required"] * 3 + ["permit"]


def test_a_key_is_spent_once_for_all_threads_of_a_subject(go: Any) -> None:
    """A cron that fires twice in a month pays once. Next month, and for another subject, it pays again."""
    authz, house = ours(), House()

    def fire(thread: str, key: str, subject: str = "alice") -> Any:
        graph = authz.protect(graph_of(house, pay()))
        mandate = {**MANDATE, "key": key}
        return told(authz, graph, SAID, {"configurable": {"thread_id": thread}}, go=go, subject=subject, mandate=mandate)

    fire("a", "december")
    assert asked(fire("b", "december")) and asked(fire("a", "december"))
    assert house.ran == [PAID]
    fire("c", "january")
    fire("d", "january", "bob")
    assert house.ran == [PAID] * 3


def test_a_spelling_of_the_mandate_does_not_make_another_order_of_a_key(go: Any) -> None:
    """Two mandates with one key are one order, even if one of them says more."""
    authz, house = ours(), House()
    for thread, more in (("a", {}), ("b", {"limits": [{"effect": "pay", "total": 100}]})):
        graph = authz.protect(graph_of(house, pay()))
        told(authz, graph, SAID, {"configurable": {"thread_id": thread}}, go=go, mandate={**MANDATE, "key": "k", **more})
    assert house.ran == [PAID]


@pytest.mark.parametrize("key", ["", "december"])
def test_one_run_that_enters_two_threads_pays_once(key: str, go: Any) -> None:
    """Without a key, another run is another order."""
    authz, house = ours(), House()
    graph = authz.protect(graph_of(house, pay(), AIMessage("done"), pay(), pay()))
    threads: list[Any] = [{"configurable": {"thread_id": name}} for name in "abc"]
    mandate = {**MANDATE, "key": key}
    with authz.run(subject="alice", mandate=mandate):
        assert not asked(go(graph, SAID, threads[0])) and asked(go(graph, SAID, threads[1]))
    assert house.ran == [PAID]
    told(authz, graph, SAID, threads[2], go=go, mandate=mandate)
    assert house.ran == ([PAID] if key else [PAID, PAID])


def test_a_fork_is_the_same_order(go: Any) -> None:
    """A replay from the checkpoint before the payment does not pay again. Unenforced it does."""
    for authz, paid in ((ours(), 1), (None, 2)):
        house = House()
        graph = graph_of(house, pay(), AIMessage("done"), pay())
        graph = authz.protect(graph) if authz is not None else graph
        scope: Any = lambda z=authz: z.run(subject="alice", mandate=MANDATE) if z is not None else nullcontext()
        with scope():
            go(graph, SAID, THREAD)
        start = next(s for s in graph.get_state_history(THREAD) if s.next == ("model",) and len(s.values["messages"]) == 1)
        with scope():
            go(graph, None, start.config)
        assert len(house.ran) == paid


@pytest.mark.parametrize("reopened", ["resume", "input"])
def test_a_run_that_is_reopened_without_its_mandate_goes_on_with_it(reopened: str, go: Any) -> None:
    """The application's mandate is kept with the thread, so the words do not order the same payment again."""
    authz, house = ours(), House()
    graph = authz.protect(graph_of(house, pay(), pay(EVE, 5), pay()))
    told(authz, graph, {"messages": [HumanMessage(TASK, id="1")]}, THREAD, go=go, mandate=MANDATE, task=TASK)
    value = resume(REJECT) if reopened == "resume" else {"messages": [HumanMessage(TASK, id="1")]}
    state = told(authz, graph, value, THREAD, go=go)
    assert "expected: step 'rent' not to be taken again" in asked(state)[0] and house.ran == [PAID]


@pytest.mark.parametrize("how", ["message", "correct", "edit"])
def test_a_correction_suspends_the_applications_mandate(how: str, go: Any) -> None:
    """Until the application opens another run with it. Unenforced the stopped payment is made."""
    authz, house = ours(), House()
    graph = authz.protect(graph_of(house, AIMessage("Shall I?"), pay(), pay()))
    value: Any = {"messages": []}
    with authz.run(subject="alice", mandate=MANDATE):
        go(graph, SAID, THREAD)
        if how == "message":
            value = {"messages": [HumanMessage("Stop", id="2")]}
        elif how == "correct":
            authz.correct("t", "Stop")
        else:
            graph.update_state(THREAD, {"messages": [HumanMessage("Stop")]}, as_node=START)
        state = go(graph, value, THREAD)
    assert house.ran == [] and "not_ordered" in asked(state)[0]
    assert done(["Go", "Stop"], AIMessage("Shall I?"), pay(), go=go, protected=False) == [PAID]
    with authz.run(subject="alice", mandate=MANDATE):
        go(graph, resume(REJECT), THREAD)
    assert house.ran == [PAID]


def test_an_approved_call_that_deviates_spends_its_step(go: Any) -> None:
    """The approver lets 50 be paid in place of 45. The ordered 45 is not paid on top."""
    house = House()
    state = converse(house, ["Go", resume(APPROVE)], pay(amount=50), pay(), go=go, authz=ours(), mandate=MANDATE)
    assert house.ran == [("pay", BOB, 50.0)]
    assert "expected: step 'rent' not to be taken again" in asked(state)[0]
    assert done("Go", pay(amount=50), pay(), go=go, protected=False) == [("pay", BOB, 50.0), PAID]


def test_a_rejected_call_spends_nothing(go: Any) -> None:
    house = House()
    converse(house, ["Go", resume(REJECT)], pay(EVE), pay(), go=go, authz=ours(), mandate=MANDATE)
    assert house.ran == [PAID]


def test_a_rejected_call_takes_no_step_from_the_one_behind_it(go: Any) -> None:
    """One message pays Eve and Bob, and a person lets Bob be paid. A hijacked model then pays him again."""
    house, answer = House(), Command(resume={"decisions": [REJECT, APPROVE]})
    state = converse(house, [TASK, answer], at_once(pay(EVE), pay()), pay(), go=go, authz=ours())
    assert house.ran == [PAID] and asked(state)
    assert done(TASK, at_once(pay(EVE), pay()), pay(), go=go, protected=False).count(PAID) == 2


def test_a_denied_call_takes_no_step_from_the_one_behind_it(go: Any) -> None:
    """The grant denies 500, so the ordered 45 of the same message is paid unasked, once."""
    house = House()
    grant = Grant(args={"pay": {"amount": {"le": 100}}})
    state = converse(house, [TASK], at_once(pay(amount=500), pay()), pay(), go=go, authz=ours(), grant=grant)
    assert house.ran == [PAID] and "expected: step '1' not to be taken again" in asked(state)[0]
    assert done(TASK, at_once(pay(amount=500), pay()), pay(), go=go, protected=False).count(PAID) == 2


def test_an_approved_call_spends_the_step_with_its_values(go: Any) -> None:
    """A person lets Bob be paid before his turn. When his turn comes, he is not paid again."""
    first = {"id": "first", "tool": "note", "args": {"title": {"kind": "text"}, "text": {"kind": "text"}}}
    other = {"id": "other", "tool": "pay", "args": {"to": BOB, "amount": 70}}
    mandate = {"steps": [other, first, {**MANDATE["steps"][0], "after": "first"}]}
    note: Call = ("note", {"title": "a", "text": "b"})
    house = House()
    state = converse(house, ["Go", resume(APPROVE)], pay(), note, pay(), pay(amount=70), go=go, authz=ours(), mandate=mandate)
    assert house.ran == [PAID, ("note", "a")] and "expected: step 'rent' not to be taken again" in asked(state)[0]
    assert done("Go", pay(), note, pay(), go=go, protected=False).count(PAID) == 2


@pytest.mark.parametrize("source", ["words", "application"])
def test_children_share_what_their_parent_may_spend(source: str) -> None:
    """One order for the whole tree of agents, whoever comes first."""
    with ours().session(subject="alice", task=TASK, mandate=MANDATE if source == "application" else None) as parent:
        one, two = parent.delegate("one"), parent.delegate("two")
        assert one.decide(*pay()).permit
        assert [s.decide(*pay()).outcome for s in (two, parent, one)] == ["approval_required"] * 3


def test_agents_that_do_the_same_at_once_are_judged_one_after_the_other() -> None:
    """While one is judged, another is let run. The first is judged anew, and its question can be answered."""
    others: list[Any] = []

    class Racing(WasmPDP):
        def evaluate(self, body: bytes) -> Any:
            answer = super().evaluate(body)
            if others and parse_request(body).resource.id == "pay":
                others.pop().decide(*pay())
            return answer

    for raced in (True, False):
        with ours(pdp=Racing()).session(subject="alice", task=TASK) as parent, parent.delegate("one") as one:
            others += [parent] if raced else []
            decided = one.decide(*pay())
            assert decided.outcome == ("approval_required" if raced else "permit")
            assert one.approve(decided).permit is raced


def test_steps_of_one_deed_are_spent_together(go: Any) -> None:
    """The bill may be paid at once or later, not both. Unenforced it is paid twice."""
    later: Call = ("schedule", {"to": BOB, "amount": 45, "date": "2026-12-24"})
    steps = [
        {"id": "now", "deed": "rent", "tool": "pay", "args": {"to": BOB, "amount": 45}},
        {"id": "later", "deed": "rent", "tool": "schedule", "args": {"to": BOB, "amount": 45, "date": "2026-12-24"}},
    ]
    for first, second in ((pay(), later), (later, pay())):
        assert [r[0] for r in done("Go", first, second, go=go, mandate={"steps": steps})] == [first[0]]
        assert len(done("Go", first, second, go=go, protected=False)) == 2


def test_what_is_counted_names_nobody(tmp_path: Path) -> None:
    """The ledger counts a mandate by digest."""
    path = tmp_path / "ledger.db"
    authz = ours(ledger=SqliteLedger(path))
    with authz.session(subject="alice", mandate={**MANDATE, "key": "secret-occasion"}) as session:
        assert session.decide(*pay()).permit
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        text = repr([db.execute(f"SELECT * FROM {n}").fetchall() for n in names if "budget" in n])
    assert "mandate:" in text and "secret-occasion" not in text
    assert BOB not in text
