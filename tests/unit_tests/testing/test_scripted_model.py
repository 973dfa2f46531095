"""The scripted chat model plays its script, and nothing but its script."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain import agents
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool

from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel, Turn


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def call(*, id: str | None = "call-1", **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": id}])


def script() -> list[Turn]:
    return [call(a=1, b=2, id=None), lambda messages: AIMessage(f"The sum is {messages[-1].text}.")]


ASK = {"messages": [HumanMessage("What is 1 + 2?")]}


def test_plays_in_a_streaming_graph() -> None:
    """Streamed chunks carry the id of the message they become, and add up to it."""
    graph = agents.create_agent(ScriptedChatModel(script=script()), [add])
    tokens: list[AIMessageChunk] = []
    final: dict[str, Any] = {}
    for mode, data in graph.stream(ASK, stream_mode=["messages", "values"]):
        if mode == "values":
            final = data
        elif isinstance(data[0], AIMessageChunk):
            tokens.append(data[0])
    answer = final["messages"][-1]
    assert [t.text for t in tokens if t.id == answer.id and t.text] == ["The ", "sum ", "is ", "3."]
    assert final["messages"][1].tool_calls[0]["args"] == {"a": 1, "b": 2}


WHOLE = AIMessage(
    "Well then", id="m-1",
    tool_calls=[{"name": "add", "args": {"a": 1, "b": [None, "ü"]}, "id": "c-1"}, {"name": "add", "args": {}, "id": "c-2"}],
    invalid_tool_calls=[{"name": "add", "args": "oops", "id": "c-3", "error": None, "type": "invalid_tool_call"}],
    additional_kwargs={"refusal": None}, response_metadata={"model_name": "none"},
    usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
)


def _facts(message: AIMessage) -> dict[str, Any]:
    kept = message.model_dump(include={"id", "content", "tool_calls", "usage_metadata", "response_metadata"})
    return {**kept, "broken": [(c["name"], c["args"], c["id"]) for c in message.invalid_tool_calls]}


def test_streaming_loses_nothing() -> None:
    """The chunks of a message merge into the message that `invoke` returns."""
    invoked = ScriptedChatModel(script=[WHOLE]).invoke("go")
    chunks = list(ScriptedChatModel(script=[WHOLE]).stream("go"))
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    blocks: list[str | dict[str, Any]] = [{"type": "text", "text": "hi"}]
    assert next(ScriptedChatModel(script=[AIMessage(blocks)]).stream("go")).content == blocks
    assert isinstance(merged, AIMessage)
    assert _facts(merged) == _facts(invoked) == _facts(WHOLE)


def test_missing_ids_are_assigned_anew_each_time() -> None:
    """The same script played twice never repeats an id, and the script itself stays as it was."""
    turn = call(a=1, b=1, id=None)
    played = [ScriptedChatModel(script=[turn]).invoke("go") for _ in range(2)]
    assert len({m.id for m in played}) == len({m.tool_calls[0]["id"] for m in played}) == 2
    assert (turn.id, turn.tool_calls[0]["id"]) == (None, None)
    given = ScriptedChatModel(script=[call(a=1, b=1, id="mine").model_copy(update={"id": "m"})]).invoke("go")
    assert (given.id, given.tool_calls[0]["id"]) == ("m", "mine")


def test_an_exhausted_script_says_so() -> None:
    """A call beyond the script fails and names how many turns there are and what it came after."""
    model = ScriptedChatModel(script=[AIMessage("once")])
    model.invoke("go")
    with pytest.raises(ConfigError, match=r"holds 1 turns and turn 2 was requested, after 'human' message 'again'"):
        model.invoke("again")


def test_a_shallow_copy_goes_on_where_the_model_is() -> None:
    """Binding, copying or configuring a model never starts the script again."""
    model = ScriptedChatModel(script=[AIMessage("1"), AIMessage("2")])
    assert model.bind_tools([add]).invoke("go").text == "1" and model.model_copy().invoke("go").text == "2"


def test_a_process_wide_cache_does_not_answer() -> None:
    """Equal prompts get different turns even where LangChain's LLM cache is on."""
    set_llm_cache(InMemoryCache())
    try:
        model = ScriptedChatModel(script=[AIMessage("1"), AIMessage("2")])
        assert [model.invoke("go").text for _ in range(2)] == ["1", "2"]
    finally:
        set_llm_cache(None)


def test_threads_never_share_a_turn() -> None:
    """Callers at the same time get each turn exactly once."""
    turns = [str(n) for n in range(64)]
    model = ScriptedChatModel(script=[AIMessage(t) for t in turns])
    with ThreadPoolExecutor(8) as pool:
        played = list(pool.map(lambda _: model.invoke("go").text, turns))
    assert sorted(played, key=int) == turns


def test_a_long_script_is_not_in_the_models_name_for_traces() -> None:
    model = ScriptedChatModel(script=[AIMessage("a word")] * 1000)
    model.invoke("go")
    assert "a word" not in model._serialized["repr"]
