"""The cells of the correction matrix that need supervisor, swarm or deepagents."""

from tests.attack.corrections import MODES, Kind, Road, check, harm
from tests.attack.test_correction_matrix import cells, modes

THERE = ("supervisor", "swarm", "deepagents")


@cells(*THERE)
@modes
def test_nothing_of_the_old_plan_happens(road: Road, kind: Kind, mode: str) -> None:
    check(road, kind, mode)


@cells(*THERE)
def test_unenforced_the_old_plan_is_carried_out(road: Road, kind: Kind) -> None:
    assert harm(road, kind, MODES[len(road.slug + kind.name) % 2]), "the unenforced twin does no harm"
