"""Protect an MCP server (streamable HTTP): its tools are called with a credential only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.resource_server.dependency import BAD_REQUEST, ProtectedApp, ResourceServer, refuse
from langchain_runtime_authz.resource_server.introspection import read_body

__all__ = ["OPEN", "ProtectedMcp"]

# Clients send these besides tool calls; none of them reaches a tool.
OPEN: Final = frozenset({"initialize", "notifications/initialized", "ping", "tools/list"})
MAX_BODY: Final = 4 * 1024 * 1024


class ProtectedMcp(ProtectedApp):
    """An MCP server that serves a `tools/call` only with a token minted for a call of this very tool.

    `initialize`, `ping` and the listing of tools are open. Every other request needs a token.

    Args:
        app: the server's ASGI application (`FastMCP.streamable_http_app()`).
        server: the callers that may use it.
        prefix: the prefix that the client gives the tools' names (`tool_name_prefix` of the adapters).
        open_methods: JSON-RPC methods that need no token.
    """

    def __init__(
        self, app: ASGIApp, server: ResourceServer, *, prefix: str = "", open_methods: Collection[str] = OPEN
    ) -> None:
        super().__init__(app, server)
        self._open, self._prefix = frozenset(open_methods), prefix

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await super()._guarded(scope, receive, send)
            return
        body = await read_body(receive, MAX_BODY)
        try:  # strictly, so that this and the application cannot read two methods out of one body
            message = None if body is None else parse_object(body)
        except ValueError:
            message = None
        if body is None or message is None:
            await refuse(self._server.refusal(BAD_REQUEST), scope, send)
            return
        again, method, params = _again(body, receive), message.get("method"), message.get("params")
        if isinstance(method, str) and method in self._open:
            await self._app(scope, again, self._with_nonce(send))
            return
        if method != "tools/call":
            await super()._guarded(scope, again, send)
            return
        name = params.get("name") if isinstance(params, dict) else None
        if not isinstance(name, str):
            await refuse(self._server.refusal(BAD_REQUEST), scope, send)
            return
        # INVARIANT: the name that is checked is the one in the body that the application reads.
        narrowed = ProtectedApp(self._app, self._server.for_tools(self._prefix + name))
        await narrowed(scope, again, send)


def _again(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving
