"""A call is covered only if one unspent step orders all that it says; every other call says what deviates."""

import decimal
import pickle
import sys
import time
from collections import Counter

import pytest
from pydantic import ValidationError

from langchain_runtime_authz.mandate.call_matching import CallFacts, match_call
from langchain_runtime_authz.mandate.model import (
    AtLeast,
    Between,
    Calc,
    Const,
    Contains,
    Each,
    Eq,
    Extract,
    Field,
    Free,
    Limit,
    Mandate,
    Never,
    Not,
    OneOf,
    Own,
    Pick,
    Step,
    Text,
    Within,
)
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.counted import python_calls

PROFILES = {
    "pay": ToolProfile(effect="pay", critical={"recipient": "principal", "amount": "amount"}, when=("date",), text=("note",), free=("mode",)),
    "wire": ToolProfile(effect="pay", critical={"iban": "principal", "amount": "amount"}),
    "send": ToolProfile(effect="send", critical={"to": "principal", "files.id": "object"}, text=("body", "files.title"), free=("files.size",)),
    "delete": ToolProfile(effect="delete", critical={"path": "object"}),
    "fetch": ToolProfile(effect="fetch", critical={"url": "url"}),
    "bill": ToolProfile(effect="read", critical={"month": "value"}, free=("page_size",), trust={"": "system", "note": "external", "memo": "internal"}, prose=("text",), counterparty=("payee",)),
    "contacts": ToolProfile(effect="read", trust={"": "system", "about": "external"}, text=("query",)),
}
BILL = Step("bill", "bill", {"month": "December"})
BILLED = {"iban": "DE89370400440532013000", "total": 98.7, "note": "x@evil.org", "memo": "m@in.org", "text": "pay 7", "payee": "Mallory"}
CONTACTS = [
    {"name": "Anna", "email": "anna@x.org", "age": 30, "about": "boss"},
    {"name": "Anna Lee", "email": "lee@x.org", "age": 41, "about": "aunt"},
    {"name": "Bob", "email": "bob@x.org", "age": 30, "about": "boss"},
]


def outputs(bill=BILLED, contacts=CONTACTS, **read):
    kept = Outputs()
    for tool, args, output in (("bill", {"month": "December"}, bill), ("contacts", {}, contacts)):
        if output is not None:
            kept.record(tool, PROFILES[tool], args, output, **read)
    return kept


def judge(mandate, tool, args, *, given=None, counts=None, kept=None, words=""):
    facts = CallFacts(tool, PROFILES[tool], args, frozenset(args if given is None else given), ("me@x.org",), words)
    found = match_call(mandate, facts, PROFILES, outputs() if kept is None else kept)
    return found.standing(counts or {})


def one(tool, args, **rest):
    """Return the mandate of one step, with the reads that it may name."""
    return Mandate(steps=(BILL, Step("contacts", "contacts"), Step("do", tool, args)), **rest)


def codes(standing):
    return [(d.argument, d.code) for d in standing.deviations]


def test_no_mandate_and_no_step():
    assert judge(None, "pay", {})[:3] == ("none", None, ())
    assert judge(one("pay", {}), "wire", {"amount": 1})[:3] == ("outside", None, ())


PAY = one("pay", {"recipient": "Bob", "amount": 45})


def test_a_mandate_that_was_used_can_be_pickled():
    before = judge(PAY, "pay", {"recipient": "Bob", "amount": 45})
    assert judge(pickle.loads(pickle.dumps(PAY)), "pay", {"recipient": "Bob", "amount": 45}) == before


@pytest.mark.parametrize(("args", "expected"), [
    ({"recipient": "bob ", "amount": "45.00"}, []),
    ({"recipient": "Bob", "amount": 45, "mode": "fast"}, []),  # free
    *(({"recipient": "Bob", "amount": 45, "date": empty}, [("date", "unordered")]) for empty in (None, "", [], {})),  # it may replace a default
    ({"recipient": "Carol", "amount": 45}, [("recipient", "value")]),
    ({"recipient": "Bob", "amount": 45.5}, [("amount", "value")]),
    ({"recipient": "Bob"}, [("amount", "missing")]),
    ({"recipient": "", "amount": 45}, [("recipient", "missing")]),
    ({"recipient": "Bob", "amount": 45, "date": "2025-01-01"}, [("date", "unordered")]),
    ({"recipient": "Bob", "amount": 45, "bcc": "eve"}, [("bcc", "undeclared")]),
    ({"recipient": {"name": "Bob"}, "amount": 45}, [("recipient", "value")]),
    ({"recipient": ["Bob", "Eve"], "amount": 45}, [("recipient", "value")]),
    ({"recipient": ["Bob", "Bob"], "amount": 45}, [("recipient", "value")]),
    ({"recipient": ["Bob", ""], "amount": 45}, [("recipient", "value")]),  # the empty path may be the root
    ({"recipient": "Bob", "amount": 45, "bcc": [{"to": ""}]}, [("bcc", "unordered")]),
])
def test_arguments_are_closed(args, expected):
    found = judge(PAY, "pay", args)
    assert (found.standing, codes(found)) == ("deviates" if expected else "covered", expected)


