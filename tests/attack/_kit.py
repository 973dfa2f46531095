"""One import for the attack tests: `from ._kit import *`."""
# ruff: noqa: F401

import asyncio
import contextlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, tool
from langgraph._internal._runnable import RunnableCallable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel, Field

from langchain_runtime_authz import AuthzToolNode, Grant, RuntimeAuthz, ToolProfile, current_call
from langchain_runtime_authz.authz import TaskSources
from langchain_runtime_authz.errors import AuthzDenied, AuthzError, ConfigError, CredentialError
from langchain_runtime_authz.langgraph.run_context import AuthzHalt
from langchain_runtime_authz.ledger.base import Query
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.ledger.sqlite import SqliteLedger
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing import ScriptedChatModel, StaticPDP
from tests.ids import shown

from ._graphs import *

THREAD = {"configurable": {"thread_id": "t"}}


def params(*values: Any, ids: Any = None) -> Any:
    """Return a fixture that has each value in turn, named by the variable it is assigned to."""
    if len(values) == 1 and isinstance(values[0], (list, tuple, dict)):
        values = tuple(values[0])

    @pytest.fixture(params=values, ids=ids)
    def chosen(request: pytest.FixtureRequest) -> Any:
        return request.param

    return chosen


def sync(graph: Any, given: Any, config: Any = None) -> Any:
    return graph.invoke(given, config)


def in_loop(graph: Any, given: Any, config: Any = None) -> Any:
    """Invoke a graph in an event loop of its own."""
    return asyncio.run(graph.ainvoke(given, config))


def told(authz: RuntimeAuthz, graph: Any, given: Any, config: Any = None, *, go: Any = sync, **run: Any) -> Any:
    """Invoke a graph in one run, of alice unless `run` says otherwise."""
    with authz.run(**{"subject": "alice", **run}):
        return go(graph, given, config)


def epoch_of(authz: RuntimeAuthz, graph: str = "hand", thread: str = "t") -> int:
    return int(authz.ledger.load(authz.run_opener.scope(graph, thread), Query()).epoch)


def run_as(authz: RuntimeAuthz, graph: Any, given: Any, config: Any = None, *, how: str = "sync", **run: Any) -> Any:
    """Invoke a graph in one run, of alice unless `run` says otherwise; `how` is "sync" or "async"."""
    if how == "sync":
        return told(authz, graph, given, config, **run)

    async def in_one_loop() -> Any:
        async with authz.run(**{"subject": "alice", **run}):
            return await graph.ainvoke(given, config)

    return asyncio.run(in_one_loop())


def protecting(graph: Any, *pdp: Any, **options: Any) -> tuple[RuntimeAuthz, Any]:
    """Return an instance with the tests' profiles, and the graph that it protects."""
    authz = authz_with(*pdp, **options)
    return authz, authz.protect(graph)


def completions(authz: RuntimeAuthz) -> list[str]:
    return [r["state"] for r in authz.audit.records if r["kind"] == "completion"]  # type: ignore[attr-defined]


def said_by(act: Callable[[], Any]) -> Any:
    """Return what an act returns, or the code with which it is refused."""
    try:
        return act()
    except AuthzError as refused:
        return refused.code


def side_by_side(*acts: Callable[[], Any]) -> None:
    """Do each in a thread of its own, at the same time."""
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def code_of(act: Callable[[], Any], kind: type[AuthzError] = AuthzDenied) -> str:
    with pytest.raises(kind) as refused:
        act()
    return refused.value.code
