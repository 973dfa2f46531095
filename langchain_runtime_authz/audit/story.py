"""Turn audit records into the story of a thread.

A story is a list of steps in time: decisions, questions, answers, changes of the task, delegations, credentials. The
permit of anything but a tool call has the kind `check`. Every text in a step is short, and cannot control a terminal. A
story holds only its newest steps, but counts all steps.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from langchain_runtime_authz._display import labelled, one_line, printable
from langchain_runtime_authz._validate import as_list, as_mapping

MAX_STEPS: Final = 2000
LATEST: Final = 253402300800  # the end of year 9999
_SHOWN: Final = 120  # characters of one text
_LONG: Final = 20_000
_LISTED: Final = 8  # texts in one line
_INDENT: Final = 23  # columns of a time and a sign

# Sign and word of each kind of step.
SIGNS: Final = {
    "permit": ("✓", "permitted"),
    "deny": ("✗", "denied"),
    "ask": ("?", "asked"),
    "answer": ("!", "answered"),
    "order": ("≡", "ordered"),
    "plan": ("=", "planned"),
    "task": ("±", "task changed"),
    "rotation": ("↻", "rotated"),
    "revocation": ("⊘", "revoked"),
    "delegation": ("→", "delegated"),
    "credential": ("k", "credential"),
    "run": ("»", "run"),
    "check": ("·", "checked"),
}
# Kind and line of a step, by the event of its `run` record.
_EVENTS: Final = {
    "planned": ("plan", "{tools} (by {source})"),
    "mandate": ("order", "{steps} (by the {source})"),
    "asked": ("ask", "{questions} (by another review)"),
    "approval": ("answer", "{verdict} {what}, by {approver}{refused}{unknown}"),
    "delegated": ("delegation", "to {to} ({kind})"),
    "corrected": ("task", "by {author} ({source}), epoch {from_epoch} → {epoch}"),
    "data_changed": ("task", "data changed: {resource}"),
    "rotated": ("rotation", "lease {from_jti} ended, epoch {from_epoch} → {epoch}"),
    "revoked": ("revocation", "revoked by {author}{reason}"),
    "resolved": ("answer", "{what} in doubt: {happened}, says {author}{reason}{refused}{unknown}"),
    "ended_late": ("answer", "{what} ended late as {state}; {happened}, said {author}"),
    "reinstated": ("revocation", "reinstated by {author}{reason}{refused}{unknown}"),
}
_BEFORE: Final = (("refused", ", refused: "), ("unknown", ", unknown: "), ("reason", ": "), ("subject", " for "))
_OTHER: Final = ("run", "{event}{subject}")
_HARMLESS: Final = ("read", "compute")  # effects that need no mandate
_FACTS: Final = ("event", "audience", "reason", "epoch", "run_id", "jti")

Record = Mapping[str, Any]
_inert = lru_cache(4096)(one_line)  # cached, because names and codes repeat


class Lane(NamedTuple):
    """One agent on one thread: a line of the timeline."""

    thread: str
    agent: tuple[str, ...]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Event:
    """One step of a story. `str` shows it in 80 columns."""

    at: float
    kind: str  # a key of `SIGNS`
    lane: Lane
    what: str  # a description of one line
    record: Record
    detail: Record
    subject: str = ""
    tool: str = ""
    decision_id: str = ""  # the decision to which the step belongs
    end: str = ""  # how a permitted call ended, if it has ended
    number: int = 0

    @property
    def ended(self) -> str:
        return f" [{self.end}]" if self.end else ""

    @property
    def to(self) -> Lane | None:
        """Return the child's lane if this step is a permitted delegation."""
        opened = self.kind == "delegation" and "jti" in self.detail
        return Lane(self.lane.thread, (*self.lane.agent, str(self.detail.get("to")))) if opened else None

    @property
    def epoch(self) -> str:
        return safe_text(self.record.get("epoch", _member(self.record, "request", "context", "task", "epoch")))

    def __str__(self) -> str:
        sign, word = SIGNS[self.kind]
        place, ident = f"{safe_text(self.lane.thread, 40)} {self.subject}".strip(), self.decision_id[:8]
        return labelled(f"{utc_text(self.at)} {sign} {word:<12} ", f"{place}  {self.what}{self.ended} {ident}", _INDENT)

    def why(self) -> str:
        """Return a decision's explanation, or another step's facts, in several lines."""
        if self.record.get("kind") == "decision":
            from langchain_runtime_authz.audit.explanation import explain

            try:
                # A record of another writer may hold any text, even as a code.
                return "\n".join(map(printable, str(explain(_bounded(self.record))).split("\n")))
            except (AttributeError, TypeError, ValueError, KeyError):
                return "This record does not have the form of a decision."
        facts = {**{name: self.record.get(name) for name in _FACTS}, **self.detail}
        return "\n".join(labelled(f"{safe_text(k, 40):<16} ", safe_text(v, 2000)) for k, v in facts.items() if v)

    def to_dict(self) -> dict[str, Any]:
        names = ("kind", "subject", "tool", "what", "end", "epoch", "decision_id")
        told = {name: getattr(self, name) for name in names}
        run, reasons = safe_text(self.record.get("run_id")), [*map(safe_text, as_list(self.record.get("reasons")))]
        place = {"thread": safe_text(self.lane.thread), "agent": [*map(safe_text, self.lane.agent)]}
        return {"at": utc_text(self.at), **place, **told, "reasons": reasons, "run_id": run}


