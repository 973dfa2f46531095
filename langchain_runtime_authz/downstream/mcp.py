"""MCP, both ends: the client's interceptor for `langchain-mcp-adapters` (extra `mcp`), and a server's guard.

Client: the connection is given the auth, which asks the call under way at each request.

```python
client = MultiServerMCPClient(
    {"bank": {"transport": "http", "url": "https://bank.example/mcp", "auth": CallAuth(dpop=True, outside="anonymous")}},
)
```

Or an interceptor, with which a call that gets no token opens no connection:

```python
client = MultiServerMCPClient(
    {"bank": {"transport": "http", "url": "https://bank.example/mcp", "httpx_client_factory": credential_client}},
    tool_interceptors=[CredentialInterceptor({"bank": "https://bank.example/mcp"})],
)
```

MCP's clients follow redirects within one origin with every header that they were given. Neither road gives
them one: a token goes to what lies under its audience, and a redirect that leads elsewhere is refused.

Each tool's profile names the server's URL as its audience. A `session` that is kept open belongs to the call that opened
it: let the adapters open one for each call, as they do by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import httpx

from langchain_runtime_authz._http import checked_url
from langchain_runtime_authz.credential.ticket import acurrent_credential
from langchain_runtime_authz.credential.token import parse_object
from langchain_runtime_authz.downstream.httpx_auth import CallAuth
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.resource_server._asgi import App, Receive, Scope, Send, read_body
from langchain_runtime_authz.resource_server.dependency import (
    BAD_REQUEST,
    ProtectedApp,
    ResourceServer,
    refuse,
)

if TYPE_CHECKING:
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest, MCPToolCallResult

__all__ = ["OPEN", "CredentialInterceptor", "ProtectedMcp", "credential_client"]

# What a client sends before, and beside, a call of a tool; none of it reaches a tool.
OPEN: Final = frozenset({"initialize", "notifications/initialized", "ping", "tools/list"})
MAX_BODY: Final = 4 * 1024 * 1024
TIMEOUT: Final = httpx.Timeout(30, read=300)  # as MCP's own client has it: a stream of answers may pause


class CredentialInterceptor:
    """Sends the credential of the call under way with an MCP tool call, as a bearer token.

    The connection needs `credential_client` as its `httpx_client_factory`: with another no request is sent.

    Args:
        audiences: server name → audience, which is the server's URL in the tools' profiles.

    Raises:
        ConfigError: an audience is no https URL, nor one of this machine.
    """

    def __init__(self, audiences: Mapping[str, str]) -> None:
        for audience in audiences.values():
            checked_url(audience, "audiences")
        self._audiences = dict(audiences)

    async def __call__(
        self,
        request: MCPToolCallRequest,
        handler: Callable[[MCPToolCallRequest], Awaitable[MCPToolCallResult]],
    ) -> MCPToolCallResult:
        """See `langchain_mcp_adapters.interceptors.ToolCallInterceptor`.

        Raises:
            ConfigError: the server is not one of `audiences`, or its connection has another client.
            CredentialError: as `current_credential`.
        """
        audience = self._audiences.get(request.server_name)
        if audience is None:
            msg = f"no audience is named for the MCP server `{request.server_name}`"
            raise ConfigError(msg)
        await acurrent_credential(audience)  # before anything is sent, and where an error is the caller's
        owed = _Owed(audience)
        try:
            return await handler(request.override(headers={**(request.headers or {}), "Authorization": owed}))
        except (TypeError, ExceptionGroup) as exc:
            if owed.redeemed:
                raise
            msg = f"the connection of `{request.server_name}` needs `httpx_client_factory`: `credential_client`"
            raise ConfigError(msg) from exc


class _Owed:
    """Stands for a token in the headers: no client takes it for one but `credential_client`."""

    __slots__ = ("audience", "redeemed")

    def __init__(self, audience: str) -> None:
        self.audience, self.redeemed = audience, False


def credential_client(
    headers: Mapping[str, Any] | None = None,
    timeout: httpx.Timeout | None = None,
    auth: httpx.Auth | None = None,
) -> httpx.AsyncClient:
    """The HTTP client for connections of `CredentialInterceptor`: their `httpx_client_factory`.

    Raises:
        ConfigError: the connection has an `auth` beside the interceptor's credential.
    """
    kept = {name: value for name, value in (headers or {}).items() if not isinstance(value, _Owed)}
    for owed in (value for value in (headers or {}).values() if isinstance(value, _Owed)):
        owed.redeemed = True
        if auth is not None:
            msg = "an MCP connection has `auth` or the interceptor, not both"
            raise ConfigError(msg)
        auth = CallAuth({owed.audience: owed.audience})
    return httpx.AsyncClient(headers=kept, timeout=timeout or TIMEOUT, auth=auth)


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
