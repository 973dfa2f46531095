"""The correction matrix over several processes: on an SQLite file, and on PostgreSQL.

On SQLite one process plans and another, new to the thread, corrects it and goes on; on PostgreSQL, and on
SQLite where a run is in flight, the process that plans lives on, thinks or waits, while another one corrects.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.correction_places import Elsewhere, check, corrected_elsewhere, opened, planned_elsewhere
from tests.attack.corrections import KINDS, MODES, ROADS, Desk, Kind, Road
from tests.integration_tests.services import ledger_schema
from tests.tier import chosen

Place = tuple[dict[str, Any], Elsewhere]


def once(found: list[tuple[Road, Kind]], store: int) -> pytest.MarkDecorator:
    """Play each cell in one mode, and in CI on the one store or the other, so that each road and each kind meets all of them.

    Without enforcement, play each road in one kind of graph: each kind's harm is shown in one process already.
    """
    roads, kinds = list(ROADS.values()), list(KINDS.values())
    here = chosen(found, lambda cell: (roads.index(cell[0]) + kinds.index(cell[1])) % 2 == store)
    twins = [(r, [k for q, k in found if q is r][-1]) for r in roads if any(q is r for q, _ in found)]
    cells = [(r, k, MODES[(roads.index(r) + kinds.index(k) // 2) % 2], protected) for of, protected in ((here, True), (twins, False)) for r, k in of]
    names = [f"{r.slug}-{k.name}-{m}{'' if protected else '-twin'}" for r, k, m, protected in cells]
    return pytest.mark.parametrize(("road", "kind", "mode", "protected"), cells, ids=names)


CELLS = [(r, KINDS[k]) for r in ROADS.values() for k in r.only]
WAITING = [(r, k) for r, k in CELLS if r.waits]
RUNNING = [(r, k) for r, k in CELLS if not r.waits]


def _both(place: dict[str, str]) -> Iterator[Place]:
    with opened(place) as held:
        other = Elsewhere(place)
        yield held, other
        other.close()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path: Path = tmp_path_factory.mktemp("corrections") / "ledger.sqlite"
    yield from _both({"file": str(path)})


@pytest.fixture(scope="module")
def postgres() -> Iterator[Place]:
    with ledger_schema(graphs=True) as (dsn, schema):
        yield from _both({"dsn": dsn, "schema": schema})


def verify(desk: Desk, road: Road, protected: bool) -> None:
    if protected:
        check(road, desk)
    else:
        assert len(desk.ran) == road.made


@once(WAITING, 0)
def test_planned_in_a_process_that_is_gone(road: Road, kind: Kind, mode: str, protected: bool, sqlite: Place) -> None:
    """A new process knows of the plan what the file says: enough to void it."""
    verify(planned_elsewhere(road, kind, mode, *sqlite, protected=protected), road, protected)


@once(RUNNING, 0)
def test_corrected_in_flight_over_one_file(road: Road, kind: Kind, mode: str, protected: bool, sqlite: Place) -> None:
    """The process whose model thinks, or whose child runs, finds its lease dead as it comes to act."""
    verify(corrected_elsewhere(road, kind, mode, *sqlite, protected=protected), road, protected)


@once(CELLS, 1)
def test_corrected_in_another_process(road: Road, kind: Kind, mode: str, protected: bool, postgres: Place) -> None:
    """From the commit on nothing that this process planned happens, here or there."""
    verify(corrected_elsewhere(road, kind, mode, *postgres, protected=protected), road, protected)
