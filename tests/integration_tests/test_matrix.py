"""The rows of the bypass matrix that need supervisor, swarm or deepagents."""

import pytest

from tests.attack.routes import MODES, ROUTES, Route
from tests.attack.test_matrix import check_closed_by, check_closed_or_named, check_row

NEEDING = [r for r in ROUTES.values() if r.needs]
rows = pytest.mark.parametrize("route", NEEDING, ids=lambda r: r.name)


@rows
def test_row_of_the_table(route: Route) -> None:
    check_row(route)


@rows
@pytest.mark.parametrize("mode", MODES)
def test_closed_or_named(route: Route, mode: str) -> None:
    check_closed_or_named(route, mode)


@rows
@pytest.mark.parametrize("mode", MODES)
def test_closed_by_the_layers_it_names(route: Route, mode: str) -> None:
    if mode in route.modes:
        check_closed_by(route, mode)
