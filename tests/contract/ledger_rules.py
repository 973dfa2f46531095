"""The rules of a ledger's changes in plain words: a class for the tests of each of our ledgers, next to the suite that ships.

`property/test_ledger_machine.py` has the rules of epochs, leases, claims, budgets and approvals, in any order.
"""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import pytest

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Edge
from langchain_runtime_authz.facts.history import MAX_NAMES, RECENT, TIMES, History
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlannedCall, PlanRecord
from langchain_runtime_authz.facts.task import HumanText, Task, content_digest, extend_task
from langchain_runtime_authz.ledger.base import (
    LAPSED,
    LASTS,
    Approval,
    CallRow,
    Committed,
    Guard,
    InDoubtCall,
    Lease,
    ListsInDoubtCalls,
    ListsQuestions,
    Scope,
    Snapshot,
)
from langchain_runtime_authz.ledger.call_changes import (
    AnswerApproval,
    AskApproval,
    ClaimCall,
    ConcludeCall,
    ReleaseCall,
    RepeatCall,
    ResolveCall,
    SpendApproval,
    SpendBudget,
    SpendRate,
)
from langchain_runtime_authz.ledger.changes import (
    AdvanceEpoch,
    Change,
    DeleteMarks,
    EndLease,
    OpenThread,
    RecordEdge,
    RecordPlan,
    RecordStep,
    RecordValues,
    Redeliver,
    SetMark,
    TakeLease,
    TakePending,
)
from langchain_runtime_authz.ledger.schema import NEWEST
from langchain_runtime_authz.testing.ledger_scripts import DIGEST, ROOT, TTL, LedgerHarness, unique_name

_MOST: Final = 2**53 - 1
OTHER_DIGEST: Final = "sha256:" + "1" * 64


def _said(text: str, key: str | None = None) -> HumanText:
    return HumanText(content_digest(text), text, key)


def _plan(name: str, epoch: int = 1, agent: tuple[str, ...] = ROOT, tool: str = "pay", call: str = "call_1") -> PlanRecord:
    calls = (PlannedCall(0, call, tool, DIGEST), PlannedCall(1, None, "read", OTHER_DIGEST, tool, DIGEST))
    return PlanRecord(name, agent, epoch, "model", calls)


def _edge(parent: str, child: str) -> Edge:
    return Edge.model_validate({"from": parent, "to": child, "kind": "handoff"})


def _ask(key: str, **more: Any) -> AskApproval:
    return AskApproval(Approval(key, DIGEST, **{"epoch": 1, **more}))


def _answer(key: str, state: Any = "approved", **more: Any) -> AnswerApproval:
    return AnswerApproval(key, state, **{"approver": "user:alice", "authenticated": True, **more})


def _claim(key: str, lease: Lease, **more: Any) -> ClaimCall:
    return ClaimCall(key, lease.jti, repeatable=False, **more)


def _guard(lease: Lease) -> Guard:
    return Guard(lease.jti, lease.epoch)


def _sighting(key: str, source: str = "lookup/id", *, asserted: bool = True) -> SeenValue:
    return SeenValue(key, "system", asserted, False, source)


