"""What a tool gives back, without what its decision obliges to hide and without a live token."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Final

from langchain_core.messages import BaseMessage
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand
from langgraph.types import Command, Send
from pydantic import BaseModel

from langchain_runtime_authz.credential.leak import Search
from langchain_runtime_authz.pep.obligations import redact

__all__ = ["Cleaner"]

_NONE: frozenset[str] = frozenset()
_SHOWN: Final = ("content", "artifact")  # what an obligation hides of a message
_PLACES: Final = ("__dict__", "__pydantic_extra__", "__pydantic_private__")  # where an object keeps its attributes


class Cleaner:
    """Takes messages and commands apart; the rest is `credential.leak`'s and `pep.obligations`'.

    Attributes:
        found: whether a token stood in anything that was cleaned.
        withheld: whether anything was left out because it could not be searched.
    """

    __slots__ = ("_fields", "_search", "_searches")

    def __init__(self, fields: frozenset[str], tokens: tuple[str, ...]) -> None:
        self._fields, self._searches = fields, bool(tokens)
        self._search = Search(tokens)

    @property
    def found(self) -> bool:
        """See the class."""
        return self._search.found

    @property
    def withheld(self) -> bool:
        """See the class."""
        return self._search.withheld

    def output(self, value: Any) -> Any:
        """What a tool returned."""
        return self._value(value, self._fields)

    def _value(self, value: Any, fields: frozenset[str]) -> Any:
        if isinstance(value, BaseMessage):
            return self._rebuilt(value, lambda name, held: self._value(held, fields if name in _SHOWN else _NONE))
        if isinstance(value, Command):
            update, goto = self._update(value.update, fields), self._channel(value.goto, _NONE)
            return dataclasses.replace(value, update=update, resume=self._scrubbed(value.resume), goto=goto)
        if isinstance(value, list) and any(isinstance(v, BaseMessage | Command) for v in value):
            return [self._value(v, fields) for v in value]
        return redact(self._scrubbed(value), fields)

    def _update(self, update: Any, fields: frozenset[str]) -> Any:
        """A state update: its messages like messages, the rest searched for tokens."""
        if isinstance(update, dict):
            return {self._scrubbed(k): self._channel(v, fields) for k, v in update.items()}
        if isinstance(update, BaseModel) or dataclasses.is_dataclass(update):
            return self._rebuilt(update, lambda _, held: self._channel(held, fields))
        return self._channel(update, fields)

    def _channel(self, value: Any, fields: frozenset[str]) -> Any:
        if type(value) in (list, tuple):
            return type(value)(self._channel(v, fields) for v in value)
        if isinstance(value, Send):
            sent = copy.copy(value)
            sent.node, sent.arg = self._scrubbed(value.node), self._update(value.arg, fields)
            return sent
        return self._value(value, fields if isinstance(value, BaseMessage) else _NONE)

    def _rebuilt(self, value: Any, clean: Callable[[str, Any], Any]) -> Any:
        """A message or a state object stays one: a copy, with each of its attributes made `clean`."""
        other = copy.copy(value)
        for place in _PLACES:
            if held := getattr(value, place, None):
                object.__setattr__(other, place, {self._scrubbed(k): clean(k, v) for k, v in held.items()})
        return self._scrubbed(other)

    def _scrubbed(self, value: Any) -> Any:
        if not self._searches:
            return value
        clean = self._search.clean(value)
        if clean is not None and not isinstance(clean, str | bytes | int | float):
            # An object shows what it holds by its text, and text is what a message is made of.
            shown = _text_of(clean)
            if (text := self._search.clean(shown)) is not shown:
                return text
        return clean

    def bubble(self, exc: GraphBubbleUp) -> None:
        """A question or a command that leaves the tool by exception, in place."""
        if not self._searches:
            return
        if isinstance(exc, ParentCommand):
            exc.args = (self._value(exc.args[0], _NONE), *exc.args[1:])
        elif isinstance(exc, GraphInterrupt) and exc.args:
            for asked in exc.args[0]:
                asked.value = self._scrubbed(asked.value)

    def error(self, exc: BaseException) -> BaseException:
        """The exception without a live token, in text, notes, attributes, cause or context."""
        return self._search.clean(exc)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  (a foreign `__str__`; what can not be shown shows no token)
        return ""
