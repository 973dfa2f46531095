# ruff: noqa: RUF001, PLR2004  (people write typographic apostrophes; endings have lengths)
"""Match the user's words with the words for a tool's effect: a boring matcher, on purpose.

A profile lists words, `intent: [pay, "create event", refund]`. One entry in the task is enough. Words are compared
case-folded and without a plain English ending (`s`, `es`, `ed`, `ing`, `er`). An entry of several words needs them in
this order, close together, in one sentence. Some words do not count:

- a word shortly after a negation in the same clause ("without emailing"), unless forgetting or failing is negated;
- a word in what is forbidden (`facts.prohibition`), and one that a later text forbids ("do not pay", "stop");
- a word for things that are counted ("the number of messages"): a plural after `of` or `many`.

There are no synonyms, no model and no other language: a word list is reviewed like a profile.

A user may also say to do what is written elsewhere ("follow the instructions in the file"). Then `delegates` is true, and
the sources that the user named say what is asked.

A match tells what is *asked*, so that the policy can ask about the rest. It never permits anything by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from langchain_runtime_authz.facts.prohibition import prohibitions

__all__ = ["Request", "only_deeds"]

MAX_WORDS: Final = 20_000
# An address, a path or a hyphenated word is one word; a stop inside one ends no sentence.
_WORD: Final = re.compile(r"[^\W_]+(?:[.@'’_/:+\-][^\W_]+)*|[.!?;:,\n]|(?<= )[\-–—](?= )")
_NEGATIONS: Final = frozenset({"not", "never", "without", "no", "dont", "don't", "don’t", "doesn't", "avoid", "stop"})
_FORBIDS: Final = frozenset({"not", "never", "dont", "don't", "don’t"})
# "He did not pay" forbids nothing.
_STATED: Final = frozenset(
    {"does", "did", "is", "are", "was", "were", "has", "have", "had"} | {"could", "would", "can", "will"}
)
_WHO: Final = frozenset({"i", "we", "you", "they"})
_UNDONE: Final = frozenset({"forget", "fail", "hesitate", "miss", "just", "only", "problem", "later"})
# A text that takes back what was asked before it: "Stop", "No, cancel that", "Never mind".
_HALTS: Final = re.compile(
    r"\W*(?:(?:no|oh|ok|okay|wait|please|actually|sorry|hold on)\b\W*)*"
    r"(?:(?:stop|abort|halt)\b|(?:(?:cancel|undo|forget|scrap)(?: (?:it|that|this|everything|all|the \w+))?|never ?mind|"
    r"do(?: not|n['’]?t)(?: do (?:it|that|this|anything))?)\W*\Z)",
    re.IGNORECASE,
)
_COUNTS: Final = frozenset({"of", "many"})
_BETWEEN: Final = 2  # words from one of these to what it counts: "number of channel messages"
_AUXILIARY: Final = frozenset({"do", "does", "did"})
_REACH: Final = 3  # words that a negation reaches
_WINDOW: Final = 8  # words within which those of one entry stand
_STOPS: Final = frozenset(".!?;:\n")
_PAUSES: Final = _STOPS | frozenset(",-–—")  # what a negation does not reach over
_CARRY_OUT: Final = ("follow", "do", "perform", "complete", "execute", "carry out", "act on", "implement", "take")
_ORDERS: Final = ("instructions", "actions", "tasks", "steps", "todo", "todos", "items", "requests")
_OWN: Final = "following"  # "the following tasks" are the user's own words


@lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    word = word.casefold().replace("’", "'").removesuffix("'s")
    if word == _OWN:
        return word
    for ending in ("ing", "ed", "es", "er", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sle":
        word = word[:-1]  # planned, plan
    return word.removesuffix("e")


@lru_cache(maxsize=1024)
def _phrase(entry: str) -> tuple[str, ...]:
    return tuple(_stem(w) for w in _WORD.findall(entry) if w not in _PAUSES)


@lru_cache(maxsize=1024)
def _deeds(entries: tuple[str, ...]) -> frozenset[str]:
    return frozenset(w for e in entries for w in _phrase(e))


def only_deeds(text: str, entries: tuple[str, ...]) -> bool:
    """Return True if a text has only words by which a user asks for the tool."""
    words = _phrase(text[:200])
    return bool(words) and _deeds(entries).issuperset(words)


_DELEGATIONS: Final = tuple(_phrase(f"{verb} {order}") for verb in _CARRY_OUT for order in _ORDERS)


class Request:
    """The words of a task, ready to be compared. Immutable."""

    __slots__ = ("_asked", "_places", "_words")

    def __init__(self, texts: Sequence[str]) -> None:
        self._asked: dict[tuple[str, ...], bool] = {}
        found = [w for at, t in enumerate(texts) for w in _words(t, at)][-MAX_WORDS:]
        raw = [w for w, _, _ in found]
        self._words = tuple(_stem(w) if w not in _STOPS else w for w in raw)
        self._places: dict[str, list[int]] = {}
        silent = _negated(raw) | _counted(raw) | {i for i, (_, _, forbidden) in enumerate(found) if forbidden}
        halted = max((at for at, t in enumerate(texts) if _HALTS.match(t)), default=0)
        forbidden = {self._words[i]: found[i][1] for i in _forbidden(raw)}  # the last text that does
        for i, word in enumerate(self._words):
            if i not in silent and found[i][1] >= max(halted, forbidden.get(word, 0)):
                self._places.setdefault(word, []).append(i)

    def asks(self, entries: tuple[str, ...]) -> bool:
        """Return True if one of `entries` is among the words. A process asks about few of them."""
        known = self._asked.get(entries)
        if known is None:
            known = self._asked[entries] = any(self._has(_phrase(e)) for e in entries)
        return known

    @property
    def delegates(self) -> bool:
        """True if the words say to do what is written elsewhere."""
        for order in _DELEGATIONS:
            for i in self._places.get(order[0], ()):
                end = self._end(order, i)
                if end is not None and _OWN not in self._words[i + 1 : end]:
                    return True
        return False

    def _has(self, phrase: tuple[str, ...]) -> bool:
        return bool(phrase) and any(self._end(phrase, i) is not None for i in self._places.get(phrase[0], ()))

    def _end(self, phrase: tuple[str, ...], start: int) -> int | None:
        """Return where the `phrase` that begins at `start` ends, in one sentence and close by, or `None`."""
        at = start
        for word in phrase[1:]:
            for i in range(at + 1, min(start + _WINDOW, len(self._words))):
                if self._words[i] in _STOPS:
                    return None
                if self._words[i] == word:
                    at = i
                    break
            else:
                return None
        return at


def _words(text: str, at: int) -> Iterator[tuple[str, int, bool]]:
    """Yield the words of the text numbered `at`, and whether each is forbidden."""
    spans = prohibitions(text)
    ends = iter(spans)
    span = next(ends, None)
    for word in _WORD.finditer(text):
        while span is not None and word.start() >= span.end:
            span = next(ends, None)
        yield word[0].casefold(), at, span is not None and word.start() >= span.start
    yield "\n", at, False


def _negated(words: Sequence[str]) -> set[int]:
    reached: set[int] = set()
    for i, word in enumerate(words):
        if word not in _NEGATIONS:
            continue
        following = words[i + 1 : i + 2]
        if (following and following[0] in _UNDONE) or words[max(0, i - 1)] == "why":
            continue
        if i and words[i - 1] in _AUXILIARY:
            reached.add(i - 1)
        for j in range(i + 1, min(i + 1 + _REACH, len(words))):
            if words[j] in _PAUSES:
                break
            reached.add(j)
    return reached


def _forbidden(words: Sequence[str]) -> Iterator[int]:
    """Yield what follows a prohibition at once."""
    for i, word in enumerate(words[1:], 1):
        before = list(reversed(words[max(0, i - 3) : i - 1]))
        who = before[1:] if before[:1] == ["do"] else before
        stated = (before and before[0] in _STATED) or (who and who[0] in _WHO)
        if words[i - 1] in _FORBIDS and word not in _UNDONE and word not in _STOPS and not stated:
            yield i


def _counted(words: Sequence[str]) -> set[int]:
    """Return the plurals that are counted."""
    reached: set[int] = set()
    for i, word in enumerate(words):
        if word not in _COUNTS:
            continue
        for j in range(i + 1, min(i + 1 + _BETWEEN, len(words))):
            if words[j] in _STOPS:
                break
            if words[j].endswith("s") and not words[j].endswith("ss"):
                reached.add(j)
                break
    return reached
