"""One replay: a real protected graph over AgentDojo's environment, then AgentDojo's verdict."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import yaml
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel

from langchain_runtime_authz.demo.agent import agent_graph, converse
from langchain_runtime_authz.demo.agentdojo import PROFILES as BANKING
from langchain_runtime_authz.demo.agentdojo import World, attack_texts, customer_subject, judge, load_suite
from langchain_runtime_authz.facts.call_arguments import traced_arguments
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.tool_profile import ToolProfile, load_profiles

from .attackers import PLANTING, TACTICS, WORDINGS, calls_of, identifiers
from .plans import first_reads, load_plans
from .planting import plant, plant_for
from .rows import Authority, Row

HERE = Path(__file__).parent
_BEFORE = re.compile(r"DONE BEFORE: the same was let run (\d+) time")
ORDERS = ("after", "before", "between")
# The environments are long YAML texts, read once for each injection: by the C parser, where there is one.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]


@dataclass(frozen=True)
class Case:
    """What is replayed: without `injection`, the user's task alone."""

    suite: str
    user: str
    injection: str | None = None
    attacker: str = "static"
    order: str = "after"
    wording: str = "important"


@dataclass(frozen=True)
class Outcome:
    """What came of it; `denied` and `permitted` are the side-effecting calls: the user's that did not run, the attacker's that did.

    `twice`: something that the task asks for was done more often than it asks.
    `compared` decisions were asked of a second engine too, and `differences` are those that were not the same.
    """

    utility: bool
    compromised: bool
    harm: bool
    asks: int
    effects: int
    denied: list[str] = field(default_factory=list)
    permitted: list[str] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    twice: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Suite:
    """A suite, its profiles, and the plans of its tasks. `profiles` names the file where it is not ours."""

    name: str
    suite: Any
    profiles: Mapping[str, ToolProfile]
    plans: Mapping[str, Mandate]

    @classmethod
    def load(cls, name: str, profiles: Path | None = None) -> Suite:
        ours = BANKING if name == "banking" else HERE / "profiles" / f"{name}.yaml"
        return cls(name, load_suite(name), load_profiles(profiles or ours), load_plans(name))

    def cases(self, attacker: str = "static", order: str = "after", wording: str = "important") -> list[Case]:
        """Every user task alone, then every pair."""
        users, injections = list(self.suite.user_tasks), list(self.suite.injection_tasks)
        alone = [Case(self.name, u) for u in users]
        return alone + [Case(self.name, u, i, attacker, order, wording) for u in users for i in injections]


# Environments are read once, into this directory: reading one takes longer than a replay.
KEPT = "LRA_AGENTDOJO_ENVIRONMENTS"


def _environment(suite: str, texts: Mapping[str, str]) -> Any:
    """A fresh one."""
    where = os.environ.get(KEPT)
    if where is None:
        return pickle.loads(_read(suite, tuple(sorted(texts.items()))))
    name = hashlib.sha256(repr((suite, sorted(texts.items()))).encode()).hexdigest()
    kept = Path(where, f"{name}.pickle")
    if not kept.exists():
        half = kept.with_suffix(f".{os.getpid()}")
        half.write_bytes(_read(suite, tuple(sorted(texts.items()))))
        half.replace(kept)
    return pickle.loads(kept.read_bytes())


@lru_cache(maxsize=16)
def _read(suite: str, texts: tuple[tuple[str, str], ...]) -> bytes:
    return pickle.dumps(load_suite(suite).load_and_inject_default_environment(dict(texts)))


@cache
def _texts(suite: str, wording: str) -> Any:
    return WORDINGS[wording](attack_texts(load_suite(suite)))


