"""`httpx.Auth` that sends the credential of the call under way, sync and async.

```python
bank = httpx.Client(base_url="https://bank.example", auth=CallAuth(dpop=True))  # one client, for all tools and agents


@profile(effect="pay", sink="external", audience=("https://bank.example",))
@tool
def pay(recipient: str, amount: float) -> str:
    return bank.post("/payments", json={"recipient": recipient, "amount": amount}).text
```

The client holds no token: each request asks the call that makes it. A token goes to its own audience
and nowhere else; a redirect that the client follows goes on without it, and so does the request
that a response or an error keeps.
"""

from __future__ import annotations

import re
import sys
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

import httpx

from langchain_runtime_authz._http import checked_url, is_loopback
from langchain_runtime_authz.credential.dpop import normal_target
from langchain_runtime_authz.credential.ticket import CallCredential, arefused_outside, current_ticket, refused_outside
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError

__all__ = ["CallAuth", "bare", "bearing", "is_under", "origin_of"]

MAX_ORIGINS: Final = 256  # whose last nonce is kept
MAX_NONCE: Final = 512
_SLASH: Final = re.compile(r"[/\\]")
_AFTER: Final = re.compile(r"[;?#]")  # what some cut off a segment
UNAUTHORIZED: Final = 401


class CallAuth(httpx.Auth):
    """Sends the per-call token for the request's audience.

    The audience is the one of the call's (profile and grant) that the request's URL lies under: same
    scheme, host and port, and its path as a prefix. For audiences that are no URLs, say where they live.

    Args:
        audiences: URL → audience, for audiences that are named otherwise than their URL.
        dpop: bind tokens to a key of their call, and prove each request (RFC 9449). A server that asks
            for a nonce is asked once more with it.
        outside: what a request outside any call does: `refuse` raises, `anonymous` sends it without a
            credential (for the listing of an MCP server's tools, for one).

    Raises:
        ConfigError: an audience's URL is not https, nor of this machine.
        CredentialError: from a request: `audience`, or `credential_unavailable`.
    """

    def __init__(
        self,
        audiences: Mapping[str, str] | None = None,
        *,
        dpop: bool = False,
        outside: Literal["refuse", "anonymous"] = "refuse",
    ) -> None:
        if outside not in ("refuse", "anonymous"):
            msg = "`outside` is `refuse` or `anonymous`"
            raise ConfigError(msg)
        self._named = {checked_url(url, "audiences"): audience for url, audience in (audiences or {}).items()}
        self._dpop, self._outside = dpop, outside
        self._nonces: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        ticket = current_ticket()
        credential = None
        if ticket is None and self._outside == "refuse":
            raise refused_outside(origin_of(request))
        if ticket is not None:
            try:
                audience = self._audience(str(request.url), ticket.audiences)
            except CredentialError as exc:
                raise ticket.refused(exc, origin_of(request)) from None
            credential = ticket.credential(audience, dpop=self._dpop)
        try:
            response = yield self._signed(request, credential)
            if self._wants_nonce(request, response) and credential is not None:
                yield self._signed(request, credential)
        finally:
            bare(request)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        ticket = current_ticket()
        credential = None
        if ticket is None and self._outside == "refuse":
            raise await arefused_outside(origin_of(request))
        if ticket is not None:
            try:
                audience = self._audience(str(request.url), ticket.audiences)
            except CredentialError as exc:
                raise await ticket.arefused(exc, origin_of(request)) from None
            credential = await ticket.acredential(audience, dpop=self._dpop)
        try:
            response = yield self._signed(request, credential)
            if self._wants_nonce(request, response) and credential is not None:
                yield self._signed(request, credential)
        finally:
            bare(request)

    def _audience(self, url: str, audiences: tuple[str, ...]) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(parts.hostname):
            raise CredentialError(Code.AUDIENCE, "a token is not sent over plain HTTP")
        places = [(place, audience) for place, audience in self._named.items() if audience in audiences]
        places += [(audience, audience) for audience in audiences if audience not in self._named.values()]
        under = [(len(place), audience) for place, audience in places if is_under(url, place)]
        if not under:
            raise CredentialError(Code.AUDIENCE, f"{parts.scheme}://{parts.netloc} is none of the call's")
        return max(under)[1]  # the longest, where one lies under another

    def _signed(self, request: httpx.Request, credential: CallCredential | None) -> httpx.Request:
        if credential is not None:
            nonce = self._nonces.get(origin_of(request))
            return bearing(request, credential.headers(request.method, str(request.url), nonce))
        return request

    def _wants_nonce(self, request: httpx.Request, response: httpx.Response) -> bool:
        """Keep the server's nonce; whether the request was refused for the lack of it."""
        nonce = response.headers.get("DPoP-Nonce")
        # After a redirect it is somebody else's.
        if not self._dpop or not nonce or len(nonce) > MAX_NONCE or response.history:
            return False
        with self._lock:
            self._nonces[origin_of(request)] = nonce
            self._nonces.move_to_end(origin_of(request))
            while len(self._nonces) > MAX_ORIGINS:
                self._nonces.popitem(last=False)
        challenge = response.headers.get("WWW-Authenticate", "")
        return response.status_code == UNAUTHORIZED and 'error="use_dpop_nonce"' in challenge

    def __repr__(self) -> str:
        return f"<CallAuth dpop={self._dpop}>"


