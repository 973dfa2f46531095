"""One bounded HTTP exchange: for key sets, introspection and token exchange.

A server that is slow, endless, lying or elsewhere costs a few seconds and a few kilobytes. Redirects
are not followed, and nothing is read from the environment (proxies, `.netrc`) unless the application
brings a client of its own.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from langchain_runtime_authz.credential.token import parse_object
from langchain_runtime_authz.errors import ConfigError

__all__ = ["Answer", "Fetcher", "checked_url", "is_loopback"]

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Answer(NamedTuple):
    """What came back: the status, and the JSON object of the body, `None` where it is none.

    No text form: a body may hold a token.
    """

    status: int
    body: dict[str, Any] | None

    def __repr__(self) -> str:
        return f"<Answer {self.status}>"


class Fetcher:
    """Sends small requests, and reads small JSON objects.

    Args:
        timeout: seconds for the whole exchange.
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
            msg = "`timeout` and `max_bytes` must be positive"
            raise ConfigError(msg)
        self._timeout, self._max = timeout, max_bytes
        self._client, self._async_client = client, async_client
        # Made once: it costs tens of milliseconds, and a client of ours is made for each exchange.
        self._tls = (
            None if client is not None and async_client is not None else httpx.create_ssl_context(trust_env=False)
        )

    @property
    def _verify(self) -> ssl.SSLContext | bool:
        return True if self._tls is None else self._tls

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], data: Mapping[str, Any] | None = None
    ) -> Answer | None:
        """The answer; `None` where there is none in time, or it is too large, or a redirect."""
        ends = time.monotonic() + self._timeout
        try:
            client = self._client or httpx.Client(trust_env=False, timeout=self._timeout, verify=self._verify)
            try:
                with client.stream(
                    method,
                    url,
                    headers=dict(headers),
                    data=data,
                    auth=None,
                    follow_redirects=False,
                    timeout=self._timeout,
                ) as response:
                    chunks, size = [], 0
                    for chunk in response.iter_bytes():
                        size += len(chunk)
                        if size > self._max or time.monotonic() > ends:
                            return None
                        chunks.append(chunk)
                    return _answer(response, b"".join(chunks))
            finally:
                if self._client is None:
                    client.close()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError):
            return None

    async def asend(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        data: Mapping[str, Any] | None = None,
    ) -> Answer | None:
        """Like `send`."""
        try:
            async with asyncio.timeout(self._timeout):
                # An asynchronous client belongs to one event loop: ours is made anew where none is given.
                client = self._async_client or httpx.AsyncClient(
                    trust_env=False, timeout=self._timeout, verify=self._verify
                )
                try:
                    async with client.stream(
                        method,
                        url,
                        headers=dict(headers),
                        data=data,
                        auth=None,
                        follow_redirects=False,
                        timeout=self._timeout,
                    ) as response:
                        chunks, size = [], 0
                        async for chunk in response.aiter_bytes():
                            size += len(chunk)
                            if size > self._max:
                                return None
                            chunks.append(chunk)
                        return _answer(response, b"".join(chunks))
                finally:
                    if self._async_client is None:
                        await client.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, TimeoutError):
            return None


def _answer(response: httpx.Response, body: bytes) -> Answer | None:
    if response.is_redirect:
        return None
    try:
        return Answer(response.status_code, parse_object(body))
    except ValueError:
        return Answer(response.status_code, None)


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine."""
    return host in LOOPBACK


def checked_url(url: str, name: str) -> str:
    """`url`, where it is absolute, without credentials, and HTTPS or of this machine.

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
        msg = f"`{name}` must be an https URL"
        raise ConfigError(msg)
    return url
