"""Real services on the loopback: a bank, an MCP server, an issuer's endpoints, a token endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.credential.authorization_details import ORDERED
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.jwks import JwksClient
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.downstream.exchange import ACCESS_TOKEN, GRANT, JWT
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.resource_server.dpop import Nonces, ProofVerifier
from langchain_runtime_authz.resource_server.introspection import (
    Introspection,
    IntrospectionClient,
    IntrospectionEndpoint,
)
from langchain_runtime_authz.resource_server.server import ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus, Offline
from langchain_runtime_authz.testing import StaticPDP
from tests.threads import until

from .services import free_port

SECRET = "a secret of a service"


@contextlib.contextmanager
def serving(app: Any, port: int) -> Iterator[str]:
    """Serve an ASGI application in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), told=lambda: "the service did not start")
    assert server.started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


class Codes(logging.Handler):
    """The stable codes of refusals, as an operator reads them in the service's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seen: list[str] = []
        self.logger = logging.getLogger("langchain_runtime_authz.resource_server.server")

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(str(record.args[0]) if record.args else record.getMessage())

    def __enter__(self) -> Codes:
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)


def issuer_app(authz: RuntimeAuthz, audiences: tuple[str, ...]) -> FastAPI:
    """Where services fetch keys, and ask whether a token lives."""
    app = FastAPI()

    @app.get("/jwks")
    def jwks() -> Any:
        return authz.issuer.jwks()

    app.mount(
        "/introspect",
        IntrospectionEndpoint(
            verifier=Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks),
            status=LedgerStatus(authz.ledger),
            clients={"service": IntrospectionClient(SECRET, audiences=audiences, tenant=authz.tenant)},
        ),
    )
    return app


def resource_server(
    authz: RuntimeAuthz,
    issuer_url: str,
    audience: str,
    *,
    status: str = "ledger",
    tenant: str = "default",
    nonces: bool = False,
    origin: str | None = None,
    **options: Any,
) -> ResourceServer:
    """A service's side, as its own process would have it: keys over HTTP, status as it likes."""
    statuses: dict[str, Any] = {
        "ledger": lambda: LedgerStatus(authz.ledger),
        "introspection": lambda: Introspection(f"{issuer_url}/introspect/", client_id="service", client_secret=SECRET, timeout=30),
        "offline": Offline,
    }
    return ResourceServer(
        verifier=Verifier(issuer=authz.issuer.issuer, jwks=JwksClient(f"{issuer_url}/jwks", min_refresh=0.05, timeout=30)),
        audience=audience, tenant=tenant, status=statuses[status](),
        proofs=ProofVerifier(public_url=origin or audience, nonces=Nonces() if nonces else None), **options,
    )


class World:
    """An issuer's endpoints and one `RuntimeAuthz`, for tests that bring their own services."""

    def __init__(
        self, stack: contextlib.ExitStack, profiles: dict[str, Any], audiences: tuple[str, ...], permit: Any = True
    ) -> None:
        self.stack, self.port = stack, free_port()
        self.authz = RuntimeAuthz(pdp=StaticPDP(permit), profiles=profiles, issuer=LocalIssuer(issuer="https://issuer.example"))
        self.issuer_url = stack.enter_context(serving(issuer_app(self.authz, audiences), self.port))
        self.codes = stack.enter_context(Codes())

    def server(self, audience: str, **options: Any) -> Any:
        return resource_server(self.authz, self.issuer_url, audience, **options)


def bank_app(server: ResourceServer, served: list[Credential] | None = None, accept: Any = ORDERED) -> FastAPI:
    """A payment service that knows nothing of LangGraph. `/transfers` demands the call, `/only-transfer` the tool."""
    app = FastAPI()
    done = served if served is not None else []

    @app.post("/payments")
    async def pay(credential: Credential = Depends(server)) -> dict[str, Any]:
        done.append(credential)
        return {"for": credential.subject, "by": list(credential.actors), "epoch": credential.epoch}

    @app.get("/payments")
    async def read(credential: Credential = Depends(server)) -> dict[str, Any]:
        return {"for": credential.subject}

    @app.post("/only-transfer")
    async def transfer(credential: Credential = Depends(server.for_tools("transfer"))) -> dict[str, Any]:
        return {"for": credential.subject}

    @app.post("/transfers")
    async def transfers(
        body: dict[str, Any], credential: Credential = Depends(server.for_call("transfer", Request.json, accept=accept))
    ) -> dict[str, Any]:
        done.append(credential)
        return {"paid": body}

    return app


def token_endpoint(authz: RuntimeAuthz, url: str, key: SigningKey, seen: list[dict[str, str]], **lies: Any) -> FastAPI:
    """A small RFC 8693 endpoint: believes the issuer's tokens, issues bearer tokens of its own."""
    import jwt

    app = FastAPI()
    verifier = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks)
    status = LedgerStatus(authz.ledger)
    private = key.to_pem()

    def refused(error: str, code: int = 400) -> JSONResponse:
        return JSONResponse({"error": error, "error_description": "no"}, code)

    @app.post("/token")
    async def token(request: Request) -> Any:
        if request.headers.get("authorization") is None:
            return refused("invalid_client", 401)
        form = dict(parse_qsl((await request.body()).decode()))
        seen.append(form)
        if form.get("grant_type") != GRANT:
            return refused("unsupported_grant_type")
        if form.get("subject_token_type") != JWT or ("actor_token" in form) != ("actor_token_type" in form):
            return refused("invalid_request")
        try:
            credential = await verifier.averify(form.get("subject_token", ""), audience=url, tenant="default")
        except CredentialError:
            return refused("invalid_request")
        if await status.status(credential) != "live":
            return refused("invalid_request")
        if form.get("resource", "").startswith("http://127.0.0.1:1/"):
            return refused("invalid_target")
        now = int(time.time())
        claims = {"iss": url, "sub": credential.subject, "act": {"sub": credential.actor}, "iat": now, "exp": now + 60}
        claims["aud"] = form.get("audience") or form.get("resource")
        return {
            "access_token": jwt.encode(claims, private, algorithm=key.alg, headers={"kid": key.kid, "typ": "at+jwt"}),
            "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 60, **lies,
        }

    return app


def legacy_app(url: str, sts_url: str, key: SigningKey) -> FastAPI:
    """A service that wants the bearer tokens of its token endpoint, and knows of nothing else."""
    import jwt

    app = FastAPI()
    public = jwt.PyJWK(key.public_jwk())

    @app.get("/customers")
    async def customers(request: Request) -> Any:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = jwt.decode(token, public, algorithms=[key.alg], audience=url, issuer=sts_url)
        except jwt.PyJWTError:
            return JSONResponse({"error": "invalid_token"}, 401)
        return {"for": claims["sub"], "by": claims["act"]["sub"], "scheme": scheme, "echo": token}

    return app


def run(coroutine: Any) -> Any:
    """Run a coroutine from code that may or may not have an event loop."""
    return asyncio.run(coroutine)


def claims_of(token: str) -> dict[str, Any]:
    import base64

    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))
