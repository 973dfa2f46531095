"""Define every stable code and every exception of the package.

A denial that a tool message can report is a *value* (`evaluation.Decision`), not an exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

RETRY: Final = {
    "now": "yes, at once",
    "later": "yes, when the cause is gone",
    "fixed": "only after the remedy",
    "replan": "no, but the agent may plan again",
    "never": "no",
}


class Code(StrEnum):
    """Stable reason codes of this package: metric labels and search keys.

    A policy may give codes of its own. A code is never renamed, and an unused one stays reserved. `docs/codes.md` lists
    each code with its meaning and remedy (`sentence`), its most frequent cause, and whether to retry (`RETRY`).
    """

    sentence: str
    """What happened (`meaning`) and what to do (`remedy`), for the operator."""
    meaning: str
    remedy: str
    cause: str
    retry: str

    def __new__(cls, code: str, sentence: str = "", cause: str = "", retry: str = "") -> Code:
        """Make a member from its code, texts and retry advice (a key of `RETRY`)."""
        member = str.__new__(cls, code)
        member._value_, member.sentence, member.cause, member.retry = code, sentence, cause, retry
        member.meaning, _, member.remedy = sentence.partition("; ")
        return member

    # fmt: off
    # The step cannot be put into a request (AuthZEN: mapping error).
    UNCANONICAL_ARGUMENT = "uncanonical_argument", "an argument has no exact JSON form; send finite numbers within 2^53, valid Unicode and JSON types", "a model or tool produced NaN, an infinity, an integer beyond 2^53, a lone surrogate or a type that JSON lacks", "replan"
    REQUEST_TOO_LARGE = "request_too_large", "the request for the PDP exceeds its size limit; shorten the critical arguments", "a critical argument is very long, because critical arguments are never shortened", "replan"
    INVALID_ARGUMENTS = "invalid_arguments", "the tool's schema refused the arguments; correct the call", "the model wrote a wrong type, left out an argument or invented one", "replan"
    UNREPEATABLE_ARGUMENTS = "unrepeatable_arguments", "the arguments parse differently each time, so nobody can approve them; make the defaults deterministic", "a default factory or a validator of the schema returns another value each time, such as the time or a random id", "fixed"
    UNKNOWN_TOOL = "unknown_tool", "the tool node has no tool of this name; register the tool or correct the call", "the model made up a tool, or the tool was not given to the graph", "replan"
    # The PDP gave no usable answer (AuthZEN: PDP communication error).
    PDP_ERROR = "pdp_error", "the PDP failed; check its log and the application's, then ask `authz.reenter`", "the engine raised an error of its own", "later"
    PDP_MALFORMED = "pdp_malformed", "the PDP's answer is not a decision document; point it at an entrypoint that answers `{decision, context}`", "the address leads to another rule or service, or the rule has another shape", "fixed"
    PDP_TIMEOUT = "pdp_timeout", "the PDP answered after the deadline; raise the deadline or make the policy faster, then ask `authz.reenter`", "the engine or this process is overloaded, or the policy is slow on this request", "later"
    PDP_UNREACHABLE = "pdp_unreachable", "the PDP cannot be reached; start it or correct its address, then ask `authz.reenter`", "the engine is down, restarts, or listens somewhere else", "later"
    PDP_TLS = "pdp_tls", "the TLS handshake with the PDP failed; correct the CA file, the host name or the client certificate", "a certificate expired, has another host name, or is signed by another authority", "fixed"
    PDP_REDIRECT = "pdp_redirect", "the PDP's address answers with a redirect, which is never followed; if you trust the target, use its address", "a proxy or a login page stands in front of the engine", "fixed"
    PDP_UNAUTHORIZED = "pdp_unauthorized", "the PDP refused our credentials, or the token file cannot be read; renew the token", "the token expired, or the engine's own policy does not know this client", "fixed"
    PDP_STATUS = "pdp_status", "the PDP answered with an HTTP error; check its log, then ask `authz.reenter`", "the engine is overloaded or has an error", "later"
    PDP_PROTOCOL = "pdp_protocol", "the PDP's answer broke off or is not HTTP; check what stands between it and this process, then ask `authz.reenter`", "a proxy or a restart cut the connection", "later"
    PDP_TOO_LARGE = "pdp_too_large", "the PDP's answer exceeds its size limit; point it at an entrypoint that answers `{decision, context}` alone", "the entrypoint returns more than a decision", "fixed"
    PDP_UNDEFINED = "pdp_undefined", "the PDP's rule does not exist or is undefined for this request; load the policy, or give the rule a default", "the bundle is not loaded yet, or the package has another name", "fixed"
    PDP_CIRCUIT_OPEN = "pdp_circuit_open", "the PDP failed so often that it is not asked for a while; repair it, then ask `authz.reenter`", "several requests failed in a row, so the breaker waits before the next trial", "later"
    POLICY_STALE = "policy_stale", "the policy's source could not be confirmed for too long; check where its bundle comes from", "the bundle's file or server cannot be read, or nothing is published any more", "later"
    POLICY_CHANGED = "policy_changed", "the tool's profile and the policy are of different revisions; decide the call again", "a new policy arrived between the plan and the decision", "replan"
    # Refused by the PEP, whatever the PDP answers.
    NO_RUN = "no_run", "the guarded tool was called outside a run; call it inside a protected graph or `authz.run(...)`", "code calls a guarded tool outside every graph, in a thread without the run's context, or after the run", "fixed"
    NO_CALL = "no_call", "no permitted call of this tool with these arguments is open; decide it first, and observe it once", "the tool ran with other arguments than the permitted ones, or was observed twice", "fixed"
    LEASE_ENDED = "lease_ended", "the run has ended; start a new one", "code kept a run, a config or a stream longer than the block that opened it", "fixed"
    LEASE_EXPIRED = "lease_expired", "the run exceeded its maximum lifetime; start a new one", "the run worked for longer than an hour", "fixed"
    REVOKED = "revoked", "the run was revoked; an operator can reinstate it", "somebody called `revoke`, or the policy revoked the agent after repeated denials", "fixed"
    KILLED = "killed", "the kill switch is engaged; `runtime-authz kill release` releases it", "somebody engaged the kill switch, or its file cannot be read", "fixed"
    STALE_EPOCH = "stale_epoch", "the task changed after this step was planned; plan again, and give each call that code writes an id of its own", "the user said something new, the thread's state was edited from outside, or code calls with an id of an earlier turn", "replan"
    GRANT_EXCEEDED = "grant_exceeded", "the step lies outside the delegated grant; widen the grant where it was given", "the child agent tries more than its parent handed on", "fixed"
    PROVIDER_TOOL = "provider_tool", "the model has a tool that its provider runs; allow it in `models` of the policy's data, or use AuthzMiddleware, which removes it", "the provider would run the tool itself, where no enforcement point stands", "fixed"
    BUDGET_EXHAUSTED = "budget_exhausted", "a budget of the grant or policy is spent; give a larger one", "it permits so many calls on a thread, and they were made", "fixed"
    TOO_WIDE = "too_wide", "the thread has delegated to as many agents as it may; use a new thread, or fewer agents", "code makes an agent of a new name for each piece of work", "fixed"
    RATE_EXCEEDED = "rate_exceeded", "the policy's rate limit is reached; wait, or raise the effect's row of `rates` in the policy's data", "the thread's calls come faster than the policy allows", "later"
    CALL_IN_PROGRESS = "call_in_progress", "the same call is in progress; wait for its result", "another worker, task or retry runs the very same call", "later"
    NOT_REACHED = "not_reached", "the node ended before it made the call; plan the call again if it is needed", "another call of the same message was denied, and the node's code did not catch the denial", "replan"
    OUTCOME_UNKNOWN = "outcome_unknown", "the call ran before and its outcome is unknown; check the effect by hand and do not repeat the call, or say `idempotent` in its profile if it may run twice", "the process died or the tool failed during the call, so the effect may have happened", "never"
    IN_DOUBT = "in_doubt", "the same was done before and nobody knows its outcome; find out by `runtime-authz calls list`, then approve or reject", "in the last 24 hours a process died during the same call, its end was not recorded, or it failed and may have happened before that", "fixed"
    NOT_IN_DOUBT = "not_in_doubt", "the call has an outcome, or may still be under way; check it by `runtime-authz calls show`", "the call ended, somebody resolved it before, or its lease has not lapsed yet", "never"
    ENDED_LATE = "ended_late", "the call ended after somebody had said what became of it; compare both with the service's records", "the tool ran longer than its lease, and its call was resolved meanwhile", "never"
    SUBJECT_MISMATCH = "subject_mismatch", "the thread belongs to another subject; use another thread", "the same thread id was used for two users, or the subject's name changed", "fixed"
    UNKNOWN_OBLIGATION = "unknown_obligation", "the PDP demands an obligation that this version does not know (its type is the next reason); upgrade, or change the policy", "a newer policy, or another vendor's engine, demands something of this enforcement point", "fixed"
    NOTIFY_UNAVAILABLE = "notify_unavailable", "a notification that the policy demands could not be sent; check the notifier", "the notifier raised an error, or its channel is not configured", "later"
    APPROVAL_UNAVAILABLE = "approval_unavailable", "the call needs an approval and nobody can be asked; compile the graph with a checkpointer, or give `on_ask`", "no checkpointer is there, the run is stateless, or the tool was called outside a graph", "fixed"
    APPROVAL_REJECTED = "approval_rejected", "an approver rejected the call; do not repeat it without a new request by the user", "a person read the call and refused it", "never"
    APPROVAL_MALFORMED = "approval_malformed", "the answer is not a list of decisions, or `on_ask` failed; send one {'type': 'approve'|'edit'|'reject'|'respond'} per request", "the front end or `on_ask` gives another shape than LangChain's decisions, or `on_ask` raised", "fixed"
    APPROVAL_PARTIAL = "approval_partial", "the list answers only some of the calls, so none of it was applied; send one decision for each, in order, or answer single calls by `authz.approve` and `authz.deny_approval`", "several calls were asked about at once, and the front end answered fewer", "fixed"
    APPROVAL_SETTLED = "approval_settled", "the list rejects a call that is already approved, so none of it was applied; answer the open calls, or stop all of them by `authz.correct`", "the call was approved outside the graph before the list arrived", "fixed"
    APPROVAL_VOID = "approval_void", "the approval is spent, expired or for another call; ask again", "the question was answered before, or the task or the arguments changed since", "replan"
    APPROVAL_EXPIRED = "approval_expired", "the approval expired before the call ran; plan the call again, or raise `approvals` in the policy's data", "nobody answered in the time that the policy gives", "replan"
    APPROVAL_ANSWERED = "approval_answered", "an approver answered in the tool's place, so the call did not run; use that answer", "the decision was `respond`", "never"
    APPROVAL_APPROVER = "approval_approver", "this approver may not answer; ask an authenticated person whom the policy names", "the approver is not authenticated, is an agent, or is not among those that the policy names", "fixed"
    APPROVAL_NOT_DISTINCT = "approval_not_distinct", "the approver is the subject or has approved already; ask another person (four eyes)", "the policy wants another person than the one who ordered the call", "fixed"
    APPROVAL_WAITS = "approval_waits", "the approval is recorded and another one is needed; the question stays open for the next approver", "the policy wants several approvers", "fixed"
    APPROVAL_CAPPED = "approval_capped", "the approval limit `approvals.asks` is reached; review what the run asks for", "the run, or its subject, has asked more often than the policy allows", "fixed"
    APPROVAL_STATEMENT = "approval_statement", "the approver's statement was altered or is for another question; sign the question that is open", "the statement was signed for other arguments, or changed on its way", "fixed"
    AUDIT_UNAVAILABLE = "audit_unavailable", "the mandatory audit sink failed; repair it, then ask `authz.reenter`", "the disk is full, the file is not writable, or the sink's service is down", "later"
    LEDGER_UNAVAILABLE = "ledger_unavailable", "the ledger failed; repair it, then ask `authz.reenter`", "the database is down, or the file cannot be read", "later"
    LEDGER_TIMEOUT = "ledger_timeout", "the ledger is locked or too slow; find the process that holds it, or raise the ledger's `timeout`", "another process holds the lock, or the database is overloaded", "later"
    LEDGER_SCHEMA = "ledger_schema", "this version does not support the ledger's schema; see `runtime-authz ledger migrate --help`", "the ledger was written by an older or newer version", "fixed"
    LEDGER_ROLE = "ledger_role", "this role may not do that; connect as the role that owns the schema", "the command was given the application's connection", "fixed"
    LEDGER_ROLLED_BACK = "ledger_rolled_back", "the ledger is older than a commit it has confirmed; restore the newest copy, or see `runtime-authz ledger restored --help`", "a backup was restored", "fixed"
    LEDGER_CLOCK = "ledger_clock", "the clock was set back; correct it, or see `runtime-authz ledger clock --help` if it was wrong before", "the machine's clock moved back, or was ahead before", "fixed"
    CORRECTION_UNDELIVERED = "correction_undelivered", "the graph's input has no place for a correction's text; put the text into the next input, or give the graph a channel `messages`", "an entrypoint takes a text or a list, or a graph's state has no `messages`", "fixed"
    # Given by the shipped policy (policies/rego/runtime_authz.rego).
    NO_PERMIT = "no_permit", "no rule of the policy permits the step; add a rule, or use another tool", "the policy permits by rule only, and none applies", "fixed"
    LEASE_INVALID = "lease_invalid", "the lease is missing, expired or of another epoch; start a new run", "the run ended or was corrected while the step was under way", "fixed"
    STALE_PLAN = "stale_plan", "the plan belongs to an earlier state of the task; plan again", "the user said something new after the plan was made", "replan"
    UNPLANNED = "unplanned", "no recorded plan holds the call; make the model's calls with its own arguments, each once, protect the graph that calls the model, or declare what your code does by itself with `authz.effect`, or set its tool to `ask`", "code changed the arguments, made a call again or made one of its own, or the model's message was not seen", "fixed"
    PLAN_CHANGED = "plan_changed", "code changed a planned side effect that the task does not order as it is now; ask an approver, or list added arguments as `injected` in the profile", "middleware or a node changed the tool or the arguments after the model wrote them", "fixed"
    GRANT_TOOL = "grant_tool", "the grant does not hold the tool; widen the grant, or use another tool", "the grant of the run or of its parent lists other tools", "fixed"
    GRANT_ARGUMENT = "grant_argument", "an argument lies outside the grant's constraint; widen the grant, or change the argument", "the grant limits the argument's values", "fixed"
    GRANT_DATA_CLASS = "grant_data_class", "the grant does not hold the tool's data class; widen the grant, or use another tool", "the grant lists other data classes", "fixed"
    GRANT_SINK = "grant_sink", "the grant does not hold the tool's sink; widen the grant, or use another tool", "the grant lists other sinks", "fixed"
    GRANT_DEPTH = "grant_depth", "the delegation is deeper than the grant permits; raise `max_depth`, or delegate less", "an agent handed work on to an agent, which handed it on again", "fixed"
    GRANT_EXPIRED = "grant_expired", "the grant has expired; give a new one", "the run took longer than the grant lasts", "fixed"
    ANONYMOUS = "anonymous", "the subject is anonymous; open the run with `authz.run(subject=...)`", "no subject was named, and `subject_from` found none", "fixed"
    UNPROFILED = "unprofiled", "the tool has no reviewed profile, so it asks, or is denied if its name deletes or administers; run `runtime-authz init`, or `profile check` if the tool changed after its review", "nobody has said what the tool does, or the tool changed since", "fixed"
    VERDICT = "verdict", "the tool's profile says `ask` or `deny` of each call; ask an approver, or change its `verdict`", "somebody switched this tool to `ask` or `deny`", "fixed"
    EFFECT = "effect", "the policy requires an approval for this effect; ask an approver", "the call has a side effect that the task does not order", "fixed"
    NOT_ORDERED = "not_ordered", "the task's mandate has no step for this tool; ask the user, or give a mandate that orders the call", "the model acts on its own account, or the user's words were not understood as an order", "fixed"
    DEVIATES = "deviates", "the task's mandate orders this tool, but not this call; correct what deviates, or ask the user", "the model took a value from elsewhere, or the user's words were understood otherwise", "fixed"
    FORBIDDEN = "forbidden", "the task's mandate forbids the call; do not try it again", "the user or the application ruled it out", "never"
    DATA_FLOW = "data_flow", "the run read data that must not reach the tool's sink without an approval; ask an approver", "the agent read confidential data before, and the tool sends outside", "fixed"
    DENIAL_STREAK = "denial_streak", "the run was denied too often and was revoked; review its records, then reinstate it", "the agent tries again and again what is refused: a loop or an attack", "fixed"
    DATA_CHANGED = "data_changed", "the source of an argument changed after the plan was made; read it again and plan again", "`authz.data_changed` named a resource that the plan was made on", "replan"
    BURST = "burst", "the run made more calls in a minute than the policy allows and was revoked; review it, then reinstate it", "a loop, or an attack that acts in bulk", "fixed"
    UNPLANNED_STREAK = "unplanned_streak", "the run tried too many unplanned side effects and was revoked; review it, then reinstate it", "code calls tools that no model message planned", "fixed"
    TAINTED_STREAK = "tainted_streak", "the run tried too many side effects with arguments from outside and was revoked; review what it read", "a text that the agent read may be steering it", "fixed"
    ROTATIONS = "rotations", "the task was changed too often by others, so the run was revoked; check who changes it", "other people or systems correct the same thread in a circle", "fixed"
    TOO_DEEP = "too_deep", "the delegation is deeper than the policy allows; flatten the graph, or raise `anomaly.max_depth`", "agents call agents in a circle, or the graph is nested deeply", "fixed"
    STEP_BUDGET = "step_budget", "the entry took as many steps as the policy allows; enter the graph again", "the agent loops, or the work is long", "fixed"
    TIME_BUDGET = "time_budget", "the entry took as long as the policy allows; enter the graph again", "the agent loops, or the work is long", "fixed"
    MODEL = "model", "the policy does not list the model or its provider; add it to `models` in the policy's data", "the application uses a model that nobody released", "fixed"
    NOT_ATTESTED = "not_attested", "the process did not prove its workload, and the policy demands it for this effect; give `RuntimeAuthz(identity=...)` an attested identity", "`attested` of the policy's data lists the effect, and the agent is only named", "fixed"
    UNKNOWN_ACTION = "unknown_action", "the policy has no rule for this action or resource type; add one", "the policy is older than this package, or was written for another one", "fixed"
    # Credentials and configuration.
    CREDENTIAL_UNAVAILABLE = "credential_unavailable", "no permitted call is running, so no credential is issued; ask inside the tool, while it runs", "code asks before the tool runs, after it ended, or in another thread", "fixed"
    CREDENTIAL_INVALID = "credential_invalid", "the token was altered or is not one of ours; send the token of the running call", "the token was cut, edited or comes from another issuer", "fixed"
    CREDENTIAL_REVOKED = "credential_revoked", "the token's call, task or run is over; start a new call", "the user corrected the task, or the call ended", "replan"
    CREDENTIAL_EXPIRED = "credential_expired", "the token has expired; use it inside the call for which it was minted", "the token was kept for longer than its minute", "replan"
    CREDENTIAL_NOT_YET_VALID = "credential_not_yet_valid", "the token is not valid yet; synchronise the clocks of issuer and verifier", "two machines' clocks differ", "later"
    CREDENTIAL_TENANT = "credential_tenant", "the token is of another tenant; use this tenant's instance", "a token of one tenant was sent to another tenant's service", "fixed"
    CREDENTIAL_SUBJECT = "credential_subject", "the service does not serve subjects of this type; name the type in its `subject_types`", "an agent or a service acts on its own behalf, or nobody named a subject", "fixed"
    CREDENTIAL_KEY = "credential_key", "the token's key is unknown, withdrawn or compromised; check the issuer's key set", "keys were rotated, or the verifier reads another key set", "fixed"
    CREDENTIAL_TOOL = "credential_tool", "the token was minted for another tool or agent; send the token that was minted for this one", "a tool handed its token to another tool or agent", "fixed"
    CREDENTIAL_CALL = "credential_call", "the token was minted for another call of the tool (step, standing or arguments); send the token of this very call", "a token was reused for another request", "fixed"
    CREDENTIAL_MISSING = "credential_missing", "the request has no credential; send the token of the running call", "the client does not send the token, or a proxy removes it", "fixed"
    KEYS_UNAVAILABLE = "keys_unavailable", "the issuer's keys cannot be read; check its JWKS endpoint and the key directory", "the key directory or the JWKS endpoint cannot be read", "later"
    STATUS_UNAVAILABLE = "status_unavailable", "the token's status cannot be looked up; repair the ledger or the introspection endpoint", "the ledger or the introspection endpoint does not answer", "later"
    PROOF_MISSING = "proof_missing", "the token came without a proof of its key; send a token that is bound to a key, with the DPoP scheme and a proof", "the client sends a bound token as a plain bearer token", "fixed"
    PROOF_INVALID = "proof_invalid", "the DPoP proof is not for this request, token and key; make a proof for this request", "the proof was made for another address, method or token, or a proxy rewrites the address", "fixed"
    PROOF_REPLAYED = "proof_replayed", "the DPoP proof was used before; make a new one for each request", "the client, or a thief, sent the same proof twice", "fixed"
    PROOF_NONCE = "proof_nonce", "the DPoP proof lacks the server's current nonce; repeat the request with the nonce of this answer", "the server issues a new nonce now and then", "now"
    PROOF_LIMIT = "proof_limit", "one key proved more requests than the server remembers; wait, send fewer in one call, or raise `max_per_key`", "one key is used for very many requests", "later"
    INSUFFICIENT_SCOPE = "insufficient_scope", "the token lacks a scope that the service demands; ask the provider for the scopes that the challenge names", "the client asked the provider for fewer scopes, or the user does not have them", "fixed"
    EXCHANGE_REFUSED = "exchange_refused", "the token endpoint refused the exchange; check its policy for this client and audience", "the token endpoint does not allow this client to act at this audience", "fixed"
    EXCHANGE_FAILED = "exchange_failed", "the token endpoint's answer does not follow RFC 8693; check its log", "the endpoint has an error, or is not an exchange endpoint", "later"
    IDENTITY_INVALID = "identity_invalid", "the identity token was refused (issuer, audience, type, signature or lifetime); sign in again", "the token expired, or is meant for another application", "fixed"
    IDENTITY_UNAVAILABLE = "identity_unavailable", "the identity provider cannot be asked; check its discovery document and key set", "the identity provider is down, or its address is wrong", "later"
    WORKLOAD_UNPROVEN = "workload_unproven", "the workload has no current proof of its identity; check the SPIRE agent and its registration entry, or the token file", "the agent of SPIRE is down, no entry selects this process, or the proof is of another trust domain", "later"
    AUDIENCE = "audience", "the audience is not in the tool's profile or not in the grant; add it there", "the tool asks for a token for a service that nobody listed", "fixed"
    REMOTE_URL = "remote_url", "the request would carry an agent's credential to another place than its `url`, so it was not sent; correct the `url` in `agents`, or the client's address", "the client of the remote graph has another URL, or its server redirects", "fixed"
    CHAIN_BROKEN = "chain_broken", "the audit chain does not verify; keep it as evidence and compare it with a copy", "the file was edited, cut or written by something else", "never"
    CHAIN_PRUNED = "chain_pruned", "the log up to the pinned head cannot be checked; verify a copy of the removed segments, or pin the head of this log from now on", "`audit prune` removed segments after the head was pinned, or the log was cut", "never"
    CONFIG = "config", "a setting is wrong; correct it", "an argument of a constructor or a setting has a wrong type or value", "fixed"
    POLICY_INVALID = "policy_invalid", "the policy cannot be loaded; correct it", "a file of the policy is damaged or incomplete", "fixed"
    POLICY_UNSIGNED = "policy_unsigned", "no trusted key signed the policy; sign it with `runtime-authz policy build --key`", "the bundle was built without a key, or with one that is not trusted here", "fixed"
    POLICY_OLDER = "policy_older", "the policy is older than the one in use; to undo a change, release the old content under a new number", "an old bundle was published again", "fixed"
    PROFILE_INVALID = "profile_invalid", "a profile of a tool or agent is wrong; correct it", "a field of the profile is missing or has a wrong value", "fixed"
    MANDATE_INVALID = "mandate_invalid", "the mandate cannot be read or contradicts itself; correct it", "a step names an unknown tool or argument, or two steps contradict each other", "fixed"
    ALREADY_PROTECTED = "already_protected", "another RuntimeAuthz protects it; use that one for every graph that shares it, or give each instance graphs and tools of its own", "two instances exist, often because a module was imported twice or two graphs share a tool", "fixed"
    DEEP_COPY = "deep_copy", "compiled graphs cannot be deep-copied; use `graph.copy()`, which stays protected, or compile the builder again", "code calls `copy.deepcopy` on a graph", "fixed"
    UNDECLARED = "undeclared", "a node or tool did what nobody declared; declare it with `authz.effect` or in the tool's profile", "`observe_process(strict=True)` saw a file, program or connection that no profile speaks of", "fixed"
    UNGOVERNED = "ungoverned", "no enforcement point stands in front of it; follow its note, or accept it in a baseline", "the graph reaches something that no enforcement point covers", "fixed"
    BASELINE_INVALID = "baseline_invalid", "the baseline cannot be used; write it again with `runtime-authz inspect --write-baseline`", "the file is damaged, or of another graph or version", "fixed"
    # fmt: on


def sentence(code: str) -> str:
    """Return "meaning; remedy" of a code. For a policy's own code, quote the code."""
    return "; ".join(filter(None, meaning_and_remedy(code)))


