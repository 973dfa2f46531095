"""Give each question of a graph task its own answer, by number.

A graph task is one run of a node. LangGraph numbers the task's answers, and gives them to its questions in the order in
which code asks. If a node runs again, a void approval or a call that is not repeated would shift that order. So code
gets a counter of ours in place of LangGraph's, and `Numbers` records what became of each number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from enum import Enum
from functools import partial
from typing import Any, Final

from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt

from langchain_runtime_authz.langgraph import private_api as private

OURS: Final = "answers_approvals"  # field of a stored answer to an approval question: the approvals' ids
_GRAPHS_PER_TOOL: Final = 10_000

# The approvals that the present question asks for. (): code asks. None: a new approval question.
_pausing: Final = ContextVar[Collection[str] | None]("langchain_runtime_authz.pausing", default=())


class Use(Enum):
    """The use of an answer's number."""

    MET = "met"  # met by a question to which the answer does not belong
    KEPT = "kept"  # reserved for one question
    GIVEN = "given"  # given to a question


class Numbers(dict[int, Use]):
    """Answer number → its use, in one execution of a graph task."""

    counter: Callable[[], int]  # LangGraph's own

    def is_free(self, number: int) -> bool:
        """Return True if the number belongs to no question yet."""
        return self.get(number, Use.MET) is Use.MET


def numbers_of(config: Mapping[str, Any]) -> Numbers | None:
    """Return the numbers of a graph task; None if LangGraph's own counter counts."""
    return getattr(getattr(private.scratchpad_of(config), "interrupt_counter", None), "numbers", None)


def execution_of(config: Mapping[str, Any]) -> object:
    """Return what tells executions of a graph task apart: LangGraph's own counter."""
    counter = getattr(private.scratchpad_of(config), "interrupt_counter", None)
    return getattr(getattr(counter, "numbers", None), "counter", counter)


def is_marked_for(answer: object, ids: Collection[str], *, plain: bool) -> bool:
    """Return True if `answer` is marked for one of `ids`. If unmarked, return `plain`."""
    marks = answer.get(OURS) if isinstance(answer, Mapping) else None
    return not set(ids).isdisjoint(marks) if isinstance(marks, list) else plain


def interrupt_for(value: Mapping[str, Any], ids: Collection[str] | None = None) -> Any:
    """Raise the interrupt of an approval question, or return its answer.

    `ids`: return only an answer that is marked for one of these approvals.
    """
    before, shown = _pausing.set(ids), dict(value)
    try:
        return interrupt(shown)
    except GraphInterrupt as exc:  # the id is known only now: it depends on the number
        shown["interrupt_id"] = exc.args[0][0].id
        raise
    finally:
        _pausing.reset(before)


def keep_numbers(config: Mapping[str, Any], answered: Iterable[int]) -> None:
    """Reserve the answers with these numbers, so that no other question gets them."""
    pad, numbers = private.scratchpad_of(config), numbers_of(config)
    for number in [n for n in answered if pad is not None and n < len(pad.resume)]:
        if numbers is None:  # LangGraph's own counter only counts up
            private.store_answers(config, pad.resume[: max(number, pad.interrupt_counter()) + 1])
        elif numbers.is_free(number):
            numbers[number] = Use.KEPT


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
    if numbers is None:  # a node, or a tool of a tool node
        numbers = asked = Numbers()
        numbers.counter = counter
        count: Any = partial(_next_in_task, numbers, resume, config)
    else:  # a tool of a hand-written node
        asked = [*(mine or ())]
        unused = [n for n in asked if n < len(resume) and numbers.get(n) is not Use.GIVEN]
        # A marked answer belongs to an approval of a call inside the tool. None: the tool takes the node's next numbers.
        left = [n for n in unused if is_marked_for(resume[n], (), plain=True)] if mine is not None else None
        count = partial(_next_in_tool, numbers, resume, counter, left, asked)
    count.numbers = numbers
    if place is not None:  # else a skipped tool would shift the numbers, and a graph would load another's state
        graphs = itertools.count(place * _GRAPHS_PER_TOOL).__next__
    # `dataclasses.replace`, with the fields looked up once.
    held = dict(zip(private.PAD, private.of_pad(scratchpad), strict=True))
    own = private.PregelScratchpad(**{**held, "interrupt_counter": count, "subgraph_counter": graphs})
    return {**config, "configurable": {**configurable, private.keys.CONFIG_KEY_SCRATCHPAD: own}}, asked


def _next_in_task(numbers: Numbers, resume: list[Any], config: Mapping[str, Any]) -> int:
    """Return the next free number whose answer, if any, belongs to the question."""
    if (ids := _pausing.get()) is None:  # a new approval question comes after all answers
        numbers.setdefault(len(resume), Use.MET)
        return len(resume)
    while True:
        number = numbers.counter()
        given = resume[number : number + 1]
        if numbers.is_free(number) and all(is_marked_for(answer, ids, plain=not ids) for answer in given):
            numbers[number] = Use.GIVEN
            return number
        numbers.setdefault(number, Use.MET)
        private.store_answers(config, resume[: number + 1])


def _next_in_tool(
    numbers: Numbers, resume: list[Any], next_of_node: Callable[[], int], left: list[int] | None, asked: list[int]
) -> int:
    """Return the next number for a tool of a hand-written node."""
    ids, number = _pausing.get(), len(resume)  # a new question comes after all answers
    if ids is None:
        numbers.setdefault(number, Use.MET)
    elif ids or left is None:
        number = next_of_node()
    else:
        number = left.pop(0) if left else number
        numbers[number] = Use.GIVEN
    if number not in asked:
        asked.append(number)
    return number
