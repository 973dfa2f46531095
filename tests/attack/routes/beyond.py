"""Roads on which no tool of this process is called at all, and roads by which a call comes past its model."""

from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, hook_config
from langgraph.cache.memory import InMemoryCache
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import CachePolicy

from .._kit import *
from . import PROFILES, Bank, Kit, Play, Route, graph_play
from .parts import PAY, READ, in_node

INPUT = {"messages": [("user", "Pay the bill")]}


def _plain(kit: Kit, bank: Bank) -> Play:
    def act(_: Any) -> None:
        bank.ran.append(("http", 5.0))

    async def aact(_: Any) -> None:
        act(_)

    return in_node(kit, act, aact)


class _Far(RemoteGraph):
    """A remote graph whose server pays: what it does there is no step of ours."""

    def __init__(self, bank: Bank) -> None:
        super().__init__("far", url="http://127.0.0.1:9")
        self._bank = bank

    def _there(self) -> Any:
        self._bank.ran.append(("pay", 5.0))
        return {"messages": [("ai", "done")]}

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        return self._there()

    async def ainvoke(self, *args: Any, **kwargs: Any) -> Any:
        return self._there()


def _remote(kit: Kit, bank: Bank) -> Play:
    return graph_play(kit.graph(node_graph(_Far(bank))))


def _cached(kit: Kit, bank: Bank) -> Play:
    """Somebody else's run, who may pay, has filled the cache: the result is handed out here."""
    cache = InMemoryCache()
    permitting = RuntimeAuthz(pdp=StaticPDP(True), profiles=PROFILES) if kit.authz is not None else None
    before = Kit(permitting, kit.layers)

    def build(node: Any) -> Any:
        builder = StateGraph(MessagesState)
        builder.add_node("tools", node, cache_policy=CachePolicy(key_func=lambda _: "one"))
        builder.add_edge(START, "tools")
        builder.add_edge("tools", END)
        return builder.compile(cache=cache, name="cached")

    given = {"messages": [HumanMessage("x", id="h"), AIMessage("", tool_calls=[PAY], id="m")]}
    with permitting.run(subject="bob") if permitting is not None else nullcontext():
        before.graph(build(before.tool_node(before.tools(Bank().tool())))).invoke(given)
    graph = kit.graph(build(kit.tool_node(kit.tools(bank.tool()))))

    def note(state: Any) -> Any:
        bank.ran += [("pay", 5.0) for m in state["messages"] if m.type == "tool" and m.status == "success"]
        return state

    async def asynchronous() -> Any:
        return note(await graph.ainvoke(given))

    return Play(lambda: note(graph.invoke(given)), asynchronous, graph)


class _Searching(ScriptedChatModel):
    """A model whose provider runs what it is bound to."""

    bank: Any = None
    searches: bool = False

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        searches = any(isinstance(t, dict) and t.get("type") == "web_search" for t in tools)
        return self.model_copy(update={"searches": searches})

    def _play(self, messages: Any) -> AIMessage:
        if self.searches:
            self.bank.ran.append(("web_search", 5.0))
        return super()._play(messages)


def _provider_tool(kit: Kit, bank: Bank) -> Play:
    model = _Searching(script=[AIMessage("done")], bank=bank)
    tools: Any = [*kit.tools(bank.read()), {"type": "web_search"}]
    return graph_play(kit.graph(agent_graph(model, tools, middleware=kit.middleware())))


def _resumed(graph: Any, answer: Any) -> Play:
    """A graph that asks in its first run and is answered by a second one."""

    def sync() -> Any:
        graph.invoke(INPUT, THREAD)
        return graph.invoke(Command(resume=answer), THREAD)

    async def asynchronous() -> Any:
        await graph.ainvoke(INPUT, THREAD)
        return await graph.ainvoke(Command(resume=answer), THREAD)

    return Play(sync, asynchronous, graph)


def _edited(kit: Kit, bank: Bank, *, inner: bool) -> Play:
    asks = HumanInTheLoopMiddleware(interrupt_on={"read": True})
    tools = kit.tools(bank.tool(), bank.read())
    middleware = kit.middleware(asks, inner=inner)
    graph = agent_graph(replying([READ]), tools, middleware=middleware, checkpointer=InMemorySaver())
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": PAY["args"]}}
    return _resumed(kit.graph(graph), {"decisions": [edit]})


class _Jumps(AgentMiddleware[Any, Any]):
    """Middleware that goes to the tools with a call that no model made."""

    @hook_config(can_jump_to=["tools"])
    def before_model(self, state: Any, runtime: Any) -> Any:
        if any(isinstance(m, AIMessage) for m in state["messages"]):
            return None
        made = AIMessage("", tool_calls=[call("pay", PAY["args"], "call-made")], id="made")
        return {"messages": [made], "jump_to": "tools"}


def _jump(kit: Kit, bank: Bank) -> Play:
    graph = agent_graph(replying(), kit.tools(bank.tool()), middleware=kit.middleware(_Jumps()))
    return graph_play(kit.graph(graph))


ROUTES = [
    Route(
        "plain_effect", "a plain side effect in a node function", _plain, harm=(("http", 5.0),), denied="http",
        closed_by=(), open="no tool is called: the node itself can be refused, its inside is not seen",
    ),
    Route("remote", "a remote graph", _remote, closed_by=(), open="its steps are taken elsewhere: the node itself can be refused"),
    Route("cached", "a node's result from the cache", _cached, closed_by=(), open="the node does not run, so no gate is met"),
    Route(
        "provider_tool", "a tool that runs at the model provider", _provider_tool, harm=(("web_search", 5.0),),
        denied="web_search", closed_by=(), open="it runs elsewhere, inside the model's call",
    ),
    Route(
        "edited_inside", "an approver's edit to another tool, by HumanInTheLoopMiddleware before ours",
        lambda kit, bank: _edited(kit, bank, inner=True), closed_by=("entry", "guard", "middleware"),
    ),
    Route("edited_outside", "the same, by HumanInTheLoopMiddleware after ours", lambda kit, bank: _edited(kit, bank, inner=False), closed_by=("entry", "guard", "middleware")),
    Route("jump", '`jump_to="tools"` with a call that no model made', _jump, closed_by=("entry", "guard", "middleware")),
]
