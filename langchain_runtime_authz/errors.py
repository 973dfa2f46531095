"""Every stable code and every exception of the package, in one place.

```
AuthzError                 a code, and one sentence that says what to do
├── ConfigError            something given at construction is wrong
│   └── AlreadyProtected   the graph belongs to another `RuntimeAuthz`
├── MappingError           the state can not be expressed as a request (a deny)
├── CredentialError        a token was refused
├── PDPError               a PDP could not be asked, or its answer not be read (a deny)
├── AuditError             a record could not be written, or a chain does not verify
├── LedgerError            the ledger can not be used (a deny)
└── AuthzDenied            a step was denied where no message can carry the answer
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
    """The stable reason codes that this package itself gives.

    Low in cardinality on purpose: they are metric labels and search keys. A foreign policy may
    give codes of its own. A code is never renamed; a code no longer used stays reserved.
    """

    # The state can not be put to the PDP (AuthZEN: mapping error).
    UNCANONICAL_ARGUMENT = "uncanonical_argument"
    REQUEST_TOO_LARGE = "request_too_large"
    INVALID_ARGUMENTS = "invalid_arguments"
    UNREPEATABLE_ARGUMENTS = "unrepeatable_arguments"
    UNKNOWN_TOOL = "unknown_tool"
    # The PDP can not be believed (AuthZEN: PDP communication error).
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
    # Not left to policy: the PEP refuses whatever the PDP says.
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
    Code.INVALID_ARGUMENTS: "the tool's own schema refused the arguments; correct the call",
    Code.UNREPEATABLE_ARGUMENTS: "the arguments parse differently each time, so a human can not approve them; make the defaults deterministic",
    Code.UNKNOWN_TOOL: "no such tool is registered with the tool node; register it or correct the call",
    Code.PDP_ERROR: "the PDP failed; look at its log and try again",
    Code.PDP_MALFORMED: "the PDP's answer is not a decision document; point it at an entrypoint that answers `{decision, context}`",
    Code.PDP_TIMEOUT: "the PDP answered after the deadline; raise the deadline or make the policy faster",
    Code.PDP_UNREACHABLE: "no connection to the PDP; start it, or correct its address",
    Code.PDP_TLS: "the PDP's certificate was not believed, or it did not believe ours; correct the CA file, the name or the client certificate",
    Code.PDP_REDIRECT: "the PDP's address answers with a redirect, which is never followed; give the address that it points to, if you trust it",
    Code.PDP_UNAUTHORIZED: "the PDP refused our credentials, or the token file can not be read; renew the token",
    Code.PDP_STATUS: "the PDP answered with an HTTP error; look at its log",
    Code.PDP_PROTOCOL: "the PDP's answer broke off or is no HTTP; look for what stands between it and us",
    Code.PDP_TOO_LARGE: "the PDP's answer exceeds its size limit; point it at an entrypoint that answers `{decision, context}`",
    Code.PDP_UNDEFINED: "the PDP has no such rule, or the rule is undefined for this request; load the policy, or give the rule a default",
    Code.PDP_CIRCUIT_OPEN: "the PDP failed so often that it is not asked for a while; repair it",
    Code.NOT_EVALUATED: "the PDP ended the batch before this request; ask with `execute_all`, or ask again",
    Code.NO_RUN: "the guarded tool was called outside a run; call it inside a protected graph or `authz.run(...)`",
    Code.NO_CALL: "no permitted call of this tool with these arguments is open; decide it first, and observe it once",
    Code.LEASE_ENDED: "the run has ended; start a new one",
    Code.LEASE_EXPIRED: "the run outlived its maximum lifetime; start a new one",
    Code.REVOKED: "the run was revoked; an operator can reinstate it",
    Code.KILLED: "the kill switch is engaged; `runtime-authz kill release` lifts it",
    Code.STALE_EPOCH: "the task changed after this step was planned; plan again",
    Code.GRANT_EXCEEDED: "the step lies outside the grant that was delegated; widen the grant where it was given",
    Code.PROVIDER_TOOL: "the model is shown a tool that its provider runs; allow it in `models` of data.json, or use AuthzMiddleware, which takes it out",
    Code.BUDGET_EXHAUSTED: "the grant's budget is spent; give a larger one",
    Code.RATE_EXCEEDED: "the rate limit of the policy is reached; wait or raise the limit in data.json",
    Code.CALL_IN_PROGRESS: "the same call is already under way; wait for its result",
    Code.OUTCOME_UNKNOWN: "the call ran before and its outcome is unknown; check the effect by hand, do not repeat",
    Code.SUBJECT_MISMATCH: "the thread belongs to another subject; use a thread of your own",
    Code.UNKNOWN_OBLIGATION: "the PDP demands an obligation that this PEP does not know; upgrade or change the policy",
    Code.APPROVAL_UNAVAILABLE: "an approval is needed but nobody can be asked; compile the graph with a checkpointer",
    Code.APPROVAL_REJECTED: "a human rejected the call",
    Code.APPROVAL_MALFORMED: "the resume value is not a list of decisions; send one {'type': 'approve'|'edit'|'reject'|'respond'} per request",
    Code.APPROVAL_PARTIAL: "the list answers only some of the calls that were asked about, and nothing of it was taken; send one decision for each, in order, or answer single calls by `authz.approve` and `authz.deny_approval`",
    Code.APPROVAL_SETTLED: "the list rejects a call that somebody approved already, and nothing of it was taken; answer what is open, or stop the whole by `authz.correct`",
    Code.APPROVAL_VOID: "the approval is spent, expired or for another call; ask again",
    Code.APPROVAL_EXPIRED: "the approval expired before the call was made; plan the call anew, or raise `approvals` in data.json",
    Code.APPROVAL_ANSWERED: "a human answered in the tool's place, so the call was not made",
    Code.APPROVAL_APPROVER: "the approver is not one who may answer this; a person whom the policy names, authenticated, must",
    Code.APPROVAL_NOT_DISTINCT: "four eyes: another person than the subject and than those who approved already must approve",
    Code.APPROVAL_WAITS: "the approval is recorded, and another approver is needed; the question stays open",
    Code.APPROVAL_CAPPED: "the run or its subject asked for more approvals than `approvals.asks` of the policy bears; look at what it asks",
    Code.APPROVAL_STATEMENT: "the approver's statement is not one for this question, or was altered",
    Code.IDENTITY_INVALID: "the token does not prove who calls: another issuer, audience or kind, altered or expired",
    Code.IDENTITY_UNAVAILABLE: "the identity provider can not be asked; look at its discovery document and key set",
    Code.AUDIT_UNAVAILABLE: "the mandatory audit sink failed; repair it",
    Code.LEDGER_UNAVAILABLE: "the ledger failed; repair it",
    Code.LEDGER_TIMEOUT: "the ledger is locked or too slow; look for who holds it, or raise the ledger's `timeout`",
    Code.LEDGER_SCHEMA: "this version can not work on the schema that the ledger has; see `runtime-authz ledger migrate --help`",
    Code.LEDGER_ROLLED_BACK: "the ledger is older than what it has confirmed before; restore the newest copy, or begin a new ledger and a new audit file",
    Code.LEDGER_CLOCK: "the clock was set back; set it right, or see `runtime-authz ledger clock --help` where it was wrong before",
    Code.NO_PERMIT: "no rule of the policy permits the step",
    Code.LEASE_INVALID: "the lease is missing, expired or of another epoch",
    Code.STALE_PLAN: "the plan belongs to an older task",
    Code.UNPLANNED: "no recorded plan holds the call; protect the graph so that the model node is seen",
    Code.UNLISTED: "the agent's own to-do list does not have it; put it there first, or ask the human",
    Code.REPEATED: "the same was done before for this task; do not do it again, or ask the human",
    Code.PLAN_CHANGED: "the call differs from the one that was planned; plan it anew",
    Code.GRANT_TOOL: "the grant does not hold the tool",
    Code.GRANT_ARGUMENT: "an argument lies outside the grant's constraint",
    Code.GRANT_DATA_CLASS: "the grant does not hold the tool's data class",
    Code.GRANT_SINK: "the grant does not hold the tool's sink",
    Code.GRANT_DEPTH: "the delegation is deeper than the grant permits",
    Code.GRANT_EXPIRED: "the grant has expired",
    Code.ANONYMOUS: "the subject is anonymous; open the run with `authz.run(subject=...)`",
    Code.UNPROFILED: "the tool has no reviewed profile; declare a `ToolProfile` for it",
    Code.EFFECT: "the policy does not permit this effect without an approval",
    Code.NOT_ASKED: "the task does not ask for what the tool does; the `intent` words of its profile say when it would",
    Code.ARGUMENT_SOURCE: "an argument that decides whom or what the call hits was not said by the human, nor by a source that counts",
    Code.DATA_FLOW: "data of a class read in this run must not reach the tool's sink without an approval",
    Code.DENIAL_STREAK: "the run was denied so often that the policy revoked it; look at its records, then reinstate",
    Code.DATA_CHANGED: "what an argument was read from changed since the plan was made; read it again and plan again",
    Code.BURST: "the run made more calls in a minute than the policy bears and was revoked; look at it, then reinstate it",
    Code.UNPLANNED_STREAK: "the run tried too many side effects that no plan held and was revoked; look at it, then reinstate it",
    Code.TAINTED_STREAK: "the run tried too many side effects with arguments from outside and was revoked; look at what it read",
    Code.ROTATIONS: "others changed the task again and again and nothing came of it; the run was revoked, look at who does",
    Code.TOO_DEEP: "the agent is delegated too deep for this policy; flatten the graph or raise `anomaly.max_depth`",
    Code.STEP_BUDGET: "this entry took as many steps as the policy bears; enter the graph anew",
    Code.TIME_BUDGET: "this entry took as long as the policy bears; enter the graph anew",
    Code.MODEL: "the policy does not list the model or its provider; add it to `models` in data.json",
    Code.UNKNOWN_ACTION: "the policy has no rule for this action or resource type",
    Code.CREDENTIAL_UNAVAILABLE: "there is no permitted call to issue a credential for; ask inside the tool, while it runs",
    Code.CREDENTIAL_INVALID: "the token is not one of ours, or was altered",
    Code.CREDENTIAL_REVOKED: "the token's call, task or run is over",
    Code.CREDENTIAL_EXPIRED: "the token has expired; use it within its life, inside the call it was minted for",
    Code.CREDENTIAL_NOT_YET_VALID: "the token is not valid yet; set the clocks of issuer and verifier",
    Code.CREDENTIAL_TENANT: "the token is of another tenant",
    Code.CREDENTIAL_KEY: "the token's key is not one of the issuer's: unknown, withdrawn or compromised",
    Code.CREDENTIAL_TOOL: "the token was minted for a call of another tool",
    Code.CREDENTIAL_MISSING: "the request bears no credential; send the token of the call under way",
    Code.KEYS_UNAVAILABLE: "the issuer's keys can not be had; look at its JWKS endpoint and the key directory",
    Code.STATUS_UNAVAILABLE: "nobody can tell whether the token lives; repair the ledger or the introspection endpoint",
    Code.PROOF_MISSING: "the token is bound to a key and came without a DPoP proof; send it with the DPoP scheme and a proof",
    Code.PROOF_INVALID: "the DPoP proof is not one for this request, this token and its key",
    Code.PROOF_REPLAYED: "the DPoP proof was used before; make a new one for each request",
    Code.PROOF_NONCE: "the DPoP proof lacks the server's current nonce; repeat the request with the one that was sent",
    Code.PROOF_LIMIT: "more requests were proven with one key than the server remembers; wait, send fewer in one call, or raise `max_per_key`",
    Code.EXCHANGE_REFUSED: "the token endpoint refused the exchange; look at its policy for this client and audience",
    Code.EXCHANGE_FAILED: "the token endpoint's answer is not what RFC 8693 asks for; look at its log",
    Code.AUDIENCE: "the audience is not in the tool's profile, or not in the grant",
    Code.CHAIN_BROKEN: "the audit chain does not verify; keep it as evidence and compare it with a copy",
    Code.CONFIG: "a setting is wrong",
    Code.POLICY_INVALID: "the policy can not be loaded",
    Code.POLICY_UNSIGNED: "no trusted key signed the policy; sign it with `runtime-authz policy build --key`",
    Code.POLICY_OLDER: "a policy never goes back; to undo a change release the old content under a new number",
    Code.POLICY_STALE: "the policy's source could not be confirmed for too long; look at where its bundle comes from",
    Code.POLICY_CHANGED: "the tool's profile is another revision's than the policy; decide the call again",
    Code.NOTIFY_UNAVAILABLE: "a notification that the policy demands could not be sent; look at the notifier",
    Code.PROFILE_INVALID: "a tool profile is wrong",
    Code.UNGOVERNED: "no gate stands in front of it; govern it as its note says, or accept it in a baseline",
    Code.BASELINE_INVALID: "the baseline can not be used; write it anew with `runtime-authz inspect --write-baseline`",
    Code.ALREADY_PROTECTED: "another RuntimeAuthz protects this graph; use that one or build the graph anew",
    Code.DEEP_COPY: "LangGraph's compiled graphs do not run once they are deep-copied; take `graph.copy()`, which stays protected, or compile the builder again",
}


def sentence(code: str) -> str:
    """One sentence for the operator; a foreign code speaks for itself."""
    try:
        return _SENTENCES[Code(code)]
    except ValueError:
        return f"the policy gave the reason `{code}`"


def unreadable(exc: Exception) -> str:
    """Why a file of text, JSON or YAML can not be used: the place and the reason, in nobody's internal words."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    if isinstance(exc, UnicodeDecodeError):
        return f"byte {exc.start} is not UTF-8"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    if isinstance(exc, json.JSONDecodeError):
        return f"line {exc.lineno}, column {exc.colno}: {exc.msg}"
    if (mark := getattr(exc, "problem_mark", None)) is not None:  # a `yaml.MarkedYAMLError`, known without PyYAML
        return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(exc, 'problem', None)}"
    return str(exc) or type(exc).__name__


