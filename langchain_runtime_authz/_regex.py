"""Compile regular expressions at first use, because most runs need few of them."""

from __future__ import annotations

import re
from typing import Any, cast


class _Lazy:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(re.compile(*self.given), name)
        return found


def lazy(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used."""
    return cast("re.Pattern[str]", _Lazy(pattern, flags))
