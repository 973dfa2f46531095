"""Exchange a call's token at an OAuth 2.0 token endpoint (RFC 8693), for services that want their own.

The token of the call is the `subject_token`. So the endpoint sees who asked, which agent acts and for which
task, and answers with a bearer token for one service. That token stays valid there until it expires, even if
the call ends before. So it must be short-lived, and a tool's output is searched for it too.

```python
exchange = TokenExchange("https://login.example/token", client_id="agents", client_secret=secret)
crm = httpx.Client(base_url="https://crm.example", auth=ExchangeAuth(exchange, resource="https://crm.example"))
```
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import httpx

from langchain_runtime_authz._http import Answer, Fetcher, basic, checked_url
from langchain_runtime_authz.credential.current_call import current_ticket
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.credential.token import MAX_TOKEN, REDACTED
from langchain_runtime_authz.downstream.httpx_auth import Flow, Step, TicketAuth, bearing, is_under
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["ACCESS_TOKEN", "JWT", "ExchangeAuth", "ExchangedToken", "TokenExchange"]

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # §2.1
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  (§3, a name)
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
MAX_LIFETIME: Final = 300  # seconds
_ERROR: Final = re.compile(r"[a-z_]{1,40}")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1
_ACTOR: Final = {"actor_token", "actor_token_type"}
_OPTIONS: Final = _ACTOR | {"subject_token_type", "resource", "audience", "scope", "requested_token_type"}


class ExchangedToken:
    """A token that the endpoint issued. Text forms, copies and pickles never hold it.

    `issued_token_type` is an RFC 8693 §3 identifier, and `expires_at` is in epoch seconds. `scope` is as granted, or
    `None` if it is the requested one. Send `token` to its service; never return or log it.
    """

    __slots__ = ("expires_at", "issued_token_type", "scope", "token")

    def __init__(self, token: str, issued_token_type: str, expires_at: float, scope: str | None) -> None:
        self.token, self.issued_token_type, self.expires_at, self.scope = token, issued_token_type, expires_at, scope

    def __copy__(self) -> ExchangedToken:
        return self

    def __deepcopy__(self, memo: object) -> ExchangedToken:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return (str, (REDACTED,))


class TokenExchange:
    """Exchanges tokens at one endpoint.

    Args:
        url: the token endpoint: https, or on this machine.
        client_id: this application's name there (RFC 6749 §2.3.1); `None` if the endpoint needs none.
        client_secret: its secret.
        audience: the endpoint's own audience, for which the call's token is minted; by default its URL.
        max_lifetime: seconds. A token with a longer or no `expires_in` is refused.
        timeout: seconds.
        client: for the blocking form.
        async_client: for the asynchronous form; it belongs to one event loop.
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
            raise ConfigError("`client_id` and `client_secret` belong together, and `max_lifetime` is positive")
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
            subject_token: token of the party on whose behalf the request is made.
            options: `subject_token_type` (default JWT), `actor_token` and `actor_token_type` (who
                acts), `resource` (URL of the service) or `audience` (its name), `scope`,
                `requested_token_type` (default access token).

        Raises:
            CredentialError: `exchange_refused`, with the endpoint's error code (§2.2.2);
                `exchange_failed`: no answer, or not the requested one. Never quotes a token.
        """
        form = _form(subject_token, options)
        return self._read(self._fetcher.send("POST", self._url, headers=self._headers, data=form), form)

    async def aexchange(self, subject_token: str, **options: Any) -> ExchangedToken:
        """Exchange a token without blocking the event loop."""
        form = _form(subject_token, options)
        return self._read(await self._fetcher.asend("POST", self._url, headers=self._headers, data=form), form)

    def _read(self, answer: Answer | None, form: Mapping[str, str]) -> ExchangedToken:
        wanted = form["requested_token_type"]
        if answer is None:
            _fail("no answer in time, or a redirect, or too long a one")
        body = answer.body
        if body is None:
            _fail("the answer is not a JSON object")
        if answer.status != httpx.codes.OK:
            error = body.get("error")
            known = error if isinstance(error, str) and _ERROR.fullmatch(error) else "no error code"
            raise CredentialError(Code.EXCHANGE_REFUSED, known)
        token, lifetime, scope = body.get("access_token"), body.get("expires_in"), body.get("scope")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN68.fullmatch(token):
            _fail("`access_token` is not a token")
        if body.get("issued_token_type") != wanted:
            _fail("`issued_token_type` is not the requested one")
        if str(body.get("token_type")).lower() != "bearer":
            _fail("`token_type` is not Bearer")
        if type(lifetime) is not int or not 0 < lifetime <= self._max_lifetime:
            _fail(f"`expires_in` must be between 1 and {self._max_lifetime}")
        # Track it before it is handed out, so that it is found in the tool's output.
        if (ticket := current_ticket()) is not None:
            ticket.track(token)
        return ExchangedToken(token, wanted, time.time() + lifetime, scope if isinstance(scope, str) else None)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TokenExchange cannot be copied or pickled")


class ExchangeAuth(TicketAuth):
    """`httpx.Auth` for a service with its own bearer tokens: exchanged anew for each request.

    No token is kept between requests, so none reaches another call.

    Args:
        exchange: the token endpoint.
        resource: URL of the service. The exchanged token goes there only.
        audience: the service's name at the endpoint, if the endpoint wants one.
        scope: to ask for.
        actor_token: returns the token of the acting party, if the endpoint wants one (§2.1).
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
        self._exchange, self._actor_token = exchange, actor_token
        self._resource = checked_url(resource, "resource")
        self._options = {"resource": self._resource, "audience": audience, "scope": scope}

    def _audience(self, request: httpx.Request, ticket: Ticket) -> str:
        if not is_under(str(request.url), self._resource):  # this compares the scheme too
            raise CredentialError(Code.AUDIENCE, f"{request.url.host} is not the resource of the exchange")
        return self._exchange.audience

    def _send(self, request: httpx.Request, origin: str, ticket: Ticket, audience: str) -> Flow:
        own = yield Step(ticket.credential, ticket.acredential, audience)
        options = self._options
        if self._actor_token is not None:
            options = {**options, "actor_token": self._actor_token(), "actor_token_type": JWT}
        exchanged = yield Step(self._exchange.exchange, self._exchange.aexchange, own.token, **options)
        if ticket.concluded:
            raise CredentialError(Code.CREDENTIAL_UNAVAILABLE)
        yield bearing(request, {"Authorization": f"Bearer {exchanged.token}"})


def _form(subject_token: str, options: Mapping[str, Any]) -> dict[str, str]:
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - _OPTIONS:
        raise ConfigError(f"unknown parameters of an exchange: {', '.join(sorted(unknown))}")
    if len(_ACTOR & given.keys()) == 1:
        raise ConfigError("`actor_token` and `actor_token_type` belong together")
    own = {"grant_type": GRANT, "subject_token": subject_token}
    return {**own, "subject_token_type": JWT, "requested_token_type": ACCESS_TOKEN, **given}


def _fail(why: str) -> NoReturn:
    raise CredentialError(Code.EXCHANGE_FAILED, why)
