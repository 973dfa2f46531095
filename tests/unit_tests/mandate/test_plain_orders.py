"""What a sloppy planner makes of messages: only plain orders run unasked."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from langchain_runtime_authz.mandate import plain_orders
from langchain_runtime_authz.mandate.mandate_file import load_mandate
from langchain_runtime_authz.mandate.plain_orders import VALUE, Known, changes_nothing, unclear
from langchain_runtime_authz.mandate.planner_mandate import backed_part
from langchain_runtime_authz.tool_profile import ToolProfile, load_profiles
from tests.benchmarks.mandate_words import DATA

PROFILES = load_profiles(DATA / "planner" / "profiles.yaml")
SIGNATURES: dict[str, dict[str, Any]] = {name: {arg: {} for arg in (*p.critical, *p.when, *p.text)} for name, p in PROFILES.items()}
ROWS = [json.loads(line) for line in (DATA / "planner" / "messages.jsonl").read_text(encoding="utf-8").splitlines()]


def unasked(row: dict[str, Any]) -> list[bool]:
    """Return for each step, first the right ones, whether it runs unasked."""
    steps = [{**step, "id": f"s{n}"} for n, step in enumerate((*row["steps"], *row["wrong"]))]
    today = datetime.date(2026, 11, 30)
    found = backed_part(load_mandate({"steps": steps}), [row["text"]], PROFILES, SIGNATURES, row.get("earlier", ()), today).mandate
    assert found is not None
    asks = {s.id for s in found.steps if s.id in found.confirm or PROFILES[s.tool].effect in found.confirm}
    return [s["id"] in {one.id for one in found.steps} - asks for s in steps]


def test_what_is_not_ordered_asks_and_most_of_what_is_ordered_does_not() -> None:
    """A list of doubtful phrases let 88 of the first 176 wrong steps run, and 203 of the 226 right ones."""
    ran = [(row, unasked(row)) for row in ROWS]
    wrong = [row["text"] for row, runs in ran if any(runs[len(row["steps"]) :])]
    right = [run for row, runs in ran if not row["wrong"] for run in runs]
    assert len(wrong) <= 9, wrong
    assert (sum(right) >= 572, len(right)) == (True, 687)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("Send a mail to Bob.", True), ("Schick eine Mail an Bob.", True), ("Send a mail for Eve to Bob.", False),
        ("Send a copy of the mail to Bob.", False), ("Do not send a mail to Bob.", False), ("Draft a mail to Bob.", False),
    ],
)  # fmt: skip
def test_a_noun_of_the_tool_may_also_be_a_verb(text: str, runs: bool) -> None:
    """Behind "a" it is the noun: "to mail" says the same as "to send"."""
    profile = ToolProfile(effect="send", critical={"to": "principal"}, text=("body",))
    step = {"id": "1", "tool": "send_mail", "args": {"to": "Bob", "body": {"kind": "text"}}}
    found = backed_part(load_mandate({"steps": [step]}), [text], {"send_mail": profile}, {"send_mail": {"to": {}, "body": {}}})
    assert found.mandate is not None and bool(found.mandate.steps) is runs


def test_the_examples_of_the_grammar_follow_their_rules() -> None:
    """The comment above a rule quotes words that follow it, and behind "not" words that do not."""
    comment, checked, known = "", 0, Known(nouns=frozenset({"priority"}), verbs=frozenset({"pay", "assign"}))
    for line in (Path(plain_orders.__file__).parent / "languages" / "orders.grammar").read_text(encoding="utf-8").splitlines():
        if " = " in line and not line.startswith("#"):
            for n, examples in enumerate(comment.split(": not ")):
                for example in re.findall(r'"([^"]+)"', examples):
                    codes, _ = plain_orders._word_codes(re.sub("T-5|Anna|45", VALUE, example), known)
                    follows = plain_orders._GRAMMAR[line.partition(" = ")[0]].fullmatch(codes) is not None
                    assert follows is (n == 0), (line, example)
                    checked += 1
        comment = line if line.startswith("#") else ""
    assert checked > 30


def orders(text: str, tool: str, profile: dict[str, Any], args: dict[str, Any]) -> bool:
    """Return whether a text orders one call of a tool that takes these arguments."""
    mandate = load_mandate({"steps": [{"id": "s", "tool": tool, "args": args}]})
    names = (*profile["critical"], *profile.get("when", ()))
    found = backed_part(mandate, [text], load_profiles({tool: profile}), {tool: {name: {} for name in names}}).mandate
    assert found is not None
    return bool(found.steps)


@pytest.mark.parametrize(("text", "runs"), [
    ("Renew B-1 for 6 weeks", True), ("Renew B-1 for six weeks, please", True), ("Renew B-1 for 6", True), ("Renueva B-1 por 6 semanas", True), ("Erneuere B-1 für 6 Wochen", True),
    ("Renew B-1 by 6 weeks", True), ("Erneuere B-1 um 6 Wochen", True), ("Renew B-1 by 6", False), ("Renew B-1 by 6 days", False), ("Renueva B-1 a las 6 semanas", False),
    ("Renew B-1 for 6 months", False), ("Renew B-1 for 6 a week", False), ("Renew B-1 for 6 weekends", False), ("Renew B-1 in 6 weeks", False), ("In 6 weeks, renew B-1", False), ("Renew B-1 in 6 weeks' time", False), ("B-1 was renewed for 6 weeks", False),
])
def test_a_number_has_the_unit_of_time_that_its_argument_says(text: str, runs: bool) -> None:
    renew = {"effect": "write", "sink": "internal", "critical": {"loan": "object", "weeks": "amount"}, "intent": ["renew", "renueva", "erneuere"]}
    assert orders(text, "renew", renew, {"loan": "B-1", "weeks": 6}) is runs


@pytest.mark.parametrize(("text", "runs"), [
    ("Prescribe 20 mg Ibux to Ann 3 times a day", True), ("Prescribe Ann Ibux 20 mg, three times a day", True), ("Prescribe 20 mg Ibux to Ann 3 times per day", True),
    ("Prescribe 20 mg Ibux to Ann 3 times a week", False), ("Prescribe 3 mg Ibux to Ann 20 times a day", False),
])
def test_a_number_has_the_rate_that_its_argument_says(text: str, runs: bool) -> None:
    prescribe = {"effect": "send", "critical": {"patient": "principal", "drug": "object", "dose_mg": "amount", "times_per_day": "amount"}, "intent": ["prescribe"]}
    assert orders(text, "prescribe", prescribe, {"patient": "Ann", "drug": "Ibux", "dose_mg": 20, "times_per_day": 3}) is runs


@pytest.mark.parametrize(("text", "runs"), [
    ("Lend B-1 to Ann until 2027-03-01", True), ("Lend B-1 to Ann from 2027-02-01 until 2027-03-01", True), ("Verleih B-1 an Ann vom 1.2.2027 bis zum 1.3.2027", True), ("Lend B-1 to Ann from 2027-02-01 to 2027-03-01", True),
    ("Lend B-1 to Ann from 2027-03-01 until 2027-02-01", False), ("Lend B-1 to Ann from 2027-03-01", False), ("Lend B-1 to Ann until I am back on 2027-03-01", False), ("Until 2027-03-01 nobody may lend B-1 to Ann", False),
])
def test_what_stands_behind_until_is_an_end(text: str, runs: bool) -> None:
    lend = {"effect": "write", "sink": "internal", "critical": {"item": "object", "member": "principal"}, "when": ["start", "due_date"], "intent": ["lend", "verleih"]}
    dates = {"due_date": "2027-03-01"} | ({"start": "2027-02-01"} if "02-01" in text or "1.2." in text else {})
    assert orders(text, "lend", lend, {"item": "B-1", "member": "Ann", **dates}) is runs


@pytest.mark.parametrize(("text", "runs"), [
    ("Approve Ann's leave from 2027-07-03 to 2027-07-10", True), ("Approve the leave of Ann vom 3. Juli 2027 bis 10. Juli 2027", True), ("Approve the leave of Ann del 3 de julio de 2027 al 10 de julio de 2027", True),
    ("Approve the leave of Ann du 3 juillet 2027 au 10 juillet 2027", True), ("Approve the leave of Ann from 3 luglio 2027 to 10 luglio 2027", True),
    ("Approve Ann's boss from 2027-07-03 to 2027-07-10", False), ("Approve Ann's leave vom 3. Juni 2027 bis 10. Juli 2027", False), ("Approve the leave of Ann from 2027-07-10 to 2027-07-03", False),
])
def test_dates_of_other_languages_and_owners_are_read(text: str, runs: bool) -> None:
    leave = {"effect": "write", "sink": "internal", "critical": {"employee": "principal"}, "when": ["start", "end"], "intent": ["approve"]}
    assert orders(text, "approve_leave", leave, {"employee": "Ann", "start": "2027-07-03", "end": "2027-07-10"}) is runs


@pytest.mark.parametrize(("text", "plain"), [
    ("Pay V 4", True), ("Please pay V for the pizza", True), ("I'm sick, so pay V", True), ("Pay V, it is due", True), ("Pay V because it is due", True),
    ("Pay V if it is due", False), ("Pay V, he says", False), ("My boss: pay V", False), ("Invoice paid: V", False), ("Anna pays V", False), ("Rewrite this: pay V", False),
    ("Rent is due, pay V", True), ("Pay V 4 boxes of 4", True), ("Pay V 4 a week", False), ("Pay V, so the letter", False), ("Pay the rest of V", False),
    ("Undo the pay of V", False), ("Wire V and pay 4", False), ("Avoid V", False), ("Pay the man behind V", False), ("Tell Anna that I pay V", False),
    ("V was paid", False), ("Pay V?", False), ("Can you pay V?", True), ("Never pay V", False), ("Pay V, V said", False),
    ("Pay > V", False), ("Pay V 🤡", False), ("Paying V", False), ("Pay: V", False), ("For Tom: pay V", False),
    ("Pay for $V", False), ("Pay minus V", False), ("Pay the timer in V", False), ("Pay V, I take it back", False), ("V is due, pay it", True),
])  # fmt: skip
def test_a_sentence_is_a_plain_order(text: str, plain: bool) -> None:
    said = text.replace("V", "\ue000").replace(" 4", " \ue000")
    assert (unclear(said, [[(said.index("\ue000"), said.index("\ue000") + 1)]], Known(verbs=frozenset({"pay"}))) is None) is plain


@pytest.mark.parametrize(("text", "nothing"), [
    ("Thanks!", True), ("I got sick.", True), ("How are you?", True), ("Pay \ue000.", True), ("Kidding!", False), ("Stop it!", False), ("Make it \ue000.", False), ("The boss said so.", False),
    ("Really?", False), ("I take it back.", False), ("Check it with Tom.", False), ("Thanks 🙏", True), ("Thanks 🙄", False),
])  # fmt: skip
def test_a_sentence_changes_nothing(text: str, nothing: bool) -> None:
    assert changes_nothing(text, Known(verbs=frozenset({"pay"}))) is nothing


@pytest.mark.parametrize(("text", "runs"), [("Book H-1 for 2 nights for 3 guests", True), ("Book H-1 for 3 nights for 2 guests", False), ("Book H-1 for 2 and 3", True)])
def test_a_number_is_not_the_count_of_another_argument(text: str, runs: bool) -> None:
    book = {"effect": "pay", "critical": {"hotel": "object", "nights": "amount", "guests": "amount"}, "intent": ["book"]}
    assert orders(text, "book", book, {"hotel": "H-1", "nights": 2, "guests": 3}) is runs
