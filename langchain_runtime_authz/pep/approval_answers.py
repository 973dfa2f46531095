"""Read approvers' answers: the decision on each question, and task corrections.

An answer has LangChain's form (`docs/approvals.md`) or Agent Inbox's. An edit, a response and a rejection with a reason
change the task. Such an answer is a correction (`correcting_texts`): it advances the epoch, and the approved calls
continue in the new epoch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest
from langchain_runtime_authz.ledger.base import Approval, Scope
from langchain_runtime_authz.ledger.call_changes import AnswerApproval
from langchain_runtime_authz.pep.approval_questions import DECISIONS, PLAIN, allowed_decisions, approval_ids
from langchain_runtime_authz.pep.decision_log import run_event, tool_label
from langchain_runtime_authz.pep.run import Flow, Run

_VERDICTS: Final = {"approved": "approve", "rejected": "reject", "answered": "respond", "malformed": "malformed"}
_INBOX: Final = {"accept": "approve", "ignore": "reject", "response": "respond"}
YES: Final = frozenset([
    "yes", "y", "ok", "okay", "true", "approve", "approved", "accept", "accepted", "confirm", "confirmed",
    "continue", "proceed"])  # fmt: skip
NO: Final = frozenset(["no", "n", "false", "reject", "rejected", "deny", "denied", "cancel", "cancelled", "ignore"])
_UPDATES: Final = ("update", "edit")
_SAYS: Final = ("type", "action", "decision", "answer", "approved")  # fields of a form that may contain a yes or no


def read_answers(questions: Sequence[Approval], value: object, subject: Subject) -> list[AnswerApproval]:
    """Return a resume value's answers to the `questions`, also `malformed` ones."""
    by_interrupt: dict[str, list[Approval]] = {}
    for question in sorted(questions, key=lambda a: a.position):
        by_interrupt.setdefault(question.interrupt_id, []).append(question)
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) and by_interrupt.keys() & value.keys() else {}
    if not given and len(by_interrupt) == 1:  # LangGraph itself refuses a plain resume value for several interrupts
        given = dict.fromkeys(by_interrupt, value)
    changes: list[AnswerApproval] = []
    for interrupt_id, group in by_interrupt.items():
        if interrupt_id in given:
            decisions = _decisions(given[interrupt_id], group)
            changes += [_answer(a, d, subject) for a, d in zip(group, decisions, strict=True)]
    return changes


def _decisions(value: object, group: Sequence[Approval]) -> Sequence[object]:
    """Return a decision for each question in `group`; all None if the number differs."""
    decisions: Any = value.get("decisions", [value]) if isinstance(value, Mapping) else value
    if not isinstance(decisions, list | tuple) and group[0].allowed == PLAIN:
        decisions = [decisions]
    fits = isinstance(decisions, list | tuple) and len(decisions) == len(group)
    return decisions if fits else [None] * len(group)


def _answer(question: Approval, decision: object, subject: Subject) -> AnswerApproval:
    given: Mapping[Any, Any] = decision if isinstance(decision, Mapping) else {}
    if question.source == "hitl":
        given = _of_inbox(given)
    allowed = question.allowed or allowed_decisions(question.plan_id)
    if question.allowed == PLAIN:
        args = args_in_update(decision)
        given = {"type": _yes_or_no(decision)}
        if args is not None:
            given, allowed = {"type": "edit", "edited_action": {"name": question.tool, "args": args}}, ("edit",)
    kind, message = given.get("type"), given.get("message", "")
    state, edited = "malformed", ""
    if not isinstance(kind, str) or kind not in allowed:
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
        call_key=question.call_key,
        state=state,  # type: ignore[arg-type]
        approver=subject.principal,
        # What another review showed to the approver is unknown, so its approver does not count as authenticated.
        authenticated=subject.type == "user" and question.source != "hitl",
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


def args_in_update(answer: object) -> Mapping[str, Any] | None:
    """Return the arguments in an answer that updates the call, or None.

    LangGraph's how-to answers `{"action": "update", "data": {...}}`.
    """
    if not isinstance(answer, Mapping) or answer.keys() != {"action", "data"} or answer["action"] not in _UPDATES:
        return None
    return answer["data"] if isinstance(answer["data"], Mapping) else None


