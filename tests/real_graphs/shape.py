"""What a shape is: an app, two honest tasks, an attack, and a world of stubs in which effects are recorded."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
from langgraph.store.memory import InMemoryStore


@dataclass
class World:
    """What stands around an app: a folder, a store, and what was done to the outside.

    Attributes:
        folder: the app's files.
        effects: what was done, in order: a name and its arguments.
        store: the graph's store.
    """

    folder: Path
    effects: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    store: InMemoryStore = field(default_factory=InMemoryStore)

    def did(self, what: str, **args: Any) -> None:
        """Record an effect."""
        self.effects.append((what, args))

    def has(self, what: str, **args: Any) -> bool:
        """Return True if an effect of this name was done with at least these arguments."""
        return any(name == what and args.items() <= given.items() for name, given in self.effects)

    def mentions(self, word: str) -> bool:
        """Return True if the word stands in an effect."""
        return word in json.dumps(self.effects, default=str)


@dataclass(frozen=True)
class Task:
    """One task of an app.

    Attributes:
        name: what is asked, in a few words.
        given: the input of the graph, or what the user says.
        script: what the model says (see `Model`), or the turns of the only one.
        done: whether the work was done, by the world and the last state.
        bad: what a careful user refuses to see in a question: a regular expression.
        answer: what the user answers to a question that the app asks by itself.
        harm: whether the attack succeeded.
        files: the folder's files.
    """

    name: str
    given: Any
    script: Any
    done: Callable[[World, Mapping[str, Any]], bool]
    bad: str = r"(?!)"
    answer: Callable[[Any], Any] | None = None
    harm: Callable[[World], bool] = lambda world: False
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take a text for what the user says, and a list of turns for those of the only model."""
        if isinstance(self.given, str):
            object.__setattr__(self, "given", {"messages": [("user", self.given)]})
        if isinstance(self.script, list):
            object.__setattr__(self, "script", {"": self.script})

    def approves(self, args: Any) -> bool:
        """Return True if a careful user approves a call with these arguments."""
        return not re.search(self.bad, json.dumps(args, default=str, ensure_ascii=False))


@dataclass(frozen=True)
class Shape:
    """One app.

    Attributes:
        name: its name.
        tools_run_by: who carries out its effects.
        build: the app's own function: a model, a folder, a checkpointer and a store in, a compiled graph out.
        module: the app's module, whose `httpx` and `smtplib` are replaced for the time of a play.
        outside: what answers its HTTP requests.
        tasks: two honest tasks.
        attack: an honest task in whose material the attacker's text stands.
        typed: whether a person types the input; else a mail starts the app.
        asks_itself: whether the app needs a checkpointer for questions of its own.
        asynchronous: whether its caller awaits it.
        integration: whether it needs a package that the unit tier does not have.
    """

    name: str
    tools_run_by: str
    build: Callable[..., Any]
    module: ModuleType
    tasks: tuple[Task, Task]
    attack: Task
    outside: Callable[[World, Task, httpx.Request], Any] | None = None
    typed: bool = True
    asks_itself: bool = False
    asynchronous: bool = False
    integration: bool = False

    @contextmanager
    def world(self, task: Task) -> Iterator[World]:
        """Yield the task's world, with the outside replaced by stubs."""
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            world = World(Path(folder))
            for name, text in task.files.items():
                (world.folder / name).write_text(text)
            if hasattr(self.module, "httpx"):
                stack.enter_context(patch.object(self.module, "httpx", _http(world, task, self.outside)))
            if hasattr(self.module, "smtplib"):
                stack.enter_context(patch.object(self.module, "smtplib", SimpleNamespace(SMTP=partial(_Smtp, world))))
            yield world


def ends(state: Mapping[str, Any], text: str, read: str) -> bool:
    """Return True if the last message is this text, and what was read for it stands in another."""
    *others, last = state["messages"]
    return last.text == text and any(read in each.text for each in others)


def _http(world: World, task: Task, outside: Any) -> SimpleNamespace:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=outside(world, task, request))

    transport = httpx.MockTransport(answer)
    client = httpx.Client(transport=transport, trust_env=False)
    asynchronous = partial(httpx.AsyncClient, transport=transport, trust_env=False)
    return SimpleNamespace(get=client.get, post=client.post, AsyncClient=asynchronous)


class _Smtp:
    def __init__(self, world: World, host: str, *args: Any) -> None:
        self._world = world

    def __enter__(self) -> _Smtp:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def send_message(self, message: Any) -> None:
        self._world.did("mail", to=message["To"], subject=message["Subject"], text=message.get_content())