def test_a_default_that_the_model_did_not_send_is_not_compared():
    args = {"recipient": "Bob", "amount": 45, "date": "today", "urgent": True}
    assert judge(PAY, "pay", args, given=("recipient", "amount")).standing == "covered"
    assert judge(PAY, "pay", args).standing == "deviates"


@pytest.mark.parametrize(("files", "expected"), [
    ([{"id": "f1"}], []), (["f1"], []), ([{"id": "f1", "size": 3, "title": "report"}], []),
    ([{"id": "f1"}, {"id": "f2"}], [("files.id", "value")]), ([{"id": "f1", "share": "all"}], [("files.share", "undeclared")]),
    ([{"id": "f1", "title": "IBAN DE89370400440532013000"}], [("files.title", "text")]),
])
def test_members_of_an_argument_are_closed(files, expected):
    mandate = one("send", {"to": "bob@x.org", "files.id": "f1"})
    assert codes(judge(mandate, "send", {"to": "bob@x.org", "files": files})) == expected


# argument → calls of `send` whose recipient stands, and calls whose does not, with the code
KINDS = {
    "const": (Const("bob@x.org"), ["bob@x.org", "Bob <BOB@x.org>"], {"value": ["bob@x.org.evil.net", "b\u043eb@x.org", "bob@x.org, eve@x.org", "bob\u200b@x.org"]}),
    "list": (Const(("a@x.org", "b@x.org")), [["b@x.org", "a@x.org"]], {"value": ["a@x.org", ["a@x.org", "b@x.org", "c@x.org"]]}),
    "own": (Own(), ["me@x.org", ["me@x.org"]], {"value": ["you@x.org", ["me@x.org", "you@x.org"], ["me@x.org", "me@x.org"]]}),
    "one of": (OneOf(("a@x.org", "b@x.org")), ["a@x.org"], {"value": ["c@x.org", ["a@x.org", "b@x.org"]]}),
    "free": (Free(), ["anybody"], {}),
    "field": (Field("bill", "iban"), ["DE89 3704 0044 0532 0130 00"], {"value": ["DE02120300000000202051"]}),
    "field of nobody": (Field("bill", "absent"), [], {"unread": ["a"]}),
    "external field": (Field("bill", "note"), [], {"untrusted": ["x@evil.org"], "value": ["y@evil.org"]}),
    "internal field of a destination": (Field("bill", "memo"), [], {"untrusted": ["m@in.org"]}),
    "prose": (Field("bill", "text"), [], {"untrusted": ["pay 7"]}),
    "counterparty": (Field("bill", "payee"), [], {"untrusted": ["Mallory"]}),
    "pick": (Pick("contacts", "email", {"name": "anna"}), ["anna@x.org"], {"value": ["lee@x.org"]}),
    "pick of several": (Pick("contacts", "email", {"name": Contains("anna")}), [], {"ambiguous": ["anna@x.org"]}),
    "pick of none": (Pick("contacts", "email", {"name": "Zoe"}), [], {"ambiguous": ["anna@x.org"]}),
    "pick by max": (Pick("contacts", "email", max="age"), ["lee@x.org"], {"value": ["bob@x.org"]}),
    "pick by a tie": (Pick("contacts", "email", min="age"), [], {"ambiguous": ["bob@x.org"]}),
    "pick by several conditions": (Pick("contacts", "email", {"age": AtLeast(31), "name": (Contains("anna"), Not(Eq("Anna")))}), ["lee@x.org"], {"value": ["anna@x.org"]}),
    "pick by an external field": (Pick("contacts", "email", {"about": "aunt"}), [], {"untrusted": ["lee@x.org"], "value": ["bob@x.org"]}),
    "each": (Each("contacts", "email", {"age": 30}), ["anna@x.org", "bob@x.org"], {"value": ["lee@x.org", "eve@x.org"]}),
    "each by an external field": (Each("contacts", "email", {"about": "boss"}), [], {"untrusted": ["bob@x.org"]}),
    "extract": (Extract("bill"), [], {"extract": ["x@evil.org", "Mallory"], "value": ["Mallor", "y@evil.org"]}),
    "text": (Text(), [], {"text": ["Mallory"]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_arguments(name):
    argument, right, wrong = KINDS[name]
    mandate = one("send", {"to": argument})
    for value in right:
        assert judge(mandate, "send", {"to": value}).standing == "covered", value
    for code, values in wrong.items():
        for value in values:
            assert codes(judge(mandate, "send", {"to": value})) == [("to", code)], value


@pytest.mark.parametrize("name", ["field", "pick", "each", "extract"])
def test_what_was_not_read_gives_no_value(name):
    argument, right, wrong = KINDS[name]
    (value, *_) = right or wrong["extract"]
    found = judge(one("send", {"to": argument}), "send", {"to": value}, kept=Outputs())
    assert codes(found) == [("to", "unread")]
    assert found.deviations[0].expected.endswith(", which was not read in full for this order")


TOTAL, AGES = Field("bill", "total"), Each("contacts", "age")
AMOUNTS = {
    "bounds": (Between(10, 20), [10, "20.0", 15.5], [9.99, 20.01, "x", True, "1.500", [11, 12]]),
    "field": (Field("bill", "total"), [98.7, "98.70"], [98, 987]),
    "text of others": (Field("bill", "memo"), [], [98.7]),
    "sum": (Calc("sum", (TOTAL, 1.3)), [100], [99.99, 98.7, "100,00", [50, 50], "x", None]),
    "sum of records": (Calc("sum", (AGES,)), [101], [41, 60, 102]),
    "sum of some records": (Calc("sum", (Each("contacts", "age", {"name": Not(Eq("Bob"))}),)), [71], [101]),
    "difference": (Calc("difference", (TOTAL, 12)), ["86.70"], [-86.7, 98.7, 12]),
    "percent, in cents": (Calc("percent", (19.5, TOTAL)), [19.25], [19.24, 19.2, 19.26, 20]),
    "percent, as a computer calculates it": (Calc("percent", (19.5, TOTAL)), [19.246499999999997], []),
    "half a cent, either way": (Calc("percent", (50, 5.05)), [2.53], [2.51, 2.54]),
    "half a cent": (Calc("percent", (50, 5.05)), [2.52], []),
    "a small amount, which half a cent would double": (Calc("percent", (51, 0.01)), [0.0051], [0.01, 0, 0.0052]),
    "share": (Calc("share", (TOTAL, 3)), [32.9], [32.91, 98.7]),
    "of a calculation": (Calc("sum", (Calc("percent", (10, TOTAL)), 1)), [10.87], [9.87, 11]),
    "one record": (Calc("difference", (TOTAL, Pick("contacts", "age", {"name": "Anna"}))), [68.7], [57.7]),
}  # fmt: skip


@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts(name):
    argument, right, wrong = AMOUNTS[name]
    mandate = one("pay", {"recipient": "Bob", "amount": argument})
    assert [judge(mandate, "pay", {"recipient": "Bob", "amount": v}).standing for v in right] == ["covered"] * len(right)
    assert [judge(mandate, "pay", {"recipient": "Bob", "amount": v}).standing for v in wrong] == ["deviates"] * len(wrong)


@pytest.mark.parametrize(("argument", "code"), [
    (Calc("difference", (TOTAL, 98.7)), "value"),  # 0
    (Calc("difference", (TOTAL, 100)), "value"),  # less than 0
    (Calc("share", (TOTAL, 0)), "value"),
    (Calc("share", (TOTAL, 1e-300)), "value"),
    (Calc("sum", (Field("bill", "iban"),)), "value"),
    (Calc("sum", (Field("bill", "note"),)), "untrusted"),
    (Calc("sum", (98.7, Field("bill", "absent"))), "ambiguous"),
    (Calc("sum", (98.7, Each("contacts", "age", {"name": "Zoe"}))), "ambiguous"),
    (Calc("sum", (Each("contacts", "age", {"about": "boss"}),)), "untrusted"),
    (Calc("sum", (Each("contacts", "age", limit=2),)), "ambiguous"),
    (Calc("sum", (Each("contacts", "height"),)), "ambiguous"),
    (Calc("difference", (TOTAL, Pick("contacts", "age", {"name": "Zoe"}))), "ambiguous"),
])
def test_what_cannot_be_calculated_is_asked_about(argument, code):
    assert codes(judge(one("pay", {"recipient": "Bob", "amount": argument}), "pay", {"recipient": "Bob", "amount": 98.7})) == [("amount", code)]


@pytest.mark.parametrize(("argument", "value", "expected"), [
    (Calc("percent", (10, TOTAL)), 10, "10 percent of `total` of `bill`: 9.87"),
    (Calc("percent", (10, TOTAL)), "", "10 percent of `total` of `bill`"),
    (Calc("difference", (10, TOTAL)), 10, "10 less `total` of `bill`"),
])
def test_an_approver_reads_what_is_calculated(argument, value, expected):
    (found,) = judge(one("pay", {"recipient": "Bob", "amount": argument}), "pay", {"recipient": "Bob", "amount": value}).deviations
    assert found.expected == expected


def test_a_calculation_needs_complete_reads_and_gives_no_destination():
    mandate = one("pay", {"recipient": "Bob", "amount": Calc("sum", (TOTAL, 1.3))})
    asked = {"recipient": "Bob", "amount": 100}
    assert codes(judge(mandate, "pay", asked, kept=outputs(bill=None))) == [("amount", "unread")]
    mandate = one("pay", {"recipient": Calc("sum", (TOTAL, 1.3)), "amount": 1})
    assert codes(judge(mandate, "pay", {"recipient": 100, "amount": 1})) == [("recipient", "value")]


SPENT = ToolProfile(effect="read", critical={"kind": "value"}, free=("size",), trust="system")
FOOD = {"kind": "food"}
EXPENSES = [{"on": "2026-11-01", "sum": 20.5}, {"on": "2026-11-02", "sum": 30.5}]


@pytest.mark.parametrize(("args", "reads", "total", "standing"), [
    (FOOD, [(FOOD, EXPENSES)], 51, "covered"),
    ({**FOOD, "size": 9}, [({**FOOD, "size": 9}, EXPENSES)], 51, "covered"),
    (FOOD, [({**FOOD, "size": 1}, EXPENSES[:1])], 20.5, "deviates"),
    ({**FOOD, "size": Free()}, [({**FOOD, "size": 8}, EXPENSES), ({**FOOD, "size": 9}, EXPENSES)], 102, "deviates"),
    ({"kind": OneOf(("food", "rent"))}, [(FOOD, EXPENSES)], 51, "deviates"),
    (FOOD, [(FOOD, [*EXPENSES, {"on": "soon", "sum": 7}])], 51, "deviates"),
], ids=["all", "as ordered", "a part", "twice", "one of two", "a record without a day"])
def test_the_model_does_not_choose_what_is_added_up(args, reads, total, standing):
    kept = Outputs()
    for given, rows in reads:
        kept.record("spent", SPENT, given, rows)
    facts = CallFacts("pay", PROFILES["pay"], {"recipient": "Bob", "amount": total}, frozenset(("recipient", "amount")), (), "")
    for what in (Each("s", "sum", {"on": AtLeast("2026-01-01")}), *([Field("s", "sum")] if len(reads[0][1]) < 3 else [])):
        mandate = Mandate(steps=(Step("s", "spent", args), Step("do", "pay", {"recipient": "Bob", "amount": Calc("sum", (what,))})))
        assert match_call(mandate, facts, {**PROFILES, "spent": SPENT}, kept).standing({}).standing == standing


def test_an_application_s_rounding_changes_no_amount():
    for argument, limits in ((Calc("sum", (TOTAL, 54321.67)), ()), (Const(54420.37), ()), (Free(), (Limit("pay", 54420.37),))):
        mandate = one("pay", {"recipient": "Bob", "amount": argument}, limits=limits)
        with decimal.localcontext(prec=3):
            assert judge(mandate, "pay", {"recipient": "Bob", "amount": 54420.37}).standing == "covered"
            assert judge(mandate, "pay", {"recipient": "Bob", "amount": 54420.41}).standing != "covered"


@pytest.mark.parametrize("wrong", [("sum", (1,) * 64), ("difference", (1,)), ("percent", (1, 2, 3)), ("share", (AGES, 2)), ("sum", ("1",)), ("sum", (True,)), ("sum", ((1, 2),)), ("sum", ()), ("sum", (1, 2), 3)])
def test_a_calculation_that_is_none(wrong):
    with pytest.raises((ValidationError, TypeError)):
        Calc(*wrong)


TRANSFERS = ToolProfile(effect="read", trust={"": "system", "about": "external"}, counterparty=("sender", "name"))


@pytest.mark.parametrize(("where", "standing"), [
    ({"sender": "GB29NWBK60161331926819"}, "covered"),  # nobody else pays from this account
    ({"sender": ("GB29NWBK60161331926819", Contains("GB29"))}, "deviates"),
    ({"sender": "FR7630006000011234567890189"}, "deviates"),  # the other sender wrote this one
    ({"sender": Contains("GB29")}, "deviates"),
    ({"name": "Ann"}, "deviates"),  # anybody may be called so
    ({"about": "dinner"}, "deviates"), ({}, "deviates"),
])
def test_a_record_of_one_account(where, standing):
    rows = [
        {"sender": "GB29NWBK60161331926819", "name": "Ann", "about": "dinner", "sum": 20},
        {"sender": "DE89370400440532013000", "name": "Eve", "about": "rent", "sum": 900},
        {"sender": ["DE89370400440532013000", "FR7630006000011234567890189"], "name": "Eve", "about": "rent", "sum": 20},
    ]
    kept = Outputs()
    kept.record("transfers", TRANSFERS, {}, rows)
    mandate = Mandate(steps=(Step("t", "transfers"), Step("do", "pay", {"recipient": "Bob", "amount": Pick("t", "sum", where)})))
    facts = CallFacts("pay", PROFILES["pay"], {"recipient": "Bob", "amount": 20}, frozenset(("recipient", "amount")), (), "")
    assert match_call(mandate, facts, {**PROFILES, "transfers": TRANSFERS}, kept).standing({}).standing == standing


def test_an_internal_field_is_enough_for_what_is_not_a_destination():
    assert judge(one("delete", {"path": Field("bill", "memo")}), "delete", {"path": "m@in.org"}).standing == "covered"


# --- sources -------------------------------------------------------------------------------------------

FROM_BILL = one("pay", {"recipient": Field("bill", "iban"), "amount": Field("bill", "total")})
PAID = {"recipient": BILLED["iban"], "amount": 98.7}


def read(*calls):
    kept = Outputs()
    for args, output, options in calls:
        kept.record("bill", PROFILES["bill"], args, output, **options)
    return kept


OTHER = {**BILLED, "iban": "DE02120300000000202051"}
DECEMBER = {"month": "December"}
MINUTES = "the board decided to close the plant in spring and to tell nobody before May"


@pytest.mark.parametrize(("kept", "standing"), [
    (read((DECEMBER, BILLED, {})), "covered"),
    (read((DECEMBER, BILLED, {}), (DECEMBER, OTHER, {})), "covered"),
    (read(({**DECEMBER, "page_size": 9}, BILLED, {})), "covered"),
    (read(({**DECEMBER, "page": 9}, BILLED, {"given": ["month"]})), "covered"),
    (read((DECEMBER, OTHER, {}), (DECEMBER, BILLED, {})), "value"),  # the first observation counts
    (read(({"month": "DECEMBER"}, OTHER, {}), (DECEMBER, BILLED, {})), "value"),
    (read(({**DECEMBER, "page_size": 9}, OTHER, {}), (DECEMBER, BILLED, {})), "value"),
    (read(({**DECEMBER, "page": 9}, BILLED, {})), "unread"),  # it is not fully bound
    (read(({"month": "May"}, BILLED, {})), "unread"), (read((DECEMBER, {**BILLED, "iban": object()}, {})), "unread"),
    (read(), "unread"),
])
def test_sources(kept, standing):
    found = judge(FROM_BILL, "pay", PAID, kept=kept)
    assert standing in (found.standing, *(d.code for d in found.deviations))


def test_an_echo_of_an_open_argument_vouches_for_nothing():
    mandate = Mandate(steps=(Step("find", "contacts", {"query": Free()}), Step("do", "send", {"to": Field("find", "asked")})))
    large = {"more": [*range(1001)], "who": "eve@x.org"}
    spoken = ("eve@x.org", "who is eve@x.org please", '{"who": "eve@x.org"}', "eve@x.org" + " " * 3000, large)
    for query, standing in (("Anna", "covered"), *((query, "deviates") for query in spoken)):
        kept = Outputs()
        kept.record("contacts", PROFILES["contacts"], {"query": query}, {"asked": "eve@x.org"})
        assert judge(mandate, "send", {"to": "eve@x.org"}, kept=kept).standing == standing


@pytest.mark.parametrize("kind", [Pick, Each])
def test_arguments_of_one_source_come_from_one_record(kind):
    where = {"name": "Anna"} if kind is Pick else {}
    mandate = one("wire", {"iban": kind("contacts", "email", where), "amount": kind("contacts", "age", where)})
    assert judge(mandate, "wire", {"iban": "anna@x.org", "amount": 30}).standing == "covered"
    assert judge(mandate, "wire", {"iban": "anna@x.org", "amount": 41}).standing == "deviates"


def batch(critical, ordered, args):
    """How a call stands to a step whose arguments are lists."""
    profile = ToolProfile(effect="pay", critical=critical)
    mandate = Mandate(steps=(Step("do", "batch", ordered),))
    facts = CallFacts("batch", profile, args, frozenset(args), (), "")
    return match_call(mandate, facts, {"batch": profile}, Outputs()).standing({}).standing


@pytest.mark.parametrize(("rows", "standing"), [
    ([{"to": "a", "ref": "A"}, {"to": "b", "ref": "B"}], "covered"), ([{"to": "a", "ref": "B"}, {"to": "b", "ref": "A"}], "deviates"),
    ([{"to": "a", "ref": "A"}, {"to": "a", "ref": "A"}], "deviates"), ([{"to": "b", "ref": "B"}, {"to": "a", "ref": "A"}], "deviates"),
    ([{"to": ["a", "b"], "ref": ["A", "B"]}], "covered"),
    ([{"to": ["a", "b"], "ref": ["B", "A"]}], "deviates"),
    ({"to": ["a", "b"], "ref": ["A", "B"]}, "covered"),
    ({"to": ["b", "a"], "ref": ["A", "B"]}, "deviates"),
    ({"to": [["a", "b"]], "ref": ["A", "B"]}, "deviates"),
    ([{"to": ["a", "b"], "ref": ["A", "B"]}, {}], "deviates"),
    ([{"to": ["a"], "ref": "B"}, {"to": ["b"], "ref": "A"}], "deviates"),
    ([{"to": ["a", "b"]}, {"ref": ["A", "B"]}], "deviates"),
    ([{"to": "a"}, {"to": "b", "ref": ["A", "B"]}], "deviates"),
])
def test_rows_and_lists_in_one_row_are_not_crossed(rows, standing):
    ordered = {"rows.to": ("a", "b"), "rows.ref": ("A", "B")}
    assert batch({"rows.to": "principal", "rows.ref": "object"}, ordered, {"rows": rows}) == standing


def test_rows_and_a_list_beside_them_are_not_crossed():
    for rows, standing in (([5, 700], "covered"), ([700, 5], "deviates")):
        args = {"to": ["a", "b"], "rows": [{"amount": amount} for amount in rows]}
        assert batch({"to": "principal", "rows.amount": "amount"}, {"to": ("a", "b"), "rows.amount": (5, 700)}, args) == standing


def test_one_list_in_an_object_has_no_other_to_be_paired_with():
    ordered = {"mail.to": ("a", "b"), "mail.cc": "c"}
    assert batch(dict.fromkeys(ordered, "principal"), ordered, {"mail": {"to": ["b", "a"], "cc": ["c"]}}) == "covered"


@pytest.mark.parametrize(("ordered", "given", "standing"), [
    ((("a@x.org", "b@x.org"), (5, 700)), (["a@x.org", "b@x.org"], [5, 700]), "covered"),
    ((("a@x.org", "b@x.org"), (5, 700)), (["a@x.org", "b@x.org"], [700, 5]), "deviates"),
    ((("a@x.org", "b@x.org"), (5, 5)), (["a@x.org", "b@x.org"], [5]), "deviates"),
    ((("a@x.org", "b@x.org"), 5), (["b@x.org", "a@x.org"], 5), "covered"),  # one list has no other to be paired with
])
def test_lists_of_one_call_stay_paired(ordered, given, standing):
    critical = {"to": "principal", "amounts": "amount"}
    assert batch(critical, dict(zip(critical, ordered, strict=True)), dict(zip(critical, given, strict=True))) == standing


@pytest.mark.parametrize(("text", "code"), [(Text(quote=("Hello",)), "missing"), (Text(inputs=("bill.total",)), "missing"), (Text(), None)])
def test_an_ordered_text_is_not_left_out(text, code):
    found = judge(one("send", {"to": "bob@x.org", "body": text}), "send", {"to": "bob@x.org", "body": ""})
    assert codes(found) == ([("body", code)] if code else [])


def test_an_amount_with_a_comma_is_in_no_range_and_in_no_sum():
    """One tool reads it as a decimal sign, another as thousands."""
    mandate = Mandate(steps=one("pay", {"recipient": "Bob", "amount": Between(1, 100)}).steps, limits=(Limit("pay", 100),))
    for amount, expected in ((80, []), ("80.00", []), ("80,00", [("amount", "value"), ("", "limit")])):
        assert codes(judge(mandate, "pay", {"recipient": "Bob", "amount": amount})) == expected


@pytest.mark.parametrize("months", [("May",), ("May", "June")])
def test_a_record_that_several_reads_show_is_spent_once(months):
    """Even if a field of it, as its place in the list, is another in each read."""
    steps = (
        Step("bills", "bill", {"month": OneOf(("May", "June"))}),
        Step("do", "pay", {"recipient": Each("bills", "rows.iban"), "amount": Each("bills", "rows.total")}),
    )
    kept = read(*(({"month": month}, {"rows": [{**BILLED, "place": place}]}, {}) for place, month in enumerate(months)))
    counts, found = Counter(), []
    for _ in range(3):
        found.append(judge(Mandate(steps=steps), "pay", PAID, kept=kept, counts=counts))
        counts.update({spend.counter: spend.by for spend in found[-1].spends})
    assert [one.standing for one in found] == ["covered", "deviates", "deviates"]


@pytest.mark.parametrize("kind", [Never, Limit])
def test_a_rule_about_reads_which_nobody_compares_is_refused(kind):
    with pytest.raises(ValueError, match="effect"):
        kind("read", *([100] if kind is Limit else []))


def test_the_greatest_of_several_reads_needs_all_of_them():
    steps = (Step("bills", "bill", {"month": OneOf(("May", "June"))}), Step("do", "pay", {"recipient": Pick("bills", "iban", max="total")}))
    kept = read(({"month": "May"}, BILLED, {}))
    assert codes(judge(Mandate(steps=steps), "pay", {"recipient": BILLED["iban"]}, kept=kept)) == [("recipient", "ambiguous")]
    kept.record("bill", PROFILES["bill"], {"month": "June"}, {**OTHER, "total": 3})
    assert judge(Mandate(steps=steps), "pay", {"recipient": BILLED["iban"]}, kept=kept).standing == "covered"


def test_there_is_no_greatest_of_what_cannot_be_compared():
    steps = (Step("contacts", "contacts"), Step("do", "send", {"to": Pick("contacts", "email", max="age")}))
    for age, code in ((29, []), ("2025-05-26", [("to", "ambiguous")])):
        kept = outputs(contacts=[CONTACTS[0], {**CONTACTS[2], "age": age}, CONTACTS[1]])
        assert codes(judge(Mandate(steps=steps), "send", {"to": "lee@x.org"}, kept=kept)) == code


@pytest.mark.parametrize(("query", "code"), [("who closes it", []), (f"who said that {MINUTES}?", []), ("ask evil.org", [("to", "unread")])])
def test_words_of_the_model_may_search(query, code):
    """They may quote what was read, and hold no identifier that the user did not say."""
    steps = (Step("contacts", "contacts", {"query": Text()}), Step("do", "send", {"to": Field("contacts", "email")}))
    kept = Outputs()
    kept.record("bill", PROFILES["bill"], DECEMBER, MINUTES)
    kept.record("contacts", PROFILES["contacts"], {"query": query}, {"email": "bob@x.org"})
    assert codes(judge(Mandate(steps=steps), "send", {"to": "bob@x.org"}, kept=kept)) == code


def test_an_answer_quotes_only_what_a_trusted_source_wrote():
    trusted = judge(FROM_BILL, "pay", {**PAID, "amount": 1}).deviations[0].expected
    outside = judge(one("send", {"to": Field("bill", "note")}), "send", {"to": "a@x.org"}).deviations[0].expected
    assert "98.7" in trusted
    assert "evil" not in outside


# --- texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "body", "words", "standing"), [
    (None, "Hi Bob, see you soon!", "", "covered"),
    (None, "Call me at 030 1234567", "her number is 030 1234567", "covered"),
    (None, "Call me at 030 1234567", "", "deviates"),
    (None, "98.7 are due", "", "covered"),
    (None, "198.70 are due", "", "deviates"),
    (Text(inputs=("bill.total",)), "98.70 are due", "", "covered"),
    (None, "1,200 are due", "", "deviates"),
    (None, "1,200 are due", "1200", "covered"),
    (None, "due 2025-05-26", "due on May 26", "covered"),
    (None, "due 2024-05-26", "due 2025-05-26", "deviates"),
    (None, "They close the plant in spring.", "", "covered"),
    (None, "FYI: to close the plant in spring and more", "", "deviates"),
    (Text(inputs=("minutes",)), "FYI: to close the plant in spring and more", "", "covered"),
    (Text(inputs=("bill.total",)), "to close the plant in spring and", "", "deviates"),
    (Text(inputs=("bill.iban",)), "It is DE89370400440532013000", "", "covered"),
    (Text(inputs=("bill.total",)), "It is DE89370400440532013000", "", "deviates"),
    (Text(("code 12345",)), "The code 12345", "", "covered"),
    (Text(), "x" * 9000, "", "deviates"),
])
def test_texts(text, body, words, standing):
    kept = outputs()
    kept.record("contacts", PROFILES["contacts"], {"query": "minutes"}, MINUTES)
    args = {"to": "bob@x.org"} | ({} if text is None else {"body": text})
    mandate = Mandate(steps=(BILL, Step("minutes", "contacts", {"query": "minutes"}), Step("do", "send", args)))
    found = judge(mandate, "send", {"to": "bob@x.org", "body": body}, kept=kept, words=words)
    assert (found.standing, codes(found)) == (standing, [] if standing == "covered" else [("body", "text")])


LONG = {
    "short": ["hello"],
    "beyond the limit of a text": ["word " * 100_000 + MINUTES],
    "beyond the limit of JSON": ["word " * 250_000 + MINUTES],
    "beyond the limit of a thread": [MINUTES, *(f"{n}" * 399_000 for n in range(11))],
    "more repetitions than are kept": [MINUTES, *map(str, range(70))],
    "the same again and again": ["ready", *["waiting", "ready"] * 100],
}


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("name", LONG)
def test_a_text_may_be_copied_from_what_is_not_held(name, fixed):
    """Only a text of six words in a row that the user did not say is asked for."""
    kept = outputs()
    for number, output in enumerate(LONG[name]):
        kept.record("contacts", PROFILES["contacts"], {"query": "" if fixed else f"{number}"}, output)
    mandate = one("send", {"to": "bob@x.org"})
    lost = name.startswith("beyond") or (name.startswith("more") and fixed)
    for body, words, free in (
        ("to close the plant in spring", "", not lost and MINUTES not in LONG[name]),
        ("to close the plant in spring", "Tell Bob to close the plant in spring", True),
        ("See you soon, Bob!", "", True),
    ):
        assert judge(mandate, "send", {"to": "bob@x.org", "body": body}, kept=kept, words=words).standing == ("covered" if free else "deviates")


# --- counts --------------------------------------------------------------------------------------------


def spend(standing, counts):
    for counter, maximum, by in standing.spends:
        assert counts.get(counter, 0) + by <= maximum
        counts[counter] = counts.get(counter, 0) + by


@pytest.mark.parametrize(("kind", "unwanted", "forbidden", "others"), [
    ("object", "/docs/keep", ["/docs/keep/", "/docs/./keep", "/docs//keep", "/docs/keep/.", "/docs/keep/x", "/docs/a/../keep", "/docs/%6beep", "docs\\KEEP"], ["/docs/keeper", "/docs/a", "/docs"]),
    ("principal", "Mallory", ["Mallory.", "@mallory", ["Bob", "M\u0430llory"], "Mallory <m@x.org>", "Mallory, Bob", "(Mallory)", "to:Mallory", "Mal-lory", "M\u00e1llory", "Mal\u200blory", "Bob\x00Mallory", "Bob" * 700], ["Mallorys", "Bob", "", 7]),
    ("principal", "M <m@x.org>", ["m+a@x.org", "m@x.org", "Bob <m@x.org>"], ["m@x.com", "tom@x.org"]),
    ("url", "https://evil.org", ["http://evil.org/x", "www.evil.org"], ["https://devil.org"]),
    ("amount", 1, [1, "1.00"], ["1.5", 10]),
    ("object", "#", ["#"], ["# 1", "x"]),
])
def test_never_forbids_a_value_with_other_signs_and_what_lies_below_it(kind, unwanted, forbidden, others):
    profile = ToolProfile(effect="pay", critical={"what": kind})
    mandate = Mandate(steps=(Step("do", "do", {"what": Free()}),), never=(Never("send"), Never("pay", {kind: unwanted})))
    for value in (*forbidden, *others):
        facts = CallFacts("do", profile, {"what": value}, frozenset({"what"}), (), "")
        found = match_call(mandate, facts, {"do": profile}, Outputs()).standing({}).standing
        assert found == ("forbidden" if value in forbidden else "covered"), value


@pytest.mark.parametrize(
    ("path", "standing"),
    [("/docs", "forbidden"), ("docs/", "forbidden"), ("/", "forbidden"), ("/docs/k*", "forbidden"), ("**/*.txt", "forbidden"), ("/docs/x/..", "forbidden"), ("+" * 100_000, "forbidden"), ("/doc", "covered"), ("/docs/k", "covered"), ("/docs/a*", "covered")],
)  # fmt: skip
def test_what_is_forbidden_is_not_deleted_with_its_folder(path, standing):
    mandate = one("delete", {"path": Free()}, never=(Never("delete", {"object": "/docs/keep"}),))
    began = time.process_time()
    assert judge(mandate, "delete", {"path": path}).standing == standing
    assert time.process_time() - began < 5


def test_a_limit_counts_what_all_tools_of_the_effect_spend():
    steps = (Step("a", "pay", {"recipient": "Bob", "amount": Free()}, times=9), Step("b", "wire", {"iban": "Bob", "amount": Free()}, times=9))
    mandate = Mandate(steps=steps, limits=(Limit("pay", 100), Limit("pay", 500)))
    counts = {}
    spend(judge(mandate, "pay", {"recipient": "Bob", "amount": 60.005}, counts=counts), counts)
    over = judge(mandate, "wire", {"iban": "Bob", "amount": 40}, counts=counts)
    assert (over.standing, codes(over), over.spends) == ("forbidden", [("", "limit")], ())
    spend(judge(mandate, "wire", {"iban": "Bob", "amount": "39.99"}, counts=counts), counts)
    outside = Mandate(steps=steps[:1], limits=mandate.limits)
    assert judge(outside, "wire", {"iban": "Eve", "amount": 101}).standing == "forbidden"
    assert [s.by for s in judge(outside, "wire", {"iban": "Eve", "amount": 99}).spends] == [9900]


@pytest.mark.parametrize("amount", ["about ten", -5, None, {"value": 5}, True])
def test_an_amount_that_cannot_be_counted_deviates_from_a_limit(amount):
    mandate = one("pay", {"recipient": "Bob", "amount": Free()}, limits=(Limit("pay", 100),))
    assert codes(judge(mandate, "pay", {"recipient": "Bob", "amount": amount})) == [("", "limit")]


@pytest.mark.parametrize(("args", "spent"), [
    ({"price": 59}, 5900), ({"price": 59, "to": "Bob"}, 5900), ({"price": 59, "to": ["Bob", "Carol"]}, None),
    ({"price": 59, "to": "bob@x.org, carol@x.org"}, None), ({"price": [5, 59], "to": ["Bob", "Carol"]}, 6400),
    ({"price": [5, 59], "to": "Bob"}, 6400), ({"price": [5, 59], "to": ["Bob", "Carol", "Dan"]}, None),
    ({"price": 59, "quantity": 40}, None), ({"price": 59, "quantity": 1}, 6000),
    ({"price": 0.5, "quantity": 40}, 4050), ({"price": 0.5, "months": "40"}, None),
    ({"price": 59, "months": 1}, 5900), ({"price": 59, "months": "May"}, 5900), ({"quantity": 0}, 0),
])
def test_a_limit_does_not_guess_what_a_second_number_multiplies(args, spent):
    profile = ToolProfile(effect="pay", critical={"to": "principal", "quantity": "amount", "price": "amount", "months": "value"})
    mandate = Mandate(steps=(Step("do", "buy", dict.fromkeys(args, Free())),), limits=(Limit("pay", 100),))
    found = match_call(mandate, CallFacts("buy", profile, args, frozenset(args), (), ""), {"buy": profile}, Outputs()).standing({})
    assert codes(found) == ([("", "limit")] if spent is None else [])
    assert [spend.by for spend in found.spends if ":limit:" in spend.counter] == ([spent] if spent else [])


def test_reads_are_not_spent_and_a_fetch_with_an_open_address_is():
    assert judge(one("fetch", {"url": "https://x.org/a"}), "fetch", {"url": "https://x.org/a"}).spends == ()
    assert len(judge(one("fetch", {"url": Within("https://x.org")}), "fetch", {"url": "https://x.org/a"}).spends) == 1
    assert codes(judge(one("fetch", {"url": "https://x.org/a"}), "fetch", {"url": "https://x.org/a", "headers": "k"})) == [("headers", "undeclared")]


def test_a_copy_of_a_mandate_is_another_mandate():
    judge(PAY, "pay", {})
    other = PAY.model_copy(update={"steps": (Step("do", "pay", {"recipient": "Carol", "amount": 45}),)})
    assert judge(other, "pay", {"recipient": "Carol", "amount": 45}).standing == "covered"
    assert other.digest == Mandate(steps=other.steps).digest != PAY.digest  # an approval of the one confirms the one
    with pytest.raises(ValueError, match="two steps"):
        PAY.model_copy(update={"steps": other.steps * 2})


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the count is CPython 3.11's")
def test_a_constant_call_costs_few_functions():
    facts = CallFacts("pay", PROFILES["pay"], {"recipient": "Bob", "amount": 45}, frozenset(("recipient", "amount")), (), "")
    kept = outputs()
    match_call(PAY, facts, PROFILES, kept).standing({})
    assert len(python_calls(lambda: match_call(PAY, facts, PROFILES, kept).standing({}))) <= 15


@pytest.mark.parametrize("n", [1, 65])
def test_a_field_with_too_many_values_may_meet_the_condition(n):
    people = [{"email": "anna@x.org", "tag": ["boss"]}, {"email": "b@x.org", "tag": ["boss", *map(str, range(n))]}]
    pick = Step("do", "send", {"to": Pick("contacts", "email", where={"tag": (Eq("boss"),)})})
    found = judge(Mandate(steps=(Step("contacts", "contacts"), pick)), "send", {"to": "anna@x.org"}, kept=outputs(contacts=people))
    assert found.standing == "deviates"
