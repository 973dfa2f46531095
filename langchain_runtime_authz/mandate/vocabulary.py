"""Read a tool's arguments and orders from its profile and JSON schema.

A profile's `intent` declares orders like `book {room} [on {date}]`. If it declares only a verb, orders are suggested:
`cancel`, for a tool with the argument `booking`, suggests `cancel {booking}`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from langchain_runtime_authz._locks import cached_property
from langchain_runtime_authz._order_patterns import MAX_LENGTH, Pattern, first_items, items_in, parse_pattern
from langchain_runtime_authz._validate import as_list, as_mapping
from langchain_runtime_authz.mandate.languages import PARTS, Language, singular, words_of
from langchain_runtime_authz.tool_profile import ToolProfile

MAX_NAME: Final = 128  # characters of a tool's or an argument's name
NAMED: Final = frozenset({"principal", "object", "name", "channel"})  # kinds of targets that users name
TARGETS: Final = NAMED | {"url"}  # kinds that say whom or what a call affects
_MAX_MORE: Final = 4  # arguments that a suggested order may name behind "with"
_ROLE: Final = re.compile(r"<(\w+)>")
_WAYS: Final = {  # effect → what may follow an order's verb: the first group whose arguments the tool has
    "pay": (("<to> <amount>", "<amount> to <to>"), ("<to>",), ("<what>",)),
    "send": (("[to] <to> <saying>", "<text> (to|in) <to>"), ("<what> (to|with) <to>", "<to> <what>"), ("[to] <sole>",)),
}
_PLAIN: Final = (("<what> to <goal>",), ("<nouns><what>",), ("<text>",))


@dataclass(frozen=True, slots=True)
class NamedArgument:
    """An argument of a tool, with the words by which users name it."""

    name: str
    kind: str  # by the profile: a critical kind, `when` or `text`; else `value`
    words: frozenset[str]
    required: bool
    choices: Mapping[str, str]  # what users say, as written or in lower case → the value
    limited: bool  # True if only the choices are values
    types: frozenset[str]  # JSON types; empty if the schema has none
    fixed: frozenset[str]  # the values that an order may give; empty for any


def plain_words(words: str) -> str:
    """Return words in the form in which choices are compared: `On_hold` as "on hold"."""
    return re.sub(r"(?<=\w)[\s_-]+(?=[^\W_])", " ", words).lower()


class ToolWords:
    """A tool's arguments and orders in one language."""

    def __init__(self, name: str, profile: ToolProfile, schema: object, language: Language) -> None:
        self.name, self.profile, self.schema, self.language = name, profile, as_mapping(schema), language
        self.effect = profile.effect
        parts = [w.lower() for w in PARTS.findall(name)]
        self.nouns = tuple(parts[1:])
        own = [" ".join(parts)] if parts[:1] and parts[0] in language.verbs and not profile.intent else []
        own += language.data["reads"] if profile.effect == "read" and not profile.intent else []
        self.entries = [said for said in (*profile.intent, *own) if said.strip() and said not in profile.orders]
        begun = (first for order in profile.orders for first in first_items(parse_pattern(order)))
        self.verbs = {*begun, *(said.split()[0].lower() for said in self.entries)}

    @cached_property
    def arguments(self) -> dict[str, NamedArgument]:
        """The arguments by name, in the schema's order."""
        profile, properties = self.profile, as_mapping(self.schema.get("properties"))
        inner = {n.partition(".")[0] for n in profile.critical if "." in n}
        kinds = {n: "value" for n in properties if isinstance(n, str) and n not in inner.union(profile.free)}
        kinds |= {n: k for n, k in profile.critical.items() if "." not in n}
        kinds |= dict.fromkeys(profile.when, "when") | dict.fromkeys(profile.text, "text")
        return {n: self._argued(n, k, as_mapping(properties.get(n))) for n, k in kinds.items() if len(n) <= MAX_NAME}

    @cached_property
    def orders(self) -> list[tuple[Pattern, bool]]:
        """The orders, each with True if it is suggested; then it is read strictly."""
        own = [(parse_pattern(order), False) for order in self.profile.orders]
        return own + [(parse_pattern(order), True) for verb in self.entries for order in suggested_orders(self, verb)]

    @cached_property
    def said(self) -> frozenset[str]:
        """The words of the profile's orders."""
        return frozenset(singular(item) for item in items_in(*self.profile.orders) if item[0] != "{")

    @cached_property
    def coin(self) -> str:
        """The name of the argument that holds a currency, or ""."""
        return next(
            (a.name for a in self.arguments.values() if not a.words.isdisjoint(self.language.data["coins"])), ""
        )

    def _argued(self, name: str, kind: str, schema: Mapping[str, Any]) -> NamedArgument:
        needed = self.schema.get("required")
        enum = [c for c in as_list(schema.get("enum")) if isinstance(c, str)]
        options = [schema, *map(as_mapping, as_list(schema.get("anyOf")))]
        several = (t for o in options for t in (o.get("type"), *as_list(o.get("type"))))
        types = frozenset(t for t in several if isinstance(t, str))
        fixed = frozenset(enum) or frozenset(("true", "false") if types - {"null"} == {"boolean"} else ())
        codes = {*self.language.data["currencies"].values()}
        coin = self.language.data["coins"][:1] if codes.intersection(map(str, (*enum, schema.get("default")))) else ()
        own, said = Counter(map(plain_words, enum)), self.profile.synonyms.get(name, {}).items()
        choices = {plain_words(c): c for c in enum if own[plain_words(c)] == 1} | {plain_words(w): c for w, c in said}
        choices |= {word: f"{n}" for n, word in enumerate(self.language.data["numerals"], 1) if f"{n}" in enum}
        return NamedArgument(
            name=name,
            kind=kind,
            words=frozenset((*words_of(name), kind, *coin)),
            required=name in as_list(needed) if needed is not None else kind not in {"when", "text"},
            choices={said: c for said, c in choices.items() if c in (fixed or {c})} | {c: c for c in enum},
            limited=bool(enum),
            types=types,
            fixed=fixed,
        )


