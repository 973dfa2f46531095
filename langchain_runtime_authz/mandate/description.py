"""Describe a mandate in plain words, for approvers and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from langchain_runtime_authz.mandate import model
from langchain_runtime_authz.tool_profile import ToolProfile

_QUOTED: Final = 120  # characters shown of the values of one argument
_LONGEST: Final = 200  # characters shown of one value
_BETWEEN: Final = {"difference": "less", "percent": "percent of", "share": "divided by"}  # the numbers of a `Calc`


def described_mandate(mandate: model.Mandate, profiles: Mapping[str, ToolProfile] | None = None) -> list[str]:
    """Return a sentence for each step, limit, prohibition and confirmation.

    With profiles, the sentence of a step begins with the tool's effect.
    """
    effects = profiles or {}
    said = [described_step(step, effects.get(step.tool)) for step in mandate.steps]
    said += [f"{limit.effect}: at most {_value(limit.total)} in all" for limit in mandate.limits]
    said += [_never(never) for never in mandate.never]
    return said + ([f"ask before: {', '.join(mandate.confirm)}"] if mandate.confirm else [])


def quote_values(value: object) -> str:
    """Return a value, or the values of a tuple, shortened for a question."""
    shown = ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
    return shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]}…"


def described_step(step: model.Step, profile: ToolProfile | None = None) -> str:
    """Describe a step: `pay: send_money, recipient = Bob (you said it), amount = 45`."""
    parts = [f"{profile.effect}: {step.tool}" if profile is not None else step.tool]
    parts += [f"{name} = {describe(argument)}" for name, argument in step.args.items()]
    each = any(isinstance(argument, model.Each) for argument in step.args.values())
    if step.times > 1:
        parts.append(f"{step.times} times{' each' if each else ''}")
    if step.after is not None:
        parts.append(f"after `{step.after}`")
    if step.only_if is not None:
        parts.append(f"only if {describe_condition(step.only_if)}")
    if step.deed is not None:
        parts.append(f"one of the ways to `{step.deed}`")
    return ", ".join(parts)


def describe(argument: model.Argument) -> str:
    """Describe an argument, without its name: `10 percent of `total` of `bill``."""
    match argument:
        case model.Const(value=value, said=said):
            values = value if isinstance(value, tuple) else (value,)
            return f"{_listed(values, 'and')}{' (you said it)' if said is not None else ''}"
        case model.Own():
            return "your own"
        case model.OneOf(values=values):
            return _listed(values, "or")
        case model.Between(low=low, high=high):
            return f"from {_value(low)} to {_value(high)}"
        case model.Within(prefix=prefix):
            return f"within {_value(prefix)}"
        case model.Field(step=step, path=path):
            return _of(path, step)
        case model.Pick(step=step, path=path, where=where, max=greatest, min=least):
            by = f", with the greatest `{greatest}`" if greatest else f", with the least `{least}`" if least else ""
            return f"{_of(path, step)}, of the one record{_where(where)}{by}"
        case model.Each(step=step, path=path, where=where, limit=limit):
            return f"{_of(path, step)}, of each record{_where(where)}, at most {limit}"
        case model.Calc(op=op, of=of):
            parts = [f"({describe(one)})" if isinstance(one, model.Calc) else describe(one) for one in of]
            return f"the sum of {', and '.join(parts)}" if op == "sum" else f" {_BETWEEN[op]} ".join(parts)
        case model.Extract(step=step, path=path):
            return f"a value in the text of {_of(path, step)}; you will be shown it"
        case model.Text(quote=quote, inputs=inputs):
            parts = [f"the words {_listed(quote, 'and')}"] if quote else []
            parts += [f"what {_listed(inputs, 'and')} returned"] if inputs else []
            return " and ".join(parts) or "free text without data of others"
    return "anything"


def describe_condition(condition: model.OnlyIf) -> str:
    """Describe a condition: `` `day` has no record whose `start` is 12:00 ``."""
    where = _of(condition.path, condition.step) if condition.path else f"`{condition.step}`"
    return f"{where} has {'no' if condition.none else 'a'} record{_where(condition.where)}"


def _of(path: str, step: str) -> str:
    return f"`{path}` of `{step}`" if path else f"the output of `{step}`"


def _where(where: model.Where) -> str:
    conditions = [f"`{field}` {_condition(c)}" for field, several in where.items() for c in several]
    return f" whose {' and '.join(conditions)}" if conditions else ""


def _condition(condition: model.Condition) -> str:
    match condition:
        case model.Own():
            return "is your own"
        case model.Eq(value=value):
            return f"is {_value(value)}"
        case model.Contains(text=text):
            return f"contains {_value(text)}"
        case model.StartsWith(text=text):
            return f"starts with {_value(text)}"
        case model.AtLeast(value=value):
            return f"is at least {_value(value)}"
        case model.AtMost(value=value):
            return f"is at most {_value(value)}"
        case model.Not(condition=inner):
            return f"is not so that it {_condition(inner)}"


def _never(never: model.Never) -> str:
    roles = [f"{role} = {_listed(values, 'or')}" for role, values in never.values.items()]
    return f"never {never.effect}: {', '.join(roles) if roles else 'anything'}"


def _listed(values: tuple[object, ...], last: str) -> str:
    shown = list(map(_value, values))
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f'"{shown}"' if any(c in ' ,"' for c in shown) or not shown else shown
