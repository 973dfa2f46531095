"""Signing keys: what they are named by, and that they stay where they are."""

import copy
import json
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt import PyJWK

from langchain_runtime_authz.credential.signer import Signer, SigningKey, jwk_thumbprint
from langchain_runtime_authz.errors import ConfigError


def pem(private: Any, password: bytes | None = None, form: Any = ser.PrivateFormat.PKCS8) -> bytes:
    encryption = ser.BestAvailableEncryption(password) if password else ser.NoEncryption()
    data: bytes = private.private_bytes(ser.Encoding.PEM, form, encryption)
    return data


RSA = {
    "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCi"
    "FV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0"
    "zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csF"
    "Cur-kEgU8awapJzKnqDKgw",
}
OKP = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "ignored"}


@pytest.mark.parametrize(("jwk", "rfc"), [
    (OKP, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"), (RSA, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
], ids=["RFC 8037 A.3", "RFC 7638 3.1"])
def test_a_thumbprint_is_the_rfcs(jwk: dict[str, Any], rfc: str) -> None:
    assert jwk_thumbprint(jwk) == rfc


@pytest.mark.parametrize("jwk", [{}, {"kty": ["EC"]}, {"kty": "RSA", "n": 1, "e": "AQAB"}, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC", "crv": "P-256", "x": "a"}])
def test_a_thumbprint_needs_a_public_key(jwk: dict[str, Any]) -> None:
    """Symmetric keys and halves have none."""
    with pytest.raises(ConfigError):
        jwk_thumbprint(jwk)


@pytest.mark.parametrize(("alg", "size"), [("ES256", 64), ("EdDSA", 64), ("RS256", 384)])
def test_a_key_signs_as_its_jwk_says(alg: Any, size: int) -> None:
    """The signature is the JWS form and verifies with the published key."""
    key = SigningKey.generate(alg)
    assert isinstance(key, Signer)
    signature = key.sign(b"a.b")
    jwk = key.public_jwk()
    published = PyJWK(jwk)
    assert len(signature) == size and published.Algorithm.verify(b"a.b", published.key, signature)
    assert jwk["kid"] == key.kid == jwk_thumbprint(jwk)
    assert (jwk["alg"], jwk["use"]) == (alg, "sig") and key.jwks() == {"keys": [jwk]}
    jwk["x"] = "changed"
    assert key.public_jwk() != jwk


@pytest.mark.parametrize("form", [ser.PrivateFormat.PKCS8, ser.PrivateFormat.TraditionalOpenSSL])
def test_a_key_from_pem_is_the_same_key(form: Any) -> None:
    """PKCS #8 and SEC 1 both load, with or without a password."""
    private = ec.generate_private_key(ec.SECP256R1())
    assert SigningKey.from_pem(pem(private, form=form)).kid == SigningKey(private).kid
    assert SigningKey.from_pem(pem(private, b"word"), b"word").kid == SigningKey(private).kid
    edwards = ed25519.Ed25519PrivateKey.generate()
    assert SigningKey.from_pem(pem(edwards)).alg == "EdDSA"


@pytest.mark.parametrize("text", [
    b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    pem(ec.generate_private_key(ec.SECP384R1())), pem(ec.generate_private_key(ec.SECP256K1())),
    pem(rsa.generate_private_key(65537, 1024)), pem(ed448.Ed448PrivateKey.generate()),
    pem(ec.generate_private_key(ec.SECP256R1()), b"word"),
], ids=["empty", "junk", "p384", "secp256k1", "short rsa", "ed448", "no password"])
def test_another_key_is_refused_without_quoting_it(text: bytes) -> None:
    """Only P-256, Ed25519 and RSA of 2048 bits sign, and an error never holds key material."""
    with pytest.raises(ConfigError) as caught:
        SigningKey.from_pem(text)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "BEGIN" not in str(caught.value)


def test_an_unknown_algorithm_is_refused() -> None:
    """There is no HS256 key."""
    with pytest.raises(ConfigError):
        SigningKey.generate("HS256")  # type: ignore[arg-type]


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256"])
def test_private_material_stays(alg: Any) -> None:
    """Not in text, nowhere to be copied or pickled to."""
    key = SigningKey.generate(alg)
    raw = key._private
    assert repr(key) == str(key) == f"<SigningKey alg={alg} kid={key.kid}>"
    assert not hasattr(key, "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, vars):
        with pytest.raises(TypeError):
            attempt(key)
    assert key._private is raw
