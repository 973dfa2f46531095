"""Find new texts, answers and edits in a root's input, and add corrections to it.

LangGraph stores a resume value without interrupt ids with the thread, and offers it again at each later entry until the
step ends. A protected root entry replaces it by a mapping from interrupt id to answer. In an unprotected graph, a
handler among the callbacks remembers the value with which the graph was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Interrupt, StateSnapshot

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.facts.plan import raw_digest
from langchain_runtime_authz.facts.task import ANSWER, CORRECTION, HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph import messages
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.checkpoints import WATCHED, content_of, find_checkpoint
from langchain_runtime_authz.langgraph.interrupts import OURS, note_question
from langchain_runtime_authz.langgraph.messages import channel_value, messages_in, newest_plan, unwrap_overwrite
from langchain_runtime_authz.ledger.base import Approval, Query, Snapshot
from langchain_runtime_authz.pep.approval_answers import args_in_update
from langchain_runtime_authz.pep.approval_questions import PLAIN, TAKES_ANY, approval_ids, is_shown_by, questions_shown
from langchain_runtime_authz.pep.corrections import commit_answers, record_replies
from langchain_runtime_authz.pep.run import Flow, Load, Run
from langchain_runtime_authz.pep.run_lifecycle import OpenedEntry
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)


def edits_in_input(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """Return an input's edits of `channels` and `WATCHED` ones, except `messages`."""
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
    """Return those of `names` that an input sets. In a mapping, None counts as set."""
    if isinstance(given, (dict, Mapping)):
        return [name for name in names if name in given]
    return [name for name in names if getattr(given, name, None) is not None]


