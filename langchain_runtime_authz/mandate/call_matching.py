"""Match a whole call with a mandate: find its step, deviations and budgets.

A call is covered if one step that is not used up orders all of the call's values. `bind` compares values, and
`Binding.standing` decides with the counts of the budgets. Both are pure, and no content of a call makes them raise.

Calls are counted by the `deed` of their step, or by the step's id if it has no deed. If an approver permits a call that
deviates, the call uses up the step from which it deviates least. So the same action does not run twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple
from weakref import ref

from langchain_runtime_authz.facts.argument_atoms import DESTINATIONS, SHORT_KINDS, absent, loose
from langchain_runtime_authz.facts.normal_forms import REMEMBERED, identifiers, key
from langchain_runtime_authz.mandate.argument_matching import ArgumentMatcher
from langchain_runtime_authz.mandate.date_matching import dates, in_zone, names_zone, upcoming
from langchain_runtime_authz.mandate.description import described_step, quoted
from langchain_runtime_authz.mandate.model import Argument, Between, Const, Each, Free, Mandate, OneOf, Pick, Step, Text
from langchain_runtime_authz.mandate.read_outputs import NO_TASK, Outputs, Task, scalar_forms, scalars
from langchain_runtime_authz.mandate.value_matching import commas, known_same, may_hold, same, touches
from langchain_runtime_authz.tool_profile import ToolProfile, argument, kind_of

MAX_VALUES: Final = 1000  # values of one argument that are compared with prohibitions, or added up
MAX_SHOWN: Final = 20  # steps, limits and prohibitions that one question can show
UNBOUNDED: Final = 2**53
MAX_EQUAL_ROWS: Final = 32  # equal records that one call may match
MANDATE: Final = "mandate:"  # prefix of all counters
CONFIRMED: Final = f"{MANDATE}confirmed:"  # prefix of the counter that tells if a whole mandate was approved
_TEXT: Final = Text()
_Member = tuple[str, Argument, str]  # name, argument, kind
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
    """A call's standing by its mandate (`CallStanding`), with the budgets to use.

    `opened`: counter of calls without success yet, if a later step waits for the call. A success lowers the counter.
    `confirms`: if the call's question shows the whole mandate, the counter to which an approval adds.
    """

    standing: str
    step: str | None = None
    deviations: tuple[Deviation, ...] = ()
    spends: tuple[Spend, ...] = ()
    opened: str = ""
    confirms: str = ""


class CallFacts(NamedTuple):
    """A call, and what the comparison with a mandate needs to know."""

    tool: str
    profile: ToolProfile
    args: Mapping[str, Any]  # as JSON values, with the schema's defaults
    given: frozenset[str]  # names of the arguments that the model sent, without unordered defaults
    own: tuple[Any, ...]  # the subject's own identifiers
    words: str  # the user's messages
    task: Task = NO_TASK  # only outputs of reads for this task count
    steps: Collection[str] | None = None  # ids of the steps that the agent may take; `None` for all
    now: float | None = None  # when it was ordered (epoch seconds); a day without a year is the next one
    zone: tzinfo | None = None  # of ordered times that name no zone


class _Plan:
    """A step, with what is computed once for all calls."""

    __slots__ = ("after", "counter", "maximum", "open", "row", "shape", "shown", "step")

    def __init__(self, step: Step, prefix: str, after: Step | None, *, shown: bool, awaited: bool) -> None:
        self.step, self.after, self.shown = step, after, shown
        limits = [a.limit for a in step.args.values() if isinstance(a, Each)]
        self.counter = f"{prefix}step:{step.deed or step.id}"
        self.open = f"{prefix}open:{step.deed or step.id}" if awaited else ""
        self.maximum = step.times * min(limits, default=1)
        self.row = f"{prefix}row:{step.deed or step.id}:"
        self.shape: _Shape | None = None


class _Shape(NamedTuple):
    profile: ToolProfile
    named: tuple[tuple[str, Argument, str, bool], ...]  # name, argument, kind, True if the name is a dotted path
    settled: frozenset[str]  # arguments that the step names, or that may have any value
    counts: bool  # each call uses up the step once
    rows: tuple[_Member, ...]  # the dotted members, if the step names several members of one argument
    days: Mapping[str, Sequence[str]]  # argument → its ordered days
    local: frozenset[str]  # arguments whose ordered values name no zone


class _Index:
    __slots__ = ("by_tool", "mandate", "prefix", "steps", "totals")

    def __init__(self, mandate: Mandate) -> None:
        self.mandate = ref(mandate)  # a weak reference, because the mandate refers to the index
        named = f"key {mandate.key}" if mandate.key else mandate.digest
        self.prefix = f"{MANDATE}{key(named)}:"
        self.steps = {step.id: step for step in mandate.steps}
        self.by_tool: dict[str, list[_Plan]] = {}
        shown = len(mandate.steps) + len(mandate.limits) + len(mandate.never) <= MAX_SHOWN
        awaited = {self.steps[step.after].deed or step.after for step in mandate.steps if step.after}
        for step in mandate.steps:
            after, waited = self.steps[step.after] if step.after else None, (step.deed or step.id) in awaited
            self.by_tool.setdefault(step.tool, []).append(_Plan(step, self.prefix, after, shown=shown, awaited=waited))
        self.totals: dict[str, int] = {}
        for limit in mandate.limits:
            total = math.floor(Fraction(repr(limit.total)) * 100)
            self.totals[limit.effect] = min(total, self.totals.get(limit.effect, total))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # pickled as `None`: the unpickled mandate makes a new index


class _Match(NamedTuple):
    """The comparison of a call with one step, before the counts are known."""

    plan: _Plan
    deviations: Sequence[Deviation]
    rows: Sequence[Sequence[str]]  # groups of counters of matching records; the call uses one counter of each group
    counts: bool
    after: tuple[str, ...]  # counters of the step that must be taken before: of all calls, of those not yet successful
    least: int  # how many calls of that step must have been made
    confirm: str | None  # the counter of approvals of the whole mandate, if such an approval is needed


class Binding:
    """A call compared with a mandate. `counters`: budget → what the call adds to it.

    `alone`: the counters for which other calls of the same message do not count.
    """

    __slots__ = ("_final", "_limit", "_matches", "alone", "counters")

    def __init__(
        self, final: Standing | None, matches: Sequence[_Match], limit: Spend | None, alone: Sequence[str] = ()
    ) -> None:
        self._final, self._matches, self._limit, self.alone = final, matches, limit, alone
        counters = {} if limit is None else {limit.counter: limit.by}
        for match in matches:
            for awaited in match.after:
                counters.setdefault(awaited, 0)
            if match.confirm is not None:
                counters[match.confirm] = 0
            if match.counts:
                counters[match.plan.counter] = 1
                if match.plan.open:
                    counters[match.plan.open] = 1
            for group in match.rows:
                counters.update(dict.fromkeys(group, 1))
        self.counters: Mapping[str, int] = counters

    def standing(self, counts: Mapping[str, int]) -> Standing:
        """Return the standing, given the counts of `counters`. A missing counter counts 0."""
        if self._final is not None:
            return self._final
        limit = self._limit
        spends: tuple[Spend, ...] = ()
        if limit is not None and counts.get(limit.counter, 0) + limit.by > limit.maximum:
            total = Decimal(limit.maximum) / 100
            return Standing("forbidden", None, (Deviation("", "limit", f"at most {total} in all"),))
        if limit is not None and limit.by:
            spends = (limit,)
        best: Standing | None = None
        for match in self._matches:
            found = _stand(match, counts, spends)
            if best is None or len(found.deviations) < len(best.deviations):
                best = found
        return best or Standing("outside", None, (), spends)


def _stand(match: _Match, counts: Mapping[str, int], spends: tuple[Spend, ...]) -> Standing:
    plan, step = match.plan, match.plan.step
    deviations, opened, confirms = match.deviations, "", ""
    if match.counts:
        spent = counts.get(plan.counter, 0) >= plan.maximum
        rows = []
        for group in match.rows:
            row = next((counter for counter in group if counts.get(counter, 0) < step.times), None)
            if row is None:
                spent = True
            else:
                rows.append(Spend(row, step.times))
        if spent:
            deviations = [*deviations, Deviation("", "spent", f"step `{step.id}` not to be taken again")]
        else:
            spends = (*spends, Spend(plan.counter, plan.maximum), *rows)
            spends = (*spends, Spend(plan.open, UNBOUNDED)) if plan.open else spends
        opened = "" if spent and (match.deviations or match.rows) else plan.open  # a retry makes up for its own failure
    if plan.after and match.after and (counts.get(match.after[0], 0) < match.least or counts.get(match.after[1])):
        first = f"step `{step.after}` to succeed first: {described_step(plan.after)}"
        deviations = [*deviations, Deviation("", "after", first)]
    if match.confirm is not None and not counts.get(match.confirm):
        confirms = match.confirm if not deviations and plan.shown else ""
        deviations = [*deviations, Deviation("", "confirm", "")]
    return Standing("deviates" if deviations else "covered", step.id, tuple(deviations), spends, opened, confirms)


_NO_MANDATE: Final = Binding(Standing("none"), (), None)


def bind(
    mandate: Mandate | None,
    call: CallFacts,
    profiles: Mapping[str, ToolProfile],
    outputs: Outputs,
    taken: Collection[str] = (),
) -> Binding:
    """Compare a call with a mandate. The `profiles` tell which steps are reads.

    `outputs` are what the reads returned. `taken`: ids of steps that count as done, even without a counter or output.
    """
    if mandate is None:
        return _NO_MANDATE
    index = mandate.__dict__.get("_index")
    if index is None or index.mandate() is not mandate:  # a copied mandate has the index of the original
        index = mandate.__dict__["_index"] = _Index(mandate)
    effect = call.profile.effect
    if mandate.never and (forbidden := _forbidden(mandate, call)) is not None:
        return Binding(Standing("forbidden", None, (forbidden,)), (), None)
    limit: Spend | None = None
    common: tuple[Deviation, ...] = ()
    if effect in index.totals:
        amount = _amount(call)
        if amount is None:
            common = (Deviation("", "limit", "an amount that counts towards the limit"),)
        else:
            limit = Spend(f"{index.prefix}limit:{effect}", index.totals[effect], amount)
    plans = index.by_tool.get(call.tool)
    if plans is None:
        return Binding(None, (), limit)
    matcher = ArgumentMatcher(index.steps, outputs, call.own, call.words, call.task, call.zone)
    matches: list[_Match] = []
    alone: tuple[str, ...] = ()
    for plan in plans:
        step = plan.step
        shape = plan.shape
        if shape is None or shape.profile is not call.profile:
            shape = plan.shape = _shape(step, call.profile)
        deviations, rows = _compare(shape, call, matcher)
        deviations += common
        if step.only_if is not None and (unmet := matcher.condition(step.only_if)).code:
            deviations.append(Deviation("", unmet.code, f"step `{step.id}` only if {unmet.expected}"))
        if call.steps is not None and step.id not in call.steps:
            deviations.append(Deviation("", "part", f"step `{step.id}` to be taken by another agent"))
        confirm = effect in mandate.confirm or step.id in mandate.confirm
        after: tuple[str, ...] = ()
        least = 0
        if plan.after is not None and plan.after.id not in taken:
            # A side effect counts as taken after enough calls of which none is open, a read once its output is recorded.
            read = plan.after.tool in profiles and not profiles[plan.after.tool].side_effect
            named = plan.after.deed or plan.after.id
            after = () if read else (f"{index.prefix}step:{named}", f"{index.prefix}open:{named}")
            # If an application wrote the mandate, `times` is a maximum, else the exact number.
            times = 1 if mandate.source == "application" else plan.after.times
            least = 0 if read else matcher.calls(plan.after) * times
            if mandate.source != "application" and call.profile.inside:
                alone += after[1:]  # a write inside may be in one message with the step that it follows
            if read and not any(output.complete for output in matcher.fitting(plan.after.id)):
                deviations.append(Deviation("", "after", f"step `{plan.after.id}` to be taken first"))
        groups = []
        for name, keys in rows.items():
            groups.append([f"{plan.row}{name}:{row}" for row in sorted(keys)[:MAX_EQUAL_ROWS]])
        counter = f"{CONFIRMED}{mandate.digest}" if confirm else None
        matches.append(_Match(plan, deviations, groups, shape.counts, after, least, counter))
    return Binding(None, matches, limit, alone)


def _shape(step: Step, profile: ToolProfile) -> _Shape:
    named = []
    for name, what in step.args.items():
        kinds = [kind_of(profile, name)]
        if not kinds[0]:  # the step names an argument, and the profile only members of it
            kinds = [kind for path, kind in profile.critical.items() if path.startswith(f"{name}.")] or kinds
        kind = next((kind for kind in kinds if kind in DESTINATIONS), kinds[0])
        if not isinstance(what, Free):
            named.append((name, what, kind, "." in name))
    settled = frozenset((*step.args, *profile.free))
    fetch = profile.effect == "fetch" and not all(isinstance(what, _FIXED) for what in step.args.values())
    roots = [name.partition(".")[0] for name, _, _, dotted in named if dotted]
    rows = tuple((n, what, kind) for n, what, kind, dotted in named if dotted and roots.count(n.partition(".")[0]) > 1)
    days = {n: found for n, what, *_ in named if isinstance(what, Const) and (found := dates(what.value))}
    plain = {n: what.model_dump() for n, what, *_ in named if isinstance(what, Const | OneOf | Between)}
    local = frozenset(n for n, held in plain.items() if not names_zone(held))
    return _Shape(profile, tuple(named), settled, profile.side_effect or fetch, rows, days, local)


def _compare(shape: _Shape, call: CallFacts, matcher: ArgumentMatcher) -> tuple[list[Deviation], _Rows]:
    """Return a call's deviations from a step, and the records to which its values fit."""
    deviations: list[Deviation] = []
    rows: _Rows = {}
    lists: list[_Member] = []
    args = call.args
    for name, what, kind, dotted in shape.named:
        value = argument(args, name) if dotted else args.get(name)
        local = value if call.zone is None else in_zone(value, call.zone)
        value = local if name in shape.local else value
        if call.now is not None and name in shape.days and not upcoming([*shape.days[name], *dates(value)], call.now):
            deviations.append(Deviation(name, "value", f"the next {quoted(getattr(what, 'value', ''))}"))
            continue
        if type(what) is Const and type(value) in SHORT_KINDS and type(what.value) in SHORT_KINDS:
            short = type(value) is not str or len(value) <= REMEMBERED
            if short and known_same(value, what.value, kind):
                continue
        if type(what) is Text and name not in call.given and absent(value):
            continue  # an optional text that was not sent keeps its default
        if type(what) is not Text and _has_several_values(value, what):
            lists.append((name, what, kind))
        found = matcher.check(what, value, kind)
        if found.code and local is not value:
            found = matcher.check(what, local, kind)
        code, expected, source, keys = found
        if code:
            deviations.append(Deviation(name, code, expected))
        elif source:
            rows[source] = rows.get(source, keys) & keys
            if not rows[source]:
                expected = f"of the same record of step `{source}` as the other values"
                deviations.append(Deviation(name, "value", expected))
    if shape.rows or len(lists) > 1:
        deviations += _crossed(shape.rows, lists if len(lists) > 1 else (), args)
    if call.profile.ordered and not call.given <= shape.settled:
        deviations += _open(shape, call, matcher)
    if rows:
        one = {what.step for _, what, _, _ in shape.named if isinstance(what, Each)}
        rows = {source: keys for source, keys in rows.items() if keys and source in one}
    return deviations, rows


