"""What coverage names: by layer, or why not; and that a secret is named by its place only."""

import json
import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import pytest
from langchain_core.load import dumpd
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver, PersistentDict
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import CachePolicy
from pydantic import SecretStr

from langchain_runtime_authz import AuthzMiddleware
from langchain_runtime_authz.coverage.code_scan import secrets_of
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph.object_graph import walk_objects
from langchain_runtime_authz.pep.decision_counts import MAX_KEYS, DecisionCounts, PointCounts
from langchain_runtime_authz.testing import StaticPDP
from tests.attack._graphs import *
from tests.ids import shown


def covered(graph: Any, protect: bool = True) -> Any:
    authz = authz_with(StaticPDP(True))
    return authz.coverage(authz.protect(graph) if protect else graph)


def findings(graph: Any) -> list[tuple[str, str, str]]:
    return [(r.kind, r.name, r.route) for r in covered(graph).ungoverned]


def agent(name: str = "inner") -> Any:
    return agent_graph(replying([PAY]), [pay_tool([])], name=name)


def test_what_is_governed_says_by_which_layer() -> None:
    """Entry, agents, nodes, tools and models of a protected graph, each with the gates in front."""
    report = covered(node_graph(hand_written(replying([PAY]), [pay_tool([])], name="inner")))
    assert [(r.kind, r.graph, r.name, r.route, r.layers) for r in report.rows] == [
        ("entry", "outer", "outer", "", ("root entry",)),
        ("agent", "inner", "inner", "outer/step", ("child entry",)),
        ("node", "inner", "agent", "agent", ("node gate",)),
        ("model", "inner", "ScriptedChatModel", "agent", ("node gate", "callback backstop")),
        ("node", "inner", "tools", "tools", ("node gate",)),
        ("tool", "inner", "pay", "tools", ("tool node gate", "tool guard")),
    ]
    report.raise_if_ungoverned()
    assert report.tools == ("pay",)


def test_nothing_is_governed_before_protect() -> None:
    """The same rows without us have no layer, and each says what to do."""
    report = covered(agent(), protect=False)
    assert {r.kind for r in report.rows} == {"entry", "node", "model", "tool"}
    assert report.ungoverned == report.rows
    assert all(r.note for r in report.rows)


def test_each_part_of_an_id_is_escaped() -> None:
    """An id is `kind/graph/name/route`."""

    @tool("a/b c")
    def odd(x: str) -> str:
        """Odd."""
        return x

    assert "tool/hand/a%2Fb%20c/tools" in [r.id for r in covered(hand_written(replying(), [odd])).rows]


def test_two_of_one_name_have_ids_of_their_own() -> None:
    """Two agents of one name on one route are two rows."""
    pair = [agent("twin"), agent("twin")]

    def step(state: MessagesState) -> dict[str, Any]:
        for one in pair:
            one.invoke(state)
        return {}

    ids = [r.id for r in covered(node_graph(step)).rows]
    assert len(set(ids)) == len(ids)
    assert {"agent/twin/twin/outer%2Fstep", "agent/twin/twin/outer%2Fstep~1"} <= set(ids)


class Holder:
    """An object that holds an agent."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def step(self, state: MessagesState) -> dict[str, Any]:
        return self.again(state)

    def again(self, state: MessagesState) -> dict[str, Any]:
        self.held.invoke(state)
        return {}

    def __call__(self, state: MessagesState) -> dict[str, Any]:
        return self.again(state)


def decorated(held: Any) -> Any:
    import functools

    def wrap(function: Any) -> Any:
        @functools.wraps(function)
        def inner(state: MessagesState) -> dict[str, Any]:
            held.invoke(state)
            return function(state)

        return inner

    return wrap


def held_ways(inner: Any) -> dict[str, Any]:
    """Ways in which a node's code can hold an agent, each a node."""

    @decorated(inner)
    def plain(state: MessagesState) -> dict[str, Any]:
        return {}

    def given(held: Any, state: MessagesState) -> dict[str, Any]:
        held.invoke(state)
        return {}

    space = SimpleNamespace(deep=SimpleNamespace(one=inner))

    def helper(state: Any) -> Any:
        return inner.invoke(state)

    def with_default(state: MessagesState, *, held: Any = inner) -> dict[str, Any]:
        held.invoke(state)
        return {}

    return {
        "helper": lambda s: helper(s) and {}, "default": with_default,
        "attribute, in a comprehension": lambda s: [space.deep.one.invoke(x) for x in [s]] and {},
        "method": Holder(inner).step, "callable object": Holder(inner),
        "partial": RunnableLambda(partial(given, inner)), "decorator": plain,
        "sequence": RunnableLambda(lambda s: s) | inner, "with_config": inner.with_config(tags=["x"]),
        "parallel": RunnableLambda(lambda s: s) | {"messages": inner | (lambda s: s["messages"])},
        "fallback": RunnableLambda(lambda s: s).with_fallbacks([inner]),
        "tool in a list": lambda state, held=[[{"x": inner}]]: held[0][0]["x"].invoke(state),
    }


