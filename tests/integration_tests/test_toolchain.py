"""A search tool is used to reach an internal admin API: the agent calls a search service, which calls on.

Three real services over HTTP. Behind the search tool lies its index, and its profile says so. The injected text makes
the agent search in the admin API instead.
"""

import contextlib
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from langchain_core.tools import tool

from langchain_runtime_authz import Grant, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import GRANT_TYPE
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.downstream.exchange import ACCESS_TOKEN, ExchangeAuth, TokenExchange
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import call, hand_written, replying
from tests.endpoints import answered
from tests.integration_tests.downstream_services import serving
from tests.integration_tests.services import free_port


class Chain:
    """Search service, index, admin API, token endpoint. With `authz`, services act under the caller's token only."""

    def __init__(self, stack: contextlib.ExitStack, authz: RuntimeAuthz | None, ports: list[int]) -> None:
        self.search, self.index, self.admin, self.sts = (f"http://127.0.0.1:{p}" for p in ports)
        self.key, self.authz = SigningKey.generate(), authz
        self.seen: list[dict[str, Any]] = []
        self.refused: list[str] = []
        for port, app in zip(ports, (self._search(), self._data("index"), self._data("admin"), self._sts()), strict=True):
            stack.enter_context(serving(app, port))

    def _search(self) -> FastAPI:
        app = FastAPI()

        @app.get("/search")
        def search(request: Request, source: str) -> Any:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            bearer = "the search service's own key"
            if self.authz is not None:
                form = {"subject_token": token, "resource": source}
                answer = httpx.post(self.sts + "/token", data=form)
                if answer.status_code != 200:
                    self.refused.append(answer.json()["error"])
                    return JSONResponse({"error": answer.json()["error"]}, 403)
                bearer = answer.json()["access_token"]
            return httpx.get(source + "/data", headers={"Authorization": f"Bearer {bearer}"}).json()

        return app

    def _data(self, name: str) -> FastAPI:
        app = FastAPI()

        @app.get("/data")
        def data(request: Request) -> Any:
            token = request.headers["authorization"].removeprefix("Bearer ")
            if self.authz is not None:
                public = jwt.PyJWK(self.key.public_jwk()).key
                claims = jwt.decode(token, public, algorithms=["ES256"], audience=getattr(self, name))
                self.seen.append({**claims, "at": name})
            return {"found": f"data of {name}"}

        return app

    def _sts(self) -> FastAPI:
        app = FastAPI()

        @app.post("/token")
        async def token(request: Request) -> Any:
            form = await request.form()
            verifier = Verifier(issuer=self.authz.issuer.issuer, jwks=self.authz.issuer.jwks)
            held = verifier.verify(str(form["subject_token"]), audience={self.search, self.sts + "/token"})
            details = jwt.decode(held.token, options={"verify_signature": False})["authorization_details"]
            granted = [d["grant"].get("audiences") for d in details if d["type"] == GRANT_TYPE and "grant" in d]
            reaches = {r for d in details for r in d.get("reaches", ())}
            for audiences in granted:
                reaches = reaches if audiences is None else reaches & set(audiences)
            if form["resource"] not in reaches:
                return JSONResponse({"error": "invalid_target"}, 400)
            act = {"sub": "search", "act": jwt.decode(held.token, options={"verify_signature": False})["act"]}
            claims = {"sub": held.subject, "act": act, "aud": form["resource"], "authorization_details": details}
            issued = jwt.encode(claims, self.key.to_pem(), algorithm="ES256")
            return {"access_token": issued, "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 30}

        return app


def play(source: str, *, protected: bool, narrow: bool = False) -> tuple[Chain, str]:
    """Have the agent search in a source; return what the chain saw and what the agent was told."""
    ports = [free_port() for _ in range(4)]
    url, index, _, sts = (f"http://127.0.0.1:{p}" for p in ports)
    profile = ToolProfile(effect="read", sink="none", critical={"source": "url"}, audience=(url, f"{sts}/token"), reaches=(index,))
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"search": profile}) if protected else None
    with contextlib.ExitStack() as stack:
        chain = Chain(stack, authz, ports)

        @tool
        def search(source: str) -> str:
            """Search in a source."""
            headers = {"Authorization": f"Bearer {current_call().credential(url).token}"} if authz is not None else {}
            return httpx.get(url + "/search", params={"source": getattr(chain, source)}, headers=headers).text

        graph = hand_written(replying([call("search", {"source": source}, "s1")]), [search])
        if authz is None:
            said = graph.invoke({"messages": [("user", "look it up")]})
        else:
            authz.protect(graph)
            with authz.run(subject="alice", task="look it up", grant=Grant(audiences=(url,)) if narrow else None):
                said = graph.invoke({"messages": [("user", "look it up")]})
    return chain, str(said["messages"][-2].content)


def test_the_unenforced_twin_reads_the_admin_api() -> None:
    """The search service reaches the admin API with its own key, for anybody."""
    assert "data of admin" in play("admin", protected=False)[1]


def test_the_second_service_sees_chain_and_step() -> None:
    """What lies behind the tool is reached, on behalf of the user, with the agents and the call in the token."""
    chain, said = play("index", protected=True)
    assert "data of index" in said
    (claims,) = chain.seen
    assert claims["sub"] == "alice" and claims["act"]["sub"] == "search"
    assert claims["act"]["act"]["sub"].endswith(":hand")
    step = claims["authorization_details"][1]
    assert (step["identifier"], step["reaches"]) == ("search", [chain.index])


@pytest.mark.parametrize("source", ["admin", "index"])
def test_what_does_not_lie_behind_the_tool_is_refused(source: str) -> None:
    """Outside `reaches`, or outside the grant of the run: the endpoint issues nothing, and nothing is read."""
    chain, said = play(source, protected=True, narrow=source == "index")
    assert "data of" not in said and chain.seen == []
    assert chain.refused == ["invalid_target"]


def test_an_exchange_outside_is_refused_before_anything_is_sent() -> None:
    """The tool's own exchange for the admin API is refused with a code; for the index it is made."""
    profile = ToolProfile(effect="read", sink="none", audience=("https://sts.example/token",), reaches=("https://index.example",))
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"search": profile})
    sent: list[str] = []

    def asked(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.host)
        body = {"access_token": "t", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 30}
        return httpx.Response(200, json=body)

    transport = httpx.MockTransport(asked)
    exchange = TokenExchange("https://sts.example/token", tls=answered(asked))

    @tool
    def search() -> str:
        """Search."""
        for host in ("https://admin.example", "https://index.example"):
            try:
                httpx.Client(transport=transport, auth=ExchangeAuth(exchange, resource=host)).get(host)
            except CredentialError as exc:
                sent.append(exc.code)
        return "done"

    graph = authz.protect(hand_written(replying([call("search", {}, "s1")]), [search]))
    with authz.run(subject="alice"):
        graph.invoke({"messages": [("user", "look it up")]})
    assert sent == ["audience", "sts.example", "index.example"]
