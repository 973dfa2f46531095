"""What of a graph is ungoverned and was accepted by review: a file that CI compares with.

```json
{"version": 1, "graph": "agent", "ungoverned": [{"id": "provider-tool/agent/web_search/model", "note": "..."}]}
```

Sorted by id and ended by a newline, so that a change of it is a small diff. Evolution rule: fields
may be added; what an id is made of changes only with the version. `note` is for the reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from langchain_runtime_authz.errors import Code, ConfigError

__all__ = ["Baseline"]

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Baseline:
    """Ids of accepted rows of one graph, each with the note that it had."""

    graph: str
    accepted: Mapping[str, str]

    @classmethod
    def read(cls, path: str | Path) -> Baseline:
        """Read a file that `write` made.

        Raises:
            ConfigError: `baseline_invalid`: it is no baseline, or one of another version.
            OSError: it can not be read.
        """
        try:
            return cls._parse(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as exc:
            msg = f"{path}: {exc if type(exc) is ValueError else 'not JSON in UTF-8'}"
            raise ConfigError(msg, Code.BASELINE_INVALID) from exc

    @classmethod
    def _parse(cls, document: Any) -> Baseline:
        version = document.get("version") if isinstance(document, dict) else None
        if version is True or version != VERSION:
            msg = f"not an object with `version` {VERSION}"
            raise ValueError(msg)
        graph, rows = document.get("graph"), document.get("ungoverned")
        if not isinstance(graph, str) or not isinstance(rows, list):
            msg = "`graph` must be a name and `ungoverned` a list"
            raise ValueError(msg)  # noqa: TRY004  (`read` makes one error of all of these)
        accepted: dict[str, str] = {}
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row["id"] in accepted:
                msg = "each of `ungoverned` must be an object with an `id` of its own"
                raise ValueError(msg)
            accepted[row["id"]] = str(row.get("note", ""))
        return cls(graph, accepted)

    def write(self, path: str | Path) -> None:
        """Write it."""
        rows = [{"id": i, "note": note} for i, note in sorted(self.accepted.items())]
        document = {"version": VERSION, "graph": self.graph, "ungoverned": rows}
        Path(path).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def new(self, graph: str, ungoverned: Iterable[str]) -> frozenset[str]:
        """Ids that are ungoverned and were not accepted.

        Raises:
            ConfigError: `baseline_invalid`: it is another graph's.
        """
        if graph != self.graph:
            msg = f"it is of the graph `{self.graph}`, not `{graph}`"
            raise ConfigError(msg, Code.BASELINE_INVALID)
        return frozenset(ungoverned) - self.accepted.keys()

    def fixed(self, ungoverned: Iterable[str]) -> tuple[str, ...]:
        """Accepted ids that are not ungoverned any more, sorted."""
        return tuple(sorted(self.accepted.keys() - frozenset(ungoverned)))
