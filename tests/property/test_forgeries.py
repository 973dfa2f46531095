"""Forgeries by the thousand: a token or proof is believed only if a holder of its key said exactly that.

`FORGERIES` says how many (some hundreds by default; `.ci/long` asks for many more). A forgery is counted as
accepted when something is believed whose claims nobody signed. (An ECDSA signature has a second form that is
as valid: the same claims in it are no forgery.)
"""

import base64
import json
import os
import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.credential.dpop_proof import read_proof, token_digest
from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP, Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError
from tests.unit_tests.credential.tokens import BANK, NOW, a_request, b64, forged

COUNT = int(os.environ.get("FORGERIES", "600"))
KEYS = [SigningKey.generate("ES256"), SigningKey.generate("EdDSA"), SigningKey.generate("RS256")]
STRANGER = SigningKey.generate()
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
INTERESTING: list[Any] = [
    None, True, 0, -1, 1e308, 10**30, "", "none", "HS256", "alice", [], {}, [BANK], {"sub": "mallory"}, "\ud800", "\x00",
    NOW * 2, "a" * 3000,
]  # fmt: skip


def _unb64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _bytes(rng: random.Random, token: str) -> str:
    """Characters replaced, removed, doubled or put in."""
    chars = list(token)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(chars))
        match rng.randrange(4):
            case 0:
                chars[at] = rng.choice(ALPHABET + ".=+/ \n\u200b")
            case 1:
                del chars[at]
            case 2:
                chars.insert(at, chars[at])
            case _:
                chars[at:at] = rng.choices(ALPHABET, k=rng.randint(1, 8))
    return "".join(chars)


def _cut(rng: random.Random, token: str) -> str:
    """A part of it, or parts in another order or number."""
    parts = token.split(".")
    match rng.randrange(4):
        case 0:
            return token[: rng.randrange(len(token))]
        case 1:
            rng.shuffle(parts)
            return ".".join(parts)
        case 2:
            return ".".join(rng.choices([*parts, "", "e30"], k=rng.randint(0, 6)))
        case _:
            parts[2] = rng.choice(["", "AA", "A" * 86, parts[2] * 2, parts[2][:-1], parts[1]])
            return ".".join(parts)


def _changed(rng: random.Random, document: dict[str, Any]) -> Any:
    changed = json.loads(json.dumps(document))
    names = list(changed)
    match rng.randrange(4):
        case 0:
            changed.pop(rng.choice(names))
        case 1:
            changed[rng.choice(names)] = rng.choice(INTERESTING)
        case 2:
            changed[rng.choice(["crit", "jku", "x5u", "jwk", "b64", "exp", "sub", "x"])] = rng.choice(INTERESTING)
        case _:
            return rng.choice([[], "x", 1, None, [changed], "[" * 5000])
    return changed


def _rewritten(rng: random.Random, token: str) -> str:
    """Header or claims rewritten; signed by a stranger, by another key of the issuer's, or not anew."""
    head, body, signature = token.split(".")
    header, claims = json.loads(_unb64(head)), json.loads(_unb64(body))
    if rng.random() < 0.5:
        header = _changed(rng, header)
    else:
        claims = _changed(rng, claims)
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    if rng.random() < 0.2:
        texts[1] = texts[1][:-1] + ', "sub": "mallory"}'
    signing_input = ".".join(b64(text.encode("utf-8", "surrogatepass")) for text in texts)
    if rng.random() < 0.6:
        signature = b64(STRANGER.sign(signing_input.encode()))
    return f"{signing_input}.{signature}"


def _confused(rng: random.Random, token: str) -> str:
    """Another algorithm or key in the header, and the signature to fit it."""
    import hashlib
    import hmac

    body = token.split(".")[1]
    kid = rng.choice(KEYS).kid
    alg = rng.choice(["none", "HS256", "ES256", "EdDSA", "RS256", "es256", "ES384", "", "HS512"])
    signing_input = f"{b64(json.dumps({'alg': alg, 'kid': kid, 'typ': TYP}))}.{body}"
    secret = json.dumps(rng.choice(KEYS).public_jwk()).encode()
    signature = rng.choice([b"", hmac.new(secret, signing_input.encode(), hashlib.sha256).digest(), STRANGER.sign(signing_input.encode())])
    return f"{signing_input}.{b64(signature)}"


