"""Read one clause for one tool: its phrases, and the one way to give each phrase to an argument.

A phrase is a preposition, nouns and a value: "to the channel #ops". Nouns are from the tool's own vocabulary: its name,
its arguments, its `intent`. A noun that names an argument decides; else the preposition and the kind do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from langchain_runtime_authz.mandate.languages import NUMBER, PARTS, Language, Token, read_number, singular, words_of
from langchain_runtime_authz.mandate.model import Argument, Const, Scalar, Span, Step, Text
from langchain_runtime_authz.profile import ToolProfile

__all__ = ["Phrase", "Tool"]

MAX_PHRASES: Final = 8  # of one clause
MAX_PURPOSE: Final = 6  # words behind "for"
_NAMES: Final = 4  # words of one name
_TRIES: Final = 500  # assignments looked at

# What may stand for an argument of a kind; behind a noun that names it, more may.
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "principal": frozenset({"email", "id", "name", "handle", "word"}),
    "url": frozenset({"url"}),
    "object": frozenset({"id", "name", "quote", "handle", "hash", "word", "number"}),
    "name": frozenset({"id", "name", "quote"}),
    "channel": frozenset({"hash", "id", "name", "quote", "word"}),
    "amount": frozenset({"money", "number"}),
    "place": frozenset({"name", "quote", "word", "id"}),
    "value": frozenset({"quote"}),
    "when": frozenset({"date"}),
    "text": frozenset(),
}
_NAMED: Final[Mapping[str, frozenset[str]]] = {
    **{k: v | {"word", "number", "email", "quote"} for k, v in _KINDS.items() if k in {"principal", "object", "name", "channel"}},
    "value": frozenset({"quote", "id", "name", "word", "number", "email", "money", "url", "handle", "hash", "date"}),
    "text": frozenset({"quote", "name", "word", "number", "id"}),
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
class _Argument:
    name: str
    kind: str  # of the profile, or `when` or `text`
    words: frozenset[str]
    role: str
    array: bool
    required: bool
    schema: Mapping[str, Any]


def _choices(argument: _Argument) -> Sequence[str]:
    choices = argument.schema.get("enum")
    return [c for c in choices if isinstance(c, str)] if isinstance(choices, list | tuple) else []


class Tool:
    """A tool's verbs, arguments and vocabulary in one language."""

    def __init__(self, name: str, profile: ToolProfile, schema: Mapping[str, Any], language: Language) -> None:
        self.name, self.profile, self.schema, self.language = name, profile, schema, language
        data = language.data
        if profile.intent:
            entries = [tuple(i.lower().split()) for i in profile.intent]
            self.entries = [e for e in entries if e and e[0] not in data["not_verbs"]]
            self.entries += [tuple(i.split()) for v, i in data["idioms"].items() if (v,) in entries]
        else:
            own = {w for w in map(str.lower, PARTS.findall(name)) if w in language.verbs}
            same = {v for group in data["verbs"] if not own.isdisjoint(group) for v in group}
            self.entries = [(v,) for v in same or data["effects"].get(profile.effect, ())]

    def prepare(self) -> None:
        """Work out arguments and vocabulary, once a verb fits."""
        data, profile = self.language.data, self.profile
        properties = self.schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        needed = self.schema.get("required")
        kinds: dict[str, str] = {n: k for n, k in profile.critical.items() if "." not in n}
        kinds |= dict.fromkeys(profile.when, "when") | dict.fromkeys(profile.text, "text")
        inner = {n.partition(".")[0] for n in profile.critical if "." in n}
        for name in properties:
            if name not in kinds and name not in profile.free and name not in inner:
                kinds[str(name)] = "value"
        roles = data["arguments"]
        self.arguments: list[_Argument] = []
        for name, kind in kinds.items():
            words = words_of(name)
            role = next((r for r in ("named_only", "slot", "setting", "source", "goal", "end", "version", "file", "container") if set(words) & set(roles[r])), "")
            given = properties.get(name)
            given = given if isinstance(given, Mapping) else {}
            options = [given, *(o for o in given.get("anyOf") or () if isinstance(o, Mapping))]
            array = any(o.get("type") == "array" for o in options)
            listed = isinstance(needed, list | tuple)
            required = name in needed if listed else kind not in {"when", "text"} and role != "named_only"
            self.arguments.append(_Argument(name, kind, self._same(words), role, array, required, given))
        if isinstance(needed, list | tuple) and inner & set(needed):
            self.arguments.append(_Argument("", "nested", frozenset(), "", False, True, {}))  # never bound
        phrases = [words_of(self.name), *map(words_of, profile.intent)]
        deeds = self.language.verbs - self.language.things
        core = [w for words in phrases for n, w in enumerate(words) if n or w not in deeds]  # the first is a verb
        self.core = self._same([*core, *data["nouns"].get(profile.effect, ())]) - self.language.closed
        self.vocabulary = self.core.union(*(a.words for a in self.arguments)) - self.language.closed
        apart = self.language.stops | self.language.determiners | self.language.prepositions
        self.choices = {w.lower() for a in self.arguments for w in _choices(a) if w.lower() not in apart}
        self.alone = sum(a.kind in {"object", "principal", "name", "channel"} for a in self.arguments) == 1
        self.texts = [a for a in self.arguments if a.kind == "text"]

    def _same(self, words: Iterable[str]) -> frozenset[str]:
        words = frozenset(words)
        return words.union(*(g for g in self.language.data["synonyms"] if not words.isdisjoint(g)))

    def verb(self, tokens: Sequence[Token]) -> int:
        """Return how many tokens the verb takes: 0 if the tool is not asked for."""
        taken = 0
        rest = {singular(t.lower) for t in tokens[1:] if t.kind == "word"}
        for entry in self.entries:
            if entry[0] == tokens[0].lower:
                particle = len(entry) > 1 and entry[1] in self.language.data["particles"]
                if particle and (len(tokens) < 2 or tokens[1].lower != entry[1]):  # noqa: PLR2004  (verb and particle)
                    continue
                if rest.issuperset(map(singular, entry[1:])):
                    taken = max(taken, 1 + particle)
        return taken

    # --- phrases

    def phrases(self, tokens: Sequence[Token], text: str, *, lists: bool) -> tuple[list[Phrase], str | None] | None:
        """Return the phrases behind the verb, and the dictated text, or `None` if a word is left over."""
        language, found = self.language, list[Phrase]()
        effect, at = self.profile.effect, 0
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
                if at == len(tokens) or singular(tokens[at].lower) not in self.vocabulary:
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
            phrase, after = self._phrase(tokens, at + joined, chosen, lists=lists)
            if joined and (phrase is None or not self._named(phrase)):
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
        self, tokens: Sequence[Token], at: int, chosen: list[Phrase], *, lists: bool
    ) -> tuple[Phrase | None, int]:
        language, begin = self.language, at
        marker = tokens[at].lower if tokens[at].kind == "word" and tokens[at].lower in language.prepositions else ""
        if any(t.kind == "word" and t.text[0].isupper() and t.lower in language.determiners for t in tokens[at : at + 2]):
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
            elif tokens[at].kind == "name":
                break
            elif word in self.vocabulary:
                nouns.append(word)
            elif tokens[at].lower not in language.adjectives or singular(tokens[at + 1 : at + 2][0].lower if at + 1 < len(tokens) else "") not in self.vocabulary:
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
            token, after = self._value(tokens, at + gap)
            if token is None or (values and token.kind != values[0].kind):
                break
            if token.kind == "word" and not (labelled or (marker and not determined) or self._whom(tokens, at)):
                break
            values.append(token)
            at = after
        if values and determined and at < len(tokens) and tokens[at].kind == "word":
            trailing = singular(tokens[at].lower)
            if trailing in self.vocabulary:
                nouns.append(trailing)
                at += 1
        if chosen and not values and (marker or not labelled):
            return None, at
        if at == begin or (not values and (marker or not labelled)):
            return None, begin
        return Phrase(marker, tuple(nouns), tuple(values), begin == 0), at

    def _whom(self, tokens: Sequence[Token], at: int) -> bool:
        """Return True if a lower-case word right behind the verb may be a value: "pay bob 45 eur"."""
        return at == 0 and (self.profile.effect != "pay" or any(t.kind == "money" for t in tokens))

    def _slot(self, tokens: Sequence[Token]) -> tuple[Phrase, int] | None:
        """Read the name of a field that is set: "the price of record 18"."""
        slots = [a.name for a in self.arguments if a.role == "slot"]
        at = int(tokens[0].lower in self.language.determiners)
        if len(slots) != 1 or at + 1 >= len(tokens) or tokens[at + 1].lower not in self.language.data["parting"]:
            return None
        known = not self.language.common(tokens[at]) or singular(tokens[at].lower) in self.vocabulary
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

    def _value(self, tokens: Sequence[Token], at: int) -> tuple[Token | None, int]:
        token = tokens[at]
        if not self.language.value(token) or (token.kind == "word" and not self.language.common(token)):
            return None, at
        after = at + 1
        if token.kind == "name":
            while after < len(tokens) and tokens[after].kind == "name" and self.language.value(tokens[after]):
                after += 1
            if after - at > _NAMES:
                return None, at
        start, end = token.start, tokens[after - 1].end
        said = " ".join(t.text for t in tokens[at:after])
        return (token._replace(text=said, end=end), after) if len(said) == end - start or after == at + 1 else (None, at)

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
        if not 0 < at - begin <= MAX_PURPOSE:
            return None, at
        token = Token("purpose", text[tokens[begin].start : tokens[at - 1].end], tokens[begin].start, tokens[at - 1].end)
        return Phrase("purpose", (), (token,)), at

    # --- arguments

    def bind(self, phrases: Sequence[Phrase], spoken: str | None) -> list[dict[str, Phrase]] | None:
        """Return the one assignment of all phrases to arguments, or `None`. `""` is the dictated text.

        A list for an argument that takes one value makes several assignments, but never shares an amount.
        """
        idle = [p for p in phrases if not p.values]
        pending = {a.name for p in idle for a in self._named(p)}
        if foreign := {a.name for p in idle if not self.core.issuperset(p.nouns) for a in self._named(p)}:
            pending = foreign
        used = [p for p in phrases if p.values and p.marker != "purpose"]
        for money in [p for p in used if p.kind == "money"]:
            code = re.search(r"[^\W\d_]+|[$€£]", money.values[0].text)
            if code and any("currency" in a.words for a in self.arguments):
                start = money.values[0].start + code.start()
                meant = self.language.data["currencies"][code[0]]
                used.append(Phrase("", ("currency",), (Token("word", meant, start, start + len(code[0])),)))
        if any(p.marker == "slot" for p in phrases):
            pending |= {a.name for a in self.arguments if a.role == "setting"}
        names = [[a.name for a in self.arguments if self._fits(a, p, pending)] for p in used]
        for options, phrase in zip(names, used, strict=True):  # "set the status to closed"
            if foreign and phrase.marker in self.language.data["setting"] and not phrase.nouns:
                options[:] = foreign.intersection(options)
        for options, phrase in zip(names, used, strict=True):
            if self._spoken(phrase):
                options.append("")
        complete: list[dict[str, Phrase]] = []
        needed = {a.name or "nested" for a in self.arguments if a.required and a.kind not in {"when", "text"}}
        tries = _TRIES

        def walk(at: int, bound: dict[str, Phrase]) -> None:
            nonlocal tries
            tries -= 1
            if tries < 0 or len(complete) > 1:
                return
            if at == len(used):
                if needed <= bound.keys():
                    complete.append(dict(bound))
                return
            for name in names[at]:
                if name not in bound:
                    walk(at + 1, {**bound, name: used[at]})

        walk(0, {})
        if len(complete) != 1 or tries < 0:
            return None
        bare = {n for p in idle if not any(a.name in complete[0] for a in self._named(p)) for n in p.nouns}
        # A verb alone orders nothing, and a noun that only names an argument wants a value.
        if not (bare <= self.core and (used or bare or spoken)):
            return None
        found, kinds = complete[0], {a.name: a for a in self.arguments}
        several = [n for n, p in found.items() if len(p.values) > 1 and not kinds[n].array]
        if not several:
            return [found]
        if len(several) > 1 or any(n and kinds[n].kind == "amount" for n in found):
            return None
        return [{**found, n: replace(found[n], values=(v,))} for n in several for v in found[n].values]

    def _named(self, phrase: Phrase) -> list[_Argument]:
        """Return the arguments that the phrase's nouns name."""
        return [a for a in self.arguments if not a.words.isdisjoint(phrase.nouns)]

    def _spoken(self, phrase: Phrase) -> bool:
        if not self.texts or phrase.kind != "quote" or len(phrase.values) > 1 or self._named(phrase):
            return False
        return phrase.marker in {"dictation", ""} and self.core.issuperset(phrase.nouns)

    def _fits(self, argument: _Argument, phrase: Phrase, pending: set[str]) -> bool:
        data, marker, kind, role = self.language.data, phrase.marker, argument.kind, argument.role
        effect, named, choices = self.profile.effect, self._named(phrase), _choices(argument)
        if marker == "choice":
            return phrase.values[0].text in choices
        if marker == "counted":
            return kind == "object" and any(a.kind == "amount" for a in self.arguments)
        if marker == "dictation" or (named and argument not in named) or kind == "nested":
            return False
        if marker == "slot" or role == "slot":
            return (marker == "slot" or bool(named)) and role == "slot"
        if choices and any(v.text not in choices for v in phrase.values):
            return False
        set_to = argument.name in pending and not phrase.nouns and marker in data["setting"]
        described = bool(phrase.nouns) and kind in {"object", "name", "channel"}
        if described and not named and not argument.words & set(data["arguments"]["generic"]):
            return False
        if phrase.kind not in (_NAMED.get(kind, _KINDS[kind]) if named or described or set_to else _KINDS[kind]):
            return role == "version" and not marker and phrase.kind in {"number", "version", "id"}
        if set_to:
            return True
        if role == "source":
            return marker in data["away"] or (not marker and (bool(named) or kind == "object"))
        markers = data["markers"]
        if named:
            return marker in data["naming"] or marker in markers["labelled delete" if effect == "delete" else "labelled"]
        if role in {"named_only", "end"} or kind == "text":
            return False
        if phrase.kind in {"number", "word"} and not phrase.nouns:
            if kind == "amount" and effect != "pay":
                return False
            if kind == "object" and phrase.kind == "number" and (marker or not phrase.first or effect == "pay"):
                return False
            if kind == "object" and phrase.kind == "word" and not marker and not phrase.first:
                return False
        if kind == "channel" and not marker and phrase.kind not in {"hash", "quote"}:
            return False
        if role == "goal" and kind not in {"principal", "amount", "when", "url"}:
            return marker in markers["goal"]
        if marker in data["parting"] and kind in {"principal", "object", "name", "channel"}:
            return bool(pending) and argument.required
        if kind == "principal" and not marker and not phrase.first:
            return False
        if kind == "when" and marker in data["setting"]:
            return argument.required and len(self.profile.when) == 1
        plain = marker in markers.get(f"{kind} {effect}", markers[kind])
        if role == "container" and kind == "object":
            return (plain and (self.alone or bool(marker))) or marker in markers["container delete" if effect == "delete" else "container"]
        if role == "file" and kind == "object" and self.texts and not plain:
            return marker in markers["container"] and phrase.kind in {"id", "quote"}
        return plain

    def step(self, bound: Mapping[str, Phrase], dictated: str | None, order: str, digest: str) -> Step:
        """Return the step: values with their spans, and the dictated words for texts."""
        args: dict[str, Argument] = {}
        spoken = [dictated] if dictated else []
        said = [*spoken, *(p.values[0].text for n, p in bound.items() if not n)]
        said += [bound[a.name].values[0].text for a in self.texts if a.name in bound and not said]
        headings = set(self.language.data["arguments"]["heading"])
        needed = self.schema.get("required")
        for argument in self.arguments:
            phrase = bound.get(argument.name) if argument.name else None
            if argument.kind == "text":
                if phrase is not None:
                    args[argument.name] = Text(quote=(phrase.values[0].text,))
                elif spoken or "" in bound or (said and not headings.isdisjoint(argument.words)):
                    args[argument.name] = Text(quote=tuple(said))
                elif self.profile.effect == "pay" and isinstance(needed, list | tuple) and argument.name in needed:
                    args[argument.name] = Text(quote=(order,))
            elif phrase is not None:
                args[argument.name] = self._const(argument, phrase, digest)
        return Step(id="?", tool=self.name, args=args)

    @staticmethod
    def _const(argument: _Argument, phrase: Phrase, digest: str) -> Const:
        values: list[Scalar] = []
        start, end = phrase.values[0].start, phrase.values[-1].end
        for token in phrase.values:
            number = re.search(NUMBER, token.text) if token.kind in {"money", "number"} else None
            read = read_number(number[0]) if number else None
            if number is None or read is None:
                values.append(token.text)
                continue
            values.append(read if argument.kind == "amount" or token.kind == "money" else token.text)
            start, end = (token.start + number.start(), token.start + number.end()) if len(phrase.values) == 1 else (start, end)
        return Const(tuple(values) if argument.array else values[0], said=Span(digest, start, end))
