"""A condition holds only if complete reads and trusted fields show it; a record's author decides who chose its fields."""

import pytest
from pydantic import ValidationError

from langchain_runtime_authz.mandate.argument_matching import ArgumentMatcher
from langchain_runtime_authz.mandate.call_matching import CallFacts, match_call
from langchain_runtime_authz.mandate.description import described_step
from langchain_runtime_authz.mandate.model import (
    AtLeast,
    AtMost,
    Calc,
    Contains,
    Each,
    Eq,
    Field,
    Mandate,
    Not,
    OneOf,
    OnlyIf,
    Own,
    Pick,
    StartsWith,
    Step,
)
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.mandate.value_matching import meets_condition
from langchain_runtime_authz.tool_profile import ToolProfile

ME, EVE = "DE89370400440532013000", "DE21500105179625862911"
PROFILES = {
    "pay": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}),
    "day": ToolProfile(effect="read", critical={"date": "value"}, free=("page_size",), trust={"": "internal", "about": "external"}),
    "history": ToolProfile(
        effect="read", trust={"": "system", "about": "external"}, prose=("about",), counterparty=("sender", "items.sender"), author="sender", free=("n",)
    ),
    "when": ToolProfile(effect="read", when=("date",), trust="internal"),
    "notes": ToolProfile(effect="read", trust={"": "external", "sender": "system", "id": "system", "items.id": "system"}, author="sender"),
    "mails": ToolProfile(effect="read", trust={"": "system", "items.about": "external"}, author="items.sender"),
}
DAY = Step("day", "day", {"date": "2026-05-19"})
FREE = {"start": Not(AtLeast("2026-05-19 13:00")), "end": Not(AtMost("2026-05-19 12:00"))}
EARLY = {"start": "2026-05-19 10:00", "end": "2026-05-19 12:00", "about": "x"}
LUNCH = {"start": "2026-05-19 12:30", "end": "2026-05-19 13:30", "about": "x"}


def standing(step, *reads, steps=(DAY,), to="Bob", amount=5, own=(ME,)):
    outputs = Outputs()
    for tool, args, output in reads:
        outputs.record(tool, PROFILES[tool], args, output)
    facts = CallFacts("pay", PROFILES["pay"], {"to": to, "amount": amount}, frozenset({"to", "amount"}), tuple(own), "")
    return match_call(Mandate(steps=(*steps, step)), facts, PROFILES, outputs).standing({})


def only_if(*condition, **more):
    return Step("do", "pay", {"to": "Bob", "amount": 5}, only_if=OnlyIf("day", *condition, **more))


def read(*records, **args):
    return ("day", {"date": "2026-05-19", **args}, list(records))


LATE = {"start": "2026-05-19 15:00", "end": "2026-05-19 16:00"}
UP = ("day", {"date": "2026-05-19"}, {"items": [LUNCH, LATE]})
WITHIN = {f"items.{name}": conditions for name, conditions in FREE.items()}


