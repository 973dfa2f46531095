"""Show text safely in terminals, HTML and Markdown.

An approver reads values that a model wrote and sentences that a stranger wrote. These characters are escaped:
controls, bidirectional overrides (Trojan Source, CVE-2021-42574), invisible characters (UTS #39 §3.1), long runs of
spaces (except an indentation), piled-up accents and markup. Backslashes and quotation marks are escaped too, so the
result is unambiguous. Letters of all scripts stay; `scripts_in` names the scripts of a text, to tell look-alikes apart.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final

from langchain_runtime_authz._text import lazy, normalize

MAX_SHOWN: Final = 240  # characters of one text or number
MAX_LISTED: Final = 40  # texts and numbers of one list or object
MAX_CELL: Final = 2000  # characters of a table's cell
WIDTH: Final = 80  # columns of a terminal

_TAIL: Final = 60  # characters of a long text's end that are shown
_DEPTH: Final = 8  # deeper lists and objects are shown as one text
_ENTITY: Final = 34  # characters of the longest HTML entity
_INDENT: Final = 16  # spaces that are shown at the start of a line, as in code
_ACCENTS: Final = 2  # on one letter; more would cover other lines
_MARKDOWN: Final = "*~_"  # these are escaped by a backslash, other markup by its code point
_UNSEEN: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Me"))
# Invisible characters with the category letter, symbol or mark.
_BLANK: Final = lazy(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_MARKUP: Final = lazy(
    r"""["\\`]|<(?=[A-Za-z/!?])|&(?=#|[A-Za-z])"""  # quotes and escapes; code; HTML
    r"|[*~](?! )|(?<! )[*~]"  # emphasis and strikes, which never stand between spaces
    r"|\[(?=[a-z#/@])|\](?=[(\[:])"  # rich's own markup; links
    r"|_(?![A-Za-z0-9])|(?<![A-Za-z0-9])_"  # emphasis, but not inside a word
    r"|:(?=[A-Za-z_][\w+\-]*:)",  # emoji codes
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """Return `text` on one line, without markup, invisible characters or reordering."""
    shown: list[str] = []
    accents = indent = 0
    for c in normalize("NFC", text):
        accents = accents + 1 if unicodedata.category(c) == "Mn" else 0
        indent = indent + 1 if c == " " and (indent or shown[-1:] == ["\\n"]) else 0
        filler = shown[-1:] == [" "] and not 0 < indent <= _INDENT  # many spaces in a row could push text out of sight
        hidden = is_invisible(c) and (c != " " or filler)
        shown.append(_escape(c) if hidden or accents > _ACCENTS else c)
    # An escaped character is longer than one; only the others are searched for markup.
    return "".join(c if len(c) > 1 else m for c, m in zip(shown, _marked(shown), strict=True))


def is_invisible(c: str) -> bool:
    """Return True if a character is blank, invisible or a control."""
    return unicodedata.category(c) in _UNSEEN or _BLANK.match(c) is not None


def _marked(shown: list[str]) -> list[str]:
    plain = "".join(c if len(c) == 1 else " " for c in shown)
    marked = list(plain)
    for found in _MARKUP.finditer(plain):
        at = found.start()
        entity = plain[at : at + _ENTITY]
        if plain[at] != "&" or html.unescape(entity) != entity:
            marked[at] = f"\\{plain[at]}" if plain[at] in _MARKDOWN else _escape(plain[at])
    return marked


def _escape(c: str) -> str:
    if c in "\n\t":
        return "\\n" if c == "\n" else "\\t"
    return f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}"  # noqa: PLR2004  (Unicode planes)


def quote(value: object, limit: int = MAX_SHOWN) -> str:
    """Return a value quoted, without markup, and cut to a bounded length.

    Each text is cut at `limit` characters, a list or object after `MAX_LISTED` values. A digest identifies a cut value.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    digest = f"sha256 {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    if isinstance(value, list | dict):
        number = count()
        line, left = _quoted_part(value, limit, number), next(number) - MAX_LISTED
        return f"{line} AND {left} MORE VALUES ({digest})" if left > 0 else line
    if len(text) <= limit:
        return text if value is None or isinstance(value, bool) else f'"{one_line(text)}"'
    head, tail = one_line(text[: limit - _TAIL]), one_line(text[-_TAIL:])
    return f'"{head}" … "{tail}" ({len(text)} characters, {digest})'


def _quoted_part(value: object, limit: int, number: Iterator[int], depth: int = 0) -> str:
    """Quote a part of a list; "" after `MAX_LISTED` parts, which `number` counts."""
    if isinstance(value, list | dict) and value and depth < _DEPTH:
        pairs = value.items() if isinstance(value, dict) else (("", one) for one in value)
        shown = [(key, text) for key, one in pairs if (text := _quoted_part(one, limit, number, depth + 1))]
        if isinstance(value, dict):
            return ", ".join(f"{quote(str(key), limit)}: {text}" for key, text in shown).join("{}") if shown else ""
        return ", ".join(text for _, text in shown).join("[]") if shown else ""
    if next(number) >= MAX_LISTED:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = len(text) <= limit and not isinstance(value, str | list | dict)
    return one_line(text) if plain or value in ([], {}) else quote(text, limit)


def labelled(label: str, text: str, indent: int = 0) -> str:
    """Return label and text, wrapped at 80 columns. A wide character takes two."""
    from rich.cells import cell_len, chop_cells

    pad = " " * min(indent or cell_len(label), WIDTH // 2)
    lines, width = [label], WIDTH - cell_len(label)
    for word in text.split(" "):
        for part in chop_cells(word, WIDTH - len(pad)) or [""]:
            if cell_len(part) > width and lines[-1].strip():
                lines, width = [*lines, pad], WIDTH - len(pad)
            lines[-1] += f"{part} "
            width -= cell_len(part) + 1
    return "\n".join(map(str.rstrip, lines))


def scripts_in(text: str) -> tuple[str, ...]:
    """Return the scripts of the letters in `text`, like `LATIN`, sorted."""
    letters = (c for c in text if unicodedata.category(c)[0] == "L")
    return tuple(sorted({unicodedata.name(c, "UNKNOWN").split(" ", 1)[0] for c in letters}))


def html_table(head: Iterable[str], rows: Iterable[Iterable[object]], caption: str = "") -> str:
    """Return an HTML table: titles `head`, then `rows`. Texts are escaped."""
    titles = "".join(f'<th scope="col">{_cell(title)}</th>' for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    told = f"<caption>{_cell(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def printable(text: str) -> str:
    """Return a text on one line, without controls, bidirectional marks and surrogates."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _cell(value: object) -> str:
    return html.escape(printable(str(value)[:MAX_CELL]))


def error_text(exc: BaseException) -> str:
    """Return the text of an exception; "" if its `__str__` fails."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001  (a foreign `__str__` may fail in any way)
        return ""