@pytest.mark.parametrize("way", list(held_ways(agent())))
def test_protect_reaches_agents_that_code_holds(way: str) -> None:
    """However a node's code names an agent, `protect` protects it and coverage shows its tools gated."""
    inner = agent()
    report = covered(node_graph(held_ways(inner)[way]))
    report.raise_if_ungoverned()
    assert [r.name for r in report.rows if r.kind == "agent"] == ["inner"]
    assert [r.layers for r in report.rows if r.kind == "tool"] == [("tool node gate", "tool guard")]


def test_agents_beyond_reach_are_named() -> None:
    """An agent that only an object's attribute or a huge container holds is found and named, and can be protected."""
    for held in (SimpleNamespace(deep=SimpleNamespace(one=agent())), [*range(2000), agent()]):

        def step(state: MessagesState, held: Any = held) -> dict[str, Any]:
            return {}

        authz = authz_with(StaticPDP(True))
        graph = authz.protect(node_graph(step))
        found = [r for r in authz.coverage(graph).ungoverned if r.kind == "agent"]
        assert [(r.name, r.route) for r in found] == [("inner", "outer/step")]
        assert "`authz.protect` on it too" in found[0].note
        authz.protect(held[-1] if isinstance(held, list) else held.deep.one)
        authz.coverage(graph).raise_if_ungoverned()


def test_agent_of_another_instance_is_named() -> None:
    """An agent that somebody else protects is not ours."""
    inner = agent()
    mine, other = authz_with(StaticPDP(True)), authz_with(StaticPDP(True))
    graph = mine.protect(node_graph(lambda s: {}))
    other.protect(inner)
    graph.nodes["step"].bound.func = lambda s, held=inner: {}
    (row,) = [r for r in mine.coverage(graph).ungoverned if r.kind == "agent"]
    assert row.note == "another RuntimeAuthz protects it"


def test_cached_nodes_are_named() -> None:
    """A cache policy of a node, of a graph or of a task: a cached result needs no decision."""
    policy = CachePolicy()
    builder = StateGraph(MessagesState)
    builder.add_node("step", lambda s: {}, cache_policy=policy)
    builder.add_edge(START, "step")
    assert findings(builder.compile(cache=InMemoryCache())) == [("cached node", "step", "step")]

    @task(cache_policy=policy)
    def work(x: int) -> int:
        return x

    @entrypoint(cache=InMemoryCache())
    def flow(x: int) -> int:
        return work(x).result()

    report = covered(flow)
    assert [(r.kind, r.name, r.route) for r in report.ungoverned] == [("cached node", "work", "flow/work")]
    assert ("task", "work") in [(r.kind, r.name) for r in report.rows]

    @entrypoint(cache=InMemoryCache(), cache_policy=policy)
    def cached(x: int) -> int:
        return x

    assert findings(cached) == [("cached node", "cached", "cached")]


OPENAI_FUNCTION = {"type": "function", "function": {"name": "pay", "parameters": {}}}


