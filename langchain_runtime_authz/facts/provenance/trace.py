"""Who asserted the value of an argument.

For each critical argument, and for each item of a list or object, the answer is a *class*:

    human         the human said it
    principal     one of the principal's own identifiers
    system        a field that a system fills in says it
    internal      a field that somebody inside writes says it
    counterparty  a field says it, but whoever is on the other side chose what stands there
    external      a field that anybody may have written says it
    mentioned     it merely stands somewhere inside a text
    unknown       nobody was seen to say it

and a *standing*, which is what a policy needs to know most often:

    told          human or principal
    selected      system or internal, in a record that the human's words name; but for destinations, in a
                  source that he named, too
    known         system or internal
    named         asserted or mentioned by a source that the human named, and by nobody better
    outside       everything else

A principal who is called by a word is told where the human used it as a name (`words.HumanWords.names`), and
so is anything whose only words are those by which the tool is asked for.
An address names somebody: as an object it is known only where a system says that it is one's id.
A list is worth what its weakest item is worth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.authzen import ArgumentProvenance, ItemProvenance, Said
from langchain_runtime_authz.facts.intent import Request, only_deeds
from langchain_runtime_authz.facts.provenance.forms import forms, identifiers, key, mentions, skeleton, tidy
from langchain_runtime_authz.facts.provenance.observe import FIELD, Number, Prose, Sighting
from langchain_runtime_authz.facts.provenance.words import HumanWords
from langchain_runtime_authz.profile import ToolProfile, argument

__all__ = ["CLASSES", "STANDINGS", "Evidence", "Memory", "effect_target", "names_source", "trace", "wanted"]

# From most to least believed.
CLASSES: Final = ("human", "principal", "system", "internal", "counterparty", "external", "mentioned", "unknown")
STANDINGS: Final = ("told", "selected", "known", "named", "outside")
MAX_ITEMS: Final = 64  # of one argument; a longer list is unknown as a whole
SHORTEST: Final = 3  # a shorter text stands everywhere
MAX_SAID: Final = 4  # sources told of one value
_DESTINATIONS: Final = ("principal", "url", "channel")
_CENT: Final = Decimal("0.01")
_LARGEST: Final = 15  # digits of an amount
# `Bob <bob@x.org>`: what is shown, and where it goes (RFC 5322).
_SHOWN: Final = re.compile(r"[^<>@]*<([^<>]*)>\s*")
_BETWEEN: Final = re.compile(r"[,;\r\n]")


class Memory:
    """The numbers and free texts that were seen, newest last, and what is worked out of them once for all questions."""

    __slots__ = ("_folded", "_orders", "_outcomes", "numbers", "prose")

    def __init__(self, numbers: Sequence[Number] = (), prose: Sequence[Prose] = ()) -> None:
        self.numbers, self.prose = numbers, prose
        self._folded: str | None = None
        self._outcomes: tuple[HumanWords, _Outcomes] | None = None
        self._orders: Request | None = None

    @property
    def orders(self) -> Request:
        """What the texts ask for that stand in sources which the human named."""
        if self._orders is None:
            self._orders = Request([p.text for p in self.prose if p.named])
        return self._orders

    def mentions(self, phrase: str) -> Iterator[Prose]:
        """The texts that hold a case-folded phrase without line breaks, newest first."""
        if self._folded is None:
            self._folded = "\n".join(p.folded or p.text.casefold() for p in self.prose)
        if phrase in self._folded:
            yield from (p for p in reversed(self.prose) if phrase in (p.folded or p.text.casefold()))

    def outcomes(self, words: HumanWords) -> _Outcomes:
        """What can be worked out of these numbers and the human's."""
        known = self._outcomes
        if known is None or known[0] is not words:
            known = self._outcomes = (words, _Outcomes(words, self.numbers))
        return known[1]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known when a call is judged.

    Attributes:
        words: what the human said.
        own: forms of the principal's own identifiers.
        seen: sightings by `forms.key`.
        memory: numbers and free texts seen; may be missing, then nothing is derived, and what stands
            only in a text is unknown.
    """

    words: HumanWords
    own: frozenset[str] = frozenset()
    seen: Mapping[str, Sequence[Sighting]] = field(default_factory=dict)
    memory: Memory = field(default_factory=lambda: Memory())


def wanted(profile: ToolProfile, args: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys to look up before `trace` can answer."""
    found: dict[str, None] = {}
    for name, kind in _traced(profile):
        for value in _items(argument(args, name)) or ():
            for atom in _atoms(value, kind):
                found.update((key(f), None) for f in atom)
    return tuple(found)


