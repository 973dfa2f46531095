"""The cells of the correction matrix that need supervisor, swarm or deepagents."""

from __future__ import annotations

from tests.attack.corrections import Kind, Road, check, harm
from tests.attack.test_correction_matrix import cells, modes

THERE = ("supervisor", "swarm", "deepagents")


@cells(*THERE)
@modes
def test_nothing_of_the_old_plan_happens(road: Road, kind: Kind, mode: str) -> None:
    check(road, kind, mode)


@cells(*THERE)
@modes
def test_unenforced_the_old_plan_is_carried_out(road: Road, kind: Kind, mode: str) -> None:
    assert harm(road, kind, mode), "the unenforced twin does no harm"
