"""The task: what the user asked, and when it changed.

It is a grow-only list of texts of human origin, pinned in the ledger by digest, not in graph state: a summary cannot drop
"never above 10". Message class, role, name and markers prove no origin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_runtime_authz.digest import fingerprint

CORRECTION: Final = "correction-"  # keys of texts of `correct`
ANSWER: Final = "answer:"  # keys of texts that a user said in answer to a question
MAX_TASK_TEXT: Final = 4000  # characters of task text that travel in a request; the digest covers all


@dataclass(frozen=True, slots=True)
class HumanText:
    """One text that changed the task. `key` is the id its sender gave it, `author` is `type:id`, `epoch` is the ledger's.

    `own`: the thread's own subject said it; others' words can only narrow. `past`: a machine answered it already in the
    history that brought it. `mixed`: it has several text blocks, and one may be an attachment. Neither is an order of the turn.
    """

    digest: str
    text: str
    key: str | None = None
    own: bool = True
    author: str = ""
    epoch: int = field(default=0, compare=False)
    past: bool = field(default=False, compare=False)
    mixed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Task:
    """The pinned task, folded: `digest` chains over every text, `text` holds the subject's own words."""

    id: str = ""
    digest: str = ""
    text: str = ""
    corrections: int = 0


def content_text(content: object) -> str:
    """Return the words of a message's content; blocks without words stand as `[type]`."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_block_text(b) for b in content)
    return str(content)


def _block_text(block: Any) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, dict):
        return str(block["text"]) if block.get("type") == "text" and "text" in block else f"[{block.get('type')}]"
    return str(block)


def content_digest(content: object) -> str:
    """Return the digest of a message's content: `"x"` equals one text block `x`; media count by their bytes."""
    if isinstance(content, list) and all(
        isinstance(b, str) or (isinstance(b, dict) and b.get("type") == "text") for b in content
    ):
        content = "\n".join(_block_text(b) for b in content)
    data = content if isinstance(content, str) else _canonical(content)
    return "sha256:" + hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(content: object) -> str:
    # A serialiser's round trip changes key order and tuples, not the content.
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return fingerprint(content)


def extend(task: Task, texts: Sequence[HumanText], *, correction: bool) -> Task:
    if not texts:
        return task
    value = task.digest
    for text in texts:
        value = "sha256:" + hashlib.sha256(f"{value}\n{text.digest}".encode()).hexdigest()
    words = "\n".join(filter(None, [task.text, *(t.text for t in texts if t.own)]))
    # The newest words are the ones that narrow: keep the end.
    words = words if len(words) <= MAX_TASK_TEXT else "…" + words[1 - MAX_TASK_TEXT :]
    return Task(task.id or value[7:23], value, words, task.corrections + (1 if correction else 0))


def changed(pinned: Sequence[HumanText], incoming: Sequence[HumanText]) -> tuple[HumanText, ...]:
    """Return the texts in `incoming` that the user had not said before: a stateless client sends the whole history each turn.

    A known id with another digest is a correction. Texts without ids that repeat pinned ones in their order are history.
    Leaving texts out is not a correction.
    """
    by_key = {t.key: t.digest for t in pinned if t.key is not None}
    # Answers to questions do not stand in a history.
    known = [t.digest for t in pinned if t.key is None or not t.key.startswith(ANSWER)]
    fresh: list[HumanText] = []
    heard = 0
    for text in incoming:
        if text.key is not None and text.key in by_key:
            if by_key[text.key] != text.digest:
                fresh.append(text)
            continue
        if not fresh and len(incoming) > 1 and text.digest in known[heard:]:
            heard = known.index(text.digest, heard) + 1
            continue
        fresh.append(text)
    return tuple(fresh)
