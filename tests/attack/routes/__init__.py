"""Every road by which a side effect of a graph can be reached, one `Route` each, to be played in any stack of layers.

A route builds a fresh graph on a fresh `Bank`. Played with `Kit(None)` it is the unenforced twin, in
which the harm happens. Played with a `Kit` of a `RuntimeAuthz`, the builder asks the kit for its
tools, tool nodes, middleware and graphs, and the kit hands out what the selected layers are made of.

```python
route = ROUTES["invoke_in_node"]
assert play(route, Kit(None), "sync").ran == route.harm
outcome = play(route, Kit(authz_with(deny_only(route.denied))), "sync")
assert outcome.closed
```
"""

import importlib
import pkgutil
from collections.abc import Awaitable
from typing import Literal

from .._kit import *

__all__ = ["ALL", "MODES", "PROFILES", "ROUTES", "Bank", "Kit", "Outcome", "Play", "Route", "graph_play", "play"]

MODES: tuple[Literal["sync", "async"], ...] = ("sync", "async")

PROFILES = {
    "pay": ToolProfile(effect="pay", sink="external", critical={"recipient": "principal", "amount": "amount"}),
    "evil": ToolProfile(effect="pay", sink="external"),
    "read": ToolProfile(effect="read", sink="none", data_class="public"),
    "step": ToolProfile(effect="read", sink="none", data_class="public"),
}
"""For the tools that the routes use. `step` is a tool that only leads to others."""


class Payment(BaseModel):
    """The arguments of `Bank.tool`, said once: to read them from a function costs more than a call."""

    recipient: str
    amount: float


class Bank:
    """What was executed, in order: `(tool, argument)`."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Any]] = []

    def tool(self, name: str = "pay") -> BaseTool:
        """`name(recipient, amount)`, a side effect, in both forms."""

        def act(recipient: str, amount: float) -> str:
            self.ran.append((name, amount))
            return f"{name}: {amount:g} to {recipient}"

        async def aact(recipient: str, amount: float) -> str:
            return act(recipient, amount)

        return StructuredTool.from_function(act, aact, name=name, description=f"{name} somebody.", args_schema=Payment)

    def read(self) -> BaseTool:
        """`read(path)`, no side effect; seen in `ran` all the same."""

        def act(path: str) -> str:
            self.ran.append(("read", path))
            return f"text of {path}"

        async def aact(path: str) -> str:
            return act(path)

        return StructuredTool.from_function(act, aact, name="read", description="Read something.")


ALL = frozenset({"entry", "guard", "tool_node", "middleware"})


@dataclass(frozen=True)
class Kit:
    """What a builder makes its graph of. Without `authz`: stock parts.

    Layers: `entry` (`authz.protect`: root entry, node gates, tool node gates, guards of every tool that
    it reaches, the callback backstop), `guard` (`authz.guard` around the tools that the builder makes),
    `tool_node` (`AuthzToolNode` where the builder makes a tool node), `middleware` (`AuthzMiddleware`,
    where there is one).
    """

    authz: RuntimeAuthz | None
    layers: frozenset[str] = frozenset({"entry"})

    def has(self, layer: str) -> bool:
        """Whether the layer is in force."""
        return self.authz is not None and layer in self.layers

    def tool(self, tool: BaseTool) -> BaseTool:
        return self.authz.guard(tool) if self.authz is not None and self.has("guard") else tool

    def tools(self, *tools: BaseTool) -> list[BaseTool]:
        return [self.tool(t) for t in tools]

    def tool_node(self, tools: Sequence[BaseTool], **options: Any) -> ToolNode:
        if self.authz is not None and self.has("tool_node"):
            return AuthzToolNode(tools, authz=self.authz, **options)
        return ToolNode(tools, **options)

    def middleware(self, *others: Any, inner: bool = True) -> list[Any]:
        """The middleware of an agent: ours innermost (or outermost) beside the builder's own."""
        import langchain_runtime_authz as package

        ours = []
        if self.has("middleware") and hasattr(package, "AuthzMiddleware"):
            ours = [package.AuthzMiddleware(self.authz)]
        return [*others, *ours] if inner else [*ours, *others]

    def graph(self, graph: Any) -> Any:
        return self.authz.protect(graph) if self.authz is not None and self.has("entry") else graph


@dataclass
class Play:
    """A built route: how to run it, and the graph it runs (for `coverage`)."""

    sync: Callable[[], Any]
    asynchronous: Callable[[], Awaitable[Any]]
    graph: Any = None


@dataclass(frozen=True)
class Route:
    """One road to a side effect.

    Attributes:
        name: unique; names the row of the matrix.
        says: the road, in words.
        build: makes a fresh `Play` on a bank, of what the kit hands out.
        harm: what the unenforced twin executes.
        denied: the tool that a PDP must deny, alone, for the road to be closed.
        closed_by: layers of which each alone closes the road (`entry` is `protect`).
        open: why no layer can close it; `coverage` then names it. Empty: `protect` closes it.
        modes: in which forms it exists.
        needs: packages beyond the dependency group `test`; such a route belongs to the integration tier.
    """

    name: str
    says: str
    build: Callable[[Kit, Bank], Play]
    harm: tuple[tuple[str, Any], ...] = (("pay", 5.0),)
    denied: str = "pay"
    closed_by: tuple[str, ...] = ("entry",)
    open: str = ""
    modes: tuple[Literal["sync", "async"], ...] = MODES
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What came of it. `error` is the `AuthzDenied` (or halt) that reached the caller, if one did.

    `closed` is True if neither the denied tool nor the code that would do the harm ran.
    """

    ran: tuple[tuple[str, Any], ...]
    state: Any = None
    error: AuthzDenied | None = None
    graph: Any = None
    closed: bool = False


def play(route: Route, kit: Kit, mode: str) -> Outcome:
    """Build the route afresh and run it once, as alice's run where there is an `authz`."""
    bank = Bank()
    built = route.build(kit, bank)
    run = kit.authz.run(subject="alice", task="Pay the bill") if kit.authz is not None else nullcontext()
    state, error = None, None
    try:
        with run:
            state = built.sync() if mode == "sync" else asyncio.run(_awaited(built))
    except AuthzDenied as denied:
        error = denied
    closed = route.harm[0] not in bank.ran and all(name != route.denied for name, _ in bank.ran)
    return Outcome(tuple(bank.ran), state, error, built.graph, closed)


async def _awaited(built: Play) -> Any:
    return await built.asynchronous()


def graph_play(graph: Any, given: Any = None, config: Any = None) -> Play:
    """A graph that is invoked once."""
    given = {"messages": [("user", "Pay the bill")]} if given is None else given
    return Play(lambda: graph.invoke(given, config), lambda: graph.ainvoke(given, config), graph)


ROUTES: dict[str, Route] = {}
"""By name, from every module of this package: each lists its own in `ROUTES`."""

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    for _route in importlib.import_module(f"{__name__}.{_module}").ROUTES:
        assert _route.name not in ROUTES, _route.name
        ROUTES[_route.name] = _route
