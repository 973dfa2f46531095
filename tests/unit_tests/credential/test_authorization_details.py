"""The call in a token: what it says of step and arguments, and which demands it meets."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from langchain_runtime_authz.credential.authorization_details import MAX_DETAIL, check_call, check_whole_call
from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import CALL_TYPE, Credential, TaskClaim, TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.tool_profile import ToolProfile, value_at
from tests.unit_tests.credential.tokens import BANK, NOW, PAYMENT, PAYS, a_request, call_details, forged

KEY = SigningKey.generate()
ISSUER = LocalIssuer(KEY)
PLAIN = PAYS.model_copy(update={"token": "plain"})


def believed(details: Any = None, **changes: Any) -> Credential:
    """The credential of a token with these details, as a service has it."""
    claims = claims_of(a_request(details=call_details() if details is None else details, **changes), ISSUER.issuer)
    verifier = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks())
    return verifier.verify(forged(KEY, ISSUER.issuer, json.loads(json.dumps(claims))), audience=BANK, now=NOW)


def refused(credential: Credential, **demand: Any) -> str | None:
    """The code for which a demand is refused, and `None` if it is met."""
    try:
        check_call(credential, **{"tool": "send_money", "args": {}, **demand})
    except CredentialError as exc:
        return exc.code
    return None


def rfc9901(salt: str, name: str, text: str) -> str:
    """The digest of a disclosure (§4.2.3), written out: `text` is the value's JSON."""
    disclosure = base64.urlsafe_b64encode(f'["{salt}","{name}",{text}]'.encode()).rstrip(b"=")
    return base64.urlsafe_b64encode(hashlib.sha256(disclosure).digest()).rstrip(b"=").decode()


def test_a_token_says_step_and_arguments() -> None:
    """The critical and date arguments by digest, absent ones as null; texts and free ones not at all."""
    (detail,) = call_details({**PAYMENT, "size": 5, "cc": "bob"})
    assert detail == {
        "type": "urn:langchain-runtime-authz:call", "actions": ["tools/call"], "identifier": "send_money",
        "step": "pay", "standing": "covered", "source": "words", "mandate": "sha256:01",
        "open_arguments": ["note", "size"], "salt": "salt",
        "argument_digests": {
            "recipient": rfc9901("salt", "recipient", '"DE21500105170123456789"'),
            "amount": rfc9901("salt", "amount", "98.7"), "account.id": rfc9901("salt", "account.id", "null"),
            "on": rfc9901("salt", "on", "null"), "cc": rfc9901("salt", "cc", '"bob"'),
        },
    }
    (read,) = call_details({"q": "x", "id": 1}, ToolProfile(effect="read", critical={"id": "object"}))
    assert set(read["argument_digests"]) == {"id"} and "open_arguments" not in read


def test_a_profile_may_show_the_values() -> None:
    """`token: plain`: values in normal form, and nothing to guess, so no salt."""
    (detail,) = call_details({**PAYMENT, "amount": "98.70", "account": {"id": 7}}, PLAIN)
    assert detail["arguments"] == {"recipient": PAYMENT["recipient"], "amount": 98.7, "account.id": 7, "on": None}
    assert "salt" not in detail


@pytest.mark.parametrize("profile", [PAYS, PLAIN], ids=["digest", "plain"])
@pytest.mark.parametrize(("extra", "member"), [(10, None), (300, "arguments_digest")])
def test_a_detail_is_at_most_4_kb(profile: ToolProfile, extra: int, member: str | None) -> None:
    """Too many arguments are one digest over all, and a service then names all of them."""
    args = {**PAYMENT, **{f"argument_{i}": i for i in range(extra)}}
    (detail,) = details = call_details(args, profile)
    assert len(json.dumps(detail, separators=(",", ":"))) <= MAX_DETAIL
    assert ("arguments_digest" in detail) == (member is not None)
    credential, all_of_them = believed(details), {k: v for k, v in args.items() if k != "note"}
    assert refused(credential, args=all_of_them) is None
    assert refused(credential, args={**all_of_them, "argument_5": 6}) == "credential_call"
    if member:
        assert refused(credential, args={"recipient": args["recipient"]}) == "credential_call"
    check_whole_call(credential, tool="send_money", args={**args, "note": "any", "size": 5})
    for other in ({"argument_5": 6}, {"amount": 1}, {"added": 1}, {"argument_5": None}, {"account": {"id": 7}}):
        with pytest.raises(CredentialError, match="credential_call"):
            check_whole_call(credential, tool="send_money", args={**args, **other})


