"""Who calls, by a token of an OpenID Connect provider.

Two kinds of token prove it: an access token made for this service (RFC 9068, `typ: at+jwt`) and an ID
token made for this client (OpenID Connect Core §2, §3.1.3.7, without the nonce, which only the client
that began the flow knows). Who a token speaks for:

| token | subject |
|---|---|
| with `act` (RFC 8693 §4.1): somebody acts for `sub` | `agent`, the actor; `sub` is a property |
| of a client for itself: `sub` is missing, or the client's own (RFC 9068 §5), or the provider marks it | `service` |
| every other | `user` |

So an agent or a cron job is never a user, whatever it writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from langchain_runtime_authz._http import Fetcher, checked_url
from langchain_runtime_authz.authzen import Subject
from langchain_runtime_authz.credential.jwks import JwksClient
from langchain_runtime_authz.credential.jws import Jws, decoded, is_signed, json_object, public_key
from langchain_runtime_authz.credential.kept import Kept
from langchain_runtime_authz.credential.keys import ALGORITHMS
from langchain_runtime_authz.credential.token import (
    ACTOR,
    AUDIENCE,
    CLIENT_ID,
    EXPIRES_AT,
    ISSUED_AT,
    ISSUER,
    MAX_TOKEN,
    NOT_BEFORE,
    SUBJECT,
    TOKEN_ID,
)
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, CredentialError

__all__ = ["OidcVerifier"]

MAX_LIFE: Final = 24 * 3600  # seconds: a token that lives longer is no proof of who calls now
LEEWAY: Final = 5  # seconds
DISCOVERY: Final = "/.well-known/openid-configuration"  # OpenID Connect Discovery §4
MAX_NAME: Final = 2048  # characters of a claim that names somebody
MIN_REFRESH: Final = 1.0  # seconds between two fetches: nobody makes this process fetch by sending tokens
ACCESS: Final = frozenset({"at+jwt", "application/at+jwt"})  # RFC 9068 §4
AUTHORIZED_PARTY: Final = "azp"
EMAIL: Final = "email"
EVENTS: Final = "events"  # RFC 8417
EMAIL_VERIFIED: Final = "email_verified"


class OidcVerifier:
    """Verifies one provider's tokens. Safe to use from many threads and event loops.

    The provider is asked once for its discovery document, which is believed for `max_age` seconds, and
    for its keys as `credential.jwks.JwksClient` does: bounded, and at most once a second.

    Args:
        issuer: the provider, exactly as its tokens name it (`iss`): https, or of this machine.
        audience: this service, as access tokens name it (`aud`).
        client_id: this client, as ID tokens name it (`aud`, `azp`).
        algorithms: allow-list (RFC 8725 §3.1), of ES256, EdDSA and RS256.
        max_age: seconds for which a discovery document is believed.
        timeout: seconds for one fetch.
        client: for the blocking form.
        async_client: for the other; it belongs to one event loop.
        monotonic: seconds, for tests.

    Raises:
        ConfigError: an argument is wrong. Nothing is fetched yet.
    """

    def __init__(
        self,
        issuer: str,
        *,
        audience: str | None = None,
        client_id: str | None = None,
        algorithms: tuple[str, ...] = ALGORITHMS,
        max_age: float = 3600.0,
        timeout: float = 2.0,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not audience and not client_id:
            msg = "say whom tokens must be for: `audience` (access tokens) or `client_id` (ID tokens)"
            raise ConfigError(msg)
        if not algorithms or not set(algorithms) <= set(ALGORITHMS):
            msg = f"`algorithms` must be some of {', '.join(ALGORITHMS)}"
            raise ConfigError(msg)
        self.issuer = checked_url(issuer, "issuer")
        self._audience, self._client_id, self._algorithms = audience, client_id, frozenset(algorithms)
        self._timeout, self._client, self._async_client = timeout, client, async_client
        self._monotonic = monotonic
        self._why: str | None = None
        self._keys = Kept(
            Fetcher(timeout=timeout, client=client, async_client=async_client),
            self.issuer.rstrip("/") + DISCOVERY,
            _HEADERS,
            self._discovered,
            max_age=max_age,
            min_refresh=MIN_REFRESH,
            monotonic=monotonic,
        )

    def verify(self, token: str, *, now: float | None = None) -> Subject:
        """Whom a token speaks for.

        Raises:
            AuthzError: `identity_invalid`: it does not prove it; `identity_unavailable`: the provider can
                not be asked. Never quotes the token.
        """
        jws = self._read(token)
        jwk, down = _key(self._known(self._keys.get()), str(jws.header["kid"]))
        return self._believed(jws, jwk, time.time() if now is None else now, down=down)

    async def averify(self, token: str, *, now: float | None = None) -> Subject:
        """Like `verify`, without blocking the event loop."""
        jws = self._read(token)
        jwk, down = await _akey(self._known(await self._keys.aget()), str(jws.header["kid"]))
        return self._believed(jws, jwk, time.time() if now is None else now, down=down)

    def _known(self, keys: JwksClient | None) -> JwksClient:
        if keys is None:
            raise AuthzError(Code.IDENTITY_UNAVAILABLE, self._why)
        return keys

    def _discovered(self, document: Mapping[str, Any] | None, before: JwksClient | None) -> JwksClient | None:
        """The key set that a discovery document names; `None` where it is no document of this issuer."""
        # OpenID Connect Discovery §4.3: else one provider speaks for another.
        if document is None or document.get("issuer") != self.issuer:
            self._why = "there is no discovery document of its own"
            return None
        keys = self._client_of(document.get("jwks_uri"))
        self._why = "`jwks_uri` of its discovery document is no https URL"
        # The same place keeps its copy: a document fetched anew is no reason to ask for the keys too.
        return before if keys is not None and before is not None and repr(before) == repr(keys) else keys

    def _client_of(self, uri: object) -> JwksClient | None:
        try:
            return JwksClient(
                uri if isinstance(uri, str) else "",
                timeout=self._timeout,
                client=self._client,
                async_client=self._async_client,
                monotonic=self._monotonic,
            )
        except ConfigError:
            return None

    def _read(self, token: object) -> Jws:
        """A provider's JWS, taken apart: its header may hold more than ours do, but nothing critical."""
        parts = token.split(".") if isinstance(token, str) and len(token) <= MAX_TOKEN else []
        segments = [data for part in parts if (data := decoded(part)) is not None]
        if len(parts) != 3 or len(segments) != 3:  # noqa: PLR2004  (RFC 7515 §7.1)
            raise _no("it is not a compact JWS")
        header, claims = json_object(segments[0]), json_object(segments[1])
        if header is None or claims is None:
            raise _no("it is not a JWT")
        if not isinstance(header.get("alg"), str) or header["alg"] not in self._algorithms:
            raise _no("its `alg` is not permitted")
        if "crit" in header or "b64" in header or not isinstance(header.get("kid"), str):
            raise _no("its header has a critical member, or no `kid`")
        return Jws(header, claims, ".".join(parts[:2]).encode(), segments[2])

    def _believed(self, jws: Jws, jwk: Mapping[str, Any] | None, now: float, *, down: bool) -> Subject:
        if down:
            raise AuthzError(Code.IDENTITY_UNAVAILABLE)
        key = public_key(jwk, jws.alg) if jwk is not None else None
        if key is None or not is_signed(jws, key):
            raise _no("it is not signed with a key of the provider")
        claims = jws.claims
        if claims.get(ISSUER) != self.issuer:
            raise _no("its `iss` is another")
        expires, issued, since = (_time(claims.get(name)) for name in (EXPIRES_AT, ISSUED_AT, NOT_BEFORE))
        if expires is None or issued is None or (since is None and NOT_BEFORE in claims):
            raise _no("it must say when it was issued and when it expires")
        since = issued if since is None else since
        if not (issued - LEEWAY <= now < expires + LEEWAY and since - LEEWAY <= now and expires - issued <= MAX_LIFE):
            raise _no("it is not valid now")
        typ = jws.header.get("typ", "JWT")
        if isinstance(typ, str) and typ.lower() in ACCESS:
            self._check_access(claims)
        elif isinstance(typ, str) and typ.upper() == "JWT":
            self._check_id(claims)
        else:
            raise _no("its `typ` is neither an access token's nor an ID token's")
        return _subject(claims)

    def _check_access(self, claims: Mapping[str, Any]) -> None:
        """RFC 9068 §4."""
        if self._audience is None or self._audience not in _audiences(claims):
            raise _no("it is for another audience")
        if _name(claims.get(CLIENT_ID)) is None or _name(claims.get(TOKEN_ID)) is None:
            raise _no("an access token names its `client_id` and `jti`")

    def _check_id(self, claims: Mapping[str, Any]) -> None:
        """OpenID Connect Core §3.1.3.7, 3 to 5."""
        audiences, party = _audiences(claims), claims.get(AUTHORIZED_PARTY)
        if self._client_id is None or self._client_id not in audiences:
            raise _no("it is for another client")
        if (party is not None or len(audiences) > 1) and party != self._client_id:
            raise _no("another client was authorized by it")

    def __repr__(self) -> str:
        return f"<OidcVerifier {self.issuer}>"


_HEADERS: Final = {"Accept": "application/json"}


def _subject(claims: Mapping[str, Any]) -> Subject:
    name = _name(claims.get(SUBJECT))
    if name is None and SUBJECT in claims:  # else a user whose name is odd would be the client
        raise _no("its `sub` is no name")
    if EVENTS in claims:
        raise _no("it tells of an event, as a logout token does, and speaks for nobody")
    client = _name(claims.get(CLIENT_ID)) or _name(claims.get(AUTHORIZED_PARTY))
    properties: dict[str, Any] = {"iss": claims[ISSUER]}
    if client is not None:
        properties["client_id"] = client
    if ACTOR in claims:
        actor = claims[ACTOR]
        acting = _name(actor.get(SUBJECT)) if isinstance(actor, Mapping) else None
        if acting is None:
            raise _no("its `act` names nobody")
        return Subject(type="agent", id=acting, properties={**properties, "on_behalf_of": name or ""})
    if name is None or name == client or _is_client(claims):
        if (own := name or client) is None:
            raise _no("it names nobody")
        return Subject(type="service", id=own, properties=properties)
    email = _name(claims.get(EMAIL))
    if email is not None and claims.get(EMAIL_VERIFIED) is True:
        properties["identifiers"] = [email]
    return Subject(type="user", id=name, properties=properties)


