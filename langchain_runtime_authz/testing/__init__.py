"""Parts for users' own tests: a static PDP, a scripted model, a clock, contract suites."""

from __future__ import annotations

from langchain_runtime_authz.testing.clock import FrozenClock
from langchain_runtime_authz.testing.model import ScriptedChatModel
from langchain_runtime_authz.testing.requests import example_request
from langchain_runtime_authz.testing.static import StaticPDP

__all__ = ["FrozenClock", "ScriptedChatModel", "StaticPDP", "example_request"]
