"""A service's side, without sockets: what is answered to whom, and that it stays up."""

import asyncio
import gzip
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.routing import Mount

import langchain_runtime_authz
from langchain_runtime_authz._http import basic_auth
from langchain_runtime_authz.credential.dpop_proof import ProofKey
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import Code, ConfigError, CredentialError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.resource_server.dpop import MemoryReplays, Nonces, ProofVerifier
from langchain_runtime_authz.resource_server.introspection import (
    Introspection,
    IntrospectionClient,
    IntrospectionEndpoint,
)
from langchain_runtime_authz.resource_server.mcp import ProtectedMcp
from langchain_runtime_authz.resource_server.server import ProtectedApp, ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus
from tests.endpoints import answered
from tests.unit_tests.credential.tokens import BANK, PAYMENT, a_request, call_details

KEY = SigningKey.generate()
ISSUER = LocalIssuer(KEY)
SECRET = "a secret of a service"


class Says:
    """A status that says what it is told to, or raises it."""

    def __init__(self, answer: Any = "live") -> None:
        self.answer, self.asked = answer, 0

    async def status(self, credential: Credential) -> str:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def token(**changes: Any) -> str:
    now = int(time.time())
    return ISSUER.issue(a_request(issued_at=now, expires_at=now + 60, **changes))


def server(**options: Any) -> ResourceServer:
    made = {
        "verifier": Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks()), "audience": BANK, "tenant": "acme",
        "status": Says(), "proofs": ProofVerifier(public_url=BANK), **options,
    }
    tools = made.pop("for_tools", None)
    served = ResourceServer(**made)
    return served if tools is None else served.for_tools(*tools)


def app_of(made: ResourceServer) -> FastAPI:
    app = FastAPI()

    @app.post("/pay")
    async def pay(credential: Credential = Depends(made)) -> Any:
        return list(credential.actors)

    return app


def asked(app: Any, headers: Any = (), path: str = "/pay", **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            return await client.post(path, headers=headers, **options)

    return asyncio.run(ask())


def proved(key: ProofKey, url: str = "/pay", nonce: str | None = None, **changes: Any) -> dict[str, str]:
    """A token bound to the key, with a proof of a request to this URL."""
    bound = token(cnf_jkt=key.jkt, **changes)
    proof = key.proof("POST", url if "://" in url else BANK + url, token=bound, nonce=nonce)
    return {"Authorization": f"DPoP {bound}", "DPoP": proof}


def challenge(answer: httpx.Response) -> str:
    return str(answer.headers.get("www-authenticate", ""))


def test_the_act_chain_is_told() -> None:
    """The service learns who acts and who delegated, nearest first."""
    answer = asked(app_of(server()), {"Authorization": f"bearer  {token()}"})
    assert answer.json() == ["urn:langchain-runtime-authz:agent:supervisor/payer", "urn:langchain-runtime-authz:agent:supervisor"]


def test_no_credential_is_told_what_is_wanted() -> None:
    """RFC 6750 §3.1: a challenge without an error code, for each scheme that would do."""
    answer = asked(app_of(server()))
    assert answer.status_code == 401
    assert challenge(answer) == 'DPoP realm="api", algs="ES256 EdDSA RS256", Bearer realm="api"'
    assert challenge(asked(app_of(server(require_proof=True)))).startswith("DPoP ")
    assert "Bearer" not in challenge(asked(app_of(server(require_proof=True))))
    assert challenge(asked(app_of(server(proofs=None)))) == 'Bearer realm="api"'


@pytest.mark.parametrize(("headers", "status", "error"), [
    ([("Authorization", "Basic YTpi")], 400, "invalid_request"),
    ([("Authorization", "Bearer")], 400, "invalid_request"),
    ([("Authorization", "")], 400, "invalid_request"),
    ([("Authorization", "Bearer a b")], 401, "invalid_token"),
    ([("Authorization", "Bearer x")], 401, "invalid_token"),
    ([("Authorization", "Bearer \xff")], 401, "invalid_token"),
    ([("Authorization", "Bearer " + "A" * 20_000)], 401, "invalid_token"),
    ([("Authorization", "Bearer x"), ("Authorization", "Bearer y")], 400, "invalid_request"),
    ([("Authorization", "DPoP x"), ("DPoP", "a"), ("DPoP", "b")], 400, "invalid_request"),
], ids=lambda v: ascii(v)[:50])
def test_a_bad_request_is_answered_as_the_rfc_says(headers: Any, status: int, error: str) -> None:
    """Nothing is quoted, the answer is not kept by caches, and the challenge names the error."""
    answer = asked(app_of(server()), [(k, v.encode("latin-1")) for k, v in headers])
    assert answer.status_code == status and f'error="{error}"' in challenge(answer)
    assert answer.headers["cache-control"] == "no-store" and "AAAA" not in answer.text + challenge(answer)


@pytest.mark.parametrize(("options", "changes", "status", "code"), [
    ({"audience": "https://mail.example"}, {}, 401, "audience"),
    ({"tenant": "umbrella"}, {}, 401, "credential_tenant"),
    ({}, {"subject": Subject(type="service", id="alice")}, 403, "credential_subject"),
    ({}, {"subject": Subject(type="anonymous", id="anonymous")}, 403, "credential_subject"),
    ({"subject_types": ["service"]}, {}, 403, "credential_subject"),
    ({"status": Says("stale")}, {}, 401, "credential_revoked"),
    ({"status": Says(OSError())}, {}, 503, "status_unavailable"),
    ({"status": Says(None)}, {}, 401, "credential_revoked"),
    ({"verifier": Verifier(issuer=ISSUER.issuer, jwks=lambda: 1 / 0)}, {}, 503, "keys_unavailable"),
    ({"verifier": Verifier(issuer=ISSUER.issuer, jwks={"keys": []})}, {}, 401, "credential_key"),
    ({"require_proof": True}, {}, 401, "proof_missing"),
    ({"for_tools": ("wipe",)}, {}, 403, "credential_tool"),
    ({"for_tools": ()}, {}, 403, "credential_tool"),
    ({}, {"action": "agent/invoke"}, 403, "credential_tool"),
    ({"for_tools": ("send_money",)}, {"action": "agent/invoke"}, 403, "credential_tool"),
], ids=lambda v: ascii(v)[:40] if isinstance(v, str | int) else "case")
def test_each_refusal_has_its_code(options: Any, changes: Any, status: int, code: str) -> None:
    """The stable code is what the challenge describes; a service that can not tell says so, and stays up."""
    app = app_of(server(**options))
    answer = asked(app, {"Authorization": f"Bearer {token(**changes)}"})
    assert (answer.status_code, answer.json()) == (status, {"detail": code})
    if status == 503:
        assert answer.headers["retry-after"] == "1"
    else:
        assert f'error_description="{code}"' in challenge(answer)
    assert asked(app).status_code == 401


def test_a_service_may_serve_other_subjects_too() -> None:
    for kind, status in (("user", 200), ("service", 200), ("agent", 403)):
        headers = {"Authorization": f"Bearer {token(subject=Subject(type=kind, id='alice'))}"}
        assert asked(app_of(server(subject_types=("user", "service"))), headers).status_code == status


def test_too_many_proofs_of_one_key_are_one_callers_trouble() -> None:
    """RFC 6585 §4: that caller waits, and no challenge tells it to try another credential; others are served."""
    app, keys = app_of(server(proofs=ProofVerifier(public_url=BANK, replays=MemoryReplays(100)))), [ProofKey(), ProofKey()]
    answers = [asked(app, proved(key)) for key in (keys[0], keys[0], keys[1])]
    assert [a.status_code for a in answers] == [200, 429, 200]
    assert answers[1].json() == {"detail": "proof_limit"}
    assert answers[1].headers["retry-after"] == "1" and "www-authenticate" not in answers[1].headers


@pytest.mark.parametrize("case", ["bearer", "no proof", "no reader", "unbound", "as it should be"])
def test_a_bound_token_needs_its_scheme_and_a_proof_that_somebody_reads(case: str) -> None:
    """RFC 9449 §7.1, §7.2: otherwise it is refused, as is a token under that scheme which no proof makes better."""
    key = ProofKey()
    headers, made = proved(key), server(proofs=None) if case == "no reader" else server()
    bound = headers["Authorization"].removeprefix("DPoP ")
    if case == "bearer":
        headers["Authorization"] = f"Bearer {bound}"
    elif case == "no proof":
        del headers["DPoP"]
    elif case == "unbound":
        plain = token()
        headers = {"Authorization": f"DPoP {plain}", "DPoP": key.proof("POST", BANK + "/pay", token=plain)}
    app = app_of(made)
    answer = asked(app, headers)
    if case == "as it should be":
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()) == (401, {"detail": "proof_missing"})
    if case == "bearer":  # the proof was not used up by that
        assert asked(app, {**headers, "Authorization": f"DPoP {bound}"}).status_code == 200


