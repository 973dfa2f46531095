"""Keys rotate and are withdrawn under load: eight threads, a key directory that two processes hold, a real JWKS endpoint."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from langchain_runtime_authz.credential.issuer import LocalIssuer, claims_of
from langchain_runtime_authz.credential.jwks import JwksClient
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError

from ..unit_tests.credential.tokens import BANK, a_request, forged
from .downstream_services import serving
from .services import free_port

CACHE_AGE = 1.0  # seconds, in place of the 60 of production
THREADS = 8


class Load:
    """Eight threads that mint a token and have it verified, as long as they are let."""

    def __init__(self, issuer: LocalIssuer, verifier: Verifier) -> None:
        self.issuer, self.verifier = issuer, verifier
        self.stop = threading.Event()
        self.served = [0] * THREADS
        self.kids: set[str] = set()
        self.refused: list[tuple[float, str, str]] = []
        self.threads = [threading.Thread(target=self._work, args=(i,)) for i in range(THREADS)]

    def _work(self, number: int) -> None:
        count = 0
        while not self.stop.is_set():
            now, count = int(time.time()), count + 1
            token = self.issuer.issue(a_request(issued_at=now, expires_at=now + 60, jti=f"{number}-{count}"))
            started = time.time()
            try:
                self.kids.add(self.verifier.verify(token, audience=BANK, tenant="acme").kid)
                self.served[number] += 1
            except CredentialError as exc:
                import jwt

                self.refused.append((started, jwt.get_unverified_header(token)["kid"], exc.code))
            time.sleep(0.02)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(20)


class Thief:
    """Mints with a stolen key for as long as it is let, and notes when it last asked and was believed."""

    def __init__(self, key: SigningKey, issuer: str, verifier: Verifier) -> None:
        self.key, self.issuer, self.verifier = key, issuer, verifier
        self.accepted: list[float] = []
        self.tried = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self.stop.is_set():
            now = int(time.time())
            claims = claims_of(a_request(issued_at=now, expires_at=now + 60), self.issuer)
            token = forged(self.key, self.issuer, claims, {"alg": self.key.alg, "kid": self.key.kid, "typ": TYP})
            self.tried += 1
            started = time.time()
            try:
                self.verifier.verify(token, audience=BANK, tenant="acme")
                self.accepted.append(started)
            except CredentialError as exc:
                assert exc.code == "credential_key"
            time.sleep(0.02)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    KeyDirectory.create(tmp_path / "keys")
    return tmp_path / "keys"


def endpoint(ring: KeyDirectory) -> FastAPI:
    app = FastAPI()

    @app.get("/jwks")
    def jwks() -> Any:
        return ring.jwks()

    return app


def test_rotation_under_load_refuses_nobody_and_a_withdrawn_key_is_refused_in_time(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every valid call is served across three rotations; after the printed moment no stolen key's token is."""
    serving_ring = KeyDirectory(directory, cache_age=CACHE_AGE)  # the issuer's own process
    operator = KeyDirectory(directory, cache_age=CACHE_AGE)  # the operator's command line
    issuer = LocalIssuer(serving_ring, issuer="https://issuer.example")
    port = free_port()
    with serving(endpoint(serving_ring), port) as url:
        source = JwksClient(f"{url}/jwks", max_age=CACHE_AGE, min_refresh=0.1)
        remote = Verifier(issuer=issuer.issuer, jwks=source)
        own = Verifier(issuer=issuer.issuer, jwks=operator)  # reads the directory itself, as introspection does
        with Load(issuer, remote) as load:
            for _ in range(3):
                time.sleep(CACHE_AGE + 1.2)
                operator.rotate()
            time.sleep(CACHE_AGE)
            rotated = list(load.refused)
            stolen = SigningKey.from_pem((directory / f"{operator.active.kid}.pem").read_bytes())
            thief, online = (Thief(stolen, issuer.issuer, verifier) for verifier in (remote, own))
            for each in (thief, online):
                each.thread.start()
            time.sleep(0.5)
            withdrawn = operator.compromise(stolen.kid)
            at = time.time()
            time.sleep(max(0.0, withdrawn.refused_by - time.time()) + 1.0)
            for each in (thief, online):
                each.stop.set()
                each.thread.join(10)
    late = [when - at for when in thief.accepted if when > at]
    with capsys.disabled():
        print(
            f"\n{sum(load.served)} calls of {THREADS} threads with {len(load.kids)} keys, {len(rotated)} refused across 3 rotations; "
            f"key withdrawn: window {withdrawn.refused_by - at:.1f} s, last accepted after {max(late, default=0):.2f} s "
            f"(cached key set) and {max([w - at for w in online.accepted if w > at], default=0):.2f} s (the issuer's own), "
            f"{thief.tried + online.tried} tries"
        )
    assert rotated == [] and len(load.kids) >= 4
    assert all(served > 20 for served in load.served)
    assert thief.accepted
    assert all(when < withdrawn.refused_by for when in thief.accepted)
    assert [when for when in online.accepted if when > at] == []
    # What the issuer signed with the withdrawn key before it saw the withdrawal is refused, and nothing else.
    assert {kid for _, kid, _ in load.refused} <= {stolen.kid}
    assert stolen.kid not in [jwk["kid"] for jwk in serving_ring.jwks()["keys"]]
