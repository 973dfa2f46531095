"""Normal forms: what is the same value, and what only looks like it."""

import time
import unicodedata
from collections.abc import Callable
from typing import Literal

import pytest

from langchain_runtime_authz._display import one_line
from langchain_runtime_authz._text import _SIGNS, normalize
from langchain_runtime_authz.facts.normal_forms import forms_of, mentions_in, skeleton, tidy
from langchain_runtime_authz.facts.provenance import MAX_TEXT, UserWords
from langchain_runtime_authz.mandate.message_places import stated_text
from langchain_runtime_authz.mandate.text_arguments import TextWords, holds_unbacked

SAME = [
    ("Bob@Example.org", "bob@example.org"), (" bob@example.org ", "bob@example.org"),
    ("GB29 NWBK 6016 1331 9268 19", "GB29NWBK60161331926819"), ("gb29nwbk60161331926819", "GB29NWBK60161331926819"),
    ("https://Example.org/", "http://example.org"), ("www.example.org/a", "https://www.example.org:443/a/"),
    ("1,200.00", 1200), ("1.200,00", 1200.0), ("1.234.567,89", 1234567.89), ("-0.0", 0), ("1 200", 1200), ("98,70", 98.7), ("+49 (170) 1234-567", "+491701234567"),
    ("Landlord  Notices", "landlord notices"), ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
    ("cafe\u0301", "caf\u00e9"), ("2024-05-26", "May 26th, 2024"), ("26 May 2024", "2024-5-26"),
    ("2024-05-26 17:30", "5:30 pm"), ("2024-05-26T17:30:00.000+02:00", "5:30 pm"),
    ("Sunday, May 26, 2024 at 17:30", "2024-05-26"), ("2024-05-26T17:00", "5pm"), ("0:00", "12 am"), (13, "13"),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_one_value_in_two_writings(one: object, other: object) -> None:
    """They share a form."""
    assert set(forms_of(one)) & set(forms_of(other))


DIFFERENT = [
    ("bob@example.org", "bob@example.org.evil.net"), ("bob@example.org", "b0b@example.org"),
    ("alice", "\u0430lice"),  # Cyrillic
    ("alice", "\uff41lice"),  # full width
    ("alice", "al\u200bice"),  # zero width
    ("https://example.org", "https://example.org@evil.net"), ("https://example.org", "https://example.org:8443"),
    ("https://example.org/a", "https://example.org/b"), ("https://example.org", "https://ex\u0430mple.org"),
    ("1.5", "15"), ("13", "130"), (1, True), ("GB29NWBK60161331926819", "GB29NWBK60161331926818"),
    ("report.txt", "report.txt.exe"), ("2024-05-26", "2024-05-27"), ("2024-05-26", "curl evil.net # 2024-05-26"),
    ("17:30", "eve, 17:30"), ("17:00", "1.5 pm"), ("17:00", "5 pmx"), ("2024-05-26", "2024-05-26 2025-01-01"),
    ("17:30", "18:00 17:30"), ("02:00", "17:30+02:00"),
    ("book@example.org", "boo\u212a@example.org"),  # the Kelvin sign, a K after NFC
    ("weiss", "wei\u00df"),
    ("LI21088100002324013AA", "L\u013121088100002324013AA"),  # a dotless i, an I in capitals
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=ascii)
def test_two_values_never_meet(one: object, other: object) -> None:
    """However alike they look, what they reach differs."""
    assert not set(forms_of(one)) & set(forms_of(other))


@pytest.mark.parametrize(
    "value", [None, True, "", "   ", "a\u202eb", "a\x00b", "\ufb01le", "x" * 3000, [], {}, float("inf"), float("nan"), b"x"],
    ids=ascii,
)
def test_a_value_that_cannot_be_known_has_no_form(value: object) -> None:
    """Invisible or compatibility characters, not a scalar, too long."""
    assert forms_of(value) == ()


def test_a_text_mentions_what_stands_in_it() -> None:
    """Identifiers, numbers, dates and times; digits of a date, an address or a name are no numbers."""
    found = mentions_in(
        "Pay 1,200.00 to GB29 NWBK 6016 1331 9268 19 or bob@x.org by June 13 at 5:30 pm. See https://x.org/a?b=1."
        " File bill-2023.txt, room 1j1l-2k3j, 10%.",
    )
    assert {"iban:GB29NWBK60161331926819", "email:bob@x.org", "url:x.org/a?b=1", "date:-06-13", "time:17:30"} <= set(found)
    assert {f for f in found if f.startswith("num:")} == {"num:1200", "num:10"}


def test_a_skeleton_is_what_is_seen() -> None:
    """Look-alikes fall together there, and only there."""
    assert skeleton("\u0430lice@Example.org") == skeleton("alice@examp1e.org".replace("1", "l"))
    assert UserWords(["write to alice@example.org"]).resembles("\u0430lice@example.org")
    assert not UserWords(["write to alice@example.org"]).resembles("alice@example.org")
    assert not UserWords(["write to alice@example.org"]).resembles("mallory@example.org")


SAID = [
    ("Send it to bob@example.org, please", "bob@example.org", True),
    ("Send it to bob@example.org, please", "ob@example.org", False), ("Send it to bob@example.org, please", "example.org", False),
    ("Read 'bill-december-2023.txt'", "bill-december-2023.txt", True), ("Read 'bill-december-2023.txt'", "december", False),
    ("Refund Spotify", "spotify", True), ("Refund Spotify", "Spot", False), ("on June 13", "13", False),
    ("on June 13", "2024-06-13", True), ("on June 13, 2024", "June 13", True), ("on June 13, 2024", "2031-06-13", False),
    ("on June 13, 2024", "run it 2024-06-13", False), ("delete file 2", "2", True), ("delete the file", "the", True),
    ("delete the file", "t", False), ("> pay UK12345678901234567890\nIs this right?", "UK12345678901234567890", False),
    ("```\npay UK12345678901234567890\n```\nIs this right?", "UK12345678901234567890", False),
    ("pay UK12345678901234567890", "uk12 3456 7890 1234 5678 90", True), ("open README.Md and read", "readme", False),
    ("see \u201cwww.example.org/a\u201d.", "www.example.org/a", True),
    ("www.example.org\u2019s page", "https://www.example.org", True),
    ("read example.org/a, then go on", "https://example.org/a", True),
    ("read example.org/a, then go on", "https://example.org", False), ("read notes.md", "https://notes.md", False),
    ("read example.org.evil.io", "https://example.org", False), ("read evil.example.org", "https://example.org", False),
    ("read example.org@evil.io", "https://example.org", False), ("read example.org:8080/a", "https://example.org", False),
    ("write to bob@example.org", "https://example.org", False), ("Pay Bob EUR45", 45, True), ("Pay Bob 45EUR", 45, True),
    ("pay de89 3704 0044 0532 0130 00 today", "DE89370400440532013000", True),
    ("pay at61 1904 3002 3457 3201 now", "AT611904300234573201", True),
    ("pay DE89-3704-0044-0532-0130-00", "DE89370400440532013000", True),
    ("pay de89 3704 0044 0532 0130 01", "DE89370400440532013001", False),
    ("Pay Bob 10, never Mallory", "Mallory", False),  # that it orders nothing is the mandate's to say
]


@pytest.mark.parametrize(("text", "value", "said"), SAID, ids=repr)
def test_what_the_user_said(text: str, value: object, said: bool) -> None:
    """As a whole, in their own words: neither a part of a name nor what they pasted."""
    assert UserWords([stated_text(text)]).said(forms_of(value)) is said


def test_all_texts_of_a_task_count() -> None:
    """The newest ones if there are too many."""
    words = UserWords(["Pay Mallory 90", "Stop: pay Bob 45"])
    assert all(words.said(forms_of(v)) for v in ("Mallory", 90, "Bob", 45))
    filler = "x " * (MAX_TEXT // 2 - 20)
    words = UserWords(["Pay Mallory", filler, "Pay Bob 45 and nothing else, and tell me when it is done"])
    assert (words.said(forms_of("Mallory")), words.said(forms_of("Bob"))) == (False, True)


@pytest.mark.parametrize("text", [
    "'a" * 25_000, "> ```\n" * 8_000, "a.com " * 8_000, "a" * 50_000, "a@" * 25_000, "1 " * 25_000,
    "1,111" * 10_000, "AB12" * 12_000, "AB12 AAAA " * 5_000, "http://" * 7_000, "(1) " * 12_000, "." * 50_000,
    "jan " * 12_000, "12:" * 16_000, "@" * 50_000, "\u0301" * 50_000, "\u0301\u0323" * 50_000, " " * 50_000, "+1 " * 16_000,
], ids=lambda t: ascii(t[:10]))
def test_repetition_ends(text: str) -> None:
    """A pattern that backtracks would not come back from this."""
    began = time.process_time()
    mentions_in(text)
    assert not UserWords([text, text]).said(("text:nowhere",)) and time.process_time() - began < 1


@pytest.mark.parametrize("text", ["\u0301\u0323" * 25_000, "\uff9e\u0301" * 25_000, "\u0f73\u0301" * 25_000], ids=lambda t: ascii(t[:2]))
@pytest.mark.parametrize("scan", [tidy, skeleton, one_line, TextWords, lambda t: holds_unbacked(t, "")], ids=["tidy", "skeleton", "inert", "words", "unbacked"])
def test_combining_marks_take_linear_time(scan: Callable[[str], object], text: str) -> None:
    began = time.process_time()
    scan(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFKD"])
def test_a_text_in_pieces_equals_only_what_unicode_equates(form: Literal["NFC", "NFKC", "NFKD"]) -> None:
    marks = ["\u0323" * n + "\u0301" * m for n in range(0, 64, 9) for m in range(0, 64, 9)]
    texts = [f"e{mark}{more}" for mark in marks for more in ("", "\u0323", "\u0301x", "\u034f\u0301x")]
    for text in texts:
        assert unicodedata.normalize(form, normalize(form, text)) == unicodedata.normalize(form, text)
        if len(text) <= 30:
            assert normalize(form, text) == unicodedata.normalize(form, text)
    equal: dict[str, set[str]] = {}
    for text in texts:
        equal.setdefault(normalize(form, text), set()).add(unicodedata.normalize(form, text))
    assert {len(same) for same in equal.values()} == {1}


def test_a_run_of_each_combining_mark_is_cut() -> None:
    """A character whose normal form begins with a mark would lengthen a run if `_SIGNS` did not find it."""
    marks = [c for c in map(chr, range(0x110000)) if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])]
    assert len(marks) > 900
    assert [ascii(c) for c in marks if not _SIGNS.search(c * 31)] == []
