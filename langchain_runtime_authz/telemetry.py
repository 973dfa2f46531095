"""Record spans and events. Every span and attribute name of the package is defined here.

Only the OpenTelemetry API is used: while no SDK is set up, nothing is built and nothing is kept. Recording never
raises into the traced code. Arguments, results and texts of exceptions are never recorded.

`gen_ai.*` names (status Development, not importable from a stable package):
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/execute-tool.md
`openinference.span.kind`:
https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
There is no convention for authorization yet (semantic-conventions issue 4022), hence our own prefix.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from langchain_runtime_authz.authzen import Decision

__all__ = ["NO_SPAN", "ToolSpan", "execute_tool_span", "record_decision", "record_observation"]

_log = logging.getLogger(__name__)

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
GEN_AI_TOOL_TYPE: Final = "gen_ai.tool.type"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_AGENT_ID: Final = "gen_ai.agent.id"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
ERROR_TYPE: Final = "error.type"  # https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/
OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"

ACTION: Final = "runtime_authz.action"
RESOURCE: Final = "runtime_authz.resource"
RESOURCE_TYPE: Final = "runtime_authz.resource.type"
DECISION: Final = "runtime_authz.decision"  # permit | deny | approval_required | halt
DECISION_ID: Final = "runtime_authz.decision.id"
REASON: Final = "runtime_authz.reason"
POLICY_REVISION: Final = "runtime_authz.policy.revision"
PDP: Final = "runtime_authz.pdp"
PDP_DECISION_ID: Final = "runtime_authz.pdp.decision.id"
SUBJECT_TYPE: Final = "runtime_authz.subject.type"
ACTOR_ID: Final = "runtime_authz.actor.id"
DELEGATION_DEPTH: Final = "runtime_authz.delegation.depth"
CREDENTIAL_EPOCH: Final = "runtime_authz.credential.epoch"
OBLIGATION_TYPES: Final = "runtime_authz.obligation.types"
REQUEST_HASH: Final = "runtime_authz.request.hash"

AUTHORIZE: Final = "authorize"
EXECUTE_TOOL: Final = "execute_tool"
UNGATED: Final = "runtime_authz.ungated"  # an event: no enforcement point decided what ran
GUARDRAIL: Final = "GUARDRAIL"

# Equal requests of one process have equal hashes. Without the key, their content cannot be guessed.
_HASH_KEY: Final = secrets.token_bytes(32)
_MAX_NAME: Final = 128  # a model may make up a tool's name

_tracer: trace.Tracer = trace.get_tracer("langchain_runtime_authz")

# A tracer of the API alone, and no provider behind it: nothing records. Looked up without a call, since each tool
# call asks; an API without the name counts as recording.
_IDLE_TRACERS: Final = (trace.ProxyTracer, trace.NoOpTracer)
_IDLE_PROVIDERS: Final = (type(None), trace.ProxyTracerProvider, trace.NoOpTracerProvider)
_PROVIDER: Final = "_TRACER_PROVIDER"


class ToolSpan:
    """A span that is current while its block runs."""

    __slots__ = ("_before", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._before: otel_context.Context | None = None

    def __enter__(self) -> None:
        try:
            if self._span.is_recording():
                self._before = otel_context.get_current()
                otel_context.attach(trace.set_span_in_context(self._span, self._before))
        except Exception:  # noqa: BLE001  (telemetry must not stop the call)
            _log.debug("span not entered", exc_info=True)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        try:
            # By value, not by Token, and only if it is still current: the block may be left in another context.
            if trace.get_current_span() is self._span:
                otel_context.attach(self._before)
            # LangGraph's interrupts and hand-offs travel as exceptions. This layer imports no LangGraph.
            if isinstance(exc, Exception) and not any(c.__name__ == "GraphBubbleUp" for c in type(exc).__mro__):
                _fail(self._span, type(exc).__qualname__)
            self._span.end()
        except Exception:  # noqa: BLE001  (telemetry must not stop the call)
            _log.debug("span not ended", exc_info=True)


class _NoSpan:
    __slots__ = ()

    def __enter__(self) -> None:
        return

    def __exit__(self, *exc: object) -> None:
        return


NO_SPAN: Final = _NoSpan()


def execute_tool_span(
    tool: str,
    call_id: str | None = None,
    agent: Sequence[str] = (),
    conversation: str | None = None,
    agent_id: Callable[[tuple[str, ...]], str] | None = None,
) -> ToolSpan | _NoSpan:
    """Return the context manager of one tool execution.

    Args:
        tool: the tool's name.
        call_id: the model's id of the call.
        agent: the path from the root agent.
        conversation: the thread.
        agent_id: names an agent by its path; called only if a span records.
    """
    if type(_tracer) in _IDLE_TRACERS and type(getattr(trace, _PROVIDER, _tracer)) in _IDLE_PROVIDERS:
        return NO_SPAN
    try:
        span = _tracer.start_span(f"{EXECUTE_TOOL} {tool[:_MAX_NAME]}", kind=SpanKind.INTERNAL)
        if span.is_recording():
            path = tuple(agent)
            attributes = {
                GEN_AI_OPERATION_NAME: EXECUTE_TOOL,
                GEN_AI_TOOL_TYPE: "function",
                GEN_AI_TOOL_NAME: tool,
                GEN_AI_TOOL_CALL_ID: call_id or None,
                GEN_AI_AGENT_NAME: path[-1] if path else None,
                GEN_AI_AGENT_ID: agent_id(path) if agent_id is not None else None,
                GEN_AI_CONVERSATION_ID: conversation or None,
            }
            _set(span, attributes)
        return ToolSpan(span)
    except Exception:  # noqa: BLE001  (telemetry must not stop the call)
        _log.debug("span not started", exc_info=True)
        return NO_SPAN


def record_decision(
    decision: Decision, body: bytes | None, *, pdp: str, action: str, resource: str, started: int | None = None
) -> None:
    """Record one decision as a span.

    Args:
        decision: the decision.
        body: the request's JSON; `None` if the PDP was not asked.
        pdp: the engine's name.
        action: AuthZEN `action.name`.
        resource: AuthZEN `resource.id`.
        started: when the PDP was asked, in nanoseconds since the epoch.
    """
    if type(_tracer) in _IDLE_TRACERS and type(getattr(trace, _PROVIDER, _tracer)) in _IDLE_PROVIDERS:
        return
    try:
        name = f"{AUTHORIZE} {resource[:_MAX_NAME]}"
        span = _tracer.start_span(name, kind=SpanKind.INTERNAL, start_time=started)
        if not span.is_recording():
            return
        try:
            _describe(span, decision, body, pdp, action, resource)
        finally:
            span.end()
    except Exception:  # noqa: BLE001  (telemetry must not stop the call)
        _log.debug("decision not recorded", exc_info=True)


def record_observation(what: str, name: str) -> None:
    """Add an event to the current span: something ran that no enforcement point decided.

    Args:
        what: `tool`, `model`, `graph` or `chain`.
        name: its own name.
    """
    try:
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(UNGATED, {RESOURCE: name[:_MAX_NAME], RESOURCE_TYPE: what})
    except Exception:  # noqa: BLE001  (telemetry must not stop the call)
        _log.debug("observation not recorded", exc_info=True)


def _describe(span: Span, decision: Decision, body: bytes | None, pdp: str, action: str, resource: str) -> None:
    attributes = {
        OPENINFERENCE_SPAN_KIND: GUARDRAIL,
        ACTION: action,
        RESOURCE: resource,
        GEN_AI_TOOL_NAME: resource if action == "tools/call" else None,
        DECISION: decision.outcome,
        DECISION_ID: decision.decision_id,
        POLICY_REVISION: decision.policy_revision,
        PDP: pdp,
        PDP_DECISION_ID: decision.pdp_decision_id or None,
        REASON: decision.reason or None,
        OBLIGATION_TYPES: sorted({o.type for o in decision.obligations}) or None,
    }
    _set(span, attributes)
    # A denial is an answer. Only a request that could not be made, or an engine that failed, is an error.
    if decision.failure in ("mapping", "pdp"):
        _fail(span, decision.reason or decision.failure)
    if body is not None:
        request = json.loads(body)
        context = request["context"]
        attributes = {
            REQUEST_HASH: hmac.digest(_HASH_KEY, body, "sha256").hex(),
            SUBJECT_TYPE: request["subject"]["type"],
            ACTOR_ID: context["agent"]["id"],
            DELEGATION_DEPTH: context["delegation"]["depth"],
            CREDENTIAL_EPOCH: context["lease"]["epoch"],
            GEN_AI_TOOL_CALL_ID: (context.get("call") or {}).get("id"),
        }
        _set(span, attributes)


def _set(span: Span, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute(ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR))
