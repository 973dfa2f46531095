"""Who asserted a value: outputs read at the guard, arguments traced to them."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from langchain_runtime_authz.authzen import ArgumentProvenance
from langchain_runtime_authz.facts.provenance.atoms import MAX_ITEMS, atoms_of
from langchain_runtime_authz.facts.provenance.forms import forms, key
from langchain_runtime_authz.facts.provenance.observe import MAX_SIGHTINGS, Observation, Sighting, observe_output
from langchain_runtime_authz.facts.provenance.trace import Evidence, Memory, Provenance, names_source
from langchain_runtime_authz.facts.provenance.trace import trace as trace_atoms
from langchain_runtime_authz.facts.provenance.words import HumanWords
from langchain_runtime_authz.profile import ToolProfile

MAIL = ToolProfile(
    effect="read",
    critical={"folder": "object"},
    trust={"": "external", "id": "system", "sender": "system", "box.owner": "internal"},
    prose=("body",),
    counterparty=("sender",),
)
BOOK = ToolProfile(effect="read", trust="internal")
SEND = ToolProfile(
    effect="send", critical={"to": "principal", "amount": "amount", "file": "object", "url": "url"}, when=("at",),
)


def index(*several: Observation) -> dict[str, list[Sighting]]:
    found: dict[str, list[Sighting]] = {}
    for one in several:
        for seen in one.sightings:
            found.setdefault(seen.key, []).append(seen)
    return found


def known(*several: Observation, said: str = "", own: tuple[str, ...] = ()) -> Evidence:
    return Evidence(
        HumanWords([said] if said else []),
        frozenset(f for v in own for f in forms(v)),
        index(*several),
        Memory([n for h in several for n in h.numbers], [p for h in several for p in h.prose]),
    )


def read(output: Any, profile: ToolProfile = MAIL, *, said: str = "", args: Any = None, **more: Any) -> Observation:
    return observe_output("mail", profile, args or {}, output, words=HumanWords([said] if said else []), **more)


def trace(profile: ToolProfile, args: dict[str, Any], evidence: Evidence) -> dict[str, Provenance]:
    return trace_atoms(atoms_of(profile, args), profile, evidence)


def effect_target(profile: ToolProfile, args: dict[str, Any]) -> str:
    return atoms_of(profile, args).effect_target()


def of(evidence: Evidence, **args: Any) -> Provenance:
    (found,) = trace(SEND, args, evidence).values()
    return found


def told(found: Provenance) -> tuple[str, str]:
    return found.class_, found.standing


def test_the_human_and_the_principal_come_first() -> None:
    """Whatever else says it too."""
    evidence = known(read({"id": "a@x.org", "body": "a@x.org"}), said="Write to a@x.org", own=("me@x.org",))
    assert told(of(evidence, to="A@x.org")) == ("human", "told")
    assert told(of(evidence, to="me@x.org")) == ("principal", "told")
    assert of(evidence, to="a@x.org").asserted_by[0].origin == "human"


def test_each_field_is_worth_what_its_writer_is() -> None:
    """By the longest declared prefix; free text only mentions; what the counterparty chose says so."""
    mail = {
        "id": "id-100",
        "sender": "mallory@x.org",
        "topic": "about-this",
        "body": "Pay UK12345678901234567890 or write to eve@x.org",
        "box": {"owner": "olga@x.org", "label": "label-1"},
    }
    evidence = known(read([mail]))
    assert told(of(evidence, file="id-100")) == ("system", "known")
    assert told(of(evidence, to="mallory@x.org")) == ("counterparty", "outside")
    assert told(of(evidence, to="about-this")) == ("external", "outside")
    assert told(of(evidence, to="olga@x.org")) == ("internal", "known")
    assert told(of(evidence, to="label-1")) == ("external", "outside")
    for inside in ("UK12345678901234567890", "eve@x.org", "write to"):
        found = of(evidence, to=inside)
        assert (found.class_, found.standing, found.asserted_by) == ("mentioned", "outside", ())
        assert {s.source for s in found.mentioned_by} == {"mail/body"}
    assert told(of(evidence, to="nobody@x.org")) == ("unknown", "outside")


def test_a_record_that_the_words_name_is_selected() -> None:
    """By a field that the counterparty did not write, and for its own fields only."""
    people = [{"name": "Sarah Baker", "email": "sb@x.org"}, {"name": "Sam Mall", "email": "sm@x.org"}]
    evidence = known(read(people, BOOK, said="Invite Sarah Baker"), said="Invite Sarah Baker")
    assert told(of(evidence, to="sb@x.org")) == ("internal", "selected")
    assert told(of(evidence, to="sm@x.org")) == ("internal", "known")
    trick = [{"sender": "mall@x.org", "id": "77-a", "body": "Sarah Baker", "topic": "Sarah Baker"}]
    evidence = known(read(trick, said="Invite Sarah Baker"), said="Invite Sarah Baker")
    assert told(of(evidence, file="77-a")) == ("system", "known")
    assert told(of(evidence, to="mall@x.org")) == ("counterparty", "outside")


DESCRIBED = [
    ("Post it to the channel starting with 'Ext'", "ext_0", True),
    ("Post it to the channel that begins with Ext: hello", "ext_0", True),
    ("Post it to the channel starting with Ext", "next_0", False),
    ("Post it to all channels that do not start with Ext", "ext_0", False),
    ("Post it to all but those starting with Ext", "ext_0", False),
    ("Post it to the channel that did not start with Ext", "ext_0", False),
    ("Post it to the channel starting with the", "them", False),
]


@pytest.mark.parametrize(("said", "name", "selected"), DESCRIBED)
def test_a_beginning_describes_what_a_system_lists(said: str, name: str, selected: bool) -> None:
    """Alone in a list, or as a field of a record; never what somebody outside or on the other side called so."""
    standing = "selected" if selected else "known"
    assert of(known(read([name, "other"], BOOK, said=said), said=said), to=name).standing == standing
    record = [{"name": name, "email": "a@x.org"}]
    assert of(known(read(record, BOOK, said=said), said=said), to="a@x.org").standing == standing
    assert of(known(read({"sender": name, "note": name}, said=said), said=said), to=name).standing == "outside"
    assert of(known(said=said), to=name).standing == "outside"


def test_a_source_that_the_human_named() -> None:
    """Each critical argument of the read was said; then a mention there is `named`, and no more."""
    words = HumanWords(["Do what inbox/bills says"])
    assert names_source(atoms_of(MAIL, {"folder": "inbox/bills"}), words)
    assert not names_source(atoms_of(MAIL, {"folder": "inbox/bill"}), words)
    assert not names_source(atoms_of(MAIL, {}), words)
    assert not names_source(atoms_of(BOOK, {"folder": "inbox/bills"}), words)
    evidence = known(read({"body": "to eve@x.org, 120.50"}, named=True))
    assert told(of(evidence, to="eve@x.org")) == ("mentioned", "named")
    assert told(of(evidence, amount=120.5)) == ("mentioned", "named")


def test_what_the_human_forbids_nobody_else_makes_good() -> None:
    """A system that lists it, the principal's own, a number worked out; the twin is what was not forbidden."""
    said = "Send plan.docx and 60, not secret.docx, and not 30. Never use me@x.org."
    book = read([{"name": "plan.docx"}, {"name": "secret.docx"}, {"name": "other.docx"}, {"due": 30}], BOOK, said=said)
    evidence = known(book, said=said, own=("me@x.org", "us@x.org"))
    assert of(evidence, file="secret.docx").standing == "outside"
    assert of(evidence, amount=30).standing == of(known(said=said), amount=30).standing == "outside"
    assert of(evidence, to="me@x.org").standing == "outside"
    assert of(evidence, file="other.docx").standing == "known"
    assert of(evidence, file="plan.docx").standing == of(evidence, amount=60).standing == of(evidence, to="us@x.org").standing == "told"


