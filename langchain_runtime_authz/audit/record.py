"""Build the records of the decision log. Pure: time is a parameter.

The parameters of each function are the record's fields. Every record has `v`, `kind` and `ts` (epoch seconds, from
`now`). These fields occur in several kinds of record:

| field | meaning |
|---|---|
| `decision_id` | id of the decision, or of the permit to which the event belongs |
| `run_id`, `epoch` | id of the run; epoch of its task |
| `jti` | id of the run's lease; in `mint`, of the token |
| `scope` | tenant, issuer, graph and thread |
| `agent` | path from the root agent |

A `run` record is an event of a run or thread (`Event`). Its `detail` holds:

| event | detail |
|---|---|
| `started`, `resumed` | `subject` |
| `suspended`, `ended` | |
| `planned` | a model's message (`plan`), its `source` and `model`, the `tools` that it calls, in order |
| `mandate` | what the task orders: `source`, `digest`, `steps` (id and tool); with contents the whole `mandate` |
| `asked` | `source` of the review; `questions`, each with `approval` (its id), `decision_id`, `call_key`, `args_digest`, `tool` and `needed` (how many approvers must approve) |
| `approval` | an answer: `approval`, `call_key`, `args_digest`, `tool`, `approver`, `authenticated`, `source`, `verdict`, `message_digest`; of a signed statement `by` and `statement`; a second record has `refused` if the ledger refused the answer, or `unknown` if the ledger did not answer |
| `delegated` | `to`, `kind`, `decision_id`; `jti` of the child's lease |
| `corrected` | `source`, `author` (empty if unknown), `texts`, `from_epoch` |
| `rotated` | the run continues with a new lease: `from_epoch`, `from_jti`; `decision_id` if a policy demanded it |
| `revoked`, `reinstated` | `author`, `reason`; `decision_id` if a decision or a leak led to it; of `reinstated` also `refused` or `unknown` |
| `resolved` | somebody told what became of a call in doubt: `call_key`, `decision_id`, `tool`, `happened`, `author`, `reason`; a second record has `refused` if the ledger refused, or `unknown` if the ledger did not answer |
| `ended_late` | a call ended after it had been resolved: the fields of `resolved`, and the call's `state` at its end |
| `data_changed` | the application declared that a `resource` changed |
| `identity_ignored` | a client wrote an identity into the config, which was ignored; `claimed`: the names of its fields |
| `restored` | an operator declared that the ledger is a restored copy (no scope): `author`, `reason`, numbers of `threads` and `revoked` |

`verdict` is `approve`, `edit`, `reject` (`deny` outside the graph), `respond` or `malformed`.

Evolution rule, version 1 (`v`): a field may be added. A field is never renamed, never changes its type or meaning,
and is never removed. Readers ignore unknown fields and kinds. `seq` and `prev` belong to the chain (`audit.chain`).
`ledger` (`ledger.base.Anchor`) holds the tenant and the newest commit that the writer had seen, if there is one.

Contents are left out by default. As in OPA's decision logs, `erased` lists what was left out (JSON pointers, RFC 6901).
Digests have no key: they prove the decision, but do not hide guessable arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic_core import from_json

from langchain_runtime_authz.evaluation import Decision

VERSION: Final = 1
ERASED: Final = (
    "/context/call/args",
    "/context/task/text",
    "/context/lease/grant/args",
    "/resource/properties/target",
    "/subject/properties/identifiers",
)
MAX_NAME: Final = 128
_ABSENT: Final = object()

Scope = tuple[str, str, str, str]  # tenant, issuer, graph, thread
Event = Literal[
    "started", "resumed", "suspended", "ended", "planned", "mandate", "asked", "approval", "delegated", "corrected",
    "rotated", "revoked", "reinstated", "resolved", "ended_late", "data_changed", "identity_ignored", "restored",
]  # fmt: skip


def decision_record(
    *,
    now: float,
    decision: Decision,
    pdp: str,
    action: str,
    resource: str,
    body: bytes | None = None,
    run_id: str = "",
    jti: str = "",
    scope: Scope | None = None,
    agent: tuple[str, ...] = (),
    content: bool = False,
    expected: Mapping[str, str] | None = None,
    claim: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the record of one decision.

    `body` is the request as JSON. It is `None` if the request has no JSON form (a mapping error) or was not needed.
    `action` is AuthZEN's `action.name`, `resource` its `resource.id`, `pdp` the engine's name. With `content`, the
    record keeps arguments, task text, targets and `expected` (argument → what the task orders instead).
    `claim` describes a permitted call with a side effect: `call_key`, `deeds` (with digests of the targets) and
    `idempotency_key`. `runtime-authz ledger restored` puts a lost call back into the ledger from `claim`.
    """
    names = ("decision_id", "outcome", "reasons", "failure", "obligations", "policy_revision", "pdp_decision_id")
    decided = {name: getattr(decision, name) for name in names}
    decided["obligations"] = [o.type for o in decision.obligations]
    step = {"pdp": pdp, "action": action, "resource": resource}
    run = {"run_id": run_id, "jti": jti, "scope": _scope_fields(scope), "agent": agent}
    asked = None if body is None else from_json(body)
    erased = [] if content or asked is None else [p for p in ERASED if erase_member(asked, p)]
    digest = None if body is None else "sha256:" + hashlib.sha256(body).hexdigest()
    request = {"request": asked, "request_digest": digest, "erased": erased}
    ordered = {"expected": dict(expected)} if expected and content else {}
    claimed = {"claim": claim} if claim else {}
    return _record("decision", now, **decided, **step, **run, **request, **ordered, **claimed)


