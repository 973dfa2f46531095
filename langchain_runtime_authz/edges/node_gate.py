"""The gate of a node: `node/enter` before it, the recording of plans after it.

Works on compiled graphs, in place: a node's bound runnable is replaced by a shallow copy of a
dynamic subclass of its own type, so that drawing and `isinstance` still see what they saw.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableSequence
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.authzen import Decision, Resource, deny
from langchain_runtime_authz.edges._private import RunnableSeq, ToolNode
from langchain_runtime_authz.edges.entry import RunHandle, opened
from langchain_runtime_authz.edges.halt import AuthzHalt
from langchain_runtime_authz.edges.handle import find_run, run_scope
from langchain_runtime_authz.edges.plans import record_plans
from langchain_runtime_authz.enforce.engine import Flow, Run, adrive, drive
from langchain_runtime_authz.enforce.step import decide_step, still_live
from langchain_runtime_authz.errors import AuthzDenied, Code

__all__ = ["gate_bound", "is_gated"]


def is_gated(bound: object) -> bool:
    """Whether a node's bound carries our gate."""
    return getattr(type(bound), "__runtime_authz_node__", None) is not None


def gate_bound(bound: Runnable[Any, Any], name: str) -> Runnable[Any, Any]:
    """A gated shallow copy of a node's bound runnable."""
    gated = copy.copy(bound)
    # Pydantic and Python agree on layout: the subclass adds no field and no slot.
    object.__setattr__(gated, "__class__", _gated_class(bound, name))
    if isinstance(gated, ToolNode):
        gated.func, gated.afunc = gated._func, gated._afunc
    return gated


class _Whole(Runnable[Any, Any]):
    """A gated sequence as one step of another: LangGraph would take it apart, and its gate with it."""

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence
        self.name = sequence.get_name()

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return self._sequence.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return await self._sequence.ainvoke(input, config, **kwargs)

    def transform(self, input: Iterator[Any], config: Any = None, **kwargs: Any) -> Iterator[Any]:
        yield from self._sequence.transform(input, config, **kwargs)

    async def atransform(self, input: AsyncIterator[Any], config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        async for chunk in self._sequence.atransform(input, config, **kwargs):
            yield chunk


def _gated_class(bound: Any, name: str) -> Any:
    base: Any = type(bound)
    holds_gate = issubclass(base, ToolNode)
    # What goes through its own methods again (`ainvoke` may use `invoke`) meets the gate once.
    inner = None if holds_gate else bound

    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = drive(opener.engine, _beside(opener))
        drive(run.engine, _enter(run, name, holds_gate))
        try:
            with run_scope(run):
                output = base.invoke(self if inner is None else inner, input, config, **kwargs)
        except GraphInterrupt:
            _pause(run)
            raise
        if not holds_gate:
            drive(run.engine, _leave(run, input, output))
        return output

    async def ainvoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = await adrive(opener.engine, _beside(opener))
        await adrive(run.engine, _enter(run, name, holds_gate))
        try:
            with run_scope(run):
                output = await base.ainvoke(self if inner is None else inner, input, config, **kwargs)
        except GraphInterrupt:
            _pause(run)
            raise
        if not holds_gate:
            await adrive(run.engine, _leave(run, input, output))
        return output

    # A node streams through callbacks; its own output is consumed whole by the graph. So every
    # streaming form goes through the one gated road.
    def stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
        yield self.invoke(input, config, **kwargs)

    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        yield await self.ainvoke(input, config, **kwargs)

    def transform(self: Any, input: Iterator[Any], config: Any = None, **kwargs: Any) -> Iterator[Any]:
        yield self.invoke(_joined(list(input)), config, **kwargs)

    async def atransform(self: Any, input: AsyncIterator[Any], config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        yield await self.ainvoke(_joined([chunk async for chunk in input]), config, **kwargs)

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__runtime_authz_node__": name,
        "invoke": invoke,
        "ainvoke": ainvoke,
        "stream": stream,
        "astream": astream,
        "transform": transform,
        "atransform": atransform,
    }
    if isinstance(bound, RunnableSequence | RunnableSeq):
        namespace["steps"] = property(lambda self: [_Whole(self)])
    return type(base)(base.__name__, (base,), namespace)


def _joined(chunks: list[Any]) -> Any:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total


def _opener(config: Any) -> RunHandle:
    """The run that code beside the graph has open, which calls one of its nodes by itself."""
    opener = opened(config or {})
    if opener is None:
        raise AuthzHalt(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    return opener


def _beside(opener: RunHandle) -> Flow[Run]:
    try:
        return (yield from opener.beside())
    except AuthzDenied as denied:
        raise AuthzHalt(denied.code, denied.decision_id) from None


def _enter(run: Run, name: str, holds_gate: bool) -> Flow[None]:
    """Decide `node/enter`; a permit is kept for nodes whose inside is gated."""
    revision = run.engine.evaluator.pdp.revision
    key = ("node/enter", name)
    if holds_gate and run.kept.get(key) == revision:
        code = yield from still_live(run)
        # A tool node must answer the calls it was given even when the task has changed.
        if code is not None and code != Code.STALE_EPOCH:
            raise AuthzHalt(code, deny(code).decision_id)
        return
    decision: Decision = yield from decide_step(run, "node/enter", Resource(type="node", id=name))
    if not decision.permit:
        if holds_gate and decision.reason == Code.STALE_EPOCH:
            return
        raise AuthzHalt(decision.reason, decision.decision_id)
    if holds_gate:
        run.kept[key] = revision


def _leave(run: Run, given: Any, returned: Any) -> Flow[None]:
    try:
        yield from record_plans(run, given, returned)
    except Exception as exc:
        # Nothing of an output whose plan is not recorded may take effect.
        raise AuthzHalt(Code.LEDGER_UNAVAILABLE, deny(Code.LEDGER_UNAVAILABLE).decision_id) from exc


def _pause(run: Run | None) -> None:
    while run is not None:
        run.paused = True
        run = run.parent
