"""Tools that the code of a node calls by itself: no model planned them, no tool node runs them."""

from collections.abc import Awaitable
from contextvars import copy_context

from langchain_core.runnables import RunnableLambda
from langgraph.func import entrypoint, task

from .._kit import *
from . import Bank, Kit, Play, Route, graph_play
from .parts import ARGS, CALL, in_node

Act = Callable[[BaseTool, Any], Any]
Aact = Callable[[BaseTool, Any], Awaitable[Any]]


def node(act: Act, aact: Aact) -> Callable[[Kit, Bank], Play]:
    """A route in which a node function has a tool in its closure; it gets the tool and the node's config."""

    def build(kit: Kit, bank: Bank) -> Play:
        pay = kit.tool(bank.tool())
        return in_node(kit, lambda config: act(pay, config), lambda config: aact(pay, config))

    return build


def aside(work: Callable[[], Any]) -> None:
    """Run it in a raw thread, without the context; what it raises is lost, as it would be."""

    def quietly() -> None:
        try:
            work()
        except Exception:
            return

    thread = threading.Thread(target=quietly)
    thread.start()
    thread.join()


async def _aside(work: Callable[[], Any]) -> None:
    aside(work)


def _aloop(pay: BaseTool, config: Any = None) -> Any:
    return asyncio.run(pay.ainvoke(ARGS, config))


def _only_callbacks(config: Any) -> Any:
    return {"callbacks": config["callbacks"]}


def _chain(pay: BaseTool) -> Any:
    return RunnableLambda(lambda _: ARGS) | pay


async def _afunc(pay: Any, _: Any) -> Any:
    return await pay.coroutine(**ARGS)


async def _aunder(pay: Any, config: Any) -> Any:
    return await pay._arun(**ARGS, config=config)


def _rebuilt(pay: Any) -> BaseTool:
    """The tool's functions in a tool of another name, as a library may rebuild it."""
    return StructuredTool.from_function(pay.func, pay.coroutine, name="step", description="Step.")


def _outliving(kit: Kit, bank: Bank) -> Play:
    """The node leaves something behind that waits until the run is over."""
    pay = kit.tool(bank.tool())
    over = threading.Event()
    left: list[Any] = []

    def act(_: Any) -> None:
        context = copy_context()

        def later() -> None:
            over.wait(10)
            try:
                context.run(pay.invoke, ARGS)
            except Exception:
                return

        left.append(threading.Thread(target=later))
        left[0].start()

    async def aact(_: Any) -> None:
        async def later() -> None:
            while not over.is_set():
                await asyncio.sleep(0.001)
            await pay.ainvoke(ARGS)

        left.append(asyncio.create_task(later()))

    played = in_node(kit, act, aact)

    def sync() -> Any:
        state = played.graph.invoke({"messages": []})
        over.set()
        left[0].join()
        return state

    async def asynchronous() -> Any:
        state = await played.graph.ainvoke({"messages": []})
        over.set()
        await left[0]
        return state

    return Play(sync, asynchronous, played.graph)


def _functional(kit: Kit, bank: Bank) -> Play:
    pay = kit.tool(bank.tool())

    @task
    def work(given: Any) -> Any:
        return pay.invoke(ARGS)

    @entrypoint()
    def flow(given: Any) -> Any:
        return work(given).result()

    @task
    async def awork(given: Any) -> Any:
        return await pay.ainvoke(ARGS)

    @entrypoint()
    async def aflow(given: Any) -> Any:
        return await awork(given)

    graph, agraph = kit.graph(flow), kit.graph(aflow)
    given = {"messages": []}
    return Play(lambda: graph.invoke(given), lambda: agraph.ainvoke(given), graph)


