"""DPoP proofs (RFC 9449): the RFC's own, ours, and everything that is not exactly one."""

import copy
import json
import pickle
import threading
import time
from typing import Any

import jwt
import pytest

from langchain_runtime_authz._url import normal_target
from langchain_runtime_authz.credential.dpop_proof import ProofKey, read_proof, token_digest
from langchain_runtime_authz.credential.signer import SigningKey, jwk_thumbprint
from langchain_runtime_authz.errors import ConfigError, CredentialError
from langchain_runtime_authz.resource_server.dpop import MemoryReplays, Nonces, ProofVerifier
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from tests.threads import together
from tests.unit_tests.credential.tokens import b64

NOW = 1_764_000_000
URL = "https://bank.example/payments"
TOKEN = "a.b.c"
KEY = SigningKey.generate()
JWK = {k: v for k, v in KEY.public_jwk().items() if k in ("kty", "crv", "x", "y")}

# RFC 9449 §4.1 and §7.1, with line breaks taken out
RFC_JWK = {
    "kty": "EC", "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs", "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    "crv": "P-256",
}
RFC_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0Rs"
    "cEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2"
    "In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90"
    "ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFF"
    "byJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def made(claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, key: SigningKey = KEY) -> str:
    """A proof that `key` really signed, whatever it says."""
    body = {"jti": "p-1", "htm": "POST", "htu": URL, "iat": NOW, "ath": token_digest(TOKEN), **(claims or {})}
    head = {"typ": "dpop+jwt", "alg": key.alg, "jwk": JWK, **(header or {})}
    parts = [{k: v for k, v in part.items() if v is not ...} for part in (head, body)]
    signing_input = ".".join(b64(json.dumps(part)) for part in parts)
    return f"{signing_input}.{b64(key.sign(signing_input.encode()))}"


def believed(proof: Any, **changes: Any) -> str:
    asked = {"htm": "POST", "htu": URL, "token": TOKEN, "jkt": KEY.kid, "now": NOW, **changes}
    return read_proof(proof, **asked)


def refused(proof: Any, **changes: Any) -> str:
    with pytest.raises(CredentialError) as caught:
        believed(proof, **changes)
    assert caught.value.__context__ is None
    if isinstance(proof, str) and len(proof) > 40:
        assert not any(part and part in str(caught.value) for part in proof.split("."))
    return caught.value.code


def test_the_rfcs_own_proof_is_one() -> None:
    """RFC 9449 §7.1: proof, access token, `ath` and the thumbprint of §6.1 belong together."""
    assert jwk_thumbprint(RFC_JWK) == RFC_JKT
    assert token_digest(RFC_TOKEN) == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
    seen = {"htm": "GET", "htu": "https://resource.example.org/protectedresource", "now": 1562262620}
    assert believed(RFC_PROOF, token=RFC_TOKEN, jkt=RFC_JKT, **seen) == "e1j3V_bKic8-LAEB"
    assert refused(RFC_PROOF, token=RFC_TOKEN + "x", jkt=RFC_JKT, **seen) == "proof_invalid"
    assert refused(RFC_PROOF, token=RFC_TOKEN, jkt=KEY.kid, **seen) == "proof_invalid"
    assert refused(RFC_PROOF, token=RFC_TOKEN, jkt=RFC_JKT, **{**seen, "now": NOW}) == "proof_invalid"


@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_a_key_proves_each_request(alg: Any) -> None:
    """What a `ProofKey` makes is believed for its request, and each proof has an id of its own."""
    key = ProofKey(alg)
    proofs = [key.proof("POST", URL + "?a=1#b", token=TOKEN, nonce="n") for _ in range(2)]
    assert len({read_proof(p, htm="POST", htu=URL, token=TOKEN, jkt=key.jkt, now=time.time()) for p in proofs}) == 2
    assert {jwt.decode(p, options={"verify_signature": False})["nonce"] for p in proofs} == {"n"}
    assert '"d"' not in json.dumps([jwt.get_unverified_header(p) for p in proofs])


