"""Let a step wait for an earlier one with the same target, on which it may depend.

"Copy b to c. Copy a to b." loses b if the second copy is made first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from posixpath import normpath

from langchain_runtime_authz._validate import as_mapping
from langchain_runtime_authz.facts.normal_forms import fold, identifiers
from langchain_runtime_authz.mandate.model import Const, Each, Field, OneOf, Pick, Step, Within
from langchain_runtime_authz.mandate.value_matching import SEVERAL
from langchain_runtime_authz.mandate.vocabulary import TARGETS
from langchain_runtime_authz.tool_profile import UNPROFILED, ToolProfile

Hits = dict[str, object]
"""Target → the place that says it. A list says a common target once, and its steps have no order."""


def in_order(
    steps: Sequence[Step], profiles: Mapping[str, ToolProfile], signatures: Mapping[str, Mapping[str, object]]
) -> tuple[Step, ...]:
    """Return the steps. Steps with a common target wait, each for the one before it.

    What is only sent or paid may go in any order. `signatures`: tool → argument → its JSON schema.
    """
    known = {s.tool: profiles.get(s.tool, UNPROFILED) for s in steps}
    hits = {s.id: _hits(s, known[s.tool], signatures.get(s.tool, {})) for s in steps if known[s.tool].side_effect}
    lasting = {s.id for s in steps if s.id in hits and known[s.tool].effect not in ("send", "pay")}
    chains: list[set[str]] = []
    for step in (s for s in steps if s.id in hits):
        met = {o for o, hit in hits.items() if {o, step.id} & lasting and _meet(hits[step.id], hit)}
        near = [chain for chain in chains if step.after in chain or chain & met]
        chains = [*(chain for chain in chains if chain not in near), {step.id}.union(*near)]
    found = list[Step]()
    for step in steps:
        chain = next((chain for chain in chains if step.id in chain), set[str]())
        before = (s.id for s in reversed(found) if s.id in chain and (s.deed is None or s.deed != step.deed))
        found.append(step.model_copy(update={"after": next(before, step.after)}))
    return tuple(found)


def _hits(step: Step, profile: ToolProfile, schemas: Mapping[str, object]) -> Hits:
    """Return what a step affects. A person counts as another target for each tool."""
    found: Hits = {}
    defaults = {n: d for n, s in schemas.items() if n not in step.args and (d := as_mapping(s).get("default"))}
    for name, argument in {**defaults, **step.args}.items():
        kind = profile.critical.get(name, "object" if profile is UNPROFILED else None)
        place = getattr(argument, "said", None) or step.id
        values: Sequence[object] = ()
        if name in defaults:  # calls of one tool have no order for it
            place, values = (step.tool,), (argument,)
        elif isinstance(argument, Const):
            values = argument.value if isinstance(argument.value, tuple) else (argument.value,)
        elif isinstance(argument, OneOf):
            values = argument.values
        elif isinstance(argument, Within):
            values = (argument.prefix,)
        targets: dict[str, object] = {one: place for value in values for one in _spellings(str(value))}
        if isinstance(argument, Field | Pick | Each):
            targets = {f"{argument.step} {argument.path}": place}
        if isinstance(argument, Pick) and argument.min is argument.max is None:
            # If two steps choose by the same fields, they have one target only if the conditions are equal.
            records, (choice,) = (*sorted(argument.where),), targets
            targets = {choice: records, f"{choice} {sorted(argument.where.items())}": place}
        if kind in TARGETS:
            of = step.tool if kind == "principal" else ""
            found |= {f"{of} {target}".rstrip("/"): at for target, at in targets.items()}
    return found if {*found.values()} - {(step.tool,)} else {**found, step.tool: step.id}


def _spellings(target: str) -> tuple[str, ...]:
    """Return a target's spellings: its path (a pattern's folder) and its addresses."""
    path, *pattern = SEVERAL.split(fold(target).replace("\\", "/"), maxsplit=1)
    path = path.rpartition("/")[0] if pattern else path
    return normpath(f"/{path.lstrip('/')}"), *identifiers(target)


def _meet(one: Hits, other: Hits) -> bool:
    """Return True if two steps share a target, or one target is a path in the other."""
    return any(
        both.get(hit[:size], at) != at
        for each, both in ((one, other), (other, one))
        for size in {*map(len, both)}
        for hit, at in each.items()
        if hit[size : size + 1] in ("", "/")
    )
