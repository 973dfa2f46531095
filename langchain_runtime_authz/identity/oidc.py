"""Verify tokens of an OpenID Connect provider: of callers, logouts and workloads.

Two kinds of token are accepted: an access token made for this service (if `audience` is set), and an ID token made
for this client (if `client_id` is set; OpenID Connect Core §2, §3.1.3.7). The provider's profile tells them apart
(`identity.providers`). The nonce is not checked, since only the client that began the flow knows it. The subject is:

| token | subject |
|---|---|
| with `act` (RFC 8693 §4.1): a party acts for `sub` | `agent`, the actor; `sub` is a property |
| without `sub`, with the client as `sub` (RFC 9068 §5), or marked by the provider as the client's own | `service` |
| every other token | `user` |

So an agent is a user only if its token is like a user's: with a subject that is not the client, and without `act`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, Unpack
from urllib.parse import quote

from langchain_runtime_authz._flow import Flow, both
from langchain_runtime_authz._http import Connection, Fetcher
from langchain_runtime_authz._url import checked_url
from langchain_runtime_authz.credential import token as claim
from langchain_runtime_authz.credential.jwks import CachedDocument, JwksClient
from langchain_runtime_authz.credential.jws import is_signed_by, parse_jws
from langchain_runtime_authz.credential.signer import ALGORITHMS, checked_algorithms
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.providers import AUTHORIZED_PARTY as PARTY
from langchain_runtime_authz.identity.providers import PAYLOAD_TYPE, PROVIDERS, Provider, name_of, shown_claim, typ_of
from langchain_runtime_authz.identity.workload import Proof, WorkloadIdentity

MAX_LIFE: Final = 24 * 3600  # seconds; a longer-lived token does not prove who calls now
DISCOVERY: Final = "/.well-known/openid-configuration"  # OpenID Connect Discovery §4
MAX_AGE: Final = 3600.0  # seconds for which a discovery document is used
MIN_REFRESH: Final = 1.0  # seconds between two fetches, so that tokens cannot make this process fetch more often
LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"
EVERY: Final = 1.0  # seconds between two checks of the file of a workload's token
OF_ID: Final = ("jwt", "")  # header `typ` of an ID token
OF_ACCESS: Final = frozenset({"appid", "cid", "scp", "scope"})  # claims that no ID token of a profile's provider has

T = TypeVar("T")


class Caller(NamedTuple):
    """A verified token: subject, scopes, expiry, and optionally session and token id."""

    subject: Subject
    scopes: frozenset[str]
    expires_at: float
    session: str | None
    token_id: str | None


class LoggedOut(NamedTuple):
    """A verified logout token: it ends a session, or all sessions of a subject."""

    subject: str | None
    session: str | None
    token_id: str
    expires_at: float


class OidcVerifier:
    """Verifies one provider's tokens. Safe to use from many threads and event loops.

    `credential.jwks.JwksClient` fetches the provider's keys, at most once a second.

    Args:
        issuer: the provider's URL, exactly as in `iss` of its tokens: https, or a server on this machine.
        provider: the profile of the provider's access tokens: `rfc9068`, `keycloak`, `entra`, `auth0` or `okta`.
        audience: this service, as in `aud` of access tokens.
        client_id: this client, as in `aud` and `azp` of ID tokens.
        algorithms: accepted signature algorithms (RFC 8725 §3.1): any of ES256, EdDSA and RS256.
        connection: `timeout` (2.0), `ca_file`, `client_cert`, `tls`, `proxy`: see `_http.Connection`.
    """

    def __init__(
        self,
        issuer: str,
        *,
        provider: str = "rfc9068",
        audience: str | None = None,
        client_id: str | None = None,
        algorithms: tuple[str, ...] = ALGORITHMS,
        **connection: Unpack[Connection],
    ) -> None:
        if not audience and not client_id:
            raise ConfigError("tokens need a recipient: set `audience` (access tokens) or `client_id` (ID tokens)")
        if provider not in PROVIDERS:
            raise ConfigError(f"`provider` must be one of {', '.join(PROVIDERS)}")
        self.issuer, self._provider = checked_url(issuer, "issuer"), PROVIDERS[provider]
        self._audience, self.client_id, self._algorithms = audience, client_id, checked_algorithms(algorithms)
        self._keys_at = partial(JwksClient, **connection)
        self._why: str | None = None
        fetcher = Fetcher(self.issuer.rstrip("/") + DISCOVERY, **connection)
        self._keys = CachedDocument(fetcher, self._discovered, max_age=MAX_AGE, min_refresh=MIN_REFRESH)

    def _verify(self, token: str, *, now: float | None = None) -> Flow[Subject]:
        """Return the subject of a token. No error quotes the token.

        Raises `AuthzError`: `identity_invalid` for a refused token, `identity_unavailable` without the provider's keys.
        """
        return (yield from self._caller(token, now=now)).subject

    verify, averify = both(_verify)

    def _caller(self, token: str, *, now: float | None = None) -> Flow[Caller]:
        """Return the `Caller` that a token names. Raises like `verify`."""
        header, claims = yield from self._genuine(token, now)
        self._check_kind(header, claims)
        if claim.CONFIRMATION in claims:  # without a check of the proof, a stolen token would do (RFC 9449 §7.2)
            raise refusal("it is bound to a key (`cnf`), and no proof of the key is taken here")
        scope = claims.get("scope", claims.get("scp"))  # RFC 9068 §2.2.3; Entra ID and Okta
        scopes = scope.split() if isinstance(scope, str) else scope if isinstance(scope, list) else []
        named = frozenset(s for s in scopes if isinstance(s, str))
        session, subject = name_of(claims.get("sid")), _subject(claims, self._provider)
        return Caller(subject, named, float(claims[claim.EXPIRES_AT]), session, name_of(claims.get(claim.TOKEN_ID)))

    caller, acaller = both(_caller)

    def _logged_out(self, token: str, *, now: float | None = None) -> Flow[LoggedOut]:
        """Verify a logout token (OIDC Back-Channel Logout §2.6). Raises like `verify`."""
        header, claims = yield from self._genuine(token, now)
        events = claims.get("events")
        subject, session = name_of(claims.get(claim.SUBJECT)), name_of(claims.get("sid"))
        token_id = name_of(claims.get(claim.TOKEN_ID))
        if typ_of(header) not in ("logout+jwt", *OF_ID) or not isinstance(events, Mapping):
            raise refusal("expected a logout token")
        if not isinstance(events.get(LOGOUT), Mapping) or "nonce" in claims or (subject, session) == (None, None):
            raise refusal("expected a logout token with a session or a subject")
        if token_id is None:
            raise refusal("expected a logout token with `jti`")
        if self.client_id is None or self.client_id not in audiences_of(claims):
            raise refusal(f"expected `aud` {self.client_id}, found {shown_claim(claims.get(claim.AUDIENCE))}")
        return LoggedOut(subject, session, token_id, float(claims[claim.EXPIRES_AT]))

    logged_out, alogged_out = both(_logged_out)

    def _discovered(self, document: Mapping[str, Any] | None, before: JwksClient | None) -> JwksClient | None:
        """Return the client of the document's key set; `None` if the document is invalid."""
        # OpenID Connect Discovery §4.3: otherwise one provider could speak for another.
        if document is None or document.get("issuer") != self.issuer:
            cause = "cannot be read without a credential" if document is None else "is of another issuer"
            self._why = f"its discovery document {cause}"
            return None
        uri = document.get("jwks_uri")
        try:
            keys = self._keys_at(uri if isinstance(uri, str) else "")
        except ConfigError:
            self._why = "`jwks_uri` of its discovery document is not an https URL"
            return None
        # If the URL is the same, keep the client, so that a new document does not cause a new fetch of the keys.
        return before if before is not None and before.url == keys.url else keys

    def _genuine(self, token: str, now: float | None) -> Flow[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Return header and claims of a token that the provider signed and that is valid."""
        jws = parse_jws(token, typ=None, algorithms=self._algorithms, code=Code.IDENTITY_INVALID)
        source, kid = _known((yield from self._keys.wanted()), self._why), str(jws.header["kid"])
        keys = _known((yield from source.keys.wanted(lambda keys: kid in keys)))
        if not is_signed_by(jws, keys.get(kid)):
            raise refusal("it is not signed with a key of the provider")
        claims = jws.claims
        if claims.get(claim.ISSUER) != self.issuer:
            raise refusal("its `iss` is another")
        check_times(claims, time.time() if now is None else now)
        return jws.header, claims

    def _check_kind(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
        """Check an access token (RFC 9068 §4) or ID token. Never take one for the other."""
        wrong = self._provider.mismatch(header, claims)
        if wrong is None and self._audience is None:
            wrong = "expected an ID token, found an access token; set `audience` to accept those"
        elif wrong is None and self._audience not in audiences_of(claims):
            wrong = (
                f"expected an access token with `aud` {self._audience}, found {shown_claim(claims.get(claim.AUDIENCE))}"
            )
        elif wrong and self.client_id is not None and typ_of(header) in OF_ID and not OF_ACCESS & claims.keys():
            other = self._other_client(claims, self.client_id)
            wrong = None if other is None else f"{other}; {wrong}"
        if wrong is not None:
            raise refusal(wrong)

    @staticmethod
    def _other_client(claims: Mapping[str, Any], client: str) -> str | None:
        """Return why an ID token is not for this client (OIDC Core §3.1.3.7), or `None`."""
        audiences, party = audiences_of(claims), claims.get(PARTY)
        if client not in audiences:
            return f"expected an ID token with `aud` {client}, found {shown_claim(claims.get(claim.AUDIENCE))}"
        if (party is not None or len(audiences) > 1) and party != client:
            return f"expected an ID token with `azp` {client}, found {shown_claim(party)}"
        if claims.get(PAYLOAD_TYPE, "ID") != "ID":
            return f"expected an ID token, found the payload's `typ` {shown_claim(claims[PAYLOAD_TYPE])}"
        return None


def _known(found: T | None, why: str | None = None) -> T:
    if found is None:
        raise AuthzError(Code.IDENTITY_UNAVAILABLE, why)
    return found


def _subject(claims: Mapping[str, Any], provider: Provider) -> Subject:
    name = name_of(claims.get(claim.SUBJECT))
    if name is None and claim.SUBJECT in claims:  # else a user with an unreadable name would count as the client
        raise refusal("its `sub` is not a name")
    if "events" in claims:
        raise refusal("it reports an event (RFC 8417), as a logout token does, and has no caller")
    client = provider.client_of(claims) or name_of(claims.get(PARTY))
    properties: dict[str, Any] = {"iss": claims[claim.ISSUER]}
    if client is not None:
        properties["client_id"] = client
    if claim.ACTOR in claims:
        actor = claims[claim.ACTOR]
        acting = name_of(actor.get(claim.SUBJECT)) if isinstance(actor, Mapping) else None
        if acting is None:
            raise refusal("its `act` has no `sub` that is a name")
        return Subject(type="agent", id=acting, properties={**properties, "on_behalf_of": name or ""})
    if name is None or name == client or _is_client(claims, provider):
        if (own := name or client) is None:
            raise refusal("it has neither a subject nor a client")
        return Subject(type="service", id=own, properties=properties)
    if (email := name_of(claims.get("email"))) is not None and claims.get("email_verified") is True:
        properties["identifiers"] = [email]
    return Subject(type="user", id=name, properties=properties)


def _is_client(claims: Mapping[str, Any], provider: Provider) -> bool:
    """Return True if a client got this token, which has a `sub`, for itself."""
    return (
        claims.get("idtyp") == "app"  # Microsoft Entra ID, an optional claim; without it, no `scp` says the same
        or (provider.user not in claims and provider.user != "" and provider.client_of(claims) is not None)
        or claims.get("gty") == "client-credentials"  # Auth0, with the suffix of `sub`
        or str(claims.get(claim.SUBJECT)).endswith("@clients")
        or str(claims.get(claim.SUBJECT)).startswith(("spiffe://", "system:serviceaccount:"))  # SPIRE, Kubernetes
        or str(claims.get("preferred_username", "")).startswith("service-account-")  # Keycloak, by the scope `profile`
        # Keycloak copies these claims from the session of a service account; a user's session has none of them.
        or (provider.name == "keycloak" and not {"clientHost", "clientAddress"}.isdisjoint(claims))
        or (provider.name == "keycloak" and claims.get(claim.CLIENT_ID, "") == claims.get(PARTY))
    )


def check_times(claims: Mapping[str, Any], now: float, *, issued: bool = True) -> None:
    """Check `exp`, `nbf`, `iat`; require `iat` if `issued`. Raises `identity_invalid`."""
    expires, since = _time(claims.get(claim.EXPIRES_AT)), _time(claims.get(claim.NOT_BEFORE))
    began = _time(claims.get(claim.ISSUED_AT))
    odd = (began is None and (issued or claim.ISSUED_AT in claims)) or (since is None and claim.NOT_BEFORE in claims)
    if expires is None or odd:
        raise refusal("it must say when it was issued and when it expires")
    began = now if began is None else began
    starts = max(began, began if since is None else since)
    if not (starts - claim.LEEWAY <= now < expires + claim.LEEWAY and expires - began <= MAX_LIFE):
        raise refusal("it is not valid now")


def audiences_of(claims: Mapping[str, Any]) -> list[str]:
    """Return the values of `aud`, or an empty list if one of them is not a text."""
    found = claims.get(claim.AUDIENCE)
    found = found if isinstance(found, list) else [found]
    return found if all(isinstance(a, str) for a in found) else []


def _time(value: object) -> float | None:
    """Return a NumericDate (RFC 7519 §2), or `None` for any other value."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def refusal(why: str) -> AuthzError:
    """Return the error for a refused token (`identity_invalid`)."""
    return AuthzError(Code.IDENTITY_INVALID, why)


class TokenFileIdentity(WorkloadIdentity):
    """The identity of this process, proven by a token file of its platform.

    The platform, like Kubernetes, replaces the file before the token expires. Then the new file is read. While the file
    is half-written, the present proof stays. So a bad token ends it only if the next check finds the same token.

    Args:
        path: the file's path.
        verifier: verifies the token. Its issuer is the platform, and its `client_id` is the audience for which the
            platform projects the token. A token whose subject is an agent is refused.
        wait: seconds for which the constructor waits for the first proof.
        every: seconds between two checks of the file.
    """

    def __init__(self, path: str | Path, verifier: OidcVerifier, *, wait: float = 5.0, every: float = EVERY) -> None:
        if not isinstance(verifier, OidcVerifier) or not every > 0:
            raise ConfigError("`verifier` is an `OidcVerifier`, and `every` a number of seconds")
        self._path, self._verifier, self._every = Path(path).absolute(), verifier, every
        self._token = self._bad = ""
        super().__init__(wait=wait)

    def token(self) -> str:
        """Return the verified token, for `TokenExchange(client_assertion=)`. Never log it.

        Raises `AuthzError` (`workload_unproven`) without a current proof.
        """
        if not self.attested:
            self._unproven()
        return self._token

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._look()
            self._closed.wait(self._every)

    def _look(self) -> None:
        try:
            with self._path.open("rb") as file:
                token = file.read(claim.MAX_TOKEN + 1).decode("ascii", "replace").strip()
        except OSError as exc:
            self._miss(f"the token file cannot be read: {exc.strerror}")
            return
        if token == self._token and self.attested:
            return
        if token.count(".") != 2:  # noqa: PLR2004  (a JWS has three parts)
            self._miss("the token file holds no whole token")
            return
        before, self._bad = self._bad, token
        try:
            caller = self._verifier.caller(token)
            if caller.subject.type == "agent":
                raise refusal("the token speaks for an agent, not for a workload")
        except AuthzError as exc:
            lasts = token == before and exc.code != Code.IDENTITY_UNAVAILABLE
            (self._refuse if lasts else self._miss)(str(exc.detail))
            return
        self._token = token
        self._accept(Proof(f"{self._verifier.issuer}#{quote(caller.subject.id, safe=':')}", caller.expires_at))
