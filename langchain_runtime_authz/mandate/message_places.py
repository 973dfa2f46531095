"""Cut material out of a user's message, and find where its words say a value.

Material is text that the user quotes, tags, forwards or pastes. `mandate.plain_orders` decides if a sentence is an
order. Repetitions in the patterns are bounded, so the work is linear in the texts.
"""

# ruff: noqa: RUF001  (other languages' signs are the point)
from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from langchain_runtime_authz._text import lazy
from langchain_runtime_authz.facts.normal_forms import MAX_VALUE, fold, forms_of, located_mentions, mask_spans, tidy
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.languages import PHRASES, any_phrase
from langchain_runtime_authz.mandate.plain_orders import CURRENCIES, PERIODS, Known, pronoun_in, says

_MAX_TEXT: Final = 1_000_000  # characters; a longer text counts as pasted as a whole
_MAX_OPEN: Final = 64  # tags without an end tag; after more, the rest of the text is material

_FENCED: Final = lazy(r'(`{3,64}+|~{3,64}+|"{3}).*?(?:\1|\Z)', re.DOTALL)  # a shorter fence does not end a longer one
_QUOTED_LINE: Final = lazy(r"^[ \t]*>[^\n]*", re.MULTILINE)
_TAG: Final = lazy(r"<([A-Za-z][\w\-]*)(?=[\s>])")  # an attribute, such as a file's name, may have any characters
_END_TAG: Final = lazy(r"</([A-Za-z][\w\-]*)>")
LINES: Final = str.maketrans(dict.fromkeys("\r\x0b\x0c\x85\u2028\u2029", "\n"))  # other line ends → "\n"
# A line that is quoted, a heading, a row of a table or a call in code; a horizontal rule; a line that begins a forwarded
# message, or looks like the header of a mail.
_MARK: Final = lazy(
    r"^[ \t]*(?:(?P<quote>>|#{1,6} |\|(?=[^\n]*\|[ \t]*$)|[A-Za-z_][\w.]*\((?=[^\n]*\)[ \t]*;?[ \t]*$))"
    rf"|(?P<rule>([-=*_])\3{{2,}}[ \t]*$)|(?P<forward>{any_phrase('forwarded')})"
    rf"|(?P<header>\*{{0,2}}(?:(?P<sender>{any_phrase('sender')})|(?P<subject>{any_phrase('subject')})|{any_phrase('header')})\*{{0,2}}[ \t]*:)"
    r")[^\n]*\n?",
    re.IGNORECASE | re.MULTILINE,
)


def without_material(text: str, first: int = 1) -> tuple[str, list[str]]:
    """Return the text with `[material 1]` … in place of material, and the material.

    `first`: the number of the first piece of material, so that several texts can share one numbering.
    """
    said, parts, at = [], [], 0
    for start, end in material_spans(text):
        parts.append(text[start:end])
        said += [text[at:start], f"[material {first + len(parts) - 1}]"]
        at = end
    return "".join([*said, text[at:]]), parts


def material_spans(text: str) -> list[tuple[int, int]]:
    """Return the sorted spans of material in a text; touching spans are merged."""
    if len(text) > _MAX_TEXT:
        return [(0, len(text))]
    text = text.translate(LINES)
    unquoted = _QUOTED_LINE.sub(lambda line: " " * len(line[0]), text)  # so that a fence in a quoted line ends no fence
    fenced = [found.span() for read in (text, unquoted) for found in _FENCED.finditer(read)]
    found = sorted([*fenced, *_tagged(text), *_marked(text)])
    apart: list[tuple[int, int]] = []
    for start, end in found:
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


def _tagged(text: str) -> Iterator[tuple[int, int]]:
    """Yield the span from a tag to its last end tag. Material may hold end tags."""
    at, without, ends = 0, 0, {end[1]: end.end() for end in _END_TAG.finditer(text)}
    for tag in _TAG.finditer(text):
        if tag.start() < at:
            continue
        if ends.get(tag[1], 0) > tag.start():
            at = ends[tag[1]]
            yield tag.start(), at
            continue
        without += 1
        if without > _MAX_OPEN:
            yield tag.start(), len(text)
            return


