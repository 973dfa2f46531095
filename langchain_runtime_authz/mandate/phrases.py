"""Read the phrases of one clause, in one tool's vocabulary.

A phrase is a preposition, nouns and a value: "to the channel #ops". Nouns are the tool's own. A word that is neither noun
nor value nor in a closed list is left over, and the clause is not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from langchain_runtime_authz.mandate.languages import Token, singular
from langchain_runtime_authz.mandate.vocabulary import Vocabulary

MAX_PHRASES: Final = 8  # of one clause
MAX_COUNTED: Final = 6  # words of what a number counts
_NAMES: Final = 4  # words of one name
_PLAIN: Final = frozenset({"word", "name", "number", "id", "version"})


@dataclass(frozen=True, slots=True)
class Phrase:
    """A preposition, nouns, and a value or a list of values."""

    marker: str
    nouns: tuple[str, ...]
    values: tuple[Token, ...]
    first: bool = False

    @property
    def kind(self) -> str:
        return self.values[0].kind


class Reader:
    """Read what stands behind the verb. `lists`: values may be lists. `part`: it is one of several parts."""

    def __init__(
        self,
        tool: Vocabulary,
        nouns: Collection[str],
        tokens: Sequence[Token],
        text: str,
        *,
        lists: bool,
        part: bool,
    ) -> None:
        self.strange = {n for n in nouns if n not in tool.words}  # "to my notebook Home" names nobody
        self.tool, self.language, self.data, self.text = tool, tool.language, tool.language.data, text
        self.lists, self.part, self.at = lists, part, 0
        self.found: list[Phrase] = []
        self.tokens = [*tokens, Token("end", "", 0, 0)]

    def read(self) -> list[Phrase]:
        """Return the phrases, or none if a word is left over."""
        while self.tokens[self.at].kind != "end":
            said = self._match("dictation")
            taken = self._spoken(said) if said else self._particle() or self._next()
            if not taken or len(self.found) > MAX_PHRASES:
                return []
        return self.found

    def _spoken(self, by: int) -> bool:
        """Read dictated words: quoted, or to the end of the clause without an aside or a time of the order."""
        colon, rest = self.tokens[self.at + by - 1].kind == "colon", self.tokens[self.at + by : -1]
        if self.found and not self.found[-1].values and self.tokens[self.at].lower in self.data["relatives"]:
            return False  # "the message that Carol wrote"
        if rest and rest[0].kind == "quote":
            self.at += by + 1
            self.found.append(Phrase("dictation", (), (rest[0],)))
            return True
        aside = {"sep", "colon"} if not colon else set()
        if any((t.kind in aside and t.text != "&") or not re.search(r"\w|,", t.text[:2]) for t in rest):
            return False
        timed = not colon and any(t.kind == "date" or t.lower in self.data["times"] for t in rest[-2:])
        if not rest or timed or self.tool.effect not in {"send", "write"} or not self.tool.texts:
            return False
        self.at = len(self.tokens) - 1
        self.found.append(Phrase("open", (), (self._quote(rest),)))
        return True

    def _match(self, phrases: str, ahead: int = 0) -> int:
        return self.language.match(phrases, self.tokens, self.at + ahead)

    def _quote(self, tokens: Sequence[Token], kind: str = "quote") -> Token:
        start, end = tokens[0].start, tokens[-1].end
        return Token(kind, self.text[start:end], start, end)

    def _next(self) -> bool:
        """Read the next phrase."""
        begin, chosen = self.at, list[Phrase]()
        joined = self._match("separators") if self.lists and self.found else 0
        self.at += joined
        phrase = self._phrase(chosen)
        stray = joined and (phrase is None or self.tool.spoken.isdisjoint(phrase.nouns))
        if stray or (phrase is None and not chosen):
            self.at = begin
            return False
        self.found += chosen
        if phrase is None:
            return True
        before = self.found[-1] if self.found and not self.found[-1].values else None
        if before and phrase.marker in self.data["naming"]:  # "the service called X"
            self.found[-1] = replace(phrase, nouns=before.nouns + phrase.nouns)
        else:
            self.found.append(phrase)
        if phrase.values and phrase.kind == "number" and not self._unit():
            self._counted()
        return True

    def _particle(self) -> bool:
        """Read the particle of "turn the light off"."""
        token, aside = self.tokens[self.at], self.at in {0, len(self.tokens) - 2}
        if aside and token.lower in self.tool.particles:
            self.found.append(Phrase("choice", (), (token._replace(text=self.tool.offers[token.lower]),)))
            self.at += 1
            return True
        return False

    def _nouns(self, nouns: list[str], chosen: list[Phrase]) -> None:
        """Read the nouns of a phrase, and the choices of the schema that stand among them."""
        tool, language = self.tool, self.language
        while (token := self.tokens[self.at]).kind in {"word", "name"}:
            word = singular(token.lower)
            named = token.text[:1].isupper() and not token.text.isupper()  # "Public" in "the page Public Home"
            choice = next((tool.choices[w] for w in (token.lower, word) if w in tool.choices and not named), None)
            if choice and token.lower not in language.phrases["polite"]:
                chosen.append(Phrase("choice", (), (token._replace(text=choice),)))
            elif token.kind == "name" and not (token.text.isupper() and word in tool.words):
                return  # "SQL" is a noun here, "Bob" is not
            elif word not in tool.words:
                return
            else:
                nouns.append(word)
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
        labelled, behind = len(nouns) > named, self.at
        if labelled or determined:
            said = self._match("dictation")
            colon = self.tokens[self.at].kind == "colon" and not (nouns and tool.labels.isdisjoint(nouns))
            colon = colon or self.tokens[self.at + said].kind == "quote"
            self.at += said * colon
        values = self._values(marker, labelled=labelled, determiner=determiner)
        if values and values[0].kind == "run" and singular(last := values[0].lower.rpartition(" ")[2]) in tool.things:
            if singular(last) != last:
                return None
            nouns.append(last)  # "the garage door"
        if values and not self._trailing(values, nouns, owned=determined):
            return None
        if chosen and (values or marker not in data["places"]["choice"].split()):
            chosen.clear()  # "the open ticket T-4" tells which one, and sets nothing
            return None
        if values and determiner in data["indefinite"] and values[0].kind != "quote":  # "a Math course" is one of many
            return None
        if not values:
            self.at = behind
            dictates = labelled and self._match("dictation")
            if not labelled or (marker and not dictates):
                return None
        return Phrase(marker, tuple(nouns), tuple(values), begin == 0)

    def _trailing(self, values: Sequence[Token], nouns: list[str], *, owned: bool) -> bool:
        """Read the noun behind a value: "the Netflix plan", "5 replicas", but never a count of things as one of them."""
        token, number = self.tokens[self.at], values[0].kind == "number"
        noun = singular(token.lower)
        if token.kind != "word" or noun not in self.tool.words - self.tool.spoken:
            return True
        fits = noun in self.tool.counted if number else owned and (token.lower == noun or len(values) > 1)
        if fits:
            nouns.append(noun)
            self.at += 1
        return fits or not (token.lower != noun or (number and not nouns))

    def _values(self, marker: str, *, labelled: bool, determiner: str) -> list[Token]:
        values: list[Token] = []
        told = labelled or (bool(marker) and marker not in self.data["setting"])
        determined, paid = determiner in self.language.determiners, any(t.kind == "money" for t in self.tokens)
        while True:
            gap = self._match("separators") if self.lists and values else 0
            gap += self._match("separators", gap) if gap else 0
            if values and not gap:
                return values
            if gap and values[0].kind in {"name", "run", "word"}:
                return []  # "the board Sales and Marketing" may be one
            token, after = self._value(self.at + gap, told=told)
            if token is None or (values and token.kind != values[0].kind):
                return values
            if token.kind == "run" and not (labelled or marker or self._opens(values)):
                return values
            if token.kind == "word":
                noun = (values and singular(token.lower) in self.tool.words) or (
                    not labelled and token.lower in self.strange
                )
                trails = singular(self.tokens[after].lower) in self.tool.things  # "the checkout service"
                alone = self.at == 0 and (paid or not (self.part or self.tool.effect == "pay"))  # "pay bob 45 eur"
                named = labelled or alone or (trails if determined else marker)
                if noun or not (named or (marker and determined)):
                    return values
                token = token if named else token._replace(kind="common")  # "at the office" is a place, and nobody
            values.append(token)
            self.at = after

    def _value(self, at: int, *, told: bool) -> tuple[Token | None, int]:
        token = self.tokens[at]
        common = told or token.lower not in self.language.verbs  # a verb only behind a noun or a preposition
        if not self.language.value(token) or (token.kind == "word" and not common):
            return None, at
        after = at + 1
        while token.kind == self.tokens[after].kind == "name" and self.language.value(self.tokens[after]):
            after += 1  # "Ana Smith"
        kind, ran = token.kind, self._ran(at)
        if ran > after:
            kind, after = "run", ran
        said = " ".join(t.text for t in self.tokens[at:after])
        whole = after == at + 1 or (after - at <= _NAMES and said == self._quote(self.tokens[at:after]).text)
        return (token._replace(kind=kind, text=said, end=self.tokens[after - 1].end), after) if whole else (None, at)

    def _opens(self, values: Sequence[Token]) -> bool:
        """Return True in the first phrase that holds a value, if what is named is not paid for."""
        said = values or any(p.values and p.marker != "choice" for p in self.found)
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

    def _unit(self) -> bool:
        """Read what a number is in: "3 ETH"."""
        token = self.tokens[self.at]
        if self.tool.currency and re.fullmatch("[A-Z]{2,5}", token.text) and token.kind == "name":
            self.found.append(Phrase("", ("currency",), (token,)))
            self.at += 1
            return True
        return False

    def _counted(self) -> None:
        """Read what a number counts: "3 toner cartridges", "two packs of pens"."""
        if self.found[-1].marker or self.found[-1].nouns:
            return
        inner, begin = self.data["parting"][0], self.at
        while (token := self.tokens[self.at]).kind in _PLAIN and (
            self.language.value(token) or (token.lower == inner and self.at > begin)
        ):
            self.at += 1
        taken = self.tokens[begin : self.at]
        fine = (
            0 < len(taken) <= MAX_COUNTED
            and taken[0].start < taken[-1].end
            and all(t.kind == "word" and t.lower not in self.language.verbs for t in taken)
        )
        if fine:
            self.found.append(Phrase("counted", (), (self._quote(taken, "counted"),)))
        else:
            self.at = begin
