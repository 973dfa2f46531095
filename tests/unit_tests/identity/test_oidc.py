"""Whom a provider's token speaks for, and which tokens prove nothing; without a network."""

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.errors import AuthzError, ConfigError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.oidc import OidcVerifier
from langchain_runtime_authz.identity.providers import PROVIDERS
from tests.endpoints import answered

IDP, API, APP, NOW = "https://idp.example/realm", "https://agent.example", "agent-app", 1_764_000_000
KEY, OTHER = SigningKey.generate(), SigningKey.generate()


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(key: SigningKey = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """An access token by default; a claim or header member that is `None` is left out."""
    head = {"typ": "at+jwt", "alg": key.alg, "kid": key.kid, **(header or {})}
    body = {
        "iss": IDP, "aud": API, "sub": "248289761001", "client_id": "web", "jti": "j1", "iat": NOW, "exp": NOW + 300, **claims,
    }  # fmt: skip
    text = ".".join(b64({k: v for k, v in part.items() if v is not None}) for part in (head, body))
    return f"{text}.{b64(key.sign(text.encode()))}"


def id_token(**claims: Any) -> str:
    header = {"typ": claims.pop("typ", None)}
    return token(header=header, **{"aud": APP, "client_id": None, "jti": None, **claims})


class Provider:
    """A provider whose documents a test may bend; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.document: Any = {"issuer": IDP, "jwks_uri": f"{IDP}/jwks"}
        self.keys: Any = KEY.jwks()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.rsplit("/", 1)[1])
        found = self.document if request.url.path.endswith("openid-configuration") else self.keys
        if isinstance(found, httpx.Response):
            return found
        return httpx.Response(200, json=found)


def verifier(idp: Provider | None = None, **options: Any) -> OidcVerifier:
    return OidcVerifier(IDP, **{"audience": API, "client_id": APP, "tls": answered(idp or Provider()), **options})


def refusal(given: Any, **options: Any) -> str:
    with pytest.raises(AuthzError) as refused:
        verifier(**options).verify(given, now=NOW)
    assert not isinstance(given, str) or len(given) < 20 or given not in str(refused.value)
    return refused.value.code


USERS = {
    "an access token": token(), "an id token": id_token(), "an id token that says so": id_token(typ="JWT"),
    "for several audiences": id_token(aud=[APP, "other"], azp=APP),
    "with a nonce that only the client can check": id_token(nonce="n-0S6_WzA2Mj"),
    "with fractions of seconds": token(iat=NOW + 0.5, exp=NOW + 300.5),
    "with members of its own in the header": token(header={"x5t": "abc"}),
    "as the long media type": token(header={"typ": "application/at+jwt"}),
}


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("go", ["sync", "async"])
def test_a_user(name: str, go: str) -> None:
    """Is who the provider says, on either road."""
    v = verifier()
    subject = v.verify(USERS[name], now=NOW) if go == "sync" else asyncio.run(v.averify(USERS[name], now=NOW))
    assert (subject.type, subject.id, subject.properties["iss"]) == ("user", "248289761001", IDP)


SERVICES = {
    "the client itself": {"sub": "web"}, "no subject": {"sub": None}, "Entra ID": {"idtyp": "app"},
    "Auth0": {"sub": "abc@clients"}, "Auth0 grant": {"gty": "client-credentials"},
    "Keycloak": {"preferred_username": "service-account-cron"},
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_client_is_no_user(name: str) -> None:
    """A cron job with a token of its own is a service."""
    assert verifier().verify(token(**SERVICES[name]), now=NOW).type == "service"


def test_an_id_token_of_an_authorized_party_alone_is_a_service() -> None:
    """`azp` without `sub` names a client."""
    subject = verifier().verify(id_token(sub=None, azp=APP), now=NOW)
    assert (subject.type, subject.id) == ("service", APP)


@pytest.mark.parametrize("sub", ["", 5, ["x"], "a\u202eb", "x" * 3000], ids=["empty", "number", "list", "bidi", "long"])
@pytest.mark.parametrize("make", [token, id_token])
def test_a_user_with_an_odd_name_is_not_the_client(make: Any, sub: Any) -> None:
    """A `sub` that is there and no name is refused; only one that is missing makes a token the client's own."""
    assert refusal(make(sub=sub, azp=APP)) == "identity_invalid"


def test_who_acts_for_somebody_is_an_agent() -> None:
    """RFC 8693: the actor calls; whom it acts for is a property, and no user calls."""
    subject = verifier().verify(token(act={"sub": "planner", "act": {"sub": "root"}}), now=NOW)
    assert (subject.type, subject.id, subject.properties["on_behalf_of"]) == ("agent", "planner", "248289761001")
    for act in ({}, {"sub": ""}, "planner", [], 7):
        assert refusal(token(act=act)) == "identity_invalid"


def test_a_verified_address_is_the_users_own() -> None:
    """It counts as theirs in arguments; an unverified one does not."""
    assert verifier().verify(token(email="a@x.example", email_verified=True), now=NOW).properties["identifiers"] == ["a@x.example"]
    for claim in (False, "true", None, 1):
        assert "identifiers" not in verifier().verify(token(email="a@x.example", email_verified=claim), now=NOW).properties


BAD = {
    "empty": "", "no token": "a.b", "not text": 7, "too large": "x" * 20_000,
    "alg none": f"{b64({'typ': 'at+jwt', 'alg': 'none', 'kid': KEY.kid})}.{b64({'iss': IDP})}.",
    "hmac": token(header={"alg": "HS256"}), "alg a list": token(header={"alg": ["ES256"]}), "another key": token(OTHER),
    "another key under its name": token(OTHER, header={"kid": KEY.kid}), "no kid": token(header={"kid": None}),
    "critical": token(header={"crit": ["exp"]}), "another typ": token(header={"typ": "logout+jwt"}),
    "our own typ": token(header={"typ": "runtime-authz+jwt"}), "typ a number": token(header={"typ": 7}),
    "another issuer": token(iss="https://idp.example/other"), "the issuer with a slash": token(iss=IDP + "/"),
    "another audience": token(aud="https://else.example"), "audience of an id token as access": token(aud=APP),
    "audience within": token(aud=API + "/x"), "audience mixed": token(aud=[API, 7]), "no audience": token(aud=None),
    "no client": token(client_id=None), "no jti": token(jti=None),
    "an access audience in an id token": id_token(aud=API), "another authorized party": id_token(azp="other"),
    "several audiences without party": id_token(aud=[APP, "other"]), "expired": token(exp=NOW - 6),
    "no expiry": token(exp=None), "expiry a text": token(exp=str(NOW + 60)), "expiry true": token(exp=True),
    "from the future": token(iat=NOW + 60), "no issue time": token(iat=None), "not yet": token(nbf=NOW + 60),
    "nbf a text": token(nbf="0"), "lives a year": token(exp=NOW + 365 * 86400), "infinite": token(exp=float("inf")),
    "an actor that is none": token(act=0), "duplicate member": "",
    "a logout token": id_token(events={"http://schemas.openid.net/event/backchannel-logout": {}}),  # signed like an ID token
}
_twice = f"{b64({'typ': 'at+jwt', 'alg': 'ES256', 'kid': KEY.kid})}." + b64(b'{"iss":"a","iss":"' + IDP.encode() + b'"}')
BAD["duplicate member"] = f"{_twice}.{b64(KEY.sign(_twice.encode()))}"
for _encoding in ("utf-16", "utf-8-sig"):
    _parts = [json.dumps({"typ": "at+jwt", "alg": "ES256", "kid": KEY.kid}).encode(_encoding), json.dumps({"iss": IDP}).encode(_encoding)]
    _body = ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in _parts)
    BAD[_encoding] = f"{_body}.{b64(KEY.sign(_body.encode()))}"


