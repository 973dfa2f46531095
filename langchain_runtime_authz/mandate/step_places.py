"""Give each value of a planner's step a position of its own in the messages.

A position backs one argument of one step. All positions of a side effect are in one sentence of the newest message, which
must be a plain order (`mandate.plain_orders`). The other sentences may not change it. Only a write inside the application may also have positions in earlier messages.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

from langchain_runtime_authz._locks import cached_property
from langchain_runtime_authz.facts.normal_forms import mask_spans
from langchain_runtime_authz.mandate.languages import languages, singular, words_of
from langchain_runtime_authz.mandate.message_places import CHANGED, DIRECTIONS, PERCENT, Place, Texts, Unit, leading
from langchain_runtime_authz.mandate.model import Step
from langchain_runtime_authz.mandate.plain_orders import (
    QUOTE,
    VALUE,
    WHEN,
    Known,
    changes_nothing,
    is_money,
    orders,
    says,
    starts_of,
    unclear,
)
from langchain_runtime_authz.mandate.vocabulary import TARGETS
from langchain_runtime_authz.tool_profile import ToolProfile

RISKY: Final = frozenset(("pay", "delete", "admin"))
_SHOWN: Final = 60
_BRACKETS: Final = frozenset("()-\u2013\u2014\u2026")
_NOUN: Final = re.compile(r"\s?([^\W\d_]+)")  # "guests" of "3 guests"
_LISTED: Final = re.compile(r"\s*(?:[-*\u2022]|\d{1,2}[.)])\s")
# By the words of an argument's name, in a language's lists: what never stands before its value.
_WRONG_WAYS: Final = {"givers": ("to", "until"), "goals": ("from", "until"), "ends": ("from",), "": ("until",)}


class NeededValue(NamedTuple):
    """A value of a step that must stand in the user's messages."""

    owner: str  # the argument, or step and field of a condition
    value: object
    also: tuple[str, ...] = ()  # the profile's other words for it
    dictated: bool = False  # free text that the user dictates
    dated: bool = False  # a day or a time; another thing may stand before it: "my calendar on 3 June"
    alone: bool = False  # another step of the tool may not share it
    ends: bool = False  # it must reach to the end of its sentence or quotation, so that a command is not cut
    counts: bool = False  # a number of calls
    strict: bool = False  # the step pays, deletes or administers
    shares: bool = False  # choices, and conditions on one field, may have one position with others of `owner`
    joined: str = ""  # the rule for what may stand between it and the other values of `owner`
    rate: bool = False  # a percentage
    moneyed: bool = False  # an amount of money
    unit: Unit = None  # what it counts, by the argument's name
    calculated: bool = False  # a number of another calculation, like "less 12"
    order: bool = False  # a sentence that orders must say it; what is forbidden in it is not looked for
    hit: bool = False  # it is whom or what a write or a message hits, so "it" may stand for it
    verbs: frozenset[str] = frozenset()  # of the step's orders


class BackedPlace(NamedTuple):
    """The position that backs a need."""

    place: Place
    deed: str  # empty for a read, which does not use up positions
    need: NeededValue


Placed = tuple[list[BackedPlace], str | None]  # the claims, or why there are none


