"""Decide runs that were recorded elsewhere.

A trace is JSON Lines in UTF-8, as `runtime-authz replay-trace --help` shows it: a header, then the events in order.
`agent` defaults to `main`; `at` (seconds, any origin) is optional everywhere. The first `user` event is the task, and
each later one changes it. An output is any JSON, or `error` for a failed call.

`unwanted` marks a call that served an attack; a question about any other call is approved. The output of a call that
would not have run is not observed, so arguments of later calls that come from it count as unknown. Version 1 is a
closed format: an unknown field is an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.authzen import Decision
from langchain_runtime_authz.errors import AuthzDenied, ConfigError, sentence, unreadable, wrong_field
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.session import Session

VERSION: Final = 1
MAIN: Final = "main"
Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Header(_Line):
    trace: Literal["runtime-authz"]
    version: Literal[1]
    subject: Name = "user"


class _Event(_Line):
    at: Annotated[float, Field(allow_inf_nan=False)] | None = None


class User(_Event):
    type: Literal["user"]
    text: str


class ToolCall(_Event):
    """A call that a model asked for."""

    type: Literal["tool_call"]
    id: Name
    tool: Name
    args: dict[str, Any]
    agent: Name = MAIN
    unwanted: bool = False


class ToolOutput(_Event):
    """The output of a call, or its failure."""

    type: Literal["tool_output"]
    id: Name
    output: Any = None
    error: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ToolOutput:
        if self.model_fields_set.isdisjoint({"output", "error"}):
            raise ValueError("give `output` or `error`")
        return self


class Delegate(_Event):
    type: Literal["delegate"]
    agent: Name
    parent: Name = MAIN


class End(_Event):
    type: Literal["end"]
    agent: Name


Event = User | ToolCall | ToolOutput | Delegate | End
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Trace:
    subject: str
    events: tuple[tuple[int, Event], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A call of the trace, decided.

    Attributes:
        line: the line in the trace.
        outcome: `permit`, `deny`, `approval_required` or `halt`.
        reasons: stable codes, most telling first.
        evidence: the sources of its arguments, unless it was permitted.
        unwanted: True if the trace marks it as an attack's.
        ran: True if it would have run: permitted, or asked about and approved.
    """

    line: int
    agent: str
    tool: str
    args: Mapping[str, Any]
    outcome: str
    reasons: tuple[str, ...]
    unwanted: bool
    ran: bool
    evidence: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with a sentence for each reason."""
        return {**asdict(self), "reasons": [{"code": r, "sentence": sentence(r)} for r in self.reasons]}


@dataclass(frozen=True, slots=True)
class Replayed:
    """The decisions on a trace."""

    steps: tuple[Step, ...]

    @property
    def stopped(self) -> tuple[Step, ...]:
        """The calls that would not have run."""
        return tuple(s for s in self.steps if not s.ran)

    @property
    def disturbed(self) -> tuple[Step, ...]:
        """The wanted calls that were asked about or stopped."""
        return tuple(s for s in self.steps if not s.unwanted and s.outcome != "permit")

    @property
    def let_through(self) -> tuple[Step, ...]:
        """The unwanted calls that would have run."""
        return tuple(s for s in self.steps if s.unwanted and s.ran)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "calls": len(self.steps),
            "permitted": sum(s.outcome == "permit" for s in self.steps),
            "asked": sum(s.outcome == "approval_required" for s in self.steps),
            "stopped": len(self.stopped),
            "disturbed": len(self.disturbed),
            "unwanted": sum(s.unwanted for s in self.steps),
            "let_through": len(self.let_through),
            "steps": [s.to_dict() for s in self.steps],
        }


def read_trace(path: str | Path) -> Trace:
    """Read a whole trace before anything is decided. The error names the line that is malformed."""
    name = Path(path).name
    with Path(path).open("rb") as file:
        header: _Header | None = None
        events: list[tuple[int, Event]] = []
        known = _Known()
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                line = json.loads(raw.decode())
                if not isinstance(line, dict):
                    raise ValueError("not a JSON object")  # noqa: TRY004  (a wrong line, like any other)
                if header is None:
                    header = _Header.model_validate(line)
                    continue
                event = _EVENT.validate_python(line)
                known.take(event)
            except (ValueError, RecursionError) as exc:
                why = wrong_field(exc) if isinstance(exc, ValidationError) else unreadable(exc)
                raise ConfigError(f"{name}, line {number}: {why.removeprefix('line 1, ')}") from exc
            events.append((number, event))
    if header is None:
        raise ConfigError(f'{name}, line 1: the header `{{"trace": "runtime-authz", "version": {VERSION}}}` is missing')
    return Trace(header.subject, tuple(events))


class _Known:
    """The agents and calls of the lines so far."""

    def __init__(self) -> None:
        self._agents = {MAIN}
        self._calls: dict[str, bool] = {}
        self._at: float | None = None

    def take(self, event: Event) -> None:
        if event.at is not None:
            if self._at is not None and event.at < self._at:
                raise ValueError("`at` is before the previous line")
            self._at = event.at
        if isinstance(event, ToolCall):
            self._agent(event.agent)
            if event.id in self._calls:
                raise ValueError(f"the id `{event.id}` is in use")
            self._calls[event.id] = False
        elif isinstance(event, ToolOutput):
            if self._calls.get(event.id) is not False:
                raise ValueError(f"no call `{event.id}` waits for an output")
            self._calls[event.id] = True
        elif isinstance(event, Delegate):
            self._agent(event.parent)
            if event.agent in self._agents:
                raise ValueError(f"the agent `{event.agent}` is active already")
            self._agents.add(event.agent)
        elif isinstance(event, End):
            self._agent(event.agent)
            if event.agent == MAIN:
                raise ValueError(f"`{MAIN}` ends with the trace")
            self._agents.remove(event.agent)

    def _agent(self, name: str) -> None:
        if name not in self._agents:
            raise ValueError(f"the agent `{name}` is not active")


class _Clock:
    """Ledger time by the trace, so that windows and budgets count by it. A line without a time takes a second."""

    def __init__(self) -> None:
        self._now = time.time()
        self._at: float | None = None

    def __call__(self) -> float:
        return self._now

    def pass_to(self, at: float | None) -> None:
        if at is None:
            self._now += 1
        else:
            self._now += at - self._at if self._at is not None else 0
            self._at = at


def replay_trace(
    trace: Trace, *, mandate: Mandate | Mapping[str, Any] | str | Path | None = None, **options: Any
) -> Replayed:
    """Decide and observe every call of a trace, without a graph and without running anything.

    `mandate` is what the task orders, as for `RuntimeAuthz.run`. `options` are arguments of the `RuntimeAuthz` that
    decides: `profiles`, `pdp`, …
    """
    clock = _Clock()
    authz = RuntimeAuthz(ledger=MemoryLedger(clock=clock), **options)
    events = list(trace.events)
    task = events.pop(0)[1] if events and isinstance(events[0][1], User) else None
    if task is not None:
        clock.pass_to(task.at)
    text = task.text if isinstance(task, User) else None
    with authz.session(subject=trace.subject, task=text, mandate=mandate, agent=MAIN) as session:
        return Replayed(tuple(_replay(session, events, clock)))


def _replay(session: Session, events: list[tuple[int, Event]], clock: _Clock) -> Iterator[Step]:
    agents: dict[str, Session | AuthzDenied] = {MAIN: session}
    parents: dict[str, str] = {}
    running: dict[str, tuple[Session, ToolCall]] = {}
    for line, event in events:
        clock.pass_to(event.at)
        if isinstance(event, User):
            session.correct(event.text)
            for child, parent in parents.items():  # active agents continue under the new task
                agents[child] = _child(agents[parent], child)
        elif isinstance(event, Delegate):
            parents[event.agent] = event.parent
            agents[event.agent] = _child(agents[event.parent], event.agent)
        elif isinstance(event, End):
            ended = agents.pop(event.agent)
            parents.pop(event.agent)
            if isinstance(ended, Session):
                ended.close()
        elif isinstance(event, ToolOutput):
            if event.id in running:
                agent, call = running.pop(event.id)
                failed = RuntimeError(event.error) if event.error is not None else None
                agent.observe(call.tool, call.args, event.output, failed)
        else:
            agent_of = agents[event.agent]
            yield (step := _decided(agent_of, line, event))
            if step.ran and isinstance(agent_of, Session):
                running[event.id] = (agent_of, event)


def _child(parent: Session | AuthzDenied, name: str) -> Session | AuthzDenied:
    """Delegate, or return the denial, which then denies each call of the child."""
    if isinstance(parent, AuthzDenied):
        return parent
    try:
        return parent.delegate(name)
    except AuthzDenied as exc:
        return exc


def _decided(agent: Session | AuthzDenied, line: int, call: ToolCall) -> Step:
    if isinstance(agent, AuthzDenied):
        return Step(line, call.agent, call.tool, call.args, "deny", (agent.code,), call.unwanted, False)
    decision: Decision = agent.decide(call.tool, call.args)
    ran = decision.permit
    evidence = () if ran else agent.evidence(decision)
    if decision.outcome == "approval_required" and not call.unwanted:
        ran = agent.approve(decision).permit
    return Step(
        line, call.agent, call.tool, call.args, decision.outcome, decision.reasons, call.unwanted, ran, evidence
    )
