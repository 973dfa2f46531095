"""Compare one argument, or the condition of a step, with its order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.digest import alike
from langchain_runtime_authz.facts.argument_atoms import DESTINATIONS, MAX_ITEMS, absent, gapped, loose
from langchain_runtime_authz.facts.json_copy import SHORT
from langchain_runtime_authz.facts.normal_forms import key
from langchain_runtime_authz.mandate import model
from langchain_runtime_authz.mandate import read_outputs as reads
from langchain_runtime_authz.mandate.date_matching import between, number_or_date
from langchain_runtime_authz.mandate.description import described, holds, quoted
from langchain_runtime_authz.mandate.output_rows import Row, extreme, record_key, rows_of, values_of, within_row, worth
from langchain_runtime_authz.mandate.text_arguments import MAX_TEXT, borrowed, unbacked
from langchain_runtime_authz.mandate.value_matching import (
    as_exact,
    calculated,
    commas,
    equal,
    meets,
    near,
    same,
    stands,
    within,
)
from langchain_runtime_authz.tool_profile import argument as argument_of
from langchain_runtime_authz.tool_profile import kind_of

_MAX_ALLOWED: Final = 100_000  # characters of the sources that a text argument is compared with
_MAX_EXTRACT: Final = 8  # values of an argument, outputs, and fields of an output
_MAX_SEARCHED: Final = 100_000  # characters of one field
_FIXED: Final = (model.Const, model.Own, model.Field, model.Pick)  # if a read has only these, one call is ordered
# Two reads whose arguments differ only in upper and lower case count as one read, of which the first output counts.
_READ_AS: Final = {"value": "name", "": "name"}
COUNTED: Final = ("amount", "value", "")  # kinds of arguments whose value may be a calculation's result
_CHOICES: Final = (*_FIXED, model.OneOf)
_BOUND: Final = (*_CHOICES, model.Each)  # the mandate sets the values of these; the model chooses all others


class Finding(NamedTuple):
    """The result of comparing a call's value with an argument of a step."""

    code: str  # of the deviation; "" if the value was ordered
    expected: str  # tells an approver what was ordered
    source: str = ""  # for `Pick` and `Each`: id of the step that returned the records
    rows: frozenset[str] = frozenset()  # keys of the records that have this value


FITS: Final = Finding("", "")
_WHY: Final = {"unread": ", which was not read in full for this order", "ambiguous": ", but it is not certain which"}