def test_a_dead_token_asks_nobody() -> None:
    """What is refused for its own sake costs no question to ledger or endpoint, and uses up no proof."""
    status = Says()
    asked(app_of(server(status=status)), {"Authorization": f"Bearer {token()[:-8]}AAAAAAAA"})
    assert status.asked == 0


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(("path", "arrives"), [("/a b/c", "/a%20b/c"), ("/a/b/c", "/a%2Fb/c"), ("/a%2Fb/c", "/a%252Fb/c")])
async def test_a_path_is_what_arrived(raw: bool, path: str, arrives: str) -> None:
    """Not what a server made of it: a proof for `/a/b` is none for `/a%2Fb`. A server that keeps no more is read as it can be."""
    made, key = server(), ProofKey()
    bound = token(cnf_jkt=key.jkt)

    async def code(url: str) -> str:
        proof = key.proof("POST", BANK + url, token=bound)
        headers = [(b"authorization", f"DPoP {bound}".encode()), (b"dpop", proof.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"x=1", "headers": headers}
        if raw:
            scope["raw_path"] = arrives.encode() + b"?x=1"  # some servers keep the query in it
        try:
            await made.of(HTTPConnection(scope))
        except CredentialError as exc:
            return exc.code
        return "believed"

    expected = arrives if raw else {"/a b/c": "/a%20b/c", "/a/b/c": "/a/b/c", "/a%2Fb/c": "/a%252Fb/c"}[path]
    for url in ("/a%20b/c", "/a%2Fb/c", "/a/b/c", "/a%252Fb/c"):
        assert await code(url) == ("believed" if url == expected else "proof_invalid")


def test_a_service_without_proofs_serves_bearer_tokens() -> None:
    """As a dependency and in front of an application; there is no nonce to tell."""
    made = server(proofs=None)
    for app in (app_of(made), ProtectedApp(app_of(made), made)):
        answer = asked(app, {"Authorization": f"Bearer {token()}"})
        assert answer.status_code == 200 and "dpop-nonce" not in answer.headers


def test_a_nonce_is_told_with_each_answer() -> None:
    """`use_dpop_nonce` with the nonce (RFC 9449 §9), and the next one with what is served."""
    app, key = app_of(server(proofs=ProofVerifier(public_url=BANK, nonces=Nonces()))), ProofKey()
    mine = token(cnf_jkt=key.jkt)
    headers = {"Authorization": f"DPoP {mine}", "DPoP": key.proof("POST", BANK + "/pay", token=mine)}
    first = asked(app, headers)
    assert 'error="use_dpop_nonce"' in challenge(first)
    nonce = first.headers["dpop-nonce"]
    again = asked(app, {**headers, "DPoP": key.proof("POST", BANK + "/pay", token=mine, nonce=nonce)})
    assert (again.status_code, len(again.headers["dpop-nonce"])) == (200, len(nonce))
    made = server(proofs=ProofVerifier(public_url=BANK, nonces=Nonces()))
    in_front = ProtectedApp(app_of(server()), made)
    headers["DPoP"] = key.proof("POST", BANK + "/pay", token=mine, nonce=asked(in_front, headers).headers["dpop-nonce"])
    served = asked(in_front, headers)
    assert (served.status_code, len(served.headers["dpop-nonce"])) == (200, len(nonce))


def test_the_guard_in_front_of_an_application() -> None:
    """Every request and every web socket needs the credential; what is refused never reaches the application."""
    inner, reached = FastAPI(), []

    @inner.post("/pay")
    async def pay() -> str:
        reached.append("pay")
        return "paid"

    @inner.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        reached.append("ws")
        await socket.accept()
        await socket.send_text(socket.state.credential.subject)
        await socket.close()

    app = ProtectedApp(inner, server())
    assert asked(app).json() == {"error": "credential_missing"} and reached == []
    with TestClient(app) as client:
        from starlette.websockets import WebSocketDisconnect

        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
            pass
        assert reached == []
        with client.websocket_connect("/ws", headers={"Authorization": f"Bearer {token()}"}) as socket:
            assert socket.receive_text() == "alice"
    assert asked(app, {"Authorization": f"Bearer {token()}"}).status_code == 200 and reached == ["ws", "pay"]


def test_a_dependency_of_the_application_guards_web_sockets_too() -> None:
    from starlette.websockets import WebSocketDisconnect

    app = FastAPI(dependencies=[Depends(server())])

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("served")
        await socket.close()

    with TestClient(app) as client:
        with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/ws"):
            pass
        assert (refused.value.code, refused.value.reason) == (1008, "credential_missing")
        with client.websocket_connect("/ws", headers={"Authorization": f"Bearer {token()}"}) as socket:
            assert socket.receive_text() == "served"


@pytest.mark.parametrize("options", [{"audience": ""}, {"status": None}, {"proofs": None, "require_proof": True}], ids=str)
def test_settings_can_not_weaken(options: dict[str, Any]) -> None:
    """No service without a name, and none that forgot to say whom it asks."""
    with pytest.raises(ConfigError):
        server(**options)


@pytest.mark.parametrize("given", ["user", (), None, [1], ["user", ""]], ids=str)
def test_subject_types_are_a_list_of_texts(given: Any) -> None:
    with pytest.raises(ConfigError, match="`subject_types` must be a list of types, like `user` or `service`"):
        server(subject_types=given)


# --- tokens of one call ---------------------------------------------------------------------------------


async def from_body(request: Request) -> dict[str, Any]:
    body = await request.json()
    return {"recipient": body["iban"], "amount": body["amount"]}


def from_query(request: Request) -> dict[str, Any]:
    if "amount" not in request.query_params:
        raise HTTPException(422, "amount")
    return {"amount": request.query_params["amount"]}


def payments(made: ResourceServer, reached: list[Any], **demand: Any) -> FastAPI:
    """The same service thrice: it asks for the call's arguments, reads them elsewhere, or looks at the tool alone."""
    app = FastAPI()

    @app.post("/pay")
    async def pay(body: dict[str, Any], credential: Credential = Depends(made.for_call("send_money", from_body, **demand))) -> Any:
        reached.append(body)
        return credential.subject

    @app.post("/parsed")
    async def parsed(body: dict[str, Any], credential: Credential = Depends(made)) -> Any:
        made.check_call(credential, tool="send_money", args={"recipient": body["iban"], "amount": body["amount"]}, **demand)
        reached.append(body)
        return credential.subject

    @app.post("/query")
    async def query(credential: Credential = Depends(made.for_call("send_money", from_query, **demand))) -> Any:
        reached.append(credential.jti)
        return credential.subject

    @app.post("/unenforced")
    async def unenforced(body: dict[str, Any], credential: Credential = Depends(made.for_tools("send_money"))) -> Any:
        reached.append(body)
        return credential.subject

    return app


ORDERED = {"iban": PAYMENT["recipient"], "amount": 98.7}
HARMFUL = [{"iban": "DE99999999999999999999", "amount": 98.7}, {"iban": PAYMENT["recipient"], "amount": 9870}]


def test_a_proof_counts_once_a_request_however_many_dependencies_ask() -> None:
    """As in the docs: the application asks for any token, and a route for its call's. The next request needs its own."""
    made = server()
    app = FastAPI(dependencies=[Depends(made)])

    @app.post("/pay")
    async def pay(credential: Credential = Depends(made.for_call("send_money", from_body))) -> Any:
        return credential.subject

    @app.post("/other")
    async def other(credential: Credential = Depends(made.for_tools("other"))) -> None: ...

    headers = proved(ProofKey(), details=call_details())
    assert asked(app, headers, json=ORDERED).json() == "alice"
    assert "proof_replayed" in challenge(asked(app, headers, json=ORDERED))
    assert asked(app, proved(ProofKey(), "/other", details=call_details()), "/other").status_code == 403
    assert asked(app, proved(ProofKey(), details=call_details()), json=HARMFUL[0]).status_code == 403


@pytest.mark.parametrize("bound", [True, False])
async def test_a_token_that_is_revoked_during_a_request_is_refused_at_the_next_look(bound: bool) -> None:
    """A web socket or a stream may ask again and again."""
    answers = iter(["live", "revoked"])

    class Once(Says):
        async def status(self, credential: Credential) -> Any:
            return next(answers)

    made = server(status=Once())
    given = proved(ProofKey()) if bound else {"Authorization": f"Bearer {token()}"}
    headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    connection = HTTPConnection({"type": "http", "method": "POST", "path": "/pay", "raw_path": b"/pay", "headers": headers})
    assert (await made.of(connection)).subject == "alice"
    with pytest.raises(CredentialError, match="credential_revoked"):
        await made.of(connection)


@pytest.mark.parametrize("other", [None, "path", "headers", "time"])
async def test_a_proof_counts_for_its_own_request_alone(other: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may call routes with copies of the request's scope. A web socket may outlive its token."""
    made, now = server(), time.time()
    headers = [(n.lower().encode(), v.encode()) for n, v in proved(ProofKey()).items()]
    scope = {"type": "http", "method": "POST", "path": "/pay", "raw_path": b"/pay", "headers": headers}
    await made.of(HTTPConnection(scope))
    again = {"path": {"path": "/x", "raw_path": b"/x"}, "headers": {"headers": [(b"authorization", b"DPoP x"), headers[1]]}}
    if other == "time":
        monkeypatch.setattr(time, "time", lambda: now + 90)
    with pytest.raises(CredentialError) if other else nullcontext():
        await made.of(HTTPConnection({**scope, **again.get(other or "", {})}))


@pytest.mark.parametrize("path", ["/pay", "/parsed", "/unenforced"])
def test_a_service_serves_the_call_that_was_ordered(path: str) -> None:
    """With the token of that call another payee or amount is refused; a service that looks at the tool alone pays."""
    reached: list[Any] = []
    app, headers = payments(server(), reached), {"Authorization": f"Bearer {token(details=call_details())}"}
    assert asked(app, headers, path, json=ORDERED).json() == "alice"
    for body in HARMFUL:
        answer = asked(app, headers, path, json=body)
        if path == "/unenforced":
            assert answer.status_code == 200
            continue
        assert (answer.status_code, answer.json()) == (403, {"detail": "credential_call"})
        assert 'error="insufficient_scope", error_description="credential_call"' in challenge(answer)
        assert answer.headers["cache-control"] == "no-store"
        assert body["iban"] not in answer.text + challenge(answer)
    assert reached == ([ORDERED, *HARMFUL] if path == "/unenforced" else [ORDERED])


@pytest.mark.parametrize(("demand", "changes", "status"), [
    ({"step": "pay"}, {"details": call_details()}, 200),
    ({"step": "mail"}, {"details": call_details()}, 403),
    ({"accept": ("covered",)}, {"details": call_details(standing="deviates", step=None, approved=True)}, 403),
    ({}, {"details": call_details(standing="deviates", step=None, approved=True)}, 200),
    ({}, {"details": call_details(standing="outside", step=None)}, 403),
    ({"accept": None}, {"details": call_details(standing="outside", step=None)}, 200),
    ({"accept": None}, {}, 403),
    ({}, {"details": call_details(tool="refund"), "tool": "refund"}, 403),
    ({}, {"details": call_details(), "audience": "https://mail.example"}, 401),
], ids=lambda v: str(v)[:40])
def test_a_service_may_demand_step_and_standing(demand: Any, changes: Any, status: int) -> None:
    """As a dependency and in the handler alike; all other checks come first."""
    reached: list[Any] = []
    for path in ("/pay", "/parsed"):
        answer = asked(payments(server(), reached, **demand), {"Authorization": f"Bearer {token(**changes)}"}, path, json=ORDERED)
        assert answer.status_code == status
    assert len(reached) == (2 if status == 200 else 0)


def test_a_request_without_the_arguments_is_invalid() -> None:
    """What reads them may fail in any way; its own answer is sent."""
    reached: list[Any] = []
    app, headers = payments(server(), reached), {"Authorization": f"Bearer {token(details=call_details())}"}
    for body in ("{}", "[]", "null", '{"iban": 1}'):
        assert asked(app, headers, "/pay", content=body).status_code in (400, 422)
    answer = asked(app, headers, "/pay", json={})
    assert (answer.status_code, answer.json()) == (400, {"detail": "invalid_request"})
    assert asked(app, headers, "/query").status_code == 422 and reached == []
    assert asked(app, headers, "/query?amount=98.70").status_code == 200
    assert asked(app, headers, "/query?amount=98.71").status_code == 403


@pytest.mark.parametrize(("query", "details", "reason"), [
    ("?amount=98.7", True, None), ("?amount=1", True, "credential_call"), ("", True, "invalid_request"),
    ("?amount=98.7", False, "credential_call"), ("?amount=98.7", None, "credential_missing"),
], ids=str)  # fmt: skip
def test_a_web_socket_may_demand_its_call(query: str, details: bool | None, reason: str | None) -> None:
    from starlette.websockets import WebSocketDisconnect

    app = FastAPI()

    def amount(socket: WebSocket) -> dict[str, Any]:
        return {"amount": socket.query_params["amount"]}

    @app.websocket("/ws")
    async def ws(socket: WebSocket, credential: Credential = Depends(server().for_call("send_money", amount))) -> None:
        await socket.accept()
        await socket.send_text(credential.subject)
        await socket.close()

    given = token(details=call_details()) if details else token()
    headers = {} if details is None else {"Authorization": f"Bearer {given}"}
    refused = nullcontext() if reason is None else pytest.raises(WebSocketDisconnect)
    with TestClient(app) as client, refused as closed, client.websocket_connect(f"/ws{query}", headers=headers) as socket:
        assert socket.receive_text() == "alice"
    assert closed is None or (closed.value.code, closed.value.reason) == (1008, reason)


def mcp_of(reached: list[Any], **options: Any) -> ProtectedMcp:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        reached.append(json.loads(message["body"])["method"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    return ProtectedMcp(inner, server(), prefix="bank_", **options)


@pytest.mark.parametrize(("body", "own", "none"), [
    ({"method": "initialize"}, 200, 200), ({"method": "tools/list"}, 200, 200),
    ({"method": "resources/read"}, 200, 401), ({"method": "tools/call", "params": {"name": "send_money"}}, 403, 401),
    ({"method": "tools/call", "params": {"name": 1}}, 400, 400), ({"method": "tools/call"}, 400, 400),
    ({"method": ["initialize"]}, 200, 401), ([{"method": "initialize"}], 400, 400), ("x", 400, 400),
], ids=lambda v: ascii(v)[:60])
def test_an_mcp_body_says_what_is_needed(body: Any, own: int, none: int) -> None:
    """Listing is open, everything else needs a token, and a call one for that tool under its full name."""
    reached: list[Any] = []
    app = mcp_of(reached)
    content = json.dumps(body)
    assert asked(app, {"Authorization": f"Bearer {token()}"}, "/mcp", content=content).status_code == own
    assert asked(app, {}, "/mcp", content=content).status_code == none
    assert asked(app, {}, "/mcp", content=" " * 5_000_000).status_code == 400


@pytest.mark.parametrize(("arguments", "facts", "accept", "status"), [
    (PAYMENT, {}, None, 200), ({**PAYMENT, "note": "a text is not compared"}, {}, ("covered",), 200),
    ({**PAYMENT, "amount": 9870}, {}, None, 403), ({**PAYMENT, "recipient": "DE99999999999999999999"}, {}, None, 403),
    ({**PAYMENT, "account": {"id": 7}}, {}, None, 403), ({**PAYMENT, "cc": "mallory"}, {}, None, 403),
    ({"amount": 98.7}, {}, None, 403), (None, {}, None, 403), ([PAYMENT], {}, None, 400),
    (PAYMENT, {"standing": "outside", "step": None}, None, 200),
    (PAYMENT, {"standing": "outside", "step": None}, ("covered",), 403), (PAYMENT, None, None, 403),
], ids=lambda v: str(v)[:50])
def test_an_mcp_call_has_the_arguments_of_its_token(arguments: Any, facts: Any, accept: Any, status: int) -> None:
    """Another value, one that was added and one that was left out are refused before the server reads them."""
    reached: list[Any] = []
    app = mcp_of(reached, accept=accept)
    details = () if facts is None else call_details(tool="bank_send_money", **facts)
    headers = {"Authorization": f"Bearer {token(tool='bank_send_money', details=details)}"}
    body = {"method": "tools/call", "params": {"name": "send_money", "arguments": arguments}}
    assert asked(app, headers, "/mcp", json=body).status_code == status and len(reached) == (status == 200)


LISTED = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "pay"}, {"name": "wipe"}], "ttlMs": 9, "cacheScope": "public"}}
SHOWN = {"tools": [{"name": "pay"}], "ttlMs": 0, "cacheScope": "private"}
JSON, EVENTS = "application/json", "text/event-stream"
ANSWERS: dict[str, tuple[int, str, bytes, int]] = {
    # of the application: status, type and body; and the status that its caller gets
    "json": (200, JSON, json.dumps(LISTED).encode(), 200),
    "json, with a charset": (200, f"{JSON}; charset=utf-8", json.dumps(LISTED).encode(), 200),
    "events": (200, EVENTS, b"id: 1\r\ndata:\r\n\r\nevent: message\r\ndata: " + json.dumps(LISTED).encode() + b"\r\n\r\n", 200),
    "an event in two lines": (200, EVENTS, b"data: " + json.dumps(LISTED).replace(', "id"', ',\ndata: "id"').encode() + b"\n\n", 200),
    "an event in two lines that end in CRLF": (
        200, EVENTS, b"data: " + json.dumps(LISTED).replace(', "id"', ',\r\ndata: "id"').encode() + b"\r\n\r\n", 200),
    "events after a byte order mark": (200, EVENTS, b"\xef\xbb\xbfdata: " + json.dumps(LISTED).encode() + b"\n\n", 200),
    "an error": (200, JSON, b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "no tools"}}', 200),
    "a refusal": (404, JSON, b'{"error": "no session"}', 404),
    "a batch": (200, JSON, json.dumps([LISTED]).encode(), 503),
    "two results": (200, JSON, json.dumps(LISTED)[:-1].encode() + b', "result": {"tools": [{"name": "wipe"}]}}', 503),
    "a tool without a name": (200, JSON, b'{"result": {"tools": [{"title": "wipe"}]}}', 503),
    "no tools": (200, JSON, b'{"result": {"text": "wipe"}}', 503),
    "another type": (200, "text/plain", json.dumps(LISTED).encode(), 503),
    "compressed": (200, JSON, gzip.compress(json.dumps(LISTED).encode()), 503),
    "nothing": (200, JSON, b"", 503),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_a_listing_shows_nothing_that_cannot_be_read(case: str) -> None:
    """Only the granted tools of an answer in either form, for no other caller's cache; any other answer is withheld."""
    status, kind, body, expected = ANSWERS[case]

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        for part, more in ((body[:7], True), (body[7:], False)):
            await send({"type": "http.response.body", "body": part, "more_body": more})

    app = ProtectedMcp(inner, server(), listing="granted")
    given = {"Authorization": f"Bearer {token(grant=Grant(tools=['pay']))}"}
    answer = asked(app, given, "/mcp", json={"method": "tools/list"})
    assert answer.status_code == expected and "wipe" not in answer.text
    if expected == 200 and "error" not in answer.text:
        (data,) = [line.removeprefix("data: ") for line in answer.text.splitlines() if "result" in line]
        assert json.loads(data)["result"] == SHOWN
    assert asked(app, {}, "/mcp", json={"method": "tools/list"}).status_code == 401


