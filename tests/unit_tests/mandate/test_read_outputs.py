"""Outputs are kept once, within bounds; what was cut or forgotten is incomplete."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json

import pytest
from pydantic import BaseModel

from langchain_runtime_authz.facts.call_arguments import uncovered
from langchain_runtime_authz.facts.output_reading import copy_output
from langchain_runtime_authz.mandate import read_outputs as module
from langchain_runtime_authz.mandate.model import Contains
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.tool_profile import ToolProfile

READ = ToolProfile(effect="read", trust={"": "internal", "a": "system", "a.b": "external"}, prose=("text",), counterparty=("from",))


class Model(BaseModel):
    when: datetime.date


@dataclasses.dataclass
class Data:
    total: decimal.Decimal


@dataclasses.dataclass
class Raises:
    total: int = 0

    def __getattribute__(self, name):
        if name == "total":
            raise RuntimeError(name)
        return super().__getattribute__(name)


def kept(output, **options):
    found = Outputs()
    found.record("read", READ, {}, output, **options)
    return next(iter(found.of("read")))


@pytest.mark.parametrize(("output", "value"), [
    (Model(when=datetime.date(2025, 5, 26)), {"when": "2025-05-26"}),
    ([Data(decimal.Decimal("98.70"))], [{"total": 98.7}]), (json.dumps({"a": [1, None]}), {"a": [1, None]}),
    ("{not json", "{not json"), ({1: (2, float("nan"))}, {"1": [2, None]}),
])
def test_what_an_output_says(output, value):
    for given in (output, copy_output(output)):
        assert (kept(given).value, kept(given).complete) == (value, True)


def cyclic():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "output",
    [object(), {"a": b"x"}, cyclic(), "x" * 500_000, [0] * 30_000, {"1": 1, 1: 2}, 10**5000, Raises(), json.loads("[" * 500 + "]" * 500)],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_read_wholly_is_incomplete(output):
    assert kept(output).complete is False
    assert kept(copy_output(output)).complete is False


def test_the_first_observation_counts():
    found = Outputs()
    for args, output in (({"q": "Bob"}, 1), ({"q": "bob ", "x": None}, 2), ({"q": "Carol"}, 3)):
        found.record("read", READ, args, output)
    assert [output.value for output in found.of("read")] == [1, 3]
    found.record("read", READ, {"q": "Bob"}, "one two three four five six")
    assert any(words.holds([("one", "two", "three", "four", "five", "six")]) for words in found.texts())


def test_a_newer_task_takes_no_value_of_an_older_one():
    found = Outputs()
    for n in range(6):
        found.record("read", READ, {}, n, task=(n, "", None))
    assert [[output.value for output in found.of("read", (n, "", None))] for n in (1, 2, 5)] == [[], [2], [5]]


def test_the_oldest_is_forgotten_and_stays_known(monkeypatch):
    monkeypatch.setattr(module, "MAX_WEIGHT", 1000)
    found = Outputs()
    for n in range(5):
        found.record("read", READ, {"n": n}, "x" * 400)
    found.record("read", READ, {"n": 0}, "another")
    assert [output.complete for output in found.of("read")] == [False, False, False, True, True]


def test_the_number_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    found = Outputs()
    for n in range(5):
        found.record("read", READ, {"n": n}, n)
    assert len(found.of("read")) == 3


@pytest.mark.parametrize("n", [1, 1001, 30_000], ids=["small", "values", "text"])
@pytest.mark.parametrize("most", [1024, 0])
def test_the_words_of_an_output_are_known_whatever_its_arguments(n, most, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", most)
    words = ("one", "two", "three", "four", "five", "six")
    found = Outputs()
    found.record("read", READ, {"q": "x" * n if n == 30_000 else [*range(n)]}, " ".join(words))
    assert any(text.holds([words]) for text in found.texts())
    assert len(found.of("read")) == (n == 1 and most > 0)


def test_written_values_are_told_by_time(monkeypatch):
    found = Outputs()
    found.claimed({"a": ["x"]})
    assert (found.written("X ", 2), found.written("x", 1), found.written("y", 2)) == (True, False, False)
    found.claimed({"content": '{"rows": [{"payee": "Eve"}]}', "note": "Anna is now at eve@x.org, she says."})
    assert (found.written("Eve", 3), found.written("eve@x.org", 3), found.written("Anna", 3)) == (True, True, False)
    monkeypatch.setattr(module, "MAX_WRITTEN", 1)
    found.claimed({"a": "z"})
    assert (found.written("y", 4), found.written("y", 3)) == (True, False)


@pytest.mark.parametrize(
    "told", ["eve", "Eve" + " " * 3000, json.dumps({"a": json.dumps(["Eve"])}), f'["Eve", {"1" * 4400}]'],
    ids=["plain", "padded", "JSON in JSON", "long number"],
)
def test_no_spelling_of_a_written_value_hides_it(told):
    found = Outputs()
    found.claimed({"a": told})
    assert (found.written("Eve", 2), found.written("Bob", 2)) == (True, False)


def test_a_written_text_is_taken_apart(monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXTS", 100)
    found = Outputs()
    for text in ("Eve, 12; Bob|34\tAnn", "To: Mallory Moe") * 30:  # the same texts again do not fill the limit
        found.claimed({"note": text})
    for value in ("Eve", "12", "Bob", "34", "Ann", "Mallory Moe"):
        assert found.written(value, float("inf"), cut=True), value
        assert not found.written(value, 61)
    assert (found.written("Mallory Moe", 3, cut=True), found.written("Mallory Moe", 2, cut=True)) == (True, False)
    assert not found.written("Zoe", float("inf"), cut=True)
    found.claimed({"note": "x" * 101})
    assert (found.written("Zoe", 62, cut=True), found.written("Zoe", 61, cut=True)) == (True, False)


@pytest.mark.parametrize("told", ["Spotify", "12.50", "1,200", "bills@x.org", "GB29NWBK60161331926819", "https://x.org/a", "2026-05-19"])
def test_a_part_that_chooses_a_value_may_be_what_was_written(told):
    found = Outputs()
    found.claimed({"a": told})
    assert found.written(f"Mail: {told} #1", 2, (Contains(told),))
    assert not found.written(f"Mail: {told} #1", 2, (Contains("Mail"),))


@pytest.mark.parametrize(
    "large", [[*range(1001)], json.dumps([*range(1001)]), "x " * 500_001, "[" * 100_000 + "]" * 100_000],
    ids=["values", "in JSON", "text", "deep"],
)
def test_a_write_that_is_too_large_to_note_had_any_value(large):
    """From then on. What was read before it is trusted as before."""
    found = Outputs()
    found.claimed({"a": "b"})
    found.claimed({"rows": large})
    assert (found.written("eve", 3), found.written("eve", 2)) == (True, False)


def test_loose_members():
    assert list(uncovered("a", [{"b": 1, "c": {"d": 2}}], {"a.b"})) == ["a.c.d"]
    assert list(uncovered("a", "id", {"a.b"})) == []
    said = {"b": None, "line_2": "", "bcc:eve@x.org": None, "DE21500105179625862911": {}}
    assert sorted(uncovered("a", said, set())) == ["a.DE21500105179625862911", "a.bcc:eve@x.org"]
    assert list(uncovered("a", [0] * 5000, {"b"}))[-1] == "a"
    covered = {"a.b", "a.b.c"}
    assert list(uncovered("a", {"b": {"c": 1}}, covered)) == []
    assert list(uncovered("a", {"b.c": 1}, covered)) == list(uncovered("a.b.c", 1, covered)) == ["a.b.c"]


def test_another_thread_may_claim_a_call_while_values_are_compared(monkeypatch):
    kept, fold = Outputs(), module.fold

    def meanwhile(text):
        kept.claimed({"note": f"{text} again"})
        return [kept.of("read"), fold(text)][1]

    monkeypatch.setattr(module, "fold", meanwhile)
    kept.claimed({"note": "rent"})
    kept.claimed({"note": "food"})
    assert not kept.written("my bus, 5 EUR", 99, (Contains("bus"),))
