"""A provider over HTTP on loopback: discovery and keys, slow, lying, rotating; many callers at once."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from langchain_runtime_authz.credential.keys import SigningKey
from langchain_runtime_authz.errors import AuthzError
from langchain_runtime_authz.identity.oidc import OidcVerifier

API = "https://agent.example"


class Provider:
    """Serves a discovery document and a key set, `delay` seconds late, in pieces or without an end."""

    def __init__(self) -> None:
        self.key = SigningKey.generate()
        self.keys: Any = self.key.jwks()
        self.delay, self.drip, self.endless = 0.0, 0.0, False
        self.asked: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                time.sleep(provider.delay)
                found = provider.keys if self.path == "/jwks" else provider.own()
                body = json.dumps(found).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    while provider.endless:
                        self.send_header("X-More", "x")
                        self.flush_headers()
                        time.sleep(0.05)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    for at in range(0, len(body), 64 if provider.drip else len(body) or 1):
                        self.wfile.write(body[at : at + 64] if provider.drip else body)
                        self.wfile.flush()
                        time.sleep(provider.drip)
                except OSError:
                    pass  # the caller has given up

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def own(self) -> dict[str, str]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}

    def token(self, key: SigningKey | None = None, **claims: Any) -> str:
        key, now = key or self.key, int(time.time())
        head = {"typ": "at+jwt", "alg": key.alg, "kid": key.kid}
        body = {"iss": self.url, "aud": API, "sub": "alice", "client_id": "web", "jti": "j", "iat": now, "exp": now + 60}
        text = ".".join(_b64(json.dumps(part).encode()) for part in (head, {**body, **claims}))
        return f"{text}.{_b64(key.sign(text.encode()))}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def provider() -> Iterator[Provider]:
    served = Provider()
    yield served
    served.close()


def code_of(verifier: OidcVerifier, token: str, go: str) -> str:
    with pytest.raises(AuthzError) as refused:
        if go == "sync":
            verifier.verify(token)
        else:
            asyncio.run(verifier.averify(token))
    return refused.value.code


ways = pytest.mark.parametrize("go", ["sync", "async"])


@ways
def test_a_token_is_verified_over_http(provider: Provider, go: str) -> None:
    """One fetch of each document, however many tokens."""
    verifier = OidcVerifier(provider.url, audience=API)
    for _ in range(20):
        subject = verifier.verify(provider.token()) if go == "sync" else asyncio.run(verifier.averify(provider.token()))
        assert (subject.type, subject.id) == ("user", "alice")
    assert provider.asked == ["/.well-known/openid-configuration", "/jwks"]


def test_many_callers_at_once_cost_one_fetch(provider: Provider) -> None:
    """Also those that come while it is under way; none of them is refused."""
    provider.delay = 0.3
    verifier = OidcVerifier(provider.url, audience=API, timeout=5.0)
    token = provider.token()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: verifier.verify(token).id, range(64)))
    assert found == ["alice"] * 64
    assert sorted(provider.asked) == ["/.well-known/openid-configuration", "/jwks"]

    async def together() -> list[str]:
        other = OidcVerifier(provider.url, audience=API, timeout=5.0)
        return [s.id for s in await asyncio.gather(*(other.averify(token) for _ in range(32)))]

    assert asyncio.run(together()) == ["alice"] * 32
    assert len(provider.asked) == 4


@ways
@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["late", "dripping", "endless headers"])
def test_a_slow_provider_costs_its_timeout_and_proves_nobody(provider: Provider, go: str, how: str) -> None:
    """The service stays up, and the next provider document that comes in time counts."""
    verifier = OidcVerifier(provider.url, audience=API, timeout=0.5)
    provider.delay, provider.drip = (1.5 if how == "late" else 0.0), (0.4 if how == "dripping" else 0.0)
    provider.endless = how == "endless headers"
    provider.keys = {"keys": [provider.key.public_jwk(), {"pad": "x" * 1000}]}
    try:
        assert code_of(verifier, provider.token(), go) == "identity_unavailable"
    finally:
        provider.endless = False
