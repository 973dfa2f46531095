"""What an application that knows its workflow orders, by app and task. A task that is not named orders nothing."""

import re
from collections.abc import Mapping
from typing import Any, Final

from ..shape import Task

TEXT: Final = {"kind": "text"}


def step(tool: str, **args: Any) -> dict[str, Any]:
    """Return a step that is named as its tool."""
    return {"id": tool, "tool": tool, "args": args}


ORDERS: Final[Mapping[str, Mapping[str, list[dict[str, Any]]]]] = {
    "support_desk": {
        "refund and message": [
            step("refund_order", order_id="A-17", amount=20.0), step("message_customer", email="kim@customer.example", text=TEXT),
        ]
    },
    "deep_researcher": {
        "search and read the source": [step("fetch_page", url={"kind": "within", "prefix": "https://trams.example/"})]
    },
    "executive_assistant": {
        "answer and invite": [
            step("send_email", to="bob@partner.example", subject=TEXT, text=TEXT),
            step("send_calendar_invite", emails=["bob@partner.example"], title=TEXT, start="2026-12-01T10:00"),
        ],
        "remember a preference": [step("upsert_memory", content=TEXT, context=TEXT)],
    },
    "big_registry": {"a reminder": [step("send_reminder", customer_id="C-17", invoice="INV-4")]},
    "deep_agents": {
        "research into a file": [step("write_file", file_path="/report.md", content={"kind": "free"})],
        "search and post": [step("post_message", channel="energy", text=TEXT)],
    },
}


def mandate(app: str, task: Task) -> dict[str, Any]:
    """Return the mandate of a task. A mail's is a standing one: answer the sender, and meet who wrote."""
    if "email_input" not in task.given:
        return {"steps": ORDERS.get(app, {}).get(task.name, [])}
    me, sender = (re.search(r"<(.+)>", task.given["email_input"][key]).group(1) for key in ("to", "author"))
    minutes = {"kind": "between", "low": 15, "high": 60}
    meeting = {"attendees": [sender, me], "duration_minutes": minutes, "subject": TEXT, "day": {"kind": "free"}}
    return {"steps": [step("write_email", to=sender, subject=TEXT, content=TEXT), step("schedule_meeting", **meeting)]}
