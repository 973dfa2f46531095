"""Find corrections in answers to questions that a tool or a node itself asks.

A plain answer does not change the task; every other answer is a correction. Plain answers are booleans, numbers, empty
answers, options that the question offers, words in `CLOSED`, and mappings or lists of these. A field of a form that the
user returns unchanged is plain too. A machine wrote its text, so the text is never pinned as the user's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from langchain_runtime_authz.digest import json_text

CLOSED: Final = frozenset(
    (  # noqa: SIM905  (words)
        "yes no y n ok okay true false approve approved accept accepted reject rejected deny denied decline "
        "declined cancel cancelled confirm confirmed continue proceed ignore"
    ).split()
)
OFFERS: Final = ("options", "choices", "allowed", "enum")  # fields in which a question lists its options
_NAMES: Final = ("value", "label", "id")  # names of an option that is a mapping
MAX_DEPTH: Final = 16


def free_text(answer: object, question: object) -> str:
    """Return the parts of an answer that correct the task, as text or JSON; else ""."""
    if isinstance(answer, str):
        return "" if _plain(answer) in CLOSED | _offered(question) else answer.strip()
    closed = CLOSED | _offered(question) | {_plain(t) for t in texts_in(question)}
    said = _said(answer, closed)
    return "" if said is None else json_text(said)


def _plain(text: str) -> str:
    return text.casefold().strip()


def _said(value: object, closed: frozenset[str], depth: int = 0) -> Any:
    """Return the parts of an answer that correct the task; None if it has none."""
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str):
        return None if not _plain(value) or _plain(value) in closed else value
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        # A field's name is not an answer. But a name with a blank may be a sentence that the user wrote.
        found = {
            str(k): v if said is None else said
            for k, v in value.items()
            if (said := _said(v, closed, depth + 1)) is not None or len(str(k).split()) > 1
        }
        return found or None
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return [said for v in value if (said := _said(v, closed, depth + 1)) is not None] or None
    return value


def _offered(question: object) -> frozenset[str]:
    if not isinstance(question, Mapping):
        return frozenset()
    items = [i for name in OFFERS if isinstance(question.get(name), list | tuple) for i in question[name]]
    named = [i.get(n) for i in items if isinstance(i, Mapping) for n in _NAMES]
    return frozenset(_plain(i) for i in (*items, *named) if isinstance(i, str))


def texts_in(value: object, depth: int = 0) -> Iterator[str]:
    """Yield all texts in a question, at any depth."""
    if isinstance(value, str):
        yield value
    elif depth < MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item, depth + 1)
