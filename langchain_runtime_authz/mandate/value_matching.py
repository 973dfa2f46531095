"""Compare a plain value with a constant, range, folder or condition.

Comparisons are exact or by normal form. A value without a form equals nothing. If a number can be read in two ways
("1,234"), both must match.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from functools import lru_cache
from operator import sub, truediv
from posixpath import normpath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from langchain_runtime_authz.facts.call_arguments import MAX_ARGUMENT_NODES, SCALAR_TYPES, scalars
from langchain_runtime_authz.facts.normal_forms import (
    EXACT,
    MAX_VALUE,
    REMEMBERED,
    fold,
    forms_of,
    identifiers_in,
    mentions_in,
    skeleton,
    tidy,
)
from langchain_runtime_authz.mandate import date_matching as moments
from langchain_runtime_authz.mandate.model import AtLeast, AtMost, Condition, Contains, Eq, Not, Own, Scalar, StartsWith
from langchain_runtime_authz.mandate.read_outputs import scalar_forms
from langchain_runtime_authz.tool_profile import DESTINATIONS

_DATED: Final = ("when", "value", "")  # kinds for which an ordered date may lack the time or the year
_SPELLED: Final = ("object", "name", "value", "")  # kinds for which another spelling may name another thing
_NAMED: Final = ("object", "name")  # those of `_SPELLED` for which upper and lower case of plain words are equal
_WORDS: Final = re.compile(r"(?:[^\W\d_]+|\d+)(?:[ \-](?:[^\W\d_]+|\d+))*")
_ID: Final = re.compile(r"[^\W\d_]\d|\d[^\W\d_]|_|\.[\w:\-]+/")  # a name or link with such a part may be case-sensitive
_T: Final = re.compile(r"(?<=\d{4}-\d\d-\d\d)t(?=\d)")  # between a date and a time, in lower case
_ISO_PART: Final = re.compile(r"\d{4}-\d\d|\d\d:\d\d")
_SHOWN: Final = re.compile(r"[^<>@,;\d]{0,40}<([^<>\s,;]+)>")  # "Bob <b@x.org>"; a longer name could be a message
_CLIMBS: Final = re.compile(r"\\|%(?:2e|2f|5c|25)|\.;|[\x00-\x1f\x7f]", re.IGNORECASE)
SEVERAL: Final = re.compile(r"[*?\[\]{}]")  # a pattern stands for more than one path
_SIGNS: Final = re.compile(r"(?:\+[^@\s]*(?=@)|[^\w|]|_)+")  # `|` may stand for a letter
IDENTIFIERS: Final = ("email:", "iban:", "url:")  # normal forms that name one party or place
_PORTS: Final = {"http": 80, "https": 443}


def is_same(value: object, constant: object, kind: str) -> bool:
    """Return True if a call's value equals the constant, for an argument of this kind.

    Both must have a normal form in common, like a number, an address or the words. For these kinds there is more:

    - "when", "value", "": if the constant is a date or a time, both must be one moment (`same_moment`).
    - "object", "name", "value", "": texts must be written alike. Of objects and names, plain words may differ in case.
    - "amount": a value with a comma must be written alike.
    - Destinations: a number may be an account or a telephone number. "Bob <bob@x.org>" counts as the address alone.
    """
    for one in (value, constant):
        if type(one) not in SCALAR_TYPES or (type(one) is str and len(one) > REMEMBERED):
            return _same(value, constant, kind)
    return known_same(value, constant, kind)


def _same(value: Any, constant: Any, kind: str) -> bool:
    if isinstance(value, bool) or isinstance(constant, bool):
        return type(value) is type(constant) and value == constant
    if isinstance(value, str) and isinstance(constant, str):
        if kind == "text" and value.strip() == constant.strip():
            return True
        # A line break separates commands and headers, so it differs from a blank.
        if value != constant and not (value.strip().isprintable() and constant.strip().isprintable()):
            return False
    own, said = scalar_forms(value), scalar_forms(constant, said=True)
    if not own or not said:
        return False
    if type(value) is type(constant) and value == constant:
        return True
    if kind in DESTINATIONS:
        return _same_destination(value, constant, own, said)
    if kind in _DATED and any(f.startswith(moments.MOMENT) for f in said):
        return moments.same_moment(value, constant, own, said)
    if kind in _SPELLED and not _spelled(value, constant, own, said, kind):
        return False
    if kind == "amount" and has_comma(value):
        return False
    numbers, shared = _alike(own, said)
    if numbers is not None:
        return numbers
    if any(f.startswith("url:") for f in shared):
        return _same_endpoint(tidy(value), tidy(constant))
    return any(not f.startswith("digits:") for f in shared)


def _same_destination(value: Any, constant: Any, own: Sequence[str], said: Sequence[str]) -> bool:
    if str(value).strip()[:1] == "+" != str(constant).strip()[:1]:
        return False  # only one of them is a telephone number
    numbers, shared = _alike(own, said)
    if numbers:
        return True
    if isinstance(value, str) and (shown := _SHOWN.fullmatch(tidy(value))):
        shared = [f for f in forms_of(shown[1]) if f.startswith("email:") and f in said]
    if any(f.startswith("url:") for f in shared):
        return _same_endpoint(tidy(value), tidy(constant))
    cased = all(f.startswith("text:") for f in shared) and _ID.search(str(constant)) is not None
    return bool(shared) and (not cased or tidy(value) == tidy(constant))


def _alike(own: Sequence[str], said: Sequence[str]) -> tuple[bool | None, list[str]]:
    """Return True for surely equal numbers (None without any), and other common forms."""
    ours, numbers = ({form for form in each if form.startswith("num:")} for each in (own, said))
    shared = [form for form in own if form in said and not form.startswith((*moments.MOMENT, "num:"))]
    return ours == numbers and len(ours) == 1 if ours or numbers else None, shared


def same_values(items: Sequence[Any], ordered: Sequence[Any], kind: str, now: float | None = None) -> bool:
    """Return True if two lists have the same values, in any order.

    `now`: an ordered day without a year means the next such day after this time.
    """
    return (
        len(items) <= len(ordered)
        and all(any(is_same(item, one, kind) for one in ordered) for item in items)
        and all(any(is_same(item, one, kind) for item in items) for one in ordered)
        and (now is None or moments.are_upcoming([*moments.dates_of(ordered), *moments.dates_of(items)], now))
    )


def as_exact(value: object, named: object) -> bool:
    """Return True if a value is written like `named`, or is the same ISO 8601 date."""
    values, choices = (scalars(each, MAX_ARGUMENT_NODES) or () for each in (value, named))
    allowed = {part for one in choices for part in moments.moments_in(one)}
    return all(
        v in choices or (moments.number_or_date(v) and set() < {*moments.moments_in(v)} <= allowed) for v in values
    )


def has_comma(value: object) -> bool:
    """Return True for an amount with a comma, which tools may read in two ways."""
    return isinstance(value, str) and "," in value


known_same: Final = lru_cache(maxsize=8192, typed=True)(_same)


def _spelled(value: object, constant: object, own: Sequence[str], said: Sequence[str], kind: str) -> bool:
    """Return True if two values name one thing; only plain names may differ in case."""
    if not isinstance(value, str) and not isinstance(constant, str):
        return True
    if any(f.startswith(IDENTIFIERS) for f in own if f in said):
        return True
    one, other = (str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in (value, constant))
    if one == other:
        return True
    one, other = tidy(one), tidy(other)
    return kind in _NAMED and _WORDS.fullmatch(other) is not None and fold(one) == fold(other)


def calculate(op: str, numbers: Sequence[Sequence[Decimal]]) -> Decimal | None:
    """Return the result of `Calc.op`; None if it is not a number above 0."""
    try:
        with localcontext(EXACT):
            if op == "sum":
                result = sum((one for several in numbers for one in several), Decimal())
            else:
                (first,), (second,) = numbers
                result = {"difference": sub, "percent": lambda a, b: a * b / 100, "share": truediv}[op](first, second)
    except (ArithmeticError, ValueError):
        return None
    return result if result > 0 else None


def is_rounded(value: Decimal, result: Decimal) -> bool:
    """Return True if `value` is `result` within half a cent, and within 1 % of it."""
    with localcontext(EXACT):
        return abs(value - result) <= min(Decimal("0.005"), result / 100)


def _same_endpoint(value: str, constant: str) -> bool:
    """Return True if two links have equal scheme (default `https`), port and fragment."""
    (scheme, port), (said, said_port) = _scheme_and_port(value), _scheme_and_port(constant)
    if value.partition("#")[2] != constant.partition("#")[2]:
        return False
    return port == said_port and (scheme == said or (not said and scheme == "https"))


def _scheme_and_port(link: str) -> tuple[str, int | None]:
    parts = urlsplit(link if "://" in link else f"//{link}")
    return parts.scheme.lower(), None if parts.port == _PORTS.get(parts.scheme.lower()) else parts.port


def is_within(value: object, prefix: str) -> bool:
    """Return True for a path inside a folder, or a link at or below a prefix."""
    if not isinstance(value, str) or len(value) > MAX_VALUE or _CLIMBS.search(value) or not scalar_forms(value):
        return False
    if "://" not in prefix:
        folder, path = _segments(prefix), _segments(value)
        rooted = value.startswith("/") == prefix.startswith("/")
        below = path[: len(folder)] == folder and len(path) > len(folder)
        return rooted and "://" not in value and not _climbs(path) and below and not SEVERAL.search(value)
    try:
        link, start = urlsplit(value), urlsplit(prefix)
        alike = _scheme_and_port(value) == _scheme_and_port(prefix)
    except ValueError:
        return False
    if link.scheme.lower() != start.scheme.lower() or not alike or "@" in link.netloc or not link.hostname:
        return False
    if link.hostname != start.hostname or _climbs(filter(None, link.path.split("/"))):
        return False
    if start.query:
        return link.path == start.path and link.query == start.query
    stem = start.path.rstrip("/")
    return link.path.rstrip("/") == stem or link.path.startswith(f"{stem}/")


def _climbs(parts: Iterable[str]) -> bool:
    return not all(unquote(part).strip(". ") for part in parts)  # Windows reads ".. " as ".."


def _segments(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def text_holds(value: object, text: str) -> bool:
    """Return True if a text holds the value as a whole word, or its number."""
    if isinstance(value, bool):
        return False
    if not isinstance(value, str):
        return not set(scalar_forms(value)).isdisjoint(mentions_in(text))
    part = fold(tidy(value))
    return part != "" and re.search(rf"(?<![\w@-]){re.escape(part)}(?![\w@-])", fold(tidy(text))) is not None


def is_own_identifier(value: Scalar, own: Sequence[Scalar]) -> bool:
    """Return True if a value is one of the subject's `own` identifiers."""
    return any(is_same(value, one, "principal") for one in own)


