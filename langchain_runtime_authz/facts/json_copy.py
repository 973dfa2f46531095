"""Copy a tool's output as JSON values, so that its owner cannot change it."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.digest import members_of

MAX_NODES: Final = 20_000  # values in one output
MAX_CHARS: Final = 400_000
MAX_DEPTH: Final = 24
MAX_JSON: Final = 1_000_000  # a longer text is not read as JSON
SHORT: Final = 200  # characters; a longer text, or one with several lines, is prose whatever the profile says
LARGEST: Final = 10**30  # larger integers have no normal form, so the copy leaves them out
NODE: Final = 48  # memory that one value takes, counted in characters
DEEP: Final = object()  # returned for JSON that is nested too deep to be parsed
_JSON: Final = json.JSONDecoder(parse_int=lambda digits: int(digits[:40]))  # 40 digits exceed LARGEST


class OutputCopy(NamedTuple):
    """A copy of an output as JSON values. `weight`: its size in memory, in characters."""

    value: Any
    complete: bool | None  # False: values are missing; None: a text or its JSON, to which no limit was applied
    weight: int


def copy_output(output: object) -> OutputCopy:
    """Copy an output as JSON values, up to the module's limits. JSON text is parsed."""
    if isinstance(output, str):
        text = str.__str__(output)
        if len(text) > MAX_JSON:
            return OutputCopy(text[:MAX_CHARS], False, MAX_CHARS)
        return OutputCopy(text if (value := parse_json_text(text)) is DEEP else value, None, len(text))
    read = Projection(MAX_NODES, MAX_CHARS)
    value = read.read(output, 0)
    return OutputCopy(value, read.complete, read.chars + read.nodes * NODE)


def parse_json_text(output: object) -> object:
    """Parse a JSON object or list; `DEEP` if nested too deep. Return others unchanged."""
    if isinstance(output, str):
        text = str.__str__(output)
        if len(text) <= MAX_JSON and text.lstrip()[:1] in ("{", "["):
            try:
                return _JSON.decode(text)
            except RecursionError:
                return DEEP
            except ValueError:
                pass
    return output


class Projection:
    """Copy values within limits. `complete` is False once a value was left out."""

    def __init__(self, nodes: int, chars: int) -> None:
        self.most_nodes, self.most_chars = nodes, chars
        self.nodes, self.chars, self.complete = 0, 0, True

    def read(self, value: object, depth: int) -> Any:
        """Return a copy of `value`; None in place of a value that is left out."""
        self.nodes += 1
        if self.nodes > self.most_nodes or depth > MAX_DEPTH:
            return self._cut()
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            self.chars += len(value)  # type: ignore[arg-type]
            if self.chars > self.most_chars:
                self._cut()
                kept = value[: max(0, self.most_chars - self.chars + len(value))]  # type: ignore[index,arg-type]
                return kept if len(kept) > SHORT else None  # else a cut text could pass for a short field
            return value
        if kind is int:
            return value if -LARGEST < value < LARGEST else self._cut()  # type: ignore[operator]
        if kind is float:
            return value if math.isfinite(value) else None  # type: ignore[arg-type]
        try:
            return self._object(value, depth)
        except Exception:  # noqa: BLE001  (raised by the object's own code)
            return self._cut()

    def _object(self, value: object, depth: int) -> Any:
        if (named := members_of(value)) is not None:
            held: dict[str, Any] = {}
            for name, inner in named:
                if self.nodes > self.most_nodes:
                    self._cut()
                    break
                plain = str(name) if isinstance(name, str | int) else ""
                if plain in held or not plain:  # two keys with the same JSON name, or a key without any
                    self._cut()
                self.chars += len(plain)
                held[plain] = self.read(inner, depth + 1)
            return held
        if isinstance(value, list | tuple | set | frozenset):
            several = []
            for inner in value:
                if self.nodes > self.most_nodes:
                    self._cut()
                    break
                several.append(self.read(inner, depth + 1))
            return several
        if isinstance(value, enum.Enum):
            return self.read(value.value, depth + 1)
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, decimal.Decimal) and value.is_finite():
            return int(value) if value == value.to_integral_value() and abs(value) < LARGEST else float(value)
        for base in (str, int, float):
            if isinstance(value, base):
                return self.read(base(value), depth + 1)
        return self._cut()

    def _cut(self) -> None:
        self.complete = False
