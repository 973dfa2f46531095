"""The coverage report: governed and ungoverned parts of a graph, with reasons.

`report_rows` finds the rows. A `Baseline` is a file of accepted ungoverned rows, with which CI compares a report:

```json
{"version": 1, "graph": "agent", "ungoverned": [{"id": "provider-tool/agent/web_search/model", "note": "..."}]}
```

The file is sorted by id and ends with a newline, so that its diffs are small. Evolution rule: fields may be added; the
parts of an id change only with the version. A `note` is for readers and is not compared.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from langchain_runtime_authz._display import html_table
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.pep.decision_counts import PointCounts

_HEAD: Final = ("kind", "name", "graph", "route", "governed by", "seen", "note")
UNSEEN: Final = "its code is not seen"  # the note of a node with application code
_WIDTH: Final = 80
_NAME: Final = 34  # columns of a name
AT_RUN_TIME: Final = "at run time"  # the route of rows that were only seen at run time
NOTHING: Final = PointCounts()
_COUNTED: Final = frozenset(("entry", "agent", "node", "tool"))  # kinds that enforcement points count


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a graph.

    Kinds: `entry`, `agent`, `node`, `tool`, `model`, `task`, `remote graph`, and `store`, which is governed if a profile
    for its writes is declared. Kinds that are never governed: `cached node`, `provider tool`, `function`, `secret`,
    `checkpointer`, `unsearched` (too large to search), `effect` (seen in a node's code and not declared).
    """

    kind: str
    name: str
    graph: str  # its agent's name in records
    layers: tuple[str, ...]  # its enforcement points; empty means not governed
    note: str = ""  # why it is not governed, or what is not seen
    route: str = ""  # the node that leads to it, and the path inside that node
    seen: PointCounts = NOTHING  # what its enforcement points counted in runs of the root graph
    place: int = 0  # distinguishes rows that are otherwise equal

    @property
    def governed(self) -> bool:
        """True if the part has an enforcement point."""
        return bool(self.layers)

    @property
    def id(self) -> str:
        """`kind/graph/name/route`, percent-encoded, and the same in every process."""
        parts = (self.kind.replace(" ", "-"), self.graph, self.name, self.route)
        return "/".join(quote(p, safe="") for p in parts) + (f"~{self.place}" if self.place else "")

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row in a table."""
        seen = f"{self.seen.decided} decided, {self.seen.ran} ran" if any(self.seen) else ""
        layers = " + ".join(self.layers) or "NOT GOVERNED"
        return (self.kind, self.name, self.graph, self.route, layers, seen, self.note)


class Accepted(BaseModel):
    """An accepted row of a baseline."""

    id: str
    note: str = ""


class Baseline(BaseModel):
    """The accepted rows of one graph."""

    version: Annotated[int, Field(ge=1, le=1)]
    graph: str
    ungoverned: list[Accepted]

    @property
    def accepted(self) -> frozenset[str]:
        """The ids of the accepted rows."""
        return frozenset(row.id for row in self.ungoverned)

    @classmethod
    def read(cls, path: str | Path) -> Baseline:
        """Read a file that `write` made.

        Raises:
            ConfigError: `baseline_invalid`: the file is not a baseline of this version.
            OSError: the file cannot be read.
        """
        try:
            found = cls.model_validate_json(Path(path).read_bytes(), strict=True)
        except ValidationError as exc:
            where = ".".join(map(str, exc.errors()[0]["loc"]))
            msg = f"{path}: `{where}` is missing or wrong" if where else f"{path}: not a JSON object"
            raise ConfigError(msg, Code.BASELINE_INVALID) from exc
        if len(found.accepted) < len(found.ungoverned):
            raise ConfigError(f"{path}: each of `ungoverned` needs an `id` of its own", Code.BASELINE_INVALID)
        return found

    def write(self, path: str | Path) -> None:
        """Write the accepted rows as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def new(self, graph: str, ungoverned: Iterable[str]) -> frozenset[str]:
        """Return the ids that are not accepted. Raises `ConfigError` for another graph."""
        if graph != self.graph:
            raise ConfigError(f"it is of the graph `{self.graph}`, not `{graph}`", Code.BASELINE_INVALID)
        return frozenset(ungoverned) - self.accepted

    def fixed(self, ungoverned: Iterable[str]) -> tuple[str, ...]:
        """Return the accepted ids that are no longer ungoverned, sorted."""
        return tuple(sorted(self.accepted - frozenset(ungoverned)))


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """The parts of a graph: print them, or use `to_dict` or `raise_if_ungoverned`."""

    graph: str
    pdp: str
    rows: tuple[Part, ...]
    limits: str = ""
    """What `observe_process` cannot see, if it is on."""
    unknown_agents: tuple[str, ...] = ()
    """Names in `RuntimeAuthz(agents=...)` that no agent of this graph has."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools, sorted."""
        return tuple(dict.fromkeys(r.name for r in self.rows if r.kind == "tool"))

    @property
    def unprofiled(self) -> tuple[str, ...]:
        """Names of the tools without a valid profile."""
        found = (r.name for r in self.rows if r.kind == "tool" and r.note.startswith("unprofiled"))
        return tuple(dict.fromkeys(found))

    @property
    def ungoverned(self) -> tuple[Part, ...]:
        """Rows without an enforcement point."""
        return tuple(r for r in self.rows if not r.governed)

    @property
    def plain(self) -> tuple[Part, ...]:
        """Nodes that run application code, whose effects the report may miss."""
        return tuple(r for r in self.rows if r.kind == "node" and r.note.startswith(UNSEEN))

    @property
    def ran(self) -> bool:
        """True if a protected run of the graph was counted in this process."""
        return any(any(r.seen) for r in self.rows)

    @property
    def dynamic(self) -> tuple[Part, ...]:
        """Rows of parts that only a run showed, not the search of the graph."""
        return tuple(r for r in self.rows if r.route == AT_RUN_TIME)

    @property
    def unseen(self) -> tuple[Part, ...]:
        """Governed rows that no run used, or whose enforcement points code bypasses."""
        return tuple(r for r in self.rows if self.ran and r.governed and r.kind in _COUNTED and not any(r.seen))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values. Each row has its `id` and `governed`."""
        rows = [
            {"id": r.id, **asdict(r), "layers": list(r.layers), "seen": r.seen._asdict(), "governed": r.governed}
            for r in self.rows
        ]
        dynamic, unseen = [r.id for r in self.dynamic], [r.id for r in self.unseen]
        found = {"graph": self.graph, "pdp": self.pdp, "rows": rows, "dynamic": dynamic, "unseen": unseen}
        return {**found, "unknown_agents": list(self.unknown_agents)}

    def baseline(self) -> Baseline:
        """Return a baseline that accepts the present ungoverned rows; store it by `write`."""
        rows = sorted(self.ungoverned, key=attrgetter("id"))
        return Baseline(version=1, graph=self.graph, ungoverned=[Accepted(id=r.id, note=r.note) for r in rows])

    def raise_if_ungoverned(self, baseline: Baseline | str | Path | None = None) -> None:
        """Raise `ConfigError` that names every row without an enforcement point.

        Args:
            baseline: a baseline, or the path of its file. Rows that it accepts are not named.

        Raises:
            ConfigError: `ungoverned`; or `baseline_invalid`, if the file is not a baseline of this graph.
        """
        accepted = baseline if isinstance(baseline, Baseline) or baseline is None else Baseline.read(baseline)
        new = accepted.new(self.graph, (r.id for r in self.ungoverned)) if accepted is not None else None
        found = [r for r in self.ungoverned if new is None or r.id in new]
        if found:
            names = ", ".join(f"{r.kind} {r.name} ({r.note})" for r in found)
            raise ConfigError(f"in `{self.graph}`: {names}", Code.UNGOVERNED)

    def __str__(self) -> str:
        kinds = max((len(r.kind) for r in self.rows), default=0)
        names = min(max((len(r.name) for r in self.rows), default=0), _NAME)
        lines = self._summary().split("; ")
        for row in self.rows:
            kind, name, graph, route, layers, seen, note = row.cells()
            place = "/".join(dict.fromkeys(p for p in (graph, route) if p not in ("", name, self.graph, AT_RUN_TIME)))
            shown = name if len(name) <= names else f"{name[: names - 1]}…"
            lines.append(f"{kind.ljust(kinds)}  {shown.ljust(names)}  {layers}")
            more = "; ".join(filter(None, (f"at {place}" if place else "", seen, note)))
            own = " " * (kinds + 2)
            lines += textwrap.wrap(more, _WIDTH, initial_indent=own, subsequent_indent=own, break_on_hyphens=False)
        return "\n".join(lines)

    def _summary(self) -> str:
        counts = f"{len(self.rows) - len(self.ungoverned)} governed, {len(self.ungoverned)} not"
        if self.ran:
            counts += f"; {len(self.dynamic)} seen at run time only, {len(self.unseen)} not seen yet"
        if effects := sum(r.kind == "effect" for r in self.rows):
            counts += f"; {_nodes(effects, 'has', 'have')} effects that nobody declared"
        if self.plain:
            counts += f"; {_nodes(len(self.plain), 'runs', 'run')} code that is not seen"
        if self.unknown_agents:
            counts += f"; `agents` limits no agent here by the name {', '.join(self.unknown_agents)}"
        return "; ".join(filter(None, (f"coverage of `{self.graph}`: {counts}", f"decided by {self.pdp}", self.limits)))

    def _repr_html_(self) -> str:
        shown = [i for i, name in enumerate(_HEAD) if self.ran or name != "seen"]
        rows = [(r.cells(), "" if r.governed else "not governed") for r in self.rows]
        head, *rest = [(*(cells[i] for i in shown), mark) for cells, mark in [(_HEAD, ""), *rows]]
        return html_table(head, rest, self._summary())


def _nodes(count: int, one: str, several: str) -> str:
    return f"1 node {one}" if count == 1 else f"{count} nodes {several}"
