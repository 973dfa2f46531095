"""Make the requests of a project's cases from the example request."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from langchain_runtime_authz.errors import Code, ConfigError, wrong_field
from langchain_runtime_authz.facts.local_time import local_time
from langchain_runtime_authz.testing.requests import NOW, example_request

__all__ = ["patched"]


def patched(cases: list[Any], zone: ZoneInfo | None) -> list[Any]:
    """Return cases with whole requests: each case names only the differences from the example request.

    `at` is the case's time, like `2026-11-27 18:30`, in the project's zone.

    Raises:
        ConfigError: `policy_invalid`, naming the case.
    """
    found = []
    for i, case in enumerate(cases, 1):
        if not isinstance(case, dict) or not isinstance(case.get("request", {}), dict):
            raise _invalid(f"cases.yaml: case {i} must be a mapping, and its `request` a mapping of path to value")
        try:
            given = case.get("request") or {}
            now = NOW if "at" not in case else _seconds(str(case["at"]), zone)
            request = example_request(given, now=now)
            if zone is not None and not any(path.startswith("context.local") for path in given):
                request = example_request({**given, "context.local": local_time(zone, request.context.now)}, now=now)
        except ConfigError as exc:
            raise _invalid(f"cases.yaml: case `{case.get('name', i)}`: {exc.detail}") from exc
        except (KeyError, TypeError, AttributeError, ValidationError) as exc:
            why = wrong_field(exc) if isinstance(exc, ValidationError) else f"no such path: {exc}"
            raise _invalid(f"cases.yaml: case `{case.get('name', i)}`: {why}") from exc
        rest = {name: value for name, value in case.items() if name != "at"}
        found.append({**rest, "request": json.loads(request.to_json())})
    return found


def _seconds(text: str, zone: ZoneInfo | None) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(f"`at` is `{text}`, which is not a time; write it like 2026-11-27 18:30") from None
    return int((at if at.tzinfo is not None else at.replace(tzinfo=zone or UTC)).timestamp())


def _invalid(detail: str) -> ConfigError:
    return ConfigError(detail, Code.POLICY_INVALID)
