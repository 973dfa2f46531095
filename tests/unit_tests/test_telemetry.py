"""Spans: what they say, what they never say, and that they stop nothing."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from langchain_runtime_authz.evaluation import Decision, Obligation, deny
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.telemetry import semconv
from langchain_runtime_authz.telemetry import spans as telemetry
from langchain_runtime_authz.telemetry.spans import record_decision
from langchain_runtime_authz.testing.example_request import example_request

PERMIT = Decision(
    outcome="permit", decision_id="d-1",
    obligations=(Obligation(id="o", type="redact"), Obligation(id="p", type="rate_limit")), policy_revision="r1",
)
REQUEST = example_request({
    "resource.id": "pay", "resource.properties": {"target": "SECRET"}, "context.task.text": "SECRET", "context.task.epoch": 3,
    "context.agent": {"path": ["root", "payer"], "id": "agent-id", "attested": False}, "context.lease.jti": "SECRET",
    "context.lease.epoch": 3, "context.call.id": "call_1", "context.call.args": {"to": "SECRET"},
})
BODY = REQUEST.to_json()


class Identity:
    agent_id = staticmethod(":".join)


class Run(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(
            scope=Scope("", "i", "g", "thread-1"), run_id="r-1", agent=("root", "payer"), span=None, parent=None,
            epoch=3, pep=SimpleNamespace(identity=Identity), local=SimpleNamespace(spans={}),
        )  # fmt: skip


OF_RUN = {
    "gen_ai.agent.name": "payer", "gen_ai.agent.id": "root:payer", "gen_ai.conversation.id": "thread-1",
    "runtime_authz.run.id": "r-1",
}


def decided(decision: Decision = PERMIT, body: bytes | None = BODY, resource: str = "pay", **options: Any) -> None:
    record_decision(Run(), decision, body, **{"pdp": "wasm", "action": "tools/call", "resource": resource, **options})


@contextmanager
def execute_tool_span(run: Run, tool: str, call_id: str = "", decision: str = "") -> Iterator[None]:
    """A tool runs, as `ToolExecution` runs it."""
    span, failed = telemetry.execute_tool_span(run, tool, call_id, decision, {}), None
    if span is not None:
        span.enter()
    try:
        yield
    except BaseException as exc:
        failed = type(exc)
        raise
    finally:
        if span is not None:
            span.leave()
            if failed is not None:
                span.fail(failed)
            span.end()


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    return exporter


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_permit_is_a_span(exporter: InMemorySpanExporter) -> None:
    """Everything of a decision that is low in cardinality or an id, nothing else."""
    decided(started=1)
    got = attributes(only(exporter))
    expected = {
        "openinference.span.kind": "GUARDRAIL", "runtime_authz.action": "tools/call", "runtime_authz.resource": "pay",
        "gen_ai.tool.name": "pay", "gen_ai.tool.call.id": "call_1", "runtime_authz.decision": "permit",
        "runtime_authz.decision.id": "d-1", "runtime_authz.policy.revision": "r1", "runtime_authz.pdp": "wasm",
        "runtime_authz.obligation.types": ("rate_limit", "redact"), "runtime_authz.subject.type": "user",
        "runtime_authz.delegation.depth": 1, "runtime_authz.credential.epoch": 3, **OF_RUN,
    }
    assert expected == got
    done = only(exporter)
    assert (done.name, done.kind, done.status.status_code) == ("authorize pay", trace.SpanKind.INTERNAL, StatusCode.UNSET)
    assert done.start_time == 1 and "SECRET" not in done.to_json()
    assert "alice" not in done.to_json()


@pytest.mark.parametrize(
    ("failure", "code", "error"),
    [(None, "effect", None), ("enforcement", "effect", None), ("pdp", "pdp_timeout", "pdp_timeout"),
     ("mapping", "uncanonical_argument", "uncanonical_argument")],
)  # fmt: skip
def test_a_denial_is_no_error(exporter: InMemorySpanExporter, failure: Any, code: str, error: str | None) -> None:
    """Only a mapping or PDP failure sets the status, and `error.type` to its code."""
    decided(deny(code, failure), None, pdp="opa")
    span = only(exporter)
    told = attributes(span)
    assert (told["runtime_authz.decision"], told["runtime_authz.reasons"]) == ("deny", (code,))
    assert (told["runtime_authz.reason"], told.get("error.type"), span.name) == (code, error, "authorize pay")
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_a_step_without_a_request_has_a_name(exporter: InMemorySpanExporter) -> None:
    """A refusal before any question still says of what. A tool name that a model made up cannot bloat span names."""
    decided(deny("revoked"), None, "graph", action="run/start")
    span = only(exporter)
    assert span.name == "authorize graph" and "gen_ai.tool.name" not in attributes(span)
    decided(deny("unknown_tool"), None, "x" * 5000)
    assert len(exporter.get_finished_spans()[-1].name) < 200


def test_a_tool_run_is_a_span(exporter: InMemorySpanExporter) -> None:
    """Names as the GenAI conventions spell them; no arguments, no result."""
    with execute_tool_span(Run(), "pay", "call_1", "d-1"):
        pass
    with execute_tool_span(Run(), "pay"):
        pass
    full, bare = exporter.get_finished_spans()
    expected = {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.type": "function", "gen_ai.tool.name": "pay",
        "gen_ai.tool.call.id": "call_1", "runtime_authz.decision.id": "d-1", **OF_RUN,
    }
    assert expected == attributes(full) and full.name == "execute_tool pay"
    assert set(attributes(bare)) == {"gen_ai.operation.name", "gen_ai.tool.type", "gen_ai.tool.name", *OF_RUN}


def test_a_failing_tool_tells_its_type_only(exporter: InMemorySpanExporter) -> None:
    """The exception goes on; its text, which may quote arguments, is not recorded."""
    with pytest.raises(ValueError, match="SECRET"), execute_tool_span(Run(), "pay"):
        raise ValueError("SECRET")
    span = only(exporter)
    assert attributes(span)["error.type"] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR and not span.events
    assert "SECRET" not in span.to_json()


class GraphBubbleUp(Exception):
    """Named as LangGraph's own."""