def _has_several_values(value: object, what: Argument) -> bool:
    if isinstance(what, Const) and isinstance(what.value, tuple) and len(what.value) > 1:
        return True
    return isinstance(value, list) and (len(value) > 1 or scalars(value, 1) is None)


def _crossed(members: Sequence[_Member], lists: Sequence[_Member], args: Mapping[str, Any]) -> Iterator[Deviation]:
    """Yield a deviation if a call pairs values in another way than the step.

    Values of one object, or at one index of several lists, belong together, like a recipient and an amount. So each
    list, and each member of a list's objects, must have the step's order. An object may hold lists too.
    """
    roots = {name: args.get(name.partition(".")[0]) for name, _, _ in (*members, *lists) if "." in name}
    rows = {name: len(root) for name, root in roots.items() if isinstance(root, list) and len(root) > 1}
    inner = [each for each in members if each[0] in rows and not isinstance(each[1], Text)]
    for name, what, kind in {each[0]: each for each in (*inner, *lists)}.values():
        held, ordered = argument(args, name), what.value if isinstance(what, Const) else None
        if "." in name and name not in rows and isinstance(held, list) and isinstance(held[0], list):
            held = held[0]
        if (
            not isinstance(held, list)
            or not isinstance(ordered, tuple)
            or not len(held) == len(ordered) == rows.get(name, len(held))
            or not all(same(one, other, kind) for one, other in zip(held, ordered, strict=True))
        ):
            yield Deviation(name, "ambiguous", "in the order of the rows")


