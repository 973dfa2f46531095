"""The backstop: a tool that nobody guarded, inside a protected run.

`protect` guards the tools that a node's code holds. What only a backstop can do is played with tools beyond its reach.
"""

import subprocess
import sys
import uuid
import weakref
from collections.abc import Awaitable

from langchain_core.callbacks import CallbackManager
from langchain_core.callbacks.manager import AsyncCallbackManager
from langchain_core.tracers import context
from opentelemetry import trace

from langchain_runtime_authz.langgraph import callback_backstop as ambient

from ._kit import *

WRITTEN = {"to": "bob", "amount": "5"}
DECIDED = {"recipient": "bob", "amount": 5.0, "currency": "USD"}
mode = params(["sync", "async"])


def beyond(made: BaseTool) -> Callable[[], Any]:
    """Return what gives the tool to a node's code, and shows it to nobody who looks for tools there."""
    return weakref.ref(made)


def acting(act: Callable[[], Any], aact: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    return node_graph(in_run(act, aact), **options)


def once(graph: Any, mode: str, given: Any = None, config: Any = None, authz: Any = None) -> Any:
    """Run it, in a run of its own where there is an `authz`."""
    with nullcontext() if authz is None else authz.run(subject="alice"):
        return (sync if mode == "sync" else in_loop)(graph, human() if given is None else given, config)


def test_what_was_decided_is_what_runs(mode: str, ran: Any, pdp: Any, authz: Any) -> None:
    """One decision, with the tool's own profile and the arguments as it parses them; the end is recorded."""
    pay = payer(ran)
    once(authz.protect(acting(lambda: pay.invoke(WRITTEN), lambda: pay.ainvoke(WRITTEN))), mode, authz=authz)
    assert ran == [PAID]
    (request,) = calls_of(pdp)
    assert request.context.call.args == DECIDED
    assert request.resource.properties["target"] == {"recipient": "bob", "amount": 5.0}
    assert request.resource.properties["profiled"] is True and request.subject.id == "alice"
    assert completions(authz) == ["done"]


def test_calls_side_by_side_are_concluded_each(mode: str, ran: Any, pdp: Any, authz: Any) -> None:
    """Parallel tools of one node do not end each other's calls."""
    pays = [payer(ran, f"pay{i}") for i in range(8)]

    def batch() -> None:
        from langchain_core.runnables import RunnableParallel

        RunnableParallel({p.name: p for p in pays}).invoke(WRITTEN)

    async def gather() -> None:
        await asyncio.gather(*(p.ainvoke(WRITTEN) for p in pays))

    once(authz.protect(acting(batch, gather)), mode, authz=authz)
    assert len(ran) == len(calls_of(pdp)) == 8
    assert completions(authz) == ["done"] * 8


@pytest.mark.parametrize("inner", ["guarded", "unguarded"])
@pytest.mark.parametrize("outer", ["guarded", "unguarded"])
def test_tools_inside_tools(mode: str, outer: str, inner: str, ran: Any) -> None:
    """Each is decided, and the record of the outer one says that a step inside was denied."""
    pdp = deny_only("pay")
    authz = authz_with(pdp)
    pay = payer(ran) if inner == "unguarded" else authz.guard(payer(ran))

    def lead(request: str) -> str:
        ran.append("led")
        return str(pay.invoke(WRITTEN))

    async def alead(request: str) -> str:
        ran.append("led")
        return str(await pay.ainvoke(WRITTEN))

    leading: Any = StructuredTool.from_function(lead, alead, name="write", description="Lead.")
    leading = leading if outer == "unguarded" else authz.guard(leading)
    graph = authz.protect(acting(lambda: leading.invoke({"request": "x"}), lambda: leading.ainvoke({"request": "x"})))
    with authz.run(subject="alice"), pytest.raises(AuthzDenied):
        once(graph, mode)
    assert ran == ["led"]
    assert [r.resource.id for r in calls_of(pdp)] == ["write", "pay"]
    assert completions(authz) == ["denied"]


class Fresh(BaseModel):
    text: str
    ident: str = Field(default_factory=lambda: uuid.uuid4().hex)


def test_arguments_that_parse_differently_each_time_are_denied(mode: str, ran: Any, pdp: Any, authz: Any) -> None:
    """The backstop cannot hand the tool what was decided."""

    @tool("write", args_schema=Fresh)
    def write(text: str, ident: str) -> str:
        """Write."""
        ran.append(ident)
        return "ok"

    bare = beyond(write)
    graph = authz.protect(acting(lambda: bare().invoke({"text": "x"}), lambda: bare().ainvoke({"text": "x"})))
    assert code_of(lambda: once(graph, mode, authz=authz)) == "unrepeatable_arguments"
    assert reasons(authz, "write") == ["unrepeatable_arguments"] and ran == []
    assert calls_of(pdp) == []


def test_arguments_that_the_schema_refuses_are_denied(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neutrally: LangChain logs what a callback raises, and a schema's error quotes the arguments."""
    ran: list[Any] = []
    authz = authz_with(StaticPDP(True))
    pay = payer(ran)
    bare = beyond(pay)
    graph = authz.protect(acting(lambda: bare().invoke({"to": "quoted"}), lambda: bare().ainvoke({"to": "quoted"})))
    assert code_of(lambda: once(graph, mode, authz=authz)) == "invalid_arguments"
    assert "quoted" not in caplog.text and ran == []
    assert reasons(authz, "pay") == ["invalid_arguments"]


def test_an_obligation_to_redact_is_a_deny(mode: str, ran: Any) -> None:
    """What comes back is not the backstop's to change."""
    obliged = {"decision": True, "context": {"obligations": [{"id": "r", "type": "redact", "properties": {"fields": ["iban"]}}]}}
    authz = authz_with(StaticPDP(lambda r: obliged if r.action.name == "tools/call" else True))
    pay = payer(ran)
    bare = beyond(pay)
    graph = authz.protect(acting(lambda: bare().invoke(WRITTEN), lambda: bare().ainvoke(WRITTEN)))
    assert code_of(lambda: once(graph, mode, authz=authz)) == "unknown_obligation"
    assert ran == [] and completions(authz) == ["released"]


def test_a_tool_that_announces_itself_is_denied(mode: str, ran: Any, authz: Any) -> None:
    """A start that does not come from `BaseTool.run` says a name and nothing that could be decided."""

    class Own(BaseTool):
        name: str = "pay"
        description: str = "Pay."

        def _run(self, recipient: str) -> str:
            return "paid"

        def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            CallbackManager.configure().on_tool_start({"name": "pay"}, str(input))
            ran.append(input)

        async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            await AsyncCallbackManager.configure().on_tool_start({"name": "pay"}, str(input))
            ran.append(input)

    own = Own()
    graph = authz.protect(acting(lambda: own.invoke({}), lambda: own.ainvoke({})))
    assert code_of(lambda: once(graph, mode, authz=authz)) == "unknown_tool"
    assert reasons(authz, "pay") == ["unknown_tool"] and ran == []


def test_a_side_effect_that_ran_is_not_repeated(mode: str, ran: Any, authz: Any) -> None:
    """A node that is executed again after a question: what its code did before is denied, not done twice."""
    pay = payer(ran)
    bare = beyond(pay)

    def act() -> None:
        bare().invoke(WRITTEN)
        interrupt("more?")

    async def aact() -> None:
        await bare().ainvoke(WRITTEN)
        interrupt("more?")

    graph = authz.protect(acting(act, aact, checkpointer=InMemorySaver()))
    once(graph, mode, config=THREAD, authz=authz)
    assert ran == [PAID]
    with authz.run(subject="alice"):
        assert code_of(lambda: once(graph, mode, Command(resume="yes"), THREAD)) == "outcome_unknown"
    assert ran == [PAID]


@pytest.mark.parametrize(("mode", "error", "state"), [
    ("sync", ValueError("x"), "failed"), ("async", ValueError("x"), "failed"),
    ("sync", KeyboardInterrupt(), "unknown"),  # asyncio ends its loop on one
    ("async", asyncio.CancelledError(), "unknown"),
], ids=["sync-ValueError", "async-ValueError", "sync-KeyboardInterrupt", "async-CancelledError"])
def test_a_tool_that_fails(mode: str, error: BaseException, state: str, authz: Any) -> None:
    """The error reaches the caller as it was, and the record says how the call ended."""

    def fail(text: str) -> str:
        raise error

    async def afail(text: str) -> str:
        raise error

    write = StructuredTool.from_function(fail, afail, name="write", description="Fail.")
    seen: list[BaseException] = []

    def act() -> None:
        try:
            write.invoke({"text": "x"})
        except BaseException as exc:
            seen.append(exc)

    async def aact() -> None:
        try:
            await write.ainvoke({"text": "x"})
        except BaseException as exc:
            seen.append(exc)

    once(authz.protect(acting(act, aact)), mode, authz=authz)
    assert seen == [error] and completions(authz) == [state]


def test_it_has_no_credential_and_leaves_the_outer_one_in_place(mode: str) -> None:
    """An unguarded tool gets none, not even the one of the tool that called it, which has its own afterwards."""
    got: list[str] = []

    def take(text: str) -> str:
        got.append(said_by(lambda: current_call().credential().audience))
        return "ok"

    async def atake(text: str) -> str:
        return take(text)

    inner = StructuredTool.from_function(take, atake, name="write", description="Take.")
    bare = beyond(inner)

    def lead(text: str) -> str:
        bare().invoke({"text": "x"})
        return take(text)

    async def alead(text: str) -> str:
        await bare().ainvoke({"text": "x"})
        return take(text)

    profiles = {name: ToolProfile(effect="write", sink="internal", audience=(f"https://{name}",)) for name in ("write", "lead")}
    authz = authz_with(StaticPDP(True), profiles=profiles)
    outer = authz.guard(StructuredTool.from_function(lead, alead, name="lead", description="Lead."))
    graph = authz.protect(acting(lambda: outer.invoke({"text": "x"}), lambda: outer.ainvoke({"text": "x"})))
    once(graph, mode, authz=authz)
    assert got == ["credential_unavailable", "https://lead"]


def test_a_tool_node_alone_has_the_backstop_too(ran: Any) -> None:
    """What a wrapper of an `AuthzToolNode` outside every graph does by a tool of its own is decided."""
    from langgraph.runtime import Runtime

    pdp = deny_only("evil")
    authz = authz_with(pdp)
    evil = payer(ran, "evil")

    def wrap(request: Any, handler: Any) -> Any:
        evil.invoke(WRITTEN)
        return handler(request)

    node = AuthzToolNode([payer(ran)], authz=authz, wrap_tool_call=wrap, handle_tool_errors=True)
    with authz.run(subject="alice"):
        node.invoke({"messages": [AIMessage("", tool_calls=[PAY], id="m")]}, {"configurable": {"__pregel_runtime": Runtime()}})
    assert ran == [] and len(calls_of(pdp, "evil")) == 1


def test_one_hook_for_any_number_of_instances(ran: Any) -> None:
    """A hundred instances, protected graphs and guarded tools register nothing more."""
    authz_with(StaticPDP(True))
    before = list(context._configure_hooks)
    for _ in range(100):
        authz = authz_with(StaticPDP(True))
        authz.guard(payer(ran))
        authz.protect(acting(lambda: None, lambda: asyncio.sleep(0)))
    assert context._configure_hooks == before
    assert sum(isinstance(hook[0], ambient._Hook) for hook in before) == 1


@pytest.mark.parametrize("alone", [False, True])
def test_nothing_is_added_outside_protected_runs(mode: str, alone: bool, authz: Any, monkeypatch: Any) -> None:
    """Without a run a callback manager has no handler; in an open one a listener, if an `AuthzToolNode` was made."""
    monkeypatch.setattr(ambient._hook, "listens", alone)
    handlers: list[int] = []

    def look() -> None:
        handlers.append(len(CallbackManager.configure().handlers) + len(AsyncCallbackManager.configure().handlers))

    async def alook() -> None:
        look()

    graph = authz.protect(acting(look, alook))
    look()
    with authz.run(subject="alice"):
        look()
        once(graph, mode)
        look()
        side_by_side(look)
    look()
    assert handlers == [0, 2 * alone, 2, 2 * alone, 0, 0]


def test_the_root_hands_the_backstop_on_with_its_callbacks(mode: str, authz: Any) -> None:
    """A caller's own callbacks stay, in any form, and nothing is put into the caller's own objects."""
    class Seeing(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen = 0

        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            self.seen += 1

    graph = authz.protect(acting(lambda: None, lambda: asyncio.sleep(0)))
    for wrap in (lambda h: [h], lambda h: CallbackManager([h], inheritable_handlers=[h])):
        handler = Seeing()
        given = wrap(handler)
        with authz.run(subject="alice"):
            once(graph, mode, config={"callbacks": given})
        assert handler.seen
        assert (given if isinstance(given, list) else given.handlers) == [handler]


PROCESS = """
import asyncio, threading
from langchain_core.tools import tool
from langchain_runtime_authz import AuthzDenied, RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP

ran = []

@tool
def pay(amount: int) -> str:
    "Pay."
    ran.append(amount)
    return "paid"

RuntimeAuthz(pdp=StaticPDP(True))
pay.invoke({"amount": 1})                       # beside every run, in the default mode
pdp = StaticPDP(True)
authz = RuntimeAuthz(pdp=pdp)
authz.deny_outside_runs()
codes = []

def tried(amount):
    try:
        pay.invoke({"amount": amount})
    except AuthzDenied as denied:
        codes.append(denied.code)

tried(2)                                        # outside
try:
    asyncio.run(pay.ainvoke({"amount": 3}))
except AuthzDenied as denied:
    codes.append(denied.code)
with authz.run(subject="alice"):
    pay.invoke({"amount": 4})                   # beside every graph, in a run
    thread = threading.Thread(target=tried, args=(5,))
    thread.start()                              # a thread without the run's context
    thread.join()
    guarded = authz.guard(pay)
    guarded.invoke({"amount": 6})
print(ran, codes, [r.context.call.args["amount"] for r in pdp.requests if r.action.name == "tools/call"])
"""


def test_in_the_whole_process() -> None:
    """`authz.deny_outside_runs()`: outside every run a tool is denied, also in a raw thread; in one it is decided, once."""
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[1, 4, 6]} {['no_run'] * 3} {[4, 6]}"


def test_the_span_of_a_call_ends_with_it(ran: Any, authz: Any) -> None:
    """The context of the code after the tool is the one before it."""
    seen: list[Any] = []
    pay = payer(ran)

    def act() -> None:
        seen.append(trace.get_current_span())
        pay.invoke(WRITTEN)
        seen.append(trace.get_current_span())

    told(authz, authz.protect(acting(act, lambda: asyncio.sleep(0))), human())
    assert seen[0] is seen[1]
