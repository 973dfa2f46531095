"""The shared HTTP client: whose token goes where, and what is exchanged for what."""

import copy
import pickle
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from langchain_runtime_authz._flow import Perform
from langchain_runtime_authz._url import is_under
from langchain_runtime_authz.credential.issuer import LocalIssuer, amint, mint
from langchain_runtime_authz.credential.ticket import Ticket, current_call
from langchain_runtime_authz.downstream.exchange import ACCESS_TOKEN, GRANT, JWT, ExchangeAuth, TokenExchange
from langchain_runtime_authz.downstream.httpx_auth import CallAuth, add_credential, httpx2_auth
from langchain_runtime_authz.errors import ConfigError, CredentialError
from tests.endpoints import answered
from tests.unit_tests.credential.tokens import BANK, a_request, ticket_scope

ISSUER = LocalIssuer()
STS = "https://login.example/token"
CRM = "https://crm.example"


def a_ticket(*audiences: str, refusals: Any = None) -> Ticket:
    ticket = Ticket(
        tool="pay", call_id="c", call_key="k", agent=("root",), epoch=1,
        decision_id="d-1", jti="j", idempotency_key="k", audiences=audiences, refusals=refusals, reaches=(CRM, CRM + "/v1"),
        mint=lambda audience, jkt: Perform(mint, amint, ISSUER, a_request(audience=audience, cnf_jkt=jkt)),
    )  # fmt: skip
    ticket.redeem()
    return ticket


class Service:
    """Keeps what it was sent, and answers as told."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.got: list[httpx.Request] = []
        self.answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(httpx.Request(request.method, request.url, headers=request.headers, content=request.content))
        return self.answers.pop(0) if self.answers else httpx.Response(200)


async def sent(road: str, service: Any, auth: Any, url: str, **options: Any) -> httpx.Response:
    if road == "sync":
        with httpx.Client(transport=httpx.MockTransport(service), auth=auth, **options) as client:
            return client.post(url)
    async with httpx.AsyncClient(transport=httpx.MockTransport(service), auth=auth, **options) as aclient:
        return await aclient.post(url)


ROADS = pytest.mark.parametrize("road", ["sync", "async"])


@ROADS
@pytest.mark.parametrize("url", [
    "https://evil.example/", "https://bank.example.evil.example/", "https://bank.example@evil.example/",
    "http://bank.example/", "https://bank.example:8443/", "https://svc:hunter2@else.example/", "https://sub.bank.example/",
])
async def test_a_token_goes_to_its_audience_and_nowhere_else(road: str, url: str) -> None:
    """Another host, port, scheme: refused before anything is minted or sent."""
    service, ticket = Service(), a_ticket(BANK)
    with ticket_scope(ticket), pytest.raises(CredentialError, match="audience: ") as refused:
        await sent(road, service, CallAuth(), url)
    assert "hunter2" not in str(refused.value) and service.got == [] and ticket.minted_tokens() == ()


@ROADS
@pytest.mark.parametrize("dpop", [False, True])
@pytest.mark.parametrize(
    "place", ["https://bank.example/other", "/other", "/v1/../other", "/v1/a", "https://evil.example/", "http://bank.example/v1"]
)
async def test_a_redirect_inherits_no_credential(road: str, dpop: bool, place: str) -> None:
    """An audience may be a path of its origin, and httpx keeps a token within the origin: ours goes nowhere it was not asked for."""
    audience = BANK + "/v1"
    service = Service(httpx.Response(307, headers={"Location": place, "DPoP-Nonce": "theirs"}))
    with ticket_scope(a_ticket(audience)):
        await sent(road, service, CallAuth(dpop=dpop), audience + "/pay", follow_redirects=True)
    assert "Authorization" in service.got[0].headers and ("DPoP" in service.got[0].headers) is dpop
    assert len(service.got) == 2
    assert not {"authorization", "dpop"} & set(service.got[1].headers)
    twin = Service(httpx.Response(307, headers={"Location": "/other"}))  # a token in an ordinary header goes along
    await sent(road, twin, None, audience + "/pay", follow_redirects=True, headers={"Authorization": "Bearer static"})
    assert twin.got[1].headers["Authorization"] == "Bearer static"


class Traced(httpx.Request):
    """What another library makes of httpx's requests."""


