"""Token introspection (RFC 7662): a service asks whether a token still lives. Both ends.

The endpoint is a plain ASGI application, to be mounted where the ledger is.

```python
app.mount("/introspect", IntrospectionEndpoint(
    verifier=Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks),
    status=LedgerStatus(authz.ledger),
    clients={"bank": IntrospectionClient(secret, audiences=("https://bank.example",))},
))
```
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote_plus, unquote_plus

import httpx

from langchain_runtime_authz._http import Fetcher, checked_url
from langchain_runtime_authz.credential.token import MAX_TOKEN, Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.resource_server._asgi import Receive, Scope, Send, read_body
from langchain_runtime_authz.resource_server.status import Status

__all__ = ["Introspection", "IntrospectionClient", "IntrospectionEndpoint"]

_log: Final = logging.getLogger(__name__)

OK: Final = 200
MIN_SECRET: Final = 16  # characters
MAX_BODY: Final = MAX_TOKEN + 4096


class Introspection:
    """Asks an introspection endpoint (§2.1). A `Status` for a `ResourceServer`.

    No answer in time, another answer than RFC 7662's, or one about another token: `status_unavailable`.

    Args:
        url: https, or of this machine.
        client_id: this service's name at the endpoint (RFC 6749 §2.3.1).
        client_secret: its secret.
        timeout: seconds.
        async_client: brought by the application; it belongs to one event loop.

    Raises:
        ConfigError: an argument is wrong.
    """

    window: Final = 0

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        client_secret: str,
        timeout: float = 2.0,
        async_client: httpx.AsyncClient | None = None,
    ) -> None:
        if not client_id or not client_secret:
            msg = "introspection needs `client_id` and `client_secret`"
            raise ConfigError(msg)
        self._url = checked_url(url, "url")
        self._headers = {"Authorization": basic(client_id, client_secret), "Accept": "application/json"}
        self._fetcher = Fetcher(timeout=timeout, async_client=async_client)

    async def status(self, credential: Credential) -> str:
        """See `Status.status`."""
        form = {"token": credential.token, "token_type_hint": "access_token"}
        answer = await self._fetcher.asend("POST", self._url, headers=self._headers, data=form)
        body = answer.body if answer is not None and answer.status == OK else None
        if body is None or not isinstance(body.get("active"), bool):
            raise CredentialError(Code.STATUS_UNAVAILABLE, "introspection")
        if body["active"] is not True:
            return "ended"
        if body.get("jti") != credential.jti:
            raise CredentialError(Code.STATUS_UNAVAILABLE, "introspection answered for another token")
        return "live"

    def __repr__(self) -> str:
        return f"<Introspection {self._url}>"

    def __reduce__(self) -> NoReturn:
        msg = "an Introspection can not be copied or pickled"
        raise TypeError(msg)


class IntrospectionClient:
    """A service that may ask, about tokens for its own audiences only.

    Args:
        secret: 16 characters or more; only its digest is kept.
        audiences: names of the service.
        tenant: whose tokens it may ask about; `None` for every tenant's.

    Raises:
        ConfigError: an argument is wrong.
    """

    __slots__ = ("_digest", "audiences", "tenant")

    def __init__(self, secret: str, *, audiences: tuple[str, ...], tenant: str | None = None) -> None:
        if len(secret) < MIN_SECRET or isinstance(audiences, str) or not audiences:
            msg = f"a client has a secret of {MIN_SECRET} characters or more, and a tuple of audiences"
            raise ConfigError(msg)
        self._digest = hashlib.sha256(secret.encode()).digest()
        self.audiences, self.tenant = frozenset(audiences), tenant

    def is_secret(self, secret: str) -> bool:
        """Whether that is its secret, in constant time."""
        return hmac.compare_digest(self._digest, hashlib.sha256(secret.encode()).digest())

    def __repr__(self) -> str:
        return f"<IntrospectionClient {sorted(self.audiences)}>"


class IntrospectionEndpoint:
    """The endpoint, an ASGI application (§2).

    A token that does not live, is not one of ours, or is for somebody else's audience is
    `{"active": false}` and nothing more (§2.2, §4).

    Args:
        verifier: believes the issuer's tokens.
        status: who knows whether they live.
        clients: who may ask.
    """

    def __init__(self, *, verifier: Verifier, status: Status, clients: Mapping[str, IntrospectionClient]) -> None:
        self._verifier, self._status, self._clients = verifier, status, dict(clients)

    async def introspect(self, token: str, client: IntrospectionClient) -> dict[str, Any]:
        """The answer to `client` about `token`. Raises `CredentialError` where nobody can tell."""
        try:
            credential = await self._verifier.averify(token, audience=client.audiences, tenant=client.tenant)
            alive = await self._status.status(credential) == "live"
        except CredentialError as exc:
            if exc.code in (Code.KEYS_UNAVAILABLE, Code.STATUS_UNAVAILABLE):
                raise
            return {"active": False}
        if not alive:
            return {"active": False}
        return {**_plain(credential.claims), "active": True, "token_type": "DPoP" if credential.jkt else "Bearer"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":
            await _answer(send, 405, {"error": "invalid_request"}, (b"allow", b"POST"))
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        client = self._client([value for name, value in headers if name == b"authorization"])
        if client is None:
            await _answer(send, 401, {"error": "invalid_client"}, (b"www-authenticate", b'Basic realm="introspection"'))
            return
        token = await _token(headers, receive)
        if token is None:
            await _answer(send, 400, {"error": "invalid_request"})
            return
        try:
            await _answer(send, OK, await self.introspect(token, client))
        except Exception as exc:  # noqa: BLE001  (the endpoint stays up, and says that it can not tell)
            _log.error("introspection failed: %s", type(exc).__name__)
            await _answer(send, 503, {"error": "temporarily_unavailable"}, (b"retry-after", b"1"))

    def _client(self, given: list[bytes]) -> IntrospectionClient | None:
        scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"basic":
            return None
        try:
            name, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        client = self._clients.get(unquote_plus(name))
        return client if client is not None and client.is_secret(unquote_plus(secret)) else None


def basic(name: str, secret: str) -> str:
    """`Authorization` of a client (RFC 6749 §2.3.1)."""
    return "Basic " + base64.b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()


async def _token(headers: list[tuple[bytes, bytes]], receive: Receive) -> str | None:
    """The one `token` of the form; `None` where there is none, or two, or another body."""
    kinds = [value.partition(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
    if kinds != [b"application/x-www-form-urlencoded"]:
        return None
    body = await read_body(receive, MAX_BODY)
    if body is None:
        return None
    try:
        form = parse_qsl(body.decode(), max_num_fields=16)
    except ValueError:
        return None
    tokens = [value for name, value in form if name == "token"]
    return tokens[0] if len(tokens) == 1 else None


async def _answer(send: Send, status: int, body: Mapping[str, Any], *extra: tuple[bytes, bytes]) -> None:
    data = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
