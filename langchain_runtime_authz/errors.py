"""Every stable code and every exception of the package.

```
AuthzError                 a code, with a sentence for the operator
├── ConfigError            a constructor's argument or a setting is wrong
│   └── AlreadyProtected   the graph belongs to another `RuntimeAuthz`
├── MappingError           the state cannot be expressed as a request (a deny)
├── CredentialError        a token was refused
├── PDPError               the PDP could not be asked, or its answer not be read (a deny)
├── AuditError             a record could not be written, or a chain does not verify
├── LedgerError            the ledger cannot be used (a deny)
└── AuthzDenied            a step was denied and no message can carry the answer
```

A denial that a message can carry is a *value* (`authzen.Decision`), not an exception.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Final

__all__ = [
    "AlreadyProtected",
    "AuditError",
    "AuthzDenied",
    "AuthzError",
    "Code",
    "ConfigError",
    "CredentialError",
    "LedgerError",
    "MappingError",
    "PDPError",
    "ledger_code",
    "sentence",
    "unreadable",
]


class Code(StrEnum):
    """Stable reason codes of this package: metric labels and search keys.

    A policy may give codes of its own. A code is never renamed, and an unused one stays reserved.
    """

    # The state cannot be expressed as a request (AuthZEN: mapping error).
    UNCANONICAL_ARGUMENT = "uncanonical_argument"
    REQUEST_TOO_LARGE = "request_too_large"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNREPEATABLE_ARGUMENTS = "unrepeatable_arguments"
    UNKNOWN_TOOL = "unknown_tool"
    # The PDP gave no usable answer (AuthZEN: PDP communication error).
    PDP_ERROR = "pdp_error"
    PDP_MALFORMED = "pdp_malformed"
    PDP_TIMEOUT = "pdp_timeout"
    PDP_UNREACHABLE = "pdp_unreachable"
    PDP_TLS = "pdp_tls"
    PDP_REDIRECT = "pdp_redirect"
    PDP_UNAUTHORIZED = "pdp_unauthorized"
    PDP_STATUS = "pdp_status"
    PDP_PROTOCOL = "pdp_protocol"
    PDP_TOO_LARGE = "pdp_too_large"
    PDP_UNDEFINED = "pdp_undefined"
    PDP_CIRCUIT_OPEN = "pdp_circuit_open"
    POLICY_STALE = "policy_stale"
    POLICY_CHANGED = "policy_changed"
    NOT_EVALUATED = "not_evaluated"
    # Refused by the PEP, whatever the PDP answers.
    NO_RUN = "no_run"
    NO_CALL = "no_call"
    LEASE_ENDED = "lease_ended"
    LEASE_EXPIRED = "lease_expired"
    REVOKED = "revoked"
    KILLED = "killed"
    STALE_EPOCH = "stale_epoch"
    GRANT_EXCEEDED = "grant_exceeded"
    PROVIDER_TOOL = "provider_tool"
    BUDGET_EXHAUSTED = "budget_exhausted"
    RATE_EXCEEDED = "rate_exceeded"
    CALL_IN_PROGRESS = "call_in_progress"
    OUTCOME_UNKNOWN = "outcome_unknown"
    SUBJECT_MISMATCH = "subject_mismatch"
    UNKNOWN_OBLIGATION = "unknown_obligation"
    NOTIFY_UNAVAILABLE = "notify_unavailable"
    APPROVAL_UNAVAILABLE = "approval_unavailable"
    APPROVAL_REJECTED = "approval_rejected"
    APPROVAL_MALFORMED = "approval_malformed"
    APPROVAL_PARTIAL = "approval_partial"
    APPROVAL_SETTLED = "approval_settled"
    APPROVAL_VOID = "approval_void"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_ANSWERED = "approval_answered"
    APPROVAL_APPROVER = "approval_approver"
    APPROVAL_NOT_DISTINCT = "approval_not_distinct"
    APPROVAL_WAITS = "approval_waits"
    APPROVAL_CAPPED = "approval_capped"
    APPROVAL_STATEMENT = "approval_statement"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    LEDGER_TIMEOUT = "ledger_timeout"
    LEDGER_SCHEMA = "ledger_schema"
    LEDGER_ROLLED_BACK = "ledger_rolled_back"
    LEDGER_CLOCK = "ledger_clock"
    # Given by the shipped policy (policies/rego/runtime_authz.rego).
    NO_PERMIT = "no_permit"
    LEASE_INVALID = "lease_invalid"
    STALE_PLAN = "stale_plan"
    UNPLANNED = "unplanned"
    PLAN_CHANGED = "plan_changed"
    UNLISTED = "unlisted"
    REPEATED = "repeated"
    GRANT_TOOL = "grant_tool"
    GRANT_ARGUMENT = "grant_argument"
    GRANT_DATA_CLASS = "grant_data_class"
    GRANT_SINK = "grant_sink"
    GRANT_DEPTH = "grant_depth"
    GRANT_EXPIRED = "grant_expired"
    ANONYMOUS = "anonymous"
    UNPROFILED = "unprofiled"
    EFFECT = "effect"
    NOT_ASKED = "not_asked"
    ARGUMENT_SOURCE = "argument_source"
    DATA_FLOW = "data_flow"
    DENIAL_STREAK = "denial_streak"
    DATA_CHANGED = "data_changed"
    BURST = "burst"
    UNPLANNED_STREAK = "unplanned_streak"
    TAINTED_STREAK = "tainted_streak"
    ROTATIONS = "rotations"
    TOO_DEEP = "too_deep"
    STEP_BUDGET = "step_budget"
    TIME_BUDGET = "time_budget"
    MODEL = "model"
    UNKNOWN_ACTION = "unknown_action"
    # Credentials and configuration.
    CREDENTIAL_UNAVAILABLE = "credential_unavailable"
    CREDENTIAL_INVALID = "credential_invalid"
    CREDENTIAL_REVOKED = "credential_revoked"
    CREDENTIAL_EXPIRED = "credential_expired"
    CREDENTIAL_NOT_YET_VALID = "credential_not_yet_valid"
    CREDENTIAL_TENANT = "credential_tenant"
    CREDENTIAL_KEY = "credential_key"
    CREDENTIAL_TOOL = "credential_tool"
    CREDENTIAL_MISSING = "credential_missing"
    KEYS_UNAVAILABLE = "keys_unavailable"
    STATUS_UNAVAILABLE = "status_unavailable"
    PROOF_MISSING = "proof_missing"
    PROOF_INVALID = "proof_invalid"
    PROOF_REPLAYED = "proof_replayed"
    PROOF_NONCE = "proof_nonce"
    PROOF_LIMIT = "proof_limit"
    EXCHANGE_REFUSED = "exchange_refused"
    EXCHANGE_FAILED = "exchange_failed"
    IDENTITY_INVALID = "identity_invalid"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    AUDIENCE = "audience"
    CHAIN_BROKEN = "chain_broken"
    CONFIG = "config"
    POLICY_INVALID = "policy_invalid"
    POLICY_UNSIGNED = "policy_unsigned"
    POLICY_OLDER = "policy_older"
    PROFILE_INVALID = "profile_invalid"
    ALREADY_PROTECTED = "already_protected"
    DEEP_COPY = "deep_copy"
    UNGOVERNED = "ungoverned"
    BASELINE_INVALID = "baseline_invalid"


_SENTENCES: Final[dict[Code, str]] = {
    Code.UNCANONICAL_ARGUMENT: "an argument has no exact JSON form; send finite numbers within 2^53, valid Unicode and JSON types",
    Code.REQUEST_TOO_LARGE: "the request for the PDP exceeds its size limit; shorten the critical arguments",
    Code.INVALID_ARGUMENTS: "the tool's schema refused the arguments; correct the call",
    Code.UNREPEATABLE_ARGUMENTS: "the arguments parse differently each time, so nobody can approve them; make the defaults deterministic",
    Code.UNKNOWN_TOOL: "the tool node has no tool of this name; register the tool or correct the call",
    Code.PDP_ERROR: "the PDP failed; check its log and try again",
    Code.PDP_MALFORMED: "the PDP's answer is not a decision document; point it at an entrypoint that answers `{decision, context}`",
    Code.PDP_TIMEOUT: "the PDP answered after the deadline; raise the deadline or make the policy faster",
    Code.PDP_UNREACHABLE: "the PDP cannot be reached; start it or correct its address",
    Code.PDP_TLS: "the TLS handshake with the PDP failed; correct the CA file, the host name or the client certificate",
    Code.PDP_REDIRECT: "the PDP's address answers with a redirect, which is never followed; if you trust the target, use its address",
    Code.PDP_UNAUTHORIZED: "the PDP refused our credentials, or the token file cannot be read; renew the token",
    Code.PDP_STATUS: "the PDP answered with an HTTP error; check its log",
    Code.PDP_PROTOCOL: "the PDP's answer broke off or is not HTTP; check what stands between it and this process",
    Code.PDP_TOO_LARGE: "the PDP's answer exceeds its size limit; point it at an entrypoint that answers `{decision, context}` alone",
    Code.PDP_UNDEFINED: "the PDP's rule does not exist or is undefined for this request; load the policy, or give the rule a default",
    Code.PDP_CIRCUIT_OPEN: "the PDP failed so often that it is not asked for a while; repair it",
    Code.NOT_EVALUATED: "the PDP ended the batch before this request; ask with `execute_all`, or ask again",
    Code.NO_RUN: "the guarded tool was called outside a run; call it inside a protected graph or `authz.run(...)`",
    Code.NO_CALL: "no permitted call of this tool with these arguments is open; decide it first, and observe it once",
    Code.LEASE_ENDED: "the run has ended; start a new one",
    Code.LEASE_EXPIRED: "the run exceeded its maximum lifetime; start a new one",
    Code.REVOKED: "the run was revoked; an operator can reinstate it",
    Code.KILLED: "the kill switch is engaged; `runtime-authz kill release` releases it",
    Code.STALE_EPOCH: "the task changed after this step was planned; plan again",
    Code.GRANT_EXCEEDED: "the step lies outside the delegated grant; widen the grant where it was given",
    Code.PROVIDER_TOOL: "the model has a tool that its provider runs; allow it in `models` of data.json, or use AuthzMiddleware, which removes it",
    Code.BUDGET_EXHAUSTED: "the grant's budget is spent; give a larger one",
    Code.RATE_EXCEEDED: "the policy's rate limit is reached; wait, or raise the limit in data.json",
    Code.CALL_IN_PROGRESS: "the same call is in progress; wait for its result",
    Code.OUTCOME_UNKNOWN: "the call ran before and its outcome is unknown; check the effect by hand and do not repeat the call",
    Code.SUBJECT_MISMATCH: "the thread belongs to another subject; use another thread",
    Code.UNKNOWN_OBLIGATION: "the PDP demands an obligation that this version does not know; upgrade, or change the policy",
    Code.APPROVAL_UNAVAILABLE: "the call needs an approval and nobody can be asked; compile the graph with a checkpointer",
    Code.APPROVAL_REJECTED: "an approver rejected the call; do not repeat it without a new request by the user",
    Code.APPROVAL_MALFORMED: "the resume value is not a list of decisions; send one {'type': 'approve'|'edit'|'reject'|'respond'} per request",
    Code.APPROVAL_PARTIAL: "the list answers only some of the calls, so none of it was applied; send one decision for each, in order, or answer single calls by `authz.approve` and `authz.deny_approval`",
    Code.APPROVAL_SETTLED: "the list rejects a call that is already approved, so none of it was applied; answer the open calls, or stop all of them by `authz.correct`",
    Code.APPROVAL_VOID: "the approval is spent, expired or for another call; ask again",
    Code.APPROVAL_EXPIRED: "the approval expired before the call ran; plan the call again, or raise `approvals` in data.json",
    Code.APPROVAL_ANSWERED: "an approver answered in the tool's place, so the call did not run; use that answer",
    Code.APPROVAL_APPROVER: "this approver may not answer; ask an authenticated person whom the policy names",
    Code.APPROVAL_NOT_DISTINCT: "the approver is the subject or has approved already; ask another person (four eyes)",
    Code.APPROVAL_WAITS: "the approval is recorded and another one is needed; the question stays open for the next approver",
    Code.APPROVAL_CAPPED: "the approval limit `approvals.asks` is reached; review what the run asks for",
    Code.APPROVAL_STATEMENT: "the approver's statement was altered or is for another question; sign the question that is open",
    Code.IDENTITY_INVALID: "the identity token was refused (issuer, audience, type, signature or lifetime); sign in again",
    Code.IDENTITY_UNAVAILABLE: "the identity provider cannot be asked; check its discovery document and key set",
    Code.AUDIT_UNAVAILABLE: "the mandatory audit sink failed; repair it",
    Code.LEDGER_UNAVAILABLE: "the ledger failed; repair it",
    Code.LEDGER_TIMEOUT: "the ledger is locked or too slow; find the process that holds it, or raise the ledger's `timeout`",
    Code.LEDGER_SCHEMA: "this version does not support the ledger's schema; see `runtime-authz ledger migrate --help`",
    Code.LEDGER_ROLLED_BACK: "the ledger is older than a commit it has confirmed; restore the newest copy, or start a new ledger and a new audit file",
    Code.LEDGER_CLOCK: "the clock was set back; correct it, or see `runtime-authz ledger clock --help` if it was wrong before",
    Code.NO_PERMIT: "no rule of the policy permits the step; add a rule, or use another tool",
    Code.LEASE_INVALID: "the lease is missing, expired or of another epoch; start a new run",
    Code.STALE_PLAN: "the plan belongs to an earlier state of the task; plan again",
    Code.UNPLANNED: "no recorded plan holds the call; protect the whole graph, so that the model node is seen",
    Code.UNLISTED: "the agent's to-do list does not have the call; list it first, or ask the user",
    Code.REPEATED: "the task has already had this effect; do not repeat it, or ask the user",
    Code.PLAN_CHANGED: "the call differs from the planned one; plan it again",
    Code.GRANT_TOOL: "the grant does not hold the tool; widen the grant, or use another tool",
    Code.GRANT_ARGUMENT: "an argument lies outside the grant's constraint; widen the grant, or change the argument",
    Code.GRANT_DATA_CLASS: "the grant does not hold the tool's data class; widen the grant, or use another tool",
    Code.GRANT_SINK: "the grant does not hold the tool's sink; widen the grant, or use another tool",
    Code.GRANT_DEPTH: "the delegation is deeper than the grant permits; raise `max_depth`, or delegate less",
    Code.GRANT_EXPIRED: "the grant has expired; give a new one",
    Code.ANONYMOUS: "the subject is anonymous; open the run with `authz.run(subject=...)`",
    Code.UNPROFILED: "the tool has no reviewed profile; declare a `ToolProfile` for it",
    Code.EFFECT: "the policy requires an approval for this effect; ask an approver",
    Code.NOT_ASKED: "the task does not ask for the tool's effect; compare the `intent` words of its profile with the task",
    Code.ARGUMENT_SOURCE: "an argument that decides whom or what the call hits comes neither from the user nor from a trusted source; ask the user",
    Code.DATA_FLOW: "the run read data that must not reach the tool's sink without an approval; ask an approver",
    Code.DENIAL_STREAK: "the run was denied too often and was revoked; review its records, then reinstate it",
    Code.DATA_CHANGED: "the source of an argument changed after the plan was made; read it again and plan again",
    Code.BURST: "the run made more calls in a minute than the policy allows and was revoked; review it, then reinstate it",
    Code.UNPLANNED_STREAK: "the run tried too many unplanned side effects and was revoked; review it, then reinstate it",
    Code.TAINTED_STREAK: "the run tried too many side effects with arguments from outside and was revoked; review what it read",
    Code.ROTATIONS: "the task was changed too often by others, so the run was revoked; check who changes it",
    Code.TOO_DEEP: "the delegation is deeper than the policy allows; flatten the graph, or raise `anomaly.max_depth`",
    Code.STEP_BUDGET: "the entry took as many steps as the policy allows; enter the graph again",
    Code.TIME_BUDGET: "the entry took as long as the policy allows; enter the graph again",
    Code.MODEL: "the policy does not list the model or its provider; add it to `models` in data.json",
    Code.UNKNOWN_ACTION: "the policy has no rule for this action or resource type; add one",
    Code.CREDENTIAL_UNAVAILABLE: "no permitted call is running, so no credential is issued; ask inside the tool, while it runs",
    Code.CREDENTIAL_INVALID: "the token was altered or is not one of ours; send the token of the running call",
    Code.CREDENTIAL_REVOKED: "the token's call, task or run is over; start a new call",
    Code.CREDENTIAL_EXPIRED: "the token has expired; use it inside the call for which it was minted",
    Code.CREDENTIAL_NOT_YET_VALID: "the token is not valid yet; synchronise the clocks of issuer and verifier",
    Code.CREDENTIAL_TENANT: "the token is of another tenant; use this tenant's instance",
    Code.CREDENTIAL_KEY: "the token's key is unknown, withdrawn or compromised; check the issuer's key set",
    Code.CREDENTIAL_TOOL: "the token was minted for a call of another tool; send the token of this tool's call",
    Code.CREDENTIAL_MISSING: "the request has no credential; send the token of the running call",
    Code.KEYS_UNAVAILABLE: "the issuer's keys cannot be read; check its JWKS endpoint and the key directory",
    Code.STATUS_UNAVAILABLE: "the token's status cannot be looked up; repair the ledger or the introspection endpoint",
    Code.PROOF_MISSING: "the token is bound to a key and came without a proof; send it with the DPoP scheme and a proof",
    Code.PROOF_INVALID: "the DPoP proof is not for this request, token and key; make a proof for this request",
    Code.PROOF_REPLAYED: "the DPoP proof was used before; make a new one for each request",
    Code.PROOF_NONCE: "the DPoP proof lacks the server's current nonce; repeat the request with the nonce of this answer",
    Code.PROOF_LIMIT: "one key proved more requests than the server remembers; wait, send fewer in one call, or raise `max_per_key`",
    Code.EXCHANGE_REFUSED: "the token endpoint refused the exchange; check its policy for this client and audience",
    Code.EXCHANGE_FAILED: "the token endpoint's answer does not follow RFC 8693; check its log",
    Code.AUDIENCE: "the audience is not in the tool's profile or not in the grant; add it there",
    Code.CHAIN_BROKEN: "the audit chain does not verify; keep it as evidence and compare it with a copy",
    Code.CONFIG: "a setting is wrong; correct it",
    Code.POLICY_INVALID: "the policy cannot be loaded; correct it",
    Code.POLICY_UNSIGNED: "no trusted key signed the policy; sign it with `runtime-authz policy build --key`",
    Code.POLICY_OLDER: "the policy is older than the one in use; to undo a change, release the old content under a new number",
    Code.POLICY_STALE: "the policy's source could not be confirmed for too long; check where its bundle comes from",
    Code.POLICY_CHANGED: "the tool's profile and the policy are of different revisions; decide the call again",
    Code.NOTIFY_UNAVAILABLE: "a notification that the policy demands could not be sent; check the notifier",
    Code.PROFILE_INVALID: "a tool profile is wrong; correct it",
    Code.UNGOVERNED: "no enforcement point stands in front of it; follow its note, or accept it in a baseline",
    Code.BASELINE_INVALID: "the baseline cannot be used; write it again with `runtime-authz inspect --write-baseline`",
    Code.ALREADY_PROTECTED: "another RuntimeAuthz protects this graph; use that one, or build the graph again",
    Code.DEEP_COPY: "compiled graphs cannot be deep-copied; use `graph.copy()`, which stays protected, or compile the builder again",
}


def sentence(code: str) -> str:
    """Return the sentence for the operator. A policy's own code is quoted."""
    try:
        return _SENTENCES[Code(code)]
    except ValueError:
        return f"the policy gave the reason `{code}`"


