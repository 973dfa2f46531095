"""Read a message that only says new values for an order of a message before it.

"And T-6 too" behind "Assign T-5 to Zoe" assigns T-6 to Zoe. It counts as the message before it with the new values in
place. An answer, like "to Zoe" behind "Assign T-5", counts as its end. Both order only writes inside the application:
what the agent said between the two messages may have changed what the user means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any, Final, NamedTuple

from langchain_runtime_authz._text import lazy
from langchain_runtime_authz._validate import as_list, as_mapping
from langchain_runtime_authz.facts.local_time import with_dates
from langchain_runtime_authz.facts.normal_forms import forms_of, mask_spans
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.date_matching import on_days
from langchain_runtime_authz.mandate.languages import any_phrase, singular, words_of
from langchain_runtime_authz.mandate.message_places import Place, Texts
from langchain_runtime_authz.mandate.model import Argument, Const, Mandate, Span, Step, literals
from langchain_runtime_authz.mandate.plain_orders import VALUE, Known, says
from langchain_runtime_authz.mandate.step_checks import StepCheck
from langchain_runtime_authz.mandate.step_places import span_of_places
from langchain_runtime_authz.mandate.value_matching import same_values
from langchain_runtime_authz.tool_profile import ToolProfile, kind_of

_TUESDAY: Final = date(1, 1, 2)  # `date.min` is a Monday
_TELLING: Final = re.compile(r"[\d/\\@#:]|\.(?=\w)")  # signs that tell a name from a path
_BEHIND: Final = re.compile(r"\s?([^\W\d_]+|[%$\u20ac\u00a3])")  # "euros" of "45 euros"
_COMMA: Final = re.compile(r"[,\uff0c\u3001\n]")
_LETTER: Final = r"[^\W\u3400-\u9fff]"  # of a script with blanks between words
_MARKS: Final = tuple(
    (kind, lazy(rf"{before}(?:{any_phrase(name)}){behind}", re.IGNORECASE))
    for kind, before, name, behind in (
        ("rather", r"\A", "corrects_before", rf"(?!{_LETTER})"),
        ("rather", rf"(?<!{_LETTER})", "corrects_behind", r"(?=[.!]*\Z)"),
        ("and", r"(?:\A|(?<=[,.!] ))", "added_before", rf"(?!{_LETTER})"),
        ("also", rf"(?<={VALUE}) ?", "added_behind", rf"(?!{_LETTER}|,? ?{VALUE})"),
    )
)
_RULES: Final = {"rather": "values", "also": "more_values", "and": "and_values", "": "values"}
_LONG: Final = 400  # characters of a message before
_MOST: Final = 8  # orders of a message
Ordered = Callable[[Sequence[Step], str], Mandate]  # what a text orders unasked of some steps


class TurnBefore(NamedTuple):
    """A message of the user, and what it ordered."""

    text: str
    mandate: Mandate

    def said(self, step: Step) -> dict[str, Span]:
        """Return argument → where this message says it."""
        own = content_digest(self.text)
        spans = {name: a.said for name, a in step.args.items() if isinstance(a, Const)}
        return {name: span for name, span in spans.items() if span is not None and span.text == own}


class TurnInContext(NamedTuple):
    """The user's newest turn, and what a planner may know of those before it.

    Attributes:
        texts: the texts of the turn.
        earlier: the user's earlier texts, which order nothing.
        today: the user's date, for "tomorrow".
        before: the newest of `earlier` that came on the same day, with what each ordered; the newest last.
    """

    texts: Sequence[str]
    earlier: Sequence[str] = ()
    today: date | None = None
    before: Sequence[TurnBefore] = ()


class _Message:
    """A message, of which `places` are the values of `steps` steps.

    Attributes:
        kind: "and" or "also" (it adds), "rather" (it corrects), or "" (only values).
        only_values: it has only values, and words of grammar.
        repeats: it may repeat an order. A single value without a word like "too" may answer something else.
    """

    def __init__(self, text: str, places: Sequence[Place], steps: int, known: Known) -> None:
        self.text, self.known, self.kind = text, known, ""
        self._left = mask_spans(text, sorted((p.start, p.end) for p in places), VALUE)
        for kind, mark in _MARKS:
            left = mark.sub(lambda said: " " * len(said[0]), self._left, count=1)
            self.kind = self.kind or (kind if left != self._left else "")
            self._left = left
        self.only_values = says(_RULES[self.kind], self._left, known)
        self.repeats = bool(self.kind) or len(places) > steps

    def put(
        self, base: TurnBefore, order: Step, step: Step, new: Mapping[str, Place], schema: Mapping[str, Any]
    ) -> str | None:
        """Return the text of `base` with new values in place of those of `order`.

        None if it is not clear which argument a value is for.
        """
        said = base.said(order)
        if not new.keys() <= said.keys():
            return None
        for name, place in new.items():
            of = [one for one in said if may_be(step.args[name], order.args[one], schema.get(one))]
            of = self._in_same_way(place, name, {one: base.text[: said[one].start] for one in of})
            if of != [name] or not self._same_unit(place, base.text[said[name].end :]):
                return None
            given, old = order.args[name], base.text[said[name].start : said[name].end]
            if isinstance(given, Const) and isinstance(given.value, tuple):
                return None  # it may become one of several
            if not self.plain(place, schema.get(name), capital=old[:1].isupper()):
                return None
        return replaced(base.text, [(said[name], self.text[p.start : p.end]) for name, p in new.items()])

    def plain(self, place: Place, schema: object, *, capital: bool = False) -> bool:
        """Return True if a value may be a name, and has a `capital` if the old one has."""
        said = self.text[place.start : place.end]
        if as_list(as_mapping(schema).get("enum")) or _TELLING.search(said):
            return True
        return says("plain_value", said, self.known) and not (capital and said[:1].islower())

    def _in_same_way(self, place: Place, name: str, before: Mapping[str, str]) -> list[str]:
        """Return those arguments whose old values stand behind the same word, like "to"."""
        words = self._left[: place.start].rpartition(VALUE)[2].split()
        gap = " ".join(word for word in words if singular(word.lower()) not in words_of(name))
        if says("open_way", gap, self.known):
            return [*before]
        return [one for one, text in before.items() if self._way(text) == self._way(gap) != ""]

    def _way(self, text: str) -> str:
        """Return the last word like "to" of a text, with at most an article behind it."""
        words = text.lower().split()[-2:]
        while words and not says("same_way", " ".join(words), self.known):
            words.pop(0)
        return words[0] if words else ""

    def _same_unit(self, place: Place, behind: str) -> bool:
        """Return True if a value has the old one's unit or noun behind it, or none."""
        new, old = _BEHIND.match(self._left, place.end), _BEHIND.match(behind)
        counted = new is not None and says("unit_or_noun", new[1], self.known)
        return not counted or (new is not None and old is not None and new[1].lower() == old[1].lower())