def test_a_subclass_of_a_request_inherits_no_credential_either() -> None:
    """Twin: without `add_credential`, the redirect has the token."""
    audience = BANK + "/v1/pay"
    tokens = []
    for carry in (add_credential, lambda request, headers: request.headers.update(headers) or request):
        request = carry(Traced("GET", audience), {"Authorization": "Bearer a"})
        assert isinstance(request, Traced) and request.headers["Authorization"] == "Bearer a"
        with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(307, headers={"Location": "/other"}))) as client:
            tokens.append(client.send(request).next_request.headers.get("Authorization"))
    assert tokens == [None, "Bearer a"]


@ROADS
async def test_a_call_that_ends_while_it_exchanges_sends_nothing(road: str) -> None:
    """What came back too late is tracked, and goes nowhere."""
    ticket, crm = a_ticket(STS), Service()

    def late(_: httpx.Request) -> httpx.Response:
        ticket.conclude()
        return httpx.Response(200, json=ISSUED)

    with ticket_scope(ticket), pytest.raises(CredentialError, match="credential_unavailable: "):
        await sent(road, crm, ExchangeAuth(exchange_with(late), resource=CRM), CRM)
    assert crm.got == [] and ISSUED["access_token"] in ticket.minted_tokens()


@ROADS
async def test_the_credential_of_a_request_replaces_an_own_header(road: str) -> None:
    """One `Authorization`, whatever the client was given."""
    service, ticket = Service(), a_ticket(BANK)
    with ticket_scope(ticket):
        await sent(road, service, CallAuth(), BANK, headers={"authorization": "Bearer old", "X-Other": "kept"})
    (token,) = ticket.minted_tokens()
    assert service.got[0].headers.get_list("Authorization") == [f"Bearer {token}"]
    assert service.got[0].headers["X-Other"] == "kept"


@ROADS
async def test_what_stands_in_between_sees_the_credential(road: str) -> None:
    """Instrumentation copies the headers and puts its copy in their place: sent along, and still not redirected."""
    service = Service(httpx.Response(307, headers={"Location": "/other"}))

    def traced(request: httpx.Request) -> httpx.Response:
        request.headers = httpx.Headers(request.headers)
        request.headers["traceparent"] = "00-1"
        return service(request)

    with ticket_scope(a_ticket(BANK + "/v1")):
        await sent(road, traced, CallAuth(), BANK + "/v1/pay", follow_redirects=True)
    assert ["Authorization" in r.headers for r in service.got] == [True, False]
    assert {r.headers["traceparent"] for r in service.got} == {"00-1"}