class AuthzError(Exception):
    """Base of every exception that this package raises on purpose.

    Attributes:
        code: a stable reason code (`Code`, or a policy's own).
        detail: what it is about; `None` where the code says all.
    """

    def __init__(self, code: str, detail: str | None = None) -> None:
        self.code = str(code)
        self.detail = detail
        text = sentence(code)
        super().__init__(f"{self.code}: {detail}: {text}" if detail else f"{self.code}: {text}")


class ConfigError(AuthzError):
    """Something given at construction is wrong; nothing was changed."""

    def __init__(self, detail: str, code: str = Code.CONFIG) -> None:
        super().__init__(code, detail)


class AlreadyProtected(ConfigError):
    """The graph is protected by another `RuntimeAuthz`."""

    def __init__(self, graph: str) -> None:
        super().__init__(f"graph `{graph}`", Code.ALREADY_PROTECTED)


class MappingError(AuthzError):
    """The execution state can not be expressed exactly as a request: always a deny."""


class PDPError(AuthzError):
    """A PDP could not be asked, or its answer could not be read: always a deny, with this code."""


class CredentialError(AuthzError):
    """A token was refused, or none may be issued here."""


class AuditError(AuthzError):
    """A record could not be written, or a chain does not verify."""


class LedgerError(AuthzError):
    """The ledger can not be used: whoever asked is denied with its code."""


def ledger_code(exc: BaseException) -> Code:
    """Why a ledger failed, as far as it says."""
    return Code(exc.code) if isinstance(exc, LedgerError) else Code.LEDGER_UNAVAILABLE


class AuthzDenied(AuthzError):
    """A step was denied where no message can carry the answer.

    Its text is neutral, because it may reach a model: code and reason are attributes for the
    operator.

    Attributes:
        code: the first reason's code.
        decision_id: finds the record in the audit log.
    """

    def __init__(self, code: str, decision_id: str) -> None:
        Exception.__init__(self, f"not permitted (decision {decision_id})")
        self.code = str(code)
        self.decision_id = decision_id

    def __reduce__(self) -> tuple[type[AuthzDenied], tuple[str, str]]:
        return type(self), (self.code, self.decision_id)
