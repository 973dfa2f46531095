"""The bypass matrix: each route closed, or named by `coverage` on its own graph; `docs/_generated` shows what was played."""

from . import matrix
from ._kit import *
from .matrix import EVERYTHING, LAYERS, PROTECT, header, in_docs, naming, played, report_of, row
from .routes import MODES, ROUTES, Kit, Route, play

HERE = [r for r in ROUTES.values() if not r.needs]
rows = pytest.mark.parametrize("route", HERE, ids=lambda r: r.name)
ALONE = {"guard": LAYERS[0], "tool_node": LAYERS[1], "entry": PROTECT}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL"):
        yield


def check_row(route: Route) -> None:
    """The table's line for the route is what playing it in every column, sync and async, gives."""
    assert row(route) in in_docs(), f"run `python -m tests.attack.matrix --write`: {row(route)}"


def check_closed_or_named(route: Route, mode: str) -> None:
    """Under `protect`, and under all layers: the one denied tool does not run, or coverage of this graph says why."""
    assert play(route, Kit(None), mode).ran == route.harm, "the unenforced twin does no harm"
    for layer in (PROTECT, EVERYTHING):
        outcome, authz = played(route, layer, mode)
        if outcome.closed:
            # In a bare thread a guarded tool meets no run and no ledger: the graph went on to its end, or met `no_run`.
            recorded = any(
                r["kind"] == "decision" and r["outcome"] != "permit" and r["resource"] == route.denied
                for r in authz.audit.records  # type: ignore[attr-defined]
            )
            ended = outcome.error is None and outcome.state is not None
            without = type(outcome.error) is AuthzDenied and outcome.error.code == "no_run"  # no halt of a node
            assert recorded or ended or without, "it stopped for another reason than a denial of the one tool"
            continue
        assert route.open, "open, and the route does not say why"
        named = naming(authz.coverage(outcome.graph), route)
        assert named, "open, and coverage of its graph does not say so"
        assert all(r.note for r in named)


def check_closed_by(route: Route, mode: str) -> None:
    """Each layer alone closes the routes that name it and no others; all together close what one of them does."""
    for name, layer in ALONE.items():
        outcome, authz = played(route, layer, mode)
        assert outcome.closed is (name in route.closed_by), name
        if outcome.closed and outcome.error is not None and outcome.error.code == "no_permit":
            assert calls_of(authz.pdp, route.denied), "denied by the PDP, which was not asked"
    assert played(route, EVERYTHING, mode)[0].closed is bool(route.closed_by)
    assert route.open or "entry" in route.closed_by


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


def test_table_has_every_route_once() -> None:
    """The table's head and its routes are those of the matrix, in order."""
    lines = in_docs()
    assert lines[:2] == header()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [r.says for r in ROUTES.values()]


def test_routes_that_are_closed_raise_no_alarm() -> None:
    """Coverage of a graph of stock parts in which nothing is open names nothing."""
    for name in ("hand_written", "create_agent", "react_agent", "subgraph", "agent_in_closure", "forged_send"):
        report_of(ROUTES[name]).raise_if_ungoverned()


def test_layers_alone_are_alone() -> None:
    """A column's construction leaves nothing behind: what was taken away is back after it."""
    before = matrix.root._gate_node, matrix.ambient._Backstop.ignore_agent
    for layer in matrix.LAYERS:
        with layer.alone():
            pass
    assert (matrix.root._gate_node, matrix.ambient._Backstop.ignore_agent) == before