def meaning_and_remedy(code: str) -> tuple[str, str]:
    """Return a code's meaning and remedy. For a policy's own code, the remedy is ""."""
    try:
        return Code(code).meaning, Code(code).remedy
    except ValueError:
        return f"the policy gave the reason `{code}`", ""


_PLAIN: Final = {
    "extra_forbidden": "unknown field",
    "missing": "it is missing",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a mapping",
    "model_type": "it must be a mapping",
}


def wrong_field(exc: ValidationError, whole: str = "", known: Collection[str] = ()) -> str:
    """Return the first wrong field and the reason: "`a.b`: unknown field".

    `whole`: the name to use if the whole value is wrong. `known`: field names, to suggest the one that is meant.
    """
    first = exc.errors()[0]
    # Pydantic also lists the members of a union here, like `tuple[str]`; these are not field names.
    name = ".".join(part for part in map(str, first["loc"]) if "[" not in part) or whole
    why = _PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    extra, about = first["type"] == "extra_forbidden", first.get("ctx", {})
    choices = known if extra else re.findall("'(.*?)'", f"{about.get('expected', about.get('expected_tags', ''))}")
    said = name if extra else about.get("tag", first["input"])
    if isinstance(said, str) and (near := get_close_matches(said[:99], choices, 1)):
        why = f"{why}, perhaps `{near[0]}`"
    return f"`{name}`: {why}" if name else why


