"""The shapes whose packages the unit tier does not have."""

import pytest

from tests import generated
from tests.real_graphs import shapes
from tests.real_graphs.configurations import CONFIGURATIONS, INIT, LEARNED, MANDATE, Configuration
from tests.real_graphs.table import questions, tables
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


@pytest.mark.parametrize("configuration", [INIT, LEARNED, MANDATE], ids=lambda each: each.name)
@pytest.mark.parametrize("name", shapes.NEEDS_DEEPAGENTS)
def test_reviewed(name: str, configuration: Configuration) -> None:
    """As for the other shapes."""
    unit.test_reviewed(name, configuration)


def test_tables() -> None:
    """The published tables are those of this tree, and the questions stay below what was promised."""
    text = tables(shapes.available(), CONFIGURATIONS)
    assert text == generated.read("real-graphs"), "run `python -m tests.real_graphs --write`"
    for configuration, most in ((INIT, 1.0), (LEARNED, 0.5), (MANDATE, 0.2)):
        assert questions(text, configuration) <= most
