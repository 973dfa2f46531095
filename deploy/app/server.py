"""A protected graph behind HTTP, configured by the environment as deploy/helm, deploy/compose and deploy/systemd do.

Replace `graph()` by your own. `uvicorn --factory server:application` serves it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Header, HTTPException
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.audit.sinks import FileSink
from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.keyring import KeyDirectory
from langchain_runtime_authz.errors import AuthzDenied
from langchain_runtime_authz.ledger import SqliteLedger
from langchain_runtime_authz.pdp.opa import OpaPDP


def instance(env: Mapping[str, str] = os.environ) -> RuntimeAuthz:
    """Return the instance that the environment describes. Raises `ConfigError`."""
    where = env["AUTHZ_LEDGER"]
    if "=" in where or where.startswith("postgres"):
        from langchain_runtime_authz.ledger.postgres import PostgresLedger

        ledger: Any = PostgresLedger(where)
    else:
        ledger = SqliteLedger(where)
    opa, ca = env.get("AUTHZ_OPA"), env.get("AUTHZ_OPA_CA")
    return RuntimeAuthz.production(
        pdp=OpaPDP(opa, **({"ca_file": ca} if ca else {})) if opa else None,  # None: the policy in the process
        ledger=ledger,
        audit=FileSink(
            env["AUTHZ_AUDIT"],
            durable=True,
            max_bytes=int(env.get("AUTHZ_AUDIT_SEGMENT", "256000000")),
            seal_to=env.get("AUTHZ_AUDIT_SEAL_TO"),
        ),
        issuer=LocalIssuer(KeyDirectory(env["AUTHZ_KEYS"])),
    )


def telemetry() -> None:
    """Export traces and metrics to the collector that the environment names, as OpenTelemetry's variables say."""
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    traces = TracerProvider()
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))


def graph() -> Any:
    """Return your graph. This one only greets."""
    builder = StateGraph(MessagesState)
    builder.add_node("greet", lambda _: {"messages": [AIMessage("Good morning.")]})
    builder.add_edge(START, "greet")
    return builder.compile()


def application() -> FastAPI:
    """Serve the graph, and the probes."""
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        telemetry()
    authz = instance()
    protected = authz.protect(graph())
    app = FastAPI()

    app.mount("/health", authz.health_app())  # /health/live, /health/ready

    @app.post("/chat")
    async def chat(text: str, x_user: str = Header()) -> dict[str, str]:
        """Stand in for your API. Verify the user by your identity provider: this header proves nothing."""
        try:
            async with authz.run(subject=x_user):
                state = await protected.ainvoke({"messages": [("user", text)]})
        except AuthzDenied as denied:
            raise HTTPException(403, {"decision_id": denied.decision_id}) from None
        return {"answer": state["messages"][-1].text}

    return app
