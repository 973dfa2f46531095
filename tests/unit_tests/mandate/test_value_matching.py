"""Two ways to write a value are one only where they reach the same; what can be read in two ways equals nothing else."""

from zoneinfo import ZoneInfo

import pytest

from langchain_runtime_authz.mandate.model import AtLeast, AtMost, Contains, Eq, Not, StartsWith
from langchain_runtime_authz.mandate.text_arguments import TextWords, holds_borrowed, holds_unbacked
from langchain_runtime_authz.mandate.value_matching import is_same, is_within, meets_condition


@pytest.mark.parametrize(("kind", "constant", "equal", "other"), [
    ("amount", 45, [45.0, "45", "45.00", "+45"], [45.01, "4,5", "45 EUR", True, "1234567.5", None]),
    ("amount", 1200, [1200, "1200"], ["1,200", 1.2]),
    ("amount", "1234567.5", [1234567.5], ["12345675", 12345675]),
    ("amount", "1,200", ["1,200"], [1200, 1.2, "1.200"]),
    ("value", True, [True], [1, "true", False]),
    ("object", "Report A", ["report a", " Report  A "], ["Report B", "Report\u200b A", "Rep\u043ert A", "Ｒeport A", "Report\nA"]),
    ("value", "ls; rm x", ["ls; rm x"], ["ls;\nrm x", "ls; rm\u00a0x"]),
    ("value", "rm -rf /tmp/x", ["rm -rf /tmp/x "], ["rm -rf /tmp/X", "rm  -rf /tmp/x", "RM -RF /TMP/X"]),
    ("object", "docs/a.txt", ["docs/a.txt"], ["docs/A.txt", "./docs/a.txt", "docs/a.txt/"]),
    ("object", "aB9x", ["aB9x"], ["Ab9x", "AB9X"]),
    ("value", "1.10", ["1.10"], ["1.1", 1.1, "1.100"]),
    ("value", "21", [21, 21.0, "21"], ["21.0", 21.5]),
    ("amount", 1.5, [1.5, "1.5"], ["1,5"]),
    ("object", "DE89 3704 0044 0532 0130 00", ["DE89370400440532013000"], ["DE89370400440532013001"]),
    ("object", "May 26", ["may 26"], ["2025-05-26"]),
    ("object", "0045", ["0045"], [45, "45"]),
    ("principal", "+49 30 1234567", ["+49301234567", "49301234567"], ["+49 30 1234568", "4930 1234567"]),
    ("principal", "DE89 3704 0044 0532 0130 00", ["DE89370400440532013000"], ["DE89370400440532013001"]),
    ("principal", "bob@x.org", ["BOB@X.org", "Bob <bob@x.org>"], ["Pay 500 now <bob@x.org>", "bob@x.org,eve@x.org", "bob@x.org <eve@x.org>", "eve@x.org"]),
    ("url", "https://x.org/a", ["https://X.org/a/", "https://x.org:443/a"], ["https://x.org/a#b", "http://x.org/a", "https://x.org:80/a", "www.x.org/a", "https://x.org/A"]),
    ("url", "www.x.org", ["https://www.x.org"], ["http://www.x.org", "ftp://www.x.org"]),
    ("when", "2025-05-26", ["2025-05-26", "2025-05-26T10:00", "2025-05-26 10:00:00+02:00", "May 26, 2025"], ["2024-05-26", "2025-05-27", "10:00"]),
    ("when", "May 26", ["2025-05-26", "2024-05-26T10:00", "26 May"], ["2025-05-27"]),
    ("when", "2025-05-26T10:00", ["2025-05-26 10:00:00"], ["2025-05-26", "2025-05-26T11:00", "2025-05-26T10:00:30"]),
    ("when", "2025-05-26 10:00", ["2025-05-26T10:00"], ["2025-05-26T10:00+02:00", "2025-05-26T10:00Z", "2025-05-26T10:00+14"]),
    ("when", "26 May at 10:00", ["2025-05-26T10:00"], ["2025-05-26T10:00+02:00"]),
    ("when", "2025-05-26T10:00+02:00", ["2025-05-26T08:00:00Z"], ["2025-05-26T10:00Z", "2025-05-26T10:00"]),
    ("when", "03/04/2025", ["03/04/2025"], ["2025-04-03", "2025-03-04"]),
    ("when", "3/4/2027", ["3/4/2027 "], ["4/3/2027", "03/04/2027", "2027-04-03", "3 April 2027"]),
    ("when", "4 April 2027", ["4/4/2027", "04/04/2027", "2027-04-04"], ["3/4/2027"]),
    ("value", "3/4/2027", ["3/4/2027"], ["4/3/2027"]),
    ("when", "3 June", ["June 3", "3rd of june", "2027-06-03"], ["3 Junek", "Junek 3"]),
    ("when", "3 March", ["3 Mar.", "March 3, 2027"], ["3 Markets", "3 Mary"]),
    ("when", "10:00", ["10:00", "10:00 am", "10:00:00"], ["2025-05-26T10:00", "22:00", "10:00:30", "10:00:30 am"]),
    ("value", "12:30", ["12:30", "12:30:00"], ["12:30:59"]),
    ("when", "12:30 UTC", ["12:30 utc"], ["12:30+02:00", "12:30"]),
    ("when", "May 26, 2025 10:00:00.0 UTC", ["May 26, 2025 10:00 UTC"], ["May 26, 2025 10:00+05:00"]),
    ("value", "12:30:05", ["12:30:05"], ["12:30:50", "12:30"]),
    ("principal", "0031a00000AbCdE", ["0031a00000AbCdE "], ["0031A00000aBcDe"]),
    ("principal", "user_AbC", ["user_AbC"], ["user_abc"]),
    ("principal", "J. O'Brien", ["j. o'brien"], ["J O'Brien"]),
    ("principal", "Team 5", ["team 5"], ["team 6"]),
    ("principal", "Ann2@x.org", ["ann2@X.org", "Ann <ann2@x.org>"], []),
    ("principal", "12-345-678", ["12 345 678", "12345678"], ["+12 345 678", "+12345678"]),
    ("principal", 12345678, ["12345678"], ["+12345678"]), ("principal", "12-345678", ["12 345678", "12345678"], ["123456-78"]),
    ("url", "10.10.0.12", ["10.10.0.12"], ["10.100.1.2", "101.0.0.12"]), ("principal", "10.10.0.12", ["10.10.0.12"], ["10.100.1.2"]),
    ("channel", "C01AbC", ["C01AbC"], ["c01aBc"]),
    ("channel", "#Ops", ["#ops"], ["ops"]),
    ("url", "https://X2.org/a", ["https://x2.org/a"], []),
    ("text", "- a\n- b", ["- a\n- b\n"], ["- a - b", "- a\n- b\n- c", "- a"]),
])
def test_same(kind, constant, equal, other):
    assert [v for v in equal if not is_same(v, constant, kind)] == []
    assert [v for v in other if is_same(v, constant, kind)] == []