class ArgumentMatcher:
    """Compare one call's values with a mandate's arguments. Results are cached."""

    __slots__ = (
        "_allowed", "_echoes", "_fitting", "_found", "_outputs", "_own", "_steps", "_sure", "_task", "_words", "_zone",
    )  # fmt: skip

    def __init__(
        self,
        steps: Mapping[str, model.Step],
        outputs: reads.Outputs,
        own: Sequence[Any],
        words: str,
        task: reads.Task,
        zone: tzinfo | None = None,
    ) -> None:
        self._steps, self._outputs, self._own, self._words, self._task = steps, outputs, own, words, task
        self._zone = zone
        self._fitting: dict[str, list[reads.Output]] = {}
        # Keyed by `id()` of the argument, which is not reused while the mandate refers to the argument.
        self._found: dict[tuple[int, bool], list[Row] | str] = {}
        self._allowed: dict[int, str] = {}
        self._echoes: dict[tuple[str, int], set[str | None]] = {}  # keyed by step and `id()` of an output in `_fitting`
        self._sure: dict[tuple[str, int, bool], list[reads.Output]] = {}

    def check(self, argument: model.Argument, value: object, kind: str) -> Finding:
        """Compare a value, for an argument of the kind `kind`, with what the step orders."""
        if isinstance(argument, model.Free):
            return FITS
        if isinstance(argument, model.Text):
            if kind not in ("text", ""):
                return Finding("text", "a value; this argument decides what the call hits, and is not free text")
            if absent(value) and (argument.quote or argument.inputs):
                return Finding("missing", "the text that was ordered")
            return self.text(argument, value)
        items = None if absent(value) or gapped(value) else reads.scalars(value, MAX_ITEMS, mappings=False)
        if items == [] or absent(value):
            return Finding("missing", described(argument))
        if items is None:
            return Finding("value", described(argument))
        if isinstance(argument, model.Field):
            return self._field(argument, items, kind)
        if isinstance(argument, model.Pick | model.Each):
            return self._record(argument, items, kind)
        if isinstance(argument, model.Calc):
            return self._calc(argument, items, kind)
        if isinstance(argument, model.Extract):
            return self._extract(argument, items)
        return FITS if self._plain(argument, items, kind) else Finding("value", described(argument))

    def _plain(self, argument: model.Argument, items: Sequence[Any], kind: str) -> bool:
        if isinstance(argument, model.Const):
            return equal(items, argument.value if isinstance(argument.value, tuple) else (argument.value,), kind)
        if len(items) != 1:
            return False
        if isinstance(argument, model.Own):
            return any(same(items[0], one, kind if kind in DESTINATIONS else "name") for one in self._own)
        if isinstance(argument, model.Within):
            return within(items[0], argument.prefix)
        if isinstance(argument, model.OneOf):
            return any(same(items[0], choice, kind) for choice in argument.values)
        if not isinstance(argument, model.Between) or (kind == "amount" and commas(items[0])):
            return False
        return between(items[0], argument.low, argument.high)

    def text(self, argument: model.Text, value: object, *, copied: bool = True) -> Finding:
        """Check where a text's identifiers come from and, if `copied`, copied passages."""
        held = reads.scalars(value, MAX_ITEMS * 4)
        readable = held is not None and all(isinstance(one, str | bool) or reads.scalar_forms(one) for one in held)
        if held is None or not readable or sum(len(one) for one in held if isinstance(one, str)) > MAX_TEXT:
            return Finding("text", f"a text of at most {MAX_TEXT} characters")
        given = "\n".join(map(str, held))
        if not given:
            return FITS
        allowed = self._allowed.get(id(argument))
        if allowed is None:
            said = argument.quote or (self._words,)  # words that were dictated for this argument replace all others
            allowed = "\n".join((*said, *self._inputs(argument)))[:_MAX_ALLOWED]
            self._allowed[id(argument)] = allowed
        if unbacked(given, allowed) or (copied and borrowed(given, allowed, self._outputs.texts())):
            named = f" or `{'`, `'.join(argument.inputs)}`" if argument.inputs else ""
            return Finding("text", f"a text whose identifiers and quotations come from the user's words{named}")
        return FITS

    def _inputs(self, argument: model.Text) -> Iterator[str]:
        for name in argument.inputs:
            step, _, path = name.partition(".")
            for output in self.fitting(step):
                yield from map(reads.text_of, reads.nodes_at(output.value, path))

    def fitting(self, name: str) -> list[reads.Output]:
        """Return outputs that fit the read `name`; only the first if it orders one call."""
        if (known := self._fitting.get(name)) is None:
            step, known = self._steps[name], []
            for task in self._outputs.tasks(self._task):
                known = known or [output for output in self._outputs.of(step.tool, task) if self._fits(step, output)]
            if step.only_if is not None and self.condition(step.only_if).code:
                known = []
            known = self._fitting[name] = known[:1] if _fixed(step) else known
        return known

    def _fits(self, step: model.Step, output: reads.Output) -> bool:
        """Return True if a read's arguments fit the step. Further ones must be `free`."""
        covered = {*step.args, *output.profile.free}
        if any(True for name in output.given for _ in loose(name, output.args.get(name), covered)):
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

    def _trusts(
        self, step: str, output: reads.Output, values: Sequence[Any], where: Sequence[object] | None = None
    ) -> bool:
        """Return True if no call of the model can have put these values into the output.

        `where`: `None` if the values choose no record, `()` if somebody else made the record, else their conditions.
        """
        if (echo := self._echoes.get((step, id(output)))) is None:
            bound = {n for n, a in self._steps[step].args.items() if isinstance(a, _BOUND)}
            chosen = [v for n, v in output.args.items() if n in output.given and n not in bound]
            echo = self._echoes[step, id(output)] = set(reads.value_forms(chosen))  # `None`: too many values
        for value in values:
            # A long text is prose. Even in the subject's own record, it may quote somebody else.
            if where != () and isinstance(value, str) and (len(value) > SHORT or len(value.splitlines()) > 1):
                return False
            echoes = None in echo or not echo.isdisjoint(reads.scalar_forms(value))
            if echoes or self._outputs.written(value, output.position, where or ()):
                return False
        return True

    def _field(self, argument: model.Field, items: Sequence[Any], kind: str) -> Finding:
        where = f"`{argument.path or 'the output'}` of step `{argument.step}`"
        least = 2 if kind in DESTINATIONS else 1
        code, known = "unread", ""
        for output in self.fitting(argument.step):
            values = reads.scalars(reads.nodes_at(output.value, argument.path), MAX_ITEMS, mappings=False)
            if not output.complete or not values:
                continue
            trusted = self._worth(output, argument.path) >= least and self._trusts(argument.step, output, values)
            if equal(items, values, kind):
                if trusted:
                    return FITS
                code, known = "untrusted", self._doubt(output, values, ", if a trusted source wrote it")
            elif code != "untrusted":
                code, known = "value", f": {quoted(tuple(values))}" if trusted else ""
        return Finding(code, where + _WHY.get(code, known))

    def _doubt(self, output: reads.Output, values: Sequence[Any], otherwise: str) -> str:
        """Return a reason not to trust the values: an earlier call, or else `otherwise`."""
        used = any(self._outputs.written(value, output.position) for value in values)
        return ", which an earlier call of the agent may have used on this thread" if used else otherwise

    def _record(self, argument: model.Pick | model.Each, items: Sequence[Any], kind: str) -> Finding:
        one = "the" if isinstance(argument, model.Pick) else "a"
        where = f"`{argument.path or 'the item'}` of {one} record"
        where += f" that the conditions choose from step `{argument.step}`"
        if isinstance(found := self._chosen(argument), str):
            return Finding(found, where + _WHY.get(found, ""))
        least = 2 if kind in DESTINATIONS else 1
        keys, code, known = set(), "value", ""
        for row in found:
            values = values_of(row, row.path)
            if not values or not (isinstance(argument, model.Pick) or equal(items, values, kind)):
                continue
            trusted = self._vouches(argument, row, values, least)
            if not equal(items, values, kind):
                known = known if code != "value" else f": {quoted(tuple(values))}" if trusted else ""
            elif trusted:
                keys.add(self._spent_as(argument, row))
            else:
                code, known = "untrusted", self._doubt(row.output, values, ", if trusted sources wrote its fields")
        if keys:
            return Finding("", where, argument.step, frozenset(keys))
        return Finding(code, where + known)

    def calls(self, step: model.Step) -> int:
        """Return how many calls a step orders: one, or one for each record of an `Each`."""
        each = [argument for argument in step.args.values() if isinstance(argument, model.Each)]
        rows = [(one, found) for one in each if not isinstance(found := self._chosen(one), str)]
        chosen = [len({self._spent_as(one, row) for row in found}) for one, found in rows]
        return max(1, min((*chosen, *(one.limit for one in each)), default=1))

    def _spent_as(self, argument: model.Pick | model.Each, row: Row) -> str:
        """Return the key by which calls for a record are counted.

        The key covers the fields that the mandate uses and the fields that the system writes. If the read's arguments
        are not fixed, it leaves out the system's fields: another read may give the record another rank or score.
        """
        if isinstance(argument, model.Pick):
            return record_key(row)
        every = (a for step in self._steps.values() for a in step.args.values() if isinstance(a, model.Each))
        paths = sorted({within_row(row, a.path) for a in every if a.step == argument.step})
        used = [values_of(row, path) for path in paths if row.worth(path)]
        core = record_key(row._replace(mine=False)) if _fixed(self._steps[argument.step]) else ""
        return key(json.dumps([used, core]))

    def _vouches(self, argument: model.Pick | model.Each, row: Row, values: Sequence[Any], least: int) -> bool:
        """Return True if the values have the trust `least`, and trusted fields chose them."""
        trusted = row.worth(row.path) >= least and self._trusts(argument.step, row.output, values)
        return trusted and all(self._decides(argument, row, name) for name in choosing(argument))

    def _decides(self, choice: model.Pick | model.Each | model.OnlyIf, row: Row, name: str) -> bool:
        """Return True if a trusted source wrote the field `name`, which chooses a record."""
        path = within_row(row, name)
        found = values_of(row, path)
        conditions = choice.where.get(name, ()) if len(found) == 1 else ()  # an outsider may have added list items
        mine = row.worth(path) > row._replace(mine=False).worth(path)
        where = choice.where.get(name, ()) if mine else ()
        return row.worth(path, conditions) > 0 and self._trusts(choice.step, row.output, found, where)

    def condition(self, condition: model.OnlyIf) -> Finding:
        """Return `FITS` if the condition surely holds, else a finding with a code."""
        outputs, told = self.fitting(condition.step), holds(condition)
        if not outputs or not all(output.complete and output.value is not None for output in outputs):
            return Finding("unread", told)
        if condition.none and not self._settled(condition.step, verbatim=True):  # another read may return a record
            return Finding("ambiguous", told)
        rows = [row for output in outputs for row in rows_of(output, condition.path, self._own)]
        met = [[self._met(condition, row, name) for name in condition.where] for row in rows]
        sure = all(False in fields for fields in met) if condition.none else any(map(all, met))
        if sure and not rows:  # without records, the trust of an empty list decides
            empty = Row(None, condition.path, "", outputs[0], mine=False)
            if not any(empty.worth(within_row(empty, name), each) for name, each in condition.where.items()):
                return Finding("untrusted", told)
        return FITS if sure else Finding("condition", told)

    def _met(self, condition: model.OnlyIf, row: Row, name: str) -> bool | None:
        """Return whether a record's field meets its conditions; None if not certain."""
        path = within_row(row, name)
        values = values_of(row, path) if not row.listed(path) else []  # a list may mix fields of several records
        found = {meets(each, values, self._own, self._zone) for each in condition.where[name]} if values else {None}
        if None in found or not self._decides(condition, row, name):
            return None
        return False not in found

    def _worth(self, output: reads.Output, path: str) -> int:
        mine = all(row.owned(row.path) for row in rows_of(output, path, self._own))
        return worth(output.profile, path, mine=mine)

    def _chosen(self, argument: model.Pick | model.Each, *, every: bool = False) -> list[Row] | str:
        """Return the chosen records, or a deviation's code. `every`: all must be certain."""
        found = self._found.get((id(argument), every))
        if found is None:
            sure = every or isinstance(argument, model.Pick)
            found = self._found[id(argument), every] = self._choose(argument, sure=sure)
        return found

    def _choose(self, argument: model.Pick | model.Each, *, sure: bool) -> list[Row] | str:
        outputs = self.fitting(argument.step)
        if not outputs or not all(output.complete for output in outputs):
            return "unread"
        if isinstance(argument, model.Pick):
            outputs = self._settled(argument.step, choices=1)  # another read may show other records
        chosen: list[Row] = []
        for output in outputs:
            for row in rows_of(output, argument.path, self._own):
                meeting = [
                    meets(condition, values_of(row, within_row(row, name)), self._own, self._zone)
                    for name, conditions in argument.where.items()
                    for condition in conditions
                ]
                if sure and None in meeting and False not in meeting:
                    return "ambiguous"
                if all(meeting):
                    chosen.append(row)
        if isinstance(argument, model.Each):
            return chosen
        for name, sign in ((argument.max, 1), (argument.min, -1)):
            chosen = extreme(chosen, name, sign) if name is not None else chosen
        one = {record_key(row): row for row in chosen}
        return list(one.values()) if len(one) == 1 else "ambiguous"

    def _settled(self, name: str, *, choices: int = 0, verbatim: bool = False) -> list[reads.Output]:
        """Return those reads of a step whose arguments the mandate chose, not the model.

        `choices`: how many arguments may be a `OneOf`. Each value of a `OneOf` must have been read, else the list is
        empty. `verbatim`: compare all arguments exactly.
        """
        step, sought = self._steps[name], (name, choices, verbatim)
        if sought not in self._sure:
            several = [(n, one) for n, a in step.args.items() if isinstance(a, model.OneOf) for one in a.values]
            few = len({n for n, _ in several}) <= choices and all(isinstance(a, _CHOICES) for a in step.args.values())
            settled = [output for output in self.fitting(name) if few and self._given(step, output, verbatim=verbatim)]
            read = (any(as_exact(argument_of(o.args, n), one) for o in settled) for n, one in several)
            self._sure[sought] = settled if all(read) else []
        return self._sure[sought]

    def _given(self, step: model.Step, output: reads.Output, *, verbatim: bool) -> bool:
        """Return True if a read had exactly the step's arguments (`verbatim`: as written)."""
        for n, a in step.args.items():
            one = not isinstance(a, model.Own) or len(self._own) == 1
            named: Any = a.values if isinstance(a, model.OneOf) else getattr(a, "value", self._own)
            if isinstance(a, model.Field | model.Pick):
                one = bool(self._settled(a.step, choices=isinstance(a, model.Pick), verbatim=verbatim))
                named = [reads.nodes_at(o.value, a.path) for o in self.fitting(a.step)]
            if isinstance(a, model.Pick):
                named = [values_of(row, row.path) for row in self._chosen(a) if isinstance(row, Row)]
            exact = verbatim or n in output.profile.when or isinstance(a, model.OneOf)
            if not one or (exact and not as_exact(argument_of(output.args, n), named)):
                return False
        given = ((n, output.args.get(n)) for n in output.given)  # an empty value may leave out all records
        return not any(True for n, v in given for _ in loose(n, 0 if absent(v) and v is not None else v, step.args))

    def _calc(self, argument: model.Calc, items: Sequence[Any], kind: str) -> Finding:
        given = number_or_date(items[0]) if len(items) == 1 and not commas(items[0]) else None
        result = self._result(argument) if kind in COUNTED else "value"
        if isinstance(result, str):
            return Finding(result, described(argument))
        if isinstance(given, Decimal) and near(given, result):
            return FITS
        return Finding("value", f"{described(argument)}: {result:.2f}")

    def _result(self, argument: model.Calc) -> Decimal | str:
        """Return a calculation's result, or the code of a deviation."""
        found: list[list[Decimal]] = []
        for operand in argument.of:
            numbers = self._numbers(operand)
            if isinstance(numbers, str):
                return numbers
            found.append(numbers)
        result = calculated(argument.op, found)
        return result if result is not None else "value"

    def _numbers(self, operand: model.Operand) -> list[Decimal] | str:
        if isinstance(operand, model.Calc):
            result = self._result(operand)
            return result if isinstance(result, str) else [result]
        values: list[Any] = []
        if isinstance(operand, model.Const):
            values = [operand.value]
        elif isinstance(operand, model.Field):
            outputs = self.fitting(operand.step)
            if len(outputs) != 1 or not (output := outputs[0]).complete:
                return "unread"
            values = reads.scalars(reads.nodes_at(output.value, operand.path), MAX_ITEMS, mappings=False) or []
            listed = any(row.record is not output.value for row in rows_of(output, operand.path, self._own))
            if not values or (listed and not self._settled(operand.step)):
                return "ambiguous"
            if not self._worth(output, operand.path) or not self._trusts(operand.step, output, values):
                return "untrusted"
        else:
            rows = self._chosen(operand, every=True)
            if isinstance(rows, str):
                return rows
            if isinstance(operand, model.Each) and not (0 < len(rows) <= operand.limit and self._settled(operand.step)):
                return "ambiguous"
            for row in rows:
                own = values_of(row, row.path)
                if len(own) != 1:
                    return "ambiguous"
                if not self._vouches(operand, row, own, 1):
                    return "untrusted"
                values += own
        numbers = [one for one in map(number_or_date, values) if isinstance(one, Decimal)]
        return numbers if len(numbers) == len(values) else "value"

    def _extract(self, argument: model.Extract, items: Sequence[Any]) -> Finding:
        where = f"a value in what step `{argument.step}` returned"
        outputs = self.fitting(argument.step)
        texts = [
            reads.text_of(node)[:_MAX_SEARCHED]
            for output in outputs[:_MAX_EXTRACT]
            for node in reads.nodes_at(output.value, argument.path)[:_MAX_EXTRACT]
        ]
        if len(items) <= _MAX_EXTRACT and all(any(stands(item, text) for text in texts) for item in items):
            return Finding("extract", f"{where}, which a person confirms")
        return Finding("value", where) if outputs else Finding("unread", where + _WHY["unread"])


def choosing(argument: model.Pick | model.Each) -> set[str]:
    """Return the names of the fields by which a record is chosen."""
    extremes = (argument.max, argument.min) if isinstance(argument, model.Pick) else ()
    return {*argument.where, *filter(None, extremes)}


def is_default(schema: object, value: object) -> bool:
    """Return True for the schema's default value, or for None if it has no default."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return value is None
    return alike(schema["default"], value)


def _fixed(step: model.Step) -> bool:
    return all(isinstance(argument, _FIXED) for argument in step.args.values())