def trace(profile: ToolProfile, args: Mapping[str, Any], evidence: Evidence) -> dict[str, ArgumentProvenance]:
    """The provenance of each critical and each date argument that is given. Empty ones say nothing."""
    traced: dict[str, ArgumentProvenance] = {}
    for name, kind in _traced(profile):
        value = argument(args, name)
        if _absent(value):
            continue
        items = _items(value)
        if items is None:
            traced[name] = ArgumentProvenance(kind=kind, class_="unknown", standing="outside")
            continue
        if not items:
            continue
        found = [_item(v, kind, evidence, profile) for v in items]
        if len(found) == 1 and not isinstance(value, list | dict):
            traced[name] = ArgumentProvenance(kind=kind, **found[0].told())
            continue
        weakest = max(found, key=lambda p: (STANDINGS.index(p.standing), CLASSES.index(p.class_)))
        traced[name] = ArgumentProvenance(
            kind=kind,
            class_=max((p.class_ for p in found), key=CLASSES.index),
            standing=weakest.standing,
            lookalike=any(p.lookalike for p in found),
            items=[ItemProvenance(**one.told()) for one in found],
        )
    return traced


def names_source(profile: ToolProfile, args: Mapping[str, Any], words: HumanWords) -> bool:
    """Whether the human named what a read reads: each of its critical arguments, and there is one."""
    given = [(v, k) for n, k in profile.critical.items() for v in _items(argument(args, n)) or ((),) if not _absent(v)]
    return bool(given) and all(
        bool(atoms := _atoms(v, k)) and all(atom and words.said(atom) for atom in atoms) for v, k in given
    )


def effect_target(profile: ToolProfile, args: Mapping[str, Any]) -> str:
    """One digest for all calls of a tool that hit the same, whatever their texts say: its critical arguments.

    However they are written: in another order, twice, with signs around them, under a shown name. That two who
    differ come out as one costs a question; the other way a payment is made twice.
    Empty where a tool has none, or was given none.
    """
    hit = []
    for name, kind in sorted(profile.critical.items()):
        value = argument(args, name)
        items = _items(value)
        if items is None:
            hit.append((name, [repr(value)]))
        elif items:
            hit.append((name, sorted({mark for item in items for mark in _marks(item, kind)})))
    return key(repr(hit)) if hit else ""


def _marks(value: object, kind: str) -> Iterator[str]:
    """What a scalar hits: of a destination the addresses in it alone, of a number the most that it may mean."""
    if kind in _DESTINATIONS and isinstance(value, int):
        value = str(value)  # an account's number
    found = [f for atom in _atoms(value, kind) for f in atom[:1]]
    if isinstance(value, str) and kind in _DESTINATIONS:
        found = identifiers(tidy(value)) or [f for f in forms(value) if f.startswith("digits:")] or found
    elif isinstance(value, str) and kind == "amount":
        found = [f for f in mentions(value) if f.startswith("num:")] or found
        found = [max(found, key=_worth)] if found else []
    for form in found or [repr(value)]:
        signless = "".join(c for c in skeleton(form.partition(":")[2]) if c.isalnum())
        yield form if kind == "amount" or not signless else signless


def _worth(form: str) -> Decimal:
    return Decimal(form.removeprefix("num:")) if form.startswith("num:") else Decimal(-1)


def _traced(profile: ToolProfile) -> list[tuple[str, Any]]:
    return [*profile.critical.items(), *((name, "when") for name in profile.when)]


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _items(value: object) -> list[Any] | None:
    """The scalars of an argument, keys that are values among them, or `None` where there are too many."""
    flat: list[Any] = []
    stack: list[Any] = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, dict):
            stack += [*reversed(top.values())]
            # A key that is no name of a field is a value.
            stack += [k for k in top if not (isinstance(k, str) and FIELD.fullmatch(k)) or identifiers(k)]
        elif isinstance(top, list):
            stack += reversed(top)
        elif not _absent(top):
            flat.append(top)
        if len(flat) + len(stack) > MAX_ITEMS * 4:
            return None
    if not flat and isinstance(value, dict):  # then its keys are all that is said
        flat = list(value)
    return flat if len(flat) <= MAX_ITEMS else None