def taken_out(given: object, values: object) -> list[HumanText]:
    """Return one edit if an input removes user messages or plans for good, else []."""
    gone, sent = removed_message_ids(given), [messages.as_message(m) for m in messages_in(given)]
    before = [m for m in messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {content_of(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in messages.human_texts(given)}
    ours = [m for m in before if messages.is_human(m) or (isinstance(m, AIMessage) and m.tool_calls)]
    said = [content_digest(m.content) if messages.is_human(m) else content_of(m) for m in ours]
    lost = [content_of(m) for m, text in zip(ours, said, strict=True) if text not in back]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removed_message_ids(given: object) -> set[str]:
    """Return the ids of messages that an input removes, or `REMOVE_ALL_MESSAGES`."""
    replaces, _ = unwrap_overwrite(channel_value(given, "messages"))
    gone = {i for m in messages_in(given) if (i := messages.removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def without_known_history(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Drop the texts that the state already has under the same message id."""
    standing = {(t.key, t.digest) for t in messages.human_texts(messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def other_watched(channels: Sequence[str]) -> list[str]:
    """Return the watched channels except `messages`."""
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def open_questions(state: StateSnapshot, loaded: Snapshot | OpenedEntry) -> tuple[Interrupt, ...]:
    """Return a state's interrupts, without answered or expired approval questions."""
    waits = [a for a in loaded.questions if not 0 < a.expires_at <= loaded.now]
    waiting = {a.interrupt_id for a in questions_shown(waits, {i.id: i.value for i in state.interrupts})}
    return tuple(i for i in state.interrupts if not approval_ids(i.value) or i.id in waiting)


def untold_texts(pending: Sequence[HumanText], input: Any, asked: Collection[str]) -> tuple[HumanText, ...]:
    """Return pending texts, except reasons for rejections, which tool messages hold."""
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    return tuple(t for t in pending if not (t.key or "").startswith(told))


def deliver_corrections(
    entry: OpenedEntry, input: Any, state: Any, asked: Collection[str] = (), graph: Any = None
) -> Any:
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
    # The state of a graph without a builder, such as an entrypoint's, has no channels.
    takes = getattr(graph, "builder", None) is None or "messages" in graph.channels
    if not (takes and isinstance(input, dict | Command | None)) and any(
        t.key.startswith(CORRECTION) for t in texts if t.key
    ):
        code = Code.CORRECTION_UNDELIVERED
        _log.warning("%s: %s (thread %a)", code, code.sentence, entry.run.scope.thread)
    if isinstance(input, dict) and takes:
        return messages.with_messages(input, news)
    update = input.update if isinstance(input, Command) else None
    if not before or messages.has_unanswered_calls(before) or not (update is None or isinstance(update, dict)):
        entry.run.entry.undelivered = tuple(t.text for t in texts)
        return input
    merged = messages.with_messages(update, news)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def record_resume(
    entry: OpenedEntry, given: Command[Any], state: StateSnapshot, *, plain: bool, older: bool, strict: bool
) -> Flow[Any]:
    """Record the answers in a resume value, and return the input to run with.

    The answers are recorded before any LangGraph task starts. LangGraph gives a value without interrupt ids to the
    first task that asks. So the value becomes a mapping from the waiting question's id to the value. If no question
    waits, the value may answer the application's next question, but not an approval question.

    `plain`: keep the value as it is, because a child's checkpoint, or a graph without checkpoints, asks with another id.
    `older`: the config names an older checkpoint. If its step has ended, return None, so that a fork asks for approvals
    again. `strict`: LangGraph refuses all answers if one has the id of no waiting question.
    """
    interrupts = {i.id: i.value for i in state.interrupts}
    # At an older checkpoint, `state.interrupts` contains answered questions too.
    waiting = {i.id for task in state.tasks if task.result is None for i in task.interrupts}
    if older and not waiting and given == Command(resume=given.resume) and any(map(approval_ids, interrupts.values())):
        return None
    if not (by_id := private.is_resume_map(given.resume)) and len(waiting) != 1:
        return given  # no question waits, or several, for which LangGraph refuses a plain value
    values: Any = given.resume if by_id else dict.fromkeys(waiting, given.resume)
    if strict and by_id and not older and not waiting.issuperset(values):
        return given  # LangGraph refuses all of it
    answered = {i: v for i, v in values.items() if i in interrupts}
    own = [a for a in entry.questions if a.allowed == TAKES_ANY]
    asked = questions_shown(entry.questions, {i: interrupts[i] for i in answered})
    yield from commit_answers(entry.run, asked, answered, interrupts)
    # Words in a plain answer are the user's, but an edit counts as an edit only.
    edits = {i for i, v in answered.items() if args_in_update(v) is not None}
    reviewed = {a.interrupt_id for a in asked if a.allowed != PLAIN or a.interrupt_id in edits}
    replies = {i: v for i, v in answered.items() if i not in reviewed}
    yield from record_replies(entry.run, replies, {i.id: i for i in state.interrupts}, own)
    answered = {i: mark_answer(v, interrupts[i], i, entry.questions) for i, v in answered.items()}
    # `goto` starts other tasks than the waiting ones, with other interrupt ids.
    plain = plain or (bool(given.goto) and not any(approval_ids(interrupts[i]) for i in waiting))
    return given if plain and not by_id else replace(given, resume=answered)


def mark_answer(answer: object, question: Any, interrupt_id: str, questions: Sequence[Approval]) -> object:
    """Mark an answer to an approval question, so that no other question receives it."""
    if not is_shown_by(question, interrupt_id, questions):
        return answer
    return {**(answer if isinstance(answer, Mapping) else {"decisions": answer}), OURS: approval_ids(question)}


MAX_STEPS: Final = 10  # number of checkpoints in which the resumed one is searched


class ResumeHandler(BaseCallbackHandler):
    """Remembers the resume value, thread and checkpoint with which a graph started."""

    raise_error = True
    ignore_llm = ignore_agent = ignore_retriever = True
    ignore_chat_model = ignore_retry = ignore_custom_event = True

    def __init__(self, value: object, thread: str | None, checkpoint: str | None) -> None:
        self.value, self.thread, self.checkpoint = value, thread, checkpoint
        self.waits: dict[UUID, Callable[[object], None]] = {}  # callback run id → function that gets the run's output

    @property
    def ignore_chain(self) -> bool:
        return not self.waits

    run_inline = ignore_chain

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if (then := self.waits.pop(run_id, None)) is not None:
            then(outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.waits.pop(run_id, None)


def resume_handler() -> BaseCallbackHandler | None:
    """Return a handler if the starting graph is resumed or has our middleware."""
    found = private.started_graph()
    if found is None:
        return None
    graph, value, thread, checkpoint = found
    if value is None:
        # Leave out protected nodes, whose enforcement points see the outputs.
        bound = (node.bound for node in graph.nodes.values() if not hasattr(type(node.bound), "__runtime_authz_node__"))
        hooks = (vars(runnable).get("func") for runnable in bound)
        if not any(hasattr(getattr(hook, "__self__", None), "__runtime_authz_middleware__") for hook in hooks):
            return None
    return ResumeHandler(value, thread, checkpoint)


def resume_handlers(config: Mapping[str, Any]) -> Iterator[ResumeHandler]:
    """Yield the handlers that `resume_handler` added to the graphs around a task."""
    for each in (config, var_child_runnable_config.get() or {}):
        callbacks: Any = each.get("callbacks")
        yield from (h for h in getattr(callbacks, "handlers", callbacks) or () if type(h) is ResumeHandler)


def drop_old_answer(config: Mapping[str, Any]) -> None:
    """Drop a resume value without ids that LangGraph stored at an earlier entry."""
    pad = private.scratchpad_of(config)
    given = pad.get_null_resume(False) if pad is not None else None
    if given is not None and not any(h.value is given for h in resume_handlers(config)):
        private.take_plain_answer(config)


def record_answer(run: Run, config: Mapping[str, Any], namespace: str) -> Flow[dict[str, object] | None]:
    """Record an unprotected graph's resume value, as a protected root entry does.

    Return interrupt id → answer, with answers to approval questions marked (`mark_answer`). Return None for a value
    without ids, unless it answers exactly one question.
    """
    # A graph that a tool calls on its own thread inherits the handler, but was not resumed with this value.
    thread = private.thread_of(config)
    mine = [h for h in resume_handlers(config) if h.thread == thread] or [
        ResumeHandler(private.answer_given(config), thread, None)
    ]
    heard = next((h for h in mine if h.value is not None), mine[0])
    value: Any = heard.value
    if value is None:
        run.keyed_thread = thread
        return None
    interrupts = yield from _shown(run, config, namespace, heard.checkpoint)
    snapshot = yield Load(run.scope, Query(questions=True))
    asked = questions_shown(snapshot.questions, interrupts)
    ids = {a.interrupt_id for a in asked}
    by_id = private.is_resume_map(value)
    given: dict[str, object] = {i: v for i, v in value.items() if i in interrupts} if by_id else {}
    unseen = not ids and any(a.allowed != TAKES_ANY for a in snapshot.questions)  # questions that nobody was shown
    asking = interrupts.keys() if unseen else ids
    given = dict.fromkeys(asking, value) if not by_id and len(asking) == 1 else given
    if ids & given.keys():
        yield from commit_answers(run, [a for a in asked if a.interrupt_id in given], given, interrupts)
    if given or by_id or unseen:
        run.keyed_thread = thread  # a plain answer does not count for a question that nobody was shown
    marked = {i: mark_answer(v, interrupts[i], i, snapshot.questions) for i, v in given.items()}
    return marked if marked or by_id else None


def keyed_answers(config: Mapping[str, Any], answers: Mapping[str, object]) -> None:
    """Replace a running task's answers by `answers` (interrupt id → answer)."""
    pad = private.scratchpad_of(config)
    if private.unused_answer(config) is not None:
        mine = private.interrupt_id(config) in answers
        if mine or any(isinstance(a, Mapping) and OURS in a for a in answers.values()):
            private.take_plain_answer(config)  # the ledger has an answer to an approval question
        pad.resume.extend([None] * mine)
    for number in range(len(pad.resume)):
        pad.resume[number] = answers.get(private.interrupt_id(config, number), pad.resume[number])
    if private.answered_by_first_id(config):  # LangGraph would use that answer for the last question
        pad.resume.pop()


def _shown(run: Run, config: Mapping[str, Any], namespace: str, checkpoint: str | None) -> Flow[dict[str, object]]:
    """Return interrupt id → value of a pause's interrupts. Record those of reviews."""
    saver = private.checkpointer_of(config)
    thread = private.thread_of(config)
    if saver is None or thread is None:
        return {}
    place = {"thread_id": thread, "checkpoint_ns": namespace}
    if checkpoint is not None and not namespace:
        place["checkpoint_id"] = checkpoint
    # The checkpoint with the pause was stored before the resume. Later ones may not be stored yet.
    paused = lambda found: any(write[1] == private.keys.INTERRUPT for write in found.pending_writes or ())  # noqa: E731
    found = yield find_checkpoint(saver, {"configurable": place}, paused, limit=MAX_STEPS)
    if found is None:
        return {}
    messages = [newest_plan(found.checkpoint["channel_values"])]
    asked = [(q, w[0]) for w in found.pending_writes if w[1] == private.keys.INTERRUPT for q in w[2]]
    for question, task in asked:
        yield from note_question(run, messages, question, task)
    return {question.id: question.value for question, _ in asked}
