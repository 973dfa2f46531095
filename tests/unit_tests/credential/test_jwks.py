"""The key set of an issuer: slow, lying, rotating, and asked for by strangers."""

import asyncio
import base64
import gzip
import json
import threading
from functools import partial
from typing import Any

import httpx
import pytest

from langchain_runtime_authz._http import Fetcher
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.jwks import JwksClient, usable_keys
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import ConfigError, CredentialError
from langchain_runtime_authz.evaluation import MAX_ANSWER_BYTES
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from tests.endpoints import answered
from tests.unit_tests.credential.tokens import BANK, NOW, a_request, b64

URL = "https://issuer.example/jwks"


class Endpoint:
    """A key set endpoint that does what it is told, and counts."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        answer = self.answer(request) if callable(self.answer) else self.answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def client_of(endpoint: Any, **options: Any) -> JwksClient:
    return JwksClient(URL, tls=answered(endpoint), **options)


@pytest.mark.parametrize("road", ["sync", "async"])
async def test_a_key_is_fetched_once_and_found(road: str) -> None:
    """Both roads share one copy; a second look asks nobody."""
    ring = KeyRing()
    endpoint = Endpoint(lambda _: ring.jwks())
    client = client_of(endpoint)
    for _ in range(3):
        for kid in (ring.active.kid, ring.all_keys()[1].kid):
            found = client.get(kid) if road == "sync" else await client.aget(kid)
            assert found["kid"] == kid
    assert endpoint.asked == 1


def test_a_copy_is_believed_for_its_age_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way it is refreshed, quietly; where that fails the old one serves until `max_age`, then nothing does."""
    clock, key = FrozenClock(1000.0), SigningKey.generate()
    endpoint = Endpoint(key.jwks())
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(endpoint, max_age=60)
    assert client.get(key.kid) is not None
    clock.now += 29
    client.get(key.kid)
    assert endpoint.asked == 1
    clock.now += 1
    client.get(key.kid)
    assert endpoint.asked == 2
    endpoint.answer = httpx.Response(503)
    clock.now += 59
    assert client.get(key.kid) is not None
    clock.now += 1
    with pytest.raises(CredentialError, match="keys_unavailable: "):
        client.get(key.kid)


def test_a_withdrawn_key_is_gone_with_the_next_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a new one is found at once, although the copy is young."""
    clock, ring = FrozenClock(1000.0), KeyRing(cache_age=0)
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(Endpoint(lambda _: ring.jwks()))
    old = ring.active.kid
    assert client.get(old) is not None
    ring.compromise(old)
    clock.now += 1
    assert client.get(ring.all_keys()[1].kid) is not None and client.get(old) is None


def test_strangers_do_not_make_it_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tokens with keys that do not exist cost one fetch in each interval."""
    clock, key = FrozenClock(1000.0), SigningKey.generate()
    endpoint = Endpoint(key.jwks())
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(endpoint, min_refresh=5)
    for i in range(1000):
        assert client.get(f"stranger-{i}") is None
    assert endpoint.asked == 1
    clock.now += 5
    for i in range(1000):
        assert client.get(f"stranger-{i}") is None
    assert client.get(key.kid) is not None and endpoint.asked == 2