def meets_condition(
    condition: Condition, values: Sequence[Any], own: Sequence[Scalar] = (), zone: datetime.tzinfo | None = None
) -> bool | None:
    """Return True if one of `values` meets the condition; None if that is not certain.

    For `Not`, no value may meet it. `zone`: the zone of the condition's times that do not name one.
    """
    if not values:
        return False
    inner = condition.condition if isinstance(condition, Not) else condition
    bound = getattr(inner, "value", None)
    if zone is not None and bound is not None and not moments.names_zone(bound):
        values = [moments.in_zone(v, zone) for v in values]
    found = {
        meets_condition(inner, [v], own, zone) if isinstance(inner, Not) else _holds(inner, v, own) for v in values
    }
    if isinstance(condition, Not):
        return None if None in found else True not in found
    return True if True in found else None if None in found else False


def _holds(
    condition: Eq | Contains | StartsWith | AtLeast | AtMost | Own, value: Scalar, own: Sequence[Scalar]
) -> bool | None:
    if isinstance(condition, AtLeast | AtMost):
        order = moments.compare(value, condition.value)
        if order is None:
            return None
        return order >= 0 if isinstance(condition, AtLeast) else order <= 0
    if not isinstance(value, bool) and not scalar_forms(value):
        return None
    if isinstance(condition, Own):
        # If a text only contains a name or an address, it may still mean the subject: not certain.
        shown = mentions_in(str(value)).keys()
        unsure = not own or any(text_holds(one, str(value)) or not shown.isdisjoint(scalar_forms(one)) for one in own)
        return is_own_identifier(value, own) or (None if unsure else False)
    if isinstance(condition, Eq):
        # This compares dates as dates, and text in any case.
        return is_same(value, condition.value, "when") or (None if _close(value, condition.value) else False)
    text, part = (_T.sub(" ", fold(tidy(one))) for one in (str(value), condition.text))
    if isinstance(condition, StartsWith):
        found = text.startswith(part)
    else:
        found = re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None
    # The text may be the same date, written in another way.
    other = not (moments.ISO.fullmatch(text) and _ISO_PART.match(part))
    return found or (None if other and any(f.startswith(moments.MOMENT) for f in scalar_forms(value)) else False)


