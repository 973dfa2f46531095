"""Parts for users' own tests: a static PDP, a scripted model, a clock, contracts."""

from __future__ import annotations

from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.testing.frozen_clock import FrozenClock
from langchain_runtime_authz.testing.scripted_model import ScriptedChatModel
from langchain_runtime_authz.testing.static_pdp import StaticPDP

__all__ = ["FrozenClock", "ScriptedChatModel", "StaticPDP", "example_request"]
