"""Keep those steps of a planner's mandate that the user's messages back.

A planner is a model: it may be wrong, or hijacked by pasted text. So each step that the messages do not back is
dropped; a step is never corrected. Limits and prohibitions stay, because they only narrow. `docs/mandate/planner.md` lists
the checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

from langchain_runtime_authz.mandate.follow_ups import TurnBefore, keep_follow_ups
from langchain_runtime_authz.mandate.message_places import MAX_OWN, Texts, leaves_open
from langchain_runtime_authz.mandate.model import MAX_STEPS, Compiled, Dropped, Mandate, Step
from langchain_runtime_authz.mandate.step_checks import StepCheck
from langchain_runtime_authz.mandate.step_places import RISKY
from langchain_runtime_authz.tool_profile import EFFECTS, ToolProfile

OPEN_BEFORE: Final = "it may belong to the message before it"
LONG: Final = 400  # characters of a message above which an approver must confirm a planner's riskiest steps


def backed_part(
    mandate: Mandate,
    texts: Sequence[str],
    profiles: Mapping[str, ToolProfile],
    schemas: Mapping[str, Mapping[str, Any]],
    earlier: Sequence[str] = (),
    today: date | None = None,
    before: Sequence[TurnBefore] = (),
) -> Compiled:
    """Return the backed part of a planner's mandate, and a list of the dropped parts.

    `earlier`: the user's earlier messages, which order nothing. `today`: the date of the newest message. `before`: the
    newest of `earlier` that ordered something on the same day, with what they ordered.
    """
    words = Texts(texts, earlier)
    if words.too_long:
        return Compiled(None, (Dropped("the mandate", f"the user's own words are longer than {MAX_OWN} characters"),))
    check = StepCheck(mandate, words, profiles, schemas, today)
    open_before = OPEN_BEFORE if earlier and leaves_open(earlier[-1]) else None
    for step in mandate.steps:
        if why := open_before or check.unfit(step) or check.place(step):
            check.lost[step.id] = why
    wary = words.has_material or any(len(text) > LONG for text in texts)

    def ordered(steps: Sequence[Step], text: str) -> Mandate:
        return backed_part(Mandate(steps=tuple(steps)), [text], profiles, schemas, (), today).mandate or Mandate()

    if len(texts) == 1 and not wary and open_before is None:
        keep_follow_ups(check, texts[0], earlier, before, ordered)
    steps = check.steps()
    doubtful = [s.id for s in steps if check.doubtful(s) or (wary and profiles[s.tool].effect in RISKY)]
    effects = {s.id: profiles[s.tool].effect for s in steps}
    confirm = tuple(dict.fromkeys(c for c in (*mandate.confirm, *doubtful) if c in effects or c in EFFECTS))
    kept = Mandate(
        steps=steps,
        limits=mandate.limits,
        never=mandate.never,
        confirm=confirm if len(confirm) <= MAX_STEPS else tuple(dict.fromkeys(effects.get(c, c) for c in confirm)),
        source="planner",
    )
    return Compiled(kept, tuple(Dropped(f"step `{step}`", why) for step, why in check.lost.items()))
