"""Send the credential of the current call with httpx, sync and async.

```python
bank = httpx.Client(base_url="https://bank.example", auth=CallAuth(dpop=True))  # one client, for all tools and agents


@profile(effect="pay", sink="external", audience=("https://bank.example",))
@tool
def pay(recipient: str, amount: float) -> str:
    return bank.post("/payments", json={"recipient": recipient, "amount": amount}).text
```

The client holds no token: each request uses the token of its call. A token is sent to its audience only, and not after
a redirect. `response.request` and the request of an exception do not hold the token.

For an MCP client use `CallAuth(outside="anonymous")`, wrapped by `httpx2_auth` if the client is built on httpx2. Open
an MCP session for each call, as the adapters do by default, because a session belongs to the call that opened it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import closing, suppress
from functools import cache
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from langchain_runtime_authz._flow import Perform
from langchain_runtime_authz._url import checked_url, is_loopback, is_under
from langchain_runtime_authz.credential.ticket import Ticket, current_ticket, refused_outside
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.telemetry.spans import inject_trace_context

if TYPE_CHECKING:
    import httpx2

MAX_NONCE: Final = 512


Flow = Generator[tuple[Any, ...] | httpx.Request, Any, Any]  # yields `_flow.Perform`, and requests to send


class TicketAuth(httpx.Auth):
    """Base of sync and async `httpx.Auth` classes that use the current ticket."""

    _anonymous = False
    _audience: Callable[[httpx.Request, Ticket], str]  # raises `CredentialError` if there is none
    _send: Callable[[httpx.Request, str, Any, str], Flow]  # takes request, origin, ticket (or `None`) and audience

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        flow, got = self._flow(request), None
        with closing(flow), suppress(StopIteration):
            while True:
                step = flow.send(got)
                got = step[1]() if isinstance(step, tuple) else (yield step)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        flow, got = self._flow(request), None
        with closing(flow), suppress(StopIteration):
            while True:
                step = flow.send(got)
                got = await step[2]() if isinstance(step, tuple) else (yield step)

    def _flow(self, request: httpx.Request) -> Flow:
        origin = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        ticket, audience = current_ticket(), ""
        if ticket is None and not self._anonymous:
            raise (yield from refused_outside(origin))
        if ticket is not None:
            try:
                audience = self._audience(request, ticket)
            except CredentialError as exc:  # record the refusal, then raise it
                raise (yield from ticket.refused(exc, origin)) from None
        inject_trace_context(request.headers)
        try:
            yield from self._send(request, origin, ticket, audience)
        finally:  # responses and errors keep their request, so remove the credential from it
            if isinstance(request, _Bearing):
                request.headers = _without_credential(request.headers)
                request.__class__ = type(request).__bases__[1]


class CallAuth(TicketAuth):
    """Sends the per-call token for the request's audience.

    The request's URL must lie under one of the call's audiences (profile and grant): same scheme, host and
    port, and the audience's path as a prefix. If an audience is not a URL, `audiences` gives its URL.

    Args:
        audiences: URL → audience, for audiences that are not URLs themselves.
        dpop: bind tokens to a key of their call, and prove each request (RFC 9449). If a server asks for a
            nonce, the request is sent once more, with the nonce.
        outside: what to do with a request outside any call. `refuse` raises. `anonymous` sends the request without
            a credential, for example to list an MCP server's tools.

    Raises `ConfigError` if an audience's URL is neither https nor on this machine. A request raises `CredentialError`
    (`audience` or `credential_unavailable`).
    """

    def __init__(
        self,
        audiences: Mapping[str, str] | None = None,
        *,
        dpop: bool = False,
        outside: Literal["refuse", "anonymous"] = "refuse",
    ) -> None:
        if outside not in ("refuse", "anonymous"):
            raise ConfigError("`outside` is `refuse` or `anonymous`")
        self._named = {checked_url(url, "audiences"): audience for url, audience in (audiences or {}).items()}
        self._dpop, self._anonymous = dpop, outside == "anonymous"
        self._nonces: dict[str, str] = {}  # the last one of each origin; all of them are audiences

    def _audience(self, request: httpx.Request, ticket: Ticket) -> str:
        url, audiences = str(request.url), ticket.audiences
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(parts.hostname):
            raise CredentialError(Code.AUDIENCE, "a token is not sent over plain HTTP")
        places = [(place, audience) for place, audience in self._named.items() if audience in audiences]
        places += [(audience, audience) for audience in audiences if audience not in self._named.values()]
        under = [(len(place), audience) for place, audience in places if is_under(url, place)]
        if not under:
            raise CredentialError(Code.AUDIENCE, f"{parts.scheme}://{parts.hostname} is none of the call's audiences")
        return max(under)[1]  # the longest, if one lies under another

    def _send(self, request: httpx.Request, origin: str, ticket: Ticket | None, audience: str) -> Flow:
        if ticket is None:
            yield request
            return
        credential = yield Perform(ticket.credential, ticket.acredential, audience, dpop=self._dpop)
        for _ in range(2):
            headers = credential.headers(request.method, str(request.url), self._nonces.get(origin))
            response = yield add_credential(request, headers)
            if not self._wants_nonce(origin, response):
                return

    def _wants_nonce(self, origin: str, response: httpx.Response) -> bool:
        """Keep the server's nonce; return True if the server refused for lack of one."""
        nonce = response.headers.get("DPoP-Nonce")
        # After a redirect, the nonce comes from another server.
        if not self._dpop or not nonce or len(nonce) > MAX_NONCE or response.history:
            return False
        self._nonces[origin] = nonce
        challenge = response.headers.get("WWW-Authenticate", "")
        return response.status_code == httpx.codes.UNAUTHORIZED and 'error="use_dpop_nonce"' in challenge


