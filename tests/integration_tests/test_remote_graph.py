"""An agent of another server, over real HTTP: it takes its credential by header, and its own instance checks the chain."""

import contextlib
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.messages import message_to_dict
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel.remote import RemoteGraph

from langchain_runtime_authz import Grant, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import AuthzDenied, AuthzError
from langchain_runtime_authz.identity.subjects import BearerSubject
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.attack._graphs import PAY, hand_written, replying, says
from tests.integration_tests.downstream_services import serving
from tests.integration_tests.services import free_port

FAR = "https://far.example"
BANK = "https://bank.example"


@pytest.fixture(name="port")
def _port() -> int:
    return free_port()


class Far:
    """The other server: a protected payer behind the part of the Agent Server's API that `RemoteGraph` uses."""

    def __init__(self, home: RuntimeAuthz | None) -> None:
        self.paid: list[Any] = []
        self.tokens: list[Any] = []
        self.refused: list[str] = []
        self.headers: list[str | None] = []

        @tool
        def pay(to: str, amount: float) -> str:
            """Pay somebody."""
            if self.caller is not None:
                token = current_call().credential().token
                self.tokens.append(self.authz.verifier.verify(token, audience=BANK))
            self.paid.append((to, amount))
            return "paid"

        self.graph = hand_written(replying([PAY]), [pay], name="payer")
        self.caller = None
        if home is not None:
            verifier = Verifier(issuer=home.issuer.issuer, jwks=home.issuer.jwks, status=home._status)
            self.caller = BearerSubject(verifier, audience=FAR)
            self.pdp = StaticPDP(True)
            profiles = {"pay": ToolProfile(effect="pay", audience=(BANK,))}
            self.authz = RuntimeAuthz(pdp=self.pdp, subject_from=self.caller, profiles=profiles)
            self.authz.protect(self.graph)
        self.app = FastAPI()
        self.app.post("/runs/stream")(self.run)

    async def run(self, request: Request) -> Any:
        """Run the graph, as whom the header says."""
        body, header = await request.json(), request.headers.get("Authorization")
        self.headers.append(header)
        messages = [(m["type"], m["content"]) for m in body["input"]["messages"]]
        try:
            async with self.caller.presented(header) if self.caller is not None else contextlib.nullcontext():
                state = await self.graph.ainvoke({"messages": messages})
        except AuthzError as exc:
            self.refused.append(exc.code)
            return JSONResponse({"code": exc.code}, 403)
        found = {"messages": [{**message_to_dict(m)["data"], "type": m.type} for m in state["messages"]]}
        return StreamingResponse(iter([f"event: values\ndata: {json.dumps(found)}\n\n"]), media_type="text/event-stream")


def home(far: RemoteGraph, how: str, pdp: StaticPDP | None = None, **options: Any) -> tuple[Any, Any]:
    """A graph whose only step is the remote agent: as a node, called in a node, or called in a tool."""
    model = replying([{"name": "ask_far", "args": {}, "id": "a1", "type": "tool_call"}])

    @tool
    def ask_far() -> str:
        """Ask the other server."""
        return str(far.invoke({"messages": [{"type": "human", "content": "pay bob"}]})["messages"][-1]["content"])

    def work(state: MessagesState) -> dict[str, Any]:
        far.invoke({"messages": [{"type": "human", "content": "pay bob"}]})
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("far", {"node": far, "function": work}.get(how) or hand_written(model, [ask_far], name="inner"))
    graph = builder.add_edge(START, "far").compile(name="home")
    authz = RuntimeAuthz(pdp=pdp or StaticPDP(True), profiles={"ask_far": "reads"}, **options)
    return authz, graph


INPUT = {"messages": [{"type": "human", "content": "pay bob", "role": "user"}]}
PLACES = ("node", "function", "tool")


def named(port: int, audience: str = FAR) -> dict[str, Any]:
    """The other server's place and name."""
    return {"far": {"url": f"http://127.0.0.1:{port}", "audience": audience, "grant": Grant(tools=("pay",), max_depth=3)}}


def go(authz: RuntimeAuthz, graph: Any, **run: Any) -> None:
    with authz.run(**{"subject": "alice", **run}), contextlib.suppress(AuthzDenied):
        graph.invoke(INPUT)


@pytest.mark.parametrize("how", PLACES)
def test_the_unenforced_twin_pays(how: str, port: int) -> None:
    """Unprotected on both sides, the other server's agent pays for anybody."""
    far = Far(None)
    with serving(far.app, port) as url:
        _, graph = home(RemoteGraph("far", url=url), how)
        graph.invoke(INPUT)
    assert far.paid == [("bob", 5.0)] and far.headers == [None]


