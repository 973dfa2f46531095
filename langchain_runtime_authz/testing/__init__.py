"""Parts for users' own tests: a static PDP, a scripted model, a clock, contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.static_pdp import StaticPDP

if TYPE_CHECKING:
    from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel

__all__ = ["FrozenClock", "ScriptedChatModel", "StaticPDP", "example_request"]


def __getattr__(name: str) -> Any:
    if name != "ScriptedChatModel":
        raise AttributeError(name)
    from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel  # loads LangChain

    return ScriptedChatModel
