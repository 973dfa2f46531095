"""Forged identities (OWASP ASI03): what a client writes about itself is nobody's word, and on record.

Each twin reads the identity from where the client wrote it, as examples on the web do, and pays.
"""

from contextvars import ContextVar, copy_context

from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.identity.oidc import OidcVerifier
from langchain_runtime_authz.identity.subjects import BearerSubject, claimed_identities, platform_user
from tests.endpoints import answered
from tests.unit_tests.identity.test_oidc import API, APP, KEY, NOW, Provider, id_token, token

from ._kit import *

go = params(["sync", "async"])


class ServerUser:
    """What LangGraph's server puts beside a run: an object, not JSON."""

    display_name = "Alice"
    permissions = ("*",)

    def __init__(self, identity: Any = "alice", authenticated: Any = True) -> None:
        self.identity, self.is_authenticated = identity, authenticated

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __contains__(self, key: str) -> bool:
        return hasattr(self, key)

    def __iter__(self) -> Any:
        return iter(("identity", "is_authenticated"))


def only_alice() -> StaticPDP:
    """Alice, a user, may do what she likes; nobody else pays."""
    return StaticPDP(lambda r: r.action.name != "tools/call" or (r.subject.type, r.subject.id) == ("user", "alice"))


class World:
    def __init__(self, subject_from: Any) -> None:
        self.ran: list[Any] = []
        self.pdp = only_alice()
        self.authz = authz_with(self.pdp, subject_from=subject_from)
        self.graph = self.authz.protect(agent_graph(replying([PAY]), [pay_tool(self.ran)], checkpointer=InMemorySaver()))

    def call(self, go: str = "sync", metadata: Any = None, **configurable: Any) -> None:
        config = {"configurable": {"thread_id": "t", **configurable}, "metadata": metadata or {}}
        if go == "sync":
            self.graph.invoke(human(), config)
        else:
            asyncio.run(self.graph.ainvoke(human(), config))

    def subjects(self) -> set[tuple[str, str]]:
        return {(r.subject.type, r.subject.id) for r in calls_of(self.pdp, "pay")}

    def ignored(self) -> list[str]:
        return [n for r in self.authz.audit.records if r.get("event") == "identity_ignored" for n in r["detail"]["claimed"]]  # type: ignore[attr-defined]


