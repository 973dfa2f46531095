"""Parse the orders that a profile declares: `book {room} [on {date}]`.

Words match themselves. `{room}` matches a value, like a name or a number, which becomes the argument `room`. Also:

- `{user:word}` also matches one plain word in lower case. `{item:words}` matches up to four of them.
- `{text:rest}` matches the rest of a clause, behind a word; the argument gets no value. `[that] {text:rest}` also
  matches a quotation without the word.
- `{state=off}` matches nothing; the argument gets the value `off`.
- `[…]` may be left out, and `(…|…)` lists alternatives, as in speech grammars (JSGF). Optional parts next to each other
  may come in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from langchain_runtime_authz._text import normalize

MAX_LENGTH: Final = 500  # characters of one pattern
WORD, WORDS = ":word", ":words"
REST: Final = ":rest"
_IDLE: Final = re.compile(  # the reader of messages skips these words before an order
    "a|ah|alright|also|an|and|evening|finally|first|go|hello|hey|hi|just|kindly|lastly|let's|lets|"
    "morning|my|next|now|oh|ok|okay|our|please|quickly|second|so|sure|the|then|these|third|this|yes"
)
_ITEM: Final = re.compile(r"\{[^{}]*\}|[\[\]()|]|[^\s\[\](){}|]+|[{}]")


class Choice(NamedTuple):
    """A part of a pattern: exactly one of `ways` must match."""

    ways: tuple[Pattern, ...]


class Options(NamedTuple):
    """A part of a pattern: none, some or all of `parts` match, in any order."""

    parts: tuple[Pattern, ...]


Pattern = tuple["str | Choice | Options", ...]
"""Words, arguments in braces, choices and options, in this order."""


@lru_cache(maxsize=4096)
def parse_pattern(pattern: str) -> Pattern:
    """Return a parsed pattern in lower case. Raises `ValueError` if it is malformed."""
    try:
        if len(pattern) > MAX_LENGTH:
            raise ValueError(f"has more than {MAX_LENGTH} characters; write several orders")
        parsed = _sequence(iter([*_ITEM.findall(pattern), ""]), "")
        if twice := [name for name, count in Counter(_always(parsed)).items() if count > 1]:
            raise ValueError(f"names `{twice[0]}` twice")
        begin = first_items(parsed)
        if any(word[:1] in {"", "{"} for word in begin):
            raise ValueError("must begin with a word")
        if all(map(_IDLE.fullmatch, begin)):
            raise ValueError(f"never fits, because `{min(begin)}` is left out there; begin with the next word")
    except (RecursionError, ValueError) as exc:
        why = "has too many brackets" if isinstance(exc, RecursionError) else exc
        raise ValueError(f"the order `{pattern}` in `intent` {why}") from None
    return parsed


@lru_cache(maxsize=4096)
def first_items(pattern: Pattern) -> frozenset[str]:
    """Return the items with which a match may begin; also "" if a match may be empty."""
    found = frozenset({""})
    for item in pattern:
        ways = item.ways if isinstance(item, Choice) else item.parts if isinstance(item, Options) else ()
        begin = {first for way in ways for first in first_items(way)} if ways else {item}
        found = (found - {""}) | {first for first in begin if isinstance(first, str)}
        found |= {""} if isinstance(item, Options) else set()
        if "" not in found:
            break
    return found


def items_in(*patterns: str) -> Iterator[str]:
    """Yield all words and `{arguments}` of the patterns."""
    for pattern in patterns:
        yield from _items(parse_pattern(pattern))


def name_in(item: str) -> str:
    """Return the name of the argument in an item in braces, like `{state=off}`."""
    return split_item(item[1:-1])[0]


def split_item(item: str) -> tuple[str, str, str]:
    """Split `name:mark=value`, without braces, into name, `:mark` and value."""
    name, _, value = item.partition("=")
    plain, colon, mark = name.partition(":")
    return plain, colon + mark, value


def given_in(patterns: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the (argument, value) pairs that patterns set, as in `{state=off}`."""
    named = (split_item(item[1:-1]) for item in items_in(*patterns) if item[0] == "{")
    return {(name, value) for name, _, value in named if value}