def _atoms(value: object, kind: str) -> list[tuple[str, ...]]:
    """The parts of a scalar that must each be vouched for, as forms; a part without forms never is.

    A text that holds addresses or links goes to each of them, whatever name it shows, and to whatever
    else stands in it; a date with a time is both; of a number that can be read in two ways each must be.
    """
    whole = forms(value)
    if kind == "when":
        return _moment(whole)
    if len(readings := [f for f in whole if f.startswith("num:")]) > 1:
        return [(f,) for f in readings]
    if isinstance(value, str) and kind in _DESTINATIONS:
        inner = identifiers(tidy(value))
        if inner and not set(inner) <= set(whole):
            return [*((f,) for f in inner), *_places(value)]
    return [whole]


def _places(value: str) -> Iterator[tuple[str, ...]]:
    """Where a text goes, part by part. An address with something before or behind it is another one.

    `bob@x.org.é.net`, `https://x.org(.evil.net`: what a parser makes of them is not known here.
    """
    for part in _BETWEEN.split(value):
        if part.strip():
            shown = _SHOWN.fullmatch(part)
            yield forms(shown[1] if shown is not None else part)


def _moment(whole: tuple[str, ...]) -> list[tuple[str, ...]]:
    dates = tuple(f for f in whole if f.startswith(("date:", "day:")))
    times = tuple(f for f in whole if f.startswith("time:"))
    return [part for part in (dates, times) if part] or [whole]


class _Found(NamedTuple):
    """`ItemProvenance`, which costs more to make, while it is looked for."""

    class_: Any  # of `CLASSES`
    standing: Any  # of `STANDINGS`
    asserted_by: Sequence[Said] = ()
    mentioned_by: Sequence[Said] = ()
    lookalike: bool = False
    derived: bool = False

    def told(self) -> dict[str, Any]:
        """The fields of the model."""
        return {**self._asdict(), "asserted_by": [*self.asserted_by], "mentioned_by": [*self.mentioned_by]}


_TOLD: Final = _Found("human", "told", (Said(origin="human"),))
_OWN: Final = _Found("principal", "told", (Said(origin="principal"),))


def _item(value: object, kind: str, evidence: Evidence, profile: ToolProfile) -> _Found:
    found = []
    for atom in _atoms(value, kind):
        one = _atom(atom, value, kind, evidence, profile)
        # What the human forbids nobody else makes good: it stands in the list all the same.
        found.append(one._replace(standing="outside") if evidence.words.withdrawn(atom) else one)
    return max(found, key=lambda p: (STANDINGS.index(p.standing), CLASSES.index(p.class_)))


def _atom(atom: tuple[str, ...], value: object, kind: str, evidence: Evidence, profile: ToolProfile) -> _Found:
    words = evidence.words
    # The password of "change my password" is no password that was said.
    as_name = kind == "principal" or (isinstance(value, str) and only_deeds(value, profile.intent))
    if atom and (words.names(atom) if as_name else words.said(atom)):
        return _TOLD
    if evidence.own.intersection(atom):
        return _OWN
    sightings = [s for f in atom for s in evidence.seen.get(key(f), ())]
    # "60, not 30": though 30 is the half of 60.
    if (
        kind == "amount"
        and not words.withdrawn(atom)
        and not any(_class(s) in ("system", "internal") for s in sightings)
    ):
        derived = _derived(atom, evidence)
        if derived is not None:
            return derived
    asserted = sorted((s for s in sightings if s.asserted), key=lambda s: CLASSES.index(_class(s)))
    mentioned = [s for s in sightings if not s.asserted]
    lookalike = isinstance(value, str) and words.resembles(value)
    by = [_said(s) for s in asserted[:MAX_SAID]]
    within = list(dict.fromkeys(_said(s) for s in mentioned))[:MAX_SAID]
    if not sightings and isinstance(value, str):
        within = _mentions(value, evidence.memory)
    if asserted:
        best = asserted[0]
        class_ = _class(best)
        if class_ in ("system", "internal"):
            selected = any(_selected(s, kind) for s in asserted if _class(s) in ("system", "internal"))
            standing = "selected" if selected else "known"
            if standing == "known" and kind == "object" and class_ == "internal" and _addresses(atom):
                standing = "outside"
            return _Found(class_, standing, by, within, lookalike=lookalike)
        standing = "named" if any(s.named for s in sightings) else "outside"
        return _Found(class_, standing, by, within, lookalike=lookalike)
    if within:
        standing = "named" if any(s.named for s in within) else "outside"
        return _Found("mentioned", standing, (), within, lookalike=lookalike)
    return _Found("unknown", "outside", lookalike=lookalike)


