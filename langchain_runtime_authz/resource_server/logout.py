"""Receive a provider's logouts (OpenID Connect Back-Channel Logout 1.0)."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from langchain_runtime_authz.credential.token import LEEWAY
from langchain_runtime_authz.errors import AuthzError, Code
from langchain_runtime_authz.identity.oidc import LoggedOut, OidcVerifier
from langchain_runtime_authz.resource_server.asgi import FormEndpoint, form_field

if TYPE_CHECKING:
    from starlette.types import Receive

_log: Final = logging.getLogger(__name__)


class BackchannelLogout(FormEndpoint):
    """The ASGI endpoint to which a provider posts logout tokens (§2.5).

    Each token is accepted once (§2.6), but each process remembers only the tokens that it accepted itself. If several
    processes serve the endpoint, let `ended` look for `LoggedOut.token_id` in a store that they share.

    Args:
        verifier: verifies logout tokens; its `client_id` is their audience.
        ended: called with each logout; it may be asynchronous. If it raises, the provider is asked to try again.
    """

    def __init__(self, verifier: OidcVerifier, ended: Callable[[LoggedOut], Awaitable[None] | None]) -> None:
        self._verifier, self._ended = verifier, ended
        self._busy: set[str] = set()  # ids of tokens in processing
        self._accepted: dict[str, float] = {}  # expiry of each accepted token, by its id

    async def _answer(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, dict[str, str]]:
        token = await form_field(headers, receive, "logout_token")
        if token is None:
            return 400, {"error": "invalid_request"}
        try:
            out = await self._verifier.alogged_out(token)
        except AuthzError as exc:
            _log.info("refused a logout: %s", exc)
            later = exc.code == Code.IDENTITY_UNAVAILABLE
            return (503, {"error": "temporarily_unavailable"}) if later else (400, {"error": "invalid_request"})
        self._accepted = {token_id: until for token_id, until in self._accepted.items() if until > time.time()}
        if out.token_id in self._accepted:
            _log.info("refused a logout: its token was accepted before")
            return 400, {"error": "invalid_request"}
        if out.token_id in self._busy:  # the first delivery is in progress, and may fail
            return 503, {"error": "temporarily_unavailable"}
        self._busy.add(out.token_id)
        try:
            ending = self._ended(out)
            if inspect.isawaitable(ending):
                await ending
        except Exception as exc:  # noqa: BLE001  (the application's own code; the provider may send the token again)
            _log.error("a logout was not carried out: %s", type(exc).__name__)
            return 503, {"error": "temporarily_unavailable"}
        finally:
            self._busy.remove(out.token_id)
        self._accepted[out.token_id] = out.expires_at + LEEWAY
        return 200, {}
