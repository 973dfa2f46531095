"""Read a message that only says new values for an order of a message before it.

"And T-6 too" behind "Assign T-5 to Zoe" assigns T-6 to Zoe. It counts as the message before it with the new values in
place. "Do the same for T-6" repeats any order; what only adds or corrects values, a write inside. An answer, like "to
Zoe" behind "Assign T-5", counts as the end of the message before it.
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
from langchain_runtime_authz.mandate.message_places import Place, any_phrase, leading
from langchain_runtime_authz.mandate.model import Argument, Const, Mandate, Span, Step
from langchain_runtime_authz.mandate.plain_orders import VALUE, Known, says
from langchain_runtime_authz.mandate.step_checks import StepCheck, values_of
from langchain_runtime_authz.mandate.step_places import span_of_places
from langchain_runtime_authz.mandate.value_matching import same_values
from langchain_runtime_authz.tool_profile import ToolProfile, kind_of

_TUESDAY: Final = date(1, 1, 2)  # `date.min` is a Monday
_TELLING: Final = re.compile(r"[\d/\\@#:]|\.(?=\w)")  # signs that tell a name from a path
_LETTER: Final = r"[^\W\u3400-\u9fff]"  # of a script with blanks between words
_MARKS: Final = {
    kind: lazy(rf"(?<!{_LETTER})(?:{any_phrase(name)})(?!{_LETTER})", re.IGNORECASE)
    for kind, name in (("rather", "corrects"), ("do", "done_again"), ("same", "same_again"), ("also", "also_said"))
}
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


class _Message:
    """A message, of which `places` are the values of `steps` steps.

    Attributes:
        only_values: it has only values, and words of grammar.
        kind: "do" (the same), "same", "also" or "rather" (a correction); None if it may say anything else.
    """

    def __init__(self, text: str, places: Sequence[Place], steps: int, known: Known) -> None:
        self.text, self.known, self.kind = text, known, ""
        self._masked = mask_spans(text, sorted((p.start, p.end) for p in places), VALUE)
        for kind, mark in _MARKS.items():
            left = mark.sub(lambda said: " " * len(said[0]), self._masked)
            self.kind = self.kind or (kind if left != self._masked else "")
            self._masked = left
        if len(places) > steps or says("added", self._masked, known):
            self.kind = self.kind or "also"
        self.only_values = says("values", self._masked, known)
        if self.kind == "same" and says("requests", text, known):
            self.kind = "do"

    def put(
        self, base: TurnBefore, order: Step, step: Step, new: Mapping[str, Place], schema: Mapping[str, Any]
    ) -> str | None:
        """Return the text of `base` with new values in place of those of `order`.

        None if it is not clear which argument a value is for.
        """
        said = base.said(order)
        if not new.keys() <= said.keys():
            return None
        shapes = {name: shape_of(order.args[name], schema.get(name)) for name in said}
        for name, place in new.items():
            word = leading(self._masked[: place.start].rpartition(VALUE)[2])[0]
            alike = [one for one in said if shapes[one] == shape_of(step.args[name], schema.get(name))]
            exact = [one for one in alike if word and leading(base.text[: said[one].start])[0] == word]
            if (exact or (alike if says("neutral", word, self.known) else [])) != [name]:
                return None
        return replaced(base.text, [(said[name], self.text[p.start : p.end]) for name, p in new.items()])


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
    """Keep the side effects that `text` orders together with the messages before it.

    All or none of them, because each value in `text` must be a value of one of them.
    """
    steps = [s for s in check.mandate.steps if s.tool in check.profiles and check.profiles[s.tool].side_effect]
    if not earlier or any(s.id in check.kept and not check.doubtful(s) for s in steps):
        return
    new = [_new_values(check, step) for step in steps]
    if not new or not all(new) or not _apart(new):
        return
    message = _Message(text, [place for places in new for place in places.values()], len(new), check.placing.known)
    if not message.only_values:
        return
    repeats = bool(before) and before[-1].text == earlier[-1] and bool(before[-1].mandate.steps)
    answer = f"{earlier[-1].rstrip(' .')} {text}"
    found = [
        _repeated(check, step, places, message, before, ordered) if repeats else _ordered([step], answer, ordered)
        for step, places in zip(steps, new, strict=True)
        if message.kind == "do" or check.profiles[step.tool].inside
    ]
    if None not in found and len(found) == len(steps):
        kept = {step.id: without_spans(step) for step in found if step is not None}
        check.kept, check.followed = check.kept | kept, {*kept}
        check.lost = {step: why for step, why in check.lost.items() if step not in kept}


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
    if not message.kind or check.placing.says_any(check.other_choices(step.tool, step.args)):
        return None
    given = on_days(step.model_copy(update={"args": check.without_defaults(step)}), profile, check.today)
    for turn in reversed(before):
        orders = turn.mandate.steps
        if not orders or turn.mandate.confirm or not all(_alike(given, order, profile, new) for order in orders):
            return None
        for order in orders:
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


def _alike(step: Step, order: Step, profile: ToolProfile, new: Mapping[str, Place]) -> bool:
    """Return True if a step is an order of a message before, but for new values."""
    return (
        step.tool == order.tool
        and step.args.keys() == order.args.keys()
        and all(
            same_values(values_of(step.args[name]), values_of(argument), kind_of(profile, name))
            for name, argument in order.args.items()
            if name not in new
        )
    )


def _apart(steps: Sequence[Mapping[str, Place]]) -> bool:
    """Return True if the values of each step stand together in the message."""
    hulls = sorted(span_of_places([*places.values()]) for places in steps)
    return all(one.end <= two.start for one, two in pairwise(hulls))


def without_spans(step: Step) -> Step:
    """Return a step without positions, as they are of a text that nobody typed."""
    args = {name: Const(value=a.value) for name, a in step.args.items() if isinstance(a, Const)}
    return step.model_copy(update={"args": args})


def shape_of(argument: Argument, schema: object) -> object:
    """Return what a value looks like: its choices, its kinds, or its telling signs."""
    value = next(iter(values_of(argument)), None)
    if value in (choices := as_list(as_mapping(schema).get("enum"))):
        return choices
    day = with_dates(with_dates(str(value), date.min), _TUESDAY)  # a weekday that is today's stays a word
    kinds = {form.partition(":")[0] for form in forms_of(day, said=True)}
    return kinds - {"text"} or {"0" if sign.isdigit() else sign for sign in _TELLING.findall(str(value))}
