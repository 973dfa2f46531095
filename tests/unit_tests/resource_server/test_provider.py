"""A service that takes a provider's tokens, its metadata (RFC 9728), and logouts at the provider."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from langchain_runtime_authz._http import basic_auth
from langchain_runtime_authz.errors import AuthzError, ConfigError
from langchain_runtime_authz.identity.oidc import Caller, LoggedOut
from langchain_runtime_authz.resource_server.introspection import Introspection
from langchain_runtime_authz.resource_server.logout import BackchannelLogout
from langchain_runtime_authz.resource_server.metadata import ResourceMetadata
from langchain_runtime_authz.resource_server.server import ProtectedApp, ProviderServer
from tests.endpoints import answered
from tests.unit_tests.credential.tokens import BANK
from tests.unit_tests.identity.test_oidc import APP, IDP, OTHER, Provider, id_token, token, verifier
from tests.unit_tests.resource_server.test_resource_server import app_of, asked, challenge, server
from tests.unit_tests.resource_server.test_resource_server import token as own_token

METADATA = ResourceMetadata(f"{BANK}/api", authorization_servers=[IDP], scopes=["crm.read", "crm.write"])


def now(**claims: Any) -> dict[str, Any]:
    at = int(time.time())
    return {"iat": at, "exp": at + 300, **claims}


def crm(idp: Provider | None = None, **options: Any) -> FastAPI:
    """Of the scope `crm.read`."""
    made = ProviderServer(verifier(idp, client_id=None), metadata=METADATA, **options).for_scopes("crm.read")
    app = FastAPI()

    @app.post("/pay")
    async def customers(caller: Caller = Depends(made)) -> Any:
        return [caller.subject.type, caller.subject.id, sorted(caller.scopes)]

    app.add_route(METADATA.path, METADATA)
    return app


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_token_with_the_scope_is_served() -> None:
    answer = asked(crm(), bearer(token(**now(scope="crm.read openid"))))
    assert (answer.status_code, answer.json()) == (200, ["user", "248289761001", ["crm.read", "openid"]])


REFUSED = {
    "no token": (dict, 401, ""),
    "without the scope": (lambda: bearer(token(**now(scope="openid"))), 403, 'error="insufficient_scope"'),
    "no scopes": (lambda: bearer(token(**now())), 403, 'scope="crm.read"'),
    "scopes of another shape": (lambda: bearer(token(**now(scope={"crm.read": 1}))), 403, 'scope="crm.read"'),
    "another audience": (lambda: bearer(token(**now(scope="crm.read", aud="https://else.example"))), 401, 'error="invalid_token"'),
    "an ID token": (lambda: bearer(id_token(**now(aud="https://agent.example"))), 401, 'error="invalid_token"'),
    "our own token": (lambda: bearer(own_token()), 401, 'error="invalid_token"'),
    "expired": (lambda: bearer(token(scope="crm.read")), 401, 'error="invalid_token"'),
    "dpop": (lambda: {"Authorization": f"DPoP {token(**now(scope='crm.read'))}"}, 401, ""),
    "two": (lambda: [("Authorization", "Bearer a"), ("Authorization", "Bearer b")], 400, 'error="invalid_request"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_is_wanted(name: str) -> None:
    """RFC 6750 §3.1 and RFC 9728 §5.1: the error, the scopes, and where a token can be had."""
    headers, status, said = REFUSED[name]
    answer = asked(crm(), headers())
    assert answer.status_code == status and said in challenge(answer)
    assert 'resource_metadata="https://bank.example/.well-known/oauth-protected-resource/api"' in challenge(answer)


@pytest.mark.parametrize("options", [{}, {"audience": None}], ids=str)
def test_a_service_takes_no_id_tokens(options: dict[str, Any]) -> None:
    """A verifier that accepts them, for sign-in or logout, is refused."""
    with pytest.raises(ConfigError):
        ProviderServer(verifier(**options))


def test_a_provider_that_is_down_is_not_the_callers_fault() -> None:
    idp = Provider()
    idp.keys = httpx.Response(503)
    answer = asked(crm(idp), bearer(token(**now(scope="crm.read"))))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("body", "status"),
    [({"active": True, "jti": "j1"}, 200), ({"active": False}, 401), ({"active": True, "jti": "other"}, 503), ([], 503)],
)
def test_a_session_that_ended_at_the_provider(body: Any, status: int) -> None:
    """Its introspection endpoint knows at once; the endpoint sees the token and the service's own name."""
    got: list[httpx.Request] = []

    def endpoint(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return httpx.Response(200, json=body)

    asks = Introspection(f"{IDP}/introspect", client_id="crm", client_secret="s", tls=answered(endpoint))
    assert asked(crm(status=asks), bearer(token(**now(scope="crm.read")))).status_code == status
    assert got[0].headers["authorization"] == basic_auth("crm", "s")


def test_the_metadata_are_served_where_rfc_9728_says() -> None:
    app = crm()
    assert METADATA.path == "/.well-known/oauth-protected-resource/api"
    document = asked_get(app, METADATA.path)
    assert document.json() == {
        "resource": f"{BANK}/api", "authorization_servers": [IDP], "bearer_methods_supported": ["header"],
        "scopes_supported": ["crm.read", "crm.write"],
    }  # fmt: skip
    assert asked(app, path=METADATA.path).status_code == 405


def asked_get(app: Any, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK, follow_redirects=True) as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_our_own_server_names_its_metadata_too() -> None:
    """Also for DPoP, and for an app that is protected as a whole."""
    made = server(metadata=ResourceMetadata(BANK, authorization_servers=[IDP])).for_tools("other")
    for answer in (asked(app_of(made)), asked(app_of(made), bearer(own_token())), asked(ProtectedApp(app_of(made), made))):
        for each in answer.headers.get_list("www-authenticate"):
            assert 'resource_metadata="https://bank.example/.well-known/oauth-protected-resource"' in each


@pytest.mark.parametrize("options", [
    {"resource": "bank"}, {"resource": "http://bank.example"}, {"resource": f"{BANK}?x=1"}, {"authorization_servers": []},
    {"authorization_servers": ["idp"]}, {"scopes": ["a b"]}, {"scopes": ['a"']}, {"scopes": [""]}, {"resource": f'{BANK}/"'},
], ids=str)
def test_metadata_that_cannot_be_served(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ResourceMetadata(**{"resource": BANK, "authorization_servers": [IDP], **options})


EVENTS = {"http://schemas.openid.net/event/backchannel-logout": {}}


def logout_token(key: Any = None, typ: str | None = "logout+jwt", **claims: Any) -> str:
    own = {"aud": APP, "client_id": None, "events": EVENTS, "sid": "s1", "jti": "out-1", **now(), **claims}
    return token(*([key] if key else []), header={"typ": typ}, **own)


def told(text: str, **options: Any) -> tuple[int, list[LoggedOut]]:
    heard: list[LoggedOut] = []
    app = BackchannelLogout(verifier(**options), heard.append)
    answer = asked(app, data={"logout_token": text})
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, heard


def test_a_logout_is_told() -> None:
    for claims in ({}, {"typ": "JWT", "sid": None}):
        status, (out,) = told(logout_token(**claims))
        assert (status, out.subject, out.session, out.token_id) == (200, "248289761001", claims.get("sid", "s1"), "out-1")


BAD_LOGOUTS = {
    "another key": logout_token(OTHER), "another client": logout_token(aud="else"),
    "no event": logout_token(events=None), "another event": logout_token(events={"x": {}}),
    "an id token": id_token(**now()), "with a nonce": logout_token(nonce="n"), "without an id": logout_token(jti=None),
    "with an id that is no text": logout_token(jti=7), "of nobody": logout_token(sub=None, sid=None),
    "an access token": logout_token(typ="at+jwt"), "expired": logout_token(iat=1, exp=2), "no token": "x",
}


@pytest.mark.parametrize("name", BAD_LOGOUTS)
def test_a_logout_that_is_not_the_providers(name: str) -> None:
    assert told(BAD_LOGOUTS[name]) == (400, [])


def test_a_logout_token_is_told_once() -> None:
    """A replay is refused while the token is valid, and is not one if the logout was not carried out."""
    heard: list[LoggedOut] = []

    def ended(out: LoggedOut) -> None:
        heard.append(out)
        if len(heard) == 1:
            raise OSError("the ledger is down")

    app = BackchannelLogout(verifier(), ended)
    texts = [logout_token(), logout_token(), logout_token(), logout_token(jti="out-2")]
    assert [asked(app, data={"logout_token": text}).status_code for text in texts] == [503, 200, 400, 200]
    assert [out.token_id for out in heard] == ["out-1", "out-1", "out-2"]


async def test_a_logout_that_is_sent_again_too_early_is_tried_again() -> None:
    """While the first attempt runs it may still fail; a refusal would tell the provider to give up."""
    reached, fails = asyncio.Event(), asyncio.Event()

    async def ended(_: LoggedOut) -> None:
        reached.set()
        await fails.wait()
        raise OSError("the ledger is down")

    app = BackchannelLogout(verifier(), ended)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
        first = asyncio.create_task(client.post("/", data={"logout_token": logout_token()}))
        await reached.wait()
        again = await client.post("/", data={"logout_token": logout_token()})
        fails.set()
        assert [again.status_code, (await first).status_code] == [503, 503]


def test_a_logout_token_signs_nobody_in() -> None:
    with pytest.raises(AuthzError):
        verifier().verify(logout_token(typ="JWT", aud=[APP], azp=APP))


def test_a_logout_that_cannot_be_verified_now_is_tried_again() -> None:
    """A request that is not a form with a token is refused."""
    idp = Provider()
    idp.keys = httpx.Response(500)
    assert asked(BackchannelLogout(verifier(idp), print), data={"logout_token": logout_token()}).status_code == 503
    assert asked(BackchannelLogout(verifier(), print), content=json.dumps({})).status_code == 400