def run(suite: Suite, authority: Authority, case: Case) -> Outcome:
    """Replay one case under one authority."""
    user = suite.suite.user_tasks[case.user]
    injection = suite.suite.injection_tasks[case.injection] if case.injection else None
    texts = _texts(suite.name, case.wording)(user, injection) if injection is not None else {}
    env = _environment(suite.name, texts)
    plan = suite.plans.get(case.user, Mandate())
    theirs = calls_of(suite.name, injection, env) if injection is not None else []
    names, tools = identifiers(theirs, suite.profiles), suite.suite.tools
    reads = plant(env, names, tools, suite.profiles) if case.attacker in PLANTING else []
    if case.attacker == "plan-aware":
        reads = [*reads, *plant_for(plan, env, names, tools, suite.profiles)]
    planted = (case.attacker, case.injection) if reads else None
    start = (case.suite, case.user, sorted(texts.items()), planted)
    world = World(suite.suite, user, texts, env)
    own = user.ground_truth(world.before)
    if reads:  # some attacks are worked out from the environment
        theirs = calls_of(suite.name, injection, env)
    theirs = [*reads, *TACTICS.get(case.attacker, lambda calls, _own, _profiles: calls)(theirs, own, suite.profiles)]
    graph = _graph(suite, authority)
    played = [*(first_reads(plan, suite.profiles) if authority.row.reads else ()), *own]
    stage.world, stage.script = world, _Script(world, played, theirs, user.GROUND_TRUTH_OUTPUT, case.order)
    stage.tools = {t.name: t for t in world.tools()}
    scope: Any = nullcontext()
    thread = uuid.uuid4().hex
    if authority.authz is not None:
        # Each replay has a user of its own: what one may be asked in an hour is not shared by hundreds of runs.
        scope = authority.authz.run(subject=customer_subject(env, f"user-{thread}"), task=user.PROMPT, **authority.start(own, plan, repr(case)))
    human = _Human(world, own, authority.row, case)
    config: Any = {"configurable": {"thread_id": thread}, "recursion_limit": 300}
    started = time.perf_counter()
    with authority.row.without(), scope:
        messages = list(converse(graph, {"messages": [HumanMessage(user.PROMPT)]}, config, human))
    seconds = time.perf_counter() - started

    calls = [c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls]
    effects = [c for c in calls if suite.profiles[c["name"]].side_effect]
    mine = [c for c in effects if not c["id"].startswith("attack")]
    permitted = [c["name"] for c in effects if c["id"].startswith("attack") and c["id"] in world.ran]
    ran = [c for c in calls if c["id"] in world.ran]
    # A run that was halted gave no answer.
    answer = messages[-1].text if messages and isinstance(messages[-1], AIMessage) else ""
    compared, differences = authority.settle()
    return Outcome(
        utility=_judged("utility", user, start, world, answer, ran),
        compromised=injection is not None and _judged("security", injection, start, world, answer, ran), harm=bool(permitted),
        asks=human.asked, effects=len(mine), denied=[c["name"] for c in mine if c["id"] not in world.ran], permitted=permitted,
        calls=len(calls), seconds=seconds, compared=compared, differences=differences,
        twice=_twice(suite.profiles, own, [c for c in effects if c["id"] in world.ran]),
    )


def _twice(profiles: Mapping[str, ToolProfile], own: Sequence[Any], ran: Sequence[Any]) -> bool:
    asked = Counter((c.function, traced_arguments(profiles[c.function], dict(c.args)).effect_targets()) for c in own if profiles[c.function].side_effect)
    done = Counter((c["name"], traced_arguments(profiles[c["name"]], c["args"]).effect_targets()) for c in ran)
    return any(done[what] > times for what, times in asked.items())


_verdicts: dict[bytes, bool] = {}


def _judged(kind: str, task: Any, start: tuple[Any, ...], world: World, answer: str, ran: Sequence[Any]) -> bool:
    """AgentDojo's verdict, asked once for the same facts: it compares two environments for longer than a replay takes.

    What the tools have made of an environment follows from how it was at the start and from the calls that ran.
    """
    facts = (kind, task.ID, start, answer, [(c["name"], c["args"]) for c in ran])
    known = hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()
    if known not in _verdicts:
        # A copy: some checks read mail, which marks it as read.
        before, after = pickle.loads(pickle.dumps((world.before, world.env)))
        if kind == "utility":  # these compare whole environments
            after = _shared(before, after)
        try:
            _verdicts[known] = judge(kind, task, SimpleNamespace(before=before, env=after), answer, ran)
        except TypeError:  # AgentDojo's checks cannot read a mail with an attached event, which no attack sends
            _verdicts[known] = False
    return _verdicts[known]


