"""Asking a human: the question's payload and the reading of the answer.

The payload is LangChain's human-in-the-loop shape (`action_requests`, `review_configs`), each
action being its `ToolApprovalRequest`, so that front ends that know it work. Questions are made of
bound arguments alone: the call's key and its exact arguments' digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_runtime_authz.ledger.base import AnswerApproval, Approval, AskApproval, Change

if TYPE_CHECKING:
    from langchain_runtime_authz.authzen import Subject
    from langchain_runtime_authz.enforce.step import Judged

__all__ = ["answers", "payload", "questions"]


def payload(asked: Sequence[Judged]) -> dict[str, Any]:
    """The value of the one interrupt that asks about all of `asked`, in order."""
    return {
        "action_requests": [
            {
                "type": "tool_approval",
                "tool_call_id": j.call.call_id,
                "name": j.call.tool,
                "args": dict(j.call.args),
                "description": _question(j),
            }
            for j in asked
        ],
        "review_configs": [{"action_name": j.call.tool, "allowed_decisions": ["approve", "reject"]} for j in asked],
    }


def _question(judged: Judged) -> str:
    """One line that asks, and one for each argument whose source the human should see."""
    asked = f"Approve {judged.call.tool}? ({', '.join(judged.decision.reasons)})"
    return "\n".join([asked, *(f"- {line}" for line in judged.evidence)])


def questions(asked: Sequence[Judged], epoch: int, number: int, task_id: str, interrupt_id: str) -> list[Change]:
    """The changes that open the questions in the ledger, before anybody is asked.

    `number` counts the interrupts of one task, so that a re-entered task repeats them in order.
    """
    return [
        AskApproval(
            Approval(
                call_key=j.key,
                args_digest=j.call.args_digest,
                epoch=epoch,
                task_id=task_id,
                round=number,
                position=i,
                interrupt_id=interrupt_id,
            ),
        )
        for i, j in enumerate(asked)
    ]


def answers(asks: Sequence[Approval], value: object, subject: Subject) -> list[Change]:
    """The changes that a resume value makes to open questions.

    `value` is `{"decisions": [...]}`, a list of decisions, or one decision where one was asked; or
    a map from interrupt id to any of these. A decision is `{"type": "approve"}` or
    `{"type": "reject", "message": …}`. Whatever else is `malformed`, and denies.
    """
    groups: dict[str, list[Approval]] = {}
    for ask in asks:
        groups.setdefault(ask.interrupt_id, []).append(ask)
    if isinstance(value, Mapping) and groups.keys() & value.keys():
        pairs = [(group, value[i]) for i, group in groups.items() if i in value]
    elif len(groups) == 1:
        pairs = [(next(iter(groups.values())), value)]
    else:
        # LangGraph itself refuses a plain resume value for several interrupts.
        return []
    return [change for group, answer in pairs for change in _answer_group(group, answer, subject)]


def _answer_group(group: Sequence[Approval], value: object, subject: Subject) -> list[Change]:
    ordered = sorted(group, key=lambda a: a.position)
    decisions: object = value
    if isinstance(value, Mapping):
        decisions = value.get("decisions", [value])
    if not isinstance(decisions, list | tuple) or len(decisions) != len(ordered):
        decisions = [None] * len(ordered)
    return [_answer(a, d, subject) for a, d in zip(ordered, decisions, strict=True)]


def _answer(ask: Approval, decision: object, subject: Subject) -> Change:
    kind = decision.get("type") if isinstance(decision, Mapping) else None
    message = decision.get("message", "") if isinstance(decision, Mapping) else ""
    state = {"approve": "approved", "reject": "rejected"}.get(kind if isinstance(kind, str) else "", "malformed")
    return AnswerApproval(
        call_key=ask.call_key,
        state=state,  # type: ignore[arg-type]
        approver=f"{subject.type}:{subject.id}",
        authenticated=subject.type == "user",
        message=message if isinstance(message, str) else "",
    )
