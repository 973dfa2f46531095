"""ASI03 Identity and Privilege Abuse: a tool that returns, raises, stores or streams its token.

The twin is the same graph without protection, whose tool was provisioned with a token that lives on: there
the token ends up in every one of the places.
"""

import logging
import pickle
import traceback
from itertools import product

from langgraph.config import get_store, get_stream_writer
from langgraph.errors import ParentCommand
from langgraph.func import task
from langgraph.graph.message import push_message
from langgraph.prebuilt import InjectedStore
from langgraph.runtime import Runtime
from pydantic import SecretStr

from tests.tier import part

from ._kit import *

CARELESS = {"careless": ToolProfile(effect="pay", sink="external", audience=("https://bank.example",))}
STATIC = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9." + "c2lnbmF0dXJl" * 7


@dataclass(frozen=True)
class Client:
    """Of a bank; says nothing of its token."""

    token: str = field(repr=False)


class Receipt(BaseModel):
    """What a tool keeps for later."""

    sent: SecretStr
    by: Client


class Parts:
    """Holds a token in parts, and shows it whole."""

    def __init__(self, token: str) -> None:
        self.parts = list(token)

    def __str__(self) -> str:
        return "".join(self.parts)


@dataclass
class Update:
    """A state object."""

    messages: list[Any]


class Place:
    """A careless tool's token, and whether it is the platform's or one that it was provisioned with."""

    def __init__(self, protected: bool) -> None:
        self.protected = protected
        self.token = STATIC

    def mine(self) -> str:
        if self.protected:
            self.token = current_call().credential().token
        return self.token


def careless_tools(place: Place) -> dict[str, Any]:
    """Return one tool for each way to be careless with a token."""
    made: dict[str, Any] = {}

    def careless(**options: Any) -> Callable[[Any], Any]:
        return lambda f: made.setdefault(f.__name__, tool("careless", description="Be careless.", **options)(f))

    @careless()
    def returns() -> str:
        return f"paid with {place.mine()}"

    @careless(response_format="content_and_artifact")
    def returns_artifact() -> tuple[str, dict[str, str]]:
        return "done", {"used": place.mine()}

    @careless(response_format="content_and_artifact")
    def returns_artifact_of_its_own() -> tuple[str, Any]:
        return "done", Receipt(sent=SecretStr(place.mine()), by=Client(place.token))

    @careless()
    def raises() -> str:
        raise RuntimeError(f"refused {place.mine()}")

    @careless()
    def raises_what_is_written_of_its_own() -> str:
        raise FileNotFoundError(2, "no such key", place.mine())

    @careless()
    def asks() -> str:
        return str(interrupt({"used": place.mine()}))

    @careless()
    def raises_a_command() -> str:
        raise ParentCommand(Command(graph="above", update={"messages": [AIMessage(place.mine())]}))

    class Careless(BaseTool):
        name: str = "careless"
        description: str = "Raise before `_run`."

        def invoke(self, *_: Any, **__: Any) -> Any:
            raise FileNotFoundError(2, "no such key", place.mine())

        def _run(self) -> str:
            return "done"

    made["raises_from_an_invoke_of_its_own"] = Careless()

    @careless()
    def updates_state(ident: Annotated[str, InjectedToolCallId]) -> Any:
        return Command(update={"messages": [ToolMessage(place.mine(), tool_call_id=ident)]})

    @careless()
    def updates_state_beside_the_text(ident: Annotated[str, InjectedToolCallId]) -> Any:
        message = ToolMessage("done", tool_call_id=ident, artifact={Client(place.mine()): 1}, name=place.token)
        return Command(update=[("messages", [message])])

    @careless()
    def updates_state_by_an_object(ident: Annotated[str, InjectedToolCallId]) -> Any:
        return Command(update=Update(messages=[ToolMessage("done", tool_call_id=ident, used=Client(place.mine()))]))

    @careless()
    def returns_an_object_with_a_text() -> Any:
        return Parts(place.mine())

    @careless()
    def sends(ident: Annotated[str, InjectedToolCallId]) -> Any:
        message = ToolMessage("done", tool_call_id=ident)
        goto = [Send("agent", {"messages": [], "used": Client(place.mine())})]
        return Command(update={"messages": [message]}, goto=goto)

    @careless()
    def stores_an_object() -> str:
        get_store().put(("keys",), "bank", {"client": Client(place.mine())})
        return "done"

    @careless()
    def stores() -> str:
        get_store().put(("keys",), "bank", {"token": place.mine()})
        return "done"

    @careless()
    def stores_injected(store: Annotated[Any, InjectedStore()]) -> str:
        store.put(("keys", place.mine().rpartition(".")[2]), "bank", {"deep": [place.mine()]})
        return "done"

    @careless()
    def stores_by_runtime(runtime: ToolRuntime) -> str:
        runtime.store.put(("keys",), "bank", {"token": place.mine()})  # type: ignore[union-attr]
        assert runtime.store.get(("keys",), "bank") is not None  # type: ignore[union-attr]
        return "done"

    @careless()
    def streams() -> str:
        get_stream_writer()({"used": place.mine()})
        return "done"

    @careless()
    def streams_by_runtime(runtime: ToolRuntime) -> str:
        runtime.stream_writer(f"used {place.mine()}")
        return "done"

    @careless()
    def pushes_a_message() -> str:
        push_message(AIMessage(f"sent {place.mine()}", id="m"))
        return "done"

    @task
    def fetch() -> dict[str, str]:
        return {"Authorization": place.mine()}

    @careless()
    def returns_from_a_task() -> str:
        return "done" if fetch().result() else "undone"

    @task
    def keep() -> None:
        get_store().put(("keys",), "bank", {"token": place.mine()})

    @task
    def keep_by_runtime(runtime: Runtime) -> None:
        runtime.store.put(("keys",), "again", {"token": place.mine()})  # type: ignore[union-attr]
        runtime.stream_writer(place.token)

    @careless()
    def stores_from_a_task() -> str:
        keep().result()
        keep_by_runtime().result()  # type: ignore[call-arg]
        return "done"

    @task
    async def tell() -> None:
        get_stream_writer()({"used": place.mine()})

    @task
    async def have_it_told() -> None:
        await tell()

    @careless()
    async def streams_from_a_task_of_a_task_async() -> str:
        await have_it_told()
        return "done"

    @task
    async def fail() -> None:
        raise FileNotFoundError(2, "no such key", place.mine())

    @careless()
    async def raises_from_a_task_async() -> str:
        await fail()
        return "done"

    @careless()
    def streams_its_output(runtime: ToolRuntime) -> str:
        runtime.emit_output_delta({"so far": place.mine()})
        return "done"

    @careless()
    async def streams_its_output_async(runtime: ToolRuntime) -> str:
        runtime.emit_output_delta([place.mine()])
        await asyncio.sleep(0)
        runtime.emit_output_delta("done")
        return "done"

    @careless()
    async def stores_async() -> str:
        await get_store().aput(("keys",), "bank", {"token": place.mine()})
        return "done"
    return made