class OrderedSteps(NamedTuple):
    """The `steps` of one mandate (id → description), and the calls made for each step."""

    heading: str
    steps: dict[str, str]
    done: defaultdict[str, list[Event]]


@dataclass(slots=True)
class Story:
    """The newest of `total` steps, and their summary. `str` is a tree of 80 columns."""

    steps: deque[Event] = field(default_factory=deque)
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    lanes: dict[Lane, str] = field(default_factory=dict)  # kinds of delegation, by lane
    orders: dict[tuple[str, str], OrderedSteps] = field(default_factory=dict)  # by thread and the mandate's digest
    unordered: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))  # permitted side effects
    reads: set[str] = field(default_factory=set)  # tools that were read: an ordered step of them shows `read`
    facts: dict[str, dict[str, None]] = field(default_factory=dict)
    unread: int = 0  # lines of the log that are not records
    notes: list[str] = field(default_factory=list)  # further lines of the heading

    def name(self, lane: Lane) -> str:
        """Return the agent's name, with the thread if the story has several threads."""
        agent = safe_text(lane.agent[-1], 40) if lane.agent else "-"
        return f"{safe_text(lane.thread, 40)}: {agent}" if len(self.facts.get("thread", ())) > 1 else agent

    def heading(self) -> list[str]:
        """Return the summary, in lines."""
        first, last = (self.steps[0].at, self.steps[-1].at) if self.steps else (0.0, 0.0)
        newest = f", the newest {len(self.steps)} are shown" if len(self.steps) < self.total else ""
        counted = ", ".join(f"{SIGNS[k][1]} {n}" for k in SIGNS if (n := self.counts[k]))
        return [
            *(f"{name:<9} {_listed(known)}" for name, known in self.facts.items()),
            f"{'time':<9} {utc_text(first)}, {last - first:.1f} s",
            f"{'steps':<9} {self.total}{newest}: {counted}",
            *self.notes,
            *([f"{self.unread} lines could not be read"] if self.unread else []),
        ]

    def ordered(self) -> list[tuple[str, str, str]]:
        """Return rows: source, ordered step, calls made. Calls without an order are last."""

        def done(*steps: Event) -> str:
            return ", ".join(f"{self.since(step)} {step.what}" for step in steps)

        rows = []
        for order in self.orders.values():
            left = {
                i: "read" if line.partition("(")[0] in self.reads else "not done" for i, line in order.steps.items()
            }
            rows += [(order.heading, line, done(*order.done[i]) or left[i]) for i, line in order.steps.items()]
        return rows + [("Not ordered", "", done(step)) for step in self.unordered if self.orders]

    def since(self, step: Event) -> str:
        """Return the time from the first step to `step`, as text."""
        seconds = step.at - self.steps[0].at
        return f"+{seconds:.3f} s" if seconds < 100 else f"+{seconds / 60:.1f} min"  # noqa: PLR2004  (seconds)

    def __str__(self) -> str:
        parts = {"": [labelled("", line, 10) for line in self.heading()]}
        for lane, how in self.lanes.items() if len(self.lanes) > 1 else ():
            parts.setdefault("Agents", []).append(labelled("  " * _depth(lane), f"{self.name(lane)} {how}"))
        for heading, line, done in self.ordered():
            parts.setdefault(heading, []).append(labelled("  ", f"{line}: {done}" if line else done, 4))
        parts |= {"Time": [*map(self._line, self.steps)]} if self.steps else {}
        return "\n\n".join("\n".join([heading, *lines]) for heading, lines in parts.items()).lstrip()

    def _line(self, step: Event) -> str:
        sign, word = SIGNS[step.kind]
        depth, who = "│ " * (_depth(step.lane) - 1), f"{self.name(step.lane)}: " if len(self.lanes) > 1 else ""
        ident = f" {step.decision_id[:8]}" if step.kind in ("deny", "ask") else ""
        return labelled(f"{self.since(step):>9} {depth}{sign} {word:<12} ", f"{who}{step.what}{step.ended}{ident}")

    def to_dict(self) -> dict[str, Any]:
        steps = [step.to_dict() for step in self.steps]
        return {"heading": self.heading(), "total": self.total, "counts": dict(self.counts), "steps": steps}


