"""Calls and nodes that several routes share."""

from .._kit import *
from . import Kit, Play, graph_play

ROUTES: list[Any] = []

ARGS = {"recipient": "bob", "amount": 5.0}
PAY = call("pay", ARGS, "call-pay")
READ = call("read", {"path": "a"}, "call-read")
CALL: Any = call("pay", ARGS, "call-made")


def in_node(kit: Kit, act: Callable[..., Any], aact: Callable[..., Any]) -> Play:
    """A graph of one node function, which holds what `act` and `aact` hold. Each takes the node's config."""

    def step(state: Any, config: RunnableConfig) -> dict[str, Any]:
        act(config)
        return {"messages": [("ai", "done")]}

    async def astep(state: Any, config: RunnableConfig) -> dict[str, Any]:
        await aact(config)
        return {"messages": [("ai", "done")]}

    return graph_play(kit.graph(node_graph(RunnableCallable(step, astep, name="step"))))
