"""Write small tables as HTML, for notebooks. Every text is only text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

MAX_CELL: Final = 2000  # characters


def table(head: Iterable[str], rows: Iterable[Iterable[object]], caption: str = "") -> str:
    """Return a table, with its caption if there is one."""
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    told = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def printable(text: str) -> str:
    """Return a text on one line, without controls, bidirectional marks and surrogates."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _text(value: object) -> str:
    return escape(printable(str(value)[:MAX_CELL]))