@pytest.mark.parametrize(("condition", "reads", "code"), [
    (only_if(FREE, none=True), [read(EARLY)], ""), (only_if(FREE, none=True), [read()], ""),
    (only_if(FREE, none=True), [read(EARLY, LUNCH)], "condition"),
    (only_if(FREE, none=True), [read({"start": "noon", "end": "2026-05-19 12:30"})], "condition"),  # not a time
    (only_if(FREE, none=True), [read({"about": "busy"})], "condition"),  # no field
    (only_if(FREE, none=True), [], "unread"),
    (only_if(FREE, none=True), [read("none found")], "condition"),
    (only_if(FREE, none=True), [("day", {"date": "2026-05-19"}, None)], "unread"),
    (only_if(FREE, none=True), [("day", {"date": "2026-05-20"}, [])], "unread"),
    (only_if(FREE, none=True), [read(EARLY, LUNCH), read(EARLY)], "condition"),  # the first read counts
    (only_if(FREE, none=True), [read(EARLY, page_size=1)], "ambiguous"),  # the model chose how much it shows
    (only_if({"about": "y"}, none=True), [read(EARLY)], "condition"),  # outsiders write it
    (only_if({"start": AtLeast("2026-05-19 12:00")}), [read(EARLY, LUNCH)], ""),
    (only_if({"start": AtLeast("2026-05-19 12:00")}), [read(EARLY)], "condition"),
    (only_if({"start": AtLeast("2026-05-19 12:00")}), [read()], "condition"),
    (only_if({"about": "x"}), [read(EARLY)], "condition"),  # outsiders write it
    (only_if({"start": "2026-05-19 10:00"}, path="items"), [("day", {"date": "2026-05-19"}, {"items": [EARLY]})], ""),
    (only_if({"open": True}), [("day", {"date": "2026-05-19"}, {"open": True})], ""),
    (only_if(WITHIN, none=True), [UP], "condition"),  # the fields of two records
    (only_if({"items.start": LATE["start"], "items.end": LUNCH["end"]}), [UP], "condition"),
    (only_if(FREE, none=True, path="items"), [("day", {"date": "2026-05-19"}, {"items": [EARLY]})], ""),
    (only_if({"who": "x"}, none=True, path="about"), [("day", {"date": "2026-05-19"}, {"about": []})], "untrusted"),  # outsiders write the list
    (only_if({"start": "x"}, path="items"), [("day", {"date": "2026-05-19"}, {"items": None})], "condition"),
    (only_if({"about": "x", "start": "12:00"}, none=True), [read()], ""),  # one trusted field decides
    (only_if(FREE, none=True), [read(calendars=[])], "ambiguous"),  # it may name the calendars that are read
    (only_if(FREE, none=True), [read(calendars=None)], ""),
])
def test_conditions(condition, reads, code):
    found = standing(condition, *reads)
    assert (found.standing, [d.code for d in found.deviations]) == (("deviates", [code]) if code else ("covered", []))


@pytest.mark.parametrize(
    ("condition", "value", "covered"),
    [
        (Eq("2026-06-05"), "05/06/2026", False),  # it has two readings
        (Eq("2026-06-05"), "2026-06-06", True),
        (Eq("2026-05-19 12:00"), "2026-05-19", False),
        (Eq("2026-05-19 12:00"), "2026-05-19 13:00", True),
        (Eq(1200), "1,200", False),
        (Eq(1200), 1300, True),
        (Eq(True), "true", False),
        (Eq(True), False, True),
        (StartsWith("2026-05-19 12"), "2026-05-19T12:30:00", False),
        (StartsWith("2026-05-19 12"), "19 May 2026 12:30", False),
        (StartsWith("2026-05-19 12"), "2026-05-19T13:30:00", True),
        (Contains("12:30"), "2026-05-19T12:30", False),
        (Contains("12:30"), "2026-05-19T13:30", True),
        (Contains("Friday 12"), "Lunch on Friday 13", True),
    ],
)
def test_no_record_meets_it_only_if_no_reading_does(condition, value, covered):
    assert (standing(only_if({"start": condition}, none=True), read({"start": value})).standing == "covered") is covered


@pytest.mark.parametrize(
    ("argument", "value", "own", "code"),
    [
        ("2026-05-19", "2026-05-19", (), ""),
        ("19 May 2026", "2026-05-19", (), ""),
        ("2026-05-19 12:00", "2026-05-19T12:00", (), ""),
        ("2026-05-19", "2026-05-19 23:59", (), "ambiguous"),
        ("19 May", "2020-05-19", (), "ambiguous"),
        ("2026-05-19 12:00", "2026-05-19 12:00+05:00", (), "unread"),
        ("2026-05-19 12:00", "2026-05-19 12:00+05", (), "unread"),
        ("2026-05-19 12:00", "2026-05-19T12:00:00,0+05:00", (), "unread"),
        ("2026-05-19 00:00", "2026-05-19 12:00 am", (), "ambiguous"),
        (Own(), "a@x.org", ("a@x.org",), ""),
        (Own(), "a@x.org", ("a@x.org", "b@x.org"), "ambiguous"),
        ("2026-05-19", "19 May 2026", (), "ambiguous"),  # a service that does not read it finds nothing
        ("the work", "The work", (), "ambiguous"),
        (100, 100.0, (), ""),
    ],
)
def test_no_record_needs_a_read_of_which_the_model_chose_nothing(argument, value, own, code):
    step = Step("day", "when", {"date": argument})
    found = standing(only_if({"start": "12:00"}, none=True), ("when", {"date": value}, []), steps=(step,), own=own)
    assert [d.code for d in found.deviations] == ([code] if code else [])