def test_one_digest_leaves_no_bound_member_open() -> None:
    """The names of the bound members are not in such a token: the whole argument is then demanded."""
    profile = ToolProfile(effect="write", critical={"meta.to": "principal"}, free=("meta", "size"))
    args = {f"argument_{i}": i for i in range(300)}
    (detail,) = details = call_details(args, profile)
    assert detail["open_arguments"] == ["size"]
    check_whole_call(believed(details), tool="send_money", args=args)
    with pytest.raises(CredentialError, match="credential_call"):
        check_whole_call(believed(details), tool="send_money", args={**args, "meta": {"to": "eve"}})


WRITES = ToolProfile(effect="write", critical={"to": "principal"}, text=("note.en",))


@pytest.mark.parametrize(("given", "met"), [
    ({}, True), ({"note.en": "another text"}, True), ({"user.id": "eve"}, False), ({"user.id": None}, False),
    ({"user": {"id": "bob"}}, False), ({"user": {"id": "eve"}, "user.id": None}, False),
    ({"user": {"id": "bob", "cc": "eve"}, "user.id": None}, False), ({"user": None, "user.id": "eve"}, False),
], ids=str)
def test_a_name_may_have_a_dot(given: Any, met: bool) -> None:
    """The argument `user.id` cannot be given twice, as itself and as the member `id` of `user`."""
    args = {"to": "ann", "user.id": "bob", "note.en": "a text"}
    credential = believed(call_details(args, WRITES))
    assert refused(credential, args={"user.id": "bob"}) is None
    try:
        check_whole_call(credential, tool="send_money", args={**args, **given})
    except CredentialError as exc:
        assert (exc.code, met) == ("credential_call", False)
    else:
        assert met


def test_an_absent_member_is_not_given_by_a_name() -> None:
    profile = ToolProfile(effect="write", critical={"user.id": "principal"})
    credential = believed(call_details({}, profile))
    for given in ({"user.id": "eve"}, {"user": None, "user.id": "eve"}):
        with pytest.raises(CredentialError, match="credential_call"):
            check_whole_call(credential, tool="send_money", args=given)


def test_a_long_plain_value_is_a_digest() -> None:
    """4 MB of it cost no room."""
    (detail,) = call_details({**PAYMENT, "recipient": "x" * 4_000_000}, PLAIN)
    assert set(detail) >= {"salt", "argument_digests"}


@pytest.mark.parametrize("value", [float("nan"), 2**60, "\ud800", object()], ids=["nan", "large", "surrogate", "object"])
def test_an_argument_without_json_form_has_no_token(value: Any) -> None:
    """And no demand with it is met."""
    with pytest.raises(CredentialError, match="credential_unavailable"):
        call_details({**PAYMENT, "amount": value})
    assert refused(believed(), args={"amount": value}) == "credential_call"


