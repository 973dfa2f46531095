"""Shared by every tier: how many examples the property tests draw, and whether they are new ones.

By default they are the same each time: what a tier says of a commit is true of it tomorrow too. The search is the long
tier's: `HYPOTHESIS_PROFILE=new` draws new ones, `HYPOTHESIS_PROFILE=long` ten times as many of them.

No property fails for its time: a machine may be slow, or do other things too.

What hosts compute again at each call is kept for the process: typer's commands, and what pydantic asks of a default
factory for each field of each message that is shown. The tests of a file share a worker, so what a file keeps is made once.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
import typer.testing
from hypothesis import HealthCheck, settings
from pydantic import fields

_PROFILE = os.environ.get("HYPOTHESIS_PROFILE")
_FACTOR = 10 if _PROFILE == "long" else 1

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=_PROFILE not in ("new", "long")
)
settings.load_profile("patient")

typer.testing._get_command = cache(typer.testing._get_command)  # type: ignore[attr-defined]
fields._fields.takes_validated_data_argument = cache(fields._fields.takes_validated_data_argument)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole files, the largest first."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Raise each test's own number of examples."""
    if _FACTOR == 1:
        return
    # By function: all items of a parametrized test share one.
    tests = {id(test): test for test in (getattr(item, "obj", None) for item in items)}
    for test in tests.values():
        inner = getattr(test, "_hypothesis_internal_use_settings", None)
        if inner is not None:
            test._hypothesis_internal_use_settings = settings(inner, max_examples=inner.max_examples * _FACTOR)
