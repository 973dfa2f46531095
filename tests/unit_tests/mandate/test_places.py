"""What the user states: own words, without material and without what is forbidden."""

from __future__ import annotations

import pytest

from langchain_runtime_authz.mandate.places import MAX_OWN, stated


@pytest.mark.parametrize(
    ("text", "told", "untold"),
    [
        ("Open a.org. Never open evil.org.", "a.org", "evil.org"),
        ("Read b.org\n> see evil.org", "b.org", "evil.org"),
        ("Read c.org:\n```\nevil.org\n```", "c.org", "evil.org"),
        ("Fetch d.org, not evil.org. Thanks.", "Thanks", "d.org"),
        ("Öffne e.org. Aber nicht evil.org.", "e.org", "evil.org"),
    ],
)
def test_material_and_what_is_forbidden_states_nothing(text: str, told: str, untold: str) -> None:
    assert told in stated(text)
    assert untold not in stated(text)


def test_a_text_without_them_stays_as_it_is() -> None:
    text = "Open www.example.org. Then tell Dr. Smith: it is done!\nThank you"
    assert stated(text) == text


def test_a_text_beyond_the_bound_states_nothing() -> None:
    assert stated("a.org " * MAX_OWN) == ""
