"""The routes through graphs that other libraries build, by the same checks as the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tests.attack.routes import ROUTES, Route
from tests.attack.test_tool_routes import LAYERS, check_all, check_layer, in_modes

rows = in_modes([r for r in ROUTES.values() if r.needs])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@rows
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_alone(route: Route, layer: str, mode: str) -> None:
    check_layer(route, layer, mode)


@rows
def test_all_layers(route: Route, mode: str) -> None:
    check_all(route, mode)
