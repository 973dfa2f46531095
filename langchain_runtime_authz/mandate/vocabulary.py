"""Hold a tool's vocabulary: its verbs, nouns, and words for its arguments.

A user asks for a tool by a word of its profile's `intent`, or by its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from langchain_runtime_authz._order_patterns import heads_of, tree_of
from langchain_runtime_authz.mandate.languages import PARTS, Language, Token, singular, words_of
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_NAME: Final = 128  # characters of a tool's or an argument's name
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
    receives: bool  # or does it: its value is never an owner, as in "Ana's tickets"


def _listed(value: object) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


def _mapped(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _closest(named: list[Argued], phrase: Labelled) -> list[Argued]:
    """Keep the arguments that the nouns name best: "new server" is `new_server`."""
    nouns = {*phrase.nouns}
    most = max((len(a.words & nouns) for a in named), default=0)
    named = [a for a in named if len(a.words & nouns) == most]
    least = min((len(a.words - nouns) for a in named), default=0)
    return [a for a in named if phrase.marker or not phrase.values or len(a.words - nouns) == least]


class Labelled(Protocol):
    """A phrase: a preposition or "", nouns that may name an argument, and values."""

    @property
    def marker(self) -> str: ...
    @property
    def nouns(self) -> Sequence[str]: ...
    @property
    def values(self) -> Sequence[object]: ...


class Tool:
    """A tool's verbs, nouns and arguments in one language."""

    def __init__(self, name: str, profile: ToolProfile, schema: Mapping[str, Any], language: Language) -> None:
        self.name, self.profile, self.schema, self.language = name, profile, schema, language
        self.effect, data = profile.effect, language.data
        self.arguments: list[Argued] = []
        self.properties = _mapped(schema.get("properties"))
        enums = (p["enum"] for p in self.properties.values() if isinstance(p, Mapping) and _listed(p.get("enum")))
        self.offers = {c.lower(): c for enum in enums for c in enum if isinstance(c, str)}
        self.parts = parts = [w.lower() for w in PARTS.findall(name)]
        verbs = parts[:1]  # a name begins with its verb: "loan_book" books nothing
        if verbs == [data["carrier"]]:  # both words of "send_email" may ask for the tool
            verbs += [w for w in parts[1:2] if w in language.verbs]
        self.intent = [i for i in profile.intent if i not in profile.orders]
        said = self.intent or [v for v in verbs if v in language.verbs or v not in language.closed]
        entries = {tuple(i.lower().split()) for i in said} - {()}
        self.entries = {e for e in entries if e[0] not in data["not_verbs"]}
        self.tree = tree_of(profile.orders)
        self.heads = self.entries.union(heads_of(profile.orders))
        small = language.prepositions.union(language.determiners, data["particles"])
        self.nouns = {singular(w) for w in parts[1:]} - small
        # An email that is there is a message too. A new message may be no email.
        old = "object" in profile.critical.values() and {e[0] for e in self.entries}.isdisjoint(data["asking"])
        self.letters = {*data["letters"]} if old and self.nouns & {*data["letters"][:-1]} else set[str]()
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
        closed = self.language.closed.difference(data["nominal"])  # "Delete the review R-1"
        self.core = self.nouns.union(*(map(singular, e[1:]) for e in self.entries)) - closed
        self.labels = frozenset[str]().union(*(a.words for a in self.arguments))
        self.words = (self.core | self.labels | self.letters) - closed
        self.numbers = any(a.kind == "amount" or a.types & {"number", "integer"} for a in self.arguments)
        self.coin = [word for word in data["coins"] if word in self.labels][:1]
        self.texts = {a.name for a in self.arguments if a.kind == "text"}
        self.mains = {n for n in self.texts if {*words_of(n)}.isdisjoint(data["headings"])} or self.texts
        self.spoken = frozenset[str]().union(*(a.words for a in self.arguments if a.kind == "text"))
        small = self.language.stops | self.language.determiners | self.language.prepositions
        self.choices = {word: choice for word, choice in self.offers.items() if word not in small}
        self.offering = frozenset[str]().union(*({*words_of(a.name)} for a in self.arguments if a.choices))
        self.counts = any(a.role == "count" for a in self.arguments)
        # "5 replicas" is the amount `replicas`, but "22 ports" is not the port 22.
        counted = (a for a in self.arguments if a.kind == "amount" and (a.name.endswith("s") or a.role == "count"))
        self.counted = frozenset[str]().union(*(a.words for a in counted))

    def begun(self, tokens: Sequence[Token], *entries: tuple[str, ...]) -> int:
        """Return the number of the first tokens that are a whole `intent`."""
        said = tuple(t.lower for t in tokens)
        return max((len(e) for e in entries or self.heads if said[: len(e)] == e), default=0)

    def offered(self, word: str) -> set[str]:
        """Return the words of the arguments that have a word as a choice."""
        enums = ((n, _listed(_mapped(p).get("enum")) or ()) for n, p in self.properties.items() if word in self.offers)
        return {w for n, enum in enums if self.offers[word] in enum for w in words_of(n)}

    def argued(self, phrase: Labelled, *, relative: bool) -> list[Argued]:
        """Return the arguments that nouns name. `relative`: a verb that changes a value."""
        nouns = {*phrase.nouns}
        named = _closest([a for a in self.arguments if a.words & nouns], phrase)
        if named or not nouns or self.alike(nouns) != self.alike(self.nouns):
            return named
        if not phrase.values:
            new = relative and words_of(self.name)[0] not in self.language.data["stepping"]
            return [a for a in self.arguments if new and a.kind == "amount"]  # "set the salary of Ana to …"
        own = self.alike(nouns.union(self.language.data["generic"]))  # "the leave 12" is its id
        its = [a for a in self.arguments if a.kind in {"object", "name"} and self.alike(a.words - {a.kind}) <= own]
        return its if len(its) == 1 else []

    def alike(self, nouns: Iterable[str]) -> set[str]:
        """Return the nouns, with one word for all that may name an email."""
        return {"" if n in self.letters else n for n in nouns}

    def _argued(self, name: str, kind: str, needed: Sequence[Any] | None) -> Argued:
        data, words = self.language.data, {*words_of(name)}
        roles = [r for r, (of, said) in data["roles"].items() if kind in (of or kind).split() and words & {*said}]
        role = roles[0] if roles else ""
        if kind == "when" and not role:  # "on 3 June" tells when it is done, and not `return_date`
            own = words - {*data["moments"]} <= self.nouns.union(*self.entries)
            role = "end" if not own else "start" if len(self.profile.when) == 1 else ""
        ordinal = role == "count" and words_of(name)[-1] in data["ordinals"]  # "3 pages" is not `page_number` 3
        role = "" if ordinal or (role == "container" and self.alone) else role
        given = _mapped(self.properties.get(name))
        options = [given, *map(_mapped, _listed(given.get("anyOf")) or ())]
        types = frozenset(t for o in options if isinstance(t := o.get("type"), str))
        required = name in needed if needed is not None else kind not in {"when", "text"} and role != "named_only"
        choices = frozenset(c for c in _listed(given.get("enum")) or () if isinstance(c, str))
        receives = not words.isdisjoint(data["receivers"])
        return Argued(name, kind, frozenset((*words, kind)), role, required, choices, types, receives)
