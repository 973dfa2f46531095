"""Compare dates and times, with or without a year or zone, and numbers by size."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, Final

from langchain_runtime_authz.facts.call_arguments import MAX_ITEMS, scalars
from langchain_runtime_authz.facts.local_time import RELATIVE, with_dates
from langchain_runtime_authz.facts.normal_forms import forms_of, tidy
from langchain_runtime_authz.mandate.description import quote_values
from langchain_runtime_authz.mandate.languages import any_phrase, languages, words_of
from langchain_runtime_authz.mandate.model import Argument, Between, Const, OneOf, Step
from langchain_runtime_authz.mandate.read_outputs import scalar_forms
from langchain_runtime_authz.tool_profile import ToolProfile

MOMENT: Final = ("date:", "day:", "time:")  # prefixes of normal forms
ISO: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d.{0,25})?")  # a date, or a date and a time
_SECONDS: Final = re.compile(r":\d\d:(\d\d(?:\.\d{1,6})?)")
_ZONE: Final = re.compile(r"(?<=:\d\d)(?:\.\d{1,6})? ?(Z|UTC|GMT|[+-]\d\d:?\d\d)$", re.IGNORECASE)  # after a time
_UTC: Final = re.compile(r"(?<=:\d\d) ?(?:UTC|GMT)$", re.IGNORECASE)
_DATE: Final = 10  # characters of an ISO 8601 date


def number_or_date(value: object) -> Decimal | datetime.datetime | None:
    """Parse a value as a number or ISO 8601 date; None if it is neither or ambiguous."""
    numbers = [f for f in scalar_forms(value) if f.startswith("num:")] if not isinstance(value, bool) else []
    if numbers:
        return Decimal(numbers[0][4:]) if len(numbers) == 1 else None
    text = _UTC.sub("Z", str(value).strip())
    try:
        return datetime.datetime.fromisoformat(text) if ISO.fullmatch(text) else None
    except ValueError:
        return None


def compare(value: object, bound: object) -> int | None:
    """Return -1, 0 or 1 for a value below, at or above a bound; None if incomparable.

    If the bound has no time, or no time zone, that of the value is ignored.
    """
    one, other = number_or_date(value), number_or_date(bound)
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return (one > other) - (one < other)
    if not isinstance(one, datetime.datetime) or not isinstance(other, datetime.datetime):
        return None
    if len(str(bound).strip()) == _DATE:
        return (one.date() > other.date()) - (one.date() < other.date())
    if len(str(value).strip()) == _DATE or (other.tzinfo is not None and one.tzinfo is None):
        return None
    one = one if other.tzinfo is not None else one.replace(tzinfo=None)
    return (one > other) - (one < other)


def is_between(value: object, low: object, high: object) -> bool:
    """Return True if a value lies between two bounds, both included."""
    above, below = compare(value, low), compare(value, high)
    zoned = not lacks_zone(low, value) and not lacks_zone(high, value)
    return zoned and above is not None and below is not None and above >= 0 >= below


def same_moment(value: Any, constant: Any, own: Sequence[str], said: Sequence[str]) -> bool:
    """Return True if two dates agree. The constant may lack the year and the time.

    `own`: normal forms of the value; `said`: of the constant. A date that can be read in two ways equals only the same
    text.
    """
    if isinstance(number_or_date(value), datetime.datetime) and isinstance(number_or_date(constant), datetime.datetime):
        return not lacks_zone(constant, value) and compare(value, constant) == 0
    ours, theirs = ({f for f in found if f.startswith(("date:", "day:"))} for found in (own, said))
    full, full_said = ({f for f in found if f.startswith("date:") and f[5] != "-"} for found in (ours, theirs))
    zone, said_zone = (_ZONE.findall(str(each).strip().upper()) for each in (value, constant))
    times = {f for f in said if f.startswith("time:")}
    if times and zone != said_zone:
        return False
    if len(full_said) > 1 and tidy(str(value)) != tidy(str(constant)):
        return False
    if full != full_said if full and full_said else {f[-6:] for f in ours} != {f[-6:] for f in theirs}:
        return False
    one, other = (_SECONDS.search(str(each)) for each in (value, constant))
    seconds = float(one[1] if one else 0) == float(other[1] if other else 0)
    return not times or (seconds and times == {f for f in own if f.startswith("time:")})


def moments_in(value: object) -> Iterator[str]:
    """Yield the dates, times and zone in a value, in their normal forms."""
    yield from (f for f in scalar_forms(value, said=True) if f.startswith(MOMENT))
    yield from _ZONE.findall(str(value).strip().upper())


def lacks_zone(bound: object, value: object) -> bool:
    """Return True if the value is a time with a zone, and the bound a time without."""
    at, said = number_or_date(value), number_or_date(bound)
    if not isinstance(at, datetime.datetime) or not isinstance(said, datetime.datetime):
        return False
    return at.tzinfo is not None and said.tzinfo is None and len(str(bound).strip()) > _DATE


def in_zone(value: object, zone: datetime.tzinfo) -> object:
    """Return an ISO 8601 date with an offset, or a list of them, as local times."""
    if isinstance(value, list):
        return [in_zone(one, zone) for one in value] if scalars(value, MAX_ITEMS) is not None else value
    at = number_or_date(value)
    if not isinstance(at, datetime.datetime) or at.tzinfo is None:
        return value
    try:
        return at.astimezone(zone).replace(tzinfo=None).isoformat()
    except OverflowError:  # "9999-12-31T23:59:59Z", which often means "for ever"
        return value


def names_zone(values: object) -> bool:
    """Return True if one of the values is a time that names its zone."""
    return any(_ZONE.search(str(one).strip()) for one in scalars(values, MAX_ITEMS) or ())


def dates_of(value: object) -> list[str]:
    """Return a value's dates as ISO 8601 texts; one without a year begins with "-"."""
    found = (f for one in scalars(value, MAX_ITEMS) or () for f in scalar_forms(one, said=True))
    return [f[5:] for f in found if f.startswith("date:")]


