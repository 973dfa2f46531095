"""A chat model that follows a script by what its prompt holds, so that a node may run again."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

Call = tuple[str, Mapping[str, Any]]
Turn = str | Sequence[Call] | Callable[[list[BaseMessage]], str]
"""What the model says: a text, tool calls, or the text that a function makes of its prompt, which ends the script."""
RETRIES = 2
"""How often the model plans the same calls again if it is told to."""


class Model(BaseChatModel):
    """Say the first turn of the script that the prompt does not hold yet.

    Attributes:
        script: turns by the part that the model plays. A key is the name of a tool that is bound, or a phrase of the
            system prompt; the first that fits counts, and the key "" fits always.
    """

    script: Any

    @property
    def _llm_type(self) -> str:
        return "by-prompt"

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools])

    def _generate(self, messages, stop=None, run_manager=None, *, tools=(), **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self._say(messages, tools))])

    def _stream(self, messages, stop=None, run_manager=None, *, tools=(), **kwargs) -> Iterator[ChatGenerationChunk]:
        said = self._say(messages, tools)
        for word in said.text.split(" ") if said.text else ():
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} ", id=said.id))
        for index, call in enumerate(said.tool_calls):
            part = tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            yield ChatGenerationChunk(message=AIMessageChunk("", id=said.id, tool_call_chunks=[part]))
        yield ChatGenerationChunk(message=AIMessageChunk("", id=said.id, chunk_position="last"))

    def _say(self, messages: list[BaseMessage], tools: Sequence[Any]) -> AIMessage:
        bound = {each["function"]["name"] for each in tools}
        turns = next((self.script[key] for key in self.script if key in bound or key in messages[0].text), ["Done."])
        turn = next(_left(turns, messages), "Done.")
        if callable(turn):
            turn = turn(messages)
        number = f"run-{uuid.uuid4().hex}"
        if isinstance(turn, str):
            return AIMessage(turn, id=number)
        calls = [{"name": name, "args": dict(args), "id": f"call_{uuid.uuid4().hex[:12]}"} for name, args in turn]
        return AIMessage("", tool_calls=calls, id=number)


def _left(turns: Sequence[Turn], messages: list[BaseMessage]) -> Iterator[Turn]:
    """Yield the turns that the prompt does not hold. A call is known by its tool: a person may have edited it."""
    told = {each.tool_call_id for each in messages if isinstance(each, ToolMessage) and "plan again" in each.text.lower()}
    said = [each for each in messages if isinstance(each, AIMessage)]
    held = Counter(map(_key, said))
    again = Counter(_key(each) for each in said if told & {call["id"] for call in each.tool_calls})
    for turn in turns:
        key = () if callable(turn) else (turn,) if isinstance(turn, str) else tuple(name for name, _ in turn)
        held[key] -= 1
        if held[key] < min(again[key], RETRIES):
            yield turn


def _key(message: AIMessage) -> tuple[str, ...]:
    return tuple(call["name"] for call in message.tool_calls) or (message.text.strip(),)