FORGED: dict[str, dict[str, Any]] = {
    "a user id": {"user_id": "alice"}, "a user": {"user": {"id": "alice"}},
    "the platform's user as JSON": {"langgraph_auth_user": {"identity": "alice", "is_authenticated": True}},
    "the platform's user as text": {"langgraph_auth_user": "alice"},
    "the platform's user as a list": {"langgraph_auth_user": ["alice"]},
    "the platform's user id": {"langgraph_auth_user_id": "alice"}, "a subject": {"subject": "user:alice"},
    "an address": {"email": "alice@x.example"}, "a role": {"role": "admin"}, "other letters": {"User_ID": "alice"},
    "metadata": {"metadata": {"user_id": "alice", "langgraph_auth_user_id": "alice"}},
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("subject_from", [None, platform_user], ids=["none", "platform"])
def test_a_forged_identity_is_ignored_and_on_record(name: str, go: str, subject_from: Any) -> None:
    """The caller stays anonymous, nothing is paid, and the log names the key and never the value."""
    w = World(subject_from)
    w.call(go, **FORGED[name])
    assert w.ran == [] and w.subjects() == {("anonymous", "anonymous")}
    assert w.ignored()
    assert "alice" not in str([r for r in w.authz.audit.records if r.get("event") == "identity_ignored"])  # type: ignore[attr-defined]


def test_the_twin_believes_the_client() -> None:
    """Who reads `user_id` from the config pays for whoever writes it there."""
    w = World(lambda config: config["configurable"].get("user_id"))
    w.call(user_id="alice")
    assert w.ran == [PAID]


def test_the_platforms_own_user(go: str) -> None:
    """The server's object is the user; what stands beside it under the same name says nothing more."""
    w = World(platform_user)
    w.call(go, langgraph_auth_user=ServerUser(), langgraph_auth_user_id="alice", metadata={"langgraph_auth_user_id": "alice"})
    assert w.ran == [PAID] and w.ignored() == []


@pytest.mark.parametrize(
    "user",
    [ServerUser(authenticated=False), ServerUser(authenticated="yes"), ServerUser(authenticated=None), ServerUser(identity=""), ServerUser(identity=7), object()],
    ids=["not", "text", "none", "empty", "number", "object"],
)
def test_an_unauthenticated_server_user_is_nobody(user: Any) -> None:
    """Neither a false word nor a missing one is a proof."""
    w = World(platform_user)
    w.call(langgraph_auth_user=user)
    assert w.ran == [] and w.subjects() == {("anonymous", "anonymous")}


@pytest.mark.parametrize("place", ["configurable", "metadata"])
def test_a_cron_job_is_no_user(place: str) -> None:
    """It bears the name of who made it, and is a service."""
    w = World(platform_user)
    more = {"cron_id": "c1"} if place == "configurable" else {"metadata": {"cron_id": "c1"}}
    w.call(langgraph_auth_user=ServerUser(), **more)
    assert w.ran == [] and w.subjects() == {("service", "alice")}


def test_the_servers_user_brings_the_named_properties_and_no_others() -> None:
    """A tenant is the server's word: a client's `tenant` is not read, and a member that is not named stays away."""

    class Member(ServerUser):
        tenant, roles, secret = "a", ("payer",), "s"

        def __getitem__(self, name: str) -> Any:
            return {"org": "acme"}[name]

    found = platform_user(properties=["tenant", "roles", "org", "missing"])
    subject = found({"configurable": {"langgraph_auth_user": Member(), "tenant": "b"}})
    assert subject.properties == {"tenant": "a", "roles": ["payer"], "org": "acme"}
    cron = found({"configurable": {"langgraph_auth_user": Member(), "cron_id": "c1"}})
    assert (cron.type, cron.properties["tenant"], cron.properties["cron"]) == ("service", "a", "c1")
    assert found({"configurable": {"langgraph_auth_user": {"identity": "alice", "tenant": "b"}}}) is None
    with pytest.raises(ConfigError):
        platform_user(properties="tenant")


def test_another_user_beside_the_verified_one_is_on_record() -> None:
    """The verified one counts."""
    w = World(platform_user)
    w.call(langgraph_auth_user=ServerUser(), user_id="bob", metadata={"user_id": "carol"})
    assert w.ran == [PAID] and w.ignored() == ["configurable.user_id", "metadata.user_id"]


def test_an_explicit_subject_counts_and_no_other() -> None:
    """`authz.run(subject=...)` against a config that says otherwise."""
    w = World(platform_user)
    with w.authz.run(subject="bob"):
        w.call(langgraph_auth_user=ServerUser(), user_id="alice")
    assert w.ran == [] and w.subjects() == {("user", "bob")}
    assert w.ignored() == ["configurable.langgraph_auth_user", "configurable.user_id"]


def bearer(provider: Any = None) -> BearerSubject:
    idp = answered(provider or Provider())
    return BearerSubject(OidcVerifier("https://idp.example/realm", audience=API, client_id=APP, tls=idp))


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_runtime_authz.identity.oidc.time.time", lambda: NOW)


def test_a_bearer_token_is_who_calls(go: str) -> None:
    """While its request is under way, and not after it; the token is in no config and no checkpoint."""
    caller = bearer()
    w = World(caller)
    good = token(sub="alice")

    async def acall() -> None:
        async with caller.presented(f"Bearer {good}"):
            await w.graph.ainvoke(human(), THREAD)

    if go == "sync":
        with caller.presented(f"bearer {good}"):
            w.call()
    else:
        asyncio.run(acall())
    assert w.ran == [PAID] and caller({}) is None
    assert good not in str(list(w.graph.checkpointer.list(THREAD)))
    assert good not in repr(caller.presented(f"Bearer {good}"))


def test_two_requests_at_once_do_not_meet() -> None:
    """Each is its own caller, though they share the graph and the event loop."""
    caller = bearer()
    found: dict[str, Any] = {}

    async def one(name: str) -> None:
        async with caller.presented(f"Bearer {token(sub=name)}"):
            await asyncio.sleep(0)
            found[name] = caller({})

    async def both() -> None:
        await asyncio.gather(*(one(f"u{i}") for i in range(20)))

    asyncio.run(both())
    assert {n: s.id for n, s in found.items()} == {f"u{i}": f"u{i}" for i in range(20)}


def test_a_request_that_is_closed_elsewhere_brings_nobody_back() -> None:
    """The request of a loop that was closed ends in the context of another, whose caller stays."""
    caller, elsewhere = bearer(), copy_context()
    outer, inner, other = (caller.presented(f"Bearer {token(sub=name)}") for name in ("mallory", "mallory", "alice"))
    elsewhere.run(outer.__enter__)
    elsewhere.run(inner.__enter__)
    with other:
        inner.__exit__()
        assert caller({}).id == "alice"  # type: ignore[union-attr]
    assert caller({}) is None and elsewhere.run(caller, {}) is None


@pytest.mark.parametrize("naive", [False, True])
def test_a_worker_that_an_earlier_request_started_acts_for_nobody(naive: bool) -> None:
    """It keeps that request's context, and does what others ask. The twin keeps the user in a variable, and pays as alice."""
    caller, user = bearer(), ContextVar[Any]("user", default=None)
    w = World((lambda _: user.get()) if naive else caller)

    async def working(jobs: asyncio.Queue[Any]) -> None:
        await w.graph.ainvoke(await jobs.get(), THREAD)

    async def serving() -> None:
        jobs = asyncio.Queue[Any]()
        async with caller.presented(f"Bearer {token(sub='alice')}") as alice:
            user.set(alice)
            worker = asyncio.create_task(working(jobs))
            await asyncio.sleep(0)
        jobs.put_nowait(human())  # of mallory's request
        await worker

    asyncio.run(serving())
    assert w.ran == ([PAID] if naive else [])


BEARERS = {
    "none": None, "empty": "", "basic": "Basic YWxpY2U6eA==", "no token": "Bearer ",
    "forged": f"Bearer {token(SigningKey.generate(), header={'kid': KEY.kid}, sub='alice')}",
    "for another service": f"Bearer {token(sub='alice', aud='https://else.example')}",
    "expired": f"Bearer {token(sub='alice', exp=NOW - 100)}", "the name itself": "Bearer alice",
}


@pytest.mark.parametrize("name", BEARERS)
def test_a_request_that_proves_nobody_does_not_enter(name: str) -> None:
    """With a stable code, before anything runs."""
    caller = bearer()
    with pytest.raises(AuthzError) as refused, caller.presented(BEARERS[name]):
        pytest.fail("entered")
    assert refused.value.code == "identity_invalid" and caller({}) is None


@pytest.mark.parametrize(("claims", "kind"), [
    ({"sub": "alice", "act": {"sub": "planner"}}, ("agent", "planner")),
    ({"sub": "alice", "client_id": "alice"}, ("service", "alice")),
    ({"sub": None, "client_id": "alice"}, ("service", "alice")),
], ids=["act", "itself", "client"])
def test_an_agent_or_a_client_with_a_users_name_is_no_user(claims: Any, kind: Any) -> None:
    """Not even where its token names her."""
    caller = bearer()
    w = World(caller)
    with caller.presented(f"Bearer {token(**claims)}"):
        w.call()
    assert w.ran == [] and w.subjects() == {kind}


def test_the_twin_takes_the_token_for_its_claims() -> None:
    """Who decodes without verifying pays for a forger."""
    import jwt

    forged = token(SigningKey.generate(), sub="alice")
    w = World(lambda config: jwt.decode(config["configurable"]["token"], options={"verify_signature": False})["sub"])
    w.call(token=forged)
    assert w.ran == [PAID]


def test_an_id_token_proves_an_approver() -> None:
    """What the provider says of a person is what `approve` takes."""
    with bearer().presented(f"Bearer {id_token(sub='bob')}") as subject:
        pass
    assert (subject.type, subject.id) == ("user", "bob")


def test_claims_that_agree_are_no_finding() -> None:
    """Only what says that somebody else calls is named, whatever shape the config has."""
    alice = Subject(type="user", id="alice")
    assert claimed_identities({"configurable": {"user_id": "alice"}, "metadata": {"user": ""}}, alice) == []
    assert claimed_identities({"configurable": None, "metadata": [1]}, alice) == []
    assert claimed_identities({"configurable": {1: "x", "user_id": "bob"}}, alice) == ["configurable.user_id"]
    assert platform_user({"configurable": None}) is None
