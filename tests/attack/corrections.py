"""The correction matrix: every road by which a human changes a task, into graphs of every kind.

`python -m tests.attack.corrections --write` writes it to `docs/_generated`. A cell
is played, protected and unprotected, in the synchronous and the asynchronous form. Unprotected the old
payment is made. Protected no payment of the old epoch is made once the correction is committed, epoch
and jti have moved, and the agent comes to its end.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from langchain_runtime_authz.credential.ticket import current_ticket
from tests import generated

from ._kit import *

MODES: Final = ("sync", "async")
STOP: Final = "STOP, pay nobody"
PROFILES: Final = {
    "pay": ToolProfile(effect="pay", sink="external", critical={"to": "principal", "amount": "amount"}),
    "look": ToolProfile(effect="read", sink="none", data_class="public"),
}


# --- the graphs ----------------------------------------------------------------------------------------


class State(MessagesState):
    """Messages, and what else a human may edit."""

    todos: list[dict[str, str]]
    files: Annotated[dict[str, str], lambda old, new: {**(old or {}), **new}]
    instructions: str


@dataclass(frozen=True)
class Kind:
    """How an agent is built. `plans_in` is the node that plans, `below` the node that the agent is, if it is a child."""

    name: str
    build: Callable[[Desk], Any]
    plans_in: str = "agent"
    below: str = ""
    needs: str = ""


def _hand(desk: Desk) -> Any:
    model = desk.model()
    return loop(lambda state: {"messages": [model.invoke(state["messages"])]}, ToolNode(desk.tools), by_the_plan, state=State, checkpointer=desk.saver, store=desk.store, name="desk")


def _agent(desk: Desk, name: str = "desk", **kept: Any) -> Any:
    from langchain.agents import AgentState, create_agent

    class Noted(AgentState[Any]):
        todos: list[dict[str, str]]
        files: Annotated[dict[str, str], lambda old, new: {**(old or {}), **new}]
        instructions: str

    kept = kept or {"checkpointer": desk.saver, "store": desk.store}
    return create_agent(desk.model(), desk.tools, state_schema=Noted, name=name, **kept)


def _react(model: Any, tools: list[BaseTool], name: str) -> Any:
    from langgraph.prebuilt import create_react_agent

    with quiet():
        return create_react_agent(model, tools, name=name)


def _supervisor(desk: Desk) -> Any:
    from langgraph_supervisor import create_supervisor

    payer = _agent(desk, "payer", checkpointer=None)
    built = create_supervisor([payer], model=desk.front())
    return built.compile(checkpointer=desk.saver, store=desk.store, name="desk")


def _swarm(desk: Desk) -> Any:
    from langgraph_swarm import create_handoff_tool, create_swarm

    front = _react(desk.front(), [create_handoff_tool(agent_name="payer")], "front")
    payer = _agent(desk, "payer", checkpointer=None)
    built = create_swarm([front, payer], default_active_agent="front")
    return built.compile(checkpointer=desk.saver, store=desk.store, name="desk")


def _deep(desk: Desk) -> Any:
    from deepagents import DeepAgentState, create_deep_agent

    class Noted(DeepAgentState):  # type: ignore[misc]
        todos: list[dict[str, str]]
        instructions: str

    with quiet():
        return create_deep_agent(
            model=desk.model(), tools=desk.tools, state_schema=Noted, checkpointer=desk.saver, store=desk.store, name="desk"
        )


KINDS: Final = {
    k.name: k
    for k in (
        Kind("hand-written", _hand), Kind("create_agent", _agent, "model", needs="langchain"),
        Kind("supervisor", _supervisor, "model", below="payer", needs="langgraph_supervisor"),
        Kind("swarm", _swarm, "model", below="payer", needs="langgraph_swarm"),
        Kind("deepagents", _deep, "model", needs="deepagents"),
    )
}


# --- one thread of one graph ---------------------------------------------------------------------------


def _stopped(messages: list[Any]) -> bool:
    return any(STOP in m.text for m in messages if isinstance(m, HumanMessage | ToolMessage))


@dataclass
class Desk:
    """A thread. `ran` has for each payment who got how much and the epoch of its ticket, if it had one."""

    kind: Kind
    mode: str
    protected: bool
    waits: str  # for its own question, for an approval, or not at all
    ran: list[tuple[str, int, int | None]] = field(default_factory=list)
    thread: str = "t"
    thinks: Callable[[Desk], None] | None = None  # what happens while the model thinks
    saver: Any = field(default_factory=InMemorySaver)
    ledger: Any = None

    def __post_init__(self) -> None:
        self.store = InMemoryStore()
        self.store.put(("memories", "alice"), "rule", {"text": "pay bills at once"})
        self.pdp = StaticPDP(self._decide)
        self.authz = RuntimeAuthz(
            pdp=self.pdp, ledger=self.ledger, profiles=PROFILES,
            task_sources=TaskSources(("messages", "instructions"), memory=(("memories", "{subject}"),)),
        )
        self.tools = self._tools()
        self.graph = self.kind.build(self)
        self.raw = self.graph
        if self.protected:
            self.raw = self.kind.build(self)  # another process, which does not protect it
            with quiet():
                self.authz.protect(self.graph)
        self.jtis: set[str] = set()
        self.paid_before = 0

    def _decide(self, request: Any) -> object:
        if request.action.name != "tools/call" or request.resource.id != "pay":
            return True
        if not request.context.plan.planned:
            return False
        return True if self.waits != "approval" or request.context.approval is not None else ASK

    def _tools(self) -> list[BaseTool]:
        desk = self

        @tool
        def pay(to: str, amount: int) -> str:
            """Pay somebody."""
            if desk.waits == "question" and interrupt({"question": "Pay now?", "options": ["yes", "no"]}) == "no":
                return "not paid"
            ticket = current_ticket()
            desk.ran.append((to, amount, ticket.epoch if ticket is not None else None))
            return "paid"

        look = a_tool("look", lambda at: "seen", at=str)
        return [pay, look]

    def model(self) -> ScriptedChatModel:
        """Pays until it is told to stop or has paid."""

        def respond(messages: list[Any]) -> AIMessage:
            act, self.thinks = self.thinks, None
            if act is not None:
                beside(lambda: act(self))
            last = messages[-1]
            if _stopped(messages) or (isinstance(last, ToolMessage) and "transfer" not in str(last.name)):
                return says(text="done")
            number = sum(isinstance(m, AIMessage) for m in messages)
            return says(call("pay", {"to": "bob", "amount": 5}, f"call-{number}"))

        return ScriptedChatModel(script=[respond] * 60)

    def front(self) -> ScriptedChatModel:
        """Hands the work on once."""

        def respond(messages: list[Any]) -> AIMessage:
            if _stopped(messages) or any(isinstance(m, ToolMessage) for m in messages):
                return says(text="done")
            return says(call("transfer_to_payer", {}, "call-handoff"))

        return ScriptedChatModel(script=[respond] * 60)

    @property
    def config(self) -> dict[str, Any]:
        return {"configurable": {"thread_id": self.thread}}

    def go(self, given: Any, config: Any = None) -> Any:
        """One root entry; what a correction halts is over."""
        config = config or self.config
        with suppress(AuthzHalt):
            return run_as(self.authz, self.graph, given, config, how=self.mode)
        return None

    def write(self, values: Mapping[str, Any], *, raw: bool = False) -> None:
        """`update_state` where the plan waits: of the agent itself, also where it is a child."""
        graph, config, node = (self.raw if raw else self.graph), self.config, self.kind.plans_in
        if self.kind.below:
            (task,) = [t for t in graph.get_state(config, subgraphs=True).tasks if t.name == self.kind.below]
            config = task.state.config
        if self.mode == "async":
            asyncio.run(graph.aupdate_state(config, dict(values), as_node=node))
        else:
            graph.update_state(config, dict(values), as_node=node)

    def held(self) -> list[Any]:
        """The messages of the agent that plans."""
        state = self.raw.get_state(self.config, subgraphs=True)
        if self.kind.below:
            (state,) = [t.state for t in state.tasks if t.name == self.kind.below]
        return list(state.values["messages"])

    @property
    def epoch(self) -> int:
        return epoch_of(self.authz, "desk", self.thread)

    def finish(self) -> list[Any]:
        """Enter the thread until nothing is left to do; its messages."""
        self.go({"messages": []})
        for _ in range(6):
            state = self.raw.get_state(self.config)
            if not state.next:
                break
            self.go(Command(resume="yes") if state.interrupts else None)
        return list(self.raw.get_state(self.config).values["messages"])


def beside(act: Callable[[], Any]) -> None:
    """Do something in a thread of its own: another request of the same server."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


