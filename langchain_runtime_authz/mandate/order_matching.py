"""Read a clause by the orders of a tool: `enroll {student} in {course}`.

An order must fit the whole clause. Only articles, labels ("the student jdoe") and commas may stand between its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Final

from langchain_runtime_authz._order_patterns import (
    REST,
    WORD,
    WORDS,
    Choice,
    Options,
    Pattern,
    items_in,
    name_in,
    split_item,
)
from langchain_runtime_authz.mandate.languages import Token, singular
from langchain_runtime_authz.mandate.message_places import is_restricted
from langchain_runtime_authz.mandate.model import Step
from langchain_runtime_authz.mandate.order_values import Bound, Values, argument_of, of_one_list
from langchain_runtime_authz.mandate.vocabulary import NAMED, TARGETS, ToolWords

_WIDTHS: Final = {WORD: 1, WORDS: 4}  # words in lower case
_MAX_READINGS: Final = 50  # of one tool's orders
_MAX_TRIES: Final = 2_000  # positions at which orders of one tool are tried
_ROOT: Final = 3  # letters that a word and its plural share: "5 ms" are not "5 m"
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_ASIDE: Final = re.compile(r"[()\[\]{}<>|\u2026\u2013\u2014]|^[-.~*_]")  # of a remark to the agent
_PERSONAL: Final = frozenset({"name", "email", "handle"})  # kinds by which people are told from things
_HIT: Final = TARGETS | {"place"}  # kinds of what an order affects


def _pairs(bound: Bound) -> frozenset[tuple[str, str]]:
    """Return the pairs of argument and value, without the values' positions."""
    return frozenset((name, v.text) for name, values in bound.items() for v in values)


