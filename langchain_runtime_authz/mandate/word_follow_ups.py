"""Compile a turn without a planner. It may go on with the one before it.

The words compiler reads the message before with new values in place, and the planner's check must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import permutations
from typing import Any, Final

from langchain_runtime_authz.mandate.follow_ups import TurnBefore, may_be, replaced, without_spans
from langchain_runtime_authz.mandate.languages import languages
from langchain_runtime_authz.mandate.message_places import leaves_open
from langchain_runtime_authz.mandate.model import Compiled, Const, Dropped, Mandate, Step
from langchain_runtime_authz.mandate.planner_mandate import OPEN_BEFORE, backed_part
from langchain_runtime_authz.mandate.step_checks import argument_schemas
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

_Known = tuple[Mapping[str, ToolProfile], Mapping[str, Mapping[str, Any]], date | None]  # profiles, schemas, today
_SHORT: Final = 80  # characters of such a message
_MOST: Final = 3  # values in it


def compile_turn(
    texts: Sequence[str],
    earlier: Iterable[str],
    profiles: Mapping[str, ToolProfile],
    schemas: Mapping[str, Mapping[str, Any]],
    today: date | None = None,
) -> Compiled:
    """Compile the mandate of one turn, or list what was not understood.

    Args:
        texts: the user's messages of the turn, in order.
        earlier: the user's messages right before it, the newest first. Those before the last one are read only if one
            text is not understood.
        profiles: tool → profile.
        schemas: tool → the JSON schema of its arguments.
        today: the date of the messages.
    """
    known, older = (profiles, schemas, today), iter(earlier)
    last = next(older, "")
    if leaves_open(last):
        return Compiled(None, tuple(Dropped(text, OPEN_BEFORE) for text in texts))
    compiled = compile_words(texts, *known)
    if compiled.mandate is not None or len(texts) != 1 or len(texts[0]) > _SHORT:
        return compiled
    before = list[TurnBefore]()
    for said in reversed([last, *older] if last else []):
        mandate = compile_words([said], *known).mandate or _follow_up(said, before, known)
        before.append(TurnBefore(said, mandate or Mandate()))
    found = _follow_up(texts[0], before, known)
    return compiled if found is None else Compiled(found)


def _follow_up(text: str, before: Sequence[TurnBefore], known: _Known) -> Mandate | None:
    ordered, earlier = dict[str, Mandate](), [turn.text for turn in before]
    profiles, schemas, today = known
    for step in _proposed(text, before, known):
        mandate = backed_part(Mandate(steps=(step,)), [text], profiles, schemas, earlier, today, before).mandate
        if mandate is not None and mandate.steps and not mandate.confirm:
            ordered[mandate.digest] = mandate
    return next(iter(ordered.values())) if len(ordered) == 1 else None


def _proposed(text: str, before: Sequence[TurnBefore], known: _Known) -> Iterator[Step]:
    """Yield the steps of the message before with the values of `text` in place."""
    base = next((turn for turn in reversed(before) if any(map(turn.said, turn.mandate.steps))), None)
    if base is None:
        return
    _, schemas, today = known
    old = [step.args for step in map(without_spans, base.mandate.steps)]
    values = {tuple(t for t in language.tokens(text, today) if language.value(t)) for language in languages()}
    for tokens in (several for several in values if 0 < len(several) <= _MOST):
        for order in base.mandate.steps:
            said, schema = base.said(order), argument_schemas(schemas.get(order.tool, {}))
            for names in permutations(said, len(tokens)):
                pairs = list(zip(names, tokens, strict=True))
                if not all(may_be(Const(value=t.text), order.args[name], schema.get(name)) for name, t in pairs):
                    continue
                whole = replaced(base.text, [(said[name], token.text) for name, token in pairs])
                found = compile_words([whole], *known).mandate if whole else None
                new = [s for s in map(without_spans, found.steps if found else ()) if s.args not in old]
                yield from new if len(new) == 1 else ()
