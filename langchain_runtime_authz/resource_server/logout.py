"""Hear of logouts at the identity provider: OpenID Connect Back-Channel Logout 1.0.

```python
async def ended(out: LoggedOut) -> None:
    for thread in threads_of(out.session, out.subject):
        await authz.arevoke(thread)


app.add_route("/backchannel-logout", BackchannelLogout(OidcVerifier(issuer, provider="keycloak", client_id="agent"), ended))
```
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from langchain_runtime_authz.errors import AuthzError, Code
from langchain_runtime_authz.identity.oidc import LoggedOut, OidcVerifier
from langchain_runtime_authz.resource_server.introspection import form_field, send_json

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["BackchannelLogout"]

_log: Final = logging.getLogger(__name__)
_FRESH: Final = [("cache-control", "no-store")]


class BackchannelLogout:
    """The endpoint to which a provider posts logout tokens (§2.5), an ASGI application.

    Args:
        verifier: with the `client_id` for which logout tokens are made.
        ended: is told of each logout; it may be asynchronous. If it raises, the provider is told to try again.
    """

    def __init__(self, verifier: OidcVerifier, ended: Callable[[LoggedOut], Awaitable[None] | None]) -> None:
        self._verifier, self._ended = verifier, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an ASGI request."""
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":
            await send_json(send, 405, {"error": "invalid_request"}, [("allow", "POST")])
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        token = await form_field(headers, receive, "logout_token")
        status, body = await self._answer(token)
        await send_json(send, status, body, _FRESH)

    async def _answer(self, token: str | None) -> tuple[int, dict[str, str]]:
        if token is None:
            return 400, {"error": "invalid_request"}
        try:
            out = await self._verifier.alogged_out(token)
        except AuthzError as exc:
            _log.info("refused a logout: %s", exc)
            later = exc.code == Code.IDENTITY_UNAVAILABLE
            return (503, {"error": "temporarily_unavailable"}) if later else (400, {"error": "invalid_request"})
        try:
            told = self._ended(out)
            if inspect.isawaitable(told):
                await told
        except Exception as exc:  # noqa: BLE001  (the application's own code)
            _log.error("a logout was not carried out: %s", type(exc).__name__)
            return 503, {"error": "temporarily_unavailable"}
        return 200, {}