MODES = ["values", "custom", "updates", "messages", "tools"]
FEW = {**THREAD, "recursion_limit": 12}  # the unenforced `sends` goes round for ever
HOW = list(careless_tools(Place(False)))


def kept(saver: InMemorySaver) -> str:
    """The bytes of every checkpoint, and of the writes between them."""
    writes = [write for task in saver.writes.values() for write in task.values()]
    return repr((dict(saver.storage), saver.blobs, writes))


def played(how: str, kind: str, protected: bool, capsys: Any, caplog: Any) -> tuple[str, str, RuntimeAuthz]:
    """Everything that a run of the careless tool left behind, as one text; its token; the authz."""
    caplog.set_level(logging.DEBUG)
    place, store, saver = Place(protected), InMemoryStore(), InMemorySaver()
    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=CARELESS)
    build = hand_written if kind == "hand" else agent_graph
    graph = build(replying([call("careless", {}, "c1")]), [careless_tools(place)[how]], checkpointer=saver, store=store)
    if protected:
        authz.protect(graph)
    left: list[Any] = []

    async def asynchronously() -> None:
        async for chunk in graph.astream(human(), FEW, stream_mode=MODES):
            left.append(chunk)

    def play() -> None:
        try:
            if how.endswith("_async"):
                asyncio.run(asynchronously())
            else:
                left.extend(graph.stream(human(), FEW, stream_mode=MODES))
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


@pytest.mark.parametrize(("kind", "how"), part([*product(["hand", "agent"], HOW)], 2))  # in CI each way in one of them
def test_a_careless_tool_gives_nothing_away(how: str, kind: str, capsys: Any, caplog: Any) -> None:
    """Redacted where it would have stood; the agent revoked; the operator alerted; nothing in any sink."""
    left, token, authz = played(how, kind, True, capsys, caplog)
    assert token != STATIC and token not in left
    assert token.rpartition(".")[2] not in left and token.rpartition(".")[2][-30:] not in left
    assert "[redacted credential]" in left and "a credential was found in the output of careless" in left
    completions = [r for r in authz.audit.records if r["kind"] == "completion"]
    assert [r["leaked"] for r in completions] == [True]
    with authz.run(subject="alice", task="Pay again"), pytest.raises(Exception, match="not permitted"):
        graph = authz.protect(hand_written(replying(), [], name="hand" if kind == "hand" else "agent", checkpointer=InMemorySaver()))
        graph.invoke(human(), THREAD)


@pytest.mark.parametrize("how", HOW)
def test_unenforced_a_careless_tool_gives_its_token_away(how: str, capsys: Any, caplog: Any) -> None:
    """The twin: the same tool, unprotected, and the token that it was provisioned with is there to be read."""
    left, token, _ = played(how, "hand", False, capsys, caplog)
    assert token == STATIC and token.rpartition(".")[2][-30:] in left
    assert "[redacted credential]" not in left


def test_what_can_not_be_searched_reaches_no_checkpoint(capsys: Any, caplog: Any) -> None:
    """A generator may hold anything: it is withheld, on record and in the operator's log; nobody is accused of it."""
    place = Place(True)

    @tool(response_format="content_and_artifact")
    def careless() -> tuple[str, Any]:
        """Return a stream."""
        return "done", {"stream": (c for c in place.mine()), "n": 1}

    authz = RuntimeAuthz(pdp=StaticPDP(True), profiles=CARELESS)
    graph = authz.protect(agent_graph(replying([call("careless", {}, "c1")]), [careless], checkpointer=InMemorySaver()))
    messages = told(authz, graph, human(), THREAD, task="Pay")["messages"]
    artifacts = [m.artifact for m in messages if isinstance(m, ToolMessage)]
    assert artifacts == [{"stream": "[not searched for credentials]", "n": 1}]
    assert "output of careless could not be searched for its credential, and is withheld" in caplog.text
    completions = [r for r in authz.audit.records if r["kind"] == "completion"]
    assert [(r["leaked"], r["withheld"]) for r in completions] == [(False, True)]
