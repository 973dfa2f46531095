"""The words compiler reads plain orders, and nothing else."""

from __future__ import annotations

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate import words
from langchain_runtime_authz.mandate.languages import languages
from langchain_runtime_authz.mandate.model import Const, Mandate, OneOf, Span, Text
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

PROFILES = {
    "send_money": ToolProfile(
        effect="pay", critical={"recipient": "principal", "amount": "amount", "currency": "value"}, when=("date",),
        text=("reference",), intent=("pay", "send", "transfer"),
    ),
    "move_money": ToolProfile(effect="pay", critical={"from_account": "principal", "to_account": "principal", "amount": "amount"}, intent=("transfer",)),
    "order_goods": ToolProfile(effect="pay", critical={"item": "object", "quantity": "amount"}, intent=("order", "buy")),
    "send_email": ToolProfile(effect="send", critical={"to": "principal", "cc": "principal"}, text=("subject", "body"), intent=("email", "send email", "write to")),
    "post_message": ToolProfile(effect="send", critical={"channel": "channel"}, text=("text",)),
    "share_file": ToolProfile(effect="send", critical={"path": "object", "user": "principal", "role": "value"}),
    "delete_file": ToolProfile(effect="delete", critical={"path": "object"}),
    "move_file": ToolProfile(effect="write", critical={"source": "object", "destination": "place"}, intent=("move", "rename")),
    "write_file": ToolProfile(effect="write", critical={"path": "name"}, text=("content",), intent=("save", "create")),
    "remove_row": ToolProfile(effect="delete", critical={"table": "object", "row_id": "object"}),
    "set_field": ToolProfile(effect="write", critical={"ticket": "object", "field": "value", "value": "value"}, intent=("set", "change")),
    "restart_service": ToolProfile(effect="admin", critical={"service": "object", "environment": "place"}),
    "run_sql": ToolProfile(effect="admin", critical={"statement": "value"}, intent=("run", "execute")),
    "fetch_url": ToolProfile(effect="fetch", critical={"url": "url"}),
    "read_file": ToolProfile(effect="read", critical={"path": "object"}),
}  # fmt: skip
SIGNATURES = {
    "send_money": {"properties": {"recipient": {"type": "string"}, "amount": {"type": "number"}, "currency": {"type": "string", "default": "EUR"}}, "required": ["recipient", "amount"]},
    "send_email": {"properties": {"to": {"type": "array"}, "cc": {"type": "array"}}, "required": ["to", "subject", "body"]},
    "share_file": {"properties": {"role": {"enum": ["viewer", "editor"]}}, "required": ["path", "user"]},
}  # fmt: skip


def ordered(*texts: str) -> Mandate | None:
    return compile_words(texts, PROFILES, SIGNATURES).mandate


def calls(*texts: str) -> list[tuple[str, dict[str, object]]]:
    mandate = ordered(*texts)
    steps = mandate.steps if mandate else ()
    return [
        (s.tool, {n: a.value if isinstance(a, Const) else a.quote if isinstance(a, Text) else a for n, a in s.args.items()})
        for s in steps
    ]


BOB = {"recipient": "Bob", "amount": 45, "currency": "EUR"}


