"""Match a whole call with a mandate: find its step, deviations and budgets.

A call is covered if one step orders all of its values, and earlier calls have not used up the step. `match_call`
compares values, and `MandateMatch.standing` decides with the ledger's counts. Both are pure, and never raise.

Calls are counted by the `deed` of their step, or by the step's id if it has no deed. If an approver permits a call that
deviates, the call uses up the step from which it deviates least. So the same action does not run twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.call_arguments import SCALAR_TYPES, is_empty, scalars, uncovered
from langchain_runtime_authz.facts.normal_forms import REMEMBERED, identifiers_in, key
from langchain_runtime_authz.mandate.argument_matching import ArgumentMatcher, CallFacts
from langchain_runtime_authz.mandate.date_matching import dates_of, in_zone, names_zone, other_day
from langchain_runtime_authz.mandate.description import describe_condition, described_step, quote_values
from langchain_runtime_authz.mandate.model import Argument, Between, Const, Each, Free, Mandate, OneOf, Pick, Step, Text
from langchain_runtime_authz.mandate.read_outputs import Outputs, scalar_forms
from langchain_runtime_authz.mandate.value_matching import has_comma, is_same, known_same, may_hold, touches_unwanted
from langchain_runtime_authz.tool_profile import DESTINATIONS, ToolProfile, kind_of, value_at

MAX_VALUES: Final = 1000  # values of one argument that are compared with prohibitions, or added up
MAX_SHOWN: Final = 20  # steps, limits and prohibitions that one question can show
UNBOUNDED: Final = 2**53
MAX_EQUAL_ROWS: Final = 32  # equal records that one call may match
MANDATE: Final = "mandate:"  # prefix of all counters
_REPEATED: Final = 'a word like "again"; the same was let run for an earlier message'
CONFIRMED: Final = f"{MANDATE}confirmed:"  # prefix of the counter that tells if a whole mandate was approved
_TEXT: Final = Text()
_Rows = dict[str, frozenset[str]]  # id of a read step → keys of its records
_FIXED: Final = (Const, Pick)  # a fetch with only these arguments has one address, and is not counted


class Deviation(NamedTuple):
    """A difference between a call and a mandate's step."""

    argument: str
    code: str
    expected: str  # tells an approver what was ordered


class Spend(NamedTuple):
    """An addition of `by` to a budget's counter, committed with the call's claim."""

    counter: str
    maximum: int
    by: int = 1


class Standing(NamedTuple):
    """A call's standing (`CallStanding`), and the counters that its claim adds to.

    `awaited`: if a later step waits for this call, the counter of calls that did not succeed yet. A success lowers it.
    `confirms`: if the call's question shows the whole mandate, the counter of approvals, which confirm the mandate.
    """

    standing: str
    step: str | None = None
    deviations: tuple[Deviation, ...] = ()
    spends: tuple[Spend, ...] = ()
    awaited: str = ""
    confirms: str = ""


class _Slot(NamedTuple):
    """An argument that a step names, with what the step orders for it."""

    name: str
    order: Argument
    kind: str
    dotted: bool  # the name is a path
    days: Sequence[str]  # the ordered days, of a `Const`
    local: bool  # the ordered values do not name a time zone


class _ReadyStep(NamedTuple):
    """A step, prepared for the comparison with calls. An unused counter is ""."""

    step: Step
    slots: Sequence[_Slot]  # the named arguments, except `Free` ones
    paired: Sequence[_Slot]  # those that are members of one argument: values of one object belong together
    settled: frozenset[str]  # arguments that the step names, or that may have any value
    counter: str  # counts the calls that use up the step
    maximum: int  # number of calls that the step orders
    awaited: str  # counts calls without success yet, if a later step waits for this one
    row: str  # prefix of the counters of its records
    confirm: str  # counts approvals of the whole mandate, if one is needed
    shown: bool  # one question can show the whole mandate


