"""Tokens as each provider writes them, at its own profile and at the others'.

The tokens are made here, after the providers' documentation (Keycloak: after 26.7 itself). They are nobody's real tokens.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.errors import AuthzError, ConfigError
from langchain_runtime_authz.identity.oidc import OidcVerifier
from langchain_runtime_authz.identity.providers import PROVIDERS
from tests.unit_tests.identity.test_oidc import API, APP, IDP, NOW, token, verifier

NO_DEFAULTS = {"client_id": None, "jti": None}
USER = {"sub": "u1"}
# (header `typ`, claims): issuer, audience and times are added alike, so that only the profile can tell them apart.
ACCESS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "rfc9068": ("at+jwt", {**USER, "client_id": "web", "jti": "j1", "scope": "pay"}),
    "keycloak": ("JWT", {**USER, "azp": "web", "jti": "onrtac:1", "typ": "Bearer", "sid": "s1", "scope": "email pay"}),
    "keycloak, header by RFC 9068": ("at+jwt", {**USER, "azp": "web", "jti": "onrtac:1", "typ": "Bearer", "sid": "s1"}),
    "entra 2.0": ("JWT", {**USER, "azp": "6e74172b", "azpacr": "0", "oid": "o1", "tid": "72f988bf", "uti": "fqi", "scp": "access_as_user", "ver": "2.0"}),
    "entra 1.0": ("JWT", {**USER, "appid": "6e74172b", "appidacr": "0", "oid": "o1", "tid": "72f988bf", "uti": "fqi", "scp": "access_as_user", "ver": "1.0"}),
    "auth0": ("JWT", {"sub": "auth0|u1", "aud": [API, "https://tenant.example/userinfo"], "azp": "web", "scope": "openid pay"}),
    "auth0, by RFC 9068": ("at+jwt", {"sub": "auth0|u1", "client_id": "web", "jti": "j1", "scope": "pay"}),
    "okta": (None, {"sub": "u1@example.com", "ver": 1, "jti": "AT.1", "cid": "0oa", "uid": "00u", "scp": ["pay"], "auth_time": NOW}),
}  # fmt: skip
SERVICE: dict[str, tuple[str | None, dict[str, Any]]] = {
    "keycloak": ("JWT", {"sub": "5b2c", "azp": "cron", "client_id": "cron", "jti": "trrtcc:1", "typ": "Bearer", "preferred_username": "service-account-cron"}),
    "keycloak, without the scope `profile`": ("JWT", {"sub": "5b2c", "azp": "cron", "client_id": "cron", "jti": "trrtcc:1", "typ": "Bearer"}),
    "keycloak, by its host": ("JWT", {"sub": "5b2c", "azp": "cron", "clientHost": "10.0.0.7", "jti": "trrtcc:1", "typ": "Bearer"}),
    "keycloak, by its address": ("JWT", {"sub": "5b2c", "azp": "cron", "clientAddress": "10.0.0.7", "jti": "trrtcc:1", "typ": "Bearer"}),
    "entra, with the optional claim": ("JWT", {"sub": "o1", "oid": "o1", "azp": "6e7", "azpacr": "1", "tid": "72f", "idtyp": "app", "roles": ["Pay"], "ver": "2.0"}),
    "entra, without it": ("JWT", {"sub": "o1", "oid": "o1", "azp": "6e7", "azpacr": "1", "tid": "72f", "roles": ["Pay"], "ver": "2.0"}),
    "auth0": ("JWT", {"sub": "abc@clients", "azp": "abc", "gty": "client-credentials"}),
    "okta": (None, {"sub": "0oa", "cid": "0oa", "jti": "AT.2", "scp": ["pay"]}),
}  # fmt: skip
ID: dict[str, tuple[str | None, dict[str, Any]]] = {
    "keycloak": ("JWT", {**USER, "azp": APP, "jti": "i1", "typ": "ID", "at_hash": "x", "sid": "s1", "nonce": "n"}),
    "entra": ("JWT", {**USER, "oid": "o1", "tid": "72f988bf", "uti": "fqi", "ver": "2.0", "nonce": "n"}),
    "auth0": ("JWT", {"sub": "auth0|u1", "sid": "s1", "nonce": "n"}),
    "okta": (None, {"sub": "00u", "ver": 1, "jti": "ID.1", "amr": ["pwd"], "at_hash": "x"}),
}
# Where a token passes besides its own profile: only what follows RFC 9068 is that profile's own, and Auth0's.
ALSO = {"rfc9068": {"auth0"}, "auth0, by RFC 9068": {"rfc9068"}, "keycloak": {"auth0"}, "keycloak, header by RFC 9068": {"auth0"}}


def made(fixture: tuple[str | None, dict[str, Any]], **claims: Any) -> str:
    typ, own = fixture
    return token(header={"typ": typ}, **{**NO_DEFAULTS, **own, **claims})


def own(name: str) -> str:
    return name.split(",", maxsplit=1)[0].split(" ", maxsplit=1)[0]


def code_and_text(text: str, **options: Any) -> tuple[str, str]:
    with pytest.raises(AuthzError) as refused:
        verifier(**options).verify(text, now=NOW)
    return refused.value.code, str(refused.value)


@pytest.mark.parametrize("name", ACCESS)
def test_a_user_by_the_providers_own_profile(name: str) -> None:
    found = verifier(provider=own(name), client_id=None).verify(made(ACCESS[name]), now=NOW)
    assert (found.type, found.id) == ("user", ACCESS[name][1]["sub"])
    assert found.properties["client_id"] in ("web", "6e74172b", "0oa")


@pytest.mark.parametrize("name", SERVICE)
def test_a_client_by_the_providers_own_profile(name: str) -> None:
    """A machine's token is never a user's, also where the provider marks it by nothing but a missing claim."""
    assert verifier(provider=own(name), client_id=None).verify(made(SERVICE[name]), now=NOW).type == "service"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", ACCESS)
def test_a_token_at_another_providers_profile(name: str, provider: str) -> None:
    """Refused, with what was expected and found; even if the issuer and the key were the same."""
    if provider == own(name) or provider in ALSO.get(name, ()):
        assert verifier(provider=provider, client_id=None).verify(made(ACCESS[name]), now=NOW)
        return
    code, text = code_and_text(made(ACCESS[name]), provider=provider, client_id=None)
    assert code == "identity_invalid" and f"provider `{provider}`: expected" in text
    assert "found" in text


@pytest.mark.parametrize("name", ID)
def test_an_id_token_is_not_an_access_token(name: str) -> None:
    """Not even one whose audience is the service; as an ID token it is taken if the application asks for those."""
    provider = own(name)
    assert code_and_text(made(ID[name], aud=API), provider=provider, client_id=None)[0] == "identity_invalid"
    assert code_and_text(made(ID[name], aud=[API, APP]), provider=provider, client_id=None)[0] == "identity_invalid"
    bare = {"nonce": None, "at_hash": None, "azp": APP}  # without what only an ID token has
    for audience in (API, [API, APP]):
        assert code_and_text(made(ID[name], aud=audience, **bare), provider=provider, client_id=None)[0] == "identity_invalid"
    assert verifier(provider=provider).verify(made(ID[name], aud=APP), now=NOW).type == "user"


@pytest.mark.parametrize("name", [n for n in ACCESS if n != "rfc9068"])
def test_an_access_token_is_not_an_id_token(name: str) -> None:
    """Not even one whose audience is the client."""
    code, _ = code_and_text(made(ACCESS[name], aud=APP), provider=own(name), audience=None)
    assert code == "identity_invalid"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", ["entra 1.0", "okta"])
def test_an_access_token_is_not_an_id_token_by_any_profile(name: str, provider: str) -> None:
    """Also where the application asks for ID tokens only and sets no profile; it names no `azp`, which would tell."""
    assert code_and_text(made(ACCESS[name], aud=APP), provider=provider, audience=None)[0] == "identity_invalid"


def test_a_clients_own_token_is_no_users_id_token() -> None:
    assert code_and_text(made(SERVICE["okta"], aud=APP), audience=None)[0] == "identity_invalid"


@pytest.mark.parametrize("sub", ["spiffe://bank.example/payer", "system:serviceaccount:default:payer"])
def test_a_workload_by_its_platforms_issuer_is_no_user(sub: str) -> None:
    """SPIRE's OpenID Connect discovery and Kubernetes: the token has the shape of an ID token."""
    text = token(header={"typ": "JWT"}, **NO_DEFAULTS, aud=APP, sub=sub)
    found = verifier(audience=None).verify(text, now=NOW)
    assert (found.type, found.id) == ("service", sub)


