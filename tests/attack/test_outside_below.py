"""Somebody edits, from outside, what a child keeps that a tool called or that has a memory of its own."""

import operator
import sqlite3
from itertools import product

from langchain_runtime_authz.facts import checkpoint_head
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.langgraph import graph_entry
from tests.attack.test_outside import THREAD, House
from tests.tier import part

from ._kit import *

OWN = {"configurable": {"thread_id": "own"}}
# Who calls the child, and what it keeps: a state for one task, one beside the root's thread, one of its own. With
# a 2 it is the second that its task calls.
KINDS = ("node-task", "tool-task", "tool-memory", "tool-own", "node-memory", "tool-task-2", "tool-memory-2", "code-task-2", "code-memory-2")


def to_eve(messages: list[Any]) -> AIMessage:
    return messages[-1].model_copy(update={"tool_calls": [{**messages[-1].tool_calls[0], "args": {"to": "eve", "amount": 95}}]})


def to_carol(messages: list[Any]) -> HumanMessage:
    return HumanMessage("Pay carol", id=messages[0].id)


def to_the_same(messages: list[Any]) -> HumanMessage:
    return HumanMessage(messages[0].content, id=messages[0].id, name="alice")


class Family(House):
    """A root whose tool or node calls a paying child, which stops before its own tools."""

    def __init__(self, kind: str, *, protected: bool = True, ledger: Any = None) -> None:
        self.kind = kind
        self.own = InMemorySaver()
        self.fails = False
        self.inside: Any = None  # what a node of the root does with the child before it calls it
        self.children: list[Any] = []
        super().__init__(protected=False)
        profiles = {**PROFILES, "delegate": ToolProfile(effect="read", sink="none")}
        self.authz = authz_with(StaticPDP(True), profiles=profiles, ledger=ledger)
        if protected:
            self.authz.protect(self.graph)

    def child(self) -> Any:
        kept = {"task": None, "own": self.own, "memory": True}[self.kind.split("-")[1]]
        self.children.append(super().build(checkpointer=kept, name="child"))
        return self.children[-1]

    def build(self, **options: Any) -> Any:
        child = self.child()
        begin = {"messages": [HumanMessage("Pay the bill")]}
        scout = chain({"scout": lambda _: {"messages": [AIMessage("all clear")]}}, name="scout")

        def work(config: RunnableConfig) -> Any:
            if self.fails:
                raise OSError
            if self.kind.endswith("-2"):
                scout.invoke(begin, config)
            return child.invoke(begin, config)

        @tool
        def delegate(config: RunnableConfig) -> str:
            """Let the child work, and go on where it stopped."""
            if self.kind == "tool-own":
                state = child.get_state(OWN)
                said = child.invoke(None if state.next else begin, OWN)
            else:
                said = work(config)
            return str(said["messages"][-1].text)

        def agent(state: MessagesState) -> dict[str, Any]:
            last = state["messages"][-1]
            return {"messages": [says(text="done") if isinstance(last, ToolMessage) else self.plan()]}

        builder = StateGraph(MessagesState)
        builder.add_edge(START, "agent")
        if self.kind.startswith("node"):
            builder.add_node("agent", lambda state: self.inside(child) if self.inside else {})
            builder.add_node("child", child)
            builder.add_edge("agent", "child")
        elif self.kind.startswith("code"):
            builder.add_node("agent", lambda state, config: {"messages": work(config)["messages"][-1:]})
        else:
            builder.add_node("agent", agent)
            builder.add_node("tools", ToolNode([delegate, read_tool(self.ran)]))
            builder.add_conditional_edges("agent", lambda s: "tools" if s["messages"][-1].tool_calls else END, ["tools", END])
            builder.add_edge("tools", "agent")
        return builder.compile(checkpointer=self.saver, name="hand")

    def plan(self) -> AIMessage:
        self.number = getattr(self, "number", 0) + 1
        return says(call("delegate", {}, f"delegate-{self.number}"))

    def change(self, change: Any, by: str = "raw") -> None:
        """`update_state` of the child, in this process or in one that does not protect it."""
        root, child = (self.graph, self.children[0]) if by == "protected" else (self.raw, self.children[1])
        if self.kind == "node-memory":
            place, writer = {"configurable": {"thread_id": "t", "checkpoint_ns": "child"}}, root
        elif self.kind == "node-task":
            place, writer = root.get_state(THREAD, subgraphs=True).tasks[0].state.config, root
        elif self.kind == "tool-own":
            place, writer = OWN, child
        else:  # LangGraph finds such a child by no road of its own: by its namespace, as who writes to the store does
            second = self.kind.endswith("-2")
            (name,) = [n for n, kept in self.saver.storage["t"].items() if n and kept and second == n.endswith("|1")]
            lent = {"__pregel_checkpointer": self.saver}
            place, writer = {"configurable": {"thread_id": "t", "checkpoint_ns": name, **lent}}, child
        held = writer.get_state(place).values["messages"]
        writer.update_state(place, {"messages": [change(held)]}, as_node="agent")

    def on(self, how: str = "sync") -> None:
        """The next entry: where the child waits by itself it is called again."""
        given = {"messages": [("user", "go on")]} if self.kind == "tool-own" else None
        try:
            self.go(given, how=how)
        except (AuthzHalt, AuthzDenied):
            pass


