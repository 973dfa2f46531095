"""Tools that behave badly: what they raise, return, start and never finish."""

import inspect
import re
from contextvars import copy_context
from typing import ClassVar

from langchain.agents import create_agent
from langchain_core.tools import ToolException

from ._kit import *

CALL = call("probe", {"text": "x"}, "call-probe")
PROFILES = {
    "probe": ToolProfile(effect="pay", sink="external", audience=("https://bank.example",)),
    "other": ToolProfile(effect="write", sink="internal"),
}


def probing(act: Any, name: str = "probe", **options: Any) -> BaseTool:
    """A tool of one text, in both forms."""

    async def aact(text: str) -> Any:
        out = act(text)
        return await out if asyncio.iscoroutine(out) else out

    def sync(text: str) -> Any:
        return act(text)

    return StructuredTool.from_function(sync, aact, name=name, description="Probe.", **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_leaves_the_outcome_unknown(error: type[BaseException], ran: Any, pdp: Any) -> None:
    """It passes through as it is, the call is recorded as `unknown`, and the next try does not run it again."""

    def act(text: str) -> str:
        ran.append(text)
        raise error

    authz, graph = protecting(hand_written(replying([CALL]), [probing(act)], checkpointer=InMemorySaver()), pdp, profiles=PROFILES)
    with authz.run(subject="alice"), pytest.raises(error):
        graph.invoke(human(), THREAD)
    assert completions(authz) == ["unknown"]
    state = told(authz, graph, None, THREAD)
    assert ran == ["x"] and "outcome is unknown" in answer_to(state["messages"], "call-probe").content


async def test_a_tool_that_does_not_return_in_time(ran: Any, pdp: Any) -> None:
    """The graph gives up, the run ends: what the tool's thread does later has no credential and is denied."""
    go, got = threading.Event(), []

    def hang(text: str) -> str:
        go.wait(30)
        got.append(said_by(lambda: current_call().credential().audience))
        got.append(said_by(lambda: other.invoke({"text": "late"})))
        return "late"

    authz = authz_with(pdp, profiles=PROFILES)
    other = probing(ran.append, "other")
    alone = StructuredTool.from_function(hang, name="probe", description="Hang.")  # in a thread, on an async road
    graph = authz.protect(hand_written(replying([CALL]), [alone]))
    graph.step_timeout = 2.0
    async with authz.run(subject="alice"):
        with pytest.raises(TimeoutError):
            await graph.ainvoke(human())
    go.set()
    while not completions(authz):
        await asyncio.sleep(0.01)
    assert got == ["credential_unavailable", "lease_ended"] and ran == []
    assert completions(authz) == ["done"]  # it was permitted, and it came back in the end


@pytest.mark.parametrize("shape", ["thread", "task"])
def test_what_a_tool_starts_and_leaves_behind(shape: str, ran: Any) -> None:
    """A thread or task with the tool's context: another tool in it is decided; the call's credential is over."""
    got: list[str] = []
    over = threading.Event()
    left: list[Any] = []
    other = probing(ran.append, "other")

    def later() -> None:
        got.append(said_by(lambda: current_call().credential().audience))
        got.append(said_by(lambda: other.invoke({"text": "later"})))

    def start(text: str) -> str:
        context = copy_context()
        left.append(threading.Thread(target=lambda: (over.wait(10), context.run(later))))
        left[0].start()
        return "started"

    async def astart(text: str) -> str:
        async def wait() -> None:
            while not over.is_set():
                await asyncio.sleep(0.001)
            later()

        left.append(asyncio.create_task(wait()))
        return "started"

    authz = authz_with(deny_only("other"), profiles=PROFILES)
    graph = authz.protect(hand_written(replying([CALL]), [probing(start if shape == "thread" else astart)]))

    async def play() -> None:
        await graph.ainvoke(human())
        over.set()
        await left[0]

    with authz.run(subject="alice"):
        if shape == "thread":
            graph.invoke(human())
            over.set()
            left[0].join()
        else:
            asyncio.run(play())
    assert got == ["credential_unavailable", "lease_ended"] and ran == []


class Odd:
    """Neither text nor JSON."""

    def __str__(self) -> str:
        return "odd"


class Worse:
    """Nothing that can be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(500):
        value = [value]
    return value


RESULTS: dict[str, Any] = {
    "none": lambda: None, "object": Odd, "object that can not be shown": Worse, "bytes": lambda: b"\xff\x00",
    "set": lambda: {1}, "nan": lambda: float("nan"), "surrogate": lambda: "\ud800",
    "generator": lambda: (i for i in range(3)), "deep": _deep, "tuple": lambda: (1, "two"),
    "message": lambda: ToolMessage("own", tool_call_id="call-probe"),
    "foreign message": lambda: ToolMessage("own", tool_call_id="another"),
    "error message": lambda: ToolMessage("own", tool_call_id="call-probe", status="error"), "class": lambda: Odd,
    "exception": lambda: ValueError("returned"), "blocks": lambda: [{"type": "text", "text": "block"}],
    "five megabytes": lambda: "x" * 5_000_000,
    "command": lambda: Command(update={"messages": [ToolMessage("commanded", tool_call_id="call-probe")]}),
}


def _outcome(graph: Any, go: Any) -> tuple[str, str]:
    try:
        messages = go(graph, human())["messages"]
    except Exception as error:
        return "raised", type(error).__name__
    answers = [m for m in messages if isinstance(m, ToolMessage)]
    return "answered", re.sub(r"0x\w+", "", repr([(m.content, m.status, m.tool_call_id, type(m.artifact).__name__) for m in answers]))


@pytest.mark.parametrize("artifact", [False, True])
@pytest.mark.parametrize("result", RESULTS)
def test_odd_results_come_through_as_without_us(result: str, artifact: bool, go: Any, pdp: Any) -> None:
    """Whatever a tool returns: the same answer or the same error, one decision, and a record of its end."""

    def act(text: str) -> Any:
        return ("content", RESULTS[result]()) if artifact else RESULTS[result]()

    options = {"response_format": "content_and_artifact"} if artifact else {}
    stock = _outcome(hand_written(replying([CALL]), [probing(act, **options)]), go)
    authz, graph = protecting(hand_written(replying([CALL]), [probing(act, **options)]), pdp, profiles=PROFILES)
    with authz.run(subject="alice"):
        ours = _outcome(graph, go)
    assert ours == stock and len(calls_of(pdp)) == 1
    assert len(completions(authz)) == 1


@pytest.mark.parametrize("form", ["message", "command", "list"])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_hidden_field_is_hidden_in_any_form_of_result(hidden: bool, form: str) -> None:
    """Also in a list of commands. Without the obligation the model reads it."""

    @tool
    def probe(ident: Annotated[str, InjectedToolCallId]) -> Any:
        """Probe."""
        found = ToolMessage('{"iban": "DE21", "name": "bob"}', tool_call_id=ident)
        command = Command(update={"messages": [found]})
        return {"message": found, "command": command, "list": [command]}[form]

    obliged = {"decision": True, "context": {"obligations": [{"id": "r", "type": "redact", "properties": {"fields": ["iban"]}}]}}
    pdp = StaticPDP(lambda r: obliged if hidden and r.action.name == "tools/call" else True)
    authz, graph = protecting(hand_written(replying([call("probe", {}, "p")]), [probe]), pdp)
    said = answer_to(told(authz, graph, human())["messages"], "p").text
    assert "bob" in said and ("DE21" in said) is not hidden


def test_an_error_that_cannot_be_shown_passes_through(go: Any, pdp: Any) -> None:
    """Its own `__str__` fails. The call ends on record all the same."""
    error = type("Unshown", (Worse, Exception), {})

    def act(text: str) -> str:
        raise error

    authz, graph = protecting(hand_written(replying([CALL]), ToolNode([probing(act)], handle_tool_errors=False)), pdp, profiles=PROFILES)
    with authz.run(subject="alice"), pytest.raises(error):
        go(graph, human())
    assert completions(authz) == ["failed"]


class Closed(dict[str, Any]):
    """A mapping that does not say what it holds."""

    def items(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize("effect", ["read", "write"])
@pytest.mark.parametrize("output", [Closed(a=1), [Closed(a=1)]], ids=["it", "in a list"])
def test_an_output_that_cannot_be_read_passes_through(output: Any, effect: Any, go: Any, pdp: Any) -> None:
    profiles = {"probe": ToolProfile(effect=effect, sink="none")}
    authz, graph = protecting(hand_written(replying([CALL]), [probing(lambda text: output)]), pdp, profiles=profiles)
    with authz.run(subject="alice"):
        answer = answer_to(go(graph, human())["messages"], "call-probe")
    assert (answer.status, completions(authz)) == ("success", ["done"])


@pytest.mark.parametrize("handled", [True, "sorry", lambda e: "handled"], ids=["true", "text", "function"])
def test_a_tool_that_handles_its_own_error(handled: Any) -> None:
    """`handle_tool_error`: the answer is the tool's own, and the call counts as failed."""

    def act(text: str) -> str:
        raise ToolException("boom")

    authz, graph = protecting(hand_written(replying([CALL]), [probing(act, handle_tool_error=handled)]), StaticPDP(True), profiles=PROFILES)
    state = told(authz, graph, human())
    assert answer_to(state["messages"], "call-probe").status == "error" and completions(authz) == ["failed"]


@pytest.mark.parametrize("sequence", [["probe", "probe", "probe"], ["probe", "other", "probe"]])
def test_a_tool_that_writes_into_its_arguments(sequence: list[str], ran: Any, pdp: Any) -> None:
    """They are the message's own where the schema is plain JSON: its other calls keep their one decision."""
    schema = {"title": "probe", "description": "Probe.", "type": "object", "properties": {"rows": {"type": "object"}}}

    def act(rows: dict[str, Any]) -> str:
        ran.append(dict(rows))
        rows["spoilt"] = True
        return "ok"

    tools = [StructuredTool(name=n, description="Probe.", args_schema=schema, func=act) for n in ("probe", "other")]
    authz = authz_with(pdp, profiles=PROFILES)
    planned = [call(n, {"rows": {"n": i}}, f"call-{i}") for i, n in enumerate(sequence)]
    told(authz, authz.protect(create_agent(replying(planned), tools)), human(), {"max_concurrency": 1})
    assert ran == [{"n": i} for i in range(3)]
    assert [r.context.call.args for r in calls_of(pdp)] == [{"rows": {"n": i}} for i in range(3)]  # type: ignore[union-attr]


class StaticPay(BaseTool):
    """Pays by methods that take no tool."""

    name: str = "pay"
    description: str = "Pay."
    paid: ClassVar[list[Any]] = []

    @staticmethod
    def _run(to: str) -> str:
        StaticPay.paid.append(to)
        return "paid"

    @classmethod
    async def _arun(cls, to: str, **kwargs: Any) -> str:
        cls.paid.append(to)
        return "paid"


@pytest.mark.parametrize("guarded", [None, True, False], ids=["twin", "permitted", "denied"])
@pytest.mark.parametrize("held", [False, True], ids=["guard", "in place"])
@pytest.mark.parametrize("road", ["invoke", "ainvoke", "_run", "_arun"])
def test_a_tool_with_static_methods_works_and_is_decided(guarded: bool | None, held: bool, road: str) -> None:
    """Whether the tool is guarded itself, or held by a node's code."""
    StaticPay.paid.clear()
    authz = authz_with(StaticPDP(True) if guarded else deny_only("pay"), profiles={"pay": PROFILES["probe"]})
    pay: Any = StaticPay() if held or guarded is None else authz.guard(StaticPay())

    async def pays() -> Any:
        done = getattr(pay, road)(**{"input": {"to": "bob"}} if "invoke" in road else {"to": "bob"})
        return await done if inspect.isawaitable(done) else done

    def work(state: Any) -> Any:
        assert pay.args["to"]["type"] == "string"
        return {"messages": [AIMessage(asyncio.run(pays()))]}

    graph = chain({"work": work}, name="root", checkpointer=InMemorySaver())
    graph = authz.protect(graph) if guarded is not None else graph
    said = said_by(lambda: run_as(authz, graph, human(), THREAD)["messages"][-1].text)
    assert (said, StaticPay.paid) == (("no_permit", []) if guarded is False else ("paid", ["bob"]))
