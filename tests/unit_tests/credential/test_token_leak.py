"""The search of a tool's output for the tokens of its call."""

import base64
import json
import pickle
import quopri
import re
import time
from array import array
from collections import ChainMap, OrderedDict, UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from threading import Lock
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, PrivateAttr, SecretBytes, SecretStr, computed_field, model_serializer

from langchain_runtime_authz.credential import token_leak
from langchain_runtime_authz.credential.token_leak import REDACTED, UNSEARCHED, TokenSearch
from langchain_runtime_authz.langgraph.output_filter import OutputFilter

HEADER = base64.urlsafe_b64encode(b'{"alg":"ES256","typ":"runtime-authz+jwt"}').decode().rstrip("=")
PAYLOAD = base64.urlsafe_b64encode(b'{"sub":"alice","jti":"j-1"}').decode().rstrip("=")
SIGNATURE = base64.urlsafe_b64encode(bytes(range(190, 254))).decode().rstrip("=")
TOKEN = f"{HEADER}.{PAYLOAD}.{SIGNATURE}"


def scrub(value: Any, tokens: list[str]) -> tuple[Any, bool]:
    search = TokenSearch(tokens)
    return search.clean(value), search.found


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
    "plain": TOKEN, "bearer": f"Authorization: Bearer {TOKEN}\n", "sentence": f"I used {TOKEN}.", "signature": SIGNATURE,
    "json": json.dumps({"token": TOKEN}), "query": f"https://x.example/?a=1&token={quote(TOKEN)}&b=2",
    "escaped": over_escaped(TOKEN), "escaped base64": quote(std(TOKEN), safe=""),
    "mime": base64.encodebytes(f"Bearer {TOKEN}".encode()).decode(),
    "mime crlf": base64.encodebytes(TOKEN.encode()).decode().replace("\n", "\r\n "),
    "wrapped": "\n".join(TOKEN[i : i + 40] for i in range(0, len(TOKEN), 40)),
    **{f"std {n}": std("x" * n + TOKEN + "y" * n) for n in range(4)},
    **{f"url {n}": url("x" * n + TOKEN + "?" * n) for n in range(4)},
    **{f"unpadded {n}": url("?" * n + TOKEN).rstrip("=") for n in range(3)},
    **{f"signature std {n}": std("?" * n + SIGNATURE) for n in range(3)}, "basic": "Basic " + std(f"user:{TOKEN}"),
    "mime in json": json.dumps({"x": base64.encodebytes(TOKEN.encode()).decode()}),
    "mime as bytes are shown": str(base64.encodebytes(TOKEN.encode())),
    "quoted-printable": quopri.encodestring(f"Bearer {TOKEN}, and more".encode()).decode(),
    "mime cr": base64.encodebytes(TOKEN.encode()).decode().replace("\n", "\r"),
}


OPAQUE = "Ab3+/" * 10 + "x-Y.z_~=="
PHP = json.dumps({"t": OPAQUE}).replace("/", "\\/")
ESCAPED_FORMS = {
    "php": PHP, "php in json": json.dumps(PHP), "php in json in json": json.dumps(json.dumps(PHP)),
    ".net": json.dumps(OPAQUE).replace("+", "\\u002B").replace("/", "\\u002f"), "python": repr(OPAQUE).replace("+", "\\x2b"),
    "html": OPAQUE.replace("+", "&#43;").replace("/", "&#x2F;").replace("=", "&#61;").replace("_", "&lowbar;"),
    "html in html": OPAQUE.replace("+", "&amp;#43;").replace("/", "&amp;sol;"),
    "url": f"https://x.example/?t={quote(OPAQUE, safe='')}", "url in url": quote(quote(OPAQUE, safe=""), safe=""),
    "url in url in url": quote(quote(quote(OPAQUE, safe=""), safe=""), safe=""), "markdown": OPAQUE.replace("_", "\\_").replace(".", "\\."),
    "url in php": json.dumps(quote(OPAQUE)).replace("/", "\\/"), "shell": OPAQUE[:20] + "\\\n" + OPAQUE[20:],
    "html, wrapped": OPAQUE[:20].replace("+", "&#43;") + "\n " + OPAQUE[20:], "unescaped": OPAQUE,
}  # fmt: skip


