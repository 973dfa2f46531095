"""Build an approver's question as an interrupt, and parse the answer.

The payload has LangChain's human-in-the-loop shape (`HITLRequest`: `action_requests`, `review_configs`). Each action is
a `ToolApprovalRequest` too, so that front ends for either shape work. A question is bound to the key of a call and to
the digest of the call's exact arguments. An answer is one of LangChain's decisions (`docs/approvals.md`).

An edit, a response and a rejection with a reason change the task. Such an answer is a correction (`corrections`): it
advances the epoch, and the approved calls continue in the new epoch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_runtime_authz._display import inert, quoted
from langchain_runtime_authz.digest import digest
from langchain_runtime_authz.errors import MappingError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.facts.resource_version import filled
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest
from langchain_runtime_authz.ledger.base import Approval, Conflict, Query, Scope
from langchain_runtime_authz.ledger.call_changes import AnswerApproval, AskApproval, SpendBudget, SpendRate
from langchain_runtime_authz.ledger.changes import Change, SetMark
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.decision_log import label, run_event
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run, new_id
from langchain_runtime_authz.telemetry.spans import traceparent

HOUR: Final = 3600
MAX_LINES: Final = 40  # arguments shown in one question
_VERDICTS: Final = {"approved": "approve", "rejected": "reject", "answered": "respond", "malformed": "malformed"}
DECISIONS: Final = ("approve", "edit", "reject", "respond")
PLAIN: Final = ("yes", "no")  # answers to an application's question that names a call but lists no decisions
TAKES_ANY: Final = ("answer",)  # for a tool's own `interrupt()`: the tool receives any answer
OWN: Final = "own:"  # own:<call key> is the ledger key of a question that a tool asks by its own `interrupt()`
_INBOX: Final = {"accept": "approve", "ignore": "reject", "response": "respond"}
_YES: Final = frozenset([
    "yes", "y", "ok", "okay", "true", "approve", "approved", "accept", "accepted", "confirm", "confirmed",
    "continue", "proceed"])  # fmt: skip
_NO: Final = frozenset(["no", "n", "false", "reject", "rejected", "deny", "denied", "cancel", "cancelled", "ignore"])
_CHANGED: Final = (
    "THE ARGUMENTS CHANGED since the last approval. If the node makes a value anew, make it in a node before"
)
_SAYS: Final = ("type", "action", "decision", "answer", "approved")  # fields of a form that may hold a yes or a no


def allowed(plan_id: str | None, needed: int = 1, declared: Collection[str] = ()) -> tuple[str, ...]:
    """Return the decisions that a question offers.

    Only `approve` and `reject` are possible for a call without a plan, or if several approvers are `needed`. If
    `declared` is not empty, decisions that it lacks are left out.
    """
    possible = DECISIONS if plan_id is not None and needed == 1 else ("approve", "reject")
    return tuple(d for d in possible if d in (declared or DECISIONS))


def payload(asked: Sequence[tuple[DecidedCall, Approval]]) -> dict[str, Any]:
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
    """Return the questions' ledger ids if `value` is a `payload`, else `[]`."""
    asked = value.get("action_requests") if isinstance(value, Mapping) else None
    ids: list[Any] = [a.get("approval_id") for a in asked if isinstance(a, Mapping)] if isinstance(asked, list) else []
    return ids if asked and all(isinstance(i, str) and i for i in ids) and len(ids) == len(asked) else []


def shown(asks: Sequence[Approval], questions: Mapping[str, object]) -> list[Approval]:
    """Return those of `asks` that an interrupt shows, with the id of this interrupt.

    `questions`: interrupts' values by id. The ledger's ids are outdated if a node was stopped, or asked twice at once.
    """
    ours = {a: i for i, q in questions.items() if is_shown_by(q, i, asks) for a in approval_ids(q)}
    found = [replace(a, interrupt_id=ours[a.id]) for a in asks if a.id in ours]
    others = [a for a in asks if a.interrupt_id in questions and a.source == "hitl" and a.allowed != TAKES_ANY]
    return found + [a for a in others if not approval_ids(questions[a.interrupt_id])]


def is_shown_by(question: Any, interrupt_id: str, asks: Sequence[Approval]) -> bool:
    """Return True if this interrupt is the one that asks our `question`.

    If a node passes on a child graph's question as its own, the node's interrupt has another id. If a node copies the
    ids of open questions (`asks`), its interrupt counts only if it shows the same calls.
    """
    if not (ids := approval_ids(question)) or question.get("interrupt_id") != interrupt_id:
        return False
    opened = {a.id: a for a in asks}
    return all(_says(r, opened[i]) for r, i in zip(question["action_requests"], ids, strict=True) if i in opened)