class _OwnInvoke(BaseTool):
    """A tool class that acts in an `invoke` of its own: nothing comes down to `run`."""

    name: str = "pay"
    description: str = "Pay somebody."
    bank: Any = None

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        self.bank.ran.append((self.name, 5.0))
        called = isinstance(input, dict) and input.get("type") == "tool_call"
        return ToolMessage("paid", tool_call_id=input["id"]) if called else "paid"

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self.invoke(input, config)

    def stream(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        yield _OwnInvoke.invoke(self, input)

    async def astream(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        yield _OwnInvoke.invoke(self, input)

    def _run(self, recipient: str, amount: float) -> str:
        return "never"


def _own_invoke(act: Act, aact: Aact) -> Callable[[Kit, Bank], Play]:
    def build(kit: Kit, bank: Bank) -> Play:
        pay = kit.tool(_OwnInvoke(bank=bank))
        return in_node(kit, lambda _: act(pay, None), lambda _: aact(pay, None))

    return build


def _tool_as_node(kit: Kit, bank: Bank) -> Play:
    state_of = TypedDict("state_of", {"recipient": str, "amount": float})
    return graph_play(kit.graph(chain({"step": kit.tool(bank.tool()) | RunnableLambda(lambda _: {})}, state_of)), ARGS)


def _part(kit: Kit, bank: Bank, tool: BaseTool | None = None) -> Play:
    """A tool node behind another step, in one node of the graph."""
    tools = kit.tool_node(kit.tools(tool or bank.tool()))
    graph = kit.graph(chain({"step": RunnableLambda(lambda state: state) | tools}))
    given = {"messages": [HumanMessage("x", id="h"), AIMessage("", tool_calls=[CALL], id="m")]}
    return graph_play(graph, given)


def _own_in_part(kit: Kit, bank: Bank) -> Play:
    return _part(kit, bank, _OwnInvoke(bank=bank))


OWN = "its `invoke` comes down to no `run`, so that nothing announces it"
BOTH = ("entry", "guard")
ONLY_GUARD = ("guard",)

ROUTES = [
    Route("invoke_in_node", "`tool.invoke` in a node function", node(lambda pay, _: pay.invoke(ARGS), lambda pay, _: pay.ainvoke(ARGS)), closed_by=BOTH),
    Route("call_in_node", "`tool.invoke` in a node function with a tool call of its own making", node(lambda pay, _: pay.invoke(CALL), lambda pay, _: pay.ainvoke(CALL)), closed_by=BOTH),
    Route("run_in_node", "`tool.run` in a node function", node(lambda pay, _: pay.run(ARGS), lambda pay, _: pay.arun(ARGS)), closed_by=BOTH),
    Route("no_callbacks", "`tool.invoke(…, callbacks=[])`", node(lambda pay, _: pay.invoke(ARGS, {"callbacks": []}), lambda pay, _: pay.ainvoke(ARGS, {"callbacks": []})), closed_by=BOTH),
    Route("lcel", "a tool in a chain that a node function makes", node(lambda pay, _: _chain(pay).invoke("x"), lambda pay, _: _chain(pay).ainvoke("x")), closed_by=BOTH),
    Route(
        "lcel_bound", "`tool.with_config(…).with_retry(…)`",
        node(
            lambda pay, _: pay.with_config(tags=["x"]).with_retry(stop_after_attempt=2).invoke(ARGS),
            lambda pay, _: pay.with_config(tags=["x"]).with_retry(stop_after_attempt=2).ainvoke(ARGS),
        ),
        closed_by=BOTH,
    ),
    Route(
        "thread_with_context", "a raw thread that was given the node's context",
        node(lambda pay, _: aside(lambda c=copy_context(): c.run(pay.invoke, ARGS)), lambda pay, _: _aside(lambda c=copy_context(): c.run(_aloop, pay))),
        closed_by=BOTH,
    ),
    Route(
        "thread_with_config", "a raw thread that was given the node's config",
        node(lambda pay, config: aside(lambda: pay.invoke(ARGS, config)), lambda pay, config: _aside(lambda: _aloop(pay, config))), closed_by=BOTH,
    ),
    Route(
        "thread_with_callbacks", "a raw thread that was given the node's callbacks",
        node(lambda pay, config: aside(lambda: pay.invoke(ARGS, _only_callbacks(config))), lambda pay, config: _aside(lambda: _aloop(pay, _only_callbacks(config)))),
        closed_by=BOTH,
    ),
    Route(
        "thread_bare", "a raw thread that was given nothing",
        node(lambda pay, _: aside(lambda: pay.invoke(ARGS)), lambda pay, _: _aside(lambda: _aloop(pay))), closed_by=ONLY_GUARD,
        open="an unguarded tool in a thread without the run's context, config or callbacks; `authz.deny_outside_runs()` denies it",
    ),
    Route(
        "function", "`tool.func(…)`, `tool.coroutine(…)`", node(lambda pay, _: pay.func(**ARGS), _afunc), closed_by=ONLY_GUARD,
        open="a function called as a function: nothing announces it",
    ),
    Route("under_run", "`tool._run(…)`, `tool._arun(…)`", node(lambda pay, config: pay._run(**ARGS, config=config), _aunder), closed_by=BOTH),
    Route(
        "rebuilt", "the tool's functions in a tool of another name",
        node(lambda pay, _: _rebuilt(pay).invoke(ARGS), lambda pay, _: _rebuilt(pay).ainvoke(ARGS)), closed_by=ONLY_GUARD,
        open="the tool that runs is another one, and is decided as what it is",
    ),
    Route(
        "unwrapped", "the function that the tool was made of, taken from `tool.func.__wrapped__`",
        node(lambda pay, _: getattr(pay.func, "__wrapped__", pay.func)(**ARGS), lambda pay, _: getattr(pay.coroutine, "__wrapped__", pay.coroutine)(**ARGS)),
        closed_by=(), open="the process's own code that goes round its own guard",
    ),
    Route("own_invoke", "a tool class with an `invoke` of its own", _own_invoke(lambda pay, _: pay.invoke(ARGS), lambda pay, _: pay.ainvoke(ARGS)), closed_by=ONLY_GUARD, open=OWN),
    Route("tool_node_part", "a ToolNode that is a part of a node", _part, closed_by=(*BOTH, "tool_node")),
    Route("own_invoke_part", "the same, with a tool class that has an `invoke` of its own", _own_in_part, closed_by=(*BOTH, "tool_node")),
    Route("tool_as_node", "a tool that is a node, or a part of one", _tool_as_node, closed_by=BOTH),
    Route("outliving", "a task or thread that outlives the run", _outliving, closed_by=BOTH),
    Route("functional", "a `@task` of the functional API", _functional, closed_by=BOTH),
]
