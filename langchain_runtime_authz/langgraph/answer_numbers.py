"""Give each question of a graph task its own answer, by number.

A graph task is one run of a node. LangGraph numbers the task's answers, and gives them to its questions in the order in
which code asks. If a node runs again, a void approval or a call that is not repeated would shift that order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt

from langchain_runtime_authz.langgraph import private_api as private

OURS: Final = "answers_approvals"  # field of a stored answer to an approval question: the approvals' ids
_PASSED: Final[dict[str, list[str]]] = {OURS: []}  # stored as the answer with a skipped number
_GRAPHS_PER_TOOL: Final = 10_000

_pausing: Final = ContextVar[Collection[str] | None]("langchain_runtime_authz.pausing", default=())


def fits(answer: object, ids: Collection[str], *, plain: bool) -> bool:
    """Return True if `answer` is marked for one of `ids`. If unmarked, return `plain`."""
    marks = answer.get(OURS) if isinstance(answer, Mapping) else None
    return not set(ids).isdisjoint(marks) if isinstance(marks, list) else plain


def pause(value: Mapping[str, Any], ids: Collection[str] | None = None) -> Any:
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


class _Answers(NamedTuple):
    """LangGraph's counter of a graph task's answers, and the answer numbers in use."""

    counter: Callable[[], int]
    used: list[int]
    kept: list[int]  # reserved: each for one question
    heard: list[int]  # given to a question of a tool


def kept_numbers(config: Mapping[str, Any]) -> list[int] | None:
    """Return a graph task's reserved answer numbers; None if we do not number them."""
    of = getattr(getattr(private.scratchpad_of(config), "interrupt_counter", None), "of", None)
    return of.kept if of is not None else None


def keep_numbers(config: Mapping[str, Any], numbers: Sequence[int]) -> None:
    """Reserve the answers with these numbers, so that no other question gets them."""
    pad, kept = private.scratchpad_of(config), kept_numbers(config)
    for number in [n for n in numbers if pad is not None and n < len(pad.resume)]:
        if kept is None:  # LangGraph's own counter only counts up
            private.store_answers(config, pad.resume[: max(number, pad.interrupt_counter()) + 1])
            continue
        kept.append(number)
        if number not in (used := pad.interrupt_counter.of.used):
            used.append(number)


def pass_number(config: Mapping[str, Any]) -> None:
    """Skip a node's next answer number, so its next question has a new interrupt id."""
    resume = private.scratchpad_of(config).resume
    resume.append(dict(_PASSED))
    keep_numbers(config, [len(resume) - 1])


def counting_questions(
    config: dict[str, Any], place: int | None = None, mine: Sequence[int] | None = None
) -> tuple[dict[str, Any], list[int]]:
    """Return a config that numbers a tool's or node's questions, and these numbers.

    Each question adds its number to the list. `place`: index of the tool's call, to number the graphs that the tool
    calls. `mine`: numbers of the answers for a tool of a node; this tool gets no other answers.
    """
    configurable = config.get("configurable") or {}
    scratchpad = configurable.get(private.keys.CONFIG_KEY_SCRATCHPAD)
    if scratchpad is None:
        return config, []
    counter: Callable[[], int] = scratchpad.interrupt_counter
    around: _Answers | None = getattr(counter, "of", None)  # the node's counter, if the config is for a tool of a node
    strict = mine is not None and around is not None
    asked = [*mine] if mine and strict else []
    of = around or tuple.__new__(_Answers, (counter, asked, [], []))  # faster than a call of the class
    left = [n for n in asked if n < len(scratchpad.resume) and n not in of.heard] if asked else []

    def counted() -> int:
        while True:  # a recursive function would refer to itself, and so keep the config alive
            ids, number = _pausing.get(), len(scratchpad.resume)
            if left:
                of.heard.append(number := left.pop(0))
            elif ids is not None and not strict:
                number = counter()
            for numbers in (asked, of.used):
                if number not in numbers:
                    numbers.append(number)
            if strict:
                of.kept.append(number)
            if ids is None or around:
                return number
            given = scratchpad.resume[number : number + 1]
            if number not in of.kept and all(fits(answer, ids, plain=not ids) for answer in given):
                of.kept.append(number)
                return number
            private.store_answers(config, scratchpad.resume[: number + 1])

    counted.of = of  # type: ignore[attr-defined]
    graphs = scratchpad.subgraph_counter
    if place is not None:  # else a skipped tool would shift the numbers, and a graph would load another's state
        graphs = itertools.count(place * _GRAPHS_PER_TOOL).__next__
    # `dataclasses.replace`, with the fields looked up once.
    held = dict(zip(private.PAD, private.of_pad(scratchpad), strict=True))
    own = private.PregelScratchpad(**{**held, "interrupt_counter": counted, "subgraph_counter": graphs})
    return {**config, "configurable": {**configurable, private.keys.CONFIG_KEY_SCRATCHPAD: own}}, asked


def passed_numbers(config: Mapping[str, Any]) -> int:
    """Return how many numbers `pass_number` has skipped, also in earlier entries."""
    pad = private.scratchpad_of(config)
    return pad.resume.count(_PASSED) if pad is not None else 0


def answers_left(config: Mapping[str, Any], had: int, *, plain: bool = True) -> bool:
    """Return True if over `had` answers exist or, with `plain`, an unused plain one."""
    pad = private.scratchpad_of(config)
    return pad is not None and (len(pad.resume) > had or (plain and private.unused_answer(config) is not None))
