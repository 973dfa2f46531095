"""Read a trace (JSON Lines) that another system wrote, and decide its calls.

The first `user` event is the task; each later one changes it. The seconds `at` may begin at any number. If a call would
not have run, its output is ignored. A later argument with a value from that output then has an unknown source.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from langchain_runtime_authz.audit.chain import read_lines
from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.errors import AuthzDenied, ConfigError, sentence, unreadable, wrong_field
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pep.session import Session

VERSION: Final = 1
MAIN: Final = "main"
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    at: Annotated[float, Field(allow_inf_nan=False)] | None = None


class _Header(_Line):
    trace: Literal["runtime-authz"]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)]  # a `Literal` would take `true` too
    subject: Name = "user"


class User(_Line):
    type: Literal["user"]
    text: str


class ToolCall(_Line):
    type: Literal["tool_call"]
    id: Name
    tool: Name
    args: dict[str, Any]
    agent: Name = MAIN
    unwanted: bool = False


class ToolOutput(_Line):
    type: Literal["tool_output"]
    id: Name
    output: Any = None
    error: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ToolOutput:
        if self.model_fields_set.isdisjoint({"output", "error"}):
            raise ValueError("give `output` or `error`")
        return self


class Delegate(_Line):
    type: Literal["delegate"]
    agent: Name
    parent: Name = MAIN


class End(_Line):
    type: Literal["end"]
    agent: Name


Event = User | ToolCall | ToolOutput | Delegate | End
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class Trace(NamedTuple):
    """A recorded run. Each event has a line number, and seconds since the first event."""

    subject: str
    events: list[tuple[int, Event]]


class DecidedStep(NamedTuple):
    """The decision about one call of a trace."""

    line: int
    call: ToolCall
    outcome: str  # permit | deny | approval_required | halt
    reasons: tuple[str, ...]  # stable codes, most telling first
    ran: bool  # it would have run: permitted, or asked about and approved
    evidence: tuple[str, ...] = ()  # the sources of its arguments, unless it was permitted

    def to_dict(self) -> dict[str, Any]:
        call = self.call.model_dump(include={"agent", "tool", "args", "unwanted"})
        reasons = [{"code": r, "sentence": sentence(r)} for r in self.reasons]
        own = {"outcome": self.outcome, "reasons": reasons, "ran": self.ran, "evidence": self.evidence}
        return {"line": self.line, **call, **own}


class Replayed(NamedTuple):
    """The decisions about all calls of a trace."""

    steps: tuple[DecidedStep, ...]
    stopped: tuple[DecidedStep, ...]  # would not have run
    disturbed: tuple[DecidedStep, ...]  # asked about or denied, though not marked as unwanted
    let_through: tuple[DecidedStep, ...]  # unwanted, and would have run

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "calls": len(self.steps),
            "permitted": sum(s.outcome == "permit" for s in self.steps),
            "asked": sum(s.outcome == "approval_required" for s in self.steps),
            "unwanted": sum(s.call.unwanted for s in self.steps),
            **{name: len(calls) for name, calls in self._asdict().items() if name != "steps"},
            "steps": [s.to_dict() for s in self.steps],
        }


def read_trace(path: str | Path) -> Trace:
    """Read a whole trace before any decision. An error names the malformed line."""
    name, number = Path(path).name, 1
    trace: Trace | None = None
    agents, waiting, last, since = {MAIN}, dict[str, bool](), None, 0.0
    with Path(path).open("rb") as file:
        try:
            for number, raw in enumerate(read_lines(file), 1):
                if not raw.strip():
                    continue
                line = json.loads(raw.decode())
                if not isinstance(line, dict):
                    raise ValueError("not a JSON object")  # noqa: TRY004  (a wrong line, like any other)
                if trace is None:
                    trace = Trace(_Header.model_validate(line).subject, [])
                    continue
                event = _EVENT.validate_python(line)
                _follow(event, agents, waiting)
                passed = 1.0 if event.at is None else event.at - (event.at if last is None else last)
                if passed < 0:
                    raise ValueError("`at` is before the previous line")
                since, last = since + passed, last if event.at is None else event.at
                trace.events.append((number, event.model_copy(update={"at": since})))
        except (ValueError, RecursionError) as exc:
            why = wrong_field(exc) if isinstance(exc, ValidationError) else unreadable(exc)
            raise ConfigError(f"{name}, line {number}: {why.removeprefix('line 1, ')}") from exc
    if trace is None:
        raise ConfigError(f'{name}, line 1: the header `{{"trace": "runtime-authz", "version": {VERSION}}}` is missing')
    return trace


def _follow(event: Event, agents: set[str], waiting: dict[str, bool]) -> None:
    acting = event.parent if isinstance(event, Delegate) else getattr(event, "agent", MAIN)
    if acting not in agents:
        raise ValueError(f"the agent `{acting}` is not active")
    if isinstance(event, ToolCall):
        if event.id in waiting:
            raise ValueError(f"the id `{event.id}` is in use")
        waiting[event.id] = True
    elif isinstance(event, ToolOutput):
        if not waiting.get(event.id):
            raise ValueError(f"no call `{event.id}` waits for an output")
        waiting[event.id] = False
    elif isinstance(event, Delegate):
        if event.agent in agents:
            raise ValueError(f"the agent `{event.agent}` is active already")
        agents.add(event.agent)
    elif isinstance(event, End):
        if event.agent == MAIN:
            raise ValueError(f"`{MAIN}` ends with the trace")
        agents.remove(event.agent)


def decide_trace(trace: Trace, *, mandate: Any = None, **options: Any) -> Replayed:
    """Decide every call of a trace, without a graph and without running anything.

    `mandate` is as for `RuntimeAuthz.run`, `options` are arguments of the `RuntimeAuthz` that decides.
    """
    began = now = time.time()
    authz = RuntimeAuthz(ledger=MemoryLedger(clock=lambda: now), **options)  # windows and budgets use the trace's times
    task = next((event.text for _, event in trace.events[:1] if isinstance(event, User)), None)
    steps: list[DecidedStep] = []
    with authz.session(subject=trace.subject, task=task, mandate=mandate, agent=MAIN) as session:
        agents: dict[str, Session | AuthzDenied] = {MAIN: session}
        parents: dict[str, str] = {}
        running: dict[str, tuple[Session, ToolCall]] = {}
        for line, event in trace.events if task is None else trace.events[1:]:
            now = began + (event.at or 0.0)
            if isinstance(event, User):
                session.correct(event.text)
                for child, parent in parents.items():  # active agents continue under the new task
                    agents[child] = _child(agents[parent], child)
            elif isinstance(event, Delegate):
                parents[event.agent] = event.parent
                agents[event.agent] = _child(agents[event.parent], event.agent)
            elif isinstance(event, End):
                parents.pop(event.agent)
                if isinstance(ended := agents.pop(event.agent), Session):
                    ended.close()
            elif isinstance(event, ToolCall):
                agent = agents[event.agent]
                steps.append(_decided_step(agent, line, event))
                if steps[-1].ran and isinstance(agent, Session):
                    running[event.id] = agent, event
            elif event.id in running:
                caller, call = running.pop(event.id)
                failed = RuntimeError(event.error) if event.error is not None else None
                caller.observe(call.tool, call.args, event.output, failed)
    disturbed = tuple(s for s in steps if not s.call.unwanted and s.outcome != "permit")
    let_through = tuple(s for s in steps if s.call.unwanted and s.ran)
    return Replayed(tuple(steps), tuple(s for s in steps if not s.ran), disturbed, let_through)


def _child(parent: Session | AuthzDenied, name: str) -> Session | AuthzDenied:
    """Return the child's session, or the denial that also applies to its calls."""
    try:
        return parent.delegate(name) if isinstance(parent, Session) else parent
    except AuthzDenied as exc:
        return exc


def _decided_step(agent: Session | AuthzDenied, line: int, call: ToolCall) -> DecidedStep:
    if isinstance(agent, AuthzDenied):
        return DecidedStep(line, call, "deny", (agent.code,), ran=False)
    decision = agent.decide(call.tool, call.args)
    ran = decision.permit
    evidence = () if ran else agent.evidence(decision)
    if decision.outcome == "approval_required" and not call.unwanted:
        ran = agent.approve(decision).permit
    return DecidedStep(line, call, decision.outcome, decision.reasons, ran, evidence)
