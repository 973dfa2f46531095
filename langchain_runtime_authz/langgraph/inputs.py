"""Parse inputs: a call's arguments, a user's texts and answers, and their changes of a state.

Arguments are parsed once, by the tool's schema. The same object is decided, digested, approved and executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolRuntime
from langgraph.types import Command, Interrupt, StateSnapshot

from langchain_runtime_authz.digest import digest, project, project_arguments
from langchain_runtime_authz.errors import AuthzDenied, Code, MappingError
from langchain_runtime_authz.facts.argument_atoms import NO_ATOMS, atoms_of
from langchain_runtime_authz.facts.interrupt_answers import CLOSED, MAX_DEPTH, texts_in
from langchain_runtime_authz.facts.plan import PlannedCall, raw_digest
from langchain_runtime_authz.facts.task import ANSWER, HumanText, content_digest, content_text
from langchain_runtime_authz.langgraph import messages
from langchain_runtime_authz.langgraph.checkpoints import WATCHED, said
from langchain_runtime_authz.langgraph.private_api import is_resume_map, takes_no_arguments
from langchain_runtime_authz.langgraph.tool_lookup import ToolFacts
from langchain_runtime_authz.ledger.base import Approval
from langchain_runtime_authz.mandate.languages import Language, languages
from langchain_runtime_authz.pep.approval_hitl import PLAIN, TAKES_ANY, approval_ids, remaining
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.corrections import answer, reply
from langchain_runtime_authz.pep.engine import Flow, new_id
from langchain_runtime_authz.pep.run_lifecycle import Entry
from langchain_runtime_authz.tool_profile import UNPROFILED

_EMPTY = digest({})
_SCALARS = frozenset((str, int, float, bool, type(None)))
_MAX_NAME = 128  # characters kept of a tool's name that a model invented
Describe = Callable[[ToolFacts, Any], Call]  # returns the call of these arguments


def parse(tool: BaseTool, tool_input: str | Mapping[str, Any], call_id: str | None, parser: Any) -> Any:
    """Return the arguments that the tool will receive. `parser` is its unguarded `_parse_input`."""
    schema = tool.args_schema
    if isinstance(schema, type) and not getattr(schema, "__pydantic_fields__", None) and takes_no_arguments(schema):
        return {}
    return parser(tool_input if isinstance(tool_input, str) else dict(tool_input), call_id)


def describe(
    tool: BaseTool, facts: ToolFacts, read: Callable[[], Any], *, written: Mapping[str, Any] | str, **about: Any
) -> Call:
    """Return the `Call` to decide, from the arguments that `read` returns.

    `written` are those of the model, and `about` has what else is known of the call: at least its ids and its place.
    """
    error: Code | None = None
    args: dict[str, Any] = {}
    args_digest, supplied_too = _EMPTY, False
    (profile, profiled, _), injected = facts
    try:
        parsed = read()
    except Exception as exc:  # noqa: BLE001  (stored, and raised again by the tool's own road)
        parsed, error = exc, Code.INVALID_ARGUMENTS
    else:
        try:
            args, supplied_too = _decided(tool, parsed, injected)
            args_digest = digest(args)
        except MappingError as exc:
            error = Code(exc.code)
    return Call(
        tool.name,
        profile,
        profiled,
        raw=written,
        args=args,
        args_digest=args_digest,
        atoms=atoms_of(profile, args),
        parsed=parsed,
        injected=injected,
        supplied=supplied_too,
        reread=lambda: digest(_decided(tool, read(), injected)[0]),
        tool_ref=tool,
        metadata=tool.metadata,
        error=error,
        **{"sent": written, **about},
    )


def _decided(tool: BaseTool, parsed: Any, injected: frozenset[str]) -> tuple[dict[str, Any], bool]:
    if isinstance(parsed, str):
        schema = tool.args_schema
        fields = getattr(schema, "model_fields", None) or getattr(schema, "__fields__", None)
        return {next(iter(fields)) if fields else "input": project(parsed)}, False
    return project_arguments(parsed, injected, ToolRuntime)


def parses_alike(call: Call) -> bool:
    if call.reread is None:
        return True
    try:
        return call.reread() == call.args_digest
    except Exception:  # noqa: BLE001  (a failed parse is a change)
        return False


def unchanged(call: Call) -> bool:
    """Return True if the parsed arguments are unchanged since the decision. A message may share nested values."""
    parsed, injected = call.parsed, call.injected
    if call.error is not None or not isinstance(parsed, dict) or not isinstance(call.tool_ref, BaseTool):
        return True
    if _SCALARS.issuperset(map(type, parsed.values())):
        return True
    try:
        return digest(_decided(call.tool_ref, parsed, injected)[0]) == call.args_digest
    except MappingError:
        return False


def without(args: Mapping[str, Any], injected: frozenset[str]) -> dict[str, Any]:
    own = {}
    for name, value in args.items():
        if name not in injected and type(value) is not ToolRuntime:
            own[name] = value
    return own


def supplied(name: str, value: object, injected: frozenset[str]) -> bool:
    """Return True if the framework supplies an argument, by its name, or for common names by its type."""
    return name in injected or type(value) is ToolRuntime


def unknown(name: str, call_id: str | None, plan_id: str | None, position: int | None, written: Any) -> Call:
    tool, about = name.encode("ascii", "backslashreplace").decode()[:_MAX_NAME], (call_id, plan_id, position, written)
    return Call(tool, UNPROFILED, False, *about, {}, _EMPTY, NO_ATOMS, error=Code.UNKNOWN_TOOL)


def as_planned(
    call: Call, planned: PlannedCall, written: Any, facts: ToolFacts, given: Any, describe: Describe
) -> Call | None:
    """Return the call as its message holds it, or `None`. Arguments added by code are critical unless injected."""
    if raw_digest(call.raw) == planned.args_digest:
        return replace(call, call_id=planned.call_id)
    if raw_digest(written) != planned.args_digest:  # an approver replaced it
        return None
    sent = given if isinstance(given, Mapping) else {}
    added = {k for k in sent if k not in written and not supplied(k, sent[k], facts.injected)}
    own = added & set(facts.profiled.profile.injected)
    # An argument equal to the model's is not added: the model used an alias.
    own = {k for k in own if describe(facts, {n: v for n, v in sent.items() if n != k}).args_digest != call.args_digest}
    if own:
        facts = facts._replace(injected=facts.injected | own)
        call = describe(facts, given)
    handed = {k: v for k, v in sent.items() if supplied(k, v, facts.injected)}
    as_written = describe(facts, {**written, **handed})
    if call.error is None and as_written.error is None and as_written.args_digest == call.args_digest:
        return replace(call, call_id=planned.call_id, raw=written)
    extra = added - own
    merged = describe(facts, {**written, **handed, **{k: sent[k] for k in extra}})
    if not extra or call.error is not None or merged.error is not None or merged.args_digest != call.args_digest:
        return None
    before = as_written.args if as_written.error is None else written
    changed = {k for k, v in call.args.items() if k not in before or before[k] != v}
    profile = facts.profiled.profile
    rest = {name: tuple(k for k in getattr(profile, name) if k not in changed) for name in ("when", "text", "free")}
    critical = {**dict.fromkeys(changed, "value"), **profile.critical}
    profile = profile.model_copy(update={**rest, "critical": critical})
    facts = facts._replace(profiled=facts.profiled._replace(profile=profile))
    return replace(describe(facts, given), call_id=planned.call_id, raw=written)


def _lists(value: object) -> Iterator[tuple[str, Sequence[Any]]]:
    fields = value if isinstance(value, (dict, Mapping)) else getattr(value, "__dict__", None) or {"": value}
    for name, held in fields.items():
        yield str(name), held if isinstance(held, list | tuple) else (held,)


def newest_messages(value: object) -> list[tuple[str, AIMessage]]:
    found = ((n, [m for m in held if isinstance(m, AIMessage) and m.tool_calls][-1:]) for n, held in _lists(value))
    return [(name, message) for name, newest in found for message in newest]


def newest_plan(given: object) -> AIMessage | None:
    return next((message for _, message in newest_messages(given)), None)


def sent_calls(value: object, depth: int = 2) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, (dict, Mapping)):
        ident, name, args = value.get("id"), value.get("name"), value.get("args")
        if isinstance(ident, str) and isinstance(name, str) and isinstance(args, dict):
            yield value
        elif depth:
            for held in value.values():
                yield from sent_calls(held, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for held in value:
            yield from sent_calls(held, depth - 1)


def answered_calls(value: object) -> set[str]:
    return {m.tool_call_id for _, held in _lists(value) for m in held if isinstance(m, ToolMessage)}


MAX_CONSENT: Final = 200  # characters of an answer that may say nothing but yes


def brought(given: object, values: object, channels: Sequence[str]) -> list[HumanText]:
    """Return an input's changes of other watched channels. For to-do lists and files, only the fact counts."""
    edits: list[HumanText] = []
    for name in written(given, others(channels)):
        (replaces, new), old = messages.overwritten(messages.held(given, name)), messages.held(values, name)
        if isinstance(new, Mapping) and isinstance(old, Mapping) and not replaces:  # an entry that is left out stays
            old = {key: old.get(key) for key in new}
        if (new or old) and said(new) != said(old):
            words = _words(new, old) if name in channels and new is not None else ""
            edits.append(HumanText(said(new), words, f"channel:{name}"))
    return edits


