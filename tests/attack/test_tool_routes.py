"""Every route on the side of tools: open without us, closed by exactly the layers that it names."""

from __future__ import annotations

from ._kit import *
from .routes import PROFILES, ROUTES, Kit, Route, play

LAYERS = ("entry", "guard", "tool_node")


def in_modes(routes: list[Route]) -> pytest.MarkDecorator:
    """Each route in each form that it has."""
    return pytest.mark.parametrize(
        ("route", "mode"), [pytest.param(r, mode, id=f"{r.name}-{mode}") for r in routes for mode in r.modes]
    )


rows = in_modes([r for r in ROUTES.values() if not r.needs])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_twin(route: Route, mode: str) -> None:
    """Without us the harm happens."""
    assert play(route, Kit(None), mode).ran == route.harm


def check_layer(route: Route, layer: str, mode: str) -> None:
    """A layer that the route names closes it alone, under a PDP that denies one tool; another does not."""
    pdp = deny_only(route.denied)
    outcome = play(route, Kit(authz_with(pdp, profiles=PROFILES), frozenset({layer})), mode)
    harmed = route.harm[0] in outcome.ran
    assert harmed is (layer not in route.closed_by)
    if not harmed and outcome.error is not None and outcome.error.code == "no_permit":
        assert calls_of(pdp, route.denied), "denied by the PDP, which was not asked"


def check_all(route: Route, mode: str) -> None:
    """All layers together: closed, or open for the reason that the route gives; and asked once where permitted."""
    pdp = deny_only(route.denied)
    outcome = play(route, Kit(authz_with(pdp, profiles=PROFILES), frozenset({"entry", "guard"})), mode)
    closed = route.harm[0] not in outcome.ran
    assert closed is bool({"entry", "guard"} & {*route.closed_by})
    assert closed or route.open
    if "entry" not in route.closed_by:
        assert route.open


@rows
def test_unenforced_twin(route: Route, mode: str) -> None:
    check_twin(route, mode)


@rows
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_alone(route: Route, layer: str, mode: str) -> None:
    check_layer(route, layer, mode)


@rows
def test_all_layers(route: Route, mode: str) -> None:
    check_all(route, mode)