def _is_client(claims: Mapping[str, Any]) -> bool:
    """What providers say of tokens that a client got for itself, where `sub` is not the client."""
    return (
        claims.get("idtyp") == "app"  # Microsoft Entra ID
        or claims.get("gty") == "client-credentials"  # Auth0, with the suffix of `sub`
        or str(claims.get(SUBJECT)).endswith("@clients")
        or str(claims.get("preferred_username", "")).startswith("service-account-")  # Keycloak
    )


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    found = claims.get(AUDIENCE)
    found = found if isinstance(found, list) else [found]
    return found if all(isinstance(a, str) for a in found) else []


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() else None


def _time(value: object) -> float | None:
    """A NumericDate (RFC 7519 §2); providers write fractions too."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _no(why: str) -> AuthzError:
    return AuthzError(Code.IDENTITY_INVALID, why)


# The helpers below answer instead of raising: an exception's context would quote what was parsed.


def _key(keys: JwksClient, kid: str) -> tuple[Mapping[str, Any] | None, bool]:
    """The key, and whether the provider could not be asked."""
    try:
        return keys.get(kid), False
    except CredentialError:
        return None, True


async def _akey(keys: JwksClient, kid: str) -> tuple[Mapping[str, Any] | None, bool]:
    try:
        return await keys.aget(kid), False
    except CredentialError:
        return None, True
