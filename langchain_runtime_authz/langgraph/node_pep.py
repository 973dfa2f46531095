"""The gate of a node: `node/enter` before it, the recording of plans after it.

Works on compiled graphs, in place: a node's bound runnable is replaced by a shallow copy of a
dynamic subclass of its own type, so that drawing and `isinstance` still see what they saw.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableSequence
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.authzen import Decision, deny
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph._private import RunnableSeq, ToolNode, task_id
from langchain_runtime_authz.langgraph.interrupts import note_review
from langchain_runtime_authz.langgraph.messages import plans_of, record
from langchain_runtime_authz.langgraph.node_calls import NodeCalls
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle, find_run, opened, run_scope
from langchain_runtime_authz.pep.engine import Flow, Run, adrive, drive
from langchain_runtime_authz.pep.obligations import keepable
from langchain_runtime_authz.pep.steps import decide_step, still_live

__all__ = ["gate_bound", "is_gated"]


def is_gated(bound: object) -> bool:
    """Return True if a node's bound runnable is protected."""
    return getattr(type(bound), "__runtime_authz_node__", None) is not None


def gate_bound(bound: Runnable[Any, Any], name: str, channels: frozenset[str] = frozenset()) -> Runnable[Any, Any]:
    """Return a protected shallow copy of a node's bound runnable.

    `channels` are those of the graph whose reducer appends messages.
    """
    gated = copy.copy(bound)
    # Pydantic and Python agree on layout: the subclass adds no field and no slot.
    object.__setattr__(gated, "__class__", _gated_class(bound, name, channels))
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


def _gated_class(bound: Any, name: str, channels: frozenset[str]) -> Any:
    base: Any = type(bound)
    holds_gate = issubclass(base, ToolNode)
    key = ("node/enter", name)
    # What goes through its own methods again (`ainvoke` may use `invoke`) meets the gate once.
    inner = None if holds_gate else bound

    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = drive(opener.engine, _beside(opener))
        run.engine.tally.decided(run, "node", name, "node gate")
        if not (holds_gate and _kept(run, key) and _lives(run)):
            drive(run.engine, _enter(run, key, holds_gate))
        run.engine.tally.ran(run, "node", name, "node gate")
        if holds_gate:
            with run_scope(run, task_id(config or {})):
                try:
                    return base.invoke(self, input, config, **kwargs)
                except GraphInterrupt:
                    run.pause()
                    raise
        node = NodeCalls(input, config or {})
        output, failed = None, None
        with run_scope(run, task_id(node.config), node):
            try:
                output = base.invoke(inner, input, node.config, **kwargs)
            except BaseException as exc:  # noqa: BLE001  (raised below, if it stands)
                failed = exc
        if failed is None and not node.asks:
            if plans := plans_of(run, input, output):
                drive(run.engine, record(run, plans))
            return output
        try:
            return drive(run.engine, _ended(run, node, input, failed, channels))
        finally:
            del failed  # its traceback holds this frame

    async def ainvoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = await adrive(opener.engine, _beside(opener))
        run.engine.tally.decided(run, "node", name, "node gate")
        if not (holds_gate and _kept(run, key) and await _alives(run)):
            await adrive(run.engine, _enter(run, key, holds_gate))
        run.engine.tally.ran(run, "node", name, "node gate")
        if holds_gate:
            with run_scope(run, task_id(config or {})):
                try:
                    return await base.ainvoke(self, input, config, **kwargs)
                except GraphInterrupt:
                    run.pause()
                    raise
        node = NodeCalls(input, config or {})
        output, failed = None, None
        with run_scope(run, task_id(node.config), node):
            try:
                output = await base.ainvoke(inner, input, node.config, **kwargs)
            except BaseException as exc:  # noqa: BLE001  (raised below, if it stands)
                failed = exc
        if failed is None and not node.asks:
            if plans := plans_of(run, input, output):
                await adrive(run.engine, record(run, plans))
            return output
        try:
            if isinstance(failed, Exception):
                await node.finish()
            return await adrive(run.engine, _ended(run, node, input, failed, channels))
        finally:
            del failed  # its traceback holds this frame

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


def _ended(run: Run, node: NodeCalls, input: Any, failed: BaseException | None, channels: frozenset[str]) -> Flow[Any]:
    """End a node that failed, or whose code swallowed a question. Return the update in place of a denial."""
    yield from node.over(run, failed)
    if failed is None:
        raise TypeError("a node without a failure ends with its output")
    if isinstance(failed, GraphInterrupt):
        run.pause()
        yield from note_review(run, input, failed, node.config)
    denied = isinstance(failed, AuthzDenied) and not isinstance(failed, AuthzHalt)
    if denied and (update := node.answered(cast("AuthzDenied", failed), channels)) is not None:
        return update
    raise failed


def _joined(chunks: list[Any]) -> Any:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total


def _opener(config: Any) -> RunHandle:
    """Return the run that the caller of a single node has opened outside the graph."""
    opener = opened(config or {})
    if opener is None:
        raise AuthzHalt(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    return opener


def _beside(opener: RunHandle) -> Flow[Run]:
    try:
        return (yield from opener.outside_run())
    except AuthzDenied as denied:
        raise AuthzHalt(denied.code, denied.decision_id) from None


def _kept(run: Run, key: tuple[str, str]) -> bool:
    """Return True if a permit is cached for the current policy revision. Without a revision nothing is cached."""
    revision = run.engine.evaluator.revision
    return bool(revision) and run.kept.get(key) == revision


def _lives(run: Run) -> bool:
    """Return True if the run is live, so that a cached permit needs no snapshot.

    Otherwise, also if the ledger fails, the step is decided in full, which finds the reason.
    """
    try:
        return not (run.closed or run.engine.killed) and run.engine.ledger.status(run.scope.tenant, run.jti) == "live"
    except Exception:  # noqa: BLE001
        return False


async def _alives(run: Run) -> bool:
    try:
        return (
            not (run.closed or run.engine.killed)
            and await run.engine.ledger.astatus(run.scope.tenant, run.jti) == "live"
        )
    except Exception:  # noqa: BLE001
        return False


def _enter(run: Run, key: tuple[str, str], holds_gate: bool) -> Flow[None]:
    """Decide `node/enter`; a permit is kept for nodes whose inside is gated."""
    if holds_gate and _kept(run, key):
        code = yield from still_live(run)
        # A tool node must answer the calls it was given even when the task has changed.
        if code is not None and code != Code.STALE_EPOCH:
            raise AuthzHalt(code, deny(code).decision_id)
        return
    # Before it is asked: a policy that comes meanwhile is not the one that permitted.
    revision = run.engine.evaluator.revision if holds_gate else ""
    decision: Decision = yield from decide_step(run, "node/enter", {"type": "node", "id": key[1], "properties": {}})
    if decision.outcome != "permit":
        if holds_gate and decision.reason == Code.STALE_EPOCH:
            return
        raise AuthzHalt(decision.reason, decision.decision_id)
    if holds_gate and keepable(decision, revision):
        run.kept[key] = revision