@pytest.mark.parametrize("form", ESCAPED_FORMS.values(), ids=ESCAPED_FORMS)
@pytest.mark.parametrize("shape", [str, str.encode, lambda s: {"body": [s]}], ids=["text", "bytes", "inside"])
def test_an_opaque_token_is_found_in_escapes(form: str, shape: Any) -> None:
    """A service echoes the token that it was sent, and its framework escapes it. The same text without the token stays."""
    clean, found = scrub(shape(form), [OPAQUE])
    assert found and REDACTED in str(clean) and "Ab3" not in str(clean)
    assert scrub(clean, [OPAQUE]) == (clean, False)
    other = shape(form.replace("Ab3", "Ab4"))
    assert scrub(other, [OPAQUE]) == (other, False)


@pytest.mark.parametrize("text", ["%25" * 300_000, "\\" * 1_000_000, "&amp;" * 200_000, "%" * 900_000, "&#" * 450_000, "%2541" * 200_000])
def test_escapes_are_undone_in_bounded_time(text: str) -> None:
    before = time.process_time()
    assert scrub(text, [OPAQUE, TOKEN]) == (text, False)
    assert time.process_time() - before < 10


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", [str, str.encode, lambda s: bytearray(s.encode())])
def test_a_token_is_found_in_any_common_form(form: str, shape: Any) -> None:
    """Plain, in base64 at any alignment, percent-encoded, wrapped, whole or its signature alone."""
    clean, found = scrub(shape(form), [TOKEN])
    assert found and type(clean) is type(shape(form))
    text = clean if isinstance(clean, str) else bytes(clean).decode()
    assert REDACTED in text and SIGNATURE[:20] not in text
    assert scrub(clean, [TOKEN]) == (clean, False)


def test_only_the_tokens_of_the_call_go() -> None:
    """What stands around them, other tokens and the tool's own object stay. A text full of them takes one pass."""
    other, held = TOKEN[:-10] + "0123456789", {"a": [TOKEN]}
    link = "https://x.example/?a=1&token={}&b=2"
    assert scrub(link.format(TOKEN), [TOKEN]) == (link.format(REDACTED), True)
    assert scrub((TOKEN + " ") * 5_000, [TOKEN]) == ((REDACTED + " ") * 5_000, True)
    assert scrub(other, [TOKEN]) == (other, False)
    assert scrub([TOKEN, other], [TOKEN, other]) == ([REDACTED, REDACTED], True)
    scrub(held, [TOKEN])
    assert held == {"a": [TOKEN]}


def test_containers_are_searched() -> None:
    """Values and keys, at any depth, in every common container; types are kept."""
    for value in (
        {"a": [{"b": TOKEN}]}, {TOKEN: 1}, ["x", ("y", TOKEN)], Pair("x", TOKEN), {TOKEN, "x"}, frozenset({TOKEN}),
        MappingProxyType({"a": TOKEN}),
    ):
        clean, found = scrub(value, [TOKEN])
        assert found and SIGNATURE not in repr(clean)
        assert REDACTED in repr(clean)
        assert isinstance(clean, dict if isinstance(value, MappingProxyType) else type(value))


def test_what_is_clean_is_the_same_object() -> None:
    """Nothing is copied where nothing was found, or nothing was minted."""
    value = {"a": [1, 2.5, None, True, "text % and\nlines", b"bytes", ("x",), {"y"}, object()]}
    value["b"] = value["c"] = ["%41" * 100, "50% of\n" * 100]  # twice the same is no cycle
    assert scrub(value, [TOKEN])[0] is value
    leaky = [TOKEN]
    assert scrub(leaky, []) == (leaky, False) and scrub(leaky, [""])[0] is leaky


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
    assert found and isinstance(clean, KeyError)
    assert clean.args == (f"refused {REDACTED}",) and SIGNATURE not in repr(vars(clean))
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
    assert scrub(outer, [TOKEN]) == (outer, False) and outer.__cause__ is inner