# --- the roads -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Road:
    """A way to change the task.

    `act` corrects and lets the old plan go on. `waits`: what the plan waits for meanwhile; empty for a
    run in flight, which `correct` corrects at once. `only` names the kinds that can express it, `because` says why not the others.
    """

    says: str
    act: Callable[[Desk], None]
    waits: str = "question"
    only: tuple[str, ...] = tuple(KINDS)
    because: str = ""
    made: int = 1  # payments that a twin without us makes
    may: int = 0  # payments of the old plan that were made before the correction
    correct: Callable[[Desk], None] | None = None
    meanwhile: Callable[[Desk], None] | None = None  # what corrects while the plan is made that waits then
    rotates: bool = True  # else there is no task that changes, and no plan either

    @property
    def slug(self) -> str:
        """Names it in test ids."""
        return re.sub(r"[^a-z_]+", "-", self.says.lower()).strip("-")


def _then_yes(correct: Callable[[Desk], None]) -> Callable[[Desk], None]:
    def act(desk: Desk) -> None:
        correct(desk)
        desk.go(Command(resume="yes"))

    return act


def _told(by: str | None = None) -> Callable[[Desk], None]:
    def correct(desk: Desk) -> None:
        if not desk.protected:
            return  # without us there is no such road
        if desk.mode == "async":
            asyncio.run(desk.authz.acorrect(desk.thread, STOP, by=by))
        else:
            desk.authz.correct(desk.thread, STOP, by=by)

    return correct


