"""Every parser of a service's side against arbitrary input: an answer or a refusal, never anything else."""

import asyncio
import json
import posixpath
import re
import unicodedata
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_runtime_authz._http import basic_auth
from langchain_runtime_authz._url import is_under, normal_target
from langchain_runtime_authz.credential.dpop_proof import read_proof
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.jwks import usable_keys
from langchain_runtime_authz.credential.jws import PRIVATE_MEMBERS
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.downstream.exchange import TokenExchange
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.resource_server.dpop import Nonces, ProofVerifier
from langchain_runtime_authz.resource_server.introspection import IntrospectionClient, IntrospectionEndpoint
from langchain_runtime_authz.resource_server.server import ResourceServer
from langchain_runtime_authz.resource_server.status import Offline
from tests.endpoints import answered
from tests.unit_tests.credential.tokens import BANK

KEY = SigningKey.generate()
ISSUER = LocalIssuer(KEY)
VERIFIER = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks())

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
json_values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4))
members = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "k", "kid", "alg", "use", "key_ops"])
words = st.sampled_from(["EC", "OKP", "RSA", "oct", "P-256", "Ed25519", "ES256", "sig", "enc", KEY.kid, "AQAB"])
jwks = st.dictionaries(members, words | json_values, max_size=9) | st.just(KEY.public_jwk()) | json_values
PIECES = (
    "a", "x", "..", ".", "%2e", "%2E", "%252e", "%25%32%65", "%25252e", "/", "%2f", "%252f", "\\", "%5c", "%255c", ";", ";p=1",
    "%3b", "%00", "%09", "%20", " ", "%c0%ae", "%c0%af", "%ef%bc%8e", "%ef%bc%8f", "%e2%80%a5", "%u002e", "%", "%2", "25", "2e", "%3f", "%23",
)  # fmt: skip
urls = st.text(max_size=40) | st.builds(
    "{}://{}{}{}".format, st.sampled_from(["http", "https", "HTTPS", "ftp"]), st.text("abc.@:[]/\\#?%2e", max_size=12),
    st.sampled_from(["", ":443", ":8443", ":x"]), st.text("/abc.%2Ee~?#", max_size=16),
)
paths = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@given(st.dictionaries(st.sampled_from(["keys", "x"]), st.lists(jwks, max_size=5) | json_values, max_size=2))
@settings(max_examples=300, deadline=None)
def test_a_key_set_yields_public_keys_or_nothing(document: dict[str, Any]) -> None:
    """Whatever it holds: what comes out can verify and cannot sign."""
    found = usable_keys(document)
    for kid, jwk in (found or {}).items():
        assert kid == jwk["kid"]
        assert not PRIVATE_MEMBERS & set(jwk)
        assert jwk["kty"] in ("EC", "OKP", "RSA")


@given(urls | paths.map("https://a.example/{}".format))
@example("https://a.example/%%32e")
@settings(max_examples=700, deadline=None)
def test_a_target_is_a_fixed_point(url: str) -> None:
    """One spelling: what was normalised once stays, and names the host that a client would connect to."""
    target = normal_target(url)
    if target is None:
        return
    assert normal_target(target) == target and "?" not in target
    assert "#" not in target and urlsplit(target).hostname == urlsplit(url).hostname


@given(urls, urls)
@settings(max_examples=400, deadline=None)
def test_under_never_crosses_an_origin(url: str, place: str) -> None:
    """A token goes to no other scheme, host or port than its place's."""
    if is_under(url, place):
        a, b = urlsplit(normal_target(url) or ""), urlsplit(normal_target(place) or "")
        assert (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port) and a.path.startswith(b.path)