def _open(shape: _Shape, call: CallFacts, matcher: ArgumentMatcher) -> Iterator[Deviation]:
    """Yield deviations for arguments that the step does not name."""
    profile = shape.profile
    declared = (*profile.critical, *profile.when)
    for root in sorted(call.given - shape.settled):
        value = call.args.get(root)
        # An empty value (also in a list) is a deviation, because it may clear data or replace a default.
        if root not in profile.text and not any(True for _ in loose(root, value, ())):
            yield Deviation(root, "unordered", "not to be given")
            continue
        for name in (*declared, *profile.text):
            above = (name[:i] for i, c in enumerate(f"{name}.") if c == ".")  # the name and its parents
            if name.partition(".")[0] != root or not shape.settled.isdisjoint(above):
                continue
            held = argument(call.args, name)
            if absent(held):
                continue
            if name not in profile.text:
                yield Deviation(name, "unordered", "not to be given")
            elif finding := matcher.text(_TEXT, held).code:
                yield Deviation(name, finding, "a text whose identifiers and quotations come from the user's words")
        for path in dict.fromkeys(loose(root, value, {*shape.settled, *declared, *profile.text})):
            yield Deviation(path, "undeclared", "not to be given")


def _forbidden(mandate: Mandate, call: CallFacts) -> Deviation | None:
    for never in mandate.never:
        if never.effect != call.profile.effect:
            continue
        if not never.values:
            return Deviation("", "value", f"no call of effect {never.effect}, which the mandate forbids")
        for name, kind in call.profile.critical.items():
            held = scalars(argument(call.args, name), MAX_VALUES)
            for unwanted in never.values.get(kind, ()):
                folder = never.effect == "delete" and kind == "object" and may_hold(held, unwanted)
                if held is None or folder or any(touches(one, unwanted, kind) for one in held):
                    return Deviation(name, "value", f"not {quoted(unwanted)}, which the mandate forbids")
    return None


def _amount(call: CallFacts) -> int | None:
    """Return the sum of a call's amounts in hundredths; `None` if it is not certain.

    A second number may be a count by which to multiply, and each of several recipients may get the whole amount.
    """
    total, paid, counts = Fraction(0), 0, {0, 1}
    for name, kind in call.profile.critical.items():
        held = scalars(argument(call.args, name), MAX_VALUES, mappings=kind != "amount")
        if held is None:
            return None
        whole = Fraction(0)
        for one in held if kind in ("amount", "value") else ():
            # If a number can be read in two ways, use the greater one.
            numbers = [Fraction(form[4:]) for form in scalar_forms(one) if form.startswith("num:")]
            if kind == "amount" and (not numbers or min(numbers) < 0 or commas(one)):
                return None
            whole += max(numbers, default=Fraction(0))
        if whole > 1 and (kind == "value" or total > 1):
            return None
        if kind == "amount":
            total, paid = total + whole, max(paid, len(held))
        counts.update((len(held), *(len(identifiers(one)) for one in held if isinstance(one, str))))
    return math.ceil(total * 100) if paid and counts <= {0, 1, paid} else None
