"""Find the parts of an answer that say more than consent or the question itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from langchain_runtime_authz.digest import json_text
from langchain_runtime_authz.mandate.languages import Language, languages
from langchain_runtime_authz.pep.approval_answers import NO, YES

MAX_CONSENT: Final = 200  # characters; a longer answer counts as a correction
MAX_DEPTH: Final = 16
OFFERS: Final = ("options", "choices", "allowed", "enum")  # fields in which a question lists its options
_CLOSED: Final = YES | NO | {"decline", "declined"}
_NAMES: Final = ("value", "label", "id")  # names of an option that is a mapping


def free_text(answer: object, question: object, schema: object = None) -> str:
    """Return the parts of an answer that correct the task, as text or JSON; else "".

    `schema`: the JSON schema of answers, whose choices say nothing new.
    """
    choices, words = set(_choices_in(schema)), " ".join(texts := [*_texts_in(question)])
    closed = _CLOSED | _offered(question)
    if not isinstance(answer, str):
        closed |= {_plain(t) for t in texts}

    def is_news(text: str) -> bool:
        plain = _plain(text)
        known = not plain or plain in closed or text in choices
        return not known and not any(_assents(text, words, each) for each in languages())

    said = _news_in(answer, is_news)
    return "" if said is None else said.strip() if isinstance(said, str) else json_text(said)


def _plain(text: str) -> str:
    return text.casefold().strip()


def _news_in(value: object, is_news: Callable[[str], bool], depth: int = 0) -> Any:
    """Return the parts of an answer that correct the task; None if it has none."""
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str):
        return value if is_news(value) else None
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        # A field's name is not an answer. But a name with a blank may be a sentence that the user wrote.
        found = {
            str(k): v if said is None else said
            for k, v in value.items()
            if (said := _news_in(v, is_news, depth + 1)) is not None or len(str(k).split()) > 1
        }
        return found or None
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return [said for v in value if (said := _news_in(v, is_news, depth + 1)) is not None] or None
    return value


def _assents(text: str, question: str, language: Language) -> bool:
    """Return True if a text only consents to `question`, perhaps with thanks."""
    # A digit, a word of the question (perhaps a choice) or an open end may say more than consent.
    if len(text) > MAX_CONSENT or any(c.isdigit() for c in text):
        return False
    tokens = [t for t in language.tokens(text) if t.kind != "sep"]
    words = [t.lower for t in tokens if t.kind != "end"]
    choices = {*re.findall(r"\w+", question.lower())} - _CLOSED
    odd = any(t.text.strip("\n;!") not in ("", ".") for t in tokens if t.kind == "end")  # a question, or it breaks off
    said = " ".join(words)
    plain = not odd and choices.isdisjoint(words) and language.assent.search(said) is not None
    return plain and language.assents.fullmatch(said) is not None


def _choices_in(schema: object) -> Iterator[str]:
    """Yield the texts that a question's schema offers as answers."""
    if isinstance(schema, Mapping):
        listed = schema.get("enum")
        named = [schema.get("const"), *(listed if isinstance(listed, list) else ())]
        yield from (v for v in named if isinstance(v, str))
    for part in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ():
        yield from _choices_in(part)


def _offered(question: object) -> frozenset[str]:
    if not isinstance(question, Mapping):
        return frozenset()
    items = [i for name in OFFERS if isinstance(question.get(name), list | tuple) for i in question[name]]
    named = [i.get(n) for i in items if isinstance(i, Mapping) for n in _NAMES]
    return frozenset(_plain(i) for i in (*items, *named) if isinstance(i, str))


def _texts_in(value: object, depth: int = 0) -> Iterator[str]:
    """Yield all texts in a question, at any depth."""
    if isinstance(value, str):
        yield value
    elif depth < MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item, depth + 1)
