"""A tool call as the gates see it, what was decided on it, and what a gate is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

from langchain_runtime_authz.authzen import (
    Decision,
    EvaluationRequest,
)
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.task import Task
from langchain_runtime_authz.ledger.base import (
    Approval,
    CallRow,
)
from langchain_runtime_authz.pep.obligations import Terms
from langchain_runtime_authz.profile import ToolProfile

__all__ = ["Call", "DecidedCall", "Denial", "Replay", "Verdict"]

_NO_TASK: Final = Task()


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call as a gate saw it, before any decision.

    `args` is the JSON projection of the parsed arguments, without injected ones; `raw` what the
    model wrote; `parsed` the object that the tool will receive. `error` is set where there is
    nothing to decide because the call can not run at all. `plan_id` and `position` are `None` where
    the gate did not see the message; `place` then says which of several equal calls this is.
    `amend` gives the call that a human put in this one's place (tool, arguments), `amends` is the
    key of the approval that says so. `reviewed`: between the gate and the tool stands a review that
    asks a human about calls of this tool by itself.
    """

    tool: str
    profile: ToolProfile
    profiled: bool
    call_id: str | None
    plan_id: str | None
    position: int | None
    raw: Mapping[str, Any] | str
    args: Mapping[str, Any]
    args_digest: str
    parsed: Any = None
    tool_ref: object = None
    metadata: Mapping[str, Any] | None = None
    error: Code | None = None
    place: str = ""
    amend: Callable[[str, dict[str, Any]], Call] | None = None
    amends: str = ""
    reviewed: bool = False


@dataclass(frozen=True, slots=True)
class DecidedCall:
    """A call and what was decided on it; nothing is claimed yet.

    `body` is the request's JSON, `started` when the batch was asked about (nanoseconds), `task` the
    task it was decided under, `same` the counter of calls that do what it does, `evidence` what a human who is asked is shown of where arguments came from.
    """

    call: Call
    key: str
    decision: Decision
    request: EvaluationRequest | None
    body: bytes | None = None
    started: int = 0
    task: Task = _NO_TASK
    approval: Approval | None = None
    row: CallRow | None = None
    same: str = ""
    replay: bool = False
    evidence: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether a human's approval would lift the deny."""
        return self.decision.outcome == "approval_required"

    @property
    def terms(self) -> Terms:
        """On which terms a human is to be asked about it."""
        asked = [Terms.of(o.properties) for o in self.decision.obligations if o.type == "require_approval"]
        found = [terms for terms in asked if terms is not None]
        return reduce(Terms.strictest, found) if found else Terms()

    @property
    def expires_at(self) -> int:
        """Until when a question about it can be answered and the answer counts, in ledger time; 0 for ever."""
        return self.now + self.terms.expires_in if self.terms.expires_in else 0

    @property
    def now(self) -> int:
        """Ledger time at the decision."""
        return self.request.context.now if self.request is not None else 0


@dataclass(frozen=True, slots=True)
class Denial:
    """The call does not run. `message` is a human's own word on a rejection."""

    call: Call
    decision: Decision
    message: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """The call ran before: its recorded result (JSON text) stands, it does not run again.

    `message`: what the human has said since.
    """

    call: Call
    result: str | None
    message: str = ""


Verdict = Ticket | Denial | Replay