@pytest.mark.parametrize(("text", "expected"), [
    ("Pay Bob 45 EUR", [("send_money", BOB)]),
    ("please send 45 EUR to Bob, thanks!", [("send_money", BOB)]),
    ("Could you send €45 to Bob?", [("send_money", BOB)]),
    ("Pay 45 to Bob", [("send_money", {"recipient": "Bob", "amount": 45})]),
    ("Pay Bob 1,234.50 USD", [("send_money", {"recipient": "Bob", "amount": 1234.5, "currency": "USD"})]),
    ("Pay Bob 1,250 EUR", [("send_money", {**BOB, "amount": 1250})]),
    ("Restart the service web-3 in production", [("restart_service", {"service": "web-3", "environment": "production"})]),
    ("Share the file path plan.md with Carol", [("share_file", {"path": "plan.md", "user": "Carol"})]),
    ("Delete these files:\n- a.txt\n- b.txt", [("delete_file", {"path": "a.txt"}), ("delete_file", {"path": "b.txt"})]),
    ("Delete the following files: a.txt, b.txt", [("delete_file", {"path": "a.txt"}), ("delete_file", {"path": "b.txt"})]),
    ("Pay Bob 45 EUR on 3 June 2027", [("send_money", {**BOB, "date": "3 June 2027"})]),
    ("Transfer 45 EUR from Savings to Checking", [("move_money", {"from_account": "Savings", "to_account": "Checking", "amount": 45})]),
    ("Order 3 toner cartridges", [("order_goods", {"quantity": 3, "item": "toner cartridges"})]),
    ("Delete the file draft.txt", [("delete_file", {"path": "draft.txt"})]),
    ('Delete the file "My Report.pdf"', [("delete_file", {"path": "My Report.pdf"})]),
    ("Remove row 5 from the table users", [("remove_row", {"row_id": "5", "table": "users"})]),
    ("Rename a.txt to b.txt", [("move_file", {"source": "a.txt", "destination": "b.txt"})]),
    ("Share the file path plan.md to carol@x.org", [("share_file", {"path": "plan.md", "user": "carol@x.org"})]),
    ("Run this sql statement: DELETE FROM users WHERE id = 5", [("run_sql", {"statement": "DELETE FROM users WHERE id = 5"})]),
    ("Read the file notes.md. Then pay Bob 45 EUR.", [("send_money", BOB)]),
    ("Fetch the url https://x.org/a?b=c", [("fetch_url", {"url": "https://x.org/a?b=c"})]),
    ('Post the message "Deploy done" to #ops', [("post_message", {"channel": "#ops", "text": "Deploy done"})]),
    ('Create a file called n.txt with the content "hi"', [("write_file", {"path": "n.txt", "content": "hi"})]),
    ("- Pay Bob 45 EUR\n- delete the file a.txt", [("send_money", BOB), ("delete_file", {"path": "a.txt"})]),
    ("It would be great if you could pay Bob 45 EUR on Thursday, 3 June 2027", [("send_money", {**BOB, "date": "Thursday, 3 June 2027"})]),
    ("Email carol@x.org and tell her that it is done", [("send_email", {"to": ("carol@x.org",), "subject": ("it is done",), "body": ("it is done",)})]),
    ("Create n.txt with this content:\n- a\n- b", [("write_file", {"path": "n.txt", "content": "- a\n- b"})]),
    ("Pay Bob 45 EUR on 3 June 2027 at 4 pm", [("send_money", {**BOB, "date": "3 June 2027 at 4 pm"})]),
    ("In production, please restart the service web-3", [("restart_service", {"service": "web-3", "environment": "production"})]),
    ("Please be so kind and pay Bob 45 EUR", [("send_money", BOB)]),
    ("On 3 June 2027, to Bob, transfer 45 EUR please", [("send_money", {**BOB, "date": "3 June 2027"})]),
])
def test_a_plain_order_has_its_values_in_their_roles(text, expected):
    assert calls(text) == expected


def test_a_value_is_the_stretch_of_the_text_where_it_stands():
    text = "Hi! Please pay Bob Smith 45 EUR."
    (step,) = ordered(text).steps
    digest = content_digest(text)
    assert step.args["recipient"] == Const("Bob Smith", said=Span(digest, 15, 24))
    assert step.args["amount"] == Const(45, said=Span(digest, 25, 27))
    assert (step.times, ordered(text).source) == (1, "words")


def test_dictated_words_are_the_text_and_recipients_are_a_list():
    (call,) = calls("Email carol@x.org and bob@x.org saying we meet in room 4")
    said = ("we meet in room 4",)
    assert call == ("send_email", {"to": ("carol@x.org", "bob@x.org"), "subject": said, "body": said})
    (call,) = calls('Send an email to carol@x.org with subject "Hi" and body "See you"')
    assert call == ("send_email", {"to": ("carol@x.org",), "subject": "Hi", "body": "See you"})
    (call,) = calls('Email carol@x.org "See you"')
    assert call == ("send_email", {"to": ("carol@x.org",), "subject": ("See you",), "body": "See you"})
    two = {"send_note": ToolProfile(effect="send", critical={"to": "principal"}, text=("body", "footer"), intent=("email",))}
    assert compile_words(['Email carol@x.org "See you"'], two).mandate is None  # it may be either text


@pytest.mark.parametrize(("text", "pairs"), [
    ("Pay Bob 45 EUR and Carol 3000 EUR", [("Bob", 45), ("Carol", 3000)]),
    ("Send 45 EUR to Bob, and 30 EUR to Carol", [("Bob", 45), ("Carol", 30)]),
])
def test_pairs_are_not_crossed(text, pairs):
    assert [(args["recipient"], args["amount"]) for _, args in calls(text)] == pairs


