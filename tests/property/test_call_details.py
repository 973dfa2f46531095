"""The call in a token: any other argument is refused, no value is shown, nothing is equated that the gate tells apart."""

import json
import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.credential.authorization_details import authorization_details, check_call
from langchain_runtime_authz.credential.issuer import claims_of
from langchain_runtime_authz.credential.token import Credential, seal_credential
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.mandate import value_matching
from langchain_runtime_authz.mandate.value_matching import has_comma
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.unit_tests.credential.tokens import a_request

NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
WRITTEN = st.from_regex(r"[-+]?\d{1,4}([.,]\d{1,3})?", fullmatch=True) | st.sampled_from(["1.10", "1.1", "007", " 7", "7 ", "7.0"])
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
SCALARS = st.none() | st.booleans() | NUMBERS | WRITTEN | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=2)
KINDS = st.sampled_from(["principal", "amount", "object", "value"])
NAMES = st.text("abcdefgh", min_size=1, max_size=6)


def minted(args: dict[str, Any], kinds: dict[str, Any], mode: str = "digest") -> Credential:
    profile = ToolProfile(effect="pay", critical=kinds, token=mode)
    details = authorization_details(
        profile, "send_money", args, step="pay", standing="covered", source="words", mandate="sha256:01", salt="s" * 22
    )
    return seal_credential("a.b.c", claims_of(a_request(details=tuple(details)), "issuer"))


def met(credential: Credential, args: dict[str, Any]) -> bool:
    try:
        check_call(credential, tool="send_money", args=args)
    except CredentialError:
        return False
    return True


def near(value: Any) -> list[Any]:
    """What somebody might take for the value: other types, spellings and blanks."""
    text = str(value)
    found = [text, f" {text}\n", f"{text}0", f"{text}.0", f"0{text}", text.upper(), text.replace(".", ","), [value]]
    if isinstance(value, int | float):
        found += [value + 1, -value, bool(value), int(value), value / 10]
    return [v for v in found if not isinstance(v, int) or abs(v) < 2**53]


def same(one: Any, other: Any, kind: str) -> bool:
    """Whether two values are one: the same JSON, equal for a mandate, texts but for blanks, or a token's number as a text."""
    if digest([one]) == digest([other]) or value_matching.is_same(one, other, kind):
        return True
    if isinstance(other, str) and (one.strip() == other.strip() if isinstance(one, str) else value_matching.is_same(one, other, "amount")):
        return True
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(same(a, b, kind) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return all(same(one[name], other[name], kind) for name in one)
    return False


@given(st.dictionaries(NAMES, st.tuples(VALUES, KINDS), min_size=1, max_size=4), st.sampled_from(["digest", "plain"]))
def test_the_same_arguments_are_covered(call: dict[str, Any], mode: str) -> None:
    """All of them, and each alone. An amount as a text with a comma or other digits is bound as its number."""
    texts = [str(value).strip() for value, kind in call.values() if kind == "amount" and not isinstance(value, int | float)]
    assume(not any(any(map(str.isdecimal, text)) and not re.fullmatch(r"-?\d{1,15}(\.\d{1,10})?", text, re.ASCII) for text in texts))
    args = {name: value for name, (value, _) in call.items()}
    credential = minted(args, {name: kind for name, (_, kind) in call.items()}, mode)
    assert met(credential, args)
    assert all(met(credential, {name: value}) for name, value in args.items())


@settings(max_examples=300)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), st.data(), KINDS, VALUES, st.sampled_from(["digest", "plain"]))
def test_another_argument_is_not(args: dict[str, Any], data: st.DataObject, kind: str, far: Any, mode: str) -> None:
    """Nothing is accepted that the enforcement point would tell apart, and no argument passes for another."""
    name = data.draw(st.sampled_from(sorted(args)))
    value = data.draw(st.sampled_from([far, *near(args[name])]))
    credential = minted(args, dict.fromkeys(args, kind), mode)
    if not same(args[name], value, kind) and not (kind == "amount" and has_comma(value)):  # a token holds the number
        assert not met(credential, {**args, name: value})
    for other, held in args.items():
        if not same(held, args[name], kind) and not (kind == "amount" and has_comma(args[name])):
            assert not met(credential, {other: args[name]})
    assert not met(credential, {**args, "not_an_argument": None})


@given(st.dictionaries(NAMES, st.text("§¶¿", min_size=5, max_size=20) | st.integers(10**12, 2**53 - 1), min_size=1, max_size=4))
def test_a_token_shows_no_value_by_default(args: dict[str, Any]) -> None:
    """Only a profile with `token: plain` shows them."""
    kinds = dict.fromkeys(args, "value")
    for mode in ("digest", "plain"):
        shown = json.dumps(claims_of(a_request(details=tuple(_details(args, kinds, mode))), "i"), ensure_ascii=False)
        assert all((str(value) in shown) == (mode == "plain") for value in args.values())


def _details(args: dict[str, Any], kinds: dict[str, Any], mode: str) -> list[dict[str, Any]]:
    profile = ToolProfile(effect="pay", critical=kinds, token=mode)
    return authorization_details(profile, "send_money", args, step=None, standing="none", source=None, mandate=None, salt="s" * 22)


@given(TEXT, TEXT)
def test_a_salt_changes_every_digest(one: str, other: str) -> None:
    """Two tokens for one call cannot be linked by a digest."""
    assume(one != other)
    found = []
    for salt in (one, other):
        (detail,) = authorization_details(
            ToolProfile(critical={"a": "value"}), "t", {"a": 1}, step=None, standing="none", source=None, mandate=None, salt=salt
        )
        found.append(detail["argument_digests"]["a"])
    assert found[0] != found[1]
