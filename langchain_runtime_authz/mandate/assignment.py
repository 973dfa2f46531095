"""Assign a clause's phrases to a tool's arguments: which value is which argument.

Exactly one assignment may give each phrase an argument and each required argument a phrase. A phrase with a noun of
an argument is for that argument. Without one, its preposition and the kind of its value decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Final, NamedTuple

from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.model import Argument, Const, OneOf, Span, Step, Text
from langchain_runtime_authz.mandate.vocabulary import TARGETS, Argued, Tool

PATH: Final = re.compile(r"[/\\]|\.[a-z]{2,4}$")
_TRIES: Final = 2000  # assignments of phrases to arguments that are compared
_REGION: Final = 3  # letters of a word; fewer are a region's
COUNTS: Final = frozenset({"number", "integer", "boolean", "null"})  # JSON types that a text cannot have


class Phrase(NamedTuple):
    """A preposition, nouns, and a value or a list of values."""

    marker: str
    nouns: tuple[str, ...]
    values: tuple[Token, ...]
    first: bool = False

    @property
    def kind(self) -> str:
        return self.values[0].kind if self.values else ""


class Assignment:
    """Find which phrase (of `found`, behind `verb`) is which argument of `tool`."""

    def __init__(self, tool: Tool, verb: str, found: Sequence[Phrase], *, new: bool) -> None:
        self.tool, self.verb, self.found, self.data = tool, singular(verb), found, tool.language.data
        data = self.data
        self.to, self.of = data["setting"][0], data["parting"][0]
        self.told, self.relative = verb in data["tellings"], verb in data["relative"] and not new
        self.moving, self.dative = verb in data["moving"], verb in data["datives"]
        self.doing = next((doing for doing, verbs in data["doings"].items() if verb in verbs), tool.effect)
        self.pending: set[str] = set()  # arguments that wait for a new value: "the price of …"
        self.lacks = False  # only an argument is missing
        self.numbered = False  # the tool's noun stands alone, as the tool's name writes it

    def ways(self) -> list[dict[str, Phrase]]:
        """Return the assignments, one for each listed object; none if they are not clear.

        The key "" is the dictated text. A list for a single value gives one assignment each, but none with an amount.
        """
        tool, idle = self.tool, [p for p in self.found if not p.values]
        used, arguments = [p for p in self.found if p.values], {a.name: a for a in self.tool.arguments}
        quoted = any(p.kind == "quote" and p.marker == self.to for p in used) and self.relative
        self.pending = {a.name for p in idle for a in self._named(p) if a.kind != "text" or quoted}
        (head, *more) = [p for p in self.found if p.kind != "choice"] or [Phrase("", (), ())]
        nouns = {*head.nouns, *(n for p in more[:1] if not head.values and p.marker == self.of for n in p.nouns)}
        # "Order the item X" names the tool by its verb, and "Run the query X" has nothing else to run.
        other = tool.nouns - {self.verb} if any(a.kind in TARGETS for a in tool.arguments) else ()
        if tool.nested or (
            head.nouns and not head.marker and other and tool.alike(nouns).isdisjoint(tool.alike(tool.nouns))
        ):
            return []  # "Publish the course" does not publish its grades, but "the heat of the oven" is of the oven
        options = [[a.name for a in tool.arguments if self._fits(a, p)] for p in used]
        for n, phrase in enumerate(used):
            quote = phrase.kind == "quote" and len(phrase.values) == 1 and phrase.marker in {"dictation", ""}
            quote = quote and not self._named(phrase) and tool.core.issuperset(phrase.nouns)
            options[n] += [""] if phrase.kind == "open" or (quote and len(tool.mains) == 1) else []
        # A payment needs no text. A clause that tells somebody needs one.
        needed = {a.name for a in tool.arguments if a.required and (a.kind != "text" or tool.effect != "pay")}
        needed |= self.pending | (tool.texts if self.told else set())
        ways = [w for w in product(*options) if len({*w}) == len(w)] if prod(map(len, options)) <= _TRIES else []
        full = [way for way in ways if (needed - tool.texts if "" in way else needed).issubset(way)]
        self.lacks = bool(ways) and not full
        if len(full) != 1:
            return []
        found = dict(zip(full[0], used, strict=True))
        bare = {n for p in idle if not any(a.name in found for a in self._named(p)) for n in p.nouns}
        if not bare <= (tool.core if used else {*words_of(tool.name)} & tool.core):
            return []  # "Ping Kim the note" does not say which
        self.lacks = self._lacks(found, idle)
        if self.lacks or self._swapped(found):
            return []  # "Export my data" does not mean all of it
        several = [n for n, p in found.items() if len(p.values) > 1 and "array" not in arguments[n].types]
        kinds = {arguments[n].kind for n in found if n} if several else set()
        if len(several) > 1 or "amount" in kinds or not {arguments[n].kind for n in several} <= TARGETS:
            return []  # one event is not at two places
        return [{**found, n: found[n]._replace(values=(v,))} for n in several for v in found[n].values] or [found]

    def _lacks(self, found: Mapping[str, Phrase], idle: Sequence[Phrase]) -> bool:
        """Return True if whom or what is not said, though the schema has a default."""
        arguments, effect = [a for a in self.tool.arguments if a.role not in {"named_only", "source"}], self.tool.effect
        targets = [a for a in arguments if a.kind in TARGETS]
        people = [a for a in targets if a.kind in {"principal", "channel"}] if effect == "send" else []
        needed, said = people or targets, [a for a in targets if a.name in found]
        if needed and not any(a in said for a in needed):
            other = "" in found or any(a.kind in {"place", "url"} and a.name in found for a in arguments)
            return effect == "send" or not other
        unsaid = [a for a in targets if a.kind in {"object", "name"} and a not in said]
        spoken = [p for p in self.found if p.kind != "choice"]
        headed = bool(idle) and idle[0] is spoken[0] and "" not in found  # "Forward this email to Ana"
        headed = headed and all(found[a.name].marker for a in said)
        away = self.moving and any(a.role == "goal" and a.name not in found for a in arguments)
        told = effect == "send" and self.tool.texts.isdisjoint(found) and "" not in found  # "Send it to Kim"
        return away or (bool(unsaid) and (effect == "delete" or headed or told))

    def _swapped(self, found: Mapping[str, Phrase]) -> bool:
        """Return True for "Move the folder docs to the file a.zip": the file goes there."""
        order = [
            found[a.name] for a in self.tool.arguments if a.name in found and a.kind in {"object", "name", "place"}
        ]
        inward = [n for n, p in enumerate(order) if p.marker in self.data["inward"]]
        people = [
            found[a.name] for a in self.tool.arguments if a.name in found and a.kind == "principal" and a.receives
        ]
        if any(not p.marker for p in people) and any(p.marker == self.to for p in found.values()):
            return True  # "Reassign Ana to the lead L-5"
        moves = self.doing == "bring" or self.verb in self.data["adding"]
        return moves and any(not p.marker for n, p in enumerate(order) for at in inward if n > at)

    def _named(self, phrase: Phrase) -> list[Argued]:
        return self.tool.argued(phrase, relative=self.relative)

    def _fits(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True if an argument may take a phrase, by its nouns, kind and marker."""
        data, marker, kind, role, effect = self.data, phrase.marker, argument.kind, argument.role, self.tool.effect
        texts, named = {v.text for v in phrase.values}, argument in self._named(phrase)
        new = bool(self.pending) and marker in data["setting"] and not phrase.nouns
        if new != (argument.name in self.pending) or (new and (kind in TARGETS or self.dative)):
            return False  # a new value belongs to the argument that waits for it
        if (phrase.nouns and not named) or (argument.choices and not texts <= argument.choices):
            return False
        if phrase.kind == "choice":  # "Transfer 45 EUR from savings"
            return bool(argument.choices) and (role == "source") == (marker == data["span"][0])
        if any(self._doubts(argument, phrase)):
            return False
        if phrase.kind == "counted":
            own = {*data["counted"], singular(phrase.values[0].lower.split()[-1])}
            return kind == "object" and not role and self.tool.counts and not argument.words.isdisjoint(own)
        if phrase.kind not in {"number", "money"} and argument.types and argument.types <= COUNTS:
            return False
        kinds = [data["kinds"][kind], data["kinds"].get(role, ""), data["named"].get(kind, "") if named or new else ""]
        if not {*" ".join(kinds).split()}.issuperset(v.kind for v in phrase.values):
            return False
        if named and self.relative and not marker and (kind == "value" or not phrase.first):
            return False  # a new value stands behind "to"
        if kind == "amount" and not self._measured(argument, phrase, named=named, new=new):
            return False
        if kind == "principal" and not marker and self.verb in data["replacing"]:
            return False  # "Replace the teacher Ana in class C-5"
        if self.relative and kind in TARGETS and marker in data["setting"] and not phrase.nouns:
            return False  # "Change the manager Ana to Bob" changes nothing of Bob's
        if new or (kind in TARGETS and role != "goal" and marker == self.of):
            receives = effect in {"pay", "send"} or argument.receives
            whole = self.found[self.found.index(phrase) - 1]
            known = named or whole.kind == "number" or self._named(whole) or self._whose(argument, phrase)
            known = known or (kind == "principal" and phrase.kind != "id")
            mine = named and bool(phrase.nouns) and kind != "principal"  # "the volume of the speaker Kitchen"
            return new or ((argument.required or mine) and bool(known) and not (kind == "principal" and receives))
        if marker == data["parting"][1] and argument.required and self._whose(argument, phrase):
            return True
        if not named and self._beside(argument, phrase):
            return True
        if not named and not self._meant(argument, phrase):
            return False
        markers = {p.marker for p in self.found} if self.moving else {marker}
        if kind == "when" and marker in data["span"] and not self.moving:  # "from 3 June to 6 June"
            return marker == data["span"][role == "end"] and role in {"start", "end"} and self._spans()
        if marker in data["beginning"] and argument.words.isdisjoint(data["roles"]["start"][1]):
            return False  # "Approve the leave L-1 starting 3 June 2027"
        stays = self.relative and not self.moving and marker != self.to
        if role == "start" and (stays or (self.to in markers) != self.moving):
            return False  # "Move the meeting M-1 on 4 June 2027" does not say to when
        place = marker or ("first" if phrase.first or phrase.nouns else "later")
        whose = role if f"labelled {role}" in data["places"] else kind
        labels = [*self.places("labelled", whose), *data["naming"]] if named else []
        labels = [] if role == "source" else labels
        return place in [*self.places(role, kind), *labels]

    def _doubts(self, argument: Argued, phrase: Phrase) -> Iterator[bool]:
        """Yield True if a value looks like something else than the argument."""
        value, kind, bare = phrase.values[0], argument.kind, not (phrase.marker or phrase.nouns)
        last, others = singular(value.lower.split()[-1]), [p for p in self.found if p.values and p is not phrase]
        plain = phrase.kind in {"word", "run"}
        taken = kind == "principal" and phrase.marker == self.data["span"][0] and self.doing == "deprive"
        yield taken and self.found[self.found.index(phrase) - 1].kind != "choice"  # "Revoke the offer from Ana"
        yield kind in TARGETS and plain and not (bare or phrase.marker or last in argument.words)  # "the service desk"
        yield kind == "principal" and plain and (last != value.lower or last in self.data["collectives"])  # "the staff"
        yield (
            kind in {"principal", "place"} and phrase.kind == "name" and last.isdigit() and not phrase.nouns
        )  # "Sprint 3"
        yield kind != "principal" and phrase.kind == "name" and len(phrase.values) > 1  # "Salt Lake and Pepper Hill"
        alone = not any(p.kind not in {"", "date"} for p in others)
        yield (
            kind == "object" and alone and phrase.marker in {*self.data["where"], *self.data["inward"][1:]}
        )  # "Publish in page P-5"
        yield kind != "channel" and phrase.kind == "hash" and any(a.kind == "channel" for a in self.tool.arguments)
        several = bare and any(
            not (p.marker or p.nouns) and p.kind not in {"choice", "number", "money"} for p in others
        )
        yield kind == "name" and several  # "Label M-1 Taxes"
        yield kind == "object" and phrase.kind == "email" and not argument.words.isdisjoint(self.data["letters"])
        if plain and kind in TARGETS and not phrase.nouns:
            words, endings = value.lower.split(), tuple(self.data["endings"])
            yield last != words[-1] or any(w.endswith(endings) or w in self.data["manners"] for w in words)
            yield phrase.kind == "run" and self.tool.effect in {"delete", "admin"} and last not in self.tool.labels

    def _whose(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True for S-1 in "the results of S-1", if the tool is about results."""
        before, own = self.found[self.found.index(phrase) - 1], argument.words - {argument.kind, *self.data["generic"]}
        plain = argument.kind == "object" and not argument.role and bool(own) and own.isdisjoint(self.tool.nouns)
        about = before.first and not before.values and {*before.nouns} == self.tool.nouns
        about = about and self.numbered  # "the result" may be one of several
        return plain and about and (bool(phrase.nouns) or phrase.kind == "id")

    def _beside(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True for the list in 'Add "Africa" to "Road Trip"' of `add_track`."""
        targets = [a for a in self.tool.arguments if a.required and a.kind in TARGETS]
        first, data, nouns = self.found[0], self.data, self.tool.nouns
        if argument not in targets or not targets[1:] or targets[2:] or argument.role not in {"", "container"}:
            return False
        head = targets[argument is targets[0]]
        told = argument.words.isdisjoint(nouns) and not head.words.isdisjoint(nouns)
        told |= head.kind == "principal" and first.kind in {"email", "name"}
        takes = self.doing == "delete" or self.tool.effect == "delete"
        markers = (
            [data["span"][0]]
            if takes
            else [*data["inward"], *data["where"][:2]]
            if phrase.kind == "quote"
            else [self.to]
        )
        plain = argument.kind == "object" and not (self.relative or head.role or first.marker or phrase.nouns)
        acts = self.tool.effect in {"write", "admin", "delete"} and first.first and bool(first.values)
        return plain and told and acts and phrase.marker in markers and phrase.kind in {"quote", "id"}

    def _spans(self) -> bool:
        """Return True for two dates behind a verb like "book": "from 3 June to 6 June"."""
        dates = [p.marker for p in self.found if p.kind == "date"] == self.data["span"]
        return dates and self.verb in self.data["lasting"] and all(p.values or p.first for p in self.found)

    def _measured(self, argument: Argued, phrase: Phrase, *, named: bool, new: bool) -> bool:
        """Return True if a number may be this amount: a new value, a count or a payment."""
        new |= named and phrase.marker == self.to
        if new and not argument.words.isdisjoint(self.data["deltas"]):
            return False  # "Change the limit to 500" fills no `limit_delta`
        paid = self.paid_in(argument, phrase.values[0].text)
        if len(phrase.values) > 1 or (phrase.kind == "money" and not paid):
            return False
        if new or self.tool.effect == "pay":  # "Send 45 to Bob" fills no `hours`
            return new or named or phrase.kind == "money" or (phrase.first and (paid or argument.role == "count"))
        guests = self.verb in self.data["lasting"] and self.tool.counted.issuperset(phrase.nouns)  # "for 2 guests"
        plain = not phrase.marker or guests
        return named and plain and phrase.kind == "number" and not self.relative

    def paid_in(self, argument: Argued, money: str) -> bool:
        """Return True if an argument is an amount of this money, or of any: no code."""
        data, words, called = self.data, {*words_of(argument.name)}, {*words_of(self.tool.name)}
        coins, code = {c.lower() for c in data["currencies"].values()}, re.sub(NUMBER, "", money).strip()
        told = {data["currencies"][code].lower()} if code else coins
        foreign = coins.union(c.lower() for c in data["tickers"]) - told
        if not self.tool.coin:  # `send_points` pays no EUR
            foreign |= {*data["unpaid"]}.difference(*(a.words for a in self.tool.arguments if a.kind != "amount"))
        named = told.union(data["moneyed"])
        known = named.union(data["sizing"], called, self.tool.language.prepositions)
        return foreign.isdisjoint(words | called) and words <= known and not words.isdisjoint(named)

    def _meant(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True if a value without a noun may be this argument."""
        data, kind, role, marker = self.data, argument.kind, argument.role, phrase.marker
        where, said, effect = marker in data["where"], phrase.values[0].text, self.tool.effect
        identified = phrase.kind == "id"
        if kind == "channel":
            said_so = bool(marker) and phrase.kind != "word" and (not where or phrase.kind == "handle")
            return said_so or (phrase.kind == "hash" and (bool(marker) or phrase.first))
        if where and (kind == "place" or role == "venue"):
            parts = {p for p in said.lower().split("-") if len(p) >= _REGION and not p.isdigit()}  # "prod-eu"
            known = role == "environment" and bool(parts) and parts <= {*data["environments"]}
            before = self.found[
                self.found.index(phrase) - 1
            ].kind  # "Women in Tech", "Ana at Acme", "the Hilton in Rome"
            return (
                known or (role == "venue" and phrase.kind != "word" and said not in data["no_places"])
            ) and before not in {
                "name",
                "run",
                "word",
            }
        if role == "container":
            return bool(marker) and any(p.nouns for p in self.found)
        if effect == "read" and kind in TARGETS:  # other tools may know a thing with the same name
            return role == "file" and all(re.search(r"[./\\]", v.text) for v in phrase.values)
        if kind == "object" and marker and role != "source" and not identified:
            return False  # "port 80 on web-3"
        if kind == "object" and "id" in argument.words and identified and PATH.search(said):
            return False
        if kind == "principal":
            behind = self.found[self.found.index(phrase) - 1] if phrase is not self.found[0] else phrase
            gives = self.dative or self.doing in {"bring", "share"} or self.verb in {*data["asking"], *data["tellings"]}
            if marker == self.to and not (behind.values or gives or effect == "pay"):
                return False  # "Cancel my subscription to Netflix"
            person = {"email", "handle", "name"} if marker == data["companion"] else {*data["kinds"][kind].split()}
            person -= set() if effect == "send" and marker else {"word"}  # "Pay rent 900 EUR", "Message received: hi"
            acronym = effect != "pay" and said.isupper() and not re.search(r"\s", said)  # "Disable SSO"
            numbered = acronym or (
                identified and re.search(r"[/\\.]" if effect == "pay" else r"[/\\.\d_-]", said)
            )  # "Add S-4 to P-4"
            if phrase.kind not in person or numbered or (effect == "pay" and not argument.required):
                return False
        told = kind in {"principal", "object"} and (self.tool.apart or (kind, effect) == ("object", "pay"))
        return not told or all(_somebody(v) == (kind == "principal") for v in phrase.values)

    def places(self, *names: str) -> Sequence[str]:
        """Return the positions: of the first name with the verb, the effect or alone."""
        places = self.data["places"]
        keys = (
            f"{key}{of}" for key in (" ".join(names), *names) for of in (f" {self.doing}", f" {self.tool.effect}", "")
        )
        return next(places[key].split() for key in keys if key in places)


def _somebody(token: Token) -> bool:
    """Return True if a value looks like a person's or firm's name or account."""
    if token.kind == "id":
        return token.text.replace("_", "").isalpha() or any(f.startswith("iban:") for f in forms(token.text))
    return token.kind in {"email", "name", "word", "handle"}


def step_of(tool: Tool, bound: Mapping[str, Phrase], digest: str) -> Step:
    """Return the step. A quotation without a label is the whole main text."""
    args: dict[str, Argument] = {}
    for argument in tool.arguments:
        name, text = argument.name, argument.kind == "text"
        if (phrase := bound.get(name, bound.get("") if text else None)) is not None:
            free = text and (phrase.kind == "open" or (name not in bound and name not in tool.mains))
            args[name] = Text(quote=(phrase.values[0].text,)) if free else _const(argument, phrase, digest)
    return Step(id="?", tool=tool.name, args=args)


def _const(argument: Argued, phrase: Phrase, digest: str) -> Const | OneOf:
    """Return the value with its span, or both readings of "the garage door"."""
    values, array = tuple(v.text for v in phrase.values), "array" in argument.types
    if argument.kind == "amount" and phrase.kind != "choice":
        number = re.findall(NUMBER, values[0])[0]
        start = phrase.values[0].start + values[0].index(number)
        return Const(
            value=read_number(number, money=phrase.kind == "money") or 0, said=Span(digest, start, start + len(number))
        )
    if argument.types - {"null"} == {"boolean"}:
        return Const(value=values[0] == "true", said=Span(digest, phrase.values[0].start, phrase.values[0].end))
    said, _, noun = values[0].rpartition(" ")
    if phrase.kind == "run" and singular(noun.lower()) in argument.words and not array:
        return OneOf(values=(values[0], said))  # "garage door" and "garage"
    return Const(value=values if array else values[0], said=Span(digest, phrase.values[0].start, phrase.values[-1].end))