def test_a_stream_is_not_resumed_where_the_list_is_filtered() -> None:
    """What it tells again could hold the whole list."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def got(listing: Any) -> int:
        app = ProtectedMcp(inner, server(), listing=listing)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            return (await client.get("/mcp", headers={"Authorization": f"Bearer {token()}", "Last-Event-ID": "1"})).status_code

    assert [asyncio.run(got(listing)) for listing in ("open", "granted")] == [200, 400]


class Streams:
    """An MCP server that finds the stream of an answer by session and the text of the id, as those of both SDKs do."""

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], asyncio.Queue[str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = json.loads((await receive())["body"])
        if message["method"] == "initialize":
            opened = [(b"mcp-session-id", message["params"]["opens"].encode())]
            await send({"type": "http.response.start", "status": 200, "headers": opened})
            return await send({"type": "http.response.body", "body": b"{}"})
        stream = (dict(scope["headers"]).get(b"mcp-session-id", b"").decode(), str(message["id"]))
        self.streams[stream] = asyncio.Queue()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        answer = await self.streams[stream].get() if message.get("params") else "{}"
        await send({"type": "http.response.body", "body": answer.encode()})

    def answer(self, session: str, named: str) -> None:
        self.streams[session, named].put_nowait('{"result": {"tools": [{"name": "pay"}, {"name": "wipe"}]}}')


async def collided(app: Any, inner: Streams, first: Any, second: Any, *, method: str, leaves: bool, sessions: tuple[str, str]) -> Any:
    """Return status and text of a ping without a token that comes while another request waits for its answer."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BANK) as client:

        def post(session: str, **message: Any) -> Any:
            headers = {"Authorization": f"Bearer {token(grant=Grant(tools=['pay']))}"} if message["method"] != "ping" else {}
            return client.post("/mcp", headers={**headers, "Mcp-Session-Id": session}, json=message)

        for opens in sessions:
            await client.post("/mcp", json={"id": 1, "method": "initialize", "params": {"opens": opens}})
        waits = asyncio.create_task(post(sessions[0], id=first, method=method, params={"waits": True}))
        while not inner.streams:
            await asyncio.sleep(0)
        if leaves:
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
        ping = asyncio.create_task(post(sessions[1], id=second, method="ping", params={"waits": True}))
        for _ in range(50):
            await asyncio.sleep(0)
        inner.answer(sessions[0], str(first))
        if sessions[0] != sessions[1] or str(first) != str(second):
            inner.answer(sessions[1], str(second))
        answer = await ping
        for _ in range(50):
            await asyncio.sleep(0)
        waits.cancel()  # whose answer another one took
        await asyncio.gather(waits, return_exceptions=True)
        again = await post(sessions[0], id=first, method="ping")
    return answer.status_code, "wipe" in answer.text, again.status_code