@pytest.mark.parametrize("how", PLACES)
def test_the_other_server_acts_under_the_credential(how: str, port: int) -> None:
    """It sees the user as subject, the agents as chain, at most their grant, and nobody's words as the user's."""
    remote = RemoteGraph("far", url=f"http://127.0.0.1:{port}")
    authz, graph = home(remote, how, agents=named(port))
    authz.protect(graph)
    far = Far(authz)
    with serving(far.app, port):
        go(authz, graph, grant=Grant(tools=("pay", "ask_far"), max_depth=9))
    assert far.paid == [("bob", 5.0)]
    asked = next(r for r in far.pdp.requests if r.resource.id == "pay")
    above = far.tokens[0].actors
    assert (asked.subject.type, asked.subject.id) == ("user", "alice")
    assert above[0].endswith(":payer") and above[-1].endswith(":home")
    assert asked.context.delegation.depth == len(above) - 1
    assert [(e.from_, e.to, e.kind) for e in asked.context.delegation.edges] == [(above[1], "payer", "remote")]
    assert asked.context.lease.grant["tools"] == ["pay"] and asked.context.lease.grant["max_depth"] == 3
    assert asked.context.task.text is None or "pay bob" not in asked.context.task.text
    invited = [r for r in authz.pdp.requests if r.action.name == "agent/invoke" and r.resource.id == "far"]
    assert [r.resource.properties["kind"] for r in invited] == ["remote"]
    # With the call, the credential is over: the other server refuses it.
    with pytest.raises(AuthzError) as over:
        far.caller._verify[0](far.headers[0].removeprefix("Bearer "))
    assert over.value.code == "credential_revoked"


@pytest.mark.parametrize("how", PLACES)
def test_a_denied_edge_sends_nothing(how: str, port: int) -> None:
    """No request reaches the other server."""
    authz, graph = home(
        RemoteGraph("far", url=f"http://127.0.0.1:{port}"), how, StaticPDP(lambda r: r.resource.id != "far"), agents=named(port),
    )  # fmt: skip
    authz.protect(graph)
    far = Far(authz)
    with serving(far.app, port):
        go(authz, graph)
    assert far.headers == []


def test_no_url_no_credential(port: int) -> None:
    """Where no profile names the server, the edge is decided and nothing is sent along: the server refuses."""
    authz, graph = home(RemoteGraph("far", url=f"http://127.0.0.1:{port}"), "node")
    authz.protect(graph)
    far = Far(authz)
    with serving(far.app, port):
        with authz.run(subject="alice"), contextlib.suppress(Exception):
            graph.invoke(INPUT)
    assert far.headers == [None] and far.refused == ["identity_invalid"]
    assert [r.layers for r in authz.coverage(graph).rows if r.kind == "remote graph"] == [()]


BAD = {"forged": "credential_invalid", "tool": "credential_tool", "audience": "audience", "tenant": "credential_tenant",
       "other issuer": "credential_key"}  # fmt: skip


@pytest.mark.parametrize("token", BAD)
def test_the_other_server_refuses_a_bad_chain(token: str, port: int) -> None:
    """A changed chain, a tool's token, another audience or tenant, another issuer: nothing runs."""
    import base64

    authz, graph = home(RemoteGraph("far", url=f"http://127.0.0.1:{port}"), "function", agents=named(port))
    authz.protect(graph)
    far = Far(authz)
    made = RuntimeAuthz(pdp=StaticPDP(True), issuer=None if token == "other issuer" else authz.issuer,
                        tenant="other" if token == "tenant" else "default", ledger=authz.ledger,
                        profiles={"pay": ToolProfile(audience=(FAR,))}, agents=named(port, BANK if token == "audience" else FAR))  # fmt: skip
    sent: list[str] = []

    class Caught(RemoteGraph):
        def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            header = kwargs["headers"]["Authorization"]
            if token == "forged":
                head, payload, signature = header.split(".")
                claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
                claims["act"] = {"sub": claims["act"]["sub"], "act": {"sub": "urn:admin"}}
                header = ".".join((head, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("="), signature))
            if token == "tool":
                header = f"Bearer {self.held}"
            sent.append(header)
            return super().stream(input, config, **{**kwargs, "headers": {"Authorization": header}})

    caught = Caught("far", url=f"http://127.0.0.1:{port}")

    @tool
    def pay(to: str, amount: float) -> str:
        """Pay somebody."""
        caught.held = current_call().credential().token
        return str(caught.invoke({"messages": [{"type": "human", "content": "pay bob"}]}))

    outer = hand_written(ScriptedChatModel(script=[says(PAY), says(text="done")]), [pay], name="home")
    made.protect(outer)
    with serving(far.app, port), made.run(subject="alice"), contextlib.suppress(Exception):
        outer.invoke({"messages": [("user", "pay bob")]})
    assert len(sent) == 1 and far.paid == []
    assert far.refused == [BAD[token]]
