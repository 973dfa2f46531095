"""Tell plain orders from other sentences.

The words are in `languages/orders.json`: closed lists of grammar, not phrases of doubt.
An order is plain if each of its parts, between commas and conjunctions, is known:

- it begins with a verb, or has a request like "can you"; the verb may be any word that the lists do not name;
- otherwise it has only values, words of the tools, prepositions, courtesies, and nouns behind an article or "for";
- a part that begins with a subject or "because" is a remark, unless it has a word that may limit or report something.

Each word becomes a letter, so that a part is matched by a short regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from langchain_runtime_authz._regex import lazy
from langchain_runtime_authz.tool_profile import ToolProfile

VALUE: Final = "\ue000"  # stands for each character of a value
QUOTE: Final = "\ue001"  # for each character of another quotation
# A list of words, and its letter. The first list that has a word decides.
_LETTERS: Final = {
    "amend": "G", "request": "M", "since": "J", "hence": "B", "courtesy": "O", "and": "A", "equals": "e", "for": "P", "bounds": "S", "article": "D",
    "subject": "R", "reads": "H", "that": "T", "pronoun": "I", "link": "F", "never_verb": "Q",
}  # fmt: skip
_LISTS: Final = json.loads((Path(__file__).parent / "languages" / "orders.json").read_text(encoding="utf-8"))
_HAN: Final = "\u3400-\u9fff"


def _lexer() -> str:
    """Return a pattern with a group for each letter; Chinese ones come last."""
    spaced, unspaced = list[str](), list[str]()
    for name, letter in _LETTERS.items():
        said = {key: "|".join(sorted(words, key=len, reverse=True)) for key, words in _LISTS[name].items()}
        said = {key: words.replace(r"\w", rf"[^\W{_HAN}]") for key, words in said.items()}
        signs = said.pop("zh", "")
        spaced.append(rf"(?P<{letter}>(?<![^\W{_HAN}])(?:{'|'.join(said.values())})(?:(?<=['\u2019])|(?![^\W{_HAN}])))")
        unspaced += [f"(?P<{letter}_>{signs})"] if signs else []
    every = "|".join(sign for several in _LISTS.values() for sign in several.get("zh", ()))
    return "|".join([
        f"(?P<V>{VALUE}+)|(?P<K>{QUOTE}+)",
        r"(?P<C>(?<![^\n])\s*(?:[*\u2022]|\d{1,2}[.)])\s|[,;\uff0c\uff1b\u3001()\u2013\u2014\u2026\n]|-(?!\w))",
        *spaced, *unspaced, f"(?P<Y>(?:(?!{every})[{_HAN}]){{1,2}})",
        rf"(?P<Z>[^\W_{_HAN}]*\d[^\W{_HAN}]*)|(?P<X>[^\W\d_{_HAN}]+(?:-[^\W{_HAN}]+)*)",
        r"(?P<U>[?\uff1f\u5417])|(?P<E>[.!\u3002\uff01])|(?P<L>[:\uff1a])",
    ])  # fmt: skip


_WORD: Final = re.compile(r"[^\W\d_]+")
_TOKEN: Final = lazy(_lexer(), re.IGNORECASE)
_ITEM: Final = "(?:[VFNOBMKI]|D(?:[XNWH]{0,2}|V[NW]{1,2})|PD?[XNWH]{0,2})"
_LEAD: Final = "[OBM]*(?:[FP][DFP]*V)?[OBM]*"
_WHY: Final = "(?:J[^S]*)?"
_KINDS: Final = {  # of a part of a sentence; the first that matches decides
    "courtesy": lazy("[OBM]*"),
    "text": lazy(rf"{_LEAD}[XWG]{_ITEM}*[VID]{_ITEM}*T.*"),
    "it": lazy(rf"{_LEAD}WT?{_ITEM}*[IT]{_ITEM}*{_WHY}"),
    "read": lazy(rf"{_LEAD}H[^S]*"),
    "given": lazy("[OB]*D?N{1,2}e[VK]O*"),  # as in "the memo is x"
    "order": lazy(
        rf"{_LEAD}(?:[XWG]T?|N(?=D)){_ITEM}*V{_ITEM}*{_WHY}|(?=.*M){_ITEM}*V{_ITEM}*[XWG]?{_ITEM}*"
        rf"|[OMB]*(?:[NOMBI]*Y){{1,2}}(?:[FNOMBI]*V)+[FNOMBI]*|(?=.*V)[OMB]*(?:F(?:[VFNOMBI]*Y){{1,2}}|P(?:[VFNOMBI]*Y){{1,4}})[VFNOMBI]*"
    ),
    "verb": lazy(rf"{_LEAD}(?:[XWG]T?{_ITEM}+|W)"),
    "items": lazy(rf"{_ITEM}+{_WHY}"),
    "remark": lazy("[OB]*[JRDVT][^S]*"),
}  # fmt: skip
_ASKS: Final = lazy("[OABCE]*M")
_ASIDE: Final = lazy(
    rf"[OACELMBUVK]*|[OABCM]*H[^SGQ]*|[ZC]+(?:{_ITEM}|[CL])*E*|[OC]+(?:X{{1,2}}|{_ITEM}*)E*|[OAC]*[RDJ][^SV]*|[OACLM]*[^SV]*U[EU]*"
)


class Known(NamedTuple):
    """Words of the tools: names, verbs, and whether a text may be dictated."""

    nouns: Collection[str] = frozenset()
    verbs: Collection[str] = frozenset()
    told: bool = False


_UNKNOWN: Final = Known()


class _Part(NamedTuple):
    letters: str
    start: int
    end: int
    colon: bool  # whether it follows a colon
    beside: bool  # whether it follows a comma or a stop


def words_of_tool(name: str, arguments: Collection[str], profile: ToolProfile) -> frozenset[str]:
    """Return the words of a tool, but for the verb of its name."""
    verb, _, rest = name.partition("_")
    words = frozenset(_WORD.findall(" ".join((verb, rest, *arguments, *profile.intent)).lower()))
    return (words | {f"{word}s" for word in words}) - {verb.lower()}


def letters(text: str, known: Known = _UNKNOWN) -> list[tuple[str, int, int]]:
    """Return a letter for each word of a text, with its span."""
    found = []
    for match in _TOKEN.finditer(text):
        letter, word = (match.lastgroup or "")[0], match[0].lower()
        if letter in "XH":
            letter = "W" if word in known.verbs else "N" if word in known.nouns else letter
        found.append((letter, *match.span()))
    return found


def _parts(found: Sequence[tuple[str, int, int]]) -> list[_Part]:
    parts, at, colon = list[_Part](), 0, False
    said = "".join(letter for letter, _, _ in found).replace("VLV", "VFV")
    for edge in (*re.finditer("[ACEUL]", said), None):
        end = edge.start() if edge else len(said)
        if at < end:
            beside = said[at - 1 : at] in ("C", "E")
            parts.append(_Part(said[at:end], found[at][1], found[end - 1][2], colon, beside))
            colon = False
        colon, at = colon or bool(edge and edge[0] == "L"), end + 1
    return parts


def unclear(text: str, own: Sequence[Sequence[tuple[int, int]]], known: Known, shown: str = "") -> str | None:
    """Return what keeps a sentence from being a plain order of a step, or None.

    Args:
        text: the sentence, with `VALUE` and `QUOTE` for values and quotations.
        own: the spans in it where each of the step's values stands.
        known: the words of the tools, and the verbs of the step.
        shown: the sentence as it was written.
    """
    found = letters(text, known)
    said = "".join(letter for letter, _, _ in found)
    if "U" in said and _ASKS.match(said) is None:
        return "its sentence is a question"
    ordered = pointed = colon = idle = False  # `idle`: a verb orders nothing of its own
    left = own  # values that no part orders yet
    before = aside = ""  # "before" an order or "after" it
    for part in _parts(found):
        kind = next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(part.letters)), "")
        colon = part.colon or (colon and before == "courtesy")
        before = kind
        kind = "" if idle and colon and (not ordered or (kind == "items" and "V" in part.letters)) else kind
        idle = idle or kind == "read" or (kind == "verb" and "W" not in part.letters)
        if (kind == "text" or (ordered and (colon or part.letters[0] == "T"))) and known.told and not aside:
            ordered, left = True, [spans for spans in left if all(e <= part.start for _, e in spans)]
            break
        if kind == "read" and not colon:
            continue
        alone = kind == "items" and not (ordered or part.letters[0] in "PO" or re.match("F.*V", part.letters))
        if alone or (kind == "given" and not (ordered and "W" in said)):
            kind = "remark" if _KINDS["remark"].fullmatch(part.letters) else ""
        if aside == "before" and kind in ("order", "it") and not colon:
            aside = ""
        if aside or kind == "remark":
            aside = aside or ("after" if ordered else "before")
            if colon or "S" in part.letters or (aside == "after" and not {*part.letters}.isdisjoint("VT")):
                kind = ""
        elif kind in ("order", "it", "verb"):
            kind = "" if ordered and (colon or (kind == "verb" and part.beside)) else kind
            ordered, pointed = True, pointed or kind == "it"
        if not aside:
            left = [spans for spans in left if not any(s < part.end and part.start < e for s, e in spans)]
        if not kind:
            return f"it is unclear what this means: {(shown or text)[part.start : part.end].strip()[:60]!r}"
    if not ordered or aside == "before":
        return "its sentence orders nothing"
    return "no verb orders it" if left and not pointed else None


def changes_nothing(text: str, known: Known) -> bool:
    """Return True if a sentence next to an order does not change it."""
    said = "".join(letter for letter, _, _ in letters(text, known))
    return bool(_ASIDE.fullmatch(said)) or (
        "G" not in said and not {*said}.isdisjoint("VW") and unclear(text, (), known) is None
    )


def bounded(text: str) -> bool:
    """Return True if a text has a word that may limit or report something."""
    return any(letter == "S" for letter, _, _ in letters(text))
