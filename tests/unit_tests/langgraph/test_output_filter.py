"""Redaction leaves nothing of a field behind."""

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.evaluation import Obligation
from langchain_runtime_authz.langgraph.output_filter import REDACTED, redact_fields
from langchain_runtime_authz.pep.obligations import obliged_fields

SECRET = "DE89-SECRET"


def test_a_path_is_redacted_by_its_last_name() -> None:
    """Profiles name fields by their paths, so a policy may: nothing of it stays, and rather too much goes."""
    fields = obliged_fields([Obligation("o", "redact", {"fields": each}) for each in (["account.iban", "pin"], ["a.b.c"])])
    value = {"account": {"iban": SECRET, "name": "bob"}, "pin": SECRET, "b": [{"c": SECRET}], "account.iban": SECRET}
    assert SECRET not in repr(redact_fields(value, fields)) and redact_fields(value, fields)["account"]["name"] == "bob"
    assert redact_fields(alike := {"IBAN": "x", "iban2": "y", "note": "iban"}, ["iban"]) == alike
    assert redact_fields(value, []) is value


class Point(NamedTuple):
    iban: Any
    x: Any


@pytest.mark.parametrize(("value", "clean"), [
    ({"iban": SECRET, "name": "bob"}, {"iban": REDACTED, "name": "bob"}),
    ({"a": [{"iban": SECRET}, {"b": {"iban": [SECRET]}}]}, {"a": [{"iban": REDACTED}, {"b": {"iban": REDACTED}}]}),
    ([{"iban": SECRET}, 1, "text"], [{"iban": REDACTED}, 1, "text"]),
    (({"iban": SECRET}, [({"iban": SECRET},)]), ({"iban": REDACTED}, [({"iban": REDACTED},)])),
    ({"iban": None}, {"iban": REDACTED}), ({"iban": {"country": "DE", "number": SECRET}}, {"iban": REDACTED}),
    ({1: {"iban": SECRET}}, {1: {"iban": REDACTED}}),
    ([Point(SECRET, 1), {SECRET}, b"bytes", 2.5], [REDACTED, REDACTED, REDACTED, 2.5]), (Point(1, {"iban": SECRET}), REDACTED),
    ({"type": "text", "text": "x", "iban": SECRET}, {"type": "text", "text": REDACTED, "iban": REDACTED}),
    ({"body": f'{{"iban": "{SECRET}", "n": {"1" * 4400}}}'}, {"body": REDACTED}),
    ({"body": f'{{"iban": "{SECRET}", "n": {"[" * 100_000}{"]" * 100_000}}}'}, {"body": REDACTED}), ({}, {}),
    ([], []), (None, None), (SECRET, REDACTED), ("", REDACTED), (7, REDACTED), (True, REDACTED),
    (b"bytes", REDACTED), ({SECRET}, REDACTED), (object, REDACTED),
])
def test_a_field_is_redacted_at_any_depth(value: object, clean: object) -> None:
    """In dictionaries, lists and tuples; other values are redacted as a whole."""
    before = repr(value)
    assert redact_fields(value, ["iban"]) == clean and SECRET not in repr(redact_fields(value, ["iban"]))
    assert repr(value) == before


@pytest.mark.parametrize(("text", "clean"), [
    ('{"iban": "DE89-SECRET", "name": "bób"}', {"iban": REDACTED, "name": "bób"}),
    ('[{"iban": "DE89-SECRET"}, {"iban": 7}]', [{"iban": REDACTED}, {"iban": REDACTED}]),
    ('{"a": {"iban": "DE89-SECRET"}}', {"a": {"iban": REDACTED}}),
    ('{"iban": "DE89-SECRET", "iban": "DE89-SECRET"}', {"iban": REDACTED}),
    ('{"\\u0069ban": "DE89-SECRET"}', {"iban": REDACTED}),
    ('  {"iban": "DE89-SECRET"}\n', {"iban": REDACTED}),
])
def test_text_that_is_json_is_what_it_says(text: str, clean: object) -> None:
    """Its fields are redacted, however they are spelt, and it stays JSON."""
    redacted = redact_fields(text, ["iban"])
    assert json.loads(redacted) == clean and SECRET not in redacted


@pytest.mark.parametrize("text", [
    "[" * 100_000, "The IBAN is DE89-SECRET.", "{'iban': 'DE89-SECRET'}", '{"iban": "DE89-SECRET"',
    '{"iban": "DE89-SECRET"} and more', '"DE89-SECRET"', "7", "null", "iban: DE89-SECRET",
])
def test_other_text_goes_as_a_whole(text: str) -> None:
    """It has no fields to search."""
    assert redact_fields(text, ["iban"]) == REDACTED


@pytest.mark.parametrize("value", [
    [{"type": "text", "text": '{"iban": "DE89-SECRET"}'}], [{"type": "text", "text": "The IBAN is DE89-SECRET."}],
    ['{"iban": "DE89-SECRET"}'], {"body": '{"iban": "DE89-SECRET"}'}, '{"body": "{\\"iban\\": \\"DE89-SECRET\\"}"}',
], ids=["content block of JSON", "content block of text", "list of JSON", "member of JSON", "JSON in JSON"])
def test_text_below_a_structure_is_redacted_too(value: object) -> None:
    """A tool's content blocks are how most MCP tools answer."""
    assert SECRET not in repr(redact_fields(value, ["iban"]))


names = st.sampled_from(["iban", "pin", "a", "b"])
# The fields hold the secret, and nothing else does.
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.sampled_from(["x", "y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=4).map(
            lambda d: {k: {SECRET: v} if k in ("iban", "pin") else v for k, v in d.items()},
        )
    ),
    max_leaves=10,
)


@given(value=values)
def test_no_named_field_survives(value: Any) -> None:
    """Whatever the structure, as an object and as JSON text; and redacting again changes nothing."""
    clean = redact_fields(value, ["iban", "pin"])
    assert SECRET not in repr(clean) and redact_fields(clean, ["iban", "pin"]) == clean
    text = json.dumps(value)
    assert SECRET not in redact_fields(text, ["iban", "pin"])