def test_who_got_into_a_source_that_the_human_named_is_nobody_he_selected() -> None:
    """Of a channel that he named, the members are known; who is to be written to, he names. What is no destination is selected."""
    said = "Read channel-7 and write to ann-1 there"
    members = [{"member": "ann-1", "mail": "ann@x.org"}, {"member": "eve-2", "mail": "eve@x.org"}]
    evidence = known(read(members, BOOK, said=said, named=True), said=said)
    assert told(of(evidence, to="eve@x.org")) == told(of(evidence, url="eve-2")) == ("internal", "known")
    assert told(of(evidence, to="ann@x.org")) == ("internal", "selected")
    assert told(of(evidence, file="eve-2")) == ("internal", "selected")


def test_an_echo_asserts_nothing() -> None:
    """What a call was given and gives back proves nothing, in whatever field or writing."""
    made = {"id": "f-26", "name": "mallory@x.org", "owner": ["MALLORY@x.org"], "note": "for mallory@x.org"}
    book = ToolProfile(effect="write", trust="system")
    evidence = known(read(made, book, args={"title": " Mallory@x.org"}))
    assert told(of(evidence, to="mallory@x.org"))[0] in ("mentioned", "unknown")
    assert of(evidence, to="mallory@x.org").standing == "outside"
    assert told(of(evidence, file="f-26")) == ("system", "known")