def _marked(text: str) -> Iterator[tuple[int, int]]:
    rule, began, at, sender, subject = -1, -1, -1, False, False  # header lines: start of the block, end of the last one
    for line in _MARK.finditer(text):
        if line["quote"]:
            yield line.start(), line.start() + len(line[0].rstrip())
        elif line["rule"]:
            if rule >= 0:
                yield rule, line.end()
            rule = line.start()
        elif line["forward"]:
            yield line.start(), len(text)
            return
        else:
            if line.start() != at:
                began, sender, subject = line.start(), False, False
            sender |= line["sender"] is not None
            subject |= line["subject"] is not None or "@" in line[0]
            at = line.end()
            if began < line.start() and sender and subject:
                yield began, len(text)
                return
    if rule >= 0:
        yield rule, len(text)


MAX_OWN: Final = 20_000  # characters of the messages without material; if there are more, nothing is read
_MAX_SEGMENTS: Final = 256
_ROOTED: Final = lazy(r"/\w[\w.\-]*\.[A-Za-z]\w{0,7}")
_SHORTEST: Final = 2  # a text of one letter names nothing
_MAX_PLACES: Final = 64  # positions of one value in one segment

_QUOTED: Final = lazy(
    r"\"([^\"]{1,2000})\"|\u201c([^\u201c\u201d]{1,2000})\u201d|\u201e([^\u201e\u201c\u201d]{1,2000})[\u201c\u201d]"
    r"|\u00ab([^\u00ab\u00bb]{1,2000})\u00bb|`([^`\n]{1,2000})`|\u300c([^\u300c\u300d]{1,2000})\u300d"
    r"|(?<!\w)'((?:[^'\n]|(?<=\w)'(?=\w)){1,2000})'(?!\w)|(?<!\w)\u2018((?:[^\u2018\u2019\n]|(?<=\w)\u2019(?=\w)){1,2000})\u2019(?!\w)"
)
_EDGE: Final = " \t\n.,;:!?\u2026"
_END: Final = lazy(
    r"(?<!\n[\dx])(?<!\A[\dx])(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bNr)(?<!\bMrs)(?<!\bProf)(?!(?<=[\dx])\. (?i:jan|feb|m[aä]r|apr|mai|jun|jul|aug|sep|okt|nov|dez))[.!?;]{1,8}[\"'\u201d\u2019\u00bb)\]]{0,4}(?=\s|\Z)"
    r"|[\u3002\uff01\uff1f\uff1b]|\n"
)
_UNSPACED: Final = lazy(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")  # scripts without blanks
_NEGATING: Final = "|".join(phrase for key, said in PHRASES["negates"].items() if key != "signs" for phrase in said)
_NEGATES: Final = lazy(
    "|".join((rf"\b(?:{_NEGATING})\b(?! (?:later|more|less) than\b)", *PHRASES["negates"]["signs"])), re.IGNORECASE
)
_CONTINUES: Final = lazy(
    rf"(?:(?:{any_phrase('before_continues')})[,!. ]{{1,3}}){{0,3}}(?:{any_phrase('continues')})(?:[, ](?:{any_phrase('behind_continues')}))?",
    re.IGNORECASE,
)
_WORD: Final = lazy(r"[^\W\d_]+")
_AHEAD: Final = f"(?:{any_phrase('before_pronouns')}|{any_phrase('before_continues')})\\b"
_PRONOUN: Final = lazy(  # "..., and please label it", "... y bórralo": not "Tom will label it"
    rf"(?:,|\b(?:{any_phrase('before_pronouns')}))(?: {_AHEAD}){{0,3}} (?!{_AHEAD})"
    rf"(?:([^\W\d_]+)(?: to)? ({any_phrase('pronouns')})\b(?!['\u2019])|([^\W\d_]+(?:-[^\W\d_]+)?))",
    re.IGNORECASE,
)
DIRECTIONS: Final = {word: way for way in ("from", "until", "to") for said in PHRASES[way].values() for word in said}
_LEADING: Final = lazy(r"[从自到至给往]|[^\W\d_\u3400-\u9fff]+['\u2019]?")
Unit = re.Pattern[str] | None
_SHORT: Final = 60  # characters of a message that only says to go on
_NAME: Final = 2  # words of a name
_COUNTED: Final = {word: number for words in PHRASES["counted"].values() for word, number in words.items()}
_SCALED, _TIMES, PERCENT, _HOUR = (
    lazy(f"[ \u00a0\u202f]?(?:{any_phrase(name)})", re.IGNORECASE) for name in ("scaled", "times", "percent", "hour")
)
UNITS: Final = {"percent": PERCENT, "percentage": PERCENT} | {  # by an argument's name: "week", "time per day"
    f"{times}{unit}": lazy(rf"{before}\s?(?:{said})(?!\w)", re.IGNORECASE)
    for unit, said in PERIODS.items()
    for times, before in (("", ""), ("time per ", rf" ?(?:{any_phrase('times')})? ?(?:{any_phrase('per')})"))
}
CHANGED, _AT = (lazy(rf"(?<!\w)(?:{any_phrase(name)}) \Z", re.IGNORECASE) for name in ("changed_by", "at"))
_MONEY: Final = lazy(
    rf"[ \u00a0\u202f]?(?:[A-Z]{{3}}\b|(?i:{CURRENCIES}))|[^\n]{{0,3}}?(?:[A-Z]{{3}}|(?i:{CURRENCIES}))[ \u00a0]?\Z"
)
_COMMA_DECIMAL: Final = lazy(r" (?:Euro|Franken|Pfund|Dollar)\b")  # as Germans write: "1,250 Euro" may be less than 2
_FOREIGN: Final = lazy(r"\b(?!US\b)[A-Z]{1,3} ?\Z")  # before a sign of money: "AU $45"
_COUNT: Final = lazy(rf"\b(?:{'|'.join(_COUNTED)})\b", re.IGNORECASE)


def only_continues(text: str) -> bool:
    """Return True if a text only says to go on with what was ordered before."""
    return len(text) <= _SHORT and _CONTINUES.fullmatch(text.strip(_EDGE)) is not None


def leaves_open(text: str) -> bool:
    """Return True if the next message may belong to this one: "only if Anna agrees:"."""
    colon = "COLON" in unicodedata.name(text.rstrip()[-1:] or " ", "").split()  # of any script
    return colon or (len(text) <= MAX_OWN and says("open", text, Known()))


@lru_cache(maxsize=64)
def is_restricted(text: str) -> bool:
    """Return True if a text has a condition, an exception or a correction ("I mean")."""
    return says("bound", text, Known()) or _NEGATES.search(text) is not None


def stated_text(text: str) -> str:
    """Return the user's message without material, prohibitions and exceptions."""
    words = without_material(text)[0] if len(text) <= MAX_OWN else ""
    at = [0, *(end.end() for end in _END.finditer(words)), len(words)]
    return "".join(words[i:j] for i, j in pairwise(at) if not _NEGATES.search(words, i, j))


def leading(text: str) -> tuple[str, str]:
    """Return the last word before a value, and "from", "until", "to" or "".

    "Move it from the account" has the last word "account", and "from". "Bis zum" is "until".
    """
    words = [word.lower() for word in _LEADING.findall(re.split(r"[,;:.!?\n，；：。！？]", text)[-1])[-4:]]
    ways = [DIRECTIONS[word] for word in reversed(words) if word in DIRECTIONS]
    return (words or [""])[-1], "until" if "until" in ways[:2] else next(iter(ways), "")


class Place(NamedTuple):
    """A value's position: the index of a segment, and start and end in characters."""

    segment: int
    start: int
    end: int


class Segment:
    """Text between two pieces of material, at `offset` of the message with `digest`."""

    def __init__(self, digest: str, offset: int, text: str) -> None:
        self.digest, self.offset, self.text = digest, offset, text
        self.folded = "".join(low if len(low := fold(c)) == 1 else c for c in text)
        self.quotations = [m.span(m.lastindex or 0) for m in _QUOTED.finditer(text)]
        tokens = list(located_mentions(_UNSPACED.sub("\n", text)))
        self.tokens: dict[str, list[tuple[int, int]]] = {}
        self.readings: dict[tuple[int, int], set[str]] = {}  # of numbers, and of dates with a year
        self._days: list[tuple[int, int]] = []
        for form, span in tokens:
            self.tokens.setdefault(form, []).append(span)
            self._days += [span] if form.startswith(("date:", "day:")) else []
            if form.startswith(("num:", "date:")) and not form.startswith("date:-"):
                self.readings.setdefault(span, set()).add(form)
        self._days.sort()
        plain = mask_spans(text, [*self.quotations, *(span for _, span in tokens)], "x")
        self.masked = mask_spans(text, self.quotations, "x")
        ends = [m for m in _END.finditer(plain) if m[0] != "\n" or not _goes_on(plain[: m.start()], plain[m.end() :])]
        self.starts = [0, *(m.end() for m in ends)]

    def sentence(self, at: int) -> int:
        """Return the index of the sentence at a position."""
        return max(0, bisect_right(self.starts, at) - 1)

    def span(self, sentence: int) -> tuple[int, int]:
        """Return start and end of a sentence."""
        end = self.starts[sentence + 1] if sentence + 1 < len(self.starts) else len(self.text)
        return self.starts[sentence], end

    def pronouns(self, verbs: Collection[str], at: int) -> list[tuple[int, int]]:
        """Return spans of pronouns after `verbs` in the rest of a sentence: "label it"."""
        found = []
        for said in _PRONOUN.finditer(self.masked, at, self.span(self.sentence(at - 1))[1]):
            verb, end = said[1] or said[3], said.end(1 if said[1] else 3)
            if within := pronoun_in(verb, verbs):
                found.append((end - len(within), end))
            elif said[1] and verb.lower() in verbs:
                found.append(said.span(2))
        return found

    def whole(self, start: int, end: int) -> bool:
        """Return True if a span is not a part of a longer token or quotation."""
        near = bisect_right(self.quotations, (start, len(self.text)))
        for first, last in self.quotations[max(0, near - 1) : near + 1]:
            inside = first <= start and end <= last
            if inside and self.text[first:last].strip(_EDGE) != self.text[start:end].strip(_EDGE):
                return False
            if not inside and start < last and first < end and not (start <= first and last <= end):
                return False
        return not self._joined(start - 1, start, -1) and not self._joined(end, end - 1, 1)

    def _joined(self, outer: int, inner: int, step: int) -> bool:
        """Return True if the token at `inner` goes on at `outer`, `step` (±1) further."""
        if not 0 <= outer < len(self.text):
            return False
        c, beyond = self.text[outer], self.text[outer + step : outer + step + 1] if outer + step >= 0 else ""
        if c.isdigit() and unicodedata.category(self.text[inner]) == "Sc":
            return False  # "$45"
        if c.isalnum() or c in "_@\\*~=&+/":
            return not (c.isalnum() and (_UNSPACED.match(c) or _UNSPACED.match(self.text[inner])))
        if c not in ".-:?" or _UNSPACED.match(beyond):
            return False
        return step < 0 or beyond.isalnum() or (beyond != "" and beyond in "_*/\\@-")

    def certain(self, form: str, start: int, end: int) -> bool:
        """Return True if a number or date has only one reading, unlike "1.250".

        "1,250" and "1.250 EUR" are 1250, and 03.04.2027 is in April.
        """
        readings, text = self.readings.get((start, end), set()), self.text[start:end]
        if len(readings) < 2:  # noqa: PLR2004
            return True
        if form.startswith("date:"):
            return "." in text and int(form[-2:]) == int(text.partition(".")[0])
        money = "," in text or _MONEY.match(self.text, end) or _MONEY.match(self.text[max(0, start - 4) : start])
        return (
            bool(money)
            and not ("," in text and _COMMA_DECIMAL.match(self.text, end))
            and form == max(readings, key=lambda one: float(one[4:]))
        )

    def day_of(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the span of the date nearest to a time; of two, the one before it."""
        at, sentence = bisect_right(self._days, (start, end)), self.sentence(start)
        near = [day for day in self._days[max(0, at - 1) : at + 1] if self.sentence(day[0]) == sentence]
        return min(near, key=lambda day: max(start - day[1], day[0] - end), default=None)

    def refused(self, start: int, *, dictated: bool = False) -> bool:
        """Return True if a sentence forbids the value at `start`. `dictated`: free text."""
        first, last = self.span(self.sentence(start))
        return _NEGATES.search(self.masked, first, start if dictated else last) is not None


def _goes_on(before: str, behind: str) -> bool:
    """Return True if a line goes on: before a list, or before the name at the end."""
    line, words = before.rpartition("\n")[2].strip(), behind.replace("(", "").split()
    name = "\n" not in behind.strip() and len(words) <= _NAME and all(word[0].isupper() for word in words)
    return line[-1:] == ":" or (name and (line[-1:] == "," or says("signed", line, Known())))


class Texts:
    """All of the user's messages of a task, without material.

    Attributes:
        segments: the parts of the messages between material; empty if `too_long`.
        too_long: True if the parts have more than `MAX_OWN` characters, or there are too many parts.
        has_material: True if material was cut out.
        newest: the index of the first segment of `texts`. Those before it are of the user's `earlier` messages.
    """

    def __init__(self, texts: Sequence[str], earlier: Sequence[str] = ()) -> None:
        pieces, self.has_material, self.newest = list[tuple[str, int, str]](), False, 0
        for number, text in enumerate((*earlier, *texts)):
            self.newest = len(pieces) if number == len(earlier) else self.newest
            digest, at = content_digest(text), 0
            spans, text = material_spans(text), text.translate(LINES)  # noqa: PLW2901  (of the same length)
            self.has_material |= bool(spans)
            for start, end in [*spans, (len(text), len(text))]:
                if text[at:start].strip():
                    pieces.append((digest, at, text[at:start]))
                at = end
        self.too_long = sum(len(piece) for _, _, piece in pieces) > MAX_OWN or len(pieces) > _MAX_SEGMENTS
        self.segments = [] if self.too_long else [Segment(*piece) for piece in pieces]
        self._known: dict[tuple[object, ...], list[Place]] = {}

    def places(self, value: object, *, dictated: bool = False, unit: Unit = None) -> list[Place]:
        """Return where a value stands, sorted, also if a sentence prohibits it.

        `dictated`: the value is free text. `unit`: what may follow a number.
        """
        key = (type(value), value, dictated, unit)
        if key not in self._known:
            spans = (sorted(set(_found(segment, value, unit, dictated=dictated))) for segment in self.segments)
            self._known[key] = [Place(n, *span) for n, found in enumerate(spans) for span in found[:_MAX_PLACES]]
        return self._known[key]

    def refused(self, place: Place, *, dictated: bool = False) -> bool:
        """Return True if a sentence prohibits the value at a place."""
        return self.segments[place.segment].refused(place.start, dictated=dictated)

    def counts(self, number: int, *, strict: bool) -> list[Place]:
        """Return where a number of calls is said. `strict`: only as "twice", "3 times"."""
        found = []
        for place in self.places(number):
            text = self.segments[place.segment].text
            twice = text[place.start : place.end].lower() in ("twice", "thrice")
            if (not strict or twice or _TIMES.match(text, place.end)) and not self.refused(place):
                found.append(place)
        return found


def _found(segment: Segment, value: object, unit: Unit, *, dictated: bool) -> Iterator[tuple[int, int]]:
    """Yield where a value stands as a whole token."""
    if dictated:
        yield from _phrase(segment, value) if isinstance(value, str) and value.strip(_EDGE) else ()
        return
    own = forms_of(value)
    dates = {f for f in own if f.startswith("date:")}
    times = {f for f in own if f.startswith("time:")}
    plain = isinstance(value, str) and value.lower().startswith("http://")
    tokens = {f for f in own if not f.startswith(("text:", "date:", "day:", "time:"))}
    if any(f.startswith("text:") for f in own):
        yield from _phrase(segment, value)
    for form in tokens:
        for start, end in segment.tokens.get(form, ()):
            meant = not form.startswith("num:") or _meant(segment.text, start, end, value, unit)
            if (
                meant
                and segment.certain(form, start, end)
                and segment.whole(start, end)
                and (not plain or segment.text[start:end].lower().startswith("http://"))
            ):
                yield start, end
    for form in dates or times:
        for span in segment.tokens.get(form, ())[:_MAX_PLACES]:
            if segment.certain(form, *span):
                yield from _moment(segment, span, times if dates else set())
    if isinstance(value, str) and value.lower().startswith("https://"):
        yield from _phrase(segment, value[8:].rstrip("/"))
    if isinstance(value, str) and _ROOTED.fullmatch(value):  # a tool may want "/notes.md" for the user's "notes.md"
        yield from _phrase(segment, value[1:])
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (
            m.span()
            for m in _COUNT.finditer(segment.text)
            if _COUNTED[m[0].lower()] == value
            and segment.whole(*m.span())
            and _meant(segment.text, *m.span(), value, unit)
        )


def _meant(text: str, start: int, end: int, value: object, unit: Unit) -> bool:
    """Return True if a number is not an hour, a change or a part.

    "8 Uhr" is an hour, "by 3" a change, and "3 million" is not 3.
    "%" follows only a number whose `unit` it is.
    """
    if unit is not None and unit.match(text, end):
        return True
    before = text[max(0, start - _SHORT) : start]
    changed = _HOUR.match(text, end) or _AT.search(before) or CHANGED.search(before)
    if changed and isinstance(value, int | float):
        return False
    return _SCALED.match(text, end) is None and PERCENT.match(text, end) is None


def _moment(segment: Segment, date: tuple[int, int], times: set[str]) -> Iterator[tuple[int, int]]:
    """Yield the date's span or, with `times`, the spans from the date to such a time."""
    if not times:
        if segment.whole(*date):
            yield date
        return
    for form in times:
        for start, end in segment.tokens.get(form, ())[:_MAX_PLACES]:
            first, last = sorted((date, (start, end)))
            if segment.day_of(start, end) == date and says("near_date", segment.text[first[1] : last[0]], Known()):
                yield min(date[0], start), max(date[1], end)


def _phrase(segment: Segment, value: object) -> Iterator[tuple[int, int]]:
    words = fold(tidy(str(value))).split()
    shortest = 1 if words and unicodedata.category(words[0][0]) == "Sc" else _SHORTEST  # "$"
    if not shortest <= sum(map(len, words)) <= max(MAX_VALUE, len(segment.text)):
        return
    pattern = re.compile(r"\s{1,64}".join(map(re.escape, words)))
    at = 0
    for _ in range(4 * _MAX_PLACES):
        found = pattern.search(segment.folded, at)
        if found is None:
            return
        at = found.start() + 1
        if segment.whole(*found.span()) and not (shortest == 1 and _FOREIGN.search(segment.text[: found.start()])):
            yield found.span()
