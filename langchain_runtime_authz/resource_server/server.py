"""Check requests to a service: scheme, token, proof, liveness. Extra: `fastapi`.

`ProtectedApp(app, server)` protects a whole ASGI application. For MCP servers use `mcp.ProtectedMcp`. A refusal is an
HTTP answer by RFC 6750 §3 and RFC 9449 §7.1, with the stable code as `error_description`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langchain_runtime_authz._validate import wrong
from langchain_runtime_authz.credential.authorization_details import ORDERED, check_call
from langchain_runtime_authz.credential.signer import ALGORITHMS
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import AuthzError, Code, ConfigError, CredentialError
from langchain_runtime_authz.identity.oidc import Caller, OidcVerifier
from langchain_runtime_authz.resource_server.asgi import send_json
from langchain_runtime_authz.resource_server.dpop import ProofVerifier
from langchain_runtime_authz.resource_server.introspection import Introspection
from langchain_runtime_authz.resource_server.metadata import ResourceMetadata, checked_scopes
from langchain_runtime_authz.resource_server.status import Status

_log: Final = logging.getLogger(__name__)

BAD_REQUEST: Final = "invalid_request"
NO_SESSION: Final = "session_not_found"
POLICY_VIOLATION: Final = 1008  # RFC 6455 §7.4.1
_WAIT: Final = (429, 503)
# HTTP status and OAuth error by code; any other code is an invalid token
_ANSWERS: Final[dict[str, tuple[int, str | None]]] = {
    BAD_REQUEST: (400, BAD_REQUEST),
    NO_SESSION: (404, None),
    Code.CREDENTIAL_MISSING: (401, None),
    Code.CREDENTIAL_SUBJECT: (403, "insufficient_scope"),
    Code.CREDENTIAL_TOOL: (403, "insufficient_scope"),
    Code.CREDENTIAL_CALL: (403, "insufficient_scope"),
    Code.IDENTITY_UNAVAILABLE: (503, None),
    Code.INSUFFICIENT_SCOPE: (403, "insufficient_scope"),
    Code.KEYS_UNAVAILABLE: (503, None),
    Code.PROOF_INVALID: (401, "invalid_dpop_proof"),
    Code.PROOF_LIMIT: (429, None),  # RFC 6585 §4
    Code.PROOF_NONCE: (401, "use_dpop_nonce"),
    Code.PROOF_REPLAYED: (401, "invalid_dpop_proof"),
    Code.STATUS_UNAVAILABLE: (503, None),
}

Arguments = Mapping[str, Any]
Demanded = Callable[[Any], Arguments | Awaitable[Arguments]]
"""Reads the arguments that a service is about to act on from its `Request` or `WebSocket`."""


class Refusal(NamedTuple):
    """An answer to send: the HTTP status, its headers, the stable code."""

    status: int
    headers: tuple[tuple[str, str], ...]
    code: str


T_co = TypeVar("T_co", covariant=True)


class BearerServer(Generic[T_co]):
    """Base of the servers: read a request's token, and answer a refused request."""

    def __init__(self, metadata: ResourceMetadata | None) -> None:
        self._metadata = metadata
        self._proofs: ProofVerifier | None = None
        self._require_proof = False
        self._scopes: tuple[str, ...] = ()

    async def authenticate(self, *, method: str, path: str, headers: Iterable[tuple[str, str]]) -> T_co:
        """Return the caller of one request, or raise an error with a code for `refusal`."""
        raise NotImplementedError

    def refusal(self, code: str) -> Refusal:
        """Return the answer to an error `code` of `authenticate` (RFC 6750, 9449, 9728)."""
        headers = [("Cache-Control", "no-store")]
        if (nonce := self.nonce()) is not None:
            headers.append(("DPoP-Nonce", nonce))
        status, error = _ANSWERS.get(code, (401, "invalid_token"))
        if status in _WAIT:
            headers.append(("Retry-After", "1"))
        if status in (404, *_WAIT):
            return Refusal(status, tuple(headers), code)
        said = 'realm="api"'
        if error is not None:
            said += f', error="{error}", error_description="{code}"'
        if error == "insufficient_scope" and self._scopes:
            said += f', scope="{" ".join(self._scopes)}"'  # RFC 6750 §3
        if self._metadata is not None:
            said += f', resource_metadata="{self._metadata.url}"'  # RFC 9728 §5.1
        if self._proofs is not None:
            headers.append(("WWW-Authenticate", f'DPoP {said}, algs="{" ".join(ALGORITHMS)}"'))
        if not self._require_proof and error not in ("use_dpop_nonce", "invalid_dpop_proof"):
            headers.append(("WWW-Authenticate", f"Bearer {said}"))
        return Refusal(status, tuple(headers), code)

    async def of(self, connection: HTTPConnection) -> T_co:
        """Return the caller of a Starlette request, or raise like `authenticate`."""
        return await self.authenticate(**_request(connection))

    async def __call__(self, connection: HTTPConnection, response: Response) -> T_co:
        """Return the caller to FastAPI, or raise an exception with the answer."""
        try:
            caller = await self.of(connection)
        except AuthzError as exc:
            raise self._answer(exc, connection.scope["type"]) from None
        if (nonce := self.nonce()) is not None:
            response.headers["DPoP-Nonce"] = nonce
        return caller

    def _answer(self, error: AuthzError, kind: str = "http") -> HTTPException | WebSocketException:
        """Return the exception that refuses a connection of this `kind` (ASGI's `type`)."""
        _log.info("refused: %s", error.code)
        if kind == "websocket":
            return WebSocketException(POLICY_VIOLATION, error.code)
        refused = self.refusal(error.code)
        # FastAPI's own handler takes a mapping: the challenges go into one header (RFC 9110 §11.6.1).
        headers: dict[str, str] = {}
        for name, value in refused.headers:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return HTTPException(refused.status, refused.code, headers)

    def nonce(self) -> str | None:
        """Return a new DPoP nonce for an answer, or `None` if proofs need none."""
        return None if self._proofs is None else self._proofs.nonce()


