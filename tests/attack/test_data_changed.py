"""What was read changes behind the agent: side effects that are based on it do not happen."""

from importlib import resources

from langchain_runtime_authz.facts import resource
from langchain_runtime_authz.pep import thread_acts

from ._kit import *


class Office:
    """A bill that somebody edits, an agent that reads it, pays it, and reads it in between."""

    def __init__(self, **read: Any) -> None:
        self.bill: dict[str, Any] = {"iban": "DE21500105179625862911", "amount": 45, "etag": "1"}
        self.paid: list[Any] = []
        profiles = {
            "read_bill": ToolProfile(effect="read", sink="none", data_class="public", trust="system", resource="bill:{month}", **read),
            "pay": ToolProfile(effect="pay", sink="external", critical={"iban": "principal"}),
        }
        self.authz = RuntimeAuthz(profiles=profiles, pdp=WasmPDP(data={"effects": EFFECTS}))

    def tools(self) -> list[Any]:
        pay = a_tool("pay", lambda iban, amount: self.paid.append((iban, amount)), iban=str, amount=int)
        return [a_tool("read_bill", lambda month: dict(self.bill), month=str), pay]


def _effects() -> dict[str, Any]:
    """The shipped table, but for payments: the question here is whether the data is still so."""
    data = json.loads(resources.files("langchain_runtime_authz").joinpath("policies/data.json").read_text())
    effects: dict[str, Any] = data["runtime_authz_data"]["effects"]
    return {**effects, "pay": "permit"}


EFFECTS = _effects()
READ = call("read_bill", {"month": "12"}, "r1")
AGAIN = call("read_bill", {"month": "12"}, "r2")
PAY = call("pay", {"iban": "DE21500105179625862911", "amount": 45}, "p1")


def playing(*turns: Any) -> ScriptedChatModel:
    """Plays one turn per model call; ends on a denial."""
    left = list(turns)

    def respond(messages: list[Any]) -> AIMessage:
        if isinstance(messages[-1], ToolMessage) and messages[-1].status == "error":
            return says(text="done")
        turn = left.pop(0) if left else ()
        return turn() if callable(turn) else says(*turn) if turn else says(text="done")

    return ScriptedChatModel(script=[respond] * 50)


def built(office: Office, *turns: Any, protected: bool = True) -> Any:
    graph = hand_written(playing(*turns), office.tools(), checkpointer=InMemorySaver())
    return office.authz.protect(graph) if protected else graph


def epoch(office: Office) -> int:
    return int(epoch_of(office.authz))


def pays_after(office: Office, changed: str) -> Callable[[], AIMessage]:
    """Return a turn in which the data changes before the payment is planned."""

    def turn() -> AIMessage:
        office.authz.data_changed(changed)
        return says(PAY)

    return turn


def test_what_the_application_says_changed_is_not_acted_on() -> None:
    """`data_changed` between reading and paying: refused, rotated, and paid once it was read again."""
    office = Office()
    graph = built(office, (READ,), pays_after(office, "bill:12"))
    with office.authz.run(subject="alice", task="Pay the bill"), pytest.raises(AuthzHalt):
        graph.invoke(human("Pay the bill"), THREAD)
    assert office.paid == [] and epoch(office) == 2
    answer = graph.get_state(THREAD).values["messages"][-1]
    assert "Read it again" in answer.content
    again = office.authz.protect(
        hand_written(playing((AGAIN,), (call("pay", PAY["args"], "p2"),)), office.tools(), checkpointer=InMemorySaver())
    )
    with office.authz.run(subject="alice"):
        again.invoke(human("go on"), THREAD)
    assert office.paid == [("DE21500105179625862911", 45)]


@pytest.mark.parametrize(
    ("month", "changed"),
    [*((m, "May") for m in ("may", " May", "MAY ")), *((m, "2026-05") for m in ("May 2026", "may, 2026")),
     *((m, "May 13, 2026") for m in ("2026-5-13", "13th of May 2026", "13.05.2026"))],
)
def test_another_spelling_of_what_was_read_is_no_other_resource(month: str, changed: str) -> None:
    """A hijacked model reads in a spelling that nobody reports. Unenforced the old bill is paid."""
    for protected in (True, False):
        office = Office()
        graph = built(office, (call("read_bill", {"month": month}, "r1"),), pays_after(office, f"bill:{changed}"), protected=protected)
        with office.authz.run(subject="alice", task="Pay the bill") if protected else nullcontext(), contextlib.suppress(AuthzHalt):
            graph.invoke(human("Pay the bill"), THREAD)
        assert bool(office.paid) is not protected


