"""The token parser against everything that is not exactly a token of ours."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.authzen import Subject
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keys import SigningKey
from langchain_runtime_authz.credential.token import TYP, Credential, Task, TokenRequest, claims_of
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError

NOW = 1_764_000_000
KEY = SigningKey.generate()
ISSUER = LocalIssuer(KEY)
VERIFIER = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks())
REQUEST = TokenRequest(
    subject=Subject(type="user", id="alice"), tenant="acme", agent="payer", audience="https://bank.example", txn="run",
    task=Task(id="t", epoch=1, digest="d"), tool="send_money", jti="j", issued_at=NOW, expires_at=NOW + 60,
)
TOKEN = ISSUER.issue(REQUEST)
CLAIMS = claims_of(REQUEST, ISSUER.issuer)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=10,
)


def verify(token: Any) -> Credential | None:
    """The credential, or `None` for a proper refusal; any other exception fails the test."""
    try:
        return VERIFIER.verify(token, audience="https://bank.example", tenant="acme", now=NOW)
    except CredentialError as exc:
        assert exc.code.startswith("credential_") or exc.code == "audience"
        assert exc.__context__ is None
        return None


def encoded(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(header: object, claims: object) -> str:
    signing_input = f"{encoded(header)}.{encoded(claims)}"
    return f"{signing_input}.{encoded(KEY.sign(signing_input.encode()))}"


HEADER = {"alg": "ES256", "kid": KEY.kid, "typ": TYP}


def test_the_original_verifies() -> None:
    """The mutations below start from a token that is believed."""
    assert verify(TOKEN) is not None
    assert verify(signed(HEADER, CLAIMS)) is not None


@settings(deadline=None)
@given(st.text() | st.binary() | JSON)
def test_anything_else_is_refused(value: Any) -> None:
    """Whatever is handed in, the answer is a refusal with a code."""
    assert verify(value) is None


@settings(deadline=None)
@given(st.text(ALPHABET, max_size=40), st.text(ALPHABET, max_size=40), st.text(ALPHABET, max_size=90))
def test_anything_of_the_right_shape_is_refused(header: str, payload: str, signature: str) -> None:
    """Three base64url parts are not yet a token."""
    assert verify(f"{header}.{payload}.{signature}") is None
    assert verify(f"{TOKEN.split('.')[0]}.{payload}.{signature}") is None


@settings(deadline=None)
@given(st.sampled_from(sorted(CLAIMS)), JSON)
def test_a_signed_claim_of_another_kind_is_refused_or_told(name: str, value: Any) -> None:
    """With our own signature, a claim either fits its type or the token is refused; nothing else happens."""
    assume(value != CLAIMS[name])
    got = verify(signed(HEADER, {**CLAIMS, name: value}))
    if got is not None:
        assert name in ("sub", "sub_type", "jti", "txn", "exp", "iat", "task", "act", "authorization_details")
        for prop in (got.subject, got.actor, got.tenant, got.audience, got.jti, got.txn):
            assert isinstance(prop, str)
        assert isinstance(got.epoch, int)
        assert isinstance(got.expires_at, int)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "jku", "b64", "zip"]), JSON))
def test_a_signed_header_of_another_kind_is_refused(header: dict[str, Any]) -> None:
    """With our own signature, any other header is refused."""
    assert verify(signed({**HEADER, **header}, CLAIMS)) is None or {**HEADER, **header} == HEADER
    assert verify(signed(header, CLAIMS)) is None
