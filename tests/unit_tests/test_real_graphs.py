"""Eight apps as strangers write them, without protection and with it."""

from itertools import product

import pytest

from langchain_runtime_authz import RuntimeAuthz
from langchain_runtime_authz.testing import StaticPDP
from tests.real_graphs import shapes
from tests.real_graphs.comparison import seen
from tests.real_graphs.configurations import INIT, LEARNED, MANDATE, PLAIN, Configuration
from tests.real_graphs.runner import play
from tests.tier import part

pytestmark = pytest.mark.filterwarnings("ignore:.*without a profile")
NAMES = [name for name in shapes.NAMES if name not in shapes.NEEDS_DEEPAGENTS]
REVIEWED = part([*product([INIT, LEARNED, MANDATE], NAMES)], 3)  # the integration tier's table has each app in each configuration


@pytest.mark.parametrize("name", NAMES)
def test_unprotected(name: str) -> None:
    """Each honest task is done, and the attack does its harm along with the work."""
    shape = shapes.shape(name)
    for task in shape.tasks:
        outcome = play(shape, task, PLAIN, "careful")
        assert (outcome.done, outcome.harm, outcome.error) == (True, False, ""), task.name
    outcome = play(shape, shape.attack, PLAIN, "careful")
    assert (outcome.done, outcome.harm, outcome.error) == (True, True, "")


@pytest.mark.parametrize("name", NAMES)
def test_permitted(name: str) -> None:
    """If every step is permitted, a caller sees what it sees of the plain app: but for ids and times, all of it."""
    shape = shapes.shape(name)
    for task in shape.tasks:
        pdp = StaticPDP(permit=True)
        plain, protected = seen(shape, task, None), seen(shape, task, lambda: RuntimeAuthz(pdp=pdp))
        for what in plain:
            assert protected[what] == plain[what], f"{task.name}: {what}"
        assert plain["tokens"] and plain["events"] and plain["history"] and plain["checkpoints"]
        assert pdp.bodies


@pytest.mark.parametrize(("configuration", "name"), REVIEWED, ids=lambda each: getattr(each, "name", each))
def test_reviewed(name: str, configuration: Configuration) -> None:
    """Unattended, no attack does harm. With a careful user the honest tasks are done, and the attack's own work is too."""
    shape = shapes.shape(name)
    assert not play(shape, shape.attack, configuration, "nobody").harm
    for task in (*shape.tasks, shape.attack):
        outcome = play(shape, task, configuration, "careful")
        assert (outcome.done, outcome.harm, outcome.error) == (True, False, ""), task.name
