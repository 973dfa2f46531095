"""Read a tool's output: the values of its fields, and values inside its texts.

A field's whole value is *asserted* by the writer whom the profile names. A value inside a free text is only
*mentioned*. If the call's arguments held the value, the output only echoes it, and it is neither.

The beginning of an output is read at once. The rest is read only when a later call has a value that the user did not
say. Values beyond the limits are not read. An unread value is never trusted more than a read one. So the worst result
of a limit is a question or a denial. Outputs are copied, so that their owners cannot change what was read.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.digest import members_of
from langchain_runtime_authz.facts.call_arguments import FIELD, scalars
from langchain_runtime_authz.facts.normal_forms import (
    REMEMBERED,
    TELLING,
    forms_of,
    key,
    mentions_in,
    remembered,
    said_forms,
)
from langchain_runtime_authz.tool_profile import FieldTrust, ToolProfile, Trust, field_trust

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


MAX_SIGHTINGS: Final = 4096  # of one output
HEAD_NODES: Final = 96  # values of an output that are read at once
HEAD_CHARS: Final = 4000
MAX_LEAF: Final = 100_000  # characters of one text
MAX_SENT: Final = 2000  # values in a call's arguments; with more, echoes are not found, so the output is untrusted
MAX_ECHO: Final = 100_000  # characters of one argument; the limit has the same effect as `MAX_SENT`
SHORTEST: Final = 4  # in a shorter text, mentions are not searched
MAX_FIELDS: Final = 1024  # fields whose trust is cached
MAX_FLAT: Final = 64  # arguments of a call whose output `_plain` may read
_NUMBERS: Final = frozenset((int, float, bool, type(None)))


class SeenValue(NamedTuple):
    """A value that was seen in an output.

    `key`: digest of its form. `origin`: the writer of its field, by the profile. `asserted`: it is the whole field, not
    a mention. `counterparty`: the other side of a transaction chose it. `source`: `tool` or `tool/field`.
    """

    key: str
    origin: Trust
    asserted: bool
    counterparty: bool
    source: str


class Prose(NamedTuple):
    """A free text in an output. It shows an approver where a value was mentioned."""

    text: str
    origin: Trust
    source: str


class Observation(NamedTuple):
    """The values and texts read from one output."""

    sightings: tuple[SeenValue, ...] = ()
    prose: tuple[Prose, ...] = ()
    rest: OutputReading | None = None  # can read the rest; None if all is read
    held: OutputCopy | None = None  # the output as JSON values


_NOTHING: Final = Observation()


def observe_output(
    tool: str, profile: ToolProfile, args: Mapping[str, Any], output: object, *, failed: bool = False
) -> Observation:
    """Read the beginning of a call's output, and return its values and texts.

    `failed`: the output is an error text, which is not trusted. Only a reviewed profile can make fields trusted. Of
    objects, only JSON-like values, Pydantic models and dataclasses are read.
    """
    short = type(output) is str and len(output) <= SHORT and not failed and "" not in profile.prose
    if short and (plain := _plain(tool, profile, args, str(output))) is not None:
        return plain
    own = copy_output(output)
    return OutputReading(tool, profile, _echo(args), failed, own).read(HEAD_NODES, HEAD_CHARS)._replace(held=own)


def _plain(tool: str, profile: ToolProfile, args: Mapping[str, Any], output: str) -> Observation | None:
    """Read one line of plain words fast; None if the output needs `OutputReading`."""
    if "\n" in output or output.lstrip()[:1] in ("{", "[") or TELLING.search(output) or len(args) > MAX_FLAT:
        return None
    whole = remembered(output, False)
    if not whole:
        return _NOTHING
    text = whole[0][5:]
    word = text.partition(" ")[0]
    for given in (*args, *args.values()):
        kind = type(given)
        if kind is str:
            if given.isascii() and (word not in (folded := given.lower()) or text != " ".join(folded.split())):
                continue
            if whole[0] in (remembered(given, False) if len(given) <= REMEMBERED else forms_of(given)):
                return _NOTHING  # an echo
        elif kind not in _NUMBERS:
            return None
    field = field_trust(profile, "")
    said = (Prose(output, field.origin, tool),) if " " in output and len(output) >= SHORTEST else ()
    return Observation((SeenValue(key(whole[0]), field.origin, True, field.counterparty, tool),), said)


def _echo(args: Mapping[str, Any]) -> set[str] | None:
    """Return the forms of all values in a call's arguments; None if too many."""
    values = scalars(args, MAX_SENT)
    if values is None or any(isinstance(value, str) and len(value) > MAX_ECHO for value in values):
        return None
    found = set[str]()
    for value in values:
        own = forms_of(value)
        found.update(own, said_forms(value, own), mentions_in(value) if isinstance(value, str) else ())
    return found