def test_a_token_bound_to_a_key_is_refused() -> None:
    """A thief cannot use it without the key, and nothing here asks for the key."""
    assert code_and_text(token(cnf={"jkt": "x"}))[0] == "identity_invalid"
    assert code_and_text(token(cnf={"x5t#S256": "x"}))[0] == "identity_invalid"


def demanded(name: str) -> set[str]:
    """The claims that an access token of this kind cannot lack."""
    (typ, claims), profile = ACCESS[name], PROVIDERS[own(name)]
    needs = {*profile.client, *profile.required, *(["typ"] if profile.payload else []), *(profile.some if typ == "JWT" else ())}
    return needs & claims.keys() - {profile.user}


@pytest.mark.parametrize(("name", "missing"), [(name, claim) for name in ACCESS for claim in sorted(demanded(name))])
def test_a_token_without_what_its_profile_demands(name: str, missing: str) -> None:
    assert code_and_text(made(ACCESS[name], **{missing: None}), provider=own(name), client_id=None)[0] == "identity_invalid"


EXPLAINED = {
    "a Keycloak token at the default profile": (("keycloak", {}), "rfc9068", "`typ` at+jwt, found `JWT`"),
    "with the switch too": (("keycloak, header by RFC 9068", {}), "rfc9068", "`client_id` to name the client, found `azp`"),
    "an Okta token at Entra's": (("okta", {"cid": "0oa"}), "entra", "`typ` jwt, found none"),
    "another audience": (("keycloak", {"aud": "account"}), "keycloak", f"`aud` {API}, found `account`"),
    "text that is not plain": (("keycloak", {"aud": "a\nb"}), "keycloak", "found another value"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_refusal_says_what_was_expected_and_found(name: str) -> None:
    (fixture, claims), provider, said = EXPLAINED[name]
    assert said in code_and_text(made(ACCESS[fixture], **claims), provider=provider, client_id=None)[1]


def test_a_refresh_or_logout_token_is_neither() -> None:
    for typ, payload in (("JWT", "Refresh"), ("JWT", "Offline"), ("JWT", "Logout"), ("logout+jwt", None)):
        fixture = (typ, {**ACCESS["keycloak"][1], "typ": payload, "azp": APP})
        for audience in (API, APP):
            assert code_and_text(made(fixture, aud=audience), provider="keycloak")[0] == "identity_invalid"


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigError, match="keycloak"):
        OidcVerifier(IDP, audience=API, provider="keyclock")


@given(
    st.sampled_from(sorted(PROVIDERS)),
    st.one_of(st.none(), st.sampled_from(["JWT", "at+jwt", "application/AT+JWT"]), st.integers(), st.text(max_size=5)),
    st.dictionaries(st.sampled_from(["typ", "azp", "appid", "cid", "client_id", "jti", "tid", "ver", "scp", "nonce", "at_hash"]), st.one_of(st.text(max_size=5), st.integers(), st.lists(st.text(max_size=3), max_size=3))),
)  # fmt: skip
def test_claims_of_any_shape_match_or_are_explained(provider: str, typ: Any, claims: dict[str, Any]) -> None:
    wrong = PROVIDERS[provider].mismatch({} if typ is None else {"typ": typ}, claims)
    assert wrong is None or (len(wrong) < 400 and "expected" in wrong)
    assert wrong is not None or PROVIDERS[provider].client_of(claims) is not None
