"""Write what waits once, for blocking and for asynchronous callers: as a generator that yields `Step`s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Step:
    """A call that waits, with its blocking form and its asynchronous form."""

    __slots__ = ("arun", "run")

    def __init__(
        self, call: Callable[..., Any], acall: Callable[..., Awaitable[Any]], *args: Any, **options: Any
    ) -> None:
        self.run, self.arun = partial(call, *args, **options), partial(acall, *args, **options)


Flow = Generator[Step, Any, T]


def both(flow: Callable[P, Flow[T]]) -> tuple[Callable[P, T], Callable[P, Coroutine[Any, Any, T]]]:
    """Return the blocking function that runs a flow, and the asynchronous one."""

    @wraps(flow)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        steps = flow(*args, **kwargs)
        try:
            step = next(steps)
            while True:
                try:
                    value = step.run()
                except BaseException as exc:  # noqa: BLE001  (handed to the flow, which decides)
                    step = steps.throw(exc)
                else:
                    step = steps.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    @wraps(flow)
    async def arun(*args: P.args, **kwargs: P.kwargs) -> T:
        steps = flow(*args, **kwargs)
        try:
            step = next(steps)
            while True:
                try:
                    value = await step.arun()
                except BaseException as exc:  # noqa: BLE001  (likewise)
                    step = steps.throw(exc)
                else:
                    step = steps.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    return run, arun
