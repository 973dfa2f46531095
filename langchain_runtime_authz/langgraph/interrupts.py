"""Give each interrupt its own answer, and note the questions of other reviews.

A graph task is one run of a node. LangGraph numbers the task's answers, and gives them to its questions in the order in
which code asks. If a node runs again, a void approval or a call that is not repeated would shift that order. So code
gets a counter of ours in place of LangGraph's, and `Numbers` records what became of each number.

Other reviews are LangChain's own, reviews in Agent Inbox's form, and an application's questions that name one tool and
its arguments. Their questions are recorded with the source `hitl`, so that nobody is asked twice. The root entry
records the answers to them too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

from langchain_core.messages import AIMessage
from langgraph.errors import GraphInterrupt, is_invalid_resume
from langgraph.types import interrupt

from langchain_runtime_authz.facts.plan import match_plan, raw_digest
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.call_messages import unknown_call
from langchain_runtime_authz.langgraph.object_graph import cells_of
from langchain_runtime_authz.ledger.base import Committed, Query
from langchain_runtime_authz.ledger.call_changes import AskApproval
from langchain_runtime_authz.pep import approval_questions
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.decide_calls import in_plan, review_key, rewritten_plan
from langchain_runtime_authz.pep.run import Commit, Flow, Load, Run
from langchain_runtime_authz.telemetry.logs import get_logger

OURS: Final = "answers_approvals"  # field of a stored answer to an approval question: the approvals' ids
_GRAPHS_PER_TOOL: Final = 10_000

_asks_approval: Final = ContextVar[bool]("langchain_runtime_authz.asks_approval", default=False)  # else code asks


class Use(Enum):
    """The use of an answer's number."""

    MET = "met"  # met by a question to which the answer does not belong
    KEPT = "kept"  # reserved for one question
    GIVEN = "given"  # given to a question


class Numbers(dict[int, Use]):
    """Answer number → its use, in one execution of a graph task."""

    counter: Callable[[], int]  # LangGraph's own
    asks = False  # True once a tool's question has left the tool

    def is_free(self, number: int) -> bool:
        """Return True if the number belongs to no question yet."""
        return self.get(number, Use.MET) is Use.MET


def numbers_of(config: Mapping[str, Any]) -> Numbers | None:
    """Return the numbers of a graph task; None if LangGraph's own counter counts."""
    return getattr(getattr(private.scratchpad_of(config), "interrupt_counter", None), "numbers", None)


def execution_of(config: Mapping[str, Any]) -> object:
    """Return what tells executions of a graph task apart: LangGraph's own counter."""
    return getattr(numbers_of(config), "counter", getattr(private.scratchpad_of(config), "interrupt_counter", None))


def is_marked_for(answer: object, ids: Collection[str], *, plain: bool) -> bool:
    """Return True if `answer` is marked for one of `ids`. If unmarked, return `plain`."""
    marks = answer.get(OURS) if isinstance(answer, Mapping) else None
    return not set(ids).isdisjoint(marks) if isinstance(marks, list) else plain


def interrupt_for(value: Mapping[str, Any]) -> Any:
    """Raise the interrupt of a new approval question, or return a plain answer to it."""
    before, shown = _asks_approval.set(True), dict(value)
    try:
        return interrupt(shown)
    except GraphInterrupt as exc:  # the id is known only now: it depends on the number
        shown["interrupt_id"] = exc.args[0][0].id
        raise
    finally:
        _asks_approval.reset(before)


def keep_numbers(config: Mapping[str, Any], answered: Iterable[int], use: Use = Use.KEPT) -> None:
    """Reserve answers for their questions. `use`: GIVEN if never asked again."""
    pad, numbers = private.scratchpad_of(config), numbers_of(config)
    for number in [n for n in answered if pad is not None and n < len(pad.resume)]:
        if numbers is None:  # LangGraph's own counter only counts up
            if private.next_number(config) < len(pad.resume):
                pad.interrupt_counter()
            private.store_answers(config, pad.resume[: max(number + 1, private.next_number(config))])
        elif use is Use.GIVEN or numbers.is_free(number):
            numbers[number] = use
            private.store_answers(config, pad.resume[: number + 1])


