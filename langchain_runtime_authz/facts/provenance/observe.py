"""Read a tool's output: the values it asserts, field by field, and those it only mentions.

A whole field is an assertion by the writer of the field, whom the profile names. A value *inside* a free text is a
mention. A value that the call was given and gives back is neither: an echo proves nothing.

Values, characters and depth are bounded. A value beyond a limit was not seen and is unknown. Nothing here makes a
value less trusted than it was, so forgetting only denies.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.digest import members
from langchain_runtime_authz.facts.provenance.atoms import FIELD
from langchain_runtime_authz.facts.provenance.forms import (
    REMEMBERED,
    TELLING,
    forms,
    key,
    mentions,
    remembered,
    said_forms,
)
from langchain_runtime_authz.profile import FieldTrust, ToolProfile, Trust, field_trust

__all__ = ["SHORT", "Observation", "Prose", "Sighting", "observe_output", "parsed"]

MAX_SIGHTINGS: Final = 4096  # per output
MAX_NODES: Final = 20_000
MAX_CHARS: Final = 400_000  # of text looked into, per output
MAX_LEAF: Final = 100_000
MAX_ECHO: Final = 10_000  # of one argument; a longer text is not a field of an output
MAX_DEPTH: Final = 24
MAX_JSON: Final = 1_000_000  # a longer text is not read as JSON
SHORTEST: Final = 4  # a shorter text mentions nothing
MAX_FIELDS: Final = 1024
MAX_FLAT: Final = 64  # arguments
_NUMBERS: Final = frozenset((int, float, bool, type(None)))
SHORT: Final = 200  # a longer text, or one of several lines, is prose whatever the profile says


class Sighting(NamedTuple):
    """One value seen in one field, by digest.

    Attributes:
        key: `forms.key` of one form of the value.
        origin: who writes the field, by the tool's profile.
        asserted: the field says it; otherwise the value is only mentioned in it.
        counterparty: the other side chose it.
        source: `tool` or `tool/field`, names only.
    """

    key: str
    origin: Trust
    asserted: bool
    counterparty: bool
    source: str


class Prose(NamedTuple):
    """A free text seen, for showing where a value was mentioned; kept in this process only.

    `folded` is the text as it is searched, case-folded; `ThreadMemory` fills it in.
    """

    text: str
    origin: Trust
    source: str
    folded: str = ""


class Observation(NamedTuple):
    """The values and texts that were read in one output, up to the limits."""

    sightings: tuple[Sighting, ...] = ()
    prose: tuple[Prose, ...] = ()


_NOTHING: Final = Observation()


def observe_output(
    tool: str,
    profile: ToolProfile,
    args: Mapping[str, Any],
    output: object,
    *,
    failed: bool = False,
) -> Observation:
    """Read one output.

    Args:
        tool: the tool's name.
        profile: its profile; only a reviewed one may trust.
        args: what it was called with: an output that repeats these is an echo.
        output: what it returned: JSON-like values, models, dataclasses; other objects are not read.
        failed: the output tells an error, for which nobody vouches.
    """
    if type(output) is str and len(output) <= SHORT and not failed and "" not in profile.prose:
        plain = _plain(tool, profile, args, output)
        if plain is not None:
            return plain
    reader = _Reader(tool, profile, _echo(args), failed)
    reader.read(parsed(output), (), 0)
    return Observation(tuple(reader.found), tuple(reader.prose))


def _plain(tool: str, profile: ToolProfile, args: Mapping[str, Any], output: str) -> Observation | None:
    """Read a short line without digits, addresses, links and structure, or return `None`: then `_Reader` reads it."""
    if "\n" in output or output.lstrip()[:1] in ("{", "[") or TELLING.search(output) or len(args) > MAX_FLAT:
        return None
    whole = remembered(output, False)
    if not whole:
        return _NOTHING
    for given in (*args, *args.values()):
        kind = type(given)
        if kind is str:
            if given.isascii() and whole[0][5:] != " ".join(given.lower().split()):
                continue  # its own text is another one
            if whole[0] in (remembered(given, False) if len(given) <= REMEMBERED else forms(given)):
                return _NOTHING  # an echo
        elif kind not in _NUMBERS:
            return None
    field = field_trust(profile, "")
    return Observation((Sighting(key(whole[0]), field.origin, True, field.counterparty, tool),))


def _echo(args: Mapping[str, Any]) -> set[str]:
    """Return the forms of what a call was given, as a whole and inside its texts."""
    found: set[str] = set()
    for value in _scalars(args):
        own = forms(value)
        found.update(own, said_forms(value, own))
        if isinstance(value, str):
            found.update(mentions(value[:MAX_ECHO]))
    return found


def _scalars(value: object, left: int = 2000) -> Iterator[object]:
    stack: list[object] = [value]
    while stack and left:
        left -= 1
        top = stack.pop()
        if isinstance(top, Mapping):
            stack += [*top.keys(), *top.values()]
        elif isinstance(top, list | tuple):
            stack += top
        else:
            yield top


def parsed(output: object) -> object:
    """Return the value of a text that is a JSON object or list; all else as it is."""
    if isinstance(output, str):
        text = str.__str__(output)
        if len(text) <= MAX_JSON and text.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(text)
    return output


class _Reader:
    """One reading of one output."""

    def __init__(self, tool: str, profile: ToolProfile, echo: set[str], failed: bool) -> None:
        self.tool, self.profile, self.echo, self.failed = tool, profile, echo, failed
        self.found: dict[Sighting, None] = {}
        self.prose: list[Prose] = []
        self.nodes, self.chars, self.complete = 0, 0, True
        self._fields: dict[tuple[str, ...], tuple[FieldTrust, str]] = {}

    def read(self, value: object, path: tuple[str, ...], depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH or len(self.found) >= MAX_SIGHTINGS:
            self.complete = False
            return
        if (named := members(value)) is not None:
            for name, inner in named[:MAX_NODES]:
                if isinstance(name, str) and FIELD.fullmatch(name):
                    self.read(inner, (*path, name), depth + 1)
                else:  # a key that is not a name is a value
                    self._leaf(name, path)
                    self.read(inner, path, depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for inner in value:
                if not self.complete:
                    return
                self.read(inner, path, depth + 1)
        else:
            self._leaf(_scalar(value), path)

    def _leaf(self, value: object, path: tuple[str, ...]) -> None:
        if value is None or isinstance(value, bool):
            return
        field, source = self._field(path)
        prose = False
        if isinstance(value, str):
            self.chars += len(value)
            if self.chars > MAX_CHARS or len(value) > MAX_LEAF:
                self.complete = False
                value = value[: max(0, min(MAX_LEAF, MAX_CHARS - self.chars + len(value)))]
            prose = field.prose or self.failed or len(value) > SHORT or "\n" in value
        whole = forms(value) if not prose else ()
        says = said_forms(value, whole)
        if not self.echo.intersection(whole):
            for form in says:
                self._see(form, field, source, asserted=True)
        if isinstance(value, str) and (prose or len(value) >= SHORTEST):
            inner = [f for f in mentions(value) if f not in whole and f not in says]
            for form in inner:
                if form not in self.echo:
                    self._see(form, field, source, asserted=False)
            if prose or inner:
                self.prose.append(Prose(value, field.origin, source))

    def _see(self, form: str, field: FieldTrust, source: str, *, asserted: bool) -> None:
        if len(self.found) >= MAX_SIGHTINGS:
            self.complete = False
            return
        self.found[Sighting(key(form), field.origin, asserted, field.counterparty, source)] = None

    def _field(self, path: tuple[str, ...]) -> tuple[FieldTrust, str]:
        known = self._fields.get(path)
        if known is None:
            field = field_trust(self.profile, ".".join(path))
            field = field._replace(origin="external") if self.failed else field
            source = "/".join(filter(None, [self.tool, ".".join(path[-3:])]))
            known = self._fields[path] = field, source
            if len(self._fields) > MAX_FIELDS:  # keys that an attacker makes up
                self._fields.clear()
        return known


def _scalar(value: object) -> object:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return float(value)
    return value if isinstance(value, str | int | float) else None
