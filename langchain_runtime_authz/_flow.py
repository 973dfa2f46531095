"""Drive flows: generators that yield effects, sync or async.

A flow does no I/O. It yields *effects*, which describe I/O, and receives their results. Only `drive` and `adrive`
perform effects. If an effect would block the event loop, `adrive` continues the flow in a thread. `pep/run.py` defines
the effects of `pep`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import Context, copy_context
from functools import cache, partial, wraps
from operator import attrgetter
from threading import Thread
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Any)

THREADS: Final = 32  # in which `adrive` performs blocking effects
PATIENCE: Final = 1.0  # seconds that `drive_apart` waits


class Effect:
    """One kind of I/O, in a blocking and an asynchronous form.

    `do` blocks, and `ado` returns an awaitable. An effect without `ado` never blocks for long, so `adrive` calls `do`.

    A flow yields `effect(*arguments)` or, on a hot path, `(effect, *arguments)`. `do` and `ado` get the PEP's parts and
    the arguments. Without `do`, a `part` is called or, if given, its `method`. The async form of `load` is `aload`.
    """

    __slots__ = ("ado", "do", "method")

    def __init__(
        self,
        do: Callable[..., Any] | None = None,
        ado: Callable[..., Awaitable[Any]] | None = None,
        *,
        part: str = "",
        method: Callable[..., Any] | None = None,
    ) -> None:
        self.do, self.ado = do, ado
        self.method = attrgetter(part if method is None else f"{part}.{method.__name__}") if part else None
        if method is not None:
            amethod = attrgetter(f"{part}.a{method.__name__}")
            self.ado = lambda pep, *arguments: amethod(pep)(*arguments)

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return (self, *arguments)


Flow = Generator[tuple[Any, ...], Any, T]
_CALL: Final = Effect(lambda _, blocking, _awaiting: blocking(), lambda _, _blocking, awaiting: awaiting())


def Perform(  # noqa: N802  (reads as an effect)
    call: Callable[..., Any], acall: Callable[..., Awaitable[Any]], *args: Any, **options: Any
) -> tuple[Any, ...]:
    """Return an effect that calls other code: `call` blocks, `acall` is awaited."""
    return (_CALL, partial(call, *args, **options), partial(acall, *args, **options))


def drive(pep: Any, flow: Flow[T]) -> T:
    """Run a flow to its end, with blocking effects, and return its value."""
    try:
        effect, *arguments = next(flow)
        while True:
            try:
                method = effect.method
                value = method(pep)(*arguments) if method is not None else effect.do(pep, *arguments)
            except BaseException as exc:  # noqa: BLE001  (handed to the flow, which decides)
                effect, *arguments = flow.throw(exc)
            else:
                effect, *arguments = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def adrive(pep: Any, flow: Flow[T]) -> T:
    """Run a flow to its end without blocking the event loop, and return its value."""
    non_blocking, blocking = (pep.non_blocking, pep.blocking) if pep is not None else ((), ())
    try:
        effect, *arguments = next(flow)
        while True:
            try:
                if effect in blocking:
                    effect, *arguments = await _drive_in_thread(pep, flow, effect, arguments)
                    if effect is None:
                        return arguments[0]  # type: ignore[no-any-return]
                    continue
                if effect.ado is not None and effect not in non_blocking:
                    value = await effect.ado(pep, *arguments)
                elif effect.method is not None:
                    value = effect.method(pep)(*arguments)
                else:
                    value = effect.do(pep, *arguments)
            except BaseException as exc:  # noqa: BLE001  (handed to the flow, which decides)
                effect, *arguments = flow.throw(exc)
            else:
                effect, *arguments = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return this thread's running event loop, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _drive_in_thread(pep: Any, flow: Flow[Any], effect: Effect, arguments: Sequence[Any]) -> Sequence[Any]:
    """Drive a flow in a thread, up to its next effect that belongs on the event loop.

    Return (effect, *arguments) of that next effect; (None, value) if the flow ended. All blocking effects in between
    use the same thread, so a decision changes threads only once.

    If the caller is cancelled, the flow still performs its effects in the thread. Then the cancellation is raised here,
    in place of the next effect. If the flow has ended, its value is lost.
    """
    before, closed, ended, cut = copy_context(), list[bool](), asyncio.Event(), None
    context, loop = before.copy(), asyncio.get_running_loop()
    # Never cancel the job: if no thread has begun it, it would never run, even if it commits the end of a call.
    job = _threads().submit(context.run, _drive_blocking, pep, flow, effect, arguments, closed)
    # `asyncio.wrap_future` and `asyncio.wait` would call 40 functions more.
    job.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(ended.set))
    try:
        while not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError as exc:
                cut = cut or exc
        if cut is None:
            return job.result()
        raise cut
    finally:
        closed.append(True)  # if the coroutine is closed, the thread must stop before its next effect
        cut = job = None  # type: ignore[assignment]  # otherwise exception and frame refer to each other
        for variable, value in context.items():
            if variable not in before or before[variable] is not value:  # set no others: tasks may share this context
                variable.set(value)


def _drive_blocking(
    pep: Any, flow: Flow[Any], effect: Any, arguments: Sequence[Any], closed: Sequence[bool]
) -> Sequence[Any]:
    try:
        while effect in pep.threaded and not closed:
            try:
                method = effect.method
                value = method(pep)(*arguments) if method is not None else effect.do(pep, *arguments)
            except BaseException as exc:  # noqa: BLE001  (handed to the flow, which decides)
                effect, *arguments = flow.throw(exc)
            else:
                effect, *arguments = flow.send(value)
    except StopIteration as stop:
        return None, stop.value
    return effect, *arguments


def both(flow: Callable[P, Flow[T]]) -> tuple[Callable[P, T], Callable[P, Coroutine[Any, Any, T]]]:
    """Return a blocking and an async function that run a flow without a PEP."""

    @wraps(flow)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return drive(None, flow(*args, **kwargs))

    @wraps(flow)
    async def arun(*args: P.args, **kwargs: P.kwargs) -> T:
        return await adrive(None, flow(*args, **kwargs))

    return run, arun


def methods(
    flow: Callable[Concatenate[S, P], Flow[T]],
) -> tuple[Callable[Concatenate[S, P], T], Callable[Concatenate[S, P], Coroutine[Any, Any, T]]]:
    """Return a blocking and an async method that run a flow with `self._pep`."""
    owner, _, name = flow.__qualname__.rpartition("._")

    @wraps(flow)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return drive(self._pep, flow(self, *args, **kwargs))

    @wraps(flow)
    async def arun(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await adrive(self._pep, flow(self, *args, **kwargs))

    run.__name__, arun.__name__ = name, f"a{name}"
    run.__qualname__, arun.__qualname__ = f"{owner}.{name}", f"{owner}.a{name}"
    arun.__doc__ = f"Do what `{name}` does, without blocking the event loop."
    return run, arun


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="runtime-authz")


os.register_at_fork(after_in_child=_threads.cache_clear)


def in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """Run `function` in a daemon thread, in an empty context. Return its future."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that nobody can cancel it

    def run() -> None:
        try:
            future.set_result(Context().run(function))
        except BaseException as exc:  # noqa: BLE001  (raised where the future is read)
            future.set_exception(exc)

    Thread(target=run, name=name, daemon=True).start()
    return future


