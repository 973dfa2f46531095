"""The reference of all ledgers against a simple model, over any sequence of commits; others are held against it."""

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.history import RECENT
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText
from langchain_runtime_authz.ledger import call_changes as of_calls
from langchain_runtime_authz.ledger import changes as of_threads
from langchain_runtime_authz.ledger.base import Approval, Committed, Conflict, Guard, Lease, Ledger, Query, Scope
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.testing.frozen_clock import FrozenClock

TTL = 60
BUDGET = 3
SCOPE = Scope("acme", "issuer", "graph", "thread")
agents = st.sampled_from([("r",), ("r", "a"), ("r", "a", "b"), ("r", "ab"), ()])
keys = st.sampled_from(["k1", "k2", "k3"])
digests = st.sampled_from(["d1", "d2"])
endings = st.sampled_from(["suspended", "ended", "revoked"])


class LedgerMachine(RuleBasedStateMachine):
    """Each rule says in plain words what the ledger must answer, and keeps its own books."""

    leases: Bundle[str] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.ledger = self.make_ledger()
        self.count = 0
        self.epoch = 1
        self.texts: list[str] = []
        self.revoked: set[tuple[str, ...]] = set()
        # jti → [agent, epoch, expiry, state, parent]
        self.rows: dict[str, list[Any]] = {}
        # key → [state, jti]
        self.calls: dict[str, list[str]] = {}
        # key → [state, digest, epoch]
        self.approvals: dict[str, list[Any]] = {}
        self.budget = 0
        self.marks: dict[str, str] = {}
        self.plans: dict[tuple[str, int], PlanRecord] = {}
        self.steps: list[str] = []
        # What must never happen is counted apart from the model.
        self.ran: dict[str, int] = {}
        self.allowed: dict[str, int] = {}
        self.yes: dict[str, int] = {}
        self.used: dict[str, int] = {}

    def make_ledger(self) -> Ledger:
        return MemoryLedger(clock=self.clock)

    # --- what the model says ---

    def is_revoked(self, agent: tuple[str, ...]) -> bool:
        return any(agent[: len(root)] == root for root in self.revoked)

    def guarded(self, jti: str) -> Code | None:
        agent, epoch, _, state, _ = self.rows[jti]
        if state == "never":
            return Code.LEASE_ENDED
        if state == "revoked" or self.is_revoked(agent):
            return Code.REVOKED
        if epoch != self.epoch:
            return Code.STALE_EPOCH
        return None if state == "live" else Code.LEASE_ENDED

    def commit(self, expected: Code | None, *changes: of_threads.Change, guard: str | None = None) -> Committed | Conflict:
        """Commit and hold the answer against `expected`; a guard's refusal comes first."""
        held = None
        if guard is not None:
            held = Guard(guard, self.rows[guard][1])
            expected = self.guarded(guard) or expected
        done = self.ledger.commit(SCOPE, held, changes)
        if expected is None:
            assert isinstance(done, Committed), done
        else:
            assert isinstance(done, Conflict) and done.code == expected
        return done

    def stands(self, key: str) -> str:
        """A call whose holder let its lease lapse is unknown."""
        state, jti = self.calls[key]
        return "unknown" if state == "claimed" and self.clock() >= self.rows[jti][2] else state

    def end(self, doomed: set[str], state: str) -> None:
        for jti in doomed:
            if self.rows[jti][3] == "live":
                self.rows[jti][3] = state

    # --- rules ---

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def time_passes(self, seconds: int) -> None:
        self.clock.tick(seconds)

    @rule(off=st.sampled_from([0, 0, -1, 1]), keep=st.sets(st.sampled_from(["k1", "k2", "k3"])))
    def correct(self, off: int, keep: set[str]) -> None:
        text = HumanText(f"d{self.count}", f"t{self.count}")
        self.count += 1
        if off:
            self.commit(Code.STALE_EPOCH, of_threads.AdvanceEpoch(self.epoch + off, (text,)))
            return
        done = self.commit(None, of_threads.AdvanceEpoch(self.epoch, (text,), keep=tuple(keep)))
        assert isinstance(done, Committed)
        self.epoch += 1
        assert done.epoch == self.epoch
        self.texts.append(text.text)
        self.end(set(self.rows), "ended")
        # What the correction itself approves moves with it; an open question never does.
        for key, held in list(self.approvals.items()):
            if held[0] == "approved" and key in keep:
                held[2] = self.epoch
            elif held[0] in ("asked", "approved"):
                del self.approvals[key]

    @rule(target=leases, agent=agents.filter(bool), off=st.sampled_from([0, 0, -1, 1]))
    def take_root_lease(self, agent: tuple[str, ...], off: int) -> str:
        return self.take(agent, None, off)

    @rule(target=leases, agent=agents.filter(bool), parent=leases)
    def take_child_lease(self, agent: tuple[str, ...], parent: str) -> str:
        return self.take(agent, parent, 0)

    def take(self, agent: tuple[str, ...], parent: str | None, off: int) -> str:
        self.count += 1
        jti = f"jti-{self.count}"
        now = int(self.clock())
        epoch = self.epoch + off
        expected = None
        if self.is_revoked(agent):
            expected = Code.REVOKED
        elif off:
            expected = Code.STALE_EPOCH
        elif parent is not None and self.rows[parent][3] != "live":
            expected = Code.LEASE_ENDED
        self.commit(expected, of_threads.TakeLease(Lease(jti, "run", agent, epoch, now, now + TTL, parent=parent)))
        # A refused lease is kept as one that ended, so that rules may try to use it.
        self.rows[jti] = [agent, epoch, now + TTL, "live" if expected is None else "never", parent]
        return jti

    @rule(jti=leases, seconds=st.integers(-10, 100))
    def renew(self, jti: str, seconds: int) -> None:
        until = int(self.clock()) + seconds
        live = self.rows[jti][3] == "live"
        self.commit(None if live else Code.LEASE_ENDED, of_threads.RenewLease(jti, until))
        if live:
            self.rows[jti][2] = max(self.rows[jti][2], until)

    @rule(jti=leases, state=endings)
    def end_lease(self, jti: str, state: Any) -> None:
        self.commit(None, of_threads.EndLease(jti, state))
        doomed = {jti}
        for other, row in self.rows.items():  # parents come before their children
            if row[4] in doomed and row[3] != "never":
                doomed.add(other)
        self.end(doomed, state)
        for row in self.calls.values():
            if row[0] == "claimed" and row[1] in doomed:
                row[0] = "unknown"

    @rule(agent=agents)
    def revoke(self, agent: tuple[str, ...]) -> None:
        self.commit(None, of_threads.Revoke(agent))
        self.revoked.add(agent)
        self.end({j for j, r in self.rows.items() if r[0][: len(agent)] == agent}, "revoked")

    @precondition(lambda self: self.revoked)
    @rule(agent=agents)
    def reinstate(self, agent: tuple[str, ...]) -> None:
        self.commit(None, of_threads.Reinstate(agent))
        self.revoked = {p for p in self.revoked if p[: len(agent)] != agent}

    @rule(jti=leases, key=keys, repeatable=st.booleans(), paid=st.integers(0, BUDGET))
    def claim(self, jti: str, key: str, repeatable: bool, paid: int) -> None:
        """With or without an amount to spend in the same commit."""
        row = self.calls.get(key)
        expected = None
        if row is not None and row[0] != "suspended" and not repeatable:
            expected = Code.CALL_IN_PROGRESS if self.stands(key) == "claimed" else Code.OUTCOME_UNKNOWN
        elif paid and self.budget + paid > BUDGET:
            expected = Code.BUDGET_EXHAUSTED
        changes: list[of_threads.Change] = [of_calls.ClaimCall(key, jti, repeatable=repeatable, tokens=(f"token-{jti}-{key}",))]
        if paid:
            changes.append(of_calls.SpendBudget("pay", BUDGET, paid))
        done = self.commit(expected, *changes, guard=jti)
        if isinstance(done, Conflict):
            assert (done.row is not None) is (done.code == Code.OUTCOME_UNKNOWN and row is not None and row[0] == "done")
            return
        self.budget += paid
        if row is None or row[0] != "suspended":
            self.ran[key] = self.ran.get(key, 0) + 1
            self.allowed[key] = self.allowed.get(key, 0) + (1 if repeatable else 0)
        self.calls[key] = ["claimed", jti]

    @rule(key=keys, state=st.sampled_from(["done", "failed", "suspended", "unknown"]))
    def conclude(self, key: str, state: Any) -> None:
        if key in self.calls:
            self.commit(None, of_calls.ConcludeCall(key, state))
            self.calls[key][0] = state

    @rule(key=keys, by=st.integers(1, BUDGET))
    def release(self, key: str, by: int) -> None:
        """Of any call, also one that ran or never was."""
        self.commit(None, of_calls.ReleaseCall(key, (("pay", by),), key))
        row = self.calls.get(key)
        if row is None or row[0] not in ("claimed", "unknown"):
            return
        del self.calls[key]
        self.allowed[key] = self.allowed.get(key, 0) + 1  # it never ran
        self.budget = max(self.budget - by, 0)
        approval = self.approvals.get(key)
        if approval is not None and approval[0] == "spent":
            approval[0] = "approved"
            self.used[key] -= 1

    @rule(by=st.integers(1, BUDGET), again=st.integers(0, BUDGET))
    def give_back(self, by: int, again: int) -> None:
        """And spend anew in the same commit, if it fits."""
        left = max(self.budget - by, 0) + again
        done = self.commit(
            Code.BUDGET_EXHAUSTED if again and left > BUDGET else None,
            of_calls.SpendBudget("pay", BUDGET, -by), *([of_calls.SpendBudget("pay", BUDGET, again)] if again else []),
        )
        if isinstance(done, Committed):
            self.budget = left

    @rule(name=st.sampled_from(["m1", "m2"]), value=st.sampled_from(["a", "b"]), once=st.booleans())
    def mark(self, name: str, value: str, once: bool) -> None:
        self.commit(None, of_threads.SetMark(name, value, once=once))
        if not (once and name in self.marks):
            self.marks[name] = value

    @rule(key=keys, digest=digests)
    def ask(self, key: str, digest: str) -> None:
        held = self.approvals.get(key)
        if held is not None and (held[0] != "asked" or held[1] != digest):
            return  # a new question for an answered call is the enforcement step's business
        self.commit(None, of_calls.AskApproval(Approval(key, digest, self.epoch)))
        self.approvals.setdefault(key, ["asked", digest, self.epoch])

    @rule(key=keys, answer=st.sampled_from(["approved", "approved", "rejected", "malformed"]))
    def answer(self, key: str, answer: Any) -> None:
        held = self.approvals.get(key)
        is_open = held is not None and held[0] == "asked"
        self.commit(None if is_open else Code.APPROVAL_VOID, of_calls.AnswerApproval(key, answer, "user:alice", True))
        if is_open and held is not None:
            held[0] = answer
            self.yes[key] = self.yes.get(key, 0) + (answer == "approved")

    @rule(jti=leases, key=keys, digest=digests)
    def spend(self, jti: str, key: str, digest: str) -> None:
        held = self.approvals.get(key)
        usable = held is not None and held == ["approved", digest, self.epoch]
        done = self.commit(None if usable else Code.APPROVAL_VOID, of_calls.SpendApproval(key, digest), guard=jti)
        if isinstance(done, Committed) and held is not None:
            held[0] = "spent"
            self.used[key] = self.used.get(key, 0) + 1

    @rule(name=st.sampled_from(["m1", "m2"]), tool=st.sampled_from(["pay", "wire"]))
    def record_plan(self, name: str, tool: str) -> None:
        plan = PlanRecord(name, ("r",), self.epoch, "model", (PlannedCall(0, "c", tool, "d"),))
        self.commit(None, of_threads.RecordPlan(plan))
        self.plans.setdefault((name, self.epoch), replace(plan, at=len(self.steps)))

    @rule(name=st.sampled_from(["read", "pay"]))
    def count_step(self, name: str) -> None:
        self.commit(None, of_threads.RecordStep(call=name, recent=name))
        self.steps.append(name)

    @rule(jti=leases, bad=st.sampled_from([of_threads.AdvanceEpoch(-5), of_calls.SpendApproval("none", "d"), of_calls.SpendBudget("none", 0)]))
    def refused(self, jti: str, bad: of_threads.Change) -> None:
        """Nothing that stands beside a refused change is applied; the invariants would see it."""
        done = self.ledger.commit(
            SCOPE, None,
            [
                of_threads.RecordStep(call="never", recent="never"), of_calls.ClaimCall("k1", jti, repeatable=True), of_threads.Revoke(()),
                of_threads.EndLease(jti, "ended"), of_threads.AdvanceEpoch(self.epoch), bad,
            ],
        )
        assert isinstance(done, Conflict)

    # --- what always holds ---

    @invariant()
    def the_epoch_is_the_number_of_corrections(self) -> None:
        """So it never decreases."""
        seen = self.ledger.load(SCOPE, Query(log=True))
        assert seen.epoch == self.epoch == 1 + len(self.texts)
        assert [(t.text, t.epoch) for t in seen.log] == [(t, i) for i, t in enumerate(self.texts, 2)]

    @invariant()
    def every_lease_has_the_state_of_its_life(self) -> None:
        """In its row and in its status; none lives while its agent is revoked."""
        for jti, (agent, epoch, expiry, state, _) in self.rows.items():
            lease = self.ledger.load(SCOPE, Query(jti=jti, agent=agent)).lease
            status = self.ledger.status(SCOPE.tenant, jti)
            if state == "never":
                assert (lease, status) == (None, "unknown")
                continue
            assert (lease.state, lease.epoch, lease.expires_at) == (state, epoch, expiry)
            if state == "revoked" or self.is_revoked(agent):
                assert status == "revoked"
            elif epoch != self.epoch:
                assert status == "stale"
            else:
                assert status == ("live" if state == "live" and self.clock() < expiry else "ended")

    @invariant()
    def no_side_effect_runs_twice_unasked(self) -> None:
        """A call runs once, and once more for each repeatable claim or release."""
        for key, ran in self.ran.items():
            assert ran <= 1 + self.allowed[key]
        rows = self.ledger.load(SCOPE, Query(calls=("k1", "k2", "k3"))).calls
        assert {k: [r.state, r.jti] for k, r in rows.items()} == {k: [self.stands(k), r[1]] for k, r in self.calls.items()}
        for key, (state, jti) in self.calls.items():
            token = self.ledger.status(SCOPE.tenant, f"token-{jti}-{key}")
            assert token == (self.ledger.status(SCOPE.tenant, jti) if state == "claimed" else "ended")

    @invariant()
    def an_approval_is_spent_once(self) -> None:
        """Never more often than a human said yes."""
        for key, used in self.used.items():
            assert used <= self.yes.get(key, 0)
        held = self.ledger.load(SCOPE, Query(calls=("k1", "k2", "k3"))).approvals
        assert {k: [a.state, a.args_digest, a.epoch] for k, a in held.items()} == self.approvals

    @invariant()
    def counters_and_marks_are_kept(self) -> None:
        """A counter stays within its maximum; a mark that was set once stays."""
        found = self.ledger.load(SCOPE, Query(counters=("pay",), marks=("m1", "m2")))
        assert found.counters.get("pay", 0) == self.budget <= BUDGET
        assert found.marks == self.marks

    @invariant()
    def plans_and_history_are_what_was_recorded(self) -> None:
        """The first record of each plan, and the last steps."""
        for name in ("m1", "m2"):
            epochs = [e for n, e in self.plans if n == name]
            newest = self.plans[name, max(epochs)] if epochs else None
            assert self.ledger.load(SCOPE, Query(plan=(("r",), name))).plan == newest
        history = self.ledger.load(SCOPE, Query()).history
        assert (history.steps, history.recent) == (len(self.steps), tuple(self.steps[-RECENT:]))


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestLedger = LedgerMachine.TestCase
