"""A tool's verbs, arguments and nouns in one language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz.mandate.languages import PARTS, Language, Token, singular, words_of
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_NAME: Final = 128  # characters of a tool's or an argument's name
_TARGETS: Final = frozenset({"principal", "object", "name", "channel", "url"})
_ROLES: Final = {  # role → kinds of arguments that may have it
    "goal": {"object", "name", "channel", "place", "value"},
    "container": {"object"},
    "file": {"object", "name"},
    "start": {"when"},
}


@dataclass(frozen=True, slots=True)
class Argued:
    name: str
    kind: str  # of the profile, or `when` or `text`
    words: frozenset[str]
    role: str
    array: bool
    required: bool
    schema: Mapping[str, Any]
    types: frozenset[str]  # of JSON; empty if the schema does not tell

    @property
    def choices(self) -> Sequence[str]:
        return [c for c in listed(self.schema.get("enum")) or () if isinstance(c, str)]


def listed(value: object) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


class Vocabulary:
    """A tool's verbs, arguments and nouns in one language."""

    def __init__(self, name: str, profile: ToolProfile, schema: Mapping[str, Any], language: Language) -> None:
        self.name, self.profile, self.schema, self.language = name, profile, schema, language
        self.effect = profile.effect
        self.arguments: list[Argued] = []
        properties = p if isinstance(p := schema.get("properties"), Mapping) else {}
        enums = (listed(p.get("enum")) or () for p in properties.values() if isinstance(p, Mapping))
        self.offers = {c.lower(): c for enum in enums for c in enum if isinstance(c, str)}
        data = language.data
        parts = [w.lower() for w in PARTS.findall(name)]
        verbs = parts[:1]  # a name begins with its verb: "loan_book" books nothing
        if verbs == [data["carrier"]]:  # "send_email" is asked for by both
            verbs += [w for w in parts[1:2] if w in language.verbs]
        said = profile.intent or [v for v in verbs if v in language.verbs or v not in language.closed]
        entries = {tuple(i.lower().split()) for i in said} - {()}
        self.entries = {e for e in entries if e[0] not in data["not_verbs"]}
        small = language.prepositions.union(language.determiners, data["particles"])
        self.nouns = {singular(w) for w in parts if w not in verbs[:1]} - small
        said_to = {*parts, *(w for e in self.entries for w in e)}
        # Something is told or noted: words behind it may be what.
        texts = self.effect == "send" or (self.effect == "write" and (profile.text or profile.free))
        self.tells = bool(texts) or not said_to.isdisjoint(data["noting"])

    def prepare(self) -> None:
        """Work out arguments and vocabulary, once a verb fits."""
        if self.arguments:
            return
        data, profile = self.language.data, self.profile
        properties = p if isinstance(p := self.schema.get("properties"), Mapping) else {}
        needed = listed(self.schema.get("required"))
        kinds: dict[str, str] = {n: k for n, k in profile.critical.items() if "." not in n}
        kinds |= dict.fromkeys(profile.when, "when") | dict.fromkeys(profile.text, "text")
        inner = {n.partition(".")[0] for n in profile.critical if "." in n}
        for name in properties:
            if isinstance(name, str) and not {name} & (kinds.keys() | inner | set(profile.free)):
                kinds[name] = "value"
        for name, kind in kinds.items():
            words = words_of(name)
            roles = [r for r in data["roles"] if kind in _ROLES.get(r, {kind})]
            role = next((r for r in roles if not {*data["arguments"][r]}.isdisjoint(words)), "")
            role = role or ("start" if kind == "when" and len(profile.when) == 1 else "")
            given = p if isinstance(p := properties.get(name), Mapping) else {}
            options = [given, *(o for o in listed(given.get("anyOf")) or () if isinstance(o, Mapping))]
            types = frozenset(t for o in options if isinstance(t := o.get("type"), str))
            optional = kind in {"when", "text"} or role == "named_only"
            required = name in needed if needed is not None else not optional
            labels = frozenset((*words, kind))
            self.arguments.append(Argued(name, kind, labels, role, "array" in types, required, given, types))
        self.counts = any(a.role == "count" for a in self.arguments)
        # "5 replicas" is an amount of them, but "22 ports" is not the port 22.
        counted = (a for a in self.arguments if a.kind == "amount" and (a.name.endswith("s") or a.role == "count"))
        self.counted = frozenset[str]().union(*(a.words for a in counted))
        self.numbers = any(a.kind == "amount" or a.types & {"number", "integer"} for a in self.arguments)
        self.nested = any(n in (needed or ()) for n in inner) or any(len(n) > MAX_NAME for n in kinds)  # never bound
        self.core = self.nouns.union(*(map(singular, e[1:]) for e in self.entries)) - self.language.closed
        self.texts = [a for a in self.arguments if a.kind == "text"]
        valued = {"object", "principal", "channel", "place", "value"}
        self.labels = frozenset[str]().union(*(a.words for a in self.arguments))
        self.things = frozenset[str]().union(*(a.words for a in self.arguments if a.kind in valued))
        self.spoken = frozenset[str]().union(*(a.words for a in self.texts))
        self.words = (self.core | self.labels) - self.language.closed
        apart = self.language.stops | self.language.determiners | self.language.prepositions
        self.choices = {w: c for w, c in self.offers.items() if w not in apart}
        self.particles = self.offers.keys() & set(data["particles"])
        self.currency = any("currency" in a.words for a in self.arguments)
        ruled = [a.kind for a in self.arguments]
        self.apart = {"principal", "object"} <= {*ruled}
        self.alone = sum(kind in {"object", "principal", "name", "channel"} for kind in ruled) == 1

    def hit(self, values: Sequence[tuple[str, object]]) -> list[tuple[str, object]]:
        """Return the values that tell what a call concerns."""
        return [(n, v) for n, v in values if self.profile.critical.get(n) in _TARGETS]

    def verb(self, tokens: Sequence[Token]) -> int:
        """Return how many tokens the verb takes: 0 if the tool is not asked for."""
        said, rest = tokens[0].lower, {singular(t.lower) for t in tokens[1:] if t.kind in {"word", "name"}}
        behind, taken = [t.lower for t in tokens[1:2]], [0]
        data, name = self.language.data, words_of(self.name)
        if not self.profile.intent and not rest.union([said]).issuperset(self.nouns):
            return 0
        # "Open the ticket" only looks at it. "Open a ticket" does not, nor "Open gate G-7" for a tool `open_gate`.
        anew = behind and behind[0] in data["indefinite"]
        its = name[:1] == [said] and name[1:] and rest.issuperset(name[1:])
        if said in data["reads"] and self.profile.side_effect and not (anew or its):
            return 0
        for verb, *nouns in self.entries:
            particle = not {*nouns[:1]}.isdisjoint(self.language.prepositions.union(data["particles"]))
            if verb == said and rest.issuperset(map(singular, nouns)) and (not particle or behind == nouns[:1]):
                taken.append(1 + particle)
        return max(taken)
