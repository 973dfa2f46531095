"""Define requests and decisions in the form of AuthZEN 1.0, for every engine.

Evolution rule of the request, version 2 (`context.schema_version`): a field may be added, with a default, and a
closed list of names may get another name. A field is never renamed or removed, and never changes its type or meaning.
So a policy keeps its meaning within a version. `test_evaluation.py` pins the field list. Version 2 has
`context.call.mandate` in place of version 1's `context.call.intent` and `context.plan.listed`.

Every model here is strict, frozen and closed. Mutable defaults come from factories, as pydantic deep-copies plain ones.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from langchain_runtime_authz._display import table
from langchain_runtime_authz.errors import ConfigError, wrong_field

SCHEMA_VERSION: Final = 2
MAX_REQUEST_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32
MAX_ANSWER_BYTES: Final = 64 * 1024

REASON_CODE: Final = re.compile(r"^[A-Za-z0-9_.:/-]{1,128}$")

ActionName = Literal["run/start", "run/resume", "agent/invoke", "model/call", "node/enter", "tools/call"]
EdgeKind = Literal["handoff", "task", "subgraph", "send", "agent_as_tool", "remote"]
Outcome = Literal["permit", "deny", "approval_required", "halt"]
ValueClass = Literal["human", "principal", "system", "internal", "counterparty", "external", "mentioned", "unknown"]
Standing = Literal["told", "known", "outside"]
ArgumentKind = Literal["principal", "url", "object", "name", "channel", "amount", "place", "value", "when"]
CallStanding = Literal["covered", "deviates", "forbidden", "outside", "none"]
_OfValue = Literal["value", "missing", "undeclared", "unordered", "unread", "ambiguous", "untrusted", "extract", "text"]
DeviationCode = Literal[_OfValue, "condition", "spent", "after", "part", "confirm", "limit", "suspended"]
# The failure behind a deny, by the names of AuthZEN COAZ.
Failure = Literal["mapping", "pdp", "enforcement"]
_TYPED: Final = ("user:", "agent:", "service:", "anonymous:")


class Model(BaseModel):
    """Base of messages: strict, frozen and closed."""

    # Built at first use. A nested model that is built late takes the outer model's settings, so all have the same ones.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


Properties = dict[str, JsonValue]


class Subject(Model):
    """The principal on whose behalf the run acts (AuthZEN §5.1)."""

    type: Annotated[str, Field(pattern=r"^[^:]+$")]  # a colon would make the principal ambiguous
    id: Annotated[str, Field(min_length=1)]
    properties: Properties = Field(default_factory=dict)

    @classmethod
    def of(cls, value: "Subject | str | dict[str, Any]") -> "Subject":
        """Return a subject from a name or `{type, id, properties}`. Raises `ConfigError`."""
        if isinstance(value, Subject):
            return value
        if isinstance(value, str) and value.startswith(_TYPED):  # `user:alice` would be another person than `alice`
            raise ConfigError("a subject's text is a user's name without a type, or give `{type, id, properties}`")
        try:
            return cls.model_validate({"type": "user", "id": value} if isinstance(value, str) else value)
        except ValidationError as exc:  # the value is not shown: it may be a person's name
            msg = f"a subject is a user's name or `{{type, id, properties}}`: {wrong_field(exc)}"
            raise ConfigError(msg) from None

    @property
    def principal(self) -> str:
        """Return `type:id`, the name in ledger, approvals and records."""
        return f"{self.type}:{self.id}"

    @property
    def human(self) -> bool:
        """Return True if this subject's texts can state a task; an agent's cannot."""
        return self.type in ("user", "anonymous")


class Action(Model):
    """The attempted action (AuthZEN §5.3)."""

    name: ActionName


class Resource(Model):
    """The target of the action (AuthZEN §5.2): a run, agent, node, model or tool."""

    type: Literal["run", "agent", "node", "model", "tool"]
    id: str
    properties: Properties = Field(default_factory=dict)


class TaskContext(Model):
    """The user's task, as pinned in the ledger."""

    id: str
    epoch: int
    digest: str
    text: str
    corrections: int


class PromptContext(Model):
    """The planning model and the digest of its system messages; null if not observed."""

    model: str | None = None
    digest: str | None = None


class AgentContext(Model):
    """The acting agent. `attested` is true only if a workload identity was verified."""

    path: list[str]
    id: str
    attested: bool = False


class Edge(Model):
    """One delegation, parent to child."""

    from_: Annotated[str, Field(alias="from")]
    to: str
    kind: EdgeKind


