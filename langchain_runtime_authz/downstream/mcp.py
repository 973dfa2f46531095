"""Send a call's credential to an MCP server, with `langchain-mcp-adapters` (extra `mcp`).

Give the connection an `auth`, which asks the current call at each request (`CallAuth`, or `httpx2_auth` for clients of
httpx2). Or give it an interceptor. With it, a call that gets no token opens no connection:

```python
client = MultiServerMCPClient(
    {"bank": {"transport": "http", "url": "https://bank.example/mcp", "httpx_client_factory": credential_client}},
    tool_interceptors=[CredentialInterceptor({"bank": "https://bank.example/mcp"})],
)
```

MCP's clients follow redirects within one origin with all their headers. Neither way gives them a token to keep: it
goes to URLs under its audience, and a redirect to another URL is refused.

Each tool's profile names the server's URL as its audience. Let the adapters open a `session` for each call, as they do
by default: one that stays open belongs to the call that opened it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import httpx

from langchain_runtime_authz._url import checked_url
from langchain_runtime_authz.credential.current_call import current_call
from langchain_runtime_authz.downstream.httpx_auth import CallAuth, TicketAuth
from langchain_runtime_authz.errors import ConfigError

if TYPE_CHECKING:
    import httpx2
    from langchain_mcp_adapters.interceptors import MCPToolCallRequest, MCPToolCallResult

TIMEOUT: Final = httpx.Timeout(30, read=300)  # as in MCP's own client: a stream of answers may pause


class CredentialInterceptor:
    """Sends the credential of the current call with an MCP tool call, as a bearer token.

    The connection needs `credential_client` as its `httpx_client_factory`. With another, no request is sent.

    Args:
        audiences: server name → audience, which is the server's URL in the tools' profiles.

    Raises:
        ConfigError: an audience is neither an https URL nor on this machine.
    """

    def __init__(self, audiences: Mapping[str, str]) -> None:
        self._audiences = {name: checked_url(url, "audiences") for name, url in audiences.items()}

    async def __call__(
        self, request: MCPToolCallRequest, handler: Callable[[MCPToolCallRequest], Awaitable[MCPToolCallResult]]
    ) -> MCPToolCallResult:
        """See `langchain_mcp_adapters.interceptors.ToolCallInterceptor`.

        Raises:
            ConfigError: the server is not one of `audiences`, or its connection has another client.
            CredentialError: as `CurrentCall.credential`.
        """
        audience = self._audiences.get(request.server_name)
        if audience is None:
            raise ConfigError(f"no audience is named for the MCP server `{request.server_name}`")
        await current_call().acredential(audience)  # before anything is sent, and where an error is the caller's
        owed = _Owed(audience)
        try:
            return await handler(request.override(headers={**(request.headers or {}), "Authorization": owed}))
        except (TypeError, ExceptionGroup) as exc:
            if owed.redeemed:
                raise
            msg = f"the connection of `{request.server_name}` needs `httpx_client_factory`: `credential_client`"
            raise ConfigError(msg) from exc


class _Owed:
    """Stands for a token in the headers. Only `credential_client` accepts it."""

    __slots__ = ("audience", "redeemed")

    def __init__(self, audience: str) -> None:
        self.audience, self.redeemed = audience, False


def credential_client(
    headers: Mapping[str, Any] | None = None, timeout: httpx.Timeout | None = None, auth: httpx.Auth | None = None
) -> httpx.AsyncClient:
    """Return the HTTP client of a connection with a `CredentialInterceptor` (`httpx_client_factory`).

    Raises:
        ConfigError: the connection has both an `auth` and the interceptor's credential.
    """
    kept = {}
    for name, value in (headers or {}).items():
        if not isinstance(value, _Owed):
            kept[name] = value
            continue
        value.redeemed = True
        if auth is not None:
            raise ConfigError("an MCP connection has `auth` or the interceptor, not both")
        auth = CallAuth({value.audience: value.audience})
    return httpx.AsyncClient(headers=kept, timeout=timeout or TIMEOUT, auth=auth)


def httpx2_auth(auth: TicketAuth) -> httpx2.Auth:
    """Return the auth for clients of httpx2: of MCP SDK 2, FastMCP 4 and `langchain.mcp`."""
    import httpx2

    made = httpx2.Auth()
    made.sync_auth_flow, made.async_auth_flow = auth.sync_auth_flow, auth.async_auth_flow  # type: ignore[method-assign,assignment]
    return made
