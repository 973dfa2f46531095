# ruff: noqa: RUF001  (people type typographic quotes)
"""Cut a text into tokens, and load a language's lists of words from JSON.

A language is a JSON file in this folder: lists of words and phrases, by their role in a clause. `mandate.words` parses
with these lists. A token that can be read in several ways ("1.250", "x.org.They") has the kind `odd`, and no clause
accepts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.local_time import DAY, with_dates
from langchain_runtime_authz.facts.normal_forms import forms_of, mentions_in, number_readings

FOLDER: Final = Path(__file__).parent
PHRASES: Final = json.loads((FOLDER / "sentences.json").read_text(encoding="utf-8"))
NUMBER: Final = r"\d(?:[\d.,'’]{0,20}\d)?"
_PLAIN: Final = re.compile(
    r"(?:0|[1-9]\d{0,14})(?:[.,]\d{1,2})?|[1-9]\d{0,2}(?:(?:,\d{3}){1,4}\.|(?:\.\d{3}){1,4},|(?:['’]\d{3}){1,4}\.)\d{1,2}"
    r"|[1-9]\d{0,2}(?:(?:,\d{3}){2,4}|(?:\.\d{3}){2,4}|(?:['’]\d{3}){1,4})"
)
_ID: Final = re.compile(  # with a character that common words lack: "/tmp", "T-5", "Plan.pdf", "web-db"
    r"(?:[#@~.]|--?(?!\d)|[/\\])[/\\]?\w[\w./\\\-+=~:]*|(?=.*[\d_])\w[\w./\\\-=:]*|\w[\w./\\\-~]*\.[a-z]\w{1,4}|[a-z]+(?:[./-][a-z]+)+"
)
_SMALL: Final = "".join(letter for letter in map(chr, range(0x1F00)) if letter.islower())
_NAME: Final = re.compile(rf"[^\W\d_{_SMALL}][^\W\d_]*(?:[-'’][^\W\d_]{{2,}})*")
_WORD: Final = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_UNREAD: Final = re.compile(
    r"[\d.,:/+'’\-]+|\d[\d.,'’]*\D{0,3}|.*[a-z]\.[A-Z][a-z].*|(?:[A-Za-z][./])+[A-Za-z]?|[\w-]*\d/[\w-]*\d|.*\w\.\..*"
)  # "1.5k", "e.g", "T-1/T-2", "T-1..T-9"
_WORDLIKE: Final = frozenset({"word", "name", "sep", "colon"})
PARTS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def any_phrase(name: str) -> str:
    """Return a regular expression for the phrases of `name` in all languages."""
    return "|".join(phrase for phrases in PHRASES[name].values() for phrase in phrases)


@lru_cache(maxsize=4096)
def _lower(text: str) -> str:
    return text.lower().replace("’", "'")


def _dates(text: str) -> list[str]:
    return [form.removeprefix("date:") for form in forms_of(text, said=True) if form.startswith("date:")]


class Token(NamedTuple):
    """A word, value or sign of a text, with its kind and position."""

    kind: str  # quote date money number url email id handle hash name word version own sep colon end odd
    text: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        """Return the text in lower case, with straight apostrophes."""
        return _lower(self.text)


def singular(word: str) -> str:
    """Return the word without a plural's ending."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def words_of(name: str) -> list[str]:
    """Return the words of a tool's or argument's name, in lower case and singular."""
    return [singular(w.lower()) for w in PARTS.findall(name)]


