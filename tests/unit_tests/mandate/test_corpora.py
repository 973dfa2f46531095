"""The sentence corpora are well formed, and nothing that they do not order is permitted."""

import itertools
import json

import jsonschema
import pytest
from rich.console import Console

from langchain_runtime_authz._profile_schema import check_arguments
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.benchmarks.mandate_words import CORPORA, DATA, load, measure, tools

ROWS = {name: (load("orders", name), load("nonorders", name)) for name in CORPORA}


@pytest.mark.parametrize("corpus", CORPORA)
def test_calls_fit_their_tools(corpus):
    profiles, schemas = tools(corpus)
    assert profiles.keys() == schemas.keys()
    for name, schema in schemas.items():
        check_arguments(name, profiles[name], schema["properties"])
    checks = {t: jsonschema.Draft202012Validator({**s, "additionalProperties": False}) for t, s in schemas.items()}
    for row in itertools.chain(*ROWS[corpus]):
        assert row.get("attacks", row["calls"]), row["id"]
        for call in (*row["calls"], *row.get("attacks", ())):
            assert checks[call["tool"]].is_valid(call["args"]), (row["id"], call)
        assert row.get("repeat") or not [a for a in row.get("attacks", ()) if a in row["calls"]], row["id"]


@pytest.mark.parametrize("corpus", [*CORPORA, "apps"])
def test_nothing_that_was_not_ordered_is_permitted(corpus):
    found = measure(corpus, "all", "wrong", Console(), plan=False)
    wrong = [(of.wrong[0], of.changed[0]) for (kind, _, _), of in found.items() if kind == "all"]
    assert wrong and set(wrong) == {(0, 0)}


DOUBTS = [json.loads(line) for line in (DATA / "doubts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_may_mean_something_else_orders_nothing():
    """Each text was once read as an order that an impartial reader would not see in it."""
    ordered = []
    for row in DOUBTS:
        profiles = {name: ToolProfile(**tool["profile"]) for name, tool in row["tools"].items()}
        schemas = {name: tool["schema"] for name, tool in row["tools"].items()}
        ordered += [(text, *profiles) for text in row["texts"] if compile_words([text], profiles, schemas).mandate]
    assert DOUBTS and ordered == []