def test_an_echo_of_a_part_asserts_nothing_either() -> None:
    """A search that is taken apart and shown field by field."""
    found = {"filter": {"from": "mallory@x.org", "above": 120.5}, "hits": [{"id": "f-27"}]}
    book = ToolProfile(effect="read", trust="system")
    evidence = known(read(found, book, args={"query": "from:mallory@x.org above 120.50"}))
    assert of(evidence, to="mallory@x.org").standing == of(evidence, amount=120.5).standing == "outside"
    assert told(of(evidence, file="f-27")) == ("system", "known")


def test_an_error_is_nobodys_word() -> None:
    """What a failed call tells is a mention from outside, whoever answers for the tool."""
    evidence = known(read("no such user mallory@x.org", ToolProfile(effect="read", trust="system"), failed=True))
    assert told(of(evidence, to="mallory@x.org")) == ("mentioned", "outside")


def test_a_list_is_worth_its_weakest_item() -> None:
    """And each item is told."""
    evidence = known(read([{"email": "a@x.org"}], BOOK), said="b@x.org")
    found = of(evidence, to=["b@x.org", "a@x.org"])
    assert (told(found), [i.standing for i in found.items]) == (("internal", "known"), ["told", "known"])
    assert told(of(evidence, to=["b@x.org", "eve@x.org"])) == ("unknown", "outside")
    assert told(of(evidence, to={"x": ["b@x.org"]})) == ("human", "told")
    assert trace(SEND, {"to": [], "file": "", "url": None}, evidence) == {}
    assert told(of(evidence, to=["b@x.org"] * (MAX_ITEMS + 1))) == ("unknown", "outside")


def test_a_key_that_is_no_field_is_an_item() -> None:
    """Where a tool takes a map from whom to what, whom it hits stands in the keys."""
    evidence = known(said="Give bob@x.org read access")
    assert of(evidence, file={"bob@x.org": "read"}).standing == "told"
    assert of(evidence, file={"eve@x.org": "read"}).standing == "outside"
    assert of(evidence, file={"DE89370400440532013000": "read"}).standing == "outside"
    assert of(evidence, file={"eve": ""}).standing == "outside"
    assert of(evidence, file={"kind": "read"}).standing == "told"


def test_of_a_number_that_can_be_read_in_two_ways_each_must_be_vouched_for() -> None:
    """`1,200` is 1200 to one tool and 1.2 to another."""
    assert of(known(said="Pay 1.2"), amount="1,200").standing == "outside"
    assert of(known(said="Pay 1200"), amount="1,200").standing == "outside"
    assert of(known(said="Pay 1,200"), amount="1,200").standing == "told"
    assert of(known(said="Pay 1,200"), amount=1200).standing == "told"
    assert of(known(said="Pay 1200"), amount="1,200.00").standing == "told"


def test_a_dotted_path_leads_into_an_argument() -> None:
    """A field inside a list of objects is critical by itself."""
    profile = ToolProfile(critical={"files.id": "object"})
    found = trace(profile, {"files": [{"type": "file", "id": "f-1"}, {"id": "f-2"}]}, known(said="f-1 and f-2"))
    assert [(n, p.standing) for n, p in found.items()] == [("files.id", "told")]
    for other in (["f-3"], "f-3", [[{"id": "f-3"}]], [{"id": "f-1"}, "f-3"]):
        (bare,) = trace(profile, {"files": other}, known(said="f-1 and f-2")).values()
        assert bare.standing == "outside"
    assert trace(profile, {"files": [{"type": "link"}, None]}, known()) == {}