class DelegationContext(Model):
    """The delegations from the root agent (`depth` 0) to the acting agent."""

    depth: int
    edges: list[Edge] = Field(default_factory=list)


class PlanContext(Model):
    """The recorded plan of the call. `planned`: the plan holds exactly this call.

    `stale`: the plan's epoch is over. `changed`: at the call's position, the plan holds another call or none.
    `resource` and `call` show what would run. A call that code makes by itself (`RuntimeAuthz.effect`) is its own plan,
    with source `code` and without an `id`.
    """

    id: str | None = None
    source: Literal["model", "code"] | None = None
    planned: bool = False
    stale: bool = False
    position: int = 0
    of: int = 0
    changed: bool = False


class Said(Model):
    """The source of a value: the user, the principal, or a field of a tool's output.

    The source asserted or mentioned the value. `origin` is `human` if the user said the value. `source` is `tool` or
    `tool/field`. `counterparty`: the other side of the transaction chose the value.
    """

    origin: Literal["human", "principal", "system", "internal", "external"]
    source: str | None = None
    counterparty: bool = False


class ItemProvenance(Model):
    """The provenance of one value; `facts.provenance` explains classes and standings.

    `lookalike`: the value looks like something that the user said, but differs from it.
    """

    model_config = ConfigDict(populate_by_name=True)

    class_: Annotated[ValueClass, Field(alias="class")]
    standing: Standing
    asserted_by: list[Said] = Field(default_factory=list)
    mentioned_by: list[Said] = Field(default_factory=list)
    lookalike: bool = False


class ArgumentProvenance(ItemProvenance):
    """The provenance of one critical argument, and of the items of a list or object."""

    kind: ArgumentKind
    items: list[ItemProvenance] = Field(default_factory=list)


class DeviationContext(Model):
    """`argument` differs from the mandate; it is empty if the whole call differs.

    `code` says how, as `audit.explanation.DEVIATIONS` explains.
    """

    argument: str
    code: DeviationCode


class MandateContext(Model):
    """The call's `standing`: how the call compares with the task's mandate.

    `covered`: a step that is not used up orders exactly this call. `deviates`: a step orders the tool, but not this
    call. `forbidden`: a prohibition or a limit excludes the call. `outside`: no step orders the tool. `none`: there is
    no mandate. `backed`: no critical argument has the standing `outside`. `source`: who compiled the mandate.
    """

    standing: CallStanding = "none"
    backed: bool = False
    source: Literal["application", "planner", "words"] | None = None
    step: str | None = None
    digest: str | None = None
    deviations: list[DeviationContext] = Field(default_factory=list)


class CallContext(Model):
    """The tool call.

    `args` are the arguments as parsed for the tool; a long uncritical text is given by digest and length. `provenance`
    has the origin of each critical argument. `sink` is where this call's arguments go: `none` if a tool that sends got
    no recipient. `changed` are the tools that supplied critical arguments and whose data has changed since the plan.
    `repeats` counts the permitted calls of this tool with the same critical arguments since the user's last message (an
    answer to a question is not one), including earlier calls of this model message.
    """

    id: str | None = None
    state: Literal["new", "claimed", "suspended", "done", "failed", "unknown"] = "new"
    args: Properties
    args_digest: str
    provenance: dict[str, ArgumentProvenance] = Field(default_factory=dict)
    mandate: MandateContext = Field(default_factory=MandateContext)
    sink: Literal["none", "internal", "external"] | None = None
    changed: list[str] = Field(default_factory=list)
    repeats: int = 0


class HistoryContext(Model):
    """The steps taken so far on this thread, in bounded space.

    `denials` counts denied steps without outages, `streak` those since the last permitted call. `unplanned` counts
    denied side effects that no plan held, `tainted` those with critical arguments of standing `outside`. `rotations`
    counts task changes by others, since the last change by the subject and the last side effect. `last_minute` counts
    permitted calls, up to `facts.history.TIMES`. `classes_read` are the data classes that any agent of the thread read,
    `classes_held` those that the acting agent may know of (`facts.history`), or null.
    """

    steps: int = 0
    calls: dict[str, int] = Field(default_factory=dict)
    effects: dict[str, int] = Field(default_factory=dict)
    denials: int = 0
    classes_read: list[str] = Field(default_factory=list)
    classes_held: list[str] | None = None
    recent: list[str] = Field(default_factory=list)
    streak: int = 0
    unplanned: int = 0
    tainted: int = 0
    rotations: int = 0
    last_minute: int = 0