class _Index:
    """Values computed once for a mandate. `ready_steps`: tool → (profile, steps)."""

    def __init__(self, mandate: Mandate) -> None:
        named = f"key {mandate.key}" if mandate.key else mandate.digest
        self.prefix = f"{MANDATE}{key(named)}:"
        self.steps = {step.id: step for step in mandate.steps}
        self.ready_steps: dict[str, tuple[ToolProfile | None, list[_ReadyStep]]] = {
            s.tool: (None, []) for s in mandate.steps
        }
        self.shown = len(mandate.steps) + len(mandate.limits) + len(mandate.never) <= MAX_SHOWN
        self.awaited = {self.steps[step.after].deed or step.after for step in mandate.steps if step.after}
        self.totals: dict[str, int] = {}
        for limit in mandate.limits:
            total = math.floor(Fraction(repr(limit.total)) * 100)
            self.totals[limit.effect] = min(total, self.totals.get(limit.effect, total))


class _Wait(NamedTuple):
    """A side effect that must have succeeded before the call."""

    step: Step
    taken: str  # the counter of the step's calls
    awaited: str  # the counter of those that did not succeed yet; must be 0
    least: int  # number of calls that the step needs


class _StepMatch(NamedTuple):
    """The comparison of a call with one step, before the counts are known."""

    ready: _ReadyStep
    deviations: Sequence[Deviation]
    rows: Sequence[Sequence[str]]  # groups of counters of matching records; the call uses one counter of each group
    wait: _Wait | None


class MandateMatch:
    """A call compared with a mandate. `counters`: counter → what the call adds.

    `awaited`: counters of awaited steps. Of the message's earlier calls, only those that may not run add to them.
    """

    __slots__ = ("_earlier", "_limit", "_matches", "_otherwise", "awaited", "counters")

    def __init__(
        self,
        otherwise: Standing,
        matches: Sequence[_StepMatch] = (),
        limit: Spend | None = None,
        awaited: Collection[str] = (),
        earlier: Collection[str] = (),  # counters of equal calls for earlier messages; after one, the call asks
    ) -> None:
        self._otherwise, self._matches, self._limit = otherwise, matches, limit
        self.awaited, self._earlier = awaited, earlier
        counters = dict.fromkeys(earlier, 0) | ({} if limit is None else {limit.counter: limit.by})
        for ready, _, rows, wait in matches:
            if wait is not None:
                counters = {wait.taken: 0, wait.awaited: 0, **counters}
            if ready.confirm:
                counters[ready.confirm] = 0
            if ready.counter:
                counters[ready.counter] = 1
                if ready.awaited:
                    counters[ready.awaited] = 1
            for group in rows:
                counters.update(dict.fromkeys(group, 1))
        self.counters: Mapping[str, int] = counters

    def standing(self, counts: Mapping[str, int]) -> Standing:
        """Return the standing, by the ledger's counts of `counters` (0 if missing)."""
        limit = self._limit
        if limit is not None and counts.get(limit.counter, 0) + limit.by > limit.maximum:
            total = Decimal(limit.maximum) / 100
            return Standing("forbidden", None, (Deviation("", "limit", f"at most {total} in all"),))
        spends = () if limit is None or not limit.by else (limit,)
        best: Standing | None = None
        for match in self._matches:
            found = _stand(match, counts, spends)
            if best is None or _distance(found) < _distance(best):
                best = found
        if best is not None and best.standing == "covered" and any(map(counts.get, self._earlier)):
            best = best._replace(standing="deviates", deviations=(Deviation("", "spent", _REPEATED),))
        return best or self._otherwise._replace(spends=spends)


def _distance(standing: Standing) -> tuple[int, int]:
    """Return a rank, lower for a better match: deviating arguments, all deviations."""
    return sum(d.argument != "" for d in standing.deviations), len(standing.deviations)


def _stand(match: _StepMatch, counts: Mapping[str, int], spends: tuple[Spend, ...]) -> Standing:
    ready, deviations, groups, wait = match
    step, awaited, confirms = ready.step, "", ""
    if ready.counter:
        spent = counts.get(ready.counter, 0) >= ready.maximum
        rows = []
        for group in groups:
            row = next((counter for counter in group if counts.get(counter, 0) < step.times), None)
            if row is None:
                spent = True
            else:
                rows.append(Spend(row, step.times))
        awaited = "" if spent and (deviations or groups) else ready.awaited  # a retry makes up for its own failure
        if spent:
            deviations = [*deviations, Deviation("", "spent", f"step `{step.id}` not to be taken again")]
        else:
            spends = (*spends, Spend(ready.counter, ready.maximum), *rows)
            spends = (*spends, Spend(ready.awaited, UNBOUNDED)) if ready.awaited else spends
    if wait is not None and (counts.get(wait.taken, 0) < wait.least or counts.get(wait.awaited)):
        first = f"step `{step.after}` to succeed first: {described_step(wait.step)}"
        deviations = [*deviations, Deviation("", "after", first)]
    if ready.confirm and not counts.get(ready.confirm):
        confirms = ready.confirm if not deviations and ready.shown else ""
        deviations = [*deviations, Deviation("", "confirm", "")]
    return Standing("deviates" if deviations else "covered", step.id, tuple(deviations), spends, awaited, confirms)