def _selected(seen: Sighting, kind: str) -> bool:
    """A source that the human named selects what it says, but nobody to send or pay to: whoever got into it would be one."""
    return seen.selected or (seen.named and kind not in _DESTINATIONS)


def _addresses(atom: Sequence[str]) -> bool:
    return any(form.startswith(("email:", "iban:", "url:")) for form in atom)


def _class(seen: Sighting) -> str:
    if not seen.asserted:
        return "mentioned"
    return "counterparty" if seen.counterparty else seen.origin


def _said(seen: Sighting) -> Said:
    return Said(
        origin=seen.origin,
        source=seen.source,
        counterparty=seen.counterparty,
        selected=seen.selected,
        named=seen.named,
    )


def _mentions(value: str, memory: Memory) -> list[Said]:
    """The free texts in which a value stands, newest first."""
    phrase = tidy(value).casefold()
    if len(phrase) < SHORTEST:
        return []
    found: dict[Said, None] = {}
    for p in memory.mentions(phrase):
        found[Said(origin=p.origin, source=p.source, named=p.named)] = None
        if len(found) == MAX_SAID:
            break
    return list(found)


# --- numbers that somebody worked out ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Term:
    value: Decimal
    class_: Any  # of `CLASSES`
    standing: Any  # of `STANDINGS`
    said: Said


def _derived(atom: tuple[str, ...], evidence: Evidence) -> _Found | None:
    """A part, a percentage, or the sum or difference of two numbers, one of which the human told or named.

    Worth what the weaker number is worth. Rounded to the hundredth. One step of each kind at most,
    so that not every amount is the outcome of something.
    """
    target = next((Decimal(f[4:]) for f in atom if f.startswith("num:")), None)
    if target is None or not _countable(target):
        return None
    best: tuple[_Term, ...] | None = None
    for found in evidence.memory.outcomes(evidence.words).of(target):
        if best is None or _rank(found) < _rank(best):
            best = found
    if best is None:
        return None
    weakest = max(best, key=lambda t: (STANDINGS.index(t.standing), CLASSES.index(t.class_)))
    by = list(dict.fromkeys(t.said for t in best))
    asserted = weakest.class_ != "mentioned"
    return _Found(weakest.class_, weakest.standing, by if asserted else (), () if asserted else by, derived=True)


class _Outcomes:
    """The terms of a derivation, by value."""

    def __init__(self, words: HumanWords, numbers: Sequence[Number]) -> None:
        told = [_Term(n, "human", "told", Said(origin="human")) for n in words.numbers if _countable(n)]
        seen = [t for n in numbers if (t := _term(n)) is not None]
        parts = [_scaled(t, Decimal(1) / n) for t in told for n in (2, 3, 4)]
        percents = [_scaled(t, p / 100) for p in words.percents for t in [*told, *seen]]
        self._scaled = (*parts, *percents)
        self._anchors = (*told, *(t for t in seen if t.standing == "named"), *self._scaled)
        self._by_value: dict[Decimal, list[_Term]] = {}
        for term in (*told, *parts, *percents, *seen):
            self._by_value.setdefault(term.value.quantize(_CENT), []).append(term)

    def of(self, target: Decimal) -> Iterator[tuple[_Term, ...]]:
        """One term that is the target, or two whose sum or difference is."""
        yield from ((term,) for term in self._scaled if _same(term.value, target))
        for anchor in self._anchors:
            for other in (target - anchor.value, anchor.value - target, target + anchor.value):
                for term in self._by_value.get(other.quantize(_CENT), ()):
                    if term is not anchor:
                        yield (anchor, term)


def _rank(terms: Sequence[_Term]) -> tuple[int, int]:
    return max((STANDINGS.index(t.standing), CLASSES.index(t.class_)) for t in terms)


def _countable(number: Decimal) -> bool:
    """An amount that somebody could mean; others overflow."""
    return number.adjusted() < _LARGEST


def _term(number: Number) -> _Term | None:
    seen = number.seen
    if not _countable(number.value):
        return None
    class_ = _class(seen)
    if class_ in ("system", "internal", "counterparty"):
        # What the counterparty paid or asked is a fact of the record, though not a destination.
        return _Term(number.value, class_, "selected" if _selected(seen, "amount") else "known", _said(seen))
    return _Term(number.value, class_, "named", _said(seen)) if seen.named else None


def _scaled(term: _Term, by: Decimal) -> _Term:
    return _Term(term.value * by, term.class_, term.standing, term.said)


def _same(a: Decimal, b: Decimal) -> bool:
    return abs(a - b) < _CENT / 2