def unreadable(exc: Exception) -> str:
    """Return why a text, JSON or YAML file cannot be used: the place and the reason."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    if isinstance(exc, UnicodeDecodeError):
        return f"byte {exc.start} is not UTF-8"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    if isinstance(exc, json.JSONDecodeError):
        return f"line {exc.lineno}, column {exc.colno}: {exc.msg}"
    if (
        mark := getattr(exc, "problem_mark", None)
    ) is not None:  # a `yaml.MarkedYAMLError`, recognised without importing PyYAML
        return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(exc, 'problem', None)}"
    return str(exc) or type(exc).__name__


class AuthzError(Exception):
    """The base of every exception that this package raises on purpose.

    Attributes:
        code: a stable reason code (`Code`, or a policy's own).
        detail: what the error is about; `None` if the code says all.
    """

    def __init__(self, code: str, detail: str | None = None) -> None:
        self.code = str(code)
        self.detail = detail
        text = sentence(code)
        super().__init__(f"{self.code}: {detail}: {text}" if detail else f"{self.code}: {text}")


class ConfigError(AuthzError):
    """A constructor's argument or a setting is wrong; nothing was changed."""

    def __init__(self, detail: str, code: str = Code.CONFIG) -> None:
        super().__init__(code, detail)


class AlreadyProtected(ConfigError):
    """The graph is protected by another `RuntimeAuthz`."""

    def __init__(self, graph: str) -> None:
        super().__init__(f"graph `{graph}`", Code.ALREADY_PROTECTED)


class MappingError(AuthzError):
    """The execution state cannot be expressed exactly as a request: always a deny."""


class PDPError(AuthzError):
    """A PDP could not be asked, or its answer could not be read: always a deny, with this code."""


class CredentialError(AuthzError):
    """A token was refused, or none may be issued."""


class AuditError(AuthzError):
    """A record could not be written, or a chain does not verify."""


class LedgerError(AuthzError):
    """The ledger cannot be used: the step is denied with this code."""


def ledger_code(exc: BaseException) -> Code:
    """Return the code of a ledger's failure."""
    return Code(exc.code) if isinstance(exc, LedgerError) else Code.LEDGER_UNAVAILABLE


class AuthzDenied(AuthzError):
    """A step was denied and no message can carry the answer.

    The text is neutral, because it may reach a model. Code and reason are attributes for the operator.

    Attributes:
        code: the first reason's code.
        decision_id: the id that finds the audit record.
    """

    def __init__(self, code: str, decision_id: str) -> None:
        Exception.__init__(self, f"not permitted (decision {decision_id})")
        self.code = str(code)
        self.decision_id = decision_id

    def __reduce__(self) -> tuple[type[AuthzDenied], tuple[str, str]]:
        return type(self), (self.code, self.decision_id)