def _says(action: Mapping[str, Any], ask: Approval) -> bool:
    try:
        shown = (action["name"], digest(action["args"]), action["description"])
    except (KeyError, MappingError):
        return False
    return shown == (ask.tool, ask.args_digest, ask.question)


def remaining(value: object, question: object, open_ids: Collection[str]) -> object:
    """Drop decisions on calls that are answered already. A reject raises `ValueError`."""
    decisions = value.get("decisions") if isinstance(value, Mapping) else value
    ids = approval_ids(question)
    if not isinstance(decisions, list | tuple) or len(decisions) != len(ids) or len(ids) == 1:
        return value
    pairs = list(zip(decisions, [i in open_ids for i in ids], strict=True))
    if any(not is_open and isinstance(d, Mapping) and d.get("type") == "reject" for d, is_open in pairs):
        raise ValueError("it rejects what was answered already")
    return {"decisions": [d for d, is_open in pairs if is_open]}


def _question(judged: DecidedCall) -> str:
    """Return the question that the approver reads, with a line for each argument."""
    call, reasons = judged.call, ", ".join(map(inert, judged.decision.reasons))
    shown = {name: quoted(value) for name, value in call.args.items()}
    worded = filled(call.profile.question or "", shown) or f"Approve {inert(call.tool)}?"
    asked = f"{worded} ({reasons})"
    if judged.terms.needed > 1:
        asked += f" {judged.terms.needed} people must approve."
    lines = [*judged.evidence[:MAX_LINES]]
    if left := len(judged.evidence) - len(lines):
        lines.append(f"and {left} more arguments; the call's digest is {judged.call.args_digest}")
    return "\n".join([asked, *(f"- {line}" for line in lines)])


def questions(run: Run, asked: Sequence[DecidedCall], number: int, task_id: str, interrupt_id: str) -> list[Approval]:
    """Return the questions to record. `number`: the interrupt's index in its task."""
    here = run.engine.on_ask is not None  # `on_ask` answers at once, and nobody else can
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
            # An edit or a response changes the task, which needs a root entry.
            allowed=allowed(None if here else j.call.plan_id, j.terms.needed, j.call.profile.decisions),
            id=new_id(),
            run_id=run.run_id,
            question=_question(j),
            trace=traceparent(run, j.decision.decision_id),
        )
        for i, j in enumerate(asked)
    ]


def terms_of(run: Run, judged: DecidedCall) -> dict[str, Any]:
    """Return fields of a question: what it asks, who may answer, and until when."""
    j, terms = judged, judged.terms
    of_call = {"call_key": j.key, "args_digest": j.call.args_digest, "doubts": tuple([one.name for one in j.doubts])}
    who = {"subject": run.subject.principal, "behind": behind(run.subject), "eligible": terms.eligible}
    later = {"fallback": terms.fallback, "fallback_at": j.now + terms.fallback_after, "expires_at": j.expires_at}
    return {**of_call, **who, **later, "needed": terms.needed, "distinct": terms.distinct}


def _about(run: Run, call: Call) -> dict[str, Any]:
    of_call = {"plan_id": call.plan_id, "place": call.position, "call_id": call.call_id, "tool": call.tool}
    return {"epoch": run.epoch, "agent": run.agent, "within": run.waiting, **of_call}


def behind(subject: Subject) -> tuple[str, ...]:
    """Return the user for whom the subject acts, and the subject's other identifiers."""
    named, own = map(subject.properties.get, ("on_behalf_of", "identifiers"))
    return tuple(n for n in (named, *(own if isinstance(own, list | tuple) else ())) if isinstance(n, str) and n)


def over_cap(run: Run, asked: Sequence[DecidedCall]) -> Flow[bool]:
    """Count the questions. Return True if a limit is exceeded, so that none is asked."""
    terms, counter = [j.terms for j in asked], f"asks:{run.run_id}"
    hourly: list[Change] = [SpendRate("asks", HOUR, t.per_hour) for t in terms if t.per_hour is not None]
    per_run: list[Change] = [SpendBudget(counter, t.per_run) for t in terms if t.per_run is not None]
    asks = Scope(run.scope.tenant, run.scope.issuer, "asks:", run.subject.principal)  # over all threads
    # Separate commits, so that questions over the run's limit do not count against the subject's hourly limit.
    for scope, counted in ((run.scope, per_run), (asks, hourly)):
        if counted and isinstance((yield Commit(scope, None, counted)), Conflict):
            return True
    return False


