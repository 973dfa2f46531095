"""Find where each item of an argument comes from: its *class* and its *standing*.

The class is a key of `SAYS`. The standing is `told` for the classes `human` (the user) and `principal`, `known` for
`system` and `internal`, else `outside`. A list has the standing of its weakest item. Provenance is evidence, not an
order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.call_arguments import Item, TracedArguments
from langchain_runtime_authz.facts.normal_forms import fold, forms_of, key, mentions_in, skeleton, tidy
from langchain_runtime_authz.facts.output_reading import Prose, SeenValue

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
    """The user's words, for search. `said(forms)`: True if they hold one of the forms."""

    def __init__(self, texts: Sequence[str]) -> None:
        said = "\n".join(texts)[-MAX_TEXT:]
        hosts = (f for h in _HOST.finditer(said) for f in forms_of(f"https://{h[1].rstrip('.,;:!?*_')}"))
        self._text = fold(tidy(said))
        self.said = lru_cache(maxsize=MAX_KNOWN)(partial(_said, frozenset((*mentions_in(said), *hosts)), self._text))
        self._looks: str | None = None

    def resembles(self, value: str) -> bool:
        """Return True if `value` looks like something the user said, but differs."""
        look = skeleton(tidy(value))
        if len(look) < _LOOKS or self.said(forms_of(value)):
            return False
        if self._looks is None:
            self._looks = "".join(skeleton(self._text[i : i + 1024]) for i in range(0, len(self._text), 1024))
        return _within(look, self._looks)


def _said(tokens: frozenset[str], words: str, value_forms: tuple[str, ...]) -> bool:
    """Return True if `tokens` (forms) or `words` (folded text) hold one of the forms."""
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
    """Return True if `text[i]` continues the word before (`step` 1) or after it (-1)."""
    if not 0 <= i < len(text):
        return False
    c = text[i]
    if c.isalnum() or c in "_@\\":
        return True
    following = i + step
    return c in ".-/:+" and 0 <= following < len(text) and text[following].isalnum()


# Class → its text in a question to an approver. From most to least trusted.
SAYS: Final = {
    "human": "the user said it",
    "principal": "it is the subject's own",
    "system": "a system says it",
    "internal": "an internal source says it",
    "counterparty": "the other side chose it",
    "external": "an external source says it",
    "mentioned": "it stands in a text that was read",
    "unknown": "nobody was seen to say it",
}
CLASSES: Final = tuple(SAYS)
STANDINGS: Final = ("told", "known", "outside")
SHORTEST: Final = 3  # characters; shorter values are not searched in texts, because they occur everywhere
MAX_SAID: Final = 4  # sources reported for one value


class Attribution(NamedTuple):
    """One source of a value: who wrote it, and where it stood (`tool`, `tool/field`)."""

    origin: Any
    source: str | None = None
    counterparty: bool = False


_attribution_json: Final = lru_cache(maxsize=1024)(Attribution._asdict)


