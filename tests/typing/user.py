"""What a user types, as `mypy --strict` reads it without our plugins. Checked by CI, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, assert_type

import httpx
from fastapi import Depends, FastAPI
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from langchain_runtime_authz import (
    AuthzHalt,
    AuthzMiddleware,
    AuthzToolNode,
    Constraint,
    Grant,
    RuntimeAuthz,
    ToolProfile,
    current_call,
    profile,
)
from langchain_runtime_authz.coverage.report import CoverageReport
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.credential.token import Credential
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.downstream.httpx_auth import CallAuth
from langchain_runtime_authz.evaluation import parse_request
from langchain_runtime_authz.identity.oidc import OidcVerifier
from langchain_runtime_authz.identity.subjects import BearerSubject, platform_user
from langchain_runtime_authz.ledger import PostgresLedger, SqliteLedger
from langchain_runtime_authz.pap.reloading import ReloadingPDP
from langchain_runtime_authz.pdp import PDP, Decision
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import ObserveOnly
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.resource_server.server import ProtectedApp, ResourceServer
from langchain_runtime_authz.resource_server.status import LedgerStatus, Offline
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP

THREAD: Final = {"configurable": {"thread_id": "1"}}
GRANT = Grant(
    tools=("read_file", "send_money"),
    args={"send_money": {"recipient": Constraint(one_of=("DE21",)), "amount": Constraint(le=100)}}, sinks=("none", "external"),
)


@profile(effect="pay", sink="external", critical={"recipient": "principal"}, audience=("https://bank.example",))
@tool
def send_money(recipient: str) -> str:
    """Send money."""
    credential = current_call().credential()
    httpx.post("https://bank.example", headers=credential.headers("POST", "https://bank.example"))
    return current_call().idempotency_key


class OwnPDP:
    """An engine of one's own."""

    name: Final = "own"

    @property
    def revision(self) -> str:
        return "1"

    def evaluate(self, body: bytes) -> object:
        return {"decision": parse_request(body).action.name == "tools/call"}

    async def aevaluate(self, body: bytes) -> object:
        return self.evaluate(body)


class OwnSink:
    content: Final = False

    def write(self, record: dict[str, Any]) -> None:
        print(record)


class OwnIdentity:
    attested: Final = False
    expires_at: Final = None

    def agent_id(self, path: tuple[str, ...]) -> str:
        return "/".join(path)


def subject_of(config: Mapping[str, Any]) -> str | None:
    return None


def instances() -> list[RuntimeAuthz]:
    own: PDP = OwnPDP()
    return [
        RuntimeAuthz(pdp=OpaPDP("https://opa:8181", ca_file="ca.pem"), ledger=SqliteLedger("ledger.db")),
        RuntimeAuthz(pdp=own, ledger=PostgresLedger("dsn"), issuer=LocalIssuer(KeyDirectory("keys"))),
        RuntimeAuthz(pdp=ObserveOnly(WasmPDP(data={"effects": {"write": "deny"}})), subject_from=platform_user),
        RuntimeAuthz(pdp=DenyOverrides(CedarPDP(), CircuitBreaker(AuthzenPDP.discover("https://pdp.example")))),
        RuntimeAuthz(pdp=CandidatePDP(WasmPDP(), own), audit=OwnSink(), identity=OwnIdentity()),
        RuntimeAuthz(pdp=ReloadingPDP("policy.tar.gz", keys={"release": "pem"}), profiles="langchain"),
        RuntimeAuthz(pdp=StaticPDP(True), planner=ScriptedChatModel(script=[]), subject_from=subject_of),
        RuntimeAuthz(subject_from=BearerSubject(OidcVerifier("https://login.example", audience="api"))),
        RuntimeAuthz(profiles={"send_money": ToolProfile(effect="pay", sink="external")}, audit="audit.jsonl"),
    ]


async def graph(authz: RuntimeAuthz) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("tools", AuthzToolNode([send_money], authz=authz))
    builder.add_edge(START, "tools")
    compiled: CompiledStateGraph[Any, Any, Any, Any] = builder.compile(checkpointer=InMemorySaver())
    protected = assert_type(authz.protect(compiled), CompiledStateGraph[Any, Any, Any, Any])
    with authz.run(subject="alice", task="Pay the bill", grant=GRANT) as run:
        protected.invoke({"messages": []}, run.config(THREAD))
        for _ in protected.stream({"messages": []}, run.config()):
            pass
    async with authz.run(subject={"type": "service", "id": "cron"}) as run:
        try:
            await protected.ainvoke({"messages": []}, run.config(THREAD))
        except AuthzHalt as halt:
            print(halt.code, halt.decision_id)
    assert_type(authz.coverage(protected), CoverageReport).raise_if_ungoverned()
    assert_type(authz.guard(send_money), BaseTool)
    assert_type(authz.guard([send_money]), list[BaseTool])
    AuthzMiddleware(authz)
    await authz.arevoke("1")


async def session(authz: RuntimeAuthz) -> None:
    with authz.session(subject="alice", task="Pay the bill") as parent:
        decision = assert_type(parent.decide("send_money", {"recipient": "DE21"}), Decision)
        if decision.permit:
            parent.observe("send_money", {"recipient": "DE21"}, "sent")
        parent.delegate("payer", GRANT).close()
    async with await authz.asession(subject="alice") as other:
        await other.adecide("send_money", {})


def service(authz: RuntimeAuthz) -> FastAPI:
    verifier = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks)
    guard = ResourceServer(verifier=verifier, audience="https://bank.example", tenant="acme", status=LedgerStatus(authz.ledger))
    app = FastAPI(dependencies=[Depends(guard)])

    @app.post("/payments")
    async def pay(credential: Annotated[Credential, Depends(guard)]) -> str:
        return assert_type(credential.subject, str)

    offline = ResourceServer(verifier=verifier, audience="https://bank.example", tenant="acme", status=Offline())
    ProtectedApp(app, offline)
    httpx.Client(auth=CallAuth(dpop=True))
    return app
