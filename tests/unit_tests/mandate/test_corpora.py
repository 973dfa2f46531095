"""The sentence corpora are well formed, and nothing that they do not order is permitted."""

import datetime
import itertools
import json
import re
import unicodedata
from collections import Counter
from decimal import Decimal, InvalidOperation

import jsonschema
import pytest
from rich.console import Console

from langchain_runtime_authz._profile_schema import check_arguments
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.benchmarks.mandate_words import CORPORA, DATA, SPLITS, load, measure, tools

ROWS = {name: (load("orders", name), load("nonorders", name)) for name in CORPORA}
every_corpus = pytest.mark.parametrize("corpus", CORPORA)
WRITINGS = {  # of a value, by which people say it
    "USD": "$ dollar bucks dólar 美元", "EUR": "€ euro 欧", "GBP": "£ pound", "CHF": "franken", "CNY": "¥ 人民币",
    "1": "an one", "2": "two", "40": "forty", "monthly": "monat mensual",
}


def stands(value, text):
    if isinstance(value, list):
        return all(stands(item, text) for item in value)
    if isinstance(value, bool):
        return True  # a folder "with all its contents"
    if isinstance(value, int | float):
        return Decimal(str(value)) in numbers(text) or any(w in text.lower() for w in WRITINGS.get(str(value), "").split())
    told = value.casefold() in text.casefold()
    return told or any(writing in text.lower() for writing in WRITINGS.get(value, "").split())


def numbers(text):
    for written in re.findall(r"\d[\d., ]*", unicodedata.normalize("NFKC", text)):
        for digits in {written, *written.split(" "), written.replace(" ", "")}:
            plain = digits.strip(" .,")
            for form in (
                plain, plain.replace(",", ""), plain.replace(".", "").replace(",", "."), plain.replace(",", "."),
            ):
                try:
                    yield Decimal(form)
                except InvalidOperation:
                    continue


def dated(value, text):
    when = datetime.datetime.fromisoformat(value)
    found = set(map(int, re.findall(r"\d+", text)))
    hours = {when.hour, when.hour % 12} if len(value) > 10 else {when.day}
    return when.day in found and bool(found & hours)


@every_corpus
def test_ids_and_splits(corpus):
    orders, nonorders = ROWS[corpus]
    rows = orders + nonorders
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert max(Counter(row["text"] for row in orders).values()) == 1
    assert {row["split"] for row in rows} <= set(SPLITS)
    assert {row["lang"] for row in rows} == {"en", "de", "es", "zh"}


@every_corpus
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


def test_values_of_an_order_stand_in_its_text():
    profiles, _ = tools("office")
    for row in itertools.chain(*ROWS["office"]):
        for call in row["calls"] if row.get("verbatim", True) else ():
            profile = profiles[call["tool"]]
            for name, value in call["args"].items():
                if name in profile.critical:
                    assert stands(value, row["text"]), (row["id"], name, value)
                elif name in profile.when:
                    assert dated(value, row["text"]), (row["id"], name, value)


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
