"""Read a clause by the orders of a tool: `enroll {student} in {course}`.

An order must fit the whole clause. Only articles, labels ("the student jdoe") and commas may stand between its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Final

from langchain_runtime_authz import _order_patterns as patterns
from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.message_places import is_restricted
from langchain_runtime_authz.mandate.model import Argument, Const, Span, Step
from langchain_runtime_authz.mandate.vocabulary import NAMED, TARGETS, NamedArgument, ToolWords, plain_words

CLOCK: Final = re.compile(
    r"(?<![\d:])(?:(?:[01]?\d|2[0-3]):[0-5]\d(?! ?[ap]m)|(?:0?[1-9]|1[0-2])(?::[0-5]\d)? ?[ap]m)(?!\w)", re.IGNORECASE
)
_UNIT: Final = re.compile(rf"{NUMBER}(?:[%°][^\W\d_]?|(?![ap]m)[^\W\d_]{{1,3}})", re.IGNORECASE)  # "20%", "5km"


def token_cuts(tokens: Sequence[Token]) -> list[list[Token]]:
    """Return the ways to split tokens: "5 May 3pm" and "5km" as one token or as two."""
    several = [(timed, united) for timed in (True, False) for united in (False, True)]
    ways = [[*chain.from_iterable(_cut(t, timed=timed, united=united) for t in tokens)] for timed, united in several]
    return [way for n, way in enumerate(ways) if way not in ways[:n]]


def _cut(token: Token, *, timed: bool, united: bool) -> list[Token]:
    if token.kind in {"word", "name", "sep"}:
        return [token]
    said, start, cut = token.text, token.start, list[Token]()
    clock = CLOCK.search(said) if timed and token.kind == "date" else None
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


_MAX_WORDS: Final = 4  # of one name, address or choice
_SHORT: Final = 2  # digits of a number that may count
_BRIEF: Final = 3  # letters of a choice that may be another word
_COUNTS: Final = frozenset({"number", "integer", "boolean", "null"})  # JSON types that a text cannot have
_LISTED: Final = frozenset({"id", "email", "quote", "hash", "handle"})  # kinds of a list's values
_LOOSE: Final = {  # kinds that only an order takes which the profile writes out: "Disable node_modules" names nobody
    "principal": {"id", "quote"},
    "object": {"email", "name"},
    "channel": {"email", "name", "number", "quote"},
}
Bound = dict[str, tuple[Token, ...]]
"""Argument → its value, or a list of values."""


class Values:
    """Finds values in the tokens of a clause."""

    def __init__(self, tool: ToolWords, text: str) -> None:
        self.tool, self.language, self.text = tool, tool.language, text
        self.data, self.coins = tool.language.data, tool.language.coins
        self.tokens: list[Token] = []
        self.strict = False  # True while an order is read that the profile does not declare
        self.tries = 0

    def suiting(self, argument: NamedArgument, at: int, *, words: int = 0) -> Iterator[tuple[Bound, int]]:
        """Yield values of an argument from token `at` on, with the next token's index.

        `words`: a value may also be up to `words` words in lower case, without an article. A write may have an article
        if the argument's name follows: "the groceries list".
        """
        said = self.tokens[at].text if self.tokens[at].kind == "word" else ""
        determiner = said if said in self.language.determiners else ""
        behind = begin = at + bool(determiner)
        while singular(self.tokens[behind].lower) in argument.words and not self.tokens[behind].text.istitle():
            behind += 1
        taken = [*self._values(argument, behind)]
        if words > len(taken) and not argument.limited and (not determiner or self.tool.effect == "write"):
            worded = self._in_words(argument, behind, words)
            taken += [(v, n) for v, n in worded if not determiner or self.tokens[n].lower in argument.words]
        for values, end in taken or self._values(argument, begin):
            kind, labelled, label = values[0].kind, behind > begin, self.tokens[behind - 1].lower
            others = [a for a in self.tool.arguments.values() if a is not argument]
            other = singular(label) not in argument.words and any(singular(label) in a.words for a in others)
            behind_it = self.tokens[end]
            thing = (
                kind == "number" and argument.kind in NAMED and not labelled and singular(label) not in argument.words
            )
            counted = behind_it.kind == "word" and behind_it.lower not in self.language.closed
            doubts = (  # each is true for a text like its example
                determiner in self.data["indefinite"] and kind not in {"quote", "choice"},  # "a Math course"
                determiner and kind == "date",  # "the Friday"
                labelled and singular(label) != label and len(values) == 1,  # "the pages p1 to p9"
                kind == "number" and other,  # "Refund order 45": no amount
                thing and (counted or determiner or len(values[0].text) <= _SHORT),  # "Cancel 250 orders", "Scrap 2"
            )
            if any(doubts):
                continue
            yield self._bound(argument, values), end
            if determiner and kind != "number" and self.tokens[end].lower in argument.words:
                yield self._bound(argument, values), end + 1  # "the CS-101 course"

    def _bound(self, argument: NamedArgument, values: tuple[Token, ...]) -> Bound:
        """Return argument → values; for money, also the currency's argument → currency."""
        if values[0].kind != "money" or not self.tool.coin:
            return {argument.name: values}
        code = re.sub(NUMBER, "", (money := values[0]).text).strip()
        start = money.start + money.text.index(code)
        coin = Token("word", self.data["currencies"][code], start, start + len(code))
        return {argument.name: values, self.tool.coin: (coin,)}

    def _values(self, argument: NamedArgument, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield what `suiting` yields, if no article and no label is at `at`."""
        at += argument.kind == "text" and self.tokens[at].kind == "colon"  # 'Tell Bob: "hello"'
        token = self.tokens[at]
        yield from (choices := [*self._choices(argument, at)])
        if choices or argument.limited:
            return
        if argument.name == self.tool.coin:
            coined = token.kind in {"word", "name"} and (token.text.isupper() or token.lower in self.coins)
            yield from [((token,), at + 1)] if coined or token.kind == "quote" else ()
            return
        kinds = {*self.data["kinds"][argument.kind].split()}
        kinds -= _LOOSE.get(argument.kind, set()) if self.strict else set()
        if argument.kind == "principal":  # "paddle 12", but not "Pay 900"
            before = self.tokens[at - 1] if at > 1 else token
            kinds -= set() if before.kind == "word" and before.lower not in self.language.closed else {"number"}
        if argument.types and argument.types <= _COUNTS:
            kinds &= {"number", "money"} if argument.types & {"number", "integer"} else set()
        timed, dated = "time" in argument.words, not argument.words.isdisjoint(("date", "day"))
        if (timed or (argument.kind == "when" and not dated)) and (end := self._clock(at)):
            yield self.one(at, end, "time"), end
        day = argument.kind != "when" and not re.search(r"\d", token.text)  # "Mark T-5 tomorrow" names no mark
        if day or (timed and not dated and not CLOCK.search(token.text)):
            kinds -= {"date"}
        if "number" in kinds and (number := self._whole(argument, token)):
            yield self.one(at, at + 1, "number", number), at + 1
        yield from self._listed(argument, kinds, at)
        yield from self._names(kinds, at, numbered=argument.kind != "principal")

    def _choices(self, argument: NamedArgument, at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        for end in range(at + 1, min(at + _MAX_WORDS, len(self.tokens) - 1) + 1) if argument.choices else ():
            if self.tokens[end - 1].kind == "sep":
                return
            said = " ".join(t.text for t in self.tokens[at:end])
            choice = argument.choices.get(said) or argument.choices.get(plain_words(said), "")
            # "Ship it to us" names no country, "in it" no language; "Book R-5 never" orders nothing.
            brief = len(said) <= _BRIEF and (said in self.language.vague or (choice.isupper() and not said.isupper()))
            if choice and not brief and said not in self.language.stops:
                yield self.one(at, end, "choice", choice), end

    def _listed(self, argument: NamedArgument, kinds: set[str], at: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield one value, and a list of values if it goes on, each with the next index."""
        token, end = self.tokens[at], at + 1
        account = argument.kind == "principal" and self.tool.effect == "pay" and not re.search(r"[/\\.]", token.text)
        fits = token.kind in kinds
        flat = "id" in kinds and argument.kind != "principal" and re.fullmatch(r"\d{1,4}[A-Z]", token.text)  # "3B"
        if not (fits or flat or (account and token.kind == "id")) or not (flat or self.language.value(token)):
            return
        plural = "-" in token.text and singular(token.text) != token.text
        compound = token.kind == "id" and not re.search(r"[\d_.]", token.text)
        if compound and (argument.kind == "principal" or plural):  # "any-one", "pre-orders"
            return
        if token.kind in {"money", "number"} and not self._paid(argument, token):
            return
        yield (token,), end
        values, label = [token], self.tokens[at - 1].lower
        several = singular(label) != label and singular(label) in argument.words  # "lots 12 and 15"
        while (token.kind in _LISTED or (several and token.kind == "number")) and (
            gap := self.language.gap(self.tokens, end)
        ):
            gap += at > 1 and self.tokens[end + gap].lower == label  # "file a.txt and file b.txt"
            if not of_one_list(token, self.tokens[end + gap]):
                break
            values.append(self.tokens[end + gap])
            end += gap + 1
        if len(values) > 1:
            yield tuple(values), end

    def _names(self, kinds: set[str], at: int, *, numbered: bool) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield names and addresses: "Ana Lee", "Bank of Ohio", "Biology 2"."""
        for end in range(at + 2, min(at + _MAX_WORDS, len(self.tokens)) + 1):
            first, *inner, last = self.tokens[at:end]
            if not all(self._called(t) or t.text in self.data["particles"] for t in inner):
                return
            if self._called(first) and (self._called(last) or (last.kind == "number" and numbered)):
                if "name" in kinds:
                    yield self.one(at, end, "name"), end
            elif first.kind == "number" and self._called(last) and "address" in kinds and not self.strict:
                yield self.one(at, end, "address"), end  # "5 Harbour Street"

    def _in_words(self, argument: NamedArgument, at: int, words: int) -> Iterator[tuple[tuple[Token, ...], int]]:
        """Yield values of one word, of two words and so on, up to `words`."""
        kind = "name" if argument.kind == "principal" else "id"
        for end in range(at + 1, at + words + 1 if argument.kind in NAMED | {"place", "value"} else 0):
            token = self.tokens[end - 1]
            own = singular(token.lower) in self.tool.said  # "Remove access" removes nobody
            if token.kind not in {"word", "name"} or own or not self.language.value(token):
                return
            if token.kind == "word" or end > at + 1:  # a name alone is a value anyway
                yield self.one(at, end, kind), end

    def _called(self, token: Token) -> bool:
        """Return True if a token can be part of a name, like "Jan" of "Jan Vos"."""
        known = token.lower in self.language.months or self.language.value(token)
        return token.kind == "name" and known and token.lower not in self.tool.verbs

    def one(self, begin: int, end: int, kind: str, text: str = "") -> tuple[Token, ...]:
        """Return the tokens from `begin` to `end` as one value (with `text`, if given)."""
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        return (Token(kind, text or self.text[start:stop], start, stop),)

    def _clock(self, at: int) -> int:
        """Return the index after a time of day that begins at `at`; 0 without one."""
        for end in (at + 2, at + 1):
            if CLOCK.fullmatch(" ".join(t.text for t in self.tokens[at:end])):
                return end
        return 0

    def _whole(self, argument: NamedArgument, token: Token) -> str:
        """Return the digits of a whole number written as a word or with commas, or ""."""
        counts = argument.types <= _COUNTS if argument.types else argument.kind == "amount"
        if counts and token.lower in (names := self.data["numerals"]):
            return f"{names.index(token.lower) + 1}"
        grouped = argument.types <= {"integer", "null"} and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", token.text)
        return token.text.replace(",", "") if grouped and argument.types else ""

    def _paid(self, argument: NamedArgument, amount: Token) -> bool:
        """Return True if the amount's currency fits: "{limit} EUR" does not fit 45 USD."""
        code, words = re.sub(NUMBER, "", amount.text).strip().lower(), {*words_of(argument.name)}
        if argument.kind != "amount" or not (code or (self.strict and self.tool.effect == "pay")):
            return True
        if code and not words.isdisjoint(self.data["multiples"]):
            return False
        if coins := words.intersection(self.coins):
            return coins == {self.coins.get(code, "")}
        priced = words <= {*self.data["moneyed"]} and {*self.data["unpaid"]}.isdisjoint(map(singular, self.tool.nouns))
        return bool(self.tool.coin) or (priced and self.tool.said.isdisjoint(self.coins))


def of_one_list(one: Token, other: Token) -> bool:
    """Return True if two values look alike: T-1 and T-22, but not T-1 and U-1."""
    shapes = {
        re.sub(r"\d+", "0", t.text) if re.search(r"\d", t.text) else t.text.partition("-")[0] for t in (one, other)
    }
    return one.kind == other.kind and (one.kind != "id" or ("." in one.text and "." in other.text) or len(shapes) == 1)


def argument_of(argument: NamedArgument, values: tuple[Token, ...], digest: str) -> Argument:
    """Return the value as a constant, with its span in the user's message."""
    texts, first, array = tuple(v.text for v in values), values[0], "array" in argument.types
    if argument.kind == "amount" and first.kind != "choice":
        number = re.findall(NUMBER, texts[0])[0]
        start = first.start + texts[0].index(number)
        value = read_number(number, money=first.kind == "money") or 0
        return Const(value=value, said=Span(digest, start, start + len(number)))
    if argument.types - {"null"} == {"boolean"}:
        return Const(value=texts[0] == "true", said=Span(digest, first.start, first.end))
    return Const(value=texts if array else texts[0], said=Span(digest, first.start, values[-1].end))


_WIDTHS: Final = {patterns.WORD: 1, patterns.WORDS: 4}  # words in lower case
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
    """Readings of a clause by a tool's orders. `ways`: its tokens (`token_cuts`)."""

    def __init__(self, tool: ToolWords, ways: Sequence[list[Token]], text: str) -> None:
        self.tool, self.values = tool, Values(tool, text)
        self.found: list[Bound] = next(filter(None, map(self._readings, ways)), [])

    def _readings(self, tokens: list[Token]) -> list[Bound]:
        """Return the readings with fitting values, else those with one `_odd` kind."""
        self.values.tokens = [*tokens, Token("end", "", 0, 0)]
        read = {_pairs(bound): bound for bound in islice(self._all(), _MAX_READINGS) if not self._touching(bound)}
        return [bound for bound in read.values() if not self._odd(bound)] or [
            bound
            for bound in read.values()
            if len(self._odd(bound)) == 1  # not two: in "Assign Ann to T-1" they may be swapped
        ]

    def _odd(self, bound: Bound) -> set[str]:
        """Return the kinds of arguments whose values do not look like their kind.

        A `principal` should look like a name, an email address or a handle, and an `object` should not.
        """
        kinds = ((self.tool.arguments[name].kind, v.kind in _PERSONAL) for name, (v, *_) in bound.items())
        return {kind for kind, named in kinds if kind in {"principal", "object"} and named != (kind == "principal")}

    def _touching(self, bound: Bound) -> bool:
        """Return True if two neighbouring values may be one, like "Easter Monday"."""
        values = sorted((v for several in bound.values() for v in several), key=lambda v: v.start)
        weekdays = tuple(day.lower() for day in self.tool.language.data["weekdays"])
        return any(
            self.values.text[one.end : other.start].isspace()
            and (
                one.kind == other.kind != "choice"
                or (_YEAR.fullmatch(one.text) and not other.text.isupper())  # not "2000 ETH"
                or (one.kind in {"name", "id"} and one.text[-1].isalpha() and other.lower.startswith(weekdays))
            )
            for one, other in pairwise(values)
        )

    def steps(self, digest: str) -> list[Step]:
        """Return a step, or one for each value of a list; [] unless one reading fits."""
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
        marked = (item for item in patterns.items_in(*tool.profile.orders) if item.endswith(f"{patterns.REST}}}"))
        rest = {patterns.name_in(item) for item in marked}
        texts = {a.name for a in tool.arguments.values() if a.kind == "text"}
        sent = rest.union(named or texts) if tool.effect == "send" else rest
        needed = {n for n in texts if tool.arguments[n].required or n in sent}
        return bool(needed) and needed.isdisjoint(step.args)

    def _hits(self, bound: Bound) -> bool:
        """Return True if the reading has the arguments that say whom or what it affects."""
        all_of = self.tool.effect in {"delete", "send"}
        hit = [n for n, a in self.tool.arguments.items() if a.kind in _HIT and (a.required or all_of)]
        return not hit or any(n in bound for n in hit)

    # --- an order's words

    def _all(self) -> Iterator[Bound]:
        for order, strict in self.tool.orders:
            self.values.strict = strict
            yield from self._match_from(order, 0)

    def _match_from(self, order: patterns.Pattern, at: int) -> Iterator[Bound]:
        """Yield argument → values, for each way to read `order` from token `at` on."""
        self.values.tries += 1
        token = self.values.tokens[at]
        if self.values.tries > _MAX_TRIES or not order:
            yield from [{}] if token.kind == "end" and not order else []
            return
        item, rest = order[0], order[1:]
        if isinstance(item, patterns.Choice):
            for way in item.ways:
                yield from self._match_from((*way, *rest), at)
        elif isinstance(item, patterns.Options):
            yield from self._match_from(rest, at)
            for n, part in [(n, part) for n, part in enumerate(item.parts) if part not in item.parts[:n]]:
                left = (*item.parts[:n], *item.parts[n + 1 :])
                yield from self._match_from((*part, *([patterns.Options(left)] if left else []), *rest), at)
        else:
            yield from self._match_item(item, rest, at)
            if at and token.kind == "sep" and token.text == "," and not self.values.strict:
                yield from self._match_item(item, rest, at + 1)

    def _match_item(self, item: str, rest: patterns.Pattern, at: int) -> Iterator[Bound]:
        """Yield argument → values, if `item` fits token `at`, and `rest` what follows."""
        token, small = self.values.tokens[at], self.tool.language.determiners
        said = token.lower if token.kind not in {"quote", "sep", "colon", "end"} else ""
        if item[:1] == "{":
            listed = at and self.values.tokens[at - 1].kind == "sep"  # "Add milk, eggs" does not add milk to eggs
            for values, after in self._fits(item[1:-1], at) if not listed else ():
                for bound in self._match_from(rest, after):
                    if bound.keys().isdisjoint(values):
                        yield {**values, **bound}
        elif item in small:
            other = said == item and item in self.values.data["indefinite"]  # German "an"
            yield from self._match_from(rest, at + other)  # users may leave out the order's article
        elif said and self._says(said, item, at):
            yield from self._match_from(rest, at + 1)
        elif token.text in small and item not in self.tool.language.prepositions:  # "Get this to Ann" orders no ride
            behind = self.values.tokens[at + 1 : at + 2] if at else []
            yield from self._match_from(rest, at + 2) if [singular(t.lower) for t in behind] == [singular(item)] else ()

    def _says(self, said: str, item: str, at: int) -> bool:
        """Return True if `said` is the word or currency `item`, or its plural for a list."""
        if said == item or self.values.coins.get(said, "?") == self.values.coins.get(item):
            return True
        if said[:_ROOT] != item[:_ROOT]:
            return False
        gaps = (self.tool.language.gap(self.values.tokens, n) for n in range(at + 2, len(self.values.tokens)))
        several = self.values.tokens[at - 1].kind == "number" or any(gaps)  # "5 units", "lots 12 and 15"
        return several and singular(said) == singular(item)

    def _fits(self, item: str, at: int) -> Iterator[tuple[Bound, int]]:
        """Yield values of the argument `item`, each with the index of the next token."""
        name, mark, value = patterns.split_item(item)
        if (argument := self.tool.arguments.get(name)) is None:
            return
        if mark == patterns.REST:
            yield from [({}, len(self.values.tokens) - 1)] if argument.kind == "text" and self._tells(at) else ()
        elif not value:
            yield from self.values.suiting(argument, at, words=_WIDTHS.get(mark, 0))
        elif value in (argument.fixed or {value}):
            yield {name: self.values.one(0, 1, "choice", value)}, at

    def _tells(self, at: int) -> bool:
        """Return True if the tokens from `at` on can be a message: "that I am late"."""
        language, tokens = self.tool.language, self.values.tokens[at:-1]
        plain = [t for t in tokens if t.kind != "quote"]
        said = [t.lower for t in plain if t.lower not in language.data["denials"]]
        aside = any(t.kind == "sep" or (t.kind in {"odd", "id"} and _ASIDE.search(t.text)) for t in plain)
        vague = self.values.tokens[at - 1].lower == "that" or not any(map(language.value, plain))
        brief = tokens == plain[:1] and vague  # "about it", "Email Tom that report"
        return not (aside or brief or any(map(language.stopped, said)) or is_restricted(" ".join(said)))
