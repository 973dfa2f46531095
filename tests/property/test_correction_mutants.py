"""The correction machine can fail: of each rule that it watches, a product without it is caught."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from langchain_runtime_authz.facts import plan
from langchain_runtime_authz.langgraph import graph_entry
from langchain_runtime_authz.ledger import changes, memory
from langchain_runtime_authz.ledger.call_changes import ClaimCall, ConcludeCall
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pep import corrections as correction
from langchain_runtime_authz.pep import decide_calls as judge
from tests.property.test_correction_machine import CorrectionMachine
from tests.tier import PROFILE

Mutate = Callable[[pytest.MonkeyPatch], None]


def old_plans_stand(patch: pytest.MonkeyPatch) -> None:
    match = plan.match_plan
    patch.setattr(plan, "match_plan", lambda *a, **k: match(*a, **k)._replace(stale=False))


def no_epoch_is_compared(patch: pytest.MonkeyPatch) -> None:
    dead, broken = judge.lease_refusal, changes._broken

    def lease_refusal(run: Any, snapshot: Any) -> Any:
        code = dead(run, snapshot)
        return None if code == judge.Code.STALE_EPOCH else code

    def _broken(thread: Any, guard: Any) -> Any:
        conflict = broken(thread, guard)
        return None if conflict is not None and conflict.code == changes.Code.STALE_EPOCH else conflict

    patch.setattr(judge, "lease_refusal", lease_refusal)
    patch.setattr(changes, "_broken", _broken)
    old_plans_stand(patch)


def nothing_is_claimed(patch: pytest.MonkeyPatch) -> None:
    commit = MemoryLedger.commit

    def unclaimed(self: Any, scope: Any, guard: Any, given: Sequence[changes.Change]) -> Any:
        return commit(self, scope, guard, [c for c in given if not isinstance(c, ClaimCall | ConcludeCall)])

    patch.setattr(MemoryLedger, "commit", unclaimed)


def a_death_frees_its_calls(patch: pytest.MonkeyPatch) -> None:
    apply = changes.apply_changes

    def freed(thread: Any, guard: Any, changes: Any, now: float) -> Any:
        refused = apply(thread, guard, changes, now)
        for key, row in list(thread.calls.items()):
            if row.state == "unknown":
                thread.put(key, row._replace(state="void"))
        return refused

    patch.setattr(memory, "apply_changes", freed)


def what_stands_in_the_state_is_human(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph_entry.inputs, "without_known_history", lambda texts, state: texts)


def anybodys_words_are_the_subjects(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(correction, "replace", lambda text, **k: correction.HumanText(text.digest, text.text, text.key))


def corrections_open_no_epoch(patch: pytest.MonkeyPatch) -> None:
    pinned = memory.apply_changes

    def still(thread: Any, guard: Any, changes: Any, now: float) -> Any:
        epoch = thread.epoch
        refused = pinned(thread, guard, changes, now)
        thread.epoch = epoch
        return refused

    patch.setattr(memory, "apply_changes", still)


def a_payment_dies() -> None:
    """Play what the search is long in coming to: a process dies in a payment, and another goes on."""
    machine = CorrectionMachine()
    machine.begins(plan="pay", pauses=True)
    machine.goes_on(process=0, dies=True, again=False)
    for _ in range(3):
        machine.goes_on(process=1, dies=False, again=False)
        machine.nothing_happens_twice()
    assert len(machine.ran) == 1
    machine.teardown()


def test_a_payment_that_died_is_made_once() -> None:
    a_payment_dies()


@pytest.mark.parametrize(("mutate", "caught_by"), [
    (old_plans_stand, "no_old_plan_takes_effect"), (no_epoch_is_compared, "no_old_plan_takes_effect"),
    (nothing_is_claimed, "nothing_happens_twice"), (a_death_frees_its_calls, "nothing_happens_twice"),
    (what_stands_in_the_state_is_human, "machine_acts"), (anybodys_words_are_the_subjects, "no_machine_speaks_for_the_human"),
    (corrections_open_no_epoch, "human_says human_answers operator_corrects"),
])
def test_the_machine_catches_a_product_without_the_rule(mutate: Mutate, caught_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1,200 examples, by what is there for it. In CI a death is played and not searched for."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        if PROFILE == "ci" and caught_by == "nothing_happens_twice":
            a_payment_dies()
        run_state_machine_as_test(
            CorrectionMachine,
            settings=settings(
                max_examples=1200, stateful_step_count=20, phases=[Phase.generate], deadline=None, database=None,
                derandomize=True, report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
            ),
        )
    assert {*caught_by.split()} & {frame.name for frame in caught.traceback}
