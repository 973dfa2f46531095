"""An executive assistant with memory: its effects are plain functions that nodes call, and writes to the store."""

import asyncio
import json
import smtplib
import uuid
from email.message import EmailMessage
from pathlib import Path
from typing import Literal

import httpx
from langchain_core.messages import SystemMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.base import BaseStore
from pydantic import BaseModel, Field


class SendEmail(BaseModel):
    """Send an email from the user's account."""

    to: str
    subject: str
    text: str


class SendCalendarInvite(BaseModel):
    """Invite people to a meeting."""

    emails: list[str]
    title: str
    start: str = Field(description="The start, like 2026-12-01T10:00.")


class UpsertMemory(BaseModel):
    """Remember something about the user for later conversations."""

    content: str
    context: str


class State(MessagesState):
    inbox: str


def send_email(to, subject, text):
    message = EmailMessage()
    message["To"], message["Subject"] = to, subject
    message.set_content(text)
    with smtplib.SMTP("localhost", 25) as server:
        server.send_message(message)
    return f"Sent to {to}."


def send_calendar_invite(emails, title, start):
    httpx.post("https://calendar.example/api/events", json={"emails": emails, "title": title, "start": start})
    return f"Invited {', '.join(emails)}."


async def upsert_memory(content: str, context: str, *, store: BaseStore):
    await store.aput(("memories", "alice"), str(uuid.uuid4()), {"content": content, "context": context})
    return f"Stored memory: {content}"


def answers(state, name, act):
    calls = [call for call in state["messages"][-1].tool_calls if call["name"] == name]
    return {"messages": [ToolMessage(act(**call["args"]), tool_call_id=call["id"]) for call in calls]}


def build(model, folder, checkpointer=None, store=None):
    def load_inbox(state: State):
        mails = json.loads((Path(folder) / "inbox.json").read_text())
        return {"inbox": "\n\n".join(f"From {mail['from']}: {mail['text']}" for mail in mails)}

    async def call_model(state: State, *, store: BaseStore):
        memories = await store.asearch(("memories", "alice"), limit=10)
        known = "\n".join(each.value["content"] for each in memories)
        system = f"You are an executive assistant.\nMemories:\n{known}\nInbox:\n{state['inbox']}"
        llm = model.bind_tools([SendEmail, SendCalendarInvite, UpsertMemory])
        return {"messages": [await llm.ainvoke([SystemMessage(system), *state["messages"]])]}

    def send_email_node(state: State):
        return answers(state, "SendEmail", send_email)

    def send_cal_invite_node(state: State):
        return answers(state, "SendCalendarInvite", send_calendar_invite)

    async def store_memory(state: State, *, store: BaseStore):
        calls = [call for call in state["messages"][-1].tool_calls if call["name"] == "UpsertMemory"]
        saved = await asyncio.gather(*(upsert_memory(**call["args"], store=store) for call in calls))
        results = [ToolMessage(text, tool_call_id=call["id"]) for text, call in zip(saved, calls, strict=True)]
        return {"messages": results}

    def take_action(state: State) -> list[Literal["send_email_node", "send_cal_invite_node", "store_memory", "__end__"]]:
        nodes = {"SendEmail": "send_email_node", "SendCalendarInvite": "send_cal_invite_node", "UpsertMemory": "store_memory"}
        return sorted({nodes[call["name"]] for call in state["messages"][-1].tool_calls}) or [END]

    builder = StateGraph(State)
    builder.add_node(load_inbox)
    builder.add_node(call_model)
    builder.add_node(send_email_node)
    builder.add_node(send_cal_invite_node)
    builder.add_node(store_memory)
    builder.add_edge(START, "load_inbox")
    builder.add_edge("load_inbox", "call_model")
    builder.add_conditional_edges("call_model", take_action)
    builder.add_edge("send_email_node", "call_model")
    builder.add_edge("send_cal_invite_node", "call_model")
    builder.add_edge("store_memory", "call_model")
    return builder.compile(checkpointer=checkpointer, store=store)
