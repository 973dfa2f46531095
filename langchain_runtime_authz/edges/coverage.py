"""What of a graph is governed, by which layer, and what is not, and why.

A first form: the static picture of what `protect` reached. It names what it can not close.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool
from langgraph.pregel.protocol import PregelProtocol

from langchain_runtime_authz.edges._private import DEFAULT_BOUND, Pregel, ToolNode, closure_values
from langchain_runtime_authz.edges.node_gate import is_gated
from langchain_runtime_authz.edges.root import AnyGraph, graphs_in, owner_of
from langchain_runtime_authz.edges.tool_guard import facts_of, is_guarded
from langchain_runtime_authz.errors import Code, ConfigError

if TYPE_CHECKING:
    from langchain_runtime_authz.edges.root import Protection

__all__ = ["CoverageReport", "Row", "coverage_of"]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of a graph. `layers` are the gates in front of it; empty means not governed."""

    kind: str
    name: str
    graph: str
    layers: tuple[str, ...]
    note: str = ""

    @property
    def governed(self) -> bool:
        """Whether any gate stands in front."""
        return bool(self.layers)


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """Printable (`print`, `_repr_html_`), readable (`to_dict`), enforceable (`raise_if_ungoverned`)."""

    graph: str
    pdp: str
    rows: tuple[Row, ...]

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools."""
        return tuple(r.name for r in self.rows if r.kind == "tool")

    @property
    def unprofiled(self) -> tuple[str, ...]:
        """Names of the tools without a valid profile."""
        return tuple(r.name for r in self.rows if r.kind == "tool" and r.note.startswith("unprofiled"))

    @property
    def ungoverned(self) -> tuple[Row, ...]:
        """What no gate stands in front of."""
        return tuple(r for r in self.rows if not r.governed)

    def to_dict(self) -> dict[str, Any]:
        """`{graph, pdp, rows: [{kind, name, graph, layers, note, governed}]}`."""
        rows = [{**asdict(r), "layers": list(r.layers), "governed": r.governed} for r in self.rows]
        return {"graph": self.graph, "pdp": self.pdp, "rows": rows}

    def raise_if_ungoverned(self) -> None:
        """Raise `ConfigError` naming everything that no gate stands in front of."""
        if self.ungoverned:
            names = ", ".join(f"{r.kind} {r.name} ({r.note})" for r in self.ungoverned)
            msg = f"not governed in `{self.graph}`: {names}"
            raise ConfigError(msg, Code.CONFIG)

    def __str__(self) -> str:
        table = [("kind", "name", "graph", "governed by", "note")]
        table += [(r.kind, r.name, r.graph, " + ".join(r.layers) or "NOT GOVERNED", r.note) for r in self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        head = f"coverage of `{self.graph}`: {len(self.rows) - len(self.ungoverned)} governed, {len(self.ungoverned)} not; decided by {self.pdp}"
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr{'' if r.governed else ' style=color:#b00'}>"
            + "".join(
                f"<td>{html.escape(c)}</td>"
                for c in (r.kind, r.name, r.graph, " + ".join(r.layers) or "not governed", r.note)
            )
            + "</tr>"
            for r in self.rows
        )
        head = "".join(f"<th>{h}</th>" for h in ("kind", "name", "graph", "governed by", "note"))
        return (
            f"<p>{html.escape(self.graph)}, decided by {html.escape(self.pdp)}</p><table><tr>{head}</tr>{cells}</table>"
        )


def coverage_of(graph: Any, protection: Protection) -> CoverageReport:
    """The coverage of a graph, protected or not."""
    if not isinstance(graph, Pregel):
        msg = f"`coverage` takes a compiled graph, not {type(graph).__name__}"
        raise ConfigError(msg)
    rows: list[Row] = []
    for i, found in enumerate(graphs_in(graph)):
        rows += _rows(found, protection, root=i == 0)
    return CoverageReport(graph.get_name(), protection.entrance.engine.evaluator.pdp.name, tuple(dict.fromkeys(rows)))


def _rows(graph: AnyGraph, protection: Protection, *, root: bool) -> Iterator[Row]:
    name = graph.get_name()
    entered = owner_of(graph) is protection
    yield Row("entry" if root else "agent", name, name, (("root entry" if root else "child entry"),) if entered else ())
    inside = {n for node in graph.nodes.values() if isinstance(node.bound, ToolNode) for n in node.bound.tools_by_name}
    for node_name, node in graph.nodes.items():
        bound = node.bound
        if bound is DEFAULT_BOUND:
            continue
        if isinstance(bound, Pregel):
            continue  # its own entry is its gate; it has rows of its own
        gated = is_gated(bound)
        note = ""
        if node.cache_policy is not None:
            note = "cache_policy: a cached result is served without a decision"
        elif not isinstance(bound, ToolNode) and gated:
            note = "plain side effects inside the node are not seen"
        yield Row("node", node_name, name, ("node gate",) if gated else (), note)
        yield from _tools(bound, name, protection, gated, inside)


def _tools(bound: Any, graph: str, protection: Protection, node_gated: bool, inside: set[str]) -> Iterator[Row]:
    if isinstance(bound, ToolNode):
        for tool in bound.tools_by_name.values():
            yield _tool_row(tool, graph, protection, ("tool node gate",) if node_gated else ())
        return
    for held in _held(bound):
        if isinstance(held, BaseTool):
            # A model node holds the tools that it binds; the tool node is where they run.
            if held.name not in inside and not is_guarded(held):
                yield Row("tool", held.name, graph, (), "held by a node function: give it `authz.guard(tool)` instead")
        elif isinstance(held, dict) and isinstance(held.get("type"), str) and held["type"] != "function":
            yield Row("provider tool", held["type"], graph, (), "runs at the model provider, unseen")
        elif _is_remote(held):
            yield Row("remote graph", _name(held), graph, (), "runs elsewhere: its own steps are not seen")


def _held(bound: Any) -> Iterator[Any]:
    """What a node is, and what its functions hold, lists opened."""
    yield bound
    for attribute in ("func", "afunc"):
        for value in closure_values(getattr(bound, attribute, None)):
            yield from value if isinstance(value, list | tuple) else [value]


def _is_remote(value: object) -> bool:
    return isinstance(value, PregelProtocol) and not isinstance(value, Pregel)


def _name(graph: Any) -> str:
    return str(getattr(graph, "name", None) or type(graph).__name__)


def _tool_row(tool: BaseTool, graph: str, protection: Protection, layers: tuple[str, ...]) -> Row:
    guarded = is_guarded(tool)
    profiled = facts_of(tool).profiled if guarded else protection.profiles.of(tool)
    note = "" if profiled.declared else f"unprofiled: {profiled.why}"
    return Row("tool", tool.name, graph, (*layers, "tool guard") if guarded else (), note)
