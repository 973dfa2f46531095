"""Humans, nodes, tools, prompts, other processes and operators act on one thread in any order, at any time.

Whatever they do: no side effect under an epoch older than the task, none twice, and no machine's text is
ever a human's word.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.lease import current_ticket
from langchain_runtime_authz.edges.halt import AuthzHalt
from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.testing.clock import FrozenClock
from tests.attack._graphs import call, says
from tests.attack.corrections import beside

MACHINES = "a machine wrote this"
THREAD = {"configurable": {"thread_id": "t"}}
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external"),
    "confirmed_pay": ToolProfile(effect="pay", sink="external"),
    "echo": ToolProfile(effect="read", sink="none", data_class="public"),
}
plans = st.sampled_from(["pay", "confirmed_pay", "echo", ""])


class CorrectionMachine(RuleBasedStateMachine):
    """One thread whose agent plans what the machine says, and pauses before its tools."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.ledger = MemoryLedger(clock=self.clock)
        self.pdp = StaticPDP(lambda r: r.context.plan is None or r.context.plan.planned or r.resource.id == "echo")
        self.authz = RuntimeAuthz(pdp=self.pdp, ledger=self.ledger, profiles=PROFILES)
        self.saver = InMemorySaver()
        self.ran: list[tuple[str, int, int]] = []  # key, epoch of the ticket, epoch of the task
        self.said: set[str] = set()
        self.number = 0
        self.plan = ""
        self.extra: list[Any] = []
        self.thinks: Any = None
        self.touched = False  # somebody wrote beside every entry since the last one
        self.revoked = False
        self.raw = self.build()
        self.graph = self.authz.protect(self.build())

    def build(self) -> Any:
        machine = self

        @tool
        def pay(to: str) -> str:
            """Pay."""
            return machine.effect()

        @tool
        def confirmed_pay(to: str) -> str:
            """Ask, then pay."""
            return "not paid" if interrupt({"question": "Pay?", "options": ["no", "go"]}) == "no" else machine.effect()

        @tool
        def echo(to: str, ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Write a human's message."""
            return Command(update={"messages": [ToolMessage("x", tool_call_id=ident), HumanMessage(machine.text())]})

        def agent(state: MessagesState) -> dict[str, Any]:
            act, self.thinks = self.thinks, None
            if act is not None:
                beside(act)
            plan, self.plan = self.plan, ""
            extra, self.extra = self.extra, []
            self.number += 1
            calls = [call(plan, {"to": "bob"}, f"c{self.number}")] if plan else []
            return {"messages": [*extra, says(*calls, text="" if calls else "done")]}

        builder = StateGraph(MessagesState)
        builder.add_node("agent", agent)
        builder.add_node("tools", ToolNode([pay, confirmed_pay, echo]))
        builder.add_edge(START, "agent")

        def route(state: MessagesState) -> str:
            plan = next((m for m in reversed(state["messages"]) if isinstance(m, AIMessage)), None)
            answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
            return "tools" if plan is not None and any(c["id"] not in answered for c in plan.tool_calls) else END

        builder.add_conditional_edges("agent", route, ["tools", END])
        builder.add_edge("tools", "agent")
        return builder.compile(checkpointer=self.saver, name="g", interrupt_before=["tools"])

    # --- what is kept ------------------------------------------------------------------------------

    def effect(self) -> str:
        ticket = current_ticket()
        assert ticket is not None
        assert ticket.idempotency_key is not None
        self.ran.append((ticket.idempotency_key, ticket.epoch, self.epoch))
        return "paid"

    @property
    def scope(self) -> Any:
        return self.authz.entrance.scope("g", "t")

    @property
    def epoch(self) -> int:
        return int(self.ledger.load(self.scope, Query()).epoch)

    def text(self) -> str:
        self.number += 1
        return f"{MACHINES} {self.number}"

    def words(self) -> str:
        self.number += 1
        self.said.add(f"the human said {self.number}")
        return f"the human said {self.number}"

    def go(self, given: Any, config: Any = THREAD, subject: Any = "alice") -> bool:
        """One root entry; whether it was let in."""
        try:
            with self.authz.run(subject=subject):
                self.graph.invoke(given, config)
        except AuthzHalt:
            pass
        except AuthzDenied:
            return False
        self.touched = False
        return True

    @initialize(plan=plans)
    def begins(self, plan: str) -> None:
        self.plan = plan
        self.go({"messages": [HumanMessage(self.words())]})

    # --- humans ------------------------------------------------------------------------------------

    @rule(plan=plans)
    def human_says(self, plan: str) -> None:
        self.plan, before = plan, self.epoch
        if self.go({"messages": [HumanMessage(self.words())]}):
            assert self.epoch > before

    @rule(plan=plans)
    def human_says_while_the_model_thinks(self, plan: str) -> None:
        text = self.words()
        self.plan, self.thinks = plan, lambda: self.authz.correct("t", text)
        self.go({"messages": []})
        self.thinks = None

    @precondition(lambda self: bool(self.raw.get_state(THREAD).interrupts))
    @rule(plain=st.sampled_from(["no", "go", True, "yes"]) | st.none())
    def human_answers(self, plain: Any) -> None:
        waiting, before, touched = self.raw.get_state(THREAD).interrupts, self.epoch, self.touched
        if plain is None:
            let_in = self.go(Command(resume=self.words()))
            assert not let_in or self.epoch > before
        else:
            self.go(Command(resume={waiting[0].id: plain}))
            assert touched or self.epoch == before

    @rule(own=st.booleans())
    def human_updates_the_state(self, own: bool) -> None:
        self.touched, text = True, self.words()
        if own:
            with self.authz.run(subject="alice"):
                self.graph.update_state(THREAD, {"messages": [HumanMessage(text)]}, as_node="agent")
        else:
            self.raw.update_state(THREAD, {"messages": [HumanMessage(text)]}, as_node="agent")

    @rule()
    def human_removes(self) -> None:
        held = self.raw.get_state(THREAD).values.get("messages")
        if held:
            self.touched = True
            self.raw.update_state(THREAD, {"messages": [RemoveMessage(held[-1].id)]}, as_node="agent")

    @rule()
    def human_replays(self) -> None:
        older = [s for s in self.raw.get_state_history(THREAD) if s.next == ("tools",)]
        if older:
            self.go(None, older[-1].config)

    @rule()
    def another_human_tries(self) -> None:
        assert not self.go({"messages": [HumanMessage(f"{MACHINES}, or mallory")]}, subject="mallory")

    # --- machines ----------------------------------------------------------------------------------

    def machine_acts(self, given: Any) -> None:
        before, touched = self.epoch, self.touched
        self.go(given)
        assert touched or self.epoch == before

    @rule()
    def goes_on(self) -> None:
        if not self.raw.get_state(THREAD).interrupts:
            self.machine_acts(None)

    @rule(prompt=st.booleans(), plan=plans)
    def node_writes(self, prompt: bool, plan: str) -> None:
        self.extra = [HumanMessage(self.text()), *([SystemMessage(self.text())] if prompt else [])]
        self.plan = plan
        self.machine_acts({"messages": []})

    @rule()
    def node_summarises(self) -> None:
        held = self.raw.get_state(THREAD).values.get("messages") or []
        humans = [m for m in held if isinstance(m, HumanMessage)]
        self.extra = [HumanMessage(self.text(), id=m.id) for m in humans[:1]]
        self.machine_acts({"messages": []})

    @rule()
    def client_sends_all_back(self) -> None:
        self.machine_acts({"messages": list(self.raw.get_state(THREAD).values.get("messages") or [])})

    # --- operators, and time ------------------------------------------------------------------------

    @rule(by=st.sampled_from([None, "bob"]))
    def operator_corrects(self, by: str | None) -> None:
        before, text = self.epoch, self.words()
        if by is not None:
            self.said.discard(text)  # another's words
        assert self.authz.correct("t", text, by=by) == before + 1

    @rule()
    def operator_revokes(self) -> None:
        self.authz.revoke("t")
        self.revoked = True
        paid = len(self.ran)
        self.go({"messages": []})
        assert len(self.ran) == paid

    @precondition(lambda self: self.revoked)
    @rule()
    def operator_reinstates(self) -> None:
        self.authz.reinstate("t")
        self.revoked = False

    @rule(seconds=st.sampled_from([1, 59, 61, 3700, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.clock.tick(seconds)

    # --- always ------------------------------------------------------------------------------------

    @invariant()
    def no_old_plan_takes_effect(self) -> None:
        assert all(ticket == task for _, ticket, task in self.ran), self.ran

    @invariant()
    def nothing_happens_twice(self) -> None:
        keys = [key for key, _, _ in self.ran]
        assert len(set(keys)) == len(keys)

    @invariant()
    def no_machine_speaks_for_the_human(self) -> None:
        own = {t.text for t in self.ledger.load(self.scope, Query(log=True)).log if t.own and t.text}
        assert own <= self.said, own - self.said


TestCorrectionMachine = pytest.mark.timeout(0 if "LRA_CORRECTIONS" in os.environ else 600)(CorrectionMachine.TestCase)
TestCorrectionMachine.settings = settings(
    max_examples=int(os.environ.get("LRA_CORRECTIONS", "15")),
    stateful_step_count=12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
