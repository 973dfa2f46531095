"""A service that accepts our tokens (FastAPI, Starlette, any ASGI). Extra: `fastapi`.

```python
server = ResourceServer(
    verifier=Verifier(issuer="https://issuer.example", jwks=JwksClient("https://issuer.example/jwks")),
    audience="https://bank.example",
    tenant="acme",
    status=Introspection("https://issuer.example/introspect", client_id="bank", client_secret=secret),
    proofs=ProofVerifier(origin="https://bank.example"),
)


@app.post("/payments")
async def pay(credential: Annotated[Credential, Depends(server)]) -> ...:
    log.info("%s for %s, epoch %d", credential.actors, credential.subject, credential.epoch)
```

`ProtectedApp(app, server)` does the same in front of a whole ASGI application, an MCP server for one
(`downstream.mcp.ProtectedMcp` knows more of that). Refusals are RFC 6750 §3 and RFC 9449 §7.1
answers; their `error_description` is the stable code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from langchain_runtime_authz.credential.dpop import normal_target
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.resource_server._asgi import App, Receive, Scope, Send
from langchain_runtime_authz.resource_server.dpop import ProofVerifier
from langchain_runtime_authz.resource_server.status import Status

__all__ = ["ProtectedApp", "Refusal", "ResourceServer", "refuse"]

_log: Final = logging.getLogger(__name__)

BAD_REQUEST: Final = "invalid_request"
_UNAVAILABLE: Final = frozenset({Code.KEYS_UNAVAILABLE, Code.STATUS_UNAVAILABLE})
_PROOF: Final = frozenset({Code.PROOF_INVALID, Code.PROOF_REPLAYED})


class Refusal(NamedTuple):
    """An answer to send: the HTTP status, its headers, the stable code."""

    status: int
    headers: tuple[tuple[str, str], ...]
    code: str


class ResourceServer:
    """Who may use this service. A FastAPI dependency: `Depends(server)`.

    Args:
        verifier: believes the issuer's tokens; signature and times are its business.
        audience: the name of this service in its callers' profiles, exactly.
        tenant: whose data this service holds; `None` where it holds several tenants' and looks at
            `credential.tenant` itself.
        status: who is asked whether a token still lives: `LedgerStatus`, `Introspection`, `Offline`.
        proofs: believes DPoP proofs. Without it, tokens that are bound to a key are refused.
        require_proof: refuse tokens that are not bound to a key.
        tools: only tokens minted for calls of these tools.
        realm: of the challenge.
        public_url: where clients find what this process serves as `/`, for a service behind a proxy that takes
            a prefix off the path: `https://bank.example/api`. Proofs are held against it and the path as it
            arrives. Nothing of this is ever read from a header (`Host`, `Forwarded`, `X-Forwarded-*`): whoever
            sends the request may choose those. A prefix that a router takes off
            (`Mount`), or that the server itself puts back (`uvicorn --root-path`), is in the path and does not belong here.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        audience: str,
        tenant: str | None,
        status: Status,
        proofs: ProofVerifier | None = None,
        require_proof: bool = False,
        tools: Iterable[str] | None = None,
        realm: str = "api",
        public_url: str | None = None,
    ) -> None:
        if not audience or not isinstance(status, Status):
            msg = "a resource server needs its `audience`, and a `status`: LedgerStatus, Introspection or Offline"
            raise ConfigError(msg)
        if require_proof and proofs is None:
            msg = "`require_proof` needs `proofs`"
            raise ConfigError(msg)
        if not realm.isascii() or not realm.isprintable() or '"' in realm or "\\" in realm:
            msg = "`realm` must be plain text"
            raise ConfigError(msg)
        self.audience = audience
        self._public_url, self._prefix = public_url, _prefix(public_url, proofs)
        self._verifier, self._tenant, self._status = verifier, tenant, status
        self._proofs, self._require_proof, self._realm = proofs, require_proof, realm
        self._tools = None if tools is None else frozenset(tools)

    def for_tools(self, *tools: str) -> ResourceServer:
        """The same, for tokens that were minted for calls of these tools only: `Depends(server.for_tools("pay"))`."""
        return ResourceServer(
            verifier=self._verifier,
            audience=self.audience,
            tenant=self._tenant,
            status=self._status,
            proofs=self._proofs,
            require_proof=self._require_proof,
            tools=tools,
            realm=self._realm,
            public_url=self._public_url,
        )

    async def authenticate(self, *, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Credential:
        """The credential of one request.

        Args:
            method: of the request.
            path: its path as it arrives, percent-encoded, without the query.
            headers: all of them, names in lower case.

        Raises:
            CredentialError: with the code that `refusal` turns into an answer.
        """
        pairs = tuple(headers)
        given = [value for name, value in pairs if name == "authorization"]
        shown = [value for name, value in pairs if name == "dpop"]
        if not given:
            raise CredentialError(Code.CREDENTIAL_MISSING)
        scheme, _, token = given[0].partition(" ")
        scheme, token = scheme.lower(), token.strip(" ")
        if len(given) > 1 or len(shown) > 1 or not token or scheme not in ("bearer", "dpop"):
            raise CredentialError(BAD_REQUEST)
        credential = await self._verifier.averify(token, audience=self.audience, tenant=self._tenant)
        self._check_proof(credential, scheme, shown, method, path)
        await self._check_alive(credential)
        if self._tools is not None and self._tools.isdisjoint(credential.tools):
            raise CredentialError(Code.CREDENTIAL_TOOL)
        return credential

    def _check_proof(self, credential: Credential, scheme: str, shown: list[str], method: str, path: str) -> None:
        jkt = credential.jkt
        if jkt is None:
            # A token that nobody has to prove is not made better by a proof (RFC 9449 §7.1).
            if self._require_proof or scheme == "dpop":
                raise CredentialError(Code.PROOF_MISSING, "the token is bound to no key")
            return
        if scheme != "dpop" or not shown or self._proofs is None:
            raise CredentialError(Code.PROOF_MISSING)
        sent = self._prefix + path if path.startswith("/") else path  # what is no path becomes none by a prefix
        self._proofs.verify(shown[0], method=method, path=sent, token=credential.token, jkt=jkt)

    async def _check_alive(self, credential: Credential) -> None:
        try:
            answer = await self._status.status(credential)
        except CredentialError:
            raise
        except Exception as exc:  # whoever is asked may fail in any way; what is not known to live is dead
            raise CredentialError(Code.STATUS_UNAVAILABLE, type(exc).__name__) from exc
        if answer != "live":
            raise CredentialError(Code.CREDENTIAL_REVOKED)

    def refusal(self, code: str) -> Refusal:
        """What to answer for a code of `authenticate` (RFC 6750 §3, RFC 9449 §7.1, §9)."""
        nonce = self._proofs.nonce() if self._proofs is not None else None
        extra = (("Cache-Control", "no-store"), *((("DPoP-Nonce", nonce),) if nonce is not None else ()))
        if code in _UNAVAILABLE:
            return Refusal(503, (*extra, ("Retry-After", "1")), code)
        if code == Code.PROOF_LIMIT:
            return Refusal(429, (*extra, ("Retry-After", "1")), code)  # RFC 6585 §4
        if code == Code.CREDENTIAL_MISSING:
            status, error = 401, None
        elif code == BAD_REQUEST:
            status, error = 400, BAD_REQUEST
        elif code == Code.CREDENTIAL_TOOL:
            status, error = 403, "insufficient_scope"
        elif code == Code.PROOF_NONCE:
            status, error = 401, "use_dpop_nonce"
        elif code in _PROOF:
            status, error = 401, "invalid_dpop_proof"
        else:
            status, error = 401, "invalid_token"
        return Refusal(status, (*extra, *(("WWW-Authenticate", c) for c in self._challenges(error, code))), code)

    def _challenges(self, error: str | None, code: str) -> list[str]:
        said = f'realm="{self._realm}"'
        if error is not None:
            said += f', error="{error}", error_description="{code}"'
        challenges = []
        if self._proofs is not None:
            challenges.append(f'DPoP {said}, algs="{" ".join(self._proofs.algorithms)}"')
        if not self._require_proof and error not in ("use_dpop_nonce", "invalid_dpop_proof"):
            challenges.append(f"Bearer {said}")
        return challenges

    async def of(self, connection: HTTPConnection) -> Credential:
        """The credential of a Starlette request. Raises `CredentialError`."""
        scope = connection.scope
        raw = scope.get("raw_path")
        path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
        method = scope.get("method", "GET")
        return await self.authenticate(method=method, path=path, headers=_headers(scope))

    async def __call__(self, request: Request, response: Response) -> Credential:
        """FastAPI's road: the credential, or an `HTTPException` with the answer."""
        try:
            credential = await self.of(request)
        except CredentialError as exc:
            refused = self.refusal(exc.code)
            _log.info("refused: %s", exc.code)
            # FastAPI's own handler takes a mapping: the challenges go into one header (RFC 9110 §11.6.1).
            headers: dict[str, str] = {}
            for name, value in refused.headers:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            raise HTTPException(refused.status, refused.code, headers) from None
        if self._proofs is not None and (nonce := self._proofs.nonce()) is not None:
            response.headers["DPoP-Nonce"] = nonce
        return credential

    def nonce(self) -> str | None:
        """What to send as `DPoP-Nonce`, where proofs need one."""
        return None if self._proofs is None else self._proofs.nonce()


class ProtectedApp:
    """An ASGI application of which no request is served without a credential.

    The application finds it as `request.state.credential`.

    Args:
        app: what is protected.
        server: who may use it.
    """

    def __init__(self, app: App, server: ResourceServer) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            credential = await self._server.of(HTTPConnection(scope))
        except CredentialError as exc:
            _log.info("refused: %s", exc.code)
            await refuse(self._server.refusal(exc.code), scope, send)
            return
        scope.setdefault("state", {})["credential"] = credential
        await self._app(scope, receive, self._with_nonce(send))

    def _with_nonce(self, send: Send) -> Send:
        nonce = self._server.nonce()
        if nonce is None:
            return send
        header = (b"dpop-nonce", nonce.encode())

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return sending


def _prefix(public_url: str | None, proofs: ProofVerifier | None) -> str:
    """What stood before the path when the client sent it."""
    if public_url is None:
        return ""
    target = normal_target(public_url)
    plain = target is not None and not any(mark in public_url for mark in "?#")
    if proofs is None or not plain or not f"{target}/".startswith(f"{proofs.origin}/"):
        msg = "`public_url` is an absolute URL without a query, under the `origin` of `proofs`"
        raise ConfigError(msg)
    return str(target).removeprefix(proofs.origin).rstrip("/")


def _headers(scope: Scope) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


async def refuse(refused: Refusal, scope: Scope, send: Send) -> None:
    """Send a refusal over ASGI."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.code})
        return
    body = json.dumps({"error": refused.code}).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