class OutputReading:
    """Read one output in several steps. `weight`: characters that it takes in memory."""

    def __init__(
        self, tool: str, profile: ToolProfile, echo: set[str] | None, failed: bool, output: OutputCopy
    ) -> None:
        self.tool, self.profile, self.echo, self.weight = tool, profile, echo or set(), output.weight
        self.failed = failed or echo is None
        self.found: dict[SeenValue, None] = {}
        self.prose: list[Prose] = []
        self.nodes = self.chars = 0
        self._open: list[Iterator[tuple[object, tuple[str, ...], int]]] = [iter([(output.value, (), 0)])]
        self._late: list[tuple[str, FieldTrust, str]] = []  # texts in which mentions were not searched yet
        self._fields: dict[tuple[str, ...], tuple[FieldTrust, str]] = {}

    def read(self, nodes: int = MAX_NODES, chars: int = MAX_CHARS) -> Observation:
        """Read on up to the totals `nodes` (values) and `chars`. Return what is new."""
        before, self.prose = len(self.found), []
        while self._open and self.nodes < nodes and self.chars < chars:
            entry = next(self._open[-1], None)
            if entry is None:
                self._open.pop()
                continue
            value, path, depth = entry
            self.nodes += 1
            if depth > MAX_DEPTH:
                continue
            if isinstance(value, dict | list):
                self._open.append(_parts(value, path, depth + 1))
            else:
                self._leaf(value, path, chars)
        if chars >= MAX_CHARS or nodes >= MAX_NODES:
            for text, field, source in self._late:
                self._mentions(text, field, source, ())
            self._late.clear()
            self._open.clear()
        left = self if self._late or self._open else None
        return Observation(tuple(self.found)[before:], tuple(self.prose), left)

    def _leaf(self, value: object, path: tuple[str, ...], chars: int) -> None:
        if value is None or isinstance(value, bool):
            return
        field, source = self._field(path)
        prose = False
        if isinstance(value, str):
            room = max(0, min(MAX_LEAF, MAX_CHARS - self.chars))
            prose = field.prose or self.failed or len(value) > min(SHORT, room) or "\n" in value
            value = value[:room]
            self.chars += len(value)
        whole = forms_of(value) if not prose else ()
        says = said_forms(value, whole)
        echoed = not self.echo.isdisjoint(whole)
        for form in says if not echoed else ():
            self._see(form, field, source, asserted=True)
        if isinstance(value, str) and (prose or len(value) >= SHORTEST):
            late = prose and self.chars > chars
            if late:
                self._late.append((value, field, source))
            phrase = whole and not echoed and " " in value
            if late or self._mentions(value, field, source, (*whole, *says)) or prose or phrase:
                self.prose.append(Prose(value, field.origin, source))

    def _mentions(self, text: str, field: FieldTrust, source: str, known: Sequence[str]) -> bool:
        inner = [f for f in mentions_in(text) if f not in known] if len(self.found) < MAX_SIGHTINGS else ()
        for form in inner:
            if form not in self.echo:
                self._see(form, field, source, asserted=False)
        return bool(inner)

    def _see(self, form: str, field: FieldTrust, source: str, *, asserted: bool) -> None:
        if len(self.found) < MAX_SIGHTINGS:
            self.found[SeenValue(key(form), field.origin, asserted, field.counterparty, source)] = None

    def _field(self, path: tuple[str, ...]) -> tuple[FieldTrust, str]:
        known = self._fields.get(path)
        if known is None:
            field = field_trust(self.profile, ".".join(path))
            field = field._replace(origin="external") if self.failed else field
            source = "/".join(filter(None, [self.tool, ".".join(path[-3:])]))
            known = self._fields[path] = field, source
            if len(self._fields) > MAX_FIELDS:  # else an output with many keys would fill the memory
                self._fields.clear()
        return known


def _parts(
    value: dict[str, Any] | list[Any], path: tuple[str, ...], depth: int
) -> Iterator[tuple[object, tuple[str, ...], int]]:
    if isinstance(value, list):
        for inner in value:
            yield inner, path, depth
        return
    for name, inner in value.items():
        if FIELD.fullmatch(name):
            yield inner, (*path, name), depth
        else:  # a key that cannot be a field's name is a value
            yield name, path, depth
            yield inner, path, depth