def _words(new: object, old: object) -> str:
    """Return a user's words in a declared channel; of messages, the user's new ones."""
    if not isinstance(new, list) or not any(not isinstance(m, str) and messages.as_message(m) for m in new):
        return content_text(new)
    before = {(t.key, t.digest) for t in messages.human_texts(old)} if isinstance(old, list) else set()
    return "\n".join(t.text for t in messages.human_texts(new) if (t.key, t.digest) not in before)


def written(given: object, names: Sequence[str]) -> list[str]:
    """Return the channels of `names` that an input writes. In a mapping, `None` clears one."""
    if isinstance(given, (dict, Mapping)):
        return [name for name in names if name in given]
    return [name for name in names if getattr(given, name, None) is not None]


def taken_out(given: object, values: object) -> list[HumanText]:
    """Return the user's messages and the model's plans that an input removes and does not bring again."""
    gone, sent = removals(given), [messages.as_message(m) for m in messages.messages_in(given)]
    before = [m for m in messages.messages_in(values) if REMOVE_ALL_MESSAGES in gone or getattr(m, "id", None) in gone]
    back = {said(m) for m in sent if isinstance(m, BaseMessage)} | {t.digest for t in messages.human_texts(given)}
    ours = [m for m in before if messages.is_human(m) or (isinstance(m, AIMessage) and m.tool_calls)]
    lost = [said(m) for m in ours if (content_digest(m.content) if messages.is_human(m) else said(m)) not in back]
    return [HumanText(raw_digest(lost), "", "channel:messages")] if lost else []


