"""Introspection of tokens (RFC 7662): client and endpoint.

The endpoint is a plain ASGI application. Mount it next to the ledger.

```python
app.mount("/introspect", IntrospectionEndpoint(
    verifier=Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks),
    status=LedgerStatus(authz.ledger, KillSwitch.from_environment()),
    clients={"bank": IntrospectionClient(secret, audiences=("https://bank.example",))},
))
```
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import unquote_plus

from langchain_runtime_authz._http import Connection, Fetcher, basic_auth
from langchain_runtime_authz.credential.signer import Secret
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.resource_server.asgi import FormEndpoint, form_field
from langchain_runtime_authz.resource_server.status import Status

if TYPE_CHECKING:  # works without Starlette
    from starlette.types import Receive

_log: Final = logging.getLogger(__name__)

OK: Final = 200
MIN_SECRET: Final = 16  # characters


class Introspection(Secret):
    """Asks an introspection endpoint (§2.1). A `Status` for a `ResourceServer`.

    A late answer, one that violates RFC 7662, or one about another token raises `status_unavailable`.

    Args:
        url: the endpoint: https, or a server on this machine.
        client_id: this service's name at the endpoint (RFC 6749 §2.3.1).
        client_secret: this service's secret at the endpoint.
        connection: `timeout` (2.0), `ca_file`, `client_cert`, `tls`, `proxy`: see `_http.Connection`.
    """

    def __init__(self, url: str, *, client_id: str, client_secret: str, **connection: Unpack[Connection]) -> None:
        if not client_id or not client_secret:
            raise ConfigError("introspection needs `client_id` and `client_secret`")
        self._headers = {"Authorization": basic_auth(client_id, client_secret)}
        self._fetcher = Fetcher(url, **connection)

    async def status(self, credential: Credential) -> str:
        return await self.ask(credential.token, credential.jti)

    async def ask(self, token: str, token_id: str | None) -> str:
        """Return `live` or `ended` for a token and its `jti`. Raises `status_unavailable`."""
        form = {"token": token, "token_type_hint": "access_token"}
        answer = await self._fetcher.asend("POST", self._headers, form)
        body = answer.body if answer is not None and answer.status == OK else None
        if body is None or not isinstance(body.get("active"), bool):
            raise CredentialError(Code.STATUS_UNAVAILABLE, "introspection")
        if body["active"] is not True:
            return "ended"
        if body.get("jti") != token_id:
            raise CredentialError(Code.STATUS_UNAVAILABLE, "introspection answered for another token")
        return "live"


class IntrospectionClient:
    """A service that may ask about tokens for its own audiences.

    Args:
        secret: 16 characters or more; only its digest is kept.
        audiences: the service's names, as in `aud` of its tokens.
        tenant: the tenant whose tokens the service may ask about; `None` for all tenants.
    """

    __slots__ = ("audiences", "digest", "tenant")

    def __init__(self, secret: str, *, audiences: tuple[str, ...], tenant: str | None = None) -> None:
        if len(secret) < MIN_SECRET or isinstance(audiences, str) or not audiences:
            raise ConfigError(f"a client has a secret of {MIN_SECRET} characters or more, and a tuple of audiences")
        self.digest = hashlib.sha256(secret.encode()).digest()
        self.audiences, self.tenant = frozenset(audiences), tenant


class IntrospectionEndpoint(FormEndpoint):
    """The introspection endpoint (§2), an ASGI application.

    The answer is only `{"active": false}` for a token that is not live, not the issuer's or not for the client (§2.2).

    Args:
        verifier: verifies the issuer's tokens.
        status: tells if a token is live.
        clients: the services that may ask, by name.
    """

    def __init__(self, *, verifier: Verifier, status: Status, clients: Mapping[str, IntrospectionClient]) -> None:
        self._verifier, self._status, self._clients = verifier, status, dict(clients)

    async def introspect(self, token: str, client: IntrospectionClient) -> dict[str, Any]:
        """Answer `client` about `token`. Raises `keys_unavailable`, `status_unavailable`."""
        try:
            asked: dict[str, Any] = {"audience": client.audiences, "tenant": client.tenant, "bound": True}
            credential = await self._verifier.averify(token, **asked)
            live = await self._status.status(credential) == "live"
        except CredentialError as exc:
            if exc.code in (Code.KEYS_UNAVAILABLE, Code.STATUS_UNAVAILABLE):
                raise
            live = False
        if not live:
            return {"active": False}
        return {**credential.claims, "active": True, "token_type": "DPoP" if credential.jkt else "Bearer"}

    async def _answer(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[Any, ...]:
        client = self._client([value for name, value in headers if name == b"authorization"])
        if client is None:
            return 401, {"error": "invalid_client"}, ("www-authenticate", 'Basic realm="introspection"')
        token = await form_field(headers, receive, "token")
        if token is None:
            return 400, {"error": "invalid_request"}
        try:
            return 200, await self.introspect(token, client)
        except Exception as exc:  # noqa: BLE001  (the client is told that the status is unknown)
            _log.error("introspection failed: %s", type(exc).__name__)
            return 503, {"error": "temporarily_unavailable"}, ("retry-after", "1")

    def _client(self, given: list[bytes]) -> IntrospectionClient | None:
        scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"basic":
            return None
        try:
            name, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except ValueError:  # `binascii.Error` is one
            return None
        client, shown = self._clients.get(unquote_plus(name)), hashlib.sha256(unquote_plus(secret).encode()).digest()
        return client if client is not None and hmac.compare_digest(client.digest, shown) else None
