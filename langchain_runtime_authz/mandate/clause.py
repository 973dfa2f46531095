"""Read one clause for one tool: assign its phrases to the tool's arguments.

A clause is a verb and phrases. A phrase is a preposition, nouns of the tool, and a value: "to the channel #ops". The
nouns name the phrase's argument, or without nouns the preposition and the kind of the value do. A clause orders calls
if each word belongs to a phrase, and one assignment gives each phrase an argument and each required argument a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.mandate.languages import NUMBER, PARTS, Language, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.model import Argument, Const, OneOf, Span, Step, Text
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_NAME: Final = 128  # characters of a tool's or an argument's name
_MAX_PHRASES: Final = 8  # of one clause
_MAX_RUN: Final = 4  # words of one name
_TRIES: Final = 2000  # assignments of phrases to arguments that are compared
_COUNTS: Final = frozenset({"number", "integer", "boolean", "null"})  # JSON types that a text cannot have
TARGETS: Final = frozenset({"principal", "object", "name", "channel"})  # kinds that say whom or what a call affects


@dataclass(frozen=True, slots=True)
class Argued:
    """An argument of a tool, and the words that name the argument."""

    name: str
    kind: str  # by the profile: a critical kind, `when` or `text`; else `value`
    words: frozenset[str]
    role: str
    required: bool
    choices: frozenset[str]
    types: frozenset[str]  # JSON types; empty if the schema has none


class Phrase(NamedTuple):
    """A preposition, nouns, and a value or a list of values."""

    marker: str
    nouns: tuple[str, ...]
    values: tuple[Token, ...]
    first: bool = False

    @property
    def kind(self) -> str:
        return self.values[0].kind


def _listed(value: object) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


def _mapped(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class Tool:
    """A tool's verbs, nouns and arguments in one language."""

    def __init__(self, name: str, profile: ToolProfile, schema: Mapping[str, Any], language: Language) -> None:
        self.name, self.profile, self.schema, self.language = name, profile, schema, language
        self.effect, data = profile.effect, language.data
        self.arguments: list[Argued] = []
        self.properties = _mapped(schema.get("properties"))
        enums = (p["enum"] for p in self.properties.values() if isinstance(p, Mapping) and _listed(p.get("enum")))
        self.offers = {c.lower(): c for enum in enums for c in enum if isinstance(c, str)}
        parts = [w.lower() for w in PARTS.findall(name)]
        verbs = parts[:1]  # a name begins with its verb: "loan_book" books nothing
        if verbs == [data["carrier"]]:  # both words of "send_email" may ask for the tool
            verbs += [w for w in parts[1:2] if w in language.verbs]
        said = profile.intent or [v for v in verbs if v in language.verbs or v not in language.closed]
        entries = {tuple(i.lower().split()) for i in said} - {()}
        self.entries = {e for e in entries if e[0] not in data["not_verbs"]}
        small = language.prepositions.union(language.determiners, data["particles"])
        self.nouns = {singular(w) for w in parts[1:]} - small
        # If the tool tells or notes something, the words behind its clause may be the text.
        texts = self.effect == "send" or (self.effect == "write" and (profile.text or profile.free))
        self.tells = bool(texts) or not {*parts, *(w for e in self.entries for w in e)}.isdisjoint(data["noting"])

    def prepare(self) -> None:
        """Compute the arguments. This is done only for a tool whose verb fits."""
        if self.arguments:
            return
        profile, data, needed = self.profile, self.language.data, _listed(self.schema.get("required"))
        inner = {n.partition(".")[0] for n in profile.critical if "." in n}
        kinds = {n: "value" for n in self.properties if isinstance(n, str) and n not in inner.union(profile.free)}
        kinds |= {n: k for n, k in profile.critical.items() if "." not in n}
        kinds |= dict.fromkeys(profile.when, "when") | dict.fromkeys(profile.text, "text")
        self.apart = {"principal", "object"} <= {*kinds.values()}
        self.alone = sum(kind in TARGETS for kind in kinds.values()) == 1
        self.arguments = [self._argued(name, kind, needed) for name, kind in kinds.items()]
        self.nested = any(n in (needed or ()) for n in inner) or any(len(n) > MAX_NAME for n in kinds)  # orders nothing
        self.core = self.nouns.union(*(map(singular, e[1:]) for e in self.entries)) - self.language.closed
        self.labels = frozenset[str]().union(*(a.words for a in self.arguments))
        self.words = (self.core | self.labels) - self.language.closed
        self.texts = {a.name for a in self.arguments if a.kind == "text"}
        self.mains = {n for n in self.texts if {*words_of(n)}.isdisjoint(data["headings"])} or self.texts
        self.spoken = frozenset[str]().union(*(a.words for a in self.arguments if a.kind == "text"))
        small = self.language.stops | self.language.determiners | self.language.prepositions
        self.choices = {word: choice for word, choice in self.offers.items() if word not in small}
        self.counts = any(a.role == "count" for a in self.arguments)
        # "5 replicas" is the amount `replicas`, but "22 ports" is not the port 22.
        counted = (a for a in self.arguments if a.kind == "amount" and (a.name.endswith("s") or a.role == "count"))
        self.counted = frozenset[str]().union(*(a.words for a in counted))

    def _argued(self, name: str, kind: str, needed: Sequence[Any] | None) -> Argued:
        data, words = self.language.data, {*words_of(name)}
        roles = [r for r, (of, said) in data["roles"].items() if kind in (of or kind).split() and words & {*said}]
        role = roles[0] if roles else "start" if kind == "when" and len(self.profile.when) == 1 else ""
        role = "" if role == "container" and self.alone else role
        given = _mapped(self.properties.get(name))
        options = [given, *map(_mapped, _listed(given.get("anyOf")) or ())]
        types = frozenset(t for o in options if isinstance(t := o.get("type"), str))
        required = name in needed if needed is not None else kind not in {"when", "text"} and role != "named_only"
        choices = frozenset(c for c in _listed(given.get("enum")) or () if isinstance(c, str))
        return Argued(name, kind, frozenset((*words, kind)), role, required, choices, types)


