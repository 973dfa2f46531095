"""A user's "tomorrow" or "Friday" is a date, counted from the day on which the message came."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.facts.local_time import local_day, with_dates
from langchain_runtime_authz.mandate.model import Between, Mandate, Step
from langchain_runtime_authz.mandate.planner_mandate import backed_part
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

TODAY = date(2026, 12, 31)  # a Thursday
PROFILES = {
    "plan": ToolProfile(
        critical={"title": "name"}, when=("start",), intent=("plan {title} [for] {start}", "plan {title} from {start}", "hold {title} today")
    ),
    "find": ToolProfile(effect="read", critical={"query": "value"}, when=("day",)),
}
SIGNATURES: dict[str, Any] = {"plan": {"title": {}, "start": {}}, "find": {"query": {}, "day": {}}}


def read(text: str, today: date | None = TODAY) -> object:
    """The `start` that the words order, or `None` without an order."""
    mandate = compile_words([text], PROFILES, today=today).mandate
    return None if mandate is None else getattr(mandate.steps[0].args.get("start"), "value", "")


@pytest.mark.parametrize(("said", "start"), [
    ("tomorrow", "2027-01-01"), ("for tomorrow", "2027-01-01"), ("Today", "2026-12-31"), ("the day after tomorrow", "2027-01-02"),
    ("for yesterday", "2026-12-30"), ("tomorrow at 3 pm", "2027-01-01 at 3 pm"), ("for tomorrow 14:00, please", "2027-01-01 14:00"),
    ("for Friday", "2027-01-01"), ("for this monday at 3 pm", "2027-01-04 at 3 pm"), ("for Wednesday, thanks", "2027-01-06"), ("for Friday, 2027-01-08", "Friday, 2027-01-08"),
    # another day is meant, or it is not sure which
    *((said, None) for said in ("for Thursday", "for next Friday", "for Friday next", "for Friday 12/11", "for Friday week", "for Friday or Monday", "for Friday the 8th", "for last Monday", "every Friday", "for Friday, Monday", "for Friday next", "for the Friday", "for our Friday")),
    *((said, None) for said in ("not tomorrow", "tomorrow or today", "tomorrow week", "a week from tomorrow", "a day after tomorrow", "by tomorrow",
        "every day after tomorrow", "tomorrow morning", "tomorrow, Friday", "tomorrow 2027-02-01", "by Friday", "next week", "tomorrow's")),
])  # fmt: skip
def test_words(said: str, start: str | None) -> None:
    assert read(f'Plan "Review" {said}') == start
    assert read(f'Plan "Review" {said}', today=None) == (start if start and "Friday, " in start else None)


@pytest.mark.parametrize(("name", "day"), [("Easter", "Monday"), ("Black", "Friday"), ("Ash", "Wednesday")])
def test_a_name_before_a_weekday_may_be_of_one_day(name: str, day: str) -> None:
    assert read(f"Plan {name} {day}") is None and read(f"Plan {name} for {day}")


def test_a_day_is_a_value_only_of_a_date() -> None:
    mark = {"mark": ToolProfile(critical={"item": "object"}, intent=("mark {item} [[as] {state}]",))}
    state = {"mark": {"properties": {"item": {"type": "string"}, "state": {"type": "string"}}}}
    assert compile_words(["Mark T-5 tomorrow"], mark, state, today=TODAY).mandate is None
    assert compile_words(["Mark T-5 2027-01-05"], mark, state, today=TODAY).mandate is not None


def test_what_is_no_date_reads_as_before() -> None:
    assert read('Thanks for your help today. Plan "Review" for 2027-01-05') == "2027-01-05"
    assert read('Hold "Review" today', today=None) == read('Hold "Review" today') == ""  # an order of the profile
    assert read('Plan "tomorrow" for today') == "2026-12-31"


def planned(text: str, *earlier: str, today: date | None = TODAY, tool: str = "plan", **args: Any) -> dict[str, Any]:
    found = backed_part(Mandate(steps=(Step("s", tool, args),)), [text], PROFILES, SIGNATURES, earlier, today).mandate
    return {n: getattr(a, "value", a) for step in (found.steps if found else ()) for n, a in step.args.items()}


@pytest.mark.parametrize(("text", "said", "start"), [
    ('Plan "Review" for tomorrow', "tomorrow", "2027-01-01"), ('Plan "Review" for tomorrow at 2 pm.', "tomorrow at 2 pm", "2027-01-01 at 2 pm"),
    *((f'Plan "Review" on Monday {more}', "Monday", "2027-01-04") for more in ("for Ann", "please", "for the team")), ('On Monday, plan "Review"', "Monday", "2027-01-04"),
    ('Plan "Review" the day after tomorrow', "the day after tomorrow", "2027-01-02"), ('Plan "Review" for Monday, please', "Monday", "2027-01-04"),
    *((f'Plan "Review" for {text}', said, said) for text, said in (("next Monday", "Monday"), ("Thursday", "Thursday"), ("Monday 12 January", "Monday"), ("Monday, January 12", "Monday"), ("12 January (Tuesday)", "Tuesday"),
        ("Monday the 12th", "Monday"), *((f"Monday{more}", "Monday") for more in (" next week", " in two weeks", ", a week from now", " of the week after", " the twelfth", " through Friday", " + 7 days", "'s", " in a month", " mornings", "/Tuesday", " following", " in 2028")), ("the Monday Ann is back", "the Monday"),
        *((f"{before} Monday", "Monday") for before in ("Easter", "the first", "any", "a week on", "two weeks from", "early", "around", "starting", "our", "the usual", "one")), ("tomorrow in a week", "tomorrow"), ("Monday after next", "Monday"), ("Monday week", "Monday"), ("Monday at 3 pm", "Monday"), ("the coming Monday", "Monday"))),
    # a part of what the user says is not that day, and stays a word that no call's date equals
    *((f'Plan "Review" {text}', said, said) for text, said in (("the day after tomorrow", "tomorrow"), ("a week from tomorrow", "tomorrow"), ("tomorrow week", "tomorrow"),
        ("for tomorrow at 2 pm", "tomorrow"), ("at 2 pm tomorrow", "tomorrow"), ("today or tomorrow", "tomorrow"), ("by tomorrow", "tomorrow"), ("tomorrow-ish", "tomorrow"))),
])  # fmt: skip
def test_a_planner(text: str, said: str, start: str) -> None:
    found = planned(text, title="Review", start=said)
    assert found.get("start", said) == start
    assert planned(text, title="Review", start=said, today=None).get("start", said) == said


@pytest.mark.parametrize("said", [
    ('Next week:\n- plan "Review" on Monday',), ('KW 51: plan "Review" on Monday',), ('In January: plan "Review" on Monday',), ('Plan "Review" in spring on Monday',), ('Plan "Review" on Monday, biweekly',),
    ('Plan "Review" on Monday. I mean the 18th.',), ('Plan "Review" on Monday', "Which days of sprint 12 are free?"),
])  # fmt: skip
def test_a_weekday_near_another_time_may_be_a_later_one(said: tuple[str, ...]) -> None:
    assert planned(*said, title="Review", start="Monday").get("start", "Monday") == "Monday"


def test_a_planners_range_and_its_searches() -> None:
    between = planned('Plan "Review" between today and tomorrow', title="Review", start=Between(low="today", high="tomorrow"))["start"]
    assert (between.low, between.high) in {("today", "tomorrow"), ("2026-12-31", "2027-01-01")}
    assert planned('Find "today"', tool="find", query="today") == {"query": "today"}  # not a date of the profile


def test_the_day_of_an_earlier_message_may_be_over() -> None:
    inside = {**PROFILES, "plan": ToolProfile(critical={"title": "name"}, when=("start",), sink="internal")}
    step = Step("s", "plan", {"title": "Review", "start": "tomorrow"})
    found = backed_part(Mandate(steps=(step,)), ['No, call it "Review"'], inside, SIGNATURES, ['Plan "Retro" for tomorrow'], TODAY).mandate
    assert found is None or found.steps[0].args["start"].value == "tomorrow"


@given(st.text(max_size=40), st.dates())
def test_other_texts_stay(text: str, today: date) -> None:
    if "day" not in text.lower() and "tomorrow" not in text.lower():
        assert with_dates(text, today) == text


def test_without_zone_or_time_there_is_no_day() -> None:
    from zoneinfo import ZoneInfo

    berlin = ZoneInfo("Europe/Berlin")
    assert (local_day(None, 1e9), local_day(berlin, 0)) == (None, None)
    assert local_day(berlin, 1798757999) == date(2026, 12, 31) and local_day(berlin, 1798758000) == date(2027, 1, 1)
