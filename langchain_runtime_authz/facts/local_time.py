"""Local time in a policy's time zone. This module is pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_runtime_authz.errors import ConfigError


def checked_zone(name: object) -> ZoneInfo:
    """Return the time zone of an IANA name. Raises `ConfigError` if there is none."""
    try:
        return ZoneInfo(name)  # type: ignore[arg-type]
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        msg = "`zone` must be an IANA name like `Europe/Berlin`; if no name is known here, `pip install tzdata`"
        raise ConfigError(msg) from None


def local_time(zone: ZoneInfo, now: float) -> dict[str, Any]:
    at = datetime.fromtimestamp(now, zone)
    day = {"date": at.date().isoformat(), "weekday": at.isoweekday()}
    return {"zone": zone.key, **day, "hour": at.hour, "minute": at.minute}
