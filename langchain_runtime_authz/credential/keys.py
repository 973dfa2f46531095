"""Signing keys: what an issuer needs of one, and one that lives in this process.

Algorithms: ES256 (RFC 7518 §3.4, P-256), EdDSA (RFC 8037, Ed25519) and, for keys and services that know
nothing newer, RS256 (RFC 7518 §3.3, 2048 bits or more). No symmetric algorithm: a verifier never holds
what an issuer holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final, Literal, NoReturn, Protocol, cast, get_args, runtime_checkable

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
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

__all__ = ["ALGORITHMS", "Alg", "Signer", "SigningKey", "thumbprint"]

Alg = Literal["ES256", "EdDSA", "RS256"]
ALGORITHMS: Final[tuple[Alg, ...]] = get_args(Alg)

_EC: Final = ECAlgorithm(ECAlgorithm.SHA256, SECP256R1)
_OKP: Final = OKPAlgorithm()
_RSA: Final = RSAAlgorithm(RSAAlgorithm.SHA256)
MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
MAX_RSA_BITS: Final = 8192  # a verification costs the square of it
NEW_RSA_BITS: Final = 3072
_PUBLIC_EXPONENT: Final = 65537
# RFC 7638 §3.2, RFC 8037 §2: the members that make the key
_THUMBPRINT_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}

_Private = EllipticCurvePrivateKey | Ed25519PrivateKey | RSAPrivateKey
_MAKERS: Final[dict[str, Callable[[], _Private]]] = {
    "ES256": lambda: generate_private_key(SECP256R1()),
    "EdDSA": Ed25519PrivateKey.generate,
    "RS256": lambda: generate_rsa_key(_PUBLIC_EXPONENT, NEW_RSA_BITS),
}


@runtime_checkable
class Signer(Protocol):
    """A private key that signs, wherever it lives: here, in a KMS, behind PKCS #11.

    A remote signer's `sign` blocks; an issuer outside this process is then the better place for it.

    Attributes:
        alg: JWS algorithm.
        kid: RFC 7638 thumbprint of the public key.
    """

    @property
    def alg(self) -> str:
        """JWS algorithm (RFC 7518)."""
        ...

    @property
    def kid(self) -> str:
        """RFC 7638 thumbprint of the public key."""
        ...

    def sign(self, signing_input: bytes) -> bytes:
        """The JWS signature of `signing_input`; for ES256 the 64 bytes r‖s, not DER (RFC 7518 §3.4)."""
        ...

    def public_jwk(self) -> dict[str, str]:
        """The public key (RFC 7517) with `kid`, `alg` and `use`."""
        ...


def thumbprint(jwk: Mapping[str, object]) -> str:
    """RFC 7638 SHA-256 thumbprint of a public JWK, base64url.

    Raises:
        ConfigError: not an EC, OKP or RSA key, or a member is missing or no string.
    """
    kty = jwk.get("kty")
    names = _THUMBPRINT_MEMBERS.get(kty, ()) if isinstance(kty, str) else ()
    required = {name: jwk.get(name) for name in names}
    if not required or not all(isinstance(value, str) for value in required.values()):
        msg = "a JWK of type EC, OKP or RSA is needed"
        raise ConfigError(msg)
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    return base64url_encode(hashlib.sha256(canonical).digest()).decode()


class SigningKey:
    """A private key in this process. Made by `generate` or `from_pem`.

    The private part never leaves it but as PEM for a key directory: no text form, copy or pickle
    holds it.

    Attributes:
        ephemeral: True for a key of `generate`, which ends with the process unless its PEM is kept.
    """

    __slots__ = ("_alg", "_jwk", "_kid", "_private", "ephemeral")

    def __init__(self, private: _Private) -> None:
        if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1):
            self._alg: Alg = "ES256"
            jwk = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        elif isinstance(private, Ed25519PrivateKey):
            self._alg = "EdDSA"
            jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        elif isinstance(private, RSAPrivateKey) and private.key_size >= MIN_RSA_BITS:
            self._alg = "RS256"
            jwk = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
        else:
            msg = f"a signing key is a P-256, Ed25519 or RSA (≥ {MIN_RSA_BITS} bits) private key"
            raise ConfigError(msg)
        self.ephemeral = False
        self._private = private
        self._kid = thumbprint(jwk)
        members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
        self._jwk = {**members, "kid": self._kid, "alg": self._alg, "use": "sig"}

    @classmethod
    def generate(cls, alg: Alg = "ES256") -> SigningKey:
        """Return a new key, which ends with the process.

        Raises:
            ConfigError: another algorithm than ES256, EdDSA or RS256.
        """
        if alg not in ALGORITHMS:
            msg = f"the algorithm is one of {', '.join(ALGORITHMS)}"
            raise ConfigError(msg)
        while True:
            key = cls(_MAKERS[alg]())
            # A name that begins with a dash is an option to every command line.
            if not key.kid.startswith("-"):
                key.ephemeral = True
                return key

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> SigningKey:
        """A key from PEM (PKCS #8 or SEC 1).

        Raises:
            ConfigError: not a P-256, Ed25519 or RSA private key, or the password is wrong.
        """
        try:
            private = load_pem_private_key(pem, password)
        except Exception:  # noqa: BLE001  (any failure of the parser; its text may quote the input)
            msg = "the PEM holds no private key that can be read with this password"
            raise ConfigError(msg) from None
        return cls(cast("_Private", private))  # checked in `__init__`

    def to_pem(self, password: bytes | None = None) -> bytes:
        """The private key as PKCS #8 PEM, for `keydir.KeyDirectory`. Never log it."""
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    @property
    def alg(self) -> Alg:
        """JWS algorithm."""
        return self._alg

    @property
    def kid(self) -> str:
        """RFC 7638 thumbprint of the public key."""
        return self._kid

    def sign(self, signing_input: bytes) -> bytes:
        """The JWS signature of `signing_input`."""
        if isinstance(self._private, Ed25519PrivateKey):
            return _OKP.sign(signing_input, self._private)
        if isinstance(self._private, RSAPrivateKey):
            return _RSA.sign(signing_input, self._private)
        return _EC.sign(signing_input, self._private)

    def public_jwk(self) -> dict[str, str]:
        """The public key (RFC 7517) with `kid`, `alg` and `use`."""
        return dict(self._jwk)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """A JWK set (RFC 7517 §5) that holds this public key."""
        return {"keys": [self.public_jwk()]}

    def __repr__(self) -> str:
        return f"<SigningKey alg={self._alg} kid={self._kid}>"

    def __reduce__(self) -> NoReturn:
        # Copies come this way too: there is one object per private key.
        msg = "a SigningKey can not be copied or pickled"
        raise TypeError(msg)
