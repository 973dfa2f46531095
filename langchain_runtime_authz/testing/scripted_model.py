"""A chat model that plays a script, so that a run can be repeated exactly.

```python
model = ScriptedChatModel(script=[
    AIMessage("", tool_calls=[{"name": "pay", "args": {"amount": 5}, "id": "1"}]),
    lambda messages: AIMessage(f"The tool said: {messages[-1].text}"),
])
```
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count
from typing import Annotated, Any

from langchain_core.caches import BaseCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr, SkipValidation

from langchain_runtime_authz.errors import ConfigError

Turn = AIMessage | Callable[[list[BaseMessage]], AIMessage]
"""The model's next answer: a message, or a function of the messages that it was given."""


class ScriptedChatModel(BaseChatModel):
    """Play a script: each call (sync, async or streaming) returns the next turn.

    Each answer is a copy, with new ids for message and tool calls if they have none. So models may share a script.

    Attributes:
        script: the turns, in order.
        prompts: the messages of each call, in the order of the turns.
    """

    # Unvalidated, as AIMessage's validator fails on functions. Not in the `repr`, which LangChain makes for each call.
    script: Annotated[Sequence[Turn], SkipValidation] = Field(repr=False)
    prompts: list[list[BaseMessage]] = Field(default_factory=list, exclude=True)
    # Off: a process-wide LLM cache would answer instead of the script.
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    # The number of the next turn. Shallow copies of a model share it, and one `next` is atomic.
    _next: Iterator[int] = PrivateAttr(default_factory=count)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> ScriptedChatModel:
        """Return this model: the script knows its tools."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._play(messages))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._play(messages)):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._play(messages)):
            yield ChatGenerationChunk(message=chunk)

    def _play(self, messages: list[BaseMessage]) -> AIMessage:
        number = next(self._next)
        if number >= len(self.script):
            last = f", after {messages[-1].type!r} message {messages[-1].text!r:.80}" if messages else ""
            raise ConfigError(f"the script holds {len(self.script)} turns and turn {number + 1} was requested{last}")
        self.prompts.append(list(messages))
        turn = self.script[number]
        return _with_ids(turn if isinstance(turn, AIMessage) else turn(messages))


def _with_ids(message: AIMessage) -> AIMessage:
    message = message.model_copy(deep=True)  # a graph writes into the messages of its state
    message.id = message.id or f"scripted-{uuid.uuid4().hex}"
    for call in message.tool_calls:
        call["id"] = call["id"] or f"call-{uuid.uuid4().hex}"
    return message


def _chunks(message: AIMessage) -> Iterator[AIMessageChunk]:
    """Yield a message as a provider streams it: words, then tool calls, then metadata."""
    content = message.content
    words = re.findall(r"\S+\s*|\s+", content) if isinstance(content, str) else [content]
    for word in words:
        yield AIMessageChunk(content=word, id=message.id, name=message.name)
    for index, call in enumerate([*message.tool_calls, *message.invalid_tool_calls]):
        args = call["args"] if isinstance(call["args"], str | None) else json.dumps(call["args"])
        part = tool_call_chunk(name=call["name"], args=args, id=call["id"], index=index)
        yield AIMessageChunk(content="", id=message.id, tool_call_chunks=[part])
    rest = {n: getattr(message, n) for n in ("id", "additional_kwargs", "response_metadata", "usage_metadata")}
    yield AIMessageChunk(content="" if isinstance(content, str) else [], chunk_position="last", **rest)
