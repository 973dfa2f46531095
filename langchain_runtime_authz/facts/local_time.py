"""Local time in a policy's time zone. This module is pure."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_runtime_authz._display import inert
from langchain_runtime_authz.errors import ConfigError


def checked_zone(name: object) -> ZoneInfo:
    """Return a time zone by its IANA name, like `Europe/Berlin`. Raises `ConfigError`."""
    try:
        return ZoneInfo(name)  # type: ignore[arg-type]
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        msg = "`zone` must be an IANA name like `Europe/Berlin`; if no name is known here, `pip install tzdata`"
        raise ConfigError(msg) from None


def seconds_of(text: str, zone: tzinfo | None = None) -> float:
    """Return epoch seconds of an ISO 8601 time. Raises `ConfigError`."""
    # A time without a zone is in `zone` or UTC.
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"`{inert(text[:60])}` is not a time; write it like 2026-11-27 18:30") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=zone or UTC)).timestamp()


def local_time(zone: ZoneInfo, now: float) -> dict[str, Any]:
    at = datetime.fromtimestamp(now, zone)
    day = {"date": at.date().isoformat(), "weekday": at.isoweekday()}
    return {"zone": zone.key, **day, "hour": at.hour, "minute": at.minute}
