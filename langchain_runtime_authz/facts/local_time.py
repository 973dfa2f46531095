"""Compute local times, and the dates of words like "tomorrow". Pure."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_runtime_authz.errors import ConfigError

_DAYS: Final = {"day before yesterday": -2, "day after tomorrow": 2, "yesterday": -1, "today": 0, "tomorrow": 1}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
RELATIVE: Final = re.compile(rf"(?:the )?(?:{'|'.join(_DAYS)})", re.IGNORECASE)
DAY: Final = rf"(?:{RELATIVE.pattern}|(?<!the )(?:this )?(?:{'|'.join(_WEEKDAYS)}))"
_DAY: Final = re.compile(rf"(?<![\w-]){DAY}(?![\w-])", re.IGNORECASE)


def checked_zone(name: object) -> ZoneInfo:
    """Return the time zone of an IANA name, or raise `ConfigError` for other values."""
    try:
        return ZoneInfo(name)  # type: ignore[arg-type]
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        msg = "`zone` must be an IANA name like `Europe/Berlin`; if no name is known here, `pip install tzdata`"
        raise ConfigError(msg) from None


def local_time(zone: ZoneInfo, now: float) -> dict[str, Any]:
    """Return zone, date, weekday (Monday is 1), hour and minute, for a request."""
    at = datetime.fromtimestamp(now, zone)
    day = {"date": at.date().isoformat(), "weekday": at.isoweekday()}
    return {"zone": zone.key, **day, "hour": at.hour, "minute": at.minute}


def local_day(zone: ZoneInfo | None, at: float) -> date | None:
    """Return the local date of a time. Return None without a zone, or if `at` is 0."""
    return datetime.fromtimestamp(at, zone).date() if zone is not None and at else None


def with_dates(said: str, today: date) -> str:
    """Replace each word like "tomorrow" or "Friday" by its ISO 8601 date.

    A weekday means the next one after today. Today's own weekday stays as it is, because it could mean today or next
    week.
    """

    def day(found: re.Match[str]) -> str:
        name = found[0].lower().removeprefix("the ").removeprefix("this ")
        ahead = _DAYS[name] if name in _DAYS else (_WEEKDAYS.index(name) - today.weekday()) % 7
        return found[0] if name in _WEEKDAYS and not ahead else (today + timedelta(days=ahead)).isoformat()

    return _DAY.sub(day, said)