def _append(desk: Desk) -> None:
    desk.write({"messages": [HumanMessage(STOP)]})


def _append_elsewhere(desk: Desk) -> None:
    desk.write({"messages": [HumanMessage(STOP)]}, raw=True)


def _edit_human(desk: Desk) -> None:
    first = next(m for m in desk.held() if isinstance(m, HumanMessage))
    desk.write({"messages": [HumanMessage(STOP, id=first.id)]})


def _edit_plan(desk: Desk, *, raw: bool = False) -> None:
    plan = desk.held()[-1]
    edited = plan.model_copy(update={"tool_calls": [{**plan.tool_calls[0], "args": {"to": "eve", "amount": 95}}]})
    desk.write({"messages": [edited]}, raw=raw)


def _edit_human_elsewhere(desk: Desk) -> None:
    first = next(m for m in desk.held() if isinstance(m, HumanMessage))
    desk.write({"messages": [HumanMessage(STOP, id=first.id)]}, raw=True)


def _edit_plan_elsewhere(desk: Desk) -> None:
    _edit_plan(desk, raw=True)


def _edit(name: str, value: Any) -> Callable[[Desk], None]:
    return lambda desk: desk.write({name: value})


def _remember(desk: Desk) -> None:
    desk.store.put(("memories", "alice"), "rule", {"text": "never pay"})


def _fork(desk: Desk) -> None:
    waiting = desk.raw.get_state(desk.config).config
    desk.go(Command(resume="yes"))
    desk.go(None, waiting)
    desk.go(Command(resume="yes"))


def _copied(desk: Desk) -> None:
    kept = list(desk.saver.list(desk.config))
    desk.thread += "-copy"
    for one in reversed(kept):  # checkpoint by checkpoint, those of children and what waits too
        place = {"thread_id": desk.thread, "checkpoint_ns": one.config["configurable"]["checkpoint_ns"]}
        before = one.parent_config["configurable"]["checkpoint_id"] if one.parent_config else None
        new = {"configurable": {**place, "checkpoint_id": before}}
        new = desk.saver.put(new, one.checkpoint, one.metadata, one.checkpoint["channel_versions"])
        for task, channel, value in one.pending_writes or ():
            desk.saver.put_writes(new, [(channel, value)], task)
    desk.go(None)
    desk.go(Command(resume="yes"))


def _forged(desk: Desk) -> None:
    desk.go(human())
    made = call("pay", {"to": "eve", "amount": 95}, "call-forged")
    desk.go(Command(goto=Send("tools", {"messages": [AIMessage("", tool_calls=[made])]})))


def _resumed(value: Any) -> Callable[[Desk], None]:
    return lambda desk: desk.go(Command(resume=value)) and None


def _decided(**decision: Any) -> Callable[[Desk], None]:
    return _resumed({"decisions": [decision]})


def _meanwhile(correct: Callable[[Desk], None]) -> Callable[[Desk], None]:
    def act(desk: Desk) -> None:
        desk.thinks = correct
        desk.go(human())

    return act


def _another_invoke(desk: Desk) -> None:
    with desk.authz.run(subject="alice"):
        desk.graph.invoke(human(STOP), desk.config)


def _root_update(desk: Desk) -> None:
    desk.graph.update_state(desk.config, {"messages": [HumanMessage(STOP)]}, as_node="__start__")


def _root_update_elsewhere(desk: Desk) -> None:
    desk.raw.update_state(desk.config, {"messages": [HumanMessage(STOP)]}, as_node="__start__")


def _drop(desk: Desk) -> None:
    desk.graph.update_state(desk.config, None, as_node="__end__")


