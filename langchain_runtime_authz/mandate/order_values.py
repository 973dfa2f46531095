"""Find the values that suit an argument in a clause: "the student jdoe"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from itertools import chain
from typing import Final

from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.model import Argument, Const, OneOf, Span, Text
from langchain_runtime_authz.mandate.vocabulary import GRAVE, TARGETS, Argued, Tool, plain

_MAX_ADDRESS: Final = 9  # words of an address
_MAX_RUN: Final = 4  # words of one name, or of one choice
_MAX_PHRASE: Final = 2  # words of a text of a payment, without quotes: "for the December rent"
_SHORT: Final = 2  # letters of a unit, digits of a number
_COUNTS: Final = frozenset({"number", "integer", "boolean", "null"})  # JSON types that a text cannot have
_SHOWN: Final = frozenset({"money", "date", "hash", "handle", "email"})  # kinds that tell their argument
_LISTED: Final = frozenset({"id", "email", "quote", "hash", "handle"})  # kinds of a list's values
_NAMELESS: Final = frozenset({"word", "number", "run"})  # kinds that name no person: "Pay rent 900 EUR"
_LOOSE: Final = {  # kinds that only an order takes which the profile writes out: "Disable node_modules" names nobody
    "principal": {"id", "quote", "word", "run"},
    "object": {"email", "name", "word", "run"},
    "channel": {"email", "name", "number", "quote", "word", "run"},
}
_LOWER: Final = {"word", "run"}
_CLOCK: Final = re.compile(
    r"(?<![\d:])(?:(?:[01]?\d|2[0-3]):[0-5]\d(?! ?[ap]m)|(?:0?[1-9]|1[0-2])(?::[0-5]\d)? ?[ap]m)(?!\w)", re.IGNORECASE
)
_JOINED: Final = re.compile(r"[^\W\d_][+&]|\b[A-Z]\w*(?:-\d+)?/[A-Z]")  # "Bob+Ann", "T-1/T-2"
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_UNIT: Final = re.compile(rf"{NUMBER}(?:[%°][^\W\d_]?|[^\W\d_]{{1,3}})")  # "20%", "5km"
Bound = dict[str, tuple[Token, ...]]
"""Argument → its value, or a list of values."""


def cuts(tokens: Sequence[Token]) -> list[list[Token]]:
    """Return the tokens, with times cut from dates and units from numbers or not."""
    several = [(timed, united) for timed in (True, False) for united in (False, True)]
    ways = [[*chain.from_iterable(_cut(t, timed=timed, united=united) for t in tokens)] for timed, united in several]
    return [way for n, way in enumerate(ways) if way not in ways[:n]]


def _cut(token: Token, *, timed: bool, united: bool) -> list[Token]:
    if token.kind in {"word", "name", "sep"}:
        return [token]
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


class Values:
    """The values in the tokens of a clause; the tools' `nouns` are not values."""

    def __init__(self, tool: Tool, text: str, nouns: AbstractSet[str]) -> None:
        self.tool, self.language, self.text, self.nouns = tool, tool.language, text, nouns
        self.data, self.coins = tool.language.data, tool.language.coins
        self.tokens: list[Token] = []
        self.strict = False  # whether the order is one that a verb suggests: no lower-case word is a name
        self.loose = False  # whether words that name nobody may be a person
        self.tries = 0

    def suiting(self, argument: Argued, at: int) -> Iterator[tuple[Bound, int]]:
        """Yield what an argument may be, with its article and label."""
        dictated = argument.kind == "text" and all(t.kind != "quote" for t in self.tokens[at:])  # "to text the Lees"
        said = self.tokens[at].text if self.tokens[at].kind == "word" and not dictated else ""
        determiner = said if said in self.language.determiners else ""
        behind = begin = at + bool(determiner)
        labels = () if dictated else argument.words
        while singular(self.tokens[behind].lower) in labels and not self.tokens[behind].text.istitle():
            behind += 1
        taken = [*self._values(argument, behind)]
        for values, end in taken or self._values(argument, begin):
            kind, labelled, label = values[0].kind, behind > begin, self.tokens[behind - 1].lower
            named = kind in {"word", "name", "run"} and argument.kind != "principal"  # `argument_of` reads the noun
            plain = (
                (kind == "run" or self.tool.effect == "write") and determiner in self.data["definite"] and not labelled
            )
            number, (*_, last) = self.tokens[begin - 1], values[-1].text.split()
            counts = number.kind == "number" or number.lower in self.data["numerals"]
            counted = counts and (number.lower in {"1", self.data["numerals"][0]} or singular(last) != last)
            first = begin == 1 and not labelled and argument.kind in TARGETS
            doubts = (  # each for the words in its quotation marks
                determiner in self.data["indefinite"] and kind not in {"quote", "choice"},  # "a Math course"
                kind in _LOWER and not (counted or plain or self.loose),  # "Refund policy", "restart web-3 on error"
                kind in {"name", *_LOWER} and _YEAR.fullmatch(number.text) and not last.isupper(),  # "2026 maps"
                labelled and singular(label) != label and len(values) == 1,  # "the pages p1 to p9"
                first and kind == "number" and len(values[0].text) <= _SHORT,  # "Scrap 2"
            )
            if any(doubts):
                continue
            yield self._bound(argument, values), end
            if determiner and not named and kind != "number" and self.tokens[end].lower in argument.words:
                yield self._bound(argument, values), end + 1  # "the CS-101 course"

    def _bound(self, argument: Argued, values: tuple[Token, ...]) -> Bound:
        """Return the argument's value, and with money its currency."""
        if values[0].kind != "money" or not self.tool.coin:
            return {argument.name: values}
        code = re.sub(NUMBER, "", (money := values[0]).text).strip()
        start = money.start + money.text.index(code)
        coin = Token("word", self.data["currencies"][code], start, start + len(code))
        return {argument.name: values, self.tool.coin: (coin,)}

    def _values(self, argument: Argued, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield the values that suit an argument, without articles and labels."""
        yield from (choices := [*self._choices(argument, at)])
        if choices or argument.limited:
            return
        if argument.kind == "text":
            yield from self._texts(argument, at)
            return
        kinds = {*self.data["kinds"][argument.kind].split()}
        kinds -= _LOOSE.get(argument.kind, _LOWER) if self.strict else set()
        token = self.tokens[at]
        if argument.name == self.tool.coin:
            coined = token.kind in {"word", "name"} and (token.text.isupper() or token.lower in self.coins)
            yield from [((token,), at + 1)] if coined or token.kind == "quote" else ()
            return
        kinds |= {"run"} if self.loose else set()
        if argument.kind == "principal" and not self.loose:  # "paddle 12", but not "Pay rent 900 EUR"
            before = self.tokens[at - 1].text if at > 1 and self.tokens[at - 1].kind == "word" else ""
            told = bool(before) and before.lower() not in self.language.closed
            kinds -= _NAMELESS - {"number" if told else ""}
        if argument.types and argument.types <= _COUNTS:
            kinds &= {"number", "money"} if argument.types & {"number", "integer"} else set()
        timed, dated = "time" in argument.words, not argument.words.isdisjoint(("date", "day"))
        if (timed or (argument.kind == "when" and not dated)) and (end := self._clock(at)):
            yield self.one(at, end, "time"), end
        if timed and not dated and not _CLOCK.search(self.tokens[at].text):
            kinds -= {"date"}
        if "number" in kinds and (number := self._whole(argument, self.tokens[at])):
            yield self.one(at, at + 1, "number", number), at + 1
        yield from self._listed(argument, kinds, at)
        yield from self._names(argument, kinds, at)
        yield from self._addresses(at) if argument.kind == "place" and not self.strict else ()

    def _choices(self, argument: Argued, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        for end in range(at + 1, min(at + _MAX_RUN, len(self.tokens) - 1) + 1) if argument.choices else ():
            if choice := argument.choices.get(plain(" ".join(t.text for t in self.tokens[at:end]))):
                yield self.one(at, end, "choice", choice), end

    def _texts(self, argument: Argued, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield a quotation, or words without quotes; at the end, all that are left."""
        colon, end = self.tokens[at].kind == "colon", len(self.tokens) - 1
        before, said = self.tokens[at - 1].lower, {*self.data["dictating"]}
        that = not colon and not self.strict and self.tokens[at].lower in said
        grave, at = self.tool.effect in GRAVE and not colon, at + (colon or that)
        spoken = self.tokens[at:end]
        if spoken and spoken[0].kind == "quote":
            yield self.one(at, at + 1, "quote"), at + 1
        said |= (
            set() if self.strict else self.tool.said & {*self.data["leading"], *self.data["headings"], *argument.words}
        )
        told = colon or that or before in said  # not "Tell Ann the news"
        barred = self.tokens[at].kind in {"own", "odd"} or self.tokens[at].lower in self.data["dictating"]
        if not told or barred or any(t.kind == "quote" for t in spoken) or self.language.gap(self.tokens, at):
            return
        own = {*self.language.determiners, *self.language.prepositions, *self.tool.nouns, *argument.words}
        content = False  # more than "a comment"
        for stop in range(at + 1, end + 1):
            self.tries += 1
            if self._barred(self.tokens[stop - 1], colon=colon) or (grave and not self._brief(self.tokens[at:stop])):
                return
            content |= singular(self.tokens[stop - 1].lower) not in own and self.tokens[stop - 1].kind != "id"
            if content and (colon or not self._timed(self.tokens[at:stop])):
                yield self.one(at, stop, "open"), stop

    def _brief(self, spoken: Sequence[Token]) -> bool:
        """Return True for "the May rent" and "order 82000", not for "rent hopefully"."""
        words = [t for n, t in enumerate(spoken) if t.kind != "own" and (n or t.lower not in self.language.determiners)]
        plain = all(t.kind != "odd" and t.text not in self.language.closed for t in words)  # "for rent from June"
        return plain and len(words) <= _MAX_PHRASE and sum(t.kind in {"word", "id"} for t in words) <= 1

    def _timed(self, spoken: Sequence[Token]) -> bool:
        """Return True if words end with a time, which may say when they are to be told."""
        at = [t.lower for t in spoken[-2:-1]] == ["at"] and spoken[-1].lower in self.data["numerals"]
        return (
            at
            or any(t.kind == "date" or t.lower in self.data["times"] for t in spoken[-2:])
            or bool(_CLOCK.fullmatch(spoken[-1].text))
        )

    @cached_property
    def _known(self) -> AbstractSet[str]:
        """The words that cannot be values."""
        return frozenset().union(self.nouns, self.tool.said, self.language.verbs, self.tool.named)

    @cached_property
    def _others(self) -> tuple[AbstractSet[str], AbstractSet[str]]:
        """The names of the other arguments, and kinds of their values."""
        others = [a for a in self.tool.arguments.values() if a.kind != "text"]
        kinds = {kind for a in others for kind in self.data["kinds"][a.kind].split()}
        return {w for a in others for w in a.words}.union(self.data["about"]), kinds & _SHOWN

    def _barred(self, token: Token, *, colon: bool) -> bool:
        """Return True if a token is not of a text, but of another argument or an aside."""
        labels, kinds = self._others
        label = singular(token.lower) in labels and token.lower not in self.language.prepositions
        odd = not re.search(r"\w|," if colon else r"\w", token.text[:2])
        return odd or label or (not colon and (token.kind in kinds or token.lower in self.data["alternatives"]))

    def _listed(self, argument: Argued, kinds: set[str], at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield a value of one token, and a list of such values."""
        token, end = self.tokens[at], at + 1
        known = self._known if token.kind == "word" else ()
        account = argument.kind == "principal" and self.tool.effect == "pay" and not re.search(r"[/\\.]", token.text)
        account &= token.kind == "id"
        acronym = argument.kind == "principal" and token.text.isupper() and self.tool.effect != "pay"  # "Disable SSO"
        fits = (account or (token.kind in kinds and not (acronym and self.strict))) and singular(
            token.lower
        ) not in known
        fits = fits and self.language.value(token) and not (token.kind == "id" and _JOINED.search(token.text))
        flat = "id" in kinds and argument.kind != "principal" and re.fullmatch(r"\d{1,4}[A-Z]", token.text)  # "3B"
        if not (fits or flat) or (token.kind in {"money", "number"} and not self._paid(argument, token)):
            return
        yield (token,), end
        values = [token]
        label = self.tokens[at - 1].lower
        several = singular(label) != label and singular(label) in argument.words  # "lots 12 and 15"
        while (
            (token.kind in _LISTED or (several and token.kind == "number"))
            and (gap := self.language.gap(self.tokens, end))
            and self.tokens[end + gap].kind == token.kind
            and bool(re.search(r"[\d.]", token.text)) == bool(re.search(r"[\d.]", self.tokens[end + gap].text))
        ):
            values.append(self.tokens[end + gap])
            end += gap + 1
        if len(values) > 1:
            yield tuple(values), end

    def _names(self, argument: Argued, kinds: set[str], at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield names of several words: "Ana Lee", "desk lamp", "Biology 2"."""
        for end in range(at + 2, at + _MAX_RUN + 1):
            *words, behind = self.tokens[at:end] or [self.tokens[-1]]
            numbered = behind.kind == "number" and [t.kind for t in words[:1]] == ["name"] and not self.strict
            words += [behind] * (not numbered)
            months = {t for t in words if t.kind == "name" and t.lower in self.language.months}  # "Jan Vos"
            inner = {t for t in words[1:] if t.text in self.data["particles"] and not self.strict}  # "Bank of Ohio"
            plain = (
                t in months or t in inner or (t.kind in {"name", "word"} and self.language.value(t)) for t in words
            )
            called = (
                words[0].kind == "word" and singular(words[0].lower) in self.tool.said
            )  # "archive [project] {name}"
            if called or not all(plain) or self.language.verbs.intersection(t.lower for t in words if t.kind == "word"):
                return
            kind = "name" if all(t.kind == "name" or t in inner for t in words) else "run"
            if words[-1] in inner or (inner and kind == "run"):
                continue
            several = singular(last := words[-1].lower) != last and singular(last) in argument.words  # "Volvo items"
            if kind in kinds and not several and not (numbered and argument.kind == "principal"):
                yield self.one(at, end, kind), end

    def _addresses(self, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield an address: "5 Harbour Street". Behind a comma, "Ann" may be a person."""
        for end in range(at + 2, min(at + _MAX_ADDRESS, len(self.tokens))):
            if {t.kind for t in self.tokens[at:end]} == {"name", "number"}:
                yield self.one(at, end, "address"), end

    def one(self, begin: int, end: int, kind: str, text: str = "") -> tuple[Token, ...]:
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        return (Token(kind, text or self.text[start:stop], start, stop),)

    def _clock(self, at: int) -> int:
        """Return the index behind a time of day, or 0."""
        for end in (at + 2, at + 1):
            if _CLOCK.fullmatch(" ".join(t.text for t in self.tokens[at:end])):
                return end
        return 0

    def _whole(self, argument: Argued, token: Token) -> str:
        """Return a whole number that is written as a word, or with commas."""
        counts = argument.types <= _COUNTS if argument.types else argument.kind == "amount"
        if counts and token.lower in (names := self.data["numerals"]):
            return f"{names.index(token.lower) + 1}"
        grouped = argument.types <= {"integer", "null"} and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", token.text)
        return token.text.replace(",", "") if grouped and argument.types else ""

    def _paid(self, argument: Argued, amount: Token) -> bool:
        """Return True if an argument may be this amount: "{limit} EUR" takes no USD."""
        code, words = re.sub(NUMBER, "", amount.text).strip().lower(), {*words_of(argument.name)}
        if argument.kind != "amount" or not (code or (self.strict and self.tool.effect == "pay")):
            return True
        if coins := words.intersection(self.coins):
            return coins == {self.coins.get(code, "")}
        priced = words <= {*self.data["moneyed"]} and {*self.data["unpaid"]}.isdisjoint(map(singular, self.tool.nouns))
        return bool(self.tool.coin) or (priced and self.tool.said.isdisjoint(self.coins))


def argument_of(argument: Argued, values: tuple[Token, ...], digest: str) -> Argument:
    """Return the value with its span, or both readings of "the garage door"."""
    texts, first, array = tuple(v.text for v in values), values[0], "array" in argument.types
    if first.kind == "open":
        return Text(quote=texts)
    if argument.kind == "amount" and first.kind != "choice":
        number = re.findall(NUMBER, texts[0])[0]
        start = first.start + texts[0].index(number)
        value = read_number(number, money=first.kind == "money") or 0
        return Const(value=value, said=Span(digest, start, start + len(number)))
    if argument.types - {"null"} == {"boolean"}:
        return Const(value=texts[0] == "true", said=Span(digest, first.start, first.end))
    said, _, noun = texts[0].rpartition(" ")
    if first.kind == "run" and singular(noun.lower()) in argument.words and not array:
        return OneOf(values=(texts[0], said))
    return Const(value=texts if array else texts[0], said=Span(digest, first.start, values[-1].end))
