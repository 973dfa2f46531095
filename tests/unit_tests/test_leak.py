"""The search of a tool's output for the tokens of its call."""

from __future__ import annotations

import base64
import json
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from langchain_runtime_authz.credential.leak import REDACTED, UNSEARCHED, scrub

HEADER = base64.urlsafe_b64encode(b'{"alg":"ES256","typ":"runtime-authz+jwt"}').decode().rstrip("=")
PAYLOAD = base64.urlsafe_b64encode(b'{"sub":"alice","jti":"j-1"}').decode().rstrip("=")
SIGNATURE = base64.urlsafe_b64encode(bytes(range(190, 254))).decode().rstrip("=")
TOKEN = f"{HEADER}.{PAYLOAD}.{SIGNATURE}"


class Pair(NamedTuple):
    a: str
    b: str


def std(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def over_escaped(text: str) -> str:
    return "".join(f"%{ord(c):02X}" for c in text)


FORMS = {
    "plain": TOKEN,
    "bearer": f"Authorization: Bearer {TOKEN}\n",
    "sentence": f"I used {TOKEN}.",
    "signature": SIGNATURE,
    "json": json.dumps({"token": TOKEN}),
    "query": f"https://x.example/?a=1&token={quote(TOKEN)}&b=2",
    "escaped": over_escaped(TOKEN),
    "escaped base64": quote(std(TOKEN), safe=""),
    "mime": base64.encodebytes(f"Bearer {TOKEN}".encode()).decode(),
    "mime crlf": base64.encodebytes(TOKEN.encode()).decode().replace("\n", "\r\n "),
    "wrapped": "\n".join(TOKEN[i : i + 40] for i in range(0, len(TOKEN), 40)),
    **{f"std {n}": std("x" * n + TOKEN + "y" * n) for n in range(4)},
    **{f"url {n}": url("x" * n + TOKEN + "?" * n) for n in range(4)},
    **{f"unpadded {n}": url("?" * n + TOKEN).rstrip("=") for n in range(3)},
    **{f"signature std {n}": std("?" * n + SIGNATURE) for n in range(3)},
    "basic": "Basic " + std(f"user:{TOKEN}"),
    "mime in json": json.dumps({"x": base64.encodebytes(TOKEN.encode()).decode()}),
    "mime as bytes are shown": str(base64.encodebytes(TOKEN.encode())),
    "mime cr": base64.encodebytes(TOKEN.encode()).decode().replace("\n", "\r"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", [str, str.encode, lambda s: bytearray(s.encode())])
def test_a_token_is_found_in_any_common_form(form: str, shape: Any) -> None:
    """Plain, in base64 at any alignment, percent-encoded, wrapped, whole or its signature alone."""
    clean, found = scrub(shape(form), [TOKEN])
    assert found
    assert type(clean) is type(shape(form))
    text = clean if isinstance(clean, str) else bytes(clean).decode()
    assert REDACTED in text
    assert SIGNATURE[:20] not in text
    assert scrub(clean, [TOKEN]) == (clean, False)


def test_only_the_token_goes() -> None:
    """What stands around a token stays."""
    text = f"before {TOKEN} between {TOKEN} after"
    assert scrub(text, [TOKEN]) == (f"before {REDACTED} between {REDACTED} after", True)
    link = f"https://x.example/?a=1&token={TOKEN}&b=2"
    assert scrub(link, [TOKEN])[0] == f"https://x.example/?a=1&token={REDACTED}&b=2"


def test_containers_are_searched() -> None:
    """Values and keys, at any depth, in every common container; types are kept."""
    for value in (
        {"a": [{"b": TOKEN}]},
        {TOKEN: 1},
        ["x", ("y", TOKEN)],
        Pair("x", TOKEN),
        {TOKEN, "x"},
        frozenset({TOKEN}),
        MappingProxyType({"a": TOKEN}),
    ):
        clean, found = scrub(value, [TOKEN])
        assert found
        assert SIGNATURE not in repr(clean)
        assert REDACTED in repr(clean)
        assert isinstance(clean, dict if isinstance(value, MappingProxyType) else type(value))


def test_what_is_clean_is_the_same_object() -> None:
    """Nothing is copied where nothing was found, or nothing was minted."""
    value = {"a": [1, 2.5, None, True, "text % and\nlines", b"bytes", ("x",), {"y"}, object()]}
    value["b"] = ["%41" * 100, "50% of\n" * 100]
    assert scrub(value, [TOKEN])[0] is value
    leaky = [TOKEN]
    assert scrub(leaky, []) == (leaky, False)
    assert scrub(leaky, [""])[0] is leaky


def test_an_original_is_not_changed() -> None:
    """The tool's own object stays as it is."""
    value = {"a": [TOKEN]}
    scrub(value, [TOKEN])
    assert value == {"a": [TOKEN]}


def test_other_tokens_stay() -> None:
    """Only the tokens of this call are looked for; each of them is."""
    other = TOKEN[:-10] + "0123456789"
    assert scrub(other, [TOKEN]) == (other, False)
    assert scrub([TOKEN, other], [TOKEN, other]) == ([REDACTED, REDACTED], True)


class Stubborn(Exception):
    """Its text is its own."""

    def __str__(self) -> str:
        return f"failed with {TOKEN}"


def test_an_exception_keeps_its_type_and_loses_the_token() -> None:
    """Arguments, notes and attributes are cleaned; cause and context go."""
    try:
        try:
            raise ValueError("inner")
        except ValueError as inner:
            raise KeyError(f"refused {TOKEN}") from inner
    except KeyError as exc:
        exc.add_note(f"note {TOKEN}")
        exc.sent = {"headers": TOKEN}  # type: ignore[attr-defined]
        clean, found = scrub(exc, [TOKEN])
    assert found
    assert isinstance(clean, KeyError)
    assert clean.args == (f"refused {REDACTED}",)
    assert SIGNATURE not in repr(vars(clean))
    assert clean.__cause__ is clean.__context__ is None


def test_a_token_in_a_cause_breaks_the_chain() -> None:
    """A clean exception does not carry a leaking one along."""
    try:
        try:
            raise ValueError(TOKEN)
        except ValueError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as exc:
        clean, found = scrub(exc, [TOKEN])
    assert (found, str(clean), clean.__cause__, clean.__context__) == (True, "outer", None, None)


def test_a_clean_exception_keeps_its_chain() -> None:
    """Nothing found, nothing touched."""
    inner = ValueError("inner")
    outer = RuntimeError("outer")
    outer.__cause__ = inner
    assert scrub(outer, [TOKEN]) == (outer, False)
    assert outer.__cause__ is inner


def test_an_exception_that_still_shows_a_token_is_replaced() -> None:
    """A text of its own making, or a group of such, can not be cleaned in place."""
    stubborn: tuple[Exception, ...] = (Stubborn(), ExceptionGroup("group", [Stubborn(), ValueError("x")]))
    for exc in stubborn:
        clean, found = scrub(exc, [TOKEN])
        assert found
        assert type(clean) is RuntimeError
        assert SIGNATURE not in str(clean)
        assert type(exc).__name__ in str(clean)
    group, found = scrub(ExceptionGroup("group", [ValueError(TOKEN)]), [TOKEN])
    assert found
    assert group.exceptions[0].args == (REDACTED,)


def test_what_can_not_be_searched_is_not_passed_on() -> None:
    """Cycles and absurd depth end in a constant, and accuse nobody."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert scrub(cycle, [TOKEN]) == ([1, UNSEARCHED], False)
    deep: Any = TOKEN
    for _ in range(500):
        deep = [deep]
    clean, found = scrub(deep, [TOKEN])
    assert not found
    assert SIGNATURE not in repr(clean)
    assert UNSEARCHED in repr(clean)


def test_shared_objects_are_no_cycle() -> None:
    """The same object twice is searched twice."""
    shared = ["x"]
    value = [shared, shared]
    assert scrub(value, [TOKEN])[0] is value


def test_many_hits_take_one_pass() -> None:
    """A text full of tokens is cleaned in a single pass per form."""
    clean, found = scrub((TOKEN + " ") * 5_000, [TOKEN])
    assert found
    assert clean == (REDACTED + " ") * 5_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("tail", ["", "x", "ab", "abcdefg"])
def test_a_token_without_a_signature_is_searched_whole(tail: str) -> None:
    """An exchanged token may be of any shape: its last part alone is no mark of it, and searching ends."""
    token = f"opaque.value.that.is.not.ours.{tail}"
    assert scrub(f"hello {tail} world", [token]) == (f"hello {tail} world", False)
    for shown in (token, std(token), url("?" + token), over_escaped(token)):
        assert scrub(f"got {shown}", [token])[1]


@pytest.mark.timeout(20)
def test_a_token_too_short_to_tell_from_other_text_is_not_searched() -> None:
    """Else every text would hold it."""
    assert scrub("a text", ["a.b"]) == ("a text", False)
