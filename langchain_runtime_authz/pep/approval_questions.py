"""Build approvers' questions as interrupts, and find the interrupts that ask them.

The payload has LangChain's human-in-the-loop form (`HITLRequest`: `action_requests`, `review_configs`). Each action is
a `ToolApprovalRequest` too, so that front ends for either form work. A question is bound to the key of a call and to
the digest of the call's exact arguments. Its lines show the evidence about the call.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_runtime_authz._display import one_line, quote, scripts_in
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import MappingError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.facts import provenance as tracing
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.normal_forms import forms_of, skeleton, tidy
from langchain_runtime_authz.facts.resource import fill_template
from langchain_runtime_authz.ledger.base import LASTS, Approval, Conflict, InDoubtCall, Query, Scope
from langchain_runtime_authz.ledger.call_changes import AskApproval, SpendBudget, SpendRate
from langchain_runtime_authz.ledger.changes import Change, SetMark
from langchain_runtime_authz.mandate.description import described_mandate, described_step
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.decision_log import run_event, tool_label
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run, new_id
from langchain_runtime_authz.telemetry.spans import traceparent
from langchain_runtime_authz.tool_profile import DESTINATIONS, value_at

HOUR: Final = 3600
MAX_LINES: Final = 40  # arguments shown in one question
DECISIONS: Final = ("approve", "edit", "reject", "respond")
PLAIN: Final = ("yes", "no")  # answers to an application's own question about a call, which lists no decisions
TAKES_ANY: Final = ("answer",)  # marks a tool's own `interrupt()`, which accepts any answer
_CHANGED: Final = (
    "THE ARGUMENTS CHANGED since the last approval. If the node makes a value anew, make it in a node before"
)


def allowed_decisions(plan_id: str | None, needed: int = 1, declared: Collection[str] = ()) -> tuple[str, ...]:
    """Return the decisions that a question offers.

    Only `approve` and `reject` are possible for a call without a plan, or if several approvers are `needed`. If
    `declared` names decisions, only these are offered.
    """
    possible = DECISIONS if plan_id is not None and needed == 1 else ("approve", "reject")
    return tuple(d for d in possible if d in (declared or DECISIONS))


def interrupt_value(asked: Sequence[tuple[DecidedCall, Approval]]) -> dict[str, Any]:
    """Return the value of the interrupt that asks about these calls."""
    return {
        "action_requests": [
            {
                "type": "tool_approval",
                "tool_call_id": j.call.call_id,
                "name": j.call.tool,
                "args": dict(j.call.args),
                "description": question.question,
                "approval_id": question.id,
            }
            for j, question in asked
        ],
        "review_configs": [
            {"action_name": j.call.tool, "allowed_decisions": list(question.allowed)} for j, question in asked
        ],
    }


def approval_ids(value: object) -> list[str]:
    """Return the ids of the questions in an `interrupt_value`; [] for other values."""
    asked = value.get("action_requests") if isinstance(value, Mapping) else None
    ids: list[Any] = [a.get("approval_id") for a in asked if isinstance(a, Mapping)] if isinstance(asked, list) else []
    return ids if asked and all(isinstance(i, str) and i for i in ids) and len(ids) == len(asked) else []


def questions_shown(questions: Sequence[Approval], interrupts: Mapping[str, object]) -> list[Approval]:
    """Return the `questions` that an interrupt shows, with the id of this interrupt.

    `interrupts`: interrupt id → value. The ids in `questions` are outdated if a node was stopped or asked twice.
    """
    ours = {a: i for i, q in interrupts.items() if is_shown_by(q, i, questions) for a in approval_ids(q)}
    found = [replace(a, interrupt_id=ours[a.id]) for a in questions if a.id in ours]
    others = [a for a in questions if a.interrupt_id in interrupts and a.source == "hitl" and a.allowed != TAKES_ANY]
    return found + [a for a in others if not approval_ids(interrupts[a.interrupt_id])]


def is_shown_by(question: Any, interrupt_id: str, questions: Sequence[Approval]) -> bool:
    """Return True if `question`, an interrupt's value, is ours and genuine.

    It must name this interrupt, because a node may pass on a child graph's question in an interrupt of its own. It must
    also show the calls of the open `questions`, because a node may copy their ids.
    """
    if not (ids := approval_ids(question)) or question.get("interrupt_id") != interrupt_id:
        return False
    opened = {a.id: a for a in questions}
    return all(_says(r, opened[i]) for r, i in zip(question["action_requests"], ids, strict=True) if i in opened)


def _says(action: Mapping[str, Any], ask: Approval) -> bool:
    try:
        shown = (action["name"], digest(action["args"]), action["description"])
    except (KeyError, MappingError):
        return False
    return shown == (ask.tool, ask.args_digest, ask.question)


def _question(decided: DecidedCall) -> str:
    """Return the text that the approver reads, with a line for each argument."""
    call, reasons = decided.call, ", ".join(map(one_line, decided.decision.reasons))
    shown = {name: quote(value) for name, value in call.args.items()}
    worded = fill_template(call.profile.question or "", shown) or f"Approve {one_line(call.tool)}?"
    asked = f"{worded} ({reasons})"
    if decided.terms.needed > 1:
        asked += f" {decided.terms.needed} people must approve."
    lines = [*decided.evidence[:MAX_LINES]]
    if left := len(decided.evidence) - len(lines):
        lines.append(f"and {left} more arguments; the call's digest is {decided.call.args_digest}")
    return "\n".join([asked, *(f"- {line}" for line in lines)])


def question_rows(
    run: Run, asked: Sequence[DecidedCall], number: int, task_id: str, interrupt_id: str
) -> list[Approval]:
    """Return the questions to record. `number`: the interrupt's index in its task."""
    here = run.pep.on_ask is not None  # `on_ask` answers at once; nobody else is asked
    if here:
        task_id, interrupt_id = f"here:{new_id()}", ""
    return [
        Approval(
            task_id=task_id,
            round=number,
            position=i,
            interrupt_id=interrupt_id,
            **_about(run, j.call),
            **terms_of(run, j),
            source="application" if here else "interrupt",
            # `on_ask` answers inside a run. An edit or response would change the task, which needs a root entry.
            allowed=allowed_decisions(None if here else j.call.plan_id, j.terms.needed, j.call.profile.decisions),
            id=new_id(),
            run_id=run.run_id,
            question=_question(j),
            trace=traceparent(run, j.decision.decision_id),
        )
        for i, j in enumerate(asked)
    ]