class Placing:
    """The positions that back a mandate's steps. `claims`: step id → its positions.

    Args:
        words: the user's messages.
        known: the words that name the mandate's tools, and the verbs that order them.
        needs: the values of all side effects.
    """

    def __init__(self, words: Texts, known: Known, needs: Iterable[NeededValue]) -> None:
        self.words, self.known = words, known
        self.claims: dict[str, list[BackedPlace]] = {}
        self.torn = set[str]()  # steps whose values are mixed with those of a lost step
        values = [list[tuple[int, int]]() for _ in words.segments]
        dates = [list[tuple[int, int]]() for _ in words.segments]
        for need in needs:
            nouns = need._replace(also=tuple(word for word in need.also if word.lower() not in known.verbs))
            for n, start, end in self._places(nouns):
                (dates if need.dated else values)[n].append((start, end))
        self._masked = list[str]()
        for segment, spans, days in zip(words.segments, values, dates, strict=True):
            said = mask_spans(mask_spans(segment.text, days, WHEN), spans, VALUE)
            self._masked.append(
                mask_spans(said, [q for q in segment.quotations if {VALUE, WHEN}.isdisjoint(said[slice(*q)])], QUOTE)
            )

    def read(self, needs: Sequence[NeededValue]) -> Placed:
        """Find positions for the values of a read. The values may stand in any sentence."""
        found = [(need, self.choices(need)) for need in needs]
        if unsaid := [need for need, places in found if not places]:
            return [], self._unsaid(unsaid[0])
        return [BackedPlace(places[-1], "", need) for need, places in found], None

    def order(self, step: Step, profile: ToolProfile, needs: Sequence[NeededValue], left: Collection[str]) -> Placed:
        """Find positions for a side effect's values, all in one sentence that orders.

        `left`: choices that the step does not take. The message may not say them.
        """
        choices, before = [], list[BackedPlace]()
        for need in needs:
            found = self.choices(need)
            inside = [place for place in found if place.segment >= self.words.newest]
            movable = profile.inside and not (need.dictated or need.ends or need.counts or need.joined)
            if found and not inside and movable:
                before.append(BackedPlace(found[-1], "", need))
                continue
            if not inside:
                return [], self._unsaid(need)
            choices.append((need, inside))
        if not choices:
            return [], "the newest message says none of its values"
        choices.sort(key=lambda c: (c[0].dictated, c[0].counts, len(c[1])))  # values with few positions choose first
        why = "the user's words do not say all of it in one sentence"
        for n, sentence in dict.fromkeys(self.sentence_of(place) for place in choices[0][1]):
            here = [(need, [p for p in found if self._inside(need, p, n, sentence)]) for need, found in choices]
            if not all(found for _, found in here):
                continue
            here = [(need, [*found, *self._again(need, found)]) for need, found in here]
            placed = self._apart(here, _deed(step, profile))
            if before and says("amend", self._said((n, sentence)), self.known):
                why = "it is unclear what `it` changes"  # `mandate.follow_ups` reads "make it 45"
            elif placed is None:
                why = "its values stand in the words once, and something else has that place"
            elif not self._listed(placed, _deed(step, profile)):
                why = "it shares a value with a step that stands elsewhere in the words"
            elif not self._joined(placed):
                why = "its choices do not stand next to each other in the words"
            elif (other := self.says_any(left)) is not None:
                why = f"the words say {other!r}, but the step does not"
            elif (wrong := self._misplaced(profile, placed)) is not None:
                why = f"`{wrong}`: the words before its value mean another argument"
            elif (doubt := self._doubt(n, sentence, needs[0].verbs, placed)) is not None:
                why = doubt
            else:
                return placed + before, None
        return [], why

    def unplaced(self, reads: Iterable[str], verbs: frozenset[str]) -> str | None:
        """Return why no sentence orders a step without values but with `reads`, or None."""
        needs = [claim.need for read in reads for claim in self.claims[read]]
        newest = self.words.newest
        anchors = [self.sentence_of(place) for need in needs for place in self.choices(need) if place.segment >= newest]
        sentences = [at for at in [*anchors, *self._newest()] if self._said(at).strip()]
        doubts = [self._doubt(*at, verbs) for at in sentences]
        return None if None in doubts else next(reversed(doubts), "the user's words order nothing")

    def order_to(self, verbs: frozenset[str]) -> bool:
        """Return True if a sentence of the newest messages orders by one of `verbs`."""
        known = self.known._replace(verbs=verbs)
        return any(says("verb", self._said(at), known) and self._doubt(*at, verbs) is None for at in self._newest())

    def mixed(self, orders: Sequence[tuple[Step, ToolProfile]]) -> dict[str, str]:
        """Return step id → reason: "Bob 45 and Carol 3000", "45 each" for one step."""
        found = dict.fromkeys(self.torn, "its values and those of another step are mixed in the words")
        taken = Counter(c.place for step, _ in orders for c in self.claims[step.id] if c.need.alone)
        for step, _ in orders:
            if any(taken[c.place] == 1 and self._each(c.need, c.place) for c in self.claims[step.id]):
                found[step.id] = "its number is said for each of several"
        hulls = {step.id: span_of_places([c.place for c in self.claims[step.id]]) for step, _ in orders}
        for (one, profile), (two, other) in combinations(orders, 2):
            unlike = one.tool != two.tool or _deed(one, profile) == _deed(two, other)
            shared = {c.place for c in self.claims[one.id]} & {c.place for c in self.claims[two.id]}
            spans = hulls[one.id], hulls[two.id]  # "close T-1 for T-2": nothing like "and" parts their values
            together = _overlap(*spans) or (spans[0].segment == spans[1].segment and not self._parted(*spans))
            if not unlike and not shared and together:
                found[one.id] = f"its values and those of `{two.id}` are mixed in the words"
                found[two.id] = f"its values and those of `{one.id}` are mixed in the words"
        return found

    def _parted(self, one: Place, two: Place) -> bool:
        first, last = sorted((one, two))
        edges = self._edges[first.segment]
        return bisect_left(edges, first.end) < bisect_left(edges, last.start)

    @cached_property
    def _edges(self) -> list[list[int]]:
        """For each segment: where something like "and" parts values."""
        return [starts_of("apart", said, self.known) for said in self._masked]

    def quotes_more(self, step: str) -> bool:
        """Return True if a quotation that no step uses may be a step's text."""
        used, segments = [c.place for several in self.claims.values() for c in several], self.words.segments
        last = [*enumerate(segments)][self.words.newest :]
        quoted = [Place(n, *span) for n, segment in last for span in segment.quotations]
        if self.claims[step]:  # only quotations from the step's sentence on: a dictated text follows its order
            n, start, _ = span_of_places([c.place for c in self.claims[step]])
            first = segments[n].sentence(start)
            quoted = [q for q in quoted if q.segment == n and q.start >= segments[n].starts[first]]
        return any(not any(_overlap(q, other) for other in used) for q in quoted)

    def names_more(self, step: str) -> bool:
        """Return True if a step's sentence has words that may mean what is read."""
        said = [self._said(at) for at in {self.sentence_of(claim.place) for claim in self.claims[step]}]
        return not said or any(says("thing", text, self.known) for text in said)

    def choices(self, need: NeededValue) -> list[Place]:
        """Return the positions of a need's value after the last place that prohibits it."""
        found, newest = self._places(need), self.words.newest
        last = max(
            (p for p in found if not (need.order and p.segment >= newest) and self._refused(need, p)), default=None
        )
        return [p for p in found if (last is None or p > last) and (not need.ends or self._ends(p))]

    def _refused(self, need: NeededValue, place: Place) -> bool:
        """Return True if a sentence prohibits the value, and is not the order itself."""
        return not need.counts and self.words.refused(place, dictated=need.dictated)

    def _places(self, need: NeededValue) -> list[Place]:
        if need.counts:
            return self.words.counts(int(str(need.value)), strict=need.strict)
        values = (need.value, *need.also)
        found = (p for v in values for p in self.words.places(v, dictated=need.dictated, unit=need.unit))
        return sorted(self._with_unit(need, found))

    def _with_unit(self, need: NeededValue, places: Iterable[Place]) -> Iterator[Place]:
        """Yield the places with the unit that the argument's name says: "6 weeks"."""
        for place in places:
            text = self.words.segments[place.segment].text
            unit, before = need.unit and need.unit.match(text, place.end), text[: place.start]
            if not need.moneyed and isinstance(need.value, int | float) and is_money(text, place.start, place.end):
                continue  # "$5 pens" are not 5 pens
            changed = unit and CHANGED.search(before)
            if changed and (need.strict or need.unit is PERCENT or not need.verbs.isdisjoint(("set", "update"))):
                continue  # "raise it by 6"
            later = unit and not changed and says("moment", f"{leading(before)[0]} {VALUE}", self.known)
            if unit or not need.rate:
                yield place._replace(end=unit.end()) if unit and not later else place

    def _ends(self, place: Place) -> bool:
        segment = self.words.segments[place.segment]
        if any(first <= place.start and place.end <= last for first, last in segment.quotations):
            return True  # the value is the whole quotation, which `Segment.whole` has checked
        end = segment.span(segment.sentence(place.start))[1]
        return not segment.text[place.end : end].strip(" \t\n.,;:!?")

    def sentence_of(self, place: Place) -> tuple[int, int]:
        return place.segment, self.words.segments[place.segment].sentence(place.start)

    def _said(self, at: tuple[int, int]) -> str:
        """Return the sentence at a position, with signs for values and quotations."""
        return self._masked[at[0]][slice(*self.words.segments[at[0]].span(at[1]))]

    def _inside(self, need: NeededValue, place: Place, n: int, sentence: int) -> bool:
        start, end = self.words.segments[n].span(sentence)
        # A dictated text may have several sentences, and may follow the sentence that orders to send it.
        return place.segment == n and start <= place.start and (need.dictated or place.end <= end)

    def _again(self, need: NeededValue, found: Sequence[Place]) -> list[Place]:
        """Return where "it" stands for a value that the same sentence says before."""
        n, _, at = found[0]
        said, segment = self._masked[n], self.words.segments[n]
        begin = segment.starts[segment.sentence(at - 1)]
        spans = segment.pronouns(need.verbs, at)[:1] if need.hit else ()
        return [Place(n, *span) for span in spans if not says("another", said[begin : span[0]], self.known)]

    def _newest(self) -> list[tuple[int, int]]:
        segments = self.words.segments
        return [(n, s) for n in range(self.words.newest, len(segments)) for s in range(len(segments[n].starts))]

    def _doubt(self, n: int, sentence: int, verbs: frozenset[str], placed: Sequence[BackedPlace] = ()) -> str | None:
        """Return why a sentence may not order a step, or None.

        The lines of a list count with what is before them. "It's T-5. Close it" counts as one sentence.
        """
        segment, head, why = self.words.segments[n], sentence, ""
        while head and _LISTED.match(segment.text, segment.starts[head]):
            head -= 1
        known, strict = self.known._replace(verbs=verbs), any(claim.need.strict for claim in placed)
        for first, last in ((head, sentence), (head, sentence + 1)):
            if last < len(segment.starts):
                start, end = segment.starts[first], segment.span(last)[1]
                all_places = [(c.need, (c.place, *self._places(c.need))) for c in placed]
                sites = [(need, [(a - start, b - start) for m, a, b in found if m == n]) for need, found in all_places]
                own = [spans for need, spans in sites if not (need.dictated or need.calculated or need.dated)]
                texts = [spans for need, spans in sites if need.dictated or need.dated]
                said = self._masked[n][start:end]
                doubt = unclear(said, own, known, segment.text[start:end], texts, strict=strict)
                if doubt is None:
                    return self._changed((n, first), (n, last))
                why = why or doubt
        return why

    @cached_property
    def _others(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Sentences that may change an order before them; and one behind them."""
        later = [at for at in self._newest() if not changes_nothing(self._said(at), self.known)]
        return later, [at for at in later if says("warning", self._said(at), self.known)]

    def _changed(self, first: tuple[int, int], last: tuple[int, int]) -> str | None:
        before = (self._said(at) for at in self._newest() if at < first)
        if says("sequel", self._said(first), self.known) and not any(orders(said, self.known) for said in before):
            return "it may hang on what is said before it"
        later, earlier = self._others
        at = next((at for at in earlier if at < first), later[-1] if later and later[-1] > last else None)
        if at is None:
            return None
        said = self.words.segments[at[0]].text[slice(*self.words.segments[at[0]].span(at[1]))]
        return f"this may change it: {said.strip()[:_SHOWN]!r}"

    def _apart(self, inside: Sequence[tuple[NeededValue, list[Place]]], deed: str) -> list[BackedPlace] | None:
        """Claim a position for each need, close together; None if a need has none."""
        placed: list[BackedPlace] = []
        others = [c for claims in self.claims.values() for c in claims if c.deed not in ("", deed)]
        used = {c.place for c in others}
        for need, found in inside:
            near = placed[0].place if placed else found[0]
            taken = [*others, *placed]
            free = [p for p in found if all(self._shared(need, p, deed, c) for c in taken if _overlap(p, c.place))]
            if not free:
                return None
            place = min(free, key=lambda p: (p in used, self._parted(p, near), abs(p.start - near.start), -p.end))
            placed.append(BackedPlace(place, deed, need))
        return placed

    def _shared(self, need: NeededValue, place: Place, deed: str, other: BackedPlace) -> bool:
        """Return True if two values may share a place, like "20 each"."""
        if other.deed != deed:
            return other.need == need and (not need.alone or (need.moneyed and self._each(need, place)))
        return need.shares and need.owner == other.need.owner

    def _each(self, need: NeededValue, place: Place) -> bool:
        """Return True for a number that several steps share: "20 each"."""
        said, number = self._masked[place.segment], isinstance(need.value, int | float)
        before, behind = said[: place.end], said[place.start :]
        return number and (says("each_before", before, self.known) or says("each_behind", behind, self.known))

    def _listed(self, placed: Sequence[BackedPlace], deed: str) -> bool:
        """Return True unless a value is shared outside a list of others."""
        mine = {c.place for c in placed}
        for sharer, claims in reversed(self.claims.items()):
            others = {c.place for c in claims if c.deed not in ("", deed)}
            if shared := mine & others:
                first, last = sorted(span_of_places(places - shared or places) for places in (mine, others))
                alike = len(mine) == len(others) > len(shared)
                outside = not any(_overlap(place, group) for place in shared for group in (first, last))
                listed = self._links(first.segment, first.end, last.start)
                if alike and _overlap(first, last):
                    self.torn.add(sharer)
                return alike and outside and listed and not any(map(self._in_list, shared))
        return True

    def _in_list(self, place: Place) -> bool:
        n, start, end = place
        said = self._masked[n]
        return self._links(n, said.rfind(VALUE, 0, start) + 1, start) or self._links(n, end, said.find(VALUE, end))

    def _links(self, n: int, start: int, end: int) -> bool:
        """Return True if a text only links two listed values: "and", "and with"."""
        before, said = self._masked[n][max(0, start - _SHOWN) : start], self._masked[n][start:end]
        said = said.replace(f" {leading(before.rstrip(VALUE))[0]} ", " ", 1)
        return 0 < len(said) < _SHOWN and _BRACKETS.isdisjoint(said) and says("listed", said, self.known)

    def _joined(self, placed: Sequence[BackedPlace]) -> bool:
        for owner, rule in {(c.need.owner, c.need.joined) for c in placed if c.need.joined}:
            places = sorted(c.place for c in placed if c.need.owner == owner)
            end = places[0].end
            for n, start, last in places[1:]:
                if start > end and not says(rule, self._masked[n][end:start], self.known):
                    return False
                end = max(end, last)
        return True

    def says_any(self, choices: Iterable[str]) -> str | None:
        said = "\n".join(map(self._said, self._newest()))
        return next((c for c in choices if c and re.search(rf"(?i){_bounded(c)}", said)), None)

    def _misplaced(self, profile: ToolProfile, placed: Sequence[BackedPlace]) -> str | None:
        """Return an argument whose value stands at another's name or direction."""
        names = {n: {*words_of(n)} for n in (*profile.critical, *profile.when, *profile.text, *profile.free)}
        ends = {claim.place.end: claim.need.owner for claim in placed}
        targets = {name for name in ends.values() if profile.critical.get(name) in TARGETS}
        for claim in (c for c in placed if c.need.owner in names and not c.need.dictated):
            owner, (n, at, _) = claim.need.owner, claim.place
            word, direction = leading(re.split(f"[{VALUE}{WHEN}]", self._masked[n][:at])[-1])
            role = next((r for r in _WRONG_WAYS for one in languages() if names[owner] & {*one.data.get(r, ())}), "")
            named = [name for name, words in names.items() if singular(word) in words]
            left, _, gap = self._masked[n][:at].rpartition(VALUE)
            if len(gap.split()) == 1 and ends.get(len(left) + 1) in named:
                named = []  # "20 mg omeprazole": the word belongs to the value before it
            labelled = named and owner not in named and word not in DIRECTIONS and word not in claim.need.verbs
            noun = _NOUN.match(self._masked[n], claim.place.end) if isinstance(claim.need.value, int | float) else None
            counted = [
                name for name, words in names.items() if noun and singular(noun[1].lower()) in words - {*DIRECTIONS}
            ]
            owned = self._masked[n][claim.place.end :].startswith(("'s", "\u2019s"))
            theirs = owned and not (profile.inside and targets == {owner})
            if labelled or theirs or direction in _WRONG_WAYS[role] or (counted and owner not in counted):
                return owner
        return None

    def _unsaid(self, need: NeededValue) -> str:
        name, shown = need.owner.partition(" ")[2] or need.owner, f"{need.value}%" if need.rate else str(need.value)
        forbidden = not need.order and any(self._refused(need, place) for place in self._places(need))
        why = "a sentence that forbids or excepts something says" if forbidden else "the user's own words do not say"
        return f"`{name}`: {why} {shown[:_SHOWN]!r}"


def _bounded(word: str) -> str:
    """Return a pattern for a whole word.

    One Chinese sign is a word behind other scripts: "50元", not "50美元".
    """
    if word[0].isalnum() and word[0] < "\u3400":
        return rf"(?<!\w){re.escape(word)}(?!\w)"
    return rf"(?<![^\W\d_]){word}" if len(word) == 1 and word.isalpha() else re.escape(word)


def _deed(step: Step, profile: ToolProfile) -> str:
    """Return the name under which a step claims positions. No two effects share one."""
    return f"{profile.effect} {step.deed}" if step.deed else f"step {step.id}"


def span_of_places(places: Collection[Place]) -> Place:
    """Return the span from the first to the last place, in the last place's segment."""
    n = max(places).segment
    return Place(n, min(p.start for p in places if p.segment == n), max(p.end for p in places if p.segment == n))


def _overlap(one: Place, two: Place) -> bool:
    return one.segment == two.segment and one.start < two.end and two.start < one.end
