"""`profile suggest` on three real graphs, beside what a careful author wrote for the same tools."""

import pytest

from tests import generated
from tests.benchmarks.profile_suggest import AUTHORS, compare, table

# Of what an author says about calls, the least share that is proposed, in force or in a comment.
LEAST = 0.65


@pytest.mark.parametrize("name", AUTHORS)
def test_proposed_beside_an_authors_facts(name: str) -> None:
    """Most facts are proposed, in force or as a doubt; none lowers a risk, as it stands or once accepted unread."""
    found = compare(name)
    calls = found.of("what a call does")
    assert found.tools >= 9 and found.lowered == 0
    assert found.milder == 0 and 1 - calls[-1] / sum(calls) >= LEAST
    assert len(found.wrong) <= sum(calls) / 6


def test_table_is_what_the_command_prints() -> None:
    """Its table is the command's, losses by name: `python -m tests.benchmarks.profile_suggest --write`."""
    assert generated.read("suggest").splitlines() == table()
