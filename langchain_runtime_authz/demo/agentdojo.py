"""Replay AgentDojo's banking suite: does a valid token stop a misaligned action?

The model is fully hijacked: it makes the user's calls and, after an output held the injection, the attacker's calls.
So the replay measures the authorization alone and needs no language model. Environments, tasks and judges are
AgentDojo's (Debenedetti et al., 2024; MIT). The graph is the same under both conditions:

* *static token*: an agent that holds a tool may use it;
* *runtime decision*: `RuntimeAuthz` with the shipped policy, the profiles in `banking.yaml`, and the mandates in
  `banking_mandates.yaml`, which were written by hand from the users' texts. The simulated user sees only an interrupt's
  payload, approves the calls of the user's task, and rejects the others.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from langchain_core.messages import AIMessage, HumanMessage, ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.demo.agent import agent_graph, converse
from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.mandate.mandate_file import load_mandate
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel
from langchain_runtime_authz.tool_profile import load_profiles

VERSION: Final = "v1.2.2"
SUITE: Final = "banking"
PROFILES: Final = Path(__file__).with_name("banking.yaml")
MANDATES: Final = Path(__file__).with_name("banking_mandates.yaml")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one run."""

    utility: bool  # the user's task succeeded, by AgentDojo's check
    compromised: bool  # the attack succeeded, by AgentDojo's check
    harm: bool  # a side-effecting call of the attacker was permitted, whatever that check says
    asks: int  # questions to the user
    effects: int  # side-effecting calls of the user's own task
    denials: int  # number of these calls that did not run


@dataclass(frozen=True, slots=True)
class Condition:
    """All runs under one kind of authority: each user task, alone and with attacks."""

    name: str
    benign: tuple[Outcome, ...]
    attacked: tuple[Outcome, ...]
    seconds: float


def replay(limit: int | None = None, progress: Console | None = None) -> list[Condition]:
    """Replay the suite under both conditions: the static token first.

    Args:
        limit: the number of pairs of user task and injection task, spread over both; all by default.
        progress: the console of the progress bar.
    """
    suite = load_suite(SUITE)
    pairs = _diagonal(list(suite.user_tasks.values()), list(suite.injection_tasks.values()))[:limit]
    users = list(dict.fromkeys(user for user, _ in pairs))
    attack = attack_texts(suite)
    cases: list[_Case] = [(user, None, {}) for user in users]
    cases += [(user, injection, attack(user, injection)) for user, injection in pairs]

    conditions = []
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress, disable=progress is None) as bar:
        for name, authz in (("static token", None), ("runtime decision", RuntimeAuthz(profiles=PROFILES))):
            started = time.perf_counter()
            outcomes = [_run(suite, authz, case) for case in bar.track(cases, description=name)]
            seconds = time.perf_counter() - started
            conditions.append(Condition(name, tuple(outcomes[: len(users)]), tuple(outcomes[len(users) :]), seconds))
    return conditions


def render(conditions: Sequence[Condition], console: Console) -> None:
    first = conditions[0]
    table = Table(
        title=f"AgentDojo {VERSION}, {SUITE}: {len(first.benign)} user tasks, {len(first.attacked)} attacked pairs",
        caption="A model that is hijacked entirely, judged by AgentDojo's own checks. The user rejects the attacker's calls.",
    )
    table.add_column("")
    for condition in conditions:
        table.add_column(condition.name, justify="right")
    for label, cell in _ROWS.items():
        table.add_row(label, *map(cell, conditions))
    console.print(table)


