"""Exchange a token at an OAuth 2.0 token endpoint (RFC 8693).

| `subject_token` | the endpoint sees | the exchanged token is cached |
|---|---|---|
| the call's own token (default) | user, acting agent, task and call | never |
| a user's token (`BearerSubject.token`) | user, at a provider that does not know our tokens | in the run, while valid |

The exchanged token is a bearer token for one service. The service accepts it until it expires, even if the call ends
before. So it must be short-lived, and a tool's output is searched for it too.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, Final, NoReturn, Unpack

import httpx

from langchain_runtime_authz._flow import Flow as Steps
from langchain_runtime_authz._flow import Perform, both
from langchain_runtime_authz._http import Answer, Connection, Fetcher, basic_auth
from langchain_runtime_authz._url import checked_url, is_under
from langchain_runtime_authz.credential import token as claim
from langchain_runtime_authz.credential.jws import decode_segment, json_object, sign_compact
from langchain_runtime_authz.credential.signer import Secret, Signer
from langchain_runtime_authz.credential.ticket import Ticket, current_scope, current_ticket
from langchain_runtime_authz.downstream.httpx_auth import Flow, TicketAuth, add_credential
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

ASSERTION_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523 §2.1
JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 §2.2
JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"  # draft-ietf-oauth-spiffe-client-auth
GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # §2.1
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  (§3, a name)
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105
ID_JAG: Final = "urn:ietf:params:oauth:token-type:id-jag"  # draft-ietf-oauth-identity-assertion-authz-grant
MAX_LIFETIME: Final = 300  # seconds
ASSERTION_LIFE: Final = 60  # seconds
_OF_USER: Final = frozenset(("openid", "profile", "email", "address", "phone"))  # claims, not rights: OIDC Core §5.4
# RFC 6749 §5.2, 8693 §2.2.2, 9396 §5, 9449 §5, 9470 §3, OpenID Connect Core §3.1.2.6; another text could be a secret
_ERRORS: Final = frozenset((
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
    "invalid_target", "access_denied", "server_error", "temporarily_unavailable", "interaction_required",
    "login_required", "consent_required", "invalid_dpop_proof", "use_dpop_nonce", "invalid_authorization_details",
    "insufficient_user_authentication",
))  # fmt: skip
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1


class ExchangedToken(claim.Sealed):
    """A token that the endpoint issued. Text forms and pickles never hold it.

    `issued_token_type` is an RFC 8693 §3 identifier, and `expires_at` is in epoch seconds. `scope` is the granted
    scope, or `None` if the endpoint names none. Send `token` to its service; never return or log it.
    """

    __slots__ = ("expires_at", "issued_token_type", "scope", "token")

    def __init__(self, token: str, issued_token_type: str, expires_at: float, scope: str | None) -> None:
        self.token, self.issued_token_type, self.expires_at, self.scope = token, issued_token_type, expires_at, scope


class TokenExchange(Secret):
    """Exchanges tokens at one endpoint.

    Args:
        url: the token endpoint: https, or a server on this machine.
        client_id: this application's name at the endpoint (RFC 6749 §2.3.1); `None` if the endpoint needs none.
        client_secret: the client's secret.
        client_assertion: returns a JWT that authenticates the client in place of a secret (RFC 7523 §2.2): a token of
            the workload (`SpiffeIdentity.assertion(url)`, `TokenFileIdentity.token`) or `private_key_jwt`.
        client_assertion_type: `JWT_BEARER`, or `JWT_SPIFFE` for a JWT-SVID if the endpoint requires it.
        max_lifetime: seconds. An exchanged token with a longer `expires_in`, or with none, is refused.
        connection: `timeout` (5.0), `ca_file`, `client_cert`, `tls`, `proxy`: see `_http.Connection`.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
        client_assertion: Callable[[], str] | None = None,
        client_assertion_type: str = JWT_BEARER,
        max_lifetime: int = MAX_LIFETIME,
        **connection: Unpack[Connection],
    ) -> None:
        if max_lifetime < 1 or (client_id is None and client_secret is not None):
            raise ConfigError("`client_secret` needs a `client_id`, and `max_lifetime` is positive")
        if (client_id is not None) and (client_secret is None) == (client_assertion is None):
            raise ConfigError("a client has a `client_secret` or a `client_assertion`")
        connection.setdefault("timeout", 5.0)
        self._fetcher = Fetcher(url, **connection)
        self.audience = url  # for which the call's own token is minted
        self._max_lifetime = max_lifetime
        self._headers: dict[str, str] = {}
        if client_id is not None and client_secret is not None:
            self._headers["Authorization"] = basic_auth(client_id, client_secret)
        self._assertion = client_assertion
        named = {} if client_id is None else {"client_id": client_id}
        self._client = {"client_assertion_type": client_assertion_type, **named}

    def _exchange(
        self,
        subject_token: str,
        *,
        subject_token_type: str = JWT,
        actor_token: str | None = None,
        requested_token_type: str = ACCESS_TOKEN,
        resource: str | None = None,
        audience: str | None = None,
        scope: str | None = None,
    ) -> Steps[ExchangedToken]:
        """Exchange the subject's token for a token of a service (RFC 8693 §2.1).

        `actor_token`: a JWT of the party that acts. `resource`: the service's URL, or `audience`: the service's name.
        Raises `CredentialError`: `exchange_refused`, with the endpoint's error code (§2.2.2), or `exchange_failed`: no
        answer, or another token than requested. No error quotes a token.
        """
        own = {"subject_token_type": subject_token_type, "requested_token_type": requested_token_type}
        actor = {"actor_token": actor_token, "actor_token_type": JWT} if actor_token is not None else {}
        target = {"resource": resource, "audience": audience, "scope": scope}
        return self._post({"grant_type": GRANT, "subject_token": subject_token, **own, **actor, **target})

    exchange, aexchange = both(_exchange)

    def _grant(self, assertion: str, *, resource: str | None = None, scope: str | None = None) -> Steps[ExchangedToken]:
        """Exchange another issuer's assertion (RFC 7523 §2.1). Raises like `exchange`."""
        asked = {"grant_type": ASSERTION_GRANT, "assertion": assertion, "resource": resource, "scope": scope}
        return self._post(asked)

    grant, agrant = both(_grant)

    def _post(self, asked: Mapping[str, str | None]) -> Steps[ExchangedToken]:
        sent = form = {name: value for name, value in asked.items() if value is not None}
        if self._assertion is not None:  # the function may block, because it may ask another process
            made = yield Perform(self._assertion, partial(asyncio.to_thread, self._assertion))
            sent = {**form, **self._client, "client_assertion": made}
        answer = yield Perform(self._fetcher.send, self._fetcher.asend, "POST", self._headers, sent)
        return self._read(answer, form)

    def _read(self, answer: Answer | None, form: Mapping[str, str]) -> ExchangedToken:
        wanted = form.get("requested_token_type", ACCESS_TOKEN)
        if answer is None or (body := answer.body) is None:
            _fail("no answer in time, or a redirect, or too long a one, or not a JSON object")
        if answer.status != httpx.codes.OK:
            error = str(body.get("error"))
            raise CredentialError(Code.EXCHANGE_REFUSED, error if error in _ERRORS else "no known error code")
        token, lifetime, scope = body.get("access_token"), body.get("expires_in"), body.get("scope")
        if not isinstance(token, str) or len(token) > claim.MAX_TOKEN or not _TOKEN68.fullmatch(token):
            _fail("`access_token` is not a token")
        if body.get("issued_token_type", None if form["grant_type"] == GRANT else wanted) != wanted:
            _fail("`issued_token_type` is not the requested one")
        if str(body.get("token_type")).lower() != ("n_a" if wanted == ID_JAG else "bearer"):
            _fail("`token_type` is not Bearer")
        if "scope" in form and {*str(scope or "").split()} - _OF_USER.union(form["scope"].split()):  # RFC 8693 §2.2.1
            _fail("`scope` is wider than the requested one")
        now, claims = time.time(), _claims(token)
        wanted_for = {form[name] for name in ("audience", "resource") if name in form}
        if claims is None and _is_jwt(token):
            _fail("the token's claims cannot be read")
        if other := _unfit(claims, wanted_for, now + claim.MARGIN, now + self._max_lifetime + 60):  # clocks may differ
            _fail(other)
        if type(lifetime) is not int or not 0 < lifetime <= self._max_lifetime:
            _fail(f"`expires_in` must be between 1 and {self._max_lifetime}")
        # Track the token before the tool gets it, so that it is found in the tool's output.
        if (ticket := current_ticket()) is not None:
            ticket.track(token)
        own_end = (claims or {}).get("exp", math.inf)  # the expiry that the service checks
        return ExchangedToken(token, wanted, min(now + lifetime, own_end), scope if isinstance(scope, str) else None)


