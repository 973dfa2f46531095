"""What a ledger in memory keeps of long threads and of many, and that what it drops denies."""

import tracemalloc

import pytest

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.output_reading import SeenValue
from langchain_runtime_authz.facts.plan import PlanRecord
from langchain_runtime_authz.facts.resource import read_mark
from langchain_runtime_authz.ledger import memory as module
from langchain_runtime_authz.ledger.base import MAX_MARKS, Committed, Conflict, Lease, Query, Scope
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall, ReleaseCall, SpendBudget
from langchain_runtime_authz.ledger.changes import Change, RecordPlan, RecordValues, SetMark, TakeLease
from langchain_runtime_authz.ledger.memory import MAX_ROWS, MemoryLedger
from langchain_runtime_authz.ledger.thread_state import UNKNOWN_COUNT

SCOPE = Scope("t", "i", "g", "thread")
CALLS = 3 * MAX_ROWS


def run(ledger: MemoryLedger, scope: Scope, calls: range) -> None:
    """Carry out calls that have an effect, each with a counter of its own."""
    for n in calls:
        claim = [ClaimCall(f"call {n}", "jti", repeatable=False), SpendBudget(f"counter {n}", 1), SpendBudget("all", 10**6)]
        assert isinstance(ledger.commit(scope, None, claim), Committed), n
        ledger.commit(scope, None, [ConcludeCall(f"call {n}", "done", "ok")])


@pytest.fixture(scope="module")
def memory() -> list[int]:
    """Return what is in use after each half of a long thread's calls."""
    return []


@pytest.fixture(scope="module")
def long(memory: list[int]) -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.commit(SCOPE, None, [ClaimCall("running", "jti", repeatable=False)])
    tracemalloc.start()
    for half in (range(CALLS // 2), range(CALLS // 2, CALLS)):
        run(ledger, SCOPE, half)
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return ledger


def test_a_long_thread_is_flat(long: MemoryLedger, memory: list[int]) -> None:
    """The second half of its calls adds nothing to the first."""
    (thread,) = long._threads.values()
    assert len(thread.calls) <= MAX_ROWS and len(thread.budgets) <= MAX_ROWS
    assert memory[1] < memory[0] * 1.1
    assert thread.budgets["all"] == CALLS, "a counter in use is kept"
    assert "running" in thread.calls


@pytest.mark.parametrize(("held", "limit"), [("values", "MAX_VALUES"), ("plans", "MAX_PLANS"), ("leases", "MAX_DEAD")])
def test_what_else_a_long_thread_holds_is_flat(held: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, 3)
    ledger = MemoryLedger()
    for n in range(9):
        value, plan = SeenValue(f"v{n}", "external", True, False, "tool"), PlanRecord(f"m{n}", ("a",), 1, "model", ())
        lease = Lease(f"j{n}", "run", ("a",), 1, 0, 1, state="ended")
        more: dict[str, Change] = {"values": RecordValues((value,)), "plans": RecordPlan(plan), "leases": TakeLease(lease)}
        assert isinstance(ledger.commit(SCOPE, None, [more[held]]), Committed)
    (thread,) = ledger._threads.values()
    assert len(getattr(thread, held)) == 3


def test_many_threads_are_flat() -> None:
    """However many come and go."""
    ledger = MemoryLedger(max_threads=500)
    for n in range(2_000):
        run(ledger, Scope("t", "i", "g", str(n)), range(1))
        assert len(ledger._threads) <= 500 and len(ledger._order) <= 500


@pytest.mark.parametrize("graph", ["mandate:", "data:", "g"])
def test_a_used_step_and_changed_data_outlast_many_threads(graph: str) -> None:
    """Otherwise the step could be used again, and the data would count as unchanged."""
    ledger, shared = MemoryLedger(max_threads=50), Scope("t", "i", graph, "user:alice")
    used = [SpendBudget("step", 1), SetMark("file:a", "v2")]
    ledger.commit(shared, None, used)
    for n in range(200):
        run(ledger, Scope("t", "i", "g", str(n)), range(1))
    assert len(ledger._threads) <= 50
    assert isinstance(ledger.commit(shared, None, used), Conflict) == (graph != "g")
    assert (ledger.load(shared, Query(marks=("file:a",))).marks == {"file:a": "v2"}) or graph == "g"


@pytest.mark.parametrize("n", [0, 1, CALLS // 2, CALLS - 1])
def test_a_dropped_call_never_runs_again(long: MemoryLedger, n: int) -> None:
    """Nor one that is kept; a new call does, and so does a dropped read or what its profile declares idempotent."""
    verdict = long.commit(SCOPE, None, [ClaimCall(f"call {n}", "jti", repeatable=False)])
    assert isinstance(verdict, Conflict) and verdict.code == Code.OUTCOME_UNKNOWN
    assert isinstance(long.commit(SCOPE, None, [ClaimCall("new", "jti", repeatable=False)]), Committed)
    long.commit(SCOPE, None, [ReleaseCall("new")])


@pytest.mark.parametrize("n", [0, CALLS // 2])
def test_a_dropped_counter_is_spent(long: MemoryLedger, n: int) -> None:
    """For policies that look at it, for claims, and after something is given back."""
    name = f"counter {n}"
    assert long.load(SCOPE, Query(counters=(name, "never"))).counters == {name: UNKNOWN_COUNT}
    for give in ([SpendBudget(name, 10, -1)], [ReleaseCall("call 0", refund=((name, 1),))]):
        long.commit(SCOPE, None, give)
        verdict = long.commit(SCOPE, None, [SpendBudget(name, 10**9)])
        assert isinstance(verdict, Conflict) and verdict.code == Code.BUDGET_EXHAUSTED


def test_few_new_calls_are_taken_for_dropped_ones(long: MemoryLedger) -> None:
    """The names of dropped rows take constant space, so a few others look like them."""
    (thread,) = long._threads.values()
    assert thread.forgotten is not None
    assert sum(f"other {n}" in thread.forgotten for n in range(10_000)) < 3


def test_only_marks_of_reads_are_dropped_and_count_as_changed() -> None:
    """Without another mark, an edited state, a used mandate or an unrecorded change would not be noticed."""
    ledger, kept = MemoryLedger(), ("head", "memory", "below", "unrecorded", "mandate:application", "child:1", "task:1", "file:a")
    reads = [read_mark("look", f"{n}") for n in range(MAX_MARKS + 2000)]
    ledger.commit(SCOPE, None, [SetMark(name, "1") for name in kept])
    for name in reads:
        ledger.commit(SCOPE, None, [SetMark(name, "1", "look")])
    (thread,) = ledger._threads.values()
    assert len(thread.marks) <= MAX_MARKS and set(ledger.load(SCOPE, Query(marks=kept)).marks) == set(kept)
    ledger.commit(SCOPE, None, [SetMark(reads[-1], "1", "look")])
    assert ledger.load(SCOPE, Query()).history.changed == {}
    ledger.commit(SCOPE, None, [SetMark(reads[0], "1", "look")])
    assert set(ledger.load(SCOPE, Query()).history.changed) == {"look"}
