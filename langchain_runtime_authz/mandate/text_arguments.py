"""Check that a text's identifiers and copied passages come from allowed sources.

A paraphrase of other data is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import unescape
from typing import Final

from langchain_runtime_authz._text import lazy, visible_text
from langchain_runtime_authz.facts.normal_forms import fold, mentions_in

MAX_TEXT: Final = 8192  # characters of one text argument
RUN: Final = 6  # words in a row that count as copied
_LETTERS: Final = 12  # characters in a row that count as copied, in scripts without blanks
_DIGITS: Final = 3  # a number of at most so many digits identifies nothing
_LONG: Final = 12  # a token of so many characters, with digits or mixed case, identifies something
_TOKEN: Final = lazy(r"[!-~]{4,}")
_NAMED: Final = lazy(  # hosts in other scripts or of numbers; handles and issues; network shares
    r"[^\W_]{1,63}(?:(?<=[^\x00-\x7f])\.|\.(?=[^\x00-\x7f])|(?<=[a-z0-9])\u3002(?=[a-z]))[^\W\d_]{2,24}"
    r"|(?:\d{1,3}\.){3}\d{1,3}|(?<![\w/&])(?:@|#(?=\d))\w+|(?:(?<!:)//|\\\\)\w+",
    re.IGNORECASE,
)
_PARTS: Final = lazy(r"[/,;:()\[\]{}<>\"&|]+")
_DOMAIN: Final = lazy(r"(?<=[a-z0-9])\.[a-z]{2,24}(?![a-z0-9])", re.IGNORECASE)
_HOST: Final = lazy(r"https?://([\w.\-]+)(?=[/?#]|\Z)")
_MIXED: Final = lazy(r"[a-z][A-Z]|[A-Za-z][^A-Za-z'\-][A-Za-z]")
_EDGES: Final = ".,;:!?'\"`*_-()[]{}<>"
_FEW: Final = 16  # up to so many runs are searched for one by one
_WORD: Final = lazy(r"\w+")
# Invisible characters could carry a message: tags, private-use characters, runs of joiners and variation selectors.
_HIDDEN: Final = lazy(
    "[\u2060-\u2064\u206a-\u206f\ufff9-\ufffb\ue000-\uf8ff\U000e0000-\U0010ffff]+"
    "|[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f\ufeff]{3,}"
)
_SIGN: Final = lazy(r"[\u3040-\u30ff\u3400-\u9fff]")


def holds_unbacked(text: str, allowed: str) -> bool:
    """Return True if `text` has an identifier or hidden sign that `allowed` lacks."""
    text, allowed = unescape(text), unescape(allowed)
    if not {m[0] for m in _HIDDEN.finditer(text)} <= {m[0] for m in _HIDDEN.finditer(allowed)}:
        return True
    text, allowed = visible_text(text), visible_text(allowed)
    named, known = ({fold(m[0]) for m in _NAMED.finditer(one)} for one in (text, allowed))
    there, ours = mentions_in(allowed), mentions_in(text)
    written: dict[str, bool] = {}
    for form, spelled in ours.items():
        written[spelled] = written.get(spelled, False) or _backed(form, there)
    for spelled in (one for one, backed in written.items() if not backed):  # a small number identifies nothing
        plain = spelled.strip("+-").replace(".", "").replace(",", "")
        if not (spelled.isascii() and plain.isdecimal() and len(plain) <= _DIGITS):
            return True
    return not named <= known or not set(_tokens(_without(text, written))) <= {
        *_tokens(allowed),
        *_tokens(_without(allowed, there.values())),
    }


def _backed(form: str, there: dict[str, str]) -> bool:
    if form.startswith("date:"):  # either of the two dates may lack the year
        return form in there or f"date:{form[-6:]}" in there or (form[5] == "-" and f"day:{form[-6:]}" in there)
    return form.startswith("time:") or (form in there and not form.startswith("day:"))


def _without(text: str, spelled: Iterable[str]) -> str:
    for one in sorted(spelled, key=len, reverse=True):
        text = text.replace(one, " ")
    return text


def _tokens(text: str) -> Iterable[str]:
    for whole in _TOKEN.findall(text):
        token = whole.strip(_EDGES)
        if _DOMAIN.search(token):
            yield fold(token)
            if host := _HOST.match(token):  # if an address is allowed, so is its host alone
                yield fold(host[1])
            continue
        for part in _PARTS.split(token):
            digits = sum(map(str.isdigit, part))
            if digits > _DIGITS or (len(part) >= _LONG and (digits or _MIXED.search(part))):
                yield fold(part.strip(_EDGES))


class TextWords:
    """The words of one text, to find runs of words that another text copied."""

    __slots__ = ("_parts",)

    def __init__(self, text: str) -> None:
        text = fold(visible_text(unescape(text)))
        signs = _SIGN.findall(text)
        words = _WORD.findall(_SIGN.sub(" ", text) if signs else text)
        self._parts = tuple((f" {' '.join(p)} ", frozenset(p), n) for p, n in ((words, RUN), (signs, _LETTERS)) if p)

    def runs(self) -> set[tuple[str, ...]]:
        """Return the text's runs: `RUN` words, or characters in scripts without blanks."""
        return {run for joined, _, n in self._parts for run in _runs(joined, n)}

    def holds(self, runs: Iterable[tuple[str, ...]]) -> bool:
        """Return True if the text has one of these runs."""
        for joined, known, n in self._parts:
            near = {run for run in runs if len(run) == n and known.issuperset(run)}
            few = len(near) <= _FEW
            if any(f" {' '.join(run)} " in joined for run in near) if few else not near.isdisjoint(_runs(joined, n)):
                return True
        return False


def _runs(joined: str, n: int) -> Iterable[tuple[str, ...]]:
    words = joined.split()
    return zip(*(words[i:] for i in range(n)), strict=False)


def holds_borrowed(text: str, allowed: str, others: Iterable[TextWords | None]) -> bool:
    """Return True if one of `others` has words in a row of `text`, and `allowed` not.

    `None` stands for a text that is lost, which may hold any run.
    """
    runs = TextWords(text).runs()
    runs = runs and runs - TextWords(allowed).runs()
    return bool(runs) and any(other is None or other.holds(runs) for other in others)