def private_key_jwt(key: Signer, client_id: str, audience: str) -> Callable[[], str]:
    """Return a function that signs client assertions for `TokenExchange`.

    `audience` is the authorization server's issuer, or its token endpoint (RFC 7523 §3).
    """

    def assertion() -> str:
        now = int(time.time())
        own = {claim.ISSUER: client_id, claim.SUBJECT: client_id, claim.AUDIENCE: audience}
        times = {claim.ISSUED_AT: now, claim.EXPIRES_AT: now + ASSERTION_LIFE}
        return sign_compact("JWT", {**own, **times, claim.TOKEN_ID: secrets.token_urlsafe(16)}, key)

    return assertion


class ExchangeAuth(TicketAuth):
    """`httpx.Auth` that exchanges a token for a bearer token of the service.

    If the call's own token is exchanged, each request makes an exchange, and no token reaches another call. If the
    user's token is exchanged, the run keeps the exchanged token for one agent and service. The run drops the token when
    it expires, or when the run's lease is replaced (a correction, a revocation, the run's end). Runs never share one.

    Args:
        exchange: the token endpoint.
        resource: URL of the service. The exchanged token is sent only there.
        audience: the service's name at the endpoint, if the endpoint wants one.
        scope: the scope to request. A token with more scope is refused, except for OIDC's claim scopes like `email`.
        subject_token: returns the user's token, as `BearerSubject.token` does; by default the call's own token is sent.
            With a user's token, the profile and the grant must name the service itself, not the endpoint.
        subject_token_type: type of the subject token (RFC 8693 §3).
        actor_token: returns the token of the acting party, if the endpoint wants one (§2.1).
        granting: the service's own token endpoint, if `exchange` issues an ID-JAG for it. `audience` is then the issuer
            of that endpoint.
    """

    def __init__(
        self,
        exchange: TokenExchange,
        *,
        resource: str,
        audience: str | None = None,
        scope: str | None = None,
        subject_token: Callable[[], str] | None = None,
        subject_token_type: str | None = None,
        actor_token: Callable[[], str] | None = None,
        granting: TokenExchange | None = None,
    ) -> None:
        self._exchange, self._actor_token, self._granting = exchange, actor_token, granting
        self._resource, self._subject_token = checked_url(resource, "resource"), subject_token
        kind = subject_token_type or (JWT if subject_token is None else ACCESS_TOKEN)
        wanted = ACCESS_TOKEN if granting is None else ID_JAG
        self._options: dict[str, Any] = {"resource": self._resource, "audience": audience, "scope": scope}
        self._options |= {"subject_token_type": kind, "requested_token_type": wanted}

    def _audience(self, request: httpx.Request, ticket: Ticket) -> str:
        if not is_under(str(request.url), self._resource):  # this compares the scheme too
            raise CredentialError(Code.AUDIENCE, f"{request.url.host} is not the resource of the exchange")
        # INVARIANT: no token is exchanged for a service outside the tool's profile and the grant.
        named = (self._options["audience"], self._resource)
        if self._subject_token is None:
            if not any(a in named for a in (*ticket.audiences, *ticket.reaches)):
                raise CredentialError(Code.AUDIENCE, f"`{ticket.tool}` does not reach {self._resource}")
            return self._exchange.audience
        if (found := next((a for a in ticket.audiences if a in named), None)) is None:
            raise CredentialError(Code.AUDIENCE, f"the call's audiences do not name {self._resource}")
        return found

    def _send(self, request: httpx.Request, origin: str, ticket: Ticket, audience: str) -> Flow:
        ticket.check_running()
        kept = yield from self._kept(ticket)
        exchanged = kept.get(self)
        if exchanged is None or exchanged.expires_at - claim.MARGIN <= time.time():
            exchanged = yield from self._exchanged(ticket, audience)
            yield from self._kept(ticket)  # the task may change while the endpoint answers
            kept[self] = exchanged
        else:
            ticket.track(exchanged.token)
        ticket.check_running()
        yield add_credential(request, {"Authorization": f"Bearer {exchanged.token}"})

    def _exchanged(self, ticket: Ticket, audience: str) -> Generator[Any, Any, ExchangedToken]:
        options = self._options
        if self._actor_token is not None:
            actor = yield Perform(self._actor_token, partial(asyncio.to_thread, self._actor_token))
            options = {**options, "actor_token": actor}
        if self._subject_token is not None:
            subject = self._subject_token()
        else:
            subject = (yield Perform(ticket.credential, ticket.acredential, audience)).token
        exchanged = yield Perform(self._exchange.exchange, self._exchange.aexchange, subject, **options)
        if self._granting is not None:
            rest = {"resource": self._resource, "scope": options["scope"]}
            exchanged = yield Perform(self._granting.grant, self._granting.agrant, exchanged.token, **rest)
        if self._subject_token is None:  # raises if the task changed while the endpoint answered
            yield Perform(ticket.credential, ticket.acredential, audience)
        return exchanged  # type: ignore[no-any-return]

    def _kept(self, ticket: Ticket) -> Generator[Any, Any, dict[Any, ExchangedToken]]:
        """Return the live lease's cache of exchanged tokens, or raise `CredentialError`."""
        run = current_scope.get().run
        if run is None or self._subject_token is None:
            return {}
        run.pep.refuse_if_stopped(time.time())
        ledger, lease = run.pep.ledger, (run.scope.tenant, ticket.jti)  # the run's present lease may be another
        # The provider's token does not name the task, so a service cannot refuse it after a correction. Ask the ledger.
        if (yield Perform(ledger.status, ledger.astatus, *lease)) != "live":
            run.local.exchanged = None
            raise CredentialError(Code.CREDENTIAL_REVOKED)
        if (kept := run.local.exchanged) is None or kept[0] != lease:
            kept = run.local.exchanged = (lease, {})
        return kept[1]  # type: ignore[no-any-return]


