"""The shapes whose packages the unit tier does not have."""

from __future__ import annotations

import pytest

from tests.real_graphs import shapes
from tests.unit_tests import test_real_graphs as unit

pytestmark = pytest.mark.filterwarnings("ignore:.*without a profile")


@pytest.mark.parametrize("name", shapes.NEEDS_DEEPAGENTS)
def test_unprotected(name: str) -> None:
    """As for the other shapes."""
    unit.test_unprotected(name)


@pytest.mark.parametrize("name", shapes.NEEDS_DEEPAGENTS)
def test_permitted(name: str) -> None:
    """As for the other shapes."""
    unit.test_permitted(name)
