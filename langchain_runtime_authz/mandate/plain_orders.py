"""Tell plain orders from other sentences.

Words have kinds: `languages/orders.json` has closed lists of grammar. A sentence is cut into parts at commas, colons and
conjunctions. It is plain if `languages/orders.grammar` knows each part, and `_next_phase` lets it stand where it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Final, Literal, NamedTuple

from langchain_runtime_authz._text import lazy
from langchain_runtime_authz.mandate.languages import FOLDER
from langchain_runtime_authz.tool_profile import ToolProfile

Spans = Sequence[tuple[int, int]]
Values = Sequence[Spans]  # the places of each value
VALUE: Final = "\ue000"  # stands for each character of a value
WHEN: Final = "\ue002"  # for each character of a day or a time
QUOTE: Final = "\ue001"  # for each character of another quotation
_LISTS: Final = json.loads((FOLDER / "orders.json").read_text(encoding="utf-8"))
_VERBS: Final = json.loads((FOLDER / "verbs.json").read_text(encoding="utf-8"))
_SCALES: Final = [
    {value: frozenset(word for words in said.values() for word in words) for value, said in scale.items()}
    for scale in json.loads((FOLDER / "values.json").read_text(encoding="utf-8"))
]
_MONEY: Final = sorted({word.lower() for code in ("EUR", "USD", "GBP", "CNY") for word in (code, *_SCALES[-1][code])})
_LISTS["money"]["words"] = [word for word in _MONEY if word[0].isascii() and word.isalpha()]
_LISTS["money"]["signs"] = [re.escape(word) for word in _MONEY if word not in _LISTS["money"]["words"]]
CURRENCIES: Final = "|".join((*(rf"{word}(?!\w)" for word in _LISTS["money"]["words"]), *_LISTS["money"]["signs"]))
_MONEY_BEHIND: Final = lazy(rf"[ \u00a0\u202f]?(?:{CURRENCIES})", re.IGNORECASE)
_MONEY_BEFORE: Final = lazy(rf"(?<!\w)(?:{CURRENCIES})[ \u00a0]?\Z", re.IGNORECASE)
PERIODS: Final = {  # in English, as arguments are named → in all languages
    unit: "|".join(said[n] for said in _LISTS["period"].values() if n < len(said) - 1)
    for n, unit in enumerate(("minute", "hour", "day", "week", "month", "quarter", "year"))
}
_CODES: Final = {kind: chr(0x100 + n) for n, kind in enumerate((*_LISTS, "verb", "noun"))}  # for rules
_OPEN: Final = frozenset(("word", "read", "unit", "spare", "decides", "consent", "doubt", "third", "daytime", "han"))
_LETTERS: Final = re.compile(r"[^\W\d_]+")
# Pronouns at the end of a verb: "rappelle-moi", "bórralo", "resérvanos". The group means "it" or "them".
_ENCLITICS: Final = (
    re.compile(r"-(?:moi|toi|nous|lui|leur|me|lhes?|(les?|las?|los?|[oa]s?))$|(l[oa]s?|li)$"),
    re.compile(r"(?:me|te|ve|nos|se|mi|ti|ci|vi|glie|ce)(l[oa]s?|li)$|(?:me|te|ve|nos|les?|se|mi|ti|ci|vi|gli)$"),
)
_ACCENTS: Final = str.maketrans("áéíóú", "aeiou")  # "resérvame" of "reserva"
_ALIKE: Final = str.maketrans("\u017f\u0131", "si")  # long s, dotless i
_SPACED: Final = r"[^\W\u3400-\u9fff]"  # a letter of a script with blanks between words


def _lexer() -> str:
    """Return a pattern with a group for each kind. The first match decides."""
    spaced, unspaced = list[str](), list[str]()
    for kind, words in _LISTS.items():
        said = {language: "|".join(sorted(one, key=len, reverse=True)) for language, one in words.items()}
        others = "|".join(said.pop(key) for key in ("zh", "signs") if key in said)
        unspaced += [f"(?P<{kind}_>{others})"] if others else []
        begin = _first_letters([rule for language in said for rule in words[language]])
        spaced += [f"(?P<{kind}>{begin}(?:{'|'.join(said.values())}))".replace(r"\w", _SPACED)] if said else []
    whole = rf"(?<!{_SPACED})(?:{'|'.join(spaced)})(?:(?<=['\u2019])|(?!-?{_SPACED}))"
    return "|".join((whole, *unspaced))


def _first_letters(rules: Sequence[str]) -> str:
    """Return a look-ahead for the first letters of rules, or "" if it needs more."""
    if not all(rule[0].isalpha() and rule[1:2] not in ("?", "*", "{") for rule in rules):
        return ""
    return f"(?=[{''.join(sorted({rule[0] for rule in rules}))}])"


def _lower(text: str) -> str:
    """Return a text in lower case, with each letter where it was."""
    found = text.translate(_ALIKE).lower()
    return found if len(found) == len(text) else "".join(letter.lower()[:1] for letter in text.translate(_ALIKE))


def _grammar() -> tuple[dict[str, re.Pattern[str]], list[tuple[re.Pattern[str], str]]]:
    """Return the rules of `orders.grammar`: by name, and of ambiguous words."""
    rules, meanings = dict[str, str](), list[tuple[re.Pattern[str], str]]()
    written = (FOLDER / "orders.grammar").read_text(encoding="utf-8")
    for name, sign, rule in re.findall(r"^(\w+)( =|:) (.+)$", written, re.MULTILINE):
        coded = re.sub("[A-Za-z_]+", lambda said: rules.get(said[0]) or _CODES[said[0].lower()], rule)
        coded = f"(?:{coded.replace(' ', '')})"
        if sign == ":":
            meanings.append((lazy(coded), _CODES[name.lower()]))
        else:
            rules[name] = coded
    return {name: lazy(rule) for name, rule in rules.items()}, meanings


_TOKEN: Final = lazy(_lexer())  # of texts in lower case: twice as fast as with `IGNORECASE`
_GRAMMAR, _MEANINGS = _grammar()
# The kinds of parts, before an order and behind it. The first that a part follows decides.
_BEFORE: Final = "courtesy", "text", "it", "read", "order", "verb_alone", "before", "remark"
_BEHIND: Final = "courtesy", "text", "told_more", "it", "read", "given", "more", "order", "verb_alone", "kept", "aside"


class Known(NamedTuple):
    """Words of the tools: names, verbs, and whether a text may be dictated."""

    nouns: frozenset[str] = frozenset()
    verbs: frozenset[str] = frozenset()
    told: bool = False
    either: frozenset[str] = frozenset()  # verbs that are nouns behind "a": "mail"


class _Part(NamedTuple):
    codes: str
    spans: Spans  # of its words
    start: int
    end: int
    after_colon: bool
    before: str  # the code of the edge before it
    behind: str


_Phase = Literal["start", "remark", "ordered", "aside"]  # a remark stands before an order, an aside behind it


@cache
def synonyms(verb: str) -> frozenset[str]:
    """Return the forms of all verbs that say the same as an English verb."""
    found = {verb}
    for said in (group for group in _VERBS if verb in group["en"]):
        found.update(*said.values())
        english = (*said["en"], *said.get("also", ()))
        found.update(f"mind {form}ing" for one in english for form in (one, one[:-1], one + one[-1]))
    return frozenset(found)


def scale_of(value: object) -> Mapping[str, frozenset[str]]:
    """Return the choices of which a value is one, with the words for each."""
    return next((scale for scale in _SCALES if value in scale), {})


def is_money(text: str, start: int, end: int) -> bool:
    """Return True if a currency stands next to a number."""
    return bool(_MONEY_BEHIND.match(text, end) or _MONEY_BEFORE.search(text[max(0, start - 12) : start]))


def words_of_tool(name: str, arguments: Collection[str], profile: ToolProfile) -> frozenset[str]:
    """Return the words of a tool, but for the verb of its name."""
    verb, _, rest = name.partition("_")
    fields = profile.trust if isinstance(profile.trust, dict) else ()
    said = frozenset(_LETTERS.findall(" ".join((verb, rest, *arguments, *profile.intent, *fields)).lower()))
    return said.union(*((f"{word}s", word.removesuffix("s")) for word in said)) - {verb.lower()}


@lru_cache(maxsize=256)
def _word_codes(text: str, known: Known) -> tuple[str, Spans]:
    """Return the codes of the words of a text, and their spans."""
    codes, spans, end, low = "", list[tuple[int, int]](), 0, _lower(text)
    while match := _TOKEN.search(low, end):
        kind, (start, end) = (match.lastgroup or "").removesuffix("_"), match.span()
        longer = (text[start : start + n] for n in (4, 3, 2) if "\u3400" <= text[start] <= "\u9fff")
        if word := next((each for each in longer if each in known.verbs or each in known.nouns), None):
            kind, end = "word", start + len(word)  # 关闭
        touches = kind == "han" and spans[-1:] == [(start - 1, start)]
        kind = "formal" if kind == "she" and text[start] == "S" else kind  # "öffnen Sie"
        kind = _known_kind(kind, text[start:end].lower(), known, codes[-1:])
        if touches and kind == "han" and codes[-1:] == _CODES["verb"]:
            codes = codes[:-1] + _CODES["han"]  # 发 in 发票 is part of another word
        pronoun = pronoun_in(text[start:end], known.verbs) if kind == "word" else None
        codes += _CODES[kind] if pronoun is None else _CODES["verb"]
        spans.append((start, end))
        if pronoun:
            codes += _CODES["pronoun"]
            spans.append((end - len(pronoun), end))
    for rule, code in _MEANINGS:
        codes = rule.sub(code, codes)
    return codes, spans


def _known_kind(kind: str, word: str, known: Known, before: str) -> str:
    """Return the kind of a word behind the code `before`."""
    if kind not in _OPEN:
        return "link" if kind == "away" and word in known.nouns else kind
    verb = word in known.verbs or (before == _CODES["request"] and f"mind {word}" in known.verbs)
    noun = word in known.nouns or (before == _CODES["some"] and word in known.either)
    return "noun" if noun else "verb" if verb else kind


def pronoun_in(word: str, verbs: Collection[str]) -> str | None:
    """Return the "it" of a verb: "la" of "pagala", "" of "págame"; else None."""
    for found in (enclitic.search(word.lower()) for enclitic in _ENCLITICS):
        verb = word[: found.start()].lower() if found else ""
        if found and (verb in verbs or verb.translate(_ACCENTS) in verbs):
            return next(filter(None, found.groups()), "")
    return None


def _any(codes: str, *kinds: str) -> bool:
    return any(_CODES[kind] in codes for kind in kinds)


def says(kind: str, text: str, known: Known) -> bool:
    """Return True if a text has a word of a kind, or words that follow a rule."""
    codes = _word_codes(text, known)[0]
    return _any(codes, kind) if kind in _CODES else _GRAMMAR[kind].search(codes) is not None


def starts_of(rule: str, text: str, known: Known) -> list[int]:
    """Return where words of a text begin to follow a rule."""
    codes, spans = _word_codes(text, known)
    return [spans[found.start()][0] for found in _GRAMMAR[rule].finditer(codes)]


def says_anew(text: str, own: Spans, known: Known) -> bool:
    """Return True if a part with a value of an order says "again".

    `own`: the spans of its values. Without one, a part with its verb counts.
    """
    codes, spans = _word_codes(text, known)
    parts = (part for part in _parts(codes, spans) if _follows(part, "anew"))
    return any(_outside([own], part.start, part.end) != [own] if own else _any(part.codes, "verb") for part in parts)


def _parts(codes: str, spans: Spans) -> Iterator[_Part]:
    codes, at, colon = _GRAMMAR["pair"].sub(_CODES["link"], codes), 0, False
    codes = _GRAMMAR["gathered"].sub(lambda said: said[0].replace(_CODES["and"], _CODES["link"]), codes)
    for edge in (*_GRAMMAR["edge"].finditer(codes), None):
        end = edge.start() if edge else len(codes)
        before, said, behind = codes[max(0, at - 1) : at], codes[at:end], codes[end : end + 1]
        if said:
            yield _Part(said, spans[at:end], spans[at][0], spans[end - 1][1], colon, before, behind)
            colon = colon and _GRAMMAR["courtesy"].fullmatch(said) is not None  # "pay: please, Anna 45"
        colon, at = colon or behind == _CODES["colon"], end + 1


def _rule_of(part: _Part, phase: _Phase) -> str:
    """Return the rule that a part follows, or "" if it may not stand here."""
    rules = _BEHIND if phase in ("ordered", "aside") else _BEFORE
    rule = next((each for each in rules if _follows(part, each)), "")
    return "" if part.behind == _CODES["colon"] and (rule == "read" or _follows(part, "label")) else rule


def _follows(part: _Part, rule: str) -> bool:
    return _GRAMMAR[rule].fullmatch(part.codes) is not None


def _next_phase(phase: _Phase, rule: str, part: _Part) -> _Phase | None:
    """Return the phase behind a part, or None if it may not stand there."""
    match phase, rule:
        case ("start", "order" | "it" | "verb_alone"):
            return "ordered"
        case ("start" | "ordered", "courtesy" | "before" | "given" | "more"):
            return phase
        case _ if part.after_colon or rule == "":
            return None
        case (_, "read"):
            return phase
        case ("remark" | "ordered", "order" | "it"):
            return "ordered"
        case ("ordered", "verb_alone") if not _any(part.before, "comma", "stop"):
            return "ordered"
        case ("start", "remark") | ("remark", _):
            return "remark"
        case ("ordered", "kept"):
            return "aside"
        case ("ordered", "aside") if _any(part.before + part.codes[0], "comma", "stop", "reason"):
            return "aside"
        case ("aside", _) if not _any(part.codes, "value", "that"):
            return "aside"
    return None


def _text_starts(part: _Part, rule: str, phase: _Phase) -> int | None:
    """Return where a part begins to dictate a text, or None."""
    that = part.codes.find(_CODES["that"])
    behind_order = phase == "ordered" and (part.after_colon or that == 0)
    if behind_order or (rule == "text" and phase == "start") or (rule in ("text", "told_more") and phase == "ordered"):
        return part.end if rule == "more" else part.spans[0 if part.after_colon else that][0]
    return None


def unclear(
    text: str, own: Values, known: Known, shown: str = "", texts: Values = (), *, strict: bool = False
) -> str | None:
    """Return what keeps a sentence from being a plain order of a step, or None.

    Args:
        text: the sentence, with `VALUE` and `QUOTE` for values and quotations.
        own: the spans in it where each of the step's values stands.
        known: the words of the tools, and the verbs of the step.
        shown: the sentence as it was written.
        texts: as `own`, for dictated texts. No other value may stand in such a text.
        strict: the step pays, deletes or administers.
    """
    codes, spans = _word_codes(text, known)
    if _any(codes, "question") and not _GRAMMAR["request"].fullmatch(codes):
        return "its sentence is a question"
    owners = [span for found in _GRAMMAR["owner"].finditer(codes) for span in spans[slice(*found.span())]]
    unsaid: Values = [[each for each in value if _outside([owners], *each)] for value in own]
    before = unsaid  # what no part before the first order says
    values = [span for code, span in zip(codes, spans, strict=True) if code == _CODES["value"]]
    others = [last for first, last in values if _outside(own, first, last) == own]
    others += [spans[found.start()][0] for found in _GRAMMAR["another"].finditer(codes)]
    phase: _Phase = "start"
    pointed = False  # "it" stands for values that are said before it, and nothing else is
    mine = True  # the last verb orders the step
    for part in _parts(codes, spans):
        rule = _rule_of(part, phase)
        if rule in ("text", "it", "read", "order", "verb_alone"):
            mine = rule != "read" and (not known.verbs or _follows(part, "own_verb"))
            if strict and rule == "verb_alone" and part.behind != _CODES["colon"]:
                mine = mine and _follows(part, "bare")  # not "Cancel the fee, T-5"
            unsaid = before if mine and unsaid and phase == "ordered" else unsaid  # one order says all of them
            before = unsaid if phase != "ordered" else before
        begin = _text_starts(part, rule, phase) if known.told else None
        if begin is not None:
            unsaid = _outside(unsaid, part.start, begin) if mine else unsaid
            texts, phase = _outside(texts, part.start, len(text)) if mine else texts, "ordered"
            break
        following = _next_phase(phase, rule, part)
        if following is None:
            return f"it is unclear what this means: {(shown or text)[part.start : part.end].strip()[:60]!r}"
        phase = following
        if rule != "read" and phase in ("start", "ordered"):
            plain = mine and (not strict or _follows(part, "bare"))
            if plain:
                unsaid = _outside(unsaid, part.start, part.end)
            alone = rule == "it" and plain and min(others, default=part.start) >= part.start
            pointed = pointed or (alone and all(any(a < part.start for a, _ in spans) for spans in unsaid))
            texts = _outside(texts, part.start, part.end) if mine else texts
    if phase in ("start", "remark"):
        return "its sentence orders nothing"
    return "no verb orders it" if (unsaid or texts) and not pointed else None


def _outside(values: Values, start: int, end: int) -> Values:
    return [spans for spans in values if not any(first < end and start < last for first, last in spans)]


def orders(text: str, known: Known) -> bool:
    """Return True if a sentence is a plain order of something."""
    codes, _ = _word_codes(text, known)
    return _any(codes, "value", "verb") and not _any(codes, "amend") and unclear(text, (), known) is None


def changes_nothing(text: str, known: Known) -> bool:
    """Return True if a sentence next to an order does not change it."""
    return orders(text, known) or _GRAMMAR["harmless"].fullmatch(_word_codes(text, known)[0]) is not None
