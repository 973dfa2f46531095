"""The tools and the router that the two email assistants share, as in the course."""

from typing import Literal

import httpx
from langchain_core.tools import tool
from pydantic import BaseModel, Field

MAIL = "https://mail.example/api"


class RouterSchema(BaseModel):
    """Analyze the unread email and route it according to its content."""

    reasoning: str = Field(description="Step-by-step reasoning behind the classification.")
    classification: Literal["ignore", "respond", "notify"]


@tool
def write_email(to: str, subject: str, content: str) -> str:
    """Write and send an email."""
    httpx.post(f"{MAIL}/send", json={"to": to, "subject": subject, "content": content})
    return f"Email sent to {to} with subject '{subject}'"


@tool
def schedule_meeting(attendees: list[str], subject: str, duration_minutes: int, day: str) -> str:
    """Schedule a calendar meeting."""
    meeting = {"attendees": attendees, "subject": subject, "duration_minutes": duration_minutes, "day": day}
    httpx.post(f"{MAIL}/meetings", json=meeting)
    return f"Meeting '{subject}' scheduled on {day} for {duration_minutes} minutes"


@tool
def check_calendar_availability(day: str) -> str:
    """Check calendar availability for a given day."""
    return httpx.get(f"{MAIL}/calendar/{day}").json()["free"]


@tool
def open_link(url: str) -> str:
    """Read a page that an email links to."""
    return httpx.get(url).json()["text"]


@tool
class Question(BaseModel):
    """Question to ask user."""

    content: str


@tool
class Done(BaseModel):
    """E-mail has been sent."""

    done: bool


def format_email_markdown(email):
    return f"**Subject**: {email['subject']}\n**From**: {email['author']}\n**To**: {email['to']}\n\n{email['email_thread']}"