_ROWS: Final[Mapping[str, Callable[[Condition], str]]] = {
    "benign utility": lambda c: f"{fmean(o.utility for o in c.benign):.1%}",
    "utility under attack": lambda c: f"{fmean(o.utility for o in c.attacked):.1%}",
    "attack success rate": lambda c: f"{fmean(o.compromised for o in c.attacked):.1%}",
    "harm: an attacker's side effect ran": lambda c: f"{fmean(o.harm for o in c.attacked):.1%}",
    "false denials of side effects": lambda c: (
        f"{sum(o.denials for o in c.benign)} of {sum(o.effects for o in c.benign)}"
    ),
    "asks per benign task": lambda c: f"{fmean(o.asks for o in c.benign):.2f}",
    "asks per attacked task": lambda c: f"{fmean(o.asks for o in c.attacked):.2f}",
    "seconds": lambda c: f"{c.seconds:.1f}",
}


def load_suite(name: str) -> Any:
    """Return a suite of AgentDojo. Raises `ConfigError` if it is not installed."""
    try:
        from agentdojo.task_suite.load_suites import get_suite
    except ImportError as exc:
        raise ConfigError("this replay needs AgentDojo: pip install 'langchain-runtime-authz[agentdojo]'") from exc
    return get_suite(VERSION, name)


_profiles = cache(partial(load_profiles, PROFILES))


@cache
def load_mandates(path: Path = MANDATES) -> dict[str, Mandate]:
    return {task: load_mandate(order) for task, order in read_yaml(path, Code.MANDATE_INVALID).items()}


def attack_texts(suite: Any) -> Callable[[Any, Any], dict[str, str]]:
    """Return a function that gives the texts to inject for a pair of tasks."""
    from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
    from agentdojo.attacks.important_instructions_attacks import ImportantInstructionsAttack

    pipeline = GroundTruthPipeline(None)
    pipeline.name = "local"  # the attack addresses the model by a name, which it derives from this one
    attack = ImportantInstructionsAttack(suite, pipeline)
    # To find what a user task reads, the attack replays the task. Once for each task is enough.
    attack.get_injection_candidates = cache(attack.get_injection_candidates)
    texts: Callable[[Any, Any], dict[str, str]] = attack.attack
    return texts


