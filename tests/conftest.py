"""Shared by every tier: how many examples the property tests draw, and whether they are new ones.

By default they are the same each time: what a tier says of a commit is true of it tomorrow too. The search is the long
tier's: `HYPOTHESIS_PROFILE=new` draws new ones, `HYPOTHESIS_PROFILE=long` ten times as many of them.

No property fails for its time: a machine may be slow, or do other things too.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_PROFILE = os.environ.get("HYPOTHESIS_PROFILE")
_FACTOR = 10 if _PROFILE == "long" else 1

settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=_PROFILE not in ("new", "long")
)
settings.load_profile("patient")


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