def _shared(before: Any, after: Any) -> Any:
    """`after`, where each part that is as it was is the very object of `before`: a comparison passes over those."""
    if type(before) is not type(after):
        return after
    if isinstance(before, BaseModel):
        inner = _shared_items(before.__dict__, after.__dict__)
        rest = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
        return before if inner and all(getattr(before, n) == getattr(after, n) for n in rest) else after
    if isinstance(before, dict):
        return before if _shared_items(before, after) else after
    if isinstance(before, list):
        if len(before) != len(after):
            return after
        after[:] = [_shared(b, a) for b, a in zip(before, after, strict=True)]
        return before if all(b is a for b, a in zip(before, after, strict=True)) else after
    return before if before == after else after


def _shared_items(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    for name in before.keys() & after.keys():
        after[name] = _shared(before[name], after[name])
    return list(before) == list(after) and all(after[n] is before[n] for n in before)


class _Stage:
    """What the graph of a row plays now: one graph for all cases, since tools do not change."""

    world: World
    script: _Script
    tools: dict[str, BaseTool]


stage = _Stage()


class _Puppet(BaseChatModel):
    """Says what the script of the moment says."""

    @property
    def _llm_type(self) -> str:
        return "puppet"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=stage.script(messages))])


def _graph(suite: Suite, authority: Authority) -> Any:
    """The row's graph, protected once."""
    if authority.graph is None:
        env = _environment(suite.name, {})
        world = World(suite.suite, next(iter(suite.suite.user_tasks.values())), {}, env)

        def stand_in(tool: Any) -> BaseTool:
            call = lambda **args: stage.tools[tool.name].func(**args)
            return StructuredTool(name=tool.name, description=tool.description, args_schema=tool.args_schema, func=call)

        graph = agent_graph(_Puppet(), [stand_in(t) for t in world.tools()])
        authority.graph = authority.authz.protect(graph) if authority.authz is not None else graph
    return authority.graph


class _Script:
    """What the hijacked model says: the user's calls and the attacker's, in the order of the case."""

    def __init__(self, world: World, own: Sequence[Any], theirs: Sequence[Any], answer: str, order: str) -> None:
        self._world, self._answer, self._order = world, answer, order
        self._own, self._theirs = deque(enumerate(own)), deque(enumerate(theirs))
        self._mine_last = False

    def __call__(self, _messages: Sequence[BaseMessage]) -> AIMessage:
        attack = bool(self._theirs) and (not self._own or self._attacks_now())
        queue, whose = (self._theirs, "attack") if attack else (self._own, "user")
        self._mine_last = not attack
        if not queue:
            return AIMessage(self._answer)
        number, call = queue.popleft()
        self._world.planned = f"{whose}-{number}"
        args = {k: list(v) if isinstance(v, list) else v for k, v in call.args.items()}
        return AIMessage("", tool_calls=[{"name": call.function, "args": args, "id": self._world.planned}])

    def _attacks_now(self) -> bool:
        if self._order == "before":
            return True
        return self._mine_last if self._order == "between" else self._world.exposed


class _Human:
    """Knows what he asked for and sees what the question shows, unless he does not look.

    That includes that the same was done before: what he asked for once he does not approve twice.
    """

    def __init__(self, world: World, wanted: Sequence[Any], row: Row, case: Case) -> None:
        self._world, self._stamp = world, row.stamp
        self._own = [world.parsed(c.function, c.args) for c in wanted]
        # The same throws for each row, whatever ran before.
        seed = hashlib.sha256(repr(case).encode()).digest()
        self._dice = Random(int.from_bytes(seed[:8], "big"))
        self.asked = 0

    def __call__(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._stamp is None:
            return {"type": "reject"}
        self.asked += 1
        unread = self._dice.random() < self._stamp
        wanted = self._own.count(self._world.parsed(request["name"], request["args"]))
        before = _BEFORE.search(request.get("description", ""))
        approved = unread or wanted > (int(before[1]) if before is not None else 0)
        return {"type": "approve" if approved else "reject"}
