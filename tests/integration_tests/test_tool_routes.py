"""The routes through graphs that other libraries build, by the same checks as the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tests.attack.routes import MODES, ROUTES, Route
from tests.attack.test_tool_routes import LAYERS, check_all, check_layer, check_twin

rows = pytest.mark.parametrize("route", [r for r in ROUTES.values() if r.needs], ids=lambda r: r.name)
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@rows
@modes
def test_unenforced_twin(route: Route, mode: str) -> None:
    check_twin(route, mode)


@rows
@modes
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_alone(route: Route, layer: str, mode: str) -> None:
    check_layer(route, layer, mode)


@rows
@modes
def test_all_layers(route: Route, mode: str) -> None:
    check_all(route, mode)
