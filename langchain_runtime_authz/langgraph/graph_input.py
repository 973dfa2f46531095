"""Find new texts, answers and edits in a root's input, and add corrections to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Interrupt, StateSnapshot

from langchain_runtime_authz.facts.answer_corrections import texts_in
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph import messages
from langchain_runtime_authz.langgraph.answer_consent import choices_in, without_consent
from langchain_runtime_authz.langgraph.answer_numbers import OURS
from langchain_runtime_authz.langgraph.checkpoints import WATCHED, content_of
from langchain_runtime_authz.langgraph.private_api import is_resume_map
from langchain_runtime_authz.langgraph.state_updates import held, messages_in, overwritten, removed_by, with_messages
from langchain_runtime_authz.ledger.base import Approval
from langchain_runtime_authz.pep.approval_questions import PLAIN, TAKES_ANY, approval_ids, is_shown_by, shown
from langchain_runtime_authz.pep.corrections import answer, reply
from langchain_runtime_authz.pep.run import Flow
from langchain_runtime_authz.pep.run_lifecycle import Entry


def brought(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """Return an input's edits of watched channels other than `messages`."""
    edits: list[HumanText] = []
    for name in written(given, others(channels)):
        (replaces, new), old = overwritten(held(given, name)), held(values, name)
        if isinstance(new, Mapping) and isinstance(old, Mapping) and not replaces:  # the reducer keeps other entries
            old = {key: old.get(key) for key in new}
        if (new or old) and content_of(new) != content_of(old):
            words = _words(new, old) if name in channels and new is not None else ""
            edits.append(HumanText(content_of(new), words, f"channel:{name}"))
    return edits


def _words(new: object, old: object) -> str:
    """Return a channel's new text. If it holds messages, join the user's new ones."""
    if not isinstance(new, list) or not any(not isinstance(m, str) and messages.as_message(m) for m in new):
        return content_text(new)
    before = {(t.key, t.digest) for t in messages.human_texts(old)} if isinstance(old, list) else set()
    return "\n".join(t.text for t in messages.human_texts(new) if (t.key, t.digest) not in before)


def written(given: object, names: Sequence[str]) -> list[str]:
    """Return those `names` that an input writes. In a mapping, None counts as a value."""
    if isinstance(given, (dict, Mapping)):
        return [name for name in names if name in given]
    return [name for name in names if getattr(given, name, None) is not None]


