"""Tell clients where to get a token: protected resource metadata (RFC 9728)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from langchain_runtime_authz._url import checked_url
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.resource_server.asgi import send_json

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"  # §3
# RFC 6749 §3.3; the characters are safe inside a quoted string too
_SCOPE: Final = frozenset(map(chr, range(0x21, 0x7F))) - {'"', "\\"}


class ResourceMetadata:
    """The metadata of one service, and an ASGI application that serves it.

    Args:
        resource: URL of the service: its audience at the authorization servers.
        authorization_servers: issuers whose tokens the service accepts.
        scopes: all scopes that the service uses.
    """

    def __init__(
        self,
        resource: str,
        *,
        authorization_servers: Iterable[str],
        scopes: Iterable[str] = (),
    ) -> None:
        parts = urlsplit(checked_url(resource, "resource"))
        servers = [checked_url(server, "authorization_servers") for server in authorization_servers]
        if not servers or parts.query or not set(resource) <= _SCOPE:
            raise ConfigError("the metadata need a `resource` without a query, and its `authorization_servers`")
        self.scopes = checked_scopes(scopes)
        self.path = WELL_KNOWN + parts.path.rstrip("/")  # §3.1
        self.url = f"{parts.scheme}://{parts.netloc}{self.path}"
        self.document: dict[str, Any] = {
            "resource": resource,
            "authorization_servers": servers,
            "bearer_methods_supported": ["header"],
            **({"scopes_supported": list(self.scopes)} if self.scopes else {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] in ("GET", "HEAD"):
            await send_json(send, 200, self.document, [("cache-control", "max-age=3600")])
        else:
            await send_json(send, 405, {"error": "invalid_request"}, [("allow", "GET")])


def checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes, each once, or raise `ConfigError` (RFC 6749 §3.3)."""
    found = tuple(dict.fromkeys(scopes))
    if not all(isinstance(scope, str) and scope and set(scope) <= _SCOPE for scope in found):
        raise ConfigError("a scope is a text without blanks and quotation marks")
    return found
