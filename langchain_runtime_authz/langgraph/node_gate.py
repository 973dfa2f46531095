"""Gate nodes: decide their entry and a tool node's calls, and record the plans.

In a protected graph, each node's runnable is a shallow copy. The copy's class is a dynamic subclass of the original's,
so that drawing and `isinstance` still work. Before that, a tool node gets `_Gate` as a base, as `AuthzToolNode` has.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, cast

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt

from langchain_runtime_authz._flow import run_within
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.evaluation import Decision, deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph import tool_batch
from langchain_runtime_authz.langgraph.callback_backstop import install_backstop
from langchain_runtime_authz.langgraph.graph_entry import AuthzParts
from langchain_runtime_authz.langgraph.interrupts import note_question
from langchain_runtime_authz.langgraph.messages import ai_messages, newest_plan, plans_of, record_or_halt, record_plans
from langchain_runtime_authz.langgraph.node_calls import NodeCalls
from langchain_runtime_authz.langgraph.run_context import AuthzHalt, RunHandle, find_run, run_handle, run_scope
from langchain_runtime_authz.langgraph.tool_execution import Finish, RunCode
from langchain_runtime_authz.langgraph.tool_facts import GUARDED, Profiles, is_guarded
from langchain_runtime_authz.langgraph.tool_guard import guard_held_by, guard_tool
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep.approval_questions import approval_ids, is_shown_by
from langchain_runtime_authz.pep.decide_steps import ENTER, Entry, ToolNodeEntry, enter_node, kept_permit
from langchain_runtime_authz.pep.run import Commit, Flow, Load, PepParts, Run, adrive, drive
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)
_entering: ContextVar[Entry] = ContextVar("langchain_runtime_authz.entry", default=None)


def is_gated(bound: object) -> bool:
    """Return True if a node's runnable is protected."""
    return getattr(type(bound), "__runtime_authz_node__", None) is not None


def gate_bound(bound: Runnable[Any, Any], name: str, channels: frozenset[str] = frozenset()) -> Runnable[Any, Any]:
    """Return a protected copy of a node's runnable. `channels`: those with messages."""
    gated = _copied(bound, _gated_class(bound, name, channels))
    if isinstance(gated, private.ToolNode):
        gated.func, gated.afunc = gated._func, gated._afunc
    return gated


def _copied(bound: Runnable[Any, Any], kind: Any) -> Runnable[Any, Any]:
    copied = copy.copy(bound)
    # The subclass adds no field or slot, so the object keeps its layout.
    object.__setattr__(copied, "__class__", kind)
    return copied


def _gated_class(bound: Any, name: str, channels: frozenset[str]) -> Any:
    base: Any = type(bound)
    together = _decides_entry(base)
    # Run the original: the copy's `ainvoke` may use `invoke`, and would be decided twice.
    watched, inner = (None, None) if issubclass(base, private.ToolNode) else (channels, bound)

    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            run = drive(*_run_outside(config))
        code = partial(base.invoke, inner or self, **kwargs)
        return drive(run.pep, _step(run, name, code, watched, together, input, config))

    async def ainvoke(self: Any, input: Any, config: Any = None, *, _code: Any = base.ainvoke, **kwargs: Any) -> Any:
        run = find_run(config)
        if run is None:
            run = await adrive(*_run_outside(config))
        code = partial(_code, inner or self, **kwargs)
        return await adrive(run.pep, _step(run, name, code, watched, together, input, config))

    async def astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
        # Only `astream_events` uses this, to show the chunks of the runnable's parts.
        yield await self.ainvoke(
            input, config, _code=lambda node, *a, **k: _joined(base.astream(node, *a, **k)), **kwargs
        )

    # A node streams through callbacks, and the graph consumes its output as a whole. So the other streaming methods use
    # the protected `invoke` or `ainvoke`.
    own = {n: getattr(Runnable, n) for n in ("stream", "astream", "transform", "atransform")}
    own |= {"invoke": invoke, "ainvoke": ainvoke}
    if watched is not None:
        own["astream"] = astream
    kind = private.subclass_like(base, {"__runtime_authz_node__": name, **own})
    if not isinstance(bound, RunnableSequence | private.RunnableSeq):
        return kind
    steps = [_copied(bound, kind)]  # LangGraph runs a sequence's `steps`, so the only step is the protected sequence
    return private.subclass_like(kind, {"steps": property(lambda _: steps)})