def taken_out(given: object, values: object) -> list[HumanText]:
    """Return one edit if user messages or plans are removed and not sent again."""
    gone, sent = removals(given), [messages.as_message(m) for m in messages_in(given)]
    before = [m for m in messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {content_of(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in messages.human_texts(given)}
    ours = [m for m in before if messages.is_human(m) or (isinstance(m, AIMessage) and m.tool_calls)]
    lost = [
        content_of(m)
        for m in ours
        if (content_digest(m.content) if messages.is_human(m) else content_of(m)) not in back
    ]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removals(given: object) -> set[str]:
    """Return the ids of messages that an input removes, or `REMOVE_ALL_MESSAGES`."""
    replaces, _ = overwritten(held(given, "messages"))
    gone = {i for m in messages_in(given) if (i := removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def unheard(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Drop texts of a client's history: the state has them under the same message id."""
    standing = {(t.key, t.digest) for t in messages.human_texts(messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def others(channels: Sequence[str]) -> list[str]:
    """Return the watched channels except `messages`."""
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def open_questions(state: StateSnapshot, asks: Sequence[Approval], now: float) -> tuple[Interrupt, ...]:
    """Return a state's interrupts, without approval questions that no longer wait."""
    waits = [a for a in asks if not 0 < a.expires_at <= now]
    waiting = {a.interrupt_id for a in shown(waits, {i.id: i.value for i in state.interrupts})}
    return tuple(i for i in state.interrupts if not approval_ids(i.value) or i.id in waiting)


def untold(pending: Sequence[HumanText], input: Any, asked: Collection[str]) -> tuple[HumanText, ...]:
    """Return pending texts, except reasons that rejected calls' tool messages carry."""
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    return tuple(t for t in pending if not (t.key or "").startswith(told))


def delivered(entry: Entry, input: Any, state: Any, asked: Collection[str] = ()) -> Any:
    """Add to an input the corrections that the graph has not seen.

    `asked`: ids of the graph's open interrupts. If the state has unanswered tool calls, no user message may follow
    them. Then their tool messages carry the text.
    """
    before = messages_in(state)
    heard = {t.digest for t in messages.human_texts([*before, *messages_in(input)])}
    texts = [t for t in untold(entry.pending, input, asked) if t.text and t.digest not in heard]
    if not texts:
        return input
    # Give each message an id: without one, a pending write gets a new id each time the state is read.
    news = [HumanMessage(content=t.text, id=t.key or f"said:{t.digest}") for t in texts]
    if isinstance(input, dict):
        return with_messages(input, news)
    update = input.update if isinstance(input, Command) else None
    if not before or messages.unanswered(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = with_messages(update, news)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def resumed(
    entry: Entry, given: Command[Any], state: StateSnapshot, *, plain: bool, older: bool, strict: bool
) -> Flow[Any]:
    """Record the answers in a resume value, and return the input to run with.

    The answers are recorded before any LangGraph task starts. LangGraph gives a plain value (without interrupt ids) to
    the first task that asks. So a plain value is keyed by the id of the waiting question. If no question waits, it may
    answer the application's next question, but no approval question.

    `plain`: do not key it, because a child's checkpoint, or a graph without checkpoints, asks with another id. `older`:
    the config names an older checkpoint. If its step has ended, return None, so that a fork asks for approvals again.
    `strict`: LangGraph refuses all answers if one has another id.
    """
    questions = {i.id: i.value for i in state.interrupts}
    # At an older checkpoint, `state.interrupts` contains answered questions too.
    waiting = {i.id for task in state.tasks if task.result is None for i in task.interrupts}
    if older and not waiting and given == Command(resume=given.resume) and any(map(approval_ids, questions.values())):
        return None
    if not (by_id := is_resume_map(given.resume)) and len(waiting) != 1:
        return given  # no question waits, or several, for which LangGraph refuses a plain value
    values: Any = given.resume if by_id else dict.fromkeys(waiting, given.resume)
    if strict and by_id and not older and not waiting.issuperset(values):
        return given  # LangGraph refuses all of it
    answered = {i: v for i, v in values.items() if i in questions}
    own = [a for a in entry.asks if a.allowed == TAKES_ANY]
    asks = shown(entry.asks, {i: questions[i] for i in answered})
    yield from answer(entry.run, asks, answered, questions)
    reviewed = {a.interrupt_id for a in asks if a.allowed != PLAIN}
    offered = {i.id: frozenset(choices_in(getattr(i, "response_schema", None))) for i in state.interrupts}
    words = {i: " ".join(texts_in(v)) for i, v in questions.items()}
    said = {i: without_consent(v, offered[i], words[i]) for i, v in answered.items() if i not in reviewed}
    yield from reply(entry.run, questions, said, own)
    answered = {i: marked(v, questions[i], i, entry.asks) for i, v in answered.items()}
    # `goto` starts other tasks than the waiting ones, with other interrupt ids.
    plain = plain or (bool(given.goto) and not any(approval_ids(questions[i]) for i in waiting))
    return given if plain and not by_id else replace(given, resume=answered)


def marked(answer: object, question: Any, interrupt_id: str, asks: Sequence[Approval]) -> object:
    """Mark an answer to an approval question, so that no question of a node gets it."""
    if not is_shown_by(question, interrupt_id, asks):
        return answer
    return {**(answer if isinstance(answer, Mapping) else {"decisions": answer}), OURS: approval_ids(question)}
