"""Eight apps as strangers write them: what each does without protection, so that a stopped attack was one."""

from __future__ import annotations

import pytest

from tests.real_graphs import shapes
from tests.real_graphs.configurations import PLAIN
from tests.real_graphs.runner import play

NAMES = [name for name in shapes.NAMES if name not in shapes.NEEDS_DEEPAGENTS]


@pytest.mark.parametrize("name", NAMES)
def test_unprotected(name: str) -> None:
    """Each honest task is done, and the attack does its harm along with the work."""
    shape = shapes.shape(name)
    for task in shape.tasks:
        outcome = play(shape, task, PLAIN, "careful")
        assert (outcome.done, outcome.harm, outcome.error) == (True, False, ""), task.name
    outcome = play(shape, shape.attack, PLAIN, "careful")
    assert (outcome.done, outcome.harm, outcome.error) == (True, True, "")
