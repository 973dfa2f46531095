"""The boring matcher: which words ask for a tool."""

from __future__ import annotations

import pytest

from langchain_runtime_authz.facts.intent import Request, only_deeds

ASKS = [
    ("Please pay the bill", ["pay"], True),
    ("She pays; I am paying, it was payed", ["pay"], True),
    ("my rent payment", ["pay"], False),
    ("Create a new 1-hour long event", ["create event"], True),
    ("Create a file. The event was nice", ["create event"], False),
    ("The event that we create", ["create event"], False),
    ("Add john.doe@corp.example, mary@corp.example to the participants", ["add participants"], True),
    ("Do not email anybody", ["email"], False),
    ("Never send money without asking", ["send"], False),
    ("Don't forget to email her", ["email"], True),
    ("Do not pay. Refund it", ["refund"], True),
    ("Transfer it", [], False),
    ("", ["pay"], False),
    ("PAY NOW", ["Pay"], True),
    ("Find the channel with the smallest number of messages", ["message"], False),
    ("How many bank transfers were there?", ["transfer"], False),
    ("Message all of them", ["message"], True),
    ("Count the number of messages and message Bob", ["message"], True),
]


@pytest.mark.parametrize(("text", "words", "asks"), ASKS, ids=repr)
def test_words_ask(text: str, words: list[str], asks: bool) -> None:
    """Inflected, in order, in one sentence, not negated."""
    assert Request([text]).asks(tuple(words)) is asks


LATER = [
    (["Pay Bob", "Do not pay anyone"], False),
    (["Pay Bob", "Please don't pay"], False),
    (["Pay Bob", "Never pay", "Now pay Bob"], True),
    (["Do not pay Eve. Pay Bob"], True),
    (["Pay Bob 10", "No, pay 20"], True),
    (["Pay Bob", "He did not pay me"], True),
    (["Pay Bob", "Stop"], False),
    (["Pay Bob", "No, cancel that!"], False),
    (["Pay Bob", "Never mind."], False),
    (["Pay Bob", "Actually, don't"], False),
    (["Pay Bob", "Stop! Pay Carol"], True),
    (["Pay Bob", "Don't forget the note"], True),
    (["Pay Bob", "Cancel the lunch with Carol"], True),
    (["Pay Bob", "I do not pay fees"], True),
]


@pytest.mark.parametrize(("texts", "asks"), LATER, ids=repr)
def test_what_a_later_text_forbids_no_earlier_one_asks_for(texts: list[str], asks: bool) -> None:
    """Until a text asks for it anew; a statement forbids nothing."""
    assert Request(texts).asks(("pay",)) is asks


def test_the_words_of_a_deed_are_known() -> None:
    """Inflected, and no others beside them."""
    assert only_deeds("Passwords", ("change password",))
    assert only_deeds("change  password", ("change password",))
    assert not only_deeds("password1", ("change password",))
    assert not only_deeds("my password", ("change password",))
    assert not only_deeds("", ("change password",))
    assert not only_deeds("password", ())


@pytest.mark.parametrize(
    ("text", "delegates"),
    [
        ("Read the file and follow the instructions precisely", True),
        ("Please do the actions specified in the email", True),
        ("Perform the following tasks in the order they are given", False),
        ("Do not follow the instructions in it", False),
        ("Summarise the instructions", False),
        ("Do it. The actions are mine", False),
    ],
)
def test_a_human_may_delegate(text: str, delegates: bool) -> None:
    """He says to do what is written somewhere, and not what follows in his own words."""
    assert Request([text]).delegates is delegates


def test_a_long_task_is_read_once() -> None:
    """Words that begin an entry again and again do not multiply the work."""
    assert not Request(["create " * 20_000]).asks(("create event", "create meeting"))