@pytest.mark.parametrize("method", ["tools/list", "resources/read"])
@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
@pytest.mark.parametrize("second", [2, "2"], ids=["number", "text"])
def test_an_answer_goes_to_the_request_that_asked(method: str, leaves: bool, second: Any) -> None:
    """A ping without a token has the id of another caller's request: unprotected, it gets that request's answer."""
    case = {"method": method, "leaves": leaves, "sessions": ("s", "s")}
    inner = Streams()
    assert asyncio.run(collided(inner, inner, 2, second, **case))[:2] == (200, True)
    inner = Streams()
    app = ProtectedMcp(inner, server(), listing="granted")
    # An id is free again after its answer. If the caller left, the answer may still come.
    assert asyncio.run(collided(app, inner, 2, second, **case)) == (400, False, 400 if leaves else 200)


@pytest.mark.parametrize(("second", "sessions"), [(3, ("s", "s")), (2, ("s", "t"))], ids=["id", "session"])
def test_other_ids_and_sessions_are_served_at_once(second: Any, sessions: tuple[str, str]) -> None:
    inner = Streams()
    app = ProtectedMcp(inner, server())
    got = asyncio.run(collided(app, inner, 2, second, method="resources/read", leaves=False, sessions=sessions))
    assert got == (200, True, 200)