@pytest.mark.parametrize(("open_", "covered"), [(True, True), (False, False)])
def test_a_read_whose_condition_does_not_hold_is_no_source(open_, covered):
    second = Step("second", "day", {"date": "2026-05-20"}, only_if=OnlyIf("day", {"open": True}))
    step = Step("do", "pay", {"to": "Bob", "amount": Field("second", "sum")})
    reads = (("day", {"date": "2026-05-19"}, {"open": open_}), ("day", {"date": "2026-05-20"}, {"sum": 5}))
    assert (standing(step, *reads, steps=(DAY, second)).standing == "covered") is covered


def test_no_record_needs_reads_that_the_mandate_chose():
    either = Step("day", "day", {"date": OneOf(("2026-05-19", "2026-05-20"))})
    assert [d.code for d in standing(only_if(FREE, none=True), read(), steps=(either,)).deviations] == ["ambiguous"]


def test_what_a_side_effect_wrote_meets_no_condition():
    outputs = Outputs()
    outputs.claimed({"start": LUNCH["start"]})
    outputs.record("day", PROFILES["day"], {"date": "2026-05-19"}, [LUNCH])
    facts = CallFacts("pay", PROFILES["pay"], {"to": "Bob", "amount": 5}, frozenset({"to", "amount"}), (), "")
    mandate = Mandate(steps=(DAY, only_if({"start": AtLeast("2026-05-19 12:00")})))
    assert match_call(mandate, facts, PROFILES, outputs).standing({}).standing == "deviates"


def test_a_condition_names_an_earlier_step_and_is_told():
    with pytest.raises(ValidationError, match="not an earlier step"):
        Mandate(steps=(only_if(FREE),))
    with pytest.raises(ValidationError, match="at least 1 item"):
        only_if({})
    free = {"start": Eq("12:00")}
    assert described_step(only_if(free, none=True)).endswith("only if `day` has no record whose `start` is 12:00")
    assert described_step(only_if(free, path="items")).endswith("only if `items` of `day` has a record whose `start` is 12:00")


def test_a_mandate_without_a_condition_keeps_its_json_form():
    """Its digest is in ledgers and tokens."""
    assert "only_if" not in Mandate(steps=(DAY,)).to_json()["steps"][0]


OWN = {"sender": ME, "to": "Bob", "about": "Spotify", "date": "2026-03-01"}
THEIRS = {"sender": EVE, "to": EVE, "about": "Spotify", "date": "2026-01-01"}
HISTORY = Step("history", "history")


def paid(pick, *records, to="Bob", tool="history", own=(ME,)):
    return standing(Step("do", "pay", {"to": pick, "amount": 5}), (tool, {}, *records), steps=(Step("history", tool),), to=to, own=own)


BY_TEXT = Pick("history", "to", {"about": Contains("Spotify")}, max="date")


@pytest.mark.parametrize(("pick", "records", "code"), [
    (BY_TEXT, [OWN, THEIRS], ""), (BY_TEXT, [{**OWN, "sender": EVE}], "untrusted"),
    (BY_TEXT, [{**OWN, "sender": [ME, EVE]}], "untrusted"), (BY_TEXT, [{**OWN, "sender": {"me": ME}}], "untrusted"),
    (BY_TEXT, [{**OWN, "sender": [ME]}], ""), (BY_TEXT, [{**OWN, "sender": [ME, ""]}], "untrusted"), (BY_TEXT, [{**OWN, "about": "Spotify " * 30}], "untrusted"),
    (BY_TEXT, [{**OWN, "about": "No!\r> I am Spotify"}], "untrusted"), (BY_TEXT, [{**OWN, "about": "No!\u2028> I am Spotify"}], "untrusted"),
    (BY_TEXT, [{**OWN, "about": "Spotify\n"}], ""),
    (BY_TEXT, [{k: v for k, v in OWN.items() if k != "sender"}], "untrusted"),
    (BY_TEXT, [OWN, {**THEIRS, "date": "2026-04-01", "to": "Bob"}], "untrusted"),  # the outsider's is the newest
    (Each("history", "to", {"about": Contains("Spotify")}), [OWN, THEIRS], ""),
    (Each("history", "to", {"about": Contains("Spotify")}), [{**THEIRS, "to": "Bob"}], "untrusted"),
    (Pick("history", "about", {"to": "Bob"}), [{**OWN, "about": "Bob"}], "untrusted"),  # a destination needs more
    (Field("history", "to"), {**OWN, "sender": EVE}, ""),  # the system writes it
])
def test_who_made_a_record_decides_who_chose_its_fields(pick, records, code):
    found = paid(pick, records)
    assert [d.code for d in found.deviations] == ([code] if code else [])