def _claims(token: str) -> Mapping[str, Any] | None:
    """Return the claims of a JWT, unverified; `None` for any other token."""
    parts = token.split(".")
    payload = decode_segment(parts[1]) if len(parts) == 3 else None  # noqa: PLR2004
    return json_object(payload) if payload is not None else None


def _is_jwt(token: str) -> bool:
    header, *rest = token.split(".")
    head = decode_segment(header) if len(rest) == 2 else None  # noqa: PLR2004
    return head is not None and json_object(head) is not None


def _unfit(claims: Mapping[str, Any] | None, wanted: set[str], earliest: float, latest: float) -> str | None:
    """Return why `exp` or `aud` of an exchanged JWT is refused, or `None`."""
    if claims is None:
        return None
    ends = claims.get("exp", latest)
    if type(ends) not in (int, float) or not ends > earliest:
        return "the token's `exp` is not a time, or has passed, or is about to"
    if ends > latest:
        return "the token's `exp` is later than `max_lifetime` permits"
    found = claims.get("aud")
    named = found if isinstance(found, list) else [found]
    if not wanted or (named and all(isinstance(a, str) and a in wanted for a in named)):
        return None
    return "the token's `aud` is not the requested audience alone"


def _fail(why: str) -> NoReturn:
    raise CredentialError(Code.EXCHANGE_FAILED, why)
