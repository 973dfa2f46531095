"""One entry is one trace: parents, links and events through every way in which a graph runs."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from langchain_runtime_authz import AuthzHalt
from langchain_runtime_authz.credential.ticket import current_call
from langchain_runtime_authz.downstream.httpx_auth import CallAuth
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.telemetry import spans as telemetry
from langchain_runtime_authz.testing import StaticPDP
from langchain_runtime_authz.tool_profile import profile

from ...attack._graphs import *
from ...traces import Shown, of_sdk, tree

THREAD = {"configurable": {"thread_id": "t1"}}
APPROVE = Command(resume={"decisions": [{"type": "approve"}]})


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    recording(monkeypatch, SimpleSpanProcessor(exporter))
    return exporter


def recording(monkeypatch: pytest.MonkeyPatch, processor: SpanProcessor, **options: Any) -> TracerProvider:
    provider = TracerProvider(**options)
    provider.add_span_processor(processor)
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return provider


def spans(exporter: InMemorySpanExporter) -> list[Shown]:
    return of_sdk(exporter.get_finished_spans())


def named(exporter: InMemorySpanExporter, name: str) -> Shown:
    (found,) = [s for s in spans(exporter) if s.name == name]
    return found


def protected(graph: Any, pdp: Any = None, **options: Any) -> Any:
    return authz_with(pdp or StaticPDP(permit=True), **options).protect(graph)


@pytest.mark.parametrize("form", FORMS)
def test_an_entry_is_one_trace_with_right_parents(exporter: InMemorySpanExporter, form: str) -> None:
    """Every span of an entry is below its root, and a tool's span is linked to the decision that permits it."""
    ran: list[Any] = []
    graph = protected(agent_graph(replying([PAY, READ]), [pay_tool(ran), read_tool(ran)]))
    entries = len(drive_form(form, graph, human(), {}))
    found = spans(exporter)
    by_id = {s.id: s for s in found}
    roots = [s for s in found if s.parent is None]
    assert [s.name for s in roots] == ["invoke_agent agent"] * entries
    assert len({s.trace for s in found}) == entries
    for span in found:
        assert span.parent is None or span.parent in {r.id for r in roots if r.trace == span.trace}, tree(found)
    tools = [s for s in found if s.name.startswith("execute_tool")]
    assert len(tools) == 2 * entries
    for span in tools:
        ((_, linked),) = span.links
        assert by_id[linked].name == span.name.replace("execute_tool", "authorize")
        assert by_id[linked].attributes["runtime_authz.decision.id"] == span.attributes["runtime_authz.decision.id"]
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("build", [hand_written, agent_graph])
def test_a_decision_lasts_from_before_its_question(exporter: InMemorySpanExporter, build: Any) -> None:
    """Also a tool node's entry, which is asked in one batch with the node's calls."""
    asked: dict[str, int] = {}

    def permit(request: Any) -> bool:
        asked.setdefault(f"authorize {request.resource.id}", time.time_ns())
        return True

    protected(build(replying([PAY]), [pay_tool([])]), StaticPDP(permit)).invoke(human())
    first = {s.name: s.start for s in reversed(spans(exporter))}
    assert {name for name, at in asked.items() if first[name] > at} == set()
    assert {"authorize tools", "authorize pay"} <= set(asked)


def test_every_span_names_its_thread_run_and_agent(exporter: InMemorySpanExporter) -> None:
    """All reasons are shown; arguments, results and the user's words are not."""
    graph = protected(hand_written(replying([PAY], [READ]), [pay_tool([]), read_tool([])], checkpointer=InMemorySaver()), deny_only("pay"))
    graph.invoke(human("SECRET words"), THREAD)
    found = spans(exporter)
    for span in found:
        assert span.attributes["gen_ai.conversation.id"] == "t1"
        assert span.attributes["gen_ai.agent.name"] == "hand" and span.attributes["gen_ai.agent.id"]
    assert len({s.attributes["runtime_authz.run.id"] for s in found}) == 1
    assert named(exporter, "authorize pay").attributes["runtime_authz.reasons"]
    told = " ".join(s.to_json() for s in exporter.get_finished_spans())
    for secret in ("SECRET", "bob", "text of a"):
        assert secret not in told


def test_the_consumer_of_a_stream_keeps_its_own_span(exporter: InMemorySpanExporter) -> None:
    """Between chunks the consumer's span is current: what it does then is not of the run."""
    graph = protected(hand_written(replying([READ]), [read_tool([])]))
    tracer = TracerProvider().get_tracer("app")

    async def consume() -> None:
        with tracer.start_as_current_span("POST /chat") as mine:
            async for _ in graph.astream(human()):
                assert trace.get_current_span() is mine

    with tracer.start_as_current_span("POST /chat") as mine:
        for _ in graph.stream(human()):
            assert trace.get_current_span() is mine
        halfway = graph.stream(human())
        next(halfway)
        halfway.close()
        assert trace.get_current_span() is mine
    asyncio.run(consume())
    roots = [s for s in spans(exporter) if s.name == "invoke_agent hand"]
    assert [s.parent is not None for s in roots] == [True] * 3
    assert {s.trace for s in spans(exporter)} == {s.trace for s in roots}