@ROADS
@pytest.mark.parametrize("how", ["bearer", "dpop", "exchange"])
@pytest.mark.parametrize("answers", [200, 500, 307, 401, None], ids=str)
async def test_what_is_left_of_a_request_holds_no_credential(road: str, how: str, answers: int | None) -> None:
    """Its response and its errors keep it, and are returned, raised, pickled and logged; only what was sent had it."""
    headers = {"Location": "/v1/b", "DPoP-Nonce": "n", "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
    service = Service(*([httpx.Response(answers, headers=headers)] * 2 if answers else ()))
    issued = httpx.Response(200, json={**ISSUED, "access_token": "t" * 40})

    def serve(request: httpx.Request) -> httpx.Response:
        answer = service(request)
        if answers is None:
            raise httpx.ReadTimeout("slow", request=request)
        return answer

    auth = ExchangeAuth(exchange_with(lambda _: issued), resource=CRM) if how == "exchange" else CallAuth(dpop=how == "dpop")
    url, ticket = (CRM, a_ticket(STS)) if how == "exchange" else (BANK, a_ticket(BANK))
    with ticket_scope(ticket):
        try:
            response = await sent(road, serve, auth, url + "/v1/a", headers={"X-Other": "kept"}, follow_redirects=True)
            kept = [response.request, *(r.request for r in response.history)]
            response.raise_for_status()
        except httpx.ReadTimeout as exc:
            kept = [exc.request]
        except httpx.HTTPStatusError as exc:
            assert not any(token.encode() in pickle.dumps(exc) for token in ticket.minted_tokens())
    assert "authorization" in service.got[0].headers
    assert answers != 307 or not {"authorization", "dpop"} & set(service.got[1].headers)
    for request in kept:
        assert request.headers["X-Other"] == "kept"
        assert not {"authorization", "dpop"} & set(request.headers)
        assert not any(token.encode() in pickle.dumps(request) for token in ticket.minted_tokens())
    with pytest.raises(httpx.HTTPStatusError) as twin:  # an error that is pickled takes an ordinary header along
        (await sent(road, Service(httpx.Response(500)), None, BANK, headers={"Authorization": "Bearer static"})).raise_for_status()
    assert b"Bearer static" in pickle.dumps(twin.value)


@pytest.mark.parametrize("to", ["/v1/b", "/v2"])
async def test_a_client_of_httpx2_is_a_client(to: str) -> None:
    """It sends a nonce when it is asked for one. A redirect takes nothing along, and what is left holds no credential."""
    httpx2 = pytest.importorskip("httpx2")
    asks = {"DPoP-Nonce": "n", "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
    answers = iter([httpx2.Response(401, headers=asks), httpx2.Response(307, headers={"Location": to}), httpx2.Response(200)])
    got: list[dict[str, str]] = []

    def serve(request: Any) -> Any:
        got.append(dict(request.headers))
        return next(answers)

    auth = httpx2_auth(CallAuth(dpop=True))
    with ticket_scope(a_ticket(BANK + "/v1")):
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(serve), auth=auth, follow_redirects=True) as client:
            response = await client.post(BANK + "/v1/a")
    assert response.status_code == 200
    assert [{"authorization", "dpop"} <= headers.keys() for headers in got] == [True, True, False]
    for request in (response.request, *(r.request for r in response.history)):
        assert type(request) is httpx2.Request
        assert not {"authorization", "dpop"} & set(request.headers)
    with pytest.raises(CredentialError):
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(serve), auth=auth) as client:
            await client.post(BANK + "/v1/a")
    assert len(got) == 3


