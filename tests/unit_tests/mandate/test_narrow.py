"""The words compiler reads no more into an order than it says. Each case has a twin that still orders."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_runtime_authz.mandate.model import Const
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.profile import ToolProfile

S, N = {"type": "string"}, {"type": "number"}


def tool(effect: str, intent: str = "", text: str = "", when: str = "", optional: str = "", **arguments: Any) -> tuple[ToolProfile, dict[str, Any]]:
    """Return a profile and a schema. An argument is a kind, or a list of choices."""
    kinds = {n: "value" if isinstance(k, list) else k for n, k in arguments.items()}
    properties = {n: {"type": "string", "enum": k} if isinstance(k, list) else N if k == "amount" else S for n, k in arguments.items()}
    properties |= dict.fromkeys((*text.split(), *when.split()), S)
    profile = ToolProfile(effect=effect, critical=kinds, text=tuple(text.split()), when=tuple(when.split()), intent=tuple(filter(None, intent.split("|"))))  # type: ignore[arg-type]
    return profile, {"properties": properties, "required": [n for n in properties if n not in optional.split()]}


TOOLS = {
    "read_report": tool("read", path="object"),
    "find_member": tool("read", member="principal"),
    "list_rooms": tool("read"),
    "erase_disk": tool("delete", "erase|wipe", disk="object"),
    "tip": tool("pay", "tip", waiter="principal", amount="amount"),
}  # fmt: skip


def orders(text: str) -> list[str]:
    mandate = compile_words([text], {n: p for n, (p, _) in TOOLS.items()}, {n: s for n, (_, s) in TOOLS.items()}).mandate
    shown = lambda a: str(a.value) if isinstance(a, Const) else str(getattr(a, "quote", a))  # noqa: E731
    return [" ".join([s.tool, *map(shown, s.args.values())]) for s in (mandate.steps if mandate else ())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # An order to read is a call of a read tool, or it voids the turn.
        ("Read the report a.txt, then tip Kim 5 EUR", ["tip Kim 5"]),
        ("List the rooms and erase the disk D-7", ["erase_disk D-7"]),
        *((text, []) for text in (
            "Tip Kim 5 EUR. Find peace.", "Find Kim, then tip Lee 5 EUR", "Read the room and erase the disk D-7", "Get a warrant and erase the disk D-7",
            "List reasons, then erase the disk D-7", "View the sky. Erase the disk D-7.", "Tip Kim 5 EUR. Search elsewhere.", "Show Kim a.txt and tip Lee 5 EUR",
            "Find the member of the board, then erase the disk D-7", "Get the report. Tip Kim 5 EUR.",
        )),
    ],
)  # fmt: skip
def test_orders(text: str, expected: list[str]) -> None:
    assert orders(text) == expected
