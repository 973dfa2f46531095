"""Find steps that depend on each other: by what they hit, or by shared words.

"Copy b to c. Copy a to b." loses b if the second copy is made first. "Restart a and restart b in staging" may mean that
both are in staging.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from posixpath import normpath

from langchain_runtime_authz._validate import as_list, as_mapping
from langchain_runtime_authz.facts.normal_forms import fold, identifiers_in
from langchain_runtime_authz.mandate.argument_matching import is_default
from langchain_runtime_authz.mandate.model import Argument, Each, Field, Pick, Step, literals
from langchain_runtime_authz.mandate.value_matching import SEVERAL
from langchain_runtime_authz.mandate.vocabulary import TARGETS
from langchain_runtime_authz.tool_profile import UNPROFILED, ToolProfile

Hits = dict[str, object]
"""Target → what says it, like a span. Two steps whose target one list says may run in any order."""


def in_order(
    steps: Sequence[Step], profiles: Mapping[str, ToolProfile], schemas: Mapping[str, Mapping[str, object]]
) -> tuple[Step, ...]:
    """Return the steps. Set `after`, to wait for the step before on the same target.

    Steps that only send or pay need no order. `schemas`: tool → argument → its JSON schema.
    """
    known = {s.tool: profiles.get(s.tool, UNPROFILED) for s in steps}
    acts = [s for s in steps if known[s.tool].side_effect]
    hits = {s.id: _hits(s, known[s.tool], schemas.get(s.tool, {})) for s in acts}
    chains = {s.id: {s.id} for s in acts}  # step → the steps that are in one order with it
    for one, other in combinations(acts, 2):
        lasting = not {known[one.tool].effect, known[other.tool].effect} <= {"send", "pay"}
        if other.after == one.id or (lasting and _meet(hits[one.id], hits[other.id])):
            both = chains[one.id] | chains[other.id]
            chains |= dict.fromkeys(both, both)
    found = list[Step]()
    for step in steps:
        before = (s for s in reversed(found) if s.id in chains.get(step.id, ()))
        after = (s.id for s in before if s.deed is None or s.deed != step.deed)  # not for an alternative
        found.append(step.model_copy(update={"after": next(after, step.after)}))
    return tuple(found)


def open_steps(
    sentence: Sequence[Step], profiles: Mapping[str, ToolProfile], schemas: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[Step, str]]:
    """Yield steps of one sentence that may lack a value in it, with the argument.

    Another step gives a value that would also fit this argument, and its default is another value.
    """
    for step, other in permutations(sentence, 2):
        profile, giver = (profiles.get(s.tool, UNPROFILED) for s in (step, other))
        if step.deed and step.deed == other.deed:
            continue
        known = schemas.get(step.tool, {})
        for name in dict.fromkeys((*known, *profile.critical, *profile.when)):
            schema = known.get(name)
            told = name in step.args or name in profile.text or name in profile.free
            for given, argument in other.args.items() if profile.side_effect and not told else ():
                values, choices = literals(argument), {*as_list(as_mapping(schema).get("enum"))}
                dated = name in profile.when and given in giver.when
                placed = profile.critical.get(name) == giver.critical.get(given) == "place"
                chosen = bool(values) and choices.issuperset(values)
                default = len(values) == 1 and is_default(schema, values[0])
                if (name == given or dated or placed or chosen) and not default:
                    yield step, name


def _hits(step: Step, profile: ToolProfile, schemas: Mapping[str, object]) -> Hits:
    """Return a step's targets. For two tools, one `principal` is two targets."""
    of_tool: object = (step.tool,)  # says the default values: calls of one tool need no order for them
    unsaid = {n: d for n, schema in schemas.items() if n not in step.args and (d := as_mapping(schema).get("default"))}
    said = {name: dict.fromkeys(_spellings(str(default)), of_tool) for name, default in unsaid.items()}
    said |= {name: _targets(step, argument) for name, argument in step.args.items()}
    found: Hits = {}
    for name, targets in said.items():
        kind = profile.critical.get(name, "object" if profile is UNPROFILED else None)
        of = step.tool if kind == "principal" else ""
        found |= {f"{of} {target}".rstrip("/"): at for target, at in targets.items() if kind in TARGETS}
    return found if {*found.values()} - {of_tool} else {**found, step.tool: step.id}


def _targets(step: Step, argument: Argument) -> Hits:
    """Return the targets of an argument: values, or fields of a read."""
    place = getattr(argument, "said", None) or step.id
    match argument:
        case Pick(step=read, path=path, where=where, max=None, min=None):
            # If two steps choose by the same fields, they have one target only if the conditions are equal.
            return {f"{read} {path}": (*sorted(where),), f"{read} {path} {sorted(where.items())}": place}
        case Field(step=read, path=path) | Pick(step=read, path=path) | Each(step=read, path=path):
            return {f"{read} {path}": place}
    return {one: place for value in literals(argument) for one in _spellings(str(value))}


def _spellings(target: str) -> tuple[str, ...]:
    """Return a target's spellings: its path (a pattern's folder) and its addresses."""
    path, *pattern = SEVERAL.split(fold(target).replace("\\", "/"), maxsplit=1)
    path = path.rpartition("/")[0] if pattern else path
    return normpath(f"/{path.lstrip('/')}"), *identifiers_in(target)


def _meet(one: Hits, other: Hits) -> bool:
    """Return True if two steps share a target, or one target is a path in the other."""
    return any(
        folders.get(hit[:size], at) != at
        for hits, folders in ((one, other), (other, one))
        for size in {*map(len, folders)}
        for hit, at in hits.items()
        if hit[size : size + 1] in ("", "/")
    )
