"""The plan: a model's calls in a message, recorded when the model's node returned.

If a message is recorded twice, the first record stays. A call that differs from its record is `changed`. A call without
a record is unplanned. If the record has an older epoch, it is `stale`: side effects are refused, whatever the policy.

Evolution rule: fields may be added to `PlanRecord` and `PlannedCall`, with defaults; `source` stays `model` or `code`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from langchain_runtime_authz.digest import json_encoder

_UNCANONICAL: Final = "uncanonical"  # stands for the digest of arguments that are not JSON, which match no plan
_encode: Final = json_encoder(ascii_only=True)


class PlannedCall(NamedTuple):
    """One planned call. `was_tool`, `was_args`: the model's call before an edit."""

    position: int  # index in the message
    call_id: str | None
    tool: str
    args_digest: str
    was_tool: str = ""
    was_args: str = ""

    def edited(self, instead: PlannedCall) -> PlannedCall:
        """Return `instead`, an approver's edit, with the model's call in `was_*`."""
        was = (self.was_tool, self.was_args) if self.was_args else (self.tool, self.args_digest)
        return instead._replace(was_tool=was[0], was_args=was[1])

    def announced(self) -> PlannedCall:
        """Return the call as the model planned it, without the edit."""
        return PlannedCall(self.position, self.call_id, self.was_tool, self.was_args) if self.was_args else self


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The calls of one message of one agent in one epoch.

    `at`: the thread's number of steps when the plan was recorded. `origin`: the first epoch of a plan that an approver's
    answer carried into a new epoch; else 0. Call keys contain the first epoch, so that no call of a carried plan runs
    twice. `prompt`: digest of the system prompt.
    """

    id: str
    agent: tuple[str, ...]
    epoch: int
    source: Literal["model", "code"]
    calls: tuple[PlannedCall, ...]
    at: int = 0
    origin: int = 0
    model: str | None = None
    prompt: str | None = None


class PlanMatch(NamedTuple):
    """The comparison of a call with its plan. `of`: the number of planned calls."""

    planned: bool
    stale: bool
    changed: bool
    position: int
    of: int
    source: Literal["model", "code"] | None
    model: str | None = None
    prompt: str | None = None


PLANNED_BY_CODE: Final = PlanMatch(True, False, False, 0, 1, "code")
"""The match of a call by the application's code (`RuntimeAuthz.effect`), which needs no other plan."""

_quoted: Final = json.encoder.encode_basestring_ascii


def raw_digest(args: object) -> str:
    """Return the digest of arguments as the model wrote them, or `_UNCANONICAL`."""
    try:
        text = "".join(_encode(args, 0))
    except (TypeError, ValueError, RecursionError):
        return _UNCANONICAL
    return hashlib.sha256(text.encode()).hexdigest()


def plan_calls(tool_calls: Sequence[Any]) -> tuple[PlannedCall, ...]:
    """Return the planned calls of a message's `tool_calls`."""
    planned = []
    for i, c in enumerate(tool_calls):
        planned.append(PlannedCall(i, c.get("id"), c["name"], raw_digest(c["args"])))
    return tuple(planned)


def calls_digest(calls: Sequence[PlannedCall]) -> str:
    """Return a digest by which the same calls are found in another message."""
    return hashlib.sha256("".join(_encode(calls, 0)).encode()).hexdigest()


def match_plan(
    plan: PlanRecord | None, epoch: int, position: int | None, call_id: str | None, tool: str, args: object
) -> PlanMatch:
    """Compare a call with its message's plan. Without `position`, search by `call_id`."""
    if plan is None:
        return PlanMatch(False, False, False, position or 0, 0, None)
    of, source, stale, found = len(plan.calls), plan.source, plan.epoch != epoch, None
    if position is None:
        found = planned_call(plan, call_id, tool, args)
    else:
        # Do not index: a carried plan lacks rejected calls, so a position is not an index.
        for planned in plan.calls:
            if planned.position == position:
                found = planned
                break
    if found is None:
        return PlanMatch(False, stale, True, position or 0, of, source, plan.model, plan.prompt)
    same = found.call_id == call_id and found.tool == tool and found.args_digest == raw_digest(args)
    same = same and found.args_digest != _UNCANONICAL
    return PlanMatch(same, stale, not same, found.position, of, source, plan.model, plan.prompt)


def planned_call(plan: PlanRecord, call_id: str | None, tool: str, args: object) -> PlannedCall | None:
    """Return the planned call with this id (of several, the most similar), or None."""
    found = [c for c in plan.calls if c.call_id == call_id]
    digest = raw_digest(args) if len(found) > 1 else ""
    return next((c for c in found if c.tool == tool and c.args_digest == digest), found[0] if found else None)


def carry_plan(
    plan: PlanRecord, epoch: int, instead: Mapping[int, PlannedCall | None], announced: Collection[int] = ()
) -> PlanRecord:
    """Return the plan for a new epoch.

    `instead`: position → the approver's edit, or None for a rejected call. `announced`: positions of edited calls whose
    edit is undone, so that they are what the model planned.
    """
    calls = []
    for call in plan.calls:
        other = instead.get(call.position, call)
        if call.position in announced:
            calls.append(call.announced())
        elif other is not None:
            calls.append(call if other is call else call.edited(other))
    return replace(plan, epoch=epoch, calls=tuple(calls), origin=plan.origin or plan.epoch)


def call_key(whose: str, plan_id: str, position: int, tool: str, args_digest: str) -> str:
    """Return the key of one call, stable over retry, replay, resume and restart.

    `whose`: the owner of the key, as a JSON list without its closing bracket. In the ledger's keys it contains the
    epoch, because a provider may repeat a message id in a later turn. In idempotency keys it contains neither thread
    nor epoch, so that a fork or copy of a thread has the same key. A message may repeat a call id, so no key has one.
    """
    # A model chooses ids and names and could put a separator into them, so they are quoted as JSON.
    text = f"{whose}, {_quoted(plan_id)}, {position}, {_quoted(tool)}, {_quoted(args_digest)}]"
    return hashlib.sha256(text.encode()).hexdigest()