MANY = [SigningKey.generate("EdDSA").public_jwk()] * 65
LIES: dict[str, Any] = {
    "error": lambda: httpx.Response(500, json={"keys": []}),
    "html": lambda: httpx.Response(200, text="<html>"),
    "array": lambda: httpx.Response(200, json=[]),
    "no keys": lambda: httpx.Response(200, json={}),
    "keys of another kind": lambda: httpx.Response(200, json={"keys": {"a": 1}}),
    "strings": lambda: httpx.Response(200, json={"keys": ["a"]}),
    "bomb": lambda: httpx.Response(200, text="[" * 60_000),
    "endless": lambda: httpx.Response(200, content=b'{"keys":[' + b" " * 70_000 + b"]}"),
    "duplicate members": lambda: httpx.Response(200, text='{"keys":[],"keys":[]}'),
    "utf-16": lambda: httpx.Response(200, content=json.dumps({"keys": []}).encode("utf-16")),
    "byte order mark": lambda: httpx.Response(200, content=json.dumps({"keys": []}).encode("utf-8-sig")),
    "too many": lambda: httpx.Response(200, json={"keys": MANY}),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("road", ["sync", "async"])
async def test_a_lying_endpoint_is_no_key_set(lie: str, road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No size, nesting or other document makes a key; the old copy stays."""
    key = SigningKey.generate()
    endpoint, clock = Endpoint(lambda _: LIES[lie]()), FrozenClock(1000.0)
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(endpoint)
    with pytest.raises(CredentialError, match="keys_unavailable: "):
        client.get(key.kid) if road == "sync" else await client.aget(key.kid)
    good, endpoint.answer = endpoint.answer, key.jwks()
    clock.now += 1
    assert client.get(key.kid) is not None
    endpoint.answer = good
    clock.now += 40
    assert client.get(key.kid) is not None and endpoint.asked == 3


@pytest.mark.parametrize("road", ["sync", "async"])
@pytest.mark.parametrize(("status", "headers"), [
    (200, {"Content-Encoding": "gzip"}), (200, {"Content-Encoding": "identity, br"}), (200, {"Content-Length": "65537"}),
    (200, {"Content-Length": "9" * 5000}), (302, {"Location": "https://evil.example/"}), (307, {"Location": "/other"}),
])
async def test_what_is_refused_by_its_headers_is_not_read(road: str, status: int, headers: dict[str, str]) -> None:
    """Plain bytes are asked for; a server that compresses all the same, sends too many, or sends away, is not listened to."""
    read, asked = [], []

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            read.append(1)
            yield gzip.compress(b" " * 10**6)

    def endpoint(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Accept-Encoding"])
        return httpx.Response(status, stream=Body(), headers=headers)

    fetcher = Fetcher(URL, tls=answered(endpoint))
    assert (fetcher.send("GET", {}) if road == "sync" else await fetcher.asend("GET", {})) is None
    assert (read, asked) == ([], ["identity"])


@pytest.mark.parametrize("road", ["sync", "async"])
async def test_a_body_of_unsaid_length_is_bounded(road: str) -> None:
    """What goes on past the limit is dropped there, though it would have been a key set in the end."""
    sent = []

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            for piece in [b'{"keys":[]'] + [b" " * 1000] * 1000 + [b"}"]:
                sent.append(len(piece))
                yield piece

    fetcher = Fetcher(URL, tls=answered(lambda _: httpx.Response(200, stream=Body())))
    assert (fetcher.send("GET", {}) if road == "sync" else await fetcher.asend("GET", {})) is None
    assert sum(sent) <= MAX_ANSWER_BYTES + 1010


def number(value: int) -> str:
    """A JWK's unsigned integer (RFC 7518 §2, Base64urlUInt)."""
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


EC, RSA = SigningKey.generate(), SigningKey.generate("RS256")
N = int.from_bytes(base64.urlsafe_b64decode(RSA.public_jwk()["n"] + "=="), "big")
BAD_KEYS: dict[str, Any] = {
    **{f"exponent {e}": {"e": number(e)} for e in (1, 2, 3, 65536, 2**32 + 1, N - 2, N + 2)}, "no exponent": {"e": ""},
    "exponent zero": {"e": "AA"}, "even modulus": {"n": number(N - 1)}, "tiny modulus": {"n": number(N >> 2000)},
    "small modulus": {"n": number((N >> 1025) | 1)}, "huge modulus": {"n": number((1 << 8192) | 1)},
    "monstrous modulus": {"n": "Af" * 20_000}, "no modulus": {"n": ""}, "modulus a number": {"n": N % 2**53},
    **{f"private {name}": {name: "AAAA"} for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")},
    "symmetric": {"kty": "oct", "k": b64("a" * 32)}, "another kind": {"kty": "EC"}, "a curve": {"crv": "P-256"},
    "to encrypt": {"use": "enc"}, "use unsaid": {"use": None}, "to sign": {"key_ops": ["sign"]},
    "to verify and sign": {"key_ops": ["verify", "sign"]},
    "to verify and encrypt": {"use": "sig", "key_ops": ["verify", "encrypt"]},
    "to verify twice": {"key_ops": ["verify", "verify"]}, "operations a text": {"key_ops": "verify"},
    "operations empty": {"key_ops": []}, "of another algorithm": {"alg": "ES256"},
    "of a symmetric algorithm": {"alg": "HS256"}, "of no algorithm": {"alg": "none"}, "algorithm unsaid": {"alg": None},
    "name a number": {"kid": 1}, "no name": {"kid": None},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BAD_KEYS)
async def test_a_bad_key_of_a_set_is_no_key(name: str) -> None:
    """Left out, the other keys of the set serve on, and a token signed under its name is refused with a code."""
    bad = {**RSA.public_jwk(), **BAD_KEYS[name]}
    document = {"keys": [bad, EC.public_jwk()]}
    source = client_of(Endpoint(document))
    for verifier in (Verifier(issuer="i", jwks=source), Verifier(issuer="i", jwks=document)):
        token = LocalIssuer(RSA, issuer="i").issue(a_request())
        with pytest.raises(CredentialError, match="credential_key: "):
            verifier.verify(token, audience=BANK, now=NOW)
        assert verifier.verify(LocalIssuer(EC, issuer="i").issue(a_request()), audience=BANK, now=NOW).kid == EC.kid


def test_the_key_of_those_tests_is_good_by_itself() -> None:
    """Unchanged it is believed, with what an issuer may write beside it: nothing there is followed."""
    beside = {"key_ops": ["verify"], "x5u": "https://evil.example/key", "x5c": ["AAAA"], "other": {"a": 1}}
    assert usable_keys({"keys": [{**RSA.public_jwk(), **beside}, {"kty": "EC", "kid": "half"}, {}]}).keys() == {RSA.kid}  # type: ignore[union-attr]
    assert usable_keys(None) is None


def test_keys_of_one_name_are_nobodys() -> None:
    """Two keys under one name, of one kind or of two, equal or not: a name that collides names no key."""
    stranger = SigningKey.generate()
    for twin in (EC.public_jwk(), {**stranger.public_jwk(), "kid": EC.kid}, {**RSA.public_jwk(), "kid": EC.kid}, {"kid": EC.kid}):
        document = {"keys": [EC.public_jwk(), RSA.public_jwk(), twin]}
        for source in (client_of(Endpoint(document)), document):
            verifier = Verifier(issuer="i", jwks=source)
            with pytest.raises(CredentialError, match="credential_key: "):
                verifier.verify(LocalIssuer(EC, issuer="i").issue(a_request()), audience=BANK, now=NOW)
            assert verifier.verify(LocalIssuer(RSA, issuer="i").issue(a_request()), audience=BANK, now=NOW)


def test_strangers_can_not_drive_a_good_key_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names are kept nowhere; a set that fails to come leaves the old one, one that comes without a key ends it."""
    clock = FrozenClock(1000.0)
    endpoint = Endpoint(EC.jwks())
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(endpoint, max_age=60, min_refresh=1)
    assert client.get(EC.kid) is not None
    endpoint.answer = httpx.Response(200, json={"keys": "none"})
    for i in range(50):
        clock.now += 1
        assert client.get(f"stranger-{i}" * 100) is None and client.get(EC.kid) is not None
    assert endpoint.asked <= 2 + 50
    endpoint.answer = {"keys": []}
    clock.now += 1
    assert client.get("a stranger") is None and client.get(EC.kid) is None


@pytest.mark.parametrize(
    "options",
    [{"url": "http://issuer.example/jwks"}, {"url": "file:///etc/passwd"}, {"url": "https://u:p@x.example"}, {"url": ""},
     {"url": "http://localhost/jwks", "proxy": "http://proxy.example"}, {"max_age": 1, "min_refresh": 2}, {"min_refresh": 0}, {"timeout": 0}],
    ids=str,
)  # fmt: skip
def test_settings_can_not_weaken(options: dict[str, Any]) -> None:
    """No plain HTTP to another machine, no unbounded cache."""
    with pytest.raises(ConfigError):
        JwksClient(**{"url": URL, **options})


def test_a_slow_endpoint_holds_up_only_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fetch for all who wait; who has the key in a young copy is served meanwhile."""
    key, clock = SigningKey.generate(), FrozenClock(1000.0)
    go, entered = threading.Event(), threading.Event()

    def slow(_: httpx.Request) -> Any:
        entered.set()
        assert go.wait(10)
        return key.jwks()

    endpoint = Endpoint(key.jwks())
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", clock)
    client = client_of(endpoint, max_age=60)
    client.get(key.kid)
    endpoint.answer = slow
    clock.now += 31
    refresher = threading.Thread(target=client.get, args=(key.kid,))
    refresher.start()
    assert entered.wait(10)
    assert client.get(key.kid) is not None  # while the fetch is under way
    found: list[Any] = []
    waiting = [threading.Thread(target=lambda: found.append(client.get("other"))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    go.set()
    for thread in [refresher, *waiting]:
        thread.join(10)
    assert found == [None] * 4 and endpoint.asked == 2


async def test_who_stops_waiting_does_not_stop_the_fetch() -> None:
    """A request that is cancelled while it waits leaves the others their keys."""
    key, go = SigningKey.generate(), asyncio.Event()

    async def slow(_: httpx.Request) -> httpx.Response:
        await go.wait()
        return httpx.Response(200, json=key.jwks())

    client = client_of(slow)
    first = asyncio.create_task(client.aget(key.kid))
    await asyncio.sleep(0)
    impatient = asyncio.create_task(client.aget(key.kid))
    patient = asyncio.create_task(client.aget(key.kid))
    await asyncio.sleep(0)
    impatient.cancel()
    go.set()
    assert (await first) == (await patient) == key.public_jwk()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("road", ["sync", "async"])
async def test_one_clock_runs_for_the_whole_exchange(road: str) -> None:
    """Headers that never end, which no timeout of a single read sees: the wait is over with the timeout."""
    never = threading.Event()

    def endless(_: httpx.Request) -> httpx.Response:
        never.wait()
        return httpx.Response(200, json={"keys": []})

    async def aendless(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        return httpx.Response(200)

    client = client_of(endless if road == "sync" else aendless, timeout=0.1)
    try:
        with pytest.raises(CredentialError, match="keys_unavailable: "):
            client.get("k") if road == "sync" else await client.aget("k")
    finally:
        never.set()


async def test_a_dripping_endpoint_ends() -> None:
    """A body that never ends costs the timeout, not more, on both roads."""

    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    client = client_of(lambda _: httpx.Response(200, stream=Drip()), timeout=0.1)
    for fetch in (partial(asyncio.to_thread, client.get), client.aget):
        with pytest.raises(CredentialError):
            await fetch("k")