class Told:
    """Refusals that were put on record."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str | None]] = []

    def refused(self, code: str, audience: str | None) -> tuple[Any, ...]:
        return Perform(self.got.append, self._append, (code, audience))

    async def _append(self, one: tuple[str, str | None]) -> None:
        self.got.append(one)


@ROADS
@pytest.mark.parametrize("exchange", [False, True])
async def test_what_the_client_itself_refuses_is_on_record(road: str, exchange: bool) -> None:
    """Another place, before anything is asked of the call; and any place, where no call runs."""
    auth = ExchangeAuth(TokenExchange(STS), resource=CRM) if exchange else CallAuth()
    told, beside = Told(), Told()
    ticket = a_ticket(STS if exchange else BANK, refusals=told)
    for scope in (ticket_scope(ticket), ticket_scope(None, beside), ticket_scope(None)):
        with scope, pytest.raises(CredentialError):
            await sent(road, Service(), auth, "https://evil.example/x?secret=1")
    assert told.got == [("audience", "https://evil.example")]
    assert beside.got == [("credential_unavailable", "https://evil.example")]
    with pytest.raises(CredentialError, match="there is no run here"):
        current_call().credential(BANK)


@ROADS
async def test_outside_a_call_there_is_no_token(road: str) -> None:
    """Refused, or sent without one where the client was told so; after the call likewise."""
    service = Service()
    with pytest.raises(CredentialError):
        await sent(road, service, CallAuth(), BANK)
    ticket = a_ticket(BANK)
    with ticket_scope(ticket):
        ticket.conclude()
        with pytest.raises(CredentialError):
            await sent(road, service, CallAuth(outside="anonymous"), BANK)
    assert service.got == []
    await sent(road, service, CallAuth(outside="anonymous"), BANK)
    assert "Authorization" not in service.got[0].headers
    with pytest.raises(ConfigError):
        CallAuth(outside="whatever")  # type: ignore[arg-type]


@ROADS
async def test_a_server_that_wants_a_nonce_is_asked_once_more(road: str) -> None:
    """With a new proof and the nonce; a second refusal is an answer, and other refusals are not repeated."""
    nonce = {"DPoP-Nonce": "n-1", "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
    service, auth = Service(httpx.Response(401, headers=nonce), httpx.Response(401, headers=nonce)), CallAuth(dpop=True)
    with ticket_scope(a_ticket(BANK)):
        assert (await sent(road, service, auth, BANK)).status_code == 401
        assert len(service.got) == 2
        proofs = [r.headers["DPoP"] for r in service.got]
        assert len(set(proofs)) == 2
        service.answers = [httpx.Response(401, headers={**nonce, "WWW-Authenticate": 'DPoP error="invalid_token"'})]
        await sent(road, service, auth, BANK)
    assert len(service.got) == 3
    assert all(r.headers["Authorization"].startswith("DPoP ") for r in service.got)


@ROADS
async def test_a_nonce_is_heeded_where_it_is_asked_for_by_the_server_itself(road: str) -> None:
    """Not for a bearer token, not for an endless one, not with a success, and not from where a redirect led."""
    wanted = {"DPoP-Nonce": "n-1", "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
    ask, away = httpx.Response(401, headers=wanted), httpx.Response(307, headers={"Location": "/other"})
    cases: list[tuple[bool, list[httpx.Response], int]] = [
        (False, [ask], 1), (True, [httpx.Response(401, headers={**wanted, "DPoP-Nonce": "n" * 513})], 1),
        (True, [httpx.Response(200, headers=wanted)], 1), (True, [away, ask], 2), (True, [ask], 2),
    ]
    for dpop, answers, requests in cases:
        service = Service(*answers)
        with ticket_scope(a_ticket(BANK)):
            await sent(road, service, CallAuth(dpop=dpop), BANK + "/a", follow_redirects=True)
        assert len(service.got) == requests, (dpop, answers)


@ROADS
async def test_a_token_is_never_sent_in_the_clear(road: str) -> None:
    """Though an audience names such a place; on this machine alone there is nobody between."""
    for url, sends in (("http://bank.example", False), ("http://127.0.0.1:80/x", True), ("http://localhost/x", True)):
        service = Service()
        with ticket_scope(a_ticket(url)):
            if sends:
                await sent(road, service, CallAuth(), url)
            else:
                with pytest.raises(CredentialError, match="plain HTTP"):
                    await sent(road, service, CallAuth(), url)
        assert len(service.got) == sends


async def test_an_audience_may_live_elsewhere() -> None:
    """An audience that is no URL has its place named; the longest of two places counts."""
    service = Service()
    auth = CallAuth({"https://api.example": "urn:api", "https://api.example/pay": "urn:pay"})
    ticket = a_ticket("urn:api", "urn:pay")
    with ticket_scope(ticket):
        await sent("sync", service, auth, "https://api.example/pay/1")
        await sent("sync", service, auth, "https://api.example/payroll")
    audiences = [httpx_token(r) for r in service.got]
    assert audiences == ["urn:pay", "urn:api"]
    with ticket_scope(a_ticket("urn:other")), pytest.raises(CredentialError):
        await sent("sync", service, auth, "https://api.example/pay/1")
    with pytest.raises(ConfigError):
        CallAuth({"http://api.example": "urn:api"})


def httpx_token(request: httpx.Request) -> str:
    import jwt

    token = request.headers["Authorization"].split(" ")[1]
    return str(jwt.decode(token, options={"verify_signature": False})["aud"])


BELOW = [
    "", "/y?z", "/a%2Fb;c/..y", "/.well-known/a..b/v1.2/caf%C3%A9%20%26//c",
]
BESIDE = [
    "y", "/../y", "/%2e%2e/y", "/%2f../%2e%2e%2fy", "/y%2F..%2f..%2Fz", "/..%5cy", "/..;a=b/y", "/%252e%252e/y",
    "/%25252e%25252e/y", "/%25%32%65%25%32%65/y", "/..%252fy", "/%%32e%%32e/y", "/%u002e%u002e/y", "/%c0%ae%c0%ae/y",
    "/%ef%bc%8e%ef%bc%8e/y", "/..%3ba/y", "/..%3f/y", "/..%00/y", "/..%20/y", "/.../y",
]


@pytest.mark.parametrize(("url", "place", "under"), [
    *((f"https://a.example/x{path}", "https://a.example/x", under) for paths, under in ((BELOW, True), (BESIDE, False)) for path in paths),
    ("https://a.example/x", "https://a.example", True), ("https://a.example/", "https://a.example/x", False),
    ("https://a.example/x", "urn:a", False), ("https://a.example/x", "", False),
])
def test_under_is_a_matter_of_path_segments(url: str, place: str, under: bool) -> None:
    """Not of text: `/xy` is not below `/x`, and dot segments are below nothing."""
    assert is_under(url, place) is under


ISSUED = {"access_token": "opaque-" + "x" * 40, "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 60}


def exchange_with(service: Any, **options: Any) -> TokenExchange:
    return TokenExchange(STS, **{"client_id": "agents", "client_secret": "secret", "tls": answered(service), **options})


@ROADS
async def test_an_exchange_is_rfc_8693s(road: str) -> None:
    """Grant, subject and actor token with their types, resource, and an access token is asked for."""
    service = Service(httpx.Response(200, json={**ISSUED, "scope": "read"}))
    made = exchange_with(service)
    options = {"actor_token": "actor", "resource": CRM, "scope": "read write"}
    got = made.exchange("mine", **options) if road == "sync" else await made.aexchange("mine", **options)
    form = dict(parse_qsl(service.got[0].content.decode()))
    assert form == {
        "grant_type": GRANT, "subject_token": "mine", "subject_token_type": JWT, "requested_token_type": ACCESS_TOKEN,
        "actor_token": "actor", "actor_token_type": JWT, "resource": CRM, "scope": "read write",
    }  # fmt: skip
    assert service.got[0].headers["authorization"] == "Basic YWdlbnRzOnNlY3JldA=="
    assert (got.token, got.scope, got.issued_token_type) == (ISSUED["access_token"], "read", ACCESS_TOKEN)
    for text in (repr(got), str(got), pickle.loads(pickle.dumps(got)), repr(copy.deepcopy([got]))):
        assert ISSUED["access_token"] not in text
    assert "secret" not in repr(made)


@ROADS
async def test_what_a_tool_exchanges_by_itself_is_searched_for_too(road: str) -> None:
    """Called without `ExchangeAuth`, inside a call; outside any there is nobody to search."""
    made, ticket = exchange_with(Service(*(httpx.Response(200, json=ISSUED) for _ in range(2)))), a_ticket(STS)
    with ticket_scope(ticket):
        got = made.exchange("mine") if road == "sync" else await made.aexchange("mine")
    assert ticket.minted_tokens() == (got.token,)
    assert (made.exchange("mine") if road == "sync" else await made.aexchange("mine")).token == got.token


@ROADS
@pytest.mark.parametrize(("answer", "code"), [
    (httpx.Response(400, json={"error": "invalid_target"}), "exchange_refused: invalid_target"),
    (httpx.Response(401, json={"error": "invalid_client"}), "exchange_refused: invalid_client"),
    (httpx.Response(400, json={"error": "invalid_authorization_details"}), "exchange_refused: invalid_authorization_details"),
    (httpx.Response(400, json={"error": "insufficient_user_authentication"}), "exchange_refused: insufficient_user_authentication"),
    (httpx.Response(400, json={"error": "<script>\x1b[31m"}), "exchange_refused: no known error code"),
    (httpx.Response(400, json={"error": "my_password_is_hunter"}), "exchange_refused: no known error code"),
    (httpx.Response(400, json={}), "exchange_refused: no known error code"),
    (httpx.Response(500, text="oops"), "exchange_failed"),
    (httpx.Response(302, headers={"Location": "https://evil.example"}), "exchange_failed"),
    (httpx.Response(200, json=[]), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "access_token": None}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "access_token": "a b"}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "access_token": "a\r\nX: y"}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "access_token": "x" * 17_000}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "issued_token_type": JWT}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "token_type": "N_A"}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "expires_in": 3600}), "exchange_failed"),
    (httpx.Response(200, json={**ISSUED, "expires_in": True}), "exchange_failed"),
    (httpx.Response(200, json={k: v for k, v in ISSUED.items() if k != "expires_in"}), "exchange_failed"),
    (httpx.Response(200, content=b"{" + b" " * 70_000 + b"}"), "exchange_failed"),
], ids=lambda v: ascii(v) if isinstance(v, str) else "answer")
async def test_another_answer_is_no_token(road: str, answer: httpx.Response, code: str) -> None:
    """The endpoint's error code reaches the operator, cleaned; a longer life than was bargained for is refused."""
    made = exchange_with(Service(httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)))
    with pytest.raises(CredentialError) as caught:
        made.exchange("mine-secret") if road == "sync" else await made.aexchange("mine-secret")
    assert str(caught.value).startswith(code) and "mine-secret" not in str(caught.value)
    assert ISSUED["access_token"] not in str(caught.value)


