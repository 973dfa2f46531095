"""The AuthZEN working group's interop vectors for the Todo application, as a table.

Source: github.com/openid/authzen, `interop/authzen-todo-backend/test/decisions-1.1-preview.json` (the
questions and the expected decisions; five users, eight questions each, and three batches). A batch is
written there as an object with the keys "1" and "2"; AuthZEN 1.0 made that an array, and so it is here.
"""

from __future__ import annotations

from typing import Any

TODO = "7240d0db-8ff0-41ec-98b2-34a096273b9f"
RICK = "rick@the-citadel.com"
# user → subject id, who else's todo is asked about besides Rick's, and the expected decisions:
# create; update Rick's, update the other's; delete Rick's, delete the other's. Reading is for all.
USERS: dict[str, tuple[str, str, tuple[bool, bool, bool, bool, bool]]] = {
    RICK: ("CiRmZDA2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs", "morty@the-citadel.com", (True,) * 5),
    "morty@the-citadel.com": (
        "CiRmZDE2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs",
        "morty@the-citadel.com",
        (True, False, True, False, True),
    ),
    "summer@the-smiths.com": (
        "CiRmZDI2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs",
        "summer@the-smiths.com",
        (True, False, True, False, True),
    ),
    "beth@the-smiths.com": (
        "CiRmZDM2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs",
        "beth@the-smiths.com",
        (False,) * 5,
    ),
    "jerry@the-smiths.com": (
        "CiRmZDQ2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs",
        "jerry@the-smiths.com",
        (False,) * 5,
    ),
}


def _todo(owner: str) -> dict[str, Any]:
    return {"type": "todo", "id": TODO, "properties": {"ownerID": owner}}


def _user(name: str) -> dict[str, Any]:
    return {"type": "user", "id": name}


def singles() -> list[tuple[dict[str, Any], bool]]:
    """Forty requests with the decision expected."""
    rows: list[tuple[dict[str, Any], bool]] = []
    for name, (ident, other, (create, rick_up, other_up, rick_del, other_del)) in USERS.items():
        subject = {"type": "user", "id": ident}
        for action, resource, expected in (
            ("can_read_user", _user("beth@the-smiths.com"), True),
            ("can_read_user", _user(name), True),
            ("can_read_todos", {"type": "todo", "id": "todo-1"}, True),
            ("can_create_todo", {"type": "todo", "id": "todo-1"}, create),
            ("can_update_todo", _todo(RICK), rick_up),
            ("can_update_todo", _todo(other), other_up),
            ("can_delete_todo", _todo(RICK), rick_del),
            ("can_delete_todo", _todo(other), other_del),
        ):
            rows.append(({"subject": subject, "action": {"name": action}, "resource": resource}, expected))
    return rows


def batches() -> list[tuple[list[dict[str, Any]], list[bool]]]:
    """Three batches: may this user update Rick's todo, and another one?"""
    rows = []
    for name, other, expected in (
        (RICK, "jerry@the-smiths.com", [True, True]),
        ("morty@the-citadel.com", "morty@the-citadel.com", [False, True]),
        ("jerry@the-smiths.com", "jerry@the-smiths.com", [False, False]),
    ):
        subject, action = {"type": "user", "id": USERS[name][0]}, {"name": "can_update_todo"}
        items = [{"subject": subject, "action": action, "resource": _todo(owner)} for owner in (RICK, other)]
        rows.append((items, expected))
    return rows


# The scenario's roles (authzen-interop.net, "Todo Application"), in Rego of our own.
POLICY = """package todo

roles := {
	"rick@the-citadel.com": {"admin", "evil_genius"},
	"morty@the-citadel.com": {"editor"},
	"summer@the-smiths.com": {"editor"},
	"beth@the-smiths.com": {"viewer"},
	"jerry@the-smiths.com": {"viewer"},
}

user := data.users[input.subject.id]

default allowed := false

allowed if {
	input.action.name in {"can_read_user", "can_read_todos"}
	count(roles[user]) > 0
}

allowed if {
	input.action.name == "can_create_todo"
	count(roles[user] & {"editor", "admin", "evil_genius"}) > 0
}

allowed if {
	input.action.name in {"can_update_todo", "can_delete_todo"}
	count(roles[user] & {"editor", "admin", "evil_genius"}) > 0
	input.resource.properties.ownerID == user
}

allowed if {
	input.action.name == "can_update_todo"
	"evil_genius" in roles[user]
}

allowed if {
	input.action.name == "can_delete_todo"
	"admin" in roles[user]
}

decision := {"decision": allowed}
"""
