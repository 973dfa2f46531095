"""Make JSON of a call's arguments. Cut critical and date ones into items."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from langchain_runtime_authz._text import visible_text
from langchain_runtime_authz.digest import as_json
from langchain_runtime_authz.facts.normal_forms import (
    REMEMBERED,
    forms_of,
    identifiers_in,
    key,
    mentions_in,
    skeleton,
    tidy,
)
from langchain_runtime_authz.tool_profile import DESTINATIONS, ToolProfile, value_at

MAX_ITEMS: Final = 64  # items of one argument; the provenance of a longer list is unknown
MAX_ARGUMENT_NODES: Final = 1000  # values in one argument that `uncovered` reads
FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,63}")
_MEMBER: Final = re.compile(r"[A-Za-z_]{0,40}\d{0,2}")  # a member name that cannot be a value, like `line_1`
SCALAR_TYPES: Final = frozenset((str, int, float, bool))
# `Bob <bob@x.org>`: display name and address (RFC 5322).
_SHOWN: Final = re.compile(r"[^<>@]*<([^<>]*)>\s*")
_BARE_LINK: Final = re.compile(r"[\w\-]{1,63}(?:\.[\w\-]{1,63}){1,8}(?::\d{1,5})?/")
_BETWEEN: Final = re.compile(r"[,;\r\n]")


class Item(NamedTuple):
    """One scalar of an argument. A text of several addresses has several parts."""

    value: Any
    parts: tuple[tuple[str, ...], ...]  # normal forms by part (`_parts`); the source of a part without forms is unknown
    keys: tuple[str, ...]  # digests of these forms


class TracedArgument(NamedTuple):
    """One critical or date argument of a call."""

    name: str
    kind: Any
    value: Any
    items: tuple[Item, ...] | None  # `None` if there are more than `MAX_ITEMS`
    marks: list[str]  # texts that identify the target; equal for all its spellings


@dataclass(slots=True, eq=False, repr=False)
class TracedArguments:
    """The critical and date arguments of one call."""

    arguments: Sequence[TracedArgument]
    keys: Sequence[str]  # digests of all items' normal forms, by which the ledger finds their sources
    target: dict[str, Any]  # argument → value of the critical ones, for the request
    bound: Collection[str]  # names of critical arguments, which a request never shortens

    def effect_targets(self) -> tuple[str, tuple[str, ...]]:
        """Return the digest of the critical arguments, and the digests of all targets.

        The targets are the destinations or, if the call has none, its objects. So two payments to Bob have the same
        target, even if only one of them names the invoice. If it is unclear whether two targets differ, they get the
        same digest, because this costs only a question.
        """
        hit, destinations, objects = [], set[str](), set[str]()
        for name, kind, _, _, marks in sorted(self.arguments):
            if marks:
                hit.append((name, marks))
                if kind == "object" or kind in DESTINATIONS:
                    (objects if kind == "object" else destinations).update(marks)
        return key(repr(hit)) if hit else "", tuple([key(mark) for mark in sorted(destinations or objects)])

    def effective_sink(self, declared: str) -> str:
        """Return `declared`, but "none" if all of the call's destinations are empty."""
        silent = False
        for _, kind, value, _, _ in self.arguments:
            if kind in DESTINATIONS:
                if value:
                    return declared
                silent = True
        return "none" if silent else declared

    def destinations(self) -> list[str]:
        """Return the texts in the destination arguments."""
        found: list[str] = []
        for _, kind, value, _, _ in self.arguments:
            if kind in DESTINATIONS:
                for text in value if isinstance(value, list) else (value,):
                    if isinstance(text, str) and text:
                        found.append(text)
        return found


NOTHING_TRACED: Final = TracedArguments((), (), {}, ())


def project_arguments(args: Mapping[Any, Any], supplied: frozenset[str], kind: type) -> tuple[dict[str, Any], bool]:
    """Return `args` as JSON, without names in `supplied` and values of type `kind`.

    `supplied`: names that code adds. The second result is True if any argument was left out.
    """
    own: dict[str, Any] = {}
    for name, value in args.items():
        if name in supplied or type(value) is kind:
            continue
        plain = value is None or type(value) is bool or (type(value) is str and value.isascii() and "\x00" not in value)
        own[str(name)] = value if plain else as_json(value)
    return own, len(own) != len(args)


def traced_arguments(profile: ToolProfile, args: Mapping[str, Any]) -> TracedArguments:
    """Cut the arguments that the profile declares as critical or as dates into items."""
    kinds: dict[str, Any] = (
        {**profile.critical, **dict.fromkeys(profile.when, "when")} if profile.when else profile.critical
    )
    if not kinds:
        return NOTHING_TRACED
    arguments: list[TracedArgument] = []
    keys: list[str] = []
    target: dict[str, Any] = {}
    bound: list[str] = []
    for name, kind in kinds.items():
        root, dotted, _ = name.partition(".")
        value = value_at(args, name) if dotted else args.get(name)
        if kind != "when" and root in args:
            target[name] = value
            bound.append(root)
        short = type(value) in SCALAR_TYPES and (type(value) is not str or len(value) <= REMEMBERED)
        argument = _traced_short(name, kind, value) if short else _traced(name, kind, value)
        arguments.append(argument)
        for item in argument.items or ():
            keys += item.keys
    return TracedArguments(arguments, tuple(dict.fromkeys(keys)), target, bound)


