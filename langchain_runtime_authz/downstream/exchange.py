"""OAuth 2.0 Token Exchange (RFC 8693), as a client: for services that want a bearer token of their own.

The token of the call is the `subject_token`: the endpoint sees who asked, which agent acts and for which
task, and answers with a token for one service. That lives on at the service until it expires, whatever
becomes of the call: so it has to be short, and what a tool returns is searched for it too.

```python
exchange = TokenExchange("https://login.example/token", client_id="agents", client_secret=secret)
crm = httpx.Client(base_url="https://crm.example", auth=ExchangeAuth(exchange, resource="https://crm.example"))
```
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, Final, NoReturn

import httpx

from langchain_runtime_authz._http import Answer, Fetcher, checked_url
from langchain_runtime_authz.credential.ticket import Ticket, arefused_outside, current_ticket, refused_outside
from langchain_runtime_authz.credential.token import MAX_TOKEN, REDACTED
from langchain_runtime_authz.downstream.httpx_auth import bare, bearing, is_under, origin_of
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.resource_server.introspection import basic

__all__ = ["ACCESS_TOKEN", "JWT", "ExchangeAuth", "ExchangedToken", "TokenExchange"]

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # §2.1
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  (§3, a name)
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
MAX_LIFETIME: Final = 300  # seconds
OK: Final = 200
_ERROR: Final = re.compile(r"[a-z_]{1,40}")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1


class ExchangedToken:
    """What the endpoint issued. Text forms, copies and pickles never hold the token.

    Attributes:
        issued_token_type: RFC 8693 §3 identifier.
        expires_at: epoch seconds.
        scope: as granted; `None` where it is the one that was asked for.
    """

    __slots__ = ("_token", "expires_at", "issued_token_type", "scope")

    def __init__(self, token: str, issued_token_type: str, expires_at: float, scope: str | None) -> None:
        self._token = token
        self.issued_token_type, self.expires_at, self.scope = issued_token_type, expires_at, scope

    @property
    def token(self) -> str:
        """The token. Send it to its service; never return or log it."""
        return self._token

    def __repr__(self) -> str:
        return f"<ExchangedToken {self.issued_token_type}>"

    def __copy__(self) -> ExchangedToken:
        return self

    def __deepcopy__(self, memo: object) -> ExchangedToken:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, (REDACTED,))


class TokenExchange:
    """Exchanges tokens at one endpoint.

    Args:
        url: the token endpoint: https, or of this machine.
        client_id: this application's name there (RFC 6749 §2.3.1); `None` for an endpoint that
            identifies it otherwise.
        client_secret: its secret.
        audience: whom the endpoint's own tokens are for: the audience of the call's token that is
            shown to it; the endpoint's URL by default.
        max_lifetime: seconds; a token that lives longer, or does not say, is refused.
        timeout: seconds.
        client: for the blocking form.
        async_client: for the other; it belongs to one event loop.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
        audience: str | None = None,
        max_lifetime: int = MAX_LIFETIME,
        timeout: float = 5.0,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
    ) -> None:
        if (client_id is None) != (client_secret is None) or max_lifetime < 1:
            msg = "`client_id` and `client_secret` belong together, and `max_lifetime` is positive"
            raise ConfigError(msg)
        self._url = checked_url(url, "url")
        self.audience = audience or self._url
        self._max_lifetime = max_lifetime
        self._headers = {"Accept": "application/json"}
        if client_id is not None and client_secret is not None:
            self._headers["Authorization"] = basic(client_id, client_secret)
        self._fetcher = Fetcher(timeout=timeout, client=client, async_client=async_client)

    def exchange(self, subject_token: str, **options: Any) -> ExchangedToken:
        """Exchange a token (§2.1).

        Args:
            subject_token: on whose behalf.
            options: `subject_token_type` (default JWT), `actor_token` and `actor_token_type` (who
                acts), `resource` (URL of the service) or `audience` (its name), `scope`,
                `requested_token_type` (default access token).

        Raises:
            CredentialError: `exchange_refused`, with the endpoint's error code (§2.2.2);
                `exchange_failed`: no answer, or not the one that was asked for. Never quotes a token.
        """
        form, wanted = _form(subject_token, options)
        return self._read(self._fetcher.send("POST", self._url, headers=self._headers, data=form), wanted)

    async def aexchange(self, subject_token: str, **options: Any) -> ExchangedToken:
        """Like `exchange`."""
        form, wanted = _form(subject_token, options)
        return self._read(await self._fetcher.asend("POST", self._url, headers=self._headers, data=form), wanted)

    def _read(self, answer: Answer | None, wanted: str) -> ExchangedToken:
        if answer is None:
            _fail("no answer in time, or a redirect, or too long a one")
        body = answer.body
        if body is None:
            _fail("the answer is no JSON object")
        if answer.status != OK:
            error = body.get("error")
            known = error if isinstance(error, str) and _ERROR.fullmatch(error) else "no error code"
            raise CredentialError(Code.EXCHANGE_REFUSED, known)
        token, lifetime = body.get("access_token"), body.get("expires_in")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN68.fullmatch(token):
            _fail("`access_token` is no token")
        if body.get("issued_token_type") != wanted:
            _fail("`issued_token_type` is not the one that was asked for")
        if str(body.get("token_type")).lower() != "bearer":
            _fail("`token_type` is not Bearer")
        if type(lifetime) is not int or not 0 < lifetime <= self._max_lifetime:
            _fail(f"`expires_in` must be between 1 and {self._max_lifetime}")
        # Listed before it is handed out: an echo of it is found in whatever the tool returns.
        if (ticket := current_ticket()) is not None:
            ticket.track(token)
        scope = body.get("scope")
        return ExchangedToken(token, wanted, time.time() + lifetime, scope if isinstance(scope, str) else None)

    def __repr__(self) -> str:
        return f"<TokenExchange {self._url}>"

    def __reduce__(self) -> NoReturn:
        msg = "a TokenExchange can not be copied or pickled"
        raise TypeError(msg)