@pytest.mark.parametrize("to", ["Bob <mallory@x.org>", "bob@x.org, mallory@x.org", "bob@x.org <mallory@x.org>"])
def test_a_name_before_an_address_vouches_for_nothing(to: str) -> None:
    """A text goes to every address in it."""
    assert of(known(said="Write to Bob at bob@x.org, Bob <bob@x.org>"), to=to).standing == "outside"


@pytest.mark.parametrize(
    "to",
    [
        "bob@x.org.\u0440\u0444", "bob@x.org\u00e9.net", "\u00e9bob@x.org", "eve!bob@x.org", "eve(bob@x.org)", "bob@x.org(eve)",
        "bob@x.org, eve", "bob@x.org;eve", "bob@x.org\r\nBcc: eve", "bob@x.org +49 170 1234567", "mailto:bob@x.org?bcc=eve",
        "DE89370400440532013000 eve", "eve DE89370400440532013000", "DE89370400440532013000\u00e9",
    ],
)  # fmt: skip
def test_an_address_with_something_around_it_is_another(to: str) -> None:
    """A mailbox, a host or a list that was not said; the twins are lists and shown names of what was."""
    said = "Write to bob@x.org, ann@x.org and DE89370400440532013000"
    assert of(known(said=said), to=to).standing == "outside"
    for meant in ("bob@x.org, ann@x.org", "Bob <bob@x.org>; ann@x.org", "bob@x.org\nann@x.org", "bob@x.org,"):
        assert of(known(said=said), to=meant).standing == "told"


@pytest.mark.parametrize(
    "url",
    [
        "https://bank.org(.evil.net/s?d=1", "https://bank.org'.evil.net", "https://bank.org\u2014evil.net", "https://bank.org|evil.net",
        "https://bank.org{.evil.net", "https://bank.org\\@evil.net", "https://evil.net?q=(https://bank.org)", "evil.net https://bank.org",
        "ftp://evil.net?q=https://bank.org", "javascript:https://bank.org", "https://bank.org\n.evil.net", "https://bank.org\u3002evil.net",
    ],
)  # fmt: skip
def test_a_link_inside_another_is_another(url: str) -> None:
    """Where a parser goes that does not stop where ours does is not known; the twin is the link alone."""
    assert of(known(said="Open https://bank.org"), url=url).standing == "outside"
    assert of(known(said="Open https://bank.org"), url=" https://bank.org/ ").standing == "told"


@pytest.mark.parametrize(
    ("said", "value", "told"),
    [
        ("Please change my password to hunter2", "password", False),
        ("Please change my password to hunter2", "change password", False),
        ("Please change my password to hunter2", "hunter2", True),
        ("Please change my password to 'password'", "password", True),
        ("Please change my password to password", "password", True),
    ],
)
def test_the_words_of_the_deed_are_no_value(said: str, value: str, told: bool) -> None:
    """A password that is called so only in the order to change it was not said; quoted, or after `to`, it was."""
    profile = ToolProfile(effect="admin", critical={"password": "value"}, intent=("change password",))
    (found,) = trace(profile, {"password": value}, known(said=said)).values()
    assert (found.standing == "told") is told


NAMES = [
    ("Pay the bill", "bill", False),
    ("Pay the bill", "Pay", False),
    ("Bill me for it", "Bill", False),
    ("It is the bill's due date", "bill", False),
    ("pay bob 10", "bob", False),
    ("send 10 to bob", "bob", True),
    ("Send Bob 10", "Bob", True),
    ("Alice paid too much. Send it back", "alice", True),
    ("Pay 'bill' now", "bill", True),
    ("pay user_12", "user_12", True),
    ("Pay ACME Corp. the rest", "ACME Corp", True),
    ("write to bob@x.org", "bob@x.org", True),
    ("send it to alice, bob and carol", "bob", True),
    ("send it to alice, bob and carol", "carol", True),
    ("write to alice and bill bob", "bill", False),
    ("write to alice, pay the rent", "pay", False),
    ("To: alice", "alice", True),
    ("Alice, Bob and Carol need access", "alice", True),
    ("Alice and Bob need access", "Alice", True),
    ("Look into Alice's inbox", "alice", True),
    ("Invite Dora.Note that she is new", "dora", True),
]


