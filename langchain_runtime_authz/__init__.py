"""Runtime authorization for LangChain and LangGraph.

Every step of a graph run is seen, decided by a policy engine on the full execution state, and
enforced. `RuntimeAuthz` is the way in; see the README.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from langchain_runtime_authz.authz import RuntimeAuthz
from langchain_runtime_authz.authzen import Decision, EvaluationRequest
from langchain_runtime_authz.credential.ticket import acurrent_credential, current_call, current_credential
from langchain_runtime_authz.errors import AlreadyProtected, AuthzDenied, AuthzError
from langchain_runtime_authz.grant import Constraint, Grant
from langchain_runtime_authz.langgraph.callback_handler import AuthzCallbackHandler
from langchain_runtime_authz.langgraph.coverage.report import CoverageReport
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.langgraph.tool_node import AuthzToolNode
from langchain_runtime_authz.pdp.base import PDP
from langchain_runtime_authz.profile import ToolProfile, profile

if TYPE_CHECKING:
    from langchain_runtime_authz.langgraph.middleware import AuthzMiddleware

__all__ = [
    "PDP",
    "AlreadyProtected",
    "AuthzCallbackHandler",
    "AuthzDenied",
    "AuthzError",
    "AuthzHalt",
    "AuthzMiddleware",
    "AuthzToolNode",
    "Constraint",
    "CoverageReport",
    "Decision",
    "EvaluationRequest",
    "Grant",
    "RuntimeAuthz",
    "ToolProfile",
    "acurrent_credential",
    "current_call",
    "current_credential",
    "profile",
]

__version__ = version("langchain-runtime-authz")


def __getattr__(name: str) -> Any:
    # `langchain` is optional, and heavy: it is imported where its middleware is used.
    if name == "AuthzMiddleware":
        try:
            from langchain_runtime_authz.langgraph.middleware import AuthzMiddleware
        except ModuleNotFoundError as exc:
            if exc.name != "langchain":
                raise
            msg = "AuthzMiddleware needs LangChain: install langchain-runtime-authz[langchain]"
            raise ModuleNotFoundError(msg, name="langchain") from exc
        return AuthzMiddleware
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