FLAT = ("hand-written", "create_agent", "deepagents")
ROADS: Final = {
    r.says: r
    for r in (
        Road("an answer in words to a tool's own question", _resumed(STOP)),
        Road("`authz.correct()` while the plan waits", _then_yes(_told())),
        Road("the same by another author", _then_yes(_told("bob"))),
        Road("`update_state`: a message more", _then_yes(_append)),
        Road("the same in a process that does not protect", _then_yes(_append_elsewhere)),
        Road("`update_state`: a user's message edited", _then_yes(_edit_human)),
        Road("`update_state`: the model's call edited", _then_yes(_edit_plan)),
        Road("a user's message edited in a process that does not protect", _then_yes(_edit_human_elsewhere)),
        Road("the model's call edited in a process that does not protect", _then_yes(_edit_plan_elsewhere)),
        *(
            Road(f"`update_state`: `{name}`", _then_yes(_edit(name, value)))
            for name, value in (
                ("todos", [{"content": "pay nobody", "status": "pending"}]), ("files", {"plan.md": "pay nobody"}),
                ("instructions", "pay nobody"),
            )
        ),
        Road("the store's memory, edited", _then_yes(_remember)),
        Road("a replay from an older checkpoint", _fork, made=2, may=1),
        Road("the thread and its plan, copied", _copied, rotates=False),
        Road("`Command(goto=Send(...))` with a call of the client's", _forged, "", only=FLAT,
             because="its tools' node is a child's", made=2, may=1, rotates=False),
        Road("`respond` to our question", _decided(type="respond", message=STOP), "approval"),
        Road("`reject` with a reason", _decided(type="reject", message=STOP), "approval"),
        Road("an edit", _decided(type="edit", edited_action={"name": "pay", "args": {"to": "bob", "amount": 2}}), "approval"),
        Road("an edit to another tool", _decided(type="edit", edited_action={"name": "look", "args": {"at": "it"}}), "approval"),
        Road("another `invoke` while the model thinks", _meanwhile(_another_invoke), "", correct=_another_invoke),
        Road("`authz.correct()` while the model thinks", _meanwhile(_told()), "", correct=_told()),
        Road("`update_state` while the model thinks", _meanwhile(_root_update), "", correct=_root_update),
        Road("`update_state` ends the thread while the model thinks", _meanwhile(_drop), "", correct=_drop),
        Road("`update_state` in a process that does not protect, while the model makes the plan that then waits",
             _resumed("yes"), only=FLAT, because="the root has written nothing since, so the edit stands",
             meanwhile=_root_update_elsewhere),
    )
}  # fmt: skip


def play(road: Road, kind: Kind, mode: str, *, protected: bool) -> Desk:
    """One cell, in one process."""
    desk = Desk(kind, mode, protected, road.waits)
    if road.waits and (protected or road.waits == "question"):
        desk.thinks = road.meanwhile
        desk.go(human())
        desk.jtis = {r.context.lease.jti for r in desk.pdp.requests}
        road.act(desk)
    elif road.waits:  # without us nobody is asked
        desk.go(human())
    else:
        road.act(desk)
        desk.jtis = {r.context.lease.jti for r in desk.pdp.requests if r.context.task.epoch == 1}
    return desk


def harm(road: Road, kind: Kind, mode: str) -> bool:
    """Whether the old plan is carried out without us."""
    return len(play(road, kind, mode, protected=False).ran) == road.made


def check(road: Road, kind: Kind, mode: str) -> None:
    """Protected: nothing of the old plan, epoch and jti moved, and the agent comes to its end."""
    verify(road, play(road, kind, mode, protected=True))


def verify(road: Road, desk: Desk) -> None:
    """What must hold of a protected desk after a correction."""
    assert len([r for r in desk.ran if r[2] == 1]) == road.may, desk.ran
    if road.rotates:
        assert desk.epoch == 2, desk.epoch
        assert {desk.authz.ledger.status("default", jti) for jti in desk.jtis} <= {"stale", "ended"}
    messages = desk.finish()
    assert isinstance(messages[-1], AIMessage), messages
    assert messages[-1].text == "done", messages
    assert unanswered(messages) == [], messages
    if road.rotates:
        assert len([r for r in desk.ran if r[2] == 1]) == road.may, desk.ran
        assert desk.pdp.requests[-1].context.lease.jti not in desk.jtis
    assert "eve" not in str(desk.ran)


def row(road: Road) -> str:
    """A road's line of the table."""
    return "| " + " | ".join([road.says, *("stopped" if k in road.only else "–" for k in KINDS), road.because]) + " |"


def table() -> list[str]:
    """The whole table."""
    names = ["road", *KINDS, "where not"]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *(row(r) for r in ROADS.values())]


def in_docs() -> list[str]:
    """Return the lines of the table in `docs/_generated`."""
    return generated.read("corrections").splitlines()


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        generated.write("corrections", "\n".join(table()))
    else:
        print("\n".join(table()))
