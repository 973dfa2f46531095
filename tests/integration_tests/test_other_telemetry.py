"""Next to LangSmith's tracing and OpenInference's instrumentation nothing doubles, and logs reach an OTLP receiver with their ids."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool
from langsmith import Client
from langsmith.run_helpers import tracing_context
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.errors import AuditError, Code
from langchain_runtime_authz.telemetry import spans as telemetry
from langchain_runtime_authz.testing import StaticPDP

from ..attack._graphs import (
    PAY,
    READ,
    agent_graph,
    authz_with,
    call,
    chain,
    drive_form,
    hand_written,
    human,
    pay_tool,
    read_tool,
    replying,
)
from ..threads import serving
from ..traces import of_sdk
from ..unit_tests.test_docs import _blocks as blocks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tracing.md"
OURS = "langchain_runtime_authz"
Nested = tuple[str, tuple[Any, ...]]


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An HTTP receiver on loopback: its address, and what it was sent (path, body)."""
    heard: list[tuple[str, bytes]] = []
    with serving(lambda request, body: heard.append((request.path, body)) or b"") as server:
        yield f"http://127.0.0.1:{server.server_port}", heard


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer(OURS))
    monkeypatch.setattr(telemetry, "provider", provider, raising=False)
    return exporter


def team() -> Any:
    """A graph of a subgraph with a tool node, then an agent with a tool, and an agent as a tool.

    One call a message: two tasks that enter a node at once may both ask for its permit.
    """
    child = hand_written(replying([READ]), [read_tool([])], name="child")

    @tool
    def ask_agent(question: str) -> str:
        """Ask another agent."""
        return str(child.invoke(human(question))["messages"][-1].text)

    boss = agent_graph(replying([READ], [PAY], [call("ask_agent", {"question": "x"}, "c1")]), [pay_tool([]), ask_agent], name="boss")
    return chain({"first": hand_written(replying([READ]), [read_tool([])], name="first"), "boss": boss}, name="outer")


def nested(spans: list[tuple[str, str, str | None]]) -> list[Nested]:
    """Return the trees of spans (id, name, parent), by names; one whose parent is elsewhere is a root."""
    ids = {ident for ident, _, _ in spans}

    def below(parent: str | None) -> tuple[Nested, ...]:
        return tuple(sorted((name, below(ident)) for ident, name, above in spans if (above if above in ids else None) == parent))

    return list(below(None))


