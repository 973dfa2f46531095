"""Signing keys: the protocol of a signer, and a key in this process.

Algorithms: ES256 (RFC 7518 §3.4, P-256), EdDSA (RFC 8037, Ed25519) and, for older keys and services, RS256 (RFC 7518
§3.3, 2048 bits or more). None is symmetric, so a verifier never holds an issuer's secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, NoReturn, Protocol, cast, get_args, runtime_checkable

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from langchain_runtime_authz.errors import ConfigError

Alg = Literal["ES256", "EdDSA", "RS256"]
ALGORITHMS: Final[tuple[Alg, ...]] = get_args(Alg)

MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
MAX_RSA_BITS: Final = 8192  # the cost of verification grows with its square
NEW_RSA_BITS: Final = 3072
_PUBLIC_EXPONENT: Final = 65537
# RFC 7638 §3.2, RFC 8037 §2: the members of the key itself
_THUMBPRINT_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}

_Private = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey
_SIGN: Final[dict[str, Any]] = {
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, SECP256R1),
    "EdDSA": OKPAlgorithm(),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
}
_MAKERS: Final[dict[str, Callable[[], _Private]]] = {
    "ES256": lambda: generate_private_key(SECP256R1()),
    "EdDSA": Ed25519PrivateKey.generate,
    "RS256": lambda: generate_rsa_key(_PUBLIC_EXPONENT, NEW_RSA_BITS),
}


@runtime_checkable
class Signer(Protocol):
    """A private key that signs: in this process, in a KMS, or behind PKCS #11."""

    @property
    def alg(self) -> str:
        """Return the JWS algorithm (RFC 7518)."""

    @property
    def kid(self) -> str:
        """Return the RFC 7638 thumbprint of the public key."""

    def sign(self, signing_input: bytes) -> bytes:
        """Return the JWS signature, for ES256 as r‖s (RFC 7518 §3.4). May block."""

    def public_jwk(self) -> dict[str, str]:
        """Return the public key (RFC 7517) with `kid`, `alg` and `use`."""


def checked_algorithms(algorithms: Collection[str]) -> frozenset[str]:
    """Return `algorithms` as a set. Raises `ConfigError` if one is not supported."""
    if isinstance(algorithms, str) or not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigError(f"`algorithms` must be some of {', '.join(ALGORITHMS)}")
    return frozenset(algorithms)


def jwk_thumbprint(jwk: Mapping[str, object]) -> str:
    """Return the RFC 7638 thumbprint of a public JWK. Raises `ConfigError` for others."""
    kty = jwk.get("kty")
    names = _THUMBPRINT_MEMBERS.get(kty, ()) if isinstance(kty, str) else ()
    required = {name: jwk.get(name) for name in names}
    if not required or not all(isinstance(value, str) for value in required.values()):
        raise ConfigError("a JWK of type EC, OKP or RSA is needed")
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    return base64url_encode(hashlib.sha256(canonical).digest()).decode()


class Secret:
    """An object that cannot be copied or pickled."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:  # `copy` uses this method too
        raise TypeError(f"`{type(self).__name__}` cannot be copied or pickled")


class SigningKey(Secret):
    """A private key in this process. Only `to_pem` shows the private part."""

    __slots__ = ("_jwk", "_private", "alg", "ephemeral", "kid")

    def __init__(self, private: _Private) -> None:
        self.alg: Alg
        if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1):
            self.alg = "ES256"
        elif isinstance(private, Ed25519PrivateKey):
            self.alg = "EdDSA"
        elif isinstance(private, RSAPrivateKey) and private.key_size >= MIN_RSA_BITS:
            self.alg = "RS256"
        else:
            raise ConfigError(f"a signing key is a P-256, Ed25519 or RSA (≥ {MIN_RSA_BITS} bits) private key")
        self.ephemeral = False
        self._private = private
        jwk = _SIGN[self.alg].to_jwk(private.public_key(), as_dict=True)
        self.kid = jwk_thumbprint(jwk)
        members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
        self._jwk = {**members, "kid": self.kid, "alg": self.alg, "use": "sig"}

    @classmethod
    def generate(cls, alg: Alg = "ES256") -> SigningKey:
        """Return a new key in memory. Raises `ConfigError` for an unknown `alg`."""
        if alg not in ALGORITHMS:
            raise ConfigError(f"the algorithm is one of {', '.join(ALGORITHMS)}")
        while True:
            key = cls(_MAKERS[alg]())
            if not key.kid.startswith("-"):  # on a command line, such a `kid` would look like an option
                key.ephemeral = True
                return key

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> SigningKey:
        """Return the key in a PEM (PKCS #8 or SEC 1), or raise `ConfigError`."""
        try:
            private = load_pem_private_key(pem, password)
        except Exception:  # noqa: BLE001  (any failure of the parser; its text may quote the input)
            raise ConfigError("the PEM does not hold a private key that this password opens") from None
        return cls(cast("_Private", private))  # checked in `__init__`

    def to_pem(self, password: bytes | None = None) -> bytes:
        """Return the private key as PKCS #8 PEM, for `keyring.KeyDirectory`. Never log it."""
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def sign(self, signing_input: bytes) -> bytes:
        signature: bytes = _SIGN[self.alg].sign(signing_input, self._private)
        return signature

    def public_jwk(self) -> dict[str, str]:
        return dict(self._jwk)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return a JWK set (RFC 7517 §5) of this public key."""
        return {"keys": [self.public_jwk()]}

    def __repr__(self) -> str:
        return f"<SigningKey alg={self.alg} kid={self.kid}>"
