"""The bypass matrix: every route, behind each layer alone and behind all of them, sync and async.

`python -m tests.attack.matrix --write` writes it to `docs/_generated`. A cell is
played, not claimed: the PDP denies the one tool and permits everything else, and the cell is closed
if that tool did not run.

Layers alone are built here only: the product has no switch that leaves a layer out.
"""

import sys
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Final
from unittest.mock import patch

import langchain_runtime_authz
from langchain_runtime_authz.coverage.report import CoverageReport, Part
from langchain_runtime_authz.evaluation import EvaluationRequest
from langchain_runtime_authz.langgraph import callback_backstop as ambient
from langchain_runtime_authz.langgraph import protect as root
from langchain_runtime_authz.langgraph.node_gate import gate_bound, is_gated
from langchain_runtime_authz.langgraph.private_api import DEFAULT_BOUND, Pregel, reset_node
from tests import generated
from tests.tier import part

from ._kit import *
from .routes import ALL, PROFILES, ROUTES, Bank, Kit, Outcome, Route, play


@dataclass(frozen=True)
class Layer:
    """One column. `without` takes the layers away that `protect` would bring along."""

    name: str
    parts: frozenset[str]
    without: tuple[Callable[[], Any], ...] = ()

    def kit(self, authz: RuntimeAuthz) -> Kit:
        return Kit(authz, self.parts)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The layers that are not in this column are not there while a route is built and played."""
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning about unprofiled tools
            for take_away in self.without:
                stack.enter_context(take_away())
            yield


def _no_node_gates() -> Any:
    return patch.object(root, "_gate_node", lambda name, node, protection, channels: ())


def _node_gates_only() -> Any:
    def gate(name: str, node: Any, protection: Any, channels: frozenset[str]) -> tuple[()]:
        if node.bound is not DEFAULT_BOUND and not isinstance(node.bound, Pregel) and not is_gated(node.bound):
            node.bound = gate_bound(node.bound, name, channels)
            reset_node(node)
        return ()

    return patch.object(root, "_gate_node", gate)


def _no_hook() -> Any:
    return patch.object(ambient._Backstop, "ignore_agent", True)


LAYERS: Final = (
    Layer("`guard`", frozenset({"guard"})), Layer("`AuthzToolNode`", frozenset({"tool_node"})),
    *((Layer("`AuthzMiddleware`", frozenset({"middleware"})),) if hasattr(langchain_runtime_authz, "AuthzMiddleware") else ()),
    Layer("node gate", frozenset({"entry"}), (_node_gates_only, _no_hook)),
    Layer("callback backstop", frozenset({"entry"}), (_no_node_gates,)), Layer("`protect`", frozenset({"entry"})), Layer("all", ALL),
)
PROTECT, EVERYTHING = LAYERS[-2], LAYERS[-1]


class Denying:
    """Denies one tool's calls, or one node, and nothing else; remembers what it was asked."""

    def __init__(self, action: str, name: str) -> None:
        self.pdp = StaticPDP(lambda r: not (r.action.name == action and r.resource.id == name))
        self.authz = RuntimeAuthz(pdp=self.pdp, profiles=PROFILES)


@cache
def played(route: Route, layer: Layer, mode: str) -> tuple[Outcome, RuntimeAuthz]:
    """A route behind a layer, with a PDP that denies only what the layer can see of it.

    A node gate sees nodes: it is asked to deny the very node in which the harm is done, and no other.
    """
    denied = Denying("tools/call", route.denied)
    if layer.name == "node gate":
        denied = Denying("node/enter", harmed_in(route, layer, mode))
    with layer.alone():
        return play(route, layer.kit(denied.authz), mode), denied.authz


def harmed_in(route: Route, layer: Layer, mode: str) -> str:
    """The node in which the harm is done: of those that run side by side the one with the tools, else the last.

    Where the harm is done in another process, the tools' node, or the last.
    """
    entered: list[str] = []
    at: list[str] = []

    def permit(request: EvaluationRequest) -> bool:
        if request.action.name == "node/enter":
            entered.append(request.resource.id)
        return True

    class Watching(list[Any]):
        def append(self, item: Any) -> None:
            if item[0] == route.denied and entered:
                at.append(_likely(entered))
            super().append(item)

    plain = Bank.__init__

    def watched(bank: Bank) -> None:
        plain(bank)
        bank.ran = Watching()

    with layer.alone(), patch.object(Bank, "__init__", watched):
        play(route, layer.kit(RuntimeAuthz(pdp=StaticPDP(permit), profiles=PROFILES)), mode)
    return at[0] if at else _likely(entered)


def _likely(entered: list[str]) -> str:
    return "tools" if "tools" in entered else entered[-1] if entered else ""


def cell(route: Route, layer: Layer) -> str:
    """`closed`, `open`, or which of the two forms is closed. In CI a layer that no other test plays has one form."""
    modes = part(route.modes, 2) if layer in LAYERS[2:-2] else route.modes
    closed = {m: played(route, layer, m)[0].closed for m in modes}
    if len(set(closed.values())) == 1:
        return "closed" if closed[modes[0]] else "–"
    return f"{next(m for m, c in closed.items() if c)} only"


def naming(report: CoverageReport, route: Route) -> list[Part]:
    """The rows of a coverage report that name what leaves a route open."""
    noted = [r for r in report.rows if r.note and "unprofiled" not in r.note]
    rows = [r for r in noted if not r.governed or r.name == route.denied]
    return rows or [r for r in noted if r.kind == "node" and "not seen" in r.note]


def report_of(route: Route, layer: Layer = PROTECT) -> CoverageReport:
    """Coverage of the very graph that the route plays on."""
    authz = Denying("tools/call", route.denied).authz
    with layer.alone():
        return authz.coverage(route.build(layer.kit(authz), Bank()).graph)


def named(route: Route) -> str:
    """What `coverage` says of a route that `protect` leaves open."""
    rows = naming(report_of(route), route)
    return ", ".join(dict.fromkeys(f"{r.kind} `{r.name}`" for r in rows))


def row(route: Route) -> str:
    cells = [cell(route, layer) for layer in LAYERS]
    closed = cells[LAYERS.index(PROTECT)] == "closed"
    return "| " + " | ".join([route.says, *cells, "" if closed else named(route)]) + " |"


def header() -> list[str]:
    """The first two lines of the table."""
    names = ["route", *(layer.name for layer in LAYERS), "open under `protect`: named by `coverage` as"]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def table() -> list[str]:
    return [*header(), *(row(route) for route in ROUTES.values())]


def in_docs() -> list[str]:
    """Return the lines of the table in `docs/_generated`."""
    return generated.read("matrix").splitlines()


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        generated.write("matrix", "\n".join(table()))
    else:
        print("\n".join(table()))