@pytest.mark.parametrize(("bound", "name"), [
    ({"type": "web_search"}, "web_search"),
    ({"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, "web_search_20250305"),
    ({"type": "mcp", "server_label": "x", "server_url": "https://mcp.example"}, "mcp"), ({"google_search": {}}, "google_search"),
    (OPENAI_FUNCTION, None), ({"name": "pay", "description": "x", "input_schema": {"type": "object"}}, None),
    ({"title": "Pay", "type": "object", "properties": {}}, None), ({"type": "custom", "custom": {"name": "x"}}, None),
], ids=shown)
def test_provider_tools_are_named(bound: dict[str, Any], name: str | None) -> None:
    """A tool that runs at the provider is named wherever a model is bound to it; descriptions of own tools are not."""
    model = replying()
    expected = [] if name is None else [("provider tool", name)]
    bound_model = model.bind(tools=[bound, OPENAI_FUNCTION])

    def step(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound_model.invoke(state["messages"])]}

    assert [f[:2] for f in findings(node_graph(step))] == expected
    tools = [pay_tool([]), bound]
    in_node = findings(node_graph(lambda s: model.bind_tools(tools) and {}))
    assert [f[:2] for f in in_node if f[0] == "provider tool"] == expected
    if name is not None or "type" not in bound or bound["type"] == "function":
        assert [f[:2] for f in findings(agent_graph(model, tools))] == expected


def test_other_lists_are_no_provider_tools() -> None:
    """Content blocks, messages, settings and dumped objects in a node's closure raise no alarm."""
    held = [
        [{"type": "text", "text": "hello"}], [{"role": "user", "content": "x"}],
        [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "web_search"}, 5], [{"type": ["approve"]}],
        [{"type": None}, {"type": {"a": 1}}, {}], {"type": "web_search"}, [], dumpd(ChatPromptTemplate([("human", "{x}")])),
        [dumpd(pay_tool([]))],
    ]
    assert findings(node_graph(lambda s: held and {})) == []


@pytest.mark.parametrize("refusing", [WeakKeyDictionary(), WeakKeyDictionary({pytest.Item: 1})], ids=["empty", "filled"])
def test_a_mapping_that_refuses_texts_is_passed_over(refusing: Any) -> None:
    """One of weak references raises where it is asked by a name: `protect` and `coverage` look on."""
    held = [refusing]
    assert findings(node_graph(lambda s: refusing and held and {})) == []


def test_a_misspelt_agent_in_the_limits_is_named() -> None:
    """`protect` warns of a name that is nearly an agent's; coverage names each that no agent of the graph has."""
    limits = {"iner": {}, "outer": {}, "far": {}, "payments": {}}
    authz = authz_with(StaticPDP(True), agents=limits)
    inner, far = agent(), RemoteGraph("far", url="http://127.0.0.1:1")
    graph = node_graph(lambda s: far.invoke(inner.invoke(s)))
    with pytest.warns(UserWarning, match="'iner'.* limits no agent: is `inner` meant") as warned:
        authz.protect(graph)
    assert not [w for w in warned if "payments" in str(w.message)], "it may be an agent of another graph"
    report = authz.coverage(graph)
    assert report.unknown_agents == ("iner", "payments")
    assert "limits no agent here by the name iner, payments" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["unknown_agents"] == ["iner", "payments"]
    assert covered(agent()).unknown_agents == ()


def test_tools_that_act_in_a_way_of_their_own_are_no_ambient_hooks() -> None:
    """A class with an `invoke` or `run` of its own announces nothing: held by plain code it is not governed at all."""

    class Own(BaseTool):
        name: str = "pay"
        description: str = "Pay."

        def _run(self, to: str) -> str:
            return to

    class OwnInvoke(Own):
        def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            return "paid"

    class OwnRun(Own):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            return "paid"

    for kind, named in ((Own, False), (OwnInvoke, True), (OwnRun, True)):
        pay = kind()
        authz = authz_with(StaticPDP(True), profiles={})
        graph = authz.protect(node_graph(lambda state, pay=pay: pay.invoke({"to": "x"})))
        (row,) = [r for r in authz.coverage(graph).rows if r.kind == "tool"]
        assert row.governed is not named and ("without callbacks" in row.note) is named


