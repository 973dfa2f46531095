"""Humans, nodes, tools, prompts, other processes and operators act on one thread in any order, at any time.

Whatever they do: no side effect under an epoch older than the task, none twice, and no machine's text is
ever the user's word. An answer in words is good for the call that asked, in the epoch that it opens. What may run is the test's own account (`good_in`), not the product's.
"""

import itertools
import os
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.credential.ticket import current_ticket
from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.base import LASTS, Query
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from tests.attack._graphs import by_the_plan, call, loop, says
from tests.attack.corrections import beside

MACHINES = "a machine wrote this"
PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external"), "confirmed_pay": ToolProfile(effect="pay", sink="external"),
    "echo": ToolProfile(effect="read", sink="none", data_class="public"),
}
PLANS: dict[str, tuple[str, ...]] = {
    "": (), "pay": ("pay",), "ask": ("confirmed_pay",), "both": ("pay", "confirmed_pay"), "echo": ("echo",),
}
plans = st.sampled_from(list(PLANS))
pauses = st.booleans()


class Effect(NamedTuple):
    """One payment: its call, its key, and the epochs of the ticket, of the plan and of the task as it ran."""

    call: str
    key: str
    granted: int
    good_in: int | None
    task: int


class World:
    """Two processes with one ledger, one checkpointer and one clock. Made once a shard: protecting is what costs.

    Its tools and its agent do what `machine`, the example that is being played, says; each has a thread
    of its own.
    """

    def __init__(self) -> None:
        self.machine: CorrectionMachine
        self.clock = FrozenClock()
        self.ledger = MemoryLedger(clock=self.clock, max_threads=4)
        self.pdp = StaticPDP(lambda r: r.context.plan is None or r.context.plan.planned or r.resource.id == "echo")
        self.saver = InMemorySaver()
        self.processes = [RuntimeAuthz(pdp=self.pdp, ledger=self.ledger, profiles=PROFILES) for _ in range(2)]
        self.graphs = [authz.protect(self.build()) for authz in self.processes]
        self.raw = self.build()
        self.threads = itertools.count()

    def build(self) -> Any:
        @tool
        def pay(to: str) -> str:
            """Pay."""
            return self.machine.effect()

        @tool
        def confirmed_pay(to: str) -> str:
            """Ask, then pay."""
            answer = interrupt({"question": "Pay?", "options": ["no", "go"]})
            return "not paid" if answer == "no" else self.machine.effect(answer)

        @tool
        def echo(to: str, ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Write a human's message."""
            text = HumanMessage(self.machine.text())
            return Command(update={"messages": [ToolMessage("x", tool_call_id=ident), text]})

        return loop(lambda state: self.machine.agent(), ToolNode([pay, confirmed_pay, echo]), by_the_plan, checkpointer=self.saver, name="g")


world = cache(World)


class CorrectionMachine(RuleBasedStateMachine):
    """One thread whose agent plans what the machine says, and may pause before its tools."""

    def __init__(self) -> None:
        super().__init__()
        self.world = world()
        self.world.machine = self
        self.world.pdp.bodies.clear()
        self.thread = f"t{next(self.world.threads)}"
        self.world.clock.tick(LASTS)  # no call that another example left in doubt concerns this one
        self.config = {"configurable": {"thread_id": self.thread}}
        self.ran: list[Effect] = []
        self.good_in: dict[str, int] = {}  # each planned call's epoch
        self.said: set[str] = set()
        self.answered: dict[Any, int] = {}  # an answer in words: the epoch that it opens, for the call that asked
        self.number = 0
        self.plan = ""
        self.extra: list[Any] = []
        self.thinks: Any = None
        self.dies = False
        self.touched = False  # somebody wrote beside every entry since the last one
        self.revoked = False

    def teardown(self) -> None:
        self.world.saver.delete_thread(self.thread)

    # --- what the graph does ------------------------------------------------------------------------

    def agent(self) -> dict[str, Any]:
        epoch = self.epoch
        act, self.thinks = self.thinks, None
        if act is not None:
            beside(act)
        names, self.plan = PLANS[self.plan], ""
        extra, self.extra = self.extra, []
        calls = []
        for name in names:
            self.number += 1
            calls.append(call(name, {"to": "bob"}, f"c{self.number}"))
            self.good_in[f"c{self.number}"] = epoch
        return {"messages": [*extra, says(*calls, text="" if calls else "done")]}

    def effect(self, answer: Any = None) -> str:
        ticket = current_ticket()
        assert ticket.idempotency_key is not None and ticket.call_id is not None
        good_in = self.answered.get(answer, self.good_in.get(ticket.call_id))
        self.ran.append(Effect(ticket.call_id, ticket.idempotency_key, ticket.epoch, good_in, self.epoch))
        if self.dies:
            raise KeyboardInterrupt
        return "paid"

    # --- what is kept ------------------------------------------------------------------------------

    @property
    def authz(self) -> RuntimeAuthz:
        return self.world.processes[0]

    @property
    def scope(self) -> Any:
        return self.authz.run_opener.scope("g", self.thread)

    @property
    def epoch(self) -> int:
        return int(self.world.ledger.load(self.scope, Query()).epoch)

    @property
    def state(self) -> Any:
        return self.world.raw.get_state(self.config)

    def text(self) -> str:
        self.number += 1
        return f"{MACHINES} {self.number}"

    def words(self) -> str:
        self.number += 1
        self.said.add(f"the human said {self.number}")
        return f"the human said {self.number}"

    def answer(self) -> Command[Any]:
        text = self.words()
        self.answered[text] = self.epoch + 1
        return Command(resume=text)

    def go(self, given: Any, config: Any = None, subject: Any = "alice", *, process: int = 0, pauses: bool = True) -> bool:
        """One root entry; whether it was let in."""
        died = False
        try:
            with self.world.processes[process].run(subject=subject):
                before = ["tools"] if pauses else []
                self.world.graphs[process].invoke(given, config or self.config, interrupt_before=before)
        except AuthzHalt:
            pass
        except AuthzDenied:
            return False
        except KeyboardInterrupt:
            died = True
        finally:
            self.dies = False
        self.touched = died
        return True

    @initialize(plan=plans, pauses=pauses)
    def begins(self, plan: str, pauses: bool) -> None:
        self.plan = plan
        self.go({"messages": [HumanMessage(self.words())]}, pauses=pauses)

    # --- humans ------------------------------------------------------------------------------------

    @rule(plan=plans, process=st.integers(0, 1), pauses=pauses)
    def human_says(self, plan: str, process: int, pauses: bool) -> None:
        self.plan, before = plan, self.epoch
        if self.go({"messages": [HumanMessage(self.words())]}, process=process, pauses=pauses):
            assert self.epoch > before

    @rule(plan=plans, process=st.integers(0, 1), pauses=pauses)
    def human_says_while_the_model_thinks(self, plan: str, process: int, pauses: bool) -> None:
        text = self.words()
        self.plan, self.thinks = plan, lambda: self.world.processes[process].correct(self.thread, text)
        self.go({"messages": []}, pauses=pauses)
        self.thinks = None

    @precondition(lambda self: bool(self.state.interrupts))
    @rule(plain=st.sampled_from(["no", "go", True, "yes"]) | st.none(), process=st.integers(0, 1))
    def human_answers(self, plain: Any, process: int) -> None:
        waiting, before, touched = self.state.interrupts, self.epoch, self.touched
        if plain is None:
            ours = any("action_requests" in i.value for i in waiting)  # after a death: words are no decision about a call
            let_in = self.go(self.answer(), process=process)
            assert ours or not let_in or self.epoch > before
        else:
            self.go(Command(resume={waiting[0].id: plain}), process=process)
            assert touched or self.epoch == before

    @rule(own=st.booleans())
    def human_updates_the_state(self, own: bool) -> None:
        self.touched, text = True, self.words()
        if own:
            with self.authz.run(subject="alice"):
                self.world.graphs[0].update_state(self.config, {"messages": [HumanMessage(text)]}, as_node="agent")
        else:
            self.world.raw.update_state(self.config, {"messages": [HumanMessage(text)]}, as_node="agent")

    @rule()
    def human_removes(self) -> None:
        held = self.state.values.get("messages")
        if held:
            self.touched = True
            with suppress(ValueError):  # LangGraph knows no message yet that an update has still to bring
                self.world.raw.update_state(self.config, {"messages": [RemoveMessage(held[-1].id)]}, as_node="agent")

    @rule(answers=st.booleans())
    def human_replays(self, answers: bool) -> None:
        older = [s for s in self.world.raw.get_state_history(self.config) if s.next == ("tools",)]
        if older:
            given = self.answer() if answers and older[-1].interrupts else None
            self.go(given, older[-1].config)

    @rule(process=st.integers(0, 1))
    def another_human_tries(self, process: int) -> None:
        assert not self.go({"messages": [HumanMessage(f"{MACHINES}, or mallory")]}, subject="mallory", process=process)

    # --- machines ----------------------------------------------------------------------------------

    def machine_acts(self, given: Any, *, process: int = 0, pauses: bool = True) -> None:
        before, touched = self.epoch, self.touched
        self.go(given, process=process, pauses=pauses)
        assert touched or self.epoch == before

    @precondition(lambda self: not self.state.interrupts)
    @rule(process=st.integers(0, 1), dies=st.booleans(), again=st.booleans())
    def goes_on(self, process: int, dies: bool, again: bool) -> None:
        self.dies = dies
        self.machine_acts(None, process=process)
        if dies and again and not self.state.interrupts:  # whoever starts anew finds what the death left
            self.machine_acts(None, process=process)

    @rule(prompt=st.booleans(), plan=plans, pauses=pauses)
    def node_writes(self, prompt: bool, plan: str, pauses: bool) -> None:
        self.extra = [HumanMessage(self.text()), *([SystemMessage(self.text())] if prompt else [])]
        self.plan = plan
        self.machine_acts({"messages": []}, pauses=pauses)

    @rule()
    def node_summarises(self) -> None:
        humans = [m for m in self.state.values.get("messages") or [] if isinstance(m, HumanMessage)]
        self.extra = [HumanMessage(self.text(), id=m.id) for m in humans[:1]]
        self.machine_acts({"messages": []})

    @rule(process=st.integers(0, 1))
    def client_sends_all_back(self, process: int) -> None:
        self.machine_acts({"messages": list(self.state.values.get("messages") or [])}, process=process)

    # --- operators, and time ------------------------------------------------------------------------

    @rule(by=st.sampled_from([None, "bob"]), process=st.integers(0, 1))
    def operator_corrects(self, by: str | None, process: int) -> None:
        before, text = self.epoch, self.words()
        if by is not None:
            self.said.discard(text)  # another's words
        assert self.world.processes[process].correct(self.thread, text, by=by) == before + 1

    @rule(process=st.integers(0, 1))
    def operator_revokes(self, process: int) -> None:
        self.world.processes[process].revoke(self.thread)
        self.revoked = True
        paid = len(self.ran)
        self.go({"messages": []})
        assert len(self.ran) == paid

    @precondition(lambda self: self.revoked)
    @rule()
    def operator_reinstates(self) -> None:
        self.authz.reinstate(self.thread)
        self.revoked = False

    @rule(seconds=st.sampled_from([1, 59, 61, 3700, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.tick(seconds)

    @rule(given=st.sampled_from(["goes on", "says"]))
    def the_clock_is_set_back(self, given: str) -> None:
        self.world.clock.tick(-600)
        try:
            paid = len(self.ran)
            assert not self.go(None if given == "goes on" else {"messages": [HumanMessage("in vain")]}, pauses=False)
            assert len(self.ran) == paid
        finally:
            self.world.clock.tick(600)

    # --- always ------------------------------------------------------------------------------------

    @invariant()
    def no_old_plan_takes_effect(self) -> None:
        assert all(e.granted == e.good_in == e.task for e in self.ran), self.ran

    @invariant()
    def nothing_happens_twice(self) -> None:
        for kind in ("call", "key"):
            seen = [getattr(e, kind) for e in self.ran]
            assert len(set(seen)) == len(seen), self.ran

    @invariant()
    def no_machine_speaks_for_the_human(self) -> None:
        own = {t.text for t in self.world.ledger.load(self.scope, Query(log=True)).log if t.own and t.text}
        assert own <= self.said, own - self.said
        told = {r.context.task.text for r in self.world.pdp.requests}
        self.world.pdp.bodies.clear()
        assert not [t for t in told if MACHINES in t]


EXAMPLES = int(os.environ.get("LRA_CORRECTIONS", "40"))
SEED = os.environ.get("LRA_SEED")
AT_ONCE = 500  # examples of one shard: several processes share the shards, and each that ends is progress seen


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", range(-(-EXAMPLES // AT_ONCE)))
def test_whoever_acts_and_whenever(shard: int) -> None:
    """Each shard plays examples of its own; with `LRA_SEED` those of that number and the shard's."""
    played = settings(
        max_examples=min(EXAMPLES - shard * AT_ONCE, AT_ONCE), stateful_step_count=20,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink), deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    world.cache_clear()
    machine = CorrectionMachine if SEED is None else seed(int(SEED) + shard)(CorrectionMachine)
    run_state_machine_as_test(machine, settings=played)
