"""Find who asserted the value of an argument.

For each critical argument, and for each item of a list or object, the answer is a *class*:

    human         the user said it
    principal     one of the subject's own identifiers
    system        a field that a system fills in says it
    internal      a field that somebody inside writes says it
    counterparty  a field says it, but the other side chose its content
    external      a field that anybody may have written says it
    mentioned     it stands somewhere inside a text
    unknown       nobody was seen to say it

and a *standing*, which is what a policy most often needs:

    told          human or principal
    selected      system or internal, in a record that the user's words name; for arguments that are not
                  destinations also in a source that the user named
    known         system or internal
    named         asserted or mentioned by a source that the user named, and by nobody better
    outside       everything else

A word is told as a principal if the user used it as a name (`HumanWords.names`). The same holds for a value
whose only words are those by which the tool is asked for.
An address names somebody: as an object it is known only if a system says that it is an object's id.
A list is worth what its weakest item is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.intent import Request, only_deeds
from langchain_runtime_authz.facts.provenance.atoms import DESTINATIONS, CallAtoms, Item, absent
from langchain_runtime_authz.facts.provenance.forms import key, tidy
from langchain_runtime_authz.facts.provenance.observe import Number, Prose, Sighting
from langchain_runtime_authz.facts.provenance.words import HumanWords
from langchain_runtime_authz.profile import ToolProfile

__all__ = ["NO_MEMORY", "Attribution", "Evidence", "Memory", "Provenance", "names_source", "trace"]

# From most to least believed.
CLASSES: Final = ("human", "principal", "system", "internal", "counterparty", "external", "mentioned", "unknown")
STANDINGS: Final = ("told", "selected", "known", "named", "outside")
SHORTEST: Final = 3  # a shorter text stands everywhere
MAX_SAID: Final = 4  # sources told of one value
_CENT: Final = Decimal("0.01")
_LARGEST: Final = 15  # digits of an amount


class Attribution(NamedTuple):
    """One who asserted or mentioned a value (`authzen.Said`)."""

    origin: Any
    source: str | None = None
    counterparty: bool = False
    selected: bool = False
    named: bool = False


# Remembered: most arguments come from the same few sources.
_attribution_json: Final = lru_cache(maxsize=1024)(Attribution._asdict)


class Provenance(NamedTuple):
    """The source of one value (`authzen.ArgumentProvenance`); an item of a list has no `kind` (`ItemProvenance`)."""

    class_: Any  # of `CLASSES`
    standing: Any  # of `STANDINGS`
    asserted_by: Sequence[Attribution] = ()
    mentioned_by: Sequence[Attribution] = ()
    derived: bool = False
    lookalike: bool = False
    kind: Any = None
    items: Sequence[Provenance] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what the request holds: the schema's fields under their wire names, none left out."""
        found = {
            "class": self.class_,
            "standing": self.standing,
            "asserted_by": list(map(_attribution_json, self.asserted_by)),
            "mentioned_by": list(map(_attribution_json, self.mentioned_by)),
            "derived": self.derived,
            "lookalike": self.lookalike,
        }
        if self.kind is not None:
            found |= {"kind": self.kind, "items": list(map(Provenance.to_json, self.items))}
        return found


class Memory:
    """The numbers and free texts that were seen, newest last, and what is worked out of them once."""

    __slots__ = ("_folded", "_orders", "_outcomes", "numbers", "prose")

    def __init__(self, numbers: Sequence[Number] = (), prose: Sequence[Prose] = ()) -> None:
        self.numbers, self.prose = numbers, prose
        self._folded: str | None = None
        self._outcomes: tuple[HumanWords, _Outcomes] | None = None
        self._orders: Request | None = None

    @property
    def orders(self) -> Request:
        """Texts of the sources that the user named."""
        if self._orders is None:
            self._orders = Request([p.text for p in self.prose if p.named])
        return self._orders

    def mentions(self, phrase: str) -> Iterator[Prose]:
        """Yield the texts that hold a case-folded phrase without line breaks, newest first."""
        if self._folded is None:
            self._folded = "\n".join(p.folded or p.text.casefold() for p in self.prose)
        if phrase in self._folded:
            yield from (p for p in reversed(self.prose) if phrase in (p.folded or p.text.casefold()))

    def outcomes(self, words: HumanWords) -> _Outcomes:
        """Return what can be worked out of these numbers and the user's."""
        if self._outcomes is None or self._outcomes[0] is not words:
            self._outcomes = (words, _Outcomes(words, self.numbers))
        return self._outcomes[1]


