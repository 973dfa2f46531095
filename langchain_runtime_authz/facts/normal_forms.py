# ruff: noqa: RUF001, PLR2004  (look-alike letters are the point; calendars and clocks have no named numbers)
"""Give each value normal forms, so that all its spellings are equal.

A form is a text `kind:normal`, like `email:bob@x.org`. The kinds are `email`, `url`, `iban`, `digits`, `num`, `date`,
`day`, `time` and `text`. If an argument and a trusted value share a form, the argument is trusted. So values share a
form only if they surely mean the same. Look-alike letters stay different here; `skeleton` folds them. A text with
invisible characters has no form.

Every pattern starts at a token's beginning and repeats a bounded number of times, so the time is linear in the text.
Patterns consume a character before they look behind, so that `re` can skip to that character.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from langchain_runtime_authz._text import lazy, normalize

EXACT: Final = Context(prec=100)  # the application's decimal context may round amounts
MAX_VALUE: Final = 2048  # characters; a longer value has no form
REMEMBERED: Final = 256  # characters of a value whose forms are cached
_DIGITS: Final = 15  # a number with more digits is treated as a name
_LOCAL, _DOMAIN = 64, 253  # characters before and after the @ of an address (RFC 5321)
_EMAIL: Final = lazy(
    rf"(?<![\w.%+\-@])[a-z0-9._%+\-]{{1,{_LOCAL}}}@[a-z0-9.\-]{{1,{_DOMAIN}}}(?![\w@])", re.IGNORECASE | re.ASCII
)
_URL: Final = lazy(r"[hHwW](?<![\w@.\-/].)(?i:(?<=h)ttps?://|(?<=w)ww\.)[^\s<>\"'`(){}\[\]|\\‘’“”«»—…]{1,2000}")
_IBAN: Final = lazy(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[A-Z0-9]{8,32}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])"
)
# An IBAN in groups, as people type it. Words can look the same, so its check digits (ISO 7064) must be right.
_TYPED_IBAN: Final = lazy(
    r"(?<![A-Za-z0-9])(?:[a-z]{2}\d\d|[A-Z]{2}\d\d(?=-))(?:[ \-]?[A-Za-z0-9]{4}){2,7}(?:[ \-]?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])"
)
_NATION: Final = lazy(r"\d(?<=[A-Za-z]{2}\d)\d")  # an IBAN's check digits; the search for IBANs looks for them first
_SHORTEST_IBAN: Final = 15
_PHONE: Final = lazy(r"[+\d](?<![\w.+].)(?:(?<=\+)\d|(?<=\d))[\d ().\-]{6,22}\d(?!\w)")
_CURRENCY: Final = "(?i:EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|BRL)"  # directly before or after a number
_NUMBER: Final = lazy(
    rf"[-+\d](?:(?<![\w.,\-/].)|(?<=\b{_CURRENCY}.))"
    r"(?:(?:(?<=\d)\d{0,2}|(?<=[-+])\d{1,3})(?:[,.'’ ]\d{3}){1,4}(?![\d])(?:[.,]\d{1,2}(?!\d))?"
    r"|(?:(?<=\d)\d{0,14}|(?<=[-+])\d{1,15})(?:[.,]\d{1,10})?)"
    rf"(?=(?:st|nd|rd|th|{_CURRENCY})?(?!\w))"
)
TELLING: Final = lazy(r"[\d@]|://|www\.", re.IGNORECASE)  # without a match, the text has no address, link or number
_ZEROS: Final = lazy(r"[-+]?0\d")
_ENGLISH, _ABROAD = json.loads((Path(__file__).parent / "months.json").read_text(encoding="utf-8")).values()
_NAMES: Final = "|".join(_ENGLISH)  # in full or short, as whole words: "3 Markets" names no month
_MONTHS: Final = {m[:3]: i for i, m in enumerate(_ENGLISH, 1)} | _ABROAD
_MONTH: Final = rf"({_NAMES})\.?"
_NAMED: Final = "|".join(f"(?<={m[0]}){m[1:]}" for m in _ENGLISH)
_ISO: Final = lazy(r"(\d(?<![\w\-].)\d{3})-(\d{1,2})-(\d{1,2})(?![\d\-])(?:[T ](?=\d))?")
_MDY: Final = lazy(
    rf"([JFMASONDjfmasond](?<!\w.)(?i:{_NAMED}))(?i:\.? {{1,2}}(\d{{1,2}})(?:st|nd|rd|th)?(?:,? {{1,2}}(\d{{4}}))?)(?![\w])"
)
_DMY: Final = lazy(  # "3 May 2027", "3. März 2027", "24 de diciembre de 2026"
    rf"(\d(?<!\w.)\d?)(?i:(?:st|nd|rd|th|\.|er|º)? (?:of |de )?({_NAMES}|{'|'.join(_ABROAD)})\.?(?:,? (?:de )?(\d{{4}}))?)(?![\w])"
)
_SLASH: Final = lazy(r"(\d(?<![\w/.].)\d?)[/.](\d{1,2})[/.](\d{4})(?![\w/])")
_OF_YEAR: Final = lazy(rf"(?<!\w){_MONTH},? ?(\d{{4}})(?!\w)", re.IGNORECASE)
# What a value that is only a date may hold in addition: a time zone, which is ignored, and words like "at".
_ZONE: Final = lazy(r"(?<=:\d\d)(?:\.\d{1,6})? ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d)$", re.IGNORECASE)
_BESIDE: Final = lazy(
    r"(?:[\s,]|\b(?:at|on|the|(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?)\b)*", re.IGNORECASE
)
_TIME: Final = lazy(
    r"(\d(?<![\d:].)\d?):(\d{2})(?::\d{2})?(?:\.\d{1,6})? ?((?i:am|pm))?(?![\d:])|(\d(?<![\w:.,].)\d?) ?((?i:am|pm))(?!\w)"
    r"|(\d(?<![\w:.,].)\d?) ?(?:[Uu]hr|h(\d\d)?)(?!\w)"
)

# Common look-alike letters (UTS #39 has all). They only raise suspicion: values never count as equal by them.
_LOOKS: Final = {
    ord(pair[0]): pair[1]
    for pair in (  # noqa: SIM905  (a table that can be read)
        "аa еe оo рp сc уy хx іi јj ѕs һh ԁd ԛq ԝw вb нh кk мm тt ɡg αa βb γy εe ιi κk νv οo ρp τt υu χx ωw "
        "ßb øo łl đd ıi ɩi ʟl ｏo 0o 1l |l 3e 5s"
    ).split()
}


@lru_cache(maxsize=4096)
def key(form: str) -> str:
    """Return a form's digest (128 bits, hex). It does not hide a guessable form."""
    return blake2b(form.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def tidy(text: str) -> str:
    """Return the text in NFC, with single blanks between words."""
    return " ".join(normalize("NFC", text).split())


def _plain(text: str) -> bool:
    if text.isascii():
        return text.isprintable()
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Cn") for c in text):
        return False
    return normalize("NFKC", text) == text


def _respelled(value: str) -> bool:
    # To a mail server, the Kelvin sign is not a K.
    return not value.isascii() and any(
        unicodedata.normalize("NFC", c).isascii() for c in value if not (c.isascii() or c.isspace())
    )


def fold(text: str) -> str:
    """Return the text in lower case."""
    # `casefold` would join ß and ss, which are different names.
    return text.lower().replace("ς", "σ")


def skeleton(text: str) -> str:
    """Fold compatibility forms, accents, case and look-alike letters of a text."""
    return _known_skeleton(text) if len(text) <= REMEMBERED else _skeleton(text)


def _skeleton(text: str) -> str:
    folded = normalize("NFKD", text).casefold().translate(_LOOKS)
    if not (folded.isascii() and folded.isprintable()):
        folded = "".join(c for c in folded if unicodedata.category(c) not in ("Mn", "Cf", "Cc"))
    return folded.replace("rn", "m")


_known_skeleton: Final = lru_cache(maxsize=1024)(_skeleton)


def canonical_number(number: Decimal) -> str:
    """Return a number's only spelling: no exponent, no zeros at the end."""
    text = format(number.normalize(EXACT), "f")
    return "0" if text == "-0" else text


@lru_cache(maxsize=1024)
def number_readings(text: str) -> tuple[Decimal, ...]:
    """Return all numbers that a text may mean: `1,200` is 1.2 or 1200."""
    digits = re.sub(r"[^\d.,+\-]", "", text)
    marks = [c for c in digits if c in ".,"]
    if len(set(marks)) == 2:  # the second separator is the decimal one
        readings = [digits.replace(marks[0], "").replace(marks[-1], ".")]
    elif len(marks) > 1:
        readings = [digits.replace(marks[0], "")]
    else:
        readings = [digits.replace(",", ".")]
        if re.fullmatch(r"[-+]?[1-9]\d{0,2}[.,]\d{3}", digits):
            readings.append(digits.replace(marks[0], ""))
    found = []
    for reading in readings:
        try:
            found.append(Decimal(reading))
        except InvalidOperation:
            continue
    return tuple(found)


def forms_of(value: object, *, said: bool = False) -> tuple[str, ...]:
    """Return the normal forms of one scalar, or () if its meaning is not certain.

    `said`: the scalar is from a source (the user's words, an output), not from an argument. Source and argument match
    if they share a form. "May 26" in a source matches May 26 of any year in an argument. "May 26, 2026" in a source
    matches that date, and "May 26" in an argument.
    """
    kind = type(value)
    if kind is float or kind is int or (kind is str and len(value) <= REMEMBERED):  # type: ignore[arg-type]
        return remembered(value, said)
    return _forms(value, said)


def _forms(value: object, said: bool) -> tuple[str, ...]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = Decimal(repr(value))
        return (f"num:{canonical_number(number)}",) if number.is_finite() and abs(number.adjusted()) < 30 else ()
    if not isinstance(value, str) or not 0 < len(value := " ".join(value.split())) <= MAX_VALUE:
        return ()
    text = tidy(value)
    if not _plain(text) or _respelled(value):
        return ()
    if not TELLING.search(text):
        return (f"text:{fold(text)}",)
    if _EMAIL.fullmatch(text):
        return (f"email:{text.lower()}",)
    if _URL.fullmatch(text):
        return _url(text)
    compact = text.replace(" ", "").upper()
    if text.isascii() and _IBAN.fullmatch(compact):
        return (f"iban:{compact}",)
    found = [f"text:{fold(text)}"]
    # A number has no form as text. Digits that begin with 0 are a name, not a number.
    if _NUMBER.fullmatch(text) and sum(c.isdigit() for c in text) <= _DIGITS and not _ZEROS.match(text):
        found = [f"num:{canonical_number(d)}" for d in number_readings(text)]
    if _PHONE.fullmatch(text):
        found += _digit_forms(text)[: 1 + said]
    found += _moment(text, said=said)
    return tuple(dict.fromkeys(found))


# The cached `_forms`. Call it only with a number or a text of at most `REMEMBERED` characters.
remembered: Final = lru_cache(maxsize=4096, typed=True)(_forms)


def said_forms(value: object, own: tuple[str, ...]) -> tuple[str, ...]:
    """Return `forms_of(value, said=True)`, given `own`, which is `forms_of(value)`."""
    return forms_of(value, said=True) if any(f.startswith(("date:", "digits:")) for f in own) else own


def _digit_forms(text: str) -> list[str]:
    """Return the forms of a number in groups, and of its digits alone.

    In other groups, the same digits may be another account or host. Only those of a number behind a "+" are one.
    """
    groups = re.findall(r"\d+", text)
    return [f"digits:{sign.join(groups)}" for sign in ("" if text[0] == "+" else "-", "")]


def _moment(text: str, *, said: bool) -> list[str]:
    """Return the forms of a text that is only a date, a time or both; else []."""
    text = _ZONE.sub("", text)
    several = list(_dates(text, said=said))
    spans = {span for _, span in several}
    alone = len(spans) <= 2 and len({f[:5] for f, _ in several} - {"day:-"}) == len(spans)
    whole = alone and several and _BESIDE.fullmatch(mask_spans(text, list(spans), "\n"))
    return [f for f, _ in several] if whole else []


def _url(text: str) -> tuple[str, ...]:
    """Return a link's form: without scheme, default port, last slash and fragment.

    A link has no form if it has a user part or a non-ASCII host, or if its fragment could hold more links.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ()
    if not host or not host.isascii() or parts.username is not None or "\\" in text:
        return ()
    if any(c in parts.fragment for c in ",;"):
        return ()
    where = host.lower().rstrip(".") + (f":{port}" if port not in (None, 80, 443) else "")
    query = f"?{parts.query}" if parts.query else ""
    return (f"url:{where}{parts.path.rstrip('/')}{query}",)


def identifiers_in(text: str) -> list[str]:
    """Return the forms of all addresses, links and account numbers in a text."""
    return list(dict.fromkeys(f for f, _ in _identifiers(text))) if TELLING.search(text) else []


def _identifiers(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    end, at = 0, text.find("@")
    while at >= 0:
        following = text.find("@", at + 1)
        address = _EMAIL.search(text, max(end, at - _LOCAL), min(at + _DOMAIN + 2, following + 1 or len(text)))
        if address is not None:
            yield f"email:{address[0].rstrip('.').lower()}", address.span()
        end, at = address.end() if address is not None else at + 1, following
    for found in _URL.finditer(text):
        for form in forms_of(found[0].rstrip(".,;:!?*_")):
            yield form, found.span()
    nations = [found.start() - 2 for found in _NATION.finditer(text)]
    for found in _each(_IBAN, text, nations):
        yield f"iban:{found[0].replace(' ', '')}", found.span()
    for found in _each(_TYPED_IBAN, text, nations):
        groups = re.split(r"([ \-])", found[0])
        for last in range(len(groups), 0, -2):  # the last groups may be words that follow the IBAN
            compact = "".join(groups[:last:2]).upper()
            if len(compact) >= _SHORTEST_IBAN and _checked(compact):
                yield f"iban:{compact}", (found.start(), found.start() + len("".join(groups[:last])))
                break


def _each(pattern: re.Pattern[str], text: str, places: Sequence[int]) -> Iterator[re.Match[str]]:
    end = 0
    for place in places:
        if place >= end and (found := pattern.match(text, place)) is not None:
            yield found
            end = found.end()


def _checked(iban: str) -> bool:
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def mentions_in(text: str) -> dict[str, str]:
    """Return form → spelling of each identifier, number, date and time in a text."""
    found: dict[str, str] = {}
    for form, (start, end) in located_mentions(text):
        found.setdefault(form, text[start:end])
    return found


def located_mentions(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield form and span of each identifier, number, date and time in a text."""
    if not TELLING.search(text):
        return
    spans = [*_identifiers(text), *_dates(text, said=True)]
    yield from spans
    rest = mask_spans(text, [span for _, span in spans], "\n")
    for phone in _PHONE.finditer(rest):
        if sum(map(str.isdigit, phone[0])) >= 7:
            yield from ((form, phone.span()) for form in _digit_forms(phone[0]))
    for number in _NUMBER.finditer(rest):
        for meant in number_readings(number[0]):
            yield f"num:{canonical_number(meant)}", number.span()


def mask_spans(text: str, spans: Sequence[tuple[int, int]], sign: str) -> str:
    """Return `text` with each character inside `spans` replaced by `sign`."""
    parts, at = [], 0
    for start, end in sorted(spans):
        parts += [text[at:start], sign * (end - max(at, start))]
        at = max(at, end)
    return "".join([*parts, text[at:]])


def _dates(text: str, *, said: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield form and span of dates and times. A date without a year is `date:-05-26`."""
    for pattern, order in ((_ISO, "ymd"), (_MDY, "mdy"), (_DMY, "dmy"), (_SLASH, "dmy"), (_SLASH, "mdy")):
        for found in pattern.finditer(text):
            given = dict(zip(order, found.groups(), strict=True))
            for form in _date(given["y"], given["m"], given["d"], said=said):
                yield form, found.span()
    for found in _TIME.finditer(text):
        half, hour = (found[3] or found[5] or "").lower(), int(found[1] or found[4] or found[6])
        minute = int(found[2] or found[7] or 0)
        hour = hour % 12 if half else hour
        hour += 12 if half == "pm" else 0
        if hour < 24 and minute < 60:
            yield f"time:{hour:02}:{minute:02}", found.span()


def iso_dates(text: str) -> str:
    """Write dates as ISO 8601 if they have a year and one reading, also "May 2026"."""
    found: dict[tuple[int, int], set[str]] = {}
    for form, span in _dates(text, said=False):
        if form.startswith("date:") and form[5] != "-":
            found.setdefault(span, set()).add(form[5:])
    for (start, end), days in sorted(found.items(), reverse=True):
        text = text[:start] + (days.pop() if len(days) == 1 else text[start:end]) + text[end:]
    return _OF_YEAR.sub(lambda m: f"{m[2]}-{_MONTHS[m[1][:3].lower()]:02}", text)


def _date(year: str | None, month: str, day: str, *, said: bool) -> Iterator[str]:
    number = _MONTHS.get(month.lower()) or _MONTHS.get(month[:3].lower(), 0) if month[:1].isalpha() else int(month)
    try:
        datetime.date(int(year or 2000), number, int(day))
    except ValueError:
        return
    of_year = f"-{number:02}-{int(day):02}"
    if year:
        yield f"date:{int(year):04}{of_year}"
        yield f"day:{of_year}" if said else f"date:{of_year}"
    else:
        yield f"date:{of_year}"
        if not said:
            yield f"day:{of_year}"
