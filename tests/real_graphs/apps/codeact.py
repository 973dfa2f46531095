"""Code as action, after langgraph-codeact: the model answers with Python, and a node executes it."""

import builtins
import contextlib
import io
import re
from pathlib import Path
from typing import Any

from langchain_core.messages import SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

PROMPT = "You are an analyst. Answer with Python in a fence to act, or in plain words to the user. `folder` is the data."


class CodeActState(MessagesState):
    script: str | None
    context: dict[str, Any]


def extract_code(text):
    return "\n".join(re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL))


def evaluate(code, variables):
    known = set(variables)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, builtins.__dict__ | variables, variables)
        result = out.getvalue() or "<code ran, no output printed to stdout>"
    except Exception as e:
        result = f"Error during execution: {e!r}"
    return result, {name: variables[name] for name in set(variables) - known}


def build(model, folder, checkpointer=None, store=None):
    tools = {"folder": Path(folder)}

    def call_model(state: CodeActState) -> Command:
        response = model.invoke([SystemMessage(PROMPT), *state["messages"]])
        code = extract_code(response.text)
        if code:
            return Command(goto="sandbox", update={"messages": [response], "script": code})
        return Command(update={"messages": [response], "script": None})

    def sandbox(state: CodeActState):
        output, new_vars = evaluate(state["script"], {**state.get("context", {}), **tools})
        kept = {name: value for name, value in new_vars.items() if isinstance(value, int | float | str | list | dict)}
        return {"messages": [{"role": "user", "content": output}], "context": {**state.get("context", {}), **kept}}

    agent = StateGraph(CodeActState)
    agent.add_node(call_model, destinations=(END, "sandbox"))
    agent.add_node(sandbox)
    agent.add_edge(START, "call_model")
    agent.add_edge("sandbox", "call_model")
    return agent.compile(checkpointer=checkpointer)
