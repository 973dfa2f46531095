"""Fixtures of the attack tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import blockbuster
import pytest
import tenacity
from langchain_core.runnables import retry

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP

from ._kit import authz_with, in_loop, params, sync

form = params("invoke", "ainvoke")
kind = params("hand", "agent")
go = params(sync, in_loop, ids=["sync", "async"])
how = params("sync", "async")
protected = params(True, False)

# The detector of `langgraph dev` leaves these out too: importlib and tokenizers look at files, and thread pools at locks.
# A lock of ours is held for a few lines of pure code, never across I/O.
_LOOKS = ("os.stat", "os.listdir", "os.remove", "threading.Lock.acquire", "threading.Lock.acquire_lock")


@pytest.fixture(autouse=True, scope="module")
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Raise `BlockingError` if a call that waits is made on a running loop with our code in the stack."""
    detector = blockbuster.BlockBuster(scanned_modules=["langchain_runtime_authz"])
    for name in list(detector.functions):
        if name in _LOOKS or name.startswith("os.path."):
            del detector.functions[name]
    detector.activate()
    yield
    detector.deactivate()


@pytest.fixture(autouse=True)
def _no_retry_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry what a host retries at once."""
    monkeypatch.setattr(retry, "wait_exponential_jitter", lambda **_: tenacity.wait_none())


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