def removals(given: object) -> set[str]:
    replaces, _ = messages.overwritten(messages.held(given, "messages"))
    gone = {i for m in messages.messages_in(given) if (i := messages.removed_by(m)) is not None}
    return gone | {REMOVE_ALL_MESSAGES} if replaces else gone


def unheard(texts: Sequence[HumanText], state: Any) -> list[HumanText]:
    """Drop messages that a client sends back unchanged: a machine may have written them."""
    standing = {(t.key, t.digest) for t in messages.human_texts(messages.messages_in(state)) if t.key is not None}
    return [t for t in texts if (t.key, t.digest) not in standing]


def others(channels: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys((*channels, *WATCHED)) if name != "messages"]


def answered_elsewhere(entry: Entry, state: StateSnapshot) -> Any:
    """Return the input of a re-invocation after all our questions were answered outside the graph."""
    ours = [i.id for i in state.interrupts if i not in open_questions(state, entry.asks, entry.now)]
    return Command(resume={i: {"decisions": []} for i in ours}) if ours else None


def open_questions(state: StateSnapshot, asks: Sequence[Approval], now: float) -> tuple[Interrupt, ...]:
    """Return a state's open interrupts. Ours need a question in the ledger."""
    waiting = {a.interrupt_id for a in asks if not 0 < a.expires_at <= now}
    return tuple(i for i in state.interrupts if not approval_ids(i.value) or i.id in waiting)


