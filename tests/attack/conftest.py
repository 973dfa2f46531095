"""Fixtures of the attack tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import blockbuster
import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP

from ._kit import authz_with, in_loop, params, sync

form = params("invoke", "ainvoke")
kind = params("hand", "agent")
go = params(sync, in_loop, ids=["sync", "async"])

# The detector of `langgraph dev` leaves these out too: importlib and tokenizers look at files, and thread pools at locks.
# A lock of ours is held for a few lines of pure code, never across I/O.
_LOOKS = ("os.stat", "os.listdir", "os.remove", "threading.Lock.acquire", "threading.Lock.acquire_lock")
# A callback handler cannot await: with a ledger outside the process the backstop blocks the loop, and `coverage` says so.
_HANDLERS = {"on_chat_model_start", "on_llm_start", "on_tool_start", "on_tool_end", "on_tool_error"}


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Raise `BlockingError` if a call that waits is made on a running loop with our code in the stack."""
    detector = blockbuster.BlockBuster(scanned_modules=["langchain_runtime_authz"])
    for name in list(detector.functions):
        if name in _LOOKS or name.startswith("os.path."):
            del detector.functions[name]
        elif name == "os.write":  # a record that need not reach the disk is one write to the page cache
            detector.functions[name].can_block_in("audit/sinks.py", "_put")
        elif name.startswith("sqlite3."):
            detector.functions[name].can_block_in("langgraph/callback_backstop.py", _HANDLERS)
    detector.activate()
    yield
    detector.deactivate()


@pytest.fixture
def ran() -> list[Any]:
    """What the tools of the test did."""
    return []


@pytest.fixture
def pdp() -> StaticPDP:
    """A PDP that permits everything."""
    return StaticPDP(True)


@pytest.fixture
def authz(pdp: StaticPDP) -> RuntimeAuthz:
    """An enforcement point that asks `pdp`."""
    return authz_with(pdp)