def test_a_proof_key_stays() -> None:
    """Not in text, nowhere to be copied or pickled to; and it proves URLs only."""
    key = ProofKey()
    assert not hasattr(key, "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            attempt(key)
    for url in ("/payments", "ftp://bank.example", "https://u:p@bank.example/", "https://bank.example/é", ""):
        with pytest.raises(ConfigError):
            key.proof("GET", url, token=TOKEN)


@pytest.mark.parametrize("claims", [
    {"jti": ...}, {"jti": ""}, {"jti": 1}, {"jti": "x" * 513}, {"htm": ...}, {"htm": "GET"}, {"htm": "post"},
    {"htu": ...}, {"htu": "https://evil.example/payments"}, {"htu": "https://bank.example/payments/"},
    {"htu": "https://bank.example:444/payments"}, {"htu": "http://bank.example/payments"}, {"htu": 1},
    {"htu": "https://bank.example/payments/../payments"}, {"htu": "//bank.example/payments"},
    {"htu": "https://bank.example\\@evil.example/payments"}, {"htu": "https://bank.example/PAYMENTS"},
    {"iat": ...}, {"iat": str(NOW)}, {"iat": float(NOW)}, {"iat": True}, {"iat": NOW - 31}, {"iat": NOW + 6},
    {"ath": ...}, {"ath": token_digest("another")}, {"ath": None}, {"ath": "\ud800"}, {"nonce": 1}, {"nonce": "x" * 513},
], ids=lambda c: ascii(c)[:60])
def test_a_proof_is_for_one_request(claims: dict[str, Any]) -> None:
    """Another method, URL, token, time, or a claim of another type: refused, although properly signed."""
    assert refused(made(claims)) == "proof_invalid"


def test_a_proof_is_made_with_the_key_that_it_shows() -> None:
    """The public key of a token's holder is no secret: shown under another's signature it proves nothing."""
    assert believed(made()) == "p-1"
    assert refused(made(key=SigningKey.generate())) == "proof_invalid"
    assert refused(made(header={"jwk": PRIVATE})) == "proof_invalid"


def test_what_is_no_url_is_nobodys() -> None:
    """Also where the server's own is none."""
    for url in ("", "/payments", "urn:x"):
        assert refused(made({"htu": url}), htu=url) == "proof_invalid"


PRIVATE = {**JWK, "d": "AAAA"}


@pytest.mark.parametrize("header", [
    {"typ": "JWT"}, {"typ": "dpop+JWT"}, {"typ": ...}, {"alg": "none"}, {"alg": "HS256"}, {"alg": "EdDSA"},
    {"alg": ...}, {"jwk": ...}, {"jwk": "x"}, {"jwk": PRIVATE}, {"jwk": {"kty": "oct", "k": "AAAA"}},
    {"jwk": {**JWK, "crv": "P-384"}}, {"jwk": {**JWK, "x": 1}}, {"jwk": {**JWK, "use": "enc"}},
    {"jwk": {k: v for k, v in SigningKey.generate().public_jwk().items() if k in JWK}},
    {"kid": KEY.kid}, {"crit": ["exp"], "exp": 1}, {"jku": "https://evil.example"}, {"x5c": []},
], ids=lambda h: ascii(sorted(h))[:40] + ("-private" if h.get("jwk") is PRIVATE else ""))
def test_a_proof_header_is_exactly_its_three_members(header: dict[str, Any]) -> None:
    """Type, algorithm and a public key; a private key inside, or another's signature, is refused."""
    assert refused(made(header=header)) == "proof_invalid"


@pytest.mark.parametrize(("url", "normal"), [
    ("https://Bank.Example", "https://bank.example/"), ("HTTPS://bank.example:443/a?b#c", "https://bank.example/a"),
    ("http://bank.example:80/", "http://bank.example/"),
    ("https://bank.example/%7ealice/%c3%a9", "https://bank.example/~alice/%C3%A9"),
    ("https://[::1]:8443/a", "https://[::1]:8443/a"),
    ("https://bank.example/%2e%2e/%2f", "https://bank.example/../%2F"), ("https://bank.example:99999/", None),
    ("https://[::1/", None), ("https:///a", None), ("https://bank.example/a b", "https://bank.example/a b"),
    ("https://bank.example/\n", None), ("javascript:alert(1)", None),
])
def test_a_target_has_one_spelling(url: str, normal: str | None) -> None:
    """Syntax-based and scheme-based normalisation (RFC 3986 §6.2.2, §6.2.3), without query and fragment."""
    assert normal_target(url) == normal


def verifier(clock: FrozenClock | None = None, **options: Any) -> ProofVerifier:
    return ProofVerifier(**{"public_url": "https://bank.example", "clock": clock or FrozenClock(), **options})


def check(server: ProofVerifier, proof: str, **changes: Any) -> None:
    asked = {"method": "POST", "path": "/payments", "token": TOKEN, "jkt": KEY.kid, **changes}
    server.verify(proof, **asked)


def code_of(server: ProofVerifier, proof: str, **changes: Any) -> str:
    with pytest.raises(CredentialError) as caught:
        check(server, proof, **changes)
    return caught.value.code


def test_a_proof_is_believed_once() -> None:
    """Until it is too old anyway; what was refused for another reason uses nothing up."""
    clock = FrozenClock()
    server = verifier(clock)
    assert code_of(server, made(), path="/elsewhere") == "proof_invalid"
    check(server, made())
    assert code_of(server, made()) == "proof_replayed"
    clock.now += 30
    assert code_of(server, made()) == "proof_replayed"
    clock.now += 1
    assert code_of(server, made()) == "proof_invalid"


def test_a_proof_of_the_future_is_remembered_to_its_last_second() -> None:
    """Of a holder whose clock is ahead; clocks may count whole seconds."""
    clock = FrozenClock()
    server, early = verifier(clock), made({"iat": NOW + 5})
    check(server, early)
    clock.now += 35
    assert code_of(server, early) == "proof_replayed"
    check(server, made({"jti": "p-2", "iat": NOW + 5}))  # it would be young enough
    clock.now += 1
    assert code_of(server, early) == "proof_invalid"


@pytest.mark.parametrize(("path", "htu"), [
    (".evil.example/payments", "https://bank.example.evil.example/payments"), ("", "https://bank.example/"),
    ("-evil.example/", "https://bank.example-evil.example/"), (":8443/payments", "https://bank.example:8443/payments"),
    ("https://evil.example/", "https://evil.example/"), ("*", "https://bank.example*"),
])
def test_a_request_target_without_a_slash_is_no_path_of_the_service(path: str, htu: str) -> None:
    """It would be read as the rest of another host's name, for which its proof was made."""
    assert code_of(verifier(), made({"htu": htu}), path=path) == "proof_invalid"


def test_one_of_many_threads_uses_a_proof() -> None:
    """Of racing requests with one proof exactly one is served."""
    server, start, won = verifier(), threading.Barrier(8), []
    proof = made()

    def race() -> None:
        start.wait()
        try:
            won.append(check(server, proof))
        except CredentialError as exc:
            assert exc.code == "proof_replayed"

    together(race)
    assert len(won) == 1


def test_a_full_memory_refuses_new_proofs_not_old_ones() -> None:
    """Nobody can make it forget a used proof; when those are too old there is room again."""
    clock = FrozenClock()
    server = verifier(clock, replays=MemoryReplays(3, max_per_key=3))
    stranger = SigningKey.generate()
    for i in range(3):
        check(server, made({"jti": f"p-{i}"}))
    assert code_of(server, of(stranger, "p-3"), jkt=stranger.kid) == "status_unavailable"
    assert code_of(server, made({"jti": "p-0"})) == "proof_replayed"
    clock.now += 36
    check(server, made({"jti": "p-4", "iat": NOW + 36}))


def of(key: SigningKey, jti: str, **claims: Any) -> str:
    jwk = {k: v for k, v in key.public_jwk().items() if k in ("kty", "crv", "x", "y")}
    return made({"jti": jti, **claims}, {"jwk": jwk}, key)


def test_one_holder_can_not_use_up_the_memory_of_the_others() -> None:
    """A key that was used as often as it may be is refused by itself, and forgotten with its proofs. The twin bounds the total alone."""
    clock, stranger = FrozenClock(), SigningKey.generate()
    replays = MemoryReplays(200)
    server = verifier(clock, replays=replays)
    for i in range(2):
        check(server, made({"jti": f"p-{i}"}))
    clock.now += 20
    for i in range(2, 50):
        assert code_of(server, made({"jti": f"p-{i}", "iat": NOW + 20})) == "proof_limit"
    assert code_of(server, made({"jti": "p-0"})) == "proof_replayed"
    check(server, of(stranger, "p-2", iat=NOW + 20), jkt=stranger.kid)
    clock.now += 16  # its own are too old, the other's is not
    check(server, made({"jti": "p-50", "iat": NOW + 36}))
    check(server, of(stranger, "p-3", iat=NOW + 36), jkt=stranger.kid)
    assert code_of(server, of(stranger, "p-4", iat=NOW + 36), jkt=stranger.kid) == "proof_limit"
    clock.now += 36
    check(server, made({"jti": "p-51", "iat": NOW + 72}))
    assert len(replays._of_key) == len(replays._seen) == 1
    twin = verifier(replays=MemoryReplays(200, max_per_key=200))
    for i in range(200):
        check(twin, made({"jti": f"p-{i}"}))
    assert code_of(twin, of(stranger, "p-2"), jkt=stranger.kid) == "status_unavailable"


def test_an_id_that_is_too_old_to_matter_may_come_again() -> None:
    """By then the proof itself is refused for its age."""
    replays = MemoryReplays(100)
    assert replays.first("k", "a", 35.0, 0.0) and not replays.first("k", "a", 60.0, 34.9)
    assert replays.first("k", "a", 95.0, 60.0) and not replays.first("k", "a", 95.0, 60.0)


def test_a_failing_memory_refuses() -> None:
    """Where nobody can tell whether it was used, it was."""

    class Broken:
        def first(self, key: str, proof_id: str, until: float, now: float) -> bool:
            raise OSError

    assert code_of(verifier(replays=Broken()), made()) == "status_unavailable"


def test_a_nonce_is_the_servers_and_fresh() -> None:
    """Missing, made up, altered, of another server or too old: `proof_nonce`, and nothing is used up."""
    clock = FrozenClock()
    nonces = Nonces(b"s" * 32)
    server = verifier(clock, nonces=nonces)
    good = server.nonce()
    assert good is not None
    others = [None, "", "x", "A" * 32, good[:-1], good[:-1] + ("B" if good[-1] == "A" else "A"), Nonces().issue(NOW), "\ud800" * 40]
    for nonce in others:
        assert code_of(server, made({} if nonce is None else {"nonce": nonce})) == "proof_nonce"
    check(server, made({"nonce": good}))
    assert Nonces(b"s" * 32).accepts(good, NOW)  # another process of the same service
    clock.now += 300
    assert code_of(server, made({"jti": "p-2", "nonce": good, "iat": NOW + 300})) == "proof_nonce"
    assert code_of(server, made({"jti": "p-3", "nonce": nonces.issue(NOW + 400), "iat": NOW + 300})) == "proof_nonce"
    assert verifier().nonce() is None


@pytest.mark.parametrize("make", [
    *(lambda url=url: verifier(public_url=url) for url in (
        "", "/api", "bank.example/api", "https://bank.example/api?x=1", "https://bank.example/api#x", "https://u@bank.example/api",
    )), lambda: Nonces(b"short"), lambda: MemoryReplays(0), lambda: MemoryReplays(10, max_per_key=0), lambda: MemoryReplays(10, max_per_key=11),
])
def test_settings_can_not_weaken(make: Any) -> None:
    """What would loosen a check is refused at construction."""
    with pytest.raises(ConfigError):
        make()
