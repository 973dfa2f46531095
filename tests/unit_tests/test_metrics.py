"""Metrics and log records: what is counted, and which ids a log record carries."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.telemetry import metrics, spans
from langchain_runtime_authz.testing import StaticPDP

from ..attack._graphs import (
    PAY,
    READ,
    asking,
    authz_with,
    hand_written,
    human,
    ledger_down,
    pay_tool,
    read_tool,
    replying,
)

THREAD = {"configurable": {"thread_id": "t1"}}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(metrics, "instruments", metrics.Instruments(meter))
    monkeypatch.setattr(metrics, "_ledgers", WeakKeyDictionary())  # not those that other tests have in use
    return reader


def points(reader: InMemoryMetricReader, name: str) -> list[tuple[dict[str, Any], Any]]:
    """Return the attributes of each point of a metric, without prefix, and its value or count."""
    data = reader.get_metrics_data()
    found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == f"runtime_authz.{name}"]
    every = [p for m in found for p in m.data.data_points]
    return [({k.removeprefix("runtime_authz."): v for k, v in (p.attributes or {}).items()}, getattr(p, "value", None) or getattr(p, "count", 0)) for p in every]  # fmt: skip


def test_a_run_is_counted(reader: InMemoryMetricReader) -> None:
    """Decisions by outcome and reason, latencies, events, leases and the questions that wait."""
    authz = authz_with(asking("pay"))
    graph = authz.protect(hand_written(replying([READ], [PAY]), [read_tool([]), pay_tool([])], checkpointer=InMemorySaver()))
    graph.invoke(human("SECRET"), THREAD)
    decided = points(reader, "decisions")
    assert ({"action": "tools/call", "decision": "permit", "reason": "", "subject.type": "anonymous"}, 1) in decided
    assert ({"action": "tools/call", "decision": "approval_required", "reason": "effect", "subject.type": "anonymous"}, 1) in decided
    (_, asked), = [p for p in points(reader, "decision.duration") if p[0]["action"] == "tools/call"]
    assert asked == 2 and points(reader, "engine.duration")[0][0] == {"pdp": "static"}
    events = {about["event"]: count for about, count in points(reader, "events")}
    assert events["started"] == events["asked"] == events["suspended"] == 1
    assert sum(count for _, count in points(reader, "leases")) == 0
    assert ({"tenant": "default"}, 1) in points(reader, "questions")
    authz.revoke("t1")
    assert {about["event"]: count for about, count in points(reader, "events")}["revoked"] == 1
    assert "SECRET" not in str(reader.get_metrics_data())


@pytest.mark.parametrize(("kind", "counted"), [("service", "service"), ("agent", "agent"), ("cron-4711", "other")])
def test_denials_of_crons_are_told_apart(reader: InMemoryMetricReader, kind: str, counted: str) -> None:
    """By the subject's type, of which a metric knows a few."""
    authz = authz_with(StaticPDP(lambda r: r.action.name != "tools/call"))
    graph = authz.protect(hand_written(replying([PAY]), [pay_tool([])]))
    with authz.run(subject={"type": kind, "id": "nightly"}):
        graph.invoke(human())
    denied = [about for about, _ in points(reader, "decisions") if about["decision"] == "deny"]
    assert {about["subject.type"] for about in denied} == {counted}


def test_a_live_run_has_a_lease(reader: InMemoryMetricReader) -> None:
    """While a graph runs, its lease and those of its children are live."""
    graph = authz_with(StaticPDP(permit=True)).protect(hand_written(replying([READ]), [read_tool([])]))
    live = [sum(count for _, count in points(reader, "leases")) for _ in graph.stream(human())]
    assert set(live) == {1}
    assert sum(count for _, count in points(reader, "leases")) == 0


def test_failures_are_counted_by_component(reader: InMemoryMetricReader) -> None:
    """A ledger and an engine that fail are told apart."""
    graph = authz_with(StaticPDP(permit=True)).protect(hand_written(replying([READ]), [read_tool([])]))
    with ledger_down(), pytest.raises(AuthzDenied):
        graph.invoke(human())
    authz = authz_with(StaticPDP(lambda _: 1 / 0))
    with pytest.raises(AuthzDenied):
        authz.protect(hand_written(replying([READ]), [read_tool([])])).invoke(human())
    found = [about for about, _ in points(reader, "errors")]
    assert {"component": "ledger", "error.type": "ledger_unavailable"} in found
    assert {"component": "pdp", "error.type": "pdp_error"} in found


def test_log_records_carry_ids(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of the span, which the caller did not name."""
    monkeypatch.setattr(spans, "_tracer", TracerProvider().get_tracer("test"))
    with caplog.at_level(logging.WARNING, "langchain_runtime_authz"):
        authz_with(StaticPDP(lambda r: r.action.name != "tools/call" or 1 / 0)).protect(
            hand_written(replying([READ]), [read_tool([])], checkpointer=InMemorySaver())
        ).invoke(human(), THREAD)
    (record,) = [r for r in caplog.records if r.message.startswith("PDP")]
    assert vars(record)["thread_id"] == "t1" and len(vars(record)["trace_id"]) == 32