NO_MEMORY: Final = Memory()


class Evidence(NamedTuple):
    """The sightings known when a call is decided.

    Attributes:
        words: what the user said.
        own: forms of the subject's own identifiers.
        seen: sightings by `forms.key`.
        memory: numbers and free texts seen. Without them nothing is derived, and a value that stands
            only in a text is unknown.
    """

    words: HumanWords
    own: frozenset[str] = frozenset()
    seen: Mapping[str, Sequence[Sighting]] = MappingProxyType({})
    memory: Memory = NO_MEMORY


def trace(atoms: CallAtoms, profile: ToolProfile, evidence: Evidence) -> dict[str, Provenance]:
    """Return the provenance of each critical and each date argument that is given. Empty ones say nothing."""
    traced: dict[str, Provenance] = {}
    for name, kind, value, items, _ in atoms.atoms:
        if items is None:
            traced[name] = Provenance("unknown", "outside", kind=kind)
        elif items and items[0].value is value:
            traced[name] = Provenance(*_item(items[0], kind, evidence, profile)[:6], kind)
        elif items:
            found = [_item(item, kind, evidence, profile) for item in items]
            traced[name] = Provenance(
                class_=max((p.class_ for p in found), key=CLASSES.index),
                standing=max(found, key=_weakness).standing,
                lookalike=any(p.lookalike for p in found),
                kind=kind,
                items=found,
            )
    return traced


def names_source(atoms: CallAtoms, words: HumanWords) -> bool:
    """Return True if the user named what a read reads: each of its critical arguments, and it has one."""
    named = False
    for _, kind, _, items, _ in atoms.atoms:
        if kind == "when":
            continue
        if not items:
            return False
        for item in items:
            if absent(item.value):
                continue
            named = True
            for part in item.parts:
                if not words.told(part).said:
                    return False
    return named


_TOLD: Final = Provenance("human", "told", (Attribution("human"),))
_OWN: Final = Provenance("principal", "told", (Attribution("principal"),))


def _weakness(found: Provenance | _Term) -> tuple[int, int]:
    return STANDINGS.index(found.standing), CLASSES.index(found.class_)


def _item(item: Item, kind: str, evidence: Evidence, profile: ToolProfile) -> Provenance:
    value, parts, _ = item
    # The password of "change my password" is not a password that was said.
    as_name = kind == "principal" or (isinstance(value, str) and only_deeds(value, profile.intent))
    found = []
    for part in parts:
        told = evidence.words.told(part)
        if told.named if as_name else told.said:
            found.append(_TOLD)
        elif told.withdrawn:  # nobody else vouches for what the user forbids; its sources are listed all the same
            found.append(_part(part, value, kind, evidence, withdrawn=True)._replace(standing="outside"))
        else:
            found.append(_part(part, value, kind, evidence, withdrawn=False))
    return max(found, key=_weakness) if len(found) > 1 else found[0]


def _part(part: tuple[str, ...], value: object, kind: str, evidence: Evidence, *, withdrawn: bool) -> Provenance:
    if evidence.own.intersection(part):
        return _OWN
    sightings = [s for f in part for s in evidence.seen.get(key(f), ())]
    trusted = [s for s in sightings if _class(s) in ("system", "internal")]
    # "60, not 30": though 30 is the half of 60.
    if kind == "amount" and not withdrawn and not trusted and (derived := _derived(part, evidence)) is not None:
        return derived
    asserted = sorted((s for s in sightings if s.asserted), key=lambda s: CLASSES.index(_class(s)))
    by = tuple(_attribution(s) for s in asserted[:MAX_SAID])
    within = list(dict.fromkeys(_attribution(s) for s in sightings if not s.asserted))[:MAX_SAID]
    if not sightings and isinstance(value, str):
        within = _mentions(value, evidence.memory)
    class_ = _class(asserted[0]) if asserted else "mentioned" if within else "unknown"
    if trusted:
        standing = "selected" if any(_selected(s, kind) for s in trusted) else "known"
        if standing == "known" and kind == "object" and class_ == "internal" and _addresses(part):
            standing = "outside"
    else:
        standing = "named" if any(s.named for s in (sightings if asserted else within)) else "outside"
    lookalike = isinstance(value, str) and evidence.words.resembles(value)
    return Provenance(class_, standing, by, within, lookalike=lookalike)