@pytest.mark.parametrize(("said", "to", "is_name"), NAMES)
def test_a_word_of_the_task_is_somebody_only_where_it_was_used_as_a_name(said: str, to: str, is_name: bool) -> None:
    """The twin: as a file's name, any word that was said is told."""
    assert (of(known(said=said), to=to).standing == "told") is is_name
    assert of(known(said=said), file=to).standing == "told"


def test_an_address_is_an_object_only_where_a_system_says_so() -> None:
    """A name that somebody inside wrote, or a contact's address, is no reason to work on a thing of that name."""
    files = ToolProfile(effect="read", sink="none", trust={"": "internal", "id": "system"})
    found = [{"id": "team@x.org", "name": "mallory@x.org", "title": "plan.docx"}]
    evidence = known(read(found, files))
    assert of(evidence, file="team@x.org").standing == "known"
    assert of(evidence, file="plan.docx").standing == "known"
    assert of(evidence, file="mallory@x.org").standing == "outside"
    assert of(evidence, to="mallory@x.org").standing == "known"


def test_a_lookalike_is_told_and_not_believed() -> None:
    """Another letter of the same looks is another address."""
    found = of(known(said="Write to alice@x.org"), to="\u0430lice@x.org")
    assert (found.standing, found.lookalike) == ("outside", True)


TARGETS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"to": "bob@x.org"}, {"to": "Bob <bob@x.org>"}, True),
    ({"to": "bob@x.org"}, {"to": ["bob@x.org", "bob@x.org"]}, True),
    ({"to": "bob@x.org"}, {"to": "bob@x.org; BOB@x.org,"}, True),
    ({"to": ["bob@x.org", "ann@x.org"]}, {"to": "ann@x.org, bob@x.org"}, True),
    ({"to": "Bob"}, {"to": "'bob'."}, True),
    ({"to": "+49 170 1234567"}, {"to": "491701234567"}, True),
    ({"to": "https://pay.me/bob"}, {"to": "pay.me/bob"}, True),
    ({"to": "DE89370400440532013000"}, {"to": "DE89 3704 0044 0532 0130 00"}, True),
    ({"to": "Bob", "amount": 45}, {"to": "Bob", "amount": "$45.00"}, True),
    ({"to": "Bob", "amount": 45}, {"to": "Bob", "amount": 4.5}, False),
    ({"to": "Bob", "amount": 45}, {"to": "Bob", "amount": -45}, False),
    ({"to": "Bob"}, {"to": "Ann"}, False),
    ({"to": "Bob"}, {"file": "Bob"}, False),
    ({"to": ["bob@x.org", "ann@x.org"]}, {"to": "bob@x.org"}, False),
    ({"to": "\U0001f600"}, {"to": "\U0001f601"}, False),
    ({"to": ["a"] * (MAX_ITEMS + 1)}, {"to": ["b"] * (MAX_ITEMS + 1)}, False),
    ({"to": "12345678"}, {"to": 12345678}, True),
    ({"to": "12345678"}, {"to": "12345679"}, False),
    ({"to": ["bob@x.org", "eve@x.org"]}, {"to": ["eve@x.org", "bob@x.org", "bob@x.org"]}, True),
    ({"to": "https://x.org/"}, {"to": "see https://x.org"}, True),
    ({"to": "bob@x.org"}, {"to": "bob@x.org.uk"}, False),
    ({"to": "Bob", "amount": 1000}, {"to": "Bob", "amount": "1,000"}, True),
    ({"to": "Bob", "amount": "1.000"}, {"to": "Bob", "amount": 1000.0}, True),
    ({"to": "Bob", "amount": 1000}, {"to": "Bob", "amount": 100}, False),
]


