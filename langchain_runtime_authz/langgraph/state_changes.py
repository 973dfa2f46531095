"""Compare states of a graph, and find what an input changes in one.

Only what a task or a plan is made of counts: messages, to-do lists, files, the declared task channels,
and the tasks that wait to run. Ids, key order and the message classes' own fields do not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, ToolMessage
from langgraph.constants import START
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Interrupt, StateSnapshot

from langchain_runtime_authz.digest import digest, fingerprint, project
from langchain_runtime_authz.errors import AuthzDenied, Code, MappingError
from langchain_runtime_authz.facts.answer import CLOSED, MAX_DEPTH, texts_in
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph._private import is_resume_map
from langchain_runtime_authz.langgraph.inputs import human_texts
from langchain_runtime_authz.langgraph.messages import (
    as_message,
    is_human,
    messages_in,
    overwritten,
    removed_by,
    unanswered,
    with_messages,
)
from langchain_runtime_authz.ledger.base import Approval
from langchain_runtime_authz.mandate.languages import Language, languages
from langchain_runtime_authz.pep.approvals import PLAIN, TAKES_ANY, approval_ids, is_ours, remaining
from langchain_runtime_authz.pep.corrections import answer, reply
from langchain_runtime_authz.pep.engine import Flow, new_id
from langchain_runtime_authz.pep.entry import Entry

WATCHED: Final = ("messages", "todos", "files")
MAX_CONSENT: Final = 200  # characters of an answer that may say nothing but yes


def differ(before: StateSnapshot, now: StateSnapshot, channels: Sequence[str]) -> bool:
    """Return True if a watched channel changed, or a task that waited does not any more (`update_state(as_node=...)`)."""
    dropped = Counter(before.next) - Counter(now.next)
    if now.next:  # the input was being read, and led to that
        dropped.pop(START, None)
    return bool(dropped) or watched(before.values, channels) != watched(now.values, channels)


def brought(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """Return what an input changes in other watched channels. Of to-do lists and files only that they were edited counts."""
    edits: list[HumanText] = []
    for name in others(channels):
        if not writes(given, name):
            continue
        (replaces, new), old = overwritten(_held(given, name)), _held(values, name)
        if isinstance(new, Mapping) and isinstance(old, Mapping) and not replaces:  # an entry that is left out stays
            old = {key: old.get(key) for key in new}
        if (new or old) and said(new) != said(old):
            words = _words(new, old) if name in channels and new is not None else ""
            edits.append(HumanText(said(new), words, f"channel:{name}"))
    return edits


def _words(new: object, old: object) -> str:
    """Return the words that a user puts into a declared channel; of messages, the user's own new ones."""
    if not isinstance(new, list) or not any(not isinstance(m, str) and as_message(m) for m in new):
        return content_text(new)
    before = {(t.key, t.digest) for t in human_texts(old)} if isinstance(old, list) else set()
    return "\n".join(t.text for t in human_texts(new) if (t.key, t.digest) not in before)


def writes(given: object, name: str) -> bool:
    """Return True if an input writes a channel. In a mapping, `None` clears it."""
    return name in given if isinstance(given, (dict, Mapping)) else getattr(given, name, None) is not None


