"""ASI03 Identity and Privilege Abuse: a tool that returns, raises, stores or streams its token.

The twin is the same graph without protection, whose tool was provisioned with a token that lives on: there
the token ends up in every one of the places.
"""

from __future__ import annotations

import logging
import pickle
import traceback

from langgraph.config import get_store, get_stream_writer
from langgraph.func import task
from langgraph.graph.message import push_message
from langgraph.prebuilt import InjectedStore
from langgraph.runtime import Runtime
from pydantic import SecretStr

from ._kit import *

BANK = "https://bank.example"
STATIC = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJl" * 7


@dataclass(frozen=True)
class Client:
    """Of a bank; says nothing of its token."""

    token: str = field(repr=False)


class Receipt(BaseModel):
    """What a tool keeps for later."""

    sent: SecretStr
    by: Client


@dataclass
class Update:
    """A state object."""

    messages: list[Any]


class Place:
    """One way to be careless: what the tool does with its token, and where that can be read."""

    def __init__(self, protected: bool) -> None:
        self.protected = protected
        self.token = STATIC

    def mine(self) -> str:
        if self.protected:
            self.token = current_call().credential().token
        return self.token

    def tool(self, how: str) -> BaseTool:
        return getattr(self, how)()  # type: ignore[no-any-return]

    def returns(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Return."""
            return f"paid with {self.mine()}"

        return careless

    def returns_artifact(self) -> BaseTool:
        @tool(response_format="content_and_artifact")
        def careless() -> tuple[str, dict[str, str]]:
            """Return an artifact."""
            return "done", {"used": self.mine()}

        return careless

    def returns_artifact_of_its_own(self) -> BaseTool:
        @tool(response_format="content_and_artifact")
        def careless() -> tuple[str, Any]:
            """Return an object that does not show what it holds."""
            return "done", Receipt(sent=SecretStr(self.mine()), by=Client(self.token))

        return careless

    def raises(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Raise."""
            raise RuntimeError(f"refused {self.mine()}")

        return careless

    def raises_what_is_written_of_its_own(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Raise an error whose text is made of what none of its attributes' names says."""
            raise FileNotFoundError(2, "no such key", self.mine())

        return careless

    def raises_from_an_invoke_of_its_own(self) -> BaseTool:
        place = self

        class Careless(BaseTool):
            name: str = "careless"
            description: str = "Raise before `_run`."

            def invoke(self, *_: Any, **__: Any) -> Any:
                raise FileNotFoundError(2, "no such key", place.mine())

            def _run(self) -> str:
                return "done"

        return Careless()

    def updates_state(self) -> BaseTool:
        @tool
        def careless(ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Update the state."""
            return Command(update={"messages": [ToolMessage(self.mine(), tool_call_id=ident)]})

        return careless

    def updates_state_beside_the_text(self) -> BaseTool:
        @tool
        def careless(ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Update the state, with a message whose token is not in its text."""
            message = ToolMessage("done", tool_call_id=ident, artifact={Client(self.mine()): 1}, name=self.token)
            return Command(update=[("messages", [message])])

        return careless

    def updates_state_by_an_object(self) -> BaseTool:
        @tool
        def careless(ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Update the state, by a state object."""
            return Command(update=Update(messages=[ToolMessage("done", tool_call_id=ident, used=Client(self.mine()))]))

        return careless

    def sends(self) -> BaseTool:
        @tool
        def careless(ident: Annotated[str, InjectedToolCallId]) -> Any:
            """Go on, with something for the next node."""
            message = ToolMessage("done", tool_call_id=ident)
            goto = [Send("agent", {"messages": [], "used": Client(self.mine())})]
            return Command(update={"messages": [message]}, goto=goto)

        return careless

    def stores_an_object(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Store."""
            get_store().put(("keys",), "bank", {"client": Client(self.mine())})
            return "done"

        return careless

    def stores(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Store."""
            get_store().put(("keys",), "bank", {"token": self.mine()})
            return "done"

        return careless

    def stores_injected(self) -> BaseTool:
        @tool
        def careless(store: Annotated[Any, InjectedStore()]) -> str:
            """Store."""
            store.put(("keys", self.mine().rpartition(".")[2]), "bank", {"deep": [self.mine()]})
            return "done"

        return careless

    def stores_by_runtime(self) -> BaseTool:
        @tool
        def careless(runtime: ToolRuntime) -> str:
            """Store."""
            runtime.store.put(("keys",), "bank", {"token": self.mine()})  # type: ignore[union-attr]
            assert runtime.store.get(("keys",), "bank") is not None  # type: ignore[union-attr]
            return "done"

        return careless

    def streams(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Stream."""
            get_stream_writer()({"used": self.mine()})
            return "done"

        return careless

    def streams_by_runtime(self) -> BaseTool:
        @tool
        def careless(runtime: ToolRuntime) -> str:
            """Stream."""
            runtime.stream_writer(f"used {self.mine()}")
            return "done"

        return careless

    def pushes_a_message(self) -> BaseTool:
        @tool
        def careless() -> str:
            """Write a message to the state, past the result."""
            push_message(AIMessage(f"sent {self.mine()}", id="m"))
            return "done"

        return careless

    def returns_from_a_task(self) -> BaseTool:
        @task
        def fetch() -> dict[str, str]:
            return {"Authorization": self.mine()}

        @tool
        def careless() -> str:
            """Have a task done, whose result is kept."""
            return "done" if fetch().result() else "undone"

        return careless

    def stores_from_a_task(self) -> BaseTool:
        @task
        def keep() -> None:
            get_store().put(("keys",), "bank", {"token": self.mine()})

        @task
        def keep_by_runtime(runtime: Runtime) -> None:
            runtime.store.put(("keys",), "again", {"token": self.mine()})  # type: ignore[union-attr]
            runtime.stream_writer(self.token)

        @tool
        def careless() -> str:
            """Have it stored."""
            keep().result()
            keep_by_runtime().result()  # type: ignore[call-arg]
            return "done"

        return careless

    def streams_from_a_task_of_a_task_async(self) -> BaseTool:
        @task
        async def tell() -> None:
            get_stream_writer()({"used": self.mine()})

        @task
        async def have_it_told() -> None:
            await tell()

        @tool
        async def careless() -> str:
            """Have it streamed."""
            await have_it_told()
            return "done"

        return careless

    def raises_from_a_task_async(self) -> BaseTool:
        @task
        async def fetch() -> None:
            raise FileNotFoundError(2, "no such key", self.mine())

        @tool
        async def careless() -> str:
            """Have a task done, whose error is kept."""
            await fetch()
            return "done"

        return careless

    def streams_its_output(self) -> BaseTool:
        @tool
        def careless(runtime: ToolRuntime) -> str:
            """Stream a part of the output."""
            runtime.emit_output_delta({"so far": self.mine()})
            return "done"

        return careless

    def streams_its_output_async(self) -> BaseTool:
        @tool
        async def careless(runtime: ToolRuntime) -> str:
            """Stream a part of the output."""
            runtime.emit_output_delta([self.mine()])
            await asyncio.sleep(0)
            runtime.emit_output_delta("done")
            return "done"

        return careless

    def stores_async(self) -> BaseTool:
        @tool
        async def careless() -> str:
            """Store."""
            await get_store().aput(("keys",), "bank", {"token": self.mine()})
            return "done"

        return careless


MODES = ["values", "custom", "updates", "messages", "tools"]
HOW = [name for name in vars(Place) if name not in ("mine", "tool") and not name.startswith("_")]


def kept(saver: InMemorySaver) -> str:
    """The bytes of every checkpoint, and of the writes between them."""
    writes = [write for task in saver.writes.values() for write in task.values()]
    return repr((dict(saver.storage), saver.blobs, writes))


def played(how: str, kind: str, protected: bool, capsys: Any, caplog: Any) -> tuple[str, str, RuntimeAuthz]:
    """Everything that a run of the careless tool left behind, as one text; its token; the authz."""
    caplog.set_level(logging.DEBUG)
    place, store, saver = Place(protected), InMemoryStore(), InMemorySaver()
    authz = RuntimeAuthz(
        pdp=StaticPDP(True), profiles={"careless": ToolProfile(effect="pay", sink="external", audience=(BANK,))}
    )
    build = hand_written if kind == "hand" else agent_graph
    graph = build(replying([call("careless", {}, "c1")]), [place.tool(how)], checkpointer=saver, store=store)
    if protected:
        authz.protect(graph)
    left: list[Any] = []

    async def asynchronously() -> None:
        async for chunk in graph.astream(human(), THREAD, stream_mode=MODES):
            left.append(chunk)

    def play() -> None:
        try:
            if how.endswith("_async"):
                asyncio.run(asynchronously())
            else:
                left.extend(graph.stream(human(), THREAD, stream_mode=MODES))
        except Exception as exc:
            linked: BaseException | None = exc
            while linked is not None:  # also what a traceback would not show
                left.extend((repr(linked), str(linked), repr(traceback.format_exception(linked, chain=False))))
                linked = linked.__cause__ or linked.__context__

    if protected:
        with authz.run(subject="alice", task="Pay"):
            play()
    else:
        play()
    out, err = capsys.readouterr()
    namespaces = store.list_namespaces()
    items = [item.dict() for namespace in namespaces for item in store.search(namespace)]
    state = [s.values for s in graph.get_state_history(THREAD)]
    fields = [vars(record) for record in caplog.records]
    texts = [out, err, caplog.text, *map(repr, (left, namespaces, items, state, fields, authz.audit.records))]
    texts += [kept(saver), pickle.dumps(items).decode("latin-1")]
    return "\n".join(texts), place.token, authz


@pytest.mark.parametrize("kind", ["hand", "agent"])
@pytest.mark.parametrize("how", HOW)
def test_a_careless_tool_gives_nothing_away(how: str, kind: str, capsys: Any, caplog: Any) -> None:
    """Redacted where it would have stood; the agent revoked; the operator alerted; nothing in any sink."""
    left, token, authz = played(how, kind, True, capsys, caplog)
    assert token != STATIC
    assert token not in left
    assert token.rpartition(".")[2] not in left
    assert token.rpartition(".")[2][-30:] not in left
    assert "[redacted credential]" in left
    assert "a credential was found in the output of careless" in left
    completions = [r for r in authz.audit.records if r["kind"] == "completion"]
    assert [r["leaked"] for r in completions] == [True]
    with authz.run(subject="alice", task="Pay again"), pytest.raises(Exception, match="not permitted"):
        graph = authz.protect(hand_written(replying(), [], name="hand" if kind == "hand" else "agent", checkpointer=InMemorySaver()))
        graph.invoke(human(), THREAD)


@pytest.mark.parametrize("how", HOW)
def test_unenforced_a_careless_tool_gives_its_token_away(how: str, capsys: Any, caplog: Any) -> None:
    """The twin: the same tool, unprotected, and the token that it was provisioned with is there to be read."""
    left, token, _ = played(how, "hand", False, capsys, caplog)
    assert token == STATIC
    assert token.rpartition(".")[2][-30:] in left
    assert "[redacted credential]" not in left


def test_what_can_not_be_searched_reaches_no_checkpoint(capsys: Any, caplog: Any) -> None:
    """A generator may hold anything: it is withheld, on record and in the operator's log; nobody is accused of it."""
    place = Place(True)

    @tool(response_format="content_and_artifact")
    def careless() -> tuple[str, Any]:
        """Return a stream."""
        return "done", {"stream": (c for c in place.mine()), "n": 1}

    authz = RuntimeAuthz(
        pdp=StaticPDP(True), profiles={"careless": ToolProfile(effect="pay", sink="external", audience=(BANK,))}
    )
    graph = authz.protect(agent_graph(replying([call("careless", {}, "c1")]), [careless], checkpointer=InMemorySaver()))
    messages = told(authz, graph, human(), THREAD, task="Pay")["messages"]
    artifacts = [m.artifact for m in messages if isinstance(m, ToolMessage)]
    assert artifacts == [{"stream": "[not searched for credentials]", "n": 1}]
    assert "output of careless could not be searched for its credential, and is withheld" in caplog.text
    completions = [r for r in authz.audit.records if r["kind"] == "completion"]
    assert [(r["leaked"], r["withheld"]) for r in completions] == [(False, True)]
