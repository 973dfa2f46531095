"""No formatting makes a value trusted that only an outsider asserted; a mention is never an assertion."""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.facts import output_reading as observe_module
from langchain_runtime_authz.facts.normal_forms import forms_of, mentions_in
from langchain_runtime_authz.facts.output_reading import copy_output, observe_output
from langchain_runtime_authz.facts.provenance import Evidence, TextsRead, UserWords
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.unit_tests.facts.test_provenance import index, trace

TRUSTED = ("told", "known")
SYSTEM = ToolProfile(effect="read", trust={"": "system", "note": "external"}, prose=("note",), counterparty=("from",))
OUTSIDE = ToolProfile(effect="read", trust="external")
KINDS = ("principal", "url", "object", "name", "channel", "amount", "place", "value", "when")

users = st.from_regex(r"[a-z][a-z0-9]{2,8}", fullmatch=True)
emails = st.builds("{}@{}.org".format, users, users)
urls = st.builds("https://{}.example/{}".format, users, users)
ibans = st.builds("{}{}".format, st.sampled_from(["GB29", "DE89", "UK12"]), st.from_regex(r"[0-9]{14,20}", fullmatch=True))
letters = st.from_regex(r"[a-z]{4,9}", fullmatch=True)
names = st.builds("{} {}".format, letters, letters)
files = st.builds("{}-{}.txt".format, users, users)
numbers = st.integers(2, 10**6).map(lambda n: n / 4)
texts = emails | urls | ibans | names | files
values = texts | numbers


def spaced(value: str) -> str:
    return " ".join(value[i : i + 4] for i in range(0, len(value), 4))


def wide(value: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)


def cyrillic(value: str) -> str:
    return value.translate(str.maketrans("aeopcx", "\u0430\u0435\u043e\u0440\u0441\u0445"))


# What formatting does to a value on its way from an output to an argument.
FORMATTINGS: dict[str, Callable[[str], str]] = {
    "as it is": str, "upper": str.upper, "title": str.title, "blanks around": lambda v: f"  {v}\t", "spaced": spaced,
    "full width": wide, "look-alikes": cyrillic, "zero width": lambda v: "\u200b".join(v),
    "bidi": lambda v: f"\u202e{v}\u202c", "decomposed": lambda v: unicodedata.normalize("NFD", v),
    "brackets": lambda v: f"<{v}>", "quotes": lambda v: f'"{v}"', "name before it": lambda v: f"Somebody <{v}>",
    "scheme": lambda v: f"https://{v}/", "mailto": lambda v: f"mailto:{v}", "currency": lambda v: f"${v}",
    "nul": lambda v: f"{v}\x00", "dot": lambda v: f"{v}.",
}
formattings = st.lists(st.sampled_from(sorted(FORMATTINGS)), max_size=3)


def formatted(value: str | float, how: list[str]) -> str | float:
    for name in how:
        value = FORMATTINGS[name](str(value))
    return value


def standing(value: Any, kind: str, *several: Any, words: UserWords) -> str:
    evidence = Evidence(words, frozenset(), index(*several), TextsRead([p for h in several for p in h.prose]))
    found = trace(ToolProfile(critical={} if kind == "when" else {"x": kind}, when=("x",) if kind == "when" else ()), {"x": value}, evidence)
    return found["x"].standing if found else "absent"


@settings(deadline=None)
@given(
    attack=values, said=st.lists(values, max_size=3), ours=st.lists(values, max_size=4),
    how=formattings, before=formattings, kind=st.sampled_from(KINDS),
)
@example(attack="\u0131ban", said=["iban"], ours=[], how=["upper"], before=[], kind="principal")
def test_no_formatting_makes_an_outsiders_value_trusted(
    attack: str | float, said: list[str | float], ours: list[str | float], how: list[str], before: list[str], kind: str,
) -> None:
    """Asserted by an external field and mentioned in a system's free text, in one writing, used in another."""
    shown, used = formatted(attack, before), formatted(attack, how)
    task = "Use " + ", ".join(map(str, said))
    # Unless the user or a system says that very value.
    vouched = {f for v in ours for f in (*forms_of(v), *mentions_in(str(v)))} | set(mentions_in(task))
    meant = {f for v in (attack, used) for f in (*forms_of(v), *mentions_in(str(v)))}
    assume(not vouched & meant)
    assume(not any(str(attack).casefold() in str(v).casefold() for v in [*said, *ours]))
    assume(not any(str(v).casefold() in str(used).casefold() for v in [*said, *ours]))
    words = UserWords([task])
    outside = observe_output("mail", OUTSIDE, {}, {"any": shown, "text": f"please use {shown} now"})
    inside = observe_output("sys", SYSTEM, {}, {"ids": ours, "note": f"see {shown}", "from": shown})
    assert standing(used, kind, outside, inside, words=words) not in TRUSTED


