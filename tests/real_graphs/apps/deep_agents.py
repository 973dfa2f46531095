"""Nested deep agents: a main agent with files hands research to a sub-agent, which is a deep agent with one of its own."""

import httpx
from deepagents import create_deep_agent
from langchain_core.tools import tool


@tool
def internet_search(query: str) -> str:
    """Run a web search."""
    return httpx.post("https://search.example/v1", json={"query": query}).json()["result"]


@tool
def post_message(channel: str, text: str) -> str:
    """Post a message to a channel of the company's chat."""
    return httpx.post("https://chat.example/api/messages", json={"channel": channel, "text": text}).json()["status"]


def build(model, folder, checkpointer=None, store=None):
    fact_checker = {
        "name": "fact-checker", "description": "Checks one claim against the web.", "system_prompt": "You are a fact checker.",
        "tools": [internet_search],
    }
    researcher = create_deep_agent(
        model=model, tools=[internet_search], system_prompt="You are a research agent.", subagents=[fact_checker]
    )
    return create_deep_agent(
        model=model, tools=[internet_search, post_message], system_prompt="You are the lead of a team.",
        subagents=[{"name": "research-agent", "description": "Researches one question in depth.", "runnable": researcher}],
        checkpointer=checkpointer, store=store,
    )