def counting_questions(
    config: dict[str, Any], place: int | None = None, mine: Iterable[int] | None = None
) -> tuple[dict[str, Any], Collection[int]]:
    """Return a config that numbers a tool's or node's questions, and these numbers.

    Each question adds its number. `place`: index of the tool's call, to number the graphs that the tool calls. `mine`:
    numbers of the answers for a tool of a node; this tool gets no other answers. Approval questions of calls inside the
    tool add their numbers too, so that all are passed if the tool does not run again.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(private.keys.CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return config, []
    counter, resume, graphs = scratchpad.interrupt_counter, scratchpad.resume, scratchpad.subgraph_counter
    numbers: Numbers | None = getattr(counter, "numbers", None)
    asked: Collection[int]
    if numbers is None:  # a node
        numbers = asked = Numbers()
        numbers.counter = counter
        count: Any = partial(_next_in_task, numbers, resume, config)
    else:  # a tool of a node
        asked = [*(mine or ())]
        # A marked answer belongs to an approval of a call inside the tool. None: the tool takes the node's next numbers.
        own = [n for n in asked if n < len(resume) and is_marked_for(resume[n], (), plain=True)]
        count = partial(_next_in_tool, numbers, resume, counter, own if mine is not None else None, asked)
    count.numbers = numbers
    if place is not None:  # else a skipped tool would shift the numbers, and a graph would load another's state
        graphs = itertools.count(place * _GRAPHS_PER_TOOL).__next__
    # `dataclasses.replace`, with the fields looked up once.
    held = dict(zip(private.PAD, private.of_pad(scratchpad), strict=True))
    pad = private.PregelScratchpad(**{**held, "interrupt_counter": count, "subgraph_counter": graphs})
    return {**config, "configurable": {**configurable, private.keys.CONFIG_KEY_SCRATCHPAD: pad}}, asked


def _next_in_task(numbers: Numbers, resume: list[Any], config: Mapping[str, Any]) -> int:
    """Return the next number that is free for the question."""
    if _asks_approval.get():  # a new approval question comes after all answers
        numbers.setdefault(len(resume), Use.MET)
        return len(resume)
    while True:
        number = numbers.counter()
        given = resume[number : number + 1]
        if numbers.is_free(number) and all(is_marked_for(answer, (), plain=True) for answer in given):
            numbers[number] = Use.GIVEN
            return number
        numbers.setdefault(number, Use.MET)
        private.store_answers(config, resume[: number + 1])


def _next_in_tool(
    numbers: Numbers, resume: list[Any], next_of_node: Callable[[], int], own: list[int] | None, asked: list[int]
) -> int:
    """Return the next number for a tool of a node."""
    number = len(resume)  # a new question comes after all answers
    if own is None and not _asks_approval.get():
        number = next_of_node()
    elif own is not None and not _asks_approval.get():
        number = next((n for n in own if numbers.get(n) is not Use.GIVEN), number)
        numbers[number] = Use.GIVEN
    if number not in asked:
        asked.append(number)
    return number


_log = get_logger(__name__)
_MAX_WRAPPERS: Final = 1000  # functions followed in one chain of wrappers

# Agent Inbox's flags → decisions. Then names that an application's question may use for a tool and its arguments.
_FLAGS: Final = {"allow_accept": "approve", "allow_edit": "edit", "allow_ignore": "reject", "allow_respond": "respond"}
_TOOL: Final = ("tool", "tool_name", "name", "action", "function")
_ARGUMENTS: Final = ("args", "arguments", "tool_args", "tool_input", "parameters", "input")
_DEPTH: Final = 3


def note_question(run: Run, messages: Sequence[AIMessage | None], asked: Any, task: str = "") -> Flow[None]:
    """Record a review's `Interrupt`, so that our tool node does not ask again."""
    if approval_questions.approval_ids(asked.value):
        return
    requests, takes = _shown_calls(asked.value, getattr(asked, "response_schema", None))
    found = (_asked_about(requests, m) for m in messages if m is not None and m.id)
    try:
        calls = next(filter(None, found), []) or ([] if task else (yield from _planned(run, requests)))
        if not calls or len(takes) != len(calls):
            return
        record = (yield Load(run.scope, Query(plan=(run.agent, calls[0].plan_id or "")))).plan
        if match_plan(record, run.epoch, (one := calls[0]).position, one.call_id, one.tool, one.raw).changed:
            record = (yield from rewritten_plan(run, one)) or record
        if record is None or record.epoch != run.epoch:
            return
        origin, calls = record.origin or record.epoch, in_plan(record, calls)
        noted = [(review_key(run, c, origin), raw_digest(c.raw), c, t) for c, t in zip(calls, takes, strict=True)]
        opened = approval_questions.review_records(run, noted, asked.id, task)
        done = yield Commit(run.scope, run.guard, [AskApproval(question) for question in opened])
        if isinstance(done, Committed):
            yield approval_questions.asked_event(run, opened, done.now)
    except Exception as exc:  # noqa: BLE001  (the record only spares a second question)
        _log.error("a review was not noted: %s", type(exc).__name__)


def note_failed(run: Run, call: Call, exc: Exception, config: Mapping[str, Any], *, first: bool) -> Flow[None]:
    """Record the question in `exc`. `first`: no earlier call of the message has asked."""
    if is_invalid_resume(exc):
        yield from _reopened(run, call)
    asked = list(exc.args[0]) if isinstance(exc, GraphInterrupt) and exc.args else []
    if not first or call.plan_id is None or call.position is None or len(asked) != 1:
        return
    # The other calls in this message are empty, because the review asks about this call only.
    calls: list[Any] = [{"name": "", "args": {}, "id": None} for _ in range(call.position)]
    calls.append({"name": call.tool, "args": call.raw, "id": call.call_id})
    message = AIMessage("", id=call.plan_id, tool_calls=calls)
    yield from note_question(run, [message], asked[0], private.task_id(config))


