"""What the decision log holds. Pure: time is a parameter, and nothing is written here.

Evolution rule, version 1 (`v`): a field may be added; a field is never renamed, never changes its
type or meaning, and is never removed. Readers ignore fields and kinds they do not know. `seq` and
`prev` belong to the chain (`audit.chain`), and `ledger`, the tenant and the newest commit of it that the writer had
seen in the ledger (`ledger.base.Anchor`), is added where there is one.

Contents are left out unless asked for, and what was left out is named in `erased`, as OPA's decision
logs do (JSON pointers, RFC 6901). Digests are not keyed: they prove what was decided, they do not
hide a guessable argument.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from langchain_runtime_authz.authzen import Decision, EvaluationRequest

__all__ = [
    "ERASED",
    "VERSION",
    "completion_record",
    "decision_record",
    "mint_record",
    "observation_record",
    "refused_mint_record",
    "run_record",
]

VERSION: Final = 1
ERASED: Final = ("/context/call/args", "/context/task/text", "/resource/properties/target")

MAX_NAME: Final = 128

Scope = tuple[str, str, str, str]  # tenant, issuer, graph, thread


def decision_record(
    *,
    now: float,
    decision: Decision,
    pdp: str,
    action: str,
    resource: str,
    request: EvaluationRequest | None,
    body: bytes | None = None,
    run_id: str = "",
    jti: str = "",
    scope: Scope | None = None,
    agent: tuple[str, ...] = (),
    content: bool = False,
) -> dict[str, Any]:
    """The record of one decision.

    Args:
        now: epoch seconds.
        decision: what was decided.
        pdp: name of the engine.
        action: AuthZEN `action.name`.
        resource: AuthZEN `resource.id`.
        request: what was asked; `None` where it could not be put into words (a mapping error) or the
            enforcement point refused by itself.
        body: `request.to_json()`, where it is at hand.
        run_id: of the run.
        jti: of the lease.
        scope: whose thread: tenant, issuer, graph, thread.
        agent: path from the root agent.
        content: keep arguments, task text and targets.
    """
    if request is not None and body is None:
        body = request.to_json()
    asked = None if body is None else json.loads(body)
    erased = [] if content or asked is None else [p for p in ERASED if _erase(asked, p)]
    return {
        **_head("decision", now),
        "decision_id": decision.decision_id,
        "outcome": decision.outcome,
        "reasons": list(decision.reasons),
        "failure": decision.failure,
        "obligations": [o.type for o in decision.obligations],
        "policy_revision": decision.policy_revision,
        "pdp_decision_id": decision.pdp_decision_id,
        "pdp": pdp,
        "action": action,
        "resource": resource,
        "run_id": run_id,
        "jti": jti,
        "scope": None if scope is None else dict(zip(("tenant", "issuer", "graph", "thread"), scope, strict=True)),
        "agent": list(agent),
        "request": asked,
        "request_digest": None if body is None else "sha256:" + hashlib.sha256(body).hexdigest(),
        "erased": erased,
    }


def completion_record(
    *,
    now: float,
    decision_id: str,
    call_key: str,
    state: str,
    run_id: str = "",
    output_digest: str | None = None,
    error: str | None = None,
    leaked: bool = False,
    withheld: bool = False,
) -> dict[str, Any]:
    """The record of a call's end.

    Args:
        now: epoch seconds.
        decision_id: of the permit.
        call_key: the ledger's key of the call.
        state: `done`, `failed`, `suspended` or `released`.
        run_id: of the run.
        output_digest: `sha256:<hex>` of what the tool returned.
        error: type of the exception, never its text.
        leaked: whether a live token stood in the output, and was taken out.
        withheld: whether a part of the output could not be searched for a token, and was left out.
    """
    return {
        **_head("completion", now),
        "decision_id": decision_id,
        "call_key": call_key,
        "state": state,
        "run_id": run_id,
        "output_digest": output_digest,
        "error": error,
        "leaked": leaked,
        "withheld": withheld,
    }


def mint_record(
    *,
    now: float,
    decision_id: str,
    jti: str,
    audience: str,
    expires_at: int,
    epoch: int,
    run_id: str = "",
    agent_id: str = "",
    kid: str = "",
    jkt: str | None = None,
) -> dict[str, Any]:
    """The record of a token that was handed to a tool; never the token.

    Args:
        now: epoch seconds.
        decision_id: of the permit that it belongs to.
        jti: of the token.
        audience: its one audience.
        expires_at: epoch seconds.
        epoch: of the task.
        run_id: of the run.
        agent_id: of the acting agent.
        kid: of the issuer's key that signed it.
        jkt: thumbprint of the holder's key, where it is bound to one.
    """
    return {
        **_head("mint", now),
        "decision_id": decision_id,
        "jti": jti,
        "audience": audience,
        "expires_at": expires_at,
        "epoch": epoch,
        "run_id": run_id,
        "agent_id": agent_id,
        "kid": kid,
        "jkt": jkt,
    }


def refused_mint_record(
    *,
    now: float,
    decision_id: str,
    reason: str,
    audience: str | None,
    asked_digest: str | None,
    tool: str,
    epoch: int,
    run_id: str = "",
    agent: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The record of a token that was asked for and not minted.

    Args:
        now: epoch seconds.
        decision_id: of the permit of the call that asked; empty where it was no call.
        reason: `outside_profile`, `outside_grant`, or a stable code: `credential_unavailable` after the call's end,
            beside it, or of another agent.
        audience: for which it was asked, where the tool's profile names it.
        asked_digest: `sha256:<hex>` of what was asked for otherwise: text of whoever asked, and maybe a secret.
        tool: its name; empty where no tool asked.
        epoch: of the task.
        run_id: of the run.
        agent: path from the root agent.
    """
    return {
        **_head("mint_refused", now),
        "decision_id": decision_id,
        "reason": reason,
        "audience": audience,
        "asked_digest": asked_digest,
        "tool": tool,
        "epoch": epoch,
        "run_id": run_id,
        "agent": list(agent),
    }


def run_record(
    *,
    now: float,
    event: str,
    run_id: str,
    jti: str = "",
    epoch: int | None = None,
    scope: Scope | None = None,
    agent: tuple[str, ...] = (),
    detail: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of something that happened to a run.

    Args:
        now: epoch seconds.
        event: `started`, `resumed`, `corrected`, `suspended`, `ended`, `revoked`, `reinstated`, …
        run_id: of the run.
        jti: of the lease.
        epoch: of the task, after the event.
        scope: whose thread: tenant, issuer, graph, thread.
        agent: path from the root agent.
        detail: JSON values; codes and digests rather than texts.
    """
    return {
        **_head("run", now),
        "event": event,
        "run_id": run_id,
        "jti": jti,
        "epoch": epoch,
        "scope": None if scope is None else dict(zip(("tenant", "issuer", "graph", "thread"), scope, strict=True)),
        "agent": list(agent),
        "detail": dict(detail or {}),
    }


def observation_record(*, now: float, what: str, name: str) -> dict[str, Any]:
    """The record of something that ran outside the gates, and was not decided.

    Args:
        now: epoch seconds.
        what: `tool`, `model`, `graph` or `chain`.
        name: its own name, at most 128 characters of it.
    """
    return {**_head("observation", now), "what": what, "name": name[:MAX_NAME]}


def _head(kind: str, now: float) -> dict[str, Any]:
    return {"v": VERSION, "kind": kind, "ts": now}


def _erase(document: dict[str, Any], pointer: str) -> bool:
    *way, last = pointer[1:].split("/")
    node: Any = document
    for step in way:
        node = node.get(step) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        return False
    del node[last]
    return True