_NO_MANDATE: Final = MandateMatch(Standing("none"))
_OUTSIDE: Final = Standing("outside")


def match_call(
    mandate: Mandate | None,
    call: CallFacts,
    profiles: Mapping[str, ToolProfile],
    outputs: Outputs,
) -> MandateMatch:
    """Compare a call with a mandate. The `profiles` tell which steps are reads.

    `outputs`: what the reads returned.
    """
    if mandate is None:
        return _NO_MANDATE
    if (index := mandate.__dict__.get("_index")) is None:
        index = mandate.__dict__["_index"] = _Index(mandate)
    effect = call.profile.effect
    if mandate.never and (forbidden := _forbidden(mandate, call)) is not None:
        return MandateMatch(Standing("forbidden", None, (forbidden,)))
    limit: Spend | None = None
    common: tuple[Deviation, ...] = ()
    if effect in index.totals:
        amount = _amount(call)
        if amount is None:
            common = (Deviation("", "limit", "an amount that counts towards the limit"),)
        else:
            limit = Spend(f"{index.prefix}limit:{effect}", index.totals[effect], amount)
    if call.tool not in index.ready_steps:
        return MandateMatch(_OUTSIDE, (), limit)
    profile, ready_steps = index.ready_steps[call.tool]
    if profile is not call.profile:
        ready_steps = [
            _ready_step(mandate, index, step, call.profile) for step in mandate.steps if step.tool == call.tool
        ]
        index.ready_steps[call.tool] = call.profile, ready_steps
    matcher = ArgumentMatcher(index.steps, outputs, call)
    matches: list[_StepMatch] = []
    for ready in ready_steps:
        step, after = ready.step, index.steps[ready.step.after] if ready.step.after else None
        deviations, rows = _compare(ready, call, matcher)
        deviations += common
        if step.only_if is not None and (code := matcher.condition(step.only_if)):
            deviations.append(Deviation("", code, f"step `{step.id}` only if {describe_condition(step.only_if)}"))
        if call.steps is not None and step.id not in call.steps:
            deviations.append(Deviation("", "part", f"step `{step.id}` to be taken by another agent"))
        wait: _Wait | None = None
        if after is not None:
            # A side effect counts as taken after enough calls of which none is open, a read once its output is recorded.
            if after.tool not in profiles or profiles[after.tool].side_effect:
                name = after.deed or after.id
                # If an application wrote the mandate, `times` is a maximum, else the exact number.
                times = 1 if mandate.source == "application" else after.times
                least = matcher.calls(after) * times
                wait = _Wait(after, f"{index.prefix}step:{name}", f"{index.prefix}open:{name}", least)
            elif not any(output.complete for output in matcher.fitting(after.id)):
                deviations.append(Deviation("", "after", f"step `{after.id}` to be taken first"))
        groups = []
        for name, keys in rows.items():
            groups.append([f"{ready.row}{name}:{row}" for row in sorted(keys)[:MAX_EQUAL_ROWS]])
        matches.append(_StepMatch(ready, deviations, groups, wait))
    # In a planner's mandate, a write inside may be in one message with the step that it follows.
    waits = mandate.source != "application" and call.profile.inside
    awaited = {m.wait.awaited for m in matches if m.wait} if waits else ()
    return MandateMatch(_OUTSIDE, matches, limit, awaited, call.earlier)


def _ready_step(mandate: Mandate, index: _Index, step: Step, profile: ToolProfile) -> _ReadyStep:
    slots = []
    for name, order in step.args.items():
        kinds = [kind_of(profile, name)]
        if not kinds[0]:  # the step names an argument, and the profile only members of it
            kinds = [kind for path, kind in profile.critical.items() if path.startswith(f"{name}.")] or kinds
        kind = next((kind for kind in kinds if kind in DESTINATIONS), kinds[0])
        days = dates_of(_said(order))
        local = isinstance(order, Const | OneOf | Between) and not names_zone(order.model_dump())
        if not isinstance(order, Free):
            slots.append(_Slot(name, order, kind, "." in name, days, local))
    roots = [slot.name.partition(".")[0] for slot in slots if slot.dotted]
    several = profile.effect == "fetch" and not all(isinstance(order, _FIXED) for order in step.args.values())
    name, limits = step.deed or step.id, [order.limit for order in step.args.values() if isinstance(order, Each)]
    confirm = profile.effect in mandate.confirm or step.id in mandate.confirm
    return _ReadyStep(
        step,
        slots,
        paired=[slot for slot in slots if slot.dotted and roots.count(slot.name.partition(".")[0]) > 1],
        settled=frozenset((*step.args, *profile.free)),
        counter=f"{index.prefix}step:{name}" if profile.side_effect or several else "",
        maximum=step.times * min(limits, default=1),
        awaited=f"{index.prefix}open:{name}" if name in index.awaited else "",
        row=f"{index.prefix}row:{name}:",
        confirm=f"{CONFIRMED}{mandate.digest}" if confirm else "",
        shown=index.shown,
    )


def _said(order: Argument) -> object:
    """Return the value or the choices that an order names; None if it names none."""
    return order.values if isinstance(order, OneOf) else order.value if isinstance(order, Const) else None


def _compare(ready: _ReadyStep, call: CallFacts, matcher: ArgumentMatcher) -> tuple[list[Deviation], _Rows]:
    """Return a call's deviations from a step, and the records' keys by reading step."""
    deviations: list[Deviation] = []
    rows: _Rows = {}
    lists: list[_Slot] = []
    for slot in ready.slots:
        name, order, kind = slot.name, slot.order, slot.kind
        value = value_at(call.args, name) if slot.dotted else call.args.get(name)
        local = value if call.zone is None else in_zone(value, call.zone)
        value = local if slot.local else value  # an order that names no zone means local time
        if slot.days and (expected := other_day(name, value, order, call.now, call.args)):
            deviations.append(Deviation(name, "value", expected))
            continue
        if type(order) is Const and type(value) in SCALAR_TYPES and type(order.value) in SCALAR_TYPES:
            short = type(value) is not str or len(value) <= REMEMBERED
            if short and known_same(value, order.value, kind):  # as `check` would find, with less work
                continue
        if type(order) is Text and name not in call.given and is_empty(value):
            continue  # an optional text that was not sent keeps its default
        if type(order) is not Text and _has_several_values(value, order):
            lists.append(slot)
        found = matcher.check(order, value, kind)
        if found.code and local is not value:  # what was read may be a local time too
            found = matcher.check(order, local, kind)
        if found.code:
            deviations.append(Deviation(name, found.code, found.expected))
        elif found.rows and isinstance(order, Pick | Each):
            rows[order.step] = rows.get(order.step, found.rows) & found.rows
            if not rows[order.step]:
                expected = f"of the same record of step `{order.step}` as the other values"
                deviations.append(Deviation(name, "value", expected))
    if ready.paired or len(lists) > 1:
        deviations += _crossed(ready.paired, lists if len(lists) > 1 else (), call.args)
    if call.profile.needs_mandate and not call.given <= ready.settled:
        deviations += _open(ready, call, matcher)
    if rows:
        each = {slot.order.step for slot in ready.slots if isinstance(slot.order, Each)}
        rows = {step: keys for step, keys in rows.items() if keys and step in each}
    return deviations, rows


def _has_several_values(value: object, what: Argument) -> bool:
    if isinstance(what, Const) and isinstance(what.value, tuple) and len(what.value) > 1:
        return True
    return isinstance(value, list) and (len(value) > 1 or scalars(value, 1) is None)