def are_upcoming(days: Sequence[str], now: float) -> bool:
    """Return True if all days have a year, or all full dates lie in the coming year.

    The coming year begins yesterday, because yesterday's date may still be today in the user's zone. It holds each day
    of a year once.
    """
    first = (datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)).date().isoformat()
    full = [day for day in days if day[0] != "-"]
    return full == [*days] or all(first <= day < f"{int(first[:4]) + 1}{first[4:]}" for day in full)


def adds_time(value: object, said: object, name: str) -> bool:
    """Return True if a value has a time of day, or a zone, that nobody said.

    `said`: the ordered days. A day's first minute is allowed; for an argument with a `name` like "end", also its last.
    """
    ordered, own = ({m for one in scalars(each, MAX_ITEMS) or () for m in moments_in(one)} for each in (said, value))
    if any(moment.startswith("time:") for moment in ordered):
        return False
    ends = _is_named(name, "ends")
    plain = {"time:00:00", "Z", "UTC", "GMT", *ordered, *(["time:23:59"] if ends else [])}
    return any(not moment.startswith(("date:", "day:")) for moment in own - plain)


def other_day(name: str, value: object, order: Argument, now: float | None, args: Mapping[str, object]) -> str:
    """Return what was ordered, if the argument's value is another day; else "".

    An end before a start in `args` is another day than the user meant.
    """
    said, days = getattr(order, "values", getattr(order, "value", None)), dates_of(value)
    if now is not None and not are_upcoming([*dates_of(said), *days], now):
        return f"the next {quote_values(said)}"
    if adds_time(value, said, name):
        return f"{quote_values(said)}, without a time of day"
    ends = getattr(order, "said", None) is not None and _is_named(name, "ends")
    starts = [day for n, other in args.items() if ends and _is_named(n, "starts") for day in dates_of(other)]
    early = any(day[0] != "-" and day < start for day in days for start in starts)
    return f"{quote_values(said)}, not before the start" if early else ""


def _is_named(argument: str, role: str) -> bool:
    return any({*words_of(argument)} & {*language.data[role]} for language in languages())


# Words around a day that change it, or add a date or a time: "next Friday", "Friday 12 May", "Friday in two weeks".
_UNIT: Final = rf"\b(?:{any_phrase('day_unit')})\b"  # near a day, like "a week on Friday"
_BEFORE: Final = re.compile(
    rf"(?:\b(?:{any_phrase('day_before')})(?: the)?|\d|[ap]m|\b{any_phrase('day_month')}),?(?: on)?[\s(]*$|{_UNIT}[^.!?;\n]{{0,40}}$",
    re.IGNORECASE,
)
# Words for another time, which may mean another Friday: "Next week: ... on Friday".
_PERIOD: Final = re.compile(any_phrase("day_period"), re.IGNORECASE)
# Only behind these is a weekday surely the coming one; not in "on Good Friday" or "our Friday". "Tomorrow" always is.
_PLAIN: Final = re.compile(r"(?:^|[.,:;!?(\n]|\b(?:on|for|to|and|between|is|due))\s*\Z", re.IGNORECASE)
_BEHIND: Final = re.compile(rf"[,\s(]*(?:{any_phrase('day_behind')})|[^.!?;\n]{{0,40}}?{_UNIT}", re.IGNORECASE)


def stands_alone(text: str, start: int, end: int, said: str) -> bool:
    """Return True if no word near the day `text[start:end]` gives it another meaning.

    `said`: all that the user said; "next week" in it changes the meaning of a day too.
    """
    near = max(0, start - 60)
    plain = RELATIVE.search(text, start, end) or (_PLAIN.search(text, near, start) and not _PERIOD.search(said))
    return bool(plain) and not (_BEFORE.search(text, near, start) or _BEHIND.match(text, end))


def on_days(step: Step, profile: ToolProfile, today: date | None) -> Step:
    """Return a step with dates in place of days like "Friday", if `today` is known."""
    if today is None:
        return step
    day = partial(_day, today=today)
    found = {name: with_values(step.args[name], day) for name in profile.when if name in step.args}
    return step.model_copy(update={"args": {**step.args, **found}}) if found else step


def with_values(argument: Argument, change: Callable[[Any], Any]) -> Argument:
    """Return an argument with its values changed, if it names some."""
    if isinstance(argument, Const):
        value: Any = argument.value
        value = tuple(map(change, value)) if isinstance(value, tuple) else change(value)
        return argument.model_copy(update={"value": value})
    if isinstance(argument, OneOf):
        return argument.model_copy(update={"values": tuple(map(change, argument.values))})
    if isinstance(argument, Between):
        return argument.model_copy(update={"low": change(argument.low), "high": change(argument.high)})
    return argument


def names_year(value: object) -> bool:
    """Return True if a value is a date with a year."""
    return any(day[0] != "-" for day in dates_of(value))


def without_year(value: object) -> str:
    """Return a date without its year: "May 3 14:00"."""
    forms = scalar_forms(value, said=True)
    days = (date.fromisoformat(f[5:]).ctime()[4:10] for f in forms if f.startswith("date:") and f[5] != "-")
    return " ".join([*days, *(f[5:] for f in forms if f.startswith("time:"))])


def _day(value: Any, today: date) -> Any:
    """Return "tomorrow" or a weekday as ISO 8601 date; any other value unchanged."""
    found = with_dates(value, today) if isinstance(value, str) else value
    return found if found != value and any(f.startswith("date:") for f in forms_of(found)) else value
