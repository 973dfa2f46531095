"""Play a task of a shape under a configuration with a simulated user."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, Interrupt

from langchain_runtime_authz import RuntimeAuthz

from .configurations import Configuration, app
from .model import Model
from .shape import Shape, Task, World

User = Literal["careful", "unread", "nobody"]
"""Who answers: one who approves what the task names, one who approves all, or nobody."""

ROUNDS = 20


@dataclass
class Outcome:
    """What came of a play.

    Attributes:
        state: `finished`, `waits` for an answer, or `dead`: an exception left the graph.
        done: whether the work was done.
        harm: whether the attack succeeded.
        questions: how many calls were shown to the user by the package.
        own: how many questions the app asked by itself.
        error: the exception that left the graph.
    """

    state: Literal["finished", "waits", "dead"] = "dead"
    done: bool = False
    harm: bool = False
    questions: int = 0
    own: int = 0
    error: str = ""


def play(shape: Shape, task: Task, configuration: Configuration, user: User) -> Outcome:
    """Play one task in a new world and return what came of it."""
    outcome = Outcome()
    with shape.world(task) as world:
        final: Mapping[str, Any] = {}
        try:
            with ExitStack() as stack:
                final = _run(shape, task, configuration, user, world, outcome, stack)
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.done = outcome.state == "finished" and _true(task.done, world, final)
        outcome.harm = task.harm(world)
    return outcome


def _run(
    shape: Shape, task: Task, configuration: Configuration, user: User, world: World, outcome: Outcome, stack: ExitStack
) -> Mapping[str, Any]:
    authz = RuntimeAuthz(**configuration.options(shape)) if configuration.protects else None
    if authz is not None and (declare := configuration.effects.get(app(shape))):
        module = sys.modules[shape.build.__module__]
        stack.enter_context(patch.multiple(module, **declare(authz)))
    saver = InMemorySaver() if configuration.checkpointer or shape.asks_itself else None
    graph = shape.build(Model(script=task.script), world.folder, checkpointer=saver, store=world.store)
    if authz is not None:
        graph = authz.protect(graph)
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": 60}
    given: Any = task.given
    for _ in range(ROUNDS):
        if authz is None:
            out = asyncio.run(graph.ainvoke(given, config)) if shape.asynchronous else graph.invoke(given, config)
        else:
            run = {"subject": "alice", **configuration.run(shape, task)}
            out = asyncio.run(_awaited(authz, run, graph, given, config)) if shape.asynchronous else None
            if out is None:
                with authz.run(**run):
                    out = graph.invoke(given, config)
        asked = out.get("__interrupt__") or ()
        if not asked:
            outcome.state = "finished"
            return out
        given = Command(resume=resume) if (resume := _answers(asked, task, user, outcome)) else None
        if given is None:
            outcome.state = "waits"
            return out
    raise RuntimeError(f"{ROUNDS} rounds of questions and no end")


async def _awaited(authz: RuntimeAuthz, run: dict[str, Any], graph: Any, given: Any, config: Any) -> Any:
    async with authz.run(**run):
        return await graph.ainvoke(given, config)


def _answers(asked: list[Interrupt], task: Task, user: User, outcome: Outcome) -> dict[str, Any]:
    """Return the user's answers by interrupt, and count the questions."""
    answers: dict[str, Any] = {}
    for each in asked:
        requests = each.value.get("action_requests") if isinstance(each.value, dict) else None
        if requests is None:
            outcome.own += 1
            if user != "nobody" and task.answer:
                answers[each.id] = task.answer(each.value)
            continue
        outcome.questions += len(requests)
        if user != "nobody":
            approved = [user == "unread" or task.approves(request["args"]) for request in requests]
            answers[each.id] = {"decisions": [{"type": "approve" if yes else "reject"} for yes in approved]}
    return answers


def _true(check: Any, world: World, final: Mapping[str, Any]) -> bool:
    """Return True if the check holds. A state that lacks what the check reads does not pass it."""
    try:
        return bool(check(world, final))
    except (LookupError, OSError, AttributeError):
        return False
