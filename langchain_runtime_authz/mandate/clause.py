"""Read the words behind a tool's verb: cut them into phrases, and make steps.

A clause is a verb and phrases. A phrase is a preposition, nouns of the tool, and a value: "to the channel #ops".
A clause orders calls if each word belongs to a phrase, and the phrases have one assignment to the tool's arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile
from typing import Final

from langchain_runtime_authz.mandate.assignment import Assignment, Phrase, step_of
from langchain_runtime_authz.mandate.languages import NUMBER, Token, singular
from langchain_runtime_authz.mandate.model import Step
from langchain_runtime_authz.mandate.vocabulary import TARGETS, Tool

_MAX_PHRASES: Final = 8  # of one clause
_MAX_RUN: Final = 4  # words of one name


def aside(tool: Tool, rest: Sequence[Token], *, colon: bool) -> bool:
    """Return True if dictated words may hold something else: an aside, a final time."""
    data, prepositions = tool.language.data, tool.language.prepositions
    timed = not colon and any(t.kind == "date" or t.lower in data["times"] for t in rest[-2:])
    about = {singular(t.lower) for t in rest if t.lower not in prepositions}
    labelled = not about.isdisjoint({*data["about"], *(tool.labels - tool.spoken)})
    return timed or labelled or any(not re.search(r"\w|," if colon else r"\w", t.text[:2]) for t in rest)


class Clause:
    """Read the words behind a tool's verb. `single`: they are the whole clause."""

    def __init__(
        self, tool: Tool, verb: str, tokens: Sequence[Token], text: str, strange: AbstractSet[str], *, single: bool
    ) -> None:
        self.tool, self.verb, self.text, self.single = tool, verb, text, single
        self.language, self.data = tool.language, tool.language.data
        self.to, self.of = self.data["setting"][0], self.data["parting"][0]
        self.strange = strange - tool.words  # "to my notebook Home" names nobody
        self.tokens, self.at = [*tokens, Token("end", "", 0, 0)], 0
        self.found: list[Phrase] = []
        self.new = self.tokens[0].lower in self.data["indefinite"]
        self.made = self.new and verb in self.data["creating"]  # "Set up a standing order" changes nothing
        self.assignment = Assignment(tool, verb, self.found, new=self.made)

    def steps(self, digest: str) -> list[Step]:
        """Return the steps, one for each listed object; none if a word fits no phrase."""
        while self.tokens[self.at].kind != "end":
            taken = self._spoken(said) if (said := self._match("dictation")) else self._phrase()
            if not taken or len(self.found) > _MAX_PHRASES:
                return []
        return [step_of(self.tool, bound, digest) for bound in self.assignment.ways()]

    # --- phrases

    def _match(self, phrases: str, ahead: int = 0) -> int:
        return self.language.match(phrases, self.tokens, self.at + ahead)

    def _add(self, marker: str, nouns: Sequence[str], *values: Token, first: bool = False) -> bool:
        self.found.append(Phrase(marker, tuple(nouns), values, first))
        return True

    def _quote(self, begin: int, end: int, kind: str) -> Token:
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        return Token(kind, self.text[start:stop], start, stop)

    def _spoken(self, by: int) -> bool:
        """Read dictated words: a quotation, or the rest without an aside or a final time."""
        token, behind, rest = self.tokens[self.at], self.at + by, self.tokens[self.at + by : -1]
        if not rest or (self.found and not self.found[-1].values and token.lower in self.data["relatives"]):
            return False  # "the message that Carol wrote"
        if rest[0].kind == "quote":
            self.at = behind + 1
            return self._add("dictation", (), rest[0])
        told = {*self.data["tellings"], *self.data["asking"], *self.data["noting"], *self.data["answering"]}
        if token.lower in self.data["relatives"] and self.verb not in told:
            return False  # "Cancel the order O-5 that was late"
        polite = self.language.match("tails", rest, 1) + 1 == len(rest)
        if token.lower in self.data["relatives"] and (polite or rest[1].lower in self.language.prepositions):
            return False  # "Email Ana that report"
        colon = self.tokens[behind - 1].kind == "colon"
        if aside(self.tool, rest, colon=colon) or self.tool.effect not in {"send", "write"} or not self.tool.texts:
            return False
        self.at = len(self.tokens) - 1
        return self._add("dictation", (), self._quote(behind, self.at, "open"))

    def _phrase(self) -> bool:
        tool, data, begin = self.tool, self.data, self.at
        token, aside = self.tokens[begin], begin in {0, len(self.tokens) - 2}
        if aside and token.lower in tool.offers and token.lower in data["particles"]:  # "turn the light off"
            self.at += 1
            return self._add("", (), token._replace(kind="choice", text=tool.offers[token.lower]))
        self.at += (joined := self._match("separators") if self.found else 0)
        token = self.tokens[self.at]
        marker = token.lower if token.kind == "word" and token.lower in self.language.prepositions else ""
        self.at += bool(marker)
        idle = self.found[-1] if self.found and not self.found[-1].values else None
        called = self.found.pop().nouns if idle and marker in data["naming"] else ()  # "the service called X"
        determiner = lower if (lower := self.tokens[self.at].lower) in self.language.determiners else ""
        self.at += bool(determiner)
        self.at += bool(determiner) and self.tokens[self.at].lower == data["listing"]
        kind, new = self.tokens[self.at], begin == 0 and self.new
        rated = kind.lower not in self.language.closed or kind.lower.endswith(data["endings"][-1])  # "monthly"
        fresh = new and rated and singular(self.tokens[self.at + 1].lower) in tool.core
        if fresh and (choice := self._choice(kind)):  # "an urgent ticket"
            self.at += self._add("", (), kind._replace(kind="choice", text=choice))
        nouns: list[str] = []
        while self._noun(self.tokens[self.at]):
            nouns.append(singular(self.tokens[self.at].lower))
            self.at += 1
        labelled, behind = bool(nouns), self.at
        nouns = [*called, *data["naming"].get(marker, ()), *nouns]
        apart = joined and tool.spoken.isdisjoint(nouns)
        if apart and (marker or self.tokens[begin].text != ","):
            return False  # "the file a.txt, Carol"
        said = self._match("dictation") if labelled or determiner else 0
        known = tool.labels | tool.nouns if self.tokens[self.at + said].kind in {"id", "email"} else tool.labels
        colon = self.tokens[self.at].kind == "colon" and not (nouns and known.isdisjoint(nouns))
        self.at += said if colon or self.tokens[self.at + said].kind == "quote" else 0
        values = self._values(marker, labelled=labelled, determined=bool(determiner))
        if not values:
            self.at = behind
            self.assignment.numbered |= labelled and self.tokens[behind - 1].lower in self.tool.parts
            return labelled and not marker and self._add("", nouns, first=begin == 0)
        if self.tokens[self.at].kind == "own":  # "Ana's salary" is the salary of Ana
            own = [t.lower for t in takewhile(self._noun, self.tokens[self.at + 1 :])]
            self.at += 1 + len(own)
            plain = not re.search(r"\d", values[0].text)
            owner = values[0]._replace(kind="owner" if plain else values[0].kind)
            quoted = self.tokens[self.at].kind == "quote"  # in 'Ana's note "hi"', the note is hers
            one = own and singular(own[-1]) == own[-1] and not (marker or nouns or idle or quoted)
            return bool(one) and self._add("", own) and self._add(self.of, (), owner)
        titles, unsaid = data["naming"]["called"], not tool.texts and tool.labels.isdisjoint(nouns)
        if new and nouns and values[0].kind == "quote" and unsaid:  # 'Create an event "Lunch"' names no host
            nouns += titles if any(a.words <= {a.kind, *titles} for a in tool.arguments) else ()
        heading = begin == 0 and labelled and not determiner and self.tokens[behind].kind == "colon"
        if heading and values[0].kind != "quote":
            return False  # "Open tickets: T-1, T-2"
        if (idle and not (marker or nouns)) or (
            marker == self.of and (len(values) > 1 or not self._part(idle, nouns, values[0]))
        ):
            return False  # "the report R-1 of Bob" tells which one, and not to whom
        if labelled and values[0].kind == "number" and self.tokens[behind - 1].lower in tool.counted:
            return False  # "seat 12" is one seat
        if determiner in data["indefinite"] and values[0].kind not in {"quote", "choice"}:
            return False  # "a Math course" is one of many
        return (
            self._trailing(values, nouns, determined=bool(determiner))
            and (bool(nouns) or not apart)
            and self._add(marker, nouns, *values, first=begin == 0)
            and self._counted(self.found[-1])
        )

    def _part(self, idle: Phrase | None, nouns: Sequence[str], value: Token) -> bool:
        """Return True if "of" may follow: "the price of", "Pay 45 EUR of the order"."""
        if idle is not None:
            held = idle.nouns[-1] in self.data["held"]  # "the order of Green Tea" may be an order for tea
            person = value.kind == "email" or (held and value.kind == "name" and " " in value.text)
            known = {*idle.nouns} == self.tool.nouns and not self.new  # not "a photo of A-1", which is one of many
            own = person and known and self.verb in self.data["ending"]
            own |= (
                self.made and value.kind == "money" and self.tool.nouns.issuperset(idle.nouns)
            )  # "Make a payment of 45 EUR"
            whose = self.assignment.numbered and known
            own |= whose and (bool(nouns) or value.kind == "id")  # "the results of S-1"
            return own or bool(self.tool.argued(idle, relative=self.assignment.relative))
        last = self.found[-1] if self.found else Phrase("", (), ())
        if value.kind == "id" and last.kind == "number" and self.tool.counts and not last.marker:
            return True  # "Order 20 of SKU-118"
        named = self.tool.argued(last, relative=self.assignment.relative)
        counted = (
            last.nouns
            if last.kind == "number"
            else (nouns or last.nouns)
            and (last.kind == "version" or (last.kind == "money" and self.verb in self.data["drawing"]))
        )
        return bool(counted) and not any(a.kind in TARGETS for a in named)

    def _noun(self, token: Token) -> bool:
        """Return True if the token is a noun of the tool: "SQL" may be one, "Bob" is not."""
        plain = token.kind == "word" or (token.kind == "name" and token.text.isupper())
        return plain and singular(token.lower) in self.tool.words and not self._choice(token)

    def _choice(self, token: Token) -> str:
        """Return the schema's choice that a word names, or "": "Public Home" names none."""
        named = token.kind not in {"word", "name"} or (token.text[:1].isupper() and not token.text.isupper())
        return "" if named else self.tool.choices.get(token.lower, self.tool.choices.get(singular(token.lower), ""))

    def _chosen(self, at: int, marker: str, determined: bool) -> bool:
        """Return True if a choice stands where its argument may: "the editor role"."""
        data, before, behind = self.data, self.tokens[at - 1].lower, self.tokens[at + 1]
        indefinite, relative = before in data["indefinite"], self.assignment.relative
        if marker == data["acting"]:
            return self.verb in data["marking"] and (indefinite or not determined)  # "Mark J-1 as done"
        if marker in data["span"] and not determined:
            return True
        means = marker in data["by"] and not self.tool.offered(self.tokens[at].lower).isdisjoint(data["means"])
        if means and not determined:
            return True  # "Ship the order O-5 by UPS"
        if marker in self.assignment.places("environment") and self.tokens[at].lower in data["environments"]:
            return True
        made = indefinite and not marker and self.verb in data["making"]
        if made and (behind.kind == "end" or behind.lower in data["where"]):  # "make Ana an editor"
            return True
        labels = self.tool.offering
        named = before in labels or singular(behind.lower) in labels
        return named and marker in {"", data["companion"]} and not relative

    def _trailing(self, values: Sequence[Token], nouns: list[str], *, determined: bool) -> bool:
        """Read the noun behind a value: "the C-1 car". Return False for "22 ports"."""
        token, kind = self.tokens[self.at], values[0].kind
        if kind == "run" and singular(last := values[0].lower.split()[-1]) in self.tool.labels:
            nouns.append(last)  # "the garage door"
            return singular(last) == last
        noun = singular(token.lower)
        if token.kind != "word" or noun not in self.tool.words | self.tool.counted:
            return True
        if noun in self.data["roles"]["version"][1] and self.tokens[self.at + 1].kind in {"number", "version"}:
            return True  # "Deploy web-3 version 1.2"
        nouns.append(noun)
        self.at += 1
        if kind == "choice":  # in "the high priority ticket T-1", it tells which ticket
            of = self.tokens[self.at]
            return noun in self.tool.offering and (self.made or not (self._noun(of) or self.language.value(of)))
        fits = determined and noun == token.lower and noun not in self.tool.spoken
        return noun in self.tool.counted if kind == "number" else fits

    def _counted(self, phrase: Phrase) -> bool:
        """Read a number's currency or counted things: "45 EUR", "3 toner cartridges"."""
        data, money, token, begin = self.data, phrase.values[0], self.tokens[self.at], self.at
        coin = self.tool.coin
        if phrase.kind == "money" and coin:
            code = re.sub(NUMBER, "", money.text).strip()
            start = money.start + money.text.index(code)
            marker = phrase.marker if phrase.marker in self.data["setting"] else ""
            self._add(marker, coin, Token("word", self.data["currencies"][code], start, start + len(code)))
        elif phrase.kind != "number":
            return True
        elif coin and token.text in {*data["currencies"].values(), *data["tickers"]}:
            self.at += 1
            self._add("", coin, token)
        elif not (phrase.marker or phrase.nouns):
            while self.tokens[self.at].kind == "word" and self.language.value(self.tokens[self.at]):
                self.at += 1
            counted = [t.lower for t in self.tokens[begin : self.at]]
            if len(counted) == 1 and self.tokens[self.at].lower == self.of and counted[0] in data["roles"]["count"][1]:
                return self.tool.counts  # "20 units of SKU-118"
            if counted:
                self._add("", (), self._quote(begin, self.at, "counted"))
                plural = money.text == "1" or singular(counted[-1]) != counted[-1]  # "Order 12 late" is a report
                other = self.language.verbs.union(data["units"])  # "Order 27 inch monitors" does not say how many
                return plural and len(counted) <= _MAX_RUN and other.isdisjoint([*counted, *map(singular, counted)])
        return True

    def _values(self, marker: str, *, labelled: bool, determined: bool) -> list[Token]:
        """Return one value or a list; names make no list: "the board Sales and Marketing"."""
        values, gap = list[Token](), 0
        while gap or not values:
            token, after = self._value(self.at + gap, marker, labelled=labelled, determined=determined)
            if token is None or (values and token.kind != values[0].kind):
                break
            values.append(token)
            self.at = after
            gap = self._match("separators")
            gap += self._match("separators", gap) if gap else 0
            people = token.kind == "name" and " " in token.text and self.tokens[self.at].kind == "word"
            single = token.kind == "name" and " " not in token.text and len(values) > 1  # "Ana Lee and Sons"
            if single or (gap and token.kind in {"name", "run", "word", "choice"} and not people):
                return []
        return values

    def _plain(self, token: Token) -> bool:
        """Return True if a token may be a word of a name. A verb may not."""
        plain = token.kind == "name" or (token.kind == "word" and token.lower not in self.language.verbs)
        return plain and self.language.value(token)

    def _value(self, at: int, marker: str, *, labelled: bool, determined: bool) -> tuple[Token | None, int]:
        token, pay = self.tokens[at], self.tool.effect == "pay"
        if choice := self._choice(token):
            return (
                token._replace(kind="choice", text=choice) if self._chosen(at, marker, determined) else None
            ), at + 1
        told = labelled or (marker and marker not in self.data["setting"])
        if not self.language.value(token) or not (told or token.kind != "word" or self._plain(token)):
            return None, at
        after = at + 1
        while self._plain(token) and self._plain(self.tokens[after]):
            after += 1
        numbered = token.kind == "name" and self.tokens[after].kind == "number" and not self.tool.numbers
        after += numbered  # "Cottage 4"
        if after > at + 1:
            said, words = " ".join(t.text for t in self.tokens[at:after]), self.tokens[at : after - numbered]
            named = all(t.kind == "name" for t in words)  # "Ana Smith", but "porch light"
            token = self._quote(at, after, "name" if named else "run")
            first = not pay and all(p.kind == "choice" for p in self.found if p.values)
            fine = named or ((labelled or marker or first) and self.tokens[after].kind != "number")
            fine = fine and said == token.text and after - at <= _MAX_RUN and self._one(words, self.tokens[after])
            return (token if fine else None), after
        if token.kind == "word" and not labelled:
            paid = any(t.kind == "money" for t in self.tokens)
            alone = at == 0 and (paid or (self.single and not pay))  # "pay bob 45 eur"
            if token.lower in self.strange or determined or not (alone or marker):
                return None, at
        return token, after

    def _one(self, words: Sequence[Token], behind: Token) -> bool:
        """Return True if words are one name, unlike "web version 1.2", "manager Ana"."""
        labels, (first, *_), capitals = self.tool.labels, words, [t.kind == "name" for t in words]
        inner = words if self.language.value(behind) else words[:-1]
        strange = not all(capitals) and singular(first.lower) in self.strange
        mixed = any(capitals) and not all(capitals) and singular(words[-1].lower) not in labels  # "Netflix temporarily"
        strange = strange or mixed or capitals != sorted(capitals)[::-1]
        return labels.isdisjoint(singular(t.lower) for t in inner) and not strange
