"""One bounded HTTP exchange: for key sets, introspection and token exchange.

A slow, endless or lying server costs a few seconds and a few kilobytes: one clock runs for the whole
exchange, and compressed answers are refused unread. Redirects are not followed. Proxies and `.netrc` of the
environment are not used, unless the application brings a client of its own.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from functools import cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote_plus, urlsplit

import httpx

from langchain_runtime_authz.authzen import strict_json
from langchain_runtime_authz.errors import ConfigError

MAX_OPEN: Final = 32  # exchanges of one fetcher at the same time, blocking form
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@cache
def _tls() -> ssl.SSLContext:
    """Return the TLS context of the clients made here. Loading its authorities costs tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


class Answer(NamedTuple):
    """The status, and the JSON object of the body, `None` if it is not one. Its text form hides the body."""

    status: int
    body: dict[str, Any] | None

    def __repr__(self) -> str:
        return f"<Answer {self.status}>"


class Fetcher:
    """Send small requests, and read small JSON objects.

    Args:
        timeout: seconds for the whole exchange, names and headers included.
        max_bytes: of the answer's body.
        client: for the blocking form; one without redirects and environment by default.
        async_client: for the other.
    """

    def __init__(
        self,
        *,
        timeout: float = 2.0,
        max_bytes: int = 64 * 1024,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
    ) -> None:
        if not timeout > 0 or max_bytes < 1:
            raise ConfigError("`timeout` and `max_bytes` must be positive")
        self._timeout, self._max = timeout, max_bytes
        self._client, self._async_client = client, async_client
        self._places, self._pid = threading.BoundedSemaphore(MAX_OPEN), os.getpid()
        self._verify = True if client is not None and async_client is not None else _tls()

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], data: Mapping[str, Any] | None = None
    ) -> Answer | None:
        """Return the answer, or `None` if it is late, too large, compressed, or a redirect."""
        request = _Request(method, url, {**headers, **_PLAIN}, data)

        def exchange() -> Answer | None:
            return asyncio.run(self._afresh(request)) if self._client is None else self._through(self._client, request)

        return self._apart(exchange)

    async def asend(
        self, method: str, url: str, *, headers: Mapping[str, str], data: Mapping[str, Any] | None = None
    ) -> Answer | None:
        """Like `send`."""
        request = _Request(method, url, {**headers, **_PLAIN}, data)
        if self._async_client is None:
            return await self._afresh(request)
        return await self._athrough(self._async_client, request)

    def _apart(self, exchange: Callable[[], Answer | None]) -> Answer | None:
        """Return the answer of `exchange` in time. A blocking read cannot be ended: it is left in its thread.

        The number of such threads is bounded. A caller waits for a place until the deadline.
        """
        if self._pid != os.getpid():  # a fork's child has none of the threads that would give a place back
            self._places, self._pid = threading.BoundedSemaphore(MAX_OPEN), os.getpid()
        places = self._places
        ends, result = time.monotonic() + self._timeout, Future[Answer | None]()

        def run() -> None:
            try:
                result.set_result(context.run(exchange))
            except BaseException as exc:  # noqa: BLE001  (handed to the caller)
                result.set_exception(exc)
            finally:
                places.release()

        context = copy_context()
        if not places.acquire(timeout=self._timeout):
            return None
        try:
            threading.Thread(target=run, name="runtime-authz-fetch", daemon=True).start()
        except RuntimeError:  # no thread to be had
            places.release()
            return None
        try:
            return result.result(max(0.0, ends - time.monotonic()))
        except TimeoutError:
            return None

    def _through(self, client: httpx.Client, request: _Request) -> Answer | None:
        try:
            with client.stream(**request.options(self._timeout)) as response:
                if _unfit(response, self._max):
                    return None
                body = bytearray()  # as it came: what is encoded was refused
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > self._max:
                        return None
                return _answer(response, bytes(body))
        except _FAILURES:
            return None

    async def _athrough(self, client: httpx.AsyncClient, request: _Request) -> Answer | None:
        try:
            async with asyncio.timeout(self._timeout), client.stream(**request.options(self._timeout)) as response:
                if _unfit(response, self._max):
                    return None
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > self._max:
                        return None
                return _answer(response, bytes(body))
        except _FAILURES:
            return None

    async def _afresh(self, request: _Request) -> Answer | None:
        # An asynchronous client belongs to one event loop: ours is made anew where none is given.
        async with httpx.AsyncClient(trust_env=False, timeout=self._timeout, verify=self._verify) as client:
            return await self._athrough(client, request)


_DIGITS: Final = 18  # of a length; Python may refuse to parse a longer number
_PLAIN: Final = {"Accept-Encoding": "identity"}
_FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, TimeoutError)


class _Request(NamedTuple):
    method: str
    url: str
    headers: dict[str, str]
    data: Mapping[str, Any] | None

    def options(self, timeout: float) -> dict[str, Any]:
        """Return the arguments for either client. The timeout is of each step; the whole has a clock of its own."""
        return {**self._asdict(), "auth": None, "follow_redirects": False, "timeout": timeout}


def _unfit(response: httpx.Response, limit: int) -> bool:
    """Return True if the headers refuse the answer: a compressed body may be a thousand times as large."""
    length = response.headers.get("Content-Length", "").lstrip("0")
    encoded = response.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    return response.is_redirect or encoded or (length.isdecimal() and (len(length) > _DIGITS or int(length) > limit))


def _answer(response: httpx.Response, body: bytes) -> Answer | None:
    try:
        document = strict_json(body)
    except (ValueError, RecursionError):
        document = None
    return Answer(response.status_code, document if isinstance(document, dict) else None)


def is_loopback(host: str | None) -> bool:
    """Return True if the host is this machine."""
    return host in LOOPBACK


def checked_url(url: str, name: str) -> str:
    """Return `url` if it is absolute, without credentials, and HTTPS or of this machine.

    Raises:
        ConfigError: it is not.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and not parts.username and not parts.fragment
        usable = usable and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname)))
    except (ValueError, AttributeError, TypeError):
        usable = False
    if not usable:
        raise ConfigError(f"`{name}` must be an https URL")
    return url


def basic(name: str, secret: str) -> str:
    """Return the `Authorization` of a client with a secret (RFC 6749 §2.3.1)."""
    return "Basic " + base64.b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()