@pytest.mark.parametrize("profile", [PAYS, PLAIN], ids=["digest", "plain"])
@pytest.mark.parametrize(("held", "asked", "met"), [
    # An amount is a number, in whatever type.
    ({"amount": 98.7}, {"amount": 98.70}, True), ({"amount": 98.7}, {"amount": "98.70"}, True),
    ({"amount": "98.70"}, {"amount": 98.7}, True), ({"amount": "98,70"}, {"amount": Decimal("98.70")}, True),
    ({"amount": 100.0}, {"amount": 100}, True), ({"amount": 98.7}, {"amount": 987}, False),
    ({"amount": 98.7}, {"amount": -98.7}, False), ({"amount": 98.7}, {"amount": "98.7 EUR"}, False),
    ({"amount": 1}, {"amount": True}, False),
    # A service may read such a text as 987, or as nothing.
    ({"amount": 98.7}, {"amount": "98,7"}, False), ({"amount": 98.7}, {"amount": "+98.7"}, False),
    ({"amount": 98.7}, {"amount": "\u0669\u0668.\u0667"}, False), ({"amount": 987}, {"amount": "9.87e2"}, False),
    ({"amount": 1200}, {"amount": "1 200"}, False), ({"amount": -5}, {"amount": " -5.0 "}, True),
    ({"amount": "1,200"}, {"amount": 1200}, False),  # or 1.2
    ({"amount": "1,200"}, {"amount": 1.2}, False),
    # A text is itself, without the blanks around it.
    ({"recipient": " Bob\n"}, {"recipient": "Bob"}, True), ({"recipient": "Bob"}, {"recipient": "bob"}, False),
    ({"recipient": "Bob B"}, {"recipient": "Bob  B"}, False), ({"recipient": "Bob"}, {"recipient": "Bo\u200bb"}, False),
    ({"recipient": "1.10"}, {"recipient": "1.1"}, False), ({"recipient": "1.10"}, {"recipient": 1.1}, False),
    ({"recipient": "007"}, {"recipient": 7}, False), ({"recipient": ["a", "b"]}, {"recipient": ("a", "b")}, True),
    ({"recipient": ["a", "b"]}, {"recipient": ["a"]}, False), ({"recipient": ["a", "b"]}, {"recipient": "a"}, False),
    ({"on": datetime(2026, 12, 5, 10, tzinfo=UTC)}, {"on": "2026-12-05T10:00:00Z"}, True),
    ({"on": "2026-12-05T10:00:00.5Z"}, {"on": "2026-12-05T10:00:00.5+00:00"}, True),
    ({"on": "2026-12-05T10:00:00Z"}, {"on": "2026-12-05T10:00:00+01:00"}, False),
    ({"on": "2026-12-05T10:00:00Z"}, {"on": "2026-12-05T10:00:00"}, False),
    # A path has texts alone.
    ({"account": {"id": 7}}, {"account.id": "7"}, True), ({"account": {"id": 7}}, {"account.id": "8"}, False),
    ({"account": [{"id": 7}, {"id": 8}]}, {"account.id": [7, 8]}, True),
    # What was not given is not given, and what the token does not hold is not known.
    ({}, {"on": None}, True), ({}, {"on": "2026-12-01"}, False), ({"on": "2026-12-01"}, {"on": None}, False),
    ({"note": "December"}, {"note": "December"}, False), ({}, {"bcc": None}, False), ({}, {}, True),
], ids=ascii)
def test_values_are_compared_in_normal_form(profile: ToolProfile, held: Any, asked: Any, met: bool) -> None:
    """In both forms of the token alike; a service may name some of the arguments."""
    credential = believed(call_details({**PAYMENT, **held}, profile))
    expected = None if met else "credential_call"
    assert refused(credential, args=asked) == expected
    if "recipient" not in asked | held:
        assert refused(credential, args={"recipient": PAYMENT["recipient"], **asked}) == expected
        assert refused(credential, args={"recipient": "DE99", **asked}) == "credential_call"


READS = ToolProfile(effect="read", critical={"recipient": "principal"})


@pytest.mark.parametrize(("profile", "given", "met"), [
    (PAYS, PAYMENT, True), (PAYS, {**PAYMENT, "note": "another text", "size": 5, "on": None, "cc": None}, True),
    (PAYS, {**PAYMENT, "on": "2026-12-01"}, False), (PAYS, {**PAYMENT, "cc": "mallory"}, False),
    (PAYS, {**PAYMENT, "account": {"id": 7}}, False), (PAYS, {"recipient": PAYMENT["recipient"]}, False),
    (PAYS, {}, False), (READS, {**PAYMENT, "q": "x"}, True), (READS, {**PAYMENT, "recipient": "mallory"}, False),
], ids=str)
def test_a_whole_call_has_no_argument_more_and_none_less(profile: ToolProfile, given: Any, met: bool) -> None:
    """Of a side effect nothing may be added; texts and free arguments may be anything."""
    credential = believed(call_details(PAYMENT, profile))
    try:
        check_whole_call(credential, tool="send_money", args=given)
    except CredentialError as exc:
        assert (exc.code, met) == ("credential_call", False)
    else:
        assert met


MAILS = ToolProfile(effect="send", critical={"to.address": "principal"}, text=("to.name",))
BOB = {"address": "bob@x.org"}


