"""Record decisions, events, runs and tools as OpenTelemetry spans.

Only OpenTelemetry's API is used, so no span is built without an SDK. Errors of an SDK and of the application's identity
are suppressed here, so that recording never raises into the traced code. Tool results and exception texts are never
recorded. Arguments and the user's texts are recorded only if the environment asks for them (`semconv.CAPTURE_CONTENT`).
JWTs in them are removed, but opaque tokens are not recognised.

Each entry of a graph has a span, `invoke_workflow` or `invoke_agent`. The entry's decisions and tools are spans below
it. A span is current only while code of its run is running, never while the consumer of a stream holds a chunk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.telemetry import metrics
from langchain_runtime_authz.telemetry import semconv as n

if TYPE_CHECKING:  # names of types only
    from langchain_runtime_authz.ledger.base import Scope
    from langchain_runtime_authz.pep.run import Run

_MAX_NAME: Final = 128  # a model may make up a tool's name
_W3C: Final = TraceContextTextMapPropagator()
_JWT: Final = re.compile(r"(?<![\w-])(?=[\w-]+\.)([\w-]*?)eyJ[\w-]{11,}(?:\.[\w-]*)+", re.ASCII)

_tracer: trace.Tracer = trace.get_tracer("langchain_runtime_authz")

# With a tracer and a provider of these types, no SDK records. The check makes no call, because each tool call needs
# it. If the API lacks the attribute, spans count as recorded.
_IDLE_TRACERS: Final = (trace.ProxyTracer, trace.NoOpTracer)
_IDLE_PROVIDERS: Final = (type(None), trace.ProxyTracerProvider, trace.NoOpTracerProvider)
_api: Any = trace if hasattr(trace, "_TRACER_PROVIDER") else SimpleNamespace(_TRACER_PROVIDER=trace)


class OpenSpan:
    """The span of an entry or a tool. It may become current repeatedly, and ends once."""

    __slots__ = ("_before", "_outer", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._outer = trace.get_current_span().get_span_context()
        self._before: otel_context.Context | None = None

    def enter(self) -> None:
        """Make the span current, even if unsampled, so that child spans join its trace."""
        with suppress(Exception):  # telemetry must not stop the run, here and below
            if self._span.get_span_context().is_valid:
                self._before = otel_context.get_current()
                otel_context.attach(trace.set_span_in_context(self._span, self._before))

    def leave(self) -> None:
        """Make the previous context current. `detach` would fail in another async context."""
        with suppress(Exception):
            if self._before is not None and trace.get_current_span() is self._span:
                otel_context.attach(self._before)
            self._before = None

    def context(self) -> otel_context.Context | None:
        """Return a context with this span as parent; `None` if the current one fits."""
        current = trace.get_current_span().get_span_context()
        own = self._span is not trace.INVALID_SPAN and (not current.is_valid or current == self._outer)
        return trace.set_span_in_context(self._span) if own else None

    def link(self, *parents: str) -> None:
        """Link the span to the spans of questions, given as `traceparent`s."""
        with suppress(Exception):
            for found in _questions(*parents):
                self._span.add_link(found.context, found.attributes)

    def fail(self, error: type[BaseException]) -> None:
        """Record an exception of the traced code, unless it is control flow or a denial."""
        # Compared by name, because this module does not import LangGraph.
        control = any(c.__name__ in ("GraphBubbleUp", "AuthzDenied") for c in error.__mro__)
        if issubclass(error, Exception) and not control:
            with suppress(Exception):
                _fail(self._span, error.__qualname__)

    def end(self, state: str | None = None, epoch: int | None = None) -> None:
        """End the span with its run's last state and epoch. Later calls change nothing."""
        span, self._span = self._span, trace.INVALID_SPAN
        with suppress(Exception):
            span.set_attributes(_filled({n.RUN_STATE: state, n.EPOCH: epoch}))
            span.end()


def run_span(run: Run, is_workflow: Callable[[], bool] = bool, *, decision: str = "") -> OpenSpan | None:
    """Open an entry's span, linked to the span of `decision`; `None` without an SDK."""
    if _tracer.__class__ in _IDLE_TRACERS and _api._TRACER_PROVIDER.__class__ in _IDLE_PROVIDERS:  # noqa: SLF001
        return None
    workflow, name = is_workflow(), run.agent[-1]
    operation = n.INVOKE_WORKFLOW if workflow else n.INVOKE_AGENT
    about = {n.OPENINFERENCE_SPAN_KIND: n.CHAIN if workflow else n.AGENT, n.WORKFLOW_NAME: name if workflow else None}
    return _open(operation, name, run, run.parent, decision, about)