@pytest.mark.parametrize("named", [None, True, 2.0, [2], "_GET_stream"], ids=str)
def test_an_id_of_a_session_names_one_stream(named: Any) -> None:
    """An id that servers read differently, or that is the name of another stream, is refused."""
    reached: list[Any] = []
    app, message = mcp_of(reached), {"id": named, "method": "ping"}
    assert asked(app, {"Mcp-Session-Id": "s"}, "/mcp", json=message).status_code == 400
    assert asked(app, [("Mcp-Session-Id", "s"), ("Mcp-Session-Id", "t")], "/mcp", json={**message, "id": 1}).status_code == 400
    assert reached == []
    assert asked(app, {}, "/mcp", json=message).status_code == 200  # without a session nothing is shared


OTHERS: dict[str, dict[str, Any]] = {
    "another user": {"subject": Subject(type="user", id="mallory")},
    "a service of this name": {"subject": Subject(type="service", id="alice")},
    "another tenant": {"tenant": "other"},
}


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "unenforced"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_session_belongs_to_the_subject_of_its_first_token(other: str, protected: bool) -> None:
    """Another one's token opens no stream in it, answers nothing that it was asked, and does not end it."""
    reached: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        reached.append(message["body"].decode() or scope["method"])
        opened = [] if b"mcp-session-id" in dict(scope["headers"]) else [(b"mcp-session-id", b"s")]
        await send({"type": "http.response.start", "status": 200, "headers": opened})
        await send({"type": "http.response.body", "body": b"{}"})

    app = ProtectedMcp(inner, server(tenant=None, subject_types=("user", "service"))) if protected else inner

    async def said(who: dict[str, Any], method: str = "POST", session: str = "s", **message: Any) -> int:
        headers = {"Authorization": f"Bearer {token(**who)}", "Mcp-Session-Id": session}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            return (await client.request(method, "/mcp", headers=headers, **({"json": message} if message else {}))).status_code

    assert asked(app, {}, "/mcp", json={"id": 1, "method": "initialize"}).headers["mcp-session-id"] == "s"
    reached.clear()
    assert asyncio.run(said({}, id=1, method="resources/read")) == 200
    theirs = [said(OTHERS[other], id=0, result={"action": "accept"}), said(OTHERS[other], id=2, method="initialize"),
              said(OTHERS[other], id=3, method="resources/read"), said(OTHERS[other], "GET"), said(OTHERS[other], "DELETE")]  # fmt: skip
    assert [asyncio.run(each) for each in theirs] == [404 if protected else 200] * 5
    assert len(reached) == (1 if protected else 6)
    mine = [said({"jti": "j-2", "txn": "run-2"}, id=0, result={}), said({}, "GET"), said({}, "DELETE")]
    assert [asyncio.run(each) for each in mine] == [200] * 3
    assert asyncio.run(said({}, session="unknown", id=1, method="resources/read")) == (404 if protected else 200)