@pytest.mark.parametrize(("minted", "given", "met"), [
    (BOB, BOB, True), (BOB, {**BOB, "name": "Bob"}, True), (BOB, {**BOB, "bcc": "eve@x.org"}, False),
    (BOB, {**BOB, "bcc": {"address": "eve@x.org"}}, False), (BOB, [BOB, {"email": "eve@x.org"}], False),
    (BOB, [BOB, {}], False), ({**BOB, "bcc": "ann@x.org"}, {**BOB, "bcc": "ann@x.org"}, True),
    ({**BOB, "bcc": "ann@x.org"}, {**BOB, "bcc": "eve@x.org"}, False), ({**BOB, "bcc": "ann@x.org"}, BOB, False),
    ({**BOB, "x": {"y.z": "ann"}}, {**BOB, "x": {"y.z": "eve"}}, False),
    ({**BOB, "x": {"y": {"z": 1}}}, {**BOB, "x": {"y": {"z": 1}, "y.z": "eve"}}, False),
], ids=str)
def test_a_whole_call_has_no_member_more_and_none_less(minted: Any, given: Any, met: bool) -> None:
    """Inside an argument too. A service that checks only the profile's arguments does not see an added member."""
    credential = believed(call_details({"to": minted}, MAILS))
    if isinstance(given, dict):
        assert refused(credential, args={"to.address": given["address"]}) is None
    try:
        check_whole_call(credential, tool="send_money", args={"to": given})
    except CredentialError as exc:
        assert (exc.code, met) == ("credential_call", False)
    else:
        assert met
    with pytest.raises(CredentialError, match="credential_call"):
        check_whole_call(credential, tool="send_money", args={"to": minted, "to.address": "eve@x.org"})


def test_a_value_keeps_its_item() -> None:
    """An amount cannot move to another payee of the list. Without their places, the values are the same."""
    profile = ToolProfile(effect="pay", critical={"items.to": "principal", "items.amount": "amount"}, token="plain")
    calls = [[{"to": "bob", "amount": 900}, {"to": "eve"}], [{"to": "bob"}, {"to": "eve", "amount": 900}]]
    first, second = (call_details({"items": items}, profile)[0]["arguments"] for items in calls)
    assert (first["items.amount"], second["items.amount"]) == ([900, None], [None, 900])
    assert [value_at({"items": items}, "items.amount") for items in calls] == [[900], [900]]
    credential = believed(call_details({"items": calls[0]}, profile))
    check_whole_call(credential, tool="send_money", args={"items": calls[0]})
    with pytest.raises(CredentialError, match="credential_call"):
        check_whole_call(credential, tool="send_money", args={"items": calls[1]})


@pytest.mark.parametrize(
    "change",
    [{"argument_digests": None}, {"argument_digests": ["recipient"]}, {"argument_digests": {"amount": 98.7}},
     {"argument_digests": {"amount": None}}, {"argument_digests": None, "arguments": {"amount": 2**60}},
     {"argument_digests": None, "arguments": "amount"}, {"salt": None}, {"salt": ["salt"]}, {"standing": None}, {"standing": ["covered"]}],
    ids=str,
)  # fmt: skip
def test_a_malformed_detail_meets_no_demand(change: dict[str, Any]) -> None:
    """A properly signed one too."""
    (detail,) = call_details()
    assert refused(believed(({**detail, **change},)), args={"amount": 98.7}) == "credential_call"


@pytest.mark.parametrize("args", [{1: 2}, None, "amount", 5])
def test_a_demand_that_is_not_of_names_is_refused(args: Any) -> None:
    """A service that passes it by mistake serves nobody."""
    assert refused(believed(), args=args) == "credential_call"


def test_a_cyclic_value_is_refused() -> None:
    """The work is bounded."""
    loop: list[Any] = []
    loop.append(loop)
    assert refused(believed(), args={"amount": loop}) == "credential_call"


def test_an_issuer_elsewhere_signs_the_same() -> None:
    """Nulls and the mandate's digest survive the request's JSON, and the task's claim has the digest."""
    request = a_request(
        details=call_details(step=None, standing="outside", approved=True),
        task=TaskClaim(id="t", epoch=2, digest="sha256:00", mandate="sha256:01"),
    )
    again = TokenRequest.from_json(request.to_json())
    claims = claims_of(again, "i")
    assert claims == claims_of(request, "i")
    assert claims["task"] == {"id": "t", "epoch": 2, "digest": "sha256:00", "mandate": "sha256:01"}
    assert claims["authorization_details"][1]["type"] == CALL_TYPE
    assert claims["authorization_details"][1]["step"] is None