@pytest.mark.parametrize(("change", "by", "kind"), part([*product([to_eve, to_carol], ["protected", "raw", "twin"], KINDS)], 2))  # in CI one change
def test_what_a_child_keeps_is_void_once_it_was_edited(kind: str, change: Any, by: str, how: str) -> None:
    """The next run that loads it opens the next epoch, once, and pays nothing of the old plan. Unprotected it pays."""
    family = Family.waiting(kind, protected=by != "twin")
    family.change(change, by)
    family.on(how)
    if by == "twin":
        assert [x for x in family.ran if x[0] in ("bob", "eve")]
        return
    # Of `tool-own` the user writes once more.
    assert (family.ran, family.epoch) == ([], 3 if kind == "tool-own" else 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["protected", "raw", "nobody"])
def test_an_edit_that_says_the_same_is_no_correction(kind: str, by: str) -> None:
    """The plan that waited still runs, as if nobody had edited anything. Of `tool-own` the user writes once more."""
    family = Family.waiting(kind)
    if by != "nobody":
        family.change(to_the_same, by)
    family.on()
    assert (family.epoch, family.ran) == ((2, []) if kind == "tool-own" else (1, [PAID]))


@pytest.mark.parametrize("heard", [True, False])
def test_what_the_agents_own_code_edits_is_no_correction(heard: bool) -> None:
    """A node that writes into the memory of the child below it does the agent's work.

    If the ledger did not hear of it, the run halts, and the text counts as somebody's at the next look.
    """
    family = Family.waiting("node-memory")
    family.on()
    place = {"configurable": {"thread_id": "t", "checkpoint_ns": "child"}}

    def note(child: Any) -> dict[str, Any]:
        with contextlib.nullcontext() if heard else ledger_down():
            family.graph.update_state(place, {"messages": [HumanMessage("as the agent notes")]}, as_node="agent")
        return {}

    family.inside = note
    if heard:
        family.go(human("And again"))
    else:
        assert code_of(lambda: family.go(human("And again")), AuthzHalt) == "ledger_unavailable"
        family.inside = None
    assert family.epoch == 2
    family.on()
    assert (family.epoch, len(family.ran)) == ((2, 2) if heard else (3, 1))


def marks(path: Path) -> list[str]:
    """The names of the marks that concern children."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        names = [json.loads(name) for (name,) in ledger.execute("SELECT name FROM mark")]
    return sorted(n.partition(":")[0] for n in names if n.startswith(("task:", "child:")))


@pytest.mark.parametrize("kind", [k for k in KINDS if "task" in k])
def test_what_waited_for_one_task_is_forgotten_with_it(kind: str, tmp_path: Path) -> None:
    """Whether the child goes on to its end, or another word of the human's leaves it behind for ever."""
    family = Family(kind, ledger=SqliteLedger(tmp_path / "ledger.db"))
    for said in ("Pay the bill", "And the other one"):
        family.go(human(said))
        assert marks(tmp_path / "ledger.db") == ["task"]
        family.on()
        assert marks(tmp_path / "ledger.db") == []
    family.go(human("And a third"))
    family.go(human("Rather a fourth"))
    assert marks(tmp_path / "ledger.db") == ["task"] * 2
    family.on()
    assert marks(tmp_path / "ledger.db") == [] and len(family.ran) == 3


def test_what_waits_is_remembered_over_a_run_that_fails(tmp_path: Path) -> None:
    """The task is tried again, and finds the child as it was: an edit meanwhile counts."""
    family = Family("tool-task", ledger=SqliteLedger(tmp_path / "ledger.db"))
    family.go(human())
    family.fails = True
    with pytest.raises(OSError):
        family.go(None)
    assert marks(tmp_path / "ledger.db") == ["task"]
    family.change(to_eve)
    family.fails = False
    family.on()
    assert (family.epoch, family.ran) == (2, [])