class OrderMatch:
    """Readings of a clause by a tool's orders. `ways`: its tokens, cut in each way."""

    def __init__(self, tool: ToolWords, ways: Sequence[list[Token]], text: str) -> None:
        self.tool, self.values = tool, Values(tool, text)
        self.found: list[Bound] = next(filter(None, map(self._readings, ways)), [])

    def _readings(self, tokens: list[Token]) -> list[Bound]:
        """Return the readings whose values look right, else those with one wrong kind."""
        self.values.tokens = [*tokens, Token("end", "", 0, 0)]
        read = {_pairs(bound): bound for bound in islice(self._all(), _MAX_READINGS) if not self._touching(bound)}
        return [bound for bound in read.values() if not self._odd(bound)] or [
            bound
            for bound in read.values()
            if len(self._odd(bound)) == 1  # not two: in "Assign Ann to T-1" they may be swapped
        ]

    def _odd(self, bound: Bound) -> set[str]:
        """Return the kinds whose value looks wrong.

        A `principal` should look like a name, an email address or a handle, and an `object` should not.
        """
        kinds = ((self.tool.arguments[name].kind, v.kind in _PERSONAL) for name, (v, *_) in bound.items())
        return {kind for kind, named in kinds if kind in {"principal", "object"} and named != (kind == "principal")}

    def _touching(self, bound: Bound) -> bool:
        """Return True if two values in a row may be one: "Call Ann Lee", "Easter Monday"."""
        values = sorted((v for several in bound.values() for v in several), key=lambda v: v.start)
        weekdays = tuple(day.lower() for day in self.tool.language.data["weekdays"])
        return any(
            self.values.text[one.end : other.start].isspace()
            and (
                one.kind == other.kind
                or (_YEAR.fullmatch(one.text) and not other.text.isupper())  # not "2000 ETH"
                or (one.kind in {"name", "id"} and one.text[-1].isalpha() and other.lower.startswith(weekdays))
            )
            for one, other in pairwise(values)
        )

    def steps(self, digest: str) -> list[Step]:
        """Return a step for each listed object, if exactly one reading fits."""
        if len(self.found) != 1 or self.values.tries > _MAX_TRIES or not self._hits(bound := self.found[0]):
            return []
        arguments = self.tool.arguments
        several = [n for n, values in bound.items() if len(values) > 1 and "array" not in arguments[n].types]
        for name in several:
            others = [v for n, values in bound.items() for v in values if n != name]
            shared = any(v.kind in {"money", "number"} or of_one_list(v, bound[name][0]) for v in others)
            if several[1:] or shared or arguments[name].kind not in NAMED:
                return []
        ways = [{**bound, n: (value,)} for n in several for value in bound[n]] or [bound]
        args = [{n: argument_of(a, way[n], digest) for n, a in arguments.items() if n in way} for way in ways]
        return [Step(id="?", tool=self.tool.name, args=given) for given in args]

    def untold(self, step: Step) -> bool:
        """Return True if the order needs a text ("Email Tom"), but does not give it."""
        tool, named = self.tool, self.tool.profile.named()["intent"]
        rest = {name_in(item) for item in items_in(*tool.profile.orders) if item.endswith(f"{REST}}}")}
        sent = (named or tool.texts) if tool.effect == "send" else ()
        texts = {n for n in tool.texts if tool.arguments[n].required or n in rest.union(sent)}
        return bool(texts) and texts.isdisjoint(step.args)

    def _hits(self, bound: Bound) -> bool:
        """Return True if the order says whom or what it affects."""
        all_of = self.tool.effect in {"delete", "send"}
        hit = [n for n, a in self.tool.arguments.items() if a.kind in _HIT and (a.required or all_of)]
        return not hit or any(n in bound for n in hit)

    # --- an order's words

    def _all(self) -> Iterator[Bound]:
        for order, strict in self.tool.orders:
            self.values.strict = strict
            yield from self._read(order, 0)

    def _read(self, order: Pattern, at: int) -> Iterator[Bound]:
        """Yield the arguments by which the tokens from `at` on fit the rest of an order."""
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
        """Yield the arguments if the order's `item` stands at `at`, and `rest` behind it."""
        token, small = self.values.tokens[at], self.tool.language.determiners
        said = token.lower if token.kind not in {"quote", "sep", "colon", "end"} else ""
        if item[:1] == "{":
            listed = at and self.values.tokens[at - 1].kind == "sep"  # "Add milk, eggs" does not add milk to eggs
            for values, after in self._fits(item[1:-1], at) if not listed else ():
                for bound in self._read(rest, after):
                    if bound.keys().isdisjoint(values):
                        yield {**values, **bound}
        elif item in small:
            yield from self._read(rest, at)  # users may leave out the order's article
        elif said and self._says(said, item, at):
            yield from self._read(rest, at + 1)
        elif token.text in small and item not in self.tool.language.prepositions:  # "Get this to Ann" orders no ride
            behind = self.values.tokens[at + 1 : at + 2] if at else []
            yield from self._read(rest, at + 2) if [singular(t.lower) for t in behind] == [singular(item)] else ()

    def _says(self, said: str, item: str, at: int) -> bool:
        """Return True if `said` is the word or currency `item` or, in a list, its plural."""
        if said == item or self.values.coins.get(said, "?") == self.values.coins.get(item):
            return True
        if said[:_ROOT] != item[:_ROOT]:
            return False
        gaps = (self.tool.language.gap(self.values.tokens, n) for n in range(at + 2, len(self.values.tokens)))
        several = self.values.tokens[at - 1].kind == "number" or any(gaps)  # "5 units", "lots 12 and 15"
        return several and singular(said) == singular(item)

    def _fits(self, item: str, at: int) -> Iterator[tuple[Bound, int]]:
        """Yield values of the argument `item`, each with the index of the next token."""
        name, mark, value = split_item(item)
        if (argument := self.tool.arguments.get(name)) is None:
            return
        if mark == REST:
            yield from [({}, len(self.values.tokens) - 1)] if argument.kind == "text" and self._tells(at) else ()
        elif not value:
            yield from self.values.suiting(argument, at, words=_WIDTHS.get(mark, 0))
        elif value in (argument.fixed or {value}):
            yield {name: self.values.one(0, 1, "choice", value)}, at

    def _tells(self, at: int) -> bool:
        """Return True if the tokens from `at` on can be a text, like "that I am late"."""
        language, tokens = self.tool.language, self.values.tokens[at:-1]
        plain = [t for t in tokens if t.kind != "quote"]
        said = [t.lower for t in plain if t.lower not in language.data["denials"]]
        aside = any(t.kind == "sep" or (t.kind in {"odd", "id"} and _ASIDE.search(t.text)) for t in plain)
        vague = self.values.tokens[at - 1].lower == "that" or not any(map(language.value, plain))
        brief = tokens == plain[:1] and vague  # "about it", "Email Tom that report"
        return not (aside or brief or any(map(language.stopped, said)) or is_restricted(" ".join(said)))