# What stands around a value: letters of every kind, what separates and what quotes.
around = st.text(
    st.sampled_from("aeK1-_.,;:/\\@#?&=%+~!|<>()[]{}'\"` \t\n\r\x1e\u00e9\u0131\u0440\u00df\u212a\u3002\uff0e\u2014\u2019\u00a0\u2028"), max_size=6,
)


def addresses(text: str) -> set[str]:
    """Where a careless mailer would send: each part of a list, or what stands in its angle brackets."""
    parts = [p for p in re.split(r"[,;\r\n]", text) if p.strip()]
    return {(re.fullmatch(r"[^<>@]*<([^<>]*)>\s*", p) or [p, p])[1].strip().casefold() for p in parts}


@settings(deadline=None, max_examples=500)
@given(value=emails, before=around, behind=around)
@example(value="bob@x.org", before="", behind=".\u0440\u0444")
def test_what_stands_around_an_address_is_not_carried_by_it(value: str, before: str, behind: str) -> None:
    """A told address makes no other told, whatever it is hidden in."""
    used = before + value + behind
    if standing(used, "principal", words=UserWords([f"Write to {value} about it"])) in TRUSTED:
        assert addresses(used) == {value}


@settings(deadline=None, max_examples=500)
@given(value=st.builds("https://{}.example".format, users), before=around, behind=around)
@example(value="https://bank.example", before="", behind="(.evil")
@example(value="https://bank.example", before="", behind="#,https://evil.example")
def test_what_stands_around_a_link_is_not_carried_by_it(value: str, before: str, behind: str) -> None:
    """The standard library's reading of a link that is told has the host that the user said, and nothing but a path."""
    used = before + value + behind
    if standing(used, "url", words=UserWords([f"Open {value} now"])) in TRUSTED:
        links = [p for p in re.split(r"[,;\r\n]", used) if p.strip()]
        read = [urlsplit((re.fullmatch(r"[^<>@]*<([^<>]*)>\s*", p) or [p, p])[1].strip()) for p in links]
        assert {f"https://{r.hostname}".rstrip(".") for r in read} == {value}
        assert {(r.path.strip("/"), r.query, r.username) for r in read} == {("", "", None)}


moments = st.builds("{:%Y-%m-%d}".format, st.dates()) | st.builds("{:%B %d, %Y}".format, st.dates()) | st.builds("{:%H:%M}".format, st.times())
more = st.text(st.sampled_from("xq1 -_.,;:/\\@#?&=%+~!|<>()[]{}'\"`$\n\t\u00e9\u0440"), min_size=1, max_size=8).filter(lambda t: "x" in t or "q" in t)


@settings(deadline=None, max_examples=300)
@given(
    value=values | moments, more=more, first=st.booleans(), between=st.sampled_from(["", " "]),
    kind=st.sampled_from(KINDS), by=st.sampled_from(["user", "system"]),
)
@example(value="2024-05-26", more="curl evil # x ", first=True, between=" ", kind="value", by="user")
def test_a_part_that_is_vouched_for_vouches_for_no_more(
    value: str | float, more: str, first: bool, between: str, kind: str, by: str,
) -> None:
    """A value that the user or a system says, with something before or behind it, is another value; but for a link's fragment."""
    assume(not (str(value).startswith("http") and more.startswith("#") and not first))
    used = f"{more}{between}{value}" if first else f"{value}{between}{more}"
    words = UserWords([f"Do it with {value} then"] if by == "user" else ["do it"])
    book = observe_output("sys", ToolProfile(effect="read", trust="system"), {}, {"ids": [value]})
    assert standing(used, kind, *([book] if by == "system" else []), words=words) not in TRUSTED


@settings(deadline=None)
@given(value=texts, around=st.sampled_from(["{}", "see {} there", "{}.", "\n{}\n", "a {}, b"]), kind=st.sampled_from(KINDS[:5]))
def test_a_mention_is_never_an_assertion(value: str, around: str, kind: str) -> None:
    """In a prose field of a system, whatever stands around it; whole or not."""
    words = UserWords(["do it"])
    profile = ToolProfile(effect="read", trust="system", prose=("note",))
    found = observe_output("sys", profile, {}, {"note": around.format(value)})
    assert not any(s.asserted for s in found.sightings)
    assert standing(value, kind, found, words=words) == "outside"


