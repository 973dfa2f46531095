"""The shapes: each app with its tasks, its attack and its outside."""

import importlib
import importlib.util
from typing import Final

from ..shape import Shape

NAMES: Final = (
    "support_desk", "deep_researcher", "inbox_hitl", "email_assistant", "executive_assistant", "codeact", "big_registry",
    "deep_agents",
)
NEEDS_DEEPAGENTS: Final = ("deep_agents",)


def shape(name: str) -> Shape:
    """Return the shape of this name."""
    return importlib.import_module(f"{__name__}.{name}").SHAPE


def available() -> list[Shape]:
    """Return the shapes whose packages are installed."""
    there = importlib.util.find_spec("deepagents") is not None
    return [shape(name) for name in NAMES if there or name not in NEEDS_DEEPAGENTS]
