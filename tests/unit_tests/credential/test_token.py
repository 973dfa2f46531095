"""Tokens: what is issued, what is believed, and what never leaks."""

import copy
import json
import pickle
import re
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest

from langchain_runtime_authz.credential import token as token_module
from langchain_runtime_authz.credential.issuer import Issuer, LocalIssuer, amint, claims_of, mint
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP, Credential, TaskClaim, TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import ConfigError, CredentialError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.grant import Constraint, Grant
from tests.unit_tests.credential import tokens
from tests.unit_tests.credential.tokens import BANK, NOW

KEY = SigningKey.generate()
ISSUER = LocalIssuer(KEY)


GRANT = Grant(tools=("send_money",), args={"send_money": {"amount": Constraint(le=100)}})
a_request = partial(tokens.a_request, grant=GRANT)


def forged(claims: object = None, header: object = None, key: SigningKey = KEY) -> str:
    """Return a token that `key` really signed, whatever it says."""
    return tokens.forged(key, ISSUER.issuer, claims_of(a_request(), ISSUER.issuer) if claims is None else claims, header)


def verifier(**changes: Any) -> Verifier:
    return Verifier(**{"issuer": ISSUER.issuer, "jwks": ISSUER.jwks(), **changes})


def refused(token: Any, *, now: int = NOW, tenant: str | None = None, audience: str = BANK, **setup: Any) -> str:
    with pytest.raises(CredentialError) as caught:
        verifier(**setup).verify(token, audience=audience, tenant=tenant, now=now)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    if isinstance(token, str) and len(token) > 40:
        shown = "".join(traceback.format_exception(caught.value))
        assert not any(part and part in shown for part in token.split("."))
    return caught.value.code


def changed(**claims: Any) -> dict[str, Any]:
    return {**claims_of(a_request(), ISSUER.issuer), **claims}


def test_a_token_says_who_for_whom_where_and_how_long() -> None:
    """Claims are spelled as RFC 7519, 8693 and 9396 spell them."""
    expected = {
        "iss": "urn:langchain-runtime-authz:local", "sub": "alice", "sub_type": "user", "aud": BANK, "exp": NOW + 60,
        "iat": NOW, "jti": "j-1", "txn": "run-1", "client_id": "urn:langchain-runtime-authz:agent:supervisor/payer",
        "tenant": "acme",
        "act": {
            "iss": "urn:langchain-runtime-authz:local", "sub": "urn:langchain-runtime-authz:agent:supervisor/payer",
            "act": {
                "iss": "urn:langchain-runtime-authz:local", "sub": "urn:langchain-runtime-authz:agent:supervisor",
            },
        },
        "authorization_details": [
            {
                "type": "urn:langchain-runtime-authz:grant", "actions": ["tools/call"], "identifier": "send_money",
                "grant": {"tools": ["send_money"], "args": {"send_money": {"amount": {"le": 100}}}},
            },
        ],
        "task": {"id": "t", "epoch": 2, "digest": "sha256:00"},
    }
    assert expected == jwt.decode(ISSUER.issue(a_request()), options={"verify_signature": False})
    assert jwt.get_unverified_header(ISSUER.issue(a_request())) == {"alg": "ES256", "kid": KEY.kid, "typ": TYP}


def test_the_list_of_claims_is_pinned() -> None:
    """A claim may be added, never renamed or removed: this list only grows."""
    expected = "iss sub aud exp nbf iat jti act client_id authorization_details cnf txn tenant sub_type task approval"
    named = "ISSUER SUBJECT AUDIENCE EXPIRES_AT NOT_BEFORE ISSUED_AT TOKEN_ID ACTOR CLIENT_ID AUTHORIZATION_DETAILS CONFIRMATION"
    named += " TRANSACTION TENANT SUBJECT_TYPE TASK APPROVAL"
    assert expected.split() == [getattr(token_module, name) for name in named.split()]


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256"])
def test_what_was_issued_verifies(alg: Any) -> None:
    """A fresh token verifies at its audience, and its credential tells the same."""
    issuer = LocalIssuer(SigningKey.generate(alg))
    token = issuer.issue(a_request(cnf_jkt="thumb"))
    got = verifier(jwks=issuer.jwks()).verify(token, audience=BANK, tenant="acme", now=NOW, bound=True)
    assert (got.subject, got.tenant, got.audience, got.jti, got.txn, got.epoch, got.expires_at) == (
        "alice", "acme", BANK, "j-1", "run-1", 2, NOW + 60,
    )  # fmt: skip
    assert got.actor == "urn:langchain-runtime-authz:agent:supervisor/payer" and got.token == token
    assert refused(token, jwks=issuer.jwks()) == "proof_missing"  # unless the caller says that it checks the proof
    assert got.claims["cnf"]["jkt"] == got.jkt == "thumb"
    assert got.actors == (got.actor, "urn:langchain-runtime-authz:agent:supervisor")
    assert (got.tools, got.issuer) == (("send_money",), issuer.issuer)
    assert got.kid == issuer.jwks()["keys"][0]["kid"]
    assert "grant" not in claims_of(a_request(grant=None), "i")["authorization_details"][0]


