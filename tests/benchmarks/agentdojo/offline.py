"""Compare the suites' plans with AgentDojo's own solutions, without a graph and without a policy.

`python -m tests.benchmarks.agentdojo.offline` prints, for each task, which of its calls a plan covers, and how many of an
attacker's calls it would cover. It takes seconds, so it is the first thing to run after a change of `mandate.call_matching`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentdojo.functions_runtime import FunctionsRuntime
from pydantic import BaseModel, ValidationError

from langchain_runtime_authz.demo.agentdojo import customer_subject
from langchain_runtime_authz.mandate.call_matching import CallFacts, Standing, match_call
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.mandate.read_outputs import Outputs
from langchain_runtime_authz.tool_profile import ToolProfile

from .attackers import PLANTING, TACTICS, calls_of, identifiers
from .plans import first_reads
from .planting import plant, plant_for
from .replay import Suite, _environment, _texts


@dataclass
class Line:
    """The calls of one task, as they are played against its mandate."""

    suite: Any
    profiles: Mapping[str, ToolProfile]
    plan: Mandate
    words: str
    env: Any
    own: tuple[str, ...]
    outputs: Outputs = field(default_factory=Outputs)
    counts: Counter[str] = field(default_factory=Counter)

    def play(self, call: Any, *, approve: bool) -> Standing | None:
        """Run a call if it is a read, covered or approved; return how a side effect stands."""
        profile = self.profiles[call.function]
        runtime = FunctionsRuntime(self.suite.tools)
        try:
            args = runtime.functions[call.function].parameters.model_validate(dict(call.args)).model_dump(mode="json")
        except ValidationError:
            return None
        given = frozenset(call.args)
        found: Standing | None = None
        if profile.side_effect:
            facts = CallFacts(call.function, profile, args, given, self.own, self.words)
            found = match_call(self.plan, facts, self.profiles, self.outputs).standing(self.counts)
            if found.standing != "covered" and not approve:
                return found
            for spend in found.spends:
                self.counts[spend.counter] += spend.by
            self.outputs.claimed(args)
        result, _ = runtime.run_function(self.env, call.function, dict(call.args))
        self.outputs.record(call.function, profile, args, _plain(result), given=given)
        return found


def _own(env: Any) -> tuple[str, ...]:
    return tuple(customer_subject(env)["properties"]["identifiers"])


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(v) for v in value] if isinstance(value, list) else value


def benign(suite: Suite, *, told: bool) -> Iterator[tuple[str, list[tuple[str, Standing]]]]:
    """Yield each task with how its side effects stand. `told`: the agent makes the plan's reads first."""
    for name, user in suite.suite.user_tasks.items():
        env = user.init_environment(_environment(suite.name, {}))
        plan = suite.plans.get(name, Mandate())
        line = Line(suite.suite, suite.profiles, plan, user.PROMPT, env, _own(env))
        own = user.ground_truth(env.model_copy(deep=True))
        calls = [*(first_reads(plan, suite.profiles) if told else ()), *own]
        yield name, [(c.function, s) for c in calls if (s := line.play(c, approve=True)) is not None]


def attacked(suite: Suite, attacker: str) -> Iterator[tuple[str, str, list[tuple[Any, Standing]]]]:
    """Yield each pair with the attacker's calls that the plan covers: first the user's reads, then the attack."""
    for name, user in suite.suite.user_tasks.items():
        plan = suite.plans.get(name, Mandate())
        for number, injection in suite.suite.injection_tasks.items():
            texts = _texts(suite.name, "important")(user, injection)
            env = user.init_environment(_environment(suite.name, texts))
            theirs: Sequence[Any] = calls_of(suite.name, injection, env)
            names = identifiers(theirs, suite.profiles)
            reads: list[Any] = []
            if attacker in PLANTING:
                reads = plant(env, names, suite.suite.tools, suite.profiles)
            if attacker == "plan-aware":
                reads += plant_for(plan, env, names, suite.suite.tools, suite.profiles)
            own = user.ground_truth(env.model_copy(deep=True))
            if reads:
                theirs = calls_of(suite.name, injection, env)
            if attacker in TACTICS:
                theirs = TACTICS[attacker](theirs, own, suite.profiles)
            line = Line(suite.suite, suite.profiles, plan, user.PROMPT, env, _own(env))
            mine = [c for c in (*first_reads(plan, suite.profiles), *own) if not suite.profiles[c.function].side_effect]
            played = [(c, line.play(c, approve=False)) for c in (*mine, *reads, *theirs)]
            yield name, number, [(c, s) for c, s in played if s is not None and s.standing == "covered"]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.agentdojo.offline", description=__doc__)
    parser.add_argument("--suite", action="append")
    parser.add_argument("--attacker", action="append")
    options = parser.parse_args()
    for name in options.suite or ["banking", "workspace"]:
        suite = Suite.load(name)
        for told in (False, True):
            tasks = dict(benign(suite, told=told))
            covered = sum(all(s.standing == "covered" for _, s in calls) for calls in tasks.values())
            effects = [s for calls in tasks.values() for _, s in calls]
            asked = sum(s.standing != "covered" for s in effects)
            how = "the plan's reads first" if told else "the solution's reads alone"
            print(f"{name}, {how}: {covered} of {len(tasks)} tasks covered; {asked} of {len(effects)} side effects asked")
        for task, calls in tasks.items():
            for tool, standing in calls:
                if standing.standing != "covered":
                    told_of = [f"{d.argument}: {d.code}" for d in standing.deviations]
                    print(f"  {task} {tool}: {standing.standing} {told_of}")
        for attacker in options.attacker or ["static", "adaptive", "borrowed", "plan-aware", "split"]:
            pairs = list(attacked(suite, attacker))
            harm = [(u, i, calls) for u, i, calls in pairs if calls]
            print(f"{name}, {attacker}: covered in {len(harm)} of {len(pairs)} pairs")
            print(*(f"  {u} {c.function} {dict(c.args)}" for (u, c) in {(u, repr(c)): (u, c) for u, _, cs in harm for c, _ in cs}.values()), sep="\n")


if __name__ == "__main__":
    main()
