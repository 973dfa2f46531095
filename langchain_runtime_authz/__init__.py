"""Runtime authorization for LangChain and LangGraph.

A policy engine decides each step of a graph run by the full execution state, and the library enforces the decision.
Start with `RuntimeAuthz`; the README shows how.

Every export is loaded when it is first used. So a service that only verifies tokens (`resource_server`) loads neither
LangChain nor LangGraph.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from langchain_runtime_authz.authz import RuntimeAuthz
    from langchain_runtime_authz.coverage.observers import AuthzCallbackHandler
    from langchain_runtime_authz.credential.ticket import current_call
    from langchain_runtime_authz.errors import AuthzDenied, AuthzError
    from langchain_runtime_authz.grant import Constraint, Grant
    from langchain_runtime_authz.langgraph.middleware import AuthzMiddleware
    from langchain_runtime_authz.langgraph.node_gate import AuthzToolNode
    from langchain_runtime_authz.langgraph.run_context import AuthzHalt
    from langchain_runtime_authz.mandate.model import Mandate
    from langchain_runtime_authz.tool_profile import ToolProfile, profile

__all__ = [
    "AuthzCallbackHandler",
    "AuthzDenied",
    "AuthzError",
    "AuthzHalt",
    "AuthzMiddleware",
    "AuthzToolNode",
    "Constraint",
    "Grant",
    "Mandate",
    "RuntimeAuthz",
    "ToolProfile",
    "current_call",
    "profile",
]

_MODULES: Final = {
    "AuthzCallbackHandler": "coverage.observers",
    "AuthzDenied": "errors",
    "AuthzError": "errors",
    "AuthzHalt": "langgraph.run_context",
    "AuthzMiddleware": "langgraph.middleware",
    "AuthzToolNode": "langgraph.node_gate",
    "Constraint": "grant",
    "Grant": "grant",
    "Mandate": "mandate.model",
    "RuntimeAuthz": "authz",
    "ToolProfile": "tool_profile",
    "current_call": "credential.ticket",
    "profile": "tool_profile",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("langchain-runtime-authz")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as exc:
        if name != "AuthzMiddleware" or exc.name != "langchain":
            raise
        msg = "AuthzMiddleware needs LangChain: install langchain-runtime-authz[langchain]"
        raise ModuleNotFoundError(msg, name="langchain") from exc


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
