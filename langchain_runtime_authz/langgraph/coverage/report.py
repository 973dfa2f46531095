"""The coverage report: what of a graph is governed, by which layer, what is not, and why.

How its rows are found stands in `discovery`; what was accepted once and for all, in a `Baseline`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.langgraph.baseline import Baseline
from langchain_runtime_authz.pep.tally import Counted

__all__ = ["CoverageReport", "Row"]

_HEAD: Final = ("kind", "name", "graph", "route", "governed by", "seen", "note")
AT_RUN_TIME: Final = "at run time"  # the route of what was seen and is not in the static picture
NOTHING: Final = Counted()
_COUNTED: Final = frozenset(("entry", "agent", "node", "tool"))  # kinds that gates count


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of a graph.

    Attributes:
        kind: `entry`, `agent`, `node`, `tool`, `model`, `task`; and what no gate can stand in front
            of: `cached node`, `provider tool`, `remote graph`, `function`, `secret`, `checkpointer`.
        name: its name in the graph.
        graph: the agent that it belongs to, as records name it.
        layers: the gates in front of it; empty means not governed.
        note: why not, or what stays unseen.
        route: the node by which it is reached, and the place below that.
        seen: what its gates counted in runs of the root graph.
        place: a number where everything else is equal.
    """

    kind: str
    name: str
    graph: str
    layers: tuple[str, ...]
    note: str = ""
    route: str = ""
    seen: Counted = NOTHING
    place: int = 0

    @property
    def governed(self) -> bool:
        """Whether any gate stands in front."""
        return bool(self.layers)

    @property
    def id(self) -> str:
        """`kind/graph/name/route`, percent-encoded; the same in every process and for the same graph."""
        parts = (self.kind.replace(" ", "-"), self.graph, self.name, self.route)
        return "/".join(quote(p, safe="") for p in parts) + (f"~{self.place}" if self.place else "")

    def cells(self) -> tuple[str, ...]:
        """The row as texts, under `kind, name, graph, route, governed by, seen, note`."""
        seen = f"{self.seen.decided} decided, {self.seen.ran} ran" if any(self.seen) else ""
        layers = " + ".join(self.layers) or "NOT GOVERNED"
        return (self.kind, self.name, self.graph, self.route, layers, seen, self.note)


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """Printable (`print`, `_repr_html_`), readable (`to_dict`), enforceable (`raise_if_ungoverned`)."""

    graph: str
    pdp: str
    rows: tuple[Row, ...]

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools."""
        return tuple(dict.fromkeys(r.name for r in self.rows if r.kind == "tool"))

    @property
    def unprofiled(self) -> tuple[str, ...]:
        """Names of the tools without a valid profile."""
        return tuple(
            dict.fromkeys(r.name for r in self.rows if r.kind == "tool" and r.note.startswith("unprofiled")),
        )

    @property
    def ungoverned(self) -> tuple[Row, ...]:
        """What no gate stands in front of."""
        return tuple(r for r in self.rows if not r.governed)

    @property
    def ran(self) -> bool:
        """Whether the graph ran under protection in this process, so that `seen` says something."""
        return any(any(r.seen) for r in self.rows)

    @property
    def dynamic(self) -> tuple[Row, ...]:
        """What was gated at run time and is not in the static picture."""
        return tuple(r for r in self.rows if r.route == AT_RUN_TIME)

    @property
    def unseen(self) -> tuple[Row, ...]:
        """What the static picture shows and no run met: not tried yet, or reached by a road past its gate."""
        return tuple(r for r in self.rows if self.ran and r.governed and r.kind in _COUNTED and not any(r.seen))

    def to_dict(self) -> dict[str, Any]:
        """`{graph, pdp, rows, dynamic, unseen}`; a row is its fields, `id` and `governed`, the two others are ids."""
        rows = [
            {"id": r.id, **asdict(r), "layers": list(r.layers), "seen": r.seen._asdict(), "governed": r.governed}
            for r in self.rows
        ]
        return {
            "graph": self.graph,
            "pdp": self.pdp,
            "rows": rows,
            "dynamic": [r.id for r in self.dynamic],
            "unseen": [r.id for r in self.unseen],
        }

    def baseline(self) -> Baseline:
        """What is ungoverned now, to be accepted: `report.baseline().write(path)`."""
        return Baseline(self.graph, {r.id: r.note for r in self.ungoverned})

    def raise_if_ungoverned(self, baseline: Baseline | str | Path | None = None) -> None:
        """Raise `ConfigError` naming everything that no gate stands in front of.

        Args:
            baseline: what was accepted before (or the file that says it) is not named.

        Raises:
            ConfigError: `ungoverned`; or `baseline_invalid`, where the file is none or another graph's.
        """
        accepted = baseline if isinstance(baseline, Baseline) or baseline is None else Baseline.read(baseline)
        new = accepted.new(self.graph, (r.id for r in self.ungoverned)) if accepted is not None else None
        found = [r for r in self.ungoverned if new is None or r.id in new]
        if found:
            names = ", ".join(f"{r.kind} {r.name} ({r.note})" for r in found)
            msg = f"in `{self.graph}`: {names}"
            raise ConfigError(msg, Code.UNGOVERNED)

    def _table(self) -> list[tuple[str, ...]]:
        """Head and rows; without the counts where nothing ran."""
        rows = [_HEAD, *(r.cells() for r in self.rows)]
        return rows if self.ran else [tuple(c for h, c in zip(_HEAD, r, strict=True) if h != "seen") for r in rows]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([self._summary(), *lines])

    def _summary(self) -> str:
        counts = f"{len(self.rows) - len(self.ungoverned)} governed, {len(self.ungoverned)} not"
        if self.ran:
            counts += f"; {len(self.dynamic)} seen at run time only, {len(self.unseen)} not seen yet"
        return f"coverage of `{self.graph}`: {counts}; decided by {self.pdp}"

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        body = "".join(
            f"<tr{'' if r.governed else ' style=color:#b00'}>{_cells('td', cells)}</tr>"
            for r, cells in zip(self.rows, rows, strict=True)
        )
        return f"<p>{html.escape(self._summary())}</p><table><tr>{_cells('th', head)}</tr>{body}</table>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(t)}</{tag}>" for t in texts)
