"""Nothing but the literal permit permits, whatever bytes a PDP sends.

The judge is independent of the parser: it reads the same bytes as pairs and looks for the literal.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.errors import PDPError
from langchain_runtime_authz.evaluation import Decision, strict_json
from langchain_runtime_authz.pdp import authzen, opa
from langchain_runtime_authz.pdp.response import parse_answer

PERMIT: dict[str, Any] = {
    "decision": True,
    "context": {
        "reasons": [{"code": "ok"}], "obligations": [{"id": "1", "type": "redact", "properties": {"fields": ["iban"]}}],
        "ttl": 0, "policy": {"revision": "r1"},
    },
}


def by_opa(body: bytes) -> Decision | None:
    try:
        return opa._decision(*opa._opened(opa._Answer(body)._document))
    except PDPError:
        return None


def by_authzen(body: bytes) -> Decision | None:
    try:
        decision = authzen._decision(strict_json(body), "")
    except (ValueError, RecursionError):
        return None
    return None if decision.failure else decision


READERS: dict[str, tuple[Callable[[bytes], Decision | None], Callable[[Any], Any]]] = {
    "ours": (parse_answer, lambda document: document), "opa": (by_opa, lambda document: {"result": document, "decision_id": "d"}),
    "authzen": (by_authzen, lambda document: document),
}


class Pairs(list):  # type: ignore[type-arg]
    """An object with its members as they were written."""


def permits(name: str, body: bytes) -> bool:
    """Whether these bytes say, once and literally, `"decision": true` in the place for it."""
    document = json.loads(body.decode("utf-8"), object_pairs_hook=Pairs)
    if name == "opa":
        assert isinstance(document, Pairs)
        (document,) = [value for key, value in document if key == "result"]
    assert isinstance(document, Pairs)
    (decision,) = [value for key, value in document if key == "decision"]
    return decision is True


def check(name: str, body: bytes) -> None:
    """The reader permits only what the judge permits, and never raises."""
    decision = READERS[name][0](body)
    if decision is not None and decision.permit:
        assert permits(name, body)
        assert not {o.type for o in decision.obligations} & {"require_approval", "revoke"}
    elif decision is not None:
        assert decision.reasons


bytes_of = st.binary(max_size=60)
edits = st.lists(st.tuples(st.sampled_from(["flip", "cut", "put", "swap", "end"]), st.integers(0, 10_000), bytes_of), max_size=4)


def edited(body: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """The body with bytes flipped, cut, put in, exchanged, or left off at the end."""
    for kind, where, what in changes:
        at = where % (len(body) + 1)
        match kind:
            case "flip":
                body = body[:at] + bytes(b ^ 0x20 for b in body[at : at + 1]) + body[at + 1 :]
            case "cut":
                body = body[:at] + body[at + 1 + len(what) :]
            case "put":
                body = body[:at] + what + body[at:]
            case "swap":
                body = body[at:] + body[:at]
            case "end":
                body = body[:at]
    return body


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=400, deadline=None)
@given(changes=edits)
@example(changes=[])
def test_a_spoilt_permit_permits_only_if_it_still_says_so(name: str, changes: list[tuple[str, int, bytes]]) -> None:
    """Bytes of a real permit, changed in up to four places."""
    check(name, edited(json.dumps(READERS[name][1](PERMIT)).encode(), changes))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes(name: str, body: bytes) -> None:
    """Bytes and texts of any kind."""
    check(name, body)


near = st.sampled_from([True, False, "true", "True", 1, 1.0, 0, None, [], [True], {}, {"decision": True}, "permit", "allow"])
keys = st.sampled_from(["decision", "Decision", "decision ", "decisi\u043en", "result", "context", "allow", "obligations", "reasons", "ttl"])
anything = st.recursive(near | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=400, deadline=None)
@given(document=anything, wrapped=st.booleans())
def test_any_document(name: str, document: Any, wrapped: bool) -> None:
    """JSON that looks like an answer."""
    body = READERS[name][1](document) if wrapped else document
    check(name, json.dumps(body).encode())


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200, deadline=None)
@given(value=near | anything)
def test_only_true_in_the_place_of_the_decision(name: str, value: Any) -> None:
    """A well-formed answer permits exactly where the decision is `true`."""
    decision = READERS[name][0](json.dumps(READERS[name][1]({**PERMIT, "decision": value})).encode())
    assert (decision is not None and decision.permit) is (value is True)
    assert (decision is None) is (not isinstance(value, bool))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 30), member=st.sampled_from(["decision", "context", "code", "type", "revision"]))
def test_no_member_may_occur_twice(name: str, place: int, member: str) -> None:
    """A second one, wherever it stands, makes all of it malformed."""
    text = json.dumps(READERS[name][1](PERMIT))
    at = [i for i in range(len(text)) if text.startswith(f'"{member}": ', i)]
    start = at[place % len(at)]
    end = start + len(member) + 4
    doubled = f'{text[:start]}"{member}": false, "{member}": {text[end:]}'
    assert READERS[name][0](doubled.encode()) is None
