"""Take steps that share a target in their order; one may depend on another.

"Copy b to c. Copy a to b." loses b if the second copy is made first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langchain_runtime_authz.facts.normal_forms import fold
from langchain_runtime_authz.mandate.model import Const, Each, Field, Pick, Step
from langchain_runtime_authz.mandate.vocabulary import TARGETS
from langchain_runtime_authz.tool_profile import ToolProfile

Hits = dict[str, object]
"""Target → the place that says it. A list says a common target once, and its steps have no order."""


def in_order(steps: Sequence[Step], profiles: Mapping[str, ToolProfile]) -> tuple[Step, ...]:
    """Return the steps; each that shares a target waits for the one before it."""
    hits = {s.id: _hits(s, profiles[s.tool]) for s in steps if profiles[s.tool].side_effect}
    found, tied = list[Step](), list[Step]()
    for step in steps:
        if step.id in hits and any(_meet(hits[step.id], hit) for other, hit in hits.items() if other != step.id):
            last = next((s.id for s in reversed(tied) if s.deed is None or s.deed != step.deed), None)
            tied.append(step)
            found.append(step.model_copy(update={"after": step.after or last}))
        else:
            found.append(step)
    return tuple(found)


def _hits(step: Step, profile: ToolProfile) -> Hits:
    """Return what a step affects. Two tools may concern one person in any order."""
    found: Hits = {}
    for name, argument in step.args.items():
        kind, values, place = profile.critical.get(name), tuple[object, ...](), step.id
        if isinstance(argument, Const):
            values = argument.value if isinstance(argument.value, tuple) else (argument.value,)
        elif isinstance(argument, Field | Pick | Each):
            values = (f"{argument.step} {argument.path}",)
        if kind in TARGETS or kind == "url":
            of = step.tool if kind == "principal" else ""
            found |= {
                f"{of} {fold(str(value)).rstrip('/')}": getattr(argument, "said", None) or place for value in values
            }
    return found or {step.tool: step.id}


def _meet(one: Hits, other: Hits) -> bool:
    """Return True if two steps share a target, or one target is a path in the other."""
    return any(
        at != there and (hit == known or hit.startswith(f"{known}/") or known.startswith(f"{hit}/"))
        for hit, at in one.items()
        for known, there in other.items()
    )
