"""Read the phrases of one clause, in one tool's vocabulary.

A phrase is a preposition, nouns and a value: "to the channel #ops". Nouns are the tool's own. A word that is neither noun
nor value nor in a closed list is left over, and the clause is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from langchain_runtime_authz.mandate.languages import Language, Token, singular

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
        things: of these, the ones whose argument is somebody or something.
        choices: values that the schema lists, in lower case.
        texts: True if the tool has a free-text argument.
        slot: True if one argument is the name of a field: "the price of record 18".
    """

    language: Language
    effect: str
    words: frozenset[str]
    labels: frozenset[str]
    things: frozenset[str]
    choices: frozenset[str]
    texts: bool
    slot: bool

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
        while at < len(tokens):
            if len(found) > MAX_PHRASES:
                return None
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
                whole = language.data["whole"] == tokens[at + said - 1].lower if said else False
                if effect in {"send", "write"} and self.texts and self._dictated(rest, whole=whole):
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
            phrase, after = self._phrase(tokens, at + joined, chosen, lists=lists, part=part)
            if joined and (phrase is None or self.labels.isdisjoint(phrase.nouns)):
                return None
            telling = phrase is not None and (phrase.nouns or not phrase.values or phrase.kind in {"money", "date"})
            if effect == "pay" and not telling and tokens[at].lower in language.data["purpose"]:
                phrase, after = self._purpose(tokens, at + 1, text)
            if phrase is None and not chosen:
                return None
            found += [*chosen, *([phrase] if phrase else [])]
            at = after
            if phrase and phrase.marker in language.data["naming"] and len(found) > 1 and not found[-2].values:
                found[-2:] = [replace(phrase, nouns=found[-2].nouns + phrase.nouns)]  # "the service called X"
            if phrase and not phrase.marker and not phrase.nouns and phrase.values and phrase.kind == "number":
                counted, at = self._counted(tokens, at, text)
                found += counted
        return found, None

    def _dictated(self, tokens: Sequence[Token], *, whole: bool) -> bool:
        """Return True if unquoted words are dictated to their end: no aside, and no time that may be the order's."""
        if any((t.kind in {"sep", "colon"} and t.text != "&") or not re.search(r"\w", t.text[:2]) for t in tokens):
            return False
        times = self.language.data["times"]
        return bool(tokens) and (whole or not any(t.kind == "date" or t.lower in times for t in tokens[-2:]))

    def _phrase(
        self, tokens: Sequence[Token], at: int, chosen: list[Phrase], *, lists: bool, part: bool
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
        determined = at < len(tokens) and tokens[at].lower in language.determiners
        at += determined
        while at < len(tokens) and tokens[at].kind in {"word", "name"}:
            word = singular(tokens[at].lower)
            if tokens[at].lower in self.choices:
                chosen.append(Phrase("choice", (), (tokens[at],)))
            elif tokens[at].kind == "name" and not (tokens[at].text.isupper() and word in self.words):
                break  # "SQL" is a noun here, "Bob" is not
            elif chosen and chosen[-1].values[0] is tokens[at - 1] and word in self.labels:
                pass  # "high priority"
            elif word in self.words:
                nouns.append(word)
            elif (
                tokens[at].lower not in language.adjectives
                or singular(tokens[at + 1 : at + 2][0].lower if at + 1 < len(tokens) else "") not in self.words
            ):
                break
            at += 1
        labelled = len(nouns) > named
        at += (labelled or determined) and at < len(tokens) and tokens[at].kind == "colon"
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
            if token.kind == "word" and not (labelled or whom):
                break
            values.append(token)
            at = after
        if values and determined and at < len(tokens) and tokens[at].kind == "word":
            trailing = singular(tokens[at].lower)
            if trailing in self.words:
                nouns.append(trailing)
                at += 1
        if chosen and not values and (marker or not labelled):
            return None, at
        if at == begin or (not values and (marker or not labelled)):
            return None, begin
        return Phrase(marker, tuple(nouns), tuple(values), begin == 0), at

    def _whom(self, tokens: Sequence[Token], at: int, *, part: bool) -> bool:
        """Return True if a lower-case word right behind the verb may be a value: "pay bob 45 eur"."""
        paid = any(t.kind == "money" for t in tokens)
        return at == 0 and (paid or not (part or self.effect == "pay"))

    def _slot(self, tokens: Sequence[Token]) -> tuple[Phrase, int] | None:
        """Read the name of a field that is set: "the price of record 18"."""
        at = int(tokens[0].lower in self.language.determiners)
        if not self.slot or at + 1 >= len(tokens) or tokens[at + 1].lower not in self.language.data["parting"]:
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
