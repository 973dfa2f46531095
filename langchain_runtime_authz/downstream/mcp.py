"""MCP, both ends: the client's interceptor for `langchain-mcp-adapters` (extra `mcp`), and a server's guard.

Client, bearer tokens:

```python
client = MultiServerMCPClient(
    {"bank": {"transport": "http", "url": "https://bank.example/mcp"}},
    tool_interceptors=[CredentialInterceptor({"bank": "https://bank.example/mcp"})],
)
```

Client, tokens that are bound to a key: every HTTP request needs a proof of its own, so that the
connection itself is given `"auth": CallAuth(dpop=True, outside="anonymous")`, and no interceptor.

The interceptor's header is the connection's own, which follows redirects within one origin with it. Where the
server shares its origin with others, give the connection `CallAuth` too: its credential follows none.

Each tool's profile names the server's URL as its audience. With a `session` that is kept open across
calls the adapters send no headers: let them open one for each call, as they do by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from langchain_runtime_authz.credential.lease import acurrent_credential
from langchain_runtime_authz.credential.token import parse_object
from langchain_runtime_authz.downstream._asgi import App, Receive, Scope, Send, read_body
from langchain_runtime_authz.downstream.resource_server import (
    BAD_REQUEST,
    ProtectedApp,
    ResourceServer,
    refuse,
)
from langchain_runtime_authz.errors import ConfigError

if TYPE_CHECKING:
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest, MCPToolCallResult

__all__ = ["OPEN", "CredentialInterceptor", "ProtectedMcp"]

# What a client sends before, and beside, a call of a tool; none of it reaches a tool.
OPEN: Final = frozenset({"initialize", "notifications/initialized", "ping", "tools/list"})
MAX_BODY: Final = 4 * 1024 * 1024


class CredentialInterceptor:
    """Sends the credential of the call under way with an MCP tool call, as a bearer token.

    Args:
        audiences: server name → audience, which is the server's URL in the tools' profiles.
    """

    def __init__(self, audiences: Mapping[str, str]) -> None:
        self._audiences = dict(audiences)

    async def __call__(
        self,
        request: MCPToolCallRequest,
        handler: Callable[[MCPToolCallRequest], Awaitable[MCPToolCallResult]],
    ) -> MCPToolCallResult:
        """See `langchain_mcp_adapters.interceptors.ToolCallInterceptor`.

        Raises:
            ConfigError: the server is not one of `audiences`.
            CredentialError: as `current_credential`.
        """
        audience = self._audiences.get(request.server_name)
        if audience is None:
            msg = f"no audience is named for the MCP server `{request.server_name}`"
            raise ConfigError(msg)
        credential = await acurrent_credential(audience)
        headers = {**(request.headers or {}), **credential.headers("POST", audience)}
        return await handler(request.override(headers=headers))


class ProtectedMcp(ProtectedApp):
    """An MCP server (streamable HTTP) whose tools are called with a credential only.

    A `tools/call` needs a token that was minted for a call of this very tool. `initialize`, `ping` and the
    listing of tools are open; whatever else needs a token.

    Args:
        app: the server's ASGI application (`FastMCP.streamable_http_app()`).
        server: who may use it.
        prefix: what the client puts before the tools' names (`tool_name_prefix` of the adapters).
        open_methods: JSON-RPC methods that need no token.
    """

    def __init__(
        self,
        app: App,
        server: ResourceServer,
        *,
        prefix: str = "",
        open_methods: Collection[str] = OPEN,
    ) -> None:
        super().__init__(app, server)
        self._open, self._prefix = frozenset(open_methods), prefix

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await super()._guarded(scope, receive, send)
            return
        body = await read_body(receive, MAX_BODY)
        message = _message(body)
        if body is None or message is None:
            await refuse(self._server.refusal(BAD_REQUEST), scope, send)
            return
        again = _again(body, receive)
        method = message.get("method")
        if isinstance(method, str) and method in self._open:
            await self._app(scope, again, self._with_nonce(send))
        elif method == "tools/call":
            await self._call(message, scope, again, send)
        else:
            await super()._guarded(scope, again, send)

    async def _call(self, message: Mapping[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        params = message.get("params")
        name = params.get("name") if isinstance(params, dict) else None
        if not isinstance(name, str):
            await refuse(self._server.refusal(BAD_REQUEST), scope, send)
            return
        # INVARIANT: the name that is checked is the one in the body that the application reads.
        narrowed = ProtectedApp(self._app, self._server.for_tools(self._prefix + name))
        await narrowed(scope, receive, send)


def _message(body: bytes | None) -> dict[str, Any] | None:
    # Strict, so that this and the application can not read two methods out of one body.
    try:
        return parse_object(body) if body is not None else None
    except ValueError:
        return None


def _again(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
