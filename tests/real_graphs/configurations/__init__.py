"""How a graph is protected: data for the runner, nothing of the package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from ..shape import Shape, Task
from .effects import DECLARED
from .made import answered, learned
from .mandates import mandate


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
        effects: by app, what gives the functions that take the place of the app's, with `authz.effect` around them.
    """

    name: str
    says: str
    protects: bool = True
    checkpointer: bool = True
    options: Callable[[Shape], Mapping[str, Any]] = lambda shape: {}
    run: Callable[[Shape, Task], Mapping[str, Any]] = lambda shape, task: {}
    effects: Mapping[str, Callable[[Any], Mapping[str, Callable[..., Any]]]] = field(default_factory=dict)


def app(shape: Shape) -> str:
    """Return the name of the shape's app."""
    return shape.build.__module__.rpartition(".")[2]


def _answered(shape: Shape) -> dict[str, Any]:
    return {"profiles": answered(app(shape))}


PLAIN: Final = Configuration("plain", "the app without protection", protects=False)
AS_SHIPPED: Final = Configuration("as shipped", "three lines, no checkpointer", checkpointer=False)
DEFAULT: Final = Configuration("default", "three lines and a checkpointer")
INIT: Final = Configuration(
    "init", "`runtime-authz init` with its questions answered, and effects declared", options=_answered, effects=DECLARED
)


@cache
def _learned(name: str) -> Mapping[str, Any] | None:
    from ..runner import play
    from ..shapes import shape

    def run(options: Mapping[str, Any]) -> None:
        recorded = replace(INIT, options=lambda shape: {**_answered(shape), **options})
        for task in shape(name).tasks:
            play(shape(name), task, recorded, "careful")

    return learned(name, run)


LEARNED: Final = Configuration(
    "learned", "as `init`, and the mandate that `runtime-authz learn` writes from one run of the tasks", options=_answered,
    effects=DECLARED, run=lambda shape, task: {"mandate": _learned(app(shape))},
)
MANDATE: Final = Configuration(
    "mandate", "as `init`, and a mandate by the application for each task", options=_answered, effects=DECLARED,
    run=lambda shape, task: {"mandate": mandate(app(shape), task)},
)
CONFIGURATIONS: Final = (AS_SHIPPED, DEFAULT, INIT, LEARNED, MANDATE)