def test_an_exception_that_still_shows_a_token_is_replaced() -> None:
    """A text of its own making, or a group of such, can not be cleaned in place."""
    stubborn: tuple[Exception, ...] = (Stubborn(), ExceptionGroup("group", [Stubborn(), ValueError("x")]))
    for exc in stubborn:
        clean, found = scrub(exc, [TOKEN])
        assert found and type(clean) is RuntimeError
        assert SIGNATURE not in str(clean) and type(exc).__name__ in str(clean)
    group, found = scrub(ExceptionGroup("group", [ValueError(TOKEN)]), [TOKEN])
    assert found and group.exceptions[0].args == (REDACTED,)


def test_what_can_not_be_searched_is_not_passed_on() -> None:
    """Cycles and absurd depth end in a constant, and accuse nobody."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert scrub(cycle, [TOKEN]) == ([1, UNSEARCHED], False)
    deep: Any = TOKEN
    for _ in range(500):
        deep = [deep]
    clean, found = scrub(deep, [TOKEN])
    assert not found and SIGNATURE not in repr(clean)
    assert UNSEARCHED in repr(clean)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("tail", ["", "x", "ab", "abcdefg", "ab=="])
def test_a_token_without_a_signature_is_searched_whole(tail: str) -> None:
    """An exchanged token may be of any shape: its last part alone is no mark of it, and searching ends."""
    token = f"opaque.value.that.is.not.ours.{tail}"
    assert scrub(f"hello {tail} world", [token]) == (f"hello {tail} world", False)
    for shown in (token, std(token), url("?" + token), over_escaped(token), f"{token[:9]}\n{token[9:]}"):
        assert scrub(f"got {shown}", [token])[1]


@pytest.mark.timeout(20)
def test_a_token_too_short_to_tell_from_other_text_is_not_searched() -> None:
    """Else every text would hold it."""
    assert scrub("a text", ["a.b"]) == ("a text", False)


class Model(BaseModel):
    a: Any = None
    _private: Any = PrivateAttr(None)


class Loose(BaseModel, extra="allow"):
    a: int = 0


class Private(Model):
    _lock: Any = PrivateAttr(default_factory=Lock)


class Computed(BaseModel):
    a: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def header(self) -> str:
        return f"{HEADER}.{PAYLOAD}.{self.a[::-1]}"


class Written(BaseModel):
    @model_serializer
    def written(self) -> dict[str, str]:
        return {"made": TOKEN}


@dataclass
class Quiet:
    a: Any = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(slots=True, frozen=True)
class Slotted:
    a: Any = field(repr=False)


class Slots:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


class Marked(str):  # noqa: SLOT000  (that is the point)
    """A text with something beside it."""

    mark: Any


class Counted(int):
    mark: Any


class Rows(list[Any]):
    mark: Any


class Point(NamedTuple):
    x: Any


Kind = Enum("Kind", {"LEAKY": TOKEN})  # type: ignore[misc]


def marked(value: Any) -> Any:
    value.mark = TOKEN
    return value


def private(**held: Any) -> Model:
    model = Model()
    model._private = held
    return model


def a_function(a: Any) -> None:
    """For a `partial`."""


OBJECTS: dict[str, Any] = {
    "model": Model(a=TOKEN), "model in a model": Model(a=Model(a=[{"deep": Model(a=TOKEN)}])),
    "secret": Model(a=SecretStr(TOKEN)), "secret bytes": [SecretBytes(TOKEN.encode())],
    "private attribute": private(a=TOKEN), "extra": Loose(token=TOKEN), "name of an extra": Loose(**{TOKEN: 1}),
    "computed": Computed(a=SIGNATURE[::-1]), "written otherwise": Written(), "dataclass": Quiet(TOKEN),
    "slotted dataclass": Slotted({"a": TOKEN}), "slots": Slots(TOKEN), "slots in slots": Slots(Slots([Slots(TOKEN)])),
    "namespace": SimpleNamespace(a=TOKEN), "enum": Kind["LEAKY"], "key": {"a": {Slotted(TOKEN): 1}},
    "tuple as a key": {("a", TOKEN): 1}, "named tuple": Point(Slots(TOKEN)), "deque": deque([TOKEN]),
    "ordered": OrderedDict(a=Quiet(TOKEN)), "user's": UserDict({TOKEN: 1}), "chain": ChainMap({}, {"a": Slots(TOKEN)}),
    "path": PurePosixPath("/") / SIGNATURE, "pattern": re.compile(TOKEN), "partial": partial(a_function, a=TOKEN),
    "method": Slots(TOKEN).__str__, "built-in method": [TOKEN].append, "array": array("b", TOKEN.encode()),
    "view": memoryview(TOKEN.encode()), "iterator": iter([TOKEN]), "utf-16": TOKEN.encode("utf-16"),
    "utf-32": [TOKEN.encode("utf-32-be")], "beside a text": marked(Marked("x")), "beside a number": marked(Counted(1)),
    "beside a list": [marked(Rows())], "error in an object": Slots(ValueError(TOKEN)), "beside a lock": Private(a=TOKEN),
}


def stored(value: Any) -> list[bytes]:
    """What a checkpoint or a pickle of it holds, where it can be made."""
    made = []
    for write in (JsonPlusSerializer().dumps_typed, JsonPlusSerializer(pickle_fallback=True).dumps_typed, pickle.dumps):
        try:
            data: Any = write(value)
        except Exception:
            continue
        made.append((data[1] if isinstance(data, tuple) else data).replace(b"\0", b""))
    return made


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_nothing_that_is_written_of_an_object_holds_a_token(value: Any) -> None:
    """Whatever LangGraph's serialiser, or pickle, would write of it: the object goes, and its token is found.

    What neither can write is no exception.
    """
    search = TokenSearch([TOKEN])
    clean = search.clean(value)
    assert search.found and not search.withheld
    assert not any(SIGNATURE.encode() in data for data in stored(clean))


def test_the_objects_do_give_their_token_away() -> None:
    """The twin: unsearched, each would put it into a checkpoint or a pickle."""
    assert all(any(SIGNATURE.encode() in data for data in stored(value)) for value in OBJECTS.values())


def endless() -> Iterator[int]:
    n = 0
    while True:
        yield (n := n + 1)


class Endless:
    def __reduce__(self) -> Any:
        return (list, (), None, endless())


class Broken:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


class BrokenModel(BaseModel):
    @model_serializer
    def written(self) -> dict[str, str]:
        raise RuntimeError("not today")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "value",
    [endless(), Endless(), Broken(), Model(a=Broken()), BrokenModel(), endless().send, {}.keys(), Slots(endless())],
    ids=["generator", "endless", "broken", "model", "broken model", "method", "view", "inside"],
)
def test_what_can_not_be_taken_apart_is_withheld(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant takes its place, others stay, and nobody is accused."""
    monkeypatch.setattr(token_leak, "MAX_NODES", 10_000)
    search = TokenSearch([TOKEN])
    assert search.clean({"a": value, "b": "x"}) == {"a": UNSEARCHED, "b": "x"} and search.withheld
    assert not search.found