def test_a_list_is_one_step_each_unless_an_amount_would_be_shared():
    assert [args["path"] for _, args in calls("Delete the files a.txt, b.txt and c.txt")] == ["a.txt", "b.txt", "c.txt"]
    assert calls("Pay Bob and Carol 45 EUR") == calls("Pay Bob 45 EUR and Carol") == []


@pytest.mark.parametrize(("text", "tool"), [
    ("Give Bob 45 EUR", None), ("Give Bob a donation of 45 EUR", None), ("Donate 45 EUR to Bob", "make_donation"), ('Post "hello"', None), ('Tweet "hello"', "tweet"),
    ('Post the message "hello" to #ops', "post_message"), ("Remove a.txt", None), ("Remove the file a.txt", "remove_file"), ("Remove the user Bob", None),
])
def test_a_tool_is_not_chosen_because_only_it_can_be_called(text, tool):
    several = {
        "make_donation": ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount"}, intent=("give", "donate")),
        "send_money": ToolProfile(effect="pay", critical={"account": "object", "to": "principal", "amount": "amount"}, intent=("give", "send")),
        "tweet": ToolProfile(effect="send", text=("text",), intent=("post", "tweet")),
        "post_message": PROFILES["post_message"],
        "remove_file": ToolProfile(effect="delete", critical={"path": "object"}, intent=("remove",)),
        "drop_user": ToolProfile(effect="delete", critical={"user": "object", "realm": "object"}, intent=("remove",)),
    }
    required = {n: {"required": [a for a in (*p.critical, *p.text) if a != "realm"]} for n, p in several.items()}
    mandate = compile_words([text], several, required).mandate
    assert [s.tool for s in (mandate.steps if mandate else ())] == ([tool] if tool else [])


def test_two_tools_that_fit_order_nothing_and_a_repeated_order_is_one():
    two = {"pay_sepa": PROFILES["move_money"], "pay_wire": PROFILES["move_money"], "delete_file": PROFILES["delete_file"]}
    assert compile_words(["Transfer 45 EUR from A1 to B2"], two).mandate is None
    assert calls("Transfer 45 EUR to Bob") == []  # `move_money` lacks only its source
    cancel = {n: ToolProfile(effect="delete", critical={f"{n}_id": "object"}, intent=("cancel",)) for n in ("order", "event")}
    assert [s.tool for s in compile_words(["Cancel order 12"], cancel).mandate.steps] == ["order"]
    assert compile_words(["Cancel 12"], cancel).mandate is None
    assert len(calls("Pay Bob 45 EUR", "Pay Bob 45 EUR.")) == 1
    assert calls("Pay Bob 45 EUR", "Pay Bob 50 EUR") == []


