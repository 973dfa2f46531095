"""Compile patterns at first use, and normalise texts in linear time."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import Any, Final, Literal, cast

_SIGN: Final = r"(?:[^\w\s\x00-\x7f]|[\uff9e\uff9f])"  # matches all combining marks, and also symbols
_MOST: Final = 30  # longest run of marks, as in Unicode's Stream-Safe Text Format (UAX #15 §13)


class _Lazy:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(re.compile(*self.given), name)
        return found


def lazy(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used."""
    return cast("re.Pattern[str]", _Lazy(pattern, flags))


_SIGNS: Final = lazy(rf"(?<!{_SIGN}){_SIGN}{{{_MOST + 1},}}")


def normalize(form: Literal["NFC", "NFKC", "NFKD"], text: str) -> str:
    """Return the normal form of a text, with long runs of combining marks cut up.

    Normalising a long run would take quadratic time. Two texts become equal only if Unicode calls them equivalent.
    """
    if text.isascii():
        return text
    cuts = [at for run in _SIGNS.finditer(text) for at in range(run.start() + _MOST, run.end(), _MOST)]
    return "".join(unicodedata.normalize(form, text[start:end]) for start, end in pairwise((0, *cuts, len(text))))


def visible_text(text: str) -> str:
    """Return the text as readers see it: in NFKC form, without invisible characters."""
    return text if text.isascii() else "".join(c for c in normalize("NFKC", text) if unicodedata.category(c) != "Cf")