def terms_of(run: Run, decided: DecidedCall) -> dict[str, Any]:
    """Return a question's fields: its call, who may answer, and until when."""
    j, terms = decided, decided.terms
    of_call = {"call_key": j.key, "args_digest": j.call.args_digest, "doubts": tuple([one.name for one in j.doubts])}
    shown = {"confirms": j.standing.confirms, "needed": terms.needed, "distinct": terms.distinct}
    who = {"subject": run.subject.principal, "behind": subject_identities(run.subject), "eligible": terms.eligible}
    later = {"fallback": terms.fallback, "fallback_at": j.now + terms.fallback_after, "expires_at": j.expires_at}
    return {**of_call, **who, **later, **shown}


def _about(run: Run, call: Call) -> dict[str, Any]:
    of_call = {"plan_id": call.plan_id, "place": call.position, "call_id": call.call_id, "tool": call.tool}
    return {"epoch": run.epoch, "agent": run.agent, "within": run.waiting, **of_call}


def subject_identities(subject: Subject) -> tuple[str, ...]:
    """Return the user for whom the subject acts, and the subject's other identifiers."""
    named, own = map(subject.properties.get, ("on_behalf_of", "identifiers"))
    return tuple(n for n in (named, *(own if isinstance(own, list | tuple) else ())) if isinstance(n, str) and n)


def over_cap(run: Run, asked: Sequence[DecidedCall]) -> Flow[bool]:
    """Count questions. Return True if a limit is exceeded, so that none is asked."""
    terms, counter = [j.terms for j in asked], f"asks:{run.run_id}"
    hourly: list[Change] = [SpendRate("asks", HOUR, t.per_hour) for t in terms if t.per_hour is not None]
    per_run: list[Change] = [SpendBudget(counter, t.per_run) for t in terms if t.per_run is not None]
    hourly_scope = Scope(run.scope.tenant, run.scope.issuer, "asks:", run.subject.principal)  # over all threads
    # Separate commits: if the run's limit refuses questions, they do not count for the subject's hourly limit.
    for scope, counted in ((run.scope, per_run), (hourly_scope, hourly)):
        if counted and isinstance((yield Commit(scope, None, counted)), Conflict):
            return True
    return False


