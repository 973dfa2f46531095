"""The one ambient hook, and the one global of this package: the backstop behind every gate.

A tool that nobody guarded and that runs inside a protected run (called by a node function, with
`callbacks=[]`, in a thread or task that has the run's context or config, by an agent that a tool
makes for itself) is decided as it starts, by the same engine room as any other call; a deny is
`AuthzDenied`. Guarded tools are left to their guard, so the engine is asked once.

The hook is registered once a process, since LangChain's `register_configure_hook` can not be undone.
It keeps nothing of any instance and dispatches by the run of the gate around the current code. It is
looked at when a tool, model or chain is set up; outside protected runs it then answers "no handler",
and nothing is added. It is synchronous, inline and raises, because asynchronous handlers and handlers
without `raise_error` are swallowed: in an async run it blocks the loop for the length of a decision.
A model's permit is kept, so that with a slow remote engine this happens once per agent, epoch, policy
revision and tool set. There is no asynchronous form that gates: LangChain runs a coroutine handler on its
synchronous roads too and swallows what it raises there, and a handler can not tell on which road it is.
Who can not wait lists `AuthzMiddleware`, which awaits the decision; the hook then only looks whether there is one.

A backstop is less than a guard. It can not change what the tool receives: arguments that parse
differently each time, or that the tool's schema refuses, are denied. It can not change what comes back:
a permit that obliges to redact is a deny, a call that ran before has no answer here and is denied, and
its calls get no credential. A start that other code than `BaseTool.run` announces is denied.

It does not see a tool in a thread that has neither the context, the config nor the callbacks of the
run; `authz.deny_outside_runs()` closes that by denying every unguarded tool outside a run. And it does not
see what is no `BaseTool.run`: a function called as a function.

It decides model calls too, where our middleware has not, and records what models return (`plan.source`).
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

from langchain_runtime_authz.authzen import deny
from langchain_runtime_authz.credential.ticket import current_scope
from langchain_runtime_authz.errors import AuthzDenied, Code
from langchain_runtime_authz.langgraph._private import StartingTool, ensure_config, starting_tool
from langchain_runtime_authz.langgraph.arguments import unknown
from langchain_runtime_authz.langgraph.guard import Guard
from langchain_runtime_authz.langgraph.messages import note_model_call, note_model_output
from langchain_runtime_authz.langgraph.model_calls import decide_shown
from langchain_runtime_authz.langgraph.run_context import running
from langchain_runtime_authz.langgraph.standalone import hear
from langchain_runtime_authz.langgraph.tool_arrival import Arrival, arrival_unguarded
from langchain_runtime_authz.langgraph.tool_execution import ToolExecution, answer
from langchain_runtime_authz.langgraph.tool_guard import is_guarded
from langchain_runtime_authz.pep.call import Denial, Replay
from langchain_runtime_authz.pep.claim import conclude
from langchain_runtime_authz.pep.engine import Run, drive
from langchain_runtime_authz.pep.obligations import obliged_fields

__all__ = ["hearing", "install"]


class _Backstop(BaseCallbackHandler):
    raise_error = True
    run_inline = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        """The same for a model that is no language model: LangChain announces a decision model as a chain, of this type."""
        if kwargs.get("run_type") == "llm" and (run := running()) is not None:
            decide_shown(run, serialized, [], kwargs.get("metadata"), None)

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        """Decide a model call inside a gated node, unless our middleware has."""
        if (run := running()) is not None:
            _asked(run, serialized, messages[0] if messages else [], kwargs)

    def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        """The same for a model that takes text."""
        if (run := running()) is not None:
            _asked(run, serialized, [], kwargs)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Remember the calls that a model returned inside a gated node."""
        run = running()
        if run is None:
            return
        for generations in response.generations:
            for generation in generations:
                if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                    note_model_output(run, generation.message, kwargs.get("run_id"))

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        """Decide an unguarded tool; a permit is held until the tool ends.

        Raises:
            AuthzDenied: the tool does not run.
        """
        one = current_scope.get()
        if type(one) is ToolExecution and not one.stages and type(one.guard) is Guard and one.guard.stock:
            return  # LangChain's own `run` of a guarded tool
        started = starting_tool()
        if started is None:
            _refuse(str((serialized or {}).get("name")))
        elif not is_guarded(started.tool):
            _open(started, run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """The tool is done."""
        if type(getattr(current_scope.get(), "guard", None)) is UUID:
            _close(run_id, None, output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """The tool failed, or asked."""
        _close(run_id, error, None)


def _asked(run: Run, serialized: Any, messages: Any, about: dict[str, Any]) -> None:
    call = decide_shown(run, serialized, messages, about.get("metadata"), about.get("invocation_params"))
    note_model_call(run, about.get("run_id"), call.model, call.prompt)


def _refuse(name: str) -> None:
    """Refuse a tool of which only a name is known."""
    if (run := running()) is None:
        raise AuthzDenied(Code.NO_RUN, deny(Code.NO_RUN).decision_id)
    answer(drive(run.engine, Arrival(unknown(name, None, None, None, {}), {}, run=run).decide()), None)  # raises


def _open(started: StartingTool, run_id: UUID) -> None:
    config = ensure_config(started.config)
    arrived = arrival_unguarded(started.tool, started.tool_input, config, started.call_id)
    if arrived.engine is None:
        arrived.refuse()  # raises
        return
    verdict = drive(arrived.engine, arrived.decide())
    run, call = arrived.run, arrived.call
    if isinstance(verdict, Replay):
        verdict = Denial(call, deny(Code.OUTCOME_UNKNOWN))
    if run is None or isinstance(verdict, Denial):
        answer(verdict, None)  # raises
        return
    if obliged_fields(verdict.obligations):
        drive(run.engine, conclude(run, verdict, call, "released"))
        raise AuthzDenied(Code.UNKNOWN_OBLIGATION, verdict.decision_id)
    verdict.mint = None
    if (execution := arrived.execution(run_id, verdict)) is not None:
        execution.begin()
        execution.admits("_run")


def _close(run_id: UUID, error: BaseException | None, output: Any) -> None:
    execution = current_scope.get()
    if type(execution) is ToolExecution and execution.guard == run_id:
        execution.returned = output
        if (over := execution.end(error, output)) is not None:
            drive(execution.run.engine, over)


_BACKSTOP: Final = _Backstop()


class _Hook:
    """Stands where `register_configure_hook` looks for a ContextVar: what it gets is added as a handler."""

    everywhere = False
    listening = False

    def get(self) -> BaseCallbackHandler | None:
        """The backstop, or nothing outside protected runs."""
        if self.listening and running() is None and (heard := hear()) is not None:
            return heard
        return _BACKSTOP if self.everywhere or running() is not None else None


_lock = threading.Lock()
_hook: _Hook | None = None


def install(*, everywhere: bool = False, listening: bool = False) -> None:
    """Register the hook, once a process.

    Args:
        everywhere: also deny unguarded tools outside runs, in the whole process and for good.
        listening: also observe the values with which unprotected graphs are resumed (`langgraph.standalone`).
    """
    global _hook  # noqa: PLW0603
    with _lock:
        if _hook is None:
            _hook = _Hook()
            register_configure_hook(cast("ContextVar[Any]", _hook), inheritable=True)
        if everywhere:
            _hook.everywhere = True
        if listening:
            _hook.listening = True


def hearing(config: dict[str, Any]) -> dict[str, Any]:
    """A root entry's config with the backstop among its callbacks.

    So it reaches code to which a node hands its config, or no more than its callbacks, and which runs
    in a thread of its own.
    """
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        heard = callbacks.copy()
        if _BACKSTOP not in heard.inheritable_handlers:
            heard.add_handler(_BACKSTOP, inherit=True)
        return {**config, "callbacks": heard}
    handlers = list(callbacks or ())
    return config if _BACKSTOP in handlers else {**config, "callbacks": [*handlers, _BACKSTOP]}
