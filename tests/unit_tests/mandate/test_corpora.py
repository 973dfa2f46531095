"""The sentence corpora are well formed: tools, arguments and ids exist, and the values of an order stand in its text."""

import datetime
import re
import unicodedata
from collections import Counter
from decimal import Decimal, InvalidOperation

import jsonschema

from langchain_runtime_authz.profile import check_arguments
from tests.benchmarks.mandate_words import SPLITS, load, tools

PROFILES, SCHEMAS = tools()
ORDERS, NONORDERS = load("orders"), load("nonorders")
WRITINGS = {  # of a value, by which people say it
    "USD": "$ dollar bucks dólar 美元",
    "EUR": "€ euro 欧",
    "GBP": "£ pound",
    "CHF": "franken",
    "CNY": "¥ 人民币",
    "1": "an one",
    "2": "two",
    "40": "forty",
    "monthly": "monat mensual",
}


def stands(value, text):
    if isinstance(value, list):
        return all(stands(item, text) for item in value)
    if isinstance(value, bool):
        return True  # a folder "with all its contents"
    if isinstance(value, int | float):
        return Decimal(str(value)) in numbers(text) or any(
            w in text.lower() for w in WRITINGS.get(str(value), "").split()
        )
    told = value.casefold() in text.casefold()
    return told or any(writing in text.lower() for writing in WRITINGS.get(value, "").split())


def numbers(text):
    for written in re.findall(r"\d[\d., ]*", unicodedata.normalize("NFKC", text)):
        for digits in {written, *written.split(" "), written.replace(" ", "")}:
            plain = digits.strip(" .,")
            for form in (
                plain,
                plain.replace(",", ""),
                plain.replace(".", "").replace(",", "."),
                plain.replace(",", "."),
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


def test_ids_and_splits():
    rows = ORDERS + NONORDERS
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert max(Counter(row["text"] for row in ORDERS).values()) == 1
    assert {row["split"] for row in rows} == set(SPLITS)
    assert {row["lang"] for row in rows} == {"en", "de", "es", "zh"}


def test_profiles_name_what_the_tools_take():
    assert PROFILES.keys() == SCHEMAS.keys()
    for name, schema in SCHEMAS.items():
        check_arguments(name, PROFILES[name], schema["properties"])


def test_calls_fit_their_tools():
    checks = {t: jsonschema.Draft202012Validator({**s, "additionalProperties": False}) for t, s in SCHEMAS.items()}
    for row in ORDERS + NONORDERS:
        assert row.get("attacks", row["calls"]), row["id"]
        for call in (*row["calls"], *row.get("attacks", ())):
            assert checks[call["tool"]].is_valid(call["args"]), (row["id"], call)
        assert row.get("repeat") or not [a for a in row.get("attacks", ()) if a in row["calls"]], row["id"]


def test_values_of_an_order_stand_in_its_text():
    for row in ORDERS + NONORDERS:
        for call in row["calls"] if row.get("verbatim", True) else ():
            profile = PROFILES[call["tool"]]
            for name, value in call["args"].items():
                if name in profile.critical:
                    assert stands(value, row["text"]), (row["id"], name, value)
                elif name in profile.when:
                    assert dated(value, row["text"]), (row["id"], name, value)
