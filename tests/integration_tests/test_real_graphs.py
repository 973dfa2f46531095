"""The shapes whose packages the unit tier does not have."""

from __future__ import annotations

import pytest

from tests.real_graphs import shapes
from tests.unit_tests.test_real_graphs import test_unprotected as unprotected


@pytest.mark.parametrize("name", shapes.NEEDS_DEEPAGENTS)
def test_unprotected(name: str) -> None:
    """As for the other shapes."""
    unprotected(name)
