"""Cut tokens in two where a clause can be read in more than one way: "5 May 3pm"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Final

from langchain_runtime_authz.mandate.languages import NUMBER, Token, read_number

CLOCK: Final = re.compile(
    r"(?<![\d:])(?:(?:[01]?\d|2[0-3]):[0-5]\d(?! ?[ap]m)|(?:0?[1-9]|1[0-2])(?::[0-5]\d)? ?[ap]m)(?!\w)", re.IGNORECASE
)
_UNIT: Final = re.compile(rf"{NUMBER}(?:[%°][^\W\d_]?|(?![ap]m)[^\W\d_]{{1,3}})", re.IGNORECASE)  # "20%", "5km"


def cuts(tokens: Sequence[Token]) -> list[list[Token]]:
    """Return the ways to cut tokens: "5 May 3pm" and "5km" each whole or in two."""
    several = [(timed, united) for timed in (True, False) for united in (False, True)]
    ways = [[*chain.from_iterable(_cut(t, timed=timed, united=united) for t in tokens)] for timed, united in several]
    return [way for n, way in enumerate(ways) if way not in ways[:n]]


def _cut(token: Token, *, timed: bool, united: bool) -> list[Token]:
    if token.kind in {"word", "name", "sep"}:
        return [token]
    said, start, cut = token.text, token.start, list[Token]()
    clock = CLOCK.search(said) if timed and token.kind == "date" else None
    number = re.search(NUMBER, said) if united and (token.kind == "money" or _UNIT.fullmatch(said)) else None
    if clock is not None:
        cut = [Token("odd", clock[0], start + clock.start(), start + clock.end())]
        for begin, part in ((0, said[: clock.start()]), (clock.end(), said[clock.end() :])):
            for word in re.finditer(r"at\b|on\b|\w.*?(?=T?,?(?: at)?\s*$)", part):
                kind = "word" if word[0] in {"at", "on"} else "date"
                cut.append(Token(kind, word[0], start + begin + word.start(), start + begin + word.end()))
    elif number is not None and (value := read_number(number[0], money=token.kind == "money")) is not None:
        begin, end = start + number.start(), start + number.end()
        unit = Token("odd", re.sub(NUMBER, "", said).strip(), end, token.end)
        return [Token("number", f"{value}", begin, end), unit]  # also for "€20"
    return sorted(cut, key=lambda t: t.start) or [token]