def a_child(name: str = "child") -> Any:
    return hand_written(replying([READ]), [read_tool([])], name=name)


def child_tool(child: Any) -> BaseTool:
    @tool
    async def ask_agent(question: str) -> str:
        """Ask another agent."""
        return str((await child.ainvoke(human(question)))["messages"][-1].text)

    return ask_agent


def fan_out(child: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("child", child)
    builder.add_conditional_edges(START, lambda _: [Send("child", human(str(i))) for i in range(3)], ["child"])
    builder.add_edge("child", END)
    return builder.compile(name="outer")


def in_a_thread(child: Any) -> Any:
    """A node whose own thread, which has no context of the node's, calls the child by the config it was given."""

    def step(state: Any, config: RunnableConfig) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: child.invoke(human(), config))
        thread.start()
        thread.join()
        return {"messages": []}

    return node_graph(step)


CHILDREN = {
    "node": lambda c: chain({"child": c}, name="outer"), "Send": fan_out,
    "called by a node": lambda c: node_graph(in_run(lambda: c.invoke(human()))), "called by a thread": in_a_thread,
}


@pytest.mark.parametrize("form", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("build", CHILDREN.values(), ids=CHILDREN)
def test_a_child_is_below_what_called_it(exporter: InMemorySpanExporter, build: Any, form: str) -> None:
    """A child has its own span, below its caller's, linked to the decision that let it start."""
    drive_form(form, protected(build(a_child())), human(), {})
    found, by_id = spans(exporter), {s.id: s for s in spans(exporter)}
    children = [s for s in found if s.name == "invoke_agent child"]
    assert len(children) == (3 if build is fan_out else 1)
    assert len({s.trace for s in found}) == 1, tree(found)
    for child in children:
        assert by_id[child.parent or ""].name == "invoke_workflow outer", tree(found)
        assert [by_id[i].name for _, i in child.links] == ["authorize child"]
        ours = [s for s in found if s.parent == child.id]
        assert "execute_tool read" in {s.name for s in ours}, tree(found)


def test_a_child_of_a_tool_is_below_the_tool(exporter: InMemorySpanExporter) -> None:
    """An agent as a tool is below its `execute_tool` span."""
    graph = agent_graph(replying([call("ask_agent", {"question": "x"}, "c1")]), [child_tool(a_child())], name="boss")
    asyncio.run(protected(graph).ainvoke(human()))
    assert named(exporter, "invoke_agent child").parent == named(exporter, "execute_tool ask_agent").id
    assert named(exporter, "execute_tool ask_agent").parent == named(exporter, "invoke_agent boss").id


@pytest.mark.parametrize("build", [hand_written, agent_graph])
def test_a_resume_is_linked_to_its_question(exporter: InMemorySpanExporter, tmp_path: Path, build: Any) -> None:
    """Another instance, with nothing but the ledger in common, links its entry and its permit to the question."""
    saver, ledger, ran = InMemorySaver(), tmp_path / "ledger.db", list[Any]()

    def one() -> Any:
        graph = build(replying([PAY]), [pay_tool(ran)], checkpointer=saver, name="pays")
        return authz_with(asking("pay"), ledger=SqliteLedger(ledger)).protect(graph)

    one().invoke(human(), THREAD)
    asked = [s for s in spans(exporter) if s.attributes.get("runtime_authz.decision") == "approval_required"]
    exporter.clear()
    one().invoke(APPROVE, THREAD)
    assert len(ran) == len(asked) == 1
    question = (asked[0].trace, asked[0].id)
    assert named(exporter, "invoke_agent pays").links == (question,)
    assert question in named(exporter, "authorize pay").links
    assert named(exporter, "invoke_agent pays").trace != asked[0].trace


def test_a_ledger_can_not_break_a_resume_by_its_trace(exporter: InMemorySpanExporter) -> None:
    """What stands in the ledger is used for a link, if it parses, and for nothing else."""
    ledger = MemoryLedger()
    graph = protected(hand_written(replying([PAY]), [pay_tool([])], checkpointer=InMemorySaver()), asking("pay"), ledger=ledger)
    graph.invoke(human(), THREAD)
    for thread in ledger._threads.values():
        for question in thread.approvals.values():
            object.__setattr__(question, "trace", "00-ff\r\nSet-Cookie: x-zz-01")
    exporter.clear()
    graph.invoke(APPROVE, THREAD)
    assert named(exporter, "invoke_agent hand").links == () and named(exporter, "execute_tool pay")


def test_what_happens_to_a_thread_is_an_event(exporter: InMemorySpanExporter) -> None:
    """A correction names the epochs. Outside every span it is a span of its own, found by its thread."""
    authz = authz_with(StaticPDP(permit=True))
    graph = authz.protect(hand_written(replying([READ]), [read_tool([])], checkpointer=InMemorySaver()))
    graph.invoke(human(), THREAD)
    graph.invoke(human("Another task, SECRET"), THREAD)
    events = [(name, dict(about)) for s in spans(exporter) for name, about in s.events]
    ((_, corrected),) = [e for e in events if e[0] == "runtime_authz.corrected"]
    assert (corrected["runtime_authz.credential.epoch.before"], corrected["runtime_authz.credential.epoch"]) == (1, 2)
    exporter.clear()
    authz.correct("t1", "SECRET")
    authz.revoke("t1")
    found = {s.name: s.attributes for s in spans(exporter)}
    assert found["runtime_authz.corrected"]["runtime_authz.credential.epoch"] == 3
    assert found["runtime_authz.revoked"]["gen_ai.conversation.id"] == "t1"
    assert "SECRET" not in json.dumps([s.attributes for s in spans(exporter)]) + str(events)


def test_a_trace_that_is_not_sampled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler decides once, at the root; what is below does not start traces of its own."""
    exporter = InMemorySpanExporter()
    recording(monkeypatch, SimpleSpanProcessor(exporter), sampler=ParentBased(TraceIdRatioBased(0)))
    graph = protected(chain({"child": a_child()}, name="outer"))
    graph.invoke(human())
    monkeypatch.setattr(telemetry._tracer, "sampler", ParentBased(TraceIdRatioBased(1)))
    assert spans(exporter) == []


def test_a_service_is_told_the_trace(exporter: InMemorySpanExporter) -> None:
    """A request of a tool carries the W3C context of its `execute_tool` span, unless it has one already."""
    heard: list[httpx.Headers] = []
    client = httpx.Client(
        base_url="https://bank.example", auth=CallAuth(),
        transport=httpx.MockTransport(lambda r: (heard.append(r.headers), httpx.Response(200))[1]),
    )  # fmt: skip

    @profile(effect="read", sink="none", audience=("https://bank.example",))
    @tool
    def look() -> str:
        """Look at the account."""
        client.get("/account")
        client.get("/account", headers={"traceparent": "mine"})
        return "seen"

    protected(hand_written(replying([call("look", {}, "c1")]), [look])).invoke(human())
    span = named(exporter, "execute_tool look")
    assert heard[0]["traceparent"].startswith(f"00-{span.trace}-{span.id}-")
    assert heard[1]["traceparent"] == "mine"


def revoking(request: Any) -> dict[str, Any]:
    """Answer as a policy that revokes whoever pays."""
    obliged = [{"id": "o1", "type": "revoke", "properties": {}}]
    pays = request.resource.id == "pay"
    return {"decision": not pays, "context": {"reasons": [{"code": "too_many"}], "obligations": obliged}} if pays else {"decision": True}


def test_credentials_and_anomalies_are_events(exporter: InMemorySpanExporter) -> None:
    """Of a token its audience is shown if the profile names it, of a refusal and an anomaly the code; never the token."""
    tokens = []

    @profile(effect="read", sink="none", audience=("https://bank.example",))
    @tool
    def look() -> str:
        """Look at the account."""
        tokens.append(current_call().credential().token)
        with pytest.raises(CredentialError):
            current_call().credential("https://SECRET.example")
        return "seen"

    graph = protected(agent_graph(replying([call("look", {}, "c1")], [PAY]), [look, pay_tool([])]), StaticPDP(revoking))
    with suppress(AuthzHalt):
        graph.invoke(human())
    events = {name.removeprefix("runtime_authz."): (s.name, about) for s in spans(exporter) for name, about in s.events}
    assert events["mint"][0] == events["mint_refused"][0] == "execute_tool look"
    permit, denied = (named(exporter, f"authorize {t}").attributes["runtime_authz.decision.id"] for t in ("look", "pay"))
    told = {e: {k.removeprefix("runtime_authz."): v for k, v in events[e][1].items()} for e in ("mint", "mint_refused", "anomaly")}
    assert (told["mint"]["audience"], told["mint"]["decision_id"]) == ("https://bank.example", permit)
    assert (told["mint_refused"]["reason"], told["mint_refused"]["decision_id"]) == ("outside_profile", permit)
    assert (told["anomaly"]["reason"], told["anomaly"]["decision_id"]) == ("too_many", denied)
    assert "revoked" in events
    whole = " ".join(s.to_json() for s in exporter.get_finished_spans())
    assert tokens[0] not in whole and "SECRET" not in whole


@pytest.mark.parametrize("asked", ["", "NO_CONTENT", "EVENT_ONLY", "true", "SPAN_ONLY", "span_and_event"])
def test_contents_are_shown_to_who_asks(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """By OpenTelemetry's own switch, and then without tokens."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", asked)
    token = jwt.encode({"sub": "alice"}, "0" * 32)
    reading = call("read", {"path": f"a?t={token}"}, "c1")
    protected(hand_written(replying([reading]), [read_tool([])])).invoke(human(f"Read a for me, {token}"))
    about = named(exporter, "authorize read").attributes | named(exporter, "execute_tool read").attributes
    shown = (about.get("gen_ai.tool.call.arguments"), about.get("runtime_authz.task.text"))
    given = asked.lower() in ("true", "span_only", "span_and_event")
    assert shown == ('{"path": "a?t=[token]"}', "Read a for me, [token]") if given else shown == (None, None)
    assert named(exporter, "execute_tool read").attributes.get("gen_ai.tool.call.arguments") == shown[0]
    assert token not in " ".join(s.to_json() for s in exporter.get_finished_spans())


HEADER = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0"


@pytest.mark.parametrize("token", [f"{HEADER}.e30.c2ln", f"{HEADER}.e30.", f"{HEADER}..aXY.Y2lwaGVy.dGFn", f"{HEADER}.a.b.c.d"])
@pytest.mark.parametrize("before", ["", "Bearer\n", "\t", "é", "ä\u2028", '"', "?t%3D", "tok_", "\\n"])
def test_tokens_are_no_content(monkeypatch: pytest.MonkeyPatch, token: str, before: str) -> None:
    """JWS and JWE, as texts, arguments, their names and what JSON does not know, whatever stands before them."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    text, hidden = f"{before}{token} end", f"{before}[token] end"
    assert telemetry._content(text) == hidden
    assert telemetry._content({text: [{"a": text}], "b": Path(text)}) == json.dumps({hidden: [{"a": hidden}], "b": hidden})


@pytest.mark.parametrize("text", ["keyJar.get(1)", "a.b.c", "eyJhbGciOiJkaXIiLCJ", "eyJ" * 100_000, "a.eyJ." * 50_000])
def test_other_contents_stay(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A long one costs no more than its length. One that cannot be shown is left out, and nothing is raised."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    assert telemetry._content(text) == text
    itself: dict[str, Any] = {"a": text}
    itself["itself"] = itself
    assert telemetry._content(itself) is None


class Hanging(SpanExporter):
    """An exporter that never comes back."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.reached.set()
        self.released.wait()
        return SpanExportResult.FAILURE


class Raising(SpanProcessor):
    """A processor that fails at everything."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on_end")


class RaisingAtEnd(Raising):
    """A processor that fails as a span ends."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        return


@pytest.fixture(params=["hanging exporter", "raising processor", "raising at the end"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hanging = Hanging()
    processors: dict[str, SpanProcessor] = {
        "hanging exporter": BatchSpanProcessor(hanging, max_queue_size=4, max_export_batch_size=1),
        "raising processor": Raising(), "raising at the end": RaisingAtEnd(),
    }
    recording(monkeypatch, processors[request.param])
    yield
    assert hanging.reached.is_set() or request.param != "hanging exporter"
    hanging.released.set()
    processors["hanging exporter"].shutdown()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("form", ["invoke", "astream"])
def test_broken_telemetry_changes_nothing(form: str) -> None:
    """The run, its question and its answer are as without telemetry."""
    ran: list[Any] = []
    authz = authz_with(asking("pay"))
    graph = authz.protect(agent_graph(replying([READ], [PAY]), [pay_tool(ran), read_tool(ran)], checkpointer=InMemorySaver()))
    drive_form(form, graph, human(), THREAD)
    assert [r for r in ran if r[0] != "read"] == []
    drive_form(form, graph, APPROVE, THREAD)
    assert [r for r in ran if r[0] != "read"] == [("bob", 5.0, "USD")]
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_beside_spans_of_others_ours_nest(exporter: InMemorySpanExporter) -> None:
    """Spans that another instrumentation makes current in a node have ours below them."""
    tracer = telemetry._tracer
    child = a_child()

    def step(state: Any) -> dict[str, Any]:
        with tracer.start_as_current_span("agent.chain"):
            child.invoke(human())
        return {"messages": []}

    protected(node_graph(step)).invoke(human())
    assert named(exporter, "invoke_agent child").parent == named(exporter, "agent.chain").id
    assert named(exporter, "agent.chain").parent == named(exporter, "invoke_workflow outer").id