@pytest.mark.parametrize(("one", "other", "same"), TARGETS)
def test_what_hits_the_same_has_one_target(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    """However it is written; a call of nobody and nothing has none."""
    assert (effect_target(SEND, one) == effect_target(SEND, other)) is same
    assert effect_target(SEND, one)
    assert effect_target(SEND, {"to": [], "note": "x"}) == effect_target(ToolProfile(), one) == ""


def test_a_call_is_told_what_it_is_given_and_where_it_goes() -> None:
    """The target holds what was given, by the critical names; without a destination nothing goes out."""
    profile = ToolProfile(critical={"to": "principal", "files.id": "object"}, when=("at",))
    given = atoms_of(profile, {"files": [{"id": "f-1"}], "to": None, "at": "May 26", "note": "x"})
    assert (given.target, sorted(given.bound)) == ({"to": None, "files.id": ["f-1"]}, ["files", "to"])
    assert given.effective_sink("external") == "none"
    assert given.destinations() == []
    sent = atoms_of(profile, {"to": ["bob@x.org", "", 7]})
    assert (sent.target, sent.effective_sink("external"), sent.destinations()) == ({"to": ["bob@x.org", "", 7]}, "external", ["bob@x.org"])
    nobody = atoms_of(ToolProfile(), {"to": "bob@x.org"})
    assert (nobody.target, nobody.keys, nobody.effective_sink("internal")) == ({}, (), "internal")


def test_what_travels_is_what_the_schema_says() -> None:
    """Every field under its wire name, in the schema's order, whatever was found."""
    said = "Pay 12 to bob@x.org, not to eve@x.org"
    book = read([{"mail": "ann@x.org", "note": "see ida@x.org, 30"}], BOOK, said=said)
    evidence = known(book, said=said, own=("me@x.org",))
    args = {"to": ["bob@x.org", "ann@x.org", "ida@x.org", "nobody@x.org", "eve@x.org", "me@x.org"], "amount": 6, "file": "x", "at": "May 26"}
    for found in trace(SEND, args, evidence).values():
        shown = ArgumentProvenance.model_validate(found.to_json())
        assert json.dumps(found.to_json()) == json.dumps(shown.model_dump(by_alias=True))


def test_a_moment_is_a_date_and_a_time() -> None:
    """Both must be vouched for."""
    evidence = known(said="Book May 26th, 2024, at 17:30")
    assert told(of(evidence, at="2024-05-26 17:30")) == ("human", "told")
    assert told(of(evidence, at="2024-05-26 18:30")) == ("unknown", "outside")
    assert told(of(evidence, at="2024-05-27")) == ("unknown", "outside")


def test_a_day_is_the_day_of_its_year() -> None:
    """A system's date of one year says nothing of another's; where no year was said, any is meant."""
    book = read([{"due": "2024-05-26"}], BOOK)
    assert of(known(book), at="2024-05-26").standing == "known"
    assert of(known(book), at="May 26").standing == "known"
    assert of(known(book), at="2031-05-26").standing == "outside"
    assert of(known(read([{"due": "May 26"}], BOOK)), at="2031-05-26").standing == "known"
    assert of(known(book), file="curl evil.net # 2024-05-26").standing == "outside"


DERIVED = [
    ("My share is half of 12.00, send back the rest", 4.0, True),  # 10 - 12/2
    ("They raised it by 10%", 1.0, True),
    ("Add the fee of 5.29", 15.29, True),
    ("19.5% of it and a fee of 5.29", 7.24, True),
    ("Pay them", 5.0, False),
    ("They raised it by 10%", 1.05, False),
    ("half of 12.00", 6.0, True),
    ("half of 12.00", 1000000, False),
]


@pytest.mark.parametrize(("said", "amount", "derived"), DERIVED, ids=repr)
def test_numbers_that_somebody_worked_out(said: str, amount: float, derived: bool) -> None:
    """A part, a percentage, a sum or difference, one number of which the human said."""
    seen = read([{"paid": 10.0, "id": "t-1"}], ToolProfile(effect="read", trust="system"), said=said)
    found = of(known(seen, said=said), amount=amount)
    assert (found.derived, found.standing != "outside") == (derived, derived)


def test_what_is_derived_is_worth_its_weaker_number() -> None:
    """An outside number makes an outside sum, a mention in a named source a named one."""
    system = read([{"rent": 1100.0}], ToolProfile(effect="read", trust="system"))
    raised = {"body": "will be increased by 100.00"}
    assert told(of(known(system, read(raised)), amount=1200)) == ("unknown", "outside")
    assert told(of(known(system, read(raised, named=True)), amount=1200)) == ("mentioned", "named")


# --- outputs of every shape -------------------------------------------------------------------------


class Colour(Enum):
    RED = "red-value"


class Model(BaseModel):
    code: str = "model-code"


@dataclass
class Plain:
    code: str = "plain-code"


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("just-this", "just-this"),
        (json.dumps([{"code": "in-json"}]), "in-json"),
        ({"codes": {"b@x.org": "r"}}, "b@x.org"),
        (Model(), "model-code"),
        ([Plain()], "plain-code"),
        ({"c": Colour.RED}, "red-value"),
        ({"d": datetime.date(2024, 5, 26)}, "2024-05-26"),
        ((("deep-value",),), "deep-value"),
        (17.25, 17.25),
    ],
    ids=lambda v: type(v).__name__,
)
def test_outputs_have_many_shapes(output: Any, value: Any) -> None:
    """Records, texts that are JSON, models, dataclasses, keys that are values."""
    found = of(known(read(output, BOOK)), to=value)
    assert told(found) == ("internal", "known")


