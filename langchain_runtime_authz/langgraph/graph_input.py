"""Find new texts, answers and edits in a root's input, and add corrections to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Interrupt, StateSnapshot

from langchain_runtime_authz.facts.answer_corrections import CLOSED, MAX_DEPTH, texts_in
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph import messages
from langchain_runtime_authz.langgraph.answer_numbers import OURS
from langchain_runtime_authz.langgraph.checkpoints import WATCHED, content_of
from langchain_runtime_authz.langgraph.private_api import is_resume_map
from langchain_runtime_authz.langgraph.state_updates import (
    channel_value,
    messages_in,
    removed_by,
    unwrap_overwrite,
    with_messages,
)
from langchain_runtime_authz.ledger.base import Approval
from langchain_runtime_authz.mandate.languages import Language, languages
from langchain_runtime_authz.pep.approval_questions import PLAIN, TAKES_ANY, approval_ids, asks_shown, is_shown_by
from langchain_runtime_authz.pep.corrections import commit_answers, record_replies
from langchain_runtime_authz.pep.run import Flow
from langchain_runtime_authz.pep.run_lifecycle import OpenedEntry

MAX_CONSENT: Final = 200  # characters; a longer answer counts as a correction


def choices_in(schema: object) -> Iterator[object]:
    """Yield the texts that a question's schema offers as answers."""
    if isinstance(schema, Mapping):
        listed = schema.get("enum")
        named = [schema.get("const"), *(listed if isinstance(listed, list) else ())]
        yield from (v for v in named if isinstance(v, str))
    for part in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ():
        yield from choices_in(part)


def without_consent(answer: object, offered: Collection[object], question: str, depth: int = MAX_DEPTH) -> object:
    """Return `answer` with "" for texts that are `offered` or assent to `question`."""
    if isinstance(answer, str):
        return "" if answer in offered or any(_assents(answer, question, each) for each in languages()) else answer
    if depth and isinstance(answer, Mapping):
        return {k: without_consent(v, offered, question, depth - 1) for k, v in answer.items()}
    if depth and isinstance(answer, list | tuple):
        return [without_consent(v, offered, question, depth - 1) for v in answer]
    return answer


def _assents(text: str, question: str, language: Language) -> bool:
    """Return True if a text only consents to `question`, perhaps with thanks."""
    # A digit, a word of the question (perhaps a choice) or an open end may say more than consent.
    if len(text) > MAX_CONSENT or any(c.isdigit() for c in text):
        return False
    tokens = [t for t in language.tokens(text) if t.kind != "sep"]
    words, at, yes = [t for t in tokens if t.kind != "end"], 0, False
    choices = {*re.findall(r"\w+", question.lower())} - CLOSED
    odd = any(t.text.strip("\n;!") not in ("", ".") for t in tokens if t.kind == "end")  # a question, or it breaks off
    if odd or any(t.lower in choices for t in words):
        return False
    while taken := (said := language.match("assents", words, at)) or language.match("thanks", words, at):
        yes, at = yes or bool(said), at + taken
    return yes and at == len(words)


