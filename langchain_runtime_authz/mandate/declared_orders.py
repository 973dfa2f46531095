"""Read an order that the profile declares: `enroll {student} in {course}`.

It must fit the whole clause. Only an article, a label ("the student jdoe") and a comma may stand in it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from langchain_runtime_authz._order_patterns import Tree, forms_of
from langchain_runtime_authz.mandate.assignment import COUNTS, Assignment, Phrase, step_of
from langchain_runtime_authz.mandate.clause import aside
from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number, singular
from langchain_runtime_authz.mandate.model import Step
from langchain_runtime_authz.mandate.vocabulary import TARGETS, Argued, Tool

_MAX_RUN: Final = 4  # words of one name, or of one choice
_SHORT: Final = 2  # letters of a unit
_LISTED: Final = frozenset({"id", "email", "quote", "hash", "handle"})  # kinds of a list's values
_WORDS: Final = frozenset({"word", "number", "owner", "run"})  # kinds that name no person: "Pay rent 900 EUR"
_CLOCK: Final = re.compile(
    r"(?<![\d:])(?:(?:[01]?\d|2[0-3]):[0-5]\d(?! ?[ap]m)|(?:0?[1-9]|1[0-2])(?::[0-5]\d)? ?[ap]m)(?!\w)", re.IGNORECASE
)
_UNIT: Final = re.compile(rf"{NUMBER}(?:[%°][^\W\d_]?|[^\W\d_]{{1,3}})")  # "20%", "5km"
_HIT: Final = frozenset({*TARGETS, "url", "place"})  # kinds of what an order affects
_Bound = dict[str, Phrase]


def _open(bound: _Bound) -> bool:
    return any(phrase.kind == "open" for phrase in bound.values())


def _alike(said: str, item: str) -> bool:
    """Return True for the same word, or its plural: "5 ms" are not "5 m"."""
    return said == item or (min(len(said), len(item)) > _SHORT and singular(said) == singular(item))


class DeclaredOrders:
    """The ways to read a clause by the orders in a tool's profile."""

    def __init__(self, tool: Tool, tokens: Sequence[Token], text: str) -> None:
        self.tool, self.language, self.text = tool, tool.language, text
        self.found: list[_Bound] = []  # readings
        self.open = False  # a text without quotes is dictated
        if not tokens or tokens[0].lower not in tool.tree:
            return
        tool.prepare()
        self.data = tool.language.data
        self.arguments = {a.name: a for a in tool.arguments}
        self.coins = {written.lower(): code.lower() for written, code in self.data["currencies"].items()}
        self.coin = next((a.name for a in tool.arguments if tool.coin and tool.coin[0] in a.words), "")
        self.tokens = [*tokens, Token("end", "", 0, 0)]
        for cut in [*self._cuts()]:
            self.tokens = cut
            ways = [*self._read(tool.tree, 0)]
            closed = [bound for bound in ways if not _open(bound)]
            ways = closed or ways
            self.found = [bound for n, bound in enumerate(ways) if bound not in ways[:n]]
            if self.found:
                break
        self.open = any(map(_open, self.found))

    def steps(self, digest: str) -> list[Step]:
        """Return the steps, one for each listed object; none if no or two readings fit."""
        if len(self.found) != 1 or not self._hits(bound := self.found[0]):
            return []
        several = [n for n, p in bound.items() if len(p.values) > 1 and "array" not in self.arguments[n].types]
        kinds = {self.arguments[n].kind for n in bound}
        if several and (several[1:] or "amount" in kinds or self.arguments[several[0]].kind not in TARGETS):
            return []
        ways = [{**bound, n: bound[n]._replace(values=(v,))} for n in several for v in bound[n].values] or [bound]
        return [step_of(self.tool, way, digest) for way in ways]

    def _hits(self, bound: _Bound) -> bool:
        """Return True if the order says whom or what it affects."""
        all_of = self.tool.effect in {"delete", "send"}
        hit = [n for n, a in self.arguments.items() if a.kind in _HIT and (a.required or all_of)]
        return not hit or any(n in bound for n in hit)

    def _cuts(self) -> Iterator[list[Token]]:
        """Yield the tokens, with times cut from dates and units from numbers or not."""
        end = self.tokens[-1:]
        for timed in (True, False):
            for united in (False, True):
                cuts = [self._cut(t, timed=timed, united=united) for t in self.tokens[:-1]]
                if (timed or united) <= any(len(cut) > 1 for cut in cuts):
                    yield [*chain.from_iterable(cuts), *end]

    def _cut(self, token: Token, *, timed: bool, united: bool) -> list[Token]:
        said, start, cut = token.text, token.start, list[Token]()
        clock = _CLOCK.search(said) if timed and token.kind == "date" else None
        number = re.search(NUMBER, said) if united and (token.kind == "money" or _UNIT.fullmatch(said)) else None
        if clock is not None:
            cut = [Token("odd", clock[0], start + clock.start(), start + clock.end())]
            for begin, part in ((0, said[: clock.start()]), (clock.end(), said[clock.end() :])):
                for word in re.finditer(r"at\b|on\b|\w.*?(?=T?,?(?: at)?\s*$)", part):
                    kind = "word" if word[0] in {"at", "on"} else "date"
                    cut.append(Token(kind, word[0], start + begin + word.start(), start + begin + word.end()))
        elif number is not None and (value := read_number(number[0], money=token.kind == "money")) is not None:
            begin, end = start + number.start(), start + number.end()
            unit = Token("odd", re.sub(NUMBER, "", said).strip(), end, token.end)
            return [Token("number", f"{value}", begin, end), unit]  # also for "€20"
        return sorted(cut, key=lambda t: t.start) or [token]

    def _read(self, tree: Tree, at: int) -> Iterator[_Bound]:
        """Yield the arguments of each form in `tree` that fits the tokens behind `at`."""
        token, small = self.tokens[at], self.language.determiners
        said = token.lower if token.kind not in {"quote", "sep", "colon", "end"} else ""
        listed = at and self.tokens[at - 1].kind == "sep"  # "Add milk, eggs" does not add milk to eggs
        if token.kind == "end" and "" in tree:
            yield {}
        if at and token.kind == "sep" and token.text == ",":
            yield from self._read(tree, at + 1)
        for item, behind in tree.items():
            if item[:1] == "{":
                for phrases, after in self._fits(item[1:-1], at, last="" in behind) if not listed else ():
                    for bound in self._read(behind, after):
                        if bound.keys().isdisjoint(phrases):
                            yield {**phrases, **bound}
            elif item in small:
                yield from self._read(behind, at)  # users may leave an article out, or say one
            elif item and said and (_alike(said, item) or self.coins.get(said, "?") == self.coins.get(item)):
                yield from self._read(behind, at + 1)
            elif item and at and token.text in small and singular(self.tokens[at + 1].lower) == singular(item):
                yield from self._read(behind, at + 2)

    def _fits(self, item: str, at: int, *, last: bool) -> Iterator[tuple[_Bound, int]]:
        """Yield what the argument `item` may be, and the index behind it."""
        name, fixed, value = item.partition("=")
        if (argument := self.arguments.get(name)) is None:
            return
        if not fixed:
            yield from self._values(argument, at, last=last)
        elif not argument.choices or value in argument.choices:
            yield {name: self._one(0, 1, "choice", value)}, at

    # --- the value of one argument

    def _values(self, argument: Argued, at: int, *, last: bool) -> Iterator[tuple[_Bound, int]]:
        """Yield what an argument may be, and the index behind it."""
        dictated = argument.kind == "text" and all(t.kind != "quote" for t in self.tokens[at:])  # "to text the Lees"
        determiner = said if not dictated and (said := self.tokens[at].text) in self.language.determiners else ""
        behind = begin = at + bool(determiner)
        labels = () if dictated else argument.words
        while singular(self.tokens[behind].lower) in labels and not self.tokens[behind].text.istitle():
            behind += 1
        taken = [*self._taken(argument, behind, last=last)]
        for phrase, end in taken or self._taken(argument, begin, last=last):
            if determiner in self.data["indefinite"] and phrase.kind not in {"quote", "choice"}:
                continue  # "a Math course" is one of many
            if determiner and behind == begin and phrase.kind == "word" and self.tool.effect != "write":
                continue  # "Delete R-5 from the report" names no report
            yield from self._bound(argument, phrase, end)
            plain = phrase.kind in {"word", "name", "run"} and argument.kind != "principal"  # `step_of` reads the noun
            if determiner and not plain and self.tokens[end].lower in argument.words:  # "the CS-101 course"
                yield from self._bound(argument, phrase, end + 1)

    def _bound(self, argument: Argued, phrase: Phrase, end: int) -> Iterator[tuple[_Bound, int]]:
        """Yield the argument's value, and with money its currency."""
        bound = {argument.name: phrase}
        if phrase.kind == "money" and self.coin:
            code = re.sub(NUMBER, "", (money := phrase.values[0]).text).strip()
            start = money.start + money.text.index(code)
            coin = Token("word", self.data["currencies"][code], start, start + len(code))
            bound[self.coin] = Phrase("", (), (coin,))
        yield bound, end

    def _taken(self, argument: Argued, at: int, *, last: bool) -> Iterator[tuple[Phrase, int]]:
        """Yield the values that suit an argument, without articles and labels."""
        data, kind = self.data, argument.kind
        if argument.choices:
            yield from self._choices(argument, at)
        elif kind == "text":
            yield from self._texts(at, last=last)
        else:
            kinds = {*" ".join([data["kinds"][kind], data["kinds"].get(argument.role, "")]).split()}
            kinds |= {*data["named"].get(kind, "").split()}
            kinds -= _WORDS if kind == "principal" else set()
            if argument.types and argument.types <= COUNTS:
                kinds &= {"number", "money"} if argument.types & {"number", "integer"} else set()
            if (kind == "when" or "time" in argument.words) and (end := self._clock(at)):
                yield self._one(at, end, "time"), end
            if "number" in kinds and (number := self._whole(argument, self.tokens[at])):
                yield self._one(at, at + 1, "number", number), at + 1
            yield from self._listed(argument, kinds, at)
            yield from self._names(argument, kinds, at)

    def _choices(self, argument: Argued, at: int) -> Iterator[tuple[Phrase, int]]:
        offered = {re.sub(r"[\W_]+", " ", c).lower(): c for c in argument.choices}
        for end in range(at + 1, min(at + _MAX_RUN, len(self.tokens) - 1) + 1):
            said = re.sub(r"[\W_]+", " ", " ".join(t.lower for t in self.tokens[at:end]))
            if said in offered:
                yield self._one(at, end, "choice", offered[said]), end

    def _texts(self, at: int, *, last: bool) -> Iterator[tuple[Phrase, int]]:
        """Yield a quotation, and at the end of an order the rest of the clause."""
        colon, end = self.tokens[at].kind == "colon", len(self.tokens) - 1
        spoken = self.tokens[at + colon : end]
        if spoken and spoken[0].kind == "quote":
            yield self._one(at + colon, at + colon + 1, "quote"), at + colon + 1
        quoted = any(t.kind == "quote" for t in spoken)
        more = spoken and (spoken[0].kind in {"own", "odd"} or self._gap(at + colon))  # "email Bob's boss hello"
        if last and spoken and not (quoted or more) and not aside(self.tool, spoken, colon=colon):
            yield self._one(at + colon, end, "open"), end

    def _listed(self, argument: Argued, kinds: set[str], at: int) -> Iterator[tuple[Phrase, int]]:
        """Yield a value of one token, and a list of such values."""
        token, end = self.tokens[at], at + 1
        known = argument.words | self.tool.core | self.language.verbs if token.kind == "word" else frozenset[str]()
        fits = token.kind in kinds and singular(token.lower) not in known and self.language.value(token)
        flat = "id" in kinds and argument.kind != "principal" and re.fullmatch(r"\d{1,4}[A-Z]", token.text)  # "3B"
        if not (fits or flat) or not self._paid(argument, token):
            return
        yield Phrase("", (), (token,)), end
        values = [token]
        while token.kind in _LISTED and (gap := self._gap(end)) and self.tokens[end + gap].kind == token.kind:
            values.append(self.tokens[end + gap])
            end += gap + 1
        if len(values) > 1:
            yield Phrase("", (), tuple(values)), end

    def _names(self, argument: Argued, kinds: set[str], at: int) -> Iterator[tuple[Phrase, int]]:
        """Yield names of several words: "Ana Lee", "desk lamp", "Biology 2"."""
        for end in range(at + 2, at + _MAX_RUN + 1):
            *words, behind = self.tokens[at:end] or [self.tokens[-1]]
            numbered = behind.kind == "number" and words[:1] != [] and words[0].kind == "name"
            words += [behind] * (not numbered)
            months = {t for t in words if t.kind == "name" and t.lower in self.language.months}  # "Jan Vos"
            plain = all(t in months or (t.kind in {"name", "word"} and self.language.value(t)) for t in words)
            if not plain or self.language.verbs.intersection(t.lower for t in words if t.kind == "word"):
                return
            kind = "name" if all(t.kind == "name" for t in words) else "run"
            if kind in kinds and not (numbered and argument.kind == "principal"):
                yield self._one(at, end, kind), end

    def _one(self, begin: int, end: int, kind: str, text: str = "") -> Phrase:
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        return Phrase("", (), (Token(kind, text or self.text[start:stop], start, stop),))

    def _gap(self, at: int) -> int:
        gap = self.language.match("separators", self.tokens, at)
        return gap + (self.language.match("separators", self.tokens, at + gap) if gap else 0)

    def _clock(self, at: int) -> int:
        """Return the index behind a time of day, or 0."""
        for end in (at + 2, at + 1):
            if _CLOCK.fullmatch(" ".join(t.text for t in self.tokens[at:end])):
                return end
        return 0

    def _whole(self, argument: Argued, token: Token) -> str:
        """Return a whole number that is written as a word, or with commas."""
        counts = argument.types <= COUNTS if argument.types else argument.kind == "amount"
        if counts and token.lower in (names := self.data["numerals"]):
            return f"{names.index(token.lower) + 1}"
        grouped = argument.types <= {"integer", "null"} and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", token.text)
        return token.text.replace(",", "") if grouped and argument.types else ""

    def _paid(self, argument: Argued, token: Token) -> bool:
        """Return True unless the token is money that the argument may not mean."""
        if token.kind != "money":
            return True
        said = {item for order in self.tool.profile.orders for form in forms_of(order) for item in form}
        declared = not (self.coin or said.isdisjoint(self.coins))  # "{limit} EUR" takes no USD
        return not declared and Assignment(self.tool, "", (), new=False).paid_in(argument, token.text)
