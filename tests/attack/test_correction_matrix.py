"""The correction matrix: each road into each kind of graph, with its unenforced twin; `docs/_generated` shows it."""

from ._kit import *
from .corrections import KINDS, MODES, ROADS, Kind, Road, check, harm, in_docs, table

HERE = ("hand-written", "create_agent")


def cells(*kinds: str) -> pytest.MarkDecorator:
    """Every road that these kinds can express."""
    found = [(r, KINDS[k]) for r in ROADS.values() for k in kinds if k in r.only]
    return pytest.mark.parametrize(("road", "kind"), found, ids=[f"{r.slug}-{k.name}" for r, k in found])


modes = pytest.mark.parametrize("mode", MODES)


@cells(*HERE)
@modes
def test_nothing_of_the_old_plan_happens(road: Road, kind: Kind, mode: str) -> None:
    check(road, kind, mode)


@cells(*HERE)
@modes
def test_unenforced_the_old_plan_is_carried_out(road: Road, kind: Kind, mode: str) -> None:
    assert harm(road, kind, mode), "the unenforced twin does no harm"


def test_table_is_what_the_roads_say() -> None:
    """The table is what the roads say; run `python -m tests.attack.corrections --write`."""
    assert in_docs() == table()


def test_what_a_kind_can_not_express_has_its_reason() -> None:
    assert all(r.because for r in ROADS.values() if set(r.only) != set(KINDS))
    assert len({r.slug for r in ROADS.values()}) == len(ROADS)