def story_of(
    records: Iterable[Record | None], keep: Callable[[Event], bool] | None = None, limit: int = MAX_STEPS
) -> Story:
    """Return the story of the records: the newest `limit` steps that `keep` accepts."""
    story = Story(deque(maxlen=limit))
    for step in _steps(records):
        if step is None:
            story.unread += 1
        elif keep is None or keep(step):
            story.total += 1
            step.number = story.total
            story.steps.append(step)
            _add(story, step)
    kept = {step.lane for step in story.steps} | {step.to for step in story.steps}
    story.lanes = {lane: how for lane, how in sorted(story.lanes.items()) if lane in kept}
    return story


def _add(story: Story, step: Event) -> None:
    record, detail, lane = step.record, step.detail, step.lane
    story.counts[step.kind] += 1
    story.lanes.setdefault(lane, "")
    facts = {"thread": safe_text(lane.thread), "graph": safe_text(_member(record, "scope", "graph"))}
    facts |= {"subject": step.subject, "policy": safe_text(record.get("policy_revision"))}
    for name, value in facts.items():
        if value and len(known := story.facts.setdefault(name, {})) <= _LISTED:
            known[value] = None
    if step.to is not None:
        story.lanes[step.to] = f"({safe_text(detail.get('kind'))})"
    elif step.kind == "order":
        full = {str(_member(s, "id")): _member(s, "args") for s in as_list(_member(detail, "mandate", "steps"))}
        steps = {}
        for one in as_list(detail.get("steps")):
            steps[safe_text(_member(one, "id"))] = safe_text(_member(one, "tool")) + _arguments(
                full.get(str(_member(one, "id")))
            )
        order = OrderedSteps(f"Ordered by the {_source(detail)}, epoch {step.epoch}", steps, defaultdict(list))
        story.orders.setdefault((lane.thread, str(detail.get("digest"))), order)
    elif step.kind == "permit" and _member(record, "request", "resource", "properties", "effect") in _HARMLESS:
        story.reads.add(step.tool)
    elif step.kind == "permit":
        mandate = _member(record, "request", "context", "call", "mandate")
        found = story.orders.get((lane.thread, str(_member(mandate, "digest"))))
        if found is not None and _member(mandate, "standing") == "covered":
            found.done[safe_text(_member(mandate, "step"))].append(step)
        else:
            story.unordered.append(step)