def completion_record(
    *,
    now: float,
    decision_id: str,
    call_key: str,
    state: str,
    run_id: str = "",
    leaked: bool = False,
    withheld: bool = False,
) -> dict[str, Any]:
    """Return the record of a call's end.

    `call_key` is the ledger's key of the call. `state` is `done`, `failed`, `denied`, `suspended`, `unknown` or
    `released`. `leaked`: a live token was found in the output and removed. `withheld`: a part of the output that could not
    be searched was left out.
    """
    return _record("completion", **locals())


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
    """Return the record of a token that a tool received, without the token itself.

    `expires_at` is in epoch seconds. `kid` is the id of the issuer's signing key; `jkt` is the thumbprint of the
    holder's key, if the token is bound to one.
    """
    return _record("mint", **locals())


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
    """Return the record of a token that was requested and not minted.

    `reason` is `outside_profile`, `outside_grant` or a stable code: `credential_unavailable` after the call's end,
    outside any call, or in a call of another agent. `audience` is the requested audience if the tool's profile names
    it. Otherwise only `asked_digest` is kept, the `sha256:<hex>` of the requested text, which may be a secret. Outside
    a call, `tool` and `decision_id` are empty.
    """
    return _record("mint_refused", **locals())


def run_record(
    *,
    now: float,
    event: Event,
    run_id: str = "",
    jti: str = "",
    epoch: int | None = None,  # the task's epoch after the event
    scope: Scope | None = None,
    agent: tuple[str, ...] = (),
    detail: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of an event of a run, or of a thread (without `run_id`)."""
    return _record("run", **{**locals(), "scope": _scope_fields(scope), "detail": dict(detail or {})})


def observation_record(
    *, now: float, what: str, name: str, by: str = "", run_id: str = "", refused: bool = False
) -> dict[str, Any]:
    """Return the record of an ungoverned tool, model, graph or chain, or of an effect.

    An effect has as `what` `connect`, `mail`, `write`, `delete`, `program` or `native`, and `by` names the node, tool,
    model or thread that caused it. Its `name` is the target, or the target's `sha256:<hex>` if contents are left out.
    `refused`: the effect did not happen.
    """
    return _record("observation", now, what=what, name=name[:MAX_NAME], by=by, run_id=run_id, refused=refused)


def _record(kind: str, now: float, **fields: Any) -> dict[str, Any]:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {"v": VERSION, "kind": kind, "ts": now, **plain}


def _scope_fields(scope: Scope | None) -> dict[str, str] | None:
    return None if scope is None else dict(zip(("tenant", "issuer", "graph", "thread"), scope, strict=True))


def locate_member(document: dict[str, Any], pointer: str) -> tuple[dict[str, Any], str]:
    """Return the object that holds the member at `pointer`, or `{}`, and its name."""
    *way, last = pointer[1:].split("/")
    node: Any = document
    for step in way:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}, last


def erase_member(document: dict[str, Any], pointer: str) -> bool:
    """Remove the member at `pointer`. Return True if the document had it."""
    node, last = locate_member(document, pointer)
    return node.pop(last, _ABSENT) is not _ABSENT