class Provenance(NamedTuple):
    """The origin of an argument or of one of its items. An item has no `kind`.

    `lookalike`: the value looks like something the user said, but differs.
    """

    class_: Any  # of `CLASSES`
    standing: Any  # of `STANDINGS`
    asserted_by: Sequence[Attribution] = ()
    mentioned_by: Sequence[Attribution] = ()
    lookalike: bool = False
    kind: Any = None
    items: Sequence[Provenance] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON for a request, with all fields of the schema."""
        found = {
            "class": self.class_,
            "standing": self.standing,
            "asserted_by": list(map(_attribution_json, self.asserted_by[:MAX_SAID])),
            "mentioned_by": list(map(_attribution_json, self.mentioned_by[:MAX_SAID])),
            "lookalike": self.lookalike,
        }
        if self.kind is not None:
            found |= {"kind": self.kind, "items": list(map(Provenance.to_json, self.items))}
        return found


class TextsRead:
    """Texts (oldest first) and values that this process read in outputs.

    `found`: key → sightings of values in the rest of long outputs, which only this process has read.
    """

    __slots__ = ("_folded", "_found", "prose")

    def __init__(self, prose: Sequence[Prose] = (), found: Mapping[str, Sequence[SeenValue]] | None = None) -> None:
        self.prose = prose
        self._found = found or {}
        self._folded: list[str] | None = None

    def mentions(self, phrase: str) -> list[Prose]:
        """Return the texts that contain `phrase` in lower case, newest first."""
        if self._folded is None:  # at the first search
            self.prose = [p._replace(text=tidy(p.text)) for p in self.prose]
            self._folded = [p.text.casefold() for p in self.prose]
        found = [p for p, folded in zip(self.prose, self._folded, strict=True) if phrase in folded]
        return found[::-1]

    def seen(self, ledger: Mapping[str, Sequence[SeenValue]], keys: Sequence[str]) -> Mapping[str, Sequence[SeenValue]]:
        """Return key → sightings from `ledger` and from this process."""
        if not self._found:
            return ledger
        return {k: list(dict.fromkeys((*ledger.get(k, ()), *self._found.get(k, ())))) for k in keys}


NO_TEXTS: Final = TextsRead()


class Evidence(NamedTuple):
    """All that is known of values' sources. `own`: forms of the subject's identifiers."""

    words: UserWords
    own: frozenset[str] = frozenset()
    seen: Mapping[str, Sequence[SeenValue]] = MappingProxyType({})
    texts: TextsRead = NO_TEXTS


def trace_arguments(traced: TracedArguments, evidence: Evidence) -> dict[str, Provenance]:
    """Return the provenance of the critical and date arguments that are not empty."""
    sources: dict[str, Provenance] = {}
    for name, kind, value, items, _ in traced.arguments:
        if items is None:
            sources[name] = Provenance("unknown", "outside", kind=kind)
        elif items and items[0].value is value:
            sources[name] = Provenance(*_item(items[0], evidence)[:5], kind)
        elif items:
            found = [_item(item, evidence) for item in items]
            sources[name] = Provenance(
                class_=max((p.class_ for p in found), key=CLASSES.index),
                standing=max(found, key=_weakness).standing,
                lookalike=any(p.lookalike for p in found),
                kind=kind,
                items=found,
            )
    return sources


_TOLD: Final = Provenance("human", "told", (Attribution("human"),))
_UNKNOWN: Final = Provenance("unknown", "outside")
_OWN: Final = Provenance("principal", "told", (Attribution("principal"),))


def _weakness(found: Provenance) -> tuple[int, int]:
    return STANDINGS.index(found.standing), CLASSES.index(found.class_)


def _item(item: Item, evidence: Evidence) -> Provenance:
    weakest: Provenance | None = None
    for part in item.parts:
        if evidence.words.said(part):
            found = _TOLD
        elif evidence.own.intersection(part):
            found = _OWN
        else:
            found = _seen(part, item.value, evidence)
        if weakest is None or _weakness(found) > _weakness(weakest):
            weakest = found
    return weakest or _UNKNOWN


def _seen(part: tuple[str, ...], value: object, evidence: Evidence) -> Provenance:
    sightings = [s for f in part for s in evidence.seen.get(key(f), ())]
    asserted = sorted((s for s in sightings if s.asserted), key=lambda s: CLASSES.index(_class(s)))
    by = tuple(dict.fromkeys(map(_attribution, asserted)))
    within = list(dict.fromkeys(_attribution(s) for s in sightings if not s.asserted))
    if not sightings and isinstance(value, str):
        within = _mentions(value, evidence.texts)
    class_ = _class(asserted[0]) if asserted else "mentioned" if within else "unknown"
    standing = "known" if class_ in ("system", "internal") else "outside"
    lookalike = isinstance(value, str) and evidence.words.resembles(value)
    return Provenance(class_, standing, by, within, lookalike=lookalike)


def _class(seen: SeenValue) -> str:
    return "counterparty" if seen.counterparty else seen.origin


def _attribution(seen: SeenValue) -> Attribution:
    return Attribution(seen.origin, seen.source, seen.counterparty)


def _mentions(value: str, texts: TextsRead) -> list[Attribution]:
    phrase = tidy(value).casefold()
    said = texts.mentions(phrase) if len(phrase) >= SHORTEST else ()
    return list(dict.fromkeys(Attribution(p.origin, p.source) for p in said))