def test_functions_of_tools_that_code_holds_are_named() -> None:
    """The function under a tool, called by a node or another tool, runs undecided: it is named."""
    ran: list[Any] = []
    pay = pay_tool(ran)

    def by_tool(state: MessagesState) -> dict[str, Any]:
        pay.func(recipient="bob", amount=1)
        return {}

    assert ("function", "pay", "step") in findings(chain({"step": by_tool, "tools": ToolNode([pay])}))

    def transfer(x: str) -> str:
        """Transfer."""
        return x

    other = StructuredTool.from_function(transfer, name="transfer")

    @tool
    def outer(x: str) -> str:
        """Outer."""
        return transfer(x)

    assert findings(hand_written(replying(), [other, outer])) == [("function", "transfer", "tools/outer")]


def test_functions_that_a_model_is_bound_to_raise_no_alarm() -> None:
    """Plain functions in a list, as models are bound to, are no direct calls."""

    def transfer(x: str) -> str:
        """Transfer."""
        return x

    tools = [transfer]
    model = replying()

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.bind_tools(tools).invoke(state["messages"])]}

    assert findings(chain({"agent": agent, "tools": ToolNode(tools)})) == []


class Unpickler:
    """A serializer of one's own."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])


def test_checkpointers_that_run_what_they_read_are_named(tmp_path: Any) -> None:
    """Pickle, and a store from outside whose data may name any callable; not the safe ones."""
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    with SqliteSaver.from_conn_string(str(tmp_path / "x.db")) as saver:
        cases = [
            (InMemorySaver(), False), (InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True)), True),
            (InMemorySaver(serde=Unpickler()), True), (saver, True), (SqliteSaver(saver.conn, serde=strict), False),
            (SqliteSaver(saver.conn, serde=Unpickler()), True),
            (InMemorySaver(factory=partial(PersistentDict, filename=str(tmp_path / "x.pickle"))), True),
        ]
        for checkpointer, named in cases:
            found = findings(node_graph(lambda s: {}, checkpointer=checkpointer))
            assert [f[0] for f in found] == (["checkpointer"] if named else [])


KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
SECRET = "correct-horse-battery"


class Client:
    """A client like many."""

    def __init__(self) -> None:
        self._headers = {"X-Api-Key": SECRET}

    def call(self) -> None:
        """Call."""


class KeyTool(BaseTool):
    """A tool class with a key of its own."""

    name: str = "key_tool"
    description: str = "x"
    api_key: SecretStr = SecretStr(SECRET)

    def _run(self) -> str:
        return self.api_key.get_secret_value()


def _holding() -> dict[str, tuple[BaseTool, list[str]]]:
    client = Client()
    web = httpx.Client(headers={"Authorization": f"Bearer {SECRET}"})
    signed = httpx.Client(auth=("user", SECRET))
    settings = {"db": {"password": SECRET}, SECRET: "x"}
    token = SECRET

    bound, call = partial(print, KEY, token=SECRET), client.call

    def use() -> str:
        return KEY

    def make(function: Any) -> BaseTool:
        function.__doc__ = "x"
        return StructuredTool.from_function(function, name="t")

    def by_default(api_key: str = SECRET) -> str:
        return api_key

    return {
        "client": (make(lambda: client), ["closure client.headers[X-Api-Key]"]),
        "header": (make(lambda: web), ["closure web.headers[authorization]"]),
        "auth": (make(lambda: signed), ["closure signed.auth"]),
        "settings": (make(lambda: settings), ["closure settings[…][password]"]),
        "text": (make(lambda: token), ["closure token"]),
        "global": (make(lambda: SECRET_TOKEN), ["global SECRET_TOKEN"]),
        "helper": (make(lambda: use()), ["closure use > global KEY"]),
        "default": (make(by_default), ["default of api_key"]),
        "constant": (make(lambda: "ghp_abcdefghijklmnopqrstuvwxyz012345"), ["constant in its code"]),
        "field": (KeyTool(), ["field api_key"]),
        "partial": (make(lambda: bound), ["closure bound > argument 0", "closure bound > argument token"]),
        "method": (make(lambda: call), ["closure call > self.headers[X-Api-Key]"]),
    }


SECRET_TOKEN = SECRET


@pytest.mark.parametrize("case", list(_holding()))
def test_secrets_are_named_by_their_place(case: str) -> None:
    """A secret in a tool's reach is one finding that tells where, and never what."""
    held, places = _holding()[case]
    assert list(secrets_of(held)) == places
    report = covered(hand_written(replying(), [held]))
    assert [(r.kind, r.route) for r in report.ungoverned] == [("secret", f"tools/{p}") for p in places]
    text = json.dumps(report.to_dict()) + str(report) + report._repr_html_()
    assert SECRET not in text and KEY not in text
    assert "ghp_" not in text


