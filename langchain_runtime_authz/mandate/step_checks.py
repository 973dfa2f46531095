"""Check the steps of a planner's mandate one by one against the user's messages.

`docs/mandate/planner.md` lists the checks. A step is kept or dropped, never corrected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, Final

from langchain_runtime_authz._validate import as_list, as_mapping
from langchain_runtime_authz.facts.normal_forms import mask_spans
from langchain_runtime_authz.mandate import model
from langchain_runtime_authz.mandate.argument_matching import COUNTED, choosing_fields, is_default
from langchain_runtime_authz.mandate.date_matching import names_year, on_days, stands_alone, with_values, without_year
from langchain_runtime_authz.mandate.languages import languages, words_of
from langchain_runtime_authz.mandate.message_places import PERCENT, UNITS, Place, Segment, Texts
from langchain_runtime_authz.mandate.output_rows import chosen_by, trust_level
from langchain_runtime_authz.mandate.plain_orders import (
    QUOTE,
    VALUE,
    Known,
    says,
    says_anew,
    scale_of,
    synonyms,
    words_of_tool,
)
from langchain_runtime_authz.mandate.sequence import in_order, open_steps
from langchain_runtime_authz.mandate.step_places import RISKY, NeededValue, Placing, span_of_places
from langchain_runtime_authz.mandate.vocabulary import TARGETS, ToolWords
from langchain_runtime_authz.tool_profile import DESTINATIONS, ToolProfile, kind_of

_MAX_NEEDS: Final = 256  # values of one mandate


def argument_schemas(signature: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return argument → JSON schema, from a tool's schema or a mapping of this form."""
    inner = signature.get("properties")
    return inner if signature.get("type") == "object" and isinstance(inner, Mapping) else signature