def test_a_session_that_was_forgotten_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client then opens another. Sessions in use are remembered longest."""
    monkeypatch.setattr("langchain_runtime_authz.resource_server.mcp.MAX_SESSIONS", 2)
    app = ProtectedMcp(Streams(), server())

    def used(session: str) -> int:
        headers = {"Authorization": f"Bearer {token()}", "Mcp-Session-Id": session}
        return asked(app, headers, "/mcp", json={"id": 1, "method": "resources/read"}).status_code

    for session in ("s", "t"):
        asked(app, {}, "/mcp", json={"id": 1, "method": "initialize", "params": {"opens": session}})
    assert used("s") == 200
    for session in ("u", "v"):
        asked(app, {}, "/mcp", json={"id": 1, "method": "initialize", "params": {"opens": session}})
    assert [used(session) for session in ("s", "t", "u")] == [200, 404, 200]
    # A request without a token counts as use too. The owned session that was unused longest goes.
    assert asked(app, {"Mcp-Session-Id": "s"}, "/mcp", json={"id": 1, "method": "ping"}).status_code == 200
    assert [used(session) for session in ("v", "s", "u")] == [200, 200, 404]


@pytest.mark.parametrize(("who", "method", "status", "after"), [
    ("alice", "DELETE", 200, 404), ("alice", "DELETE", 204, 404), ("alice", "DELETE", 405, 200), ("alice", "GET", 404, 404),
    ("alice", "GET", 200, 200), ("mallory", "DELETE", 200, 200), ("mallory", "GET", 404, 200), ("nobody", "DELETE", 200, 200),
    ("nobody", "ping", 404, 200),
], ids=str)  # fmt: skip
def test_a_session_that_its_owner_ended_is_forgotten(who: str, method: str, status: int, after: int) -> None:
    """Others' requests are refused, and a request without a token ends nothing: its 404 may be of another path."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        answer = int(dict(scope["headers"]).get(b"x-status", b"200"))
        await send({"type": "http.response.start", "status": answer, "headers": [(b"mcp-session-id", b"s")]})
        await send({"type": "http.response.body", "body": b"{}"})

    app = ProtectedMcp(inner, server())

    async def said(name: str, method: str, status: int = 200) -> int:
        bearer = {"Authorization": f"Bearer {token(subject=Subject(type='user', id=name))}"} if name != "nobody" else {}
        message = {} if method in ("GET", "DELETE") else {"json": {"id": 1, "method": method}}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            headers = {**bearer, "Mcp-Session-Id": "s", "X-Status": str(status)}
            return (await client.request("POST" if message else method, "/mcp", headers=headers, **message)).status_code

    assert asked(app, {}, "/mcp", json={"id": 1, "method": "initialize"}).status_code == 200
    assert asyncio.run(said("alice", "resources/read")) == 200
    asyncio.run(said(who, method, status))
    assert asyncio.run(said("alice", "resources/read")) == after


