"""The callback backstop: decide calls that no enforcement point has decided.

Inside a run, these are calls of unguarded tools, and model calls that our middleware has not decided. In `authz.run()`
without a protected graph, it only records model outputs, as plans for an `AuthzToolNode`.

The handler runs inline and sets `raise_error`, because LangChain swallows exceptions of handlers without it. It cannot
change the input or the output of a tool.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from itertools import chain
from typing import Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook

from langchain_runtime_authz.credential.ticket import Ticket, current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code, ConfigError
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.plan import calls_digest, plan_calls
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.call_messages import answer_message, unknown_call
from langchain_runtime_authz.langgraph.graph_input import resume_handler
from langchain_runtime_authz.langgraph.model_call import call_as_sent, decide_shown
from langchain_runtime_authz.langgraph.object_graph import DECISIONS
from langchain_runtime_authz.langgraph.run_context import RunHandle, current_node, current_run, find_run, run_handle
from langchain_runtime_authz.langgraph.tool_arrival import CodeCall, UndecidedCall, arrival_unguarded
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution
from langchain_runtime_authz.langgraph.tool_facts import ToolGuard, is_guarded
from langchain_runtime_authz.pep.call import Denial, Replay
from langchain_runtime_authz.pep.conclude_calls import conclude_call
from langchain_runtime_authz.pep.obligations import obliged_fields
from langchain_runtime_authz.pep.run import Flow, PepParts, Run, adrive, drive

Due = tuple[PepParts, Flow[None]] | None
_KEEP: Final = 256  # number of model outputs that a root entry remembers


class _Event:
    """A callback that runs a flow: awaited if LangChain awaits it, else blocking."""

    def __init__(self, due: Callable[..., Due]) -> None:
        self.due = due

    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


class _ToolStart(_Event):
    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        one = current_scope.get()
        if type(one) is ToolExecution and not one.stages and type(one.guard) is ToolGuard and one.guard.stock:
            return _ignore  # the tool is guarded, so its call is decided already
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


class _ToolEnd(_Event):
    def __get__(self, handler: object, _owner: object = None) -> Callable[..., Any]:
        if type(getattr(current_scope.get(), "guard", None)) is not UUID:
            return _ignore  # the tool's guard concludes the call
        return partial(_awaited if sys._getframe(1).f_code is private.AWAITS_HANDLER else _driven, self.due, handler)


_ignore: Final = "".format  # a no-op that is not a Python function


def _driven(due: Callable[..., Due], *args: Any, **kwargs: Any) -> None:
    if (found := due(*args, **kwargs)) is not None:
        drive(*found)


async def _awaited(due: Callable[..., Due], *args: Any, **kwargs: Any) -> None:
    if (found := due(*args, **kwargs)) is not None:
        await adrive(*found)


class _Models(BaseCallbackHandler):
    run_inline = True
    ignore_retriever = ignore_agent = ignore_retry = ignore_custom_event = True
    # LangChain announces a decision model as a chain. While no such model is defined, chains are ignored.
    ignore_chain: bool = True

    decides = False

    @_Event
    def on_chain_start(self, serialized: Any, _inputs: Any, **kwargs: Any) -> Due:
        if kwargs.get("run_type") != "llm" or (by := current_scope.get().run or _handle_around()) is None:
            return None
        call = call_as_sent(serialized, [], kwargs.get("metadata"), None)
        return (by.pep, decide_shown(by, call)) if self.decides and type(by) is Run else None

    @_Event
    def on_chat_model_start(self, serialized: Any, given: Any, **kwargs: Any) -> Due:
        if (by := current_scope.get().run or _handle_around()) is None:
            return None
        messages = given[0] if given and not isinstance(given[0], str) else ()  # a prompt has no system message
        call = call_as_sent(serialized, messages, kwargs.get("metadata"), kwargs.get("invocation_params"))
        with by.models.lock:
            by.models.running[kwargs.get("run_id")] = (call.model, call.prompt)
            while len(by.models.running) > _KEEP:
                by.models.running.pop(next(iter(by.models.running)))
        return (by.pep, decide_shown(by, call)) if self.decides and type(by) is Run else None

    on_llm_start = on_chat_model_start

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        if (by := current_scope.get().run or _handle_around()) is None:
            return
        asked = by.models.running.pop(kwargs.get("run_id"), (None, None))
        for generation in chain.from_iterable(response.generations):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if not isinstance(message, AIMessage) or not message.tool_calls:
                continue
            with by.models.lock:
                by.models.returned[calls_digest(plan_calls(message.tool_calls))] = asked
                while len(by.models.returned) > _KEEP:
                    by.models.returned.pop(next(iter(by.models.returned)))
            if (node := current_node(by)) is not None:
                node.plans.announced.append((var_child_runnable_config.get() or {}, message))

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        if (by := current_scope.get().run or _handle_around()) is not None:
            by.models.running.pop(kwargs.get("run_id"), None)


class _Backstop(_Models):
    raise_error = True
    ignore_agent = False

    decides = True

    @_ToolStart
    def on_tool_start(self, serialized: dict[str, Any], _input: str, *, run_id: UUID, **_kwargs: Any) -> Due:
        started = private.starting_tool()
        if started is None:
            if (run := current_run()) is None:
                raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
            call = unknown_call(str((serialized or {}).get("name")), None, None, None, {})
            arrived = CodeCall(call=call, config={}, call_id=None, pep=run.pep, run=run, counts=None)
            return run.pep, _decide(arrived, None)
        tool, given, config, call_id = started
        one = current_scope.get()
        runs = type(one) is ToolExecution and one.stages[-1:] == ["run"] and one.call.input.tool is tool
        if is_guarded(tool) or runs:
            return None
        config = private.ensure_config(config)
        if (owner := find_run(config) or run_handle(config)) is None:
            raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
        return owner.pep, _decide(arrival_unguarded(owner, tool, given, config, call_id), run_id)

    @_ToolEnd
    def on_tool_end(self, output: Any, *, run_id: UUID, **_kwargs: Any) -> Due:
        return _end(run_id, None, output)

    @_ToolEnd
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_kwargs: Any) -> Due:
        return _end(run_id, error, None)


def _handle_around() -> RunHandle | None:
    try:
        return run_handle(var_child_runnable_config.get() or {})
    except ConfigError:  # a generator opened the run, so it may belong to other code
        return None


def _decide(undecided: UndecidedCall, run_id: UUID | None) -> Flow[None]:
    arrived = yield from undecided.decide()
    verdict = arrived if isinstance(arrived, Denial) else arrived.one.verdict
    if isinstance(verdict, Replay):
        verdict = Denial(undecided.call, deny(Code.OUTCOME_UNKNOWN))
    if isinstance(arrived, Denial) or not isinstance(verdict, Ticket):
        answer_message(verdict, None)  # raises
        return
    if obliged_fields(verdict.obligations):
        yield from conclude_call(arrived.one.run, verdict, arrived.one.call, "released")
        raise AuthzDenied(Code.UNKNOWN_OBLIGATION, verdict.decision_id)
    verdict.mint = None
    execution = ToolExecution(run_id, arrived)
    execution.begin()
    execution.admits("_run")


def _end(run_id: UUID, error: BaseException | None, output: Any) -> Due:
    execution = current_scope.get()
    if type(execution) is not ToolExecution or execution.guard != run_id:
        return None
    execution.returned = output
    over = execution.end(error, output)
    return (execution.run.pep, over) if over is not None else None


_BACKSTOP: Final = _Backstop()
_LISTENER: Final = _Models()  # records model outputs for an `AuthzToolNode` in an unprotected graph


class _Hook:
    """Stands in for a ContextVar: LangChain adds the handler that `get` returns."""

    everywhere = listens = False

    def get(self) -> BaseCallbackHandler | None:
        base = getattr(sys.modules.get(DECISIONS), "BaseDecisionModel", None)
        if base is not None and base.__subclasses__():
            _Models.ignore_chain = False
        if current_scope.get().run is not None:
            return _BACKSTOP
        if (heard := resume_handler()) is not None:
            return heard
        if self.everywhere:
            return _BACKSTOP
        return _LISTENER if self.listens and _handle_around() is not None else None


_hook: Final = _Hook()


@cache
def _register() -> None:
    register_configure_hook(cast("ContextVar[Any]", _hook), inheritable=True)
    # LangChain logs a warning if a handler raises. Our denials and questions are not failures, so drop the warning.
    logging.getLogger(private.CALLBACK_LOGGER).addFilter(
        lambda record: not isinstance(record.args, tuple) or record.args[:1] != (_Backstop.__name__,)
    )


def install_backstop(*, everywhere: bool = False, listens: bool = False) -> None:
    """Register the hook with LangChain, once per process.

    `everywhere`: also deny unguarded tools outside runs. `listens`: record model outputs of unprotected graphs in
    `authz.run()`. An option that was set stays set, because LangChain cannot remove the hook.
    """
    _register()
    _hook.everywhere |= everywhere
    _hook.listens |= listens


def with_backstop(config: dict[str, Any]) -> dict[str, Any]:
    """Return a root entry's config with the backstop among its callbacks."""
    # If a node passes its callbacks to another thread, the backstop then works there too.
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        callbacks = callbacks.copy()
        callbacks.add_handler(_BACKSTOP, inherit=True)  # adds it only once
    else:
        callbacks = [*(h for h in callbacks if h is not _BACKSTOP), _BACKSTOP] if callbacks else [_BACKSTOP]
    return {**config, "callbacks": callbacks}
