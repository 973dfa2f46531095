"""Fixtures of the attack tests."""

from typing import Any

import pytest
import tenacity
from langchain_core.runnables import retry

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP
from tests.threads import nothing_blocks

from ._kit import authz_with, in_loop, params, sync

form = params("invoke", "ainvoke")
kind = params("hand", "agent")
go = params(sync, in_loop, ids=["sync", "async"])
how = params("sync", "async")
protected = params(True, False)

_nothing_blocks_the_loop = pytest.fixture(autouse=True, scope="module")(nothing_blocks)


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
    return StaticPDP(True)


@pytest.fixture
def authz(pdp: StaticPDP) -> RuntimeAuthz:
    return authz_with(pdp)
