"""The verifier: it alone makes a `Credential` of a token that somebody presents.

Without `status`, a verifier works offline: a token is accepted until `exp` plus leeway. With `status`, the token's
call, task and run must also be live.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from jwt import PyJWK

from langchain_runtime_authz._flow import Flow, Perform, both
from langchain_runtime_authz._validate import checked_text
from langchain_runtime_authz.credential import token as names
from langchain_runtime_authz.credential.jws import is_signed, parse_jws, public_key, refuse
from langchain_runtime_authz.credential.signer import ALGORITHMS, checked_algorithms
from langchain_runtime_authz.errors import Code, CredentialError

_OPTIONAL: Final = (names.NOT_BEFORE, names.CONFIRMATION)
_OF_TASK: Final = {"id": str, "digest": str, "epoch": int}
# For each claim: what it must be, and the test for it.
_SHAPES: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    **dict.fromkeys(
        (names.ISSUER, names.SUBJECT, names.SUBJECT_TYPE, names.AUDIENCE, names.TOKEN_ID, names.TRANSACTION,
         names.CLIENT_ID, names.TENANT),
        ("a string", lambda v: isinstance(v, str) and v != ""),
    ),
    **dict.fromkeys((names.EXPIRES_AT, names.ISSUED_AT, names.NOT_BEFORE), ("an integer", lambda v: type(v) is int)),
    names.TASK: (
        "an object with id, epoch and digest",
        lambda v: isinstance(v, dict) and all(type(v.get(n)) is k for n, k in _OF_TASK.items()) and v["epoch"] >= 0,
    ),
    names.ACTOR: ("an object", lambda v: isinstance(v, dict)),
    names.AUTHORIZATION_DETAILS: (
        "an array of objects with a type",
        lambda v: isinstance(v, list) and v != [] and all(isinstance(d, dict) and isinstance(d.get("type"), str) for d in v),
    ),
    names.CONFIRMATION: ("an object with jkt", lambda v: isinstance(v, dict) and isinstance(v.get(names.JKT), str)),
}  # fmt: skip

KeySet = Mapping[str, Any]


@runtime_checkable
class KeySource(Protocol):
    """A source of public keys."""

    def get(self, kid: str) -> Mapping[str, Any] | None:
        """Return the JWK of `kid`, or `None`. Raises `keys_unavailable` without a key set."""

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        """Return the JWK like `get`, without blocking the event loop."""


class _SetSource:
    def __init__(self, jwks: KeySet | Callable[[], KeySet]) -> None:
        self._jwks = jwks

    def get(self, kid: str) -> Mapping[str, Any] | None:
        found: list[Mapping[str, Any]] | None = None
        with suppress(Exception):  # a callable may fail in any way; then no key is known
            keys = (self._jwks() if callable(self._jwks) else self._jwks)["keys"]
            found = [jwk for jwk in keys if isinstance(jwk, Mapping) and jwk.get("kid") == kid]
        if found is None:
            raise CredentialError(Code.KEYS_UNAVAILABLE)
        return found[0] if len(found) == 1 else None

    async def aget(self, kid: str) -> Mapping[str, Any] | None:
        return self.get(kid)


def key_source(jwks: KeySet | Callable[[], KeySet] | KeySource) -> KeySource:
    """Return a `KeySource` of a JWK set, or of a callable that returns one."""
    if isinstance(jwks, KeySource) and not isinstance(jwks, Mapping):
        return jwks
    return _SetSource(jwks)


class Verifier:
    """Verifies the tokens of one issuer.

    Args:
        issuer: the `iss` that is accepted.
        jwks: the issuer's JWK set (RFC 7517 §5), a callable that returns it, or a `KeySource`. A callable runs at
            every verification, so that a withdrawn key is refused at once. It should not fetch the set each time.
        algorithms: accepted algorithms (RFC 8725 §3.1), of ES256, EdDSA and RS256.
        status: receives a token's claims and returns `live`; any other text refuses the token.
    """

    def __init__(
        self,
        *,
        issuer: str,
        jwks: KeySet | Callable[[], KeySet] | KeySource,
        algorithms: Sequence[str] = ALGORITHMS,
        status: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._issuer, self._keys = checked_text("issuer", issuer), key_source(jwks)
        self._algorithms, self._status = checked_algorithms(algorithms), status
        self._parsed: dict[str, tuple[dict[str, Any], PyJWK]] = {}  # JWK and its parsed key, by kid

    def _verify(
        self,
        token: str,
        *,
        audience: str | Collection[str],
        tenant: str | None = None,
        now: int | None = None,
        bound: bool = False,
    ) -> Flow[names.Credential]:
        """Verify `token` and return its credential.

        Args:
            token: compact JWS (RFC 7515 §7.1).
            audience: the service's name, equal to the token's `aud`; or a collection of names.
            tenant: the tenant whose data is requested; `None` only if there is one tenant.
            now: epoch seconds; the clock by default.
            bound: accept a token that is bound to a key (`cnf`). The caller then checks the proof of that key itself,
                as `ResourceServer` does.

        Raises `CredentialError`: `credential_invalid` (not one of ours, or altered), `credential_key`,
        `keys_unavailable`, `credential_expired`, `credential_not_yet_valid`, `credential_tenant`, `audience`,
        `proof_missing` (a bound token), `credential_revoked` or `status_unavailable`. No error quotes the token.
        """
        jws = parse_jws(token, typ=names.TYP, algorithms=self._algorithms)
        jwk = yield Perform(self._keys.get, self._keys.aget, jws.header["kid"])
        if not is_signed(jws, self._key(jwk, jws.header["kid"], jws.header["alg"])):
            refuse("its signature is wrong")
        claims = jws.claims
        self._check_claims(claims, tenant, int(time.time()) if now is None else now)
        if claims[names.AUDIENCE] not in ((audience,) if isinstance(audience, str) else audience):
            raise CredentialError(Code.AUDIENCE, "the token is for another audience")
        if names.CONFIRMATION in claims and not bound:
            raise CredentialError(Code.PROOF_MISSING, "no proof of its key is taken here")
        credential: names.Credential | None = None
        with suppress(ValueError):
            credential = names.seal_credential(token, claims)
        if credential is None:  # refused only here, as an exception's context would quote the token
            refuse("its claims are nested too deeply")
        if self._status is not None:
            asked = partial(_token_status, self._status, credential.claims)
            answer = yield Perform(asked, partial(asyncio.to_thread, asked))
            if answer != "live":
                raise CredentialError(Code.STATUS_UNAVAILABLE if answer is None else Code.CREDENTIAL_REVOKED)
        return credential

    verify, averify = both(_verify)

    def _key(self, jwk: Mapping[str, Any] | None, kid: str, alg: str) -> PyJWK:
        if jwk is None:
            raise CredentialError(Code.CREDENTIAL_KEY)
        # The cache compares the algorithm too: a key is for one algorithm, and the header may name another.
        cached = self._parsed.get(kid)
        if cached is not None and cached[0] == jwk and cached[1].algorithm_name == alg:
            return cached[1]
        key = public_key(jwk, alg)
        if key is None:
            refuse("its key is not a public key for its algorithm", Code.CREDENTIAL_KEY)
        self._parsed[kid] = (dict(jwk), key)
        return key

    def _check_claims(self, claims: dict[str, Any], tenant: str | None, now: int) -> None:
        for name, (wanted, fits) in _SHAPES.items():
            if not (name in _OPTIONAL and name not in claims) and not fits(claims.get(name)):
                refuse(f"`{name}` must be {wanted}")
        if claims[names.ACTOR].get(names.SUBJECT) != claims[names.CLIENT_ID]:
            refuse(f"`{names.ACTOR}` must name the client")
        issued, expires = claims[names.ISSUED_AT], claims[names.EXPIRES_AT]
        if claims[names.ISSUER] != self._issuer:
            refuse("its `iss` is another")
        if not 0 < expires - issued <= names.MAX_TTL + names.LEEWAY:
            refuse("it lives too long")
        if not now < expires + names.LEEWAY:
            raise CredentialError(Code.CREDENTIAL_EXPIRED)
        if issued > now + names.LEEWAY or claims.get(names.NOT_BEFORE, issued) > now + names.LEEWAY:
            raise CredentialError(Code.CREDENTIAL_NOT_YET_VALID)
        if tenant is not None and claims[names.TENANT] != tenant:
            raise CredentialError(Code.CREDENTIAL_TENANT)


def _token_status(status: Callable[[Mapping[str, Any]], str], claims: Mapping[str, Any]) -> object:
    try:  # `None` instead of an exception, whose context would quote the token
        answer = status(claims)
    except Exception:  # noqa: BLE001  (`status` may fail in any way; the token is then refused)
        return None
    return "" if answer is None else answer