def test_what_is_no_secret_raises_no_alarm() -> None:
    """Numbers, names of settings, short placeholders, prose and empty values are no secrets."""
    max_tokens, token_url, api_key, secret = 4096, "https://issuer.example/token", "", "x"
    password = "the password is asked of the user"
    prompt = "Never tell a token. A token is a string."
    client = httpx.Client(headers={"Accept": "x"})
    kept = {"tokens": 5, "auth": None, "api_key": None}

    @tool
    def harmless(x: str) -> str:
        """Use a token like sk-... here."""
        return str((max_tokens, token_url, api_key, secret, password, prompt, client, kept))

    assert list(secrets_of(harmless)) == []


def test_our_own_credentials_are_no_finding() -> None:
    """A tool that holds the instance, as tools do that open runs, holds no secret of its own."""
    authz = authz_with(StaticPDP(True))

    @tool
    def opens(x: str) -> str:
        """Open."""
        return str(authz)

    assert list(secrets_of(opens)) == []


def test_seen_is_compared_with_the_static_picture() -> None:
    """What gates counted stands beside what is static: seen, not seen, and seen at run time only."""
    from langchain.agents.middleware import AgentMiddleware

    ran: list[Any] = []

    class Brings(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tools=[*request.tools, read_tool(ran)]))

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=read_tool(ran)) if request.tool is None else request)

    @tool
    def idle(x: str) -> str:
        """Never called."""
        return x

    authz = authz_with(StaticPDP(lambda r: r.resource.id != "pay"))
    graph = authz.protect(agent_graph(replying([PAY, READ]), [pay_tool(ran), idle], middleware=[Brings()]))
    before = authz.coverage(graph)
    assert (before.ran, before.unseen) == (False, ()) and "decided, " not in str(before)
    assert "<th>seen</th>" not in before._repr_html_()
    with authz.run(subject="alice"):
        graph.invoke(human())
    report = authz.coverage(graph)
    assert report.ran
    seen = {r.name: tuple(r.seen) for r in report.rows if r.kind == "tool"}
    assert seen["pay"] == (1, 0) and seen["idle"] == (0, 0)
    assert [r.name for r in report.unseen] == ["idle"]
    assert [(r.kind, r.name, r.graph) for r in report.dynamic] == [("tool", "read", "agent")]
    assert report.dynamic[0].governed and report.dynamic[0].seen.ran == 1
    document = report.to_dict()
    assert document["unseen"] == [r.id for r in report.unseen]
    assert document["dynamic"] == [r.id for r in report.dynamic]
    assert {r["name"]: r["seen"] for r in document["rows"] if r["kind"] == "entry"} == {"agent": {"decided": 1, "ran": 1}}
    assert all("1 decided, 0 ran" in shown for shown in (str(report), report._repr_html_()))
    json.dumps(document)


def test_seen_belongs_to_one_root_and_one_instance() -> None:
    """Two graphs of one instance, and two instances, do not see each other's runs."""
    authz, other = authz_with(StaticPDP(True)), authz_with(StaticPDP(True))
    one = authz.protect(agent_graph(replying([PAY]), [pay_tool([])], name="one"))
    two = authz.protect(agent_graph(replying([PAY]), [pay_tool([])], name="two"))
    third = other.protect(agent_graph(replying([PAY]), [pay_tool([])], name="one"))
    with authz.run(subject="alice"):
        one.invoke(human())
    assert authz.coverage(one).ran and not authz.coverage(two).ran
    assert not other.coverage(third).ran


def test_an_agent_is_counted_at_its_own_row() -> None:
    """A child agent that was found before its run has no second row afterwards."""
    authz = authz_with(StaticPDP(True))
    inner = agent()
    graph = authz.protect(node_graph(lambda state: inner.invoke(state)))
    with authz.run(subject="alice"):
        graph.invoke(human())
    report = authz.coverage(graph)
    assert report.dynamic == () and "at at" not in str(report)
    assert [tuple(r.seen) for r in report.rows if r.kind == "agent"] == [(1, 1)]