class StepCheck:
    """One pass over the steps of one mandate.

    Attributes:
        kept: the steps that the messages back, as they count.
        lost: the ids of the others, with the reasons.
        placing: where the messages say the values.
    """

    def __init__(
        self,
        mandate: model.Mandate,
        words: Texts,
        profiles: Mapping[str, ToolProfile],
        schemas: Mapping[str, Mapping[str, Any]],
        today: date | None,
    ) -> None:
        self.mandate, self.words, self.profiles, self.today = mandate, words, profiles, today
        self.schemas = {name: argument_schemas(schema) for name, schema in schemas.items()}
        self.needs = 0
        self.kept: dict[str, model.Step] = {}
        self.lost: dict[str, str] = {}
        self.followed = set[str]()  # steps that `mandate.follow_ups` found ordered
        self.behind: dict[str, dict[str, None]] = {}  # step → the reads on which it depends, directly or indirectly
        steps = [s for s in mandate.steps if s.tool in profiles and s.tool in schemas]
        orders = [s for s in steps if profiles[s.tool].side_effect]
        verbs = frozenset().union(*(_verbs(s.tool, profiles[s.tool]) for s in steps))
        nouns = frozenset().union(*(words_of_tool(s.tool, self.schemas[s.tool], profiles[s.tool]) for s in steps))
        told = any(profiles[s.tool].text or profiles[s.tool].free for s in orders)
        self.placing = Placing(
            words,
            Known(nouns - verbs, verbs, told, nouns & verbs),
            (n for s in steps for n in self.needs_of(s, profiles[s.tool], s.args)),
        )

    def steps(self) -> tuple[model.Step, ...]:
        """Return the steps in order. Leave out mixed ones, and all that need a lost one."""
        orders = [s for s in self.kept.values() if self.profiles[s.tool].side_effect and self.placing.claims.get(s.id)]
        self.lost |= self.placing.mixed([(s, self.profiles[s.tool]) for s in orders])
        self.lost |= self._open()
        ordered = in_order([self.kept.get(s.id, s) for s in self.mandate.steps], self.profiles, self.schemas)
        for step, given in zip(ordered, self.mandate.steps, strict=True):
            # For example, do not delete a file if the step that copies it was dropped.
            for needed in (*given.sources, given.after, step.after):
                if needed in self.lost:
                    self.lost.setdefault(step.id, f"it depends on `{needed}`")
        return tuple(step for step in ordered if step.id not in self.lost)

    def _open(self) -> dict[str, str]:
        """Return step id → reason, for steps that may lack a value."""
        sentences: dict[tuple[int, int], dict[str, model.Step]] = {}
        for step in (s for s in self.mandate.steps if s.id in self.kept):
            for claim in self.placing.claims.get(step.id, ()):
                at, args = self.placing.sentence_of(claim.place), dict(self.kept[step.id].args)
                for name, argument in step.args.items():  # a default counts if it is said
                    places = (p for value in model.literals(argument) for p in self.words.places(value))
                    args |= {name: argument} if any(self.placing.sentence_of(p) == at for p in places) else {}
                sentences.setdefault(at, {})[step.id] = step.model_copy(update={"args": args})
        found = (
            one for steps in sentences.values() for one in open_steps([*steps.values()], self.profiles, self.schemas)
        )
        return {step.id: f"`{name}`: what is said of another step may be said of this one" for step, name in found}

    def doubtful(self, step: model.Step) -> bool:
        """Return True if a person must confirm a side effect, as its words are unclear."""
        if step.id in self.followed:
            return False
        parts = [p for a in step.args.values() for p in model.parts_of(a) if not isinstance(p, model.Text)]
        mine = bool(parts) and all(isinstance(part, model.Own) for part in parts)
        profile = self.profiles[step.tool]
        chosen = {claim.need.owner.partition(" ")[0] for claim in self.placing.claims[step.id]}  # reads, by conditions
        unnamed = any(read not in chosen and not self.placing.claims[read] for read in self.behind[step.id])
        unsure = any(map(_turned, parts)) or (unnamed and not self.placing.names_more(step.id))
        said = [c.place.segment for name in (step.id, *self.behind[step.id]) for c in self.placing.claims[name]]
        # A write inside needs one value in the newest message. Other effects need all, also the values of their reads.
        anchored = (max if profile.inside else min)(said, default=-1) >= self.words.newest
        if profile.inside and not anchored:  # "ok, commit it": the newest message has only the verb
            anchored = self.placing.order_to(_verbs(step.tool, profile))
        texts = [step.args.get(name) for name in profile.text]  # `None`: the step leaves the text to the model
        loose = not all(isinstance(text, model.Const) or getattr(text, "quote", ()) for text in texts)
        unbacked = (not mine or profile.effect in RISKY) and not anchored
        return profile.side_effect and (unsure or unbacked or (loose and self.placing.quotes_more(step.id)))

    def unfit(self, step: model.Step) -> str | None:
        """Return why a step cannot be ordered, whatever the words say, or None."""
        profile, known = self.profiles.get(step.tool), self.schemas.get(step.tool)
        if profile is None or profile.draft:
            return f"`{step.tool}` has no reviewed profile"
        if known is None:
            return f"the arguments of `{step.tool}` are not known"
        if step.only_if is not None:
            return "a condition orders nothing"
        for needed in (*step.sources, *([step.after] if step.after else [])):
            if needed in self.lost:
                return f"it depends on `{needed}`"
        for source in step.sources:
            if self.profiles[self.kept[source].tool].side_effect:
                return f"`{source}` is not a read"
        declared = {*profile.critical, *profile.when, *profile.text, *profile.free}
        for name, argument in step.args.items():
            if name.partition(".")[0] not in known or ("." in name and name not in declared):
                return f"`{step.tool}` takes no argument `{name}`"
            if isinstance(argument, model.Calc) and kind_of(profile, name) not in COUNTED:
                return f"`{name}`: it is not a number"
            for part in model.parts_of(argument):
                if why := self._unfit_argument(profile, name, part):
                    return f"`{name}`: {why}"
        return None

    def _unfit_argument(self, profile: ToolProfile, name: str, argument: model.Argument) -> str | None:
        decides = name in profile.critical or (profile.side_effect and name not in profile.free)
        if isinstance(argument, model.Free) and decides:
            return "it decides what the call hits, so it cannot be free"
        if isinstance(argument, model.Within) and decides and kind_of(profile, name) != "object":
            return "it is not a folder"
        if isinstance(argument, model.Text) and name not in profile.text:
            return "it is not a text argument"
        if isinstance(argument, model.Field | model.Pick | model.Each):
            read = self.profiles[self.kept[argument.step].tool]
            wanted = profile.side_effect and profile.critical.get(name) in DESTINATIONS
            mine = read.author is not None  # then the trust of each record is known only when it is read
            found = {argument.path: trust_level(read, argument.path, mine=mine) - (1 if wanted else 0)}
            if not isinstance(argument, model.Field):
                found = {
                    p: chosen_by(read, p, argument.where.get(p, ()), mine=mine) for p in choosing_fields(argument)
                } | found
            for path, value in found.items():
                if value < 1:
                    return f"outsiders may write the field `{path}` of `{argument.step}`"
        return None

    def place(self, step: model.Step) -> str | None:
        """Keep a step with the positions of its values. Return None, or why it is dropped."""
        profile = self.profiles[step.tool]
        args = self.without_defaults(step)
        needs = list(self.needs_of(step, profile, args))
        self.needs += len(needs)
        if self.needs > _MAX_NEEDS:
            return "there are too many values"
        self.behind[step.id] = {b: None for s in step.sources for b in (s, *self.behind[s])}
        if not profile.side_effect:
            placed, why = self.placing.read(needs)
        elif needs:
            placed, why = self.placing.order(step, profile, needs, self.other_choices(step.tool, args))
        else:
            placed, why = [], self.placing.unplaced(self.behind[step.id], _verbs(step.tool, profile))
        if why is not None:
            return why
        self.placing.claims[step.id] = placed
        said: dict[str, list[Place]] = {}
        for claim in placed:
            said.setdefault(claim.need.owner, []).append(claim.place)
        plain = {n: self._with_span(a, said.get(n)) for n, a in args.items()}
        guessed = {c.need.value for c in placed if names_year(c.need.value) and not self._says_year(c.place)}
        plain = {n: with_values(a, lambda v: without_year(v) if v in guessed else v) for n, a in plain.items()}
        # A day of an earlier message, like "today", was meant from another date.
        days = [claim.place for claim in placed if claim.need.owner in profile.when]
        texts = [segment.text for segment in self.words.segments] if days else []
        near = ((n, stands_alone(texts[n], start, end, "\n".join(texts))) for n, start, end in days)
        sure = all(n >= self.words.newest and alone for n, alone in near)
        self.kept[step.id] = on_days(step.model_copy(update={"args": plain}), profile, self.today if sure else None)
        return None

    def without_defaults(self, step: model.Step) -> dict[str, model.Argument]:
        """Return the arguments of a step that are not their defaults."""
        schema = self.schemas[step.tool]
        return {
            n: a
            for n, a in step.args.items()
            if not (isinstance(a, model.Const) and is_default(schema.get(n), a.value))
        }

    def _says_year(self, place: Place) -> bool:
        segment = self.words.segments[place.segment]
        return any(
            place.start <= span[0] and span[1] <= place.end
            for span in segment.readings
            if names_year(segment.text[slice(*span)])
        )

    def other_choices(self, tool: str, args: Mapping[str, model.Argument]) -> set[str]:
        """Return the choices other than a default, or than what a synonym says."""
        profile, found = self.profiles[tool], set[str]()
        for name, schema in self.schemas[tool].items():
            given = model.literals(args[name]) if name in args else (as_mapping(schema).get("default"),)
            own, scale = {*map(str, given)}, _scale(profile, name, given)
            spoken = [(word, choice) for choice, words in scale.items() for word in words]
            surely = () if profile.effect == "pay" else spoken  # "500 euros in dollars" asks
            sure = own.union(w for w, c in surely if c in own and not says("little", w, Known()))
            spoken += profile.synonyms.get(name, {}).items()
            choices = {*scale, *(choice for _, choice in spoken)}
            if name not in args:
                choices = {*map(str, as_list(as_mapping(schema).get("enum")) or scale)}
            elif any(not self.words.refused(place) for word in sure for place in self.words.places(word)):
                continue
            others = choices - own
            found |= others.union(w for w, c in spoken if c in others).difference(w for w, c in spoken if c in own)
        return found

    def needs_of(
        self, step: model.Step, profile: ToolProfile, args: Mapping[str, model.Argument]
    ) -> Iterator[NeededValue]:
        """Yield the values of a step that the messages must say."""
        verbs = _verbs(step.tool, profile) if profile.side_effect else frozenset()
        every = [(name, part) for name, whole in args.items() for part in model.parts_of(whole)]
        calcs = [part for _, part in every if isinstance(part, model.Calc)]
        money = {*languages()[0].data["moneyed"], *languages()[0].coins}
        need = partial(NeededValue, strict=profile.effect in RISKY, order=profile.side_effect, verbs=verbs)
        for name, argument in every:
            command = profile.effect in ("admin", "delete") and profile.critical.get(name) == "value"
            listed = as_list(as_mapping(self.schemas[step.tool].get(name)).get("enum"))
            moneyed = not money.isdisjoint(words_of(name))
            for value in model.literals(argument):
                if not profile.needs_mandate and (isinstance(value, bool) or value in listed):
                    continue
                long = isinstance(value, str) and len(value.split()) > 1
                rate = any(argument is calc.of[0] and calc.op == "percent" for calc in calcs)
                scale = _scale(profile, name, (value,))
                yield need(
                    name,
                    value,
                    also=(
                        *(word for word, meant in profile.synonyms.get(name, {}).items() if meant == value),
                        # "¥" is a sign of two currencies.
                        *scale.get(str(value), frozenset()).difference(*(w for c, w in scale.items() if c != value)),
                    ),
                    dictated=name in profile.text,
                    dated=name in profile.when and profile.effect not in RISKY,
                    alone=profile.effect == "pay" or (profile.effect in RISKY and isinstance(value, int | float)),
                    ends=command and long,
                    shares=isinstance(argument, model.OneOf),
                    joined=_joined(argument),
                    moneyed=moneyed,
                    rate=rate or "per" in words_of(name),
                    unit=PERCENT if rate else UNITS.get(" ".join(words_of(name))),
                    calculated=any(argument in calc.of and calc.op != "percent" for calc in calcs),
                    hit=profile.critical.get(name) in TARGETS and profile.effect not in RISKY,
                )
            if isinstance(argument, model.Pick | model.Each):
                for field, value in _wanted(argument.where):
                    yield need(f"{argument.step} {field}", value, shares=True, alone=profile.effect in RISKY)
            if isinstance(argument, model.Each) and argument.limit > model.MAX_ROWS:
                yield need(" limit", argument.limit, counts=True, alone=True)
        if step.times > 1:
            yield need(" times", step.times, counts=True, alone=True)

    def _with_span(self, argument: model.Argument, places: Sequence[Place] | None) -> model.Argument:
        """Return the argument, with its position in the messages if there is only one."""
        if not places or not isinstance(argument, model.Const | model.Text):
            return model.Const(value=argument.value) if isinstance(argument, model.Const) else argument
        n, start, end = span_of_places(places)
        segment = self.words.segments[n]
        span = model.Span(segment.digest, segment.offset + start, segment.offset + end)
        if isinstance(argument, model.Const):
            return model.Const(value=argument.value, said=span)
        quoted = (start, end) in segment.quotations and not argument.inputs
        return model.Const(value=segment.text[start:end], said=span) if quoted else argument