def execute_tool_span(run: Run, tool: str, call_id: str | None, decision: str, args: Any) -> OpenSpan | None:
    """Open a tool's span, linked to the span of `decision`; `None` without an SDK."""
    if _tracer.__class__ in _IDLE_TRACERS and _api._TRACER_PROVIDER.__class__ in _IDLE_PROVIDERS:  # noqa: SLF001
        return None
    about = {n.TOOL_TYPE: "function", n.TOOL_NAME: tool, n.TOOL_CALL_ID: call_id, n.DECISION_ID: decision}
    about[n.TOOL_CALL_ARGUMENTS] = _content(args)
    return _open(n.EXECUTE_TOOL, tool, run, run, decision, about)


def _open(
    operation: str, name: str, run: Run, above: Run | None, decision: str, about: Mapping[str, Any]
) -> OpenSpan | None:
    found = above.local.spans.pop(decision, None) if above is not None else None
    with suppress(Exception):
        links = [Link(found, {n.LINK: "decision"})] if found is not None else None
        span = _tracer.start_span(f"{operation} {name[:_MAX_NAME]}", context=_context(above), links=links)
        if span.is_recording():
            span.set_attributes(_filled({n.OPERATION_NAME: operation, **_of(run), **about}))
        return OpenSpan(span)
    return None


def record_decision(
    run: Run, decision: Decision, body: bytes | None, action: str, resource: str, started: int | None = None,
    *, pdp: str, question: str = "",
) -> None:  # fmt: skip
    """Count one decision, and record it as a span.

    `body` is the request, or `None` if the PDP was not asked. `started` is in nanoseconds since the Unix epoch. If a
    call is decided again after a question, `question` is the `traceparent` of that question.
    """
    if metrics.instruments.proxy._real_meter is not None:  # noqa: SLF001  (cheaper than a call)
        metrics.count_decision(decision, action, started, run.subject)
    if _tracer.__class__ in _IDLE_TRACERS and _api._TRACER_PROVIDER.__class__ in _IDLE_PROVIDERS:  # noqa: SLF001
        return
    name = f"{n.AUTHORIZE} {resource[:_MAX_NAME]}"
    with suppress(Exception):
        span = _tracer.start_span(name, context=_context(run), start_time=started, links=_questions(question))
        # The next span links to this decision: that of a tool, a child agent, or the resume after a question.
        if decision.outcome == "approval_required" or (decision.permit and action in ("tools/call", "agent/invoke")):
            run.local.spans[decision.decision_id] = span.get_span_context()
        with suppress(Exception):
            if span.is_recording():
                _describe(span, run, decision, body, pdp, action, resource)
        span.end()


def record_event(
    event: str,
    scope: Scope | None,
    detail: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    run: Run | None = None,
    question: str = "",
) -> None:
    """Add an event to the current span; if that span is not recorded, to a new span.

    `about` holds `run_id`, `epoch` and `agent` of the event's audit record, and the code `reason`. `question` is the
    `traceparent` of the question that the event answers.
    """
    if metrics.instruments.proxy._real_meter is not None:  # noqa: SLF001  (cheaper than a call)
        metrics.count_metric("events", {n.EVENT: event})
    if _tracer.__class__ in _IDLE_TRACERS and _api._TRACER_PROVIDER.__class__ in _IDLE_PROVIDERS:  # noqa: SLF001
        return
    agent: Sequence[str] = about.get("agent") or ()
    with suppress(Exception):
        told = {
            n.CONVERSATION_ID: scope.thread if scope is not None else None,
            n.RUN_ID: about.get("run_id"),
            n.REASON: about.get("reason"),
            n.AGENT_NAME: agent[-1] if agent else None,
            **(_of(run) if run is not None else {}),
            n.EPOCH: about.get("epoch", run.epoch if run is not None else None),
            n.EPOCH_BEFORE: detail.get("from_epoch"),
            **{n.PREFIX + name: _shown(detail[name]) for name in n.SHOWN.intersection(detail)},
        }
        attributes = _filled(told)
        # The span of a run links to its questions when it begins, so its events need no links.
        name, links, context = f"{n.PREFIX}{event}", _questions(question) if run is None else (), _context(run)
        span = trace.get_current_span(context)
        if not span.is_recording():
            _tracer.start_span(name, context, attributes=attributes, links=links).end()
            return
        span.add_event(name, attributes)
        for link in links:
            span.add_link(link.context, link.attributes)


