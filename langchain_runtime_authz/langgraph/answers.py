"""Hand out the answers of a task, which LangGraph numbers in the order of the task's questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_runtime_authz.langgraph._private import interrupt_id, keep_answers, scratchpad_of


def answers_left(config: Mapping[str, Any], had: int) -> bool:
    """Return True if the task of `config` has answers beyond the first `had`, for its later questions."""
    scratchpad = scratchpad_of(config)
    return scratchpad is not None and (len(scratchpad.resume) > had or _has_plain_answer(scratchpad))


def _has_plain_answer(scratchpad: Any) -> bool:
    """Return True if a plain resume value waits for the next question. One that was had is the task's own by now."""
    value = scratchpad.get_null_resume(False)
    return value is not None and not any(had is value for had in scratchpad.resume)


def skip_answers(config: Mapping[str, Any], count: int) -> None:
    """Skip the answers of a tool that does not run again: else the next tool that asks would receive them."""
    scratchpad = scratchpad_of(config)
    if scratchpad is None or not scratchpad.resume:
        return
    for _ in range(count):
        number = scratchpad.interrupt_counter()
        if number < len(scratchpad.resume):
            keep_answers(config, scratchpad.resume[: number + 1])


def skip_answers_to(config: Mapping[str, Any], had: int) -> bool:
    """Skip every answer of the task beyond the first `had`. Return False if one is left that no question has had."""
    scratchpad = scratchpad_of(config)
    if scratchpad is None or _has_plain_answer(scratchpad):
        return False
    skip_answers(config, len(scratchpad.resume) - had)
    return True


def answer_to(config: Mapping[str, Any], ident: str, given: object) -> object:
    """Return the answer that the task of `config` has to the interrupt `ident`; `given` if that is not known."""
    scratchpad = scratchpad_of(config)
    answers = scratchpad.resume if scratchpad is not None else ()
    return next((value for i, value in enumerate(answers) if interrupt_id(config, i) == ident), given)
