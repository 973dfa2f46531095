"""Look up values in the user's words.

Only texts of human origin come here, from the ledger. What a user *pastes* is somebody else's text: fenced blocks and
quoted lines (`> …`) are left out. What a user *forbids* was not said ("pay Bob, never Mallory"), and no longer once a
later text forbids it ("45, not 90").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from langchain_runtime_authz.facts.prohibition import prohibitions
from langchain_runtime_authz.facts.provenance.forms import REMEMBERED, decimals, fold, forms, mentions, skeleton, tidy

__all__ = ["HumanWords", "own_words"]

MAX_TEXT: Final = 100_000  # characters looked at; what stands beyond was not said
MAX_NUMBERS: Final = 24  # numbers kept for derivations
MAX_KNOWN: Final = 128  # values of which it is remembered whether they were said
_APART: Final = "\x1e"  # between texts: a blank that no line has
_TRIES: Final = 64
_SHORTEST: Final = 2  # a text of one letter names nothing
_LOOKS: Final = 4
_FENCE: Final = re.compile(r"^[ \t]*(```|~~~)")
_ENUMERATOR: Final = re.compile(r"(?<!\S)(\d{1,2})[.)](?=\s)")
_PERCENT: Final = re.compile(r"(?<![\w.,])(\d{1,4}(?:[.,]\d{1,4})?) ?(?:%|percent\b)", re.IGNORECASE)
_IDENTIFIER: Final = re.compile(r"[\d@#/_]|\w[.\-]\w")
_LEAD: Final = 12  # characters before a name that tell its role
_ROLE: Final = re.compile(r"(?:\b(?:to|with):?|@) ?$")
_FOLLOWING: Final = re.compile(r" ([a-z]{2,})")
# "to alice, bob and carol": what is listed with a name in a role has that role too.
_LISTED: Final = 120  # characters of a list that are looked back at
_COUNTED: Final = re.compile(r"\b(?:to|with):? (?:[\w.\-]{1,40}, ){0,8}[\w.\-]{1,40}(?:,? and|,? or| &|,) $")
_LIST_ENDS: Final = re.compile(r"[.!?;:]? ?$|[.!?;:,] | (?:and|or|&) ")
_BESIDE: Final = re.compile(r"(?:, | and | & )(?=[A-Z])")
# "our site www.x.org.They sent": a sentence that begins without a space, with a word that begins sentences.
_RUN_ON: Final = re.compile(
    r"(?<=[a-zA-Z0-9)\]'\"\u2019\u201d/][.!?])(?=(?:After|Also|And|At|Before|But|Do|Finally|For|From|He|I|If|In|It|Let|Make|"
    r"My|No|Note|Now|On|Once|Our|Please|She|So|Thanks?|That|The|Their|Then|There|These|They|This|Those|To|We|When|With|"
    r"Yes|You|Your)[ ,'\u2019])",
)
# A host without `https://` or `www.`. Of the endings that no kind of file has, the ones that all know.
_HOST: Final = re.compile(
    r"(?<![\w@.\-/:])((?:[a-z0-9][a-z0-9\-]{0,62}\.){1,4}(?:com|org|net|edu|gov|int)(?:/[^\s<>\"'`(){}\[\]|\\]{0,500})?)"
    r"(?![\w@\-\\]|[.:]\w)",
    re.IGNORECASE | re.ASCII,
)
# "the channel starting with X" describes all that begins so. "those that do not start with X" says nothing.
_BEGINS: Final = re.compile(r"\b(?:start|begin)(?:s|ing|ning)? with [^\w\s#@]?([\w#@][\w.\-]{1,63})")
_OTHERS: Final = re.compile(r"\b(?:not|no|never|but|except|excluding|unless|without|than)\b|n['\u2019]t\b")
_QUOTES: Final = "\"'`*\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb"
_ENDS: Final = ".!?:;-•*"
# Words that name nobody and nothing.
_EMPTY: Final = frozenset(
    (  # noqa: SIM905  (words)
        "a an and any at be by do for from have he her him his i if in is it its me my no not of on or our out please she "
        "so that the their them then they this to up us was we what who with you your yes none null true false"
    ).split()
)


class _Answers(NamedTuple):
    """Three answers: the value was said, was said as a name, and was forbidden last."""

    said: bool
    named: bool
    withdrawn: bool


class HumanWords:
    """The words of one task at one epoch. Immutable.

    Attributes:
        beginnings: how what was asked for begins ("the channel starting with X").
        numbers: numbers that were said, in order, bounded.
        percents: of these, the ones said as percentages.
    """

    def __init__(self, texts: Sequence[str], *, forbids: bool = True) -> None:
        self._known: dict[tuple[str, ...], _Answers] = {}
        # The newest words are the ones that count when there are too many.
        whole = _unnumbered(_APART.join(own_words(t) for t in texts)[-MAX_TEXT:])
        several = [_RUN_ON.sub(" ", t) for t in whole.split(_APART)]
        parts = [_parted(t) if forbids else (t, "") for t in several]
        forbidden = [f for _, f in parts if f]
        self._forbidden = HumanWords(["\n".join(forbidden)], forbids=False) if forbidden else None
        # Only where something is forbidden: what each text says and what it forbids, the newest first.
        self._parts = [
            (HumanWords([p], forbids=False), HumanWords([f], forbids=False)) for p, f in reversed(parts) if forbidden
        ]
        said = "\n".join(p for p, _ in parts)
        found = mentions(said)
        hosts = (f for h in _HOST.finditer(said) for f in forms(f"https://{h[1].rstrip('.,;:!?*_')}"))
        self._tokens = frozenset((*found, *hosts))
        self._written = tidy(said)
        self._text = fold(self._written)
        self._looks: str | None = None
        described = (
            b[1].rstrip(".-")
            for b in _BEGINS.finditer(self._text)
            if not _OTHERS.search(self._text, max(0, b.start() - 2 * _LEAD), b.start())
        )
        self.beginnings = tuple(dict.fromkeys(b for b in described if len(b) >= _SHORTEST and b not in _EMPTY))[:_TRIES]
        numbers = (f for f in found if f.startswith("num:") and not self.withdrawn((f,)))
        self.numbers = tuple(Decimal(f[4:]) for f in numbers)[:MAX_NUMBERS]
        self.percents = tuple(d for p in _PERCENT.finditer(said) for d in decimals(p[1])[:1])[:MAX_NUMBERS]

    def told(self, value_forms: tuple[str, ...]) -> _Answers:
        """Return all three answers about a value; those about short values are remembered."""
        known = self._known.get(value_forms)
        if known is None:
            said = self.said(value_forms)
            known = _Answers(said, said and self.names(value_forms), self.withdrawn(value_forms))
            if sum(map(len, value_forms)) <= REMEMBERED:
                if len(self._known) >= MAX_KNOWN:
                    self._known.clear()
                self._known[value_forms] = known
        return known

    def withdrawn(self, value_forms: Sequence[str]) -> bool:
        """Return True if the newest text that has such a value forbids it and does not say it too."""
        if self._forbidden is None or not self._forbidden.said(value_forms):
            return False
        for said, forbidden in self._parts:
            if said.said(value_forms):
                return False
            if forbidden.said(value_forms):
                return True
        return False

    def said(self, value_forms: Sequence[str]) -> bool:
        """Return True if such a value was said: an identifier, number or date as such, a text as whole words."""
        return any(self._said(form) for form in value_forms) and not self.withdrawn(value_forms)

    def _said(self, form: str) -> bool:
        kind, _, normal = form.partition(":")
        if kind == "text":
            return self._phrase(normal)
        return form in self._tokens

    def _phrase(self, phrase: str) -> bool:
        if len(phrase) < _SHORTEST or phrase in _EMPTY:
            return False
        return _within(phrase, self._text)

    def describes(self, value_forms: Sequence[str]) -> bool:
        """Return True if the user asked for what begins so ("the channel starting with X")."""
        return bool(self.beginnings) and any(
            f.startswith("text:") and f[5:].startswith(self.beginnings) for f in value_forms
        )

    def names(self, value_forms: Sequence[str]) -> bool:
        """Return True if such a value was said as somebody's name: "Bill called", but not "pay the bill".

        An address or account number counts as such. A word counts in these cases: it has a digit or a sign in it; it
        is quoted; it follows `to` or `with`, or is listed with one that does ("to alice, bob and carol"); it has a
        capital inside a sentence; or it has one at its beginning and goes on like a subject or a list ("Apple called",
        "Alice and Bob"), not like an order ("Pay the", "Bill me").
        """
        named = any(self._named(f[5:]) if f.startswith("text:") else self._said(f) for f in value_forms)
        return named and not self.withdrawn(value_forms)

    def _named(self, phrase: str) -> bool:
        if not self._phrase(phrase):
            return False
        if _IDENTIFIER.search(phrase) or phrase.upper() == phrase.lower():
            return True
        return any(self._as_name(start, end) for start, end in _places(phrase, self._text))

    def _as_name(self, start: int, end: int) -> bool:
        before = self._text[max(0, start - _LEAD) : start]
        if _ROLE.search(before) or (before[-1:] in _QUOTES and self._text[end : end + 1] in _QUOTES and before):
            return True
        if _LIST_ENDS.match(self._text, end) and _COUNTED.search(self._text[max(0, start - _LISTED) : start]):
            return True
        if len(self._written) != len(self._text):  # folding has moved the letters
            return False
        if not self._written[start].isupper():
            return False
        if before.strip() and before.rstrip()[-1] not in _ENDS:
            return True
        if _BESIDE.match(self._written, end):
            return True
        following = _FOLLOWING.match(self._written, end)
        return following is not None and following[1] not in _EMPTY

    def resembles(self, value: str) -> bool:
        """Return True if `value` looks like something that was said and is not it."""
        look = skeleton(tidy(value))
        own = forms(value)
        if len(look) < _LOOKS or self.said(own) or self.withdrawn(own):
            return False
        if self._looks is None:
            ends = range(0, min(len(self._text), MAX_TEXT), 1024)
            self._looks = "".join(skeleton(self._text[i : i + 1024]) for i in ends)
        return _within(look, self._looks)


def _parted(text: str) -> tuple[str, str]:
    """Return what a text says, and what it forbids."""
    said, forbidden, at = [], [], 0
    for before, _, end in prohibitions(text):
        said.append(text[at:before])
        forbidden.append(text[before:end])
        at = end
    return " ; ".join([*said, text[at:]]), "\n".join(forbidden)


def own_words(text: str) -> str:
    """Return a message without what is quoted in it."""
    lines, fenced = [], False
    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith(">"):
            lines.append(line)
    return "\n".join(lines)


def _unnumbered(text: str) -> str:
    """Return the text without the numbers of its list: the `1.` and `2.` of two requests were not said."""
    found, expected = [], 1
    for number in _ENUMERATOR.finditer(text):
        if int(number[1]) == expected:
            found.append(number.span())
            expected += 1
    if len(found) < _SHORTEST:
        return text
    for start, end in reversed(found):
        text = f"{text[:start]}\n{text[end:]}"
    return text


def _within(phrase: str, text: str) -> bool:
    """Return True if `phrase` stands in `text` as whole words: not inside a longer name, address or path."""
    return next(_places(phrase, text), None) is not None


def _places(phrase: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield where `phrase` stands in `text` as whole words."""
    at = -1
    for _ in range(_TRIES):
        at = text.find(phrase, at + 1)
        if at < 0:
            return
        end = at + len(phrase)
        if not _joined(text, at - 1, -1) and not _joined(text, end, 1):
            yield at, end


def _joined(text: str, i: int, step: int) -> bool:
    """Return True if the character at `i` joins its two sides into one name."""
    if not 0 <= i < len(text):
        return False
    c = text[i]
    if c.isalnum() or c in "_@\\":
        return True
    following = i + step
    return c in ".-/:+" and 0 <= following < len(text) and text[following].isalnum()
