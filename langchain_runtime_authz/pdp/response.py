"""Parse a PDP's answer into a `Decision`. Anything malformed is refused."""

from __future__ import annotations

from functools import cache
from os import urandom
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_runtime_authz.errors import Code, PDPError
from langchain_runtime_authz.evaluation import (
    MAX_ANSWER_BYTES,
    REASON_CODE,
    Decision,
    Obligation,
    Outcome,
    Properties,
    strict_json,
)


class _Closed(BaseModel):
    # With `defer_build`, a nested model takes the settings of the outer model. So all models here refuse NaN.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class _Open(_Closed):
    model_config = ConfigDict(extra="ignore")  # a PDP may add members next to those that are read here


class _Obligation(_Closed):
    id: str
    type: str
    properties: Properties = Field(default_factory=dict)

    def made(self) -> Obligation:
        return Obligation(self.id, self.type, self.properties)


class _Reason(_Open):
    code: Annotated[str, Field(max_length=128, pattern=REASON_CODE.pattern)]


class _Policy(_Open):
    revision: Annotated[str, Field(max_length=256)] = ""


class _AnswerContext(_Open):
    reasons: Annotated[list[_Reason], Field(max_length=64)] = Field(default_factory=list)
    obligations: Annotated[list[_Obligation], Field(max_length=64)] = Field(default_factory=list)
    ttl: Annotated[int | None, Field(ge=0, le=3600)] = None
    policy: _Policy = Field(default_factory=cache(_Policy))


class _Answer(_Closed):
    decision: bool
    context: _AnswerContext = Field(default_factory=cache(_AnswerContext))


# Short answers repeat, so their decisions are cached, except for obligations, whose properties are mutable.
_MEMO_BYTES: Final = 1024
_MEMO_SIZE: Final = 256
_memo: dict[tuple[bytes, str], Decision] = {}


def parse_answer(answer: object, revision: str = "") -> Decision | None:
    """Return a PDP's answer as a decision, or `None` if the answer is malformed.

    `answer` is JSON text or bytes, or the parsed document. `revision` is used if the answer states none. Only the
    literal `true` permits. These are malformed: `"true"`, `1`, `{}`, `null`, a non-finite number anywhere, a member other
    than `decision` and `context`, a text above 64 KiB, a permit that asks for an approval, and a misspelt `obligations`.
    """
    short = type(answer) is bytes and len(answer) <= _MEMO_BYTES
    if short and (known := _memo.get((answer, revision))) is not None:  # type: ignore[arg-type]
        return Decision(known.outcome, known.reasons, (), urandom(16).hex(), known.policy_revision, None, known.ttl)
    decision = _parsed(answer, revision)
    if short and decision is not None and not decision.obligations:
        if len(_memo) >= _MEMO_SIZE:
            _memo.clear()
        _memo[answer, revision] = decision  # type: ignore[index]
    return decision


def _parsed(answer: object, revision: str) -> Decision | None:
    try:
        if isinstance(answer, str | bytes | bytearray):
            if len(answer) > MAX_ANSWER_BYTES:
                return None
            answer = strict_json(answer)
        if isinstance(answer, dict) and is_misspelt(answer.get("context")):
            return None
        parsed = _Answer.model_validate(answer)
    except (ValidationError, ValueError, RecursionError):
        return None
    ctx = parsed.context
    obliged = {o.type for o in ctx.obligations}
    # A PDP asks for an approval by a deny with an obligation, so that a PEP that does not know the obligation denies.
    if parsed.decision and "require_approval" in obliged:
        return None
    outcome: Outcome = "permit" if parsed.decision else "approval_required" if "require_approval" in obliged else "deny"
    if "revoke" in obliged:  # the run must be revoked, even if the step is permitted
        outcome = "halt"
    return Decision(
        outcome=outcome,
        reasons=tuple(r.code for r in ctx.reasons) or (() if parsed.decision else ("no_permit",)),
        obligations=tuple(o.made() for o in ctx.obligations),
        policy_revision=ctx.policy.revision or revision,
        ttl=ctx.ttl,
    )


def parse_json(body: bytes) -> object:
    """Return the JSON document in an answer, or raise `PDPError`."""
    try:
        return strict_json(body)
    except (ValueError, RecursionError) as exc:
        raise PDPError(Code.PDP_MALFORMED, type(exc).__name__) from exc


def parse_obligation(document: object) -> Obligation:
    """Parse `{"id", "type", "properties"}`, or raise pydantic's `ValidationError`."""
    return _Obligation.model_validate(document).made()


def is_misspelt(members: object) -> bool:
    """Return True if a member's name is a misspelt `obligations`."""
    if not isinstance(members, dict):
        return False
    return any(
        isinstance(k, str) and k != "obligations" and k.casefold() in ("obligation", "obligations") for k in members
    )
