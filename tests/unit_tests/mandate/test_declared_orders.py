"""An order that the profile declares is read as it says; everything else in the clause leaves it unread."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz._order_patterns import _IDLE, parse_pattern
from langchain_runtime_authz._profile_schema import check_arguments
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.mandate.languages import languages
from langchain_runtime_authz.mandate.plain_orders import Known, says
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile, load_profiles

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
PROFILES = {
    "enroll": ToolProfile(critical={"student": "principal", "course": "object"}, intent=("enroll {student} in {course}", "(add|sign up) {student} (to|for) {course}")),
    "book_table": ToolProfile(
        critical={"restaurant": "object", "guests": "amount"}, when=("day", "time"),
        intent=("(book|reserve) [table] [at {restaurant}] [on {day}] [at {time}] [for {guests} (people|guests)]",),
    ),
    "send_money": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}, intent=("pay {to} {amount}", "send {amount} to {to}", "pay {to} {amount} EUR now")),
    "set_status": ToolProfile(
        critical={"ticket": "object", "status": "value"}, intent=("(set|move) {ticket} to {status}", "close {ticket} {status=closed}", "put {ticket} {status=on_hold} on hold"),
    ),
    "switch": ToolProfile(critical={"device": "object"}, intent=("turn {device} off {on=false}", "turn {device} on {on=true}")),
    "remind": ToolProfile(when=("at",), text=("text",), intent=("remind me [at {at}] to {text}", "note {text}")),
    "heat": ToolProfile(critical={"room": "place", "degrees": "amount"}, intent=("set {room} to {degrees} degrees", "heize {room} auf {degrees} grad")),
    "limit": ToolProfile(effect="admin", critical={"card": "object", "limit": "amount"}, intent=("set limit of {card} to {limit} [EUR]", "cut limit of {card} by {percent} %")),
    "move_sample": ToolProfile(critical={"sample": "object"}, intent=("move {sample} from {source} to {target}",)),
    "grade": ToolProfile(critical={"student": "principal", "course": "object", "grade": "value"}, intent=("give {student} {grade} in {course}", "tell {student}'s teacher to {text}"), text=("text",)),
    "delete_file": ToolProfile(effect="delete", critical={"path": "object"}, intent=("delete [file] [{path}] now",)),
    "craft": ToolProfile(
        critical={"item": "object", "size": "amount"}, when=("time",),
        intent=("order {count} {item} [at {time}]", "link {item} {other}", "bake {size} {item}", "chill {item} to {level} °C", "run {item} for {count} m", "keep wi-fi of {item} off {on=false}", "switch {item} {on}"),
    ),
    "post": ToolProfile(effect="send", critical={"to": "principal"}, text=("body",), intent=("post {to} {body}", "write to {to}: {body}")),
    "hire": ToolProfile(effect="pay", critical={"guide": "principal", "hours": "amount"}, intent=("hire {guide} {hours}",)),
    "stake": ToolProfile(effect="pay", critical={"player": "principal", "amount_btc": "amount"}, intent=("stake {player} {amount_btc}",)),
    "lend": ToolProfile(effect="pay", critical={"debtor": "principal", "amount": "amount"}, text=("why",), intent=("lend {debtor} {amount} USD [for {why}]",)),
    "grant_points": ToolProfile(effect="pay", critical={"player": "principal", "amount": "amount"}, intent=("grant {player} {amount}",)),
    "drop": ToolProfile(critical={"item": "object"}, intent=("drop {item}", "cancel {item}", "stop {item}")),
}  # fmt: skip
SIGNATURES = {
    "book_table": {"properties": {"restaurant": STRING, "day": STRING, "time": STRING, "guests": INTEGER}},
    "send_money": {"properties": {"to": STRING, "amount": {"type": "number"}, "currency": STRING}},
    "set_status": {"properties": {"ticket": STRING, "status": {"type": "string", "enum": ["open", "in_progress", "on_hold", "closed"]}}},
    "switch": {"properties": {"device": STRING, "on": {"type": "boolean"}}},
    "limit": {"properties": {"card": STRING, "limit": INTEGER, "percent": INTEGER}},
    "craft": {"properties": {"item": STRING, "other": STRING, "count": INTEGER, "level": INTEGER, "time": STRING, "size": {"type": "string", "enum": ["small", "large"]}, "on": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}},
    "move_sample": {"properties": dict.fromkeys(("sample", "source", "target"), STRING)},
    "grade": {"properties": {"student": STRING, "course": STRING, "text": STRING, "grade": {"type": "string", "enum": ["A", "B"]}}},
}
TABLE = {"restaurant": "Nobu", "day": "3 June 2027", "time": "17:30", "guests": 4}


def calls(*texts: str) -> list[tuple[str, dict[str, object]]]:
    mandate = compile_words(texts, PROFILES, SIGNATURES).mandate
    return [(s.tool, {n: a.value for n, a in s.args.items()}) for s in (mandate.steps if mandate else ())]


@pytest.mark.parametrize(("text", "expected"), [
    ("Please enroll jdoe42 in CS-101", ("enroll", {"student": "jdoe42", "course": "CS-101"})),
    ("Enroll the student jdoe42 in the CS-101 course, thanks", ("enroll", {"student": "jdoe42", "course": "CS-101"})),
    ('Could you sign up Ana Lee for "Advanced Math"?', ("enroll", {"student": "Ana Lee", "course": "Advanced Math"})),
    ("Book a table at Nobu on 3 June 2027 at 17:30 for 4 people", ("book_table", TABLE)), ("Reserve a table for 4 guests, at Nobu, at 17:30 on 3 June 2027", ("book_table", TABLE)),
    ("Book Nobu at 5 pm", None), ("Book a table at Nobu on 3 June at 5pm", ("book_table", {"restaurant": "Nobu", "day": "3 June", "time": "5pm"})),
    ("Book a table at Nobu at 5pm on June 3rd", ("book_table", {"restaurant": "Nobu", "day": "June 3rd", "time": "5pm"})),
    ("Book a table at Nobu on 2027-06-03T17:30", ("book_table", {"restaurant": "Nobu", "day": "2027-06-03T17:30"})),
    ("Book a table at Nobu at 5pm 3 June", ("book_table", {"restaurant": "Nobu", "time": "5pm 3 June"})), ("Book a table at Nobu 3 June at 5pm", None),
    ("Enroll Jan Lee in CS-101", ("enroll", {"student": "Jan Lee", "course": "CS-101"})), ("Pay Bob 45 EUR", ("send_money", {"to": "Bob", "amount": 45, "currency": "EUR"})),
    ("Send 45 to Bob Lee", ("send_money", {"to": "Bob Lee", "amount": 45})), ("Move T-5 to in progress", ("set_status", {"ticket": "T-5", "status": "in_progress"})),
    ("Close the ticket T-5 please", ("set_status", {"ticket": "T-5", "status": "closed"})), ("Put T-5 on hold", ("set_status", {"ticket": "T-5", "status": "on_hold"})),
    ('Turn the "desk lamp" off', ("switch", {"device": "desk lamp", "on": False})), ('Remind me at 5pm to "call Ana"', ("remind", {"at": "5pm", "text": "call Ana"})),
    ('Note: "the order is late"', ("remind", {"text": "the order is late"})), ("Set Room 2 to 21 degrees", ("heat", {"room": "Room 2", "degrees": 21})),
    ("Set the limit of FC-3 to 1,500", ("limit", {"card": "FC-3", "limit": 1500})), ("Set the limit of FC-3 to €1,500", ("limit", {"card": "FC-3", "limit": 1500})),
    ("Set the limit of FC-3 to 1,500 EUR", ("limit", {"card": "FC-3", "limit": 1500})), ("Set the limit of FC-3 to 1,500 USD", None),
    ("Cut the limit of FC-3 by 20%", ("limit", {"card": "FC-3", "percent": "20"})), ("Move the sample S-1 from F1 to F3", ("move_sample", {"sample": "S-1", "source": "F1", "target": "F3"})),
    ("Give Lucy Okafor an A in Biology 2", ("grade", {"student": "Lucy Okafor", "grade": "A", "course": "Biology 2"})),
    ("Tell Lucy's teacher to 'call me'", ("grade", {"student": "Lucy", "text": "call me"})), ("Book a table for six people at Nobu", ("book_table", {"guests": 6, "restaurant": "Nobu"})),
    ("Heize Küche auf 21 Grad", ("heat", {"room": "Küche", "degrees": 21})), ('Order two "lamps" at 5:30 pm', ("craft", {"count": "2", "item": "lamps", "time": "5:30 pm"})), ("Order 5k milk", None),
    ('Order two "lamps" at 17:30 am', None), ("Link a.txt Home", ("craft", {"item": "a.txt", "other": "Home"})),
    ("Link a.txt b.txt", None), ("Link a.txt, b.txt", None),  # two files, or one
    ("Bake large Calzone", ("craft", {"size": "large", "item": "Calzone"})), ("Chill Gazpacho to 4 °C", ("craft", {"item": "Gazpacho", "level": "4"})),
    ("Run M-4 for 5m", ("craft", {"item": "M-4", "count": "5"})), ("Run M-4 for 5 ms", None), ("Keep wi-fi of Berlin off", ("craft", {"item": "Berlin", "on": False})),
    ("Switch lamp 1", None), ("Drop five", None), ("Drop Netflix", None), ("drop Netflix", ("drop", {"item": "Netflix"})), ("Drop the Netflix item", ("drop", {"item": "Netflix"})),
    ('Drop "a"', ("drop", {"item": "a"})), ('Post +49301234567 "no"', ("post", {"to": "+49301234567", "body": "no"})), ("Drop #12", ("drop", {"item": "12"})),
    ("Pay Bob 45 USD", ("send_money", {"to": "Bob", "amount": 45, "currency": "USD"})),
    ('Post Bob "see you"', ("post", {"to": "Bob", "body": "see you"})), ('Post Bob: "see you"', ("post", {"to": "Bob", "body": "see you"})), ('Write to Bob: "see you"', ("post", {"to": "Bob", "body": "see you"})), ("Hire Bob 45", ("hire", {"guide": "Bob", "hours": 45})), ("Stake Bob 45", ("stake", {"player": "Bob", "amount_btc": 45})),
    ("Lend Bob $45", ("lend", {"debtor": "Bob", "amount": 45})), ('Lend Bob $45 for "the June rent"', ("lend", {"debtor": "Bob", "amount": 45, "why": "the June rent"})), ("Grant Bob 45", ("grant_points", {"player": "Bob", "amount": 45})),
])  # fmt: skip
def test_declared_orders(text, expected):
    assert calls(text) == ([expected] if expected else [])


def test_several_targets_are_one_order_each():
    assert [args["student"] for _, args in calls("Enroll a1@x.org, b2@x.org and c3@x.org in CS-101")] == ["a1@x.org", "b2@x.org", "c3@x.org"]
    assert calls("Drop 'North' and 'South'") == [("drop", {"item": "North"}), ("drop", {"item": "South"})]


NOTHING = {
    "more than the order": ["Pay Bob 45 EUR for the pizza", "Pay Bob at Acme 45 EUR", "Drop the branch P-5 of prod", "Drop the first line of P-5", "Set the limit of FC-3 to 1,500 by Friday", "Book a table for 4 cats at Nobu"],
    "less than the order": ["Turn the lamp", "Set the kitchen to 21", "Delete now", "Delete the file now", "Delete file now", "Pay Bob", "Pay 45 EUR", "Move S-1 to F3", "Enroll jdoe42"],
    "many": ["Delete all now", "Enroll everybody in CS-101", "Enroll jdoe42 in a Math course", "Drop an Oak", "Drop a parcel", "Pay Bob 45 EUR each", "Pay Bob half of 45 EUR", "Pay Bob 45 EUR twice", "Drop the Volvo items", "Drop items a1 to a9"],
    "or": ["Close T-5 or T-6", "Pay Bob 45 EUR or 50 EUR", "Drop P-5 and similar"],
    "and": ["Drop Salt and Pepper", "Drop Salt & Pepper", "Drop salt and pepper", "Drop Salt, Pepper and Sons", "Drop P-5 and the item", "Pay Salt and Pepper 45 EUR", "Enroll Ana and Bob in CS-101", "Pay a1@x.org and b2@x.org 45 EUR"],
    "nobody": ["Pay rent 900 EUR", "Pay him 45 EUR", "Pay 45 EUR from Bob", "Enroll Jan in CS-101"],
    "part of a name": ["Pay Bob's landlord 45 EUR", "Drop Bob's parcel", "Drop Budget Report.pdf", "Drop the list Shop Now"],
    "number": ["Pay Bob 1.250 EUR", "Pay Bob 1.5k EUR", "Pay Bob 5pm", "Pay Bob 45-50 EUR", "Pay Bob 3.4.2026", "Pay Bob 45%", "Pay Bob 007", "Pay Bob 3 May", "Pay Bob 45 30", "Pay Bob 45 EUR x2", "Send 3 of 5 EUR to Bob"],
    "unit": ["Pay Bob 45 cents", "Pay Bob 45 thousand EUR", "Pay Bob 45 Tesla shares", "Grant Bob 45 EUR", "Hire Bob 45 EUR", "Stake Bob 45 EUR", "Lend Bob 45 EUR", "Lend Bob 45 EUR USD"],
    "date": ["Book a table at Nobu on Friday, 3 June 2027", "Book a table at Nobu on Thursday, 3 June", "Book a table at Nobu until 3 June 2027", "Book a table at Nobu on 3 June 27", "Book a table at Nobu on Friday"],
    "choice": ["Set T-5 to done", "Bake huge Calzone", "Bake pizza", "Set T-5 to open or closed"],
    "hold": ["Put T-5 over hold", "Put T-5 on a stop"],
    "text": ["Remind me to call Ana", "Post Bob see you", "Post Bob: see you", "Post Bob that lunch is cold", "Write to Bob: see you", 'Post Bob "hi" now and then', "Lend Bob $45 for rent", "Note a call from Bob"],
    "common words": ["Drop the parcel", "Drop parcels", "Turn the desk lamp off", "Order two lamps", "Set the kitchen to 21 degrees", "Enroll anna in CS-101", "Drop pre-orders, P-5", "Drop a.txt, pre-approved"],
    "two values or one": ["Link a.txt b.txt", "Grade Ana Lee", "Hire Bob 45 50", "HIRE BOB 45"],
    "swapped": ["Enroll CS-101 in Ana"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in NOTHING.items() for t in texts])
def test_nothing_else_is_ordered(kind, text):
    assert calls(text) == [], kind


@pytest.mark.parametrize(("text", "value"), [
    ("Set Ann to A+", "A+"), ("Set Ann to a-", None), ("Set Ann to !US", None), ("Set Ann to -US", None), ("Set Ann to US", "US"), ("Set Ann to us", None), ("Set Ann to it", None), ("Set Ann to never", None), ("Set Ann to in progress", "in_progress"),
])  # fmt: skip
def test_a_choice_is_said_as_it_is_written_where_it_may_be_another(text, value):
    tools = {"set": ToolProfile(critical={"who": "principal", "state": "value"}, intent=("set {who} to {state}",))}
    states = {"set": {"properties": {"state": {"type": "string", "enum": ["A+", "A-", "US", "it", "never", "in_progress"]}}}}
    mandate = compile_words([text], tools, states).mandate
    assert (mandate.steps[0].args["state"].value if mandate else None) == value


def test_two_readings_order_nothing():
    two = {"label": ToolProfile(critical={"mail": "object", "label": "name"}, intent=("label {mail} {label}",))}
    assert compile_words(["Label Rio Trip Home"], two).mandate is None
    assert compile_words(['Label "Rio Trip" Home'], two).mandate is not None
    other = {"file_mail": ToolProfile(critical={"mail": "object"}, intent=("label {mail} Home",))}
    assert compile_words(['Label "Rio Trip" Home'], other).mandate is not None
    assert compile_words(['Label "Rio Trip" Home'], {**two, **other}).mandate is None


WORD = st.from_regex(r"[A-Z]{2,4}-[1-9][0-9]{0,3}", fullmatch=True)


@given(ticket=WORD, other=WORD, order=st.permutations(["at Nobu", "on 3 June 2027", "at 17:30", "for 4 people"]), left=st.integers(0, 3))
def test_each_value_reaches_its_own_argument(ticket, other, order, left):
    assert calls(f"Enroll {ticket} in {other}") == [("enroll", {"student": ticket, "course": other})]
    said = {"at Nobu": "restaurant", "on 3 June 2027": "day", "at 17:30": "time", "for 4 people": "guests"}
    kept = order[left:]
    expected = {said[part]: TABLE[said[part]] for part in kept}
    assert calls(f"Reserve a table {' '.join(kept)}") == ([("book_table", expected)] if "at Nobu" in kept else [])


@pytest.mark.parametrize(("order", "said"), [
    ("{ticket} closed", "begin with a word"), ("close {ticket", "bracket"), ("close [{ticket}", "bracket"), ("close {a b}", "bracket"), ("close ({ticket}]", "bracket"),
    ("[close] {ticket}", "begin with a word"), ("[close|] {ticket}", "begin with a word"), ("close ({ticket} a|{ticket} b) {ticket}", "twice"), ("close {size}", "free"),
    ("please close {ticket}", "`please` is left out"), ("now", "never fits"), ("go live", "never fits"), ("(the|a) {ticket}, close", "never fits"), ("Kindly [please] close {ticket}", "never fits"),
    ("close {ticket} {ticket}", "twice"), ("close {ticket=}", "bracket"), ("close " * 100 + "{ticket}", "characters"), ("close " + "[" * 3000 + "{ticket}" + "]" * 3000, "characters"),
])  # fmt: skip
def test_a_malformed_order_is_refused(order, said):
    with pytest.raises(ConfigError, match=said):
        load_profiles({"close_ticket": {"critical": {"ticket": "object"}, "free": ["size"], "intent": [order]}})


WORDED = {
    name: ToolProfile(critical={"ticket": "object", "who": "principal", "place": "place"}, text=("text",), when=("day",), intent=(said,))
    for name, said in {
        "assign": "assign {ticket} to {who:word} [in {place:word}]", "tell": "tell {who:word} {text}", "plan": "plan {ticket} on {day}", "hand": "hand {ticket} to {who}", "buy": "buy {ticket:words} [in {place:words}]", "drop": "drop [folder] {ticket:words}",
    }.items()
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [
    ("Assign T-5 to marta", {"ticket": "T-5", "who": "marta"}), ("assign T-5 to Marta in production, please", {"ticket": "T-5", "who": "Marta", "place": "production"}),
    ("Assign T-5 to who marta", {"ticket": "T-5", "who": "marta"}), ("Assign T-5 to marta now", {"ticket": "T-5", "who": "marta"}), ("Hand T-5 to Marta", {"ticket": "T-5", "who": "Marta"}),
    *((f"Assign T-5 to {who}", {}) for who in ("someone", "nobody", "noone", "themselves", "enough", "me", "all", "the porter", "a marta", "marta kowalski", "marta later", "marta instead", "marta?", "marta if possible", "marta, jonas", "who")),
    ("Buy oat milk in the shop", {}), ("Buy oat milk in new york", {"ticket": "oat milk", "place": "new york"}), ("Buy HDMI cables, please", {"ticket": "HDMI cables"}), ("Buy T-5", {"ticket": "T-5"}), ("Buy milk", {"ticket": "milk"}), ("Drop folder tmp", {"ticket": "tmp"}), ("Drop old tmp", {"ticket": "old tmp"}),
    *((f"Buy {what}", {}) for what in ("the milk", "all milk", "milk and eggs", "two of them", "very old oat milk cartons", "milk if needed", "it", "milk, eggs")),
    ("Hand T-5 to marta", {}), ("Tell Marta hello", {}), ("Plan T-5 on friday", {}), ("Plan T-5 on marta", {}),
])  # fmt: skip
def test_a_word_in_lower_case_is_a_value_where_the_order_says_so(text, expected):
    mandate = compile_words([text], WORDED).mandate
    assert ({n: a.value for n, a in mandate.steps[0].args.items()} if mandate else {}) == expected


@pytest.mark.parametrize("effect", ["write", "delete"])
@pytest.mark.parametrize("order", ["(add|drop) {item:words} [to|from] {list:words}", "(add|drop) {item:words} [to|from] the {list:words} list"])
@pytest.mark.parametrize(("text", "name"), [
    ("Add milk to the shopping list", "shopping"), ("add milk to my summer camping list please", "summer camping"), ("Add milk to the Camping list", "Camping"),
    *((f"Add milk to {what}", None) for what in ("the shopping", "a shopping list", "this list", "the list", "the next list", "the shopping cart", "the shopping list later", "the shopping list if it is out")),
])  # fmt: skip
def test_a_word_of_the_argument_lets_an_article_stand_before_its_value(text, name, order, effect):
    """Of a write. What is lost, paid or sent needs a value without an article: "Delete the old list"."""
    profile = ToolProfile(effect=effect, critical={"item": "name", "list": "object"}, intent=(order,))
    mandate = compile_words([text], {"add": profile}).mandate
    named = name if effect == "write" or name == "Camping" else None
    assert (mandate.steps[0].args["list"].value if mandate else None) == named


TOLD = {
    "mail": ToolProfile(effect="send", critical={"to": "principal"}, text=("body",), intent=("(email|tell) {to} (that|saying that) {body:rest}", "tell {to} [all] about {body:rest}")),
    "delete": ToolProfile(effect="delete", critical={"path": "object"}, intent=("delete {path}",)),
}  # fmt: skip
TOM, GONE = ("mail", {"to": "Tom"}), ("delete", {"path": "a.txt"})


@pytest.mark.parametrize(("text", "expected"), [
    ("Tell Tom that the contract is signed", [TOM]), ("Please email Tom that I can't come.", [TOM]), ("Tell Tom about the new office, please", [TOM]), ("Delete a.txt. Tell Tom that it is gone.", [GONE, TOM]),
    ('Tell Tom that "it works" and that she knows', [TOM]), ("Could you tell Tom that the deploy is done?", [TOM]),
    ("Tell Tom about lunch", [TOM]), ("Tell Tom that my number is +49 170 1234567 and 10% of it doesn't work", [TOM]), ("Tell Tom that /etc/hosts is at https://x.org/a", [TOM]),
    # somebody else, nothing told, a condition, something taken back, perhaps a part of the text
    *((text, []) for text in ("Tell Tom's boss that it is done", "Tell Tom or Ann that it is done", "Tell the boss of Tom that it is done", "Tell Tom that", "Tell Tom", "Tell Tom that it is done if it works", "Tell Tom that it is done once it is",
        "Tell Tom that it is done, but not the price", "Tell Tom that it is done, wait", "Tell Tom that it is done, don't name me", "Tell Tom that it is done and delete a.txt", "Tell Tom that it is done. Delete a.txt.", "Tell Tom that it is done. Never mind.",
        "I told Tom that it is done", "Tell Tom that it is done?")),
])  # fmt: skip
def test_the_rest_of_a_clause_is_what_to_tell(text, expected):
    mandate = compile_words([text], TOLD).mandate
    assert [(s.tool, {n: a.value for n, a in s.args.items()}) for s in (mandate.steps if mandate else ())] == expected


@pytest.mark.parametrize(("text", "expected"), [("Tell Tom by mail that it is done", {"to": "Tom", "via": "mail"}), ('Tell Tom: "it is done"', {"to": "Tom", "body": "it is done"}),
    ("Tell Tom it is done", None), ('Tell Tom\'s boss "it is done"', None)])  # fmt: skip
def test_a_text_needs_quotes_if_the_word_before_it_is_left_out(text, expected):
    told = ToolProfile(effect="send", critical={"to": "principal", "via": "value"}, text=("body",), intent=("tell {to} [by {via}] [that] {body:rest}",))
    via = {"properties": {"to": {"type": "string"}, "body": {"type": "string"}, "via": {"enum": ["mail", "fax"]}}, "required": ["to", "body"]}
    mandate = compile_words([text], {"tell": told}, {"tell": via}).mandate
    assert ({n: getattr(a, "value", None) or a.quote[0] for n, a in mandate.steps[0].args.items()} if mandate else None) == expected


def test_a_text_with_a_comma_is_named_as_the_reason():
    (dropped,) = compile_words(["Tell Tom that I'm late, the traffic is bad"], TOLD).dropped
    assert "behind the comma" in dropped.why


@pytest.mark.parametrize("order", ["tell {who} {text:rest}", "tell [{who}] {text:rest}", "tell {who} ({text:rest}|that)", "tell {who} (that|) {text:rest}", "assign {who:lines}", "assign {:word}", "assign {who:word=marta}", "assign {who:word} to {who}",
    "tell {who} that {text:rest} now", "tell {who} that {text:rest} [now]", "tell [that {text:rest}] to {who}", "tell that ({text:rest}|hello) to {who}", "tell {who} that {text:word}", "tell {who} that {ticket:rest}", "assign {who:word} on {day:words}", "assign {who:word} {hours:word}"])
def test_a_wrong_mark_of_an_argument_is_refused(order):
    with pytest.raises(ConfigError):
        load_profiles({"assign": {"critical": {"who": "principal", "hours": "amount"}, "when": ["day"], "text": ["text"], "intent": [order]}})


def test_only_what_no_order_can_begin_with_is_refused():
    (english,) = languages()
    idle = {*_IDLE.pattern.split("|")}
    assert {word for word in idle - english.determiners if not says("ahead", word, Known())} == set()
    assert parse_pattern("[please] close {ticket}")


def test_an_order_names_arguments_of_the_tool():
    with pytest.raises(ConfigError, match="`intent` names `tickets`"):
        check_arguments("close_ticket", ToolProfile(intent=("close {tickets}",)), {"ticket": STRING})
    both = {"close_ticket": ToolProfile(critical={"ticket": "object"}, intent=("close {ticket}", "close {tickets} now"))}
    assert compile_words(["Close T-5"], both, {"close_ticket": {"properties": {"ticket": STRING}}}).mandate is not None


@pytest.mark.parametrize(("given", "right"), [
    ("status=nope", False), ("status = open", True), ("on=maybe", False), ("on=true", True), ("lock=True", False), ("lock=true", True), ("count=many", False), ("count=-5", True), ("note=late", True), ("maybe=5", True), ("maybe=x", False),
])  # fmt: skip
def test_an_order_gives_only_values_of_the_schema(given, right):
    maybe = {"anyOf": [INTEGER, {"type": "null"}]}
    schemas = {"ticket": STRING, "status": {"enum": ["open"]}, "on": {"type": "boolean"}, "lock": {"type": "boolean", "enum": [True, False]}, "count": INTEGER, "note": STRING, "maybe": maybe}
    profile = ToolProfile(critical={"ticket": "object", "count": "amount"}, intent=(f"close {{ ticket }}, {{{given}}}",))
    with contextlib.nullcontext() if right else pytest.raises(ConfigError, match="which the schema refuses"):
        check_arguments("close_ticket", profile, schemas)
        mandate = compile_words(["Close T-5"], {"close_ticket": profile}, {"close_ticket": {"properties": schemas}}).mandate
        assert mandate is not None
        assert mandate.steps[0].args.keys() == {"ticket", given.partition("=")[0].strip()}


def test_a_synonym_stands_for_a_value_of_the_schema():
    for words, said in (({"ticket": {"it": "T-5"}}, None), ({"status": {"done": "gone"}}, "`synonyms` has `status=gone`"), ({"state": {"done": "closed"}}, "`synonyms` names `state`")):
        with contextlib.nullcontext() if said is None else pytest.raises(ConfigError, match=said):
            check_arguments("close_ticket", ToolProfile(synonyms=words), {"ticket": STRING, "status": {"enum": ["closed"]}})


FARM = {
    "move": ToolProfile(
        critical={"crate": "object", "to": "place", "by": "principal"},
        synonyms={"to": {"Yard": "Y-1"}}, intent=("move {crate} [to {to}] [(by|for) {by}] [[very] carefully]", "roll {crate} ([to {to}]) ([by {by}])", "Cafe\u0301: {crate}, {to}?", "store [crate] {crate}"),
    ),
    "call": ToolProfile(critical={"line": "principal", "gate": "object"}, intent=("call [line {line}] [{gate}]", "ring {line}"), synonyms={"line": {"front desk": "9"}}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [
    *((f"Move C-1 {' '.join(parts)}", {"crate": "C-1", "to": "Oslo", "by": "Ana"}) for parts in itertools.permutations(["to Oslo", "by Ana", "very carefully"])),
    ("Roll C-1 to Oslo by Ana", {"crate": "C-1", "to": "Oslo", "by": "Ana"}), ("Roll C-1 by Ana to Oslo", None), ("Move C-1 very", None),
    ("Café C-1 Oslo", {"crate": "C-1", "to": "Oslo"}), ("Move C-1 by Ana by Bob", None),
    ("Move C-1 to 5 Harbour Street for the Bank of Ohio", {"crate": "C-1", "to": "5 Harbour Street", "by": "Bank of Ohio"}), ("Move C-1 to 5 Harbour Street, Ann", None),
    ("Move C-1 to '5 Harbour Street, Bristol'", {"crate": "C-1", "to": "5 Harbour Street, Bristol"}), ("Move C-1 to Oslo, Bergen", None),
    ("Call line 12", {"line": "12"}), ("Ring 12", None), ("Ring +49 151 2233445", {"line": "+49 151 2233445"}), ("Ring 0151 700100", {"line": "0151 700100"}),
    ("Store crate C-1", {"crate": "C-1"}), ("Store the crate Apollo", {"crate": "Apollo"}), ("Store the crate", None),
    ("Ring the front desk", {"line": "9"}), ("Roll C-1 to the yard", {"crate": "C-1", "to": "Y-1"}),
    ("Could you ring the front desk?", {"line": "9"}), ("Could you ring Ana?", None), ("Call gates 12 and 15", {"gate": "12"}), ("Call gates 12", None), ("Call 12 and 15", None),
])  # fmt: skip
def test_parts_and_values_of_an_order(text, expected):
    mandate = compile_words([text], FARM, {"move": {"required": ["crate"]}, "call": {"required": []}}).mandate
    found = {n: a.value for n, a in mandate.steps[0].args.items()} if mandate else None
    assert found == expected


def test_an_order_of_many_parts_is_read_in_bounded_work():
    many = ToolProfile(critical={"item": "object"}, intent=("walk {item} " + " ".join(["[up on]"] * 40), "walk " + "[[up] on] " * 20 + "{item}"))
    for text, read in (("walk T-1" + " up on" * 3, True), ("walk T-1" + " up on" * 46, False), ("walk" + " up" * 90, False)):
        assert (compile_words([text], {"go": many}).mandate is not None) == read
