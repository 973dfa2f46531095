"""Read the phrases of one clause, in one tool's vocabulary.

A phrase is a preposition, nouns and a value: "to the channel #ops". Nouns are the tool's own. A word that is neither noun
nor value nor in a closed list is left over, and the clause is not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from langchain_runtime_authz.mandate.languages import Token, singular
from langchain_runtime_authz.mandate.vocabulary import Vocabulary

MAX_PHRASES: Final = 8  # of one clause
MAX_PURPOSE: Final = 6  # words behind "for", or of a subject
LABEL: Final = ";"  # parts a sentence from another that only says what an argument is
_NAMES: Final = 4  # words of one name
_PLAIN: Final = frozenset({"word", "name", "number", "id", "version"})
_SORTS: Final = {"email": "name", "handle": "name", "quote": "id"}  # kinds that one list may mix


@dataclass(frozen=True, slots=True)
class Phrase:
    """A preposition, nouns, and a value or a list of values."""

    marker: str
    nouns: tuple[str, ...]
    values: tuple[Token, ...]
    first: bool = False
    attached: bool = False  # to a noun without a value: "access to plan.md"

    @property
    def kind(self) -> str:
        return self.values[0].kind


def _sort(token: Token) -> str:
    return _SORTS.get(token.kind, token.kind)


class Reader:
    """Read what stands behind the verb. `lists`: values may be lists. `part`: it is one of several parts."""

    def __init__(
        self,
        tool: Vocabulary,
        nouns: Collection[str],
        verb: str,
        tokens: Sequence[Token],
        text: str,
        *,
        lists: bool,
        part: bool,
    ) -> None:
        self.strange = {n for n in nouns if n not in tool.words}  # "to my notebook Home" names nobody
        self.promotes = verb in tool.language.data["promoting"]
        self.tells = tool.effect == "send" and bool(tool.texts) and verb in tool.language.data["tellings"]
        self.tool, self.language, self.data, self.text = tool, tool.language, tool.language.data, text
        self.lists, self.part, self.at = lists, part, 0
        self.found: list[Phrase] = []
        self.tokens = [*tokens, Token("end", "", 0, 0)]
        if tool.counts:
            numbers = {n: f"{i}" for i, n in enumerate(self.data["numerals"], 1)} | dict.fromkeys(
                self.data["indefinite"], "1"
            )
            self.tokens = [
                t._replace(kind="number", text=numbers[t.lower]) if t.lower in numbers else t for t in self.tokens
            ]

    def read(self) -> list[Phrase]:
        """Return the phrases, or none if a word is left over."""
        if self.tool.command and not (self.lists or self.part) and (command := self._command()):
            return [command]
        while (token := self.tokens[self.at]).kind != "end":
            if len(self.found) > MAX_PHRASES:
                return []
            said = self._match("dictation")
            if said or (said := self._match("topics")):
                if not self._spoken(said):
                    return []
            elif own := (token.text == LABEL or self._match("own")):
                self.at += own  # "for me"
            elif owner := self._owner():  # "bob's password" is the password of bob
                self.found.append(Phrase("of", (), (owner,)))
                if singular(self.tokens[self.at].lower) not in self.tool.words:
                    return []
            elif not (self._adverb() or (not self.found and self._slot()) or self._next()):
                rest = self.tokens[self.at : -1]
                told = self.tells and any(p.values for p in self.found) and self._stated(rest)
                return self._open(rest) if told else []
        return self.found

    def _spoken(self, by: int) -> bool:
        """Read dictated words, or what a text is about: quoted, or to the end of the clause."""
        before, rest = self.tokens[self.at + by - 1], self.tokens[self.at + by : -1]
        if rest and rest[0].kind == "quote":
            self.at += by + 1
            self.found.append(Phrase("dictation", (), (rest[0],)))
            return True
        about = self._match("topics") > 0
        if about and rest and rest[0].kind in {"money", "number"}:
            return False  # "about 45 EUR" is a guess
        dictates = self.tool.effect in {"send", "write"} and self.tool.texts
        return bool(dictates and self._dictated(rest, None if about else before) and self._open(rest))

    def _open(self, rest: Sequence[Token]) -> list[Phrase]:
        """Take the rest as dictated, without quotes."""
        self.at = len(self.tokens) - 1
        self.found.append(Phrase("open", (), (self._quote(rest),)))
        return self.found

    def _owner(self) -> Token | None:
        """Read whose it is: "Ana Smith's"."""
        taken = list(takewhile(lambda t: t.kind == "name" and self.language.value(t), self.tokens[self.at :]))
        last = self.tokens[self.at + len(taken)]
        if last.kind != "owner" or len(taken) >= _NAMES:
            return None
        self.at += len(taken) + 1
        said = " ".join(t.text for t in (*taken, last))
        return Token("name" if taken else self.language.kind(said), said, (*taken, last)[0].start, last.end)

    def _match(self, phrases: str, ahead: int = 0) -> int:
        return self.language.match(phrases, self.tokens, self.at + ahead)

    def _said(self, tokens: Sequence[Token]) -> str:
        return self.text[tokens[0].start : tokens[-1].end]

    def _quote(self, tokens: Sequence[Token], kind: str = "quote") -> Token:
        return Token(kind, self._said(tokens), tokens[0].start, tokens[-1].end)

    def _next(self) -> bool:
        """Read the next phrase, or the purpose of a payment."""
        begin, chosen = self.at, list[Phrase]()
        joined = self._match("separators") if self.lists and self.found else 0
        self.at += joined
        phrase = self._phrase(chosen)
        comma = self.tokens[begin].text == "," and joined == 1
        if joined and (
            phrase is None
            or not (
                self.tool.labels & {*phrase.nouns}
                or (comma and (phrase.marker or (phrase.values and phrase.kind in {"money", "date"})))
            )
        ):
            self.at = begin
            return False
        telling = phrase is not None and (phrase.nouns or not phrase.values or phrase.kind in {"money", "date"})
        if self.tool.purposed and not telling and self.tokens[begin].lower in self.data["purpose"]:
            self.at = begin + 1
            phrase = self._purpose()
        if phrase is None and not chosen:
            self.at = begin
            return False
        self.found += chosen
        if phrase is None:
            return True
        before = self.found[-1] if self.found and not self.found[-1].values else None
        if before and phrase.marker in self.data["naming"]:  # "the service called X"
            self.found[-1] = replace(phrase, nouns=before.nouns + phrase.nouns)
        else:
            self.found.append(replace(phrase, attached=before is not None))
        if phrase.values and phrase.kind == "number" and not self._unit():
            self._counted()
        return True

    def _command(self) -> Phrase | None:
        """Read a command without quotes: "git pull". All of it is plain words, to the end of the clause."""
        words, language = self.tool.words, self.language
        lead = list(takewhile(lambda t: t.lower in language.determiners or singular(t.lower) in words, self.tokens))
        rest = self.tokens[len(lead) : -1]
        plain = all(t.kind in _PLAIN - {"name"} and t.lower not in language.closed for t in rest)
        if not rest or not plain or rest[0].kind not in {"word", "id"} or rest[0].lower in language.framed:
            return None
        nouns = tuple(n for t in lead if (n := singular(t.lower)) in words)
        if not nouns and len(rest) == 1 and rest[0].kind == "word":  # "run late"
            return None
        return Phrase("", nouns, (self._quote(rest),), first=True)

    def _stated(self, tokens: Sequence[Token]) -> bool:
        """Return True for a clause of its own, which is dictated: "the cake is here"."""
        first = tokens[0].lower.partition("'")[0]
        if first not in self.data["subjects"] and first not in self.language.determiners:
            return False
        said = any(t.lower in self.data["auxiliaries"] or "'" in t.lower for t in tokens)
        said = said or (first in self.data["subjects"] and len(tokens) > 1)
        return said and self._dictated(tokens, None)

    def _dictated(self, tokens: Sequence[Token], by: Token | None) -> bool:
        """Return True if unquoted words are dictated to their end: no aside, and no time that may be the order's."""
        colon, whole = by is not None and by.kind == "colon", by is not None and by.lower == self.data["whole"]
        aside = {"sep", "colon"} if not colon else set()
        if any((t.kind in aside and t.text != "&") or not re.search(r"\w|,", t.text[:2]) for t in tokens):
            return False
        return bool(tokens) and (
            whole or colon or not any(t.kind == "date" or t.lower in self.data["times"] for t in tokens[-2:])
        )

    def _adverb(self) -> bool:
        """Read "every month" or "with all its contents", and the particle of "turn the light off"."""
        token, aside = self.tokens[self.at], self.at in {0, len(self.tokens) - 2}
        if aside and token.lower in self.tool.particles:
            self.found.append(Phrase("choice", (), (token._replace(text=self.tool.offers[token.lower]),)))
            self.at += 1
            return True
        for marker, value, phrases in self.tool.adverbs:
            if taken := self.language.match(phrases, self.tokens, self.at):
                start, end = self.tokens[self.at].start, self.tokens[self.at + taken - 1].end
                self.found.append(Phrase(marker, (), (Token("word", value, start, end),)))
                self.at += taken
                return True
        return False

    def _slot(self) -> bool:
        """Read the name of a field that is set: "the price of record 18"."""
        at = int(self.tokens[0].lower in self.language.determiners)
        token, behind = self.tokens[at], self.tokens[at + 1 : at + 2]
        links = {*self.data["parting"], self.data["setting"][0]}
        known = token.kind != "word" or not self.language.value(token) or singular(token.lower) in self.tool.words
        if known or not self.tool.slot or not behind or behind[0].lower not in links:
            return False
        self.found.append(Phrase("slot", (), (token,)))
        self.at = at + 1
        return True

    def _nouns(self, nouns: list[str], chosen: list[Phrase]) -> None:
        """Read the nouns of a phrase, and the choices of the schema that stand among them."""
        tool, language = self.tool, self.language
        while (token := self.tokens[self.at]).kind in {"word", "name"}:
            word, behind = singular(token.lower), singular(self.tokens[self.at + 1].lower)
            named = token.text[:1].isupper() and not token.text.isupper()  # "Public" in "the page Public Home"
            choice = next((tool.choices[w] for w in (token.lower, word) if w in tool.choices and not named), None)
            if choice and token.lower not in language.phrases["polite"]:
                chosen.append(Phrase("choice", (), (token._replace(text=choice),)))
            elif token.kind == "name" and not (token.text.isupper() and word in tool.words):
                return  # "SQL" is a noun here, "Bob" is not
            elif chosen and chosen[-1].values[0].start == self.tokens[self.at - 1].start and word in tool.labels:
                pass  # "high priority"
            elif word in tool.words:
                nouns.append(word)
            elif nouns and word in self.data["numbering"]:
                pass  # "order number 12"
            elif token.lower not in language.adjectives or behind not in tool.words:
                return
            self.at += 1

    def _phrase(self, chosen: list[Phrase]) -> Phrase | None:
        tool, language, data, begin = self.tool, self.language, self.data, self.at
        first = self.tokens[begin]
        marker = first.lower if first.kind == "word" and first.lower in language.prepositions else ""
        if any(t.text[:1].isupper() and t.lower in language.determiners for t in self.tokens[begin : begin + 2]):
            return None  # "My" in "Delete My report.pdf" may be of the name
        self.at += bool(marker)
        nouns = list[str](data["naming"].get(marker, ()))
        named, determiner = len(nouns), self.tokens[self.at].lower
        while self.tokens[self.at].lower in language.determiners:
            self.at += 1
        determined = determiner in language.determiners
        self._nouns(nouns, chosen)
        apposed = determined and len(nouns) == named and data["person"] in tool.words
        apposed = apposed and singular(self.tokens[self.at].lower) not in self.strange
        if apposed and language.common(self.tokens[self.at]) and self.tokens[self.at + 1].kind == "name":
            nouns.append(data["person"])  # "the plumber Arne Holm"
            self.at += 1
        labelled, behind = len(nouns) > named, self.at
        if labelled or determined:
            said = self._match("dictation")
            colon = self.tokens[self.at].kind == "colon" and not (nouns and tool.labels.isdisjoint(nouns))
            colon = colon or self.tokens[self.at + said].kind == "quote"
            self.at += self._match("copulas") or said * colon
        if (
            labelled
            and tool.headings >= tool.labels.intersection(nouns) != set()
            and (taken := self._run(data["parting"]))
        ):
            values = [self._quote(taken)]
        else:
            values = self._values(marker, begin, labelled=labelled, determiner=determiner)
        if values and values[0].kind == "run" and (last := singular(values[0].lower.rpartition(" ")[2])) in tool.things:
            nouns.append(last)  # "the garage door"
        trailing = singular(self.tokens[self.at].lower)
        counted = bool(values) and values[0].kind == "number" and trailing in tool.labels
        if (
            values
            and (determined or counted)
            and trailing in tool.words - tool.spoken
            and self.tokens[self.at].kind == "word"
        ):
            nouns.append(trailing)
            self.at += 1
        if chosen and values:
            chosen.clear()  # "the open ticket T-4" tells which one, and sets nothing
            return None
        if values and not nouns and begin and first.lower in data["indefinite"]:
            if not self.promotes:
                return None
            marker = data["setting"][1]  # "make her an admin" is "as admin"
        if not values:
            self.at = behind
            dictates = labelled and self._match("dictation")
            if not labelled or (marker and not dictates):
                return None
        return Phrase(marker, tuple(nouns), tuple(values), begin == 0)

    def _values(self, marker: str, begin: int, *, labelled: bool, determiner: str) -> list[Token]:
        values: list[Token] = []
        moved = self.tool.effect == "write" and len(self.tokens) == self.at + 2  # "to archive"; but not "to pay Bob"
        told = labelled or (bool(marker) and (moved or marker not in self.data["setting"]))
        determined, paid = determiner in self.language.determiners, any(t.kind == "money" for t in self.tokens)
        singly = labelled and singular(self.tokens[self.at - 1].lower) == self.tokens[self.at - 1].lower
        while True:
            gap = self._match("separators") if self.lists and values else 0
            gap += self._match("separators", gap) if gap else 0
            if values and not gap:
                return values
            if gap and singly and values[0].kind in {"name", "run"}:
                return []  # "the board Sales and Marketing" may be one
            token, after = self._value(self.at + gap, told=told)
            if token is None or (values and _sort(token) != _sort(values[0])):
                return values
            if token.kind == "run" and not (labelled or marker or self._opens(values)):
                return values
            if token.kind == "word":
                noun = (values and singular(token.lower) in self.tool.words) or (
                    not labelled and token.lower in self.strange
                )
                trails = singular(self.tokens[after].lower) in self.tool.things  # "the checkout service"
                alone = self.at == 0 and (paid or not (self.part or self.tool.effect == "pay"))  # "pay bob 45 eur"
                her = begin and not marker and determiner in self.data["indefinite"]  # "make her an admin"
                named = labelled or alone or her or (trails if determined else marker)
                if noun or not (named or (marker and determined)):
                    return values
                token = token if named else token._replace(kind="common")  # "at the office" is a place, and nobody
            values.append(token)
            self.at = after

    def _value(self, at: int, *, told: bool) -> tuple[Token | None, int]:
        token = self.tokens[at]
        common = told or self.language.common(token)  # a verb is a value only where a noun or a preposition tells so
        if not self.language.value(token) or (token.kind == "word" and not common):
            return None, at
        after = at + 1
        while token.kind == "name" and (joined := self._named(after)):
            after = joined
        kind, ran = token.kind, self._ran(at)
        if ran > after:
            kind, after = "run", ran
        said = " ".join(t.text for t in self.tokens[at:after])
        whole = after == at + 1 or (after - at <= _NAMES and said == self._said(self.tokens[at:after]))
        return (token._replace(kind=kind, text=said, end=self.tokens[after - 1].end), after) if whole else (None, at)

    def _opens(self, values: Sequence[Token]) -> bool:
        """Return True in the first phrase that holds a value, if what is named is not paid for."""
        said = values or any(p.values and p.marker not in {"choice", "flag"} for p in self.found)
        return not said and self.tool.effect != "pay"

    def _ran(self, at: int) -> int:
        """Return where a run of plain words ends that names one thing: "porch light", "Oak Stool 40"."""
        kinds, after = {"word", "name"}, at
        while (token := self.tokens[after]).kind in kinds and self.language.value(token):
            if token.kind == "word" and token.lower in self.language.verbs:
                break
            after += 1
            plain = self.tool.numbers or singular(token.lower) in self.strange  # "row 5" may be of another tool
            kinds = kinds if plain else kinds | {"number"}
        return after

    def _named(self, at: int) -> int:
        """Return where a name goes on to: "Ana Smith", "Ludwig van Beethoven"."""
        while self.tokens[at].lower in self.data["linkers"]:
            at += 1
        token = self.tokens[at]
        return at + 1 if token.kind == "name" and self.language.value(token) else 0

    def _unit(self) -> bool:
        """Read what a number is in: "3 ETH", "20 percent"."""
        token = self.tokens[self.at]
        fits = set(self.data["measures"].get(token.lower, ()))
        if not fits.isdisjoint(self.tool.labels):
            self.at += 1
            return True
        if self.tool.currency and re.fullmatch("[A-Z]{2,5}", token.text) and token.kind == "name":
            self.found.append(Phrase("", ("currency",), (token,)))
            self.at += 1
            return True
        return False

    def _counted(self) -> None:
        """Read what a number counts: "3 toner cartridges", "two packs of pens"."""
        if self.found[-1].marker or self.found[-1].nouns:
            return
        taken = self._run(self.data["parting"][:1])
        if taken and all(t.kind in {"word", "name"} and t.lower not in self.language.verbs for t in taken):
            self.found.append(Phrase("counted", (), (self._quote(taken, "counted"),)))
        else:
            self.at -= len(taken)

    def _run(self, inner: Collection[str], first: Collection[str] = ()) -> list[Token]:
        """Read a few plain words; `inner` ones may stand among them, and `first` ones begin them."""
        begin = self.at
        while (token := self.tokens[self.at]).kind in _PLAIN:
            fine = self.language.value(token) or token.lower in self.language.months
            if not (fine or token.lower in (inner if self.at > begin else first)):
                break
            self.at += 1
        self.at = self.at if self.at - begin <= MAX_PURPOSE else begin
        return self.tokens[begin : self.at]

    def _purpose(self) -> Phrase | None:
        """Read what a payment is for. It goes into the payment's text, if there is one."""
        taken = self._run((), self.language.determiners)
        if not taken or any(t.lower in self.language.verbs for t in taken) or all(t.kind == "number" for t in taken):
            return None
        if not self.tool.texts and any(t.kind == "name" for t in taken):  # "for Dave", whom no argument names
            return None
        return Phrase("purpose", (), (self._quote(taken, "purpose"),))