def _close(value: Scalar, constant: Scalar) -> bool:
    """Return True if two values that are not the same may still mean the same."""
    if isinstance(value, bool) or isinstance(constant, bool):
        return type(value) is not type(constant)
    own, said = scalar_forms(value), scalar_forms(constant, said=True)
    shared, ours, theirs = ({f.partition(":")[0] for f in found} for found in ({*own} & {*said}, own, said))
    unknown = "date" in ours and theirs == {"text"}  # a text may mean a date, like "tomorrow"
    return unknown or (not shared <= {"text"} and not {"date", "time"} & ours & theirs - shared)


def touches_unwanted(value: object, unwanted: Scalar, kind: str) -> bool:
    """Return True if a value is, holds or lies below `unwanted`, or is too long."""
    if not set(scalar_forms(value)).isdisjoint(scalar_forms(unwanted)):
        return True
    if kind == "amount" or not isinstance(value, str):
        return False
    texts = (value, normpath(unquote(value).replace("\\", "/")))
    return len(value) > MAX_VALUE or any(_sought(str(unwanted)).search(_without_signs(text)) for text in texts)


def may_hold(held: Sequence[Any] | None, unwanted: Scalar) -> bool:
    """Return True if a path or pattern in `held` may hold `unwanted`, or is too long."""
    for value in (one for one in held or () if isinstance(one, str)):
        if len(value) > MAX_VALUE:
            return True
        stem, *rest = SEVERAL.split(normpath(unquote(value)), maxsplit=1)
        above, kept = (" ".join(_without_signs(text).split()) for text in (stem, str(unwanted)))
        if "/" in str(unwanted) and kept.startswith(above if rest or not above else f"{above} "):
            return True
    return False


@lru_cache(maxsize=1024)
def _sought(unwanted: str) -> re.Pattern[str]:
    """Return a pattern that finds `unwanted` in a text without signs."""
    addresses = (form.partition(":")[2] for form in identifiers_in(tidy(unwanted)))
    bare = [" *".join(map(re.escape, _without_signs(text).replace(" ", ""))) for text in (unwanted, *addresses)]
    return re.compile(rf"(?<!\S)(?:{'|'.join(filter(None, bare)) or '(?!)'})(?!\S)")


def _without_signs(text: str) -> str:
    """Return a text's `skeleton`, with blanks for signs (not `|`) and for `+tag`s."""
    return skeleton(_SIGNS.sub(" ", tidy(text)))