@pytest.mark.parametrize("claims", [
    changed(exp=str(NOW + 60)), changed(exp=float(NOW + 60)), changed(exp=True), changed(iat=None),
    changed(exp=10**400), changed(sub=""), changed(sub=["alice"]), changed(aud=[BANK]), changed(tenant=None),
    changed(jti=1), changed(iss="urn:other"), changed(client_id="another"), changed(act="payer"),
    changed(act={"iss": "x"}), changed(task={"id": "t", "digest": "d"}),
    changed(task={"id": 1, "digest": "d", "epoch": 1}), changed(task={"id": "t", "digest": 1, "epoch": 1}),
    changed(task={"id": "t", "digest": "d", "epoch": True}), changed(task={"id": "t", "digest": "d", "epoch": -1}),
    changed(task=[]), changed(authorization_details=[]), changed(authorization_details=5),
    changed(authorization_details={"type": "x"}), changed(authorization_details=[{"actions": []}]),
    changed(cnf="thumb"), changed(cnf={}), changed(nbf="soon"), changed(x=json.loads("[" * 40 + "]" * 40)), [],
    "null", '"text"', "{", "", "[" * 20_000 + "]" * 20_000,
], ids=lambda _: "case")
def test_a_claim_of_another_type_is_refused(claims: object) -> None:
    """No coercion: what is not of the very type is refused, although properly signed."""
    assert refused(forged(claims)[: 16 * 1024]) == "credential_invalid"


@pytest.mark.parametrize(("claims", "header"), [({"exp": NOW + 66}, {}), ({"exp": NOW}, {}), ({}, {"kid": 7})], ids=str)
def test_bounds_that_no_published_vector_has(claims: dict[str, int], header: dict[str, Any]) -> None:
    """The vectors have all others (`test_token_vectors`)."""
    token = forged(changed(**claims), {"alg": "ES256", "kid": KEY.kid, "typ": TYP, **header})
    assert refused(token) == "credential_invalid"


def test_a_token_and_an_audience_have_one_spelling() -> None:
    """Nothing may stand around a token, and a token for one resource is nothing at another."""
    token = ISSUER.issue(a_request())
    for spelt in (" " + token, token + "\n", token + "=", token.replace(".", ".\u200b", 1)):
        assert refused(spelt) == "credential_invalid"
    for audience in (BANK + "/", BANK.upper(), ""):
        assert refused(token, audience=audience) == "audience"


@pytest.mark.parametrize("jwks", [{}, {"keys": 1}, dict, lambda: 1 / 0], ids=lambda _: "keys")
def test_no_key_set_refuses(jwks: Any) -> None:
    """No document, or a failing fetch: nothing is believed, and the operator is told which of the two."""
    assert refused(ISSUER.issue(a_request()), jwks=jwks) == "keys_unavailable"


@pytest.mark.parametrize("answer", ["dead", "", "LIVE", None, True])
def test_what_is_not_live_is_revoked(answer: Any) -> None:
    """Status is asked with the claims; anything but `live`, or a failure, refuses."""
    asked: list[Mapping[str, Any]] = []

    def status(claims: Mapping[str, Any]) -> str:
        asked.append(claims)
        return "live" if len(asked) == 1 else answer

    looker = verifier(status=status)
    token = ISSUER.issue(a_request())
    assert looker.verify(token, audience=BANK, now=NOW).claims is asked[0]
    with pytest.raises(CredentialError, match="credential_revoked: "):
        looker.verify(token, audience=BANK, now=NOW)


def test_a_failing_status_is_revoked() -> None:
    """Where nobody can tell, the token is dead."""

    def status(claims: Mapping[str, Any]) -> str:
        raise OSError

    assert refused(ISSUER.issue(a_request()), status=status) == "status_unavailable"


@pytest.mark.parametrize("ttl", [61, 0, -1, 3600])
def test_a_token_lives_sixty_seconds(ttl: int) -> None:
    """The issuer signs nothing that lives longer."""
    with pytest.raises(CredentialError, match="credential_unavailable: "):
        ISSUER.issue(a_request(expires_at=NOW + ttl))


def test_a_token_fits_its_reader() -> None:
    """What a verifier would refuse for its size is not issued."""
    huge = Grant(tools=tuple(f"tool_{i}" for i in range(4000)))
    with pytest.raises(CredentialError, match="credential_unavailable: "):
        ISSUER.issue(a_request(grant=huge))


@pytest.mark.parametrize("make", [
    lambda: LocalIssuer(issuer=""), lambda: verifier(algorithms=()), lambda: verifier(algorithms=("HS256",)),
    lambda: verifier(issuer=7), lambda: verifier(algorithms="ES256"), lambda: verifier(issuer=""),
])
def test_settings_can_not_weaken(make: Callable[[], object]) -> None:
    """What would loosen a check is refused at construction."""
    with pytest.raises(ConfigError):
        make()