def delivered(entry: Entry, input: Any, state: Any, asked: Collection[str] = ()) -> Any:
    """Add corrections that the graph has not seen to an input. `asked`: ids of its open interrupts.

    If the state has unanswered calls, no user message may follow them, so their answers carry the text.
    """
    before = messages.messages_in(state)
    heard = {t.digest for t in messages.human_texts([*before, *messages.messages_in(input)])}
    # The answer to a call rejected outside the graph carries the reason.
    told = () if isinstance(input, dict) else tuple(f"{ANSWER}{i}:" for i in asked)
    texts = [t for t in entry.pending if t.text and t.digest not in heard and not (t.key or "").startswith(told)]
    if not texts:
        return input
    # It gets an id now, because a pending write gets a new one each time a state is read.
    news = [HumanMessage(content=t.text, id=t.key or f"said:{t.digest}") for t in texts]
    if isinstance(input, dict):
        return messages.with_messages(input, news)
    update = input.update if isinstance(input, Command) else None
    if not before or messages.unanswered(before) or not (update is None or isinstance(update, dict)):
        entry.run.undelivered = tuple(t.text for t in texts)
        return input
    merged = messages.with_messages(update, news)
    return replace(input, update=merged) if isinstance(input, Command) else Command(update=merged)


def resumed(entry: Entry, given: Command[Any], state: StateSnapshot, *, below: bool) -> Flow[Command[Any]]:
    """Record the answers of a resume value before any task starts; return the resume.

    A plain value gets its question's id, because LangGraph would give it to the first task that asks. This does not
    apply `below`, at a child's checkpoint: the child continues from a copy, in which the id differs.
    """
    questions = {i.id: i.value for i in state.interrupts}
    if is_resume_map(given.resume):
        answered = {i: v for i, v in given.resume.items() if i in questions}
    elif len(questions) == 1:
        answered = dict.fromkeys(questions, given.resume)
    else:
        return given  # LangGraph refuses it, or there is nothing to resume
    own = [a for a in entry.asks if a.allowed == TAKES_ANY]
    asks = [a for a in entry.asks if a.interrupt_id in answered and a.allowed != TAKES_ANY]
    # A stopped node may have asked more at this place. Only shown questions are answered.
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
    """Return an answer without offered texts and words that cannot change a task."""
    if isinstance(answer, str):
        return "" if answer in offered or any(_assents(answer, question, each) for each in languages()) else answer
    if depth and isinstance(answer, Mapping):
        return {k: _said_more(v, offered, question, depth - 1) for k, v in answer.items()}
    if depth and isinstance(answer, list | tuple):
        return [_said_more(v, offered, question, depth - 1) for v in answer]
    return answer


def _assents(text: str, question: str, language: Language) -> bool:
    """Return True if words only consent or thank, and choose nothing."""
    if len(text) > MAX_CONSENT or any(c.isdigit() for c in text):
        return False
    tokens = [t for t in language.tokens(text) if t.kind != "sep"]
    words, at, yes = [t for t in tokens if t.kind != "end"], 0, False
    choices = {*re.findall(r"\w+", question.lower())} - CLOSED
    odd = any(t.text.strip("\n;!") not in ("", ".") for t in tokens if t.kind == "end")  # a question, or it trails off
    if odd or any(t.lower in choices for t in words):
        return False
    while taken := (said := language.match("assents", words, at)) or language.match("thanks", words, at):
        yes, at = yes or bool(said), at + taken
    return yes and at == len(words) and not any(each.stop(words) for each in languages())
