"""Spans. Every span and attribute name of the package stands here.

Only the OpenTelemetry API is used: without an SDK nothing is built and nothing is kept. Recording never
raises into the traced code. Arguments, results and texts of exceptions are never recorded.

`gen_ai.*` names (status Development, not importable from a stable package):
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/execute-tool.md
`openinference.span.kind`:
https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
There is no convention for authorization yet (semantic-conventions issue 4022), hence our own prefix.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from types import TracebackType
from typing import Final, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from langchain_runtime_authz.authzen import Decision, EvaluationRequest

__all__ = [
    "AuthorizeSpan",
    "ExecuteToolSpan",
    "authorize_span",
    "execute_tool_span",
    "record_decision",
    "record_observation",
]

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
UNGATED: Final = "runtime_authz.ungated"  # an event: something ran outside the gates
GUARDRAIL: Final = "GUARDRAIL"

# Equal requests of one process can be told; what they held can not be guessed from outside.
_HASH_KEY: Final = secrets.token_bytes(32)
_MAX_NAME: Final = 128  # a model writes tool names

_tracer = trace.get_tracer("langchain_runtime_authz")


class _Current:
    """A span that is current while the block runs."""

    __slots__ = ("_before", "_span")

    def __init__(self) -> None:
        self._span: Span = trace.INVALID_SPAN
        self._before: otel_context.Context | None = None

    def _start(self) -> Span:
        raise NotImplementedError

    def _end(self, exc: BaseException | None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self._span = self._start()
            # Without an SDK there is nothing to be the parent of.
            if self._span.is_recording():
                self._before = otel_context.get_current()
                otel_context.attach(trace.set_span_in_context(self._span, self._before))
        except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
            _log.debug("span not started", exc_info=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        try:
            # By value, not by Token, and only where it is still ours: the block may be left in
            # another context than it was entered in.
            if trace.get_current_span() is self._span:
                otel_context.attach(self._before)
            self._end(exc)
            self._span.end()
        except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
            _log.debug("span not ended", exc_info=True)


class AuthorizeSpan(_Current):
    """Span `authorize {resource}` around one decision."""

    __slots__ = ("_action", "_resource")

    def __init__(self, action: str, resource: str) -> None:
        super().__init__()
        self._action = action
        self._resource = resource

    def _start(self) -> Span:
        return _start_authorize(self._action, self._resource)

    def _end(self, exc: BaseException | None) -> None:
        # What leaves the block is control flow (an interrupt, a cancellation): no error of ours.
        return

    def decided(
        self,
        decision: Decision,
        request: EvaluationRequest | None = None,
        *,
        pdp: str = "",
        body: bytes | None = None,
    ) -> None:
        """Record the decision.

        Args:
            decision: what was decided.
            request: what was asked, where it could be put into words.
            pdp: name of the engine.
            body: `request.to_json()`, where it is at hand.
        """
        _decide(self._span, decision, request, pdp, body)


class ExecuteToolSpan(_Current):
    """Span `execute_tool {tool}` around one run of a tool."""

    __slots__ = ("_agent", "_agent_id", "_call_id", "_conversation", "_tool")

    def __init__(self, tool: str, call_id: str | None, agent: str, conversation: str | None, agent_id: str) -> None:
        super().__init__()
        self._tool = tool
        self._call_id = call_id
        self._agent = agent
        self._agent_id = agent_id
        self._conversation = conversation

    def _start(self) -> Span:
        span = _tracer.start_span(f"{EXECUTE_TOOL} {self._tool[:_MAX_NAME]}", kind=SpanKind.INTERNAL)
        if span.is_recording():
            span.set_attribute(GEN_AI_OPERATION_NAME, EXECUTE_TOOL)
            span.set_attribute(GEN_AI_TOOL_TYPE, "function")
            for name, value in (
                (GEN_AI_TOOL_NAME, self._tool),
                (GEN_AI_TOOL_CALL_ID, self._call_id),
                (GEN_AI_AGENT_NAME, self._agent),
                (GEN_AI_AGENT_ID, self._agent_id),
                (GEN_AI_CONVERSATION_ID, self._conversation),
            ):
                if value:
                    span.set_attribute(name, value)
        return span

    def _end(self, exc: BaseException | None) -> None:
        # LangGraph's interrupts and hand-offs travel as exceptions; known by name, since this layer
        # imports no LangGraph.
        if isinstance(exc, Exception) and not any(c.__name__ == "GraphBubbleUp" for c in type(exc).__mro__):
            self.failed(type(exc).__qualname__)

    def failed(self, error_type: str) -> None:
        """Record that the tool failed: the type only, since a text may quote arguments."""
        try:
            _fail(self._span, error_type)
        except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
            _log.debug("failure not recorded", exc_info=True)


def authorize_span(action: str, resource: str) -> AuthorizeSpan:
    """A context manager around one decision; call `decided` on what it yields."""
    return AuthorizeSpan(action, resource)


def execute_tool_span(
    tool: str,
    call_id: str | None = None,
    agent: str = "",
    conversation: str | None = None,
    *,
    agent_id: str = "",
) -> ExecuteToolSpan:
    """A context manager around one run of a tool.

    Args:
        tool: its name.
        call_id: the model's id of the call.
        agent: name of the acting agent.
        conversation: the thread.
        agent_id: id of the acting agent.
    """
    return ExecuteToolSpan(tool, call_id, agent, conversation, agent_id)


def record_decision(
    decision: Decision,
    request: EvaluationRequest | None,
    *,
    pdp: str,
    action: str,
    resource: str,
    body: bytes | None = None,
    started: int | None = None,
) -> None:
    """One span for a decision that was taken in a batch.

    Args:
        decision: what was decided.
        request: what was asked, where it could be put into words.
        pdp: name of the engine.
        action: AuthZEN `action.name`.
        resource: AuthZEN `resource.id`.
        body: `request.to_json()`, where it is at hand.
        started: nanoseconds since the epoch at which the batch was asked about.
    """
    try:
        span = _start_authorize(action, resource, started)
        if span.is_recording():
            _decide(span, decision, request, pdp, body)
            span.end()
    except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
        _log.debug("decision not recorded", exc_info=True)


def record_observation(what: str, name: str) -> None:
    """An event on the current span: something ran outside the gates.

    Args:
        what: `tool`, `model`, `graph` or `chain`.
        name: its own name.
    """
    try:
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(UNGATED, {RESOURCE: name[:_MAX_NAME], RESOURCE_TYPE: what})
    except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
        _log.debug("observation not recorded", exc_info=True)


def _start_authorize(action: str, resource: str, started: int | None = None) -> Span:
    span = _tracer.start_span(f"{AUTHORIZE} {resource[:_MAX_NAME]}", kind=SpanKind.INTERNAL, start_time=started)
    if span.is_recording():
        span.set_attribute(OPENINFERENCE_SPAN_KIND, GUARDRAIL)
        span.set_attribute(ACTION, action)
        span.set_attribute(RESOURCE, resource)
        if action == "tools/call":
            span.set_attribute(GEN_AI_TOOL_NAME, resource)
    return span


def _decide(span: Span, decision: Decision, request: EvaluationRequest | None, pdp: str, body: bytes | None) -> None:
    try:
        if not span.is_recording():
            return
        span.set_attribute(DECISION, decision.outcome)
        span.set_attribute(DECISION_ID, decision.decision_id)
        span.set_attribute(POLICY_REVISION, decision.policy_revision)
        span.set_attribute(PDP, pdp)
        if decision.pdp_decision_id:
            span.set_attribute(PDP_DECISION_ID, decision.pdp_decision_id)
        if decision.reason:
            span.set_attribute(REASON, decision.reason)
        if decision.obligations:
            span.set_attribute(OBLIGATION_TYPES, sorted({o.type for o in decision.obligations}))
        # A denial is an answer, not an error; a question that could not be put, or an engine that
        # could not answer, is one.
        if decision.failure in ("mapping", "pdp"):
            _fail(span, decision.reason or decision.failure)
        if request is not None:
            context = request.context
            span.set_attribute(SUBJECT_TYPE, request.subject.type)
            span.set_attribute(ACTOR_ID, context.agent.id)
            span.set_attribute(DELEGATION_DEPTH, context.delegation.depth)
            span.set_attribute(CREDENTIAL_EPOCH, context.lease.epoch)
            if context.call is not None and context.call.id is not None:
                span.set_attribute(GEN_AI_TOOL_CALL_ID, context.call.id)
            body = request.to_json() if body is None else body
        if body is not None:
            span.set_attribute(REQUEST_HASH, hmac.digest(_HASH_KEY, body, "sha256").hex())
    except Exception:  # noqa: BLE001  (telemetry must not stop what it watches)
        _log.debug("decision not recorded", exc_info=True)


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute(ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR))
