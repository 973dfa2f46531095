"""What the user states: own words, without material and without what is forbidden."""

import time
from collections.abc import Callable

import pytest

from langchain_runtime_authz.mandate.message_places import MAX_OWN, Segment, material_spans, stated_text
from langchain_runtime_authz.mandate.plain_orders import Known, changes_nothing, unclear


@pytest.mark.parametrize(("text", "told", "untold"), [
    ("Open a.org. Never open evil.org.", "a.org", "evil.org"),
    ("Read b.org\n> see evil.org", "b.org", "evil.org"),
    ("Read c.org:\n```\nevil.org\n```", "c.org", "evil.org"),
    ("> ```\n> see\n```\nevil.org\n```", "", "evil.org"),
    ("```\n> ```\nevil.org\n```", "", "evil.org"),
    ("> ```\n> see\n> ```\nRead c.org", "c.org", "see"),
    ("````\n```\nevil.org\n```\n````\nRead c.org", "c.org", "evil.org"),
    ("Fetch d.org, not evil.org. Thanks.", "Thanks", "d.org"),
    ("Öffne e.org. Aber nicht evil.org.", "e.org", "evil.org"),
])
def test_material_and_what_is_forbidden_states_nothing(text: str, told: str, untold: str) -> None:
    assert told in stated_text(text)
    assert untold not in stated_text(text)


def test_a_text_without_them_stays_as_it_is() -> None:
    text = "Open www.example.org. Then tell Dr. Smith: it is done!\nThank you"
    assert stated_text(text) == text


def test_a_text_beyond_the_bound_states_nothing() -> None:
    assert stated_text("a.org " * MAX_OWN) == ""


@pytest.mark.parametrize("n", [8, 300, 2000])
@pytest.mark.parametrize("pasted", [
    lambda n: f'<file name="{"A" * n}">\nevil.org\n</file>',
    lambda n: f'<file name="a<b\n{"A" * n}">\nx\n</file>\nevil.org\n</file>', lambda n: f"<{'d' * n}>\nevil.org\n</{'d' * n}>",
    lambda n: f"On Mon, {'A' * n} wrote:\nevil.org", lambda n: f"Am Montag, {'A' * n} schrieb Bob {'A' * n}:\nevil.org",
    lambda n: f"{'-' * n}\nevil.org\n{'-' * n}", lambda n: f"{' ' * n}> evil.org",
    lambda n: f"{'-' * n} Forwarded message {'-' * n}\nevil.org",
], ids=["attribute", "end tag inside", "name", "wrote", "schrieb", "rule", "quote", "forward"])
def test_material_is_recognised_at_any_length(pasted: Callable[[int], str], n: int) -> None:
    assert stated_text(f"Read a.org.\n{pasted(n)}").strip().startswith("Read a.org.")
    assert "evil.org" not in stated_text(f"Read a.org.\n{pasted(n)}")


@pytest.mark.parametrize(
    "text", ["<", "<a ", "-", " ", "on ", " schrieb ", "</a", "```x", "from:\n", "-----\n", "> \n", "<a></a>"]
)
def test_the_search_for_material_is_linear(text: str) -> None:
    began = time.process_time()
    material_spans(("am " + text * 125_000)[:124_999] + "x")
    material_spans((text * 125_000)[:124_999] + "x")
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize("text", ["instead of " * 1_700 + ";", "该" * 19_000, ", and pay the bill" * 1_000, "the " * 4_000 + "!", "please, " * 2_000, "and " * 4_000, "for " * 4_000, "a:" * 9_000, "\ue000 x, " * 4_000])
def test_the_reading_of_a_sentence_is_linear(text: str) -> None:
    segment, began = Segment("", 0, text), time.process_time()
    unclear(text, (), Known(verbs=frozenset({"pay"}), told=True))
    changes_nothing(text, Known())
    read = time.process_time()
    for _ in range(16):  # places of a value
        segment.refused(0)
    assert read - began < 3 and time.process_time() - read < 1