class LeaseContext(Model):
    """The run's lease. `grant` is `Grant.to_json()`; null means every reachable tool.

    `seconds` (of ledger time) and `steps` (of `history.steps`) count from the beginning of the root entry.
    """

    jti: str
    epoch: int
    exp: int
    grant: Properties | None = None
    seconds: int = 0
    steps: int = 0


class ApprovalContext(Model):
    """An approval on record for exactly this call.

    `edited_from`: an approver replaced a call of this tool by the present call. `approvers` are all who approved, each
    as `type:id`.
    """

    source: Literal["interrupt", "hitl", "application"]
    approver: str
    authenticated: bool
    args_digest: str
    edited_from: str | None = None
    approvers: list[str] = Field(default_factory=list)


class LocalContext(Model):
    """The local time at `now` in `RuntimeAuthz(zone=...)`. `weekday` 1 is Monday."""

    zone: str
    date: str
    weekday: int
    hour: int
    minute: int


class Context(Model):
    """The execution state at the step. If `local` is null, let rules on time deny."""

    schema_version: Literal[2] = SCHEMA_VERSION
    now: int
    task: TaskContext
    agent: AgentContext
    delegation: DelegationContext
    history: HistoryContext
    lease: LeaseContext
    prompt: PromptContext | None = None
    plan: PlanContext | None = None
    call: CallContext | None = None
    approval: ApprovalContext | None = None
    local: LocalContext | None = None


class EvaluationRequest(Model):
    """One AuthZEN evaluation: may `subject` do `action` on `resource`, now?"""

    subject: Subject
    action: Action
    resource: Resource
    context: Context

    def to_json(self) -> bytes:
        """Return the UTF-8 JSON for a PDP. Each call serialises again: keep the result."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True)


def parse_request(body: bytes) -> EvaluationRequest:
    """Return the request in a JSON body, or raise `ValidationError`."""
    return EvaluationRequest.model_validate_json(body)


def request_schema() -> dict[str, Any]:
    """Return the request's JSON Schema, committed as `policies/request.schema.json`."""
    schema = EvaluationRequest.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@dataclass(frozen=True, slots=True)
class Obligation:
    """A demand that the PEP must meet (AuthZEN obligations; see `pep.obligations`)."""

    id: str
    type: str
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision that the PEP obeys. A failure of the engine or PEP is a deny.

    Attributes:
        outcome: `permit`, `deny`, `approval_required` (an approver can permit it) or `halt` (a deny that revokes).
        reasons: stable codes, most telling first; never empty on a deny.
        decision_id: the id of the audit record. A model reads this id, and no reason.
        failure: `mapping` (the state cannot be put into a request), `pdp` (the engine gave no usable answer) or
            `enforcement` (this package refused the step); `None` if the policy decided.
        ttl: seconds for which a run may reuse a permit of `node/enter` or `model/call`, while epoch and policy revision
            stay the same. With 0, only permits for tool nodes and models are reused.
        pdp_decision_id: the PDP's own id of this decision, if it gave one, to find the entry in the PDP's log.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    decision_id: str = field(default_factory=lambda: os.urandom(16).hex())
    policy_revision: str = ""
    failure: Failure | None = None
    ttl: int = 0
    pdp_decision_id: str = ""

    @property
    def permit(self) -> bool:
        """Return True if the step may be taken."""
        return self.outcome == "permit"

    @property
    def reason(self) -> str:
        """Return the first reason's code, or an empty text on a plain permit."""
        return self.reasons[0] if self.reasons else ""

    def _repr_html_(self) -> str:
        return table(("outcome", "reasons", "id"), [(self.outcome, ", ".join(self.reasons), self.decision_id)])


def deny(code: str, failure: Failure | None = "enforcement", revision: str = "") -> Decision:
    """Return a deny that this package itself gives."""
    return Decision("deny", (str(code),), failure=failure, policy_revision=revision)


def strict_json(text: str | bytes | bytearray) -> Any:
    """Parse a JSON document in UTF-8, with unique member names and finite numbers.

    Raises `ValueError`, or `RecursionError` if it is nested too deeply.
    """
    # `json` guesses the encoding of bytes. It would take UTF-16 and a byte order mark, which other parsers refuse.
    text = text if isinstance(text, str) else text.decode()
    return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # `NaN`, `Infinity`, `1e999`
        raise ValueError(text)
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("duplicate member")
    return found