def _steps(records: Iterable[Record | None]) -> Iterator[Event | None]:
    """Yield the steps that the records tell, and `None` for each unreadable record."""
    subjects: dict[str, str] = {}  # by run id
    roots: dict[str, tuple[str, ...]] = {}  # paths of the root agents, by thread
    decided: dict[str, tuple[Lane, str, str, str]] = {}
    unended: WeakValueDictionary[str, Event] = WeakValueDictionary()  # decisions without an end
    questions: dict[tuple[str, str], str] = {}
    answers: dict[tuple[str, str], Event] = {}
    for record in records:
        if record is None:
            yield None
            continue
        kind, at, run, detail = (record.get(name) for name in ("kind", "ts", "run_id", "detail"))
        detail = as_mapping(detail)
        decision_id = safe_text(record.get("decision_id") or detail.get("decision_id"))
        if kind == "completion" and (ended := unended.get(decision_id)) is not None:
            ended.end = safe_text(record.get("state"), 40)
        if kind not in ("decision", "mint", "mint_refused", "run"):
            continue
        thread, agent = str(_member(record, "scope", "thread") or ""), tuple(map(str, as_list(record.get("agent"))))
        lane = Lane(thread, agent or roots.get(thread, ()))  # events of the whole thread belong to its root agent
        roots.setdefault(thread, agent[:1])
        named = _member(record, "request", "subject")
        if subject := f"{_member(named, 'type')}:{_member(named, 'id')}" if named else str(detail.get("subject") or ""):
            subjects[str(run)] = safe_text(subject)
        subject, tool = subjects.get(str(run), ""), safe_text(detail.get("tool"))
        if kind == "decision":
            call, what = record.get("action") == "tools/call", _decision(record)
            tool = safe_text(record.get("resource")) if call else ""
            decided[decision_id] = lane, subject, tool, what.partition(": ")[0]
            outcomes = {"permit": "permit" if call else "check", "approval_required": "ask"}
            sort = outcomes.get(str(record.get("outcome")), "deny")
        elif kind == "run":
            event, what = str(record.get("event")), tool
            if event == "asked":
                for one in as_list(detail.get("questions")):
                    questions[_question(one)] = safe_text(_member(one, "decision_id"))
                if detail.get("source") != "hitl":
                    continue  # the decisions that asked these questions are steps already
            elif event == "approval":
                decision_id = questions.get(_question(detail), "")
                what = decided[decision_id][3] if decision_id in decided else tool
            sort, template = _EVENTS.get(event, _OTHER)
            what = _event(template, record, detail, what)
        else:
            lane, subject, tool, _ = decided.get(decision_id, (lane, subject, safe_text(record.get("tool")), ""))
            what = f"token for {record.get('audience')}" if kind == "mint" else f"no token: {record.get('reason')}"
            sort, what = "credential", safe_text(what)
        at = float(at) if isinstance(at, int | float) and 0 <= at < LATEST else 0.0
        step = Event(at, sort, lane, what, record, detail, subject, tool, decision_id)
        if kind == "decision":
            unended[decision_id] = step
        if sort == "answer":
            answers[thread, str(detail.get("args_digest"))] = step
        elif sort == "permit":
            digest = _member(record, "request", "context", "call", "args_digest")
            answer = answers.pop((thread, str(digest)), None)
            if answer is not None and answer.detail.get("verdict") == "approve":
                answer.end = "ran"
        yield step


def _depth(lane: Lane) -> int:
    return min(len(lane.agent), _LISTED)


def _question(named: object) -> tuple[str, str]:
    return str(_member(named, "call_key")), str(_member(named, "approval"))


def _decision(record: Record) -> str:
    what = safe_text(record.get("resource")) + _arguments(_member(record, "request", "context", "call", "args"))
    what = what if record.get("action") == "tools/call" else f"{safe_text(record.get('action'))} {what}"
    return f"{what}: {reasons}" if (reasons := _listed(as_list(record.get("reasons")))) else what


def _event(template: str, record: Record, detail: Record, what: str) -> str:
    told = defaultdict(lambda: "?", {str(name): safe_text(value) for name, value in detail.items()})
    for name, member in (("tools", ""), ("steps", "tool"), ("questions", "tool")):
        told[name] = _listed([_member(one, member) if member else one for one in as_list(detail.get(name))])
    told["author"] = told.get("author") or ("policy" if "decision_id" in detail else "an unknown author")
    for name, before in _BEFORE:
        told[name] = f"{before}{told[name]}" if detail.get(name) else ""
    told |= {"what": what, "event": safe_text(record.get("event")), "epoch": safe_text(record.get("epoch"))}
    told["source"] = _source(detail)
    return template.format_map(told)


def _source(detail: Record) -> str:
    return "user's words" if detail.get("source") == "words" else safe_text(detail.get("source"))


def _arguments(args: object) -> str:
    if not isinstance(args, dict):
        return ""
    plain = {k: v.get("value", f"({v.get('kind')})") if isinstance(v, dict) else v for k, v in args.items()}
    return f"({_listed([f'{safe_text(k, 40)}={safe_text(v, 40)}' for k, v in plain.items()], str)})"


def _listed(values: Iterable[Any], write: Callable[[Any], str] | None = None) -> str:
    texts = [*map(write or safe_text, values)]
    return ", ".join([*texts[:_LISTED], *(["…"] if len(texts) > _LISTED else [])])


def utc_text(at: float) -> str:
    """Return epoch seconds as date and time in UTC."""
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}"


def safe_text(value: object, limit: int = _SHOWN) -> str:
    """Return a value as text, cut at `limit`, that cannot control a terminal."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return _inert(text) if len(text) <= limit else _inert(text[:limit]) + "…"


def _bounded(value: Any) -> Any:
    """Return a record with very long texts cut, because escaping them is slow."""
    if isinstance(value, str):
        return value if len(value) <= _LONG else f"{value[:_SHOWN]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {_bounded(k): _bounded(v) for k, v in value.items()}
    return [_bounded(v) for v in value] if isinstance(value, list) else value


def _member(value: object, *way: str) -> Any:
    for name in way:
        value = as_mapping(value).get(name)
    return value