@pytest.mark.parametrize("name", BAD)
def test_what_proves_nothing_is_refused(name: str) -> None:
    """With one code, and never quoting the token."""
    assert refusal(BAD[name]) == "identity_invalid"


def test_a_kind_that_was_not_asked_for_is_refused() -> None:
    """A service that takes access tokens takes no ID tokens, and the other way round."""
    assert refusal(id_token(), client_id=None) == "identity_invalid"
    assert refusal(token(), audience=None) == "identity_invalid"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_access_token_for_the_client_is_not_an_id_token(provider: str) -> None:
    """If its `aud` is the client and its header says `JWT`, only `scope` tells it from an ID token: the twin is one."""
    access = {"typ": "JWT", "scope": "pay"}
    assert refusal(id_token(**access), audience=None, provider=provider) == "identity_invalid"
    assert verifier(audience=None, provider=provider).verify(id_token(**{**access, "scope": None}), now=NOW).type == "user"


LIES: dict[str, dict[str, Any]] = {
    "another issuer": {"document": {"issuer": "https://evil.example", "jwks_uri": f"{IDP}/jwks"}},
    "no issuer": {"document": {"jwks_uri": f"{IDP}/jwks"}},
    "a plain jwks uri": {"document": {"issuer": IDP, "jwks_uri": "http://idp.example/jwks"}},
    "a file": {"document": {"issuer": IDP, "jwks_uri": "file:///etc/passwd"}},
    "no jwks uri": {"document": {"issuer": IDP}},
    "a list": {"document": []},
    "an error": {"document": httpx.Response(500)},
    "a redirect": {"document": httpx.Response(302, headers={"location": "https://evil.example"})},
    "keys that are none": {"keys": []},
    "keys an error": {"keys": httpx.Response(503)},
}


