"""How much is played: the profile `ci` plays a part of what the long tier plays."""

import os
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

PROFILE: Final = os.environ.get("HYPOTHESIS_PROFILE", "ci")


def part(cases: Sequence[T], of: int, first: int = 0) -> Sequence[T]:
    """Return every `of`-th case from `first`; all of them in the long tier."""
    return cases[first % of :: of] if PROFILE == "ci" else cases