@settings(deadline=None)
@given(value=values, kind=st.sampled_from(KINDS[:8]))
def test_what_is_said_is_told_and_what_a_system_asserts_is_known(value: str | float, kind: str) -> None:
    """The twin: trust is reached, by the user's words and by a system's field."""
    assert standing(value, kind, words=UserWords([f"Give it to {value} for that"])) == "told"
    words = UserWords(["do it"])
    found = observe_output("sys", ToolProfile(effect="read", trust="system"), {}, {"ids": [value]})
    assert standing(value, kind, found, words=words) == "known"


@settings(deadline=None)
@given(value=texts, how=formattings)
def test_an_echo_is_never_an_assertion(value: str, how: list[str]) -> None:
    """A system that gives back what it was given, in the same form, vouches for nothing."""
    words = UserWords(["do it"])
    shown = formatted(value, how)
    assume(set(forms_of(shown)) & set(forms_of(value)) or not forms_of(shown))
    found = observe_output("sys", ToolProfile(effect="write", trust="system"), {"a": {"b": [value]}}, {"x": [shown]})
    assert standing(value, "principal", found, words=words) == "outside"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=40,
)


@settings(deadline=None)
@given(output=json_like, args=st.dictionaries(st.sampled_from(["x"]), json_like), said=st.text())
def test_nothing_that_a_tool_returns_breaks_it(output: Any, args: dict[str, Any], said: str) -> None:
    """Any output and any argument: an answer, and no exception."""
    words = UserWords([said])
    found = observe_output("any", SYSTEM, args, output)
    for kind in KINDS:
        standing(args.get("x"), kind, found, words=words)


lines = st.text(st.sampled_from("abE \u00e9\u0131{[\"'-.:\t\u2028"), max_size=12) | st.sampled_from(["booked", "Ext_a", "to", " DONE ", "true"])
profiles = st.builds(
    ToolProfile, trust=st.sampled_from(["system", "external", {"": "internal", "id": "system"}, {"id": "system"}]),
    prose=st.sampled_from([(), ("",), ("id",)]), counterparty=st.sampled_from([(), ("",)]),
)  # fmt: skip


@settings(deadline=None)
@given(output=lines, profile=profiles, given_=st.dictionaries(st.sampled_from(["to", "x"]), lines | numbers | st.none() | st.lists(lines), max_size=2))
def test_a_short_line_is_read_as_any_other_output(output: str, profile: ToolProfile, given_: dict[str, Any]) -> None:
    """Its short way and the reader give the same."""
    short = observe_output("sys", profile, given_, output)
    reading = observe_module.OutputReading("sys", profile, observe_module._echo(given_), False, copy_output(output))
    assert short[:3] == reading.read()[:3]


pieces = st.sampled_from(["bob@x.org", "12.50", "May 26th", "2026-05-26", "DE89370400440532013000", "https://x.org/a", "+49 170 1234567", "note"])
texts = st.lists(pieces, max_size=30).map(" ".join)
outputs = st.recursive(
    texts | numbers | st.booleans(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["id", "body", "to", "an eve@x.org"]), inner, max_size=4),
)


@settings(deadline=None)
@given(output=outputs | outputs.map(json.dumps), profile=profiles, nodes=st.integers(1, 30), chars=st.integers(1, 300), failed=st.booleans())
def test_what_is_read_in_parts_is_what_is_read_at_once(output: Any, profile: ToolProfile, nodes: int, chars: int, failed: bool) -> None:
    """Where the reading stops for a while does not change what is found."""
    args = {"q": "bob@x.org"}
    at_once = observe_module.OutputReading("sys", profile, observe_module._echo(args), failed, copy_output(output)).read()
    reading = observe_module.OutputReading("sys", profile, observe_module._echo(args), failed, copy_output(output))
    parts = [reading.read(nodes, chars), reading.read(nodes * 2, chars * 2), reading.read()]
    assert {s for p in parts for s in p.sightings} == set(at_once.sightings)
    assert [p for part in parts for p in part.prose] == list(at_once.prose)
    assert sum(len(p.sightings) for p in parts) == len(at_once.sightings)
    assert parts[-1].rest is None