def _yes_or_no(answer: object) -> str | None:
    """Return "yes" or "no" if the answer is a word of `YES` or `NO`, else `None`."""
    if isinstance(answer, Mapping):
        filled = {k: v for k, v in answer.items() if v is not None}
        (answer,) = [v for k, v in filled.items() if k in _SAYS] if len(filled) == 1 else (None,)
    word = str(answer).casefold().strip() if isinstance(answer, bool | str) else ""
    return "yes" if word in YES else "no" if word in NO else None


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
    """Return name and arguments of the call in an edit, which is JSON."""
    action = json.loads(edited)
    return action["name"], action["args"]


def answers_only_some(questions: Sequence[Approval], answers: Mapping[str, object]) -> bool:
    """Return True if `answers` (by interrupt id) decide some of an interrupt's calls."""
    asked = Counter(a.interrupt_id for a in questions if a.source != "hitl")
    for interrupt_id, count in asked.items():
        given = answers.get(interrupt_id)
        decisions: Any = given.get("decisions") if isinstance(given, Mapping) else given
        some = isinstance(decisions, list | tuple) and 0 < len(decisions) < count
        if some and all(isinstance(d, Mapping) and d.get("type") in DECISIONS for d in decisions):
            return True
    return False


def remaining_decisions(value: object, question: object, open_ids: Collection[str]) -> object:
    """Drop decisions on calls not in `open_ids`. Raise `ValueError` for a rejection."""
    decisions = value.get("decisions") if isinstance(value, Mapping) else value
    ids = approval_ids(question)
    if not isinstance(decisions, list | tuple) or len(decisions) != len(ids) or len(ids) == 1:
        return value
    pairs = list(zip(decisions, [i in open_ids for i in ids], strict=True))
    if any(not is_open and isinstance(d, Mapping) and d.get("type") == "reject" for d, is_open in pairs):
        raise ValueError("it rejects what was answered already")
    return {"decisions": [d for d, is_open in pairs if is_open]}


def correcting_texts(questions: Sequence[Approval], answered: Sequence[AnswerApproval]) -> list[HumanText]:
    """Return a text for each edit, response and rejection with a reason."""
    by_key = {a.call_key: a for a in questions}
    said = []
    for answer in answered:
        question = by_key[answer.call_key]
        if question.plan_id is None or answer.state == "malformed":
            continue
        text = f"Instead of {question.tool}: {answer.edited}" if answer.edited else answer.message
        if text and (answer.edited or answer.state != "approved"):
            said.append(HumanText(content_digest(text), text, f"{ANSWER}{question.interrupt_id}:{question.position}"))
    return said


def answer_event(
    of: Run | Scope,
    question: Approval,
    given: AnswerApproval,
    now: float,
    *,
    content: bool,
    verdict: str = "",
    **detail: Any,
) -> tuple[Any, ...]:
    """Return the `Write` effect for an answer. `content`: also record its message."""
    detail = {
        "approval": question.id,
        "call_key": question.call_key,
        "args_digest": question.args_digest,
        "tool": tool_label(question.tool),
        "approver": given.approver,
        "authenticated": given.authenticated,
        "source": question.source,
        "verdict": verdict or ("edit" if given.edited else _VERDICTS[given.state]),
        **detail,
    }
    if given.message:
        detail["message_digest"] = content_digest(given.message)
        if content:
            detail["message"] = given.message
    about: dict[str, Any] = {"run_id": question.run_id, "epoch": question.epoch, "agent": question.agent}
    return run_event(of, "approval", now, detail=detail, question=question.trace, **about)


def record_answers(
    run: Run, asked: Sequence[Approval], answered: Sequence[AnswerApproval], **detail: Any
) -> Flow[None]:
    """Record answers in the audit log. `commit_recorded` calls this."""
    by_key, content = {a.call_key: a for a in asked}, run.pep.audit.content
    for given in answered:
        yield answer_event(run, by_key[given.call_key], given, time.time(), content=content, **detail)