class Language:
    """The lists of words of one language, and the pattern of its tokens."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        yes, thanks = ("|".join(data[name]) for name in ("assents", "thanks"))
        self.assent, self.assents = re.compile(rf"\b(?:{yes})\b"), re.compile(rf"(?:(?:{yes}|{thanks})(?: |\Z))+")
        doubtful, possible = (rf"\b(?:{'|'.join(data[name])})\b" for name in ("doubtful", "possible"))
        self.doubtful, self.possible = (re.compile(said, re.IGNORECASE) for said in (doubtful, possible))
        named = ("determiners", "stops", "never_values")
        self.determiners, self.stops, never = (frozenset(data[n]) for n in named)
        self.months = frozenset(m.lower() for m in data["months"])
        self.verbs = frozenset(data["verbs"])
        self.prepositions = frozenset(data["prepositions"])
        self.coins = {written.lower(): code.lower() for written, code in data["currencies"].items()}
        self.vague = never.union(self.stops)
        self.closed = never.union(
            self.coins, self.stops, self.determiners, self.prepositions, [s for s in data["separators"] if len(s) > 1]
        )
        month = "|".join(sorted(data["months"], key=len, reverse=True))
        code = "|".join(map(re.escape, sorted(data["currencies"], key=len, reverse=True)))
        day, year, time = r"\d{1,2}(?:st|nd|rd|th)?", r"(?:,? \d{4})?", r"\d{1,2}(?::\d\d(?: ?[ap]m)?| ?[ap]m)"
        weekday = "|".join(data["weekdays"])
        day_of = rf"(?:(?:{weekday}),? )?(?:\d{{4}}-\d\d-\d\d|\d{{1,2}}[/.]\d{{1,2}}[/.]\d{{4}}|(?:{month}) {day}{year}|(?:the )?{day} (?:of )?(?:{month}){year})(?!,? ['’]?\d\d(?![\w:]))"
        marks = r"(?P<bullet>^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+)|(?P<end>\n+|[.!?;]+(?=\s|\Z))|(?P<sep>,(?=\s|\Z))|(?P<colon>:(?=\s|\Z))"
        value = {  # in order of preference; each ends where a word ends
            "quote": r"\"[^\"“”\n]{1,1000}\"|“[^\"“”\n]{1,1000}”|`[^`\n]{1,1000}`|'[^'‘’\n]{1,1000}'|‘[^‘\n’]{1,1000}’",
            "date": "{0}(?:,? (?:at )?{1}|T{1})?|{1},? (?:on )?{0}",
            "money": rf"(?:{code}) ?{NUMBER}|{NUMBER} ?(?:{code})",
            "name": rf"(?:{'|'.join(data['titles'])})\. {_NAME.pattern}",
            "iban": r"[A-Z]{2}\d\d(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?",
            "phone": r"(?:\+\d{1,3}|0\d{2,4})(?: \d{2,7}){0,3} \d{4,7}|\+\d{8,15}",
            "rest": r"\S+?",
        }

        def token(day: str) -> re.Pattern[str]:
            kinds = {**value, "date": value["date"].format(f"(?:{day})", time)}
            found = "|".join(rf"(?P<{kind}>(?:{pattern})(?=[.,;:!?]*(?:\s|\Z)))" for kind, pattern in kinds.items())
            return re.compile(f"{marks}|{found}", re.MULTILINE)

        self.token, self.token_or_day = token(day_of), token(f"{day_of}|(?i:{DAY})")

    def tokens(self, text: str, today: date | None = None) -> Iterator[Token]:
        """Yield the tokens of a text. If `today` is known, "tomorrow" is a date."""
        pattern, at = self.token if today is None else self.token_or_day, 0
        while at < len(text):
            if text[at] in " \t\r¿":
                at += 1
                continue
            found = pattern.match(text, at)
            if found is None:
                yield Token("odd", text[at:], at, len(text))
                return
            kind, at = found.lastgroup or "", found.end()
            if kind == "bullet":
                continue
            if kind == "iban":
                stretch = next(iter(mentions_in(found[0].lower()).values()), "")  # its check digits must be right
                at = found.start() + len(stretch) if stretch and found[0].lower().startswith(stretch) else at
                yield Token("id" if stretch else "odd", text[found.start() : at], found.start(), at)
            else:
                yield from self._kinds(kind, found, today)

    def _kinds(self, kind: str, found: re.Match[str], today: date | None) -> Iterator[Token]:
        said, (start, end) = found[0], found.span()
        if kind == "quote":
            start, end, said = start + 1, end - 1, said[1:-1]
            kind = "odd" if said != said.strip() else kind
        elif kind == "date":
            dates = _dates(said) or ([] if today is None else _dates(with_dates(said, today)))
            weekday = next((n for n, w in enumerate(self.data["weekdays"]) if said.startswith(w)), None)
            kind = kind if len(dates) == 1 else "odd"
            if kind == "date" and weekday is not None:  # the weekday must fit, which needs a year
                kind = "odd" if dates[0][0] == "-" or date.fromisoformat(dates[0]).weekday() != weekday else kind
        elif kind == "money":
            number = re.search(NUMBER, said)
            kind = kind if number and read_number(number[0], money=True) is not None else "odd"
        elif kind == "phone":
            kind = "id"
        elif kind == "rest":
            said = self.data["spellings"].get(said.lower(), said)
            kind = self.kind(said)
            if (
                kind == "odd"
                and re.search("['’]s$", said)
                and (owner := self.kind(said[:-2])) in {"name", "id", "word"}
            ):
                yield Token(owner, said[:-2], start, end - 2)
                kind, start, said = "own", end - 2, said[-2:]
            if kind == "hash" and re.fullmatch(r"#\d+", said):
                kind, start, said = "id", start + 1, said[1:]
        yield Token(kind, said, start, end)

    def kind(self, said: str) -> str:
        """Return the kind of a token that is one unquoted word, number or sign."""
        if read_number(said) is not None:
            return "number"
        if _WORD.fullmatch(said.replace("'", "").replace("’", "")) and said.lower().replace("’", "'") in self.closed:
            return "word"
        if said == "&":
            return "sep"
        if _NAME.fullmatch(said) and not re.search(r"['’][sS]$", said):
            return "name"
        if _WORD.fullmatch(said) and "-" not in said:
            return "word"
        if re.fullmatch(r"v?\d+(?:\.\d+){1,3}", said):
            return "version"
        form = next(iter(forms_of(said)), "").partition(":")[0]
        if form in {"email", "url"}:
            return form
        path = re.match("~?[/.]", said)  # "/etc/hosts", but not "all-but-web-3" or "~all"
        common = not path and any(len(p) > 1 and p in self.closed for p in re.split("[-/~]", said))
        if common or not said.isascii() or not _ID.fullmatch(said) or _UNREAD.fullmatch(said):
            return "odd"
        return {"#": "hash", "@": "handle"}.get(said[0], "id")

    def stopped(self, word: str) -> bool:
        """Return True if the word may withdraw an order, or make it depend on something."""
        return word.endswith("n't") or not self.stops.isdisjoint(word.split("-"))

    def gap(self, tokens: Sequence[Token], at: int) -> int:
        """Return the number of tokens that separate values at `at`, like ", and"."""
        return next((n - at for n in range(at, len(tokens)) if not self.separates(tokens[n])), 0)

    def separates(self, token: Token) -> bool:
        """Return True for a comma, or a word like "and"."""
        return token.kind in _WORDLIKE and token.text in self.data["separators"]

    def definite(self, token: Token) -> bool:
        """Return True if a token determines a thing, like an article or a number."""
        telling = token.lower in self.determiners or token.lower in self.data["numerals"]
        return telling or token.kind not in {"word", "name", "sep", "colon", "odd"}

    def value(self, token: Token) -> bool:
        """Return True if a token may be a value, and is not a word of the grammar."""
        if token.kind in {"name", "word"}:
            return not (token.lower in self.closed or token.lower in self.months or self.stopped(token.lower))
        return token.kind not in {"odd", "own", "sep", "colon", "end"}


@lru_cache(maxsize=1)
def languages() -> tuple[Language, ...]:
    """Return all languages of this folder."""
    files = sorted(FOLDER.glob("??.json"))
    return tuple(Language(json.loads(f.read_text(encoding="utf-8"))) for f in files)


def read_number(number: str, *, money: bool = False) -> int | float | None:
    """Return the value of a written number; None if it is ambiguous, unreadable or 0.

    `money`: the number is an amount. Then `1,250` is 1250, because amounts do not have three decimals.
    """
    if money and re.fullmatch(r"[1-9]\d{0,2},\d{3}", number):
        return int(number.replace(",", ""))
    readings = number_readings(number) if _PLAIN.fullmatch(number) else ()
    if len(readings) != 1 or not readings[0]:
        return None
    whole = readings[0] == readings[0].to_integral_value()
    return int(readings[0]) if whole else float(readings[0])
