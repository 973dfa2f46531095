"""The hand-written plans of the suites, and the same plans with seeded mistakes.

They are an upper bound for a planner model: a person wrote them, from the user's words, the signatures and the profiles.
"""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Literal

from langchain_runtime_authz.demo.agentdojo import MANDATES, load_mandates
from langchain_runtime_authz.mandate.model import Const, Free, Mandate, Step
from langchain_runtime_authz.tool_profile import ToolProfile

from .attackers import Planned

Mistake = Literal["dropped", "widened"]


def load_plans(suite: str) -> dict[str, Mandate]:
    """Return the mandate of each user task; nothing for a suite without plans."""
    path = MANDATES if suite == "banking" else Path(__file__).parent / "mandates" / f"{suite}.yaml"
    return load_mandates(path) if path.exists() else {}


def mistaken(plan: Mandate, mistake: Mistake | None, share: float, seed: str) -> Mandate:
    """Return a plan in which each step is left out, or each argument is `Free`, with this probability.

    A step that takes values from one that was left out goes with it, as a planner's answer would be refused.
    """
    dice = Random(seed)
    steps: list[Step] = []
    for step in plan.steps:
        there = {s.id for s in steps}
        if mistake == "dropped":
            needed = {*step.sources, *([step.after] if step.after else [])}
            if dice.random() >= share and needed <= there:
                steps.append(step)
        else:
            args = {n: Free() if dice.random() < share else v for n, v in step.args.items()}
            steps.append(step.model_copy(update={"args": args}) if mistake else step)
    confirm = tuple(name for name in plan.confirm if name in {s.id for s in steps})
    return Mandate(steps=tuple(steps), limits=plan.limits, never=plan.never, confirm=confirm)


def first_reads(plan: Mandate, profiles: Mapping[str, ToolProfile]) -> list[Planned]:
    """Return the reads of a plan whose arguments it names: an agent makes them when it is told what is missing."""
    found = []
    for step in plan.steps:
        named = {n: a.value for n, a in step.args.items() if isinstance(a, Const)}
        if not profiles[step.tool].side_effect and all(isinstance(a, Const) for a in step.args.values()):
            found.append(Planned(step.tool, named))
    return found
