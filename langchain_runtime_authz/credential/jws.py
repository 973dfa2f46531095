"""Compact JWS (RFC 7515 §7.1), written, and read strictly.

Only one encoding of a token is accepted. Its header holds exactly the members that belong to its `typ`. The key, not
the header, sets the algorithm (RFC 8725 §3.1). Tokens, approval statements and DPoP proofs are read by these rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError
from jwt.utils import base64url_decode, base64url_encode

from langchain_runtime_authz.credential.signer import MAX_RSA_BITS, MIN_RSA_BITS, Signer
from langchain_runtime_authz.credential.token import MAX_TOKEN
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import Code, CredentialError

KEY_TYPES: Final = {"ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519"), "RS256": ("RSA", None)}
# RFC 7518 §6.2.2, §6.3.2, §6.4, RFC 8037 §2: members of private or symmetric keys only
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
HEADER: Final = ("typ", "alg", "kid")

MAX_MODULUS: Final = 2 * MAX_RSA_BITS // 8  # characters of `n`
MIN_EXPONENT, MAX_EXPONENT = 2**16, 2**32  # a larger exponent makes each verification slow
_VERIFY: Final = ["verify"]
_PARTS: Final = 3  # header, payload, signature
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# ASCII, so that no claim depends on how a reader decodes it; NaN is refused.
_json: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Jws(NamedTuple):
    """A compact JWS in parts, not verified yet. Its `repr` shows no content."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "<Jws>"


def sign_compact(typ: str, claims: Mapping[str, Any], signer: Signer, jwk: Mapping[str, str] | None = None) -> str:
    """Return `claims` as a compact JWS whose header names the key, or holds `jwk`."""
    alg = signer.alg
    header = _header(typ, alg, signer.kid) if jwk is None else _encoded({"typ": typ, "alg": alg, "jwk": jwk})
    signing_input = header + b"." + _encoded(claims)
    return (signing_input + b"." + base64url_encode(signer.sign(signing_input))).decode()


def _encoded(part: Mapping[str, Any]) -> bytes:
    return base64url_encode(_json(part).encode())


@lru_cache(maxsize=64)
def _header(typ: str, alg: str, kid: str) -> bytes:
    return _encoded({"typ": typ, "alg": alg, "kid": kid})


def parse_jws(
    token: object,
    *,
    typ: str | None,
    members: Collection[str] = HEADER,
    algorithms: Collection[str],
    code: Code = Code.CREDENTIAL_INVALID,
) -> Jws:
    """Parse `token` without verifying it, or raise `CredentialError` with `code`.

    `typ` is the only type accepted (RFC 8725 §3.11). The header must hold exactly `members`, so `crit`, `jku`,
    `x5u` and `b64` are refused. If `typ` is `None` (another issuer's token), any member except a critical one is
    permitted. The error never quotes the token, not even in its cause or context.
    """
    if not isinstance(token, str):
        refuse("it is not a string", code)
    if len(token) > MAX_TOKEN:
        refuse("it is too large", code)
    parts = _COMPACT.fullmatch(token)
    if parts is None:
        refuse("it is not a compact JWS", code)
    # Base64 has unused bits, so several texts decode alike. Only the canonical text is accepted.
    segments = [data for part in parts.groups() if (data := decode_segment(part)) is not None]
    if len(segments) != _PARTS:
        refuse("it is not base64url", code)
    header = json_object(segments[0])
    if header is None:
        refuse("its header is not a JSON object", code)
    if typ is None and ("crit" in header or "b64" in header):
        refuse("its header has a critical member", code)
    if typ is not None and set(header) != set(members):
        refuse(f"its header holds other members than {', '.join(members)}", code)
    if typ is not None and header["typ"] != typ:
        refuse("its `typ` is another", code)
    if not isinstance(header.get("alg"), str) or header["alg"] not in algorithms:
        refuse("its `alg` is not permitted", code)
    if "kid" in members and not isinstance(header.get("kid"), str):
        refuse("its `kid` is not a string", code)
    claims = json_object(segments[1])
    if claims is None:
        refuse("its claims are not a JSON object", code)
    return Jws(header, claims, token[: parts.end(2)].encode(), segments[2])


def public_key(jwk: Mapping[str, Any], alg: str) -> PyJWK | None:
    """Return the key of `jwk` if it is a public signature key for `alg`, else `None`."""
    if PRIVATE_MEMBERS & set(jwk):
        return None
    if (jwk.get("kty"), jwk.get("crv")) != KEY_TYPES.get(alg) or jwk.get("alg", alg) != alg:
        return None
    # RFC 7517 §4.2, §4.3: refuse a key for another use, and one whose members contradict each other.
    if jwk.get("use", "sig") != "sig" or jwk.get("key_ops", _VERIFY) != _VERIFY:
        return None
    if len(str(jwk.get("n", ""))) > MAX_MODULUS:  # before it is parsed as a number
        return None
    try:
        key = PyJWK(dict(jwk), algorithm=alg)
    except (PyJWTError, ValueError, TypeError, AttributeError, OverflowError):
        return None
    return key if alg != "RS256" or _is_sound(key.key) else None


def _is_sound(key: object) -> bool:
    """Return True if an RSA key has a permitted size and fits FIPS 186-5 §5.4."""
    if not isinstance(key, RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return False
    numbers = key.public_numbers()
    return bool(numbers.n & 1) and bool(numbers.e & 1) and MIN_EXPONENT < numbers.e < MAX_EXPONENT


def is_signed_by(jws: Jws, jwk: object) -> bool:
    """Return True if `jwk` is a public key that verifies the signature of `jws`."""
    key = public_key(jwk, jws.header["alg"]) if isinstance(jwk, Mapping) else None
    return key is not None and is_signed(jws, key)


def is_signed(jws: Jws, key: PyJWK) -> bool:
    """Return True if `key` verifies the signature of `jws`."""
    try:
        return bool(key.Algorithm.verify(jws.signing_input, key.key, jws.signature))
    except (PyJWTError, ValueError, TypeError):
        return False


def refuse(why: str, code: Code = Code.CREDENTIAL_INVALID) -> NoReturn:
    """Raise `CredentialError`. In an `except`, its context would quote the token."""
    raise CredentialError(code, why)


# The helpers below return `None` instead of raising, so that the context of a refusal cannot quote the input.


def json_object(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object strictly, or return `None`."""
    try:
        return parse_object(data)
    except ValueError:
        return None


def decode_segment(segment: str) -> bytes | None:
    """Decode a base64url segment. Return None unless it is the canonical encoding."""
    try:
        data = base64url_decode(segment)
    except ValueError:
        return None
    return data if base64url_encode(data).decode() == segment else None