def _selected(seen: Sighting, kind: str) -> bool:
    """Return True if the user selected what a source says. Naming the source selects none of its destinations."""
    return seen.selected or (seen.named and kind not in DESTINATIONS)


def _addresses(part: Sequence[str]) -> bool:
    return any(form.startswith(("email:", "iban:", "url:")) for form in part)


def _class(seen: Sighting) -> str:
    if not seen.asserted:
        return "mentioned"
    return "counterparty" if seen.counterparty else seen.origin


def _attribution(seen: Sighting) -> Attribution:
    return Attribution(seen.origin, seen.source, seen.counterparty, seen.selected, seen.named)


def _mentions(value: str, memory: Memory) -> list[Attribution]:
    """Return the free texts in which a value stands, newest first."""
    phrase = tidy(value).casefold()
    found: dict[Attribution, None] = {}
    for p in memory.mentions(phrase) if len(phrase) >= SHORTEST else ():
        found[Attribution(p.origin, p.source, named=p.named)] = None
        if len(found) == MAX_SAID:
            break
    return list(found)


# --- numbers that somebody worked out ---------------------------------------------------------------


class _Term(NamedTuple):
    value: Decimal
    class_: Any  # of `CLASSES`
    standing: Any  # of `STANDINGS`
    by: Attribution

    def scaled(self, by: Decimal) -> _Term:
        return self._replace(value=self.value * by)


def _derived(part: tuple[str, ...], evidence: Evidence) -> Provenance | None:
    """Return the provenance of a part, a percentage, or the sum or difference of two numbers, or `None`.

    The user told or named one of the two. The result is worth what the weaker number is worth. It is rounded to the
    hundredth, with at most one step of each kind, so that not every amount is the outcome of something.
    """
    target = next((Decimal(f[4:]) for f in part if f.startswith("num:")), None)
    if target is None or not _countable(target):
        return None
    found = evidence.memory.outcomes(evidence.words).of(target)
    best = min(found, key=lambda terms: max(map(_weakness, terms)), default=None)
    if best is None:
        return None
    weakest = max(best, key=_weakness)
    by = list(dict.fromkeys(t.by for t in best))
    asserted = weakest.class_ != "mentioned"
    return Provenance(weakest.class_, weakest.standing, by if asserted else (), () if asserted else by, derived=True)


class _Outcomes:
    """The terms of a derivation, by value."""

    def __init__(self, words: HumanWords, numbers: Sequence[Number]) -> None:
        told = [_Term(n, "human", "told", Attribution("human")) for n in words.numbers if _countable(n)]
        seen = [t for n in numbers if (t := _term(n)) is not None]
        parts = [t.scaled(Decimal(1) / n) for t in told for n in (2, 3, 4)]
        percents = [t.scaled(p / 100) for p in words.percents for t in [*told, *seen]]
        self._scaled = (*parts, *percents)
        self._anchors = (*told, *(t for t in seen if t.standing == "named"), *self._scaled)
        self._by_value: dict[Decimal, list[_Term]] = {}
        for term in (*told, *parts, *percents, *seen):
            self._by_value.setdefault(term.value.quantize(_CENT), []).append(term)

    def of(self, target: Decimal) -> Iterator[tuple[_Term, ...]]:
        """Yield one term that is the target, or two whose sum or difference is."""
        yield from ((term,) for term in self._scaled if abs(term.value - target) < _CENT / 2)
        for anchor in self._anchors:
            for other in (target - anchor.value, anchor.value - target, target + anchor.value):
                for term in self._by_value.get(other.quantize(_CENT), ()):
                    if term is not anchor:
                        yield (anchor, term)


def _countable(number: Decimal) -> bool:
    """Return True for an amount that somebody could mean; others overflow."""
    return number.adjusted() < _LARGEST


def _term(number: Number) -> _Term | None:
    seen = number.seen
    if not _countable(number.value):
        return None
    class_ = _class(seen)
    if class_ in ("system", "internal", "counterparty"):
        # What the counterparty paid or asked is a fact of the record, though not a destination.
        return _Term(number.value, class_, "selected" if _selected(seen, "amount") else "known", _attribution(seen))
    return _Term(number.value, class_, "named", _attribution(seen)) if seen.named else None
