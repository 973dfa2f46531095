"""The mandate: what one task orders, as data.

A mandate is a list of steps. A step names a tool, each argument that decides whom or what a call affects, and how often
the tool may be called. `mandate.call_matching` compares each call with the mandate. A grant limits what a run may do, a
plan is what the model intends to do, and a mandate is what was ordered.

The application writes a mandate in Python or YAML, a planner model returns it as JSON, or `mandate.words` reads it from
the user's messages. All share one JSON form. Mandates are immutable; equal ones have equal digests.
A plain value in place of an argument stands for `Const`, and in place of a condition for `Eq`.

Evolution rule: kinds of argument and fields may be added. A new field's default orders no more than before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic import Field as Member
from pydantic_core import PydanticSerializationError

from langchain_runtime_authz._display import html_table
from langchain_runtime_authz._locks import forkable_lock
from langchain_runtime_authz.digest import MAX_INT, as_json, digest
from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.tool_profile import Kind, as_tuple

MAX_STEPS: Final = 64
MAX_ROWS: Final = 20  # default number of records that one step may act on

Scalar = str | int | float | bool
Name = Annotated[str, Member(min_length=1, max_length=128)]
Number = Annotated[int | float, Member(allow_inf_nan=False)]
Count = Annotated[int, Member(ge=1, le=10_000)]


class Span(NamedTuple):
    """A part of a user's message: the message's digest, start and end in characters."""

    text: str
    start: int
    end: int


class _Frozen(BaseModel):
    """A strict, immutable part of a mandate, whose fields may be given by position."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def __init__(self, *values: Any, **fields: Any) -> None:
        placed: dict[str, Any] = {}
        if values:
            names = [name for name in type(self).model_fields if name != "kind"]
            if len(values) > len(names):
                raise TypeError(f"{type(self).__name__} takes at most {len(names)} values, {len(values)} were given")
            placed = dict(zip(names, values, strict=False))
        super().__init__(**placed, **fields)

    # pydantic marks its own `__init__` so: then validation builds nested objects without calling this method.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _several(value: object) -> object:
    """Turn a single value or a list into a tuple."""
    return as_tuple(value) if isinstance(value, list | tuple) else (value,)


T = TypeVar("T")
Many = Annotated[tuple[T, ...], BeforeValidator(as_tuple)]


def _span(value: object) -> object:
    return Span(*value) if isinstance(value, list | tuple) and len(value) == len(Span._fields) else value


class Eq(_Frozen):
    """The field has this value, in one of its normal forms."""

    value: Scalar
    kind: Literal["eq"] = "eq"


class Contains(_Frozen):
    """The field's text contains these whole words, in any case."""

    text: Annotated[str, Member(min_length=2)]
    kind: Literal["contains"] = "contains"


class StartsWith(_Frozen):
    """The field's text starts with this, in any case."""

    text: Annotated[str, Member(min_length=2)]
    kind: Literal["starts_with"] = "starts_with"


class AtLeast(_Frozen):
    """The field is a number or an ISO 8601 date of at least this."""

    value: Number | str
    kind: Literal["at_least"] = "at_least"


class AtMost(_Frozen):
    """The field is a number or an ISO 8601 date of at most this."""

    value: Number | str
    kind: Literal["at_most"] = "at_most"


class Own(_Frozen):
    """One of the subject's own identifiers (`Subject.properties["identifiers"]`)."""

    kind: Literal["own"] = "own"


class Not(_Frozen):
    """The field exists, and this condition does not hold for it."""

    condition: Condition
    kind: Literal["not"] = "not"


_ConditionKind = Annotated[Eq | Contains | StartsWith | AtLeast | AtMost | Own | Not, Member(discriminator="kind")]
Condition = Annotated[
    _ConditionKind, BeforeValidator(lambda v: {"kind": "eq", "value": v} if isinstance(v, Scalar) else v)
]
_Conditions = Annotated[tuple[Condition, ...], BeforeValidator(_several)]
Where = dict[Name, _Conditions]
"""A condition, or several that must all hold, for each field of a record."""


class Const(_Frozen):
    """This value, in one of its normal forms. For a list: these items, in any order.

    `said`: where the user's messages say it; `None` in an application's mandate.
    """

    value: Scalar | Many[Scalar]
    said: Annotated[Span | None, BeforeValidator(_span)] = None
    kind: Literal["const"] = "const"


class OneOf(_Frozen):
    """One of these values."""

    values: Annotated[Many[Scalar], Member(min_length=1)]
    kind: Literal["one_of"] = "one_of"


