"""Count the Python functions that some work calls."""

import sys
from collections.abc import Callable


def python_calls(work: Callable[[], object]) -> list[str]:
    calls: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls[1:]
