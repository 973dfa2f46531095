"""Read the phrases of one clause, in one tool's vocabulary.

A phrase is a preposition, nouns and a value: "to the channel #ops". Nouns are the tool's own. A word that is neither noun
nor value nor in a closed list is left over, and the clause is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from langchain_runtime_authz.mandate.languages import Language, Phrases, Token, singular

MAX_PHRASES: Final = 8  # of one clause
MAX_PURPOSE: Final = 6  # words behind "for"
_NAMES: Final = 4  # words of one name
# Kinds that one list may mix, and kinds of which there are lists of their own.
_SORTS: Final = {
    **dict.fromkeys(("name", "email", "handle"), "somebody"),
    **dict.fromkeys(("id", "quote"), "something"),
}


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


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of one tool.

    Attributes:
        effect: the tool's effect.
        words: nouns of the tool and its arguments.
        labels: of these, the ones that name an argument.
        things: of these, the ones that may stand behind their value: "the admin role".
        headings: of these, the ones of a text that unquoted words may follow.
        choices: values that the schema lists, in lower case.
        texts: True if the tool has a free-text argument.
        slot: True if one argument is the name of a field: "the price of record 18".
        command: True if the one argument is a command.
        counts: True if one argument says how many.
        adverbs: the marker and the value of phrases like "every month" and "with all its contents".
    """

    language: Language
    effect: str
    words: frozenset[str]
    labels: frozenset[str]
    things: frozenset[str]
    headings: frozenset[str]
    choices: frozenset[str]
    texts: bool
    slot: bool
    command: bool
    counts: bool
    adverbs: Sequence[tuple[str, str, Phrases]]

    def read(
        self, tokens: Sequence[Token], text: str, *, lists: bool, part: bool
    ) -> tuple[list[Phrase], str | None] | None:
        """Return the phrases behind the verb, and the dictated text, or `None` if a word is left over.

        Args:
            tokens: what stands behind the verb.
            text: the whole text.
            lists: True if a value may be a list.
            part: True if it is one of several parts, which "and" joins.
        """
        language, effect, found, at = self.language, self.effect, list[Phrase](), 0
        if self.command and (command := self._command(tokens, text)):
            return [command], None
        if self.counts:
            numerals = language.data["numerals"]
            tokens = [
                t._replace(kind="number", text=f"{numerals.index(t.lower) + 1}") if t.lower in numerals else t
                for t in tokens
            ]
        while at < len(tokens):
            if len(found) > MAX_PHRASES:
                return None
            adverb = next(((m, v, n) for m, v, p in self.adverbs if (n := language.match(p, tokens, at))), None)
            if adverb:
                last = tokens[at + adverb[2] - 1]
                found.append(Phrase(adverb[0], (), (Token("word", adverb[1], tokens[at].start, last.end),)))
                at += adverb[2]
                continue
            said = language.match(language.dictation, tokens, at)
            topic = language.match(language.topics, tokens, at)
            if said or topic:
                rest = tokens[at + (said or topic) :]
                if not said and rest and rest[0].kind in {"money", "number"}:
                    return None  # "about 45 EUR" is a guess
                if rest and rest[0].kind == "quote":
                    found.append(Phrase("dictation", (), (rest[0],)))
                    at = len(tokens) - len(rest) + 1
                    continue
                if (
                    effect in {"send", "write"}
                    and self.texts
                    and self._dictated(rest, tokens[at + said - 1] if said else None)
                ):
                    return found, text[rest[0].start : rest[-1].end]
                return None
            if tokens[at].kind == "owner":  # "bob's password" is the password of bob
                found.append(Phrase("of", (), (tokens[at]._replace(kind=self.language.kind(tokens[at].text)),)))
                at += 1
                if at == len(tokens) or singular(tokens[at].lower) not in self.words:
                    return None
                continue
            if not found and (slot := self._slot(tokens)):
                found.append(slot[0])
                at = slot[1]
                continue
            joined = language.match(language.separators, tokens, at) if lists and found else 0
            if at + joined == len(tokens):
                return None
            chosen: list[Phrase] = []
            phrase, after = self._phrase(tokens, at + joined, chosen, text, lists=lists, part=part)
            if joined and (phrase is None or self.labels.isdisjoint(phrase.nouns)):
                return None
            telling = phrase is not None and (phrase.nouns or not phrase.values or phrase.kind in {"money", "date"})
            if effect == "pay" and not telling and tokens[at].lower in language.data["purpose"]:
                phrase, after = self._purpose(tokens, at + 1, text)
            if phrase is None and not chosen:
                told = effect == "send" and self.texts and any(p.values for p in found) and self._stated(tokens[at:])
                return (found, text[tokens[at].start : tokens[-1].end]) if told else None
            if phrase and found and not found[-1].values:
                phrase = replace(phrase, attached=True)
            found += [*chosen, *([phrase] if phrase else [])]
            at = after
            if phrase and phrase.marker in language.data["naming"] and len(found) > 1 and not found[-2].values:
                found[-2:] = [replace(phrase, nouns=found[-2].nouns + phrase.nouns)]  # "the service called X"
            if phrase and not phrase.marker and not phrase.nouns and phrase.values and phrase.kind == "number":
                counted, at = self._counted(tokens, at, text)
                found += counted
        return found, None

    def _command(self, tokens: Sequence[Token], text: str) -> Phrase | None:
        """Read a command without quotes: "git pull". All of it is plain words, to the end of the clause."""
        at = 0
        while at < len(tokens) and (
            tokens[at].lower in self.language.determiners or singular(tokens[at].lower) in self.words
        ):
            at += 1
        rest, closed = tokens[at:], self.language.closed
        plain = all(t.kind in {"word", "id", "number", "version"} and t.lower not in closed for t in rest)
        if not rest or not plain or rest[0].lower in self.language.framed or rest[0].kind not in {"word", "id"}:
            return None
        start, end = rest[0].start, rest[-1].end
        nouns = tuple(n for t in tokens[:at] if (n := singular(t.lower)) in self.words)
        return Phrase("", nouns, (Token("quote", text[start:end], start, end),), first=True)

    def _stated(self, tokens: Sequence[Token]) -> bool:
        """Return True for a clause of its own, which is dictated: "the cake is here"."""
        data, first = self.language.data, tokens[0].lower.partition("'")[0]
        said = any(t.lower in data["auxiliaries"] or "'" in t.lower for t in tokens)
        return (
            said and (first in data["subjects"] or first in self.language.determiners) and self._dictated(tokens, None)
        )

    def _dictated(self, tokens: Sequence[Token], by: Token | None) -> bool:
        """Return True if unquoted words are dictated to their end: no aside, and no time that may be the order's."""
        colon, whole = by is not None and by.kind == "colon", by is not None and by.lower == self.language.data["whole"]
        if any(
            (t.kind in {"sep", "colon"} and t.text != "&" and not colon) or not re.search(r"\w|,", t.text[:2])
            for t in tokens
        ):
            return False
        times = self.language.data["times"]
        return bool(tokens) and (whole or colon or not any(t.kind == "date" or t.lower in times for t in tokens[-2:]))

    def _phrase(
        self, tokens: Sequence[Token], at: int, chosen: list[Phrase], text: str, *, lists: bool, part: bool
    ) -> tuple[Phrase | None, int]:
        language, begin = self.language, at
        marker = tokens[at].lower if tokens[at].kind == "word" and tokens[at].lower in language.prepositions else ""
        if any(
            t.kind == "word" and t.text[0].isupper() and t.lower in language.determiners for t in tokens[at : at + 2]
        ):
            return None, begin  # "My" in "Delete My report.pdf" may be of the name
        at += bool(marker)
        nouns: list[str] = list(language.data["naming"].get(marker, ()))
        named = len(nouns)
        determiner = at
        while at < len(tokens) and tokens[at].lower in language.determiners:
            at += 1
        determined = at > determiner
        while at < len(tokens) and tokens[at].kind in {"word", "name"}:
            word = singular(tokens[at].lower)
            if choice := next((w for w in (tokens[at].lower, word) if w in self.choices), None):
                chosen.append(Phrase("choice", (), (tokens[at]._replace(text=choice),)))
            elif tokens[at].kind == "name" and not (tokens[at].text.isupper() and word in self.words):
                break  # "SQL" is a noun here, "Bob" is not
            elif chosen and chosen[-1].values[0].start == tokens[at - 1].start and word in self.labels:
                pass  # "high priority"
            elif word in self.words:
                nouns.append(word)
            elif (
                tokens[at].lower not in language.adjectives
                or singular(tokens[at + 1 : at + 2][0].lower if at + 1 < len(tokens) else "") not in self.words
            ):
                break
            at += 1
        person = language.data["person"]
        if (
            determined
            and len(nouns) == named
            and person in self.words
            and language.common(tokens[at : at + 1][0] if at < len(tokens) else tokens[-1])
            and at + 1 < len(tokens)
            and tokens[at + 1].kind == "name"
        ):
            nouns.append(person)  # "the plumber Arne Holm"
            at += 1
        labelled = len(nouns) > named
        valueless = at
        if labelled or determined:
            said = language.match(language.dictation, tokens, at)
            quoted = at + said < len(tokens) and tokens[at + said].kind == "quote"
            colon = at < len(tokens) and tokens[at].kind == "colon"
            at += language.match(language.copulas, tokens, at) or said * (quoted or colon)
        values: list[Token] = []
        while at < len(tokens):
            gap = language.match(language.separators, tokens, at) if lists and values else 0
            gap += language.match(language.separators, tokens, at + gap) if gap else 0
            if (values and not gap) or at + gap >= len(tokens):
                break
            told = labelled or (bool(marker) and marker not in language.data["setting"])
            token, after = self._value(tokens, at + gap, told=told)
            noun = token is not None and values and token.kind == "word" and singular(token.lower) in self.words
            if (
                token is None
                or noun
                or (values and _SORTS.get(token.kind, token.kind) != _SORTS.get(values[0].kind, values[0].kind))
            ):
                break
            follows = singular(tokens[after].lower) if after < len(tokens) else ""  # "the checkout service"
            whom = self._whom(tokens, at, part=part) or (follows in self.things if determined else bool(marker))
            whom = whom or (begin > 0 and tokens[determiner].lower in language.data["indefinite"])
            if token.kind == "word" and not (labelled or whom):
                break
            values.append(token)
            at = after
        if labelled and not values and at < len(tokens) and self.headings.issuperset(nouns):
            values = self._heading(tokens[at:], text)
            at += sum(values[0].start <= t.start < values[0].end for t in tokens[at:]) if values else 0
        if not values:
            at = valueless
        elif not marker and not nouns and determined and begin and tokens[begin].lower in language.data["indefinite"]:
            marker = language.data["setting"][1]  # "make her an admin"
        if values and determined and at < len(tokens) and tokens[at].kind == "word":
            trailing = singular(tokens[at].lower)
            if trailing in self.words:
                nouns.append(trailing)
                at += 1
        said = not values and labelled and bool(language.match(language.dictation, tokens, at))
        if chosen and not values and ((marker and not said) or not labelled):
            return None, at
        if at == begin or (not values and ((marker and not said) or not labelled)):
            return None, begin
        return Phrase(marker, tuple(nouns), tuple(values), begin == 0), at

    def _whom(self, tokens: Sequence[Token], at: int, *, part: bool) -> bool:
        """Return True if a lower-case word right behind the verb may be a value: "pay bob 45 eur"."""
        paid = any(t.kind == "money" for t in tokens)
        return at == 0 and (paid or not (part or self.effect == "pay"))

    def _slot(self, tokens: Sequence[Token]) -> tuple[Phrase, int] | None:
        """Read the name of a field that is set: "the price of record 18"."""
        at, to = int(tokens[0].lower in self.language.determiners), self.language.data["setting"][0]
        if not self.slot or at + 1 >= len(tokens) or tokens[at + 1].lower not in {*self.language.data["parting"], to}:
            return None
        known = not self.language.common(tokens[at]) or singular(tokens[at].lower) in self.words
        return None if known else (Phrase("slot", (), (tokens[at],)), at + 1)

    def _counted(self, tokens: Sequence[Token], at: int, text: str) -> tuple[list[Phrase], int]:
        """Read what a number counts: "3 toner cartridges"."""
        begin = at
        while at < len(tokens) and tokens[at].kind in {"word", "name"} and self._value(tokens, at)[0] is not None:
            at += 1
        if not 0 < at - begin < _NAMES:
            return [], begin
        start, end = tokens[begin].start, tokens[at - 1].end
        return [Phrase("counted", (), (Token("counted", text[start:end], start, end),))], at

    def _value(self, tokens: Sequence[Token], at: int, *, told: bool = False) -> tuple[Token | None, int]:
        token = tokens[at]
        common = told or self.language.common(token)  # a verb is a value only where a noun or a preposition tells so
        if not self.language.value(token) or (token.kind == "word" and not common):
            return None, at
        after = at + 1
        if token.kind == "name":
            while after < len(tokens) and tokens[after].kind == "name" and self.language.value(tokens[after]):
                after += 1
            if after - at > _NAMES:
                return None, at
        start, end = token.start, tokens[after - 1].end
        said = " ".join(t.text for t in tokens[at:after])
        return (
            (token._replace(text=said, end=end), after) if len(said) == end - start or after == at + 1 else (None, at)
        )

    def _heading(self, tokens: Sequence[Token], text: str) -> list[Token]:
        """Read the unquoted words of a subject or a reference."""
        parting, size = self.language.data["parting"], 0
        while size < len(tokens) and tokens[size].kind in {"word", "name", "number", "id"}:
            token = tokens[size]
            if not (
                self.language.value(token) or token.lower in self.language.months or (size and token.lower in parting)
            ):
                break
            size += 1
        if not 0 < size <= MAX_PURPOSE:
            return []
        start, end = tokens[0].start, tokens[size - 1].end
        return [Token("quote", text[start:end], start, end)]

    def _purpose(self, tokens: Sequence[Token], at: int, text: str) -> tuple[Phrase | None, int]:
        """Read what a payment is for. It goes into the payment's text, if there is one."""
        begin = at
        while at < len(tokens):
            token = tokens[at]
            month = token.lower in self.language.months
            fine = month or self.language.value(token) or (at == begin and token.lower in self.language.determiners)
            if not fine or token.kind in {"money", "date", "quote"} or token.lower in self.language.verbs:
                break
            at += 1
        if not 0 < at - begin <= MAX_PURPOSE or all(t.kind == "number" for t in tokens[begin:at]):
            return None, at
        token = Token(
            "purpose", text[tokens[begin].start : tokens[at - 1].end], tokens[begin].start, tokens[at - 1].end
        )
        return Phrase("purpose", (), (token,)), at