class ExchangeAuth(httpx.Auth):
    """`httpx.Auth` for a service with bearer tokens of its own: exchanged anew for each request.

    Nothing is kept between requests: a token of one call is never there for another.

    Args:
        exchange: where.
        resource: URL of the service. The exchanged token goes there and nowhere else.
        audience: the service's name at the endpoint, where that wants a name.
        scope: to ask for.
        actor_token: gives the token that says who acts, where the endpoint wants one (§2.1).
    """

    def __init__(
        self,
        exchange: TokenExchange,
        *,
        resource: str,
        audience: str | None = None,
        scope: str | None = None,
        actor_token: Callable[[], str] | None = None,
    ) -> None:
        self._exchange = exchange
        self._resource = checked_url(resource, "resource")
        self._audience, self._scope, self._actor_token = audience, scope, actor_token

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        if (ticket := current_ticket()) is None:
            raise refused_outside(origin_of(request))
        if not self._is_meant(request):
            raise ticket.refused(self._elsewhere(request), origin_of(request))
        own = ticket.credential(self._exchange.audience)
        exchanged = self._exchange.exchange(own.token, **self._options())
        try:
            yield _bearing(request, ticket, exchanged)
        finally:
            bare(request)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        if (ticket := current_ticket()) is None:
            raise await arefused_outside(origin_of(request))
        if not self._is_meant(request):
            raise await ticket.arefused(self._elsewhere(request), origin_of(request))
        own = await ticket.acredential(self._exchange.audience)
        exchanged = await self._exchange.aexchange(own.token, **self._options())
        try:
            yield _bearing(request, ticket, exchanged)
        finally:
            bare(request)

    def _is_meant(self, request: httpx.Request) -> bool:
        return is_under(str(request.url), self._resource)  # so of its scheme too, which was checked

    def _elsewhere(self, request: httpx.Request) -> CredentialError:
        return CredentialError(Code.AUDIENCE, f"{request.url.host} is not the resource of the exchange")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"resource": self._resource, "audience": self._audience, "scope": self._scope}
        if self._actor_token is not None:
            options |= {"actor_token": self._actor_token(), "actor_token_type": JWT}
        return options


def _bearing(request: httpx.Request, ticket: Ticket, exchanged: ExchangedToken) -> httpx.Request:
    if ticket.concluded:
        raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
    return bearing(request, {"Authorization": f"Bearer {exchanged.token}"})


_OPTIONS: Final = frozenset(
    {
        "subject_token_type",
        "actor_token",
        "actor_token_type",
        "resource",
        "audience",
        "scope",
        "requested_token_type",
    },
)


def _form(subject_token: str, options: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := set(given) - _OPTIONS:
        msg = f"no such parameter of an exchange: {', '.join(sorted(unknown))}"
        raise ConfigError(msg)
    if ("actor_token" in given) != ("actor_token_type" in given):
        msg = "`actor_token` and `actor_token_type` belong together"
        raise ConfigError(msg)
    form = {
        "grant_type": GRANT,
        "subject_token": subject_token,
        "subject_token_type": JWT,
        "requested_token_type": ACCESS_TOKEN,
        **given,
    }
    return form, form["requested_token_type"]


def _fail(why: str) -> NoReturn:
    raise CredentialError(Code.EXCHANGE_FAILED, why)
