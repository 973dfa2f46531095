"""A date without a year is the next one, and a time that cannot be compared has no order."""

import datetime
from zoneinfo import ZoneInfo

import pytest

from langchain_runtime_authz.mandate.date_matching import adds_time, are_upcoming, dates_of, in_zone, other_day
from langchain_runtime_authz.mandate.model import AtLeast, Const, Span
from langchain_runtime_authz.mandate.value_matching import meets_condition


@pytest.mark.parametrize(("today", "next_ones", "others"), [
    ("2027-06-01", ["2027-06-03", "3 June 2027", "2027-06-03T10:00+02:00", "3 June", ["2027-06-03", "2028-05-30"]], ["2026-06-03", "2028-06-03", "3/6/2099", ["2027-06-03", "2028-06-03"]]),
    ("2027-06-04", ["2027-06-03", "2028-06-02"], ["2027-06-02", "2028-06-03", "2028-06-04"]),  # east of UTC, the 4th has begun
    ("2027-03-02", ["2028-02-29"], []), ("2026-01-01", [], ["2028-02-29"]), ("2028-03-01", ["2028-02-29"], ["2032-02-29"]),
])
def test_a_day_without_a_year_comes_next(today, next_ones, others):
    now = datetime.datetime.fromisoformat(f"{today}T12:00Z").timestamp()
    day = dates_of("3 June")
    assert [v for v in next_ones if not are_upcoming([*day, *dates_of(v)], now)] == []
    assert [v for v in others if are_upcoming([*dates_of(v), *day], now)] == []
    assert are_upcoming(dates_of("2099-06-03"), now)  # a day with a year is that day


@pytest.mark.parametrize(("value", "said", "name", "added"), [
    ("2027-06-03T03:00", "3 June", "day", True), ("3 June at 3 am", "2027-06-03", "day", True), (["2027-06-03", "2027-06-04T03:00"], ["3 June", "4 June"], "days", True),
    ("2027-06-03", "3 June", "day", False), ("2027-06-03T00:00:00Z", "3 June", "day", False), ("2027-06-03T00:00-12:00", "3 June", "day", True),
    ("2027-06-03T23:59:59", "3 June", "start", True), ("2027-06-03T23:59:59", "3 June", "end_date", False), ("2027-06-03T10:00", "3 June at 10:00", "start", False),
])
def test_a_time_of_day_is_said_or_is_the_edge_of_a_day(value, said, name, added):
    assert adds_time(value, said, name) is added


@pytest.mark.parametrize(("name", "value", "start", "other"), [
    ("end", "2027-06-03", {"start": "2027-06-05"}, True), ("due_date", "2027-06-03", {"from_day": "2027-06-05T10:00"}, True),
    ("end", "2027-06-05", {"start": "2027-06-05"}, False), ("end", "2027-01-03", {"start": "2026-12-28"}, False), ("end", "2027-06-03", {"reminder": "2027-06-05"}, False), ("start", "2027-06-05", {"end": "2027-06-03"}, False), ("end", "2027-06-03", {"start": "later"}, False),
])
def test_an_end_before_its_start_is_another_day(name, value, start, other):
    assert bool(other_day(name, value, Const(value, said=Span("", 0, 1)), None, start)) is other


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00"])
def test_a_time_at_the_end_of_the_calendar_has_no_local_time(end):
    assert in_zone(end, ZoneInfo("Europe/Berlin")) == end
    assert meets_condition(AtLeast("2026-01-01T10:00"), [end], (), ZoneInfo("Europe/Berlin")) is (end[0] == "9")