@pytest.mark.parametrize("form", ["invoke", "astream"])
def test_nothing_doubles(form: str, exporter: InMemorySpanExporter, receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is one span of ours. Theirs are as without us, and the parents of each are its own."""
    url, heard = receiver

    def played(*, protected: bool, theirs: bool) -> tuple[Any, list[Nested], list[Nested], list[Nested]]:
        exporter.clear()
        heard.clear()
        with ExitStack() as around:
            if theirs:
                client = Client(api_url=url, api_key="none", auto_batch_tracing=False)
                around.enter_context(tracing_context(enabled=True, client=client))
                LangChainInstrumentor().instrument(tracer_provider=telemetry.provider)  # type: ignore[attr-defined]
                around.callback(LangChainInstrumentor().uninstrument)
            graph = team()
            drive_form(form, authz_with(StaticPDP(permit=True)).protect(graph) if protected else graph, human())
        finished = exporter.get_finished_spans()
        ours = of_sdk(s for s in finished if s.instrumentation_scope and s.instrumentation_scope.name == OURS)
        inference = of_sdk(s for s in finished if s.instrumentation_scope and s.instrumentation_scope.name != OURS)
        runs = [json.loads(body) for path, body in heard if path == "/runs"]
        smith = nested([(r["id"], r["name"], r.get("parent_run_id")) for r in runs])
        trees = (nested([(s.id, s.name, s.parent) for s in some]) for some in (ours, inference))
        return (ours, inference), *trees, smith

    _, none, inference, smith = played(protected=False, theirs=True)
    assert none == []
    assert len(inference) == len(smith) == 1
    _, alone, nobody, nothing = played(protected=True, theirs=False)
    assert nobody == nothing == []
    (ours, others), with_others, beside_ours, smith_beside_ours = played(protected=True, theirs=True)
    assert beside_ours == inference and smith_beside_ours == smith
    assert with_others == alone
    tools = {"pay": 1, "ask_agent": 1, "read": 2}
    for operation in ("authorize", "execute_tool"):
        assert {t: Counter(s.name for s in ours)[f"{operation} {t}"] for t in tools} == tools
    assert len({s.trace for s in [*ours, *others]}) == 1
    (root,) = (s for s in ours if s.parent is None)
    ids = {s.id for s in others}
    assert {s.parent for s in others if s.parent not in ids} == {root.id}


class Full:
    """A log whose disk is full as soon as a tool is to be called."""

    content = False

    def write(self, record: Any) -> None:
        if record.get("action") == "tools/call":
            raise AuditError(Code.AUDIT_UNAVAILABLE, "no space left")


def test_logs_reach_an_otlp_receiver(exporter: InMemorySpanExporter, receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says, through OpenTelemetry's own handler and exporter; a record has its trace, thread, run and the decision that the model was told."""
    url, heard = receiver
    (traces, logs), set_up = blocks("python", PAGE.read_text(encoding="utf-8")), list[Any]()
    monkeypatch.setattr(trace, "set_tracer_provider", set_up.append)  # the process has one
    exec(compile(traces, PAGE, "exec"), {})
    (tracing,) = set_up
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", tracing.get_tracer(OURS))
    exec(compile(logs.replace("http://127.0.0.1:4318", url), PAGE, "exec"), names := {})
    try:
        graph = authz_with(StaticPDP(permit=True), audit=Full()).protect(hand_written(replying([PAY]), [pay_tool([])]))
        state = graph.invoke(human(), {"configurable": {"thread_id": "t1"}})
    finally:
        logging.getLogger(OURS).handlers.pop()
        names["provider"].shutdown()
        tracing.shutdown()
    records = [
        record
        for path, body in heard
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
        if path == "/v1/logs"
    ]
    (failed,) = [r for r in records if "audit failed" in r.body.string_value]
    ids = {a.key: a.value.string_value for a in failed.attributes}
    by_id = {s.id: s for s in of_sdk(exporter.get_finished_spans())}
    span = by_id[failed.span_id.hex()]
    assert (failed.severity_text, failed.trace_id.hex(), span.name) == ("ERROR", span.trace, "invoke_agent hand")
    assert (ids["trace_id"], ids["span_id"]) == (span.trace, span.id)
    assert (ids["thread_id"], ids["run_id"]) == ("t1", span.attributes["runtime_authz.run.id"])
    assert f"(decision {ids['decision_id']})" in state["messages"][-2].text


def test_the_shipped_application_exports_traces_and_metrics(tmp_path: Path, receiver: Any) -> None:
    url, heard = receiver
    KeyDirectory.create(tmp_path / "keys")
    given = {"AUTHZ_LEDGER": "ledger.db", "AUTHZ_AUDIT": "audit.jsonl", "AUTHZ_KEYS": "keys", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
    script = (
        "from fastapi.testclient import TestClient\nfrom opentelemetry import metrics, trace\nfrom server import application\n"
        "TestClient(application()).post('/chat', params={'text': 'Hi'}, headers={'x-user': 'alice'}).raise_for_status()\n"
        "metrics.get_meter_provider().shutdown(), trace.get_tracer_provider().shutdown()"
    )
    where = os.pathsep.join([str(ROOT / "deploy" / "app"), str(ROOT)])
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | given | {"PYTHONPATH": where}, check=True, timeout=60)
    assert any(path == "/v1/metrics" and b"runtime_authz.decisions" in body for path, body in heard)
    assert any(path == "/v1/traces" and b"gen_ai.agent.name" in body for path, body in heard)
