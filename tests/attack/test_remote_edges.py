"""The credential of an agent on another server: for one deployment's URL, and sent nowhere else."""

import contextvars
import json
import time
from functools import partial

import httpx
from langchain.agents import create_agent
from langchain_core.messages import message_to_dict
from langgraph.config import get_config
from langgraph.pregel.remote import RemoteGraph
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient

from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import AuthzDenied, AuthzError
from langchain_runtime_authz.identity.subjects import BearerSubject
from langchain_runtime_authz.langgraph.middleware import AuthzMiddleware
from tests.unit_tests.credential.tokens import a_request

from ._kit import *

PAYER, ADMIN = "https://far.example/payer", "https://far.example/admin"  # two deployments of one host
PAYS = call("pay", {"to": "bob", "amount": 5.0}, "p1")
how = params("sync", "async")


class Deployment:
    """A protected agent behind the part of the Agent Server's API that `RemoteGraph` uses."""

    def __init__(self, home: RuntimeAuthz, audience: Any) -> None:
        self.ran: list[Any] = []
        self.seen: list[str | None] = []
        self.codes: list[str] = []
        self.graph = hand_written(replying([PAYS]), [pay_tool(self.ran)], name="payer")
        self.caller = BearerSubject(Verifier(issuer=home.issuer.issuer, jwks=home.issuer.jwks), audience=audience)
        protecting(self.graph, StaticPDP(True), subject_from=self.caller)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer as another process does: nothing of the caller's context is there."""
        return contextvars.Context().run(self._answer, request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        """Run the graph, or take the change of its state, as whom the header says."""
        self.seen.append(request.headers.get("Authorization"))
        try:
            with self.caller.presented(self.seen[-1]):
                if request.url.path.endswith("/state"):
                    return httpx.Response(200, json={"checkpoint": {"thread_id": "t", "checkpoint_id": "c", "checkpoint_ns": ""}})
                state = self.graph.invoke({"messages": [("user", "pay bob")]})
        except AuthzError as exc:
            self.codes.append(exc.code)
            return httpx.Response(403, json={"code": exc.code})
        found = {"messages": [{**message_to_dict(m)["data"], "type": m.type} for m in state["messages"]]}
        sse = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, text=f"event: values\ndata: {json.dumps(found)}\n\n", headers=sse)


def remote(url: str, serve: Any, **client: Any) -> RemoteGraph:
    """A remote graph at `url`; `serve` answers each request, wherever it goes."""
    given: dict[str, Any] = {"base_url": url, "transport": httpx.MockTransport(serve), **client}
    clients = {"sync_client": SyncLangGraphClient(httpx.Client(**given)), "client": LangGraphClient(httpx.AsyncClient(**given))}
    return RemoteGraph("far", **clients)


def home(far: RemoteGraph, act: Any = None, pdp: Any = None, **options: Any) -> tuple[RuntimeAuthz, Any]:
    """A protected graph whose only step is the remote agent, or what `act` does with it."""
    given = {"agents": {"far": {"url": PAYER}}, **options}
    builder = StateGraph(MessagesState).add_node("far", act or far).add_edge(START, "far")
    if act is not None:
        builder.add_node("held", far)  # nothing leads to it
    return protecting(builder.compile(name="home"), pdp or StaticPDP(True), **given)


def go(authz: RuntimeAuthz, graph: Any, way: str = "sync", **run: Any) -> str:
    try:
        run_as(authz, graph, {"messages": [("user", "pay bob")]}, how=way, **run)
    except Exception as exc:
        return str(getattr(exc, "code", type(exc).__name__))
    return ""


def out_of_reach(_: Any) -> str:
    raise CredentialError("credential_unavailable")