@pytest.mark.parametrize("name", LIES)
def test_a_provider_that_lies_or_fails_proves_nobody(name: str) -> None:
    """Nobody is let in, and the operator is told that the provider is at fault."""
    provider = Provider()
    for field, value in LIES[name].items():
        setattr(provider, field, value)
    with pytest.raises(AuthzError) as refused:
        verifier(provider).verify(token(), now=NOW)
    assert refused.value.code == "identity_unavailable"


def test_documents_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tokens, good or with unknown keys, cost two fetches within a second."""
    provider, clock = Provider(), [0.0]
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", lambda: clock[0])
    v = verifier(provider)
    for i in range(1000):
        if i % 2:
            v.verify(token(), now=NOW)
        else:
            with pytest.raises(AuthzError):
                v.verify(token(OTHER), now=NOW)
    assert provider.asked == ["openid-configuration", "jwks"]


def test_a_key_that_rotates_is_found_and_a_withdrawn_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new key within a second, the old one a minute later at most; the document after an hour."""
    provider, clock = Provider(), [0.0]
    monkeypatch.setattr("langchain_runtime_authz.credential.jwks.monotonic", lambda: clock[0])
    v = verifier(provider)
    v.verify(token(), now=NOW)
    provider.keys = OTHER.jwks()
    clock[0] = 2.0
    v.verify(token(OTHER), now=NOW)
    with pytest.raises(AuthzError) as refused:
        v.verify(token(), now=NOW)
    assert refused.value.code == "identity_invalid"
    provider.keys = httpx.Response(500)
    clock[0] = 120.0
    with pytest.raises(AuthzError) as refused:
        v.verify(token(OTHER), now=NOW)
    assert refused.value.code == "identity_unavailable"
    clock[0], provider.keys = 3700.0, OTHER.jwks()
    v.verify(token(OTHER), now=NOW)
    assert provider.asked.count("openid-configuration") == 2


@pytest.mark.parametrize(("issuer", "options"), [
    ("http://idp.example", {}), ("idp", {}), (IDP, {"audience": None, "client_id": None}),
    (IDP, {"algorithms": ("HS256",)}), (IDP, {"algorithms": ()}),
])
def test_a_verifier_that_can_not_work_is_refused(issuer: str, options: dict[str, Any]) -> None:
    """When it is made."""
    with pytest.raises(ConfigError):
        OidcVerifier(issuer, **{"audience": API, **options})


V = verifier()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(b64), st.tuples(*[st.binary(max_size=60).map(b64)] * 3).map(".".join)))
def test_arbitrary_text_is_refused(text: str) -> None:
    """With the code, and nothing else is raised."""
    with pytest.raises(AuthzError) as refused:
        V.verify(text, now=NOW)
    assert refused.value.code == "identity_invalid"


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["sub", "aud", "iat", "exp", "nbf", "act", "client_id", "azp", "email"]), st.one_of(st.none(), st.text(max_size=5), st.integers(), st.booleans(), st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))))
def test_claims_of_any_shape(claims: dict[str, Any]) -> None:
    """A signed token with claims of other types is a subject or a refusal; never a user out of an actor."""
    try:
        subject = V.verify(token(**claims), now=NOW)
    except AuthzError as refused:
        assert refused.code == "identity_invalid"
    else:
        assert isinstance(subject, Subject)
        assert subject.type != "user" or claims.get("act") is None