async def _joined(chunks: Any) -> Any:
    """Add up a node's streamed chunks, as the next step of LangGraph's sequence does."""
    # LangGraph's own `_consume_aiter` returns only the last chunk.
    joined = None
    async for chunk in chunks:
        try:
            joined = joined + chunk
        except TypeError:
            joined = chunk
    return joined


def _step(
    run: Run, name: str, code: Any, channels: frozenset[str] | None, together: bool, input: Any, config: Any
) -> Flow[Any]:
    """Decide `node/enter`, run the node, and record the plans in its output.

    `channels`: those with messages; None for a tool node. `together`: `_Gate` decides `node/enter` with the calls.
    With a cached permit, the run's lease is then checked only for each call.
    """
    check, entry = partial(_check, run, name, channels), None
    if not together:
        check((yield from enter_node(run, name, lasting=channels is None)))
    elif (permit := kept_permit(run, ENTER, name, lasting=True)[0]) is not None:
        check(permit)
    else:
        entry = ToolNodeEntry(run, name, check)
    node = None if channels is None else NodeCalls(input, config or {})
    own: Any = config or {} if node is None else node.config
    output, failed = None, None
    # Restore values without `Token`s, because the flow may continue in a copy of its context.
    ambient, scope, before = var_child_runnable_config.get(), current_scope.get(), _entering.get()
    current_scope.set(mine := run_scope(run, private.task_id(own), node))
    _entering.set(entry)
    var_child_runnable_config.set(own)  # to count questions of code that passes no config
    try:
        output = yield (RunCode, code, input, own)
    except BaseException as exc:  # noqa: BLE001  (raised below, unless the node's calls can be answered)
        failed = exc
    if failed is None or current_scope.get() is mine:  # else it is closed in another context
        var_child_runnable_config.set(ambient)
        current_scope.set(scope)
        _entering.set(before)
    try:
        if run.pep.observer is not None:
            yield from run.pep.observer.conclude(run, private.task_id(own))
        if isinstance(failed, GraphInterrupt):
            run.pause()
        if node is not None and (failed is not None or node.question or node.held):
            try:
                return (yield from _ended(run, node, input, failed, channels or frozenset()))
            except GraphInterrupt:
                # LangGraph stored the answers up to the last one that was used, but unused ones may follow.
                private.store_answers(own, private.scratchpad_of(own).resume)
                raise
        if failed is not None:
            raise failed
    finally:
        del failed  # its traceback refers to this frame
    if node is not None and (plans := plans_of(run, input, output)):
        yield from record_or_halt(run, plans)
    return output


def _check(run: Run, name: str, channels: frozenset[str] | None, entered: Decision) -> None:
    # A tool node must answer its calls even if the task has changed.
    enters = entered.outcome == "permit" or (channels is None and entered.reason == Code.STALE_EPOCH)
    run.pep.tally.count(run, "node", name, "node gate", decided=1, ran=int(enters))
    if not enters:
        raise AuthzHalt(entered.reason, entered.decision_id)


def _ended(run: Run, node: NodeCalls, input: Any, failed: BaseException | None, channels: frozenset[str]) -> Flow[Any]:
    if node.question or node.held or isinstance(failed, AuthzDenied | GraphInterrupt):
        yield (Finish, node)
    if failed is None or isinstance(failed, Exception):
        try:
            yield from node.plans.keep(run)
        except Exception as exc:  # noqa: BLE001  (the node's own error is raised)
            _log.error("the plans of a node were not kept: %s", type(exc).__name__)
    yield from node.over(run, failed)
    if isinstance(failed, GraphInterrupt):
        own = private.interrupt_id(node.config)
        asked = [i for i in (failed.args[0] if failed.args else ()) if i.id == own]
        if len(asked) == 1:
            # The node may be a review, which asks about the calls of the newest message.
            yield from note_question(run, [*reversed(node.plans.inside), newest_plan(input)], asked[0])
            questions = (yield Load(run.scope, Query(questions=True))).questions if approval_ids(asked[0].value) else ()
            # The ledger has a mark for an approval question, unless a node made up the ids.
            known = is_shown_by(asked[0].value, own, questions)
            yield Commit(run.scope, None, [SetMark(f"{OF_TASK}{own}", "own", once=known)])
    denied = isinstance(failed, AuthzDenied) and not isinstance(failed, AuthzHalt)
    if denied and (update := node.answered(cast("AuthzDenied", failed), channels)) is not None:
        return update
    raise cast("BaseException", failed)


