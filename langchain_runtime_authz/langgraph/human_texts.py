"""Read what the user says in a root input, and what of it a machine has answered already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from langchain_core.messages import HumanMessage, RemoveMessage, SystemMessage
from langgraph.types import Command

from langchain_runtime_authz.facts.task import HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph.messages import USER, as_message, is_human, messages_in, written


def human_texts(value: object) -> list[HumanText]:
    """Return the `user`-role entries of a root input, in order, from any form that LangChain accepts."""
    if isinstance(value, list | tuple) and any(isinstance(entry, Command) for entry in value):
        return [text for entry in value for text in human_texts(written(entry))]
    entries: Sequence[object] = value if isinstance(value, list) else messages_in(value)
    answered = max((at for at, entry in enumerate(entries) if _answer(entry)), default=0)
    texts = [(at, text) for at, entry in enumerate(entries) if (text := _human_text(entry)) is not None]
    return [replace(text, past=True) if at < answered else text for at, text in texts]


def _answer(entry: object) -> bool:
    """Return True for what a model or a tool said."""
    message = as_message(entry)
    return (
        message is not None
        and not isinstance(message, HumanMessage | SystemMessage | RemoveMessage)
        and not is_human(message)
    )


def _human_text(entry: object) -> HumanText | None:
    message, key = as_message(entry), None
    if message is not None and is_human(message):
        content, key = message.content, message.id
    elif message is not None:
        return None
    elif isinstance(entry, Mapping) and (entry.get("role") or entry.get("type")) in USER:
        content, key = entry.get("content", ""), entry.get("id")
    else:
        return None
    blocks = content if isinstance(content, list) else ()
    mixed = sum(isinstance(b, str) or (isinstance(b, Mapping) and "text" in b) for b in blocks) > 1
    key = key if isinstance(key, str) else None
    return HumanText(content_digest(content), content_text(content), key, mixed=mixed)
