"""Find the one way to give each phrase of a clause to an argument of one tool.

Nouns are from the tool's name, its arguments and its `intent`. A noun that names an argument decides; else the
preposition and the kind do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from math import prod
from typing import Final

from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.model import Argument, Const, OneOf, Scalar, Span, Step, Text
from langchain_runtime_authz.mandate.phrases import Phrase
from langchain_runtime_authz.mandate.vocabulary import Argued, Vocabulary

_COUNTS: Final = frozenset({"number", "integer", "boolean", "null"})  # types that no text has
_TRIES: Final = 2000  # assignments looked at
# What may stand for an argument of a kind; behind a noun that names it, more may.
_PLAIN: Final = {
    "principal": "email id name handle word",
    "url": "url",
    "object": "id name quote handle hash word run",  # "Cancel 2" may be how many
    "name": "id name quote hash run",
    "channel": "hash handle id name quote word",
    "amount": "money number",
    "place": "name quote word id common run",
    "value": "quote",
    "when": "date",
    "text": "",
}
_NAMEABLE: Final = frozenset({"principal", "object", "name", "channel"})
_KINDS: Final = {kind: frozenset(of.split()) for kind, of in _PLAIN.items()}
_NAMED: Final = {
    **{k: _KINDS[k] | {"word", "number", "email", "quote"} for k in (*_NAMEABLE, "place")},
    "value": frozenset().union(*_KINDS.values(), {"version"}),
    "text": frozenset({"quote"}),
}


def _somebody(token: Token) -> bool:
    """Return True if a value looks like the name or the account of somebody, and not like that of a thing."""
    if token.kind == "id":
        return token.text.replace("_", "").isalpha() or any(f.startswith("iban:") for f in forms(token.text))
    return token.kind in {"email", "name", "word", "handle"}


class Tool(Vocabulary):
    """A tool, and how its arguments take the phrases of a clause."""

    def bind(self, phrases: Sequence[Phrase], verb: str) -> list[dict[str, Phrase]]:
        """Return the one assignment of all phrases to arguments. `""` is the dictated text.

        A list for an argument that takes one value makes several assignments, but never shares an amount.
        """
        data = self.language.data
        self.dative, self.relative, self.moving = (verb in data[n] for n in ("datives", "relative", "moving"))
        idle, used = [p for p in phrases if not p.values], [p for p in phrases if p.values]
        pending = {a.name for p in idle for a in self._named(p)}
        foreign = {a.name for p in idle if not self.core.issuperset(p.nouns) for a in self._named(p)}
        self.waiting = frozenset(pending)
        pending = foreign or pending
        if not phrases or phrases[0].marker in data["parting"]:
            return []
        if any(q.marker in data["parting"] and (p.values or not self._named(p)) for p, q in pairwise(phrases)):
            return []  # "the report R-1 of Bob" tells which one, and not to whom
        meant = {n for p in phrases[:1] if not p.marker for n in p.nouns}
        if meant and not phrases[0].values and phrases[1:] and phrases[1].marker in data["parting"]:
            meant.update(phrases[1].nouns)  # "the heat of the oven"
        if meant and self.nouns and meant.isdisjoint(self.nouns):
            return []  # "Publish the course" does not publish its grades
        used += [self._currency(p) for p in used if p.kind == "money" and self.currency]
        described = any(p.nouns or (p.values and p.kind == "version") for p in phrases)
        spoken = {a.name for a in self.arguments if a.required and a.kind != "text"}  # what dictated words do not fill
        needed = spoken | {
            a.name for a in self.texts if verb in data["tellings"] or (a.required and self.effect != "pay")
        }
        options: list[list[str]] = []
        for phrase in used:
            fit = [a.name for a in self.arguments if self._fits(a, phrase, pending, described=described)]
            if foreign and phrase.marker in data["setting"] and not phrase.nouns:
                fit = [name for name in fit if name in foreign]  # "set the status to closed"
            options.append([*fit, ""] if self._spoken(phrase) else fit)
        if self.nested or prod(map(len, options)) > _TRIES:
            return []
        ways = (way for way in product(*options) if len({*way}) == len(way))
        complete = [way for way in ways if (spoken if "" in way else needed).issubset(way)]
        if len(complete) != 1:
            return []
        found, kinds = dict(zip(complete[0], used, strict=True)), {a.name: a for a in self.arguments}
        bare = {n for p in idle if not any(a.name in found for a in self._named(p)) for n in p.nouns}
        several = [n for n, p in found.items() if len(p.values) > 1 and not kinds[n].array]
        shared = several and any(n and kinds[n].kind == "amount" for n in found)
        shared = shared or any(kinds[n].kind not in _NAMEABLE for n in several)  # one event is not at two places
        targets = [a for a in self.arguments if a.kind in _NAMEABLE and not a.required and a.name not in found]
        if targets and (not found or any(a.kind == "object" for a in targets)):
            return []  # "Export my data" does not mean all of it
        # A verb alone orders nothing, and a noun that only names an argument wants a value.
        if not used and not bare <= {*words_of(self.name)}:
            return []
        if not (bare <= self.core and (used or bare)) or len(several) > 1 or shared:
            return []
        return [{**found, n: replace(found[n], values=(v,))} for n in several for v in found[n].values] or [found]

    def _currency(self, phrase: Phrase) -> Phrase:
        """Return the currency of a phrase of money as a phrase of its own."""
        money = phrase.values[0]
        code = re.sub(NUMBER, "", money.text).strip()
        start = money.start + money.text.index(code)
        return Phrase(
            "", ("currency",), (Token("word", self.language.data["currencies"][code], start, start + len(code)),)
        )

    def vague(self, bound: Mapping[str, Phrase]) -> bool:
        """Return True if something is named without saying what it is: other tools may have one of that name."""
        for argument in self.arguments:
            phrase = bound.get(argument.name)
            if phrase is None or phrase.nouns:
                continue
            paths = argument.role == "file" and all(re.search(r"[./\\]", v.text) for v in phrase.values)
            somebody = argument.kind == "principal" and self.effect not in {"pay", "send"}
            if somebody or (argument.kind in {"object", "name"} and not paths):
                return True
        return False

    def _named(self, phrase: Phrase) -> list[Argued]:
        """Return the arguments that the phrase's nouns name."""
        named = [a for a in self.arguments if not a.words.isdisjoint(phrase.nouns)]
        targets = [a for a in self.arguments if a.kind in _NAMEABLE]
        if named or len(targets) != 1 or not phrase.values or {*phrase.nouns} != self.nouns or not self.nouns:
            return named
        generic = {*self.language.data["arguments"]["generic"]}
        return [a for a in targets if not generic.isdisjoint(a.words)]  # "the user session 12" is its id

    def _spoken(self, phrase: Phrase) -> bool:
        if phrase.marker == "open":
            return True
        if not self.texts or phrase.kind != "quote" or len(phrase.values) > 1 or self._named(phrase):
            return False
        return phrase.marker in {"dictation", ""} and self.core.issuperset(phrase.nouns)

    def _fits(self, argument: Argued, phrase: Phrase, pending: set[str], *, described: bool) -> bool:
        """Return True if an argument may take a phrase: by its nouns, its kind, and where it stands."""
        data, marker, kind, role = self.language.data, phrase.marker, argument.kind, argument.role
        named, texts = self._named(phrase), {v.text for v in phrase.values}
        if marker == "choice":
            return texts <= {*argument.choices}
        if marker == "counted":
            return kind == "object" and not role and self.counts
        if marker == "open":
            return False
        linked = marker in data["setting"] or marker == "dictation"
        linked &= not (self.dative and marker == data["setting"][0])  # "grant editor to jdoe"
        marker = "" if marker == "dictation" and not self.texts else marker
        countable = phrase.kind in {"number", "money"} or not argument.types or not argument.types <= _COUNTS
        chosen = not argument.choices or texts <= {*argument.choices}
        if marker == "dictation" or (phrase.nouns and argument not in named) or not (countable and chosen):
            return False
        if named and self.relative and not marker and (kind == "value" or not phrase.first):
            return False  # a new value stands behind "to"
        # "Give X access to Y": if no noun tells the roles, a person is not taken for a thing.
        told = named or (kind == "object" and role == "container" and marker)
        doubtful = (
            kind in {"principal", "object"} and not told and (self.apart or (kind, self.effect) == ("object", "pay"))
        )
        if doubtful and any(_somebody(v) != (kind == "principal") for v in phrase.values):
            return False
        set_to = argument.name in pending and not phrase.nouns and linked
        kinds = (_NAMED if named or set_to else _KINDS).get(kind, _KINDS[kind])
        kinds = kinds | {"number", "version", "id"} if role == "version" else kinds
        if not kinds.issuperset(v.kind for v in phrase.values) or (role == "count" and phrase.kind == "money"):
            return False
        if kind in _NAMEABLE and argument.name in self.waiting and not named and marker not in {"", *data["naming"]}:
            return False  # "the courier of Bob" is not Bob
        if kind == "principal" and not named and not self._somebody_here(argument, phrase):
            return False
        if role == "start" and marker == data["setting"][0] and not self.moving:
            return False
        if kind == "amount" and not self._measured(argument, phrase, named=bool(named), pending=set_to):
            return False
        if set_to:
            return True
        place = marker or ("first" if phrase.first or phrase.nouns else "later")
        if kind in _NAMEABLE and role != "goal" and marker == data["parting"][0]:
            # "the status of T-4" is another argument of T-4; "the mail of Bob" is not a mail named Bob.
            sent = kind == "principal" and self.effect in {"pay", "send"}  # "the report of the reader Kim"
            return (
                described and argument.required and not sent and (argument.name not in pending or kind == "principal")
            )
        if named and role != "source":
            return place in {*self._places("labelled", kind), *self._places(role, kind), *data["naming"]}
        if kind == "channel" and not marker and phrase.kind != "hash":
            return False
        if role == "container" and kind == "object":
            # "draft.txt in Documents" is a row of no table: a noun must tell what is meant.
            return place in self._places(role) if marker and described else place in self._places(kind) and self.alone
        return place in self._places(role, kind)

    def _somebody_here(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True if a value may be this person: a carrier or an owner is another, a plain word rarely one."""
        if phrase.kind in {"word", "common"} and self.effect not in {"pay", "send"}:
            return False
        if self.effect == "pay" and not argument.required:
            return False  # "Order 3 pens to Bob" does not make him the supplier
        others = any(a is not argument and a.required and a.kind in {"place", "principal"} for a in self.arguments)
        return not others or phrase.marker not in self.language.data["parting"]

    def _measured(self, argument: Argued, phrase: Phrase, *, named: bool, pending: bool) -> bool:
        """Return True if a number may be this amount: it is labelled or counted, or stands behind the verb of a payment."""
        if phrase.kind == "money":
            return not argument.words.isdisjoint(self.language.data["moneyed"]) and (
                pending or self.effect == "pay" or (named and phrase.marker in self.language.data["setting"])
            )
        counted = named and not phrase.marker and not self.relative and self.counted.issuperset(phrase.nouns)
        if self.effect == "pay":
            return named or pending or phrase.first
        return counted or pending or (named and phrase.marker in self.language.data["setting"])

    def _places(self, *names: str) -> Sequence[str]:
        """Return where the first of the names that has places may stand: prepositions, `first` or `later` without one."""
        places = self.language.data["places"]
        keys = (f"{key}{effect}" for key in (" ".join(names), *names) for effect in (f" {self.effect}", ""))
        return next(places[key].split() for key in keys if key in places)

    def step(self, bound: Mapping[str, Phrase], digest: str) -> Step:
        """Return the step: values with their spans, and the dictated words for texts."""
        args: dict[str, Argument] = {}
        for argument in self.arguments:
            phrase = bound.get(argument.name, bound.get("") if argument.kind == "text" else None)
            if phrase is not None and argument.kind == "text":
                args[argument.name] = Text(quote=(phrase.values[0].text,))
            elif phrase is not None:
                args[argument.name] = self._const(argument, phrase, digest)
        return Step(id="?", tool=self.name, args=args)

    @staticmethod
    def _const(argument: Argued, phrase: Phrase, digest: str) -> Const | OneOf:
        said, _, noun = phrase.values[0].text.rpartition(" ")
        if phrase.kind == "run" and singular(noun.lower()) in argument.words and not argument.array:
            return OneOf(values=(phrase.values[0].text, said))  # "the garage door" is "garage" or "garage door"
        values: list[Scalar] = []
        start, end = phrase.values[0].start, phrase.values[-1].end
        for token in phrase.values:
            number = re.search(NUMBER, token.text) if token.kind in {"money", "number"} else None
            read = read_number(number[0]) if number else None
            if number is None or read is None:
                values.append(token.text)
            else:
                values.append(read if argument.kind == "amount" or token.kind == "money" else token.text)
                if len(phrase.values) == 1 and token.end - token.start == len(token.text):
                    start, end = token.start + number.start(), token.start + number.end()
        return Const(value=tuple(values) if argument.array else values[0], said=Span(digest, start, end))