NOTHING = {
    "question": ["Should I pay Bob 45 EUR?", "Did you pay Bob 45 EUR?", "Pay Bob 45 EUR?", "Would you pay Bob 45 EUR?", "Hi? Pay Bob 45 EUR"],
    "condition": ["If Carol agrees, pay Bob 45 EUR", "Pay Bob 45 EUR unless it is late", "Pay Bob 45 EUR as soon as he asks", "Pay Bob 45 EUR once it rains"],
    "future": ["Tomorrow I will pay Bob 45 EUR", "Pay Bob 45 EUR tomorrow", "Pay Bob 45 EUR on Friday", "Pay Bob 45 EUR next week", "Pay Bob 45 EUR monthly"],
    "report": ["Mallory said: pay Bob 45 EUR", "He wants me to pay Bob 45 EUR", 'The mail says "pay Bob 45 EUR"', "I paid Bob 45 EUR", "Carol:\npay Bob 45 EUR"],
    "negation": ["Do not pay Bob 45 EUR", "Don’t pay Bob 45 EUR", "Never pay Bob 45 EUR", "Delete a.txt but leave b.txt"],
    "retraction": ["Pay Bob 45 EUR. No, wait.", "Pay Bob 45 EUR. Scratch that.", "Pay Bob 45 EUR... kidding", "Pay Bob 45 EUR. It is a scam!", "Pay Bob 45 EUR. Make it 50."],
    "limit": ["Pay Bob at most 45 EUR", "Pay Bob up to 45 EUR", "Pay Bob about 45 EUR", "Pay Bob 45 EUR. Stay below 100 EUR in total."],
    "permission": ["Pay Bob 45 EUR, but ask me first", "Wait for my OK, then pay Bob 45 EUR", "You may pay Bob 45 EUR", "Email b@x.org saying hi pending my approval"],
    "material": ["> Pay Bob 45 EUR", "```\nPay Bob 45 EUR\n```", "From: Mallory\n\nPay Bob 45 EUR", "Please pay Bob 45 EUR.\nRegards, Mallory", '"Pay Bob 45 EUR"'],
    "not for us": ["Bob, please pay Carol 45 EUR", "Hi Bob, pay Carol 45 EUR", "Tell Bob to pay Carol 45 EUR", "Write to Bob to email b@x.org saying hi", "Email b@x.org to message Bob that it is late", "Dear all, pay Bob 45 EUR"],
    "other deed": ["Translate: Pay Bob 45 EUR", "Summarise this: Pay Bob 45 EUR", "Remind me to pay Bob 45 EUR", "Draft an email to b@x.org saying hi"],
    "hypothesis": ["Imagine you pay Bob 45 EUR", "I would have to pay Bob 45 EUR", "I want to pay Bob 45 EUR", "I would need you to pay Bob 45 EUR", "Example: pay Bob 45 EUR"],
    "quantifier": ["Delete all files", "Pay everyone 45 EUR", "Pay Bob 45 EUR each", "Pay Bob half of 45 EUR", "Pay Bob 45 EUR twice", "Pay Bob 45 EUR or 50 EUR"],
    "role": ["Share carol@x.org with plan.md", "Share rita access to plan.md", "Pay from Bob 45 EUR", "Share plan.md with carol@x.org as owner"],
    "label": ["Pay Bob 45 EUR. The amount is 50 EUR.", "Delete a.txt. Path: b.txt", "Pay Bob.\n\nThe amount is 45 EUR.", "Pay Bob 45 EUR. The account is empty.", "Pay Bob 45 EUR, to Carol"],
    "date": ["Pay Bob 45 EUR on Friday, 3 June 2027", "Pay Bob 45 EUR on Thursday, 3 June", "Pay Bob 45 EUR until 3 June 2027"],
    "container": ["Delete draft.txt in Documents", "Delete the first line of a.txt", "Delete the branch old from the repo prod", "Remove row 5"],
    "number": ["Pay Bob 1.250", "Pay Bob 1.5k EUR", "Pay Bob 5pm", "Pay Bob 45-50 EUR", "Pay Bob 3.4.2026", "Pay Bob 45%", "Pay Bob 007", "Pay Bob 3 May", "Pay Bob 45 30"],
    "unit": ["Pay Bob 45 cents", "Pay Bob 45 thousand EUR", "Order laptops for 2000 EUR", "Pay invoice 4711"],
    "part of a name": ["Pay Bob's landlord 45 EUR", "Delete My report.pdf", "Delete new report.pdf", "Delete Budget Report.pdf", "Pay my brother 45 EUR"],
    "confusable": ["Pay B\u043eb 45 EUR", "Pay Bob 45 EUR\u200b", "Pay \uff22ob 45 EUR", "Pay Bob \u0664\u0665 EUR", "\u202ePay Bob 45 EUR", "Pay B\u0251b 45 EUR"],
    "left over": ["In #ops, post that it is late", ", pay Bob 45 EUR and run", "Pay Bob 45 EUR for the pizza", "Pay Bob 45 EUR and hope for the best", "Pay Bob at Acme 45 EUR", "Pay Bob 45 EUR (as discussed)", "Pay Bob 45 EUR lol", "To begin, pay Bob 45 EUR", "In production, restart the service web-3 and delete a.txt", "Show me how to log in and pay Bob 45 EUR"],
    "where dictation ends": ["Email b@x.org saying hi and delete a.txt", "Email b@x.org saying hi. Delete a.txt", "Email b@x.org saying hi tomorrow", "Email b@x.org saying hi, I want to see it", "Email b@x.org with this text: hi. It is late.", "Run this query: DELETE FROM t. Scratch that."],
    "ambiguous": ["Delete row 5 and row 6 in the table users or logs", "Transfer 45 EUR from Alice and to Bob", "Send Carol Bob 45 EUR 50 EUR", "Run ls and then rm", "Run late"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in NOTHING.items() for t in texts])
