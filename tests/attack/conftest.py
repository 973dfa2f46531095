"""Fixtures of the attack tests."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP

from ._kit import authz_with, in_loop, params, sync

form = params("invoke", "ainvoke")
kind = params("hand", "agent")
go = params(sync, in_loop, ids=["sync", "async"])


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
