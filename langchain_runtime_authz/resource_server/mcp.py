"""Protect an MCP server (streamable HTTP): its tools are called with a credential only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_runtime_authz.credential.details import check_whole_call
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.digest import parse_object
from langchain_runtime_authz.resource_server.dependency import BAD_REQUEST, ProtectedApp, ResourceServer, refuse
from langchain_runtime_authz.resource_server.introspection import read_body

__all__ = ["OPEN", "ProtectedMcp"]

# Clients send these besides tool calls; none of them reaches a tool.
OPEN: Final = frozenset({"initialize", "notifications/initialized", "ping", "tools/list"})
MAX_BODY: Final = 4 * 1024 * 1024


class ProtectedMcp(ProtectedApp):
    """An MCP server that serves a `tools/call` only with a token minted for this call.

    The token's tool and arguments must be those of the request (`credential.details.check_whole_call`). `initialize`, `ping` and the listing
    of tools are open. Every other request needs a token.

    Args:
        app: the server's ASGI application (`FastMCP.streamable_http_app()`).
        server: the callers that may use it.
        prefix: the prefix that the client gives the tools' names (`tool_name_prefix` of the adapters).
        open_methods: JSON-RPC methods that need no token.
        accept: standings of calls that are served, as in `credential.details.check_call`; `None` for each.
    """

    def __init__(
        self,
        app: ASGIApp,
        server: ResourceServer,
        *,
        prefix: str = "",
        open_methods: Collection[str] = OPEN,
        accept: Collection[str] | None = None,
    ) -> None:
        super().__init__(app, server)
        self._of_tools = server.for_tools
        self._open, self._prefix, self._accept = frozenset(open_methods), prefix, accept

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
        name, given = (params.get("name"), params.get("arguments")) if isinstance(params, dict) else (None, None)
        given = {} if given is None else given
        if not isinstance(name, str) or not isinstance(given, dict):
            await refuse(self._server.refusal(BAD_REQUEST), scope, send)
            return
        # INVARIANT: name and arguments that are checked are those in the body that the application reads.
        tool = self._prefix + name
        narrowed = self._of_tools(tool)

        async def of(connection: HTTPConnection) -> Credential:
            credential = await narrowed.of(connection)
            check_whole_call(credential, tool=tool, args=given, accept=self._accept)
            return credential

        await self._admit(scope, again, send, of)


def _again(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving
