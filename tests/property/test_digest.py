"""What is decided is what runs: a value has one JSON form and one digest, or none."""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import json
import math
import pathlib
import pickle
import re
import types
import uuid
from typing import Any, NamedTuple

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel, ConfigDict, Field, RootModel

from langchain_runtime_authz.digest import MAX_INT, MAX_STRING, abbreviate_strings, as_json, digest, fingerprint
from langchain_runtime_authz.errors import Code, MappingError
from langchain_runtime_authz.evaluation import MAX_DEPTH, MAX_REQUEST_BYTES

MANY = settings(deadline=None, max_examples=300)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
numbers = st.integers(-MAX_INT, MAX_INT) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12)
# Few values, so that two of them are often equal or nearly so.
close_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -0.0, 1.0, 0.5, "", "0", "1", "true", "null", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "a", "1"]), inner, max_size=2),
    max_leaves=4,
)


flat = st.dictionaries(text | st.text(max_size=3), scalars | st.floats() | st.integers() | st.text(max_size=6), max_size=5)


def refused(value: object) -> str:
    """The code with which `value` is refused."""
    with pytest.raises(MappingError) as caught:
        digest(as_json(value))
    return caught.value.code


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values (RFC 8259): numbers by value, booleans apart, members in any order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Color(enum.Enum):
    RED = "red"
    BOX = ["a", {"b": 1}]


class Level(enum.IntEnum):
    HIGH = 3


class Name(str, enum.Enum):
    ALICE = "alice"


class Word(enum.StrEnum):
    YES = "yes"


class Model(BaseModel):
    amount: float
    to: str = Field(alias="recipient", default="x")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    inner: Any = None
    amount: int = Field(alias="sum", default=0)


@dataclasses.dataclass
class Data:
    x: Any
    y: Any = None


@dataclasses.dataclass(slots=True, repr=False)
class Slotted:
    x: int = dataclasses.field(init=False)


class Point(NamedTuple):
    x: int
    y: int


class Liar(str):
    """Says of itself what it does not hold."""

    __slots__ = ()

    def __str__(self) -> str:
        return "harmless"


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class HostileMapping(collections.abc.Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Any:
        raise ZeroDivisionError

    def __len__(self) -> int:
        return 1


class HostileList(list[Any]):
    def __iter__(self) -> Any:
        raise LookupError


class HostileZone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        raise OSError


@MANY
@given(value=json_values)
def test_a_json_value_stands_for_itself(value: Any) -> None:
    """Nothing is changed by projecting it, once or twice, or by a trip through JSON text."""
    projected = as_json(value)
    assert same(projected, value) and type(projected) is type(value)
    assert digest(projected) == digest(value) == digest(as_json(projected))
    assert digest(as_json(json.loads(json.dumps(value)))) == digest(value)


@MANY
@given(pair=st.tuples(close_values, close_values) | st.tuples(json_values, json_values))
@example((1, True))
@example((0, False))
@example((1, 1.0))
@example((0, -0.0))
@example(({"a": 1, "1": 2}, {"1": 2, "a": 1}))
@example(({}, []))
@example(([[], []], [[[]]]))
@example(({"a": None}, {}))
def test_digests_are_equal_exactly_where_values_are(pair: tuple[Any, Any]) -> None:
    """Integers and floats by value, booleans and text never as numbers, members in any order."""
    a, b = pair
    assert (digest(as_json(a)) == digest(as_json(b))) is same(a, b)


@MANY
@given(value=flat)
@example({"a": 1e-4, "b": 9007199254740991.0, "c": 9007199254740992.0, "d": 9.9e-5, "e": -0.0, "f": 1e16})
@example({"\ue000": 1, "\U00010000": 2, "\x7f": "\x1f\x7f\u2028\u00e9"})
@example({"a": "\ud800"})
@example({"a": math.inf})
@example({"a": 2**53})
def test_a_digest_is_of_rfc_8785(value: dict[str, Any]) -> None:
    """Whichever encoder writes it; and a mapping that the PDP may be asked about is its own projection."""
    try:
        expected = "sha256:" + hashlib.sha256(rfc8785.dumps(value)).hexdigest()
    except rfc8785.CanonicalizationError:
        assert refused(value) == Code.UNCANONICAL_ARGUMENT
        return
    assert digest(value) == expected
    if "\x00" not in json.dumps(value, ensure_ascii=False).replace("\\u0000", "\x00"):
        projected = as_json(value)
        assert projected == value and list(map(type, projected.values())) == list(map(type, value.values()))
        assert digest(projected) == expected


@given(number=st.integers())
def test_integers_are_exact_or_refused(number: int) -> None:
    """Beyond 2^53 two of them may look alike to a reader of JSON."""
    for candidate in (number, number * 2**40):
        if abs(candidate) <= MAX_INT:
            assert as_json(candidate) == candidate
        else:
            assert refused(candidate) == refused({"a": [candidate]}) == Code.UNCANONICAL_ARGUMENT


@pytest.mark.parametrize("value", [
    math.nan, math.inf, -math.inf, 2**53, -(2**53), 10**5000, "\ud800", "a\udfffb", "\x00", "a\x00", b"bytes",
    bytearray(b"x"), memoryview(b"x"), {1, 2}, frozenset(), 1j, object(), object, Data, Model, len, lambda: None,
    iter([]), range(3), (x for x in ()), {}.keys(), dt.timedelta(1), decimal.Decimal("nan"),
    decimal.Decimal("snan"), decimal.Decimal("inf"), pathlib.PurePosixPath("a\udc80"), types.SimpleNamespace(a=1),
    ValueError("x"), HostileMapping(), HostileList([1]), dt.datetime(2026, 1, 1, tzinfo=HostileZone()), Slotted(),
    Model.model_construct(), Open(inner={1}), Data(b"x"),
], ids=lambda v: type(v).__name__)
def test_what_has_no_json_form_is_refused(value: object) -> None:
    """At the top, as a member, as an element and as a field."""
    for held in (value, {"a": value}, [value], Data(value), (1, {"a": [value]})):
        assert refused(held) == Code.UNCANONICAL_ARGUMENT


def test_an_object_that_raises_when_looked_at_is_refused() -> None:
    """Whatever it raises, even for `isinstance`."""
    hostile = Hostile()
    for held in (hostile, [hostile], {"a": hostile}, Data(hostile)):
        assert refused(held) == Code.UNCANONICAL_ARGUMENT


@pytest.mark.parametrize("key", [1, 1.0, True, None, ("a",), b"a", "\ud800", "a\x00", Level.HIGH])
def test_a_key_is_text(key: Any) -> None:
    """Python's other keys would become text, and could meet one that is text already."""
    assert refused({key: 1}) == refused({"a": {key: 1, "b": 2}}) == Code.UNCANONICAL_ARGUMENT


@pytest.mark.parametrize(("value", "form"), [
    (Color.RED, "red"), (Color.BOX, ["a", {"b": 1}]), (Level.HIGH, 3), (Name.ALICE, "alice"), (Word.YES, "yes"),
    ({Name.ALICE: Word.YES, Word.YES: Level.HIGH}, {"alice": "yes", "yes": 3}),
    (Model(amount=1, recipient="bob"), {"amount": 1.0, "to": "bob"}),
    (Open(inner=Model(amount=2), note="n"), {"inner": {"amount": 2.0, "to": "x"}, "amount": 0, "note": "n"}),
    (RootModel[list[int]]([1, 2]), {"root": [1, 2]}), (Data(1, Data((2,))), {"x": 1, "y": {"x": [2], "y": None}}),
    (types.MappingProxyType({"a": 1}), {"a": 1}), (collections.OrderedDict(a=1), {"a": 1}), (Point(1, 2), [1, 2]),
    (decimal.Decimal("10.50"), "10.50"), (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05+00:00"), (dt.time(1, 2), "01:02:00"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("/etc/passwd"), "/etc/passwd"), (Liar("rm -rf"), "rm -rf"), ({Liar("rm"): 1}, {"rm": 1}),
], ids=lambda v: type(v).__name__)
def test_python_values_have_the_form_of_what_they_hold(value: object, form: object) -> None:
    """Models and dataclasses by field name, enums by value, subclasses by content, not by their own word."""
    projected = as_json(value)
    assert projected == form and digest(projected) == digest(form)
    for part in (projected, *(projected if isinstance(projected, dict | list) else ())):
        assert type(part) in (str, int, float, bool, dict, list, type(None))


def test_no_name_hides_another() -> None:
    """An extra named like an aliased field, or two keys with one text, would show what the tool does not get."""
    hidden = Open.model_validate({"sum": 1_000_000, "amount": 1})
    assert (hidden.amount, hidden.model_extra) == (1_000_000, {"amount": 1})
    assert refused(hidden) == Code.UNCANONICAL_ARGUMENT

    class Twin(str):
        __slots__ = ()
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            return self is other

    assert refused({Twin("to"): "alice", Twin("to"): "mallory"}) == Code.UNCANONICAL_ARGUMENT


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), Data, lambda v: Open(inner=v)])
def test_depth_is_bounded(wrap: Any) -> None:
    """32 levels of any kind have a form, 33 have none, and neither has any deeper nesting."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    digest(as_json(value))
    for _ in range(3):
        value = wrap(value)
        assert refused(value) == Code.UNCANONICAL_ARGUMENT
    for _ in range(5000):
        value = [value]
    assert refused(value) == Code.UNCANONICAL_ARGUMENT


def test_a_value_within_itself_is_refused() -> None:
    """Also where it holds itself often: that would be 2^32 values."""
    ring: list[Any] = []
    ring.append(ring)
    loop: dict[str, Any] = {}
    loop["a"] = loop
    data = Data(None)
    data.x = data
    opened = Open()
    opened.inner = [opened]
    for value in (ring, loop, data, opened):
        assert refused(value) == Code.UNCANONICAL_ARGUMENT
    ring.extend([ring, ring, 1])
    loop.update(b=loop, c=[loop, ring])
    for value in (ring, loop):
        assert refused(value) in (Code.UNCANONICAL_ARGUMENT, Code.REQUEST_TOO_LARGE)


def test_few_lists_that_stand_for_many_values_are_refused() -> None:
    """Thirty lists that hold each other twice are a thousand million values: too large, and at once."""
    value: list[Any] = []
    for _ in range(30):
        value = [value, value]
    assert refused(value) == Code.REQUEST_TOO_LARGE
    assert refused([0] * MAX_REQUEST_BYTES) == Code.REQUEST_TOO_LARGE
    digest(as_json([0] * 100_000))


anything = st.recursive(
    scalars
    | st.sampled_from([Color.RED, Level.HIGH, Name.ALICE, Word.YES, HostileMapping(), Slotted(), object(), Data, Model])
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.decimals()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(HostileList)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
        | st.builds(Data, inner, inner)
        | st.builds(lambda v, k: Open.model_construct(inner=v, **{k: v}), inner, st.sampled_from(["amount", "n", "é"]))
    ),
    max_leaves=10,
)


@MANY
@given(value=anything)
def test_any_object_has_a_form_or_is_refused(value: object) -> None:
    """A `MappingError`, never another exception; and a form is JSON, the same each time, as is a fingerprint."""
    assert fingerprint(value) == fingerprint(value)
    for total in (digest, as_json):
        try:
            total(value)
        except MappingError as exc:
            assert exc.code == Code.UNCANONICAL_ARGUMENT
    try:
        form = as_json(value)
    except MappingError as exc:
        assert exc.code == Code.UNCANONICAL_ARGUMENT
    else:
        assert same(json.loads(json.dumps(form, allow_nan=False)), form)
        json.dumps(form, ensure_ascii=False).encode()
        assert digest(form) == digest(as_json(value)) == digest(as_json(form))


def test_close_to_the_end_of_the_stack_it_is_still_a_mapping_error() -> None:
    """Where Python has no stack left, a value has no form; the caller is not torn down."""

    def sink(left: int) -> str:
        return sink(left - 1) if left else refused([[[[[[{"a": [[Data([Model(amount=1)])]]}]]]]]])

    codes = set()
    for left in range(700, 1100, 5):
        try:
            codes.add(sink(left))
        except RecursionError:
            break  # the test's own frames
        except pytest.fail.Exception:
            continue  # enough stack: it has a form
    assert codes <= {Code.UNCANONICAL_ARGUMENT}


@given(value=json_values, limit=st.integers(0, 6))
def test_abbreviating_keeps_what_is_short(value: Any, limit: int) -> None:
    """Each longer string becomes its digest and length; everything else stays as it is."""
    short = abbreviate_strings(value, limit)
    if isinstance(value, str) and len(value) > limit:
        assert short == {"digest": short["digest"], "length": len(value)}
        assert short["digest"].startswith("sha256:")
    elif isinstance(value, dict):
        assert short == {k: abbreviate_strings(v, limit) for k, v in value.items()}
    elif isinstance(value, list):
        assert short == [abbreviate_strings(v, limit) for v in value]
    else:
        assert short == value
    assert abbreviate_strings(value, MAX_STRING) == value


@MANY
@given(a=close_values, b=close_values)
def test_fingerprints_tell_json_values_apart(a: Any, b: Any) -> None:
    """Two values have one fingerprint exactly if they are the same in JSON."""
    assert (fingerprint(a) == fingerprint(b)) == same(a, b)


names = st.integers(-MAX_INT, MAX_INT) | text
leaves = st.one_of(
    scalars, st.binary(max_size=4), st.dates(), st.datetimes(timezones=st.none() | st.just(dt.UTC)), st.timedeltas(),
    st.decimals(allow_nan=False), st.uuids(), st.sampled_from([*Color, *Level, *Word, math.inf]),
    st.sampled_from([pathlib.Path("a/b"), re.compile("a+", re.IGNORECASE)]),
)  # fmt: skip
kept = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3), st.tuples(inner, inner),
        st.sets(numbers | text, max_size=4), st.builds(collections.deque, st.lists(inner, max_size=3)),
        st.builds(Point, inner, inner), st.builds(Data, inner, inner), st.builds(Document, text),
    ),
    max_leaves=8,
)  # fmt: skip


@MANY
@given(value=kept)
def test_a_checkpointer_changes_no_fingerprint(value: object) -> None:
    """Twice through LangGraph's serialiser and through pickle: what comes back was never exchanged."""
    serde, again = JsonPlusSerializer(allowed_msgpack_modules=True), value
    for _ in range(2):
        again = serde.loads_typed(serde.dumps_typed(again))
        assert fingerprint(again) == fingerprint(value)
        assert fingerprint(pickle.loads(pickle.dumps(again))) == fingerprint(value)


class Plain:
    """An object like any other. That it equals everything and prints alike says nothing."""

    def __init__(self, *held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(("one", "other"), [
    (Plain(1), Plain(2)), ({"a": {1}}, {"a": {2}}), (b"a", b"b"), (b"a", "a"),
    (array.array("h", [1]), array.array("h", [2])), (array.array("h", [1]), array.array("b", [1, 0])),
    (Slotted, Plain), (Open(inner=1, more=2), Open(inner=1, more=3)),
    (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), ([10**5000], [10**5000 + 1]),
    (lambda: 1, Plain), (Plain({1: "a"}), Plain({"1": "a"})), ([1, [2]], [[1], 2]),
])
def test_what_is_exchanged_in_an_object_is_seen(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other) and fingerprint(one) == fingerprint(one)


def test_a_fingerprint_has_bounded_cost() -> None:
    """Lists that hold each other many times, or themselves, and what goes deeper than a stack, have one too."""
    wide: list[Any] = []
    for _ in range(100):
        wide = [wide, wide]
    turning = Plain()
    turning.held = (turning, {"me": turning})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert len({fingerprint(v) for v in (wide, turning, deep)}) == 3