def notify_changed(run: Run, asked: Sequence[DecidedCall], task_id: str) -> Flow[None]:
    """Warn the approver if this LangGraph task had other arguments approved before."""
    marks = [f"{OF_TASK}{task_id}:{j.call.tool}" for j in asked]
    last = (yield Load(run.scope, Query(marks=tuple(marks)))).marks
    held = (yield Load(run.scope, Query(calls=tuple(last.values())))).approvals if last else {}
    for j, mark in zip(asked, marks, strict=True):
        before = held.get(last.get(mark, ""))
        if before is not None and before.state == "approved" and before.call_key != j.key:
            j.evidence = (_CHANGED, *j.evidence)


def open_questions(run: Run, asked: Sequence[DecidedCall], opened: Sequence[Approval]) -> Flow[bool]:
    """Record the questions in ledger and audit log. Return False if the run has ended."""
    marks = [SetMark(f"{OF_TASK}{q.task_id}:{q.tool}", q.call_key) for q in opened if q.interrupt_id]
    marks += [SetMark(f"{OF_TASK}{q.interrupt_id}", q.id) for q in opened[:1] if q.interrupt_id]
    done = yield Commit(run.scope, run.guard, [*map(AskApproval, opened), *marks])
    if isinstance(done, Conflict):
        return False
    yield asked_event(run, opened, done.now, [j.decision.decision_id for j in asked])
    return True


def asked_event(run: Run, opened: Sequence[Approval], now: float, decisions: Sequence[str] = ()) -> tuple[Any, ...]:
    questions = [
        {
            "approval": one.id,
            "decision_id": decision_id,
            "call_key": one.call_key,
            "args_digest": one.args_digest,
            "tool": label(one.tool),
            "needed": one.needed,
        }
        for one, decision_id in zip(opened, decisions or [""] * len(opened), strict=True)
    ]
    return run_event(run, "asked", now, detail={"source": opened[0].source, "questions": questions})


def answer_event(
    of: Run | Scope,
    ask: Approval,
    given: AnswerApproval,
    now: float,
    *,
    content: bool,
    verdict: str = "",
    **detail: Any,
) -> tuple[Any, ...]:
    """Return the effect that records an answer in the audit log."""
    detail = {
        "approval": ask.id,
        "call_key": ask.call_key,
        "args_digest": ask.args_digest,
        "tool": label(ask.tool),
        "approver": given.approver,
        "authenticated": given.authenticated,
        "source": ask.source,
        "verdict": verdict or ("edit" if given.edited else _VERDICTS[given.state]),
        **detail,
    }
    if given.message:
        detail["message_digest"] = content_digest(given.message)
        if content:
            detail["message"] = given.message
    about: dict[str, Any] = {"run_id": ask.run_id, "epoch": ask.epoch, "agent": ask.agent}
    return run_event(of, "approval", now, detail=detail, question=ask.trace, **about)


def record_answers(run: Run, asks: Sequence[Approval], answered: Sequence[AnswerApproval], **detail: Any) -> Flow[None]:
    """Record answers, for `decision_log.commit_recorded`."""
    by_key: dict[str, Approval] = {a.call_key: a for a in asks}
    for given in answered:
        about = by_key[given.call_key], given, time.time()
        yield answer_event(run, *about, content=run.engine.audit.content, **detail)


def reviews(
    run: Run, asked: Sequence[tuple[str, str, Call, tuple[str, ...]]], interrupt_id: str, task_id: str = ""
) -> list[Approval]:
    """Return records of the questions that another review (like LangChain's) asks."""
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


def own_question(run: Run, call_key: str, call: Call, interrupt_id: str) -> AskApproval:
    """Return the change that records a tool's own `interrupt()` as an open question."""
    key, asked = f"{OWN}{call_key}", interrupt_id
    return AskApproval(Approval(key, call.args_digest, run.epoch, source="hitl", interrupt_id=asked, allowed=TAKES_ANY))


def answers(asks: Sequence[Approval], value: object, subject: Subject) -> list[AnswerApproval]:
    """Return the answers to `asks` in a resume value. Invalid ones are `malformed`."""
    groups: dict[str, list[Approval]] = {}
    for ask in sorted(asks, key=lambda a: a.position):
        groups.setdefault(ask.interrupt_id, []).append(ask)
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) and groups.keys() & value.keys() else {}
    if not given and len(groups) == 1:  # LangGraph itself refuses a plain resume value for several interrupts
        given = dict.fromkeys(groups, value)
    changes: list[AnswerApproval] = []
    for interrupt_id, group in groups.items():
        if interrupt_id in given:
            decisions = _decisions(given[interrupt_id], group)
            changes += [_answer(a, d, subject) for a, d in zip(group, decisions, strict=True)]
    return changes