class _Bearing:
    """A request that hides its credential from the httpx code that builds redirects."""

    _redirect: CodeType

    @property
    def headers(self) -> httpx.Headers:
        headers: httpx.Headers = self.__dict__["headers"]
        return _without_credential(headers) if sys._getframe(1).f_code is self._redirect else headers  # noqa: SLF001

    @headers.setter
    def headers(self, value: httpx.Headers) -> None:
        self.__dict__["headers"] = value


@cache
def _bearing(kind: type) -> type:
    # For a redirect, both clients copy the headers in `_redirect_headers`. They keep `Authorization` within one origin
    # and `DPoP` everywhere, and call no `Auth`. So `_Bearing.headers` hides the credential from that function.
    packages = (base.__module__.partition(".")[0] for base in kind.__mro__)  # `kind` may be another library's subclass
    module = sys.modules[next(name for name in packages if name in ("httpx", "httpx2"))]
    return type("_Bearing", (_Bearing, kind), {"_redirect": module.Client._redirect_headers.__code__})  # noqa: SLF001


def _without_credential(headers: httpx.Headers) -> httpx.Headers:
    return type(headers)([(k, v) for k, v in headers.raw if k.lower() not in (b"authorization", b"dpop")])


def add_credential(request: httpx.Request, credential: Mapping[str, str]) -> httpx.Request:
    """Add a credential to the request. A redirect does not inherit the credential."""
    request.headers.update(credential)
    if not isinstance(request, _Bearing):
        request.__class__ = _bearing(type(request))  # type: ignore[arg-type]  # mypy looks at the instances' hash
    return request


def httpx2_auth(auth: TicketAuth) -> httpx2.Auth:
    """Return `auth` for an httpx2 client (MCP SDK 2, FastMCP 4, `langchain.mcp`)."""
    import httpx2

    made = httpx2.Auth()
    made.sync_auth_flow, made.async_auth_flow = auth.sync_auth_flow, auth.async_auth_flow  # type: ignore[method-assign,assignment]
    return made