@pytest.mark.parametrize(("prefix", "inside", "outside"), [
    ("/docs", ["/docs/a", "/docs//a/./b"], ["/docs", "/docs/", "/docsx/a", "docs/a", "/docs/../etc", "/docs/.. /etc", "/docs/..%20/etc", "/docs\\..\\x", "/docs/%2e%2e/x", "/DOCS/a", "/docs/\n", "/docs/*", "/docs/a?.txt", "/docs/[a-z]", "/docs/{x,../secret}", "/docs/..;/x", "/docs/%252e%252e/x", ["/docs/a"], 5]),
    ("docs/", ["docs/a", "./docs/a"], ["/docs/a", "docs", "https://docs/a"]),
    ("https://x.org/a", ["https://x.org/a", "https://X.org/a/b?q=1"], ["http://x.org/a", "https://x.org/ab", "https://x.org/a/../b", "https://x.org/a/.. /b", "https://x.org/a/..%20/b", "https://x.org/a/./b", "https://x.org/a/%2E%2e/b", "https://x.org:8443/a", "https://me@x.org/a", "https://x.org.evil.net/a", "/a", "https://x.org"]),
    ("https://x.org", ["https://x.org", "https://x.org/a"], ["https://x.orga", "//x.org/a"]),
    ("https://x.org/a?q=1", ["https://x.org/a?q=1"], ["https://x.org/a", "https://x.org/a?q=1&r=2"]),
    ("https://[x.org/a", [], ["https://x.org/a", "https://[x.org/a"]), ("https://x.org:port", [], ["https://x.org", "https://x.org:port"]),
])
def test_within(prefix, inside, outside):
    assert [v for v in inside if not is_within(v, prefix)] == []
    assert [v for v in outside if is_within(v, prefix)] == []