def test_the_limit_is_of_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large message is searched part by part and then whole: that takes none of it away."""
    monkeypatch.setattr(token_leak, "MAX_NODES", 1000)
    message = ToolMessage(content="400 rows", artifact=[f"n{i}" for i in range(400)], tool_call_id="c")
    cleaner = OutputFilter(frozenset(), (TOKEN,))
    clean = cleaner.output(message)
    assert (clean.content, clean.artifact) == (message.content, message.artifact)
    assert not cleaner.search.withheld


def test_harmless_objects_pass() -> None:
    """Locks, functions, classes and cycles between objects are no reason to withhold anything."""
    parent = SimpleNamespace(name="parent")
    parent.child = SimpleNamespace(parent=parent)
    values = [Private(a=1), a_function, Model, len, json, parent, PurePosixPath("/a"), Kind, Slots(None), object(), ...]
    search = TokenSearch([TOKEN])
    assert search.clean(values) is values and (search.found, search.withheld) == (False, False)


def test_what_an_error_that_is_raised_refers_to_is_not_its_text() -> None:
    """An HTTP error holds the request that it was about, and that its token; what is written is the error's text."""
    exc = ValueError("refused")
    exc.request = SimpleNamespace(headers={"Authorization": TOKEN})  # type: ignore[attr-defined]
    assert scrub(exc, [TOKEN]) == (exc, False) and scrub([exc], [TOKEN]) == ([REDACTED], True)
    exc.sent = TOKEN  # type: ignore[attr-defined]
    assert scrub(exc, [TOKEN]) == (exc, True) and vars(exc)["sent"] == REDACTED
