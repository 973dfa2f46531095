"""Find the calls that a node is given: in the newest messages of its input, or without their message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage


def _lists(value: object) -> Iterator[tuple[str, Sequence[Any]]]:
    fields = value if isinstance(value, (dict, Mapping)) else getattr(value, "__dict__", None) or {"": value}
    for name, held in fields.items():
        yield str(name), held if isinstance(held, list | tuple) else (held,)


def newest_messages(value: object) -> list[tuple[str, AIMessage]]:
    """Return the newest AI message with calls in each channel of a node's input, with the channel's name."""
    found = ((n, [m for m in held if isinstance(m, AIMessage) and m.tool_calls][-1:]) for n, held in _lists(value))
    return [(name, message) for name, newest in found for message in newest]


def sent_calls(value: object, depth: int = 2) -> Iterator[Mapping[str, Any]]:
    """Yield the calls that a node was sent without their message."""
    if isinstance(value, (dict, Mapping)):
        if (
            isinstance(value.get("id"), str)
            and isinstance(value.get("name"), str)
            and isinstance(value.get("args"), dict)
        ):
            yield value
        elif depth:
            for held in value.values():
                yield from sent_calls(held, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for held in value:
            yield from sent_calls(held, depth - 1)


def answered_calls(value: object) -> set[str]:
    """Return the ids of the calls that tool messages in a node's input answer."""
    return {m.tool_call_id for _, held in _lists(value) for m in held if isinstance(m, ToolMessage)}