def test_what_is_no_plain_order_orders_nothing(kind, text):
    compiled = compile_words([text], PROFILES, SIGNATURES)
    assert compiled.mandate is None, kind
    assert compiled.dropped


@pytest.mark.parametrize("text", ["Never mind.", "I changed my mind.", "What does it cost?", "Carol objects.", "Only on weekdays."])
def test_one_sentence_that_is_not_understood_voids_the_turn(text):
    assert calls("Pay Bob 45 EUR", "Thanks!")
    assert ordered("Pay Bob 45 EUR", text) is None
    assert ordered(f"Pay Bob 45 EUR. {text}") is None
    assert ordered(f"{text} Pay Bob 45 EUR.") is None


def test_a_later_sentence_that_may_say_more_of_an_order_is_none_of_its_own():
    note = ToolProfile(effect="write", text=("text",), intent=("note",))
    read = {**PROFILES, "add_note": note}
    assert compile_words(["Note: rent"], read, SIGNATURES).mandate
    for text in ("Pay Bob 45 EUR. Note: rent", "Delete a.txt. Note: it is late", 'Pay Bob 45 EUR.\nNote "rent"'):
        assert compile_words([text], read, SIGNATURES).mandate is None


def test_a_tool_that_has_a_verb_for_its_own_leaves_it_to_no_other():
    file, row = ToolProfile(effect="delete", critical={"path": "url"}, intent=("remove",)), ToolProfile(effect="delete", critical={"row_id": "object"})
    assert [s.tool for s in compile_words(["Delete row T-5"], {"delete_row": row}).mandate.steps] == ["delete_row"]
    assert compile_words(["Remove row T-5"], {"clear": file, "delete_row": row}).mandate is None


def test_who_is_written_about_is_not_written_to():
    assert ordered("Write to carol@x.org about mallory@x.org") is None


def test_a_tool_without_its_words_is_asked_for_by_its_name_and_a_draft_by_none():
    one = {"archive_mail": ToolProfile(effect="write", critical={"mail_id": "object"})}
    assert compile_words(["Archive mail 42"], one).mandate
    assert compile_words(["Delete mail 42"], one).mandate is None
    assert compile_words(["Archive mail 42"], {"archive_mail": one["archive_mail"].model_copy(update={"draft": True})}).mandate is None
    assert compile_words(["Archive"], {"archive": ToolProfile(effect="write")}).mandate is None


STRANGE = {
    "terminateInstance": (ToolProfile(effect="admin", critical={"instanceId": "object"}), {"instanceId": {"type": "string"}}),
    "mv": (ToolProfile(effect="write", critical={"src": "object", "dst": "object"}), {"src": {"type": "string"}, "dst": {"type": "string"}}),
    "rmPath": (ToolProfile(effect="delete", critical={"path": "object"}), {"path": {"type": "string"}}),
    "cancelEvent": (ToolProfile(effect="delete", critical={"eventId": "object"}), {"eventId": {"type": "string"}}),
    "cancelPlan": (ToolProfile(effect="delete", critical={"plan": "object"}), {"plan": {"type": "string"}}),
    "deleteMail": (ToolProfile(effect="delete", critical={"mailId": "object"}), {"mailId": {"type": "string"}}),
    "runJob": (ToolProfile(effect="admin", critical={"job": "object", "replicas": "value"}), {"job": {"type": "string"}, "replicas": {"type": "integer"}}),
    "writeFile": (ToolProfile(effect="write", critical={"path": "object"}, text=("content",)), {"path": {"type": "string"}, "content": {"type": "string"}}),
    "transferFunds": (ToolProfile(effect="pay", critical={"toAccount": "principal", "fromAccount": "object", "amt": "amount"}), {"toAccount": {"type": "string"}, "amt": {"type": "number"}}),
    "refundOrder": (ToolProfile(effect="pay", critical={"orderId": "object", "sum": "amount"}, text=("reason",)), {"orderId": {"type": "string"}}),
    "slackPost": (ToolProfile(effect="send", critical={"channel": "channel"}, text=("text",), intent=("post",)), {"channel": {"type": "string"}, "text": {"type": "string"}}),
}  # fmt: skip


