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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

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
    "wrong_field",
]


class Code(StrEnum):
    """Stable reason codes of this package: metric labels and search keys.

    A policy may give codes of its own. A code is never renamed, and an unused one stays reserved.
    """

    sentence: str
    """What happened and what to do, for the operator."""

    def __new__(cls, code: str, sentence: str = "") -> Code:
        """Make a member of a code and its sentence."""
        member = str.__new__(cls, code)
        member._value_, member.sentence = code, sentence
        return member

    # fmt: off
    # The state cannot be expressed as a request (AuthZEN: mapping error).
    UNCANONICAL_ARGUMENT = "uncanonical_argument", "an argument has no exact JSON form; send finite numbers within 2^53, valid Unicode and JSON types"
    REQUEST_TOO_LARGE = "request_too_large", "the request for the PDP exceeds its size limit; shorten the critical arguments"
    INVALID_ARGUMENTS = "invalid_arguments", "the tool's schema refused the arguments; correct the call"
    UNREPEATABLE_ARGUMENTS = "unrepeatable_arguments", "the arguments parse differently each time, so nobody can approve them; make the defaults deterministic"
    UNKNOWN_TOOL = "unknown_tool", "the tool node has no tool of this name; register the tool or correct the call"
    # The PDP gave no usable answer (AuthZEN: PDP communication error).
    PDP_ERROR = "pdp_error", "the PDP failed; check its log and try again"
    PDP_MALFORMED = "pdp_malformed", "the PDP's answer is not a decision document; point it at an entrypoint that answers `{decision, context}`"
    PDP_TIMEOUT = "pdp_timeout", "the PDP answered after the deadline; raise the deadline or make the policy faster"
    PDP_UNREACHABLE = "pdp_unreachable", "the PDP cannot be reached; start it or correct its address"
    PDP_TLS = "pdp_tls", "the TLS handshake with the PDP failed; correct the CA file, the host name or the client certificate"
    PDP_REDIRECT = "pdp_redirect", "the PDP's address answers with a redirect, which is never followed; if you trust the target, use its address"
    PDP_UNAUTHORIZED = "pdp_unauthorized", "the PDP refused our credentials, or the token file cannot be read; renew the token"
    PDP_STATUS = "pdp_status", "the PDP answered with an HTTP error; check its log"
    PDP_PROTOCOL = "pdp_protocol", "the PDP's answer broke off or is not HTTP; check what stands between it and this process"
    PDP_TOO_LARGE = "pdp_too_large", "the PDP's answer exceeds its size limit; point it at an entrypoint that answers `{decision, context}` alone"
    PDP_UNDEFINED = "pdp_undefined", "the PDP's rule does not exist or is undefined for this request; load the policy, or give the rule a default"
    PDP_CIRCUIT_OPEN = "pdp_circuit_open", "the PDP failed so often that it is not asked for a while; repair it"
    POLICY_STALE = "policy_stale", "the policy's source could not be confirmed for too long; check where its bundle comes from"
    POLICY_CHANGED = "policy_changed", "the tool's profile and the policy are of different revisions; decide the call again"
    NOT_EVALUATED = "not_evaluated", "the PDP ended the batch before this request; ask with `execute_all`, or ask again"
    # Refused by the PEP, whatever the PDP answers.
    NO_RUN = "no_run", "the guarded tool was called outside a run; call it inside a protected graph or `authz.run(...)`"
    NO_CALL = "no_call", "no permitted call of this tool with these arguments is open; decide it first, and observe it once"
    LEASE_ENDED = "lease_ended", "the run has ended; start a new one"
    LEASE_EXPIRED = "lease_expired", "the run exceeded its maximum lifetime; start a new one"
    REVOKED = "revoked", "the run was revoked; an operator can reinstate it"
    KILLED = "killed", "the kill switch is engaged; `runtime-authz kill release` releases it"
    STALE_EPOCH = "stale_epoch", "the task changed after this step was planned; plan again"
    GRANT_EXCEEDED = "grant_exceeded", "the step lies outside the delegated grant; widen the grant where it was given"
    PROVIDER_TOOL = "provider_tool", "the model has a tool that its provider runs; allow it in `models` of data.json, or use AuthzMiddleware, which removes it"
    BUDGET_EXHAUSTED = "budget_exhausted", "the grant's budget is spent; give a larger one"
    RATE_EXCEEDED = "rate_exceeded", "the policy's rate limit is reached; wait, or raise the limit in data.json"
    CALL_IN_PROGRESS = "call_in_progress", "the same call is in progress; wait for its result"
    OUTCOME_UNKNOWN = "outcome_unknown", "the call ran before and its outcome is unknown; check the effect by hand and do not repeat the call"
    SUBJECT_MISMATCH = "subject_mismatch", "the thread belongs to another subject; use another thread"
    UNKNOWN_OBLIGATION = "unknown_obligation", "the PDP demands an obligation that this version does not know; upgrade, or change the policy"
    NOTIFY_UNAVAILABLE = "notify_unavailable", "a notification that the policy demands could not be sent; check the notifier"
    APPROVAL_UNAVAILABLE = "approval_unavailable", "the call needs an approval and nobody can be asked; compile the graph with a checkpointer"
    APPROVAL_REJECTED = "approval_rejected", "an approver rejected the call; do not repeat it without a new request by the user"
    APPROVAL_MALFORMED = "approval_malformed", "the resume value is not a list of decisions; send one {'type': 'approve'|'edit'|'reject'|'respond'} per request"
    APPROVAL_PARTIAL = "approval_partial", "the list answers only some of the calls, so none of it was applied; send one decision for each, in order, or answer single calls by `authz.approve` and `authz.deny_approval`"
    APPROVAL_SETTLED = "approval_settled", "the list rejects a call that is already approved, so none of it was applied; answer the open calls, or stop all of them by `authz.correct`"
    APPROVAL_VOID = "approval_void", "the approval is spent, expired or for another call; ask again"
    APPROVAL_EXPIRED = "approval_expired", "the approval expired before the call ran; plan the call again, or raise `approvals` in data.json"
    APPROVAL_ANSWERED = "approval_answered", "an approver answered in the tool's place, so the call did not run; use that answer"
    APPROVAL_APPROVER = "approval_approver", "this approver may not answer; ask an authenticated person whom the policy names"
    APPROVAL_NOT_DISTINCT = "approval_not_distinct", "the approver is the subject or has approved already; ask another person (four eyes)"
    APPROVAL_WAITS = "approval_waits", "the approval is recorded and another one is needed; the question stays open for the next approver"
    APPROVAL_CAPPED = "approval_capped", "the approval limit `approvals.asks` is reached; review what the run asks for"
    APPROVAL_STATEMENT = "approval_statement", "the approver's statement was altered or is for another question; sign the question that is open"
    AUDIT_UNAVAILABLE = "audit_unavailable", "the mandatory audit sink failed; repair it"
    LEDGER_UNAVAILABLE = "ledger_unavailable", "the ledger failed; repair it"
    LEDGER_TIMEOUT = "ledger_timeout", "the ledger is locked or too slow; find the process that holds it, or raise the ledger's `timeout`"
    LEDGER_SCHEMA = "ledger_schema", "this version does not support the ledger's schema; see `runtime-authz ledger migrate --help`"
    LEDGER_ROLLED_BACK = "ledger_rolled_back", "the ledger is older than a commit it has confirmed; restore the newest copy, or start a new ledger and a new audit file"
    LEDGER_CLOCK = "ledger_clock", "the clock was set back; correct it, or see `runtime-authz ledger clock --help` if it was wrong before"
    # Given by the shipped policy (policies/rego/runtime_authz.rego).
    NO_PERMIT = "no_permit", "no rule of the policy permits the step; add a rule, or use another tool"
    LEASE_INVALID = "lease_invalid", "the lease is missing, expired or of another epoch; start a new run"
    STALE_PLAN = "stale_plan", "the plan belongs to an earlier state of the task; plan again"
    UNPLANNED = "unplanned", "no recorded plan holds the call; protect the whole graph, so that the model node is seen"
    PLAN_CHANGED = "plan_changed", "the call differs from the planned one; plan it again"
    GRANT_TOOL = "grant_tool", "the grant does not hold the tool; widen the grant, or use another tool"
    GRANT_ARGUMENT = "grant_argument", "an argument lies outside the grant's constraint; widen the grant, or change the argument"
    GRANT_DATA_CLASS = "grant_data_class", "the grant does not hold the tool's data class; widen the grant, or use another tool"
    GRANT_SINK = "grant_sink", "the grant does not hold the tool's sink; widen the grant, or use another tool"
    GRANT_DEPTH = "grant_depth", "the delegation is deeper than the grant permits; raise `max_depth`, or delegate less"
    GRANT_EXPIRED = "grant_expired", "the grant has expired; give a new one"
    ANONYMOUS = "anonymous", "the subject is anonymous; open the run with `authz.run(subject=...)`"
    UNPROFILED = "unprofiled", "the tool has no reviewed profile; declare a `ToolProfile` for it"
    VERDICT = "verdict", "the tool's profile says `ask` or `deny` of each call; ask an approver, or change its `verdict`"
    EFFECT = "effect", "the policy requires an approval for this effect; ask an approver"
    NOT_ORDERED = "not_ordered", "the task's mandate has no step for this tool; ask the user, or give a mandate that orders the call"
    DEVIATES = "deviates", "the task's mandate orders this tool, but not this call; correct what deviates, or ask the user"
    FORBIDDEN = "forbidden", "the task's mandate forbids the call; do not try it again"
    DATA_FLOW = "data_flow", "the run read data that must not reach the tool's sink without an approval; ask an approver"
    DENIAL_STREAK = "denial_streak", "the run was denied too often and was revoked; review its records, then reinstate it"
    DATA_CHANGED = "data_changed", "the source of an argument changed after the plan was made; read it again and plan again"
    BURST = "burst", "the run made more calls in a minute than the policy allows and was revoked; review it, then reinstate it"
    UNPLANNED_STREAK = "unplanned_streak", "the run tried too many unplanned side effects and was revoked; review it, then reinstate it"
    TAINTED_STREAK = "tainted_streak", "the run tried too many side effects with arguments from outside and was revoked; review what it read"
    ROTATIONS = "rotations", "the task was changed too often by others, so the run was revoked; check who changes it"
    TOO_DEEP = "too_deep", "the delegation is deeper than the policy allows; flatten the graph, or raise `anomaly.max_depth`"
    STEP_BUDGET = "step_budget", "the entry took as many steps as the policy allows; enter the graph again"
    TIME_BUDGET = "time_budget", "the entry took as long as the policy allows; enter the graph again"
    MODEL = "model", "the policy does not list the model or its provider; add it to `models` in data.json"
    UNKNOWN_ACTION = "unknown_action", "the policy has no rule for this action or resource type; add one"
    # Credentials and configuration.
    CREDENTIAL_UNAVAILABLE = "credential_unavailable", "no permitted call is running, so no credential is issued; ask inside the tool, while it runs"
    CREDENTIAL_INVALID = "credential_invalid", "the token was altered or is not one of ours; send the token of the running call"
    CREDENTIAL_REVOKED = "credential_revoked", "the token's call, task or run is over; start a new call"
    CREDENTIAL_EXPIRED = "credential_expired", "the token has expired; use it inside the call for which it was minted"
    CREDENTIAL_NOT_YET_VALID = "credential_not_yet_valid", "the token is not valid yet; synchronise the clocks of issuer and verifier"
    CREDENTIAL_TENANT = "credential_tenant", "the token is of another tenant; use this tenant's instance"
    CREDENTIAL_KEY = "credential_key", "the token's key is unknown, withdrawn or compromised; check the issuer's key set"
    CREDENTIAL_TOOL = "credential_tool", "the token was minted for a call of another tool; send the token of this tool's call"
    CREDENTIAL_CALL = "credential_call", "the token was minted for another call of the tool (step, standing or arguments); send the token of this very call"
    CREDENTIAL_MISSING = "credential_missing", "the request has no credential; send the token of the running call"
    KEYS_UNAVAILABLE = "keys_unavailable", "the issuer's keys cannot be read; check its JWKS endpoint and the key directory"
    STATUS_UNAVAILABLE = "status_unavailable", "the token's status cannot be looked up; repair the ledger or the introspection endpoint"
    PROOF_MISSING = "proof_missing", "the token is bound to a key and came without a proof; send it with the DPoP scheme and a proof"
    PROOF_INVALID = "proof_invalid", "the DPoP proof is not for this request, token and key; make a proof for this request"
    PROOF_REPLAYED = "proof_replayed", "the DPoP proof was used before; make a new one for each request"
    PROOF_NONCE = "proof_nonce", "the DPoP proof lacks the server's current nonce; repeat the request with the nonce of this answer"
    PROOF_LIMIT = "proof_limit", "one key proved more requests than the server remembers; wait, send fewer in one call, or raise `max_per_key`"
    EXCHANGE_REFUSED = "exchange_refused", "the token endpoint refused the exchange; check its policy for this client and audience"
    EXCHANGE_FAILED = "exchange_failed", "the token endpoint's answer does not follow RFC 8693; check its log"
    IDENTITY_INVALID = "identity_invalid", "the identity token was refused (issuer, audience, type, signature or lifetime); sign in again"
    IDENTITY_UNAVAILABLE = "identity_unavailable", "the identity provider cannot be asked; check its discovery document and key set"
    AUDIENCE = "audience", "the audience is not in the tool's profile or not in the grant; add it there"
    CHAIN_BROKEN = "chain_broken", "the audit chain does not verify; keep it as evidence and compare it with a copy"
    CONFIG = "config", "a setting is wrong; correct it"
    POLICY_INVALID = "policy_invalid", "the policy cannot be loaded; correct it"
    POLICY_UNSIGNED = "policy_unsigned", "no trusted key signed the policy; sign it with `runtime-authz policy build --key`"
    POLICY_OLDER = "policy_older", "the policy is older than the one in use; to undo a change, release the old content under a new number"
    PROFILE_INVALID = "profile_invalid", "a tool profile is wrong; correct it"
    MANDATE_INVALID = "mandate_invalid", "the mandate cannot be read or contradicts itself; correct it"
    ALREADY_PROTECTED = "already_protected", "another RuntimeAuthz protects this graph; use that one, or build the graph again"
    DEEP_COPY = "deep_copy", "compiled graphs cannot be deep-copied; use `graph.copy()`, which stays protected, or compile the builder again"
    UNGOVERNED = "ungoverned", "no enforcement point stands in front of it; follow its note, or accept it in a baseline"
    BASELINE_INVALID = "baseline_invalid", "the baseline cannot be used; write it again with `runtime-authz inspect --write-baseline`"
    # fmt: on


def sentence(code: str) -> str:
    """Return the sentence for the operator. A policy's own code is quoted."""
    try:
        return Code(code).sentence
    except ValueError:
        return f"the policy gave the reason `{code}`"


def wrong_field(exc: ValidationError, whole: str = "") -> str:
    """Return the first field that a model refuses, and why: "`a.b`: …". `whole` is the name of the model itself."""
    first = exc.errors()[0]
    # Skip a union's own parts: they are not names of a field.
    name = ".".join(part for part in map(str, first["loc"]) if "[" not in part) or whole
    return f"`{name}`: {first['msg']}" if name else first["msg"]


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
    """Return the code of a failed commit, or of a failed record of it."""
    return Code(exc.code) if isinstance(exc, LedgerError | AuditError) else Code.LEDGER_UNAVAILABLE


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
