"""How a graph is protected: data for the runner, nothing of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ..shape import Shape, Task


@dataclass(frozen=True)
class Configuration:
    """One way to run the shapes.

    Attributes:
        name: its name.
        says: what a developer did for it.
        protects: whether the graph is protected at all.
        checkpointer: whether the graph gets one that it would not have as shipped.
        options: arguments of `RuntimeAuthz`, by shape.
        run: arguments of `authz.run`, by shape and task; the subject is alice unless it says otherwise.
    """

    name: str
    says: str
    protects: bool = True
    checkpointer: bool = True
    options: Callable[[Shape], Mapping[str, Any]] = lambda shape: {}
    run: Callable[[Shape, Task], Mapping[str, Any]] = lambda shape, task: {}


PLAIN: Final = Configuration("plain", "the app without protection", protects=False)
AS_SHIPPED: Final = Configuration("as shipped", "three lines, no checkpointer", checkpointer=False)
DEFAULT: Final = Configuration("default", "three lines and a checkpointer")
_ANSWERS: Final = yaml.safe_load(Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8"))
INIT: Final = Configuration(
    "init",
    "`runtime-authz init`, its questions answered",
    options=lambda shape: {"profiles": ["langchain", "deepagents", _ANSWERS.get(shape.name, {})]},
)
CONFIGURATIONS: Final = (AS_SHIPPED, DEFAULT, INIT)