class Between(_Frozen):
    """A number or an ISO 8601 date in this range, both ends included."""

    low: Number | str
    high: Number | str
    kind: Literal["between"] = "between"


class Within(_Frozen):
    """A path in this folder, or a link below this prefix."""

    prefix: Annotated[str, Member(min_length=1)]
    kind: Literal["within"] = "within"


class Field(_Frozen):
    """A field of a step's output. `path` is dotted; "" is the whole output."""

    step: Name
    path: str
    kind: Literal["field"] = "field"


class Pick(_Frozen):
    """A field of the one record that the conditions choose from a step's output.

    If several are chosen, the one with the greatest `max` field or the least `min` field counts. A tie is ambiguous.
    """

    step: Name
    path: str
    where: Where = {}
    max: Name | None = None
    min: Name | None = None
    kind: Literal["pick"] = "pick"


class Each(_Frozen):
    """A field of each record that the conditions choose: at most `limit` calls.

    All `Each` arguments of a step that read from one step use the same record.
    """

    step: Name
    path: str
    where: Where = {}
    limit: Count = MAX_ROWS
    kind: Literal["each"] = "each"


class Calc(_Frozen):
    """The result of a calculation, exact or rounded. It must be greater than 0.

    `sum` adds all numbers, also those of all records of an `Each`. `difference` is the first number minus the second,
    `percent` the first number's percentage of the second, and `share` the first divided by the second. Rounding may
    change the result by half a cent, and by at most one percent.
    """

    op: Literal["sum", "difference", "percent", "share"]
    of: Annotated[Many[Operand], Member(min_length=1)]
    kind: Literal["calc"] = "calc"

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.op != "sum" and (len(self.of) != 2 or any(isinstance(one, Each) for one in self.of)):  # noqa: PLR2004
            raise ValueError(f"`{self.op}` takes two numbers")
        if any(isinstance(one, Const) and type(one.value) not in (int, float) for one in self.of):
            raise ValueError("it calculates with numbers")
        if sum(1 for _ in parts_of(self)) > MAX_STEPS:
            raise ValueError(f"it has more than {MAX_STEPS} parts")
        return self


class Extract(_Frozen):
    """A value in free text that a step returned. An approver is always asked."""

    step: Name
    path: str = ""
    kind: Literal["extract"] = "extract"


class Text(_Frozen):
    """Free text, of the user's words (`quote`) and of fields (`inputs`: `step.path`).

    Identifiers and long tokens in it must come from the user's words or from these fields.
    """

    quote: Many[str] = ()
    inputs: Many[Name] = ()
    kind: Literal["text"] = "text"


class Free(_Frozen):
    """Any value: the argument decides nothing."""

    kind: Literal["free"] = "free"


def _argument(value: object) -> object:
    return {"kind": "const", "value": value} if isinstance(value, Scalar | list | tuple) else value


Operand = Annotated[
    Annotated[Const | Field | Pick | Each | Calc, Member(discriminator="kind")], BeforeValidator(_argument)
]
_ArgumentKind = Annotated[
    Const | Own | OneOf | Between | Within | Field | Pick | Each | Calc | Extract | Text | Free,
    Member(discriminator="kind"),
]
Argument = Annotated[_ArgumentKind, BeforeValidator(_argument)]
Sourced = Field | Pick | Each | Extract


def parts_of(argument: Argument) -> Iterator[Argument]:
    """Yield the argument, and the operands of a calculation."""
    yield argument
    for operand in argument.of if isinstance(argument, Calc) else ():
        yield from parts_of(operand)


def literals(argument: Argument) -> tuple[object, ...]:
    """Return the values that an argument names itself."""
    match argument:
        case Const(value=tuple() as values) | OneOf(values=values) | Text(quote=values):
            return values
        case Const(value=value) | Within(prefix=value):
            return (value,)
        case Between(low=low, high=high):
            return low, high
    return ()


class OnlyIf(_Frozen):
    """A condition: a record of a step's output meets `where`.

    With `none`, no record meets it. `path` leads to the list of the records; "" is the output itself.
    """

    step: Name
    where: Annotated[Where, Member(min_length=1)]
    none: bool = False
    path: str = ""