@pytest.mark.parametrize("bound", [True, False], ids=["bound to its url", "twin: one name for both"])
def test_a_credential_for_one_deployment_is_refused_by_another(bound: bool) -> None:
    """A deployment that replays what it got is refused, since the audience is its own URL. By a shared name it pays."""
    stolen: list[httpx.Request] = []

    def steal(request: httpx.Request) -> httpx.Response:
        stolen.append(request)
        answers.append(payer(httpx.Request("POST", f"{PAYER}/runs/stream", headers=request.headers)))
        return httpx.Response(200, text="event: end\ndata: {}\n\n", headers={"Content-Type": "text/event-stream"})

    answers: list[httpx.Response] = []
    shared = {} if bound else {"audience": "agents"}
    authz, graph = home(remote(ADMIN, steal), agents={"far": {"url": ADMIN, **shared}})
    payer = Deployment(authz, PAYER if bound else "agents")
    go(authz, graph)
    assert len(stolen) == 1
    assert payer.ran == ([] if bound else [PAID])
    assert payer.codes == (["audience"] if bound else [])


def test_what_is_bound_to_a_remote_graph_is_sent(how: str) -> None:
    """Its own config reaches the deployment, once."""
    seen: list[Any] = []
    far = remote(PAYER, lambda request: [seen.append(json.loads(request.content)["config"]), httpx.Response(500)][1])
    far = far.with_config({"configurable": {"model": "small"}, "tags": ["far"]})
    authz, graph = home(far)
    assert go(authz, graph, how) != ""
    assert [(config["configurable"]["model"], config["tags"]) for config in seen] == [("small", ["far"])]


def test_the_deployment_itself_accepts_it(how: str) -> None:
    """Its URL is the audience, unless the developer names another for that URL."""
    for extra, audience in (({}, PAYER), ({"audience": "urn:payer"}, ["urn:payer", "urn:old"])):
        serving: list[Any] = []
        far = remote(PAYER, lambda request, serving=serving: serving[0](request))
        authz, graph = home(far, agents={"far": {"url": PAYER, **extra}})
        serving.append(Deployment(authz, audience))
        assert go(authz, graph, how) == "" and serving[0].ran == [PAID]


@pytest.mark.parametrize("url", [
    ADMIN, "https://far.example", "https://other.example/payer", "http://far.example/payer", "https://far.example:444/payer",
    "https://far.example/payerx", "https://far.example/payer/../admin", "https://far.example/payer/%2e%2e/admin",
])  # fmt: skip
def test_a_client_of_another_url_sends_nothing(url: str, how: str) -> None:
    """Another path, host, port or scheme: the edge is refused with a code, on record, and no request leaves."""
    seen: list[Any] = []
    authz, graph = home(remote(url, lambda request: seen.append(request) or httpx.Response(500)))
    assert go(authz, graph, how) == "remote_url" and seen == []
    assert "remote_url" in str([r for r in authz.audit.records if r.get("action") == "agent/invoke"])


def test_without_a_credential_nothing_is_sent(how: str) -> None:
    """The issuer is out of reach: the edge is refused with its code, and no request leaves."""
    seen: list[Any] = []
    authz, graph = home(remote(PAYER, lambda request: seen.append(request) or httpx.Response(500)))
    authz.issuer.issue = out_of_reach  # type: ignore[method-assign]
    assert go(authz, graph, how) == "credential_unavailable" and seen == []


@pytest.mark.parametrize("wrong", [
    {"url": "http://far.example/payer"}, {"url": "ftp://far.example"}, {"url": "far.example"}, {"url": "https://a:b@far.example"},
    {"audience": "https://far.example"}, {"url": "https://:pw@far.example/a"}, {"url": "https://far.example/%"},
    {"url": "https://f\u00e4r.example/a"}, {"url": "https://far.example/a/../b"}, {"url": "https://far.example:99999/a"},
    {"url": "https://far.example/a?tenant=1"}, {"url": "https://far.example/a#"},
], ids=ascii)  # fmt: skip
def test_a_credential_is_promised_to_usable_urls_only(wrong: dict[str, str]) -> None:
    """Plain HTTP off this machine, a URL that no request can match, or a name without one: refused as it is configured."""
    with pytest.raises(ConfigError):
        RuntimeAuthz(agents={"far": wrong})


