"""Shared by every tier: `HYPOTHESIS_PROFILE=long` multiplies the examples of the property tests by ten.

No property fails for its time: a machine may be slow, or do other things too.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
_FACTOR = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1


def pytest_collection_modifyitems(items):
    """Raise each test's own number of examples."""
    if _FACTOR == 1:
        return
    for item in items:
        test = getattr(item, "obj", None)
        inner = getattr(test, "_hypothesis_internal_use_settings", None)
        if inner is not None:
            test._hypothesis_internal_use_settings = settings(inner, max_examples=inner.max_examples * _FACTOR)
