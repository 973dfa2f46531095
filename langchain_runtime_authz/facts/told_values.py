"""Tell whether the user ever said a value, as evidence for `facts.provenance`.

The user's words are the messages in the ledger, without quoted or pasted parts and without prohibitions
(`mandate.message_places.stated`). A value in these words is evidence, not an order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final

from langchain_runtime_authz.facts.normal_forms import fold, forms, mentions, skeleton, tidy

MAX_TEXT: Final = 20_000  # number of newest characters that are searched
MAX_KNOWN: Final = 128  # values whose result is cached
_TRIES: Final = 64
_SHORTEST: Final = 2  # characters of a text; one letter names nothing
_LOOKS: Final = 4  # characters; shorter values resemble too many words
# A host without `https://` or `www.`, with a path or with a common ending that is not also a file extension.
_HOST: Final = re.compile(
    r"(?<![\w@.\-/:])((?:[a-z0-9][a-z0-9\-]{0,62}\.){1,4}(?:com|org|net|edu|gov|int|[a-z]{2,24}(?=/))(?:/[^\s<>\"'`(){}\[\]|\\]{0,500})?)"
    r"(?![\w@\-\\]|[.:]\w)",
    re.IGNORECASE | re.ASCII,
)


class UserWords:
    """The user's words, prepared for search. `said(forms)`: the user said one of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        said = "\n".join(texts)[-MAX_TEXT:]
        hosts = (f for h in _HOST.finditer(said) for f in forms(f"https://{h[1].rstrip('.,;:!?*_')}"))
        self._text = fold(tidy(said))
        self.said = lru_cache(maxsize=MAX_KNOWN)(partial(_said, frozenset((*mentions(said), *hosts)), self._text))
        self._looks: str | None = None

    def resembles(self, value: str) -> bool:
        """Return True if `value` looks like something the user said, but differs."""
        look = skeleton(tidy(value))
        if len(look) < _LOOKS or self.said(forms(value)):
            return False
        if self._looks is None:
            self._looks = "".join(skeleton(self._text[i : i + 1024]) for i in range(0, len(self._text), 1024))
        return _within(look, self._looks)


def _said(tokens: frozenset[str], words: str, value_forms: tuple[str, ...]) -> bool:
    """Return True if `tokens` or `words` hold one of the forms."""
    # A form of the kind `text` must stand in `words` as whole words.
    for form in value_forms:
        kind, _, text = form.partition(":")
        if form in tokens if kind != "text" else len(text) >= _SHORTEST and _within(text, words):
            return True
    return False


def _within(phrase: str, text: str) -> bool:
    at = -1
    for _ in range(_TRIES):
        at = text.find(phrase, at + 1)
        if at < 0:
            return False
        if not _joined(text, at - 1, -1) and not _joined(text, at + len(phrase), 1):
            return True
    return False


def _joined(text: str, i: int, step: int) -> bool:
    """Return True if the character at `i` extends the phrase from which `step` leads."""
    if not 0 <= i < len(text):
        return False
    c = text[i]
    if c.isalnum() or c in "_@\\":
        return True
    following = i + step
    return c in ".-/:+" and 0 <= following < len(text) and text[following].isalnum()
