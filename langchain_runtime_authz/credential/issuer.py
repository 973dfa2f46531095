"""Define the issuer of tokens, an issuer in this process, and minting.

An issuer in this process stops a hijacked model, but not hostile code in the process, which can use the key. A remote
issuer stops both: it receives the `TokenRequest` as JSON, attests its caller, asks the PDP itself and sets the times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz._validate import checked_text
from langchain_runtime_authz.credential import token as names
from langchain_runtime_authz.credential.jws import sign_compact
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.signer import Secret, Signer, SigningKey
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.verifier import Verifier

LOCAL: Final = "urn:langchain-runtime-authz:local"
# A remote issuer sets these claims itself, and the verifier checks them.
_OWN: Final = {names.ISSUER, names.EXPIRES_AT, names.ISSUED_AT, names.ACTOR}


@runtime_checkable
class Issuer(Protocol):
    """Signs a token request, or refuses it."""

    @property
    def issuer(self) -> str:
        """Return the `iss` of its tokens."""

    def issue(self, request: names.TokenRequest) -> str:
        """Return the compact JWT for `request`. Raises `CredentialError` to refuse."""

    async def aissue(self, request: names.TokenRequest) -> str:
        """Issue like `issue`, without blocking the event loop."""

    def jwks(self) -> Mapping[str, Any]:
        """Return the JWK set (RFC 7517 §5) that verifies this issuer's tokens."""


class LocalIssuer(Secret):
    """Signs tokens in this process, in about 40 µs each.

    Args:
        key: one key, or a `KeyRing`, whose active key signs. By default a new ES256 key in memory: after a restart,
            tokens that it signed are not accepted.
        issuer: the `iss` of its tokens.
    """

    def __init__(self, key: Signer | KeyRing | None = None, issuer: str = LOCAL) -> None:
        self.issuer = checked_text("issuer", issuer)
        self._keys: Signer | KeyRing = SigningKey.generate() if key is None else key
        self.ring = key if isinstance(key, KeyRing) else None

    def issue(self, request: names.TokenRequest) -> str:
        """Return the compact JWT. Raises `credential_unavailable` or `keys_unavailable`."""
        # INVARIANT: exp - iat ≤ 60 s.
        if not 0 < request.expires_at - request.issued_at <= names.MAX_TTL:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, f"a token lives between 1 and {names.MAX_TTL} seconds")
        token = sign_compact(names.TYP, claims_of(request, self.issuer), self._signer)
        if len(token) > names.MAX_TOKEN:
            detail = f"the grant is too large for a token of {names.MAX_TOKEN} characters"
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE, detail)
        return token

    async def aissue(self, request: names.TokenRequest) -> str:
        """Issue like `issue`. A signer outside this process runs in a thread."""
        here = isinstance(self._signer, SigningKey)
        return self.issue(request) if here else await asyncio.to_thread(self.issue, request)

    def jwks(self) -> dict[str, Any]:
        return {"keys": [self._signer.public_jwk()]} if self.ring is None else self.ring.jwks()

    @property
    def _signer(self) -> Signer:
        return self._keys if self.ring is None else self.ring.active  # type: ignore[return-value]

    @property
    def ephemeral(self) -> bool:
        """True if the signing key exists only in this process's memory."""
        return getattr(self._signer, "ephemeral", False)

    def __repr__(self) -> str:
        return f"<LocalIssuer {self.issuer} {self._keys!r}>"


def claims_of(request: names.TokenRequest, issuer: str) -> dict[str, Any]:
    """Return the claims of the token that `issuer` signs for `request`."""
    actor: dict[str, Any] = {}
    for agent in (*reversed(request.delegators), request.agent):
        actor = {names.ISSUER: issuer, names.SUBJECT: agent, **({names.ACTOR: actor} if actor else {})}
    detail: dict[str, Any] = {"type": names.GRANT_TYPE, "actions": [request.action], "identifier": request.tool}
    if request.grant is not None:
        detail["grant"] = request.grant.to_json()
    return {
        names.ISSUER: issuer,
        names.SUBJECT: request.subject.id,
        names.SUBJECT_TYPE: request.subject.type,
        names.AUDIENCE: request.audience,
        names.EXPIRES_AT: request.expires_at,
        names.ISSUED_AT: request.issued_at,
        names.TOKEN_ID: request.jti,
        names.TRANSACTION: request.txn,
        names.CLIENT_ID: request.agent,
        names.TENANT: request.tenant,
        names.ACTOR: actor,
        names.AUTHORIZATION_DETAILS: [detail, *request.details],
        names.TASK: request.task.model_dump(exclude_none=True),
        **({names.CONFIRMATION: {names.JKT: request.cnf_jkt}} if request.cnf_jkt is not None else {}),
    }


def mint_credential(
    issuer: Issuer, request: names.TokenRequest, *, verifier: Verifier | None = None
) -> Flow[names.Credential]:
    """Let the issuer sign `request`, and return the credential.

    A `LocalIssuer` is trusted. The token of any other issuer must pass `verifier` and hold the requested claims. Raises
    `CredentialError` if the issuer refuses, or if its token is for another request.
    """
    asked = claims_of(request, issuer.issuer)
    if type(issuer) is not LocalIssuer and verifier is None:
        raise ConfigError("the tokens of an issuer outside this process are verified: pass a verifier")
    token = yield Perform(issuer.issue, issuer.aissue, request)
    if type(issuer) is LocalIssuer or verifier is None:
        return names.seal_credential(token, asked)
    own = {"audience": request.audience, "tenant": request.tenant, "now": request.issued_at, "bound": True}
    got: names.Credential = yield Perform(verifier.verify, verifier.averify, token, **own)
    asked = names.freeze_claims(asked)
    same = all(got.claims.get(name) == asked.get(name) for name in {*asked, names.CONFIRMATION} - _OWN)
    same = same and got.expires_at <= request.expires_at + names.LEEWAY  # the issuer's clock may differ
    if not same or got.actor != asked[names.ACTOR][names.SUBJECT]:
        raise CredentialError(Code.CREDENTIAL_INVALID, "the issuer answered with another credential")
    return got


mint, amint = both(mint_credential)