def notify_changed(run: Run, asked: Sequence[DecidedCall], task_id: str) -> Flow[None]:
    """Tell the approver if this LangGraph task had other arguments approved before."""
    marks = [f"{OF_TASK}{task_id}:{j.call.tool}" for j in asked]
    last = (yield Load(run.scope, Query(marks=tuple(marks)))).marks
    held = (yield Load(run.scope, Query(calls=tuple(last.values())))).approvals if last else {}
    for j, mark in zip(asked, marks, strict=True):
        before = held.get(last.get(mark, ""))
        if before is not None and before.state == "approved" and before.call_key != j.key:
            j.evidence = (_CHANGED, *j.evidence)


def record_questions(run: Run, asked: Sequence[DecidedCall], opened: Sequence[Approval]) -> Flow[bool]:
    """Record questions in ledger and audit log. Return False if the run has ended."""
    marks = [SetMark(f"{OF_TASK}{q.task_id}:{q.tool}", q.call_key) for q in opened if q.interrupt_id]
    marks += [SetMark(f"{OF_TASK}{q.interrupt_id}", q.id) for q in opened[:1] if q.interrupt_id]
    done = yield Commit(run.scope, run.guard, [*map(AskApproval, opened), *marks])
    if isinstance(done, Conflict):
        return False
    yield asked_event(run, opened, done.now, [j.decision.decision_id for j in asked])
    return True


def asked_event(run: Run, opened: Sequence[Approval], now: float, decisions: Sequence[str] = ()) -> tuple[Any, ...]:
    """Return the `Write` effect that records questions in the audit log."""
    questions = [
        {
            "approval": one.id,
            "decision_id": decision_id,
            "call_key": one.call_key,
            "args_digest": one.args_digest,
            "tool": tool_label(one.tool),
            "needed": one.needed,
        }
        for one, decision_id in zip(opened, decisions or [""] * len(opened), strict=True)
    ]
    return run_event(run, "asked", now, detail={"source": opened[0].source, "questions": questions})


def review_records(
    run: Run, asked: Sequence[tuple[str, str, Call, tuple[str, ...]]], interrupt_id: str, task_id: str = ""
) -> list[Approval]:
    """Return records of questions that another review, like LangChain's, asks.

    `asked`: (approval key, digest of the arguments, call, allowed decisions) of each question.
    """
    trace = traceparent(run)
    return [
        Approval(
            call_key=key,
            args_digest=digest,
            task_id=task_id,
            position=i,
            source="hitl",
            interrupt_id=interrupt_id,
            **_about(run, call),
            allowed=takes,
            trace=trace,
        )
        for i, (key, digest, call, takes) in enumerate(asked)
    ]


def own_key(call_key: str) -> str:
    """Return the ledger key of a tool's own `interrupt()` question."""
    return f"own:{call_key}"


def own_question(run: Run, call_key: str, call: Call, interrupt_id: str) -> AskApproval:
    """Return the change that records a tool's own `interrupt()` as an open question."""
    key, asked = own_key(call_key), interrupt_id
    return AskApproval(Approval(key, call.args_digest, run.epoch, source="hitl", interrupt_id=asked, allowed=TAKES_ANY))


MAX_SENTENCE: Final = 240
_NOUNS: Final = {"pay": "payment", "send": "message", "delete": "deletion"}


def question_lines(run: Run, decided: DecidedCall) -> tuple[str, ...]:
    """Return the lines about the mandate, calls in doubt, and the arguments' sources."""
    call, traced = decided.call, decided.provenance
    texts = run.pep.memory.texts_read(run.scope)
    payees = run.pep.memory.known_destinations(run.scope)
    differs = {d.argument: _plain(d.expected) for d in decided.standing.deviations if d.expected}
    lines = []
    if decided.mandate is not None and decided.standing.step is not None:
        ordered = next(step for step in decided.mandate.steps if step.id == decided.standing.step)
        by = _SOURCES[decided.mandate.source]
        if decided.standing.confirms:
            lines.append(f"AN APPROVAL CONFIRMS THE WHOLE ORDER, {by}:")
            lines += [_plain(line) for line in described_mandate(decided.mandate.model_copy(update={"confirm": ()}))]
        else:
            lines.append(f"ordered {by}: {_plain(described_step(ordered))}")
    if "" in differs:
        lines.append(f"expected: {differs['']}")
    lines += _doubts(run, decided)
    if decided.prior_calls:
        lines.append(f"DONE BEFORE: the same was let run {decided.prior_calls} time(s) for this task")
    for name in dict.fromkeys((*call.args, *traced)):
        value = call.args[name] if name in call.args else value_at(call.args, name)
        line = f"{one_line(name)} {quote(value)}"
        if call.profile.critical.get(name) in DESTINATIONS:
            line += _resembling(value, payees)
        found = traced.get(name)
        outside = found if found is not None and found.standing != "told" else None
        if outside is not None:
            line += _source(outside)
        if name in differs:
            line += f", EXPECTED {differs[name]}"
        if outside is not None and (sentence := _sentence(value, texts)) is not None:
            line += f"; untrusted text from {sentence}"
        lines.append(line)
    return tuple(lines)


