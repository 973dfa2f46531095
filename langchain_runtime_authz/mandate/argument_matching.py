"""Compare one argument, or the condition of a step, with its order.

`ArgumentMatcher.check` has one rule for each kind of order. A value fits

- `Const`, `OneOf`, `Between`, `Within`: if the mandate names it. `Own`: if it is an identifier of the subject.
- `Field`, `Pick`, `Each`: if a read returned it in this field, and only trusted sources wrote it and chose its record.
- `Calc`: if it is the result of a calculation with such fields.
- `Text`: if its identifiers and copied passages come from the user's words, or from fields that the order names.
- `Free`: always.
- `Extract`: never, because a person must confirm it. The deviation's code tells if a read returned the value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.digest import same_json
from langchain_runtime_authz.facts.call_arguments import MAX_ITEMS, has_empty_item, is_empty, scalars, uncovered
from langchain_runtime_authz.facts.normal_forms import key
from langchain_runtime_authz.mandate import model
from langchain_runtime_authz.mandate import read_outputs as reads
from langchain_runtime_authz.mandate import value_matching as matching
from langchain_runtime_authz.mandate.date_matching import is_between, number_or_date
from langchain_runtime_authz.mandate.description import describe, quote_values
from langchain_runtime_authz.mandate.output_rows import Row, choose, path_below, prose, record_key, rows_of, values_of
from langchain_runtime_authz.mandate.text_arguments import MAX_TEXT, holds_borrowed, holds_unbacked
from langchain_runtime_authz.tool_profile import DESTINATIONS, ToolProfile, kind_of
from langchain_runtime_authz.tool_profile import value_at as argument_of

_MAX_ALLOWED: Final = 100_000  # characters of the sources that a text argument is compared with
_MAX_EXTRACT: Final = 8  # values of an argument, outputs, and fields of an output
_MAX_SEARCHED: Final = 100_000  # characters of one field
_FIXED: Final = (model.Const, model.Own, model.Field, model.Pick)  # if a read has only these, one call is ordered
# Two reads whose arguments differ only in upper and lower case count as one read, of which the first output counts.
_READ_AS: Final = {"value": "name", "": "name"}
COUNTED: Final = ("amount", "value", "")  # kinds of arguments whose value may be a calculation's result
_CHOICES: Final = (*_FIXED, model.OneOf)
_BOUND: Final = (*_CHOICES, model.Each)  # the mandate sets the values of these; the model chooses all others


class CallFacts(NamedTuple):
    """A call, with the facts for its comparison with a mandate."""

    tool: str
    profile: ToolProfile
    args: Mapping[str, Any]  # as JSON values, with the schema's defaults
    given: frozenset[str]  # names of the arguments that the model sent, without unordered defaults
    own: tuple[Any, ...]  # the subject's own identifiers
    words: str  # the user's messages
    task: reads.TaskKey = reads.NO_TASK  # only outputs of reads for this task count
    steps: Collection[str] | None = None  # ids of the steps that the agent may take; `None` for all
    now: float | None = None  # when it was ordered (epoch seconds); a day without a year is the next one
    zone: tzinfo | None = None  # the zone of ordered times that do not name one
    earlier: Collection[str] = ()  # counters of equal calls for the user's earlier messages


class Finding(NamedTuple):
    """The result of comparing a call's value with an argument of a step."""

    code: str  # of the deviation; "" if the value was ordered
    expected: str  # tells an approver what was ordered
    rows: frozenset[str] = frozenset()  # for `Pick` and `Each`: keys of the records that have this value


class _Unsure(Exception):
    """Raised if the order's value is not certain. The text is the deviation's code."""


class _Source(NamedTuple):
    """Values of one field in an output, and the records that have them."""

    values: list[Any]
    rows: list[Row]


_FromRead = model.Field | model.Pick | model.Each
FITS: Final = Finding("", "")
_WHY: Final = {"unread": ", which was not read in full for this order", "ambiguous": ", but it is not certain which"}