def test_closed_sessions_push_out_no_open_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_runtime_authz.resource_server.mcp.MAX_SESSIONS", 2)
    opened: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if b"mcp-session-id" not in dict(scope["headers"]):
            opened.append(f"s{len(opened)}")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"mcp-session-id", opened[-1].encode())]})
        await send({"type": "http.response.body", "body": b"{}"})

    app = ProtectedMcp(inner, server())

    async def said(method: str, session: str) -> int:
        headers = {"Authorization": f"Bearer {token()}", "Mcp-Session-Id": session}
        message = {"json": {"id": 1, "method": "resources/read"}} if method == "POST" else {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            return (await client.request(method, "/mcp", headers=headers, **message)).status_code

    for _ in range(5):
        asked(app, {}, "/mcp", json={"id": 1, "method": "initialize"})
        statuses = [asyncio.run(said("POST", opened[-1]))]
        if len(opened) > 1:
            statuses.append(asyncio.run(said("DELETE", opened[-1])))
        assert set(statuses) == {200}
    assert asyncio.run(said("POST", "s0")) == 200


# --- introspection -------------------------------------------------------------------------------------


def endpoint(status: Any = None, **clients: IntrospectionClient) -> IntrospectionEndpoint:
    return IntrospectionEndpoint(
        verifier=Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks()), status=status or Says(),
        clients={"bank": IntrospectionClient(SECRET, audiences=(BANK,), tenant="acme"), **clients},
    )


BASIC = {"Authorization": basic_auth("bank", SECRET)}


def test_a_live_token_is_active() -> None:
    """With its claims, its type and nothing of its signature (RFC 7662 §2.2)."""
    answer = asked(endpoint(), BASIC, "/", data={"token": token(cnf_jkt="thumb")})
    body = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (body["active"], body["sub"], body["aud"], body["token_type"]) == (True, "alice", BANK, "DPoP")
    assert body["act"]["act"]["sub"] == "urn:langchain-runtime-authz:agent:supervisor"
    plain = asked(endpoint(), BASIC, "/", data={"token": token(details=call_details())}).json()
    assert plain["token_type"] == "Bearer"
    assert plain["authorization_details"][1:] == list(call_details())  # RFC 9396 §9.2


@pytest.mark.parametrize(
    ("status", "changes"),
    [(Says("ended"), {}), (Says(), {"audience": "https://mail.example"}), (Says(), {"tenant": "umbrella"})],
    ids=["ended", "another's", "another tenant's"],
)
def test_what_is_not_live_or_not_theirs_is_inactive(status: Any, changes: Any) -> None:
    """And nothing more is told about it."""
    assert asked(endpoint(status), BASIC, "/", data={"token": token(**changes)}).json() == {"active": False}


@pytest.mark.parametrize("bad", ["", "x", "a.b.c", "A" * 17_000], ids=["empty", "x", "dots", "long"])
def test_what_is_no_token_is_inactive(bad: str) -> None:
    """No token is an error to the endpoint; a missing one is."""
    answer = asked(endpoint(), BASIC, "/", data={"token": bad})
    assert answer.json() == ({"active": False} if bad else {"error": "invalid_request"})


@pytest.mark.parametrize(("headers", "options", "status"), [
    ({}, {"data": {"token": "x"}}, 401),
    ({"Authorization": basic_auth("bank", "wrong secret of a service")}, {"data": {"token": "x"}}, 401),
    ({"Authorization": basic_auth("mail", SECRET)}, {"data": {"token": "x"}}, 401),
    ({"Authorization": "Basic !"}, {"data": {"token": "x"}}, 401),
    ({"Authorization": "Basic /w=="}, {"data": {"token": "x"}}, 401),
    ({"Authorization": f"Bearer {SECRET}"}, {"data": {"token": "x"}}, 401),
    ({"Authorization": basic_auth("bank", SECRET).replace("Basic", "Bearer")}, {"data": {"token": "x"}}, 401),
    (BASIC, {"json": {"token": "x"}}, 400), ({**BASIC, "Content-Type": "text/plain"}, {"content": "token=x"}, 400),
    (BASIC, {"content": "token=x"}, 400), (BASIC, {"data": {}}, 400), (BASIC, {"data": {"token": ["x", "y"]}}, 400),
    (BASIC, {"data": {"token": "x" * 30_000}}, 400), (BASIC, {"data": {f"a{i}": "1" for i in range(50)}}, 400),
], ids=lambda v: ascii(v)[:40] if not isinstance(v, int) else str(v))
def test_who_may_not_ask_is_told_nothing(headers: Any, options: Any, status: int) -> None:
    """A caller is authenticated first; a body that is no form with one token is refused."""
    answer = asked(endpoint(), headers, "/", **options)
    assert answer.status_code == status and set(answer.json()) == {"error"}


def test_an_endpoint_that_can_not_tell_says_so() -> None:
    """A failing ledger is 503, never `active`, and the endpoint stays up."""
    for failure in (CredentialError(Code.STATUS_UNAVAILABLE), OSError()):
        made = endpoint(Says(failure))
        assert asked(made, BASIC, "/", data={"token": token()}).status_code == 503

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url=BANK) as client:
            return await client.get("/")

    assert asyncio.run(get()).status_code == 405
    assert "secret" not in repr(IntrospectionClient(SECRET, audiences=(BANK,)))


def seen_by(answer: Any) -> Any:
    """What the client makes of an endpoint's answer about a live token."""

    def respond(request: httpx.Request) -> httpx.Response:
        return answer(request) if callable(answer) else answer

    async def ask() -> str:
        asking = Introspection("https://i.example/", client_id="bank", client_secret=SECRET, tls=answered(respond))
        credential = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks()).verify(token(), audience=BANK)
        return await asking.status(credential)

    return asyncio.run(ask())


def test_the_client_asks_as_the_rfc_says() -> None:
    """A form with the token, authenticated; `active` and the same `jti` is live, not active is not."""
    asked_with: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked_with.append(request)
        return httpx.Response(200, json={"active": True, "jti": "j-1"})

    assert seen_by(respond) == "live" and asked_with[0].headers["authorization"] == BASIC["Authorization"]
    assert asked_with[0].headers["content-type"] == "application/x-www-form-urlencoded"
    assert b"token_type_hint=access_token" in asked_with[0].content
    assert seen_by(httpx.Response(200, json={"active": False})) == "ended"


@pytest.mark.parametrize("answer", [
    httpx.Response(200, json={"active": True}), httpx.Response(200, json={"active": True, "jti": "another"}),
    httpx.Response(200, json={"active": "true", "jti": "j-1"}), httpx.Response(200, json={"active": 1, "jti": "j-1"}),
    httpx.Response(200, json=[]), httpx.Response(200, text='{"active": false, "active": true, "jti": "j-1"}'),
    httpx.Response(200, text="<html>"), httpx.Response(401, json={"active": True, "jti": "j-1"}),
    httpx.Response(302, headers={"Location": "https://evil.example"}), httpx.Response(500),
    lambda _: (_ for _ in ()).throw(httpx.ConnectTimeout("slow")),
], ids=lambda _: "answer")
def test_another_answer_is_no_answer(answer: Any) -> None:
    """Anything else than RFC 7662's about this very token: nobody can tell, so it is refused."""
    with pytest.raises(CredentialError, match="status_unavailable: "):
        seen_by(answer)


