"""Parse the orders that a profile declares: `book {room} [on {date}]`.

Words stand for themselves and braces for an argument; `{state=off}` takes no words and gives the argument this value.
Square brackets hold what may be left out, and round ones hold alternatives, as in speech grammars (JSGF). Optional parts
next to each other may come in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations, product, takewhile
from math import prod
from typing import Final

from langchain_runtime_authz._regex import normalize

Form = tuple[str, ...]
"""A way to say an order: words, and arguments in braces."""

MAX_LENGTH: Final = 500  # characters of one pattern
MAX_FORMS: Final = 2_000  # of one pattern
MAX_OPTIONAL: Final = 5  # parts of a pattern next to each other
_ITEM: Final = re.compile(r"\{[^{}]*\}|[\[\]()|]|[^\s\[\](){}|]+|[{}]")


@lru_cache(maxsize=1024)
def forms_of(pattern: str) -> tuple[Form, ...]:
    """Return the ways to say an order, in lower case. Raises `ValueError`: malformed."""
    try:
        if len(pattern) > MAX_LENGTH:
            raise ValueError(f"has more than {MAX_LENGTH} characters; write several orders")
        ways = dict.fromkeys(_ways(iter([*_ITEM.findall(pattern), ""]), ""))
        named = {form: [name_in(item) for item in form if item[0] == "{"] for form in ways}
        found = tuple(form for form in ways if len(named[form]) == len({*named[form]}))
        if not found:
            raise ValueError("names an argument twice")
        if not all(found) or any(form[0][0] == "{" for form in found):
            raise ValueError("must begin with a word")
    except ValueError as exc:
        raise ValueError(f"the order `{pattern}` in `intent` {exc}") from None
    return found


Tree = dict[str, "Tree"]
"""Forms by their first item; the item "" ends a form."""


@lru_cache(maxsize=1024)
def tree_of(patterns: tuple[str, ...]) -> Tree:
    """Return the ways to say several orders. Raises `ValueError`: one is malformed."""
    tree: Tree = {}
    for form in (form for pattern in patterns for form in forms_of(pattern)):
        at = tree
        for item in (*form, ""):
            at = at.setdefault(item, {})
    return tree


@lru_cache(maxsize=1024)
def heads_of(patterns: tuple[str, ...]) -> frozenset[Form]:
    """Return the words with which orders begin, up to their first argument."""
    forms = (form for pattern in patterns for form in forms_of(pattern))
    return frozenset(tuple(takewhile(lambda item: item[0] != "{", form)) for form in forms)


def name_in(item: str) -> str:
    """Return the argument's name in braces."""
    return item[1:-1].partition("=")[0]


def given_in(patterns: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the arguments to which orders give a value, and the value."""
    items = {item for pattern in patterns for form in forms_of(pattern) for item in form if item[0] == "{"}
    return {(name, value) for name, given, value in (item[1:-1].partition("=") for item in items) if given}


def _argument(item: str) -> str:
    """Return an item in braces without spaces; "" if it is malformed."""
    name, given, value = map(str.strip, item[1:-1].partition("="))
    return f"{{{name}{given}{value}}}" if name.isidentifier() and bool(given) == bool(value) else ""


def _ways(items: Iterator[str], end: str) -> list[Form]:
    """Return the ways to say the items up to `end`."""
    done: list[Form] = []
    ways: list[Form] = [()]
    optional: list[list[Form]] = []  # parts next to each other that may be left out
    for item in items:
        if item == "[":
            optional.append(_ways(items, "]"))
            continue
        ways, optional = _joined(ways, _orders(optional)), []
        if item == end:
            return [*done, *ways]
        if item == "|":
            done, ways = [*done, *ways], [()]
        elif item == "(":
            ways = _joined(ways, _ways(items, ")"))
        elif item[:1] == "{" and (argument := _argument(item)):
            ways = _joined(ways, [(argument,)])
        elif item and item not in "])}" and item[0] != "{":
            word = normalize("NFKC", item).lower().rstrip(".,:;!?")
            ways = _joined(ways, [(word,) if word else ()])
        else:
            break
    raise ValueError("has half a bracket, or no argument's name in its braces")


def _orders(optional: list[list[Form]]) -> list[Form]:
    """Return all orders of some or all of the parts."""
    if len(optional) > MAX_OPTIONAL:
        raise ValueError(f"has more than {MAX_OPTIONAL} optional parts next to each other; write several orders")
    several = [parts for n in range(len(optional) + 1) for parts in permutations(optional, n)]
    _check_number(sum(prod(map(len, parts)) for parts in several))
    return [sum(way, ()) for parts in several for way in product(*parts)]


def _check_number(ways: int) -> None:
    if ways > MAX_FORMS:
        raise ValueError(f"has {ways:,} forms or more, and {MAX_FORMS:,} are allowed; write several orders")


def _joined(ways: list[Form], more: list[Form]) -> list[Form]:
    _check_number(len(ways) * len(more))
    return [one + other for one in ways for other in more]