def _run_outside(config: Any) -> tuple[PepParts, Flow[Run]]:
    """Return the parts, and a flow that opens a run for a node outside a graph."""
    handle = run_handle(config or {})
    if handle is None:
        raise AuthzHalt(Code.NO_RUN, deny(Code.NO_RUN).decision_id)

    def flow() -> Flow[Run]:
        try:
            return (yield from handle.outside_run())
        except AuthzDenied as denied:
            raise AuthzHalt(denied.code, denied.decision_id) from None

    return handle.pep, flow()


_NO_QUEUE: Final = tool_batch.CallQueue(None, (), ())
_queue = ContextVar("langchain_runtime_authz.queue", default=_NO_QUEUE)


class _Gate(private.ToolNode):
    """Decides a ToolNode's calls. It is the first base of a protected node's class."""

    __runtime_authz_gated__ = True
    _authz_profiles: Profiles

    def _func(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        waiting = drive(run.pep, message.decide(run))
        several = message.counting is not config
        ambient = var_child_runnable_config.get() if several else None
        try:
            if several:
                var_child_runnable_config.set(message.counting)  # to number questions of wrappers too
            _queue.set(queue := tool_batch.CallQueue(message.counting, message.calls, waiting, "tool node gate"))
            return super()._func(input, message.counting, runtime)
        except GraphInterrupt as exc:
            raise queue.question(exc) from None
        finally:
            if several:
                var_child_runnable_config.set(ambient)
            if tool_batch.open_tickets(waiting):
                drive(run.pep, tool_batch.give_back(waiting))

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = False) -> Any:
        run, message = self._message(input, config, runtime, standalone)
        code = partial(super()._afunc, input, message.counting, runtime)

        def flow() -> Flow[Any]:  # one flow, because cancelling would lose the value of a separate one: the tickets
            waiting = yield from message.decide(run)
            several = message.counting is not config
            ambient = var_child_runnable_config.get() if several else None
            try:
                if several:
                    var_child_runnable_config.set(message.counting)
                _queue.set(queue := tool_batch.CallQueue(message.counting, message.calls, waiting, "tool node gate"))
                try:
                    return (yield (RunCode, code))
                except GraphInterrupt as exc:
                    yield (Finish, queue)
                    raise queue.question(exc) from None
                except Exception:
                    yield (Finish, queue)
                    raise
            finally:
                if several:
                    var_child_runnable_config.set(ambient)
                if tool_batch.open_tickets(waiting):
                    yield from tool_batch.give_back(waiting)

        return await adrive(run.pep, flow())

    def _message(
        self, input: Any, config: RunnableConfig, runtime: Any, standalone: bool
    ) -> tuple[Run, tool_batch.MessageCalls]:
        run = find_run(config)
        if run is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        entry = _entering.get()
        _entering.set(None)  # tools may run further tool nodes
        wrappers = self._wrap_tool_call, self._awrap_tool_call
        return run, tool_batch.MessageCalls(
            self, self._authz_profiles, input, config, runtime, entry=entry, wrappers=wrappers, standalone=standalone
        )

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        queue, code = _queue.get(), super()._run_one
        return drive(queue.pep, queue.run(call, code, input_type, tool_runtime))

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        queue, code = _queue.get(), super()._arun_one
        return await adrive(queue.pep, queue.run(call, code, input_type, tool_runtime))

    def _execute_tool_sync(self, request: Any, input_type: Any, config: Any) -> Any:
        request = request if hasattr(type(request.tool), GUARDED) else self._guarded(request)
        return super()._execute_tool_sync(request, input_type, config)

    async def _execute_tool_async(self, request: Any, input_type: Any, config: Any) -> Any:
        request = request if hasattr(type(request.tool), GUARDED) else self._guarded(request)
        return await super()._execute_tool_async(request, input_type, config)

    def _guarded(self, request: Any) -> Any:
        known = isinstance(request.tool, BaseTool)
        return request.override(tool=guard_tool(request.tool, self._authz_profiles)) if known else request