_OF_FILES: Final[Mapping[type, str]] = {
    FileExistsError: "the file exists; name a new one",
    FileNotFoundError: "there is no such file or folder; correct the path",
    IsADirectoryError: "it is a folder; name a file",
    PermissionError: "this user may not use it; change its permissions, or name another",
}


def unreadable(exc: Exception) -> str:
    """Return why a text, JSON or YAML file cannot be used, with the line if known."""
    if isinstance(exc, OSError):
        return _OF_FILES.get(type(exc)) or exc.strerror or type(exc).__name__
    if isinstance(exc, UnicodeDecodeError):
        return f"byte {exc.start} is not UTF-8"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    if isinstance(exc, json.JSONDecodeError):
        return f"line {exc.lineno}, column {exc.colno}: {exc.msg}"
    if (mark := getattr(exc, "problem_mark", None)) is not None:  # a `yaml.MarkedYAMLError`; PyYAML is not imported
        return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(exc, 'problem', None)}"
    return str(exc) or type(exc).__name__


_TOLD: Final = (Code.CONFIG, Code.PROFILE_INVALID, Code.MANDATE_INVALID)  # a detail replaces their sentence


class AuthzError(Exception):
    """The base of every exception that this package raises on purpose.

    `code` is a stable reason code (`Code`, or a policy's own). `detail` has the particulars, or is None.
    """

    def __init__(self, code: str, detail: str | None = None) -> None:
        self.code = str(code)
        self.detail = detail
        told = [detail] if detail else []
        told += [] if detail and code in _TOLD else [sentence(code)]
        super().__init__(": ".join([self.code, *told]))