def taken_out(given: object, values: object) -> list[HumanText]:
    """Return what an input removes of the user's messages and the model's plans. What comes again is not removed."""
    gone, sent = removals(given), [as_message(m) for m in messages_in(given)]
    before = [m for m in messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {said(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in human_texts(given)}
    lost = [
        said(m)
        for m in before
        if (is_human(m) and content_digest(m.content) not in back)
        or (isinstance(m, AIMessage) and m.tool_calls and said(m) not in back)
    ]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removals(given: object) -> set[str]:
    replaces, _ = overwritten(_held(given, "messages"))
    gone = {i for m in messages_in(given) if (i := removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def unheard(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Leave out what a client sends back as it stands in the state: a machine may have written it there."""
    standing = {(t.key, t.digest) for t in human_texts(messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def others(channels: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def _held(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, (dict, Mapping)) else getattr(value, name, None)


def watched(values: object, channels: Sequence[str] = ()) -> dict[str, str]:
    """Return a digest for each watched channel of a state. Equal digests say the same."""
    if not isinstance(values, Mapping):
        return {"": said(values)}
    return {name: said(values[name]) for name in (*WATCHED, *channels) if values.get(name)}


def said(value: object) -> str:
    """Return a digest of what a channel's value says to a model or to code."""
    if isinstance(value, list | tuple):
        return raw_digest([said(v) for v in value])
    if isinstance(value, BaseMessage):
        parts: list[Any] = [value.type.removesuffix("MessageChunk").lower(), content_digest(value.content)]
        if isinstance(value, AIMessage):
            parts += [[call["name"], raw_digest(call["args"])] for call in value.tool_calls]
        if isinstance(value, ToolMessage):
            parts.append(value.tool_call_id)
            # A model reads whether the tool failed, and code reads the artifact.
            parts += [value.status] if value.status != "success" else []
            parts += [fingerprint(value.artifact)] if value.artifact is not None else []
        if isinstance(value, ChatMessage):
            parts.append(value.role)
        return raw_digest(parts)
    try:
        return digest(project(value))
    except MappingError:
        return content_digest(value)


# What the next input of a thread is told.


def answered_elsewhere(entry: Entry, state: StateSnapshot) -> Any:
    """Return the input of a re-invocation after every question of ours was answered outside the graph."""
    ours = [i.id for i in state.interrupts if i not in open_questions(state, entry.asks, entry.now)]
    return Command(resume={i: {"decisions": []} for i in ours}) if ours else None


def open_questions(state: StateSnapshot, asks: Sequence[Approval], now: float) -> tuple[Interrupt, ...]:
    """Return the interrupts of a state that wait for an answer: of ours, those with a question in the ledger."""
    waiting = {a.interrupt_id for a in asks if not 0 < a.expires_at <= now}
    return tuple(i for i in state.interrupts if not is_ours(i.value) or i.id in waiting)


def delivered(entry: Entry, input: Any, state: Any, asked: Collection[str] = ()) -> Any:
    """Return the input with the corrections that the graph has not seen yet. `asked`: ids of its open interrupts.

    Before what a new input says itself; as an update of a resumed state. If calls of that state are still
    unanswered, a user message may not come between. Then the answers to those calls, which the correction made
    stale, carry the text.
    """
    before = messages_in(state)
    heard = {t.digest for t in human_texts([*before, *messages_in(input)])}
    # The reason of a rejection outside the graph is told with the answer to the rejected call.
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    texts = [t for t in entry.pending if t.text and t.digest not in heard and not (t.key or "").startswith(told)]
    if not texts:
        return input
    # An id of its own from the first: a pending write gets another one each time that a state is read.
    messages = [HumanMessage(content=t.text, id=t.key or f"said:{t.digest}") for t in texts]
    if isinstance(input, dict):
        return with_messages(input, messages)
    update = input.update if isinstance(input, Command) else None
    if not before or unanswered(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = with_messages(update, messages)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def resumed(entry: Entry, given: Command[Any], state: StateSnapshot, *, below: bool) -> Flow[Command[Any]]:
    """Put the answers of a resume value into the ledger, before any task starts; return the resume.

    A plain value is given its question's id, because LangGraph would hand it to the first task that asks. Not `below`, at a
    child's checkpoint: the child goes on from a copy, in which the question has another id.
    """
    value = given.resume
    questions = {i.id: i.value for i in state.interrupts}
    if is_resume_map(value):
        answered = {i: v for i, v in value.items() if i in questions}
    elif len(questions) == 1:
        answered = dict.fromkeys(questions, value)
    else:
        return given  # LangGraph refuses it, or it resumes nothing
    own = [a for a in entry.asks if a.allowed == TAKES_ANY]
    asks = [a for a in entry.asks if a.interrupt_id in answered and a.allowed != TAKES_ANY]
    # A node that was stopped may have asked more at the same place: only what was shown is answered.
    asks = [a for a in asks if a.id in (approval_ids(questions[a.interrupt_id]) or (a.id,))]
    open_ids = {a.id for a in asks}
    try:
        left = {i: remaining(v, questions[i], open_ids) for i, v in answered.items()}
    except ValueError:
        raise AuthzDenied(Code.APPROVAL_SETTLED, new_id()) from None
    if asks:
        yield from answer(entry.run, asks, left)
    reviewed = {a.interrupt_id for a in asks if a.allowed != PLAIN}
    offered = {i.id: frozenset(_offered(getattr(i, "response_schema", None))) for i in state.interrupts}
    shown = {i: " ".join(texts_in(v)) for i, v in questions.items()}
    said = {i: _said_more(v, offered[i], shown[i]) for i, v in answered.items() if i not in reviewed}
    corrected = yield from reply(entry.run, questions, said, own)
    return replace(given, resume=answered) if (asks or corrected) and not below else given


def _offered(schema: object) -> Iterator[object]:
    if isinstance(schema, Mapping):
        listed = schema.get("enum")
        yield from (
            v for v in (schema.get("const"), *(listed if isinstance(listed, list) else ())) if isinstance(v, str)
        )
        for part in schema.values():
            yield from _offered(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _offered(part)


def _said_more(answer: object, offered: Collection[object], question: str, depth: int = MAX_DEPTH) -> object:
    """Return an answer without the texts that were offered, and without words that cannot change a task."""
    if isinstance(answer, str):
        return "" if answer in offered or _consents(answer, question) else answer
    if depth and isinstance(answer, Mapping):
        return {k: _said_more(v, offered, question, depth - 1) for k, v in answer.items()}
    if depth and isinstance(answer, list | tuple):
        return [_said_more(v, offered, question, depth - 1) for v in answer]
    return answer


def _consents(text: str, question: str) -> bool:
    """Return True if words only say yes, and perhaps please or thanks: they order, withdraw and suspend nothing.

    All words must be known as such in one language, and none may stop anything in another. A question and a number are not
    consent, nor is a word that the question names, which may be a choice.
    """
    short = len(text) <= MAX_CONSENT and not any(c.isdigit() for c in text)
    return short and any(_assents(text, question, each) for each in languages())


def _assents(text: str, question: str, language: Language) -> bool:
    tokens = [t for t in language.tokens(text) if t.kind != "sep"]
    words, at, yes = [t for t in tokens if t.kind != "end"], 0, False
    choices = {*re.findall(r"\w+", question.lower())} - CLOSED
    odd = any(t.text.strip("\n;!") not in ("", ".") for t in tokens if t.kind == "end")  # a question, or it trails off
    if odd or any(t.lower in choices for t in words):
        return False
    while taken := (said := language.match(language.assents, words, at)) or language.match(language.thanks, words, at):
        yes, at = yes or bool(said), at + taken
    return yes and at == len(words) and not any(each.stop(words) for each in languages())
