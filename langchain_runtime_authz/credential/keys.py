"""Signing keys: what an issuer needs of one, and one that lives in this process.

Algorithms: ES256 (RFC 7518 §3.4, P-256) and EdDSA (RFC 8037, Ed25519). No symmetric algorithm and no
RSA: a verifier never holds what an issuer holds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final, Literal, NoReturn, Protocol, cast, get_args, runtime_checkable

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm
from jwt.utils import base64url_encode

from langchain_runtime_authz.errors import ConfigError

__all__ = ["ALGORITHMS", "Alg", "Signer", "SigningKey", "thumbprint"]

Alg = Literal["ES256", "EdDSA"]
ALGORITHMS: Final[tuple[Alg, ...]] = get_args(Alg)

_EC: Final = ECAlgorithm(ECAlgorithm.SHA256, SECP256R1)
_OKP: Final = OKPAlgorithm()
# RFC 7638 §3.2, RFC 8037 §2: the members that make the key
_THUMBPRINT_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}


@runtime_checkable
class Signer(Protocol):
    """A private key that signs, wherever it lives: here, in a KMS, in an HSM.

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


def thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638 SHA-256 thumbprint of a public JWK, base64url.

    Raises:
        ConfigError: not an EC or OKP key, or a member is missing.
    """
    try:
        required = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    except KeyError:
        msg = "a JWK of type EC or OKP is needed"
        raise ConfigError(msg) from None
    canonical = json.dumps(required, sort_keys=True, separators=(",", ":")).encode()
    return base64url_encode(hashlib.sha256(canonical).digest()).decode()


class SigningKey:
    """A private key in this process. Made by `generate` or `from_pem`.

    The private part never leaves it: no text form, copy or pickle holds it, and there is no export.
    """

    __slots__ = ("_alg", "_jwk", "_kid", "_private")

    def __init__(self, private: EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
        if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1):
            self._alg: Alg = "ES256"
            jwk = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
        elif isinstance(private, Ed25519PrivateKey):
            self._alg = "EdDSA"
            jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        else:
            msg = "a signing key is a P-256 or Ed25519 private key"
            raise ConfigError(msg)
        self._private = private
        self._kid = thumbprint(cast("dict[str, str]", jwk))
        self._jwk = {**jwk, "kid": self._kid, "alg": self._alg, "use": "sig"}

    @classmethod
    def generate(cls, alg: Alg = "ES256") -> SigningKey:
        """A new key that dies with the process.

        Raises:
            ConfigError: another algorithm than ES256 or EdDSA.
        """
        if alg not in ALGORITHMS:
            msg = f"the algorithm is one of {', '.join(ALGORITHMS)}"
            raise ConfigError(msg)
        return cls(generate_private_key(SECP256R1()) if alg == "ES256" else Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> SigningKey:
        """A key from PEM (PKCS #8 or SEC 1).

        Raises:
            ConfigError: not a P-256 or Ed25519 private key, or the password is wrong.
        """
        try:
            private = load_pem_private_key(pem, password)
        except Exception:  # noqa: BLE001  (any failure of the parser; its text may quote the input)
            msg = "the PEM holds no private key that can be read with this password"
            raise ConfigError(msg) from None
        return cls(cast("EllipticCurvePrivateKey", private))  # checked in `__init__`

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
