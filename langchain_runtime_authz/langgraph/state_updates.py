"""Read the values and messages of a state or state update, and add messages to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Overwrite

_OVERWRITE = "__overwrite__"
_PAIR = 2  # (name, value); ("user", "text")


def update_in(given: object) -> object:
    """Return the state update in a root input. A `Command`'s pairs become a mapping."""
    update = given.update if isinstance(given, Command) else given
    pairs = update if isinstance(update, list | tuple) and isinstance(given, Command) else ()
    if not pairs or not all(isinstance(p, tuple) and len(p) == _PAIR and isinstance(p[0], str) for p in pairs):
        return update
    found: dict[str, Any] = {}
    for name, value in pairs:  # one channel may be written twice
        if name in found:
            (replaces, before), (again, value) = unwrap_overwrite(found[name]), unwrap_overwrite(value)  # noqa: PLW2901
            value = [*_listed(before), *_listed(value)]  # noqa: PLW2901
            value = Overwrite(value) if replaces or again else value  # noqa: PLW2901
        found[name] = value
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def unwrap_overwrite(value: Any) -> tuple[bool, Any]:
    """Return True if a written value bypasses the reducer, and the unwrapped value."""
    if isinstance(value, Overwrite):
        return True, value.value
    if isinstance(value, dict) and len(value) == 1 and _OVERWRITE in value:
        return True, value[_OVERWRITE]
    if isinstance(value, dict) and value.get("type") == _OVERWRITE and "value" in value:
        return True, value["value"]
    return False, value


def channel_value(state: object, name: str) -> Any:
    """Return a channel's value in a state, which is a mapping or an object."""
    return state.get(name) if isinstance(state, (dict, Mapping)) else getattr(state, name, None)


def messages_in(value: Any) -> list[Any]:
    """Return the list of messages in a state or an input."""
    _, found = unwrap_overwrite(
        value.get("messages") if type(value) is dict else channel_value(update_in(value), "messages")
    )
    pair = isinstance(found, tuple) and len(found) == _PAIR and all(isinstance(part, str) for part in found)
    if isinstance(found, list | tuple) and not pair:
        return list(found)
    return [] if found is None else [found]


def removed_by(entry: object) -> str | None:
    """Return the id of the message that an entry removes, or None."""
    if isinstance(entry, Mapping):
        ident = entry.get("id") if "remove" in (entry.get("role"), entry.get("type")) else None
        return ident if isinstance(ident, str) else None
    return entry.id if isinstance(entry, RemoveMessage) else None


def with_messages(update: Mapping[str, Any] | None, first: Sequence[BaseMessage]) -> dict[str, Any]:
    """Put `first` before an update's messages, but after a message that removes all."""
    own = messages_in(update)
    at = max((i + 1 for i, m in enumerate(own) if removed_by(m) == REMOVE_ALL_MESSAGES), default=0)
    merged = [*own[:at], *first, *own[at:]]
    replaces, _ = unwrap_overwrite((update or {}).get("messages"))
    return {**(update or {}), "messages": Overwrite(merged) if replaces else merged}