def _reopened(run: Run, call: Call) -> Flow[None]:
    try:
        record = (yield Load(run.scope, Query(plan=(run.agent, call.plan_id or "")))).plan
        if record is None:
            return
        key = review_key(run, call, record.origin or record.epoch)
        asked = (yield Load(run.scope, Query(calls=(key,)))).approvals.get(key)
        if asked is not None and asked.state != "spent":  # if spent, the tool refused the answer, not the review
            fresh = replace(asked, epoch=run.epoch, state="asked", approver="", approvers=(), message="", edited="")
            yield Commit(run.scope, run.guard, [AskApproval(fresh)])
    except Exception as exc:  # noqa: BLE001  (as in `note_question`)
        _log.error("a review was not noted: %s", type(exc).__name__)


def reviewed_tools(*wrappers: object) -> frozenset[str]:
    """Return the tools that reviews among `wrap_tool_call` functions ask about."""
    found, todo, seen = frozenset[str](), list(wrappers), set[int]()
    while todo and len(seen) < _MAX_WRAPPERS:
        value = todo.pop()
        review = value.__self__ if isinstance(value, MethodType) else None
        asks = getattr(review, "interrupt_on", None)
        if getattr(review, "interrupt_mode", None) == "per_call" and isinstance(asks, Mapping):
            found |= frozenset(map(str, asks))
        if isinstance(value, FunctionType) and id(value) not in seen:
            seen.add(id(value))
            todo += [getattr(value, "__wrapped__", None), *cells_of(value).values()]
    return found


def _asked_about(requests: Sequence[Any], message: AIMessage) -> list[Call]:
    """Return the calls that `requests` name; [] if one of these matches no call."""
    found: list[Call] = []
    left = iter(enumerate(message.tool_calls))
    for request in requests:
        asked = request if isinstance(request, Mapping) else {}
        name, args, ident = asked.get("name"), asked.get("args"), asked.get("tool_call_id")
        for position, call in left:
            if call["name"] == name and call["args"] == args and ident in (None, call["id"]):
                found.append(unknown_call(call["name"], call["id"], message.id, position, call["args"]))
                break
        else:
            return []
    return found


def _planned(run: Run, requests: Sequence[Any]) -> Flow[list[Call]]:
    """Return the planned call whose id a node's question names, in a list; else []."""
    asked: Any = requests[0] if len(requests) == 1 and isinstance(requests[0], Mapping) else {}
    if not isinstance(ident := asked.get("tool_call_id"), str):
        return []
    plan = (yield Load(run.scope, Query(planned_call=(run.agent, ident)))).plan
    found = match_plan(plan, run.epoch, None, ident, asked.get("name", ""), asked.get("args"))
    return [unknown_call(asked["name"], ident, plan.id, found.position, asked["args"])] if found.planned else []


def _shown_calls(value: object, schema: object) -> tuple[Sequence[Any], Sequence[tuple[str, ...]]]:
    """Return a question's calls and their decisions. `schema`: JSON schema of answers."""
    items = value if isinstance(value, list | tuple) else [value]
    inbox = [i for i in items if isinstance(i, Mapping) and isinstance(i.get("action_request"), Mapping)]
    if inbox:
        asked, flags = [i["action_request"] for i in inbox], [i.get("config") for i in inbox]
        calls = [{"name": a.get("action"), "args": a.get("args")} for a in asked]
        takes = [tuple(d for n, d in _FLAGS.items() if not isinstance(f, Mapping) or f.get(n)) for f in flags]
        return (calls, takes) if len(inbox) == len(items) else ((), ())
    if not isinstance(value, Mapping):
        return (), ()
    if "review_configs" in value:
        configs, requests = value["review_configs"], value.get("action_requests")
        if not isinstance(configs, list) or not isinstance(requests, list):
            return (), ()
        return requests, [tuple(c.get("allowed_decisions", ())) for c in configs if isinstance(c, Mapping)]
    if value.get("type") == "tool_approval":
        return [value], [_of_schema(schema)]
    named = list(_named_calls(value, _DEPTH))
    return (named, [approval_questions.PLAIN]) if len(named) == 1 else ((), ())


def _named_calls(value: object, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the parts of a question that name a tool and its arguments.

    A nested part counts only with a call's id. A model could imitate a call in its arguments, but does not choose ids.
    """
    if isinstance(value, Mapping):
        tool = next((value[k] for k in _TOOL if isinstance(value.get(k), str)), None)
        args = next((value[k] for k in _ARGUMENTS if isinstance(value.get(k), Mapping)), None)
        if tool is not None and args is not None:
            ident = value.get("id", value.get("tool_call_id"))
            if depth == _DEPTH or ident is not None:
                yield {"name": tool, "args": args, "tool_call_id": ident}
            return
    if depth and isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _named_calls(item, depth - 1)


def _of_schema(schema: object) -> tuple[str, ...]:
    """Return the decisions that an answer's schema permits."""
    if not isinstance(schema, Mapping):
        return approval_questions.DECISIONS
    named = schema.get("$defs", {})
    members = [named.get(str(m.get("$ref", "")).rpartition("/")[2], m) for m in schema.get("oneOf", [schema])]
    kinds = [m.get("properties", {}).get("type", {}).get("const") for m in members]
    return tuple(k for k in kinds if k in approval_questions.DECISIONS)
