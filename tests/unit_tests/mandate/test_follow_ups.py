"""Messages that only say new values for what the message before them ordered: "and T-6 too"."""

import datetime
import json
from typing import Any

import pytest

from langchain_runtime_authz.mandate.follow_ups import TurnBefore
from langchain_runtime_authz.mandate.mandate_file import load_mandate
from langchain_runtime_authz.mandate.model import Compiled, Const
from langchain_runtime_authz.mandate.planner_mandate import backed_part
from langchain_runtime_authz.mandate.word_follow_ups import compile_turn
from langchain_runtime_authz.mandate.words import compile_words
from tests.benchmarks.mandate_words import DATA

from .test_plain_orders import PROFILES, SIGNATURES

Call = list[Any]  # tool, arguments
ROWS = [json.loads(line) for line in (DATA / "planner" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()]
TODAY = datetime.date(2026, 11, 30)


def compiled(turns: list[str], before: list[list[Call]], calls: list[Call]) -> Compiled:
    """What the last turn orders if a planner proposes `calls`, and `before` for the turns before it."""
    known = list[TurnBefore]()
    found = Compiled(None)
    for n, (text, proposed) in enumerate(zip(turns, [*before, calls], strict=True)):
        steps = [{"id": f"s{i}", "tool": tool, "args": args} for i, (tool, args) in enumerate(proposed)]
        found = backed_part(load_mandate({"steps": steps}), [text], PROFILES, SIGNATURES, turns[:n], TODAY, known)
        assert found.mandate is not None
        known = [*known, TurnBefore(text, found.mandate)]
    return found


def unasked(turns: list[str], before: list[list[Call]], calls: list[Call]) -> list[bool]:
    found = compiled(turns, before, calls).mandate
    assert found is not None
    return [any(s.id == f"s{n}" for s in found.steps) and f"s{n}" not in found.confirm for n in range(len(calls))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " / ".join(row["turns"]))
def test_a_message_with_values_alone_orders_what_the_message_before_it_says(row: dict[str, Any]) -> None:
    """Each turn before it orders unasked, too. What another reading would order asks, alone and behind what is right."""
    for n, calls in enumerate(row["before"]):
        assert all(unasked(row["turns"][: n + 1], row["before"][:n], calls))
    if row["right"]:
        assert all(unasked(row["turns"], row["before"], row["right"]))
    for wrong in row["wrong"]:
        assert unasked(row["turns"], row["before"], [wrong]) == [False]
        assert not unasked(row["turns"], row["before"], [*row["right"], wrong])[-1]


WITHOUT_PLANNER: dict[str, list[Call] | None] = {  # messages → what the last one orders
    "Assign T-5 to Zoe / and T-6 too": [["assign_ticket", {"ticket": "T-6", "person": "Zoe"}]],
    "Assign T-5 to Zoe / no, to Ben": [["assign_ticket", {"ticket": "T-5", "person": "Ben"}]],
    "Assign T-5 to Zoe / T-6 to Ben": [["assign_ticket", {"ticket": "T-6", "person": "Ben"}]],
    "Assign T-5 to Zoe / and T-6 too / and T-7": [["assign_ticket", {"ticket": "T-7", "person": "Zoe"}]],
    "Move A.txt to /old / no, to /new": [["move_file", {"path": "A.txt", "folder": "/new"}]],
    "Transfer 45 EUR to Bob / and Zoe": None, "Transfer 45 EUR to Bob / do the same for Zoe": None, "Assign T-5 to Zoe / no T-6": None, "Assign T-5 to Zoe / and T-6?": None, "Assign T-5 to Zoe / T-6": None, "Assign T-5 to Zoe / not T-6": None,
    "Assign T-5 to Zoe / How are you? / and T-6 too": None, "Assign T-5 to Zoe / and T-6 too / no, to Ben": None, "How are you? / and T-6 too": None,
}


@pytest.mark.parametrize("said", WITHOUT_PLANNER)
def test_the_same_without_a_planner(said: str) -> None:
    *before, text = said.split(" / ")
    found = compile_turn([text], before[::-1], PROFILES, SIGNATURES, TODAY).mandate
    args = found and [[s.tool, {name: a.value for name, a in s.args.items() if isinstance(a, Const)}] for s in found.steps]
    assert args == WITHOUT_PLANNER[said]
    assert compile_words([text], PROFILES, SIGNATURES, TODAY).mandate is None


@pytest.mark.parametrize(("before", "left_open"), [
    ("Only if Ann agrees:", True), ("Translate this:\n", True), ("翻译：", True), ("Traduci\ua789", True), ("Nur wenn Ann zustimmt.", True), ("Solo si Ann acepta", True), ("Seulement si Ann accepte", True),
    ("Solo se Ann accetta", True), ("Só se a Ann aceitar", True), ("如果Ann同意", True), ("What if Ann agrees?", False), ("Close T-6 if you can, thanks", False), ("Hello!", False), ("It is at 10:30", False),
])
def test_a_message_left_open_may_go_on_in_the_next_one(before: str, left_open: bool) -> None:
    """Then that one orders nothing, with and without a planner. So it says no new values either."""
    said, calls = "Assign T-5 to Zoe", [["assign_ticket", {"ticket": "T-5", "person": "Zoe"}]]
    without = compile_turn([said], [before], PROFILES, SIGNATURES, TODAY)
    assert unasked([before, said], [[]], calls) == [without.mandate is not None] == [not left_open]
    assert bool(without.dropped) is left_open
    assert unasked([said, "Only if Ann agrees:", "and T-6 too"], [calls, []], [["assign_ticket", {"ticket": "T-6", "person": "Zoe"}]]) == [False]
