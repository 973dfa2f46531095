"""Compact JWS (RFC 7515 §7.1), read strictly.

One token has one spelling, the header holds exactly the members that its `typ` allows, and the key
says which algorithm it is for, not the header (RFC 8725 §3.1). Our tokens and DPoP proofs are read
here, so that both are refused for the same things.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError
from jwt.utils import base64url_decode, base64url_encode

from langchain_runtime_authz.credential.keys import MAX_RSA_BITS, MIN_RSA_BITS
from langchain_runtime_authz.credential.token import MAX_TOKEN
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.errors import Code, CredentialError

__all__ = ["KEY_TYPES", "Jws", "decoded", "is_signed", "json_object", "public_key", "read", "refuse"]

KEY_TYPES: Final = {"ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519"), "RS256": ("RSA", None)}
# RFC 7518 §6.2.2, §6.3.2, §6.4, RFC 8037 §2: members that only private or symmetric keys have
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

MAX_MODULUS: Final = 2 * MAX_RSA_BITS // 8  # characters of `n`
MIN_EXPONENT, MAX_EXPONENT = 2**16, 2**32  # a larger one makes each verification dear
_VERIFY: Final = ["verify"]
_PARTS: Final = 3  # header, payload, signature
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class Jws(NamedTuple):
    """A compact JWS taken apart; nothing of it is believed yet. Its text form shows nothing."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes

    @property
    def alg(self) -> str:
        """Checked against the allow-list of `read`."""
        return str(self.header["alg"])

    def __repr__(self) -> str:
        return "<Jws>"


def read(
    token: object,
    *,
    typ: str,
    members: Collection[str],
    algorithms: Collection[str],
    code: Code = Code.CREDENTIAL_INVALID,
) -> Jws:
    """Take `token` apart.

    Args:
        token: what was presented.
        typ: the one `typ` that is read here (RFC 8725 §3.11).
        members: exactly what the header must hold: `crit`, `jku`, `x5u`, `b64` have no say.
        algorithms: allow-list.
        code: of the refusal.

    Raises:
        CredentialError: with `code`. Never quotes the token, and has no cause or context that would.
    """
    if not isinstance(token, str):
        refuse("it is not a string", code)
    if len(token) > MAX_TOKEN:
        refuse("it is too large", code)
    parts = _COMPACT.fullmatch(token)
    if parts is None:
        refuse("it is not a compact JWS", code)
    # Base64 has spare bits: one token must have one spelling.
    segments = [data for part in parts.groups() if (data := decoded(part)) is not None]
    if len(segments) != _PARTS:
        refuse("it is not base64url", code)
    header = json_object(segments[0])
    if header is None:
        refuse("its header is not a JSON object", code)
    if set(header) != set(members):
        refuse(f"its header holds other members than {', '.join(members)}", code)
    if header["typ"] != typ:
        refuse("its `typ` is another", code)
    if not isinstance(header["alg"], str) or header["alg"] not in algorithms:
        refuse("its `alg` is not permitted", code)
    claims = json_object(segments[1])
    if claims is None:
        refuse("its claims are not a JSON object", code)
    return Jws(header, claims, token[: parts.end(2)].encode(), segments[2])


def public_key(jwk: Mapping[str, Any], alg: str) -> PyJWK | None:
    """The key that `jwk` is, where it is a public key for signatures with `alg`; else `None`."""
    if PRIVATE_MEMBERS & set(jwk):
        return None
    if (jwk.get("kty"), jwk.get("crv")) != KEY_TYPES.get(alg) or jwk.get("alg", alg) != alg:
        return None
    # RFC 7517 §4.2, §4.3: a key for anything else, or whose members contradict each other, is for nothing.
    if jwk.get("use", "sig") != "sig" or jwk.get("key_ops", _VERIFY) != _VERIFY:
        return None
    if len(str(jwk.get("n", ""))) > MAX_MODULUS:  # before it is a number
        return None
    try:
        key = PyJWK(dict(jwk), algorithm=alg)
    except (PyJWTError, ValueError, TypeError, AttributeError, OverflowError):
        return None
    return key if alg != "RS256" or _is_sound(key.key) else None


def _is_sound(key: object) -> bool:
    """Whether an RSA key is of a usual size, and such as FIPS 186-5 §5.4 makes them."""
    if not isinstance(key, RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return False
    numbers = key.public_numbers()
    return bool(numbers.n & 1) and bool(numbers.e & 1) and MIN_EXPONENT < numbers.e < MAX_EXPONENT


def is_signed(jws: Jws, key: PyJWK) -> bool:
    """Whether `jws` was signed with the private part of `key`."""
    try:
        return bool(key.Algorithm.verify(jws.signing_input, key.key, jws.signature))
    except (PyJWTError, ValueError, TypeError):
        return False


def refuse(why: str, code: Code = Code.CREDENTIAL_INVALID) -> NoReturn:
    """Raise the refusal. Call it outside any `except`: a context would quote what was parsed."""
    raise CredentialError(code, why)


# The helpers below answer instead of raising, for the same reason.


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object that a segment holds, if it does."""
    try:
        return parse_object(data)
    except ValueError:
        return None


def decoded(segment: str) -> bytes | None:
    """The bytes of a segment in base64url, in its one spelling; else `None`."""
    try:
        data = base64url_decode(segment)
    except ValueError:
        return None
    return data if base64url_encode(data).decode() == segment else None