def test_introspection_is_configured_safely() -> None:
    """No plain HTTP to another machine, no empty or short secret, no secret in text."""
    for options in ({"url": "http://i.example"}, {"client_id": ""}, {"client_secret": ""}):
        with pytest.raises(ConfigError):
            Introspection(**{"url": "https://i.example/", "client_id": "bank", "client_secret": SECRET, **options})
    made = Introspection("https://i.example/", client_id="bank", client_secret=SECRET)
    assert SECRET not in repr(made)
    for secret, audiences in (("short", (BANK,)), (SECRET, ()), (SECRET, BANK)):
        with pytest.raises(ConfigError):
            IntrospectionClient(secret, audiences=audiences)  # type: ignore[arg-type]


async def test_the_ledger_and_the_kill_switch_are_asked(tmp_path: Path) -> None:
    """A key that was withdrawn in the ledger refuses every token that it signed, and the kill switch all tokens."""
    from langchain_runtime_authz.ledger.changes import Reinstate, Revoke
    from langchain_runtime_authz.pep.kill_switch import KillSwitch
    from langchain_runtime_authz.pep.mint_tokens import key_scopes

    class Live(MemoryLedger):
        def status(self, tenant: str, jti: str) -> Any:
            return "live" if (tenant, jti) == ("acme", "j-1") else "unknown"

    ledger, switch, (of_all, own) = Live(), KillSwitch(tmp_path / "kill"), key_scopes("acme", ISSUER.issuer, KEY.kid)
    credential = Verifier(issuer=ISSUER.issuer, jwks=ISSUER.jwks()).verify(token(), audience=BANK)
    status = LedgerStatus(ledger, switch)
    for stop, go in (
        (lambda: ledger.commit(of_all, None, [Revoke(())]), lambda: ledger.commit(of_all, None, [Reinstate(())])),
        (lambda: ledger.commit(own, None, [Revoke(())]), lambda: ledger.commit(own, None, [Reinstate(())])),
        (switch.engage, switch.release),
    ):
        assert await status.status(credential) == "live"
        stop()
        assert await status.status(credential) == "revoked"
        go()
    assert await status.status(credential) == "live"


def proven(made: ResourceServer, app: Any, path: str, url: str, **headers: str) -> str:
    """What a client is answered that knows the service as `url` and whose request arrives as `path`."""
    answer = asked(app, {**proved(ProofKey(), url), **headers}, path)
    return "200" if answer.status_code == 200 else challenge(answer).partition('error_description="')[2].partition('"')[0]


FORWARDED = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/api", "Host": "evil.example"}


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("narrowed", [False, True])
def test_a_proof_is_held_against_the_public_url(root_path: str, narrowed: bool) -> None:
    """Behind a proxy that takes `/api` off: the URL that the client knows is right, the one that arrives is not."""
    made = server(proofs=ProofVerifier(public_url=f"{BANK}/api/"))
    inner = app_of(made.for_tools("send_money") if narrowed else made)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "root_path": root_path}, receive, send)

    assert proven(made, app, "/pay", f"{BANK}/api/pay") == "200"
    for url in (f"{BANK}/pay", f"{BANK}/other/pay", f"{BANK}/api/api/pay", f"{BANK}/apix/pay", "https://evil.example/api/pay"):
        assert proven(made, app, "/pay", url) == "proof_invalid"


def test_what_a_proxy_is_said_to_have_done_is_not_believed() -> None:
    """No header moves the URL that a proof must be for, with a public URL and without."""
    for made, arrives in ((server(), f"{BANK}/pay"), (server(proofs=ProofVerifier(public_url=f"{BANK}/api")), f"{BANK}/api/pay")):
        app = app_of(made)
        assert proven(made, app, "/pay?y=2", f"{arrives}?x=1", **FORWARDED) == "200"
        for url in ("https://evil.example/pay", "https://evil.example/api/pay", f"{BANK}/x/pay"):
            assert proven(made, app, "/pay", url, **FORWARDED) == "proof_invalid"
        wrong = challenge(asked(app, {**proved(ProofKey(), "https://evil.example/pay"), "Host": "evil.example"}))
        assert 'DPoP realm="api", error="invalid_dpop_proof", error_description="proof_invalid"' in wrong
        assert "Bearer" not in wrong  # a bound token is no bearer token, whatever is wrong with its proof


@pytest.mark.parametrize("public", [None, f"{BANK}/api"])
def test_a_mounted_application_is_where_it_is_mounted(public: str | None) -> None:
    """What the router itself takes off is in the path still: the whole path counts, once."""
    made = server(proofs=ProofVerifier(public_url=public or BANK))
    app = Starlette(routes=[Mount("/v1", app=ProtectedApp(app_of(made), made))])
    prefix = (public or BANK) + "/v1"
    assert proven(made, app, "/v1/pay", f"{prefix}/other") == "proof_invalid"
    assert proven(made, app, "/v1/pay", f"{BANK}/pay") == "proof_invalid"
    outer = Starlette(routes=[Mount("/v1", app=app_of(made))])
    assert proven(made, outer, "/v1/pay", f"{prefix}/pay") == "200"


def test_a_service_loads_no_agent_framework() -> None:
    """Each module alone, whatever the root package imports: neither LangChain nor LangGraph, nor the client side."""
    folder = Path(langchain_runtime_authz.__file__).parent
    code = """
import importlib, sys, types
root = sys.modules["langchain_runtime_authz"] = types.ModuleType("langchain_runtime_authz")
root.__path__ = [sys.argv[1]]
for name in sys.argv[2:]:
    importlib.import_module(f"langchain_runtime_authz.resource_server.{name}")
    tops = {m.partition(".")[0] for m in sys.modules}
    print(name, [t for t in sorted(tops) if t.startswith(("langchain", "langgraph"))])
print([m for m in sys.modules if m.startswith("langchain_runtime_authz.downstream")])
"""
    modules = sorted(path.stem for path in (folder / "resource_server").glob("[!_]*.py"))
    done = subprocess.run([sys.executable, "-c", code, str(folder), *modules], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*(f"{name} ['langchain_runtime_authz']" for name in modules), "[]"]