class Clause:
    """Read the words behind a tool's verb. `single`: they are the whole clause."""

    def __init__(
        self, tool: Tool, verb: str, tokens: Sequence[Token], text: str, strange: AbstractSet[str], *, single: bool
    ) -> None:
        self.tool, self.text, self.single = tool, text, single
        self.language, self.data = tool.language, tool.language.data
        self.to, self.of = self.data["setting"][0], self.data["parting"][0]
        self.told, self.relative = verb in self.data["tellings"], verb in self.data["relative"]
        self.moving, self.dative = verb in self.data["moving"], verb in self.data["datives"]
        self.strange = strange - tool.words  # "to my notebook Home" names nobody
        self.tokens, self.at, self.lacks = [*tokens, Token("end", "", 0, 0)], 0, False  # lacks only an argument
        self.found: list[Phrase] = []
        self.pending: set[str] = set()  # arguments that wait for a new value: "the price of …"

    def steps(self, digest: str) -> list[Step]:
        """Return the steps, one for each listed object; none if a word fits no phrase."""
        while self.tokens[self.at].kind != "end":
            taken = self._spoken(said) if (said := self._match("dictation")) else self._phrase()
            if not taken or len(self.found) > _MAX_PHRASES:
                return []
        return [self._step(bound, digest) for bound in self._bind()]

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
        colon = self.tokens[behind - 1].kind == "colon"
        aside = any(not re.search(r"\w|," if colon else r"\w", t.text[:2]) for t in rest)
        timed = not colon and any(t.kind == "date" or t.lower in self.data["times"] for t in rest[-2:])
        if aside or timed or self.tool.effect not in {"send", "write"} or not self.tool.texts:
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
        nouns: list[str] = []
        while self._noun():
            nouns.append(singular(self.tokens[self.at].lower))
            self.at += 1
        labelled, behind = bool(nouns), self.at
        nouns = [*called, *data["naming"].get(marker, ()), *nouns]
        if joined and tool.spoken.isdisjoint(nouns):
            return False  # "the file a.txt, Carol"
        said = self._match("dictation") if labelled or determiner else 0
        colon = self.tokens[self.at].kind == "colon" and not (nouns and tool.labels.isdisjoint(nouns))
        self.at += said if colon or self.tokens[self.at + said].kind == "quote" else 0
        values = self._values(marker, labelled=labelled, determined=bool(determiner))
        if not values:
            self.at = behind
            return labelled and not marker and self._add("", nouns, first=begin == 0)
        if (idle and not (marker or nouns)) or (marker == self.of and not (idle and self._named(idle))):
            return False  # "the report R-1 of Bob" tells which one, and not to whom
        if determiner in data["indefinite"] and values[0].kind != "quote":
            return False  # "a Math course" is one of many
        return (
            self._trailing(values, nouns, determined=bool(determiner))
            and self._add(marker, nouns, *values, first=begin == 0)
            and self._counted(self.found[-1])
        )

    def _noun(self) -> bool:
        """Return True if the token is a noun of the tool: "SQL" may be one, "Bob" is not."""
        token = self.tokens[self.at]
        plain = token.kind == "word" or (token.kind == "name" and token.text.isupper())
        return plain and singular(token.lower) in self.tool.words and not self._choice(token)

    def _choice(self, token: Token) -> str:
        """Return the schema's choice that a word names, or "": "Public Home" names none."""
        named = token.kind not in {"word", "name"} or (token.text[:1].isupper() and not token.text.isupper())
        return "" if named else self.tool.choices.get(token.lower, self.tool.choices.get(singular(token.lower), ""))

    def _trailing(self, values: Sequence[Token], nouns: list[str], *, determined: bool) -> bool:
        """Read the noun behind a value: "the C-1 car". Return False for "22 ports"."""
        token, kind = self.tokens[self.at], values[0].kind
        if kind == "run" and singular(last := values[0].lower.split()[-1]) in self.tool.labels:
            nouns.append(last)  # "the garage door"
            return singular(last) == last
        noun = singular(token.lower)
        if token.kind != "word" or noun not in self.tool.words:
            return True
        nouns.append(noun)
        self.at += 1
        fits = determined and noun == token.lower and noun not in self.tool.spoken
        return noun in self.tool.counted if kind == "number" else fits

    def _counted(self, phrase: Phrase) -> bool:
        """Read a number's currency or counted things: "45 EUR", "3 toner cartridges"."""
        money, token, begin = phrase.values[0], self.tokens[self.at], self.at
        if phrase.kind == "money" and "currency" in self.tool.labels:
            code = re.sub(NUMBER, "", money.text).strip()
            start = money.start + money.text.index(code)
            self._add("", ["currency"], Token("word", self.data["currencies"][code], start, start + len(code)))
        elif phrase.kind != "number":
            return True
        elif token.kind == "name" and "currency" in self.tool.labels and re.fullmatch("[A-Z]{2,5}", token.text):
            self.at += 1
            self._add("", ["currency"], token)
        elif not (phrase.marker or phrase.nouns):
            while self.tokens[self.at].kind == "word" and self.language.value(self.tokens[self.at]):
                self.at += 1
            if counted := [t.lower for t in self.tokens[begin : self.at]]:
                self._add("", (), self._quote(begin, self.at, "counted"))
                plural = money.text == "1" or singular(counted[-1]) != counted[-1]  # "Order 12 late" is a report
                return plural and len(counted) <= _MAX_RUN and self.language.verbs.isdisjoint(counted)
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
            if gap and token.kind in {"name", "run", "word", "choice"}:
                return []
        return values

    def _plain(self, token: Token) -> bool:
        """Return True if a token may be a word of a name. A verb may not."""
        plain = token.kind == "name" or (token.kind == "word" and token.lower not in self.language.verbs)
        return plain and self.language.value(token)

    def _value(self, at: int, marker: str, *, labelled: bool, determined: bool) -> tuple[Token | None, int]:
        token, pay = self.tokens[at], self.tool.effect == "pay"
        if choice := self._choice(token):
            return (token._replace(kind="choice", text=choice) if marker == self.to else None), at + 1
        told = labelled or (marker and marker not in self.data["setting"])
        if not self.language.value(token) or not (told or token.kind != "word" or self._plain(token)):
            return None, at
        after = at + 1
        while self._plain(token) and self._plain(self.tokens[after]):
            after += 1
        if after > at + 1:
            said = " ".join(t.text for t in self.tokens[at:after])
            named = all(t.kind == "name" for t in self.tokens[at:after])  # "Ana Smith", but "porch light"
            token = self._quote(at, after, "name" if named else "run")
            first = not pay and all(p.kind == "choice" for p in self.found if p.values)
            fine = named or ((labelled or marker or first) and self.tokens[after].kind != "number")
            return (token if fine and after - at <= _MAX_RUN and said == token.text else None), after
        if token.kind == "word" and not labelled:
            paid = any(t.kind == "money" for t in self.tokens)
            alone = at == 0 and (paid or (self.single and not pay))  # "pay bob 45 eur"
            if token.lower in self.strange or determined or not (alone or marker):
                return None, at
        return token, after

    # --- arguments

    def _named(self, phrase: Phrase) -> list[Argued]:
        tool, nouns = self.tool, {*phrase.nouns}
        named = [a for a in tool.arguments if a.words & nouns]
        if named or not phrase.values or not tool.alone or not nouns or nouns != tool.nouns:
            return named
        return [a for a in tool.arguments if a.kind in {"object", "name"}]  # "the leave 12" is its id

    def _bind(self) -> list[dict[str, Phrase]]:
        """Return how phrases are assigned to arguments; none if that is not clear.

        The key "" is the dictated text. A list for a single value gives one assignment each, but none with an amount.
        """
        tool, idle = self.tool, [p for p in self.found if not p.values]
        used, arguments = [p for p in self.found if p.values], {a.name: a for a in self.tool.arguments}
        self.pending = {a.name for p in idle for a in self._named(p) if a.kind != "text"}
        (head, *more) = self.found or [Phrase("", (), ())]
        nouns = {*head.nouns, *(n for p in more[:1] if not head.values and p.marker == self.of for n in p.nouns)}
        if tool.nested or (head.nouns and not head.marker and tool.nouns and tool.nouns.isdisjoint(nouns)):
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
        unsaid = [a.kind for a in tool.arguments if a.kind in TARGETS and a.name not in found]
        self.lacks = "object" in unsaid or bool(unsaid and not found)
        if self.lacks:
            return []  # "Export my data" does not mean all of it
        several = [n for n, p in found.items() if len(p.values) > 1 and "array" not in arguments[n].types]
        kinds = {arguments[n].kind for n in found if n} if several else set()
        if len(several) > 1 or "amount" in kinds or not {arguments[n].kind for n in several} <= TARGETS:
            return []  # one event is not at two places
        return [{**found, n: found[n]._replace(values=(v,))} for n in several for v in found[n].values] or [found]

    def _fits(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True if an argument may take a phrase, by its nouns, kind and marker."""
        data, marker, kind, role, effect = self.data, phrase.marker, argument.kind, argument.role, self.tool.effect
        texts, named = {v.text for v in phrase.values}, argument in self._named(phrase)
        new = bool(self.pending) and marker in data["setting"] and not phrase.nouns
        if new != (argument.name in self.pending) or (new and (kind in TARGETS or self.dative)):
            return False  # a new value belongs to the argument that waits for it
        if (phrase.nouns and not named) or (argument.choices and not texts <= argument.choices):
            return False
        if phrase.kind == "choice":
            return bool(argument.choices)
        if phrase.kind == "counted":
            return kind == "object" and not role and self.tool.counts
        if phrase.kind not in {"number", "money"} and argument.types and argument.types <= _COUNTS:
            return False
        kinds = [data["kinds"][kind], data["kinds"].get(role, ""), data["named"].get(kind, "") if named or new else ""]
        if not {*" ".join(kinds).split()}.issuperset(v.kind for v in phrase.values):
            return False
        if named and self.relative and not marker and (kind == "value" or not phrase.first):
            return False  # a new value stands behind "to"
        if kind == "amount" and not self._measured(argument, phrase, named=named, new=new):
            return False
        if new or (kind in TARGETS and role != "goal" and marker == self.of):
            return new or (argument.required and not (kind == "principal" and effect in {"pay", "send"}))
        if not named and not self._meant(argument, phrase):
            return False
        markers = {p.marker for p in self.found} if self.moving else {marker}
        if role == "start" and (self.to in markers) != self.moving:
            return False  # "Move the meeting M-1 on 4 June 2027" does not say to when
        place = marker or ("first" if phrase.first or phrase.nouns else "later")
        labels = [*self._places("labelled", kind), *data["naming"]] if named and role != "source" else []
        return place in [*self._places(role, kind), *labels]

    def _measured(self, argument: Argued, phrase: Phrase, *, named: bool, new: bool) -> bool:
        """Return True if a number may be this amount: a new value, a count or a payment."""
        new |= named and phrase.marker == self.to
        if len(phrase.values) > 1 or (phrase.kind == "money" and argument.words.isdisjoint(self.data["moneyed"])):
            return False
        if new or self.tool.effect == "pay":
            return new or named or phrase.first or phrase.kind == "money"
        plain = phrase.kind == "number" and not phrase.marker and not self.relative
        return named and plain and self.tool.counted.issuperset(phrase.nouns)

    def _meant(self, argument: Argued, phrase: Phrase) -> bool:
        """Return True if a value without a noun may be this argument."""
        kind, marker, effect = argument.kind, phrase.marker, self.tool.effect
        if kind == "channel":
            return bool(marker) or phrase.kind == "hash"
        if argument.role == "container":
            return bool(marker) and any(p.nouns for p in self.found)
        if effect == "read" and kind in TARGETS:  # other tools may know a thing with the same name
            return argument.role == "file" and all(re.search(r"[./\\]", v.text) for v in phrase.values)
        if kind == "principal" and not (
            argument.required if effect == "pay" else effect == "send" or phrase.kind != "word"
        ):
            return False
        told = kind in {"principal", "object"} and (self.tool.apart or (kind, effect) == ("object", "pay"))
        return not told or all(_somebody(v) == (kind == "principal") for v in phrase.values)

    def _places(self, *names: str) -> Sequence[str]:
        """Return the positions (prepositions, `first`, `later`) of the first known name."""
        places, effect = self.data["places"], self.tool.effect
        keys = (f"{key}{of}" for key in (" ".join(names), *names) for of in (f" {effect}", ""))
        return next(places[key].split() for key in keys if key in places)

    def _step(self, bound: Mapping[str, Phrase], digest: str) -> Step:
        """Return the step. A quotation without a label is the whole main text."""
        args: dict[str, Argument] = {}
        for argument in self.tool.arguments:
            name, text = argument.name, argument.kind == "text"
            if (phrase := bound.get(name, bound.get("") if text else None)) is not None:
                free = text and (phrase.kind == "open" or (name not in bound and name not in self.tool.mains))
                args[name] = Text(quote=(phrase.values[0].text,)) if free else _const(argument, phrase, digest)
        return Step(id="?", tool=self.tool.name, args=args)


def _somebody(token: Token) -> bool:
    """Return True if a value looks like a person's or firm's name or account."""
    if token.kind == "id":
        return token.text.replace("_", "").isalpha() or any(f.startswith("iban:") for f in forms(token.text))
    return token.kind in {"email", "name", "word", "handle"}


def _const(argument: Argued, phrase: Phrase, digest: str) -> Const | OneOf:
    """Return the value with its span, or both readings of "the garage door"."""
    values, array = tuple(v.text for v in phrase.values), "array" in argument.types
    if argument.kind == "amount":
        number = re.findall(NUMBER, values[0])[0]
        start = phrase.values[0].start + values[0].index(number)
        return Const(value=read_number(number) or 0, said=Span(digest, start, start + len(number)))
    said, _, noun = values[0].rpartition(" ")
    if phrase.kind == "run" and singular(noun.lower()) in argument.words and not array:
        return OneOf(values=(values[0], said))  # "garage door" and "garage"
    return Const(value=values if array else values[0], said=Span(digest, phrase.values[0].start, phrase.values[-1].end))
