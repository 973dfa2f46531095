"""ASI03 Identity and Privilege Abuse: a call's token once its task has ended, and in another agent.

`unit_tests/resource_server` and `unit_tests/downstream` have each other place and hand.
"""

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import LedgerError
from langchain_runtime_authz.pep import claim_calls
from langchain_runtime_authz.resource_server.dpop import ProofVerifier
from langchain_runtime_authz.resource_server.server import ProtectedApp, ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus

from ._kit import *

BANK, MAIL = "https://bank.example", "https://mail.example"
PROFILES = {
    name: ToolProfile(effect="pay", sink="external", idempotent=True, audience=(BANK,))
    for name in ("pay", "ask_agent", "inner_pay")
}


def service(authz: RuntimeAuthz) -> Any:
    """A service that asks the ledger."""

    async def served(request: Request) -> JSONResponse:
        return JSONResponse({"by": request.state.credential.actors[0].rpartition(":")[2]})

    server = ResourceServer(
        verifier=Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks), audience=BANK, tenant="default",
        status=LedgerStatus(authz.ledger), proofs=ProofVerifier(public_url=BANK),
    )
    return ProtectedApp(Starlette(routes=[Route("/pay", served, methods=["POST"])]), server)


def naive_service(token: str) -> Any:
    """A service that looks at the token and at nothing else."""

    async def served(request: Request) -> JSONResponse:
        known = request.headers.get("authorization") == f"Bearer {token}"
        return JSONResponse({}, 200 if known else 401)

    return Starlette(routes=[Route("/pay", served, methods=["POST"])])


def sent(app: Any, headers: dict[str, str]) -> int:
    async def send() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BANK) as client:
            return (await client.post("/pay", headers=headers)).status_code

    return asyncio.run(send())


def authz_of() -> RuntimeAuthz:
    return RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES)


def played(authz: RuntimeAuthz, inside: Any, *, dpop: bool) -> None:
    """One call of `pay`, in which `inside` is done with the call's credential."""
    pay = a_tool("pay", lambda: [inside(current_call().credential(dpop=dpop)), "paid"][1])
    graph = authz.protect(hand_written(replying([call("pay", {}, "c1")]), [pay], checkpointer=InMemorySaver(), name="bank"))
    with authz.run(subject="alice", task="Pay"), contextlib.suppress(Exception):
        graph.invoke(human(), THREAD)


@pytest.mark.parametrize("dpop", [False, True], ids=["bearer", "dpop"])
@pytest.mark.parametrize("stopped", [None, RuntimeAuthz.correct, RuntimeAuthz.revoke], ids=["during", "corrected", "revoked"])
def test_a_token_ends_with_its_task(stopped: Any, dpop: bool) -> None:
    """Even with its key, and while its call still runs: the same service refuses it."""
    authz = authz_of()
    app, answers = service(authz), []

    def inside(credential: Any) -> None:
        if stopped is not None:
            stopped(authz, "t", *(["Stop."] if stopped is RuntimeAuthz.correct else []), graph="bank")
        answers.append(sent(app, credential.headers("POST", BANK + "/pay")))

    played(authz, inside, dpop=dpop)
    assert answers == [401 if stopped else 200]


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("road", ["sync", "async"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("stopped", [RuntimeAuthz.correct, RuntimeAuthz.revoke], ids=["corrected", "revoked"])
def test_a_stopped_call_gets_no_token(stopped: Any, again: bool, road: str, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process stops it while its tool runs. Unchecked, the tool gets a token that an offline service accepts."""
    if not checked:
        monkeypatch.setattr(claim_calls, "status_check", lambda *_: None)
    authz, got = authz_of(), []
    offline = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks)

    @tool
    def pay() -> str:
        """Pay."""
        if again:
            current_call().credential()
        other = RuntimeAuthz(ledger=authz.ledger)
        stopped(other, "t", *(["Stop."] if stopped is RuntimeAuthz.correct else []), graph="bank")
        call = current_call()
        given = said_by(lambda: call.credential() if road == "sync" else asyncio.run(call.acredential()))
        got.append(given if isinstance(given, str) else offline.verify(given.token, audience=BANK).audience)
        return "paid"

    graph = authz.protect(hand_written(replying([call("pay", {}, "c1")]), [pay], checkpointer=InMemorySaver(), name="bank"))
    with authz.run(subject="alice", task="Pay"), contextlib.suppress(Exception):
        graph.invoke(human(), THREAD)
    assert got == ["credential_revoked" if checked else BANK]


@pytest.mark.parametrize("road", ["sync", "async"])
def test_an_inner_agent_has_no_part_in_the_outer_call(road: str, protected: bool) -> None:
    """A node of an agent that a tool calls finds no credential of that tool; its own tools have their own.

    Unprotected, with the token in a variable of the process, the inner agent's node has it.
    """
    authz = authz_of()
    found: dict[str, Any] = {}
    variable: list[str] = []

    def thief(state: Any) -> dict[str, Any]:
        found["node"] = said_by(lambda: current_call().credential().token) if protected else variable[0]
        return {"messages": []}

    @tool
    def inner_pay() -> str:
        """Pay, in the inner agent."""
        found["actor"] = current_call().credential().claims["act"]["sub"].rpartition(":")[2] if protected else "none"
        return "paid"

    nosy = node_graph(thief, name="nosy")
    inner = agent_graph(replying([call("inner_pay", {}, "i1")]), [inner_pay], name="inner")

    @tool
    def ask_agent() -> str:
        """Ask other agents."""
        if protected:
            found["mine"] = current_call().credential().token
        else:
            variable.append("static")
        nosy.invoke(human())
        inner.invoke(human())
        if protected:
            assert current_call().credential().token == found["mine"]
        return "asked"

    outer = agent_graph(replying([call("ask_agent", {}, "c1")]), [ask_agent], name="outer")
    if protected:
        authz.protect(outer)
    with authz.run(subject="alice", task="Ask") if protected else contextlib.nullcontext():
        outer.invoke(human()) if road == "sync" else asyncio.run(outer.ainvoke(human()))
    if protected:
        assert found["node"] == "credential_unavailable" and found["actor"] == "outer/inner"
    else:
        assert found["node"] == "static"


@pytest.mark.parametrize("effect", ["read", "pay"])
@pytest.mark.parametrize("leaks", [True, False], ids=["leaks", "twin"])
def test_a_ledger_that_fails_at_the_end_of_a_leak_revokes_all_the_same(leaks: bool, effect: Any) -> None:
    """Once it answers again, before the next step. The twin's tool returns nothing of its token, and may go on."""
    profile = ToolProfile(effect=effect, sink="external", idempotent=True, audience=(BANK,))
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles={"leaky": profile})
    commit = authz.ledger.commit

    def late(*given: Any) -> Any:
        authz.ledger.commit = commit  # type: ignore[method-assign]
        raise LedgerError(Code.LEDGER_TIMEOUT)

    def leaky() -> str:
        token = current_call().credential().token
        authz.ledger.commit = late  # type: ignore[method-assign]
        return token if leaks else "done"

    guarded = authz.guard(a_tool("leaky", leaky))
    with authz.run(subject="alice"):
        assert guarded.invoke({}) == ("[redacted credential]" if leaks else "done")
        with pytest.raises(AuthzDenied) if leaks else contextlib.nullcontext():
            guarded.invoke({})