def test_a_server_that_does_not_name_itself_is_not_configured() -> None:
    """It would accept credentials for others."""
    issuer = RuntimeAuthz().issuer
    with pytest.raises(ConfigError, match="URL"):
        BearerSubject(Verifier(issuer=issuer.issuer, jwks=issuer.jwks))


@pytest.mark.parametrize("checked", [True, False])
def test_a_bound_credential_is_not_taken_as_a_bearer_token(checked: bool) -> None:
    """Its thief has no key. Unchecked, the thief is taken for alice."""
    issuer, at = RuntimeAuthz().issuer, int(time.time())
    asked = a_request(action="agent/invoke", audience=PAYER, cnf_jkt="hers", issued_at=at, expires_at=at + 60)
    caller = BearerSubject(Verifier(issuer=issuer.issuer, jwks=issuer.jwks), audience=PAYER)
    stolen = f"Bearer {issuer.issue(asked)}"
    if checked:
        with pytest.raises(CredentialError, match="proof_missing"), caller.presented(stolen):
            pass
    else:
        caller._verify = tuple(partial(verify, bound=True) for verify in caller._verify)  # type: ignore[assignment]
        with caller.presented(stolen) as who:
            assert who.subject == "alice"  # type: ignore[union-attr]


@pytest.mark.parametrize(("minted", "code"), [
    ({}, None), ({"action": "tools/call"}, "credential_tool"), ({"tenant": "other"}, "credential_tenant"),
    ({"delegators": ("urn:above",) * 31}, None), ({"delegators": ("urn:above",) * 32}, "too_deep"),
])  # fmt: skip
def test_only_an_agents_credential_opens_a_run(minted: dict[str, Any], code: str | None) -> None:
    """A tool's credential, one of another tenant, and one of a full chain of agents open none."""
    authz, at = RuntimeAuthz(tenant="acme"), int(time.time())
    asked = a_request(**{"action": "agent/invoke", "audience": PAYER, "issued_at": at, "expires_at": at + 60, **minted})
    verifier = Verifier(issuer=authz.issuer.issuer, jwks=authz.issuer.jwks)
    held = verifier.verify(authz.issuer.issue(asked), audience=PAYER)
    assert said_by(lambda: authz.run(subject=held).close()) == code


@pytest.mark.parametrize("target", [f"{ADMIN}/threads/t/runs/r/stream", "https://other.example/payer"])
@pytest.mark.parametrize("by", ["redirect", "reconnect"])
def test_a_redirect_does_not_carry_it(target: str, by: str, how: str) -> None:
    """The client follows redirects, or its server names where to ask for the run; the credential stays at home.

    The twin is the same client without protection. Its token goes along within the host.
    """

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, "Authorization" in request.headers))
        if len(seen) > 1:
            return httpx.Response(404)
        if by == "redirect":
            return httpx.Response(307, headers={"Location": target})
        sse = {"Content-Type": "text/event-stream", "Location": target}
        return httpx.Response(200, text="event: values\ndata: {}\n\n", headers=sse)

    seen: list[tuple[str, bool]] = []
    authz, graph = home(remote(PAYER, serve, follow_redirects=True))
    ended = go(authz, graph, how)
    assert [path for path, carries in seen if carries] == ["/payer/runs/stream"]
    if target.startswith(ADMIN):
        assert ended == ("remote_url" if by == "redirect" else "")
        seen.clear()
        with contextlib.suppress(Exception):
            remote(PAYER, serve, follow_redirects=True).invoke({}, headers={"Authorization": "Bearer own"})
        assert [carries for _, carries in seen] == [True, True]


def test_a_refused_redirect_is_a_denial(how: str) -> None:
    """It names the decision about the edge, so that handlers of denials see it."""
    authz, graph = home(remote(PAYER, lambda _: httpx.Response(307, headers={"Location": ADMIN}), follow_redirects=True))
    with pytest.raises(AuthzDenied) as caught:
        run_as(authz, graph, {"messages": [("user", "pay bob")]}, how=how)
    assert caught.value.code == "remote_url"
    assert caught.value.decision_id in {r.get("decision_id") for r in authz.audit.records if r.get("action") == "agent/invoke"}


