"""The one ambient hook, and the one global of this package.

LangChain's public `register_configure_hook` can not be undone, so it is called once a process, at
the first `protect`. The handler keeps nothing: it dispatches by the run of the gate around the
current code, so instances do not meet here, and outside protected runs it does nothing.

It decides model calls, and records what models return (`plan.source`). It is synchronous, inline and raises, because
asynchronous handlers and handlers without `raise_error` are swallowed.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

from langchain_runtime_authz.edges.handle import running
from langchain_runtime_authz.edges.models import decide_shown
from langchain_runtime_authz.edges.plans import note_model_call, note_model_output
from langchain_runtime_authz.enforce.engine import Run

__all__ = ["install"]


class _Ambient(BaseCallbackHandler):
    raise_error = True
    run_inline = True
    ignore_chain = True
    ignore_agent = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

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


def _asked(run: Run, serialized: Any, messages: Any, about: dict[str, Any]) -> None:
    call = decide_shown(run, serialized, messages, about.get("metadata"), about.get("invocation_params"))
    note_model_call(run, about.get("run_id"), call.model, call.prompt)


_lock = threading.Lock()
_installed: ContextVar[BaseCallbackHandler | None] | None = None


def install() -> None:
    """Register the hook, once a process."""
    global _installed  # noqa: PLW0603
    with _lock:
        if _installed is None:
            _installed = ContextVar("langchain_runtime_authz.ambient", default=_Ambient())  # noqa: B039  (it keeps nothing)
            register_configure_hook(_installed, inheritable=True)