class ConfigError(AuthzError):
    """An argument or a setting is wrong; the call had no effect."""

    def __init__(self, detail: str, code: str = Code.CONFIG) -> None:
        super().__init__(code, detail)


class AlreadyProtected(ConfigError):
    """The graph or tool is protected by another `RuntimeAuthz`."""

    def __init__(self, name: str, kind: str = "graph") -> None:
        super().__init__(f"{kind} `{name}`", Code.ALREADY_PROTECTED)


class MappingError(AuthzError):
    """The step cannot be put into a request exactly, so it is denied."""


class PDPError(AuthzError):
    """The PDP gave no usable answer, so the step is denied with this error's `code`."""


class CredentialError(AuthzError):
    """A token was refused, or none may be issued."""


class AuditError(AuthzError):
    """A record could not be written, or an audit chain does not verify."""


class LedgerError(AuthzError):
    """The ledger cannot be used, so the step is denied with this code."""


def failure_code(exc: BaseException) -> Code:
    """Return the code of an error of ours; `ledger_unavailable` for any other one."""
    return Code(exc.code) if isinstance(exc, LedgerError | AuditError | CredentialError) else Code.LEDGER_UNAVAILABLE


class AuthzDenied(AuthzError):
    """A step was denied, and no tool message can report it.

    Catch this in code that can continue without the step. The exception's text is neutral, because it may reach a
    model. Its note (PEP 678), which tracebacks show, has the code and the remedy. `code` is the first reason, and
    `decision_id` is the id of the audit record.
    """

    def __init__(self, code: str, decision_id: str) -> None:
        Exception.__init__(self, f"not permitted (decision {decision_id})")
        self.code = str(code)
        self.decision_id = decision_id
        self.add_note(f"{self.code}: {sentence(code)}\nauthz.explain({decision_id!r}) says more; catch it to go on")

    def __reduce__(self) -> tuple[type[AuthzDenied], tuple[str, str]]:
        return type(self), (self.code, self.decision_id)
