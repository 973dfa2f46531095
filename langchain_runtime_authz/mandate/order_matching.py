"""Read a clause by the orders of a tool: `enroll {student} in {course}`.

An order must fit the whole clause. Only an article, a label ("the student jdoe") and a comma may stand in it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice, pairwise
from typing import Final

from langchain_runtime_authz._order_patterns import Choice, Options, Pattern
from langchain_runtime_authz.mandate.languages import Token, singular
from langchain_runtime_authz.mandate.model import Argument, Step
from langchain_runtime_authz.mandate.order_values import Bound, Values, argument_of
from langchain_runtime_authz.mandate.vocabulary import TARGETS, Tool

_MAX_READINGS: Final = 50  # of one tool's orders
_MAX_TRIES: Final = 2_000  # positions at which orders of one tool are tried
_ROOT: Final = 3  # letters that a word and its plural share
_PERSONAL: Final = frozenset({"name", "email", "handle"})  # kinds by which people are told from things
_HIT: Final = frozenset({*TARGETS, "url", "place"})  # kinds of what an order affects


def _open(bound: Bound) -> bool:
    return any(values[0].kind == "open" for values in bound.values())


def _told(bound: Bound) -> frozenset[tuple[str, bool, str]]:
    """Return the values, wherever they stand."""
    return frozenset((name, v.kind == "open", v.text) for name, values in bound.items() for v in values)


def _alike(said: str, item: str, before: Token) -> bool:
    """Return True for the same word, or behind a number its plural, but not "5 ms"."""
    if said == item or said[:_ROOT] != item[:_ROOT]:
        return said == item
    same = singular(said) == singular(item) if before.kind == "number" else said == singular(item)
    return same and min(len(said), len(item)) >= _ROOT


class Match:
    """The ways to read a clause, in the ways to cut it, by the orders of one tool."""

    def __init__(self, tool: Tool, ways: Sequence[list[Token]], text: str, nouns: AbstractSet[str]) -> None:
        self.tool, self.values = tool, Values(tool, text, nouns)
        self.whole = False  # an order that the profile writes out fits
        self.found: list[Bound] = next(filter(None, map(self._readings, ways)), [])
        values = [v for bound in self.found for (v, *_) in bound.values()]
        begun = [v.start for v in values if v.kind == "open"]
        self.dictates = min(begun, default=0)  # where a text without quotes begins
        self.open = any(v.kind == "open" and v.end == ways[0][-1].end for v in values)  # it may go on behind the clause

    def _readings(self, tokens: list[Token]) -> list[Bound]:
        """Return the readings that spend most of the orders' own words."""
        self.values.tokens, self.values.loose = [*tokens, Token("end", "", 0, 0)], False
        read = [*islice(self._all(), _MAX_READINGS)]
        read = [bound for bound in read if not _open(bound)] or read
        read = [*{_told(bound): bound for bound in reversed(read)}.values()]
        most = max(map(self._spent, read), default=0)
        read = [bound for bound in read if not _open(bound) or self._spent(bound) == most]
        joined = {t.start for before, t in pairwise(self.values.tokens[1:]) if before.kind == t.kind == "name"}
        if any(v.start in joined for bound in read for (v, *_) in bound.values()):
            return []  # in "Tag Ann Lee", the name may go on
        people = {n for n, a in self.tool.arguments.items() if a.kind == "principal"}
        if read and not _open(read[0]) and not people.isdisjoint(read[0]):
            self.values.loose = True  # "Assign T-1 to the support team" assigns nobody called T-1
            again = {_told(b): b for b in islice(self._all(), _MAX_READINGS) if not _open(b)}
            read = [*{**again, **{_told(bound): bound for bound in read}}.values()]
        kinds = {id(bound): [*self._personal(bound)] for bound in read}
        read = [b for b in read if not {(True, False), (False, True)} <= {*kinds[id(b)]}]  # "Assign Ann to T-1"
        return [b for b in read if all(person == personal for person, personal in kinds[id(b)])] or read

    def _personal(self, bound: Bound) -> Iterator[tuple[bool, bool]]:
        """Yield whether a value is for a person, and whether it is a name or an address."""
        kinds = ((self.tool.arguments[name].kind, v.kind in _PERSONAL) for name, (v, *_) in bound.items())
        yield from ((kind == "principal", personal) for kind, personal in kinds if kind in {"principal", "object"})

    def _spent(self, bound: Bound) -> int:
        """Return the number of tokens that are of no value."""
        spans = [(v.start, v.end) for values in bound.values() for v in values]
        return sum(not any(start <= t.start < end for start, end in spans) for t in self.values.tokens)

    def steps(self, digest: str) -> list[Step]:
        """Return the steps, one for each listed object; none if no or two readings fit."""
        if len(self.found) != 1 or self.values.tries > _MAX_TRIES or not self._hits(bound := self.found[0]):
            return []
        arguments = self.tool.arguments
        several = [n for n, values in bound.items() if len(values) > 1 and "array" not in arguments[n].types]
        shared = {arguments[n].kind for n in bound}
        others = {v.kind for n, (v, *_) in bound.items() if n not in several and arguments[n].kind in TARGETS}
        if any(bound[n][0].kind in others and bound[n][-1].end == self.values.tokens[-2].end for n in several):
            return []  # in "Enroll S-1 in CS-101 and S-2", S-2 may be a student
        if several and (several[1:] or "amount" in shared or arguments[several[0]].kind not in TARGETS):
            return []
        ways = [{**bound, n: (value,)} for n in several for value in bound[n]] or [bound]
        return [Step(id="?", tool=self.tool.name, args=self._args(way, digest)) for way in ways]

    def untold(self, step: Step) -> bool:
        """Return True if the order tells something, but not what."""
        tool, named = self.tool, self.tool.profile.named()["intent"]
        texts = {
            n
            for n in tool.texts
            if tool.arguments[n].required or (tool.effect == "send" and n in (named or tool.texts))
        }
        return bool(texts) and texts.isdisjoint(step.args)

    def _args(self, bound: Bound, digest: str) -> dict[str, Argument]:
        return {n: argument_of(self.tool.arguments[n], bound[n], digest) for n in self.tool.arguments if n in bound}

    def _hits(self, bound: Bound) -> bool:
        """Return True if the order says whom or what it affects."""
        all_of = self.tool.effect in {"delete", "send"}
        hit = [n for n, a in self.tool.arguments.items() if a.kind in _HIT and (a.required or all_of)]
        return not hit or any(n in bound for n in hit)

    # --- an order's words

    def _all(self) -> Iterator[Bound]:
        for order, strict in self.tool.orders:
            self.values.strict = strict
            for bound in self._read(order, 0):
                self.whole |= not strict
                yield bound

    def _read(self, order: Pattern, at: int) -> Iterator[Bound]:
        """Yield the arguments by which the tokens behind `at` fit the rest of an order."""
        self.values.tries += 1
        token = self.values.tokens[at]
        if self.values.tries > _MAX_TRIES or not order:
            yield from [{}] if token.kind == "end" and not order else []
            return
        item, rest = order[0], order[1:]
        if isinstance(item, Choice):
            for way in item.ways:
                yield from self._read((*way, *rest), at)
        elif isinstance(item, Options):
            yield from self._read(rest, at)
            for n, part in [(n, part) for n, part in enumerate(item.parts) if part not in item.parts[:n]]:
                left = (*item.parts[:n], *item.parts[n + 1 :])
                yield from self._read((*part, *([Options(left)] if left else []), *rest), at)
        else:
            yield from self._said(item, rest, at)
            if at and token.kind == "sep" and token.text == "," and not self.values.strict:
                yield from self._said(item, rest, at + 1)

    def _said(self, item: str, rest: Pattern, at: int) -> Iterator[Bound]:
        """Yield the arguments if a word or an argument of an order stands at `at`."""
        token, small = self.values.tokens[at], self.tool.language.determiners
        said = token.lower if token.kind not in {"quote", "sep", "colon", "end"} else ""
        if item[:1] == "{":
            listed = at and self.values.tokens[at - 1].kind == "sep"  # "Add milk, eggs" does not add milk to eggs
            for values, after in self._fits(item[1:-1], at) if not listed else ():
                for bound in self._read(rest, after):
                    if bound.keys().isdisjoint(values):
                        yield {**values, **bound}
        elif item in small:
            yield from self._read(rest, at)  # users may leave an article out, or say one
        elif said and (
            _alike(said, item, self.values.tokens[at - 1])
            or self.values.coins.get(said, "?") == self.values.coins.get(item)
        ):
            yield from self._read(rest, at + 1)
        elif token.text in small and item not in self.tool.language.prepositions:  # "Get this to Ann" orders no ride
            behind = self.values.tokens[at + 1 : at + 2] if at else []
            yield from self._read(rest, at + 2) if [singular(t.lower) for t in behind] == [singular(item)] else ()

    def _fits(self, item: str, at: int) -> Iterator[tuple[Bound, int]]:
        """Yield what the argument `item` may be, and the index behind it."""
        name, fixed, value = item.partition("=")
        if (argument := self.tool.arguments.get(name)) is None:
            return
        if not fixed:
            yield from self.values.suiting(argument, at)
        elif value in (argument.fixed or {value}):
            yield {name: self.values.one(0, 1, "choice", value)}, at

    # --- the value of one argument
