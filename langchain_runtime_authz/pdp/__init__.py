"""Policy decision points: the protocol and what travels over it. Each engine has a module of its own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from langchain_runtime_authz.authzen import Decision, EvaluationRequest
    from langchain_runtime_authz.pdp.base import PDP

__all__ = ["PDP", "Decision", "EvaluationRequest"]

_MODULES: Final = {"Decision": "authzen", "EvaluationRequest": "authzen", "PDP": "pdp.base"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"langchain_runtime_authz.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