def _decisions(value: object, group: Sequence[Approval]) -> Sequence[object]:
    """Return a decision for each question, or only `None`s if their number differs."""
    decisions: Any = value.get("decisions", [value]) if isinstance(value, Mapping) else value
    if not isinstance(decisions, list | tuple) and group[0].allowed == PLAIN:
        decisions = [decisions]
    fits = isinstance(decisions, list | tuple) and len(decisions) == len(group)
    return decisions if fits else [None] * len(group)


def is_partial(asks: Sequence[Approval], value: object) -> bool:
    """Return True if a resume value decides only some of the calls of an interrupt."""
    groups = Counter(a.interrupt_id for a in asks if a.source != "hitl")
    named = value if isinstance(value, Mapping) and not groups.keys().isdisjoint(value.keys()) else None
    for interrupt_id, count in groups.items():
        given = value if named is None else named.get(interrupt_id)
        decisions: Any = given.get("decisions") if isinstance(given, Mapping) else given
        some = isinstance(decisions, list | tuple) and 0 < len(decisions) < count
        if some and all(isinstance(d, Mapping) and d.get("type") in DECISIONS for d in decisions):
            return True
    return False


def _answer(ask: Approval, decision: object, subject: Subject) -> AnswerApproval:
    given: Mapping[Any, Any] = decision if isinstance(decision, Mapping) else {}
    if ask.source == "hitl":
        given = _of_inbox(given)
    if ask.allowed == PLAIN:
        given = {"type": _said(decision)}
    kind, message = given.get("type"), given.get("message", "")
    state, edited = "malformed", ""
    if not isinstance(kind, str) or kind not in (ask.allowed or allowed(ask.plan_id)):
        pass
    elif kind in ("approve", "yes") and not given.get("edited_action"):
        state = "approved"
    elif kind in ("reject", "no"):
        state = "rejected"
    elif kind == "respond" and isinstance(message, str) and "message" in given:
        state = "answered"
    elif kind == "edit" and (edited := _action(given.get("edited_action"))):
        state = "approved"
    return AnswerApproval(
        call_key=ask.call_key,
        state=state,  # type: ignore[arg-type]
        approver=subject.principal,
        # We do not know what another review showed to the approver.
        authenticated=subject.type == "user" and ask.source != "hitl",
        message=message if isinstance(message, str) else "",
        edited=edited,
    )


def _of_inbox(decision: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Translate a decision of Agent Inbox, like `accept`, into LangChain's terms."""
    kind, args = decision.get("type"), decision.get("args")
    if kind == "edit" and "edited_action" not in decision and isinstance(args, Mapping):
        return {"type": kind, "edited_action": {"name": args.get("action"), "args": args.get("args")}}
    if not isinstance(kind, str) or kind not in _INBOX:
        return decision
    return {"type": _INBOX[kind], **({"message": args} if kind == "response" else {})}


def _said(answer: object) -> str | None:
    """Return "yes" or "no" if the answer is a word of `_YES` or `_NO`, else `None`."""
    if isinstance(answer, Mapping):
        (answer,) = [v for k, v in answer.items() if k in _SAYS and v is not None] if len(answer) == 1 else (None,)
    word = str(answer).casefold().strip() if isinstance(answer, bool | str) else ""
    return "yes" if word in _YES else "no" if word in _NO else None


def _action(action: object) -> str:
    if not isinstance(action, Mapping):
        return ""
    name, args = action.get("name"), action.get("args")
    if not (isinstance(name, str) and name and isinstance(args, Mapping) and all(isinstance(k, str) for k in args)):
        return ""
    try:
        return json.dumps({"name": name, "args": dict(args)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return ""


def edited_action(edited: str) -> tuple[str, dict[str, Any]]:
    action = json.loads(edited)
    return action["name"], action["args"]


def corrections(asks: Sequence[Approval], answered: Sequence[AnswerApproval]) -> list[HumanText]:
    """Return a text for each answer that changes the task: edit, response or reason."""
    by_key = {a.call_key: a for a in asks}
    said = []
    for answer in answered:
        ask = by_key[answer.call_key]
        if ask.plan_id is None or answer.state == "malformed":
            continue
        text = f"Instead of {ask.tool}: {answer.edited}" if answer.edited else answer.message
        if text and (answer.edited or answer.state != "approved"):
            said.append(HumanText(content_digest(text), text, f"{ANSWER}{ask.interrupt_id}:{ask.position}"))
    return said