def ordered_anew(texts: Sequence[str], steps: Sequence[model.Step], profile: ToolProfile) -> bool:
    """Return True if the words order each step once more: "Pay Bob again"."""
    segments = Texts(texts).segments
    return all(any(_says_anew(segment, step, profile) for segment in segments) for step in steps)


def _says_anew(segment: Segment, step: model.Step, profile: ToolProfile) -> bool:
    said = [a.said for a in step.args.values() if isinstance(a, model.Const) and a.said is not None]
    spans = [(start - segment.offset, end - segment.offset) for text, start, end in said if text == segment.digest]
    plain = mask_spans(mask_spans(segment.text, segment.quotations, QUOTE), spans, VALUE)
    return bool(spans or not said) and says_anew(plain, spans, Known(verbs=_verbs(step.tool, profile)))


_USUAL: Final = {"pay": ("pay", "send", "give"), "send": ("send", "write"), "delete": ("delete",)}  # verbs by effect


def _verbs(name: str, profile: ToolProfile) -> frozenset[str]:
    """Return the verbs that order a tool, and those that say the same.

    Empty if its name and profile have no verb: any verb may order it then. What pays, deletes or administers is
    ordered only by its name then.
    """
    own = set(_USUAL.get(profile.effect, ())).union(
        *(ToolWords(name, profile, {}, one).verbs - (one.closed - one.verbs) for one in languages())
    )
    if profile.effect in RISKY and not own:
        own = {name.partition("_")[0].lower()}
    return frozenset().union(*map(synonyms, own))


