"""Shared by every tier: how many examples the property tests draw, and whether they are new ones.

By default, the profile `ci`, they are the same each time and a third of what a test says, or twenty: what a tier says of a
commit is true of it tomorrow too. The search is the long tier's: `HYPOTHESIS_PROFILE=new` draws new ones, all that a test says;
`HYPOTHESIS_PROFILE=long` draws ten times as many.

No property fails for its time: a machine may be slow, or do other things too.

What hosts compute again at each call is kept for the process: typer's commands, and what pydantic asks of a default
factory for each field of each message that is shown. The tests of a file share a worker, so what a file keeps is made once.
"""

from __future__ import annotations

from functools import cache

import pytest
import typer.testing
from hypothesis import HealthCheck, settings
from pydantic import fields

from tests.tier import PROFILE

_FACTORS = {"ci": 1 / 3, "new": 1, "long": 10}

for _name in _FACTORS:
    settings.register_profile(_name, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=_name == "ci")
settings.load_profile(PROFILE)

typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]
fields._fields.takes_validated_data_argument = cache(fields._fields.takes_validated_data_argument)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole files, the largest first."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Multiply each test's own number of examples."""
    # By function: all items of a parametrized test share one.
    tests = {id(test): test for test in (getattr(item, "obj", None) for item in items)}
    for test in tests.values():
        inner = getattr(test, "_hypothesis_internal_use_settings", None)
        if inner is not None:
            said = inner.max_examples
            number = max(round(said * _FACTORS[PROFILE]), min(said, 20))
            test._hypothesis_internal_use_settings = settings(inner, max_examples=number)
