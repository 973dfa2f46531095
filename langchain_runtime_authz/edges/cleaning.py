"""What a tool gives back, without what its decision obliges to hide and without a live token."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Command

from langchain_runtime_authz.credential.leak import scrub
from langchain_runtime_authz.enforce.obligations import redact

__all__ = ["Cleaner"]

_NONE: frozenset[str] = frozenset()


class Cleaner:
    """Takes messages and commands apart; the rest is `credential.leak`'s and `enforce.obligations`'.

    Attributes:
        found: whether a token stood in anything that was cleaned.
    """

    __slots__ = ("fields", "found", "tokens")

    def __init__(self, fields: frozenset[str], tokens: tuple[str, ...]) -> None:
        self.fields, self.tokens = fields, tokens
        self.found = False

    def output(self, value: Any) -> Any:
        """What a tool returned."""
        return self._value(value, self.fields)

    def _value(self, value: Any, fields: frozenset[str]) -> Any:
        if isinstance(value, BaseMessage):
            changes: dict[str, Any] = {"content": self._value(value.content, fields)}
            for name in ("additional_kwargs", "response_metadata"):
                changes[name] = self._value(getattr(value, name), _NONE)
            if isinstance(value, ToolMessage) and value.artifact is not None:
                changes["artifact"] = self._value(value.artifact, fields)
            return value.model_copy(update=changes)
        if isinstance(value, Command):
            update = self._update(value.update, fields)
            return Command(graph=value.graph, update=update, resume=value.resume, goto=value.goto)
        if isinstance(value, list) and any(isinstance(v, BaseMessage | Command) for v in value):
            return [self._value(v, fields) for v in value]
        return redact(self._scrubbed(value), fields)

    def _update(self, update: Any, fields: frozenset[str]) -> Any:
        """A state update: its messages like messages, the rest searched for tokens."""
        if isinstance(update, dict):
            return {k: self._channel(v, fields) for k, v in update.items()}
        return self._channel(update, fields)

    def _channel(self, value: Any, fields: frozenset[str]) -> Any:
        if isinstance(value, list):
            return [self._channel(v, fields) for v in value]
        return self._value(value, fields if isinstance(value, BaseMessage) else _NONE)

    def _scrubbed(self, value: Any) -> Any:
        if not self.tokens:
            return value
        clean, found = scrub(value, self.tokens)
        if clean is not None and not isinstance(clean, str | bytes | int | float):
            # An object shows what it holds by its text, and text is what a message is made of.
            text, shows = scrub(_text_of(clean), self.tokens)
            clean, found = (text, True) if shows else (clean, found)
        self.found = self.found or found
        return clean

    def bubble(self, exc: GraphBubbleUp) -> None:
        """A question or a command that leaves the tool by exception, in place."""
        if not self.tokens:
            return
        if isinstance(exc, ParentCommand):
            exc.args = (self._value(exc.args[0], _NONE), *exc.args[1:])
        elif isinstance(exc, GraphInterrupt) and exc.args:
            for asked in exc.args[0]:
                asked.value = self._scrubbed(asked.value)

    def error(self, exc: BaseException) -> BaseException:
        """The exception without a live token, in text, notes, attributes, cause or context."""
        if not self.tokens:
            return exc
        clean, found = scrub(exc, self.tokens)
        self.found = self.found or found
        return clean


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  (a foreign `__str__`; what can not be shown shows no token)
        return ""
