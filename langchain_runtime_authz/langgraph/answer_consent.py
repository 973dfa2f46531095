"""Tell consent from a correction in an answer to an application's own question."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from langchain_runtime_authz.facts.answer_corrections import CLOSED, MAX_DEPTH
from langchain_runtime_authz.mandate.languages import Language, languages

MAX_CONSENT: Final = 200  # characters; a longer answer counts as a correction


def choices_in(schema: object) -> Iterator[object]:
    """Yield the texts that a question's schema offers as answers."""
    if isinstance(schema, Mapping):
        listed = schema.get("enum")
        named = [schema.get("const"), *(listed if isinstance(listed, list) else ())]
        yield from (v for v in named if isinstance(v, str))
    for part in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ():
        yield from choices_in(part)


def without_consent(answer: object, offered: Collection[object], question: str, depth: int = MAX_DEPTH) -> object:
    """Return `answer` with "" for texts that are `offered` or assent to `question`."""
    if isinstance(answer, str):
        return "" if answer in offered or any(_assents(answer, question, each) for each in languages()) else answer
    if depth and isinstance(answer, Mapping):
        return {k: without_consent(v, offered, question, depth - 1) for k, v in answer.items()}
    if depth and isinstance(answer, list | tuple):
        return [without_consent(v, offered, question, depth - 1) for v in answer]
    return answer


def _assents(text: str, question: str, language: Language) -> bool:
    """Return True if a text only consents to `question`, perhaps with thanks."""
    # A digit, a word of the question (perhaps a choice) or an open end may say more than consent.
    if len(text) > MAX_CONSENT or any(c.isdigit() for c in text):
        return False
    tokens = [t for t in language.tokens(text) if t.kind != "sep"]
    words, at, yes = [t for t in tokens if t.kind != "end"], 0, False
    choices = {*re.findall(r"\w+", question.lower())} - CLOSED
    odd = any(t.text.strip("\n;!") not in ("", ".") for t in tokens if t.kind == "end")  # a question, or it breaks off
    if odd or any(t.lower in choices for t in words):
        return False
    while taken := (said := language.match("assents", words, at)) or language.match("thanks", words, at):
        yes, at = yes or bool(said), at + taken
    return yes and at == len(words)