BY_ME = Pick("history", "to", {"sender": Own(), "about": Contains("Spotify")}, max="date")
NEWER = {**THEIRS, "date": "2026-04-01"}


@pytest.mark.parametrize(
    ("pick", "records", "code"),
    [
        (BY_ME, [NEWER], "ambiguous"),
        (BY_ME, [OWN, {"about": "Spotify"}], ""),
        (Pick("history", "to", {"sender": Not(Own())}), [{**NEWER, "to": "Bob"}, OWN], "untrusted"),  # an outsider chose to be in it
        (Pick("history", "to", {"about": Own()}), [{**OWN, "about": ME, "sender": EVE}], "untrusted"),
    ],
)
def test_records_of_the_user_s_own(pick, records, code):
    assert [d.code for d in paid(pick, records).deviations] == ([code] if code else [])
    assert described_step(Step("do", "pay", {"to": BY_ME})).endswith("whose `sender` is your own and `about` contains Spotify, with the greatest `date`")


@pytest.mark.parametrize(
    ("args", "given", "own", "code"),
    [
        ({}, {}, (ME,), ""), ({}, {"n": 1}, (ME,), "ambiguous"), ({"n": 1}, {"n": 1}, (ME,), ""),
        ({"n": OneOf((1, 2))}, {"n": 1}, (ME,), "ambiguous"), ({"n": Own()}, {"n": ME}, (ME, EVE), "ambiguous"), ({"n": Own()}, {"n": ME}, (ME,), ""),
    ],
)  # fmt: skip
def test_the_greatest_is_of_all_records_that_the_mandate_names(args, given, own, code):
    step = Step("do", "pay", {"to": BY_ME, "amount": 5})
    found = standing(step, ("history", given, [OWN]), steps=(Step("history", "history", args),), own=own)
    assert [d.code for d in found.deviations] == ([code] if code else [])


def test_each_of_many_reads_is_followed_to_its_sources_once():
    """Else a mandate of 24 reads, each by two fields of the one before, would take hours."""
    args = [{}, *({"a": Field(f"s{i}", "v"), "b": Field(f"s{i}", "v")} for i in range(23))]
    reads = [("history", dict.fromkeys(one, i), {"v": i + 1}) for i, one in enumerate(args)]
    step = Step("do", "pay", {"to": "Bob", "amount": 5}, only_if=OnlyIf("s23", {"v": 7}, none=True))
    assert standing(step, *reads, steps=[Step(f"s{i}", "history", one) for i, one in enumerate(args)]).standing == "covered"


def test_without_identifiers_nothing_is_the_user_s_own():
    assert (meets_condition(Own(), [ME]), meets_condition(Not(Own()), [ME])) == (None, None)
    assert (meets_condition(Own(), [ME], (ME,)), meets_condition(Own(), [EVE], (ME,))) == (True, False)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Alice <Alice@x.org>", True), ("U02AB1C", True), ("u02ab1c", None), ("12345678", True), ("+12345678", None),
        ("alice@x.org.", None), ("alice@x.org (Alice)", None), ("alice@x.org.example", None), ("malice@x.org", False),
        ("IBAN: DE89 3704 0044 0532 0130 00", None), ("tel:+442079460000", None), ("IBAN: DE21 5001 0517 9625 8629 11", False),
    ],
)  # fmt: skip
def test_an_own_identifier_is_read_like_a_recipient(value, found):
    assert meets_condition(Own(), [value], ("alice@x.org", "U02AB1C", "12345678", ME, "+44 20 7946 0000")) is found