def _items(pattern: Pattern) -> Iterator[str]:
    for item in pattern:
        if isinstance(item, str):
            yield item
        else:
            for part in item[0]:
                yield from _items(part)


def _always(pattern: Pattern) -> Iterator[str]:
    """Yield the arguments that a pattern names in every alternative."""
    for item in pattern:
        if isinstance(item, Choice):
            ways = [{*_always(way)} for way in item.ways]
            yield from set.intersection(*ways)
        elif isinstance(item, str) and item[0] == "{":
            yield name_in(item)


def _argument(item: str) -> str:
    """Return an item in braces, without spaces; "" if it is malformed."""
    name, given, value = map(str.strip, item[1:-1].partition("="))
    plain, mark, _ = split_item(name)
    right = (
        plain.isidentifier() and bool(given) == bool(value) and mark in (("",) if given else ("", WORD, WORDS, REST))
    )
    return f"{{{name}{given}{value}}}" if right else ""


def _ends_in_word(pattern: Sequence[str | Choice | Options]) -> bool:
    end = pattern[-1] if pattern else Options(())
    if isinstance(end, Choice):
        return all(map(_ends_in_word, end.ways))
    return isinstance(end, str) and end[0] != "{"


def _rest_at_end(item: str | Choice | Options) -> str:
    """Return the `{text:rest}` with which an item may end, or ""."""
    if isinstance(item, str):
        return item if item.endswith(f"{REST}}}") else ""
    ways = item.ways if isinstance(item, Choice) else item.parts
    return next(filter(None, (_rest_at_end(way[-1]) for way in ways if way)), "")


def _with_rest(before: str | Choice | Options, argument: str) -> list[str | Choice | Options]:
    """Return `[that] {text:rest}` as `(that {text:rest}|{text})`, or raise an error."""
    if not isinstance(before, Options) or not _ends_in_word(before.parts[-1]):
        raise ValueError(f"needs a word before `{argument}`, like `that`")  # "Bob's boss" is not Bob
    *others, word = before.parts
    either = Choice(((*word, argument), (f"{{{name_in(argument)}}}",)))
    return [Options(tuple(others)), either] if others else [either]


def _sequence(written: Iterator[str], end: str) -> Pattern:
    """Parse items up to `end`. Raises `ValueError` for an unmatched bracket."""
    ways: list[list[str | Choice | Options]] = [[]]
    for item in written:
        if item == end:
            sequences = tuple(map(tuple, ways))
            return sequences[0] if len(sequences) == 1 else (Choice(sequences),)
        way = ways[-1]
        if item not in "|])}" and way and (rest := _rest_at_end(way[-1])):
            raise ValueError(f"goes on behind `{rest}`, which takes all that is said there")
        if item == "[":
            before = way[-1] if way else ""
            parts = before.parts if isinstance(before, Options) else ()
            way[len(way) - bool(parts) :] = [Options((*parts, _sequence(written, "]")))]
        elif item == "(":
            inner = _sequence(written, ")")
            way.append(inner[0] if len(inner) == 1 and isinstance(inner[0], Choice) else Choice((inner,)))
        elif item == "|":
            ways.append([])
        elif item[:1] == "{" and (argument := _argument(item)):
            if argument.endswith(f"{REST}}}") and not _ends_in_word(way):
                way[-1:] = _with_rest(way[-1] if way else "", argument)
            else:
                way.append(argument)
        elif item and item not in "])}" and item[0] != "{":
            word = normalize("NFKC", item).lower().rstrip(".,:;!?")
            way += [word] if word else []
        else:
            break
    raise ValueError("has half a bracket, or no argument's name in its braces")
