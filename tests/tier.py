"""How much is played: the profile `ci` plays a part of what the long tier plays."""

import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

PROFILE: Final = os.environ.get("HYPOTHESIS_PROFILE", "ci")


def chosen(cases: Sequence[T], some: Callable[[T], bool]) -> Sequence[T]:
    """Return the cases that `some` picks; all of them in the long tier."""
    return [case for case in cases if PROFILE != "ci" or some(case)]


def part(cases: Sequence[T], of: int, first: int = 0) -> Sequence[T]:
    """Return every `of`-th case from `first`; all of them in the long tier."""
    return cases[first % of :: of] if PROFILE == "ci" else cases
