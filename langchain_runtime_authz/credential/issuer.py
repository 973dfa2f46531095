"""Who signs: the protocol, the issuer in this process, and the road from a permit to a credential.

An issuer in this process stops a hijacked model, not hostile code: code that can reach the key can
mint. Against that stands a remote issuer, which attests its caller, asks the PDP itself and sets its
own times; it receives the same `TokenRequest` as JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, runtime_checkable

from jwt.utils import base64url_encode

from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.keys import Signer, SigningKey
from langchain_runtime_authz.credential.token import (
    ACTOR,
    AUTHORIZATION_DETAILS,
    CLIENT_ID,
    CONFIRMATION,
    MAX_TOKEN,
    MAX_TTL,
    SUBJECT,
    SUBJECT_TYPE,
    TASK,
    TOKEN_ID,
    TRANSACTION,
    TYP,
    Credential,
    TokenRequest,
    claims_of,
    frozen,
    seal,
)
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.verifier import Verifier

__all__ = ["Issuer", "LocalIssuer", "amint", "mint"]

LOCAL: Final = "urn:langchain-runtime-authz:local"


@runtime_checkable
class Issuer(Protocol):
    """Signs what it is asked to sign, or refuses."""

    @property
    def issuer(self) -> str:
        """The `iss` of its tokens."""
        ...

    def issue(self, request: TokenRequest) -> str:
        """The compact JWT for `request`. Raises `CredentialError` where it refuses."""
        ...

    async def aissue(self, request: TokenRequest) -> str:
        """Like `issue`, without blocking the event loop."""
        ...

    def jwks(self) -> Mapping[str, Any]:
        """The JWK set (RFC 7517 §5) by which its tokens are verified."""
        ...


class LocalIssuer:
    """Signs in this process, about 40 µs a token.

    Args:
        key: what signs: one key, or a `KeyRing` whose active key signs at the moment; a new ES256 key
            by default, so that tokens die with the process.
        issuer: the `iss` of its tokens.
        max_ttl: greatest life of a token in seconds, at most 60.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(self, key: Signer | KeyRing | None = None, issuer: str = LOCAL, max_ttl: int = MAX_TTL) -> None:
        if not isinstance(issuer, str) or not issuer:
            msg = "`issuer` must be a name"
            raise ConfigError(msg)
        if type(max_ttl) is not int or not 0 < max_ttl <= MAX_TTL:
            msg = f"`max_ttl` must be between 1 and {MAX_TTL} seconds"
            raise ConfigError(msg)
        self.issuer = issuer
        self.max_ttl = max_ttl
        self._keys: Signer | KeyRing = SigningKey.generate() if key is None else key
        self._header: tuple[str, bytes] = ("", b"")

    def issue(self, request: TokenRequest) -> str:
        """The compact JWT for `request`.

        Raises:
            CredentialError: `credential_unavailable`: it would live too long or be too large;
                `keys_unavailable`.
        """
        # INVARIANT: exp - iat ≤ max_ttl ≤ 60 s.
        if not 0 < request.expires_at - request.issued_at <= self.max_ttl:
            detail = f"a token lives between 1 and {self.max_ttl} seconds"
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, detail)
        payload = base64url_encode(_compact(claims_of(request, self.issuer)))
        key = self._key
        signing_input = self._header_of(key) + b"." + payload
        token = signing_input + b"." + base64url_encode(key.sign(signing_input))
        if len(token) > MAX_TOKEN:
            detail = f"the grant is too large for a token of {MAX_TOKEN} characters"
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, detail)
        return token.decode()

    async def aissue(self, request: TokenRequest) -> str:
        """Like `issue`. A signature of a key in this process is too short to hand to a thread."""
        if isinstance(self._key, SigningKey):
            return self.issue(request)
        return await asyncio.to_thread(self.issue, request)

    def jwks(self) -> dict[str, Any]:
        """The JWK set (RFC 7517 §5) of the key, or of the ring."""
        return self._keys.jwks() if isinstance(self._keys, KeyRing) else {"keys": [self._keys.public_jwk()]}

    @property
    def _key(self) -> Signer:
        return self._keys.active if isinstance(self._keys, KeyRing) else self._keys

    @property
    def ephemeral(self) -> bool:
        """True if the key that signs ends with the process."""
        return getattr(self._key, "ephemeral", False)

    @property
    def ring(self) -> KeyRing | None:
        """The key ring, where there is one."""
        return self._keys if isinstance(self._keys, KeyRing) else None

    def _header_of(self, key: Signer) -> bytes:
        kid, header = self._header
        if kid != key.kid:
            header = base64url_encode(_compact({"alg": key.alg, "kid": key.kid, "typ": TYP}))
            self._header = (key.kid, header)
        return header

    def __repr__(self) -> str:
        return f"<LocalIssuer {self.issuer} {self._keys!r}>"

    def __reduce__(self) -> NoReturn:
        msg = "a LocalIssuer can not be copied or pickled"
        raise TypeError(msg)


def mint(issuer: Issuer, request: TokenRequest, *, verifier: Verifier | None = None) -> Credential:
    """Have `request` signed.

    What a `LocalIssuer` signed needs no second look; any other issuer's answer is believed after
    `verifier` accepted it and it says what was asked for.

    Raises:
        CredentialError: the issuer refused, or answered with something else.
        ConfigError: another issuer than a `LocalIssuer`, and no verifier.
    """
    if type(issuer) is LocalIssuer:
        return seal(issuer.issue(request), claims_of(request, issuer.issuer))
    believed = _needed(verifier)
    token = issuer.issue(request)
    got = believed.verify(token, audience=request.audience, tenant=request.tenant, now=request.issued_at)
    return _as_asked(got, claims_of(request, issuer.issuer))


async def amint(issuer: Issuer, request: TokenRequest, *, verifier: Verifier | None = None) -> Credential:
    """Like `mint`, without blocking the event loop."""
    if type(issuer) is LocalIssuer:
        return seal(await issuer.aissue(request), claims_of(request, issuer.issuer))
    believed = _needed(verifier)
    token = await issuer.aissue(request)
    got = await believed.averify(token, audience=request.audience, tenant=request.tenant, now=request.issued_at)
    return _as_asked(got, claims_of(request, issuer.issuer))


# Times and issuer are a remote issuer's own to set; the verifier has looked at them.
_ECHOED: Final = (
    SUBJECT,
    SUBJECT_TYPE,
    CLIENT_ID,
    AUTHORIZATION_DETAILS,
    CONFIRMATION,
    TRANSACTION,
    TOKEN_ID,
    TASK,
)


def _needed(verifier: Verifier | None) -> Verifier:
    if verifier is None:
        msg = "the tokens of an issuer outside this process are verified: give a verifier"
        raise ConfigError(msg)
    return verifier


def _as_asked(got: Credential, asked: Mapping[str, Any]) -> Credential:
    asked = frozen(asked)
    same = all(got.claims.get(name) == asked.get(name) for name in _ECHOED)
    if not same or got.actor != asked[ACTOR][SUBJECT]:
        raise CredentialError(Code.CREDENTIAL_INVALID, "the issuer answered with another credential")
    return got


def _compact(value: Mapping[str, Any]) -> bytes:
    # ASCII, so that no claim can depend on how a reader decodes it; NaN is refused.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