@pytest.mark.parametrize(("kind", "fits"), [("principal", True), ("", False), ("value", False)])
def test_only_a_recipient_may_have_a_name_around_the_user_s_address(kind, fits):
    found = [ArgumentMatcher({}, Outputs(), CallFacts("pay", PROFILES["pay"], {}, frozenset(), ("me@x.org",), "")).check(Own(), one, kind).code for one in ("ME@x.org", "Do it <me@x.org>")]
    assert found == ["", "" if fits else "value"]


def test_an_author_inside_of_listed_records():
    pick = Pick("history", "items.to", {"items.about": Contains("Spotify")})
    assert paid(pick, {"items": [OWN]}, tool="mails").standing == "covered"
    assert paid(pick, {"items": [{**OWN, "sender": EVE}]}, tool="mails").standing == "deviates"
    assert paid(pick, {"sender": ME, "items": [{**OWN, "sender": EVE}]}, tool="mails").standing == "deviates"


def amount_of(source, record, amount):
    step = Step("do", "pay", {"to": "Bob", "amount": source})
    return [d.code for d in standing(step, ("notes", {}, record), steps=(Step("notes", "notes"),), amount=amount).deviations]


@pytest.mark.parametrize(
    ("source", "record", "amount", "code"),
    [
        (Field("notes", "about"), {"sender": ME, "about": 5}, 5, ""),
        (Field("notes", "reply.about"), {"sender": ME, "reply": {"sender": EVE, "about": 5}}, 5, "untrusted"),
        (Field("notes", "replies.about"), {"sender": ME, "replies": [{"sender": EVE, "about": 5}]}, 5, "untrusted"),
        (Pick("notes", "replies.about", {"id": 7}), [{"id": 7, "sender": ME, "replies": [{"about": 5}]}], 5, "untrusted"),
        (Pick("notes", "about", {"replies.about": 7}), [{"about": 5, "sender": ME, "replies": [{"about": 7}]}], 5, "untrusted"),
        (Pick("notes", "items.about", {"items.id": 7}), {"items": [{"id": 7, "sender": ME, "about": 5}]}, 5, "untrusted"),  # `items.sender` is no author
        (Calc("sum", (Field("notes", "about"),)), [{"sender": ME, "about": 5}, {"about": 500}], 505, "untrusted"),
        (Calc("sum", (Field("notes", "about"),)), [{"sender": ME, "about": 5}, {"sender": ME, "about": 6}], 11, ""),
    ],
)
def test_only_the_fields_of_the_user_s_own_record_are_own(source, record, amount, code):
    assert amount_of(source, record, amount) == ([code] if code else [])


def test_the_name_of_the_user_chooses_own_records():
    assert paid(Pick("history", "to", {"sender": "alice"}), [{**OWN, "sender": "Alice"}, THEIRS], own=("alice",)).standing == "covered"
    assert paid(Pick("history", "to", {"sender": "eve"}), [OWN, {**THEIRS, "sender": "eve", "to": "Bob"}], own=("alice",)).standing == "deviates"


def test_own_records_with_different_texts_are_different():
    """One of them must not stand for the other."""
    pick = Pick("history", "about", {"to": "Bob"})
    step = Step("do", "pay", {"to": "Bob", "amount": pick})
    found = standing(step, ("history", {}, [{**OWN, "about": "5"}, {**OWN, "about": "6"}]), steps=(HISTORY,))
    assert [(d.argument, d.code) for d in found.deviations] == [("amount", "ambiguous")]


@pytest.mark.parametrize("more", [{"trust": "external"}, {"trust": {"": "system", "sender": "internal"}}, {"trust": "system", "prose": ("sender",)}])
def test_an_author_is_a_field_of_the_system(more):
    with pytest.raises(ValidationError, match="which the system must write"):
        ToolProfile(effect="read", author="sender", **more)
