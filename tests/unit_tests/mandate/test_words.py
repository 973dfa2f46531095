"""A turn of the user is read whole, or orders nothing. Each case without an order has a twin that orders."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate import words
from langchain_runtime_authz.mandate.languages import languages
from langchain_runtime_authz.mandate.model import Compiled, Const, OneOf, Span, Text
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

PROFILES = {
    "pay": ToolProfile(
        effect="pay", critical={"to": "principal", "amount": "amount"}, when=("date",),
        intent=("pay {to} {amount} [on {date}]", "(pay|send) {amount} to {to} [on {date}]"),
    ),
    "email": ToolProfile(effect="send", critical={"to": "principal"}, text=("subject", "body"), intent=(
        "(email|write to) {to} [saying {body}]", "(email|write to) {to}: {body}", "email {to} with subject {subject} and body {body}",
    )),
    "post": ToolProfile(effect="send", critical={"channel": "channel"}, text=("text",), intent=("post {text} to {channel}", "tell {channel} that {text}")),
    "delete": ToolProfile(effect="delete", critical={"path": "object"}, intent=("(delete|cancel) [file] {path}",)),
    "restart": ToolProfile(effect="admin", critical={"service": "object", "environment": "place"}, intent=("restart {service} [in {environment}]",)),
    "drain": ToolProfile(critical={"service": "object"}, intent=("drain {service}",)),
    "halt": ToolProfile(effect="admin", critical={"job": "object"}, intent=("(stop|hold) {job}", "put {job} on hold")),
    "note": ToolProfile(text=("text",), intent=("note {text}",)),
    "read": ToolProfile(effect="read", critical={"path": "object"}, intent=("read [file] {path}",)),
    "test": ToolProfile(effect="read", critical={"service": "object"}, intent=("test {service}",)),
}  # fmt: skip
SIGNATURES = {
    "pay": {"properties": {"currency": {"type": "string"}}, "required": ["to", "amount"]},
    "email": {"properties": {"to": {"type": "array"}}, "required": ["to", "body"]},
    "restart": {"properties": {"environment": {"type": "string"}}, "required": ["service"]},
}


def listed(compiled: Compiled) -> list[tuple[str, dict[str, object]]]:
    plain = {Const: lambda a: a.value, Text: lambda a: a.quote, OneOf: lambda a: a.values}
    return [(s.tool, {n: plain[type(a)](a) for n, a in s.args.items()}) for s in (compiled.mandate.steps if compiled.mandate else ())]


def calls(*texts: str) -> list[tuple[str, dict[str, object]]]:
    return listed(compile_words(texts, PROFILES, SIGNATURES))


BOB = ("pay", {"to": "Bob", "amount": 45, "currency": "EUR"})
ANA = ("pay", {"to": "Ana", "amount": 30, "currency": "EUR"})
A, B = ("delete", {"path": "a.txt"}), ("delete", {"path": "b.txt"})
WEB = ("restart", {"service": "web-3"})


def dated(date: str) -> tuple[str, dict[str, object]]:
    return ("pay", {**BOB[1], "date": date})


def mail(body: object, *to: str) -> tuple[str, dict[str, object]]:
    return ("email", {"to": to or ("b@x.org",), "body": body})


@pytest.mark.parametrize(("text", "expected"), [
    # courtesies
    ("please send 45 EUR to Bob, thanks!", [BOB]), ("Could you pay €45 to Bob?", [BOB]), ("It would be great if you could pay Bob 45 EUR", [BOB]), ("Oh, and pay Bob 45 EUR", [BOB]), ("Great! I'd like to pay Bob 45 EUR.", [BOB]), ("I need you to pay Bob 45 EUR. Good evening!", [BOB]), ("Please be so kind and pay Bob 45 EUR", [BOB]),
    ("Hi! Pay Bob 45 EUR as soon as possible. Have a nice day!", [BOB]), ("Delete the file a.txt now", [A]), ("Pay Bob 45 EUR.\nBest regards", [BOB]), ("Pay Bob 45 EUR.\nRegards, Mallory", []),
    ("¿Puedes delete a.txt?", [A]), ("Hola, ¿podrías delete a.txt? Gracias.", [A]), ("Puoi delete a.txt?", [A]), ("Você pode delete a.txt?", [A]), ("Necesito que delete a.txt", [A]),
    ("Hallo, könntest du bitte a.txt", []), ("Hola, pay Bob 45 EUR, por favor", [BOB]), ("Delete please the file a.txt, merci", [A]), ("Pay Bob 45 EUR first", []), ("Pay Bob 45 EUR für mich", []),
    # a part of the order before its verb
    ("On 3 June 2027, pay Bob 45 EUR", [dated("3 June 2027")]), ("In PROD please restart web-3", [("restart", {"service": "web-3", "environment": "PROD"})]), ("To Bob, pay 45 EUR", []), ("With Bob, pay 45 EUR", []), ("On 3 June 2027, I will pay Bob 45 EUR", []),
    # several orders
    ("Pay Bob 45 EUR and delete a.txt", [BOB, A]), ("- Pay Bob 45 EUR\n- delete the file a.txt", [BOB, A]), ("Two things: pay Bob 45 EUR, and then please delete a.txt", [BOB, A]), ("Pay Bob 45 EUR. Pay Bob 45 EUR.", [BOB]),
    ("Read the file notes.md. Then pay Bob 45 EUR.", [BOB]), ("Drain the service web-4, then restart the service web-3", [("drain", {"service": "web-4"}), WEB]), ("Restart web-3, then test web-3", [WEB]),
    ("Pay Bob 45 EUR and hold the job-5", [BOB, ("halt", {"job": "job-5"})]), ("Delete /home/me/notes", [("delete", {"path": "/home/me/notes"})]), ("Delete all/notes", []), ("Delete file a.txt and file b.txt", [A, B]), ("Delete file a.txt and file Old", []), ("So delete a.txt", [A]), ("If so, delete a.txt", []),
    ("Restart web-3. Restart web-4 in PROD.", [WEB, ("restart", {"service": "web-4", "environment": "PROD"})]), ("On 3 June 2027, pay Bob 45 EUR and delete a.txt", [dated("3 June 2027"), A]),
    # a shared verb
    ("Pay Bob 45 EUR and Ana 30 EUR", [BOB, ANA]), ("Send 45 EUR to Bob and 30 EUR to Ana", [BOB, ANA]), ("Pay Bob 45 EUR, Ana 30 EUR", []),
    # dates
    ("Pay Bob 45 EUR on Thursday, 3 June 2027", [dated("Thursday, 3 June 2027")]), ("Pay Bob 45 EUR on 3 June 2027 at 4 pm", [dated("3 June 2027 at 4 pm")]),
    # texts
    ('Email b@x.org and c@x.org saying "we meet in room 4"', [mail("we meet in room 4", "b@x.org", "c@x.org")]), ('Write to b@x.org: "see you"', [mail("see you")]),
    ('Email b@x.org saying "hi" and delete a.txt', [mail("hi"), A]), ('Email b@x.org with the subject "Hi" and the body "Bye"', [("email", {"to": ("b@x.org",), "subject": "Hi", "body": "Bye"})]),
    ('Post "Deploy done" to #ops', [("post", {"channel": "#ops", "text": "Deploy done"})]), ('Delete a.txt and email b@x.org saying "it is gone"', [A, mail("it is gone")]),
    # a tool that stops something
    ("Stop the job J-1", [("halt", {"job": "J-1"})]), ("Please put J-1 on hold", [("halt", {"job": "J-1"})]), ("Delete a.txt. Cancel b.txt", [A, B]),
])
def test_a_turn_orders_what_it_says(text, expected):
    assert calls(text) == expected


def test_a_value_is_the_stretch_of_the_text_where_it_stands():
    text = "Hi! Please pay Bob Smith 45 EUR."
    (step,) = (mandate := compile_words(["Thanks!", text], PROFILES, SIGNATURES).mandate).steps
    digest = content_digest(text)
    assert step.args["to"] == Const("Bob Smith", said=Span(digest, 15, 24))
    assert step.args["amount"] == Const(45, said=Span(digest, 25, 27))
    assert (step.times, mandate.source) == (1, "words")


NOTHING = {
    "question": ["Should I pay Bob 45 EUR?", "Did you pay Bob 45 EUR?", "Pay Bob 45 EUR?", "Would you pay Bob 45 EUR?", "Hi? Pay Bob 45 EUR", "Pay Bob 45 EUR, ok?", "Could you delete drafts?"],
    "condition": ["If Carol agrees, pay Bob 45 EUR", "Pay Bob 45 EUR unless it is late", "Pay Bob 45 EUR as soon as he asks", "Pay Bob 45 EUR once it rains", "Put J-1 on hold unless Ana objects"],
    "rate": ["Once a month, pay Bob 45 EUR", "Pay Bob 45 EUR. Once per delivery, please.", "Einmal im Monat, pay Bob 45 EUR", "Pay Bob 45 EUR. Une fois par mois.", "Pay Bob 45 EUR. Una vez al mes.", "Una volta al mese, pay Bob 45 EUR", "Pay Bob 45 EUR. Uma vez por mês."],
    "possible": [f"{said} delete a.txt." for said in ("Puedes", "Podrías", "Puoi", "Può", "Potresti", "Pode", "Consegue", "Dá para", "Tem como", "Vous pouvez", "You may", "Tu peux", "Du kannst")],
    "wish": [f"{said} delete a.txt." for said in ("Quiero", "Necesito", "Voglio", "Ho bisogno di", "Quero", "Preciso", "Je veux", "Ich will")],
    "question in Spanish": ["¿Delete a.txt?", "¿Delete a.txt.", "Delete a.txt. ¿Vale?", "¿Quiero delete a.txt?"],
    "nobody": [f"Pay {said} 45 EUR" for said in ("Personne", "Niemand", "Nadie", "Nessuno", "Ninguém", "Nobody", "Alguien")],
    "habit": ["I like to pay Bob 45 EUR", "We really like to pay Bob 45 EUR"],
    "future": ["Pay Bob 45 EUR. Evening.", "Tomorrow I will pay Bob 45 EUR", "Pay Bob 45 EUR tomorrow", "Pay Bob 45 EUR on Friday", "Pay Bob 45 EUR next week", "Pay Bob 45 EUR monthly"],
    "report": ["Mallory said: pay Bob 45 EUR", "He wants me to pay Bob 45 EUR", 'The mail says "pay Bob 45 EUR"', "I paid Bob 45 EUR", "Carol:\npay Bob 45 EUR", "I will pay Bob 45 EUR"],
    "negation": ["Do not pay Bob 45 EUR", "Don’t pay Bob 45 EUR", "Never pay Bob 45 EUR", "Delete a.txt but leave b.txt", "Don't stop the job J-1"],
    "retraction": [
        "Pay Bob 45 EUR. No, wait.", "Pay Bob 45 EUR. Scratch that.", "Pay Bob 45 EUR... kidding", "Delete a.txt...", "Pay Bob 45 EUR. It is a scam!", "Pay Bob 45 EUR. Make it 50.", "Pay Bob 45 EUR. Cancel the payment", "Pay Bob 45 EUR. Stop the payment",
        "Please pay Bob 45 EUR. Cancel.", "Please pay Bob 45 EUR. Revoked!", "Pay Bob 45 EUR, please stop", "Put J-1 on hold, no wait", "Pay Bob 45 EUR. Hold it.", "Stop. Pay Bob 45 EUR", "Stop, pay Bob 45 EUR",
        "Pay Bob 45 EUR. Stop paying Bob.", "Pay Bob 45 EUR. Cancel the Bob payment.", "Pay Bob 45 EUR. Note this is a joke",
    ],
    "remark": [
        *(f"Pay Bob 45 EUR{end}" for end in (". The invoice is fake.", ", he is lying.", ". We were hacked!", ", the real amount is lower", " because I was told so", ", since my boss has to agree", ". I take it back", ". Actually, 50.")),
        *(f"{said}pay Bob 45 EUR" for said in ("The test is over, so ", "They are fake, so ", "I am quoting Bob, ", "I hate it. Please ", "Actually, ", "FYI, ")),
    ],
    "limit": ["Pay Bob at most 45 EUR", "Pay Bob up to 45 EUR", "Pay Bob about 45 EUR", "Pay Bob 45 EUR. Stay below 100 EUR in total."],
    "permission": ["Pay Bob 45 EUR, but ask me first", "Wait for my OK, then pay Bob 45 EUR", "You may pay Bob 45 EUR", "Email b@x.org saying hi pending my approval"],
    "material": ["> Pay Bob 45 EUR", "```\nPay Bob 45 EUR\n```", "From: Mallory\n\nPay Bob 45 EUR", '"Pay Bob 45 EUR"', "Delete a.txt\n- Pay Bob 45 EUR", "Todo:\n- Pay Bob 45 EUR"],
    "not for us": ["Bob, please pay Carol 45 EUR", "Hi Bob, pay Carol 45 EUR", "Hi Bob\npay Carol 45 EUR", "Tell Bob to pay Carol 45 EUR", "Dear all, pay Bob 45 EUR", "To Kim, please pay Bob 45 EUR", "To Bob: pay 45 EUR", "Delete a.txt, Carol"],
    "other deed": ["Translate: Pay Bob 45 EUR", "Summarise this: Pay Bob 45 EUR", "Remind me to pay Bob 45 EUR", "Draft an email to b@x.org saying hi", "Show me how to log in and pay Bob 45 EUR"],
    "hypothesis": ["Imagine you pay Bob 45 EUR", "I would have to pay Bob 45 EUR", "I want to pay Bob 45 EUR", "I need to pay Bob 45 EUR", "Pay Bob 45 EUR, we really wish to", "I would need you to pay Bob 45 EUR", "Example: pay Bob 45 EUR", "Pay Bob 45 EUR for instance"],
    "more of an order": ["Pay Bob 45 EUR. The amount is 50 EUR.", "Delete a.txt. Path: b.txt", "Pay Bob.\n\nThe amount is 45 EUR.", "Pay Bob 45 EUR, to Carol", "Pay Bob 45 EUR. Note: rent", 'Pay Bob 45 EUR.\nNote "rent"'],
    "shared words": [
        "Restart web-3 and restart web-4 in PROD", "In PROD, restart web-3 and restart web-4", "Restart web-3 in PROD, restart web-4", "Pay Bob 45 EUR and pay Ana 30 EUR on 3 June 2027", "Pay Bob 45 and pay Ana 30 EUR",
    ],
    "sequence": ["Then pay Bob 45 EUR", "Afterwards, pay Bob 45 EUR", "Please then pay Bob 45 EUR", "Pay Bob 45 EUR afterwards", "Thanks! After that pay Bob 45 EUR", "Dann pay Bob 45 EUR", "Luego pay Bob 45 EUR", "Poi pay Bob 45 EUR", "Alors pay Bob 45 EUR"],
    "heading": [f"{said}: pay Bob 45 EUR" for said in ("FYI", "Evening", "Next", "Today", "Fine", "Again", "Heute", "Oggi")],
    "left over": [", pay Bob 45 EUR and run", "Pay Bob 45 EUR and hope for the best", "Pay Bob 45 EUR (as discussed)", "Pay Bob 45 EUR lol", "To begin, pay Bob 45 EUR", "As agreed with Bob, delete a.txt", "Pay Bob 45 EUR and Carol", "Pay Bob 45 EUR. Thanks, Ana Lee Kim Poe wants that"],
    "confusable": ["Pay B\u043eb 45 EUR", "Pay Bob 45 EUR\u200b", "Pay \uff22ob 45 EUR", "Pay Bob \u0664\u0665 EUR", "\u202ePay Bob 45 EUR", "Pay B\u0251b 45 EUR"],
    "text without quotes": ["Email b@x.org saying hi", "Write to b@x.org: hi", "Tell #ops that it is late", "Email b@x.org saying hi and delete a.txt"],
    "what to tell": ["Email b@x.org. Delete a.txt", "Email b@x.org, delete a.txt", "Email b@x.org\n- delete a.txt"],
    "what comes first may decide": ["Test web-3, then restart web-4", "Drain web-3, then restart web-3", "Read the room and delete a.txt", "Get a warrant and delete a.txt", "Pay Bob 45 EUR. Pay Bob 50 EUR", "Pay Bob 45 EUR and Bob 50 EUR"],
    "title": ["Stop\nPay Bob 45 EUR", "Delete Drafts\nDelete a.txt", "Delete Drafts. Delete a.txt"],
    "too much": [f"delete {' '.join(['it'] * 100)}", "; ".join(f"delete f{n}.txt" for n in range(17)), "Thanks! " * 20 + "Pay Bob 45 EUR", "\n".join(["Delete a.txt"] * 22)],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in NOTHING.items() for t in texts])
def test_a_turn_that_is_not_all_understood_orders_nothing(kind, text):
    compiled = compile_words([text], PROFILES, SIGNATURES)
    assert compiled.mandate is None, kind
    assert compiled.dropped


@pytest.mark.parametrize("text", ["Never mind.", "I changed my mind.", "What does it cost?", "Carol objects.", "Only on weekdays."])
def test_one_sentence_that_is_not_understood_voids_the_turn(text):
    assert calls("Pay Bob 45 EUR", "Thanks!", "Delete a.txt") == [BOB, A]
    assert calls("Pay Bob 45 EUR", text) == calls(f"Pay Bob 45 EUR. {text}") == calls(f"{text} Pay Bob 45 EUR.") == []


def tools(**intents: str) -> dict[str, ToolProfile]:
    return {name: ToolProfile(critical={"item": "object"}, intent=(intent,) if intent else ()) for name, intent in intents.items()}


@pytest.mark.parametrize(("text", "profiles", "expected"), [
    ("File M-1", tools(a="file {item}", b="keep {item}"), ["a"]), ("File M-1", tools(a="file {item}", b="file {item}"), []),
    ("File mail M-1", tools(a="file mail {item}", b="file chat {item}"), ["a"]), ("File M-1", tools(a="file mail {item}", b="file chat {item}"), []),
    ("File M-1", tools(a="file {item}", file_mail=""), ["a"]), ("File M-1", tools(a="file {item}", file_item="file"), []), ("File M-1", tools(file_item=""), []),
    ("Delete the item M-1", tools(delete_item=""), ["delete_item"]), ("Delete the item M-1", tools(remove_item="", item=""), []),
])
def test_one_tool_fits_and_a_tool_without_intent_is_ordered_by_its_name(text, profiles, expected):
    assert [tool for tool, _ in listed(compile_words([text], profiles))] == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Turn the desk lamp on", {"device": "lamp-2", "state": "on"}), ("Turn Max off", {"device": "max-1", "state": "off"}), ("Turn off Heater", {"device": "Heater", "state": "off"}),
    ("Turn off", None), ("Turn max off", None), ("Turn Heater on off", None), ("Turn the desk lamp on hold", None),
])
def test_two_choices_may_stand_side_by_side(text, expected):
    """Other values that touch may be one."""
    profile = ToolProfile(critical={"device": "object", "state": "value"}, synonyms={"device": {"desk lamp": "lamp-2", "Max": "max-1"}}, intent=("turn {device} {state}", "turn {state} {device}"))
    schema = {"properties": {"device": {"type": "string"}, "state": {"enum": ["on", "off"]}}, "required": ["device", "state"]}
    assert listed(compile_words([text], {"turn": profile}, {"turn": schema})) == ([("turn", expected)] if expected else [])


def test_a_draft_is_not_ordered():
    draft = {"pay": PROFILES["pay"].model_copy(update={"draft": True})}
    assert compile_words(["Pay Bob 45 EUR"], draft, SIGNATURES).mandate is None


@pytest.mark.parametrize("text", ["x" * 4_000_000, "Pay Bob 45 EUR. " * 250_000, "\n" * 4_000_000, '"' * 4_000_000])
def test_a_long_text_is_not_read_at_all(text, monkeypatch):
    monkeypatch.setattr(words, "languages", lambda: pytest.fail("it was read"))
    compiled = compile_words([text], PROFILES)
    assert compiled.mandate is None
    assert len(compiled.dropped[0].what) <= 80


def test_an_instance_has_read_the_language_data() -> None:
    """A first call may be decided on an event loop, where a file must not be read."""
    languages.cache_clear()
    RuntimeAuthz()
    assert languages.cache_info().currsize == 1


# --- orders that a verb suggests


def verb(effect: str, *intent: str, text: tuple[str, ...] = (), optional: tuple[str, ...] = (), **critical: Any) -> tuple[ToolProfile, dict[str, Any]]:
    """Return a profile and a schema. An argument is a kind, or a list of choices."""
    kinds = {n: "value" if isinstance(k, list) else k for n, k in critical.items()}
    profile = ToolProfile(effect=effect, critical=kinds, when=("date",), text=text, intent=intent)  # type: ignore[arg-type]
    properties = {n: {"type": "string", "enum": k} if isinstance(k, list) else {} for n, k in critical.items()}
    return profile, {"properties": properties, "required": [n for n in (*critical, *text) if n not in optional]}


SUGGESTED = {
    "send_money": verb("pay", "pay", "wire", payer="principal", to="principal", amount="amount", optional=("payer",)),
    "send_email": verb("send", "email", to="principal", text=("body",)),
    "share_file": verb("send", "share", path="object", user="principal", role=["viewer", "editor"], optional=("role",)),
    "cancel_booking": verb("delete", "cancel", "call off", booking_id="object"),
    "disable_user": verb("admin", "disable", user="principal"),
    "delete_row": verb("delete", "drop", table="object", row="object"),
    "move_file": verb("write", "move", source="object", destination="place"),
    "tip_points": verb("pay", "tip", to="principal", amount="amount"),
}  # fmt: skip
CANCELLED, TOLD = ("cancel_booking", {"booking_id": "B-12"}), ("send_email", {"to": "b@x.org", "body": "hi"})


@pytest.mark.parametrize(("text", "expected"), [
    ("Pay Bob Lee 45 EUR", ("send_money", {"to": "Bob Lee", "amount": 45})), ("Wire 45 EUR to Bob on 3 June 2027", ("send_money", {"to": "Bob", "amount": 45, "date": "3 June 2027"})),
    ('Email b@x.org saying "hi"', TOLD), ('Email b@x.org: "hi"', TOLD), ('Email "hi" to b@x.org', ("send_email", {"to": "b@x.org", "body": "hi"})),
    ("Share plan.md to Carol with role editor", ("share_file", {"path": "plan.md", "user": "Carol", "role": "editor"})),
    ("Please cancel the booking B-12", CANCELLED), ("Call off B-12", CANCELLED), ("Disable the user Bob", ("disable_user", {"user": "Bob"})), ("Disable b@x.org", ("disable_user", {"user": "b@x.org"})),
    *((text, None) for text in (
        # A lower-case word names nobody and nothing, and an acronym or an id nobody.
        "Pay rent 900 EUR", "Pay 45 EUR to rent", "Cancel dinner", "Cancel my booking", "Disable alarms", "Disable SSO", "Disable node_modules", "Share plan to Carol",
        # A title is not an order, and a comma or text without its sign may be anything.
        "Cancel Netflix", "Disable Telemetry", "Pay Bob, 45 EUR", "Email b@x.org hi", "Email b@x.org, hi", "Email hi to b@x.org",
        # Nothing is added to the order, and no other deed, giver or unit is read into it.
        "Cancel all", "Cancel B-12 of Bob", "Cancel B-12 with Bob", "Cancel the call with B-12", "Drop off B-12", "Share plan.md to Carol as owner", "Pay from Bob 45 EUR", "Tip Bob 45 EUR", "Restart B-12", "Booking B-12",
        # A target that the schema requires is neither left open nor guessed.
        "Drop row 5", "Drop T-5", "Drop T-5 R-6", "Move a.txt", "Move a.txt b.txt",
    )),
])
def test_a_verb_suggests_plain_orders_read_strictly(text, expected):
    profiles, signatures = {n: p for n, (p, _) in SUGGESTED.items()}, {n: s for n, (_, s) in SUGGESTED.items()}
    assert listed(compile_words([text], profiles, signatures)) == ([expected] if expected else [])