@ROADS
async def test_a_call_exchanges_for_each_request(road: str) -> None:
    """The call's own token is shown to the endpoint only; what came back is tracked, and kept nowhere."""
    sts, crm = Service(*(httpx.Response(200, json={**ISSUED, "access_token": f"t{i}-{'x' * 40}"}) for i in range(3))), Service()
    auth = ExchangeAuth(exchange_with(sts), resource=CRM, actor_token=lambda: "workload")
    ticket = a_ticket(STS)
    with ticket_scope(ticket):
        for _ in range(2):
            await sent(road, crm, auth, CRM + "/customers")
        with pytest.raises(CredentialError) as caught:
            await sent(road, crm, auth, "https://evil.example/")
        with pytest.raises(CredentialError, match="`pay` does not reach"):
            await sent(road, crm, ExchangeAuth(exchange_with(sts), resource="https://admin.example"), "https://admin.example/")
    assert caught.value.code == "audience" and len(sts.got) == 2
    assert [r.headers["Authorization"][:9] for r in crm.got] == ["Bearer t0", "Bearer t1"]
    own, *others = ticket.minted_tokens()
    assert [o[:2] for o in others] == ["t0", "t1"]
    assert dict(parse_qsl(sts.got[0].content.decode()))["subject_token"] == own
    assert dict(parse_qsl(sts.got[0].content.decode()))["actor_token"] == "workload"
    ticket.conclude()
    with ticket_scope(ticket), pytest.raises(CredentialError):
        await sent(road, crm, auth, CRM)
    with pytest.raises(CredentialError):
        await sent(road, crm, auth, CRM)
    assert len(crm.got) == 2


@pytest.mark.parametrize("make", [
    lambda: TokenExchange("http://login.example"), lambda: TokenExchange(STS, client_id="a"),
    lambda: TokenExchange(STS, max_lifetime=0), lambda: ExchangeAuth(TokenExchange(STS), resource="crm"),
])
def test_settings_can_not_weaken(make: Any) -> None:
    """What would loosen a check, or is misspelt, is refused."""
    with pytest.raises(ConfigError):
        make()