class LedgerRules(LedgerHarness):
    """Inherit before the suite."""

    def nothing(self) -> Snapshot:
        """Return what a thread that was never written to holds."""
        return Snapshot(self.clock(), False, "", 1, Task(), False, None, None, {}, {}, History(), ())

    def states(self, *leases: Lease) -> list[str]:
        """Return the states of leases, `gone` for one that is not there."""
        found = [self.load(jti=lease.jti).lease for lease in leases]
        return [lease.state if lease is not None else "gone" for lease in found]

    def approval(self, key: str) -> Approval:
        return self.load(calls=(key,)).approvals[key]

    # --- threads ----------------------------------------------------------------------------------

    def test_a_thread_never_written_to_does_not_exist(self) -> None:
        """Its epoch is 1, it holds nothing, and neither a load nor a refused commit creates it."""
        for _ in range(2):
            found = self.load(jti="x", plan=(ROOT, "m1"), calls=("k",), agent=ROOT, log=True, questions=True)
            assert found == self.nothing()
        self.refuse(Code.APPROVAL_VOID, OpenThread("user:alice"), SpendApproval("k", DIGEST))
        assert not self.load().exists

    # --- task and epoch -----------------------------------------------------------------------------

    def test_the_opening_texts_are_no_correction(self) -> None:
        """`first` pins them at the current epoch. It is refused if texts are pinned."""
        lease = self.lease()
        texts = (_said("pay", "h1"), _said("the bill"))
        assert self.do(AdvanceEpoch(1, texts, first=True)).epoch == 1
        seen = self.load(log=True)
        assert (seen.epoch, seen.log, seen.pending) == (1, texts, ())
        assert seen.task == extend_task(Task(), texts, correction=False) and self.states(lease) == ["live"]
        self.refuse(Code.STALE_EPOCH, AdvanceEpoch(1, (_said("again"),), first=True))
        assert self.load(log=True).log == texts

    def test_corrections_wait_until_they_are_delivered(self) -> None:
        """`deliver` keeps a text for the next root entry; `TakePending` forgets all of them."""
        self.do(AdvanceEpoch(1, (_said("one"),)))
        self.do(AdvanceEpoch(2, (_said("two", "c2"),), deliver=True))
        self.do(AdvanceEpoch(3, (_said("three"),), deliver=True))
        assert self.load(log=True).pending == (_said("two", "c2"), _said("three"))
        self.do(TakePending())
        self.do(TakePending())
        seen = self.load(log=True)
        assert (seen.pending, len(seen.log), seen.epoch) == ((), 3, 4)

    def test_erased_corrections_wait_again(self) -> None:
        """`Redeliver` makes texts pending again, each once, in order."""
        self.do(AdvanceEpoch(1, (_said("one"), _said("two", "c2")), deliver=True))
        self.do(TakePending())
        self.do(Redeliver((_said("one"),)))
        self.do(Redeliver((_said("one"), _said("two", "c2"))))
        seen = self.load(log=True)
        assert seen.pending == (_said("one"), _said("two", "c2")) and (len(seen.log), seen.epoch) == (2, 2)

    def test_a_text_keeps_who_said_it(self) -> None:
        """Its author, its key, and whether it is the subject's own: only own words are the task's."""
        own = replace(_said("pay"), author="user:alice")
        other = replace(_said("pay carol", "k"), own=False, author="user:bob")
        self.do(OpenThread("user:alice"), AdvanceEpoch(1, (own,), first=True))
        self.do(AdvanceEpoch(1, (other,), deliver=True))
        seen = self.load(log=True)
        assert seen.log == (own, other) and seen.pending == (other,)
        assert (seen.task.text, seen.task.corrections) == ("pay", 1)

    def test_a_text_belongs_to_the_epoch_that_it_opened(self) -> None:
        """The ledger sets it, whatever the text says; the opening texts belong to the current epoch."""
        claimed = replace(_said("pay"), epoch=7)
        self.do(AdvanceEpoch(1, (claimed,), first=True))
        self.do(AdvanceEpoch(1))
        self.do(AdvanceEpoch(2, (claimed, _said("the bill")), deliver=True))
        seen = self.load(log=True)
        assert [t.epoch for t in seen.log] == [1, 3, 3]
        assert [t.epoch for t in seen.pending] == [3, 3]

    def test_counters_are_told_by_name(self) -> None:
        """A snapshot holds the counts of the budgets that are asked for, and each thread has its own."""
        self.do(SpendBudget("same", 9), SpendBudget("other", 9))
        self.do(SpendBudget("same", 9))
        assert self.load(counters=("same", "missing")).counters == {"same": 2} and self.load().counters == {}
        self.do(ReleaseCall("never", (("same", 1),)))
        assert self.load(counters=("same",)).counters == {"same": 2}
        self.scope = self.scope._replace(thread=unique_name("thread"))
        assert self.load(counters=("same",)).counters == {}

    def test_a_mark_set_once_stays(self) -> None:
        """The first value wins, also within a commit; without `once` it is replaced, and a forgotten one is set anew.

        Only those that are asked for come back; another thread has its own.
        """
        self.do(SetMark("mandate", "1", once=True), SetMark("mandate", "2", once=True))
        self.do(SetMark("mandate", "3", "lookup", once=True))
        assert self.load(marks=("mandate",)).marks == {"mandate": "1"} and self.load().history.changed == {}
        self.do(SetMark("mandate", "4"))
        assert self.load(marks=("mandate",)).marks == {"mandate": "4"}
        self.do(DeleteMarks("mandate"), SetMark("mandate", "5", once=True))
        assert self.load(marks=("mandate", "missing")).marks == {"mandate": "5"} and self.load().marks == {}
        self.scope = self.scope._replace(thread=unique_name("thread"))
        assert self.load(marks=("mandate",)).marks == {}

    def test_marks_are_forgotten_by_how_their_names_begin(self) -> None:
        """Theirs alone: letters count, nothing in a name is special, and what is set after it stays."""
        self.do(*(SetMark(name, "x") for name in ("task:1", "task:2", "tas", "Task:1", "head", 'a"%_', "a'%_", "aXX")))
        self.do(DeleteMarks("task:"), DeleteMarks('a"%_'), SetMark("task:3", "y"), DeleteMarks("missing"))
        names = ("task:1", "task:2", "task:3", "tas", "Task:1", "head", 'a"%_', "a'%_", "aXX")
        assert set(self.load(marks=names).marks) == {"tas", "Task:1", "head", "task:3", "a'%_", "aXX"}
        self.do(DeleteMarks(""))
        assert self.load(marks=names).marks == {}

    def test_a_root_entry_is_under_way_until_it_ends(self) -> None:
        """Or until its lease lapsed long ago; children's leases don't count, nor what a correction ended."""
        assert self.load(log=True).underway is False
        root = self.lease()
        self.lease(("root", "child"), parent=root)
        assert (self.load(log=True).underway, self.load(log=True).live) == (True, True)
        self.do(EndLease(root.jti, "suspended"))
        assert self.load(log=True).underway is False
        self.lease()
        self.clock.tick(TTL + 1)
        assert (self.load(log=True).underway, self.load(log=True).live) == (True, False)
        self.clock.tick(LAPSED)
        assert self.load(log=True).underway is False

    # --- leases -------------------------------------------------------------------------------------

    # --- guards -----------------------------------------------------------------------------------

    def test_a_guard_passes_while_the_lease_lives(self) -> None:
        """And its changes are applied. Snapshots and commits bear the time of the ledger's clock."""
        lease = self.lease()
        done = self.do(RecordStep(call="pay"), guard=_guard(lease))
        assert (done.now, done.epoch) == (self.clock(), 1) and self.load().history.calls == {"pay": 1}
        for seconds in (0.0, 1.5, 3600.0):
            self.clock.tick(seconds)
            assert self.load().now == self.do(RecordStep()).now == self.clock()

    # --- plans and edges ----------------------------------------------------------------------------

    def test_the_first_record_of_a_plan_stands(self) -> None:
        """A second one for the same agent, message and epoch changes nothing."""
        self.do(RecordPlan(_plan("m1")))
        self.do(RecordPlan(_plan("m1", tool="wire", call="call_9")))
        assert self.load(plan=(ROOT, "m1")).plan == _plan("m1")
        assert self.load(planned_call=(ROOT, "call_9")).plan is None
        other = ("root", "child")
        self.do(RecordPlan(_plan("m1", agent=other, tool="wire")))
        assert self.load(plan=(ROOT, "m1")).plan == _plan("m1")
        assert self.load(plan=(other, "m1")).plan == _plan("m1", agent=other, tool="wire")
        assert self.load(plan=(ROOT, "m2")).plan is None

    def test_the_newest_record_is_found(self) -> None:
        """By message: that of the latest epoch. By call: the one recorded last. Of this agent only."""
        self.do(RecordPlan(_plan("m1")), AdvanceEpoch(1))
        self.do(RecordPlan(_plan("m1", epoch=2, tool="wire")))
        assert self.load(plan=(ROOT, "m1")).plan == _plan("m1", epoch=2, tool="wire")
        assert self.load(planned_call=(ROOT, "call_1")).plan == _plan("m1", epoch=2, tool="wire")
        self.do(RecordPlan(_plan("m2", epoch=2, tool="send")))
        assert self.load(planned_call=(ROOT, "call_1")).plan == _plan("m2", epoch=2, tool="send")
        assert self.load(plan=(ROOT, "m1")).plan == _plan("m1", epoch=2, tool="wire")
        assert self.load(planned_call=(("root", "child"), "call_1")).plan is None and self.load().plan is None

    def test_an_edge_is_recorded_once(self) -> None:
        """In the order in which they came; another kind is another edge."""
        task = Edge.model_validate({"from": "a", "to": "b", "kind": "task"})
        self.do(RecordEdge(_edge("a", "b")), RecordEdge(_edge("b", "c")))
        self.do(RecordEdge(_edge("a", "b")), RecordEdge(task))
        assert self.load().edges == (_edge("a", "b"), _edge("b", "c"), task)

    # --- calls --------------------------------------------------------------------------------------

    def test_a_side_effect_is_claimed_once(self) -> None:
        """While claimed: in progress; done: its row; failed, unknown: outcome unknown; suspended: again."""
        lease, other = self.lease(), self.lease()
        claim = _claim("k", other)
        assert self.row("k") is None
        self.do(_claim("k", lease), guard=_guard(lease))
        assert self.row("k") == CallRow("k", "claimed", lease.jti, at=self.clock())
        assert self.refuse(Code.CALL_IN_PROGRESS, claim).row is None
        for state in ("failed", "unknown"):
            self.do(ConcludeCall("k", state))
            assert self.refuse(Code.OUTCOME_UNKNOWN, claim).row is None
        self.do(ConcludeCall("k", "done", '{"paid": 10}'))
        assert self.refuse(Code.OUTCOME_UNKNOWN, claim).row == CallRow("k", "done", lease.jti, '{"paid": 10}', at=self.clock())
        self.do(ConcludeCall("k", "suspended"))
        self.do(claim)
        assert self.row("k") == CallRow("k", "claimed", other.jti, at=self.clock())
        self.refuse(Code.CALL_IN_PROGRESS, claim)

    def test_a_call_is_concluded_with_its_result(self) -> None:
        """`None` keeps nothing of it; what happened is recorded without a claim too."""
        lease = self.lease()
        self.do(_claim("k", lease), ClaimCall("read", lease.jti, repeatable=True))
        self.do(ConcludeCall("k", "done", '"ok"'), ConcludeCall("read", None), ConcludeCall("never", "failed"))
        self.do(ConcludeCall("nothing", None))
        assert self.row("k") == CallRow("k", "done", lease.jti, '"ok"', at=self.clock())
        assert (self.row("read"), self.row("nothing")) == (None, None)
        assert self.row("never") == CallRow("never", "failed", "")

    def test_a_release_gives_everything_back(self) -> None:
        """The claim, the approval (also another's than the call's own) and the budgets."""
        lease = self.lease()
        self.approved("k")
        budgets = (SpendBudget("pay", 1), SpendBudget("effect:pay", 1))
        take = (_claim("k", lease), SpendApproval("k", DIGEST), *budgets)
        self.do(*take)
        self.do(ReleaseCall("k", (("pay", 1), ("effect:pay", 1)), "k"))
        found = self.approval("k")
        assert (self.row("k"), found.state) == (None, "approved")
        self.do(*take)
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1))
        self.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))
        self.do(ReleaseCall("k"))  # of a claim that used no approval
        self.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))
        self.approved("asked")
        self.do(_claim("edited", lease), SpendApproval("asked", DIGEST))
        self.do(ReleaseCall("edited", approval="asked"))
        self.do(SpendApproval("asked", DIGEST))

    def test_a_release_gives_back_its_place_in_a_rate(self) -> None:
        """Not that of another call."""
        lease, rate = self.lease(), SpendRate("pay", 60, 2)
        self.do(_claim("first", lease), rate)
        self.clock.tick(1)
        self.do(_claim("k", lease), rate)
        self.refuse(Code.RATE_EXCEEDED, rate)
        self.do(ReleaseCall("k", rates=(("pay", 60), ("other", 60))))
        self.do(rate)
        self.refuse(Code.RATE_EXCEEDED, rate)

    def test_a_release_leaves_a_paused_call_paused(self) -> None:
        """With the numbers of the answers that its tool had."""
        self.do(_claim("k", self.lease()), ConcludeCall("k", "suspended", "[1]"))
        paused = self.row("k")
        self.do(_claim("k", self.lease("again")))
        self.do(ReleaseCall("k", paused=paused))
        assert self.row("k") == paused and paused.state == "suspended"

    def test_a_release_gives_back_what_was_spent(self) -> None:
        """Of each counter by its own amount, and never below nothing."""
        lease = self.lease()
        self.do(_claim("k", lease), SpendBudget("limit", 100, 98), SpendBudget("step", 1))
        self.do(ReleaseCall("k", (("limit", 98), ("step", 1))))
        assert self.load(counters=("limit", "step")).counters == {"limit": 0, "step": 0}
        self.do(_claim("k", lease), SpendBudget("limit", 100, 2))
        self.do(ReleaseCall("k", (("limit", 50), ("unspent", 3))))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100, 101))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("unspent", 0))

    def test_nothing_is_used_twice_in_one_commit(self) -> None:
        """Two of the same in one list are two uses."""
        lease = self.lease()
        self.approved("k")
        self.do(_ask("q", needed=2))
        once: tuple[tuple[Code, Change], ...] = (
            (Code.CALL_IN_PROGRESS, _claim("k", lease)), (Code.APPROVAL_VOID, _answer("q")),
            (Code.APPROVAL_VOID, SpendApproval("k", DIGEST)), (Code.BUDGET_EXHAUSTED, SpendBudget("pay", 1)),
            (Code.RATE_EXCEEDED, SpendRate("pay", 60, 1)),
        )
        for code, change in once:
            self.refuse(code, change, change)
            self.do(change)
        self.do(SpendBudget("two", 2), SpendBudget("two", 2))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("two", 2))

    # --- approvals ----------------------------------------------------------------------------------

    def test_a_question_is_open_until_answered(self) -> None:
        """It comes back as it was asked, with its answer added."""
        within, until = ((ROOT, "c0"), (("root", "a"), "c1")), int(self.clock()) + TTL
        place = {"agent": ("root", "a"), "plan_id": "m1", "place": 1, "call_id": "c", "tool": "pay", "within": within}
        more = {"interrupt_id": "i-1", "expires_at": until, "allowed": ("approve", "edit")}
        asked = _ask("k", task_id="task-1", round=2, position=3, **place, **more).approval
        self.do(AskApproval(asked), _ask("other", position=1))
        assert self.approval("k") == asked
        assert {a.call_key for a in self.load(questions=True).questions} == {"k", "other"}
        assert self.load().questions == ()
        self.do(_answer("k", "rejected", message="not now"))
        assert self.approval("k") == replace(
            asked, state="rejected", approver="user:alice", authenticated=True, message="not now"
        )
        assert [a.call_key for a in self.load(questions=True).questions] == ["other"]

    def test_the_first_question_and_the_first_answer_stand(self) -> None:
        """For the same arguments. A second answer, and one to a question that was not asked, is refused."""
        asked = Approval("k", DIGEST, 1, "task-1", 1, 0, interrupt_id="i-1")
        self.do(AskApproval(asked))
        self.do(AskApproval(replace(asked, round=9, position=9)))
        assert self.approval("k") == asked
        self.do(AskApproval(replace(asked, args_digest=OTHER_DIGEST)))
        assert self.approval("k") == replace(asked, args_digest=OTHER_DIGEST)
        named = replace(asked, call_key="named", id="q-1")
        self.do(AskApproval(named), AskApproval(replace(named, interrupt_id="i-2", round=9)))
        assert self.approval("named") == replace(named, interrupt_id="i-2")
        self.do(_answer("named", "rejected"), AskApproval(named))
        assert self.approval("named").state == "rejected"
        self.refuse(Code.APPROVAL_VOID, _answer("never"))
        for first in ("approved", "rejected", "malformed"):
            self.do(_ask(first))
            self.do(_answer(first, first))
            stands = self.approval(first)
            self.refuse(Code.APPROVAL_VOID, _answer(first, approver="user:bob", authenticated=False))
            assert self.approval(first) == stands

    def test_several_people_approve_one_after_the_other(self) -> None:
        """The question stays open until enough have. The subject does not count, nobody counts twice, one no is enough."""
        asked = Approval("k", DIGEST, 1, id="q-1", subject="user:alice", needed=2, distinct=True)
        self.do(AskApproval(asked), AskApproval(replace(asked, call_key="no")))
        yes = _answer("k", approver="user:bob", id="q-1")
        self.refuse(Code.APPROVAL_NOT_DISTINCT, replace(yes, approver="user:alice"))
        self.refuse(Code.APPROVAL_VOID, replace(yes, id="q-2"))
        self.do(yes)
        once = self.approval("k")
        assert (once.state, once.approvers) == ("asked", ("user:bob",))
        self.refuse(Code.APPROVAL_NOT_DISTINCT, yes)
        self.refuse(Code.APPROVAL_NOT_DISTINCT, replace(yes, approver="user:Bob "))
        self.refuse(Code.APPROVAL_VOID, SpendApproval("k", DIGEST))
        self.do(replace(yes, approver="user:carol", authenticated=False))
        both = self.approval("k")
        assert (both.state, both.approvers) == ("approved", ("user:bob", "user:carol"))
        assert (both.approver, both.authenticated) == ("user:bob user:carol", False)
        self.do(SpendApproval("k", DIGEST))
        self.do(_answer("no", approver="user:bob"))
        self.do(_answer("no", "rejected"))
        refused = self.approval("no")
        assert refused.state == "rejected"

    def test_who_may_answer(self) -> None:
        """Those named at once, the fallback from its time on. The subject may always take it back."""
        who = {"subject": "user:alice", "eligible": ("user:bob",), "fallback": ("user:carol",)}
        until = int(self.clock()) + TTL
        self.do(_ask("k", **who, fallback_at=until), _ask("back", **who, fallback_at=until))
        yes = _answer("k", approver="user:carol")
        for other in ("user:alice", "user:carol", "user:dave", ""):
            self.refuse(Code.APPROVAL_APPROVER, replace(yes, approver=other))
        self.refuse(Code.APPROVAL_APPROVER, _answer("k", "rejected", approver="user:dave"))
        self.do(_answer("back", "rejected"))
        self.clock.tick(TTL)
        self.refuse(Code.APPROVAL_APPROVER, replace(yes, approver="user:dave"))
        self.do(yes)

    def test_what_is_asked_on_every_thread(self) -> None:
        """With its thread, of one tenant, until it is answered or void."""
        assert isinstance(self.ledger, ListsQuestions)
        tenant = self.scope.tenant
        self.do(_ask("k", id="q-1"), _ask("l", id="q-2"))
        self.do(_ask("old"))  # by a version that named no question
        assert sorted((s, a.id) for s, a in self.ledger.asked(tenant)) == [(self.scope, "q-1"), (self.scope, "q-2")]
        assert [a.call_key for _, a in self.ledger.asked(tenant, "q-2")] == ["l"]
        assert list(self.ledger.asked(tenant, "q-3")) == [] and list(self.ledger.asked("somebody else")) == []
        assert [a.id for _, a in asyncio.run(self.ledger.aasked(tenant, "q-1"))] == ["q-1"]
        self.do(_answer("k", approver="user:bob"))
        assert [a.id for _, a in self.ledger.asked(tenant)] == ["q-2"]
        self.do(_ask("m", id="q-4", expires_at=int(self.clock()) + 60))
        self.clock.tick(60)
        assert [a.id for _, a in self.ledger.asked(tenant)] == ["q-2"]  # nobody can answer the other any more
        assert [a.id for _, a in self.ledger.asked(tenant, "q-4")] == ["q-4"]  # so that its answer says so
        self.do(AdvanceEpoch(1, ()))
        assert list(self.ledger.asked(tenant)) == []

    def test_the_thread_used_last_is_asked_first(self) -> None:
        assert isinstance(self.ledger, ListsQuestions)
        other = self.scope._replace(thread=f"{self.scope.thread} b")
        for scope, key in ((self.scope, "k"), (other, "l"), (self.scope, "a")):
            self.clock.tick(1)
            self.ledger.commit(scope, None, [_ask(key, id=key)])
        assert [a.id for _, a in self.ledger.asked(self.scope.tenant)] == ["a", "k", "l"]
        self.clock.tick(1)
        self.ledger.commit(other, None, [SetMark("head", "2")])
        assert [a.id for _, a in self.ledger.asked(self.scope.tenant)] == ["l", "a", "k"]

    def test_an_answer_may_be_another_action(self) -> None:
        """An action in the call's place, or an answer in the tool's, comes back as it was given."""
        asked = _ask("k", tool="pay", allowed=("approve", "edit")).approval
        self.do(AskApproval(asked), _ask("other"))
        edited = '{"name": "pay", "args": {"amount": 1}}'
        self.do(_answer("k", edited=edited))
        self.do(_answer("other", "answered", message="I did it"))
        assert self.approval("k") == replace(
            asked, state="approved", approver="user:alice", authenticated=True, edited=edited, approvers=("user:alice",)
        )
        found = self.approval("other")
        assert (found.state, found.message) == ("answered", "I did it")
        self.refuse(Code.APPROVAL_VOID, SpendApproval("other", DIGEST))

    def test_an_approval_expires(self) -> None:
        """By ledger time, at the second that it says; one that says none does not."""
        until = int(self.clock()) + 60
        for key, expires_at in (("early", until), ("late", until), ("ever", 0)):
            self.do(_ask(key, expires_at=expires_at))
            self.do(_answer(key))
        self.clock.tick(59)
        self.do(SpendApproval("early", DIGEST))
        self.clock.tick(1)
        self.refuse(Code.APPROVAL_VOID, SpendApproval("late", DIGEST))
        self.do(SpendApproval("ever", DIGEST))

    def test_a_correction_keeps_what_it_approves(self) -> None:
        """One commit answers, opens the next epoch and records its plan; every other approval is void."""
        self.approved("before")
        for key in ("yes", "no", "open", "unnamed"):
            self.do(_ask(key))
        carried = replace(_plan("m1", epoch=2), origin=1)
        answers = (_answer("yes"), _answer("no", "rejected"), _answer("unnamed"))
        self.do(*answers, AdvanceEpoch(1, keep=("yes", "no", "open")), RecordPlan(carried))
        assert self.load(plan=(carried.agent, "m1")).plan == carried
        left = self.load(calls=("before", "yes", "no", "open", "unnamed")).approvals
        assert {k: (a.state, a.epoch) for k, a in left.items()} == {"yes": ("approved", 2), "no": ("rejected", 1)}
        self.do(SpendApproval("yes", DIGEST))
        self.refuse(Code.APPROVAL_VOID, SpendApproval("yes", DIGEST))

    def test_an_approval_is_of_its_arguments_and_epoch(self) -> None:
        """One of other arguments is not spent, and neither is an older one or one to come."""
        self.approved("k")
        self.refuse(Code.APPROVAL_VOID, SpendApproval("k", OTHER_DIGEST))
        for epoch in (0, 2):
            self.do(AskApproval(Approval(f"e{epoch}", DIGEST, epoch)))
            self.do(_answer(f"e{epoch}"))
            self.refuse(Code.APPROVAL_VOID, SpendApproval(f"e{epoch}", DIGEST))

    # --- budgets, rates, history ----------------------------------------------------------------------

    def test_a_budget_is_spent_by_amount(self) -> None:
        """Up to the maximum exactly; an amount that does not fit takes nothing. Large amounts are exact."""
        self.do(SpendBudget("limit", 100, 60))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100, 41))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100, 30), SpendBudget("limit", 100, 30))
        self.do(SpendBudget("limit", 100, 40))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100))
        self.do(SpendBudget("cents", _MOST, _MOST))
        assert self.load(counters=("limit", "cents")).counters == {"limit": 100, "cents": _MOST}

    def test_a_budget_is_given_back(self) -> None:
        """A negative amount is never refused, and nobody saves up for more than the maximum."""
        self.do(SpendBudget("limit", 100, 100))
        self.do(SpendBudget("limit", 0, -30), SpendBudget("limit", 100, 30))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100))
        self.do(SpendBudget("limit", 0, -500))
        assert self.load(counters=("limit",)).counters == {"limit": 0}
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100, -500), SpendBudget("limit", 100, 101))
        self.refuse(Code.BUDGET_EXHAUSTED, SpendBudget("limit", 100, 101))

    def test_a_rate_is_counted_in_a_sliding_window(self) -> None:
        """Neither uses older than `window` seconds count, nor refused ones. Two windows of a counter both hold."""
        self.refuse(Code.RATE_EXCEEDED, SpendRate("none", 60, 0))
        self.do(SpendRate("pay", 10, 2))
        self.clock.tick(6)
        self.do(SpendRate("pay", 10, 2))
        self.do(SpendRate("other", 10, 1))
        for _ in range(3):
            self.refuse(Code.RATE_EXCEEDED, SpendRate("pay", 10, 2))
        self.clock.tick(4)
        self.do(SpendRate("pay", 10, 2))
        self.refuse(Code.RATE_EXCEEDED, SpendRate("pay", 10, 2))
        both = (SpendRate("both", 10, 1), SpendRate("both", 100, 2))
        self.do(*both)
        self.refuse(Code.RATE_EXCEEDED, *both)
        self.clock.tick(11)
        self.do(*both)
        self.clock.tick(11)
        self.refuse(Code.RATE_EXCEEDED, *both)
        self.refuse(Code.RATE_EXCEEDED, *reversed(both))

    def test_the_history_counts(self) -> None:
        """Steps, calls, effects, denials, data classes in order, and the last steps by name."""
        self.do(RecordStep(call="read_file", effect="read", data_class="secret", recent="read_file"))
        self.do(RecordStep(call="read_file", effect="read", data_class="internal", recent="read_file"))
        self.do(RecordStep(denials=2, recent="deny:pay"), RecordStep())
        classes, recent, at = ("internal", "secret"), ("read_file", "read_file", "deny:pay"), int(self.clock())
        seen = History(4, {"read_file": 2}, {"read": 2}, 2, classes, recent, streak=2, times=(at, at))
        assert self.load().history == seen

    def test_the_history_tells_whose_reads_they_are(self) -> None:
        """A child's class is its own until it acts or work is handed on; then, or where nobody is named, everybody's."""
        one, other = ("main", "one"), ("main", "other")
        self.do(RecordStep(data_class="secret", agent=one))
        assert self.load().history.confined == (("secret", one),)
        self.do(RecordStep(data_class="secret", agent=other), RecordStep(call="look", effect="read", agent=one))
        assert self.load().history.confined == (("secret", one), ("secret", other))
        self.do(RecordStep(call="note", effect="write", side_effect=True, agent=other))
        assert self.load().history.confined == ()
        self.do(*(RecordStep(data_class=name, agent=one) for name in ("internal", "secret")), RecordStep(data_class="public"))
        assert self.load().history.confined == (("internal", one),)
        now = int(self.clock())
        self.do(TakeLease(Lease("j", "r", ("main",), 1, now, now + 60)))
        assert self.load().history.confined == ()
        assert self.load().history.classes_read == ("internal", "public", "secret")

    def test_the_history_tells_anomalies(self) -> None:
        """A permit ends a streak of denials; a side effect, or the subject's own word, ends a row of rotations."""
        self.do(RecordStep(denials=1, unplanned=1), RecordStep(denials=1, tainted=1))
        self.do(AdvanceEpoch(1))
        self.do(AdvanceEpoch(2, (replace(_said("x"), own=False),)))
        seen = self.load().history
        assert (seen.streak, seen.unplanned, seen.tainted, seen.rotations) == (2, 1, 1, 2)
        self.do(RecordStep(call="read"))
        seen = self.load().history
        assert (seen.streak, seen.denials, seen.rotations) == (0, 2, 2)
        self.do(RecordStep(call="pay", side_effect=True))
        assert self.load().history.rotations == 0
        self.do(AdvanceEpoch(3))
        self.do(AdvanceEpoch(4, (_said("y"),)))
        assert self.load().history.rotations == 0
        self.do(*[RecordStep(call="read")] * (TIMES + 3))
        assert len(self.load().history.times) == TIMES

    def test_the_history_is_bounded(self) -> None:
        """The last steps and so many names; what comes beyond is counted as `*`, never forgotten."""
        names = [f"t{i:04}" for i in range(MAX_NAMES + 5)]
        self.do(*(RecordStep(call=name, effect=name, data_class=name, recent=name) for name in names))
        seen = self.load().history
        assert seen.recent == tuple(names[-RECENT:])
        kept = names[:MAX_NAMES]
        assert seen.calls == seen.effects == {**dict.fromkeys(kept, 1), "*": 5}
        assert seen.classes_read == ("*", *kept)
        self.do(RecordStep(call=names[0], data_class=names[0]))
        assert self.load().history.calls[names[0]] == 2

    def test_values_are_found_by_key(self) -> None:
        """Only those asked for, one sighting per meaning, its first source."""
        first, again = _sighting("a", source="mail/sender"), _sighting("a", source="mail/cc")
        mention = _sighting("a", asserted=False)
        assert self.load(values=("a",)).values == {}
        self.do(RecordValues((first, _sighting("b"))), RecordValues((mention,)))
        self.do(RecordValues((again, first)), RecordValues(()))
        found = self.load(values=("a", "never")).values
        assert {k: set(v) for k, v in found.items()} == {"a": {first, mention}}
        assert self.load().values == {}
        self.scope = self.scope._replace(thread="another")
        assert self.load(values=("a",)).values == {}

    # --- the status of a jti --------------------------------------------------------------------------

    def test_the_status_of_a_token_through_its_life(self) -> None:
        """It lives while its call is claimed, its lease is live and the task unchanged."""
        lease = self.lease()
        tokens = {state: unique_name("token") for state in ("done", "failed", "suspended", "unknown", "released", "read")}
        for key, token in tokens.items():
            assert self.status(token) == "unknown"
            self.do(_claim(key, lease, tokens=(token,)))
            assert self.status(token) == "live"
        assert self.ledger.status("another-tenant", tokens["done"]) == "unknown"
        for key in ("done", "failed", "suspended", "unknown"):
            self.do(ConcludeCall(key, key))  # type: ignore[arg-type]
        self.do(ReleaseCall("released"), ConcludeCall("read", None))
        assert {self.status(token) for token in tokens.values()} == {"ended"}

    def test_a_call_claimed_again_has_another_token(self) -> None:
        """The first one stays dead, and a refused claim's never lived."""
        first, second = self.lease(), self.lease()
        old, new, never = unique_name("token"), unique_name("token"), unique_name("token")
        self.do(_claim("k", first, tokens=(old,)))
        self.refuse(Code.CALL_IN_PROGRESS, _claim("k", second, tokens=(never,)))
        self.do(ConcludeCall("k", "suspended"), EndLease(first.jti, "suspended"))
        self.do(_claim("k", second, tokens=(new,)))
        assert (self.status(old), self.status(new), self.status(never)) == ("ended", "live", "unknown")

    # --- calls in doubt ------------------------------------------------------------------------------

    def deed(self, thread: Scope, key: str, subject: str = "user:alice", deed: str = "pay:x") -> Lease:
        """Claim a call of a thread and leave it at that, as a process does that is killed."""
        now = int(self.clock())
        lease = Lease(unique_name(), "run-1", ROOT, 1, now, now + TTL)
        claim = ClaimCall(key, lease.jti, repeatable=False, deed=deed, about={"tool": "pay", "run": "run-1"})
        done = self.ledger.commit(thread, None, [OpenThread(subject), TakeLease(lease), claim])
        assert isinstance(done, Committed), done
        return lease

    def doubted(self, **query: Any) -> list[tuple[str, str]]:
        """Return the open calls of a deed that a load of the test's thread finds."""
        return sorted((one.row.key, one.row.state) for one in self.load(**query).doubts)

    def test_a_deed_without_an_outcome_is_found_by_the_same_subject(self) -> None:
        """On every thread of the subject and tenant, claimed while the lease lives, unknown from then on."""
        t, key = self.scope, unique_name()
        self.deed(t, key)
        self.deed(t._replace(thread=unique_name()), f"{key}-elsewhere")
        self.deed(t._replace(thread=unique_name()), f"{key}-bobs", "user:bob")
        self.deed(t._replace(tenant=unique_name()), f"{key}-foreign")
        self.deed(t, f"{key}-other", deed="pay:y")
        for state in ("claimed", "unknown"):
            assert self.doubted(deeds=("pay:x",)) == [(key, state), (f"{key}-elsewhere", state)]
            self.clock.tick(TTL)
        both = [(key, "unknown"), (f"{key}-elsewhere", "unknown"), (f"{key}-other", "unknown")]
        assert self.doubted(deeds=("pay:x", "pay:y")) == both
        assert not self.doubted() + self.doubted(deeds=("send:x",))
        self.do(ConcludeCall(key, "done"), ReleaseCall(f"{key}-other"))
        assert self.doubted(deeds=("pay:x", "pay:y")) == [(f"{key}-elsewhere", "unknown")]
        self.do(ConcludeCall(key, "unknown"))
        assert (key, "unknown") in self.doubted(deeds=("pay:x",))

    def test_a_call_has_one_deed(self) -> None:
        """The one of its newest claim, and none once that is over."""
        lease, query = self.deed(self.scope, "k"), {"deeds": ("pay:x", "pay:y")}
        for deed in ("pay:y", "", "pay:x"):
            self.do(ClaimCall("k", lease.jti, repeatable=True, deed=deed))
            assert [one.row.deed for one in self.load(**query).doubts] == [deed][: len(deed)]
        self.do(ClaimCall("k", lease.jti, repeatable=True, deed="pay:y"))
        self.do(ReleaseCall("k"))
        assert not self.doubted(**query)

    def test_a_claim_without_a_lease_is_unknown(self) -> None:
        """Nobody will conclude it. Each look says so: at the call, at its deed, at the list, and at another claim."""
        self.do(OpenThread("user:alice"), ClaimCall("k", "gone", repeatable=False, deed="pay:x", about={"tool": "pay"}))
        assert self.load(calls=("k",)).calls["k"].state == "unknown"
        assert self.doubted(deeds=("pay:x",)) == [("k", "unknown")]
        assert [one.row.state for one in cast("ListsInDoubtCalls", self.ledger).doubts(self.scope.tenant)] == ["unknown"]
        self.refuse(Code.OUTCOME_UNKNOWN, ClaimCall("k", "gone", repeatable=False))

    def test_a_claim_looks_for_doubts_that_came_since_the_decision(self) -> None:
        """The twin: what may be done side by side is not refused."""
        assert [self.claimed("t"), self.claimed("t")] == [None, Code.IN_DOUBT]
        assert self.claimed("other", process="p2", args="e") == Code.IN_DOUBT
        assert [self.claimed("other"), self.claimed("t", deed="send:x")] == [None, None]
        assert self.claimed("other", deed="send:x", process="p2", args="e") is None
        assert self.claimed("third", deed="send:x", process="p2") == Code.IN_DOUBT
        self.clock.tick(TTL)
        assert self.claimed("new") == Code.IN_DOUBT
        self.clock.tick(LASTS)
        assert self.doubted(deeds=("pay:x",)) == [] and self.claimed("new") is None

    def test_a_call_that_may_run_beside_another_does_not_once_that_one_is_in_doubt(self) -> None:
        """Its end takes no lock, and comes between the load and the claim."""
        about = {"args_digest": "d", "process": "p1", "entry": "e1"}

        def claim(key: str, **more: Any) -> ClaimCall:
            return ClaimCall(key, lease.jti, False, deed="send:x", about={**about, **more}, subject="user:alice")

        elsewhere, lease = self.scope._replace(thread=unique_name()), self.deed(self.scope, "opens", deed="")
        self.ledger.commit(elsewhere, None, [OpenThread("user:alice"), TakeLease(lease), claim("runs")])
        mine = claim("beside", args_digest="e", entry="e2")
        self.load(calls=("beside",), deeds=("send:x",))
        self.do(mine)
        self.do(ReleaseCall("beside"))
        self.load(calls=("beside",), deeds=("send:x",))
        self.ledger.commit(elsewhere, None, [ConcludeCall("runs", "unknown")])
        self.refuse(Code.IN_DOUBT, mine)

    def test_only_the_newest_void_calls_are_read(self) -> None:
        """A later call of the deed commits to the thread of each."""
        for number in range(NEWEST + 2):
            self.deed(self.scope, f"k{number}")
            self.do(ConcludeCall(f"k{number}", "unknown"))
            self.do(ResolveCall(f"k{number}", False, "user:carol"))
            self.clock.tick(1)
        self.clock.tick(LASTS)  # they count until another call is noted, however late
        found = self.doubted(deeds=("pay:x",))
        assert sorted(found) == sorted((f"k{number}", "void") for number in range(2, NEWEST + 2))

    def test_a_root_entry_is_in_doubt_of_its_own_calls_once_they_are_unknown(self) -> None:
        """Side by side, the calls of a message are one piece of work. Each entry of one run is another piece."""
        about = {"args_digest": "d", "process": "p1", "run_id": "r", "entry": "e1", "by": "jti pay", "plan": "m1"}
        lease = self.deed(self.scope, "opens", deed="")

        def claim(key: str, **more: Any) -> ClaimCall:
            return ClaimCall(key, lease.jti, False, deed="pay:x", about={**about, **more}, subject="user:alice")

        self.do(claim("first"))
        self.do(claim("second"))
        self.refuse(Code.IN_DOUBT, claim("another", entry="e2"))
        # A call may have been given up while it still runs: another message, or code, repeats it.
        for plan in ("m2", None):
            self.refuse(Code.IN_DOUBT, claim("again", plan=plan))
        for other in ({"by": "jti wire"}, {"args_digest": "e"}):  # a tool within the tool, and another payment
            self.do(claim("beside", plan="m2", **other))
            self.do(ReleaseCall("beside"))
        self.do(ConcludeCall("second", "done"), ConcludeCall("first", "unknown"))
        self.refuse(Code.IN_DOUBT, claim("third"))

    @pytest.mark.parametrize("deed", ["pay:x", "pay:several"])
    @pytest.mark.parametrize("first", ["m0", "m1"])
    @pytest.mark.parametrize("fails", [NEWEST - 2, NEWEST + 2])
    def test_many_failures_of_one_message_hide_nothing(self, fails: int, first: str, deed: str) -> None:
        """Only the newest are read. The last of them counts for older ones, whatever message it is from."""
        lease, also = self.deed(self.scope, "opens", deed=""), ("pay:x", "pay:y")
        about = {"args_digest": "d", "process": "p1", "entry": "e1", "targets": also if deed == "pay:several" else ()}

        def claim(key: str, plan: str, despite: Any = None) -> ClaimCall:
            more = {**about, "plan": plan}
            return ClaimCall(key, lease.jti, False, (), deed, more, "user:alice", despite, also)

        for number, plan in enumerate([first, *["m1"] * fails]):
            self.do(claim(f"k{number}", plan))
            self.do(ConcludeCall(f"k{number}", "failed"))
            self.clock.tick(1)
        cut = fails >= NEWEST and deed == "pay:x"  # all are read of those that may have another target
        assert len(self.load(deeds=(deed,)).doubts) == (NEWEST if cut else fails + 1)
        last = claim("last", "m1", ())
        if first == "m0" or cut:
            self.refuse(Code.IN_DOUBT, last)
        else:
            self.do(last)

    def test_a_failed_call_counts_for_equal_ones(self) -> None:
        """However many others failed. A claim of the same call under another lease is not ended by the first."""
        lease = self.deed(self.scope, "opens", deed="")
        about = {"process": "p1", "entry": "e1", "plan": "m1", "by": "b"}

        def claim(key: str, digest: str, **more: Any) -> ClaimCall:
            also, known = ("send:several", f"send:x {digest}"), {**about, "args_digest": digest, "plan": key}
            return ClaimCall(key, lease.jti, False, (), "send:x", known, "user:alice", also=also, **more)

        for number in range(NEWEST + 2):
            self.do(claim(f"k{number}", f"d{number}"))
            for _ in range(2):  # the answer of the first commit was lost
                self.do(ConcludeCall(f"k{number}", "failed", jti=lease.jti))
            self.clock.tick(1)
        self.do(claim("other", "e"))
        self.do(ConcludeCall("other", "done", jti=lease.jti))
        self.refuse(Code.IN_DOUBT, claim("again", "d0"))
        ((_, _, row),) = cast("ListsInDoubtCalls", self.ledger).doubts(self.scope.tenant, "k0")
        assert (row.state, row.deed) == ("unknown", "send:x d0")
        self.do(replace(claim("k0", "d0"), repeatable=True, despite=None))
        self.do(ConcludeCall("k0", "done", jti="earlier"))
        assert [row.state for _, _, row in cast("ListsInDoubtCalls", self.ledger).doubts(self.scope.tenant, "k0")] == ["claimed"]
        self.do(ConcludeCall("k0", "unknown", jti=lease.jti))
        self.refuse(Code.IN_DOUBT, claim("another", "e"))

    @pytest.mark.parametrize("state", ["suspended", "void"])
    def test_a_known_call_looks_for_doubts_too(self, state: str) -> None:
        """A call that paused, or that did not happen, is claimed once more: what others did meanwhile counts."""
        self.deed(self.scope, "k")
        self.clock.tick(TTL)
        self.do(ConcludeCall("k", "suspended") if state == "suspended" else ResolveCall("k", False, "user:carol"))
        self.deed(self.scope._replace(thread=unique_name()), "other")
        lease, about = self.deed(self.scope, "opens", deed=""), {"args_digest": "d", "process": "p2", "entry": "e2"}
        claim = partial(ClaimCall, "k", lease.jti, False, deed="pay:x", about=about, subject="user:alice")
        self.clock.tick(TTL)
        self.refuse(Code.IN_DOUBT, claim())
        (other,) = [one for one in self.load(deeds=("pay:x",)).doubts if one.row.key == "other"]
        self.refuse(Code.IN_DOUBT, claim(despite=("another",)))
        self.do(claim(despite=(other.name,)))

    def test_a_call_whose_deed_was_done_again_asks(self) -> None:
        """Also once somebody found that it did not happen. A call that was claimed anew meanwhile is another one."""
        self.deed(self.scope, "k")
        at = self.clock()
        self.clock.tick(TTL)
        for key, when in (("k", at + 1), ("none", at)):
            self.refuse(Code.IN_DOUBT, RepeatCall(key, when))
        self.do(RepeatCall("k", at))
        self.do(ResolveCall("k", happened=False, author="user:carol"))
        lease, about = self.deed(self.scope, "opens", deed=""), {"args_digest": "d", "process": "p2", "entry": "e2"}
        claim = partial(ClaimCall, "k", lease.jti, False, deed="pay:x", about=about, subject="user:alice")
        self.refuse(Code.IN_DOUBT, claim())
        self.do(claim(despite=(f"k {at}",)))
        self.refuse(Code.IN_DOUBT, RepeatCall("k", at))

    def test_a_claim_keeps_that_its_call_was_void(self) -> None:
        """If the first try ends after all, that is late. If the claim is given back, the call is void as before."""
        first, at = self.deed(self.scope, "k"), self.clock()
        self.clock.tick(TTL)
        self.do(ResolveCall("k", False, "user:carol"))
        lease = self.deed(self.scope, "opens", deed="")
        claim = ClaimCall("k", lease.jti, False, deed="pay:x", about={"tool": "pay", "run": "run-2"})

        def ends_late() -> None:
            late = self.refuse(Code.ENDED_LATE, ConcludeCall("k", "done", jti=first.jti)).row
            assert (late.about["resolved"]["author"], late.about["run"]) == ("user:carol", "run-1")

        self.do(claim)
        ends_late()
        self.do(RepeatCall("k", self.clock()))
        self.do(ReleaseCall("k"))
        ((_, _, row),) = cast("ListsInDoubtCalls", self.ledger).doubts(self.scope.tenant, "k")
        assert (row.state, row.jti, row.at) == ("void", first.jti, at) and row.about["again"]
        ends_late()
        for state in ("suspended", "unknown", "done"):
            self.do(replace(claim, repeatable=True))
            self.do(ConcludeCall("k", state, jti=lease.jti))
            ends_late()
        self.do(ConcludeCall("k", "done", "late", late=True, jti=first.jti))
        ((_, _, row),) = cast("ListsInDoubtCalls", self.ledger).doubts(self.scope.tenant, "k")
        assert (row.state, row.jti, row.result) == ("done", lease.jti, None)

    def test_calls_in_doubt_are_listed(self) -> None:
        """Newest first, with what is known of them; by key in any state. A read, which may run again, never is."""
        tenant, key = self.scope.tenant, unique_name()
        store = cast("ListsInDoubtCalls", self.ledger)
        lease = self.deed(self.scope, key)
        self.do(ClaimCall("read", lease.jti, repeatable=True))
        assert list(store.doubts(tenant)) == []
        assert [one.row.state for one in store.doubts(tenant, key)] == ["claimed"]
        at = self.clock()
        self.clock.tick(TTL)
        self.deed(self.scope._replace(thread=unique_name()), f"{key}-later")
        assert asyncio.run(store.adoubts(tenant)) == [
            InDoubtCall(self.scope, "user:alice", CallRow(
                key, "unknown", lease.jti, deed="pay:x", at=at, about={"tool": "pay", "run": "run-1"}
            ))
        ]  # fmt: skip
        self.clock.tick(TTL)
        assert [one.row.key for one in store.doubts(tenant)] == [f"{key}-later", key]
        assert [one.row.key for one in store.doubts(tenant, None, self.scope)] == [key]
        assert not [*store.doubts(unique_name()), *store.doubts(tenant, unique_name())]

    def test_a_call_in_doubt_is_resolved_once(self) -> None:
        """It happened: then it is done. It did not: then it may run. Never while it is under way, or after its end."""
        store = cast("ListsInDoubtCalls", self.ledger)
        lease = self.deed(self.scope, "did")
        self.deed(self.scope, "did-not")
        for key in ("did", "did-not", "never"):
            self.refuse(Code.NOT_IN_DOUBT, ResolveCall(key, happened=True, author="user:carol"))
        self.clock.tick(TTL)
        self.do(ResolveCall("did", happened=True, author="user:carol", reason="it is on the statement"))
        self.do(ResolveCall("did-not", happened=False, author="user:carol"))
        for key in ("did", "did-not"):
            self.refuse(Code.NOT_IN_DOUBT, ResolveCall(key, happened=True, author="user:mallory"))
        assert self.doubted(deeds=("pay:x",)) == [("did-not", "void")] and not store.doubts(self.scope.tenant)
        refused = self.refuse(Code.OUTCOME_UNKNOWN, ClaimCall("did", lease.jti, repeatable=False)).row
        assert refused.state == "done"
        self.do(ClaimCall("did-not", lease.jti, repeatable=False))
        ((_, _, row),) = store.doubts(self.scope.tenant, "did")
        said = {"happened": True, "author": "user:carol", "reason": "it is on the statement", "at": self.clock()}
        assert (row.about or {})["resolved"] == said
