"""Find the parts of a user's text that forbid something.

A prohibition reaches from its word to the end of the clause, and over a list that goes on from there ("don't pay Bob,
Mallory or Eve"). It reaches back to its subject ("Mallory must not be paid"). Without an object of its own it reaches back
to the beginning of the sentence ("this account is a fraud, never use it"). `but` ends one, and sets apart what follows
`everyone`. "He did not pay" forbids nothing, text in quotation marks is a title, and `don't forget` is an order.

An ambiguous prohibition is treated as a prohibition: a call is then asked about or denied, while a permit cannot be taken
back. The words are English, as in `facts.intent`. The work is linear in the text, since a look back is bounded.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["Span", "prohibitions"]

_BACK: Final = 300  # characters that are looked back at
_A: Final = "['\u2019\u2018`\u00b4\u02bc\uff07]"  # what people type for an apostrophe
_DONT: Final = rf"do(?:es)?(?:[ ]not|n{_A}?t)"

_NO_CASE: Final = r"(?:(?:under[ ]no[ ]circumstances?|by[ ]no[ ]means|on[ ]no[ ]account|in[ ]no[ ]case)\b)"

# What only sounds like a prohibition. A verb of knowing or having makes a statement of it, and so does the past.
_QUIET: Final = re.compile(
    rf"""
    (?<!\w)(?:
    (?:"[^"\n]{{1,200}}"|\u201c[^\u201d\n]{{1,200}}\u201d|
        ['\u2018](?:[^'\u2018\u2019\n]|(?<=\w)['\u2019](?=\w)){{1,200}}['\u2019])(?!\w)
    | (?:do[ ]not|don{_A}?t|not|never)(?=[ ](?:forget|fail|hesitate|miss)\b)
    | (?<!\bdo[ ])(?<!\bdoes[ ])not(?=[ ](?:sure|only|just|later|yet|until)\b)
    | (?:I|we|you|they|he|she)[ ]{_DONT}(?=[ ](?:have(?![ ]to\b)|know|remember|recall|see|care|mind|need(?![ ](?:to|you)\b))\b)
    | (?:wo|would)n{_A}t[ ]mind\b
    | (?:nobody|no[ ]one|none)(?=[ ](?:did|has|have|had)\b)
    | without(?=[ ](?:any[ ]|further[ ]|more[ ]){{0,2}}(?:ado|delay|exception|fail|hesitation|question)s?\b)
    | does(?:[ ]not|n{_A}?t)(?=[ ](?:have(?![ ]to\b)|know|remember|see)\b)
    | (?:did|has|have|had)(?:[ ](?:not|never)|n{_A}?t)\b
    | (?:I|we|he|she|they)[ ]could(?:[ ]not|n{_A}t)\b
    | why[ ](?:not\b|don{_A}?t(?=[ ]you\b))
    | (?:can|could|wo|would)n?{_A}t(?=[ ]you\b)
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Not inside a longer name: `do-not-reply.txt`.
_WORD: Final = re.compile(
    rf"""
    (?<![\w\-./@\\])(?:
    (?P<of>(?:must|should|shall|may|might|can|could|will|would|need)(?:[ ]not|[ ]never|[ ]{_NO_CASE}|n{_A}?t)|cannot|can{_A}?t|won{_A}?t|shan{_A}?t
        |(?:is|are|am|was|were)(?:[ ]not|n{_A}?t)(?=[ ](?:to|allowed|permitted|supposed)\b))
    |(?P<than>(?<!rather[ ])(?<!other[ ])than)
    |(?:all|any\w{{0,8}}|every\w{{0,8}})(?:[ ][^\s.,;:!?]{{1,40}}){{0,4}}[ ](?P<all>but)(?![ ]also\b)
    |{_DONT}|(?:is|are|was|were)n{_A}?t|not|never|hardly|neither|nor|(?P<none>nothing|nobody|no[ ]one|none)
    |no(?=[ ](?:\w{{1,40}}[ ]){{1,3}}(?:to|for)\b)|{_NO_CASE}
    |without|unless|except(?:ing)?(?:[ ]for)?|exclud(?:e|ing)|instead[ ]of|in[ ]place[ ]of|as[ ]opposed[ ]to|rather[ ]than|other[ ]than
    |apart[ ]from|aside[ ]from|besides|(?P<aside>ignore|keep|preserve|retain|skip|omit)|minus(?=[ ][^\d\s])|avoid|refrain|refuse|hide
    |beware|least[ ]of[ ]all|forbid(?:den)?|prohibit(?:ed)?|hold[ ]off|stop(?=[ ](?:\w{{1,40}}ing|the|all|any)\b)|leave(?=[ ](?:out|\S{{1,80}}[ ](?:out|alone))\b)
    |nicht|kein(?:e[mnrs]?)?|niemals|ohne|au\u00dfer|statt|pas|jamais|sans|sauf|nunca|excepto|salvo|senza|tranne
    )(?![\w\-/@\\])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_EMPHASIS: Final = re.compile(r"(?<!\w)_{1,2}(?=[a-z]{2,5}_)|(?<=[a-z])_{1,2}(?!\w)", re.IGNORECASE)
_CLAUSE: Final = re.compile(r"[,:.;!?](?=\s|\Z)|\n| (?:but|so)\b| [\-\u2013\u2014] |\Z", re.IGNORECASE)
_ASIDE: Final = re.compile(rf"{_CLAUSE.pattern}| and (?=[a-z]{{1,40}} \S)")
_SENTENCE: Final = re.compile(r"[.;!?](?=\s|\Z)|\n|\Z")
_YET_NOTHING: Final = re.compile(r"\s*(?:ever|even|just|please)?\s*", re.IGNORECASE)  # of what is forbidden
_COMPARED: Final = re.compile(r"(?: [^\s,;:!?]{1,80}){0,2}")
# A list goes on with names and single words, as far as an `or` and the clause behind it; or line by line.
_LISTED: Final = re.compile(
    r"(?:(?:[,:]| [\-\u2013\u2014])(?: (?:and|not))? "
    r"(?:[A-Z@#\d\"'\u201c\u2018][^\s,;!?]{0,80}(?: [A-Z\d][^\s,;!?]{0,80}){0,7}|[^\s,;!?]{1,80})"
    r"(?=[,;!?)\n]|\Z| (?:and|[\-\u2013\u2014]) |(?<=\.)\s)){1,64}"
    r"(?: and [^\s,;!?]{1,80}(?=[.,;!?)]|\s*\Z|\n))?"
)
_OR: Final = re.compile(r"[ (](?:or|nor) ")
_DIGIT: Final = re.compile(r"\d")
_LINES: Final = re.compile(r":[ \t]*(?:\n[ \t]*(?:[-*\u2022]|\d{1,2}[.)])[ \t][^\n]{1,300}){1,64}")
_SUBJECT: Final = re.compile(r"(?:[A-Z\d][^\s,;:!?]{0,80}(?<!\.) ){0,8}[^\s,;:!?]{1,80}(?<!\.) \Z")
_SOMEBODY: Final = re.compile(r"\b(?:I|we|he|she|they) \Z", re.IGNORECASE)
_BEGIN: Final = re.compile(r"[.;!?]\s|\n")
_PART: Final = re.compile(r"[,:.;!?]\s|\n|\bbut\b", re.IGNORECASE)
# Only a deed and a pronoun: its object was said before.
_ABOUT: Final = re.compile(
    r"(?: (?!than\b)\w{1,40}){1,2} (?:it|him|her|them|that|this|those)(?: (?:yet|now|ever|again|anymore))?\s*",
    re.IGNORECASE,
)


class Span(NamedTuple):
    """A forbidden stretch from `start` to `end`; from `before` on stands its subject."""

    before: int
    start: int
    end: int


def prohibitions(text: str) -> list[Span]:
    """Return the forbidden stretches of a text, in order."""
    plain = _EMPHASIS.sub(lambda m: " " * len(m[0]), text) if "_" in text else text
    plain = _QUIET.sub(lambda m: "x" * len(m[0]), plain)
    found: list[Span] = []
    done = 0
    for word in _WORD.finditer(plain):
        if word.start() < done:
            continue
        start = word.start("all") if word["all"] else word.start()
        end = _end(plain, word)
        floor = max(done, start - _BACK)
        found.append(Span(floor + _before(plain[floor:start], plain[word.end() : end], word), start, end))
        done = end
    return found


def _end(text: str, word: re.Match[str]) -> int:
    at = word.end()
    if word["than"]:
        found = _COMPARED.match(text, at)
        return found.end() if found else at
    if text[word.start() - 1 : word.start()] == "(" and (closed := text.find(")", at, at + _BACK)) >= 0:
        return closed
    end = _next(_ASIDE if word["aside"] else _CLAUSE, text, at)
    if text[end : end + 1] == "," and not word["none"] and _YET_NOTHING.fullmatch(text, at, end):
        return _next(_SENTENCE, text, at)  # "don't, under any circumstances, …"
    if text[end : end + 1] == "\n" and len(text[at:end].split()) <= 1:  # the object is in the next line
        end = _next(_CLAUSE, text, end + 1)
    if lines := _LINES.match(text, end):
        return lines.end()
    if ors := list(_OR.finditer(text, end, _next(_SENTENCE, text, end, end + _BACK))):
        end = _next(_CLAUSE, text, ors[-1].end())
    listed = _LISTED.match(text, end)
    # "not Carol, 45": after a name, a number is of no list.
    if listed and (not _DIGIT.match(text, end + 2) or _DIGIT.search(text, at, end)):
        return listed.end()
    return end


def _before(ahead: str, forbidden: str, word: re.Match[str]) -> int:
    """Return where in the text ahead of it the prohibition begins."""
    if not forbidden.strip():  # "but Mallory not", "Mallory gets nothing"
        return _last(_PART, ahead)
    if _ABOUT.fullmatch(forbidden) and not word["none"] and not (word["of"] and _SOMEBODY.search(ahead)):
        return _last(_BEGIN, ahead)
    subject = _SUBJECT.search(ahead) if word["of"] else None
    return subject.start() if subject else len(ahead)


def _next(mark: re.Pattern[str], text: str, at: int, limit: int | None = None) -> int:
    found = mark.search(text, at, len(text) if limit is None else limit)
    return found.start() if found else len(text)


def _last(mark: re.Pattern[str], text: str) -> int:
    return max((m.end() for m in mark.finditer(text)), default=0)