def readings(path: str) -> set[str]:
    """What servers make of a path: decoded up to four times, in several ways, then resolved."""
    found = {path}
    for _ in range(4):
        for text in tuple(found):
            raw = unquote_to_bytes(text)
            overlong = raw.replace(b"\xc0\xae", b".").replace(b"\xc0\xaf", b"/")
            found |= {raw.decode("utf-8", "ignore"), raw.decode("latin-1"), overlong.decode("utf-8", "replace")}
            found.add(re.sub(r"%u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text))
    found |= {unicodedata.normalize("NFKC", text) for text in found}
    found |= {text.replace("\\", "/") for text in found}
    found |= {re.sub(r"[;?#][^/]*", "", text) for text in found}
    found |= {re.sub(r"[?#].*", "", text) for text in found} | {text.partition("\0")[0] for text in found}
    found |= {re.sub(r"(?<=\.)[\s\0]+(?=/|$)", "", text) for text in found}
    return {posixpath.normpath(text) for text in found}


@given(paths)
@example("..%252f..%252fadmin")
@settings(max_examples=1_000, deadline=None)
def test_what_is_under_a_path_stays_there_however_it_is_read(rest: str) -> None:
    """No number or manner of decoding leads out of the path that the audience names."""
    if is_under(f"https://a.example/x/{rest}", "https://a.example/x"):
        for read in readings(f"/x/{rest}"):
            assert read == "/x" or read.startswith("/x/"), read


def proofs_of(header: Any, claims: Any) -> str:
    from tests.unit_tests.credential.tokens import b64

    signing_input = f"{b64(json.dumps(header))}.{b64(json.dumps(claims))}"
    return f"{signing_input}.{b64(KEY.sign(signing_input.encode()))}"


@given(
    st.dictionaries(st.sampled_from(["typ", "alg", "jwk", "kid"]), json_values | words | st.just("dpop+jwt"), max_size=4),
    st.dictionaries(st.sampled_from(["jti", "htm", "htu", "iat", "ath", "nonce"]), json_values, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_a_proof_is_read_or_refused(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Properly signed nonsense is refused, with one of two codes."""
    jwk = {k: v for k, v in KEY.public_jwk().items() if k in ("kty", "crv", "x", "y")}
    for head in (header, {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}):
        try:
            read_proof(proofs_of(head, claims), htm="GET", htu=BANK, token="t", jkt=KEY.kid, now=1.0)
        except CredentialError as exc:
            assert exc.code == "proof_invalid"
        else:
            raise AssertionError("nonsense was believed")


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_is_a_nonce(text: str) -> None:
    """Only what was issued is accepted."""
    assert not Nonces(b"k" * 32).accepts(text, 1_764_000_000)


headers = st.lists(
    st.tuples(
        st.sampled_from(["authorization", "dpop", "x"]),
        st.text(max_size=30) | st.sampled_from(["Bearer ", "Bearer x", "DPoP x.y.z", "bearer " + ISSUER.issuer, "Basic x"]),
    ),
    max_size=4,
)


@given(headers, st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_request_has_an_answer(given_headers: list[tuple[str, str]], path: str) -> None:
    """Whatever is sent: refused with a code that has an HTTP answer of plain ASCII headers."""
    server = ResourceServer(
        verifier=VERIFIER, audience=BANK, tenant=None, status=Offline(), proofs=ProofVerifier(public_url=BANK, nonces=Nonces())
    )
    try:
        asyncio.run(server.authenticate(method="POST", path=path, headers=given_headers))
    except CredentialError as exc:
        refused = server.refusal(exc.code)
        assert refused.status in (400, 401, 403, 503)
        assert all((name + value).isascii() and (name + value).isprintable() for name, value in refused.headers)
    else:
        raise AssertionError("nobody was believed to be somebody")


@given(st.binary(max_size=200) | st.builds(lambda t: b"token=" + t.encode(errors="replace"), st.text(max_size=60)))
@settings(max_examples=150, deadline=None)
def test_any_form_has_an_answer(body: bytes) -> None:
    """The introspection endpoint answers `active: false` or an error, and never anything about a token."""
    secret = "a secret of a service"
    endpoint = IntrospectionEndpoint(verifier=VERIFIER, status=Offline(), clients={"bank": IntrospectionClient(secret, audiences=(BANK,))})

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url=BANK) as client:
            kind = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": basic_auth("bank", secret)}
            return await client.post("/", content=body, headers=kind)

    answer = asyncio.run(ask())
    assert answer.json() in ({"active": False}, {"error": "invalid_request"})


@given(st.integers(100, 599), json_values | st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_answer_to_an_exchange_is_a_token_or_a_refusal(status: int, body: Any) -> None:
    """Nothing else comes out, and no text of the endpoint's reaches the message but a clean error code."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "replace")
    endpoint = answered(lambda _: httpx.Response(max(status, 200), content=content))
    exchange = TokenExchange("https://login.example/token", tls=endpoint)
    try:
        exchange.exchange("mine")
    except CredentialError as exc:
        assert exc.code in ("exchange_refused", "exchange_failed") and str(exc).isprintable()
    else:
        raise AssertionError("no token was issued")
