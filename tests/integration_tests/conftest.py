"""The real SPIRE takes part where it was built before: `.ci/identity` takes a quarter of an hour, once."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("LRA_SPIRE") else ["test_spire.py"]
