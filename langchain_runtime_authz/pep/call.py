"""A tool call, its decision, and the verdict for its enforcement point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.authzen import Decision
from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.argument_atoms import CallAtoms
from langchain_runtime_authz.facts.plan import Match
from langchain_runtime_authz.facts.provenance import Provenance
from langchain_runtime_authz.facts.task import Task
from langchain_runtime_authz.ledger.base import Approval, CallRow, Doubt
from langchain_runtime_authz.mandate.call_matching import Standing
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.obligations import Terms
from langchain_runtime_authz.tool_profile import ToolProfile

_NO_TASK: Final = Task()
NO_STANDING: Final = Standing("none", None, (), ())


@dataclass(slots=True)
class Call:
    """One tool call as an enforcement point saw it, before any decision."""

    tool: str
    profile: ToolProfile
    profiled: bool
    call_id: str | None
    plan_id: str | None  # of the message that planned it
    position: int | None  # its index in that message
    raw: Mapping[str, Any] | str  # the arguments as the model wrote them
    args: Mapping[str, Any]  # the parsed arguments as JSON, without those that the framework supplies
    args_digest: str
    atoms: CallAtoms
    parsed: Any = None  # what the tool will receive
    sent: Any = None
    injected: frozenset[str] = frozenset()  # arguments that the framework supplies
    supplied: bool = False
    reread: Callable[[], str] | None = None  # parses the arguments again and returns their digest
    tool_ref: object = None
    metadata: Mapping[str, Any] | None = None
    error: Code | None = None
    place: str = ""  # distinguishes equal calls if no message is known
    amend: Callable[[str, dict[str, Any]], Call] | None = None  # returns an approver's replacement of this call
    amends: str = ""  # the key of the approval that replaced the call
    reviewed: bool = False  # a later review asks an approver about it
    by_code: bool = False

    @property
    def given(self) -> frozenset[str]:
        """Names of the arguments that the model sent. If it used an alias, all count as sent."""
        sent = self.sent if type(self.sent) is dict or isinstance(self.sent, Mapping) else self.args
        names = frozenset(sent)
        return names if names <= self.args.keys() else frozenset(self.args)


@dataclass(slots=True)
class DecidedCall:
    """A call and its decision, before the claim."""

    call: Call
    key: str  # in the ledger, as `row` and `approval`
    decision: Decision
    body: bytes | None = None  # the request to the PDP
    started: int = 0  # start of its batch, in nanoseconds
    now: int = 0  # ledger time then
    match: Match | None = None
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    prior_calls: int = 0  # permitted calls with the same effect in this task
    mandate: Mandate | None = None
    standing: Standing = NO_STANDING
    counter: str = ""  # the counter of these calls
    task: Task = _NO_TASK
    approval: Approval | None = None
    row: CallRow | None = None
    replay: bool = False  # it ran before; use its recorded result
    deeds: tuple[str, ...] = ()  # its effect and target (`CallRow.deed`), and other names of such calls
    doubts: tuple[Doubt, ...] = ()  # doubts that make it ask (`Doubt.asks`)
    repeats: tuple[Doubt, ...] = ()  # other calls of the deed, which must ask after the claim of this one
    evidence: tuple[str, ...] = ()  # lines for the approver

    @property
    def asks(self) -> bool:
        """True if an approval would lift the deny."""
        return self.decision.outcome == "approval_required"

    @property
    def told(self) -> bool:
        """True if its newest question named all of its doubts."""
        named = self.approval.doubts if self.approval is not None else ()
        return all(one.name in named for one in self.doubts)

    @property
    def terms(self) -> Terms:
        asked = [Terms.of(o.properties) for o in self.decision.obligations if o.type == "require_approval"]
        found = [terms for terms in asked if terms is not None]
        return reduce(Terms.strictest, found) if found else Terms()

    @property
    def expires_at(self) -> int:
        """Ledger time until which its question can be answered and the answer used; 0 for ever."""
        return self.now + self.terms.expires_in if self.terms.expires_in else 0

    @property
    def stale(self) -> bool:
        """True if its plan belongs to an older epoch."""
        return self.match is not None and self.match.stale

    def under(self, decision: Decision) -> DecidedCall:
        """Return the call with another decision, under the first decision's id."""
        return replace(self, decision=replace(decision, decision_id=self.decision.decision_id))


class Denial(NamedTuple):
    """The call does not run. `message` is the approver's reason for a rejection."""

    call: Call
    decision: Decision
    message: str = ""


class Replay(NamedTuple):
    """The call ran before: use its recorded result (JSON text). `message` holds the user's words since then."""

    call: Call
    result: str | None
    message: str = ""


Verdict = Ticket | Denial | Replay
