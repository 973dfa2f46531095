"""The plain graphs by the names of their apps, as `runtime-authz init tests.real_graphs.graphs:NAME` takes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore

from .model import Model
from .shapes import shape


def __getattr__(name: str) -> Callable[[], Any]:
    try:
        build = shape(name).build
    except ImportError as exc:
        raise AttributeError(name) from exc
    return lambda: build(Model(script={}), Path(), checkpointer=InMemorySaver(), store=InMemoryStore())