@pytest.mark.timeout(0)
def test_no_forged_token_is_believed(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is done to a token without the issuer's key: not one is accepted, and nothing but a refusal is raised."""
    rng = random.Random(7515)
    issuers = [LocalIssuer(key) for key in KEYS]
    verifier = Verifier(issuer=issuers[0].issuer, jwks={"keys": [key.public_jwk() for key in KEYS]})
    tokens = [issuer.issue(a_request(jti=f"j-{i}")) for i, issuer in enumerate(issuers)]
    signed = {token.split(".")[1] for token in tokens}
    codes: dict[str, int] = {}
    accepted = 0
    for i in range(COUNT):
        forge = (_bytes, _cut, _rewritten, _confused)[i % 4]
        forged = forge(rng, rng.choice(tokens))
        try:
            verifier.verify(forged, audience=BANK, tenant="acme", now=NOW)
        except CredentialError as exc:
            codes[exc.code] = codes.get(exc.code, 0) + 1
        else:
            accepted += forged.split(".")[1] not in signed
    with capsys.disabled():
        print(f"\n{COUNT} forged tokens, {accepted} accepted; refused as {dict(sorted(codes.items()))}")
    assert accepted == 0
    assert sum(codes.values()) >= COUNT * 0.9  # the rest were unharmed by their mutation


@pytest.mark.timeout(0)
def test_no_forged_proof_is_believed(capsys: pytest.CaptureFixture[str]) -> None:
    """Likewise for DPoP proofs, against the token's own key."""
    rng = random.Random(9449)
    token = "a.b.c"
    asked = {"htm": "POST", "htu": BANK + "/pay", "token": token, "jkt": KEYS[0].kid, "now": NOW}
    jwk = {k: v for k, v in KEYS[0].public_jwk().items() if k in ("kty", "crv", "x", "y")}
    claims = {"jti": "p", "htm": "POST", "htu": BANK + "/pay", "iat": NOW, "ath": token_digest(token)}
    signing_input = f"{b64(json.dumps({'typ': 'dpop+jwt', 'alg': 'ES256', 'jwk': jwk}))}.{b64(json.dumps(claims))}"
    proof = f"{signing_input}.{b64(KEYS[0].sign(signing_input.encode()))}"
    read_proof(proof, **asked)
    accepted = refused = 0
    for i in range(COUNT):
        forged = (_bytes, _cut, _rewritten)[i % 3](rng, proof)
        try:
            read_proof(forged, **asked)
        except CredentialError as exc:
            assert exc.code == "proof_invalid"
            refused += 1
        else:
            accepted += forged.rpartition(".")[0] != signing_input
    with capsys.disabled():
        print(f"\n{COUNT} forged proofs, {accepted} accepted, {refused} refused")
    assert accepted == 0 and refused >= COUNT * 0.9


ISSUER = LocalIssuer(KEYS[0])
VERIFIER = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks())
CLAIMS = claims_of(a_request(), ISSUER.issuer)
HEADER = {"alg": "ES256", "kid": KEYS[0].kid, "typ": TYP}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=10,
)


def verify(token: Any) -> Credential | None:
    """Return the credential, or `None` for a proper refusal; any other exception fails the test."""
    try:
        return VERIFIER.verify(token, audience=BANK, tenant="acme", now=NOW)
    except CredentialError as exc:
        assert exc.code.startswith("credential_") or exc.code == "audience"
        assert exc.__context__ is None
        return None


def signed(header: object, claims: object) -> str:
    return forged(KEYS[0], ISSUER.issuer, claims, header)


@settings(deadline=None)
@given(st.text() | st.binary() | JSON)
def test_anything_else_is_refused(value: Any) -> None:
    """Whatever is handed in, the answer is a refusal with a code."""
    assert verify(value) is None


@settings(deadline=None)
@given(st.sampled_from(sorted(CLAIMS)), JSON)
def test_a_signed_claim_of_another_kind_is_refused_or_told(name: str, value: Any) -> None:
    """With our own signature, a claim either fits its type or the token is refused; nothing else happens."""
    assume(value != CLAIMS[name])
    assert verify(signed(HEADER, CLAIMS)) is not None
    got = verify(signed(HEADER, {**CLAIMS, name: value}))
    if got is not None:
        assert name in ("sub", "sub_type", "jti", "txn", "exp", "iat", "task", "act", "authorization_details")
        for prop in (got.subject, got.actor, got.tenant, got.audience, got.jti, got.txn):
            assert isinstance(prop, str)
        assert isinstance(got.epoch, int) and isinstance(got.expires_at, int)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "jku", "b64", "zip"]), JSON))
def test_a_signed_header_of_another_kind_is_refused(header: dict[str, Any]) -> None:
    """With our own signature, any other header is refused."""
    assert verify(signed({**HEADER, **header}, CLAIMS)) is None or {**HEADER, **header} == HEADER
    assert verify(signed(header, CLAIMS)) is None
