"""The gate of a node: `node/enter` before it, the recording of plans after it.

Works on compiled graphs, in place: a node's bound runnable is replaced by a shallow copy of a
dynamic subclass of its own type, so that drawing and `isinstance` still see what they saw.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, cast

from langchain_core.runnables import Runnable, RunnableSequence
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz.authzen import Decision, deny
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph._private import RunnableSeq, ToolNode, task_id
from langchain_runtime_authz.langgraph.interrupts import note_review
from langchain_runtime_authz.langgraph.kept import lookalike
from langchain_runtime_authz.langgraph.messages import plans_of, record
from langchain_runtime_authz.langgraph.node_calls import NodeCalls
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle, find_run, opened, run_scope
from langchain_runtime_authz.langgraph.tool_execution import Outcome
from langchain_runtime_authz.pep.engine import Effect, Engine, Flow, Run, adrive, drive
from langchain_runtime_authz.pep.obligations import keepable
from langchain_runtime_authz.pep.steps import decide_step, still_live


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
    key = ("node/enter", name)
    # What goes through its own methods again (`ainvoke` may use `invoke`) meets the gate once.
    inner = None if issubclass(base, ToolNode) else bound

    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = drive(opener.engine, _beside(opener))
        return drive(run.engine, _step(run, key, base, inner or self, channels, input, config or {}, kwargs))

    async def ainvoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            opener = _opener(config)
            run = await adrive(opener.engine, _beside(opener))
        return await adrive(run.engine, _step(run, key, base, inner or self, channels, input, config or {}, kwargs))

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

    own: dict[str, Any] = {f.__name__: f for f in (invoke, ainvoke, stream, astream, transform, atransform)}
    if isinstance(bound, RunnableSequence | RunnableSeq):
        own["steps"] = property(lambda self: [_Whole(self)])
    return lookalike(base, {"__runtime_authz_node__": name, **own})


def _run(_: Engine, scope: run_scope, base: Any, bound: Any, input: Any, config: Any, kwargs: Any) -> Outcome:
    with scope:
        try:
            return base.invoke(bound, input, config, **kwargs), None
        except BaseException as exc:  # noqa: BLE001  (raised by `_step`, if it stands)
            return None, exc


async def _arun(_: Engine, scope: run_scope, base: Any, bound: Any, input: Any, config: Any, kwargs: Any) -> Outcome:
    with scope:
        try:
            return await base.ainvoke(bound, input, config, **kwargs), None
        except BaseException as exc:  # noqa: BLE001  (likewise)
            return None, exc


RunNode: Final = Effect(_run, _arun)
Finish: Final = Effect(lambda *_: None, lambda _, node: node.finish())  # synchronous code waits for its own threads
Status: Final = Effect(method="ledger.status")  # tenant, jti → `TokenStatus`


def _step(
    run: Run,
    key: tuple[str, str],
    base: Any,
    bound: Any,
    channels: frozenset[str],
    input: Any,
    config: Any,
    kwargs: Any,
) -> Flow[Any]:
    """Enter the node, run it, and record the plans that its output announces."""
    tally, holds_gate = run.engine.tally, issubclass(base, ToolNode)
    tally.decided(run, "node", key[1], "node gate")
    if not (holds_gate and _kept(run, key) and (yield from _lives(run))):
        yield from _enter(run, key, holds_gate)
    tally.ran(run, "node", key[1], "node gate")
    node = None if holds_gate else NodeCalls(input, config)
    own = config if node is None else node.config
    output, failed = yield (RunNode, run_scope(run, task_id(own), node), base, bound, input, own, kwargs)
    try:
        if run.engine.observer is not None:
            yield from run.engine.observer.conclude(run, task_id(own))
        if isinstance(failed, GraphInterrupt):
            run.pause()
        if node is not None and (failed is not None or node.asks):
            return (yield from _ended(run, node, input, failed, channels))
        if failed is not None:
            raise failed
    finally:
        del failed  # its traceback holds this frame
    if node is not None and (plans := plans_of(run, input, output)):
        yield from record(run, plans)
    return output


def _ended(run: Run, node: NodeCalls, input: Any, failed: BaseException | None, channels: frozenset[str]) -> Flow[Any]:
    """End a node that failed, or whose code swallowed a question. Return the update in place of a denial."""
    if node.asks or isinstance(failed, AuthzDenied | GraphInterrupt):
        yield (Finish, node)
    yield from node.over(run, failed)
    if isinstance(failed, GraphInterrupt):
        yield from note_review(run, input, failed, node.config)
    denied = isinstance(failed, AuthzDenied) and not isinstance(failed, AuthzHalt)
    if denied and (update := node.answered(cast("AuthzDenied", failed), channels)) is not None:
        return update
    raise cast("BaseException", failed)


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


def _lives(run: Run) -> Flow[bool]:
    """Return True if the run is live, so that a cached permit needs no snapshot.

    Otherwise, also if the ledger fails, the step is decided in full, which finds the reason.
    """
    try:
        alive = not (run.closed or run.engine.killed)
        return alive and (yield (Status, run.scope.tenant, run.jti)) == "live"
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