def strange(text: str) -> list[tuple[str, dict[str, object]]]:
    profiles = {n: p for n, (p, _) in STRANGE.items()}
    signatures = {n: {"properties": s, "required": [*s]} for n, (_, s) in STRANGE.items()}
    mandate = compile_words([text], profiles, signatures).mandate
    return [(s.tool, {n: getattr(a, "value", a) for n, a in s.args.items()}) for s in (mandate.steps if mandate else ())]


@pytest.mark.parametrize("text", [
    "Restart i-123", "Enable i-123", "Copy a.txt to b.txt", "Email Bob saying 'hi'",  # another deed
    "Cancel Netflix", "Delete Apollo", "Could you cancel subscriptions?",  # a thing of any kind
    'Run job nightly "rm -rf /"', "Transfer 45 yen to Bob", "Transfer 45 Tesla shares to Bob",  # not a number, not money
    "Transfer of 45 EUR to Bob", "Refund of order A-12",  # a heading
    "Refund order A-12 for the lamp", "Refund order A-12 for Carol",  # a part, or something else
    'Post "hello"', 'Post "hello" with @bob', 'Post "hello" from @bob', 'Post "hello" for @bob', 'Post "hello" @bob',  # nowhere
    "Delete a.txt, Carol", "Delete a.txt, mate", "Delete a.txt and similar", "Cancel event M-4, Carol",  # spoken to
    "Transfer 45 EUR to Bob x2", "Transfer 45 EUR to Bob #1", "Transfer 45 EUR to Bob for 7",  # left over
    "Delete a.txt...",  # trails off
    'Tell Bob to message Ana "hi"', "Tell Bob to text #ops that I pay",  # he does it
    "Get rid of the idea of a.txt", "Refund Bob 45 EUR", "Delete a.txt at the office",  # another thing
])
def test_tools_of_strangers_are_not_guessed(text):
    assert strange(text) == []


def test_what_names_a_thing_tells_the_tool():
    assert strange('Post "hello" to @acme') == [("slackPost", {"channel": "@acme", "text": "hello"})]
    assert strange("Rm path a.txt") == [("rmPath", {"path": "a.txt"})]
    assert strange("Delete mail A-12") == [("deleteMail", {"mailId": "A-12"})]
    assert strange("Cancel the Netflix plan") == [("cancelPlan", {"plan": OneOf(values=("Netflix plan", "Netflix"))})]


