"""Keep of a planner's mandate what the user's own words back, and drop the rest with a reason.

A planner is a model: it may be wrong, and a paste may have hijacked it. So nothing that it says is believed. A step is
taken over as it stands or dropped, never repaired, and what only narrows is kept.

- A value stands in the user's own words, as a whole token or quotation, in an order and not in a question.
- A place in the words backs one argument of one step, and all places of a step lie in one sentence.
- A value from a read comes from a field that the profile trusts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.provenance.forms import forms
from langchain_runtime_authz.mandate.compiled import Compiled, Dropped
from langchain_runtime_authz.mandate.model import (
    MAX_ROWS,
    MAX_STEPS,
    Argument,
    AtLeast,
    AtMost,
    Between,
    Condition,
    Const,
    Contains,
    Each,
    Eq,
    Extract,
    Field,
    Free,
    Mandate,
    Not,
    OneOf,
    Pick,
    Span,
    StartsWith,
    Step,
    Text,
    Where,
    Within,
)
from langchain_runtime_authz.mandate.texts import MAX_OWN, Place, Texts
from langchain_runtime_authz.profile import EFFECTS, ToolProfile

__all__ = ["arguments", "backed"]

LONG: Final = 400  # characters of a text beyond which a planner's riskiest steps are confirmed
_RISKY: Final = frozenset(("pay", "delete", "admin"))
_DESTINATIONS: Final = frozenset(("principal", "url", "channel"))
_MAX_NEEDS: Final = 256  # values of one mandate
_SHOWN: Final = 60


def backed(
    mandate: Mandate,
    texts: Sequence[str],
    profiles: Mapping[str, ToolProfile],
    signatures: Mapping[str, Mapping[str, Any]],
    own: frozenset[str] = frozenset(),
) -> Compiled:
    """Return the part of a planner's mandate that the user's words back: none if they are too long to be read.

    Args:
        mandate: what the planner returned.
        texts: the user's texts, in order.
        profiles: the reviewed profiles.
        signatures: tool → JSON schema of its arguments. A tool without one is not planned with.
        own: the subject's own identifiers.
    """
    words = Texts(texts)
    if words.too_long:
        return Compiled(None, (Dropped("the mandate", f"the user's own words are longer than {MAX_OWN} characters"),))
    check = _Check(mandate, words, profiles, signatures, {f for o in own for f in forms(o)})
    for step in mandate.steps:
        check.take(step)
    check.uncross()
    steps = check.steps()
    wary = words.has_material or any(len(text) > LONG for text in texts)
    confirm = [*mandate.confirm]
    for step in steps:
        if profiles[step.tool].effect in _RISKY and (wary or not check.anchored(step)):
            confirm.append(step.id)
    kept = Mandate(
        steps=steps,
        limits=mandate.limits,
        never=mandate.never,
        confirm=_few(confirm, {s.id: profiles[s.tool].effect for s in steps}),
        source="planner",
    )
    return Compiled(kept, tuple(Dropped(f"step `{step}`", why) for step, why in check.lost.items()))


def _few(confirm: Sequence[str], effects: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is confirmed, each once; whole effects if the steps are too many to be named."""
    found = tuple(dict.fromkeys(c for c in confirm if c in effects or c in EFFECTS))
    return found if len(found) <= MAX_STEPS else tuple(dict.fromkeys(effects.get(c, c) for c in found))


