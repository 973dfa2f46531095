"""A mandate in plain words."""

from typing import Any

import pytest

from langchain_runtime_authz.mandate.description import described_mandate, described_step
from langchain_runtime_authz.mandate.model import (
    AtLeast,
    AtMost,
    Between,
    Calc,
    Const,
    Contains,
    Each,
    Eq,
    Extract,
    Field,
    Free,
    Limit,
    Mandate,
    Never,
    Not,
    OneOf,
    Own,
    Pick,
    Span,
    StartsWith,
    Step,
    Text,
    Within,
)
from langchain_runtime_authz.tool_profile import ToolProfile


@pytest.mark.parametrize(("argument", "words"), [
    (Const("Bob", said=Span("sha256:0", 0, 3)), "Bob (you said it)"),
    (Const(45), "45"),
    (Const(("Anna", "Bob Smith")), 'Anna and "Bob Smith"'),
    (Own(), "your own"),
    (OneOf(("a", "b", 3)), "a, b or 3"),
    (Between(1, 2.5), "from 1 to 2.5"),
    (Within("/tmp"), "within /tmp"),
    (Field("r", "total"), "`total` of `r`"),
    (Field("r", ""), "the output of `r`"),
    (Pick("r", "iban", {"name": (Eq("Bob"), Not(Contains("old")))}), "`iban` of `r`, of the one record whose `name` is Bob and `name` is not so that it contains old"),
    (Calc("percent", (19.5, Field("r", "total"))), "19.5 percent of `total` of `r`"),
    (Calc("sum", (Each("r", "n"), 2)), "the sum of `n` of `r`, of each record, at most 20, and 2"),
    (Calc("share", (Calc("difference", (Field("r", "total"), 12)), 3)), "(`total` of `r` less 12) divided by 3"),
    (Pick("r", "id", {}, max="date"), "`id` of `r`, of the one record, with the greatest `date`"),
    (Pick("r", "id", {}, min="date"), "`id` of `r`, of the one record, with the least `date`"),
    (Each("r", "id", {"n": (AtLeast(3), AtMost(9), StartsWith("ab"))}), "`id` of `r`, of each record whose `n` is at least 3 and `n` is at most 9 and `n` starts with ab, at most 20"),
    (Extract("r"), "a value in the text of the output of `r`; you will be shown it"),
    (Text(("Hi", "there"), ("r", "s.id")), "the words Hi and there and what r and s.id returned"),
    (Text(), "free text without data of others"),
    (Free(), "anything"),
    (Const(True), "yes"),
    (Const(""), '""'),
    (Const("a\u202eb\nc"), r"a\u202eb\nc"),
    (Const("x" * 500), "x" * 200 + "…"),
])
def test_an_argument(argument: Any, words: str) -> None:
    """On one line, with nothing invisible, and never longer than a reader takes."""
    assert described_step(Step("s", "t", {"a": argument})) == f"t, a = {words}"


def test_a_mandate() -> None:
    mandate = Mandate(
        steps=(
            Step("r", "contacts"),
            Step("p", "send_money", {"recipient": Const("Bob", said=Span("sha256:0", 0, 3)), "amount": 45}, 2, "r", "payment"),
            Step("e", "send_money", {"recipient": Each("r", "iban")}, 3),
        ),
        limits=(Limit("pay", 100),), never=(Never("pay", {"principal": ("Mallory", "Eve")}), Never("delete")),
        confirm=("pay", "e"),
    )
    assert described_mandate(mandate, {"send_money": ToolProfile(effect="pay")}) == [
        "contacts",
        "pay: send_money, recipient = Bob (you said it), amount = 45, 2 times, after `r`, one of the ways to `payment`",
        "pay: send_money, recipient = `iban` of `r`, of each record, at most 20, 3 times each",
        "pay: at most 100 in all", "never pay: principal = Mallory or Eve", "never delete: anything", "ask before: pay, e",
    ]
    assert described_mandate(mandate)[1].startswith("send_money, ")
    assert described_mandate(Mandate()) == []