class GraphInterrupt(GraphBubbleUp):
    """A tool that asks a human."""


@pytest.mark.parametrize("control", [GraphInterrupt, KeyboardInterrupt, GeneratorExit])
def test_control_flow_is_no_error(exporter: InMemorySpanExporter, control: type[BaseException]) -> None:
    """Interrupts, hand-offs and cancellations pass and mark nothing."""
    with pytest.raises(control), execute_tool_span(Run(), "pay"):
        raise control
    assert only(exporter).status.status_code is StatusCode.UNSET


def test_a_block_left_elsewhere_disturbs_nobody(exporter: InMemorySpanExporter) -> None:
    """A generator closed in another context ends its span and leaves that context's span current."""

    def stream() -> Iterator[int]:
        with execute_tool_span(Run(), "stream"):
            yield 1

    generator = stream()
    contextvars.copy_context().run(next, generator)
    with execute_tool_span(Run(), "other"):
        mine = trace.get_current_span()
        generator.close()  # type: ignore[attr-defined]
        assert trace.get_current_span() is mine
    assert {s.name for s in exporter.get_finished_spans()} == {"execute_tool stream", "execute_tool other"}


class Broken(trace.NonRecordingSpan):
    """A tracer, and its only span, that fail at one call."""

    def __init__(self, at: str) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.at = at

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        self._do("start_span")
        return self

    def _do(self, name: str) -> None:
        if name == self.at:
            raise RuntimeError(name)

    def is_recording(self) -> bool:
        self._do("is_recording")
        return True


AT = ("set_attribute", "set_attributes", "set_status", "end")
for _name in AT:
    setattr(Broken, _name, lambda self, *_, name=_name: self._do(name))


@pytest.mark.parametrize("at", ["start_span", "is_recording", *AT])
def test_a_broken_tracer_stops_nothing(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Whatever the tracing library does, the decision and the tool go on."""
    monkeypatch.setattr(telemetry, "_tracer", Broken(at))
    before = otel_context.get_current()
    done = []
    with execute_tool_span(Run(), "pay"):
        done.append(1)
    with pytest.raises(ValueError, match="mine"), execute_tool_span(Run(), "pay"):
        raise ValueError("mine")
    decided(deny("pdp_error", "pdp"))
    assert done == [1] and otel_context.get_current() == before


def test_an_sdk_that_is_set_up_later_records(monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter) -> None:
    """The tracer of the API, made at import, finds the provider."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", trace.ProxyTracer("x"))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    decided()
    with execute_tool_span(Run(), "pay"):
        pass
    assert [s.name for s in exporter.get_finished_spans()] == ["authorize pay", "execute_tool pay"]


def test_names_stay_in_our_own_space() -> None:
    """Nothing is added to `gen_ai.*`; what is ours begins with our own prefix."""
    constants = {v for k, v in vars(semconv).items() if k.isupper() and isinstance(v, str)}
    dotted = {v for v in constants if "." in v}
    theirs = {
        "gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.call.id", "gen_ai.tool.type", "gen_ai.tool.call.arguments",
        "gen_ai.agent.name", "gen_ai.agent.id", "gen_ai.conversation.id", "gen_ai.workflow.name",
        "error.type", "openinference.span.kind",
    }  # fmt: skip
    assert {name for name in dotted if not name.startswith("runtime_authz.")} == theirs