def record_observation(what: str, name: str) -> None:
    """Add an event: a `tool`, `model`, `graph` or `chain` ran without a decision."""
    with suppress(Exception):
        trace.get_current_span().add_event(n.UNGATED, {n.RESOURCE: name[:_MAX_NAME], n.RESOURCE_TYPE: what})


def traceparent(run: Run, decision: str = "") -> str:
    """Return the W3C `traceparent` of a decision's span, else of the run's span."""
    carrier: dict[str, str] = {}
    found = run.local.spans.pop(decision, None)
    with suppress(Exception):
        _W3C.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(found)) if found else _context(run))
    return carrier.get("traceparent", "")


def inject_trace_context(headers: MutableMapping[str, str]) -> None:
    """Add the current span's W3C trace context to headers that have none."""
    with suppress(Exception):
        if "traceparent" not in headers:
            _W3C.inject(headers)


def _describe(
    span: Span, run: Run, decision: Decision, body: bytes | None, pdp: str, action: str, resource: str
) -> None:
    about = {
        n.OPENINFERENCE_SPAN_KIND: n.GUARDRAIL,
        n.ACTION: action,
        n.RESOURCE: resource,
        n.TOOL_NAME: resource if action == "tools/call" else None,
        n.DECISION: decision.outcome,
        n.DECISION_ID: decision.decision_id,
        n.POLICY_REVISION: decision.policy_revision,
        n.PDP: pdp,
        n.PDP_DECISION_ID: decision.pdp_decision_id,
        n.REASON: decision.reason,
        n.REASONS: decision.reasons or None,
        n.OBLIGATION_TYPES: sorted({o.type for o in decision.obligations}) or None,
        **_of(run),
    }
    span.set_attributes(_filled(about))
    # A denial is not an error. A request that could not be made, or an engine that failed, is one.
    if decision.failure in ("mapping", "pdp"):
        _fail(span, decision.reason or decision.failure)
    if body is not None:
        request = json.loads(body)
        context = request["context"]
        call = context.get("call") or {}
        asked = {
            n.SUBJECT_TYPE: request["subject"]["type"],
            n.DELEGATION_DEPTH: context["delegation"]["depth"],
            n.EPOCH: context["lease"]["epoch"],
            n.TOOL_CALL_ID: call.get("id"),
            n.TOOL_CALL_ARGUMENTS: _content(call.get("args")),
            n.TASK_TEXT: _content(context["task"]["text"]),
        }
        span.set_attributes(_filled(asked))


def _content(value: Any) -> str | None:
    """Return a text, or JSON, without JWTs; `None` if contents are not recorded."""
    if value is not None and os.environ.get(n.CAPTURE_CONTENT, "").lower() in n.ON_SPANS:
        with suppress(Exception):
            return _JWT.sub(r"\1[token]", value if isinstance(value, str) else json.dumps(value, default=str))
    return None


def _of(run: Run) -> dict[str, Any]:
    return {
        n.CONVERSATION_ID: run.scope.thread,
        n.RUN_ID: run.run_id,
        n.AGENT_NAME: run.agent[-1],
        n.AGENT_ID: run.pep.identity.agent_id(run.agent),
    }


def _shown(value: Any) -> Any:
    records = isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value)
    return len(value) if records else value


def _context(run: Run | None) -> otel_context.Context | None:
    return run.span.context() if run is not None and run.span is not None else None


def _questions(*parents: str) -> list[Link]:
    """Return links to the spans of questions; leave out a malformed `traceparent`."""
    spans = [trace.get_current_span(_W3C.extract({"traceparent": p})) for p in dict.fromkeys(parents) if p]
    return [Link(s.get_span_context(), {n.LINK: "question"}) for s in spans if s.get_span_context().is_valid]


def _filled(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in (None, "")}


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute(n.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR))