def _traced(name: str, kind: str, value: Any) -> TracedArgument:
    flat = _flat(value)
    if flat is None:
        letters = "".join(sorted(skeleton(repr(value))))
        return TracedArgument(name, kind, value, None, [letters] if kind != "when" else [])
    items = []
    for one in flat:
        parts = tuple(_parts(one, kind))
        items.append(Item(one, parts, tuple(key(f) for part in parts for f in part)))
    marks = {m for one in flat for m in _marks(one, kind)} if kind != "when" else ()
    return TracedArgument(name, kind, value, tuple(items), sorted(marks))


_traced_short: Final = lru_cache(maxsize=2048, typed=True)(_traced)


def is_empty(value: object) -> bool:
    """Return True for None and for an empty text or collection."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def scalars(value: object, most: int, *, mappings: bool = True) -> list[Any] | None:
    """Return a value's scalars; None if over `most`. `mappings`: read mappings too."""
    found: list[Any] = []
    stack: list[Any] = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, Mapping):
            if not mappings:
                return None
            stack += [*top.values(), *top.keys()][::-1]
        elif isinstance(top, list | tuple):
            stack += reversed(top)
        elif not is_empty(top):
            found.append(top)
        if len(found) + len(stack) > most * 4:
            return None
    return found if len(found) <= most else None


def has_empty_item(value: object) -> bool:
    """Return True if a list holds an empty value, at any depth."""
    stack = [value]
    while stack:
        if isinstance(top := stack.pop(), list | tuple):
            if any(map(is_empty, top)):
                return True
            stack += top
    return False


def uncovered(name: str, value: object, covered: Collection[str]) -> Iterator[str]:
    """Yield the dotted paths of an argument's values, except paths in `covered`."""
    # A dot in a member's name could imitate another path. So paths below such a member are never covered.
    stack = [(name, "", value, "." in name)]
    for _ in range(MAX_ARGUMENT_NODES):
        if not stack:
            return
        path, member, top, dotted = stack.pop()
        if path in covered and not dotted:
            continue
        if is_empty(top):
            # Ignore an empty member, unless its name may be a value.
            if not _MEMBER.fullmatch(member):
                yield path
            continue
        if isinstance(top, Mapping):
            stack += [(f"{path}.{inner}", inner, held, dotted or "." in str(inner)) for inner, held in top.items()]
        elif isinstance(top, list | tuple):
            stack += [(path, member, held, dotted) for held in top]
        elif dotted or not any(known.startswith(f"{path}.") for known in covered):
            # If `covered` has `to.email`, a scalar `to` counts as covered, because `value_at` reads it as that member.
            yield path
    yield name


def _flat(value: object) -> list[Any] | None:
    """Return an argument's scalars, and dict keys that may be data; None if too many."""
    flat: list[Any] = []
    stack: list[Any] = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, dict):
            stack += [*reversed(top.values())]
            # A key that cannot be a field's name, or that holds an address, counts as data.
            stack += [k for k in top if not (isinstance(k, str) and FIELD.fullmatch(k)) or identifiers_in(k)]
        elif isinstance(top, list):
            stack += reversed(top)
        elif not is_empty(top):
            flat.append(top)
        if len(flat) + len(stack) > MAX_ITEMS * 4:
            return None
    if not flat and isinstance(value, dict):  # its members are all empty
        flat = list(value)
    return flat if len(flat) <= MAX_ITEMS else None


def _parts(value: object, kind: str) -> list[tuple[str, ...]]:
    """Return the normal forms of each part of a scalar. Each part has its own source.

    The parts of a destination are its addresses or links, and its recipients. The parts of a date with a time are the
    date and the time. If a number can be read in two ways, each reading is a part.
    """
    whole = forms_of(value)
    if kind == "url" and isinstance(value, str) and _BARE_LINK.match(value):  # upper and lower case of a path differ
        whole = forms_of(f"https://{value}")
    if kind == "when":
        dates = tuple(f for f in whole if f.startswith(("date:", "day:")))
        times = tuple(f for f in whole if f.startswith("time:"))
        return [part for part in (dates, times) if part] or [whole]
    if len(readings := [f for f in whole if f.startswith("num:")]) > 1:
        return [(f,) for f in readings]
    if isinstance(value, str) and kind in DESTINATIONS:
        inner = identifiers_in(tidy(value))
        if inner and not set(inner) <= set(whole):
            return [*((f,) for f in inner), *_places(value)]
    return [whole]


def _places(value: str) -> Iterator[tuple[str, ...]]:
    # In `Bob <bob@x.org>`, only the address is the recipient.
    for part in _BETWEEN.split(value):
        if part.strip():
            shown = _SHOWN.fullmatch(part)
            yield forms_of(shown[1] if shown is not None else part)


def _marks(value: object, kind: str) -> Iterator[str]:
    """Yield texts for a scalar's digest, like a destination's addresses."""
    if kind in DESTINATIONS and isinstance(value, int):
        value = str(value)  # an account number
    if isinstance(value, str):
        value = visible_text(value)
    found = [f for part in _parts(value, kind) for f in part[:1]]
    if isinstance(value, str) and kind in DESTINATIONS:
        found = identifiers_in(tidy(value)) or [f for f in forms_of(value) if f.startswith("digits:")] or found
    elif isinstance(value, str) and kind == "amount":
        found = [f for f in mentions_in(value) if f.startswith("num:")] or found
        found = [max(found, key=lambda f: Decimal(f[4:] if f.startswith("num:") else -1))] if found else []
    for form in found or [repr(value)]:
        signless = "".join(c for c in skeleton(form.partition(":")[2]) if c.isalnum())
        yield form if kind == "amount" or not signless else signless