def arguments(signature: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return argument → JSON schema, from the JSON schema of a tool's arguments or from that mapping itself."""
    inner = signature.get("properties")
    return inner if signature.get("type") == "object" and isinstance(inner, Mapping) else signature


class _Need(NamedTuple):
    """A value of a step that must stand in the words. `owner` is the argument or condition that it is for."""

    owner: str
    value: object
    dictated: bool = False
    ends: bool = False  # it must reach to the end of its sentence or quotation: a command is not cut
    counts: bool = False  # it is a number of calls


class _Claim(NamedTuple):
    place: Place
    deed: str
    need: _Need


class _Check:
    """One pass over the steps of one mandate."""

    def __init__(
        self,
        mandate: Mandate,
        words: Texts,
        profiles: Mapping[str, ToolProfile],
        signatures: Mapping[str, Mapping[str, Any]],
        own: set[str],
    ) -> None:
        self.mandate, self.words, self.profiles, self.own = mandate, words, profiles, own
        self.signatures = {name: arguments(signature) for name, signature in signatures.items()}
        self.needs = 0
        self.kept: dict[str, Step] = {}
        self.lost: dict[str, str] = {}
        self.claims: dict[str, list[_Claim]] = {}  # of each step taken over

    def steps(self) -> tuple[Step, ...]:
        """Return the steps that are left, without those that depend on a lost one."""
        for step in self.mandate.steps:
            for needed in (*step.sources, *([step.after] if step.after else [])):
                if needed in self.lost and step.id not in self.lost:
                    self.lost[step.id] = f"it depends on `{needed}`"
        return tuple(step for step in self.kept.values() if step.id not in self.lost)

    def anchored(self, step: Step) -> bool:
        """Return True if the words hold a value of the step, or of a read that it takes values from."""
        return bool(self.claims[step.id]) or any(self.anchored(self.kept[s]) for s in {*step.sources})

    def take(self, step: Step) -> None:
        """Take a step over, or note why not."""
        why = self._unfit(step)
        if why is None:
            why = self._place(step)
        if why is not None:
            self.lost[step.id] = why

    # --- what a step may not be, whatever the words are

    def _unfit(self, step: Step) -> str | None:
        profile, known = self.profiles.get(step.tool), self.signatures.get(step.tool)
        if profile is None or profile.draft:
            return f"`{step.tool}` has no reviewed profile"
        if known is None:
            return f"the arguments of `{step.tool}` are not known"
        for needed in (*step.sources, *([step.after] if step.after else [])):
            if needed in self.lost:
                return f"it depends on `{needed}`"
        declared = {*profile.critical, *profile.when, *profile.text, *profile.free}
        for name, argument in step.args.items():
            if name.partition(".")[0] not in known or ("." in name and name not in declared):
                return f"`{step.tool}` takes no argument `{name}`"
            if why := self._unfit_argument(profile, name, argument):
                return f"`{name}`: {why}"
        return None

    def _unfit_argument(self, profile: ToolProfile, name: str, argument: Argument) -> str | None:
        if isinstance(argument, Free) and (
            name in profile.critical or name in profile.when or (profile.side_effect and name not in profile.free)
        ):
            return "it decides what the call hits, so it cannot be free"
        if isinstance(argument, Text) and name not in profile.text:
            return "it is not a text argument"
        sources: tuple[str, ...] = (argument.step,) if isinstance(argument, Field | Pick | Each | Extract) else ()
        if isinstance(argument, Text):
            sources = tuple(i.partition(".")[0] for i in argument.inputs)
        for source in sources:
            if self.profiles[self.kept[source].tool].side_effect:
                return f"`{source}` is not a read"
        if isinstance(argument, Field | Pick | Each):
            read = self.profiles[self.kept[argument.step].tool]
            wanted = profile.side_effect and profile.critical.get(name) in _DESTINATIONS
            chosen = [] if isinstance(argument, Field) else [*argument.where]
            if isinstance(argument, Pick):
                chosen += [field for field in (argument.max, argument.min) if field]
            for path, least in [
                (argument.path, "system" if wanted else "internal"),
                *((p, "internal") for p in chosen),
            ]:
                if not _trusts(read, path, least):
                    return f"outsiders may write the field `{path}` of `{argument.step}`"
        return None

    # --- where the words say it

    def _place(self, step: Step) -> str | None:
        profile = self.profiles[step.tool]
        args = {n: a for n, a in step.args.items() if not self._default(step.tool, n, a)}
        needs = list(self._needs(step, profile, args))
        self.needs += len(needs)
        if self.needs > _MAX_NEEDS:
            return "there are too many values"
        placed, why = self._order(step, needs) if profile.side_effect else self._read(step, needs)
        if why is not None:
            return why
        self.claims[step.id] = placed
        said: dict[str, list[Place]] = {}
        for claim in placed:
            said.setdefault(claim.need.owner, []).append(claim.place)
        marked = {n: self._marked(a, said[n]) if isinstance(a, Const) and n in said else a for n, a in args.items()}
        plain = {n: Const(value=a.value) if isinstance(a, Const) and n not in said else a for n, a in marked.items()}
        self.kept[step.id] = step.model_copy(update={"args": plain})
        return None

    def _default(self, tool: str, name: str, argument: Argument) -> bool:
        """Return True if the argument is the default that its schema has: it says nothing."""
        schema = self.signatures[tool].get(name)
        if not isinstance(argument, Const) or not isinstance(schema, Mapping) or "default" not in schema:
            return False
        default = schema["default"]
        value = list(argument.value) if isinstance(argument.value, tuple) else argument.value
        return type(value) is type(default) and value == default

    def _enumerated(self, tool: str, name: str, value: object) -> bool:
        schema = self.signatures[tool].get(name)
        listed = schema.get("enum") if isinstance(schema, Mapping) else None
        return isinstance(value, bool) or (isinstance(listed, list | tuple) and value in listed)

    def _needs(self, step: Step, profile: ToolProfile, args: Mapping[str, Argument]) -> Iterator[_Need]:
        for name, argument in args.items():
            command = profile.effect in ("admin", "delete") and profile.critical.get(name) == "value"
            for value in _values(argument):
                if self.own.intersection(forms(value)):
                    continue
                if profile.effect == "read" and self._enumerated(step.tool, name, value):
                    continue
                several = isinstance(value, str) and len(value.split()) > 1
                yield _Need(name, value, dictated=name in profile.text, ends=command and several)
            if isinstance(argument, Pick | Each):
                for field, value in _wanted(argument.where):
                    yield _Need(f"{argument.step} {field}", value)
            if isinstance(argument, Each) and argument.limit > MAX_ROWS:
                yield _Need("limit", argument.limit, counts=True)
        if step.times > 1:
            yield _Need("times", step.times, counts=True)

    def _choices(self, need: _Need, profile: ToolProfile) -> list[Place]:
        if need.counts:
            return self.words.counts(int(str(need.value)), strict=profile.effect in _RISKY)
        said, forbidden = self.words.places(need.value, dictated=need.dictated)
        last = max(forbidden, default=None)
        return [p for p in said if (last is None or p > last) and (not need.ends or self._ends(p))]

    def _ends(self, place: Place) -> bool:
        segment = self.words.segments[place.segment]
        if any(first <= place.start and place.end <= last for first, last in segment.quotations):
            return True  # `Segment.whole` has seen that it is all of it
        end = segment.span(segment.sentence(place.start))[1]
        return not segment.text[place.end : end].strip(" \t\n.,;:!?")

    def _read(self, step: Step, needs: Sequence[_Need]) -> tuple[list[_Claim], str | None]:
        """Place what chooses what is read. It may stand anywhere, and does not use its place up."""
        profile, placed = self.profiles[step.tool], []
        for need in needs:
            found = self._choices(need, profile)
            if not found:
                return [], self._unsaid(need)
            placed.append(_Claim(found[0], "", need))
        return placed, None

    def _order(self, step: Step, needs: Sequence[_Need]) -> tuple[list[_Claim], str | None]:
        """Place a side effect: all of it in one sentence that orders something, each place once."""
        profile, deed = self.profiles[step.tool], _deed(step)
        if not needs:
            return [], self._unplaced(step)
        choices = {need: self._choices(need, profile) for need in needs}
        for need, found in choices.items():
            if not found:
                return [], self._unsaid(need)
        fewest = sorted(needs, key=lambda n: (n.dictated, n.counts, len(choices[n])))
        sentences = dict.fromkeys(self._sentence(place) for place in choices[fewest[0]])
        why = "the user's words do not say all of it in one sentence"
        for n, sentence in sentences:
            inside = {need: [p for p in found if self._inside(need, p, n, sentence)] for need, found in choices.items()}
            if not all(inside.values()):
                continue
            placed = self._apart(fewest, inside, deed)
            if placed is None:
                why = "its values stand in the words once, and something else has that place"
                continue
            segment = self.words.segments[n]
            dictated = [(c.place.start, c.place.end) for c in placed if c.need.dictated]
            doubt = segment.doubt(sentence, dictated)
            if doubt is None and self.words.taken_back(n, segment.span(sentence)[0]):
                doubt = "it was taken back"
            if doubt is None:
                return placed, None
            why = doubt
        return [], why

    def _unplaced(self, step: Step) -> str | None:
        """Return why a side effect without a value of its own is not ordered: where its sources stand, or anywhere."""
        anchors = [self._sentence(c.place) for s in self._behind(step) for c in self.claims[s]]
        everywhere = ((n, s) for n, segment in enumerate(self.words.segments) for s in range(len(segment.starts)))
        why = "the user's words order nothing"
        for n, sentence in anchors or everywhere:
            segment = self.words.segments[n]
            start, end = segment.span(sentence)
            said = segment.text[start:end].strip()
            if not said:
                continue
            first = segment.text.index(said, start)
            taken_back = self.words.taken_back(n, start)
            refused = all(segment.refused(i, i + 1, dictated=False) for i in (first, max(first, first + len(said) - 2)))
            doubt = segment.doubt(sentence) or ("it was taken back" if taken_back else None)
            if doubt is None and not refused:
                return None
            why = doubt or "the user's words forbid it"
        return why

    def _behind(self, step: Step) -> Iterator[str]:
        for source in dict.fromkeys(step.sources):
            yield source
            yield from self._behind(self.kept[source])

    def _sentence(self, place: Place) -> tuple[int, int]:
        return place.segment, self.words.segments[place.segment].sentence(place.start)

    def _inside(self, need: _Need, place: Place, n: int, sentence: int) -> bool:
        if place.segment != n:
            return False
        segment = self.words.segments[n]
        start, end = segment.span(sentence)
        if need.dictated:  # a dictated text may hold several sentences, and follow the one that orders it
            return place.start >= start and not segment.text[end : place.start].strip(" \t\n\"'\u201c\u201e\u00ab`")
        return start <= place.start and place.end <= end

    def _apart(self, needs: Sequence[_Need], inside: Mapping[_Need, list[Place]], deed: str) -> list[_Claim] | None:
        """Return a place of its own for each need, near the others; or None."""
        placed: list[_Claim] = []
        for need in needs:
            near = placed[0].place if placed else inside[need][0]
            for place in sorted(inside[need], key=lambda p: abs(p.start - near.start)):
                if not self._taken(_Claim(place, deed, need), placed):
                    placed.append(_Claim(place, deed, need))
                    break
            else:
                return None
        return placed

    def _skips(self, step: Step, placed: Sequence[_Claim]) -> bool:
        """Return True if a payment passes over a number: "Pay Bob 45 and Carol 3000" does not pay Bob 3000."""
        profile = self.profiles[step.tool]
        if profile.effect != "pay" or not any(profile.critical.get(c.need.owner) == "amount" for c in placed):
            return False
        n, first, last = _hull([c.place for c in placed if not c.need.dictated])
        numbers = (s for form, spans in self.words.segments[n].tokens.items() if form.startswith("num:") for s in spans)
        return any(
            first <= start and end <= last and not any(_overlap(Place(n, start, end), c.place) for c in placed)
            for start, end in numbers
        )

    def _taken(self, wanted: _Claim, placed: Sequence[_Claim]) -> bool:
        others = (c for name, several in self.claims.items() if name not in self.lost for c in several if c.deed)
        return any(_overlap(wanted.place, c.place) and c.deed != wanted.deed for c in others) or any(
            _overlap(wanted.place, c.place) and (c.need != wanted.need or " " not in c.need.owner) for c in placed
        )

    def _unsaid(self, need: _Need) -> str:
        name = need.owner.partition(" ")[2] or need.owner
        forbidden = not need.counts and self.words.places(need.value, dictated=need.dictated)[1]
        why = "the user forbids" if forbidden else "the user's own words do not say"
        return f"`{name}`: {why} {str(need.value)[:_SHOWN]!r}"

    def uncross(self) -> None:
        """Drop steps of one tool whose places are interleaved: "Bob 45 and Carol 3000" does not pay Bob 3000."""
        orders = [s for s in self.kept.values() if self.profiles[s.tool].side_effect and self.claims[s.id]]
        hulls = {s.id: _hull([c.place for c in self.claims[s.id]]) for s in orders}
        for i, one in enumerate(orders):
            for two in orders[i + 1 :]:
                if one.tool == two.tool and _deed(one) != _deed(two) and _overlap(hulls[one.id], hulls[two.id]):
                    self.lost[one.id] = f"its values and those of `{two.id}` are mixed in the words"
                    self.lost[two.id] = f"its values and those of `{one.id}` are mixed in the words"
        for step in orders:
            if self._skips(step, self.claims[step.id]):
                self.lost.setdefault(step.id, "another number stands between its values")

    def _marked(self, argument: Const, places: Sequence[Place]) -> Const:
        n, start, end = _hull(places)
        segment = self.words.segments[n]
        return Const(value=argument.value, said=Span(segment.digest, segment.offset + start, segment.offset + end))


def _values(argument: Argument) -> tuple[object, ...]:
    """Return the values that an argument states."""
    if isinstance(argument, Const):
        return argument.value if isinstance(argument.value, tuple) else (argument.value,)
    if isinstance(argument, OneOf):
        return argument.values
    if isinstance(argument, Between):
        return argument.low, argument.high
    if isinstance(argument, Within):
        return (argument.prefix,)
    return argument.quote if isinstance(argument, Text) else ()


def _wanted(where: Where) -> Iterator[tuple[str, object]]:
    for field, conditions in where.items():
        for condition in conditions:
            yield field, _value_of(condition)


def _value_of(condition: Condition) -> object:
    while isinstance(condition, Not):
        condition = condition.condition
    if isinstance(condition, Eq | AtLeast | AtMost):
        return condition.value
    assert isinstance(condition, Contains | StartsWith)  # noqa: S101  (for the type checker)
    return condition.text


def _deed(step: Step) -> str:
    return f"deed {step.deed}" if step.deed else f"step {step.id}"


def _hull(places: Sequence[Place]) -> Place:
    """Return the stretch over all places of the first one's segment."""
    n = places[0].segment
    return Place(n, min(p.start for p in places if p.segment == n), max(p.end for p in places if p.segment == n))


def _overlap(one: Place, two: Place) -> bool:
    return one.segment == two.segment and one.start < two.end and two.start < one.end


def _trusts(profile: ToolProfile, path: str, least: str) -> bool:
    """Return True if a field is written by nobody outside; `least` is "system" or "internal"."""
    steps = path.split(".") if path else []
    prefixes = [".".join(steps[:i]) for i in range(len(steps), -1, -1)]
    if not {*prefixes}.isdisjoint((*profile.prose, *profile.counterparty)):
        return False
    trust = {"": profile.trust} if isinstance(profile.trust, str) else profile.trust
    origin = next((trust[p] for p in prefixes if p in trust), "external")
    return origin == "system" or (origin == "internal" and least == "internal")