class Step(_Frozen):
    """An action that the task orders, or a read whose output later steps use.

    Attributes:
        id: names the step within the mandate.
        tool: the tool to call.
        args: what each argument must be. Other arguments must be absent or equal their defaults.
        times: how many calls the step covers; with `Each`, for each record.
        after: id of the step that must succeed before.
        deed: steps with one deed are alternatives with a common count.
        only_if: the step is ordered only if this holds.
    """

    id: Name
    tool: Name
    args: dict[Name, Argument] = {}
    times: Count = 1
    after: Name | None = None
    deed: Name | None = None
    only_if: OnlyIf | None = None

    @property
    def sources(self) -> Iterator[str]:
        """Yield the ids of the steps from whose outputs arguments and condition are read."""
        if self.only_if is not None:
            yield self.only_if.step
        for argument in self.args.values():
            if isinstance(argument, Sourced):
                yield argument.step
            elif isinstance(argument, Calc):
                yield from (part.step for part in parts_of(argument) if isinstance(part, Sourced))
            elif isinstance(argument, Text):
                yield from (name.partition(".")[0] for name in argument.inputs)


Deed = Literal["fetch", "write", "send", "pay", "delete", "admin"]  # effects; reads are not compared with a mandate


class Limit(_Frozen):
    """The maximum sum of the `amount` arguments of all calls of an effect."""

    effect: Deed
    total: Annotated[Number, Member(ge=0, le=MAX_INT // 100)]


class Never(_Frozen):
    """Forbid an effect's calls: those with one of `values` (kind → values), or all."""

    effect: Deed
    values: dict[Kind, Annotated[tuple[Scalar, ...], BeforeValidator(_several)]] = {}


Source = Literal["application", "planner", "words"]


class Mandate(_Frozen):
    """The mandate of one task.

    Attributes:
        steps: the ordered actions, and the reads whose output the actions use. Other reads need no step.
        limits: maximum sums over all calls of an effect.
        never: what is forbidden, even if a step orders it.
        confirm: effects and ids of steps that ask an approver before the first call. The question shows the whole
            mandate, and one approval confirms the whole mandate.
        source: who wrote the mandate.
        key: names the occasion, like a month. Mandates with one key share their counts, as if they were one.

    Raises `ValidationError` if two steps have one id, a reference is not to an earlier step, or a value is not JSON.
    """

    steps: Annotated[Many[Step], Member(max_length=MAX_STEPS)] = ()
    limits: Annotated[Many[Limit], Member(max_length=MAX_STEPS)] = ()
    never: Annotated[Many[Never], Member(max_length=MAX_STEPS)] = ()
    confirm: Annotated[Many[Name], Member(max_length=MAX_STEPS)] = ()
    source: Source = "application"
    key: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: set[str] = set()
        for step in self.steps:
            # A step may only refer to earlier ones, so there are no cycles.
            for name in (*step.sources, *([step.after] if step.after else [])):
                if name not in seen:
                    raise ValueError(f"step `{step.id}` refers to `{name}`, which is not an earlier step")
            if step.id in seen:
                raise ValueError(f"two steps are named `{step.id}`")
            seen.add(step.id)
        try:
            self.digest  # noqa: B018
        except (MappingError, RecursionError) as exc:
            raise ValueError("a value has no exact JSON form") from exc
        return self

    @cached_property
    def digest(self) -> str:
        """Digest of the canonical JSON."""
        try:
            return _digest(self.model_dump_json(exclude_none=True))
        except PydanticSerializationError as exc:
            raise MappingError(Code.UNCANONICAL_ARGUMENT) from exc

    digest.lock = forkable_lock()  # type: ignore[attr-defined]  # a fork may leave Python 3.11's own held

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True)

    def _repr_html_(self) -> str:
        rows = [
            (s.id, s.tool, "; ".join(f"{k} {v.model_dump(mode='json')}" for k, v in s.args.items())) for s in self.steps
        ]
        return html_table(("step", "tool", "arguments"), rows, f"ordered by: {self.source}")

    def of(self, source: Source, key: str) -> Mandate:
        """Return a copy with another source and key."""
        if (source, key) == (self.source, self.key):
            return self
        return self.model_copy(update={"source": source, "key": key})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, which is validated and has its own digest."""
        same = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**same, **(update or {})})


@lru_cache(maxsize=256)  # runs of a workflow share a mandate
def _digest(text: str) -> str:
    return digest(as_json(json.loads(text)))


class Dropped(NamedTuple):
    """A step, limit or sentence that was left out of the mandate, and the reason."""

    what: str
    why: str


class Compiled(NamedTuple):
    """A mandate, or None if nothing was ordered, and the parts that were left out."""

    mandate: Mandate | None
    dropped: tuple[Dropped, ...] = ()