def _crossed(paired: Sequence[_Slot], lists: Sequence[_Slot], args: Mapping[str, Any]) -> Iterator[Deviation]:
    """Yield a deviation if a call pairs values in another way than the step.

    Values of one object, or at one index of several lists, are a pair, like a recipient and an amount. So the values of
    each list, and of each member of a list's objects, must be in the order of the step.
    """
    roots = {slot.name: args.get(slot.name.partition(".")[0]) for slot in (*paired, *lists) if slot.dotted}
    rows = {name: len(root) for name, root in roots.items() if isinstance(root, list) and len(root) > 1}
    members = [slot for slot in paired if slot.name in rows and not isinstance(slot.order, Text)]
    for slot in {slot.name: slot for slot in (*members, *lists)}.values():
        name, held, ordered = slot.name, value_at(args, slot.name), getattr(slot.order, "value", None)
        if slot.dotted and name not in rows and isinstance(held, list) and isinstance(held[0], list):
            held = held[0]
        if (
            not isinstance(held, list)
            or not isinstance(ordered, tuple)
            or not len(held) == len(ordered) == rows.get(name, len(held))
            or not all(is_same(one, other, slot.kind) for one, other in zip(held, ordered, strict=True))
        ):
            yield Deviation(name, "ambiguous", "in the order of the rows")


def _open(ready: _ReadyStep, call: CallFacts, matcher: ArgumentMatcher) -> Iterator[Deviation]:
    """Yield deviations for arguments that the step does not name."""
    profile = call.profile
    declared = (*profile.critical, *profile.when)
    for root in sorted(call.given - ready.settled):
        value = call.args.get(root)
        # An empty value (also in a list) is a deviation, because it may clear data or replace a default.
        if root not in profile.text and not any(True for _ in uncovered(root, value, ())):
            yield Deviation(root, "unordered", "not to be given")
            continue
        for name in (*declared, *profile.text):
            above = (name[:i] for i, c in enumerate(f"{name}.") if c == ".")  # the name and its parents
            if name.partition(".")[0] != root or not ready.settled.isdisjoint(above):
                continue
            held = value_at(call.args, name)
            if is_empty(held):
                continue
            if name not in profile.text:
                yield Deviation(name, "unordered", "not to be given")
            elif finding := matcher.text(_TEXT, held).code:
                yield Deviation(name, finding, "a text whose identifiers and quotations come from the user's words")
        for path in dict.fromkeys(uncovered(root, value, {*ready.settled, *declared, *profile.text})):
            yield Deviation(path, "undeclared", "not to be given")


def _forbidden(mandate: Mandate, call: CallFacts) -> Deviation | None:
    for never in mandate.never:
        if never.effect != call.profile.effect:
            continue
        if not never.values:
            return Deviation("", "value", f"no call of effect {never.effect}, which the mandate forbids")
        for name, kind in call.profile.critical.items():
            held = scalars(value_at(call.args, name), MAX_VALUES)
            for unwanted in never.values.get(kind, ()):
                folder = never.effect == "delete" and kind == "object" and may_hold(held, unwanted)
                if held is None or folder or any(touches_unwanted(one, unwanted, kind) for one in held):
                    return Deviation(name, "value", f"not {quote_values(unwanted)}, which the mandate forbids")
    return None


def _amount(call: CallFacts) -> int | None:
    """Return the sum of a call's amounts in hundredths; None if it is not certain.

    It is not certain if the call has another number, which may multiply the amount, or several recipients for one amount.
    """
    total, paid, counts = Fraction(0), 0, {0, 1}
    for name, kind in call.profile.critical.items():
        held = scalars(value_at(call.args, name), MAX_VALUES, mappings=kind != "amount")
        if held is None:
            return None
        whole = Fraction(0)
        for one in held if kind in ("amount", "value") else ():
            # If a number can be read in two ways, use the greater one.
            numbers = [Fraction(form[4:]) for form in scalar_forms(one) if form.startswith("num:")]
            if kind == "amount" and (not numbers or min(numbers) < 0 or has_comma(one)):
                return None
            whole += max(numbers, default=Fraction(0))
        if whole > 1 and (kind == "value" or total > 1):
            return None
        if kind == "amount":
            total, paid = total + whole, max(paid, len(held))
        counts.update((len(held), *(len(identifiers_in(one)) for one in held if isinstance(one, str))))
    return math.ceil(total * 100) if paid and counts <= {0, 1, paid} else None