HOME = {
    "switch_device": (ToolProfile(effect="write", critical={"device": "object", "state": "value"}, intent=("switch", "turn")), {"device": {"type": "string"}, "state": {"enum": ["ON", "off"]}}),
    "open_port": (ToolProfile(effect="admin", critical={"instance": "object", "port": "amount"}), {"instance": {"type": "string"}, "port": {"type": "integer"}}),
    "send_crypto": (ToolProfile(effect="pay", critical={"to": "principal", "amount": "amount", "currency": "value"}, intent=("send",)), {"to": {"type": "string"}, "amount": {"type": "number"}, "currency": {"type": "string"}}),
    "book_hotel": (ToolProfile(effect="pay", critical={"hotel": "object", "guests": "amount"}, when=("check_in", "check_out")), {"hotel": {"type": "string"}, "guests": {"type": "integer"}}),
    "set_role": (ToolProfile(effect="admin", critical={"user": "principal", "role": "value"}, intent=("make",)), {"user": {"type": "string"}, "role": {"enum": ["viewer", "editor"]}}),
    "freeze_card": (ToolProfile(effect="admin", critical={"card": "object"}), {"card": {"type": "string"}}),
    "revoke_role": (ToolProfile(effect="admin", critical={"user": "principal", "role": "value"}), {"user": {"type": "string"}, "role": {"enum": ["viewer", "editor"]}}),
    "restart_app": (ToolProfile(effect="admin", critical={"app": "object", "environment": "value"}), {"app": {"type": "string"}, "environment": {"enum": ["staging", "production"]}}),
    "open_ticket": (ToolProfile(effect="write", critical={"title": "name", "priority": "value"}), {"title": {"type": "string"}, "priority": {"enum": ["low", "urgent"]}}),
    "share_plan": (ToolProfile(effect="send", critical={"plan": "object", "user": "principal", "role": "value"}), {"plan": {"type": "string"}, "user": {"type": "string"}, "role": {"enum": ["viewer", "editor"]}}),
    "set_salary": (ToolProfile(effect="admin", critical={"employee": "principal", "salary": "amount"}), {"employee": {"type": "string"}, "salary": {"type": "number"}}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [
    ("Turn the porch light off", {"device": "porch light", "state": "off"}),
    ("Switch on the ceiling fan", {"device": "ceiling fan", "state": "ON"}),
    ("Send 3 BTC to Ana Lee", {"to": "Ana Lee", "amount": 3, "currency": "BTC"}),
    ("Freeze the travel card", {"card": ("travel card", "travel")}),
    ("Set the salary of Ana Lee to 5000", {"employee": "Ana Lee", "salary": 5000}),
    ("Set Ana Lee's salary to 5000", {"employee": "Ana Lee", "salary": 5000}),
    ("Open port 80 on web-3", {"instance": "web-3", "port": 80}),
    ("Book hotel Astoria from 3 June 2027 to 6 June 2027 for 2 guests", {"hotel": "Astoria", "check_in": "3 June 2027", "check_out": "6 June 2027", "guests": 2}),
    ("Make Ana Lee an editor", {"user": "Ana Lee", "role": "editor"}),
    ("Revoke the editor role from Ana Lee", {"user": "Ana Lee", "role": "editor"}),
    ("Restart app web-3 in staging", {"app": "web-3", "environment": "staging"}),
    ('Open an urgent ticket called "Crash"', {"title": "Crash", "priority": "urgent"}),
    ("Share plan P-5 with Ana Lee as an editor", {"plan": "P-5", "user": "Ana Lee", "role": "editor"}),
    *((text, None) for text in (
        "Switch on the ceiling fan, because the old one broke", "Cancel the card with Bob", "Freeze the card of Bob", "Raise the salary of Ana Lee 500", "Freeze the open card Visa", "Freeze the card On Fire", "Freeze the card Sales And More", "Freeze on Bob", "Freeze the travel card for me", "Freeze the travel card today", "Freeze a travel card", "Turn the light for Bob off",
        "Send 3 BTC to the partner of Ana", "Open port 80 for 5 EUR on web-3", "Set Bob's friend's salary to 5000", "Switch the off light Garage on",
        "Turn off the porch light as Bob did", "Turn off the idea of dinner", "Open port 80 on web-3 on Friday", "Send 3 of 5 BTC to Ana",
        "Revoke the role from Ana Lee as an editor", "Revoke the editor from Ana Lee", "Restart app web-3 from staging", 'Open the urgent ticket called "Crash"', 'Open an urgent gate called "Crash"',
        "Share plan P-5 with Ana Lee as the editor", "Share plan P-5 with the editor Ana Lee", "Make the editor role Ana Lee", "Send 3 BTC to Ana because Bob said to send 5", "Set Ana Lee's boss's salary to 5000", "Open port 80 on web-3 and web-4", "Freeze card 1 or 2",
    )),
])
def test_tools_of_any_kind_are_read_by_their_schemas(text, expected):
    profiles, signatures = {n: p for n, (p, _) in HOME.items()}, {n: {"properties": s, "required": [*s]} for n, (_, s) in HOME.items()}
    mandate = compile_words([text], profiles, signatures).mandate
    found = [{n: getattr(a, "value", None) or a.values for n, a in s.args.items()} for s in (mandate.steps if mandate else ())]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize("text", ["x" * 4_000_000, "Pay Bob 45 EUR. " * 250_000, "\n" * 4_000_000, '"' * 4_000_000])
def test_a_long_text_is_not_read_at_all(text, monkeypatch):
    monkeypatch.setattr(words, "languages", lambda: pytest.fail("it was read"))
    compiled = compile_words([text], PROFILES)
    assert compiled.mandate is None
    assert len(compiled.dropped[0].what) <= 80


def test_hostile_schemas_raise_nothing():
    for schema in ({"properties": 3, "required": 4}, {"required": [{}, []]}, {"properties": {"recipient": {"enum": 3, "anyOf": 5}, 7: None}}):
        compile_words(["Pay Bob 45 EUR"], PROFILES, {"send_money": schema})
    long = ToolProfile(effect="pay", critical={"r" * 200: "principal"})
    assert compile_words(["Pay Bob"], {"pay": long, "p" * 200: long}).mandate is None


def test_an_instance_has_read_the_language_data() -> None:
    """A first call may be decided on an event loop, where a file must not be read."""
    languages.cache_clear()
    RuntimeAuthz()
    assert languages.cache_info().currsize == 1