class ArgumentMatcher:
    """Compare one call's values with a mandate's arguments. Results are cached."""

    def __init__(self, steps: Mapping[str, model.Step], outputs: reads.Outputs, call: CallFacts) -> None:
        self._steps, self._outputs, self._call = steps, outputs, call
        self._fitting: dict[str, list[reads.Output]] = {}
        # Keyed by `id()` of the argument, which is not reused while the mandate refers to the argument.
        self._chosen: dict[tuple[int, bool], list[Row] | str] = {}
        self._allowed: dict[int, str] = {}
        self._echoes: dict[tuple[str, int], set[str | None]] = {}  # keyed by step and `id()` of an output in `_fitting`
        self._settled_of: dict[tuple[str, bool, bool], list[reads.Output]] = {}

    def check(self, argument: model.Argument, value: object, kind: str) -> Finding:
        """Compare a value, for an argument of the kind `kind`, with what the step orders."""
        if isinstance(argument, model.Free):
            return FITS
        if isinstance(argument, model.Text):
            if kind not in ("text", ""):
                return Finding("text", "a value; this argument decides what the call hits, and is not free text")
            if is_empty(value) and (argument.quote or argument.inputs):
                return Finding("missing", "the text that was ordered")
            return self.text(argument, value)
        if is_empty(value):
            return Finding("missing", describe(argument))
        items = None if has_empty_item(value) else scalars(value, MAX_ITEMS, mappings=False)
        if items is None:
            return Finding("value", describe(argument))
        if isinstance(argument, model.Field | model.Pick | model.Each):
            return self._read(argument, items, kind)
        if isinstance(argument, model.Calc):
            return self._calc(argument, items, kind)
        if isinstance(argument, model.Extract):
            return self._extract(argument, items)
        return FITS if self._named(argument, items, kind) else Finding("value", describe(argument))

    def _named(self, argument: model.Argument, items: Sequence[Any], kind: str) -> bool:
        match argument, items:
            case model.Const(value=value), _:
                return matching.same_values(items, value if isinstance(value, tuple) else (value,), kind)
            case model.OneOf(values=values), [item]:
                return any(matching.is_same(item, one, kind) for one in values)
            case model.Between(low=low, high=high), [item]:
                return is_between(item, low, high) and not (kind == "amount" and matching.has_comma(item))
            case model.Within(prefix=prefix), [item]:
                return matching.is_within(item, prefix)
            case model.Own(), [item]:
                kind = kind if kind in DESTINATIONS else "name"
                return any(matching.is_same(item, one, kind) for one in self._call.own)
        return False

    def text(self, argument: model.Text, value: object, *, copied: bool = True) -> Finding:
        """Check where a text's identifiers come from and, if `copied`, copied passages."""
        held = scalars(value, MAX_ITEMS * 4)
        readable = held is not None and all(isinstance(one, str | bool) or reads.scalar_forms(one) for one in held)
        if held is None or not readable or sum(len(one) for one in held if isinstance(one, str)) > MAX_TEXT:
            return Finding("text", f"a text of at most {MAX_TEXT} characters")
        given = "\n".join(map(str, held))
        if not given:
            return FITS
        if (allowed := self._allowed.get(id(argument))) is None:
            said = argument.quote or (
                self._call.words,
            )  # words that were dictated for this argument replace all others
            inputs = (name.partition(".") for name in argument.inputs)
            nodes = (n for step, _, path in inputs for o in self.fitting(step) for n in reads.values_at(o.value, path))
            allowed = "\n".join((*said, *map(reads.text_of, nodes)))[:_MAX_ALLOWED]
            self._allowed[id(argument)] = allowed
        if holds_unbacked(given, allowed) or (copied and holds_borrowed(given, allowed, self._outputs.texts())):
            named = f" or `{'`, `'.join(argument.inputs)}`" if argument.inputs else ""
            return Finding("text", f"a text whose identifiers and quotations come from the user's words{named}")
        return FITS

    def fitting(self, name: str) -> list[reads.Output]:
        """Return the outputs of the calls that the read `name` orders.

        They are of the newest task with such outputs. If the read orders one call, only the first output counts. If the
        read's condition does not hold, the list is empty.
        """
        if (known := self._fitting.get(name)) is None:
            step, known = self._steps[name], []
            for task in self._outputs.tasks(self._call.task):
                known = known or [output for output in self._outputs.of(step.tool, task) if self._fits(step, output)]
            if step.only_if is not None and self.condition(step.only_if):
                known = []
            known = self._fitting[name] = known[:1] if _fixed(step) else known
        return known

    def _fits(self, step: model.Step, output: reads.Output) -> bool:
        """Return True if a read's arguments fit the step, and all others are `free`."""
        covered = {*step.args, *output.profile.free}
        if any(True for name in output.given for _ in uncovered(name, output.args.get(name), covered)):
            return False
        for name, argument in step.args.items():
            value = argument_of(output.args, name)
            if isinstance(argument, model.Text):
                found = self.text(argument, value, copied=False)
            else:
                kind = kind_of(output.profile, name)
                found = self.check(argument, value, _READ_AS.get(kind, kind))
            if found.code:
                return False
        return True

    def _settled(self, source: _FromRead | model.OnlyIf, *, verbatim: bool = False) -> list[reads.Output]:
        """Return the outputs of a source's step, if the model chose no argument of it.

        By an argument, the model could choose which records are read. So the mandate must set every argument of the
        read. For a `Pick`, one argument may be a `OneOf`, if each of its values was read. `verbatim`: each argument must
        be spelled as in the mandate.
        """
        step, choice = self._steps[source.step], isinstance(source, model.Pick)
        if (known := self._settled_of.get((step.id, choice, verbatim))) is None:
            several = [(name, one.values) for name, one in step.args.items() if isinstance(one, model.OneOf)]
            bound = len(several) <= choice and all(isinstance(one, _CHOICES) for one in step.args.values())
            known = [o for o in self.fitting(step.id) if bound and self._given(step, o, verbatim=verbatim)]
            for name, values in several:
                given = [argument_of(output.args, name) for output in known]
                known = known if all(any(matching.as_exact(one, value) for one in given) for value in values) else []
            self._settled_of[step.id, choice, verbatim] = known
        return known

    def _given(self, step: model.Step, output: reads.Output, *, verbatim: bool) -> bool:
        """Return True if the step fixes all arguments of a read that fits."""
        for name, argument in step.args.items():
            sure, ordered = True, list[Any](model.literals(argument))
            if isinstance(argument, model.Own):
                sure, ordered = len(self._call.own) == 1, [*self._call.own]
            elif isinstance(argument, model.Field):
                sure = bool(self._settled(argument, verbatim=verbatim))
                ordered = [reads.values_at(o.value, argument.path) for o in self.fitting(argument.step)]
            elif isinstance(argument, model.Pick):
                sure = bool(self._settled(argument, verbatim=verbatim))
                ordered = [values_of(row, row.path) for row in self._records(argument)]
            exact = verbatim or name in output.profile.when or isinstance(argument, model.OneOf)
            if not sure or (exact and not matching.as_exact(argument_of(output.args, name), ordered)):
                return False
        return _as_ordered(step, output)

    def _read(self, argument: _FromRead, items: Sequence[Any], kind: str) -> Finding:
        where, wrote = f"`{argument.path or 'the output'}` of step `{argument.step}`", "a trusted source wrote it"
        if not isinstance(argument, model.Field):
            one, wrote = "the" if isinstance(argument, model.Pick) else "a", "trusted sources wrote its fields"
            where = f"`{argument.path or 'the item'}` of {one} record that the conditions choose from step `{argument.step}`"
        try:
            sources = [source for source in self._sources(argument) if source.values]
            if not sources and isinstance(argument, model.Field):
                raise _Unsure("unread")
        except _Unsure as unsure:
            return Finding(str(unsure), where + _WHY[str(unsure)])
        least = 2 if kind in DESTINATIONS else 1
        found = [source for source in sources if matching.same_values(items, source.values, kind, self._call.now)]
        if trusted := [source for source in found if self._trusts(argument, source, least)]:
            if isinstance(argument, model.Field):
                return FITS
            return Finding("", where, frozenset(self._spent_as(argument, row) for _, rows in trusted for row in rows))
        if found:
            values, (row, *_) = found[-1]
            used = any(self._outputs.written(value, row.output.position) for value in values)
            doubt = "which an earlier call of the agent may have used on this thread" if used else f"if {wrote}"
            return Finding("untrusted", f"{where}, {doubt}")
        shown = sources and not isinstance(argument, model.Each) and self._trusts(argument, sources[-1], least)
        return Finding("value", f"{where}: {quote_values(tuple(sources[-1].values))}" if shown else where)

    def _sources(self, argument: _FromRead, *, every: bool = False) -> list[_Source]:
        """Return a field's values, of each output or of each chosen record."""
        if not isinstance(argument, model.Field):
            return [_Source(values_of(row, row.path), [row]) for row in self._records(argument, every=every)]
        found = []
        for output in self.fitting(argument.step):
            values = scalars(reads.values_at(output.value, argument.path), MAX_ITEMS, mappings=False)
            rows = [*rows_of(output, argument.path, self._call.own)]
            whole = _as_ordered(self._steps[argument.step], output) or all(row.record is output.value for row in rows)
            if output.complete and values and whole:
                found.append(_Source(values, rows))
        return found

    def _trusts(self, argument: _FromRead, source: _Source, least: int = 1) -> bool:
        """Return True if only trusted sources wrote the values and chose their records.

        `least`: the trust that the field needs by its profile (`Row.worth`).
        """
        values, rows = source
        trusted = all(row.worth(row.path) >= least for row in rows) and not any(map(prose, values))
        trusted = trusted and not self._planted(argument.step, rows[0].output, values)
        trusted = trusted and not any(self._outputs.written(v, rows[0].output.position, cut=True) for v in values)
        if isinstance(argument, model.Field):
            return trusted
        return trusted and all(self._decides(argument, row, name) for row in rows for name in choosing_fields(argument))

    def _decides(self, choice: model.Pick | model.Each | model.OnlyIf, row: Row, name: str) -> bool:
        """Return True if only trusted sources wrote `name`, a field that chooses records."""
        path = path_below(row.base, name)
        values, conditions = values_of(row, path), choice.where.get(name, ())
        # The field may be trusted only because the subject made the record.
        mine = row.worth(path) > row._replace(mine=False).worth(path)
        if mine and conditions and any(map(prose, values)):
            return False
        alone = conditions if len(values) == 1 else ()  # an outsider may have added list items
        planted = self._planted(choice.step, row.output, values, conditions if mine else ())
        return row.worth(path, alone) > 0 and not planted

    def _planted(self, step: str, output: reads.Output, values: Sequence[Any], where: Sequence[Any] = ()) -> bool:
        """Return True if the agent may have put one of the values into the output.

        The value may be an argument of the read that the mandate does not set, or of an earlier side effect. For a side
        effect, a part of the value is enough, if it meets a condition of `where`.
        """
        if (echo := self._echoes.get((step, id(output)))) is None:
            bound = {n for n, a in self._steps[step].args.items() if isinstance(a, _BOUND)}
            chosen = [v for n, v in output.args.items() if n in output.given and n not in bound]
            echo = self._echoes[step, id(output)] = set(reads.value_forms(chosen))  # `None`: too many values
        return any(
            None in echo
            or not echo.isdisjoint(reads.scalar_forms(value))
            or self._outputs.written(value, output.position, where)
            for value in values
        )

    def _records(self, argument: model.Pick | model.Each, *, every: bool = False) -> list[Row]:
        """Return the chosen records. `every`: raise `_Unsure` if one may be missing."""
        sure = every or isinstance(argument, model.Pick)
        if (found := self._chosen.get((id(argument), sure))) is None:
            outputs, found = self.fitting(argument.step), "unread"
            if outputs and all(output.complete for output in outputs):
                # A read whose arguments the model chose might lack the record that was meant.
                outputs = self._settled(argument) if isinstance(argument, model.Pick) else outputs
                found = choose(argument, outputs, self._call.own, self._call.zone, sure=sure)
            self._chosen[id(argument), sure] = found
        if isinstance(found, str):
            raise _Unsure(found)
        return found

    def calls(self, step: model.Step) -> int:
        """Return how many calls a step orders: one, or one by record of an `Each`."""
        least = []
        for each in (argument for argument in step.args.values() if isinstance(argument, model.Each)):
            least.append(each.limit)
            with suppress(_Unsure):
                if self._settled(each):  # otherwise another read may show more records
                    least.append(len({self._spent_as(each, row) for row in self._records(each)}))
        return max(1, min(least, default=1))

    def _spent_as(self, argument: model.Pick | model.Each, row: Row) -> str:
        """Return the key by which calls for a record are counted.

        The key covers the fields that the mandate uses. If the read's arguments are fixed, it also covers the fields
        that the system writes; otherwise another read could give the record another rank or score.
        """
        if isinstance(argument, model.Pick):
            return record_key(row)
        every = (a for step in self._steps.values() for a in step.args.values() if isinstance(a, model.Each))
        paths = sorted({path_below(row.base, a.path) for a in every if a.step == argument.step})
        used = [values_of(row, path) for path in paths if row.worth(path)]
        core = record_key(row._replace(mine=False)) if _fixed(self._steps[argument.step]) else ""
        return key(json.dumps([used, core]))

    def condition(self, condition: model.OnlyIf) -> str:
        """Return "" if the condition surely holds, else a deviation's code."""
        outputs = self.fitting(condition.step)
        if not outputs or not all(output.complete and output.value is not None for output in outputs):
            return "unread"
        if condition.none and not self._settled(condition, verbatim=True):  # another read may return a record
            return "ambiguous"
        rows = [row for output in outputs for row in rows_of(output, condition.path, self._call.own)]
        met = [[self._met(condition, row, name) for name in condition.where] for row in rows]
        if not (all(False in fields for fields in met) if condition.none else any(map(all, met))):
            return "condition"
        # Without records, the trust of an empty list decides.
        empty = Row(None, condition.path, "", outputs[0], mine=False)
        trusted = rows or any(empty.worth(path_below(empty.base, name), each) for name, each in condition.where.items())
        return "" if trusted else "untrusted"

    def _met(self, condition: model.OnlyIf, row: Row, name: str) -> bool | None:
        """Return True if a record's field meets its conditions; None if not certain."""
        path = path_below(row.base, name)
        values = values_of(row, path) if not row.listed(path) else []  # a list may mix fields of several records
        own, zone = self._call.own, self._call.zone
        conditions = condition.where[name] if values else ()
        met = [matching.meets_condition(each, values, own, zone) for each in conditions] or [None]
        return all(met) if None not in met and self._decides(condition, row, name) else None

    def _calc(self, argument: model.Calc, items: Sequence[Any], kind: str) -> Finding:
        if kind not in COUNTED:
            return Finding("value", describe(argument))
        try:
            result = self._result(argument)
        except _Unsure as unsure:
            return Finding(str(unsure), describe(argument))
        given = number_or_date(items[0]) if len(items) == 1 and not matching.has_comma(items[0]) else None
        if isinstance(given, Decimal) and matching.is_rounded(given, result):
            return FITS
        return Finding("value", f"{describe(argument)}: {result:.2f}")

    def _result(self, argument: model.Calc) -> Decimal:
        result = matching.calculate(argument.op, [self._numbers(operand) for operand in argument.of])
        if result is None:
            raise _Unsure("value")
        return result

    def _numbers(self, operand: model.Operand) -> list[Decimal]:
        if isinstance(operand, model.Calc):
            return [self._result(operand)]
        if isinstance(operand, model.Const):
            values = [operand.value]
        else:
            values = [value for source in self._operands(operand) for value in source.values]
        numbers = [one for one in map(number_or_date, values) if isinstance(one, Decimal)]
        if len(numbers) != len(values):
            raise _Unsure("value")
        return numbers

    def _operands(self, operand: _FromRead) -> Iterator[_Source]:
        """Yield an operand's values. Raises `_Unsure` if some may be missing or false."""
        sources, sure = self._sources(operand, every=True), True
        if isinstance(operand, model.Each):
            sure = 0 < len(sources) <= operand.limit and bool(self._settled(operand))
        elif isinstance(operand, model.Field):
            outputs = self.fitting(operand.step)
            if len(outputs) != 1 or not outputs[0].complete:
                raise _Unsure("unread")
            listed = any(row.record is not outputs[0].value for source in sources for row in source.rows)
            sure = bool(sources) and (not listed or bool(self._settled(operand)))
        if not sure:
            raise _Unsure("ambiguous")
        for source in sources:
            if len(source.values) != 1 and not isinstance(operand, model.Field):
                raise _Unsure("ambiguous")
            if not self._trusts(operand, source):
                raise _Unsure("untrusted")
            yield source

    def _extract(self, argument: model.Extract, items: Sequence[Any]) -> Finding:
        where = f"a value in what step `{argument.step}` returned"
        outputs = self.fitting(argument.step)
        nodes = (n for o in outputs[:_MAX_EXTRACT] for n in reads.values_at(o.value, argument.path)[:_MAX_EXTRACT])
        texts = [reads.text_of(node)[:_MAX_SEARCHED] for node in nodes]
        if len(items) <= _MAX_EXTRACT and all(any(matching.text_holds(item, text) for text in texts) for item in items):
            return Finding("extract", f"{where}, which a person confirms")
        return Finding("value", where) if outputs else Finding("unread", where + _WHY["unread"])


def choosing_fields(argument: model.Pick | model.Each) -> set[str]:
    """Return the names of the fields by which a record is chosen."""
    extremes = (argument.max, argument.min) if isinstance(argument, model.Pick) else ()
    return {*argument.where, *filter(None, extremes)}


def is_default(schema: object, value: object) -> bool:
    """Return True for the schema's default value, or for None if it has no default."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return value is None
    return same_json(schema["default"], value)


def _as_ordered(step: model.Step, output: reads.Output) -> bool:
    """Return True if a read was given nothing that its step does not name."""
    given = ((n, output.args.get(n)) for n in output.given)  # an empty value may leave out all records
    return not any(True for n, v in given for _ in uncovered(n, 0 if is_empty(v) and v is not None else v, step.args))


def _fixed(step: model.Step) -> bool:
    return all(isinstance(argument, _FIXED) for argument in step.args.values())
