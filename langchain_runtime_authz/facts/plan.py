"""The plan: a model's calls in a message, recorded when its node returned.

The first record of a message counts. A call that differs from the record is `changed`. A call without a record is
unplanned. If the record is of an older epoch (`stale`), side effects are refused, whatever the policy says.

Evolution rule: fields may be added to `PlanRecord` and `PlannedCall`, with defaults; `source` stays `model` or `code`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from langchain_runtime_authz.digest import json_encoder

_UNCANONICAL: Final = "uncanonical"  # the digest of arguments that are not JSON; such a call matches no plan
_encode: Final = json_encoder(ascii_only=True)


class PlannedCall(NamedTuple):
    """One planned call. `was_tool`, `was_args`: the model's call, if this is an edit."""

    position: int  # index in the message
    call_id: str | None
    tool: str
    args_digest: str
    was_tool: str = ""
    was_args: str = ""

    def edited(self, instead: PlannedCall) -> PlannedCall:
        was = (self.was_tool, self.was_args) if self.was_args else (self.tool, self.args_digest)
        return instead._replace(was_tool=was[0], was_args=was[1])

    def announced(self) -> PlannedCall:
        return PlannedCall(self.position, self.call_id, self.was_tool, self.was_args) if self.was_args else self


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The calls of one message of one agent at one epoch.

    `at`: the thread's number of steps when the plan was recorded. `origin`: 0, or the first epoch of a carried plan. An
    approver's answer carries a plan into the new epoch. Call keys have the first epoch, so that no call runs again.
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


class Match(NamedTuple):
    planned: bool
    stale: bool
    changed: bool
    position: int
    of: int
    source: Literal["model", "code"] | None
    model: str | None = None
    prompt: str | None = None


PLANNED_BY_CODE: Final = Match(True, False, False, 0, 1, "code")
"""How a call stands that code makes by itself (`RuntimeAuthz.effect`): the code is its plan."""

_quoted: Final = json.encoder.encode_basestring_ascii


def raw_digest(args: object) -> str:
    """Return the digest of arguments as the model wrote them, or `_UNCANONICAL`."""
    try:
        text = "".join(_encode(args, 0))
    except (TypeError, ValueError, RecursionError):
        return _UNCANONICAL
    return hashlib.sha256(text.encode()).hexdigest()


def plan_calls(tool_calls: Sequence[Any]) -> tuple[PlannedCall, ...]:
    planned = []
    for i, c in enumerate(tool_calls):
        planned.append(PlannedCall(i, c.get("id"), c["name"], raw_digest(c["args"])))
    return tuple(planned)


def calls_digest(calls: Sequence[PlannedCall]) -> str:
    """Return a digest of a message's calls, to recognise the same calls elsewhere."""
    return hashlib.sha256("".join(_encode(calls, 0)).encode()).hexdigest()


def match(
    plan: PlanRecord | None, epoch: int, position: int | None, call_id: str | None, tool: str, args: object
) -> Match:
    """Compare a call with its message's plan, by `position` or else by `call_id`."""
    if plan is None:
        return Match(False, False, False, position or 0, 0, None)
    of, source, stale, found = len(plan.calls), plan.source, plan.epoch != epoch, None
    if position is None:
        found = locate(plan, call_id, tool, args)
    else:
        # Compare positions instead of indexing, because a carried plan lacks the rejected calls.
        for planned in plan.calls:
            if planned.position == position:
                found = planned
                break
    if found is None:
        return Match(False, stale, True, position or 0, of, source, plan.model, plan.prompt)
    same = found.call_id == call_id and found.tool == tool and found.args_digest == raw_digest(args)
    same = same and found.args_digest != _UNCANONICAL
    return Match(same, stale, not same, found.position, of, source, plan.model, plan.prompt)


def locate(plan: PlanRecord, call_id: str | None, tool: str, args: object) -> PlannedCall | None:
    """Return the planned call with this id: of several, the equal or the first one."""
    found = [c for c in plan.calls if c.call_id == call_id]
    digest = raw_digest(args) if len(found) > 1 else ""
    return next((c for c in found if c.tool == tool and c.args_digest == digest), found[0] if found else None)


def carry(
    plan: PlanRecord, epoch: int, instead: Mapping[int, PlannedCall | None], announced: Collection[int] = ()
) -> PlanRecord:
    """Return the plan for `epoch`. `instead`: position → edited call, None to drop."""
    # `announced`: positions of edited calls, which become what the model planned again.
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

    Position and digest distinguish duplicate call ids. `whose` is the beginning of a JSON list. In the ledger's keys,
    it has the epoch, because a provider may reuse a message id on a later turn. In idempotency keys, it has no thread
    or epoch, so that the key is also stable over fork and thread copy.
    """
    # The parts are JSON strings: a model chooses ids and names, and could put a separator into them.
    text = f"{whose}, {_quoted(plan_id)}, {position}, {_quoted(tool)}, {_quoted(args_digest)}]"
    return hashlib.sha256(text.encode()).hexdigest()
