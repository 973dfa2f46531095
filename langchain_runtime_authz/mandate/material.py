# ruff: noqa: RUF001  (other languages' signs are the point)
"""Cut quoted, tagged, forwarded and pasted material out of a user's message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from langchain_runtime_authz._regex import lazy

_MAX_TEXT: Final = 1_000_000  # characters; a longer text counts as pasted as a whole
_MAX_OPEN: Final = 64  # tags without an end tag; after more, the rest of the text is material

_FENCED: Final = lazy(r'(`{3,64}+|~{3,64}+|"{3}).*?(?:\1|\Z)', re.DOTALL)  # a shorter fence does not end a longer one
_QUOTED: Final = lazy(r"^[ \t]*>[^\n]*", re.MULTILINE)
_TAG: Final = lazy(r"<([A-Za-z][\w\-]*)(?=[\s>])")  # an attribute, such as a file's name, may have any characters
_END: Final = lazy(r"</([A-Za-z][\w\-]*)>")
LINES: Final = str.maketrans(dict.fromkeys("\r\x0b\x0c\x85\u2028\u2029", "\n"))  # other line ends → "\n"
# A line that is quoted, is a horizontal rule, begins a forwarded message, or looks like the header of a mail.
_MARK: Final = lazy(
    r"""^[ \t]*(?:
    (?P<quote>>)
    |(?P<rule>([-=*_])\3{2,}[ \t]*$)
    |(?P<forward>[*\-_=]*[ ]?(?:begin[ ])?(?:(?:original|forwarded)[ ]message|weitergeleitete[ ]nachricht|ursprüngliche[ ]nachricht
        |message[ ](?:transféré|d['’]origine)|mensaje[ ](?:reenviado|original)|messaggio[ ]inoltrato|mensagem[ ]encaminhada)\b
        |(?:fwd?|wg)[ ]?:|on[ ][^\n]{4,}[ ]wrote[ ]?:[ \t]*$|am[ ](?=[^\n]*:[ \t]*$)[^\n]{4,}[ ]schrieb[ ]
        |le[ ][^\n]{4,}[ ]a[ ]écrit[ ]?:[ \t]*$|el[ ][^\n]{4,}[ ]escribió[ ]?:[ \t]*$)
    |(?P<header>\*{0,2}(?:(?P<sender>from|von|de|da|sent|gesendet|received|reply-to)|(?P<subject>subject|betreff|objet|asunto|oggetto)
        |to|an|para|à|a|cc|bcc|date|datum|fecha)\*{0,2}[ \t]*:)
    )[^\n]*\n?""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
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
    unquoted = _QUOTED.sub(lambda line: " " * len(line[0]), text)  # so that a fence in a quoted line ends no fence
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
    """Yield spans from a tag to its last end tag: the material may contain end tags."""
    at, without, ends = 0, 0, {end[1]: end.end() for end in _END.finditer(text)}
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
