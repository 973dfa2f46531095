"""The task: what the user asked on a thread, and all changes of it.

A task is a list of texts that can only grow. The ledger pins the texts by digest, outside graph state, so a summary of
the state cannot drop "never above 10". Any code can write a message with any class, role or name. So a message's class,
role and name do not prove that a person wrote the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_runtime_authz.digest import fingerprint

CORRECTION: Final = "correction-"  # prefix of the keys of texts from `correct`
ANSWER: Final = "answer:"  # prefix of the keys of a user's answers to questions
MAX_TASK_TEXT: Final = 4000  # characters of the task's text in a request; the digest covers the whole text


@dataclass(frozen=True, slots=True)
class HumanText:
    """One text that changed the task.

    `key`: the sender's id of the message. `author`: `type:id`. `epoch`, `at`: set by the ledger, `at` in epoch seconds.
    `own`: the thread's subject wrote it; texts of others can only narrow the task. `past`: it came in a history,
    already answered. `mixed`: it has several blocks, perhaps an attachment, or came together with texts of other
    people. Past and mixed texts order nothing.
    """

    digest: str
    text: str
    key: str | None = None
    own: bool = True
    author: str = ""
    epoch: int = field(default=0, compare=False)
    at: float = field(default=0.0, compare=False)
    past: bool = field(default=False, compare=False)
    mixed: bool = field(default=False, compare=False)

    def by(self, author: str, *, own: bool) -> HumanText:
        """Return a copy with this author, which is `own` only if the text was `own` too."""
        own = self.own and own
        return HumanText(self.digest, self.text, self.key, own, author, self.epoch, self.at, self.past, self.mixed)


@dataclass(frozen=True, slots=True)
class Task:
    """The task. `digest` covers all its texts; `text` holds only the subject's own."""

    id: str = ""
    digest: str = ""
    text: str = ""
    corrections: int = 0


def content_text(content: object) -> str:
    """Return the text of a message's content, with `[type]` for blocks without text."""
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
    """Return the digest of a message's content. Text blocks count as one joined text."""
    if isinstance(content, list) and all(
        isinstance(b, str) or (isinstance(b, dict) and b.get("type") == "text") for b in content
    ):
        content = "\n".join(_block_text(b) for b in content)
    data = content if isinstance(content, str) else _canonical(content)
    return "sha256:" + hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(content: object) -> str:
    # A checkpointer may reorder keys and make tuples lists, so the digest ignores both.
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return fingerprint(content)


def extend_task(task: Task, texts: Sequence[HumanText], *, correction: bool) -> Task:
    """Return the task with `texts` added. `correction`: count one correction more."""
    if not texts:
        return task
    value = task.digest
    for text in texts:
        value = "sha256:" + hashlib.sha256(f"{value}\n{text.digest}".encode()).hexdigest()
    words = "\n".join(filter(None, [task.text, *(t.text for t in texts if t.own)]))
    # Cut the beginning of a long text, because the newest words may narrow the task.
    words = words if len(words) <= MAX_TASK_TEXT else "…" + words[1 - MAX_TASK_TEXT :]
    return Task(task.id or value[7:23], value, words, task.corrections + (1 if correction else 0))


def new_texts(pinned: Sequence[HumanText], incoming: Sequence[HumanText]) -> tuple[HumanText, ...]:
    """Return the new texts in `incoming`, which may repeat the whole history.

    `pinned`: the texts in the ledger. A text with the id of a pinned text is new if its digest differs. A text with
    another id is not new if it repeats a pinned text, in the order of the pinned texts. Missing texts do not matter.
    """
    by_key = {t.key: t.digest for t in pinned if t.key is not None}
    # Answers to questions are not messages, so a history does not contain them.
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