@pytest.mark.parametrize("late", [False, True], ids=["reported before", "reported after"])
def test_what_an_older_version_kept_still_counts(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept names as they were written. What this version read again takes its place."""
    office, month = Office(), {"month": "May"}
    for module in (resource, thread_acts):
        monkeypatch.setattr(module, "one_spelling", str)
    session = office.authz.session(subject="alice", task="Pay the bill", thread="t")
    assert session.decide("read_bill", month).permit
    session.observe("read_bill", month, office.bill)
    if late:
        monkeypatch.undo()
    office.authz.data_changed("bill:May")
    monkeypatch.undo()
    assert not session.decide("pay", PAY["args"]).permit
    session = office.authz.session(subject="alice", thread="t")
    assert session.decide("read_bill", month).permit
    session.observe("read_bill", month, office.bill)
    assert session.decide("pay", PAY["args"]).permit


def test_a_read_that_fails_reads_nothing_anew() -> None:
    """The bill changes, and reading it again fails. The model still holds the old bill."""
    office, month = Office(), {"month": "12"}
    session = office.authz.session(subject="alice", task="Pay the bill", thread="t")
    assert session.decide("read_bill", month).permit
    session.observe("read_bill", month, office.bill)
    office.authz.data_changed("bill:12")
    assert session.decide("read_bill", month).permit
    session.observe("read_bill", month, None, OSError("no route"))
    assert not session.decide("pay", PAY["args"]).permit


@pytest.mark.parametrize(
    ("changed", "text"), [("bill:11", "Pay the bill"), ("bill:12", "Pay 45 to DE21500105179625862911")], ids=["unread", "said"]
)
def test_what_the_payment_is_not_based_on_changes_nothing(changed: str, text: str) -> None:
    """What was not read is no matter. If the account stands in the user's own words, the bill is no matter either."""
    office = Office()
    told(office.authz, built(office, (READ,), pays_after(office, changed)), human(text), THREAD, task=text)
    assert office.paid and epoch(office) == 1


def interrupted(office: Office, edit: dict[str, Any]) -> Any:
    """The plan [read again, pay] waits; the bill is edited; then both are carried out, one after the other."""
    both = lambda: says(AGAIN, PAY)
    model = playing((READ,), both)
    builder = StateGraph(MessagesState)
    read, pay = office.tools()
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("reads", ToolNode([read]))
    builder.add_node("pays", ToolNode([pay]))

    def edited(state: MessagesState) -> dict[str, Any]:
        office.bill.update(edit)
        return {}

    def planned(state: MessagesState) -> str:
        last = state["messages"][-1]
        names = [c["name"] for c in last.tool_calls] if isinstance(last, AIMessage) else []
        return "edited" if len(names) == 2 else "reads" if names else END

    def split(state: MessagesState) -> list[Any]:
        plan = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return [Send("reads", [plan.tool_calls[0]])]

    def then(state: MessagesState) -> Any:
        plan = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return [Send("pays", [plan.tool_calls[1]])] if len(plan.tool_calls) == 2 else "agent"

    builder.add_node("edited", edited)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", planned, ["edited", "reads", END])
    builder.add_conditional_edges("edited", split, ["reads"])
    builder.add_conditional_edges("reads", then, ["pays", "agent"])
    builder.add_edge("pays", "agent")
    return builder.compile(checkpointer=InMemorySaver(), name="hand")


OTHER = {"iban": "GB33BUKB20201555555555", "etag": "2"}


@pytest.mark.parametrize(
    ("read", "edit", "paid"),
    [({}, OTHER, False), ({}, {}, True), ({"version": "etag"}, {"viewed": 7}, True), ({"version": "etag"}, {"etag": "2"}, False)],
    ids=["another content", "the same content", "another view of a version", "another version"],
)
def test_a_read_that_gives_another_content_voids_the_plan_before_it(read: dict[str, Any], edit: dict[str, Any], paid: bool) -> None:
    """The same read with the same arguments. With `version`, a counter of views is no change. Unenforced the first account is paid."""
    unenforced = Office(**read)
    interrupted(unenforced, edit).invoke(human("Pay the bill"), THREAD)
    assert unenforced.paid == [("DE21500105179625862911", 45)]
    office = Office(**read)
    graph = office.authz.protect(interrupted(office, edit))
    with contextlib.nullcontext() if paid else pytest.raises(AuthzHalt):
        told(office.authz, graph, human("Pay the bill"), THREAD, task="Pay the bill")
    assert (bool(office.paid), epoch(office)) == (paid, 1 if paid else 2)