class _Bearing(httpx.Request):
    """A request whose credential is left behind where a client makes a redirect of it.

    Everybody else (transports, instrumentation that copies or replaces headers) sees all of them.
    """

    @property
    def headers(self) -> httpx.Headers:
        headers: httpx.Headers = self.__dict__["headers"]
        if sys._getframe(1).f_code is not _REDIRECT:  # noqa: SLF001
            return headers
        return httpx.Headers([(k, v) for k, v in headers.raw if k.lower() not in _CREDENTIAL])

    @headers.setter
    def headers(self, value: httpx.Headers) -> None:
        self.__dict__["headers"] = value


# Both clients copy a request's headers here, and keep `Authorization` within one origin and `DPoP` everywhere.
# An `Auth` is not asked again for a redirect, and is not told whether the client follows any.
_REDIRECT: Final = httpx.Client._redirect_headers.__code__  # noqa: SLF001
_CREDENTIAL: Final = (b"authorization", b"dpop")


def bearing(request: httpx.Request, credential: Mapping[str, str]) -> httpx.Request:
    """`request` with the headers of a credential, which a redirect does not inherit.

    An audience may be a path of its origin, and what lies beside it is another service.
    """
    request.headers.update(credential)
    request.__class__ = _Bearing
    return request


def bare(request: httpx.Request) -> None:
    """Take the credential off a request that was sent: its response and its errors keep it, and are kept themselves."""
    if isinstance(request, _Bearing):
        request.headers = httpx.Headers([(k, v) for k, v in request.headers.raw if k.lower() not in _CREDENTIAL])


def origin_of(request: httpx.Request) -> str:
    """Scheme and authority of where a request goes."""
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"


def is_under(url: str, place: str) -> bool:
    """Whether `url` is `place`, or lies below it; what is no URL has nothing below it."""
    target, root = normal_target(url), normal_target(place)
    if target is None or root is None:
        return False
    if not _is_plain(urlsplit(target).path):
        return False
    return target == root or target.startswith(root if root.endswith("/") else root + "/")


def _is_plain(path: str) -> bool:
    """Whether every server reads the same path in it, and nothing in it leads up.

    They differ in how often they decode, what they make of broken or overlong UTF-8, of backslashes, parameters and
    compatibility characters, and in which of that comes before dot segments are resolved. What any of them may
    resolve might lead out again of where it seems to lie.
    """
    try:
        read = unicodedata.normalize("NFKC", unquote(path, errors="strict"))
    except UnicodeDecodeError:
        return False
    heads = (_AFTER.split(segment, 1)[0] for segment in _SLASH.split(read))
    return read.isprintable() and "%" not in read and not any(head and not head.strip(". ") for head in heads)