def _request(connection: HTTPConnection) -> dict[str, Any]:
    """Return the arguments of `authenticate` for a request."""
    scope = connection.scope
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    return {"method": scope.get("method", "GET"), "path": path, "headers": headers}


class ResourceServer(BearerServer[Credential]):
    """Decide which callers may use this service, as a FastAPI dependency.

    Args:
        verifier: verifies signature and times of the issuer's tokens.
        audience: this service's name, exactly as the profiles of the calling tools give it (`ToolProfile.audience`).
        tenant: the tenant whose data this service holds. Use `None` if the service holds several tenants' data and
            checks `credential.tenant` itself.
        subject_types: types of the subjects that the service serves: `user`, `agent`, `service`, `anonymous`.
        status: tells if a token is still live: `LedgerStatus`, `Introspection`, `Offline`.
        proofs: verifies DPoP proofs. Without it, tokens that are bound to a key are refused.
        require_proof: refuse tokens that are not bound to a key.
        metadata: this service's metadata (RFC 9728), whose URL stands in each challenge.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        audience: str,
        tenant: str | None,
        status: Status,
        subject_types: Collection[str] = ("user",),
        proofs: ProofVerifier | None = None,
        require_proof: bool = False,
        metadata: ResourceMetadata | None = None,
    ) -> None:
        if not audience or not isinstance(status, Status):
            msg = "a resource server needs its `audience`, and a `status`: LedgerStatus, Introspection or Offline"
            raise ConfigError(msg)
        if require_proof and proofs is None:
            raise ConfigError("`require_proof` needs `proofs`")
        if (
            not subject_types
            or isinstance(subject_types, str)
            or not all(isinstance(t, str) and t for t in subject_types)
        ):
            raise wrong("subject_types", "a list of types, like `user` or `service`", subject_types)
        super().__init__(metadata)
        self.audience = audience
        self._verifier, self._tenant, self._status = verifier, tenant, status
        self._proofs, self._require_proof = proofs, require_proof
        self._subject_types = frozenset(subject_types)
        self._tools: frozenset[str] | None = None
        self._of_all = self  # copies that `for_tools` makes still refer to this server

    def for_tools(self, *tools: str) -> ResourceServer:
        """Return a copy for these tools' tokens only: `Depends(server.for_tools("pay"))`."""
        narrowed = copy.copy(self)
        narrowed._tools = frozenset(tools)  # noqa: SLF001  (its own class)
        return narrowed

    def for_call(
        self, tool: str, args: Demanded, *, step: str | None = None, accept: Collection[str] | None = ORDERED
    ) -> Callable[[HTTPConnection, Response], Awaitable[Credential]]:
        """Return a dependency for one call: `Depends(server.for_call("pay", read_args))`.

        `args` receives the request, or the WebSocket, and returns the arguments that the service will use, by their
        names in the tool's profile. If `args` raises, the request is refused as invalid. `step`: the mandate's step
        that must cover it. `accept`: standings to accept, and `approved` for approved calls; `None` accepts every one.
        """
        narrowed = self.for_tools(tool)

        async def dependency(connection: HTTPConnection, response: Response) -> Credential:
            credential = await narrowed(connection, response)
            try:
                found = args(connection)
                demanded = await found if inspect.isawaitable(found) else found
            except (HTTPException, WebSocketException):
                raise
            except Exception as exc:  # noqa: BLE001  (the request does not have what the service looks for)
                raise self._answer(CredentialError(BAD_REQUEST, type(exc).__name__), connection.scope["type"]) from None
            try:
                check_call(credential, tool=tool, args=demanded, step=step, accept=accept)
            except CredentialError as exc:
                raise self._answer(exc, connection.scope["type"]) from None
            return credential

        return dependency

    def check_call(self, credential: Credential, **call: Any) -> None:
        """Check the token against `call` as `for_call` does, or raise `HTTPException` 403."""
        try:
            check_call(credential, **call)
        except CredentialError as exc:
            raise self._answer(exc) from None

    async def authenticate(self, *, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Credential:
        """Return the verified credential of a tool call. Header names are lower-case.

        A credential that names none of the server's tools is refused.
        """
        pairs = tuple(headers)
        scheme, token = bearer_token([value for name, value in pairs if name == "authorization"])
        shown = [value for name, value in pairs if name == "dpop"]
        if len(shown) > 1:
            raise CredentialError(BAD_REQUEST)
        credential = await self._verifier.averify(token, audience=self.audience, tenant=self._tenant, bound=True)
        if credential.subject_type not in self._subject_types:
            raise CredentialError(Code.CREDENTIAL_SUBJECT)
        self._check_proof(credential, scheme, shown, method, path)
        await self._check_live(credential)
        return self._for_its_tools(credential)

    async def of(self, connection: HTTPConnection) -> Credential:
        # Several dependencies may ask about one request, but its proof is accepted once. So keep the proved credential.
        proved, request = connection.scope.setdefault("runtime_authz", {}), _request(connection)
        shown = [pair for pair in request["headers"] if pair[0] in ("authorization", "dpop")]
        key = (self._of_all, request["method"], request["path"], *shown)  # a copy of the scope may be another request
        if (credential := proved.get(key)) is not None:
            await self._verifier.averify(credential.token, audience=self.audience, tenant=self._tenant, bound=True)
            await self._check_live(credential)
        elif (credential := await super(ResourceServer, self._of_all).of(connection)).jkt is not None:
            proved[key] = credential
        return self._for_its_tools(credential)

    def _for_its_tools(self, credential: Credential) -> Credential:
        if not (credential.tools if self._tools is None else self._tools.intersection(credential.tools)):
            raise CredentialError(Code.CREDENTIAL_TOOL)
        return credential

    def _check_proof(self, credential: Credential, scheme: str, shown: list[str], method: str, path: str) -> None:
        jkt = credential.jkt
        if jkt is None:
            # RFC 9449 §7.1: a token that is not bound to a key cannot be used with the scheme `DPoP`.
            if self._require_proof or scheme == "dpop":
                raise CredentialError(Code.PROOF_MISSING, "the token is not bound to a key")
            return
        if scheme != "dpop" or not shown or self._proofs is None:
            raise CredentialError(Code.PROOF_MISSING)
        self._proofs.verify(shown[0], method=method, path=path, token=credential.token, jkt=jkt)

    async def _check_live(self, credential: Credential) -> None:
        try:
            answer = await self._status.status(credential)
        except CredentialError:
            raise
        except Exception as exc:  # a status may fail in any way; a token of unknown status is refused
            raise CredentialError(Code.STATUS_UNAVAILABLE, type(exc).__name__) from exc
        if answer != "live":
            raise CredentialError(Code.CREDENTIAL_REVOKED)


class ProviderServer(BearerServer[Caller]):
    """Decide which callers of an identity provider may use this service.

    The provider's token names the user and the client, but not the task, the call and its arguments. If the service can
    verify the call's own token, prefer `ResourceServer`.

    Args:
        verifier: verifies the provider's access tokens for this service. It has no `client_id`: ID tokens do not count.
        scopes: scopes that a token must have. A refusal names them (RFC 6750 §3.1).
        status: the provider's introspection endpoint, asked for each request, so that a logout takes effect at once.
            Without it, a token is accepted until it expires.
        metadata: this service's metadata (RFC 9728).
    """

    def __init__(
        self,
        verifier: OidcVerifier,
        *,
        scopes: Iterable[str] = (),
        status: Introspection | None = None,
        metadata: ResourceMetadata | None = None,
    ) -> None:
        if not isinstance(verifier, OidcVerifier):
            raise ConfigError("`verifier` is an `OidcVerifier`")
        if verifier.client_id is not None:
            raise ConfigError("a service takes no ID tokens: its verifier has an `audience` and no `client_id`")
        super().__init__(metadata)
        self._verifier, self._status, self._scopes = verifier, status, checked_scopes(scopes)

    def for_scopes(self, *scopes: str) -> ProviderServer:
        """Return a copy of the server that also requires these scopes."""
        narrowed = copy.copy(self)
        narrowed._scopes = checked_scopes((*self._scopes, *scopes))  # noqa: SLF001  (its own class)
        return narrowed

    async def authenticate(self, *, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Caller:
        scheme, token = bearer_token([value for name, value in headers if name == "authorization"])
        if scheme != "bearer":
            raise CredentialError(Code.CREDENTIAL_MISSING)
        caller = await self._verifier.acaller(token)
        if self._status is not None and await self._status.ask(token, caller.token_id) != "live":
            raise CredentialError(Code.CREDENTIAL_REVOKED)
        if not caller.scopes.issuperset(self._scopes):
            raise CredentialError(Code.INSUFFICIENT_SCOPE)
        return caller


class ProtectedApp:
    """An ASGI application that serves no request without a credential.

    The application finds the credential in `request.state.credential`.

    Args:
        app: the application to protect.
        server: decides which callers may use it.
    """

    def __init__(self, app: ASGIApp, server: BearerServer[Any]) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serve = self._app if scope["type"] == "lifespan" else self._guarded
        await serve(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._admit(scope, receive, send, self._server.of)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, of: Callable[[HTTPConnection], Awaitable[object]]
    ) -> None:
        try:
            credential = await of(HTTPConnection(scope))
        except AuthzError as exc:
            _log.info("refused: %s", exc.code)
            await send_refusal(self._server.refusal(exc.code), scope, send)
            return
        scope.setdefault("state", {})["credential"] = credential
        await self._app(scope, receive, self._with_nonce(send))

    def _with_nonce(self, send: Send) -> Send:
        nonce = self._server.nonce()
        if nonce is None:
            return send
        header = (b"dpop-nonce", nonce.encode())

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return sending


def bearer_token(given: list[str]) -> tuple[str, str]:
    """Return scheme (`bearer` or `dpop`) and token of the `Authorization` headers."""
    if not given:
        raise CredentialError(Code.CREDENTIAL_MISSING)
    scheme, _, token = given[0].partition(" ")
    scheme, token = scheme.lower(), token.strip(" ")
    if len(given) > 1 or not token or scheme not in ("bearer", "dpop"):
        raise CredentialError(BAD_REQUEST)
    return scheme, token


async def send_refusal(refused: Refusal, scope: Scope, send: Send) -> None:
    """Send a refusal as HTTP answer, or close the WebSocket with it."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refused.code})
    else:
        await send_json(send, refused.status, {"error": refused.code}, refused.headers)
