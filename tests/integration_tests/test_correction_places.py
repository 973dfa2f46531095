"""The correction matrix over several processes: on an SQLite file, and on PostgreSQL.

On SQLite one process plans and another, new to the thread, corrects it and goes on; on PostgreSQL, and on
SQLite where a run is in flight, the process that plans lives on, thinks or waits, while another one corrects.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from langchain_runtime_authz.ledger.admin import migrate
from langchain_runtime_authz.ledger.postgres import administer
from tests.attack.correction_places import Elsewhere, check, corrected_elsewhere, opened, planned_elsewhere
from tests.attack.corrections import KINDS, MODES, ROADS, Kind, Road
from tests.attack.test_correction_matrix import cells

Place = tuple[dict[str, Any], Elsewhere]
everywhere = cells(*KINDS)
modes = pytest.mark.parametrize("mode", MODES)


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
    dsn, schema = os.environ["LRA_POSTGRES_DSN"], f"t_{secrets.token_hex(4)}"
    with administer(dsn, schema=schema, create=True) as admin:
        migrate(admin)
    with psycopg.connect(dsn) as conn:
        conn.execute(f"CREATE SCHEMA {schema}_graphs")
    yield from _both({"dsn": dsn, "schema": schema})
    with psycopg.connect(dsn) as conn:
        conn.execute(f"DROP SCHEMA {schema}, {schema}_graphs CASCADE")


def _those(*, waiting: bool) -> pytest.MarkDecorator:
    found = [(r, k) for r in ROADS.values() if bool(r.waits) == waiting for k in r.only]
    return pytest.mark.parametrize(
        ("road", "kind"), [(r, KINDS[k]) for r, k in found], ids=[f"{r.slug}-{k}" for r, k in found]
    )


pending, in_flight = _those(waiting=True), _those(waiting=False)


@pending
@modes
def test_planned_in_a_process_that_is_gone(road: Road, kind: Kind, mode: str, sqlite: Place) -> None:
    """A new process knows of the plan what the file says: enough to void it."""
    held, other = sqlite
    check(road, planned_elsewhere(road, kind, mode, held, other, protected=True))


@pending
@modes
def test_unenforced_planned_in_a_process_that_is_gone(road: Road, kind: Kind, mode: str, sqlite: Place) -> None:
    held, other = sqlite
    assert len(planned_elsewhere(road, kind, mode, held, other, protected=False).ran) == road.made


@in_flight
@modes
def test_corrected_in_flight_over_one_file(road: Road, kind: Kind, mode: str, sqlite: Place) -> None:
    """The process whose model thinks, or whose child runs, finds its lease dead as it comes to act."""
    held, other = sqlite
    check(road, corrected_elsewhere(road, kind, mode, held, other, protected=True))


@in_flight
@modes
def test_unenforced_corrected_in_flight_over_one_file(road: Road, kind: Kind, mode: str, sqlite: Place) -> None:
    held, other = sqlite
    assert len(corrected_elsewhere(road, kind, mode, held, other, protected=False).ran) == road.made


@everywhere
@modes
def test_corrected_in_another_process(road: Road, kind: Kind, mode: str, postgres: Place) -> None:
    """From the commit on nothing that this process planned happens, here or there."""
    held, other = postgres
    check(road, corrected_elsewhere(road, kind, mode, held, other, protected=True))


@everywhere
@modes
def test_unenforced_corrected_in_another_process(road: Road, kind: Kind, mode: str, postgres: Place) -> None:
    held, other = postgres
    assert len(corrected_elsewhere(road, kind, mode, held, other, protected=False).ran) == road.made
