"""Define requests and decisions in the form of AuthZEN 1.0, for every engine.

Evolution rule of the request, version 2 (`context.schema_version`): a field may be added, with a default, and a
closed list of values may gain a value. A field is never renamed or removed, and never changes its type or meaning.
So a policy keeps its meaning within a version. `policies/request.schema.json` pins the fields. Version 2 has
`context.call.mandate` in place of version 1's `context.call.intent` and `context.plan.listed`.

Every model here is strict and frozen, and refuses unknown fields. Mutable defaults come from factories, because
pydantic would deep-copy plain ones.
"""

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from langchain_runtime_authz._display import html_table
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
# Why a step was denied without a decision of the policy; the names are those of AuthZEN COAZ.
Failure = Literal["mapping", "pdp", "enforcement"]
SUBJECT_TYPES: Final = ("user", "agent", "service", "anonymous")
_TYPED: Final = tuple(f"{kind}:" for kind in SUBJECT_TYPES)


class Model(BaseModel):
    """Base of the parts of a request: strict and frozen, without unknown fields."""

    # pydantic builds each model at first use, and then gives it the outer model's settings. So all have the same ones.
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


Properties = dict[str, JsonValue]


class Subject(Model):
    """The principal on whose behalf the run acts (AuthZEN §5.1)."""

    type: Annotated[str, Field(pattern=r"^[^:]+$")]  # a colon would make the principal ambiguous
    id: Annotated[str, Field(min_length=1)]
    properties: Properties = Field(default_factory=dict)

    @classmethod
    def of(cls, value: "Subject | str | dict[str, Any]") -> "Subject":
        """Return the subject with this name, or `{type, id, properties}`.

        Raises `ConfigError` for other values, and for a name that begins with a type, like `user:alice`.
        """
        if isinstance(value, Subject):
            return value
        if isinstance(value, str) and value.startswith(_TYPED):  # else `user:alice` would become `user:user:alice`
            raise ConfigError("a subject's text is a user's name without a type, or give `{type, id, properties}`")
        try:
            return cls.model_validate({"type": "user", "id": value} if isinstance(value, str) else value)
        except ValidationError as exc:  # the value is not shown: it may be a person's name
            msg = f"a subject is a user's name or `{{type, id, properties}}`: {wrong_field(exc)}"
            raise ConfigError(msg) from None

    @property
    def principal(self) -> str:
        """Return `type:id`, the subject's name in ledger, approvals and records."""
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
    """The model that planned, and its system messages' digest; null if unseen."""

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

    `stale`: the plan has an older epoch. `changed`: at the call's position, the plan holds another call or none. The
    request's `resource` and `call` show the call that would run. A call by the application's code
    (`RuntimeAuthz.effect`) counts as planned. It has the source `code`, and `id` is null.
    """

    id: str | None = None
    source: Literal["model", "code"] | None = None
    planned: bool = False
    stale: bool = False
    position: int = 0
    of: int = 0
    changed: bool = False


class Said(Model):
    """A source that asserted or mentioned a value.

    `origin` is `human` if the user said the value. `source` is `tool` or `tool/field` if a tool's output had the value.
    `counterparty`: the other side of the transaction chose it.
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
    """A difference between the call and the mandate.

    `argument` is empty if the whole call differs. `audit.explanation.DEVIATIONS` explains `code`.
    """

    argument: str
    code: DeviationCode


class MandateContext(Model):
    """The call's `standing`: how the call compares with the task's mandate.

    `covered`: a step orders exactly this call and is not used up. `deviates`: a step orders the tool, but not this
    call. `forbidden`: a prohibition or a limit excludes the call. `outside`: no step orders the tool. `none`: the task
    has no mandate. `backed`: no critical argument has the standing `outside`. `source`: who compiled the mandate.
    """

    standing: CallStanding = "none"
    backed: bool = False
    source: Literal["application", "planner", "words"] | None = None
    step: str | None = None
    digest: str | None = None
    deviations: list[DeviationContext] = Field(default_factory=list)