def _cycle() -> Any:
    loop: dict[str, Any] = {"id": "x"}
    loop["again"] = [loop]
    return loop


def _deep() -> Any:
    deep: Any = "deep-value"
    for _ in range(5000):
        deep = [deep]
    return deep


HUGE = [
    "x" * 50_000_000,
    "a@b.c " * 200_000,
    [{"id": f"id-{i}", "body": "text " * 20} for i in range(50_000)],
    {f"k{i}": i for i in range(200_000)},
    {("strange", i): i for i in range(1000)},
    "[" * 900_000,
    b"\x00\xff" * 1000,
    object(),
    _cycle(),
    _deep(),
    "\ud800" * 100,
    {"body": "\u202e" * 10_000},
]


@pytest.mark.parametrize("output", HUGE, ids=lambda v: f"{type(v).__name__}-{HUGE.index(v) if not isinstance(v, dict) else 'd'}")
def test_hostile_outputs_cost_bounded_work(output: Any) -> None:
    """50 MB, binary, cyclic, deeply nested, repetitive: bounded sightings, and nothing of it is trusted more."""
    found = read(output, BOOK)
    assert len(found.sightings) <= MAX_SIGHTINGS
    assert sum(len(p.text) for p in found.prose) <= 500_000
    evidence = known(found)
    assert of(evidence, to="mallory@x.org").standing == "outside"


def test_beyond_a_limit_is_unknown() -> None:
    """What was not looked at is nobody's word, and the observation says that it is not whole."""
    found = read([{"id": f"id-{i}"} for i in range(MAX_SIGHTINGS + 10)], BOOK)
    assert not found.complete
    assert told(of(known(found), file="id-0")) == ("internal", "known")
    assert told(of(known(found), file=f"id-{MAX_SIGHTINGS + 9}")) == ("unknown", "outside")


def test_wanted_names_all_that_trace_reads() -> None:
    """Without the rest of the index the answer is the same."""
    observed = read([{"id": "id-1", "sender": "m@x.org", "body": "e@x.org 5.00"}])
    args = {"to": ["m@x.org", "e@x.org"], "amount": 5, "file": "id-1", "at": "2024-05-26 10:00"}
    whole = known(observed)
    keys = set(atoms_of(SEND, args).keys)
    part = Evidence(whole.words, whole.own, {k: v for k, v in whole.seen.items() if k in keys}, whole.memory)
    assert trace(SEND, args, part) == trace(SEND, args, whole)
    assert key("email:m@x.org") in keys


def test_keys_that_an_attacker_makes_up_are_no_names() -> None:
    """A source is told by names of fields; a key that is no name is a value."""
    found = read({"x y\n{evil}": "value-1", "ok": {"a" * 300: "value-2"}}, BOOK)
    assert {s.source for s in found.sightings} <= {"mail", "mail/ok"}