def _scale(profile: ToolProfile, name: str, values: Sequence[object]) -> Mapping[str, frozenset[str]]:
    """Return the choices of which an argument has some, with the words for each."""
    return scale_of(values[0]) if values and profile.critical.get(name) == "value" else {}


def _joined(argument: model.Argument) -> str:
    """Return the rule for what may stand between the values of an argument, or ""."""
    if isinstance(argument, model.Const):
        return "listed" if len(model.literals(argument)) > 1 else ""
    return "joined" if isinstance(argument, model.OneOf | model.Between) else ""


def _turned(argument: model.Argument) -> bool:
    """Return True for a value that is a bound, an exception or a part of a number."""
    if isinstance(argument, model.Calc):
        return argument.op != "percent" and any(isinstance(one, model.Const) for one in argument.of)
    conditions = getattr(argument, "where", {}).values()
    return any(isinstance(one, model.Not | model.AtLeast | model.AtMost) for several in conditions for one in several)


def _wanted(where: model.Where) -> Iterator[tuple[str, object]]:
    for field, conditions in where.items():
        for condition in conditions:
            while isinstance(condition, model.Not):
                condition = condition.condition  # noqa: PLW2901
            if isinstance(condition, model.Own):
                continue
            said = condition.text if isinstance(condition, model.Contains | model.StartsWith) else condition.value
            yield field, said