class CallContext(Model):
    """The tool call.

    `args` are the arguments as parsed for the tool. A long uncritical text is replaced by its digest and length.
    `provenance` shows where each critical argument came from. `sink` is where this call's arguments go; it is `none` if
    all recipients are empty. `changed` lists tools that supplied critical arguments and whose data changed after the
    plan. `repeats` counts the permitted calls of this tool with the same critical arguments since the user's last
    message. It includes earlier calls of the same model message. An answer to a question is not a message.
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

    `denials` counts denied steps, except those that an outage denied. `streak` counts the denials since the last
    permitted call. `unplanned` counts denied side effects that no plan held. `tainted` counts denied side effects that
    have critical arguments with the standing `outside`. `rotations` counts changes of the task by others; a change by
    the subject or a side effect sets it to 0. `last_minute` counts permitted calls, up to `facts.history.TIMES`.
    `classes_read` lists data classes that any agent of the thread read. `classes_held` lists the data classes that the
    acting agent may know.
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

    `seconds` (of ledger time) and `steps` (of `history.steps`) count from the start of the root entry.
    """

    jti: str
    epoch: int
    exp: int
    grant: Properties | None = None
    seconds: int = 0
    steps: int = 0


class ApprovalContext(Model):
    """The recorded approval of exactly this call.

    `edited_from`: tool of the call that an approver replaced by this one. `approvers` lists all who approved, as
    `type:id`.
    """

    source: Literal["interrupt", "hitl", "application"]
    approver: str
    authenticated: bool
    args_digest: str
    edited_from: str | None = None
    approvers: list[str] = Field(default_factory=list)


class LocalContext(Model):
    """The local time of `now` in `RuntimeAuthz(zone=...)`. `weekday` 1 is Monday."""

    zone: str
    date: str
    weekday: int
    hour: int
    minute: int


class Context(Model):
    """The execution state at the step. If `local` is null, rules on time should deny."""

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
        """Return the UTF-8 JSON for a PDP. Not cached, so store the result."""
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
        reasons: stable codes, the most specific first; never empty for a deny.
        decision_id: the id of the audit record. A model sees this id, and never a reason.
        failure: `mapping` (the step cannot be put into a request), `pdp` (the engine gave no usable answer) or
            `enforcement` (this package refused the step). None if the policy decided.
        ttl: seconds for which a run may reuse a permit of `node/enter` or `model/call` in the same epoch and policy
            revision. With None, only permits of tool nodes and models are reused, and these for as long as the run.
        pdp_decision_id: the PDP's own id of this decision, if it gave one, to find the entry in the PDP's log.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    obligations: tuple[Obligation, ...] = ()
    decision_id: str = field(default_factory=lambda: os.urandom(16).hex())
    policy_revision: str = ""
    failure: Failure | None = None
    ttl: int | None = None
    pdp_decision_id: str = ""

    @property
    def permit(self) -> bool:
        """Return True if the step may be taken."""
        return self.outcome == "permit"

    @property
    def reason(self) -> str:
        """Return the first reason's code, or "" for a permit without reasons."""
        return self.reasons[0] if self.reasons else ""

    def _repr_html_(self) -> str:
        return html_table(("outcome", "reasons", "id"), [(self.outcome, ", ".join(self.reasons), self.decision_id)])


def deny(code: str, failure: Failure | None = "enforcement", revision: str = "") -> Decision:
    """Return a deny by this package itself, not by the policy."""
    return Decision("deny", (str(code),), failure=failure, policy_revision=revision)


def strict_json(text: str | bytes | bytearray) -> Any:
    """Parse a JSON document in UTF-8, with unique member names and finite numbers.

    Raises `ValueError`, or `RecursionError` if it is nested too deeply.
    """
    # Decode here: `json` would also accept bytes in UTF-16 or with a byte order mark, which other parsers refuse.
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