def test_a_graph_without_a_client_says_what_it_lacks() -> None:
    """Nothing would be sent, so its address is not what is wrong."""
    far = remote(PAYER, lambda _: httpx.Response(500))
    far.sync_client = None
    authz, graph = home(far)
    with pytest.raises(ValueError, match="sync_client"):
        run_as(authz, graph, {"messages": [("user", "pay bob")]}, how="sync")


@pytest.mark.parametrize("permit", [True, False])
def test_an_agent_that_writes_a_remote_state_is_decided(permit: bool, how: str) -> None:
    """`update_state` of a node or tool directs the remote agent: the edge is decided, and its credential sent."""
    config = {"configurable": {"thread_id": "t"}}

    def act(state: Any) -> dict[str, Any]:
        far.update_state(config, {"messages": [("user", "pay eve")]})
        return {}

    async def aact(state: Any) -> dict[str, Any]:
        await far.aupdate_state(config, {"messages": [("user", "pay eve")]})
        return {}

    serving: list[Any] = []
    far = remote(PAYER, lambda request: serving[0](request))
    authz, graph = home(far, act if how == "sync" else aact, StaticPDP(lambda r: permit or r.action.name != "agent/invoke"))
    serving.append(Deployment(authz, PAYER))
    go(authz, graph, how)
    assert [bool(header) for header in serving[0].seen] == ([True] if permit else [])
    assert serving[0].codes == []
    invited = [r.resource.properties["kind"] for r in authz.pdp.requests if r.action.name == "agent/invoke"]
    assert invited == ["remote"]


def test_events_of_a_remote_graph_are_refused_in_a_run_only() -> None:
    """In a run, nothing decides them. Outside of every run, the application acts itself."""
    far = remote(PAYER, lambda request: httpx.Response(500))
    authz, graph = home(far, lambda state: far.stream_events({}, version="v3") and {})
    assert go(authz, graph) == "config" and far.stream_events({}, version="v3") is not None


@pytest.mark.parametrize("kind", ["AuthzToolNode", "AuthzMiddleware", "protect"])
def test_coverage_names_what_a_tools_own_code_calls(kind: str, ran: Any) -> None:
    """The tools of its tool node are decided in any case. Of the two alone, neither decides its remote graph."""
    reached: list[httpx.Request] = []
    node, far = ToolNode([pay_tool(ran)]), remote(ADMIN, lambda request: reached.append(request) or httpx.Response(500))

    def write(text: str) -> None:
        """Call others."""
        node.invoke({"messages": [AIMessage("", tool_calls=[PAYS])]}, get_config())
        far.invoke({})

    authz = authz_with(deny_only("pay"), agents={"far": {"url": PAYER}})
    model, tools = replying([call("write", {"text": "x"}, "c1")]), [tool(write)]
    if kind == "AuthzToolNode":
        graph = hand_written(model, AuthzToolNode(tools, authz=authz))
    elif kind == "AuthzMiddleware":
        graph = create_agent(model, tools, middleware=[AuthzMiddleware(authz)])
    else:
        graph = authz.protect(hand_written(model, tools))
    with contextlib.suppress(httpx.HTTPStatusError):
        run_as(authz, graph, human())
    assert (ran, bool(reached)) == ([], kind != "protect")
    found = {(r.kind, r.name): r.governed for r in authz.coverage(graph).rows}
    assert (found["tool", "pay"], found["remote graph", "far"]) == ((kind == "protect"),) * 2


def test_a_grant_without_the_audience_reaches_no_deployment(how: str) -> None:
    """Nothing leaves without a credential that the deployment could check."""
    for audiences, code in (({PAYER}, ""), ({"https://other.example"}, "audience")):
        serving: list[Any] = []
        authz, graph = home(remote(PAYER, lambda request, serving=serving: serving[0](request)))
        serving.append(Deployment(authz, PAYER))
        assert go(authz, graph, how, grant=Grant(audiences=audiences)) == code
        assert serving[0].ran == ([] if code else [PAID]) and bool(serving[0].seen) is not bool(code)