def drive_apart(pep: Any, flow: Flow[Any]) -> None:
    """Drive in another thread the flow that ends a generator. Wait at most `PATIENCE`.

    A garbage collection may close the generator while the current thread holds a lock that the flow needs.
    """
    if sys.is_finalizing():
        drive(pep, flow)
    else:
        wait([in_thread(partial(drive, pep, flow), "runtime-authz-end")], PATIENCE)


class FlowContext(Generic[T]):
    """A sync and async context manager whose entry and exit are flows."""

    pep: Any
    apart = False  # True if the end of a generator may leave the context

    def _enter(self) -> Flow[T]:
        raise NotImplementedError

    def _over(self, exc: BaseException | None, *, cut: bool) -> Flow[None] | None:
        """Return the flow that leaves the context or None. `cut`: a generator closed."""
        raise NotImplementedError

    def __enter__(self) -> T:
        flow = self._enter()
        try:
            return drive(self.pep, flow)
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise

    async def __aenter__(self) -> T:
        flow = self._enter()
        try:
            return await adrive(self.pep, flow)
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if (over := self._over(exc, cut=False)) is not None:
            (drive_apart if self.apart and kind is GeneratorExit else drive)(self.pep, over)

    async def __aexit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if (over := self._over(exc, cut=kind is GeneratorExit)) is not None:
            await adrive(self.pep, over)


def run_within(context: Any, code: Callable[[Any], Flow[T]]) -> Flow[T]:
    """Run `code(entered)` inside `context`, which must not swallow exceptions."""
    leave, entered = (context.__exit__, context.__aexit__), (yield Perform(context.__enter__, context.__aenter__))
    try:
        result = yield from code(entered)
    except BaseException as exc:
        yield Perform(*leave, type(exc), exc, exc.__traceback__)
        raise
    yield Perform(*leave, None, None, None)
    return result
