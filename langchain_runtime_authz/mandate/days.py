"""Replace "today" and "tomorrow" in the dates of a step that the user ordered."""

from __future__ import annotations

import re
from datetime import date
from typing import Any, Final

from langchain_runtime_authz.facts.local_time import dated
from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.mandate.model import Argument, Between, Const, Step
from langchain_runtime_authz.tool_profile import ToolProfile

# Words before and behind a day that change it, or that add a time: "a week from tomorrow", "tomorrow at 3".
_BEFORE: Final = re.compile(
    r"(?:\b(?:from|after|before|since|until|till|by|not|than|or|every|each|of)(?: the)?|\d|[ap]m),?(?: on)?\s*$",
    re.IGNORECASE,
)
_BEHIND: Final = re.compile(r",?\s*(?:(?:at|or|week|fortnight|month|year|night|until|till|to)\b|\d|-)", re.IGNORECASE)


def stands_alone(text: str, start: int, end: int) -> bool:
    """Return True if the words around `text[start:end]` leave a day as it is."""
    return _BEFORE.search(text, max(0, start - 40), start) is None and _BEHIND.match(text, end) is None


def on_days(step: Step, profile: ToolProfile, today: date | None) -> Step:
    """Return a step whose dates (`when`) are on the calendar, if today is known."""
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
    """Return a date that the user said by today as an ISO 8601 date."""
    found = dated(value, today) if isinstance(value, str) else value
    return found if found != value and any(f.startswith("date:") for f in forms(found)) else value