_QUOTES: Final = str.maketrans('`"', "''")  # in texts of the mandate: only values of the call stand in `"`


def _plain(line: str) -> str:
    return one_line(line.translate(_QUOTES))


def _source(found: tracing.Provenance) -> str:
    by = found.asserted_by or found.mentioned_by
    for item in found.items:
        by = [*by, *item.asserted_by, *item.mentioned_by]
    sources = list(dict.fromkeys(one_line(s.source) for s in by if s.source))
    line = f": {_TOLD[found.class_]}"
    if sources:
        line += f" ({', '.join(sources[:3])})"
    if found.lookalike:
        line += ", and it ONLY LOOKS LIKE what you said"
    return line


def _resembling(value: object, payees: Mapping[str, frozenset[str]]) -> str:
    """Return a warning if a destination looks like an earlier one or mixes alphabets."""
    line = ""
    for one in [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]:
        own = forms_of(one)
        known = sorted(v for v in payees.get(skeleton(one), ()) if not set(forms_of(v)) & set(own))
        if known:
            line += f", WHICH ONLY LOOKS LIKE {quote(known[0])}, used before"
        if len(used := scripts_in(one)) > 1:
            line += f", WRITTEN IN MIXED LETTERS ({', '.join(used)})"
    return line


_SOURCES: Final = {"application": "by the application", "planner": "as the planner read it", "words": "in your words"}
_TOLD: Final = {**tracing.SAYS, "human": "you said it", "principal": "it is yours"}


def _sentence(value: object, texts: tracing.TextsRead) -> str | None:
    """Return the newest output text that mentions the value, with its source."""
    needles = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str | int | float)]
    for needle in needles[:16]:
        text = tidy(str(needle))
        if len(text) < tracing.SHORTEST or isinstance(needle, bool):
            continue
        for found in texts.mentions(text.casefold()):
            at = found.text.casefold().find(text.casefold())
            start = max(0, at - 100)
            start = found.text.find(" ", start, at) + 1 or start if start else 0  # begin at a word
            return f"{one_line(found.source)}: {quote(found.text[start : start + MAX_SENTENCE])}"
    return None


def _doubts(run: Run, decided: DecidedCall) -> list[str]:
    """Return a line about each call in doubt with the same deed."""
    lines, own, doubts = list[str](), decided.row, decided.doubts
    if own is not None and own.state == "unknown" and own.key not in {one.row.key for one in doubts}:
        doubts = (*doubts, InDoubtCall(run.scope, run.subject.principal, own))
    for scope, _, row in doubts:
        at = dt.datetime.fromtimestamp(row.at, dt.UTC)
        when = f"{at:%H:%M}" if decided.now - row.at < LASTS / 2 else f"{at:%Y-%m-%d %H:%M}"
        noun = _NOUNS.get(decided.call.profile.effect, "call")
        ended = "has an unknown outcome" if row.state == "unknown" else "has no outcome yet"
        if "failed" in (row.about or {}):
            ended = "failed, perhaps after it had happened"
        if row.key == decided.key and "again" in (row.about or {}):
            ended = f"{ended}, and " * (row.state == "unknown") + "was begun again by another call"
        only = "it did not happen"
        if row.state == "done":
            author = (row.about or {}).get("resolved", {}).get("author")
            ended, only = "did happen" + (f", says {one_line(author)}" if author else ""), "it is to happen again"
        where = "" if scope == run.scope else f" (thread {one_line(tool_label(scope.thread))})"
        lines.append(f"IN DOUBT: the same {noun} of {when} UTC {ended}{where}; approve only if {only}")
    return lines
