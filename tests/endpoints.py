"""Endpoints without a network: a handler, as of `httpx.MockTransport`, answers what a link sends."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx

from langchain_runtime_authz._http import Link


class answered:
    """Give it as `tls` of a connection. An asynchronous handler runs on the loop of the test that made it."""

    def __init__(self, handler: Callable[[httpx.Request], Any]) -> None:
        self.handler, self.loop = handler, None
        if inspect.iscoroutinefunction(handler):
            self.loop = asyncio.get_running_loop()

    def __call__(self) -> None:
        """Return no context: there is no handshake."""

    async def close(self) -> None: ...

    @asynccontextmanager
    async def request(self, method: str, url: str, *, data: bytes | None, headers: Any, **_: Any) -> AsyncIterator[Any]:
        request = httpx.Request(method, url, content=data, headers=headers)
        try:
            if self.loop is not None:
                found = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.handler(request), self.loop))
            else:
                found = await asyncio.to_thread(self.handler, request)
        except httpx.TransportError as exc:
            raise aiohttp.ClientConnectionError from exc
        length = found.headers.get("Content-Length", "")
        yield SimpleNamespace(
            status=found.status_code, headers=found.headers, content_length=int(length[:18]) if length else None,
            content=SimpleNamespace(iter_any=found.stream.__aiter__), close=lambda: None,
        )


def _connect(link: Link, real: Any = Link._connect) -> Any:
    return link._tls if isinstance(link._tls, answered) else real(link)


Link._connect = _connect  # type: ignore[method-assign]