@pytest.mark.parametrize(("condition", "values", "met"), [
    (Eq("Anna"), ["anna"], True), (Eq("Anna"), ["Bob", "anna"], True), (Eq("Anna"), [], False), (Eq(True), [True], True), (Eq(True), [1], None),
    (Contains("bill"), ["The Bill is here"], True), (Contains("bill"), ["billing"], False), (StartsWith("re"), ["RE: x"], True),
    (AtLeast(3), [3], True), (AtMost(3), [4], False), (AtLeast(3), ["x"], None),
    (AtMost("10"), [2], True), (AtLeast("2025-05-25"), ["2025-05-26"], True), (AtMost("2025-05-26"), ["2025-05-26T23:00"], True), (AtLeast("2025-05-26T10:00"), ["2025-05-26"], None), (AtLeast(3), ["1.200"], None), (AtLeast("2025-05-26"), [3], None),
    (Not(Eq("Anna")), ["Bob"], True), (Not(Eq("Anna")), [], False), (Not(Eq("Anna")), ["An\u200bna"], None), (Not(Not(Eq("Anna"))), ["anna"], True),
    *((Not(day), [when], None) for day in (Eq("tomorrow"), Eq("morgen"), Contains("Friday"), StartsWith("next week")) for when in ("2027-01-01", "2027-01-01T10:00:00Z")), (Not(Eq("2027-01-02")), ["2027-01-01"], True), (Not(Contains("2027-01-02")), ["2027-01-01"], True),
])
def test_conditions(condition, values, met):
    assert meets_condition(condition, values) is met


def test_a_condition_on_a_day_means_the_local_day():
    for condition, met in ((Eq("2027-06-06"), True), (AtMost("2027-06-05"), False), (Eq("2027-06-05T22:30Z"), True)):
        assert meets_condition(condition, ["2027-06-05T22:30Z"], (), ZoneInfo("Europe/Berlin")) is met


@pytest.mark.parametrize(("text", "allowed", "refused"), [
    ("See you on Monday at 10:00, room 12", "", False), ("b\u200bob@x.org", "", True),
    ("b\u200bob@x.org", "bob@x.org", False), ("id INV4711", "", True), ("id INV4711", "invoice inv4711", False),
    ("a CamelCaseNameOfIt", "", True), ("state-of-the-art and/or self-explanatory", "", False),
    ("p\u0430ypal.com", "paypal.com", True), ("明天下午3点在北京大学见面吧好的", "", False),
    ("hi\U000e0073\U000e0065", "", True), ("hi\ufe01\ufe02\ufe0f", "", True), ("hi \u2764\ufe0f\u200d\U0001f525", "", False),
    ("hi\ue001", "hi\ue001", False),
    ("see energy.example.org", "https://energy.example.org/hp", False), ("see example.org", "https://energy.example.org/hp", True),
    ("see https://energy.example.org/other", "https://energy.example.org/hp", True), ("see x.org", "https://me@x.org/", True),
    ("See EVIL.COM/x", "", True), ("See Evil.Com", "evil.com", False), ("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444/x", "", True),
    ("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444/x", "see \u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", False), ("evil\u3002com", "", True), ("你好\u3002再见", "", False),
    ("cc @eve", "", True), ("cc @Eve", "@eve", False), ("Closes #12", "", True), ("Closes #12", "see #12", False), ("#include <stdio.h>, #summer, ##Plan", "", False),
    ("at 5.9.8.3", "", True), ("//evil/x", "", True), ("\\\\evil\\x", "", True), ("https://x.org/a", "https://x.org/a", False),
    ("e.g. at 5 p.m. & C#, it&#39;s on", "", False), ("evil&#46;com", "", True), ("evil&period;com", "see evil.com", False),
    ("hi&#xe0073;&#xe0065;", "", True),
])
def test_unbacked(text, allowed, refused):
    assert holds_unbacked(text, allowed) is refused


def copied(text, allowed, *others):
    return holds_borrowed(text, allowed, map(TextWords, others))


def test_borrowed_finds_a_run_of_six_words_in_any_case():
    assert copied("so: A b, c d e f!", "", "x a b c D e f y")
    assert not copied("a b c d e", "", "a b c d e")
    assert not copied("a b c d e f", "a b c d e f", "a b c d e f")
    assert not copied("a b c d e f", "", "a b c e d f")
    assert copied("会议决定明天关闭北京的工厂", "", "我们的会议决定明天关闭北京的工厂")
    many = " ".join(f"w{n}" for n in range(60))
    assert copied(f"{many} end", "", "nothing", f"so {many}")
    assert not copied(many, "", " ".join(reversed(many.split())))