def test_a_credential_is_made_by_verification_only() -> None:
    """Nobody else can build one, and its claims do not change."""
    with pytest.raises(TypeError):
        Credential("a.b.c", {})
    got = mint(ISSUER, a_request())
    with pytest.raises(TypeError):
        got.claims["sub"] = "mallory"  # type: ignore[index]
    with pytest.raises(TypeError):
        got.claims["task"]["epoch"] = 9
    assert isinstance(got.claims["authorization_details"], tuple)


def test_only_two_modules_make_credentials() -> None:
    """`seal_credential` is called in the verifier and in the issuing path, nowhere else in the package."""
    package = Path(token_module.__file__).parents[1]
    users = {p.name for p in package.rglob("*.py") if re.search(r"\bseal_credential\(", p.read_text(encoding="utf-8"))}
    assert users == {"token.py", "verifier.py", "issuer.py"}


def test_a_credential_never_shows_its_token() -> None:
    """Not in text, copies, pickles, or what serialisers make of it."""
    got = mint(ISSUER, a_request())
    secret = got.token.split(".")[2]
    texts = [repr(got), str(got), f"{got}", json.dumps(got, default=str), repr(pickle.dumps(got))]
    texts.append(orjson.dumps(got, default=repr).decode())
    assert not any(secret in text or got.token[:20] in text for text in texts)
    assert copy.copy(got) is got and copy.deepcopy([got])[0] is got
    assert pickle.loads(pickle.dumps(got)) == "[credential]" and not hasattr(got, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(got)
    with pytest.raises(TypeError):
        orjson.dumps(got)


def test_a_request_survives_the_wire() -> None:
    """An issuer in another process is asked exactly the same."""
    for asked in (a_request(), a_request(grant=None, delegators=(), cnf_jkt="x")):
        assert TokenRequest.from_json(asked.to_json()) == asked
        assert claims_of(TokenRequest.from_json(asked.to_json()), "i") == claims_of(asked, "i")


@pytest.mark.parametrize("data", [
    b"", b"[]", b"null", a_request().to_json()[:-1] + b',"jti":"other"}',
    a_request().to_json()[:-1] + b',"scope":"all"}', a_request().to_json().replace(b'"epoch":2', b'"epoch":"2"'),
    a_request().to_json().replace(b'"tenant":"acme"', b'"tenant":""'),
])
def test_a_request_is_parsed_strictly(data: bytes) -> None:
    """Duplicates, unknown members and other types are refused on the issuer's side."""
    with pytest.raises(CredentialError):
        TokenRequest.from_json(data)


class Remote:
    """An issuer in another process, as far as this one can tell."""

    issuer = ISSUER.issuer

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def issue(self, request: TokenRequest) -> str:
        request = TokenRequest.from_json(request.to_json())
        return ISSUER.issue(request.model_copy(update=self.changes))

    async def aissue(self, request: TokenRequest) -> str:
        return self.issue(request)

    def jwks(self) -> Mapping[str, Any]:
        return ISSUER.jwks()


@pytest.mark.asyncio
async def test_a_remote_issuer_is_verified() -> None:
    """Its answer is believed after verification, sync and async, and not without a verifier."""
    remote: Issuer = Remote()
    assert isinstance(remote, Issuer) and isinstance(ISSUER, Issuer)
    assert mint(remote, a_request(), verifier=verifier()).jti == "j-1"
    assert (await amint(remote, a_request(), verifier=verifier())).jti == "j-1"
    assert (await amint(ISSUER, a_request())).jti == "j-1"
    with pytest.raises(ConfigError):
        mint(remote, a_request())
    with pytest.raises(ConfigError):
        await amint(remote, a_request())


@pytest.mark.parametrize("changes", [
    {"jti": "another"}, {"subject": Subject(type="service", id="alice")}, {"agent": "another"},
    {"task": TaskClaim(id="t", epoch=1, digest="sha256:00")}, {"grant": None}, {"txn": "another"}, {"cnf_jkt": "theirs"},
    {"audience": "https://evil.example"}, {"tenant": "umbrella"},
], ids=lambda _: "case")
def test_a_remote_issuer_answers_what_was_asked(changes: dict[str, Any]) -> None:
    """A properly signed token for something else is refused."""
    with pytest.raises(CredentialError):
        mint(Remote(**changes), a_request(), verifier=verifier())


def test_the_token_module_stays_light() -> None:
    """Claim names and tickets import no cryptography."""
    folder = Path(token_module.__file__).parent
    for name in ("token.py", "ticket.py", "token_leak.py"):
        assert not re.search(r"^(from|import) (jwt|cryptography)", (folder / name).read_text(), re.MULTILINE)