def replaced(text: str, parts: Iterable[tuple[Span, str]]) -> str | None:
    """Return a text with other words in place of some parts; None if two overlap."""
    found, at = "", 0
    for span, words in sorted(parts):
        if span.start < at:
            return None
        found, at = found + text[at : span.start] + words, span.end
    return found + text[at:]


def keep_follow_ups(
    check: StepCheck, text: str, earlier: Sequence[str], before: Sequence[TurnBefore], ordered: Ordered
) -> None:
    """Keep the writes inside that `text` orders together with the messages before it.

    All or none of them, because each value in `text` must be a value of one of them.
    """
    steps = [s for s in check.mandate.steps if s.tool in check.profiles and check.profiles[s.tool].side_effect]
    right_before = bool(earlier) and bool(before) and before[-1].text == earlier[-1]
    if not right_before or not 0 < len(steps) <= _MOST or not _says_one_thing(before[-1].text, check):
        return
    if any((s.id in check.kept and not check.doubtful(s)) or not check.profiles[s.tool].inside for s in steps):
        return
    new = [_new_values(check, step) for step in steps]
    if not all(new) or len({frozenset(places) for places in new}) > 1 or not _apart(new, text):
        return
    message = _Message(text, [place for places in new for place in places.values()], len(new), check.placing.known)
    if not message.only_values:
        return
    if before[-1].mandate.steps:
        found = [_repeated(check, *each, message, before, ordered) for each in zip(steps, new, strict=True)]
    else:
        answer = f"{earlier[-1].rstrip(' .')} {text}"
        known = [
            (place, check.schemas[s.tool].get(n)) for s, of in zip(steps, new, strict=True) for n, place in of.items()
        ]
        plain = not message.kind and all(message.plain(place, schema) for place, schema in known)
        found = [_ordered([step], answer, ordered) if plain else None for step in steps]
    if None not in found:
        kept = {step.id: without_spans(step) for step in found if step is not None}
        check.kept, check.followed = check.kept | kept, {*kept}
        check.lost = {step: why for step, why in check.lost.items() if step not in kept}


def _says_one_thing(text: str, check: StepCheck) -> bool:
    """Return True if a text is one short sentence without a remark or a read."""
    segments = Texts([text]).segments if len(text) <= _LONG else []
    starts = [at for segment in segments for at in segment.starts if segment.text[at:].strip(" \n.")]
    return len(starts) == 1 and not says("says_more", text, check.placing.known)