def _decides_entry(kind: type[Any]) -> bool:
    """Return True if `_Gate` decides before code of the node class `kind` can run."""
    return all(
        getattr(kind, name, None) in (getattr(base, name, None) for base in (private.ToolNode, _Gate, AuthzToolNode))
        for name in ("invoke", "ainvoke", "_func", "_afunc", "_parse_input", "_extract_state", "_inject_tool_args")
    ) and issubclass(kind, _Gate)


def gate_tool_node(node: private.ToolNode, profiles: Profiles) -> private.ToolNode:
    """Return a guarded copy of `node`. The tools of both become guarded copies."""
    gated = copy.copy(node)
    gated.__class__ = private.subclass_like(type(node), {}, _Gate)
    return _equip(cast("_Gate", gated), profiles)


def guard_held(node: private.ToolNode, profiles: Profiles) -> None:
    """Replace each tool of `node`, which the code of a node holds, by a guarded copy."""
    for name, tool in list(node._tools_by_name.items()):
        if not is_guarded(tool):
            node._tools_by_name[name] = guard_tool(tool, profiles)


def _equip(node: _Gate, profiles: Profiles) -> private.ToolNode:
    node._authz_profiles = profiles
    for name, tool in list(node._tools_by_name.items()):
        # Change this dictionary, because closures, like a supervisor's, refer to it.
        node._tools_by_name[name] = guard_tool(tool, profiles)
    # A RunnableCallable calls the methods in `func` and `afunc`, which are still those of the original.
    node.func, node.afunc = node._func, node._afunc
    return node


class AuthzToolNode(_Gate):
    """Drop-in for `langgraph.prebuilt.ToolNode` that decides its tools' calls.

    In a protected graph, it is one of the graph's enforcement points. In an unprotected graph, each execution is a root
    entry. Inside `authz.run()`, a message then counts as the plan of its calls if a model returned it in that run and
    no correction came in between. Outside `authz.run()`, the root entry opens an implicit run.

    Args:
        tools: as for ToolNode; the node uses guarded copies.
        authz: the `RuntimeAuthz` that decides.
        **kwargs: as for ToolNode.
    """

    def __init__(self, tools: Sequence[Any], *, authz: AuthzParts, **kwargs: Any) -> None:
        super().__init__(tools, **kwargs)
        self._authz = authz
        install_backstop(listens=True)
        _equip(self, authz.profiles)
        guard_held_by(self)

    def _func(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = True) -> Any:
        if find_run(config) is not None:
            return super()._func(input, config, runtime)
        return drive(*self._entered(partial(super()._func, standalone=True), input, config, runtime))

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any, *, standalone: bool = True) -> Any:
        if find_run(config) is not None:
            return await super()._afunc(input, config, runtime)
        return await adrive(*self._entered(partial(super()._afunc, standalone=True), input, config, runtime))

    def _entered(self, code: Any, input: Any, config: RunnableConfig, runtime: Any) -> tuple[PepParts, Flow[Any]]:
        run_opener = self._authz.run_opener
        owner = run_opener.owner(config)

        def inside(entered: tuple[Any, Any]) -> Flow[Any]:
            run = cast("Run", find_run(entered[1]))
            if isinstance(owner, RunHandle) and entered[0] is input:
                run.models.returned.update(owner.models.returned)
                yield from record_plans(run, input, ai_messages(input)[-1:])
            with run_scope(run):
                return (yield (RunCode, code, *entered, runtime))

        return run_opener.pep, run_within(run_opener.enter(self.get_name(), input, config, owner), inside)