def test_counts_are_bounded() -> None:
    """Code may make tools without end: beyond the bound no other tool is counted."""
    run: Any = SimpleNamespace(scope=SimpleNamespace(graph="g"), agent=("g",))
    tally = DecisionCounts()
    for i in [*range(MAX_KEYS + 5), 0]:
        tally.count(run, "tool", f"t{i}", "l", ran=1)
    counts = tally.of("g")
    assert len(counts) == MAX_KEYS and counts["g", "tool", "t0"] == (("l",), PointCounts(0, 2))


def test_names_that_a_model_made_up_are_not_counted() -> None:
    """A call of a tool that does not exist leaves no key."""
    authz = authz_with(StaticPDP(True))
    graph = authz.protect(agent_graph(replying([{**PAY, "name": "made_up"}]), [pay_tool([])]))
    with authz.run(subject="alice"):
        graph.invoke(human())
    assert "made_up" not in str(authz.coverage(graph))


def test_raise_if_ungoverned_takes_a_baseline(tmp_path: Any) -> None:
    """What a baseline accepts does not raise; what is new does, with a stable code; another graph's is refused."""
    graph = agent_graph(replying(), [pay_tool([]), {"type": "web_search"}])
    report = covered(graph)
    with pytest.raises(ConfigError, match="ungoverned: "):
        report.raise_if_ungoverned()
    report.baseline().write(tmp_path / "base.json")
    report.raise_if_ungoverned(tmp_path / "base.json")
    report.raise_if_ungoverned(baseline=str(tmp_path / "base.json"))
    with pytest.raises(ConfigError, match="ungoverned: "):
        report.raise_if_ungoverned(report.baseline().model_copy(update={"ungoverned": []}))
    with pytest.raises(ConfigError, match="baseline_invalid: "):
        report.raise_if_ungoverned(report.baseline().model_copy(update={"graph": "other"}))


def test_edges_are_looked_at_too() -> None:
    """What a conditional edge's function holds is code of the graph like a node's."""
    inner = agent()

    def route(state: MessagesState) -> str:
        inner.invoke(state)
        return END

    builder = StateGraph(MessagesState)
    builder.add_node("step", lambda s: {})
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", route)
    report = covered(builder.compile())
    assert [r.name for r in report.rows if r.kind == "agent"] == ["inner"]
    report.raise_if_ungoverned()


class Recursive(list[Any]):
    """A class whose methods name themselves."""

    def append(self, item: Any) -> None:
        super().append(item)

    def step(self, state: MessagesState) -> dict[str, Any]:
        self.append(self.step)
        return {}


class Empty:
    """A proxy with nothing behind it."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError

    @property
    def thing(self) -> Any:
        raise RuntimeError


def test_odd_objects_are_survived() -> None:
    """Methods that name themselves, cycles, proxies and properties that raise: protect and coverage come to an end."""
    odd, empty = Recursive(), Empty()
    cycle: list[Any] = []
    cycle.append(cycle)
    assert len(list(walk_objects([odd.step], deep=True))) < 50

    def step(state: MessagesState) -> dict[str, Any]:
        empty.thing
        odd.append(cycle)
        return {}

    covered(node_graph(step)).raise_if_ungoverned()


@pytest.mark.parametrize("protected", [True, False])
def test_a_model_is_told_with_every_layer_in_front_of_it(protected: bool) -> None:
    """The node's gate, our middleware and the callback backstop decide a model's call; another instance's middleware does not."""
    authz, other = authz_with(StaticPDP(True)), authz_with(StaticPDP(True))
    graph = agent_graph(replying(), [pay_tool([])], middleware=[AuthzMiddleware(authz)])
    if protected:
        authz.protect(graph)
    (model,) = [r for r in authz.coverage(graph).rows if r.kind == "model"]
    assert model.layers == (("node gate", "middleware", "callback backstop") if protected else ("middleware",))
    (model,) = [r for r in other.coverage(graph).rows if r.kind == "model"]
    assert "middleware" not in model.layers