def edits_in_input(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """Return an input's edits of watched channels other than `messages`."""
    edits: list[HumanText] = []
    for name in names_written(given, other_watched(channels)):
        (replaces, new), old = unwrap_overwrite(channel_value(given, name)), channel_value(values, name)
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


def names_written(given: object, names: Sequence[str]) -> list[str]:
    """Return those `names` that an input writes. In a mapping, None counts as a value."""
    if isinstance(given, (dict, Mapping)):
        return [name for name in names if name in given]
    return [name for name in names if getattr(given, name, None) is not None]


def taken_out(given: object, values: object) -> list[HumanText]:
    """Return one edit if user messages or plans are removed and not sent again."""
    gone, sent = removed_message_ids(given), [messages.as_message(m) for m in messages_in(given)]
    before = [m for m in messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {content_of(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in messages.human_texts(given)}
    ours = [m for m in before if messages.is_human(m) or (isinstance(m, AIMessage) and m.tool_calls)]
    lost = [
        content_of(m)
        for m in ours
        if (content_digest(m.content) if messages.is_human(m) else content_of(m)) not in back
    ]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removed_message_ids(given: object) -> set[str]:
    """Return the ids of messages that an input removes, or `REMOVE_ALL_MESSAGES`."""
    replaces, _ = unwrap_overwrite(channel_value(given, "messages"))
    gone = {i for m in messages_in(given) if (i := removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def without_known_history(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Drop texts of a client's history: the state has them under the same message id."""
    standing = {(t.key, t.digest) for t in messages.human_texts(messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def other_watched(channels: Sequence[str]) -> list[str]:
    """Return the watched channels except `messages`."""
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def open_questions(state: StateSnapshot, asks: Sequence[Approval], now: float) -> tuple[Interrupt, ...]:
    """Return a state's interrupts, without approval questions that no longer wait."""
    waits = [a for a in asks if not 0 < a.expires_at <= now]
    waiting = {a.interrupt_id for a in asks_shown(waits, {i.id: i.value for i in state.interrupts})}
    return tuple(i for i in state.interrupts if not approval_ids(i.value) or i.id in waiting)


def untold_texts(pending: Sequence[HumanText], input: Any, asked: Collection[str]) -> tuple[HumanText, ...]:
    """Return pending texts, except reasons that rejected calls' tool messages carry."""
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    return tuple(t for t in pending if not (t.key or "").startswith(told))


def deliver_corrections(entry: OpenedEntry, input: Any, state: Any, asked: Collection[str] = ()) -> Any:
    """Add to an input the corrections that the graph has not seen.

    `asked`: ids of the graph's open interrupts. If the state has unanswered tool calls, no user message may follow
    them. Then their tool messages carry the text.
    """
    before = messages_in(state)
    heard = {t.digest for t in messages.human_texts([*before, *messages_in(input)])}
    texts = [t for t in untold_texts(entry.pending, input, asked) if t.text and t.digest not in heard]
    if not texts:
        return input
    # Give each message an id: without one, a pending write gets a new id each time the state is read.
    news = [HumanMessage(content=t.text, id=t.key or f"said:{t.digest}") for t in texts]
    if isinstance(input, dict):
        return with_messages(input, news)
    update = input.update if isinstance(input, Command) else None
    if not before or messages.has_unanswered_calls(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = with_messages(update, news)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def record_resume(
    entry: OpenedEntry, given: Command[Any], state: StateSnapshot, *, plain: bool, older: bool, strict: bool
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
    asks = asks_shown(entry.asks, {i: questions[i] for i in answered})
    yield from commit_answers(entry.run, asks, answered, questions)
    reviewed = {a.interrupt_id for a in asks if a.allowed != PLAIN}
    offered = {i.id: frozenset(choices_in(getattr(i, "response_schema", None))) for i in state.interrupts}
    words = {i: " ".join(texts_in(v)) for i, v in questions.items()}
    said = {i: without_consent(v, offered[i], words[i]) for i, v in answered.items() if i not in reviewed}
    yield from record_replies(entry.run, questions, said, own)
    answered = {i: mark_answer(v, questions[i], i, entry.asks) for i, v in answered.items()}
    # `goto` starts other tasks than the waiting ones, with other interrupt ids.
    plain = plain or (bool(given.goto) and not any(approval_ids(questions[i]) for i in waiting))
    return given if plain and not by_id else replace(given, resume=answered)


def mark_answer(answer: object, question: Any, interrupt_id: str, asks: Sequence[Approval]) -> object:
    """Mark an answer to an approval question, so that no question of a node gets it."""
    if not is_shown_by(question, interrupt_id, asks):
        return answer
    return {**(answer if isinstance(answer, Mapping) else {"decisions": answer}), OURS: approval_ids(question)}
