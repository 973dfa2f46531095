"""Replace "tomorrow" and "Friday" in the dates of a step that the user ordered."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Final

from langchain_runtime_authz.facts.local_time import RELATIVE, dated
from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.mandate.model import Argument, Between, Const, Step
from langchain_runtime_authz.tool_profile import ToolProfile

# Words around a day that change it, or add a date or a time: "next Friday", "Friday 12 May", "Friday in two weeks".
_MONTH: Final = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_OTHER: Final = (
    "from|after|before|since|until|till|by|not|than|or|every|each|of|next|last|past|previous|following|coming|other"
    "|an?|any|some|that|first|second|third|fourth|fifth|final"
)
_UNIT: Final = r"\b(?:days?|weeks?|fortnights?|months?|years?|next|last)\b"  # near a day, like "a week on Friday"
_BEFORE: Final = re.compile(
    rf"(?:\b(?:{_OTHER})(?: the)?|\d|[ap]m|\b{_MONTH}),?(?: on)?[\s(]*$|{_UNIT}[^.!?;\n]{{0,40}}$",
    re.IGNORECASE,
)
# Words for another time, which may mean another Friday: "Next week: ... on Friday".
_PERIOD: Final = re.compile(
    r"\b(?:days?|weeks?|fortnights?|months?|years?|weekly|biweekly|monthly|quarters?|semesters?|terms?|seasons?|sprints?|spring|summer|autumn|winter"
    r"|advent|christmas|xmas|easter|ramadan|holidays?|vacation|[ck]w ?\d+|\d+(?:st|nd|rd|th))\b"
    r"|\b(?-i:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)(?-i:uary|ruary|ch|il|ust|tember|ober|ember)?\b",
    re.IGNORECASE,
)
# Only behind these is a weekday surely the coming one; not in "on Good Friday" or "our Friday". "Tomorrow" always is.
_PLAIN: Final = re.compile(r"(?:^|[.,:;!?(\n]|\b(?:on|for|to|and|between|is|due))\s*\Z", re.IGNORECASE)
_BEHIND: Final = re.compile(
    rf"[,\s(]*(?:(?:at|or|of|the|after|before|night|until|till|to|through|thru|plus|past|gone|latest|onwards?|forward|following|coming|mornings|afternoons|evenings|nights|{_MONTH})\b"
    rf"|in (?:{_MONTH}|an?\b|\S*\d)|\d|['\u2019]s\b|[-\u2013\u2014+&/])|[^.!?;\n]{{0,40}}?{_UNIT}",
    re.IGNORECASE,
)


def stands_alone(text: str, start: int, end: int, said: str) -> bool:
    """Return True if no word around `text[start:end]` gives the day another meaning.

    `said`: all that the user said, which may speak of another time.
    """
    near = max(0, start - 60)
    plain = RELATIVE.search(text, start, end) or (_PLAIN.search(text, near, start) and not _PERIOD.search(said))
    return bool(plain) and not (_BEFORE.search(text, near, start) or _BEHIND.match(text, end))


def on_days(step: Step, profile: ToolProfile, today: date | None) -> Step:
    """Return a step with dates in place of days like "Friday", if `today` is known."""
    if today is None:
        return step
    found = {name: _on_day(step.args[name], today) for name in profile.when if name in step.args}
    return step.model_copy(update={"args": {**step.args, **found}}) if found else step


def _on_day(argument: Argument, today: date) -> Argument:
    if isinstance(argument, Const):
        value: Any = argument.value
        value = tuple(_day(v, today) for v in value) if isinstance(value, tuple) else _day(value, today)
        return argument.model_copy(update={"value": value})
    if isinstance(argument, Between):
        return argument.model_copy(update={"low": _day(argument.low, today), "high": _day(argument.high, today)})
    return argument


def _day(value: Any, today: date) -> Any:
    """Return "tomorrow" or a weekday as ISO 8601 date; any other value unchanged."""
    found = dated(value, today) if isinstance(value, str) else value
    return found if found != value and any(f.startswith("date:") for f in forms(found)) else value