def test_what_waits_is_remembered_over_an_entry_that_is_refused(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task has ended with it: an edit after it counts."""
    family = Family("tool-task", ledger=SqliteLedger(tmp_path / "ledger.db"))
    family.go(human())
    reads = [OSError("a database that is away for a moment")]
    whole = graph_entry.RootEntry._delivered

    def told(*args: Any) -> Any:
        if reads:
            raise reads.pop()
        return (yield from whole(*args))

    monkeypatch.setattr(graph_entry.RootEntry, "_delivered", told)
    with pytest.raises(OSError, match="away"):
        family.go(None, how=how)
    assert marks(tmp_path / "ledger.db") == ["task"]
    family.change(to_eve)
    family.on(how)
    assert (family.epoch, family.ran) == (2, [])


def test_children_on_ever_new_threads_share_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is a bound; of two that meet in one the newer is remembered, and never the one for the other."""
    monkeypatch.setattr(checkpoint_head, "SLOTS", 2)
    kept: dict[str, str] = {}
    made = [checkpoint_head.ChildMark(raw_digest(str(n)), lasting=True) for n in range(100)]
    for number, mark in enumerate(made):
        kept[mark.name] = mark.value(str(number))
        assert mark.left(kept) == str(number)
    assert len(kept) == sum(mark.left(kept) is not None for mark in made) == 2


class Outer(TypedDict):
    told: Annotated[list[str], operator.add]


class Inner(Outer):
    subject: str


def test_an_edit_of_a_waiting_node_counts_when_it_is_made(how: str, authz: Any) -> None:
    """Of a graph whose channels are its own: the next epoch is open at once, and the next run goes through."""
    child = StateGraph(Inner, output_schema=Outer).add_node("think", lambda _: {"subject": "cats"}).add_edge(START, "think")
    child.add_node("tell", lambda state: {"told": [state["subject"]]}).add_edge("think", "tell")
    graph = StateGraph(Outer).add_node("child", child.compile(interrupt_before=["tell"])).add_edge(START, "child")
    graph = graph.compile(checkpointer=InMemorySaver())
    authz.protect(graph)

    async def ago() -> None:
        async with authz.run(subject="alice"):
            await graph.ainvoke({"told": []}, THREAD)
        (task,) = (await graph.aget_state(THREAD)).tasks
        await graph.aupdate_state(task.state, {"subject": "turtles"})
        async with authz.run(subject="alice"):
            assert (await graph.ainvoke(None, THREAD))["told"] == ["turtles"]

    if how == "async":
        asyncio.run(ago())
    else:
        told(authz, graph, {"told": []}, THREAD)
        (task,) = graph.get_state(THREAD).tasks
        graph.update_state(task.state, {"subject": "turtles"})
        with authz.run(subject="alice"):
            assert graph.invoke(None, THREAD)["told"] == ["turtles"]
    (corrected,) = [r for r in authz.audit.records if r.get("event") == "corrected"]
    assert corrected["epoch"] == 2


class Gathered:
    """A node that gathers two agents, which stop before their tools; the second plans after the first has ended the run."""

    def __init__(self, *, protected: bool = True) -> None:
        self.ran: list[str] = []
        self.later = asyncio.Event()

        @tool
        async def look(what: str) -> str:
            """Look."""
            self.ran.append(what)
            return what

        async def plan(state: MessagesState) -> dict[str, Any]:
            if isinstance(state["messages"][-1], ToolMessage):
                return {"messages": [AIMessage("done")]}
            if (topic := state["messages"][0].text) == "b":
                await self.later.wait()
            return {"messages": [says(call("look", {"what": topic}, topic))]}

        child, self.editor = (loop(plan, ToolNode([look]), interrupt_before=["tools"]) for _ in range(2))
        self.saver = InMemorySaver()

        async def supervise(_: MessagesState) -> dict[str, Any]:
            found = await asyncio.gather(*(child.ainvoke(human(topic)) for topic in "ab"))
            return {"messages": [one["messages"][-1] for one in found]}

        self.graph = chain({"supervise": supervise}, checkpointer=self.saver)
        self.authz = authz_with(StaticPDP(True), profiles={"look": ToolProfile(effect="write")})
        if protected:
            self.authz.protect(self.graph)

    async def edit(self) -> None:
        """Change what the first agent would do, as another process does that does not protect it."""
        (name,) = [n for n, kept in self.saver.storage["t"].items() if n and kept and not n.endswith("|1")]
        lent = {"__pregel_checkpointer": self.saver}
        place = {"configurable": {"thread_id": "t", "checkpoint_ns": name, **lent}}
        await self.editor.aupdate_state(place, {"messages": [says(call("look", {"what": "eve"}, "a"))]}, as_node="agent")

    async def go(self, *, edited: bool = False) -> list[str]:
        for given in (human("go"), None):
            async with self.authz.run(subject="alice"):
                with contextlib.suppress(AuthzHalt):  # the first entry that sees the edit
                    await self.graph.ainvoke(given, THREAD)
            if not self.later.is_set():
                self.later.set()
                await asyncio.sleep(0.2)  # the agent that was left behind plans, and stops
                if edited:
                    await self.edit()
        return self.ran


def test_an_agent_that_was_left_behind_edits_nothing() -> None:
    """It writes its state after the run ended: the task is the same, and both plans run."""
    gathered = Gathered()
    assert sorted(asyncio.run(gathered.go())) == ["a", "b"]
    assert not [r for r in gathered.authz.audit.records if r.get("event") == "corrected"]


@pytest.mark.parametrize("protected", [True, False], ids=["enforced", "unenforced"])
def test_an_edit_counts_beside_an_agent_that_was_left_behind(protected: bool) -> None:
    assert ("eve" in asyncio.run(Gathered(protected=protected).go(edited=True))) != protected