def suggested_orders(tool: ToolWords, verb: str) -> Iterator[str]:
    """Yield orders that begin with `verb`, for the tool's effect and arguments."""
    said = _roles(tool)
    for ways in _WAYS.get(tool.effect, _PLAIN):
        if said.keys() >= {*_ROLE.findall(" ".join(ways))}:
            for way in ways:
                order = f"{verb} {_ROLE.sub(lambda role: said[role[1]], way)}"
                left = [a for a in tool.arguments.values() if a.name.isidentifier() and f"{{{a.name}}}" not in order]
                order = " ".join([order, *(_behind(tool, a) for a in left[:_MAX_MORE])])
                if len(order) <= MAX_LENGTH and len([a for a in left[_MAX_MORE:] if a.required]) == 0:
                    yield order
            return


def _roles(tool: ToolWords) -> dict[str, str]:
    """Return role (`to`, `amount`) → pattern. Arguments like `sender` have no role."""
    data, nouns = tool.language.data, {*map(singular, tool.nouns)}
    given = [a for a in tool.arguments.values() if a.name.isidentifier() and a.words.isdisjoint(data["givers"])]
    own = nouns.union(data["generic"], data["headings"])
    to = _only(a for a in given if a.kind == "principal") or _only(a for a in given if a.kind == "channel")
    texts = [a for a in given if a.kind == "text"]
    text = _only(a for a in texts if a.words.isdisjoint(data["headings"])) or _only(texts)
    hits = [a for a in given if a.kind in TARGETS and a is not to]
    # In `delete_note(user, note)`, the user is not what is deleted.
    what = _only(a for a in hits if (a.required if tool.effect == "send" else a.words - {a.kind} <= own))
    what = what or (to if tool.effect not in {"pay", "send"} else None)
    goal = to if to is not None and to.kind == "principal" and what is not to and tool.effect != "delete" else None
    goal = goal or _only(a for a in given if a is not what and a.words & {*data["goals"]})
    sole = to if not hits else None
    amount = _only(a for a in given if a.kind == "amount")
    roles = {"amount": amount, "goal": goal, "sole": sole, "text": text, "to": to, "what": what}
    said = {role: f"{{{argument.name}}}" for role, argument in roles.items() if argument is not None}
    if text is not None:
        said["saying"] = f"[saying] {said['text']}" if text.required else f"[[saying] {said['text']}]"
    if what is not None:
        named = what is to or not nouns.isdisjoint(what.words)  # then the argument's label is the noun already
        said["nouns"] = "" if named else f"[{' '.join(tool.nouns)}] "
    return said


def _only(arguments: Iterator[NamedArgument] | list[NamedArgument]) -> NamedArgument | None:
    found = [*arguments]
    return found[0] if len(found) == 1 else None


def _behind(tool: ToolWords, argument: NamedArgument) -> str:
    """Return the pattern of a further argument of an order: `[with role {role}]`."""
    words, value = words_of(argument.name), f"{{{argument.name}}}"
    label = " ".join(words)
    if {*words[:1]} & tool.language.prepositions:
        way = f"{words[0]} {value}"
    elif argument.kind == "when" and {*words} <= {*tool.language.data["moments"]}:
        way = f"on {value}"
    elif argument.limited:
        way = f"([with] {label} {value}|as {value}|{value} {label})"
    else:
        way = f"with {label} {value}"
    return way if argument.required and argument.kind in TARGETS else f"[{way}]"
