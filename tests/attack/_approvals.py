"""Five calls of one message, three of them payments that are asked about, in every kind of agent."""

from ._kit import *


def payment(to: str, amount: Any, ident: str) -> dict[str, Any]:
    return call("pay", {"to": to, "amount": amount}, ident)


FIVE = [
    payment("ann", "10", "c1"), call("write", {"text": "two"}, "c2"), payment("bob", "20", "c3"),
    call("write", {"text": "four"}, "c4"), payment("eve", "30", "c5"),
]
ANN, BOB, EVE = ("ann", 10.0, "USD"), ("bob", 20.0, "USD"), ("eve", 30.0, "USD")
TWO, FOUR = ("write", "two"), ("write", "four")


def edit(to: str, amount: Any, name: str = "pay") -> dict[str, Any]:
    """A human's decision to pay something else."""
    return {"type": "edit", "edited_action": {"name": name, "args": {"to": to, "amount": amount}}}


def react_v1(model: ScriptedChatModel, tools: Any, **options: Any) -> Any:
    """The legacy agent, whose tool node runs all calls in one task."""
    return _react("v1", model, tools, **options)


def react_v2(model: ScriptedChatModel, tools: Any, **options: Any) -> Any:
    """The legacy agent with one task per call, sent with the state."""
    return _react("v2", model, tools, **options)


def _react(version: Any, model: Any, tools: Any, **options: Any) -> Any:
    from langgraph.prebuilt import create_react_agent

    with quiet():
        return create_react_agent(model, list(tools), version=version, **{"name": "react", **options})


def supervised(model: ScriptedChatModel, tools: Any, *, checkpointer: Any = None, **options: Any) -> Any:
    """A supervisor that hands over to the agent that pays."""
    from langgraph_supervisor import create_supervisor

    child = react_v2(model, tools, name="payer")
    hand_over = _once(call("transfer_to_payer", {}, "h1"))
    with quiet():
        return create_supervisor([child], model=hand_over).compile(checkpointer=checkpointer, **options)


def deep(model: ScriptedChatModel, tools: Any, *, checkpointer: Any = None, **options: Any) -> Any:
    """A deep agent whose sub-agent pays."""
    from deepagents import create_deep_agent

    task = _once(call("task", {"description": "pay", "subagent_type": "payer"}, "t1"))
    child = {"name": "payer", "description": "pays", "system_prompt": "x", "tools": list(tools), "model": model}
    return create_deep_agent(model=task, tools=[], subagents=[child], checkpointer=checkpointer, **options)


def _once(*calls: dict[str, Any]) -> ScriptedChatModel:
    """One message of calls, then the end; by the messages, so that a restarted process goes on with it."""
    mine = {c["id"] for c in calls}

    def respond(messages: list[Any]) -> AIMessage:
        done = any(isinstance(m, AIMessage) and any(c["id"] in mine for c in m.tool_calls) for m in messages)
        return AIMessage("done") if done else AIMessage("", tool_calls=list(calls))

    return ScriptedChatModel(script=[respond] * 50)


BUILDERS: dict[str, Callable[..., Any]] = {"hand": hand_written, "agent": agent_graph, "react_v1": react_v1, "react_v2": react_v2}
FRAMEWORKS: dict[str, Callable[..., Any]] = {"supervisor": supervised, "deepagents": deep}
ONE_TASK = ("hand", "react_v1")


class Scene:
    """One thread of one kind of agent, whose process can be started anew over the same stores."""

    def __init__(self, kind: str, saver: Callable[[], Any], *, plan: Any = None, **authz: Any) -> None:
        self.kind, self.saver, self.plan = kind, saver, plan or FIVE
        self.ran: list[Any] = []
        self.ledger = authz.pop("ledger", None) or MemoryLedger()
        self.options = authz
        self.pdp = authz.pop("pdp", None) or asking("pay")
        self.authz: RuntimeAuthz
        self.graph: Any
        self.start()

    def build(self) -> Any:
        build = {**BUILDERS, **FRAMEWORKS}[self.kind]
        return build(_once(*self.plan), [pay_tool(self.ran), writing_tool(self.ran)], checkpointer=self.saver())

    def start(self) -> None:
        """A new process: new graph, new instance; the ledger and the checkpoints are what is left."""
        profiles = {**PROFILES, **{n: ToolProfile(effect="read") for n in ("task", "transfer_to_payer")}}
        self.authz = RuntimeAuthz(pdp=self.pdp, ledger=self.ledger, profiles=profiles, **self.options)
        with quiet():
            self.graph = self.authz.protect(self.build())

    def say(self, given: Any, config: Any = None, *, how: str = "sync") -> Any:
        return run_as(self.authz, self.graph, given, config or THREAD, how=how, task="x")

    def both(self, go: str) -> Callable[..., Any]:
        """`say`, on the road that `go` names."""
        return lambda *args: self.say(*args, how=go)

    def answers(self) -> list[ToolMessage]:
        """Answers to the five calls, wherever below the root they are."""
        found: dict[str, ToolMessage] = {}
        for state in _states(self.graph.get_state(THREAD, subgraphs=True)):
            for message in state.get("messages", []):
                if isinstance(message, ToolMessage):
                    found[message.tool_call_id] = message
        return [found[c["id"]] for c in self.plan if c["id"] in found]


def _states(state: Any) -> list[dict[str, Any]]:
    below = [s for t in state.tasks if t.state is not None and hasattr(t.state, "values") for s in _states(t.state)]
    return [state.values, *below]


__all__ = [
    "ANN", "APPROVE", "BOB", "BUILDERS", "EVE", "FIVE", "FOUR", "FRAMEWORKS", "ONE_TASK", "REJECT", "THREAD", "TWO",
    "Scene", "edit", "human", "payment", "resume",
]  # fmt: skip
