"""Name every span, event, attribute and metric of the package.

No stable package exports the names `gen_ai.*`, which have the status Development:
https://github.com/open-telemetry/semantic-conventions-genai/tree/main/docs/gen-ai. `openinference.span.kind` is from
https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md. There is no convention for
authorization yet (semantic-conventions issue 4022), so our names have a prefix of their own.
"""

from __future__ import annotations

from typing import Final

# --- spans ---
INVOKE_AGENT: Final = "invoke_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"
EXECUTE_TOOL: Final = "execute_tool"
AUTHORIZE: Final = "authorize"

# --- attributes of other conventions ---
OPERATION_NAME: Final = "gen_ai.operation.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"  # opt-in
AGENT_NAME: Final = "gen_ai.agent.name"
AGENT_ID: Final = "gen_ai.agent.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
ERROR_TYPE: Final = "error.type"  # https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/
OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"
AGENT: Final = "AGENT"
CHAIN: Final = "CHAIN"
GUARDRAIL: Final = "GUARDRAIL"

# --- the environment variable that puts contents on spans, and the values that do so ---
CAPTURE_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
ON_SPANS: Final = frozenset({"true", "span_only", "span_and_event"})

# --- our own attributes ---
PREFIX: Final = "runtime_authz."
RUN_ID: Final = "runtime_authz.run.id"
RUN_STATE: Final = "runtime_authz.run.state"  # suspended | ended | revoked
ACTION: Final = "runtime_authz.action"
RESOURCE: Final = "runtime_authz.resource"
RESOURCE_TYPE: Final = "runtime_authz.resource.type"
DECISION: Final = "runtime_authz.decision"  # permit | deny | approval_required
DECISION_ID: Final = "runtime_authz.decision.id"
REASON: Final = "runtime_authz.reason"  # the first reason
REASONS: Final = "runtime_authz.reasons"
POLICY_REVISION: Final = "runtime_authz.policy.revision"
PDP: Final = "runtime_authz.pdp"
PDP_DECISION_ID: Final = "runtime_authz.pdp.decision.id"
SUBJECT_TYPE: Final = "runtime_authz.subject.type"
DELEGATION_DEPTH: Final = "runtime_authz.delegation.depth"
EPOCH: Final = "runtime_authz.credential.epoch"
EPOCH_BEFORE: Final = "runtime_authz.credential.epoch.before"
OBLIGATION_TYPES: Final = "runtime_authz.obligation.types"
TASK_TEXT: Final = "runtime_authz.task.text"  # opt-in
LINK: Final = "runtime_authz.link"  # of a span link: decision | question

# --- events ---
UNGATED: Final = "runtime_authz.ungated"  # no enforcement point decided what ran

# --- metrics ---
DECISIONS: Final = "runtime_authz.decisions"
DECISION_DURATION: Final = "runtime_authz.decision.duration"
ENGINE_DURATION: Final = "runtime_authz.engine.duration"
EVENTS: Final = "runtime_authz.events"
ERRORS: Final = "runtime_authz.errors"
LEASES: Final = "runtime_authz.leases"
QUESTIONS: Final = "runtime_authz.questions"
DOUBTS: Final = "runtime_authz.doubts"
EVENT: Final = "runtime_authz.event"
COMPONENT: Final = "runtime_authz.component"  # pdp | ledger | audit | identity
TENANT: Final = "runtime_authz.tenant"

# Fields of an event's audit record that a trace shows: codes, numbers, ids. Names, texts, values are in the log only.
SHOWN: Final = frozenset((
    "approval", "audience", "authenticated", "decision_id", "happened", "kind", "model", "plan", "questions", "refused",
    "source", "steps", "texts", "to", "tool", "tools", "verdict",
))  # fmt: skip