def _new_values(check: StepCheck, step: Step) -> dict[str, Place]:
    """Return argument → its only place in the newest message. Empty if it is unclear."""
    simple = all(isinstance(argument, Const) for argument in step.args.values())
    if not simple or step.times > 1 or step.after or step.deed or check.unfit(step):
        return {}
    found = dict[str, Place]()
    for need in check.needs_of(step, check.profiles[step.tool], check.without_defaults(step)):
        inside = {place for place in check.placing.choices(need) if place.segment >= check.words.newest}
        if len(inside) > 1 or (inside and need.owner in found):
            return {}
        found |= dict.fromkeys([need.owner], *inside) if inside else {}
    return found


def _repeated(
    check: StepCheck,
    step: Step,
    new: Mapping[str, Place],
    message: _Message,
    before: Sequence[TurnBefore],
    ordered: Ordered,
) -> Step | None:
    """Return a step that an order of the messages before, with new values, orders."""
    profile, schema = check.profiles[step.tool], check.schemas[step.tool]
    if not message.repeats or check.placing.says_any(check.other_choices(step.tool, step.args)):
        return None
    given = on_days(step.model_copy(update={"args": check.without_defaults(step)}), profile, check.today)
    if message.kind in ("and", "also") and not any(_names(given, name, profile, schema) for name in new):
        return None
    for turn in reversed(before):
        orders = turn.mandate.steps
        if (
            not 0 < len(orders) <= _MOST
            or turn.mandate.confirm
            or not all(_alike(given, order, profile, new) for order in orders)
        ):
            return None
        for order in orders:
            if all(same_values(literals(given.args[n]), literals(order.args[n]), kind_of(profile, n)) for n in new):
                return None  # it may only say again what was done
            if (text := message.put(turn, order, given, new, schema)) is not None:
                others = [s.model_copy(update={"id": f"{step.id} {n}"}) for n, s in enumerate(orders) if s is not order]
                return _ordered([step, *others], text, ordered)
        if message.kind == "rather":
            return None
    return None


def _ordered(steps: Sequence[Step], text: str, ordered: Ordered) -> Step | None:
    """Return the first of some steps as a text orders it, or None."""
    mandate = ordered(steps, text)
    kept = next((step for step in mandate.steps if step.id == steps[0].id), None)
    return None if kept is None or kept.id in mandate.confirm else kept


def _names(step: Step, name: str, profile: ToolProfile, schema: Mapping[str, Any]) -> bool:
    """Return True if a value is a name or a day: "45 too" may mean 45 more."""
    choice = as_list(as_mapping(schema.get(name)).get("enum"))
    return name in profile.when or not (choice or _shape(step.args[name]) == {"num"})


def _alike(step: Step, order: Step, profile: ToolProfile, new: Mapping[str, Place]) -> bool:
    """Return True if a step is an order of a message before, but for new values."""
    return (
        step.tool == order.tool
        and step.args.keys() == order.args.keys()
        and all(
            same_values(literals(step.args[name]), literals(argument), kind_of(profile, name))
            for name, argument in order.args.items()
            if name not in new
        )
    )


def _apart(steps: Sequence[Mapping[str, Place]], text: str) -> bool:
    """Return True if the values of each step stand together, without a comma."""
    hulls = sorted(span_of_places([*places.values()]) for places in steps)
    between = (text[a.end : b.start] for places in steps for a, b in pairwise(sorted(places.values())))
    return all(one.end <= two.start for one, two in pairwise(hulls)) and not any(map(_COMMA.search, between))


def without_spans(step: Step) -> Step:
    """Return a step without positions, as they are of a text that nobody typed."""
    args = {name: Const(value=a.value) for name, a in step.args.items() if isinstance(a, Const)}
    return step.model_copy(update={"args": args})


def may_be(argument: Argument, old: Argument, schema: object) -> bool:
    """Return True if a value is a choice of the old one's argument, or looks like it."""
    values, choices = literals(argument), as_list(as_mapping(schema).get("enum"))
    return all(value in choices for value in values) if choices else _shape(argument) == _shape(old)


def _shape(argument: Argument) -> object:
    """Return what a value looks like: its kinds, or its telling signs."""
    value = str(next(iter(literals(argument)), ""))
    day = with_dates(with_dates(value, date.min), _TUESDAY)  # a weekday that is today's stays a word
    kinds = {form.partition(":")[0] for form in forms_of(day, said=True)} - {"text"}
    signs = {"0" if sign.isdigit() else sign for sign in _TELLING.findall(value)}
    return ({"num"} if kinds & {"num", "time", "digits"} else kinds) or signs  # "8" may be a time
