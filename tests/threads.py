"""Run work in threads at the same time, and wait for what others do."""

import threading
import time
from collections.abc import Callable
from typing import Any


def together(work: Callable[[], object], times: int = 8) -> None:
    """Run `work` in so many threads at once and wait for all of them."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(what: Callable[[], Any], seconds: float = 60.0, told: Callable[[], str] = lambda: "it did not come in time") -> Any:
    """Wait until it is so, and return what it is then. `told` is what a failure says."""
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, told()
        time.sleep(0.01)
    return found
