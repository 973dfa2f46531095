"""A tool call, its decision, and its verdict: a ticket, a denial or a replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.credential.ticket import Ticket
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.facts.call_arguments import TracedArguments
from langchain_runtime_authz.facts.plan import PlanMatch
from langchain_runtime_authz.facts.provenance import Provenance
from langchain_runtime_authz.facts.task import Task
from langchain_runtime_authz.ledger.base import Approval, CallRow, InDoubtCall
from langchain_runtime_authz.mandate.call_matching import Standing
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.obligations import QuestionTerms
from langchain_runtime_authz.tool_profile import ToolProfile

_NO_TASK: Final = Task()
NO_STANDING: Final = Standing("none", None, (), ())


class ToolInput(NamedTuple):
    """A call of a LangChain tool, as the framework passes it to the tool."""

    tool: object
    sent: Any  # the arguments before parsing, without those that the framework supplies
    parsed: Any  # the arguments that the tool receives, or the exception that parsing raised
    injected: frozenset[str]  # names of the arguments that the framework supplies
    supplied: bool  # `parsed` has such arguments
    parse: Callable[[], Any]  # parses the arguments again


_NO_INPUT: Final = ToolInput(None, None, None, frozenset(), False, str)


@dataclass(slots=True)
class Call:
    """One tool call as an enforcement point saw it, before any decision."""

    tool: str
    profile: ToolProfile
    profiled: bool
    call_id: str | None
    plan_id: str | None  # id of the model message that contains the call
    position: int | None  # the call's index in that message
    raw: Mapping[str, Any] | str  # the arguments as the model wrote them
    args: Mapping[str, Any]  # the parsed arguments as JSON, without those that the framework supplies
    args_digest: str
    traced: TracedArguments
    given: frozenset[str] = frozenset()  # names of the arguments that the model sent; all names if it used an alias
    input: ToolInput = _NO_INPUT  # empty if the tool is unknown or not LangChain's
    metadata: Mapping[str, Any] | None = None
    declared: ToolProfile | None = None  # the profile that was declared under the tool's name
    error: Code | None = None
    place: str = ""  # distinguishes equal calls without a known model message
    batch: str | None = None  # the same for calls of code that begin together, as a message's calls do
    amend: Callable[[str, dict[str, Any]], Call] | None = None  # returns the call of an approver's edit
    edited_by: str = ""  # key of the approval whose edit made this call
    reviewed: bool = False  # another review, like LangChain's, asks before the tool runs
    by_application: bool = False  # the application's code makes the call: `RuntimeAuthz.effect`


@dataclass(slots=True)
class DecidedCall:
    """A call and its decision, before the claim."""

    call: Call
    key: str  # the call's key, under which the ledger has `row` and `approval`
    decision: Decision
    body: bytes | None = None  # the request to the PDP
    started: int = 0  # start of the batch that decided the call, in nanoseconds
    now: int = 0  # ledger time of the decision, in seconds
    match: PlanMatch | None = None
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    prior_calls: int = 0  # permitted calls of this tool with the same critical arguments, since the user's last message
    mandate: Mandate | None = None
    standing: Standing = NO_STANDING
    counter: str = ""  # the ledger's counter for `prior_calls`
    task: Task = _NO_TASK
    approval: Approval | None = None
    row: CallRow | None = None
    replay: bool = False  # the call ran before, so its recorded result is used
    deeds: tuple[str, ...] = ()  # the call's own deed, and deeds of similar calls: `effect_names`
    doubts: tuple[InDoubtCall, ...] = ()  # calls in doubt that make this call ask an approver
    repeated: tuple[InDoubtCall, ...] = ()  # calls in doubt with the same deed; the claim notes that it is done again
    evidence: tuple[str, ...] = ()  # lines of the question to the approver

    @property
    def needs_approval(self) -> bool:
        """True if an approver could permit the call."""
        return self.decision.outcome == "approval_required"

    @property
    def doubts_shown(self) -> bool:
        """True if the call's newest question named all of `doubts`."""
        named = self.approval.doubts if self.approval is not None else ()
        return all(one.name in named for one in self.doubts)

    @property
    def terms(self) -> QuestionTerms:
        """The strictest terms of the decision's `require_approval` obligations."""
        asked = [QuestionTerms.of(o.properties) for o in self.decision.obligations if o.type == "require_approval"]
        found = [terms for terms in asked if terms is not None]
        return reduce(QuestionTerms.strictest, found) if found else QuestionTerms()

    @property
    def expires_at(self) -> int:
        """Ledger time at which question and answer expire; 0 means never."""
        return self.now + self.terms.expires_in if self.terms.expires_in else 0

    @property
    def stale(self) -> bool:
        """True if the call's plan belongs to an older epoch."""
        return self.match is not None and self.match.stale

    def with_decision(self, decision: Decision) -> DecidedCall:
        """Return the call with another decision, but the same decision id."""
        return replace(self, decision=replace(decision, decision_id=self.decision.decision_id))


class Denial(NamedTuple):
    """A call that does not run. `message`: an approver's text, or new user texts."""

    call: Call
    decision: Decision
    message: str = ""


class Replay(NamedTuple):
    """A call that ran before. `result`: its JSON output. `message`: new user texts."""

    call: Call
    result: str | None
    message: str = ""


Verdict = Ticket | Denial | Replay
