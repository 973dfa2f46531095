"""`runtime-authz demo`: play a demonstration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from langchain_runtime_authz.errors import ConfigError

SERVICE = "runtime-authz-demo"
EXPORT = 5  # seconds for a receiver to take the traces


def demo(
    agentdojo: Annotated[
        bool, Option("--agentdojo", help="Replay AgentDojo's banking suite (extra `agentdojo`).")
    ] = False,
    limit: Annotated[int | None, Option(min=1, help="With --agentdojo: how many attacked pairs; default: all.")] = None,
    audit: Annotated[
        Path | None, Option(metavar="FILE", help="Write the decision log, contents included: for `policy explain`.")
    ] = None,
    otlp: Annotated[
        str | None, Option(metavar="URL", help="Send the traces to an OTLP/HTTP receiver, like Jaeger (extra `otlp`).")
    ] = None,
) -> None:
    """Show a bank's agent that meets a hostile bill, protected and unprotected.

    It uses no language model and no network.

    runtime-authz demo
    runtime-authz demo --audit audit.jsonl
    runtime-authz policy explain audit.jsonl
    runtime-authz demo --otlp http://127.0.0.1:4318
    runtime-authz demo --agentdojo --limit 20
    """
    from rich.console import Console

    logging.getLogger("langchain_runtime_authz.decisions").setLevel(logging.ERROR)  # the demo itself prints decisions
    if not agentdojo:
        if limit is not None:
            raise typer.BadParameter("it needs --agentdojo", param_hint="--limit")
        from langchain_runtime_authz.demo.bank import play_both

        with _exporting(otlp) if otlp is not None else nullcontext():
            play_both(Console(), audit)
        return
    if audit is not None or otlp is not None:
        raise typer.BadParameter("only without --agentdojo", param_hint="--audit, --otlp")
    from langchain_runtime_authz.demo.agentdojo import render, replay

    render(replay(limit, progress=Console(stderr=True)), Console())


@contextmanager
def _exporting(url: str) -> Iterator[None]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as exc:
        raise ConfigError("`--otlp` needs the extra `otlp`: pip install 'langchain-runtime-authz[otlp]'") from exc
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    yield
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a failure is reported below, once
    exporter, result = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=EXPORT), None
    with suppress(ValueError):  # not a URL
        result = exporter.export(kept.get_finished_spans())
    if result is not SpanExportResult.SUCCESS:
        raise ConfigError(f"the traces did not reach {url}; is an OTLP/HTTP receiver listening there?")