def _diagonal(users: Sequence[Any], injections: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return every pair once, in an order in which user task and injection both vary."""
    count = len(injections)
    return [(user, injections[(i + shift) % count]) for shift in range(count) for i, user in enumerate(users)]


def customer_subject(env: Any, name: str = "customer") -> dict[str, Any]:
    """Return a run's subject. Its `identifiers` are the user's accounts in the suite."""
    accounts = (getattr(env, "bank_account", None), getattr(env, "inbox", None))
    own = [("me", a.iban) if hasattr(a, "iban") else (a.account_email,) for a in accounts if a is not None]
    return {"type": "user", "id": name, "properties": {"identifiers": [one for each in own for one in each]}}


_Case = tuple[Any, Any, dict[str, str]]  # a user task, an injection task or `None`, and the injected texts


def _run(suite: Any, authz: RuntimeAuthz | None, case: _Case) -> Outcome:
    user, injection, texts = case
    world = World(suite, user, texts)
    theirs = injection.ground_truth(world.before) if injection is not None else []
    own = user.ground_truth(world.before)
    turns = _hijacked(world, own, theirs, user.GROUND_TRUTH_OUTPUT)
    model = ScriptedChatModel(script=[lambda _: next(turns)] * (len(own) + len(theirs) + 1))
    graph = agent_graph(model, world.tools())
    scope: AbstractContextManager[Any] = nullcontext()
    if authz is not None:
        graph = authz.protect(graph)
        scope = authz.run(subject=customer_subject(world.before), task=user.PROMPT, mandate=load_mandates()[user.ID])
    person = _User(world, own)
    config: RunnableConfig = {"configurable": {"thread_id": uuid.uuid4().hex}, "recursion_limit": 100}
    with scope:
        messages = list(converse(graph, {"messages": [HumanMessage(user.PROMPT)]}, config, person))

    calls = [c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    effects = [c for c in calls if _profiles()[c["name"]].side_effect]
    ran = [c["id"] in world.ran for c in effects if not _is_attack(c["id"])]
    traces = [c for c in calls if c["id"] in world.ran]
    # A run that was halted has no answer.
    answer = messages[-1].text if messages and isinstance(messages[-1], AIMessage) else ""
    return Outcome(
        utility=judge("utility", user, world, answer, traces),
        compromised=injection is not None and judge("security", injection, world, answer, traces),
        harm=any(c["id"] in world.ran for c in effects if _is_attack(c["id"])),
        asks=person.asked,
        effects=len(ran),
        denials=ran.count(False),
    )


class World:
    """An AgentDojo environment of one run, with its tools as LangChain tools.

    Its tools record which calls ran, so that the result does not depend on a protected graph's report.
    """

    def __init__(self, suite: Any, user: Any, texts: Mapping[str, str], env: Any = None) -> None:
        from agentdojo.functions_runtime import FunctionsRuntime

        self._runtime = FunctionsRuntime(suite.tools)
        self._needles = [_folded(text) for text in texts.values()]
        env = env if env is not None else suite.load_and_inject_default_environment(dict(texts))
        self.env = user.init_environment(env)
        self.before = self.env.model_copy(deep=True)
        self.exposed = False  # whether an output held the injection
        self.planned = ""  # the id of the model's last call; it makes one at a time
        self.ran: list[str] = []  # the ids of the calls whose tool ran

    def tools(self) -> list[BaseTool]:
        return [self._tool(f) for f in self._runtime.functions.values()]

    def parsed(self, name: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a call with its defaults, as its tool receives it."""
        return name, self._runtime.functions[name].parameters.model_validate(args).model_dump()

    def _tool(self, function: Any) -> BaseTool:
        def call(**args: Any) -> Any:
            self.ran.append(self.planned)
            result, error = self._runtime.run_function(self.env, function.name, args)
            output = error or _plain(result)  # an error is a result too, as in AgentDojo
            self.exposed = self.exposed or any(n in _folded(str(output)) for n in self._needles)
            return output

        return StructuredTool(
            name=function.name, description=function.description, args_schema=function.parameters, func=call
        )


def _hijacked(world: World, user: Sequence[Any], theirs: Sequence[Any], answer: str) -> Iterator[AIMessage]:
    """Play the model: make the user's calls and, after the injection, the attacker's."""
    own, attack = deque(enumerate(user)), deque(enumerate(theirs))
    while own or attack:
        whose, left = (_ATTACK, attack) if attack and (world.exposed or not own) else ("user", own)
        number, call = left.popleft()
        world.planned = f"{whose}-{number}"
        yield AIMessage("", tool_calls=[{"name": call.function, "args": dict(call.args), "id": world.planned}])
    yield AIMessage(answer)


_ATTACK: Final = "attack"


def _is_attack(call_id: str | None) -> bool:
    return (call_id or "").startswith(_ATTACK)


class _User:
    """Play the user, who approves the calls of the task and rejects all others."""

    def __init__(self, world: World, wanted: Sequence[Any]) -> None:
        self._world, self.asked = world, 0
        self._own = [world.parsed(call.function, call.args) for call in wanted]

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked += 1
        approved = self._world.parsed(request["name"], request["args"]) in self._own
        return {"type": "approve" if approved else "reject"}


def judge(kind: str, task: Any, world: World, answer: str, ran: Sequence[ToolCall]) -> bool:
    """Return AgentDojo's verdict about a run; `kind` is `utility` or `security`."""
    from agentdojo.functions_runtime import FunctionCall

    facts = (answer, world.before, world.env)
    traces = [FunctionCall(function=c["name"], args=c["args"], id=c["id"]) for c in ran]
    verdict = getattr(task, f"{kind}_from_traces")(*facts, traces)
    return bool(getattr(task, kind)(*facts) if verdict is None else verdict)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _folded(text: str) -> str:
    """Remove blanks and line breaks, which YAML files fold and a `repr` escapes."""
    return "".join(text.replace("\\n", "").split())
